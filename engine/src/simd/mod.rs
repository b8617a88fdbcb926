//! Kernels for the bytes on the data path, and nothing else: authenticated encryption, hashes and checksums.
//!
//! Callers see [`gcm::Key`] and [`gcm::Message`], [`md5::Md5`] and [`md5::update_all`], [`crc::fold`]; which instructions run is decided here, by
//! what [`cpu`] finds. All `unsafe` code of these kernels is below this module, and `SAFETY.md` beside it says why it holds.
#![allow(unsafe_code)]

pub mod cpu;
pub mod crc;
pub mod gcm;
pub mod md5;

mod portable;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// The path that [`gcm::Key::new`] takes on this machine.
pub fn kernel_name() -> &'static str {
    cpu::best().name()
}
