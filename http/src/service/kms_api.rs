//! The key calls of MinIO's administration API, as `mc admin kms` makes them: plain JSON, signed as S3 requests are, for
//! root alone.
//!
//! Keys of whichever service new writes use are made, listed and tested here; nothing is deleted. A test of a key answers
//! 200 whatever comes of it, and says so in its body: that is what clients expect.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use s3s::Body;
use serde_json::{Value, json};
use strongroom_kms::{Caller, Context, Error, Keys, Kms, Source, StoredDataKey, utc};

use crate::limits;

/// Where the calls of today are, and where those of old clients.
const PREFIX: &str = "/minio/kms/v1/";
const OLD_PREFIX: &str = "/minio/admin/v3/kms/";

/// All calls, for `apis`.
const CALLS: [(&str, &str); 7] = [
    ("GET", "/minio/kms/v1/status"),
    ("GET", "/minio/kms/v1/metrics"),
    ("GET", "/minio/kms/v1/apis"),
    ("GET", "/minio/kms/v1/version"),
    ("POST", "/minio/kms/v1/key/create"),
    ("GET", "/minio/kms/v1/key/list"),
    ("GET", "/minio/kms/v1/key/status"),
];

/// The key calls of one core.
pub struct KmsApi {
    kms: Arc<Kms>,
    keys: Rc<Keys>,
}

