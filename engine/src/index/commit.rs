//! The committer: the one thread that writes the index.
//!
//! Requests that arrive while a sync is under way share the next one. Each is decided against the index as it stands plus what
//! the same batch has done already, so conditional writes are linearizable. A reply is sent only once its batch is durable; a
//! failed sync ends the process, because nobody knows what is on disk after it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use fjall::PersistMode;
use futures_channel::oneshot;
use minicbor::{Decode, Encode};

use super::copies::{Group, Groups};
use super::record::{
    self, Bucket, BucketEncryption, Data, Encryption, Extent, Object, Part, PartRef, Place, Stream,
    Upload, UploadId,
};
use super::tally::{self, Tallies};
use super::tree::OwnedWriteBatch;
use super::{Space, key};
use crate::engine::Core;
use crate::error::{Error, Result};
use crate::limits;
use crate::object::{Committed, Condition, PartChoice};
use crate::rt;
use crate::segment::reclaim::{Freed, Message};

const NOT_KEPT_UP: &str = "a file of it cannot be read or written. If that comes again after a start, \
                           `strongroom recover` builds the index anew";

/// One request to the committer, and where its answer goes.
pub struct Request {
    pub op: Op,
    pub reply: Option<oneshot::Sender<Reply>>,
}

/// `None` where there was nothing to do.
pub type Reply = Result<Option<Committed>>;

pub enum Op {
    CreateBucket {
        name: String,
    },
    /// Makes the bucket as it is on another drive, or makes it the same.
    PutBucket {
        bucket: Bucket,
    },
    SetBucketEncryption {
        name: String,
        to: Option<BucketEncryption>,
    },
    DeleteBucket {
        name: String,
    },
    Put {
        bucket: String,
        key: String,
        object: Box<Object>,
        /// Sealed bytes, where the object lives in the index.
        inline: Option<Vec<u8>>,
        condition: Condition,
    },
    Delete {
        bucket: String,
        key: String,
        condition: Condition,
    },
    CreateUpload {
        bucket: String,
        key: String,
        id: UploadId,
        upload: Box<Upload>,
    },
    PutPart {
        bucket: String,
        key: String,
        id: UploadId,
        number: u16,
        part: Box<Part>,
        inline: Option<Vec<u8>>,
    },
    Complete {
        bucket: String,
        key: String,
        id: UploadId,
        parts: Vec<PartChoice>,
        etag: String,
        checksum: Option<Vec<u8>>,
        condition: Condition,
    },
    Abort {
        bucket: String,
        key: String,
        id: UploadId,
    },
    /// Another wrapping of the same object key, for exactly the record with this sequence.
    SetEncryption {
        bucket: String,
        key: String,
        /// Of this open upload instead of the object.
        upload: Option<UploadId>,
        sequence: u64,
        encryption: Box<Encryption>,
        key_extent: Option<Extent>,
    },
    /// Nothing is committed under older versions of this key any more, as long as the store is open.
    RefuseOlder {
        source: String,
        name: String,
        below: u32,
    },
    /// Old versions of the records re-wrapped up to this commit have left the index.
    Erased(u64),
    /// A round of copying the index is written; `whole` replaces all before it.
    Copied {
        group: Option<Group>,
        whole: bool,
    },
    /// The extents freed by these commits are punched.
    Reclaimed(Vec<u64>),
    /// Write the marks below which segments are settled.
    Checkpoint,
    /// Write the last checkpoint and end the thread.
    Close,
    /// End the thread at once.
    Abandon,
}

/// Names in the keyspace `meta`.
pub mod meta {
    /// CBOR integer: sequence of the last commit. Unsealed: it says nothing and is checked against the segments.
    pub const SEQUENCE: &str = "sequence";
    /// CBOR integer: how often the store was opened.
    pub const BOOT: &str = "boot";
    /// CBOR integer: sequence of the last commit that the tallies count.
    pub const COUNTED: &str = "counted";
    /// CBOR integer: sequence of the last re-wrap, until old versions of its record have left the index.
    pub const REWRAPPED: &str = "rewrapped";
    /// `segment::Checkpoint`
    pub const CHECKPOINT: &str = "checkpoint";
    /// `index::copies::Groups`
    pub const COPIES: &str = "copies";
}

