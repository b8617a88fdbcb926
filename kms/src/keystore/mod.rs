//! The embedded keystore: many named, versioned keys in one sealed file that is replaced as a whole.
//!
//! [`book`] is what it holds, [`files`] how that lies on disk. Here is how it lives: a change is made on
//! a copy of the book, written, and only then swapped in for readers; leases follow; and the call
//! returns when no commit is under way any more under what was taken away. So nobody ever acts on what
//! is not durable, and what a call took away is gone when it returns.
//!
//! Readers do their cryptography under the lock, so when a change has swapped its book in, no key of the
//! old one is in use.

pub(crate) mod backup;
pub(crate) mod book;
pub(crate) mod files;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use book::{Book, Key, Version};
use files::Files;

use crate::ciphertext::{self, Algorithm};
use crate::error::{Caller, Error, KeyProblem, Outage, Place};
use crate::homes::Homes;
use crate::kes::stored::StoredKey;
use crate::lease::{KeyLease, Leases, Lost, Standing};
use crate::limits;
use crate::name;
use crate::root::RootKey;
use crate::seal;
use crate::secret::{DataKey, Secret32};
use crate::time::Timestamp;
use crate::{KeyInfo, KeyState as State};

/// The keystore of one store.
pub(crate) struct Keystore {
    homes: Homes,
    /// What readers see, or why there is nothing to see. Taken for writing only to swap in what is on disk.
    book: RwLock<Result<Book, Outage>>,
    /// Held through a whole change, so changes come one after another; `None` while there is no book.
    files: Mutex<Option<Files>>,
    leases: Leases,
}

/// How a change has to be written.
enum Change {
    Nothing,
    /// Nothing was destroyed: earlier copies of the file may stay readable.
    Replace,
    /// Key material was destroyed, and earlier copies of the file with it.
    Erase,
}

/// A version in use, as the callers of [`Keystore::with_key`] get it.
pub(crate) struct Held<'a> {
    pub(crate) key: &'a Key,
    leases: &'a Leases,
    name: &'a str,
}

impl Keystore {
    /// Opens the keystore, or makes one that holds `first`. A sealed one stays sealed.
    pub(crate) fn open(
        homes: &Homes,
        root: &RootKey,
        first: Option<&str>,
        now: u64,
    ) -> Result<Self, Error> {
        if Files::exist(homes) {
            return Self::open_existing(homes, root);
        }
        let mut book = Book::default();
        if let Some(first) = first {
            book.keys.insert(first.to_owned(), new_key(1, now, ""));
        }
        let files = Files::create(homes, root, &book)?;
        Ok(Self::of(homes, Some(files), Ok(book)))
    }

    /// Opens the keystore that has to be there. A sealed one stays sealed.
    pub(crate) fn open_existing(homes: &Homes, root: &RootKey) -> Result<Self, Error> {
        if !Files::exist(homes) {
            let place = homes.first().join(files::DIRECTORY);
            return Err(Error::Corrupt(Place::Keystore(place)));
        }
        if Files::is_sealed(homes)? {
            Files::check_root(homes, root)?;
            return Ok(Self::of(homes, None, Err(Outage::Sealed)));
        }
        let (files, book) = Files::open(homes, root)?;
        Ok(Self::of(homes, Some(files), Ok(book)))
    }

    /// A keystore that could not be opened: whatever needs a key says so, until a backup is restored.
    pub(crate) fn lost(homes: &Homes, place: Place) -> Self {
        Self::of(homes, None, Err(Outage::Lost(Box::new(place))))
    }

    fn of(homes: &Homes, files: Option<Files>, book: Result<Book, Outage>) -> Self {
        Self {
            homes: homes.clone(),
            book: RwLock::new(book),
            files: Mutex::new(files),
            leases: Leases::default(),
        }
    }

    // Reading.

    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<KeyInfo>, Error> {
        self.read(|book| {
            Ok(book
                .keys
                .range(prefix.to_owned()..)
                .take_while(|(name, _)| name.starts_with(prefix))
                .filter(|(_, key)| key.state != State::Destroyed)
                .map(|(name, key)| info(name, key))
                .collect())
        })
    }

