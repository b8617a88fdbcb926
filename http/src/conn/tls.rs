//! The server's side of TLS over a socket. rustls shakes hands and makes the keys; records are framed here, so that what was
//! received is opened where the kernel put it, and goes from there into hyper's buffer.
//!
//! What TLS 1.3 says between records (alerts, key updates) is answered here as rustls would. TLS 1.2 stays rustls' whole.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::rt::{self, ReadBufCursor};
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, ServerConfig, SupportedCipherSuite, Tls13CipherSuite,
};

use super::socket::Socket;
use crate::limits;

/// A record's head: its type, a version that means nothing any more, and its length.
const HEAD: usize = 5;
/// Plaintext of one record at most, and what it may grow by when it is sealed.
const RECORD_BYTES: usize = 16 * 1024;
const GROWTH_MAX: usize = 256;
/// RFC 8446, section 4: the type of a key update, its length, and whether the peer is asked for one of its own.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_ASKED: [u8; 5] = [24, 0, 0, 1, 1];
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A connection after its handshake.
pub struct TlsServer {
    socket: Socket,
    session: Session,
    input: Input,
    output: Output,
    fate: Fate,
    /// Whether it was told that nothing more comes from us.
    closing: bool,
    is_h2: bool,
    certificates: Arc<[CertificateDer<'static>]>,
}

/// What is to be expected of the peer.
enum Fate {
    More,
    /// It said that nothing more comes.
    Closed,
    /// It did what it must not do.
    Failed(Error),
}

#[expect(
    clippy::large_enum_variant,
    reason = "the larger kind is the usual one"
)]
enum Session {
    Records(Records),
    Rustls(UnbufferedServerConnection),
}

/// The records of TLS 1.3, each direction with its key and the number of the next one.
struct Records {
    suite: &'static Tls13CipherSuite,
    secrets: KernelConnection<ServerConnectionData>,
    decrypter: Box<dyn MessageDecrypter>,
    received: u64,
    encrypter: Box<dyn MessageEncrypter>,
    sent: u64,
    /// Records in a row that brought no data.
    idle: usize,
}

/// What the first record of the input was.
enum Opened {
    /// It is not there as a whole.
    Partly,
    /// It is behind us; if it brought data, that can be taken.
    Record,
    /// The peer's last.
    Closed,
}

/// What came from the socket: records, the first of them opened.
#[derive(Default)]
struct Input {
    bytes: Piece,
    /// Data that was not taken yet, and the sealed bytes behind it.
    plain: Range<usize>,
    sealed: Range<usize>,
    /// Data that goes in front of both, which rustls handed out, and how much of it was taken.
    aside: Vec<u8>,
    taken: usize,
}

/// Records on their way to the socket.
#[derive(Default)]
struct Output {
    records: VecDeque<Vec<u8>>,
    /// Bytes of the first one that are gone, and bytes of all that are not.
    gone: usize,
    left: usize,
}

/// Shakes hands. What the peer is told of a failure is sent.
pub async fn accept(mut socket: Socket, config: Arc<ServerConfig>) -> io::Result<TlsServer> {
    enum Step {
        Again,
        Receive,
        Done,
    }
    let mut session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
    let (mut input, mut output) = (Input::default(), Output::default());
    loop {
        // What follows the handshake is not for this loop to open.
        let sealed = match session.is_handshaking() {
            true => &mut input.bytes.0[input.sealed.clone()],
            false => &mut [],
        };
        let UnbufferedStatus { discard, state } = session.process_tls_records(sealed);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                output.push_with(|to| data.encode(to))?;
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Again
            }
            // It came in the same piece as the end of the handshake.
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    input.aside.extend(record.map_err(invalid)?.payload);
                }
                Step::Again
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Receive,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                output.push_pending(&mut session);
                let _ = poll_fn(|cx| output.poll_send(&mut socket, cx)).await;
                return Err(invalid(error));
            }
        };
        input.sealed.start += discard;
        let step = match step {
            // A server may write before it has heard the end of the handshake.
            Step::Done if session.is_handshaking() => Step::Receive,
            step => step,
        };
        match step {
            Step::Again => continue,
            Step::Receive | Step::Done => {
                poll_fn(|cx| output.poll_send(&mut socket, cx)).await?;
            }
        }
        if let Step::Done = step {
            break;
        }
        poll_fn(|cx| input.poll_fill(&mut socket, cx)).await?;
    }
    let certificates = session.peer_certificates().unwrap_or_default().into();
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    Ok(TlsServer {
        session: Session::new(session).map_err(invalid)?,
        socket,
        input,
        output,
        fate: Fate::More,
        closing: false,
        is_h2,
        certificates,
    })
}

