//! TLS of the server: its certificate, made on first start, kept, and reloaded when it changes.
//!
//! The directory holds `public.crt` (the chain), `private.key` (mode 0600) and `CAs/`. A pair that
//! does not load never replaces one that works: the server warns, keeps the old one, and tries
//! again. Nothing is ever written over a file that is there.

pub(crate) mod cipher;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// Its name within a data directory, where it is not put elsewhere.
pub const DIRECTORY: &str = "certs";
const PUBLIC: &str = "public.crt";
const PRIVATE: &str = "private.key";
const AUTHORITIES: &str = "CAs";
/// Made certificates start a day early, for clocks that run late, and outlive the machine.
const VALID_BEFORE: Duration = Duration::from_secs(24 * 3600);
const VALID_AFTER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why the server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The disk.
    #[error("{path}: {source}")]
    File {
        /// Where.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Only one file of the pair is there; making the other would break what the first is for.
    #[error(
        "{present} is there but {missing} is not: add it, or move the first away to have a new pair made"
    )]
    HalfAPair {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// The files do not hold what they should.
    #[error("{path}: {reason}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// rustls refuses the configuration.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// The certificate directory and what is loaded from it.
pub struct Certificates {
    dir: PathBuf,
    current: Arc<Current>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

struct Seen {
    loaded: Option<Stamp>,
    refused: Option<Stamp>,
}

/// Tells one state of the two files from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([(u64, u64, i64, i64); 2]);

impl Certificates {
    /// Loads the pair in `dir`; makes it first, for these names, if there is none.
    pub fn open(dir: &Path, names: &[String]) -> Result<Self, TlsError> {
        create_dir(dir, 0o700)?;
        create_dir(&dir.join(AUTHORITIES), 0o755)?;
        let (public, private) = (dir.join(PUBLIC), dir.join(PRIVATE));
        match (public.exists(), private.exists()) {
            (true, true) => {}
            (false, false) => {
                make(&public, &private, names)?;
                info!(path = %public.display(), "made a self-signed certificate");
            }
            (true, false) => {
                return Err(TlsError::HalfAPair {
                    present: public,
                    missing: private,
                });
            }
            (false, true) => {
                return Err(TlsError::HalfAPair {
                    present: private,
                    missing: public,
                });
            }
        }
        let loaded = stamp(dir);
        let pair = load(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            current: Arc::new(Current(ArcSwap::from_pointee(pair))),
            seen: Mutex::new(Seen {
                loaded,
                refused: None,
            }),
        })
    }

    /// Where the certificate is that clients are to trust.
    pub fn public_path(&self) -> PathBuf {
        self.dir.join(PUBLIC)
    }

    /// The configuration of every connection; it follows later reloads.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(cipher::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new()?;
        Ok(Arc::new(config))
    }

    /// Looks at the files, and takes a changed pair if it is a good one. True if it did.
    pub fn reload(&self) -> bool {
        let Some(now) = stamp(&self.dir) else {
            // Between unlink and rename there is nothing to see.
            return false;
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.loaded == Some(now) {
            return false;
        }
        match load(&self.dir) {
            // Written to while we read: what we have may be neither old nor new.
            Ok(_) if stamp(&self.dir) != Some(now) => false,
            Ok(pair) => {
                self.current.0.store(Arc::new(pair));
                seen.loaded = Some(now);
                info!(dir = %self.dir.display(), "took a new certificate");
                true
            }
            Err(error) => {
                // A writer of two files is met half way; each state is worth one warning.
                if seen.refused != Some(now) {
                    warn!(%error, "the new certificate does not load; the old one stays");
                    seen.refused = Some(now);
                }
                false
            }
        }
    }
}

/// The names a made certificate is for: this machine's, and what the configuration adds.
pub fn default_names(extra: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    for name in std::iter::once(host.trim().to_owned()).chain(extra) {
        let usable = name.parse::<IpAddr>().is_ok() || is_dns_name(&name);
        if usable && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn is_dns_name(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// Makes a key and a self-signed certificate for these names: of a server, and of a client too where it needs one.
pub(crate) fn make(public: &Path, private: &Path, names: &[String]) -> Result<(), TlsError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Strongroom");
    params.not_before = (SystemTime::now() - VALID_BEFORE).into();
    params.not_after = (SystemTime::now() + VALID_AFTER).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    // Strict verifiers ask for it even where issuer and subject are one.
    params.use_authority_key_identifier_extension = true;
    let certificate = params.self_signed(&key)?;
    let key = Zeroizing::new(key.serialize_pem());
    // The key first: a crash in between leaves half a pair, which the next start names.
    create_file(private, 0o600, key.as_bytes())?;
    create_file(public, 0o644, certificate.pem().as_bytes())
}

fn load(dir: &Path) -> Result<CertifiedKey, TlsError> {
    load_pair(&dir.join(PUBLIC), &dir.join(PRIVATE))
}

/// Reads a certificate chain and its key.
pub(crate) fn load_pair(public: &Path, private: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates(public)?;
    let text = Zeroizing::new(fs::read(private).map_err(|source| file(private, source))?);
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| content(private, &error))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| content(private, &error))
}

/// Reads the certificates in a file; there is at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(|source| file(path, source))?;
    parse_certificates(&text).map_err(|reason| content(path, &reason))
}

