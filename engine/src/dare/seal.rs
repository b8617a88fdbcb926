//! Sealing: from wherever the plaintext arrives, in pieces of any size, into wherever the packages shall lie.
//!
//! - Out of place, so that sealing is the copy.
//! - The length of the stream is known before its last package begins; so is, at each header, whether its package is the last.
//! - Bytes come out as they go in: nothing is held back inside.

use crate::{
    dare::{
        header::{Cipher, HEADER, Header, NONCE, OVERHEAD, PAYLOAD, TAG, unmarked},
        layout,
    },
    secret::Secret,
    simd::gcm,
};

/// How far one call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the source.
    pub read: usize,
    /// Bytes written to the destination.
    pub written: usize,
}

/// One stream being sealed under one key with one nonce, which must never meet again.
pub struct Sealer {
    key: gcm::Key,
    nonce: [u8; NONCE],
    /// Plaintext bytes not yet taken.
    left: u64,
    plain_len: u64,
    sequence: u64,
    step: Step,
}

/// What comes next in the destination.
enum Step {
    /// A package begins here, if any plaintext is left.
    Package,
    /// The rest of a header.
    Header { header: Header, at: usize },
    /// Payload bytes left in the package.
    Payload { message: gcm::Message, left: usize },
    /// The rest of a tag.
    Tag { tag: [u8; TAG], at: usize },
}

impl Sealer {
    /// Begins a stream of exactly `plain_len` bytes. The top bit of `nonce` is not used.
    ///
    /// # Panics
    /// If `plain_len` is above [`layout::PLAIN_MAX`]: callers bound their streams far below.
    pub fn new(key: &Secret, nonce: [u8; NONCE], plain_len: u64) -> Self {
        assert!(
            plain_len <= layout::PLAIN_MAX,
            "streams are bounded by their owner"
        );
        Self {
            key: gcm::Key::new(key),
            nonce: unmarked(nonce),
            left: plain_len,
            plain_len,
            sequence: 0,
            step: Step::Package,
        }
    }

    /// Length of the whole sealed stream.
    pub fn sealed_len(&self) -> u64 {
        layout::sealed_len(self.plain_len).expect("within the bound")
    }

    /// The stream ends `by` bytes earlier than was said. More than a package of it is still to come, unless none is under way:
    /// what was begun stays as it is.
    pub fn shorten(&mut self, by: u64) {
        let left = self.left.checked_sub(by);
        let left = left.expect("it ends behind what was taken");
        assert!(left > PAYLOAD as u64 || matches!(self.step, Step::Package));
        self.left = left;
        self.plain_len -= by;
    }

    /// Plaintext bytes still to come.
    pub fn plain_left(&self) -> u64 {
        self.left
    }

    /// Whether the whole stream has been taken and written.
    pub fn is_complete(&self) -> bool {
        self.left == 0 && matches!(self.step, Step::Package)
    }

    /// Whether output is due for which no more source is needed: the rest of a tag that found no room.
    pub fn owes(&self) -> bool {
        matches!(self.step, Step::Tag { .. })
    }

    /// Seals as much of `src` as there is, the stream still takes and `dst` holds.
    ///
    /// `dst` is the place right behind what earlier calls wrote. Call again with the rest, with more source or with
    /// more room; with no source left, a call may still have headers or tags to write.
    pub fn update(&mut self, src: &[u8], dst: &mut [u8]) -> Progress {
        let mut read = 0;
        let mut written = 0;
        loop {
            let room = dst.len() - written;
            match &mut self.step {
                Step::Package => {
                    let src = &src[read..];
                    let payload = self.left.min(PAYLOAD as u64) as usize;
                    if payload == 0 || src.is_empty() || room == 0 {
                        break;
                    }
                    let header = Header::encode(
                        Cipher::Aes256Gcm,
                        payload,
                        &self.nonce,
                        payload as u64 == self.left,
                    );
                    if src.len() < payload || room < payload + OVERHEAD {
                        self.step = Step::Header { header, at: 0 };
                        continue;
                    }
                    self.package(&header, &src[..payload], &mut dst[written..]);
                    self.left -= payload as u64;
                    self.sequence += 1;
                    read += payload;
                    written += payload + OVERHEAD;
                }
                Step::Header { header, at } => {
                    let n = room.min(HEADER - *at);
                    dst[written..written + n].copy_from_slice(&header.as_bytes()[*at..*at + n]);
                    written += n;
                    *at += n;
                    if *at < HEADER {
                        break;
                    }
                    let message = self
                        .key
                        .begin(&header.nonce_v20(place(self.sequence)), &header.aad());
                    self.step = Step::Payload {
                        left: header.payload(),
                        message,
                    };
                }
                Step::Payload { message, left } => {
                    let n = room.min(src.len() - read).min(*left);
                    message.seal(
                        &self.key,
                        &src[read..read + n],
                        &mut dst[written..written + n],
                    );
                    read += n;
                    written += n;
                    self.left -= n as u64;
                    *left -= n;
                    if *left > 0 {
                        break;
                    }
                    let tag = message.finish(&self.key);
                    self.sequence += 1;
                    self.step = Step::Tag { tag, at: 0 };
                }
                Step::Tag { tag, at } => {
                    let n = room.min(TAG - *at);
                    dst[written..written + n].copy_from_slice(&tag[*at..*at + n]);
                    written += n;
                    *at += n;
                    if *at < TAG {
                        break;
                    }
                    self.step = Step::Package;
                }
            }
        }
        Progress { read, written }
    }

    /// One whole package, to the front of `dst`.
    fn package(&self, header: &Header, src: &[u8], dst: &mut [u8]) {
        let (head, rest) = dst.split_at_mut(HEADER);
        let (body, rest) = rest.split_at_mut(src.len());
        head.copy_from_slice(header.as_bytes());
        let nonce = header.nonce_v20(place(self.sequence));
        let tag = self.key.seal(&nonce, &header.aad(), src, body);
        rest[..TAG].copy_from_slice(&tag);
    }
}

/// Seals a small thing in one go: an object key, an ETag, a checksum.
pub fn seal_blob(key: &Secret, nonce: [u8; NONCE], plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(key, nonce, plain.len() as u64);
    let len = usize::try_from(sealer.sealed_len()).expect("a blob fits in memory");
    let mut sealed = vec![0; len];
    sealer.update(plain, &mut sealed);
    assert!(sealer.is_complete());
    sealed
}

fn place(sequence: u64) -> u32 {
    u32::try_from(sequence).expect("a stream has at most 2^32 packages")
}
