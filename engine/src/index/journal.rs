//! The journals of the index, read as they lie there: what the tree itself no longer replays behind a damaged place.
//!
//! A journal of fjall 3 holds batches: a start (`01`, number of items in 4 bytes, tree sequence in 8), items (`02`, kind: 0 value,
//! 1 and 2 removal, compression: 0 none, keyspace in 8, lengths of key in 2 and of the value in 4 twice, key, value) or cleared
//! keyspaces (`04`, keyspace in 8), and an end (`03`, checksum in 8, `FJL` `03`); numbers are little-endian. Only batches whole from
//! start to end count, and what they hold is believed no further than its own seal goes. The checksum is XXH3 over the items.
//!
//! Every batch is synced before the next one is written. So a crash can leave one batch torn, at the end of the newest journal;
//! and damage with whole batches behind it is none that a crash leaves.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// One change of a batch: an entry of a keyspace, and its value; none where it was removed.
#[derive(Debug, PartialEq, Eq)]
pub struct Item<'a> {
    pub keyspace: u64,
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// Cuts off a batch that a crash has torn: the tree would refuse some of these, and where it does not, would cut as well. Refuses
/// journals that are damaged in front of whole batches, which the tree would drop without a word.
pub fn mend(dir: &Path) -> Result<()> {
    let mut journals = journals(dir)?;
    let newest = journals.pop();
    let older = journals.iter().map(|path| (path, true));
    // The tree's own sequence is in no sum, but it only ever grows.
    let mut sequence = 0;
    for (path, older) in older.chain(newest.iter().map(|path| (path, false))) {
        let bytes = read(path)?;
        let mut end = 0;
        while let Some(found) = batch(&bytes[end..])
            && found.sum_holds
            && found.sequence > sequence
        {
            sequence = found.sequence;
            end += found.len;
        }
        let rest = &bytes[end..];
        if rest.iter().all(|b| *b == 0) {
            continue;
        }
        let whole = |at: &usize| batch(&rest[*at..]).is_some_and(|found| found.sum_holds);
        if older || (0..rest.len()).any(|at| whole(&at)) {
            return Err(Error::Unusable(format!(
                "{} is damaged at byte {end}: what was committed from there on would be lost. Nothing was changed. Put the file \
                 back as it was, or rebuild the index with `strongroom recover`.",
                path.display()
            )));
        }
        tracing::info!(
            "a commit that a crash cut off is dropped from {}",
            path.display()
        );
        let failed = |e| Error::io("cut", path, e);
        let file = File::options().write(true).open(path).map_err(failed)?;
        file.set_len(end as u64).map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// The journals of an index, the oldest first.
fn journals(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("list", dir, e);
    // An index about to be made has none.
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|e| e.map(|e| e.path()));
    let paths = paths.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    Ok(in_order(paths))
}

/// Those of these files that are journals, the oldest first.
pub fn in_order(files: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let number = |path: &Path| {
        path.file_name()?
            .to_str()?
            .strip_suffix(".jnl")?
            .parse()
            .ok()
    };
    let numbered = files.into_iter();
    let mut found: Vec<(u64, PathBuf)> = numbered
        .filter_map(|path| Some((number(&path)?, path)))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

/// What was written of a journal: it is made large at once, and the rest of it is a hole.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::io("read", path, e);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut end = 0;
    while end < len {
        match seek(&file, SeekFrom::Data(end)) {
            Ok(data) => end = seek(&file, SeekFrom::Hole(data)).map_err(|e| failed(e.into()))?,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(failed(e.into())),
        }
    }
    let mut bytes = vec![0; end as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

/// Copies a journal, without writing the room that was made ahead.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = read(from)?;
    let len = std::fs::metadata(from)
        .map_err(|e| Error::io("copy", from, e))?
        .len();
    let write = || {
        let mut file = File::create(to)?;
        std::io::Write::write_all(&mut file, &bytes)?;
        file.set_len(len.max(bytes.len() as u64))
    };
    write().map_err(|e| Error::io("write", to, e))
}

/// Whether a file has the name of a journal.
pub fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jnl")
}

/// Hands out the items of every whole batch in `journal`, in order.
pub fn batches<'a>(journal: &'a [u8], mut f: impl FnMut(Vec<Item<'a>>)) {
    let mut at = 0;
    while at < journal.len() {
        match batch(&journal[at..]) {
            Some(found) => {
                at += found.len;
                f(found.items);
            }
            // The next place where a batch can begin.
            None => {
                at += 1;
                at += journal[at..]
                    .iter()
                    .position(|b| *b == START)
                    .unwrap_or(journal.len() - at);
            }
        }
    }
}

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const MAGIC: [u8; 4] = *b"FJL\x03";

struct Batch<'a> {
    items: Vec<Item<'a>>,
    len: usize,
    /// The tree's own.
    sequence: u64,
    sum_holds: bool,
}

