//! CRCs of data on its way: the engine's kernel where this CPU has one, and `crc-fast` for the rest.

use crc_fast::{CrcAlgorithm, Digest};
use strongroom_engine::simd::crc;

/// A CRC in the making.
pub struct Crc {
    algorithm: CrcAlgorithm,
    register: u64,
}

impl Crc {
    pub fn new(algorithm: CrcAlgorithm) -> Self {
        let register = Digest::new(algorithm).get_state();
        Self {
            algorithm,
            register,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let (register, tail) = match self.algorithm {
            CrcAlgorithm::Crc32IsoHdlc => crc::fold(&crc::CRC32_ISO_HDLC, self.register, bytes),
            CrcAlgorithm::Crc32Iscsi => crc::fold(&crc::CRC32_ISCSI, self.register, bytes),
            CrcAlgorithm::Crc64Nvme => crc::fold(&crc::CRC64_NVME, self.register, bytes),
            _ => (self.register, bytes),
        };
        self.register = register;
        if !tail.is_empty() {
            let mut digest = Digest::new_with_init_state(self.algorithm, register);
            digest.update(tail);
            self.register = digest.get_state();
        }
    }

    pub fn finish(self) -> u64 {
        Digest::new_with_init_state(self.algorithm, self.register).finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_what_crc_fast_makes_of_the_whole() {
        let bytes: Vec<u8> = (0..5000u32).map(|n| (n * 7 + n / 256) as u8).collect();
        for algorithm in [
            CrcAlgorithm::Crc32IsoHdlc,
            CrcAlgorithm::Crc32Iscsi,
            CrcAlgorithm::Crc64Nvme,
        ] {
            for cut in [0, 1, 127, 128, 300, 4999, 5000] {
                let mut crc = Crc::new(algorithm);
                crc.update(&bytes[..cut]);
                crc.update(&bytes[cut..]);
                assert_eq!(crc.finish(), crc_fast::checksum(algorithm, &bytes));
            }
        }
    }
}
