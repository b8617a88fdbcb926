//! The engine's verbs on a real disk: what goes in comes out, survives a crash, and gives its space back.

mod cache;
mod drives;
mod recover;
mod rewrap;
mod tally;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_lite::future::poll_once;
use glommio::{LocalExecutorBuilder, Placement};
use strongroom_engine::record::{Encryption, Mode, UploadId};
use strongroom_engine::secret::Secret;
use strongroom_engine::{
    Completion, Condition, DataDir, Engine, EngineOptions, Error, EtagMatch, Finish, ListEntry,
    ListQuery, NewUpload, Observer, PartChoice, Shard, Target, UploadQuery, blocking, end_blocking,
};

const KEY: [u8; 32] = [5; 32];
const BUCKET: &str = "bucket";
/// What the copy of an index of next to nothing takes in segments.
const COPY_MAX: u64 = 100_000;

fn options() -> EngineOptions {
    EngineOptions {
        shards: 1,
        cache_bytes: 0,
        fatal: |e| panic!("fatal: {e}"),
    }
}

/// How a run of the store ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Close,
    Crash,
}

/// Opens the store in `dir`, runs `work` on one shard, and ends as told.
fn with_store<F: Future<Output = ()> + 'static>(
    dir: &Path,
    end: End,
    work: impl FnOnce(Rc<Shard>) -> F + Send + 'static,
) {
    with_observer(dir, end, &options(), |shard, _| work(shard));
}

/// The same with other options, and with a view of the whole store.
fn with_observer<F: Future<Output = ()> + 'static>(
    dir: &Path,
    end: End,
    options: &EngineOptions,
    work: impl FnOnce(Rc<Shard>, Observer) -> F + Send + 'static,
) {
    let held = DataDir::lock(dir).unwrap();
    if held.superblock().unwrap().is_none() {
        held.create([1; 16], b"key").unwrap();
    }
    let engine = Engine::open(&held, &Secret::new([9; 32]), options).unwrap();
    let (seed, observer) = (engine.shard(0), engine.observer());
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .spawn(move || async move {
            let shard = seed.open().await.unwrap();
            if shard.bucket(BUCKET).is_err() {
                shard.create_bucket(BUCKET).await.unwrap();
            }
            work(Rc::clone(&shard), observer).await;
            if end == End::Close {
                shard.close().await;
            }
            end_blocking().await;
        })
        .unwrap()
        .join()
        .unwrap();
    match end {
        End::Close => engine.close(),
        // The index cannot be opened twice in a process, so the threads end, but nothing is tidied.
        End::Crash => engine.abandon(),
    }
}

fn encryption() -> Encryption {
    Encryption {
        mode: Mode::SseS3,
        iv: [1; 32],
        sealed_key: [2; 64],
        kms: None,
    }
}

fn plain(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed)
        .collect()
}

fn target(key: &str, size: usize, sealed: bool) -> Target {
    Target {
        bucket: BUCKET.into(),
        key: key.into(),
        size: size as u64,
        metadata: Default::default(),
        encryption: sealed.then(encryption),
        part: None,
    }
}

async fn put(
    shard: &Rc<Shard>,
    key: &str,
    data: &[u8],
    sealed: bool,
) -> strongroom_engine::Result<()> {
    put_if(shard, key, data, sealed, Condition::default()).await
}

async fn put_if(
    shard: &Rc<Shard>,
    key: &str,
    data: &[u8],
    sealed: bool,
    condition: Condition,
) -> strongroom_engine::Result<()> {
    let secret = Secret::new(KEY);
    let mut stream = shard
        .put(target(key, data.len(), sealed), sealed.then_some(&secret))
        .await?;
    for piece in data.chunks(70_001) {
        stream.write(piece).await?;
    }
    let finish = Finish {
        etag: format!("etag-{}", data.len()),
        condition,
        ..Default::default()
    };
    stream.commit(finish).await.map(|_| ())
}

async fn get(
    shard: &Rc<Shard>,
    key: &str,
    from: usize,
    to: usize,
) -> strongroom_engine::Result<Vec<u8>> {
    let found = shard.lookup(BUCKET, key).await?;
    let secret = Secret::new(KEY);
    let key = found.object.encryption.as_ref().map(|_| &secret);
    let mut stream = shard.read(&found, from as u64..to as u64, key).await?;
    let mut out = Vec::new();
    while let Some(bytes) = stream.next().await {
        out.extend_from_slice(&bytes?);
    }
    Ok(out)
}

