//! AES-256-GCM for ARMv8 with the AES and PMULL instructions: counter mode and GHASH in one loop.
//!
//! A *batch* is eight blocks: as many AES states as hide the latency of a round. While their rounds run, the multiplier takes the
//! ciphertext of a batch: the one before when sealing, the same one when opening. Its products are summed by Karatsuba's
//! method and reduced once a batch. What does not fill a batch goes through [`Run::few`].
//!
//! The field and its form are those of [`field`].

mod field;

use core::arch::aarch64::*;
use core::arch::asm;

use aes::cipher::inout::InOutBuf;

use crate::simd::cpu::Armv8;
use crate::simd::gcm::{BLOCK, Direction};
use field::{Block, add, from_bytes, mul_high, mul_low, reduce, reverse, swap, to_bytes, wipe};

/// Rounds of AES-256, and one key more.
const ROUNDS: usize = 14;
/// Blocks of a batch, and their bytes.
const BATCH: usize = 8;
const BATCH_BYTES: usize = BATCH * BLOCK;

/// Everything that depends on the key alone. Erased on drop.
pub struct Key {
    /// Powers of the hash key, from `BATCH` down to 1, so that the last `n` belong to `n` blocks.
    powers: [Block; BATCH],
    /// The sum of both halves of each power, in both halves.
    sums: [Block; BATCH],
    rounds: [Block; ROUNDS + 1],
    _token: Armv8,
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.powers);
        wipe(&mut self.sums);
        wipe(&mut self.rounds);
    }
}

impl Key {
    pub fn new(token: Armv8, key: &[u8; 32]) -> Box<Self> {
        // SAFETY: the token says that the CPU has the features.
        unsafe { set_up(token, key) }
    }

    /// Encrypts one block.
    pub fn encrypt_block(&self, block: &mut [u8; BLOCK]) {
        // SAFETY: the key holds a token, so the CPU has the features.
        unsafe { *block = to_bytes(encrypt(&self.rounds, from_bytes(block))) }
    }

    /// Folds whole blocks into the running hash `acc`.
    pub fn hash(&self, acc: &mut [u8; BLOCK], blocks: &[u8]) {
        // SAFETY: the key holds a token, so the CPU has the features.
        unsafe { hash(self, acc, blocks) }
    }

    /// Counter mode over whole blocks from `counter` (of 12 nonce bytes and a 32-bit count) on, and the hash of the ciphertext.
    pub fn crypt(
        &self,
        direction: Direction,
        acc: &mut [u8; BLOCK],
        counter: &mut [u8; BLOCK],
        data: InOutBuf<'_, '_, u8>,
    ) {
        // SAFETY: the key holds a token, so the CPU has the features.
        unsafe {
            match direction {
                Direction::Seal => crypt::<SEAL>(self, acc, counter, data),
                Direction::Open => crypt::<OPEN>(self, acc, counter, data),
            }
        }
    }

    /// [`crypt`](Self::crypt) without the hash, to measure what that costs.
    pub fn counter_mode(&self, counter: &mut [u8; BLOCK], data: InOutBuf<'_, '_, u8>) {
        // SAFETY: the key holds a token, so the CPU has the features.
        unsafe { crypt::<COUNTER>(self, &mut [0; BLOCK], counter, data) }
    }
}

/// What happens beside counter mode: the hash of the output, that of the input, or nothing.
type Mode = u8;
const SEAL: Mode = 0;
const OPEN: Mode = 1;
const COUNTER: Mode = 2;

#[target_feature(enable = "neon,aes")]
fn set_up(token: Armv8, key: &[u8; 32]) -> Box<Key> {
    let zero = from_bytes(&[0; BLOCK]);
    let mut made = Box::new(Key {
        powers: [zero; BATCH],
        sums: [zero; BATCH],
        rounds: [zero; ROUNDS + 1],
        _token: token,
    });
    schedule(key, &mut made.rounds);
    let h = field::hash_key(encrypt(&made.rounds, zero));
    made.powers[BATCH - 1] = h;
    for n in 2..=BATCH {
        let (a, b) = (
            made.powers[BATCH - n / 2],
            made.powers[BATCH - n.div_ceil(2)],
        );
        made.powers[BATCH - n] = field::multiply(a, b);
    }
    for n in 0..BATCH {
        made.sums[n] = add(made.powers[n], swap(made.powers[n]));
    }
    made
}

/// The AES-256 key schedule. The S-box is that of AESE: with one word in all columns and no key, its shift of rows does nothing.
#[target_feature(enable = "neon,aes")]
fn schedule(key: &[u8; 32], rounds: &mut [Block; ROUNDS + 1]) {
    let (lo, hi) = key.split_at(BLOCK);
    rounds[0] = from_bytes(lo.first_chunk().expect("16 bytes"));
    rounds[1] = from_bytes(hi.first_chunk().expect("16 bytes"));
    let zero = vdupq_n_u8(0);
    for n in 2..=ROUNDS {
        let last = vgetq_lane_u32::<3>(vreinterpretq_u32_u8(rounds[n - 1]));
        let word = vreinterpretq_u8_u32(vdupq_n_u32(last));
        let word = vgetq_lane_u32::<0>(vreinterpretq_u32_u8(vaeseq_u8(word, zero)));
        // Every other key turns the word by a byte and adds a constant.
        let word = if n % 2 == 0 {
            word.rotate_right(8) ^ (1 << (n / 2 - 1))
        } else {
            word
        };
        let key = rounds[n - 2];
        let key = add(key, vextq_u8::<12>(zero, key));
        let key = add(key, vextq_u8::<8>(zero, key));
        rounds[n] = add(key, vreinterpretq_u8_u32(vdupq_n_u32(word)));
    }
}

