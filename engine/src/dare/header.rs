//! The 16 bytes in front of every package: where each field lies, and which nonce and associated data they stand for.
//!
//! ```text
//! 2.0  0x20 | cipher | LE16(payload - 1) | 12 bytes: stream nonce, its top bit replaced by the final flag
//! 1.0  0x10 | cipher | LE16(payload - 1) | LE32(sequence) | 8 random bytes of the stream
//! ```
//!
//! The first four bytes are the associated data of both. The nonce of 1.0 is the other twelve as they stand; that of
//! 2.0 has the sequence number, which is not stored, XORed into the last four. So the final flag is authenticated as
//! part of the nonce, and no package opens at another place than its own.

use crate::dare::open::OpenError;

/// Plaintext bytes of every package but the last.
pub const PAYLOAD: usize = 65_536;
/// Bytes of a header.
pub const HEADER: usize = 16;
/// Bytes of a tag.
pub const TAG: usize = 16;
/// What a package adds to its payload.
pub const OVERHEAD: usize = HEADER + TAG;
/// Bytes of a full package.
pub const PACKAGE: usize = PAYLOAD + OVERHEAD;
/// Bytes of associated data at the front of a header.
pub const AAD: usize = 4;
/// Bytes of a stream nonce.
pub const NONCE: usize = 12;

const FINAL: u8 = 0x80;

/// Format version, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Legacy: no mark on the last package, so a cut between packages shows only against a length kept elsewhere.
    V10,
    /// What is written today.
    V20,
}

impl Version {
    /// Reads the version byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x10 => Some(Self::V10),
            0x20 => Some(Self::V20),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::V10 => 0x10,
            Self::V20 => 0x20,
        }
    }
}

/// The AEAD of a stream. Both take 32-byte keys, 12-byte nonces and 16-byte tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    /// Reads the cipher byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x00 => Some(Self::Aes256Gcm),
            0x01 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Aes256Gcm => 0x00,
            Self::ChaCha20Poly1305 => 0x01,
        }
    }
}

/// A header as it stands in front of a package. Its fields are read as they are; [`open`](crate::dare::open) judges them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header([u8; HEADER]);

impl Header {
    /// The 2.0 header of a package of `payload` bytes.
    pub fn encode(cipher: Cipher, payload: usize, nonce: &[u8; NONCE], last: bool) -> Self {
        assert!((1..=PAYLOAD).contains(&payload), "a package is never empty");
        let mut bytes = [0; HEADER];
        bytes[0] = Version::V20.byte();
        bytes[1] = cipher.byte();
        let length = u16::try_from(payload - 1).expect("at most 65,535");
        bytes[2..AAD].copy_from_slice(&length.to_le_bytes());
        bytes[AAD..].copy_from_slice(nonce);
        bytes[AAD] = mark(nonce[0], last);
        Self(bytes)
    }

    /// The first 16 bytes of `package`, if there are as many.
    pub fn read(package: &[u8]) -> Option<Self> {
        package.first_chunk().copied().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8; HEADER] {
        &self.0
    }

    pub fn version(&self) -> Result<Version, OpenError> {
        Version::from_byte(self.0[0]).ok_or(OpenError::Version)
    }

    pub fn cipher(&self) -> Result<Cipher, OpenError> {
        Cipher::from_byte(self.0[1]).ok_or(OpenError::Cipher)
    }

    /// Payload bytes, 1 to 65,536: what is stored is one less.
    pub fn payload(&self) -> usize {
        usize::from(u16::from_le_bytes([self.0[2], self.0[3]])) + 1
    }

    /// Whether the package calls itself the last of its stream (2.0).
    pub fn is_last(&self) -> bool {
        self.0[AAD] & FINAL != 0
    }

    /// The stream nonce with the final flag cleared (2.0).
    pub fn stream_nonce(&self) -> [u8; NONCE] {
        let mut nonce = self.tail();
        nonce[0] = mark(nonce[0], false);
        nonce
    }

    /// The sequence number, which only 1.0 stores.
    pub fn sequence_v10(&self) -> u32 {
        u32::from_le_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Associated data: the bytes that no nonce covers.
    pub fn aad(&self) -> [u8; AAD] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }

    /// The AEAD nonce of this package at place `sequence` of a 2.0 stream.
    pub fn nonce_v20(&self, sequence: u32) -> [u8; NONCE] {
        let mut nonce = self.tail();
        let place = sequence.to_le_bytes();
        nonce[NONCE - 4..]
            .iter_mut()
            .zip(place)
            .for_each(|(n, p)| *n ^= p);
        nonce
    }

    /// The AEAD nonce of a 1.0 package, whose place is part of its header.
    pub fn nonce_v10(&self) -> [u8; NONCE] {
        self.tail()
    }

    fn tail(&self) -> [u8; NONCE] {
        *self.0.last_chunk().expect("12 of 16 bytes")
    }
}

/// Clears the final flag, which is no part of a stream's nonce.
pub fn unmarked(mut nonce: [u8; NONCE]) -> [u8; NONCE] {
    nonce[0] = mark(nonce[0], false);
    nonce
}

fn mark(byte: u8, last: bool) -> u8 {
    if last { byte | FINAL } else { byte & !FINAL }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE_A: [u8; NONCE] = [
        0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab,
    ];

    #[test]
    fn the_bytes_are_the_published_ones() {
        let last = Header::encode(Cipher::Aes256Gcm, 5, &NONCE_A, true);
        assert_eq!(
            hex::encode(last.as_bytes()),
            "20000400a0a1a2a3a4a5a6a7a8a9aaab"
        );
        let inner = Header::encode(Cipher::ChaCha20Poly1305, PAYLOAD, &NONCE_A, false);
        assert_eq!(
            hex::encode(inner.as_bytes()),
            "2001ffff20a1a2a3a4a5a6a7a8a9aaab"
        );
    }

    #[test]
    fn fields_read_back() {
        for (payload, last) in [(1, true), (2, false), (65_535, true), (65_536, false)] {
            let header = Header::encode(Cipher::Aes256Gcm, payload, &NONCE_A, last);
            assert_eq!(header.version(), Ok(Version::V20));
            assert_eq!(header.cipher(), Ok(Cipher::Aes256Gcm));
            assert_eq!(header.payload(), payload);
            assert_eq!(header.is_last(), last);
            assert_eq!(header.stream_nonce(), unmarked(NONCE_A));
        }
    }

    #[test]
    fn the_nonce_holds_place_and_final_flag() {
        let inner = Header::encode(Cipher::Aes256Gcm, PAYLOAD, &NONCE_A, false);
        let last = Header::encode(Cipher::Aes256Gcm, PAYLOAD, &NONCE_A, true);
        assert_eq!(inner.nonce_v20(0)[0], 0x20);
        assert_eq!(last.nonce_v20(0)[0], 0xa0);
        assert_eq!(inner.nonce_v20(0x0403_0201)[8..], [0xa9, 0xab, 0xa9, 0xaf]);
        assert_eq!(inner.aad(), [0x20, 0x00, 0xff, 0xff]);
    }

    #[test]
    fn unknown_bytes_are_refused() {
        for byte in 0..=255 {
            let known = matches!(byte, 0x10 | 0x20);
            assert_eq!(Version::from_byte(byte).is_some(), known);
            assert_eq!(Cipher::from_byte(byte).is_some(), byte < 2);
        }
        assert!(Header::read(&[0x20; 15]).is_none());
    }
}
