//! TLS towards KES: the certificate that this server shows, and the ones that it trusts.
//!
//! - This server shows a certificate from files, or one made from an API key. Changed files, and a made certificate that
//!   will end soon, are taken up by [`KesTls::refresh`]; what does not load never replaces what works.
//! - A KES server is trusted when a trusted CA vouches for it, or when its own certificate is listed among the trusted ones:
//!   quick starts make a self-signed one, often marked as a CA, which no chain may end in. Its name and its dates are checked
//!   either way.
//! - Every change makes a new configuration, so that no resumed session goes on as somebody else.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, InconsistentKeys,
    RootCertStore, SignatureScheme,
};
use strongroom_kms::KesCredentials;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// What every connection to KES is made with.
pub struct KesTls {
    credentials: KesCredentials,
    trusted: Trusted,
    current: ArcSwap<ClientConfig>,
    seen: Mutex<Seen>,
}

/// Where the certificates stand that are trusted.
pub enum Trusted {
    /// A file, or a directory of files.
    Path(PathBuf),
    /// Those of the system, and of this directory of the server's own.
    System { own: PathBuf },
}

struct Seen {
    /// The state of the files that the current configuration was made from.
    loaded: Stamp,
    /// When the certificate has to be made anew (Unix milliseconds).
    renew_at: Option<u64>,
    /// A state that does not load, and was warned of.
    refused: Option<Stamp>,
}

/// Each file with its inode, length and time of change.
type Stamp = Vec<(PathBuf, u64, u64, i64, i64)>;

impl KesTls {
    /// Loads everything; an error names the file that is to be changed.
    pub fn open(credentials: KesCredentials, trusted: Trusted) -> Result<Self, String> {
        let loaded = stamp(&credentials, &trusted);
        let (config, renew_at) = make(&credentials, &trusted, unix_ms())?;
        Ok(Self {
            credentials,
            trusted,
            current: ArcSwap::from_pointee(config),
            seen: Mutex::new(Seen {
                loaded,
                renew_at,
                refused: None,
            }),
        })
    }

    /// The configuration for a new connection.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.current.load_full()
    }

    /// Looks at files and dates, and takes up what changed. True if it did.
    pub fn refresh(&self) -> bool {
        self.refresh_at(unix_ms())
    }

    fn refresh_at(&self, now: u64) -> bool {
        let present = stamp(&self.credentials, &self.trusted);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let renew = seen.renew_at.is_some_and(|at| at <= now);
        if seen.loaded == present && !renew {
            return false;
        }
        match make(&self.credentials, &self.trusted, now) {
            // Written to while we read: what we have may be neither old nor new.
            Ok(_) if stamp(&self.credentials, &self.trusted) != present => false,
            Ok((config, renew_at)) => {
                self.current.store(Arc::new(config));
                seen.loaded = present;
                seen.renew_at = renew_at;
                info!("took new certificates for KES");
                true
            }
            Err(error) => {
                if seen.refused.as_ref() != Some(&present) {
                    warn!("new certificates for KES do not load, the old ones stay: {error}");
                    seen.refused = Some(present);
                }
                false
            }
        }
    }
}

fn make(
    credentials: &KesCredentials,
    trusted: &Trusted,
    now: u64,
) -> Result<(ClientConfig, Option<u64>), String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(trusted.certificates()?, Arc::clone(&provider));
    let (chain, key, renew_at) = shown(credentials, now)?;
    let unfit = |e: RustlsError| format!("the certificate for KES and its key do not fit: {e}");
    let shown = CertifiedKey::new(chain, any_supported_type(&key).map_err(unfit)?);
    match shown.keys_match() {
        Ok(()) | Err(RustlsError::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(e) => return Err(unfit(e)),
    }
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, renew_at))
}

/// A chain, its key, and when to make another one.
type Shown = (
    Vec<CertificateDer<'static>>,
    Zeroizing<PrivateKeyDer<'static>>,
    Option<u64>,
);

