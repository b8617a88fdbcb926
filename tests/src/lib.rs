//! End-to-end tests of Strongroom: everything here drives the built binary from outside, as its users do.
//!
//! The harness knows the product only by what a user sees: flags, output, S3, files. It links none of its
//! crates, so no test can pass by reaching around the binary.
//!
//! `STRONGROOM_TEST_LONG=1` asks for the long versions: bigger objects, more kills.
//! `STRONGROOM_TEST_KEEP=1` keeps the data directories of failed tests.

pub mod binary;
pub mod cli;
pub mod client;
pub mod data;
pub mod disk;
pub mod go;
pub mod kes;
pub mod key_server;
pub mod mc;
pub mod metrics;
pub mod procfs;
pub mod python;
pub mod rclone;
pub mod scan;
pub mod server;
pub mod sigv4;
pub mod sized;
pub mod sse;
pub mod wire;

pub use client::Client;
pub use server::{Config, Scheme, Server};

/// Whether the long versions of the tests were asked for.
pub fn long() -> bool {
    std::env::var_os("STRONGROOM_TEST_LONG").is_some_and(|v| !v.is_empty() && v != "0")
}

/// `short` by default, `full` under `STRONGROOM_TEST_LONG=1`.
pub fn scaled<T>(short: T, full: T) -> T {
    if long() { full } else { short }
}
