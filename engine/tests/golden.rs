//! Every object a real MinIO sealed opens here, byte for byte: keys unwrapped, ETags unsealed, data by ranges and whole.

use std::{collections::BTreeMap, fs, path::PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use strongroom_engine::{
    dare::{
        OpenError, Opener, PACKAGE, PAYLOAD, Version,
        header::Header,
        layout::{self, PackageRange},
        open_blob,
    },
    hierarchy::{Domain, SealedKey, etag_key, minio_path, part_key, unseal_key},
    secret::Secret,
};

const PREFIX: &str = "X-Minio-Internal-Server-Side-Encryption-";

#[derive(Deserialize)]
struct Object {
    bucket: String,
    key: String,
    mode: String,
    size: u64,
    parts: Option<Vec<u64>>,
    part_etags: Option<Vec<String>>,
    etag_to_client: String,
    metadata: BTreeMap<String, String>,
    streams: Vec<String>,
    object_key: String,
    md5: String,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/minio")
}

fn objects() -> Vec<Object> {
    let text = fs::read_to_string(folder().join("objects.json")).expect("readable");
    serde_json::from_str(&text).expect("a list of objects")
}

impl Object {
    fn field(&self, name: &str) -> Option<Vec<u8>> {
        let value = self.metadata.get(&format!("{PREFIX}{name}"))?;
        Some(BASE64_STANDARD.decode(value).expect("base64"))
    }

    fn path(&self) -> String {
        minio_path(&self.bucket, &self.key)
    }

    /// The context MinIO hands its key service: the client's and the object's path, sorted.
    fn context(&self) -> String {
        let mut context: BTreeMap<String, String> = match self.field("Context") {
            Some(json) => serde_json::from_slice(&json).expect("a map"),
            None => BTreeMap::new(),
        };
        context.entry(self.bucket.clone()).or_insert(self.path());
        serde_json::to_string(&context).expect("a map")
    }

    fn external(&self) -> Secret {
        if self.mode == "sse-c" {
            return Secret::new(std::array::from_fn(|i| 100 + i as u8));
        }
        let wrapped = self.field("S3-Kms-Sealed-Key").expect("a data key");
        let (rest, nonce) = wrapped.split_at(wrapped.len() - 12);
        let (sealed, iv) = rest.split_at(rest.len() - 16);
        static_unwrap(iv, nonce, sealed, self.context().as_bytes())
    }

    fn object_key(&self) -> Result<Secret, OpenError> {
        let (domain, name) = match self.mode.as_str() {
            "sse-c" => (Domain::SseC, "Sealed-Key"),
            "sse-s3" => (Domain::SseS3, "S3-Sealed-Key"),
            _ => (Domain::SseKms, "Kms-Sealed-Key"),
        };
        let sealed = SealedKey {
            iv: self.field("Iv").expect("an iv").try_into().expect("32"),
            sealed: self.field(name).expect("a key").try_into().expect("64"),
        };
        unseal_key(&sealed, &self.external(), domain, self.path().as_bytes())
    }
}

/// A data key wrapped under the static master key, bytes 0 to 31.
fn static_unwrap(iv: &[u8], nonce: &[u8], sealed: &[u8], context: &[u8]) -> Secret {
    use aes_gcm::{Aes256Gcm, aead::Aead, aead::Payload};
    let master: [u8; 32] = std::array::from_fn(|i| i as u8);
    let mut mac = <Hmac<sha2::Sha256> as KeyInit>::new_from_slice(&master).expect("any length");
    mac.update(iv);
    let cipher = Aes256Gcm::new(&mac.finalize().into_bytes());
    let payload = Payload {
        msg: sealed,
        aad: context,
    };
    let nonce: [u8; 12] = nonce.try_into().expect("12 bytes");
    let plain = cipher.decrypt(&nonce.into(), payload).expect("unwraps");
    Secret::from_slice(&plain).expect("32 bytes")
}

fn expected(len: u64) -> Vec<u8> {
    (0..len)
        .map(|i| (7 * i + 13 * (i >> 8) + 29 * (i >> 16)) as u8)
        .collect()
}

fn md5(data: &[u8]) -> Vec<u8> {
    use md5::Digest;
    md5::Md5::digest(data).to_vec()
}

/// The plaintext of a range, opened from the packages it needs and no others.
fn read(key: &Secret, sealed: &[u8], plain_len: u64, start: u64, end: u64) -> Vec<u8> {
    let range = PackageRange::new(plain_len, start..end).expect("inside");
    let bytes = &sealed[range.sealed().start as usize..range.sealed().end as usize];
    let Some(header) = Header::read(bytes) else {
        return Vec::new();
    };
    let opener = Opener::foreign(key, plain_len, header).expect("known");
    let mut plain = Vec::new();
    let mut dst = vec![0; PAYLOAD];
    for (seq, package) in (range.first..).zip(bytes.chunks(PACKAGE)) {
        let len = opener.open_package(seq, package, &mut dst).expect("opens");
        plain.extend_from_slice(&dst[..len]);
    }
    plain[range.skip..][..range.len as usize].to_vec()
}

#[test]
fn every_object_key_unseals() {
    let objects = objects();
    assert_eq!(objects.len(), 21);
    for object in &objects {
        let key = object.object_key().expect("unseals");
        assert_eq!(
            hex::encode(key.expose()),
            object.object_key,
            "{}",
            object.key
        );
    }
}

#[test]
fn a_moved_object_does_not_unseal() {
    for mut object in objects() {
        // The data key must still unwrap, so only the path of the object key changes.
        let external = object.external();
        let (domain, name) = match object.mode.as_str() {
            "sse-c" => (Domain::SseC, "Sealed-Key"),
            "sse-s3" => (Domain::SseS3, "S3-Sealed-Key"),
            _ => (Domain::SseKms, "Kms-Sealed-Key"),
        };
        let sealed = SealedKey {
            iv: object.field("Iv").expect("an iv").try_into().expect("32"),
            sealed: object.field(name).expect("a key").try_into().expect("64"),
        };
        object.key.push('x');
        let moved = unseal_key(&sealed, &external, domain, object.path().as_bytes());
        assert!(moved.err() == Some(OpenError::Tag));
    }
}

#[test]
fn every_byte_opens() {
    for object in objects() {
        let key = object.object_key().expect("unseals");
        let sizes = object.parts.clone().unwrap_or(vec![object.size]);
        let mut total = 0;
        let mut whole = Vec::new();
        for (number, (name, size)) in (1..).zip(object.streams.iter().zip(&sizes)) {
            let sealed = fs::read(folder().join(name)).expect("readable");
            let key = match object.parts {
                Some(_) => part_key(&key, number),
                None => key.clone(),
            };
            assert_eq!(layout::opened_len(sealed.len() as u64), Some(*size));
            let plain = expected(*size);
            let opened = open_blob(&key, &sealed, Version::V20).expect("opens");
            assert!(*opened == plain, "{name}");
            let border = PAYLOAD as u64;
            for (start, end) in [
                (0, *size),
                (size - 1, *size),
                (0, 1),
                (border - 1, border + 1),
                (border, 2 * border),
                (border / 2, size - 1),
            ] {
                if start < end && end <= *size {
                    let part = read(&key, &sealed, *size, start, end);
                    assert!(part == plain[start as usize..end as usize], "{name}");
                }
            }
            total += size;
            whole.extend_from_slice(&plain);
        }
        assert_eq!(total, object.size, "{}", object.key);
        assert_eq!(hex::encode(md5(&whole)), object.md5, "{}", object.key);
    }
}

#[test]
fn sealed_etags_open_to_what_the_client_saw() {
    for object in objects() {
        let key = etag_key(&object.object_key().expect("unseals"));
        let stored = &object.metadata["etag"];
        match (object.mode.as_str(), object.part_etags.as_ref()) {
            (_, Some(parts)) => {
                let digests: Vec<u8> = object
                    .parts
                    .iter()
                    .flatten()
                    .flat_map(|size| md5(&expected(*size)))
                    .collect();
                let etag = format!("{}-{}", hex::encode(md5(&digests)), parts.len());
                assert_eq!(object.etag_to_client.trim_matches('"'), etag);
            }
            ("sse-s3", None) => {
                let sealed = hex::decode(stored).expect("hex");
                let etag = open_blob(&key, &sealed, Version::V10).expect("opens");
                assert_eq!(hex::encode(&*etag), object.etag_to_client);
                assert_eq!(hex::encode(&*etag), object.md5);
            }
            _ => {
                let sealed = hex::decode(stored).expect("hex");
                let etag = open_blob(&key, &sealed, Version::V10).expect("opens");
                assert_eq!(etag.len(), 16);
                assert!(stored.ends_with(&object.etag_to_client));
            }
        }
    }
}
