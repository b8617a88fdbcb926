//! Segment files over io_uring, through glommio.
//!
//! The first file a shard opens on a device must hold data: glommio probes polled I/O with a read, and on an empty file the probe
//! succeeds where later reads fail. `warm_up` opens the superblock for that.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use glommio::GlommioError;
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use rustix::fs::FallocateFlags;

use super::DiskCounters;
use crate::error::{Error, Result};
use crate::limits::SECTOR;
use crate::rt;

pub use glommio::io::ReadResult;

pub use crate::datadir::sync_dir;

pub type Buffer = DmaBuffer;

/// A segment file, open on one core.
pub struct SegmentFile {
    file: DmaFile,
    path: PathBuf,
    /// In a segment that is written: a second descriptor, to reserve space and give it back.
    plain: Option<Arc<File>>,
    /// Those of the shard that opened it.
    counters: Arc<DiskCounters>,
}

/// Reads the superblock through the ring before anything else is opened.
pub async fn warm_up(superblock: &Path) -> Result<()> {
    let failed = |e| failure("read", superblock, e);
    let file = DmaFile::open(superblock).await.map_err(failed)?;
    let read = file.read_at_aligned(0, SECTOR).await.map_err(failed)?;
    if read.len() != SECTOR {
        return Err(Error::corrupt(
            "a short superblock",
            superblock.display().to_string(),
        ));
    }
    drop(read);
    file.close().await.map_err(failed)
}

impl SegmentFile {
    /// Makes a segment; its name is durable when this returns.
    pub async fn create(path: &Path, counters: Arc<DiskCounters>) -> Result<SegmentFile> {
        let file = Self::open_with(path, counters, true).await?;
        let dir = path
            .parent()
            .expect("a segment lies in a directory")
            .to_path_buf();
        rt::blocking(move || sync_dir(&dir)).await?;
        Ok(file)
    }

    pub async fn open(path: &Path, counters: Arc<DiskCounters>) -> Result<SegmentFile> {
        Self::open_with(path, counters, false).await
    }

    async fn open_with(
        path: &Path,
        counters: Arc<DiskCounters>,
        create: bool,
    ) -> Result<SegmentFile> {
        let failed = |e| failure(if create { "create" } else { "open" }, path, e);
        let file = OpenOptions::new()
            .read(true)
            .write(create)
            .create_new(create)
            .dma_open(path)
            .await
            .map_err(failed)?;
        let plain = if create {
            let plain = File::options().write(true).open(path);
            Some(Arc::new(plain.map_err(|e| Error::io("open", path, e))?))
        } else {
            None
        };
        Ok(SegmentFile {
            file,
            path: path.to_path_buf(),
            plain,
            counters,
        })
    }

    pub fn buffer(&self, bytes: usize) -> Buffer {
        self.file.alloc_dma_buffer(bytes)
    }

    /// Writes all of `buffer`, whole sectors, at `sector`.
    pub async fn write(&self, buffer: Rc<Buffer>, sector: u32) -> Result<()> {
        assert!(!buffer.is_empty() && buffer.len().is_multiple_of(SECTOR));
        let len = buffer.len();
        self.counters.wrote(len);
        let wrote = self
            .file
            .write_rc_at(buffer, u64::from(sector) * SECTOR as u64)
            .await
            .map_err(|e| failure("write", &self.path, e))?;
        if wrote == len {
            Ok(())
        } else {
            Err(Error::io(
                "write",
                &self.path,
                format!("{wrote} of {len} bytes went out"),
            ))
        }
    }

    /// Reads exactly `sectors` sectors.
    pub async fn read(&self, sector: u32, sectors: u32) -> Result<ReadResult> {
        let len = sectors as usize * SECTOR;
        self.counters.read(len);
        let read = self
            .file
            .read_at_aligned(u64::from(sector) * SECTOR as u64, len)
            .await
            .map_err(|e| failure("read", &self.path, e))?;
        if read.len() == len {
            Ok(read)
        } else {
            Err(Error::corrupt(
                format!("{} of {len} bytes are there", read.len()),
                format!("{} sector {sector}", self.path.display()),
            ))
        }
    }

    pub async fn sync(&self) -> Result<()> {
        self.counters.synced();
        self.file
            .fdatasync()
            .await
            .map_err(|e| failure("sync", &self.path, e))
    }

    /// Reserves disk space for the bytes from `from` to `to`.
    pub async fn allocate(&self, from: u64, to: u64) -> Result<()> {
        let file = self.plain();
        rt::blocking(move || {
            rustix::fs::fallocate(&*file, FallocateFlags::empty(), from, to - from)
        })
        .await
        .map_err(|e| match e {
            rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => Error::DiskFull,
            e => Error::io("reserve space in", &self.path, e),
        })
    }

    /// Gives back what lies behind `end`.
    pub async fn truncate(&self, end: u64) -> Result<()> {
        let file = self.plain();
        rt::blocking(move || file.set_len(end))
            .await
            .map_err(|e| Error::io("cut", &self.path, e))
    }

    fn plain(&self) -> Arc<File> {
        let plain = self.plain.as_ref();
        Arc::clone(plain.expect("this segment is written"))
    }
}

/// A segment as a thread that may block has it open: to give its space back.
pub struct PlainFile {
    file: File,
    path: PathBuf,
}

impl PlainFile {
    pub fn open(path: &Path) -> Result<PlainFile> {
        let file = File::options().write(true).open(path);
        Ok(PlainFile {
            file: file.map_err(|e| Error::io("open", path, e))?,
            path: path.to_path_buf(),
        })
    }

    /// Punches a hole over whole sectors and returns its bytes.
    pub fn punch(&self, start: u32, sectors: u32) -> Result<u64> {
        let len = u64::from(sectors) * SECTOR as u64;
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            u64::from(start) * SECTOR as u64,
            len,
        )
        .map_err(|e| Error::io("punch a hole in", &self.path, e))?;
        Ok(len)
    }

    pub fn cut(&self, end: u64) -> Result<()> {
        let cut = self.file.set_len(end);
        cut.map_err(|e| Error::io("cut", &self.path, e))
    }

    pub fn sync(&self) -> Result<()> {
        let synced = self.file.sync_all();
        synced.map_err(|e| Error::io("sync", &self.path, e))
    }
}

/// Removes a segment, unless it is gone already.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Gives a file or directory another name; durable once its directory was synced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
}

/// Bytes of the file system that `dir` lies on, and how many of them are free.
pub fn room(dir: &Path) -> Result<(u64, u64)> {
    let fs = rustix::fs::statvfs(dir);
    let fs = fs.map_err(|e| Error::io("ask for the free space of", dir, e))?;
    Ok((
        fs.f_blocks.saturating_mul(fs.f_frsize),
        fs.f_bavail.saturating_mul(fs.f_frsize),
    ))
}

fn failure(op: &'static str, path: &Path, e: GlommioError<()>) -> Error {
    let e = std::io::Error::from(e);
    if e.kind() == std::io::ErrorKind::StorageFull || e.kind() == std::io::ErrorKind::QuotaExceeded
    {
        Error::DiskFull
    } else {
        Error::io(op, path, e)
    }
}
