//! `strongroom kms identity`: who a client of a key server is.
//!
//! A key server knows its clients by the SHA-256 of their public keys: that is what its configuration names as admin and in
//! policies.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use strongroom_kms::{ApiKey, identity_of_certificate};
use zeroize::Zeroizing;

use crate::{limits, tls};

/// `strongroom kms identity …`
#[derive(Debug, Subcommand)]
pub enum Identity {
    /// Make an API key, or a certificate with its key, and print the identity that policies name
    New(New),
    /// Print the identity of a certificate or an API key
    Of {
        /// A file with a certificate in PEM, an API key (kes:v1:…), or - to read either from standard input
        what: String,
    },
}

#[derive(Debug, Args)]
pub struct New {
    /// Names and addresses that the certificate is for, if it is a server's
    #[arg(requires = "cert")]
    names: Vec<String>,
    /// Make a certificate in this file instead of an API key
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// The file of the certificate's private key
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

/// Carries the command out and prints what came of it.
pub fn run(command: Identity) -> Result<(), String> {
    match command {
        Identity::New(New {
            names,
            cert: Some(cert),
            key: Some(key),
        }) => {
            tls::make(&cert, &key, &names).map_err(|e| e.to_string())?;
            let identity = of_file(&cert)?;
            super::print(&format!(
                "certificate: {}\nprivate-key: {}\nidentity: {identity}\n",
                cert.display(),
                key.display()
            ))
        }
        Identity::New(_) => {
            let key = ApiKey::generate().map_err(|e| e.to_string())?;
            let text = key.to_text();
            let said = Zeroizing::new(format!(
                "api-key: {}\nidentity: {}\n",
                *text,
                key.identity()
            ));
            super::print(&said)
        }
        Identity::Of { what } if what == "-" => {
            let mut text = Zeroizing::new(String::with_capacity(limits::IDENTITY_BYTES_MAX));
            std::io::stdin()
                .take(limits::IDENTITY_BYTES_MAX as u64)
                .read_to_string(&mut text)
                .map_err(|e| e.to_string())?;
            let identity = match text.contains("-----BEGIN") {
                true => of_certificates(
                    &tls::parse_certificates(text.as_bytes()).map_err(|e| e.to_string())?,
                )?,
                false => of_api_key(&text)?,
            };
            super::print(&format!("{identity}\n"))
        }
        Identity::Of { what } => {
            let what = Zeroizing::new(what);
            let identity = match what.starts_with("kes:") {
                true => of_api_key(&what)?,
                false => of_file(what.as_str().as_ref())?,
            };
            super::print(&format!("{identity}\n"))
        }
    }
}

fn of_api_key(text: &str) -> Result<String, String> {
    let key = ApiKey::parse(text, "the argument").map_err(|e| e.to_string())?;
    Ok(key.identity().to_owned())
}

fn of_file(path: &std::path::Path) -> Result<String, String> {
    of_certificates(&tls::read_certificates(path).map_err(|e| e.to_string())?)
}

fn of_certificates(
    certificates: &[rustls::pki_types::CertificateDer<'static>],
) -> Result<String, String> {
    // The first of a chain is the client's own.
    let first = certificates.first().map(AsRef::as_ref);
    first
        .and_then(identity_of_certificate)
        .ok_or_else(|| "not an X.509 certificate".to_owned())
}
