//! A secret of this server's own, wrapped under a key of the key service, so that it locks and dies with that key.
//!
//! A fresh data key under the service's default key seals the secret; the wrapping names that key. What it is for is bound
//! twice: in the context of the data key, and as associated data of the seal. The form is in `FORMAT.md`.

use std::collections::BTreeMap;

use crate::context;
use crate::error::{Error, Place};
use crate::keys::{Keys, OpenKey, Source, StoredDataKey, Use};
use crate::lease::KeyLease;
use crate::limits::{CIPHERTEXT_BYTES_MAX, STATIC_KEY_NAME_BYTES_MAX};
use crate::seal;
use crate::secret::{DataKey, Secret32};

const VERSION: u8 = 2;
const PURPOSE: &str = "strongroom wrap under a key v1";

/// The key that a wrapping names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappingKey {
    pub source: Source,
    pub name: String,
    /// 0 where the source has no versions, or does not tell.
    pub version: u32,
}

impl WrappingKey {
    /// The key that `wrapped` is under; none where that is the local root key.
    pub fn of(wrapped: &[u8]) -> Result<Option<WrappingKey>, Error> {
        match wrapped.first() {
            Some(&VERSION) => {
                let parts = Parts::read(wrapped).ok_or(Error::Corrupt(Place::KeyWrap))?;
                Ok(Some(parts.key()))
            }
            _ => Ok(None),
        }
    }
}

/// A wrapping, taken apart.
struct Parts<'a> {
    source: Source,
    version: u32,
    name: &'a str,
    ciphertext: &'a [u8],
    /// Everything before the seal.
    head: &'a [u8],
    sealed: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(wrapped: &'a [u8]) -> Option<Parts<'a>> {
        let rest = wrapped.strip_prefix(&[VERSION])?;
        let (source, rest) = rest.split_first()?;
        let source = [Source::Embedded, Source::Static, Source::Kes]
            .into_iter()
            .find(|known| *known as u8 == *source)?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = chunk(rest)?;
        let (ciphertext, sealed) = chunk(rest)?;
        if name.len() > STATIC_KEY_NAME_BYTES_MAX || ciphertext.len() > CIPHERTEXT_BYTES_MAX {
            return None;
        }
        Some(Parts {
            source,
            version: u32::from_le_bytes(*version),
            name: std::str::from_utf8(name).ok()?,
            ciphertext,
            head: &wrapped[..wrapped.len() - sealed.len()],
            sealed,
        })
    }

    fn key(&self) -> WrappingKey {
        WrappingKey {
            source: self.source,
            name: self.name.to_owned(),
            version: self.version,
        }
    }
}

impl Keys {
    /// Wraps a secret under the default key: the wrapping, and whether its key may still be used.
    ///
    /// `what` is its purpose, with a blank in it so that it is no bucket, and `id` says which of these it is.
    pub async fn wrap(
        &self,
        what: &str,
        id: &str,
        secret: &[u8; 32],
    ) -> Result<(Vec<u8>, KeyLease), Error> {
        let made = self
            .generate_at_source(self.default_key(), &context_of(what, id))
            .await?;
        let too_long = || Error::unreachable("a ciphertext of impossible length");
        let mut wrapped = vec![VERSION, made.source as u8];
        wrapped.extend_from_slice(&made.version.to_le_bytes());
        for part in [made.key.as_bytes(), &made.ciphertext] {
            let length = u16::try_from(part.len()).map_err(|_| too_long())?;
            wrapped.extend_from_slice(&length.to_le_bytes());
            wrapped.extend_from_slice(part);
        }
        let sealed = seal::seal(&sealing_key(&made.plaintext), &wrapped, secret);
        wrapped.extend_from_slice(&sealed);
        Ok((wrapped, made.lease))
    }

