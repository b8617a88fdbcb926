//! A store that no server serves, opened by a command: its lock, its keys, and the keys of its objects.
//!
//! Keys of KES servers, or a static key, are found by the same variables as `strongroom serve` finds them.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use futures_lite::future::block_on;
use strongroom_engine::hierarchy::{self, Domain, SealedKey};
use strongroom_engine::record::{Encryption, KmsKey, Mode};
use strongroom_engine::secret::Secret;
use strongroom_engine::{DataDirs, KeyAnswer, ObjectKeys};
use strongroom_kms::{Context, Error, Keys, Kms, OpenKey, Outage, Source};

use crate::config;
use crate::key_service::{self, KeyService};
use crate::key_work::AskKeys;
use crate::root_key;
use crate::sse;
use crate::store_key::StoreKeeper;
use crate::tls;

/// Which store.
#[derive(Debug, Args)]
pub struct Place {
    /// Directory of the store, which no server may be serving; of a store on several drives one, some or all
    #[arg(value_name = "DATA_DIR", env = "STRONGROOM_DATA_DIR", required = true, num_args = 1..)]
    pub data_dirs: Vec<PathBuf>,
}

/// A store this process holds.
pub struct Offline {
    pub dirs: Arc<DataDirs>,
    pub store_key: Secret,
    pub keys: LocalKeys,
}

impl Offline {
    pub fn open(named: &[PathBuf]) -> Result<Offline, String> {
        let named = config::directories(named)?;
        if let Some(dir) = named.iter().find(|dir| !dir.join("superblock").exists()) {
            return Err(format!("there is no store in {}", dir.display()));
        }
        let dirs = Arc::new(DataDirs::lock_some(&named).map_err(|e| e.to_string())?);
        let root = root_key::require(&dirs.paths())?;
        let kms = Kms::open_existing(&dirs.paths(), root).map_err(|e| e.to_string())?;
        let kms = Arc::new(kms);
        let keys = keys(&dirs, &kms)?;
        let store_key = StoreKeeper::new(Arc::clone(&dirs), kms, keys.clone()).open()?;
        Ok(Offline {
            dirs,
            store_key,
            keys: LocalKeys {
                keys: Held::Elsewhere(keys),
                away: RefCell::default(),
            },
        })
    }
}

/// The keys of the key service that the surroundings name, for a command.
fn keys(dirs: &DataDirs, kms: &Arc<Kms>) -> Result<AskKeys, String> {
    let certs = config::non_empty("STRONGROOM_CERTS_DIR");
    let certs = certs.map_or_else(
        || root_key::in_any(&dirs.paths(), tls::DIRECTORY),
        PathBuf::from,
    );
    let options = key_service::Options::default();
    let service = KeyService::open(&options, &certs, Arc::clone(kms), false)?;
    AskKeys::of_command(Arc::new(service))
}

/// What opens the store key, for a command.
pub fn keeper(dirs: &Arc<DataDirs>, kms: &Arc<Kms>) -> Result<Arc<StoreKeeper>, String> {
    let keys = keys(dirs, kms)?;
    let keeper = StoreKeeper::new(Arc::clone(dirs), Arc::clone(kms), keys);
    Ok(Arc::new(keeper))
}

/// The keys of objects, as far as they can be had.
pub struct LocalKeys {
    keys: Held,
    /// Why the key service cannot be reached: it is not waited for again.
    away: RefCell<Option<String>>,
}

enum Held {
    /// By the keystore alone.
    Here(Box<Keys>),
    Elsewhere(AskKeys),
}

/// Why an object's key does not open.
pub enum Shut {
    NotAtHand(String),
    Broken(String),
}

impl LocalKeys {
    /// Those that need no KES server.
    pub fn here(keys: Keys) -> Self {
        LocalKeys {
            keys: Held::Here(Box::new(keys)),
            away: RefCell::default(),
        }
    }

