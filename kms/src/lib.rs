//! Keys: an embedded keystore, encryption contexts, data keys. Knows nothing of objects.
//!
//! - A data key leaves here in clear only as [`DataKey`], and sealed only in KES's format, bound to its
//!   [`Context`].
//! - There is no fallback: when the named key cannot be used, the answer is an [`Error`].
//! - Changes of the keystore are durable when the call that makes them returns.

mod cache;
mod ciphertext;
mod confirm;
mod context;
mod error;
mod flight;
#[cfg(fuzzing)]
pub mod fuzzing;
mod homes;
mod kes;
mod keys;
#[cfg(test)]
mod keys_tests;
mod keystore;
mod lease;
mod limits;
mod name;
mod passphrase;
mod random;
mod root;
mod seal;
mod secret;
mod settings;
mod shares;
mod static_key;
mod time;
mod wrap;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::time::Duration;

use cache::Cache;
use confirm::Confirmations;
use keystore::Keystore;
use keystore::files::Files;
use lease::{Leases, Standing};
use time::now_ms;

pub use cache::CacheLimits;
pub use ciphertext::Algorithm;
pub use context::{Context, canonical as canonical_context};
pub use error::{Caller, Environment, Error, KeyProblem, Outage, Place};
pub use homes::Homes;
pub use kes::api_key::{ApiKey, ClientCertificate, identity_of_certificate};
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
pub use keystore::files::is_file as is_keystore_file;
pub use lease::{KeyHold, KeyLease};
pub use root::{Generated, RootKey};
pub use secret::DataKey;
pub use settings::{Endpoint, KesCredentials, KesSettings, Remote, expand_ranges};
pub use shares::Share;
pub use static_key::StaticKey;
pub use time::utc;
pub use wrap::WrappingKey;

/// The key made with every new keystore: what objects are sealed under unless told otherwise.
pub const DEFAULT_KEY: &str = "strongroom-default";

const PURPOSE_LOCAL: &str = "strongroom local wrap v1";
const LOCAL_VERSION: u8 = 1;

/// The key service of one store, shared by all cores.
///
/// Calls that change something wait for the disk, and those that take a key away also for commits under
/// way: they belong on a thread that may block.
pub struct Kms {
    keystore: Keystore,
    local: secret::Secret32,
    static_key: RwLock<Option<StaticSlot>>,
    /// Leases on keys that are not in the keystore. A seal takes them, and what their service says.
    remote_leases: Leases,
    confirmations: Confirmations,
    /// The caches of all cores, to be flushed when a key is taken away.
    caches: Mutex<Vec<Weak<Mutex<Cache>>>>,
    stats: Stats,
}

/// The static key and where it comes from. Its name stays when a seal drops the key.
struct StaticSlot {
    name: String,
    read: Box<dyn Fn() -> Result<StaticKey, Error> + Send + Sync>,
    key: Option<StaticKey>,
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
    /// Opens the keystore of a store, the same in each of its directories, or makes one with the default key.
    ///
    /// A keystore that was sealed stays sealed. The caller holds the directories' locks.
    pub fn open(homes: impl Into<Homes>, root: RootKey) -> Result<Kms, Error> {
        let keystore = Keystore::open(&homes.into(), &root, Some(DEFAULT_KEY), now_ms())?;
        Ok(Self::over(keystore, &root))
    }

    /// As [`Kms::open`], but a keystore that is made holds no key: those of a key server are its clients'.
    /// One that was made here before and is gone is lost, as with [`Kms::open_existing`].
    pub fn open_bare(homes: impl Into<Homes>, root: RootKey) -> Result<Kms, Error> {
        let homes = homes.into();
        if Files::were_made(&homes) {
            return Self::open_existing(&homes, root);
        }
        let keystore = Keystore::open(&homes, &root, None, now_ms())?;
        Ok(Self::over(keystore, &root))
    }

    /// As [`Kms::open`], where there has to be a keystore: in a data directory that has objects, a missing
    /// one is damage, and a new one would only hide it. With a keystore that is missing or damaged, whatever
    /// needs a key fails with [`Outage::Lost`], until [`Kms::restore`].
    pub fn open_existing(homes: impl Into<Homes>, root: RootKey) -> Result<Kms, Error> {
        let homes = homes.into();
        let keystore = match Keystore::open_existing(&homes, &root) {
            Err(Error::Corrupt(place)) => Keystore::lost(&homes, place),
            opened => opened?,
        };
        Ok(Self::over(keystore, &root))
    }

    fn over(keystore: Keystore, root: &RootKey) -> Kms {
        Kms {
            keystore,
            local: root.derive(PURPOSE_LOCAL),
            static_key: RwLock::default(),
            remote_leases: Leases::default(),
            confirmations: Confirmations::default(),
            caches: Mutex::default(),
            stats: Stats::default(),
        }
    }

