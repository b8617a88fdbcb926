//! HTTP/1.1 over a blocking socket, plain or TLS: just enough for a client that wants every byte in its own hands.
//!
//! Any server certificate is accepted: whether real clients trust it is the business of the tests that use them.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct, SignatureScheme,
    StreamOwned,
};
use socket2::{Domain, Socket, Type};

/// A server takes at most this long to say anything, or the test fails.
const PATIENCE: Duration = Duration::from_secs(90);
const HEAD_BYTES_MAX: usize = 64 << 10;
const BUFFER_BYTES: usize = 256 << 10;

pub struct Connection {
    stream: Stream,
    buffer: Box<[u8]>,
    /// What was read and not yet taken: `buffer[start..end]`.
    start: usize,
    end: usize,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A client certificate, ready to be shown.
pub struct ClientCertificate(Arc<ClientConfig>);

impl ClientCertificate {
    /// Reads a certificate and its key from PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Self {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .expect("a certificate file")
            .collect::<Result<_, _>>()
            .expect("certificates in PEM");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key in PEM");
        let config = anybody_trusting()
            .with_client_auth_cert(chain, key)
            .expect("the key fits the certificate");
        Self(Arc::new(config))
    }
}

/// Status line and headers of a response; names in lower case.
#[derive(Debug, Clone)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    }

    /// Whether the server will close the connection after this response.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|v| v.eq_ignore_ascii_case("close"))
    }
}

impl Connection {
    pub fn open(address: SocketAddr, tls: bool) -> io::Result<Self> {
        Self::open_with(address, tls.then(tls_config))
    }

    /// Over TLS, as the client that `certificate` is; without one as nobody.
    pub fn open_as(
        address: SocketAddr,
        certificate: Option<&ClientCertificate>,
    ) -> io::Result<Self> {
        let config = match certificate {
            Some(certificate) => Arc::clone(&certificate.0),
            None => tls_config(),
        };
        Self::open_with(address, Some(config))
    }

    fn open_with(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // Others pace what is sent by timers, which run on the server's time where both are on one machine.
        socket.set_tcp_congestion(b"reno")?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let stream = if let Some(config) = tls {
            let name = ServerName::from(address.ip());
            let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(session, socket);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            Stream::Tls(Box::new(stream))
        } else {
            Stream::Plain(socket)
        };
        Ok(Self {
            stream,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    /// Sends head and body; one system call where the socket takes them.
    pub fn send(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => {
                let slices = [IoSlice::new(head), IoSlice::new(body)];
                let sent = socket.write_vectored(&slices)?;
                if sent < head.len() {
                    socket.write_all(&head[sent..])?;
                }
                socket.write_all(&body[sent.saturating_sub(head.len())..])
            }
            Stream::Tls(stream) => {
                stream.write_all(head)?;
                stream.write_all(body)?;
                stream.flush()
            }
        }
    }

    /// Reads the next head; interim ones (`100 Continue`) are passed over.
    pub fn read_head(&mut self) -> io::Result<Head> {
        loop {
            let head = self.read_any_head()?;
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    /// Reads the next head, interim or not.
    pub fn read_any_head(&mut self) -> io::Result<Head> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(self.byte()?);
            if text.len() > HEAD_BYTES_MAX {
                return Err(malformed("a head of more than 64 KiB"));
            }
        }
        parse_head(&text).ok_or_else(|| malformed("a head that is not HTTP/1.1"))
    }

    /// Reads the body that follows `head` and hands it over piece by piece. Returns its length.
    pub fn read_body(
        &mut self,
        method: &str,
        head: &Head,
        mut sink: impl FnMut(&[u8]),
    ) -> io::Result<u64> {
        if method == "HEAD" || head.status == 204 || head.status == 304 {
            return Ok(0);
        }
        let chunked = head.header("transfer-encoding");
        if chunked.is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            let mut total = 0;
            loop {
                let size = self.read_chunk(&mut sink)?;
                if size == 0 {
                    while !self.line()?.is_empty() {}
                    return Ok(total);
                }
                total += size;
            }
        }
        let length = head.header("content-length").and_then(|v| v.parse().ok());
        let length = length.ok_or_else(|| malformed("a body of unknown length"))?;
        self.exactly(length, &mut sink)?;
        Ok(length)
    }

    /// Reads one chunk of a chunked body; the last one is empty. Returns its length.
    pub fn read_chunk(&mut self, mut sink: impl FnMut(&[u8])) -> io::Result<u64> {
        let line = self.line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| malformed("a chunk size"))?;
        if size > 0 {
            self.exactly(size, &mut sink)?;
            self.line()?;
        }
        Ok(size)
    }

    fn exactly(&mut self, length: u64, sink: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.start == self.end {
                self.refill()?;
            }
            let n = (self.end - self.start).min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&self.buffer[self.start..self.start + n]);
            self.start += n;
            left -= n as u64;
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                _ if line.len() > HEAD_BYTES_MAX => return Err(malformed("a line without end")),
                byte => line.push(byte),
            }
        }
        let text = String::from_utf8_lossy(&line);
        Ok(text.trim_end_matches('\r').to_owned())
    }

    fn byte(&mut self) -> io::Result<u8> {
        if self.start == self.end {
            self.refill()?;
        }
        self.start += 1;
        Ok(self.buffer[self.start - 1])
    }

    fn refill(&mut self) -> io::Result<()> {
        self.start = 0;
        self.end = match &mut self.stream {
            Stream::Plain(socket) => socket.read(&mut self.buffer)?,
            Stream::Tls(stream) => stream.read(&mut self.buffer)?,
        };
        if self.end == 0 {
            let text = "the server closed the connection";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(())
    }
}

fn parse_head(text: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?;
    let status = status.get(..3)?.parse().ok()?;
    let headers = lines
        .take_while(|l| !l.is_empty())
        .map(|l| {
            let (name, value) = l.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Head { status, headers })
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server sent {what}"),
    )
}

fn tls_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    Arc::clone(CONFIG.get_or_init(|| Arc::new(anybody_trusting().with_no_client_auth())))
}

fn anybody_trusting() -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
