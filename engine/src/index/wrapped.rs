//! Which records are wrapped under older versions of a key: a walk over all of them, in steps that can be taken up again.

use std::ops::Bound;

use super::{Index, Space, io, key};
use crate::error::{Error, Result};
use crate::limits;
use crate::object::{WrappedCursor, WrappedEntry, WrappedPage, WrappedQuery};
use crate::record::{Encryption, Object, Upload, UploadId};

impl Index {
    /// One page: objects first, then open uploads.
    pub fn wrapped(&self, query: &WrappedQuery) -> Result<WrappedPage> {
        let mut page = WrappedPage::default();
        let mut left = limits::WRAPPED_PAGE_EXAMINED;
        let (mut space, mut after) = match &query.after {
            None => (Space::Objects, Vec::new()),
            Some(WrappedCursor {
                uploads: true, at, ..
            }) => (Space::Uploads, at.clone()),
            Some(WrappedCursor {
                uploads: false, at, ..
            }) => (Space::Objects, at.clone()),
        };
        loop {
            let from = (Bound::Excluded(after), Bound::<Vec<u8>>::Unbounded);
            for entry in self.space(space).range(from) {
                let (entry, value) = entry.into_inner().map_err(io)?;
                if entry == key::MARK {
                    continue;
                }
                let found = match space {
                    Space::Uploads => self.wrapped_upload(&entry, &value)?,
                    _ => self.wrapped_object(&entry, &value)?,
                };
                page.entries.extend(found.filter(|e| query.wants(e)));
                left -= 1;
                if left == 0 || page.entries.len() >= query.max {
                    page.next = Some(WrappedCursor {
                        drive: 0,
                        uploads: space == Space::Uploads,
                        at: entry.to_vec(),
                    });
                    return Ok(page);
                }
            }
            if space == Space::Uploads {
                return Ok(page);
            }
            (space, after) = (Space::Uploads, Vec::new());
        }
    }

    fn wrapped_object(&self, entry: &[u8], value: &[u8]) -> Result<Option<WrappedEntry>> {
        let (sequence, object): (u64, Object) =
            self.sealer.open(Space::Objects.name(), entry, value)?;
        let (bucket, key, _) =
            key::parse(entry).ok_or_else(|| Error::corrupt("a key", "index objects"))?;
        let new = |encryption: Encryption| WrappedEntry {
            bucket,
            key,
            upload: None,
            sequence,
            encryption,
        };
        Ok(object.encryption.map(new))
    }

    fn wrapped_upload(&self, entry: &[u8], value: &[u8]) -> Result<Option<WrappedEntry>> {
        let (sequence, upload): (u64, Upload) =
            self.sealer.open(Space::Uploads.name(), entry, value)?;
        let lost = || Error::corrupt("a key", "index uploads");
        let (bucket, key, id) = key::parse(entry).ok_or_else(lost)?;
        let id = UploadId(id.try_into().map_err(|_| lost())?);
        let new = |encryption: Encryption| WrappedEntry {
            bucket,
            key,
            upload: Some(id),
            sequence,
            encryption,
        };
        Ok(upload.encryption.map(new))
    }
}

impl WrappedQuery {
    fn wants(&self, entry: &WrappedEntry) -> bool {
        entry.encryption.kms.as_ref().is_some_and(|kms| {
            kms.source == self.source && kms.name == self.name && kms.version < self.below
        })
    }
}
