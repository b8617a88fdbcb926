//! A store on a simulated machine.

use std::rc::Rc;
use std::sync::Arc;

use tempfile::TempDir;

use super::{Entered, World, rt};
use crate::engine::{Core, Opened};
use crate::error::Result;
use crate::index::commit::Op;
use crate::secret::Secret;
use crate::segment::reclaim::Message;
use crate::{DataDir, EngineOptions, Shard, limits};

pub const STORE_KEY: [u8; 32] = [9; 32];

/// A machine with a data directory, and how its store is opened.
pub struct Machine {
    pub world: Rc<World>,
    pub dir: DataDir,
    pub options: EngineOptions,
    pub segment_sectors: u32,
    _entered: Entered,
    _files: TempDir,
}

/// An open store.
pub struct Store {
    pub core: Arc<Core>,
    pub shards: Vec<Rc<Shard>>,
}

impl Machine {
    pub fn new(seed: u64) -> Machine {
        let entered = World::enter(seed);
        // Memory where there is such a place: the real disk is not what is tested.
        let memory = std::path::Path::new("/dev/shm");
        let files = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let files = files.expect("a place for files");
        let dir = DataDir::lock(files.path()).expect("a new directory");
        dir.create([1; 16], b"key").expect("a new store");
        Machine {
            world: Rc::clone(&entered.0),
            dir,
            options: EngineOptions {
                shards: 1,
                cache_bytes: 0,
                fatal: rt::fatal,
            },
            segment_sectors: limits::SEGMENT_SECTORS_MAX,
            _entered: entered,
            _files: files,
        }
    }

    /// Opens the store; none where the machine stopped meanwhile.
    pub fn open(&self) -> Option<Result<Store>> {
        let key = Secret::new(STORE_KEY);
        let opened = Opened::new(&self.dir, &key, &self.options, self.segment_sectors);
        if self.world.is_down() {
            return None;
        }
        let Opened {
            core,
            committer,
            reclaimer,
            ..
        } = match opened {
            Ok(opened) => opened,
            Err(e) => return Some(Err(e)),
        };
        self.world.start(committer, reclaimer);
        let mut shards = Vec::new();
        for id in 0..self.options.shards {
            match self.world.run(Shard::open(Arc::clone(&core), id))? {
                Ok(shard) => shards.push(shard),
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(Store { core, shards }))
    }

    /// Closes the store; none where the machine stopped meanwhile.
    pub fn close(&self, store: Store) -> Option<()> {
        for shard in store.shards {
            self.world.run(async move { shard.close().await })?;
        }
        store.core.reclaim(Message::Close);
        self.world.join();
        store.core.commit_and_forget(Op::Close);
        self.world.join_committer();
        drop(store.core);
        if self.world.is_down() {
            return None;
        }
        // The next start is that of another process.
        self.world.restart();
        Some(())
    }
}

/// Runs `work` on a shard of a machine without faults.
pub fn with_shard<F: Future<Output = ()> + 'static>(
    cache_bytes: u64,
    work: impl FnOnce(Rc<Shard>) -> F,
) {
    let mut machine = Machine::new(1);
    machine.options.cache_bytes = cache_bytes;
    let store = machine.open().expect("no crash").expect("a new store");
    let shard = Rc::clone(&store.shards[0]);
    machine.world.run(work(shard)).expect("no crash");
    machine.close(store).expect("no crash");
}
