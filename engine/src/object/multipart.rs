//! Multipart uploads: begun, filled with parts in any order, completed or aborted.

use super::{Committed, Condition};
use crate::error::{Error, Result};
use crate::index::commit::Op;
use crate::index::{Space, key};
use crate::limits;
use crate::record::{Encryption, Metadata, Part, Upload, UploadId};
use crate::rt;
use crate::segment::block::WrappedKey;
use crate::shard::Shard;
use std::rc::Rc;
use std::time::Duration;

/// What an upload is begun with: the metadata and the sealed key of the object to come.
#[derive(Debug, Clone, Default)]
pub struct NewUpload {
    pub metadata: Metadata,
    pub encryption: Option<Encryption>,
    /// Checksum algorithm and type, opaque to the engine.
    pub checksum: Option<String>,
}

/// A stored part; `sequence` says which upload of that number it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartEntry {
    pub number: u16,
    pub sequence: u64,
    pub part: Part,
}

/// A part that a completion names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartChoice {
    pub number: u16,
    pub sequence: u64,
}

/// What an upload is completed with; parts in ascending order.
#[derive(Debug, Clone, Default)]
pub struct Completion {
    pub parts: Vec<PartChoice>,
    pub etag: String,
    pub checksum: Option<Vec<u8>>,
    pub condition: Condition,
}

impl Shard {
    /// Begins an upload. Once its record is on the way it ends, also when the caller goes away.
    pub async fn create_upload(
        self: &Rc<Self>,
        bucket: &str,
        key: &str,
        new: NewUpload,
    ) -> Result<UploadId> {
        self.bucket(bucket)?;
        if key.len() > limits::KEY_BYTES_MAX {
            return Err(Error::TooLarge {
                what: "a key",
                got: key.len() as u64,
                max: limits::KEY_BYTES_MAX as u64,
            });
        }
        self.core.take_space(limits::INDEX_RECORD_BYTES)?;
        let mut id = UploadId([0; 16]);
        crate::random(&mut id.0);
        let key_copy = match &new.encryption {
            None => None,
            Some(encryption) => {
                let wrapped = WrappedKey {
                    bucket: bucket.into(),
                    key: key.into(),
                    upload: Some(id),
                    encryption: encryption.clone(),
                    stream: None,
                };
                Some(self.writer.write_key(wrapped).await?)
            }
        };
        let upload = Upload {
            created: rt::unix_millis(),
            metadata: new.metadata,
            encryption: new.encryption,
            checksum: new.checksum,
            key_extent: key_copy.as_ref().and_then(|k| k.extent()),
            origin: None,
        };
        let op = Op::CreateUpload {
            bucket: bucket.into(),
            key: key.into(),
            id,
            upload: Box::new(upload),
        };
        self.commit_with_key(op, key_copy).await?;
        Ok(id)
    }

    pub async fn upload(&self, bucket: &str, key: &str, id: &UploadId) -> Result<Upload> {
        self.bucket(bucket)?;
        self.core
            .index
            .get(Space::Uploads, &key::upload(bucket, key, id))?
            .map(|(_, upload)| upload)
            .ok_or(Error::NoSuchUpload)
    }

    /// Makes the object of the chosen parts; the others are given back.
    pub async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        id: &UploadId,
        done: Completion,
    ) -> Result<Committed> {
        assert!(
            done.parts.windows(2).all(|w| w[0].number < w[1].number),
            "parts in ascending order"
        );
        let op = Op::Complete {
            bucket: bucket.into(),
            key: key.into(),
            id: *id,
            parts: done.parts,
            etag: done.etag,
            checksum: done.checksum,
            condition: done.condition,
        };
        self.commit_some(op).await
    }

    pub async fn abort_upload(&self, bucket: &str, key: &str, id: &UploadId) -> Result<()> {
        let op = Op::Abort {
            bucket: bucket.into(),
            key: key.into(),
            id: *id,
        };
        self.commit(op).await.map(|_| ())
    }

    /// Aborts uploads begun longer than `age` ago, and says how many.
    pub async fn abort_stale_uploads(&self, age: Duration) -> Result<usize> {
        let before = rt::unix_millis().saturating_sub(age.as_millis() as u64);
        let mut aborted = 0;
        for bucket in self.buckets() {
            let mut query = super::UploadQuery {
                max: limits::LIST_MAX,
                ..Default::default()
            };
            loop {
                let page = match self.list_uploads(&bucket.name, query.clone()).await {
                    Err(Error::NoSuchBucket) => break,
                    page => page?,
                };
                for entry in &page.uploads {
                    if entry.upload.created < before {
                        match self.abort_upload(&bucket.name, &entry.key, &entry.id).await {
                            Ok(()) => aborted += 1,
                            Err(Error::NoSuchUpload | Error::NoSuchBucket) => {}
                            Err(e) => return Err(e),
                        }
                    }
                }
                let Some(last) = page.uploads.last().filter(|_| page.more) else {
                    break;
                };
                query.after = Some((last.key.clone(), Some(last.id)));
            }
        }
        Ok(aborted)
    }
}
