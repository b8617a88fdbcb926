//! Sixteen streams in the lanes of 512-bit vectors, which rotate and mix three words in one instruction each.

use core::arch::x86_64::*;

use super::steps::sines;
use super::{Block, LANES, States};
use crate::simd::cpu::Avx512;

/// Compresses the first `count` blocks of each lane.
pub fn compress(_: Avx512, states: &mut States, lanes: &[&[Block]; LANES], count: usize) {
    // SAFETY: the token proves AVX-512F.
    unsafe { with_avx512(states, lanes, count) }
}

#[target_feature(enable = "avx512f")]
fn with_avx512(states: &mut States, lanes: &[&[Block]; LANES], count: usize) {
    let mut state = [_mm512_setzero_si512(); 4];
    for (vector, words) in state.iter_mut().zip(states.iter()) {
        *vector = load_words(words);
    }
    let sines = sines();
    for n in 0..count {
        let block = transposed(lanes, n);
        state = after_block!(state, &block, sines);
    }
    for (vector, words) in state.iter().zip(states.iter_mut()) {
        store_words(*vector, words);
    }
}

/// Block `n` of each lane: one vector per word.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lanes: &[&[Block]; LANES], n: usize) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    // Quarter `q` of `words[4 * g + w]` is word `4 * q + w` of lanes `4 * g` to `4 * g + 3`.
    let mut words = [zero; 16];
    for g in [0, 4, 8, 12] {
        let row = |r: usize| &lanes[g + r][n];
        let (r0, r1) = (load_block(row(0)), load_block(row(1)));
        let (r2, r3) = (load_block(row(2)), load_block(row(3)));
        let (low01, high01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (low23, high23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        words[g] = _mm512_unpacklo_epi64(low01, low23);
        words[g + 1] = _mm512_unpackhi_epi64(low01, low23);
        words[g + 2] = _mm512_unpacklo_epi64(high01, high23);
        words[g + 3] = _mm512_unpackhi_epi64(high01, high23);
    }
    let mut out = [zero; 16];
    for w in 0..4 {
        let [g0, g1, g2, g3] = [words[w], words[w + 4], words[w + 8], words[w + 12]];
        // Quarters 0 and 2 of two groups, then 1 and 3.
        let even01 = _mm512_shuffle_i32x4::<0b10_00_10_00>(g0, g1);
        let even23 = _mm512_shuffle_i32x4::<0b10_00_10_00>(g2, g3);
        let odd01 = _mm512_shuffle_i32x4::<0b11_01_11_01>(g0, g1);
        let odd23 = _mm512_shuffle_i32x4::<0b11_01_11_01>(g2, g3);
        out[w] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even01, even23);
        out[w + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd01, odd23);
        out[w + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even01, even23);
        out[w + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd01, odd23);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_block(block: &Block) -> __m512i {
    // SAFETY: a block is 64 bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(words: &[u32; LANES]) -> __m512i {
    // SAFETY: sixteen words are 64 bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(vector: __m512i, words: &mut [u32; LANES]) {
    // SAFETY: sixteen words are 64 bytes, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(x: u32) -> __m512i {
    _mm512_set1_epi32(x.cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(x: __m512i, y: __m512i) -> __m512i {
    _mm512_add_epi32(x, y)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rotate(x: __m512i, left: i32) -> __m512i {
    _mm512_rolv_epi32(x, _mm512_set1_epi32(left))
}

// A mix is one instruction that looks up its bits in a table: entry `4 * x + 2 * y + z` is the function's value.

/// `x ? y : z`
#[inline]
#[target_feature(enable = "avx512f")]
fn f(sum: __m512i, x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    add(sum, _mm512_ternarylogic_epi32::<0b1100_1010>(x, y, z))
}

/// `z ? x : y`
#[inline]
#[target_feature(enable = "avx512f")]
fn g(sum: __m512i, x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    add(sum, _mm512_ternarylogic_epi32::<0b1110_0100>(x, y, z))
}

/// `x ^ y ^ z`
#[inline]
#[target_feature(enable = "avx512f")]
fn h(sum: __m512i, x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    add(sum, _mm512_ternarylogic_epi32::<0b1001_0110>(x, y, z))
}

/// `y ^ (x | !z)`
#[inline]
#[target_feature(enable = "avx512f")]
fn i(sum: __m512i, x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    add(sum, _mm512_ternarylogic_epi32::<0b0011_1001>(x, y, z))
}
