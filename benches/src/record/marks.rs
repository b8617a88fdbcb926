//! The figures that the store is held to, computed from one run.
//!
//! A line stands only where all it needs was measured in that run.

use std::fmt::Write as _;

use super::Rows;
use super::setups::{COLD, ONE_SHARD, OPAQUE, OPAQUE_TLS, SEALED, SEALED_TLS, UNSEALED};
use super::surroundings::{DiskRow, Kernel, Sockets};
use crate::load::Verb::{self, Get, Put};
use crate::machine::Access;
use crate::measured::{Measured, show_size};

/// Size of the objects that stand for large ones.
pub const LARGE: u64 = 16 << 20;
const SMALL: u64 = 4 << 10;
/// Connections at which small requests are counted.
const SMALL_CONNECTIONS: usize = 32;
/// Resident bytes beside the cache.
const RESIDENT_MAX: f64 = 300e6;
/// Connections at which memory is looked at.
const RESIDENT_CONNECTIONS: usize = 64;

/// What one run has to compute from.
pub struct Run<'a> {
    pub rows: &'a Rows,
    pub disks: &'a [DiskRow],
    pub sockets: &'a [Sockets],
    pub kernel: Option<Kernel>,
    /// Connections at which setups are compared.
    pub connections: usize,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

struct Mark {
    what: String,
    unit: &'static str,
    value: f64,
    bound: Bound,
}

impl Mark {
    fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(limit) => self.value <= limit,
            Bound::AtLeast(limit) => self.value >= limit,
        }
    }
}

/// A Markdown table of all of them.
pub fn table(run: &Run<'_>) -> String {
    let mut table = "| what | measured | mark | |\n| --- | ---: | ---: | --- |\n".to_owned();
    for mark in run.marks() {
        let digits = if mark.value >= 100.0 { 0 } else { 3 };
        let (sign, limit) = match mark.bound {
            Bound::AtMost(limit) => ("≤", limit),
            Bound::AtLeast(limit) => ("≥", limit),
        };
        let held = if mark.holds() { "holds" } else { "**missed**" };
        writeln!(
            table,
            "| {} | {:.digits$} {unit} | {sign} {limit:.digits$} {unit} | {held} |",
            mark.what,
            mark.value,
            unit = mark.unit,
        )
        .expect("in memory");
    }
    table
}