async fn put_part(shard: &Rc<Shard>, key: &str, id: UploadId, number: u16, data: &[u8]) -> u64 {
    let mut target = target(key, data.len(), false);
    target.part = Some((id, number));
    let mut stream = shard.put(target, Some(&Secret::new(KEY))).await.unwrap();
    stream.write(data).await.unwrap();
    stream
        .commit_part(format!("part-{number}"), None)
        .await
        .unwrap()
        .sequence
}

async fn keys(shard: &Rc<Shard>, query: ListQuery) -> (Vec<String>, bool) {
    let page = shard.list(BUCKET, query).await.unwrap();
    let names = page
        .entries
        .into_iter()
        .map(|e| match e {
            ListEntry::Object(key, _) => key,
            ListEntry::Prefix(prefix) => format!("{prefix}*"),
        })
        .collect();
    (names, page.more)
}

fn segment_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir.join("segments"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().blocks() * 512)
        .sum()
}

/// Runs `check` until it holds, a few seconds at most.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..200 {
        if check() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{what} did not come about");
}

const SIZES: [usize; 14] = [
    0,
    1,
    16_384,
    16_385,
    65_536,
    65_537,
    1_048_576,
    1_100_000,
    128 * 65_536 - 1,
    128 * 65_536,
    128 * 65_536 + 1,
    8_392_704,
    8_392_705,
    20_000_000,
];

#[test]
fn what_goes_in_comes_out_at_every_size_sealed_and_not() {
    let dir = tempfile::tempdir().unwrap();
    for (round, end) in [End::Close, End::Crash, End::Close].into_iter().enumerate() {
        with_store(dir.path(), end, move |shard| async move {
            for (i, size) in SIZES.into_iter().enumerate() {
                for sealed in [true, false] {
                    let key = format!("{sealed}/{size}");
                    let data = plain(size, i as u8);
                    if round == 0 {
                        put(&shard, &key, &data, sealed).await.unwrap();
                    }
                    let ranges = [
                        (0, size),
                        (size / 2, size),
                        (size.saturating_sub(70_000), size.saturating_sub(1)),
                        (size.min(65_536), size.min(65_537)),
                        (size.min(8_388_607), size.min(8_388_700)),
                        (0, size.min(1)),
                    ];
                    for (from, to) in ranges {
                        let from = from.min(to);
                        let got = get(&shard, &key, from, to).await.unwrap();
                        assert!(got == data[from..to], "{key} {from}..{to} in round {round}");
                    }
                }
            }
        });
    }
}

/// Longer than the index can hold, which a list of keys to delete may name.
#[test]
fn a_key_that_is_too_long_is_refused_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        for len in [1025, 65_500, 65_535, 65_536, 1 << 20] {
            let key = "k".repeat(len);
            let e = shard.delete(BUCKET, &key, &Condition::default()).await;
            assert!(matches!(e, Err(Error::TooLarge { .. })), "{len}: {e:?}");
            let e = put(&shard, &key, b"", true).await;
            assert!(matches!(e, Err(Error::TooLarge { .. })), "{len}: {e:?}");
            let e = shard.lookup(BUCKET, &key).await.map(drop);
            assert!(matches!(e, Err(Error::NoSuchKey)), "{len}: {e:?}");
        }
    });
}

/// The last package ends anywhere around the end of a write buffer, its tag on both sides of it included.
#[test]
fn streams_may_end_around_the_end_of_a_write_buffer() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        let new = NewUpload {
            encryption: Some(encryption()),
            ..Default::default()
        };
        let upload = shard.create_upload(BUCKET, "parts", new).await.unwrap();
        // In front of the data lie a key, if it is no part, and a head.
        for lead in 1..=3 {
            let sealed = (1 << 20) - lead * 4096;
            let whole = sealed - 32 * usize::div_ceil(sealed, 65_568);
            for size in (whole - 20)..=(whole + 20) {
                let data = plain(size, lead as u8);
                put(&shard, "one", &data, true).await.unwrap();
                let read = get(&shard, "one", 0, size).await.unwrap();
                assert!(read == data, "{size} bytes");
                put_part(&shard, "parts", upload, 1, &data).await;
            }
        }
    });
}

