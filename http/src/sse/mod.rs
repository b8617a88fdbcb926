//! Server-side encryption: what a request asks for, which mode applies, and how an object's key is sealed and opened.
//!
//! - [`decide`]: the mode of a new object: customer key, then header, then the bucket's default, then the server's.
//! - [`customer`]: keys that come with the request (SSE-C).
//! - [`key_id`]: the ways in which a key of the key service is named.
//! - [`access`]: what reads, sources of copies and parts have to bring.
//! - [`keys`]: object keys, sealed and opened under a customer's key or the key service.
//! - [`answer`]: the response's headers.
//! - [`xml`]: configurations of buckets and objects.
//!
//! A new object, upload or copy always gets an object key of its own. The sealed key is opened on every read, of empty objects too:
//! an object whose key is gone is gone. Customer keys and context values are private: nothing here prints them or sends them back.

pub mod access;
pub mod answer;
pub mod customer;
pub mod decide;
pub mod key_id;
pub mod keys;
#[cfg(test)]
mod tests;
pub mod xml;

use http::{Extensions, HeaderMap};

pub use answer::Answer;
pub use customer::CustomerKey;
pub use decide::{Choice, KmsChoice, Rules};
pub use key_id::KeyId;
pub use keys::{NewKey, ObjectKey, held, in_time, new_key, open_key, reseal, stored};

use crate::service::RequestInfo;

pub const HEADER: &str = "x-amz-server-side-encryption";
pub const KMS_KEY_ID: &str = "x-amz-server-side-encryption-aws-kms-key-id";
pub const CONTEXT: &str = "x-amz-server-side-encryption-context";
pub const BUCKET_KEY: &str = "x-amz-server-side-encryption-bucket-key-enabled";

/// The headers of a customer's key: algorithm, key, MD5 of the key.
pub type CustomerHeaders = [&'static str; 3];
pub const CUSTOMER: CustomerHeaders = [
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-md5",
];
pub const COPY_SOURCE_CUSTOMER: CustomerHeaders = [
    "x-amz-copy-source-server-side-encryption-customer-algorithm",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key-md5",
];

/// Headers whose values nobody may see.
pub const PRIVATE: [&str; 3] = [CUSTOMER[1], COPY_SOURCE_CUSTOMER[1], CONTEXT];

/// What a request says of encryption, and whether it came on a way on which a customer's key may be sent.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    headers: &'a HeaderMap,
    secure: bool,
}

impl<'a> Asked<'a> {
    /// `anyway` lets customer keys come over an open connection.
    pub fn new(headers: &'a HeaderMap, extensions: &Extensions, anyway: bool) -> Self {
        let info = extensions.get::<RequestInfo>();
        Asked {
            headers,
            secure: anyway || info.is_some_and(|info| info.secure),
        }
    }

    fn has_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.headers.contains_key(*name))
    }

    /// The value of a header that is there and not empty; what is no text counts as empty text.
    fn text(&self, name: &str) -> Option<&'a str> {
        let value = self.headers.get(name).filter(|v| !v.is_empty())?;
        Some(value.to_str().unwrap_or_default())
    }
}
