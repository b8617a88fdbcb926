//! CopyObject: opens the source and seals the target anew, under a key of its own and by the target's mode.

use http::HeaderMap;
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, MetadataDirective, TaggingDirective,
};
use s3s::{S3Request, S3Result, s3_error};
use strongroom_engine::record::{Encryption, Metadata, Mode};
use strongroom_engine::{Error, Finish, Target};

use super::copy::Source;
use super::etag::EtagHasher;
use super::intake::Intake;
use super::rewrap::rewrap;
use super::{Inner, PUT_BYTES_MAX, condition, etag, headers, metadata};
use crate::checksum::{self, Algorithm, Announced, Fields, Sum};
use crate::error::{At, OrS3, corrupt, engine_fault, invalid_argument, not_implemented};
use crate::sse::decide::decide;
use crate::sse::{self, Answer, Choice, NewKey};

/// Headers that make a copy of an object onto itself a change of it.
const CHANGES: [&str; 4] = [
    sse::HEADER,
    sse::CUSTOMER[0],
    metadata::STORAGE_CLASS,
    metadata::REDIRECT,
];

pub async fn copy_object(
    inner: &Inner,
    request: S3Request<CopyObjectInput>,
) -> S3Result<CopyObjectOutput> {
    let input = request.input;
    let (bucket, key) = (input.bucket, input.key);
    let at = At::object(&bucket, &key);
    let headers = headers(&request.headers, &request.extensions);

    check_tagging(input.tagging_directive.as_ref(), headers)?;
    metadata::check_supported(headers)?;
    metadata::check_key(&key)?;
    let replace = replaces(input.metadata_directive.as_ref())?;
    let in_bucket = inner.drives.bucket(&bucket).at(at)?;
    let encryption = inner.asked(headers, &request.extensions);
    let choice = decide(&encryption, &inner.rules(&in_bucket))?;
    let asked = algorithm(headers)?;
    let source = Source::find(inner, input.copy_source, headers, &encryption).await?;
    let object = &source.found.object;
    let onto_itself = source.bucket == bucket && source.key == key;
    if onto_itself && !replace && !CHANGES.iter().any(|h| headers.contains_key(*h)) {
        return Err(s3_error!(
            InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes."
        ));
    }
    if object.size > PUT_BYTES_MAX {
        return Err(s3_error!(
            InvalidRequest,
            "The specified copy source is larger than the maximum allowable size for a copy source: {PUT_BYTES_MAX}"
        ));
    }
    let metadata = target_metadata(replace, &object.metadata, headers, input.metadata)?;
    let condition = condition::of_write(headers);
    condition::check_early(inner, &bucket, &key, &condition).await?;
    let by_customer = |e: Option<&Encryption>| e.is_some_and(|e| e.mode == Mode::SseC);
    if onto_itself
        && by_customer(object.encryption.as_ref())
        && matches!(choice, Choice::SseC(_))
        && metadata == object.metadata
        && asked.is_none()
    {
        return change_key(inner, &source, &choice, at).await;
    }

    let keys = &inner.keys;
    let new = sse::in_time(keys, source.begun, at, sse::new_key(keys, &choice, at)).await?;
    let mode = new.encryption.as_ref().map(|e| e.mode);
    let kept = object.checksum.as_deref().map(checksum::names);
    let kept = kept.and_then(|names| names.first().map(|n| n.algorithm));
    let algorithm = asked.or(kept).unwrap_or(Algorithm::DEFAULT);
    let hasher = EtagHasher::internal(&inner.lanes, inner.config.etag, mode);
    let mut intake = Intake::new(Announced::Nothing, hasher, Some(algorithm));
    let target = Target {
        bucket: bucket.clone(),
        key: key.clone(),
        size: object.size,
        metadata,
        encryption: new.encryption.clone(),
        part: None,
    };
    let mut stream = inner
        .shard(at)?
        .put(target, new.key.secret())
        .await
        .at(at)?;
    source
        .pour(inner, 0..object.size, &mut stream, &mut intake, at)
        .await?;
    let taken = intake.finish(&HeaderMap::new()).await?;
    let finish = Finish {
        etag: taken.etag.clone(),
        checksum: checksum::to_blob(&taken.sums, new.key.secret()),
        condition,
    };
    // Under both: a copy must not outlive the key that its source was under when that was taken away.
    let holds = (source.object_key.hold(source.at())?, new.key.hold(at)?);
    let committed = sse::held(holds, stream.commit(finish)).await.at(at)?;

    Ok(answer(&taken.etag, committed.modified, &taken.sums, &new))
}

/// A copy of an object onto itself under another customer's key: the data stays where it is.
async fn change_key(
    inner: &Inner,
    source: &Source,
    choice: &Choice,
    at: At<'_>,
) -> S3Result<CopyObjectOutput> {
    let object = &source.found.object;
    let new = rewrap(
        inner,
        &source.found,
        &source.object_key,
        choice,
        source.begun,
        at,
    )
    .await?
    .ok_or_else(|| engine_fault(Error::Conflict, at))?;
    let sums = match object.checksum.as_deref() {
        None => Vec::new(),
        Some(blob) => checksum::from_blob(blob, new.key.secret())
            .ok_or_else(|| corrupt("a sealed checksum", at))?,
    };
    Ok(answer(&object.etag, object.modified, &sums, &new))
}

