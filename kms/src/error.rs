//! What can go wrong with keys, sorted by whose fault it is.
//!
//! The outer variant says whose fault, the inner one what happened; both are meant to be matched on
//! without a wildcard. No text holds a key, a context value or a ciphertext.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A failure of the key service.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong; repeating it cannot help.
    #[error(transparent)]
    Caller(#[from] Caller),
    /// The named key exists no more, not yet, or may not be used now.
    #[error("key {name:?} {problem}")]
    KeyState { name: String, problem: KeyProblem },
    /// Keys cannot be reached now; the same request may succeed later.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// Stored bytes are not what was written.
    #[error("corrupt: {0}")]
    Corrupt(Place),
    /// The machine or its configuration stands in the way.
    #[error(transparent)]
    Environment(#[from] Environment),
}

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Caller {
    #[error(
        "key name {0:?} is not made of 1 to 80 letters, digits, '-' and '_', or begins or ends with '-'"
    )]
    InvalidKeyName(String),
    #[error("key {0:?} exists already")]
    KeyExists(String),
    #[error("encryption context: {0}")]
    InvalidContext(&'static str),
    #[error("the keystore has no room for another key or version")]
    KeystoreFull,
    #[error("not supported: {0}")]
    NotSupported(&'static str),
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("does not exist")]
    NotFound,
    #[error("is disabled")]
    Disabled,
    #[error("is pending deletion")]
    PendingDeletion,
    #[error("has been destroyed")]
    Destroyed,
    #[error("may not be used by this server, says the key service")]
    NotAuthorized,
}

/// Why keys cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Outage {
    #[error("the key service is sealed")]
    Sealed,
    /// What the keystore is made of is gone or damaged; a backup brings it back.
    #[error("the keystore is lost ({0}): bring a backup back with `strongroom kms restore FILE`")]
    Lost(Box<Place>),
    #[error("the key service cannot be reached: {0}")]
    Unreachable(String),
}

/// Where corrupt bytes were met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Place {
    #[error("keystore {0}")]
    Keystore(PathBuf),
    #[error("backup of the keystore {0}")]
    Backup(PathBuf),
    #[error("file key of the keystore {0}")]
    FileKey(PathBuf),
    #[error("root key under a passphrase {0}")]
    Passphrase(PathBuf),
    #[error("stored ciphertext of a data key under key {0:?}")]
    DataKey(String),
    #[error("secret wrapped under the local root key")]
    LocalWrap,
    #[error("secret wrapped under a key of the key service")]
    KeyWrap,
}

/// What the machine or the operator has to put right.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Environment {
    #[error("the root key is not the one this keystore was sealed with")]
    WrongRootKey,
    #[error("a root key is base64 of 32 bytes")]
    RootKeyFormat,
    #[error("the passphrase is not the one that the root key was stored under")]
    WrongPassphrase,
    #[error("a passphrase needs at least 12 characters, and better many more")]
    ShortPassphrase,
    #[error("shares of a root key: {0}")]
    Share(&'static str),
    #[error("{what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: Arc<io::Error>,
    },
    #[error("{what}: {problem}")]
    Configuration { what: String, problem: String },
    #[error("{place} and {others} are not the same keystore: move one of them elsewhere")]
    OtherKeystore { place: PathBuf, others: PathBuf },
    #[error("an earlier change of the keystore failed half-way; restart before changing keys")]
    KeystoreBroken,
}

impl Error {
    pub(crate) fn key(name: &str, problem: KeyProblem) -> Self {
        Self::KeyState {
            name: name.to_owned(),
            problem,
        }
    }

    pub(crate) fn configuration(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Environment(Environment::Configuration {
            what: what.into(),
            problem: problem.into(),
        })
    }

    pub(crate) fn unreachable(why: impl Into<String>) -> Self {
        Self::Outage(Outage::Unreachable(why.into()))
    }

    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Environment(Environment::Io {
            what,
            path: path.to_owned(),
            source: Arc::new(source),
        })
    }
}
