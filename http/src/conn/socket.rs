//! hyper's view of a glommio TCP socket, with vectored writes and a stall clock.
//!
//! Both directions go straight to the descriptor first, without waiting; glommio is asked only to
//! wait until the socket is ready. Reads land in hyper's own uninitialized buffer. Errors are
//! passed on as they come.
//!
//! When the peer still sends while we close, the kernel answers with a reset that may overtake our
//! last words. A socket told to [`Linger`] shuts its own side, and reads and drops for a bounded
//! while before it goes.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use hyper::rt;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::rt::Stall;
use crate::{limits, metrics};

/// Says that the peer may still be sending when its connection closes.
#[derive(Clone, Debug, Default)]
pub struct Linger(Rc<Cell<bool>>);

impl Linger {
    /// From now on the connection closes gently.
    pub fn set(&self) {
        self.0.set(true);
    }
}

/// One TCP connection on this shard.
pub struct Socket {
    stream: TcpStream,
    write_stall: Stall,
    linger: Linger,
    closing: Closing,
}

enum Closing {
    No,
    Lingering { stall: Stall, left: u64 },
    Done,
}

impl Socket {
    /// Takes over an accepted connection.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            write_stall: Stall::new(limits::WRITE_STALL_TIMEOUT),
            linger: Linger::default(),
            closing: Closing::No,
        }
    }

    /// The handle that makes this socket close gently.
    pub fn linger(&self) -> Linger {
        self.linger.clone()
    }

    #[expect(unsafe_code, reason = "glommio lends its descriptor as a number only")]
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and closes it only when dropped; the borrow of
        // `self` keeps it alive.
        unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) }
    }

    /// Waits until there is something to read. Bytes that arrive while asking are put in `scratch`
    /// and counted, because glommio can only wait by reading.
    fn poll_readable(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, scratch))?;
        metrics::received(read);
        Poll::Ready(Ok(read))
    }

    /// Waits until there is something to read, and takes what fits.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read =
            self.receive(|fd, flags| rustix::net::recv(fd, &mut *buf, flags).map(|(_, n)| n))?;
        match read {
            Some(n) => Poll::Ready(Ok(n)),
            None => self.poll_readable(cx, buf),
        }
    }

    /// Takes what the kernel has; none if that is nothing for now.
    fn receive(
        &self,
        mut recv: impl FnMut(BorrowedFd<'_>, RecvFlags) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        match retry_on_intr(|| recv(self.fd(), RecvFlags::DONTWAIT)) {
            Ok(n) => {
                metrics::received(n);
                Ok(Some(n))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Before another try: the kernel finds a little more room in its own buffers than it wakes anybody for, and that is not
        // the peer's doing.
        if self.write_stall.is_over() {
            return Poll::Ready(Err(stalled()));
        }
        let bufs = &bufs[..bufs.len().min(limits::WRITE_VECTOR_MAX)];
        loop {
            let sent = rustix::net::sendmsg(
                self.fd(),
                bufs,
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(n) => {
                    metrics::sent(n);
                    self.write_stall.progress();
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        // glommio tries once more and then waits for room.
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        match Pin::new(&mut self.stream).poll_write(cx, first) {
            Poll::Ready(done) => {
                metrics::sent(*done.as_ref().unwrap_or(&0));
                self.write_stall.progress();
                Poll::Ready(done)
            }
            Poll::Pending => self.write_stall.poll_stalled(cx).map(|()| Err(stalled())),
        }
    }

    pub(super) fn poll_close_gently(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.closing {
                Closing::No => {
                    match rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write) {
                        // The peer closed or reset first; nothing is left to say.
                        Ok(()) | Err(Errno::NOTCONN) => {}
                        Err(error) => return Poll::Ready(Err(error.into())),
                    }
                    self.closing = if self.linger.0.get() {
                        Closing::Lingering {
                            stall: Stall::new(limits::LINGER_TIMEOUT),
                            left: limits::LINGER_BYTES_MAX,
                        }
                    } else {
                        Closing::Done
                    };
                }
                Closing::Lingering { stall, left } => {
                    let mut scratch = [0; 16 * 1024];
                    let read = match Pin::new(&mut self.stream).poll_read(cx, &mut scratch) {
                        Poll::Ready(Ok(n)) => n,
                        Poll::Ready(Err(_)) => 0,
                        // Counted from the start: a peer that never stops gains nothing.
                        Poll::Pending => {
                            ready!(stall.poll_stalled(cx));
                            0
                        }
                    };
                    *left = left.saturating_sub(read as u64);
                    if read == 0 || *left == 0 {
                        self.closing = Closing::Done;
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl rt::Read for Socket {
    #[expect(unsafe_code, reason = "the buffer is hyper's and uninitialized")]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: only `recv` writes to the slice, and it never makes bytes uninitialized.
        let spare = unsafe { buf.as_mut() };
        if spare.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let read =
            self.receive(|fd, flags| rustix::net::recv(fd, &mut *spare, flags).map(|(_, n)| n))?;
        if let Some(n) = read {
            // SAFETY: the kernel wrote the first `n` bytes of the slice.
            unsafe { buf.advance(n) };
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 4096];
        let want = scratch.len().min(buf.remaining());
        let n = ready!(self.poll_readable(cx, &mut scratch[..want]))?;
        buf.put_slice(&scratch[..n]);
        Poll::Ready(Ok(()))
    }
}

impl rt::Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_close_gently(cx)
    }
}

/// The same socket as futures-rustls wants it: its buffers are initialized.
impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_receive(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_close_gently(cx)
    }
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading")
}
