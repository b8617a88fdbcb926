//! Large buffers, used again: memory that is new to the process has to be cleared by the kernel first, page by page, which
//! costs more than all that is done to the data afterwards.
//!
//! A buffer goes back on its shelf when the last [`Bytes`] made from it is dropped, on whatever core. What it held stays in it, so
//! plaintext and ciphertext have a shelf each; a reader of a buffer sees what was put in since it was taken, and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::limits::{CACHE_RUN_BYTES, SHELF_PAIRS_MAX};

const FULL: usize = CACHE_RUN_BYTES as usize;

/// What the allocator gives out at the least for something larger than half a megabyte; and it takes one more for itself.
const SLICE: usize = 64 * 1024;

/// Where buffers lie while nobody uses them.
#[derive(Default)]
pub struct Shelf(Arc<Mutex<Pairs>>);

/// Two full buffers lie in one piece of memory, of which less is wasted than of two; it goes when both are dropped.
#[derive(Default)]
struct Pairs {
    made: u64,
    /// Buffers whose other one is used, by the number of their pair. They cost nothing beside it, and are the first to be used.
    lone: BTreeMap<u64, BytesMut>,
    whole: Vec<(u64, [BytesMut; 2])>,
}

/// A buffer that is being filled.
pub struct Shelved {
    bytes: BytesMut,
    filled: usize,
    /// The number of its pair, where it is a full one.
    pair: u64,
    home: Shelf,
}

impl Shelf {
    /// A buffer for `len` bytes, at most those of a run. One much smaller than a run is just made, so that keeping it costs what it holds.
    pub fn buffer(&self, len: usize) -> Shelved {
        assert!(len <= FULL, "a run at most");
        let (pair, bytes) = match is_full(len) {
            true => self.full(),
            false => (0, BytesMut::zeroed(len)),
        };
        Shelved {
            bytes,
            filled: 0,
            pair,
            home: Shelf(Arc::clone(&self.0)),
        }
    }

    fn full(&self) -> (u64, BytesMut) {
        if let Some(used) = self.pairs().take() {
            return used;
        }
        let mut first = BytesMut::zeroed(2 * FULL);
        let second = first.split_off(FULL);
        let mut pairs = self.pairs();
        pairs.made += 1;
        let pair = pairs.made;
        pairs.lone.insert(pair, second);
        (pair, first)
    }

    fn pairs(&self) -> MutexGuard<'_, Pairs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn copy(&self, bytes: &[u8]) -> Bytes {
        let mut buffer = self.buffer(bytes.len());
        buffer.extend(bytes);
        buffer.into()
    }
}

impl Pairs {
    fn take(&mut self) -> Option<(u64, BytesMut)> {
        if let Some(lone) = self.lone.pop_first() {
            return Some(lone);
        }
        let (pair, [first, second]) = self.whole.pop()?;
        self.lone.insert(pair, second);
        Some((pair, first))
    }

    fn put(&mut self, pair: u64, bytes: BytesMut) {
        match self.lone.remove(&pair) {
            None => drop(self.lone.insert(pair, bytes)),
            Some(other) if self.whole.len() < SHELF_PAIRS_MAX => {
                self.whole.push((pair, [bytes, other]));
            }
            Some(_) => {}
        }
    }
}

/// What a buffer for `len` bytes takes of memory, about: the allocator has eight sizes between one power of two and the next.
pub fn taken(len: usize) -> u64 {
    let bytes = match is_full(len) {
        true => ((2 * FULL).div_ceil(SLICE) + 1) * SLICE / 2,
        false => len.next_multiple_of((len.next_power_of_two() / 16).max(1)),
    };
    bytes as u64
}

fn is_full(len: usize) -> bool {
    len > FULL / 2
}

impl Shelved {
    pub fn len(&self) -> usize {
        self.filled
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        self.bytes[self.filled..end].copy_from_slice(bytes);
        self.filled = end;
    }

    /// The next `len` bytes, to be overwritten: all of them, since they may be an earlier user's.
    pub fn claim(&mut self, len: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += len;
        &mut self.bytes[start..self.filled]
    }
}

impl AsRef<[u8]> for Shelved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl From<Shelved> for Bytes {
    fn from(filled: Shelved) -> Bytes {
        Bytes::from_owner(filled)
    }
}

impl Drop for Shelved {
    fn drop(&mut self) {
        if self.bytes.len() != FULL {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.home.pairs().put(self.pair, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_shows_nothing_of_its_past() {
        let shelf = Shelf::default();
        let first = shelf.copy(&vec![7; FULL]);
        let slice = first.slice(10..20);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(shelf.pairs().lone.len(), 1, "the one is still read");
        assert_eq!(&slice[..], [7; 10]);
        drop(slice);
        let mut again = shelf.buffer(FULL - 1);
        assert_eq!(again.as_ref(), [0; 0]);
        again.extend(&[1, 2]);
        again.claim(1)[0] = 3;
        assert_eq!((again.len(), again.as_ref()), (3, &[1, 2, 3][..]));
        assert_eq!(again.as_ref().as_ptr(), place);
    }

    #[test]
    fn a_shelf_is_bounded_and_takes_no_small_ones() {
        let shelf = Shelf::default();
        drop(shelf.copy(&[1; 1000]));
        assert_eq!(shelf.pairs().made, 0);
        let many: Vec<_> = (0..2 * SHELF_PAIRS_MAX + 3)
            .map(|_| shelf.copy(&vec![1; FULL]))
            .collect();
        drop(many);
        let pairs = shelf.pairs();
        assert_eq!((pairs.lone.len(), pairs.whole.len()), (0, SHELF_PAIRS_MAX));
    }

    #[test]
    fn a_buffer_whose_other_one_is_used_comes_first() {
        let shelf = Shelf::default();
        let run = |_| shelf.copy(&[1; FULL]);
        let mut runs: Vec<_> = (0..1000).map(run).collect();
        // Every other one goes, and their place is used before any other.
        let mut odd = false;
        runs.retain(|_| {
            odd = !odd;
            odd
        });
        assert_eq!(shelf.pairs().lone.len(), 500);
        runs.extend((0..500).map(run));
        let pairs = shelf.pairs();
        assert_eq!((pairs.made, pairs.lone.len()), (500, 0));
    }

    #[test]
    fn what_is_taken_is_counted() {
        for (len, expected) in [
            (1, 1),
            (100, 104),
            (4096, 4096),
            (65_568, 72 * 1024),
            (FULL / 2, 288 * 1024),
            (FULL / 2 + 1, 576 * 1024),
            (FULL, 576 * 1024),
        ] {
            assert_eq!(taken(len), expected, "{len}");
        }
    }
}
