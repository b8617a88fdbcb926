//! UploadPart: a part is sealed under a key of its own, derived from the upload's object key, with a fresh nonce each time.

use std::time::Instant;

use s3s::dto::{UploadPartInput, UploadPartOutput};
use s3s::{S3Request, S3Result, s3_error};
use strongroom_engine::record::{Metadata, Upload, UploadId};
use strongroom_engine::{PutStream, Target};

use super::create_multipart_upload::UploadChecksum;
use super::etag::EtagHasher;
use super::intake::{Incoming, Intake, Taken};
use super::{Inner, PUT_BYTES_MAX, etag, headers, parse_upload_id, part_number};
use crate::checksum::{self, Announced, Fields};
use crate::error::{At, OrS3, entity_too_large};
use crate::sse::{self, Answer, ObjectKey, access};

pub async fn upload_part(
    inner: &Inner,
    request: S3Request<UploadPartInput>,
) -> S3Result<UploadPartOutput> {
    let input = request.input;
    let at = At::upload(&input.bucket, &input.key, &input.upload_id);
    let headers = headers(&request.headers, &request.extensions);

    let number = part_number(input.part_number)?;
    let part = NewPart::find(inner, at, number).await?;
    let encryption = inner.asked(headers, &request.extensions);
    let opened = access::of_part(&encryption, part.upload.encryption.as_ref(), at)?;
    let announced = Announced::read(headers)?;
    part.check_announced(&announced)?;
    let named = announced.algorithm().or(part.named().map(|c| c.algorithm));
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
    let mode = part.upload.encryption.as_ref().map(|e| e.mode);
    let hasher = EtagHasher::new(&inner.lanes, inner.config.etag, mode, headers)?;
    let (object_key, mut stream) = part.begin(inner, opened, Instant::now(), at, size).await?;
    let mut intake = part.intake(announced, hasher);
    while let Some(frame) = incoming.next_under(&object_key, at).await {
        let frame = frame?;
        stream.write(&frame).await.at(at)?;
        intake.update(&frame).await;
    }
    let taken = intake.finish(&incoming.trailers()).await?;
    commit(stream, &taken, &object_key, at).await?;

    // What the client neither sent nor asked for at the start is kept for the object, and not shown.
    let shown: Vec<_> = taken
        .sums
        .into_iter()
        .filter(|sum| Some(sum.algorithm) == named)
        .collect();
    let sums = Fields::of(&shown);
    let sealed = Answer::of(part.upload.encryption.as_ref(), Some(&object_key));
    Ok(UploadPartOutput {
        e_tag: Some(etag(&taken.etag)),
        server_side_encryption: sealed.method,
        ssekms_key_id: sealed.kms_key_id,
        bucket_key_enabled: sealed.bucket_key,
        sse_customer_algorithm: sealed.customer_algorithm,
        sse_customer_key_md5: sealed.customer_key_md5,
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        ..Default::default()
    })
}

/// A part to be written to an open upload.
pub struct NewPart {
    pub upload: Upload,
    id: UploadId,
    number: u16,
}

impl NewPart {
    pub async fn find(inner: &Inner, at: At<'_>, number: u16) -> S3Result<Self> {
        inner.drives.bucket(at.bucket).at(at)?;
        let id = parse_upload_id(at.upload).at(at)?;
        let upload = inner
            .shard(at)?
            .upload(at.bucket, at.key, &id)
            .await
            .at(at)?;
        Ok(NewPart { upload, id, number })
    }

    /// The checksum that the upload was begun with.
    pub fn named(&self) -> Option<UploadChecksum> {
        let stored = self.upload.checksum.as_deref();
        stored.and_then(UploadChecksum::parse)
    }

    fn check_announced(&self, announced: &Announced) -> S3Result<()> {
        match (self.named(), announced.algorithm()) {
            (Some(upload), Some(part)) if upload.algorithm != part => Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                upload.algorithm.name().to_ascii_lowercase(),
                part.name().to_ascii_lowercase()
            )),
            _ => Ok(()),
        }
    }

    /// Computes what the checksum of the whole object needs, beside what was announced.
    pub fn intake(&self, announced: Announced, etag: EtagHasher) -> Intake {
        let needed = self.named().unwrap_or(UploadChecksum::DEFAULT);
        Intake::new(announced, etag, Some(needed.algorithm))
    }

    /// Opens the upload's object key, unless the request's headers did, and a stream to write the part to. `begun` is when the
    /// request first asked for a key.
    pub async fn begin(
        &self,
        inner: &Inner,
        opened: Option<ObjectKey>,
        begun: Instant,
        at: At<'_>,
        size: u64,
    ) -> S3Result<(ObjectKey, PutStream)> {
        let encryption = self.upload.encryption.as_ref();
        let open = sse::open_key(&inner.keys, encryption, opened, at);
        let object_key = sse::in_time(&inner.keys, begun, at, open).await?;
        let target = Target {
            bucket: at.bucket.to_owned(),
            key: at.key.to_owned(),
            size,
            metadata: Metadata::default(),
            encryption: None,
            part: Some((self.id, self.number)),
        };
        let stream = inner
            .shard(at)?
            .put(target, object_key.secret())
            .await
            .at(at)?;
        Ok((object_key, stream))
    }
}

/// Makes the part part of its upload, and says when.
pub async fn commit(
    stream: PutStream,
    taken: &Taken,
    object_key: &ObjectKey,
    at: At<'_>,
) -> S3Result<u64> {
    let blob = checksum::to_blob(&taken.sums, object_key.secret());
    let hold = object_key.hold(at)?;
    let commit = stream.commit_part(taken.etag.clone(), blob);
    let committed = sse::held(hold, commit).await.at(at)?;
    Ok(committed.modified)
}
