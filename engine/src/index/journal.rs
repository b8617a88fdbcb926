//! The journals of the index, read as they lie there: what the tree itself no longer replays behind a damaged place.
//!
//! A journal of fjall 3 holds batches: a start (`01`, number of items in 4 bytes, tree sequence in 8), items (`02`, kind: 0 value,
//! 1 and 2 removal, compression: 0 none, keyspace in 8, lengths of key in 2 and of the value in 4 twice, key, value) or cleared
//! keyspaces (`04`, keyspace in 8), and an end (`03`, checksum in 8, `FJL` `03`); numbers are little-endian. Only batches whole from
//! start to end count, and what they hold is believed no further than its own seal goes.

/// One change of a batch: an entry of a keyspace, and its value; none where it was removed.
#[derive(Debug, PartialEq, Eq)]
pub struct Item<'a> {
    pub keyspace: u64,
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// Hands out the items of every whole batch in `journal`, in order.
pub fn batches<'a>(journal: &'a [u8], mut f: impl FnMut(Vec<Item<'a>>)) {
    let mut at = 0;
    while at < journal.len() {
        match batch(&journal[at..]) {
            Some((items, len)) => {
                f(items);
                at += len;
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

fn batch(bytes: &[u8]) -> Option<(Vec<Item<'_>>, usize)> {
    let mut rest = bytes;
    (take(&mut rest, 1)? == [START]).then_some(())?;
    let count = number(take(&mut rest, 4)?);
    take(&mut rest, 8)?;
    let mut items = Vec::new();
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
    (take(&mut rest, 1)? == [END]).then_some(())?;
    take(&mut rest, 8)?;
    (take(&mut rest, 4)? == MAGIC).then_some(())?;
    Some((items, bytes.len() - rest.len()))
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

    fn journals(dir: &std::path::Path) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        files
            .filter(|f| f.extension().is_some_and(|e| e == "jnl"))
            .map(|f| std::fs::read(f).unwrap())
            .collect()
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
            let db = fjall::Database::builder(dir.path())
                .journal_compression(fjall::CompressionType::None)
                .open()
                .unwrap();
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
        let journals = journals(dir.path());
        assert_eq!(journals.len(), 1);
        let all = keys(&journals[0]);
        assert_eq!(all.len(), 60);
        assert_eq!(all[4], (vec![1, 1], true));
        assert_eq!(all[5], (vec![1, 1], false));
        let batch_len = batch(&journals[0]).unwrap().1;
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

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(0u8..5, 0..300)) {
            batches(&bytes, |_| {});
        }
    }
}
