//! MD5 of one stream, and of several at once: one stream is bound by the latency of its chain, so streams side by side in the
//! lanes of vectors come at a fraction of the cost each.
//!
//! - An [`Md5`] may be updated by either way, in any order; the results are the same.
//! - In [`update_all`] a lane that falls free takes the next run of blocks, and a run left alone goes the plain path.
//!
//! Source: RFC 1321. MD5 authenticates nothing: it names content for clients that compare ETags.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::simd::cpu;

#[macro_use]
mod steps;
mod plain;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// Bytes of a digest.
pub const DIGEST: usize = 16;

type Block = [u8; 64];

/// Streams that one call of a kernel takes.
const LANES: usize = 16;

/// Word `w` of the state of lane `l` is at `[w][l]`.
#[cfg(target_arch = "x86_64")]
type States = [[u32; LANES]; 4];

/// A digest under way.
#[derive(Clone)]
pub struct Md5 {
    state: [u32; 4],
    /// Bytes so far.
    length: u64,
    /// The block under way, as far as `length` says.
    partial: Block,
}

impl Default for Md5 {
    fn default() -> Self {
        Md5 {
            state: [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476],
            length: 0,
            partial: [0; 64],
        }
    }
}

impl Md5 {
    /// Takes the next bytes, by themselves.
    pub fn update(&mut self, bytes: &[u8]) {
        let blocks = self.absorb(bytes);
        plain::compress(&mut self.state, blocks);
    }

    /// The digest of all that came.
    pub fn finish(mut self) -> [u8; DIGEST] {
        let bits = self.length.wrapping_mul(8).to_le_bytes();
        let fill = self.fill();
        let zeros = if fill < 56 { 56 - fill } else { 120 - fill };
        let mut padding = [0; 72];
        padding[0] = 0x80;
        padding[zeros..zeros + 8].copy_from_slice(&bits);
        self.update(&padding[..zeros + 8]);
        debug_assert_eq!(self.fill(), 0);
        let mut digest = [0; DIGEST];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    /// Takes in all of `bytes` but the whole blocks it returns, which are to be compressed before anything else is taken.
    fn absorb<'a>(&mut self, bytes: &'a [u8]) -> &'a [Block] {
        let fill = self.fill();
        self.length += bytes.len() as u64;
        let mut rest = bytes;
        if fill > 0 {
            let (head, after) = rest.split_at(rest.len().min(64 - fill));
            self.partial[fill..fill + head.len()].copy_from_slice(head);
            if fill + head.len() < 64 {
                return &[];
            }
            plain::compress(&mut self.state, &[self.partial]);
            rest = after;
        }
        let (blocks, tail) = rest.as_chunks();
        self.partial[..tail.len()].copy_from_slice(tail);
        blocks
    }

    fn fill(&self) -> usize {
        (self.length % 64) as usize
    }
}

/// A stream and its next bytes, in as many pieces as they came in.
pub struct Job<'a, P: Iterator<Item = &'a [u8]>> {
    pub md5: &'a mut Md5,
    pub pieces: P,
}

impl<'a, P: Iterator<Item = &'a [u8]>> Job<'a, P> {
    fn next_run(&mut self) -> Option<&'a [Block]> {
        let md5 = &mut *self.md5;
        self.pieces
            .by_ref()
            .map(|piece| md5.absorb(piece))
            .find(|blocks| !blocks.is_empty())
    }
}

/// Updates each stream with its bytes. Lanes are used best when the longest jobs come first.
pub fn update_all<'a, P: Iterator<Item = &'a [u8]>>(jobs: &mut [Job<'a, P>]) {
    update_with(Kernel::of_this_cpu(), jobs);
}

/// Streams that [`update_all`] has lanes for; 1 where the CPU has no vectors to speak of.
pub fn lanes() -> usize {
    match Kernel::of_this_cpu() {
        Kernel::Plain => 1,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2(_) | Kernel::Avx512(_) => LANES,
    }
}

/// What runs where there are several streams, for people.
pub fn kernel_name() -> &'static str {
    match Kernel::of_this_cpu() {
        Kernel::Plain => "plain",
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2(_) => "AVX2, 8 lanes",
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512(_) => "AVX-512, 16 lanes",
    }
}

