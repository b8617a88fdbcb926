//! The kernels of this CPU against ring's AES-256-GCM: any lengths, any pieces, any tag.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use strongroom_engine::secret::Secret;
use strongroom_engine::simd::cpu::paths;
use strongroom_engine::simd::gcm::Key;

fuzz_target!(
    |input: ([u8; 32], [u8; 12], Vec<u8>, Vec<u8>, Vec<u16>, u8)| {
        let (key, nonce, aad, seed, pieces, flip) = input;
        // A fuzzer's inputs are short, packages are not.
        let times = usize::from(pieces.first().copied().unwrap_or(0)) % 512 + 1;
        let plain = seed.repeat(times);
        let plain = &plain[..plain.len().min(70_000)];

        let ring = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("32 bytes"));
        let mut expected = plain.to_vec();
        let expected_tag = ring
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&aad),
                &mut expected,
            )
            .expect("short enough");

        let secret = Secret::new(key);
        for path in paths() {
            let key = Key::on(*path, &secret);
            let mut sealed = vec![0; plain.len()];
            let tag = key.seal(&nonce, &aad, plain, &mut sealed);
            assert!(sealed == expected && tag == *expected_tag.as_ref());

            let mut message = key.begin(&nonce, &aad);
            let (mut at, mut next) = (0, pieces.iter().cycle());
            sealed.fill(0);
            while at < plain.len() {
                let len = next
                    .next()
                    .map_or(plain.len(), |n| usize::from(*n) % 5000 + 1);
                let end = (at + len).min(plain.len());
                message.seal(&key, &plain[at..end], &mut sealed[at..end]);
                at = end;
            }
            assert!(message.finish(&key) == tag && sealed == expected);

            let mut wrong = tag;
            wrong[usize::from(flip) % 16] ^= flip;
            let mut opened = vec![1; plain.len()];
            match key.open(&nonce, &aad, &sealed, &wrong, &mut opened) {
                Ok(()) => assert!(flip == 0 && opened == plain),
                Err(_) => assert!(flip != 0 && opened.iter().all(|b| *b == 0)),
            }
        }
    }
);
