//! The counts of what each key protects are those of the records, whatever happened before.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use strongroom_engine::record::{Encryption, KmsKey, Mode, UploadId};
use strongroom_engine::secret::Secret;
use strongroom_engine::{
    Completion, Condition, Error, ListEntry, ListQuery, NewUpload, PartChoice, Result, Shard,
    Tally, Target, Under, UploadQuery,
};

use super::{End, KEY, plain, with_store};

#[derive(Debug, Clone)]
enum Step {
    Put(u8, usize, u8),
    Delete(u8),
    Begin(u8, u8),
    Part(usize, u16, usize),
    Complete(usize),
    Abort(usize),
    Rewrap(u8, u8),
    RewrapUpload(usize, u8),
    MakeBucket,
    DeleteBucket,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..4u8;
    let size = prop::sample::select(vec![0usize, 7, 20_000]);
    let under = 0..5u8;
    prop_oneof![
        6 => (key.clone(), size.clone(), under.clone()).prop_map(|(k, s, u)| Step::Put(k, s, u)),
        4 => key.clone().prop_map(Step::Delete),
        3 => (key.clone(), under.clone()).prop_map(|(k, u)| Step::Begin(k, u)),
        6 => (0..4usize, 1..4u16, size).prop_map(|(i, n, s)| Step::Part(i, n, s)),
        2 => (0..4usize).prop_map(Step::Complete),
        1 => (0..4usize).prop_map(Step::Abort),
        4 => (key, under.clone()).prop_map(|(k, u)| Step::Rewrap(k, u)),
        2 => (0..4usize, under).prop_map(|(i, u)| Step::RewrapUpload(i, u)),
        2 => Just(Step::MakeBucket),
        1 => Just(Step::DeleteBucket),
    ]
}

/// Several runs of the store, each a crash or a clean close at its end.
fn runs() -> impl Strategy<Value = Vec<(bool, Vec<Step>)>> {
    prop::collection::vec((any::<bool>(), prop::collection::vec(step(), 0..40)), 1..4)
}

fn encryption(under: u8) -> Option<Encryption> {
    let key = |source: &str, version| KmsKey {
        source: source.into(),
        name: "k".into(),
        version,
        ciphertext: vec![1; 60],
        context: BTreeMap::new(),
        id_as_given: None,
        bucket_key: false,
    };
    let (mode, kms) = match under {
        0 => return None,
        1 => (Mode::SseC, None),
        2 => (Mode::SseS3, Some(key("embedded", 1))),
        3 => (Mode::SseKms, Some(key("embedded", 2))),
        _ => (Mode::SseKms, Some(key("kes", 1))),
    };
    Some(Encryption {
        mode,
        iv: [under; 32],
        sealed_key: [under; 64],
        kms,
    })
}

const TALLIED: &str = "tallied";

type Uploads = Arc<Mutex<Vec<(String, UploadId, bool)>>>;

async fn run(shard: &Rc<Shard>, step: Step, uploads: &Uploads) -> Result<()> {
    let secret = Secret::new(KEY);
    let name = |k: u8| format!("key-{k}");
    let chosen = |i: usize| uploads.lock().unwrap().get(i).cloned();
    match step {
        Step::MakeBucket => shard.create_bucket(TALLIED).await,
        Step::DeleteBucket => shard.delete_bucket(TALLIED).await,
        Step::Put(key, size, under) => {
            let encryption = encryption(under);
            let sealed = encryption.is_some().then_some(&secret);
            let target = Target {
                bucket: TALLIED.into(),
                key: name(key),
                size: size as u64,
                metadata: Default::default(),
                encryption: encryption.clone(),
                part: None,
            };
            let mut stream = shard.put(target, sealed).await?;
            stream.write(&plain(size, key)).await?;
            stream.commit(Default::default()).await.map(|_| ())
        }
        Step::Delete(key) => shard
            .delete(TALLIED, &name(key), &Condition::default())
            .await
            .map(|_| ()),
        Step::Begin(key, under) => {
            let encryption = encryption(under);
            let sealed = encryption.is_some();
            let new = NewUpload {
                encryption,
                ..Default::default()
            };
            let id = shard.create_upload(TALLIED, &name(key), new).await?;
            uploads.lock().unwrap().insert(0, (name(key), id, sealed));
            Ok(())
        }
        Step::Part(i, number, size) => {
            let Some((key, id, sealed)) = chosen(i) else {
                return Ok(());
            };
            let target = Target {
                bucket: TALLIED.into(),
                key,
                size: size as u64,
                metadata: Default::default(),
                encryption: None,
                part: Some((id, number)),
            };
            let mut stream = shard.put(target, sealed.then_some(&secret)).await?;
            stream.write(&plain(size, 3)).await?;
            stream.commit_part("part".into(), None).await.map(|_| ())
        }
        Step::Complete(i) => {
            let Some((key, id, _)) = chosen(i) else {
                return Ok(());
            };
            // All parts but the first one of several.
            let (mut parts, _) = shard.parts(TALLIED, &key, &id, 0, 10).await?;
            if parts.len() > 1 {
                parts.remove(0);
            }
            let choose = |p: strongroom_engine::PartEntry| PartChoice {
                number: p.number,
                sequence: p.sequence,
            };
            let done = Completion {
                parts: parts.into_iter().map(choose).collect(),
                ..Default::default()
            };
            let done = shard.complete_upload(TALLIED, &key, &id, done).await;
            done.map(|_| ())
        }
        Step::Abort(i) => match chosen(i) {
            Some((key, id, _)) => shard.abort_upload(TALLIED, &key, &id).await,
            None => Ok(()),
        },
        Step::Rewrap(key, under) => {
            let found = shard.lookup(TALLIED, &name(key)).await?;
            let (Some(to), Some(_)) = (encryption(under), &found.object.encryption) else {
                return Ok(());
            };
            shard
                .set_encryption(TALLIED, &name(key), found.sequence, to)
                .await
                .map(|_| ())
        }
        Step::RewrapUpload(i, under) => {
            let (Some((key, id, true)), Some(to)) = (chosen(i), encryption(under)) else {
                return Ok(());
            };
            let page = list_uploads(shard).await?;
            let Some(entry) = page.iter().find(|u| u.id == id) else {
                return Ok(());
            };
            shard
                .set_upload_encryption(TALLIED, &key, &id, entry.sequence, to)
                .await
                .map(|_| ())
        }
    }
}

