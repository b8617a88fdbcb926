//! What the engine and the key service have counted, and what the store holds.

use std::collections::BTreeMap;

use strongroom_engine::{CacheStats, DiskStats, Observer, Observers, Scrubbed, Usage, simd};
use strongroom_kms::{KeyState, Kms};

use super::text::{Family, Text};

/// Writes the families of a store and of its keys, as far as they are open. Looks at files, so it may block.
pub fn families(text: &mut Text, store: Option<&Observers>, kms: Option<&Kms>) {
    text.gauge(
        "strongroom_info",
        "This server, and the kernels that its data goes through; always 1.",
    )
    .with(
        &[
            ("version", &env!("CARGO_PKG_VERSION")),
            ("cipher", &simd::kernel_name()),
            ("md5", &simd::md5::kernel_name()),
        ],
        1,
    );
    if let Some(store) = store {
        drives(text, store);
        cache(text, store);
        disk(text, store);
        space(text, store);
        scrub(text, store);
    }
    if let Some(kms) = kms {
        keys(text, kms);
    }
}

fn cache(text: &mut Text, store: &Observers) {
    let mut cache = CacheStats::default();
    store.present().for_each(|drive| cache += drive.cache());
    text.counter(
        "strongroom_cache_hits_total",
        "Runs of sealed packages found in memory.",
    )
    .is(cache.hits);
    text.counter(
        "strongroom_cache_misses_total",
        "Runs of sealed packages that had to be read.",
    )
    .is(cache.misses);
    text.counter(
        "strongroom_cache_hit_bytes_total",
        "Sealed bytes found in memory.",
    )
    .is(cache.hit_bytes);
    text.gauge("strongroom_cache_bytes", "Sealed bytes in memory.")
        .is(cache.bytes);
    text.gauge(
        "strongroom_cache_capacity_bytes",
        "What the cache may hold (--cache-size).",
    )
    .is(cache.capacity);
}

/// A value of each drive that is there, or of the only one, with its labels: the number of the drive only where there are several.
fn each<T>(store: &Observers, of: impl Fn(&Observer) -> T) -> Vec<(Option<usize>, T)> {
    let several = store.drives().len() > 1;
    let drives = store.drives().iter().zip(1..);
    drives
        .filter_map(|(drive, number)| {
            let observer = drive.observer.as_ref()?;
            Some((several.then_some(number), of(observer)))
        })
        .collect()
}

/// Samples of one family, by kind and, where there are several, by drive.
fn by_kind<T>(mut family: Family<'_>, drives: &[(Option<usize>, T)], kinds: &[Kind<T>]) {
    for (number, value) in drives {
        for (kind, of) in kinds {
            match number {
                None => family.with(&[("kind", kind)], of(value)),
                Some(number) => {
                    family.with(&[("drive", number), ("kind", kind)], of(value));
                }
            }
        }
    }
}

