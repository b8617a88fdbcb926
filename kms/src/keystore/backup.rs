//! Backups of the keystore: one sealed file, since losing the keystore loses every object.
//!
//! - A backup is sealed under a root key: that of the store, or another one kept for backups alone.
//! - Taking one back only adds. What the present keystore holds stays; a version that both hold with
//!   different bytes stops it before anything changes. A destroyed key that the backup holds lives again:
//!   that is what a backup is for, and why old ones have to be kept as carefully as the root key.
//! - Where the present keystore cannot be opened, it can be replaced as a whole; it is then moved aside,
//!   not removed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::KeyState as State;
use crate::error::{Caller, Environment, Error, Place};
use crate::homes::Homes;
use crate::keystore::book::{Book, Key};
use crate::keystore::files::Files;
use crate::limits::{KEY_VERSIONS_MAX, KEYS_MAX, KEYSTORE_BYTES_MAX};
use crate::root::RootKey;
use crate::seal;

const MAGIC: &[u8; 8] = b"SRKBAK01";
const ROOT_ID: usize = 16;
/// Magic, creation time, root key id.
const HEADER: usize = 8 + 8 + ROOT_ID;
const PURPOSE_SEAL: &str = "strongroom keystore backup v1";
const PURPOSE_ID: &str = "strongroom root key id v1";

/// What taking a backup back did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made (Unix milliseconds).
    pub made_at: u64,
    /// Keys in it, destroyed ones left out.
    pub keys: usize,
    /// Names of keys that were added, or gained versions.
    pub added: Vec<String>,
    /// Where the present keystore was moved to, if it was replaced.
    pub moved_aside: Option<PathBuf>,
}

/// Writes a new file with everything in `book`; durable when this returns. Never over another file.
pub(crate) fn write(book: &Book, path: &Path, key: &RootKey, now: u64) -> Result<(), Error> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&now.to_le_bytes());
    bytes.extend_from_slice(&id(key));
    let sealed = seal::seal(&key.derive(PURPOSE_SEAL), &bytes, &book.encode());
    bytes.extend_from_slice(&sealed);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let whole = file.write_all(&bytes).and_then(|()| file.sync_all());
        if whole.is_err() {
            // Half a backup is none, and its name has to be free for the next try.
            let _ = fs::remove_file(path);
        }
        whole?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    })();
    written.map_err(|source| Error::io("cannot write the backup", path, source))
}

/// Reads a backup: when it was made, and what it holds.
pub(crate) fn read(path: &Path, key: &RootKey) -> Result<(u64, Book), Error> {
    let io = |source| Error::io("cannot read the backup", path, source);
    let corrupt = || Error::Corrupt(Place::Backup(path.to_owned()));
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(KEYSTORE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let (header, sealed) = bytes.split_at_checked(HEADER).ok_or_else(corrupt)?;
    let (made_at, root_id) = header
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.split_first_chunk())
        .ok_or_else(corrupt)?;
    if root_id != id(key) {
        return Err(Environment::WrongRootKey.into());
    }
    let plain = seal::open(&key.derive(PURPOSE_SEAL), header, sealed).ok_or_else(corrupt)?;
    let book = Book::decode(&plain).map_err(|_| corrupt())?;
    Ok((u64::from_le_bytes(*made_at), book))
}

/// Adds what `backup` holds to `book`; the names of the keys that changed.
pub(crate) fn merge(book: &mut Book, backup: Book) -> Result<Vec<String>, Error> {
    let mut added = Vec::new();
    for (name, theirs) in backup.keys {
        let Some(ours) = book.keys.get_mut(&name) else {
            if book.keys.len() >= KEYS_MAX {
                return Err(Caller::KeystoreFull.into());
            }
            if theirs.state != State::Destroyed {
                added.push(name.clone());
            }
            book.keys.insert(name, theirs);
            continue;
        };
        ours.next_version = ours.next_version.max(theirs.next_version);
        if theirs.state == State::Destroyed {
            continue;
        }
        if ours.state == State::Destroyed {
            ours.state = theirs.state;
            ours.created_at = theirs.created_at;
        }
        if merge_versions(&name, ours, theirs)? {
            added.push(name);
        }
    }
    Ok(added)
}

