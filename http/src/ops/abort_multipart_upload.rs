//! AbortMultipartUpload: the upload and all of its parts go.

use s3s::dto::{AbortMultipartUploadInput, AbortMultipartUploadOutput, TimestampFormat};
use s3s::{S3Request, S3Result};

use super::{Inner, condition, parse_upload_id};
use crate::error::{At, OrS3, precondition_failed};

pub async fn abort_multipart_upload(
    inner: &Inner,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<AbortMultipartUploadOutput> {
    let input = request.input;
    let at = At::upload(&input.bucket, &input.key, &input.upload_id);
    inner.drives.bucket(at.bucket).at(at)?;
    let id = parse_upload_id(at.upload).at(at)?;
    if let Some(expected) = &input.if_match_initiated_time {
        let upload = inner
            .shard(at)?
            .upload(at.bucket, at.key, &id)
            .await
            .at(at)?;
        // The header has no fractions of a second.
        let mut text = Vec::new();
        let written = expected.format(TimestampFormat::HttpDate, &mut text);
        if written.is_err() || text != condition::http_date(upload.created).as_bytes() {
            return Err(precondition_failed("x-amz-if-match-initiated-time"));
        }
    }
    inner
        .shard(at)?
        .abort_upload(at.bucket, at.key, &id)
        .await
        .at(at)?;
    Ok(AbortMultipartUploadOutput::default())
}
