//! GetObject and HeadObject: find, decide conditions and range, and for GET open the first package before answering.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{Extensions, HeaderMap};
use s3s::dto::{
    ChecksumMode, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
    StreamingBlob, Timestamp, TimestampFormat,
};
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Error, S3Request, S3Result, StdError, s3_error};
use send_wrapper::SendWrapper;
use strongroom_engine as engine;
use strongroom_engine::record::{Data, Object};
use strongroom_engine::{Found, GetStream};

use super::condition::{self, Of};
use super::downloads::{self, Downloads};
use super::range::{self, ByteRange};
use super::{Inner, check_version, etag, headers, length, metadata, signed};
use crate::checksum::{self, Fields};
use crate::error::{At, OrS3, corrupt, custom, element, invalid_argument};
use crate::limits;
use crate::sse::{self, Answer, ObjectKey, access};

/// The fields that both answers have.
macro_rules! answer {
    ($output:ident, $plan:expr, $sums:expr, $key:expr) => {{
        let (plan, sums): (&Plan, Fields) = ($plan, $sums);
        let object = &plan.found.object;
        let sealed = Answer::of(object.encryption.as_ref(), $key);
        let kept = |name: &str| object.metadata.headers.get(name).cloned();
        $output {
            accept_ranges: Some("bytes".into()),
            cache_control: kept("cache-control"),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_type: sums.kind,
            content_disposition: kept("content-disposition"),
            content_encoding: kept(metadata::CONTENT_ENCODING),
            content_language: kept("content-language"),
            content_length: Some(signed(length(&plan.bytes()))),
            content_range: plan
                .range
                .as_ref()
                .map(|range| range::content_range(range, object.size)),
            content_type: Some(metadata::content_type(&object.metadata)),
            e_tag: Some(etag(&object.etag)),
            expires: kept("expires")
                .and_then(|e| Timestamp::parse(TimestampFormat::HttpDate, &e).ok()),
            last_modified: Some(condition::timestamp(object.modified)),
            metadata: Some(object.metadata.user.clone().into_iter().collect()),
            parts_count: plan.parts_count(),
            server_side_encryption: sealed.method,
            ssekms_key_id: sealed.kms_key_id,
            bucket_key_enabled: sealed.bucket_key,
            sse_customer_algorithm: sealed.customer_algorithm,
            sse_customer_key_md5: sealed.customer_key_md5,
            storage_class: kept(metadata::STORAGE_CLASS).map(Into::into),
            website_redirect_location: kept(metadata::REDIRECT),
            ..Default::default()
        }
    }};
}

pub async fn get_object(
    inner: &Inner,
    request: S3Request<GetObjectInput>,
) -> S3Result<GetObjectOutput> {
    let input = request.input;
    let (bucket, key) = (input.bucket, input.key);
    let at = At::object(&bucket, &key);
    check_version(input.version_id.as_deref())?;
    let headers = headers(&request.headers, &request.extensions);
    let mut tries = limits::READ_TRIES;
    let (plan, object_key, sums, left, mut stream) = loop {
        let mut plan =
            Plan::new(inner, at, headers, &request.extensions, input.part_number).await?;
        let opened = plan.opened.take();
        let encryption = plan.found.object.encryption.as_ref();
        let object_key = sse::open_key(&inner.keys, encryption, opened, at).await?;
        let sums = match plan.wants_checksum(input.checksum_mode.as_ref()) {
            true => plan.checksums(inner, &object_key, at).await?,
            false => Fields::default(),
        };
        let bytes = plan.bytes();
        let left = length(&bytes);
        let shard = inner.shard(at)?;
        let read = shard.read(&plan.found, bytes, object_key.secret());
        match read.await {
            Err(engine::Error::Replaced) if tries > 1 => tries -= 1,
            stream => break (plan, object_key, sums, left, stream.at(at)?),
        }
    };
    let first = match stream.next().await {
        Some(first) => Some(first.at(at)?),
        None => None,
    };
    let output = answer!(GetObjectOutput, &plan, sums, Some(&object_key));
    let body = Body::new(
        &inner.downloads,
        stream,
        first,
        left,
        object_key,
        bucket,
        key,
    );
    Ok(GetObjectOutput {
        body: Some(StreamingBlob::new(body)),
        ..output
    })
}

