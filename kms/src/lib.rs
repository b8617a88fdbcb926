//! Keys: an embedded keystore, encryption contexts, data keys. Knows nothing of objects.
//!
//! - A data key leaves here in clear only as [`DataKey`], and sealed only in KES's format, bound to its
//!   [`Context`].
//! - There is no fallback: when the named key cannot be used, the answer is an [`Error`].
//! - Changes of the keystore are durable when the call that makes them returns.

#![cfg_attr(not(test), allow(dead_code))]

mod ciphertext;
mod context;
mod error;
mod kes;
mod keystore;
mod limits;
mod name;
mod random;
mod root;
mod seal;
mod secret;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use kes::stored::Timestamp;
use keystore::book::{Book, Key, State, Version};
use keystore::files::Files;

pub use ciphertext::Algorithm;
pub use context::{Context, canonical as canonical_context};
pub use error::{Caller, Environment, Error, KeyProblem, Outage, Place};
pub use root::{Generated, RootKey};
pub use secret::DataKey;

/// The key made with every new keystore: what objects are sealed under unless told otherwise.
pub const DEFAULT_KEY: &str = "strongroom-default";

const PURPOSE_LOCAL: &str = "strongroom local wrap v1";
const LOCAL_VERSION: u8 = 1;

/// The key service of one data directory, shared by all cores.
pub struct Kms {
    /// What callers read. Taken for writing only to swap in a book that is already on disk.
    book: RwLock<Book>,
    /// Held through a whole change, so changes come one after another.
    files: Mutex<Files>,
    local: secret::Secret32,
}

/// What may be told of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub name: String,
    /// The current version; 0 when the key is destroyed.
    pub version: u32,
    /// How many versions there are.
    pub versions: u32,
    pub state: KeyState,
    /// Unix time in milliseconds.
    pub created_at: u64,
    /// The cipher of the current version.
    pub algorithm: Algorithm,
}

/// Whether a key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    /// Destroyed at this moment (Unix milliseconds), unless enabled before.
    PendingDeletion {
        at: u64,
    },
    Destroyed,
}

/// A fresh data key: in clear, and sealed for storing beside what it protects.
pub struct NewDataKey {
    pub plaintext: DataKey,
    pub ciphertext: Vec<u8>,
    /// The key it is sealed under, and which version of it.
    pub key: String,
    pub version: u32,
}

impl Kms {
    /// Opens the keystore in the data directory, or makes one with the default key.
    ///
    /// The caller holds the data directory's lock.
    pub fn open(dir: &Path, root: RootKey) -> Result<Kms, Error> {
        let (files, book) = if Self::exists(dir) {
            Files::open(dir, &root)?
        } else {
            let mut book = Book::default();
            book.keys
                .insert(DEFAULT_KEY.to_owned(), new_key(1, now_ms(), ""));
            (Files::create(dir, &root, &book)?, book)
        };
        Ok(Kms {
            book: RwLock::new(book),
            files: Mutex::new(files),
            local: root.derive(PURPOSE_LOCAL),
        })
    }

