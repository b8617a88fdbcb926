//! The key hierarchy: which key seals what, from the external key down to an object's data, parts, ETag and checksums.
//!
//! ```text
//! external key (customer's, or a data key of the KMS)
//!   HMAC(random)              object key: one per object or multipart upload
//!   HMAC(iv, domain, path)    key that seals the object key; path is "bucket/key"
//! object key                  seals the data of an object put in one piece
//!   HMAC(part number)         seals one part
//!   HMAC("SSE-etag")          seals ETags
//!   HMAC("object-checksum")   seals checksums
//! ```
//!
//! All of it is frozen: sealed keys lie on disk, and MinIO's, whose scheme `DAREv2-HMAC-SHA256` this is, must open here.
//! One thing differs. MinIO cleans paths first, so that `a//b` and `a/b` share a key; here keys are opaque, and only
//! [`minio_path`], for opening what MinIO wrote, cleans.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::{
    dare::{OpenError, Version, open_blob, seal_blob},
    secret::Secret,
};

const OBJECT_KEY: &[u8] = b"object-encryption-key generation";
const SCHEME: &[u8] = b"DAREv2-HMAC-SHA256";
const ETAG: &[u8] = b"SSE-etag";
const CHECKSUM: &[u8] = b"object-checksum";

/// Who gave the external key. A key sealed for one domain does not open in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The customer, with each request.
    SseC,
    /// The key service, under the store's key.
    SseS3,
    /// The key service, under a named key.
    SseKms,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Self::SseC => b"SSE-C",
            Self::SseS3 => b"SSE-S3",
            Self::SseKms => b"SSE-KMS",
        }
    }
}

/// An object key sealed under an external key and bound to its object: safe to store.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// Random, chosen at each sealing.
    pub iv: [u8; 32],
    /// One DARE package.
    pub sealed: [u8; 64],
}

/// A new object key. `random` is 32 fresh random bytes; the external key makes up for a weak source of them.
pub fn object_key(external: &Secret, random: &[u8; 32]) -> Secret {
    derive(external, &[OBJECT_KEY, random])
}

/// Seals an object key for the object at `path`: bucket, `/` and the key, raw.
pub fn seal_key(
    object_key: &Secret,
    external: &Secret,
    domain: Domain,
    path: &[u8],
    iv: [u8; 32],
    nonce: [u8; 12],
) -> SealedKey {
    let kek = sealing_key(external, domain, path, &iv);
    let sealed = seal_blob(&kek, nonce, object_key.expose());
    SealedKey {
        iv,
        sealed: sealed.try_into().expect("16 + 32 + 16 bytes"),
    }
}

/// Opens a sealed object key. Another key, domain, path or iv than at sealing is [`OpenError::Tag`].
pub fn unseal_key(
    sealed: &SealedKey,
    external: &Secret,
    domain: Domain,
    path: &[u8],
) -> Result<Secret, OpenError> {
    let kek = sealing_key(external, domain, path, &sealed.iv);
    open_key(&kek, sealed, Version::V20)
}

/// Opens an object key of MinIO's oldest scheme, `DARE-SHA256`, which binds no path and which only SSE-C ever used.
pub fn unseal_legacy_key(sealed: &SealedKey, external: &Secret) -> Result<Secret, OpenError> {
    let mut digest: [u8; 32] = Sha256::new()
        .chain_update(external.expose())
        .chain_update(sealed.iv)
        .finalize()
        .into();
    let kek = Secret::new(digest);
    digest.zeroize();
    open_key(&kek, sealed, Version::V10)
}

/// The key of one part of a multipart upload.
pub fn part_key(object_key: &Secret, part: u32) -> Secret {
    derive(object_key, &[&part.to_le_bytes()])
}

/// The key that seals ETags of an object and of its parts.
pub fn etag_key(object_key: &Secret) -> Secret {
    derive(object_key, &[ETAG])
}

/// The key that seals the checksums of an object.
pub fn checksum_key(object_key: &Secret) -> Secret {
    derive(object_key, &[CHECKSUM])
}

