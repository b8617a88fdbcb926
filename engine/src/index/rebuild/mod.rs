//! `recover`: makes a whole index of what there is, beside the old one, and puts it in its place last.
//!
//! What is known of an entry comes from four sources; the one of the highest commit holds, removals included:
//!
//! 1. the copies of the index in segments, but for what the old index has removed since;
//! 2. every record of the old index that can be read and opens;
//! 3. its journals, behind a place where the tree stopped reading them;
//! 4. streams that stand complete in segments and that no record names, if they were written about when the other sources end.
//!
//! Of the records up to the commit that the last whole copy begins with, only those that are in copies are alive.
//!
//! A whole index is left as it is. Nothing in segments is changed or given back. Records whose data was given back are left out
//! and named, unless they come from an index that is not older than the segments.

mod settle;
mod sources;
mod streams;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::commit::meta;
use super::copies::COPIED;
use super::offline::{Offline, remove, unpanicked};
use super::{Index, Space, io, journal, key, record, recover};
use crate::datadir::{DataDir, sync_dir};
use crate::error::{Error, Result};
use crate::io::disk;
use crate::record::{Bucket, Data, Extent, Object, Part, Place, Upload};
use crate::rt;
use crate::secret::Secret;
use crate::segment::Checkpoint;
use crate::segment::block;
use crate::segment::survey::{Survey, survey};

/// What a recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The index was whole, and nothing was changed.
    pub was_whole: bool,
    pub buckets: u64,
    pub objects: u64,
    pub uploads: u64,
    /// Objects and parts that only segments knew.
    pub from_segments: u64,
    /// What is lost, or may be.
    pub lost: u64,
    /// Where the old index is kept; none where there was none.
    pub kept: Option<PathBuf>,
    /// The newest removals known are not older than this many seconds before the end; none where the old index was not older
    /// than the segments.
    pub removals_unknown: Option<u64>,
}

/// What a recovery tells while it runs.
pub enum Finding<'a> {
    Lost {
        bucket: &'a str,
        key: &'a str,
        why: &'a str,
    },
    Note(String),
}

/// Recovers the index of the store in `dir`, which this process holds.
pub fn rebuild(dir: &DataDir, store_key: &Secret, say: &dyn Fn(Finding<'_>)) -> Result<Recovery> {
    let draft = dir.path().join("index.new");
    finish_earlier(dir, &draft)?;
    remove(&draft)?;
    let blocks = block::Sealer::new(store_key);
    let survey = survey(&dir.segments_dir(), &blocks)?;
    let old = match Offline::open(dir, store_key) {
        Ok(old) => Some(old),
        Err(e) => {
            say(Finding::Note(e.to_string()));
            None
        }
    };
    let journals = journals(&dir.index_dir());
    let last = match &old {
        Some(old) => unpanicked(|| old.index().plain_meta::<u64>(meta::SEQUENCE))
            .unwrap_or_default()
            .unwrap_or(0),
        None => 0,
    };
    if let Some(old) = &old
        && last >= survey.synced
        && unpanicked(|| is_whole(old.index(), last, &journals, survey.next_segment))
            .unwrap_or(false)
    {
        let mut found = Recovery {
            was_whole: true,
            ..Default::default()
        };
        count(old.index(), &mut found)?;
        return Ok(found);
    }
    let segments = dir.segments_dir();
    let mut build = Build {
        new: Index::open_bare(&draft, store_key)?,
        old: old.as_ref().map(Offline::index),
        last,
        segments: &segments,
        blocks: &blocks,
        survey: &survey,
        say,
        removed: HashMap::new(),
        spaces: HashMap::new(),
        highest: last.max(survey.synced),
        copied_to: 0,
        base: 0,
        found: Recovery::default(),
    };
    let groups = build.copies()?;
    if build.old.is_some() {
        build.old_index()?;
    }
    for journal in &journals {
        build.journal(journal)?;
    }
    build.streams()?;
    let named = build.settle()?;
    build.finish(groups, &named)?;
    let mut found = build.found.clone();
    count(&build.new, &mut found)?;
    drop(build);
    drop(old);
    found.kept = swap(dir, &draft)?;
    Ok(found)
}

/// A recovery that ended between its two renames is taken back.
fn finish_earlier(dir: &DataDir, draft: &Path) -> Result<()> {
    let index = dir.index_dir();
    if index.exists() || !draft.exists() {
        return Ok(());
    }
    let failed = |e| Error::io("list", dir.path(), e);
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(dir.path()).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(KEPT))
        {
            kept.push(path);
        }
    }
    match kept.into_iter().max() {
        Some(newest) => disk::rename(&newest, &index),
        None => Ok(()),
    }
}

