//! Data keys in memory: so that a key service far away is asked once, and not at every read.
//!
//! - One cache per core, behind a lock that only a flush from elsewhere ever contends for.
//! - Bounded: a fixed arena of slots, locked in memory where the limit allows, allocated once; the least
//!   recently used entry makes room. A slot is wiped when its entry goes.
//! - An entry is good for `used` since it was fetched and `unused` since it was last asked for. A longer
//!   `offline` keeps it on for when the service cannot be reached, and for nothing else.
//! - An entry whose lease is lost is never given out, whatever its age, and never put in.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroize as _;

use crate::keys::Source;
use crate::lease::KeyLease;
use crate::secret::DataKey;

/// How much a cache holds, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Data keys of one core.
    pub entries: usize,
    /// How long a data key is good for, counted from when the service gave it.
    pub used: Duration,
    /// How long one is good for that nobody asks for.
    pub unused: Duration,
    /// How long reads are served while the service cannot be reached, counted from when it last
    /// answered; zero: each data key for as long as otherwise.
    pub offline: Duration,
}

impl CacheLimits {
    /// How long a data key is kept for the case that the service cannot be reached: long enough for one
    /// that was about to be fetched again when it went away.
    fn kept(&self) -> Duration {
        match self.offline {
            Duration::ZERO => Duration::ZERO,
            offline => self.used.saturating_add(offline),
        }
    }
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: 4096,
            used: Duration::from_secs(300),
            unused: Duration::from_secs(30),
            offline: Duration::ZERO,
        }
    }
}

/// Names a sealed data key with everything that opening it depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id([u8; 32]);

impl Id {
    pub(crate) fn new(
        source: Source,
        key: &str,
        version: u32,
        ciphertext: &[u8],
        context: &[u8],
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update([source as u8]);
        hash.update(version.to_le_bytes());
        // Each part has its length before it, so that no two lists of parts read the same.
        for part in [key.as_bytes(), ciphertext, context] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// A bucket's key, sealed: what new objects of the bucket take theirs from. Nothing here is secret.
#[derive(Clone)]
pub(crate) struct BucketKey {
    pub(crate) version: u32,
    pub(crate) ciphertext: Vec<u8>,
    pub(crate) made: Instant,
}

/// Which bucket's key, under which key.
pub(crate) type BucketId = (Source, String, String);

pub(crate) struct Cache {
    limits: CacheLimits,
    entries: HashMap<Id, Entry>,
    /// Entries by when they were last asked for.
    order: BTreeMap<u64, Id>,
    tick: u64,
    arena: Arena,
    buckets: HashMap<BucketId, BucketKey>,
}

struct Entry {
    slot: usize,
    key: String,
    lease: KeyLease,
    fetched: Instant,
    asked: Instant,
    tick: u64,
}

/// What a look into the cache gave.
pub(crate) enum Found {
    Fresh(DataKey, KeyLease),
    /// Too old, but good for as long as the service cannot be reached.
    Stale(DataKey, KeyLease),
    Nothing,
}

impl Cache {
    pub(crate) fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
            arena: Arena::new(limits.entries),
            buckets: HashMap::new(),
        }
    }

    pub(crate) fn get(&mut self, id: &Id, now: Instant) -> Found {
        let limits = self.limits;
        let Some(entry) = self.entries.get_mut(id) else {
            return Found::Nothing;
        };
        if entry.lease.check().is_err() {
            self.remove(id);
            return Found::Nothing;
        }
        let age = now.saturating_duration_since(entry.fetched);
        let idle = now.saturating_duration_since(entry.asked);
        let fresh = age < limits.used && idle < limits.unused;
        if !fresh && age >= limits.kept() {
            self.remove(id);
            return Found::Nothing;
        }
        let found = (self.arena.read(entry.slot), entry.lease.clone());
        if fresh {
            entry.asked = now;
            self.order.remove(&entry.tick);
            self.tick += 1;
            entry.tick = self.tick;
            self.order.insert(self.tick, *id);
            return Found::Fresh(found.0, found.1);
        }
        Found::Stale(found.0, found.1)
    }

