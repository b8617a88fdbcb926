//! What this crate shares with KES servers.

pub(crate) mod stored;
