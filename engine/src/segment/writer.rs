//! One shard's writing side: places extents in its active segment, fills them through large direct writes, syncs them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;

use super::block::{self, Block, Copy, Head, Kind, Tail, TailRecord, WrappedKey};
use crate::cache::Cache;
use crate::dare::header::PACKAGE;
use crate::dare::seal::Sealer;
use crate::engine::Core;
use crate::error::{Error, Result};
use crate::io::disk::{Buffer, SegmentFile};
use crate::limits::{self, EXTENT_DATA_SECTORS, SECTOR, WRITE_BUFFER_BYTES};
use crate::permits::{Permit, Permits};
use crate::record::{Extent, Place};
use crate::rt::{self, Task};
use crate::shard::{to_end, within};
use crate::shelf::Shelved;

/// The active segment of a shard, and the budget of its write buffers.
pub struct Writer {
    core: Arc<Core>,
    shard: usize,
    active: RefCell<Option<Rc<Active>>>,
    /// Only one reservation at a time may roll the segment or reserve disk space.
    placing: Rc<Permits>,
    uploads: Rc<Permits>,
    spares: Rc<Permits>,
    free: RefCell<Vec<Buffer>>,
}

struct Active {
    id: u64,
    file: SegmentFile,
    next: Cell<u32>,
    reserved: Cell<u64>,
    sync: SyncGate,
}

impl Writer {
    pub fn new(core: Arc<Core>, shard: usize) -> Self {
        Writer {
            core,
            shard,
            active: RefCell::new(None),
            placing: Permits::new(1),
            uploads: Permits::new(limits::UPLOADS_PER_SHARD),
            spares: Permits::new(limits::SPARE_WRITE_BUFFERS),
            free: RefCell::new(Vec::new()),
        }
    }

    /// Hands out `sectors` sectors in a row. They are open until settled.
    async fn reserve(self: &Rc<Self>, sectors: u32, lead: u8) -> Result<(Rc<Active>, Extent)> {
        let placing = self.placing.acquire().await;
        let current = self.active.borrow().clone();
        let (active, _placing) = match current {
            Some(a) if self.has_room(&a, sectors) && a.reserved.get() >= a.end(sectors) => {
                (a, placing)
            }
            // To its end, also when the caller goes away: a file that is being made would be left behind, empty.
            current => {
                let writer = Rc::clone(self);
                to_end(async move { Ok((writer.make_room(current, sectors).await?, placing)) })
                    .await?
            }
        };
        let start = active.next.get();
        let extent = Extent {
            segment: active.id,
            start,
            lead,
            sectors,
            sequence: self.core.segments.next_sequence(),
        };
        active.next.set(start + sectors);
        self.core.segments.open(self.shard, &extent);
        self.core
            .segments
            .advance(self.shard, active.id, start + sectors);
        Ok((active, extent))
    }

    fn has_room(&self, active: &Active, sectors: u32) -> bool {
        active.next.get() + sectors <= self.core.segments.sectors_max
    }

    /// A segment with room for `sectors` sectors more, which are reserved.
    async fn make_room(&self, current: Option<Rc<Active>>, sectors: u32) -> Result<Rc<Active>> {
        let active = match current {
            Some(a) if self.has_room(&a, sectors) => a,
            full => self.roll(full).await?,
        };
        let (from, end) = (active.reserved.get(), active.end(sectors));
        if end > from {
            let to = end.max(from + limits::RESERVE_AHEAD_BYTES / 2);
            self.core.take_space(to - from)?;
            active.file.allocate(from, to).await?;
            active.reserved.set(to);
        }
        Ok(active)
    }

    async fn roll(&self, full: Option<Rc<Active>>) -> Result<Rc<Active>> {
        let id = self.core.segments.next_segment(self.shard);
        let file = SegmentFile::create(
            &self.core.segments.path(id),
            Arc::clone(&self.core.disks[self.shard]),
        )
        .await
        .inspect_err(|e| self.end_if_not_synced(e))?;
        if let Some(full) = full {
            full.cut().await;
        }
        let active = Rc::new(Active {
            id,
            file,
            next: Cell::new(0),
            reserved: Cell::new(0),
            sync: SyncGate::default(),
        });
        *self.active.borrow_mut() = Some(Rc::clone(&active));
        Ok(active)
    }

    /// Gives back what was reserved ahead; no upload may be under way any more.
    pub async fn close(&self) {
        let active = self.active.borrow_mut().take();
        if let Some(active) = active {
            active.cut().await;
        }
        self.core.segments.marks(self.shard).active = None;
    }