    /// Takes a data key in, unless its lease is lost already.
    ///
    /// Whoever takes a key away changes its standing first and flushes second, so a data key is either
    /// refused here or flushed there.
    pub(crate) fn put(
        &mut self,
        id: Id,
        key: &str,
        plain: &DataKey,
        lease: &KeyLease,
        now: Instant,
    ) {
        self.remove(&id);
        if lease.check().is_err() || self.limits.entries == 0 {
            return;
        }
        if self.entries.len() >= self.limits.entries
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = *oldest;
            self.remove(&oldest);
        }
        self.tick += 1;
        self.order.insert(self.tick, id);
        self.entries.insert(
            id,
            Entry {
                slot: self.arena.write(plain),
                key: key.to_owned(),
                lease: lease.clone(),
                fetched: now,
                asked: now,
                tick: self.tick,
            },
        );
    }

    pub(crate) fn bucket_key(&self, id: &BucketId) -> Option<&BucketKey> {
        self.buckets.get(id)
    }

    pub(crate) fn put_bucket_key(&mut self, id: BucketId, key: BucketKey) {
        // Sealed keys without anything secret: forgetting them all costs a call each.
        if self.buckets.len() >= self.limits.entries.max(1) {
            self.buckets.clear();
        }
        self.buckets.insert(id, key);
    }

    /// Forgets the data keys under one key, or all of them.
    pub(crate) fn flush(&mut self, key: Option<&str>) {
        let lost: Vec<Id> = self
            .entries
            .iter()
            .filter(|(_, entry)| key.is_none_or(|key| entry.key == key))
            .map(|(id, _)| *id)
            .collect();
        for id in &lost {
            self.remove(id);
        }
        self.buckets
            .retain(|(_, held, _), _| key.is_some_and(|key| held != key));
    }

    /// Forgets what is good for nothing any more.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let limits = self.limits;
        let over: Vec<Id> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                let age = now.saturating_duration_since(entry.fetched);
                let idle = now.saturating_duration_since(entry.asked);
                (age >= limits.used || idle >= limits.unused) && age >= limits.kept()
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &over {
            self.remove(id);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, id: &Id) {
        if let Some(entry) = self.entries.remove(id) {
            self.order.remove(&entry.tick);
            self.arena.wipe(entry.slot);
        }
    }
}

/// Fixed slots for keys, made once.
struct Arena {
    /// Keeps the slots out of swap, where the limit on locked memory allows. Declared first: it has to go
    /// before the memory it is for.
    _lock: Option<region::LockGuard>,
    slots: Box<[[u8; 32]]>,
    free: Vec<usize>,
}

impl Arena {
    fn new(count: usize) -> Self {
        let slots = vec![[0; 32]; count].into_boxed_slice();
        let lock = (count > 0)
            .then(|| region::lock(slots.as_ptr(), size_of_val(&*slots)))
            .and_then(|locked| match locked {
                Ok(guard) => Some(guard),
                Err(error) => {
                    tracing::warn!(
                        "data keys in memory may be swapped out ({error}); raise the limit on locked memory (ulimit -l)"
                    );
                    None
                }
            });
        Self {
            slots,
            free: (0..count).rev().collect(),
            _lock: lock,
        }
    }

    fn write(&mut self, key: &DataKey) -> usize {
        let slot = self
            .free
            .pop()
            .expect("an entry is removed before the arena is full");
        self.slots[slot].copy_from_slice(key.expose());
        slot
    }

    fn read(&self, slot: usize) -> DataKey {
        DataKey::from_slice(&self.slots[slot]).expect("slots are of 32 bytes")
    }

    fn wipe(&mut self, slot: usize) {
        self.slots[slot].zeroize();
        self.free.push(slot);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            slot.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Leases, Standing};

    const LIMITS: CacheLimits = CacheLimits {
        entries: 3,
        used: Duration::from_secs(100),
        unused: Duration::from_secs(30),
        offline: Duration::ZERO,
    };

    struct Bench {
        cache: Cache,
        leases: Leases,
        start: Instant,
    }

    impl Bench {
        fn new(limits: CacheLimits) -> Self {
            Self {
                cache: Cache::new(limits),
                leases: Leases::default(),
                start: Instant::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn put(&mut self, n: u8, key: &str, seconds: u64) {
            let lease = self.leases.lease(key, 0);
            let plain = DataKey::from_slice(&[n; 32]).unwrap();
            self.cache.put(
                id(n),
                key,
                &plain,
                &lease,
                self.start + Duration::from_secs(seconds),
            );
        }

        fn get(&mut self, n: u8, seconds: u64) -> &'static str {
            let now = self.at(seconds);
            match self.cache.get(&id(n), now) {
                Found::Fresh(key, _) => {
                    assert_eq!(key.expose(), &[n; 32]);
                    "fresh"
                }
                Found::Stale(key, _) => {
                    assert_eq!(key.expose(), &[n; 32]);
                    "stale"
                }
                Found::Nothing => "nothing",
            }
        }

        /// Slots that hold anything.
        fn dirty(&self) -> usize {
            self.cache
                .arena
                .slots
                .iter()
                .filter(|slot| **slot != [0; 32])
                .count()
        }
    }

    fn id(n: u8) -> Id {
        Id([n; 32])
    }

