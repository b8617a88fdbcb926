//! How much of the file system writes may still take: all of it but a reserve.
//!
//! Deleting needs space before it gives any: the journal grows, tables are rewritten before the old ones go. So writes end while
//! there is still room for that, with an error that says so, and begin again by themselves. The file system is asked at most ten
//! times a second; what was taken since is counted here.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::io::disk;
use crate::limits;
use crate::rt;

pub struct Space {
    dir: PathBuf,
    begun: Instant,
    /// When the file system was last asked, in milliseconds since `begun`; 0 for never.
    asked: AtomicU64,
    /// What the last answer left for writes, less what they took since.
    left: AtomicU64,
    /// What was free then, the reserve included.
    free: AtomicU64,
    /// Writes are refused now.
    full: AtomicBool,
}

/// The file system as a store sees it, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    pub total: u64,
    /// What is free, the reserve included.
    pub free: u64,
    /// What writes leave alone.
    pub reserve: u64,
}

impl Room {
    /// What writes may still take.
    pub fn for_writes(&self) -> u64 {
        self.free.saturating_sub(self.reserve)
    }
}

impl Space {
    pub fn new(dir: &Path) -> Self {
        Space {
            dir: dir.to_owned(),
            begun: rt::now(),
            asked: AtomicU64::new(0),
            left: AtomicU64::new(0),
            free: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    /// Asks the file system. `index` is the size of the index, which part of the reserve is for.
    pub fn room(&self, index: u64) -> Result<Room> {
        let (total, free) = disk::room(&self.dir)?;
        let reserve = limits::RESERVE_BYTES + index / limits::RESERVE_INDEX_SHARE;
        Ok(Room {
            total,
            free,
            reserve: reserve.min(total / limits::RESERVE_TOTAL_SHARE),
        })
    }

    /// Whether a write of so many bytes can be begun at all.
    pub fn check(&self, bytes: u64, index: impl FnOnce() -> Result<u64>) -> Result<()> {
        self.look(index)?;
        judge(rest(self.left.load(Ordering::Relaxed), bytes).is_some())
    }

    /// Takes so many bytes for a write.
    pub fn take(&self, bytes: u64, index: impl FnOnce() -> Result<u64>) -> Result<()> {
        self.look(index)?;
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                rest(left, bytes)
            });
        judge(taken.is_ok())
    }

    /// Refuses any change of the index where not even it has room, because somebody else took the reserve: a journal that cannot
    /// be written ends the store.
    pub fn check_index(&self, index: impl FnOnce() -> Result<u64>) -> Result<()> {
        self.look(index)?;
        judge(self.free.load(Ordering::Relaxed) >= limits::INDEX_SPACE_MIN)
    }

    fn look(&self, index: impl FnOnce() -> Result<u64>) -> Result<()> {
        let now = (rt::now() - self.begun).as_millis() as u64 + 1;
        let asked = self.asked.load(Ordering::Relaxed);
        let due =
            asked == 0 || now.saturating_sub(asked) >= limits::SPACE_LOOK_EVERY.as_millis() as u64;
        if !due {
            return Ok(());
        }
        let room = self.room(index()?)?;
        let left = room.for_writes();
        self.free.store(room.free, Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
        self.asked.store(now, Ordering::Relaxed);
        // Only a change is worth a line in the log.
        let full = rest(left, 0).is_none();
        if self.full.swap(full, Ordering::Relaxed) != full {
            let dir = self.dir.display();
            match full {
                true => tracing::error!(
                    "{dir} is full but for what deleting needs: writes are refused until there is space"
                ),
                false => tracing::info!("{dir} has space again: writes are taken"),
            }
        }
        Ok(())
    }
}

/// What a write of `bytes` leaves of `left`; none where it does not fit. The last bit is nobody's, so that a full disk is full for
/// small writes too.
fn rest(left: u64, bytes: u64) -> Option<u64> {
    left.checked_sub(bytes)
        .filter(|_| left >= limits::RESERVE_AHEAD_BYTES)
}

fn judge(fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::DiskFull) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> (tempfile::TempDir, Space) {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path());
        (dir, space)
    }

    #[test]
    fn what_was_taken_is_not_there_twice() {
        let (_dir, space) = space();
        let left = limits::RESERVE_AHEAD_BYTES + 100;
        space.left.store(left, Ordering::Relaxed);
        // As if the file system had just been asked, and were not asked again for long.
        let space = Space {
            asked: AtomicU64::new(u64::from(u32::MAX)),
            ..space
        };
        let unasked = || -> Result<u64> { panic!("asked too soon") };
        space.take(60, unasked).unwrap();
        space.check(left - 60, unasked).unwrap();
        let more = space.check(left - 59, unasked);
        assert!(matches!(more, Err(Error::DiskFull)));
        space.take(41, unasked).unwrap();
        // What is left is too little for anything.
        for refused in [space.take(1, unasked), space.check(0, unasked)] {
            assert!(matches!(refused, Err(Error::DiskFull)));
        }
    }

    #[test]
    fn the_reserve_grows_with_the_index_and_is_bounded_by_the_disk() {
        let (_dir, space) = space();
        let (small, large) = (space.room(0).unwrap(), space.room(1 << 60).unwrap());
        assert!(small.reserve <= limits::RESERVE_BYTES);
        assert_eq!(large.reserve, large.total / limits::RESERVE_TOTAL_SHARE);
        assert!(small.free <= small.total);
    }
}
