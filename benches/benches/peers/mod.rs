//! Libraries that the server does not link.

use std::cell::RefCell;

use aws_lc_rs::aead;
use openssl::cipher::Cipher as Algorithm;
use openssl::cipher_ctx::CipherCtx;
use strongroom_http::bench::cipher::{AAD, Cipher, KEY, split, split_mut};

pub struct AwsLc(aead::LessSafeKey);

impl AwsLc {
    pub fn new() -> Self {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &KEY);
        AwsLc(aead::LessSafeKey::new(key.expect("32 bytes are a key")))
    }
}

const OPENS: &str = "what was sealed opens";

impl Cipher for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc-rs"
    }

    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        let made = self
            .0
            .seal_in_place_separate_tag(nonce, aead::Aad::from(AAD), text);
        tag.copy_from_slice(made.expect("short enough").as_ref());
    }

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        self.0
            .open_in_place(nonce, aead::Aad::from(AAD), message)
            .expect(OPENS);
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]) {
        let (sealed, tag) = split(message);
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        self.0
            .open_separate_gather(nonce, aead::Aad::from(AAD), sealed, tag, text)
            .expect(OPENS);
    }
}

/// Contexts that keep the key, as a careful user of it has them.
pub struct OpenSsl {
    seal: RefCell<CipherCtx>,
    open: RefCell<CipherCtx>,
}

const WORKS: &str = "OpenSSL knows AES-256-GCM";

impl OpenSsl {
    pub fn new() -> Self {
        let mut seal = CipherCtx::new().expect(WORKS);
        let mut open = CipherCtx::new().expect(WORKS);
        let algorithm = Some(Algorithm::aes_256_gcm());
        seal.encrypt_init(algorithm, Some(&KEY), None).expect(WORKS);
        open.decrypt_init(algorithm, Some(&KEY), None).expect(WORKS);
        OpenSsl {
            seal: seal.into(),
            open: open.into(),
        }
    }
}

impl Cipher for OpenSsl {
    fn name(&self) -> &'static str {
        "openssl"
    }

    fn seal_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        let context = &mut *self.seal.borrow_mut();
        begin_sealing(context, nonce);
        context
            .cipher_update_inplace(text, text.len())
            .expect(WORKS);
        finish_sealing(context, tag);
    }

    fn open_in_place(&self, nonce: &[u8; 12], message: &mut [u8]) {
        let (text, tag) = split_mut(message);
        let context = &mut *self.open.borrow_mut();
        begin_opening(context, nonce);
        context
            .cipher_update_inplace(text, text.len())
            .expect(WORKS);
        finish_opening(context, tag);
    }

    fn seal(&self, nonce: &[u8; 12], text: &[u8], message: &mut [u8]) {
        let (sealed, tag) = split_mut(message);
        let context = &mut *self.seal.borrow_mut();
        begin_sealing(context, nonce);
        context.cipher_update(text, Some(sealed)).expect(WORKS);
        finish_sealing(context, tag);
    }

    fn open(&self, nonce: &[u8; 12], message: &[u8], text: &mut [u8]) {
        let (sealed, tag) = split(message);
        let context = &mut *self.open.borrow_mut();
        begin_opening(context, nonce);
        context.cipher_update(sealed, Some(text)).expect(WORKS);
        finish_opening(context, tag);
    }
}

fn begin_sealing(context: &mut CipherCtx, nonce: &[u8; 12]) {
    context.encrypt_init(None, None, Some(nonce)).expect(WORKS);
    context.cipher_update(&AAD, None).expect(WORKS);
}

fn finish_sealing(context: &mut CipherCtx, tag: &mut [u8]) {
    context.cipher_final(&mut []).expect(WORKS);
    context.tag(tag).expect(WORKS);
}

fn begin_opening(context: &mut CipherCtx, nonce: &[u8; 12]) {
    context.decrypt_init(None, None, Some(nonce)).expect(WORKS);
    context.cipher_update(&AAD, None).expect(WORKS);
}

fn finish_opening(context: &mut CipherCtx, tag: &[u8]) {
    context.set_tag(tag).expect(WORKS);
    context.cipher_final(&mut []).expect(OPENS);
}
