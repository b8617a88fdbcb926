//! Whole stores under faults: many seeds, and a crash at every point of one script.

#![cfg(test)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use super::machine::{Machine, STORE_KEY, Store};
use super::model::{BUCKET, End, Fate, Model, Op};
use super::rt::{sleep, spawn};
use super::{Faults, Rng, World};
use crate::error::Error;
use crate::index::rebuild::{Recovery, rebuild};
use crate::limits;
use crate::secret::Secret;
use crate::segment::survey::survey;

/// What kind of misfortune a seed is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crashes,
    Errors,
    Full,
    Rot,
}

fn kind(seed: u64) -> Kind {
    match seed % 8 {
        0..4 => Kind::Crashes,
        4 | 5 => Kind::Errors,
        6 => Kind::Full,
        _ => Kind::Rot,
    }
}

fn faults(kind: Kind) -> Faults {
    let none = Faults::default();
    match kind {
        Kind::Crashes => none,
        Kind::Errors => Faults {
            write: 20,
            read: 20,
            sync: 8,
            allocate: 20,
            free: 30,
            commit: 5,
            ..none
        },
        Kind::Full => Faults {
            room: Some(64 << 20),
            ..none
        },
        Kind::Rot => Faults {
            misdirect: 10,
            ..none
        },
    }
}

/// How a run of the store ends.
enum Ended {
    Closed,
    Crashed,
    /// Damage was told, and nothing more can be done.
    Told,
}

struct Run {
    machine: Machine,
    model: Rc<Model>,
    kind: Kind,
    calm: Faults,
    /// After a recovery space that no record names stays taken.
    recovered: Cell<bool>,
}

/// Several lives of one store; the trace of all that happened.
fn run(seed: u64) -> u64 {
    let mut machine = Machine::new(seed);
    let world = Rc::clone(&machine.world);
    machine.options.shards = 1 + world.below(3) as usize;
    machine.options.cache_bytes = world.below(2) * (64 << 20);
    machine.segment_sectors = match world.below(3) {
        0 => limits::SEGMENT_SECTORS_MAX,
        _ => 60 + world.below(600) as u32,
    };
    let kind = kind(seed);
    let model = Model::new(&world, 2 + world.below(9) as usize);
    model.faulty.set(matches!(kind, Kind::Errors | Kind::Full));
    model.rotten.set(kind == Kind::Rot);
    let run = Run {
        machine,
        model,
        kind,
        calm: Faults {
            room: faults(kind).room,
            ..Faults::default()
        },
        recovered: Cell::new(false),
    };
    for _ in 0..2 + world.below(4) {
        if let Ended::Told = run.life() {
            break;
        }
    }
    world.trace()
}

impl Run {
    fn world(&self) -> &Rc<World> {
        &self.machine.world
    }

    fn life(&self) -> Ended {
        let Some(store) = self.start() else {
            return Ended::Told;
        };
        let world = self.world();
        world.faults.set(faults(self.kind));
        let ends = world.below(5);
        if ends > 1 {
            let most = [20, 100, 400][world.below(3) as usize];
            world.crash_in(1 + world.below(most));
        }
        let done = self.work(&store);
        if done.is_some() {
            world.faults.set(self.calm);
            if self.settle(&store).is_some() {
                // Space that could not be given back waits for the next start.
                if self.kind != Kind::Errors {
                    self.compare_space(&store);
                }
                if ends == 0 && self.machine.close(store).is_some() {
                    self.rot();
                    return Ended::Closed;
                }
            }
        }
        // Also where it was not planned: a failed sync ends the process.
        world.stop();
        self.restart();
        self.rot();
        Ended::Crashed
    }

    fn restart(&self) {
        if let Some(e) = self.world().restart() {
            let told = matches!(&e, Error::Io { op, .. } if matches!(*op, "sync" | "commit"));
            assert!(told && self.model.faulty.get(), "the end: {e}");
        }
    }

    fn rot(&self) {
        let world = self.world();
        if self.kind == Kind::Rot {
            for _ in 0..world.below(4) {
                let mut rng = world.rng.borrow_mut();
                match rng.below(4) {
                    0 => world.trees.borrow_mut().rot(&mut rng),
                    _ => world.disk.borrow_mut().rot(&mut rng),
                }
            }
        }
    }

