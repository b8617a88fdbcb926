//! One shard's reading side: the segment files it keeps open, and runs of packages read ahead of the client.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use glommio::io::ReadResult;
use glommio::task::JoinHandle;

use crate::dare::header::{PACKAGE, PAYLOAD};
use crate::dare::open::Opener;
use crate::engine::Core;
use crate::error::{Error, Result};
use crate::io::uring::SegmentFile;
use crate::limits::{self, EXTENT_DATA_SECTORS, EXTENT_PACKAGES, SECTOR};
use crate::record::{Extent, Place, Stream};

/// The segment files a shard has open.
pub struct Files {
    core: Arc<Core>,
    open: RefCell<HashMap<u64, (Rc<SegmentFile>, u64)>>,
    clock: Cell<u64>,
}

impl Files {
    pub fn new(core: Arc<Core>) -> Self {
        Files {
            core,
            open: RefCell::default(),
            clock: Cell::new(0),
        }
    }

    pub async fn get(&self, segment: u64) -> Result<Rc<SegmentFile>> {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        if let Some((file, used)) = self.open.borrow_mut().get_mut(&segment) {
            *used = now;
            return Ok(Rc::clone(file));
        }
        let file = Rc::new(SegmentFile::open(&self.core.segments.path(segment)).await?);
        let mut open = self.open.borrow_mut();
        if open.len() >= limits::OPEN_SEGMENTS_MAX
            && let Some(oldest) = open
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(id, _)| *id)
        {
            open.remove(&oldest);
        }
        open.insert(segment, (Rc::clone(&file), now));
        Ok(file)
    }
}

/// A stream to read: where it lies and how to open it.
pub struct Source {
    pub stream: Stream,
    /// None where the stream is not sealed.
    pub opener: Option<Rc<Opener>>,
    /// Sealed bytes of a stream that lives in the index.
    pub inline: Option<Bytes>,
    /// The plaintext bytes wanted of it.
    pub range: Range<u64>,
}

/// Reads sources one after the other, a bounded number of runs ahead.
pub struct RunReader {
    files: Rc<Files>,
    sources: VecDeque<Source>,
    /// Where in the first source the next run begins, in plaintext bytes.
    at: u64,
    pending: VecDeque<(Run, JoinHandle<Result<ReadResult>>)>,
}

/// One read: whole packages of one extent (or the same length of an unsealed stream).
struct Run {
    opener: Option<Rc<Opener>>,
    /// Number of the first package within its stream.
    first: u64,
    /// Plaintext of the run within the stream, and the part of it that is wanted.
    plain: Range<u64>,
    wanted: Range<u64>,
    /// Where the run's bytes begin in what was read, and how many they are.
    skip: usize,
    len: usize,
    place: String,
}

impl RunReader {
    pub fn new(files: Rc<Files>, sources: VecDeque<Source>) -> Self {
        let at = sources.front().map_or(0, |s| s.range.start);
        RunReader {
            files,
            sources,
            at,
            pending: VecDeque::new(),
        }
    }

    /// The next verified plaintext; none at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            while self.pending.len() <= limits::READS_AHEAD {
                match self.start().await {
                    Ok(Started::Read) => {}
                    // What lies in the index goes out at once, in its order.
                    Ok(Started::Inline) if self.pending.is_empty() => return Some(self.inline()),
                    Ok(Started::Inline | Started::Nothing) => break,
                    Err(e) => return Some(Err(e)),
                }
            }
            let (run, read) = self.pending.pop_front()?;
            let opened = match read.await {
                Some(Ok(read)) => run.open(&read),
                Some(Err(e)) => Err(e),
                None => Err(Error::Closed),
            };
            match opened {
                Ok(bytes) if bytes.is_empty() => {}
                done => return Some(done),
            }
        }
    }

    async fn start(&mut self) -> Result<Started> {
        let Some(source) = self.sources.front() else {
            return Ok(Started::Nothing);
        };
        if self.at >= source.range.end {
            self.pop();
            return Box::pin(self.start()).await;
        }
        let extents = match &source.stream.place {
            Place::Extents(extents) => extents,
            Place::Inline => return Ok(Started::Inline),
            Place::Empty => return Err(Error::corrupt("a stream of bytes with no place", "index")),
        };
        let (extent, sector, sectors, run) = source.run_at(self.at, extents)?;
        let next = run.plain.end;
        let file = self.files.get(extent.segment).await?;
        let read = glommio::spawn_local(async move { file.read(sector, sectors).await }).detach();
        self.pending.push_back((run, read));
        self.at = next;
        Ok(Started::Read)
    }

    fn pop(&mut self) {
        self.sources.pop_front();
        self.at = self.sources.front().map_or(0, |s| s.range.start);
    }

    fn inline(&mut self) -> Result<Bytes> {
        let source = self.sources.front().expect("asked for");
        let bytes = source.open_inline();
        self.pop();
        bytes
    }
}

