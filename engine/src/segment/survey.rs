//! A survey of segments: every block in them that is intact, whatever any index says.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use super::block::{self, Copy, CopyGroup, Head, Kind, Tail, TailRecord, WrappedKey};
use super::scrub::{block_at, tail_sector};
use crate::dare::layout;
use crate::error::{Error, Result};
use crate::index::recover::segment_files;
use crate::limits::{EXTENT_DATA_SECTORS, SECTOR};
use crate::record::{Extent, UploadId};

/// A stream as its heads and tails tell of it.
pub struct Found {
    pub bucket: String,
    pub key: String,
    pub part: Option<(UploadId, u16)>,
    pub size: u64,
    pub nonce: Option<[u8; 12]>,
    pub key_sequence: Option<u64>,
    /// The finished extents, by number.
    pub extents: BTreeMap<u32, Extent>,
    /// Out of the last tail, and the commit that was durable when it was written.
    pub record: Option<TailRecord>,
    pub synced: u64,
}

impl Found {
    /// Its extents in order, if all of them are there and the last one was finished.
    pub fn complete(&self) -> Option<Vec<Extent>> {
        self.record.as_ref()?;
        let stored = stored(self.size, self.nonce.is_some())?;
        let full = u64::from(EXTENT_DATA_SECTORS) * SECTOR as u64;
        let whole = self.extents.len() as u64 == stored.div_ceil(full)
            && self
                .extents
                .keys()
                .copied()
                .eq(0..self.extents.len() as u32);
        whole.then(|| self.extents.values().copied().collect())
    }
}

/// Everything that was found.
#[derive(Default)]
pub struct Survey {
    /// Streams by the sequence of their first extent.
    pub streams: HashMap<u64, Found>,
    /// Wrapped keys by extent sequence.
    pub keys: HashMap<u64, (Extent, WrappedKey)>,
    pub copies: Vec<(Extent, Piece)>,
    /// The highest commit that any block names as durable.
    pub synced: u64,
    /// The highest extent sequence.
    pub sequence: u64,
    pub next_segment: u64,
}

/// A piece of a copy of the index, without its entries.
pub struct Piece {
    pub group: CopyGroup,
    pub number: u32,
    pub last: bool,
}

/// Looks through all segments in `dir`.
pub fn survey(dir: &Path, blocks: &block::Sealer) -> Result<Survey> {
    let mut all = Survey::default();
    for (id, len) in segment_files(dir)? {
        all.next_segment = all.next_segment.max(id + 1);
        let path = super::path(dir, id);
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        all.segment(blocks, &file, id, len.div_ceil(SECTOR as u64) as u32);
    }
    Ok(all)
}

impl Survey {
    fn segment(&mut self, blocks: &block::Sealer, file: &File, id: u64, end: u32) {
        let mut at = 0;
        while at < end {
            // A file system without holes shows data everywhere.
            match seek(file, SeekFrom::Data(u64::from(at) * SECTOR as u64)) {
                Ok(data) => at = at.max((data / SECTOR as u64) as u32),
                Err(rustix::io::Errno::NXIO) => return,
                Err(_) => {}
            }
            at = at.saturating_add(self.block(blocks, file, id, at));
        }
    }

    /// Takes the block at `at` in, and says how far it is to the next.
    fn block(&mut self, blocks: &block::Sealer, file: &File, id: u64, at: u32) -> u32 {
        let Some((block, payload)) = block_at(blocks, file, id, at) else {
            return 1;
        };
        self.synced = self.synced.max(block.synced);
        self.sequence = self.sequence.max(block.sequence);
        let extent = Extent {
            segment: id,
            start: at,
            lead: 0,
            sectors: block.sectors,
            sequence: block.sequence,
        };
        match block.kind {
            Kind::Head => {
                if let Ok(head) = minicbor::decode::<Head>(&payload) {
                    self.stream(blocks, file, extent, head);
                }
            }
            Kind::Key => {
                if let Ok(wrapped) = minicbor::decode::<WrappedKey>(&payload) {
                    self.keys.insert(block.sequence, (extent, wrapped));
                }
            }
            Kind::Copy => {
                if let Ok(copy) = minicbor::decode::<Copy>(&payload) {
                    self.next_segment = self.next_segment.max(copy.next_segment);
                    let piece = Piece {
                        group: copy.group,
                        number: copy.number,
                        last: copy.last,
                    };
                    self.copies.push((extent, piece));
                }
            }
            // Its head is damaged.
            Kind::Tail => return 1,
        }
        block.sectors.max(1)
    }

    fn stream(&mut self, blocks: &block::Sealer, file: &File, extent: Extent, head: Head) {
        let Some(stored) = stored(head.size, head.nonce.is_some()) else {
            return;
        };
        let full = u64::from(EXTENT_DATA_SECTORS) * SECTOR as u64;
        let Some(bytes) = stored.checked_sub(u64::from(head.number) * full) else {
            return;
        };
        let mut first = vec![0; SECTOR];
        if file
            .read_exact_at(&mut first, u64::from(extent.start) * SECTOR as u64)
            .is_err()
        {
            return;
        }
        let lead = block::claimed_bytes(&first).map_or(1, |len| len.div_ceil(SECTOR));
        let found = self.streams.entry(head.stream).or_insert_with(|| Found {
            bucket: head.bucket,
            key: head.key,
            part: head.part,
            size: head.size,
            nonce: head.nonce,
            key_sequence: None,
            extents: BTreeMap::new(),
            record: None,
            synced: 0,
        });
        found.key_sequence = found.key_sequence.or(head.key_sequence);
        // A head can have a sector to spare.
        for lead in [lead, lead + 1] {
            let extent = Extent {
                lead: lead as u8,
                ..extent
            };
            let tail = tail_sector(&extent, bytes.min(full))
                .and_then(|at| block_at(blocks, file, extent.segment, at))
                .filter(|(b, _)| b.kind == Kind::Tail && b.sequence == extent.sequence);
            if let Some((block, payload)) = tail
                && let Ok(tail) = minicbor::decode::<Tail>(&payload)
                && (tail.stream, tail.number) == (head.stream, head.number)
            {
                self.synced = self.synced.max(block.synced);
                found.extents.insert(head.number, extent);
                if tail.record.is_some() {
                    found.record = tail.record;
                    found.synced = block.synced;
                }
                return;
            }
        }
    }
}

fn stored(size: u64, sealed: bool) -> Option<u64> {
    match sealed {
        true => layout::sealed_len(size),
        false => Some(size),
    }
}