pub struct Committer {
    core: Arc<Core>,
    pub requests: Receiver<Request>,
    /// When the marks below which segments are settled are written next, if anything happened.
    pub checkpoint_due: Instant,
    settled: bool,
    sequence: u64,
    buckets: BTreeMap<String, Arc<Bucket>>,
    buckets_changed: bool,
    batch: OwnedWriteBatch,
    /// What this batch wrote so far, for those that follow in it.
    written: HashMap<(Space, Vec<u8>), Option<Vec<u8>>>,
    freed: Vec<Freed>,
    inline_removed: Vec<u64>,
    added: Vec<Extent>,
    tallies: Tallies,
    index_dead: u64,
    /// The last re-wrap.
    rewrapped: Option<u64>,
    /// By key service and name of a key: versions below this one take nothing new.
    refused: HashMap<(String, String), u32>,
    copied: Option<Groups>,
}

impl Committer {
    pub fn new(
        core: Arc<Core>,
        requests: Receiver<Request>,
        tallies: Tallies,
        rewrapped: Option<u64>,
    ) -> Self {
        let batch = core
            .index
            .db
            .batch()
            .durability(Some(PersistMode::SyncData));
        let buckets = (*core.index.buckets()).clone();
        Committer {
            sequence: core.index.synced(),
            buckets,
            buckets_changed: false,
            batch,
            written: HashMap::new(),
            freed: Vec::new(),
            inline_removed: Vec::new(),
            added: Vec::new(),
            tallies,
            index_dead: 0,
            rewrapped,
            refused: HashMap::new(),
            copied: None,
            core,
            requests,
            checkpoint_due: rt::now() + limits::CHECKPOINT_EVERY,
            settled: true,
        }
    }

