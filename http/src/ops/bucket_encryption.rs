//! The default encryption of a bucket.

use s3s::dto::{
    DeleteBucketEncryptionInput, DeleteBucketEncryptionOutput, GetBucketEncryptionInput,
    GetBucketEncryptionOutput, PutBucketEncryptionInput, PutBucketEncryptionOutput,
    ServerSideEncryption, ServerSideEncryptionByDefault, ServerSideEncryptionConfiguration,
    ServerSideEncryptionRule,
};
use s3s::{S3Request, S3Result, s3_error};
use strongroom_engine::record::{BucketEncryption, Mode};

use super::Inner;
use super::delete_objects::require_integrity;
use crate::config::DefaultEncryption;
use crate::error::{At, OrS3, invalid_argument, not_implemented};

pub async fn put_bucket_encryption(
    inner: &Inner,
    request: S3Request<PutBucketEncryptionInput>,
) -> S3Result<PutBucketEncryptionOutput> {
    let input = request.input;
    let at = At::bucket(&input.bucket);
    require_integrity(&request.headers)?;
    inner.shard.bucket(&input.bucket).at(at)?;
    let asked = read(&input.server_side_encryption_configuration)?;
    inner
        .shard
        .set_bucket_encryption(&input.bucket, Some(asked))
        .await
        .at(at)?;
    Ok(PutBucketEncryptionOutput::default())
}

pub async fn get_bucket_encryption(
    inner: &Inner,
    request: S3Request<GetBucketEncryptionInput>,
) -> S3Result<GetBucketEncryptionOutput> {
    let name = request.input.bucket;
    let bucket = inner.shard.bucket(&name).at(At::bucket(&name))?;
    let rule = show(bucket.encryption.as_ref(), inner.config.default_encryption)?;
    Ok(GetBucketEncryptionOutput {
        server_side_encryption_configuration: Some(ServerSideEncryptionConfiguration {
            rules: vec![rule],
        }),
    })
}

pub async fn delete_bucket_encryption(
    inner: &Inner,
    request: S3Request<DeleteBucketEncryptionInput>,
) -> S3Result<DeleteBucketEncryptionOutput> {
    let name = request.input.bucket;
    inner
        .shard
        .set_bucket_encryption(&name, None)
        .await
        .at(At::bucket(&name))?;
    Ok(DeleteBucketEncryptionOutput::default())
}

fn read(configuration: &ServerSideEncryptionConfiguration) -> S3Result<BucketEncryption> {
    let [rule] = configuration.rules.as_slice() else {
        return Err(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema"
        ));
    };
    let mode = match &rule.apply_server_side_encryption_by_default {
        None => None,
        Some(default) => match (default.sse_algorithm.as_str(), &default.kms_master_key_id) {
            (ServerSideEncryption::AES256, None) => Some(Mode::SseS3),
            (ServerSideEncryption::AES256, Some(key)) => {
                return Err(invalid_argument(
                    "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
                    "KMSMasterKeyID",
                    key,
                ));
            }
            (ServerSideEncryption::AWS_KMS | ServerSideEncryption::AWS_KMS_DSSE, _) => {
                return Err(not_implemented("SSEAlgorithm"));
            }
            _ => {
                return Err(s3_error!(
                    MalformedXML,
                    "The XML you provided was not well-formed or did not validate against our published schema"
                ));
            }
        },
    };
    Ok(BucketEncryption {
        mode,
        kms_key_id: None,
        bucket_key: rule.bucket_key_enabled.unwrap_or_default(),
        block_sse_c: None,
    })
}

/// The rule in force: the bucket's, or the server's where the bucket has none.
fn show(
    set: Option<&BucketEncryption>,
    default: DefaultEncryption,
) -> S3Result<ServerSideEncryptionRule> {
    let mode = match (set.and_then(|s| s.mode), default) {
        (Some(mode), _) => mode,
        (None, DefaultEncryption::SseS3) => Mode::SseS3,
        (None, DefaultEncryption::None) => {
            return Err(crate::error::custom(
                "ServerSideEncryptionConfigurationNotFoundError",
                http::StatusCode::NOT_FOUND,
                "The server side encryption configuration was not found",
            ));
        }
    };
    let algorithm = match mode {
        Mode::SseS3 => ServerSideEncryption::AES256,
        Mode::SseKms => ServerSideEncryption::AWS_KMS,
        Mode::SseC => return Err(not_implemented("SSEAlgorithm")),
    };
    Ok(ServerSideEncryptionRule {
        apply_server_side_encryption_by_default: Some(ServerSideEncryptionByDefault {
            kms_master_key_id: set.and_then(|s| s.kms_key_id.clone()),
            sse_algorithm: ServerSideEncryption::from_static(algorithm),
        }),
        bucket_key_enabled: Some(set.is_some_and(|s| s.bucket_key)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(algorithm: &'static str, key: Option<&str>) -> ServerSideEncryptionRule {
        ServerSideEncryptionRule {
            apply_server_side_encryption_by_default: Some(ServerSideEncryptionByDefault {
                kms_master_key_id: key.map(str::to_owned),
                sse_algorithm: ServerSideEncryption::from_static(algorithm),
            }),
            bucket_key_enabled: None,
        }
    }

    fn code<T>(result: S3Result<T>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    #[test]
    fn exactly_one_rule_that_can_be_kept() {
        let put = |rules| code(read(&ServerSideEncryptionConfiguration { rules }));
        assert_eq!(put(vec![rule("AES256", None)]), "none");
        assert_eq!(put(vec![]), "MalformedXML");
        assert_eq!(
            put(vec![rule("AES256", None), rule("AES256", None)]),
            "MalformedXML"
        );
        assert_eq!(put(vec![rule("AES256", Some("k"))]), "InvalidArgument");
        assert_eq!(put(vec![rule("aws:kms", Some("k"))]), "NotImplemented");
        assert_eq!(put(vec![rule("aws:kms:dsse", None)]), "NotImplemented");
        assert_eq!(put(vec![rule("AES128", None)]), "MalformedXML");
    }

    #[test]
    fn what_was_put_is_shown_and_else_what_is_in_force() {
        let configuration = ServerSideEncryptionConfiguration {
            rules: vec![ServerSideEncryptionRule {
                bucket_key_enabled: Some(true),
                ..rule("AES256", None)
            }],
        };
        let set = read(&configuration).expect("fine");
        for default in [DefaultEncryption::SseS3, DefaultEncryption::None] {
            let shown = show(Some(&set), default).expect("set");
            assert_eq!(shown.bucket_key_enabled, Some(true));
        }
        let unset = show(None, DefaultEncryption::SseS3).expect("in force");
        assert_eq!(unset.bucket_key_enabled, Some(false));
        let algorithm = unset.apply_server_side_encryption_by_default;
        assert_eq!(
            algorithm.expect("a default").sse_algorithm.as_str(),
            "AES256"
        );
        let fault = show(None, DefaultEncryption::None).expect_err("nothing in force");
        assert_eq!(fault.status_code().map(|s| s.as_u16()), Some(404));
    }
}
