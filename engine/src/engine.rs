//! The engine as a whole: what all cores share, opening and closing it.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use futures_channel::oneshot;

use crate::cache::{Cache, CacheStats};
use crate::datadir::DataDir;
use crate::error::{Error, Result};
use crate::index::commit::{Committer, Op, Reply, Request, meta};
use crate::index::copies::Copies;
use crate::index::tally::{self, Tally, Under};
use crate::index::{Index, recover};
use crate::io::{DiskCounters, DiskStats};
use crate::limits;
use crate::record::Bucket;
use crate::rt;
use crate::scrubber::{self, Scrub, Scrubbed};
use crate::secret::Secret;
use crate::segment::reclaim::{Message, Reclaimer};
use crate::segment::{Segments, block};
use crate::set::DataDirs;
use crate::shard::Shard;
use crate::shelf::Shelf;
use crate::space::{Room, Space};
use crate::verify::ObjectKeys;

/// What all cores share.
pub(crate) struct Core {
    pub superblock: PathBuf,
    pub index: Index,
    pub blocks: block::Sealer,
    pub segments: Segments,
    pub copies: Copies,
    pub scrub: Scrub,
    pub cache: Cache,
    /// For opened packages on their way out.
    pub plain: Shelf,
    /// What each shard asks of the disk.
    pub disks: Vec<Arc<DiskCounters>>,
    pub space: Space,
    /// What the reclaimer has in hand: freed records that wait for their readers, and dead bytes of the index.
    pub reclaiming: AtomicUsize,
    pub index_dead: AtomicU64,
    readers: Vec<Readers>,
    commits: Sender<Request>,
    reclaim: Sender<Message>,
    pub fatal: fn(&Error),
}

/// The data that one shard's readers hold, by the commit that brought it.
type Readers = Mutex<HashMap<u64, u32>>;

impl Core {
    /// Looks a record up and holds it, so that nothing it names is punched. `look` runs under the shard's lock: whoever
    /// frees a record takes the same lock after its commit, and so finds every holder that could have seen the record.
    pub fn hold<T>(
        &self,
        shard: usize,
        look: impl FnOnce() -> Result<(u64, T)>,
    ) -> Result<(u64, T)> {
        let mut held = self.readers[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (sequence, found) = look()?;
        *held.entry(sequence).or_default() += 1;
        Ok((sequence, found))
    }

    pub fn release(&self, shard: usize, sequence: u64) {
        let mut held = self.readers[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = held.get_mut(&sequence) {
            *n -= 1;
            if *n == 0 {
                held.remove(&sequence);
            }
        }
    }

    pub fn is_read(&self, sequence: u64) -> bool {
        self.readers.iter().any(|r| {
            r.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains_key(&sequence)
        })
    }

    /// Hands a request to the committer; the answer comes once it is durable.
    pub fn commit(&self, op: Op) -> Result<oneshot::Receiver<Reply>> {
        let (reply, answer) = oneshot::channel();
        match self.commits.try_send(Request {
            op,
            reply: Some(reply),
        }) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_)) => Err(Error::Overloaded {
                what: "the commit queue is full",
            }),
            Err(TrySendError::Disconnected(_)) => Err(Error::Closed),
        }
    }

    /// For the reclaimer's thread: waits, and says whether it was done.
    pub fn commit_and_wait(&self, op: Op) -> bool {
        let (reply, answer) = oneshot::channel();
        self.commits
            .send(Request {
                op,
                reply: Some(reply),
            })
            .is_ok()
            && matches!(rt::block_on(answer), Ok(Ok(_)))
    }

    pub fn commit_and_forget(&self, op: Op) {
        // A committer that is gone leaves this for the next start.
        let _ = self.commits.send(Request { op, reply: None });
    }

    /// Freed records whose space has not been given back.
    pub fn reclaim_backlog(&self) -> usize {
        self.reclaim.len() + self.reclaiming.load(Ordering::Relaxed)
    }

    /// Refuses a write of `bytes` that the disk has no room for.
    pub fn check_space(&self, bytes: u64) -> Result<()> {
        self.space.check(bytes, || self.index.disk_bytes())
    }

    /// Takes room for `bytes`, which are about to be written.
    pub fn take_space(&self, bytes: u64) -> Result<()> {
        self.space.take(bytes, || self.index.disk_bytes())
    }

    /// Refuses a change of the index that the disk has no room for.
    pub fn check_index_space(&self) -> Result<()> {
        self.space.check_index(|| self.index.disk_bytes())
    }

    pub fn reclaim(&self, message: Message) {
        // A reclaimer that is gone leaves this for the next start.
        let _ = self.reclaim.send(message);
    }
}

