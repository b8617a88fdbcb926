//! Segments: append-only files of extents, written with direct I/O, one active per shard.
//!
//! Invariants: a sector is written once and never again; a segment's id is used once and never again; every run of sectors handed
//! out is either *open* (its upload is under way), *live* (the index names it), or *punched* (given back to the file system).

pub mod block;
pub mod copier;
pub mod reader;
pub mod reclaim;
pub mod scrub;
pub mod survey;
pub mod writer;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use minicbor::{Decode, Encode};

use crate::error::{Error, Result};
use crate::record::Extent;

/// What all shards share about segments.
pub struct Segments {
    dir: PathBuf,
    /// A segment takes no new extent past this many sectors.
    pub sectors_max: u32,
    next: AtomicU64,
    sequence: AtomicU64,
    live: Mutex<HashMap<u64, u64>>,
    /// How many segments were removed.
    removed: AtomicU64,
    /// Extents of each segment that no record names any more, and that somebody may still read.
    leaving: Mutex<HashMap<u64, u64>>,
    marks: Vec<Mutex<Marks>>,
}

/// How far one shard has come in its segments.
#[derive(Debug, Default)]
pub struct Marks {
    /// The segment that takes new extents, and its first free sector.
    pub active: Option<(u64, u32)>,
    /// The segment that is to follow it, and holds nothing yet.
    coming: Option<u64>,
    /// Runs handed out and not yet live or punched, by segment and first sector.
    open: BTreeSet<(u64, u32)>,
}

/// The marks of all shards at one moment: below them every sector is live, punched, or listed as freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Checkpoint {
    /// No segment had this id or a later one.
    #[n(0)]
    pub next_segment: u64,
    /// Segments with sectors that were not settled, and the first such sector.
    #[n(1)]
    pub unsettled: Vec<(u64, u32)>,
    /// Live sectors of each segment; written only when the store is closed cleanly.
    #[n(2)]
    pub live: Option<Vec<(u64, u64)>>,
    /// Whether the copy of the index is complete; written only when the store is closed.
    #[n(3)]
    pub copied: Option<bool>,
}

