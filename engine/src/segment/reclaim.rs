//! Gives freed space back to the file system: one thread that punches holes and removes dead segments.
//!
//! An extent is punched only once the commit that freed it is durable and no reader on any core holds its record. Until then it
//! stands in the index's list of freed extents, so that a crash in between loses no space.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use futures_channel::oneshot;

use crate::engine::Core;
use crate::error::{Error, Result};
use crate::index::commit::Op;
use crate::io::disk::{self, PlainFile};
use crate::limits;
use crate::record::Extent;
use crate::rt;

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
        let now = rt::now();
        let quiet = now - self.since >= COMPACT_AFTER;
        let erasure =
            |(_, first): (u64, Instant)| now - first >= COMPACT_AFTER && now >= self.rested;
        self.bytes >= limits::INDEX_DEAD_BYTES_MAX
            || quiet && self.bytes >= limits::INDEX_DEAD_BYTES_MIN
            || self.rewrapped.is_some_and(erasure)
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0 && self.rewrapped.is_none()
    }

    fn compact(&mut self, core: &Core) -> Result<()> {
        let begun = rt::now();
        let rewrapped = self.rewrapped;
        let done = core.index.compact();
        self.bytes = 0;
        self.since = rt::now();
        self.rested = self.since + (self.since - begun) * limits::ERASURE_TIME_SHARE;
        if done.is_ok()
            && let Some((rewrapped, _)) = rewrapped
        {
            self.rewrapped = None;
            core.commit_and_forget(Op::Erased(rewrapped));
        }
        done
    }
}

/// The thread that gives space back. What cannot be punched is kept in the index's list for the next start, and tried again where
/// somebody waits for keys to be gone: none is told that they are while one of them stands.
pub struct Reclaimer {
    core: Arc<Core>,
    pub messages: Receiver<Message>,
    waiting: Vec<Freed>,
    unpunched: Vec<Freed>,
    /// Why what is not even remembered was not punched.
    given_up: Option<Error>,
    dead: Dead,
    settling: Vec<oneshot::Sender<Result<()>>>,
}

impl Reclaimer {
    pub fn new(core: Arc<Core>, messages: Receiver<Message>) -> Self {
        Reclaimer {
            core,
            messages,
            waiting: Vec::new(),
            unpunched: Vec::new(),
            given_up: None,
            dead: Dead {
                bytes: 0,
                since: rt::now(),
                rewrapped: None,
                rested: rt::now(),
            },
            settling: Vec::new(),
        }
    }

    /// Runs until told to close.
    pub fn run(mut self) {
        loop {
            let first = match self.messages.recv_timeout(self.patience()) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !self.turn(first) {
                return;
            }
        }
    }

    /// How long it can wait for a message before it has something else to do.
    pub fn patience(&self) -> Duration {
        match (self.waiting.is_empty(), self.dead.is_empty()) {
            (false, _) => LOOK_AGAIN,
            (true, true) => Duration::from_secs(3600),
            (true, false) => COMPACT_AFTER,
        }
    }

    /// Takes in `first` and what waits behind it, and gives back what can be; whether there is another turn.
    pub fn turn(&mut self, first: Option<Message>) -> bool {
        let core = &self.core;
        let mut closing = false;
        let mut next = first;
        while let Some(message) = next.take() {
            match message {
                Message::Freed(freed) => self.waiting.push(freed),
                Message::IndexDead { bytes, rewrapped } => {
                    self.dead.bytes += bytes;
                    self.dead.since = rt::now();
                    if let Some(sequence) = rewrapped {
                        let first = self.dead.rewrapped;
                        let first = first.map_or(self.dead.since, |(_, first)| first);
                        self.dead.rewrapped = Some((sequence, first));
                    }
                }
                Message::Settle(reply) => self.settling.push(reply),
                Message::Close => closing = true,
            }
            if self.waiting.len() >= 4096 {
                break;
            }
            next = self.messages.try_recv().ok();
        }
        core.reclaiming.store(self.waiting.len(), Ordering::Relaxed);
        let (mut ready, mut held): (Vec<Freed>, Vec<Freed>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|f| f.reader.is_none_or(|r| !core.is_read(r)));
        for freed in ready.iter().filter(|f| f.freed.is_some()) {
            core.segments.left(&freed.extents);
        }
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
        self.waiting = held;
        if !self.settling.is_empty() {
            ready.append(&mut self.unpunched);
        }
        let punched = if ready.is_empty() {
            Ok(())
        } else {
            punch(core, ready).map_err(|(left, error)| {
                self.unpunched.extend(left);
                if self.unpunched.len() > limits::UNPUNCHED_MAX {
                    self.unpunched.truncate(limits::UNPUNCHED_MAX);
                    self.given_up = Some(error.clone());
                }
                error
            })
        };
        if !self.settling.is_empty() && !closing {
            let done = punched
                .and_then(|()| self.given_up.clone().map_or(Ok(()), Err))
                .and_then(|()| disk::sync_dir(core.segments.dir()))
                .and_then(|()| self.dead.compact(core));
            for reply in self.settling.drain(..) {
                // Who asked may be gone.
                let _ = reply.send(done.clone());
            }
        } else if !closing
            && self.dead.is_due()
            && has_room(core)
            && let Err(e) = self.dead.compact(core)
        {
            tracing::warn!("the index could not be compacted: {e}");
        }
        core.reclaiming.store(self.waiting.len(), Ordering::Relaxed);
        core.index_dead.store(self.dead.bytes, Ordering::Relaxed);
        !closing
    }
}

