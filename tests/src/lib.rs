//! End-to-end tests: real clients against the built binary.
