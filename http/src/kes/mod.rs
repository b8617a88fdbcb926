//! The way to KES servers from a core: connections, and who trusts whom on them.
//!
//! - [`connection`] carries the requests of the key service's client: one HTTP/1.1 exchange at a time on a kept connection.
//! - `permits` bounds how many connections a core has to a server.
//! - [`tls`] is this server's certificate there and the certificates it trusts, for all cores; it follows the files.

pub mod connection;
pub mod tls;

pub use connection::Connections;
pub use tls::KesTls;
