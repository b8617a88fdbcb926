//! Sectors from anywhere as the blocks that describe extents.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| strongroom_engine::fuzzing::extent(bytes));
