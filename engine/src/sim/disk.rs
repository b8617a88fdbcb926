//! The disk of a simulated machine: segment files that forget, tear, fail, and fill up.
//!
//! The bytes of a segment lie in a real file, as they would be read now. Beside it stands how to undo what was not synced, in
//! blocks of 512 bytes; a crash undoes any part of it. Names are durable once their directory was synced. A sync covers what was
//! complete when it began; after one that failed, no later sync covers what that one was to.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, seek};

use super::rt::sleep;
use super::{Rng, here, world};
use crate::error::{Error, Result};
use crate::io::DiskCounters;
use crate::limits::SECTOR;

/// What a disk writes at once or not at all.
const BLOCK: usize = 512;
/// Room taken by others on a disk that fills up.
const OTHERS: u64 = 3;

#[derive(Default)]
pub struct Disk {
    /// What is not synced, in order.
    pending: Vec<Pending>,
    next: u64,
    /// Which sectors of each segment take space.
    taken: BTreeMap<PathBuf, Vec<bool>>,
}

struct Pending {
    id: u64,
    path: PathBuf,
    change: Change,
    /// The write is complete; a sync that begins now covers it.
    done: bool,
    /// A sync that was to cover it failed.
    doomed: bool,
}

enum Change {
    /// So many bytes from here on were these, or all zero.
    Bytes {
        at: u64,
        len: usize,
        old: Option<Vec<u8>>,
    },
    Len(u64),
    Made,
    /// The file lies there now.
    Removed(PathBuf),
    /// It had this name.
    Renamed(PathBuf),
}

impl Change {
    fn is_name(&self) -> bool {
        matches!(self, Change::Made | Change::Removed(_) | Change::Renamed(_))
    }
}

impl Disk {
    fn pend(&mut self, path: &Path, change: Change, done: bool) -> u64 {
        self.next += 1;
        self.pending.push(Pending {
            id: self.next,
            path: path.to_path_buf(),
            change,
            done,
            doomed: false,
        });
        self.next
    }

