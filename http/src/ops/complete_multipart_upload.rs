//! CompleteMultipartUpload: what the client lists against what is stored, the object's ETag and checksum from those of its parts,
//! and one commit that makes it visible.
//!
//! To repeat a completion that succeeded is no error: while the object made by it stands, it is answered alike.

use std::collections::BTreeMap;
use std::rc::Rc;

use http::HeaderMap;
use s3s::dto::{
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedMultipartUpload,
    CompletedPart,
};
use s3s::{S3Error, S3Request, S3Result, s3_error};
use strongroom_engine::record::{Data, Mode, Object, Upload, UploadId};
use strongroom_engine::secret::Secret;
use strongroom_engine::{Completion, Error, PartChoice, PartEntry};

use super::create_multipart_upload::UploadChecksum;
use super::uri::percent_encode;
use super::{
    Inner, LIST_MAX, PART_BYTES_MIN, PARTS_MAX, condition, etag, headers, parse_upload_id,
};
use crate::checksum::{self, Algorithm, Fields, Kind, Sum};
use crate::error::{At, OrS3, corrupt, element, engine_fault, invalid_part};
use crate::sse::access::{self, Unlocked};
use crate::sse::{self, Answer};

pub async fn complete_multipart_upload(
    inner: &Inner,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<CompleteMultipartUploadOutput> {
    let input = request.input;
    let at = At::upload(&input.bucket, &input.key, &input.upload_id);
    let headers = headers(&request.headers, &request.extensions);

    inner.drives.bucket(at.bucket).at(at)?;
    let id = parse_upload_id(at.upload).at(at)?;
    let listed = listed_parts(input.multipart_upload)?;
    let upload = match inner.shard(at)?.upload(at.bucket, at.key, &id).await {
        Ok(upload) => upload,
        Err(Error::NoSuchUpload) => return repeat(inner, &id, at).await,
        Err(fault) => return Err(engine_fault(fault, at)),
    };
    let asked = Asked::read(headers, &upload)?;
    // The committer alone decides it: it can tell a key that changed since the upload began from one that never matched.
    let condition = condition::of_write(headers);

    let stored = stored_parts(inner, &id, at).await?;
    let encryption = upload.encryption.as_ref();
    let in_headers = inner.asked(headers, &request.extensions);
    let object_key = match access::of_upload(&in_headers, encryption, at)? {
        Unlocked::Key(key) => Some(key),
        Unlocked::ByService => Some(sse::open_key(&inner.keys, encryption, None, at).await?),
        // Nobody asked for a checksum, so nothing has to be opened.
        Unlocked::Locked if asked.is_nothing() && !listed.iter().any(has_sum) => None,
        Unlocked::Locked => return Err(access::part_needs_key()),
    };
    let opener = match &object_key {
        Some(key) => Opener::Key(key.secret()),
        None => Opener::None,
    };
    let chosen = choose(&listed, &stored, asked.named, opener, at)?;
    let size: u64 = chosen.iter().map(|c| c.entry.part.stream.size).sum();
    if let Some(expected) = input.mpu_object_size
        && u64::try_from(expected) != Ok(size)
    {
        return Err(s3_error!(
            InvalidRequest,
            "The provided 'x-amz-mp-object-size' header value {expected} does not match what was computed: {size}"
        ));
    }
    let sum = asked.checksum(&chosen)?;
    let sums: Vec<Sum> = sum.into_iter().collect();
    let tag = super::etag::of_parts(
        inner.config.etag,
        chosen.iter().map(|c| c.entry.part.etag.as_str()),
    );
    let done = Completion {
        parts: chosen
            .iter()
            .map(|c| PartChoice {
                number: c.entry.number,
                sequence: c.entry.sequence,
            })
            .collect(),
        etag: tag.clone(),
        checksum: match &object_key {
            Some(key) => checksum::to_blob(&sums, key.secret()),
            None => None,
        },
        condition,
    };
    let hold = match &object_key {
        Some(key) => key.hold(at)?,
        None => None,
    };
    let complete = {
        let shard = Rc::clone(inner.shard(at)?);
        let (bucket, key) = (at.bucket.to_owned(), at.key.to_owned());
        async move { shard.complete_upload(&bucket, &key, &id, done).await }
    };
    match sse::held(hold, complete).await {
        Ok(_) => Ok(answer(at, &tag, encryption, &sums)),
        // Somebody completed it in the meantime; perhaps a repeat of this very request.
        Err(Error::NoSuchUpload) => repeat(inner, &id, at).await,
        Err(Error::Conflict) => Err(conflict(headers)),
        Err(fault) => Err(engine_fault(fault, at)),
    }
}

/// The parts that the request lists, in ascending order.
fn listed_parts(listed: Option<CompletedMultipartUpload>) -> S3Result<Vec<CompletedPart>> {
    let malformed = || {
        s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema"
        )
    };
    let parts = listed.ok_or_else(malformed)?.parts.unwrap_or_default();
    if parts.is_empty() {
        return Err(s3_error!(
            InvalidRequest,
            "You must specify at least one part"
        ));
    }
    if parts.len() > usize::from(PARTS_MAX) {
        return Err(malformed());
    }
    let mut last = 0;
    for part in &parts {
        let number = part.part_number.ok_or_else(malformed)?;
        super::part_number(number)?;
        if number <= last {
            return Err(s3_error!(
                InvalidPartOrder,
                "The list of parts was not in ascending order. The parts list must be specified in order by part number."
            ));
        }
        last = number;
    }
    Ok(parts)
}

