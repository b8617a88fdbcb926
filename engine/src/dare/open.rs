//! Opening: packages checked against the place they were found at, then against their tag, and only then handed out.
//!
//! - Nothing is in the destination unless the tag held: on any error it is wiped.
//! - [`Opener`] knows the length of its stream, so a missing end, an early end and a package too many are all found, in
//!   1.0 too, which cannot mark its end.
//! - [`open_blob`] takes what has no length recorded elsewhere, and relies on the final flag.
//! - What is refused, and in which order, follows `sio`, whose streams MinIO keeps.

use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInOut, aead::inout::InOutBuf};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    dare::{
        header::{
            AAD, Cipher, HEADER, Header, NONCE, OVERHEAD, PACKAGE, PAYLOAD, TAG, Version, unmarked,
        },
        layout,
    },
    secret::Secret,
    simd::gcm,
};

/// Why sealed bytes were refused. Apart from a wrong key ([`OpenError::Tag`]) each means that they are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("data after the final package")]
    AfterFinal,
    #[error("a package has a wrong length")]
    Size,
    #[error("unsupported package version")]
    Version,
    #[error("unsupported or changing cipher")]
    Cipher,
    #[error("a package of another stream")]
    Nonce,
    #[error("a package at another place than its own")]
    Sequence,
    #[error("authentication failed")]
    Tag,
    #[error("the stream ends before its final package")]
    Truncated,
}

/// One stream to be opened, package by package in any order.
pub struct Opener {
    aead: Aead,
    expected: Expected,
}

/// What is known of a stream beside its key.
struct Expected {
    cipher: Cipher,
    plain_len: u64,
    /// What 2.0 headers must repeat; 1.0 has nothing of the kind.
    nonce: Option<[u8; NONCE]>,
}

/// Checks what can be checked of package `seq` without the key: everything but its tag.
pub fn check_package(
    nonce: [u8; NONCE],
    plain_len: u64,
    seq: u64,
    package: &[u8],
) -> Result<(), OpenError> {
    Expected::new(nonce, plain_len)
        .check(seq, package)
        .map(|_| ())
}

impl Opener {
    /// A stream as [`Sealer`](crate::dare::Sealer) writes it, under the nonce it was given.
    ///
    /// # Panics
    /// If `plain_len` is above [`layout::PLAIN_MAX`].
    pub fn new(key: &Secret, nonce: [u8; NONCE], plain_len: u64) -> Self {
        assert!(plain_len <= layout::PLAIN_MAX);
        Self {
            aead: Aead::new(Cipher::Aes256Gcm, key),
            expected: Expected::new(nonce, plain_len),
        }
    }

    /// A stream of another writer, of whose choices only this header is known: that of the first package to be read,
    /// wherever in the stream it stands. Version, cipher and nonce of the others must agree with it.
    pub fn foreign(key: &Secret, plain_len: u64, header: Header) -> Result<Self, OpenError> {
        if plain_len > layout::PLAIN_MAX {
            return Err(OpenError::Size);
        }
        let version = header.version()?;
        let cipher = header.cipher()?;
        Ok(Self {
            aead: Aead::new(cipher, key),
            expected: Expected {
                cipher,
                plain_len,
                nonce: (version == Version::V20).then(|| header.stream_nonce()),
            },
        })
    }

    /// Plaintext length of the stream.
    pub fn plain_len(&self) -> u64 {
        self.expected.plain_len
    }

    /// Opens package `seq` into the front of `dst` and returns its plaintext length.
    ///
    /// `package` is exactly that package. On any error all of `dst` is wiped.
    ///
    /// # Panics
    /// If `dst` is shorter than what the stream has at that place ([`layout::payload_len`]).
    pub fn open_package(
        &self,
        seq: u64,
        package: &[u8],
        dst: &mut [u8],
    ) -> Result<usize, OpenError> {
        let result = self
            .expected
            .check(seq, package)
            .and_then(|(header, nonce, payload)| {
                let (body, tag) = body_and_tag(package, payload)?;
                let dst = &mut dst[..payload];
                self.aead.open(&nonce, &header.aad(), body, tag, dst)?;
                Ok(payload)
            });
        if result.is_err() {
            dst.zeroize();
        }
        result
    }

