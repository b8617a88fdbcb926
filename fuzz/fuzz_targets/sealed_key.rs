//! Any bytes as what keys are sealed in: an object key's metadata, a data key's ciphertext, files of keys. Noise opens to
//! nothing, and neither does anything sealed that was changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_engine::hierarchy::{self, Domain, SealedKey};
use strongroom_engine::secret::Secret;
use strongroom_kms::fuzzing;

fuzz_target!(|input: ([u8; 32], [[u8; 32]; 2], &[u8], &[u8])| {
    let (iv, sealed, path, bytes) = input;
    let (external, object_key) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let noise: [u8; 64] = sealed.concat().try_into().expect("64 bytes");
    for domain in [Domain::SseC, Domain::SseS3, Domain::SseKms] {
        let mut key = SealedKey { iv, sealed: noise };
        assert!(hierarchy::unseal_key(&key, &external, domain, path).is_err());
        assert!(hierarchy::unseal_legacy_key(&key, &external).is_err());
        key = hierarchy::seal_key(&object_key, &external, domain, path, iv, [3; 12]);
        let opened = hierarchy::unseal_key(&key, &external, domain, path);
        assert!(opened.is_ok_and(|opened| opened == object_key));
        for (byte, change) in key.sealed.iter_mut().zip(noise) {
            *byte ^= change;
        }
        let opened = hierarchy::unseal_key(&key, &external, domain, path);
        assert_eq!(opened.is_ok(), noise == [0; 64]);
    }
    fuzzing::ciphertext(bytes, path);
    fuzzing::key_files(bytes);
});