enum Started {
    Read,
    Inline,
    Nothing,
}

impl Source {
    /// The run that holds plaintext byte `at`.
    fn run_at(&self, at: u64, extents: &[Extent]) -> Result<(Extent, u32, u32, Run)> {
        let size = self.stream.size;
        let lost = || Error::corrupt("a record that names too few extents", "index");
        // Unsealed streams are cut into runs of the same plaintext length.
        let (unit, plain_unit) = match &self.opener {
            Some(_) => (PACKAGE as u64, PAYLOAD as u64),
            None => (PAYLOAD as u64, PAYLOAD as u64),
        };
        let full = u64::from(EXTENT_DATA_SECTORS) * SECTOR as u64;
        let first = at / plain_unit;
        let (extent, offset, end) = match &self.opener {
            Some(_) => {
                let number = first / EXTENT_PACKAGES;
                let count = limits::READ_PACKAGES.min(EXTENT_PACKAGES - first % EXTENT_PACKAGES);
                (
                    number,
                    first % EXTENT_PACKAGES * unit,
                    (first + count) * plain_unit,
                )
            }
            None => {
                let number = at / full;
                let end = (at + limits::READ_PACKAGES * plain_unit).min((number + 1) * full);
                (number, at % full, end)
            }
        };
        let plain = match &self.opener {
            Some(_) => first * plain_unit..end.min(size),
            None => at..end.min(size),
        };
        // No further than the package that holds the last wanted byte.
        let wanted_end = self.range.end;
        let plain = plain.start
            ..plain
                .end
                .min(wanted_end.next_multiple_of(plain_unit).max(plain.start + 1))
                .min(size);
        let len = match &self.opener {
            Some(_) => {
                let bytes = plain.end - plain.start;
                bytes + bytes.div_ceil(plain_unit) * (unit - plain_unit)
            }
            None => plain.end - plain.start,
        };
        let extent = *extents.get(extent as usize).ok_or_else(lost)?;
        let sector = extent.start + u32::from(extent.lead) + (offset / SECTOR as u64) as u32;
        let skip = (offset % SECTOR as u64) as usize;
        let sectors = (skip as u64 + len).div_ceil(SECTOR as u64) as u32;
        if u64::from(sector - extent.start) + u64::from(sectors) > u64::from(extent.sectors) {
            return Err(lost());
        }
        let wanted = self.range.start.max(plain.start)..self.range.end.min(plain.end);
        let run = Run {
            opener: self.opener.clone(),
            first,
            wanted: wanted.start.max(at)..wanted.end,
            plain,
            skip,
            len: len as usize,
            place: format!("segment {:016x} sector {sector}", extent.segment),
        };
        Ok((extent, sector, sectors, run))
    }

    fn open_inline(&self) -> Result<Bytes> {
        let sealed = self
            .inline
            .clone()
            .ok_or_else(|| Error::corrupt("a small object without its bytes", "index inline"))?;
        let wanted = self.range.start as usize..self.range.end as usize;
        let plain = match &self.opener {
            None => sealed,
            Some(opener) => {
                let mut plain = vec![0; self.stream.size as usize];
                opener
                    .open_package(0, &sealed, &mut plain)
                    .map_err(|e| Error::corrupt(e.to_string(), "index inline"))?;
                Bytes::from(plain)
            }
        };
        if plain.len() as u64 != self.stream.size {
            return Err(Error::corrupt(
                "a small object of another length",
                "index inline",
            ));
        }
        Ok(plain.slice(wanted))
    }
}

impl Run {
    fn open(&self, read: &[u8]) -> Result<Bytes> {
        let stored = &read[self.skip..self.skip + self.len];
        let plain = match &self.opener {
            None => Bytes::copy_from_slice(stored),
            Some(opener) => {
                let mut plain = vec![0; (self.plain.end - self.plain.start) as usize];
                let packages = stored.chunks(PACKAGE).zip(plain.chunks_mut(PAYLOAD));
                for (i, (package, out)) in packages.enumerate() {
                    let number = self.first + i as u64;
                    opener.open_package(number, package, out).map_err(|e| {
                        Error::corrupt(format!("package {number}: {e}"), self.place.clone())
                    })?;
                }
                Bytes::from(plain)
            }
        };
        let from = (self.wanted.start - self.plain.start) as usize;
        let to = (self.wanted.end - self.plain.start) as usize;
        Ok(plain.slice(from..to))
    }
}
