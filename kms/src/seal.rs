//! The seal around what the key service keeps for itself: XChaCha20-Poly1305 under a derived key.
//!
//! A 192-bit nonce is random for each seal, so any number of seals under one key is safe. What a seal
//! belongs to is bound as associated data. Sealed form: nonce (24) ‖ ciphertext ‖ tag (16).

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::random;
use crate::secret::Secret32;

pub(crate) const NONCE: usize = 24;
pub(crate) const TAG: usize = 16;
/// Bytes that a seal adds.
pub(crate) const OVERHEAD: usize = NONCE + TAG;

/// The key for one purpose: HMAC-SHA-256 of the purpose's name under `key`.
pub(crate) fn derive(key: &Secret32, purpose: &str) -> Secret32 {
    hmac_sha256(key.expose(), &[purpose.as_bytes()])
}

/// HMAC-SHA-256 over the concatenation of `parts`.
pub(crate) fn hmac_sha256(key: &[u8; 32], parts: &[&[u8]]) -> Secret32 {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    let mut tag = mac.finalize().into_bytes();
    let out = Secret32::new(&tag.0);
    zeroize::Zeroize::zeroize(tag.as_mut_slice());
    out
}

/// Seals `plain` with a fresh random nonce.
pub(crate) fn seal(key: &Secret32, associated: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE] = random::array();
    let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let tag = XChaCha20Poly1305::new(key.expose().into())
        .encrypt_inout_detached(
            &XNonce::from(nonce),
            associated,
            (&mut sealed[NONCE..]).into(),
        )
        .expect("far below the cipher's 256 GiB");
    sealed.extend_from_slice(&tag);
    sealed
}

/// Opens what [`seal`] made; `None` when key, associated data or any byte differ.
pub(crate) fn open(key: &Secret32, associated: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
    let (body, tag) = rest.split_last_chunk::<TAG>()?;
    let mut plain = Zeroizing::new(body.to_vec());
    XChaCha20Poly1305::new(key.expose().into())
        .decrypt_inout_detached(
            &XNonce::from(*nonce),
            associated,
            plain.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .ok()?;
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_is_refused() {
        let key = Secret32::random();
        let sealed = seal(&key, b"place", b"plain");
        assert_eq!(open(&key, b"place", &sealed).unwrap().as_slice(), b"plain");
        assert!(open(&key, b"other", &sealed).is_none());
        assert!(open(&Secret32::random(), b"place", &sealed).is_none());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(open(&key, b"place", &bad).is_none(), "byte {i}");
            assert!(open(&key, b"place", &sealed[..i]).is_none(), "cut at {i}");
        }
    }

    #[test]
    fn nonces_differ() {
        let key = Secret32::random();
        assert_ne!(seal(&key, b"", b"x"), seal(&key, b"", b"x"));
    }
}
