//! A connection as hyper serves it, or asks over it: plain, or TLS over the same socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_lite::io::{AsyncRead, AsyncWrite};
use futures_rustls::client::TlsStream;
use futures_rustls::rustls::pki_types::CertificateDer;
use hyper::rt::{self, ReadBufCursor};

use super::socket::Socket;
use super::tls::{RECORD_BYTES, TlsServer};

/// An open connection.
#[expect(
    clippy::large_enum_variant,
    reason = "one per connection, and the smaller kind is boxed already"
)]
pub enum Transport {
    /// As the bytes come.
    Plain(Socket),
    /// As a server, after the handshake.
    Tls(Box<TlsServer>),
    /// As a client, after the handshake.
    Client(Box<TlsStream<Socket>>),
}

impl Transport {
    /// Whether the peer and we agreed on HTTP/2.
    pub fn is_h2(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Client(_) => false,
            Self::Tls(stream) => stream.is_h2(),
        }
    }

    /// The certificates that the peer presented in its handshake.
    pub fn peer_certificates(&self) -> Arc<[CertificateDer<'static>]> {
        match self {
            Self::Plain(_) | Self::Client(_) => Arc::default(),
            Self::Tls(stream) => stream.peer_certificates(),
        }
    }
}

impl rt::Read for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => rt::Read::poll_read(Pin::new(socket), cx, buf),
            Self::Tls(stream) => rt::Read::poll_read(Pin::new(stream), cx, buf),
            Self::Client(stream) => {
                // More never comes out of one read.
                let mut record = [0; RECORD_BYTES];
                let want = record.len().min(buf.remaining());
                let read = AsyncRead::poll_read(Pin::new(stream), cx, &mut record[..want]);
                let n = ready!(read)?;
                buf.put_slice(&record[..n]);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl rt::Write for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => rt::Write::poll_write(Pin::new(socket), cx, buf),
            Self::Tls(stream) => rt::Write::poll_write(Pin::new(stream), cx, buf),
            Self::Client(stream) => AsyncWrite::poll_write(Pin::new(stream), cx, buf),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => rt::Write::poll_write_vectored(Pin::new(socket), cx, bufs),
            Self::Tls(stream) => rt::Write::poll_write_vectored(Pin::new(stream), cx, bufs),
            Self::Client(stream) => AsyncWrite::poll_write_vectored(Pin::new(stream), cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => rt::Write::poll_flush(Pin::new(socket), cx),
            Self::Tls(stream) => rt::Write::poll_flush(Pin::new(stream), cx),
            Self::Client(stream) => AsyncWrite::poll_flush(Pin::new(stream), cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => rt::Write::poll_shutdown(Pin::new(socket), cx),
            Self::Tls(stream) => rt::Write::poll_shutdown(Pin::new(stream), cx),
            Self::Client(stream) => AsyncWrite::poll_close(Pin::new(stream), cx),
        }
    }
}
