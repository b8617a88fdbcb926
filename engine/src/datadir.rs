//! The data directory: its lock, its layout, and the superblock that says what it is.
//!
//! ```text
//! DATA_DIR/superblock   what this store is, and the wrapped store key; one sector, replaced when the key is wrapped anew
//! DATA_DIR/superblock.old  the one before it, until it is overwritten
//! DATA_DIR/lock         held by the process that has the store open
//! DATA_DIR/index/       the index
//! DATA_DIR/segments/    the segments
//! ```
//!
//! Superblock (one sector of 4096 bytes, integers little-endian, the rest zero):
//!
//! ```text
//! offset size  field
//! 0      8     "STRGSUPR"
//! 8      4     format version of the store, 1
//! 12     16    random id of the store
//! 28     4     length n of the wrapped store key
//! 32     n     the store key as its keeper wrapped it
//! 4048   8     how often the store key was wrapped anew
//! 4056   2     number of this directory among those of its store, from 0
//! 4058   2     how many directories the store has; 0 stands for 1
//! 4060   1     1 while the directories of a new store are being made
//! 4064   32    SHA-256 of bytes 0..4064
//! ```
//!
//! A store of several directories has format version 2, so that no program that knows of one alone serves a part of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::limits::SECTOR;

const MAGIC: &[u8; 8] = b"STRGSUPR";
const FORMAT: u32 = 1;
const FORMAT_OF_SEVERAL: u32 = 2;
const KEY_AT: usize = 32;
const WRAPPING_AT: usize = 4048;
const SEAT_AT: usize = WRAPPING_AT + 8;
const SUM_AT: usize = SECTOR - 32;

/// A data directory this process holds the lock of.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub store_id: [u8; 16],
    pub wrapped_store_key: Vec<u8>,
    /// How often the store key was wrapped anew: of several directories the one with the most holds.
    pub wrapping: u64,
    pub seat: Seat,
}

/// The place of a directory among those of its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    pub number: u16,
    pub of: u16,
    /// The directories are still being made: nothing was stored in any.
    pub unfinished: bool,
}

impl Seat {
    pub const ALONE: Seat = Seat {
        number: 0,
        of: 1,
        unfinished: false,
    };
}

