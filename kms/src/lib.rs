//! Keys: an embedded keystore, encryption contexts, data keys. Knows nothing of objects.
//!
//! - A data key leaves here in clear only as [`DataKey`], and sealed only in KES's format, bound to its
//!   [`Context`].
//! - There is no fallback: when the named key cannot be used, the answer is an [`Error`].
//! - Changes of the keystore are durable when the call that makes them returns.

mod cache;
mod ciphertext;
mod context;
mod error;
mod flight;
mod kes;
mod keys;
#[cfg(test)]
mod keys_tests;
mod keystore;
mod lease;
mod limits;
mod name;
mod random;
mod root;
mod seal;
mod secret;
mod settings;
mod static_key;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cache::Cache;
use keystore::Keystore;
use keystore::files::Files;
use lease::{Leases, Standing};

pub use cache::CacheLimits;
pub use ciphertext::Algorithm;
pub use context::{Context, canonical as canonical_context};
pub use error::{Caller, Environment, Error, KeyProblem, Outage, Place};
pub use kes::api_key::{ApiKey, ClientCertificate};
pub use kes::client::{
    Connection, KesClient, KesKey, KesStatus, LocalFuture, Request, Response, SendError,
};
pub use kes::import::Imported;
pub use kes::server::{
    KesCacheExpiry, KesConfig, KesServer, KesTls, LogReader, RequestBody, ServerBody, ServerLimits,
    ServerRequest, ServerResponse,
};
pub use keys::{Kes, Keys, KeysOptions, NewKey, OpenKey, Source, StoredDataKey};
pub use keystore::backup::Restored;
pub use lease::{KeyHold, KeyLease};
pub use root::{Generated, RootKey};
pub use secret::DataKey;
pub use settings::{Endpoint, KesCredentials, KesSettings, Remote};
pub use static_key::StaticKey;

/// The key made with every new keystore: what objects are sealed under unless told otherwise.
pub const DEFAULT_KEY: &str = "strongroom-default";

const PURPOSE_LOCAL: &str = "strongroom local wrap v1";
const LOCAL_VERSION: u8 = 1;

/// The key service of one data directory, shared by all cores.
///
/// Calls that change something wait for the disk, and those that take a key away also for commits under
/// way: they belong on a thread that may block.
pub struct Kms {
    keystore: Keystore,
    local: secret::Secret32,
    static_key: RwLock<Option<StaticKey>>,
    /// Leases on keys that are not in the keystore. A seal takes them, and what their service says.
    remote_leases: Leases,
    /// The caches of all cores, to be flushed when a key is taken away.
    caches: Mutex<Vec<Weak<Mutex<Cache>>>>,
    stats: Stats,
}

/// Counters of all cores since the start.
#[derive(Default)]
struct Stats {
    calls: AtomicU64,
    outages: AtomicU64,
    hits: AtomicU64,
    stale_hits: AtomicU64,
}

/// What the counters say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyStats {
    /// Calls of a key service elsewhere.
    pub calls: u64,
    /// How many of them it did not answer.
    pub outages: u64,
    /// Data keys found in a cache instead.
    pub hits: u64,
    /// Data keys given from a cache because the service could not be reached.
    pub stale_hits: u64,
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
    /// Unusable, and destroyed at this moment (Unix milliseconds) unless enabled before.
    PendingDeletion {
        at: u64,
    },
    Destroyed,
}

/// When to destroy a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    Now,
    /// Unusable at once, destroyed later; until then the key can be enabled again.
    After(Duration),
}

/// A fresh data key: in clear, and sealed for storing beside what it protects.
pub struct NewDataKey {
    pub plaintext: DataKey,
    pub ciphertext: Vec<u8>,
    /// The key it is sealed under, and which version of it.
    pub key: String,
    pub version: u32,
    /// Tells whether that version may still be used: hold it across the commit.
    pub lease: KeyLease,
}

/// A data key that was stored, in clear again.
pub struct OpenedDataKey {
    pub plaintext: DataKey,
    /// The version it is sealed under.
    pub version: u32,
    /// Tells whether that version may still be used: ask it while data flows.
    pub lease: KeyLease,
}