impl TlsServer {
    /// Whether the peer and we agreed on HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.is_h2
    }

    /// The certificates that the peer presented.
    pub fn peer_certificates(&self) -> Arc<[CertificateDer<'static>]> {
        Arc::clone(&self.certificates)
    }

    /// Waits for data that was not taken yet; there is none at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.input.data().is_empty() {
            match &self.fate {
                Fate::More => {}
                Fate::Closed => return Poll::Ready(Ok(())),
                Fate::Failed(error) => return Poll::Ready(Err(invalid(error.clone()))),
            }
            match self.session.open(&mut self.input, &mut self.output) {
                Ok(Opened::Record) => {}
                Ok(Opened::Partly) => {
                    // An answer to the peer waits for nobody.
                    let _ = self.output.poll_send(&mut self.socket, cx)?;
                    ready!(self.input.poll_fill(&mut self.socket, cx))?;
                }
                Ok(Opened::Closed) => self.fate = Fate::Closed,
                Err(error) => {
                    self.session.say_why(&error, &mut self.output);
                    let _ = self.output.poll_send(&mut self.socket, cx)?;
                    self.fate = Fate::Failed(error);
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Session {
    fn new(session: UnbufferedServerConnection) -> Result<Self, Error> {
        match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => Ok(Self::Records(Records::new(session)?)),
            _ => Ok(Self::Rustls(session)),
        }
    }

    fn open(&mut self, input: &mut Input, output: &mut Output) -> Result<Opened, Error> {
        match self {
            Self::Records(records) => records.open(input, output),
            Self::Rustls(session) => open_old(session, input, output),
        }
    }

    /// Seals a record of data. Larger data than one takes is the caller's mistake.
    fn seal(&mut self, data: OutboundChunks<'_>, output: &mut Output) -> io::Result<()> {
        match self {
            Self::Records(records) => records
                .seal(ContentType::ApplicationData, data, output)
                .map_err(io::Error::other),
            Self::Rustls(session) => {
                output.push_pending(session);
                match session.process_tls_records(&mut []).state {
                    Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                        let data = data.to_vec();
                        output.push_with(|to| traffic.encrypt(&data, to))
                    }
                    Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
                    Err(error) => Err(invalid(error)),
                }
            }
        }
    }

    /// Tells the peer that nothing more comes.
    fn close(&mut self, output: &mut Output) -> io::Result<()> {
        match self {
            Self::Records(records) => records
                .alert(WARNING, AlertDescription::CloseNotify, output)
                .map_err(io::Error::other),
            Self::Rustls(session) => match session.process_tls_records(&mut []).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    output.push_with(|to| traffic.queue_close_notify(to))
                }
                _ => Ok(()),
            },
        }
    }

    /// Tells the peer what it did, as far as anything can be told.
    fn say_why(&mut self, error: &Error, output: &mut Output) {
        match self {
            Self::Records(records) => {
                let why = match error {
                    Error::DecryptError => AlertDescription::BadRecordMac,
                    Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
                    Error::InappropriateMessage { .. } | Error::PeerMisbehaved(_) => {
                        AlertDescription::UnexpectedMessage
                    }
                    Error::InvalidMessage(_) => AlertDescription::DecodeError,
                    // It knows.
                    Error::AlertReceived(_) => return,
                    _ => AlertDescription::InternalError,
                };
                let _ = records.alert(FATAL, why, output);
            }
            Self::Rustls(session) => output.push_pending(session),
        }
    }
}

impl Records {
    fn new(session: UnbufferedServerConnection) -> Result<Self, Error> {
        let (keys, secrets) = session.dangerous_into_kernel_connection()?;
        let SupportedCipherSuite::Tls13(suite) = secrets.negotiated_cipher_suite() else {
            return Err(Error::General("TLS 1.3 without a suite of it".into()));
        };
        Ok(Self {
            decrypter: decrypter(suite, keys.rx.1)?,
            received: keys.rx.0,
            encrypter: encrypter(suite, keys.tx.1)?,
            sent: keys.tx.0,
            suite,
            secrets,
            idle: 0,
        })
    }

