//! CRCs with VPCLMULQDQ on 256 bits: two blocks a vector, and one reduction a call.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128 as clmul_block, _mm_cvtsi64_si128 as lowest_half,
    _mm_cvtsi128_si64, _mm_extract_epi64, _mm_set_epi64x, _mm_xor_si128 as xor_block,
    _mm256_broadcastsi128_si256 as broadcast, _mm256_castsi256_si128,
    _mm256_clmulepi64_epi128 as clmul, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_xor_si256 as xor, _mm256_zextsi128_si256 as lowest,
};

use crate::simd::cpu::Vaes256 as Token;
use crate::simd::crc::{BATCH, Polynomial, VECTOR};

type Bytes = [u8; VECTOR];

/// The register after all whole vectors, and what is less than one: all, where there is no batch.
pub fn fold<'a>(
    _: Token,
    polynomial: &Polynomial,
    register: u64,
    bytes: &'a [u8],
) -> (u64, &'a [u8]) {
    let (vectors, tail) = bytes.as_chunks();
    let ([first, batches @ ..], rest) = vectors.as_chunks() else {
        return (register, bytes);
    };
    // SAFETY: the token says that the CPU has the features.
    let register = unsafe { fold_vectors(polynomial, register, first, batches, rest) };
    (register, tail)
}

#[target_feature(enable = "avx2,pclmulqdq,vpclmulqdq")]
fn fold_vectors(
    polynomial: &Polynomial,
    register: u64,
    first: &[Bytes; BATCH],
    batches: &[[Bytes; BATCH]],
    rest: &[Bytes],
) -> u64 {
    let mut sums = first.each_ref().map(|bytes| load(bytes));
    sums[0] = xor(sums[0], lowest(lowest_half(register.cast_signed())));
    let by = broadcast(block(polynomial.by_batch));
    for batch in batches {
        for (sum, bytes) in sums.iter_mut().zip(batch) {
            *sum = xor(carry(*sum, by), load(bytes));
        }
    }
    let by = broadcast(block(polynomial.by_vector));
    let [mut sum, others @ ..] = sums;
    for other in others {
        sum = xor(carry(sum, by), other);
    }
    for bytes in rest {
        sum = xor(carry(sum, by), load(bytes));
    }
    reduce(polynomial, sum)
}

/// What the blocks are as far onward as the factors say.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn carry(blocks: __m256i, factors: __m256i) -> __m256i {
    xor(
        clmul::<0x00>(blocks, factors),
        clmul::<0x11>(blocks, factors),
    )
}

/// The register after a vector: the remainder of its bits with 64 zeros behind.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq,vpclmulqdq")]
fn reduce(polynomial: &Polynomial, sum: __m256i) -> u64 {
    let by = block(polynomial.by_block);
    let sum = xor_block(
        _mm256_castsi256_si128(carry(sum, lowest(by))),
        _mm256_extracti128_si256::<1>(sum),
    );
    // The zeros put the first half one block before the last, and the second one just before it.
    let sum = xor_block(
        clmul_block::<0x10>(sum, by),
        lowest_half(_mm_extract_epi64::<1>(sum)),
    );
    // Barrett: the first half is cancelled by a multiple of the polynomial, and the second one is left.
    let by = block([polynomial.inverse, polynomial.reflected]);
    let quotient = clmul_block::<0x00>(sum, by);
    let product = clmul_block::<0x10>(quotient, by);
    let high = _mm_extract_epi64::<1>(product) << 1;
    let carried = _mm_cvtsi128_si64(product).cast_unsigned() >> 63;
    (_mm_extract_epi64::<1>(sum) ^ high).cast_unsigned() ^ carried
}

#[inline]
#[target_feature(enable = "sse2")]
fn block([first, second]: [u64; 2]) -> __m128i {
    _mm_set_epi64x(second.cast_signed(), first.cast_signed())
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &Bytes) -> __m256i {
    // SAFETY: the array is as long as the vector; the load has no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
