//! Listings: ranges of the index, rolled up at a delimiter.

use std::ops::Bound;

use super::{Index, Space, io, key, tree};
use crate::error::{Error, Result};
use crate::object::{
    ListEntry, ListPage, ListQuery, PartEntry, UploadEntry, UploadPage, UploadQuery,
};
use crate::record::{Object, Part, Upload, UploadId};

impl Index {
    /// One page of a bucket's objects, in byte order of their keys.
    pub fn list(&self, bucket: &str, query: &ListQuery) -> Result<ListPage> {
        let mut page = ListPage::default();
        let mut walk = Walk::new(
            bucket,
            &query.prefix,
            query.delimiter.as_deref(),
            query.after.as_deref().map(|after| (after, None)),
        );
        while query.max > 0
            && let Some(step) = walk.next(self, Space::Objects)?
        {
            if page.entries.len() == query.max {
                page.more = true;
                break;
            }
            page.entries.push(match step {
                Step::Prefix(prefix) => ListEntry::Prefix(prefix),
                Step::Entry {
                    key, entry, value, ..
                } => {
                    let (_, object): (u64, Object) =
                        self.sealer.open(Space::Objects.name(), &entry, &value)?;
                    ListEntry::Object(key, object)
                }
            });
        }
        Ok(page)
    }

    /// One page of a bucket's open uploads, by key and then by upload id.
    pub fn list_uploads(&self, bucket: &str, query: &UploadQuery) -> Result<UploadPage> {
        let mut page = UploadPage::default();
        let after = query.after.as_ref().map(|(key, id)| (key.as_str(), *id));
        let mut walk = Walk::new(bucket, &query.prefix, query.delimiter.as_deref(), after);
        while query.max > 0
            && let Some(step) = walk.next(self, Space::Uploads)?
        {
            if page.uploads.len() + page.prefixes.len() == query.max {
                page.more = true;
                break;
            }
            match step {
                Step::Prefix(prefix) => page.prefixes.push(prefix),
                Step::Entry {
                    key,
                    rest,
                    entry,
                    value,
                } => {
                    let (sequence, upload): (u64, Upload) =
                        self.sealer.open(Space::Uploads.name(), &entry, &value)?;
                    let id = UploadId(
                        rest.try_into()
                            .map_err(|_| Error::corrupt("an upload's key", "index uploads"))?,
                    );
                    page.uploads.push(UploadEntry {
                        key,
                        id,
                        sequence,
                        upload,
                    });
                }
            }
        }
        Ok(page)
    }

    /// The parts of an upload with numbers above `after`, and whether more follow.
    pub fn parts(&self, id: &UploadId, after: u16, max: usize) -> Result<(Vec<PartEntry>, bool)> {
        let mut parts = Vec::new();
        let from = key::part(id, after);
        let to = key::part(id, u16::MAX);
        for entry in self
            .space(Space::Parts)
            .range::<Vec<u8>, _>((Bound::Excluded(from), Bound::Included(to)))
        {
            if parts.len() == max {
                return Ok((parts, true));
            }
            let (entry, value) = entry.into_inner().map_err(io)?;
            let (sequence, part): (u64, Part) =
                self.sealer.open(Space::Parts.name(), &entry, &value)?;
            let number = key::part_number(&entry)
                .ok_or_else(|| Error::corrupt("a part's key", "index parts"))?;
            parts.push(PartEntry {
                number,
                sequence,
                part,
            });
        }
        Ok((parts, false))
    }
}

/// A walk over one bucket's entries that steps over what a delimiter rolls up.
struct Walk<'a> {
    bucket: &'a str,
    prefix: &'a str,
    delimiter: Option<&'a str>,
    after: Option<&'a str>,
    /// Where to go on; none at the end.
    from: Option<Vec<u8>>,
    until: Option<Vec<u8>>,
    iter: Option<tree::Iter>,
}

enum Step {
    Prefix(String),
    Entry {
        key: String,
        rest: Vec<u8>,
        entry: fjall::Slice,
        value: fjall::Slice,
    },
}

impl<'a> Walk<'a> {
    fn new(
        bucket: &'a str,
        prefix: &'a str,
        delimiter: Option<&'a str>,
        after: Option<(&'a str, Option<UploadId>)>,
    ) -> Self {
        let start = key::prefix(bucket, prefix);
        let until = key::successor(start.clone());
        let delimiter = delimiter.filter(|d| !d.is_empty());
        let from = match after {
            None => start,
            Some((key, id)) => {
                let past = match id {
                    Some(id) => {
                        let mut past = key::upload(bucket, key, &id);
                        past.push(0);
                        past
                    }
                    None => {
                        // Past every entry of this very key.
                        let mut past = key::prefix(bucket, key);
                        past.extend_from_slice(&[0, 1]);
                        past
                    }
                };
                past.max(start)
            }
        };
        Walk {
            bucket,
            prefix,
            delimiter,
            after: after.map(|(key, _)| key),
            from: Some(from),
            until,
            iter: None,
        }
    }

    fn next(&mut self, index: &Index, space: Space) -> Result<Option<Step>> {
        loop {
            let iter = match (&mut self.iter, self.from.take()) {
                (_, Some(from)) => {
                    let to = self.until.clone().map_or(Bound::Unbounded, Bound::Excluded);
                    self.iter
                        .insert(index.space(space).range((Bound::Included(from), to)))
                }
                (Some(iter), None) => iter,
                (None, None) => return Ok(None),
            };
            let Some(guard) = iter.next() else {
                self.iter = None;
                return Ok(None);
            };
            let (entry, value) = guard.into_inner().map_err(io)?;
            let (key, rest) = key::split(self.bucket, &entry)
                .map(|(key, rest)| (key, rest.to_vec()))
                .ok_or_else(|| {
                    Error::corrupt("an entry's key", format!("index {}", space.name()))
                })?;
            let rolled = self.delimiter.and_then(|d| {
                let tail = key.get(self.prefix.len()..)?;
                let end = tail.find(d)? + d.len();
                Some(key[..self.prefix.len() + end].to_owned())
            });
            match rolled {
                Some(rolled) => {
                    self.from = key::successor(key::prefix(self.bucket, &rolled));
                    if self.from.is_none() {
                        self.iter = None;
                    }
                    if self.after != Some(rolled.as_str()) {
                        return Ok(Some(Step::Prefix(rolled)));
                    }
                }
                None => {
                    return Ok(Some(Step::Entry {
                        key,
                        rest,
                        entry,
                        value,
                    }));
                }
            }
        }
    }
}
