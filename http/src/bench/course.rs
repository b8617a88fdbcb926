//! A set of messages that a cipher goes through, one after the other.

use std::time::{Duration, Instant};

use super::cipher::{Cipher, TAG};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Seal,
    Open,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    In,
    OutOf,
}

/// Messages of one size, and buffers for them; one lap is all of them.
pub struct Course {
    verb: Verb,
    place: Place,
    size: usize,
    count: usize,
    messages: Vec<u8>,
    /// Out of place alone.
    texts: Vec<u8>,
}

impl Course {
    /// As many messages with texts of `size` as are `set` bytes.
    pub fn new(verb: Verb, place: Place, size: usize, set: usize) -> Self {
        let count = set / size;
        let texts = match place {
            Place::In => Vec::new(),
            Place::OutOf => vec![1; count * size],
        };
        Course {
            verb,
            place,
            size,
            count,
            messages: vec![1; count * (size + TAG)],
            texts,
        }
    }

    /// Bytes of all texts.
    pub fn bytes(&self) -> usize {
        self.count * self.size
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// What one lap takes `cipher`. To have something to open, it seals first, which is not counted.
    pub fn lap(&mut self, cipher: &dyn Cipher) -> Duration {
        if self.verb == Verb::Open {
            let messages = self.messages.chunks_exact_mut(self.size + TAG);
            for (n, message) in messages.enumerate() {
                cipher.seal_in_place(&nonce(n), message);
            }
        }
        let begun = Instant::now();
        let messages = self.messages.chunks_exact_mut(self.size + TAG).enumerate();
        match self.place {
            Place::In => {
                for (n, message) in messages {
                    match self.verb {
                        Verb::Seal => cipher.seal_in_place(&nonce(n), message),
                        Verb::Open => cipher.open_in_place(&nonce(n), message),
                    }
                }
            }
            Place::OutOf => {
                for ((n, message), text) in messages.zip(self.texts.chunks_exact_mut(self.size)) {
                    match self.verb {
                        Verb::Seal => cipher.seal(&nonce(n), text, message),
                        Verb::Open => cipher.open(&nonce(n), message, text),
                    }
                }
            }
        }
        begun.elapsed()
    }
}

/// Messages are sealed again and again under the same: nothing but time comes of them.
fn nonce(n: usize) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&(n as u64).to_le_bytes());
    nonce
}
