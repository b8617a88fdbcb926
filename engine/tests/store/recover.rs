//! Verification finds every kind of damage, and recovery brings back what is in segments: on copies of real stores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use strongroom_engine::record::{Encryption, UploadId};
use strongroom_engine::secret::Secret;
use strongroom_engine::{
    Completion, Condition, DataDir, Engine, Error, Event, Finding, KeyAnswer, ListEntry, ListQuery,
    NewUpload, ObjectKeys, PartChoice, Recovery, Shard, Verified, export, rebuild, verify,
};

use super::{
    BUCKET, End, KEY, copy_dir, encryption, get, options, plain, put, put_part, segments,
    with_store,
};

const STORE_KEY: [u8; 32] = [9; 32];

/// What objects there are, by key.
type State = BTreeMap<String, Vec<u8>>;

struct TestKeys {
    at_hand: bool,
}

impl ObjectKeys for TestKeys {
    fn open(&self, _: &str, _: &str, _: &Encryption) -> KeyAnswer {
        match self.at_hand {
            true => KeyAnswer::Key(Secret::new(KEY)),
            false => KeyAnswer::NotAtHand,
        }
    }
}

#[derive(Debug, Default)]
struct Said {
    rotten: BTreeSet<String>,
    unsealed: BTreeSet<String>,
    damage: Vec<String>,
}

fn look(dir: &Path, at_hand: bool) -> Result<(Verified, Said), Error> {
    let held = DataDir::lock(dir).unwrap();
    let said = Mutex::new(Said::default());
    let say = |event: Event<'_>| {
        let mut said = said.lock().unwrap();
        match event {
            Event::Rotten { key, .. } => drop(said.rotten.insert(key.into())),
            Event::Unsealed { key, .. } => drop(said.unsealed.insert(key.into())),
            Event::Damage(what) => said.damage.push(what),
            Event::Note(_) | Event::Progress { .. } => {}
        }
    };
    let keys = TestKeys { at_hand };
    let nothing_beside = |_: &str| false;
    let found = verify(&held, &Secret::new(STORE_KEY), &keys, &nothing_beside, &say)?;
    Ok((found, said.into_inner().unwrap()))
}

fn assert_sound(dir: &Path) -> Verified {
    let (found, said) = look(dir, true).unwrap();
    assert!(found.is_sound(), "{said:?}");
    assert!(!dir.join("index.read").exists());
    found
}

fn recover(dir: &Path) -> (Recovery, Vec<String>) {
    let held = DataDir::lock(dir).unwrap();
    let lost = Mutex::new(Vec::new());
    let say = |finding: Finding<'_>| match finding {
        Finding::Lost { key, why, .. } => lost.lock().unwrap().push(format!("{key}: {why}")),
        Finding::Note(what) => eprintln!("{what}"),
    };
    let done = rebuild(&held, &Secret::new(STORE_KEY), &say).unwrap();
    (done, lost.into_inner().unwrap())
}

/// Reads every object, the store opened and closed again.
fn state(dir: &Path) -> State {
    let (tell, told) = mpsc::channel();
    with_store(dir, End::Close, move |shard| async move {
        tell.send(read_all(&shard).await).unwrap();
    });
    told.recv().unwrap()
}

async fn read_all(shard: &Rc<Shard>) -> State {
    let query = ListQuery {
        max: 1000,
        ..Default::default()
    };
    let page = shard.list(BUCKET, query).await.unwrap();
    let mut all = State::new();
    for entry in page.entries {
        let ListEntry::Object(key, object) = entry else {
            panic!("no delimiter was given")
        };
        let bytes = get(shard, &key, 0, object.size as usize).await;
        all.insert(key.clone(), bytes.unwrap_or_else(|e| panic!("{key}: {e}")));
    }
    all
}

async fn multipart(shard: &Rc<Shard>, key: &str, sizes: &[usize], seed: u8) -> Vec<u8> {
    let new = NewUpload {
        encryption: Some(encryption()),
        ..Default::default()
    };
    let id = shard.create_upload(BUCKET, key, new).await.unwrap();
    let mut done = Completion {
        etag: "multi".into(),
        ..Default::default()
    };
    let mut whole = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let data = plain(*size, seed ^ i as u8);
        let number = i as u16 + 1;
        let sequence = put_part(shard, key, id, number, &data).await;
        done.parts.push(PartChoice { number, sequence });
        whole.extend_from_slice(&data);
    }
    shard.complete_upload(BUCKET, key, &id, done).await.unwrap();
    whole
}

