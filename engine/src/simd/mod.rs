//! Kernels for the bytes on the data path, and nothing else: authenticated encryption and hashes.
//!
//! Callers see [`gcm::Key`] and [`gcm::Message`]; which instructions run is decided here.

pub mod gcm;

mod portable;
