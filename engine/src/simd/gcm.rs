//! AES-256-GCM with 96-bit nonces: a key set up once per stream, and messages sealed or opened whole or as their bytes arrive.
//!
//! - A [`Key`] holds round keys and hash-key powers, lies still on the heap and is erased on drop.
//! - A [`Message`] never holds data back: `n` bytes in are `n` bytes out, whatever `n` is.
//! - Opening hands out nothing unless the tag holds: on mismatch the destination is wiped.
//!
//! Source: NIST SP 800-38D. Nonces are the caller's duty: one pair of key and nonce seals one message, ever.

use aes::cipher::inout::InOutBuf;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

#[cfg(target_arch = "aarch64")]
use crate::simd::aarch64;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86_64::{aesni, vaes256, vaes512};
use crate::{
    secret::Secret,
    simd::{
        cpu::{self, Path},
        portable,
    },
};

/// Bytes of a cipher block.
pub const BLOCK: usize = 16;
/// Bytes of a nonce.
pub const NONCE: usize = 12;
/// Bytes of a tag.
pub const TAG: usize = 16;
/// The longest message under one nonce, in bytes.
pub const MESSAGE_MAX: u64 = (1 << 36) - 32;

/// Which way the bytes go; the hash is always over the ciphertext.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Seal,
    Open,
}

/// The tag does not belong to these bytes under this key, nonce and associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct BadTag;

/// A key ready for use.
pub struct Key {
    kernel: Kernel,
}

/// What a path keeps per key. Boxed, so that moving a key leaves no copy of it behind.
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Vaes512(Box<vaes512::Key>),
    #[cfg(target_arch = "x86_64")]
    Vaes256(Box<vaes256::Key>),
    #[cfg(target_arch = "x86_64")]
    AesNi(Box<aesni::Key>),
    #[cfg(target_arch = "aarch64")]
    Armv8(Box<aarch64::Key>),
    Portable(Box<portable::Key>),
}

/// Does the same with the key of whichever path it is.
macro_rules! on_kernel {
    ($kernel:expr, $key:ident => $does:expr) => {
        match $kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vaes512($key) => $does,
            #[cfg(target_arch = "x86_64")]
            Kernel::Vaes256($key) => $does,
            #[cfg(target_arch = "x86_64")]
            Kernel::AesNi($key) => $does,
            #[cfg(target_arch = "aarch64")]
            Kernel::Armv8($key) => $does,
            Kernel::Portable($key) => $does,
        }
    };
}

impl Key {
    /// Sets up round keys and hash-key powers for the fastest path of this CPU.
    pub fn new(key: &Secret) -> Self {
        Self::on(cpu::best(), key)
    }

    /// The same for a certain path: for tests and measurements.
    pub fn on(path: Path, key: &Secret) -> Self {
        let key = key.expose();
        let kernel = match path {
            #[cfg(target_arch = "x86_64")]
            Path::Vaes512(token) => Kernel::Vaes512(vaes512::Key::new(token, key)),
            #[cfg(target_arch = "x86_64")]
            Path::Vaes256(token) => Kernel::Vaes256(vaes256::Key::new(token, key)),
            #[cfg(target_arch = "x86_64")]
            Path::AesNi(token) => Kernel::AesNi(aesni::Key::new(token, key)),
            #[cfg(target_arch = "aarch64")]
            Path::Armv8(token) => Kernel::Armv8(aarch64::Key::new(token, key)),
            Path::Portable => Kernel::Portable(Box::new(portable::Key::new(key))),
        };
        Self { kernel }
    }

    /// Seals `src` into `dst` (of the same length) and returns the tag.
    pub fn seal(&self, nonce: &[u8; NONCE], aad: &[u8], src: &[u8], dst: &mut [u8]) -> [u8; TAG] {
        self.run(Direction::Seal, nonce, aad, pair(src, dst))
    }

    /// Seals `data` where it lies and returns the tag.
    pub fn seal_in_place(&self, nonce: &[u8; NONCE], aad: &[u8], data: &mut [u8]) -> [u8; TAG] {
        self.run(Direction::Seal, nonce, aad, data.into())
    }

    /// Opens `src` into `dst` (of the same length). On a bad tag `dst` is wiped.
    pub fn open(
        &self,
        nonce: &[u8; NONCE],
        aad: &[u8],
        src: &[u8],
        tag: &[u8; TAG],
        dst: &mut [u8],
    ) -> Result<(), BadTag> {
        let actual = self.run(Direction::Open, nonce, aad, pair(src, dst));
        verdict(actual, tag, dst)
    }

    /// Opens `data` where it lies. On a bad tag `data` is wiped.
    pub fn open_in_place(
        &self,
        nonce: &[u8; NONCE],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), BadTag> {
        let actual = self.run(Direction::Open, nonce, aad, data.into());
        verdict(actual, tag, data)
    }