/// A copy of a store that nobody has open.
fn copied(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    copy
}

/// Some of everything; returns what has to be in it.
fn make(dir: &Path, end: End) -> State {
    let (tell, told) = mpsc::channel();
    with_store(dir, end, move |shard| async move {
        let mut all = State::new();
        for (key, size) in [
            ("empty", 0),
            ("small", 900),
            ("large", 300_000),
            ("larger", 9_000_000),
        ] {
            let data = plain(size, 7);
            put(&shard, key, &data, true).await.unwrap();
            all.insert(key.into(), data);
        }
        let multi = multipart(&shard, "multi", &[100_000, 70_000, 10], 3).await;
        all.insert("multi".into(), multi);
        for (key, size) in [("gone", 900), ("gone too", 400_000)] {
            put(&shard, key, &plain(size, 1), true).await.unwrap();
        }
        for key in ["gone", "gone too"] {
            let deleted = shard.delete(BUCKET, key, &Condition::default()).await;
            assert!(deleted.unwrap());
        }
        tell.send(all).unwrap();
    });
    told.recv().unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn segment(dir: &Path) -> PathBuf {
    let all = segments(dir);
    let (path, _) = all.iter().max_by_key(|(_, blocks)| *blocks).unwrap();
    path.clone()
}

#[test]
fn a_sound_store_is_verified_with_and_without_keys() {
    let dir = tempfile::tempdir().unwrap();
    let all = make(dir.path(), End::Close);
    let bytes: usize = all.values().map(Vec::len).sum();
    let found = assert_sound(dir.path());
    assert_eq!((found.objects, found.opened), (5, 5));
    assert!(found.bytes >= bytes as u64 && found.named_bytes > found.bytes - 2_000);
    assert_eq!((found.orphan_bytes, found.unsettled_bytes), (0, 0));
    let (found, _) = look(dir.path(), false).unwrap();
    assert!(found.is_sound());
    assert_eq!((found.opened, found.not_at_hand), (0, 5));
    with_store(dir.path(), End::Crash, |shard| async move {
        put(&shard, "open", &plain(200_000, 1), false)
            .await
            .unwrap();
        // An upload that stays open.
        let new = NewUpload {
            encryption: Some(encryption()),
            ..Default::default()
        };
        let id = shard.create_upload(BUCKET, "m", new).await.unwrap();
        put_part(&shard, "m", id, 1, &plain(80_000, 1)).await;
        put_part(&shard, "m", id, 2, &plain(8, 1)).await;
    });
    let (found, said) = look(dir.path(), true).unwrap();
    assert!(found.is_sound(), "{said:?}");
    assert_eq!((found.objects, found.uploads, found.unsealed), (6, 1, 1));
    assert_eq!(said.unsealed, BTreeSet::from(["open".to_owned()]));
    assert_eq!(state(dir.path()).len(), 6, "verification changed nothing");
}

#[test]
fn no_byte_of_a_segment_can_change_unseen() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        put(&shard, "a", &plain(200_000, 1), true).await.unwrap();
        put(&shard, "small", &plain(100, 1), true).await.unwrap();
        multipart(&shard, "b", &[70_000, 65_536, 10], 3).await;
        put(&shard, "c", &plain(131_072, 1), true).await.unwrap();
    });
    assert_sound(dir.path());
    let file = segment(dir.path());
    let pristine = std::fs::read(&file).unwrap();
    let mut named = BTreeSet::new();
    for (n, at) in (0..pristine.len()).step_by(4096 + 1024 + 13).enumerate() {
        let mut bytes = pristine.clone();
        bytes[at] ^= 1 << (n % 8);
        std::fs::write(&file, bytes).unwrap();
        let (found, said) = look(dir.path(), n % 2 == 0).unwrap();
        let ciphertext = n % 2 == 1;
        assert!(!found.is_sound() || ciphertext, "byte {at}");
        assert!(said.rotten.len() <= 1, "byte {at}: {said:?}");
        named.extend(said.rotten);
    }
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    // Whole sectors: put elsewhere, doubled, taken away.
    type Change = fn(&mut Vec<u8>);
    let changes: [Change; 4] = [
        |bytes| {
            let (left, right) = bytes.split_at_mut(20 * 4096);
            left[10 * 4096..11 * 4096].swap_with_slice(&mut right[..4096]);
        },
        |bytes| bytes.copy_within(10 * 4096..11 * 4096, 20 * 4096),
        |bytes| bytes.truncate(40 * 4096),
        |bytes| bytes.extend_from_slice(&[1; 4096]),
    ];
    for (n, wrong) in changes.into_iter().enumerate() {
        std::fs::write(&file, &pristine).unwrap();
        change(&file, wrong);
        let (found, _) = look(dir.path(), true).unwrap();
        assert!(!found.is_sound(), "change {n}");
    }
    std::fs::remove_file(&file).unwrap();
    let (_, said) = look(dir.path(), true).unwrap();
    assert_eq!(said.rotten.len(), 3, "{said:?}");
}

