//! Every bound of the engine in one place, and how they relate.

use std::time::Duration;

/// Direct I/O and every extent work in sectors of this many bytes.
pub const SECTOR: usize = 4096;

/// DARE packages in a full extent, and the sectors they fill: 128 packages are exactly 2,049 sectors.
pub const EXTENT_PACKAGES: u64 = 128;
pub const EXTENT_DATA_SECTORS: u32 = 2049;

/// Objects and parts of at most this many plaintext bytes live in the index, and so cost one sync instead of two.
pub const INLINE_BYTES_MAX: u64 = 16 * 1024;

/// Largest object of a single PUT, and largest part.
pub const STREAM_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;
/// An object whose length is not known exactly ends at most so much earlier than it may; the end is told while more than the
/// second is still to come of what it may be, so that no package is under way that is the last one.
pub const END_SLACK_BYTES: u64 = 64 * 1024;
pub const OPEN_END_BYTES: u64 = END_SLACK_BYTES + crate::dare::header::PAYLOAD as u64;
pub const PARTS_MAX: u16 = 10_000;
pub const KEY_BYTES_MAX: usize = 1024;
/// Standard headers and user metadata of one object, names and values together.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// ETag and checksums of one object.
pub const FINISH_BYTES_MAX: usize = 1024;
/// A wrapped object key with its encryption context fills at most this many sectors.
pub const KEY_SECTORS_MAX: u32 = 4;

/// A block of any kind, as a reader takes it.
pub const BLOCK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One direct write. Packages run on from one buffer to the next.
pub const WRITE_BUFFER_BYTES: usize = 256 * SECTOR;
/// Writes of one stream under way beside the buffer being filled.
pub const WRITES_IN_FLIGHT: usize = 2;

/// Packages read at once, and reads of one stream under way ahead of the client.
pub const READ_PACKAGES: u64 = 8;
pub const READS_AHEAD: usize = 2;

/// Uploads that may hold a write buffer at once on one shard; further ones wait.
pub const UPLOADS_PER_SHARD: usize = 96;
/// Write buffers on one shard beyond the one each upload is sure of.
pub const SPARE_WRITE_BUFFERS: usize = 64;
/// Write buffers that a shard keeps for later while nobody uploads.
pub const IDLE_WRITE_BUFFERS: usize = 8;
/// How long a request may wait for a slot before it is told to slow down.
pub const SLOT_WAIT: Duration = Duration::from_secs(30);
/// Downloads that may hold read buffers at once on one shard; further ones wait.
pub const DOWNLOADS_PER_SHARD: usize = 256;

/// What the cache holds in one piece: as many packages as are read at once. An entry costs so much beside its bytes.
pub const CACHE_RUN_BYTES: u64 = READ_PACKAGES * crate::dare::header::PACKAGE as u64;
pub const CACHE_ENTRY_BYTES: u64 = 256;
/// Pairs of buffers of that size a shelf keeps for the next user.
pub const SHELF_PAIRS_MAX: usize = 32;
/// The cache is cut in shards with a lock each; a shard holds so many full runs at least.
pub const CACHE_SHARDS_MAX: u64 = 16;
pub const CACHE_RUNS_MIN: u64 = 16;
/// The part of the cache for runs that were asked for more than once.
pub const CACHE_HOT_SHARE: f64 = 0.9;
/// A stream is kept as it is written if it is at most this long, and fills at most this fraction of the cache. Longer ones come
/// in when they are read: their writers would pay for memory that they mostly do not read.
pub const CACHE_WRITE_BYTES_MAX: u64 = 2 * 1024 * 1024;
pub const CACHE_WRITE_SHARE: u64 = 32;

/// A segment takes no new extent past this many sectors (1 GiB).
pub const SEGMENT_SECTORS_MAX: u32 = 262_144;
/// Disk space a shard reserves ahead of its writes, at most.
pub const RESERVE_AHEAD_BYTES: u64 = 8 * 1024 * 1024;
/// Segment files one shard keeps open.
pub const OPEN_SEGMENTS_MAX: usize = 256;

/// Requests one durable commit may carry, and those that may wait for it.
pub const COMMIT_BATCH_MAX: usize = 512;
pub const COMMIT_QUEUE_MAX: usize = 8192;

/// How often the marks below which space is settled are made durable.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Dead bytes of the index that start a compaction once deleting pauses, and those that start one at once.
pub const INDEX_DEAD_BYTES_MIN: u64 = 1024 * 1024;
pub const INDEX_DEAD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A compaction waits at most this long for those who hold an old state of the index.
pub const COMPACT_WAIT_MAX: Duration = Duration::from_secs(60);
/// After a re-wrap old records leave the index on their own; that takes at most one part in so many of the time.
pub const ERASURE_TIME_SHARE: u32 = 20;
/// Records one step of a search for wrapped keys looks at.
pub const WRAPPED_PAGE_EXAMINED: usize = 10_000;
/// What a record takes in the index, about.
pub const INDEX_RECORD_BYTES: u64 = 600;

