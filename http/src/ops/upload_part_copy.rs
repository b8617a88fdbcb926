//! UploadPartCopy: a part from a range of an object.

use http::HeaderMap;
use s3s::dto::{CopyPartResult, UploadPartCopyInput, UploadPartCopyOutput};
use s3s::{S3Request, S3Result, s3_error};

use super::copy::Source;
use super::etag::EtagHasher;
use super::upload_part::{NewPart, commit};
use super::{Inner, PUT_BYTES_MAX, condition, etag, headers, length, part_number, range};
use crate::checksum::{Announced, Fields};
use crate::error::At;
use crate::sse::{Answer, access};

pub async fn upload_part_copy(
    inner: &Inner,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<UploadPartCopyOutput> {
    let input = request.input;
    let at = At::upload(&input.bucket, &input.key, &input.upload_id);
    let headers = headers(&request.headers, &request.extensions);

    let number = part_number(input.part_number)?;
    let part = NewPart::find(inner, at, number).await?;
    let encryption = inner.asked(headers, &request.extensions);
    let opened = access::of_part(&encryption, part.upload.encryption.as_ref(), at)?;
    let source = Source::find(inner, input.copy_source, headers, &encryption).await?;
    let size = source.found.object.size;
    let range = match input.copy_source_range.as_deref() {
        Some(asked) => range::of_copy(asked, size)?,
        None => 0..size,
    };
    let size = length(&range);
    if size > PUT_BYTES_MAX {
        return Err(s3_error!(
            InvalidRequest,
            "The specified copy source is larger than the maximum allowable size for a copy source: {PUT_BYTES_MAX}"
        ));
    }
    let mode = part.upload.encryption.as_ref().map(|e| e.mode);
    let hasher = EtagHasher::internal(&inner.lanes, inner.config.etag, mode);
    let mut intake = part.intake(Announced::Nothing, hasher);
    let (object_key, mut stream) = part.begin(inner, opened, source.begun, at, size).await?;
    source
        .pour(inner, range, &mut stream, &mut intake, at)
        .await?;
    let taken = intake.finish(&HeaderMap::new()).await?;
    let hold = source.object_key.hold(source.at())?;
    let modified = commit(stream, &taken, &object_key, at).await?;
    drop(hold);

    let sums = match part.named() {
        Some(_) => Fields::of(&taken.sums),
        None => Fields::default(),
    };
    let sealed = Answer::of(part.upload.encryption.as_ref(), Some(&object_key));
    Ok(UploadPartCopyOutput {
        copy_part_result: Some(CopyPartResult {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            e_tag: Some(etag(&taken.etag)),
            last_modified: Some(condition::timestamp(modified)),
        }),
        server_side_encryption: sealed.method,
        ssekms_key_id: sealed.kms_key_id,
        bucket_key_enabled: sealed.bucket_key,
        sse_customer_algorithm: sealed.customer_algorithm,
        sse_customer_key_md5: sealed.customer_key_md5,
        ..Default::default()
    })
}