#[test]
fn an_object_is_exported_verified_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let all = make(dir.path(), End::Close);
    let export = |key: &str| {
        let held = DataDir::lock(dir.path()).unwrap();
        let mut out = Vec::new();
        let open = |_: &Encryption| Ok(Secret::new(KEY));
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        let done = export(&held, &Secret::new(STORE_KEY), BUCKET, key, open, &mut sink);
        (done.map(drop), out)
    };
    for (key, data) in &all {
        let (done, out) = export(key);
        done.unwrap_or_else(|e| panic!("{key}: {e}"));
        assert!(out == *data, "{key}");
    }
    assert!(matches!(export("gone").0, Err(Error::NoSuchKey)));
    let file = segment(dir.path());
    let len = std::fs::metadata(&file).unwrap().len() as usize;
    change(&file, |bytes| bytes[len / 2] ^= 1);
    let (done, out) = export("larger");
    assert!(matches!(done, Err(Error::Corrupt { .. })));
    assert!(all["larger"].starts_with(&out) && out.len() < all["larger"].len());
}

#[test]
fn a_whole_index_is_left_as_it_is() {
    for end in [End::Close, End::Crash] {
        let dir = tempfile::tempdir().unwrap();
        let all = make(dir.path(), end);
        let before = copied(dir.path());
        let (done, lost) = recover(dir.path());
        assert!(done.was_whole && done.kept.is_none() && lost.is_empty());
        assert_eq!((done.buckets, done.objects), (1, 5));
        assert_eq!(files(before.path()), files(dir.path()));
        assert!(state(dir.path()) == all);
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_path_buf();
                all.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_lost_index_is_refused_and_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let all = make(dir.path(), End::Close);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let held = DataDir::lock(dir.path()).unwrap();
    let refused = Engine::open(&held, &Secret::new(STORE_KEY), &options());
    assert!(
        matches!(refused.err(), Some(Error::Unusable(text)) if text.contains("strongroom recover"))
    );
    drop(held);
    let (done, lost) = recover(dir.path());
    assert_eq!(
        (done.objects, done.buckets, done.lost),
        (5, 1, 0),
        "{lost:?}"
    );
    assert!(!done.was_whole && done.removals_unknown.is_some());
    assert_sound(dir.path());
    assert!(state(dir.path()) == all);
    assert_sound(dir.path());
    // It goes on as any store does, and a second loss is none either.
    with_store(dir.path(), End::Close, |shard| async move {
        put(&shard, "small", b"new", true).await.unwrap();
        put(&shard, "new", &plain(100_000, 5), true).await.unwrap();
        shard
            .delete(BUCKET, "multi", &Condition::default())
            .await
            .unwrap();
    });
    let mut all = all;
    all.insert("small".into(), b"new".to_vec());
    all.insert("new".into(), plain(100_000, 5));
    all.remove("multi");
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (_, lost) = recover(dir.path());
    assert!(lost.is_empty(), "{lost:?}");
    assert!(state(dir.path()) == all);
    assert_sound(dir.path());
}

/// Without any copy: what segments hold of themselves.
#[test]
fn large_objects_come_back_from_segments_alone() {
    let dir = tempfile::tempdir().unwrap();
    let all = make(dir.path(), End::Crash);
    with_store(dir.path(), End::Crash, |shard| async move {
        // Its newest wrapping holds.
        for n in [1, 2] {
            let found = shard.lookup(BUCKET, "large").await.unwrap();
            let wrapping = Encryption {
                iv: [n; 32],
                ..encryption()
            };
            shard
                .set_encryption(BUCKET, "large", found.sequence, wrapping)
                .await
                .unwrap();
        }
    });
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (done, _) = recover(dir.path());
    assert_eq!((done.objects, done.uploads, done.from_segments), (2, 1, 4));
    assert_sound(dir.path());
    with_store(dir.path(), End::Close, move |shard| async move {
        let found = shard.lookup(BUCKET, "large").await.unwrap();
        assert_eq!(found.object.encryption.as_ref().unwrap().iv, [2; 32]);
        assert_eq!(found.object.etag, "etag-300000");
        let read = read_all(&shard).await;
        assert_eq!(read.keys().collect::<Vec<_>>(), ["large", "larger"]);
        assert!(read.iter().all(|(key, data)| all[key] == *data));
        // The parts that were in segments make an upload that can be completed.
        let query = strongroom_engine::UploadQuery {
            max: 10,
            ..Default::default()
        };
        let page = shard.list_uploads(BUCKET, query).await.unwrap();
        let id: UploadId = page.uploads[0].id;
        let (parts, _) = shard.parts(BUCKET, "multi", &id, 0, 10).await.unwrap();
        assert_eq!(parts.len(), 2);
        let parts = parts.iter().map(|p| PartChoice {
            number: p.number,
            sequence: p.sequence,
        });
        let done = Completion {
            parts: parts.collect(),
            etag: "again".into(),
            ..Default::default()
        };
        shard
            .complete_upload(BUCKET, "multi", &id, done)
            .await
            .unwrap();
        let read = get(&shard, "multi", 0, 170_000).await.unwrap();
        assert!(all["multi"].starts_with(&read));
    });
}

#[test]
fn damage_anywhere_in_the_index_costs_nothing_that_was_copied() {
    let dir = tempfile::tempdir().unwrap();
    let all = make(dir.path(), End::Close);
    let index: Vec<PathBuf> = files(dir.path())
        .into_iter()
        .filter(|(name, bytes)| name.starts_with("index") && bytes.iter().any(|b| *b != 0))
        .map(|(name, _)| name)
        .collect();
    assert!(index.len() > 5, "{index:?}");
    // Each file in two of four ways, or in all; each way on half of the files.
    let ways = |n: usize| match std::env::var_os("STRONGROOM_TEST_LONG") {
        Some(_) => 0..4,
        None => n % 2 * 2..n % 2 * 2 + 2,
    };
    let cases = index.iter().enumerate();
    let cases = Mutex::new(cases.flat_map(|(n, name)| ways(n).map(move |way| (name, way))));
    let next = || cases.lock().unwrap().next();
    // Most of the time goes to waiting for the disk.
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some((name, n)) = next() {
                    let copy = copied(dir.path());
                    damage(&copy.path().join(name), n);
                    // Whatever verification says, it ends.
                    let _ = look(copy.path(), true);
                    let (_, lost) = recover(copy.path());
                    assert!(lost.is_empty(), "{} {n}: {lost:?}", name.display());
                    let read = state(copy.path());
                    assert!(read == all, "{} {n}: {:?}", name.display(), read.keys());
                    assert_sound(copy.path());
                }
            });
        }
    });
}