fn answer(tag: &str, modified: u64, sums: &[Sum], new: &NewKey) -> CopyObjectOutput {
    let sums = Fields::of(sums);
    let sealed = Answer::of(new.encryption.as_ref(), Some(&new.key));
    CopyObjectOutput {
        copy_object_result: Some(CopyObjectResult {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_type: sums.kind,
            e_tag: Some(etag(tag)),
            last_modified: Some(condition::timestamp(modified)),
        }),
        server_side_encryption: sealed.method,
        ssekms_key_id: sealed.kms_key_id,
        bucket_key_enabled: sealed.bucket_key,
        sse_customer_algorithm: sealed.customer_algorithm,
        sse_customer_key_md5: sealed.customer_key_md5,
        ssekms_encryption_context: sealed.context,
        ..Default::default()
    }
}

fn replaces(directive: Option<&MetadataDirective>) -> S3Result<bool> {
    match directive.map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => Ok(false),
        Some(MetadataDirective::REPLACE) => Ok(true),
        Some(other) => Err(invalid_argument(
            "Unknown metadata directive.",
            "x-amz-metadata-directive",
            other,
        )),
    }
}

/// There are no tags to copy; to set some is refused.
fn check_tagging(directive: Option<&TaggingDirective>, headers: &HeaderMap) -> S3Result<()> {
    match directive.map(TaggingDirective::as_str) {
        None | Some(TaggingDirective::COPY) => Ok(()),
        Some(TaggingDirective::REPLACE) => match headers.get("x-amz-tagging") {
            Some(tags) if !tags.is_empty() => Err(not_implemented("x-amz-tagging")),
            _ => Ok(()),
        },
        Some(other) => Err(invalid_argument(
            "Unknown tagging directive.",
            "x-amz-tagging-directive",
            other,
        )),
    }
}

/// The checksum the copy shall have, where the request names one.
fn algorithm(headers: &HeaderMap) -> S3Result<Option<Algorithm>> {
    let Some(name) = headers.get("x-amz-checksum-algorithm") else {
        return Ok(None);
    };
    match Algorithm::parse(name.to_str().unwrap_or_default()) {
        Some(algorithm) => Ok(Some(algorithm)),
        None => Err(s3_error!(
            InvalidRequest,
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"
        )),
    }
}

/// The source's metadata or the request's; class and redirect always come from the request.
fn target_metadata(
    replace: bool,
    source: &Metadata,
    headers: &HeaderMap,
    user: Option<s3s::dto::Metadata>,
) -> S3Result<Metadata> {
    let asked = metadata::of_write(headers, user)?;
    if replace {
        return Ok(asked);
    }
    let mut kept = source.clone();
    for name in [metadata::STORAGE_CLASS, metadata::REDIRECT] {
        kept.headers.remove(name);
        if let Some(value) = asked.headers.get(name) {
            kept.headers.insert(name.into(), value.clone());
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn metadata_is_kept_or_replaced_as_a_whole() {
        let source = Metadata {
            headers: [
                ("content-type", "a/b"),
                (metadata::STORAGE_CLASS, "GLACIER"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            user: [("x".to_owned(), "1".to_owned())].into(),
        };
        let given = headers(&[("cache-control", "no-store"), (metadata::REDIRECT, "/y")]);
        let user = || Some(s3s::dto::Metadata::from([("z".to_owned(), "2".to_owned())]));
        let kept = target_metadata(false, &source, &given, user()).expect("fine");
        assert_eq!(kept.user, source.user);
        assert_eq!(kept.headers["content-type"], "a/b");
        assert_eq!(kept.headers[metadata::REDIRECT], "/y");
        assert!(!kept.headers.contains_key(metadata::STORAGE_CLASS));
        assert!(!kept.headers.contains_key("cache-control"));
        let replaced = target_metadata(true, &source, &given, user()).expect("fine");
        assert_eq!(replaced.user["z"], "2");
        assert_eq!(replaced.headers["cache-control"], "no-store");
        assert!(!replaced.headers.contains_key("content-type"));
    }

    #[test]
    fn directives_are_checked() {
        let metadata = |d: &'static str| replaces(Some(&MetadataDirective::from_static(d)));
        assert!(!metadata("COPY").expect("fine"));
        assert!(metadata("REPLACE").expect("fine"));
        assert!(metadata("MERGE").is_err());
        let tags = headers(&[("x-amz-tagging", "a=b")]);
        let replace = TaggingDirective::from_static(TaggingDirective::REPLACE);
        assert!(check_tagging(Some(&replace), &tags).is_err());
        assert!(check_tagging(Some(&replace), &HeaderMap::new()).is_ok());
        assert!(check_tagging(Some(&TaggingDirective::from_static("X")), &tags).is_err());
        assert!(check_tagging(None, &HeaderMap::new()).is_ok());
    }
}
