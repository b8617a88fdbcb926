//! Writes the copy of the index to segments: rounds of pieces, each one sealed block, all on one shard.
//!
//! A round looks the entries up, writes its pieces, syncs, and only then commits the list of its extents, which frees what a
//! whole round replaces. A round cut off by a crash leaves extents that no record names, like an upload.

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::block::{Copy, CopyEntry, CopyGroup};
use super::writer::Pieces;
use crate::engine::Core;
use crate::error::Result;
use crate::index::commit::Op;
use crate::index::copies::{COPIED, Group, Round};
use crate::index::{Space, key, record};
use crate::limits;
use crate::record::{Data, Object, Part, Place};
use crate::rt;
use crate::shard::{Shard, to_end};

/// How far a round has come: the next of its keys, or the keyspace and the last key read.
#[derive(Clone, Default)]
struct Cursor {
    next: usize,
    after: Option<Vec<u8>>,
}

impl Shard {
    /// Copies what changed whenever it is due, for as long as the shard is open.
    pub(crate) async fn keep_copying(shard: Weak<Shard>) {
        let mut pause = limits::COPY_LOOK_EVERY;
        loop {
            rt::sleep(pause).await;
            pause = limits::COPY_LOOK_EVERY;
            let Some(shard) = shard.upgrade().filter(|s| !s.closing.get()) else {
                return;
            };
            if let Err(e) = shard.copy_round(false, false).await {
                tracing::warn!("the index could not be copied to segments: {e}");
                pause = Duration::from_secs(10);
            }
        }
    }

    /// Copies everything that changed in the index and is not copied yet. `whole` copies all of it afresh, after which no
    /// older version of any record stands in a copy that counts.
    pub async fn copy_index(self: &Rc<Self>, whole: bool) -> Result<()> {
        while !self.copy_round(true, whole).await? {
            // Another round is under way.
            rt::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Makes a round where one is due; whether nothing is left to do. Once begun a round ends, also when the caller goes away: no
    /// other begins before, and what it wrote must not be given back under a record that names it.
    async fn copy_round(self: &Rc<Self>, now: bool, whole: bool) -> Result<bool> {
        let copies = &self.core.copies;
        let Some(round) = copies.begin(|| self.core.index.synced(), now, whole) else {
            return Ok(copies.is_complete() && !whole);
        };
        let shard = Rc::clone(self);
        let round = to_end(async move {
            let done = shard.copy(round).await;
            if done.is_err() {
                shard.core.copies.failed();
            }
            done
        });
        round.await.map(|()| true)
    }

    async fn copy(&self, round: Round) -> Result<()> {
        let mut pieces = Pieces::default();
        let mut group = CopyGroup {
            id: 0,
            from: round.from,
            to: round.to,
        };
        let mut bytes = 0;
        let mut cursor = Cursor::default();
        loop {
            let keys = match round.whole {
                true => Vec::new(),
                false => {
                    let end = round
                        .keys
                        .len()
                        .min(cursor.next + limits::COPY_KEYS_AT_ONCE);
                    round.keys[cursor.next..end].to_vec()
                }
            };
            let (whole, to, total, from) =
                (round.whole, round.to, round.keys.len(), cursor.clone());
            let (entries, next) = self
                .aside(move |core| match whole {
                    true => gather_all(core, from),
                    false => gather(core, &keys, to).map(|(entries, n)| {
                        let next = from.next + n;
                        let more = next < total;
                        (entries, more.then_some(Cursor { next, after: None }))
                    }),
                })
                .await?;
            bytes += entries.iter().map(entry_bytes).sum::<usize>() as u64;
            // An index of nothing needs no copy.
            if !(round.whole && pieces.is_empty() && entries.is_empty() && next.is_none()) {
                let copy = Copy {
                    group,
                    number: pieces.len() as u32,
                    last: next.is_none(),
                    next_segment: self.core.segments.checkpoint(false).next_segment,
                    entries,
                };
                group.id = self.writer.write_copy(copy, &mut pieces).await?;
            }
            match next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        self.writer.sync_copy(&pieces).await?;
        let group = (!pieces.is_empty()).then(|| Group {
            group,
            extents: pieces.extents(),
            bytes,
        });
        let op = Op::Copied {
            group,
            whole: round.whole,
        };
        self.commit(op).await?;
        pieces.keep();
        Ok(())
    }
}

fn entry_bytes(entry: &CopyEntry) -> usize {
    let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    entry.key.len() + len(&entry.value) + len(&entry.inline) + 16
}

/// The entries under these keys as they are now, up to a piece full, and how many keys that took.
fn gather(core: &Core, keys: &[(Space, Vec<u8>)], to: u64) -> Result<(Vec<CopyEntry>, usize)> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    for (n, (space, key)) in keys.iter().enumerate() {
        if bytes >= limits::COPY_PIECE_BYTES {
            return Ok((entries, n));
        }
        let found = core
            .index
            .space(*space)
            .get(key)
            .map_err(crate::index::io)?;
        let entry = match found {
            Some(value) => entry(core, *space, key, &value)?,
            // Removed by a commit that was durable when the round began, or by one that is noted for the next.
            None => CopyEntry {
                space: number(*space),
                key: key.clone(),
                sequence: to,
                value: None,
                inline: None,
            },
        };
        bytes += entry_bytes(&entry);
        entries.push(entry);
    }
    Ok((entries, keys.len()))
}

/// The next entries of the whole index, up to a piece full, and where to go on.
fn gather_all(core: &Core, mut cursor: Cursor) -> Result<(Vec<CopyEntry>, Option<Cursor>)> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    while let Some(space) = COPIED.get(cursor.next) {
        let from = cursor.after.take();
        let from = from.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let range = (from, std::ops::Bound::Unbounded);
        for found in core.index.space(*space).range::<Vec<u8>, _>(range) {
            let (key, value) = found.into_inner().map_err(crate::index::io)?;
            if key != key::MARK {
                let entry = entry(core, *space, &key, &value)?;
                bytes += entry_bytes(&entry);
                entries.push(entry);
            }
            if bytes >= limits::COPY_PIECE_BYTES {
                cursor.after = Some(key.to_vec());
                return Ok((entries, Some(cursor)));
            }
        }
        cursor.next += 1;
    }
    Ok((entries, None))
}

/// An entry as it is copied. A record that does not open is copied as it lies there: it is found when it is read.
fn entry(core: &Core, space: Space, key: &[u8], value: &[u8]) -> Result<CopyEntry> {
    let sealer = &core.index.sealer;
    let name = space.name();
    let inline = match space {
        Space::Objects => match sealer.open::<Object>(name, key, value) {
            Ok((sequence, object)) => match &object.data {
                Data::Single(s) if s.place == Place::Inline => Some(object.origin(sequence)),
                _ => None,
            },
            Err(_) => None,
        },
        Space::Parts => match sealer.open::<Part>(name, key, value) {
            Ok((sequence, part)) if part.stream.place == Place::Inline => Some(sequence),
            _ => None,
        },
        _ => None,
    };
    let inline = match inline {
        // Replaced since: then it is noted for the next round.
        Some(sequence) => core.index.inline(sequence)?.map(|bytes| bytes.to_vec()),
        None => None,
    };
    Ok(CopyEntry {
        space: number(space),
        key: key.to_vec(),
        sequence: record::sequence(value).unwrap_or(0),
        value: Some(value.to_vec()),
        inline,
    })
}

fn number(space: Space) -> u8 {
    let at = COPIED.iter().position(|s| *s == space);
    at.expect("only these are noted") as u8
}
