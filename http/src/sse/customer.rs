//! Keys that customers send with each request (SSE-C): read, checked, and never printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use md5::{Digest as _, Md5};
use s3s::{S3Error, S3Result, s3_error};
use strongroom_engine::secret::Secret;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Asked, CUSTOMER, CustomerHeaders, HEADER};
use crate::error::{custom, element, invalid_argument};

/// The only algorithm there is.
pub const ALGORITHM: &str = "AES256";

/// A customer's key, of one request. It has no `Debug`.
pub struct CustomerKey {
    secret: Secret,
    md5: String,
}

impl CustomerKey {
    /// The key in these headers; none where none of them is there.
    pub fn read(asked: &Asked<'_>, names: &CustomerHeaders) -> S3Result<Option<Self>> {
        if !asked.has_any(names) {
            return Ok(None);
        }
        if !asked.secure {
            return Err(s3_error!(
                InvalidRequest,
                "Requests specifying Server Side Encryption with Customer provided keys must be made over a secure connection."
            ));
        }
        let [algorithm, key, md5] = names.map(|name| asked.text(name));
        match algorithm {
            None => {
                return Err(refused(
                    "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm.",
                ));
            }
            Some(ALGORITHM) => {}
            Some(other) => return Err(wrong_algorithm(names[0], other)),
        }
        let key = key.ok_or_else(|| {
            refused(
                "Requests specifying Server Side Encryption with Customer provided keys must provide an appropriate secret key.",
            )
        })?;
        let md5 = md5.ok_or_else(|| {
            refused(
                "Requests specifying Server Side Encryption with Customer provided keys must provide the client calculated MD5 of the secret key.",
            )
        })?;
        let bytes = Zeroizing::new(STANDARD.decode(key).unwrap_or_default());
        let secret = Secret::from_slice(&bytes)
            .ok_or_else(|| refused("The secret key was invalid for the specified algorithm."))?;
        let computed = STANDARD.encode(Md5::digest(&*bytes));
        if !bool::from(computed.as_bytes().ct_eq(md5.as_bytes())) {
            return Err(refused(
                "The calculated MD5 hash of the key did not match the hash that was provided.",
            ));
        }
        Ok(Some(CustomerKey {
            secret,
            md5: computed,
        }))
    }

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What responses show of the key, in base64.
    pub fn md5(&self) -> &str {
        &self.md5
    }
}

/// The request has no customer key where it needs one.
pub fn missing() -> S3Error {
    s3_error!(
        InvalidRequest,
        "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object."
    )
}

/// The request's customer key is not the one the object is sealed under.
pub fn wrong() -> S3Error {
    s3_error!(
        AccessDenied,
        "Requests specifying Server Side Encryption with Customer provided keys must provide the correct secret key."
    )
}

/// The request has a customer key for an object that is not sealed under one.
pub fn not_applicable() -> S3Error {
    s3_error!(
        InvalidRequest,
        "The encryption parameters are not applicable to this object."
    )
}

/// A header was wrong; its value is not told, because it may be the key.
fn refused(message: &'static str) -> S3Error {
    invalid_argument(message, HEADER, "null")
}

fn wrong_algorithm(header: &str, value: &str) -> S3Error {
    let fault = custom(
        "InvalidEncryptionAlgorithmError",
        StatusCode::BAD_REQUEST,
        "The encryption request you specified is not valid. Supported value: AES256.",
    );
    // Somebody may have mixed up the headers: what looks like a key is not sent back.
    let value = match value.len() {
        0..=16 => value,
        _ => "",
    };
    let name = match header == CUSTOMER[0] {
        true => HEADER,
        false => header,
    };
    element(element(fault, "ArgumentName", name), "ArgumentValue", value)
}
