//! Hot objects: how often the disk is asked.

use std::path::Path;
use std::rc::Rc;

use strongroom_engine::{EngineOptions, Observer, Shard};

use super::{End, get, options, plain, put, with_observer};

/// Opens the store in `dir` with a cache, runs `work`, and closes it.
fn with_cache<F: Future<Output = ()> + 'static>(
    dir: &Path,
    cache_bytes: u64,
    work: impl FnOnce(Rc<Shard>, Observer) -> F + Send + 'static,
) {
    let options = EngineOptions {
        cache_bytes,
        ..options()
    };
    with_observer(dir, End::Close, &options, work);
}

#[test]
fn the_second_read_of_an_object_asks_nothing_of_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    // Small, of one run, of many, and of more than one extent.
    let sizes = [10_000, 65_536, 300_000, 3_000_000, 9_000_000];
    with_cache(dir.path(), 0, move |shard, observer| async move {
        for size in sizes {
            put(&shard, &format!("{size}"), &plain(size, 1), true)
                .await
                .unwrap();
            for _ in 0..2 {
                let before = observer.disk().reads;
                assert!(get(&shard, &format!("{size}"), 0, size).await.unwrap() == plain(size, 1));
                assert_eq!(observer.disk().reads > before, size > 16_384, "{size}");
            }
        }
        assert_eq!(observer.cache(), Default::default());
    });
    with_cache(dir.path(), 256 << 20, move |shard, observer| async move {
        for size in sizes {
            let key = format!("{size}");
            assert!(get(&shard, &key, 0, size).await.unwrap() == plain(size, 1));
            let (before, cache) = (observer.disk(), observer.cache());
            assert!(get(&shard, &key, 0, size).await.unwrap() == plain(size, 1));
            for (from, to) in [(0, 1), (size / 3, size / 2), (size - 1, size)] {
                let got = get(&shard, &key, from, to).await.unwrap();
                assert!(got == plain(size, 1)[from..to]);
            }
            assert_eq!(observer.disk(), before, "{size}");
            let seen = observer.cache();
            assert_eq!(seen.misses, cache.misses, "{size}");
            assert_eq!(seen.hits > cache.hits, size > 16_384, "{size}");
        }
        // What is written now is held at once, where it fits.
        put(&shard, "new", &plain(2_000_000, 2), true)
            .await
            .unwrap();
        let before = observer.disk().reads;
        assert!(
            get(&shard, "new", 5, 1_999_999).await.unwrap() == plain(2_000_000, 2)[5..1_999_999]
        );
        assert_eq!(observer.disk().reads, before);
    });
}

#[test]
fn ranges_read_no_more_than_they_need_until_their_run_is_wanted_again() {
    let dir = tempfile::tempdir().unwrap();
    with_cache(dir.path(), 0, |shard, _| async move {
        put(&shard, "k", &plain(4_000_000, 1), true).await.unwrap();
    });
    with_cache(dir.path(), 256 << 20, |shard, observer| async move {
        let read = async |from: usize, to: usize| {
            let before = observer.disk().read_bytes;
            let got = get(&shard, "k", from, to).await.unwrap();
            assert!(got == plain(4_000_000, 1)[from..to], "{from}..{to}");
            observer.disk().read_bytes - before
        };
        let one = read(1000, 2000).await;
        assert!(one <= 80_000, "one package is wanted, {one} bytes are read");
        assert_eq!(read(1000, 60_000).await, 0);
        // Another place of the same run: now all of it.
        let whole = read(300_000, 300_001).await;
        assert!((520_000..540_000).contains(&whole), "{whole}");
        assert_eq!(read(0, 524_288).await, 0);
    });
}

#[test]
fn what_is_not_sealed_is_never_held() {
    let dir = tempfile::tempdir().unwrap();
    with_cache(dir.path(), 256 << 20, |shard, observer| async move {
        put(&shard, "k", &plain(2_000_000, 1), false).await.unwrap();
        for _ in 0..2 {
            assert!(get(&shard, "k", 0, 2_000_000).await.unwrap() == plain(2_000_000, 1));
        }
        let seen = observer.cache();
        assert_eq!((seen.bytes, seen.hits, seen.misses), (0, 0, 0));
    });
}
