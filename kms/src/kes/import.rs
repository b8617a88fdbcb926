//! Taking over the keys of a KES file-system keystore: a directory with one file per key.
//!
//! Everything is read before anything is changed. A key that is there already with the same bytes is left
//! alone, so that an import can be repeated; one with other bytes stops the import, since one of the two
//! would be lost.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Caller, Error};
use crate::kes::stored::{self, StoredKey};
use crate::keystore::Keystore;
use crate::limits::KES_KEY_FILE_BYTES_MAX;
use crate::name;
use crate::root::RootKey;

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

/// The names of all keys of a directory, in order.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let files = files(directory)?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

/// The files of a directory that hold a key, in order of their names.
fn files(directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let io = |source| Error::io("cannot read the KES keystore", directory, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let file = path.metadata().map_err(io)?;
        // The compatible server keeps its own things in the same place. An empty file is one of them, or a key
        // that KES was making when it was killed.
        if !file.is_file() || file.len() == 0 || path.ends_with(RootKey::FILE_NAME) {
            continue;
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| name::check(name).is_ok());
        let Some(name) = name else {
            let problem = "the file's name is not that of a key";
            return Err(Error::configuration(path.display().to_string(), problem));
        };
        files.push((name.to_owned(), path));
    }
    files.sort();
    Ok(files)
}

/// All keys of a directory, in order of their names.
fn read(directory: &Path) -> Result<Vec<(String, StoredKey)>, Error> {
    let mut keys = Vec::new();
    for (name, path) in files(directory)? {
        let not_a_key = |problem: &str| Error::configuration(path.display().to_string(), problem);
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
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, KeyState, Kms};

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
        assert_eq!(Kms::kes_keys(&golden()).unwrap(), both());
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
    fn the_keystore_may_lie_beside_what_it_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        for name in both() {
            fs::copy(golden().join(&name), dir.path().join(&name)).unwrap();
        }
        let path = dir.path().join(RootKey::FILE_NAME);
        let (root, _) = RootKey::load_or_generate(&path).ok().unwrap();
        let kms = Kms::open_bare(dir.path(), root).ok().unwrap();
        fs::write(dir.path().join("lock"), "").unwrap();
        assert_eq!(kms.import_kes(dir.path()).unwrap().imported, both());
        let listed = kms.list_keys("").unwrap();
        assert_eq!(listed.len(), 2);
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
            ("bad.name", "x"),
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
