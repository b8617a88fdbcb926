//! Another wrapping of an object's key takes the place of the old one, and everything else stays.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use strongroom_engine::record::{Encryption, Extent, KmsKey, Mode, Object, UploadId};
use strongroom_engine::secret::Secret;
use strongroom_engine::{
    Completion, Condition, Error, EtagMatch, NewUpload, PartChoice, Shard, UploadQuery,
    WrappedQuery,
};

use super::{
    BUCKET, COPY_MAX, End, KEY, encryption, eventually, get, plain, put, put_part, segment_bytes,
    target, with_store,
};

/// A wrapping that tells itself from others by `n`.
fn wrapping(n: u8) -> Encryption {
    Encryption {
        mode: Mode::SseKms,
        iv: [n; 32],
        sealed_key: [n; 64],
        kms: Some(KmsKey {
            source: "embedded".into(),
            name: format!("key-{n}"),
            version: u32::from(n),
            ciphertext: vec![n; 60],
            context: Default::default(),
            id_as_given: None,
            bucket_key: false,
        }),
    }
}

async fn rewrap(shard: &Rc<Shard>, key: &str, n: u8) -> (Object, Object) {
    let before = shard.lookup(BUCKET, key).await.unwrap();
    let committed = shard
        .set_encryption(BUCKET, key, before.sequence, wrapping(n))
        .await
        .unwrap();
    let after = shard.lookup(BUCKET, key).await.unwrap();
    assert_eq!(after.sequence, committed.sequence);
    assert_eq!(after.object.modified, committed.modified);
    assert!(after.sequence > before.sequence);
    let old = shard
        .set_encryption(BUCKET, key, before.sequence, wrapping(n + 100))
        .await;
    assert!(matches!(old, Err(Error::Conflict)), "{key}");
    (before.object.clone(), after.object.clone())
}

/// Makes `m` of three parts, one of them small; rewrapped while it is open.
async fn multipart(shard: &Rc<Shard>, key: &str, condition: Condition) -> Vec<u8> {
    let new = NewUpload {
        encryption: Some(encryption()),
        ..Default::default()
    };
    let id = shard.create_upload(BUCKET, key, new).await.unwrap();
    let pieces = [plain(6_000_000, 1), plain(5_300_000, 2), plain(10, 3)];
    let mut parts = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let number = i as u16 + 1;
        let sequence = put_part(shard, key, id, number, piece).await;
        parts.push(PartChoice { number, sequence });
        let sequence = upload_sequence(shard, id).await;
        shard
            .set_upload_encryption(BUCKET, key, &id, sequence, wrapping(50 + i as u8))
            .await
            .unwrap();
        let late = shard
            .set_upload_encryption(BUCKET, key, &id, sequence, wrapping(9))
            .await;
        assert!(matches!(late, Err(Error::Conflict)));
    }
    assert_eq!(
        shard.upload(BUCKET, key, &id).await.unwrap().encryption,
        Some(wrapping(52))
    );
    let done = Completion {
        parts,
        etag: "multi".into(),
        checksum: None,
        condition,
    };
    shard.complete_upload(BUCKET, key, &id, done).await.unwrap();
    let gone = shard
        .set_upload_encryption(BUCKET, key, &id, 1, wrapping(9))
        .await;
    assert!(matches!(gone, Err(Error::NoSuchUpload)));
    pieces.concat()
}

async fn upload_sequence(shard: &Rc<Shard>, id: UploadId) -> u64 {
    let query = UploadQuery {
        max: 10,
        ..Default::default()
    };
    let page = shard.list_uploads(BUCKET, query).await.unwrap();
    let entry = page.uploads.iter().find(|u| u.id == id);
    entry.unwrap().sequence
}

fn sector_of(dir: &Path, extent: Extent) -> Option<Vec<u8>> {
    let path = dir.join(format!("segments/{:016x}.seg", extent.segment));
    let mut bytes = vec![0; extent.sectors as usize * 4096];
    let file = std::fs::File::open(path).ok()?;
    file.read_exact_at(&mut bytes, u64::from(extent.start) * 4096)
        .ok()?;
    Some(bytes)
}

const SIZES: [usize; 5] = [0, 100, 16_384, 100_000, 20_000_000];

