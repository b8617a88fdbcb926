//! A stand-in for a KES server: TLS with client certificates, the calls that a store makes, and a will of its own.
//!
//! It keeps what it handed out in memory, so it can be stopped and started again on its port; it counts calls, and answers
//! late, oddly or not at all when told to. Its ciphertexts are random bytes that only it knows the meaning of.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, ServerConnection, SignatureScheme,
    StreamOwned,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary;
use crate::server::{Config, free_port};

/// The key for what names none.
pub const KEY: &str = "kes-default";
/// The store's API key, and the public key that a certificate made from it holds.
pub const API_KEY: &str = "kes:v1:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw";
const API_KEY_VARIABLE: &str = "MINIO_KMS_KES_API_KEY";

const BODY_BYTES_MAX: usize = 1 << 20;

/// What the server does with a request for a data key.
#[derive(Clone)]
pub enum Mode {
    Serve,
    /// Answers right, after so long.
    Late(Duration),
    /// Answers with this, whatever was asked.
    Say {
        status: u16,
        content_type: String,
        body: Vec<u8>,
    },
    /// Sends these bytes instead of an answer, and closes.
    Raw(Vec<u8>),
    /// Reads and says nothing.
    Silent,
}

/// How its certificate came about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// Self-signed and marked as a CA, as quick starts make them; listed itself.
    SelfSigned,
    /// Issued by a CA, which is listed.
    Issued,
}

/// A running, or stopped, server.
pub struct Kes {
    address: SocketAddr,
    home: TempDir,
    shared: Arc<Shared>,
    config: Arc<ServerConfig>,
    running: Option<Running>,
}

struct Running {
    stop: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: JoinHandle<()>,
}

/// What outlives a stop.
struct Shared {
    mode: Mutex<Mode>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names, each with a number that tells apart keys made under it one after another.
    keys: HashMap<String, u64>,
    deleted: HashMap<String, u64>,
    made: u64,
    /// What may not be done with a key: verb and name.
    forbidden: Vec<(String, String)>,
    sealed: HashMap<Vec<u8>, Sealed>,
    calls: HashMap<String, usize>,
    clients: Vec<Vec<u8>>,
}

struct Sealed {
    key: u64,
    context: String,
    plaintext: [u8; 32],
}

impl Kes {
    /// A server with the default key, and a certificate of its own making.
    pub fn start() -> Self {
        Self::start_with(Certificate::SelfSigned)
    }

