//! The one place that says which S3 error a fault becomes, and what of it a client may see.
//!
//! - Every variant of every fault is named: a new one does not compile until somebody decides what clients are told.
//! - A fault of ours is logged here with its place; the client reads only that there was one.
//! - s3s writes no XML elements beyond code and message. The further ones that S3 sends travel in a private response header
//!   ([`ELEMENT`]), from where the service moves them into the body.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use strongroom_engine as engine;
use strongroom_kms as kms;

use crate::body::BodyError;
use crate::ops::uri::percent_encode;
use crate::service::reply::ELEMENT;

/// What a fault was about.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub upload: &'a str,
}

impl<'a> At<'a> {
    pub fn bucket(bucket: &'a str) -> Self {
        Self::object(bucket, "")
    }

    pub fn object(bucket: &'a str, key: &'a str) -> Self {
        At {
            bucket,
            key,
            upload: "",
        }
    }

    pub fn upload(bucket: &'a str, key: &'a str, upload: &'a str) -> Self {
        At {
            bucket,
            key,
            upload,
        }
    }
}

/// Faults as S3 errors.
pub trait OrS3<T> {
    fn at(self, at: At<'_>) -> S3Result<T>;
}

impl<T> OrS3<T> for Result<T, engine::Error> {
    fn at(self, at: At<'_>) -> S3Result<T> {
        self.map_err(|e| engine_fault(e, at))
    }
}

impl<T> OrS3<T> for Result<T, kms::Error> {
    fn at(self, at: At<'_>) -> S3Result<T> {
        self.map_err(|e| kms_fault(e, at))
    }
}

/// An engine fault as the client sees it.
pub fn engine_fault(fault: engine::Error, at: At<'_>) -> S3Error {
    use engine::Error as E;
    match fault {
        E::NoSuchBucket => element(
            s3_error!(NoSuchBucket, "The specified bucket does not exist"),
            "BucketName",
            at.bucket,
        ),
        E::NoSuchKey => no_such_key(at.key),
        E::NoSuchUpload => element(
            s3_error!(
                NoSuchUpload,
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."
            ),
            "UploadId",
            at.upload,
        ),
        E::BucketExists => element(
            s3_error!(
                BucketAlreadyOwnedByYou,
                "Your previous request to create the named bucket succeeded and you already own it."
            ),
            "BucketName",
            at.bucket,
        ),
        E::BucketNotEmpty => element(
            s3_error!(
                BucketNotEmpty,
                "The bucket you tried to delete is not empty"
            ),
            "BucketName",
            at.bucket,
        ),
        E::PreconditionFailed { condition } => precondition_failed(condition),
        E::Conflict => s3_error!(
            ConditionalRequestConflict,
            "The conditional request cannot succeed due to a conflicting operation against this resource."
        ),
        E::Replaced => s3_error!(
            SlowDown,
            "The object was replaced while the request was under way. Please try again."
        ),
        E::KeyRetired => s3_error!(
            ServiceUnavailable,
            "The key was rotated while the request was under way. Please try again."
        ),
        E::InvalidPart { number } => invalid_part(at.upload, i32::from(number), None),
        E::WrongLength { .. } => s3_error!(
            IncompleteBody,
            "You did not provide the number of bytes specified by the Content-Length HTTP header"
        ),
        E::TooLarge { what, got, max } => too_large(what, got, max),
        E::Overloaded { what } => {
            tracing::warn!(what, "told a client to slow down");
            s3_error!(SlowDown, "Please reduce your request rate.")
        }
        E::DiskFull => custom(
            "InsufficientStorage",
            StatusCode::INSUFFICIENT_STORAGE,
            "The server has no space left for this object.",
        ),
        E::DriveMissing(directory) => S3Error::with_message(
            S3ErrorCode::ServiceUnavailable,
            format!("A drive that this needs is missing on the server: {directory}"),
        ),
        E::Closed => s3_error!(ServiceUnavailable, "The server is shutting down."),
        fault @ E::Io { .. } => internal(&fault, at),
        fault @ E::Corrupt { .. } => internal(&fault, at),
        fault @ (E::Unusable(_) | E::InUse { .. }) => internal(&fault, at),
    }
}

/// Stored metadata is not what was written.
pub fn corrupt(what: &str, at: At<'_>) -> S3Error {
    let fault = engine::Error::Corrupt {
        what: what.into(),
        place: "the index".into(),
    };
    engine_fault(fault, at)
}

/// A fault of the key service as the client sees it. There is no fallback to another key.
pub fn kms_fault(fault: kms::Error, at: At<'_>) -> S3Error {
    use kms::{Caller, Error as E, KeyProblem};
    let key_error = |code| custom(code, StatusCode::BAD_REQUEST, fault.to_string());
    match &fault {
        E::Caller(Caller::InvalidKeyName(_)) => key_error("KMS.NotFoundException"),
        E::Caller(Caller::InvalidContext(_)) => {
            S3Error::with_message(S3ErrorCode::InvalidArgument, fault.to_string())
        }
        E::Caller(Caller::KeyExists(_) | Caller::KeystoreFull | Caller::NotSupported(_)) => {
            S3Error::with_message(S3ErrorCode::InvalidRequest, fault.to_string())
        }
        E::KeyState { problem, .. } => match problem {
            KeyProblem::NotFound | KeyProblem::Destroyed => key_error("KMS.NotFoundException"),
            KeyProblem::Disabled => key_error("KMS.DisabledException"),
            KeyProblem::PendingDeletion => key_error("KMS.KMSInvalidStateException"),
            KeyProblem::NotAuthorized => {
                S3Error::with_message(S3ErrorCode::AccessDenied, fault.to_string())
            }
        },
        E::Outage(outage) => {
            tracing::warn!(%outage, "a request needed a key");
            S3Error::with_message(S3ErrorCode::ServiceUnavailable, fault.to_string())
        }
        E::Corrupt(_) | E::Environment(_) => internal(&fault, at),
    }
}

/// What was wrong with a body on its way in.
pub fn body_fault(fault: BodyError) -> S3Error {
    fault.into()
}

pub fn no_such_key(key: &str) -> S3Error {
    element(
        s3_error!(NoSuchKey, "The specified key does not exist."),
        "Key",
        key,
    )
}

pub fn precondition_failed(condition: &'static str) -> S3Error {
    element(
        s3_error!(
            PreconditionFailed,
            "At least one of the pre-conditions you specified did not hold"
        ),
        "Condition",
        condition,
    )
}

pub fn invalid_part(upload: &str, number: i32, etag: Option<&str>) -> S3Error {
    let fault = s3_error!(
        InvalidPart,
        "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."
    );
    let fault = element(fault, "UploadId", upload);
    let fault = element(fault, "PartNumber", &number.to_string());
    match etag {
        Some(etag) => element(fault, "ETag", etag),
        None => fault,
    }
}

/// An argument that is refused, with its name and value.
pub fn invalid_argument(message: &'static str, name: &str, value: &str) -> S3Error {
    let fault = S3Error::with_message(S3ErrorCode::InvalidArgument, message);
    element(element(fault, "ArgumentName", name), "ArgumentValue", value)
}

/// Something S3 knows and this server does not do: refused, never dropped in silence.
pub fn not_implemented(header: &str) -> S3Error {
    let fault = s3_error!(
        NotImplemented,
        "A header you provided implies functionality that is not implemented."
    );
    element(fault, "Header", header)
}

/// An error with a code that s3s has no name for.
pub fn custom(code: &'static str, status: StatusCode, message: impl Into<String>) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut fault = S3Error::with_message(code, message.into());
    fault.set_status_code(status);
    fault
}

/// The fault with one more element in its XML.
pub fn element(fault: S3Error, name: &'static str, value: &str) -> S3Error {
    if value.is_empty() {
        return fault;
    }
    let element = format!("{name}={}", percent_encode(value));
    let value = HeaderValue::try_from(element).expect("percent-encoded text is a header value");
    header(fault, ELEMENT, value)
}

/// The fault with one more response header.
pub fn header(mut fault: S3Error, name: HeaderName, value: HeaderValue) -> S3Error {
    let mut headers = fault.headers().cloned().unwrap_or_else(|| {
        // s3s replaces what it has set itself, the type of the body included.
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/xml"))])
    });
    headers.append(name, value);
    fault.set_headers(headers);
    fault
}

fn too_large(what: &'static str, got: u64, max: u64) -> S3Error {
    match what {
        "a key" => s3_error!(KeyTooLongError, "Your key is too long"),
        "metadata" => s3_error!(
            MetadataTooLarge,
            "Your metadata headers exceed the maximum allowed metadata size"
        ),
        _ => entity_too_large(got, max),
    }
}

pub fn entity_too_large(got: u64, max: u64) -> S3Error {
    let fault = s3_error!(
        EntityTooLarge,
        "Your proposed upload exceeds the maximum allowed size"
    );
    let fault = element(fault, "ProposedSize", &got.to_string());
    element(fault, "MaxSizeAllowed", &max.to_string())
}

fn internal(fault: &dyn std::fmt::Display, at: At<'_>) -> S3Error {
    tracing::error!(bucket = at.bucket, key = at.key, "{fault}");
    s3_error!(
        InternalError,
        "We encountered an internal error. Please try again."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_elements_travel_in_headers() {
        let fault = invalid_argument("no", "key", "a<b>\u{1}ü/ %=");
        let headers = fault.headers().expect("headers");
        assert_eq!(headers[CONTENT_TYPE], "application/xml");
        let elements: Vec<_> = headers.get_all(ELEMENT).iter().collect();
        let value = "ArgumentValue=a%3Cb%3E%01%C3%BC/%20%25%3D";
        assert_eq!(elements, ["ArgumentName=key", value]);
    }

    #[test]
    fn faults_keep_their_codes_and_statuses() {
        use engine::Error as E;
        let at = At::upload("b", "k", "u");
        let cases = [
            (E::NoSuchBucket, "NoSuchBucket", 404),
            (E::NoSuchKey, "NoSuchKey", 404),
            (E::NoSuchUpload, "NoSuchUpload", 404),
            (E::BucketExists, "BucketAlreadyOwnedByYou", 409),
            (E::BucketNotEmpty, "BucketNotEmpty", 409),
            (
                E::PreconditionFailed {
                    condition: "If-Match",
                },
                "PreconditionFailed",
                412,
            ),
            (E::Conflict, "ConditionalRequestConflict", 409),
            (E::InvalidPart { number: 1 }, "InvalidPart", 400),
            (
                E::WrongLength {
                    expected: 1,
                    got: 0,
                },
                "IncompleteBody",
                400,
            ),
            (
                E::TooLarge {
                    what: "a key",
                    got: 2,
                    max: 1,
                },
                "KeyTooLongError",
                400,
            ),
            (
                E::TooLarge {
                    what: "metadata",
                    got: 2,
                    max: 1,
                },
                "MetadataTooLarge",
                400,
            ),
            (
                E::TooLarge {
                    what: "an object or part",
                    got: 2,
                    max: 1,
                },
                "EntityTooLarge",
                400,
            ),
            (E::Overloaded { what: "buffers" }, "SlowDown", 503),
            (E::Replaced, "SlowDown", 503),
            (E::DiskFull, "InsufficientStorage", 507),
            (E::Closed, "ServiceUnavailable", 503),
            (E::DriveMissing("/a".into()), "ServiceUnavailable", 503),
            (E::Unusable("x".into()), "InternalError", 500),
        ];
        for (fault, code, status) in cases {
            let seen = engine_fault(fault, at);
            assert_eq!(seen.code().as_str(), code);
            assert_eq!(
                seen.status_code().map(|s| s.as_u16()),
                Some(status),
                "{code}"
            );
        }
    }

    #[test]
    fn what_is_ours_is_not_told() {
        let place = "segments/7 at 4096";
        let fault = engine::Error::Corrupt {
            what: "a tag".into(),
            place: place.into(),
        };
        let seen = engine_fault(fault, At::object("b", "k"));
        assert_eq!(seen.code().as_str(), "InternalError");
        assert!(!format!("{seen:?}").contains(place));
    }

    #[test]
    fn key_states_are_told_by_code() {
        use kms::{Error as E, KeyProblem as P, Outage};
        let state = |problem| E::KeyState {
            name: "k".into(),
            problem,
        };
        let cases = [
            (state(P::NotFound), "KMS.NotFoundException", 400),
            (state(P::Destroyed), "KMS.NotFoundException", 400),
            (state(P::Disabled), "KMS.DisabledException", 400),
            (
                state(P::PendingDeletion),
                "KMS.KMSInvalidStateException",
                400,
            ),
            (state(P::NotAuthorized), "AccessDenied", 403),
            (E::Outage(Outage::Sealed), "ServiceUnavailable", 503),
        ];
        for (fault, code, status) in cases {
            let seen = kms_fault(fault, At::bucket("b"));
            assert_eq!(seen.code().as_str(), code);
            assert_eq!(
                seen.status_code().map(|s| s.as_u16()),
                Some(status),
                "{code}"
            );
        }
    }
}