/// What the request and the upload say of the object's checksum.
struct Asked {
    /// As the upload was begun.
    named: Option<UploadChecksum>,
    /// The checksum of the whole, as the client knows it.
    expected: Option<(Algorithm, String)>,
}

impl Asked {
    fn read(headers: &HeaderMap, upload: &Upload) -> S3Result<Self> {
        let named = upload.checksum.as_deref().and_then(UploadChecksum::parse);
        let of_upload = named.unwrap_or(UploadChecksum::DEFAULT);
        if let Some(kind) = headers.get("x-amz-checksum-type") {
            let kind = kind.to_str().unwrap_or_default();
            if Kind::parse(kind) != Some(of_upload.kind) {
                return Err(s3_error!(
                    InvalidRequest,
                    "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
                    of_upload.kind.name()
                ));
            }
        }
        let mut expected = None;
        for algorithm in Algorithm::ALL {
            let Some(value) = headers.get(algorithm.header()) else {
                continue;
            };
            if expected.is_some() {
                return Err(s3_error!(
                    InvalidRequest,
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
                ));
            }
            if algorithm != of_upload.algorithm {
                return Err(s3_error!(
                    InvalidRequest,
                    "The upload was created using the {} checksum. The complete request must use the same checksum.",
                    of_upload.algorithm.name().to_ascii_lowercase()
                ));
            }
            let text = value.to_str().unwrap_or_default();
            let digest = text.split('-').next().unwrap_or_default();
            checksum::parse_value(algorithm, digest)?;
            expected = Some((algorithm, text.to_owned()));
        }
        Ok(Asked { named, expected })
    }

    /// Whether the client neither named nor knows a checksum.
    fn is_nothing(&self) -> bool {
        self.named.is_none() && self.expected.is_none()
    }

    /// The checksum of the object, checked against what the client knows. None where a part has none of that algorithm.
    fn checksum(&self, chosen: &[Chosen<'_>]) -> S3Result<Option<Sum>> {
        let of = self.named.unwrap_or(UploadChecksum::DEFAULT);
        let parts: Vec<(&[Sum], u64)> = chosen
            .iter()
            .map(|c| (&c.sums[..], c.entry.part.stream.size))
            .collect();
        let sum = checksum::of_parts(of.algorithm, of.kind, &parts);
        if let Some((algorithm, expected)) = &self.expected
            && !sum.as_ref().is_some_and(|sum| sum.is(expected))
        {
            return Err(s3_error!(
                BadDigest,
                "The {} you specified did not match the calculated checksum.",
                algorithm.name()
            ));
        }
        Ok(sum)
    }
}

/// What opens the checksums of parts.
#[derive(Clone, Copy)]
enum Opener<'a> {
    /// The upload's object key; no key where the upload is not sealed.
    Key(Option<&'a Secret>),
    /// The customer's key is not at hand.
    None,
}

/// Whether a listed part comes with a checksum.
fn has_sum(part: &CompletedPart) -> bool {
    part.checksum_crc32.is_some()
        || part.checksum_crc32c.is_some()
        || part.checksum_crc64nvme.is_some()
        || part.checksum_sha1.is_some()
        || part.checksum_sha256.is_some()
}

/// A part that makes it into the object.
struct Chosen<'a> {
    entry: &'a PartEntry,
    sums: Vec<Sum>,
}

