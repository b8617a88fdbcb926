//! Storage and cryptography of Strongroom.

pub mod dare;
pub mod hierarchy;
pub mod secret;
pub mod simd;