/// What this server shows.
fn shown(credentials: &KesCredentials, now: u64) -> Result<Shown, String> {
    match credentials {
        KesCredentials::ApiKey(key) => {
            let made = key.certificate(now).map_err(|e| e.to_string())?;
            let key = PrivateKeyDer::Pkcs8(made.key.to_vec().into());
            let chain = vec![CertificateDer::from(made.certificate)];
            Ok((chain, Zeroizing::new(key), Some(made.renew_at)))
        }
        KesCredentials::Files { certificate, key } => {
            let chain = certificates_of(certificate)?;
            if chain.is_empty() {
                return Err(format!("{}: no certificate in it", certificate.display()));
            }
            let text = Zeroizing::new(fs::read(key).map_err(|e| in_file(key, &e))?);
            let key = PrivateKeyDer::from_pem_slice(&text).map_err(|e| in_file(key, &e))?;
            Ok((chain, Zeroizing::new(key), None))
        }
    }
}

impl Trusted {
    /// Reads them.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let mut all = Vec::new();
        match self {
            Self::Path(path) => {
                for file in files_of(path).map_err(|e| in_file(path, &e))? {
                    all.extend(certificates_of(&file)?);
                }
                if all.is_empty() {
                    return Err(format!("{}: no certificate in it", path.display()));
                }
            }
            Self::System { own } => {
                let found = rustls_native_certs::load_native_certs();
                for error in found.errors {
                    warn!("a certificate of the system's does not load: {error}");
                }
                all.extend(found.certs);
                // It need not be there.
                for file in files_of(own).unwrap_or_default() {
                    all.extend(certificates_of(&file)?);
                }
            }
        }
        Ok(all)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::System { own } => own,
        }
    }
}

/// The file itself, or the files of a directory.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if fs::metadata(&file).is_ok_and(|data| data.is_file()) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn certificates_of(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = fs::read(file).map_err(|e| in_file(file, &e))?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| in_file(file, &e))
}

fn stamp(credentials: &KesCredentials, trusted: &Trusted) -> Stamp {
    let mut files = files_of(trusted.path()).unwrap_or_default();
    if let KesCredentials::Files { certificate, key } = credentials {
        files.extend([certificate.clone(), key.clone()]);
    }
    let seen = |file: PathBuf| {
        let data = fs::metadata(&file).ok()?;
        Some((
            file,
            data.ino(),
            data.len(),
            data.mtime(),
            data.mtime_nsec(),
        ))
    };
    files.into_iter().filter_map(seen).collect()
}

