//! The key of the store: it opens the index, and stands wrapped in the superblock.
//!
//! - Under the local root key: then listings and HEAD work whatever becomes of the key service.
//! - Under the default key of the key service alone (`--metadata-key kms`): then whatever locks or destroys that key does so to
//!   the whole store. The lease that comes with the key says whether it may still be used.
//!
//! A store key is moved from one to the other by replacing the superblock, which is there whole at any moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use clap::ValueEnum;
use strongroom_engine::secret::Secret;
use strongroom_engine::{DataDirs, Superblock};
use strongroom_kms::{Error, KeyLease, Keys, Kms, Source, WrappingKey};

use crate::key_work::AskKeys;
use crate::limits;

const LABEL: &[u8] = b"store key";
const PURPOSE: &str = "strongroom store key";

/// What the store key stands under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetadataKey {
    /// The root key: listings and HEAD work while the key service is sealed or down
    Local,
    /// The default key of the key service, and nothing else: they are locked and erased with it
    Kms,
}

/// Why the store key cannot be had.
#[derive(Debug)]
pub enum Shut {
    /// The key above it cannot be used now.
    Key(Error),
    /// What waiting does not help.
    Broken(String),
}

impl From<Error> for Shut {
    fn from(error: Error) -> Self {
        match error {
            Error::KeyState { .. } | Error::Outage(_) => Shut::Key(error),
            Error::Caller(_) | Error::Corrupt(_) | Error::Environment(_) => {
                Shut::Broken(format!("the store key does not open: {error}"))
            }
        }
    }
}

impl From<strongroom_engine::Error> for Shut {
    fn from(error: strongroom_engine::Error) -> Self {
        Shut::Broken(error.to_string())
    }
}

impl From<Shut> for String {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Key(e) => {
                format!(
                    "the store key stands under a key of the key service (--metadata-key kms), and {e}"
                )
            }
            Shut::Broken(why) => why,
        }
    }
}

/// Opens the store key of a store whose directories this process holds, and moves it.
pub struct StoreKeeper {
    dirs: Arc<DataDirs>,
    kms: Arc<Kms>,
    keys: AskKeys,
    /// Where to ask the process to open or lock its store, as the key now says; none in commands.
    settle: Option<Box<dyn Fn(Settle) -> bool + Send + Sync>>,
    /// On the key that the store key stands under; none where that is the root key. Held while the superblock is replaced.
    lease: Mutex<Option<KeyLease>>,
}

/// Asks for a look at the store key; answered once the store is open or locked accordingly.
pub struct Settle(pub mpsc::Sender<()>);

impl StoreKeeper {
    /// A keeper for a command.
    pub fn new(dirs: Arc<DataDirs>, kms: Arc<Kms>, keys: AskKeys) -> Self {
        StoreKeeper {
            dirs,
            kms,
            keys,
            settle: None,
            lease: Mutex::default(),
        }
    }

    /// A keeper for a process that opens and locks its store when asked by `settle`, which says whether it will.
    pub fn of_server(
        dirs: Arc<DataDirs>,
        kms: Arc<Kms>,
        keys: AskKeys,
        settle: impl Fn(Settle) -> bool + Send + Sync + 'static,
    ) -> Self {
        StoreKeeper {
            settle: Some(Box::new(settle)),
            ..Self::new(dirs, kms, keys)
        }
    }

    /// Opens the key of a store that is there.
    pub fn open(&self) -> Result<Secret, Shut> {
        self.dirs.forget_old_wrapping()?;
        match self.dirs.superblock()? {
            Some(superblock) => self.unwrap(superblock),
            None => Err(Shut::Broken(format!(
                "there is no store in {}",
                self.dirs.first().path().display()
            ))),
        }
    }

    /// As [`StoreKeeper::open`]; makes the store if there is none, and moves its key where it is wanted.
    pub fn open_or_make(&self, wanted: Option<MetadataKey>) -> Result<Secret, Shut> {
        self.dirs.forget_old_wrapping()?;
        let Some(superblock) = self.dirs.superblock()? else {
            return self.make(wanted.unwrap_or(MetadataKey::Local));
        };
        let above = WrappingKey::of(&superblock.wrapped_store_key)?;
        let key = self.unwrap(superblock)?;
        match (wanted, above) {
            (Some(MetadataKey::Local), Some(_)) => self.move_to_root(&key)?,
            (Some(MetadataKey::Kms), above) => {
                let (source, name) = self.default_key()?;
                if !above.is_some_and(|above| above.source == source && above.name == name) {
                    self.move_to_kms(&key)?;
                }
            }
            (Some(MetadataKey::Local) | None, _) => {}
        }
        Ok(key)
    }

    /// Whether the store key that was opened may still be used. None where nothing can take it away.
    pub fn check(&self) -> Option<Result<(), Error>> {
        self.lease().as_ref().map(KeyLease::check)
    }

