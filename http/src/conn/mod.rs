//! Connections: from a listening socket to a served HTTP request, on one shard.
//!
//! - [`listen`] makes the listeners, one for each shard, and refuses a port in use.
//! - [`socket`] is hyper's view of a glommio socket; [`tls`] and [`transport`] put TLS over it.
//! - [`rt`] gives hyper its timer and its executor.
//! - [`drain`] ends them all: idle connections at once, busy ones after their request.
//!
//! This is the one place of the edge with `unsafe`: taking over descriptors, and writing into
//! hyper's uninitialized buffers.

pub mod drain;
pub mod listen;
pub mod rt;
pub mod serve;
pub mod socket;
pub mod tls;
pub mod transport;

pub use drain::{Drain, DrainGuard};
pub use listen::bind;
pub use serve::{Shard, serve};
pub use socket::Linger;