    /// Opens the store, through crashes, and compares; none where damage was told.
    fn start(&self) -> Option<Store> {
        let world = self.world();
        loop {
            let troubled = world.one_in(4);
            world.faults.set(match troubled {
                true => faults(self.kind),
                false => self.calm,
            });
            if world.one_in(3) {
                world.crash_in(1 + world.below(12));
            }
            let opened = self.machine.open();
            world.faults.set(self.calm);
            match opened {
                Some(Ok(store)) if self.compare(&store, troubled).is_some() => {
                    world.crash_in(0);
                    return Some(store);
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => match e {
                    Error::Corrupt { .. } | Error::Unusable(_) if self.model.rotten.get() => {
                        return None;
                    }
                    Error::Io { .. } if self.model.faulty.get() => world.stop(),
                    e => panic!("opening: {e}"),
                },
                None => {}
            }
            self.restart();
        }
    }

    /// Space that could not be given back, where the start was in trouble, waits for the next one.
    fn compare(&self, store: &Store, troubled: bool) -> Option<()> {
        let world = self.world();
        let shard = Rc::clone(&store.shards[0]);
        world.run(async move {
            if shard.bucket(BUCKET).is_err() {
                shard.create_bucket(BUCKET).await.expect("room for a name");
            }
        })?;
        let (model, shard) = (Rc::clone(&self.model), Rc::clone(&store.shards[0]));
        world.run(model.compare(shard))?;
        self.settle(store)?;
        if !(troubled && self.kind == Kind::Errors) {
            self.compare_space(store);
        }
        Some(())
    }

    fn compare_space(&self, store: &Store) {
        if !self.model.rotten.get() && !self.recovered.get() {
            self.model.compare_space(store);
        }
    }

    /// Waits until nothing is under way.
    fn settle(&self, store: &Store) -> Option<()> {
        let (shard, rotten) = (Rc::clone(&store.shards[0]), self.model.rotten.get());
        let copied = self.world().run(async move {
            let copied = shard.copy_index(false).await;
            sleep(Duration::from_secs(2)).await;
            copied
        })?;
        match copied {
            Err(Error::DiskFull) if self.kind == Kind::Full => {}
            Err(_) if rotten => {}
            copied => copied.expect("a copy of the index"),
        }
        Some(())
    }

    /// Some clients, each with some operations.
    fn work(&self, store: &Store) -> Option<()> {
        let world = self.world();
        let steps = 1 + world.below(25);
        let clients: Vec<_> = (0..1 + world.below(4))
            .map(|_| {
                let model = Rc::clone(&self.model);
                let shards = store.shards.clone();
                let world = Rc::clone(world);
                async move {
                    for _ in 0..steps {
                        let op = model.choose();
                        let shard = &shards[world.below(shards.len() as u64) as usize];
                        Rc::clone(&model).perform(Rc::clone(shard), op).await;
                    }
                }
            })
            .collect();
        world.run(async move {
            let tasks: Vec<_> = clients.into_iter().map(spawn).collect();
            for task in tasks {
                task.await;
            }
        })
    }
}

/// What happens to an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Lost,
    /// A state from before some operations.
    Older,
    None,
}

/// Some lives of one store whose index comes to harm after each, and is recovered, through crashes too. All was copied to
/// segments before, so nothing may be missing.
fn recovered(seed: u64) {
    let mut machine = Machine::new(seed);
    let world = Rc::clone(&machine.world);
    machine.options.shards = 1 + world.below(2) as usize;
    if world.one_in(2) {
        machine.segment_sectors = 60 + world.below(600) as u32;
    }
    let run = Run {
        model: Model::new(&world, 2 + world.below(6) as usize),
        machine,
        kind: Kind::Crashes,
        calm: Faults::default(),
        recovered: Cell::new(false),
    };
    let index = run.machine.dir.index_dir();
    for _ in 0..1 + world.below(3) {
        let store = run.start().expect("nothing is damaged");
        run.work(&store).expect("no crash");
        let older = world.trees.borrow_mut().held(&index);
        run.work(&store).expect("no crash");
        run.settle(&store).expect("no crash");
        if world.one_in(2) {
            run.machine.close(store).expect("no crash");
        } else {
            world.stop();
            drop(store);
            run.restart();
        }
        let damage = match world.below(4) {
            0 | 1 => Damage::Lost,
            2 => Damage::Older,
            _ => Damage::None,
        };
        match damage {
            Damage::Lost => {
                std::fs::remove_dir_all(&index).expect("it is there");
                let opened = run.machine.open().expect("no crash");
                let refused = opened.err().expect("there is no index");
                assert!(matches!(refused, Error::Unusable(_)), "{refused}");
            }
            Damage::Older => world.trees.borrow_mut().put_back(&index, older),
            Damage::None => {}
        }
        let (done, cut_off) = run.recover();
        // A recovery that was cut off behind its last step has made the index whole.
        assert!(damage != Damage::Lost || !done.was_whole || cut_off);
        if !done.was_whole || cut_off {
            run.recovered.set(true);
        }
        assert_eq!(done.lost, 0, "{damage:?}");
    }
    let store = run.start().expect("nothing is damaged");
    run.work(&store).expect("no crash");
    run.settle(&store).expect("no crash");
    run.machine.close(store).expect("no crash");
    run.start().expect("nothing is damaged");
}