    /// A place for an upload of `stored` bytes, or `Overloaded` when none comes free in time.
    pub async fn begin(
        self: &Rc<Self>,
        head: StreamHead,
        stored: Stored,
        wrapped: Option<WrappedKey>,
    ) -> Result<Sink> {
        let (stored, open_ended) = match stored {
            Stored::Exactly(bytes) => (bytes, false),
            Stored::AtMost(bytes) => (bytes, true),
        };
        let slot = within(limits::SLOT_WAIT, self.uploads.acquire())
            .await
            .ok_or(Error::Overloaded {
                what: "no write buffer came free",
            })?;
        let sealed = head.head.nonce.is_some();
        let mut spares = Vec::new();
        if stored > WRITE_BUFFER_BYTES as u64 {
            while spares.len() < limits::WRITES_IN_FLIGHT
                && let Some(permit) = self.spares.try_acquire()
            {
                spares.push(permit);
            }
        }
        Ok(Sink {
            writer: Rc::clone(self),
            head,
            left: stored,
            wrapped,
            key_extent: None,
            open_ended,
            extents: Vec::new(),
            current: None,
            writes: VecDeque::new(),
            files: Vec::new(),
            // Ciphertext only.
            kept: (sealed && self.core.cache.takes_on_write(stored)).then_some(None),
            slot: Some((slot, spares)),
            settled: false,
        })
    }

    /// Writes a wrapped key by itself, synced.
    pub async fn write_key(self: &Rc<Self>, wrapped: WrappedKey) -> Result<OpenExtent> {
        let writer = Rc::clone(self);
        // To its end, also when the caller goes away: nothing may be punched under a write still on its way.
        to_end(async move { writer.write_key_now(&wrapped).await }).await
    }

    async fn write_key_now(self: &Rc<Self>, wrapped: &WrappedKey) -> Result<OpenExtent> {
        let sectors = key_sectors(wrapped)?;
        let (active, extent) = self.reserve(sectors, 0).await?;
        let open = OpenExtent::new(self, extent);
        let mut buffer = active.file.buffer(sectors as usize * SECTOR);
        self.seal_block(
            Kind::Key,
            &extent,
            extent.start,
            wrapped,
            buffer.as_bytes_mut(),
        )?;
        active.file.write(Rc::new(buffer), extent.start).await?;
        self.sync(&active).await?;
        Ok(open)
    }

    /// Writes a piece of a copy of the index, not synced yet. The first one gives its group the id, which is returned.
    pub async fn write_copy(self: &Rc<Self>, mut copy: Copy, pieces: &mut Pieces) -> Result<u64> {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let entries = copy.entries.iter();
        let bytes: usize = entries
            .map(|e| COPY_ENTRY_OVERHEAD + e.key.len() + len(&e.value) + len(&e.inline))
            .sum();
        let sectors = block::sectors_for(COPY_OVERHEAD + bytes);
        let (active, extent) = self.reserve(sectors, 0).await?;
        let open = OpenExtent::new(self, extent);
        if pieces.is_empty() {
            copy.group.id = extent.sequence;
        }
        let mut buffer = active.file.buffer(sectors as usize * SECTOR);
        let out = buffer.as_bytes_mut();
        self.seal_block(Kind::Copy, &extent, extent.start, &copy, out)?;
        active.file.write(Rc::new(buffer), extent.start).await?;
        pieces.0.push((open, active));
        Ok(copy.group.id)
    }

    pub async fn sync_copy(&self, pieces: &Pieces) -> Result<()> {
        let mut synced = None;
        for (_, active) in &pieces.0 {
            if synced != Some(active.id) {
                self.sync(active).await?;
                synced = Some(active.id);
            }
        }
        Ok(())
    }

    fn seal_block<T: minicbor::Encode<()>>(
        &self,
        kind: Kind,
        extent: &Extent,
        position: u32,
        payload: &T,
        out: &mut [u8],
    ) -> Result<()> {
        let block = Block {
            kind,
            sectors: extent.sectors,
            segment: extent.segment,
            position,
            sequence: extent.sequence,
            synced: self.core.index.synced(),
        };
        self.core.blocks.seal(&block, payload, out)
    }

    /// A buffer for the next write of an extent that is `sectors` sectors from its end.
    fn take_buffer(&self, file: &SegmentFile, sectors: u32) -> Buffer {
        let bytes = (sectors as usize * SECTOR).min(WRITE_BUFFER_BYTES);
        let pooled = if bytes == WRITE_BUFFER_BYTES {
            self.free.borrow_mut().pop()
        } else {
            None
        };
        pooled.unwrap_or_else(|| file.buffer(bytes))
    }

