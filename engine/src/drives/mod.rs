//! A store in several directories: one [`Engine`] for each drive, and on every core one [`Shard`] of each.
//!
//! - Every drive is a store of its own: index, segments, committer. An object, its uploads and their parts lie on one drive, which a
//!   hash of the store's id, bucket and key picks ([`Drives::of`]). With one drive nothing is hashed.
//! - Buckets stand on all. The first drive that is there tells what there is, so a bucket is made there last and deleted there first.
//!   Changes of buckets come one after another, and end also when their caller goes away. What a crash leaves of one, a start makes
//!   the same everywhere: a bucket that any drive has is on all, with the settings changed last.
//! - A drive that is missing takes only its own objects away. What would have to look at all of them is refused meanwhile: a listing
//!   with holes would be taken for the whole, and a bucket that looks empty may not be.

mod pages;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::lock::Mutex;
use sha2::{Digest, Sha256};

use crate::engine::{Engine, EngineOptions, Observer, Opening, ShardSeed, Usage};
use crate::error::{Error, Result};
use crate::index::offline::unpanicked;
use crate::index::tally::{self, Tally, Under};
use crate::object::{
    ListPage, ListQuery, UploadPage, UploadQuery, WrappedCursor, WrappedPage, WrappedQuery,
};
use crate::record::{Bucket, BucketEncryption};
use crate::rt;
use crate::secret::Secret;
use crate::set::{DataDirs, Missing};
use crate::shard::{Shard, to_end};
use crate::verify::ObjectKeys;

/// An open store, seen from the process.
pub struct Engines {
    store_id: [u8; 16],
    drives: Vec<(PathBuf, Result<Engine, Missing>)>,
    changes: Arc<Mutex<()>>,
}

impl Engines {
    /// Opens the store: all drives that are there. One of several that does not open is missing from then on.
    pub fn open(dirs: &DataDirs, store_key: &Secret, options: &EngineOptions) -> Result<Engines> {
        let none = || Error::Unusable(format!("no store in {}", dirs.first().path().display()));
        let store_id = dirs.superblock()?.ok_or_else(none)?.store_id;
        let here = dirs.present().count() as u64;
        let options = EngineOptions {
            cache_bytes: options.cache_bytes / here,
            ..options.clone()
        };
        let mut drives = Vec::new();
        let mut failed = None;
        for dir in dirs.all() {
            let dir = match dir {
                Ok(dir) => dir,
                Err(missing) => {
                    drives.push((PathBuf::from(&*missing.name), Err(missing.clone())));
                    continue;
                }
            };
            let engine = unpanicked(|| Engine::open(dir, store_key, &options)).map_err(|e| {
                let missing = Missing {
                    name: dir.path().display().to_string().into(),
                    why: e.to_string(),
                };
                failed.get_or_insert(e);
                missing
            });
            drives.push((dir.path().to_owned(), engine));
        }
        if let Some(failed) = failed
            && drives.iter().all(|(_, engine)| engine.is_err())
        {
            return Err(failed);
        }
        let engines = Engines {
            store_id,
            drives,
            changes: Arc::default(),
        };
        engines.level_buckets()?;
        Ok(engines)
    }

    /// Makes the buckets of all drives the same, before any of them is served.
    fn level_buckets(&self) -> Result<()> {
        let mut latest: BTreeMap<String, Arc<Bucket>> = BTreeMap::new();
        for engine in self.present() {
            for (name, bucket) in engine.buckets().iter() {
                let known = latest.entry(name.clone()).or_insert_with(|| bucket.clone());
                if known.changed < bucket.changed {
                    *known = Arc::clone(bucket);
                }
            }
        }
        for engine in self.present() {
            let own = engine.buckets();
            for (name, bucket) in &latest {
                if own.get(name) != Some(bucket) && !engine.put_bucket(Bucket::clone(bucket)) {
                    return Err(Error::Closed);
                }
            }
        }
        Ok(())
    }

    fn present(&self) -> impl Iterator<Item = &Engine> {
        self.drives.iter().flat_map(|(_, engine)| engine)
    }

    /// What opening each drive found.
    pub fn openings(&self) -> impl Iterator<Item = (&Path, Result<Opening, &Missing>)> {
        self.drives
            .iter()
            .map(|(path, engine)| (path.as_path(), engine.as_ref().map(Engine::opening)))
    }

