//! A simulated machine for tests: one seed replays one run of whole shards, with the faults of disks and sudden ends.
//!
//! The engine asks for disk, index, tasks, timers, the clock and random bytes in few places (`io::disk`, `index::tree`, `rt`), and
//! under test finds those of the [`World`] of its thread there. What runs on threads otherwise, the committer and the reclaimer,
//! takes turns with the tasks here. Everything that is left to chance comes from the seed: which task runs next, how long a write
//! takes, what fails, and what of the unsynced bytes a crash leaves.
//!
//! - `disk`: segment files. Their bytes lie in real files, so that what reads them by itself needs no seam; the disk knows what of
//!   them was not synced, and takes any part of it back at a crash.
//! - `tree`: an index that drops unsynced batches at a crash.
//! - `machine`: a store on the simulated machine: opened, crashed, opened again.
//! - `model`: what the store should hold, operations on both, and the comparison.

pub mod disk;
mod machine;
mod model;
pub mod rt;
mod tests;
pub mod tree;

pub use machine::with_shard;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::Error;

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// The simulated machine of this thread, where there is one.
pub fn world() -> Option<Rc<World>> {
    WORLD.with_borrow(Clone::clone)
}

fn here() -> Rc<World> {
    world().expect("inside a simulation")
}

/// What goes wrong by chance, each in so many of a thousand cases.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub write: u32,
    pub read: u32,
    pub sync: u32,
    pub allocate: u32,
    /// Punching, cutting and removing.
    pub free: u32,
    pub commit: u32,
    /// A write goes to another place, and is said to have gone well.
    pub misdirect: u32,
    /// A sync that does nothing, and is said to have gone well.
    pub lie: u32,
    /// Size of the disk, where it is to fill up.
    pub room: Option<u64>,
}

pub struct World {
    pub rng: RefCell<Rng>,
    pub faults: Cell<Faults>,
    epoch: Instant,
    now: Cell<Duration>,
    events: Cell<u64>,
    crash_at: Cell<u64>,
    down: Cell<bool>,
    /// The error that ended the process.
    fatal: RefCell<Option<Error>>,
    /// Changes with everything that happens: two runs with one seed have the same.
    trace: Cell<u64>,
    disk: RefCell<disk::Disk>,
    trees: RefCell<tree::Trees>,
    executor: rt::Executor,
}

impl World {
    /// Makes a machine, which is that of this thread until it is dropped.
    pub fn enter(seed: u64) -> Entered {
        let world = Rc::new(World {
            rng: RefCell::new(Rng(seed)),
            faults: Cell::default(),
            epoch: Instant::now(),
            now: Cell::default(),
            events: Cell::new(0),
            crash_at: Cell::new(0),
            down: Cell::new(false),
            fatal: RefCell::new(None),
            trace: Cell::new(seed),
            disk: RefCell::default(),
            trees: RefCell::default(),
            executor: rt::Executor::default(),
        });
        let before = WORLD.replace(Some(Rc::clone(&world)));
        assert!(before.is_none(), "one machine a thread");
        Entered(world)
    }

    /// Something that changes a disk is about to happen: a point where the machine can stop. False once it has.
    pub fn event(&self, what: u64) -> bool {
        if self.down.get() {
            return false;
        }
        let number = self.events.get() + 1;
        self.events.set(number);
        self.note(what);
        if number == self.crash_at.get() {
            self.down.set(true);
        }
        !self.down.get()
    }

    fn note(&self, what: u64) {
        let mixed = self.trace.get() ^ what.rotate_left(17) ^ self.now.get().as_nanos() as u64;
        self.trace.set(Rng(mixed).next());
    }

    pub fn trace(&self) -> u64 {
        self.trace.get()
    }

    /// Lets the machine stop after so many more events.
    pub fn crash_in(&self, events: u64) {
        self.crash_at.set(self.events.get() + events);
    }

    pub fn is_down(&self) -> bool {
        self.down.get()
    }

    /// Stops the machine now.
    pub fn stop(&self) {
        self.down.set(true);
    }

    /// The process ends itself.
    fn end(&self, error: &Error) {
        if !self.down.replace(true) {
            *self.fatal.borrow_mut() = Some(error.clone());
        }
    }

    /// Starts the machine again: no task is left, and of what was not synced only chance knows what is there.
    pub fn restart(&self) -> Option<Error> {
        self.down.set(true);
        self.executor.clear();
        self.crash_at.set(0);
        self.disk.borrow_mut().crash(&mut self.rng.borrow_mut());
        self.trees.borrow_mut().crash(&mut self.rng.borrow_mut());
        self.down.set(false);
        self.fatal.take()
    }

    pub fn below(&self, n: u64) -> u64 {
        self.rng.borrow_mut().below(n)
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn fails(&self, of_thousand: u32) -> bool {
        of_thousand > 0 && self.below(1000) < u64::from(of_thousand)
    }

    /// How long something takes: mostly a fraction of a millisecond, now and then much longer.
    fn latency(&self) -> Duration {
        Duration::from_micros(match self.below(16) {
            0 => self.below(20_000),
            1..4 => self.below(2_000),
            _ => self.below(200),
        })
    }
}

/// Leaves the machine when dropped.
pub struct Entered(pub Rc<World>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.down.set(true);
        self.0.executor.clear();
        WORLD.set(None);
    }
}

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
