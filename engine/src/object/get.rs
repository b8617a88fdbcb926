//! Get: look the record up and hold it, then read, open and hand out runs of packages.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::dare::open::Opener;
use crate::engine::Core;
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::index::{Space, key};
use crate::limits;
use crate::permits::Permit;
use crate::record::{Data, Object, Part, Place, Stream, UploadId};
use crate::secret::Secret;
use crate::segment::reader::{RunReader, Source};
use crate::shard::{Shard, within};

/// An object's record. While this or a stream read from it lives, nothing the record names is given back.
pub struct Found {
    pub object: Object,
    /// The commit sequence of the record.
    pub sequence: u64,
    hold: Rc<Hold>,
    /// Its key in the index.
    entry: Vec<u8>,
    /// Sealed bytes of a single small object, read together with the record.
    inline: Option<Bytes>,
}

struct Hold {
    core: Arc<Core>,
    shard: usize,
    /// The commit that brought the data.
    origin: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.core.release(self.shard, self.origin);
    }
}

/// Verified plaintext, a run at a time.
pub struct GetStream {
    reader: RunReader,
    left: u64,
    _hold: Rc<Hold>,
    /// Its share of the read buffers, where it reads segments.
    _slot: Option<Permit>,
}

impl GetStream {
    /// The next bytes; none at the end. After an error the stream is over.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        let next = self.reader.next().await;
        match &next {
            Some(Ok(bytes)) => self.left = self.left.saturating_sub(bytes.len() as u64),
            Some(Err(_)) => self.left = 0,
            None if self.left > 0 => {
                self.left = 0;
                return Some(Err(Error::corrupt("an object that ends early", "index")));
            }
            None => {}
        }
        next
    }
}

impl Shard {
    /// Looks an object up.
    pub async fn lookup(&self, bucket: &str, key: &str) -> Result<Found> {
        self.bucket(bucket)?;
        let entry = key::object(bucket, key);
        let (origin, (sequence, object, inline)) =
            self.core.hold(self.id, || self.core.look(&entry))?;
        Ok(Found {
            object,
            sequence,
            hold: Rc::new(Hold {
                core: Arc::clone(&self.core),
                shard: self.id,
                origin,
            }),
            entry,
            inline,
        })
    }

    /// A part of a completed multipart object.
    pub async fn part(&self, found: &Found, number: u16) -> Result<Part> {
        match &found.object.data {
            Data::Parts(id, parts) if parts.iter().any(|p| p.number == number) => {
                let part = self.core.part(id, number)?;
                Ok(part.ok_or_else(|| self.lost_part(found))?.1)
            }
            Data::Parts(..) | Data::Single(_) => Err(Error::InvalidPart { number }),
        }
    }

    /// Reads plaintext `range` of an object; `Replaced` where it has parts, and they went since it was looked up. `object_key` is the object's own key, none for an unsealed object.
    pub async fn read(
        self: &Rc<Self>,
        found: &Found,
        range: Range<u64>,
        object_key: Option<&Secret>,
    ) -> Result<GetStream> {
        assert!(
            range.start <= range.end && range.end <= found.object.size,
            "a range within the object"
        );
        assert_eq!(object_key.is_some(), found.object.encryption.is_some());
        let mut sources = VecDeque::new();
        match &found.object.data {
            Data::Single(stream) => {
                if !range.is_empty() {
                    let opener = opener(object_key, stream)?;
                    sources.push_back(Source {
                        stream: stream.clone(),
                        opener,
                        inline: found.inline.clone(),
                        range: range.clone(),
                    });
                }
            }
            Data::Parts(id, parts) => {
                let mut start = 0;
                for part in parts {
                    let end = start + part.size;
                    let wanted = range.start.max(start)..range.end.min(end);
                    if wanted.start < wanted.end {
                        let within = wanted.start - start..wanted.end - start;
                        let source = self.part_source(id, part.number, within, object_key)?;
                        sources.push_back(source.ok_or_else(|| self.lost_part(found))?);
                    }
                    start = end;
                }
            }
        }
        let slot = if sources
            .iter()
            .any(|s| matches!(s.stream.place, Place::Extents(_)))
        {
            let slot = within(limits::SLOT_WAIT, self.downloads.acquire()).await;
            let busy = Error::Overloaded {
                what: "no read buffer came free",
            };
            Some(slot.ok_or(busy)?)
        } else {
            None
        };
        Ok(GetStream {
            reader: RunReader::new(Rc::clone(&self.files), sources),
            left: range.end - range.start,
            _hold: Rc::clone(&found.hold),
            _slot: slot,
        })
    }

    fn part_source(
        &self,
        id: &UploadId,
        number: u16,
        range: Range<u64>,
        object_key: Option<&Secret>,
    ) -> Result<Option<Source>> {
        let Some((sequence, part)) = self.core.part(id, number)? else {
            return Ok(None);
        };
        let key = object_key.map(|k| hierarchy::part_key(k, u32::from(number)));
        let inline = match part.stream.place {
            Place::Inline => match self.core.inline(sequence)? {
                None => return Ok(None),
                inline => inline,
            },
            _ => None,
        };
        Ok(Some(Source {
            opener: opener(key.as_ref(), &part.stream)?,
            stream: part.stream,
            inline,
            range,
        }))
    }

    /// Why a part that the record names is not there: parts go together with their record, also while somebody looks at it.
    fn lost_part(&self, found: &Found) -> Error {
        match self.core.index.get::<Object>(Space::Objects, &found.entry) {
            Ok(Some((sequence, _))) if sequence == found.sequence => {
                Error::corrupt("an object without its part", "index parts")
            }
            Ok(_) => Error::Replaced,
            Err(e) => e,
        }
    }
}

fn opener(key: Option<&Secret>, stream: &Stream) -> Result<Option<Rc<Opener>>> {
    match (key, stream.nonce) {
        (Some(key), Some(nonce)) => Ok(Some(Rc::new(Opener::new(key, nonce, stream.size)))),
        (None, None) => Ok(None),
        _ => Err(Error::corrupt(
            "a stream and its object disagree on sealing",
            "index",
        )),
    }
}

/// A record with its sequence, and the sealed bytes where it is a single small object.
pub(crate) type Looked = (u64, Object, Option<Bytes>);

impl Core {
    /// The object under an index key, behind the commit that brought its data.
    pub(crate) fn look(&self, entry: &[u8]) -> Result<(u64, Looked)> {
        loop {
            let (sequence, object) = self
                .index
                .get::<Object>(Space::Objects, entry)?
                .ok_or(Error::NoSuchKey)?;
            let origin = object.origin(sequence);
            let small = matches!(&object.data, Data::Single(s) if s.place == Place::Inline);
            if !small {
                return Ok((origin, (sequence, object, None)));
            }
            if let Some(bytes) = self.inline(origin)? {
                return Ok((origin, (sequence, object, Some(bytes))));
            }
            // Replaced between the two looks; if it was not, its bytes are lost.
            match self.index.get::<Object>(Space::Objects, entry)? {
                Some((again, _)) if again == sequence => {
                    return Err(Error::corrupt(
                        "a small object without its bytes",
                        "index inline",
                    ));
                }
                _ => {}
            }
        }
    }

    fn inline(&self, sequence: u64) -> Result<Option<Bytes>> {
        Ok(self.index.inline(sequence)?.map(Bytes::from_owner))
    }

    fn part(&self, id: &UploadId, number: u16) -> Result<Option<(u64, Part)>> {
        self.index.get(Space::Parts, &key::part(id, number))
    }
}
