//! Once per key: the AES-256 key schedule, and GHASH's field in the form the kernels compute in.
//!
//! GHASH reads bits in reverse. Reversing the bytes of a block leaves POLYVAL's field (RFC 8452, appendix A), where
//! `GHASH(H, X) = reverse(POLYVAL(x · reverse(H), reverse(X)))`, and where a product needs no shift: everything here, the
//! running hash too, is in that form. A product of two blocks is 256 bits (`lo`, `mid` and `hi`, which overlap by halves)
//! until [`reduce`] makes a block of it; sums of products are reduced once.

use core::arch::x86_64::*;

/// Rounds of AES-256, and one key more.
pub const ROUNDS: usize = 14;

/// The reduction constant in the upper half: x^127 + x^126 + x^121 + x^64 of POLYVAL's modulus.
pub const POLYNOMIAL: u64 = 0xc200_0000_0000_0000;

/// The AES-256 key schedule.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub fn round_keys(key: &[u8; 32]) -> [__m128i; ROUNDS + 1] {
    let (lo, hi) = key.split_at(16);
    let mut keys = [_mm_setzero_si128(); ROUNDS + 1];
    keys[0] = from_bytes(lo.first_chunk().expect("16 bytes"));
    keys[1] = from_bytes(hi.first_chunk().expect("16 bytes"));
    let rotated = _mm_set1_epi32(0x0c0f_0e0d);
    for at in 2..=ROUNDS {
        let before = keys[at - 1];
        let (word, constant) = match at % 2 {
            0 => (_mm_shuffle_epi8(before, rotated), 1 << (at / 2 - 1)),
            _ => (_mm_shuffle_epi32::<0xff>(before), 0),
        };
        // The last round substitutes bytes; moving rows changes nothing where all columns are one word.
        let word = _mm_aesenclast_si128(word, _mm_set1_epi32(constant));
        keys[at] = mix(keys[at - 2], word);
    }
    keys
}

/// One step of the key schedule: each word is the sum of the words before it, and of `word`.
#[inline]
#[target_feature(enable = "avx")]
fn mix(key: __m128i, word: __m128i) -> __m128i {
    let key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
    let key = _mm_xor_si128(key, _mm_slli_si128::<8>(key));
    _mm_xor_si128(key, word)
}

#[inline]
#[target_feature(enable = "aes,avx")]
pub fn encrypt_block(keys: &[__m128i; ROUNDS + 1], block: __m128i) -> __m128i {
    let mut state = _mm_xor_si128(block, keys[0]);
    for key in &keys[1..ROUNDS] {
        state = _mm_aesenc_si128(state, *key);
    }
    _mm_aesenclast_si128(state, keys[ROUNDS])
}

/// Powers of the hash key, the highest first, so that the last `n` belong to `n` blocks.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,avx")]
pub fn powers<const N: usize>(keys: &[__m128i; ROUNDS + 1]) -> [__m128i; N] {
    let h = double(reverse(encrypt_block(keys, _mm_setzero_si128())));
    let mut powers = [h; N];
    // By halves: a chain of products would wait for each.
    for n in 2..=N {
        powers[N - n] = multiply(powers[N - n / 2], powers[N - n.div_ceil(2)]);
    }
    powers
}

/// The product by x in POLYVAL's field, without a branch.
#[inline]
#[target_feature(enable = "avx")]
fn double(a: __m128i) -> __m128i {
    let carries = _mm_srli_epi64::<63>(a);
    let shifted = _mm_or_si128(_mm_slli_epi64::<1>(a), _mm_slli_si128::<8>(carries));
    let overflow = _mm_sub_epi64(_mm_setzero_si128(), _mm_srli_si128::<8>(carries));
    let mask = _mm_unpacklo_epi64(overflow, overflow);
    let modulus = _mm_set_epi64x(POLYNOMIAL.cast_signed(), 1);
    _mm_xor_si128(shifted, _mm_and_si128(mask, modulus))
}

/// The product of two blocks.
#[inline]
#[target_feature(enable = "pclmulqdq,avx")]
pub fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let lo = _mm_clmulepi64_si128::<0x00>(a, b);
    let hi = _mm_clmulepi64_si128::<0x11>(a, b);
    let mid = _mm_xor_si128(
        _mm_clmulepi64_si128::<0x01>(a, b),
        _mm_clmulepi64_si128::<0x10>(a, b),
    );
    reduce(lo, mid, hi)
}

/// A block of `lo + x^64 mid + x^128 hi`, by Montgomery's method: each step adds a multiple of the modulus that clears the lowest 64 bits.
#[inline]
#[target_feature(enable = "pclmulqdq,avx")]
pub fn reduce(lo: __m128i, mid: __m128i, hi: __m128i) -> __m128i {
    let polynomial = _mm_set_epi64x(0, POLYNOMIAL.cast_signed());
    let lo = _mm_xor_si128(lo, _mm_slli_si128::<8>(mid));
    let hi = _mm_xor_si128(hi, _mm_srli_si128::<8>(mid));
    let lo = _mm_xor_si128(
        _mm_shuffle_epi32::<0x4e>(lo),
        _mm_clmulepi64_si128::<0x00>(lo, polynomial),
    );
    let lo = _mm_xor_si128(
        _mm_shuffle_epi32::<0x4e>(lo),
        _mm_clmulepi64_si128::<0x00>(lo, polynomial),
    );
    _mm_xor_si128(lo, hi)
}

/// A block with its bytes reversed.
#[inline]
#[target_feature(enable = "avx")]
pub fn reverse(block: __m128i) -> __m128i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_shuffle_epi8(block, order)
}

#[inline]
#[target_feature(enable = "avx")]
pub fn from_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are readable behind the reference, and the load has no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub fn to_bytes(block: __m128i) -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: 16 bytes are writable behind the reference, and the store has no alignment.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), block) };
    bytes
}

/// Overwrites blocks so that the compiler cannot leave it out.
pub fn wipe(blocks: &mut [__m128i]) {
    for block in blocks.iter_mut() {
        // SAFETY: the reference is valid and aligned; zero is a value of the type.
        unsafe { core::ptr::write_volatile(block, core::mem::zeroed()) };
    }
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}
