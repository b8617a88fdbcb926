//! The records of the index: what they hold, and how they are encoded and sealed.
//!
//! A record is CBOR (RFC 8949; integer keys, so that later versions can add fields), sealed with XChaCha20-Poly1305 under a
//! key derived from the store key:
//!
//! ```text
//! offset size  field
//! 0      1     format version, 1
//! 1      8     commit sequence, little-endian
//! 9      24    random nonce
//! 33     n     ciphertext of the CBOR record
//! 33+n   16    tag
//! ```
//!
//! The additional data is the name of the keyspace, a zero byte, bytes 0..9 of the value, and the index key: a value moved to
//! another key, or given another sequence, does not open. The 192-bit nonce is random, so that it may be drawn without a counter
//! for as many records as a store will ever see.

use std::collections::BTreeMap;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use minicbor::{Decode, Encode};

use crate::error::{Error, Result};
use crate::secret::Secret;

const VERSION: u8 = 1;
const HEAD: usize = 33;

/// Which mode of server-side encryption sealed an object key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Mode {
    #[n(0)]
    SseS3,
    #[n(1)]
    SseKms,
    #[n(2)]
    SseC,
}

/// How an object key is sealed: everything needed to open it again but the external key itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Encryption {
    #[n(0)]
    pub mode: Mode,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub iv: [u8; 32],
    #[cbor(n(2), with = "minicbor::bytes")]
    pub sealed_key: [u8; 64],
    /// The wrapped data key; absent for SSE-C.
    #[n(3)]
    pub kms: Option<KmsKey>,
}

/// A data key as the key service wrapped it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct KmsKey {
    /// Which key service: `embedded`, `kes`, `static`.
    #[n(0)]
    pub source: String,
    #[n(1)]
    pub name: String,
    #[n(2)]
    pub version: u32,
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ciphertext: Vec<u8>,
    /// The context the client gave, without the entry the server adds.
    #[n(4)]
    pub context: BTreeMap<String, String>,
    /// The key id as the request or the bucket's default gave it; none where the default key was meant.
    #[n(5)]
    pub id_as_given: Option<String>,
    #[n(6)]
    pub bucket_key: bool,
}

/// One run of sectors in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Extent {
    #[n(0)]
    pub segment: u64,
    /// First sector of the extent, its head included.
    #[n(1)]
    pub start: u32,
    /// Sectors in front of the data.
    #[n(2)]
    pub lead: u8,
    /// Length in sectors, head and tail included.
    #[n(3)]
    pub sectors: u32,
    /// Sequence of the extent, as its head names it.
    #[n(4)]
    pub sequence: u64,
}

/// Where the bytes of one stream (a whole object or one part) lie.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Place {
    /// Nothing is stored.
    #[n(0)]
    Empty,
    /// In the index, under the sequence of the commit that brought it.
    #[n(1)]
    Inline,
    /// In segments; every extent but the last is full.
    #[n(2)]
    Extents(#[n(0)] Vec<Extent>),
}

/// One stream of bytes, sealed as DARE 2.0 packages or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Stream {
    /// Plaintext bytes.
    #[n(0)]
    pub size: u64,
    /// Nonce of the DARE stream; none where the stream is not sealed.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub nonce: Option<[u8; 12]>,
    #[n(2)]
    pub place: Place,
}

/// One part of a completed multipart object, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PartRef {
    #[n(0)]
    pub number: u16,
    /// Plaintext bytes.
    #[n(1)]
    pub size: u64,
}

/// What an object is made of.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Data {
    #[n(0)]
    Single(#[n(0)] Stream),
    /// The parts stand under the upload's id in the index of parts.
    #[n(1)]
    Parts(#[n(0)] UploadId, #[n(1)] Vec<PartRef>),
}

/// Identifies a multipart upload: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct UploadId(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl UploadId {
    /// Parses the 32 lower-case hex digits that `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| !text.starts_with('+'))
            .map(|n| UploadId(n.to_be_bytes()))
    }
}

impl std::fmt::Display for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl std::fmt::Debug for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// What a client gives with an object and gets back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Metadata {
    /// Standard headers by lower-case name (`content-type`, `cache-control`, …).
    #[n(0)]
    pub headers: BTreeMap<String, String>,
    /// User metadata by lower-case name, without the `x-amz-meta-` prefix.
    #[n(1)]
    pub user: BTreeMap<String, String>,
}

