//! The CRC kernel against `crc-fast`, which also takes what it leaves, and against the definition.

use crc_fast::{CrcAlgorithm, Digest};
use strongroom_engine::simd::{cpu, crc as kernel};

const ALL: [(CrcAlgorithm, &kernel::Polynomial, u64, u64); 3] = [
    (
        CrcAlgorithm::Crc64Nvme,
        &kernel::CRC64_NVME,
        !0,
        0xae8b_1486_0a79_9888,
    ),
    (
        CrcAlgorithm::Crc32IsoHdlc,
        &kernel::CRC32_ISO_HDLC,
        0xffff_ffff,
        0xcbf4_3926,
    ),
    (
        CrcAlgorithm::Crc32Iscsi,
        &kernel::CRC32_ISCSI,
        0xffff_ffff,
        0xe306_9283,
    ),
];

/// Pseudorandom numbers: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 56) as u8).collect()
    }
}

fn expected(algorithm: CrcAlgorithm, register: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(algorithm, register);
    digest.update(bytes);
    digest.get_state()
}

/// One bit at a time, by the definition.
fn by_bits(reflected: u64, register: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(register, |register, byte| {
        (0..8).fold(register ^ u64::from(*byte), |r, _| {
            (r >> 1) ^ ((r & 1) * reflected)
        })
    })
}

/// The register after the kernel, and after what it left.
fn update(
    algorithm: CrcAlgorithm,
    polynomial: &kernel::Polynomial,
    register: u64,
    bytes: &[u8],
) -> u64 {
    let (register, tail) = kernel::fold(polynomial, register, bytes);
    expected(algorithm, register, tail)
}

#[test]
fn the_check_values_hold() {
    for (algorithm, polynomial, mask, check) in ALL {
        let register = update(algorithm, polynomial, mask, b"123456789");
        assert_eq!(register ^ mask, check);
    }
}

#[test]
fn every_length_agrees_from_any_register() {
    let mut random = Random(1);
    let bytes = random.bytes(1024 + 32);
    for (algorithm, polynomial, mask, _) in ALL {
        for len in 0..=1024 {
            let bytes = &bytes[random.below(32)..][..len];
            for register in [0, mask, random.next() & mask] {
                assert_eq!(
                    update(algorithm, polynomial, register, bytes),
                    expected(algorithm, register, bytes),
                    "{algorithm:?}, {len} bytes"
                );
            }
        }
    }
}

#[test]
fn any_pieces_make_the_whole() {
    let mut random = Random(2);
    for (algorithm, polynomial, mask, _) in ALL {
        for _ in 0..200 {
            let len = random.below(100_000);
            let bytes = random.bytes(len);
            let begun = random.next() & mask;
            let (mut register, mut rest) = (begun, &bytes[..]);
            while !rest.is_empty() {
                let most = [40, 300, 5_000, 60_000][random.below(4)];
                let (piece, behind) = rest.split_at(random.below(most).min(rest.len()));
                register = update(algorithm, polynomial, register, piece);
                rest = behind;
            }
            assert_eq!(register, expected(algorithm, begun, &bytes));
        }
    }
}

/// One bit set at a time, and none: a sum of these is every input.
#[test]
fn the_kernel_takes_whole_vectors_and_agrees_with_the_definition() {
    for ((_, polynomial, mask, _), reflected) in
        ALL.into_iter()
            .zip([0x9a6c_9329_ac4b_c9b5, 0xedb8_8320, 0x82f6_3b78])
    {
        for len in [0, 31, 127, 128, 129, 159, 160, 300, 511] {
            for bit in 0..=len * 8 {
                let mut bytes = vec![0; len];
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte = 1 << (bit % 8);
                }
                let (register, tail) = kernel::fold(polynomial, mask, &bytes);
                let taken = len - tail.len();
                if cpu::best().name() == "vaes-avx2" {
                    assert_eq!(taken, if len < 128 { 0 } else { len & !31 });
                }
                assert_eq!(register, by_bits(reflected, mask, &bytes[..taken]));
            }
        }
    }
}