    fn put_buffer(&self, buffer: Buffer) {
        if buffer.len() == WRITE_BUFFER_BYTES {
            self.free.borrow_mut().push(buffer);
        }
        self.trim();
    }

    /// Keeps as many buffers as the uploads under way may use, and a few.
    fn trim(&self) {
        let uploads = limits::UPLOADS_PER_SHARD - self.uploads.free();
        let kept = uploads * (1 + limits::WRITES_IN_FLIGHT);
        let kept = kept.clamp(limits::IDLE_WRITE_BUFFERS, limits::SPARE_WRITE_BUFFERS);
        self.free.borrow_mut().truncate(kept);
    }

    /// A failed sync is fatal: nobody knows what is on disk after it.
    async fn sync(&self, active: &Active) -> Result<()> {
        let result = active.sync.run(|| active.file.sync()).await;
        result.inspect_err(|e| self.end_if_not_synced(e))
    }

    fn end_if_not_synced(&self, e: &Error) {
        if e.is_failed_sync() {
            (self.core.fatal)(e);
        }
    }

    fn abandon(&self, extents: Vec<Extent>) {
        if !extents.is_empty() {
            let freed = super::reclaim::Freed {
                reader: None,
                freed: None,
                shard: Some(self.shard),
                key: None,
                extents,
            };
            self.core.reclaim(freed.into());
        }
    }
}

impl Active {
    /// Where `sectors` sectors more would end, in bytes.
    fn end(&self, sectors: u32) -> u64 {
        u64::from(self.next.get() + sectors) * SECTOR as u64
    }

    async fn cut(&self) {
        let end = self.end(0);
        if self.reserved.get() > end
            && let Err(e) = self.file.truncate(end).await
        {
            tracing::warn!("space reserved ahead stays reserved until the next start: {e}");
        }
    }
}

fn key_sectors(wrapped: &WrappedKey) -> Result<u32> {
    let sectors = block::sectors_for(crate::record::encode(wrapped).len());
    if sectors > limits::KEY_SECTORS_MAX {
        return Err(Error::TooLarge {
            what: "the wrapped key with its context",
            got: u64::from(sectors) * SECTOR as u64,
            max: u64::from(limits::KEY_SECTORS_MAX) * SECTOR as u64,
        });
    }
    Ok(sectors)
}

/// What CBOR adds at most to an entry of a copy, and to a piece.
const COPY_ENTRY_OVERHEAD: usize = 48;
const COPY_OVERHEAD: usize = 256;

/// The pieces of a copy that no record names yet.
#[derive(Default)]
pub struct Pieces(Vec<(OpenExtent, Rc<Active>)>);

impl Pieces {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn extents(&self) -> Vec<Extent> {
        self.0
            .iter()
            .filter_map(|(open, _)| open.extent())
            .collect()
    }

    /// A durable record names them now.
    pub fn keep(self) {
        self.0.into_iter().for_each(|(open, _)| open.keep());
    }
}

/// An extent that no record names yet: given back unless kept.
pub struct OpenExtent {
    writer: Rc<Writer>,
    extent: Option<Extent>,
}

impl OpenExtent {
    fn new(writer: &Rc<Writer>, extent: Extent) -> Self {
        OpenExtent {
            writer: Rc::clone(writer),
            extent: Some(extent),
        }
    }

    pub fn extent(&self) -> Option<Extent> {
        self.extent
    }

    /// A durable record names it now.
    pub fn keep(mut self) {
        if let Some(extent) = self.extent.take() {
            self.writer.core.segments.settle(self.writer.shard, &extent);
        }
    }
}

impl Drop for OpenExtent {
    fn drop(&mut self) {
        self.writer
            .abandon(self.extent.take().into_iter().collect());
    }
}

/// How many bytes a stream stores.
#[derive(Debug, Clone, Copy)]
pub enum Stored {
    Exactly(u64),
    /// Its end is told on the way.
    AtMost(u64),
}

/// What the heads of a stream's extents say.
#[derive(Debug, Clone)]
pub struct StreamHead {
    pub head: Head,
    /// Encoded size of the record that the last tail will carry, at most.
    pub record_bytes_max: usize,
}