#[derive(Clone, Copy)]
enum Kernel {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2(cpu::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(cpu::Avx512),
}

impl Kernel {
    fn of_this_cpu() -> Self {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        *KERNEL.get_or_init(|| Self::available().next_back().unwrap_or(Kernel::Plain))
    }

    /// All that this CPU can run, the fastest last.
    fn available() -> impl DoubleEndedIterator<Item = Self> {
        let kernels = [
            Some(Kernel::Plain),
            #[cfg(target_arch = "x86_64")]
            cpu::Avx2::detect().map(Kernel::Avx2),
            #[cfg(target_arch = "x86_64")]
            cpu::Avx512::detect().map(Kernel::Avx512),
        ];
        kernels.into_iter().flatten()
    }
}

/// Blocks of one job that a lane is at.
struct Run<'a> {
    job: usize,
    blocks: &'a [Block],
}

fn update_with<'a, P: Iterator<Item = &'a [u8]>>(kernel: Kernel, jobs: &mut [Job<'a, P>]) {
    let mut waiting = 0..jobs.len();
    let mut runs: Vec<Run<'a>> = Vec::with_capacity(LANES);
    loop {
        while runs.len() < LANES
            && let Some(job) = waiting.next()
        {
            if let Some(blocks) = jobs[job].next_run() {
                runs.push(Run { job, blocks });
            }
        }
        let Some(shortest) = runs.iter().map(|run| run.blocks.len()).min() else {
            return;
        };
        if runs.len() > 1 {
            compress_side_by_side(kernel, jobs, &runs, shortest);
        } else {
            plain::compress(&mut jobs[runs[0].job].md5.state, runs[0].blocks);
        }
        runs.retain_mut(|run| {
            run.blocks = &run.blocks[shortest..];
            if run.blocks.is_empty() {
                run.blocks = jobs[run.job].next_run().unwrap_or_default();
            }
            !run.blocks.is_empty()
        });
    }
}

/// Compresses the first `count` blocks of each run.
fn compress_side_by_side<'a, P: Iterator<Item = &'a [u8]>>(
    kernel: Kernel,
    jobs: &mut [Job<'a, P>],
    runs: &[Run<'a>],
    count: usize,
) {
    match kernel {
        Kernel::Plain => {
            for run in runs {
                plain::compress(&mut jobs[run.job].md5.state, &run.blocks[..count]);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2(token) => in_lanes(jobs, runs, |states, lanes| {
            avx2::compress(token, states, lanes, runs.len(), count);
        }),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512(token) => in_lanes(jobs, runs, |states, lanes| {
            avx512::compress(token, states, lanes, count);
        }),
    }
}

#[cfg(target_arch = "x86_64")]
fn in_lanes<'a, P: Iterator<Item = &'a [u8]>>(
    jobs: &mut [Job<'a, P>],
    runs: &[Run<'a>],
    compress: impl FnOnce(&mut States, &[&[Block]; LANES]),
) {
    // A lane without a run of its own repeats the first; what comes of it is dropped.
    let mut lanes = [runs[0].blocks; LANES];
    let mut states: States = [[0; LANES]; 4];
    for (lane, run) in runs.iter().enumerate() {
        lanes[lane] = run.blocks;
        for (word, of_run) in states.iter_mut().zip(jobs[run.job].md5.state) {
            word[lane] = of_run;
        }
    }
    compress(&mut states, &lanes);
    for (lane, run) in runs.iter().enumerate() {
        jobs[run.job].md5.state = states.map(|word| word[lane]);
    }
}

#[cfg(test)]
mod tests {
    use md5::{Digest, Md5 as Reference};
    use proptest::prelude::*;

    use super::*;

    fn bytes(len: usize, seed: usize) -> Vec<u8> {
        (0..len)
            .map(|i| {
                ((i + seed * 7919) as u32)
                    .wrapping_mul(0x9e37_79b1)
                    .to_be_bytes()[0]
            })
            .collect()
    }

    fn digest(data: &[u8]) -> [u8; DIGEST] {
        let mut md5 = Md5::default();
        md5.update(data);
        md5.finish()
    }

    /// Each stream's pieces through `kernel` at once, against the reference.
    fn check(kernel: Kernel, streams: &[Vec<Vec<u8>>]) {
        let mut digests = vec![Md5::default(); streams.len()];
        let mut jobs: Vec<_> = digests
            .iter_mut()
            .zip(streams)
            .map(|(md5, pieces)| Job {
                md5,
                pieces: pieces.iter().map(Vec::as_slice),
            })
            .collect();
        update_with(kernel, &mut jobs);
        for (n, (md5, pieces)) in digests.into_iter().zip(streams).enumerate() {
            let expected: [u8; 16] = Reference::digest(pieces.concat()).into();
            assert_eq!(md5.finish(), expected, "stream {n} of {}", streams.len());
        }
    }

    #[test]
    fn vectors_of_the_standard() {
        for (text, expected) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            (
                "abcdefghijklmnopqrstuvwxyz",
                "c3fcd3d76192e4007dfb496cca67e13b",
            ),
            (
                "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                "d174ab98d277d9f5a5611c2c9f419d9f",
            ),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(hex::encode(digest(text.as_bytes())), expected, "{text}");
        }
    }

    #[test]
    fn every_length_by_itself() {
        for len in 0..700 {
            let data = bytes(len, 1);
            let expected: [u8; 16] = Reference::digest(&data).into();
            assert_eq!(digest(&data), expected, "length {len}");
        }
    }

    #[test]
    fn any_number_of_streams_of_one_length_and_of_all_lengths() {
        // The interpreter takes a few of them.
        let (step, len, more) = if cfg!(miri) {
            (11, 192, 17)
        } else {
            (1, 4096, 61)
        };
        for kernel in Kernel::available() {
            for count in (0..=2 * LANES + 3).step_by(step) {
                let same: Vec<_> = (0..count).map(|n| vec![bytes(len, n)]).collect();
                check(kernel, &same);
                let uneven: Vec<_> = (0..count).map(|n| vec![bytes(n * more, n)]).collect();
                check(kernel, &uneven);
            }
        }
    }

    #[test]
    fn lanes_of_every_alignment() {
        let data = bytes(64 * 9 + 64, 0);
        for kernel in Kernel::available() {
            for offset in 0..64 {
                let mut digests = vec![Md5::default(); 9];
                let mut jobs: Vec<_> = digests
                    .iter_mut()
                    .enumerate()
                    .map(|(n, md5)| Job {
                        md5,
                        pieces: std::iter::once(&data[offset..][..64 * n]),
                    })
                    .collect();
                update_with(kernel, &mut jobs);
                for (n, md5) in digests.into_iter().enumerate() {
                    assert_eq!(md5.finish(), digest(&data[offset..][..64 * n]));
                }
            }
        }
    }

    #[test]
    fn both_ways_may_alternate() {
        for kernel in Kernel::available() {
            let data = bytes(10_000, 3);
            let mut digests = vec![Md5::default(); 5];
            for chunk in data.chunks(777) {
                for md5 in &mut digests {
                    md5.update(&chunk[..100.min(chunk.len())]);
                }
                let mut jobs: Vec<_> = digests
                    .iter_mut()
                    .map(|md5| Job {
                        md5,
                        pieces: std::iter::once(&chunk[100.min(chunk.len())..]),
                    })
                    .collect();
                update_with(kernel, &mut jobs);
            }
            for md5 in digests {
                assert_eq!(md5.finish(), digest(&data));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn streams_in_any_pieces(
            lengths in prop::collection::vec(prop::collection::vec(0usize..2000, 0..6), 0..40)
        ) {
            let streams: Vec<Vec<Vec<u8>>> = lengths
                .iter()
                .enumerate()
                .map(|(s, pieces)| pieces.iter().enumerate().map(|(p, &len)| bytes(len, s * 8 + p)).collect())
                .collect();
            for kernel in Kernel::available() {
                check(kernel, &streams);
            }
        }
    }
}
