//! Request bodies, decoded as they stream, before the S3 layer sees them.
//!
//! The payload's form stands in `x-amz-content-sha256` ([`Payload`]). The S3 layer checks the
//! request's own signature; what follows it is checked here: the hash of a plain body, the chain of
//! chunk signatures, the signed trailer, and every length. Frames are handed on as they come, so
//! what a handler has read is **provisional** until the end of the body was reached without an
//! error: only then may anything be committed.
//!
//! - [`sigv4`]: the parts of Signature Version 4 that bodies need.
//! - [`chunked`]: the aws-chunked decoder, a state machine without input or output.
//! - [`form`]: the same for POST forms.
//! - [`upload`]: the handle by which a handler takes its body.

pub mod chunked;
pub mod form;
pub mod sigv4;
pub mod upload;

use std::ops::RangeInclusive;

use http::HeaderMap;
use s3s::{S3Error, S3ErrorCode};

use crate::error::element;
pub use upload::{Upload, gather};

/// How a request's body is written, and what vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// As it is; its SHA-256 is part of the request's signature.
    Hashed([u8; 32]),
    /// As it is; nothing vouches for it but the connection, and checksums if there are any.
    Unsigned,
    /// In aws-chunked framing.
    Chunked {
        /// Each chunk carries a signature that continues the request's.
        signed: bool,
        /// Headers follow the last chunk.
        trailer: bool,
    },
}

impl Payload {
    /// The form that the headers announce. A request without the header is not signed by it
    /// (presigned, or anonymous); `None` is a value that no SDK sends.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let Some(value) = headers.get("x-amz-content-sha256") else {
            return Some(Self::Unsigned);
        };
        let chunked = |signed, trailer| Some(Self::Chunked { signed, trailer });
        match value.as_bytes() {
            b"UNSIGNED-PAYLOAD" => Some(Self::Unsigned),
            b"STREAMING-UNSIGNED-PAYLOAD-TRAILER" => chunked(false, true),
            b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => chunked(true, false),
            b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => chunked(true, true),
            hash => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(hash, &mut bytes).ok()?;
                Some(Self::Hashed(bytes))
            }
        }
    }
}

/// Why a body is not what the request promised. All but the connection's are the client's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body ended before its announced length, or before its last chunk.
    #[error("You did not provide the number of bytes specified by the Content-Length HTTP header.")]
    Incomplete,
    /// More than its announced length.
    #[error("The request body is longer than announced.")]
    TooMuch,
    /// Larger than a body of this kind may be.
    #[error("Your request was too big.")]
    TooLarge,
    /// No length was announced.
    #[error("You must provide the Content-Length HTTP header.")]
    MissingLength,
    /// The announced form of the payload is unknown or lacks what it needs.
    #[error("{0}")]
    Request(&'static str),
    /// Not aws-chunked framing.
    #[error("The aws-chunked encoding of the request body is malformed: {0}.")]
    Framing(&'static str),
    /// A chunk too small to be anything but the last.
    #[error("Only the last chunk can have a size less than 8192 bytes.")]
    ChunkTooSmall,
    /// A chunk or the trailer carries a signature that does not hold.
    #[error("The signature of a chunk of the request body does not match.")]
    Signature,
    /// The body does not have the hash that was signed.
    #[error("The provided 'x-amz-content-sha256' header does not match what was computed.")]
    Hash,
    /// The trailer is not the announced one.
    #[error(
        "The request contained trailing data that was not well-formed or did not conform to our published schema."
    )]
    Trailer,
    /// Not a form, or not one that can be streamed.
    #[error("The body of your POST request is not well-formed multipart/form-data: {0}.")]
    Form(&'static str),
    /// What stands in front of a form's file is too much.
    #[error("Your POST request fields preceding the upload file were too large.")]
    FormTooLarge,
    /// The file of a form is not as long as its policy wants.
    #[error("Your proposed upload exceeds the maximum allowed size")]
    LargerThanAllowed { length: u64, max: u64 },
    #[error("Your proposed upload is smaller than the minimum allowed size")]
    SmallerThanAllowed { length: u64, min: u64 },
    /// Nothing came for too long.
    #[error(
        "Your socket connection to the server was not read from or written to within the timeout period."
    )]
    Stalled,
    /// The connection broke.
    #[error("The connection ended within the request body.")]
    Connection,
}

