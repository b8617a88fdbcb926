//! What the two copies share: the source, and the way of its bytes into a new stream, opened here and sealed there.

use std::ops::Range;
use std::time::Instant;

use http::HeaderMap;
use s3s::dto::CopySource;
use s3s::{S3Result, s3_error};
use strongroom_engine::{Found, PutStream};

use super::condition::{self, Of};
use super::intake::Intake;
use super::{Inner, check_version};
use crate::error::{At, OrS3, not_implemented};
use crate::sse::{self, Asked, ObjectKey, access};

/// The object to copy, held until it is dropped.
pub struct Source {
    pub bucket: String,
    pub key: String,
    pub found: Found,
    pub object_key: ObjectKey,
    /// When its key was asked for.
    pub begun: Instant,
}

impl Source {
    /// Finds the source, and decides the conditions on it.
    pub async fn find(
        inner: &Inner,
        from: CopySource,
        headers: &HeaderMap,
        asked: &Asked<'_>,
    ) -> S3Result<Self> {
        let CopySource::Bucket {
            bucket,
            key,
            version_id,
        } = from
        else {
            return Err(not_implemented("x-amz-copy-source"));
        };
        let (bucket, key) = (String::from(bucket), String::from(key));
        if key.is_empty() {
            return Err(s3_error!(InvalidArgument, "Invalid copy source object key"));
        }
        check_version(version_id.as_deref())?;
        let at = At::object(&bucket, &key);
        let found = inner.shard(at)?.lookup(&bucket, &key).await.at(at)?;
        let encryption = found.object.encryption.as_ref();
        let opened = access::of_copy_source(asked, encryption, at)?;
        condition::check_read(headers, Of::CopySource, &found.object)?;
        let begun = Instant::now();
        let object_key = sse::open_key(&inner.keys, encryption, opened, at).await?;
        Ok(Source {
            begun,
            bucket,
            key,
            found,
            object_key,
        })
    }

    pub fn at(&self) -> At<'_> {
        At::object(&self.bucket, &self.key)
    }

    /// Copies a range of it into `stream`.
    pub async fn pour(
        &self,
        inner: &Inner,
        range: Range<u64>,
        stream: &mut PutStream,
        intake: &mut Intake,
        target: At<'_>,
    ) -> S3Result<()> {
        let mut frames = inner
            .shard(self.at())?
            .read(&self.found, range, self.object_key.secret())
            .await
            .at(self.at())?;
        while let Some(frame) = frames.next().await {
            let frame = frame.at(self.at())?;
            self.object_key.check(self.at())?;
            stream.write(&frame).await.at(target)?;
            intake.update(&frame).await;
        }
        Ok(())
    }
}
