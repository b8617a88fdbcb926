//! Published vectors of DARE and of the key hierarchy: other implementations' bytes, frozen.

use strongroom_engine::{
    dare::{Version, open_blob, seal_blob},
    hierarchy::{
        Domain, SealedKey, checksum_key, etag_key, minio_path, object_key, part_key, seal_key,
        unseal_key, unseal_legacy_key,
    },
    secret::Secret,
};

fn run_from(start: u8) -> [u8; 32] {
    std::array::from_fn(|i| start + i as u8)
}

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text)
        .expect("hex")
        .try_into()
        .expect("the stated length")
}

fn sha256(data: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(data))
}

const NONCE: [u8; 12] = [
    0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab,
];

fn opened(key: [u8; 32], sealed: &str, min: Version) -> Vec<u8> {
    let sealed = hex::decode(sealed).expect("hex");
    open_blob(&Secret::new(key), &sealed, min)
        .expect("opens")
        .to_vec()
}

#[test]
fn packages_of_both_versions_and_ciphers_open() {
    let key = run_from(0);
    for (sealed, min, plain) in [
        (
            "20000000800102030405060708090a0b29c5f2b6d44cf237128fb2917fd04d2d1f",
            Version::V20,
            &b"\0"[..],
        ),
        (
            "100000000000000000010203040506077eda3bd68d5fb40f5579e61ff2c94c5b20",
            Version::V10,
            b"\0",
        ),
        (
            "20000400a0a1a2a3a4a5a6a7a8a9aaab8e7d10412ad94f2338ca72202c3389fc11add6676e",
            Version::V20,
            b"hello",
        ),
        (
            "20010400a0a1a2a3a4a5a6a7a8a9aaab64ce1433228c829591d18710481e1699da30bb5c1e",
            Version::V20,
            b"hello",
        ),
        (
            "1000040000000000a0a1a2a3a4a5a6a7b9b14653049bb50ff3b26580b0f6d1d20c704ed74e",
            Version::V10,
            b"hello",
        ),
    ] {
        assert_eq!(opened(key, sealed, min), plain, "{sealed}");
    }
}

#[test]
fn sealing_gives_the_published_bytes() {
    let key = Secret::new(run_from(0));
    assert_eq!(
        hex::encode(seal_blob(&key, NONCE, b"hello")),
        "20000400a0a1a2a3a4a5a6a7a8a9aaab8e7d10412ad94f2338ca72202c3389fc11add6676e"
    );
    let plain: Vec<u8> = (0..65_537u32).map(|i| (i % 251) as u8).collect();
    let sealed = seal_blob(&key, NONCE, &plain);
    assert_eq!(sealed.len(), 65_601);
    assert_eq!(
        sha256(&sealed),
        "b5251eaa9179edb88a49b1f04913f233061e417a464a6cbb06be9d94bebab808"
    );
    assert_eq!(
        hex::encode(&sealed[..16]),
        "2000ffff20a1a2a3a4a5a6a7a8a9aaab"
    );
    assert_eq!(
        hex::encode(&sealed[65_552..65_568]),
        "b3e4a1d1226e32baf7221c9641a9c011"
    );
    assert_eq!(
        hex::encode(&sealed[65_568..]),
        "20000000a0a1a2a3a4a5a6a7a8a9aaab88caa0b76b68810a5ba3a70503d4f516ab"
    );
}

/// One object in all three modes.
struct Example {
    external: Secret,
    object_key: Secret,
    path: String,
    iv: [u8; 32],
}

fn example() -> Example {
    let external = Secret::new(run_from(0x40));
    Example {
        object_key: object_key(&external, &run_from(0x60)),
        external,
        path: minio_path("my-bucket", "dir/my-object.txt"),
        iv: run_from(0x80),
    }
}

#[test]
fn object_and_derived_keys() {
    let Example { object_key, .. } = example();
    for (key, expected) in [
        (
            &object_key,
            "952f8788cc3156755dfe0139b41331aaaaf3c5cfc7ba17fdd2a1616b316ce2fa",
        ),
        (
            &part_key(&object_key, 1),
            "5c16439b50cc08ac2702fa9752d53e92ba9617e3eb66c90b5ba7b182148649c0",
        ),
        (
            &part_key(&object_key, 2),
            "d44cd20742000be13d2599061a2aeff15ff5a377e5a7c6ed4f32c73e5f8e70ed",
        ),
        (
            &etag_key(&object_key),
            "021572c0084576a14e733980f1b628ddc5457bef0f427b9ee3aaee35e527e808",
        ),
        (
            &checksum_key(&object_key),
            "f4050fe794adfc1db6c1b583a9ca0683503c31ebec427d871cbbfeb84b48db4d",
        ),
    ] {
        assert_eq!(hex::encode(key.expose()), expected);
    }
}

