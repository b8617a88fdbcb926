//! Gives freed space back to the file system: one thread that punches holes and removes dead segments.
//!
//! An extent is punched only once the commit that freed it is durable and no reader on any core holds its record. Until then it
//! stands in the index's list of freed extents, so that a crash in between loses no space.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use futures_channel::oneshot;
use rustix::fs::FallocateFlags;

use crate::datadir::sync_dir;
use crate::engine::Core;
use crate::error::{Error, Result};
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
    /// The one among them that holds a wrapped key: no reader needs it, so it does not wait for readers.
    pub key: Option<Extent>,
    pub extents: Vec<Extent>,
}

#[derive(Debug)]
pub enum Message {
    Freed(Freed),
    /// So many bytes of the index are dead, old versions of the records re-wrapped up to a commit perhaps among them.
    IndexDead {
        bytes: u64,
        rewrapped: Option<u64>,
    },
    /// Answer once the wrapped keys freed so far, and old records, are gone from the disk.
    Settle(oneshot::Sender<Result<()>>),
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

/// Dead bytes of the index, and when it is due to be rid of them.
struct Dead {
    bytes: u64,
    since: Instant,
    /// The last re-wrap, and when the first one was heard of whose old record still stands: however busy the store is, that
    /// one goes within seconds.
    rewrapped: Option<(u64, Instant)>,
    /// Not before this moment for the sake of re-wrapped records alone: on a large store a compaction takes long.
    rested: Instant,
}

impl Dead {
    fn is_due(&self) -> bool {
        let quiet = self.since.elapsed() >= COMPACT_AFTER;
        let erasure = |(_, first): (u64, Instant)| {
            first.elapsed() >= COMPACT_AFTER && Instant::now() >= self.rested
        };
        self.bytes >= limits::INDEX_DEAD_BYTES_MAX
            || quiet && self.bytes >= limits::INDEX_DEAD_BYTES_MIN
            || self.rewrapped.is_some_and(erasure)
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0 && self.rewrapped.is_none()
    }