#[test]
fn only_the_wrapping_changes_and_the_old_one_is_punched() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().into();
    with_store(dir.path(), End::Crash, move |shard| async move {
        let mut old_keys = Vec::new();
        let mut names = Vec::new();
        for (i, size) in SIZES.into_iter().enumerate() {
            let key = format!("{size}");
            put(&shard, &key, &plain(size, i as u8), true)
                .await
                .unwrap();
            names.push(key);
        }
        multipart(&shard, "m", Condition::default()).await;
        names.push("m".into());
        for key in &names {
            for n in [1, 2] {
                let (before, after) = rewrap(&shard, key, n).await;
                assert_eq!(after.encryption, Some(wrapping(n)));
                assert_eq!(after.key_extent.is_some(), before.key_extent.is_some());
                let other = Object {
                    encryption: before.encryption.clone(),
                    key_extent: before.key_extent,
                    origin: before.origin,
                    ..after.clone()
                };
                assert_eq!(other, before, "nothing else changes");
                if let (Some(old), Some(new)) = (before.key_extent, after.key_extent) {
                    assert!(new.sequence > old.sequence);
                    old_keys.push(old);
                }
            }
        }
        assert_eq!(old_keys.len(), 2 * 3);
        let absent = shard.set_encryption(BUCKET, "absent", 1, wrapping(1)).await;
        assert!(matches!(absent, Err(Error::NoSuchKey)));
        for old in old_keys {
            for attempt in 0.. {
                let sectors = sector_of(&path, old);
                if sectors.is_none_or(|s| s.iter().all(|b| *b == 0)) {
                    break;
                }
                assert!(attempt < 200, "the old key at {old:?} is still there");
                glommio::timer::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    for end in [End::Close, End::Close] {
        with_store(dir.path(), end, move |shard| async move {
            for (i, size) in SIZES.into_iter().enumerate() {
                let key = format!("{size}");
                assert!(
                    get(&shard, &key, 0, size).await.unwrap() == plain(size, i as u8),
                    "{key}"
                );
            }
            let whole = [plain(6_000_000, 1), plain(5_300_000, 2), plain(10, 3)].concat();
            assert!(get(&shard, "m", 0, whole.len()).await.unwrap() == whole);
            rewrap(&shard, "m", 7).await;
            rewrap(&shard, "100", 7).await;
        });
    }
    with_store(dir.path(), End::Close, |shard| async move {
        for key in SIZES.map(|s| s.to_string()).iter().map(String::as_str) {
            shard
                .delete(BUCKET, key, &Condition::default())
                .await
                .unwrap();
        }
        shard
            .delete(BUCKET, "m", &Condition::default())
            .await
            .unwrap();
    });
    eventually("all space coming back", || {
        segment_bytes(dir.path()) < COPY_MAX
    });
}

#[test]
fn a_reader_outlives_a_rewrap_and_the_object() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        let data = plain(12_000_000, 1);
        put(&shard, "k", &data, true).await.unwrap();
        let found = shard.lookup(BUCKET, "k").await.unwrap();
        let mut stream = shard
            .read(&found, 0..12_000_000, Some(&Secret::new(KEY)))
            .await
            .unwrap();
        let mut got = stream.next().await.unwrap().unwrap().to_vec();
        rewrap(&shard, "k", 1).await;
        shard
            .delete(BUCKET, "k", &Condition::default())
            .await
            .unwrap();
        drop(found);
        glommio::timer::sleep(Duration::from_millis(300)).await;
        while let Some(bytes) = stream.next().await {
            got.extend_from_slice(&bytes.unwrap());
        }
        assert!(got == data);
    });
    eventually("the object's space coming back", || {
        segment_bytes(dir.path()) < COPY_MAX
    });
}

#[test]
fn a_rewrap_is_no_new_object_to_a_conditional_completion() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        put(&shard, "k", b"there before", true).await.unwrap();
        let new = NewUpload {
            encryption: Some(encryption()),
            ..Default::default()
        };
        let complete = async |id| {
            let done = Completion {
                etag: "multi".into(),
                condition: Condition {
                    if_none_match: Some(EtagMatch::Any),
                    ..Default::default()
                },
                ..Default::default()
            };
            shard.complete_upload(BUCKET, "k", &id, done).await
        };
        let id = shard.create_upload(BUCKET, "k", new).await.unwrap();
        rewrap(&shard, "k", 1).await;
        let sequence = upload_sequence(&shard, id).await;
        shard
            .set_upload_encryption(BUCKET, "k", &id, sequence, wrapping(2))
            .await
            .unwrap();
        assert!(matches!(
            complete(id).await,
            Err(Error::PreconditionFailed { .. })
        ));
        put(&shard, "k", b"written since", true).await.unwrap();
        rewrap(&shard, "k", 3).await;
        assert!(matches!(complete(id).await, Err(Error::Conflict)));
    });
}

