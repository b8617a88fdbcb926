//! AES-NI and PCLMULQDQ: a block a vector, eight a batch.

use core::arch::x86_64::{
    __m128i, _mm_add_epi32 as add, _mm_aesenc_si128 as aesenc, _mm_aesenclast_si128 as aesenclast,
    _mm_bslli_si128 as shift_left, _mm_bsrli_si128 as shift_right, _mm_clmulepi64_si128 as clmul,
    _mm_set1_epi64x as set_halves, _mm_shuffle_epi8 as shuffle, _mm_shuffle_epi32 as shuffle_words,
    _mm_unpackhi_epi64 as high_halves, _mm_unpacklo_epi64 as low_halves, _mm_xor_si128 as xor,
    _mm_xor_si128 as xor_block,
};

use crate::simd::cpu::AesNi as Token;

type Vector = __m128i;

#[inline]
#[target_feature(enable = "avx")]
unsafe fn load(src: *const u8) -> Vector {
    // SAFETY: the caller has 16 readable bytes there; the load has no alignment.
    unsafe { _mm_loadu_si128(src.cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
unsafe fn store(dst: *mut u8, vector: Vector) {
    // SAFETY: the caller has 16 writable bytes there; the store has no alignment.
    unsafe { _mm_storeu_si128(dst.cast(), vector) }
}

/// The block in every place of a vector, which here has one.
#[inline]
fn broadcast(block: __m128i) -> Vector {
    block
}

/// The block in the first place of a vector.
#[inline]
fn lowest(block: __m128i) -> Vector {
    block
}

/// The sum of the blocks of a vector.
#[inline]
fn fold(vector: Vector) -> __m128i {
    vector
}

/// What the counter of vector `n` of a batch is built on: the last two blocks are beyond the carry.
#[inline]
fn carried(n: usize, base: Vector, next: Vector) -> Vector {
    if n < 6 { base } else { next }
}

stitched!("aes,pclmulqdq,avx", 1, xmm_reg);
