//! GHASH's field on NEON registers.
//!
//! GHASH reads bits in reverse. Reversing the bytes of a block leaves POLYVAL's field (RFC 8452, appendix A), where
//! `GHASH(H, X) = reverse(POLYVAL(x · reverse(H), reverse(X)))`, and where a product needs no shift: everything here, the
//! running hash too, is in that form.

use core::arch::aarch64::*;

pub type Block = uint8x16_t;

/// x^127 + x^126 + x^121 + x^64 of POLYVAL's modulus, of which the rest is x^128 + 1.
const POLYNOMIAL: u64 = 0xc200_0000_0000_0000;

/// The hash key in the form of this file: the encrypted zero block, bytes reversed, times x.
#[target_feature(enable = "neon,aes")]
pub fn hash_key(encrypted: Block) -> Block {
    let h = u128::from_be_bytes(to_bytes(encrypted));
    let overflow = (h >> 127).wrapping_neg();
    let modulus = (u128::from(POLYNOMIAL) << 64) | 1;
    from_bytes(&((h << 1) ^ (overflow & modulus)).to_le_bytes())
}

/// The product of two blocks.
#[target_feature(enable = "neon,aes")]
pub fn multiply(a: Block, b: Block) -> Block {
    let mid = add(mul_low(a, swap(b)), mul_high(a, swap(b)));
    reduce(mul_low(a, b), mid, mul_high(a, b))
}

/// A block of `lo + x^64 mid + x^128 hi`, by Montgomery's method: each step adds a multiple of the modulus that clears the lowest
/// 64 bits.
#[inline]
#[target_feature(enable = "neon,aes")]
pub fn reduce(lo: Block, mid: Block, hi: Block) -> Block {
    let zero = vdupq_n_u8(0);
    let polynomial = vreinterpretq_u8_u64(vdupq_n_u64(POLYNOMIAL));
    let lo = add(lo, vextq_u8::<8>(zero, mid));
    let hi = add(hi, vextq_u8::<8>(mid, zero));
    let lo = add(swap(lo), mul_low(lo, polynomial));
    let lo = add(swap(lo), mul_low(lo, polynomial));
    add(lo, hi)
}

/// The product of the lower halves.
#[inline]
#[target_feature(enable = "neon,aes")]
pub fn mul_low(a: Block, b: Block) -> Block {
    let a = vgetq_lane_p64::<0>(vreinterpretq_p64_u8(a));
    let b = vgetq_lane_p64::<0>(vreinterpretq_p64_u8(b));
    vreinterpretq_u8_p128(vmull_p64(a, b))
}

/// The product of the upper halves.
#[inline]
#[target_feature(enable = "neon,aes")]
pub fn mul_high(a: Block, b: Block) -> Block {
    vreinterpretq_u8_p128(vmull_high_p64(
        vreinterpretq_p64_u8(a),
        vreinterpretq_p64_u8(b),
    ))
}

#[inline]
#[target_feature(enable = "neon")]
pub fn add(a: Block, b: Block) -> Block {
    veorq_u8(a, b)
}

/// A block with its halves exchanged.
#[inline]
#[target_feature(enable = "neon")]
pub fn swap(block: Block) -> Block {
    vextq_u8::<8>(block, block)
}

/// A block with its bytes reversed.
#[inline]
#[target_feature(enable = "neon")]
pub fn reverse(block: Block) -> Block {
    swap(vrev64q_u8(block))
}

#[inline]
#[target_feature(enable = "neon")]
pub fn from_bytes(bytes: &[u8; 16]) -> Block {
    // SAFETY: 16 bytes are readable behind the reference, and the load has no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub fn to_bytes(block: Block) -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: 16 bytes are writable behind the reference, and the store has no alignment.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), block) };
    bytes
}

/// Overwrites blocks so that the compiler cannot leave it out.
pub fn wipe(blocks: &mut [Block]) {
    for block in blocks.iter_mut() {
        // SAFETY: the reference is valid and aligned; zero is a value of the type.
        unsafe { core::ptr::write_volatile(block, core::mem::zeroed()) };
    }
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}
