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
//! - Where a store has several directories the keystore stands in each that is there. A change goes step by step through
//!   all of them: no old slot is zeroed before every `keys` is replaced. A start takes the newest copy and
//!   puts it in the place of older, damaged and missing ones, whose file keys are overwritten.
//!
//! Every byte is described in `FORMAT.md`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{Environment, Error, Place};
use crate::homes::Homes;
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
/// One that was moved aside, with the time behind.
const REPLACED: &str = "keystore.replaced-";
const KEYS: &str = "keys";
const KEYS_NEW: &str = "keys.new";
const FILE_KEY: &str = "file-key";
const SEALED: &str = "sealed";
/// A keystore that is being made, or one that another took the place of.
const NEW: &str = "keystore.new";

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

/// Whether what has this name in a data directory belongs to a keystore.
pub fn is_file(name: &str) -> bool {
    [DIRECTORY, MADE, NEW].contains(&name) || name.starts_with(REPLACED)
}

const PURPOSE_SLOT: &str = "strongroom keystore file key v1";
const PURPOSE_ROOT_ID: &str = "strongroom root key id v1";

const _: () = assert!(SLOT_USED <= SLOT);

/// A keystore made in the place of a lost one begins with a generation at or above this, so that it is newer than any copy of
/// the lost one in a directory that was away.
const REPLACING_FROM: u64 = 1 << 40;

/// The keystore's files, opened: what is needed to replace them.
pub(crate) struct Files {
    copies: Vec<Copy>,
    store_id: [u8; STORE_ID],
    root: RootKeys,
    live: Live,
    /// A replacement failed after it may have taken effect: what is on disk is not known.
    broken: bool,
    #[cfg(test)]
    pub(crate) fail_at: Option<usize>,
    /// Which copy to fail at.
    #[cfg(test)]
    pub(crate) fail_in: usize,
}

/// The keystore in one directory.
struct Copy {
    directory: PathBuf,
    /// The slot of the file key in use.
    slot: usize,
}

/// The file key in use.
struct Live {
    key: Secret32,
    generation: u64,
    sequence: u64,
}

/// One copy, opened.
struct Opened {
    store_id: [u8; STORE_ID],
    live: Live,
    slot: usize,
    book: Book,
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
    /// Whether any of `homes` holds a keystore.
    pub(crate) fn exist(homes: impl Into<Homes>) -> bool {
        homes.into().iter().any(is_in)
    }

    /// Whether any of `homes` holds a keystore, or has held one.
    pub(crate) fn were_made(homes: impl Into<Homes>) -> bool {
        let made = |home: &Path| is_in(home) || home.join(MADE).symlink_metadata().is_ok();
        homes.into().iter().any(made)
    }

    /// Makes a keystore that holds `book`; durable when this returns.
    pub(crate) fn create(
        homes: impl Into<Homes>,
        root: &RootKey,
        book: &Book,
    ) -> Result<Files, Error> {
        let mut files = Self::new(root, 1);
        for home in homes.into().iter() {
            if is_in(home) {
                let there = io::ErrorKind::AlreadyExists.into();
                let place = home.join(DIRECTORY);
                return Err(Error::io("cannot make the keystore", &place, there));
            }
            files.put_in(home, book)?;
        }
        Ok(files)
    }

    /// Makes a keystore that holds `book`, and moves one that is in its place aside; says where to.
    pub(crate) fn create_in_place_of(
        homes: impl Into<Homes>,
        root: &RootKey,
        book: &Book,
        now: u64,
    ) -> Result<Option<PathBuf>, Error> {
        let mut files = Self::new(root, now.max(REPLACING_FROM));
        let mut moved = None;
        for home in homes.into().iter() {
            let aside = match is_in(home) {
                true => Some(files.put_instead(home, book, now)?),
                false => {
                    files.put_in(home, book)?;
                    None
                }
            };
            moved = moved.or(aside);
        }
        Ok(moved)
    }

