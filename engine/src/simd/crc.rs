//! Reflected CRCs of up to 64 bits over long input, by carry-less multiplication.
//!
//! Bit `i` of a block of `n` bits stands for `x^(n - 1 - i)`, as a message begins with its highest power. All arithmetic is that of a
//! CRC of 64 bits: one of 32 bits is the one whose polynomial is multiplied by `x^32`, and its register is the low half.
//!
//! Source: V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009.

#[cfg(target_arch = "x86_64")]
use super::{
    cpu::{self, Path},
    x86_64::crc256,
};

pub static CRC32_ISO_HDLC: Polynomial = Polynomial::new(0xedb8_8320);
pub static CRC32_ISCSI: Polynomial = Polynomial::new(0x82f6_3b78);
pub static CRC64_NVME: Polynomial = Polynomial::new(0x9a6c_9329_ac4b_c9b5);

/// Bytes of a vector.
pub const VECTOR: usize = 32;
/// Vectors of a batch, each a sum of its own: so many hide the latency of a multiplication.
pub const BATCH: usize = 4;

/// A polynomial, and what folding by it takes.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "there is no kernel")
)]
pub struct Polynomial {
    /// All of it but its highest power.
    pub(super) reflected: u64,
    /// The 64 highest powers of the quotient of `x^128` by it.
    pub(super) inverse: u64,
    /// Factors that carry the halves of a block as many bytes onward.
    pub(super) by_batch: [u64; 2],
    pub(super) by_vector: [u64; 2],
    pub(super) by_block: [u64; 2],
}

impl Polynomial {
    const fn new(reflected: u64) -> Self {
        Self {
            reflected,
            inverse: divide(127, reflected).0,
            by_batch: factors(BATCH * VECTOR, reflected),
            by_vector: factors(VECTOR, reflected),
            by_block: factors(16, reflected),
        }
    }
}

/// A product of two halves, read as a block, is one power of `x` too high, and the first half stands for `x^64` more than the other.
const fn factors(bytes: usize, reflected: u64) -> [u64; 2] {
    let power = 8 * bytes - 1;
    [divide(power + 64, reflected).1, divide(power, reflected).1]
}

/// `x^power` divided by the polynomial: the 64 lowest powers of the quotient, and the remainder.
const fn divide(power: usize, reflected: u64) -> (u64, u64) {
    let (mut quotient, mut remainder) = (0, 1 << 63);
    let mut n = 0;
    while n < power {
        let carry = remainder & 1;
        quotient = (quotient >> 1) | (carry << 63);
        remainder = (remainder >> 1) ^ (carry * reflected);
        n += 1;
    }
    (quotient, remainder)
}

/// The register after the bytes at the front that a kernel takes, and the bytes behind them: all, where none of them suits the CPU.
///
/// On 512 bits `crc-fast` has a kernel, and there is none here.
pub fn fold<'a>(polynomial: &Polynomial, register: u64, bytes: &'a [u8]) -> (u64, &'a [u8]) {
    #[cfg(target_arch = "x86_64")]
    if let Path::Vaes256(token) = cpu::best() {
        return crc256::fold(token, polynomial, register, bytes);
    }
    _ = polynomial;
    (register, bytes)
}