impl Checkpoint {
    /// First sector of `segment` that may be unsettled; none where the whole segment is settled.
    pub fn unsettled_from(&self, segment: u64) -> Option<u32> {
        if segment >= self.next_segment {
            return Some(0);
        }
        self.unsettled
            .iter()
            .find(|(s, _)| *s == segment)
            .map(|(_, at)| *at)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Segments {
    /// `boot` differs at every start, so extent sequences never repeat.
    pub fn new(
        dir: &Path,
        sectors_max: u32,
        shards: usize,
        next: u64,
        boot: u32,
        live: HashMap<u64, u64>,
    ) -> Self {
        Segments {
            dir: dir.to_path_buf(),
            sectors_max,
            next: AtomicU64::new(next),
            sequence: AtomicU64::new(u64::from(boot) << 40),
            live: Mutex::new(live),
            removed: AtomicU64::new(0),
            leaving: Mutex::default(),
            marks: (0..shards).map(|_| Mutex::default()).collect(),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, segment: u64) -> PathBuf {
        path(&self.dir, segment)
    }

    /// The id of a new segment for `shard`. No checkpoint ever takes it for one that is settled.
    pub fn next_segment(&self, shard: usize) -> u64 {
        let mut marks = self.marks(shard);
        let id = self.next.fetch_add(1, Ordering::AcqRel);
        marks.coming = Some(id);
        id
    }

    /// `segment` is the active one of `shard`, and has no extent from sector `next` on.
    pub fn advance(&self, shard: usize, segment: u64, next: u32) {
        let mut marks = self.marks(shard);
        marks.active = Some((segment, next));
        if marks.coming == Some(segment) {
            marks.coming = None;
        }
    }

    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub fn marks(&self, shard: usize) -> MutexGuard<'_, Marks> {
        lock(&self.marks[shard])
    }

    /// A run handed out by `shard` is live or punched now.
    pub fn settle(&self, shard: usize, extent: &Extent) {
        self.marks(shard)
            .open
            .remove(&(extent.segment, extent.start));
    }

    pub fn open(&self, shard: usize, extent: &Extent) {
        self.marks(shard)
            .open
            .insert((extent.segment, extent.start));
    }

    pub fn add_live(&self, extents: impl Iterator<Item = Extent>) {
        let mut live = lock(&self.live);
        for e in extents {
            *live.entry(e.segment).or_default() += u64::from(e.sectors);
        }
    }

    pub fn remove_live(&self, extents: &[Extent]) {
        let mut live = lock(&self.live);
        for e in extents {
            if let Some(n) = live.get_mut(&e.segment) {
                *n = n.saturating_sub(u64::from(e.sectors));
            }
        }
    }

    /// No record names these any more. Their segments stay until they were [left](Segments::left).
    pub fn leave(&self, extents: &[Extent]) {
        let mut leaving = lock(&self.leaving);
        for e in extents {
            *leaving.entry(e.segment).or_default() += 1;
        }
    }

    /// Nobody reads these any more.
    pub fn left(&self, extents: &[Extent]) {
        let mut leaving = lock(&self.leaving);
        for e in extents {
            if let Some(n) = leaving.get_mut(&e.segment) {
                *n -= 1;
                if *n == 0 {
                    leaving.remove(&e.segment);
                }
            }
        }
    }

    /// Bytes that the segments take on disk.
    pub fn disk_bytes(&self) -> Result<u64> {
        let failed = |e| Error::io("list", &self.dir, e);
        let mut bytes = 0;
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            match entry.map_err(failed)?.metadata() {
                Ok(metadata) => bytes += metadata.blocks() * 512,
                // Gone meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(bytes)
    }

    pub fn live_sectors(&self) -> u64 {
        lock(&self.live).values().sum()
    }

    /// Nothing in the segment is live, open or read, and it takes no new extents.
    pub fn is_dead(&self, segment: u64) -> bool {
        let used = |marks: &Mutex<Marks>| {
            let m = lock(marks);
            m.active.is_some_and(|(s, _)| s == segment)
                || m.coming == Some(segment)
                || m.open
                    .range((segment, 0)..=(segment, u32::MAX))
                    .next()
                    .is_some()
        };
        !self.marks.iter().any(used)
            && !lock(&self.leaving).contains_key(&segment)
            && lock(&self.live).get(&segment).is_none_or(|n| *n == 0)
    }

    pub fn forget(&self, segment: u64) {
        lock(&self.live).remove(&segment);
        self.removed.fetch_add(1, Ordering::Release);
    }

    /// How many segments were removed so far.
    pub fn removed(&self) -> u64 {
        self.removed.load(Ordering::Acquire)
    }

    pub fn checkpoint(&self, closing: bool) -> Checkpoint {
        let mut unsettled = HashMap::<u64, u32>::new();
        let mut any_open = false;
        let next_segment = self.next.load(Ordering::Acquire);
        for marks in &self.marks {
            let m = lock(marks);
            any_open |= !m.open.is_empty();
            let coming = m.coming.map(|segment| (segment, 0));
            for (segment, at) in m.open.iter().copied().chain(m.active).chain(coming) {
                let low = unsettled.entry(segment).or_insert(at);
                *low = at.min(*low);
            }
        }
        let mut unsettled: Vec<_> = unsettled.into_iter().collect();
        unsettled.sort_unstable();
        Checkpoint {
            next_segment,
            unsettled,
            // With an upload left open the close was not clean.
            live: (closing && !any_open)
                .then(|| lock(&self.live).iter().map(|(s, n)| (*s, *n)).collect()),
            copied: None,
        }
    }
}

/// `0000000000000007.seg` and the like.
pub fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}.seg"))
}

/// The segment a file name names.
pub fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 16)
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(segment: u64, start: u32, sectors: u32) -> Extent {
        Extent {
            segment,
            start,
            lead: 1,
            sectors,
            sequence: 1,
        }
    }

    #[test]
    fn a_checkpoint_names_what_is_not_settled() {
        let s = Segments::new(Path::new("/x"), 99, 2, 5, 1, HashMap::new());
        assert_eq!(s.next_segment(0), 5);
        assert_eq!(
            s.checkpoint(false).unsettled_from(5),
            Some(0),
            "before its first extent"
        );
        s.advance(0, 5, 40);
        s.open(0, &extent(5, 10, 10));
        s.open(1, &extent(3, 7, 2));
        let c = s.checkpoint(false);
        assert_eq!(c.next_segment, 6);
        assert_eq!(c.unsettled_from(5), Some(10));
        assert_eq!(c.unsettled_from(3), Some(7));
        assert_eq!(c.unsettled_from(4), None);
        assert_eq!(c.unsettled_from(6), Some(0));
        s.settle(0, &extent(5, 10, 10));
        assert_eq!(s.checkpoint(false).unsettled_from(5), Some(40));
    }

    #[test]
    fn a_segment_is_dead_when_nothing_needs_it() {
        let s = Segments::new(Path::new("/x"), 99, 1, 1, 1, HashMap::new());
        let e = extent(0, 0, 4);
        s.open(0, &e);
        assert!(!s.is_dead(0));
        s.add_live([e].into_iter());
        s.settle(0, &e);
        assert!(!s.is_dead(0));
        s.leave(&[e]);
        s.remove_live(&[e]);
        assert!(!s.is_dead(0), "somebody may still read it");
        s.left(&[e]);
        assert!(s.is_dead(0));
        s.marks(0).active = Some((0, 4));
        assert!(!s.is_dead(0));
    }

    #[test]
    fn names_parse() {
        let p = path(Path::new("/d"), 0xbeef);
        assert_eq!(
            parse_name(p.file_name().unwrap().to_str().unwrap()),
            Some(0xbeef)
        );
        assert_eq!(parse_name("beef.seg"), None);
    }
}
