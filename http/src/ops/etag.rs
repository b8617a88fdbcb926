//! ETags, and the MD5 that most of them are.
//!
//! - Where the mode of encryption or the server's choice makes ETags opaque, no MD5 is computed, unless the client sent one to
//!   be checked.
//! - An opaque ETag is random; for objects that clients would compare by MD5 it ends in `-1`, which none takes for an MD5.
//! - All MD5s of bodies are computed by [`EtagHasher`], in the lanes that the uploads of a core share.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use md5::{Digest, Md5};
use s3s::{S3Result, s3_error};
use strongroom_engine::record::Mode;

use super::lanes::{Hasher, Lanes};
use crate::config::Etag;

/// The ETag of one body in the making, and the check of its `Content-MD5`.
pub struct EtagHasher {
    md5: Option<Hasher>,
    announced: Option<[u8; 16]>,
    opaque: Option<Opaque>,
}

#[derive(Clone, Copy)]
enum Opaque {
    /// As S3 shapes them for customer keys and KMS keys: 32 hex digits.
    Bare,
    /// For everything else: told apart from an MD5.
    Marked,
}

impl EtagHasher {
    /// For a body sealed in `encryption` that came with these headers.
    pub fn new(
        lanes: &Lanes,
        mode: Etag,
        encryption: Option<Mode>,
        headers: &HeaderMap,
    ) -> S3Result<Self> {
        let announced = headers.get("content-md5").map(parse_md5).transpose()?;
        Ok(Self::with(lanes, mode, encryption, announced))
    }

    /// For a body that comes from within.
    pub fn internal(lanes: &Lanes, mode: Etag, encryption: Option<Mode>) -> Self {
        Self::with(lanes, mode, encryption, None)
    }

    fn with(
        lanes: &Lanes,
        mode: Etag,
        encryption: Option<Mode>,
        announced: Option<[u8; 16]>,
    ) -> Self {
        let opaque = match (encryption, mode) {
            (Some(Mode::SseKms | Mode::SseC), _) => Some(Opaque::Bare),
            (_, Etag::Opaque) => Some(Opaque::Marked),
            (Some(Mode::SseS3) | None, Etag::Md5) => None,
        };
        let needed = opaque.is_none() || announced.is_some();
        EtagHasher {
            md5: needed.then(|| lanes.begin()),
            announced,
            opaque,
        }
    }

    pub async fn update(&mut self, frame: &Bytes) {
        if let Some(md5) = &mut self.md5 {
            md5.update(frame).await;
        }
    }

    /// The ETag, without quotes.
    pub async fn finish(self) -> S3Result<String> {
        let md5 = match self.md5 {
            Some(md5) => Some(md5.finish().await),
            None => None,
        };
        if let Some(announced) = self.announced
            && md5 != Some(announced)
        {
            return Err(s3_error!(
                BadDigest,
                "The Content-MD5 you specified did not match what we received."
            ));
        }
        Ok(match (self.opaque, md5) {
            (None, Some(md5)) => hex::encode(md5),
            (Some(Opaque::Bare), _) => random(),
            (Some(Opaque::Marked), _) | (None, None) => format!("{}-1", random()),
        })
    }
}

/// The ETag of a multipart object from those of its parts: the MD5 of their MD5s, or random where one of them is no MD5.
pub fn of_parts<'a>(mode: Etag, parts: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = parts.len();
    let mut md5 = Md5::new();
    let mut known = mode == Etag::Md5;
    for etag in parts {
        match hex::decode(etag) {
            Ok(part) if part.len() == 16 => md5.update(part),
            _ => known = false,
        }
    }
    let head = match known {
        true => hex::encode(md5.finalize()),
        false => random(),
    };
    format!("{head}-{count}")
}

/// An ETag as clients send it back: with quotes or without.
pub fn unquote(etag: &str) -> &str {
    etag.strip_prefix('"')
        .and_then(|e| e.strip_suffix('"'))
        .unwrap_or(etag)
}

fn parse_md5(value: &http::HeaderValue) -> S3Result<[u8; 16]> {
    STANDARD
        .decode(value.as_bytes())
        .ok()
        .and_then(|md5| md5.try_into().ok())
        .ok_or_else(|| s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid."))
}

fn random() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system's random source must answer");
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;
    use http::HeaderValue;

    use super::*;

    fn etag(mode: Etag, encryption: Option<Mode>) -> String {
        let mut hasher = EtagHasher::internal(&Lanes::default(), mode, encryption);
        block_on(hasher.update(&Bytes::from_static(b"ab")));
        block_on(hasher.update(&Bytes::from_static(b"c")));
        block_on(hasher.finish()).expect("nothing announced")
    }

    #[test]
    fn md5_only_where_the_mode_allows_it() {
        let md5 = "900150983cd24fb0d6963f7d28e17f72";
        assert_eq!(etag(Etag::Md5, None), md5);
        assert_eq!(etag(Etag::Md5, Some(Mode::SseS3)), md5);
        for mode in [Mode::SseKms, Mode::SseC] {
            let seen = etag(Etag::Md5, Some(mode));
            assert_eq!(seen.len(), 32);
            assert_ne!(seen, md5);
            assert_ne!(seen, etag(Etag::Md5, Some(mode)));
        }
        let opaque = etag(Etag::Opaque, Some(Mode::SseS3));
        assert_eq!(opaque.len(), 34);
        assert!(opaque.ends_with("-1") && !opaque.contains(md5));
    }

    #[test]
    fn content_md5_is_checked_in_every_mode() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(
                http::HeaderName::from_static("content-md5"),
                HeaderValue::from_static(value),
            )])
        };
        for mode in [Etag::Md5, Etag::Opaque] {
            let finish = |value, body: &'static [u8]| {
                let lanes = Lanes::default();
                let mut hasher = EtagHasher::new(&lanes, mode, None, &headers(value))?;
                block_on(hasher.update(&Bytes::from_static(body)));
                block_on(hasher.finish())
            };
            let code = |r: S3Result<String>| r.err().map(|e| e.code().as_str().to_owned());
            assert_eq!(code(finish("kAFQmDzST7DWlj99KOF/cg==", b"abc")), None);
            let bad = code(finish("kAFQmDzST7DWlj99KOF/cg==", b"abd"));
            assert_eq!(bad.as_deref(), Some("BadDigest"));
            for broken in ["", "kAFQ", "900150983cd24fb0d6963f7d28e17f72", "!"] {
                let fault = code(finish(broken, b"abc"));
                assert_eq!(fault.as_deref(), Some("InvalidDigest"), "{broken}");
            }
        }
    }

    #[test]
    fn multipart_etags_are_of_the_parts() {
        let parts = [
            "900150983cd24fb0d6963f7d28e17f72",
            "d41d8cd98f00b204e9800998ecf8427e",
        ];
        let raw: Vec<u8> = parts
            .iter()
            .flat_map(|p| hex::decode(p).expect("hex"))
            .collect();
        let expected = format!("{}-2", hex::encode(Md5::digest(raw)));
        assert_eq!(of_parts(Etag::Md5, parts.into_iter()), expected);
        assert_ne!(of_parts(Etag::Opaque, parts.into_iter()), expected);
        let mixed = [parts[0], "0123456789abcdef0123456789abcdef-1"];
        let seen = of_parts(Etag::Md5, mixed.into_iter());
        assert!(seen.len() == 34 && seen.ends_with("-2"));
    }
}
