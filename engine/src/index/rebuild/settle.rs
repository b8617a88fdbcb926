//! The end of a recovery: what belongs to nothing goes, and what is known of the store as a whole is written.

use std::collections::{HashMap, HashSet};

use fjall::PersistMode;
use minicbor::Decode;

use super::{Build, Finding, Named};
use crate::error::Result;
use crate::index::commit::meta;
use crate::index::copies::{Group, Groups};
use crate::index::offline::unpanicked;
use crate::index::{Space, io, key, record};
use crate::limits;
use crate::record::{Bucket, Data, Extent, Object, Part, Place, Stream, Upload, UploadId};
use crate::segment::scrub::block_at;
use crate::segment::{self, Checkpoint};

impl Build<'_> {
    /// Leaves out records whose data was given back, and what then belongs to nothing. Returns what the others name.
    pub(super) fn settle(&mut self) -> Result<Named> {
        let trusted = self.old.is_some() && self.last >= self.survey.synced;
        let mut owners: HashSet<UploadId> = HashSet::new();
        let mut buckets: HashMap<String, u64> = HashMap::new();
        let mut inline: HashSet<u64> = HashSet::new();
        let mut gone_parts: Vec<Vec<u8>> = Vec::new();
        for (entry, sequence, part) in self.collect::<Part>(Space::Parts)? {
            if !trusted && self.is_gone(&part.stream, None) {
                self.new
                    .space(Space::Parts)
                    .remove(entry.as_slice())
                    .map_err(io)?;
                gone_parts.push(entry);
            } else if part.stream.place == Place::Inline {
                inline.insert(sequence);
            }
        }
        for (entry, sequence, object) in self.collect::<Object>(Space::Objects)? {
            let Some((bucket, name, _)) = key::parse(&entry) else {
                continue;
            };
            let why = match &object.data {
                Data::Single(stream) if !trusted && self.is_gone(stream, object.key_extent) => {
                    Some("its data is not there: it was deleted, or is lost")
                }
                Data::Parts(id, parts) if !parts.is_empty() => {
                    let there = |n| {
                        self.new
                            .space(Space::Parts)
                            .contains_key(key::part(id, n))
                            .unwrap_or(false)
                    };
                    let count = parts.iter().filter(|p| there(p.number)).count();
                    match count {
                        0 => Some("its parts are not there: it was deleted, or is lost"),
                        n if n < parts.len() => {
                            self.lost(
                                &bucket,
                                &name,
                                "some of its parts are not there; the record stays",
                            );
                            None
                        }
                        _ => None,
                    }
                }
                _ => None,
            };
            if let Some(why) = why {
                self.new
                    .space(Space::Objects)
                    .remove(entry.as_slice())
                    .map_err(io)?;
                self.lost(&bucket, &name, why);
                continue;
            }
            match &object.data {
                Data::Parts(id, _) => drop(owners.insert(*id)),
                Data::Single(s) if s.place == Place::Inline => {
                    let origin = object.origin(sequence);
                    inline.insert(origin);
                    if !self
                        .new
                        .space(Space::Inline)
                        .contains_key(key::sequence(origin))
                        .map_err(io)?
                    {
                        self.lost(&bucket, &name, "its bytes are lost; the record stays");
                    }
                }
                Data::Single(_) => {}
            }
            buckets.entry(bucket).or_insert(object.modified);
        }
        for (entry, _, upload) in self.collect::<Upload>(Space::Uploads)? {
            owners.extend(key::upload_id(&entry));
            if let Some((bucket, _, _)) = key::parse(&entry) {
                buckets.entry(bucket).or_insert(upload.created);
            }
        }
        for (entry, _, _) in self.collect::<Part>(Space::Parts)? {
            if key::part_upload(&entry).is_none_or(|id| !owners.contains(&id)) {
                self.new
                    .space(Space::Parts)
                    .remove(entry.as_slice())
                    .map_err(io)?;
            }
        }
        for (name, created) in buckets {
            if !self
                .new
                .space(Space::Buckets)
                .contains_key(name.as_bytes())
                .map_err(io)?
            {
                (self.say)(Finding::Note(format!(
                    "the bucket {name} is made again, without its settings"
                )));
                let bucket = Bucket {
                    name: name.clone(),
                    created,
                    encryption: None,
                    changed: None,
                };
                self.add(Space::Buckets, name.into_bytes(), &bucket)?;
            }
        }
        let mut dead = Vec::new();
        for guard in self.new.space(Space::Inline).iter() {
            let entry = guard.key().map_err(io)?;
            let sequence = <[u8; 8]>::try_from(&entry[..]).map(u64::from_be_bytes);
            if sequence.is_ok_and(|s| !inline.contains(&s)) {
                dead.push(entry);
            }
        }
        for entry in dead {
            self.new.space(Space::Inline).remove(entry).map_err(io)?;
        }
        // An extent that is named again was not freed for good.
        let named = self.named_by_data()?;
        for (entry, _, extents) in self.collect::<Vec<Extent>>(Space::Freed)? {
            if extents
                .iter()
                .any(|e| named.contains(&(e.segment, e.start)))
            {
                self.new
                    .space(Space::Freed)
                    .remove(entry.as_slice())
                    .map_err(io)?;
            }
        }
        Ok(named)
    }

    fn collect<T: for<'b> Decode<'b, ()>>(&self, space: Space) -> Result<Vec<(Vec<u8>, u64, T)>> {
        let mut all = Vec::new();
        for guard in self.new.space(space).iter() {
            let (entry, value) = guard.into_inner().map_err(io)?;
            let (sequence, record) = self.new.sealer.open(space.name(), &entry, &value)?;
            all.push((entry.to_vec(), sequence, record));
        }
        Ok(all)
    }

    /// Whether nothing is left where a stream lay: its first head, or its key.
    fn is_gone(&self, stream: &Stream, key: Option<Extent>) -> bool {
        let first = stream.extents().first().copied();
        first.into_iter().chain(key).any(|e| {
            let Ok(file) = std::fs::File::open(segment::path(self.segments, e.segment)) else {
                return true;
            };
            if block_at(self.blocks, &file, e.segment, e.start).is_some() {
                return false;
            }
            let mut sector = vec![0; limits::SECTOR];
            let at = u64::from(e.start) * limits::SECTOR as u64;
            match std::os::unix::fs::FileExt::read_exact_at(&file, &mut sector, at) {
                Ok(()) => sector.iter().all(|b| *b == 0),
                Err(_) => true,
            }
        })
    }

    /// Writes what is known of the store as a whole, and makes everything durable.
    pub(super) fn finish(&mut self, groups: Vec<Group>, named: &Named) -> Result<()> {
        let old = self.old;
        let boot = old.and_then(|i| {
            unpanicked(|| i.plain_meta::<u32>(meta::BOOT))
                .ok()
                .flatten()
        });
        let boot = u64::from(boot.unwrap_or(0)).max(self.survey.sequence >> 40);
        let checkpoint = old
            .and_then(|i| {
                unpanicked(|| i.get::<Checkpoint>(Space::Meta, meta::CHECKPOINT.as_bytes()))
                    .ok()
                    .flatten()
            })
            .map(|(_, c)| c.next_segment);
        let checkpoint = Checkpoint {
            next_segment: self.survey.next_segment.max(checkpoint.unwrap_or(0)),
            // Nothing is given back for being unknown.
            unsettled: Vec::new(),
            live: None,
            copied: None,
        };
        // The next start copies the whole index, and frees these; what is void already goes now.
        let kept: HashSet<(u64, u32)> = groups
            .iter()
            .flat_map(|g| &g.extents)
            .map(|e| (e.segment, e.start))
            .collect();
        let void: Vec<Extent> = self
            .survey
            .copies
            .iter()
            .map(|(extent, _)| *extent)
            .filter(|e| {
                !kept.contains(&(e.segment, e.start)) && !named.contains(&(e.segment, e.start))
            })
            .collect();
        if !void.is_empty() {
            let entry = key::sequence(self.highest + 1).to_vec();
            self.add(Space::Freed, entry, &void)?;
        }
        if let Some(rewrapped) = old.and_then(|i| {
            unpanicked(|| i.plain_meta::<u64>(meta::REWRAPPED))
                .ok()
                .flatten()
        }) {
            let space = self.new.space(Space::Meta);
            space
                .insert(meta::REWRAPPED, record::encode(&rewrapped))
                .map_err(io)?;
        }
        self.add(
            Space::Meta,
            meta::COPIES.as_bytes().to_vec(),
            &Groups { groups, dead: 0 },
        )?;
        self.add(
            Space::Meta,
            meta::CHECKPOINT.as_bytes().to_vec(),
            &checkpoint,
        )?;
        let space = self.new.space(Space::Meta);
        space
            .insert(meta::BOOT, record::encode(&(boot as u32)))
            .map_err(io)?;
        space
            .insert(meta::SEQUENCE, record::encode(&self.highest))
            .map_err(io)?;
        self.new.db.persist(PersistMode::SyncAll).map_err(io)?;
        if self.old.is_none() || self.last < self.survey.synced {
            self.found.removals_unknown = Some(limits::COPY_EVERY.as_secs());
        }
        Ok(())
    }
}