    /// Opens what [`Keys::wrap`] made for the same `what` and `id`, by the key that it names.
    pub async fn unwrap(&self, what: &str, id: &str, wrapped: &[u8]) -> Result<OpenKey, Error> {
        let corrupt = || Error::Corrupt(Place::KeyWrap);
        let parts = Parts::read(wrapped).ok_or_else(corrupt)?;
        let stored = StoredDataKey {
            source: parts.source,
            key: parts.name,
            version: parts.version,
            ciphertext: parts.ciphertext,
            bucket_key: false,
        };
        let above = self
            .open_at_source(&stored, &context_of(what, id), Use::Read)
            .await?;
        let secret = seal::open(&sealing_key(&above.plaintext), parts.head, parts.sealed)
            .and_then(|plain| DataKey::from_slice(&plain))
            .ok_or_else(corrupt)?;
        Ok(OpenKey {
            plaintext: secret,
            lease: above.lease,
        })
    }
}

/// No object and no bucket key has it: theirs name the bucket.
fn context_of(what: &str, id: &str) -> Vec<u8> {
    debug_assert!(what.contains(' '), "no bucket has a blank in its name");
    context::canonical(&BTreeMap::from([(what.to_owned(), id.to_owned())]))
}

fn sealing_key(data_key: &DataKey) -> Secret32 {
    seal::derive(&Secret32::new(data_key.expose()), PURPOSE)
}

/// A length in two bytes and so many bytes; then the rest.
fn chunk(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::kes::stub::now;

    use super::*;
    use crate::{DEFAULT_KEY, Deletion, KeyProblem, KeysOptions, Kms, Outage, RootKey};

    const WHAT: &str = "a test";

    fn keys() -> (tempfile::TempDir, Arc<Kms>, Keys, RootKey) {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Arc::new(Kms::open(dir.path(), root.clone()).unwrap());
        let keys = Keys::new(Arc::clone(&kms), None, KeysOptions::default());
        (dir, kms, keys, root)
    }

    #[test]
    fn a_wrapping_opens_in_its_place_and_nowhere_else() {
        let (_dir, kms, keys, _) = keys();
        let (wrapped, _) = now(keys.wrap(WHAT, "1", &[7; 32])).ok().unwrap();
        let open = |what, id, wrapped: &[u8]| now(keys.unwrap(what, id, wrapped));
        let opened = open(WHAT, "1", &wrapped).ok().unwrap();
        assert_eq!(opened.plaintext.expose(), &[7; 32]);
        assert!(open(WHAT, "2", &wrapped).is_err());
        assert!(open("another test", "1", &wrapped).is_err());
        for i in 0..wrapped.len() {
            let mut bad = wrapped.clone();
            bad[i] ^= 1;
            assert!(open(WHAT, "1", &bad).is_err(), "byte {i}");
            assert!(open(WHAT, "1", &wrapped[..i]).is_err(), "cut at {i}");
        }
        let key = WrappingKey::of(&wrapped).ok().unwrap().unwrap();
        assert_eq!((key.source, key.version), (Source::Embedded, 1));
        assert_eq!(key.name, DEFAULT_KEY);
        let local = kms.wrap_local(b"x", &[7; 32]);
        assert!(WrappingKey::of(&local).ok().unwrap().is_none());
        assert!(open(WHAT, "1", &local).is_err());
    }

    #[test]
    fn it_locks_and_dies_with_its_key() {
        let (_dir, kms, keys, root) = keys();
        let (wrapped, made) = now(keys.wrap(WHAT, "1", &[7; 32])).ok().unwrap();
        let open = || now(keys.unwrap(WHAT, "1", &wrapped));
        let lease = open().ok().unwrap().lease;
        kms.seal().unwrap();
        assert!(matches!(open(), Err(Error::Outage(Outage::Sealed))));
        assert!(lease.check().is_err() && made.check().is_err());
        kms.unseal(&root).unwrap();
        assert!(open().is_ok() && lease.check().is_ok());
        kms.disable_key(DEFAULT_KEY).unwrap();
        assert!(open().is_err() && lease.check().is_err());
        kms.enable_key(DEFAULT_KEY).unwrap();
        kms.rotate_key(DEFAULT_KEY).unwrap();
        assert!(open().is_ok());
        kms.delete_key(DEFAULT_KEY, Deletion::Now).unwrap();
        let gone = matches!(
            open(),
            Err(Error::KeyState {
                problem: KeyProblem::Destroyed,
                ..
            })
        );
        assert!(gone && lease.check().is_err());
    }
}