    /// The key of an object; `customer` is the key that a customer keeps.
    pub fn open(
        &self,
        bucket: &str,
        key: &str,
        encryption: &Encryption,
        customer: Option<&Secret>,
    ) -> Result<Secret, Shut> {
        let path = format!("{bucket}/{key}");
        let (external, domain) = match (encryption.mode, &encryption.kms) {
            (Mode::SseC, _) => {
                let missing = || Shut::NotAtHand("it is sealed under a customer's key".into());
                (customer.ok_or_else(missing)?.clone(), Domain::SseC)
            }
            (mode, Some(wrapped)) => {
                let domain = match mode {
                    Mode::SseKms => Domain::SseKms,
                    _ => Domain::SseS3,
                };
                let source = Source::parse(&wrapped.source)
                    .ok_or_else(|| Shut::Broken("a data key of an unknown key service".into()))?;
                let context = Context::for_object(&wrapped.context, bucket, &path);
                let data_key = self.data_key(source, wrapped, context, bucket)?;
                (Secret::new(*data_key.plaintext.expose()), domain)
            }
            (_, None) => return Err(Shut::Broken("a sealed key without its data key".into())),
        };
        let sealed = SealedKey {
            iv: encryption.iv,
            sealed: encryption.sealed_key,
        };
        hierarchy::unseal_key(&sealed, &external, domain, path.as_bytes()).map_err(|_| match domain
        {
            Domain::SseC => Shut::NotAtHand("the customer's key is another one".into()),
            _ => Shut::Broken("its sealed key does not open".into()),
        })
    }
}

impl LocalKeys {
    fn data_key(
        &self,
        source: Source,
        wrapped: &KmsKey,
        context: Context,
        bucket: &str,
    ) -> Result<OpenKey, Shut> {
        if source == Source::Kes
            && let Some(why) = &*self.away.borrow()
        {
            return Err(Shut::NotAtHand(why.clone()));
        }
        let opened = match &self.keys {
            Held::Here(_) if source == Source::Kes => {
                let at = format!("its key {} is with a key server", wrapped.name);
                return Err(Shut::NotAtHand(at));
            }
            Held::Here(keys) => {
                block_on(keys.open(&sse::stored(source, wrapped), &context, bucket))
            }
            Held::Elsewhere(ask) => {
                let (wrapped, bucket) = (wrapped.clone(), bucket.to_owned());
                ask.ask(async move |keys| {
                    keys.open(&sse::stored(source, &wrapped), &context, &bucket)
                        .await
                })
                .map_err(Shut::NotAtHand)?
            }
        };
        opened.map_err(|e| match e {
            Error::Corrupt(_) => Shut::Broken(e.to_string()),
            e => {
                if source == Source::Kes && matches!(e, Error::Outage(Outage::Unreachable(_))) {
                    *self.away.borrow_mut() = Some(e.to_string());
                }
                Shut::NotAtHand(e.to_string())
            }
        })
    }
}

impl ObjectKeys for LocalKeys {
    fn open(&self, bucket: &str, key: &str, encryption: &Encryption) -> KeyAnswer {
        match LocalKeys::open(self, bucket, key, encryption, None) {
            Ok(secret) => KeyAnswer::Key(secret),
            Err(Shut::NotAtHand(_)) => KeyAnswer::NotAtHand,
            Err(Shut::Broken(why)) => KeyAnswer::Broken(why),
        }
    }
}

/// An object's name on one line, whatever its key holds.
pub fn name(bucket: &str, key: &str) -> String {
    let mut out = format!("{bucket}/");
    for c in key.chars() {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Bytes as a person reads them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        _ => scaled(bytes),
    }
}

/// The same where the number itself stands beside it.
pub fn scaled(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit < UNITS.len() - 1 {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_one_line_and_sizes_are_short() {
        assert_eq!(name("b", "a/ü\n\0x"), "b/a/ü\\n\\u{0}x");
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 40), "5.0 TiB");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(scaled(0), "0.0 KiB");
        assert_eq!(scaled(1536), "1.5 KiB");
        assert_eq!(scaled(5 << 30), "5.0 GiB");
        assert_eq!(scaled(u64::MAX), "16384.0 PiB");
    }
}
