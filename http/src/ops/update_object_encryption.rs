//! UpdateObjectEncryption (`PUT /bucket/key?encryption`): moves an object to another key of the key service, or from the server's key
//! to one, without touching its data. ETag, time, metadata and checksums stay; the client's encryption context stays bound.
//!
//! An ETag that was an MD5 stays one, as on S3, although new objects under SSE-KMS get none: clients know it, and it stands with the
//! rest of the metadata under the store key. What must not outlive the named key with its object is copied onto itself instead.

use std::time::Instant;

use http::HeaderMap;
use s3s::{S3Result, s3_error};
use strongroom_engine::Error;
use strongroom_engine::record::Mode;

use super::delete_objects::require_integrity;
use super::rewrap::rewrap;
use super::{Inner, check_version};
use crate::error::{At, OrS3, engine_fault};
use crate::service::guard::Place;
use crate::sse::{self, Choice, KmsChoice, xml};

/// How often an object that is replaced meanwhile is looked up again.
const TRIES: usize = 8;

pub async fn update_object_encryption(
    inner: &Inner,
    place: &Place,
    version: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> S3Result<()> {
    let at = At::object(&place.bucket, &place.key);
    check_version(version)?;
    require_integrity(headers)?;
    inner.drives.bucket(at.bucket).at(at)?;
    let to = xml::read_object(body)?;
    let begun = Instant::now();
    for _ in 0..TRIES {
        let found = inner.shard(at)?.lookup(at.bucket, at.key).await.at(at)?;
        let encryption = match &found.object.encryption {
            Some(e) if e.mode != Mode::SseC => e,
            Some(_) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The encryption of an object under a customer-provided key (SSE-C) cannot be updated."
                ));
            }
            None => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The encryption of an object that is not encrypted cannot be updated."
                ));
            }
        };
        let open = sse::open_key(&inner.keys, Some(encryption), None, at);
        let object_key = sse::in_time(&inner.keys, begun, at, open).await?;
        let context = encryption.kms.as_ref().map(|kms| kms.context.clone());
        let choice = Choice::SseKms(KmsChoice {
            key: Some(to.key.clone()),
            context: context.unwrap_or_default(),
            bucket_key: to.bucket_key,
        });
        let rewrapped = rewrap(inner, &found, &object_key, &choice, begun, at).await?;
        if rewrapped.is_some() {
            return Ok(());
        }
        // Replaced meanwhile: it is another object now.
    }
    Err(engine_fault(Error::Conflict, at))
}
