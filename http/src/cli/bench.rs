//! `strongroom bench`: what this machine makes of the kernels.

use clap::Subcommand;

use crate::bench;

/// `strongroom bench …`
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Measure encryption and hashes beside other libraries
    ///
    /// Measures AES-256-GCM over 1, 4, 16 and 64 KiB, sealing and opening, in place and from one buffer to another, in cache and over
    /// more memory than any cache holds, beside ring, aes-gcm and our counter mode alone (ctr-ceiling); MD5 of one and of several
    /// streams beside the md-5 crate; and the checksums. Takes less than a minute of one core. After the table stand ratios, one
    /// a line, for programs: `ratio WHAT strongroom/PEER NUMBER`, more than 1 where strongroom is faster.
    Crypto,
}

/// Measures, and prints the table and the ratios.
pub fn run(command: &Bench) -> Result<(), String> {
    match command {
        Bench::Crypto => super::print(&bench::crypto(Vec::new())),
    }
}
