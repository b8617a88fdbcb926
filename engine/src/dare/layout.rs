//! Where plaintext bytes lie in a stream of packages: pure arithmetic, no data.
//!
//! Every package but the last carries exactly [`PAYLOAD`] bytes, so places follow from lengths alone.

use std::ops::Range;

use crate::dare::header::{HEADER, OVERHEAD, PACKAGE, PAYLOAD, TAG};

/// Packages are numbered with 32 bits.
pub const PACKAGES_MAX: u64 = 1 << 32;
/// The longest plaintext of one stream: 256 TiB.
pub const PLAIN_MAX: u64 = PACKAGES_MAX * PAYLOAD as u64;
/// The longest sealed stream.
pub const SEALED_MAX: u64 = PACKAGES_MAX * PACKAGE as u64;

const _: () = assert!(PAYLOAD == 1 << 16 && HEADER + TAG == OVERHEAD);
const _: () = assert!(PLAIN_MAX == 1 << 48 && SEALED_MAX == (1 << 48) + (1 << 37));

/// Bytes that `plain` bytes take when sealed; `None` above [`PLAIN_MAX`].
pub fn sealed_len(plain: u64) -> Option<u64> {
    (plain <= PLAIN_MAX).then(|| plain + packages(plain) * OVERHEAD as u64)
}

/// Plaintext bytes in a sealed stream of `sealed` bytes; `None` if no stream has that length.
pub fn opened_len(sealed: u64) -> Option<u64> {
    if sealed > SEALED_MAX {
        return None;
    }
    let rest = sealed % PACKAGE as u64;
    let last = match rest {
        0 => 0,
        _ => rest.checked_sub(OVERHEAD as u64).filter(|&n| n > 0)?,
    };
    Some(sealed / PACKAGE as u64 * PAYLOAD as u64 + last)
}

/// Packages that `plain` bytes make.
pub fn packages(plain: u64) -> u64 {
    plain.div_ceil(PAYLOAD as u64)
}

/// Plaintext bytes in package `seq` of a stream of `plain` bytes; 0 past its end.
pub fn payload_len(plain: u64, seq: u64) -> usize {
    let start = seq.saturating_mul(PAYLOAD as u64);
    let len = plain.saturating_sub(start).min(PAYLOAD as u64);
    usize::try_from(len).expect("at most 65,536")
}

/// The packages that hold a range of plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackageRange {
    /// Number of the first package, which is also its sequence number.
    pub first: u64,
    /// How many packages; 0 for an empty range.
    pub count: u64,
    /// Plaintext bytes to drop at the front of the first package.
    pub skip: usize,
    /// Plaintext bytes wanted, from there on.
    pub len: u64,
    /// Bytes of the sealed stream that hold these packages, first.
    pub sealed_start: u64,
    /// And one past the last.
    pub sealed_end: u64,
}

impl PackageRange {
    /// The packages of `range` in a stream of `plain` bytes; `None` if the range is not inside it.
    pub fn new(plain: u64, range: Range<u64>) -> Option<Self> {
        if range.start > range.end || range.end > plain {
            return None;
        }
        let sealed = sealed_len(plain)?;
        let first = range.start / PAYLOAD as u64;
        let len = range.end - range.start;
        if len == 0 {
            let at = (first * PACKAGE as u64).min(sealed);
            return Some(Self {
                first,
                count: 0,
                skip: 0,
                len,
                sealed_start: at,
                sealed_end: at,
            });
        }
        let end = range.end.div_ceil(PAYLOAD as u64);
        Some(Self {
            first,
            count: end - first,
            skip: (range.start % PAYLOAD as u64) as usize,
            len,
            sealed_start: first * PACKAGE as u64,
            sealed_end: (end * PACKAGE as u64).min(sealed),
        })
    }