/// Whether the index can be compacted: its new tables are written before the old ones go.
fn has_room(core: &Core) -> bool {
    let needed = |index: u64| limits::INDEX_JOURNAL_BYTES_MAX + index / limits::RESERVE_INDEX_SHARE;
    let enough = core.index.disk_bytes();
    let enough = enough.and_then(|index| Ok(core.space.room(index)?.free >= needed(index)));
    match enough {
        Ok(enough) => enough,
        Err(e) => {
            tracing::warn!("the index is not compacted: {e}");
            false
        }
    }
}

/// Punches what can be; what could not be is returned, with the first failure, once everything was tried.
fn punch(core: &Arc<Core>, mut ready: Vec<Freed>) -> std::result::Result<(), (Vec<Freed>, Error)> {
    // In order, so that the same faults meet the same files whenever a run is repeated.
    let mut files: BTreeMap<u64, Option<PlainFile>> = BTreeMap::new();
    let mut failed: BTreeMap<u64, Error> = BTreeMap::new();
    let fail = |error: Error| {
        tracing::warn!("space is not given back: {error}");
        if error.is_failed_sync() {
            (core.fatal)(&error);
        }
        error
    };
    for freed in &ready {
        for extent in &freed.extents {
            core.cache.forget(extent);
            let segment = extent.segment;
            let file = files.entry(segment).or_insert(None);
            if core.segments.is_dead(segment) {
                // The whole file goes.
                continue;
            }
            if file.is_none() {
                match PlainFile::open(&core.segments.path(segment)) {
                    Ok(opened) => *file = Some(opened),
                    Err(e) => {
                        failed.insert(segment, fail(e));
                        continue;
                    }
                }
            }
            if let Some(file) = file
                && let Err(e) = file.punch(extent.start, extent.sectors)
            {
                failed.insert(segment, fail(e));
            }
        }
    }
    for (segment, file) in &files {
        if let Some(file) = file
            && let Err(e) = file.sync()
        {
            failed.insert(*segment, fail(e));
        }
    }
    for freed in &ready {
        if let Some(shard) = freed.shard {
            // What was not punched stays open: no record names it, and the next start looks for it above the checkpoint.
            let punched = |e: &&Extent| !failed.contains_key(&e.segment);
            let extents = freed.extents.iter().filter(punched);
            extents.for_each(|e| core.segments.settle(shard, e));
        }
    }
    let dead: Vec<u64> = files
        .into_keys()
        .filter(|s| !failed.contains_key(s) && core.segments.is_dead(*s))
        .collect();
    // An id must never come again: the count of ids is durable before the file goes.
    if !dead.is_empty() && core.commit_and_wait(Op::Checkpoint) {
        for segment in &dead {
            let path = core.segments.path(*segment);
            // Those who read it last may have it open still: its space does not wait for them.
            let empty = || PlainFile::open(&path)?.punch(0, core.segments.sectors_max);
            // It may have gone before a crash.
            if path.exists()
                && let Err(e) = empty()
            {
                tracing::warn!("space is given back once nobody has the file open: {e}");
            }
            match disk::remove(&path) {
                Ok(()) => core.segments.forget(*segment),
                Err(e) => drop(failed.insert(*segment, fail(e))),
            }
        }
        // Before the list forgets them: a file whose name came back would never be looked at again.
        if let Err(e) = disk::sync_dir(core.segments.dir()) {
            let e = fail(e);
            failed.extend(dead.iter().map(|segment| (*segment, e.clone())));
        }
    }
    let named = |f: &&Freed| f.extents.iter().all(|e| !failed.contains_key(&e.segment));
    let done: Vec<u64> = ready.iter().filter(named).filter_map(|f| f.freed).collect();
    if !done.is_empty() {
        core.commit_and_forget(Op::Reclaimed(done));
    }
    for freed in &mut ready {
        freed.extents.retain(|e| failed.contains_key(&e.segment));
    }
    ready.retain(|freed| !freed.extents.is_empty());
    match failed.into_values().next() {
        None => Ok(()),
        Some(error) => Err((ready, error)),
    }
}