    /// What a core needs to open its shards, inside its own executor.
    pub fn shard(&self, id: usize) -> DrivesSeed {
        let seed = |(_, engine): &(PathBuf, Result<Engine, Missing>)| match engine {
            Ok(engine) => Ok(engine.shard(id)),
            Err(missing) => Err(Arc::new(missing.clone())),
        };
        DrivesSeed {
            store_id: self.store_id,
            drives: self.drives.iter().map(seed).collect(),
            changes: Arc::clone(&self.changes),
        }
    }

    /// What may be looked at from any thread while the store is open.
    pub fn observers(&self) -> Observers {
        let observed = |(path, engine): &(PathBuf, Result<Engine, Missing>)| Observed {
            directory: path.clone(),
            observer: engine.as_ref().ok().map(Engine::observer),
        };
        Observers(self.drives.iter().map(observed).collect())
    }

    /// Begins to look for rot on each drive in the background, `rate` bytes a second.
    pub fn start_scrub<K: ObjectKeys>(
        &mut self,
        rate: NonZeroU64,
        keys: impl Fn() -> K + Clone + Send + 'static,
    ) -> Result<()> {
        let mut here = self.drives.iter_mut().flat_map(|(_, engine)| engine);
        here.try_for_each(|engine| engine.start_scrub(rate, keys.clone()))
    }

    /// Closes the store once all shards are gone.
    pub fn close(self) {
        let here = self.drives.into_iter().flat_map(|(_, engine)| engine);
        here.for_each(Engine::close);
    }

    /// As [`Engine::close_and_forget`].
    pub fn close_and_forget(self, patience: Duration) -> bool {
        let here = self.drives.into_iter().flat_map(|(_, engine)| engine);
        // All of them, also behind one that is still held.
        let forgotten: Vec<bool> = here
            .map(|engine| engine.close_and_forget(patience))
            .collect();
        forgotten.iter().all(|done| *done)
    }
}

/// Counts and sizes of a store while it is open. Keeps nothing of it from being closed.
#[derive(Clone)]
pub struct Observers(Vec<Observed>);

/// One drive, and what may be seen of it; none where it is missing.
#[derive(Clone)]
pub struct Observed {
    pub directory: PathBuf,
    pub observer: Option<Observer>,
}

impl Observers {
    pub fn drives(&self) -> &[Observed] {
        &self.0
    }

    pub fn present(&self) -> impl Iterator<Item = &Observer> {
        self.0.iter().filter_map(|drive| drive.observer.as_ref())
    }

    /// What each drive holds and takes; none of those that are missing.
    pub fn each(&self) -> Result<Vec<(PathBuf, Option<Usage>)>> {
        let usage = |drive: &Observed| {
            let usage = drive.observer.as_ref().map(Observer::usage).transpose()?;
            Ok((drive.directory.clone(), usage))
        };
        self.0.iter().map(usage).collect()
    }
}

/// Travels to the thread of a core and becomes its drives there.
pub struct DrivesSeed {
    store_id: [u8; 16],
    drives: Vec<Result<ShardSeed, Arc<Missing>>>,
    changes: Arc<Mutex<()>>,
}

impl DrivesSeed {
    /// Must run on a glommio executor.
    pub async fn open(self) -> Result<Rc<Drives>> {
        let mut drives = Vec::new();
        for seed in self.drives {
            drives.push(match seed {
                Ok(seed) => Ok(seed.open().await?),
                Err(missing) => Err(missing),
            });
        }
        Ok(Rc::new(Drives {
            store_id: self.store_id,
            drives,
            changes: self.changes,
        }))
    }
}

/// An open store on one core. All of its futures stay on this core.
pub struct Drives {
    store_id: [u8; 16],
    drives: Vec<Result<Rc<Shard>, Arc<Missing>>>,
    /// Held by one change of a bucket, on whichever core.
    changes: Arc<Mutex<()>>,
}

impl Drives {
    /// Where an object and its uploads lie.
    pub fn of(&self, bucket: &str, key: &str) -> Result<&Rc<Shard>> {
        if let [Ok(only)] = &self.drives[..] {
            return Ok(only);
        }
        match &self.drives[place(&self.store_id, self.drives.len(), bucket, key)] {
            Ok(shard) => Ok(shard),
            Err(missing) => {
                self.bucket(bucket)?;
                Err(missing.error())
            }
        }
    }

