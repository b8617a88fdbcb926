//! Checksums of objects and parts: what a request announces, how they are computed, combined, and stored.
//!
//! A stored blob, opaque to the engine; integers are little-endian:
//!
//! ```text
//! offset  size  field
//! 0       1     format version, 1
//! 1       1     number of checksums, n
//! 2       4n    for each: algorithm (1), type (1: 0 full object, 1 composite), parts of a composite (2)
//! 2+4n    m     the digests one after the other, each as long as its algorithm's; for a sealed object as one DARE package
//!               under the checksum key of the object key
//! ```
//!
//! Digests are of the plaintext, so they lie sealed wherever the object does. Which algorithms there are says nothing about the
//! data, and lists show it without a key. All numbers are frozen.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, StatusCode};
use s3s::dto::{ChecksumAlgorithm, ChecksumType};
use s3s::{S3Result, s3_error};
use sha2::Digest as _;
use strongroom_engine::dare;
use strongroom_engine::hierarchy;
use strongroom_engine::secret::Secret;
use subtle::ConstantTimeEq;

use crate::crc::Crc;
use crate::error::custom;

const VERSION: u8 = 1;
const PREFIX: &str = "x-amz-checksum-";
/// Headers that begin like a checksum and are none.
const NOT_CHECKSUMS: [&str; 3] = ["algorithm", "mode", "type"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Crc32,
        Algorithm::Crc32c,
        Algorithm::Crc64Nvme,
        Algorithm::Sha1,
        Algorithm::Sha256,
    ];
    /// What is computed when the client names none.
    pub const DEFAULT: Algorithm = Algorithm::Crc64Nvme;

    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Crc32 => ChecksumAlgorithm::CRC32,
            Algorithm::Crc32c => ChecksumAlgorithm::CRC32C,
            Algorithm::Crc64Nvme => ChecksumAlgorithm::CRC64NVME,
            Algorithm::Sha1 => ChecksumAlgorithm::SHA1,
            Algorithm::Sha256 => ChecksumAlgorithm::SHA256,
        }
    }

    pub fn header(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "x-amz-checksum-crc32",
            Algorithm::Crc32c => "x-amz-checksum-crc32c",
            Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Algorithm::Sha1 => "x-amz-checksum-sha1",
            Algorithm::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// Length of the digest in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
        }
    }

    /// By the name in headers and XML.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|a| a.name().eq_ignore_ascii_case(name))
    }

    /// Whether parts of this algorithm can make one checksum of the whole object.
    pub fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::FullObject => self.crc().is_some(),
            Kind::Composite => self != Algorithm::Crc64Nvme,
        }
    }

    /// The type of a multipart upload that names the algorithm alone.
    pub fn multipart_kind(self) -> Kind {
        match self {
            Algorithm::Crc64Nvme => Kind::FullObject,
            _ => Kind::Composite,
        }
    }

    pub fn dto(self) -> ChecksumAlgorithm {
        ChecksumAlgorithm::from_static(self.name())
    }

    fn by_header(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|a| a.header().eq_ignore_ascii_case(name))
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Algorithm::Sha1 | Algorithm::Sha256 => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Algorithm::Crc32 => 1,
            Algorithm::Crc32c => 2,
            Algorithm::Crc64Nvme => 3,
            Algorithm::Sha1 => 4,
            Algorithm::Sha256 => 5,
        }
    }

    fn by_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.number() == number)
    }

    fn digest_of_crc(self, crc: u64) -> Vec<u8> {
        crc.to_be_bytes()[8 - self.digest_len()..].to_vec()
    }
}

/// What a checksum is of: all bytes of the object, or the digests of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    FullObject,
    Composite,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::FullObject => ChecksumType::FULL_OBJECT,
            Kind::Composite => ChecksumType::COMPOSITE,
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Kind::FullObject, Kind::Composite]
            .into_iter()
            .find(|k| k.name() == name)
    }

    pub fn dto(self) -> ChecksumType {
        ChecksumType::from_static(self.name())
    }
}

/// One checksum. It has no `Debug`: it identifies plaintext.
#[derive(Clone)]
pub struct Sum {
    pub algorithm: Algorithm,
    pub kind: Kind,
    /// Number of parts of a composite, else 0.
    pub parts: u16,
    digest: Vec<u8>,
}

impl Sum {
    pub fn full(algorithm: Algorithm, digest: Vec<u8>) -> Self {
        assert_eq!(digest.len(), algorithm.digest_len());
        Sum {
            algorithm,
            kind: Kind::FullObject,
            parts: 0,
            digest,
        }
    }