    fn done(&mut self, id: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|p| p.id == id) {
            pending.done = true;
        }
    }

    /// What a sync of a file, or of a directory, that begins now covers.
    fn covered(&self, path: &Path) -> Vec<u64> {
        let covers = |p: &&Pending| match p.change.is_name() {
            true => p.path.parent() == Some(path),
            false => p.path == path && p.done,
        };
        let covered = self.pending.iter().filter(covers);
        covered.map(|p| p.id).collect()
    }

    fn settle(&mut self, covered: &[u64], synced: bool) {
        for pending in &mut self.pending {
            pending.doomed |= !synced && covered.contains(&pending.id);
        }
        self.pending.retain(|p| {
            let stays = p.doomed || !covered.contains(&p.id);
            if !stays && let Change::Removed(to) = &p.change {
                std::fs::remove_file(to).expect("it was moved there");
            }
            stays
        });
    }

    /// Overwrites bytes of a file, and remembers what was there.
    fn put(&mut self, path: &Path, file: &File, at: u64, bytes: &[u8], done: bool) -> u64 {
        let mut old = vec![0; bytes.len()];
        read_at(file, at, &mut old);
        let old = old.iter().any(|b| *b != 0).then_some(old);
        file.write_all_at(bytes, at)
            .expect("the real file is written");
        self.take(path, at, bytes.len() as u64, true);
        let len = bytes.len();
        self.pend(path, Change::Bytes { at, len, old }, done)
    }

    /// Remembers bytes that are about to go.
    fn lose(&mut self, path: &Path, file: &File, at: u64, end: u64) {
        for (at, len) in regions(file, at, end) {
            let mut old = vec![0; len];
            read_at(file, at, &mut old);
            let old = Some(old);
            self.pend(path, Change::Bytes { at, len, old }, true);
        }
        self.take(path, at, end.saturating_sub(at), false);
    }

    fn take(&mut self, path: &Path, at: u64, len: u64, taken: bool) {
        let sectors = self.taken.entry(path.to_path_buf()).or_default();
        let (from, to) = (at as usize / SECTOR, (at + len) as usize / SECTOR);
        if sectors.len() < to {
            sectors.resize(to, false);
        }
        sectors[from..to].fill(taken);
    }

    fn used(&self) -> u64 {
        let sectors = self.taken.values().flatten().filter(|taken| **taken);
        sectors.count() as u64 * SECTOR as u64
    }

    /// Undoes any part of what was not synced.
    pub fn crash(&mut self, rng: &mut Rng) {
        // All of it, nothing, whole writes, or blocks.
        let kind = rng.below(4);
        // Names change in order.
        let is_rename = |p: &&Pending| matches!(p.change, Change::Renamed(_));
        let renames = self.pending.iter().filter(is_rename).count() as u64;
        let mut lost = rng.below(renames + 1);
        for pending in std::mem::take(&mut self.pending).into_iter().rev() {
            let whole = match kind {
                0 => true,
                1 => false,
                _ => rng.below(2) == 0,
            };
            let path = &pending.path;
            match pending.change {
                Change::Made if whole => drop(std::fs::remove_file(path)),
                Change::Removed(to) if whole => {
                    std::fs::rename(to, path).expect("it was moved there");
                }
                Change::Removed(to) => std::fs::remove_file(to).expect("it was moved there"),
                Change::Len(old) if whole => open(path).set_len(old).expect("it is cut"),
                Change::Made | Change::Len(_) => {}
                Change::Renamed(from) => {
                    if lost > 0 {
                        std::fs::rename(path, from).expect("it was renamed");
                        lost -= 1;
                    }
                }
                Change::Bytes { at, len, old } => {
                    let old = old.unwrap_or_else(|| vec![0; len]);
                    let file = open(path);
                    for (n, block) in old.chunks(BLOCK).enumerate() {
                        let undone = match kind {
                            3 => rng.below(2) == 0,
                            _ => whole,
                        };
                        let at = at + (n * BLOCK) as u64;
                        if undone && at < len_of(&file) {
                            file.write_all_at(block, at).expect("it is undone");
                        }
                    }
                }
            }
        }
        for (path, sectors) in &mut self.taken {
            *sectors = data_sectors(path);
        }
    }

    /// Changes one bit somewhere in a segment.
    pub fn rot(&mut self, rng: &mut Rng) {
        let Some((path, at)) = self.anywhere(rng) else {
            return;
        };
        let file = open(&path);
        let at = at + rng.below(SECTOR as u64);
        let mut byte = [0];
        read_at(&file, at, &mut byte);
        byte[0] ^= 1 << rng.below(8);
        file.write_all_at(&byte, at).expect("it rots");
    }

    /// A sector of some segment that holds something.
    fn anywhere(&self, rng: &mut Rng) -> Option<(PathBuf, u64)> {
        let all: Vec<(&PathBuf, usize)> = self
            .taken
            .iter()
            .flat_map(|(path, sectors)| {
                let taken = sectors.iter().enumerate().filter(|(_, taken)| **taken);
                taken.map(move |(n, _)| (path, n))
            })
            .collect();
        let (path, sector) = all.get(rng.below(all.len() as u64) as usize)?;
        Some((path.to_path_buf(), *sector as u64 * SECTOR as u64))
    }
}

fn open(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path);
    file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn len_of(file: &File) -> u64 {
    file.metadata().expect("a file has a length").len()
}

/// What a file holds; zeros behind its end.
fn read_at(file: &File, at: u64, out: &mut [u8]) -> usize {
    let mut read = 0;
    while read < out.len() {
        let more = file.read_at(&mut out[read..], at + read as u64);
        match more.expect("the real file is read") {
            0 => break,
            n => read += n,
        }
    }
    out[read..].fill(0);
    read
}

/// Where in a file there are bytes, by what the real file system says.
fn regions(file: &File, from: u64, to: u64) -> Vec<(u64, usize)> {
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        let Ok(data) = seek(file, SeekFrom::Data(at)) else {
            break;
        };
        let hole = seek(file, SeekFrom::Hole(data)).unwrap_or(to).min(to);
        if data < hole {
            found.push((data, (hole - data) as usize));
        }
        at = hole.max(at + 1);
    }
    found
}

/// Which sectors of a file hold anything but zeros.
pub fn data_sectors(path: &Path) -> Vec<bool> {
    let Ok(file) = File::open(path) else {
        return Vec::new();
    };
    let len = len_of(&file);
    let mut sectors = vec![false; len.div_ceil(SECTOR as u64) as usize];
    for (at, len) in regions(&file, 0, len) {
        let mut bytes = vec![0; len];
        read_at(&file, at, &mut bytes);
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            sectors[at as usize / SECTOR + n] |= sector.iter().any(|b| *b != 0);
        }
    }
    sectors
}

fn injected(op: &'static str, path: &Path) -> Error {
    Error::io(op, path, "an injected error")
}

pub struct Buffer(Vec<u8>);

