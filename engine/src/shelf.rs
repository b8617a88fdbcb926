//! Large buffers, used again: memory that is new to the process has to be cleared by the kernel first, page by page, which
//! costs more than all that is done to the data afterwards.
//!
//! A buffer goes back on its shelf when the last [`Bytes`] made from it is dropped, on whatever core. What it held stays in it, so
//! plaintext and ciphertext have a shelf each; a reader of a buffer sees what was put in since it was taken, and nothing else.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::limits::{CACHE_RUN_BYTES, SHELF_BUFFERS_MAX};

const FULL: usize = CACHE_RUN_BYTES as usize;

/// Where buffers lie while nobody uses them.
#[derive(Default)]
pub struct Shelf(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer that is being filled.
pub struct Shelved {
    bytes: Box<[u8]>,
    filled: usize,
    home: Shelf,
}

impl Shelf {
    /// A buffer for `len` bytes, at most those of a run. One much smaller than a run is just made, so that keeping it costs what it holds.
    pub fn buffer(&self, len: usize) -> Shelved {
        assert!(len <= FULL, "a run at most");
        let used = || self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = match len > FULL / 2 {
            true => used().unwrap_or_else(|| vec![0; FULL].into()),
            false => vec![0; len].into(),
        };
        Shelved {
            bytes,
            filled: 0,
            home: Shelf(Arc::clone(&self.0)),
        }
    }

    pub fn copy(&self, bytes: &[u8]) -> Bytes {
        let mut buffer = self.buffer(bytes.len());
        buffer.extend(bytes);
        buffer.into()
    }
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
        let mut shelf = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.len() < SHELF_BUFFERS_MAX {
            shelf.push(bytes);
        }
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
        assert!(shelf.0.lock().unwrap().is_empty(), "still read");
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
        assert!(shelf.0.lock().unwrap().is_empty());
        let many: Vec<_> = (0..SHELF_BUFFERS_MAX + 3)
            .map(|_| shelf.copy(&vec![1; FULL]))
            .collect();
        drop(many);
        assert_eq!(shelf.0.lock().unwrap().len(), SHELF_BUFFERS_MAX);
    }
}