const KEPT: &str = "index.before-recover-";

fn swap(dir: &DataDir, draft: &Path) -> Result<Option<PathBuf>> {
    let index = dir.index_dir();
    sync_dir(draft)?;
    let now = rt::unix_millis() / 1000;
    let mut kept = None;
    if index.exists() {
        let aside = (now..)
            .map(|n| dir.path().join(format!("{KEPT}{n}")))
            .find(|p| !p.exists());
        let aside = aside.expect("some second is free");
        disk::rename(&index, &aside)?;
        kept = Some(aside);
    }
    disk::rename(draft, &index)?;
    disk::sync_dir(dir.path())?;
    Ok(kept)
}

fn journals(dir: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    // One that cannot be read has nothing to tell.
    journal::in_order(entries.map(|e| e.path()))
        .into_iter()
        .filter_map(|path| std::fs::read(path).ok())
        .collect()
}

/// Whether every record of an index can be read and opens, and its journals hold nothing later.
fn is_whole(index: &Index, last: u64, journals: &[Vec<u8>], next_segment: u64) -> Result<bool> {
    let mut whole = true;
    let mut inline: Vec<u64> = Vec::new();
    let sealer = &index.sealer;
    let mut check = |space: Space, entry: &[u8], value: &[u8]| match space {
        Space::Objects => sealer
            .open::<Object>(space.name(), entry, value)
            .map(|(s, o)| match &o.data {
                Data::Single(stream) if stream.place == Place::Inline => inline.push(o.origin(s)),
                _ => {}
            }),
        Space::Parts => sealer
            .open::<Part>(space.name(), entry, value)
            .map(|(s, p)| {
                if p.stream.place == Place::Inline {
                    inline.push(s);
                }
            }),
        Space::Uploads => sealer.open::<Upload>(space.name(), entry, value).map(drop),
        Space::Buckets => sealer.open::<Bucket>(space.name(), entry, value).map(drop),
        _ => sealer
            .open::<Vec<Extent>>(space.name(), entry, value)
            .map(drop),
    };
    for space in [
        Space::Objects,
        Space::Parts,
        Space::Uploads,
        Space::Buckets,
        Space::Freed,
    ] {
        let read = index.each_raw(space, None, |entry, value| {
            whole &= check(space, entry, value).is_ok();
            Ok(())
        })?;
        whole &= read.is_ok();
    }
    for sequence in inline {
        // The bytes themselves, since they lie elsewhere than their names.
        whole &= index.inline(sequence).is_ok_and(|bytes| bytes.is_some());
    }
    let checkpoint = index.get::<Checkpoint>(Space::Meta, meta::CHECKPOINT.as_bytes());
    // After a close there is no segment that the index does not know of.
    whole &= checkpoint
        .is_ok_and(|c| c.is_none_or(|(_, c)| c.live.is_none() || next_segment <= c.next_segment));
    whole &= recover::copies(index).is_ok();
    for journal in journals {
        journal::batches(journal, |items| {
            let end = items.iter().find(|i| i.key == meta::SEQUENCE.as_bytes());
            let end = end.and_then(|i| minicbor::decode::<u64>(i.value?).ok());
            whole &= end.is_none_or(|end| end <= last);
        });
    }
    Ok(whole)
}

fn count(index: &Index, found: &mut Recovery) -> Result<()> {
    let count = |space| -> Result<u64> {
        let mut n = 0;
        let read = index.each_raw(space, None, |_, _| {
            n += 1;
            Ok(())
        })?;
        read.map(|()| n)
            .map_err(|_| Error::corrupt("what was just read", "the index"))
    };
    found.buckets = count(Space::Buckets)?;
    found.objects = count(Space::Objects)?;
    found.uploads = count(Space::Uploads)?;
    Ok(())
}

/// Extents by segment and first sector.
type Named = HashSet<(u64, u32)>;

struct Build<'a> {
    new: Index,
    old: Option<&'a Index>,
    /// The last commit of the old index.
    last: u64,
    segments: &'a Path,
    blocks: &'a block::Sealer,
    survey: &'a Survey,
    say: &'a dyn Fn(Finding<'_>),
    /// Entries known to be removed, and by which commit at the latest.
    removed: HashMap<(Space, Vec<u8>), u64>,
    /// Which keyspaces the numbers in journals mean.
    spaces: HashMap<u64, Space>,
    highest: u64,
    /// The last commit of which everything is in copies.
    copied_to: u64,
    /// A record of a commit up to this one is in copies, or was removed.
    base: u64,
    found: Recovery,
}

