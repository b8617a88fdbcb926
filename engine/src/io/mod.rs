//! The disk, as the engine uses it: whole sectors of segment files, written once, with direct I/O.

pub mod uring;
