//! Benches, load generator and recorded results.

pub mod load;
pub mod machine;
pub mod measured;
pub mod record;
