//! Benches, load generator and recorded results.