    fn new(root: &RootKey, generation: u64) -> Files {
        Files {
            copies: Vec::new(),
            store_id: random::array(),
            root: RootKeys::new(root),
            live: Live {
                key: Secret32::random(),
                generation,
                sequence: 1,
            },
            broken: false,
            #[cfg(test)]
            fail_at: None,
            #[cfg(test)]
            fail_in: 0,
        }
    }

    /// Makes a copy in a directory that has none.
    fn put_in(&mut self, home: &Path, book: &Book) -> Result<(), Error> {
        let new = self.make_beside(home, book)?;
        let place = home.join(DIRECTORY);
        (|| {
            renameat_with(CWD, &new, CWD, &place, RenameFlags::NOREPLACE)?;
            make_mark(&home.join(MADE))?;
            sync_directory(home)
        })()
        .map_err(|e| Error::io("cannot make the keystore", &place, e))?;
        self.copies.push(Copy {
            directory: place,
            slot: 0,
        });
        Ok(())
    }

    /// Makes a copy in the place of what is there, which is moved aside; says where to.
    fn put_instead(&mut self, home: &Path, book: &Book, now: u64) -> Result<PathBuf, Error> {
        let aside = home.join(format!("{REPLACED}{now}"));
        let new = self.exchange(home, book)?;
        (|| {
            renameat_with(CWD, &new, CWD, &aside, RenameFlags::NOREPLACE)?;
            sync_directory(home)
        })()
        .map_err(|e| Error::io("cannot replace the keystore", &new, e))?;
        Ok(aside)
    }

    /// Makes a copy in the place of an older or damaged one, which opens with nothing afterwards.
    fn put_over(&mut self, home: &Path, book: &Book) -> Result<(), Error> {
        let old = self.exchange(home, book)?;
        wipe(&old)
            .and_then(|()| sync_directory(home))
            .map_err(|e| Error::io("cannot remove the older keystore", &old, e))
    }

    /// Exchanges what is there and a new copy; says where the former is now.
    fn exchange(&mut self, home: &Path, book: &Book) -> Result<PathBuf, Error> {
        let new = self.make_beside(home, book)?;
        let place = home.join(DIRECTORY);
        // At no moment is there no keystore: that would look like a first start.
        renameat_with(CWD, &new, CWD, &place, RenameFlags::EXCHANGE)
            .map_err(io::Error::from)
            .and_then(|()| sync_directory(home))
            .map_err(|e| Error::io("cannot replace the keystore", &place, e))?;
        self.copies.push(Copy {
            directory: place,
            slot: 0,
        });
        Ok(new)
    }

    /// Makes a whole copy under another name.
    fn make_beside(&self, home: &Path, book: &Book) -> Result<PathBuf, Error> {
        let new = home.join(NEW);
        let failed = |path: &Path, source| Error::io("cannot make the keystore", path, source);
        wipe(&new).map_err(|e| failed(&new, e))?;
        DirBuilder::new()
            .mode(0o700)
            .create(&new)
            .map_err(|e| failed(&new, e))?;
        let live = &self.live;
        let path = new.join(FILE_KEY);
        (|| {
            let file = create_new(&path)?;
            let mut bytes = vec![0; SLOTS * SLOT];
            bytes[..SLOT_USED].copy_from_slice(&self.sealed_slot(&live.key, live.generation));
            file.write_all_at(&bytes, 0)?;
            file.sync_all()
        })()
        .map_err(|e| failed(&path, e))?;
        let path = new.join(KEYS);
        (|| {
            let mut file = create_new(&path)?;
            let sealed = self.sealed_keys(&live.key, live.generation, live.sequence, book);
            file.write_all(&sealed)?;
            file.sync_all()
        })()
        .map_err(|e| failed(&path, e))?;
        sync_directory(&new).map_err(|e| failed(&new, e))?;
        Ok(new)
    }

