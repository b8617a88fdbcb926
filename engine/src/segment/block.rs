//! The blocks that describe extents inside a segment: head, tail, and the wrapped object key.
//!
//! A block begins on a sector and fills whole sectors; the rest is zero.
//!
//! ```text
//! offset size  field (integers little-endian)
//! 0      8     "STRGROOM"
//! 8      1     format version, 1
//! 9      1     kind: 1 head, 2 tail, 3 key, 4 copy
//! 10     2     zero
//! 12     4     length of the whole extent in sectors
//! 16     8     segment
//! 24     4     sector within the segment where this block begins
//! 28     4     length of the ciphertext and its tag
//! 32     8     extent sequence
//! 40     8     sequence of the last commit known to be durable when the block was made
//! 48     24    random nonce
//! 72     n     ciphertext of the payload (CBOR) ‖ tag (16)
//! ```
//!
//! The payload is sealed with XChaCha20-Poly1305 under a key derived from the store key; the additional data is bytes 0..48, so that
//! a block names its own place and cannot be moved. The tag is the block's MAC: what does not open is not a block.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use minicbor::{Decode, Encode};

use crate::error::{Error, Result};
use crate::limits::SECTOR;
use crate::record::{Encryption, Object, Part, UploadId};
use crate::secret::Secret;

const MAGIC: &[u8; 8] = b"STRGROOM";
const VERSION: u8 = 1;
const CLEAR: usize = 48;
const HEAD: usize = 72;
const TAG: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Head = 1,
    Tail = 2,
    Key = 3,
    Copy = 4,
}

/// The clear part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub kind: Kind,
    /// Sectors of the whole extent.
    pub sectors: u32,
    pub segment: u64,
    /// Where this block begins.
    pub position: u32,
    pub sequence: u64,
    pub synced: u64,
}

/// What is known of an extent when it is begun.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Head {
    #[n(0)]
    pub bucket: String,
    #[n(1)]
    pub key: String,
    #[n(2)]
    pub part: Option<(UploadId, u16)>,
    /// Sequence of the stream's first extent, and this one's number within the stream.
    #[n(3)]
    pub stream: u64,
    #[n(4)]
    pub number: u32,
    /// Plaintext bytes of the whole stream.
    #[n(5)]
    pub size: u64,
    #[cbor(n(6), with = "minicbor::bytes")]
    pub nonce: Option<[u8; 12]>,
    /// Sequence of the extent that holds the wrapped object key.
    #[n(7)]
    pub key_sequence: Option<u64>,
}

/// What is known of an extent when all of it is written.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Tail {
    #[n(0)]
    pub stream: u64,
    #[n(1)]
    pub number: u32,
    /// Bytes between the head and this block that belong to the stream.
    #[n(2)]
    pub bytes: u64,
    /// In the stream's last extent: the record, without its extents and without the wrapped key.
    #[n(3)]
    pub record: Option<TailRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum TailRecord {
    #[n(0)]
    Object(#[n(0)] Box<Object>),
    #[n(1)]
    Part(#[n(0)] Part),
}

/// The wrapped object key of an object or an upload.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WrappedKey {
    #[n(0)]
    pub bucket: String,
    #[n(1)]
    pub key: String,
    #[n(2)]
    pub upload: Option<UploadId>,
    #[n(3)]
    pub encryption: Encryption,
    /// Where it replaces the key of an object put in one piece: sequence of the first extent of the data it opens. The heads
    /// of that data name the first key.
    #[n(4)]
    pub stream: Option<u64>,
}

/// A piece of a copy of the index.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Copy {
    #[n(0)]
    pub group: CopyGroup,
    /// Number of this piece in its group, and whether it is the last.
    #[n(1)]
    pub number: u32,
    #[n(2)]
    pub last: bool,
    /// No segment had this id or a later one when the piece was made.
    #[n(3)]
    pub next_segment: u64,
    #[n(4)]
    pub entries: Vec<CopyEntry>,
}

/// What one round of copying covers: every change by the commits after `from`, up to `to`; some later ones can be among them.
/// From 0 on it is the whole index, and what older groups say is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct CopyGroup {
    /// Extent sequence of its first piece.
    #[n(0)]
    pub id: u64,
    #[n(1)]
    pub from: u64,
    #[n(2)]
    pub to: u64,
}

/// An entry of the index as it lies there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CopyEntry {
    /// Number of the keyspace: 0 objects, 1 uploads, 2 parts, 3 buckets.
    #[n(0)]
    pub space: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub key: Vec<u8>,
    /// Commit sequence of the record; where it was removed, that of a commit at or after the removal.
    #[n(2)]
    pub sequence: u64,
    /// The sealed record; none where it was removed.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub value: Option<Vec<u8>>,
    /// The bytes of its stream, where these lie in the index.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub inline: Option<Vec<u8>>,
}

/// Sectors that a block with `payload` bytes of CBOR fills.
pub fn sectors_for(payload: usize) -> u32 {
    (HEAD + payload + TAG).div_ceil(SECTOR) as u32
}

/// Bytes of the block that begins with these, as its clear part claims; none where no block begins here.
pub fn claimed_bytes(head: &[u8]) -> Option<usize> {
    if head.get(..9)? != [MAGIC.as_slice(), &[VERSION]].concat() {
        return None;
    }
    let sealed = u32::from_le_bytes(head.get(28..32)?.try_into().expect("4 bytes"));
    Some(HEAD + sealed as usize)
}

