//! The keystore on disk: two files in a directory of their own, replaced so that a crash at any step
//! leaves either the old keystore or the new one.
//!
//! - `keys` holds the keys, sealed under a random *file key*. It is replaced as a whole: written beside,
//!   synced, renamed over, the directory synced.
//! - `file-key` has two slots, each the file key of one generation, sealed under a key derived from the
//!   root key. One slot is live; the other is zero, but for the moments of a change of file key.
//! - Destroying a key changes the file key: the new one is written to the free slot and synced, the
//!   new `keys` renamed in and synced, then the old slot is zeroed and synced. Whatever old copies of
//!   `keys` remain in free blocks or old inodes then open with nothing that this root key opens.
//! - A start finishes what a crash left: it removes the unfinished file and zeroes the slot not in use.
//! - An empty file `sealed` marks a keystore that has to stay closed over a restart.
//! - The directory itself is made whole under another name and renamed in, so a directory without one of
//!   its files is damage, never a first start.
//!
//! Every byte is described in `FORMAT.md`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{Environment, Error, Place};
use crate::keystore::book::Book;
use crate::limits::KEYSTORE_BYTES_MAX;
use crate::random;
use crate::root::RootKey;
use crate::seal;
use crate::secret::Secret32;

/// Directory of the keystore within the data directory.
pub(crate) const DIRECTORY: &str = "keystore";
/// Beside the keystore: it has been made here once.
const MADE: &str = "keystore.made";
const KEYS: &str = "keys";
const KEYS_NEW: &str = "keys.new";
const FILE_KEY: &str = "file-key";
const SEALED: &str = "sealed";

const KEYS_MAGIC: &[u8; 8] = b"SRKEYS01";
const SLOT_MAGIC: &[u8; 8] = b"SRFKEY01";
const STORE_ID: usize = 16;
const ROOT_ID: usize = 16;
/// Header of `keys`: magic, store id, generation, sequence.
const KEYS_HEADER: usize = 8 + STORE_ID + 8 + 8;
/// Header of a slot: magic, store id, generation, root key id.
const SLOT_HEADER: usize = 8 + STORE_ID + 8 + ROOT_ID;
const SLOT_USED: usize = SLOT_HEADER + seal::OVERHEAD + 32;
/// Slots lie apart, so that a torn write of one cannot touch the other.
const SLOT: usize = 4096;
const SLOTS: usize = 2;

const PURPOSE_SLOT: &str = "strongroom keystore file key v1";
const PURPOSE_ROOT_ID: &str = "strongroom root key id v1";

const _: () = assert!(SLOT_USED <= SLOT);

/// The keystore's files, opened: what is needed to replace them.
pub(crate) struct Files {
    directory: PathBuf,
    store_id: [u8; STORE_ID],
    root: RootKeys,
    live: Live,
    /// A replacement failed after it may have taken effect: what is on disk is not known.
    broken: bool,
    #[cfg(test)]
    pub(crate) fail_at: Option<usize>,
}

/// The file key in use.
struct Live {
    key: Secret32,
    generation: u64,
    sequence: u64,
    slot: usize,
}

/// What is derived from the root key for these files.
struct RootKeys {
    slot: Secret32,
    id: [u8; ROOT_ID],
}

impl RootKeys {
    fn new(root: &RootKey) -> Self {
        let id = root.derive(PURPOSE_ROOT_ID);
        Self {
            slot: root.derive(PURPOSE_SLOT),
            id: *id.expose().first_chunk().expect("16 of 32"),
        }
    }
}

impl Files {
    /// Whether `data_dir` holds a keystore.
    pub(crate) fn exist(data_dir: &Path) -> bool {
        data_dir.join(DIRECTORY).symlink_metadata().is_ok()
    }

    /// Whether `data_dir` holds a keystore, or has held one.
    pub(crate) fn were_made(data_dir: &Path) -> bool {
        Self::exist(data_dir) || data_dir.join(MADE).symlink_metadata().is_ok()
    }

