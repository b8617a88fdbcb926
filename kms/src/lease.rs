//! Leases: whether the key that something was sealed under may still be used, asked by one atomic load.
//!
//! A data key outlives the call that made it: an upload holds it for minutes, a download too. Its lease
//! says at any moment whether the version above it still stands, and a [`KeyHold`] makes sure of it across
//! a commit: whoever takes a key away waits until no hold on it is left, so nothing is committed under a
//! key after the call that took it away has returned.
//!
//! Version numbers of a name are never used twice, so a destroyed version stays destroyed whatever is
//! made under its name later.
//!
//! A key elsewhere has one lease for all who use it. It is good for as long as its service says so often
//! enough; see [`crate::confirm`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, KeyProblem, Outage};

/// The standing of the key version that a data key is sealed under.
#[derive(Clone)]
pub struct KeyLease(Arc<Cell>);

/// While this lives, the version it was taken on is not taken away.
pub struct KeyHold(Arc<Cell>);

/// Whether a version may be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    Good,
    Disabled,
    PendingDeletion,
    Destroyed,
    /// So says a key service elsewhere, and may say otherwise later.
    NotFound,
    NotAuthorized,
    /// The service elsewhere cannot be asked, and reads may go on without it.
    Stale,
    /// The service elsewhere could not be asked for too long.
    Unconfirmed,
    Sealed,
}

struct Cell {
    name: String,
    standing: AtomicU8,
    holds: AtomicUsize,
}

/// How long to look away between two looks at the holds; a commit takes milliseconds.
const WAIT_STEP: Duration = Duration::from_millis(1);
const WAIT_WARN: Duration = Duration::from_secs(5);

impl KeyLease {
    /// Whether the key may still be used to read; if not, why.
    pub fn check(&self) -> Result<(), Error> {
        let problem = match self.0.standing() {
            Standing::Good | Standing::Stale => return Ok(()),
            Standing::Disabled => KeyProblem::Disabled,
            Standing::PendingDeletion => KeyProblem::PendingDeletion,
            Standing::Destroyed => KeyProblem::Destroyed,
            Standing::NotFound => KeyProblem::NotFound,
            Standing::NotAuthorized => KeyProblem::NotAuthorized,
            Standing::Unconfirmed => return Err(self.unconfirmed()),
            Standing::Sealed => return Err(Outage::Sealed.into()),
        };
        Err(Error::key(&self.0.name, problem))
    }

    /// Keeps the key from being taken away for as long as the hold lives: from before a commit until
    /// its outcome is known.
    pub fn hold(&self) -> Result<KeyHold, Error> {
        // Counted first, asked second. Whoever takes the key away changes the standing first and looks
        // at the count second, so one of the two sees the other.
        self.0.holds.fetch_add(1, Ordering::SeqCst);
        let hold = KeyHold(Arc::clone(&self.0));
        match self.0.standing() {
            Standing::Stale => Err(self.unconfirmed()),
            _ => self.check().map(|()| hold),
        }
    }

    fn unconfirmed(&self) -> Error {
        let name = &self.0.name;
        Error::unreachable(format!(
            "whether key {name:?} may still be used is not known"
        ))
    }
}

impl Drop for KeyHold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Cell {
    fn standing(&self) -> Standing {
        match self.standing.load(Ordering::SeqCst) {
            0 => Standing::Good,
            1 => Standing::Disabled,
            2 => Standing::PendingDeletion,
            3 => Standing::Destroyed,
            4 => Standing::NotFound,
            5 => Standing::NotAuthorized,
            6 => Standing::Stale,
            7 => Standing::Unconfirmed,
            _ => Standing::Sealed,
        }
    }
}

/// The standing of every version that a lease was ever asked for.
#[derive(Default)]
pub(crate) struct Leases {
    cells: Mutex<HashMap<(String, u32), Arc<Cell>>>,
}

impl Leases {
    /// A lease on a version that is good now; the caller keeps it from changing meanwhile.
    pub(crate) fn lease(&self, name: &str, version: u32) -> KeyLease {
        let mut cells = self.cells();
        let cell = cells.entry((name.to_owned(), version)).or_insert_with(|| {
            Arc::new(Cell {
                name: name.to_owned(),
                standing: AtomicU8::new(Standing::Good as u8),
                holds: AtomicUsize::new(0),
            })
        });
        KeyLease(Arc::clone(cell))
    }

    /// Whether anybody has a lease on the version.
    pub(crate) fn is_in_use(&self, name: &str, version: u32) -> bool {
        self.cells()
            .get(&(name.to_owned(), version))
            .is_some_and(|cell| Arc::strong_count(cell) > 1)
    }

    /// Forgets the versions that nobody has a lease on. For keys elsewhere: clients name them as they
    /// like, and their service knows what became of them.
    pub(crate) fn prune(&self) {
        self.cells().retain(|_, cell| Arc::strong_count(cell) > 1);
    }