    fn present(&self) -> impl DoubleEndedIterator<Item = &Rc<Shard>> {
        self.drives.iter().flatten()
    }

    /// The drive that tells of buckets.
    fn first(&self) -> &Rc<Shard> {
        self.present().next().expect("one is there")
    }

    /// The only drive there is.
    fn only(&self) -> Option<&Rc<Shard>> {
        match &self.drives[..] {
            [Ok(only)] => Some(only),
            _ => None,
        }
    }

    /// All drives, or which one is missing.
    fn all(&self) -> Result<Vec<Rc<Shard>>> {
        let shard = |drive: &Result<Rc<Shard>, Arc<Missing>>| match drive {
            Ok(shard) => Ok(Rc::clone(shard)),
            Err(missing) => Err(missing.error()),
        };
        self.drives.iter().map(shard).collect()
    }

    /// Whether nobody holds anything of it but who holds this.
    pub fn is_idle(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 1 && self.present().all(|shard| Rc::strong_count(shard) == 1)
    }

    /// Ends all shards, once no request is under way any more.
    pub async fn close(&self) {
        join_all(self.present().map(|shard| shard.close())).await;
    }

    // Buckets.

    pub fn bucket(&self, name: &str) -> Result<Arc<Bucket>> {
        self.first().bucket(name)
    }

    /// All buckets, by name.
    pub fn buckets(&self) -> Vec<Arc<Bucket>> {
        self.first().buckets()
    }

    pub async fn create_bucket(self: &Rc<Self>, name: &str) -> Result<()> {
        if let Some(only) = self.only() {
            return only.create_bucket(name).await;
        }
        let (drives, name) = (Rc::clone(self), name.to_owned());
        self.change(async move {
            let known: Vec<_> = drives.present().map(|s| s.bucket(&name)).collect();
            if known.iter().all(Result::is_ok) {
                return Err(Error::BucketExists);
            }
            // What a change that failed left is completed.
            let bucket = match known.iter().find_map(|b| b.as_ref().ok()) {
                Some(bucket) => Bucket::clone(bucket),
                None => Bucket {
                    name,
                    created: rt::unix_millis(),
                    encryption: None,
                    changed: None,
                },
            };
            drives.make_bucket(&bucket).await
        })
        .await
    }

    /// Makes a bucket wherever it is not.
    async fn make_bucket(&self, bucket: &Bucket) -> Result<()> {
        for shard in self.present().rev() {
            if shard.bucket(&bucket.name).is_err() {
                shard.put_bucket(bucket.clone()).await?;
            }
        }
        Ok(())
    }

    /// As [`Shard::set_bucket_encryption`]. Drives that are missing are told when they are back.
    pub async fn set_bucket_encryption(
        self: &Rc<Self>,
        name: &str,
        to: Option<BucketEncryption>,
    ) -> Result<()> {
        if let Some(only) = self.only() {
            return only.set_bucket_encryption(name, to).await;
        }
        let (drives, name) = (Rc::clone(self), name.to_owned());
        self.change(async move {
            drives.first().set_bucket_encryption(&name, to).await?;
            let bucket = drives.bucket(&name)?;
            for shard in drives.present().skip(1) {
                shard.put_bucket(Bucket::clone(&bucket)).await?;
            }
            Ok(())
        })
        .await
    }

    /// Deletes an empty bucket; uploads still open in it are aborted.
    pub async fn delete_bucket(self: &Rc<Self>, name: &str) -> Result<()> {
        if let Some(only) = self.only() {
            return only.delete_bucket(name).await;
        }
        let (drives, name) = (Rc::clone(self), name.to_owned());
        self.change(async move {
            let bucket = drives.bucket(&name)?;
            let shards = drives.all()?;
            let any = || ListQuery {
                max: 1,
                ..Default::default()
            };
            let looks = shards.iter().map(|shard| shard.list(&name, any()));
            let pages = try_join_all(looks).await?;
            if pages.iter().any(|page| !page.entries.is_empty()) {
                return Err(Error::BucketNotEmpty);
            }
            for shard in &shards {
                match shard.delete_bucket(&name).await {
                    Ok(()) | Err(Error::NoSuchBucket) => {}
                    // An object came meanwhile.
                    Err(e) => {
                        drives.make_bucket(&bucket).await?;
                        return Err(e);
                    }
                }
            }
            Ok(())
        })
        .await
    }

