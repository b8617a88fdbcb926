//! DARE: a byte stream as a run of sealed packages of 64 KiB, each bound to its place and the last one marked.
//!
//! - [`header`]: the 16 bytes before each package, and the nonce and associated data they imply.
//! - [`layout`]: lengths and ranges, pure arithmetic.
//! - [`seal`] and [`open`]: the two directions.
//!
//! What is written is DARE 2.0 with AES-256-GCM. What is read is also what MinIO wrote: 1.0, and ChaCha20-Poly1305.
//! The format is frozen, since it lies on disk. An empty stream is zero bytes long.

pub mod header;
pub mod layout;
pub mod open;
pub mod seal;

pub use header::{Cipher, HEADER, OVERHEAD, PACKAGE, PAYLOAD, TAG, Version};
pub use open::{OpenError, Opener, open_blob};
pub use seal::{Progress, Sealer, seal_blob};

#[cfg(test)]
mod tests;
