//! PutObject: refuse what can be refused, then seal the body as it comes and make it visible at once.

use s3s::dto::{PutObjectInput, PutObjectOutput};
use s3s::{S3Request, S3Result};
use strongroom_engine::{Finish, Target};

use super::etag::EtagHasher;
use super::intake::{Incoming, Intake};
use super::{Inner, PUT_BYTES_MAX, condition, etag, headers, metadata};
use crate::checksum::{self, Algorithm, Announced, Fields};
use crate::error::{At, OrS3, entity_too_large};
use crate::sse::decide::decide;
use crate::sse::{self, Answer};

pub async fn put_object(
    inner: &Inner,
    request: S3Request<PutObjectInput>,
) -> S3Result<PutObjectOutput> {
    let input = request.input;
    let (bucket, key) = (input.bucket, input.key);
    let at = At::object(&bucket, &key);
    let headers = headers(&request.headers, &request.extensions);

    metadata::check_supported(headers)?;
    metadata::check_key(&key)?;
    let in_bucket = inner.drives.bucket(&bucket).at(at)?;
    let encryption = inner.asked(headers, &request.extensions);
    let choice = decide(&encryption, &inner.rules(&in_bucket))?;
    let metadata = metadata::of_write(headers, input.metadata)?;
    let announced = Announced::read(headers)?;
    let mut incoming = Incoming::new(
        &request.extensions,
        input.body,
        input.content_length,
        request.trailing_headers,
    );
    let size = incoming.length()?;
    if size > PUT_BYTES_MAX {
        return Err(entity_too_large(size, PUT_BYTES_MAX));
    }
    let condition = condition::of_write(headers);
    condition::check_early(inner, &bucket, &key, &condition).await?;

    let new = sse::new_key(&inner.keys, &choice, at).await?;
    let mode = new.encryption.as_ref().map(|e| e.mode);
    let hasher = EtagHasher::new(&inner.lanes, inner.config.etag, mode, headers)?;
    let default = match announced.algorithm() {
        Some(_) => None,
        None => Some(Algorithm::DEFAULT),
    };
    let mut intake = Intake::new(announced, hasher, default);
    let target = Target {
        bucket: bucket.clone(),
        key: key.clone(),
        size,
        metadata,
        encryption: new.encryption.clone(),
        part: None,
    };
    let (shard, secret) = (inner.shard(at)?, new.key.secret());
    let mut stream = match incoming.is_open_ended() {
        true => shard.put_open_ended(target, secret).await,
        false => shard.put(target, secret).await,
    }
    .at(at)?;
    while let Some(frame) = incoming.next_under(&new.key, at).await {
        let frame = frame?;
        if let Some(size) = incoming.take_end() {
            stream.ends_at(size);
        }
        stream.write(&frame).await.at(at)?;
        intake.update(&frame).await;
    }
    let taken = intake.finish(&incoming.trailers()).await?;
    let finish = Finish {
        etag: taken.etag.clone(),
        checksum: checksum::to_blob(&taken.sums, new.key.secret()),
        condition,
    };
    let hold = new.key.hold(at)?;
    sse::held(hold, stream.commit(finish)).await.at(at)?;

    let sums = Fields::of(&taken.sums);
    let sealed = Answer::of(new.encryption.as_ref(), Some(&new.key));
    Ok(PutObjectOutput {
        e_tag: Some(etag(&taken.etag)),
        server_side_encryption: sealed.method,
        ssekms_key_id: sealed.kms_key_id,
        bucket_key_enabled: sealed.bucket_key,
        sse_customer_algorithm: sealed.customer_algorithm,
        sse_customer_key_md5: sealed.customer_key_md5,
        ssekms_encryption_context: sealed.context,
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
        ..Default::default()
    })
}
