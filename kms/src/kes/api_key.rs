//! KES API keys: an Ed25519 key in one line of text, and the client certificate made from it.
//!
//! `kes:v1:` and base64 of a zero byte and the 32-byte seed. A KES server knows a client by its identity,
//! the SHA-256 of the certificate's public key, so a certificate can be renewed at will: the identity stays.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::kes::certificate;
use crate::random;
use crate::secret::Secret32;
use crate::time::Timestamp;

const PREFIX: &str = "kes:v1:";
/// What precedes the seed in an Ed25519 private key in PKCS #8.
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// What precedes the key in an Ed25519 public key as certificates hold it.
const SPKI_HEAD: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a certificate is valid, counted from a day before it is made: clocks differ.
const VALID_MS: u64 = 90 * DAY_MS;
/// Renewed this long before it ends.
const RENEW_MS: u64 = 30 * DAY_MS;

/// A key that authenticates this server to a KES server.
pub struct ApiKey {
    seed: Secret32,
    identity: String,
}

/// A client certificate with its key, in the forms that TLS libraries take.
pub struct ClientCertificate {
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// Its private key in PKCS #8 DER.
    pub key: Zeroizing<Vec<u8>>,
    /// When to make another one (Unix milliseconds).
    pub renew_at: u64,
}

impl ApiKey {
    /// Reads an API key; `what` names the place in the error. The prefix may be left out.
    pub fn parse(text: &str, what: &str) -> Result<ApiKey, Error> {
        let bad = || Error::configuration(what, "not a KES API key (kes:v1:…)");
        let text = text.trim();
        let bytes = STANDARD
            .decode(text.strip_prefix(PREFIX).unwrap_or(text))
            .map(Zeroizing::new)
            .map_err(|_| bad())?;
        let seed = match bytes.split_first() {
            Some((0, seed)) => Secret32::from_slice(seed).ok_or_else(bad)?,
            _ => return Err(bad()),
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose()).map_err(|_| bad())?;
        let mut spki = SPKI_HEAD.to_vec();
        spki.extend_from_slice(pair.public_key().as_ref());
        Ok(ApiKey {
            seed,
            identity: identity(&spki),
        })
    }

    /// A new random API key.
    pub fn generate() -> Result<ApiKey, Error> {
        let mut bytes = Zeroizing::new([0; 33]);
        random::fill(&mut bytes[1..]);
        let text = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        Self::parse(&text, "a new API key")
    }

    /// The key as a line of text, wiped when dropped.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 33]);
        bytes[1..].copy_from_slice(self.seed.expose());
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 44));
        text.push_str(PREFIX);
        STANDARD.encode_string(bytes.as_slice(), &mut text);
        text
    }

    /// How KES names the bearer of this key: 64 hex digits.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// A self-signed client certificate, valid from now (Unix milliseconds) on.
    pub fn certificate(&self, now: u64) -> Result<ClientCertificate, Error> {
        let failed = |_| Error::configuration("KES API key", "no certificate can be made from it");
        let mut key = Zeroizing::new(Vec::with_capacity(PKCS8_HEAD.len() + 32));
        key.extend_from_slice(&PKCS8_HEAD);
        key.extend_from_slice(self.seed.expose());
        let pair = KeyPair::try_from(key.as_slice()).map_err(failed)?;

        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, self.identity.as_str());
        params.serial_number = Some(SerialNumber::from_slice(&random::array::<16>()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let day = |millis: u64| {
            let (year, month, day) = Timestamp::from_millis(millis).date();
            date_time_ymd(year, month, day)
        };
        let end = now.saturating_add(VALID_MS);
        params.not_before = day(now.saturating_sub(DAY_MS));
        params.not_after = day(end);
        let certificate = params.self_signed(&pair).map_err(failed)?;
        Ok(ClientCertificate {
            certificate: certificate.der().to_vec(),
            key,
            renew_at: end - RENEW_MS,
        })
    }
}

/// How KES names the bearer of a certificate, given in DER; none if it is not an X.509 certificate.
#[must_use]
pub fn identity_of_certificate(der: &[u8]) -> Option<String> {
    certificate::read(der).map(|read| identity(read.spki))
}

/// The identity of a public key in `SubjectPublicKeyInfo` form.
pub(crate) fn identity(spki: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(spki)
        .iter()
        .fold(String::with_capacity(64), |mut out, byte| {
            write!(out, "{byte:02x}").expect("a String takes everything");
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: [(&str, &str); 3] = [
        (
            "kes:v1:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw",
            "0426fa9a04bc2756b92fbe8a97e1a1e07b53ecf04ed33da22c33e5c9faeb8cbb",
        ),
        (
            "kes:v1:AD9E7FSYWrMD+VjhI6q545cYT9YOyFxZb7UnjEepYDRc",
            "3ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22",
        ),
        (
            "kes:v1:AGaV6VXHasF0FnaB60WdCOeTZ8eTIDikL4zlN16c8NAs",
            "ea9826089311fe44d7590408ede9150f7c637b6cab0a91ee6fe1aa5d9fb366f6",
        ),
    ];

    #[test]
    fn identities() {
        for (text, want) in VECTORS {
            assert_eq!(ApiKey::parse(text, "X").ok().unwrap().identity(), want);
            assert_eq!(
                ApiKey::parse(&text[7..], "X").ok().unwrap().identity(),
                want
            );
        }
        for bad in [
            "",
            "kes:v1:",
            "kes:v1:AAAA",
            "kes:v2:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw",
            "kes:v1:ASQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw",
        ] {
            assert!(ApiKey::parse(bad, "X").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_made_key_is_the_one_its_text_says() {
        let key = ApiKey::generate().ok().unwrap();
        let text = key.to_text();
        let again = ApiKey::parse(&text, "X").ok().unwrap();
        assert_eq!(key.identity(), again.identity());
        assert_ne!(key.identity(), ApiKey::generate().ok().unwrap().identity());
        assert_eq!(
            *ApiKey::parse(VECTORS[0].0, "X").ok().unwrap().to_text(),
            VECTORS[0].0
        );
        let made = key.certificate(1_790_000_000_000).ok().unwrap();
        let identity = identity_of_certificate(&made.certificate).unwrap();
        assert_eq!(identity, key.identity());
    }

    #[test]
    fn certificates_carry_the_identity_and_are_renewed_in_time() {
        let key = ApiKey::parse(VECTORS[0].0, "X").ok().unwrap();
        let now = 1_790_000_000_000;
        let one = key.certificate(now).ok().unwrap();
        let two = key.certificate(one.renew_at).ok().unwrap();
        assert_ne!(one.certificate, two.certificate);
        assert!(one.renew_at > now + 50 * DAY_MS && one.renew_at < now + VALID_MS);
        for made in [one, two] {
            let read = certificate::read(&made.certificate).unwrap();
            assert_eq!(identity(read.spki), VECTORS[0].1);
            assert!(!read.is_ca);
        }
    }
}