/// The record of an object.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Object {
    /// Plaintext bytes.
    #[n(0)]
    pub size: u64,
    /// Milliseconds since 1970.
    #[n(1)]
    pub modified: u64,
    /// As the client sees it, without quotes.
    #[n(2)]
    pub etag: String,
    #[n(3)]
    pub metadata: Metadata,
    #[n(4)]
    pub encryption: Option<Encryption>,
    /// Checksums, opaque to the engine: sealed under the object key where there is one.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub checksum: Option<Vec<u8>>,
    #[n(6)]
    pub data: Data,
    /// Where a copy of the wrapped object key lies in a segment, for recovery.
    #[n(7)]
    pub key_extent: Option<Extent>,
    /// The commit that brought the data, where a later one changed the record around it.
    #[n(8)]
    pub origin: Option<u64>,
}

impl Object {
    /// The commit that brought the data. Readers hold the data by it, and a small object's bytes stand under it in the index;
    /// `sequence` is the record's own.
    pub fn origin(&self, sequence: u64) -> u64 {
        self.origin.unwrap_or(sequence)
    }

    /// Every extent this record names itself; those of parts stand in their own records.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let data: &[Extent] = match &self.data {
            Data::Single(stream) => stream.extents(),
            Data::Parts(..) => &[],
        };
        data.iter().copied().chain(self.key_extent)
    }
}

impl Stream {
    pub fn extents(&self) -> &[Extent] {
        match &self.place {
            Place::Extents(extents) => extents,
            Place::Empty | Place::Inline => &[],
        }
    }
}

/// The record of a part, while the upload is open and after it was completed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Part {
    #[n(0)]
    pub modified: u64,
    #[n(1)]
    pub etag: String,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub checksum: Option<Vec<u8>>,
    #[n(3)]
    pub stream: Stream,
}

/// The record of an open multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Upload {
    #[n(0)]
    pub created: u64,
    #[n(1)]
    pub metadata: Metadata,
    #[n(2)]
    pub encryption: Option<Encryption>,
    /// The checksum algorithm and type the client named, opaque to the engine.
    #[n(3)]
    pub checksum: Option<String>,
    /// Where a copy of the wrapped object key lies in a segment, for recovery.
    #[n(4)]
    pub key_extent: Option<Extent>,
    /// The commit that began the upload, where a later one changed its record.
    #[n(5)]
    pub origin: Option<u64>,
}

impl Upload {
    /// The commit that began the upload; `sequence` is the record's own.
    pub fn origin(&self, sequence: u64) -> u64 {
        self.origin.unwrap_or(sequence)
    }
}

/// The record of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Bucket {
    #[n(0)]
    pub name: String,
    #[n(1)]
    pub created: u64,
    /// Default encryption; none where nothing was set.
    #[n(2)]
    pub encryption: Option<BucketEncryption>,
    /// When the encryption was last set, in milliseconds since 1970; greater at each time. None where it never was.
    #[n(3)]
    pub changed: Option<u64>,
}

/// The encryption configuration of a bucket, as the client put it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct BucketEncryption {
    /// None where a rule names no default (it may still block modes).
    #[n(0)]
    pub mode: Option<Mode>,
    #[n(1)]
    pub kms_key_id: Option<String>,
    #[n(2)]
    pub bucket_key: bool,
    /// Block SSE-C; none where it was never set.
    #[n(3)]
    pub block_sse_c: Option<bool>,
}

/// Seals and opens record values.
pub struct Sealer(XChaCha20Poly1305);

impl Sealer {
    /// `store_key` is the key of the whole store; records get a key derived from it.
    pub fn new(store_key: &Secret) -> Self {
        let key = crate::derive(store_key, b"strongroom index record");
        Sealer(XChaCha20Poly1305::new(&Key::from(*key.expose())))
    }

    /// Seals `record` as the value of `key` in `keyspace` at commit `sequence`.
    pub fn seal<T: Encode<()>>(
        &self,
        keyspace: &str,
        key: &[u8],
        sequence: u64,
        record: &T,
    ) -> Vec<u8> {
        let plain = encode(record);
        let mut head = [0u8; HEAD];
        head[0] = VERSION;
        head[1..9].copy_from_slice(&sequence.to_le_bytes());
        crate::random(&mut head[9..]);
        let sealed = self
            .0
            .encrypt(
                &nonce(&head),
                Payload {
                    msg: &plain,
                    aad: &additional(keyspace, &head, key),
                },
            )
            .expect("a record is far below the cipher's limit");
        let mut out = Vec::with_capacity(HEAD + sealed.len());
        out.extend_from_slice(&head);
        out.extend_from_slice(&sealed);
        out
    }

