//! A store on three drives: objects spread, listings merged, buckets the same on all, and a drive that is missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement};
use strongroom_engine::record::{BucketEncryption, Mode};
use strongroom_engine::secret::Secret;
use strongroom_engine::{
    DataDirs, Drives, Engines, Error, ListEntry, ListQuery, NewUpload, UploadQuery,
};

use super::{BUCKET, KEY, encryption, options, plain, put};

const OTHER: &str = "other-bucket";

struct Home {
    _home: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Home {
    fn new() -> Home {
        let home = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| home.path().join(name)).to_vec();
        Home { _home: home, paths }
    }

    /// Opens the store, runs `work` on one core, and closes it.
    fn with<F: Future<Output = ()> + 'static>(
        &self,
        work: impl FnOnce(Rc<Drives>) -> F + Send + 'static,
    ) {
        let dirs = DataDirs::lock(&self.paths).unwrap();
        if dirs.superblock().unwrap().is_none() {
            dirs.create([3; 16], b"key").unwrap();
        }
        let engines = Engines::open(&dirs, &Secret::new([9; 32]), &options()).unwrap();
        let seed = engines.shard(0);
        LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .spawn(move || async move {
                let drives = seed.open().await.unwrap();
                if drives.bucket(BUCKET).is_err() {
                    drives.create_bucket(BUCKET).await.unwrap();
                }
                work(Rc::clone(&drives)).await;
                assert!(drives.is_idle());
                drives.close().await;
            })
            .unwrap()
            .join()
            .unwrap();
        engines.close();
    }

    /// The same while these drives are away.
    fn without<F: Future<Output = ()> + 'static>(
        &self,
        away: &[usize],
        work: impl FnOnce(Rc<Drives>) -> F + Send + 'static,
    ) {
        let moved = |path: &Path| path.with_extension("away");
        for at in away {
            std::fs::rename(&self.paths[*at], moved(&self.paths[*at])).unwrap();
            std::fs::create_dir(&self.paths[*at]).unwrap();
        }
        self.with(work);
        for at in away {
            // Nothing was written into the empty mount point.
            std::fs::remove_dir(&self.paths[*at]).unwrap();
            std::fs::rename(moved(&self.paths[*at]), &self.paths[*at]).unwrap();
        }
    }
}

async fn put_on(drives: &Drives, key: &str, data: &[u8]) -> strongroom_engine::Result<()> {
    put(drives.of(BUCKET, key)?, key, data, true).await
}

async fn read_from(drives: &Drives, key: &str) -> strongroom_engine::Result<Vec<u8>> {
    let shard = drives.of(BUCKET, key)?;
    let found = shard.lookup(BUCKET, key).await?;
    let secret = Secret::new(KEY);
    let mut stream = shard
        .read(&found, 0..found.object.size, Some(&secret))
        .await?;
    let mut out = Vec::new();
    while let Some(bytes) = stream.next().await {
        out.extend_from_slice(&bytes?);
    }
    Ok(out)
}

fn is_missing<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::DriveMissing(_)))
}

fn number(i: usize) -> String {
    format!("key-{i}")
}

#[test]
fn objects_spread_and_a_missing_drive_takes_only_its_own_away() {
    let home = Home::new();
    home.with(async |drives| {
        for i in 0..60 {
            put_on(&drives, &number(i), &plain(i * 997, i as u8))
                .await
                .unwrap();
        }
    });
    // Where they lie does not depend on the order of the directories.
    let turned = Home {
        paths: home.paths.iter().rev().cloned().collect(),
        ..Home::new()
    };
    turned.with(async |drives| {
        for i in 0..60 {
            let read = read_from(&drives, &number(i)).await.unwrap();
            assert_eq!(read, plain(i * 997, i as u8));
        }
    });
    let mut lost = 0;
    for away in 0..3 {
        let (sender, counted) = std::sync::mpsc::channel();
        home.without(&[away], async move |drives| {
            let mut gone = 0;
            for i in 0..60 {
                match read_from(&drives, &number(i)).await {
                    Ok(read) => assert_eq!(read, plain(i * 997, i as u8)),
                    Err(e) => {
                        assert!(is_missing::<()>(Err(e)));
                        assert!(is_missing(put_on(&drives, &number(i), b"new").await));
                        gone += 1;
                    }
                }
            }
            assert!((5..40).contains(&gone), "{gone} of 60 on one of 3 drives");
            assert!(is_missing(drives.list(BUCKET, page(10)).await));
            let uploads = drives.list_uploads(BUCKET, UploadQuery::default()).await;
            assert!(is_missing(uploads));
            assert!(is_missing(drives.delete_bucket(BUCKET).await));
            let stale = drives.abort_stale_uploads(Duration::ZERO).await.unwrap();
            assert_eq!(stale, 0);
            sender.send(gone).unwrap();
        });
        lost += counted.recv().unwrap();
    }
    assert_eq!(lost, 60, "each object is on one drive");
    home.with(async |drives| {
        for i in 0..60 {
            assert_eq!(
                read_from(&drives, &number(i)).await.unwrap(),
                plain(i * 997, i as u8)
            );
        }
    });
}

