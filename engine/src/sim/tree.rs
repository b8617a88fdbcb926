//! The index's tree under test: fjall, or on a simulated machine a stand-in, which is a map with a synced prefix.
//!
//! The stand-in keeps what fjall promises and no more: a batch is there whole or not at all, batches are there in order, and
//! what was synced stays. A crash drops any number of the batches that were not.

use std::collections::BTreeMap;
use std::ops::{Bound, Deref, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fjall::{PersistMode, Slice, UserKey, UserValue};

use super::{Rng, world};
use crate::error::{Error, Result};
use crate::index::Space;

/// The stand-ins of a machine, by number. A file in the directory that a stand-in is for holds its number, and goes with the
/// directory wherever that is moved, linked or copied.
#[derive(Default)]
pub struct Trees(Vec<Shared>);

const NUMBER: &str = "stand-in";

type Shared = Arc<Mutex<Stored>>;
type Name = (usize, Vec<u8>);

/// All entries of a stand-in.
pub struct Held(BTreeMap<Name, Slice>);

#[derive(Default)]
pub struct Stored {
    all: BTreeMap<Name, Slice>,
    /// What undoes each batch that is not synced, the oldest first.
    unsynced: Vec<Vec<(Name, Option<Slice>)>>,
}

impl Trees {
    pub fn crash(&mut self, rng: &mut Rng) {
        for tree in &self.0 {
            let mut tree = lock(tree);
            let kept = rng.below(tree.unsynced.len() as u64 + 1) as usize;
            for undo in tree.unsynced.split_off(kept).into_iter().rev() {
                for (name, old) in undo.into_iter().rev() {
                    tree.set(name, old);
                }
            }
            tree.unsynced.clear();
        }
    }

    fn of(&mut self, dir: &Path) -> Result<Shared> {
        let failed = |e| Error::io("open", dir, e);
        let file = dir.join(NUMBER);
        if let Ok(number) = std::fs::read_to_string(&file) {
            let number: usize = number.parse().expect("written here");
            return Ok(Arc::clone(&self.0[number]));
        }
        std::fs::create_dir_all(dir.join("keyspaces")).map_err(failed)?;
        std::fs::write(file, self.0.len().to_string()).map_err(failed)?;
        self.0.push(Shared::default());
        Ok(Arc::clone(self.0.last().expect("just made")))
    }

    /// What a stand-in holds.
    pub fn held(&mut self, dir: &Path) -> Held {
        let tree = self.of(dir).expect("it is there");
        Held(lock(&tree).all.clone())
    }

    /// Puts an older state back.
    pub fn put_back(&mut self, dir: &Path, held: Held) {
        let tree = self.of(dir).expect("it is there");
        lock(&tree).all = held.0;
    }

    /// Changes one bit of a value.
    pub fn rot(&mut self, rng: &mut Rng) {
        for tree in &self.0 {
            let mut tree = lock(tree);
            let at = rng.below(tree.all.len() as u64) as usize;
            if let Some((name, value)) = tree.all.iter().nth(at) {
                let (name, mut value) = (name.clone(), value.to_vec());
                if !value.is_empty() {
                    let bit = rng.below(value.len() as u64 * 8);
                    value[bit as usize / 8] ^= 1 << (bit % 8);
                    tree.all.insert(name, value.into());
                }
            }
        }
    }
}

impl Stored {
    fn set(&mut self, name: Name, value: Option<Slice>) -> Option<Slice> {
        match value {
            Some(value) => self.all.insert(name, value),
            None => self.all.remove(&name),
        }
    }
}

fn lock(tree: &Shared) -> MutexGuard<'_, Stored> {
    tree.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
pub enum Database {
    Fjall(fjall::Database),
    StandIn(Shared),
}

#[derive(Clone)]
pub enum Keyspace {
    Fjall(fjall::Keyspace),
    StandIn(usize, Shared),
}

pub fn open(dir: &Path) -> Result<(Database, [Keyspace; Space::ALL.len()])> {
    let Some(world) = world() else {
        let (db, spaces) = crate::index::open_tree(dir)?;
        return Ok((Database::Fjall(db), spaces.map(Keyspace::Fjall)));
    };
    let tree = world.trees.borrow_mut().of(dir)?;
    let spaces = std::array::from_fn(|n| Keyspace::StandIn(n, Arc::clone(&tree)));
    Ok((Database::StandIn(tree), spaces))
}

impl Database {
    pub fn is_stand_in(&self) -> bool {
        matches!(self, Database::StandIn(_))
    }

    pub fn batch(&self) -> OwnedWriteBatch {
        match self {
            Database::Fjall(db) => OwnedWriteBatch::Fjall(db.batch()),
            Database::StandIn(tree) => OwnedWriteBatch::StandIn {
                tree: Arc::clone(tree),
                changes: Vec::new(),
                sync: false,
            },
        }
    }

    pub fn persist(&self, mode: PersistMode) -> fjall::Result<()> {
        match self {
            Database::Fjall(db) => db.persist(mode),
            Database::StandIn(_) => self.batch().durability(Some(mode)).commit(),
        }
    }

    pub fn disk_space(&self) -> fjall::Result<u64> {
        match self {
            Database::Fjall(db) => db.disk_space(),
            Database::StandIn(tree) => {
                let tree = lock(tree);
                let bytes = tree.all.iter().map(|((_, k), v)| k.len() + v.len());
                Ok(bytes.sum::<usize>() as u64)
            }
        }
    }
}

/// What only the real tree does.
impl Deref for Database {
    type Target = fjall::Database;

    fn deref(&self) -> &fjall::Database {
        match self {
            Database::Fjall(db) => db,
            Database::StandIn(_) => panic!("not in a simulation"),
        }
    }
}

impl Deref for Keyspace {
    type Target = fjall::Keyspace;

    fn deref(&self) -> &fjall::Keyspace {
        match self {
            Keyspace::Fjall(space) => space,
            Keyspace::StandIn(..) => panic!("not in a simulation"),
        }
    }
}

impl Keyspace {
    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> fjall::Result<Option<Slice>> {
        match self {
            Keyspace::Fjall(space) => space.get(key),
            Keyspace::StandIn(n, tree) => {
                let name = (*n, key.as_ref().to_vec());
                Ok(lock(tree).all.get(&name).cloned())
            }
        }
    }

    pub fn contains_key<K: AsRef<[u8]>>(&self, key: K) -> fjall::Result<bool> {
        match self {
            Keyspace::Fjall(space) => space.contains_key(key),
            Keyspace::StandIn(..) => Ok(self.get(key)?.is_some()),
        }
    }

    pub fn insert<K: Into<UserKey>, V: Into<UserValue>>(
        &self,
        key: K,
        value: V,
    ) -> fjall::Result<()> {
        match self {
            Keyspace::Fjall(space) => space.insert(key, value),
            Keyspace::StandIn(..) => self.alone(key.into(), Some(value.into())),
        }
    }

    pub fn remove<K: Into<UserKey>>(&self, key: K) -> fjall::Result<()> {
        match self {
            Keyspace::Fjall(space) => space.remove(key),
            Keyspace::StandIn(..) => self.alone(key.into(), None),
        }
    }

    /// A batch of one change.
    fn alone(&self, key: UserKey, value: Option<UserValue>) -> fjall::Result<()> {
        let Keyspace::StandIn(n, tree) = self else {
            unreachable!("asked of a stand-in")
        };
        let batch = OwnedWriteBatch::StandIn {
            tree: Arc::clone(tree),
            changes: vec![((*n, key.to_vec()), value)],
            sync: false,
        };
        batch.commit()
    }

    pub fn range<'a, K: AsRef<[u8]> + 'a, R: RangeBounds<K> + 'a>(&'a self, range: R) -> Iter {
        match self {
            Keyspace::Fjall(space) => Iter::Fjall(space.range(range)),
            Keyspace::StandIn(n, tree) => {
                let name = |key: &K| (*n, key.as_ref().to_vec());
                let from = match range.start_bound() {
                    Bound::Included(key) => Bound::Included(name(key)),
                    Bound::Excluded(key) => Bound::Excluded(name(key)),
                    Bound::Unbounded => Bound::Included((*n, Vec::new())),
                };
                let to = match range.end_bound() {
                    Bound::Included(key) => Bound::Included(name(key)),
                    Bound::Excluded(key) => Bound::Excluded(name(key)),
                    Bound::Unbounded => Bound::Excluded((*n + 1, Vec::new())),
                };
                let (Bound::Included(first) | Bound::Excluded(first)) = &from else {
                    unreachable!("a keyspace has a beginning");
                };
                if matches!(&to, Bound::Included(last) | Bound::Excluded(last) if last < first) {
                    return Iter::StandIn(Vec::new().into_iter());
                }
                let tree = lock(tree);
                let found = tree.all.range((from, to));
                let found = found.map(|((_, key), value)| (Slice::from(&key[..]), value.clone()));
                Iter::StandIn(found.collect::<Vec<_>>().into_iter())
            }
        }
    }

    pub fn iter(&self) -> Iter {
        match self {
            Keyspace::Fjall(space) => Iter::Fjall(space.iter()),
            Keyspace::StandIn(..) => self.range::<Vec<u8>, _>(..),
        }
    }

    pub fn prefix<K: AsRef<[u8]>>(&self, prefix: K) -> Iter {
        match self {
            Keyspace::Fjall(space) => Iter::Fjall(space.prefix(prefix)),
            Keyspace::StandIn(..) => {
                let from = prefix.as_ref().to_vec();
                let to = crate::index::key::successor(from.clone());
                let to = to.map_or(Bound::Unbounded, Bound::Excluded);
                self.range((Bound::Included(from), to))
            }
        }
    }
}