    /// Opens package `seq` where it lies; the plaintext is a part of `package`, all of which is wiped on error.
    pub fn open_in_place<'a>(
        &self,
        seq: u64,
        package: &'a mut [u8],
    ) -> Result<&'a mut [u8], OpenError> {
        match self.open_inside(seq, package) {
            Ok(payload) => Ok(&mut package[HEADER..HEADER + payload]),
            Err(error) => {
                package.zeroize();
                Err(error)
            }
        }
    }

    fn open_inside(&self, seq: u64, package: &mut [u8]) -> Result<usize, OpenError> {
        let (header, nonce, payload) = self.expected.check(seq, package)?;
        let (body, tag) = package[HEADER..].split_at_mut(payload);
        let tag = tag.first_chunk::<TAG>().ok_or(OpenError::Size)?;
        self.aead.open_in_place(&nonce, &header.aad(), body, tag)?;
        Ok(payload)
    }
}

impl Expected {
    /// A stream as [`Sealer`](crate::dare::Sealer) writes it.
    fn new(nonce: [u8; NONCE], plain_len: u64) -> Self {
        Expected {
            cipher: Cipher::Aes256Gcm,
            plain_len,
            nonce: Some(unmarked(nonce)),
        }
    }

    /// Everything a header can say wrong, before any key is used.
    fn check(&self, seq: u64, package: &[u8]) -> Result<(Header, [u8; NONCE], usize), OpenError> {
        let count = layout::packages(self.plain_len);
        if seq >= count {
            return Err(OpenError::AfterFinal);
        }
        let sequence = u32::try_from(seq).map_err(|_| OpenError::Size)?;
        let header = Header::read(package).ok_or(OpenError::Size)?;
        if package.len() <= OVERHEAD {
            return Err(OpenError::Size);
        }
        let version = header.version()?;
        if (version == Version::V20) != self.nonce.is_some() {
            return Err(OpenError::Version);
        }
        if header.cipher()? != self.cipher {
            return Err(OpenError::Cipher);
        }
        let payload = layout::payload_len(self.plain_len, seq);
        if header.payload() != payload || package.len() != payload + OVERHEAD {
            return Err(OpenError::Size);
        }
        let Some(expected) = self.nonce else {
            if header.sequence_v10() != sequence {
                return Err(OpenError::Sequence);
            }
            return Ok((header, header.nonce_v10(), payload));
        };
        match (header.is_last(), seq + 1 == count) {
            (true, false) => return Err(OpenError::AfterFinal),
            (false, true) => return Err(OpenError::Truncated),
            _ => {}
        }
        if !bool::from(header.stream_nonce().ct_eq(&expected)) {
            return Err(OpenError::Nonce);
        }
        Ok((header, header.nonce_v20(sequence), payload))
    }
}

/// Opens a whole sealed thing of any length, of version `min` or newer.
///
/// Zero bytes are an empty 1.0 stream, and so accepted only where 1.0 is.
pub fn open_blob(
    key: &Secret,
    sealed: &[u8],
    min: Version,
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    // Reserved at once: a vector that grows leaves plaintext behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(sealed.len()));
    match sealed.first().map(|&byte| Version::from_byte(byte)) {
        None if min == Version::V10 => {}
        None => return Err(OpenError::Truncated),
        Some(_) if min == Version::V10 && sealed.len() < HEADER => {
            return Err(OpenError::Truncated);
        }
        Some(Some(Version::V10)) if min == Version::V10 => blob_v10(key, sealed, &mut plain)?,
        Some(_) => blob_v20(key, sealed, &mut plain)?,
    }
    Ok(plain)
}