    /// Whether there is a keystore.
    #[must_use]
    pub fn exists(homes: impl Into<Homes>) -> bool {
        Files::exist(homes)
    }

    /// Whether there is a keystore, or was one.
    #[must_use]
    pub fn was_made(homes: impl Into<Homes>) -> bool {
        Files::were_made(homes)
    }

    /// Whether `root` opens the keystore. Nothing is opened.
    pub fn check_root(homes: impl Into<Homes>, root: &RootKey) -> Result<(), Error> {
        Files::check_root(homes, root)
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

    /// The names of the keys of a KES file-system keystore.
    pub fn kes_keys(directory: &Path) -> Result<Vec<String>, Error> {
        kes::import::names(directory)
    }

    /// Writes all keys to a new file, sealed under `key`: the store's root key, or one kept for backups.
    /// Says how many keys that is.
    pub fn backup(&self, file: &Path, key: &RootKey) -> Result<usize, Error> {
        self.keystore.backup(file, key, now_ms())
    }

    /// Adds what a backup holds and the keystore does not. Nothing is replaced; a key of the same name and
    /// version with other bytes is an error, and then nothing is added either. A keystore that is lost is
    /// made anew from the backup, under `root`.
    pub fn restore(&self, file: &Path, key: &RootKey, root: &RootKey) -> Result<Restored, Error> {
        self.keystore.restore(file, key, root, now_ms())
    }

    /// Drops every key from memory. Whatever needs one fails with [`Outage::Sealed`] from now on, after a
    /// restart too, until [`Kms::unseal`].
    pub fn seal(&self) -> Result<(), Error> {
        self.keystore.seal(|| {
            if let Some(slot) = self.static_slot().as_mut() {
                slot.key = None;
            }
            let lost = self.remote_leases.set(|_, _| Standing::Sealed);
            self.flush(None);
            lost
        })
    }

    /// Seals a keystore that no process has open: that needs no key. The caller holds the data directory's lock.
    pub fn seal_at_rest(homes: impl Into<Homes>) -> Result<(), Error> {
        Files::mark_sealed(homes)
    }

    /// Loads the keys again, and lets them load at the next start.
    pub fn unseal(&self, root: &RootKey) -> Result<(), Error> {
        self.keystore.unseal(root, || {
            self.remote_leases.follow(|_, _| Standing::Good);
        })?;
        self.load_static_key()
    }

    /// Gives the service a static key, which serves all new data keys of cores made later unless those
    /// have KES. It is read now, and again after each unsealing, since a seal drops it.
    pub fn set_static_key(
        &self,
        read: impl Fn() -> Result<StaticKey, Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let name = read()?.name().to_owned();
        *self.static_slot() = Some(StaticSlot {
            name,
            read: Box::new(read),
            key: None,
        });
        match self.load_static_key() {
            // The next unsealing loads it.
            Err(Error::Outage(Outage::Sealed)) => Ok(()),
            loaded => loaded,
        }
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

    /// Why no key of the keystore can be had, if none can.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.keystore.outage()
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

    fn static_slot(&self) -> RwLockWriteGuard<'_, Option<StaticSlot>> {
        self.static_key
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn load_static_key(&self) -> Result<(), Error> {
        let mut held = self.static_slot();
        let Some(slot) = held.as_mut().filter(|slot| slot.key.is_none()) else {
            return Ok(());
        };
        // Asked under the lock: a seal empties the keystore before it comes here.
        if self.is_sealed() {
            return Err(Outage::Sealed.into());
        }
        let key = (slot.read)()?;
        if key.name() != slot.name {
            return Err(Error::configuration(
                format!("static key {:?}", slot.name),
                "has another name now: restart the server",
            ));
        }
        slot.key = Some(key);
        Ok(())
    }

    fn static_key_name(&self) -> Option<String> {
        let held = self
            .static_key
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|slot| slot.name.clone())
    }

    /// Calls `with` on the static key, if `name` is its name.
    fn with_static_key<T>(
        &self,
        name: &str,
        with: impl FnOnce(&StaticKey) -> Result<T, Error>,
    ) -> Result<(T, KeyLease), Error> {
        let held = self
            .static_key
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match held.as_ref() {
            // No lease under a name that a client made up: they are kept.
            Some(slot) if slot.name == name => {
                let lease = self.remote_lease(Source::Static, name)?;
                match &slot.key {
                    Some(key) => Ok((with(key)?, lease)),
                    None => Err(Error::unreachable(
                        "the static key was not read again after the service was unsealed",
                    )),
                }
            }
            Some(_) if self.is_sealed() => Err(Outage::Sealed.into()),
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

#[cfg(test)]
mod tests;
