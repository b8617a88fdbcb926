//! A key as KES's own key stores hold it: one text value per key.
//!
//! Base64 of a protobuf message, or an older JSON object:
//!
//! ```text
//! KeyVersion { 1: SecretKey { 1: bytes key, 2: uint32 type (1 AES256, 2 ChaCha20) }
//!              2: HMACKey   { 1: bytes key, 2: uint32 hash (1 SHA-256) }
//!              3: Timestamp { 1: int64 seconds, 2: int32 nanos }
//!              4: string created_by }
//! {"bytes": base64, "algorithm"?, "created_at"?, "created_by"?}
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::ciphertext::Algorithm;
use crate::limits::CREATED_BY_BYTES_MAX;
use crate::secret::Secret32;
use crate::time::Timestamp;

/// What one stored value says.
pub(crate) struct StoredKey {
    pub(crate) key: Secret32,
    pub(crate) algorithm: Algorithm,
    /// Absent in the old form only.
    pub(crate) hmac: Option<Secret32>,
    pub(crate) created_at: Timestamp,
    pub(crate) created_by: String,
}

/// Reads a stored value; the error says what is wrong with it.
pub(crate) fn parse(value: &[u8]) -> Result<StoredKey, &'static str> {
    let value = value.trim_ascii();
    if value.first() == Some(&b'{') {
        return parse_json(value);
    }
    let message = Zeroizing::new(
        STANDARD
            .decode(value)
            .map_err(|_| "neither base64 nor JSON")?,
    );
    parse_protobuf(&message)
}

fn parse_protobuf(message: &[u8]) -> Result<StoredKey, &'static str> {
    let (mut key, mut hmac, mut created_at, mut created_by) =
        (None, None, Timestamp::default(), String::new());
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(secret)) => key = Some(typed_key(secret)?),
            (2, Value::Bytes(secret)) => hmac = Some(typed_key(secret)?),
            (3, Value::Bytes(time)) => {
                for field in fields(time) {
                    match field? {
                        (1, Value::Number(n)) => created_at.seconds = n.cast_signed(),
                        (2, Value::Number(n)) if n < 1_000_000_000 => {
                            created_at.nanos = u32::try_from(n).expect("below 10^9");
                        }
                        _ => return Err("creation time is malformed"),
                    }
                }
            }
            (4, Value::Bytes(text)) if text.len() <= CREATED_BY_BYTES_MAX => {
                created_by = std::str::from_utf8(text)
                    .map_err(|_| "creator is not UTF-8")?
                    .to_owned();
            }
            (1..=4, _) => return Err("a field has the wrong type"),
            _ => {}
        }
    }
    let (key, kind) = key.ok_or("no key inside")?;
    let algorithm = match kind {
        1 => Algorithm::Aes256,
        2 => Algorithm::ChaCha20,
        _ => return Err("key of an unknown type"),
    };
    let (hmac, hash) = hmac.ok_or("no HMAC key inside")?;
    if hash != 1 {
        return Err("HMAC key of an unknown hash");
    }
    Ok(StoredKey {
        key,
        algorithm,
        hmac: Some(hmac),
        created_at,
        created_by,
    })
}

fn typed_key(message: &[u8]) -> Result<(Secret32, u64), &'static str> {
    let (mut key, mut kind) = (None, 0);
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => {
                key = Some(Secret32::from_slice(bytes).ok_or("key is not of 32 bytes")?)
            }
            (2, Value::Number(n)) => kind = n,
            (1 | 2, _) => return Err("a field has the wrong type"),
            _ => {}
        }
    }
    Ok((key.ok_or("no key inside")?, kind))
}

fn parse_json(text: &[u8]) -> Result<StoredKey, &'static str> {
    #[derive(serde::Deserialize)]
    struct Form {
        bytes: Zeroizing<String>,
        #[serde(default)]
        algorithm: String,
        #[serde(default)]
        created_at: String,
        #[serde(default)]
        created_by: String,
    }
    let form: Form = serde_json::from_slice(text).map_err(|_| "neither base64 nor JSON")?;
    let bytes = Zeroizing::new(
        STANDARD
            .decode(&*form.bytes)
            .map_err(|_| "key is not base64")?,
    );
    if form.created_by.len() > CREATED_BY_BYTES_MAX {
        return Err("creator is too long");
    }
    Ok(StoredKey {
        key: Secret32::from_slice(&bytes).ok_or("key is not of 32 bytes")?,
        algorithm: match form.algorithm.as_str() {
            "" => Algorithm::Aes256,
            name => Algorithm::parse(name).ok_or("key of an unknown type")?,
        },
        hmac: None,
        created_at: match form.created_at.as_str() {
            "" => Timestamp::default(),
            text => Timestamp::parse(text).ok_or("creation time is malformed")?,
        },
        created_by: form.created_by,
    })
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A fixed-width number: skipped.
    Fixed,
}