/// One upload on its way into segments. Dropping it gives everything back.
pub struct Sink {
    writer: Rc<Writer>,
    head: StreamHead,
    /// Stored bytes of the stream that have not been placed in an extent.
    left: u64,
    /// The wrapped key that goes in front of the first extent.
    wrapped: Option<WrappedKey>,
    key_extent: Option<Extent>,
    /// The stream may end earlier: heads, which tell its size, are written last, and every extent can take the last tail.
    open_ended: bool,
    extents: Vec<Extent>,
    current: Option<Current>,
    writes: VecDeque<Task<Result<()>>>,
    /// The files written, to be synced at the end.
    files: Vec<Rc<Active>>,
    /// Packages of the run that is being written, where the cache is to have them.
    kept: Option<Kept>,
    slot: Option<(Permit, Vec<Permit>)>,
    settled: bool,
}

/// The extent being filled.
struct Current {
    active: Rc<Active>,
    extent: Extent,
    buffer: Buffer,
    filled: usize,
    /// Where the buffer's first sector goes.
    position: u32,
    /// Stored bytes this extent will hold, and those still missing.
    bytes: u64,
    missing: u64,
}

impl Sink {
    /// Takes `src` into the stream, sealed by `sealer` where there is one.
    pub async fn write(&mut self, mut src: &[u8], mut sealer: Option<&mut Sealer>) -> Result<()> {
        while !src.is_empty() || sealer.as_ref().is_some_and(|sealer| sealer.owes()) {
            if self.current.is_none() {
                self.open_extent().await?;
            }
            let current = self.current.as_mut().expect("an extent is open");
            let room = (current.buffer.len() - current.filled).min(current.missing as usize);
            let dst = &mut current.buffer.as_bytes_mut()[current.filled..current.filled + room];
            let (read, written) = match &mut sealer {
                Some(sealer) => {
                    let progress = sealer.update(src, dst);
                    (progress.read, progress.written)
                }
                None => {
                    let n = src.len().min(dst.len());
                    dst[..n].copy_from_slice(&src[..n]);
                    (n, n)
                }
            };
            src = &src[read..];
            if let Some(kept) = &mut self.kept {
                let at = (current.bytes, current.missing);
                let cache = &self.writer.core.cache;
                keep(cache, kept, &current.extent, at, &dst[..written]);
            }
            current.filled += written;
            current.missing -= written as u64;
            if current.missing == 0 {
                if self.left > 0 {
                    self.close_extent(None).await?;
                }
            } else if current.filled == current.buffer.len() {
                self.flush().await?;
            }
            assert!(read > 0 || written > 0, "sealing makes progress");
        }
        Ok(())
    }

    /// The stream ends `by` stored bytes earlier and has so many plaintext bytes. The end lies behind what was taken.
    pub fn shorten(&mut self, by: u64, size: u64) {
        assert!(self.open_ended);
        let unplaced = self.left.min(by);
        self.left -= unplaced;
        if let Some(current) = &mut self.current {
            current.missing -= by - unplaced;
            current.bytes -= by - unplaced;
        }
        self.head.head.size = size;
    }

    /// Writes the last tail with the stream's record and waits until all of it is on disk. `record` gets the place of the
    /// stream's first extent's key.
    pub async fn finish(&mut self, record: TailRecord) -> Result<()> {
        assert!(
            self.left == 0 && self.current.as_ref().is_some_and(|c| c.missing == 0),
            "the stream is complete"
        );
        self.close_extent(Some(record)).await?;
        while !self.writes.is_empty() {
            self.reap().await?;
        }
        if self.open_ended {
            self.write_heads().await?;
        }
        for active in &self.files {
            self.writer.sync(active).await?;
        }
        self.slot = None;
        self.writer.trim();
        Ok(())
    }

    pub fn place(&self) -> Place {
        Place::Extents(self.extents.clone())
    }

    pub fn key_extent(&self) -> Option<Extent> {
        self.key_extent
    }

    /// A durable record names all extents now.
    pub fn settle(&mut self) {
        self.settled = true;
        for extent in self.extents.iter().chain(&self.key_extent) {
            self.writer.core.segments.settle(self.writer.shard, extent);
        }
    }

