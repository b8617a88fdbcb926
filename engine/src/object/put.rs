//! Put: seal as the bytes arrive, sync the data, then commit the record. Dropping the stream leaves nothing.

use std::rc::Rc;

use super::{Committed, Condition};
use crate::dare;
use crate::dare::seal::Sealer;
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::index::commit::Op;
use crate::limits;
use crate::record::{Data, Encryption, Metadata, Object, Part, Place, Stream, UploadId};
use crate::rt;
use crate::secret::Secret;
use crate::segment::block::{Head, TailRecord, WrappedKey};
use crate::segment::writer::{Sink, Stored, StreamHead};
use crate::shard::{Shard, to_end};

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Target {
    pub bucket: String,
    pub key: String,
    /// Exact plaintext length.
    pub size: u64,
    pub metadata: Metadata,
    /// How the object key is sealed; none for a part, and for an object that is not sealed.
    pub encryption: Option<Encryption>,
    /// The upload and the number, where it is a part.
    pub part: Option<(UploadId, u16)>,
}

/// What is known of an object only at its end.
#[derive(Debug, Clone, Default)]
pub struct Finish {
    pub etag: String,
    pub checksum: Option<Vec<u8>>,
    pub condition: Condition,
}

/// An object or part on its way in.
pub struct PutStream {
    shard: Rc<Shard>,
    target: Target,
    nonce: Option<[u8; 12]>,
    sealer: Option<Sealer>,
    received: u64,
    /// How much earlier it may end.
    slack: u64,
    to: To,
}

enum To {
    Nowhere,
    Index(Vec<u8>),
    Segments(Box<Sink>),
}

impl Shard {
    /// Begins an object or a part. `object_key` is the key of the object or of the upload; none where it is not sealed.
    pub async fn put(
        self: &Rc<Self>,
        target: Target,
        object_key: Option<&Secret>,
    ) -> Result<PutStream> {
        self.begin_put(target, object_key, 0).await
    }

    /// Begins an object that has `target.size` bytes or up to `END_SLACK_BYTES` fewer: [`PutStream::ends_at`] tells. It may have
    /// more than `OPEN_END_BYTES`, and does not lie in the index.
    pub async fn put_open_ended(
        self: &Rc<Self>,
        target: Target,
        object_key: Option<&Secret>,
    ) -> Result<PutStream> {
        assert!(target.size > limits::INLINE_BYTES_MAX.max(limits::OPEN_END_BYTES));
        self.begin_put(target, object_key, limits::END_SLACK_BYTES)
            .await
    }

    async fn begin_put(
        self: &Rc<Self>,
        target: Target,
        object_key: Option<&Secret>,
        slack: u64,
    ) -> Result<PutStream> {
        self.bucket(&target.bucket)?;
        check_limits(&target)?;
        let size = target.size;
        let nonce = object_key.map(|_| {
            let mut nonce = [0; 12];
            crate::random(&mut nonce);
            nonce
        });
        let sealer = object_key.zip(nonce).map(|(key, nonce)| match target.part {
            None => Sealer::new(key, nonce, size),
            Some((_, number)) => {
                Sealer::new(&hierarchy::part_key(key, u32::from(number)), nonce, size)
            }
        });
        let stored = match &sealer {
            Some(_) => dare::layout::sealed_len(size).expect("within the limit of a stream"),
            None => size,
        };
        // Told before any of the body is read; what is taken as it is written is checked again.
        if size <= limits::INLINE_BYTES_MAX {
            self.core.take_space(stored + limits::INDEX_RECORD_BYTES)?;
        } else {
            self.core.check_space(stored)?;
        }
        let to = if size == 0 {
            To::Nowhere
        } else if size <= limits::INLINE_BYTES_MAX {
            To::Index(Vec::with_capacity(stored as usize))
        } else {
            let head = StreamHead {
                head: Head {
                    bucket: target.bucket.clone(),
                    key: target.key.clone(),
                    part: target.part,
                    stream: 0,
                    number: 0,
                    size,
                    nonce,
                    key_sequence: None,
                },
                record_bytes_max: crate::record::encode(&target.metadata).len()
                    + limits::FINISH_BYTES_MAX
                    + 256,
            };
            let wrapped = target.encryption.clone().map(|encryption| WrappedKey {
                bucket: target.bucket.clone(),
                key: target.key.clone(),
                upload: None,
                encryption,
                stream: None,
            });
            let stored = match slack {
                0 => Stored::Exactly(stored),
                _ => Stored::AtMost(stored),
            };
            To::Segments(Box::new(self.writer.begin(head, stored, wrapped).await?))
        };
        Ok(PutStream {
            shard: Rc::clone(self),
            target,
            nonce,
            sealer,
            received: 0,
            slack,
            to,
        })
    }
}

fn check_limits(target: &Target) -> Result<()> {
    let meta = &target.metadata;
    let metadata: usize = meta
        .headers
        .iter()
        .chain(&meta.user)
        .map(|(k, v)| k.len() + v.len())
        .sum();
    at_most("an object or part", target.size, limits::STREAM_BYTES_MAX)?;
    check_key(&target.key)?;
    at_most(
        "metadata",
        metadata as u64,
        limits::METADATA_BYTES_MAX as u64,
    )
}

/// Refuses a key that is longer than keys may be.
pub fn check_key(key: &str) -> Result<()> {
    at_most("a key", key.len() as u64, limits::KEY_BYTES_MAX as u64)
}