impl Kms {
    /// Opens the keystore in the data directory, or makes one with the default key.
    ///
    /// A keystore that was sealed stays sealed. The caller holds the data directory's lock.
    pub fn open(dir: &Path, root: RootKey) -> Result<Kms, Error> {
        let keystore = Keystore::open(dir, &root, DEFAULT_KEY, now_ms())?;
        Ok(Kms {
            keystore,
            local: root.derive(PURPOSE_LOCAL),
            static_key: RwLock::default(),
            remote_leases: Leases::default(),
            caches: Mutex::default(),
            stats: Stats::default(),
        })
    }

    /// As [`Kms::open`], where there has to be a keystore: in a data directory that has objects, a missing
    /// one is damage, and a new one would only hide it.
    pub fn open_existing(dir: &Path, root: RootKey) -> Result<Kms, Error> {
        if !Self::exists(dir) {
            let place = dir.join(keystore::files::DIRECTORY);
            return Err(Error::Corrupt(Place::Keystore(place)));
        }
        Self::open(dir, root)
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
        self.keystore.create(name, now_ms(), "")
    }

    /// The keys whose names begin with `prefix`, in byte order, destroyed ones left out.
    pub fn list_keys(&self, prefix: &str) -> Result<Vec<KeyInfo>, Error> {
        self.keystore.list(prefix)
    }

    /// What may be told of one key, whatever its state.
    pub fn describe_key(&self, name: &str) -> Result<KeyInfo, Error> {
        self.keystore.describe(name)
    }

    /// Adds a version that new data keys are sealed under; older versions still open theirs.
    pub fn rotate_key(&self, name: &str) -> Result<KeyInfo, Error> {
        let info = self.keystore.rotate(name, now_ms(), "")?;
        // Bucket keys under the version before it are no longer handed out.
        self.flush(Some(name));
        Ok(info)
    }

    /// Destroys the versions of a key below `keep_from`, once nothing is sealed under them any more. The
    /// current version always stays.
    pub fn retire_versions(&self, name: &str, keep_from: u32) -> Result<KeyInfo, Error> {
        let info = self.keystore.retire(name, keep_from)?;
        self.flush(Some(name));
        Ok(info)
    }

    /// Makes a key unusable until it is enabled again.
    pub fn disable_key(&self, name: &str) -> Result<KeyInfo, Error> {
        let info = self.keystore.disable(name)?;
        self.flush(Some(name));
        Ok(info)
    }

    /// Makes a disabled key usable, or takes a deletion back whose time has not come.
    pub fn enable_key(&self, name: &str) -> Result<KeyInfo, Error> {
        self.keystore.enable(name)
    }

    /// Destroys a key, at once or after a waiting period. Nothing sealed under it opens afterwards, and
    /// no copy of it is left that the present root key opens.
    pub fn delete_key(&self, name: &str, when: Deletion) -> Result<KeyInfo, Error> {
        let info = match when {
            Deletion::Now => self.keystore.destroy(name)?,
            Deletion::After(wait) => self.keystore.destroy_after(name, now_ms(), wait)?,
        };
        self.flush(Some(name));
        Ok(info)
    }

    /// Destroys the keys whose waiting period is over; called now and then. Returns their names.
    pub fn destroy_due_keys(&self) -> Result<Vec<String>, Error> {
        self.keystore.destroy_due(now_ms())
    }

    /// Takes over the keys of a KES file-system keystore: all of them, or none and an error.
    pub fn import_kes(&self, directory: &Path) -> Result<Imported, Error> {
        kes::import::import(&self.keystore, directory)
    }

    /// Writes all keys to a new file, sealed under `key`: the store's root key, or one kept for backups.
    /// Says how many keys that is.
    pub fn backup(&self, file: &Path, key: &RootKey) -> Result<usize, Error> {
        self.keystore.backup(file, key, now_ms())
    }

    /// Adds what a backup holds and the keystore does not. Nothing is replaced; a key of the same name and
    /// version with other bytes is an error, and then nothing is added either.
    pub fn restore(&self, file: &Path, key: &RootKey) -> Result<Restored, Error> {
        self.keystore.restore(file, key)
    }

    /// Makes a keystore from a backup, in a data directory that has none, or whose own is moved aside
    /// because it cannot be opened any more. The caller holds the data directory's lock.
    pub fn replace_by_backup(
        dir: &Path,
        root: &RootKey,
        file: &Path,
        key: &RootKey,
    ) -> Result<Restored, Error> {
        keystore::backup::replace(dir, root, file, key, now_ms())
    }

