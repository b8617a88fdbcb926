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
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeTlsData, UnbufferedStatus};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, ServerConfig, SupportedCipherSuite, Tls13CipherSuite,
};

use super::socket::Socket;
use crate::limits;

/// A record's head: its type, a version that means nothing any more, and its length.
const HEAD: usize = 5;
/// Plaintext of one record at most, and what it may grow by when it is sealed.
pub(super) const RECORD_BYTES: usize = 16 * 1024;
const GROWTH_MAX: usize = 256;
const CREDIT_MAX: usize = limits::TLS_IDLE_RECORDS_MAX * limits::TLS_IDLE_RECORD_COST;
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
    /// What the peer did that it must not do.
    failed: Option<Error>,
    /// Whether it was told that nothing more comes from us.
    closing: bool,
    is_h2: bool,
    certificates: Arc<[CertificateDer<'static>]>,
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
    /// Whether the peer asked for a new key of ours and got it, and no data was sealed under it: then it gets no other.
    asked: bool,
    /// Bytes of data that a peer has in hand for records that bring none, each of which takes so many.
    credit: usize,
}

/// What became of the first record of the input.
enum Opened {
    /// It is not there as a whole.
    Partly,
    /// It is behind us; if it brought data, that can be taken.
    Record,
}

/// What came from the socket: records, the first of them opened.
#[derive(Default)]
struct Input {
    bytes: Piece,
    /// Data that was not taken yet, and the sealed bytes behind it.
    plain: Range<usize>,
    sealed: Range<usize>,
    /// Data of TLS 1.2, which rustls hands out, and how much of it was taken.
    aside: Vec<u8>,
    taken: usize,
    /// How often there was more, and whether the peer said that there will be none.
    fills: usize,
    ended: bool,
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
        More,
        Done,
    }
    let mut session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
    let (mut input, mut output) = (Input::default(), Output::default());
    // rustls gets one record after the other, so that it opens none behind the handshake. What it does not discard it gets again.
    let mut shown = 0;
    loop {
        let sealed = &mut input.sealed()[..shown];
        let UnbufferedStatus { discard, state } = session.process_tls_records(sealed);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                output.push_flight(data)?;
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Again
            }
            Ok(ConnectionState::BlockedHandshake) => Step::More,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                output.push_pending(&mut session);
                let _ = poll_fn(|cx| output.poll_send(&mut socket, cx)).await;
                return Err(invalid(error));
            }
        };
        input.sealed.start += discard;
        shown -= discard;
        match step {
            Step::Again => continue,
            // A server may write before it has heard the end of the handshake.
            Step::Done if !session.is_handshaking() => break,
            Step::More | Step::Done => {}
        }
        poll_fn(|cx| output.poll_send(&mut socket, cx)).await?;
        loop {
            if let Some(next) = first_record(&input.sealed()[shown..]) {
                shown += next;
                break;
            }
            poll_fn(|cx| input.poll_fill(&mut socket, cx)).await?;
        }
    }
    poll_fn(|cx| output.poll_send(&mut socket, cx)).await?;
    let certificates = session.peer_certificates().unwrap_or_default().into();
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    Ok(TlsServer {
        session: Session::new(session).map_err(invalid)?,
        socket,
        input,
        output,
        failed: None,
        closing: false,
        is_h2,
        certificates,
    })
}

