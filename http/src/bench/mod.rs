//! How fast the kernels are on this machine, beside what else there is: for `strongroom bench crypto` and the benches.
//!
//! Ours and the others take short turns, each round in the other order, and what counts is the median: speeds over all rounds,
//! and ratios between two that ran in the same round. So a machine that is busy or changes its clock falsifies little.

pub mod cipher;
mod course;
mod digests;
mod race;
mod report;

pub use course::{Course, Place, Verb};
pub use report::crypto;

/// Sizes of messages.
pub const SIZES: [usize; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];

/// All messages of a course in cache: they fit in the second level of any CPU of these days.
pub const HOT_BYTES: usize = 128 << 10;

/// All messages of a course out of cache: four times the last level, as far as the system says what that is.
pub fn cold_bytes() -> usize {
    let cache = |index: usize| {
        let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(file).ok()?;
        let kib: usize = text.trim().strip_suffix('K')?.parse().ok()?;
        Some(kib << 10)
    };
    let last = (0..8).filter_map(cache).max().unwrap_or(32 << 20);
    (4 * last).clamp(64 << 20, 512 << 20)
}
