//! The S3 operations on one core, one a file: translate, call engine and key service, translate back.
//!
//! [`Store`] is what s3s calls. All it holds is bound to the thread of its core, while s3s wants futures that can be sent: each is
//! wrapped, and polled on this thread alone.
//!
//! - A read verifies before it answers: the first package is opened before there is a status line.
//! - A write asks for everything that can refuse it before it reads a byte of the body.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{Extensions, HeaderMap, Method, StatusCode};
use s3s::dto::*;
use s3s::route::S3Route;
use s3s::{Body, S3, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;
use strongroom_engine::record::{self, UploadId};
use strongroom_engine::{Drives, Shard};
use strongroom_kms::Keys;

use crate::auth;
use crate::config;
use crate::error::{At, OrS3, invalid_argument};
use crate::limits;
use crate::sse::{Asked, Rules};

pub mod etag;
pub mod lenient;
pub mod uri;

mod abort_multipart_upload;
mod bucket_encryption;
mod buckets;
mod complete_multipart_upload;
mod condition;
mod copy;
mod copy_object;
mod create_multipart_upload;
mod delete_object;
mod delete_objects;
mod downloads;
mod get_object;
mod get_object_attributes;
mod intake;
mod lanes;
mod list_multipart_uploads;
mod list_objects;
mod list_parts;
mod metadata;
mod paging;
mod put_object;
mod range;
mod rewrap;
mod routes;
mod unset;
mod update_object_encryption;
mod upload_part;
mod upload_part_copy;

/// Bytes of a key.
pub use strongroom_engine::KEY_BYTES_MAX;

/// Largest object of a single PUT, largest part, and largest source of a copy.
pub const PUT_BYTES_MAX: u64 = strongroom_engine::STREAM_BYTES_MAX;
/// Smallest part, but for the last.
pub const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
pub const PARTS_MAX: u16 = strongroom_engine::PARTS_MAX;
/// Entries of one page of a list, and keys of one DeleteObjects.
pub const LIST_MAX: usize = 1000;

const _: () = {
    assert!(PUT_BYTES_MAX == 5 << 30);
    assert!(PART_BYTES_MIN < PUT_BYTES_MAX);
};

/// What the operations need to know of the server.
#[derive(Debug, Clone)]
pub struct Config {
    pub region: String,
    pub etag: config::Etag,
    pub default_encryption: config::DefaultEncryption,
    pub block_sse_c: bool,
    pub allow_sse_c_without_tls: bool,
}

impl Config {
    pub fn of(options: &config::Serve) -> Self {
        Config {
            region: options.region.clone(),
            etag: options.etag,
            default_encryption: options.default_encryption(),
            block_sse_c: options.block_sse_c,
            allow_sse_c_without_tls: options.allow_sse_c_without_tls,
        }
    }
}

/// The S3 service of one core.
pub struct Store {
    inner: SendWrapper<Rc<Inner>>,
}

struct Inner {
    drives: Rc<Drives>,
    keys: Rc<Keys>,
    config: Config,
    lanes: lanes::Lanes,
    downloads: downloads::Downloads,
}

impl Inner {
    /// Where the object lies.
    fn shard(&self, at: At<'_>) -> S3Result<&Rc<Shard>> {
        self.drives.of(at.bucket, at.key).at(at)
    }

    /// What a request says of encryption.
    fn asked<'a>(&self, headers: &'a HeaderMap, extensions: &Extensions) -> Asked<'a> {
        Asked::new(headers, extensions, self.config.allow_sse_c_without_tls)
    }

    /// What is said of new objects of a bucket, where the request says nothing.
    fn rules<'a>(&self, bucket: &'a record::Bucket) -> Rules<'a> {
        Rules {
            bucket: bucket.encryption.as_ref(),
            default: self.config.default_encryption,
            block_sse_c: self.config.block_sse_c,
        }
    }
}

impl Store {
    /// To be made and used on the thread of these drives.
    pub fn new(drives: Rc<Drives>, keys: Rc<Keys>, config: Config) -> Self {
        Store {
            inner: SendWrapper::new(Rc::new(Inner {
                drives,
                keys,
                config,
                lanes: lanes::Lanes::default(),
                downloads: downloads::Downloads::default(),
            })),
        }
    }
}

impl Store {
    /// Lets no download outlive its key, also while its client does not read. Never ends.
    pub async fn watch_downloads(&self) {
        loop {
            glommio::timer::sleep(limits::KEY_CHECK).await;
            self.inner.downloads.sweep();
        }
    }