    /// As clients see it: base64, and `-N` behind that of a composite.
    pub fn text(&self) -> String {
        let digest = STANDARD.encode(&self.digest);
        match self.kind {
            Kind::FullObject => digest,
            Kind::Composite => format!("{digest}-{}", self.parts),
        }
    }

    /// Whether `text` names this digest, with or without the number of parts.
    pub fn is(&self, text: &str) -> bool {
        let own = self.text();
        let bare = own.split('-').next().unwrap_or_default();
        own.as_bytes().ct_eq(text.as_bytes()).into()
            || bare.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

/// Which checksums a blob holds; known without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    pub algorithm: Algorithm,
    pub kind: Kind,
    parts: u16,
}

/// What the client says of the checksum of its upload.
#[derive(Clone)]
pub enum Announced {
    Nothing,
    /// In a header.
    Value(Sum),
    /// In the trailer of the body.
    Trailer(Algorithm),
}

impl Announced {
    /// Reads the headers of an upload. At most one checksum may be announced, in the form of its algorithm.
    pub fn read(headers: &HeaderMap) -> S3Result<Self> {
        let mut found = Announced::Nothing;
        let several = || {
            s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
            )
        };
        for (name, value) in headers {
            let Some(suffix) = name.as_str().strip_prefix(PREFIX) else {
                continue;
            };
            if NOT_CHECKSUMS.contains(&suffix) {
                continue;
            }
            if !matches!(found, Announced::Nothing) {
                return Err(several());
            }
            let algorithm = Algorithm::by_header(name.as_str()).ok_or_else(unknown_algorithm)?;
            found = Announced::Value(parse_value(algorithm, value.to_str().unwrap_or_default())?);
        }
        for name in trailer_names(headers) {
            let Some(algorithm) = Algorithm::by_header(&name) else {
                if name.eq_ignore_ascii_case("x-amz-trailer-signature") {
                    continue;
                }
                return Err(s3_error!(
                    InvalidRequest,
                    "The value specified in the x-amz-trailer header is not supported"
                ));
            };
            if !matches!(found, Announced::Nothing) {
                return Err(several());
            }
            found = Announced::Trailer(algorithm);
        }
        check_named_by_sdk(headers, &found)?;
        Ok(found)
    }

    pub fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Announced::Nothing => None,
            Announced::Value(sum) => Some(sum.algorithm),
            Announced::Trailer(algorithm) => Some(*algorithm),
        }
    }
}

fn unknown_algorithm() -> s3s::S3Error {
    s3_error!(
        InvalidRequest,
        "The algorithm type you specified in x-amz-checksum- header is invalid."
    )
}

/// A checksum in the text of its header.
pub fn parse_value(algorithm: Algorithm, text: &str) -> S3Result<Sum> {
    match STANDARD.decode(text) {
        Ok(digest) if digest.len() == algorithm.digest_len() => Ok(Sum::full(algorithm, digest)),
        _ => Err(s3_error!(
            InvalidRequest,
            "Value for {} header is invalid.",
            algorithm.header()
        )),
    }
}

fn trailer_names(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all("x-amz-trailer")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|n| n.trim().to_owned())
        .filter(|n| !n.is_empty())
        .collect()
}

/// `x-amz-sdk-checksum-algorithm` promises a checksum of that name.
fn check_named_by_sdk(headers: &HeaderMap, found: &Announced) -> S3Result<()> {
    let Some(named) = headers.get("x-amz-sdk-checksum-algorithm") else {
        return Ok(());
    };
    let named = Algorithm::parse(named.to_str().unwrap_or_default()).ok_or_else(|| {
        s3_error!(
            InvalidRequest,
            "Value for x-amz-sdk-checksum-algorithm header is invalid."
        )
    })?;
    if found.algorithm() != Some(named) {
        return Err(s3_error!(
            InvalidRequest,
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found."
        ));
    }
    Ok(())
}

/// A checksum in the making.
pub enum Hasher {
    Crc(Algorithm, Crc),
    Sha1(Box<sha1::Sha1>),
    Sha256(Box<sha2::Sha256>),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match (algorithm, algorithm.crc()) {
            (_, Some(crc)) => Hasher::Crc(algorithm, Crc::new(crc)),
            (Algorithm::Sha1, _) => Hasher::Sha1(Box::default()),
            (_, None) => Hasher::Sha256(Box::default()),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Hasher::Crc(algorithm, _) => *algorithm,
            Hasher::Sha1(_) => Algorithm::Sha1,
            Hasher::Sha256(_) => Algorithm::Sha256,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Crc(_, crc) => crc.update(bytes),
            Hasher::Sha1(sha) => sha.update(bytes),
            Hasher::Sha256(sha) => sha.update(bytes),
        }
    }

    pub fn finish(self) -> Sum {
        let algorithm = self.algorithm();
        let digest = match self {
            Hasher::Crc(algorithm, crc) => algorithm.digest_of_crc(crc.finish()),
            Hasher::Sha1(sha) => sha.finalize().to_vec(),
            Hasher::Sha256(sha) => sha.finalize().to_vec(),
        };
        Sum::full(algorithm, digest)
    }
}