fn batch(bytes: &[u8]) -> Option<Batch<'_>> {
    let mut rest = bytes;
    (take(&mut rest, 1)? == [START]).then_some(())?;
    let count = number(take(&mut rest, 4)?);
    let sequence = number(take(&mut rest, 8)?) as u64;
    let mut items = Vec::new();
    let summed = rest;
    while items.len() < count {
        (take(&mut rest, 1)? == [ITEM]).then_some(())?;
        let kind = *take(&mut rest, 1)?.first()?;
        (kind <= 2 && take(&mut rest, 1)? == [0]).then_some(())?;
        let keyspace = number(take(&mut rest, 8)?) as u64;
        let key_len = number(take(&mut rest, 2)?);
        let len = number(take(&mut rest, 4)?);
        (number(take(&mut rest, 4)?) == len).then_some(())?;
        let key = take(&mut rest, key_len)?;
        let value = take(&mut rest, len)?;
        items.push(Item {
            keyspace,
            key,
            value: (kind == 0).then_some(value),
        });
    }
    let summed = &summed[..summed.len() - rest.len()];
    (take(&mut rest, 1)? == [END]).then_some(())?;
    let sum = take(&mut rest, 8)?;
    (take(&mut rest, 4)? == MAGIC).then_some(())?;
    Some(Batch {
        items,
        len: bytes.len() - rest.len(),
        sequence,
        sum_holds: sum == xxh3_64(summed).to_le_bytes(),
    })
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tree as the index has it, but for its keyspaces.
    fn tree(dir: &Path) -> fjall::Database {
        fjall::Database::builder(dir)
            .journal_compression(fjall::CompressionType::None)
            .open()
            .unwrap()
    }

    fn keys(journal: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut all = Vec::new();
        batches(journal, |items| {
            all.extend(items.iter().map(|i| (i.key.to_vec(), i.value.is_some())));
        });
        all
    }

    #[test]
    fn what_the_tree_writes_is_read_also_behind_damage() {
        let dir = tempfile::tempdir().unwrap();
        {
            let db = tree(dir.path());
            let space = db.keyspace("x", Default::default).unwrap();
            for n in 0..20u8 {
                let mut batch = db.batch();
                batch.insert(&space, [n], vec![n; 100]);
                batch.insert(&space, [n, n], vec![START; 50]);
                batch.remove(&space, [n, 1]);
                batch.commit().unwrap();
            }
            db.persist(fjall::PersistMode::SyncAll).unwrap();
        }
        let journals = journals(dir.path()).unwrap();
        let journals: Vec<_> = journals.iter().map(|f| std::fs::read(f).unwrap()).collect();
        assert_eq!(journals.len(), 1);
        let all = keys(&journals[0]);
        assert_eq!(all.len(), 60);
        assert_eq!(all[4], (vec![1, 1], true));
        assert_eq!(all[5], (vec![1, 1], false));
        let batch_len = batch(&journals[0]).unwrap().len;
        for damaged in [5, 40, batch_len - 2] {
            let mut bytes = journals[0].clone();
            bytes[7 * batch_len + damaged] ^= 0x81;
            let left = keys(&bytes);
            // The number of the tree's own sequence is not looked at.
            assert!(
                left.len() >= 57 && left.iter().any(|(k, _)| k == &[19, 19]),
                "{damaged}"
            );
        }
    }

    /// A store's journal, with marks where each of `n` batches begins and ends.
    fn written(dir: &Path, n: u8) -> (PathBuf, Vec<u8>, Vec<usize>) {
        let db = tree(dir);
        let space = db.keyspace("x", Default::default).unwrap();
        for n in 0..n {
            let mut batch = db.batch();
            batch.insert(&space, [n], vec![n; 3000]);
            batch.remove(&space, [n, 1]);
            batch.commit().unwrap();
        }
        db.persist(fjall::PersistMode::SyncAll).unwrap();
        drop((space, db));
        let path = journals(dir).unwrap().pop().unwrap();
        let bytes = read(&path).unwrap();
        let mut marks = vec![0];
        while let Some(found) = batch(&bytes[marks[marks.len() - 1]..]) {
            marks.push(marks[marks.len() - 1] + found.len);
        }
        let bytes = bytes[..*marks.last().unwrap()].to_vec();
        (path, bytes, marks)
    }

    #[test]
    fn a_torn_end_is_cut_and_damage_before_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (path, good, marks) = written(dir.path(), 6);
        let last = marks[marks.len() - 2];
        let mended = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            mend(dir.path()).map(|()| std::fs::read(&path).unwrap())
        };
        assert_eq!(mended(&good).unwrap(), good);
        let large = [&good[..], &[0; 100_000]].concat();
        assert_eq!(mended(&large).unwrap(), large, "room that was made ahead");
        // A last batch that lost its end, or any of its blocks.
        for cut in (last + 1..good.len()).step_by(61) {
            assert_eq!(mended(&good[..cut]).unwrap(), good[..last], "cut at {cut}");
            let mut torn = large.clone();
            let end = (cut + 512).min(good.len());
            if torn[cut..end].iter().all(|b| *b == 0) {
                continue;
            }
            torn[cut..end].fill(0);
            assert_eq!(mended(&torn).unwrap(), good[..last], "torn at {cut}");
        }
        // A bit that changed in front of it; kinds of removal are alike.
        for at in (0..last).filter(|at| at % 3000 < 60 || at % 17 == 0) {
            for bit in [0x01, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                let found = mended(&bad);
                assert!(
                    matches!(found, Err(Error::Unusable(_))) || grows(&bad),
                    "byte {at} of {last}"
                );
            }
        }
    }

    /// Whether all batches are whole, and their sequences grow.
    fn grows(journal: &[u8]) -> bool {
        let (mut at, mut sequence) = (0, 0);
        while let Some(found) = batch(&journal[at..]) {
            if !found.sum_holds || found.sequence <= sequence {
                return false;
            }
            (at, sequence) = (at + found.len, found.sequence);
        }
        at == journal.len()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(0u8..5, 0..300)) {
            batches(&bytes, |_| {});
        }
    }
}
