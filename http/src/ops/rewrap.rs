//! Puts an object's key under another one. Data, ETag, time, metadata and checksums stay; nothing opens the object by the old key.

use s3s::S3Result;
use strongroom_engine::{Error, Found};

use super::Inner;
use crate::error::{At, corrupt, engine_fault};
use crate::sse::{self, Choice, NewKey, ObjectKey};

/// Seals the object key of `found` as chosen. None where the object was replaced or deleted since it was found.
pub async fn rewrap(
    inner: &Inner,
    found: &Found,
    object_key: &ObjectKey,
    choice: &Choice,
    at: At<'_>,
) -> S3Result<Option<NewKey>> {
    let secret = object_key
        .secret()
        .ok_or_else(|| corrupt("a sealed object without a key", at))?;
    let new = sse::reseal(&inner.keys, secret, choice, at).await?;
    let Some(encryption) = new.encryption.clone() else {
        return Err(corrupt("a sealed object that is to be opened", at));
    };
    // Under both: what is moved while its old key is taken away is gone with it.
    let holds = (object_key.hold(at)?, new.key.hold(at)?);
    let outcome = inner
        .shard
        .set_encryption(at.bucket, at.key, found.sequence, encryption)
        .await;
    drop(holds);
    match outcome {
        Ok(_) => Ok(Some(new)),
        Err(Error::Conflict | Error::NoSuchKey) => Ok(None),
        Err(fault) => Err(engine_fault(fault, at)),
    }
}
