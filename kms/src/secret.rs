//! 32 secret bytes that leave nothing behind.
//!
//! They sit on the heap, so that moving a secret copies a pointer and not the bytes; they are zeroed
//! on drop, compared in constant time, and have neither `Debug` nor `Display`.

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::random;

/// Key material of the keystore, and keys derived from it.
#[derive(Clone)]
pub(crate) struct Secret32(Box<[u8; 32]>);

impl Secret32 {
    /// Takes a copy of `bytes`; the caller wipes its own.
    pub(crate) fn new(bytes: &[u8; 32]) -> Self {
        let mut secret = Self::zero();
        secret.0.copy_from_slice(bytes);
        secret
    }

    /// A secret from a slice of exactly 32 bytes.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == 32).then(|| {
            let mut secret = Self::zero();
            secret.0.copy_from_slice(bytes);
            secret
        })
    }

    pub(crate) fn random() -> Self {
        let mut secret = Self::zero();
        random::fill(&mut secret.0[..]);
        secret
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn zero() -> Self {
        Self(Box::new([0; 32]))
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for Secret32 {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0[..]).into()
    }
}

/// A data key in clear: 32 bytes, zeroed on drop, that cannot be printed.
#[derive(Clone, PartialEq)]
pub struct DataKey(Secret32);

impl DataKey {
    /// The key's bytes. Whoever copies them wipes the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        Secret32::from_slice(bytes).map(Self)
    }

    pub(crate) fn random() -> Self {
        Self(Secret32::random())
    }
}
