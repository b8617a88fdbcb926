//! Taking over the keys of a KES file-system keystore: a directory with one file per key.
//!
//! Everything is read before anything is changed. A key that is there already with the same bytes is left
//! alone, so that an import can be repeated; one with other bytes stops the import, since one of the two
//! would be lost.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Caller, Error};
use crate::kes::stored::{self, StoredKey};
use crate::keystore::Keystore;
use crate::limits::KES_KEY_FILE_BYTES_MAX;
use crate::name;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Keys that were taken over.
    pub imported: Vec<String>,
    /// Keys that were there before.
    pub present: Vec<String>,
}

pub(crate) fn import(keystore: &Keystore, directory: &Path) -> Result<Imported, Error> {
    let mut keys = Vec::new();
    let mut present = Vec::new();
    for (name, stored) in read(directory)? {
        match keystore.holds(&name, &stored.key)? {
            None => keys.push((name, stored)),
            Some(true) => present.push(name),
            Some(false) => return Err(Caller::KeyExists(name).into()),
        }
    }
    let imported = keys.iter().map(|(name, _)| name.clone()).collect();
    keystore.import_all(keys)?;
    Ok(Imported { imported, present })
}

/// All keys of a directory, in order of their names.
fn read(directory: &Path) -> Result<Vec<(String, StoredKey)>, Error> {
    let io = |source| Error::io("cannot read the KES keystore", directory, source);
    let mut keys = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let not_a_key = |problem: &str| Error::configuration(path.display().to_string(), problem);
        if !path.is_file() {
            continue;
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| name::check(name).is_ok())
            .ok_or_else(|| not_a_key("the file's name is not that of a key"))?
            .to_owned();
        let mut value = Zeroizing::new(Vec::with_capacity(KES_KEY_FILE_BYTES_MAX + 1));
        File::open(&path)
            .and_then(|file| {
                file.take(KES_KEY_FILE_BYTES_MAX as u64 + 1)
                    .read_to_end(&mut value)
            })
            .map_err(|source| Error::io("cannot read the key", &path, source))?;
        if value.len() > KES_KEY_FILE_BYTES_MAX {
            return Err(not_a_key("too long for a key"));
        }
        let stored = stored::parse(&value).map_err(not_a_key)?;
        keys.push((name, stored));
    }
    keys.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, KeyState, Kms, RootKey};
    use std::path::PathBuf;

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kes-fs")
    }

    fn both() -> Vec<String> {
        vec!["golden-1".to_owned(), "golden-2".to_owned()]
    }

    #[test]
    fn keys_of_a_real_one_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
        let done = kms.import_kes(&golden()).unwrap();
        assert_eq!(
            done,
            Imported {
                imported: both(),
                present: Vec::new()
            }
        );
        let again = kms.import_kes(&golden()).unwrap();
        assert_eq!(
            again,
            Imported {
                imported: Vec::new(),
                present: both()
            }
        );
        drop(kms);

        let kms = Kms::open(dir.path(), root).ok().unwrap();
        let info = kms.describe_key("golden-2").unwrap();
        assert_eq!(
            (info.version, info.state, info.algorithm.as_str()),
            (1, KeyState::Enabled, "ChaCha20")
        );
        // What MinIO stored for an object under the key of that KES.
        let objects: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../../tests/golden/minio/objects.json")).unwrap();
        let sealed =
            objects[0]["metadata"]["X-Minio-Internal-Server-Side-Encryption-S3-Kms-Sealed-Key"]
                .as_str()
                .unwrap();
        let sealed =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, sealed).unwrap();
        let path = format!("golden/{}", objects[0]["key"].as_str().unwrap());
        let context = Context::for_object(&Default::default(), "golden", &path);
        let mut open = std::pin::pin!(kms.decrypt_data_key("golden-1", 0, &sealed, &context));
        let polled = open
            .as_mut()
            .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(polled, std::task::Poll::Ready(Ok(_))));
    }

    #[test]
    fn nothing_changes_when_something_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
        let from = tempfile::tempdir().unwrap();
        for name in ["golden-1", "golden-2"] {
            fs::copy(golden().join(name), from.path().join(name)).unwrap();
        }
        for (name, value) in [
            ("zz", "nonsense"),
            ("bad.name", ""),
            ("long", &"x".repeat(KES_KEY_FILE_BYTES_MAX + 1)),
        ] {
            let path = from.path().join(name);
            fs::write(&path, value).unwrap();
            let error = kms.import_kes(from.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            fs::remove_file(path).unwrap();
        }
        assert!(kms.describe_key("golden-1").is_err());
        // Another key of the same name.
        kms.create_key("golden-2").unwrap();
        assert!(matches!(
            kms.import_kes(from.path()),
            Err(Error::Caller(Caller::KeyExists(name))) if name == "golden-2"
        ));
        assert!(kms.describe_key("golden-1").is_err());
        assert!(kms.import_kes(&from.path().join("missing")).is_err());
    }
}
