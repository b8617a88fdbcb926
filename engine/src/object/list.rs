//! Listings, off the core's loop: they may read the disk.

use super::multipart::PartEntry;
use crate::error::Result;
use crate::limits;
use crate::record::{Object, Upload, UploadId};
use crate::shard::Shard;

/// Which objects of a bucket to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    pub prefix: String,
    /// Keys that hold it behind the prefix are rolled up to it.
    pub delimiter: Option<String>,
    /// Only names greater than this one; the last key or prefix of the page before.
    pub after: Option<String>,
    pub max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all entries are objects")]
pub enum ListEntry {
    Object(String, Object),
    /// A common prefix.
    Prefix(String),
}

/// Entries in byte order, and whether more follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    pub entries: Vec<ListEntry>,
    pub more: bool,
}

/// Which open uploads of a bucket to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadQuery {
    pub prefix: String,
    pub delimiter: Option<String>,
    /// Only uploads behind this one: of greater keys, or of this key with a greater id.
    pub after: Option<(String, Option<UploadId>)>,
    pub max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadEntry {
    pub key: String,
    pub id: UploadId,
    /// The commit sequence of its record.
    pub sequence: u64,
    pub upload: Upload,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadPage {
    pub uploads: Vec<UploadEntry>,
    pub prefixes: Vec<String>,
    pub more: bool,
}

impl Shard {
    /// One page of a bucket's objects; at most 1,000 entries.
    pub async fn list(&self, bucket: &str, mut query: ListQuery) -> Result<ListPage> {
        self.bucket(bucket)?;
        query.max = query.max.min(limits::LIST_MAX);
        let bucket = bucket.to_owned();
        self.aside(move |core| core.index.list(&bucket, &query))
            .await
    }

    /// One page of a bucket's open multipart uploads; at most 1,000 entries.
    pub async fn list_uploads(&self, bucket: &str, mut query: UploadQuery) -> Result<UploadPage> {
        self.bucket(bucket)?;
        query.max = query.max.min(limits::LIST_MAX);
        let bucket = bucket.to_owned();
        self.aside(move |core| core.index.list_uploads(&bucket, &query))
            .await
    }

    /// The parts of an open upload with numbers above `after`, and whether more follow.
    pub async fn parts(
        &self,
        bucket: &str,
        key: &str,
        id: &UploadId,
        after: u16,
        max: usize,
    ) -> Result<(Vec<PartEntry>, bool)> {
        self.upload(bucket, key, id).await?;
        let id = *id;
        self.aside(move |core| core.index.parts(&id, after, max))
            .await
    }
}