/// Seals and opens blocks.
pub struct Sealer(XChaCha20Poly1305);

impl Sealer {
    pub fn new(store_key: &Secret) -> Self {
        let key = crate::derive(store_key, b"strongroom segment block");
        Sealer(XChaCha20Poly1305::new(&Key::from(*key.expose())))
    }

    /// Writes the block over all of `out`, which must be whole sectors and large enough.
    pub fn seal<T: Encode<()>>(&self, block: &Block, payload: &T, out: &mut [u8]) -> Result<()> {
        let plain = crate::record::encode(payload);
        let needed = HEAD + plain.len() + TAG;
        if needed > out.len() {
            return Err(Error::TooLarge {
                what: "the description of an extent",
                got: needed as u64,
                max: out.len() as u64,
            });
        }
        assert!(out.len().is_multiple_of(SECTOR));
        out.fill(0);
        let mut nonce = [0u8; 24];
        crate::random(&mut nonce);
        out[..8].copy_from_slice(MAGIC);
        out[8] = VERSION;
        out[9] = block.kind as u8;
        out[12..16].copy_from_slice(&block.sectors.to_le_bytes());
        out[16..24].copy_from_slice(&block.segment.to_le_bytes());
        out[24..28].copy_from_slice(&block.position.to_le_bytes());
        out[28..32].copy_from_slice(&((plain.len() + TAG) as u32).to_le_bytes());
        out[32..40].copy_from_slice(&block.sequence.to_le_bytes());
        out[40..48].copy_from_slice(&block.synced.to_le_bytes());
        out[CLEAR..HEAD].copy_from_slice(&nonce);
        let sealed = self
            .0
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: &plain,
                    aad: &out[..CLEAR],
                },
            )
            .expect("a block is far below the cipher's limit");
        out[HEAD..HEAD + sealed.len()].copy_from_slice(&sealed);
        Ok(())
    }

    /// Opens the block at the start of `bytes`, which may hold more than the block. None where there is no intact block.
    pub fn open(&self, bytes: &[u8]) -> Option<(Block, Vec<u8>)> {
        let (block, sealed) = parse(bytes)?;
        let plain = self
            .0
            .decrypt(
                &XNonce::try_from(&bytes[CLEAR..HEAD]).ok()?,
                Payload {
                    msg: sealed,
                    aad: &bytes[..CLEAR],
                },
            )
            .ok()?;
        Some((block, plain))
    }
}

/// The clear part and the ciphertext, as they claim to be: nothing is authenticated.
pub fn parse(bytes: &[u8]) -> Option<(Block, &[u8])> {
    let head = bytes.get(..HEAD)?;
    let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    if &head[..8] != MAGIC || head[8] != VERSION || head[10..12] != [0, 0] {
        return None;
    }
    let kind = match head[9] {
        1 => Kind::Head,
        2 => Kind::Tail,
        3 => Kind::Key,
        4 => Kind::Copy,
        _ => return None,
    };
    let sealed = bytes.get(HEAD..HEAD.checked_add(u32_at(28) as usize)?)?;
    let block = Block {
        kind,
        sectors: u32_at(12),
        segment: u64_at(16),
        position: u32_at(24),
        sequence: u64_at(32),
        synced: u64_at(40),
    };
    Some((block, sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Block, Head) {
        let block = Block {
            kind: Kind::Head,
            sectors: 9,
            segment: 3,
            position: 77,
            sequence: 12,
            synced: 11,
        };
        let head = Head {
            bucket: "photos".into(),
            key: "a/b".into(),
            part: Some((UploadId([1; 16]), 4)),
            stream: 12,
            number: 0,
            size: 5,
            nonce: Some([9; 12]),
            key_sequence: None,
        };
        (block, head)
    }

    #[test]
    fn a_block_opens_as_sealed_and_not_when_changed() {
        let sealer = Sealer::new(&Secret::new([1; 32]));
        let (block, head) = sample();
        let mut out = vec![0xee; SECTOR];
        sealer.seal(&block, &head, &mut out).unwrap();
        let (b, payload) = sealer.open(&out).unwrap();
        assert_eq!(
            (b, minicbor::decode::<Head>(&payload).unwrap()),
            (block, head)
        );
        let end = HEAD + u32::from_le_bytes(out[28..32].try_into().unwrap()) as usize;
        for i in 0..end {
            let mut bad = out.clone();
            bad[i] ^= 0x40;
            assert!(sealer.open(&bad).is_none(), "byte {i}");
        }
        assert!(out[end..].iter().all(|b| *b == 0));
        assert!(Sealer::new(&Secret::new([2; 32])).open(&out).is_none());
    }

    #[test]
    fn a_payload_too_large_is_refused() {
        let (block, mut head) = sample();
        head.key = "k".repeat(SECTOR);
        let err = Sealer::new(&Secret::new([1; 32]))
            .seal(&block, &head, &mut vec![0; SECTOR])
            .unwrap_err();
        assert!(matches!(err, Error::TooLarge { .. }));
        assert_eq!(sectors_for(crate::record::encode(&head).len()), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
            if magic && bytes.len() > 12 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8] = 1;
                bytes[9] = 1;
            }
            let _ = parse(&bytes);
            let _ = Sealer::new(&Secret::new([1; 32])).open(&bytes);
        }
    }
}