    async fn open_extent(&mut self) -> Result<()> {
        let full = u64::from(EXTENT_DATA_SECTORS) * SECTOR as u64;
        let bytes = self.left.min(full);
        let last = bytes == self.left;
        let data = bytes.div_ceil(SECTOR as u64) as u32;
        let tail = match last || self.open_ended {
            true => self.tail_sectors(),
            false => 1,
        };
        let head = block::sectors_for(crate::record::encode(&self.head.head).len() + 64);
        let key = match &self.wrapped {
            Some(wrapped) => key_sectors(wrapped)?,
            None => 0,
        };
        // The key has an extent of its own, in front of the first one.
        let (active, run) = self
            .writer
            .reserve(key + head + data + tail, head as u8)
            .await?;
        let extent = Extent {
            start: run.start + key,
            sectors: run.sectors - key,
            ..run
        };
        // From here on a failure gives the extent back.
        self.extents.push(extent);
        let mut buffer = self.writer.take_buffer(&active.file, run.sectors);
        let mut position = run.start;
        let mut filled = 0;
        if let Some(wrapped) = self.wrapped.take() {
            self.writer.core.segments.open(self.writer.shard, &extent);
            let key_extent = Extent {
                lead: 0,
                sectors: key,
                sequence: self.writer.core.segments.next_sequence(),
                ..run
            };
            self.key_extent = Some(key_extent);
            self.head.head.key_sequence = Some(key_extent.sequence);
            filled = key as usize * SECTOR;
            let out = &mut buffer.as_bytes_mut()[..filled];
            self.writer
                .seal_block(Kind::Key, &key_extent, key_extent.start, &wrapped, out)?;
        }
        if self.extents.len() == 1 {
            self.head.head.stream = extent.sequence;
        }
        self.head.head.number = self.extents.len() as u32 - 1;
        let lead = head as usize * SECTOR;
        if self.open_ended {
            if filled > 0 {
                let mut block = active.file.buffer(filled);
                block
                    .as_bytes_mut()
                    .copy_from_slice(&buffer.as_bytes_mut()[..filled]);
                let file = Rc::clone(&active);
                let write = async move { file.file.write(Rc::new(block), run.start).await };
                self.writes.push_back(rt::spawn(write));
                filled = 0;
            }
            position = extent.start + head;
        } else {
            let out = &mut buffer.as_bytes_mut()[filled..filled + lead];
            self.writer
                .seal_block(Kind::Head, &extent, extent.start, &self.head.head, out)?;
            filled += lead;
        }
        self.left -= bytes;
        if !self.files.iter().any(|f| f.id == active.id) {
            self.files.push(Rc::clone(&active));
        }
        self.current = Some(Current {
            active,
            extent,
            buffer,
            filled,
            position,
            bytes,
            missing: bytes,
        });
        Ok(())
    }

    fn tail_sectors(&self) -> u32 {
        block::sectors_for(self.head.record_bytes_max)
    }

    /// Pads the data to a sector, adds the tail, and sends out what is left.
    async fn close_extent(&mut self, record: Option<TailRecord>) -> Result<()> {
        let needed = match record.is_some() {
            true => self.tail_sectors(),
            false => 1,
        };
        let current = self.current.as_mut().expect("an extent is open");
        let padded = current.filled.next_multiple_of(SECTOR);
        let position = current.position + (padded / SECTOR) as u32;
        // What the extent has to spare is zero behind its tail.
        let sectors = current.extent.start + current.extent.sectors - position;
        assert!(
            sectors == needed || self.open_ended && sectors > needed,
            "the tail ends the extent"
        );
        let tail_bytes = sectors as usize * SECTOR;
        current.buffer.as_bytes_mut()[current.filled..padded].fill(0);
        current.filled = padded;
        if padded + tail_bytes > current.buffer.len() {
            self.flush().await?;
        }
        let current = self.current.as_mut().expect("an extent is open");
        let tail = Tail {
            stream: self.head.head.stream,
            number: self.head.head.number,
            bytes: current.bytes,
            record,
        };
        let at = current.filled;
        let out = &mut current.buffer.as_bytes_mut()[at..at + tail_bytes];
        self.writer
            .seal_block(Kind::Tail, &current.extent, position, &tail, out)?;
        current.filled += tail_bytes;
        self.flush().await?;
        self.current = None;
        Ok(())
    }

    /// Writes the heads that were left out.
    async fn write_heads(&mut self) -> Result<()> {
        for (number, extent) in self.extents.iter().enumerate() {
            self.head.head.number = number as u32;
            let active = self.files.iter().find(|f| f.id == extent.segment);
            let file = &active.expect("a file that was written").file;
            let mut buffer = file.buffer(usize::from(extent.lead) * SECTOR);
            let out = buffer.as_bytes_mut();
            self.writer
                .seal_block(Kind::Head, extent, extent.start, &self.head.head, out)?;
            file.write(Rc::new(buffer), extent.start).await?;
        }
        Ok(())
    }

