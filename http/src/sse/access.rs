//! What a request has to bring to get at what is stored: reads, the source of a copy, parts, and completions.
//!
//! A customer's key is tried here, before conditions are decided or a byte is read. What the key service holds is opened later, by
//! [`open_key`](super::open_key), and only where it is needed.

use s3s::{S3Error, S3Result, s3_error};
use strongroom_engine::record::{Encryption, Mode};

use super::customer::{self, CustomerKey};
use super::{
    Asked, BUCKET_KEY, CONTEXT, COPY_SOURCE_CUSTOMER, CUSTOMER, CustomerHeaders, HEADER,
    KMS_KEY_ID, KeyId, ObjectKey, answer, decide,
};
use crate::error::{At, invalid_argument};

/// What a GET, HEAD or GetObjectAttributes brings. The object's key, where the request's own headers open it.
pub fn of_read(
    asked: &Asked<'_>,
    encryption: Option<&Encryption>,
    at: At<'_>,
) -> S3Result<Option<ObjectKey>> {
    if encryption.is_some()
        && let Some(value) = asked.text(HEADER)
    {
        return Err(unsupported(HEADER, value));
    }
    by_customer(asked, &CUSTOMER, encryption, at)
}

/// The same for the source of a copy.
pub fn of_copy_source(
    asked: &Asked<'_>,
    encryption: Option<&Encryption>,
    at: At<'_>,
) -> S3Result<Option<ObjectKey>> {
    by_customer(asked, &COPY_SOURCE_CUSTOMER, encryption, at)
}

fn by_customer(
    asked: &Asked<'_>,
    names: &CustomerHeaders,
    encryption: Option<&Encryption>,
    at: At<'_>,
) -> S3Result<Option<ObjectKey>> {
    let key = CustomerKey::read(asked, names)?;
    let sealed = encryption.filter(|e| e.mode == Mode::SseC);
    match (sealed, key) {
        (Some(sealed), Some(key)) => match ObjectKey::of_customer(&key, sealed, at) {
            Some(object_key) => Ok(Some(object_key)),
            None => Err(customer::wrong()),
        },
        (Some(_), None) => Err(customer::missing()),
        (None, Some(_)) => Err(customer::not_applicable()),
        (None, None) => Ok(None),
    }
}

/// What a part brings: the customer's key that its upload was begun with. Other encryption headers are refused by S3; here they
/// may say again what the upload said, because clients do.
pub fn of_part(
    asked: &Asked<'_>,
    encryption: Option<&Encryption>,
    at: At<'_>,
) -> S3Result<Option<ObjectKey>> {
    check_agrees(asked, encryption)?;
    let key = CustomerKey::read(asked, &CUSTOMER)?;
    let sealed = encryption.filter(|e| e.mode == Mode::SseC);
    match (sealed, key) {
        (Some(sealed), Some(key)) => match ObjectKey::of_customer(&key, sealed, at) {
            Some(object_key) => Ok(Some(object_key)),
            None => Err(s3_error!(
                InvalidRequest,
                "The provided encryption parameters did not match the ones used originally."
            )),
        },
        (Some(_), None) => Err(part_needs_key()),
        (None, Some(_)) => Err(s3_error!(
            InvalidRequest,
            "The multipart upload initiate did not request encryption with a customer-provided key. Please resend the request without sending encryption parameters."
        )),
        (None, None) => Ok(None),
    }
}

/// What a completion or a list of parts may bring: as a part, but a customer's key is needed only by what turns out to need it.
pub fn of_upload(
    asked: &Asked<'_>,
    encryption: Option<&Encryption>,
    at: At<'_>,
) -> S3Result<Unlocked> {
    let by_customer = encryption.is_some_and(|e| e.mode == Mode::SseC);
    if by_customer && !asked.has_any(&CUSTOMER) {
        check_agrees(asked, encryption)?;
        return Ok(Unlocked::Locked);
    }
    of_part(asked, encryption, at).map(|key| match key {
        Some(key) => Unlocked::Key(key),
        None => Unlocked::ByService,
    })
}

/// How the key of an upload is to be had.
pub enum Unlocked {
    /// The request opened it.
    Key(ObjectKey),
    /// The key service opens it, or there is none.
    ByService,
    /// Only the customer's key opens it, and the request has none.
    Locked,
}

/// A part or a completion needs the customer's key of its upload.
pub fn part_needs_key() -> S3Error {
    s3_error!(
        InvalidRequest,
        "The multipart upload initiate requested encryption. Subsequent part requests must include the appropriate encryption parameters."
    )
}

/// Refuses headers that say otherwise than the upload.
fn check_agrees(asked: &Asked<'_>, encryption: Option<&Encryption>) -> S3Result<()> {
    let kms = encryption
        .filter(|e| e.mode == Mode::SseKms)
        .and_then(|e| e.kms.as_ref());
    if let Some(method) = asked.text(HEADER)
        && answer::method(encryption) != Some(method)
    {
        return Err(unsupported(HEADER, method));
    }
    if let Some(id) = asked.text(KMS_KEY_ID) {
        let name = KeyId::parse(id)?;
        if kms.is_none_or(|kms| kms.name != name.name()) {
            return Err(unsupported(KMS_KEY_ID, id));
        }
    }
    if asked.text(CONTEXT).is_some() {
        let context = decide::context(asked)?;
        if kms.is_none_or(|kms| kms.context != context) {
            return Err(unsupported(CONTEXT, ""));
        }
    }
    if let Some(wanted) = decide::bucket_key(asked)?
        && kms.is_some_and(|kms| kms.bucket_key) != wanted
    {
        return Err(unsupported(
            BUCKET_KEY,
            if wanted { "true" } else { "false" },
        ));
    }
    Ok(())
}

fn unsupported(name: &'static str, value: &str) -> S3Error {
    let message = match name {
        HEADER => "x-amz-server-side-encryption header is not supported for this operation.",
        _ => "An encryption header is not supported for this operation.",
    };
    invalid_argument(message, name, value)
}
