//! `recover`: makes a whole index of what there is, beside the old one, and puts it in its place last.
//!
//! What is known of an entry comes from four sources; the one of the highest commit holds, removals included:
//!
//! 1. the copies of the index in segments, but for what the old index has removed since;
//! 2. every record of the old index that can be read and opens;
//! 3. its journals, behind a place where the tree stopped reading them;
//! 4. streams that stand complete in segments and that no record names, if they were written about when the other sources end.
//!
//! A whole index is left as it is. Nothing in segments is changed or given back. Records whose data was given back are left out
//! and named, unless they come from an index that is not older than the segments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fjall::PersistMode;
use minicbor::Decode;

use super::commit::meta;
use super::copies::{COPIED, Group, Groups};
use super::journal;
use super::offline::{Offline, remove, unpanicked};
use super::record::{self, Bucket, Data, Extent, Object, Part, Place, Stream, Upload, UploadId};
use super::{Index, Space, io, key, recover};
use crate::datadir::{DataDir, sync_dir};
use crate::error::{Error, Result};
use crate::limits;
use crate::secret::Secret;
use crate::segment::block::{self, TailRecord};
use crate::segment::scrub::{Look, block_at};
use crate::segment::survey::{Survey, survey};
use crate::segment::{self, Checkpoint};

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
        && unpanicked(|| is_whole(old.index(), last, &journals)).unwrap_or(false)
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
        Some(newest) => {
            std::fs::rename(&newest, &index).map_err(|e| Error::io("rename", &newest, e))
        }
        None => Ok(()),
    }
}

const KEPT: &str = "index.before-recover-";

fn swap(dir: &DataDir, draft: &Path) -> Result<Option<PathBuf>> {
    let index = dir.index_dir();
    sync_dir(draft)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let mut kept = None;
    if index.exists() {
        let aside = (now..)
            .map(|n| dir.path().join(format!("{KEPT}{n}")))
            .find(|p| !p.exists());
        let aside = aside.expect("some second is free");
        std::fs::rename(&index, &aside).map_err(|e| Error::io("rename", &index, e))?;
        kept = Some(aside);
    }
    std::fs::rename(draft, &index).map_err(|e| Error::io("rename", draft, e))?;
    sync_dir(dir.path())?;
    Ok(kept)
}

fn journals(dir: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let path = e.path();
            let number = path
                .file_name()?
                .to_str()?
                .strip_suffix(".jnl")?
                .parse()
                .ok()?;
            Some((number, path))
        })
        .collect();
    files.sort();
    // One that cannot be read has nothing to tell.
    files
        .into_iter()
        .filter_map(|(_, path)| std::fs::read(path).ok())
        .collect()
}