    /// Sends the filled sectors out and goes on with a fresh buffer.
    async fn flush(&mut self) -> Result<()> {
        let in_flight = self.slot.as_ref().map_or(0, |(_, spares)| spares.len());
        // With no spare buffer the one write must end before the next buffer is taken.
        while !self.writes.is_empty() && self.writes.len() >= in_flight.max(1) {
            self.reap().await?;
        }
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        if current.filled == 0 {
            return Ok(());
        }
        assert!(current.filled.is_multiple_of(SECTOR));
        let position = current.position;
        current.position += (current.filled / SECTOR) as u32;
        let rest = current.extent.start + current.extent.sectors - current.position;
        let fresh = if rest > 0 {
            self.writer.take_buffer(&current.active.file, rest)
        } else {
            current.active.file.buffer(SECTOR)
        };
        let mut full = std::mem::replace(&mut current.buffer, fresh);
        full.trim_to_size(current.filled);
        current.filled = 0;
        let active = Rc::clone(&current.active);
        let writer = Rc::clone(&self.writer);
        let write = rt::spawn(async move {
            let full = Rc::new(full);
            active.file.write(Rc::clone(&full), position).await?;
            if let Some(full) = Rc::into_inner(full) {
                writer.put_buffer(full);
            }
            Ok(())
        });
        self.writes.push_back(write);
        if in_flight == 0 {
            self.reap().await?;
        }
        Ok(())
    }

    /// Waits for the oldest write, which stays among those under way until it is done.
    async fn reap(&mut self) -> Result<()> {
        if let Some(write) = self.writes.front_mut() {
            let done = write.await;
            self.writes.pop_front();
            done.ok_or(Error::Closed)??;
        }
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let extents: Vec<Extent> = self
            .extents
            .drain(..)
            .chain(self.key_extent.take())
            .collect();
        let writes = std::mem::take(&mut self.writes);
        let writer = Rc::clone(&self.writer);
        let slot = self.slot.take();
        if writes.is_empty() {
            writer.abandon(extents);
            return;
        }
        // Nothing may be punched under a write still on its way.
        rt::spawn(async move {
            for write in writes {
                write.await;
            }
            writer.abandon(extents);
            drop(slot);
            writer.trim();
        });
    }
}

/// The run that is being written, once it has begun.
type Kept = Option<Shelved>;

/// Copies what was just sealed for the cache, while it is still near; a run that is complete goes there.
/// `at` says how many bytes the extent will hold, and how many of them are missing without these.
fn keep(cache: &Cache, kept: &mut Kept, extent: &Extent, at: (u64, u64), mut sealed: &[u8]) {
    let run_bytes = limits::CACHE_RUN_BYTES as usize;
    let (all, mut missing) = (at.0, at.1 as usize);
    while !sealed.is_empty() {
        let mut run = kept
            .take()
            .unwrap_or_else(|| cache.shelf.buffer(run_bytes.min(missing)));
        let (now, later) = sealed.split_at(sealed.len().min(run_bytes - run.len()));
        run.extend(now);
        sealed = later;
        missing -= now.len();
        if run.len() == run_bytes || missing == 0 {
            let begins = all - missing as u64 - run.len() as u64;
            cache.put(extent, begins / PACKAGE as u64, run.into());
        } else {
            *kept = Some(run);
        }
    }
}

/// Lets many uploads share one sync: whoever asks while one runs waits for the next.
#[derive(Default)]
struct SyncGate {
    begun: Cell<u64>,
    done: Cell<u64>,
    running: Cell<bool>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
}

impl SyncGate {
    async fn run<F: Future<Output = Result<()>>>(&self, sync: impl Fn() -> F) -> Result<()> {
        // Only a sync begun from now on is known to cover what was written before.
        let needed = self.begun.get() + 1;
        while self.done.get() < needed {
            if self.running.replace(true) {
                let (wake, woken) = oneshot::channel();
                self.waiting.borrow_mut().push(wake);
                // A sender that is gone means the runner ended: look again.
                let _ = woken.await;
                continue;
            }
            let mine = self.begun.get() + 1;
            self.begun.set(mine);
            let _ended = Ended(self);
            sync().await?;
            self.done.set(mine);
        }
        Ok(())
    }
}

/// Ends a run of the gate also when its future is dropped.
struct Ended<'a>(&'a SyncGate);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.waiting.borrow_mut().drain(..).for_each(|w| {
            let _ = w.send(());
        });
    }
}