    /// Makes a keystore that holds `book`; durable when this returns.
    pub(crate) fn create(data_dir: &Path, root: &RootKey, book: &Book) -> Result<Files, Error> {
        let mut files = Self::create_beside(data_dir, root, book)?;
        let new = std::mem::replace(&mut files.directory, data_dir.join(DIRECTORY));
        (|| {
            renameat_with(CWD, &new, CWD, &files.directory, RenameFlags::NOREPLACE)?;
            match create_new(&data_dir.join(MADE)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            sync_directory(data_dir)
        })()
        .map_err(|e| Error::io("cannot make the keystore", &files.directory, e))?;
        Ok(files)
    }

    /// Makes a keystore that holds `book`, and moves one that is in its place aside; says where to.
    pub(crate) fn create_in_place_of(
        data_dir: &Path,
        root: &RootKey,
        book: &Book,
        now: u64,
    ) -> Result<Option<PathBuf>, Error> {
        if !Self::exist(data_dir) {
            return Self::create(data_dir, root, book).map(|_| None);
        }
        let new = Self::create_beside(data_dir, root, book)?.directory;
        let (place, aside) = (
            data_dir.join(DIRECTORY),
            data_dir.join(format!("{DIRECTORY}.replaced-{now}")),
        );
        (|| {
            // At no moment is there no keystore: that would look like a first start.
            renameat_with(CWD, &new, CWD, &place, RenameFlags::EXCHANGE)?;
            renameat_with(CWD, &new, CWD, &aside, RenameFlags::NOREPLACE)?;
            sync_directory(data_dir)
        })()
        .map_err(|e| Error::io("cannot replace the keystore", &place, e))?;
        Ok(Some(aside))
    }

    /// Makes a whole keystore under another name.
    fn create_beside(data_dir: &Path, root: &RootKey, book: &Book) -> Result<Files, Error> {
        let new = data_dir.join(format!("{DIRECTORY}.new"));
        let failed = |path: &Path, source| Error::io("cannot make the keystore", path, source);
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&new, error));
            }
            _ => {}
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&new)
            .map_err(|e| failed(&new, e))?;
        let files = Files {
            directory: new.clone(),
            store_id: random::array(),
            root: RootKeys::new(root),
            live: Live {
                key: Secret32::random(),
                generation: 1,
                sequence: 1,
                slot: 0,
            },
            broken: false,
            #[cfg(test)]
            fail_at: None,
        };
        let path = new.join(FILE_KEY);
        (|| {
            let file = create_new(&path)?;
            let mut bytes = vec![0; SLOTS * SLOT];
            bytes[..SLOT_USED].copy_from_slice(&files.sealed_slot(&files.live.key, 1));
            file.write_all_at(&bytes, 0)?;
            file.sync_all()
        })()
        .map_err(|e| failed(&path, e))?;
        let path = new.join(KEYS);
        (|| {
            let mut file = create_new(&path)?;
            file.write_all(&files.sealed_keys(&files.live.key, 1, 1, book))?;
            file.sync_all()
        })()
        .map_err(|e| failed(&path, e))?;
        sync_directory(&new).map_err(|e| failed(&new, e))?;
        Ok(files)
    }

    /// Opens the keystore and finishes what a crash left half done.
    pub(crate) fn open(data_dir: &Path, root: &RootKey) -> Result<(Files, Book), Error> {
        let directory = data_dir.join(DIRECTORY);
        let root = RootKeys::new(root);
        let slots = open_slots(&directory, &root)?;

        let path = directory.join(KEYS);
        let bytes = read_bounded(&path, KEYSTORE_BYTES_MAX)
            .map_err(|e| missing_is_damage(&path, e, Place::Keystore))?;
        let corrupt = || Error::Corrupt(Place::Keystore(path.clone()));
        let header = KeysHeader::parse(&bytes).ok_or_else(corrupt)?;
        let opened = slots
            .into_iter()
            .enumerate()
            .find_map(|(at, slot)| match slot {
                Slot::Open {
                    key,
                    store_id,
                    generation,
                } if generation == header.generation && store_id == header.store_id => {
                    Some((at, key))
                }
                _ => None,
            });
        let (slot, key) = opened.ok_or_else(corrupt)?;
        let plain =
            seal::open(&key, &bytes[..KEYS_HEADER], &bytes[KEYS_HEADER..]).ok_or_else(corrupt)?;
        let book = Book::decode(&plain).map_err(|_| corrupt())?;

        let files = Files {
            directory,
            store_id: header.store_id,
            root,
            live: Live {
                key,
                generation: header.generation,
                sequence: header.sequence,
                slot,
            },
            broken: false,
            #[cfg(test)]
            fail_at: None,
        };
        files
            .finish()
            .map_err(|e| Error::io("cannot tidy the keystore", &files.directory, e))?;
        Ok((files, book))
    }

    /// Whether `root` opens the keystore's file key; the keys stay sealed.
    pub(crate) fn check_root(data_dir: &Path, root: &RootKey) -> Result<(), Error> {
        open_slots(&data_dir.join(DIRECTORY), &RootKeys::new(root)).map(drop)
    }

    /// Whether the keystore was left sealed.
    pub(crate) fn is_sealed(data_dir: &Path) -> Result<bool, Error> {
        let path = data_dir.join(DIRECTORY).join(SEALED);
        match path.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("cannot read", &path, error)),
        }
    }

    /// Leaves the mark of a sealed keystore; durable when this returns.
    pub(crate) fn mark_sealed(data_dir: &Path) -> Result<(), Error> {
        let directory = data_dir.join(DIRECTORY);
        let path = directory.join(SEALED);
        (|| {
            match create_new(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            sync_directory(&directory)
        })()
        .map_err(|e| {
            Error::io(
                "sealed until the next start only, for there is no writing",
                &path,
                e,
            )
        })
    }

    /// Takes the mark away; durable when this returns.
    pub(crate) fn unmark_sealed(data_dir: &Path) -> Result<(), Error> {
        let directory = data_dir.join(DIRECTORY);
        let path = directory.join(SEALED);
        (|| {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            sync_directory(&directory)
        })()
        .map_err(|e| Error::io("cannot unseal: cannot remove", &path, e))
    }

    /// Replaces the keys under the present file key; durable when this returns.
    pub(crate) fn replace(&mut self, book: &Book) -> Result<(), Error> {
        self.check_whole()?;
        let sequence = self.live.sequence + 1;
        let sealed = self.sealed_keys(&self.live.key, self.live.generation, sequence, book);
        self.rename_in(&sealed).map_err(|e| self.failed(e))?;
        self.live.sequence = sequence;
        Ok(())
    }

    /// Replaces the keys under a new file key and erases the old one: no earlier copy of the keystore
    /// opens any more. Durable when this returns.
    pub(crate) fn replace_and_erase(&mut self, book: &Book) -> Result<(), Error> {
        self.check_whole()?;
        let next = Live {
            key: Secret32::random(),
            generation: self.live.generation + 1,
            sequence: self.live.sequence + 1,
            slot: 1 - self.live.slot,
        };
        let slot = self.sealed_slot(&next.key, next.generation);
        let sealed = self.sealed_keys(&next.key, next.generation, next.sequence, book);
        (|| {
            self.write_slot(next.slot, &slot)?;
            self.rename_in(&sealed)?;
            self.write_slot(self.live.slot, &[])
        })()
        .map_err(|e| self.failed(e))?;
        self.live = next;
        Ok(())
    }

    /// Removes what an interrupted change left: the unfinished file, and the slot that is not in use.
    fn finish(&self) -> io::Result<()> {
        match fs::remove_file(self.directory.join(KEYS_NEW)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The rename of `keys` may not have been durable yet when the crash came: it has to be before
        // the slot that opens the older file goes.
        sync_directory(&self.directory)?;
        let spare = 1 - self.live.slot;
        let mut bytes = vec![0; SLOT];
        let file = File::open(self.directory.join(FILE_KEY))?;
        file.read_exact_at(&mut bytes, (spare * SLOT) as u64)?;
        if bytes.iter().any(|b| *b != 0) {
            self.write_slot(spare, &[])?;
        }
        Ok(())
    }

    fn rename_in(&self, sealed: &[u8]) -> io::Result<()> {
        let new = self.directory.join(KEYS_NEW);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = create_new(&new)?;
        self.step(0)?;
        file.write_all(sealed)?;
        self.step(1)?;
        file.sync_all()?;
        self.step(2)?;
        fs::rename(&new, self.directory.join(KEYS))?;
        self.step(3)?;
        sync_directory(&self.directory)?;
        self.step(4)
    }

    /// Writes one slot, zeros behind `used`, and syncs it.
    fn write_slot(&self, slot: usize, used: &[u8]) -> io::Result<()> {
        let mut bytes = vec![0; SLOT];
        bytes[..used.len()].copy_from_slice(used);
        self.step(if used.is_empty() { 7 } else { 5 })?;
        let file = OpenOptions::new()
            .write(true)
            .open(self.directory.join(FILE_KEY))?;
        file.write_all_at(&bytes, (slot * SLOT) as u64)?;
        file.sync_all()?;
        self.step(if used.is_empty() { 8 } else { 6 })
    }

    fn sealed_slot(&self, key: &Secret32, generation: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(SLOT_USED);
        out.extend_from_slice(SLOT_MAGIC);
        out.extend_from_slice(&self.store_id);
        out.extend_from_slice(&generation.to_le_bytes());
        out.extend_from_slice(&self.root.id);
        let sealed = seal::seal(&self.root.slot, &out, key.expose());
        out.extend_from_slice(&sealed);
        assert_eq!(out.len(), SLOT_USED);
        out
    }

    fn sealed_keys(&self, key: &Secret32, generation: u64, sequence: u64, book: &Book) -> Vec<u8> {
        let mut header = Vec::with_capacity(KEYS_HEADER);
        header.extend_from_slice(KEYS_MAGIC);
        header.extend_from_slice(&self.store_id);
        header.extend_from_slice(&generation.to_le_bytes());
        header.extend_from_slice(&sequence.to_le_bytes());
        let sealed = seal::seal(key, &header, &book.encode());
        header.extend_from_slice(&sealed);
        header
    }

    fn check_whole(&self) -> Result<(), Error> {
        if self.broken {
            return Err(Environment::KeystoreBroken.into());
        }
        Ok(())
    }

    fn failed(&mut self, source: io::Error) -> Error {
        self.broken = true;
        Error::io("cannot replace the keystore", &self.directory, source)
    }

    /// Between two steps of a replacement; tests stop here.
    #[cfg_attr(not(test), allow(clippy::unused_self, clippy::unnecessary_wraps))]
    fn step(&self, _step: usize) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_at == Some(_step) {
            return Err(io::Error::other("stopped by the test"));
        }
        Ok(())
    }
}