/// The fields of a protobuf message in order; ends after the first error.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), &'static str>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next_field(&mut rest).ok_or("message is malformed");
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Fixed)?,
        2 => {
            let len = varint(rest)?;
            Value::Bytes(take(rest, len)?)
        }
        5 => take(rest, 4).map(|_| Value::Fixed)?,
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = tail;
    Some(head)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADMIN: &str = "87a866f48485aae38a21574eb514ed9ea1df6453f0a86e3529bfe22096d2f10d";

    #[test]
    fn golden_values() {
        let one = parse(include_bytes!("../../../tests/golden/kes-fs/golden-1"))
            .ok()
            .unwrap();
        assert_eq!(
            *one.key.expose(),
            std::array::from_fn(|i| u8::try_from(i).unwrap())
        );
        assert_eq!(one.algorithm, Algorithm::Aes256);
        assert_eq!(one.created_by, ADMIN);
        let hmac = crate::seal::hmac_sha256(one.hmac.unwrap().expose(), &[b"hello"]);
        // What the real server answered for this key and message.
        assert_eq!(
            STANDARD.encode(hmac.expose()),
            "pPb6UQtRPSCGWkP5YTwqHB4CjnGUQpHoLL0RPjRkhss="
        );
        assert_eq!(one.created_at.to_string(), "2026-11-23T16:24:24.389923697Z");

        let two = parse(include_bytes!("../../../tests/golden/kes-fs/golden-2"))
            .ok()
            .unwrap();
        assert_eq!(
            *two.key.expose(),
            std::array::from_fn(|i| 31 - u8::try_from(i).unwrap())
        );
        assert_eq!(two.algorithm, Algorithm::ChaCha20);
    }

    #[test]
    fn vector_of_the_protobuf_form() {
        let stored = parse(
            b"CiQKIMiHG7XrN94FuwblJJor4f7f6rbqAl7DwsLaiIoyz0D2EAESJAognLXl4yqa4cjZTcSbsU6sNnN8kP9ARWkXwa20YQZa9HgQARoMCNit\
              hK0GEID67qYDIkAzZWNmY2RmMzhmY2JlMTQxYWUyNmExMDMwZjgxZTk2Yjc1MzM2NWE0Njc2MGFlNmI1Nzg2OThhOTdjNTlmZDIy",
        )
        .ok()
        .unwrap();
        assert_eq!(
            STANDARD.encode(stored.key.expose()),
            "yIcbtes33gW7BuUkmivh/t/qtuoCXsPCwtqIijLPQPY="
        );
        assert_eq!(
            stored.created_by,
            "3ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22"
        );
    }

    #[test]
    fn older_json_form() {
        let stored = parse(br#"{"bytes":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#)
            .ok()
            .unwrap();
        assert_eq!(
            (stored.algorithm, stored.hmac.is_none()),
            (Algorithm::Aes256, true)
        );
        let stored = parse(
            br#"{"bytes":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","algorithm":"XCHACHA20-POLY1305",
                "created_at":"2022-03-01T10:00:00+01:00","created_by":"me"}"#,
        )
        .ok()
        .unwrap();
        assert_eq!(stored.algorithm, Algorithm::ChaCha20);
        assert_eq!(stored.created_at.to_string(), "2022-03-01T09:00:00Z");
        assert_eq!(stored.created_by, "me");
    }

    #[test]
    fn malformed_values() {
        let golden = include_bytes!("../../../tests/golden/kes-fs/golden-1");
        let message = STANDARD.decode(golden).unwrap();
        // Without field 2, and cut anywhere but behind an optional field.
        assert!(parse(STANDARD.encode(&message[..38]).as_bytes()).is_err());
        for cut in 0..76 {
            assert!(
                parse(STANDARD.encode(&message[..cut]).as_bytes()).is_err(),
                "{cut}"
            );
        }
        for bad in [&b""[..], b"{}", b"***", br#"{"bytes":"AAEC"}"#] {
            assert!(parse(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_value_is_an_answer(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse_protobuf(&bytes);
        }
    }
}