    /// Whether the data directory holds a keystore.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        Files::exist(dir)
    }

    /// The key for whatever names none.
    #[must_use]
    pub fn default_key(&self) -> &str {
        DEFAULT_KEY
    }

    /// Makes a key. A name in use is an error and changes nothing.
    pub fn create_key(&self, name: &str) -> Result<KeyInfo, Error> {
        name::check(name)?;
        let mut files = self.changing();
        let mut book = self.reading().clone();
        let next_version = match book.keys.get(name) {
            Some(key) if key.state != State::Destroyed => {
                return Err(Caller::KeyExists(name.to_owned()).into());
            }
            Some(key) => key.next_version,
            None if book.keys.len() >= limits::KEYS_MAX => return Err(Caller::KeystoreFull.into()),
            None => 1,
        };
        let key = new_key(next_version, now_ms(), "");
        let info = info(name, &key);
        book.keys.insert(name.to_owned(), key);
        files.replace(&book)?;
        self.swap_in(book);
        Ok(info)
    }

    /// The keys whose names begin with `prefix`, in byte order, destroyed ones left out.
    pub fn list_keys(&self, prefix: &str) -> Result<Vec<KeyInfo>, Error> {
        Ok(self
            .reading()
            .keys
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(_, key)| key.state != State::Destroyed)
            .map(|(name, key)| info(name, key))
            .collect())
    }

    /// What may be told of one key, whatever its state.
    pub fn describe_key(&self, name: &str) -> Result<KeyInfo, Error> {
        name::check(name)?;
        match self.reading().keys.get(name) {
            Some(key) => Ok(info(name, key)),
            None => Err(Error::key(name, KeyProblem::NotFound)),
        }
    }

    /// A fresh data key, sealed under the current version of `name` and bound to `context`.
    pub async fn generate_data_key(
        &self,
        name: &str,
        context: &Context,
    ) -> Result<NewDataKey, Error> {
        let book = self.reading();
        let key = usable(&book, name)?;
        let version = key.current().expect("a usable key has a version");
        let plaintext = DataKey::random();
        let ciphertext = ciphertext::seal(
            &version.material,
            version.algorithm,
            plaintext.expose(),
            &context.canonical(),
        );
        Ok(NewDataKey {
            plaintext,
            ciphertext,
            key: name.to_owned(),
            version: version.number,
        })
    }

    /// Opens a data key that `version` of `name` sealed for `context`. Version 0 stands for unknown:
    /// all of them are tried, newest first.
    pub async fn decrypt_data_key(
        &self,
        name: &str,
        version: u32,
        ciphertext: &[u8],
        context: &Context,
    ) -> Result<DataKey, Error> {
        let book = self.reading();
        let key = usable(&book, name)?;
        let not_authentic = || Error::Corrupt(Place::DataKey(name.to_owned()));
        let parsed = ciphertext::parse(ciphertext).ok_or_else(not_authentic)?;
        let canonical = context.canonical();
        let mut candidates = key
            .versions
            .iter()
            .rev()
            .filter(|held| version == 0 || held.number == version)
            .peekable();
        if candidates.peek().is_none() {
            return Err(Error::key(name, KeyProblem::Destroyed));
        }
        candidates
            .find_map(|held| {
                ciphertext::open_parsed(&held.material, held.algorithm, &parsed, &canonical)
            })
            .and_then(|plain| DataKey::from_slice(&plain))
            .ok_or_else(not_authentic)
    }

    /// Wraps a secret of this server's own under the local root key, bound to `label`.
    #[must_use]
    pub fn wrap_local(&self, label: &[u8], secret: &[u8; 32]) -> Vec<u8> {
        let mut wrapped = vec![LOCAL_VERSION];
        wrapped.extend_from_slice(&seal::seal(&self.local, label, secret));
        wrapped
    }

    /// Opens what [`Kms::wrap_local`] made for the same label.
    pub fn unwrap_local(&self, label: &[u8], wrapped: &[u8]) -> Result<DataKey, Error> {
        wrapped
            .strip_prefix(&[LOCAL_VERSION])
            .and_then(|sealed| seal::open(&self.local, label, sealed))
            .and_then(|plain| DataKey::from_slice(&plain))
            .ok_or(Error::Corrupt(Place::LocalWrap))
    }

    // A panic while a lock is held cannot leave a book half changed: books are swapped whole.

    fn reading(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap_in(&self, book: Book) {
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = book;
    }
}

fn new_key(number: u32, now: u64, created_by: &str) -> Key {
    let created_at = Timestamp::from_millis(now);
    Key {
        state: State::Enabled,
        created_at,
        next_version: number + 1,
        versions: vec![Version {
            number,
            algorithm: Algorithm::Aes256,
            material: secret::Secret32::random(),
            hmac: Some(secret::Secret32::random()),
            created_at,
            created_by: created_by.to_owned(),
        }],
    }
}

fn usable<'a>(book: &'a Book, name: &str) -> Result<&'a Key, Error> {
    name::check(name)?;
    let key = book
        .keys
        .get(name)
        .ok_or_else(|| Error::key(name, KeyProblem::NotFound))?;
    let problem = match key.state {
        State::Enabled => return Ok(key),
        State::Disabled => KeyProblem::Disabled,
        State::PendingDeletion { .. } => KeyProblem::PendingDeletion,
        State::Destroyed => KeyProblem::Destroyed,
    };
    Err(Error::key(name, problem))
}

