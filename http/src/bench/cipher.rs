//! AES-256-GCM as several libraries have it, all under one key. A message is a text with its tag behind it.

use aes_gcm::KeyInit as _;
use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::inout::InOutBuf;
use ring::aead;
use strongroom_engine::secret::Secret;
use strongroom_engine::simd::gcm;

/// The key of all.
pub const KEY: [u8; 32] = [0x42; 32];
/// Associated data of each message: as much as a package of DARE has.
pub const AAD: [u8; 4] = [0x20, 0, 0xff, 0xff];
/// Bytes of a tag.
pub const TAG: usize = 16;

/// One of the libraries. From one buffer to another it does what its user has to do: where it only works in place, copy first.
/// Opening panics if the tag does not hold.
pub trait Cipher {
    fn name(&self) -> &'static str;

    /// The name of what its user does between two buffers.
    fn name_out_of_place(&self) -> &'static str {
        self.name()
    }

    /// Seals the text, and puts the tag behind it.
    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]);

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]);

    fn seal(&self, nonce: &[u8; 12], text: &[u8], message: &mut [u8]) {
        message[..text.len()].copy_from_slice(text);
        self.seal_in_place(nonce, message);
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]);
}

const OPENS: &str = "what was sealed opens";
const SHORT: &str = "a message is short enough";

/// The text and the tag of a message.
pub fn split(message: &[u8]) -> (&[u8], &[u8; TAG]) {
    message.split_last_chunk().expect("a message has a tag")
}

/// See [`split`].
pub fn split_mut(message: &mut [u8]) -> (&mut [u8], &mut [u8; TAG]) {
    message.split_last_chunk_mut().expect("a message has a tag")
}

pub struct Ours(gcm::Key);

impl Ours {
    pub const NAME: &str = "strongroom";

    #[expect(clippy::new_without_default, reason = "a cipher is no plain value")]
    pub fn new() -> Self {
        Ours(gcm::Key::new(&Secret::new(KEY)))
    }
}

impl Cipher for Ours {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        *tag = self.0.seal_in_place(nonce, &AAD, text);
    }

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        self.0.open_in_place(nonce, &AAD, text, tag).expect(OPENS);
    }

    fn seal(&self, nonce: &[u8; 12], text: &[u8], message: &mut [u8]) {
        let (sealed, tag) = split_mut(message);
        *tag = self.0.seal(nonce, &AAD, text, sealed);
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]) {
        let (sealed, tag) = split(message);
        self.0.open(nonce, &AAD, sealed, tag, text).expect(OPENS);
    }
}

/// Our counter mode alone: what sealing and opening would cost without a hash. It opens anything.
pub struct Ceiling(gcm::Key);

impl Ceiling {
    #[expect(clippy::new_without_default, reason = "a cipher is no plain value")]
    pub fn new() -> Self {
        Ceiling(gcm::Key::new(&Secret::new(KEY)))
    }
}

impl Cipher for Ceiling {
    fn name(&self) -> &'static str {
        "ctr-ceiling"
    }

    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        self.0.counter_mode_in_place(nonce, split_mut(message).0);
    }

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        self.0.counter_mode_in_place(nonce, split_mut(message).0);
    }

    fn seal(&self, nonce: &[u8; 12], text: &[u8], message: &mut [u8]) {
        self.0.counter_mode(nonce, text, split_mut(message).0);
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]) {
        self.0.counter_mode(nonce, split(message).0, text);
    }
}

pub struct Ring(aead::LessSafeKey);

impl Ring {
    #[expect(clippy::new_without_default, reason = "a cipher is no plain value")]
    pub fn new() -> Self {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &KEY).expect("32 bytes are a key");
        Ring(aead::LessSafeKey::new(key))
    }
}

impl Cipher for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn name_out_of_place(&self) -> &'static str {
        "copy+ring"
    }

    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        let made = self
            .0
            .seal_in_place_separate_tag(nonce, aead::Aad::from(AAD), text);
        tag.copy_from_slice(made.expect(SHORT).as_ref());
    }

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        self.0
            .open_in_place(nonce, aead::Aad::from(AAD), message)
            .expect(OPENS);
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]) {
        let (sealed, tag) = split(message);
        text.copy_from_slice(sealed);
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        self.0
            .open_in_place_separate_tag(nonce, aead::Aad::from(AAD), (*tag).into(), text, 0..)
            .expect(OPENS);
    }
}

pub struct AesGcm(aes_gcm::Aes256Gcm);

impl AesGcm {
    #[expect(clippy::new_without_default, reason = "a cipher is no plain value")]
    pub fn new() -> Self {
        AesGcm(aes_gcm::Aes256Gcm::new(&KEY.into()))
    }

    fn seal_inout(&self, nonce: &[u8; 12], data: InOutBuf<'_, '_, u8>) -> [u8; TAG] {
        let tag = self.0.encrypt_inout_detached(nonce.into(), &AAD, data);
        tag.expect(SHORT).into()
    }

    fn open_inout(&self, nonce: &[u8; 12], data: InOutBuf<'_, '_, u8>, tag: &[u8; TAG]) {
        self.0
            .decrypt_inout_detached(nonce.into(), &AAD, data, tag.into())
            .expect(OPENS);
    }
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "aes-gcm"
    }

    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        *tag = self.seal_inout(nonce, text.into());
    }

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        self.open_inout(nonce, text.into(), tag);
    }

    fn seal(&self, nonce: &[u8; 12], text: &[u8], message: &mut [u8]) {
        let (sealed, tag) = split_mut(message);
        *tag = self.seal_inout(nonce, pair(text, sealed));
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]) {
        let (sealed, tag) = split(message);
        self.open_inout(nonce, pair(sealed, text), tag);
    }
}

fn pair<'a, 'b>(src: &'a [u8], dst: &'b mut [u8]) -> InOutBuf<'a, 'b, u8> {
    InOutBuf::new(src, dst).expect("a text is as long sealed as open")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_seal_and_open_alike() {
        let ciphers: [&dyn Cipher; 3] = [&Ours::new(), &Ring::new(), &AesGcm::new()];
        let (nonce, text) = ([7; 12], [9; 1000]);
        let mut expected = [9; 1000 + TAG];
        ciphers[1].seal_in_place(&nonce, &mut expected);
        for cipher in ciphers {
            let (mut message, mut opened) = ([0; 1000 + TAG], [0; 1000]);
            cipher.seal(&nonce, &text, &mut message);
            assert_eq!(message, expected, "{}", cipher.name());
            cipher.open(&nonce, &message, &mut opened);
            assert_eq!(opened, text, "{}", cipher.name());
            cipher.open_in_place(&nonce, &mut message);
            assert_eq!(message[..1000], text, "{}", cipher.name());
            cipher.seal_in_place(&nonce, &mut message);
            assert_eq!(message, expected, "{}", cipher.name());
        }
    }
}