struct KeysHeader {
    store_id: [u8; STORE_ID],
    generation: u64,
    sequence: u64,
}

impl KeysHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(KEYS_MAGIC)?;
        let (store_id, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (sequence, _) = rest.split_first_chunk()?;
        Some(Self {
            store_id: *store_id,
            generation: u64::from_le_bytes(*generation),
            sequence: u64::from_le_bytes(*sequence),
        })
    }
}

/// What one slot of `file-key` turned out to be.
enum Slot {
    Open {
        key: Secret32,
        store_id: [u8; STORE_ID],
        generation: u64,
    },
    /// Sealed under another root key.
    OtherRoot,
    /// Zero, torn, or damaged.
    Unusable,
}

impl Slot {
    fn open(bytes: &[u8], root: &RootKeys) -> Slot {
        Self::parse(bytes, root).unwrap_or(Slot::Unusable)
    }

    fn parse(bytes: &[u8], root: &RootKeys) -> Option<Slot> {
        let (header, rest) = bytes.split_at_checked(SLOT_HEADER)?;
        let fields = header.strip_prefix(SLOT_MAGIC)?;
        let (store_id, fields) = fields.split_first_chunk::<STORE_ID>()?;
        let (generation, root_id) = fields.split_first_chunk::<8>()?;
        if root_id != root.id {
            return Some(Slot::OtherRoot);
        }
        let sealed = rest.get(..SLOT_USED - SLOT_HEADER)?;
        let plain = seal::open(&root.slot, header, sealed)?;
        Some(Slot::Open {
            key: Secret32::from_slice(&plain)?,
            store_id: *store_id,
            generation: u64::from_le_bytes(*generation),
        })
    }
}

