//! Looking for rot: reads objects where they lie, without a shard, and checks every byte of them.
//!
//! Of each extent: head and tail open, say what the record says, and are followed by zeros up to the next sector; the packages
//! between them are those of this stream, in order and complete. Where the object's key is at hand their tags are verified, and
//! the verified plaintext can be handed on; nothing unverified ever is.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use minicbor::Decode;
use rustix::fs::{Advice, fadvise};
use zeroize::Zeroizing;

use super::block::{self, Block, Copy, Head, Kind, Tail, WrappedKey};
use crate::dare::header::{PACKAGE, PAYLOAD};
use crate::dare::layout;
use crate::dare::open::{Opener, check_package};
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::index::{Index, Space, key};
use crate::limits::{self, EXTENT_DATA_SECTORS, SECTOR};
use crate::record::{Data, Extent, Object, Part, Place, Stream, UploadId};
use crate::secret::Secret;

/// Takes verified plaintext.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Segment files, read with blocking calls.
pub struct Look<'a> {
    dir: &'a Path,
    blocks: &'a block::Sealer,
    files: HashMap<u64, File>,
    /// Told of every run of bytes after it was read; false ends the look.
    pace: &'a dyn Fn(u64) -> bool,
    stored: Vec<u8>,
    plain: Zeroizing<Vec<u8>>,
}

/// An object's record, and the key it is under where that is at hand.
pub struct Subject<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    /// Commit sequence of the record.
    pub sequence: u64,
    pub object: &'a Object,
    pub secret: Option<&'a Secret>,
}

/// One stream of an object or an upload.
pub struct Piece<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub part: Option<(UploadId, u16)>,
    pub stream: &'a Stream,
    /// The key of this very stream.
    pub secret: Option<&'a Secret>,
    /// The sealed bytes of a stream that lies in the index.
    pub inline: Option<&'a [u8]>,
}

impl<'a> Look<'a> {
    pub fn new(dir: &'a Path, blocks: &'a block::Sealer, pace: &'a dyn Fn(u64) -> bool) -> Self {
        Look {
            dir,
            blocks,
            files: HashMap::new(),
            pace,
            stored: vec![0; limits::READ_PACKAGES as usize * PACKAGE],
            plain: Zeroizing::new(vec![0; PAYLOAD]),
        }
    }

