//! A store that no server serves, opened by a command: its lock, its keys, and the keys of its objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use futures_lite::future::block_on;
use strongroom_engine::hierarchy::{self, Domain, SealedKey};
use strongroom_engine::record::{Encryption, Mode};
use strongroom_engine::secret::Secret;
use strongroom_engine::{DataDir, KeyAnswer, ObjectKeys};
use strongroom_kms::{Context, Error, Keys, KeysOptions, Kms, Source, StoredDataKey};

use crate::{root_key, serve};

/// Which store.
#[derive(Debug, Args)]
pub struct Place {
    /// Directory of the store, which no server may be serving
    #[arg(value_name = "DATA_DIR", env = "STRONGROOM_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// A store this process holds.
pub struct Offline {
    pub dir: DataDir,
    pub store_key: Secret,
    pub keys: LocalKeys,
}

impl Offline {
    pub fn open(data_dir: &Path) -> Result<Offline, String> {
        if !data_dir.join("superblock").exists() {
            return Err(format!("there is no store in {}", data_dir.display()));
        }
        let dir = DataDir::lock(data_dir).map_err(|e| e.to_string())?;
        let there = dir.superblock().map_err(|e| e.to_string())?;
        let superblock = there.ok_or("the store's superblock is gone")?;
        let root = root_key::require(dir.path())?;
        let kms = Kms::open_existing(dir.path(), root).map_err(|e| e.to_string())?;
        let store_key = serve::unwrap_store_key(&dir, &kms, &superblock)?;
        let keys = Keys::new(Arc::new(kms), None, KeysOptions::default());
        Ok(Offline {
            dir,
            store_key,
            keys: LocalKeys(keys),
        })
    }
}

/// The keys of objects, as far as the store's own keystore opens them.
pub struct LocalKeys(pub Keys);

/// Why an object's key does not open.
pub enum Shut {
    NotAtHand(String),
    Broken(String),
}

impl LocalKeys {
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
                if source == Source::Kes {
                    let at = format!("its key {} is with a key server", wrapped.name);
                    return Err(Shut::NotAtHand(at));
                }
                let stored = StoredDataKey {
                    source,
                    key: &wrapped.name,
                    version: wrapped.version,
                    ciphertext: &wrapped.ciphertext,
                    bucket_key: wrapped.bucket_key,
                };
                let context = Context::for_object(&wrapped.context, bucket, &path);
                let opened = block_on(self.0.open(&stored, &context, bucket));
                let data_key = opened.map_err(|e| match e {
                    Error::Corrupt(_) => Shut::Broken(e.to_string()),
                    _ => Shut::NotAtHand(e.to_string()),
                })?;
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
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        _ => format!("{value:.1} {unit}"),
    }
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
}