/// Reads both slots; at least one of them is open.
fn open_slots(directory: &Path, root: &RootKeys) -> Result<Vec<Slot>, Error> {
    let path = directory.join(FILE_KEY);
    let bytes = read_bounded(&path, SLOTS * SLOT)
        .map_err(|e| missing_is_damage(&path, e, Place::FileKey))?;
    let slots: Vec<Slot> = bytes
        .chunks(SLOT)
        .map(|slot| Slot::open(slot, root))
        .collect();
    let open = |slot: &Slot| matches!(slot, Slot::Open { .. });
    if bytes.len() == SLOTS * SLOT && slots.iter().any(open) {
        return Ok(slots);
    }
    if slots.iter().any(|slot| matches!(slot, Slot::OtherRoot)) {
        return Err(Environment::WrongRootKey.into());
    }
    Err(Error::Corrupt(Place::FileKey(path)))
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn read_bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "longer than can be",
        ));
    }
    Ok(bytes)
}

fn missing_is_damage(path: &Path, error: io::Error, place: fn(PathBuf) -> Place) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData => {
            Error::Corrupt(place(path.to_owned()))
        }
        _ => Error::io("cannot read", path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyState as State;
    use crate::keystore::book::tests::key;

    fn book(keys: &[&str]) -> Book {
        let mut book = Book::default();
        for name in keys {
            book.keys.insert((*name).to_owned(), key(State::Enabled, 1));
        }
        book
    }

    fn names(book: &Book) -> Vec<&str> {
        book.keys.keys().map(String::as_str).collect()
    }

    fn reopen(dir: &Path, root: &RootKey) -> (Files, Book) {
        Files::open(dir, root)
            .map_err(|e| panic!("{e}"))
            .ok()
            .unwrap()
    }

    fn slots_in_use(dir: &Path) -> usize {
        let bytes = fs::read(dir.join(DIRECTORY).join(FILE_KEY)).unwrap();
        bytes
            .chunks(SLOT)
            .filter(|slot| slot.iter().any(|b| *b != 0))
            .count()
    }

    #[test]
    fn create_replace_open() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        assert!(!Files::exist(dir.path()));
        let mut files = Files::create(dir.path(), &root, &book(&["a"]))
            .ok()
            .unwrap();
        assert!(Files::exist(dir.path()));
        assert!(Files::create(dir.path(), &root, &book(&["z"])).is_err());
        files.replace(&book(&["a", "b"])).unwrap();
        files.replace_and_erase(&book(&["b", "c"])).unwrap();
        files.replace(&book(&["b", "d"])).unwrap();
        files.replace_and_erase(&book(&["b", "e"])).unwrap();
        let (files, held) = reopen(dir.path(), &root);
        assert_eq!(names(&held), ["b", "e"]);
        assert_eq!((files.live.generation, files.live.sequence), (3, 5));
        assert_eq!(slots_in_use(dir.path()), 1);
    }

    /// Stops a replacement between any two steps; the next start finds the old or the new keystore.
    #[test]
    fn crash_at_each_step() {
        for erase in [false, true] {
            for step in 0..=8 {
                let dir = tempfile::tempdir().unwrap();
                let root = RootKey::generate();
                let mut files = Files::create(dir.path(), &root, &book(&["old"]))
                    .ok()
                    .unwrap();
                files.fail_at = Some(step);
                let outcome = if erase {
                    files.replace_and_erase(&book(&["new"]))
                } else {
                    files.replace(&book(&["new"]))
                };
                let reached = erase || step < 5;
                assert_eq!(outcome.is_err(), reached, "{erase} {step}");
                if reached {
                    files.fail_at = None;
                    let again = files.replace(&book(&["later"]));
                    assert!(matches!(
                        again,
                        Err(Error::Environment(Environment::KeystoreBroken))
                    ));
                }
                drop(files);
                let (mut files, held) = reopen(dir.path(), &root);
                let renamed = !reached || [3, 4, 7, 8].contains(&step);
                assert_eq!(
                    names(&held),
                    [if renamed { "new" } else { "old" }],
                    "{erase} {step}"
                );
                assert_eq!(slots_in_use(dir.path()), 1, "{erase} {step}");
                assert!(!dir.path().join(DIRECTORY).join(KEYS_NEW).exists());
                files.replace_and_erase(&book(&["next"])).unwrap();
                assert_eq!(names(&reopen(dir.path(), &root).1), ["next"]);
            }
        }
    }

    #[test]
    fn crash_while_a_slot_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        drop(
            Files::create(dir.path(), &root, &book(&["a"]))
                .ok()
                .unwrap(),
        );
        let path = dir.path().join(DIRECTORY).join(FILE_KEY);
        let whole = fs::read(&path).unwrap();
        // A torn write of the free slot: the live one still opens, the torn one is zeroed.
        let mut torn = whole.clone();
        torn.copy_within(..SLOT_USED / 2, SLOT);
        fs::write(&path, &torn).unwrap();
        assert_eq!(names(&reopen(dir.path(), &root).1), ["a"]);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn crash_while_the_keystore_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let half = dir.path().join("keystore.new");
        fs::create_dir(&half).unwrap();
        fs::write(half.join(FILE_KEY), "half").unwrap();
        assert!(!Files::exist(dir.path()));
        drop(
            Files::create(dir.path(), &root, &book(&["a"]))
                .ok()
                .unwrap(),
        );
        assert!(!half.exists());
        assert_eq!(names(&reopen(dir.path(), &root).1), ["a"]);
    }

    /// After a key is destroyed, an older copy of the sealed keys opens with nothing that is left.
    #[test]
    fn an_erased_keystore_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let mut files = Files::create(dir.path(), &root, &book(&["doomed"]))
            .ok()
            .unwrap();
        let keys = dir.path().join(DIRECTORY).join(KEYS);
        let copy = fs::read(&keys).unwrap();
        let old_key = files.live.key.clone();
        files.replace_and_erase(&book(&[])).unwrap();
        let slots = fs::read(dir.path().join(DIRECTORY).join(FILE_KEY)).unwrap();
        for slot in slots.chunks(SLOT) {
            if let Slot::Open { key, .. } = Slot::open(slot, &RootKeys::new(&root)) {
                assert!(key != old_key);
            }
        }
        fs::write(&keys, copy).unwrap();
        assert!(matches!(
            Files::open(dir.path(), &root),
            Err(Error::Corrupt(Place::Keystore(_)))
        ));
    }

    #[test]
    fn a_wrong_root_key_is_said_to_be_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(
            Files::create(dir.path(), &RootKey::generate(), &book(&["a"]))
                .ok()
                .unwrap(),
        );
        assert!(matches!(
            Files::open(dir.path(), &RootKey::generate()),
            Err(Error::Environment(Environment::WrongRootKey))
        ));
    }

    #[test]
    fn any_changed_byte_is_corruption() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        drop(
            Files::create(dir.path(), &root, &book(&["a"]))
                .ok()
                .unwrap(),
        );
        for (file, len) in [(FILE_KEY, SLOT_USED), (KEYS, usize::MAX)] {
            let path = dir.path().join(DIRECTORY).join(file);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len().min(len) {
                let mut bad = whole.clone();
                bad[at] ^= 0x10;
                fs::write(&path, &bad).unwrap();
                let root_id =
                    file == FILE_KEY && (SLOT_HEADER - ROOT_ID..SLOT_HEADER).contains(&at);
                match Files::open(dir.path(), &root) {
                    Err(Error::Corrupt(_)) => {}
                    Err(Error::Environment(Environment::WrongRootKey)) if root_id => {}
                    _ => panic!("{file}: byte {at}"),
                }
            }
            for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
                fs::write(&path, &whole[..cut]).unwrap();
                assert!(
                    matches!(Files::open(dir.path(), &root), Err(Error::Corrupt(_))),
                    "{file}: cut at {cut}"
                );
            }
            fs::remove_file(&path).unwrap();
            assert!(
                matches!(Files::open(dir.path(), &root), Err(Error::Corrupt(_))),
                "{file}"
            );
            fs::write(&path, &whole).unwrap();
        }
        assert_eq!(names(&reopen(dir.path(), &root).1), ["a"]);
    }
}
