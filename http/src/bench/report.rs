//! The table for people and the rows for programs.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use strongroom_engine::simd::{kernel_name, md5};

use super::cipher::{AesGcm, Ceiling, Cipher, Ours, Ring};
use super::course::{Course, Place, Verb};
use super::race::{Contestant, Outcome, Rules, race};
use super::{HOT_BYTES, SIZES, cold_bytes, digests};

const OURS: &str = Ours::NAME;
const WIDTH: usize = 10;

/// Measures ciphers and hashes; `others` are peers beside those that this crate links anyway. Takes less than a minute.
pub fn crypto(others: Vec<Box<dyn Cipher>>) -> String {
    let mut ciphers: Vec<Box<dyn Cipher>> = vec![
        Box::new(Ours::new()),
        Box::new(Ceiling::new()),
        Box::new(Ring::new()),
        Box::new(AesGcm::new()),
    ];
    ciphers.extend(others);

    let mut table = format!(
        "AES-256-GCM: {}. MD5 of several streams: {}.\nGB/s (decimal) of one core, medians of alternating rounds.\n",
        kernel_name(),
        md5::kernel_name(),
    );
    let mut rows = String::new();
    for (cold, bytes) in [(false, HOT_BYTES), (true, cold_bytes())] {
        let heading = match cold {
            false => "in cache".to_owned(),
            true => format!("over {} MiB", bytes >> 20),
        };
        write!(table, "\n{heading:<31}").expect("in memory");
        for size in SIZES {
            write!(table, "{:>WIDTH$}", format!("{} KiB", size >> 10)).expect("in memory");
        }
        table.push('\n');
        for (verb, place) in [
            (Verb::Seal, Place::In),
            (Verb::Open, Place::In),
            (Verb::Seal, Place::OutOf),
            (Verb::Open, Place::OutOf),
        ] {
            let results = SIZES.map(|size| of_ciphers(&ciphers, verb, place, size, bytes));
            let what = show(verb, place, ' ');
            table += &speeds(&what, results[0].names(), &results);
            for (size, result) in SIZES.into_iter().zip(&results) {
                let end = if cold { "-cold" } else { "" };
                let what = format!(
                    "{}-{}KiB-{}{end}",
                    show_verb(verb),
                    size >> 10,
                    show_place(place, '-')
                );
                for peer in result.names().filter(|name| *name != OURS) {
                    rows += &row(&what, peer, result.ratio(OURS, peer));
                }
            }
        }
    }

    let md5 = digests::md5();
    let checksums = digests::checksums();
    writeln!(table, "\n{:<31}{:>WIDTH$}", "hashes, in cache", "64 KiB").expect("in memory");
    table += &speeds("MD5", md5.names(), std::slice::from_ref(&md5));
    table += &speeds(
        "checksum",
        checksums.names(),
        std::slice::from_ref(&checksums),
    );
    rows += &row(
        "md5-8-streams",
        digests::MD5_PEER,
        md5.ratio(digests::MD5_STREAMS[2].1, digests::MD5_PEER),
    );
    format!("{table}\n{rows}")
}

fn of_ciphers(
    ciphers: &[Box<dyn Cipher>],
    verb: Verb,
    place: Place,
    size: usize,
    bytes: usize,
) -> Outcome {
    // All run over the same buffers, or the last level of cache would hold one's while another runs.
    let course = RefCell::new(Course::new(verb, place, size, bytes));
    let course = &course;
    let contestants = ciphers
        .iter()
        .map(|cipher| Contestant {
            name: match place {
                Place::In => cipher.name(),
                Place::OutOf => cipher.name_out_of_place(),
            },
            bytes: course.borrow().bytes(),
            lap: Box::new(move || course.borrow_mut().lap(&**cipher)),
        })
        .collect();
    let (rounds, seconds) = if bytes == HOT_BYTES { (15, 1) } else { (7, 2) };
    let rules = Rules {
        rounds,
        turn: Duration::from_millis(3),
        time: Duration::from_secs(seconds),
    };
    race(rules, contestants)
}

/// Lines of `what`, one for each contestant, a column for each result.
fn speeds<'a>(
    what: &str,
    names: impl Iterator<Item = &'static str>,
    results: impl IntoIterator<Item = &'a Outcome> + Copy,
) -> String {
    let mut lines = String::new();
    for (n, name) in names.enumerate() {
        let what = if n == 0 { what } else { "" };
        write!(lines, "{what:<18}{name:<13}").expect("in memory");
        for result in results {
            write!(lines, "{:>WIDTH$.2}", result.speed(name)).expect("in memory");
        }
        lines.push('\n');
    }
    lines
}

fn row(what: &str, peer: &str, ratio: f64) -> String {
    format!("ratio {what} {OURS}/{peer} {ratio:.3}\n")
}

fn show(verb: Verb, place: Place, space: char) -> String {
    format!("{} {}", show_verb(verb), show_place(place, space))
}

fn show_verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Seal => "seal",
        Verb::Open => "open",
    }
}

fn show_place(place: Place, space: char) -> String {
    let words: &[&str] = match place {
        Place::In => &["in", "place"],
        Place::OutOf => &["out", "of", "place"],
    };
    words.join(&space.to_string())
}
