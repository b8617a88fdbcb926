//! What requests say of encryption, and what they should find: for the tests of modes, keys and verbs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};

use crate::client::{Client, Request, Response};

pub const METHOD: &str = "x-amz-server-side-encryption";
pub const KEY_ID: &str = "x-amz-server-side-encryption-aws-kms-key-id";
pub const CONTEXT: &str = "x-amz-server-side-encryption-context";
pub const BUCKET_KEY: &str = "x-amz-server-side-encryption-bucket-key-enabled";
pub const CUSTOMER: &str = "x-amz-server-side-encryption-customer";
pub const COPY_SOURCE_CUSTOMER: &str = "x-amz-copy-source-server-side-encryption-customer";

/// Headers by name.
pub type Headers = Vec<(String, String)>;

pub fn headers(pairs: &[(&str, &str)]) -> Headers {
    let own = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
    pairs.iter().map(own).collect()
}

/// The headers of a customer's key; `prefix` says whether it is that of the object or of a copy's source.
pub fn customer(prefix: &str, key: &[u8]) -> Headers {
    vec![
        (format!("{prefix}-algorithm"), "AES256".into()),
        (format!("{prefix}-key"), STANDARD.encode(key)),
        (
            format!("{prefix}-key-md5"),
            STANDARD.encode(Md5::digest(key)),
        ),
    ]
}

/// A context as its header has it.
pub fn context(json: &str) -> String {
    STANDARD.encode(json)
}

/// The header that vouches for a body.
pub fn checked(body: &str) -> Headers {
    headers(&[("content-md5", &STANDARD.encode(Md5::digest(body)))])
}

/// Headers as a request takes them.
pub fn borrowed(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    let pairs = headers.iter();
    pairs.map(|(n, v)| (n.as_str(), v.as_str())).collect()
}

/// Sends a request with these headers.
pub fn send(
    client: &mut Client,
    method: &str,
    (bucket, key, query): (&str, &str, &str),
    headers: &[(String, String)],
    body: &[u8],
) -> Response {
    let headers = borrowed(headers);
    let request = Request {
        method,
        bucket,
        key,
        query,
        headers: &headers,
    };
    client.request(&request, body).expect("an answer")
}

/// Status and code in one, `200` or `400 InvalidRequest`; an answer to HEAD has no code.
pub fn outcome(response: &Response) -> String {
    let code = response.code();
    match code.is_empty() {
        true => response.status().to_string(),
        false => format!("{} {code}", response.status()),
    }
}