    /// Drops every key from memory. Whatever needs one fails with [`Outage::Sealed`] from now on, after a
    /// restart too, until [`Kms::unseal`].
    pub fn seal(&self) -> Result<(), Error> {
        let sealed = self.keystore.seal();
        *self
            .static_key
            .write()
            .unwrap_or_else(PoisonError::into_inner) = None;
        self.remote_leases.follow(|_, _| Standing::Sealed);
        self.flush(None);
        sealed
    }

    /// Loads the keys again, and lets them load at the next start.
    pub fn unseal(&self, root: &RootKey) -> Result<(), Error> {
        self.keystore.unseal(root)?;
        self.remote_leases.follow(|_, _| Standing::Good);
        Ok(())
    }

    /// Gives the service a static key, at the start and after each unsealing: a seal drops it.
    pub fn set_static_key(&self, key: StaticKey) -> Result<(), Error> {
        let mut held = self
            .static_key
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock: a seal empties the keystore before it comes here.
        if self.is_sealed() {
            return Err(Outage::Sealed.into());
        }
        *held = Some(key);
        Ok(())
    }

    /// What was counted since the start, on all cores.
    #[must_use]
    pub fn stats(&self) -> KeyStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KeyStats {
            calls: read(&self.stats.calls),
            outages: read(&self.stats.outages),
            hits: read(&self.stats.hits),
            stale_hits: read(&self.stats.stale_hits),
        }
    }

    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.keystore.is_sealed()
    }

    /// A fresh data key, sealed under the current version of `name` and bound to `context`.
    pub async fn generate_data_key(
        &self,
        name: &str,
        context: &Context,
    ) -> Result<NewDataKey, Error> {
        self.generate_embedded(name, &context.canonical())
    }

    /// Opens a data key that `version` of `name` sealed for `context`. Version 0 stands for unknown:
    /// all of them are tried, newest first.
    pub async fn open_data_key(
        &self,
        name: &str,
        version: u32,
        ciphertext: &[u8],
        context: &Context,
    ) -> Result<OpenedDataKey, Error> {
        self.open_embedded(name, version, ciphertext, &context.canonical())
    }

    /// As [`Kms::open_data_key`], for callers that are done with the key at once.
    pub async fn decrypt_data_key(
        &self,
        name: &str,
        version: u32,
        ciphertext: &[u8],
        context: &Context,
    ) -> Result<DataKey, Error> {
        let opened = self
            .open_data_key(name, version, ciphertext, context)
            .await?;
        Ok(opened.plaintext)
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

    fn generate_embedded(&self, name: &str, context: &[u8]) -> Result<NewDataKey, Error> {
        self.keystore.with_key(name, |held| {
            let plaintext = DataKey::random();
            let (ciphertext, version) = held.seal(plaintext.expose(), context);
            Ok(NewDataKey {
                plaintext,
                ciphertext,
                key: name.to_owned(),
                version,
                lease: held.lease(version),
            })
        })
    }

    fn open_embedded(
        &self,
        name: &str,
        version: u32,
        ciphertext: &[u8],
        context: &[u8],
    ) -> Result<OpenedDataKey, Error> {
        self.keystore.with_key(name, |held| {
            let (plaintext, version) = held.open_data_key(version, ciphertext, context)?;
            Ok(OpenedDataKey {
                plaintext,
                version,
                lease: held.lease(version),
            })
        })
    }

    fn static_key_name(&self) -> Option<String> {
        let held = self
            .static_key
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|key| key.name().to_owned())
    }

    /// Calls `with` on the static key, if `name` is its name.
    fn with_static_key<T>(
        &self,
        name: &str,
        with: impl FnOnce(&StaticKey) -> Result<T, Error>,
    ) -> Result<(T, KeyLease), Error> {
        let lease = self.remote_lease(Source::Static, name)?;
        let held = self
            .static_key
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match held.as_ref() {
            Some(key) if key.name() == name => Ok((with(key)?, lease)),
            Some(_) => Err(Error::key(name, KeyProblem::NotFound)),
            None => Err(Error::unreachable(
                "the key is a static one, and none is configured",
            )),
        }
    }

    /// A lease on a key of another source, unless the service is sealed.
    fn remote_lease(&self, source: Source, name: &str) -> Result<KeyLease, Error> {
        // Taken first, asked second: a seal empties the keystore first and turns to leases second.
        let lease = self.remote_leases.lease(name, source as u32);
        if self.is_sealed() {
            return Err(Outage::Sealed.into());
        }
        Ok(lease)
    }

    /// Takes in what another service says of its key.
    fn note_remote(&self, source: Source, name: &str, standing: Standing) {
        self.remote_leases.note(name, source as u32, standing);
        if standing != Standing::Good {
            self.flush(Some(name));
        }
    }

    fn register(&self, cache: &Arc<Mutex<Cache>>) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|held| held.strong_count() > 0);
        caches.push(Arc::downgrade(cache));
    }

    /// Wipes the data keys under one key, or all of them, from the caches of all cores.
    fn flush(&self, key: Option<&str>) {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        for cache in caches.iter().filter_map(Weak::upgrade) {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.flush(key);
        }
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
        for entry in std::fs::read_dir(dir.path().join("keystore")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!holds(b"canary-name"));
            kms.keystore
                .with_key("canary-name", |held| {
                    assert!(!holds(held.current().material.expose()));
                    Ok(())
                })
                .unwrap();
        }
    }

    fn problem<T>(result: Result<T, Error>) -> Option<KeyProblem> {
        match result {
            Ok(_) => None,
            Err(Error::KeyState { problem, .. }) => Some(problem),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn disable_and_enable() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        kms.create_key("k").unwrap();
        let made = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
        let open = |kms: &Kms| now(kms.open_data_key("k", 1, &made.ciphertext, &context("a")));
        let lease = open(&kms).ok().unwrap().lease;

        assert_eq!(kms.disable_key("k").unwrap().state, KeyState::Disabled);
        for got in [
            problem(open(&kms)),
            problem(now(kms.generate_data_key("k", &context("a")))),
            problem(lease.check()),
            problem(made.lease.hold()),
            problem(kms.rotate_key("k")),
        ] {
            assert_eq!(got, Some(KeyProblem::Disabled));
        }
        assert!(kms.create_key("k").is_err());
        assert!(now(kms.generate_data_key(DEFAULT_KEY, &context("a"))).is_ok());
        drop(kms);
        let kms = Kms::open(dir.path(), root).ok().unwrap();
        assert_eq!(problem(open(&kms)), Some(KeyProblem::Disabled));
        assert_eq!(kms.enable_key("k").unwrap().state, KeyState::Enabled);
        assert!(open(&kms).ok().unwrap().plaintext == made.plaintext);
    }

    #[test]
    fn rotate_keeps_older_versions() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
        kms.create_key("k").unwrap();
        let first = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
        let info = kms.rotate_key("k").unwrap();
        assert_eq!((info.version, info.versions), (2, 2));
        let second = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
        assert_eq!(second.version, 2);
        for made in [&first, &second] {
            for version in [0, made.version] {
                let open = now(kms.open_data_key("k", version, &made.ciphertext, &context("a")));
                let open = open.ok().unwrap();
                assert!(open.plaintext == made.plaintext);
                assert_eq!(open.version, made.version);
            }
            let other = 3 - made.version;
            assert!(now(kms.open_data_key("k", other, &made.ciphertext, &context("a"))).is_err());
        }

        assert_eq!(kms.retire_versions("k", 9).unwrap().versions, 1);
        assert_eq!(problem(first.lease.check()), Some(KeyProblem::Destroyed));
        assert_eq!(problem(second.lease.check()), None);
        assert_eq!(
            problem(now(kms.open_data_key(
                "k",
                1,
                &first.ciphertext,
                &context("a")
            ))),
            Some(KeyProblem::Destroyed)
        );
        assert!(now(kms.open_data_key("k", 2, &second.ciphertext, &context("a"))).is_ok());
    }

    #[test]
    fn a_deleted_key_is_gone_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        kms.create_key("k").unwrap();
        kms.create_key("other").unwrap();
        let made = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
        let other = now(kms.generate_data_key("other", &context("a")))
            .ok()
            .unwrap();
        let keys = dir.path().join("keystore/keys");
        let before = std::fs::read(&keys).unwrap();

        assert_eq!(
            kms.delete_key("k", Deletion::Now).unwrap().state,
            KeyState::Destroyed
        );
        assert_eq!(problem(made.lease.check()), Some(KeyProblem::Destroyed));
        assert!(other.lease.check().is_ok());
        for again in [
            kms.delete_key("k", Deletion::Now),
            kms.enable_key("k"),
            kms.disable_key("k"),
            kms.rotate_key("k"),
        ] {
            assert_eq!(problem(again), Some(KeyProblem::Destroyed));
        }
        assert!(!kms.list_keys("").unwrap().iter().any(|key| key.name == "k"));
        assert_eq!(kms.describe_key("k").unwrap().state, KeyState::Destroyed);

        // The same name again is another key, and says so of what the first one sealed.
        assert_eq!(kms.create_key("k").unwrap().version, 2);
        assert_eq!(
            problem(now(kms.open_data_key(
                "k",
                1,
                &made.ciphertext,
                &context("a")
            ))),
            Some(KeyProblem::Destroyed)
        );
        assert!(now(kms.open_data_key("k", 0, &made.ciphertext, &context("a"))).is_err());
        assert_eq!(problem(made.lease.check()), Some(KeyProblem::Destroyed));
        drop(kms);

        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        assert!(now(kms.open_data_key("other", 1, &other.ciphertext, &context("a"))).is_ok());
        drop(kms);
        std::fs::write(&keys, before).unwrap();
        assert!(matches!(
            Kms::open(dir.path(), root),
            Err(Error::Corrupt(Place::Keystore(_)))
        ));
    }

    #[test]
    fn a_waiting_period() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
        kms.create_key("k").unwrap();
        let made = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
        let open = || now(kms.open_data_key("k", 1, &made.ciphertext, &context("a")));
        let hour = Deletion::After(Duration::from_secs(3600));
        let info = kms.delete_key("k", hour).unwrap();
        let KeyState::PendingDeletion { at } = info.state else {
            panic!()
        };
        assert_eq!(problem(open()), Some(KeyProblem::PendingDeletion));
        assert_eq!(
            problem(made.lease.check()),
            Some(KeyProblem::PendingDeletion)
        );
        assert!(kms.destroy_due_keys().unwrap().is_empty());
        assert!(kms.keystore.destroy_due(at - 1).unwrap().is_empty());
        kms.enable_key("k").unwrap();
        assert!(kms.keystore.destroy_due(at).unwrap().is_empty());
        assert!(open().is_ok());
        assert!(made.lease.check().is_ok());
        kms.delete_key("k", hour).unwrap();
        assert_eq!(kms.keystore.destroy_due(u64::MAX).unwrap(), ["k"]);
        assert_eq!(problem(open()), Some(KeyProblem::Destroyed));
    }

    #[test]
    fn a_seal_outlives_a_restart_and_needs_the_root_key() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        let made = now(kms.generate_data_key(DEFAULT_KEY, &context("a")))
            .ok()
            .unwrap();
        let wrapped = kms.wrap_local(b"store", &[3; 32]);
        kms.seal().unwrap();
        kms.seal().unwrap();
        let sealed = |kms: &Kms| {
            assert!(kms.is_sealed());
            for outcome in [
                now(kms.generate_data_key(DEFAULT_KEY, &context("a"))).map(drop),
                now(kms.open_data_key(DEFAULT_KEY, 1, &made.ciphertext, &context("a"))).map(drop),
                made.lease.check(),
                kms.create_key("new").map(drop),
                kms.list_keys("").map(drop),
                kms.delete_key(DEFAULT_KEY, Deletion::Now).map(drop),
            ] {
                assert!(matches!(outcome, Err(Error::Outage(Outage::Sealed))));
            }
            // What lists objects is not under the seal.
            assert!(kms.unwrap_local(b"store", &wrapped).is_ok());
        };
        sealed(&kms);
        drop(kms);
        assert!(matches!(
            Kms::open(dir.path(), RootKey::generate()),
            Err(Error::Environment(Environment::WrongRootKey))
        ));
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        sealed(&kms);
        assert!(matches!(
            kms.unseal(&RootKey::generate()),
            Err(Error::Environment(Environment::WrongRootKey))
        ));
        sealed(&kms);
        kms.unseal(&root).unwrap();
        kms.unseal(&root).unwrap();
        assert!(kms.unseal(&RootKey::generate()).is_err());
        for kms in [&kms, &Kms::open(dir.path(), root).ok().unwrap()] {
            let open = now(kms.open_data_key(DEFAULT_KEY, 1, &made.ciphertext, &context("a")));
            assert!(open.ok().unwrap().plaintext == made.plaintext);
        }
    }

    #[test]
    fn leases_come_back_with_the_unsealing() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        let made = now(kms.generate_data_key(DEFAULT_KEY, &context("a")))
            .ok()
            .unwrap();
        kms.seal().unwrap();
        assert!(made.lease.hold().is_err());
        kms.unseal(&root).unwrap();
        assert!(made.lease.hold().is_ok());
    }
}