pub enum Iter {
    Fjall(fjall::Iter),
    StandIn(std::vec::IntoIter<(Slice, Slice)>),
}

pub enum Guard {
    Fjall(fjall::Guard),
    StandIn((Slice, Slice)),
}

impl Iterator for Iter {
    type Item = Guard;

    fn next(&mut self) -> Option<Guard> {
        match self {
            Iter::Fjall(iter) => iter.next().map(Guard::Fjall),
            Iter::StandIn(iter) => iter.next().map(Guard::StandIn),
        }
    }
}

impl Guard {
    pub fn into_inner(self) -> fjall::Result<(Slice, Slice)> {
        match self {
            Guard::Fjall(guard) => guard.into_inner(),
            Guard::StandIn(entry) => Ok(entry),
        }
    }

    pub fn key(self) -> fjall::Result<Slice> {
        match self {
            Guard::Fjall(guard) => guard.key(),
            Guard::StandIn((key, _)) => Ok(key),
        }
    }
}

pub enum OwnedWriteBatch {
    Fjall(fjall::OwnedWriteBatch),
    StandIn {
        tree: Shared,
        changes: Vec<(Name, Option<Slice>)>,
        sync: bool,
    },
}

impl OwnedWriteBatch {
    pub fn durability(self, mode: Option<PersistMode>) -> Self {
        match self {
            OwnedWriteBatch::Fjall(batch) => OwnedWriteBatch::Fjall(batch.durability(mode)),
            OwnedWriteBatch::StandIn { tree, changes, .. } => OwnedWriteBatch::StandIn {
                tree,
                changes,
                sync: matches!(mode, Some(PersistMode::SyncData | PersistMode::SyncAll)),
            },
        }
    }