/// An entry as one source has it.
struct Entry<'a> {
    space: Space,
    key: &'a [u8],
    sequence: u64,
    /// None where it was removed.
    value: Option<&'a [u8]>,
    inline: Option<&'a [u8]>,
}

impl Build<'_> {
    /// Takes an entry in unless a later one is known. What was removed at the same commit stays so.
    fn apply(&mut self, entry: &Entry<'_>) -> Result<()> {
        let (space, key) = (entry.space, entry.key);
        let present = self.new.space(space).get(key).map_err(io)?;
        let present = present.as_deref().and_then(record::sequence);
        let removed = self.removed.get(&(space, key.to_vec())).copied();
        let known = present.max(removed);
        self.highest = self.highest.max(entry.sequence);
        match entry.value {
            None if known.is_none_or(|known| entry.sequence >= known) => {
                self.new.space(space).remove(key).map_err(io)?;
                self.removed.insert((space, key.to_vec()), entry.sequence);
            }
            Some(value) => {
                let Some(origin) = self.opens(space, key, value) else {
                    return Ok(());
                };
                // The last whole copy does not have it, and nothing later does.
                if known.is_none() && COPIED.contains(&space) && entry.sequence <= self.base {
                    return Ok(());
                }
                let newer = present.is_none_or(|p| entry.sequence > p)
                    && removed.is_none_or(|r| entry.sequence > r);
                if newer {
                    self.new.space(space).insert(key, value).map_err(io)?;
                    self.removed.remove(&(space, key.to_vec()));
                }
                if let (true, Some(bytes), Some(origin)) = (
                    newer || present == Some(entry.sequence),
                    entry.inline,
                    origin,
                ) {
                    let inline = self.new.space(Space::Inline);
                    inline.insert(key::sequence(origin), bytes).map_err(io)?;
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Whether a value opens where it stands, and under which commit its small bytes are, where it has such.
    fn opens(&self, space: Space, key: &[u8], value: &[u8]) -> Option<Option<u64>> {
        let sealer = &self.new.sealer;
        let name = space.name();
        match space {
            Space::Objects => {
                let (sequence, object) = sealer.open::<Object>(name, key, value).ok()?;
                Some(match &object.data {
                    Data::Single(s) if s.place == Place::Inline => Some(object.origin(sequence)),
                    _ => None,
                })
            }
            Space::Parts => {
                let (sequence, part) = sealer.open::<Part>(name, key, value).ok()?;
                Some((part.stream.place == Place::Inline).then_some(sequence))
            }
            Space::Uploads => sealer.open::<Upload>(name, key, value).ok().map(|_| None),
            Space::Buckets => sealer.open::<Bucket>(name, key, value).ok().map(|_| None),
            Space::Freed => sealer
                .open::<Vec<Extent>>(name, key, value)
                .ok()
                .map(|_| None),
            _ => None,
        }
    }

    /// Writes a record that never had a commit of its own.
    fn add<T: minicbor::Encode<()>>(
        &mut self,
        space: Space,
        entry: Vec<u8>,
        record: &T,
    ) -> Result<()> {
        self.highest += 1;
        let value = self
            .new
            .sealer
            .seal(space.name(), &entry, self.highest, record);
        self.new
            .space(space)
            .insert(entry.as_slice(), value.as_slice())
            .map_err(io)
    }

    fn lost(&mut self, bucket: &str, key: &str, why: &str) {
        self.found.lost += 1;
        (self.say)(Finding::Lost { bucket, key, why });
    }

    /// Every extent that a record of the new index names, freed ones included.
    fn named(&self) -> Result<Named> {
        let mut named = self.named_by_data()?;
        self.new.each::<Vec<Extent>>(Space::Freed, |_, all| {
            named.extend(all.iter().map(|e| (e.segment, e.start)));
        })?;
        Ok(named)
    }

    /// Every extent that an object, a part or an upload of the new index names.
    fn named_by_data(&self) -> Result<Named> {
        let mut named = Named::new();
        let mut add = |e: &Extent| {
            named.insert((e.segment, e.start));
        };
        self.new
            .each::<Object>(Space::Objects, |_, o| o.extents().for_each(|e| add(&e)))?;
        self.new.each::<Part>(Space::Parts, |_, p| {
            p.stream.extents().iter().for_each(&mut add)
        })?;
        self.new.each::<Upload>(Space::Uploads, |_, u| {
            u.key_extent.iter().for_each(&mut add)
        })?;
        Ok(named)
    }
}