impl Run {
    /// Recovers the index; a recovery that was cut off is begun again. Whether one was.
    fn recover(&self) -> (Recovery, bool) {
        let world = self.world();
        let mut cut_off = false;
        loop {
            if world.one_in(2) {
                world.crash_in(1 + world.below(150));
            }
            let key = Secret::new(STORE_KEY);
            let done = rebuild(&self.machine.dir, &key, &|_| {});
            if world.is_down() {
                self.restart();
                cut_off = true;
                continue;
            }
            world.crash_in(0);
            return (done.expect("nothing stands in its way"), cut_off);
        }
    }
}

fn long() -> bool {
    std::env::var_os("STRONGROOM_TEST_LONG").is_some()
}

/// Runs a test of one seed, and says how to do so again where it fails.
fn told<T>(test: &str, seed: u64, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        eprintln!(
            "again: STRONGROOM_SIM_SEED={seed} cargo test -p strongroom-engine --lib sim::tests::{test}"
        );
        std::panic::resume_unwind(panic)
    })
}

fn seeds(few: u64, many: u64) -> impl Iterator<Item = u64> {
    let one = std::env::var("STRONGROOM_SIM_SEED").ok();
    let one: Option<u64> = one.map(|seed| seed.parse().expect("a number"));
    let all = 0..if long() { many } else { few };
    one.into_iter().chain(all.filter(move |_| one.is_none()))
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_read_is_wrong() {
    for seed in seeds(120, 20_000) {
        told(
            "nothing_acknowledged_is_lost_and_nothing_read_is_wrong",
            seed,
            || run(seed),
        );
    }
}

#[test]
fn a_recovered_index_has_all_that_was_copied() {
    for seed in seeds(60, 5000) {
        told("a_recovered_index_has_all_that_was_copied", seed, || {
            recovered(seed)
        });
    }
}

#[test]
fn one_seed_replays_one_run() {
    for seed in 0..40 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// Two keys, and one of each thing that is done to them.
fn script() -> Vec<Op> {
    let put = |key, size, sealed| Op::Put {
        key,
        size,
        sealed,
        fate: Fate::Commit,
    };
    vec![
        put(0, 5000, true),
        put(1, 90_000, true),
        Op::Copy,
        put(1, 70_000, false),
        Op::Multipart {
            key: 0,
            parts: vec![(1, 40_000), (2, 300), (1, 50_000)],
            end: End::Complete,
        },
        Op::Rewrap(0),
        Op::Delete(1),
        put(1, 20_000, true),
        Op::Rewrap(1),
        Op::Multipart {
            key: 1,
            parts: vec![(1, 20_000)],
            end: End::Abort,
        },
        put(0, 0, true),
        Op::Erase,
    ]
}

/// Runs the script up to an event, restarts with luck of its own, and compares. False once the script ends before that event.
fn stopped_at(event: u64, luck: u64) -> bool {
    let mut machine = Machine::new(7);
    machine.segment_sectors = 60;
    let run = Run {
        model: Model::new(&machine.world, 2),
        machine,
        kind: Kind::Crashes,
        calm: Faults::default(),
        recovered: Cell::new(false),
    };
    let world = Rc::clone(run.world());
    let store = run.machine.open().expect("no crash").expect("a new store");
    run.compare(&store, false).expect("no crash");
    world.crash_in(event);
    let (model, shard) = (Rc::clone(&run.model), Rc::clone(&store.shards[0]));
    let ended = world.run(async move {
        for op in script() {
            Rc::clone(&model).perform(Rc::clone(&shard), op).await;
        }
    });
    world.stop();
    drop(store);
    *world.rng.borrow_mut() = Rng::new(luck);
    run.restart();
    let store = run.start().expect("nothing is damaged");
    // And it goes on from there.
    assert!(run.work(&store).is_some() && run.settle(&store).is_some());
    run.compare_space(&store);
    run.machine.close(store).expect("no crash");
    run.start().expect("nothing is damaged");
    ended.is_none()
}

#[test]
fn a_crash_at_every_point_of_a_script() {
    for luck in seeds(2, 100) {
        let points = (1..).take_while(|event| {
            told("a_crash_at_every_point_of_a_script", luck, || {
                stopped_at(*event, luck)
            })
        });
        let points = points.count();
        assert!(points > 50, "{points} points are few");
    }
}

/// Without this the comparison would prove nothing: a disk that only says it has synced loses something, and it is seen.
#[test]
fn a_disk_that_lies_is_found_out() {
    let lies = |seed: u64| {
        let machine = Machine::new(seed);
        let world = Rc::clone(&machine.world);
        let run = Run {
            model: Model::new(&world, 3),
            machine,
            kind: Kind::Crashes,
            calm: Faults {
                lie: 1000,
                ..Faults::default()
            },
            recovered: Cell::new(false),
        };
        for _ in 0..3 {
            let store = run.start().expect("nothing is damaged");
            let _ = run.work(&store);
            world.stop();
            drop(store);
            run.restart();
        }
    };
    let seen = (0..10).filter(|seed| catch_unwind(AssertUnwindSafe(|| lies(*seed))).is_err());
    assert!(seen.count() > 5);
}

/// A sync that fails, of a segment or of the index: the process ends, and nothing is acknowledged, then or by another try.
#[test]
fn a_failed_sync_ends_the_process() {
    let none = Faults::default();
    let cases = [
        (90_000, Faults { sync: 1000, ..none }, "sync"),
        (
            5000,
            Faults {
                commit: 1000,
                ..none
            },
            "commit",
        ),
    ];
    for (size, faults, expected) in cases {
        let machine = Machine::new(3);
        let world = Rc::clone(&machine.world);
        let run = Run {
            model: Model::new(&world, 1),
            machine,
            kind: Kind::Errors,
            calm: none,
            recovered: Cell::new(false),
        };
        run.model.faulty.set(true);
        let store = run.start().expect("nothing is damaged");
        let shard = Rc::clone(&store.shards[0]);
        let put = |key| Op::Put {
            key,
            size,
            sealed: true,
            fate: Fate::Commit,
        };
        let perform = |op| Rc::clone(&run.model).perform(Rc::clone(&shard), op);
        // A segment is there already: what is to fail is the sync of data.
        world.run(perform(put(0))).expect("nothing fails");
        world.faults.set(faults);
        assert!(world.run(perform(put(0))).is_none());
        world.faults.set(none);
        let error = world.restart().expect("the process ended itself");
        assert!(
            matches!(error, Error::Io { op, .. } if op == expected),
            "{error}"
        );
        drop(store);
        run.start().expect("nothing is damaged");
    }
}

/// The keys that lie in segments.
fn wrapped_keys(store: &Store) -> usize {
    let found = survey(store.core.segments.dir(), &store.core.blocks);
    found.expect("segments can be read").keys.len()
}

/// Where an old key could not be punched nobody is told that it is gone, then or by asking again, until it is.
#[test]
fn a_key_that_was_not_punched_is_not_said_to_be_gone() {
    for waits in [false, true] {
        let machine = Machine::new(5);
        let world = Rc::clone(&machine.world);
        let run = Run {
            model: Model::new(&world, 1),
            machine,
            kind: Kind::Errors,
            calm: Faults::default(),
            recovered: Cell::new(false),
        };
        run.model.faulty.set(true);
        let store = run.start().expect("nothing is damaged");
        let shard = Rc::clone(&store.shards[0]);
        let perform = |op| {
            let done = world.run(Rc::clone(&run.model).perform(Rc::clone(&shard), op));
            done.expect("no crash");
        };
        let settle = || {
            let shard = Rc::clone(&shard);
            let settled = world.run(async move { shard.settle_erasure().await });
            settled.expect("no crash")
        };
        perform(Op::Put {
            key: 0,
            size: 90_000,
            sealed: true,
            fate: Fate::Commit,
        });
        world.faults.set(Faults {
            free: 1000,
            ..Faults::default()
        });
        perform(Op::Rewrap(0));
        if waits {
            // It is tried, in vain, before anybody asks.
            world.run(sleep(Duration::from_secs(1))).expect("no crash");
        }
        for _ in 0..2 {
            settle().expect_err("the old key cannot be punched");
            assert_eq!(wrapped_keys(&store), 2);
        }
        world.faults.set(Faults::default());
        settle().expect("nothing fails any more");
        assert_eq!(wrapped_keys(&store), 1);
    }
}