fn in_file(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Trusts by a chain to a listed certificate, or because the server's own is listed.
#[derive(Debug)]
struct Verifier {
    /// None where no listed certificate can be the end of a chain.
    chains: Option<Arc<WebPkiServerVerifier>>,
    listed: HashSet<Vec<u8>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(trusted: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        let listed = trusted.iter().map(|c| c.to_vec()).collect();
        roots.add_parsable_certificates(trusted);
        let chains =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .ok();
        Self {
            chains,
            listed,
            provider,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let by_chain = match &self.chains {
            Some(chains) => chains.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let refused = match by_chain {
            Ok(trusted) => return Ok(trusted),
            Err(refused) => refused,
        };
        let listed = self.listed.contains(end_entity.as_ref());
        // Dates come first in the chain's checks, so an error about something else means that they hold.
        if !listed || is_about_dates(&refused) {
            return Err(refused);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn is_about_dates(error: &RustlsError) -> bool {
    use CertificateError as C;
    matches!(
        error,
        RustlsError::InvalidCertificate(
            C::Expired
                | C::ExpiredContext { .. }
                | C::NotValidYet
                | C::NotValidYetContext { .. }
                | C::BadEncoding
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use std::time::Duration;
    use strongroom_kms::ApiKey;

    const API_KEY: &str = "kes:v1:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw";

    struct Made {
        params: CertificateParams,
        key: KeyPair,
        certificate: rcgen::Certificate,
    }

    fn self_signed(is_ca: IsCa, years: (i32, i32)) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["kes.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = is_ca;
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        Made {
            params,
            key,
            certificate,
        }
    }

    fn verify(listed: &[&Made], shown: &rcgen::Certificate, name: &str) -> Result<(), RustlsError> {
        let listed = listed.iter().map(|m| m.certificate.der().clone()).collect();
        let verifier = Verifier::new(listed, Arc::new(ring::default_provider()));
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_790_000_000));
        let name = ServerName::try_from(name).unwrap();
        verifier
            .verify_server_cert(shown.der(), &[], &name, &[], now)
            .map(drop)
    }

    #[test]
    fn a_listed_certificate_is_trusted_even_if_marked_as_a_ca() {
        let ca = IsCa::Ca(BasicConstraints::Unconstrained);
        for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa, ca] {
            let made = self_signed(is_ca, (2020, 2040));
            for name in ["kes.example", "127.0.0.1"] {
                verify(&[&made], &made.certificate, name).unwrap();
            }
            assert!(verify(&[&made], &made.certificate, "other.example").is_err());
            assert!(verify(&[], &made.certificate, "kes.example").is_err());
            let other = self_signed(made.params.is_ca, (2020, 2040));
            assert!(verify(&[&other], &made.certificate, "kes.example").is_err());
        }
    }

    #[test]
    fn dates_count_for_listed_certificates_too() {
        for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            for years in [(2000, 2010), (2050, 2060)] {
                let made = self_signed(is_ca, years);
                assert!(verify(&[&made], &made.certificate, "kes.example").is_err());
            }
        }
    }

    #[test]
    fn a_ca_vouches_for_others() {
        let ca = self_signed(IsCa::Ca(BasicConstraints::Unconstrained), (2020, 2040));
        let issuer = Issuer::from_params(&ca.params, &ca.key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["kes.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        verify(&[&ca], &leaf, "kes.example").unwrap();
        assert!(verify(&[&ca], &leaf, "127.0.0.1").is_err());
        let stranger = self_signed(IsCa::Ca(BasicConstraints::Unconstrained), (2020, 2040));
        assert!(verify(&[&stranger], &leaf, "kes.example").is_err());
    }

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn changed_files_are_taken_up_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let client = self_signed(IsCa::NoCa, (2020, 2040));
        let certificate = write(dir.path(), "client.crt", &client.certificate.pem());
        let key = write(dir.path(), "client.key", &client.key.serialize_pem());
        let cas = dir.path().join("CAs");
        fs::create_dir(&cas).unwrap();
        write(&cas, "one.crt", &client.certificate.pem());
        let open = || {
            KesTls::open(
                KesCredentials::Files {
                    certificate: certificate.clone(),
                    key: key.clone(),
                },
                Trusted::Path(cas.clone()),
            )
        };
        let tls = open().unwrap();
        let first = tls.config();
        assert!(!tls.refresh(), "nothing changed");
        let other = self_signed(IsCa::NoCa, (2020, 2040));
        write(dir.path(), "client.crt", &other.certificate.pem());
        assert!(!tls.refresh(), "the key does not fit");
        assert!(Arc::ptr_eq(&first, &tls.config()));
        write(dir.path(), "client.key", &other.key.serialize_pem());
        assert!(tls.refresh() && !tls.refresh());
        write(&cas, "two.crt", &other.certificate.pem());
        assert!(tls.refresh());
        assert!(!Arc::ptr_eq(&first, &tls.config()));

        write(dir.path(), "client.key", "nonsense");
        let error = open().err().unwrap();
        assert!(error.contains("client.key"), "{error}");
        fs::remove_file(&certificate).unwrap();
        let error = open().err().unwrap();
        assert!(error.contains("client.crt"), "{error}");
    }

    #[test]
    fn trust_that_is_not_there_is_an_error_and_the_systems_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let api_key = || KesCredentials::ApiKey(ApiKey::parse(API_KEY, "X").ok().unwrap());
        let absent = dir.path().join("absent");
        let error = KesTls::open(api_key(), Trusted::Path(absent.clone()));
        assert!(error.err().unwrap().contains("absent"));
        let error = KesTls::open(api_key(), Trusted::Path(dir.path().to_owned()));
        assert!(error.err().unwrap().contains("no certificate"));
        assert!(KesTls::open(api_key(), Trusted::System { own: absent }).is_ok());
    }

    #[test]
    fn a_made_certificate_is_renewed_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let ca = self_signed(IsCa::NoCa, (2020, 2040));
        let ca = write(dir.path(), "ca.crt", &ca.certificate.pem());
        let key = ApiKey::parse(API_KEY, "X").ok().unwrap();
        let tls = KesTls::open(KesCredentials::ApiKey(key), Trusted::Path(ca)).unwrap();
        let day = 24 * 3600 * 1000;
        let now = unix_ms();
        let first = tls.config();
        assert!(!tls.refresh_at(now + 50 * day));
        assert!(tls.refresh_at(now + 61 * day), "it would end in a month");
        assert!(!Arc::ptr_eq(&first, &tls.config()));
        assert!(!tls.refresh_at(now + 62 * day));
        assert!(tls.refresh_at(now + 130 * day));
    }
}
