//! The disk, as the engine uses it: whole sectors of segment files, written once, with direct I/O.

#[cfg(test)]
pub use crate::sim::disk;
#[cfg(not(test))]
pub use uring as disk;
#[cfg(not(test))]
pub mod uring;

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one shard has asked of the disk. Only its own core counts here, so the line stays in that core's cache.
#[derive(Default)]
#[repr(align(128))]
pub struct DiskCounters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

/// Reads, writes and syncs of segments so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub syncs: u64,
}

impl DiskCounters {
    pub fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn wrote(&self, bytes: usize) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stats(&self) -> DiskStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            reads: read(&self.reads),
            read_bytes: read(&self.read_bytes),
            writes: read(&self.writes),
            written_bytes: read(&self.written_bytes),
            syncs: read(&self.syncs),
        }
    }
}

impl AddAssign for DiskStats {
    fn add_assign(&mut self, other: DiskStats) {
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
        self.syncs += other.syncs;
    }
}
