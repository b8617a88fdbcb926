//! Properties of streams: whatever the splits, sealing gives the same bytes; whatever was done to them, opening refuses.

use proptest::prelude::*;

use super::*;
use crate::{dare::header::Header, secret::Secret};

const KEY: [u8; 32] = [0x11; 32];
const NONCE: [u8; 12] = [0xc5; 12];

fn key() -> Secret {
    Secret::new(KEY)
}

fn plain(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0])
        .collect()
}

/// A stream of `len` bytes as packages.
fn stream(len: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let plain = plain(len);
    let sealed = seal_blob(&key(), NONCE, &plain);
    (plain, sealed.chunks(PACKAGE).map(<[u8]>::to_vec).collect())
}

fn opened(opener: &Opener, packages: &[Vec<u8>]) -> Result<Vec<u8>, OpenError> {
    let mut out = Vec::new();
    let mut dst = vec![0; PAYLOAD];
    for (seq, package) in packages.iter().enumerate() {
        let len = opener.open_package(seq as u64, package, &mut dst)?;
        out.extend_from_slice(&dst[..len]);
    }
    Ok(out)
}

fn ours(len: usize) -> Opener {
    Opener::new(&key(), NONCE, len as u64)
}

fn blob(packages: &[Vec<u8>]) -> Result<Vec<u8>, OpenError> {
    open_blob(&key(), &packages.concat(), Version::V10).map(|plain| plain.to_vec())
}

const LENGTHS: [usize; 9] = [0, 1, 16, 1000, 65_535, 65_536, 65_537, 131_072, 200_000];

#[test]
fn streams_of_every_shape_come_back() {
    for len in LENGTHS {
        let (plain, packages) = stream(len);
        let sealed_len: usize = packages.iter().map(Vec::len).sum();
        assert_eq!(layout::sealed_len(len as u64), Some(sealed_len as u64));
        assert_eq!(opened(&ours(len), &packages).as_ref(), Ok(&plain));
        assert_eq!(blob(&packages).as_ref(), Ok(&plain));
        for (seq, package) in packages.iter().enumerate() {
            let mut package = package.clone();
            let body = ours(len)
                .open_in_place(seq as u64, &mut package)
                .expect("opens");
            let at = seq * PAYLOAD;
            assert_eq!(body, &plain[at..at + body.len()]);
        }
        for first in &packages {
            let header = Header::read(first).expect("a header");
            let foreign = Opener::foreign(&key(), len as u64, header).expect("known");
            assert_eq!(opened(&foreign, &packages).as_ref(), Ok(&plain));
        }
    }
}

#[test]
fn an_empty_stream_is_complete_at_once() {
    let mut sealer = Sealer::new(&key(), NONCE, 0);
    assert!(sealer.is_complete());
    assert_eq!(sealer.sealed_len(), 0);
    let progress = sealer.update(b"more", &mut [0; 100]);
    assert_eq!((progress.read, progress.written), (0, 0));
}

#[test]
fn the_top_bit_of_the_nonce_means_nothing() {
    let mut other = NONCE;
    other[0] ^= 0x80;
    let a = seal_blob(&key(), NONCE, b"data");
    assert_eq!(a, seal_blob(&key(), other, b"data"));
    let opener = Opener::new(&key(), other, 4);
    assert_eq!(opener.open_package(0, &a, &mut [0; 4]), Ok(4));
}

#[test]
fn no_byte_past_the_stated_length_is_taken() {
    let mut sealer = Sealer::new(&key(), NONCE, 10);
    let mut dst = [0; 100];
    let progress = sealer.update(&[1; 25], &mut dst);
    assert_eq!((progress.read, progress.written), (10, 42));
    assert!(sealer.is_complete());
    assert_eq!(dst[..42], seal_blob(&key(), NONCE, &[1; 10]));
    assert_eq!(dst[42..], [0; 58]);
}

