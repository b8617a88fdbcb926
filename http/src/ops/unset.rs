//! Reads of what nobody can set here: each answers as S3 does for a bucket or object on which it was never set.
//!
//! Clients take these very codes to mean "unset"; the writes are not implemented and answer 501.

use http::StatusCode;
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Result, s3_error};

use super::{Inner, check_version, owner};
use crate::error::{At, OrS3, custom, element, not_implemented};

/// An operation on a bucket: there has to be one.
macro_rules! of_bucket {
    ($($operation:ident($input:ident) -> $output:ident = $answer:expr;)+) => {
        $(
            pub async fn $operation(inner: &Inner, request: S3Request<$input>) -> S3Result<$output> {
                let bucket = request.input.bucket;
                inner.drives.bucket(&bucket).at(At::bucket(&bucket))?;
                let answer: fn(&str) -> S3Result<$output> = $answer;
                answer(&bucket)
            }
        )+
    };
}

of_bucket! {
    get_bucket_accelerate_configuration(GetBucketAccelerateConfigurationInput) -> GetBucketAccelerateConfigurationOutput =
        |_| Ok(Default::default());
    get_bucket_acl(GetBucketAclInput) -> GetBucketAclOutput =
        |_| Ok(GetBucketAclOutput { grants: Some(grants()), owner: Some(owner()) });
    get_bucket_cors(GetBucketCorsInput) -> GetBucketCorsOutput =
        |bucket| Err(unset("NoSuchCORSConfiguration", "The CORS configuration does not exist", bucket));
    get_bucket_lifecycle_configuration(GetBucketLifecycleConfigurationInput) -> GetBucketLifecycleConfigurationOutput =
        |bucket| Err(unset("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist", bucket));
    get_bucket_logging(GetBucketLoggingInput) -> GetBucketLoggingOutput =
        |_| Ok(Default::default());
    get_bucket_notification_configuration(GetBucketNotificationConfigurationInput) -> GetBucketNotificationConfigurationOutput =
        |_| Ok(Default::default());
    get_bucket_ownership_controls(GetBucketOwnershipControlsInput) -> GetBucketOwnershipControlsOutput =
        |bucket| Err(unset("OwnershipControlsNotFoundError", "The bucket ownership controls were not found", bucket));
    get_bucket_policy(GetBucketPolicyInput) -> GetBucketPolicyOutput =
        |bucket| Err(unset("NoSuchBucketPolicy", "The bucket policy does not exist", bucket));
    get_bucket_policy_status(GetBucketPolicyStatusInput) -> GetBucketPolicyStatusOutput =
        |bucket| Err(unset("NoSuchBucketPolicy", "The bucket policy does not exist", bucket));
    get_bucket_replication(GetBucketReplicationInput) -> GetBucketReplicationOutput =
        |bucket| Err(unset("ReplicationConfigurationNotFoundError", "The replication configuration was not found", bucket));
    get_bucket_request_payment(GetBucketRequestPaymentInput) -> GetBucketRequestPaymentOutput =
        |_| Ok(GetBucketRequestPaymentOutput { payer: Some(Payer::from_static(Payer::BUCKET_OWNER)) });
    get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput =
        |bucket| Err(unset("NoSuchTagSet", "The TagSet does not exist", bucket));
    get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput =
        |_| Ok(Default::default());
    get_bucket_website(GetBucketWebsiteInput) -> GetBucketWebsiteOutput =
        |bucket| Err(unset("NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration", bucket));
    get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput =
        |bucket| Err(unset("ObjectLockConfigurationNotFoundError", "Object Lock configuration does not exist for this bucket", bucket));
    get_public_access_block(GetPublicAccessBlockInput) -> GetPublicAccessBlockOutput =
        |bucket| Err(unset("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found", bucket));
    get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput =
        |_| Err(no_lock());
    get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput =
        |_| Err(no_lock());
}

pub async fn get_object_acl(
    inner: &Inner,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<GetObjectAclOutput> {
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    check_object(inner, &input.bucket, &input.key).await?;
    Ok(GetObjectAclOutput {
        grants: Some(grants()),
        owner: Some(owner()),
        request_charged: None,
    })
}

pub async fn get_object_tagging(
    inner: &Inner,
    request: S3Request<GetObjectTaggingInput>,
) -> S3Result<GetObjectTaggingOutput> {
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    check_object(inner, &input.bucket, &input.key).await?;
    Ok(GetObjectTaggingOutput {
        tag_set: Vec::new(),
        version_id: None,
    })
}

/// Forms never come this far: the S3 layer would gather a whole file in memory.
pub async fn post_object(_: &Inner, _: S3Request<PostObjectInput>) -> S3Result<PostObjectOutput> {
    Err(not_implemented("Content-Type"))
}

async fn check_object(inner: &Inner, bucket: &str, key: &str) -> S3Result<()> {
    let at = At::object(bucket, key);
    let found = inner.shard(at)?.lookup(bucket, key).await;
    found.map(drop).at(at)
}

/// The owner may do everything, and nobody else anything.
fn grants() -> Vec<Grant> {
    vec![Grant {
        grantee: Some(Grantee {
            display_name: None,
            email_address: None,
            id: owner().id,
            type_: Type::from_static(Type::CANONICAL_USER),
            uri: None,
        }),
        permission: Some(Permission::from_static(Permission::FULL_CONTROL)),
    }]
}

fn unset(code: &'static str, message: &'static str, bucket: &str) -> S3Error {
    let fault = custom(code, StatusCode::NOT_FOUND, message);
    element(fault, "BucketName", bucket)
}

fn no_lock() -> S3Error {
    s3_error!(
        InvalidRequest,
        "Bucket is missing Object Lock Configuration"
    )
}
