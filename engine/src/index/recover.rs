//! What happens to the index and the segments when a store is opened.
//!
//! After a clean close the last checkpoint says everything. After a crash, space above the last checkpoint that the index does
//! not name belongs to uploads that were never acknowledged, and is punched; but only if the index is whole. It is known to be
//! whole when it ends at or after the highest commit that any extent above the checkpoint names as durable; otherwise opening is
//! refused, because what looks like garbage would be somebody's data.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::commit::meta;
use super::copies::Groups;
use super::record::{Data, Extent, Object, Part, Upload};
use super::tally::Tallies;
use super::{Index, Space, io, key, record};
use crate::error::{Error, Result};
use crate::io::disk::{self, PlainFile};
use crate::segment::block::{self, Kind};
use crate::segment::reclaim::Freed;
use crate::segment::scrub::block_at;
use crate::segment::{self, Checkpoint};
use fjall::PersistMode;

/// What the engine starts from.
pub struct Recovered {
    pub boot: u32,
    pub next_segment: u64,
    pub live: HashMap<u64, u64>,
    /// Extents that were freed and perhaps not punched.
    pub freed: Vec<Freed>,
    /// Bytes given back because no record names them.
    pub reclaimed_bytes: u64,
    /// Whether the last run closed the store.
    pub clean: bool,
    pub tallies: Tallies,
    /// The last re-wrap, where old versions of its record may still lie in the index.
    pub rewrapped: Option<u64>,
    /// The copy of the index, and whether it has everything.
    pub copies: Groups,
    pub copied: bool,
}

/// Brings segments and index together and counts this opening.
pub fn recover(index: &Index, segments: &Path, blocks: &block::Sealer) -> Result<Recovered> {
    let last: u64 = index.plain_meta(meta::SEQUENCE)?.unwrap_or(0);
    let boot: u32 = index.plain_meta::<u32>(meta::BOOT)?.unwrap_or(0) + 1;
    let checkpoint = index
        .get::<Checkpoint>(Space::Meta, meta::CHECKPOINT.as_bytes())?
        .map(|(_, c)| c)
        .unwrap_or_default();
    index
        .synced
        .store(last, std::sync::atomic::Ordering::Release);

    let files = segment_files(segments)?;
    let next_segment = files
        .last_key_value()
        .map_or(0, |(id, _)| id + 1)
        .max(checkpoint.next_segment);
    let freed = freed(index)?;
    // A store just made has nothing to recover.
    let clean = checkpoint.live.is_some() || boot == 1;
    let mut recovered = Recovered {
        boot,
        next_segment,
        live: HashMap::new(),
        freed,
        reclaimed_bytes: 0,
        clean,
        tallies: index.load_tallies(last)?,
        rewrapped: index.plain_meta(meta::REWRAPPED)?,
        copies: copies(index)?,
        copied: checkpoint.copied == Some(true),
    };
    match &checkpoint.live {
        Some(live) => {
            // A closed store has no segment that its index does not know of.
            if let Some((id, _)) = files.range(checkpoint.next_segment..).next() {
                return Err(Error::Unusable(format!(
                    "segment {id:016x} is newer than the index: the index is an older one. Nothing was changed. Put back the index \
                     directory as it was, or rebuild it from the segments with `strongroom recover`."
                )));
            }
            recovered.live = live.iter().copied().collect();
        }
        None => after_crash(
            index,
            segments,
            blocks,
            &checkpoint,
            &files,
            last,
            &mut recovered,
        )?,
    }

    // From here on a crash is one without a clean close.
    let reopened = Checkpoint {
        next_segment,
        unsettled: Vec::new(),
        live: None,
        copied: None,
    };
    let key = meta::CHECKPOINT.as_bytes();
    let sealed = index.sealer.seal(Space::Meta.name(), key, last, &reopened);
    let mut batch = index.db.batch().durability(Some(PersistMode::SyncData));
    batch.insert(index.space(Space::Meta), meta::BOOT, record::encode(&boot));
    batch.insert(index.space(Space::Meta), key, sealed);
    batch.commit().map_err(io)?;
    Ok(recovered)
}

pub fn segment_files(dir: &Path) -> Result<BTreeMap<u64, u64>> {
    let failed = |e: std::io::Error| Error::io("list", dir, e);
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(id) = entry.file_name().to_str().and_then(segment::parse_name) {
            files.insert(id, entry.metadata().map_err(failed)?.len());
        }
    }
    Ok(files)
}