/// Why a call fails: status, code and words.
type Refusal = (StatusCode, &'static str, String);

/// Whether a request is one of these calls, or would be if it were spelt right.
pub fn is_for(path: &str) -> bool {
    path.starts_with(PREFIX) || path.starts_with(OLD_PREFIX)
}

impl KmsApi {
    pub fn new(kms: Arc<Kms>, keys: Rc<Keys>) -> Self {
        Self { kms, keys }
    }

    /// Answers a call whose signature holds.
    pub async fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Body> {
        let argument = |name: &str| -> Option<String> {
            form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .find(|(found, _)| found == name)
                .map(|(_, value)| value.into_owned())
        };
        let call = path
            .strip_prefix(PREFIX)
            .map(|call| (method.as_str(), call))
            // The same three calls, but that their status is asked by POST.
            .or_else(|| match (method.as_str(), path.strip_prefix(OLD_PREFIX)?) {
                ("POST", "status") => Some(("GET", "status")),
                (method, call @ ("key/create" | "key/status")) => Some((method, call)),
                _ => None,
            });
        let answer = match call {
            Some(("GET", "status")) => Ok(self.status().await),
            Some(("GET", "metrics")) => Ok(self.metrics()),
            Some(("GET", "apis")) => Ok(apis()),
            Some(("GET", "version")) => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
            Some(("POST", "key/create")) => match argument("key-id") {
                Some(name) => self.create(name).await,
                None => Err(missing("key-id")),
            },
            Some(("GET", "key/list")) => match argument("pattern") {
                Some(pattern) => self.list(&pattern).await,
                None => Err(missing("pattern")),
            },
            Some(("GET", "key/status")) => {
                let name = argument("key-id").filter(|name| !name.is_empty());
                Ok(self
                    .test(name.as_deref().unwrap_or(self.keys.default_key()))
                    .await)
            }
            _ => Err((
                StatusCode::NOT_FOUND,
                "XMinioAdminNoSuchCall",
                "There is no such call.".into(),
            )),
        };
        match answer {
            Ok(Value::Null) => Response::new(Body::empty()),
            Ok(answer) => respond(StatusCode::OK, &answer),
            Err((status, code, message)) => refusal(status, code, &message, path),
        }
    }

    /// Makes a key where new writes take theirs from.
    async fn create(&self, name: String) -> Result<Value, Refusal> {
        let made = match (self.keys.source(), self.keys.kes()) {
            (Source::Kes, Some(kes)) => kes.create_key(&name, deadline()).await,
            (Source::Static, _) if name != self.keys.default_key() => Err(Error::from(
                Caller::NotSupported("a static key is the only key there is"),
            )),
            (Source::Static, _) => Err(Caller::KeyExists(name).into()),
            _ => {
                let kms = Arc::clone(&self.kms);
                let made = strongroom_engine::blocking(move || kms.create_key(&name));
                made.await.map(drop)
            }
        };
        made.map(|()| Value::Null).map_err(refused)
    }

    /// Keys by prefix; a star stands for the rest of a name.
    async fn list(&self, pattern: &str) -> Result<Value, Refusal> {
        let prefix = pattern.strip_suffix('*').unwrap_or(pattern);
        let key = |name: &str, created_at: &str, by: &str| json!({ "name": name, "createdAt": created_at, "createdBy": by });
        // What there is to say where nobody knows.
        let unknown = "0001-01-01T00:00:00Z";
        let all: Vec<Value> = match (self.keys.source(), self.keys.kes()) {
            (Source::Kes, Some(kes)) => {
                let (names, _) = kes.list_keys(prefix, deadline()).await.map_err(refused)?;
                names.iter().map(|name| key(name, unknown, "")).collect()
            }
            (Source::Static, _) => {
                let name = Some(self.keys.default_key()).filter(|name| name.starts_with(prefix));
                name.map(|name| key(name, unknown, ""))
                    .into_iter()
                    .collect()
            }
            _ => {
                let keys = self.kms.list_keys(prefix).map_err(refused)?;
                keys.iter()
                    .map(|info| {
                        key(
                            &info.name,
                            &utc(info.created_at).unwrap_or_else(|| unknown.into()),
                            "",
                        )
                    })
                    .collect()
            }
        };
        Ok(Value::Array(all))
    }

    /// Makes a data key under a key and opens it again.
    async fn test(&self, name: &str) -> Value {
        let pairs = [(
            "MinIO admin API".to_owned(),
            "KMSKeyStatusHandler".to_owned(),
        )];
        let context = Context::from_pairs(BTreeMap::from(pairs));
        let made = match self.keys.generate(name, &context, None).await {
            Ok(made) => made,
            Err(e) => return json!({ "key-id": name, "encryption-error": e.to_string() }),
        };
        let stored = StoredDataKey {
            source: made.source,
            key: name,
            version: made.version,
            ciphertext: &made.ciphertext,
            bucket_key: false,
        };
        match self.keys.open(&stored, &context, "").await {
            Ok(opened) if opened.plaintext == made.plaintext => json!({ "key-id": name }),
            Ok(_) => json!({ "key-id": name, "decryption-error": "it opens to something else" }),
            Err(e) => json!({ "key-id": name, "decryption-error": e.to_string() }),
        }
    }

    async fn status(&self) -> Value {
        let word = |good: bool| if good { "online" } else { "offline" };
        let mut endpoints = serde_json::Map::new();
        let name = match (self.keys.source(), self.keys.kes()) {
            (Source::Kes, Some(kes)) => {
                for endpoint in kes.status(deadline()).await {
                    endpoints.insert(
                        format!("https://{}", endpoint.endpoint),
                        word(endpoint.version.is_ok()).into(),
                    );
                }
                "MinIO KES"
            }
            (Source::Static, _) => "MinIO builtin",
            _ => {
                let good = self.kms.outage().is_none();
                endpoints.insert("embedded".into(), word(good).into());
                "Strongroom"
            }
        };
        json!({
            "name": name,
            "default-key-id": self.keys.default_key(),
            "endpoints": endpoints,
            "state": {},
        })
    }

    fn metrics(&self) -> Value {
        let stats = self.kms.stats();
        json!({
            "kms_req_success": stats.calls - stats.outages.min(stats.calls),
            "kms_req_error": 0,
            "kms_req_failure": stats.outages,
            "kms_resp_time": {},
        })
    }
}

/// An error as administration clients read it.
pub fn refusal(status: StatusCode, code: &str, message: &str, path: &str) -> Response<Body> {
    respond(
        status,
        &json!({ "Code": code, "Message": message, "Resource": path }),
    )
}

/// An error that the S3 layer wrote, as administration clients read it.
pub fn translate(response: Response<Body>, path: &str) -> Response<Body> {
    let xml = response.body().bytes().unwrap_or_default();
    let xml = String::from_utf8_lossy(&xml);
    let value = |tag: &str| {
        let (_, rest) = xml.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>"))
            .map(|(value, _)| value)
    };
    let code = value("Code").unwrap_or("AccessDenied");
    refusal(
        response.status(),
        code,
        value("Message").unwrap_or("Access Denied"),
        path,
    )
}

fn apis() -> Value {
    let seconds = limits::KMS_API_TIMEOUT.as_secs();
    let call = |&(method, path): &(&str, &str)| json!({ "Method": method, "Path": path, "MaxBody": 0, "Timeout": seconds });
    CALLS.iter().map(call).collect()
}

fn missing(parameter: &str) -> Refusal {
    let message = format!("The parameter {parameter} is missing.");
    (
        StatusCode::BAD_REQUEST,
        "XMinioAdminInvalidArgument",
        message,
    )
}

fn refused(error: Error) -> Refusal {
    let (status, code) = match &error {
        Error::Caller(Caller::KeyExists(_)) => (StatusCode::CONFLICT, "XMinioKMSKeyExists"),
        Error::Caller(Caller::NotSupported(_)) => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        Error::Caller(Caller::KeystoreFull) => {
            (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage")
        }
        Error::Caller(Caller::InvalidKeyName(_) | Caller::InvalidContext(_)) => {
            (StatusCode::BAD_REQUEST, "XMinioAdminInvalidArgument")
        }
        Error::KeyState { .. } => (StatusCode::BAD_REQUEST, "XMinioKMSKeyNotUsable"),
        Error::Outage(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        Error::Corrupt(_) | Error::Environment(_) => {
            tracing::error!("a key call failed: {error}");
            let message = "The server met an error; its log says which.".to_owned();
            return (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message);
        }
    };
    (status, code, error.to_string())
}

fn respond(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn deadline() -> Instant {
    Instant::now() + limits::KMS_API_TIMEOUT
}