/// Which of the needles (all of one length, random bytes) lie in files under `dir`.
fn lying_in(dir: &Path, needles: &[Vec<u8>]) -> Vec<usize> {
    let mut by_start: HashMap<[u8; 4], Vec<usize>> = HashMap::new();
    let mut likely = vec![false; 1 << 16];
    for (i, needle) in needles.iter().enumerate() {
        by_start
            .entry(needle[..4].try_into().unwrap())
            .or_default()
            .push(i);
        likely[usize::from(u16::from_le_bytes([needle[0], needle[1]]))] = true;
    }
    let mut found = vec![false; needles.len()];
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            // A file can go between the listing and the look.
            let bytes = std::fs::read(&path).unwrap_or_default();
            for (at, start) in bytes.windows(4).enumerate() {
                if !likely[usize::from(u16::from_le_bytes([start[0], start[1]]))] {
                    continue;
                }
                for i in by_start.get(start).into_iter().flatten() {
                    found[*i] |= bytes[at..].starts_with(&needles[*i]);
                }
            }
        }
    }
    (0..needles.len()).filter(|i| found[*i]).collect()
}

/// The random nonce of the record as it lies on disk: where it is not, the record is not.
fn mark_of(shard: &Rc<Shard>, key: &str) -> Vec<u8> {
    shard.sealed_record(BUCKET, key).unwrap().unwrap()[9..33].to_vec()
}