/// How to open an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Cores that will open a shard.
    pub shards: usize,
    /// Memory for sealed data that is read often; 0 for none.
    pub cache_bytes: u64,
    /// Called when a write to the index failed: nothing may be acknowledged after it, so it must end the process.
    pub fatal: fn(&Error),
}

/// An open store. Dropping it without `close` is as good as a crash: nothing acknowledged is lost, the next start takes longer.
pub struct Engine {
    core: Arc<Core>,
    committer: JoinHandle<()>,
    reclaimer: JoinHandle<()>,
    scrubber: Option<JoinHandle<()>>,
    opening: Opening,
}

/// What opening a store found.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// The last run closed the store.
    pub clean: bool,
    /// Bytes given back that belonged to uploads never acknowledged.
    pub reclaimed_bytes: u64,
}

/// What a store holds, and the bytes it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Extents that records name.
    pub live: u64,
    /// What else the segments take: uploads under way, space reserved ahead, and what is being given back.
    pub dead: u64,
    /// Tables, values and journal of the index.
    pub index: u64,
    /// What of the index was deleted or replaced, about.
    pub index_dead: u64,
    pub buckets: u64,
    pub objects: u64,
    /// Plaintext bytes of all objects.
    pub object_bytes: u64,
    pub uploads: u64,
    pub room: Room,
}

impl Usage {
    /// Of all drives together, which have the same buckets; none where there are no drives.
    pub fn of_all(drives: impl IntoIterator<Item = Usage>) -> Option<Usage> {
        drives.into_iter().reduce(|mut sum, drive| {
            sum.add(&drive);
            sum
        })
    }

    fn add(&mut self, other: &Usage) {
        self.live += other.live;
        self.dead += other.dead;
        self.index += other.index;
        self.index_dead += other.index_dead;
        self.objects += other.objects;
        self.object_bytes += other.object_bytes;
        self.uploads += other.uploads;
        self.room.total += other.room.total;
        self.room.free += other.room.free;
        self.room.reserve += other.room.reserve;
    }
}

/// A store that was opened, before its threads run.
pub(crate) struct Opened {
    pub core: Arc<Core>,
    pub committer: Committer,
    pub reclaimer: Reclaimer,
    pub opening: Opening,
}