    pub fn insert<K: Into<UserKey>, V: Into<UserValue>>(
        &mut self,
        space: &Keyspace,
        key: K,
        value: V,
    ) {
        match (self, space) {
            (OwnedWriteBatch::Fjall(batch), Keyspace::Fjall(space)) => {
                batch.insert(space, key, value);
            }
            (OwnedWriteBatch::StandIn { changes, .. }, Keyspace::StandIn(n, _)) => {
                changes.push(((*n, key.into().to_vec()), Some(value.into())));
            }
            _ => panic!("a keyspace of another tree"),
        }
    }

    pub fn remove<K: Into<UserKey>>(&mut self, space: &Keyspace, key: K) {
        match (self, space) {
            (OwnedWriteBatch::Fjall(batch), Keyspace::Fjall(space)) => batch.remove(space, key),
            (OwnedWriteBatch::StandIn { changes, .. }, Keyspace::StandIn(n, _)) => {
                changes.push(((*n, key.into().to_vec()), None));
            }
            _ => panic!("a keyspace of another tree"),
        }
    }

    pub fn commit(self) -> fjall::Result<()> {
        let (tree, changes, sync) = match self {
            OwnedWriteBatch::Fjall(batch) => return batch.commit(),
            OwnedWriteBatch::StandIn {
                tree,
                changes,
                sync,
            } => (tree, changes, sync),
        };
        let world = world().expect("inside a simulation");
        let failed = |what| Err(fjall::Error::Io(std::io::Error::other(what)));
        if !world.event(changes.len() as u64) {
            return failed("the machine is down");
        }
        let mut stored = lock(&tree);
        let mut undo = Vec::with_capacity(changes.len());
        for (name, value) in changes {
            let old = stored.set(name.clone(), value);
            undo.push((name, old));
        }
        stored.unsynced.push(undo);
        if world.fails(world.faults.get().commit) {
            return failed("an injected error");
        }
        if sync {
            if !world.event(1) {
                return failed("the machine is down");
            }
            if !world.fails(world.faults.get().lie) {
                stored.unsynced.clear();
            }
        }
        Ok(())
    }
}