fn page(max: usize) -> ListQuery {
    ListQuery {
        max,
        ..Default::default()
    }
}

/// What a listing shows: names in byte order, rolled up at the delimiter.
fn model(keys: &BTreeSet<String>, prefix: &str, delimiter: Option<&str>) -> Vec<String> {
    let shown: BTreeSet<String> = keys
        .iter()
        .filter(|key| key.starts_with(prefix))
        .map(|key| {
            let tail = &key[prefix.len()..];
            match delimiter.and_then(|d| Some(tail.find(d)? + d.len())) {
                Some(end) => key[..prefix.len() + end].to_owned(),
                None => key.clone(),
            }
        })
        .collect();
    shown.into_iter().collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }

    fn name(&mut self) -> String {
        let parts = ["a", "b", "/", "//", "-", "a/", "é", "z", "\u{0}"];
        let len = 1 + self.below(5);
        (0..len).map(|_| parts[self.below(parts.len())]).collect()
    }
}

#[test]
fn listings_are_those_of_one_store() {
    Home::new().with(async |drives| {
        let mut random = Random(20);
        let keys: BTreeSet<String> = (0..120).map(|_| random.name()).collect();
        for key in &keys {
            put_on(&drives, key, b"x").await.unwrap();
            let shard = drives.of(BUCKET, key).unwrap();
            let new = NewUpload {
                encryption: Some(encryption()),
                ..Default::default()
            };
            shard.create_upload(BUCKET, key, new).await.unwrap();
        }
        for _ in 0..60 {
            let prefix = match random.below(3) {
                0 => random.name(),
                _ => String::new(),
            };
            let delimiter = [None, Some("/"), Some("a")][random.below(3)];
            let max = 1 + random.below(9);
            let expected = model(&keys, &prefix, delimiter);

            let mut query = ListQuery {
                prefix: prefix.clone(),
                delimiter: delimiter.map(str::to_owned),
                after: None,
                max,
            };
            let mut seen = Vec::new();
            loop {
                let page = drives.list(BUCKET, query.clone()).await.unwrap();
                assert!(page.entries.len() == max || !page.more);
                seen.extend(page.entries.iter().map(|entry| match entry {
                    ListEntry::Object(name, _) | ListEntry::Prefix(name) => name.clone(),
                }));
                if !page.more {
                    break;
                }
                query.after = seen.last().cloned();
            }
            assert_eq!(seen, expected, "{prefix:?} {delimiter:?} {max}");

            let mut query = UploadQuery {
                prefix: prefix.clone(),
                delimiter: delimiter.map(str::to_owned),
                after: None,
                max,
            };
            let mut seen = BTreeSet::new();
            loop {
                let page = drives.list_uploads(BUCKET, query.clone()).await.unwrap();
                let uploads = page.uploads.iter().map(|u| (u.key.clone(), Some(u.id)));
                let prefixes = page.prefixes.iter().map(|p| (p.clone(), None));
                let mut entries: Vec<_> = uploads.chain(prefixes).collect();
                entries.sort();
                assert!(entries.len() == max || !page.more);
                for (name, _) in &entries {
                    assert!(seen.insert(name.clone()), "{name:?} twice");
                }
                if !page.more {
                    break;
                }
                query.after = entries.pop();
            }
            let seen: Vec<String> = seen.into_iter().collect();
            assert_eq!(seen, expected, "uploads: {prefix:?} {delimiter:?} {max}");
        }
        assert_eq!(drives.list(BUCKET, page(0)).await.unwrap().entries, []);
        let aborted = drives.abort_stale_uploads(Duration::ZERO).await;
        assert!(aborted.unwrap() <= keys.len());
    });
}

fn rule(mode: Mode) -> BucketEncryption {
    BucketEncryption {
        mode: Some(mode),
        ..Default::default()
    }
}