#[test]
fn a_stream_that_ends_earlier_is_as_if_it_had_been_known() {
    for (taken, len) in [
        (0, 0),
        (0, 5),
        (1, PAYLOAD + 2),
        (PAYLOAD, PAYLOAD + 1),
        (PAYLOAD + 9, 3 * PAYLOAD),
        (2 * PAYLOAD - 1, 3 * PAYLOAD),
    ] {
        let mut sealer = Sealer::new(&key(), NONCE, 4 * PAYLOAD as u64);
        let plain = plain(len);
        let expected = seal_blob(&key(), NONCE, &plain);
        let mut dst = vec![0; expected.len()];
        let written = sealer.update(&plain[..taken], &mut dst).written;
        sealer.shorten((4 * PAYLOAD - len) as u64);
        assert_eq!(sealer.sealed_len(), expected.len() as u64);
        sealer.update(&plain[taken..], &mut dst[written..]);
        assert!(sealer.is_complete() && dst == expected, "{taken} of {len}");
    }
}

#[test]
#[should_panic]
fn a_stream_does_not_end_within_the_package_under_way() {
    let mut sealer = Sealer::new(&key(), NONCE, 4 * PAYLOAD as u64);
    sealer.update(&[1; 5], &mut [0; 100]);
    sealer.shorten(3 * PAYLOAD as u64 + 6);
}

#[test]
fn a_stream_waits_for_its_last_byte_and_its_last_tag() {
    let mut sealer = Sealer::new(&key(), NONCE, 10);
    let mut dst = [0; 42];
    assert_eq!(sealer.update(&[1; 9], &mut dst).written, 25);
    assert!(!sealer.is_complete());
    assert_eq!(sealer.update(&[1; 1], &mut dst[25..30]).written, 5);
    assert!(!sealer.is_complete());
    assert_eq!(sealer.plain_left(), 0);
    assert_eq!(sealer.update(&[], &mut dst[30..]).written, 12);
    assert!(sealer.is_complete());
    assert_eq!(dst[..], seal_blob(&key(), NONCE, &[1; 10]));
}

#[test]
fn a_failed_package_leaves_nothing_in_the_destination() {
    let (_, mut packages) = stream(1000);
    packages[0][500] ^= 1;
    let mut dst = vec![0xaa; 1500];
    let result = ours(1000).open_package(0, &packages[0], &mut dst);
    assert_eq!(result, Err(OpenError::Tag));
    assert!(dst.iter().all(|&b| b == 0));
    dst.fill(0xaa);
    let result = ours(1000).open_package(1, &packages[0], &mut dst);
    assert_eq!(result, Err(OpenError::AfterFinal));
    assert!(dst.iter().all(|&b| b == 0));
    let mut package = packages[0].clone();
    assert!(ours(1000).open_in_place(0, &mut package).is_err());
    assert!(package.iter().all(|&b| b == 0));
}

#[test]
fn every_flipped_bit_is_found() {
    let (_, packages) = stream(70_000);
    let mut dst = vec![0; PAYLOAD];
    for (seq, package) in packages.iter().enumerate() {
        let bits = package.len() * 8;
        let sample = (0..HEADER * 8 + 64)
            .chain((0..bits).step_by(4093))
            .chain(bits - TAG * 8 - 64..bits);
        for bit in sample {
            let mut bad = package.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let result = ours(70_000).open_package(seq as u64, &bad, &mut dst);
            assert!(result.is_err(), "bit {bit} of package {seq}");
            let mut all = packages.clone();
            all[seq] = bad;
            assert!(blob(&all).is_err(), "bit {bit} of package {seq}");
        }
    }
}