impl Opened {
    /// Replays the index, gives back what a crash left. A segment takes no new extent past `segment_sectors`.
    pub fn new(
        dir: &DataDir,
        store_key: &Secret,
        options: &EngineOptions,
        segment_sectors: u32,
    ) -> Result<Opened> {
        if !dir.index_dir().is_dir() {
            return Err(Error::Unusable(format!(
                "{} is not there. Put it back, or rebuild it from the segments with `strongroom recover`.",
                dir.index_dir().display()
            )));
        }
        let index = Index::open(&dir.index_dir(), store_key)?;
        let blocks = block::Sealer::new(store_key);
        let found = recover::recover(&index, &dir.segments_dir(), &blocks)?;
        let opening = Opening {
            clean: found.clean,
            reclaimed_bytes: found.reclaimed_bytes,
        };
        let segments = Segments::new(
            &dir.segments_dir(),
            segment_sectors,
            options.shards,
            found.next_segment,
            found.boot,
            found.live,
        );
        let (commits, requests) = crossbeam_channel::bounded(limits::COMMIT_QUEUE_MAX);
        // Bounded by those who free: see `Shard::commit`. The committer itself must never wait for the reclaimer, which waits for it.
        let (reclaim, messages) = crossbeam_channel::unbounded();
        let core = Arc::new(Core {
            superblock: dir.superblock_path(),
            index,
            blocks,
            segments,
            copies: Copies::new(found.copies, !found.copied),
            scrub: Scrub::default(),
            cache: Cache::new(options.cache_bytes),
            plain: Shelf::default(),
            disks: (0..options.shards).map(|_| Arc::default()).collect(),
            space: Space::new(dir.path()),
            reclaiming: AtomicUsize::new(0),
            index_dead: AtomicU64::new(0),
            readers: (0..options.shards).map(|_| Readers::default()).collect(),
            commits,
            reclaim,
            fatal: options.fatal,
        });
        for freed in found.freed {
            core.segments.leave(&freed.extents);
            core.reclaim(freed.into());
        }
        if found.rewrapped.is_some() {
            let (bytes, rewrapped) = (0, found.rewrapped);
            core.reclaim(Message::IndexDead { bytes, rewrapped });
        }
        Ok(Opened {
            committer: Committer::new(Arc::clone(&core), requests, found.tallies, found.rewrapped),
            reclaimer: Reclaimer::new(Arc::clone(&core), messages),
            core,
            opening,
        })
    }
}

impl Engine {
    /// Opens the store in `dir`: replays the index, gives back what a crash left.
    pub fn open(dir: &DataDir, store_key: &Secret, options: &EngineOptions) -> Result<Engine> {
        let Opened {
            core,
            committer,
            reclaimer,
            opening,
        } = Opened::new(dir, store_key, options, limits::SEGMENT_SECTORS_MAX)?;
        let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .map_err(|e| Error::io("start a thread for", dir.path(), e))
        };
        let fatal = options.fatal;
        let committer = thread(
            "committer",
            Box::new(move || {
                if let Err(e) = committer.run() {
                    fatal(&e);
                }
            }),
        )?;
        let reclaimer = thread("reclaimer", Box::new(move || reclaimer.run()))?;
        Ok(Engine {
            core,
            committer,
            reclaimer,
            scrubber: None,
            opening,
        })
    }

    /// All buckets, for whoever compares those of several drives before any of them is served.
    pub(crate) fn buckets(&self) -> Arc<BTreeMap<String, Arc<Bucket>>> {
        self.core.index.buckets()
    }

    /// Makes a bucket, or changes it, from a thread that may wait; whether that is durable.
    pub(crate) fn put_bucket(&self, bucket: Bucket) -> bool {
        self.core.commit_and_wait(Op::PutBucket { bucket })
    }

    pub fn opening(&self) -> Opening {
        self.opening
    }

    /// What may be looked at from any thread while the store is open.
    pub fn observer(&self) -> Observer {
        Observer {
            core: Arc::downgrade(&self.core),
        }
    }

    /// Begins to look for rot in the background, `rate` bytes a second. `keys` opens the keys of objects, on the scrub's thread.
    pub fn start_scrub<K: ObjectKeys>(
        &mut self,
        rate: NonZeroU64,
        keys: impl FnOnce() -> K + Send + 'static,
    ) -> Result<()> {
        let core = Arc::clone(&self.core);
        let scrubber = std::thread::Builder::new()
            .name("scrubber".into())
            .spawn(move || scrubber::run(&core, rate.get(), &keys()))
            .map_err(|e| Error::io("start a thread for", &self.core.superblock, e))?;
        self.scrubber = Some(scrubber);
        Ok(())
    }

    pub fn scrubbed(&self) -> Scrubbed {
        self.core.scrub.counts()
    }

    /// Ends the scrub, if there is one.
    fn end_scrub(&mut self) {
        self.core.scrub.stop.store(true, Ordering::Relaxed);
        if let Some(scrubber) = self.scrubber.take() {
            // One that panicked has already said so.
            let _ = scrubber.join();
        }
    }

    /// What a core needs to open its shard, inside its own executor.
    pub fn shard(&self, id: usize) -> ShardSeed {
        ShardSeed {
            core: Arc::clone(&self.core),
            id,
        }
    }

    /// Ends the engine's threads and leaves everything else as a crash would: for tests of what the next start finds.
    #[doc(hidden)]
    pub fn abandon(mut self) {
        self.end_scrub();
        self.core.commit_and_forget(Op::Abandon);
        let _ = self.committer.join();
        self.core.reclaim(Message::Close);
        let _ = self.reclaimer.join();
    }

    /// Closes the store once all shards are gone: what was freed is punched, and the last checkpoint written.
    pub fn close(mut self) {
        self.end_scrub();
        self.core.reclaim(Message::Close);
        // A thread that panicked has already said so; what it left is found at the next start.
        let _ = self.reclaimer.join();
        self.core.commit_and_forget(Op::Close);
        let _ = self.committer.join();
    }

    /// As [`Engine::close`], and waits until nobody holds anything of the store any more, the keys of its records with it.
    /// False where somebody still does after `patience`.
    pub fn close_and_forget(self, patience: Duration) -> bool {
        let core = Arc::downgrade(&self.core);
        self.close();
        let end = Instant::now() + patience;
        while core.strong_count() > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(limits::FORGET_LOOK_EVERY);
        }
        true
    }
}