    /// Checks an object as a whole. The first thing that is wrong is the error.
    pub fn object(
        &mut self,
        index: &Index,
        it: &Subject<'_>,
        mut sink: Option<Sink<'_>>,
    ) -> Result<()> {
        let object = it.object;
        if let (Some(extent), Some(encryption)) = (&object.key_extent, &object.encryption) {
            let wrapped = self.wrapped_key(extent)?;
            if (wrapped.bucket.as_str(), wrapped.key.as_str()) != (it.bucket, it.key)
                || wrapped.encryption != *encryption
            {
                return Err(wrong("the wrapped key of another record", extent));
            }
        }
        match &object.data {
            Data::Single(stream) => {
                if stream.size != object.size {
                    return Err(in_index("a record of two sizes"));
                }
                let inline = inline(index, stream, object.origin(it.sequence))?;
                let piece = Piece {
                    bucket: it.bucket,
                    key: it.key,
                    part: None,
                    stream,
                    secret: it.secret,
                    inline: inline.as_deref(),
                };
                self.piece(&piece, sink)
            }
            Data::Parts(id, parts) => {
                if parts.iter().map(|p| p.size).sum::<u64>() != object.size {
                    return Err(in_index("a record of two sizes"));
                }
                for part in parts {
                    let lost = || in_index(&format!("part {} is not there", part.number));
                    let (sequence, found) = index
                        .get::<Part>(Space::Parts, &key::part(id, part.number))?
                        .ok_or_else(lost)?;
                    if found.stream.size != part.size {
                        return Err(in_index("a part of another size"));
                    }
                    let secret = it
                        .secret
                        .map(|s| hierarchy::part_key(s, u32::from(part.number)));
                    let inline = inline(index, &found.stream, sequence)?;
                    let piece = Piece {
                        bucket: it.bucket,
                        key: it.key,
                        part: Some((*id, part.number)),
                        stream: &found.stream,
                        secret: secret.as_ref(),
                        inline: inline.as_deref(),
                    };
                    let sink = sink.as_mut().map(|s| &mut **s as Sink<'_>);
                    self.piece(&piece, sink)?;
                }
                Ok(())
            }
        }
    }

    /// Checks one stream.
    pub fn piece(&mut self, it: &Piece<'_>, sink: Option<Sink<'_>>) -> Result<()> {
        let stream = it.stream;
        let opener = match (it.secret, stream.nonce) {
            (Some(secret), Some(nonce)) => Some(Opener::new(secret, nonce, stream.size)),
            _ => None,
        };
        let mut check = Check {
            stream,
            opener,
            plain: &mut self.plain,
            sink,
            next: 0,
        };
        match &stream.place {
            Place::Empty if stream.size == 0 => Ok(()),
            Place::Empty => Err(in_index("a stream of bytes with no place")),
            Place::Inline => {
                let stored = it
                    .inline
                    .ok_or_else(|| in_index("its bytes are not there"))?;
                if Some(stored.len() as u64) != stored_len(stream) {
                    return Err(in_index("its bytes have another length"));
                }
                check.run(stored).map_err(|e| in_index(&e))?;
                proceed((self.pace)(stored.len() as u64))
            }
            Place::Extents(extents) => {
                let stored = stored_len(stream).ok_or_else(|| in_index("an impossible size"))?;
                let full = u64::from(EXTENT_DATA_SECTORS) * SECTOR as u64;
                if extents.len() as u64 != stored.div_ceil(full) {
                    return Err(in_index("a record that names too few extents or too many"));
                }
                for (number, extent) in extents.iter().enumerate() {
                    let bytes = (stored - number as u64 * full).min(full);
                    let tail_at = tail_sector(extent, bytes)
                        .ok_or_else(|| in_index("a record that names too short an extent"))?;
                    let file = open(&mut self.files, self.dir, extent.segment)?;
                    check_head(self.blocks, file, it, extents, number)?;
                    check_tail(self.blocks, file, extents, number, tail_at, bytes)?;
                    let data = u64::from(extent.start + u32::from(extent.lead)) * SECTOR as u64;
                    let mut done = 0;
                    while done < bytes {
                        let len = (bytes - done).min(self.stored.len() as u64) as usize;
                        let run = &mut self.stored[..len];
                        read(file, extent, data + done, run)?;
                        check.run(run).map_err(|e| {
                            let sector = (data + done) / SECTOR as u64;
                            let place = format!("segment {:016x} sector {sector}", extent.segment);
                            Error::corrupt(e, place)
                        })?;
                        done += len as u64;
                        proceed((self.pace)(len as u64))?;
                    }
                    let pad = &mut self.stored
                        [..(bytes.next_multiple_of(SECTOR as u64) - bytes) as usize];
                    read(file, extent, data + bytes, pad)?;
                    if pad.iter().any(|b| *b != 0) {
                        return Err(wrong("bytes behind the end of the data", extent));
                    }
                    // What was read once is not read again soon, and the next look shall see the disk.
                    let whole = u64::from(extent.sectors) * SECTOR as u64;
                    let from = u64::from(extent.start) * SECTOR as u64;
                    // Advice may be ignored.
                    let _ = fadvise(
                        file,
                        from,
                        std::num::NonZeroU64::new(whole),
                        Advice::DontNeed,
                    );
                }
                Ok(())
            }
        }
    }

    /// The wrapped key in a key extent.
    pub fn wrapped_key(&mut self, extent: &Extent) -> Result<WrappedKey> {
        self.lone_block(extent, Kind::Key)
    }

    /// A piece of the copy of the index.
    pub fn copy(&mut self, extent: &Extent) -> Result<Copy> {
        self.lone_block(extent, Kind::Copy)
    }

    /// The block that is all of an extent.
    fn lone_block<T: for<'b> Decode<'b, ()>>(&mut self, extent: &Extent, kind: Kind) -> Result<T> {
        let file = open(&mut self.files, self.dir, extent.segment)?;
        let (block, payload) = open_block(self.blocks, file, extent, extent.start, extent.sectors)?;
        let is_it =
            (block.kind, block.sequence, block.sectors) == (kind, extent.sequence, extent.sectors);
        match minicbor::decode(&payload) {
            Ok(read) if is_it => Ok(read),
            _ => Err(wrong("another block", extent)),
        }
    }
}

/// Checks the packages of one stream as they come.
struct Check<'a, 'b> {
    stream: &'a Stream,
    opener: Option<Opener>,
    plain: &'a mut [u8],
    sink: Option<Sink<'b>>,
    /// Number of the next package.
    next: u64,
}

impl Check<'_, '_> {
    /// Whole packages, or any bytes of a stream that is not sealed.
    fn run(&mut self, stored: &[u8]) -> Result<(), String> {
        let Some(nonce) = self.stream.nonce else {
            return self.hand_on(stored);
        };
        for package in stored.chunks(PACKAGE) {
            let number = self.next;
            let say = |e| format!("package {number}: {e}");
            match &self.opener {
                Some(opener) => {
                    let len = opener
                        .open_package(number, package, self.plain)
                        .map_err(say)?;
                    if let Some(sink) = &mut self.sink {
                        sink(&self.plain[..len]).map_err(|e| e.to_string())?;
                    }
                }
                None => check_package(nonce, self.stream.size, number, package).map_err(say)?,
            }
            self.next += 1;
        }
        Ok(())
    }

