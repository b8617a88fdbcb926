//! The AES-256-GCM kernels: every path of this CPU against NIST's vectors (CAVP, 96-bit nonces and whole tags), Wycheproof's, and the
//! portable path at every length and alignment. `STRONGROOM_CPU_DENY` narrows the paths; the portable one is always among them.

use strongroom_engine::secret::Secret;
use strongroom_engine::simd::cpu::{Path, paths};
use strongroom_engine::simd::gcm::Key;

/// Runs on every path and says where it failed. The interpreter, which is slow, takes the fastest alone.
fn on_every_path(test: impl Fn(Path)) {
    let all = paths();
    for path in if cfg!(miri) { &all[..1] } else { all } {
        eprintln!("path {}", path.name());
        test(*path);
    }
}

struct Vector {
    name: String,
    key: [u8; 32],
    nonce: [u8; 12],
    aad: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    tag: [u8; 16],
    valid: bool,
}

impl Vector {
    /// Seals and opens it, out of place and in place.
    fn check(&self, path: Path) {
        let name = &self.name;
        let key = Key::on(path, &Secret::new(self.key));
        let mut opened = vec![0xee; self.sealed.len()];
        let verdict = key.open(&self.nonce, &self.aad, &self.sealed, &self.tag, &mut opened);
        let mut in_place = self.sealed.clone();
        let same = key.open_in_place(&self.nonce, &self.aad, &mut in_place, &self.tag);
        assert_eq!(verdict, same, "{name}");
        assert_eq!(verdict.is_ok(), self.valid, "{name}");
        assert_eq!(opened, in_place, "{name}");
        if !self.valid {
            assert!(opened.iter().all(|b| *b == 0), "{name}: not wiped");
            return;
        }
        assert_eq!(opened, self.plain, "{name}");
        let mut sealed = vec![0xee; self.plain.len()];
        let tag = key.seal(&self.nonce, &self.aad, &self.plain, &mut sealed);
        assert_eq!((&sealed, tag), (&self.sealed, self.tag), "{name}");
        let mut in_place = self.plain.clone();
        let tag = key.seal_in_place(&self.nonce, &self.aad, &mut in_place);
        assert_eq!((in_place, tag), (sealed, self.tag), "{name}");
    }
}

fn cavp(text: &str) -> Vec<Vector> {
    let fixed = |bytes: Vec<u8>| -> [u8; 16] { bytes.try_into().expect("16 bytes") };
    let mut all = Vec::new();
    for entry in text.split("Count = ").skip(1) {
        let field = |name: &str| {
            let line = entry
                .lines()
                .find_map(|line| line.split_once(" =").filter(|(n, _)| *n == name));
            line.map(|(_, value)| hex::decode(value.trim()).expect("hex"))
        };
        let need = |name: &str| field(name).unwrap_or_else(|| panic!("{name} in {entry}"));
        let sealed = need("CT");
        let valid = !entry.lines().any(|line| line.trim() == "FAIL");
        all.push(Vector {
            name: format!("CAVP {}", hex::encode(need("Key"))),
            key: need("Key").try_into().expect("32 bytes"),
            nonce: need("IV").try_into().expect("12 bytes"),
            aad: need("AAD"),
            plain: if valid { need("PT") } else { Vec::new() },
            sealed,
            tag: fixed(need("Tag")),
            valid,
        });
    }
    all
}

#[test]
fn nist_vectors() {
    let sealing = cavp(include_str!(
        "../../tests/golden/cavp/gcmEncryptExtIV256.rsp"
    ));
    let opening = cavp(include_str!("../../tests/golden/cavp/gcmDecrypt256.rsp"));
    assert_eq!((sealing.len(), opening.len()), (375, 375));
    assert!(opening.iter().any(|v| !v.valid) && opening.iter().any(|v| v.valid));
    on_every_path(|path| sealing.iter().chain(&opening).for_each(|v| v.check(path)));
}

#[test]
fn wycheproof_vectors() {
    use wycheproof::aead::{TestName, TestSet};
    let set = TestSet::load(TestName::AesGcm).expect("the vectors load");
    let mut vectors = Vec::new();
    for group in &set.test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in &group.tests {
            vectors.push(Vector {
                name: format!("Wycheproof {} {}", test.tc_id, test.comment),
                key: test.key.to_vec().try_into().expect("32 bytes"),
                nonce: test.nonce.to_vec().try_into().expect("12 bytes"),
                aad: test.aad.to_vec(),
                plain: test.pt.to_vec(),
                sealed: test.ct.to_vec(),
                tag: test.tag.to_vec().try_into().expect("16 bytes"),
                valid: !test.result.must_fail(),
            });
        }
    }
    assert!(vectors.len() > 50, "{} vectors", vectors.len());
    on_every_path(|path| vectors.iter().for_each(|v| v.check(path)));
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i ^ seed).wrapping_mul(0x9e37_79b1).to_be_bytes()[0])
        .collect()
}

const NONCE: [u8; 12] = [0xfe; 12];