    fn open(&mut self, input: &mut Input, output: &mut Output) -> Result<Opened, Error> {
        let at = input.sealed.start;
        let Some((head, rest)) = input.sealed().split_first_chunk_mut::<HEAD>() else {
            return Ok(Opened::Partly);
        };
        let len = usize::from(u16::from_be_bytes([head[3], head[4]]));
        let kind = ContentType::from(head[0]);
        if kind != ContentType::ApplicationData {
            return Err(inappropriate(kind));
        }
        if len > RECORD_BYTES + GROWTH_MAX {
            return Err(Error::PeerSentOversizedRecord);
        }
        let Some(payload) = rest.get_mut(..len) else {
            return Ok(Opened::Partly);
        };
        let message = InboundOpaqueMessage::new(kind, ProtocolVersion::TLSv1_2, payload);
        let message = self.decrypter.decrypt(message, self.received)?;
        self.received += 1;
        let (kind, data) = (message.typ, message.payload);
        self.idle = match kind == ContentType::ApplicationData && !data.is_empty() {
            true => 0,
            false => self.idle + 1,
        };
        if self.idle > limits::TLS_IDLE_RECORDS_MAX {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        let opened = match (kind, data) {
            (ContentType::ApplicationData, data) => {
                let data = data.len();
                // In every suite of TLS 1.3 the data takes the place of what it was sealed as.
                input.plain = at + HEAD..at + HEAD + data;
                Opened::Record
            }
            (ContentType::Alert, &[_, what]) => match AlertDescription::from(what) {
                AlertDescription::CloseNotify => Opened::Closed,
                // The reason for the close that follows.
                AlertDescription::UserCanceled => Opened::Record,
                what => return Err(Error::AlertReceived(what)),
            },
            (ContentType::Handshake, said) if *said == KEY_UPDATE => {
                self.renew_received()?;
                Opened::Record
            }
            (ContentType::Handshake, said) if *said == KEY_UPDATE_ASKED => {
                self.renew_received()?;
                self.renew_sent(output)?;
                Opened::Record
            }
            (ContentType::Alert | ContentType::Handshake, _) => {
                return Err(InvalidMessage::TrailingData("a record between data").into());
            }
            (kind, _) => return Err(inappropriate(kind)),
        };
        input.sealed.start = at + HEAD + len;
        Ok(opened)
    }

    fn renew_received(&mut self) -> Result<(), Error> {
        let (next, keys) = self.secrets.update_rx_secret()?;
        self.decrypter = decrypter(self.suite, keys)?;
        self.received = next;
        Ok(())
    }

    /// Says so under the old key, and goes on with a new one.
    fn renew_sent(&mut self, output: &mut Output) -> Result<(), Error> {
        let said = OutboundChunks::Single(&KEY_UPDATE);
        self.seal_now(ContentType::Handshake, said, output)?;
        let (next, keys) = self.secrets.update_tx_secret()?;
        self.encrypter = encrypter(self.suite, keys)?;
        self.sent = next;
        Ok(())
    }

    fn seal(
        &mut self,
        kind: ContentType,
        data: OutboundChunks<'_>,
        output: &mut Output,
    ) -> Result<(), Error> {
        // The last record that a key may seal says that another follows.
        if self.sent + 1 >= self.suite.common.confidentiality_limit {
            self.renew_sent(output)?;
        }
        self.seal_now(kind, data, output)
    }

    fn seal_now(
        &mut self,
        kind: ContentType,
        data: OutboundChunks<'_>,
        output: &mut Output,
    ) -> Result<(), Error> {
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_3,
            payload: data,
        };
        let record = self.encrypter.encrypt(message, self.sent)?;
        self.sent += 1;
        output.push(record.encode());
        Ok(())
    }

    fn alert(
        &mut self,
        level: u8,
        what: AlertDescription,
        output: &mut Output,
    ) -> Result<(), Error> {
        let said = [level, what.into()];
        self.seal(ContentType::Alert, OutboundChunks::Single(&said), output)
    }
}

fn decrypter(
    suite: &Tls13CipherSuite,
    keys: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    match keys {
        Aes128Gcm { key, iv } | Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv } => {
            Ok(suite.aead_alg.decrypter(key, iv))
        }
        _ => Err(Error::General("a suite without a name".into())),
    }
}

