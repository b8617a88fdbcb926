//! The real index under faults: copies of its directory, taken when a commit was durable, are cut and damaged, and opened.
//!
//! What a crash can leave is a directory as it was at a sync, and any part of the batch that was next. From there the index must
//! hold what was committed, and the next batch whole or not at all. Damage anywhere must be told: what can be read is right and
//! nothing is missing. Only the last batch of a journal is beyond that: damaged, it looks like one that was never synced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fjall::PersistMode;

use super::commit::meta;
use super::offline::unpanicked;
use super::record::{self, Data, Object, Place, Stream};
use super::{Index, Space, io, journal, key};
use crate::error::{Error, Result};
use crate::secret::Secret;
use crate::sim::Rng;

/// Keys with the sequence of their record, and the bytes of small objects.
type State = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

fn store_key() -> Secret {
    Secret::new([4; 32])
}

fn object(size: u64) -> Object {
    Object {
        size,
        modified: 1,
        etag: "etag".repeat(20),
        metadata: Default::default(),
        encryption: None,
        checksum: None,
        data: Data::Single(Stream {
            size,
            nonce: None,
            place: Place::Inline,
        }),
        key_extent: None,
        origin: None,
    }
}

/// Commits as the committer does: some objects put, one removed.
fn commit(index: &Index, rng: &mut Rng, sequence: u64, state: &mut State) {
    let mut batch = index.db.batch().durability(Some(PersistMode::SyncData));
    let remove = |batch: &mut super::tree::OwnedWriteBatch, state: &mut State, at: &[u8]| {
        if let Some((old, _)) = state.remove(at) {
            batch.remove(index.space(Space::Inline), key::sequence(old));
        }
    };
    for n in 0..1 + rng.below(3) {
        let at = key::object("bucket", &format!("key {}", rng.below(12)));
        let sequence = sequence * 10 + n;
        let mut bytes = vec![0; 1 + rng.below(9000) as usize];
        rng.fill(&mut bytes);
        remove(&mut batch, state, &at);
        let value = object(bytes.len() as u64);
        let value = index
            .sealer
            .seal(Space::Objects.name(), &at, sequence, &value);
        batch.insert(index.space(Space::Objects), at.as_slice(), value);
        let inline = index.space(Space::Inline);
        batch.insert(inline, key::sequence(sequence), bytes.as_slice());
        state.insert(at, (sequence, bytes));
    }
    let gone = key::object("bucket", &format!("key {}", rng.below(12)));
    remove(&mut batch, state, &gone);
    batch.remove(index.space(Space::Objects), gone);
    let meta = index.space(Space::Meta);
    batch.insert(meta, meta::SEQUENCE, record::encode(&sequence));
    batch.commit().unwrap();
}

/// Everything that an index in `dir` holds.
fn held(dir: &Path) -> Result<State> {
    unpanicked(|| {
        let index = Index::open(dir, &store_key())?;
        let mut state = State::new();
        for entry in index.space(Space::Objects).iter() {
            let (at, value) = entry.into_inner().map_err(io)?;
            if at == key::MARK {
                continue;
            }
            let name = Space::Objects.name();
            let (sequence, object): (u64, Object) = index.sealer.open(name, &at, &value)?;
            let bytes = index.inline(sequence)?;
            let bytes = bytes.ok_or_else(|| Error::corrupt("no bytes", "inline"))?;
            assert_eq!(bytes.len() as u64, object.size);
            state.insert(at.to_vec(), (sequence, bytes.to_vec()));
        }
        Ok(state)
    })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => all.push(path),
        }
    }
    all.sort();
    all
}

/// Copies a directory; journals without the room made ahead.
fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let bytes = match journal::is_journal(&file) {
            true => journal::read(&file).unwrap(),
            false => std::fs::read(&file).unwrap(),
        };
        std::fs::write(target, bytes).unwrap();
    }
}

/// Where the last journal of a copy ends.
fn end(dir: &Path) -> (PathBuf, usize) {
    let path = files(dir)
        .into_iter()
        .rfind(|f| journal::is_journal(f))
        .unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let len = bytes.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
    (path, len)
}

/// Copies of an index after each of some commits, and what each holds.
fn copies(root: &Path, rng: &mut Rng) -> Vec<(PathBuf, State)> {
    let live = root.join("live");
    let index = Index::open(&live, &store_key()).unwrap();
    let mut state = State::new();
    let mut all = Vec::new();
    for sequence in 1..=12 {
        commit(&index, rng, sequence, &mut state);
        // Some of it in tables, the rest in journals.
        if sequence == 6 {
            for space in Space::ALL {
                index.space(space).rotate_memtable_and_wait().unwrap();
            }
        }
        let to = root.join(sequence.to_string());
        copy(&live, &to);
        all.push((to, state.clone()));
    }
    all
}

fn rounds() -> u64 {
    match std::env::var_os("STRONGROOM_TEST_LONG") {
        Some(_) => 60,
        None => 1,
    }
}