#[test]
fn conditions_are_decided_on_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        let none_match = Condition {
            if_none_match: Some(EtagMatch::Any),
            ..Default::default()
        };
        let matches = |tag: &str| Condition {
            if_match: Some(EtagMatch::Tags(vec![tag.into()])),
            ..Default::default()
        };
        put_if(&shard, "k", b"1", true, none_match.clone())
            .await
            .unwrap();
        assert!(matches!(
            put_if(&shard, "k", b"22", true, none_match).await,
            Err(Error::PreconditionFailed { .. })
        ));
        assert!(matches!(
            put_if(&shard, "absent", b"22", true, matches("x")).await,
            Err(Error::NoSuchKey)
        ));
        put_if(&shard, "k", b"22", true, matches("etag-1"))
            .await
            .unwrap();
        assert!(matches!(
            shard.delete(BUCKET, "k", &matches("etag-1")).await,
            Err(Error::PreconditionFailed { .. })
        ));
        assert!(shard.delete(BUCKET, "k", &matches("etag-2")).await.unwrap());
        assert!(
            !shard
                .delete(BUCKET, "k", &Condition::default())
                .await
                .unwrap()
        );
        // Many at once: exactly one creates.
        let racers: Vec<_> = (0..32)
            .map(|_| {
                let shard = Rc::clone(&shard);
                glommio::spawn_local(async move {
                    let condition = Condition {
                        if_none_match: Some(EtagMatch::Any),
                        ..Default::default()
                    };
                    put_if(&shard, "race", &plain(100_000, 1), true, condition)
                        .await
                        .is_ok()
                })
            })
            .collect();
        let mut won = 0;
        for racer in racers {
            won += usize::from(racer.await);
        }
        assert_eq!(won, 1);
    });
}

#[test]
fn multipart_uploads_are_made_replaced_completed_and_aborted() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Crash, |shard| async move {
        let new = NewUpload {
            encryption: Some(encryption()),
            ..Default::default()
        };
        let id = shard.create_upload(BUCKET, "m", new.clone()).await.unwrap();
        let two = put_part(&shard, "m", id, 2, &plain(5_300_000, 2)).await;
        put_part(&shard, "m", id, 1, &plain(6_000_000, 9)).await;
        let one = put_part(&shard, "m", id, 1, &plain(9_000_000, 1)).await;
        let three = put_part(&shard, "m", id, 3, &plain(10, 3)).await;
        put_part(&shard, "m", id, 7, &plain(100_000, 7)).await;
        let (parts, more) = shard.parts(BUCKET, "m", &id, 0, 3).await.unwrap();
        assert_eq!(
            parts.iter().map(|p| p.number).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert!(more);
        let uploads = shard
            .list_uploads(
                BUCKET,
                UploadQuery {
                    max: 10,
                    ..Default::default()
                },
            )
            .await
            .unwrap();
        assert_eq!(uploads.uploads.len(), 1);
        let choose = |one| Completion {
            parts: [(1, one), (2, two), (3, three)]
                .map(|(number, sequence)| PartChoice { number, sequence })
                .to_vec(),
            etag: "multi-3".into(),
            ..Default::default()
        };
        assert!(matches!(
            shard
                .complete_upload(BUCKET, "m", &id, choose(one + 1))
                .await,
            Err(Error::InvalidPart { number: 1 })
        ));
        shard
            .complete_upload(BUCKET, "m", &id, choose(one))
            .await
            .unwrap();
        assert!(matches!(
            shard.complete_upload(BUCKET, "m", &id, choose(one)).await,
            Err(Error::NoSuchUpload)
        ));
        let aborted = shard.create_upload(BUCKET, "other", new).await.unwrap();
        put_part(&shard, "other", aborted, 1, &plain(6_000_000, 1)).await;
        shard.abort_upload(BUCKET, "other", &aborted).await.unwrap();
    });
    with_store(dir.path(), End::Close, |shard| async move {
        let whole = [plain(9_000_000, 1), plain(5_300_000, 2), plain(10, 3)].concat();
        for (from, to) in [
            (0, whole.len()),
            (8_999_990, 9_000_020),
            (14_299_999, 14_300_010),
        ] {
            assert!(
                get(&shard, "m", from, to).await.unwrap() == whole[from..to],
                "{from}..{to}"
            );
        }
        assert!(
            shard
                .delete(BUCKET, "m", &Condition::default())
                .await
                .unwrap()
        );
        shard.delete_bucket(BUCKET).await.unwrap();
    });
    eventually("all space coming back", || {
        segment_bytes(dir.path()) < COPY_MAX
    });
}

