//! ListMultipartUploads: by key, then by upload id.

use s3s::dto::{
    CommonPrefix, Initiator, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    MultipartUpload, StorageClass,
};
use s3s::{S3Request, S3Result};
use strongroom_engine::UploadQuery;
use strongroom_engine::record::UploadId;

use super::create_multipart_upload::UploadChecksum;
use super::paging::{self, Encoding};
use super::{Inner, condition, metadata, owner};
use crate::error::{At, OrS3};

pub async fn list_multipart_uploads(
    inner: &Inner,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<ListMultipartUploadsOutput> {
    let input = request.input;
    let encoding = Encoding::asked(input.encoding_type.as_ref())?;
    let max = paging::page_size(input.max_uploads, "max-uploads")?;
    let delimiter = paging::delimiter(input.delimiter);
    let query = UploadQuery {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: delimiter.clone(),
        after: after(
            input.key_marker.as_deref(),
            input.upload_id_marker.as_deref(),
        )?,
        max,
    };
    let page = inner
        .drives
        .list_uploads(&input.bucket, query)
        .await
        .at(At::bucket(&input.bucket))?;
    let last_upload = page.uploads.last().map(|u| (u.key.clone(), u.id));
    let last_prefix = page.prefixes.last().cloned();
    let (next_key, next_id) = match page.more {
        true => last(last_upload, last_prefix),
        false => (None, None),
    };
    let uploads = page
        .uploads
        .into_iter()
        .map(|entry| {
            let named = entry
                .upload
                .checksum
                .as_deref()
                .and_then(UploadChecksum::parse);
            MultipartUpload {
                checksum_algorithm: named.map(|c| c.algorithm.dto()),
                checksum_type: named.map(|c| c.kind.dto()),
                initiated: Some(condition::timestamp(entry.upload.created)),
                initiator: Some(Initiator {
                    display_name: None,
                    id: owner().id,
                }),
                key: Some(encoding.name(entry.key)),
                owner: Some(owner()),
                storage_class: Some(StorageClass::from(metadata::listed_class(
                    &entry.upload.metadata,
                ))),
                upload_id: Some(entry.id.to_string()),
            }
        })
        .collect();
    let prefixes = page.prefixes.into_iter().map(|prefix| CommonPrefix {
        prefix: Some(encoding.name(prefix)),
    });
    Ok(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        common_prefixes: Some(prefixes.collect()),
        delimiter: delimiter.map(|d| encoding.name(d)),
        encoding_type: encoding.dto(),
        is_truncated: Some(page.more),
        key_marker: Some(encoding.name(input.key_marker.unwrap_or_default())),
        max_uploads: i32::try_from(max).ok(),
        next_key_marker: next_key.map(|k| encoding.name(k)),
        next_upload_id_marker: next_id.map(|id| id.to_string()),
        prefix: Some(encoding.name(input.prefix.unwrap_or_default())),
        request_charged: None,
        upload_id_marker: input.upload_id_marker,
        uploads: Some(uploads),
    })
}

/// Where the page begins. The marker of an id says nothing without that of a key.
fn after(key: Option<&str>, id: Option<&str>) -> S3Result<Option<(String, Option<UploadId>)>> {
    let Some(key) = key.filter(|k| !k.is_empty()) else {
        return Ok(None);
    };
    let id = match id.filter(|id| !id.is_empty()) {
        None => None,
        Some(text) => Some(
            UploadId::parse(text)
                .ok_or_else(|| paging::malformed_marker("upload-id-marker", text))?,
        ),
    };
    Ok(Some((key.to_owned(), id)))
}

/// The later of the last upload and the last prefix.
fn last(
    upload: Option<(String, UploadId)>,
    prefix: Option<String>,
) -> (Option<String>, Option<UploadId>) {
    match (upload, prefix) {
        (Some((key, id)), Some(prefix)) if key > prefix => (Some(key), Some(id)),
        (Some((key, id)), None) => (Some(key), Some(id)),
        (_, prefix) => (prefix, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_name_the_last_of_both_kinds() {
        let upload = |key: &str| Some((key.to_owned(), UploadId([7; 16])));
        let prefix = |name: &str| Some(name.to_owned());
        assert_eq!(
            last(upload("b"), prefix("a/")),
            (prefix("b"), Some(UploadId([7; 16])))
        );
        assert_eq!(last(upload("a"), prefix("b/")), (prefix("b/"), None));
        assert_eq!(
            last(upload("a"), None),
            (prefix("a"), Some(UploadId([7; 16])))
        );
        assert_eq!(last(None, prefix("b/")), (prefix("b/"), None));
        assert_eq!(last(None, None), (None, None));
    }

    #[test]
    fn an_id_counts_only_beside_its_key() {
        let id = UploadId([1; 16]);
        let text = id.to_string();
        assert_eq!(after(None, Some(&text)).expect("fine"), None);
        assert_eq!(after(Some(""), Some("x")).expect("fine"), None);
        assert_eq!(
            after(Some("k"), Some(&text)).expect("fine"),
            Some(("k".into(), Some(id)))
        );
        assert_eq!(
            after(Some("k"), None).expect("fine"),
            Some(("k".into(), None))
        );
        assert!(after(Some("k"), Some("x")).is_err());
    }
}