    /// Breaks all downloads off: the store is about to be locked.
    pub fn end_downloads(&self) {
        self.inner.downloads.end_all();
    }

    /// What the S3 layer does not route to the operations itself.
    pub fn routes(&self) -> Vec<Arc<dyn S3Route>> {
        vec![Arc::new(routes::Encryption::new(self.clone()))]
    }
}

impl Clone for Store {
    fn clone(&self) -> Self {
        Store {
            inner: SendWrapper::new(Rc::clone(&self.inner)),
        }
    }
}

macro_rules! operations {
    ($($module:ident: $($operation:ident($input:ident) -> $output:ident),+;)+) => {
        #[async_trait::async_trait]
        impl S3 for Store {
            $($(
                async fn $operation(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    auth::check_owner(&request.headers)?;
                    let run = SendWrapper::new({
                        let inner = Rc::clone(&self.inner);
                        async move { $module::$operation(&inner, request).await }
                    });
                    run.await.map(S3Response::new)
                }
            )+)+
        }
    };
}

operations! {
    buckets:
        list_buckets(ListBucketsInput) -> ListBucketsOutput,
        create_bucket(CreateBucketInput) -> CreateBucketOutput,
        head_bucket(HeadBucketInput) -> HeadBucketOutput,
        delete_bucket(DeleteBucketInput) -> DeleteBucketOutput,
        get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput;
    bucket_encryption:
        delete_bucket_encryption(DeleteBucketEncryptionInput) -> DeleteBucketEncryptionOutput;
    unset:
        get_bucket_accelerate_configuration(GetBucketAccelerateConfigurationInput) -> GetBucketAccelerateConfigurationOutput,
        get_bucket_acl(GetBucketAclInput) -> GetBucketAclOutput,
        get_bucket_cors(GetBucketCorsInput) -> GetBucketCorsOutput,
        get_bucket_lifecycle_configuration(GetBucketLifecycleConfigurationInput) -> GetBucketLifecycleConfigurationOutput,
        get_bucket_logging(GetBucketLoggingInput) -> GetBucketLoggingOutput,
        get_bucket_notification_configuration(GetBucketNotificationConfigurationInput) -> GetBucketNotificationConfigurationOutput,
        get_bucket_ownership_controls(GetBucketOwnershipControlsInput) -> GetBucketOwnershipControlsOutput,
        get_bucket_policy(GetBucketPolicyInput) -> GetBucketPolicyOutput,
        get_bucket_policy_status(GetBucketPolicyStatusInput) -> GetBucketPolicyStatusOutput,
        get_bucket_replication(GetBucketReplicationInput) -> GetBucketReplicationOutput,
        get_bucket_request_payment(GetBucketRequestPaymentInput) -> GetBucketRequestPaymentOutput,
        get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput,
        get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput,
        get_bucket_website(GetBucketWebsiteInput) -> GetBucketWebsiteOutput,
        get_object_acl(GetObjectAclInput) -> GetObjectAclOutput,
        get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput,
        get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput,
        get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput,
        get_object_tagging(GetObjectTaggingInput) -> GetObjectTaggingOutput,
        get_public_access_block(GetPublicAccessBlockInput) -> GetPublicAccessBlockOutput,
        post_object(PostObjectInput) -> PostObjectOutput;
    put_object:
        put_object(PutObjectInput) -> PutObjectOutput;
    get_object:
        get_object(GetObjectInput) -> GetObjectOutput,
        head_object(HeadObjectInput) -> HeadObjectOutput;
    get_object_attributes:
        get_object_attributes(GetObjectAttributesInput) -> GetObjectAttributesOutput;
    delete_object:
        delete_object(DeleteObjectInput) -> DeleteObjectOutput;
    delete_objects:
        delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput;
    copy_object:
        copy_object(CopyObjectInput) -> CopyObjectOutput;
    list_objects:
        list_objects(ListObjectsInput) -> ListObjectsOutput,
        list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
    create_multipart_upload:
        create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    upload_part:
        upload_part(UploadPartInput) -> UploadPartOutput;
    upload_part_copy:
        upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput;
    complete_multipart_upload:
        complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    abort_multipart_upload:
        abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
    list_parts:
        list_parts(ListPartsInput) -> ListPartsOutput;
    list_multipart_uploads:
        list_multipart_uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput;
}

