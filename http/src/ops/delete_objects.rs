//! DeleteObjects: up to a thousand keys, deleted side by side so that they share the syncs of the index.

use futures_util::StreamExt as _;
use http::HeaderMap;
use s3s::dto::{
    DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, Error as KeyError, ObjectIdentifier,
};
use s3s::{S3Error, S3Request, S3Result, s3_error};
use strongroom_engine::{Condition, EtagMatch};

use super::{Inner, LIST_MAX, check_version};
use crate::error::{At, OrS3, not_implemented};

/// Deletes under way at once.
const AT_ONCE: usize = 256;

pub async fn delete_objects(
    inner: &Inner,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<DeleteObjectsOutput> {
    let input = request.input;
    let bucket = input.bucket;
    require_integrity(&request.headers)?;
    inner.drives.bucket(&bucket).at(At::bucket(&bucket))?;
    if input.delete.objects.is_empty() || input.delete.objects.len() > LIST_MAX {
        return Err(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema"
        ));
    }
    let quiet = input.delete.quiet.unwrap_or_default();
    let mut results = futures_util::stream::iter(input.delete.objects)
        .map(|entry| async {
            let result = delete(inner, &bucket, &entry).await;
            (entry, result)
        })
        .buffered(AT_ONCE);
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    while let Some((entry, result)) = results.next().await {
        match result {
            Ok(()) if quiet => {}
            Ok(()) => deleted.push(DeletedObject {
                key: Some(entry.key),
                version_id: entry.version_id,
                ..Default::default()
            }),
            Err(fault) => errors.push(KeyError {
                code: Some(fault.code().as_str().to_owned()),
                key: Some(entry.key),
                message: fault.message().map(str::to_owned),
                version_id: entry.version_id,
            }),
        }
    }
    drop(results);
    Ok(DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        request_charged: None,
    })
}

async fn delete(inner: &Inner, bucket: &str, entry: &ObjectIdentifier) -> Result<(), S3Error> {
    if entry.size.is_some() || entry.last_modified_time.is_some() {
        return Err(not_implemented("Size"));
    }
    check_version(entry.version_id.as_deref())?;
    let condition = Condition {
        if_match: entry.e_tag.as_ref().map(|tag| match tag.value() {
            "*" => EtagMatch::Any,
            tag => EtagMatch::Tags(vec![tag.to_owned()]),
        }),
        if_none_match: None,
    };
    let at = At::object(bucket, &entry.key);
    inner
        .shard(at)?
        .delete(bucket, &entry.key, &condition)
        .await
        .at(at)?;
    Ok(())
}

/// Requests that delete or configure have to say what their body is: by an MD5, a checksum, or a signed hash.
pub fn require_integrity(headers: &HeaderMap) -> S3Result<()> {
    let announced = headers.keys().any(|name| {
        let name = name.as_str();
        name == "content-md5"
            || name == "x-amz-trailer"
            || (name.starts_with("x-amz-checksum-") && name != "x-amz-checksum-algorithm")
    });
    let signed = headers
        .get("x-amz-content-sha256")
        .is_some_and(|v| v.len() == 64 || v.as_bytes().starts_with(b"STREAMING-AWS4-HMAC"));
    if announced || signed {
        return Ok(());
    }
    Err(s3_error!(
        InvalidRequest,
        "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"
    ))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_body_that_nothing_vouches_for_is_refused() {
        let with = |name: &'static str, value: &'static str| {
            let name = HeaderName::from_static(name);
            require_integrity(&HeaderMap::from_iter([(
                name,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(with("content-md5", "x").is_ok());
        assert!(with("x-amz-checksum-crc32", "x").is_ok());
        assert!(with("x-amz-trailer", "x-amz-checksum-crc32").is_ok());
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(with("x-amz-content-sha256", hash).is_ok());
        assert!(with("x-amz-content-sha256", "UNSIGNED-PAYLOAD").is_err());
        assert!(with("x-amz-checksum-algorithm", "CRC32").is_err());
        assert!(require_integrity(&HeaderMap::new()).is_err());
    }
}
