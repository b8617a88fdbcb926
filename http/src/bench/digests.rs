//! Races of the hashes on the data path.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ::md5::{Digest as _, Md5 as Peer};
use strongroom_engine::simd::md5::{Job, Md5, update_all};

use super::race::{Contestant, Outcome, Rules, race};
use crate::checksum::{Algorithm, Hasher};

/// Of one stream.
const BYTES: usize = 64 << 10;
const RULES: Rules = Rules {
    rounds: 25,
    turn: Duration::from_millis(3),
    time: Duration::from_secs(2),
};

pub const MD5_PEER: &str = "md-5";
pub const MD5_STREAMS: [(usize, &str); 4] = [
    (1, "1 stream"),
    (2, "2 streams"),
    (8, "8 streams"),
    (16, "16 streams"),
];

/// MD5 of several streams at once beside one stream of the `md-5` crate.
pub fn md5() -> Outcome {
    let data: Vec<Vec<u8>> = (0..16).map(|n| vec![n; BYTES]).collect();
    let data = &data;
    let peer = move || {
        let begun = Instant::now();
        black_box(Peer::digest(&data[0]));
        begun.elapsed()
    };
    let mut contestants = vec![Contestant {
        name: MD5_PEER,
        bytes: BYTES,
        lap: Box::new(peer),
    }];
    for (streams, name) in MD5_STREAMS {
        let lap = move || {
            let mut digests = vec![Md5::default(); streams];
            let begun = Instant::now();
            let mut jobs: Vec<_> = digests
                .iter_mut()
                .zip(data)
                .map(|(md5, data)| Job {
                    md5,
                    pieces: std::iter::once(&data[..]),
                })
                .collect();
            update_all(&mut jobs);
            let took = begun.elapsed();
            digests.into_iter().for_each(|md5| {
                black_box(md5.finish());
            });
            took
        };
        contestants.push(Contestant {
            name,
            bytes: BYTES * streams,
            lap: Box::new(lap),
        });
    }
    race(RULES, contestants)
}

/// The checksums that clients may ask for.
pub fn checksums() -> Outcome {
    let data = vec![1; BYTES];
    let contestants = Algorithm::ALL.map(|algorithm| {
        let data = &data;
        let lap = move || {
            let begun = Instant::now();
            let mut hasher = Hasher::new(algorithm);
            hasher.update(data);
            black_box(hasher.finish());
            begun.elapsed()
        };
        Contestant {
            name: algorithm.name(),
            bytes: BYTES,
            lap: Box::new(lap),
        }
    });
    race(RULES, contestants.into())
}
