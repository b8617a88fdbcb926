//! The words that KES clients and servers exchange: paths, bodies, and the error texts clients match on.
//!
//! Bodies are JSON with standard base64. An error is known by its status *and* its text, so the texts are
//! part of the protocol. Buffers that hold key material are wiped.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Bytes a request body may have where one is read.
pub(crate) const BODY_BYTES_MAX: usize = 1_000_000;

pub(crate) const KEY_NOT_FOUND: &str = "key does not exist";
pub(crate) const KEY_EXISTS: &str = "key already exists";
pub(crate) const KEY_EXISTS_LEGACY: &str = "key does already exist";
pub(crate) const NOT_ALLOWED: &str = "not authorized: insufficient permissions";
pub(crate) const NOT_ALLOWED_LEGACY: &str = "prohibited by policy";
pub(crate) const NOT_AUTHENTIC: &str = "decryption failed: ciphertext is not authentic";

/// Bytes that travel as base64 and are wiped when dropped.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Base64(pub(crate) Zeroizing<Vec<u8>>);

impl Base64 {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(STANDARD.encode(&*self.0));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A null is an empty value, and line breaks count for nothing: so it is in Go.
        let text = Option::<Cow<'de, str>>::deserialize(deserializer)?.unwrap_or_default();
        let mut clean = Zeroizing::new(String::with_capacity(text.len()));
        clean.extend(text.chars().filter(|c| !matches!(c, '\r' | '\n')));
        if let Cow::Owned(text) = text {
            drop(Zeroizing::new(text));
        }
        let bytes = STANDARD
            .decode(clean.as_bytes())
            .map_err(|_| serde::de::Error::custom("not base64"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ImportRequest {
    #[serde(default)]
    pub(crate) key: Base64,
    #[serde(default)]
    pub(crate) cipher: String,
}

#[derive(Serialize, Deserialize, Default)]
pub(crate) struct GenerateRequest {
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) context: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct GenerateResponse {
    pub(crate) plaintext: Base64,
    pub(crate) ciphertext: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct EncryptRequest {
    #[serde(default)]
    pub(crate) plaintext: Base64,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) context: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct EncryptResponse {
    pub(crate) ciphertext: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DecryptRequest {
    #[serde(default)]
    pub(crate) ciphertext: Base64,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) context: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DecryptResponse {
    pub(crate) plaintext: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct HmacRequest {
    #[serde(default)]
    pub(crate) message: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct HmacResponse {
    pub(crate) hmac: Base64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DescribeResponse {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) algorithm: String,
    #[serde(default)]
    pub(crate) created_at: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) created_by: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ListResponse {
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) names: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) continue_at: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct VersionResponse {
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) commit: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct StatusResponse {
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) arch: String,
    /// Seconds.
    #[serde(default)]
    pub(crate) uptime: u64,
    #[serde(default)]
    pub(crate) num_cpu: u64,
    #[serde(default)]
    pub(crate) num_cpu_used: u64,
    #[serde(default)]
    pub(crate) mem_heap_used: u64,
    #[serde(default)]
    pub(crate) mem_stack_used: u64,
    /// Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keystore_latency: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keystore_unreachable: bool,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    error: String,
    #[serde(default)]
    message: String,
}

/// A body in JSON, in one allocation that is wiped when dropped.
pub(crate) fn encode(body: &impl Serialize) -> Zeroizing<Vec<u8>> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // Measured first: a buffer that grows leaves copies of keys behind.
    let mut count = Count(0);
    serde_json::to_writer(&mut count, body).expect("these types are JSON");
    let mut out = Zeroizing::new(Vec::with_capacity(count.0 + 1));
    serde_json::to_writer(&mut *out, body).expect("these types are JSON");
    out
}

/// The first JSON value of a body; what comes after it counts for nothing, as in Go.
pub(crate) fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    T::deserialize(&mut serde_json::Deserializer::from_slice(body)).ok()
}

/// What an answer with a status of 400 or more says went wrong.
pub(crate) fn error_text<'a>(content_type: &str, body: &'a [u8]) -> Cow<'a, str> {
    let is_json = content_type
        .trim_start()
        .get(..16)
        .is_some_and(|start| start.eq_ignore_ascii_case("application/json"));
    match decode::<ErrorBody>(body).filter(|_| is_json) {
        Some(ErrorBody { error, .. }) if !error.is_empty() => Cow::Owned(error),
        Some(ErrorBody { message, .. }) => Cow::Owned(message),
        None => String::from_utf8_lossy(body),
    }
}

fn is_empty(bytes: &Base64) -> bool {
    bytes.0.is_empty()
}

fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
