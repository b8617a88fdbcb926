//! Index values and index keys from anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| strongroom_engine::fuzzing::record(bytes));
