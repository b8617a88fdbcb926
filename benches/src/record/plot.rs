//! What a run looks like: throughput and CPU against the size of the objects, and against the connections.

use super::Rows;
use super::setups::{COLD, OPAQUE, SEALED, SEALED_TLS, UNSEALED, UNSEALED_MD5};
use super::surroundings::{DiskRow, Sockets};
use super::svg::{AMBER, BLACK, BLUE, GREEN, ORANGE, PINK, Panel, Series, document};
use crate::load::Verb::{self, Get, Put};
use crate::machine::Access;
use crate::measured::{Measured, show_size};

/// The whole picture, for the run whose setups were compared at so many connections.
pub fn plot(
    below: &str,
    rows: &Rows,
    disks: &[DiskRow],
    sockets: &[Sockets],
    connections: usize,
) -> String {
    let by_size = |title: &str, verb, y_label, y: fn(&Measured) -> Option<f64>| Panel {
        title: format!("{title}, {connections} connections"),
        x_label: "object size",
        y_label,
        x_ticks: ticks(rows.0.iter().map(|r| r.size), show_size),
        series: lines(verb)
            .iter()
            .map(|&(setup, colour)| {
                let points = points(rows, y, |r| {
                    let here = r.setup == setup && r.verb == verb && r.connections == connections;
                    here.then_some(r.size as f64)
                });
                line(setup, colour, points)
            })
            .collect(),
    };
    let by_connections = |size: u64, y_label, y: fn(&Measured) -> Option<f64>| Panel {
        title: format!("{} objects", show_size(size)),
        x_label: "connections",
        y_label,
        x_ticks: ticks(rows.0.iter().map(|r| r.connections as u64), |n| {
            n.to_string()
        }),
        series: [
            ("PUT, plain HTTP", SEALED, Put, BLUE),
            ("PUT, TLS", SEALED_TLS, Put, GREEN),
            ("GET, plain HTTP", SEALED, Get, ORANGE),
            ("GET, TLS", SEALED_TLS, Get, PINK),
        ]
        .map(|(name, setup, verb, colour)| {
            let points = points(rows, y, |r| {
                let here = r.setup == setup && r.verb == verb && r.size == size;
                here.then_some(r.connections as f64)
            });
            line(name, colour, points)
        })
        .into(),
    };
    let rate = |m: &Measured| Some(m.megabytes_per_second());
    let mut panels = vec![
        by_size("PUT throughput", Put, "MB/s", rate),
        by_size("GET throughput", Get, "MB/s", rate),
        by_size(
            "PUT, CPU of the server",
            Put,
            "CPU s/GB",
            Measured::server_cpu_per_gigabyte,
        ),
        by_size(
            "GET, CPU of the server",
            Get,
            "CPU s/GB",
            Measured::server_cpu_per_gigabyte,
        ),
        by_connections(4 << 10, "requests/s", |m| Some(m.requests_per_second())),
        by_connections(16 << 20, "MB/s", rate),
    ];
    let limit = |name: &str, points| Series {
        dashed: true,
        ..line(name, BLACK, points)
    };
    for (panel, access, name) in [
        (0, Access::WriteSynced, "fio, write and sync"),
        (1, Access::Read, "fio, random read"),
    ] {
        let found = disks.iter().filter(|d| d.0 == access);
        let points = found.map(|d| (d.1 as f64, d.2.megabytes_per_second));
        panels[panel].series.push(limit(name, points.collect()));
    }
    let bare = sockets
        .iter()
        .map(|s| (s.size as f64, s.sender_cpu_per_gigabyte()));
    panels[3].series.push(limit("bare socket", bare.collect()));
    document("Strongroom: one server on one machine", below, &panels)
}

/// What is drawn against the size. Without the cache a PUT costs the same, so that line is for reads.
fn lines(verb: Verb) -> &'static [(&'static str, &'static str)] {
    match verb {
        Put => &[
            (SEALED, BLUE),
            (OPAQUE, AMBER),
            (SEALED_TLS, GREEN),
            (UNSEALED_MD5, PINK),
            (UNSEALED, ORANGE),
        ],
        Get => &[
            (SEALED, BLUE),
            (COLD, AMBER),
            (SEALED_TLS, GREEN),
            (UNSEALED, ORANGE),
        ],
    }
}

fn line(name: &str, colour: &'static str, points: Vec<(f64, f64)>) -> Series {
    Series {
        name: name.to_owned(),
        colour,
        dashed: false,
        points,
    }
}

fn points(
    rows: &Rows,
    y: fn(&Measured) -> Option<f64>,
    x: impl Fn(&super::Row) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let point = |row| Some((x(row)?, y(&row.measured)?));
    rows.0.iter().filter_map(point).collect()
}

fn ticks(values: impl Iterator<Item = u64>, show: fn(u64) -> String) -> Vec<(f64, String)> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.dedup();
    values.into_iter().map(|v| (v as f64, show(v))).collect()
}
