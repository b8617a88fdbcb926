//! Doors into private parsers for the fuzz targets; built only for them.

use minicbor::Decode;

use crate::index::key;
use crate::record::{Bucket, Object, Part, Sealer, Upload};
use crate::secret::Secret;
use crate::segment::{Checkpoint, block};

/// Decodes `bytes` as every kind of record, and again after sealing and opening what decoded.
pub fn record(bytes: &[u8]) {
    fn check<T: for<'b> Decode<'b, ()> + minicbor::Encode<()> + PartialEq>(bytes: &[u8]) {
        let sealer = Sealer::new(&Secret::new([1; 32]));
        assert!(
            sealer.open::<T>("objects", b"key", bytes).is_err(),
            "noise is not a seal"
        );
        if let Ok(record) = minicbor::decode::<T>(bytes) {
            let value = sealer.seal("objects", b"key", 7, &record);
            assert!(
                sealer
                    .open::<T>("objects", b"key", &value)
                    .is_ok_and(|(n, r)| n == 7 && r == record)
            );
        }
    }
    check::<Object>(bytes);
    check::<Part>(bytes);
    check::<Upload>(bytes);
    check::<Bucket>(bytes);
    check::<Checkpoint>(bytes);
    let _ = key::split("b", bytes);
    let _ = key::part_number(bytes);
}

/// Parses `bytes` as a block, alone and behind a valid magic.
pub fn extent(bytes: &[u8]) {
    let blocks = block::Sealer::new(&Secret::new([1; 32]));
    let mut marked = b"STRGROOM\x01\x01\0\0".to_vec();
    marked.extend_from_slice(bytes);
    for bytes in [bytes, &marked] {
        let _ = block::parse(bytes);
        assert!(blocks.open(bytes).is_none(), "noise is not a block");
    }
    let _ = minicbor::decode::<block::Head>(bytes);
    let _ = minicbor::decode::<block::Tail>(bytes);
    let _ = minicbor::decode::<block::WrappedKey>(bytes);
}