/// Refuses a file of a form whose length, which is one of `possible`, its policy cannot allow.
pub(crate) fn check_length(
    possible: RangeInclusive<u64>,
    allowed: &RangeInclusive<u64>,
) -> Result<(), BodyError> {
    let (min, max) = (*allowed.start(), *allowed.end());
    match possible.into_inner() {
        (length, _) if length > max => Err(BodyError::LargerThanAllowed { length, max }),
        (_, length) if length < min => Err(BodyError::SmallerThanAllowed { length, min }),
        _ => Ok(()),
    }
}

impl BodyError {
    /// The S3 code for it.
    pub fn code(&self) -> S3ErrorCode {
        let custom =
            |name: &[u8]| S3ErrorCode::from_bytes(name).unwrap_or(S3ErrorCode::InvalidRequest);
        match self {
            Self::Incomplete | Self::TooMuch | Self::Connection => S3ErrorCode::IncompleteBody,
            Self::TooLarge => S3ErrorCode::MaxMessageLengthExceeded,
            Self::MissingLength => S3ErrorCode::MissingContentLength,
            Self::Request(_) | Self::Framing(_) => S3ErrorCode::InvalidRequest,
            Self::ChunkTooSmall => custom(b"InvalidChunkSizeError"),
            Self::Signature => S3ErrorCode::SignatureDoesNotMatch,
            Self::Hash => custom(b"XAmzContentSHA256Mismatch"),
            Self::Trailer => custom(b"MalformedTrailerError"),
            Self::Form(_) => custom(b"MalformedPOSTRequest"),
            Self::FormTooLarge => custom(b"MaxPostPreDataLengthExceeded"),
            Self::LargerThanAllowed { .. } => S3ErrorCode::EntityTooLarge,
            Self::SmallerThanAllowed { .. } => S3ErrorCode::EntityTooSmall,
            Self::Stalled => S3ErrorCode::RequestTimeout,
        }
    }
}

impl From<BodyError> for S3Error {
    fn from(error: BodyError) -> Self {
        let code = error.code();
        let status = code.status_code();
        let mut out = S3Error::with_message(code, error.to_string());
        out.set_status_code(status.unwrap_or(http::StatusCode::BAD_REQUEST));
        let (length, bound, allowed) = match error {
            BodyError::LargerThanAllowed { length, max } => (length, "MaxSizeAllowed", max),
            BodyError::SmallerThanAllowed { length, min } => (length, "MinSizeAllowed", min),
            _ => return out,
        };
        let out = element(out, "ProposedSize", &length.to_string());
        element(out, bound, &allowed.to_string())
    }
}

/// A `Content-Encoding` without the `aws-chunked` token, which is framing and no property of the
/// object. `None` if nothing is left.
pub fn content_encoding(value: &str) -> Option<String> {
    let kept: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty() && !token.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_no_content_encoding() {
        assert_eq!(content_encoding("aws-chunked"), None);
        assert_eq!(
            content_encoding("gzip, aws-chunked").as_deref(),
            Some("gzip")
        );
        assert_eq!(
            content_encoding("AWS-Chunked,gzip,br").as_deref(),
            Some("gzip,br")
        );
        assert_eq!(content_encoding("zstd").as_deref(), Some("zstd"));
        assert_eq!(content_encoding(""), None);
    }

    #[test]
    fn every_error_has_a_client_status() {
        for error in [
            BodyError::Incomplete,
            BodyError::TooMuch,
            BodyError::TooLarge,
            BodyError::MissingLength,
            BodyError::Request("x"),
            BodyError::Framing("x"),
            BodyError::ChunkTooSmall,
            BodyError::Signature,
            BodyError::Hash,
            BodyError::Trailer,
            BodyError::Form("x"),
            BodyError::FormTooLarge,
            BodyError::LargerThanAllowed { length: 2, max: 1 },
            BodyError::SmallerThanAllowed { length: 1, min: 2 },
            BodyError::Stalled,
            BodyError::Connection,
        ] {
            let status = S3Error::from(error.clone()).status_code().unwrap();
            assert!(status.is_client_error(), "{error:?}: {status}");
        }
    }
}