/// Changes a byte of a file, cuts it or removes it; what lies behind its last byte that is not 0 stays out of it.
fn damage(path: &Path, how: usize) {
    let bytes = std::fs::read(path).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).unwrap();
    match how {
        0 => change(path, |bytes| bytes[used / 3] ^= 0x10),
        1 => change(path, |bytes| bytes[used * 9 / 10] ^= 1),
        2 => change(path, |bytes| bytes.truncate(used / 2)),
        _ => std::fs::remove_file(path).unwrap(),
    }
}

/// A small history, the directory kept at each of its steps: each old index under the newest segments.
#[test]
fn an_older_index_is_brought_up_to_the_segments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let kept: Arc<Mutex<Vec<(tempfile::TempDir, State)>>> = Arc::default();
    let keep = Arc::clone(&kept);
    with_store(dir.path(), End::Crash, move |shard| async move {
        let mut all = State::new();
        let keep = |all: &State| {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(&path.join("index"), copy.path());
            keep.lock().unwrap().push((copy, all.clone()));
        };
        for n in 0..4u8 {
            let small = format!("small {n}");
            put(&shard, &small, &plain(500, n), true).await.unwrap();
            all.insert(small, plain(500, n));
            keep(&all);
            put(
                &shard,
                "over",
                &plain(100_000 * usize::from(n % 2) + 50, n),
                true,
            )
            .await
            .unwrap();
            all.insert("over".into(), plain(100_000 * usize::from(n % 2) + 50, n));
            keep(&all);
            let large = format!("large {n}");
            put(&shard, &large, &plain(60_000, n), true).await.unwrap();
            all.insert(large, plain(60_000, n));
            keep(&all);
            all.insert("m".into(), multipart(&shard, "m", &[20_000, 30], n).await);
            keep(&all);
            if n > 0 {
                for key in [format!("small {}", n - 1), format!("large {}", n - 1)] {
                    shard
                        .delete(BUCKET, &key, &Condition::default())
                        .await
                        .unwrap();
                    all.remove(&key);
                    keep(&all);
                }
            }
            shard.copy_index(n == 2).await.unwrap();
        }
        // What was freed is punched.
        glommio::timer::sleep(std::time::Duration::from_millis(500)).await;
        keep(&all);
    });
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    let end = kept.last().unwrap().1.clone();
    for (n, (index, _)) in kept.iter().enumerate() {
        let copy = copied(dir.path());
        std::fs::remove_dir_all(copy.path().join("index")).unwrap();
        copy_dir(index.path(), &copy.path().join("index"));
        let (_, lost) = recover(copy.path());
        let read = state(copy.path());
        assert!(read == end, "index {n}: {:?}, {lost:?}", read.keys());
        assert_sound(copy.path());
    }
    // And journals cut off anywhere.
    let journals = files(dir.path());
    let journals = journals
        .iter()
        .filter(|(name, _)| name.extension().is_some_and(|e| e == "jnl"));
    for (name, bytes) in journals {
        let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0);
        for n in 0..12 {
            let copy = copied(dir.path());
            change(&copy.path().join(name), |bytes| {
                bytes.truncate(used * n / 12)
            });
            recover(copy.path());
            assert!(
                state(copy.path()) == end,
                "{} cut at {n}/12",
                name.display()
            );
        }
    }
}

