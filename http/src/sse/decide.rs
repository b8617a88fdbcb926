//! Which mode seals a new object: the one place that decides it, and that refuses what contradicts itself.

use std::collections::BTreeMap;

use s3s::dto::ServerSideEncryption;
use s3s::{S3Error, S3Result, s3_error};
use strongroom_engine::record::{BucketEncryption, Mode};
use strongroom_kms::Context;

use super::{Asked, BUCKET_KEY, CONTEXT, CUSTOMER, CustomerKey, HEADER, KMS_KEY_ID, KeyId};
use crate::config::DefaultEncryption;
use crate::error::{element, invalid_argument};

/// How a new object is to be sealed. It holds what is private, so it has no `Debug`.
pub enum Choice {
    Plain,
    SseS3,
    SseKms(KmsChoice),
    SseC(CustomerKey),
}

/// The key, and what is bound to it.
#[derive(Default)]
pub struct KmsChoice {
    /// None means the default key.
    pub key: Option<KeyId>,
    /// The client's pairs.
    pub context: BTreeMap<String, String>,
    pub bucket_key: bool,
}

/// What bucket and server say where the request says nothing.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    pub bucket: Option<&'a BucketEncryption>,
    pub default: DefaultEncryption,
    /// Whether buckets that were never told refuse customer keys.
    pub block_sse_c: bool,
}

impl Rules<'_> {
    /// Whether new objects may not be sealed under a customer's key.
    pub fn blocks_sse_c(&self) -> bool {
        let set = self.bucket.and_then(|bucket| bucket.block_sse_c);
        set.unwrap_or(self.block_sse_c)
    }
}

/// The mode of a new object, upload or copy.
pub fn decide(asked: &Asked<'_>, rules: &Rules<'_>) -> S3Result<Choice> {
    let method = asked.text(HEADER);
    if asked.has_any(&CUSTOMER) {
        if rules.blocks_sse_c() {
            return Err(s3_error!(
                AccessDenied,
                "The bucket does not accept objects encrypted with customer-provided keys (SSE-C)."
            ));
        }
        let other = [HEADER, KMS_KEY_ID, CONTEXT]
            .into_iter()
            .find(|name| asked.text(name).is_some());
        if let Some(name) = other {
            return Err(invalid_argument(
                "Server Side Encryption with Customer provided key is incompatible with the encryption method specified",
                name,
                shown(asked, name),
            ));
        }
        if let Some(key) = CustomerKey::read(asked, &CUSTOMER)? {
            return Ok(Choice::SseC(key));
        }
    }
    let bucket_key = bucket_key(asked)?;
    let by_bucket = rules.bucket.is_some_and(|bucket| bucket.bucket_key);
    let bucket_key = bucket_key.unwrap_or(by_bucket);
    match method {
        Some(ServerSideEncryption::AWS_KMS) => {
            let key = asked.text(KMS_KEY_ID).map(KeyId::parse).transpose()?;
            Ok(Choice::SseKms(KmsChoice {
                key,
                context: context(asked)?,
                bucket_key,
            }))
        }
        Some(ServerSideEncryption::AWS_KMS_DSSE) => Err(no_dsse()),
        Some(ServerSideEncryption::AES256) => match needs_kms(asked) {
            Some(fault) => Err(fault),
            None => Ok(Choice::SseS3),
        },
        Some(other) => Err(invalid_argument(
            "The encryption method specified is not supported",
            HEADER,
            other,
        )),
        None => match needs_kms(asked) {
            Some(fault) => Err(fault),
            None => by_default(rules, bucket_key),
        },
    }
}

/// There is no second layer of encryption.
pub fn no_dsse() -> S3Error {
    let fault = s3_error!(
        NotImplemented,
        "Dual-layer encryption (aws:kms:dsse) is not implemented. Use aws:kms."
    );
    element(fault, "Header", HEADER)
}

fn by_default(rules: &Rules<'_>, bucket_key: bool) -> S3Result<Choice> {
    let kms = |key| KmsChoice {
        key,
        context: BTreeMap::new(),
        bucket_key,
    };
    Ok(match (rules.bucket.and_then(|b| b.mode), rules.default) {
        (Some(Mode::SseKms), _) => {
            let id = rules.bucket.and_then(|b| b.kms_key_id.as_deref());
            Choice::SseKms(kms(id.map(KeyId::parse).transpose()?))
        }
        (Some(Mode::SseS3), _) | (None, DefaultEncryption::SseS3) => Choice::SseS3,
        (None, DefaultEncryption::SseKms) => Choice::SseKms(kms(None)),
        (None, DefaultEncryption::None) => Choice::Plain,
        // A bucket has no key of a customer; never seal less than its configuration asks.
        (Some(Mode::SseC), _) => {
            return Err(s3_error!(
                InvalidRequest,
                "The bucket's default encryption cannot be applied."
            ));
        }
    })
}

/// The headers that only one mode has, where it was not asked for.
fn needs_kms(asked: &Asked<'_>) -> Option<S3Error> {
    let name = [KMS_KEY_ID, CONTEXT]
        .into_iter()
        .find(|name| asked.text(name).is_some())?;
    Some(invalid_argument(
        "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms",
        name,
        shown(asked, name),
    ))
}

/// The value of a header as an error may show it: contexts are private.
fn shown<'a>(asked: &Asked<'a>, name: &str) -> &'a str {
    match name {
        CONTEXT => "",
        name => asked.text(name).unwrap_or_default(),
    }
}

/// The client's context.
pub fn context(asked: &Asked<'_>) -> S3Result<BTreeMap<String, String>> {
    match asked.text(CONTEXT) {
        None => Ok(BTreeMap::new()),
        Some(header) => Context::parse_header(header).map_err(|_| {
            invalid_argument(
                "The encryption context is not base64 of a JSON object whose values are strings, or is too long.",
                CONTEXT,
                "",
            )
        }),
    }
}

/// Whether the request wants a bucket key, where it says.
pub fn bucket_key(asked: &Asked<'_>) -> S3Result<Option<bool>> {
    match asked.text(BUCKET_KEY) {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(other) => Err(invalid_argument(
            "The bucket key must be true or false.",
            BUCKET_KEY,
            other,
        )),
    }
}