fn encrypter(
    suite: &Tls13CipherSuite,
    keys: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, Error> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    match keys {
        Aes128Gcm { key, iv } | Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv } => {
            Ok(suite.aead_alg.encrypter(key, iv))
        }
        _ => Err(Error::General("a suite without a name".into())),
    }
}

/// Opens what TLS 1.2 sent.
fn open_old(
    session: &mut UnbufferedServerConnection,
    input: &mut Input,
    output: &mut Output,
) -> Result<Opened, Error> {
    let before = input.sealed.len();
    let UnbufferedStatus { discard, state } =
        session.process_tls_records(&mut input.bytes.0[input.sealed.clone()]);
    let mut discarded = discard;
    let opened = match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            input.aside.clear();
            input.taken = 0;
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discarded += record.discard;
                input.aside.extend(record.payload);
            }
            Opened::Record
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let pushed = output.push_with(|to| data.encode(to));
            pushed.map_err(|e| Error::General(e.to_string()))?;
            Opened::Record
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Opened::Record
        }
        ConnectionState::PeerClosed | ConnectionState::Closed => Opened::Closed,
        _ => Opened::Partly,
    };
    input.sealed.start += discarded.min(before);
    Ok(opened)
}

impl Input {
    fn sealed(&mut self) -> &mut [u8] {
        &mut self.bytes.0[self.sealed.clone()]
    }

    /// What was opened and not taken.
    fn data(&self) -> &[u8] {
        match self.taken < self.aside.len() {
            true => &self.aside[self.taken..],
            false => &self.bytes.0[self.plain.clone()],
        }
    }

    fn take(&mut self, len: usize) {
        if self.taken == self.aside.len() {
            self.plain.start += len;
            return;
        }
        self.taken += len;
        if self.taken == self.aside.len() {
            (self.aside, self.taken) = (Vec::new(), 0);
        }
    }

    /// Waits for more behind the sealed bytes. Nothing that was opened may be left.
    fn poll_fill(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let left = self.sealed.len();
        if self.bytes.0.is_empty() {
            self.bytes = Piece::taken();
        }
        self.plain = 0..0;
        self.bytes.0.copy_within(self.sealed.clone(), 0);
        self.sealed = 0..left;
        let room = &mut self.bytes.0[left..];
        if room.is_empty() {
            return Poll::Ready(Err(invalid(Error::PeerSentOversizedRecord)));
        }
        match socket.poll_receive(cx, room) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(n)) => {
                self.sealed.end += n;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // A connection that waits holds no memory.
                if left == 0 {
                    (self.bytes, self.sealed) = (Piece::default(), 0..0);
                }
                Poll::Pending
            }
        }
    }
}

impl Output {
    fn push(&mut self, record: Vec<u8>) {
        self.left += record.len();
        self.records.push_back(record);
    }

    /// Takes what is written to the slice it gets, which has room for any record and any flight of a handshake.
    fn push_with<E: std::error::Error + Send + Sync + 'static>(
        &mut self,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> io::Result<()> {
        let mut record = vec![0; limits::TLS_FLIGHT_BYTES_MAX];
        let len = write(&mut record).map_err(io::Error::other)?;
        record.truncate(len);
        record.shrink_to_fit();
        self.push(record);
        Ok(())
    }