#[test]
fn listings_roll_up_and_page_in_byte_order() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        let names = ["a", "a/", "a//b", "a/b", "a/b/c", "a\0b", "b", "é/x", "~"];
        for name in names {
            put(&shard, name, b"x", true).await.unwrap();
        }
        let query = |delimiter: Option<&str>, prefix: &str, after: Option<&str>, max| ListQuery {
            prefix: prefix.into(),
            delimiter: delimiter.map(Into::into),
            after: after.map(Into::into),
            max,
        };
        let mut sorted = names.map(String::from).to_vec();
        sorted.sort();
        assert_eq!(
            keys(&shard, query(None, "", None, 100)).await,
            (sorted.clone(), false)
        );
        let (rolled, _) = keys(&shard, query(Some("/"), "", None, 100)).await;
        assert_eq!(rolled, ["a", "a\0b", "a/*", "b", "~", "é/*"]);
        let (inside, _) = keys(&shard, query(Some("/"), "a/", None, 100)).await;
        assert_eq!(inside, ["a/", "a//*", "a/b", "a/b/*"]);
        // Page by page gives the same, with and without a delimiter.
        for delimiter in [None, Some("/")] {
            let (all, _) = keys(&shard, query(delimiter, "", None, 100)).await;
            let mut paged = Vec::new();
            loop {
                let after: Option<&String> = paged.last();
                let after = after.map(|a| a.trim_end_matches('*'));
                let (page, more) = keys(&shard, query(delimiter, "", after, 2)).await;
                paged.extend(page);
                if !more {
                    break;
                }
            }
            assert_eq!(paged, all);
        }
        assert!(matches!(
            shard.list("nope", ListQuery::default()).await,
            Err(Error::NoSuchBucket)
        ));
        assert!(matches!(
            shard.delete_bucket(BUCKET).await,
            Err(Error::BucketNotEmpty)
        ));
    });
}

#[test]
fn uploads_left_behind_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let (path, crashed_path) = (dir.path().to_path_buf(), crashed.path().to_path_buf());
    with_store(dir.path(), End::Close, move |shard| async move {
        put(&shard, "kept", &plain(3_000_000, 1), true)
            .await
            .unwrap();
        let before = segment_bytes(&path);
        // Dropped in the middle, and one that fails its condition at the end.
        let secret = Secret::new(KEY);
        let mut half = shard
            .put(target("half", 30_000_000, true), Some(&secret))
            .await
            .unwrap();
        half.write(&plain(20_000_000, 2)).await.unwrap();
        drop(half);
        let exists = Condition {
            if_none_match: Some(EtagMatch::Any),
            ..Default::default()
        };
        put_if(&shard, "kept", &plain(9_000_000, 3), true, exists)
            .await
            .unwrap_err();
        for _ in 0..100 {
            glommio::timer::sleep(std::time::Duration::from_millis(50)).await;
            if segment_bytes(&path) < before + 9_000_000 {
                break;
            }
        }
        assert!(
            segment_bytes(&path) < before + 9_000_000,
            "given back while running"
        );
        // And one that the crash cuts off.
        let mut lost = shard
            .put(target("lost", 30_000_000, true), Some(&secret))
            .await
            .unwrap();
        lost.write(&plain(20_000_000, 4)).await.unwrap();
        glommio::timer::sleep(std::time::Duration::from_millis(200)).await;
        copy_dir(&path, &crashed_path);
        drop(lost);
    });
    assert!(
        segment_bytes(crashed.path()) > 20_000_000,
        "the crash left the upload's bytes"
    );
    with_store(crashed.path(), End::Close, |shard| async move {
        assert!(get(&shard, "kept", 0, 3_000_000).await.unwrap() == plain(3_000_000, 1));
        let (all, _) = keys(
            &shard,
            ListQuery {
                max: 10,
                ..Default::default()
            },
        )
        .await;
        assert_eq!(all, ["kept"]);
    });
    let bytes = segment_bytes(crashed.path());
    assert!(bytes < 3_300_000, "{bytes} bytes for 3,000,000 live ones");
}

fn disk_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| match e.file_type() {
            Ok(kind) if kind.is_dir() => disk_bytes(&e.path()),
            // A file can go between the listing and the look.
            _ => e.metadata().map_or(0, |m| m.blocks() * 512),
        })
        .sum()
}