pub async fn head_object(
    inner: &Inner,
    request: S3Request<HeadObjectInput>,
) -> S3Result<HeadObjectOutput> {
    let input = request.input;
    let (bucket, key) = (input.bucket, input.key);
    let at = At::object(&bucket, &key);
    check_version(input.version_id.as_deref())?;
    let headers = headers(&request.headers, &request.extensions);
    let mut plan = Plan::new(inner, at, headers, &request.extensions, input.part_number).await?;
    let mut object_key = plan.opened.take();
    let sums = match plan.wants_checksum(input.checksum_mode.as_ref()) {
        false => Fields::default(),
        true => {
            let encryption = plan.found.object.encryption.as_ref();
            match sse::open_key(&inner.keys, encryption, object_key.take(), at).await {
                Ok(key) => {
                    let sums = plan.checksums(inner, &key, at).await?;
                    object_key = Some(key);
                    sums
                }
                // Everything else is known without the key.
                Err(fault) if is_outage(&fault) => Fields::default(),
                Err(fault) => return Err(fault),
            }
        }
    };
    let output = answer!(HeadObjectOutput, &plan, sums, object_key.as_ref());
    Ok(HeadObjectOutput {
        cache_control: input.response_cache_control.or(output.cache_control),
        content_disposition: input
            .response_content_disposition
            .or(output.content_disposition),
        content_encoding: input.response_content_encoding.or(output.content_encoding),
        content_language: input.response_content_language.or(output.content_language),
        content_type: input.response_content_type.or(output.content_type),
        expires: input.response_expires.or(output.expires),
        ..output
    })
}

/// Whether keys cannot be had now, though they may be later.
pub fn is_outage(fault: &S3Error) -> bool {
    fault.status_code() == Some(http::StatusCode::SERVICE_UNAVAILABLE)
}

/// What of which object is to be answered.
struct Plan {
    found: Found,
    /// The bytes asked for; none for all of them.
    range: Option<Range<u64>>,
    /// The part asked for.
    part: Option<u16>,
    /// The object's key, where the request's own headers opened it.
    opened: Option<ObjectKey>,
}

impl Plan {
    async fn new(
        inner: &Inner,
        at: At<'_>,
        headers: &HeaderMap,
        extensions: &Extensions,
        part: Option<i32>,
    ) -> S3Result<Self> {
        let found = inner.shard(at)?.lookup(at.bucket, at.key).await.at(at)?;
        let object = &found.object;
        let asked = inner.asked(headers, extensions);
        let opened = access::of_read(&asked, object.encryption.as_ref(), at)?;
        condition::check_read(headers, Of::Read, object)?;
        let asked = ByteRange::of_read(headers);
        let (range, part) = match (asked, part) {
            (Some(_), Some(_)) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "Cannot specify both Range header and partNumber query parameter"
                ));
            }
            (None, Some(number)) => {
                let (range, part) = range_of_part(object, number)?;
                (range, Some(part))
            }
            (Some(asked), None) if condition::range_allowed(headers, object) => {
                let range = asked
                    .within(object.size)
                    .ok_or_else(|| range::not_satisfiable(headers, object.size))?;
                (Some(range), None)
            }
            _ => (None, None),
        };
        Ok(Plan {
            found,
            range,
            part,
            opened,
        })
    }

    fn bytes(&self) -> Range<u64> {
        self.range.clone().unwrap_or(0..self.found.object.size)
    }

    fn parts_count(&self) -> Option<i32> {
        match (&self.found.object.data, self.part) {
            (Data::Parts(_, parts), Some(_)) => i32::try_from(parts.len()).ok(),
            _ => None,
        }
    }

    /// A checksum of other bytes than those sent would make clients fail.
    fn wants_checksum(&self, mode: Option<&ChecksumMode>) -> bool {
        let asked = mode.is_some_and(|m| m.as_str() == ChecksumMode::ENABLED);
        asked && (self.range.is_none() || self.part.is_some())
    }

    /// The checksum of the object, or of the part asked for, with the type that the object's has.
    async fn checksums(
        &self,
        inner: &Inner,
        object_key: &ObjectKey,
        at: At<'_>,
    ) -> S3Result<Fields> {
        let object = &self.found.object;
        let whole = object.checksum.as_deref();
        let part;
        let (blob, kind) = match (&object.data, self.part) {
            (Data::Parts(..), Some(number)) => {
                part = inner.shard(at)?.part(&self.found, number).await.at(at)?;
                let names = whole.map(checksum::names).unwrap_or_default();
                let Some(named) = names.first() else {
                    return Ok(Fields::default());
                };
                (part.checksum.as_deref(), Some(*named))
            }
            _ => (whole, None),
        };
        let Some(blob) = blob else {
            return Ok(Fields::default());
        };
        let mut sums = checksum::from_blob(blob, object_key.secret())
            .ok_or_else(|| corrupt("a sealed checksum", at))?;
        if let Some(of_object) = kind {
            sums.retain(|sum| sum.algorithm == of_object.algorithm);
        }
        let mut fields = Fields::of(&sums);
        if let Some(of_object) = kind
            && fields.kind.is_some()
        {
            fields.kind = Some(of_object.kind.dto());
        }
        Ok(fields)
    }
}