    /// Begins a message whose bytes arrive in pieces.
    pub fn begin(&self, nonce: &[u8; NONCE], aad: &[u8]) -> Message {
        let mut counter = [0; BLOCK];
        counter[..NONCE].copy_from_slice(nonce);
        counter[BLOCK - 1] = 1;
        let mut mask = counter;
        self.encrypt_block(&mut mask);
        counter[BLOCK - 1] = 2;

        let mut message = Message {
            counter,
            mask,
            acc: [0; BLOCK],
            stream: [0; BLOCK],
            partial: [0; BLOCK],
            fill: 0,
            aad_len: aad.len() as u64,
            text_len: 0,
        };
        let (whole, tail) = aad.as_chunks::<BLOCK>();
        self.hash(&mut message.acc, whole.as_flattened());
        if !tail.is_empty() {
            let mut block = [0; BLOCK];
            block[..tail.len()].copy_from_slice(tail);
            self.hash(&mut message.acc, &block);
        }
        message
    }

    fn run(
        &self,
        direction: Direction,
        nonce: &[u8; NONCE],
        aad: &[u8],
        data: InOutBuf<'_, '_, u8>,
    ) -> [u8; TAG] {
        let mut message = self.begin(nonce, aad);
        message.run(self, direction, data);
        message.finish(self)
    }

    /// Counter mode alone over whole blocks, which authenticates nothing: the ceiling that sealing is measured against.
    #[doc(hidden)]
    pub fn counter_mode(&self, nonce: &[u8; NONCE], src: &[u8], dst: &mut [u8]) {
        self.count_through(nonce, pair(src, dst));
    }

    /// The same where the data lies.
    #[doc(hidden)]
    pub fn counter_mode_in_place(&self, nonce: &[u8; NONCE], data: &mut [u8]) {
        self.count_through(nonce, data.into());
    }

    fn count_through(&self, nonce: &[u8; NONCE], data: InOutBuf<'_, '_, u8>) {
        let mut counter = [0; BLOCK];
        counter[..NONCE].copy_from_slice(nonce);
        counter[BLOCK - 1] = 2;
        on_kernel!(&self.kernel, key => key.counter_mode(&mut counter, data));
    }

    fn encrypt_block(&self, block: &mut [u8; BLOCK]) {
        on_kernel!(&self.kernel, key => key.encrypt_block(block));
    }

    fn hash(&self, acc: &mut [u8; BLOCK], blocks: &[u8]) {
        on_kernel!(&self.kernel, key => key.hash(acc, blocks));
    }

    fn crypt(
        &self,
        direction: Direction,
        acc: &mut [u8; BLOCK],
        counter: &mut [u8; BLOCK],
        blocks: InOutBuf<'_, '_, u8>,
    ) {
        on_kernel!(&self.kernel, key => key.crypt(direction, acc, counter, blocks));
    }
}

/// A message under way. It belongs to the key that began it and is finished with that key.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Message {
    /// The next counter block.
    counter: [u8; BLOCK],
    /// What hides the hash in the tag.
    mask: [u8; BLOCK],
    /// The running hash.
    acc: [u8; BLOCK],
    /// Key stream of the block under way.
    stream: [u8; BLOCK],
    /// Ciphertext of the block under way.
    partial: [u8; BLOCK],
    /// Bytes of the block under way, less than a whole one.
    fill: usize,
    aad_len: u64,
    text_len: u64,
}

impl Message {
    /// Seals the next piece: `src` into `dst`, of the same length.
    pub fn seal(&mut self, key: &Key, src: &[u8], dst: &mut [u8]) {
        self.run(key, Direction::Seal, pair(src, dst));
    }

    /// The tag of all that was sealed. The message is over.
    pub fn finish(&mut self, key: &Key) -> [u8; TAG] {
        if self.fill > 0 {
            self.partial[self.fill..].fill(0);
            key.hash(&mut self.acc, &self.partial);
        }
        let mut lengths = [0; BLOCK];
        lengths[..8].copy_from_slice(&(self.aad_len * 8).to_be_bytes());
        lengths[8..].copy_from_slice(&(self.text_len * 8).to_be_bytes());
        key.hash(&mut self.acc, &lengths);
        let mut tag = self.acc;
        tag.iter_mut().zip(&self.mask).for_each(|(t, m)| *t ^= m);
        tag
    }

    fn run(&mut self, key: &Key, direction: Direction, data: InOutBuf<'_, '_, u8>) {
        self.text_len += data.len() as u64;
        assert!(self.text_len <= MESSAGE_MAX, "a message has its bound");

        let mut rest = data;
        if self.fill > 0 {
            let len = rest.len().min(BLOCK - self.fill);
            let (head, next) = rest.split_at(len);
            rest = next;
            self.within_block(direction, head);
            if self.fill < BLOCK {
                return;
            }
            key.hash(&mut self.acc, &self.partial);
            self.fill = 0;
        }
        let whole = rest.len() / BLOCK * BLOCK;
        let (blocks, tail) = rest.split_at(whole);
        if !blocks.is_empty() {
            key.crypt(direction, &mut self.acc, &mut self.counter, blocks);
        }
        if !tail.is_empty() {
            self.stream = self.counter;
            key.encrypt_block(&mut self.stream);
            self.count();
            self.within_block(direction, tail);
        }
    }