    pub(crate) fn describe(&self, name: &str) -> Result<KeyInfo, Error> {
        name::check(name)?;
        self.read(|book| match book.keys.get(name) {
            Some(key) => Ok(info(name, key)),
            None => Err(Error::key(name, KeyProblem::NotFound)),
        })
    }

    /// As [`Keystore::describe`], and when and by whom the key was made, to the nanosecond.
    pub(crate) fn creation(&self, name: &str) -> Result<(KeyInfo, Timestamp, String), Error> {
        name::check(name)?;
        self.read(|book| match book.keys.get(name) {
            Some(key) => {
                let by = key
                    .versions
                    .first()
                    .map(|version| version.created_by.clone());
                Ok((info(name, key), key.created_at, by.unwrap_or_default()))
            }
            None => Err(Error::key(name, KeyProblem::NotFound)),
        })
    }

    /// Calls `with` on a key that may be used, under the lock.
    pub(crate) fn with_key<T>(
        &self,
        name: &str,
        with: impl FnOnce(Held<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        name::check(name)?;
        self.read(|book| {
            let key = book
                .keys
                .get(name)
                .ok_or_else(|| Error::key(name, KeyProblem::NotFound))?;
            let problem = match key.state {
                State::Enabled => {
                    return with(Held {
                        key,
                        leases: &self.leases,
                        name,
                    });
                }
                State::Disabled => KeyProblem::Disabled,
                State::PendingDeletion { .. } => KeyProblem::PendingDeletion,
                State::Destroyed => KeyProblem::Destroyed,
            };
            Err(Error::key(name, problem))
        })
    }

    // Changing.

    pub(crate) fn create(&self, name: &str, now: u64, by: &str) -> Result<KeyInfo, Error> {
        self.insert(name, |number| new_key(number, now, by))
    }

    /// Takes over a key that another key store made.
    pub(crate) fn import(&self, name: &str, stored: StoredKey) -> Result<KeyInfo, Error> {
        self.insert(name, |number| taken_over(number, stored))
    }

    /// Takes over many keys in one change: all of them or none.
    pub(crate) fn import_all(&self, keys: Vec<(String, StoredKey)>) -> Result<(), Error> {
        self.change(|book| {
            let change = if keys.is_empty() {
                Change::Nothing
            } else {
                Change::Replace
            };
            for (name, stored) in keys {
                insert_into(book, &name, |number| taken_over(number, stored))?;
            }
            Ok(((), change))
        })
    }

    /// Whether some version of a key has these bytes; nothing where there is no such key.
    pub(crate) fn holds(&self, name: &str, material: &Secret32) -> Result<Option<bool>, Error> {
        self.read(|book| {
            let key = book
                .keys
                .get(name)
                .filter(|key| key.state != State::Destroyed);
            Ok(key.map(|key| {
                key.versions
                    .iter()
                    .any(|version| version.material == *material)
            }))
        })
    }

    /// Adds a version. The HMAC key stays, since what was derived from it has to.
    pub(crate) fn rotate(&self, name: &str, now: u64, by: &str) -> Result<KeyInfo, Error> {
        self.change_key(name, |key| {
            match key.state {
                State::Enabled => {}
                State::Disabled => return Err(Error::key(name, KeyProblem::Disabled)),
                State::PendingDeletion { .. } => {
                    return Err(Error::key(name, KeyProblem::PendingDeletion));
                }
                State::Destroyed => return Err(Error::key(name, KeyProblem::Destroyed)),
            }
            if key.versions.len() >= limits::KEY_VERSIONS_MAX {
                return Err(Caller::KeystoreFull.into());
            }
            let current = key.current().expect("an enabled key has a version");
            let next = Version {
                number: key.next_version,
                algorithm: current.algorithm,
                material: Secret32::random(),
                hmac: current.hmac.clone(),
                created_at: Timestamp::from_millis(now),
                created_by: by.to_owned(),
            };
            key.next_version += 1;
            key.versions.push(next);
            Ok(Change::Replace)
        })
    }

    /// Destroys the versions below `keep_from`; the current one always stays.
    pub(crate) fn retire(&self, name: &str, keep_from: u32) -> Result<KeyInfo, Error> {
        self.change_key(name, |key| {
            let Some(current) = key.current().map(|version| version.number) else {
                return Err(Error::key(name, KeyProblem::Destroyed));
            };
            let before = key.versions.len();
            key.versions
                .retain(|version| version.number >= keep_from.min(current));
            Ok(if key.versions.len() < before {
                Change::Erase
            } else {
                Change::Nothing
            })
        })
    }

    pub(crate) fn disable(&self, name: &str) -> Result<KeyInfo, Error> {
        self.change_key(name, |key| match key.state {
            State::Enabled => {
                key.state = State::Disabled;
                Ok(Change::Replace)
            }
            State::Disabled => Ok(Change::Nothing),
            State::PendingDeletion { .. } => Err(Error::key(name, KeyProblem::PendingDeletion)),
            State::Destroyed => Err(Error::key(name, KeyProblem::Destroyed)),
        })
    }

    /// Makes a disabled key usable again, or takes a deletion back that is still to come.
    pub(crate) fn enable(&self, name: &str) -> Result<KeyInfo, Error> {
        self.change_key(name, |key| match key.state {
            State::Enabled => Ok(Change::Nothing),
            State::Disabled | State::PendingDeletion { .. } => {
                key.state = State::Enabled;
                Ok(Change::Replace)
            }
            State::Destroyed => Err(Error::key(name, KeyProblem::Destroyed)),
        })
    }

    /// Destroys a key at once.
    pub(crate) fn destroy(&self, name: &str) -> Result<KeyInfo, Error> {
        self.change_key(name, |key| {
            if key.state == State::Destroyed {
                return Err(Error::key(name, KeyProblem::Destroyed));
            }
            destroy(key);
            Ok(Change::Erase)
        })
    }

    /// Makes a key unusable now, and due to be destroyed at `now` + `wait`.
    pub(crate) fn destroy_after(
        &self,
        name: &str,
        now: u64,
        wait: Duration,
    ) -> Result<KeyInfo, Error> {
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.change_key(name, |key| {
            if key.state == State::Destroyed {
                return Err(Error::key(name, KeyProblem::Destroyed));
            }
            key.state = State::PendingDeletion {
                at: now.saturating_add(wait),
            };
            Ok(Change::Replace)
        })
    }

    /// Destroys every key whose waiting period is over; returns their names.
    pub(crate) fn destroy_due(&self, now: u64) -> Result<Vec<String>, Error> {
        let due = |key: &Key| matches!(key.state, State::PendingDeletion { at } if at <= now);
        // Asked often, seldom true: without taking the lock of changes.
        if self.read(|book| Ok(!book.keys.values().any(due)))? {
            return Ok(Vec::new());
        }
        self.change(|book| {
            let mut names = Vec::new();
            for (name, key) in &mut book.keys {
                if due(key) {
                    destroy(key);
                    names.push(name.clone());
                }
            }
            let change = if names.is_empty() {
                Change::Nothing
            } else {
                Change::Erase
            };
            Ok((names, change))
        })
    }

    // Sealing.

    pub(crate) fn is_sealed(&self) -> bool {
        self.outage() == Some(Outage::Sealed)
    }

    /// Why no key can be had, if none can.
    pub(crate) fn outage(&self) -> Option<Outage> {
        self.reading().as_ref().err().cloned()
    }

    /// Drops every key from memory, and makes that last over a restart. What else has to forget keys does
    /// so in `also`, before anything is waited for.
    ///
    /// Memory comes first: should the mark not reach the disk, the keystore is sealed all the same until
    /// the next start, and the error says so.
    pub(crate) fn seal(&self, also: impl FnOnce() -> Lost) -> Result<(), Error> {
        let mut files = self.changing();
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = Err(Outage::Sealed);
        *files = None;
        let lost = self.leases.set(|_, _| Standing::Sealed);
        let lost_elsewhere = also();
        let marked = Files::mark_sealed(&self.homes);
        lost.wait();
        lost_elsewhere.wait();
        marked
    }

    /// Loads the keys again, and then does `also`.
    pub(crate) fn unseal(&self, root: &RootKey, also: impl FnOnce()) -> Result<(), Error> {
        let mut files = self.changing();
        if files.is_some() {
            return Files::check_root(&self.homes, root);
        }
        let (opened, book) = Files::open(&self.homes, root)?;
        Files::unmark_sealed(&self.homes)?;
        *files = Some(opened);
        self.swap_in(book);
        also();
        Ok(())
    }

    // Backups.

    /// Writes everything to a sealed file; how many keys that is, destroyed ones left out.
    pub(crate) fn backup(&self, path: &Path, key: &RootKey, now: u64) -> Result<usize, Error> {
        let book = self.read(|book| Ok(book.clone()))?;
        backup::write(&book, path, key, now)?;
        let alive = book
            .keys
            .values()
            .filter(|key| key.state != State::Destroyed);
        Ok(alive.count())
    }

    /// Adds what a backup holds. A keystore that is lost is made anew from it, under `root`.
    pub(crate) fn restore(
        &self,
        path: &Path,
        key: &RootKey,
        root: &RootKey,
        now: u64,
    ) -> Result<backup::Restored, Error> {
        if let Some(Outage::Lost(_)) = self.outage() {
            let mut files = self.changing();
            let restored = backup::replace(&self.homes, root, path, key, now)?;
            let (opened, book) = Files::open(&self.homes, root)?;
            *files = Some(opened);
            self.swap_in(book);
            return Ok(restored);
        }
        let (made_at, from) = backup::read(path, key)?;
        let keys = from
            .keys
            .values()
            .filter(|key| key.state != State::Destroyed)
            .count();
        self.change(|book| {
            let added = backup::merge(book, from)?;
            let restored = backup::Restored {
                made_at,
                keys,
                added,
                moved_aside: None,
            };
            Ok((restored, Change::Replace))
        })
    }

    // The one way to read, and the one way to change.

    fn read<T>(&self, with: impl FnOnce(&Book) -> Result<T, Error>) -> Result<T, Error> {
        match &*self.reading() {
            Ok(book) => with(book),
            Err(outage) => Err(outage.clone().into()),
        }
    }

    fn change<T>(
        &self,
        make: impl FnOnce(&mut Book) -> Result<(T, Change), Error>,
    ) -> Result<T, Error> {
        let mut files = self.changing();
        let mut book = self.read(|book| Ok(book.clone()))?;
        let files = files.as_mut().ok_or(Outage::Sealed)?;
        let (outcome, change) = make(&mut book)?;
        match change {
            Change::Nothing => return Ok(outcome),
            Change::Replace => files.replace(&book)?,
            Change::Erase => files.replace_and_erase(&book)?,
        }
        self.swap_in(book);
        Ok(outcome)
    }

    fn change_key(
        &self,
        name: &str,
        make: impl FnOnce(&mut Key) -> Result<Change, Error>,
    ) -> Result<KeyInfo, Error> {
        name::check(name)?;
        self.change(|book| {
            let key = book
                .keys
                .get_mut(name)
                .ok_or_else(|| Error::key(name, KeyProblem::NotFound))?;
            let change = make(key)?;
            Ok((info(name, key), change))
        })
    }

    fn insert(&self, name: &str, make: impl FnOnce(u32) -> Key) -> Result<KeyInfo, Error> {
        self.change(|book| {
            let info = insert_into(book, name, make)?;
            Ok((info, Change::Replace))
        })
    }

    fn swap_in(&self, book: Book) {
        let mut held = self.book.write().unwrap_or_else(PoisonError::into_inner);
        let standings: Vec<_> = book
            .keys
            .iter()
            .map(|(name, key)| {
                (
                    name.clone(),
                    key.state,
                    key.versions.iter().map(|v| v.number).collect::<Vec<_>>(),
                )
            })
            .collect();
        *held = Ok(book);
        drop(held);
        self.leases.follow(|name, version| {
            let found = standings.binary_search_by(|(held, ..)| held.as_str().cmp(name));
            match found.map(|at| (&standings[at].1, &standings[at].2)) {
                Ok((_, versions)) if versions.binary_search(&version).is_err() => {
                    Standing::Destroyed
                }
                Ok((State::Enabled, _)) => Standing::Good,
                Ok((State::Disabled, _)) => Standing::Disabled,
                Ok((State::PendingDeletion { .. }, _)) => Standing::PendingDeletion,
                Ok((State::Destroyed, _)) | Err(_) => Standing::Destroyed,
            }
        });
    }

    // A panic while a lock is held cannot leave a book half changed: books are swapped whole.

    fn reading(&self) -> RwLockReadGuard<'_, Result<Book, Outage>> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, Option<Files>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held<'_> {
    /// Seals under the current version; the answer says which one that is.
    pub(crate) fn seal(&self, plain: &[u8], associated: &[u8]) -> (Vec<u8>, u32) {
        let version = self.current();
        let sealed = ciphertext::seal(&version.material, version.algorithm, plain, associated);
        (sealed, version.number)
    }

    /// Opens under one version, or under all of them, newest first, when `version` is 0.
    pub(crate) fn open(
        &self,
        version: u32,
        sealed: &[u8],
        associated: &[u8],
    ) -> Result<(zeroize::Zeroizing<Vec<u8>>, u32), Error> {
        let not_authentic = || Error::Corrupt(Place::DataKey(self.name.to_owned()));
        let parsed = ciphertext::parse(sealed).ok_or_else(not_authentic)?;
        let mut candidates = self
            .key
            .versions
            .iter()
            .rev()
            .filter(|held| version == 0 || held.number == version)
            .peekable();
        if candidates.peek().is_none() {
            return Err(Error::key(self.name, KeyProblem::Destroyed));
        }
        candidates
            .find_map(|held| {
                ciphertext::open_parsed(&held.material, held.algorithm, &parsed, associated)
                    .map(|plain| (plain, held.number))
            })
            .ok_or_else(not_authentic)
    }

    /// As [`Held::open`], for a data key.
    pub(crate) fn open_data_key(
        &self,
        version: u32,
        sealed: &[u8],
        associated: &[u8],
    ) -> Result<(DataKey, u32), Error> {
        let (plain, number) = self.open(version, sealed, associated)?;
        let key = DataKey::from_slice(&plain)
            .ok_or_else(|| Error::Corrupt(Place::DataKey(self.name.to_owned())))?;
        Ok((key, number))
    }

    /// HMAC-SHA-256 of `message`, where the key has a key for that.
    pub(crate) fn hmac(&self, message: &[u8]) -> Option<Secret32> {
        let key = self.current().hmac.as_ref()?;
        Some(seal::hmac_sha256(key.expose(), &[message]))
    }

    pub(crate) fn lease(&self, version: u32) -> KeyLease {
        self.leases.lease(self.name, version)
    }

    pub(crate) fn current(&self) -> &Version {
        self.key.current().expect("an enabled key has a version")
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
            material: Secret32::random(),
            hmac: Some(Secret32::random()),
            created_at,
            created_by: created_by.to_owned(),
        }],
    }
}

