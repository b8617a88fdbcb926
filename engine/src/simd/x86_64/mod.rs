//! AES-256-GCM for x86-64: one stitched loop, in three widths; and CRCs.
//!
//! - [`stitched`]: the loop itself and all that is common, as a macro over the width.
//! - [`aesni`], [`vaes256`], [`vaes512`]: what a width calls its instructions.
//! - [`setup`]: round keys and hash-key powers, the same for all.
//! - [`crc256`]: checksums by carry-less multiplication.

#![expect(
    clippy::modulo_one,
    reason = "one loop for all widths: some have one block a vector, or one batch a group"
)]

#[macro_use]
mod stitched;
mod setup;

pub mod aesni;
pub mod crc256;
pub mod vaes256;
pub mod vaes512;