/// Reads the certificates in a PEM text; there is at least one.
pub(crate) fn parse_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    match certificates.is_empty() {
        true => Err("no certificate in it".to_owned()),
        false => Ok(certificates),
    }
}

fn stamp(dir: &Path) -> Option<Stamp> {
    let one = |name| {
        let meta = fs::metadata(dir.join(name)).ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    };
    Some(Stamp([one(PUBLIC)?, one(PRIVATE)?]))
}

fn create_dir(path: &Path, mode: u32) -> Result<(), TlsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| file(path, source))
}

fn create_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), TlsError> {
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        source,
    }
}

fn content(path: &Path, reason: &impl ToString) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::serve::testing::Server;
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::{Request, Response, service::service_fn};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use std::convert::Infallible;
    use std::io::Read;
    use std::net::{SocketAddr, TcpStream};

    fn names() -> Vec<String> {
        default_names([])
    }

    fn hello(config: Arc<ServerConfig>) -> Server {
        Server::start(Some(config), || {
            |_| {
                service_fn(async |_: Request<hyper::body::Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"sealed"))))
                })
            }
        })
    }

    fn get(address: SocketAddr, trusted: &Path, name: &str) -> Result<String, io::Error> {
        let mut roots = RootCertStore::empty();
        let text = fs::read(trusted)?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(session, TcpStream::connect(address)?);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    #[test]
    fn a_made_certificate_is_kept_and_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        let first = Certificates::open(&certs, &names()).unwrap();
        let public = fs::read(first.public_path()).unwrap();
        assert_eq!(
            fs::metadata(certs.join(PRIVATE)).unwrap().mode() & 0o777,
            0o600
        );
        assert!(certs.join(AUTHORITIES).is_dir());
        let again = Certificates::open(&certs, &names()).unwrap();
        assert_eq!(fs::read(again.public_path()).unwrap(), public);

        let server = hello(again.server_config().unwrap());
        for name in ["localhost", "127.0.0.1", "::1"] {
            let reply = get(server.address, &first.public_path(), name).unwrap();
            assert!(reply.ends_with("sealed"), "{reply}");
        }
        assert!(get(server.address, &first.public_path(), "elsewhere").is_err());
    }

    #[test]
    fn half_a_pair_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Certificates::open(dir.path(), &names()).unwrap();
        fs::remove_file(dir.path().join(PRIVATE)).unwrap();
        let error = Certificates::open(dir.path(), &names()).err().unwrap();
        assert!(matches!(error, TlsError::HalfAPair { .. }), "{error}");
    }

    #[test]
    fn a_changed_pair_is_taken_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a"), dir.path().join("b"));
        let certificates = Certificates::open(&ours, &names()).unwrap();
        Certificates::open(&theirs, &names()).unwrap();
        let server = hello(certificates.server_config().unwrap());
        let old = dir.path().join("old.crt");
        fs::copy(ours.join(PUBLIC), &old).unwrap();
        assert!(!certificates.reload(), "nothing changed");

        fs::write(ours.join(PUBLIC), "no certificate").unwrap();
        assert!(!certificates.reload());
        // Only half of the new pair: the key does not fit.
        fs::copy(theirs.join(PUBLIC), ours.join(PUBLIC)).unwrap();
        assert!(!certificates.reload());
        assert!(get(server.address, &old, "localhost").is_ok());

        fs::copy(theirs.join(PRIVATE), ours.join(PRIVATE)).unwrap();
        assert!(certificates.reload());
        assert!(!certificates.reload());
        assert!(get(server.address, &theirs.join(PUBLIC), "localhost").is_ok());
        assert!(get(server.address, &old, "localhost").is_err());
    }
}
