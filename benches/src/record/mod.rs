//! The sections of a record: each measures one thing and gives rows; [`marks`] and [`plot`] make of them what a person looks for.
//!
//! Servers are the record's own, one at a time, each over a fresh directory that goes with it. Progress is told on standard error.

pub mod marks;
pub mod million;
pub mod plot;
pub mod setups;
pub mod soak;
pub mod surroundings;
pub mod svg;
pub mod sweep;

use std::io;
use std::sync::OnceLock;
use std::time::Instant;

use strongroom_tests::client::Response;

use crate::load::Verb;
use crate::measured::{Measured, show_size};

/// An answer that has to have this status.
fn expect(answer: io::Result<Response>, status: u16) -> io::Result<Response> {
    let answer = answer?;
    match answer.status() == status {
        true => Ok(answer),
        false => Err(io::Error::other(format!(
            "status {} instead of {status}: {}",
            answer.status(),
            answer.text()
        ))),
    }
}

/// One line of a table.
pub struct Row {
    /// Of [`setups`].
    pub setup: &'static str,
    pub verb: Verb,
    pub size: u64,
    pub connections: usize,
    pub measured: Measured,
}

/// All that servers were measured at.
#[derive(Default)]
pub struct Rows(pub Vec<Row>);

impl Row {
    pub fn line(&self) -> String {
        let size = show_size(self.size);
        let measured = &self.measured;
        measured.table_line(self.verb.name(), &size, self.connections)
    }
}

impl Rows {
    /// What was measured there, if it was.
    pub fn find(
        &self,
        setup: &str,
        verb: Verb,
        size: u64,
        connections: usize,
    ) -> Option<&Measured> {
        let row = self.0.iter().find(|r| {
            r.setup == setup && r.verb == verb && r.size == size && r.connections == connections
        });
        row.map(|r| &r.measured)
    }

    /// A table for each setup, under its name.
    pub fn tables(&self) -> String {
        let same = |a: &Row, b: &Row| a.setup == b.setup;
        let tables = self.0.chunk_by(same).map(|rows| {
            let lines: String = rows.iter().map(Row::line).collect();
            format!("### {}\n\n{}{lines}\n", rows[0].setup, Measured::TABLE_HEAD)
        });
        tables.collect()
    }
}

/// A line for the person who waits, with the time since the first.
pub fn progress(text: &str) {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let seconds = BEGUN.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("[{seconds:>4} s] {}", text.trim_end());
}
