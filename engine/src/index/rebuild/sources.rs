//! The sources that are older indexes in some form: copies in segments, the old index itself, its journals.

use std::collections::{BTreeMap, HashMap};

use super::{Build, Entry, Finding};
use crate::error::{Error, Result};
use crate::index::commit::meta;
use crate::index::copies::{COPIED, Group};
use crate::index::offline::unpanicked;
use crate::index::{Index, Space, io, journal, key, record};
use crate::limits;
use crate::record::Extent;
use crate::segment::block;
use crate::segment::scrub::Look;

impl Build<'_> {
    /// Takes in what the copies say, oldest round first, and returns the rounds that count.
    pub(super) fn copies(&mut self) -> Result<Vec<Group>> {
        let mut rounds: BTreeMap<u64, Vec<(u32, bool, Extent, block::CopyGroup)>> = BTreeMap::new();
        for (extent, piece) in &self.survey.copies {
            let round = rounds.entry(piece.group.id).or_default();
            round.push((piece.number, piece.last, *extent, piece.group));
        }
        let mut groups: Vec<Group> = Vec::new();
        // Ids ascend with time. A round without its end was never finished.
        for (_, mut pieces) in rounds {
            pieces.sort_by_key(|(number, ..)| *number);
            let numbers = pieces.iter().map(|(n, ..)| *n).eq(0..pieces.len() as u32);
            let Some((_, true, _, group)) = pieces.last().filter(|_| numbers).copied() else {
                continue;
            };
            if group.from == 0 {
                groups.clear();
            }
            groups.push(Group {
                group,
                extents: pieces.into_iter().map(|(_, _, extent, _)| extent).collect(),
                bytes: 0,
            });
        }
        // Rounds without the whole one they build on still tell what they hold.
        let segments = self.segments;
        let mut look = Look::new(segments, self.blocks, &|_| true);
        let mut base = 0;
        let mut intact = true;
        for group in &mut groups {
            for extent in &group.extents {
                let copy = match look.copy(extent) {
                    Ok(copy) => copy,
                    Err(e) => {
                        (self.say)(Finding::Note(format!(
                            "a piece of the copy of the index is damaged: {e}"
                        )));
                        self.found.lost += 1;
                        intact = false;
                        continue;
                    }
                };
                for entry in &copy.entries {
                    group.bytes += entry.value.as_ref().map_or(0, Vec::len) as u64
                        + entry.inline.as_ref().map_or(0, Vec::len) as u64;
                    let Some(space) = COPIED.get(usize::from(entry.space)).copied() else {
                        continue;
                    };
                    if entry.value.is_some()
                        && self.is_removed_since(space, &entry.key, entry.sequence)
                    {
                        continue;
                    }
                    self.apply(&Entry {
                        space,
                        key: &entry.key,
                        sequence: entry.sequence,
                        value: entry.value.as_deref(),
                        inline: entry.inline.as_deref(),
                    })?;
                }
            }
            self.copied_to = self.copied_to.max(group.group.to);
            if group.group.from == 0 {
                base = group.group.to;
            }
        }
        if intact {
            self.base = base;
        }
        Ok(groups)
    }

    /// Whether the old index knows of the commit that wrote an entry, and no more of the entry.
    fn is_removed_since(&self, space: Space, key: &[u8], sequence: u64) -> bool {
        let Some(old) = self.old.filter(|_| sequence <= self.last) else {
            return false;
        };
        unpanicked(|| old.space(space).get(key).map_err(io)).is_ok_and(|found| found.is_none())
    }

    /// Takes in every entry of the old index that can be read.
    pub(super) fn old_index(&mut self) -> Result<()> {
        let old = self.old.expect("asked for");
        for space in COPIED.into_iter().chain([Space::Freed]) {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let mut batch: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
                let read = unpanicked(|| {
                    old.each_raw(space, after.as_deref(), |key, value| {
                        batch.push((key.to_vec(), value.to_vec()));
                        // Not all of a large index at once.
                        if batch.len() >= limits::COPY_KEYS_AT_ONCE {
                            Err(Error::Closed)
                        } else {
                            Ok(())
                        }
                    })
                });
                for (key, value) in &batch {
                    self.old_entry(old, space, key, value)?;
                }
                let reached = batch.last().map(|(key, _)| key.clone()).or(after.take());
                match read {
                    Ok(Ok(())) => break,
                    Err(Error::Closed) => after = reached,
                    // Unreadable here: it goes on at the next key that another source knows.
                    Ok(Err(_)) | Err(_) => {
                        let from = reached.clone().unwrap_or_default();
                        let Some(next) = self.next_known(space, &from)? else {
                            break;
                        };
                        if let Ok(Some(value)) =
                            unpanicked(|| old.space(space).get(&next).map_err(io))
                        {
                            self.old_entry(old, space, &next, &value)?;
                        }
                        after = Some(next);
                    }
                }
            }
        }
        Ok(())
    }

    fn old_entry(&mut self, old: &Index, space: Space, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(origin) = self.opens(space, key, value) else {
            if let (Space::Objects, Some((bucket, name, _))) = (space, key::parse(key)) {
                (self.say)(Finding::Note(format!(
                    "the record of {bucket}/{name} in the old index is damaged"
                )));
            }
            return Ok(());
        };
        let inline = match origin {
            Some(origin) => unpanicked(|| old.inline(origin)).unwrap_or_default(),
            None => None,
        };
        self.apply(&Entry {
            space,
            key,
            sequence: record::sequence(value).unwrap_or(0),
            value: Some(value),
            inline: inline.as_deref(),
        })
    }

    fn next_known(&self, space: Space, after: &[u8]) -> Result<Option<Vec<u8>>> {
        let from = std::ops::Bound::Excluded(after.to_vec());
        let range = (from, std::ops::Bound::Unbounded);
        let next = self.new.space(space).range::<Vec<u8>, _>(range).next();
        next.map(|guard| guard.key().map(|key| key.to_vec()).map_err(io))
            .transpose()
    }

    /// Takes in what the batches of a journal say.
    pub(super) fn journal(&mut self, journal: &[u8]) -> Result<()> {
        let mut failed = Ok(());
        journal::batches(journal, |items| {
            if failed.is_ok() {
                failed = self.batch(&items);
            }
        });
        failed
    }

    fn batch(&mut self, items: &[journal::Item<'_>]) -> Result<()> {
        let end = items.iter().find(|i| i.key == meta::SEQUENCE.as_bytes());
        let Some(end) = end.and_then(|i| minicbor::decode::<u64>(i.value?).ok()) else {
            return Ok(());
        };
        // Of several changes of one entry the last one stands.
        let mut changes: BTreeMap<(u64, &[u8]), Option<&[u8]>> = BTreeMap::new();
        for item in items {
            changes.insert((item.keyspace, item.key), item.value);
        }
        let small: HashMap<&[u8], &[u8]> = changes
            .iter()
            .filter(|((_, key), _)| key.len() == 8)
            .filter_map(|((_, key), value)| Some((*key, (*value)?)))
            .collect();
        for ((keyspace, key), value) in &changes {
            match value {
                Some(value) => {
                    let spaces = COPIED.into_iter();
                    let space = match self.spaces.get(keyspace) {
                        Some(space) => Some(*space),
                        None => spaces
                            .into_iter()
                            .find(|s| self.opens(*s, key, value).is_some()),
                    };
                    let Some(space) = space else { continue };
                    let Some(origin) = self.opens(space, key, value) else {
                        continue;
                    };
                    self.spaces.insert(*keyspace, space);
                    let inline = origin.and_then(|o| small.get(&key::sequence(o)[..]).copied());
                    self.apply(&Entry {
                        space,
                        key,
                        sequence: record::sequence(value).unwrap_or(0),
                        value: Some(value),
                        inline,
                    })?;
                }
                None => {
                    if let Some(space) = self.spaces.get(keyspace).copied() {
                        self.apply(&Entry {
                            space,
                            key,
                            sequence: end,
                            value: None,
                            inline: None,
                        })?;
                    }
                }
            }
        }
        // What is batched here was durable, or about to be.
        self.highest = self.highest.max(end);
        Ok(())
    }
}