#[test]
fn moved_packages_are_found() {
    let len = 3 * PAYLOAD + 5;
    let (_, packages) = stream(len);
    let refused = |packages: &[Vec<u8>], blob_error, opener_error| {
        assert_eq!(blob(packages).err(), Some(blob_error));
        assert_eq!(opened(&ours(len), packages).err(), Some(opener_error));
    };
    let pick = |order: &[usize]| {
        order
            .iter()
            .map(|&i| packages[i].clone())
            .collect::<Vec<_>>()
    };
    refused(&pick(&[1, 0, 2, 3]), OpenError::Tag, OpenError::Tag);
    refused(&pick(&[0, 0, 2, 3]), OpenError::Tag, OpenError::Tag);
    refused(&pick(&[0, 2, 3]), OpenError::Tag, OpenError::Tag);
    refused(
        &pick(&[0, 1, 2, 3, 3]),
        OpenError::Size,
        OpenError::AfterFinal,
    );
    refused(&pick(&[0, 1, 3, 2]), OpenError::Size, OpenError::Size);
    // Cut between packages: the blob misses its end; whoever reads by number misses the package.
    assert_eq!(blob(&pick(&[0, 1, 2])), Err(OpenError::Truncated));
    // A final package of full length can be followed by something of the right shape.
    let (_, whole) = stream(2 * PAYLOAD);
    let mut more = whole.clone();
    more.push(whole[1].clone());
    assert_eq!(blob(&more), Err(OpenError::AfterFinal));
    // The same packages under another length: the last is not the last, or is not where it must be.
    let result = opened(&ours(3 * PAYLOAD), &whole);
    assert_eq!(result, Err(OpenError::AfterFinal));
    let result = opened(&ours(2 * PAYLOAD), &packages[..2]);
    assert_eq!(result, Err(OpenError::Truncated));
}

#[test]
fn packages_of_another_stream_are_found() {
    let (_, packages) = stream(2 * PAYLOAD);
    let mut other = NONCE;
    other[11] ^= 1;
    let theirs = seal_blob(&key(), other, &plain(2 * PAYLOAD));
    let mixed = vec![packages[0].clone(), theirs[PACKAGE..].to_vec()];
    assert_eq!(blob(&mixed), Err(OpenError::Nonce));
    assert_eq!(opened(&ours(2 * PAYLOAD), &mixed), Err(OpenError::Nonce));
    let header = Header::read(&mixed[0]).expect("a header");
    let foreign = Opener::foreign(&key(), 2 * PAYLOAD as u64, header).expect("known");
    assert_eq!(opened(&foreign, &mixed), Err(OpenError::Nonce));
}

/// Each step breaks one rule more, from the last checked to the first: the first broken one must be the one reported.
#[test]
fn rules_are_checked_in_order() {
    let (_, packages) = stream(PAYLOAD + 100);
    let opener = ours(PAYLOAD + 100);
    let mut dst = vec![0; PAYLOAD];
    let mut last = packages[1].clone();
    let check = |package: &[u8], dst: &mut [u8], error, blob_error| {
        assert_eq!(opener.open_package(1, package, dst), Err(error));
        let all = [packages[0].clone(), package.to_vec()];
        assert_eq!(blob(&all), Err(blob_error));
    };
    last[40] ^= 1;
    check(&last, &mut dst, OpenError::Tag, OpenError::Tag);
    last[9] ^= 1;
    check(&last, &mut dst, OpenError::Nonce, OpenError::Nonce);
    last[4] ^= 0x80;
    check(&last, &mut dst, OpenError::Truncated, OpenError::Size);
    last[2] ^= 1;
    check(&last, &mut dst, OpenError::Size, OpenError::Size);
    last[1] = 1;
    check(&last, &mut dst, OpenError::Cipher, OpenError::Cipher);
    last[1] = 2;
    check(&last, &mut dst, OpenError::Cipher, OpenError::Cipher);
    last[0] = 0x10;
    check(&last, &mut dst, OpenError::Version, OpenError::Version);
    last[0] = 0x21;
    check(&last, &mut dst, OpenError::Version, OpenError::Version);
    last.truncate(OVERHEAD);
    check(&last, &mut dst, OpenError::Size, OpenError::Size);
    let result = opener.open_package(2, &last, &mut dst);
    assert_eq!(result, Err(OpenError::AfterFinal));
    for len in 0..=OVERHEAD {
        check(
            &packages[1][..len],
            &mut dst,
            OpenError::Size,
            if len == 0 {
                OpenError::Truncated
            } else {
                OpenError::Size
            },
        );
    }
}

