//! The S3 edge of Strongroom: connections, bodies, the S3 service, and the command line.

pub mod admin;
pub mod at_rest;
pub mod auth;
pub mod bench;
pub mod body;
pub mod checksum;
pub mod cli;
pub mod config;
pub mod conn;
pub mod error;
pub mod health;
pub mod kes;
pub mod key_service;
pub mod kms_serve;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod ops;
pub mod rewrap;
pub mod root_key;
pub mod serve;
pub mod service;
pub mod sse;
pub mod tls;
pub mod work;