/// Pairs each listed part with the stored one, and refuses it where they are not the same or it is too small.
fn choose<'a>(
    listed: &[CompletedPart],
    stored: &'a BTreeMap<u16, PartEntry>,
    named: Option<UploadChecksum>,
    opener: Opener<'_>,
    at: At<'_>,
) -> S3Result<Vec<Chosen<'a>>> {
    let mut chosen = Vec::with_capacity(listed.len());
    for (i, part) in listed.iter().enumerate() {
        let number = part.part_number.unwrap_or_default();
        let given = part.e_tag.as_ref().map(|e| e.value());
        let invalid = || invalid_part(at.upload, number, given);
        let entry = u16::try_from(number)
            .ok()
            .and_then(|n| stored.get(&n))
            .ok_or_else(invalid)?;
        if given != Some(entry.part.etag.as_str()) {
            return Err(invalid());
        }
        let sums = match (entry.part.checksum.as_deref(), opener) {
            (None, _) | (_, Opener::None) => Vec::new(),
            (Some(blob), Opener::Key(object_key)) => checksum::from_blob(blob, object_key)
                .ok_or_else(|| corrupt("a sealed checksum of a part", at))?,
        };
        check_part_sums(part, &sums, named, invalid)?;
        let size = entry.part.stream.size;
        if i + 1 < listed.len() && size < PART_BYTES_MIN {
            return Err(too_small(size, number, &entry.part.etag));
        }
        chosen.push(Chosen { entry, sums });
    }
    Ok(chosen)
}

fn check_part_sums(
    part: &CompletedPart,
    sums: &[Sum],
    named: Option<UploadChecksum>,
    invalid: impl Fn() -> S3Error,
) -> S3Result<()> {
    let given = |algorithm| match algorithm {
        Algorithm::Crc32 => part.checksum_crc32.as_deref(),
        Algorithm::Crc32c => part.checksum_crc32c.as_deref(),
        Algorithm::Crc64Nvme => part.checksum_crc64nvme.as_deref(),
        Algorithm::Sha1 => part.checksum_sha1.as_deref(),
        Algorithm::Sha256 => part.checksum_sha256.as_deref(),
    };
    for algorithm in Algorithm::ALL {
        let Some(text) = given(algorithm) else {
            continue;
        };
        let same = sums
            .iter()
            .any(|sum| sum.algorithm == algorithm && sum.is(text));
        if !same {
            return Err(invalid());
        }
    }
    if let Some(named) = named
        && named.kind == Kind::Composite
        && given(named.algorithm).is_none()
    {
        return Err(s3_error!(
            InvalidRequest,
            "The upload was created using a {} checksum. The complete request must include the checksum for each part. It was missing for part {} in the request.",
            named.algorithm.name().to_ascii_lowercase(),
            part.part_number.unwrap_or_default()
        ));
    }
    Ok(())
}

fn too_small(size: u64, number: i32, etag: &str) -> S3Error {
    let fault = s3_error!(
        EntityTooSmall,
        "Your proposed upload is smaller than the minimum allowed size"
    );
    let fault = element(fault, "ProposedSize", &size.to_string());
    let fault = element(fault, "MinSizeAllowed", &PART_BYTES_MIN.to_string());
    let fault = element(fault, "PartNumber", &number.to_string());
    element(fault, "ETag", etag)
}

async fn stored_parts(
    inner: &Inner,
    id: &UploadId,
    at: At<'_>,
) -> S3Result<BTreeMap<u16, PartEntry>> {
    let mut stored = BTreeMap::new();
    let mut after = 0;
    loop {
        let (page, more) = inner
            .shard(at)?
            .parts(at.bucket, at.key, id, after, LIST_MAX)
            .await
            .at(at)?;
        let Some(last) = page.last() else {
            return Ok(stored);
        };
        after = last.number;
        stored.extend(page.into_iter().map(|entry| (entry.number, entry)));
        if !more {
            return Ok(stored);
        }
    }
}

