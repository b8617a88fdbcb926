//! VAES and VPCLMULQDQ on 512 bits: four blocks a vector, thirty-two a batch.

use core::arch::x86_64::{
    __m128i, __m512i, _mm_xor_si128 as xor_block, _mm256_castsi256_si128, _mm256_extracti128_si256,
    _mm256_xor_si256, _mm512_add_epi32 as add, _mm512_aesenc_epi128 as aesenc,
    _mm512_aesenclast_epi128 as aesenclast, _mm512_broadcast_i32x4 as broadcast,
    _mm512_bslli_epi128 as shift_left, _mm512_bsrli_epi128 as shift_right, _mm512_castsi512_si256,
    _mm512_clmulepi64_epi128 as clmul, _mm512_extracti64x4_epi64, _mm512_loadu_si512,
    _mm512_mask_blend_epi64, _mm512_set1_epi64 as set_halves, _mm512_shuffle_epi8 as shuffle,
    _mm512_shuffle_epi32 as shuffle_words, _mm512_storeu_si512,
    _mm512_unpackhi_epi64 as high_halves, _mm512_unpacklo_epi64 as low_halves,
    _mm512_xor_si512 as xor, _mm512_zextsi128_si512 as lowest,
};

use crate::simd::cpu::Vaes512 as Token;

type Vector = __m512i;

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(src: *const u8) -> Vector {
    // SAFETY: the caller has 64 readable bytes there; the load has no alignment.
    unsafe { _mm512_loadu_si512(src.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(dst: *mut u8, vector: Vector) {
    // SAFETY: the caller has 64 writable bytes there; the store has no alignment.
    unsafe { _mm512_storeu_si512(dst.cast(), vector) }
}

/// The sum of the blocks of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(vector: Vector) -> __m128i {
    let pair = _mm256_xor_si256(
        _mm512_castsi512_si256(vector),
        _mm512_extracti64x4_epi64::<1>(vector),
    );
    xor_block(
        _mm256_castsi256_si128(pair),
        _mm256_extracti128_si256::<1>(pair),
    )
}

/// What the counters of vector `n` of a batch are built on: the last two blocks, half of the last vector, are beyond the carry.
#[inline]
#[target_feature(enable = "avx512f")]
fn carried(n: usize, base: Vector, next: Vector) -> Vector {
    if n < 7 {
        base
    } else {
        _mm512_mask_blend_epi64(0b1111_0000, base, next)
    }
}

stitched!(
    "aes,pclmulqdq,avx2,vaes,vpclmulqdq,avx512f,avx512bw",
    4,
    zmm_reg
);
