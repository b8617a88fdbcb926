//! Of the cache by itself, and of a shard whose cache holds something else than the disk.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::record::{Encryption, Mode};
use crate::secret::Secret;
use crate::{Error, Finish, Shard, Target, rt, sim};

const RUN: usize = CACHE_RUN_BYTES as usize;

fn extent(sequence: u64) -> Extent {
    Extent {
        segment: sequence / 10,
        start: 8,
        lead: 1,
        sectors: 2051,
        sequence,
    }
}

fn run(fill: u8, len: usize) -> Bytes {
    Bytes::from(vec![fill; len])
}

fn holds(cache: &Cache, sequence: u64, run: u64) -> bool {
    let wanted = run * READ_PACKAGES..(run + 1) * READ_PACKAGES;
    matches!(cache.get(&extent(sequence), wanted, RUN), Asked::Hit(_))
}

#[test]
fn a_part_of_a_run_is_found_where_it_lies() {
    let cache = Cache::new(64 << 20);
    let bytes: Vec<u8> = (0..3 * PACKAGE + 1000).map(|i| (i / 7) as u8).collect();
    // Packages 10 to 13 of the extent, the last one short.
    cache.put(&extent(1), 10, Bytes::from(bytes.clone()));
    let ask = |wanted: Range<u64>, len: usize| cache.get(&extent(1), wanted, len);
    match ask(11..13, 2 * PACKAGE) {
        Asked::Hit(found) => assert!(found[..] == bytes[PACKAGE..3 * PACKAGE]),
        _ => panic!("not found"),
    }
    match ask(13..14, 1000) {
        Asked::Hit(found) => assert!(found[..] == bytes[3 * PACKAGE..]),
        _ => panic!("not found"),
    }
    assert!(matches!(ask(9..11, 2 * PACKAGE), Asked::Partly));
    assert!(matches!(ask(13..15, 1000 + PACKAGE), Asked::Partly));
    assert!(matches!(ask(0..1, PACKAGE), Asked::Absent));
    let others = [
        Extent {
            sequence: 2,
            ..extent(1)
        },
        Extent {
            segment: 9,
            ..extent(1)
        },
    ];
    for other in others {
        let asked = cache.get(&other, 10..11, PACKAGE);
        assert!(matches!(asked, Asked::Absent));
    }
    cache.forget(&extent(1));
    assert!(matches!(ask(11..13, 2 * PACKAGE), Asked::Absent));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.bytes), (2, 6, 0));
    assert_eq!(stats.hit_bytes, 2 * PACKAGE as u64 + 1000);
}

#[test]
fn every_run_of_an_extent_is_forgotten() {
    let cache = Cache::new(64 << 20);
    for number in 0..EXTENT_PACKAGES / READ_PACKAGES {
        cache.put(&extent(1), number * READ_PACKAGES, run(1, RUN));
    }
    cache.forget(&extent(1));
    assert_eq!(cache.stats().bytes, 0);
}

#[test]
fn the_bound_holds() {
    for capacity in [0, 1 << 20, 16 << 20, 100 << 20, 300 << 20] {
        let cache = Cache::new(capacity);
        assert!(cache.stats().capacity <= capacity);
        for n in 0..1500 {
            let len = RUN - (n as usize * 4099) % RUN;
            cache.put(&extent(n), 0, run(n as u8, len));
            let held = cache.stats().bytes;
            assert!(held <= capacity, "{held} of {capacity}");
        }
        let least = if cache.is_on() { capacity / 2 } else { 0 };
        assert!(cache.stats().bytes >= least, "{capacity} is used");
    }
}

#[test]
fn reading_much_once_does_not_drive_out_what_is_hot() {
    let cache = Cache::new(128 << 20);
    let hot = 100;
    let read = |sequence| {
        if !holds(&cache, sequence, 0) {
            cache.put(&extent(sequence), 0, run(0, RUN));
        }
    };
    for _ in 0..3 {
        (0..hot).for_each(read);
    }
    // Ten times what the cache holds, with some of the hot objects asked for now and then.
    for n in 0..2500 {
        read(10_000 + n);
        if n % 10 == 0 {
            read(n / 10 % hot);
        }
    }
    let left = (0..hot).filter(|n| holds(&cache, *n, 0)).count() as u64;
    assert!(left >= hot * 9 / 10, "{left} of {hot} hot runs are left");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was put in and forgotten, what is found is what was put in under that name.
    #[test]
    fn a_name_means_the_same_bytes(steps in prop::collection::vec((0u64..40, 0u64..4, 0u64..8, 1u64..9, 0u8..10), 1..400)) {
        let cache = Cache::new(12 << 20);
        let content = |sequence: u64, package: u64| (sequence * 31 + package * 7) as u8;
        for (sequence, number, from, count, what) in steps {
            let first = number * READ_PACKAGES + from;
            let end = (first + count).min((number + 1) * READ_PACKAGES);
            let len = (end - first) as usize * PACKAGE;
            match what {
                0 => cache.forget(&extent(sequence)),
                1..4 => {
                    let bytes = (first..end).flat_map(|p| vec![content(sequence, p); PACKAGE]);
                    cache.put(&extent(sequence), first, bytes.collect::<Vec<u8>>().into());
                }
                _ => if let Asked::Hit(found) = cache.get(&extent(sequence), first..end, len) {
                    prop_assert_eq!(found.len(), len);
                    for (package, bytes) in (first..end).zip(found.chunks(PACKAGE)) {
                        prop_assert!(bytes.iter().all(|b| *b == content(sequence, package)));
                    }
                },
            }
            prop_assert!(cache.stats().bytes <= 12 << 20);
        }
    }
}

// A shard over a cache that somebody has tampered with.

const KEY: [u8; 32] = [5; 32];