/// How often what changed in the index is copied to segments: what may be missing where the index itself is lost.
pub const COPY_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether that is due, and how long deleting pauses before dead copies are thrown out.
pub const COPY_LOOK_EVERY: Duration = Duration::from_millis(500);
pub const COPY_QUIET: Duration = Duration::from_secs(3);
/// Entries of one piece of a copy, about, and how many entries are looked up at once.
pub const COPY_PIECE_BYTES: usize = 1024 * 1024;
pub const COPY_KEYS_AT_ONCE: usize = 512;
/// Changed entries that make a round due before its time, and those that are remembered at most; above that the next round
/// copies everything.
pub const COPY_KEYS_DUE: usize = 65_536;
pub const COPY_KEYS_MAX: usize = 1_000_000;
/// Rounds after which everything is copied afresh, and the dead bytes of copies that make it due: at least so many, and half of
/// what is alive.
pub const COPY_GROUPS_MAX: usize = 120;
pub const COPY_DEAD_BYTES_MIN: u64 = 1024 * 1024;

/// The background scrub waits so long after a start, begins a pass at most so often, and looks so often whether it is to stop
/// or the object it reads was replaced.
pub const SCRUB_DELAY: Duration = Duration::from_secs(10);
pub const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);
pub const SCRUB_LOOK_EVERY: Duration = Duration::from_millis(50);

pub const INDEX_CACHE_BYTES: u64 = 64 * 1024 * 1024;
pub const INDEX_MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// A journal is replaced by a new one past this size, which is fjall's and not ours to choose; filler to get there goes in
/// pieces of this size.
pub const INDEX_JOURNAL_BYTES: u64 = 64_000_000;
pub const INDEX_FILLER_BYTES: usize = 8 * 1024 * 1024;
pub const INDEX_JOURNAL_BYTES_MAX: u64 = 96 * 1024 * 1024;

/// Space of the file system that writes leave for deleting and for the index: so much, and a share of the index's size for the
/// tables that are rewritten before the old ones go; but no more than a share of a small file system.
pub const RESERVE_BYTES: u64 = 256 * 1024 * 1024;
pub const RESERVE_INDEX_SHARE: u64 = 4;
pub const RESERVE_TOTAL_SHARE: u64 = 4;
/// With less than this free nothing changes the index.
pub const INDEX_SPACE_MIN: u64 = 16 * 1024 * 1024;
/// How often the file system is asked for its free space, while there are writes.
pub const SPACE_LOOK_EVERY: Duration = Duration::from_millis(100);
/// Freed records that may wait for their space to be given back; past it what frees more waits.
pub const RECLAIM_BACKLOG_MAX: usize = 65_536;
/// Freed records whose space could not be given back that are remembered, to be tried again; of more, only that there were some.
pub const UNPUNCHED_MAX: usize = 65_536;
/// A store that closes looks so often whether it was let go.
pub const FORGET_LOOK_EVERY: Duration = Duration::from_millis(10);
pub const BACKLOG_LOOK_EVERY: Duration = Duration::from_millis(10);

/// Entries one listing call returns at most.
pub const LIST_MAX: usize = 1000;

/// Directories of one store.
pub const DRIVES_MAX: usize = 256;

const _: () = {
    use crate::dare::header::{PACKAGE, PAYLOAD};
    assert!(EXTENT_PACKAGES as usize * PACKAGE == EXTENT_DATA_SECTORS as usize * SECTOR);
    assert!(WRITE_BUFFER_BYTES.is_multiple_of(SECTOR));
    assert!(INLINE_BYTES_MAX as usize <= PAYLOAD);
    // What an extent has to spare goes out with its tail.
    assert!((END_SLACK_BYTES as usize).div_ceil(SECTOR) + 8 < WRITE_BUFFER_BYTES / SECTOR);
    assert!(EXTENT_PACKAGES.is_multiple_of(READ_PACKAGES));
    assert!(INDEX_SPACE_MIN < RESERVE_BYTES);
    assert!(RESERVE_BYTES > INDEX_JOURNAL_BYTES_MAX + 4 * INDEX_MEMTABLE_BYTES);
    assert!(SEGMENT_SECTORS_MAX > EXTENT_DATA_SECTORS * 2);
    assert!(
        COPY_PIECE_BYTES * 2 < BLOCK_BYTES_MAX
            && BLOCK_BYTES_MAX / SECTOR < SEGMENT_SECTORS_MAX as usize
    );
    assert!(COPY_KEYS_DUE < COPY_KEYS_MAX);
};