#[test]
fn after_settling_no_old_wrapping_lies_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().into();
    with_store(dir.path(), End::Close, move |shard| async move {
        let keys: Vec<String> = (0..300).map(|i| format!("k{i}")).collect();
        for (i, key) in keys.iter().enumerate() {
            let size = if i % 20 == 0 { 50_000 } else { 10 };
            put(&shard, key, &plain(size, 1), true).await.unwrap();
        }
        // Whoever reads a large object does not keep its old key.
        let found = shard.lookup(BUCKET, "k0").await.unwrap();
        let mut reader = shard
            .read(&found, 0..50_000, Some(&Secret::new(KEY)))
            .await
            .unwrap();
        put(&shard, "k0", &plain(50_000, 2), true).await.unwrap();

        let listing = glommio::spawn_local({
            let shard = Rc::clone(&shard);
            async move {
                loop {
                    let query = strongroom_engine::ListQuery {
                        max: 1000,
                        ..Default::default()
                    };
                    shard.list(BUCKET, query).await.unwrap();
                    glommio::timer::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        for round in 1..3 {
            let old: Vec<_> = keys.iter().map(|key| mark_of(&shard, key)).collect();
            let mut extents = Vec::from_iter(found.object.key_extent);
            for key in &keys {
                let (before, _) = rewrap(&shard, key, round).await;
                extents.extend(before.key_extent);
            }
            let new: Vec<_> = keys.iter().map(|key| mark_of(&shard, key)).collect();
            assert_eq!(lying_in(&path, &old).len(), 300, "still there");
            shard.settle_erasure().await.unwrap();
            assert_eq!(lying_in(&path, &old), [] as [usize; 0]);
            assert_eq!(lying_in(&path, &new).len(), 300, "the search finds records");
            assert_eq!(extents.len(), 16);
            for extent in extents {
                let sectors = sector_of(&path, extent).unwrap();
                assert!(sectors.iter().all(|b| *b == 0), "{extent:?}");
            }
        }
        listing.cancel().await;
        let mut got = Vec::new();
        while let Some(bytes) = reader.next().await {
            got.extend_from_slice(&bytes.unwrap());
        }
        assert!(got == plain(50_000, 1), "the reader kept the data");
    });
}

#[test]
fn old_wrappings_go_by_themselves_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let old = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&old);
    with_store(dir.path(), End::Crash, move |shard| async move {
        put(&shard, "k", b"small", true).await.unwrap();
        seen.lock().unwrap().push(mark_of(&shard, "k"));
        rewrap(&shard, "k", 1).await;
    });
    let old = old.lock().unwrap().clone();
    assert_eq!(lying_in(dir.path(), &old), [0]);
    let path: PathBuf = dir.path().into();
    with_store(dir.path(), End::Close, move |shard| async move {
        for attempt in 0.. {
            // Other traffic does not keep it.
            put(&shard, "busy", b"x", true).await.unwrap();
            if lying_in(&path, &old).is_empty() {
                break;
            }
            assert!(attempt < 40, "the old record is still there");
            glommio::timer::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(get(&shard, "k", 0, 5).await.unwrap(), b"small");
    });
}

#[test]
fn nothing_new_comes_under_a_version_that_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let under = |version| {
        let mut encryption = wrapping(1);
        encryption.kms.as_mut().unwrap().version = version;
        encryption
    };
    let begin = async move |shard: &Rc<Shard>, version, size: usize| {
        let mut target = target("k", size, true);
        target.encryption = Some(under(version));
        let mut stream = shard.put(target, Some(&Secret::new(KEY))).await.unwrap();
        stream.write(&plain(size, 1)).await.unwrap();
        stream
    };
    with_store(dir.path(), End::Close, move |shard| async move {
        put(&shard, "there", b"before", true).await.unwrap();
        let rewrap = async |version| {
            let found = shard.lookup(BUCKET, "there").await.unwrap();
            shard
                .set_encryption(BUCKET, "there", found.sequence, under(version))
                .await
        };
        rewrap(1).await.unwrap();
        let small = begin(&shard, 1, 10).await;
        let large = begin(&shard, 1, 100_000).await;
        let current = begin(&shard, 2, 10).await;
        shard.refuse_older("embedded", "key-1", 2).await.unwrap();
        // Never the other way round.
        shard.refuse_older("embedded", "key-1", 1).await.unwrap();
        for late in [small, large] {
            let refused = late.commit(Default::default()).await;
            assert!(matches!(refused, Err(Error::KeyRetired)));
        }
        let new = |version| NewUpload {
            encryption: Some(under(version)),
            ..Default::default()
        };
        let refused = shard.create_upload(BUCKET, "up", new(1)).await;
        assert!(matches!(refused, Err(Error::KeyRetired)));
        assert!(matches!(rewrap(1).await, Err(Error::KeyRetired)));
        assert_eq!(get(&shard, "there", 0, 6).await.unwrap(), b"before");

        current.commit(Default::default()).await.unwrap();
        shard.create_upload(BUCKET, "up", new(2)).await.unwrap();
        rewrap(2).await.unwrap();
        put(&shard, "other", b"another key", true).await.unwrap();
    });
}

#[test]
fn records_under_older_versions_are_found_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    with_store(dir.path(), End::Close, |shard| async move {
        shard.create_bucket("another").await.unwrap();
        let under = |name: &str, version| {
            let mut encryption = wrapping(1);
            let kms = encryption.kms.as_mut().unwrap();
            (kms.name, kms.version) = (name.into(), version);
            encryption
        };
        let mut expected = Vec::new();
        for bucket in [BUCKET, "another"] {
            for i in 0..40 {
                let key = format!("k\0{i:02}");
                let mut target = target(&key, 3, true);
                target.bucket = bucket.into();
                target.encryption = match i % 4 {
                    0 => Some(under("mine", 1 + i / 4)),
                    1 => Some(under("other", 1)),
                    2 => Some(encryption()),
                    _ => None,
                };
                let secret = target.encryption.is_some().then(|| Secret::new(KEY));
                let mut stream = shard.put(target, secret.as_ref()).await.unwrap();
                stream.write(b"abc").await.unwrap();
                stream.commit(Default::default()).await.unwrap();
                if i % 4 == 0 && i / 4 < 5 {
                    expected.push((bucket.to_owned(), key, None));
                }
            }
        }
        expected.sort();
        for version in [2, 6, 9] {
            let new = NewUpload {
                encryption: Some(under("mine", version)),
                ..Default::default()
            };
            let id = shard.create_upload(BUCKET, "up", new).await.unwrap();
            if version < 6 {
                expected.push((BUCKET.into(), "up".into(), Some(id)));
            }
        }
        for max in [1, 3, 100] {
            let mut query = WrappedQuery {
                source: "embedded".into(),
                name: "mine".into(),
                below: 6,
                after: None,
                max,
            };
            let mut found = Vec::new();
            loop {
                let page = shard.wrapped(query.clone()).await.unwrap();
                assert!(page.entries.len() <= max);
                for entry in page.entries {
                    assert!(entry.encryption.kms.as_ref().unwrap().version < 6);
                    if entry.upload.is_none() && entry.bucket == BUCKET {
                        let there = shard.lookup(BUCKET, &entry.key).await.unwrap();
                        assert_eq!(there.sequence, entry.sequence);
                    }
                    found.push((entry.bucket, entry.key, entry.upload));
                }
                query.after = page.next;
                if query.after.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected, "{max} at a time");
        }
    });
}