#[test]
fn short_and_empty_blobs_follow_the_rules_of_their_version() {
    let open = |bytes: &[u8], min| open_blob(&key(), bytes, min).map(|plain| plain.to_vec());
    assert_eq!(open(&[], Version::V10), Ok(vec![]));
    assert_eq!(open(&[], Version::V20), Err(OpenError::Truncated));
    for len in 1..16 {
        assert_eq!(
            open(&vec![0x20; len], Version::V10),
            Err(OpenError::Truncated)
        );
        assert_eq!(open(&vec![0x20; len], Version::V20), Err(OpenError::Size));
    }
    assert_eq!(open(&[0x10; 40], Version::V20), Err(OpenError::Version));
    assert_eq!(open(&[0x30; 40], Version::V10), Err(OpenError::Version));
    // A tail too short for a header behind a full final package.
    let mut tail = seal_blob(&key(), NONCE, &plain(PAYLOAD));
    tail.extend_from_slice(&[0x20; 7]);
    assert_eq!(open(&tail, Version::V10), Err(OpenError::AfterFinal));
    let mut tail = seal_blob(&key(), NONCE, &plain(PAYLOAD + 1));
    tail.truncate(PACKAGE + 7);
    assert_eq!(open(&tail, Version::V10), Err(OpenError::Size));
}

/// A 1.0 stream, which nothing here writes.
fn legacy(plain: &[u8], payload: usize, cipher: u8) -> Vec<u8> {
    use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};
    use chacha20poly1305::ChaCha20Poly1305;
    let mut out = Vec::new();
    for (seq, chunk) in plain.chunks(payload).enumerate() {
        let mut header = [0; HEADER];
        header[0] = 0x10;
        header[1] = cipher;
        header[2..4].copy_from_slice(&((chunk.len() - 1) as u16).to_le_bytes());
        header[4..8].copy_from_slice(&(seq as u32).to_le_bytes());
        header[8..].fill(0x77);
        let nonce: [u8; 12] = header[4..].try_into().expect("12 bytes");
        let mut body = chunk.to_vec();
        let tag = if cipher == 0 {
            let aead = Aes256Gcm::new(&KEY.into());
            aead.encrypt_inout_detached(&nonce.into(), &header[..4], body.as_mut_slice().into())
        } else {
            let aead = ChaCha20Poly1305::new(&KEY.into());
            aead.encrypt_inout_detached(&nonce.into(), &header[..4], body.as_mut_slice().into())
        };
        out.extend_from_slice(&header);
        out.extend_from_slice(&body);
        out.extend_from_slice(&tag.expect("short enough"));
    }
    out
}

#[test]
fn legacy_streams_open_in_both_ciphers() {
    for cipher in [0, 1] {
        for len in LENGTHS {
            let plain = plain(len);
            let sealed = legacy(&plain, PAYLOAD, cipher);
            let whole = open_blob(&key(), &sealed, Version::V10).expect("opens");
            assert_eq!(*whole, plain);
            let packages: Vec<_> = sealed.chunks(PACKAGE).map(<[u8]>::to_vec).collect();
            for first in &packages {
                let header = Header::read(first).expect("a header");
                let foreign = Opener::foreign(&key(), len as u64, header).expect("known");
                assert_eq!(opened(&foreign, &packages).as_ref(), Ok(&plain));
            }
        }
        // Packages of any size are right in a blob.
        let sealed = legacy(&plain(1000), 300, cipher);
        let whole = open_blob(&key(), &sealed, Version::V10).expect("opens");
        assert_eq!(*whole, plain(1000));
    }
}