    /// Carries out one change of buckets at a time, to its end.
    async fn change<T: 'static>(
        &self,
        change: impl Future<Output = Result<T>> + 'static,
    ) -> Result<T> {
        let changes = Arc::clone(&self.changes);
        let alone = async move {
            let _turn = changes.lock().await;
            change.await
        };
        to_end(alone).await
    }

    // What looks at all objects.

    /// One page of a bucket's objects; at most 1,000 entries.
    pub async fn list(&self, bucket: &str, query: ListQuery) -> Result<ListPage> {
        if let Some(only) = self.only() {
            return only.list(bucket, query).await;
        }
        self.bucket(bucket)?;
        let shards = self.all()?;
        let max = query.max.min(crate::limits::LIST_MAX);
        let asked = shards.iter().map(|shard| shard.list(bucket, query.clone()));
        Ok(pages::merge(try_join_all(asked).await?, max))
    }

    /// One page of a bucket's open multipart uploads; at most 1,000 entries.
    pub async fn list_uploads(&self, bucket: &str, query: UploadQuery) -> Result<UploadPage> {
        if let Some(only) = self.only() {
            return only.list_uploads(bucket, query).await;
        }
        self.bucket(bucket)?;
        let shards = self.all()?;
        let max = query.max.min(crate::limits::LIST_MAX);
        let asked = shards
            .iter()
            .map(|shard| shard.list_uploads(bucket, query.clone()));
        Ok(pages::merge_uploads(try_join_all(asked).await?, max))
    }

    /// Aborts uploads begun longer than `age` ago on the drives that are there, and says how many.
    pub async fn abort_stale_uploads(&self, age: Duration) -> Result<usize> {
        let mut aborted = 0;
        for shard in self.present() {
            aborted += shard.abort_stale_uploads(age).await?;
        }
        Ok(aborted)
    }

    /// What stands under each key on the drives that are there.
    pub fn tally(&self) -> BTreeMap<Under, Tally> {
        tally::sum(self.present().flat_map(|shard| shard.tally()))
    }

    /// One page of the records under older versions of a key: one drive after the other, and all of them.
    pub async fn wrapped(&self, query: WrappedQuery) -> Result<WrappedPage> {
        let shards = self.all()?;
        let drive = query.after.as_ref().map_or(0, |after| after.drive);
        let mut page = shards[drive].wrapped(query).await?;
        let next = drive + 1;
        page.next = match page.next {
            Some(after) => Some(WrappedCursor { drive, ..after }),
            None if next < shards.len() => Some(WrappedCursor {
                drive: next,
                uploads: false,
                at: Vec::new(),
            }),
            None => None,
        };
        Ok(page)
    }

    /// As [`Shard::settle_erasure`], on all drives.
    pub async fn settle_erasure(&self) -> Result<()> {
        let shards = self.all()?;
        try_join_all(shards.iter().map(|shard| shard.settle_erasure())).await?;
        Ok(())
    }

    /// As [`Shard::refuse_older`], on all drives.
    pub async fn refuse_older(&self, source: &str, name: &str, below: u32) -> Result<()> {
        for shard in self.all()? {
            shard.refuse_older(source, name, below).await?;
        }
        Ok(())
    }
}

/// The number of the drive that an object lies on; frozen.
pub(crate) fn place(store_id: &[u8; 16], drives: usize, bucket: &str, key: &str) -> usize {
    let mut hash = Sha256::new();
    hash.update(store_id);
    hash.update(bucket.as_bytes());
    hash.update([0]);
    hash.update(key.as_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    let first = u64::from_le_bytes(*hash.first_chunk().expect("8 of 32"));
    (first % drives as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_its_drive_for_ever() {
        let at = |key: &str| place(&[7; 16], 3, "bucket", key);
        assert_eq!([at("a"), at("b"), at("c"), at("d")], [0, 1, 0, 2]);
        let mut count = [0; 3];
        (0..3000).for_each(|i| count[at(&i.to_string())] += 1);
        assert!(count.iter().all(|n| (900..1100).contains(n)), "{count:?}");
    }
}