fn taken_over(number: u32, stored: StoredKey) -> Key {
    Key {
        state: State::Enabled,
        created_at: stored.created_at,
        next_version: number + 1,
        versions: vec![Version {
            number,
            algorithm: stored.algorithm,
            material: stored.key,
            hmac: stored.hmac,
            created_at: stored.created_at,
            created_by: stored.created_by,
        }],
    }
}

/// Puts a key under a name that is not in use, numbered so that no version number is used twice.
fn insert_into(
    book: &mut Book,
    name: &str,
    make: impl FnOnce(u32) -> Key,
) -> Result<KeyInfo, Error> {
    name::check(name)?;
    let number = match book.keys.get(name) {
        Some(key) if key.state != State::Destroyed => {
            return Err(Caller::KeyExists(name.to_owned()).into());
        }
        Some(key) => key.next_version,
        None if book.keys.len() >= limits::KEYS_MAX => return Err(Caller::KeystoreFull.into()),
        None => 1,
    };
    let key = make(number);
    let info = info(name, &key);
    book.keys.insert(name.to_owned(), key);
    Ok(info)
}

fn destroy(key: &mut Key) {
    key.state = State::Destroyed;
    key.versions.clear();
}

fn info(name: &str, key: &Key) -> KeyInfo {
    let current = key.current();
    KeyInfo {
        name: name.to_owned(),
        version: current.map_or(0, |version| version.number),
        versions: u32::try_from(key.versions.len()).expect("bounded"),
        state: key.state,
        created_at: key.created_at.millis(),
        algorithm: current.map_or(Algorithm::Aes256, |version| version.algorithm),
    }
}
