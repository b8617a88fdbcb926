//! The default encryption of a bucket, and whether it accepts customers' keys.
//!
//! PUT and GET come by [`routes`](super::routes): the S3 layer's types lack `BlockedEncryptionTypes`.

use http::HeaderMap;
use s3s::dto::{DeleteBucketEncryptionInput, DeleteBucketEncryptionOutput};
use s3s::{S3Request, S3Result};
use strongroom_engine::record::{BucketEncryption, Mode};

use super::Inner;
use super::delete_objects::require_integrity;
use crate::config::DefaultEncryption;
use crate::error::{At, OrS3};
use crate::sse::{Rules, xml};

/// Sets all but what the body leaves out of blocked modes.
pub async fn put_bucket_encryption(
    inner: &Inner,
    bucket: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> S3Result<()> {
    let at = At::bucket(bucket);
    require_integrity(headers)?;
    inner.drives.bucket(bucket).at(at)?;
    let asked = xml::read_bucket(body)?;
    inner
        .drives
        .set_bucket_encryption(bucket, Some(asked))
        .await
        .at(at)
}

/// The rule in force: the bucket's, or the server's where the bucket has none.
pub fn get_bucket_encryption(inner: &Inner, bucket: &str) -> S3Result<Vec<u8>> {
    let bucket = inner.drives.bucket(bucket).at(At::bucket(bucket))?;
    xml::write_bucket(&in_force(&inner.rules(&bucket))?)
}

/// Takes the default away. What is blocked stays blocked.
pub async fn delete_bucket_encryption(
    inner: &Inner,
    request: S3Request<DeleteBucketEncryptionInput>,
) -> S3Result<DeleteBucketEncryptionOutput> {
    let name = request.input.bucket;
    inner
        .drives
        .set_bucket_encryption(&name, None)
        .await
        .at(At::bucket(&name))?;
    Ok(DeleteBucketEncryptionOutput::default())
}

fn in_force(rules: &Rules<'_>) -> S3Result<BucketEncryption> {
    let set = rules.bucket.cloned();
    let by_default = match rules.default {
        DefaultEncryption::SseS3 => Some(Mode::SseS3),
        DefaultEncryption::SseKms => Some(Mode::SseKms),
        DefaultEncryption::None => None,
    };
    if set.is_none() && by_default.is_none() {
        return Err(crate::error::custom(
            "ServerSideEncryptionConfigurationNotFoundError",
            http::StatusCode::NOT_FOUND,
            "The server side encryption configuration was not found",
        ));
    }
    let set = set.unwrap_or_default();
    Ok(BucketEncryption {
        mode: set.mode.or(by_default),
        block_sse_c: Some(rules.blocks_sse_c()),
        ..set
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bucket: Option<&BucketEncryption>, default: DefaultEncryption) -> String {
        let rules = Rules {
            bucket,
            default,
            block_sse_c: false,
        };
        match in_force(&rules) {
            Ok(rule) => format!("{:?} {:?}", rule.mode, rule.block_sse_c),
            Err(fault) => fault.code().as_str().to_owned(),
        }
    }

    #[test]
    fn what_was_put_is_shown_and_else_what_is_in_force() {
        use DefaultEncryption as D;
        let set = BucketEncryption {
            mode: Some(Mode::SseKms),
            block_sse_c: Some(true),
            ..Default::default()
        };
        let blocks_only = BucketEncryption {
            block_sse_c: Some(true),
            ..Default::default()
        };
        for (bucket, default, expected) in [
            (None, D::SseS3, "Some(SseS3) Some(false)"),
            (None, D::SseKms, "Some(SseKms) Some(false)"),
            (
                None,
                D::None,
                "ServerSideEncryptionConfigurationNotFoundError",
            ),
            (Some(&set), D::SseS3, "Some(SseKms) Some(true)"),
            (Some(&set), D::None, "Some(SseKms) Some(true)"),
            (Some(&blocks_only), D::SseS3, "Some(SseS3) Some(true)"),
            (Some(&blocks_only), D::None, "None Some(true)"),
        ] {
            assert_eq!(shown(bucket, default), expected);
        }
        let rules = Rules {
            bucket: None,
            default: D::SseS3,
            block_sse_c: true,
        };
        assert_eq!(in_force(&rules).expect("in force").block_sse_c, Some(true));
    }
}