#[test]
fn a_crash_between_syncs_leaves_what_was_committed() {
    for seed in 0..rounds() {
        let mut rng = Rng::new(seed);
        let root = tempfile::tempdir().unwrap();
        let copies = copies(root.path(), &mut rng);
        for pair in copies.windows(2) {
            let [(before, old), (after, new)] = pair else {
                unreachable!("pairs")
            };
            let ((_, from), (last, to)) = (end(before), end(after));
            for torn in 0..3 {
                let dir = root.path().join("torn");
                copy(after, &dir);
                let path = dir.join(last.strip_prefix(after).unwrap());
                let mut bytes = std::fs::read(&path).unwrap();
                bytes.truncate(to);
                match torn {
                    0 => bytes.truncate(from + rng.below((to - from) as u64) as usize),
                    // Blocks of it never reached the disk.
                    _ => {
                        for block in bytes[from..].chunks_mut(512) {
                            if rng.below(3) == 0 {
                                block.fill(0);
                            }
                        }
                    }
                }
                bytes.resize(to + 100_000, 0);
                std::fs::write(&path, bytes).unwrap();
                let found = held(&dir);
                let found = found.unwrap_or_else(|e| panic!("seed {seed}, {last:?} {torn}: {e}"));
                assert!(
                    found == *old || found == *new,
                    "seed {seed}, {last:?} {torn}"
                );
                std::fs::remove_dir_all(&dir).unwrap();
            }
            assert!(held(before).unwrap() == *old, "seed {seed}");
        }
    }
}

#[test]
fn damage_to_any_file_is_told() {
    for seed in 0..rounds() {
        let mut rng = Rng::new(seed);
        let root = tempfile::tempdir().unwrap();
        let copies = copies(root.path(), &mut rng);
        let [.., (before, _), (whole, state)] = &copies[..] else {
            unreachable!("many")
        };
        let last = end(before).1;
        for file in files(whole) {
            for damage in 0..4 {
                let dir = root.path().join("damaged");
                copy(whole, &dir);
                let path = dir.join(file.strip_prefix(whole).unwrap());
                let mut bytes = std::fs::read(&path).unwrap();
                // The last batch of a journal can be one that a crash has torn.
                let len = if journal::is_journal(&path) {
                    last
                } else {
                    bytes.len()
                };
                if len > 0 {
                    let at = rng.below(len as u64) as usize;
                    match damage {
                        0 if !journal::is_journal(&path) => bytes.truncate(at),
                        1 => {
                            let end = (at + 512).min(len);
                            rng.fill(&mut bytes[at..end]);
                        }
                        _ => bytes[at] ^= 1 << rng.below(8),
                    }
                    std::fs::write(&path, bytes).unwrap();
                    if let Ok(found) = held(&dir) {
                        assert!(found == *state, "seed {seed}: {} at {at}", path.display());
                    }
                }
                std::fs::remove_dir_all(&dir).unwrap();
            }
        }
    }
}

/// Where another process of this test finds the index it is to compact.
const COMPACTED: &str = "STRONGROOM_TEST_COMPACTED";

/// A process that compacts is stopped at many points, and the files are copied as they are then: what a kill leaves. Each copy
/// holds all there is.
#[test]
fn a_compaction_that_ends_anywhere_leaves_everything() {
    if let Some(dir) = std::env::var_os(COMPACTED) {
        let index = Index::open(Path::new(&dir), &store_key()).unwrap();
        return index.compact().unwrap();
    }
    for seed in 0..rounds().min(10) {
        let mut rng = Rng::new(seed);
        let root = tempfile::tempdir().unwrap();
        let live = root.path().join("live");
        let mut state = State::new();
        let index = Index::open(&live, &store_key()).unwrap();
        for sequence in 1..=40 {
            commit(&index, &mut rng, sequence, &mut state);
            if sequence % 12 == 0 {
                for space in Space::ALL {
                    index.space(space).rotate_memtable_and_wait().unwrap();
                }
            }
        }
        drop(index);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--test-threads=1"])
            .arg("index::faults::a_compaction_that_ends_anywhere_leaves_everything")
            .env(COMPACTED, &live)
            .stdout(std::process::Stdio::null())
            .spawn()
            .map(Compacting)
            .unwrap();
        let mut stops = 0;
        let status = loop {
            std::thread::sleep(Duration::from_micros(200 + rng.below(15_000)));
            if let Some(status) = child.0.try_wait().unwrap() {
                break status;
            }
            if !stop(&child) {
                continue;
            }
            let dir = root.path().join("stopped");
            copy(&live, &dir);
            signal(&child, "-CONT");
            let found = held(&dir).unwrap_or_else(|e| panic!("seed {seed}, stop {stops}: {e}"));
            assert!(found == state, "seed {seed}, stop {stops}");
            std::fs::remove_dir_all(&dir).unwrap();
            stops += 1;
        };
        assert!(status.success() && stops > 3, "{status}, {stops} stops");
        assert!(held(&live).unwrap() == state, "seed {seed}");
    }
}

/// The process that compacts. It does not outlive the test.
struct Compacting(std::process::Child);

impl Drop for Compacting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Compacting, name: &str) {
    let mut kill = std::process::Command::new("kill");
    let sent = kill.arg(name).arg(child.0.id().to_string()).status();
    assert!(sent.is_ok());
}

/// Stops a process with all its threads; false where it has ended.
fn stop(child: &Compacting) -> bool {
    signal(child, "-STOP");
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.0.id()));
        let states: Vec<Option<u8>> = tasks
            .into_iter()
            .flatten()
            .flatten()
            .map(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
                stat.rsplit_once(") ")?.1.bytes().next()
            })
            .collect();
        if states.iter().any(|s| matches!(s, None | Some(b'Z' | b'X'))) || states.is_empty() {
            return false;
        }
        if states.iter().all(|s| *s == Some(b'T')) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}
