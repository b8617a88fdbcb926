//! The XML of encryption configurations; what is read as a bucket's is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_http::sse::xml;

fuzz_target!(|bytes: &[u8]| {
    drop(xml::read_object(bytes));
    if let Ok(rule) = xml::read_bucket(bytes) {
        let written = xml::write_bucket(&rule).expect("what was read can be written");
        let again = xml::read_bucket(&written).expect("what was written can be read");
        assert_eq!(again.mode, rule.mode);
        assert_eq!(again.bucket_key, rule.bucket_key);
    }
});