/// What was announced, against what came: the value in the header, or that in the trailer.
pub fn verify(announced: &Announced, trailers: &HeaderMap, computed: &[Sum]) -> S3Result<()> {
    let expected = match announced {
        Announced::Nothing => return Ok(()),
        Announced::Value(sum) => sum.clone(),
        Announced::Trailer(algorithm) => {
            let value = trailers.get(algorithm.header()).ok_or_else(|| {
                custom(
                    "MalformedTrailerError",
                    StatusCode::BAD_REQUEST,
                    "The request contained trailing data that was not well-formed or did not conform to our published schema.",
                )
            })?;
            parse_value(*algorithm, value.to_str().unwrap_or_default())?
        }
    };
    let same = computed
        .iter()
        .find(|sum| sum.algorithm == expected.algorithm)
        .is_some_and(|sum| sum.digest.ct_eq(&expected.digest).into());
    if !same {
        return Err(s3_error!(
            BadDigest,
            "The {} you specified did not match the calculated checksum.",
            expected.algorithm.name()
        ));
    }
    Ok(())
}

/// The checksum of an object from those of its parts, with their lengths, in order. None where one part lacks the algorithm.
pub fn of_parts(algorithm: Algorithm, kind: Kind, parts: &[(&[Sum], u64)]) -> Option<Sum> {
    let digests = parts.iter().map(|(sums, len)| {
        let sum = sums.iter().find(|s| s.algorithm == algorithm)?;
        Some((&sum.digest, *len))
    });
    match kind {
        Kind::Composite => {
            let mut hasher = Hasher::new(algorithm);
            for part in digests {
                hasher.update(part?.0);
            }
            Some(Sum {
                kind,
                parts: u16::try_from(parts.len()).ok()?,
                ..hasher.finish()
            })
        }
        Kind::FullObject => {
            let crc = algorithm.crc()?;
            let mut whole = crc_fast::checksum(crc, b"");
            for part in digests {
                let (digest, len) = part?;
                let next = digest.iter().fold(0, |n, b| n << 8 | u64::from(*b));
                whole = crc_fast::checksum_combine(crc, whole, next, len);
            }
            Some(Sum::full(algorithm, algorithm.digest_of_crc(whole)))
        }
    }
}

/// The blob to store: digests sealed under the object key, where there is one. None when there is nothing to store.
pub fn to_blob(sums: &[Sum], object_key: Option<&Secret>) -> Option<Vec<u8>> {
    if sums.is_empty() {
        return None;
    }
    let count = u8::try_from(sums.len()).expect("no more than there are algorithms");
    let mut blob = vec![VERSION, count];
    for sum in sums {
        blob.push(sum.algorithm.number());
        blob.push(match sum.kind {
            Kind::FullObject => 0,
            Kind::Composite => 1,
        });
        blob.extend_from_slice(&sum.parts.to_le_bytes());
    }
    let digests: Vec<u8> = sums.iter().flat_map(|s| s.digest.iter().copied()).collect();
    match object_key {
        None => blob.extend_from_slice(&digests),
        Some(key) => {
            let mut nonce = [0; 12];
            getrandom::fill(&mut nonce).expect("the system's random source must answer");
            let key = hierarchy::checksum_key(key);
            blob.extend_from_slice(&dare::seal::seal_blob(&key, nonce, &digests));
        }
    }
    Some(blob)
}

/// Which checksums a blob holds. Empty for a blob that nobody here wrote.
pub fn names(blob: &[u8]) -> Vec<Named> {
    split(blob).map(|(names, _)| names).unwrap_or_default()
}

