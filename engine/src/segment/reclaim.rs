//! Gives freed space back to the file system: one thread that punches holes and removes dead segments.
//!
//! An extent is punched only once the commit that freed it is durable and no reader on any core holds its record. Until then it
//! stands in the index's list of freed extents, so that a crash in between loses no space.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::fs::FallocateFlags;

use crate::engine::Core;
use crate::index::commit::Op;
use crate::limits::{self, SECTOR};
use crate::record::Extent;

/// Extents nobody names any more.
#[derive(Debug)]
pub struct Freed {
    /// The commit that brought them: readers hold it while they read. None where nobody reads them, as of a wrapped key.
    pub reader: Option<u64>,
    /// Their entry in the index's list of freed extents.
    pub freed: Option<u64>,
    /// The shard that had handed them out, where no record ever named them.
    pub shard: Option<usize>,
    pub extents: Vec<Extent>,
}

#[derive(Debug)]
pub enum Message {
    Freed(Freed),
    /// So many bytes of the index are dead.
    IndexDead(u64),
    Close,
}

impl From<Freed> for Message {
    fn from(freed: Freed) -> Self {
        Message::Freed(freed)
    }
}

/// How long a reader's hold is waited for before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The index is compacted when deleting has paused for this long, or much is dead.
const COMPACT_AFTER: Duration = Duration::from_secs(3);

/// Runs until told to close. What cannot be punched is kept in the index's list for the next start.
pub fn run(core: &Arc<Core>, messages: &Receiver<Message>) {
    let mut waiting: Vec<Freed> = Vec::new();
    let mut dead = 0u64;
    let mut dead_since = Instant::now();
    let mut closing = false;
    while !closing {
        let patience = match (waiting.is_empty(), dead) {
            (false, _) => LOOK_AGAIN,
            (true, 0) => Duration::from_secs(3600),
            (true, _) => COMPACT_AFTER,
        };
        let mut next = match messages.recv_timeout(patience) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        while let Some(message) = next.take() {
            match message {
                Message::Freed(freed) => waiting.push(freed),
                Message::IndexDead(bytes) => {
                    dead += bytes;
                    dead_since = Instant::now();
                }
                Message::Close => closing = true,
            }
            if waiting.len() >= 4096 {
                break;
            }
            next = messages.try_recv().ok();
        }
        let (ready, held): (Vec<Freed>, Vec<Freed>) = std::mem::take(&mut waiting)
            .into_iter()
            .partition(|f| f.reader.is_none_or(|r| !core.is_read(r)));
        waiting = held;
        if !ready.is_empty() {
            punch(core, ready);
        }
        let quiet = dead_since.elapsed() >= COMPACT_AFTER && dead >= limits::INDEX_DEAD_BYTES_MIN;
        if !closing && (quiet || dead >= limits::INDEX_DEAD_BYTES_MAX) {
            dead = 0;
            if let Err(e) = core.index.compact() {
                tracing::warn!("the index could not be compacted: {e}");
            }
        }
    }
}

fn punch(core: &Arc<Core>, ready: Vec<Freed>) {
    let mut files: HashMap<u64, Option<File>> = HashMap::new();
    let mut done = Vec::new();
    let mut failed: HashSet<u64> = HashSet::new();
    for freed in &ready {
        for extent in &freed.extents {
            if core.segments.is_dead(extent.segment) {
                // The whole file goes.
                files.entry(extent.segment).or_insert(None);
                continue;
            }
            let file = files.entry(extent.segment).or_insert(None);
            if file.is_none() {
                *file = File::options()
                    .write(true)
                    .open(core.segments.path(extent.segment))
                    .inspect_err(|e| {
                        tracing::warn!("segment {:016x} cannot be opened: {e}", extent.segment)
                    })
                    .ok();
            }
            let punched =
                file.as_ref()
                    .is_some_and(|f| match punch_file(f, extent.start, extent.sectors) {
                        Ok(_) => true,
                        Err(e) => {
                            tracing::warn!(
                                "space of segment {:016x} cannot be given back: {e}",
                                extent.segment
                            );
                            false
                        }
                    });
            if !punched {
                failed.insert(extent.segment);
            }
        }
    }
    for (segment, file) in &files {
        if let Some(file) = file
            && let Err(e) = file.sync_data()
        {
            tracing::warn!("segment {segment:016x} cannot be synced: {e}");
            failed.insert(*segment);
        }
    }
    for freed in ready {
        if let Some(shard) = freed.shard {
            freed
                .extents
                .iter()
                .for_each(|e| core.segments.settle(shard, e));
        }
        if freed.extents.iter().all(|e| !failed.contains(&e.segment)) {
            done.extend(freed.freed);
        }
    }
    let dead: Vec<u64> = files
        .into_keys()
        .filter(|s| !failed.contains(s) && core.segments.is_dead(*s))
        .collect();
    // An id must never come again: the count of ids is durable before the file goes.
    if !dead.is_empty() && core.commit_and_wait(Op::Checkpoint) {
        for segment in dead {
            match std::fs::remove_file(core.segments.path(segment)) {
                Ok(()) => core.segments.forget(segment),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => core.segments.forget(segment),
                Err(e) => tracing::warn!("segment {segment:016x} cannot be removed: {e}"),
            }
        }
    }
    if !done.is_empty() {
        core.commit_and_forget(Op::Reclaimed(done));
    }
}

/// Punches a hole over whole sectors and returns its bytes.
pub fn punch_file(file: &File, start: u32, sectors: u32) -> std::io::Result<u64> {
    let (at, len) = (
        u64::from(start) * SECTOR as u64,
        u64::from(sectors) * SECTOR as u64,
    );
    rustix::fs::fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        at,
        len,
    )?;
    Ok(len)
}
