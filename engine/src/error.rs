//! What can go wrong in the engine, named by whose fault it is: the caller's, the load's, the disk's, or corruption.

use std::path::Path;

/// An engine error. Texts hold places and numbers, never object data or keys.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    // The caller asked for something that is not there or not allowed.
    #[error("no such bucket")]
    NoSuchBucket,
    #[error("no such key")]
    NoSuchKey,
    #[error("no such upload")]
    NoSuchUpload,
    #[error("the bucket exists")]
    BucketExists,
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// A precondition does not hold; `condition` is the name of the header that asked for it.
    #[error("precondition failed: {condition}")]
    PreconditionFailed { condition: &'static str },
    /// The key changed while a conditional multipart upload or a change of encryption was under way.
    #[error("the key changed meanwhile")]
    Conflict,
    /// The object was replaced between being looked up and being read, and its parts went with it.
    #[error("the object was replaced while it was looked up")]
    Replaced,
    /// The version of the key that it is sealed under was taken out of use meanwhile.
    #[error("the version of the key was taken out of use meanwhile")]
    KeyRetired,
    /// A part named by a completion is absent or was replaced meanwhile.
    #[error("part {number} is not what the completion names")]
    InvalidPart { number: u16 },
    /// The stream of an upload ended before the announced length, or went past it.
    #[error("the body holds {got} bytes where {expected} were announced")]
    WrongLength { expected: u64, got: u64 },
    /// A limit of the engine; the text says which.
    #[error("{what} is too large: {got} of at most {max}")]
    TooLarge {
        what: &'static str,
        got: u64,
        max: u64,
    },

    // The machine cannot do it now.
    /// Pools are empty and stayed so for the time a request may wait.
    #[error("too busy: {what}")]
    Overloaded { what: &'static str },
    #[error("the disk is full")]
    DiskFull,
    /// A directory of the store is not there, or could not be opened at the start; `0` names it.
    #[error("{0} is missing")]
    DriveMissing(std::sync::Arc<str>),
    #[error("{path} is in use by another process")]
    InUse { path: String },
    /// The engine is closing down.
    #[error("shutting down")]
    Closed,
    #[error("{op} {path}: {reason}")]
    Io {
        op: &'static str,
        path: String,
        reason: String,
    },

    // What is on disk is not what was written.
    #[error("corrupt data: {what} at {place}")]
    Corrupt { what: String, place: String },
    /// The store cannot be opened as it is; the text says what to do.
    #[error("{0}")]
    Unusable(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(op: &'static str, path: &Path, e: impl std::fmt::Display) -> Self {
        Error::Io {
            op,
            path: path.display().to_string(),
            reason: e.to_string(),
        }
    }

    /// Nobody knows what is on disk after it, and another try may claim what is not so.
    pub(crate) fn is_failed_sync(&self) -> bool {
        matches!(self, Error::Io { op: "sync", .. })
    }

    pub(crate) fn corrupt(what: impl Into<String>, place: impl Into<String>) -> Self {
        Error::Corrupt {
            what: what.into(),
            place: place.into(),
        }
    }
}