    /// Opens the keystore, finishes what a crash left half done, and makes all copies the same.
    pub(crate) fn open(homes: impl Into<Homes>, root: &RootKey) -> Result<(Files, Book), Error> {
        let homes = homes.into();
        let root = RootKeys::new(root);
        let mut copies = Vec::new();
        for home in homes.iter().filter(|home| is_in(home)) {
            copies.push((home, open_copy(&home.join(DIRECTORY), &root)));
        }
        let stamp = |opened: &Opened| (opened.live.generation, opened.live.sequence);
        let newest = copies
            .iter()
            .filter_map(|(_, opened)| opened.as_ref().ok().map(stamp))
            .max();
        // Going on with an older one than a copy that is damaged would lose keys, and bring destroyed ones back.
        let worse = |home: &Path| stamp_of(&home.join(DIRECTORY)) > newest;
        if let Some(at) = copies
            .iter()
            .position(|(home, opened)| opened.is_err() && (newest.is_none() || worse(home)))
            && let (_, Err(error)) = copies.swap_remove(at)
        {
            return Err(error);
        }
        let best = copies
            .iter()
            .position(|(_, opened)| opened.as_ref().is_ok_and(|o| Some(stamp(o)) == newest));
        let Some(best) = best else {
            let place = homes.first().join(DIRECTORY);
            return Err(Error::Corrupt(Place::Keystore(place)));
        };
        let (first, opened) = copies.swap_remove(best);
        let Opened {
            store_id,
            live,
            slot,
            book,
        } = opened?;
        let mut files = Files {
            store_id,
            live,
            root,
            copies: Vec::new(),
            broken: false,
            #[cfg(test)]
            fail_at: None,
            #[cfg(test)]
            fail_in: 0,
        };
        files.copies.push(Copy {
            directory: first.join(DIRECTORY),
            slot,
        });
        let replaces = files.live.generation >= REPLACING_FROM;
        for (home, other) in copies {
            match other {
                Ok(other) if other.store_id == files.store_id => {
                    if Some(stamp(&other)) == newest {
                        files.copies.push(Copy {
                            directory: home.join(DIRECTORY),
                            slot: other.slot,
                        });
                    } else {
                        files.put_over(home, &book)?;
                    }
                }
                // Of another keystore: the one that was lost, if this was made in its place.
                Ok(_) | Err(Error::Environment(Environment::WrongRootKey)) if replaces => {
                    files.put_instead(home, &book, files.live.generation)?;
                }
                Ok(_) => {
                    let (place, others) = (home.join(DIRECTORY), first.join(DIRECTORY));
                    return Err(Environment::OtherKeystore { place, others }.into());
                }
                Err(Error::Corrupt(_)) => files.put_over(home, &book)?,
                Err(error) => return Err(error),
            }
        }
        for home in homes.iter().filter(|home| !is_in(home)) {
            files.put_in(home, &book)?;
        }
        files.finish()?;
        Ok((files, book))
    }

    /// Whether `root` opens the newest keystore's file key; the keys stay sealed.
    pub(crate) fn check_root(homes: impl Into<Homes>, root: &RootKey) -> Result<(), Error> {
        let homes = homes.into();
        let root = RootKeys::new(root);
        let mut places = there(&homes);
        places.sort_by_key(|place| std::cmp::Reverse(stamp_of(place)));
        let mut first = None;
        for place in places {
            match open_slots(&place, &root) {
                Err(Error::Corrupt(place)) => {
                    first.get_or_insert(Error::Corrupt(place));
                }
                done => return done.map(drop),
            }
        }
        let none = || Error::Corrupt(Place::FileKey(homes.first().join(DIRECTORY).join(FILE_KEY)));
        Err(first.unwrap_or_else(none))
    }

