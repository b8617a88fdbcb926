//! A 256-bit secret that leaves no trace: no printing, no implicit copy, erased when dropped, compared in constant time.

use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 secret bytes: an object key, a part key, a key that seals other keys.
///
/// It has neither `Debug` nor `Display`, so it cannot reach a log by accident; `expose` is the only way to the bytes and easy to search for.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; Secret::LEN]);

impl Secret {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Takes over 32 bytes. The caller's own copy, if it keeps one, is the caller's to erase.
    pub fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Copies exactly 32 bytes; any other length is `None`.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A fresh secret from the system's random source.
    ///
    /// # Panics
    /// When the system has no randomness to give: no safe fallback exists.
    pub fn random() -> Self {
        let mut secret = Self([0; Self::LEN]);
        getrandom::fill(&mut secret.0).expect("the system's random source must answer");
        secret
    }

    /// The bytes. Keep the borrow short, and copy them nowhere that is not erased.
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl ConstantTimeEq for Secret {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_bytes_make_a_secret() {
        assert!(Secret::from_slice(&[7; 31]).is_none());
        assert!(Secret::from_slice(&[7; 33]).is_none());
        assert!(Secret::from_slice(&[]).is_none());
        let secret = Secret::from_slice(&[7; 32]).expect("32 bytes");
        assert_eq!(secret.expose(), &[7; 32]);
    }

    #[test]
    fn equality_sees_every_bit() {
        let secret = Secret::new([0x5a; 32]);
        assert!(secret == secret.clone());
        for bit in 0..256 {
            let mut bytes = *secret.expose();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(secret != Secret::new(bytes));
        }
    }

    #[test]
    fn random_secrets_differ() {
        assert!(Secret::random() != Secret::random());
    }

    #[test]
    fn zeroize_clears_the_bytes() {
        let mut secret = Secret::new([0xff; 32]);
        secret.zeroize();
        assert_eq!(secret.expose(), &[0; 32]);
    }
}