impl DataDir {
    /// Makes the directory where it is missing and takes its lock.
    pub fn lock(path: &Path) -> Result<DataDir> {
        std::fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        let path = path
            .canonicalize()
            .map_err(|e| Error::io("open", path, e))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| Error::io("open", &lock_path, e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir { path, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse {
                path: path.display().to_string(),
            }),
            Err(e) => Err(Error::io("lock", &lock_path, e)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn index_dir(&self) -> PathBuf {
        self.path.join("index")
    }

    pub fn segments_dir(&self) -> PathBuf {
        self.path.join("segments")
    }

    pub fn superblock_path(&self) -> PathBuf {
        self.path.join("superblock")
    }

    /// The superblock; none in a directory where no store was ever made.
    pub fn superblock(&self) -> Result<Option<Superblock>> {
        Self::look(&self.path)
    }

    /// The superblock of a directory that nobody need hold.
    pub fn look(dir: &Path) -> Result<Option<Superblock>> {
        let path = dir.join("superblock");
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file
                .take(SECTOR as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| Error::io("read", &path, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        decode(&bytes)
            .map(Some)
            .map_err(|what| Error::corrupt(what, path.display().to_string()))
    }

    /// Makes a store here. It exists once its superblock does, which is the last thing written.
    pub fn create(&self, store_id: [u8; 16], wrapped_store_key: &[u8]) -> Result<()> {
        self.create_as(&Superblock {
            store_id,
            wrapped_store_key: wrapped_store_key.to_vec(),
            wrapping: 0,
            seat: Seat::ALONE,
        })
    }

    pub(crate) fn create_as(&self, superblock: &Superblock) -> Result<()> {
        for dir in [self.index_dir(), self.segments_dir()] {
            std::fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        }
        self.write_superblock(superblock)
    }

    /// Puts another wrapping of the store key in the place of the present one, whole or not at all; the present one is
    /// overwritten before this returns. A crash can leave it beside the new one, for [`DataDir::forget_old_wrapping`].
    pub fn replace_store_key(&self, wrapped_store_key: &[u8], wrapping: u64) -> Result<()> {
        let present = self
            .superblock()?
            .ok_or_else(|| Error::Unusable(format!("no store in {}", self.path.display())))?;
        self.forget_old_wrapping()?;
        let (path, old) = (self.superblock_path(), self.old_superblock_path());
        // A second name, so that the bytes can still be found when the first one is the new superblock's.
        std::fs::hard_link(&path, &old).map_err(|e| Error::io("link", &old, e))?;
        sync_dir(&self.path)?;
        self.write_superblock(&Superblock {
            wrapped_store_key: wrapped_store_key.to_vec(),
            wrapping,
            ..present
        })?;
        self.forget_old_wrapping()
    }

    /// Overwrites and removes a superblock that was replaced.
    pub fn forget_old_wrapping(&self) -> Result<()> {
        let (path, old) = (self.superblock_path(), self.old_superblock_path());
        let failed = |e: std::io::Error| Error::io("overwrite", &old, e);
        let file = match File::options().write(true).open(&old) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        let present = std::fs::metadata(&path).map_err(|e| Error::io("look at", &path, e))?;
        // Both names stand for one file where the replacement was not reached.
        if present.ino() != file.metadata().map_err(failed)?.ino() {
            (&file).write_all(&[0; SECTOR]).map_err(failed)?;
            file.sync_all().map_err(failed)?;
        }
        std::fs::remove_file(&old).map_err(failed)?;
        sync_dir(&self.path)
    }

    fn old_superblock_path(&self) -> PathBuf {
        self.path.join("superblock.old")
    }

    pub(crate) fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let block = encode(superblock)?;
        let path = self.superblock_path();
        let failed = |e: std::io::Error| Error::io("write", &path, e);
        let draft = self.path.join("superblock.new");
        let mut file = File::create(&draft).map_err(failed)?;
        file.write_all(&block).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&draft, &path).map_err(failed)?;
        sync_dir(&self.path)
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io("sync", path, e))
}

fn encode(superblock: &Superblock) -> Result<Vec<u8>> {
    let key = &superblock.wrapped_store_key;
    if key.len() > WRAPPING_AT - KEY_AT {
        return Err(Error::TooLarge {
            what: "the wrapped store key",
            got: key.len() as u64,
            max: (WRAPPING_AT - KEY_AT) as u64,
        });
    }
    let Seat {
        number,
        of,
        unfinished,
    } = superblock.seat;
    let (format, of) = match of {
        0 | 1 => (FORMAT, 0),
        of => (FORMAT_OF_SEVERAL, of),
    };
    let mut out = vec![0; SECTOR];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&format.to_le_bytes());
    out[12..28].copy_from_slice(&superblock.store_id);
    out[28..32].copy_from_slice(&(key.len() as u32).to_le_bytes());
    out[KEY_AT..KEY_AT + key.len()].copy_from_slice(key);
    out[WRAPPING_AT..SEAT_AT].copy_from_slice(&superblock.wrapping.to_le_bytes());
    out[SEAT_AT..SEAT_AT + 2].copy_from_slice(&number.to_le_bytes());
    out[SEAT_AT + 2..SEAT_AT + 4].copy_from_slice(&of.to_le_bytes());
    out[SEAT_AT + 4] = unfinished.into();
    let sum = Sha256::digest(&out[..SUM_AT]);
    out[SUM_AT..].copy_from_slice(&sum);
    Ok(out)
}

fn decode(bytes: &[u8]) -> Result<Superblock, String> {
    if bytes.len() != SECTOR || &bytes[..8] != MAGIC {
        return Err("not a superblock".into());
    }
    let format = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
    if format != FORMAT && format != FORMAT_OF_SEVERAL {
        return Err(format!(
            "format version {format}; this program reads versions {FORMAT} and {FORMAT_OF_SEVERAL}"
        ));
    }
    if Sha256::digest(&bytes[..SUM_AT])[..] != bytes[SUM_AT..] {
        return Err("a superblock whose checksum does not hold".into());
    }
    let len = u32::from_le_bytes(bytes[28..32].try_into().expect("4 bytes")) as usize;
    let key = bytes[KEY_AT..SUM_AT]
        .get(..len)
        .ok_or("an impossible length")?;
    let number_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"));
    let seat = Seat {
        number: number_at(SEAT_AT),
        of: number_at(SEAT_AT + 2).max(1),
        unfinished: bytes[SEAT_AT + 4] == 1,
    };
    if KEY_AT + len > WRAPPING_AT || seat.number >= seat.of {
        return Err("impossible numbers".into());
    }
    let wrapping = bytes[WRAPPING_AT..SEAT_AT].try_into().expect("8 bytes");
    Ok(Superblock {
        store_id: bytes[12..28].try_into().expect("16 bytes"),
        wrapped_store_key: key.to_vec(),
        wrapping: u64::from_le_bytes(wrapping),
        seat,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_there_once_created_and_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::lock(&dir.path().join("new")).unwrap();
        assert_eq!(held.superblock().unwrap(), None);
        held.create([7; 16], b"wrapped").unwrap();
        let read = held.superblock().unwrap().unwrap();
        assert_eq!(
            (read.store_id, &read.wrapped_store_key[..]),
            ([7; 16], &b"wrapped"[..])
        );
        let second = DataDir::lock(&dir.path().join("new")).unwrap_err();
        assert!(second.to_string().contains("in use"), "{second}");
        drop(held);
        DataDir::lock(&dir.path().join("new")).unwrap();
    }

    #[test]
    fn a_replaced_wrapping_is_overwritten_wherever_a_crash_came() {
        let home = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(home.path()).unwrap();
        dir.create([7; 16], b"first").unwrap();
        let open = |name: &str| File::open(dir.path().join(name)).unwrap();
        let holds = |mut file: File, what: &[u8]| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes.windows(what.len()).any(|w| w == what)
        };
        let wrapped = || dir.superblock().unwrap().unwrap().wrapped_store_key;
        let before = open("superblock");
        dir.replace_store_key(b"second", 1).unwrap();
        assert_eq!(wrapped(), b"second");
        assert!(!holds(before, b"first"));
        assert!(!dir.old_superblock_path().exists());

        // After the link: the superblock stands.
        std::fs::hard_link(dir.superblock_path(), dir.old_superblock_path()).unwrap();
        dir.forget_old_wrapping().unwrap();
        assert_eq!(wrapped(), b"second");
        assert!(!dir.old_superblock_path().exists());

        // After the rename.
        std::fs::hard_link(dir.superblock_path(), dir.old_superblock_path()).unwrap();
        dir.create([7; 16], b"third").unwrap();
        let before = open("superblock.old");
        dir.forget_old_wrapping().unwrap();
        assert_eq!(wrapped(), b"third");
        assert!(!holds(before, b"second"));
        assert!(!dir.old_superblock_path().exists());
    }

    #[test]
    fn damage_is_seen_at_every_byte() {
        let good = encode(&Superblock {
            store_id: [1; 16],
            wrapped_store_key: vec![2; 60],
            wrapping: 3,
            seat: Seat {
                number: 1,
                of: 4,
                unfinished: true,
            },
        })
        .unwrap();
        assert_eq!(encode(&decode(&good).unwrap()).unwrap(), good);
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            assert!(decode(&bad).is_err(), "byte {i}");
        }
        assert!(decode(&good[..SECTOR - 1]).is_err());
    }
}