    /// Whether the keystore was left sealed, in any directory.
    pub(crate) fn is_sealed(homes: impl Into<Homes>) -> Result<bool, Error> {
        for home in homes.into().iter() {
            let path = home.join(DIRECTORY).join(SEALED);
            match path.symlink_metadata() {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("cannot read", &path, error)),
            }
        }
        Ok(false)
    }

    /// Leaves the mark of a sealed keystore; durable when this returns.
    pub(crate) fn mark_sealed(homes: impl Into<Homes>) -> Result<(), Error> {
        for directory in directories(&homes.into()) {
            let path = directory.join(SEALED);
            (|| {
                make_mark(&path)?;
                sync_directory(&directory)
            })()
            .map_err(|e| {
                Error::io(
                    "sealed until the next start only, for there is no writing",
                    &path,
                    e,
                )
            })?;
        }
        Ok(())
    }

    /// Takes the mark away; durable when this returns.
    pub(crate) fn unmark_sealed(homes: impl Into<Homes>) -> Result<(), Error> {
        for directory in directories(&homes.into()) {
            let path = directory.join(SEALED);
            (|| {
                remove(&path)?;
                sync_directory(&directory)
            })()
            .map_err(|e| Error::io("cannot unseal: cannot remove", &path, e))?;
        }
        Ok(())
    }

    /// Replaces the keys under the present file key; durable when this returns.
    pub(crate) fn replace(&mut self, book: &Book) -> Result<(), Error> {
        self.check_whole()?;
        let sequence = self.live.sequence + 1;
        let sealed = self.sealed_keys(&self.live.key, self.live.generation, sequence, book);
        (0..self.copies.len())
            .try_for_each(|copy| self.rename_in(copy, &sealed))
            .map_err(|e| self.failed(e))?;
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
        };
        let slot = self.sealed_slot(&next.key, next.generation);
        let sealed = self.sealed_keys(&next.key, next.generation, next.sequence, book);
        let all = 0..self.copies.len();
        (|| {
            for copy in all.clone() {
                self.write_slot(copy, 1 - self.copies[copy].slot, &slot)?;
            }
            for copy in all.clone() {
                self.rename_in(copy, &sealed)?;
            }
            for copy in all.clone() {
                self.write_slot(copy, self.copies[copy].slot, &[])?;
            }
            Ok(())
        })()
        .map_err(|e| self.failed(e))?;
        self.live = next;
        self.copies
            .iter_mut()
            .for_each(|copy| copy.slot = 1 - copy.slot);
        Ok(())
    }

    /// Removes what an interrupted change left: unfinished files, and the slots that are not in use.
    fn finish(&self) -> Result<(), Error> {
        (0..self.copies.len()).try_for_each(|copy| {
            self.finish_copy(copy)
                .map_err(|e| Error::io("cannot tidy the keystore", &self.copies[copy].directory, e))
        })
    }

    fn finish_copy(&self, copy: usize) -> io::Result<()> {
        let Copy { directory, slot } = &self.copies[copy];
        remove(&directory.join(KEYS_NEW))?;
        // The rename of `keys` may not have been durable yet when the crash came: it has to be before
        // the slot that opens the older file goes.
        sync_directory(directory)?;
        let spare = 1 - slot;
        let mut bytes = vec![0; SLOT];
        let file = File::open(directory.join(FILE_KEY))?;
        file.read_exact_at(&mut bytes, (spare * SLOT) as u64)?;
        if bytes.iter().any(|b| *b != 0) {
            self.write_slot(copy, spare, &[])?;
        }
        // An older one whose place this took.
        wipe(&directory.with_file_name(NEW))
    }

    fn rename_in(&self, copy: usize, sealed: &[u8]) -> io::Result<()> {
        let directory = &self.copies[copy].directory;
        let new = directory.join(KEYS_NEW);
        remove(&new)?;
        let mut file = create_new(&new)?;
        self.step(copy, 0)?;
        file.write_all(sealed)?;
        self.step(copy, 1)?;
        file.sync_all()?;
        self.step(copy, 2)?;
        fs::rename(&new, directory.join(KEYS))?;
        self.step(copy, 3)?;
        sync_directory(directory)?;
        self.step(copy, 4)
    }

    /// Writes one slot, zeros behind `used`, and syncs it.
    fn write_slot(&self, copy: usize, slot: usize, used: &[u8]) -> io::Result<()> {
        let mut bytes = vec![0; SLOT];
        bytes[..used.len()].copy_from_slice(used);
        self.step(copy, if used.is_empty() { 7 } else { 5 })?;
        let file = OpenOptions::new()
            .write(true)
            .open(self.copies[copy].directory.join(FILE_KEY))?;
        file.write_all_at(&bytes, (slot * SLOT) as u64)?;
        file.sync_all()?;
        self.step(copy, if used.is_empty() { 8 } else { 6 })
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
        Error::io(
            "cannot replace the keystore",
            &self.copies[0].directory,
            source,
        )
    }

    /// Between two steps of a replacement; tests stop here.
    #[cfg_attr(not(test), allow(clippy::unused_self, clippy::unnecessary_wraps))]
    fn step(&self, _copy: usize, _step: usize) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_at == Some(_step) && self.fail_in == _copy {
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

fn is_in(home: &Path) -> bool {
    home.join(DIRECTORY).symlink_metadata().is_ok()
}

/// The directories that are there, or where one has to be.
fn directories(homes: &Homes) -> Vec<PathBuf> {
    match there(homes) {
        none if none.is_empty() => vec![homes.first().join(DIRECTORY)],
        there => there,
    }
}

fn there(homes: &Homes) -> Vec<PathBuf> {
    let with = homes.iter().filter(|home| is_in(home));
    with.map(|home| home.join(DIRECTORY)).collect()
}

/// Removes a keystore, its file keys overwritten before, so that no copy of its keys opens.
fn wipe(directory: &Path) -> io::Result<()> {
    match OpenOptions::new()
        .write(true)
        .open(directory.join(FILE_KEY))
    {
        Ok(file) => {
            file.write_all_at(&[0; SLOTS * SLOT], 0)?;
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How new a copy says it is: the generation of its file key, and its sequence.
fn stamp_of(directory: &Path) -> Option<(u64, u64)> {
    let mut header = [0; KEYS_HEADER];
    let mut file = File::open(directory.join(KEYS)).ok()?;
    file.read_exact(&mut header).ok()?;
    KeysHeader::parse(&header).map(|header| (header.generation, header.sequence))
}

fn open_copy(directory: &Path, root: &RootKeys) -> Result<Opened, Error> {
    let slots = open_slots(directory, root)?;
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
            } if generation == header.generation && store_id == header.store_id => Some((at, key)),
            _ => None,
        });
    let (slot, key) = opened.ok_or_else(corrupt)?;
    let plain =
        seal::open(&key, &bytes[..KEYS_HEADER], &bytes[KEYS_HEADER..]).ok_or_else(corrupt)?;
    Ok(Opened {
        store_id: header.store_id,
        live: Live {
            key,
            generation: header.generation,
            sequence: header.sequence,
        },
        slot,
        book: Book::decode(&plain).map_err(|_| corrupt())?,
    })
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

/// Makes an empty file that says something by its name, or leaves it.
fn make_mark(path: &Path) -> io::Result<()> {
    match create_new(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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

    struct Several {
        _home: tempfile::TempDir,
        dirs: Vec<PathBuf>,
        root: RootKey,
    }

    impl Several {
        fn new() -> (Several, Files) {
            let home = tempfile::tempdir().unwrap();
            let dirs = ["a", "b", "c"].map(|name| home.path().join(name)).to_vec();
            dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
            let root = RootKey::generate();
            let files = Files::create(&dirs, &root, &book(&["old"])).ok().unwrap();
            let several = Several {
                _home: home,
                dirs,
                root,
            };
            (several, files)
        }

        /// All copies are the same, and no other opens.
        fn assert_same(&self, expected: &[&str]) {
            for dir in &self.dirs {
                assert_eq!(names(&reopen(dir, &self.root).1), expected, "{dir:?}");
                assert_eq!(slots_in_use(dir), 1);
                assert!(!dir.join(NEW).exists());
            }
        }

        fn open(&self) -> Files {
            let (files, _) = Files::open(&self.dirs, &self.root).ok().unwrap();
            files
        }
    }

    #[test]
    fn several_copies_agree_after_a_crash_at_each_step_in_each() {
        for erase in [false, true] {
            for step in 0..=8 {
                for copy in 0..3 {
                    let (several, mut files) = Several::new();
                    (files.fail_at, files.fail_in) = (Some(step), copy);
                    let outcome = match erase {
                        true => files.replace_and_erase(&book(&["new"])),
                        false => files.replace(&book(&["new"])),
                    };
                    assert_eq!(outcome.is_err(), erase || step < 5);
                    drop(files);
                    let mut files = several.open();
                    // New as soon as one copy is.
                    let renamed =
                        outcome.is_ok() || [3, 4, 7, 8].contains(&step) || (copy > 0 && step < 3);
                    several.assert_same(&[if renamed { "new" } else { "old" }]);
                    files.replace_and_erase(&book(&["next"])).unwrap();
                    several.assert_same(&["next"]);
                }
            }
        }
    }

    #[test]
    fn a_copy_that_was_away_is_overwritten_and_a_damaged_or_missing_one_made_again() {
        let (several, files) = Several::new();
        drop(files);
        let [a, b, c] = &several.dirs[..] else {
            panic!()
        };
        let old = fs::read(c.join(DIRECTORY).join(FILE_KEY)).unwrap();
        let handle = File::open(c.join(DIRECTORY).join(FILE_KEY)).unwrap();
        let (mut files, _) = Files::open(&several.dirs[..2], &several.root).ok().unwrap();
        files.replace_and_erase(&book(&["new"])).unwrap();
        drop(files);
        fs::write(b.join(DIRECTORY).join(KEYS), "damage").unwrap();
        drop(several.open());
        several.assert_same(&["new"]);
        let mut left = vec![1; old.len()];
        handle.read_exact_at(&mut left, 0).unwrap();
        assert!(
            left.iter().all(|b| *b == 0),
            "the old file key is still there"
        );

        fs::remove_dir_all(a.join(DIRECTORY)).unwrap();
        drop(several.open());
        several.assert_same(&["new"]);

        // A damaged copy that is newer than all that open.
        let (mut files, _) = Files::open(a, &several.root).ok().unwrap();
        files.replace(&book(&["newest"])).unwrap();
        drop(files);
        let keys = a.join(DIRECTORY).join(KEYS);
        let mut bytes = fs::read(&keys).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&keys, &bytes).unwrap();
        assert!(matches!(
            Files::open(&several.dirs, &several.root),
            Err(Error::Corrupt(Place::Keystore(place))) if place == keys
        ));
        // What is restored then is newer than any.
        let aside =
            Files::create_in_place_of(&several.dirs[..2], &several.root, &book(&["back"]), 7);
        assert!(aside.ok().unwrap().is_some());
        drop(several.open());
        several.assert_same(&["back"]);
    }

    #[test]
    fn the_keystore_of_another_store_is_not_overwritten() {
        let (several, files) = Several::new();
        drop(files);
        let strangers = several.dirs[2].join(DIRECTORY);
        for other in [&several.root, &RootKey::generate()] {
            fs::remove_dir_all(&strangers).unwrap();
            drop(
                Files::create(&several.dirs[2], other, &book(&["other"]))
                    .ok()
                    .unwrap(),
            );
            assert!(matches!(
                Files::open(&several.dirs, &several.root),
                Err(Error::Environment(
                    Environment::OtherKeystore { .. } | Environment::WrongRootKey
                ))
            ));
            assert_eq!(names(&reopen(&several.dirs[2], other).1), ["other"]);
        }
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
