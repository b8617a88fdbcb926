//! Sealed bytes from anywhere: either what was sealed, or an error and nothing in the destination.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_engine::dare::header::{PAYLOAD, Version};
use strongroom_engine::dare::open::{Opener, open_blob};
use strongroom_engine::dare::seal::seal_blob;
use strongroom_engine::secret::Secret;

fuzz_target!(|input: (Vec<u8>, Vec<u8>, u64, u64, bool)| {
    let (plain, noise, sequence, plain_len, mutate) = input;
    let key = Secret::new([7; 32]);
    let nonce = [3; 12];
    // Sealed bytes with some of them changed, or noise alone.
    let mut sealed = seal_blob(&key, nonce, &plain);
    let honest = sealed.clone();
    if mutate {
        for pair in noise.chunks_exact(2) {
            if let Some(byte) = sealed.get_mut(usize::from(pair[0]) % honest.len().max(1)) {
                *byte ^= pair[1];
            }
        }
    } else {
        sealed = noise;
    }
    for min in [Version::V10, Version::V20] {
        if let Ok(opened) = open_blob(&key, &sealed, min)
            && !sealed.is_empty()
        {
            assert!(sealed == honest && opened[..] == plain[..]);
        }
    }
    let opener = Opener::new(&key, nonce, plain_len % (1 << 40));
    let mut out = vec![0u8; PAYLOAD];
    match opener.open_package(sequence, &sealed, &mut out) {
        Ok(n) => assert!(n <= PAYLOAD && sealed[..] == honest[..sealed.len()]),
        Err(_) => assert!(out.iter().all(|b| *b == 0)),
    }
});
