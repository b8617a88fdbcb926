//! Puts an object's key under another one. Data, ETag, time, metadata and checksums stay; nothing opens the object by the old key.

use std::rc::Rc;
use std::time::Instant;

use s3s::S3Result;
use strongroom_engine::{Error, Found};

use super::Inner;
use crate::error::{At, corrupt, engine_fault};
use crate::sse::{self, Choice, NewKey, ObjectKey};

/// Seals the object key of `found` as chosen, in a request that asked for it at `begun`. None where the object was replaced or deleted since it was found.
pub async fn rewrap(
    inner: &Inner,
    found: &Found,
    object_key: &ObjectKey,
    choice: &Choice,
    begun: Instant,
    at: At<'_>,
) -> S3Result<Option<NewKey>> {
    let secret = object_key
        .secret()
        .ok_or_else(|| corrupt("a sealed object without a key", at))?;
    let reseal = sse::reseal(&inner.keys, secret, choice, at);
    let new = sse::in_time(&inner.keys, begun, at, reseal).await?;
    let Some(encryption) = new.encryption.clone() else {
        return Err(corrupt("a sealed object that is to be opened", at));
    };
    // Under both: what is moved while its old key is taken away is gone with it.
    let holds = (object_key.hold(at)?, new.key.hold(at)?);
    let commit = {
        let shard = Rc::clone(inner.shard(at)?);
        let (bucket, key, sequence) = (at.bucket.to_owned(), at.key.to_owned(), found.sequence);
        async move {
            shard
                .set_encryption(&bucket, &key, sequence, encryption)
                .await
        }
    };
    match sse::held(holds, commit).await {
        Ok(_) => Ok(Some(new)),
        Err(Error::Conflict | Error::NoSuchKey) => Ok(None),
        Err(fault) => Err(engine_fault(fault, at)),
    }
}