/// Whether every record of an index can be read and opens, and its journals hold nothing later.
fn is_whole(index: &Index, last: u64, journals: &[Vec<u8>]) -> Result<bool> {
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
    whole &= index
        .get::<Checkpoint>(Space::Meta, meta::CHECKPOINT.as_bytes())
        .is_ok();
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

    /// Takes in what the copies say, oldest round first, and returns the rounds that count.
    fn copies(&mut self) -> Result<Vec<Group>> {
        let mut rounds: BTreeMap<u64, Vec<(u32, bool, Extent, block::CopyGroup)>> = BTreeMap::new();
        for (extent, piece) in &self.survey.copies {
            let round = rounds.entry(piece.group.id).or_default();
            round.push((piece.number, piece.last, *extent, piece.group));
        }
        let mut groups: Vec<Group> = Vec::new();
        // Ids ascend with time. A round without its end was never finished.
        for (_, mut pieces) in rounds {
            pieces.sort_by_key(|(number, ..)| *number);
            let numbers = pieces.iter().map(|(n, ..)| *n).eq(0..pieces.len() as u32);
            let Some((_, true, _, group)) = pieces.last().filter(|_| numbers).copied() else {
                continue;
            };
            if group.from == 0 {
                groups.clear();
            }
            groups.push(Group {
                group,
                extents: pieces.into_iter().map(|(_, _, extent, _)| extent).collect(),
                bytes: 0,
            });
        }
        // Rounds without the whole one they build on still tell what they hold.
        let segments = self.segments;
        let mut look = Look::new(segments, self.blocks, &|_| true);
        for group in &mut groups {
            for extent in &group.extents {
                let copy = match look.copy(extent) {
                    Ok(copy) => copy,
                    Err(e) => {
                        (self.say)(Finding::Note(format!(
                            "a piece of the copy of the index is damaged: {e}"
                        )));
                        self.found.lost += 1;
                        continue;
                    }
                };
                for entry in &copy.entries {
                    group.bytes += entry.value.as_ref().map_or(0, Vec::len) as u64
                        + entry.inline.as_ref().map_or(0, Vec::len) as u64;
                    let Some(space) = COPIED.get(usize::from(entry.space)).copied() else {
                        continue;
                    };
                    if entry.value.is_some()
                        && self.is_removed_since(space, &entry.key, entry.sequence)
                    {
                        continue;
                    }
                    self.apply(&Entry {
                        space,
                        key: &entry.key,
                        sequence: entry.sequence,
                        value: entry.value.as_deref(),
                        inline: entry.inline.as_deref(),
                    })?;
                }
            }
            self.copied_to = self.copied_to.max(group.group.to);
        }
        Ok(groups)
    }

    /// Whether the old index knows of the commit that wrote an entry, and no more of the entry.
    fn is_removed_since(&self, space: Space, key: &[u8], sequence: u64) -> bool {
        let Some(old) = self.old.filter(|_| sequence <= self.last) else {
            return false;
        };
        unpanicked(|| old.space(space).get(key).map_err(io)).is_ok_and(|found| found.is_none())
    }

    /// Takes in every entry of the old index that can be read.
    fn old_index(&mut self) -> Result<()> {
        let old = self.old.expect("asked for");
        for space in COPIED.into_iter().chain([Space::Freed]) {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let mut batch: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
                let read = unpanicked(|| {
                    old.each_raw(space, after.as_deref(), |key, value| {
                        batch.push((key.to_vec(), value.to_vec()));
                        // Not all of a large index at once.
                        if batch.len() >= limits::COPY_KEYS_AT_ONCE {
                            Err(Error::Closed)
                        } else {
                            Ok(())
                        }
                    })
                });
                for (key, value) in &batch {
                    self.old_entry(old, space, key, value)?;
                }
                let reached = batch.last().map(|(key, _)| key.clone()).or(after.take());
                match read {
                    Ok(Ok(())) => break,
                    Err(Error::Closed) => after = reached,
                    // Unreadable here: it goes on at the next key that another source knows.
                    Ok(Err(_)) | Err(_) => {
                        let from = reached.clone().unwrap_or_default();
                        let Some(next) = self.next_known(space, &from)? else {
                            break;
                        };
                        if let Ok(Some(value)) =
                            unpanicked(|| old.space(space).get(&next).map_err(io))
                        {
                            self.old_entry(old, space, &next, &value)?;
                        }
                        after = Some(next);
                    }
                }
            }
        }
        Ok(())
    }

    fn old_entry(&mut self, old: &Index, space: Space, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(origin) = self.opens(space, key, value) else {
            if let (Space::Objects, Some((bucket, name, _))) = (space, key::parse(key)) {
                (self.say)(Finding::Note(format!(
                    "the record of {bucket}/{name} in the old index is damaged"
                )));
            }
            return Ok(());
        };
        let inline = match origin {
            Some(origin) => unpanicked(|| old.inline(origin)).unwrap_or_default(),
            None => None,
        };
        self.apply(&Entry {
            space,
            key,
            sequence: record::sequence(value).unwrap_or(0),
            value: Some(value),
            inline: inline.as_deref(),
        })
    }

    fn next_known(&self, space: Space, after: &[u8]) -> Result<Option<Vec<u8>>> {
        let from = std::ops::Bound::Excluded(after.to_vec());
        let range = (from, std::ops::Bound::Unbounded);
        let next = self.new.space(space).range::<Vec<u8>, _>(range).next();
        next.map(|guard| guard.key().map(|key| key.to_vec()).map_err(io))
            .transpose()
    }

    /// Takes in what the batches of a journal say.
    fn journal(&mut self, journal: &[u8]) -> Result<()> {
        let mut failed = Ok(());
        journal::batches(journal, |items| {
            if failed.is_ok() {
                failed = self.batch(&items);
            }
        });
        failed
    }

    fn batch(&mut self, items: &[journal::Item<'_>]) -> Result<()> {
        let end = items.iter().find(|i| i.key == meta::SEQUENCE.as_bytes());
        let Some(end) = end.and_then(|i| minicbor::decode::<u64>(i.value?).ok()) else {
            return Ok(());
        };
        // Of several changes of one entry the last one stands.
        let mut changes: BTreeMap<(u64, &[u8]), Option<&[u8]>> = BTreeMap::new();
        for item in items {
            changes.insert((item.keyspace, item.key), item.value);
        }
        let small: HashMap<&[u8], &[u8]> = changes
            .iter()
            .filter(|((_, key), _)| key.len() == 8)
            .filter_map(|((_, key), value)| Some((*key, (*value)?)))
            .collect();
        for ((keyspace, key), value) in &changes {
            match value {
                Some(value) => {
                    let spaces = COPIED.into_iter();
                    let space = match self.spaces.get(keyspace) {
                        Some(space) => Some(*space),
                        None => spaces
                            .into_iter()
                            .find(|s| self.opens(*s, key, value).is_some()),
                    };
                    let Some(space) = space else { continue };
                    let Some(origin) = self.opens(space, key, value) else {
                        continue;
                    };
                    self.spaces.insert(*keyspace, space);
                    let inline = origin.and_then(|o| small.get(&key::sequence(o)[..]).copied());
                    self.apply(&Entry {
                        space,
                        key,
                        sequence: record::sequence(value).unwrap_or(0),
                        value: Some(value),
                        inline,
                    })?;
                }
                None => {
                    if let Some(space) = self.spaces.get(keyspace).copied() {
                        self.apply(&Entry {
                            space,
                            key,
                            sequence: end,
                            value: None,
                            inline: None,
                        })?;
                    }
                }
            }
        }
        // What is batched here was durable, or about to be.
        self.highest = self.highest.max(end);
        Ok(())
    }

    /// Takes in streams that no record names.
    fn streams(&mut self) -> Result<()> {
        let named = self.named()?;
        let known_to = self.copied_to.max(self.last);
        let survey = self.survey;
        let mut open: Vec<(u64, &crate::segment::survey::Found)> = survey
            .streams
            .iter()
            .filter(|(_, f)| {
                f.extents
                    .values()
                    .all(|e| !named.contains(&(e.segment, e.start)))
            })
            // Its commit came shortly after its last tail: an older one was dead when the other sources end.
            .filter(|(_, f)| f.synced + 2 * limits::COMMIT_QUEUE_MAX as u64 >= known_to)
            .map(|(sequence, found)| (*sequence, found))
            .collect();
        open.sort_by_key(|(sequence, found)| (found.synced, *sequence));
        for (sequence, found) in open {
            let Some(extents) = found.complete() else {
                continue;
            };
            let stream = Stream {
                size: found.size,
                nonce: found.nonce,
                place: Place::Extents(extents),
            };
            match (found.part, found.record.clone()) {
                (None, Some(TailRecord::Object(object))) => {
                    self.object(sequence, found, *object, stream)?
                }
                (Some((id, number)), Some(TailRecord::Part(part))) => {
                    self.part(found, &id, number, Part { stream, ..part })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        sequence: u64,
        found: &crate::segment::survey::Found,
        object: Object,
        stream: Stream,
    ) -> Result<()> {
        let entry = key::object(&found.bucket, &found.key);
        let present = self.new.space(Space::Objects).get(&entry).map_err(io)?;
        let present = present.as_deref().and_then(record::sequence);
        let removed = self.removed.get(&(Space::Objects, entry.clone())).copied();
        if present
            .max(removed)
            .is_some_and(|known| known > found.synced)
        {
            return Ok(());
        }
        let wrapped = self.survey.keys.iter().filter(|(key, (_, w))| {
            found.key_sequence == Some(**key) || w.stream == Some(sequence)
        });
        let wrapped = wrapped.max_by_key(|(key, _)| **key).map(|(_, found)| found);
        if found.nonce.is_some() && wrapped.is_none() {
            self.lost(
                &found.bucket,
                &found.key,
                "its data is there, its wrapped key is not",
            );
            return Ok(());
        }
        let object = Object {
            encryption: wrapped.map(|(_, w)| w.encryption.clone()),
            key_extent: wrapped.map(|(extent, _)| *extent),
            data: Data::Single(stream),
            origin: None,
            ..object
        };
        self.add(Space::Objects, entry, &object)?;
        self.found.from_segments += 1;
        Ok(())
    }

    fn part(
        &mut self,
        found: &crate::segment::survey::Found,
        id: &UploadId,
        number: u16,
        part: Part,
    ) -> Result<()> {
        let entry = key::part(id, number);
        let upload_entry = key::upload(&found.bucket, &found.key, id);
        let removed = |space, entry: &[u8]| self.removed.get(&(space, entry.to_vec())).copied();
        let present = self.new.space(Space::Parts).get(&entry).map_err(io)?;
        let known = present
            .as_deref()
            .and_then(record::sequence)
            .max(removed(Space::Parts, &entry));
        if known.is_some_and(|known| known > found.synced) {
            return Ok(());
        }
        let upload = self.new.get::<Upload>(Space::Uploads, &upload_entry)?;
        let object = self
            .new
            .get::<Object>(Space::Objects, &key::object(&found.bucket, &found.key))?;
        let listed = object.is_some_and(|(_, o)| match &o.data {
            Data::Parts(of, parts) => {
                of == id
                    && parts
                        .iter()
                        .any(|p| (p.number, p.size) == (number, part.stream.size))
            }
            Data::Single(_) => false,
        });
        if upload.is_none() && !listed {
            if removed(Space::Uploads, &upload_entry).is_some_and(|r| r > found.synced) {
                return Ok(());
            }
            let wrapped = self
                .survey
                .keys
                .values()
                .filter(|(_, w)| w.upload == Some(*id));
            let wrapped = wrapped.max_by_key(|(extent, _)| extent.sequence);
            if found.nonce.is_some() && wrapped.is_none() {
                self.lost(
                    &found.bucket,
                    &found.key,
                    "parts of an upload are there, its wrapped key is not",
                );
                return Ok(());
            }
            let upload = Upload {
                created: part.modified,
                metadata: Default::default(),
                encryption: wrapped.map(|(_, w)| w.encryption.clone()),
                checksum: None,
                key_extent: wrapped.map(|(extent, _)| *extent),
                origin: None,
            };
            (self.say)(Finding::Note(format!(
                "the upload {id} of {}/{} is open again without its metadata: only its parts were found",
                found.bucket, found.key
            )));
            self.add(Space::Uploads, upload_entry, &upload)?;
        }
        self.add(Space::Parts, entry, &part)?;
        self.found.from_segments += 1;
        Ok(())
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
        self.new
            .each::<Vec<Extent>>(Space::Freed, |_, all| all.iter().for_each(&mut add))?;
        Ok(named)
    }

    /// Leaves out records whose data was given back, and what then belongs to nothing. Returns what the others name.
    fn settle(&mut self) -> Result<Named> {
        let trusted = self.old.is_some() && self.last >= self.survey.synced;
        let mut owners: HashSet<UploadId> = HashSet::new();
        let mut buckets: HashMap<String, u64> = HashMap::new();
        let mut inline: HashSet<u64> = HashSet::new();
        let mut gone_parts: Vec<Vec<u8>> = Vec::new();
        for (entry, sequence, part) in self.collect::<Part>(Space::Parts)? {
            if !trusted && self.is_gone(&part.stream, None) {
                self.new
                    .space(Space::Parts)
                    .remove(entry.as_slice())
                    .map_err(io)?;
                gone_parts.push(entry);
            } else if part.stream.place == Place::Inline {
                inline.insert(sequence);
            }
        }
        for (entry, sequence, object) in self.collect::<Object>(Space::Objects)? {
            let Some((bucket, name, _)) = key::parse(&entry) else {
                continue;
            };
            let why = match &object.data {
                Data::Single(stream) if !trusted && self.is_gone(stream, object.key_extent) => {
                    Some("its data is not there: it was deleted, or is lost")
                }
                Data::Parts(id, parts) if !parts.is_empty() => {
                    let there = |n| {
                        self.new
                            .space(Space::Parts)
                            .contains_key(key::part(id, n))
                            .unwrap_or(false)
                    };
                    let count = parts.iter().filter(|p| there(p.number)).count();
                    match count {
                        0 => Some("its parts are not there: it was deleted, or is lost"),
                        n if n < parts.len() => {
                            self.lost(
                                &bucket,
                                &name,
                                "some of its parts are not there; the record stays",
                            );
                            None
                        }
                        _ => None,
                    }
                }
                _ => None,
            };
            if let Some(why) = why {
                self.new
                    .space(Space::Objects)
                    .remove(entry.as_slice())
                    .map_err(io)?;
                self.lost(&bucket, &name, why);
                continue;
            }
            match &object.data {
                Data::Parts(id, _) => drop(owners.insert(*id)),
                Data::Single(s) if s.place == Place::Inline => {
                    let origin = object.origin(sequence);
                    inline.insert(origin);
                    if !self
                        .new
                        .space(Space::Inline)
                        .contains_key(key::sequence(origin))
                        .map_err(io)?
                    {
                        self.lost(&bucket, &name, "its bytes are lost; the record stays");
                    }
                }
                Data::Single(_) => {}
            }
            buckets.entry(bucket).or_insert(object.modified);
        }
        for (entry, _, upload) in self.collect::<Upload>(Space::Uploads)? {
            owners.extend(key::upload_id(&entry));
            if let Some((bucket, _, _)) = key::parse(&entry) {
                buckets.entry(bucket).or_insert(upload.created);
            }
        }
        for (entry, _, _) in self.collect::<Part>(Space::Parts)? {
            if key::part_upload(&entry).is_none_or(|id| !owners.contains(&id)) {
                self.new
                    .space(Space::Parts)
                    .remove(entry.as_slice())
                    .map_err(io)?;
            }
        }
        for (name, created) in buckets {
            if !self
                .new
                .space(Space::Buckets)
                .contains_key(name.as_bytes())
                .map_err(io)?
            {
                (self.say)(Finding::Note(format!(
                    "the bucket {name} is made again, without its settings"
                )));
                let bucket = Bucket {
                    name: name.clone(),
                    created,
                    encryption: None,
                };
                self.add(Space::Buckets, name.into_bytes(), &bucket)?;
            }
        }
        let mut dead = Vec::new();
        for guard in self.new.space(Space::Inline).iter() {
            let entry = guard.key().map_err(io)?;
            let sequence = <[u8; 8]>::try_from(&entry[..]).map(u64::from_be_bytes);
            if sequence.is_ok_and(|s| !inline.contains(&s)) {
                dead.push(entry);
            }
        }
        for entry in dead {
            self.new.space(Space::Inline).remove(entry).map_err(io)?;
        }
        // An extent that is named again was not freed for good.
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
        for (entry, _, extents) in self.collect::<Vec<Extent>>(Space::Freed)? {
            if extents
                .iter()
                .any(|e| named.contains(&(e.segment, e.start)))
            {
                self.new
                    .space(Space::Freed)
                    .remove(entry.as_slice())
                    .map_err(io)?;
            }
        }
        Ok(named)
    }

    fn collect<T: for<'b> Decode<'b, ()>>(&self, space: Space) -> Result<Vec<(Vec<u8>, u64, T)>> {
        let mut all = Vec::new();
        for guard in self.new.space(space).iter() {
            let (entry, value) = guard.into_inner().map_err(io)?;
            let (sequence, record) = self.new.sealer.open(space.name(), &entry, &value)?;
            all.push((entry.to_vec(), sequence, record));
        }
        Ok(all)
    }

    /// Whether nothing is left where a stream lay: its first head, or its key.
    fn is_gone(&self, stream: &Stream, key: Option<Extent>) -> bool {
        let first = stream.extents().first().copied();
        first.into_iter().chain(key).any(|e| {
            let Ok(file) = std::fs::File::open(segment::path(self.segments, e.segment)) else {
                return true;
            };
            if block_at(self.blocks, &file, e.segment, e.start).is_some() {
                return false;
            }
            let mut sector = vec![0; limits::SECTOR];
            let at = u64::from(e.start) * limits::SECTOR as u64;
            match std::os::unix::fs::FileExt::read_exact_at(&file, &mut sector, at) {
                Ok(()) => sector.iter().all(|b| *b == 0),
                Err(_) => true,
            }
        })
    }

    /// Writes what is known of the store as a whole, and makes everything durable.
    fn finish(&mut self, groups: Vec<Group>, named: &Named) -> Result<()> {
        let old = self.old;
        let boot = old.and_then(|i| {
            unpanicked(|| i.plain_meta::<u32>(meta::BOOT))
                .ok()
                .flatten()
        });
        let boot = u64::from(boot.unwrap_or(0)).max(self.survey.sequence >> 40);
        let checkpoint = old
            .and_then(|i| {
                unpanicked(|| i.get::<Checkpoint>(Space::Meta, meta::CHECKPOINT.as_bytes()))
                    .ok()
                    .flatten()
            })
            .map(|(_, c)| c.next_segment);
        let checkpoint = Checkpoint {
            next_segment: self.survey.next_segment.max(checkpoint.unwrap_or(0)),
            // Nothing is given back for being unknown.
            unsettled: Vec::new(),
            live: None,
            copied: None,
        };
        // The next start copies the whole index, and frees these; what is void already goes now.
        let kept: HashSet<(u64, u32)> = groups
            .iter()
            .flat_map(|g| &g.extents)
            .map(|e| (e.segment, e.start))
            .collect();
        let void: Vec<Extent> = self
            .survey
            .copies
            .iter()
            .map(|(extent, _)| *extent)
            .filter(|e| {
                !kept.contains(&(e.segment, e.start)) && !named.contains(&(e.segment, e.start))
            })
            .collect();
        if !void.is_empty() {
            let entry = key::sequence(self.highest + 1).to_vec();
            self.add(Space::Freed, entry, &void)?;
        }
        if let Some(rewrapped) = old.and_then(|i| {
            unpanicked(|| i.plain_meta::<u64>(meta::REWRAPPED))
                .ok()
                .flatten()
        }) {
            let space = self.new.space(Space::Meta);
            space
                .insert(meta::REWRAPPED, record::encode(&rewrapped))
                .map_err(io)?;
        }
        self.add(
            Space::Meta,
            meta::COPIES.as_bytes().to_vec(),
            &Groups { groups, dead: 0 },
        )?;
        self.add(
            Space::Meta,
            meta::CHECKPOINT.as_bytes().to_vec(),
            &checkpoint,
        )?;
        let space = self.new.space(Space::Meta);
        space
            .insert(meta::BOOT, record::encode(&(boot as u32)))
            .map_err(io)?;
        space
            .insert(meta::SEQUENCE, record::encode(&self.highest))
            .map_err(io)?;
        self.new.db.persist(PersistMode::SyncAll).map_err(io)?;
        if self.old.is_none() || self.last < self.survey.synced {
            self.found.removals_unknown = Some(limits::COPY_EVERY.as_secs());
        }
        Ok(())
    }
}
