//! The bytes of an upload on their way in: where they come from, and everything that is computed over them in one pass.

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Extensions, HeaderMap};
use s3s::dto::StreamingBlob;
use s3s::stream::ByteStream as _;
use s3s::{S3Result, TrailingHeaders, s3_error};

use super::etag::EtagHasher;
use crate::body::Upload;
use crate::checksum::{self, Algorithm, Announced, Hasher, Sum};
use crate::error::{At, body_fault};
use crate::sse::ObjectKey;

/// A request's body.
pub enum Incoming {
    /// Decoded in front of the service.
    Upload(Upload),
    /// As s3s hands it on, where nothing is in front of it.
    Blob {
        blob: Box<StreamingBlob>,
        length: Option<u64>,
        trailers: Option<TrailingHeaders>,
    },
}

impl Incoming {
    pub fn new(
        extensions: &Extensions,
        body: Option<StreamingBlob>,
        content_length: Option<i64>,
        trailers: Option<TrailingHeaders>,
    ) -> Self {
        if let Some(upload) = Upload::from_request(extensions) {
            return Incoming::Upload(upload);
        }
        let blob = body.unwrap_or_else(|| s3s::Body::empty().into());
        let exact = blob.remaining_length().exact().map(|n| n as u64);
        Incoming::Blob {
            length: content_length.and_then(|n| n.try_into().ok()).or(exact),
            blob: Box::new(blob),
            trailers,
        }
    }

    /// Length of the plaintext, which has to be known ahead.
    pub fn length(&self) -> S3Result<u64> {
        let length = match self {
            Incoming::Upload(upload) => upload.decoded_length(),
            Incoming::Blob { length, .. } => *length,
        };
        length.ok_or_else(|| {
            s3_error!(
                MissingContentLength,
                "You must provide the Content-Length HTTP header."
            )
        })
    }

    /// Whether that is only what it has at most: [`Incoming::take_end`] tells.
    pub fn is_open_ended(&self) -> bool {
        matches!(self, Incoming::Upload(upload) if upload.is_open_ended())
    }

    /// The length of an open-ended body, once: asked for behind every frame, before it is used.
    pub fn take_end(&self) -> Option<u64> {
        match self {
            Incoming::Upload(upload) => upload.take_end(),
            Incoming::Blob { .. } => None,
        }
    }

    pub async fn next(&mut self) -> Option<S3Result<Bytes>> {
        match self {
            Incoming::Upload(upload) => Some(upload.next().await?.map_err(body_fault)),
            Incoming::Blob { blob, .. } => Some(blob.next().await?.map_err(|_| {
                s3_error!(
                    IncompleteBody,
                    "The request body could not be read to its end"
                )
            })),
        }
    }

    /// As [`Incoming::next`], for an upload under a key: one that waits for its client does not outlive the key.
    pub async fn next_under(&mut self, key: &ObjectKey, at: At<'_>) -> Option<S3Result<Bytes>> {
        futures_lite::future::or(self.next(), async { Some(Err(key.lost(at).await)) }).await
    }

    /// The trailers, once the end was read.
    pub fn trailers(&self) -> HeaderMap {
        match self {
            Incoming::Upload(upload) => upload.trailers(),
            Incoming::Blob { trailers, .. } => trailers
                .as_ref()
                .and_then(TrailingHeaders::take)
                .unwrap_or_default(),
        }
    }
}

/// What is computed over a body: its ETag and its checksums, each once.
pub struct Intake {
    announced: Announced,
    etag: EtagHasher,
    hashers: Vec<Hasher>,
}

/// What a body turned out to be.
pub struct Taken {
    pub etag: String,
    /// The announced checksum first, if there was one.
    pub sums: Vec<Sum>,
}

impl Intake {
    /// Computes what was announced, and `also` that.
    pub fn new(announced: Announced, etag: EtagHasher, also: Option<Algorithm>) -> Self {
        let mut algorithms: Vec<Algorithm> = announced.algorithm().into_iter().collect();
        if let Some(also) = also
            && !algorithms.contains(&also)
        {
            algorithms.push(also);
        }
        Intake {
            announced,
            etag,
            hashers: algorithms.into_iter().map(Hasher::new).collect(),
        }
    }

    /// Takes the next frame. Other uploads may get a turn at its end, so it should be the last that is done with the frame.
    pub async fn update(&mut self, frame: &Bytes) {
        for hasher in &mut self.hashers {
            hasher.update(frame);
        }
        self.etag.update(frame).await;
    }

    /// Checks what was announced against what came.
    pub async fn finish(self, trailers: &HeaderMap) -> S3Result<Taken> {
        let sums: Vec<Sum> = self.hashers.into_iter().map(Hasher::finish).collect();
        checksum::verify(&self.announced, trailers, &sums)?;
        Ok(Taken {
            etag: self.etag.finish().await?,
            sums,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::super::lanes::Lanes;
    use super::*;
    use crate::config::Etag;

    #[test]
    fn each_algorithm_is_computed_once() {
        let intake = |announced, also| {
            let etag = EtagHasher::internal(&Lanes::default(), Etag::Md5, None);
            let mut intake = Intake::new(announced, etag, also);
            block_on(intake.update(&Bytes::from_static(b"123456789")));
            block_on(intake.finish(&HeaderMap::new()))
                .expect("nothing to check")
                .sums
        };
        assert_eq!(intake(Announced::Nothing, None).len(), 0);
        assert_eq!(
            intake(Announced::Nothing, Some(Algorithm::DEFAULT)).len(),
            1
        );
        let crc32 = checksum::parse_value(Algorithm::Crc32, "y/Q5Jg==").expect("well-formed");
        let same = intake(Announced::Value(crc32.clone()), Some(Algorithm::Crc32));
        assert_eq!(same.len(), 1);
        let both = intake(Announced::Value(crc32), Some(Algorithm::Crc64Nvme));
        assert_eq!(both[0].algorithm, Algorithm::Crc32);
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn a_body_without_a_length_is_refused_and_one_of_known_length_read() {
        let none = Extensions::new();
        let body = s3s::Body::from(Bytes::from_static(b"abc"));
        let mut incoming = Incoming::new(&none, Some(body.into()), None, None);
        assert_eq!(incoming.length().expect("known"), 3);
        let frame = block_on(incoming.next()).expect("a frame").expect("fine");
        assert_eq!(frame, "abc");
        assert!(block_on(incoming.next()).is_none());
        let endless =
            StreamingBlob::wrap(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let fault = Incoming::new(&none, Some(endless), None, None).length();
        assert_eq!(
            fault.expect_err("unknown").code().as_str(),
            "MissingContentLength"
        );
    }
}