/// Sets right what s3s does otherwise than S3.
pub fn finish(method: &Method, response: &mut http::Response<Body>) {
    let partial = response.headers().contains_key(CONTENT_RANGE);
    if method == Method::HEAD && partial && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let kind = response.headers().get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind == "application/xml")
        && let Some(xml) = response.body().bytes()
        && let Some(xml) = correct_xml(&xml)
    {
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Body::from(xml);
    }
}

/// Control characters as references, lest a reader loses them; and the one ETag that S3 writes without quotes. None where
/// nothing is to be changed.
fn correct_xml(xml: &[u8]) -> Option<Vec<u8>> {
    let control = |b: &u8| *b < b' ' && !matches!(b, b'\n' | b'\t');
    let root = &xml[..xml.len().min(ROOT_BYTES_MAX)];
    let bare_etag = find(root, b"<GetObjectAttributesResponse").and_then(|_| {
        let from = find(xml, ETAG)? + ETAG.len();
        let to = from + find(&xml[from..], b"</ETag>")?;
        Some(from..to)
    });
    if bare_etag.is_none() && !xml.iter().any(control) {
        return None;
    }
    let quoted = bare_etag.unwrap_or(0..0);
    let mut out = Vec::with_capacity(xml.len() + 64);
    out.extend_from_slice(&xml[..quoted.start]);
    let etag = String::from_utf8_lossy(&xml[quoted.clone()]);
    out.extend_from_slice(etag.replace("&quot;", "").replace('"', "").as_bytes());
    for byte in &xml[quoted.end..] {
        match control(byte) {
            true => out.extend_from_slice(format!("&#{byte};").as_bytes()),
            false => out.push(*byte),
        }
    }
    Some(out)
}

const ETAG: &[u8] = b"<ETag>";
/// The name of a document's root stands within its first bytes.
const ROOT_BYTES_MAX: usize = 128;

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// The headers that the client sent, those included that are hidden from s3s.
fn headers<'a>(headers: &'a HeaderMap, extensions: &'a Extensions) -> &'a HeaderMap {
    extensions
        .get::<lenient::Original>()
        .map_or(headers, |original| &original.0)
}

/// There are no versions: only the one that `null` names.
fn check_version(version: Option<&str>) -> S3Result<()> {
    match version {
        None | Some("null") => Ok(()),
        Some(other) => Err(invalid_argument(
            "Invalid version id specified",
            "versionId",
            other,
        )),
    }
}

/// The id of an upload; one that is none of ours names no upload.
fn parse_upload_id(id: &str) -> Result<UploadId, strongroom_engine::Error> {
    UploadId::parse(id).ok_or(strongroom_engine::Error::NoSuchUpload)
}

fn part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|n| (1..=PARTS_MAX).contains(n))
        .ok_or_else(|| {
            invalid_argument(
                "Part number must be an integer between 1 and 10000, inclusive",
                "partNumber",
                &number.to_string(),
            )
        })
}

fn etag(tag: &str) -> ETag {
    ETag::Strong(tag.to_owned())
}

fn owner() -> Owner {
    Owner {
        display_name: None,
        id: Some(auth::OWNER_ID.into()),
    }
}

/// Lengths in S3's types; none is longer than what they hold.
fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_keeps_control_characters_and_loses_the_quotes_of_one_etag() {
        let correct = |xml: &str| {
            correct_xml(xml.as_bytes()).map(|xml| String::from_utf8(xml).expect("text"))
        };
        assert_eq!(correct("<a>\n\t x</a>"), None);
        assert_eq!(
            correct("<a>x\r\u{1}</a>").as_deref(),
            Some("<a>x&#13;&#1;</a>")
        );
        assert_eq!(
            correct("<CopyObjectResult><ETag>&quot;e&quot;</ETag>"),
            None
        );
        for quote in ["&quot;", "\""] {
            let head = "<GetObjectAttributesResponse><ETag>";
            let tail = "</ETag><a>&quot;</a></GetObjectAttributesResponse>";
            let seen = correct(&format!("{head}{quote}e-1{quote}{tail}"));
            assert_eq!(seen, Some(format!("{head}e-1{tail}")));
        }
    }

    #[test]
    fn an_answer_to_head_with_a_range_is_partial() {
        let status = |method, range: bool| {
            let mut response = http::Response::new(Body::empty());
            if range {
                let value = http::HeaderValue::from_static("bytes 0-1/2");
                response.headers_mut().insert(CONTENT_RANGE, value);
            }
            finish(&method, &mut response);
            response.status().as_u16()
        };
        assert_eq!(status(Method::HEAD, true), 206);
        assert_eq!(status(Method::HEAD, false), 200);
    }
}
