//! The source that is no index: streams that stand complete in segments and that no record names.

use super::{Build, Finding};
use crate::error::Result;
use crate::index::{Space, io, key, record};
use crate::limits;
use crate::record::{Data, Object, Part, Place, Stream, Upload, UploadId};
use crate::segment::block::TailRecord;
use crate::segment::survey::Found;

impl Build<'_> {
    /// Takes in streams that no record names.
    pub(super) fn streams(&mut self) -> Result<()> {
        let named = self.named()?;
        let known_to = self.copied_to.max(self.last);
        let survey = self.survey;
        let mut open: Vec<(u64, &Found)> = survey
            .streams
            .iter()
            .filter(|(_, f)| {
                f.extents
                    .values()
                    .all(|e| !named.contains(&(e.segment, e.start)))
            })
            // Its commit came shortly after its last tail: an older one was dead when the other sources end.
            .filter(|(_, f)| f.synced + 2 * limits::COMMIT_QUEUE_MAX as u64 >= known_to)
            .map(|(sequence, found)| (*sequence, found))
            .collect();
        open.sort_by_key(|(sequence, found)| (found.synced, *sequence));
        for (sequence, found) in open {
            let Some(extents) = found.complete() else {
                continue;
            };
            let stream = Stream {
                size: found.size,
                nonce: found.nonce,
                place: Place::Extents(extents),
            };
            match (found.part, found.record.clone()) {
                (None, Some(TailRecord::Object(object))) => {
                    self.object(sequence, found, *object, stream)?
                }
                (Some((id, number)), Some(TailRecord::Part(part))) => {
                    self.part(found, &id, number, Part { stream, ..part })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        sequence: u64,
        found: &Found,
        object: Object,
        stream: Stream,
    ) -> Result<()> {
        let entry = key::object(&found.bucket, &found.key);
        let present = self.new.space(Space::Objects).get(&entry).map_err(io)?;
        let present = present.as_deref().and_then(record::sequence);
        let removed = self.removed.get(&(Space::Objects, entry.clone())).copied();
        if present
            .max(removed)
            .is_some_and(|known| known > found.synced)
        {
            return Ok(());
        }
        let wrapped = self.survey.keys.iter().filter(|(key, (_, w))| {
            found.key_sequence == Some(**key) || w.stream == Some(sequence)
        });
        let wrapped = wrapped.max_by_key(|(key, _)| **key).map(|(_, found)| found);
        if found.nonce.is_some() && wrapped.is_none() {
            self.lost(
                &found.bucket,
                &found.key,
                "its data is there, its wrapped key is not",
            );
            return Ok(());
        }
        let object = Object {
            encryption: wrapped.map(|(_, w)| w.encryption.clone()),
            key_extent: wrapped.map(|(extent, _)| *extent),
            data: Data::Single(stream),
            origin: None,
            ..object
        };
        self.add(Space::Objects, entry, &object)?;
        self.found.from_segments += 1;
        Ok(())
    }

    fn part(&mut self, found: &Found, id: &UploadId, number: u16, part: Part) -> Result<()> {
        let entry = key::part(id, number);
        let upload_entry = key::upload(&found.bucket, &found.key, id);
        let removed = |space, entry: &[u8]| self.removed.get(&(space, entry.to_vec())).copied();
        let present = self.new.space(Space::Parts).get(&entry).map_err(io)?;
        let known = present
            .as_deref()
            .and_then(record::sequence)
            .max(removed(Space::Parts, &entry));
        if known.is_some_and(|known| known > found.synced) {
            return Ok(());
        }
        let upload = self.new.get::<Upload>(Space::Uploads, &upload_entry)?;
        let object = self
            .new
            .get::<Object>(Space::Objects, &key::object(&found.bucket, &found.key))?;
        let listed = object.is_some_and(|(_, o)| match &o.data {
            Data::Parts(of, parts) => {
                of == id
                    && parts
                        .iter()
                        .any(|p| (p.number, p.size) == (number, part.stream.size))
            }
            Data::Single(_) => false,
        });
        if upload.is_none() && !listed {
            if removed(Space::Uploads, &upload_entry).is_some_and(|r| r > found.synced) {
                return Ok(());
            }
            let wrapped = self
                .survey
                .keys
                .values()
                .filter(|(_, w)| w.upload == Some(*id));
            let wrapped = wrapped.max_by_key(|(extent, _)| extent.sequence);
            if found.nonce.is_some() && wrapped.is_none() {
                self.lost(
                    &found.bucket,
                    &found.key,
                    "parts of an upload are there, its wrapped key is not",
                );
                return Ok(());
            }
            let upload = Upload {
                created: part.modified,
                metadata: Default::default(),
                encryption: wrapped.map(|(_, w)| w.encryption.clone()),
                checksum: None,
                key_extent: wrapped.map(|(extent, _)| *extent),
                origin: None,
            };
            (self.say)(Finding::Note(format!(
                "the upload {id} of {}/{} is open again without its metadata: only its parts were found",
                found.bucket, found.key
            )));
            self.add(Space::Uploads, upload_entry, &upload)?;
        }
        self.add(Space::Parts, entry, &part)?;
        self.found.from_segments += 1;
        Ok(())
    }
}