/// Random changes and rounds of copying; then the index goes, and all is as it was.
#[test]
fn copies_follow_any_history() {
    for seed in 1..4u64 {
        let dir = tempfile::tempdir().unwrap();
        let mut all = State::new();
        let mut random = seed;
        let mut chance = move |n: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for round in 0..3 {
            let steps: Vec<(u64, u64, usize, u8)> = (0..60)
                .map(|_| {
                    let size = [0, 20, 3_000, 16_384, 40_000][chance(5) as usize];
                    (chance(12), chance(9), size, chance(250) as u8)
                })
                .collect();
            let end = if round == 1 { End::Crash } else { End::Close };
            for (what, key, size, fill) in &steps {
                let key = format!("key {key}");
                match what {
                    0..=6 => drop(all.insert(key, plain(*size, *fill))),
                    7..=9 => drop(all.remove(&key)),
                    _ => {}
                }
            }
            with_store(dir.path(), end, move |shard| async move {
                for (what, key, size, fill) in steps {
                    let key = format!("key {key}");
                    match what {
                        0..=6 => put(&shard, &key, &plain(size, fill), true).await.unwrap(),
                        7..=9 => drop(
                            shard
                                .delete(BUCKET, &key, &Condition::default())
                                .await
                                .unwrap(),
                        ),
                        _ => shard.copy_index(what == 11).await.unwrap(),
                    }
                }
            });
            if round == 1 {
                assert!(state(dir.path()) == all);
            }
            assert_sound(dir.path());
            let copy = copied(dir.path());
            std::fs::remove_dir_all(copy.path().join("index")).unwrap();
            let (_, lost) = recover(copy.path());
            let read = state(copy.path());
            assert!(read == all, "seed {seed}, round {round}: {lost:?}");
            assert_sound(copy.path());
        }
    }
}

#[test]
fn the_scrub_reports_rot() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), End::Close);
    let file = segment(dir.path());
    let len = std::fs::metadata(&file).unwrap().len() as usize;
    change(&file, |bytes| bytes[len / 2] ^= 1);
    let held = DataDir::lock(dir.path()).unwrap();
    let mut engine = Engine::open(&held, &Secret::new(STORE_KEY), &options()).unwrap();
    let keys = || TestKeys { at_hand: true };
    engine
        .start_scrub(std::num::NonZeroU64::new(1 << 30).unwrap(), keys)
        .unwrap();
    for attempt in 0.. {
        let seen = engine.scrubbed();
        if seen.passes == 1 {
            assert_eq!((seen.objects, seen.rotten), (5, 1));
            break;
        }
        assert!(attempt < 600, "{seen:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    engine.close();
}