/// How long the first record is, if it is there as a whole; or its head alone, where that is none that TLS knows.
fn first_record(sealed: &[u8]) -> Option<usize> {
    /// What TLS 1.2 lets a record grow by.
    const OLD_GROWTH_MAX: usize = 2048;
    let (head, rest) = sealed.split_first_chunk::<HEAD>()?;
    let len = usize::from(u16::from_be_bytes([head[3], head[4]]));
    let known =
        (20..=24).contains(&head[0]) && head[1] == 3 && len <= RECORD_BYTES + OLD_GROWTH_MAX;
    match known {
        true => (rest.len() >= len).then_some(HEAD + len),
        false => Some(HEAD),
    }
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

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some(error) => Err(invalid(error.clone())),
            None => Ok(()),
        }
    }

    /// Ends the connection, and tells the peer of it as far as the socket takes that now.
    fn fail(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        self.session.say_why(&error, &mut self.output);
        self.input = Input::default();
        let error = invalid(self.failed.insert(error).clone());
        let _ = self.output.poll_send(&mut self.socket, cx);
        error
    }

    /// Waits for data that was not taken yet; there is none at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.input.data().is_empty() {
            self.check()?;
            if self.input.ended {
                self.input.bytes = Piece::default();
                (self.input.plain, self.input.sealed) = (0..0, 0..0);
                return Poll::Ready(Ok(()));
            }
            match self.session.open(&mut self.input, &mut self.output) {
                Ok(Opened::Record) => {}
                Ok(Opened::Partly) => {
                    // An answer to the peer waits for nobody.
                    let _ = self.output.poll_send(&mut self.socket, cx)?;
                    ready!(self.input.poll_fill(&mut self.socket, cx))?;
                }
                Err(error) => return Poll::Ready(Err(self.fail(cx, error))),
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
            Self::Rustls(session) => step_old(session, input, output, &Wish::Read),
        }
    }

    /// Seals a record of data. Larger data than one takes is the caller's mistake.
    fn seal(
        &mut self,
        data: OutboundChunks<'_>,
        input: &mut Input,
        output: &mut Output,
    ) -> Result<(), Error> {
        match self {
            Self::Records(records) => {
                records.asked = false;
                records.seal(ContentType::ApplicationData, data, output)
            }
            Self::Rustls(session) => write_old(session, input, output, &Wish::Write(data.to_vec())),
        }
    }

    /// Tells the peer that nothing more comes.
    fn close(&mut self, input: &mut Input, output: &mut Output) -> Result<(), Error> {
        match self {
            Self::Records(records) => records.alert(WARNING, AlertDescription::CloseNotify, output),
            Self::Rustls(session) => write_old(session, input, output, &Wish::Close),
        }
    }

    /// Tells the peer what it did, as far as anything can be told.
    fn say_why(&mut self, error: &Error, output: &mut Output) {
        match self {
            Self::Records(records) => {
                let why = match error {
                    Error::DecryptError => AlertDescription::BadRecordMac,
                    Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
                    Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => {
                        AlertDescription::IllegalParameter
                    }
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
        let ((received, rx), (sent, tx)) = (keys.rx, keys.tx);
        let ((rx, rx_iv), (tx, tx_iv)) = (parts(rx)?, parts(tx)?);
        Ok(Self {
            decrypter: suite.aead_alg.decrypter(rx, rx_iv),
            received,
            encrypter: suite.aead_alg.encrypter(tx, tx_iv),
            sent,
            suite,
            secrets,
            asked: false,
            credit: CREDIT_MAX,
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
        self.credit = match (kind, data) {
            (ContentType::ApplicationData, [_, ..]) => (self.credit + data.len()).min(CREDIT_MAX),
            // Whatever came before, it may end.
            (ContentType::Alert, [_, 0]) => self.credit,
            _ => self
                .credit
                .checked_sub(limits::TLS_IDLE_RECORD_COST)
                .ok_or(PeerMisbehaved::TooManyKeyUpdateRequests)?,
        };
        let opened = match (kind, data) {
            (ContentType::ApplicationData, data) => {
                let data = data.len();
                // In every suite of TLS 1.3 the data takes the place of what it was sealed as.
                input.plain = at + HEAD..at + HEAD + data;
                Opened::Record
            }
            (ContentType::Alert, &[_, what]) => match AlertDescription::from(what) {
                AlertDescription::CloseNotify => {
                    input.ended = true;
                    Opened::Record
                }
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
                if !std::mem::replace(&mut self.asked, true) {
                    self.renew_sent(output)?;
                }
                Opened::Record
            }
            (ContentType::Handshake, &[24, 0, 0, 1, _]) => {
                return Err(InvalidMessage::InvalidKeyUpdate.into());
            }
            (ContentType::Alert, said) if !said.is_empty() => {
                return Err(InvalidMessage::TrailingData("an alert").into());
            }
            (kind, _) => return Err(inappropriate(kind)),
        };
        input.sealed.start = at + HEAD + len;
        Ok(opened)
    }

    fn renew_received(&mut self) -> Result<(), Error> {
        let (next, keys) = self.secrets.update_rx_secret()?;
        let (key, iv) = parts(keys)?;
        self.decrypter = self.suite.aead_alg.decrypter(key, iv);
        self.received = next;
        Ok(())
    }

    /// Says so under the old key, and goes on with a new one.
    fn renew_sent(&mut self, output: &mut Output) -> Result<(), Error> {
        let said = OutboundChunks::Single(&KEY_UPDATE);
        self.seal_now(ContentType::Handshake, said, output)?;
        let (next, keys) = self.secrets.update_tx_secret()?;
        let (key, iv) = parts(keys)?;
        self.encrypter = self.suite.aead_alg.encrypter(key, iv);
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

/// The key of a direction, whatever suite of TLS 1.3 it is for.
fn parts(keys: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    match keys {
        Aes128Gcm { key, iv } | Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv } => {
            Ok((key, iv))
        }
        _ => Err(Error::General("a suite without a name".into())),
    }
}

/// What TLS 1.2 is to do once it may.
enum Wish {
    Read,
    Write(Vec<u8>),
    Close,
}

/// Goes on with TLS 1.2 until it has written what is wished. It may open records before.
fn write_old(
    session: &mut UnbufferedServerConnection,
    input: &mut Input,
    output: &mut Output,
    wish: &Wish,
) -> Result<(), Error> {
    while let Opened::Record = step_old(session, input, output, wish)? {}
    Ok(())
}

/// Goes on with TLS 1.2 by a step. `Partly` says that it needs more, and has written what is wished.
fn step_old(
    session: &mut UnbufferedServerConnection,
    input: &mut Input,
    output: &mut Output,
    wish: &Wish,
) -> Result<Opened, Error> {
    let failed = |error: io::Error| Error::General(error.to_string());
    // It counts on getting again what it did not discard.
    let sealed = &mut input.bytes.0[input.sealed.clone()];
    let UnbufferedStatus { mut discard, state } = session.process_tls_records(sealed);
    let opened = match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                input.aside.extend(record.payload);
            }
            Opened::Record
        }
        ConnectionState::EncodeTlsData(data) => {
            output.push_flight(data).map_err(failed)?;
            Opened::Record
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Opened::Record
        }
        ConnectionState::PeerClosed => {
            input.ended = true;
            Opened::Record
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            let written = match wish {
                Wish::Read => Ok(()),
                Wish::Write(data) => {
                    let room = data.len() + 2 * GROWTH_MAX;
                    output.push_with(room, |to| traffic.encrypt(data, to))
                }
                Wish::Close => {
                    output.push_with(2 * GROWTH_MAX, |to| traffic.queue_close_notify(to))
                }
            };
            written.map_err(failed)?;
            Opened::Partly
        }
        _ => match wish {
            Wish::Write(_) => return Err(Error::General("no data may be sent any more".into())),
            Wish::Read | Wish::Close => Opened::Partly,
        },
    };
    input.sealed.start += discard;
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
        if self.bytes.is_whole() {
            self.bytes.0.copy_within(self.sealed.clone(), 0);
        } else {
            let mut whole = Piece::taken();
            whole.0[..left].copy_from_slice(self.sealed());
            self.bytes = whole;
        }
        (self.plain, self.sealed) = (0..0, 0..left);
        let room = &mut self.bytes.0[left..];
        if room.is_empty() {
            return Poll::Ready(Err(invalid(Error::PeerSentOversizedRecord)));
        }
        match socket.poll_receive(cx, room) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(n)) => {
                self.sealed.end += n;
                self.fills += 1;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // A connection that waits holds what it must.
                self.bytes = Piece(self.bytes.0[..left].into());
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

    /// Takes what is written to a slice of so many bytes.
    fn push_with<E: std::error::Error + Send + Sync + 'static>(
        &mut self,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> io::Result<()> {
        let mut record = vec![0; room];
        let len = write(&mut record).map_err(io::Error::other)?;
        record.truncate(len);
        record.shrink_to_fit();
        self.push(record);
        Ok(())
    }

    /// Takes what rustls has to say by itself.
    fn push_flight(&mut self, mut data: EncodeTlsData<'_, ServerConnectionData>) -> io::Result<()> {
        self.push_with(limits::TLS_FLIGHT_BYTES_MAX, |to| data.encode(to))
    }

    /// Takes what rustls has to say of an error.
    fn push_pending(&mut self, session: &mut UnbufferedServerConnection) {
        // Without anything to say it would look for more records, and may hold some that are not shown to it here.
        while session.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(data)) =
                session.process_tls_records(&mut []).state
            && self.push_flight(data).is_ok()
        {}
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

    fn is_whole(&self) -> bool {
        self.0.len() == limits::TLS_READ_BYTES
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // The thread may be at its end.
        let _ = PIECES.try_with(|pieces| {
            let mut pieces = pieces.borrow_mut();
            if bytes.len() == limits::TLS_READ_BYTES && pieces.len() < limits::TLS_READ_BUFFERS_KEPT
            {
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
        let begun = this.input.fills;
        // Others get a turn also where records are small.
        while buf.remaining() > 0 && (!any || this.input.fills - begun < limits::TLS_FILLS_MAX) {
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
        this.check()?;
        if this.output.left >= limits::TLS_BUFFER_BYTES {
            ready!(this.output.poll_send(&mut this.socket, cx))?;
        }
        let chunks: Vec<&[u8]> = bufs.iter().map(|buf| &**buf).collect();
        let room = limits::TLS_BUFFER_BYTES.saturating_sub(this.output.left);
        let (mut data, _) = OutboundChunks::new(&chunks).split_at(room);
        let len = data.len();
        while !data.is_empty() {
            let (record, rest) = data.split_at(RECORD_BYTES);
            this.session
                .seal(record, &mut this.input, &mut this.output)
                .map_err(|error| this.fail(cx, error))?;
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
        if !std::mem::replace(&mut this.closing, true)
            && this.check().is_ok()
            && let Err(error) = this.session.close(&mut this.input, &mut this.output)
        {
            this.fail(cx, error);
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
    use crate::tls::cipher::tests::bytes;

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
            let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(self.roots.clone())
                .with_no_client_auth();
            config.enable_secret_extraction = true;
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

        #[track_caller]
        fn failed_with(self, kind: io::ErrorKind) {
            assert_eq!(self.ended().unwrap_err().kind(), kind);
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
        for n in 0..100 {
            for _ in 0..n % 3 + 1 {
                client.tls.refresh_traffic_keys().unwrap();
            }
            client.carry(&bytes(3 * limits::TLS_IDLE_RECORD_COST));
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
        server.failed_with(io::ErrorKind::InvalidData);
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
            server.failed_with(io::ErrorKind::InvalidData);
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
            server.failed_with(io::ErrorKind::UnexpectedEof);
        }
        // Nor one within the handshake.
        let server = Echo::start(provider(), 2);
        let client = server.client(None, &TLS13);
        client.socket.shutdown(std::net::Shutdown::Write).unwrap();
        server.failed_with(io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_handshake_that_is_none_ends_the_connection_alone() {
        let cases: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n\r\n",
            // A message longer than any, of which little comes.
            &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
            // A piece of a message, and something else behind it.
            &[22, 3, 1, 0, 1, 1, 21, 3, 1, 0, 2, 1, 0],
            &[22, 3, 1, 0, 1, 1, 23, 3, 3, 0, 1, 0],
            &[22, 3, 1, 0, 1, 1, 99, 99, 99, 99, 99],
            &[22, 3, 1, 0, 0],
        ];
        for wire in cases {
            let server = Echo::start(provider(), 2);
            let mut socket = TcpStream::connect(server.address).unwrap();
            socket.write_all(wire).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            server.ended().unwrap_err();
        }
        // A hello that is followed by more in its record.
        let server = Echo::start(provider(), 2);
        let mut client = server.client(None, &TLS13);
        let mut hello = client.wire();
        let len = u16::from_be_bytes([hello[3], hello[4]]) + 1;
        hello[3..5].copy_from_slice(&len.to_be_bytes());
        hello.push(1);
        client.socket.write_all(&hello).unwrap();
        client.fault();
        server.ended().unwrap_err();
    }

    #[test]
    fn a_piece_of_a_message_after_the_handshake_of_tls_1_2_ends_the_connection_alone() {
        use rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 as SUITE;
        for behind in [&b""[..], &[23, 3, 3, 0, 1, 0]] {
            let server = Echo::start(provider(), 2);
            let mut client = server.client(Some(SUITE.suite()), &TLS12);
            client.shake_hands();
            client.carry(b"before");
            let Client { tls, mut socket } = client;
            let (sequence, keys) = tls.dangerous_extract_secrets().unwrap().tx;
            let SupportedCipherSuite::Tls12(suite) = SUITE else {
                panic!("TLS 1.2");
            };
            let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = keys else {
                panic!("the suite's");
            };
            let piece = OutboundPlainMessage {
                typ: ContentType::Handshake,
                version: ProtocolVersion::TLSv1_2,
                payload: OutboundChunks::Single(&[1]),
            };
            let mut encrypter = suite.aead_alg.encrypter(key, iv.as_ref(), &[]);
            let record = encrypter.encrypt(piece, sequence).unwrap().encode();
            socket.write_all(&record).unwrap();
            socket.write_all(behind).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            server.ended().unwrap_err();
        }
    }
}
