//! Kernels for the bytes on the data path, and nothing else: authenticated encryption and hashes.
//!
//! Callers see [`gcm::Key`] and [`gcm::Message`], [`md5::Md5`] and [`md5::update_all`]; which instructions run is decided here.

pub mod gcm;
pub mod md5;

mod portable;