/// The answer to a completion of an upload that is gone: the same as before, if the object is the one it made.
async fn repeat(
    inner: &Inner,
    id: &UploadId,
    at: At<'_>,
) -> S3Result<CompleteMultipartUploadOutput> {
    let gone = || engine_fault(Error::NoSuchUpload, at);
    let found = match inner.shard(at)?.lookup(at.bucket, at.key).await {
        Ok(found) => found,
        Err(Error::NoSuchKey) => return Err(gone()),
        Err(fault) => return Err(engine_fault(fault, at)),
    };
    let object: &Object = &found.object;
    if !matches!(&object.data, Data::Parts(of, _) if of == id) {
        return Err(gone());
    }
    let encryption = object.encryption.as_ref();
    let by_customer = encryption.is_some_and(|e| e.mode == Mode::SseC);
    let sums = match object.checksum.as_deref() {
        // What only the customer's key opens is not shown twice.
        None => Vec::new(),
        Some(_) if by_customer => Vec::new(),
        Some(blob) => {
            let object_key = sse::open_key(&inner.keys, encryption, None, at).await?;
            checksum::from_blob(blob, object_key.secret()).unwrap_or_default()
        }
    };
    Ok(answer(at, &object.etag, encryption, &sums))
}

fn answer(
    at: At<'_>,
    tag: &str,
    encryption: Option<&strongroom_engine::record::Encryption>,
    sums: &[Sum],
) -> CompleteMultipartUploadOutput {
    let sums = Fields::of(sums);
    let sealed = Answer::of(encryption, None);
    CompleteMultipartUploadOutput {
        bucket: Some(at.bucket.to_owned()),
        key: Some(at.key.to_owned()),
        location: Some(format!("/{}/{}", at.bucket, percent_encode(at.key))),
        e_tag: Some(etag(tag)),
        server_side_encryption: sealed.method,
        ssekms_key_id: sealed.kms_key_id,
        bucket_key_enabled: sealed.bucket_key,
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind,
        ..Default::default()
    }
}

