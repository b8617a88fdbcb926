//! Buckets: list, create, head, delete, and where they are.

use http::HeaderMap;
use s3s::dto::{
    Bucket, BucketLocationConstraint, CreateBucketConfiguration, CreateBucketInput,
    CreateBucketOutput, DeleteBucketInput, DeleteBucketOutput, GetBucketLocationInput,
    GetBucketLocationOutput, HeadBucketInput, HeadBucketOutput, ListBucketsInput,
    ListBucketsOutput, ObjectOwnership,
};
use s3s::{S3Request, S3Result, s3_error};
use strongroom_engine::Error;

use super::{Inner, condition, owner, paging};
use crate::error::{At, OrS3, element, engine_fault, invalid_argument, not_implemented};

/// The region that has no name in location constraints.
const US_EAST_1: &str = "us-east-1";
const BUCKETS_PAGE_MAX: i32 = 10_000;

pub async fn list_buckets(
    inner: &Inner,
    request: S3Request<ListBucketsInput>,
) -> S3Result<ListBucketsOutput> {
    let input = request.input;
    let max = match input.max_buckets {
        None => usize::MAX,
        Some(max) if (1..=BUCKETS_PAGE_MAX).contains(&max) => usize::try_from(max).unwrap_or(1),
        Some(other) => {
            return Err(invalid_argument(
                "Argument max-buckets must be an integer between 1 and 10000",
                "max-buckets",
                &other.to_string(),
            ));
        }
    };
    let after = match input.continuation_token.filter(|t| !t.is_empty()) {
        Some(token) => Some(paging::parse_token(&token)?),
        None => None,
    };
    let here = input
        .bucket_region
        .is_none_or(|region| region == inner.config.region);
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let mut matching = inner.drives.buckets().into_iter().filter(|bucket| {
        here && bucket.name.starts_with(prefix)
            && after.as_ref().is_none_or(|after| bucket.name > *after)
    });
    let page: Vec<Bucket> = matching
        .by_ref()
        .take(max)
        .map(|bucket| Bucket {
            bucket_region: Some(inner.config.region.clone()),
            creation_date: Some(condition::timestamp(bucket.created)),
            name: Some(bucket.name.clone()),
        })
        .collect();
    let more = matching.next().is_some();
    let last = page.last().and_then(|b| b.name.as_deref());
    Ok(ListBucketsOutput {
        continuation_token: last.filter(|_| more).map(paging::token),
        buckets: Some(page),
        owner: Some(owner()),
        prefix: input.prefix,
    })
}

pub async fn create_bucket(
    inner: &Inner,
    request: S3Request<CreateBucketInput>,
) -> S3Result<CreateBucketOutput> {
    let input = request.input;
    let bucket = input.bucket;
    check_location(
        input.create_bucket_configuration.as_ref(),
        &inner.config.region,
    )?;
    check_create_headers(&request.headers)?;
    if let Some(ownership) = &input.object_ownership
        && ownership.as_str() != ObjectOwnership::BUCKET_OWNER_ENFORCED
    {
        return Err(not_implemented("x-amz-object-ownership"));
    }
    match inner.drives.create_bucket(&bucket).await {
        Ok(()) => {}
        // As in the oldest region, where creating what one owns is no error.
        Err(Error::BucketExists) if inner.config.region == US_EAST_1 => {}
        Err(fault) => return Err(engine_fault(fault, At::bucket(&bucket))),
    }
    Ok(CreateBucketOutput {
        location: Some(format!("/{bucket}")),
    })
}

pub async fn head_bucket(
    inner: &Inner,
    request: S3Request<HeadBucketInput>,
) -> S3Result<HeadBucketOutput> {
    let bucket = request.input.bucket;
    inner.drives.bucket(&bucket).at(At::bucket(&bucket))?;
    Ok(HeadBucketOutput {
        bucket_region: Some(inner.config.region.clone()),
        ..Default::default()
    })
}

