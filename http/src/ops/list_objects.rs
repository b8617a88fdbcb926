//! ListObjects in both versions. No list needs a key: what it shows lies under the key of the store.

use s3s::dto::{
    CommonPrefix, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    Object,
};
use s3s::{S3Request, S3Result};
use strongroom_engine::{ListEntry, ListPage, ListQuery};

use super::paging::{self, Encoding};
use super::{Inner, condition, etag, metadata, owner, signed};
use crate::checksum;
use crate::error::{At, OrS3};

pub async fn list_objects(
    inner: &Inner,
    request: S3Request<ListObjectsInput>,
) -> S3Result<ListObjectsOutput> {
    let input = request.input;
    let encoding = Encoding::asked(input.encoding_type.as_ref())?;
    let max = paging::page_size(input.max_keys, "max-keys")?;
    let delimiter = paging::delimiter(input.delimiter);
    let query = ListQuery {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: delimiter.clone(),
        after: input.marker.clone().filter(|m| !m.is_empty()),
        max,
    };
    let page = inner
        .drives
        .list(&input.bucket, query)
        .await
        .at(At::bucket(&input.bucket))?;
    let shown = Shown::new(page, encoding, true);
    Ok(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.name(input.prefix.unwrap_or_default())),
        marker: Some(encoding.name(input.marker.unwrap_or_default())),
        max_keys: i32::try_from(max).ok(),
        is_truncated: Some(shown.next.is_some()),
        // Without a delimiter clients continue behind the last key.
        next_marker: match &delimiter {
            Some(_) => shown.next.map(|next| encoding.name(next)),
            None => None,
        },
        delimiter: delimiter.map(|d| encoding.name(d)),
        contents: Some(shown.contents),
        common_prefixes: Some(shown.prefixes),
        encoding_type: encoding.dto(),
        request_charged: None,
    })
}

pub async fn list_objects_v2(
    inner: &Inner,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<ListObjectsV2Output> {
    let input = request.input;
    let encoding = Encoding::asked(input.encoding_type.as_ref())?;
    let max = paging::page_size(input.max_keys, "max-keys")?;
    let delimiter = paging::delimiter(input.delimiter);
    let after = match &input.continuation_token {
        Some(token) => Some(paging::parse_token(token)?),
        None => input.start_after.clone().filter(|s| !s.is_empty()),
    };
    let query = ListQuery {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: delimiter.clone(),
        after,
        max,
    };
    let page = inner
        .drives
        .list(&input.bucket, query)
        .await
        .at(At::bucket(&input.bucket))?;
    let shown = Shown::new(page, encoding, input.fetch_owner.unwrap_or_default());
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.name(input.prefix.unwrap_or_default())),
        max_keys: i32::try_from(max).ok(),
        key_count: i32::try_from(shown.contents.len() + shown.prefixes.len()).ok(),
        continuation_token: input.continuation_token,
        is_truncated: Some(shown.next.is_some()),
        next_continuation_token: shown.next.as_deref().map(paging::token),
        contents: Some(shown.contents),
        common_prefixes: Some(shown.prefixes),
        delimiter: delimiter.map(|d| encoding.name(d)),
        encoding_type: encoding.dto(),
        start_after: input.start_after.map(|s| encoding.name(s)),
        request_charged: None,
    })
}

/// A page as clients see it.
struct Shown {
    contents: Vec<Object>,
    prefixes: Vec<CommonPrefix>,
    /// The last name of a page that others follow, not encoded.
    next: Option<String>,
}

impl Shown {
    fn new(page: ListPage, encoding: Encoding, with_owner: bool) -> Self {
        let mut shown = Shown {
            contents: Vec::new(),
            prefixes: Vec::new(),
            next: page.entries.last().filter(|_| page.more).map(|last| {
                let (ListEntry::Object(name, _) | ListEntry::Prefix(name)) = last;
                name.clone()
            }),
        };
        for entry in page.entries {
            match entry {
                ListEntry::Prefix(prefix) => shown.prefixes.push(CommonPrefix {
                    prefix: Some(encoding.name(prefix)),
                }),
                ListEntry::Object(key, object) => {
                    let names = object.checksum.as_deref().map(checksum::names);
                    let names = names.unwrap_or_default();
                    shown.contents.push(Object {
                        checksum_type: names.first().map(|n| n.kind.dto()),
                        checksum_algorithm: (!names.is_empty())
                            .then(|| names.iter().map(|n| n.algorithm.dto()).collect()),
                        e_tag: Some(etag(&object.etag)),
                        key: Some(encoding.name(key)),
                        last_modified: Some(condition::timestamp(object.modified)),
                        owner: with_owner.then(owner),
                        restore_status: None,
                        size: Some(signed(object.size)),
                        storage_class: Some(metadata::listed_class(&object.metadata).into()),
                    });
                }
            }
        }
        shown
    }
}
