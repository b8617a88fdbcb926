//! The S3 edge of Strongroom: connections, bodies, the S3 service, and the command line.

pub mod conn;
pub mod limits;
pub mod tls;