#[test]
fn small_objects_deleted_leave_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index");
    with_store(dir.path(), End::Close, move |shard| async move {
        for round in 0..2 {
            let puts: Vec<_> = (0..3000)
                .map(|i| {
                    let shard = Rc::clone(&shard);
                    glommio::spawn_local(async move {
                        put(&shard, &format!("k{i}"), &plain(9_000, round), true).await
                    })
                })
                .collect();
            for put in puts {
                put.await.unwrap();
            }
        }
        assert_eq!(get(&shard, "k7", 0, 9_000).await.unwrap(), plain(9_000, 1));
        assert!(disk_bytes(&index) > 27_000_000);
        for i in 1..3000 {
            shard
                .delete(BUCKET, &format!("k{i}"), &Condition::default())
                .await
                .unwrap();
        }
        let begun = std::time::Instant::now();
        while disk_bytes(&index) > 3_000_000 {
            assert!(
                begun.elapsed().as_secs() < 20,
                "{} bytes are left",
                disk_bytes(&index)
            );
            glommio::timer::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert_eq!(get(&shard, "k0", 0, 9_000).await.unwrap(), plain(9_000, 1));
    });
    with_store(dir.path(), End::Close, |shard| async move {
        assert_eq!(get(&shard, "k0", 0, 9_000).await.unwrap(), plain(9_000, 1));
    });
}

#[test]
fn a_reader_keeps_what_it_reads_until_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        let old = plain(12_000_000, 1);
        put(&shard, "k", &old, true).await.unwrap();
        let found = shard.lookup(BUCKET, "k").await.unwrap();
        let secret = Secret::new(KEY);
        let mut stream = shard
            .read(&found, 0..12_000_000, Some(&secret))
            .await
            .unwrap();
        let mut got = stream.next().await.unwrap().unwrap().to_vec();
        put(&shard, "k", b"new", true).await.unwrap();
        drop(found);
        glommio::timer::sleep(std::time::Duration::from_millis(300)).await;
        while let Some(bytes) = stream.next().await {
            got.extend_from_slice(&bytes.unwrap());
        }
        assert!(got == old);
        assert_eq!(get(&shard, "k", 0, 3).await.unwrap(), b"new");
    });
    eventually("the old version's space coming back", || {
        segment_bytes(dir.path()) < COPY_MAX
    });
}

#[test]
fn damaged_segments_are_errors_and_never_other_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = plain(300_000, 1);
    let wrote = data.clone();
    with_store(dir.path(), End::Close, |shard| async move {
        put(&shard, "k", &wrote, true).await.unwrap();
    });
    let segment = std::fs::read_dir(dir.path().join("segments"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let pristine = std::fs::read(&segment).unwrap();
    // A bit in a header, in a ciphertext, in a tag; two packages swapped; one duplicated; cut off.
    let package = 65_568;
    let data_at = 2 * 4096;
    let mut cases: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (name, at) in [
        ("header", 5),
        ("ciphertext", 30_000),
        ("tag", package - 3),
        ("last", 4 * package + 40),
    ] {
        let mut bytes = pristine.clone();
        bytes[data_at + at] ^= 4;
        cases.insert(name, bytes);
    }
    let mut swapped = pristine.clone();
    let (one, two) = swapped[data_at..data_at + 2 * package].split_at_mut(package);
    one.swap_with_slice(two);
    cases.insert("swapped", swapped);
    let mut doubled = pristine.clone();
    doubled.copy_within(data_at..data_at + package, data_at + package);
    cases.insert("doubled", doubled);
    cases.insert("cut", pristine[..data_at + 2 * package].to_vec());
    for (name, bytes) in cases {
        std::fs::write(&segment, &bytes).unwrap();
        let data = data.clone();
        with_store(dir.path(), End::Close, move |shard| async move {
            let found = shard.lookup(BUCKET, "k").await.unwrap();
            let mut stream = shard
                .read(&found, 0..300_000, Some(&Secret::new(KEY)))
                .await
                .unwrap();
            let mut got = Vec::new();
            let error = loop {
                match stream.next().await {
                    Some(Ok(bytes)) => got.extend_from_slice(&bytes),
                    Some(Err(e)) => break e,
                    None => panic!("{name}: no error"),
                }
            };
            assert!(matches!(error, Error::Corrupt { .. }), "{name}: {error}");
            assert!(data.starts_with(&got), "{name}: only true bytes came out");
        });
    }
    std::fs::write(&segment, &pristine).unwrap();
}

#[test]
fn an_index_older_than_its_segments_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Crash, |shard| async move {
        put(&shard, "first", &plain(100_000, 1), true)
            .await
            .unwrap();
    });
    // A copy of the index as it was, put back later.
    let copy = tempfile::tempdir().unwrap();
    copy_dir(&dir.path().join("index"), copy.path());
    with_store(dir.path(), End::Crash, |shard| async move {
        put(&shard, "second", &plain(100_000, 2), true)
            .await
            .unwrap();
        put(&shard, "third", &plain(100_000, 3), true)
            .await
            .unwrap();
    });
    let before: Vec<(std::path::PathBuf, u64)> = segments(dir.path());
    let newer = tempfile::tempdir().unwrap();
    copy_dir(&dir.path().join("index"), newer.path());
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    copy_dir(copy.path(), &dir.path().join("index"));
    let held = DataDir::lock(dir.path()).unwrap();
    let refused = Engine::open(&held, &Secret::new([9; 32]), &options())
        .err()
        .expect("refused");
    assert!(
        matches!(&refused, Error::Unusable(text) if text.contains("recover")),
        "{refused}"
    );
    drop(held);
    assert_eq!(segments(dir.path()), before);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    copy_dir(newer.path(), &dir.path().join("index"));
    with_store(dir.path(), End::Close, |shard| async move {
        for (key, seed) in [("first", 1), ("second", 2), ("third", 3)] {
            assert!(
                get(&shard, key, 0, 100_000).await.unwrap() == plain(100_000, seed),
                "{key}"
            );
        }
    });
}

