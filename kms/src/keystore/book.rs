//! What the keystore holds: keys by name, each with its state and versions, and its plaintext codec.
//!
//! - Version numbers of a name begin at 1, only grow, and are never used twice, also not when the name
//!   is used again after its key was destroyed: that is why a destroyed key leaves its name and next
//!   number behind, and nothing else.
//! - Versions stand in ascending order; the last one is current. Only a destroyed key has none.
//! - The encoding is frozen by `FORMAT.md`; the codec checks every rule above when it reads.

use std::collections::BTreeMap;

use minicbor::decode::Error as DecodeError;
use minicbor::{Decoder, Encoder};
use zeroize::Zeroizing;

use crate::KeyState as State;
use crate::ciphertext::Algorithm;
use crate::limits::{
    CREATED_BY_BYTES_MAX, KEY_ENCODED_BYTES_MAX, KEY_VERSIONS_MAX, KEYS_MAX,
    VERSION_ENCODED_BYTES_MAX,
};
use crate::name;
use crate::secret::Secret32;
use crate::time::Timestamp;

/// Version of the encoding.
const ENCODING: u8 = 1;

/// All keys of a keystore.
#[derive(Clone, Default)]
pub(crate) struct Book {
    pub(crate) keys: BTreeMap<String, Key>,
}

/// One named key.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) state: State,
    pub(crate) created_at: Timestamp,
    /// The number that the next version will have.
    pub(crate) next_version: u32,
    pub(crate) versions: Vec<Version>,
}

/// Key material with its number.
#[derive(Clone)]
pub(crate) struct Version {
    pub(crate) number: u32,
    pub(crate) algorithm: Algorithm,
    pub(crate) material: Secret32,
    /// A second key for message authentication; absent only in keys taken over from old stores.
    pub(crate) hmac: Option<Secret32>,
    pub(crate) created_at: Timestamp,
    pub(crate) created_by: String,
}

impl Key {
    /// The version that new data keys are sealed under.
    pub(crate) fn current(&self) -> Option<&Version> {
        self.versions.last()
    }
}

impl Book {
    /// The plaintext form, in one allocation that is wiped when dropped.
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let versions: usize = self.keys.values().map(|key| key.versions.len()).sum();
        let room =
            16 + self.keys.len() * KEY_ENCODED_BYTES_MAX + versions * VERSION_ENCODED_BYTES_MAX;
        let mut out = Zeroizing::new(Vec::with_capacity(room));
        self.encode_into(&mut out).expect("a Vec takes everything");
        assert!(
            out.len() <= room,
            "a growing buffer leaves keys behind in memory"
        );
        out
    }

    fn encode_into(
        &self,
        out: &mut Vec<u8>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        let mut e = Encoder::new(out);
        e.array(2)?.u8(ENCODING)?.array(self.keys.len() as u64)?;
        for (name, key) in &self.keys {
            let (state, at) = match key.state {
                State::Enabled => (0, 0),
                State::Disabled => (1, 0),
                State::PendingDeletion { at } => (2, at),
                State::Destroyed => (3, 0),
            };
            e.array(7)?.str(name)?.u8(state)?.u64(at)?;
            e.i64(key.created_at.seconds)?.u32(key.created_at.nanos)?;
            e.u32(key.next_version)?.array(key.versions.len() as u64)?;
            for version in &key.versions {
                e.array(7)?.u32(version.number)?;
                e.u8(match version.algorithm {
                    Algorithm::Aes256 => 1,
                    Algorithm::ChaCha20 => 2,
                })?;
                e.bytes(version.material.expose())?;
                match &version.hmac {
                    Some(key) => e.bytes(key.expose())?,
                    None => e.null()?,
                };
                e.i64(version.created_at.seconds)?
                    .u32(version.created_at.nanos)?;
                e.str(&version.created_by)?;
            }
        }
        Ok(())
    }

    /// Reads the plaintext form.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Book, DecodeError> {
        let mut d = Decoder::new(bytes);
        array(&mut d, 2)?;
        if d.u8()? != ENCODING {
            return Err(DecodeError::message("encoding of another version"));
        }
        let mut book = Book::default();
        for _ in 0..length(&mut d, KEYS_MAX)? {
            let (name, key) = decode_key(&mut d)?;
            if book
                .keys
                .last_key_value()
                .is_some_and(|(last, _)| *last >= name)
            {
                return Err(DecodeError::message("names out of order"));
            }
            book.keys.insert(name, key);
        }
        if d.position() != bytes.len() {
            return Err(DecodeError::message("bytes after the end"));
        }
        Ok(book)
    }
}

fn decode_key(d: &mut Decoder<'_>) -> Result<(String, Key), DecodeError> {
    array(d, 7)?;
    let key_name = d.str()?.to_owned();
    name::check(&key_name).map_err(|_| DecodeError::message("not a key name"))?;
    let state = match (d.u8()?, d.u64()?) {
        (0, 0) => State::Enabled,
        (1, 0) => State::Disabled,
        (2, at) => State::PendingDeletion { at },
        (3, 0) => State::Destroyed,
        _ => return Err(DecodeError::message("not a key state")),
    };
    let created_at = timestamp(d)?;
    let next_version = d.u32()?;
    let mut versions: Vec<Version> = Vec::new();
    for _ in 0..length(d, KEY_VERSIONS_MAX)? {
        let version = decode_version(d)?;
        let after = versions.last().map_or(0, |last| last.number);
        if version.number <= after || version.number >= next_version {
            return Err(DecodeError::message("version numbers out of order"));
        }
        versions.push(version);
    }
    if versions.is_empty() != (state == State::Destroyed) {
        return Err(DecodeError::message("versions do not fit the state"));
    }
    Ok((
        key_name,
        Key {
            state,
            created_at,
            next_version,
            versions,
        },
    ))
}

