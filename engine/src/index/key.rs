//! Index keys: names in clear, so that listings are ranges, ordered as the raw bytes of the object keys.
//!
//! ```text
//! objects   bucket ‖ 00 ‖ key ‖ 00 00 ‖ version (8 bytes; zero is the null version)
//! uploads   bucket ‖ 00 ‖ key ‖ 00 00 ‖ upload id (16 bytes)
//! parts     upload id ‖ part number (2 bytes, big-endian)
//! inline    commit sequence (8 bytes, big-endian) of the commit that brought it
//! freed     commit sequence (8 bytes, big-endian) of the commit that freed it
//! buckets   bucket
//! tallies   a number (4 bytes, big-endian)
//! all       FF: the mark, an entry of no meaning
//! ```
//!
//! A zero byte within `key` is written as `00 FF`, so that no key is a prefix of another one's entry and raw keys sort as bytes.

use crate::record::UploadId;

/// An entry of no meaning in any keyspace; it begins no bucket and is no whole part or sequence.
pub const MARK: &[u8] = &[0xff];

const NULL_VERSION: [u8; 8] = [0; 8];

fn escape(out: &mut Vec<u8>, raw: &[u8]) {
    for &b in raw {
        out.push(b);
        if b == 0 {
            out.push(0xff);
        }
    }
}

/// What every entry of keys that begin with `prefix` begins with.
pub fn prefix(bucket: &str, prefix: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bucket.len() + prefix.len() + 16);
    out.extend_from_slice(bucket.as_bytes());
    out.push(0);
    escape(&mut out, prefix.as_bytes());
    out
}

pub fn object(bucket: &str, key: &str) -> Vec<u8> {
    let mut out = prefix(bucket, key);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&NULL_VERSION);
    out
}

pub fn upload(bucket: &str, key: &str, id: &UploadId) -> Vec<u8> {
    let mut out = prefix(bucket, key);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&id.0);
    out
}

pub fn part(id: &UploadId, number: u16) -> Vec<u8> {
    let mut out = id.0.to_vec();
    out.extend_from_slice(&number.to_be_bytes());
    out
}

pub fn part_number(entry: &[u8]) -> Option<u16> {
    let (_, tail) = entry.split_at_checked(16)?;
    Some(u16::from_be_bytes(tail.try_into().ok()?))
}

pub fn sequence(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

/// Bucket and raw object key of an entry of `objects` or `uploads`, and what follows them (version or upload id).
pub fn parse(entry: &[u8]) -> Option<(String, String, &[u8])> {
    let end = entry.iter().position(|b| *b == 0)?;
    let bucket = std::str::from_utf8(&entry[..end]).ok()?;
    let (key, rest) = split(bucket, entry)?;
    Some((bucket.to_owned(), key, rest))
}

/// The upload id of an entry of `uploads`.
pub fn upload_id(entry: &[u8]) -> Option<UploadId> {
    let (_, _, id) = parse(entry)?;
    Some(UploadId(id.try_into().ok()?))
}

/// The upload of an entry of `parts`.
pub fn part_upload(entry: &[u8]) -> Option<UploadId> {
    let (id, _) = entry.split_first_chunk::<16>()?;
    Some(UploadId(*id))
}

/// The raw object key of an entry of `objects` or `uploads`, and what follows it.
pub fn split<'a>(bucket: &str, entry: &'a [u8]) -> Option<(String, &'a [u8])> {
    let rest = entry.strip_prefix(bucket.as_bytes())?.strip_prefix(&[0])?;
    let mut raw = Vec::with_capacity(rest.len());
    let mut i = 0;
    loop {
        match (rest.get(i)?, rest.get(i + 1)) {
            (0, Some(0)) => break,
            (0, Some(0xff)) => {
                raw.push(0);
                i += 2;
            }
            (0, _) => return None,
            (&b, _) => {
                raw.push(b);
                i += 1;
            }
        }
    }
    Some((String::from_utf8(raw).ok()?, &rest[i + 2..]))
}

/// The least byte string that is greater than every string beginning with `prefix`; none where there is none.
pub fn successor(mut prefix: Vec<u8>) -> Option<Vec<u8>> {
    while let Some(last) = prefix.pop() {
        if last < 0xff {
            prefix.push(last + 1);
            return Some(prefix);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_is_that_of_raw_bytes(a in "[\\x00-\\x03a-c/é]{0,6}", b in "[\\x00-\\x03a-c/é]{0,6}") {
            prop_assert_eq!(object("bkt", &a).cmp(&object("bkt", &b)), a.as_bytes().cmp(b.as_bytes()));
        }

        #[test]
        fn keys_come_back(key in ".{0,40}") {
            let entry = object("bucket", &key);
            let (raw, version) = split("bucket", &entry).unwrap();
            prop_assert_eq!(&raw, &key);
            prop_assert_eq!(version, NULL_VERSION);
            prop_assert_eq!(parse(&entry), Some(("bucket".into(), key, version)));
        }

        #[test]
        fn any_bytes_are_split_without_panic(entry in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = split("b", &entry);
            let _ = parse(&entry);
            let _ = upload_id(&entry);
            let _ = part_upload(&entry);
            let _ = part_number(&entry);
        }

        #[test]
        fn successor_skips_exactly_the_prefix(p in proptest::collection::vec(any::<u8>(), 0..5), q in proptest::collection::vec(any::<u8>(), 0..6)) {
            let inside = q.starts_with(&p);
            if let Some(s) = successor(p.clone()) {
                prop_assert_eq!(inside, p <= q && q < s);
            } else {
                prop_assert_eq!(inside, p <= q);
            }
        }
    }

    #[test]
    fn a_bucket_is_no_prefix_of_another() {
        assert!(!object("ab", "c").starts_with(&prefix("a", "")));
    }
}