    fn hand_on(&mut self, bytes: &[u8]) -> Result<(), String> {
        match &mut self.sink {
            Some(sink) => sink(bytes).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

fn check_head(
    blocks: &block::Sealer,
    file: &File,
    it: &Piece<'_>,
    extents: &[Extent],
    number: usize,
) -> Result<()> {
    let extent = &extents[number];
    let (block, payload) = open_block(blocks, file, extent, extent.start, u32::from(extent.lead))?;
    let is_it = (block.kind, block.sequence, block.sectors)
        == (Kind::Head, extent.sequence, extent.sectors);
    let head: Head = match minicbor::decode(&payload) {
        Ok(head) if is_it => head,
        _ => return Err(wrong("no head, or another one", extent)),
    };
    let expected = Head {
        bucket: it.bucket.into(),
        key: it.key.into(),
        part: it.part,
        stream: extents[0].sequence,
        number: number as u32,
        size: it.stream.size,
        nonce: it.stream.nonce,
        // A key that was wrapped again stands elsewhere.
        key_sequence: head.key_sequence,
    };
    match head == expected {
        true => Ok(()),
        false => Err(wrong("the head of another stream", extent)),
    }
}

fn check_tail(
    blocks: &block::Sealer,
    file: &File,
    extents: &[Extent],
    number: usize,
    at: u32,
    bytes: u64,
) -> Result<()> {
    let extent = &extents[number];
    let sectors = extent.start + extent.sectors - at;
    let (block, payload) = open_block(blocks, file, extent, at, sectors)?;
    let is_it = (block.kind, block.sequence, block.sectors)
        == (Kind::Tail, extent.sequence, extent.sectors);
    match minicbor::decode::<Tail>(&payload) {
        Ok(tail)
            if is_it
                && (tail.stream, tail.number, tail.bytes)
                    == (extents[0].sequence, number as u32, bytes) =>
        {
            Ok(())
        }
        _ => Err(wrong("no tail, or another one", extent)),
    }
}

/// Opens the block at `at`, which fills `sectors` sectors up to the last zero.
fn open_block(
    blocks: &block::Sealer,
    file: &File,
    extent: &Extent,
    at: u32,
    sectors: u32,
) -> Result<(Block, Vec<u8>)> {
    let mut bytes = vec![0; sectors as usize * SECTOR];
    read(file, extent, u64::from(at) * SECTOR as u64, &mut bytes)?;
    let place = || format!("segment {:016x} sector {at}", extent.segment);
    let (block, payload) = blocks
        .open(&bytes)
        .filter(|(b, _)| (b.segment, b.position) == (extent.segment, at))
        .ok_or_else(|| Error::corrupt("a block that does not authenticate", place()))?;
    let end = block::claimed_bytes(&bytes).expect("it is a block");
    if bytes[end..].iter().any(|b| *b != 0) {
        return Err(Error::corrupt("bytes behind the end of a block", place()));
    }
    Ok((block, payload))
}

/// Reads the block that begins at sector `at` of a segment, whatever it is; none where none is intact.
pub fn block_at(
    blocks: &block::Sealer,
    file: &File,
    segment: u64,
    at: u32,
) -> Option<(Block, Vec<u8>)> {
    let from = u64::from(at) * SECTOR as u64;
    let mut bytes = vec![0; SECTOR];
    file.read_exact_at(&mut bytes, from).ok()?;
    let len = block::claimed_bytes(&bytes)?;
    if len > limits::BLOCK_BYTES_MAX {
        return None;
    }
    if len > SECTOR {
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes, from).ok()?;
    }
    blocks
        .open(&bytes)
        .filter(|(b, _)| (b.segment, b.position) == (segment, at))
}

/// Where the tail of an extent with so many bytes of data begins.
pub fn tail_sector(extent: &Extent, bytes: u64) -> Option<u32> {
    let data = u32::try_from(bytes.div_ceil(SECTOR as u64)).ok()?;
    let before = u32::from(extent.lead).checked_add(data)?;
    (before < extent.sectors).then_some(())?;
    extent.start.checked_add(before)
}

fn open<'f>(files: &'f mut HashMap<u64, File>, dir: &Path, segment: u64) -> Result<&'f File> {
    if files.len() >= limits::OPEN_SEGMENTS_MAX && !files.contains_key(&segment) {
        files.clear();
    }
    match files.entry(segment) {
        std::collections::hash_map::Entry::Occupied(e) => Ok(e.into_mut()),
        std::collections::hash_map::Entry::Vacant(e) => {
            let path = super::path(dir, segment);
            let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            Ok(e.insert(file))
        }
    }
}

fn read(file: &File, extent: &Extent, at: u64, out: &mut [u8]) -> Result<()> {
    file.read_exact_at(out, at).map_err(|e| {
        let place = format!(
            "segment {:016x} sector {}",
            extent.segment,
            at / SECTOR as u64
        );
        Error::corrupt(format!("it cannot be read: {e}"), place)
    })
}

fn inline(index: &Index, stream: &Stream, origin: u64) -> Result<Option<fjall::Slice>> {
    match stream.place {
        Place::Inline => index.inline(origin),
        _ => Ok(None),
    }
}

/// Bytes that a stream takes where it is stored.
pub fn stored_len(stream: &Stream) -> Option<u64> {
    match stream.nonce {
        Some(_) => layout::sealed_len(stream.size),
        None => Some(stream.size),
    }
}

fn proceed(go_on: bool) -> Result<()> {
    if go_on { Ok(()) } else { Err(Error::Closed) }
}

fn in_index(what: &str) -> Error {
    Error::corrupt(what, "the index")
}

fn wrong(what: &str, extent: &Extent) -> Error {
    let place = format!("segment {:016x} sector {}", extent.segment, extent.start);
    Error::corrupt(what, place)
}
