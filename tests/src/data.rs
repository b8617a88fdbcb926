//! Test data: bytes that a seed names, so that content needs no copy to be compared with; and a seeded chance.

use std::io::Read;

/// An endless run of incompressible bytes, the same for the same seed at any offset.
#[derive(Clone)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A seed from a name, so that every object has content of its own.
    pub fn named(name: &str) -> Self {
        // FNV-1a: short, and stable across processes, unlike the standard hasher.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self::new(hash)
    }

    /// Writes the bytes from `offset` on over `out`.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let word = mix(self.seed ^ mix(at / 8)).to_le_bytes();
            let skip = (at % 8) as usize;
            let n = (8 - skip).min(out.len() - done);
            out[done..done + n].copy_from_slice(&word[skip..skip + n]);
            done += n;
        }
    }

    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(0, &mut out);
        out
    }

    /// Whether `bytes` is what stands at `offset`.
    pub fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut expected = [0; 4096];
        let mut at = offset;
        bytes.chunks(expected.len()).all(|chunk| {
            let expected = &mut expected[..chunk.len()];
            self.fill(at, expected);
            at += chunk.len() as u64;
            expected == chunk
        })
    }

    /// The first `len` bytes as a stream.
    pub fn reader(&self, len: u64) -> impl Read + use<> {
        Reader {
            pattern: self.clone(),
            at: 0,
            len,
        }
    }
}

/// A small random generator whose seed is printed, so that a failure can be run again
/// (`STRONGROOM_TEST_SEED=N`).
pub struct Chance(u64);

impl Chance {
    /// From `STRONGROOM_TEST_SEED`, else from the clock.
    pub fn from_env() -> Self {
        let given = std::env::var("STRONGROOM_TEST_SEED").ok();
        let seed = given.and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| {
                d.as_secs() * 1_000_000 + u64::from(d.subsec_micros())
            })
        });
        eprintln!("STRONGROOM_TEST_SEED={seed}");
        Self(seed)
    }

    /// An independent generator, for a thread of its own.
    pub fn branch(&mut self) -> Self {
        Self(self.number())
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `from..to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.number() % (to - from)
    }

    /// Whether an event of one in `n` happens.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.number().is_multiple_of(n)
    }
}

struct Reader {
    pattern: Pattern,
    at: u64,
    len: u64,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = buf
            .len()
            .min(usize::try_from(self.len - self.at).unwrap_or(usize::MAX));
        self.pattern.fill(self.at, &mut buf[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

/// The finalizer of SplitMix64: every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_agree_with_the_whole() {
        let pattern = Pattern::named("a");
        let whole = pattern.bytes(10_000);
        for (at, len) in [(0, 1), (1, 7), (7, 2), (8, 8), (4097, 5000)] {
            let mut piece = vec![0; len];
            pattern.fill(at as u64, &mut piece);
            assert_eq!(piece, whole[at..at + len]);
            assert!(pattern.matches(at as u64, &piece));
            piece[len / 2] ^= 1;
            assert!(!pattern.matches(at as u64, &piece));
        }
        let mut streamed = Vec::new();
        pattern.reader(10_000).read_to_end(&mut streamed).unwrap();
        assert_eq!(streamed, whole);
        assert_ne!(Pattern::named("b").bytes(64), whole[..64]);
    }
}
