//! What this crate shares with KES: its client, its protocol, and how it stores keys.

pub(crate) mod api_key;
pub(crate) mod certificate;
pub(crate) mod client;
pub(crate) mod import;
pub(crate) mod proto;
pub(crate) mod server;
pub(crate) mod stored;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
pub(crate) mod stub;