/// Where a part lies in its object. An object that was put in one piece is its own part 1.
fn range_of_part(object: &Object, number: i32) -> S3Result<(Option<Range<u64>>, u16)> {
    let wanted = u16::try_from(number)
        .ok()
        .filter(|n| *n >= 1)
        .ok_or_else(|| {
            invalid_argument(
                "Part number must be an integer between 1 and 10000, inclusive",
                "partNumber",
                &number.to_string(),
            )
        })?;
    let absent = |count: usize| {
        let fault = custom(
            "InvalidPartNumber",
            http::StatusCode::RANGE_NOT_SATISFIABLE,
            "The requested partnumber is not satisfiable",
        );
        let fault = element(fault, "PartNumberRequested", &number.to_string());
        element(fault, "ActualPartCount", &count.to_string())
    };
    let range = match &object.data {
        Data::Single(_) if wanted == 1 => 0..object.size,
        Data::Single(_) => return Err(absent(1)),
        Data::Parts(_, parts) => {
            let mut start = 0;
            let mut found = None;
            for part in parts {
                let end = start + part.size;
                if part.number == wanted {
                    found = Some(start..end);
                    break;
                }
                start = end;
            }
            found.ok_or_else(|| absent(parts.len()))?
        }
    };
    // Nothing cannot be named as a range.
    Ok(((!range.is_empty()).then_some(range), wanted))
}

/// A response body of known length, bound to this thread.
struct Body {
    frames: SendWrapper<downloads::Frames>,
    left: u64,
}

impl Body {
    fn new(
        downloads: &Downloads,
        stream: GetStream,
        mut first: Option<Bytes>,
        left: u64,
        object_key: ObjectKey,
        bucket: String,
        key: String,
    ) -> Self {
        if let Some(whole) = first.take_if(|first| first.len() as u64 == left) {
            // Nothing needs the key any more.
            let frames: downloads::Frames = Box::pin(futures_util::stream::iter([Ok(whole)]));
            return Body {
                frames: SendWrapper::new(frames),
                left,
            };
        }
        let lease = object_key.lease().cloned();
        let place = (bucket.clone(), key.clone());
        let state = Frames {
            stream,
            first,
            object_key,
            bucket,
            key,
        };
        let frames = futures_util::stream::unfold(state, |mut state| async {
            let frame = state.next().await?;
            Some((frame.map_err(StdError::from), state))
        });
        // Whoever asks again behind the end hears of it again.
        let frames = frames.fuse();
        let download = downloads.begin(Box::pin(frames), lease, place.0, place.1);
        Body {
            frames: SendWrapper::new(Box::pin(download)),
            left,
        }
    }
}

struct Frames {
    stream: GetStream,
    first: Option<Bytes>,
    object_key: ObjectKey,
    bucket: String,
    key: String,
}

impl Frames {
    async fn next(&mut self) -> Option<S3Result<Bytes>> {
        let frame = match self.first.take() {
            Some(first) => return Some(Ok(first)),
            None => self.stream.next().await?,
        };
        let at = At::object(&self.bucket, &self.key);
        // A download does not outlive its key.
        let allowed = self.object_key.check(at);
        Some(allowed.and_then(|()| frame.at(at)))
    }
}

impl Stream for Body {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.frames.as_mut().poll_next(cx);
        if let Poll::Ready(Some(Ok(frame))) = &next {
            self.left = self.left.saturating_sub(frame.len() as u64);
        }
        next
    }
}

impl ByteStream for Body {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.left).map_or(RemainingLength::unknown(), RemainingLength::new_exact)
    }
}

#[cfg(test)]
mod tests {
    use strongroom_engine::record::{Metadata, PartRef, UploadId};

    use super::*;

    fn object(sizes: &[(u16, u64)]) -> Object {
        let parts: Vec<PartRef> = sizes
            .iter()
            .map(|&(number, size)| PartRef { number, size })
            .collect();
        Object {
            size: sizes.iter().map(|s| s.1).sum(),
            modified: 0,
            etag: "e".into(),
            metadata: Metadata::default(),
            encryption: None,
            checksum: None,
            data: Data::Parts(UploadId([0; 16]), parts),
            key_extent: None,
            origin: None,
        }
    }

    #[test]
    fn parts_are_found_by_number_wherever_they_lie() {
        let object = object(&[(2, 10), (5, 3), (9, 0)]);
        let range = |n| range_of_part(&object, n).map(|r| r.0);
        assert_eq!(range(2).expect("there"), Some(0..10));
        assert_eq!(range(5).expect("there"), Some(10..13));
        assert_eq!(range(9).expect("there"), None);
        for absent in [1, 3, 10_000] {
            let fault = range(absent).expect_err("absent");
            assert_eq!(fault.code().as_str(), "InvalidPartNumber");
            assert_eq!(fault.status_code().map(|s| s.as_u16()), Some(416));
        }
        for impossible in [0, -1, 70_000] {
            let fault = range(impossible).expect_err("impossible");
            assert_eq!(fault.code().as_str(), "InvalidArgument");
        }
    }
}
