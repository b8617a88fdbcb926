//! One page out of those of several drives.
//!
//! Each drive gives the first `max` of its own entries. A drive with more has given `max`, so the first `max` of all are among what
//! was given. Drives have different objects, but may have the same common prefixes: each is one entry.

use crate::object::{ListEntry, ListPage, UploadEntry, UploadPage};

/// The first `max` entries of all.
pub fn merge(pages: Vec<ListPage>, max: usize) -> ListPage {
    let more = pages.iter().any(|page| page.more);
    let mut entries: Vec<ListEntry> = pages.into_iter().flat_map(|page| page.entries).collect();
    entries.sort_by(|a, b| name(a).cmp(name(b)));
    entries
        .dedup_by(|a, b| matches!((a, b), (ListEntry::Prefix(a), ListEntry::Prefix(b)) if a == b));
    let more = more || entries.len() > max;
    entries.truncate(max);
    ListPage { entries, more }
}

fn name(entry: &ListEntry) -> &str {
    let (ListEntry::Object(name, _) | ListEntry::Prefix(name)) = entry;
    name
}

/// The first `max` uploads and prefixes of all.
pub fn merge_uploads(pages: Vec<UploadPage>, max: usize) -> UploadPage {
    let more = pages.iter().any(|page| page.more);
    // By name; a prefix has no upload.
    let mut entries: Vec<(String, Option<UploadEntry>)> = Vec::new();
    for page in pages {
        let uploads = page.uploads.into_iter();
        entries.extend(uploads.map(|upload| (upload.key.clone(), Some(upload))));
        entries.extend(page.prefixes.into_iter().map(|prefix| (prefix, None)));
    }
    let id = |upload: &Option<UploadEntry>| upload.as_ref().map(|upload| upload.id);
    entries.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| id(x).cmp(&id(y))));
    entries.dedup_by(|(a, x), (b, y)| a == b && id(x) == id(y));
    let mut merged = UploadPage {
        more: more || entries.len() > max,
        ..Default::default()
    };
    for (name, upload) in entries.into_iter().take(max) {
        match upload {
            Some(upload) => merged.uploads.push(upload),
            None => merged.prefixes.push(name),
        }
    }
    merged
}
