//! Packages of 1 to 64 KiB sealed and opened, by us and by others: `cargo bench -p strongroom-benches --bench crypto`.
//!
//! With `--features peers` aws-lc-rs and the system's OpenSSL run beside `ring` and `aes-gcm`. After criterion's own figures come the
//! table and the ratios of `strongroom bench crypto`, measured in alternating rounds, with the same peers.

#![allow(clippy::print_stdout)]

use std::time::Duration;

use criterion::{Criterion, Throughput};
use strongroom_http::bench::cipher::{AesGcm, Cipher, Ours, Ring};
use strongroom_http::bench::{Course, HOT_BYTES, Place, SIZES, Verb, cold_bytes, crypto};

#[cfg(feature = "peers")]
mod peers;

#[cfg(feature = "peers")]
fn others() -> Vec<Box<dyn Cipher>> {
    vec![
        Box::new(peers::AwsLc::new()),
        Box::new(peers::OpenSsl::new()),
    ]
}

#[cfg(not(feature = "peers"))]
fn others() -> Vec<Box<dyn Cipher>> {
    Vec::new()
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .configure_from_args();
    let mut ciphers: Vec<Box<dyn Cipher>> = vec![
        Box::new(Ours::new()),
        Box::new(Ring::new()),
        Box::new(AesGcm::new()),
    ];
    ciphers.extend(others());
    for (bytes, end) in [(HOT_BYTES, ""), (cold_bytes(), "-cold")] {
        for (verb, place, name) in [
            (Verb::Seal, Place::In, "seal-in-place"),
            (Verb::Open, Place::In, "open-in-place"),
            (Verb::Seal, Place::OutOf, "seal-out-of-place"),
            (Verb::Open, Place::OutOf, "open-out-of-place"),
        ] {
            for size in SIZES {
                let course = Course::new(verb, place, size, bytes);
                group(&mut criterion, &format!("{name}{end}"), course, &ciphers);
            }
        }
    }
    criterion.final_summary();
    if std::env::args().any(|argument| argument == "--bench") {
        print!("\n{}", crypto(others()));
    }
}

fn group(criterion: &mut Criterion, name: &str, mut course: Course, ciphers: &[Box<dyn Cipher>]) {
    let size = course.bytes() / course.count();
    let mut group = criterion.benchmark_group(format!("{name}/{}KiB", size >> 10));
    group.throughput(Throughput::Bytes(size as u64));
    for cipher in ciphers {
        group.bench_function(cipher.name(), |bencher| {
            bencher.iter_custom(|messages| {
                let laps = messages.div_ceil(course.count() as u64);
                let took: Duration = (0..laps).map(|_| course.lap(&**cipher)).sum();
                let run = laps * course.count() as u64;
                took.mul_f64(messages as f64 / run as f64)
            });
        });
    }
    group.finish();
}