fn blob_v20(key: &Secret, sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), OpenError> {
    let mut reference: Option<(Header, Cipher, Aead)> = None;
    let mut ended = false;
    for (seq, package) in sealed.chunks(PACKAGE).enumerate() {
        if ended {
            return Err(OpenError::AfterFinal);
        }
        if package.len() <= OVERHEAD {
            return Err(OpenError::Size);
        }
        let header = Header::read(package).ok_or(OpenError::Size)?;
        if header.version()? != Version::V20 {
            return Err(OpenError::Version);
        }
        let cipher = header.cipher()?;
        let (first, expected, aead) =
            reference.get_or_insert_with(|| (header, cipher, Aead::new(cipher, key)));
        if cipher != *expected {
            return Err(OpenError::Cipher);
        }
        if header.payload() + OVERHEAD != package.len()
            || (!header.is_last() && header.payload() != PAYLOAD)
        {
            return Err(OpenError::Size);
        }
        if !bool::from(header.stream_nonce().ct_eq(&first.stream_nonce())) {
            return Err(OpenError::Nonce);
        }
        let sequence = u32::try_from(seq).map_err(|_| OpenError::Size)?;
        append(aead, &header, &header.nonce_v20(sequence), package, plain)?;
        ended = header.is_last();
    }
    if ended {
        Ok(())
    } else {
        Err(OpenError::Truncated)
    }
}

fn blob_v10(key: &Secret, sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), OpenError> {
    // Each package may use either cipher and have any length.
    let mut aeads: [Option<Aead>; 2] = [None, None];
    let mut rest = sealed;
    let mut sequence = 0u32;
    while !rest.is_empty() {
        let header = Header::read(rest).ok_or(OpenError::Size)?;
        if header.version()? != Version::V10 {
            return Err(OpenError::Version);
        }
        let cipher = header.cipher()?;
        let (package, next) = rest
            .split_at_checked(header.payload() + OVERHEAD)
            .ok_or(OpenError::Size)?;
        if header.sequence_v10() != sequence {
            return Err(OpenError::Sequence);
        }
        let aead = aeads[cipher as usize].get_or_insert_with(|| Aead::new(cipher, key));
        append(aead, &header, &header.nonce_v10(), package, plain)?;
        sequence = sequence.checked_add(1).ok_or(OpenError::Size)?;
        rest = next;
    }
    Ok(())
}

fn append(
    aead: &Aead,
    header: &Header,
    nonce: &[u8; NONCE],
    package: &[u8],
    plain: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let (body, tag) = body_and_tag(package, header.payload())?;
    let at = plain.len();
    plain.resize(at + body.len(), 0);
    aead.open(nonce, &header.aad(), body, tag, &mut plain[at..])
}

fn body_and_tag(package: &[u8], payload: usize) -> Result<(&[u8], &[u8; TAG]), OpenError> {
    package
        .get(HEADER..)
        .and_then(|rest| rest.split_at_checked(payload))
        .and_then(|(body, tag)| Some((body, <&[u8; TAG]>::try_from(tag).ok()?)))
        .ok_or(OpenError::Size)
}

/// One key under the cipher its stream uses.
enum Aead {
    Gcm(gcm::Key),
    ChaCha(Box<ChaCha20Poly1305>),
}

impl Aead {
    fn new(cipher: Cipher, key: &Secret) -> Self {
        match cipher {
            Cipher::Aes256Gcm => Self::Gcm(gcm::Key::new(key)),
            Cipher::ChaCha20Poly1305 => {
                Self::ChaCha(Box::new(ChaCha20Poly1305::new(key.expose().into())))
            }
        }
    }

    fn open(
        &self,
        nonce: &[u8; NONCE],
        aad: &[u8; AAD],
        src: &[u8],
        tag: &[u8; TAG],
        dst: &mut [u8],
    ) -> Result<(), OpenError> {
        match self {
            Self::Gcm(key) => key
                .open(nonce, aad, src, tag, dst)
                .map_err(|gcm::BadTag| OpenError::Tag),
            Self::ChaCha(cipher) => {
                let data = InOutBuf::new(src, dst).map_err(|_| OpenError::Size)?;
                cipher
                    .decrypt_inout_detached(nonce.into(), aad, data, tag.into())
                    .map_err(|_| OpenError::Tag)
            }
        }
    }

    fn open_in_place(
        &self,
        nonce: &[u8; NONCE],
        aad: &[u8; AAD],
        data: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), OpenError> {
        match self {
            Self::Gcm(key) => key
                .open_in_place(nonce, aad, data, tag)
                .map_err(|gcm::BadTag| OpenError::Tag),
            Self::ChaCha(cipher) => cipher
                .decrypt_inout_detached(nonce.into(), aad, data.into(), tag.into())
                .map_err(|_| OpenError::Tag),
        }
    }
}