/// One length, with source and destination at given distances from a boundary of 64 bytes.
fn agree(key: &Key, portable: &Key, len: usize, from: usize, to: usize) {
    let aad = bytes(len % 23, 1);
    let plain = bytes(len, 2);
    let mut expected = vec![0; len];
    let tag = portable.seal(&NONCE, &aad, &plain, &mut expected);

    let mut source = Aligned::new(len + from);
    let mut target = Aligned::new(len + to + 64);
    source.bytes()[from..from + len].copy_from_slice(&plain);
    target.bytes().fill(0xa5);
    let place = &format!("{len} bytes from {from} to {to}");
    let sealed_tag = key.seal(
        &NONCE,
        &aad,
        &source.bytes()[from..from + len],
        &mut target.bytes()[to..to + len],
    );
    assert!(target.bytes()[to..to + len] == expected[..], "{place}");
    assert_eq!(sealed_tag, tag, "{place}");
    let around = |t: &mut Aligned| {
        let end = to + len;
        let all = t.bytes();
        all[..to]
            .iter()
            .chain(&all[end..end + 64])
            .all(|b| *b == 0xa5)
    };
    assert!(around(&mut target), "{place}: written beside");

    source.bytes()[from..from + len].copy_from_slice(&expected);
    let opened = key.open(
        &NONCE,
        &aad,
        &source.bytes()[from..from + len],
        &tag,
        &mut target.bytes()[to..to + len],
    );
    assert!(opened.is_ok(), "{place}");
    assert!(target.bytes()[to..to + len] == plain[..], "{place}");
    assert!(around(&mut target), "{place}: written beside");

    let in_place = &mut source.bytes()[from..from + len];
    assert!(
        key.open_in_place(&NONCE, &aad, in_place, &tag).is_ok(),
        "{place}"
    );
    assert!(in_place == plain, "{place}");
    assert_eq!(key.seal_in_place(&NONCE, &aad, in_place), tag, "{place}");
    assert!(in_place == expected, "{place}");

    let mut wrong = tag;
    wrong[len % 16] ^= 0x80 >> (len % 8);
    assert!(
        key.open_in_place(&NONCE, &aad, in_place, &wrong).is_err(),
        "{place}"
    );
    assert!(in_place.iter().all(|b| *b == 0), "{place}: not wiped");
}

/// Bytes that begin at a boundary of 64.
struct Aligned {
    all: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let all = vec![0; len + 64];
        let begin = all.as_ptr().align_offset(64);
        Aligned { all, begin, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.all[self.begin..self.begin + self.len]
    }
}

/// Whether a run takes the short version: emulators and debug builds of small machines.
fn short() -> bool {
    std::env::var_os("STRONGROOM_TEST_SHORT").is_some()
}

/// Around every border that a kernel knows: blocks, batches, groups of batches, packages. The interpreter takes a few of them.
fn lengths() -> Vec<usize> {
    match () {
        () if cfg!(miri) => (0..=1_300).step_by(59).chain([2_049, 9_000]).collect(),
        () if short() => (0..=2_200).step_by(7).chain(65_500..65_580).collect(),
        () => (0..=2_200).chain(65_500..65_580).collect(),
    }
}

#[test]
fn every_length_agrees_with_the_portable_path() {
    let secret = Secret::new([0x5a; 32]);
    let portable = Key::on(Path::Portable, &secret);
    on_every_path(|path| {
        let key = Key::on(path, &secret);
        for len in lengths() {
            agree(&key, &portable, len, len % 64, (len / 3) % 64);
        }
    });
}

#[test]
fn every_alignment_agrees_with_the_portable_path() {
    let secret = Secret::new([0xa5; 32]);
    let portable = Key::on(Path::Portable, &secret);
    let step = match () {
        () if cfg!(miri) => 31,
        () if short() => 13,
        () => 1,
    };
    on_every_path(|path| {
        let key = Key::on(path, &secret);
        for from in (0..64).step_by(step) {
            for to in (0..64).step_by(step) {
                agree(&key, &portable, 700 + (from * 64 + to) % 300, from, to);
            }
        }
    });
}

/// Counts that wrap at 32 bits do not occur: a message is far shorter. But pieces leave the count anywhere within a batch.
#[test]
fn pieces_of_any_size_equal_the_whole() {
    let secret = Secret::new([0x11; 32]);
    let portable = Key::on(Path::Portable, &secret);
    let (len, seeds) = match () {
        () if cfg!(miri) => (3_000, 2u32),
        () if short() => (20_000, 20),
        () => (20_000, 200),
    };
    let plain = bytes(len, 9);
    let mut expected = vec![0; plain.len()];
    let tag = portable.seal(&NONCE, b"aad", &plain, &mut expected);
    on_every_path(|path| {
        let key = Key::on(path, &secret);
        for seed in 0..seeds {
            let mut sealed = vec![0; plain.len()];
            let mut message = key.begin(&NONCE, b"aad");
            let (mut at, mut n) = (0, 0);
            while at < plain.len() {
                n += 1;
                let draw = (seed * 7919 + n).wrapping_mul(0x9e37_79b1) >> 16;
                let len = match draw % 4 {
                    0 => draw as usize % 17,
                    1 => draw as usize % 300,
                    2 => 16 * (draw as usize % 40),
                    _ => draw as usize % 4_000,
                };
                let end = (at + len).min(plain.len());
                message.seal(&key, &plain[at..end], &mut sealed[at..end]);
                at = end;
            }
            assert_eq!(message.finish(&key), tag, "seed {seed}");
            assert!(sealed == expected, "seed {seed}");
        }
    });
}