fn freed(index: &Index) -> Result<Vec<Freed>> {
    let mut all = Vec::new();
    for entry in index.space(Space::Freed).iter() {
        let (key, value) = entry.into_inner().map_err(io)?;
        if key == key::MARK {
            continue;
        }
        let (_, extents): (u64, Vec<Extent>) =
            index.sealer.open(Space::Freed.name(), &key, &value)?;
        let at =
            <[u8; 8]>::try_from(&key[..]).map_err(|_| Error::corrupt("a key", "index freed"))?;
        all.push(Freed {
            reader: None,
            freed: Some(u64::from_be_bytes(at)),
            shard: None,
            key: None,
            extents,
        });
    }
    Ok(all)
}

/// The runs of sectors that records name, by segment and start.
type Named = HashMap<u64, BTreeMap<u32, u32>>;

fn after_crash(
    index: &Index,
    dir: &Path,
    blocks: &block::Sealer,
    checkpoint: &Checkpoint,
    files: &BTreeMap<u64, u64>,
    last: u64,
    recovered: &mut Recovered,
) -> Result<()> {
    let named = named(index, checkpoint, &mut recovered.live)?;
    let unsettled: Vec<(u64, u32, u64)> = files
        .iter()
        .filter_map(|(id, len)| Some((*id, checkpoint.unsettled_from(*id)?, *len)))
        .collect();
    // Every check comes before the first punch.
    for (id, from, len) in &unsettled {
        let synced = highest_synced(dir, *id, *from, *len, blocks)?;
        if synced > last {
            return Err(Error::Unusable(format!(
                "the index ends at commit {last}, but segment {id:016x} was written after commit {synced} was durable: the index has \
                 lost records. Nothing was changed. Put back the index directory as it was, or rebuild it from the segments with \
                 `strongroom recover`."
            )));
        }
    }
    let none = BTreeMap::new();
    for (id, from, len) in unsettled {
        let runs = named.get(&id).unwrap_or(&none);
        recovered.reclaimed_bytes += give_back(dir, id, from, len, runs)?;
    }
    Ok(())
}

fn named(index: &Index, checkpoint: &Checkpoint, live: &mut HashMap<u64, u64>) -> Result<Named> {
    let mut named = Named::new();
    let mut note = |e: &Extent| {
        *live.entry(e.segment).or_default() += u64::from(e.sectors);
        if checkpoint.unsettled_from(e.segment).is_some() {
            named
                .entry(e.segment)
                .or_default()
                .insert(e.start, e.sectors);
        }
    };
    index.each::<Object>(Space::Objects, |_, object| {
        if let Data::Single(stream) = &object.data {
            stream.extents().iter().for_each(&mut note);
        }
        object.key_extent.iter().for_each(&mut note);
    })?;
    index.each::<Part>(Space::Parts, |_, part| {
        part.stream.extents().iter().for_each(&mut note)
    })?;
    index.each::<Upload>(Space::Uploads, |_, upload| {
        upload.key_extent.iter().for_each(&mut note);
    })?;
    copies(index)?.extents().for_each(|e| note(&e));
    Ok(named)
}

/// The record of the copy of the index.
pub fn copies(index: &Index) -> Result<Groups> {
    let found = index.get::<Groups>(Space::Meta, meta::COPIES.as_bytes())?;
    Ok(found.map(|(_, groups)| groups).unwrap_or_default())
}

/// The highest commit that an extent at or after `from` names as durable.
fn highest_synced(dir: &Path, id: u64, from: u32, len: u64, blocks: &block::Sealer) -> Result<u64> {
    use crate::limits::SECTOR;
    let path = segment::path(dir, id);
    let file = std::fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let end = (len / SECTOR as u64) as u32;
    let mut highest = 0;
    let mut at = from;
    while at < end {
        let mut step = 1;
        if let Some((b, _)) = block_at(blocks, &file, id, at) {
            highest = highest.max(b.synced);
            if b.kind != Kind::Tail {
                step = b.sectors.max(1);
            }
        }
        at = at.saturating_add(step);
    }
    Ok(highest)
}

/// Punches what no record names at or after `from`, cuts the file behind the last live sector, and says how many bytes that gave.
fn give_back(dir: &Path, id: u64, from: u32, len: u64, runs: &BTreeMap<u32, u32>) -> Result<u64> {
    use crate::limits::SECTOR;
    let path = segment::path(dir, id);
    let file = PlainFile::open(&path)?;
    let mut holes = Vec::new();
    let mut at = from;
    for (start, sectors) in runs.range(from..) {
        if *start > at {
            holes.push((at, start - at));
        }
        at = at.max(start + sectors);
    }
    let mut bytes = 0;
    for (start, sectors) in holes {
        bytes += file.punch(start, sectors)?;
    }
    let end = u64::from(at) * SECTOR as u64;
    if end < len {
        bytes += len - end;
        file.cut(end)?;
    }
    file.sync()?;
    if end == 0 {
        disk::remove(&path)?;
    }
    Ok(bytes)
}