type Kind<T> = (&'static str, fn(&T) -> u64);

fn drives(text: &mut Text, store: &Observers) {
    if store.drives().len() == 1 {
        return;
    }
    let mut up = text.gauge(
        "strongroom_drive_up",
        "Whether the drive was there at the start.",
    );
    for (drive, number) in store.drives().iter().zip(1..) {
        up.with(&[("drive", &number)], u8::from(drive.observer.is_some()));
    }
}

fn disk(text: &mut Text, store: &Observers) {
    let disks = each(store, Observer::disk);
    let operations: [Kind<DiskStats>; 3] = [
        ("read", |disk| disk.reads),
        ("write", |disk| disk.writes),
        ("sync", |disk| disk.syncs),
    ];
    let family = text.counter(
        "strongroom_disk_operations_total",
        "Operations on segments.",
    );
    by_kind(family, &disks, &operations);
    let bytes: [Kind<DiskStats>; 2] = [
        ("read", |disk| disk.read_bytes),
        ("write", |disk| disk.written_bytes),
    ];
    let family = text.counter(
        "strongroom_disk_bytes_total",
        "Bytes read from and written to segments.",
    );
    by_kind(family, &disks, &bytes);
}

fn space(text: &mut Text, store: &Observers) {
    let usages = each(store, Observer::usage);
    let mut drives: Vec<(Option<usize>, Usage)> = Vec::new();
    for (number, usage) in usages {
        match usage {
            Ok(usage) => drives.push((number, usage)),
            Err(e) => {
                tracing::warn!("metrics lack what the store takes: {e}");
                return;
            }
        }
    }
    let Some(usage) = Usage::of_all(drives.iter().map(|(_, usage)| *usage)) else {
        return;
    };
    text.gauge("strongroom_buckets", "Buckets.")
        .is(usage.buckets);
    text.gauge("strongroom_objects", "Objects.")
        .is(usage.objects);
    text.gauge("strongroom_object_bytes", "What the objects hold.")
        .is(usage.object_bytes);
    text.gauge("strongroom_uploads", "Multipart uploads under way.")
        .is(usage.uploads);
    let kinds: [Kind<Usage>; 6] = [
        ("live", |usage| usage.live),
        ("dead", |usage| usage.dead),
        ("index", |usage| usage.index),
        ("index-dead", |usage| usage.index_dead),
        ("free", |usage| usage.room.free),
        ("reserve", |usage| usage.room.reserve),
    ];
    let family = text.gauge(
        "strongroom_space_bytes",
        "Space on disk: of objects (live), being given back or reserved ahead (dead), of the index and of what is dead in it, \
         free, and kept free for deleting (reserve).",
    );
    by_kind(family, &drives, &kinds);
}

fn scrub(text: &mut Text, store: &Observers) {
    let scrubs = each(store, Observer::scrubbed);
    let sum =
        |of: fn(&Scrubbed) -> u64| scrubs.iter().map(|(_, scrubbed)| of(scrubbed)).sum::<u64>();
    let passes = scrubs.iter().map(|(_, scrubbed)| scrubbed.passes).min();
    text.counter("strongroom_scrub_passes_total", "Times that all was read.")
        .is(passes.unwrap_or(0));
    text.counter(
        "strongroom_scrub_objects_total",
        "Objects looked at for rot.",
    )
    .is(sum(|scrubbed| scrubbed.objects));
    text.counter(
        "strongroom_scrub_unopened_total",
        "Objects among them whose keys were not at hand: their structure was checked, their tags were not.",
    )
    .is(sum(|scrubbed| scrubbed.unopened));
    text.counter(
        "strongroom_scrub_bytes_total",
        "Bytes read to look for rot.",
    )
    .is(sum(|scrubbed| scrubbed.bytes));
    text.counter(
        "strongroom_scrub_rotten_total",
        "Rotten objects found; each counts once in a pass.",
    )
    .is(sum(|scrubbed| scrubbed.rotten));
}

fn keys(text: &mut Text, kms: &Kms) {
    let stats = kms.stats();
    text.counter(
        "strongroom_kms_calls_total",
        "Calls of a key service elsewhere.",
    )
    .is(stats.calls);
    text.counter(
        "strongroom_kms_outages_total",
        "Calls of a key service that got no answer.",
    )
    .is(stats.outages);
    let mut hits = text.counter(
        "strongroom_kms_cache_hits_total",
        "Data keys found in memory; stale ones because the key service could not be reached.",
    );
    hits.with(&[("kind", &"fresh")], stats.hits);
    hits.with(&[("kind", &"stale")], stats.stale_hits);
    let sealed = u8::from(kms.is_sealed());
    text.gauge(
        "strongroom_keystore_sealed",
        "Whether the keystore is sealed.",
    )
    .is(sealed);
    // What a sealed keystore holds is not known.
    let Ok(all) = kms.list_keys("") else { return };
    let mut states = BTreeMap::from([("enabled", 0u64), ("disabled", 0), ("destroyed", 0)]);
    for key in all {
        let state = match key.state {
            KeyState::Enabled => "enabled",
            KeyState::Disabled => "disabled",
            KeyState::PendingDeletion { .. } => "pending-deletion",
            KeyState::Destroyed => "destroyed",
        };
        *states.entry(state).or_default() += 1;
    }
    let mut keys = text.gauge("strongroom_keys", "Keys in the keystore, by state.");
    for (state, n) in states {
        keys.with(&[("state", &state)], n);
    }
}
