//! A data key's ciphertext in KES's format, which is also that of MinIO's static key.
//!
//! ```text
//! AEAD ciphertext ‖ tag (16) ‖ iv (16) ‖ nonce (12)       76 bytes for a data key of 32
//! AES256    key' = HMAC-SHA-256(key, iv);  AES-256-GCM(key', nonce, context)
//! ChaCha20  key' = HChaCha20(key, iv);     ChaCha20-Poly1305(key', nonce, context)
//! ```
//!
//! Nothing inside names the key, its version or the cipher: the stored key decides. Older JSON and
//! MessagePack forms are read, never written.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadCore, AeadInOut, KeyInit, Nonce, Tag};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::ChaCha20Poly1305;
use zeroize::{Zeroize, Zeroizing};

use crate::limits::CIPHERTEXT_BYTES_MAX;
use crate::random;
use crate::seal::hmac_sha256;
use crate::secret::Secret32;

pub(crate) const IV: usize = 16;
pub(crate) const NONCE: usize = 12;
pub(crate) const TAG: usize = 16;
/// Bytes that the format adds to the plaintext.
pub(crate) const OVERHEAD: usize = TAG + IV + NONCE;

/// The cipher of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Aes256,
    ChaCha20,
}

impl Algorithm {
    /// The name that KES shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::ChaCha20 => "ChaCha20",
        }
    }

    /// Any of the names that KES takes or has written.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "AES256" | "AES256-GCM_SHA256" | "AES-256-GCM-HMAC-SHA-256" => Some(Self::Aes256),
            "ChaCha20" | "XCHACHA20-POLY1305" | "ChaCha20Poly1305" => Some(Self::ChaCha20),
            _ => None,
        }
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Seals `plain` under a fresh iv and nonce.
pub(crate) fn seal(
    key: &Secret32,
    algorithm: Algorithm,
    plain: &[u8],
    associated: &[u8],
) -> Vec<u8> {
    seal_with(key, algorithm, plain, associated, &random::array())
}

/// As [`seal`], iv and nonce given: the 28 bytes that end the ciphertext.
pub(crate) fn seal_with(
    key: &Secret32,
    algorithm: Algorithm,
    plain: &[u8],
    associated: &[u8],
    iv_nonce: &[u8; IV + NONCE],
) -> Vec<u8> {
    let (iv, nonce) = split_iv_nonce(iv_nonce);
    let subkey = subkey(key, algorithm, iv);
    let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
    out.extend_from_slice(plain);
    match algorithm {
        Algorithm::Aes256 => encrypt(
            &Aes256Gcm::new(subkey.expose().into()),
            nonce,
            associated,
            &mut out,
        ),
        Algorithm::ChaCha20 => {
            encrypt(
                &ChaCha20Poly1305::new(subkey.expose().into()),
                nonce,
                associated,
                &mut out,
            );
        }
    }
    out.extend_from_slice(iv_nonce);
    out
}

/// Opens a ciphertext of any form under a key of `algorithm`; `None` when it is not authentic.
///
/// What an old form says of its cipher is ignored, as KES does.
#[cfg(any(test, fuzzing))]
pub(crate) fn open(
    key: &Secret32,
    algorithm: Algorithm,
    ciphertext: &[u8],
    associated: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let parsed = parse(ciphertext)?;
    open_parsed(key, algorithm, &parsed, associated)
}

/// A ciphertext taken apart, whatever its form was.
pub(crate) struct Parsed {
    /// AEAD ciphertext ‖ tag.
    body: Vec<u8>,
    iv_nonce: [u8; IV + NONCE],
    /// The cipher that an old form names.
    pub(crate) named: Option<Algorithm>,
}

/// Opens an already parsed ciphertext.
pub(crate) fn open_parsed(
    key: &Secret32,
    algorithm: Algorithm,
    parsed: &Parsed,
    associated: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (iv, nonce) = split_iv_nonce(&parsed.iv_nonce);
    let subkey = subkey(key, algorithm, iv);
    match algorithm {
        Algorithm::Aes256 => decrypt(
            &Aes256Gcm::new(subkey.expose().into()),
            nonce,
            associated,
            &parsed.body,
        ),
        Algorithm::ChaCha20 => decrypt(
            &ChaCha20Poly1305::new(subkey.expose().into()),
            nonce,
            associated,
            &parsed.body,
        ),
    }
}