    /// Takes what rustls has to say by itself: of an error, say.
    fn push_pending(&mut self, session: &mut UnbufferedServerConnection) {
        loop {
            match session.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if self.push_with(|to| data.encode(to)).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => return,
            }
        }
    }

    /// Waits until all of it is with the kernel.
    fn poll_send(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left > 0 {
            let mut slices: Vec<IoSlice<'_>> = self
                .records
                .iter()
                .take(limits::WRITE_VECTOR_MAX)
                .map(|r| IoSlice::new(r))
                .collect();
            slices[0].advance(self.gone);
            let sent = ready!(socket.poll_send(cx, &slices))?;
            self.left -= sent;
            self.gone += sent;
            while let Some(first) = self.records.front()
                && self.gone >= first.len()
            {
                self.gone -= first.len();
                self.records.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A buffer for received records, or none. It is initialized once and used again: what it held stays in it.
#[derive(Default)]
struct Piece(Box<[u8]>);

thread_local! {
    static PIECES: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

impl Piece {
    fn taken() -> Self {
        let used = PIECES.with_borrow_mut(Vec::pop);
        Self(used.unwrap_or_else(|| vec![0; limits::TLS_READ_BYTES].into()))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // The thread may be at its end.
        let _ = PIECES.try_with(|pieces| {
            let mut pieces = pieces.borrow_mut();
            if !bytes.is_empty() && pieces.len() < limits::TLS_READ_BUFFERS_KEPT {
                pieces.push(bytes);
            }
        });
    }
}

impl rt::Read for TlsServer {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut any = false;
        while buf.remaining() > 0 {
            match this.poll_data(cx) {
                Poll::Ready(Ok(())) if !this.input.data().is_empty() => {}
                // The end, or an error, comes again when asked again.
                _ if any => break,
                done => return done,
            }
            let data = this.input.data();
            let now = data.len().min(buf.remaining());
            buf.put_slice(&data[..now]);
            this.input.take(now);
            any = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl rt::Write for TlsServer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Seals as much as may wait for the socket, and sends what that takes.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.output.left >= limits::TLS_BUFFER_BYTES {
            ready!(this.output.poll_send(&mut this.socket, cx))?;
        }
        let chunks: Vec<&[u8]> = bufs.iter().map(|buf| &**buf).collect();
        let room = limits::TLS_BUFFER_BYTES.saturating_sub(this.output.left);
        let (mut data, _) = OutboundChunks::new(&chunks).split_at(room);
        let len = data.len();
        while !data.is_empty() {
            let (record, rest) = data.split_at(RECORD_BYTES);
            this.session.seal(record, &mut this.output)?;
            data = rest;
        }
        // What the socket does not take now goes when it is flushed.
        let _ = this.output.poll_send(&mut this.socket, cx)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.output.poll_send(&mut this.socket, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.closing, true) {
            this.session.close(&mut this.output)?;
        }
        ready!(this.output.poll_send(&mut this.socket, cx))?;
        this.socket.poll_close_gently(cx)
    }
}

fn inappropriate(got_type: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type,
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::thread::JoinHandle;

    use hyper::rt::{Read as _, ReadBuf, Write as _};
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::crypto::{CryptoProvider, ring};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

    use super::super::serve::testing::shard;
    use crate::tls::cipher::provider;

    /// A server that sends back what it gets, and how its one connection ended; and a client's configuration for it.
    struct Echo {
        address: SocketAddr,
        ended: JoinHandle<io::Result<()>>,
        roots: RootCertStore,
    }

    impl Echo {
        fn start(provider: Arc<CryptoProvider>, tickets: usize) -> Self {
            let CertifiedKey { cert, signing_key } =
                generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let private = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], private)
                .unwrap();
            config.enable_secret_extraction = true;
            config.send_tls13_tickets = tickets;
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone()).unwrap();
            let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
            let listener = super::super::bind(any_port, 1).unwrap().remove(0);
            let address = listener.local_addr().unwrap();
            let ended = std::thread::spawn(move || {
                shard().run(async move {
                    let listener = super::super::listen::adopt(listener);
                    let socket = Socket::new(listener.accept().await.unwrap());
                    let mut stream = accept(socket, Arc::new(config)).await?;
                    let done = echo(&mut stream).await;
                    poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await?;
                    done
                })
            });
            Self {
                address,
                ended,
                roots,
            }
        }

        fn client(&self, suites: Option<CipherSuite>, version: Version) -> Client {
            let mut provider = ring::default_provider();
            provider
                .cipher_suites
                .retain(|suite| suites.is_none_or(|wanted| suite.suite() == wanted));
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(self.roots.clone())
                .with_no_client_auth();
            let name = "localhost".try_into().unwrap();
            let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
            tls.set_buffer_limit(None);
            let socket = TcpStream::connect(self.address).unwrap();
            socket.set_nodelay(true).unwrap();
            Client { tls, socket }
        }

        fn ended(self) -> io::Result<()> {
            self.ended.join().unwrap()
        }
    }

    type Version = &'static SupportedProtocolVersion;
    use rustls::CipherSuite;
    use rustls::version::{TLS12, TLS13};

    async fn echo(stream: &mut TlsServer) -> io::Result<()> {
        let mut buffer = vec![0; 100_000];
        loop {
            let mut read = ReadBuf::new(&mut buffer);
            poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, read.unfilled())).await?;
            if read.filled().is_empty() {
                return Ok(());
            }
            let mut left = read.filled();
            while !left.is_empty() {
                // In slices that end anywhere.
                let (one, two) = left.split_at(left.len() / 3);
                let slices = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)];
                let n =
                    poll_fn(|cx| Pin::new(&mut *stream).poll_write_vectored(cx, &slices)).await?;
                left = &left[n..];
            }
            poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await?;
        }
    }

    struct Client {
        tls: ClientConnection,
        socket: TcpStream,
    }

    impl Client {
        fn shake_hands(&mut self) {
            while self.tls.is_handshaking() {
                self.tls.complete_io(&mut self.socket).unwrap();
            }
        }

        /// What is to go over the wire.
        fn wire(&mut self) -> Vec<u8> {
            let mut wire = Vec::new();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut wire).unwrap();
            }
            wire
        }

        fn expect(&mut self, data: &[u8]) {
            let mut seen = vec![0; data.len()];
            let mut stream = rustls::Stream::new(&mut self.tls, &mut self.socket);
            stream.read_exact(&mut seen).unwrap();
            assert!(seen == data, "{} bytes", data.len());
        }

        /// Sends and expects it back.
        fn carry(&mut self, data: &[u8]) {
            self.tls.writer().write_all(data).unwrap();
            let wire = self.wire();
            let mut socket = self.socket.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || socket.write_all(&wire).unwrap());
                self.expect(data);
            });
        }

        fn close(&mut self) {
            self.tls.send_close_notify();
            let wire = self.wire();
            self.socket.write_all(&wire).unwrap();
        }

        /// The error that the server's last words make.
        fn fault(&mut self) -> Error {
            loop {
                match self.tls.read_tls(&mut self.socket) {
                    Ok(0) | Err(_) => panic!("closed without a word"),
                    Ok(_) => {}
                }
                if let Err(error) = self.tls.process_new_packets() {
                    return error;
                }
            }
        }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect()
    }

    #[test]
    fn every_suite_carries_both_ways() {
        for suite in &ring::default_provider().cipher_suites {
            let version = match suite.tls13() {
                Some(_) => &TLS13,
                None => &TLS12,
            };
            let suite = suite.suite();
            // The server's certificate is of the other kind.
            if format!("{suite:?}").contains("RSA") {
                continue;
            }
            let server = Echo::start(provider(), 2);
            let mut client = server.client(Some(suite), version);
            client.shake_hands();
            for len in [1, 5, 16_383, 16_384, 16_385, 3_000_000] {
                client.carry(&bytes(len));
            }
            client.close();
            server.ended().unwrap();
            let mut rest = Vec::new();
            let mut stream = rustls::Stream::new(&mut client.tls, &mut client.socket);
            stream.read_to_end(&mut rest).unwrap();
            assert!(rest.is_empty(), "{suite:?} ends in order");
        }
    }

    #[test]
    fn records_may_come_in_any_pieces() {
        for version in [&TLS12, &TLS13] {
            let server = Echo::start(provider(), 2);
            let mut client = server.client(None, version);
            while client.tls.is_handshaking() {
                for byte in client.wire() {
                    client.socket.write_all(&[byte]).unwrap();
                }
                if client.tls.wants_read() {
                    client.tls.read_tls(&mut client.socket).unwrap();
                    client.tls.process_new_packets().unwrap();
                }
            }
            let data = bytes(1000);
            client.tls.writer().write_all(&data).unwrap();
            for byte in client.wire() {
                client.socket.write_all(&[byte]).unwrap();
            }
            client.expect(&data);
            client.close();
            server.ended().unwrap();
        }
    }

    #[test]
    fn data_may_come_with_the_end_of_the_handshake() {
        for tickets in [0, 2] {
            for len in [100, 40_000] {
                let server = Echo::start(provider(), tickets);
                let mut client = server.client(None, &TLS13);
                let data = bytes(len);
                let hello = client.wire();
                client.socket.write_all(&hello).unwrap();
                while client.tls.is_handshaking() {
                    client.tls.read_tls(&mut client.socket).unwrap();
                    client.tls.process_new_packets().unwrap();
                }
                client.tls.writer().write_all(&data).unwrap();
                let wire = client.wire();
                client.socket.write_all(&wire).unwrap();
                client.expect(&data);
                client.carry(&data);
                client.close();
                server.ended().unwrap();
            }
        }
    }

    #[test]
    fn keys_are_renewed_when_asked() {
        let server = Echo::start(provider(), 2);
        let mut client = server.client(None, &TLS13);
        client.shake_hands();
        for _ in 0..100 {
            client.tls.refresh_traffic_keys().unwrap();
            client.carry(&bytes(20_000));
        }
        client.close();
        server.ended().unwrap();

        // But not for ever in vain.
        let server = Echo::start(provider(), 2);
        let mut client = server.client(None, &TLS13);
        client.shake_hands();
        for _ in 0..limits::TLS_IDLE_RECORDS_MAX + 1 {
            client.tls.refresh_traffic_keys().unwrap();
        }
        let wire = client.wire();
        client.socket.write_all(&wire).unwrap();
        let told = Error::AlertReceived(AlertDescription::UnexpectedMessage);
        assert_eq!(client.fault(), told);
        assert_eq!(
            server.ended().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn keys_are_renewed_before_they_wear_out() {
        let mut provider = ring::default_provider();
        let suite = provider.cipher_suites[0].tls13().unwrap();
        let worn_soon = Box::leak(Box::new(Tls13CipherSuite {
            common: rustls::crypto::CipherSuiteCommon {
                suite: suite.common.suite,
                hash_provider: suite.common.hash_provider,
                confidentiality_limit: 5,
            },
            hkdf_provider: suite.hkdf_provider,
            aead_alg: suite.aead_alg,
            quic: None,
        }));
        provider.cipher_suites = vec![SupportedCipherSuite::Tls13(worn_soon)];
        // Tickets take numbers of the first key.
        let server = Echo::start(Arc::new(provider), 1);
        let mut client = server.client(None, &TLS13);
        client.shake_hands();
        for _ in 0..50 {
            client.carry(&bytes(50_000));
        }
        client.close();
        server.ended().unwrap();
    }

    #[test]
    fn what_no_peer_may_send_is_refused_and_said() {
        let long = [&[23, 3, 3, 0xff, 0xff][..], &[0; 1000]].concat();
        let cases: [(&str, Vec<u8>, AlertDescription); 4] = [
            (
                "not sealed",
                vec![22, 3, 3, 0, 1, 0],
                AlertDescription::UnexpectedMessage,
            ),
            ("too long", long, AlertDescription::RecordOverflow),
            (
                "too short",
                vec![23, 3, 3, 0, 1, 0],
                AlertDescription::BadRecordMac,
            ),
            (
                "of no key",
                [&[23, 3, 3, 0, 50][..], &[7; 50]].concat(),
                AlertDescription::BadRecordMac,
            ),
        ];
        for (what, wire, alert) in cases {
            let server = Echo::start(provider(), 2);
            let mut client = server.client(None, &TLS13);
            client.shake_hands();
            client.carry(b"before");
            client.socket.write_all(&wire).unwrap();
            assert_eq!(client.fault(), Error::AlertReceived(alert), "{what}");
            let ended = server.ended().unwrap_err();
            assert_eq!(ended.kind(), io::ErrorKind::InvalidData, "{what}");
        }
        for version in [&TLS12, &TLS13] {
            let server = Echo::start(provider(), 2);
            let mut client = server.client(None, version);
            client.shake_hands();
            client.tls.writer().write_all(&bytes(1000)).unwrap();
            let mut wire = client.wire();
            wire[500] ^= 1;
            client.socket.write_all(&wire).unwrap();
            let told = Error::AlertReceived(AlertDescription::BadRecordMac);
            assert_eq!(client.fault(), told);
            assert_eq!(
                server.ended().unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }

    #[test]
    fn an_end_without_a_word_is_not_an_end() {
        for version in [&TLS12, &TLS13] {
            let server = Echo::start(provider(), 2);
            let mut client = server.client(None, version);
            client.shake_hands();
            client.carry(b"before");
            client.socket.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(
                server.ended().unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
        // Nor one within the handshake.
        let server = Echo::start(provider(), 2);
        let client = server.client(None, &TLS13);
        client.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(
            server.ended().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
