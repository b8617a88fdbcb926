//! The index: which objects there are, what they are, and where their bytes lie.
//!
//! It is an LSM tree (fjall) with one writer, the committer. A batch reaches the journal and is synced before any reader can see it,
//! so nothing that was read is ever lost again. Values are sealed (`record`), object names are in clear (`key`).

pub mod commit;
mod compact;
pub mod copies;
#[cfg(test)]
mod faults;
pub mod journal;
pub mod key;
pub mod offline;
pub mod query;
pub mod rebuild;
pub mod record;
pub mod recover;
pub mod tally;
mod wrapped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{CompressionType, KeyspaceCreateOptions, KvSeparationOptions};
use minicbor::Decode;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};
use crate::limits;
use crate::secret::Secret;
#[cfg(test)]
use crate::sim::tree;
use record::{Bucket, Sealer};
use tally::{Tally, Under};
use tree::{Database, Keyspace};

/// What the index is kept in. Under test it can be a stand-in, which forgets at a crash what was not synced.
#[cfg(not(test))]
mod tree {
    pub use super::open_tree as open;
    pub use fjall::{Database, Iter, Keyspace, OwnedWriteBatch};
}

/// The keyspaces, by the names that the seals of their values are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Objects,
    Uploads,
    Parts,
    Inline,
    Freed,
    Buckets,
    Tallies,
    Meta,
}

impl Space {
    pub const ALL: [Space; 8] = [
        Space::Objects,
        Space::Uploads,
        Space::Parts,
        Space::Inline,
        Space::Freed,
        Space::Buckets,
        Space::Tallies,
        Space::Meta,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Space::Objects => "objects",
            Space::Uploads => "uploads",
            Space::Parts => "parts",
            Space::Inline => "inline",
            Space::Freed => "freed",
            Space::Buckets => "buckets",
            Space::Tallies => "tallies",
            Space::Meta => "meta",
        }
    }
}

pub struct Index {
    dir: PathBuf,
    db: Database,
    spaces: [Keyspace; Space::ALL.len()],
    pub sealer: Sealer,
    /// All buckets: few, and asked for by every request.
    buckets: ArcSwap<BTreeMap<String, Arc<Bucket>>>,
    /// What stands under each key, as of the last durable commit.
    tallies: Mutex<BTreeMap<Under, Tally>>,
    /// Sequence of the last commit that is durable.
    synced: AtomicU64,
}

impl Index {
    /// Opens the index in `dir`, replaying its journal.
    pub fn open(dir: &Path, store_key: &Secret) -> Result<Index> {
        journal::mend(dir)?;
        let index = Self::open_bare(dir, store_key)?;
        index.load_buckets()?;
        Ok(index)
    }

    /// As [`Index::open`], without a look at any record.
    fn open_bare(dir: &Path, store_key: &Secret) -> Result<Index> {
        let (db, spaces) = tree::open(dir)?;
        Ok(Index {
            dir: dir.to_owned(),
            db,
            spaces,
            sealer: Sealer::new(store_key),
            buckets: ArcSwap::default(),
            tallies: Mutex::default(),
            synced: AtomicU64::new(0),
        })
    }

    fn load_buckets(&self) -> Result<()> {
        let mut all = BTreeMap::new();
        for entry in self.space(Space::Buckets).iter() {
            let (key, value) = entry.into_inner().map_err(io)?;
            if key == key::MARK {
                continue;
            }
            let (_, bucket): (u64, Bucket) =
                self.sealer.open(Space::Buckets.name(), &key, &value)?;
            all.insert(bucket.name.clone(), Arc::new(bucket));
        }
        self.buckets.store(Arc::new(all));
        Ok(())
    }

    pub fn space(&self, space: Space) -> &Keyspace {
        &self.spaces[Space::ALL.iter().position(|s| *s == space).expect("listed")]
    }

    /// The record under `key`, with its commit sequence.
    pub fn get<T: for<'b> Decode<'b, ()>>(
        &self,
        space: Space,
        key: &[u8],
    ) -> Result<Option<(u64, T)>> {
        // The tree panics if it is asked for one that it cannot hold.
        if key.len() > usize::from(u16::MAX) {
            return Ok(None);
        }
        match self.space(space).get(key).map_err(io)? {
            None => Ok(None),
            Some(value) => self.sealer.open(space.name(), key, &value).map(Some),
        }
    }

    /// Every record of a keyspace, with its key.
    pub fn each<T: for<'b> Decode<'b, ()>>(
        &self,
        space: Space,
        mut f: impl FnMut(&[u8], T),
    ) -> Result<()> {
        for entry in self.space(space).iter() {
            let (key, value) = entry.into_inner().map_err(io)?;
            if key == key::MARK {
                continue;
            }
            let (_, record) = self.sealer.open(space.name(), &key, &value)?;
            f(&key, record);
        }
        Ok(())
    }