async fn list_uploads(shard: &Rc<Shard>) -> Result<Vec<strongroom_engine::UploadEntry>> {
    let query = UploadQuery {
        max: 1000,
        ..Default::default()
    };
    Ok(shard.list_uploads(TALLIED, query).await?.uploads)
}

/// Counted by looking at everything.
async fn counted(shard: &Rc<Shard>) -> BTreeMap<Under, Tally> {
    let mut all: BTreeMap<Under, Tally> = BTreeMap::new();
    if shard.bucket(TALLIED).is_err() {
        return all;
    }
    let query = ListQuery {
        max: 1000,
        ..Default::default()
    };
    for entry in shard.list(TALLIED, query).await.unwrap().entries {
        let ListEntry::Object(_, object) = entry else {
            unreachable!("no delimiter");
        };
        let tally = all
            .entry(Under::of(object.encryption.as_ref()))
            .or_default();
        tally.objects += 1;
        tally.bytes += object.size;
    }
    for entry in list_uploads(shard).await.unwrap() {
        let (parts, _) = shard
            .parts(TALLIED, &entry.key, &entry.id, 0, 10)
            .await
            .unwrap();
        let tally = all
            .entry(Under::of(entry.upload.encryption.as_ref()))
            .or_default();
        tally.uploads += 1;
        tally.upload_bytes += parts.iter().map(|p| p.part.stream.size).sum::<u64>();
    }
    all
}

fn check(dir: &Path, runs: Vec<(bool, Vec<Step>)>) {
    let uploads = Uploads::default();
    for (crash, steps) in runs {
        let uploads = Arc::clone(&uploads);
        let end = if crash { End::Crash } else { End::Close };
        with_store(dir, end, move |shard| async move {
            assert_eq!(shard.tally(), counted(&shard).await, "at the start");
            for step in steps {
                let told = format!("{step:?}");
                match run(&shard, step, &uploads).await {
                    Ok(()) => {}
                    // What cannot be done is not counted.
                    Err(
                        Error::NoSuchBucket
                        | Error::NoSuchKey
                        | Error::NoSuchUpload
                        | Error::BucketExists
                        | Error::BucketNotEmpty,
                    ) => {}
                    Err(e) => panic!("{told}: {e}"),
                }
                assert_eq!(shard.tally(), counted(&shard).await, "after {told}");
            }
        });
    }
    with_store(dir, End::Close, |shard| async move {
        assert_eq!(shard.tally(), counted(&shard).await, "at the end");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn counts_are_those_of_the_records(runs in runs()) {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = runs;
        runs[0].1.insert(0, Step::MakeBucket);
        check(dir.path(), runs);
    }
}

#[test]
fn each_verb_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    use Step::*;
    let first = vec![
        MakeBucket,
        Put(0, 7, 2),
        Put(0, 20_000, 3),
        Put(1, 7, 0),
        Begin(2, 2),
        Part(0, 1, 7),
        Part(0, 1, 20_000),
        Part(0, 2, 7),
        RewrapUpload(0, 3),
        Rewrap(0, 4),
    ];
    let second = vec![
        Part(0, 3, 20_000),
        Complete(0),
        Rewrap(2, 2),
        Begin(1, 1),
        Part(0, 1, 7),
        Abort(0),
        Begin(1, 4),
        Delete(0),
        Delete(1),
        Delete(2),
        DeleteBucket,
    ];
    check(dir.path(), vec![(true, first), (true, second)]);
}