#[test]
fn buckets_and_their_settings_are_the_same_on_all_drives_again() {
    let home = Home::new();
    home.with(async |drives| {
        let set = drives.set_bucket_encryption(BUCKET, Some(rule(Mode::SseS3)));
        set.await.unwrap();
        assert!(matches!(
            drives.create_bucket(BUCKET).await,
            Err(Error::BucketExists)
        ));
    });
    home.without(&[0], async |drives| {
        drives.create_bucket(OTHER).await.unwrap();
        let set = drives.set_bucket_encryption(BUCKET, Some(rule(Mode::SseKms)));
        set.await.unwrap();
    });
    home.with(async |drives| {
        assert_eq!(drives.buckets().len(), 2);
    });
    // Each drive tells it alone.
    for away in [[1, 2], [0, 2], [0, 1]] {
        home.without(&away, async |drives| {
            let bucket = drives.bucket(BUCKET).unwrap();
            assert_eq!(bucket.encryption, Some(rule(Mode::SseKms)));
            drives.bucket(OTHER).unwrap();
        });
    }
    home.with(async |drives| {
        // On whichever drive it is, an object keeps its bucket.
        for key in (0..9).map(number) {
            put_on(&drives, &key, b"x").await.unwrap();
            assert!(matches!(
                drives.delete_bucket(BUCKET).await,
                Err(Error::BucketNotEmpty)
            ));
            let shard = drives.of(BUCKET, &key).unwrap();
            shard
                .delete(BUCKET, &key, &Default::default())
                .await
                .unwrap();
        }
        drives.delete_bucket(BUCKET).await.unwrap();
        assert!(drives.bucket(BUCKET).is_err());
        drives.create_bucket(BUCKET).await.unwrap();
        assert_eq!(drives.bucket(BUCKET).unwrap().encryption, None);
        drives.delete_bucket(OTHER).await.unwrap();
    });
    for away in [[1, 2], [0, 2], [0, 1]] {
        home.without(&away, async |drives| {
            assert_eq!(drives.buckets().len(), 1);
            assert_eq!(drives.bucket(BUCKET).unwrap().encryption, None);
        });
    }
}

#[test]
fn a_bucket_that_is_filled_while_it_is_deleted_stays() {
    Home::new().with(async |drives| {
        for round in 0..20 {
            let key = number(round);
            let (deleted, stored) = futures_lite::future::zip(
                drives.delete_bucket(BUCKET),
                put_on(&drives, &key, b"x"),
            )
            .await;
            match stored {
                // What was acknowledged is there.
                Ok(()) => {
                    assert!(deleted.is_err(), "round {round}");
                    assert_eq!(read_from(&drives, &key).await.unwrap(), b"x");
                    let shard = drives.of(BUCKET, &key).unwrap();
                    shard
                        .delete(BUCKET, &key, &Default::default())
                        .await
                        .unwrap();
                }
                Err(e) => {
                    assert!(matches!(e, Error::NoSuchBucket), "{e}");
                    if deleted.is_ok() {
                        drives.create_bucket(BUCKET).await.unwrap();
                    }
                }
            }
            for key in (0..6).map(number) {
                put_on(&drives, &key, b"x").await.unwrap();
                let shard = drives.of(BUCKET, &key).unwrap();
                shard
                    .delete(BUCKET, &key, &Default::default())
                    .await
                    .unwrap();
            }
        }
    });
}

/// Some damage makes the index's tree panic where it is opened.
#[test]
fn a_drive_whose_index_is_damaged_is_missing() {
    let home = Home::new();
    home.with(async |_| ());
    let keyspaces = home.paths[1].join("index/keyspaces");
    let versions = |keyspace: std::fs::DirEntry| {
        let files = std::fs::read_dir(keyspace.path()).unwrap();
        let mut files = files.map(|file| file.unwrap().path());
        let is_version = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.strip_prefix('v')
                .is_some_and(|n| n.parse::<u64>().is_ok())
        };
        files.find(is_version)
    };
    let mut keyspaces = std::fs::read_dir(keyspaces).unwrap();
    let version = keyspaces.find_map(|k| versions(k.unwrap())).unwrap();
    let sound = std::fs::read(&version).unwrap();
    for at in 0..sound.len().min(60) {
        let mut damaged = sound.clone();
        damaged[at] ^= 0xff;
        std::fs::write(&version, damaged).unwrap();
        // Whatever it finds, it opens and says so.
        home.with(async |drives| {
            let all = (0..60).filter(|i| drives.of(BUCKET, &number(*i)).is_ok());
            assert!(all.count() > 5, "the other drive serves");
        });
        std::fs::write(&version, &sound).unwrap();
    }
}

#[test]
fn a_drive_without_its_index_is_missing() {
    let home = Home::new();
    home.with(async |_| ());
    let index = home.paths[1].join("index");
    std::fs::rename(&index, index.with_extension("away")).unwrap();
    home.with(async |drives| {
        let all = (0..60).map(|i| drives.of(BUCKET, &number(i)).is_err());
        assert!(all.filter(|missing| *missing).count() > 5);
        let e = drives.list(BUCKET, page(1)).await.unwrap_err();
        assert!(e.to_string().contains("/b"), "{e}");
    });
}