/// The checksums of a blob. None where it is not what was written.
pub fn from_blob(blob: &[u8], object_key: Option<&Secret>) -> Option<Vec<Sum>> {
    let (names, digests) = split(blob)?;
    let opened;
    let mut digests = match object_key {
        None => digests,
        Some(key) => {
            let key = hierarchy::checksum_key(key);
            opened = dare::open::open_blob(&key, digests, dare::header::Version::V20).ok()?;
            &opened[..]
        }
    };
    let mut sums = Vec::with_capacity(names.len());
    for name in names {
        let (digest, rest) = digests.split_at_checked(name.algorithm.digest_len())?;
        digests = rest;
        sums.push(Sum {
            algorithm: name.algorithm,
            kind: name.kind,
            parts: name.parts,
            digest: digest.to_vec(),
        });
    }
    digests.is_empty().then_some(sums)
}

fn split(blob: &[u8]) -> Option<(Vec<Named>, &[u8])> {
    let (&[VERSION, count], rest) = blob.split_first_chunk::<2>()? else {
        return None;
    };
    let (table, digests) = rest.split_at_checked(4 * usize::from(count))?;
    let names = table
        .chunks_exact(4)
        .map(|row| {
            Some(Named {
                algorithm: Algorithm::by_number(row[0])?,
                kind: match row[1] {
                    0 => Kind::FullObject,
                    1 => Kind::Composite,
                    _ => return None,
                },
                parts: u16::from_le_bytes([row[2], row[3]]),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some((names, digests))
}

/// The five fields that many answers of S3 have for a checksum.
#[derive(Default)]
pub struct Fields {
    pub crc32: Option<String>,
    pub crc32c: Option<String>,
    pub crc64nvme: Option<String>,
    pub sha1: Option<String>,
    pub sha256: Option<String>,
    pub kind: Option<ChecksumType>,
}

impl Fields {
    pub fn of(sums: &[Sum]) -> Self {
        let mut fields = Fields::default();
        for sum in sums {
            let text = Some(sum.text());
            match sum.algorithm {
                Algorithm::Crc32 => fields.crc32 = text,
                Algorithm::Crc32c => fields.crc32c = text,
                Algorithm::Crc64Nvme => fields.crc64nvme = text,
                Algorithm::Sha1 => fields.sha1 = text,
                Algorithm::Sha256 => fields.sha256 = text,
            }
            fields.kind = Some(sum.kind.dto());
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn sum_of(algorithm: Algorithm, bytes: &[u8]) -> Sum {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                let value = HeaderValue::from_str(v).expect("ASCII");
                (HeaderName::from_static(n), value)
            })
            .collect()
    }

    fn code<T>(result: S3Result<T>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    #[test]
    fn check_values_of_the_catalogue() {
        let check = |a| sum_of(a, b"123456789").text();
        assert_eq!(
            check(Algorithm::Crc32),
            STANDARD.encode(0xcbf4_3926_u32.to_be_bytes())
        );
        assert_eq!(
            check(Algorithm::Crc32c),
            STANDARD.encode(0xe306_9283_u32.to_be_bytes())
        );
        assert_eq!(
            check(Algorithm::Crc64Nvme),
            STANDARD.encode(0xae8b_1486_0a79_9888_u64.to_be_bytes())
        );
        assert_eq!(
            sum_of(Algorithm::Sha256, b"abc").digest,
            hex::decode("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
                .expect("hex")
        );
        assert_eq!(
            sum_of(Algorithm::Sha1, b"abc").digest,
            hex::decode("a9993e364706816aba3e25717850c26c9cd0d89d").expect("hex")
        );
    }

    proptest! {
        #[test]
        fn full_object_checksums_combine_from_any_parts(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6)) {
            let whole = parts.concat();
            for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
                let sums: Vec<[Sum; 1]> = parts.iter().map(|p| [sum_of(algorithm, p)]).collect();
                let parts: Vec<(&[Sum], u64)> = sums.iter().zip(&parts).map(|(s, p)| (&s[..], p.len() as u64)).collect();
                let combined = of_parts(algorithm, Kind::FullObject, &parts).expect("all have it");
                prop_assert_eq!(combined.text(), sum_of(algorithm, &whole).text());
            }
        }

        #[test]
        fn blobs_keep_their_sums_and_open_only_under_their_key(bytes in any::<[u8; 32]>(), sealed in any::<bool>()) {
            let key = Secret::new(bytes);
            let key = sealed.then_some(&key);
            let sums: Vec<Sum> = Algorithm::ALL.iter().map(|a| sum_of(*a, &bytes)).collect();
            let blob = to_blob(&sums, key).expect("sums");
            let back = from_blob(&blob, key).expect("a blob of ours");
            for (a, b) in sums.iter().zip(&back) {
                prop_assert_eq!(a.text(), b.text());
            }
            prop_assert_eq!(names(&blob).len(), 5);
            if sealed {
                prop_assert!(from_blob(&blob, Some(&Secret::new([1; 32]))).is_none());
                for sum in &sums {
                    prop_assert!(!blob.windows(sum.digest.len()).any(|w| w == sum.digest));
                }
            }
        }

        #[test]
        fn any_bytes_are_read_as_a_blob_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = names(&bytes);
            let _ = from_blob(&bytes, None);
            let _ = from_blob(&bytes, Some(&Secret::new([0; 32])));
        }
    }

    #[test]
    fn a_composite_is_of_the_digests_and_names_its_parts() {
        let parts = [
            [sum_of(Algorithm::Sha256, b"a")],
            [sum_of(Algorithm::Sha256, b"b")],
        ];
        let both: Vec<u8> = parts.iter().flat_map(|p| p[0].digest.clone()).collect();
        let expected = format!("{}-2", sum_of(Algorithm::Sha256, &both).text());
        let given: Vec<(&[Sum], u64)> = parts.iter().map(|p| (&p[..], 1)).collect();
        let sum = of_parts(Algorithm::Sha256, Kind::Composite, &given).expect("all have it");
        assert_eq!(sum.text(), expected);
        assert!(sum.is(&expected));
        assert!(sum.is(expected.trim_end_matches("-2")));
        assert!(!sum.is("AAAA"));
        assert!(of_parts(Algorithm::Crc32, Kind::Composite, &given).is_none());
        let blob = to_blob(std::slice::from_ref(&sum), None).expect("a sum");
        assert_eq!(from_blob(&blob, None).expect("own")[0].text(), expected);
    }

    #[test]
    fn a_request_announces_one_checksum_at_most() {
        let crc = "y/Q5Jg==";
        let ok = Announced::read(&headers(&[
            ("x-amz-checksum-crc32", crc),
            ("x-amz-checksum-mode", "ENABLED"),
            ("x-amz-checksum-type", "FULL_OBJECT"),
            ("x-amz-checksum-algorithm", "CRC32"),
        ]));
        assert_eq!(ok.expect("one").algorithm(), Some(Algorithm::Crc32));
        let trailer = Announced::read(&headers(&[("x-amz-trailer", "x-amz-checksum-sha256")]));
        assert_eq!(trailer.expect("one").algorithm(), Some(Algorithm::Sha256));
        for bad in [
            &[
                ("x-amz-checksum-crc32", crc),
                ("x-amz-checksum-crc32c", crc),
            ][..],
            &[
                ("x-amz-checksum-crc32", crc),
                ("x-amz-trailer", "x-amz-checksum-crc32"),
            ],
            &[("x-amz-trailer", "x-amz-checksum-crc32, x-amz-checksum-sha1")],
            &[("x-amz-trailer", "x-amz-meta-a")],
            &[("x-amz-checksum-crc32", "AAAA")],
            &[("x-amz-checksum-crc32", "!")],
            &[("x-amz-checksum-crc7", crc)],
            &[("x-amz-sdk-checksum-algorithm", "CRC32")],
            &[("x-amz-sdk-checksum-algorithm", "CRC7")],
            &[
                ("x-amz-sdk-checksum-algorithm", "SHA1"),
                ("x-amz-checksum-crc32", crc),
            ],
        ] {
            assert_eq!(
                code(Announced::read(&headers(bad))),
                "InvalidRequest",
                "{bad:?}"
            );
        }
    }

    #[test]
    fn what_comes_has_to_be_what_was_announced() {
        let computed = [sum_of(Algorithm::Crc32, b"123456789")];
        let value = |v: &str| {
            Announced::read(&headers(&[("x-amz-checksum-crc32", v)])).expect("well-formed")
        };
        let none = HeaderMap::new();
        assert_eq!(code(verify(&value("y/Q5Jg=="), &none, &computed)), "none");
        assert_eq!(
            code(verify(&value("y/Q5Jw=="), &none, &computed)),
            "BadDigest"
        );
        let trailer = Announced::Trailer(Algorithm::Crc32);
        assert_eq!(
            code(verify(&trailer, &none, &computed)),
            "MalformedTrailerError"
        );
        let right = headers(&[("x-amz-checksum-crc32", "y/Q5Jg==")]);
        assert_eq!(code(verify(&trailer, &right, &computed)), "none");
        let wrong = headers(&[("x-amz-checksum-crc32", "AAAAAA==")]);
        assert_eq!(code(verify(&trailer, &wrong, &computed)), "BadDigest");
        let broken = headers(&[("x-amz-checksum-crc32", "AAA")]);
        assert_eq!(code(verify(&trailer, &broken, &computed)), "InvalidRequest");
    }
}
