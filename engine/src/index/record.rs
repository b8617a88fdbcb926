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
    /// In the index, under the sequence of the record that names it.
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
    pub nonce: Option<minicbor::bytes::ByteArray<12>>,
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
    /// Where the wrapped object key lies in a segment, for recovery.
    #[n(4)]
    pub key_extent: Option<Extent>,
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