    /// Bytes that share a block with others before or behind them.
    fn within_block(&mut self, direction: Direction, mut data: InOutBuf<'_, '_, u8>) {
        let range = self.fill..self.fill + data.len();
        if let Direction::Open = direction {
            self.partial[range.clone()].copy_from_slice(data.get_in());
        }
        data.xor_in2out(&self.stream[range.clone()]);
        if let Direction::Seal = direction {
            self.partial[range.clone()].copy_from_slice(data.get_out());
        }
        self.fill = range.end;
    }

    fn count(&mut self) {
        let (_, count) = self.counter.split_last_chunk_mut::<4>().expect("16 > 4");
        *count = u32::from_be_bytes(*count).wrapping_add(1).to_be_bytes();
    }
}

fn pair<'a, 'b>(src: &'a [u8], dst: &'b mut [u8]) -> InOutBuf<'a, 'b, u8> {
    InOutBuf::new(src, dst).expect("source and destination of a cipher have the same length")
}

fn verdict(actual: [u8; TAG], expected: &[u8; TAG], out: &mut [u8]) -> Result<(), BadTag> {
    if actual.ct_eq(expected).into() {
        Ok(())
    } else {
        out.zeroize();
        Err(BadTag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        (0..len)
            .map(|i| (i as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0] ^ seed)
            .collect()
    }

    fn reference(key: &Secret, nonce: &[u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        let cipher = Aes256Gcm::new(key.expose().into());
        cipher
            .encrypt_inout_detached(nonce.into(), aad, data.into())
            .expect("short enough")
            .into()
    }

    #[test]
    fn agrees_with_aes_gcm_at_every_length() {
        for path in cpu::paths() {
            agrees_with_aes_gcm(*path);
        }
    }

    fn agrees_with_aes_gcm(path: Path) {
        let secret = Secret::new([0x42; 32]);
        let key = Key::on(path, &secret);
        let nonce = [9; 12];
        for len in (0..700).chain([1023, 1024, 1025, 4096, 65535, 65536, 65537]) {
            let plain = bytes(len, 3);
            let aad = bytes(len % 37, 5);
            let mut expected = plain.clone();
            let expected_tag = reference(&secret, &nonce, &aad, &mut expected);

            let mut sealed = vec![0xee; len];
            let tag = key.seal(&nonce, &aad, &plain, &mut sealed);
            assert_eq!(sealed, expected, "length {len}");
            assert_eq!(tag, expected_tag, "length {len}");
            let mut in_place = plain.clone();
            assert_eq!(key.seal_in_place(&nonce, &aad, &mut in_place), tag);
            assert_eq!(in_place, expected);

            let mut opened = vec![0xee; len];
            key.open(&nonce, &aad, &sealed, &tag, &mut opened)
                .expect("opens");
            assert_eq!(opened, plain, "length {len}");
            key.open_in_place(&nonce, &aad, &mut in_place, &tag)
                .expect("opens");
            assert_eq!(in_place, plain);

            let mut wrong = tag;
            wrong[len % 16] ^= 1 << (len % 8);
            opened.fill(0xee);
            assert_eq!(
                key.open(&nonce, &aad, &sealed, &wrong, &mut opened),
                Err(BadTag)
            );
            assert!(opened.iter().all(|&b| b == 0), "wiped at length {len}");
            let mut in_place = sealed.clone();
            assert_eq!(
                key.open_in_place(&nonce, &aad, &mut in_place, &wrong),
                Err(BadTag)
            );
            assert!(in_place.iter().all(|&b| b == 0), "wiped at length {len}");
        }
    }

    #[test]
    fn pieces_equal_the_whole() {
        let key = Key::new(&Secret::new([7; 32]));
        let plain = bytes(5000, 1);
        let mut whole = vec![0; plain.len()];
        let tag = key.seal(&[1; 12], b"aad", &plain, &mut whole);
        for step in [1, 2, 3, 5, 15, 16, 17, 31, 33, 100, 1000, 1023, 1025, 4999] {
            let mut sealed = vec![0; plain.len()];
            let mut message = key.begin(&[1; 12], b"aad");
            for (src, dst) in plain.chunks(step).zip(sealed.chunks_mut(step)) {
                message.seal(&key, src, dst);
            }
            assert_eq!(message.finish(&key), tag, "step {step}");
            assert_eq!(sealed, whole, "step {step}");
        }
    }
}
