//! What is known of the copy of the index in segments: which rounds of copying it consists of, and what changed since.
//!
//! The committer notes the name of every entry it changes, and nothing else; a round then reads these entries and writes them
//! to segments (`segment::copier`). What is copied dies when its record is replaced; once enough is dead, or there were many
//! rounds, the next one copies the whole index and replaces all before it. A start after a crash does not know what was deleted
//! last, so its first round is whole too.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use minicbor::{Decode, Encode};

use super::Space;
use crate::limits;
use crate::record::Extent;
use crate::rt;
use crate::segment::block::CopyGroup;

/// The keyspaces that are copied, by their numbers in copies.
pub const COPIED: [Space; 4] = [Space::Objects, Space::Uploads, Space::Parts, Space::Buckets];

/// One round of copying.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Group {
    #[n(0)]
    pub group: CopyGroup,
    #[n(1)]
    pub extents: Vec<Extent>,
    /// Bytes of entries.
    #[n(2)]
    pub bytes: u64,
}

/// The record of all rounds that count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Groups {
    #[n(0)]
    pub groups: Vec<Group>,
    /// Bytes in them whose records were replaced or removed since, about.
    #[n(1)]
    pub dead: u64,
}

impl Groups {
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.groups.iter().flat_map(|g| &g.extents).copied()
    }

    /// The last commit of which everything is copied.
    pub fn to(&self) -> u64 {
        self.groups.last().map_or(0, |g| g.group.to)
    }

    fn bytes(&self) -> u64 {
        self.groups.iter().map(|g| g.bytes).sum()
    }
}

/// What all cores share of it.
pub struct Copies(Mutex<State>);

struct State {
    groups: Groups,
    /// Entries that changed since the last round.
    changed: HashSet<(Space, Vec<u8>)>,
    /// The next round has to be whole.
    whole: bool,
    running: bool,
    began: Instant,
    died: Instant,
}

/// A round to be made.
pub struct Round {
    pub from: u64,
    pub to: u64,
    /// In order; empty in a round of the whole index.
    pub keys: Vec<(Space, Vec<u8>)>,
    pub whole: bool,
}

impl Copies {
    /// `whole`: what changed since the last round is not known.
    pub fn new(groups: Groups, whole: bool) -> Self {
        Copies(Mutex::new(State {
            groups,
            changed: HashSet::new(),
            whole,
            running: false,
            began: rt::now(),
            died: rt::now(),
        }))
    }

    /// These entries were written or removed by commits that are durable now.
    pub fn changed(&self, entries: impl Iterator<Item = (Space, Vec<u8>)>) {
        let mut state = self.lock();
        state
            .changed
            .extend(entries.filter(|(space, _)| COPIED.contains(space)));
        if state.changed.len() > limits::COPY_KEYS_MAX {
            state.changed = HashSet::new();
            state.whole = true;
        }
    }

    /// A record of commit `sequence` is replaced or removed, with so many bytes.
    pub fn died(&self, sequence: u64, bytes: u64) {
        let mut state = self.lock();
        if sequence <= state.groups.to() {
            state.groups.dead += bytes;
            state.died = rt::now();
        }
    }