pub async fn delete_bucket(
    inner: &Inner,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<DeleteBucketOutput> {
    let bucket = request.input.bucket;
    inner
        .drives
        .delete_bucket(&bucket)
        .await
        .at(At::bucket(&bucket))?;
    Ok(DeleteBucketOutput::default())
}

pub async fn get_bucket_location(
    inner: &Inner,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<GetBucketLocationOutput> {
    let bucket = request.input.bucket;
    inner.drives.bucket(&bucket).at(At::bucket(&bucket))?;
    let region = match inner.config.region.as_str() {
        US_EAST_1 => "",
        region => region,
    };
    Ok(GetBucketLocationOutput {
        location_constraint: Some(BucketLocationConstraint::from(region.to_owned())),
    })
}

/// A bucket can be made here alone. Where the request names no place it means here.
fn check_location(asked: Option<&CreateBucketConfiguration>, region: &str) -> S3Result<()> {
    let Some(asked) = asked else {
        return Ok(());
    };
    if asked.bucket.is_some() || asked.location.is_some() {
        return Err(not_implemented("CreateBucketConfiguration"));
    }
    let place = asked.location_constraint.as_ref().map(|l| l.as_str());
    match place {
        None | Some("") => Ok(()),
        Some(US_EAST_1) => Err(element(
            s3_error!(
                InvalidLocationConstraint,
                "The specified location-constraint is not valid"
            ),
            "LocationConstraint",
            US_EAST_1,
        )),
        Some(place) if place == region => Ok(()),
        Some(place) => Err(element(
            s3_error!(
                IllegalLocationConstraintException,
                "The {place} location constraint is incompatible for the region specific endpoint this request was sent to."
            ),
            "LocationConstraint",
            place,
        )),
    }
}

fn check_create_headers(headers: &HeaderMap) -> S3Result<()> {
    for name in ["x-amz-bucket-object-lock-enabled", "x-amz-bucket-namespace"] {
        let off = |v: &http::HeaderValue| {
            let v = v.as_bytes();
            v.is_empty() || v.eq_ignore_ascii_case(b"false")
        };
        if headers.get(name).is_some_and(|v| !off(v)) {
            return Err(not_implemented(name));
        }
    }
    let canned = headers.get("x-amz-acl").map(|v| v.as_bytes());
    let granted = headers
        .keys()
        .any(|n| n.as_str().starts_with("x-amz-grant-"));
    if !matches!(canned, None | Some(b"" | b"private")) || granted {
        return Err(crate::error::custom(
            "InvalidBucketAclWithObjectOwnership",
            http::StatusCode::BAD_REQUEST,
            "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn code(result: S3Result<()>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    #[test]
    fn a_bucket_is_made_here_or_not_at_all() {
        let place = |place: &'static str, region| {
            let asked = CreateBucketConfiguration {
                location_constraint: Some(BucketLocationConstraint::from_static(place)),
                ..Default::default()
            };
            code(check_location(Some(&asked), region))
        };
        assert_eq!(code(check_location(None, "eu-1")), "none");
        assert_eq!(place("", "eu-1"), "none");
        assert_eq!(place("eu-1", "eu-1"), "none");
        assert_eq!(place("us-east-1", "us-east-1"), "InvalidLocationConstraint");
        assert_eq!(
            place("eu-2", "us-east-1"),
            "IllegalLocationConstraintException"
        );
    }

    #[test]
    fn what_a_bucket_cannot_have_is_refused() {
        let with = |name: &'static str, value: &'static str| {
            let pair = (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
            code(check_create_headers(&HeaderMap::from_iter([pair])))
        };
        assert_eq!(
            with("x-amz-bucket-object-lock-enabled", "true"),
            "NotImplemented"
        );
        assert_eq!(with("x-amz-bucket-object-lock-enabled", "False"), "none");
        assert_eq!(with("x-amz-acl", "private"), "none");
        assert_eq!(
            with("x-amz-acl", "public-read"),
            "InvalidBucketAclWithObjectOwnership"
        );
        assert_eq!(
            with("x-amz-grant-read", "id=x"),
            "InvalidBucketAclWithObjectOwnership"
        );
    }
}