impl Run<'_> {
    fn marks(&self) -> Vec<Mark> {
        let mut marks = Vec::new();
        self.sealing(&mut marks);
        self.processor(&mut marks);
        self.disk(&mut marks);
        self.small(&mut marks);
        self.resident(&mut marks);
        self.cores(&mut marks);
        marks
    }

    fn at(&self, setup: &str, verb: Verb, size: u64) -> Option<&Measured> {
        self.rows.find(setup, verb, size, self.connections)
    }

    fn cpu(&self, setup: &str, verb: Verb) -> Option<f64> {
        self.at(setup, verb, LARGE)?.server_cpu_per_gigabyte()
    }

    /// What sealing adds, against what the cipher takes by itself.
    fn sealing(&self, marks: &mut Vec<Mark>) {
        let Some(kernel) = self.kernel else { return };
        for (verb, name, hot, cold) in [
            (Put, "PUT", kernel.seal, kernel.seal_cold),
            (Get, "GET", kernel.open, kernel.open_cold),
        ] {
            let (Some(sealed), Some(unsealed)) = (self.cpu(COLD, verb), self.cpu(UNSEALED, verb))
            else {
                continue;
            };
            for (speed, place) in [(hot, "in cache"), (cold, "out of cache")] {
                marks.push(Mark {
                    what: format!(
                        "what sealing adds to a {name} of 16 MiB ({sealed:.3} − {unsealed:.3}), against 1.3 ÷ the kernel's {speed:.2} GB/s {place}"
                    ),
                    unit: "CPU s/GB",
                    value: sealed - unsealed,
                    bound: Bound::AtMost(1.3 / speed),
                });
            }
        }
    }

    fn processor(&self, marks: &mut Vec<Mark>) {
        let mut most = |what: String, value: Option<f64>, limit: f64| {
            marks.extend(value.map(|value| Mark {
                what,
                unit: "CPU s/GB",
                value,
                bound: Bound::AtMost(limit),
            }));
        };
        for (setup, limit) in [
            (OPAQUE, 0.7),
            (OPAQUE_TLS, 0.8),
            (SEALED, 1.3),
            (SEALED_TLS, 1.4),
        ] {
            let what = format!("server CPU, PUT of 16 MiB: {setup}");
            most(what, self.cpu(setup, Put), limit);
        }
        let bare = self.sockets.iter().find(|s| s.size == LARGE);
        if let (Some(kernel), Some(bare)) = (self.kernel, bare) {
            let plain = bare.sender_cpu_per_gigabyte() + 1.0 / kernel.open;
            for (setup, floor) in [
                (SEALED, plain),
                (COLD, plain),
                (SEALED_TLS, plain + 1.0 / kernel.record),
            ] {
                let what = format!(
                    "server CPU, GET of 16 MiB: {setup}; against 1.5 × (bare socket + cipher) = 1.5 × {floor:.3}"
                );
                most(what, self.cpu(setup, Get), 1.5 * floor);
            }
        }
    }

    /// Large objects against the disk, and from memory.
    fn disk(&self, marks: &mut Vec<Mark>) {
        for (verb, access, setups, name) in [
            (Put, Access::WriteSynced, &[SEALED, OPAQUE][..], "PUT"),
            (Get, Access::Read, &[COLD][..], "cold GET"),
        ] {
            for &(found, size, disk) in self.disks {
                if found != access || size < LARGE {
                    continue;
                }
                for setup in setups {
                    let Some(measured) = self.at(setup, verb, size) else {
                        continue;
                    };
                    let rate = measured.megabytes_per_second();
                    let limit = disk.megabytes_per_second;
                    marks.push(Mark {
                        what: format!(
                            "{name} of {}, {rate:.0} MB/s against {limit:.0} by `fio`: {setup}",
                            show_size(size)
                        ),
                        unit: "%",
                        value: rate / limit * 100.0,
                        bound: Bound::AtLeast(90.0),
                    });
                }
            }
        }
        marks.extend(self.at(SEALED, Get, LARGE).map(|measured| Mark {
            what: format!("hot GET of 16 MiB: {SEALED}"),
            unit: "MB/s",
            value: measured.megabytes_per_second(),
            bound: Bound::AtLeast(1800.0),
        }));
    }

    fn small(&self, marks: &mut Vec<Mark>) {
        for (verb, name, cpu, rate) in [(Put, "PUT", 0.14, 8000.0), (Get, "GET", 0.07, 15_000.0)] {
            let found = self.rows.find(SEALED, verb, SMALL, SMALL_CONNECTIONS);
            let Some(measured) = found else { continue };
            marks.extend(measured.server_cpu_per_thousand().map(|value| Mark {
                what: format!("server CPU, {name} of 4 KiB over 32 connections"),
                unit: "ms",
                value,
                bound: Bound::AtMost(cpu),
            }));
            marks.push(Mark {
                what: format!("{name} of 4 KiB over 32 connections"),
                unit: "requests/s",
                value: measured.requests_per_second(),
                bound: Bound::AtLeast(rate),
            });
        }
    }

    /// The most of all sizes.
    fn resident(&self, marks: &mut Vec<Mark>) {
        for setup in [SEALED, SEALED_TLS] {
            let rows = self.rows.0.iter();
            let most = rows.filter_map(|row| {
                let measured = &row.measured;
                let there = row.setup == setup && row.connections == RESIDENT_CONNECTIONS;
                let peak = measured.server_resident_peak.filter(|_| there)?;
                Some((peak as f64 - measured.server_cache? as f64, row))
            });
            marks.extend(most.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(value, row)| Mark {
                what: format!(
                    "peak resident memory without the cache, 64 connections, any size (most: {} of {}): {setup}",
                    row.verb.name(),
                    show_size(row.size)
                ),
                unit: "MB",
                value: value / 1e6,
                bound: Bound::AtMost(RESIDENT_MAX / 1e6),
            }));
        }
    }

    fn cores(&self, marks: &mut Vec<Mark>) {
        for row in self.rows.0.iter().filter(|r| r.setup == ONE_SHARD) {
            let two = self.rows.find(OPAQUE, row.verb, row.size, row.connections);
            let two = two.and_then(Measured::server_cpu_per_thousand);
            if let (Some(two), Some(one)) = (two, row.measured.server_cpu_per_thousand()) {
                marks.push(Mark {
                    what: format!(
                        "CPU per request of all shards against that of 1 ({two:.3} and {one:.3} ms), {} of {}",
                        row.verb.name(),
                        show_size(row.size)
                    ),
                    unit: "×",
                    value: two / one,
                    bound: Bound::AtMost(1.1),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;

    fn row(setup: &'static str, verb: Verb, size: u64, connections: usize, cpu: f64) -> Row {
        let measured = Measured {
            requests: 100.0,
            bytes: 100.0 * size as f64,
            seconds: 1.0,
            server_cpu: Some(cpu),
            server_resident_peak: Some(500_000_000),
            server_cache: Some(250_000_000),
            ..Measured::default()
        };
        Row {
            setup,
            verb,
            size,
            connections,
            measured,
        }
    }

    /// 100 requests of 16 MiB are 1.68 GB.
    #[test]
    fn lines_are_computed_and_judged() {
        let gigabytes = 100.0 * LARGE as f64 / 1e9;
        let rows = Rows(vec![
            row(COLD, Put, LARGE, 16, 0.6 * gigabytes),
            row(UNSEALED, Put, LARGE, 16, 0.4 * gigabytes),
            row(OPAQUE, Put, LARGE, 16, 0.75 * gigabytes),
            row(SEALED, Get, SMALL, 32, 0.005),
            row(SEALED, Get, SMALL, 64, 0.005),
        ]);
        let kernel = Kernel {
            seal: 8.0,
            open: 8.0,
            seal_cold: 6.0,
            open_cold: 6.0,
            record: 6.0,
        };
        let run = Run {
            rows: &rows,
            disks: &[],
            sockets: &[],
            kernel: Some(kernel),
            connections: 16,
        };
        let marks = run.marks();
        let holds = |part: &str| {
            let found: Vec<&Mark> = marks.iter().filter(|m| m.what.contains(part)).collect();
            assert_eq!(found.len(), 1, "{part}");
            found[0].holds()
        };
        // 0.2 against 0.1625 and 0.2167.
        assert!(!holds("8.00 GB/s in cache"));
        assert!(holds("6.00 GB/s out of cache"));
        assert!(!holds("PUT of 16 MiB: sealed, plain HTTP, opaque ETags"));
        assert!(holds("server CPU, GET of 4 KiB"));
        assert!(holds("peak resident memory"));
        assert_eq!(table(&run).lines().count(), 2 + marks.len());
        assert_eq!(table(&run).matches("missed").count(), 3, "{}", table(&run));
    }
}
