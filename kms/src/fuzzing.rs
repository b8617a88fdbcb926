//! Doors into private parsers for the fuzz targets; built only for them.

use crate::StaticKey;
use crate::ciphertext::{self, Algorithm};
use crate::kes::{certificate, stored};
use crate::secret::Secret32;

/// Reads `bytes` as a data key's ciphertext in every form there is, and tries to open it.
pub fn ciphertext(bytes: &[u8], context: &[u8]) {
    let key = Secret32::new(&[1; 32]);
    for algorithm in [Algorithm::Aes256, Algorithm::ChaCha20] {
        let opened = ciphertext::open(&key, algorithm, bytes, context);
        assert!(opened.is_none(), "noise is no ciphertext");
        // What was sealed opens, and not with anything changed.
        let mut sealed = ciphertext::seal(&key, algorithm, &[7; 32], context);
        assert!(ciphertext::open(&key, algorithm, &sealed, context).is_some());
        let mut changed = false;
        for (byte, change) in sealed.iter_mut().zip(bytes) {
            *byte ^= change;
            changed |= *change != 0;
        }
        let opened = ciphertext::open(&key, algorithm, &sealed, context);
        assert_eq!(opened.is_some(), !changed);
    }
}

/// Reads `bytes` as what else comes from outside: a static key, a certificate, a key of a KES file-system keystore.
pub fn key_files(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = StaticKey::parse(text, "static key");
        let _ = crate::ApiKey::parse(text, "API key");
    }
    let _ = certificate::read(bytes);
    let _ = stored::parse(bytes);
}

/// Reads `json` as an encryption context: its pairs, and the canonical form of them.
pub fn context(json: &[u8]) -> Option<(std::collections::BTreeMap<String, String>, Vec<u8>)> {
    let pairs = crate::context::parse_json(json).ok()?;
    let canonical = crate::context::canonical(&pairs);
    Some((pairs, canonical))
}
