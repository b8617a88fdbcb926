//! Moves what is sealed under older versions of a key to its current version, and tells what each key protects.
//!
//! Only wrappings change: an object's key is opened and sealed anew, its data stays where it is. A pass walks over all records and
//! does those under older versions, in batches, some on each shard at a time, so that requests go on being served. What was done
//! stays done: a job that was cut off is run again and finds only the rest. It ends when the engine counts nothing under older
//! versions any more and no old wrapping lies on the disk.
//!
//! Before older versions are destroyed the engine is told to refuse whatever is still to be committed under them: a request that
//! began before the key was rotated is told to try again, and no acknowledged object is lost.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures_channel::oneshot;
use futures_lite::future::block_on;
use futures_util::{StreamExt, stream};
use strongroom_engine::{
    Drives, Error, Tally, Under, WrappedCursor, WrappedEntry, WrappedPage, WrappedQuery,
};
use strongroom_kms::{KeyState, Keys, KeysOptions, Kms, Source};

use crate::error::At;
use crate::limits;
use crate::sse;
use crate::work::Shards;

const STOPPING: &str = "the server is stopping. What is done stays done: run it again later";

/// The objects of a store, as commands reach them.
pub enum Objects {
    /// In a running server.
    Served(Shards),
    /// In a store that nobody has open: what stands under each key.
    AtRest(BTreeMap<Under, Tally>),
}

/// What stands under one key of the keystore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protected {
    pub all: Tally,
    /// Under versions older than the current one.
    pub older: Tally,
}

impl Objects {
    /// What stands under a key whose current version this is.
    pub fn under(&self, name: &str, current: u32) -> Result<Protected, String> {
        let tally = match self {
            Objects::Served(shards) => wait(shards.begin(0, async |drives| drives.tally()))?,
            Objects::AtRest(tally) => tally.clone(),
        };
        let mut protected = Protected::default();
        for (under, tally) in tally {
            let Under::Key {
                source,
                name: of,
                version,
            } = under
            else {
                continue;
            };
            if source == Source::Embedded.as_str() && of == name {
                protected.all += tally;
                if version < current {
                    protected.older += tally;
                }
            }
        }
        Ok(protected)
    }

    /// Moves everything under older versions of a key to its current version, and then destroys the older versions if told to.
    /// Says what was done.
    pub fn rewrap(
        &self,
        kms: &Arc<Kms>,
        name: &str,
        retire: bool,
        tell: &mut dyn FnMut(String),
    ) -> Result<String, String> {
        let Objects::Served(shards) = self else {
            return Err("the store is not open".into());
        };
        let mut job = Job {
            objects: self,
            shards,
            kms,
            name,
            to: usable_version(kms, name)?,
            moved: 0,
            last_told: Instant::now(),
            tell,
        };
        let to = job.to;
        job.empty_older_versions()?;
        job.settle()?;
        let mut said = format!(
            "{} moved to version {to} of {name}; nothing is under older versions",
            things(job.moved)
        );
        if retire {
            job.retire()?;
            said += ", and these are destroyed";
        }
        Ok(said)
    }
}

/// The version that new things are sealed under.
fn usable_version(kms: &Kms, name: &str) -> Result<u32, String> {
    let key = kms.describe_key(name).map_err(|e| e.to_string())?;
    match key.state {
        KeyState::Enabled => Ok(key.version),
        KeyState::Disabled => Err(format!("the key {name} is disabled")),
        KeyState::PendingDeletion { .. } => Err(format!("the key {name} is going to be deleted")),
        KeyState::Destroyed => Err(format!("the key {name} is destroyed")),
    }
}

struct Job<'a> {
    objects: &'a Objects,
    shards: &'a Shards,
    kms: &'a Arc<Kms>,
    name: &'a str,
    /// The version that everything moves to.
    to: u32,
    moved: u64,
    last_told: Instant,
    tell: &'a mut dyn FnMut(String),
}

/// What became of a batch.
#[derive(Default)]
struct Batch {
    moved: u64,
    failed: Vec<String>,
}

