//! The background scrub of a running server: one thread that reads every object, as slowly as it is told, and reports rot.
//!
//! It holds the record of the object it reads, like any reader, and lets go once the record is replaced or removed, so that it
//! keeps no space from coming back. What it finds is logged with the object's name, and counted.

use std::cell::Cell;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::Core;
use crate::error::{Error, Result};
use crate::index::{Space, key, record};
use crate::limits;
use crate::segment::scrub::{Look, Subject};
use crate::verify::{KeyAnswer, ObjectKeys};

/// The scrub's counters, and whether it is to stop.
#[derive(Default)]
pub struct Scrub {
    pub stop: AtomicBool,
    passes: AtomicU64,
    objects: AtomicU64,
    unopened: AtomicU64,
    bytes: AtomicU64,
    rotten: AtomicU64,
}

/// What the scrub has done since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Passes over the whole store that ended.
    pub passes: u64,
    pub objects: u64,
    /// Those of them whose keys were not at hand: the structure of their packages was checked, and no tag.
    pub unopened: u64,
    pub bytes: u64,
    /// Objects found rotten; each counts once a pass.
    pub rotten: u64,
}

impl Scrub {
    pub fn counts(&self) -> Scrubbed {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Scrubbed {
            passes: get(&self.passes),
            objects: get(&self.objects),
            unopened: get(&self.unopened),
            bytes: get(&self.bytes),
            rotten: get(&self.rotten),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, unless it is to stop.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.stopped() && Instant::now() < end {
            std::thread::sleep(limits::SCRUB_LOOK_EVERY.min(end - Instant::now()));
        }
    }
}

/// Scrubs until told to stop, `rate` bytes a second.
pub fn run(core: &Arc<Core>, rate: u64, keys: &dyn ObjectKeys) {
    let scrub = &core.scrub;
    scrub.pause(limits::SCRUB_DELAY);
    while !scrub.stopped() {
        let begun = Instant::now();
        match pass(core, rate, keys) {
            Ok(()) => drop(scrub.passes.fetch_add(1, Ordering::Relaxed)),
            Err(Error::Closed) => return,
            Err(e) => tracing::warn!("the scrub ends early: {e}"),
        }
        scrub.pause(limits::SCRUB_EVERY.saturating_sub(begun.elapsed()));
    }
}

fn pass(core: &Arc<Core>, rate: u64, keys: &dyn ObjectKeys) -> Result<()> {
    let mut after: Option<Vec<u8>> = None;
    let pace = Pace::new(core, rate);
    let told = |bytes| pace.told(bytes);
    let mut look = Look::new(core.segments.dir(), &core.blocks, &told);
    loop {
        let from = after.take().map_or(Bound::Unbounded, Bound::Excluded);
        // A page at a time: an iterator kept open keeps old versions from leaving the index.
        let range = (from, Bound::Unbounded);
        let page = core.index.space(Space::Objects).range::<Vec<u8>, _>(range);
        let page: Vec<Vec<u8>> = page
            .take(limits::LIST_MAX)
            .map(|guard| guard.key().map(|key| key.to_vec()))
            .collect::<std::result::Result<_, _>>()
            .map_err(crate::index::io)?;
        for entry in &page {
            if core.scrub.stopped() {
                return Err(Error::Closed);
            }
            object(core, &mut look, &pace, keys, entry);
        }
        match page.last() {
            Some(last) => after = Some(last.clone()),
            None => return Ok(()),
        }
    }
}

fn object(
    core: &Arc<Core>,
    look: &mut Look<'_>,
    pace: &Pace<'_>,
    keys: &dyn ObjectKeys,
    entry: &[u8],
) {
    let Some((bucket, name, _)) = key::parse(entry) else {
        return;
    };
    let held = core.hold(0, || core.look(entry));
    let rotten = |why: &dyn std::fmt::Display| {
        core.scrub.rotten.fetch_add(1, Ordering::Relaxed);
        tracing::error!("rotten: {bucket}/{name}: {why}");
    };
    let (origin, (sequence, object, _)) = match held {
        Ok(found) => found,
        Err(e @ Error::Corrupt { .. }) => return rotten(&e),
        // Gone meanwhile.
        Err(_) => return,
    };
    pace.begin(entry, sequence);
    let secret = match object
        .encryption
        .as_ref()
        .map(|e| keys.open(&bucket, &name, e))
    {
        Some(KeyAnswer::Key(secret)) => Some(secret),
        // A key that does not open is seen by verification, which has the time to ask why.
        Some(KeyAnswer::NotAtHand | KeyAnswer::Broken(_)) | None => None,
    };
    let subject = Subject {
        bucket: &bucket,
        key: &name,
        sequence,
        object: &object,
        secret: secret.as_ref(),
    };
    let seen = look.object(&core.index, &subject, None);
    core.release(0, origin);
    core.scrub.objects.fetch_add(1, Ordering::Relaxed);
    if object.encryption.is_some() && secret.is_none() {
        core.scrub.unopened.fetch_add(1, Ordering::Relaxed);
    }
    if let Err(e) = seen
        && pace.stands()
    {
        match e {
            Error::Closed => {}
            e => rotten(&e),
        }
    }
}

/// Keeps the rate, and watches whether the record that is read still stands.
struct Pace<'a> {
    core: &'a Core,
    rate: u64,
    due: Cell<Instant>,
    record: Cell<(Vec<u8>, u64)>,
}

impl<'a> Pace<'a> {
    fn new(core: &'a Core, rate: u64) -> Self {
        Pace {
            core,
            rate,
            due: Cell::new(Instant::now()),
            record: Cell::default(),
        }
    }

    fn begin(&self, entry: &[u8], sequence: u64) {
        self.record.set((entry.to_vec(), sequence));
    }

    /// Whether the record has not been replaced or removed.
    fn stands(&self) -> bool {
        let (entry, sequence) = self.record.take();
        let found = self.core.index.space(Space::Objects).get(&entry);
        let stands = match found {
            Ok(Some(value)) => record::sequence(&value) == Some(sequence),
            Ok(None) => false,
            Err(_) => true,
        };
        self.record.set((entry, sequence));
        stands
    }

    fn told(&self, bytes: u64) -> bool {
        self.core.scrub.bytes.fetch_add(bytes, Ordering::Relaxed);
        let time = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        // Time in which nothing was read is not made up for.
        let due = self.due.get().max(Instant::now()) + time;
        self.due.set(due);
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            if self.core.scrub.stopped() || !self.stands() {
                return false;
            }
            std::thread::sleep(limits::SCRUB_LOOK_EVERY.min(left));
        }
        !self.core.scrub.stopped()
    }
}