#[test]
fn legacy_streams_are_refused_in_order_too() {
    let sealed = legacy(&plain(1000), 300, 0);
    let unit = 300 + OVERHEAD;
    let open = |bytes: &[u8]| open_blob(&key(), bytes, Version::V10).err();
    let mut swapped = sealed.clone();
    swapped[..unit].swap_with_slice(&mut sealed[unit..2 * unit].to_vec());
    assert_eq!(open(&swapped), Some(OpenError::Sequence));
    assert_eq!(open(&sealed[unit..]), Some(OpenError::Sequence));
    assert_eq!(open(&sealed[..unit + 7]), Some(OpenError::Size));
    assert_eq!(open(&sealed[..unit + 40]), Some(OpenError::Size));
    let mut bad = sealed.clone();
    bad[unit + 20] ^= 1;
    assert_eq!(open(&bad), Some(OpenError::Tag));
    bad[unit + 4] ^= 1;
    assert_eq!(open(&bad), Some(OpenError::Sequence));
    bad[unit + 3] = 0xff;
    assert_eq!(open(&bad), Some(OpenError::Size));
    bad[unit + 1] = 9;
    assert_eq!(open(&bad), Some(OpenError::Cipher));
    bad[unit] = 0x20;
    assert_eq!(open(&bad), Some(OpenError::Version));
    // What 1.0 cannot see, the recorded length does.
    let full = legacy(&plain(PAYLOAD + 9), PAYLOAD, 0);
    let header = Header::read(&full).expect("a header");
    let foreign = Opener::foreign(&key(), PAYLOAD as u64, header).expect("known");
    let mut dst = vec![0; PAYLOAD];
    assert_eq!(
        foreign.open_package(0, &full[..PACKAGE], &mut dst),
        Ok(PAYLOAD)
    );
    let extra = foreign.open_package(1, &full[PACKAGE..], &mut dst);
    assert_eq!(extra, Err(OpenError::AfterFinal));
    // Neither version passes for the other.
    let current = seal_blob(&key(), NONCE, &plain(PAYLOAD));
    let result = foreign.open_package(0, &current, &mut dst);
    assert_eq!(result, Err(OpenError::Version));
    let result = ours(PAYLOAD).open_package(0, &full[..PACKAGE], &mut dst);
    assert_eq!(result, Err(OpenError::Version));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any split of source and destination gives the bytes of one shot, and comes to its end.
    #[test]
    fn splits_do_not_show(
        len in prop_oneof![0usize..400, 65_400usize..65_700, 0usize..300_000],
        frames in prop::collection::vec(prop_oneof![0usize..40, 0usize..70_000], 1..12),
        rooms in prop::collection::vec(prop_oneof![0usize..40, 0usize..140_000], 1..12),
    ) {
        prop_assume!(frames.iter().any(|&n| n > 0) && rooms.iter().any(|&n| n > 0));
        let plain = plain(len);
        let whole = seal_blob(&key(), NONCE, &plain);
        let mut sealer = Sealer::new(&key(), NONCE, len as u64);
        prop_assert_eq!(sealer.sealed_len(), whole.len() as u64);
        let mut out = Vec::new();
        let mut taken = 0;
        let mut rooms = rooms.iter().cycle();
        for frame in frames.iter().cycle() {
            let mut src = &plain[taken..len.min(taken + frame)];
            loop {
                let mut dst = vec![0xee; *rooms.next().expect("cycles")];
                let progress = sealer.update(src, &mut dst);
                prop_assert!(progress.read == src.len() || progress.written == dst.len() || sealer.is_complete());
                prop_assert!(dst[progress.written..].iter().all(|&b| b == 0xee));
                out.extend_from_slice(&dst[..progress.written]);
                taken += progress.read;
                src = &src[progress.read..];
                if src.is_empty() && progress.written < dst.len() {
                    break;
                }
            }
            if sealer.is_complete() {
                break;
            }
        }
        prop_assert_eq!(taken, len);
        prop_assert_eq!(out, whole);
    }

    /// Any one change of stored bytes is an error.
    #[test]
    fn changes_are_refused(
        len in prop_oneof![1usize..300, 65_500usize..65_600, 131_000usize..131_200],
        kind in 0..5,
        at in any::<prop::sample::Index>(),
        value in 1..=255u8,
    ) {
        let (_, packages) = stream(len);
        let sealed = packages.concat();
        let i = at.index(sealed.len());
        let mut bad = sealed.clone();
        match kind {
            0 => bad[i] ^= value,
            1 => bad.truncate(i),
            2 => bad.insert(i, value),
            3 => { bad.remove(i); }
            _ => bad.push(value),
        }
        prop_assume!(!bad.is_empty() && bad != sealed);
        prop_assert!(open_blob(&key(), &bad, Version::V20).is_err());
        let packages: Vec<_> = bad.chunks(PACKAGE).map(<[u8]>::to_vec).collect();
        let all = opened(&ours(len), &packages);
        let short = packages.len() < layout::packages(len as u64) as usize;
        prop_assert!(all.is_err() || short);
    }
}