impl Job<'_> {
    fn left(&self) -> Result<u64, String> {
        let older = self.objects.under(self.name, self.to)?.older;
        Ok(older.objects + older.uploads)
    }

    /// Passes over all records until nothing is left, which takes more than one where requests that began earlier end later.
    fn empty_older_versions(&mut self) -> Result<(), String> {
        loop {
            let left = self.left()?;
            if left == 0 {
                return Ok(());
            }
            (self.tell)(format!("{} to move", things(left)));
            let (before, total) = (self.moved, self.moved + left);
            let failed = self.pass(total)?;
            let left = self.left()?;
            if left > 0 && self.moved == before {
                let reason = failed.first().cloned();
                return Err(format!(
                    "{} moved, {left} could not be: {}",
                    things(self.moved),
                    reason.unwrap_or_else(|| "they are not found".into())
                ));
            }
        }
    }

    /// One walk over all records; the first failures.
    fn pass(&mut self, total: u64) -> Result<Vec<String>, String> {
        let mut failed = Vec::new();
        let mut running: VecDeque<oneshot::Receiver<Batch>> = VecDeque::new();
        let mut after = None;
        let mut next_shard = 0;
        loop {
            // A key that went away meanwhile would fail for each object.
            usable_version(self.kms, self.name)?;
            let page = self.page(after.take())?;
            if !page.entries.is_empty() {
                let (kms, entries) = (Arc::clone(self.kms), page.entries);
                running.push_back(
                    self.shards
                        .begin(next_shard, move |drives| batch(drives, kms, entries)),
                );
                next_shard = (next_shard + 1) % self.shards.count();
            }
            let most = match page.next {
                Some(_) => self.shards.count() * limits::REWRAP_BATCHES_PER_SHARD,
                None => 0,
            };
            while running.len() > most {
                let Some(oldest) = running.pop_front() else {
                    break;
                };
                let done = wait(oldest)?;
                self.moved += done.moved;
                failed.extend(done.failed);
                failed.truncate(limits::REWRAP_FAILURES_MAX);
                if self.last_told.elapsed() >= limits::PROGRESS_EVERY {
                    self.last_told = Instant::now();
                    (self.tell)(format!("{} of {total} moved", self.moved));
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(failed);
            }
        }
    }

    fn page(&self, after: Option<WrappedCursor>) -> Result<WrappedPage, String> {
        let query = WrappedQuery {
            source: Source::Embedded.as_str().into(),
            name: self.name.into(),
            below: self.to,
            after,
            max: limits::REWRAP_BATCH,
        };
        let page = self
            .shards
            .begin(0, async move |drives| drives.wrapped(query).await);
        wait(page)?.map_err(|e| e.to_string())
    }

    /// Waits until no old wrapping lies on the disk.
    fn settle(&mut self) -> Result<(), String> {
        (self.tell)("erasing the old wrappings from the disk".into());
        let mut tries = limits::ERASURE_TRIES;
        loop {
            tries -= 1;
            match wait(
                self.shards
                    .begin(0, async |drives| drives.settle_erasure().await),
            )? {
                Ok(()) => return Ok(()),
                // Long listings hold an old state of the index.
                Err(Error::Overloaded { .. }) if tries > 0 => {}
                Err(e) => {
                    return Err(format!(
                        "{} moved, but old wrappings may still lie on the disk: {e}",
                        things(self.moved)
                    ));
                }
            }
        }
    }

    /// Destroys the older versions, once nothing new can come under them and nothing is left.
    fn retire(&mut self) -> Result<(), String> {
        let (source, name, to) = (Source::Embedded.as_str(), self.name.to_owned(), self.to);
        wait(self.shards.begin(0, async move |drives| {
            drives.refuse_older(source, &name, to).await
        }))?
        .map_err(|e| e.to_string())?;
        let before = self.moved;
        self.empty_older_versions()?;
        if self.moved > before {
            self.settle()?;
        }
        self.kms
            .retire_versions(self.name, self.to)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }
}

/// Does some entries on a core, a few at a time.
async fn batch(drives: Rc<Drives>, kms: Arc<Kms>, entries: Vec<WrappedEntry>) -> Batch {
    let keys = Keys::of_keystore(kms, KeysOptions::default());
    let outcomes = stream::iter(&entries)
        .map(|entry| move_one(&drives, &keys, entry))
        .buffer_unordered(limits::REWRAPS_AT_ONCE);
    outcomes
        .fold(Batch::default(), async |mut batch, outcome| {
            match outcome {
                Ok(true) => batch.moved += 1,
                Ok(false) => {}
                Err(reason) => batch.failed.push(reason),
            }
            batch
        })
        .await
}

/// Moves one object or upload; false where it was replaced or deleted since it was found.
async fn move_one(drives: &Drives, keys: &Keys, entry: &WrappedEntry) -> Result<bool, String> {
    let (bucket, key) = (entry.bucket.as_str(), entry.key.as_str());
    let at = At::object(bucket, key);
    let told = |reason: &str| {
        tracing::warn!(
            bucket,
            key,
            reason,
            "not moved to the current version of its key"
        );
        format!("{bucket}/{key}: {reason}")
    };
    let told_s3 = |e: s3s::S3Error| told(e.message().unwrap_or_else(|| e.code().as_str()));
    let new = sse::keys::renew(keys, &entry.encryption, at)
        .await
        .map_err(told_s3)?;
    let hold = new.key.hold(at).map_err(told_s3)?;
    let encryption = new
        .encryption
        .ok_or_else(|| told("it would not be sealed any more"))?;
    let shard = drives.of(bucket, key).map_err(|e| told(&e.to_string()))?;
    let (shard, entry) = (Rc::clone(shard), entry.clone());
    let commit = async move {
        let WrappedEntry {
            bucket,
            key,
            sequence,
            ..
        } = &entry;
        match &entry.upload {
            None => {
                shard
                    .set_encryption(bucket, key, *sequence, encryption)
                    .await
            }
            Some(id) => {
                shard
                    .set_upload_encryption(bucket, key, id, *sequence, encryption)
                    .await
            }
        }
    };
    match sse::keys::held(hold, commit).await {
        Ok(_) => Ok(true),
        Err(Error::Conflict | Error::NoSuchKey | Error::NoSuchUpload | Error::NoSuchBucket) => {
            Ok(false)
        }
        Err(e) => Err(told(&e.to_string())),
    }
}

fn wait<T>(result: oneshot::Receiver<T>) -> Result<T, String> {
    block_on(result).map_err(|_| STOPPING.to_owned())
}

fn things(n: u64) -> String {
    match n {
        1 => "1 object or upload".into(),
        n => format!("{n} objects and uploads"),
    }
}
