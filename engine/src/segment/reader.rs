//! One shard's reading side: the segment files it keeps open, and runs of packages read ahead of the client.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{Asked, Cache};
use crate::dare::header::{OVERHEAD, PACKAGE, PAYLOAD};
use crate::dare::layout;
use crate::dare::open::{OpenError, Opener};
use crate::engine::Core;
use crate::error::{Error, Result};
use crate::io::disk::{ReadResult, SegmentFile};
use crate::limits::{self, EXTENT_DATA_SECTORS, EXTENT_PACKAGES, READ_PACKAGES, SECTOR};
use crate::record::{Extent, Place, Stream};
use crate::rt::{self, Task};
use crate::shelf::Shelf;

/// The segment files a shard has open.
pub struct Files {
    core: Arc<Core>,
    shard: usize,
    open: RefCell<HashMap<u64, (Rc<SegmentFile>, u64)>>,
    clock: Cell<u64>,
    /// How many segments had been removed when those were last looked through.
    removed: Cell<u64>,
}

impl Files {
    pub fn new(core: Arc<Core>, shard: usize) -> Self {
        Files {
            core,
            shard,
            open: RefCell::default(),
            clock: Cell::new(0),
            removed: Cell::new(0),
        }
    }

    pub async fn get(&self, segment: u64) -> Result<Rc<SegmentFile>> {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        self.close_removed();
        if let Some((file, used)) = self.open.borrow_mut().get_mut(&segment) {
            *used = now;
            return Ok(Rc::clone(file));
        }
        let file = Rc::new(self.open(segment).await?);
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

    /// Closes the files of segments that nobody will read again.
    fn close_removed(&self) {
        let removed = self.core.segments.removed();
        if self.removed.replace(removed) != removed {
            let segments = &self.core.segments;
            self.open
                .borrow_mut()
                .retain(|id, _| !segments.is_dead(*id));
        }
    }

    async fn open(&self, segment: u64) -> Result<SegmentFile> {
        let path = self.core.segments.path(segment);
        SegmentFile::open(&path, Arc::clone(&self.core.disks[self.shard])).await
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
    pending: VecDeque<(Run, Stored)>,
}

/// Whole packages in a row, of one extent and within one run of the cache (or as many bytes of an unsealed stream).
struct Run {
    /// None where the stream is not sealed.
    opener: Option<Rc<Opener>>,
    /// Number of the first package within its stream.
    first: u64,
    /// Plaintext of the run within the stream, and the part of it that is wanted.
    plain: Range<u64>,
    wanted: Range<u64>,
    /// Where its stored bytes lie.
    span: Span,
    /// All that the stream has of the cache's run; the same as `span` for an unsealed stream.
    whole: Span,
}

/// Stored bytes of an extent, counted from the extent's first byte of data.
#[derive(Clone, Copy)]
struct Span {
    extent: Extent,
    offset: u64,
    len: usize,
}

/// The stored bytes of a run, or of more than it, on their way.
enum Stored {
    Held(Bytes),
    Read(Span, Task<Result<ReadResult>>),
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
                    Ok(Started::Run) => {}
                    // What lies in the index goes out at once, in its order.
                    Ok(Started::Inline) if self.pending.is_empty() => return Some(self.inline()),
                    Ok(Started::Inline | Started::Nothing) => break,
                    Err(e) => return Some(Err(e)),
                }
            }
            let (run, stored) = self.pending.pop_front()?;
            match self.open(&run, stored).await {
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
        let run = source.run_at(self.at, extents)?;
        let stored = match self.ask_cache(&run) {
            Asked::Hit(bytes) => Stored::Held(bytes),
            Asked::Partly => self.read(run.whole).await?,
            Asked::Absent => self.read(run.span).await?,
        };
        self.at = run.plain.end;
        self.pending.push_back((run, stored));
        Ok(Started::Run)
    }

    /// Only what is sealed is ever in the cache.
    fn ask_cache(&self, run: &Run) -> Asked {
        match &run.opener {
            Some(_) => {
                let first = run.span.package();
                let count = (run.span.len as u64).div_ceil(PACKAGE as u64);
                let wanted = first..first + count;
                self.cache().get(&run.span.extent, wanted, run.span.len)
            }
            None => Asked::Absent,
        }
    }

    async fn read(&self, span: Span) -> Result<Stored> {
        let (sector, sectors, _) = span.sectors()?;
        let file = self.files.get(span.extent.segment).await?;
        let read = rt::spawn(async move { file.read(sector, sectors).await });
        Ok(Stored::Read(span, read))
    }

    async fn open(&self, run: &Run, stored: Stored) -> Result<Bytes> {
        match stored {
            Stored::Read(span, read) => self.open_read(run, span, read).await,
            Stored::Held(bytes) => match run.open(&bytes, self.plain()) {
                // Memory has changed under us; the disk may still be right.
                Err(fault) => {
                    tracing::error!("in memory: {fault}");
                    let package = run.span.package();
                    self.cache().drop_run(&run.span.extent, package);
                    match self.read(run.span).await? {
                        Stored::Read(span, read) => self.open_read(run, span, read).await,
                        Stored::Held(_) => Err(fault),
                    }
                }
                opened => opened,
            },
        }
    }