fn with_shard<F: Future<Output = ()> + 'static>(work: impl FnOnce(Rc<Shard>) -> F + 'static) {
    sim::with_shard(64 << 20, |shard| async move {
        shard.create_bucket("b").await.unwrap();
        work(shard).await;
    });
}

/// Writes the object and says where its data is.
async fn put(shard: &Rc<Shard>, data: &[u8]) -> Extent {
    write(shard, data).await;
    let found = shard.lookup("b", "k").await.unwrap();
    found.object.extents().next().unwrap()
}

async fn write(shard: &Rc<Shard>, data: &[u8]) {
    let target = Target {
        bucket: "b".into(),
        key: "k".into(),
        size: data.len() as u64,
        metadata: Default::default(),
        encryption: Some(Encryption {
            mode: Mode::SseS3,
            iv: [1; 32],
            sealed_key: [2; 64],
            kms: None,
        }),
        part: None,
    };
    let mut stream = shard.put(target, Some(&Secret::new(KEY))).await.unwrap();
    stream.write(data).await.unwrap();
    stream.commit(Finish::default()).await.unwrap();
}

async fn get(shard: &Rc<Shard>) -> Result<Vec<u8>, Error> {
    let found = shard.lookup("b", "k").await?;
    let range = 0..found.object.size;
    let mut stream = shard.read(&found, range, Some(&Secret::new(KEY))).await?;
    let mut out = Vec::new();
    while let Some(bytes) = stream.next().await {
        out.extend_from_slice(&bytes?);
    }
    Ok(out)
}

/// A cached run with one byte changed, at every kind of place.
fn tampered(cache: &Cache, extent: &Extent, len: usize) -> Vec<Bytes> {
    let Asked::Hit(good) = cache.get(extent, 0..2, len) else {
        panic!("what was written is not held")
    };
    let places = [
        0,
        5,
        15,
        16,
        5000,
        PACKAGE - 1,
        PACKAGE,
        PACKAGE + 40,
        len - 1,
    ];
    let flipped = places.into_iter().map(|at| {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        Bytes::from(bad)
    });
    // And two packages in the wrong order, as far as lengths allow.
    let swapped = [&good[PACKAGE..], &good[..PACKAGE]].concat();
    flipped.chain([Bytes::from(swapped)]).collect()
}

#[test]
fn what_was_tampered_with_in_memory_is_read_again_from_the_disk() {
    with_shard(|shard| async move {
        let data: Vec<u8> = (0..131_072u32).map(|i| ((i * 7) >> 4) as u8).collect();
        let extent = put(&shard, &data).await;
        let len = 2 * PACKAGE;
        let cache = &shard.core.cache;
        let reads = || shard.core.disks[0].stats().reads;
        let before = reads();
        assert!(get(&shard).await.unwrap() == data);
        assert_eq!(reads(), before, "held since it was written");
        for bad in tampered(cache, &extent, len) {
            cache.put(&extent, 0, bad);
            let before = reads();
            assert!(get(&shard).await.unwrap() == data);
            assert_eq!(reads(), before + 1);
            assert!(get(&shard).await.unwrap() == data);
            assert_eq!(reads(), before + 1, "and held again as it should be");
        }
    });
}

#[test]
fn nothing_is_served_that_is_wrong_in_memory_and_on_disk() {
    with_shard(|shard| async move {
        let extent = put(&shard, &vec![3; 131_072]).await;
        let len = 2 * PACKAGE;
        let all = tampered(&shard.core.cache, &extent, len);
        let path = shard.core.segments.path(extent.segment);
        let at = u64::from(extent.start + u32::from(extent.lead)) * limits::SECTOR as u64;
        let file = std::fs::File::options().write(true).open(path).unwrap();
        for bad in all {
            std::os::unix::fs::FileExt::write_all_at(&file, &bad, at).unwrap();
            file.sync_all().unwrap();
            shard.core.cache.put(&extent, 0, bad);
            for _ in 0..2 {
                let got = get(&shard).await;
                assert!(
                    matches!(got, Err(Error::Corrupt { .. })),
                    "{:?}",
                    got.map(|g| g.len())
                );
            }
        }
    });
}

/// Overwrites, deletes and reads that meet in every order, over a cache too small for all: a reader sees one version, whole.
#[test]
fn readers_see_one_version_whatever_is_overwritten_and_punched() {
    with_shard(|shard| async move {
        let seed = Rc::new(RefCell::new(0x2545_f491_4f6c_dd1du64));
        let next = move || {
            let mut x = seed.borrow_mut();
            *x ^= *x << 13;
            *x ^= *x >> 7;
            *x ^= *x << 17;
            *x >> 16
        };
        let next = Rc::new(next);
        let tasks: Vec<_> = (0..6)
            .map(|task| {
                let (shard, next) = (Rc::clone(&shard), Rc::clone(&next));
                rt::spawn(async move {
                    for step in 0..60u64 {
                        if task < 3 {
                            let fill = (next() % 251) as u8;
                            let len = 20_000 + (next() % 2_000_000) as usize;
                            if next() % 5 == 0 {
                                shard.delete("b", "k", &Default::default()).await.unwrap();
                            } else {
                                write(&shard, &vec![fill; len]).await;
                            }
                        } else {
                            match get(&shard).await {
                                Ok(got) => assert!(got.iter().all(|b| *b == got[0]), "step {step}"),
                                Err(Error::NoSuchKey) => {}
                                Err(e) => panic!("step {step}: {e}"),
                            }
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        shard.delete("b", "k", &Default::default()).await.unwrap();
        // Nothing of what was deleted stays.
        for _ in 0..200 {
            if shard.core.cache.stats().bytes == 0 {
                return;
            }
            rt::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{:?}", shard.core.cache.stats());
    });
}
