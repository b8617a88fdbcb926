//! The index: which objects there are, what they are, and where their bytes lie.
//!
//! It is an LSM tree (fjall) with one writer, the committer. A batch reaches the journal and is synced before any reader can see it,
//! so nothing that was read is ever lost again. Values are sealed (`record`), object names are in clear (`key`).

pub mod commit;
pub mod key;
pub mod query;
pub mod record;
pub mod recover;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions};
use minicbor::Decode;

use crate::error::{Error, Result};
use crate::limits;
use crate::secret::Secret;
use record::{Bucket, Sealer};

/// The keyspaces, by the names that the seals of their values are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Objects,
    Uploads,
    Parts,
    Inline,
    Freed,
    Buckets,
    Meta,
}

impl Space {
    pub const ALL: [Space; 7] = [
        Space::Objects,
        Space::Uploads,
        Space::Parts,
        Space::Inline,
        Space::Freed,
        Space::Buckets,
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
            Space::Meta => "meta",
        }
    }
}

pub struct Index {
    dir: PathBuf,
    db: Database,
    spaces: [Keyspace; 7],
    pub sealer: Sealer,
    /// All buckets: few, and asked for by every request.
    buckets: ArcSwap<BTreeMap<String, Arc<Bucket>>>,
    /// Sequence of the last commit that is durable.
    synced: AtomicU64,
}

impl Index {
    /// Opens the index in `dir`, replaying its journal.
    pub fn open(dir: &Path, store_key: &Secret) -> Result<Index> {
        let failed = |e: fjall::Error| Error::io("open the index in", dir, e);
        let db = Database::builder(dir)
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
        let spaces: [Keyspace; 7] = spaces
            .try_into()
            .unwrap_or_else(|_| unreachable!("one keyspace each"));
        let index = Index {
            dir: dir.to_owned(),
            db,
            spaces,
            sealer: Sealer::new(store_key),
            buckets: ArcSwap::default(),
            synced: AtomicU64::new(0),
        };
        index.load_buckets()?;
        Ok(index)
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
        match self.space(space).get(key).map_err(io)? {
            None => Ok(None),
            Some(value) => self.sealer.open(space.name(), key, &value).map(Some),
        }
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

    /// Makes what was deleted leave the disk: memtables become tables, the journal begins anew, dead entries and values go.
    ///
    /// fjall replaces a journal only past a size of its own choosing, so it is made to, with filler that is dropped right after;
    /// and it removes the old one only while every keyspace has a table as young as that journal, so each gets a mark.
    pub fn compact(&self) -> Result<()> {
        let journal = self.newest_journal()?;
        self.flush()?;
        let filler = vec![0u8; limits::INDEX_FILLER_BYTES];
        let pieces = limits::INDEX_JOURNAL_BYTES / limits::INDEX_FILLER_BYTES as u64 + 1;
        for _ in 0..pieces {
            // A count of journals would not tell: the old one can be gone before anybody looks.
            if self.newest_journal()? != journal {
                break;
            }
            self.mark(&[Space::Meta], &filler)?;
        }
        self.mark(&Space::ALL, &[])?;
        for space in Space::ALL {
            self.space(space).major_compact().map_err(io)?;
        }
        // The first pass finds which values are dead, the second leaves them behind.
        self.space(Space::Inline).major_compact().map_err(io)?;
        // Files of replaced tables go with the next flush.
        self.mark(&[Space::Meta], &[])
    }

    /// The number in the name of the journal that is being written.
    fn newest_journal(&self) -> Result<Option<u64>> {
        let failed = |e| Error::io("list", &self.dir, e);
        let mut newest = None;
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|n| n.strip_suffix(".jnl"));
            newest = newest.max(number.and_then(|n| n.parse().ok()));
        }
        Ok(newest)
    }

    fn flush(&self) -> Result<()> {
        for space in Space::ALL {
            self.space(space).rotate_memtable_and_wait().map_err(io)?;
        }
        Ok(())
    }

    /// Writes something of no meaning and flushes it.
    fn mark(&self, spaces: &[Space], bytes: &[u8]) -> Result<()> {
        let mut batch = self.db.batch();
        for space in spaces {
            batch.insert(self.space(*space), key::MARK, bytes);
        }
        batch.commit().map_err(io)?;
        self.flush()
    }
}

pub(crate) fn io(e: fjall::Error) -> Error {
    Error::Io {
        op: "read the index",
        path: "index".into(),
        reason: e.to_string(),
    }
}