    /// Waits for a read and opens it. What held is kept, while the record that names it is held.
    async fn open_read(
        &self,
        run: &Run,
        span: Span,
        read: Task<Result<ReadResult>>,
    ) -> Result<Bytes> {
        let read = read.await.ok_or(Error::Closed)??;
        let (_, _, skip) = span.sectors()?;
        let stored = &read[skip..skip + span.len];
        let own = (run.span.offset - span.offset) as usize;
        let own = own..own + run.span.len;
        if run.opener.is_none() || !self.cache().is_on() {
            return run.open(&stored[own], self.plain());
        }
        // The copy brings near what is opened next.
        let kept = self.cache().shelf.copy(stored);
        let plain = run.open(&kept[own], self.plain())?;
        self.cache().put(&span.extent, span.package(), kept);
        Ok(plain)
    }

    fn plain(&self) -> &Shelf {
        &self.files.core.plain
    }

    fn cache(&self) -> &Cache {
        &self.files.core.cache
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
    Run,
    Inline,
    Nothing,
}

impl Span {
    /// Number of the first package in its extent, where these are packages.
    fn package(&self) -> u64 {
        self.offset / PACKAGE as u64
    }

    /// The sectors to read: the first, how many, and the bytes to skip in them.
    fn sectors(&self) -> Result<(u32, u32, usize)> {
        let skip = (self.offset % SECTOR as u64) as usize;
        let before = u64::from(self.extent.lead) + self.offset / SECTOR as u64;
        let sectors = (skip + self.len).div_ceil(SECTOR) as u64;
        if before + sectors > u64::from(self.extent.sectors) {
            return Err(too_few_extents());
        }
        Ok((self.extent.start + before as u32, sectors as u32, skip))
    }
}

fn too_few_extents() -> Error {
    Error::corrupt("a record that names too few extents", "index")
}

impl Source {
    /// The run that holds plaintext byte `at`.
    fn run_at(&self, at: u64, extents: &[Extent]) -> Result<Run> {
        match &self.opener {
            Some(opener) => self.sealed_run(opener, at / PAYLOAD as u64, extents),
            None => self.unsealed_run(at, extents),
        }
    }

    /// From package `first` on, as far as its run goes and anything is wanted.
    fn sealed_run(&self, opener: &Rc<Opener>, first: u64, extents: &[Extent]) -> Result<Run> {
        let (size, payload) = (self.stream.size, PAYLOAD as u64);
        let run_first = first - first % READ_PACKAGES;
        let run_end = (run_first + READ_PACKAGES).min(layout::packages(size));
        let end = run_end.min(self.range.end.div_ceil(payload));
        let plain = first * payload..(end * payload).min(size);
        let number = first / EXTENT_PACKAGES;
        let extent = *extents.get(number as usize).ok_or_else(too_few_extents)?;
        let span = |from: u64, to: u64| {
            let bytes = (to * payload).min(size) - from * payload + (to - from) * OVERHEAD as u64;
            Span {
                extent,
                offset: (from - number * EXTENT_PACKAGES) * PACKAGE as u64,
                len: bytes as usize,
            }
        };
        Ok(Run {
            opener: Some(Rc::clone(opener)),
            first,
            wanted: self.range.start.max(plain.start)..self.range.end.min(plain.end),
            plain,
            span: span(first, end),
            whole: span(run_first, run_end),
        })
    }

    fn unsealed_run(&self, at: u64, extents: &[Extent]) -> Result<Run> {
        let full = u64::from(EXTENT_DATA_SECTORS) * SECTOR as u64;
        let number = at / full;
        let end = (at + READ_PACKAGES * PAYLOAD as u64)
            .min((number + 1) * full)
            .min(self.range.end);
        let span = Span {
            extent: *extents.get(number as usize).ok_or_else(too_few_extents)?,
            offset: at % full,
            len: (end - at) as usize,
        };
        Ok(Run {
            opener: None,
            first: 0,
            plain: at..end,
            wanted: at..end,
            span,
            whole: span,
        })
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
    /// The wanted plaintext out of the run's stored bytes.
    fn open(&self, stored: &[u8], shelf: &Shelf) -> Result<Bytes> {
        let plain = match &self.opener {
            // What was read lies in memory of the ring, which only this core may give back.
            None => shelf.copy(stored),
            Some(opener) => {
                let len = (self.plain.end - self.plain.start) as usize;
                let mut plain = shelf.buffer(len);
                let out = plain.claim(len);
                let packages = stored.chunks(PACKAGE).zip(out.chunks_mut(PAYLOAD));
                for (i, (package, out)) in packages.enumerate() {
                    let number = self.first + i as u64;
                    opener
                        .open_package(number, package, out)
                        .map_err(|e| self.corrupt(number, &e))?;
                }
                Bytes::from(plain)
            }
        };
        let from = (self.wanted.start - self.plain.start) as usize;
        let to = (self.wanted.end - self.plain.start) as usize;
        Ok(plain.slice(from..to))
    }

    fn corrupt(&self, package: u64, fault: &OpenError) -> Error {
        let extent = &self.span.extent;
        let sector = u64::from(extent.start) + u64::from(extent.lead);
        let sector = sector + self.span.offset / SECTOR as u64;
        Error::corrupt(
            format!("package {package}: {fault}"),
            format!("segment {:016x} sector {sector}", extent.segment),
        )
    }
}