#[test]
fn data_parts_and_etag_of_the_example() {
    let Example { object_key, .. } = example();
    let sealed = |key: &Secret, plain: &[u8]| hex::encode(seal_blob(key, NONCE, plain));
    assert_eq!(
        sealed(&object_key, b"hello"),
        "20000400a0a1a2a3a4a5a6a7a8a9aaab0b056c5d3de59d118dff2a09bf03fba4b55b8517db"
    );
    assert_eq!(
        sealed(&part_key(&object_key, 1), b"hello"),
        "20000400a0a1a2a3a4a5a6a7a8a9aaab9c5b26c2fdc5b7ee26d2e05598b0479408ca27e90e"
    );
    assert_eq!(
        sealed(&part_key(&object_key, 2), b"hello"),
        "20000400a0a1a2a3a4a5a6a7a8a9aaabf9b2ed66099fba42baacba73f8a355f6896c2d23f4"
    );
    let md5: [u8; 16] = unhex("5d41402abc4b2a76b9719d911017c592");
    assert_eq!(
        sealed(&etag_key(&object_key), &md5),
        "20000f00a0a1a2a3a4a5a6a7a8a9aaab78e1f37e4ccdb68a027feac760d7e3c24c7195758a786e37c16ee56233b3b473"
    );
}

#[test]
fn sealed_object_keys_of_all_domains() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let Example {
        external,
        object_key,
        path,
        iv,
    } = example();
    for (domain, expected) in [
        (
            Domain::SseC,
            "IAAfAKChoqOkpaanqKmqq/4fY9AHKTg66iNXsOb0GTZxRGt+nIPH9H7GDJNW5Fnu3g4Pp3I5xAO1smbVkbVvSg==",
        ),
        (
            Domain::SseS3,
            "IAAfAKChoqOkpaanqKmqq4mpO/SEOBv5433bgPIpw5pqbMpbwsuNKkNwrs8s22KPSAHX/ceJ7MgV/VNgj2t42A==",
        ),
        (
            Domain::SseKms,
            "IAAfAKChoqOkpaanqKmqq30nDlBfyV0hzgFP15vPCE0XJUln+2xiABFnpKEJbA4DSMHiP/VQaoaaE0iZEH8pmQ==",
        ),
    ] {
        let sealed = seal_key(&object_key, &external, domain, path.as_bytes(), iv, NONCE);
        assert_eq!(BASE64_STANDARD.encode(sealed.sealed), expected);
        let opened = unseal_key(&sealed, &external, domain, path.as_bytes());
        assert!(opened.is_ok_and(|opened| opened == object_key));
    }
}

#[test]
fn a_legacy_sealed_key_opens() {
    let Example {
        external,
        object_key,
        iv,
        ..
    } = example();
    let kek = Secret::new(unhex(
        "0984dad7e24ef9a355be60edee5157ac153cc8f12d19bab20f26f47ef3885dfc",
    ));
    let sealed: [u8; 64] = seal_blob(&kek, NONCE, object_key.expose())
        .try_into()
        .expect("64 bytes");
    let opened = unseal_legacy_key(&SealedKey { iv, sealed }, &external);
    assert!(opened.is_ok_and(|opened| opened == object_key));
}

#[test]
fn keys_and_etag_under_a_zero_object_key() {
    let zero = Secret::new([0; 32]);
    for (part, expected) in [
        (
            0,
            "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af",
        ),
        (
            1,
            "a3e7181c6eed030fd52f79537c56c4d07da92e56d374ff1dd2043350785b37d8",
        ),
        (
            10_000,
            "f86e65c396ed52d204ee44bd1a0bbd86eb8b01b7354e67a3b3ae0e34dd5bd115",
        ),
    ] {
        assert_eq!(hex::encode(part_key(&zero, part).expose()), expected);
    }
    let sealed: [u8; 48] = unhex(
        "20000f00f27834c9a2654927546df57f9e998187496394d4ee80f3d9978f85f3c7d81f72600cdbe03d80dc5a13d69354",
    );
    let etag = open_blob(&etag_key(&zero), &sealed, Version::V10).expect("opens");
    assert_eq!(hex::encode(&*etag), "8ad3fe6b84bf38489e95c701c84355b6");
}
