//! ListParts: by number; their checksums where the key is at hand.

use s3s::dto::{Initiator, ListPartsInput, ListPartsOutput, Part, StorageClass};
use s3s::{S3Request, S3Result};

use super::create_multipart_upload::UploadChecksum;
use super::get_object::is_outage;
use super::{Inner, condition, etag, metadata, owner, paging, parse_upload_id, signed};
use crate::checksum::{self, Fields};
use crate::error::{At, OrS3};
use crate::sse;
use crate::sse::access::{self, Unlocked};

pub async fn list_parts(
    inner: &Inner,
    request: S3Request<ListPartsInput>,
) -> S3Result<ListPartsOutput> {
    let input = request.input;
    let at = At::upload(&input.bucket, &input.key, &input.upload_id);
    inner.drives.bucket(at.bucket).at(at)?;
    let id = parse_upload_id(at.upload).at(at)?;
    let max = paging::page_size(input.max_parts, "max-parts")?;
    let marker = input.part_number_marker.unwrap_or_default();
    if marker < 0 {
        let marker = marker.to_string();
        return Err(paging::malformed_marker("part-number-marker", &marker));
    }
    // There are no parts behind the greatest number.
    let after = u16::try_from(marker).unwrap_or(u16::MAX);
    let upload = inner
        .shard(at)?
        .upload(at.bucket, at.key, &id)
        .await
        .at(at)?;
    let (page, more) = match max {
        0 => (Vec::new(), false),
        max => inner
            .shard(at)?
            .parts(at.bucket, at.key, &id, after, max)
            .await
            .at(at)?,
    };
    let summed = page.iter().any(|entry| entry.part.checksum.is_some());
    let encryption = upload.encryption.as_ref().filter(|_| summed);
    let named = upload.checksum.as_deref().and_then(UploadChecksum::parse);
    let asked = inner.asked(&request.headers, &request.extensions);
    let opened = match access::of_upload(&asked, upload.encryption.as_ref(), at)? {
        Unlocked::Locked if named.is_some() => return Err(access::part_needs_key()),
        Unlocked::Locked => None,
        Unlocked::Key(key) => Some(Some(key)),
        Unlocked::ByService => Some(None),
    };
    let object_key = match opened {
        None => None,
        Some(opened) => match sse::open_key(&inner.keys, encryption, opened, at).await {
            Ok(key) => Some(key),
            Err(fault) if is_outage(&fault) => None,
            Err(fault) => return Err(fault),
        },
    };
    let next = page.last().filter(|_| more).map(|p| i32::from(p.number));
    let parts = page
        .into_iter()
        .map(|entry| {
            let part = entry.part;
            let sums = match (&object_key, part.checksum.as_deref()) {
                (Some(key), Some(blob)) => {
                    checksum::from_blob(blob, key.secret()).unwrap_or_default()
                }
                _ => Vec::new(),
            };
            let sums = Fields::of(&sums);
            Part {
                checksum_crc32: sums.crc32,
                checksum_crc32c: sums.crc32c,
                checksum_crc64nvme: sums.crc64nvme,
                checksum_sha1: sums.sha1,
                checksum_sha256: sums.sha256,
                e_tag: Some(etag(&part.etag)),
                last_modified: Some(condition::timestamp(part.modified)),
                part_number: Some(i32::from(entry.number)),
                size: Some(signed(part.stream.size)),
            }
        })
        .collect();
    Ok(ListPartsOutput {
        checksum_algorithm: named.map(|c| c.algorithm.dto()),
        checksum_type: named.map(|c| c.kind.dto()),
        initiator: Some(Initiator {
            display_name: None,
            id: owner().id,
        }),
        is_truncated: Some(more),
        max_parts: i32::try_from(max).ok(),
        next_part_number_marker: next,
        owner: Some(owner()),
        part_number_marker: Some(marker),
        parts: Some(parts),
        storage_class: Some(StorageClass::from(metadata::listed_class(&upload.metadata))),
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        ..Default::default()
    })
}