    fn compact(&mut self, core: &Core) -> Result<()> {
        let begun = Instant::now();
        let rewrapped = self.rewrapped;
        let done = core.index.compact();
        self.bytes = 0;
        self.since = Instant::now();
        self.rested = self.since + begun.elapsed() * limits::ERASURE_TIME_SHARE;
        if done.is_ok()
            && let Some((rewrapped, _)) = rewrapped
        {
            self.rewrapped = None;
            core.commit_and_forget(Op::Erased(rewrapped));
        }
        done
    }
}

/// Runs until told to close. What cannot be punched is kept in the index's list for the next start.
pub fn run(core: &Arc<Core>, messages: &Receiver<Message>) {
    let mut waiting: Vec<Freed> = Vec::new();
    let mut dead = Dead {
        bytes: 0,
        since: Instant::now(),
        rewrapped: None,
        rested: Instant::now(),
    };
    let mut settling = Vec::new();
    let mut closing = false;
    while !closing {
        let patience = match (waiting.is_empty(), dead.is_empty()) {
            (false, _) => LOOK_AGAIN,
            (true, true) => Duration::from_secs(3600),
            (true, false) => COMPACT_AFTER,
        };
        let mut next = match messages.recv_timeout(patience) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        while let Some(message) = next.take() {
            match message {
                Message::Freed(freed) => waiting.push(freed),
                Message::IndexDead { bytes, rewrapped } => {
                    dead.bytes += bytes;
                    dead.since = Instant::now();
                    if let Some(sequence) = rewrapped {
                        let first = dead.rewrapped.map_or(dead.since, |(_, first)| first);
                        dead.rewrapped = Some((sequence, first));
                    }
                }
                Message::Settle(reply) => settling.push(reply),
                Message::Close => closing = true,
            }
            if waiting.len() >= 4096 {
                break;
            }
            next = messages.try_recv().ok();
        }
        core.reclaiming.store(waiting.len(), Ordering::Relaxed);
        let (mut ready, mut held): (Vec<Freed>, Vec<Freed>) = std::mem::take(&mut waiting)
            .into_iter()
            .partition(|f| f.reader.is_none_or(|r| !core.is_read(r)));
        ready.extend(
            held.iter_mut()
                .filter_map(|f| f.key.take())
                .map(|key| Freed {
                    reader: None,
                    freed: None,
                    shard: None,
                    key: None,
                    extents: vec![key],
                }),
        );
        waiting = held;
        let punched = if ready.is_empty() {
            Ok(())
        } else {
            punch(core, ready)
        };
        if !settling.is_empty() && !closing {
            let done = punched
                .and_then(|()| sync_dir(core.segments.dir()))
                .and_then(|()| dead.compact(core));
            for reply in settling.drain(..) {
                // Who asked may be gone.
                let _ = reply.send(done.clone());
            }
        } else if !closing
            && dead.is_due()
            && has_room(core)
            && let Err(e) = dead.compact(core)
        {
            tracing::warn!("the index could not be compacted: {e}");
        }
        core.reclaiming.store(waiting.len(), Ordering::Relaxed);
        core.index_dead.store(dead.bytes, Ordering::Relaxed);
    }
}

/// Whether the index can be compacted: its new tables are written before the old ones go.
fn has_room(core: &Core) -> bool {
    let needed = |index: u64| limits::INDEX_JOURNAL_BYTES_MAX + index / limits::RESERVE_INDEX_SHARE;
    match (core.room(), core.index.disk_bytes()) {
        (Ok(room), Ok(index)) => room.free >= needed(index),
        (Err(e), _) | (_, Err(e)) => {
            tracing::warn!("the index is not compacted: {e}");
            false
        }
    }
}

/// Punches what can be; the first failure is returned once everything was tried.
fn punch(core: &Arc<Core>, ready: Vec<Freed>) -> Result<()> {
    let mut files: HashMap<u64, Option<File>> = HashMap::new();
    let mut done = Vec::new();
    let mut failed: HashMap<u64, Error> = HashMap::new();
    let fail = |segment: u64, op, e: std::io::Error| {
        let error = Error::io(op, &core.segments.path(segment), e);
        tracing::warn!("space is not given back: {error}");
        error
    };
    for freed in &ready {
        for extent in &freed.extents {
            core.cache.forget(extent);
            let segment = extent.segment;
            if core.segments.is_dead(segment) {
                // The whole file goes.
                files.entry(segment).or_insert(None);
                continue;
            }
            let file = files.entry(segment).or_insert(None);
            if file.is_none() {
                match File::options()
                    .write(true)
                    .open(core.segments.path(segment))
                {
                    Ok(opened) => *file = Some(opened),
                    Err(e) => {
                        failed.insert(segment, fail(segment, "open", e));
                        continue;
                    }
                }
            }
            if let Some(file) = file
                && let Err(e) = punch_file(file, extent.start, extent.sectors)
            {
                failed.insert(segment, fail(segment, "punch a hole in", e));
            }
        }
    }
    for (segment, file) in &files {
        if let Some(file) = file
            && let Err(e) = file.sync_data()
        {
            failed.insert(*segment, fail(*segment, "sync", e));
        }
    }
    for freed in ready {
        if let Some(shard) = freed.shard {
            freed
                .extents
                .iter()
                .for_each(|e| core.segments.settle(shard, e));
        }
        if freed
            .extents
            .iter()
            .all(|e| !failed.contains_key(&e.segment))
        {
            done.extend(freed.freed);
        }
    }
    let dead: Vec<u64> = files
        .into_keys()
        .filter(|s| !failed.contains_key(s) && core.segments.is_dead(*s))
        .collect();
    // An id must never come again: the count of ids is durable before the file goes.
    if !dead.is_empty() && core.commit_and_wait(Op::Checkpoint) {
        for segment in dead {
            match std::fs::remove_file(core.segments.path(segment)) {
                Ok(()) => core.segments.forget(segment),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => core.segments.forget(segment),
                Err(e) => {
                    failed.insert(segment, fail(segment, "remove", e));
                }
            }
        }
    }
    if !done.is_empty() {
        core.commit_and_forget(Op::Reclaimed(done));
    }
    failed.into_values().next().map_or(Ok(()), Err)
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
