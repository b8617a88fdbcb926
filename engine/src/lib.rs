//! Storage and cryptography of Strongroom: sealed objects on NVMe, without HTTP, network or key service.
//!
//! An [`Engine`] is an open store in one directory; each core opens its own [`Shard`] of it inside its glommio executor. [`Engines`]
//! are a store in several, of which each core has its [`Drives`]. A [`PutStream`] seals what it
//! is given into direct writes; a [`GetStream`] hands out verified plaintext. `FORMAT.md` beside this crate has every byte on disk.

pub mod dare;
pub mod hierarchy;
pub mod secret;
pub mod simd;

mod cache;
mod datadir;
mod drives;
mod engine;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod index;
mod io;
mod limits;
mod object;
mod permits;
mod rt;
mod scrubber;
mod segment;
mod set;
mod shard;
mod shelf;
#[cfg(test)]
mod sim;
mod space;
mod verify;

pub use cache::CacheStats;
pub use datadir::{DataDir, Seat, Superblock};
pub use drives::{Drives, DrivesSeed, Engines, Observed, Observers};
pub use engine::{Engine, EngineOptions, Observer, Opening, ShardSeed, Usage, tally_at_rest};
pub use error::{Error, Result};
pub use index::rebuild::{Finding, Recovery, rebuild};
pub use index::record;
pub use index::tally::{Tally, Under};
pub use io::DiskStats;
pub use limits::{
    DRIVES_MAX, END_SLACK_BYTES, KEY_BYTES_MAX, OPEN_END_BYTES, PARTS_MAX, STREAM_BYTES_MAX,
};
pub use object::{
    Committed, Completion, Condition, EtagMatch, Finish, Found, GetStream, ListEntry, ListPage,
    ListQuery, NewUpload, PartChoice, PartEntry, PutStream, Target, UploadEntry, UploadPage,
    UploadQuery, WrappedCursor, WrappedEntry, WrappedPage, WrappedQuery,
};
pub use permits::{Permit, Permits};
pub use scrubber::Scrubbed;
pub use set::{DataDirs, Missing};
pub use shard::Shard;
pub use space::Room;
pub use verify::{Event, KeyAnswer, ObjectKeys, Verified, export, verify};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use rt::random;
#[cfg(not(test))]
pub use rt::{blocking, end_blocking};
use secret::Secret;

/// A key for one purpose, from the key of the store.
fn derive(store_key: &Secret, purpose: &[u8]) -> Secret {
    let mut mac = Hmac::<Sha256>::new_from_slice(store_key.expose()).expect("any length is a key");
    mac.update(purpose);
    Secret::new(mac.finalize().into_bytes().into())
}
