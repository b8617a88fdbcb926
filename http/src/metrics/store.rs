//! What the engine and the key service have counted, and what the store holds.

use std::collections::BTreeMap;

use strongroom_engine::{Observer, simd};
use strongroom_kms::{KeyState, Kms};

use super::text::Text;

/// Writes the families of a store and of its keys, as far as they are open. Looks at files, so it may block.
pub fn families(text: &mut Text, store: Option<&Observer>, kms: Option<&Kms>) {
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
        cache(text, store);
        disk(text, store);
        space(text, store);
        scrub(text, store);
    }
    if let Some(kms) = kms {
        keys(text, kms);
    }
}

fn cache(text: &mut Text, store: &Observer) {
    let cache = store.cache();
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

fn disk(text: &mut Text, store: &Observer) {
    let disk = store.disk();
    let mut operations = text.counter(
        "strongroom_disk_operations_total",
        "Operations on segments.",
    );
    operations.with(&[("kind", &"read")], disk.reads);
    operations.with(&[("kind", &"write")], disk.writes);
    operations.with(&[("kind", &"sync")], disk.syncs);
    let mut bytes = text.counter(
        "strongroom_disk_bytes_total",
        "Bytes read from and written to segments.",
    );
    bytes.with(&[("kind", &"read")], disk.read_bytes);
    bytes.with(&[("kind", &"write")], disk.written_bytes);
}

fn space(text: &mut Text, store: &Observer) {
    let usage = match store.usage() {
        Ok(usage) => usage,
        Err(e) => {
            tracing::warn!("metrics lack what the store takes: {e}");
            return;
        }
    };
    text.gauge("strongroom_buckets", "Buckets.")
        .is(usage.buckets);
    text.gauge("strongroom_objects", "Objects.")
        .is(usage.objects);
    text.gauge("strongroom_object_bytes", "What the objects hold.")
        .is(usage.object_bytes);
    text.gauge("strongroom_uploads", "Multipart uploads under way.")
        .is(usage.uploads);
    let mut space = text.gauge(
        "strongroom_space_bytes",
        "Space on disk: of objects (live), being given back or reserved ahead (dead), of the index and of what is dead in it, \
         free, and kept free for deleting (reserve).",
    );
    space.with(&[("kind", &"live")], usage.live);
    space.with(&[("kind", &"dead")], usage.dead);
    space.with(&[("kind", &"index")], usage.index);
    space.with(&[("kind", &"index-dead")], usage.index_dead);
    space.with(&[("kind", &"free")], usage.room.free);
    space.with(&[("kind", &"reserve")], usage.room.reserve);
}

fn scrub(text: &mut Text, store: &Observer) {
    let scrubbed = store.scrubbed();
    text.counter("strongroom_scrub_passes_total", "Times that all was read.")
        .is(scrubbed.passes);
    text.counter(
        "strongroom_scrub_objects_total",
        "Objects looked at for rot.",
    )
    .is(scrubbed.objects);
    text.counter(
        "strongroom_scrub_unopened_total",
        "Objects among them whose keys were not at hand: their structure was checked, their tags were not.",
    )
    .is(scrubbed.unopened);
    text.counter(
        "strongroom_scrub_bytes_total",
        "Bytes read to look for rot.",
    )
    .is(scrubbed.bytes);
    text.counter(
        "strongroom_scrub_rotten_total",
        "Rotten objects found; each counts once in a pass.",
    )
    .is(scrubbed.rotten);
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