fn merge_versions(name: &str, ours: &mut Key, theirs: Key) -> Result<bool, Error> {
    let before = ours.versions.len();
    for version in theirs.versions {
        match ours
            .versions
            .binary_search_by_key(&version.number, |held| held.number)
        {
            Ok(at) if ours.versions[at].material == version.material => {}
            Ok(_) => return Err(Caller::KeyExists(name.to_owned()).into()),
            Err(_) if ours.versions.len() >= KEY_VERSIONS_MAX => {
                return Err(Caller::KeystoreFull.into());
            }
            Err(at) => ours.versions.insert(at, version),
        }
    }
    Ok(ours.versions.len() > before)
}

/// Puts a new keystore with what the backup holds in the place of the present one, if there is any.
pub(crate) fn replace(
    homes: &Homes,
    root: &RootKey,
    path: &Path,
    key: &RootKey,
    now: u64,
) -> Result<Restored, Error> {
    let (made_at, book) = read(path, key)?;
    let moved_aside = Files::create_in_place_of(homes, root, &book, now)?;
    let added: Vec<String> = book
        .keys
        .iter()
        .filter(|(_, key)| key.state != State::Destroyed)
        .map(|(name, _)| name.clone())
        .collect();
    Ok(Restored {
        made_at,
        keys: added.len(),
        added,
        moved_aside,
    })
}

