//! Eight streams in the lanes of 256-bit vectors. Eight more beside them cost little: the steps of one set fill the waits of the
//! other.

use core::arch::x86_64::*;

use super::steps::sines;
use super::{Block, LANES, States};
use crate::simd::cpu::Avx2;

/// Compresses the first `count` blocks of each lane, of which the first `used` matter.
pub fn compress(
    _: Avx2,
    states: &mut States,
    lanes: &[&[Block]; LANES],
    used: usize,
    count: usize,
) {
    // SAFETY: the token proves AVX2.
    unsafe {
        if used <= 8 {
            of_sets::<1>(states, lanes, count);
        } else {
            of_sets::<2>(states, lanes, count);
        }
    }
}

/// One word of each of `8 * N` streams.
type Words<const N: usize> = [__m256i; N];

#[target_feature(enable = "avx2")]
fn of_sets<const N: usize>(states: &mut States, lanes: &[&[Block]; LANES], count: usize) {
    let mut state = [[_mm256_setzero_si256(); N]; 4];
    for (word, lanes) in state.iter_mut().zip(states.iter()) {
        for (vector, lanes) in word.iter_mut().zip(lanes.as_chunks().0) {
            *vector = load_words(lanes);
        }
    }
    let sines = sines();
    for n in 0..count {
        let mut block = [[_mm256_setzero_si256(); N]; 16];
        for (set, lanes) in lanes.as_chunks().0.iter().take(N).enumerate() {
            let low = transposed(lanes, n, 0);
            let high = transposed(lanes, n, 32);
            for word in 0..8 {
                block[word][set] = low[word];
                block[word + 8][set] = high[word];
            }
        }
        state = after_block!(state, &block, sines);
    }
    for (word, lanes) in state.iter().zip(states.iter_mut()) {
        for (vector, lanes) in word.iter().zip(lanes.as_chunks_mut().0) {
            store_words(*vector, lanes);
        }
    }
}

/// Eight words of block `n`, from byte `at` on, of each lane: one vector per word.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(lanes: &[&[Block]; 8], n: usize, at: usize) -> [__m256i; 8] {
    let mut rows = [_mm256_setzero_si256(); 8];
    // Row `r` holds words 0 to 3 of lane `r` in its lower half and of lane `r + 4` in its upper half, row `r + 4` words 4 to 7.
    for r in 0..4 {
        let (near, far) = (&lanes[r][n], &lanes[r + 4][n]);
        for half in 0..2 {
            let at = at + half * 16;
            rows[r + half * 4] = _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(load_bytes(near, at)),
                load_bytes(far, at),
            );
        }
    }
    let mut out = [_mm256_setzero_si256(); 8];
    for half in [0, 4] {
        let low01 = _mm256_unpacklo_epi32(rows[half], rows[half + 1]);
        let high01 = _mm256_unpackhi_epi32(rows[half], rows[half + 1]);
        let low23 = _mm256_unpacklo_epi32(rows[half + 2], rows[half + 3]);
        let high23 = _mm256_unpackhi_epi32(rows[half + 2], rows[half + 3]);
        out[half] = _mm256_unpacklo_epi64(low01, low23);
        out[half + 1] = _mm256_unpackhi_epi64(low01, low23);
        out[half + 2] = _mm256_unpacklo_epi64(high01, high23);
        out[half + 3] = _mm256_unpackhi_epi64(high01, high23);
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(block: &Block, at: usize) -> __m128i {
    let bytes: &[u8] = &block[at..at + 16];
    // SAFETY: the slice is 16 bytes long, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(words: &[u32; 8]) -> __m256i {
    // SAFETY: eight words are 32 bytes, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_words(vector: __m256i, words: &mut [u32; 8]) {
    // SAFETY: eight words are 32 bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn splat<const N: usize>(x: u32) -> Words<N> {
    [_mm256_set1_epi32(x.cast_signed()); N]
}

#[inline]
#[target_feature(enable = "avx2")]
fn add<const N: usize>(mut x: Words<N>, y: Words<N>) -> Words<N> {
    for n in 0..N {
        x[n] = _mm256_add_epi32(x[n], y[n]);
    }
    x
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate<const N: usize>(mut x: Words<N>, left: i32) -> Words<N> {
    let (left, right) = (_mm_cvtsi32_si128(left), _mm_cvtsi32_si128(32 - left));
    for x in &mut x {
        *x = _mm256_or_si256(_mm256_sll_epi32(*x, left), _mm256_srl_epi32(*x, right));
    }
    x
}

#[inline]
#[target_feature(enable = "avx2")]
fn f<const N: usize>(mut sum: Words<N>, x: Words<N>, y: Words<N>, z: Words<N>) -> Words<N> {
    for n in 0..N {
        let chosen = _mm256_and_si256(x[n], _mm256_xor_si256(y[n], z[n]));
        sum[n] = _mm256_add_epi32(sum[n], _mm256_xor_si256(z[n], chosen));
    }
    sum
}

/// The two terms share no bit, so they may be added one by one: the one without `x` is there early.
#[inline]
#[target_feature(enable = "avx2")]
fn g<const N: usize>(mut sum: Words<N>, x: Words<N>, y: Words<N>, z: Words<N>) -> Words<N> {
    for n in 0..N {
        let early = _mm256_add_epi32(sum[n], _mm256_andnot_si256(z[n], y[n]));
        sum[n] = _mm256_add_epi32(early, _mm256_and_si256(x[n], z[n]));
    }
    sum
}

#[inline]
#[target_feature(enable = "avx2")]
fn h<const N: usize>(mut sum: Words<N>, x: Words<N>, y: Words<N>, z: Words<N>) -> Words<N> {
    for n in 0..N {
        let early = _mm256_xor_si256(y[n], z[n]);
        sum[n] = _mm256_add_epi32(sum[n], _mm256_xor_si256(x[n], early));
    }
    sum
}

#[inline]
#[target_feature(enable = "avx2")]
fn i<const N: usize>(mut sum: Words<N>, x: Words<N>, y: Words<N>, z: Words<N>) -> Words<N> {
    for n in 0..N {
        let not_z = _mm256_xor_si256(z[n], _mm256_set1_epi32(-1));
        let mixed = _mm256_xor_si256(y[n], _mm256_or_si256(x[n], not_z));
        sum[n] = _mm256_add_epi32(sum[n], mixed);
    }
    sum
}