fn decode_version(d: &mut Decoder<'_>) -> Result<Version, DecodeError> {
    array(d, 7)?;
    Ok(Version {
        number: d.u32()?,
        algorithm: match d.u8()? {
            1 => Algorithm::Aes256,
            2 => Algorithm::ChaCha20,
            _ => return Err(DecodeError::message("unknown cipher")),
        },
        material: secret(d)?,
        hmac: if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            None
        } else {
            Some(secret(d)?)
        },
        created_at: timestamp(d)?,
        created_by: {
            let text = d.str()?;
            if text.len() > CREATED_BY_BYTES_MAX {
                return Err(DecodeError::message("creator is too long"));
            }
            text.to_owned()
        },
    })
}

fn array(d: &mut Decoder<'_>, len: u64) -> Result<(), DecodeError> {
    match d.array()? {
        Some(found) if found == len => Ok(()),
        _ => Err(DecodeError::message("array of the wrong length")),
    }
}

fn length(d: &mut Decoder<'_>, max: usize) -> Result<u64, DecodeError> {
    match d.array()? {
        Some(found) if found <= max as u64 => Ok(found),
        _ => Err(DecodeError::message("array too long")),
    }
}

fn secret(d: &mut Decoder<'_>) -> Result<Secret32, DecodeError> {
    Secret32::from_slice(d.bytes()?).ok_or_else(|| DecodeError::message("key is not of 32 bytes"))
}

fn timestamp(d: &mut Decoder<'_>) -> Result<Timestamp, DecodeError> {
    let (seconds, nanos) = (d.i64()?, d.u32()?);
    if nanos >= 1_000_000_000 {
        return Err(DecodeError::message("not a time"));
    }
    Ok(Timestamp { seconds, nanos })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(number: u32, fill: u8) -> Version {
        Version {
            number,
            algorithm: if number.is_multiple_of(2) {
                Algorithm::Aes256
            } else {
                Algorithm::ChaCha20
            },
            material: Secret32::new(&[fill; 32]),
            hmac: fill.is_multiple_of(2).then(|| Secret32::new(&[!fill; 32])),
            created_at: Timestamp {
                seconds: -5,
                nanos: 7,
            },
            created_by: "x".repeat(usize::from(fill) % CREATED_BY_BYTES_MAX),
        }
    }

    pub(crate) fn key(state: State, versions: u32) -> Key {
        Key {
            state,
            created_at: Timestamp {
                seconds: 1,
                nanos: 2,
            },
            next_version: versions + 3,
            versions: (1..=versions)
                .map(|n| version(n, u8::try_from(n).unwrap()))
                .collect(),
        }
    }

    fn book() -> Book {
        let mut book = Book::default();
        book.keys.insert("a".into(), key(State::Enabled, 3));
        book.keys.insert("b".into(), key(State::Disabled, 1));
        book.keys
            .insert("c".into(), key(State::PendingDeletion { at: u64::MAX }, 1));
        book.keys.insert("d".into(), key(State::Destroyed, 0));
        book
    }

    #[test]
    fn round_trip() {
        let bytes = book().encode();
        let back = Book::decode(&bytes).unwrap();
        assert_eq!(*back.encode(), *bytes);
        assert_eq!(back.keys["a"].versions[2].number, 3);
        assert_eq!(
            back.keys["c"].state,
            State::PendingDeletion { at: u64::MAX }
        );
    }

    #[test]
    fn cut_or_longer_is_refused() {
        let mut bytes = book().encode().to_vec();
        for cut in 0..bytes.len() {
            assert!(Book::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        bytes.push(0);
        assert!(Book::decode(&bytes).is_err());
    }

    #[test]
    fn rules_are_checked_when_read() {
        let breaks: [fn(&mut Book); 5] = [
            |b| b.keys.get_mut("a").unwrap().versions.swap(0, 1),
            |b| b.keys.get_mut("a").unwrap().next_version = 3,
            |b| b.keys.get_mut("a").unwrap().state = State::Destroyed,
            |b| b.keys.get_mut("d").unwrap().state = State::Enabled,
            |b| b.keys.get_mut("b").unwrap().versions[0].created_at.nanos = 1_000_000_000,
        ];
        for (i, break_rule) in breaks.iter().enumerate() {
            let mut bad = book();
            break_rule(&mut bad);
            assert!(Book::decode(&bad.encode()).is_err(), "{i}");
        }
    }

    /// The longest key and version there can be fit the room that `encode` reserves.
    #[test]
    fn room_is_enough() {
        let mut longest = key(State::PendingDeletion { at: u64::MAX }, 1);
        longest.created_at = Timestamp {
            seconds: i64::MIN,
            nanos: 999_999_999,
        };
        longest.next_version = u32::MAX;
        let v = &mut longest.versions[0];
        v.number = u32::MAX - 1;
        v.created_by = "y".repeat(CREATED_BY_BYTES_MAX);
        v.hmac = Some(Secret32::new(&[255; 32]));
        v.created_at = longest.created_at;
        let mut book = Book::default();
        for i in 0..100 {
            book.keys.insert(format!("{i:080}"), longest.clone());
        }
        assert!(Book::decode(&book.encode()).is_ok());
        // Even without the versions' own share.
        assert!(book.encode().len() <= 16 + 100 * KEY_ENCODED_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes: Vec<u8>) {
            let _ = Book::decode(&bytes);
        }

        #[test]
        fn mutated_bytes_are_an_answer(at: prop::sample::Index, value: u8) {
            let mut bytes = book().encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Book::decode(&bytes);
        }
    }
}