fn id(key: &RootKey) -> [u8; ROOT_ID] {
    *key.derive(PURPOSE_ID)
        .expose()
        .first_chunk()
        .expect("16 of 32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, Deletion, Kms, NewDataKey, Outage};
    use tempfile::TempDir;

    struct House {
        dir: TempDir,
        root: RootKey,
        backup: PathBuf,
    }

    impl House {
        fn new() -> (Self, Kms) {
            let dir = tempfile::tempdir().unwrap();
            let root = RootKey::generate();
            let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
            let backup = dir.path().join("backup");
            (Self { dir, root, backup }, kms)
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        crate::kes::stub::now(future)
    }

    fn seal(kms: &Kms, name: &str) -> NewDataKey {
        now(kms.generate_data_key(name, &Context::default()))
            .ok()
            .unwrap()
    }

    fn opens(kms: &Kms, made: &NewDataKey) -> bool {
        let context = Context::default();
        let open = kms.decrypt_data_key(&made.key, made.version, &made.ciphertext, &context);
        now(open).is_ok_and(|key| key == made.plaintext)
    }

    #[test]
    fn a_lost_keystore_comes_back() {
        let (house, kms) = House::new();
        kms.create_key("k").unwrap();
        kms.rotate_key("k").unwrap();
        kms.create_key("gone").unwrap();
        kms.delete_key("gone", Deletion::Now).unwrap();
        let made = [seal(&kms, "k"), seal(&kms, kms.default_key())];
        assert_eq!(kms.backup(&house.backup, &house.root).unwrap(), 2);
        assert!(
            kms.backup(&house.backup, &house.root).is_err(),
            "never over another file"
        );
        drop(kms);

        let elsewhere = tempfile::tempdir().unwrap();
        let new_root = RootKey::generate();
        let kms = Kms::open_existing(elsewhere.path(), new_root.clone())
            .ok()
            .unwrap();
        let done = kms.restore(&house.backup, &house.root, &new_root).unwrap();
        assert_eq!((done.keys, done.moved_aside), (2, None));
        assert!(made.iter().all(|one| opens(&kms, one)));
        drop(kms);
        let kms = Kms::open_existing(elsewhere.path(), new_root).ok().unwrap();
        assert!(made.iter().all(|one| opens(&kms, one)));
        assert_eq!(kms.create_key("gone").unwrap().version, 2);
    }

    #[test]
    fn a_damaged_keystore_is_moved_aside() {
        let (house, kms) = House::new();
        let made = seal(&kms, kms.default_key());
        let other = RootKey::generate();
        kms.backup(&house.backup, &other).unwrap();
        drop(kms);
        let keys = house.dir.path().join("keystore/keys");
        fs::write(&keys, "damage").unwrap();
        assert!(Kms::open(house.dir.path(), house.root.clone()).is_err());
        let kms = Kms::open_existing(house.dir.path(), house.root.clone())
            .ok()
            .unwrap();
        assert!(matches!(
            kms.restore(&house.backup, &house.root, &house.root),
            Err(Error::Environment(Environment::WrongRootKey))
        ));
        let done = kms.restore(&house.backup, &other, &house.root).unwrap();
        let aside = done.moved_aside.unwrap();
        assert_eq!(fs::read(aside.join("keys")).unwrap(), b"damage");
        assert!(opens(&kms, &made));
        drop(kms);
        let kms = Kms::open_existing(house.dir.path(), house.root)
            .ok()
            .unwrap();
        assert!(opens(&kms, &made));
    }

    #[test]
    fn taking_a_backup_back_only_adds() {
        let (house, kms) = House::new();
        kms.create_key("deleted").unwrap();
        kms.create_key("rotated").unwrap();
        let of_deleted = seal(&kms, "deleted");
        let of_rotated = seal(&kms, "rotated");
        kms.backup(&house.backup, &house.root).unwrap();

        kms.create_key("newer").unwrap();
        kms.rotate_key("rotated").unwrap();
        kms.retire_versions("rotated", 2).unwrap();
        kms.delete_key("deleted", Deletion::Now).unwrap();
        let made = [seal(&kms, "newer"), seal(&kms, "rotated")];
        assert!(!opens(&kms, &of_deleted) && !opens(&kms, &of_rotated));

        let done = kms
            .restore(&house.backup, &house.root, &house.root)
            .unwrap();
        assert_eq!(done.added, ["deleted", "rotated"]);
        assert!(opens(&kms, &of_deleted) && opens(&kms, &of_rotated));
        assert!(made.iter().all(|one| opens(&kms, one)));
        assert_eq!(seal(&kms, "rotated").version, 2);
        assert!(
            kms.restore(&house.backup, &house.root, &house.root)
                .unwrap()
                .added
                .is_empty()
        );
        drop(kms);
        let kms = Kms::open(house.dir.path(), house.root).ok().unwrap();
        assert!(opens(&kms, &of_deleted) && opens(&kms, &of_rotated));
    }

    #[test]
    fn another_key_of_the_same_name_stops_it() {
        let (house, kms) = House::new();
        kms.create_key("a").unwrap();
        kms.backup(&house.backup, &house.root).unwrap();
        let (_other, stranger) = House::new();
        // Its default key has the same name and version, and other bytes.
        assert!(matches!(
            stranger.restore(&house.backup, &house.root, &house.root),
            Err(Error::Caller(Caller::KeyExists(_)))
        ));
        assert!(stranger.describe_key("a").is_err());
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let (house, kms) = House::new();
        kms.backup(&house.backup, &house.root).unwrap();
        let whole = fs::read(&house.backup).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            fs::write(&house.backup, &bad).unwrap();
            assert!(
                kms.restore(&house.backup, &house.root, &house.root)
                    .is_err(),
                "{at}"
            );
        }
        fs::write(&house.backup, &whole[..whole.len() - 1]).unwrap();
        assert!(
            kms.restore(&house.backup, &house.root, &house.root)
                .is_err()
        );
    }

    #[test]
    fn a_missing_keystore_is_not_made_anew_where_one_has_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Kms::open_existing(dir.path(), RootKey::generate())
            .ok()
            .unwrap();
        assert!(matches!(kms.outage(), Some(Outage::Lost(_))) && !kms.is_sealed());
        for error in [
            kms.create_key("a").unwrap_err(),
            kms.rotate_key(kms.default_key()).unwrap_err(),
            now(kms.generate_data_key(kms.default_key(), &Context::default()))
                .err()
                .unwrap(),
        ] {
            assert!(matches!(error, Error::Outage(Outage::Lost(_))), "{error}");
        }
        assert!(!Kms::exists(dir.path()));
    }
}