    /// How many versions are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.cells().len()
    }

    /// Ends all leases on a version for good; later ones begin anew.
    pub(crate) fn retire(&self, name: &str, version: u32) {
        if let Some(cell) = self.cells().remove(&(name.to_owned(), version)) {
            cell.standing
                .store(Standing::Destroyed as u8, Ordering::SeqCst);
        }
    }

    /// Sets the standing of one version, if anybody has a lease on it. A seal stands above it.
    pub(crate) fn note(&self, name: &str, version: u32, standing: Standing) {
        if let Some(cell) = self.cells().get(&(name.to_owned(), version)) {
            let _ = cell
                .standing
                .try_update(Ordering::SeqCst, Ordering::SeqCst, |held| {
                    (held != Standing::Sealed as u8).then_some(standing as u8)
                });
        }
    }

    /// Sets the standing of every version by `now`, and returns once no hold is left on a version that
    /// has lost its good one.
    pub(crate) fn follow(&self, now: impl Fn(&str, u32) -> Standing) {
        self.set(now).wait();
    }

    /// The first half of [`Leases::follow`].
    pub(crate) fn set(&self, now: impl Fn(&str, u32) -> Standing) -> Lost {
        let mut lost = Vec::new();
        self.cells().retain(|(name, version), cell| {
            let standing = now(name, *version);
            cell.standing.store(standing as u8, Ordering::SeqCst);
            if standing != Standing::Good {
                lost.push(Arc::clone(cell));
            }
            standing != Standing::Destroyed
        });
        Lost(lost)
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<(String, u32), Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Versions that may not be used any more, and may still be held.
#[must_use]
pub(crate) struct Lost(Vec<Arc<Cell>>);

impl Lost {
    /// Returns once nobody holds them.
    pub(crate) fn wait(self) {
        let mut warn = Instant::now() + WAIT_WARN;
        for cell in self.0 {
            while cell.holds.load(Ordering::SeqCst) > 0 {
                if Instant::now() >= warn {
                    tracing::warn!(key = cell.name, "still waiting for commits under this key");
                    warn = Instant::now() + WAIT_WARN;
                }
                std::thread::sleep(WAIT_STEP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_lease_follows_its_version() {
        let leases = Leases::default();
        let (one, two) = (leases.lease("k", 1), leases.lease("k", 2));
        assert!(one.check().is_ok() && two.check().is_ok());
        let cases = [
            (Standing::Disabled, Some(KeyProblem::Disabled)),
            (Standing::PendingDeletion, Some(KeyProblem::PendingDeletion)),
            (Standing::Good, None),
            (Standing::Destroyed, Some(KeyProblem::Destroyed)),
            // Destroyed once is destroyed for ever.
            (Standing::Good, Some(KeyProblem::Destroyed)),
        ];
        for (standing, want) in cases {
            leases.follow(|_, version| {
                if version == 1 {
                    standing
                } else {
                    Standing::Good
                }
            });
            let got = match one.check() {
                Ok(()) => None,
                Err(Error::KeyState { problem, .. }) => Some(problem),
                Err(_) => panic!(),
            };
            assert_eq!(got, want, "{standing:?}");
            assert_eq!(one.hold().is_ok(), want.is_none());
            assert!(two.check().is_ok());
        }
        leases.follow(|_, _| Standing::Sealed);
        assert!(matches!(two.check(), Err(Error::Outage(Outage::Sealed))));
    }

    #[test]
    fn a_stale_lease_reads_and_does_not_write() {
        let leases = Leases::default();
        let lease = leases.lease("k", 3);
        leases.note("k", 3, Standing::Stale);
        assert!(lease.check().is_ok() && lease.hold().is_err());
        leases.note("k", 3, Standing::Unconfirmed);
        assert!(matches!(
            lease.check(),
            Err(Error::Outage(Outage::Unreachable(_)))
        ));
        leases.note("k", 3, Standing::Good);
        assert!(lease.hold().is_ok());
        assert_eq!(lease.0.holds.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn leases_that_nobody_has_are_forgotten_and_retired_ones_stay_lost() {
        let leases = Leases::default();
        let (kept, retired) = (leases.lease("kept", 3), leases.lease("retired", 3));
        drop(leases.lease("gone", 3));
        assert!(leases.is_in_use("kept", 3) && !leases.is_in_use("gone", 3));
        leases.prune();
        assert_eq!(leases.len(), 2);
        leases.retire("retired", 3);
        let again = leases.lease("retired", 3);
        leases.note("retired", 3, Standing::Good);
        assert!(retired.check().is_err() && again.check().is_ok() && kept.check().is_ok());
    }

    #[test]
    fn who_takes_a_key_away_waits_for_holds() {
        let leases = Arc::new(Leases::default());
        let lease = leases.lease("k", 1);
        let other = leases.lease("other", 1);
        let hold = lease.hold().ok().unwrap();
        // A hold on a key that stays does not matter.
        let _other = other.hold().ok().unwrap();
        let gone = Arc::new(AtomicBool::new(false));
        let taker = std::thread::spawn({
            let (leases, gone) = (Arc::clone(&leases), Arc::clone(&gone));
            move || {
                leases.follow(|name, _| match name {
                    "k" => Standing::Disabled,
                    _ => Standing::Good,
                });
                gone.store(true, Ordering::SeqCst);
            }
        });
        while lease.check().is_ok() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(!gone.load(Ordering::SeqCst));
        assert!(lease.hold().is_err());
        drop(hold);
        taker.join().unwrap();
        assert!(gone.load(Ordering::SeqCst));
    }
}