#[target_feature(enable = "neon,aes")]
fn encrypt(rounds: &[Block; ROUNDS + 1], block: Block) -> Block {
    let mut state = block;
    for key in &rounds[..ROUNDS - 1] {
        state = vaesmcq_u8(vaeseq_u8(state, *key));
    }
    add(vaeseq_u8(state, rounds[ROUNDS - 1]), rounds[ROUNDS])
}

#[target_feature(enable = "neon,aes")]
fn hash(key: &Key, acc: &mut [u8; BLOCK], blocks: &[u8]) {
    let (blocks, rest) = blocks.as_chunks::<BLOCK>();
    assert!(rest.is_empty());
    let mut sum = reverse(from_bytes(acc));
    for some in blocks.chunks(BATCH) {
        let mut hash = Hash::new();
        for (n, block) in some.iter().enumerate() {
            hash.block(
                key,
                BATCH - some.len() + n,
                add(reverse(from_bytes(block)), sum),
            );
            sum = vdupq_n_u8(0);
        }
        sum = hash.reduce();
    }
    *acc = to_bytes(reverse(sum));
}

#[target_feature(enable = "neon,aes")]
fn crypt<const MODE: Mode>(
    key: &Key,
    acc: &mut [u8; BLOCK],
    counter: &mut [u8; BLOCK],
    data: InOutBuf<'_, '_, u8>,
) {
    assert!(data.len().is_multiple_of(BLOCK));
    let blocks = data.len() / BLOCK;
    let (src, dst) = data.into_raw();
    let origin = from_bytes(counter);
    let (_, count) = counter.split_last_chunk_mut::<4>().expect("16 > 4");
    let first = u32::from_be_bytes(*count);
    *count = first.wrapping_add(blocks as u32).to_be_bytes();
    let mut run = Run {
        key,
        origin,
        first,
        sum: reverse(from_bytes(acc)),
        src,
        dst,
    };
    let batches = blocks / BATCH;
    // SAFETY: the two ranges are the blocks of `data`, one after the other.
    unsafe {
        run.batches::<MODE>(batches);
        run.few::<MODE>(batches * BATCH, blocks % BATCH);
    }
    *acc = to_bytes(reverse(run.sum));
}

/// A piece of a message under way.
struct Run<'a> {
    key: &'a Key,
    /// The counter block of block 0, and its count.
    origin: Block,
    first: u32,
    /// The running hash.
    sum: Block,
    src: *const u8,
    dst: *mut u8,
}