    /// Wraps the store key anew where it stands under an older version of this key of the keystore; says whether it did.
    pub fn renew(&self, name: &str) -> Result<bool, String> {
        let current = self.kms.describe_key(name).map_err(|e| e.to_string())?;
        match self.above()? {
            Some(above) if is_of_keystore(&above, name) && above.version < current.version => {
                let key = self.open()?;
                self.move_to_kms(&key)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether the store key stands under this key of the keystore, and so locks and dies with it.
    pub fn stands_under(&self, name: &str) -> Result<bool, String> {
        Ok(self
            .above()?
            .is_some_and(|above| is_of_keystore(&above, name)))
    }

    /// Has the store opened or locked as its key now says; returns once it is done.
    pub fn settle(&self) {
        let Some(settle) = &self.settle else { return };
        let (done, settled) = mpsc::channel();
        // A process that is ending serves under no key.
        if settle(Settle(done)) {
            let _ = settled.recv_timeout(limits::SETTLE_PATIENCE);
        }
    }

    /// The key that the store key stands under; none where that is the root key, or where there is no store.
    fn above(&self) -> Result<Option<WrappingKey>, String> {
        let superblock = self.dirs.superblock().map_err(|e| e.to_string())?;
        superblock.map_or(Ok(None), |superblock| {
            WrappingKey::of(&superblock.wrapped_store_key).map_err(|e| e.to_string())
        })
    }

    fn make(&self, wanted: MetadataKey) -> Result<Secret, Shut> {
        let secret = Secret::random();
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| Shut::Broken(e.to_string()))?;
        let mut held = self.lease();
        let (wrapped, lease) = match wanted {
            MetadataKey::Local => (self.kms.wrap_local(LABEL, secret.expose()), None),
            MetadataKey::Kms => {
                let (wrapped, lease) = self.wrap(&id, &secret)?;
                (wrapped, Some(lease))
            }
        };
        self.dirs.create(id, &wrapped)?;
        *held = lease;
        Ok(secret)
    }

    fn unwrap(&self, superblock: Superblock) -> Result<Secret, Shut> {
        let wrapped = superblock.wrapped_store_key;
        if WrappingKey::of(&wrapped)?.is_none() {
            let opened = self.kms.unwrap_local(LABEL, &wrapped).map_err(|e| {
                let place = self.dirs.first().superblock_path();
                Shut::Broken(format!(
                    "the store key in {} does not open: {e}",
                    place.display()
                ))
            })?;
            *self.lease() = None;
            return Ok(Secret::new(*opened.expose()));
        }
        let id = hex::encode(superblock.store_id);
        let opened = self
            .keys
            .ask(async move |keys| keys.unwrap(PURPOSE, &id, &wrapped).await)
            .map_err(Shut::Broken)??;
        *self.lease() = Some(opened.lease);
        Ok(Secret::new(*opened.plaintext.expose()))
    }

    fn move_to_root(&self, key: &Secret) -> Result<(), Shut> {
        let mut held = self.lease();
        self.dirs
            .replace_store_key(&self.kms.wrap_local(LABEL, key.expose()))?;
        *held = None;
        tracing::info!(
            "the store key stands under the root key now: listings and HEAD work while the key service is sealed"
        );
        Ok(())
    }

    fn move_to_kms(&self, key: &Secret) -> Result<(), Shut> {
        let mut held = self.lease();
        let superblock = self.dirs.superblock()?;
        let superblock = superblock.ok_or_else(|| Shut::Broken("the superblock is gone".into()))?;
        let (wrapped, lease) = self.wrap(&superblock.store_id, key)?;
        self.dirs.replace_store_key(&wrapped)?;
        *held = Some(lease);
        tracing::info!(
            "the store key stands under the default key of the key service now, and nowhere else: listings and HEAD lock with it"
        );
        Ok(())
    }

    fn lease(&self) -> MutexGuard<'_, Option<KeyLease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrap(&self, id: &[u8; 16], secret: &Secret) -> Result<(Vec<u8>, KeyLease), Shut> {
        let (id, secret) = (hex::encode(id), secret.clone());
        let wrapped = self
            .keys
            .ask(async move |keys| keys.wrap(PURPOSE, &id, secret.expose()).await)
            .map_err(Shut::Broken)??;
        Ok(wrapped)
    }

    fn default_key(&self) -> Result<(Source, String), Shut> {
        let asked = self
            .keys
            .ask(async |keys: std::rc::Rc<Keys>| (keys.source(), keys.default_key().to_owned()));
        asked.map_err(Shut::Broken)
    }
}

fn is_of_keystore(above: &WrappingKey, name: &str) -> bool {
    above.source == Source::Embedded && above.name == name
}