    /// An entry of the keyspace `meta` that is not sealed.
    pub fn plain_meta<T: for<'b> Decode<'b, ()>>(&self, name: &str) -> Result<Option<T>> {
        self.space(Space::Meta)
            .get(name)
            .map_err(io)?
            .map(|value| {
                minicbor::decode(&value)
                    .map_err(|e| Error::corrupt(e.to_string(), format!("index meta {name}")))
            })
            .transpose()
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<Under, Tally>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sealed bytes of a small stream, under the commit that brought them.
    pub fn inline(&self, sequence: u64) -> Result<Option<fjall::Slice>> {
        self.space(Space::Inline)
            .get(key::sequence(sequence))
            .map_err(io)
    }

    pub fn buckets(&self) -> Arc<BTreeMap<String, Arc<Bucket>>> {
        self.buckets.load_full()
    }

    pub fn bucket(&self, name: &str) -> Result<Arc<Bucket>> {
        self.buckets
            .load()
            .get(name)
            .cloned()
            .ok_or(Error::NoSuchBucket)
    }

    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Bytes the index takes on disk, its journal included.
    pub fn disk_bytes(&self) -> Result<u64> {
        self.db.disk_space().map_err(io)
    }
}

/// Opens the tree in `dir` and its keyspaces, in the order of [`Space::ALL`].
pub fn open_tree(dir: &Path) -> Result<(fjall::Database, [fjall::Keyspace; Space::ALL.len()])> {
    check_keyspaces(dir)?;
    let failed = |e: fjall::Error| Error::io("open the index in", dir, e);
    let db = fjall::Database::builder(dir)
        .cache_size(limits::INDEX_CACHE_BYTES)
        .journal_compression(CompressionType::None)
        .max_journaling_size(limits::INDEX_JOURNAL_BYTES_MAX)
        .manual_journal_persist(true)
        .worker_threads(1)
        .open()
        .map_err(failed)?;
    let mut spaces = Vec::with_capacity(Space::ALL.len());
    for space in Space::ALL {
        let options = || {
            let plain = KeyspaceCreateOptions::default()
                .data_block_compression_policy(CompressionPolicy::disabled())
                .max_memtable_size(limits::INDEX_MEMTABLE_BYTES)
                .manual_journal_persist(true);
            match space {
                Space::Inline => plain.with_kv_separation(Some(
                    KvSeparationOptions::default()
                        .compression(CompressionType::None)
                        .separation_threshold(1024)
                        // Files of any age are rewritten once a quarter of their values is dead.
                        .staleness_threshold(0.25)
                        .age_cutoff(1.0),
                )),
                _ => plain.data_block_size_policy(BlockSizePolicy::all(8 * 1024)),
            }
        };
        spaces.push(db.keyspace(space.name(), options).map_err(failed)?);
    }
    let spaces: [fjall::Keyspace; Space::ALL.len()] = spaces
        .try_into()
        .unwrap_or_else(|_| unreachable!("one keyspace each"));
    Ok((db, spaces))
}

/// Refuses a keyspace whose list of tables is not what its sum says. The tree does not look at the sum, and some of what it may
/// read there makes it panic, and panic again on the way out, which ends the process.
fn check_version(keyspace: &Path) -> Result<()> {
    let current = keyspace.join("current");
    // One that has none yet is made anew.
    if !current.exists() {
        return Ok(());
    }
    let read = |path: &Path| std::fs::read(path).map_err(|e| Error::io("read", path, e));
    // Number and sum of the list that counts, and the kind of the sum, 0.
    let whole = match read(&current)?.split_first_chunk::<8>() {
        Some((number, [sum @ .., 0])) if sum.len() == 16 => {
            let list = keyspace.join(format!("v{}", u64::from_le_bytes(*number)));
            xxh3_128(&read(&list)?).to_le_bytes() == sum
        }
        _ => false,
    };
    match whole {
        true => Ok(()),
        false => Err(Error::corrupt(
            "the list of tables",
            keyspace.display().to_string(),
        )),
    }
}

/// Refuses an index that lacks a keyspace, or the mark of one. The tree takes such a keyspace for one that was being made when the
/// process died, and removes it with all its files.
fn check_keyspaces(dir: &Path) -> Result<()> {
    let keyspaces = dir.join("keyspaces");
    let Ok(entries) = std::fs::read_dir(&keyspaces) else {
        return Ok(());
    };
    let mut numbers: Vec<u64> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let Some((newest, older)) = numbers.split_last() else {
        return Ok(());
    };
    // Only the one made last can be unfinished.
    let whole = |n: &u64| keyspaces.join(n.to_string()).join("current").exists();
    if older.iter().copied().eq(0..*newest) && older.iter().all(whole) {
        let mut all = numbers.iter().map(|n| keyspaces.join(n.to_string()));
        return all.try_for_each(|keyspace| check_version(&keyspace));
    }
    Err(Error::Unusable(format!(
        "{} lacks files. Put them back, or rebuild the index from the segments with `strongroom recover`.",
        keyspaces.display()
    )))
}

pub(crate) fn io(e: fjall::Error) -> Error {
    Error::Io {
        op: "read the index",
        path: "index".into(),
        reason: e.to_string(),
    }
}