impl Buffer {
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn trim_to_size(&mut self, len: usize) {
        assert!(len <= self.0.len());
        self.0.truncate(len);
    }
}

pub struct ReadResult(Vec<u8>);

impl Deref for ReadResult {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

pub struct SegmentFile {
    file: File,
    path: PathBuf,
    counters: Arc<DiskCounters>,
}

pub async fn warm_up(_superblock: &Path) -> Result<()> {
    Ok(())
}

/// The machine has stopped: nobody goes on from here.
async fn stopped<T>() -> T {
    std::future::pending().await
}

impl SegmentFile {
    pub async fn create(path: &Path, counters: Arc<DiskCounters>) -> Result<SegmentFile> {
        let world = here();
        if !world.event(2) {
            return stopped().await;
        }
        let file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
        drop(file);
        world.disk.borrow_mut().pend(path, Change::Made, true);
        sleep(world.latency()).await;
        let dir = path.parent().expect("a segment lies in a directory");
        match sync_dir(dir) {
            _ if world.is_down() => stopped().await,
            synced => synced?,
        }
        Self::open(path, counters).await
    }

    pub async fn open(path: &Path, counters: Arc<DiskCounters>) -> Result<SegmentFile> {
        let file = File::options().read(true).write(true).open(path);
        Ok(SegmentFile {
            file: file.map_err(|e| Error::io("open", path, e))?,
            path: path.to_path_buf(),
            counters,
        })
    }

    /// It holds something old, as memory does.
    pub fn buffer(&self, bytes: usize) -> Buffer {
        Buffer(vec![0xdb; bytes])
    }

    pub async fn write(&self, buffer: Rc<Buffer>, sector: u32) -> Result<()> {
        let bytes = &buffer.0;
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(SECTOR));
        self.counters.wrote(bytes.len());
        let world = here();
        if !world.event(3 + (u64::from(sector) << 8)) {
            return stopped().await;
        }
        let faults = world.faults.get();
        let at = u64::from(sector) * SECTOR as u64;
        if world.fails(faults.misdirect) {
            let elsewhere = world.disk.borrow().anywhere(&mut world.rng.borrow_mut());
            if let Some((path, at)) = elsewhere {
                let file = open(&path);
                let len = bytes.len().min((len_of(&file) - at) as usize);
                let mut disk = world.disk.borrow_mut();
                disk.put(&path, &file, at, &bytes[..len], true);
            }
            return Ok(());
        }
        let fails = world.fails(faults.write);
        let id = world
            .disk
            .borrow_mut()
            .put(&self.path, &self.file, at, bytes, false);
        sleep(world.latency()).await;
        if !world.event(4 + (u64::from(sector) << 8)) {
            return stopped().await;
        }
        // One that failed may have written anything; it stays in doubt whatever is synced.
        if fails {
            return Err(injected("write", &self.path));
        }
        world.disk.borrow_mut().done(id);
        Ok(())
    }

    pub async fn read(&self, sector: u32, sectors: u32) -> Result<ReadResult> {
        let len = sectors as usize * SECTOR;
        self.counters.read(len);
        let world = here();
        sleep(world.latency()).await;
        if world.fails(world.faults.get().read) {
            return Err(injected("read", &self.path));
        }
        let mut bytes = vec![0; len];
        let read = read_at(&self.file, u64::from(sector) * SECTOR as u64, &mut bytes);
        if read == len {
            Ok(ReadResult(bytes))
        } else {
            Err(Error::corrupt(
                format!("{read} of {len} bytes are there"),
                format!("{} sector {sector}", self.path.display()),
            ))
        }
    }

    pub async fn sync(&self) -> Result<()> {
        self.counters.synced();
        let world = here();
        if !world.event(5) {
            return stopped().await;
        }
        let covered = world.disk.borrow().covered(&self.path);
        sleep(world.latency()).await;
        if !world.event(6) {
            return stopped().await;
        }
        finish_sync(&self.path, &covered)
    }

    pub async fn allocate(&self, from: u64, to: u64) -> Result<()> {
        let world = here();
        if !world.event(7) {
            return stopped().await;
        }
        sleep(world.latency()).await;
        if world.fails(world.faults.get().allocate) || room_left().is_some_and(|r| r < to - from) {
            return Err(Error::DiskFull);
        }
        let mut disk = world.disk.borrow_mut();
        disk.pend(&self.path, Change::Len(len_of(&self.file)), true);
        disk.take(&self.path, from, to - from, true);
        self.file
            .set_len(to)
            .map_err(|e| Error::io("reserve space in", &self.path, e))
    }

