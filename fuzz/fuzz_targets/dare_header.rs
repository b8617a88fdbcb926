//! Any sixteen bytes as a package header, and any range of any stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_engine::dare::header::{Header, PAYLOAD};
use strongroom_engine::dare::layout;

fuzz_target!(|input: (Vec<u8>, u64, u64, u64)| {
    let (bytes, plain, a, b) = input;
    if let Some(header) = Header::read(&bytes) {
        assert!(header.payload() >= 1 && header.payload() <= PAYLOAD);
        if header.version().is_ok() && header.cipher().is_ok() {
            let _ = (
                header.nonce_v10(),
                header.nonce_v20(a as u32),
                header.aad(),
                header.is_last(),
            );
        }
    }
    if let Some(sealed) = layout::sealed_len(plain) {
        assert_eq!(layout::opened_len(sealed), Some(plain));
    }
    let _ = layout::opened_len(a);
    if let Some(range) = layout::PackageRange::new(plain, a.min(b)..a.max(b)) {
        assert!(range.sealed().end <= layout::sealed_len(plain).unwrap());
    }
});