    /// Opens a value: its commit sequence and its record.
    pub fn open<T: for<'b> Decode<'b, ()>>(
        &self,
        keyspace: &str,
        key: &[u8],
        value: &[u8],
    ) -> Result<(u64, T)> {
        let corrupt = |what: &str| {
            Error::corrupt(
                what,
                format!("index {keyspace} {}", String::from_utf8_lossy(key)),
            )
        };
        let sequence = sequence(value)
            .ok_or_else(|| corrupt("a record too short or of an unknown version"))?;
        let (head, sealed) = value
            .split_at_checked(HEAD)
            .ok_or_else(|| corrupt("a short record"))?;
        let plain = self
            .0
            .decrypt(
                &nonce(head),
                Payload {
                    msg: sealed,
                    aad: &additional(keyspace, head, key),
                },
            )
            .map_err(|_| corrupt("a record that does not authenticate"))?;
        let record = minicbor::decode(&plain)
            .map_err(|e| corrupt(&format!("a record that does not decode ({e})")))?;
        Ok((sequence, record))
    }
}

/// The commit sequence in the clear head of a value; it is authenticated only by opening the value.
pub fn sequence(value: &[u8]) -> Option<u64> {
    let head = value.get(..9)?;
    (head[0] == VERSION).then(|| u64::from_le_bytes(head[1..].try_into().expect("8 bytes")))
}

/// The CBOR form of a record.
pub fn encode<T: Encode<()>>(record: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    minicbor::encode(record, &mut out).expect("writing to memory does not fail");
    out
}

fn nonce(head: &[u8]) -> XNonce {
    XNonce::try_from(&head[9..HEAD]).expect("24 bytes")
}

fn additional(keyspace: &str, head: &[u8], key: &[u8]) -> Vec<u8> {
    let mut aad = Vec::with_capacity(keyspace.len() + 10 + key.len());
    aad.extend_from_slice(keyspace.as_bytes());
    aad.push(0);
    aad.extend_from_slice(&head[..9]);
    aad.extend_from_slice(key);
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        Sealer::new(&Secret::new([7; 32]))
    }

    fn bucket() -> Bucket {
        Bucket {
            name: "photos".into(),
            created: 1,
            encryption: Some(BucketEncryption {
                mode: Some(Mode::SseS3),
                ..Default::default()
            }),
            changed: None,
        }
    }

    #[test]
    fn a_record_opens_only_in_its_place() {
        let s = sealer();
        let value = s.seal("buckets", b"photos", 9, &bucket());
        assert_eq!(
            s.open::<Bucket>("buckets", b"photos", &value).unwrap(),
            (9, bucket())
        );
        assert!(s.open::<Bucket>("buckets", b"other", &value).is_err());
        assert!(s.open::<Bucket>("objects", b"photos", &value).is_err());
        let other = Sealer::new(&Secret::new([8; 32]));
        assert!(other.open::<Bucket>("buckets", b"photos", &value).is_err());
        for i in 0..value.len() {
            let mut bad = value.clone();
            bad[i] ^= 1;
            assert!(
                s.open::<Bucket>("buckets", b"photos", &bad).is_err(),
                "byte {i}"
            );
            assert!(
                s.open::<Bucket>("buckets", b"photos", &value[..i]).is_err(),
                "cut at {i}"
            );
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        // A bucket as it was first written, and a later version's: the four fields of today and a fifth.
        for fields in [3, 5] {
            let mut other = Vec::new();
            let mut encoder = minicbor::Encoder::new(&mut other);
            encoder
                .array(fields)
                .and_then(|e| e.str("b"))
                .and_then(|e| e.u64(5))
                .and_then(|e| e.null())
                .unwrap();
            if fields == 5 {
                encoder.u64(7).and_then(|e| e.str("new")).unwrap();
            }
            let read: Bucket = minicbor::decode(&other).unwrap();
            assert_eq!(read.name, "b");
            assert_eq!(read.changed, (fields == 5).then_some(7));
        }
    }

    #[test]
    fn upload_ids_parse_as_written() {
        let id = UploadId([0xab; 16]);
        assert_eq!(UploadId::parse(&id.to_string()), Some(id));
        for bad in [
            "",
            "+b",
            &"AB".repeat(16),
            &"g".repeat(32),
            &format!("+{}", "a".repeat(31)),
        ] {
            assert_eq!(UploadId::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = minicbor::decode::<Object>(&bytes);
            let _ = minicbor::decode::<Part>(&bytes);
            let _ = sealer().open::<Object>("objects", b"k", &bytes);
        }
    }
}