/// Takes a ciphertext apart. A random one may begin like an old form: what does not parse as that is binary.
pub(crate) fn parse(ciphertext: &[u8]) -> Option<Parsed> {
    if ciphertext.len() > CIPHERTEXT_BYTES_MAX {
        return None;
    }
    let old = match ciphertext.first() {
        Some(b'{') => parse_json(ciphertext),
        Some(0x95) => parse_msgpack(ciphertext),
        _ => None,
    };
    old.or_else(|| {
        let (body, iv_nonce) = ciphertext.split_last_chunk::<{ IV + NONCE }>()?;
        (body.len() >= TAG).then(|| Parsed {
            body: body.to_vec(),
            iv_nonce: *iv_nonce,
            named: None,
        })
    })
}

fn parse_json(text: &[u8]) -> Option<Parsed> {
    #[derive(serde::Deserialize)]
    struct Form<'a> {
        #[serde(borrow)]
        aead: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        iv: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        nonce: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        bytes: std::borrow::Cow<'a, str>,
    }
    let form: Form<'_> = serde_json::from_slice(text).ok()?;
    let named = match &*form.aead {
        "AES-256-GCM-HMAC-SHA-256" => Algorithm::Aes256,
        "ChaCha20Poly1305" => Algorithm::ChaCha20,
        _ => return None,
    };
    assemble(
        named,
        &STANDARD.decode(&*form.iv).ok()?,
        &STANDARD.decode(&*form.nonce).ok()?,
        STANDARD.decode(&*form.bytes).ok()?,
    )
}

/// MessagePack: an array of five, algorithm and id as strings, iv, nonce and bytes as binaries.
fn parse_msgpack(bytes: &[u8]) -> Option<Parsed> {
    let mut rest = bytes.strip_prefix(&[0x95])?;
    let named = Algorithm::parse(std::str::from_utf8(msgpack_str(&mut rest)?).ok()?)?;
    msgpack_str(&mut rest)?;
    let iv = msgpack_bin(&mut rest)?;
    let nonce = msgpack_bin(&mut rest)?;
    let body = msgpack_bin(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    assemble(named, iv, nonce, body.to_vec())
}

fn assemble(named: Algorithm, iv: &[u8], nonce: &[u8], body: Vec<u8>) -> Option<Parsed> {
    if iv.len() != IV || nonce.len() != NONCE || body.len() < TAG {
        return None;
    }
    let mut iv_nonce = [0; IV + NONCE];
    iv_nonce[..IV].copy_from_slice(iv);
    iv_nonce[IV..].copy_from_slice(nonce);
    Some(Parsed {
        body,
        iv_nonce,
        named: Some(named),
    })
}

fn msgpack_str<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = match take(rest, 1)?[0] {
        tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
        0xd9 => big_endian(take(rest, 1)?),
        0xda => big_endian(take(rest, 2)?),
        0xdb => big_endian(take(rest, 4)?),
        _ => return None,
    };
    take(rest, len)
}

fn msgpack_bin<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = match take(rest, 1)?[0] {
        0xc4 => big_endian(take(rest, 1)?),
        0xc5 => big_endian(take(rest, 2)?),
        0xc6 => big_endian(take(rest, 4)?),
        _ => return None,
    };
    take(rest, len)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn big_endian(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))
}

fn split_iv_nonce(both: &[u8; IV + NONCE]) -> (&[u8; IV], &[u8; NONCE]) {
    let (iv, rest) = both.split_first_chunk().expect("28 bytes begin with 16");
    (iv, rest.try_into().expect("28 less 16 is 12"))
}

fn subkey(key: &Secret32, algorithm: Algorithm, iv: &[u8; IV]) -> Secret32 {
    match algorithm {
        Algorithm::Aes256 => hmac_sha256(key.expose(), &[iv]),
        Algorithm::ChaCha20 => {
            let mut derived = chacha20::hchacha::<chacha20::R20>(key.expose().into(), iv.into());
            let secret = Secret32::new(&derived.0);
            derived.as_mut_slice().zeroize();
            secret
        }
    }
}