/// What stands under each key of a store that nobody has open, on the drives that are there.
pub fn tally_at_rest(dirs: &DataDirs, store_key: &Secret) -> Result<BTreeMap<Under, Tally>> {
    let of_drive = |dir: &DataDir| {
        let index = Index::open(&dir.index_dir(), store_key)?;
        let last = index.plain_meta(meta::SEQUENCE)?.unwrap_or(0);
        index.load_tallies(last)?;
        Ok(index.tally())
    };
    let drives: Vec<_> = dirs.present().map(of_drive).collect::<Result<_>>()?;
    Ok(tally::sum(drives.into_iter().flatten()))
}

/// Counts and sizes of a store while it is open. Keeps nothing of it from being closed.
#[derive(Clone)]
pub struct Observer {
    core: Weak<Core>,
}

impl Observer {
    /// Looks at the files of the store, so it belongs on a thread that may block.
    pub fn usage(&self) -> Result<Usage> {
        let core = self.core.upgrade().ok_or(Error::Closed)?;
        let live = core.segments.live_sectors() * limits::SECTOR as u64;
        let index = core.index.disk_bytes()?;
        let mut all = Tally::default();
        core.index.tally().into_values().for_each(|t| all += t);
        Ok(Usage {
            live,
            dead: core.segments.disk_bytes()?.saturating_sub(live),
            index,
            index_dead: core.index_dead.load(Ordering::Relaxed).min(index),
            buckets: core.index.buckets().len() as u64,
            objects: all.objects,
            object_bytes: all.bytes,
            uploads: all.uploads,
            room: core.space.room(index)?,
        })
    }

    pub fn scrubbed(&self) -> Scrubbed {
        let core = self.core.upgrade();
        core.map_or_else(Scrubbed::default, |core| core.scrub.counts())
    }

    pub fn cache(&self) -> CacheStats {
        let core = self.core.upgrade();
        core.map_or_else(CacheStats::default, |core| core.cache.stats())
    }

    /// All shards together.
    pub fn disk(&self) -> DiskStats {
        let mut sum = DiskStats::default();
        if let Some(core) = self.core.upgrade() {
            core.disks.iter().for_each(|d| sum += d.stats());
        }
        sum
    }
}

/// Travels to the thread of a core and becomes its shard there.
pub struct ShardSeed {
    core: Arc<Core>,
    id: usize,
}

impl ShardSeed {
    /// Must run on a glommio executor.
    pub async fn open(self) -> Result<Rc<Shard>> {
        Shard::open(self.core, self.id).await
    }
}
