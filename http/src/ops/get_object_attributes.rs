//! GetObjectAttributes: what HEAD tells and more, as XML, and only what was asked for.

use s3s::dto::{
    Checksum, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectAttributesParts,
    ObjectAttributes, ObjectPart, StorageClass,
};
use s3s::{S3Request, S3Result, s3_error};
use strongroom_engine::Found;
use strongroom_engine::record::{Data, PartRef};

use super::{Inner, check_version, condition, etag, metadata, paging, signed};
use crate::checksum::{self, Fields, Sum};
use crate::error::{At, OrS3, corrupt};
use crate::sse::{self, ObjectKey, access};

pub async fn get_object_attributes(
    inner: &Inner,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<GetObjectAttributesOutput> {
    let input = request.input;
    let at = At::object(&input.bucket, &input.key);
    check_version(input.version_id.as_deref())?;
    let asked = Asked::of(&input.object_attributes)?;
    let found = inner.shard(at)?.lookup(at.bucket, at.key).await.at(at)?;
    let object = &found.object;
    let encryption = inner.asked(&request.headers, &request.extensions);
    let opened = access::of_read(&encryption, object.encryption.as_ref(), at)?;
    let encryption = object
        .encryption
        .as_ref()
        .filter(|_| asked.checksum || asked.parts);
    let object_key = sse::open_key(&inner.keys, encryption, opened, at).await?;

    let checksum = match object.checksum.as_deref().filter(|_| asked.checksum) {
        None => None,
        Some(blob) => {
            let sums = Fields::of(&open(blob, &object_key, at)?);
            Some(Checksum {
                checksum_crc32: sums.crc32,
                checksum_crc32c: sums.crc32c,
                checksum_crc64nvme: sums.crc64nvme,
                checksum_sha1: sums.sha1,
                checksum_sha256: sums.sha256,
                checksum_type: sums.kind,
            })
        }
    };
    let object_parts = match &object.data {
        Data::Parts(_, parts) if asked.parts => {
            let max = paging::page_size(input.max_parts, "max-parts")?;
            let marker = input.part_number_marker.unwrap_or_default();
            Some(list_parts(inner, &found, parts, max, marker, &object_key, at).await?)
        }
        _ => None,
    };
    Ok(GetObjectAttributesOutput {
        checksum,
        // Without quotes in this answer alone.
        e_tag: asked.etag.then(|| etag(&object.etag)),
        last_modified: Some(condition::timestamp(object.modified)),
        object_parts,
        object_size: asked.size.then(|| signed(object.size)),
        storage_class: asked
            .class
            .then(|| StorageClass::from(metadata::listed_class(&object.metadata))),
        ..Default::default()
    })
}

async fn list_parts(
    inner: &Inner,
    found: &Found,
    parts: &[PartRef],
    max: usize,
    marker: i32,
    object_key: &ObjectKey,
    at: At<'_>,
) -> S3Result<GetObjectAttributesParts> {
    let behind = parts
        .iter()
        .filter(|part| i32::from(part.number) > marker)
        .collect::<Vec<_>>();
    let page = &behind[..behind.len().min(max)];
    let algorithm = found
        .object
        .checksum
        .as_deref()
        .and_then(|blob| checksum::names(blob).first().map(|n| n.algorithm));
    let mut listed = Vec::with_capacity(page.len());
    for part in page {
        let stored = inner.shard(at)?.part(found, part.number).await.at(at)?;
        let mut sums = match stored.checksum.as_deref() {
            Some(blob) => open(blob, object_key, at)?,
            None => Vec::new(),
        };
        sums.retain(|sum| Some(sum.algorithm) == algorithm);
        let sums = Fields::of(&sums);
        listed.push(ObjectPart {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            part_number: Some(i32::from(part.number)),
            size: Some(signed(part.size)),
        });
    }
    Ok(GetObjectAttributesParts {
        is_truncated: Some(behind.len() > page.len()),
        max_parts: i32::try_from(max).ok(),
        next_part_number_marker: page.last().map(|p| i32::from(p.number)),
        part_number_marker: Some(marker),
        parts: Some(listed),
        total_parts_count: i32::try_from(parts.len()).ok(),
    })
}

fn open(blob: &[u8], object_key: &ObjectKey, at: At<'_>) -> S3Result<Vec<Sum>> {
    checksum::from_blob(blob, object_key.secret()).ok_or_else(|| corrupt("a sealed checksum", at))
}

/// What the request wants to know.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    etag: bool,
    checksum: bool,
    parts: bool,
    class: bool,
    size: bool,
}

impl Asked {
    /// The names come in one header or several, each with one or more of them.
    fn of(names: &[ObjectAttributes]) -> S3Result<Self> {
        let mut asked = Asked::default();
        for name in names.iter().flat_map(|n| n.as_str().split(',')) {
            let wanted = match name.trim() {
                ObjectAttributes::ETAG => &mut asked.etag,
                ObjectAttributes::CHECKSUM => &mut asked.checksum,
                ObjectAttributes::OBJECT_PARTS => &mut asked.parts,
                ObjectAttributes::STORAGE_CLASS => &mut asked.class,
                ObjectAttributes::OBJECT_SIZE => &mut asked.size,
                _ => {
                    return Err(s3_error!(
                        InvalidArgument,
                        "Invalid attribute name specified."
                    ));
                }
            };
            *wanted = true;
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_together_or_apart() {
        let names = |names: &[&'static str]| {
            let names: Vec<_> = names
                .iter()
                .map(|n| ObjectAttributes::from_static(n))
                .collect();
            Asked::of(&names)
        };
        let both = names(&["ETag,ObjectSize"]).expect("known");
        assert_eq!(both, names(&["ObjectSize", " ETag"]).expect("known"));
        assert!(both.etag && both.size && !both.parts && !both.checksum && !both.class);
        assert!(names(&["Etag"]).is_err());
        assert!(names(&["ETag,"]).is_err());
    }
}