/// The path MinIO bound an object to: bucket and key joined and cleaned as Go's `path.Join` does.
pub fn minio_path(bucket: &str, key: &str) -> String {
    let joined = match (bucket, key) {
        ("", "") => return String::new(),
        ("", one) | (one, "") => one.to_owned(),
        _ => format!("{bucket}/{key}"),
    };
    let rooted = joined.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for element in joined.split('/') {
        match element {
            "" | "." => {}
            ".." if kept.last().is_some_and(|&last| last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            _ => kept.push(element),
        }
    }
    match (rooted, kept.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".to_owned(),
        (false, path) => path,
    }
}

fn sealing_key(external: &Secret, domain: Domain, path: &[u8], iv: &[u8; 32]) -> Secret {
    derive(external, &[iv, domain.label(), SCHEME, path])
}

fn open_key(kek: &Secret, sealed: &SealedKey, min: Version) -> Result<Secret, OpenError> {
    let plain = open_blob(kek, &sealed.sealed, min)?;
    Secret::from_slice(&plain).ok_or(OpenError::Size)
}

fn derive(key: &Secret, message: &[&[u8]]) -> Secret {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose()).expect("any length does");
    for piece in message {
        mac.update(piece);
    }
    let mut output: [u8; 32] = mac.finalize().into_bytes().into();
    let secret = Secret::new(output);
    output.zeroize();
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTERNAL: [u8; 32] = *b"an external key of thirty-two by";

    fn sealed(path: &[u8]) -> (Secret, SealedKey) {
        let external = Secret::new(EXTERNAL);
        let key = object_key(&external, &[1; 32]);
        let sealed = seal_key(&key, &external, Domain::SseS3, path, [2; 32], [3; 12]);
        (key, sealed)
    }

    #[test]
    fn a_key_opens_only_where_it_was_sealed() {
        let external = Secret::new(EXTERNAL);
        let (key, good) = sealed(b"bucket/a//b");
        let opened = unseal_key(&good, &external, Domain::SseS3, b"bucket/a//b");
        assert!(opened.is_ok_and(|opened| opened == key));

        let refused = |sealed: &SealedKey, external: &Secret, domain, path: &[u8]| {
            unseal_key(sealed, external, domain, path).err() == Some(OpenError::Tag)
        };
        assert!(refused(&good, &external, Domain::SseS3, b"bucket/a/b"));
        assert!(refused(&good, &external, Domain::SseC, b"bucket/a//b"));
        assert!(refused(&good, &external, Domain::SseKms, b"bucket/a//b"));
        let other = Secret::new([9; 32]);
        assert!(refused(&good, &other, Domain::SseS3, b"bucket/a//b"));
        for at in 0..32 {
            let mut bad = good.clone();
            bad.iv[at] ^= 1;
            assert!(refused(&bad, &external, Domain::SseS3, b"bucket/a//b"));
        }
        for at in 0..64 {
            let mut bad = good.clone();
            bad.sealed[at] ^= 1;
            assert!(unseal_key(&bad, &external, Domain::SseS3, b"bucket/a//b").is_err());
        }
        assert!(unseal_legacy_key(&good, &external).is_err());
    }

    #[test]
    fn derived_keys_are_all_different() {
        let key = Secret::new([5; 32]);
        let keys = [
            part_key(&key, 0),
            part_key(&key, 1),
            part_key(&key, 10_000),
            etag_key(&key),
            checksum_key(&key),
            object_key(&key, &[0; 32]),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (bucket, key, path) in [
            ("b", "a/b", "b/a/b"),
            ("b", "a//b", "b/a/b"),
            ("b", "a/b/", "b/a/b"),
            ("b", "/a", "b/a"),
            ("b", "./a/./b", "b/a/b"),
            ("b", "a/../c", "b/c"),
            ("b", "..", "."),
            ("b", "../x", "x"),
            ("b", "../../x", "../x"),
            ("b", "../../../x", "../../x"),
            ("b", "a..b/.c", "b/a..b/.c"),
            ("b", "", "b"),
            ("", "", ""),
            ("", "/a/..", "/"),
            ("", "/../a", "/a"),
        ] {
            assert_eq!(minio_path(bucket, key), path, "{bucket:?} {key:?}");
        }
    }
}
