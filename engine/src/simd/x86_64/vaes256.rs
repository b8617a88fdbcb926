//! VAES and VPCLMULQDQ on 256 bits: two blocks a vector, sixteen a batch.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_xor_si128 as xor_block, _mm256_add_epi32 as add,
    _mm256_aesenc_epi128 as aesenc, _mm256_aesenclast_epi128 as aesenclast,
    _mm256_broadcastsi128_si256 as broadcast, _mm256_bslli_epi128 as shift_left,
    _mm256_bsrli_epi128 as shift_right, _mm256_castsi256_si128, _mm256_clmulepi64_epi128 as clmul,
    _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_set1_epi64x as set_halves,
    _mm256_shuffle_epi8 as shuffle, _mm256_shuffle_epi32 as shuffle_words, _mm256_storeu_si256,
    _mm256_unpackhi_epi64 as high_halves, _mm256_unpacklo_epi64 as low_halves,
    _mm256_xor_si256 as xor, _mm256_zextsi128_si256 as lowest,
};

use crate::simd::cpu::Vaes256 as Token;

type Vector = __m256i;

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(src: *const u8) -> Vector {
    // SAFETY: the caller has 32 readable bytes there; the load has no alignment.
    unsafe { _mm256_loadu_si256(src.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(dst: *mut u8, vector: Vector) {
    // SAFETY: the caller has 32 writable bytes there; the store has no alignment.
    unsafe { _mm256_storeu_si256(dst.cast(), vector) }
}

/// The sum of the blocks of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(vector: Vector) -> __m128i {
    xor_block(
        _mm256_castsi256_si128(vector),
        _mm256_extracti128_si256::<1>(vector),
    )
}

/// What the counters of vector `n` of a batch are built on: the last two blocks are beyond the carry.
#[inline]
#[target_feature(enable = "avx2")]
fn carried(n: usize, base: Vector, next: Vector) -> Vector {
    if n < 7 { base } else { next }
}

stitched!("aes,pclmulqdq,avx2,vaes,vpclmulqdq", 2, ymm_reg);