    /// The sealed bytes to read.
    pub fn sealed(&self) -> Range<u64> {
        self.sealed_start..self.sealed_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn published_lengths() {
        const MIB: u64 = 1 << 20;
        for (plain, sealed) in [
            (0, 0),
            (1, 33),
            (65_535, 65_567),
            (65_536, 65_568),
            (65_537, 65_601),
            (5 * MIB, 5_245_440),
            (5 << 30, 5_371_330_560),
            (5 << 40, 5_500_242_493_440),
            (PLAIN_MAX, SEALED_MAX),
        ] {
            assert_eq!(sealed_len(plain), Some(sealed));
            assert_eq!(opened_len(sealed), Some(plain));
        }
        assert_eq!(sealed_len(PLAIN_MAX + 1), None);
        assert_eq!(opened_len(SEALED_MAX + 1), None);
        assert_eq!(sealed_len(u64::MAX), None);
        assert_eq!(opened_len(u64::MAX), None);
    }

    #[test]
    fn no_stream_has_a_tail_without_payload() {
        for packages in [0, 1, 7] {
            for tail in 1..=32 {
                assert_eq!(opened_len(packages * PACKAGE as u64 + tail), None);
            }
        }
    }

    #[test]
    fn a_published_range() {
        // Two parts of equal length; the range lies in the second.
        let part = opened_len(297_580_380).expect("a stream");
        assert_eq!(part, 297_435_132);
        let start = 594_870_256 - part;
        let range = PackageRange::new(part, start..start + 8).expect("inside");
        assert_eq!(range.first, 4538);
        assert_eq!(range.skip, 32_756);
        assert_eq!(297_580_380 + range.sealed_start, 595_127_964);
        assert_eq!(range.sealed_end - range.sealed_start, 32_796);
    }

    #[test]
    fn ranges_outside_are_refused() {
        assert_eq!(PackageRange::new(10, 5..11), None);
        assert_eq!(PackageRange::new(0, 0..1), None);
        assert_eq!(PackageRange::new(10, Range { start: 6, end: 5 }), None);
        assert_eq!(PackageRange::new(u64::MAX, 0..1), None);
        let empty = PackageRange::new(65_536, 65_536..65_536).expect("inside");
        assert_eq!((empty.count, empty.sealed()), (0, 65_568..65_568));
        let empty = PackageRange::new(70_000, 70_000..70_000).expect("inside");
        assert_eq!((empty.count, empty.len), (0, 0));
        assert!(empty.sealed().is_empty());
    }

    proptest! {
        #[test]
        fn lengths_are_inverse(plain in 0..=PLAIN_MAX) {
            let sealed = sealed_len(plain).expect("in bounds");
            prop_assert_eq!(opened_len(sealed), Some(plain));
        }

        /// Against a table of the place of every plaintext byte.
        #[test]
        fn ranges_agree_with_counting(plain in 1u64..400_000, a in 0u64..400_000, b in 0u64..400_000) {
            let (a, b) = (a % plain, b % plain);
            let (start, end) = (a.min(b), a.max(b) + 1);
            let mut offset = 0;
            let mut wanted: Option<(u64, u64, usize, u64, u64)> = None;
            for seq in 0..packages(plain) {
                let payload = payload_len(plain, seq) as u64;
                let plain_start = seq * PAYLOAD as u64;
                if plain_start < end && plain_start + payload > start {
                    let skip = start.saturating_sub(plain_start) as usize;
                    let entry = wanted.get_or_insert((seq, 0, skip, offset, 0));
                    entry.1 += 1;
                    entry.4 = offset + payload + OVERHEAD as u64;
                }
                offset += payload + OVERHEAD as u64;
            }
            prop_assert_eq!(offset, sealed_len(plain).expect("in bounds"));
            let (first, count, skip, sealed_start, sealed_end) = wanted.expect("not empty");
            let expected = PackageRange { first, count, skip, len: end - start, sealed_start, sealed_end };
            prop_assert_eq!(PackageRange::new(plain, start..end), Some(expected));
        }
    }
}