fn info(name: &str, key: &Key) -> KeyInfo {
    let current = key.current();
    KeyInfo {
        name: name.to_owned(),
        version: current.map_or(0, |version| version.number),
        versions: u32::try_from(key.versions.len()).expect("bounded"),
        state: match key.state {
            State::Enabled => KeyState::Enabled,
            State::Disabled => KeyState::Disabled,
            State::PendingDeletion { at } => KeyState::PendingDeletion { at },
            State::Destroyed => KeyState::Destroyed,
        },
        created_at: key.created_at.millis(),
        algorithm: current.map_or(Algorithm::Aes256, |version| version.algorithm),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::pin::pin;
    use std::task::{Context as Task, Poll, Waker};

    /// The embedded keystore never waits, so its futures are ready at the first poll.
    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Task::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the embedded keystore waited"),
        }
    }

    fn context(path: &str) -> Context {
        Context::for_object(&BTreeMap::new(), "bucket", path)
    }

    #[test]
    fn kms_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Kms>();
    }

    #[test]
    fn data_keys_open_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        assert!(!Kms::exists(dir.path()));
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        assert!(Kms::exists(dir.path()));
        let made = now(kms.generate_data_key(kms.default_key(), &context("bucket/a")))
            .ok()
            .unwrap();
        assert_eq!((made.key.as_str(), made.version), (DEFAULT_KEY, 1));
        assert_eq!(made.ciphertext.len(), 76);
        drop(kms);
        let kms = Kms::open(dir.path(), root).ok().unwrap();
        for version in [0, 1] {
            let open = now(kms.decrypt_data_key(
                &made.key,
                version,
                &made.ciphertext,
                &context("bucket/a"),
            ));
            assert!(open.ok().unwrap() == made.plaintext);
        }
        assert!(matches!(
            now(kms.decrypt_data_key(&made.key, 1, &made.ciphertext, &context("bucket/b"))),
            Err(Error::Corrupt(Place::DataKey(_)))
        ));
        assert!(matches!(
            now(kms.decrypt_data_key(&made.key, 2, &made.ciphertext, &context("bucket/a"))),
            Err(Error::KeyState {
                problem: KeyProblem::Destroyed,
                ..
            })
        ));
    }

    /// Elsewhere a second create replaced the key, and every object under it was lost.
    #[test]
    fn create_twice_is_an_error_and_the_first_key_still_opens() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        let first = kms.create_key("tenant").unwrap();
        let made = now(kms.generate_data_key("tenant", &context("bucket/a")))
            .ok()
            .unwrap();
        for name in ["tenant", DEFAULT_KEY] {
            assert!(matches!(
                kms.create_key(name),
                Err(Error::Caller(Caller::KeyExists(_)))
            ));
        }
        for kms in [kms, Kms::open(dir.path(), root).ok().unwrap()] {
            assert_eq!(kms.describe_key("tenant").unwrap(), first);
            let open =
                now(kms.decrypt_data_key("tenant", 1, &made.ciphertext, &context("bucket/a")));
            assert!(open.ok().unwrap() == made.plaintext);
        }
    }

    #[test]
    fn a_created_key_is_on_disk_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        kms.create_key("one").unwrap();
        // The first `Kms` is still alive: nothing waits for its drop.
        let other = Kms::open(dir.path(), root).ok().unwrap();
        assert_eq!(
            other.describe_key("one").unwrap(),
            kms.describe_key("one").unwrap()
        );
    }

    #[test]
    fn list_and_describe() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
        for name in ["b", "a1", "a2"] {
            kms.create_key(name).unwrap();
        }
        let names = |prefix: &str| -> Vec<String> {
            kms.list_keys(prefix)
                .unwrap()
                .into_iter()
                .map(|key| key.name)
                .collect()
        };
        assert_eq!(names(""), ["a1", "a2", "b", DEFAULT_KEY]);
        assert_eq!(names("a"), ["a1", "a2"]);
        assert!(names("zz").is_empty());
        let info = kms.describe_key("a1").unwrap();
        assert_eq!(
            (info.version, info.versions, info.state),
            (1, 1, KeyState::Enabled)
        );
        assert_eq!(info.algorithm, Algorithm::Aes256);
        assert!(info.created_at > 1_600_000_000_000);
        assert!(matches!(
            kms.describe_key("none"),
            Err(Error::KeyState {
                problem: KeyProblem::NotFound,
                ..
            })
        ));
        for result in [kms.describe_key("a/b"), kms.create_key("a/b")] {
            assert!(matches!(
                result,
                Err(Error::Caller(Caller::InvalidKeyName(_)))
            ));
        }
    }

    #[test]
    fn unknown_keys_give_no_data_key() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
        assert!(matches!(
            now(kms.generate_data_key("none", &Context::default())),
            Err(Error::KeyState {
                problem: KeyProblem::NotFound,
                ..
            })
        ));
    }

    #[test]
    fn local_wrap_is_bound_to_its_label() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        let wrapped = kms.wrap_local(b"store key", &[9; 32]);
        let again = Kms::open(dir.path(), root).ok().unwrap();
        assert_eq!(
            again
                .unwrap_local(b"store key", &wrapped)
                .ok()
                .unwrap()
                .expose(),
            &[9; 32]
        );
        assert!(again.unwrap_local(b"other", &wrapped).is_err());
        for at in 0..wrapped.len() {
            let mut bad = wrapped.clone();
            bad[at] ^= 1;
            assert!(again.unwrap_local(b"store key", &bad).is_err(), "{at}");
        }
    }

    #[test]
    fn no_key_material_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
        kms.create_key("canary-name").unwrap();
        let book = kms.reading();
        for entry in std::fs::read_dir(dir.path().join("keystore")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!holds(b"canary-name"));
            for key in book.keys.values() {
                assert!(!holds(key.versions[0].material.expose()));
            }
        }
    }
}
