//! The S3 edge of Strongroom: connections, bodies, the S3 service, and the command line.

pub mod body;
pub mod conn;
pub mod health;
pub mod limits;
pub mod log;
pub mod service;
pub mod tls;