    #[test]
    fn ids_tell_everything_apart() {
        let ids = [
            Id::new(Source::Kes, "k", 0, b"ct", b"{}"),
            Id::new(Source::Embedded, "k", 0, b"ct", b"{}"),
            Id::new(Source::Kes, "k2", 0, b"ct", b"{}"),
            Id::new(Source::Kes, "k", 1, b"ct", b"{}"),
            Id::new(Source::Kes, "k", 0, b"ct{", b"}"),
            Id::new(Source::Kes, "kct", 0, b"", b"{}"),
        ];
        for (i, one) in ids.iter().enumerate() {
            assert!(ids[i + 1..].iter().all(|other| other != one), "{i}");
        }
    }

    #[test]
    fn entries_age() {
        let mut bench = Bench::new(LIMITS);
        bench.put(1, "k", 0);
        bench.put(2, "k", 0);
        assert_eq!(bench.get(2, 29), "fresh");
        // Not asked for in 30 s.
        assert_eq!(bench.get(1, 30), "nothing");
        for seconds in [58, 80, 99] {
            assert_eq!(bench.get(2, seconds), "fresh");
        }
        // Asked for all the time, and too old nevertheless.
        assert_eq!(bench.get(2, 100), "nothing");
        assert_eq!(bench.dirty(), 0);
    }

    #[test]
    fn offline_entries_are_stale_and_nothing_else() {
        let mut bench = Bench::new(CacheLimits {
            offline: Duration::from_secs(600),
            ..LIMITS
        });
        bench.put(1, "k", 0);
        assert_eq!(bench.get(1, 10), "fresh");
        assert_eq!(bench.get(1, 50), "stale");
        bench.cache.sweep(bench.at(699));
        assert_eq!(bench.get(1, 699), "stale");
        assert_eq!(bench.get(1, 700), "nothing");
        assert_eq!(bench.dirty(), 0);
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut bench = Bench::new(LIMITS);
        for n in 1..=3 {
            bench.put(n, "k", 0);
        }
        assert_eq!(bench.get(1, 1), "fresh");
        bench.put(4, "k", 2);
        assert_eq!(bench.get(2, 3), "nothing");
        for n in [1, 3, 4] {
            assert_eq!(bench.get(n, 3), "fresh");
        }
        assert_eq!((bench.cache.len(), bench.dirty()), (3, 3));
        // The same entry again takes no second slot.
        for _ in 0..10 {
            bench.put(4, "k", 4);
        }
        assert_eq!((bench.cache.len(), bench.dirty()), (3, 3));
    }

    #[test]
    fn flushed_and_swept_slots_are_wiped() {
        let mut bench = Bench::new(LIMITS);
        bench.put(1, "a", 0);
        bench.put(2, "b", 0);
        bench.put(3, "a", 40);
        for key in ["a", "b"] {
            let bucket = (Source::Kes, key.to_owned(), "bucket".to_owned());
            let made = bench.start;
            bench.cache.put_bucket_key(
                bucket,
                BucketKey {
                    version: 0,
                    ciphertext: vec![1],
                    made,
                },
            );
        }
        bench.cache.sweep(bench.at(41));
        assert_eq!((bench.cache.len(), bench.dirty()), (1, 1));
        bench.put(2, "b", 41);
        bench.cache.flush(Some("a"));
        assert_eq!(bench.get(2, 42), "fresh");
        assert_eq!((bench.cache.len(), bench.dirty()), (1, 1));
        let bucket = |key: &str| (Source::Kes, key.to_owned(), "bucket".to_owned());
        assert!(bench.cache.bucket_key(&bucket("a")).is_none());
        assert!(bench.cache.bucket_key(&bucket("b")).is_some());
        bench.cache.flush(None);
        assert_eq!((bench.cache.len(), bench.dirty()), (0, 0));
        assert!(bench.cache.bucket_key(&bucket("b")).is_none());
    }

    #[test]
    fn a_lost_lease_neither_enters_nor_leaves() {
        let mut bench = Bench::new(LIMITS);
        bench.put(1, "k", 0);
        bench.leases.follow(|_, _| Standing::Disabled);
        assert_eq!(bench.get(1, 1), "nothing");
        bench.put(2, "k", 1);
        assert_eq!((bench.cache.len(), bench.dirty()), (0, 0));
        bench.leases.follow(|_, _| Standing::Good);
        assert_eq!(bench.get(2, 1), "nothing");
    }

    #[test]
    fn no_entries_at_all() {
        let mut bench = Bench::new(CacheLimits {
            entries: 0,
            ..LIMITS
        });
        bench.put(1, "k", 0);
        assert_eq!(bench.get(1, 0), "nothing");
    }
}