fn segments(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut all: Vec<_> = std::fs::read_dir(dir.join("segments"))
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.path(), e.metadata().unwrap().blocks()))
        .collect();
    all.sort();
    all
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn nothing_written_lies_on_disk_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    let canary = b"CANARY-7f3a-strongroom";
    with_store(dir.path(), End::Close, move |shard| async move {
        for size in [100usize, 20_000, 3_000_000] {
            let mut data = plain(size, 3);
            data[..canary.len()].copy_from_slice(canary);
            let mut t = target(&format!("k{size}"), size, true);
            let text = String::from_utf8(canary.to_vec()).unwrap();
            t.metadata.user.insert("note".into(), text.clone());
            t.metadata.headers.insert("content-type".into(), text);
            let mut stream = shard.put(t, Some(&Secret::new(KEY))).await.unwrap();
            stream.write(&data).await.unwrap();
            stream.commit(Finish::default()).await.unwrap();
        }
    });
    let mut searched = 0;
    let mut dirs = vec![dir.path().to_path_buf()];
    while let Some(d) = dirs.pop() {
        for entry in std::fs::read_dir(d).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let file = std::fs::File::open(&path).unwrap();
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            searched += bytes.len();
            assert!(
                !bytes.windows(canary.len()).any(|w| w == canary),
                "{}",
                path.display()
            );
        }
    }
    assert!(searched > 3_000_000);
}

/// An upload that is dropped while it waits for a write gives its space back behind that write.
#[test]
fn uploads_dropped_during_a_write_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    with_store(dir.path(), End::Close, move |shard| async move {
        put(&shard, "kept", &plain(100_000, 1), true).await.unwrap();
        let data = plain(900_000, 2);
        for _ in 0..60 {
            let secret = Secret::new(KEY);
            let target = target("gone", data.len() + 1_000_000, true);
            let mut stream = shard.put(target, Some(&secret)).await.unwrap();
            // Either polled until it waits for the disk, and dropped there, or soon after.
            let _ = poll_once(async { while stream.write(&data[..90_000]).await.is_ok() {} }).await;
            drop(stream);
        }
        let enough = || segment_bytes(&path) < 12_000_000;
        for _ in 0..100 {
            if enough() {
                break;
            }
            glommio::timer::sleep(Duration::from_millis(50)).await;
        }
        assert!(enough(), "{} bytes", segment_bytes(&path));
        let read = get(&shard, "kept", 0, 100_000).await.unwrap();
        assert!(read == plain(100_000, 1));
    });
}

/// glommio's helper threads panic when they have an answer and nobody is left to take it.
#[test]
fn an_executor_ends_after_its_helpers() {
    let (began, begun) = mpsc::channel();
    let (finished, finish) = mpsc::channel();
    let late = finished.clone();
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .spawn(|| async move {
            let work = blocking(move || {
                began.send(()).unwrap();
                thread::sleep(Duration::from_millis(200));
                finished.send("what was under way").unwrap();
            });
            // Whoever asked goes away.
            assert_eq!(poll_once(work).await, None);
            end_blocking().await;
            begun.recv().unwrap();
            let work = blocking(move || late.send("what came too late").unwrap());
            assert_eq!(poll_once(work).await, None);
        })
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(
        finish.try_iter().collect::<Vec<_>>(),
        ["what was under way"]
    );
}