fn conflict(headers: &HeaderMap) -> S3Error {
    let condition = match headers.contains_key("if-match") {
        true => "If-Match",
        false => "If-None-Match",
    };
    let fault = s3_error!(
        ConditionalRequestConflict,
        "The conditional request cannot succeed due to a conflicting operation against this resource."
    );
    element(fault, "Condition", condition)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use s3s::dto::ETag;
    use strongroom_engine::record::{Metadata, Part, Place, Stream};

    use super::*;
    use crate::checksum::Hasher;

    fn listed(number: i32, etag: &str) -> CompletedPart {
        CompletedPart {
            part_number: Some(number),
            e_tag: Some(ETag::Strong(etag.into())),
            ..Default::default()
        }
    }

    fn entry(number: u16, etag: &str, size: u64, body: &[u8], algorithm: Algorithm) -> PartEntry {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(body);
        PartEntry {
            number,
            sequence: u64::from(number),
            part: Part {
                modified: 0,
                etag: etag.into(),
                checksum: checksum::to_blob(&[hasher.finish()], None),
                stream: Stream {
                    size,
                    nonce: None,
                    place: Place::Empty,
                },
            },
        }
    }

    fn stored(entries: Vec<PartEntry>) -> BTreeMap<u16, PartEntry> {
        entries.into_iter().map(|e| (e.number, e)).collect()
    }

    fn upload(checksum: Option<&str>) -> Upload {
        Upload {
            created: 0,
            metadata: Metadata::default(),
            encryption: None,
            checksum: checksum.map(str::to_owned),
            key_extent: None,
            origin: None,
        }
    }

    fn code<T>(result: S3Result<T>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    fn parts(parts: Vec<CompletedPart>) -> Option<CompletedMultipartUpload> {
        Some(CompletedMultipartUpload { parts: Some(parts) })
    }

    #[test]
    fn lists_are_ascending_and_not_empty() {
        assert_eq!(code(listed_parts(None)), "MalformedXML");
        let nothing = CompletedMultipartUpload::default();
        assert_eq!(code(listed_parts(Some(nothing))), "InvalidRequest");
        assert_eq!(code(listed_parts(parts(Vec::new()))), "InvalidRequest");
        let order = |numbers: &[i32]| {
            code(listed_parts(parts(
                numbers.iter().map(|n| listed(*n, "e")).collect(),
            )))
        };
        assert_eq!(order(&[1, 2, 10_000]), "none");
        assert_eq!(order(&[2, 1]), "InvalidPartOrder");
        assert_eq!(order(&[1, 1]), "InvalidPartOrder");
        assert_eq!(order(&[0, 1]), "InvalidArgument");
        assert_eq!(order(&[10_001]), "InvalidArgument");
        let unnumbered = CompletedPart::default();
        assert_eq!(code(listed_parts(parts(vec![unnumbered]))), "MalformedXML");
    }

    #[test]
    fn parts_are_those_that_are_stored() {
        let at = At::upload("b", "k", "u");
        let stored = stored(vec![
            entry(1, "one", PART_BYTES_MIN, b"1", Algorithm::Crc64Nvme),
            entry(2, "two", PART_BYTES_MIN - 1, b"2", Algorithm::Crc64Nvme),
            entry(3, "three", 0, b"", Algorithm::Crc64Nvme),
        ]);
        let choose =
            |list: &[CompletedPart]| code(choose(list, &stored, None, Opener::Key(None), at));
        assert_eq!(choose(&[listed(1, "one"), listed(2, "two")]), "none");
        assert_eq!(choose(&[listed(2, "two")]), "none");
        assert_eq!(
            choose(&[listed(2, "two"), listed(3, "three")]),
            "EntityTooSmall"
        );
        assert_eq!(choose(&[listed(1, "two")]), "InvalidPart");
        assert_eq!(choose(&[listed(4, "four")]), "InvalidPart");
        let untagged = CompletedPart {
            part_number: Some(1),
            ..Default::default()
        };
        assert_eq!(choose(&[untagged]), "InvalidPart");
        let summed = CompletedPart {
            checksum_crc64nvme: Some("AAAAAAAAAAA=".into()),
            ..listed(1, "one")
        };
        assert_eq!(choose(&[summed]), "InvalidPart");
    }

    #[test]
    fn composite_uploads_need_the_checksum_of_each_part() {
        let at = At::upload("b", "k", "u");
        let stored = stored(vec![entry(1, "one", 9, b"123456789", Algorithm::Crc32)]);
        let named = UploadChecksum::parse("CRC32 COMPOSITE");
        let bare = [listed(1, "one")];
        assert_eq!(
            code(choose(&bare, &stored, named, Opener::Key(None), at)),
            "InvalidRequest"
        );
        let summed = [CompletedPart {
            checksum_crc32: Some("y/Q5Jg==".into()),
            ..listed(1, "one")
        }];
        let chosen = choose(&summed, &stored, named, Opener::Key(None), at).expect("fits");
        let asked = Asked {
            named,
            expected: None,
        };
        let sum = asked.checksum(&chosen).expect("fine").expect("a sum");
        assert!(sum.text().ends_with("-1"));
        let full = UploadChecksum::parse("CRC32 FULL_OBJECT");
        assert_eq!(
            code(choose(&bare, &stored, full, Opener::Key(None), at)),
            "none"
        );
    }

    #[test]
    fn the_whole_is_checked_where_the_client_knows_it() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect()
        };
        let at = At::upload("b", "k", "u");
        let stored = stored(vec![
            entry(1, "one", PART_BYTES_MIN, b"1234", Algorithm::Crc32),
            entry(2, "two", 5, b"56789", Algorithm::Crc32),
        ]);
        let upload = upload(Some("CRC32 FULL_OBJECT"));
        let list = [listed(1, "one"), listed(2, "two")];
        let mut chosen = choose(&list, &stored, None, Opener::Key(None), at).expect("fits");
        // The first part of this test is shorter than it claims to be.
        let mut short = chosen[0].entry.clone();
        short.part.stream.size = 4;
        chosen[0].entry = &short;
        let check = |value| {
            let asked = Asked::read(&headers(&[("x-amz-checksum-crc32", value)]), &upload);
            code(asked.and_then(|asked| asked.checksum(&chosen)))
        };
        assert_eq!(check("y/Q5Jg=="), "none");
        assert_eq!(check("y/Q5Jw=="), "BadDigest");
        assert_eq!(check("y/Q"), "InvalidRequest");
        let read =
            |pairs: &[(&'static str, &'static str)]| code(Asked::read(&headers(pairs), &upload));
        assert_eq!(read(&[("x-amz-checksum-type", "FULL_OBJECT")]), "none");
        assert_eq!(
            read(&[("x-amz-checksum-type", "COMPOSITE")]),
            "InvalidRequest"
        );
        assert_eq!(
            read(&[("x-amz-checksum-crc32c", "y/Q5Jg==")]),
            "InvalidRequest"
        );
    }
}
