//! Hot objects in memory, still sealed: runs of packages as they lie on disk, shared by all cores.
//!
//! - Ciphertext only. What comes from here is opened like what comes from disk, and its tags are checked each time.
//! - A run is named by its extent's segment and sequence and by its place in the extent. Neither number is ever used twice, so a
//!   name means the same bytes for ever, whatever is overwritten or deleted.
//! - Runs are put in only while their extent is held: by the upload that writes it, or by a reader that holds its record. The
//!   reclaimer takes them out once nobody holds it, before the extent is punched. So nothing of a deleted extent stays.
//! - New runs pass through a small queue and stay only if they are asked for again, so reading much cold data once does not
//!   drive out what is hot. No lock is held for longer than it takes to find an entry.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::dare::header::PACKAGE;
use crate::limits::{self, CACHE_RUN_BYTES, EXTENT_PACKAGES, READ_PACKAGES};
use crate::record::Extent;
use crate::shelf::{self, Shelf};

/// Sealed runs in memory, within a bound.
pub struct Cache {
    runs: Option<quick_cache::sync::Cache<Name, Run, ByBytes>>,
    capacity: u64,
    /// Buffers for runs that are to be put in.
    pub shelf: Shelf,
    hits: AtomicU64,
    misses: AtomicU64,
    hit_bytes: AtomicU64,
}

/// What a cache has done so far, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Runs that were asked for and found, and their bytes.
    pub hits: u64,
    pub hit_bytes: u64,
    /// Runs that were asked for and had to be read.
    pub misses: u64,
    /// Memory taken by what is held now, and at most.
    pub bytes: u64,
    pub capacity: u64,
}

impl std::ops::AddAssign for CacheStats {
    fn add_assign(&mut self, other: CacheStats) {
        self.hits += other.hits;
        self.hit_bytes += other.hit_bytes;
        self.misses += other.misses;
        self.bytes += other.bytes;
        self.capacity += other.capacity;
    }
}

/// What asking for some packages of a run came to.
pub enum Asked {
    /// Here they are.
    Hit(Bytes),
    /// Other packages of their run are held: the run is worth having whole.
    Partly,
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    segment: u64,
    sequence: u64,
    run: u64,
}

/// Packages in a row within one run.
#[derive(Clone)]
struct Run {
    /// The first of them, counted in its extent.
    first: u64,
    bytes: Bytes,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Name, Run> for ByBytes {
    fn weight(&self, _: &Name, run: &Run) -> u64 {
        shelf::taken(run.bytes.len()) + limits::CACHE_ENTRY_BYTES
    }
}

impl Cache {
    /// A cache of at most `capacity` bytes; one too small for a few runs is none.
    pub fn new(capacity: u64) -> Self {
        let full = shelf::taken(CACHE_RUN_BYTES as usize) + limits::CACHE_ENTRY_BYTES;
        let items = capacity / full;
        let runs = (items >= limits::CACHE_RUNS_MIN).then(|| {
            // A shard of the cache takes no entry larger than itself, and keeps what is hot only if it holds a good many.
            let shards = (items / limits::CACHE_RUNS_MIN).clamp(1, limits::CACHE_SHARDS_MAX);
            let options = OptionsBuilder::new()
                .weight_capacity(capacity)
                .estimated_items_capacity(items as usize)
                .shards(1 << shards.ilog2())
                .hot_allocation(limits::CACHE_HOT_SHARE)
                .build()
                .expect("all that is needed is set");
            quick_cache::sync::Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            )
        });
        Cache {
            capacity: if runs.is_some() { capacity } else { 0 },
            runs,
            shelf: Shelf::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            hit_bytes: AtomicU64::new(0),
        }
    }

    pub fn is_on(&self) -> bool {
        self.runs.is_some()
    }

    /// Whether a stream of so many sealed bytes is kept as it is written.
    pub fn takes_on_write(&self, stored: u64) -> bool {
        let most = self.capacity / limits::CACHE_WRITE_SHARE;
        self.is_on() && stored <= most.min(limits::CACHE_WRITE_BYTES_MAX)
    }

    /// The packages `wanted` of an extent, all of one run. `len` is how many bytes they are.
    pub fn get(&self, extent: &Extent, wanted: Range<u64>, len: usize) -> Asked {
        let Some(runs) = &self.runs else {
            return Asked::Absent;
        };
        let found = runs.get(&Name::of(extent, wanted.start));
        let held = found.as_ref().and_then(|run| run.slice(&wanted, len));
        match (held, found) {
            (Some(bytes), _) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                self.hit_bytes.fetch_add(len as u64, Ordering::Relaxed);
                Asked::Hit(bytes)
            }
            (None, found) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                match found {
                    Some(_) => Asked::Partly,
                    None => Asked::Absent,
                }
            }
        }
    }

    /// Keeps packages of an extent from number `first` on, all of one run. The extent is held by the caller.
    pub fn put(&self, extent: &Extent, first: u64, bytes: Bytes) {
        if let Some(runs) = &self.runs {
            let last = first + (bytes.len() as u64).div_ceil(PACKAGE as u64) - 1;
            assert_eq!(first / READ_PACKAGES, last / READ_PACKAGES, "within a run");
            runs.insert(Name::of(extent, first), Run { first, bytes });
        }
    }

    /// Drops the run that package `number` belongs to.
    pub fn drop_run(&self, extent: &Extent, number: u64) {
        if let Some(runs) = &self.runs {
            runs.remove(&Name::of(extent, number));
        }
    }

    /// Drops all there is of an extent that nobody holds any more.
    pub fn forget(&self, extent: &Extent) {
        let bytes = u64::from(extent.sectors) * limits::SECTOR as u64;
        let packages = bytes.div_ceil(PACKAGE as u64).min(EXTENT_PACKAGES);
        for run in 0..packages.div_ceil(READ_PACKAGES) {
            self.drop_run(extent, run * READ_PACKAGES);
        }
    }

    pub fn stats(&self) -> CacheStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: read(&self.hits),
            hit_bytes: read(&self.hit_bytes),
            misses: read(&self.misses),
            bytes: self.runs.as_ref().map_or(0, |runs| runs.weight()),
            capacity: self.capacity,
        }
    }
}

impl Name {
    /// The run of an extent that its package `number` belongs to.
    fn of(extent: &Extent, number: u64) -> Name {
        Name {
            segment: extent.segment,
            sequence: extent.sequence,
            run: number / READ_PACKAGES,
        }
    }
}

impl Run {
    fn slice(&self, wanted: &Range<u64>, len: usize) -> Option<Bytes> {
        let from = wanted.start.checked_sub(self.first)? as usize * PACKAGE;
        let to = from + len;
        (to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}
