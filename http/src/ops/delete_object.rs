//! DeleteObject: 204 whether there was something or not, unless a condition says otherwise.

use s3s::dto::{DeleteObjectInput, DeleteObjectOutput};
use s3s::{S3Request, S3Result};
use strongroom_engine::Condition;

use super::{Inner, check_version, condition, headers};
use crate::error::{At, OrS3, not_implemented};

/// Conditions that S3 has for directory buckets alone.
const DIRECTORY_CONDITIONS: [&str; 2] =
    ["x-amz-if-match-size", "x-amz-if-match-last-modified-time"];

pub async fn delete_object(
    inner: &Inner,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<DeleteObjectOutput> {
    let input = request.input;
    let headers = headers(&request.headers, &request.extensions);
    if let Some(name) = DIRECTORY_CONDITIONS
        .iter()
        .find(|n| headers.contains_key(**n))
    {
        return Err(not_implemented(name));
    }
    check_version(input.version_id.as_deref())?;
    let condition = Condition {
        if_none_match: None,
        ..condition::of_write(headers)
    };
    let at = At::object(&input.bucket, &input.key);
    inner
        .shard(at)?
        .delete(at.bucket, at.key, &condition)
        .await
        .at(at)?;
    Ok(DeleteObjectOutput::default())
}
