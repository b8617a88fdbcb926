//! One key given from outside, under one name: MinIO's "static" or "builtin" key.
//!
//! Its ciphertexts are KES's, so a static key and a KES key of the same bytes and name open each other's.
//! Unlike KES it heeds the cipher that an old JSON form names.

use zeroize::Zeroizing;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::ciphertext::{self, Algorithm};
use crate::error::{Error, Place};
use crate::limits::STATIC_KEY_NAME_BYTES_MAX;
use crate::secret::{DataKey, Secret32};

/// A named key from a variable or a file.
pub struct StaticKey {
    name: String,
    key: Secret32,
}

impl StaticKey {
    /// Reads `name:base64 of 32 bytes`; `what` names the place in the error.
    ///
    /// Line breaks within the base64 are allowed, as they are in MinIO's files.
    pub fn parse(text: &str, what: &str) -> Result<StaticKey, Error> {
        let bad = |problem: &str| Error::configuration(what, problem);
        let (name, key) = text
            .split_once(':')
            .ok_or_else(|| bad("not of the form NAME:BASE64"))?;
        if name.is_empty()
            || name.len() > STATIC_KEY_NAME_BYTES_MAX
            || name.chars().any(char::is_control)
        {
            return Err(bad(
                "the key's name is empty, too long, or holds control characters",
            ));
        }
        let mut text = Zeroizing::new(String::with_capacity(key.len()));
        text.extend(key.chars().filter(|c| !matches!(c, '\r' | '\n')));
        let bytes = STANDARD
            .decode(&*text)
            .map_err(|_| bad("the key is not base64"))?;
        let bytes = Zeroizing::new(bytes);
        let key = Secret32::from_slice(&bytes).ok_or_else(|| bad("the key is not of 32 bytes"))?;
        Ok(StaticKey {
            name: name.to_owned(),
            key,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A fresh data key and its ciphertext.
    pub(crate) fn generate(&self, context: &[u8]) -> (DataKey, Vec<u8>) {
        let plain = DataKey::random();
        let sealed = ciphertext::seal(&self.key, Algorithm::Aes256, plain.expose(), context);
        (plain, sealed)
    }

    /// Opens a data key that was sealed for the same context.
    pub(crate) fn open(&self, sealed: &[u8], context: &[u8]) -> Result<DataKey, Error> {
        ciphertext::parse(sealed)
            .and_then(|parsed| {
                let algorithm = parsed.named.unwrap_or(Algorithm::Aes256);
                ciphertext::open_parsed(&self.key, algorithm, &parsed, context)
            })
            .and_then(|plain| DataKey::from_slice(&plain))
            .ok_or_else(|| Error::Corrupt(Place::DataKey(self.name.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MY_KEY: &str = "my-key:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=";

    #[test]
    fn forms() {
        assert_eq!(StaticKey::parse(MY_KEY, "X").ok().unwrap().name(), "my-key");
        let folded = format!("{}\n{}\r\n", &MY_KEY[..20], &MY_KEY[20..]);
        assert!(StaticKey::parse(&folded, "X").is_ok());
        for bad in [
            "",
            "my-key",
            ":wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=",
            "my-key:",
            "my-key:AAAA",
            "my-key: wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=",
            "my\nkey:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=",
        ] {
            let error = StaticKey::parse(bad, "VARIABLE").err().unwrap().to_string();
            assert!(error.starts_with("VARIABLE: "), "{error}");
            assert!(!error.contains("wMHC"), "{error}");
        }
    }

    #[test]
    fn opens_the_vectors() {
        let key = StaticKey::parse(MY_KEY, "X").ok().unwrap();
        let sealed = "3vRgLByT9Y9+HoGUf7jW3EUaicF1g0qN2NkmS0gZDOAXAtxdZUS5zIFqcVxDP/noAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==";
        let open = key
            .open(&STANDARD.decode(sealed).unwrap(), b"{}")
            .ok()
            .unwrap();
        assert_eq!(open.expose()[..2], [0x40, 0x41]);

        let key = StaticKey::parse("k:eEm+JI9/q4JhH8QwKvf3LKo4DEBl6QbfvAl1CAbMIv8=", "X")
            .ok()
            .unwrap();
        let json = br#"{"aead":"ChaCha20Poly1305","iv":"JbI+vwvYww1lCb5VpkAFuQ==","nonce":"ARjIjJxBSD541Gz8",
            "bytes":"KCbEc2sA0TLvA7aWTWa23AdccVfJMpOxwgG8hm+4PaNrxYfy1xFWZg2gEenVrOgv"}"#;
        let open = key.open(json, b"{}").ok().unwrap();
        assert_eq!(
            STANDARD.encode(open.expose()),
            "zmS7NrG765UZ0ZN85oPjybelxqVvpz01vxsSpOISy2M="
        );
    }

    #[test]
    fn round_trip_and_short_input() {
        let key = StaticKey::parse(MY_KEY, "X").ok().unwrap();
        let (plain, sealed) = key.generate(b"{}");
        assert!(key.open(&sealed, b"{}").ok().unwrap() == plain);
        assert!(key.open(&sealed, b"{ }").is_err());
        for cut in 0..sealed.len() {
            assert!(key.open(&sealed[..cut], b"{}").is_err());
        }
    }
}
