//! Re-wrapping: another wrapping of the same object key takes the place of the old one, and the data stays where it is.
//!
//! The new key extent is written and synced, then the record commits, then the old extent is punched. Old versions of the record
//! leave the index within seconds, unless it is busy; [`Shard::settle_erasure`] waits for it.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures_channel::oneshot;

use super::Committed;
use crate::error::{Error, Result};
use crate::index::commit::Op;
use crate::index::tally::{Tally, Under};
use crate::index::{self, Space, key};
use crate::record::{Data, Encryption, Object, Upload, UploadId};
use crate::segment::block::WrappedKey;
use crate::segment::reclaim::Message;
use crate::segment::writer::OpenExtent;
use crate::shard::{Shard, to_end};

/// Records wrapped under older versions of a key than `below`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedQuery {
    /// The key service and the name of the key.
    pub source: String,
    pub name: String,
    pub below: u32,
    pub after: Option<WrappedCursor>,
    pub max: usize,
}

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedCursor {
    /// Of several drives the one to go on with.
    pub(crate) drive: usize,
    pub(crate) uploads: bool,
    pub(crate) at: Vec<u8>,
}

/// An object, or an open upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedEntry {
    pub bucket: String,
    pub key: String,
    pub upload: Option<UploadId>,
    /// The commit sequence of its record.
    pub sequence: u64,
    pub encryption: Encryption,
}

/// Some entries, perhaps none, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WrappedPage {
    pub entries: Vec<WrappedEntry>,
    /// None at the end.
    pub next: Option<WrappedCursor>,
}

impl Shard {
    /// One page of the records under older versions of a key.
    pub async fn wrapped(&self, query: WrappedQuery) -> Result<WrappedPage> {
        self.aside(move |core| core.index.wrapped(&query)).await
    }

    /// Returns once no wrapped key that was replaced or deleted before the call lies on disk any more: key extents are
    /// punched, and old records have left the index's tables and journal, and its copy in segments.
    pub async fn settle_erasure(self: &Rc<Self>) -> Result<()> {
        self.copy_index(true).await?;
        let (reply, done) = oneshot::channel();
        self.core.reclaim(Message::Settle(reply));
        done.await.map_err(|_| Error::Closed)?
    }

    /// From now on, as long as the store is open, nothing new is committed under versions of a key below this one: what is still
    /// on its way fails with `KeyRetired`. What was committed before is in the tally when this returns.
    pub async fn refuse_older(&self, source: &str, name: &str, below: u32) -> Result<()> {
        let op = Op::RefuseOlder {
            source: source.into(),
            name: name.into(),
            below,
        };
        self.commit(op).await.map(|_| ())
    }

    /// What stands under each key, as of the last durable commit.
    pub fn tally(&self) -> BTreeMap<Under, Tally> {
        self.core.index.tally()
    }

    /// A record as it lies on disk, for tests of when it leaves.
    #[doc(hidden)]
    pub fn sealed_record(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let found = self
            .core
            .index
            .space(Space::Objects)
            .get(key::object(bucket, key));
        Ok(found.map_err(index::io)?.map(|value| value.to_vec()))
    }

    /// Replaces the wrapped object key of exactly the record with this commit sequence; `Conflict` where it is another one by now.
    /// Data, ETag, metadata and modification time stay. Once its record is on the way it ends, also when the caller goes away.
    ///
    /// # Panics
    /// When the record is that of an object that is not sealed: its data has no key to wrap.
    pub async fn set_encryption(
        self: &Rc<Self>,
        bucket: &str,
        key: &str,
        sequence: u64,
        encryption: Encryption,
    ) -> Result<Committed> {
        self.bucket(bucket)?;
        let (found, object) = self
            .core
            .index
            .get::<Object>(Space::Objects, &key::object(bucket, key))?
            .ok_or(Error::NoSuchKey)?;
        if found != sequence {
            return Err(Error::Conflict);
        }
        assert!(object.encryption.is_some(), "an object that is sealed");
        // A small object's key stands in its record alone.
        let wrapped = object.key_extent.map(|_| WrappedKey {
            bucket: bucket.into(),
            key: key.into(),
            upload: match &object.data {
                Data::Single(_) => None,
                Data::Parts(id, _) => Some(*id),
            },
            encryption: encryption.clone(),
            stream: match &object.data {
                Data::Single(stream) => stream.extents().first().map(|e| e.sequence),
                Data::Parts(..) => None,
            },
        });
        self.rewrap(bucket, key, None, sequence, encryption, wrapped)
            .await
    }

    /// Replaces the wrapped key of an open upload, as [`Shard::set_encryption`] does an object's.
    ///
    /// # Panics
    /// When the upload is not sealed.
    pub async fn set_upload_encryption(
        self: &Rc<Self>,
        bucket: &str,
        key: &str,
        id: &UploadId,
        sequence: u64,
        encryption: Encryption,
    ) -> Result<Committed> {
        self.bucket(bucket)?;
        let (found, upload) = self
            .core
            .index
            .get::<Upload>(Space::Uploads, &key::upload(bucket, key, id))?
            .ok_or(Error::NoSuchUpload)?;
        if found != sequence {
            return Err(Error::Conflict);
        }
        assert!(upload.encryption.is_some(), "an upload that is sealed");
        let wrapped = WrappedKey {
            bucket: bucket.into(),
            key: key.into(),
            upload: Some(*id),
            encryption: encryption.clone(),
            stream: None,
        };
        self.rewrap(bucket, key, Some(*id), sequence, encryption, Some(wrapped))
            .await
    }

    async fn rewrap(
        self: &Rc<Self>,
        bucket: &str,
        key: &str,
        upload: Option<UploadId>,
        sequence: u64,
        encryption: Encryption,
        wrapped: Option<WrappedKey>,
    ) -> Result<Committed> {
        let copy = match wrapped {
            Some(wrapped) => Some(self.writer.write_key(wrapped).await?),
            None => None,
        };
        let op = Op::SetEncryption {
            bucket: bucket.into(),
            key: key.into(),
            upload,
            sequence,
            encryption: Box::new(encryption),
            key_extent: copy.as_ref().and_then(|c| c.extent()),
        };
        self.commit_with_key(op, copy).await
    }

    /// Commits a record that names a key extent just written. It ends even when the caller goes away: the extent must not be
    /// given back under a record that stands.
    pub(crate) async fn commit_with_key(
        self: &Rc<Self>,
        op: Op,
        key: Option<OpenExtent>,
    ) -> Result<Committed> {
        let shard = Rc::clone(self);
        let commit = async move {
            let committed = shard.commit_some(op).await?;
            if let Some(key) = key {
                key.keep();
            }
            Ok(committed)
        };
        to_end(commit).await
    }
}