    /// Runs until it is told to close. An error is one after which nothing may be acknowledged any more.
    pub fn run(mut self) -> Result<()> {
        loop {
            let first = match self.requests.recv_deadline(self.checkpoint_due) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            };
            if !self.turn(first)? {
                return Ok(());
            }
        }
    }

    /// Makes one batch of `first` and what waits behind it; whether there is another turn.
    pub fn turn(&mut self, first: Option<Request>) -> Result<bool> {
        let mut replies = Vec::new();
        let mut closing = false;
        let mut next = first;
        while let Some(Request { op, reply }) = next.take() {
            if let Op::Abandon = op {
                return Ok(false);
            }
            closing = matches!(op, Op::Close);
            self.settled &= matches!(op, Op::Close | Op::Checkpoint);
            let result = match self.apply(op, &mut replies) {
                Err(e @ (Error::Io { .. } | Error::Corrupt { .. })) if self.must_stop(&e) => {
                    return Err(e);
                }
                result => result,
            };
            if let Some(reply) = reply {
                replies.push((reply, result));
            }
            if closing || replies.len() >= limits::COMMIT_BATCH_MAX {
                break;
            }
            next = self.requests.try_recv().ok();
        }
        let now = rt::now();
        if now >= self.checkpoint_due {
            if !self.settled {
                self.write_checkpoint(false);
                self.settled = true;
            }
            self.checkpoint_due = now + limits::CHECKPOINT_EVERY;
        }
        self.commit(&mut replies)?;
        if closing {
            self.close()?;
        }
        Ok(!closing)
    }

    /// Reading one damaged record fails one request; a journal that cannot be written fails the store.
    fn must_stop(&self, error: &Error) -> bool {
        matches!(error, Error::Io { op, .. } if *op == "commit")
    }

    fn close(&mut self) -> Result<()> {
        self.write_checkpoint(true);
        self.commit(&mut Vec::new())
    }

    fn write_checkpoint(&mut self, closing: bool) {
        let mut checkpoint = self.core.segments.checkpoint(closing);
        checkpoint.copied = closing.then(|| self.core.copies.is_complete());
        self.put(
            Space::Meta,
            meta::CHECKPOINT.as_bytes().to_vec(),
            &checkpoint,
        );
    }

    /// Makes the batch durable, shows it to readers, and only then answers.
    fn commit(&mut self, replies: &mut Vec<(oneshot::Sender<Reply>, Reply)>) -> Result<()> {
        if !self.written.is_empty() {
            let failed = |e: fjall::Error| Error::Io {
                op: "commit",
                path: "index".into(),
                reason: match e {
                    // Its own thread met an error while it merged tables, and did not come back.
                    fjall::Error::Poisoned => NOT_KEPT_UP.into(),
                    e => e.to_string(),
                },
            };
            // A batch is shown to readers entry by entry: the bytes of a small object go after the record that named them.
            let inline = self.core.index.space(Space::Inline).clone();
            for sequence in self.inline_removed.drain(..) {
                self.batch.remove(&inline, key::sequence(sequence));
            }
            let counts = self.tallies.take_changed();
            for (under, number, tally) in &counts {
                let key = tally::entry_key(*number).to_vec();
                match tally {
                    Some(tally) => {
                        let (under, tally) = (under.clone(), *tally);
                        self.put(Space::Tallies, key, &tally::Entry { under, tally });
                    }
                    None => self.remove(Space::Tallies, key),
                }
            }
            let meta = self.core.index.space(Space::Meta).clone();
            for name in [meta::SEQUENCE, meta::COUNTED] {
                self.batch
                    .insert(&meta, name, record::encode(&self.sequence));
            }
            let next = self
                .core
                .index
                .db
                .batch()
                .durability(Some(PersistMode::SyncData));
            std::mem::replace(&mut self.batch, next)
                .commit()
                .map_err(failed)?;
            // Before a round of copying can take this commit for done.
            self.core
                .copies
                .changed(self.written.drain().map(|(entry, _)| entry));
            if let Some(groups) = self.copied.take() {
                self.core.copies.done(groups);
            }
            let rewrapped = self.rewrapped.filter(|s| *s > self.core.index.synced());
            self.core
                .index
                .synced
                .store(self.sequence, Ordering::Release);
            self.core.index.show_tallies(counts);
            if std::mem::take(&mut self.buckets_changed) {
                self.core
                    .index
                    .buckets
                    .store(Arc::new(self.buckets.clone()));
            }
            self.core.segments.add_live(self.added.drain(..));
            for freed in self.freed.drain(..) {
                self.core.segments.leave(&freed.extents);
                self.core.segments.remove_live(&freed.extents);
                self.core.reclaim(freed.into());
            }
            let bytes = std::mem::take(&mut self.index_dead);
            if bytes > 0 {
                self.core.reclaim(Message::IndexDead { bytes, rewrapped });
            }
        }
        for (reply, result) in replies.drain(..) {
            // A requester that went away needs no answer.
            let _ = reply.send(result);
        }
        Ok(())
    }

    fn apply(&mut self, op: Op, replies: &mut Vec<(oneshot::Sender<Reply>, Reply)>) -> Reply {
        match op {
            Op::CreateBucket { name } => self.create_bucket(name),
            Op::PutBucket { bucket } => self.put_bucket(bucket),
            Op::SetBucketEncryption { name, to } => self.set_bucket_encryption(&name, to),
            Op::DeleteBucket { name } => {
                // Emptiness is asked of the index itself.
                self.commit(replies)?;
                self.delete_bucket(&name)
            }
            Op::Put {
                bucket,
                key,
                object,
                inline,
                condition,
            } => self.put_object(&bucket, &key, &object, inline, &condition),
            Op::Delete {
                bucket,
                key,
                condition,
            } => self.delete_object(&bucket, &key, &condition),
            Op::CreateUpload {
                bucket,
                key,
                id,
                upload,
            } => {
                self.need_bucket(&bucket)?;
                self.need_version(upload.encryption.as_ref())?;
                self.added.extend(upload.key_extent);
                self.tallies.add_upload(&upload, 0);
                let sequence = self.put(Space::Uploads, key::upload(&bucket, &key, &id), &*upload);
                Ok(Some(Committed {
                    modified: upload.created,
                    sequence,
                }))
            }
            Op::PutPart {
                bucket,
                key,
                id,
                number,
                part,
                inline,
            } => self.put_part(&bucket, &key, &id, number, &part, inline),
            Op::Complete {
                bucket,
                key,
                id,
                parts,
                etag,
                checksum,
                condition,
            } => {
                // Parts are scanned in the index itself.
                self.commit(replies)?;
                self.complete(&bucket, &key, &id, &parts, etag, checksum, &condition)
            }
            Op::Abort { bucket, key, id } => {
                self.commit(replies)?;
                self.abort(&bucket, &key, &id)
            }
            Op::SetEncryption {
                bucket,
                key,
                upload,
                sequence,
                encryption,
                key_extent,
            } => match upload {
                None => self.set_encryption(&bucket, &key, sequence, *encryption, key_extent),
                Some(id) => {
                    self.commit(replies)?;
                    self.set_upload_encryption(
                        &bucket,
                        &key,
                        &id,
                        sequence,
                        *encryption,
                        key_extent,
                    )
                }
            },
            Op::RefuseOlder {
                source,
                name,
                below,
            } => {
                let refused = self.refused.entry((source, name)).or_default();
                *refused = below.max(*refused);
                Ok(None)
            }
            Op::Erased(sequence) => {
                if self.rewrapped == Some(sequence) {
                    self.rewrapped = None;
                    self.remove(Space::Meta, meta::REWRAPPED.as_bytes().to_vec());
                }
                Ok(None)
            }
            Op::Copied { group, whole } => Ok(Some(self.note_copy(group, whole))),
            Op::Reclaimed(sequences) => {
                for sequence in sequences {
                    self.remove(Space::Freed, key::sequence(sequence).to_vec());
                }
                Ok(None)
            }
            Op::Checkpoint => {
                self.write_checkpoint(false);
                Ok(None)
            }
            Op::Close | Op::Abandon => Ok(None),
        }
    }

    // Reading and writing within the batch.

    fn get<T: for<'b> Decode<'b, ()>>(&self, space: Space, key: &[u8]) -> Result<Option<(u64, T)>> {
        match self.written.get(&(space, key.to_vec())) {
            Some(None) => Ok(None),
            Some(Some(value)) => self
                .core
                .index
                .sealer
                .open(space.name(), key, value)
                .map(Some),
            None => self.core.index.get(space, key),
        }
    }

    fn put<T: Encode<()>>(&mut self, space: Space, key: Vec<u8>, record: &T) -> u64 {
        self.sequence += 1;
        let value = self
            .core
            .index
            .sealer
            .seal(space.name(), &key, self.sequence, record);
        let keyspace = self.core.index.space(space).clone();
        self.batch
            .insert(&keyspace, key.as_slice(), value.as_slice());
        self.written.insert((space, key), Some(value));
        self.sequence
    }

    fn put_inline(&mut self, bytes: Vec<u8>) {
        // Named by the sequence that the record written next will get.
        let key = key::sequence(self.sequence + 1);
        let keyspace = self.core.index.space(Space::Inline).clone();
        self.batch.insert(&keyspace, key, bytes);
    }

    fn remove(&mut self, space: Space, key: Vec<u8>) {
        let keyspace = self.core.index.space(space).clone();
        self.batch.remove(&keyspace, key.as_slice());
        self.written.insert((space, key), None);
    }

    /// Gives back what a record named. Its extents are punched once the batch is durable and no reader holds `origin`, the
    /// commit that brought them.
    fn free(
        &mut self,
        origin: u64,
        streams: &[&Stream],
        key_extent: Option<Extent>,
        inline_of: &[u64],
    ) {
        let extents: Vec<Extent> = streams
            .iter()
            .flat_map(|s| s.extents())
            .copied()
            .chain(key_extent)
            .collect();
        self.inline_removed.extend(inline_of);
        let dead = limits::INDEX_RECORD_BYTES
            + streams
                .iter()
                .filter(|s| s.place == Place::Inline)
                .map(|s| s.size)
                .sum::<u64>();
        self.index_dead += dead;
        self.core.copies.died(origin, dead);
        if extents.is_empty() {
            return;
        }
        let at = self.put_freed(&extents);
        self.freed.push(Freed {
            reader: Some(origin),
            freed: Some(at),
            shard: None,
            key: key_extent,
            extents,
        });
    }

    /// Names the extents of a round of copying in place of those it replaces.
    fn note_copy(&mut self, group: Option<Group>, whole: bool) -> Committed {
        self.added
            .extend(group.iter().flat_map(|g| &g.extents).copied());
        let (groups, old) = self.core.copies.with(group, whole);
        if !old.is_empty() {
            let at = self.put_freed(&old);
            self.freed.push(Freed {
                reader: None,
                freed: Some(at),
                shard: None,
                key: None,
                extents: old,
            });
        }
        let sequence = self.put(Space::Meta, meta::COPIES.as_bytes().to_vec(), &groups);
        self.copied = Some(groups);
        Committed {
            modified: rt::unix_millis(),
            sequence,
        }
    }

    fn put_freed(&mut self, extents: &[Extent]) -> u64 {
        let next = self.sequence + 1;
        self.put(
            Space::Freed,
            key::sequence(next).to_vec(),
            &extents.to_vec(),
        )
    }

    /// Frees everything an object's record names, parts included.
    fn free_object(&mut self, sequence: u64, object: &Object) -> Result<()> {
        let origin = object.origin(sequence);
        match &object.data {
            Data::Single(stream) => {
                let inline: &[u64] = if stream.place == Place::Inline {
                    &[origin]
                } else {
                    &[]
                };
                self.free(origin, &[stream], object.key_extent, inline);
            }
            Data::Parts(id, parts) => {
                let numbers: Vec<u16> = parts.iter().map(|p| p.number).collect();
                let parts = self.parts(id, &numbers)?;
                self.free_parts(origin, id, &parts, object.key_extent);
            }
        }
        Ok(())
    }

    /// The parts of these numbers that are there. All are read before any is changed: an operation that fails leaves nothing
    /// behind in the batch.
    fn parts(&self, id: &UploadId, numbers: &[u16]) -> Result<Parts> {
        let mut parts = Parts::new();
        for number in numbers {
            if let Some(part) = self.get(Space::Parts, &key::part(id, *number))? {
                parts.insert(*number, part);
            }
        }
        Ok(parts)
    }

    fn free_parts(
        &mut self,
        reader: u64,
        id: &UploadId,
        parts: &Parts,
        key_extent: Option<Extent>,
    ) {
        let mut streams = Vec::with_capacity(parts.len());
        let mut inline = Vec::new();
        for (number, (sequence, part)) in parts {
            if part.stream.place == Place::Inline {
                inline.push(*sequence);
            }
            streams.push(&part.stream);
            self.remove(Space::Parts, key::part(id, *number));
        }
        self.free(reader, &streams, key_extent, &inline);
    }

    // The operations.

    fn need_bucket(&self, name: &str) -> Result<()> {
        if self.buckets.contains_key(name) {
            Ok(())
        } else {
            Err(Error::NoSuchBucket)
        }
    }

    fn need_version(&self, encryption: Option<&Encryption>) -> Result<()> {
        let Some(kms) = encryption.and_then(|e| e.kms.as_ref()) else {
            return Ok(());
        };
        if self.refused.is_empty() {
            return Ok(());
        }
        match self.refused.get(&(kms.source.clone(), kms.name.clone())) {
            Some(below) if kms.version < *below => Err(Error::KeyRetired),
            _ => Ok(()),
        }
    }

    fn create_bucket(&mut self, name: String) -> Reply {
        if self.buckets.contains_key(&name) {
            return Err(Error::BucketExists);
        }
        let bucket = Bucket {
            name: name.clone(),
            created: rt::unix_millis(),
            encryption: None,
            changed: None,
        };
        self.put_bucket(bucket)
    }

    fn put_bucket(&mut self, bucket: Bucket) -> Reply {
        let sequence = self.put(Space::Buckets, bucket.name.as_bytes().to_vec(), &bucket);
        let modified = bucket.created;
        self.buckets.insert(bucket.name.clone(), Arc::new(bucket));
        self.buckets_changed = true;
        Ok(Some(Committed { modified, sequence }))
    }

    fn set_bucket_encryption(&mut self, name: &str, to: Option<BucketEncryption>) -> Reply {
        let mut bucket = Bucket::clone(self.buckets.get(name).ok_or(Error::NoSuchBucket)?);
        // What is blocked stays so until it is said otherwise, also when the rest is taken away.
        let blocked = bucket.encryption.and_then(|e| e.block_sse_c);
        bucket.encryption = match to {
            None if blocked.is_none() => None,
            to => {
                let to = to.unwrap_or_default();
                Some(BucketEncryption {
                    block_sse_c: to.block_sse_c.or(blocked),
                    ..to
                })
            }
        };
        // Of several drives the latest change holds, whatever the clock did.
        let next = bucket.changed.map_or(0, |last| last + 1);
        bucket.changed = Some(rt::unix_millis().max(next));
        self.put_bucket(bucket)
    }

    fn delete_bucket(&mut self, name: &str) -> Reply {
        self.need_bucket(name)?;
        let entries = key::prefix(name, "");
        if let Some(first) = self
            .core
            .index
            .space(Space::Objects)
            .prefix(&entries)
            .next()
        {
            first.key().map_err(super::io)?;
            return Err(Error::BucketNotEmpty);
        }
        let mut uploads = Vec::new();
        for entry in self.core.index.space(Space::Uploads).prefix(&entries) {
            let entry = entry.key().map_err(super::io)?;
            let parsed = key::split(name, &entry)
                .and_then(|(k, id)| Some((k, UploadId(id.try_into().ok()?))));
            uploads.extend(parsed);
        }
        for (key, id) in uploads {
            self.abort(name, &key, &id)?;
        }
        self.remove(Space::Buckets, name.as_bytes().to_vec());
        self.buckets.remove(name);
        self.buckets_changed = true;
        Ok(Some(Committed {
            modified: rt::unix_millis(),
            sequence: self.sequence,
        }))
    }

    fn put_object(
        &mut self,
        bucket: &str,
        key: &str,
        object: &Object,
        inline: Option<Vec<u8>>,
        condition: &Condition,
    ) -> Reply {
        self.need_bucket(bucket)?;
        self.need_version(object.encryption.as_ref())?;
        let entry = key::object(bucket, key);
        let old = self.get::<Object>(Space::Objects, &entry)?;
        check(condition, old.as_ref().map(|(_, o)| o))?;
        if let Some((sequence, old)) = &old {
            self.free_object(*sequence, old)?;
            self.tallies.remove_object(old);
        }
        if let Some(bytes) = inline {
            self.put_inline(bytes);
        }
        if let Data::Single(_) = object.data {
            self.added.extend(object.extents());
        }
        self.tallies.add_object(object);
        let sequence = self.put(Space::Objects, entry, object);
        Ok(Some(Committed {
            modified: object.modified,
            sequence,
        }))
    }

    fn delete_object(&mut self, bucket: &str, key: &str, condition: &Condition) -> Reply {
        self.need_bucket(bucket)?;
        let entry = key::object(bucket, key);
        let Some((sequence, old)) = self.get::<Object>(Space::Objects, &entry)? else {
            check(condition, None)?;
            return Ok(None);
        };
        check(condition, Some(&old))?;
        self.free_object(sequence, &old)?;
        self.tallies.remove_object(&old);
        self.remove(Space::Objects, entry);
        self.sequence += 1;
        Ok(Some(Committed {
            modified: rt::unix_millis(),
            sequence: self.sequence,
        }))
    }

    fn put_part(
        &mut self,
        bucket: &str,
        key: &str,
        id: &UploadId,
        number: u16,
        part: &Part,
        inline: Option<Vec<u8>>,
    ) -> Reply {
        let (_, upload) = self.need_upload(bucket, key, id)?;
        let entry = key::part(id, number);
        let mut old_size = 0;
        if let Some((sequence, old)) = self.get::<Part>(Space::Parts, &entry)? {
            old_size = old.stream.size;
            let named: &[u64] = if old.stream.place == Place::Inline {
                &[sequence]
            } else {
                &[]
            };
            self.free(sequence, &[&old.stream], None, named);
        }
        if let Some(bytes) = inline {
            self.put_inline(bytes);
        }
        self.added.extend(part.stream.extents());
        self.tallies
            .replace_part(&upload, old_size, part.stream.size);
        let sequence = self.put(Space::Parts, entry, part);
        Ok(Some(Committed {
            modified: part.modified,
            sequence,
        }))
    }

    fn need_upload(&self, bucket: &str, key: &str, id: &UploadId) -> Result<(u64, Upload)> {
        self.need_bucket(bucket)?;
        self.get::<Upload>(Space::Uploads, &key::upload(bucket, key, id))?
            .ok_or(Error::NoSuchUpload)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one request")]
    fn complete(
        &mut self,
        bucket: &str,
        key: &str,
        id: &UploadId,
        chosen: &[PartChoice],
        etag: String,
        checksum: Option<Vec<u8>>,
        condition: &Condition,
    ) -> Reply {
        let (sequence, upload) = self.need_upload(bucket, key, id)?;
        let begun = upload.origin(sequence);
        let entry = key::object(bucket, key);
        let old = self.get::<Object>(Space::Objects, &entry)?;
        check(condition, old.as_ref().map(|(_, o)| o)).map_err(|e| match &old {
            Some((sequence, old)) if old.origin(*sequence) > begun => Error::Conflict,
            _ => e,
        })?;
        let mut stored = self.parts_of(id)?;
        let bytes = bytes_of(&stored);
        let mut parts = Vec::with_capacity(chosen.len());
        for choice in chosen {
            let (sequence, part) = stored.get(&choice.number).ok_or(Error::InvalidPart {
                number: choice.number,
            })?;
            if *sequence != choice.sequence {
                return Err(Error::InvalidPart {
                    number: choice.number,
                });
            }
            parts.push(PartRef {
                number: choice.number,
                size: part.stream.size,
            });
        }
        // What nobody chose goes.
        stored.retain(|n, _| parts.binary_search_by_key(n, |p| p.number).is_err());
        if let Some((sequence, old)) = &old {
            self.free_object(*sequence, old)?;
        }
        self.free_parts(begun, id, &stored, None);
        if let Some((_, old)) = &old {
            self.tallies.remove_object(old);
        }
        self.tallies.remove_upload(&upload, bytes);
        self.remove(Space::Uploads, key::upload(bucket, key, id));
        let object = Object {
            size: parts.iter().map(|p| p.size).sum(),
            modified: rt::unix_millis(),
            etag,
            metadata: upload.metadata,
            encryption: upload.encryption,
            checksum,
            data: Data::Parts(*id, parts),
            key_extent: upload.key_extent,
            origin: None,
        };
        self.tallies.add_object(&object);
        let sequence = self.put(Space::Objects, entry, &object);
        Ok(Some(Committed {
            modified: object.modified,
            sequence,
        }))
    }

    fn set_encryption(
        &mut self,
        bucket: &str,
        key: &str,
        sequence: u64,
        encryption: Encryption,
        key_extent: Option<Extent>,
    ) -> Reply {
        self.need_bucket(bucket)?;
        self.need_version(Some(&encryption))?;
        let entry = key::object(bucket, key);
        let found = self.get::<Object>(Space::Objects, &entry)?;
        let (_, old) = found
            .filter(|(found, _)| *found == sequence)
            .ok_or(Error::Conflict)?;
        self.replace_key(old.key_extent, key_extent);
        self.tallies.remove_object(&old);
        let object = Object {
            origin: Some(old.origin(sequence)),
            encryption: Some(encryption),
            key_extent,
            ..old
        };
        self.tallies.add_object(&object);
        let sequence = self.put(Space::Objects, entry, &object);
        self.note_rewrap(sequence);
        Ok(Some(Committed {
            modified: object.modified,
            sequence,
        }))
    }

    fn set_upload_encryption(
        &mut self,
        bucket: &str,
        key: &str,
        id: &UploadId,
        sequence: u64,
        encryption: Encryption,
        key_extent: Option<Extent>,
    ) -> Reply {
        let (found, old) = self.need_upload(bucket, key, id)?;
        self.need_version(Some(&encryption))?;
        if found != sequence {
            return Err(Error::Conflict);
        }
        let bytes = bytes_of(&self.parts_of(id)?);
        self.replace_key(old.key_extent, key_extent);
        self.tallies.remove_upload(&old, bytes);
        let upload = Upload {
            origin: Some(old.origin(sequence)),
            encryption: Some(encryption),
            key_extent,
            ..old
        };
        self.tallies.add_upload(&upload, bytes);
        let sequence = self.put(Space::Uploads, key::upload(bucket, key, id), &upload);
        self.note_rewrap(sequence);
        Ok(Some(Committed {
            modified: upload.created,
            sequence,
        }))
    }

    /// Old versions of the record are to leave the index, also when the store is closed or dies before they have.
    fn note_rewrap(&mut self, sequence: u64) {
        self.rewrapped = Some(sequence);
        let meta = self.core.index.space(Space::Meta).clone();
        self.batch
            .insert(&meta, meta::REWRAPPED, record::encode(&sequence));
    }

    /// Accounts for a key extent that replaces another one. Nobody reads the old one, so it goes at once.
    fn replace_key(&mut self, old: Option<Extent>, new: Option<Extent>) {
        self.added.extend(new);
        self.index_dead += limits::INDEX_RECORD_BYTES;
        if let Some(old) = old {
            let at = self.put_freed(&[old]);
            self.freed.push(Freed {
                reader: None,
                freed: Some(at),
                shard: None,
                key: None,
                extents: vec![old],
            });
        }
    }

    /// The stored parts of an upload.
    fn parts_of(&self, id: &UploadId) -> Result<Parts> {
        let mut all = Parts::new();
        for entry in self.core.index.space(Space::Parts).prefix(id.0) {
            let (entry, value) = entry.into_inner().map_err(super::io)?;
            let sealer = &self.core.index.sealer;
            let part = sealer.open(Space::Parts.name(), &entry, &value)?;
            let number = key::part_number(&entry)
                .ok_or_else(|| Error::corrupt("a part's key", "index parts"))?;
            all.insert(number, part);
        }
        Ok(all)
    }

    fn abort(&mut self, bucket: &str, key: &str, id: &UploadId) -> Reply {
        let (sequence, upload) = self.need_upload(bucket, key, id)?;
        let begun = upload.origin(sequence);
        let parts = self.parts_of(id)?;
        self.free_parts(begun, id, &parts, upload.key_extent);
        self.tallies.remove_upload(&upload, bytes_of(&parts));
        self.remove(Space::Uploads, key::upload(bucket, key, id));
        self.sequence += 1;
        Ok(Some(Committed {
            modified: rt::unix_millis(),
            sequence: self.sequence,
        }))
    }
}

/// Parts by number, each with its sequence.
type Parts = BTreeMap<u16, (u64, Part)>;

fn bytes_of(parts: &Parts) -> u64 {
    parts.values().map(|(_, part)| part.stream.size).sum()
}

/// Whether the object that is there allows the write.
fn check(condition: &Condition, current: Option<&Object>) -> Result<()> {
    if let Some(wanted) = &condition.if_match {
        let current = current.ok_or(Error::NoSuchKey)?;
        if !wanted.matches(&current.etag) {
            return Err(Error::PreconditionFailed {
                condition: "If-Match",
            });
        }
    }
    if let (Some(unwanted), Some(current)) = (&condition.if_none_match, current)
        && unwanted.matches(&current.etag)
    {
        return Err(Error::PreconditionFailed {
            condition: "If-None-Match",
        });
    }
    Ok(())
}