impl Run<'_> {
    /// Counters of the eight blocks from block `at` on.
    #[inline]
    #[target_feature(enable = "neon,aes")]
    fn counters(&self, at: usize) -> [Block; BATCH] {
        let mut states = [self.origin; BATCH];
        for (n, state) in states.iter_mut().enumerate() {
            let count = self.first.wrapping_add((at + n) as u32).to_be();
            *state = vreinterpretq_u8_u32(vsetq_lane_u32::<3>(count, vreinterpretq_u32_u8(*state)));
        }
        states
    }

    /// Fewer blocks than a batch has, from block `at` on.
    ///
    /// # Safety
    /// They lie within source and destination.
    #[target_feature(enable = "neon,aes")]
    unsafe fn few<const MODE: Mode>(&mut self, at: usize, blocks: usize) {
        if blocks == 0 {
            return;
        }
        let mut stream = self.counters(at);
        for n in 0..ROUNDS - 1 {
            round(&mut stream, self.key, n);
        }
        for state in &mut stream {
            *state = vaeseq_u8(*state, self.key.rounds[ROUNDS - 1]);
        }
        let last = self.key.rounds[ROUNDS];
        let mut hash = Hash::new();
        for n in 0..blocks {
            let offset = (at + n) * BLOCK;
            // SAFETY: the caller's word; loads and stores have no alignment.
            let (input, output) = unsafe {
                let input = vld1q_u8(self.src.add(offset));
                let output = add(input, add(stream[n], last));
                vst1q_u8(self.dst.add(offset), output);
                (input, output)
            };
            if MODE != COUNTER {
                let hashed = reverse(if MODE == SEAL { output } else { input });
                hash.block(self.key, BATCH - blocks + n, add(hashed, self.sum));
                self.sum = vdupq_n_u8(0);
            }
        }
        if MODE != COUNTER {
            self.sum = hash.reduce();
        }
        wipe(&mut stream);
    }

    /// Whole batches, from block 0 on.
    ///
    /// # Safety
    /// They lie within source and destination.
    #[target_feature(enable = "neon,aes")]
    unsafe fn batches<const MODE: Mode>(&mut self, batches: usize) {
        if batches == 0 {
            return;
        }
        // SAFETY: the caller's word, here and below.
        unsafe {
            match MODE {
                SEAL => {
                    self.stitch::<false>(0, 1, self.dst);
                    self.stitch::<true>(1, batches - 1, self.dst);
                    let mut hash = Hash::new();
                    let hashed = self.dst.add((batches - 1) * BATCH_BYTES);
                    for n in 0..BATCH {
                        let block = reverse(vld1q_u8(hashed.add(n * BLOCK)));
                        hash.block(
                            self.key,
                            n,
                            if n == 0 { add(block, self.sum) } else { block },
                        );
                    }
                    self.sum = hash.reduce();
                }
                OPEN => self.stitch::<true>(0, batches, self.src),
                _ => self.stitch::<false>(0, batches, self.dst),
            }
        }
    }

    /// Counter mode over batches from batch `first` on, and where `HASH` is set the hash of as many from `hashed` on.
    ///
    /// # Safety
    /// They lie within source and destination, and are readable at `hashed`, which is the same batch of the source or the batch
    /// before of the destination.
    #[target_feature(enable = "neon,aes")]
    unsafe fn stitch<const HASH: bool>(&mut self, first: usize, batches: usize, hashed: *const u8) {
        for n in 0..batches {
            let key = self.key;
            let at = (first + n) * BATCH_BYTES;
            let hashed = hashed.wrapping_add(n * BATCH_BYTES);
            let mut states = self.counters((first + n) * BATCH);
            let mut hash = Hash::new();
            round(&mut states, key, 0);
            // Blocks 1 to 7, then the first: it takes up the running hash, so it comes last.
            for n in 1..=BATCH {
                if HASH {
                    let n = n % BATCH;
                    // SAFETY: a batch is readable at `hashed`.
                    let block = reverse(unsafe { vld1q_u8(hashed.add(n * BLOCK)) });
                    let block = if n == 0 { add(block, self.sum) } else { block };
                    hash.block(key, n, block);
                    hash.pin(&mut states);
                }
                round(&mut states, key, n);
            }
            for n in BATCH + 1..ROUNDS - 1 {
                round(&mut states, key, n);
            }
            for (n, state) in states.into_iter().enumerate() {
                // SAFETY: a batch is readable at `src` and writable at `dst`.
                unsafe {
                    let data = add(vld1q_u8(self.src.add(at + n * BLOCK)), key.rounds[ROUNDS]);
                    let state = vaeseq_u8(state, key.rounds[ROUNDS - 1]);
                    vst1q_u8(self.dst.add(at + n * BLOCK), add(state, data));
                }
            }
            if HASH {
                self.sum = hash.reduce();
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon,aes")]
fn round(states: &mut [Block; BATCH], key: &Key, n: usize) {
    for state in states {
        *state = vaesmcq_u8(vaeseq_u8(*state, key.rounds[n]));
    }
}

/// The sums of products of some blocks, by Karatsuba's method.
struct Hash {
    lo: Block,
    /// Products of the sums of halves: `lo` and `hi` are in it too.
    mid: Block,
    hi: Block,
}

impl Hash {
    #[inline]
    #[target_feature(enable = "neon,aes")]
    fn new() -> Self {
        let zero = vdupq_n_u8(0);
        Self {
            lo: zero,
            mid: zero,
            hi: zero,
        }
    }

    /// Adds the product of a block (bytes reversed) and the power at `n`.
    #[inline]
    #[target_feature(enable = "neon,aes")]
    fn block(&mut self, key: &Key, n: usize, block: Block) {
        self.lo = add(self.lo, mul_low(block, key.powers[n]));
        self.hi = add(self.hi, mul_high(block, key.powers[n]));
        self.mid = add(self.mid, mul_low(add(block, swap(block)), key.sums[n]));
    }

    #[inline]
    #[target_feature(enable = "neon,aes")]
    fn reduce(self) -> Block {
        reduce(self.lo, add(self.mid, add(self.lo, self.hi)), self.hi)
    }

    /// Holds the order of the code: what stands before is computed before. Left to itself, the compiler takes the two halves of
    /// the loop apart again.
    #[inline]
    #[target_feature(enable = "neon,aes")]
    fn pin(&mut self, states: &mut [Block; BATCH]) {
        let [s0, s1, s2, s3, s4, s5, s6, s7] = states;
        // SAFETY: no instruction: all values come out as they went in.
        unsafe {
            asm!(
                "/* {0:v} {1:v} {2:v} {3:v} {4:v} {5:v} {6:v} {7:v} {8:v} {9:v} {10:v} */",
                inout(vreg) *s0, inout(vreg) *s1, inout(vreg) *s2, inout(vreg) *s3,
                inout(vreg) *s4, inout(vreg) *s5, inout(vreg) *s6, inout(vreg) *s7,
                inout(vreg) self.lo, inout(vreg) self.mid, inout(vreg) self.hi,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}
