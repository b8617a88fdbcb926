//! Any header as an encryption context. What is taken has one canonical form, which reads as the same pairs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_kms::{Context, fuzzing};

fuzz_target!(|input: (&str, &[u8])| {
    let (header, json) = input;
    let _ = Context::parse_header(header);
    if let Some((pairs, canonical)) = fuzzing::context(json) {
        let (again, same) = fuzzing::context(&canonical).expect("the canonical form is one");
        assert!(again == pairs && same == canonical);
    }
});