    pub async fn truncate(&self, end: u64) -> Result<()> {
        let world = here();
        if !world.event(8) {
            return stopped().await;
        }
        sleep(world.latency()).await;
        cut(&self.path, &self.file, end)
    }
}

fn finish_sync(path: &Path, covered: &[u64]) -> Result<()> {
    let world = here();
    let faults = world.faults.get();
    if world.fails(faults.lie) {
        return Ok(());
    }
    let fails = world.fails(faults.sync);
    world.disk.borrow_mut().settle(covered, !fails);
    match fails {
        true => Err(injected("sync", path)),
        false => Ok(()),
    }
}

fn cut(path: &Path, file: &File, end: u64) -> Result<()> {
    let world = here();
    if world.fails(world.faults.get().free) {
        return Err(injected("cut", path));
    }
    let mut disk = world.disk.borrow_mut();
    let len = len_of(file);
    disk.lose(path, file, end, len);
    disk.pend(path, Change::Len(len), true);
    file.set_len(end).map_err(|e| Error::io("cut", path, e))
}

pub struct PlainFile {
    file: File,
    path: PathBuf,
}

impl PlainFile {
    pub fn open(path: &Path) -> Result<PlainFile> {
        let file = File::options().read(true).write(true).open(path);
        Ok(PlainFile {
            file: file.map_err(|e| Error::io("open", path, e))?,
            path: path.to_path_buf(),
        })
    }

    pub fn punch(&self, start: u32, sectors: u32) -> Result<u64> {
        alive(9 + (u64::from(start) << 8), "punch a hole in", &self.path)?;
        let world = here();
        if world.fails(world.faults.get().free) {
            return Err(injected("punch a hole in", &self.path));
        }
        let (at, len) = (
            u64::from(start) * SECTOR as u64,
            u64::from(sectors) * SECTOR as u64,
        );
        let end = (at + len).min(len_of(&self.file));
        let mut disk = world.disk.borrow_mut();
        disk.lose(&self.path, &self.file, at, end);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, hole, at, len)
            .map_err(|e| Error::io("punch a hole in", &self.path, e))?;
        Ok(len)
    }

    pub fn cut(&self, end: u64) -> Result<()> {
        alive(10, "cut", &self.path)?;
        cut(&self.path, &self.file, end)
    }

    pub fn sync(&self) -> Result<()> {
        alive(11, "sync", &self.path)?;
        let covered = here().disk.borrow().covered(&self.path);
        finish_sync(&self.path, &covered)
    }
}

fn alive(what: u64, op: &'static str, path: &Path) -> Result<()> {
    match here().event(what) {
        true => Ok(()),
        false => Err(Error::io(op, path, "the machine is down")),
    }
}

pub fn remove(path: &Path) -> Result<()> {
    alive(12, "remove", path)?;
    let world = here();
    if world.fails(world.faults.get().free) {
        return Err(injected("remove", path));
    }
    if path.exists() {
        let mut disk = world.disk.borrow_mut();
        // It may come back with anything that was to be in it.
        disk.pending
            .retain(|p| p.path != path || p.change.is_name());
        let to = path.with_extension(format!("{}.removed", disk.next));
        std::fs::rename(path, &to).map_err(|e| Error::io("remove", path, e))?;
        disk.taken.remove(path);
        disk.pend(path, Change::Removed(to), true);
    }
    Ok(())
}

pub fn rename(from: &Path, to: &Path) -> Result<()> {
    alive(14, "rename", from)?;
    std::fs::rename(from, to).map_err(|e| Error::io("rename", from, e))?;
    let change = Change::Renamed(from.to_path_buf());
    here().disk.borrow_mut().pend(to, change, true);
    Ok(())
}

pub fn sync_dir(dir: &Path) -> Result<()> {
    alive(13, "sync", dir)?;
    let covered = here().disk.borrow().covered(dir);
    finish_sync(dir, &covered)
}

/// Bytes free on a disk that is to fill up.
fn room_left() -> Option<u64> {
    let world = here();
    let total = world.faults.get().room?;
    Some((total - total / OTHERS).saturating_sub(world.disk.borrow().used()))
}

pub fn room(dir: &Path) -> Result<(u64, u64)> {
    if world().is_none() {
        let fs = rustix::fs::statvfs(dir);
        let fs = fs.map_err(|e| Error::io("ask for the free space of", dir, e))?;
        return Ok((fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize));
    }
    let total = here().faults.get().room.unwrap_or(1 << 40);
    Ok((total, room_left().unwrap_or(1 << 40)))
}