fn at_most(what: &'static str, got: u64, max: u64) -> Result<()> {
    match got > max {
        true => Err(Error::TooLarge { what, got, max }),
        false => Ok(()),
    }
}

impl PutStream {
    /// The object has so many bytes. Told once, while more than `OPEN_END_BYTES` of what it may have are not written.
    pub fn ends_at(&mut self, size: u64) {
        let by = self.target.size.checked_sub(size);
        let by = by.filter(|by| *by <= self.slack);
        let by = by.expect("the end is within what was said");
        assert!(self.received + limits::OPEN_END_BYTES < self.target.size);
        let before = self.stored();
        if let Some(sealer) = &mut self.sealer {
            sealer.shorten(by);
        }
        self.target.size = size;
        self.slack = 0;
        let by = before - self.stored();
        if let To::Segments(sink) = &mut self.to {
            sink.shorten(by, size);
        }
    }

    fn stored(&self) -> u64 {
        match &self.sealer {
            Some(sealer) => sealer.sealed_len(),
            None => self.target.size,
        }
    }

    /// Takes the next plaintext bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.received += bytes.len() as u64;
        if self.received > self.target.size {
            return Err(self.wrong_length());
        }
        match &mut self.to {
            To::Nowhere => {}
            To::Segments(sink) => sink.write(bytes, self.sealer.as_mut()).await?,
            To::Index(out) => match &mut self.sealer {
                None => out.extend_from_slice(bytes),
                Some(sealer) => {
                    let mut src = bytes;
                    while !src.is_empty() {
                        let at = out.len();
                        out.resize(at + src.len() + dare::header::OVERHEAD + 512, 0);
                        let progress = sealer.update(src, &mut out[at..]);
                        out.truncate(at + progress.written);
                        src = &src[progress.read..];
                    }
                }
            },
        }
        Ok(())
    }

    fn wrong_length(&self) -> Error {
        Error::WrongLength {
            expected: self.target.size,
            got: self.received,
        }
    }

    /// Makes the object visible; durable when this returns. Once begun it ends, also when the caller goes away.
    pub async fn commit(self, finish: Finish) -> Result<Committed> {
        self.run_to_end(|this| async move { this.commit_object(finish).await })
            .await
    }

    /// Makes the part part of its upload; durable when this returns.
    pub async fn commit_part(self, etag: String, checksum: Option<Vec<u8>>) -> Result<Committed> {
        self.run_to_end(|this| async move { this.commit_as_part(etag, checksum).await })
            .await
    }

    async fn run_to_end<F>(self, commit: impl FnOnce(Self) -> F) -> Result<Committed>
    where
        F: Future<Output = Result<Committed>> + 'static,
    {
        assert_eq!(self.slack, 0, "the end was told");
        if self.received != self.target.size {
            return Err(self.wrong_length());
        }
        if let Some(sealer) = &self.sealer {
            assert!(sealer.is_complete(), "all bytes are sealed");
        }
        to_end(commit(self)).await
    }

    fn stream(&self, place: Place) -> Stream {
        Stream {
            size: self.target.size,
            nonce: self.nonce,
            place,
        }
    }

    async fn commit_object(self, finish: Finish) -> Result<Committed> {
        let object = Object {
            size: self.target.size,
            modified: rt::unix_millis(),
            etag: finish.etag,
            metadata: self.target.metadata.clone(),
            encryption: None,
            checksum: finish.checksum,
            data: Data::Single(self.stream(Place::Empty)),
            key_extent: None,
            origin: None,
        };
        let (mut sink, place, inline, object) = match self.to {
            To::Nowhere => (None, Place::Empty, None, object),
            To::Index(bytes) => (None, Place::Inline, Some(bytes), object),
            To::Segments(mut sink) => {
                let copy = TailRecord::Object(Box::new(object.clone()));
                sink.finish(copy).await?;
                let place = sink.place();
                (Some(sink), place, None, object)
            }
        };
        let object = Object {
            encryption: self.target.encryption,
            data: Data::Single(Stream {
                size: self.target.size,
                nonce: self.nonce,
                place,
            }),
            key_extent: sink.as_ref().and_then(|s| s.key_extent()),
            ..object
        };
        let op = Op::Put {
            bucket: self.target.bucket,
            key: self.target.key,
            object: Box::new(object),
            inline,
            condition: finish.condition,
        };
        let committed = self.shard.commit_some(op).await?;
        if let Some(sink) = &mut sink {
            sink.settle();
        }
        Ok(committed)
    }

    async fn commit_as_part(self, etag: String, checksum: Option<Vec<u8>>) -> Result<Committed> {
        let (id, number) = self.target.part.expect("begun as a part");
        let mut part = Part {
            modified: rt::unix_millis(),
            etag,
            checksum,
            stream: self.stream(Place::Empty),
        };
        let (mut sink, inline) = match self.to {
            To::Nowhere => (None, None),
            To::Index(bytes) => {
                part.stream.place = Place::Inline;
                (None, Some(bytes))
            }
            To::Segments(mut sink) => {
                sink.finish(TailRecord::Part(part.clone())).await?;
                part.stream.place = sink.place();
                (Some(sink), None)
            }
        };
        let op = Op::PutPart {
            bucket: self.target.bucket,
            key: self.target.key,
            id,
            number,
            part: Box::new(part),
            inline,
        };
        let committed = self.shard.commit_some(op).await?;
        if let Some(sink) = &mut sink {
            sink.settle();
        }
        Ok(committed)
    }
}