    /// Whether every change is copied.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.changed.is_empty() && !state.whole && !state.running
    }

    /// Begins a round where one is due; `now` makes it due at once, `whole` makes it whole.
    pub fn begin(&self, synced: impl FnOnce() -> u64, now: bool, whole: bool) -> Option<Round> {
        let mut state = self.lock();
        if state.running {
            return None;
        }
        let dead = state.groups.dead;
        let alive = state.groups.bytes().saturating_sub(dead);
        let rotten = dead >= limits::COPY_DEAD_BYTES_MIN.max(alive / 2);
        let since = rt::now() - state.began;
        let pending = state.whole || !state.changed.is_empty();
        let due = now && (pending || whole)
            || since >= limits::COPY_EVERY && pending
            || state.changed.len() >= limits::COPY_KEYS_DUE
            || rotten && rt::now() - state.died >= limits::COPY_QUIET;
        if !due {
            return None;
        }
        let whole =
            whole || state.whole || rotten || state.groups.groups.len() >= limits::COPY_GROUPS_MAX;
        state.running = true;
        state.began = rt::now();
        // Whatever a later commit changes is noted after this.
        let to = synced();
        let mut keys: Vec<_> = std::mem::take(&mut state.changed).into_iter().collect();
        if whole {
            keys.clear();
            state.whole = false;
        }
        keys.sort_unstable_by(|(a, x), (b, y)| (*a as u8, x).cmp(&(*b as u8, y)));
        let from = if whole { 0 } else { state.groups.to() };
        Some(Round {
            from,
            to,
            keys,
            whole,
        })
    }

    /// The rounds that count once this one does, and the extents that no longer do.
    pub fn with(&self, group: Option<Group>, whole: bool) -> (Groups, Vec<Extent>) {
        let state = self.lock();
        let mut groups = state.groups.clone();
        let mut old = Vec::new();
        if whole {
            old = groups.extents().collect();
            groups = Groups::default();
        }
        groups.groups.extend(group);
        (groups, old)
    }

    /// The round is durable.
    pub fn done(&self, groups: Groups) {
        let mut state = self.lock();
        state.groups = groups;
        state.running = false;
    }

    /// The round failed: what it was to copy is not known any more.
    pub fn failed(&self) {
        let mut state = self.lock();
        state.running = false;
        state.whole = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(from: u64, to: u64, bytes: u64) -> Group {
        Group {
            group: CopyGroup { id: to, from, to },
            extents: vec![Extent {
                segment: 1,
                start: to as u32,
                lead: 0,
                sectors: 1,
                sequence: to,
            }],
            bytes,
        }
    }

    fn finish(copies: &Copies, round: &Round) -> Vec<Extent> {
        let (groups, old) = copies.with(Some(group(round.from, round.to, 4 << 20)), round.whole);
        copies.done(groups);
        old
    }

    #[test]
    fn rounds_follow_each_other_and_a_whole_one_replaces_them() {
        let copies = Copies::new(Groups::default(), true);
        assert!(!copies.is_complete());
        let first = copies.begin(|| 5, true, false).unwrap();
        assert!(first.whole && (first.from, first.to) == (0, 5));
        assert!(copies.begin(|| 5, true, true).is_none(), "one at a time");
        finish(&copies, &first);
        assert!(copies.is_complete());
        assert!(copies.begin(|| 5, true, false).is_none(), "nothing changed");
        copies.changed([(Space::Objects, b"k".to_vec()), (Space::Freed, vec![1])].into_iter());
        let next = copies.begin(|| 9, true, false).unwrap();
        assert_eq!(next.keys, [(Space::Objects, b"k".to_vec())]);
        assert!(!next.whole && (next.from, next.to) == (5, 9));
        assert!(finish(&copies, &next).is_empty());
        // Dead bytes of records that were copied count, others do not.
        copies.died(10, 100 << 20);
        assert!(copies.begin(|| 10, true, false).is_none());
        copies.died(9, 100 << 20);
        copies.changed([(Space::Objects, b"k".to_vec())].into_iter());
        let whole = copies.begin(|| 12, true, false).unwrap();
        assert!(whole.whole && whole.keys.is_empty() && whole.from == 0);
        assert_eq!(finish(&copies, &whole).len(), 2);
        copies.changed([(Space::Parts, vec![1])].into_iter());
        copies.begin(|| 13, true, false).unwrap();
        copies.failed();
        assert!(copies.begin(|| 13, true, false).unwrap().whole);
    }

    #[test]
    fn too_many_changes_make_the_next_round_whole() {
        let copies = Copies::new(Groups::default(), false);
        let many =
            (0..=limits::COPY_KEYS_MAX as u32).map(|n| (Space::Objects, n.to_be_bytes().to_vec()));
        copies.changed(many);
        let round = copies.begin(|| 1, true, false).unwrap();
        assert!(round.whole && round.keys.is_empty());
    }
}