fn encrypt<A: AeadInOut>(cipher: &A, nonce: &[u8; NONCE], associated: &[u8], buffer: &mut Vec<u8>) {
    let tag = cipher
        .encrypt_inout_detached(
            &nonce_of::<A>(nonce),
            associated,
            buffer.as_mut_slice().into(),
        )
        .expect("far below the cipher's 64 GiB");
    buffer.extend_from_slice(&tag);
}

fn decrypt<A: AeadInOut>(
    cipher: &A,
    nonce: &[u8; NONCE],
    associated: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (body, tag) = sealed.split_last_chunk::<TAG>()?;
    let tag = Tag::<A>::try_from(&tag[..]).ok()?;
    let mut plain = Zeroizing::new(body.to_vec());
    cipher
        .decrypt_inout_detached(
            &nonce_of::<A>(nonce),
            associated,
            plain.as_mut_slice().into(),
            &tag,
        )
        .ok()?;
    Some(plain)
}

fn nonce_of<A: AeadCore>(nonce: &[u8; NONCE]) -> Nonce<A> {
    Nonce::<A>::try_from(&nonce[..]).expect("both ciphers take 12 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn b64(text: &str) -> Vec<u8> {
        STANDARD.decode(text).unwrap()
    }

    fn counting<const N: usize>(first: u8) -> [u8; N] {
        std::array::from_fn(|i| first + u8::try_from(i).unwrap())
    }

    fn iv_nonce() -> [u8; 28] {
        counting(0)
    }

    const OBJECT: &[u8] = br#"{"my-bucket":"my-bucket/dir/my-object.txt"}"#;

    /// (algorithm, context, ciphertext) for key c0…, iv 00…, nonce 10…, plaintext 40….
    const SEALED: [(Algorithm, &[u8], &str); 4] = [
        (
            Algorithm::Aes256,
            OBJECT,
            "3vRgLByT9Y9+HoGUf7jW3EUaicF1g0qN2NkmS0gZDOAlJZBwRVvXcb36ioNmkkreAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==",
        ),
        (
            Algorithm::ChaCha20,
            OBJECT,
            "SPX9XHuIYVXsqvn8SruWfIByxRyNiXUZARqpSAoqX59b1PT3rBc62xe4HsFwyswYAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==",
        ),
        (
            Algorithm::Aes256,
            b"{}",
            "3vRgLByT9Y9+HoGUf7jW3EUaicF1g0qN2NkmS0gZDOAXAtxdZUS5zIFqcVxDP/noAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==",
        ),
        (
            Algorithm::Aes256,
            br#"{"my-bucket":"my-bucket/dir/my-object.txt","project":"alpha"}"#,
            "3vRgLByT9Y9+HoGUf7jW3EUaicF1g0qN2NkmS0gZDOCyhh4haD6VEE3tYaaa/d6QAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==",
        ),
    ];

    #[test]
    fn seals_to_the_vectors() {
        let key = Secret32::new(&counting(0xc0));
        let plain: [u8; 32] = counting(0x40);
        for (algorithm, context, sealed) in SEALED {
            let made = seal_with(&key, algorithm, &plain, context, &iv_nonce());
            assert_eq!(made, b64(sealed));
            assert_eq!(made.len(), 76);
            assert_eq!(*open(&key, algorithm, &made, context).unwrap(), plain);
            assert!(open(&key, algorithm, &made, b"").is_none());
        }
    }

    #[test]
    fn opens_upstream_vectors() {
        let zero = Secret32::new(&[0; 32]);
        let sealed =
            b64("zwdDgHeRlIFRnJ7+DIhs/ka7GFK2CFSfDELqg1VCyTQzZ58o7MAdupMLk3ZjlMo2ZUDwldL2o41nAWDc");
        assert_eq!(
            *open(&zero, Algorithm::Aes256, &sealed, b"").unwrap(),
            [0; 16]
        );

        let key =
            Secret32::from_slice(&b64("dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=")).unwrap();
        let plain = b64("CLcJoykFCWZDkEIiUq9bJRqwCwW9ZDvdgu8EMA==");
        for (algorithm, sealed) in [
            (
                Algorithm::Aes256,
                "s2gmfQHeGdlyL8x1yEWSACUV3GrSoz3t160hugMgzKWgyqesXDVUJ5Dw5Mt076rR1PNiU9X4YjLH14D8a81t2r2xsz4gVZac",
            ),
            (
                Algorithm::ChaCha20,
                "gO4woRIswAJdjUjW7z2ApsSQxJlwB24yjLrmH4eI7sB0uh5nfEJfk9ybTPFft5FRFaZCVBmzhx7OJs9n0WWtxH3sySIxecIK",
            ),
        ] {
            assert_eq!(
                *open(&key, algorithm, &b64(sealed), &[0; 16]).unwrap(),
                plain
            );
        }
    }

    #[test]
    fn opens_the_json_form() {
        let zero = Secret32::new(&[0; 32]);
        let json = br#"{"aead":"AES-256-GCM-HMAC-SHA-256","iv":"xLxIN3tSCkg2xMafuvwUwg==","nonce":"gu0mGwUkwcvMEoi5",
            "bytes":"WVgRjeIJm3w50C/l+y7y2i6mbNg5NCAqN1zvOYWZKmc="}"#;
        assert_eq!(*open(&zero, Algorithm::Aes256, json, b"").unwrap(), [0; 16]);

        let key =
            Secret32::from_slice(&b64("eEm+JI9/q4JhH8QwKvf3LKo4DEBl6QbfvAl1CAbMIv8=")).unwrap();
        let json = br#"{"aead":"ChaCha20Poly1305","iv":"JbI+vwvYww1lCb5VpkAFuQ==","nonce":"ARjIjJxBSD541Gz8",
            "bytes":"KCbEc2sA0TLvA7aWTWa23AdccVfJMpOxwgG8hm+4PaNrxYfy1xFWZg2gEenVrOgv"}"#;
        let parsed = parse(json).unwrap();
        assert_eq!(parsed.named, Some(Algorithm::ChaCha20));
        let plain = b64("zmS7NrG765UZ0ZN85oPjybelxqVvpz01vxsSpOISy2M=");
        assert_eq!(
            *open_parsed(&key, Algorithm::ChaCha20, &parsed, b"{}").unwrap(),
            plain
        );
    }

    fn msgpack(algorithm: &str, id: &str, sealed: &[u8], wide: bool) -> Vec<u8> {
        let (body, iv_nonce) = sealed.split_at(sealed.len() - 28);
        let mut out = vec![0x95];
        for text in [algorithm, id] {
            let len = u8::try_from(text.len()).unwrap();
            if wide {
                out.extend([0xda, 0, len]);
            } else {
                out.push(0xa0 | len);
            }
            out.extend(text.as_bytes());
        }
        for bin in [&iv_nonce[..16], &iv_nonce[16..], body] {
            let len = u8::try_from(bin.len()).unwrap();
            if wide {
                out.extend([0xc6, 0, 0, 0, len]);
            } else {
                out.extend([0xc4, len]);
            }
            out.extend(bin);
        }
        out
    }

    #[test]
    fn opens_the_messagepack_form() {
        let key = Secret32::new(&counting(0xc0));
        let plain: [u8; 32] = counting(0x40);
        for (algorithm, context, sealed) in SEALED {
            for wide in [false, true] {
                for name in ["AES256-GCM_SHA256", "ChaCha20"] {
                    let packed = msgpack(name, "id", &b64(sealed), wide);
                    assert_eq!(*open(&key, algorithm, &packed, context).unwrap(), plain);
                    let mut longer = packed.clone();
                    longer.push(0);
                    assert!(open(&key, algorithm, &longer, context).is_none());
                }
            }
        }
    }

    /// A binary ciphertext may begin with any byte, those of the old forms too.
    #[test]
    fn binary_that_looks_like_an_old_form() {
        let key = Secret32::new(&counting(0xc0));
        let mut seen = [false; 2];
        for n in 0u32.. {
            let mut tail = iv_nonce();
            tail[..4].copy_from_slice(&n.to_le_bytes());
            let sealed = seal_with(&key, Algorithm::Aes256, &[7; 32], b"{}", &tail);
            match sealed[0] {
                b'{' => seen[0] = true,
                0x95 => seen[1] = true,
                _ => continue,
            }
            assert_eq!(
                *open(&key, Algorithm::Aes256, &sealed, b"{}").unwrap(),
                [7; 32]
            );
            if seen == [true; 2] {
                return;
            }
        }
    }

    #[test]
    fn golden_kes_ciphertexts_open() {
        let exchanges: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../tests/golden/kes-exchanges.json")).unwrap();
        let keys = [
            ("golden-1", Secret32::new(&counting(0)), Algorithm::Aes256),
            (
                "golden-2",
                Secret32::new(&std::array::from_fn(|i| 31 - u8::try_from(i).unwrap())),
                Algorithm::ChaCha20,
            ),
        ];
        let mut opened = 0;
        for exchange in &exchanges {
            let path = exchange["path"].as_str().unwrap();
            let Some((_, key, algorithm)) = keys.iter().find(|(name, ..)| path.ends_with(name))
            else {
                continue;
            };
            if exchange["status"] != 200 {
                continue;
            }
            let json = |field: &str| -> serde_json::Value {
                serde_json::from_str(exchange[field].as_str().unwrap_or("null")).unwrap_or_default()
            };
            let (body, answer) = (json("body"), json("response"));
            let bytes = |value: &serde_json::Value| value.as_str().map(b64);
            let context = bytes(&body["context"]).unwrap_or_default();
            let plain = bytes(&answer["plaintext"]).or_else(|| bytes(&body["plaintext"]));
            let sealed = bytes(&answer["ciphertext"])
                .or_else(|| bytes(&body["ciphertext"]).filter(|_| path.contains("/decrypt/")));
            if let (Some(plain), Some(sealed)) = (plain, sealed) {
                assert_eq!(
                    *open(key, *algorithm, &sealed, &context).unwrap(),
                    plain,
                    "{path}"
                );
                opened += 1;
            }
        }
        assert_eq!(opened, 20);
    }

    #[test]
    fn minio_objects_give_their_data_keys() {
        let objects: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../tests/golden/minio/objects.json")).unwrap();
        let key = Secret32::new(&counting(0));
        let mut opened = 0;
        for object in &objects {
            let meta = |name: &str| {
                object["metadata"][format!("X-Minio-Internal-Server-Side-Encryption-{name}")]
                    .as_str()
            };
            let Some(sealed) = meta("S3-Kms-Sealed-Key") else {
                continue;
            };
            assert_eq!(meta("S3-Kms-Key-Id"), Some("golden-1"));
            let client = meta("Context")
                .map(|c| crate::Context::parse_header(c).unwrap())
                .unwrap_or_default();
            let (bucket, name) = (
                object["bucket"].as_str().unwrap(),
                object["key"].as_str().unwrap(),
            );
            let context = crate::Context::for_object(&client, bucket, &format!("{bucket}/{name}"));
            let plain = open(&key, Algorithm::Aes256, &b64(sealed), &context.canonical()).unwrap();
            assert_eq!(plain.len(), 32);
            opened += 1;
        }
        assert!(opened >= 10, "{opened}");
    }

    proptest! {
        #[test]
        fn round_trip(key: [u8; 32], plain: Vec<u8>, context: Vec<u8>, aes: bool) {
            let algorithm = if aes { Algorithm::Aes256 } else { Algorithm::ChaCha20 };
            let sealed = seal(&Secret32::new(&key), algorithm, &plain, &context);
            prop_assert_eq!(sealed.len(), plain.len() + OVERHEAD);
            prop_assert_eq!(&**open(&Secret32::new(&key), algorithm, &sealed, &context).unwrap(), &plain[..]);
        }

        #[test]
        fn any_changed_byte_is_refused(at in 0usize..76, bit in 0u8..8) {
            let key = Secret32::new(&[5; 32]);
            let mut sealed = seal(&key, Algorithm::Aes256, &[1; 32], b"{}");
            sealed[at] ^= 1 << bit;
            let opened = open(&key, Algorithm::Aes256, &sealed, b"{}");
            prop_assert!(opened.is_none());
        }

        #[test]
        fn any_input_is_an_answer(mut bytes: Vec<u8>, first in prop::sample::select(vec![b'{', 0x95, 0])) {
            if let Some(b) = bytes.first_mut() { *b = first; }
            prop_assert!(open(&Secret32::new(&[5; 32]), Algorithm::Aes256, &bytes, b"").is_none());
        }
    }
}
