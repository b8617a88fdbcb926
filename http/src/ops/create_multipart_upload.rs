//! CreateMultipartUpload: everything about the object to come but its parts is settled here, its key and mode included.

use std::fmt;
use std::rc::Rc;

use http::HeaderMap;
use s3s::dto::{CreateMultipartUploadInput, CreateMultipartUploadOutput};
use s3s::{S3Request, S3Result, s3_error};
use strongroom_engine::NewUpload;

use super::{Inner, headers, metadata};
use crate::checksum::{Algorithm, Kind};
use crate::error::{At, OrS3};
use crate::sse::decide::decide;
use crate::sse::{self, Answer};

pub async fn create_multipart_upload(
    inner: &Inner,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<CreateMultipartUploadOutput> {
    let input = request.input;
    let (bucket, key) = (input.bucket, input.key);
    let at = At::object(&bucket, &key);
    let headers = headers(&request.headers, &request.extensions);

    metadata::check_supported(headers)?;
    metadata::check_key(&key)?;
    let in_bucket = inner.drives.bucket(&bucket).at(at)?;
    let encryption = inner.asked(headers, &request.extensions);
    let choice = decide(&encryption, &inner.rules(&in_bucket))?;
    let metadata = metadata::of_write(headers, input.metadata)?;
    let checksum = UploadChecksum::asked(headers)?;
    let new = sse::new_key(&inner.keys, &choice, at).await?;
    let upload = NewUpload {
        metadata,
        encryption: new.encryption.clone(),
        checksum: checksum.map(|c| c.to_string()),
    };
    let hold = new.key.hold(at)?;
    let create = {
        let (shard, bucket, key) = (Rc::clone(inner.shard(at)?), bucket.clone(), key.clone());
        async move { shard.create_upload(&bucket, &key, upload).await }
    };
    let id = sse::held(hold, create).await.at(at)?;
    let sealed = Answer::of(new.encryption.as_ref(), Some(&new.key));
    Ok(CreateMultipartUploadOutput {
        checksum_algorithm: checksum.map(|c| c.algorithm.dto()),
        checksum_type: checksum.map(|c| c.kind.dto()),
        server_side_encryption: sealed.method,
        ssekms_key_id: sealed.kms_key_id,
        bucket_key_enabled: sealed.bucket_key,
        sse_customer_algorithm: sealed.customer_algorithm,
        sse_customer_key_md5: sealed.customer_key_md5,
        ssekms_encryption_context: sealed.context,
        upload_id: Some(id.to_string()),
        bucket: Some(bucket),
        key: Some(key),
        ..Default::default()
    })
}

/// The checksum an upload was begun with. Stored as `ALGORITHM TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadChecksum {
    pub algorithm: Algorithm,
    pub kind: Kind,
}

impl UploadChecksum {
    /// What uploads get that name none.
    pub const DEFAULT: UploadChecksum = UploadChecksum {
        algorithm: Algorithm::DEFAULT,
        kind: Kind::FullObject,
    };

    fn asked(headers: &HeaderMap) -> S3Result<Option<Self>> {
        let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or_default());
        let kind = match text("x-amz-checksum-type") {
            None => None,
            Some(name) => Some(Kind::parse(name).ok_or_else(|| {
                s3_error!(
                    InvalidRequest,
                    "Value for x-amz-checksum-type header is invalid."
                )
            })?),
        };
        let algorithm = match text("x-amz-checksum-algorithm") {
            None => None,
            Some(name) => Some(Algorithm::parse(name).ok_or_else(|| {
                s3_error!(
                    InvalidRequest,
                    "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"
                )
            })?),
        };
        let algorithm = match (algorithm, kind) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
                ));
            }
            (Some(algorithm), _) => algorithm,
        };
        let kind = kind.unwrap_or(algorithm.multipart_kind());
        if !algorithm.allows(kind) {
            return Err(s3_error!(
                InvalidRequest,
                "The {} checksum type cannot be used with the {} checksum algorithm.",
                kind.name(),
                algorithm.name().to_ascii_lowercase()
            ));
        }
        Ok(Some(UploadChecksum { algorithm, kind }))
    }

    /// What [`UploadChecksum`]'s `Display` wrote; none for anything else.
    pub fn parse(stored: &str) -> Option<Self> {
        let (algorithm, kind) = stored.split_once(' ')?;
        Some(UploadChecksum {
            algorithm: Algorithm::parse(algorithm)?,
            kind: Kind::parse(kind)?,
        })
    }
}

impl fmt::Display for UploadChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm.name(), self.kind.name())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn asked(algorithm: Option<&str>, kind: Option<&str>) -> S3Result<Option<UploadChecksum>> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-amz-checksum-algorithm", algorithm),
            ("x-amz-checksum-type", kind),
        ] {
            if let Some(value) = value {
                let value = HeaderValue::from_str(value).expect("a value");
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        UploadChecksum::asked(&headers)
    }

    #[test]
    fn types_follow_the_algorithm() {
        assert_eq!(asked(None, None).expect("fine"), None);
        for algorithm in Algorithm::ALL {
            let given = asked(Some(algorithm.name()), None);
            let given = given.expect("fine").expect("named");
            assert_eq!(
                given.kind == Kind::FullObject,
                algorithm == Algorithm::Crc64Nvme
            );
            assert_eq!(UploadChecksum::parse(&given.to_string()), Some(given));
            let crc = !matches!(algorithm, Algorithm::Sha1 | Algorithm::Sha256);
            assert_eq!(
                asked(Some(algorithm.name()), Some("FULL_OBJECT")).is_ok(),
                crc
            );
            let composite = asked(Some(algorithm.name()), Some("COMPOSITE"));
            assert_eq!(composite.is_ok(), algorithm != Algorithm::Crc64Nvme);
        }
    }

    #[test]
    fn half_a_wish_is_refused() {
        for (algorithm, kind) in [
            (None, Some("COMPOSITE")),
            (Some("CRC7"), None),
            (Some("CRC32"), Some("HALF")),
        ] {
            let fault = asked(algorithm, kind).expect_err("refused");
            assert_eq!(fault.code().as_str(), "InvalidRequest");
        }
        for broken in ["", "CRC32", "CRC32 HALF", "X COMPOSITE"] {
            assert_eq!(UploadChecksum::parse(broken), None);
        }
    }
}
