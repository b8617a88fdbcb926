//! AES-256-GCM's two halves for any CPU, through the `aes` and `ghash` crates: two passes over each piece, no assumptions.

use aes::{
    Aes256,
    cipher::{Array, BlockCipherEncrypt, KeyInit, consts::U16, inout::InOutBuf},
};
use ghash::{GHash, universal_hash::UniversalHash};
use zeroize::Zeroize;

use crate::simd::gcm::{BLOCK, Direction};

type Block = Array<u8, U16>;

/// Blocks of key stream made at a time: few enough to stay in the first-level cache with the data they hide.
const STRIDE_BLOCKS: usize = 64;

/// Round keys and the hash key. Both crates erase them on drop.
pub struct Key {
    aes: Aes256,
    ghash: GHash,
}

impl Key {
    pub fn new(key: &[u8; 32]) -> Self {
        let aes = Aes256::new(key.into());
        let mut h = Block::default();
        aes.encrypt_block(&mut h);
        let ghash = GHash::new(&h);
        h.zeroize();
        Self { aes, ghash }
    }

    /// Encrypts one block.
    pub fn encrypt_block(&self, block: &mut [u8; BLOCK]) {
        self.aes.encrypt_block(block.into());
    }

    /// Folds whole blocks into the running hash `acc`.
    pub fn hash(&self, acc: &mut [u8; BLOCK], blocks: &[u8]) {
        let (blocks, rest) = Block::slice_as_chunks(blocks);
        assert!(rest.is_empty());
        let Some((first, others)) = blocks.split_first() else {
            return;
        };
        // The hash is linear: a running value is taken up by adding it to the next block.
        let mut head = *first;
        head.iter_mut().zip(acc.iter()).for_each(|(h, a)| *h ^= a);
        let mut ghash = self.ghash.clone();
        ghash.update(&[head]);
        ghash.update(others);
        acc.copy_from_slice(&ghash.finalize());
    }

    /// Counter mode over whole blocks from `counter` (of 12 nonce bytes and a 32-bit count) on, and the hash of the ciphertext.
    pub fn crypt(
        &self,
        direction: Direction,
        acc: &mut [u8; BLOCK],
        counter: &mut [u8; BLOCK],
        data: InOutBuf<'_, '_, u8>,
    ) {
        self.strides(counter, data, |mut piece, stream| {
            if let Direction::Open = direction {
                self.hash(acc, piece.get_in());
            }
            piece.xor_in2out(stream);
            if let Direction::Seal = direction {
                self.hash(acc, piece.get_out());
            }
        });
    }

    /// [`crypt`](Self::crypt) without the hash, to measure what that costs.
    pub fn counter_mode(&self, counter: &mut [u8; BLOCK], data: InOutBuf<'_, '_, u8>) {
        self.strides(counter, data, |mut piece, stream| piece.xor_in2out(stream));
    }

    fn strides(
        &self,
        counter: &mut [u8; BLOCK],
        data: InOutBuf<'_, '_, u8>,
        mut each: impl FnMut(InOutBuf<'_, '_, u8>, &[u8]),
    ) {
        assert!(data.len().is_multiple_of(BLOCK));
        let mut rest = data;
        let mut stream = [Block::default(); STRIDE_BLOCKS];
        while !rest.is_empty() {
            let len = rest.len().min(STRIDE_BLOCKS * BLOCK);
            let (piece, next) = rest.split_at(len);
            rest = next;

            let stream = &mut stream[..len / BLOCK];
            for block in stream.iter_mut() {
                block.copy_from_slice(counter);
                increment(counter);
            }
            self.aes.encrypt_blocks(stream);
            each(piece, Block::slice_as_flattened(stream));
        }
        Block::slice_as_flattened_mut(&mut stream).zeroize();
    }
}

fn increment(counter: &mut [u8; BLOCK]) {
    let (_, count) = counter.split_last_chunk_mut::<4>().expect("16 > 4");
    *count = u32::from_be_bytes(*count).wrapping_add(1).to_be_bytes();
}