    pub fn start_with(certificate: Certificate) -> Self {
        let home = tempfile::Builder::new()
            .prefix("kes-")
            .tempdir_in(binary::scratch())
            .expect("the scratch directory is writable");
        let (config, trusted) = tls(certificate);
        std::fs::write(home.path().join("trusted.crt"), trusted).expect("writable");
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Serve),
            state: Mutex::default(),
        });
        let mut kes = Self {
            address: SocketAddr::from(([127, 0, 0, 1], free_port())),
            home,
            shared,
            config,
            running: None,
        };
        kes.create_key(KEY);
        kes.start_again();
        kes
    }

    /// Ends all connections and listens no more.
    pub fn stop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        running.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor up.
        drop(TcpStream::connect(self.address));
        drop(running.acceptor.join());
        for socket in lock(&running.sockets).drain(..) {
            drop(socket.shutdown(Shutdown::Both));
        }
    }

    /// Listens again on its port; its keys are still there.
    pub fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let start = Instant::now();
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(e) => assert!(start.elapsed() < Duration::from_secs(10), "{e}"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        let stop = Arc::new(AtomicBool::new(false));
        let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let acceptor = thread::spawn({
            let (stop, sockets) = (Arc::clone(&stop), Arc::clone(&sockets));
            let (shared, config) = (Arc::clone(&self.shared), Arc::clone(&self.config));
            move || {
                for socket in listener.incoming().flatten() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    lock(&sockets).push(socket.try_clone().expect("a handle can be cloned"));
                    let (shared, config) = (Arc::clone(&shared), Arc::clone(&config));
                    thread::spawn(move || {
                        // How a connection ends is the client's business.
                        drop(converse(socket, config, &shared));
                    });
                }
            }
        });
        self.running = Some(Running {
            stop,
            sockets,
            acceptor,
        });
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate that clients have to trust.
    pub fn trusted(&self) -> PathBuf {
        self.home.path().join("trusted.crt")
    }

    /// A directory for files of the test.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The configuration with this as its key service, by API key.
    pub fn configure(&self, config: Config) -> Config {
        self.configure_trust(config).env(API_KEY_VARIABLE, API_KEY)
    }

    /// The same for a command.
    pub fn configure_command(&self, command: &mut Command) {
        command
            .envs(self.trust_variables())
            .env(API_KEY_VARIABLE, API_KEY);
    }

    /// The same without credentials.
    pub fn configure_trust(&self, config: Config) -> Config {
        let variables = self.trust_variables();
        let with = |config: Config, (name, value): (&str, String)| config.env(name, &value);
        variables.into_iter().fold(config, with)
    }

    fn trust_variables(&self) -> [(&'static str, String); 3] {
        [
            ("MINIO_KMS_KES_ENDPOINT", self.endpoint()),
            ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
            ("MINIO_KMS_KES_CAPATH", self.trusted().display().to_string()),
        ]
    }

    pub fn set(&self, mode: Mode) {
        *lock(&self.shared.mode) = mode;
    }

    /// How often it was asked to `generate`, `decrypt`, ….
    pub fn calls(&self, verb: &str) -> usize {
        self.state().calls.get(verb).copied().unwrap_or(0)
    }

    /// How often it was asked for a data key.
    pub fn data_key_calls(&self) -> usize {
        self.calls("generate") + self.calls("decrypt")
    }

    pub fn create_key(&self, name: &str) {
        let mut state = self.state();
        state.made += 1;
        let made = state.made;
        state.keys.insert(name.to_owned(), made);
    }

    pub fn delete_key(&self, name: &str) {
        let mut state = self.state();
        if let Some(deleted) = state.keys.remove(name) {
            state.deleted.insert(name.to_owned(), deleted);
        }
    }

    /// Brings the deleted key of a name back.
    pub fn undelete_key(&self, name: &str) {
        let mut state = self.state();
        if let Some(deleted) = state.deleted.remove(name) {
            state.keys.insert(name.to_owned(), deleted);
        }
    }

    pub fn has_key(&self, name: &str) -> bool {
        self.state().keys.contains_key(name)
    }

    /// Lets the policy forbid one verb on one key.
    pub fn forbid(&self, verb: &str, name: &str) {
        self.state().forbidden.push((verb.into(), name.into()));
    }

    pub fn allow_all(&self) {
        self.state().forbidden.clear();
    }

    /// The certificates that clients showed, the last one last.
    pub fn clients(&self) -> Vec<Vec<u8>> {
        self.state().clients.clone()
    }

    /// Every data key that it handed out.
    pub fn plaintexts(&self) -> Vec<[u8; 32]> {
        self.state().sealed.values().map(|s| s.plaintext).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

impl Drop for Kes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A pair of PEM texts, certificate and key, for a client.
pub fn client_certificate() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["store.example".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

/// A PEM certificate in DER.
pub fn der(pem: &str) -> Vec<u8> {
    let lines = pem.lines().filter(|l| !l.starts_with("-----"));
    STANDARD.decode(lines.collect::<String>()).expect("PEM")
}

fn converse(socket: TcpStream, config: Arc<ServerConfig>, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(session, socket));
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        assert!(length <= BODY_BYTES_MAX, "a request of {length} bytes");
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let shown = stream.get_ref().conn.peer_certificates();
        let shown = shown.and_then(|chain| chain.first()).map(|c| c.to_vec());
        let verb = path.split('/').nth(3).unwrap_or_default().to_owned();
        {
            let mut state = lock(&shared.state);
            *state.calls.entry(verb.clone()).or_default() += 1;
            let shown = shown.expect("no one comes in without a certificate");
            if state.clients.last() != Some(&shown) {
                state.clients.push(shown);
            }
        }
        let mode = match verb.as_str() {
            "generate" | "decrypt" => lock(&shared.mode).clone(),
            _ => Mode::Serve,
        };
        let stream = stream.get_mut();
        let (status, content_type, body) = match mode {
            Mode::Serve => answer(shared, &method, &path, &body),
            Mode::Late(time) => {
                thread::sleep(time);
                answer(shared, &method, &path, &body)
            }
            Mode::Say {
                status,
                content_type,
                body,
            } => (status, content_type, body),
            Mode::Raw(bytes) => {
                stream.write_all(&bytes)?;
                stream.flush()?;
                stream.conn.send_close_notify();
                return stream.flush();
            }
            Mode::Silent => loop {
                // Until the client is tired of waiting.
                if stream.read(&mut [0; 64])? == 0 {
                    return Ok(());
                }
            },
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat())?;
        stream.flush()?;
    }
}

fn answer(shared: &Shared, method: &str, path: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut state = lock(&shared.state);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (status, answer) = match parts[..] {
        ["v1", "key", verb, name] => of_key(&mut state, method, verb, name, body),
        _ => (404, json!({"message": "404 page not found"})),
    };
    let text = match answer {
        Value::Null => String::new(),
        answer => format!("{answer}\n"),
    };
    (status, "application/json".to_owned(), text.into_bytes())
}

fn of_key(state: &mut State, method: &str, verb: &str, name: &str, body: &[u8]) -> (u16, Value) {
    let forbidden = (verb.to_owned(), name.to_owned());
    if state.forbidden.contains(&forbidden) {
        let text = "not authorized: insufficient permissions";
        return (403, json!({"message": text}));
    }
    let key = state.keys.get(name).copied();
    if verb == "create" && key.is_none() {
        state.made += 1;
        let made = state.made;
        state.keys.insert(name.to_owned(), made);
        return (200, Value::Null);
    }
    let Some(key) = key else {
        return (404, json!({"message": "key does not exist"}));
    };
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
    match (method, verb) {
        ("PUT", "create") => (400, json!({"message": "key already exists"})),
        ("GET", "describe") => (
            200,
            json!({"name": name, "algorithm": "AES256", "created_at": "2026-01-01T00:00:00Z"}),
        ),
        ("PUT", "generate") => {
            let (plaintext, sealed) = (random::<32>(), random::<76>());
            let meant = Sealed {
                key,
                context: text("context"),
                plaintext,
            };
            state.sealed.insert(sealed.to_vec(), meant);
            let (plain, sealed) = (STANDARD.encode(plaintext), STANDARD.encode(sealed));
            (200, json!({"plaintext": plain, "ciphertext": sealed}))
        }
        ("PUT", "decrypt") => {
            let sealed = STANDARD.decode(text("ciphertext")).unwrap_or_default();
            let meant = state.sealed.get(&sealed);
            match meant.filter(|m| m.key == key && m.context == text("context")) {
                Some(meant) => (200, json!({"plaintext": STANDARD.encode(meant.plaintext)})),
                None => (
                    400,
                    json!({"message": "decryption failed: ciphertext is not authentic"}),
                ),
            }
        }
        _ => (405, json!({"message": "no such call"})),
    }
}

/// A server configuration, and the certificate to trust.
fn tls(certificate: Certificate) -> (Arc<ServerConfig>, String) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).expect("names");
    let key = KeyPair::generate().expect("a key");
    let (own, trusted) = match certificate {
        Certificate::SelfSigned => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let own = params.self_signed(&key).expect("a certificate");
            let trusted = own.pem();
            (own, trusted)
        }
        Certificate::Issued => {
            let mut of_ca = CertificateParams::new(Vec::new()).expect("no names");
            of_ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca_key = KeyPair::generate().expect("a key");
            let ca = of_ca.self_signed(&ca_key).expect("a certificate");
            let issuer = Issuer::from_params(&of_ca, &ca_key);
            let own = params.signed_by(&key, &issuer).expect("a certificate");
            (own, ca.pem())
        }
    };
    let provider = Arc::new(ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_single_cert(vec![own.der().clone()], key)
        .expect("they fit");
    (Arc::new(config), trusted)
}

/// Wants a certificate, and takes any, as KES does unless told otherwise.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let source = ring::default_provider().secure_random;
    source.fill(&mut bytes).expect("random bytes");
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
