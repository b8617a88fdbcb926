//! POST forms in frames of any size: the first byte says how large they are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_http::body::form::Head;

fuzz_target!(|bytes: &[u8]| {
    let Some((step, body)) = bytes.split_first() else {
        return;
    };
    let mut head = Head::new(b"B");
    let mut file = None;
    for frame in body.chunks(usize::from(*step).max(1)) {
        match &mut file {
            None => match head.feed(frame) {
                Ok(found) => file = found.map(|(_, file)| file),
                Err(_) => return,
            },
            Some(file) => file.feed(bytes::Bytes::copy_from_slice(frame)),
        }
        while let Some(piece) = file.as_mut().and_then(|file| file.decode()) {
            assert!(!piece.windows(5).any(|w| w == b"\r\n--B"));
        }
    }
});
