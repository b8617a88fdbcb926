//! TLS of the key server: its own certificate and how to look at those of its clients, as the configuration in force says.
//!
//! - A client proves that it holds the key of the certificate it shows. By default nothing else about the certificate
//!   matters: who it is is decided by the public key, as KES does. With `tls.auth: on` a trusted CA has to have signed it.
//! - What is in force can be changed while connections come in. Sessions are never resumed, so every handshake is looked
//!   at by what is in force.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use strongroom_kms::{KesConfig, KesTls};

use crate::kes::tls::Trusted;
use crate::tls;

/// The TLS of a key server.
pub struct Door {
    current: ArcSwap<Current>,
    /// What the current state was read from.
    from: Mutex<Wanted>,
}

/// What a configuration wants of it.
struct Wanted {
    tls: KesTls,
    /// Whether clients may come without a certificate.
    open: bool,
}

impl Wanted {
    fn of(config: &KesConfig) -> Self {
        Self {
            tls: config.tls.clone(),
            open: config.some_route_is_open(),
        }
    }
}

struct Current {
    own: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Door {
    /// Reads the files that the configuration names.
    pub fn open(config: &KesConfig) -> Result<Arc<Door>, String> {
        let from = Wanted::of(config);
        Ok(Arc::new(Door {
            current: ArcSwap::from_pointee(read(&from)?),
            from: Mutex::new(from),
        }))
    }

    /// Reads the files that another configuration names. What comes out puts it in force, for all handshakes from then on.
    pub fn change<'a>(&'a self, config: &KesConfig) -> Result<impl FnOnce() + use<'a>, String> {
        let from = Wanted::of(config);
        let read = read(&from)?;
        Ok(move || {
            *self.from.lock().unwrap_or_else(PoisonError::into_inner) = from;
            self.current.store(Arc::new(read));
        })
    }

    /// Reads the files again, which may have been renewed.
    pub fn refresh(&self) -> Result<(), String> {
        let from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.store(Arc::new(read(&from)?));
        Ok(())
    }

    /// The configuration of every connection; it follows later changes.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Clients(Arc::clone(self))))
            .with_cert_resolver(Arc::new(Own(Arc::clone(self))));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(wanted: &Wanted) -> Result<Current, String> {
    let KesTls {
        certificate,
        key,
        verify_clients,
        ca,
    } = &wanted.tls;
    let own = tls::load_pair(certificate, key).map_err(|e| {
        format!("tls: {e} (`strongroom kms identity new --cert FILE --key FILE NAME` makes a pair)")
    })?;
    let clients: Arc<dyn ClientCertVerifier> = match verify_clients {
        false => Arc::new(Anybody {
            mandatory: !wanted.open,
            algorithms: provider().signature_verification_algorithms,
        }),
        true => {
            let roots = Arc::new(authorities(ca.as_deref())?);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let builder = match wanted.open {
                true => builder.allow_unauthenticated(),
                false => builder,
            };
            builder.build().map_err(|e| format!("tls.ca: {e}"))?
        }
    };
    Ok(Current {
        own: Arc::new(own),
        clients,
    })
}

/// The CAs that may sign for clients.
fn authorities(path: Option<&Path>) -> Result<RootCertStore, String> {
    let certificates = match path {
        Some(path) => Trusted::Path(path.to_owned())
            .certificates()
            .map_err(|e| format!("tls.ca: {e}"))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    // Systems trust a few that are malformed by today's rules.
    roots.add_parsable_certificates(certificates);
    match roots.is_empty() {
        true => {
            Err("tls.auth is on, and there is no certificate of a CA: tls.ca names some".into())
        }
        false => Ok(roots),
    }
}

struct Own(Arc<Door>);

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server's certificate")
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current.load().own))
    }
}

/// Whatever looks at clients now.
struct Clients(Arc<Door>);

impl Clients {
    fn now(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.0.current.load().clients)
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the clients' certificates")
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.now().client_auth_mandatory()
    }

    /// None: what a client has one certificate of, it shows.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.now()
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now()
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now()
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}

/// Takes any certificate whose key the client holds.
#[derive(Debug)]
struct Anybody {
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

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
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
