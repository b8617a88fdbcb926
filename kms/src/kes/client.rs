//! A client of KES servers, over a connection that somebody else supplies.
//!
//! - Several endpoints are one service: whichever answered last is asked first; one that fails or answers
//!   with a server error is left out for a moment, unless all are.
//! - A failed round is repeated after a pause with jitter, as often as the deadline allows. What is not
//!   safe to repeat is sent once.
//! - An answer that is not understood, or holds something else than 32 bytes where a key should be, is an
//!   outage. There is no way from a strange answer to a usable key.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::error::{Caller, Error, KeyProblem, Place};
use crate::kes::proto::{self, Base64};
use crate::limits::{CIPHERTEXT_BYTES_MAX, KES_ANSWER_BYTES_MAX};
use crate::name;
use crate::random;
use crate::secret::DataKey;
use crate::settings::Endpoint;

/// A future of one core.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// How requests reach a KES server: TLS with the client's certificate, HTTP, timers.
pub trait Connection {
    /// Sends one request and reads the whole answer, before `deadline` or not at all. An answer whose body
    /// is longer than the request allows is an error.
    fn send<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        request: &'a Request,
        deadline: Instant,
    ) -> LocalFuture<'a, Result<Response, SendError>>;

    /// Waits.
    fn sleep(&self, time: Duration) -> LocalFuture<'_, ()>;

    /// The present moment.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A request to a KES server.
pub struct Request {
    pub method: &'static str,
    /// An absolute path that needs no escaping.
    pub path: String,
    /// JSON. `None` is a request without a body: send `Content-Length: 0` where the method asks for one.
    pub body: Option<Zeroizing<Vec<u8>>>,
    pub answer_bytes_max: usize,
}

/// The answer of a KES server.
pub struct Response {
    pub status: u16,
    /// The `Content-Type`, empty if there is none.
    pub content_type: String,
    pub body: Zeroizing<Vec<u8>>,
}

/// Why there is no answer, for people: no connection, a handshake refused, time over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendError(pub String);

/// What KES tells of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KesKey {
    pub name: String,
    pub algorithm: String,
    /// RFC 3339.
    pub created_at: String,
    pub created_by: String,
}

/// What one KES server tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KesStatus {
    pub endpoint: String,
    /// Its version, or why it cannot be asked.
    pub version: Result<String, String>,
    /// Whether it reaches its own key store.
    pub keystore_reachable: bool,
}

/// Rounds through the endpoints within one call.
const ROUNDS: usize = 3;
/// The pause between two rounds: this and up to [`PAUSE_JITTER_MS`] more.
const PAUSE_MS: u64 = 200;
const PAUSE_JITTER_MS: u64 = 800;
/// How long an endpoint that failed is left out.
const LEFT_OUT: Duration = Duration::from_secs(3);
/// The longest one attempt may take where there is another endpoint to try. Where there are many, each has its share of the time.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// The shortest: a server that is far away takes its time too. More than some ten silent ones are found out by several calls.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);

/// The client of one core.
pub struct KesClient {
    connection: Rc<dyn Connection>,
    endpoints: Vec<Endpoint>,
    /// Until when an endpoint is left out.
    out_until: RefCell<Vec<Option<Instant>>>,
    /// The endpoint that is asked first.
    first: Cell<usize>,
    calls: Cell<u64>,
}

impl KesClient {
    /// A client of at least one endpoint.
    #[must_use]
    pub fn new(connection: Rc<dyn Connection>, endpoints: Vec<Endpoint>) -> KesClient {
        assert!(!endpoints.is_empty(), "settings name at least one endpoint");
        let first = usize::from(random::array::<1>()[0]) % endpoints.len();
        KesClient {
            connection,
            out_until: RefCell::new(vec![None; endpoints.len()]),
            first: Cell::new(first),
            endpoints,
            calls: Cell::new(0),
        }
    }

    /// Requests sent so far, repeated ones included.
    #[must_use]
    pub fn requests_sent(&self) -> u64 {
        self.calls.get()
    }

    /// A fresh data key under `name`, bound to `context`, and its ciphertext.
    pub async fn generate(
        &self,
        name: &str,
        context: &[u8],
        deadline: Instant,
    ) -> Result<(DataKey, Vec<u8>), Error> {
        let body = proto::GenerateRequest {
            context: Base64::new(context),
        };
        let request = key_request("PUT", "generate", name, Some(proto::encode(&body)))?;
        let answer = self.call(&request, deadline, ROUNDS).await?;
        success(&answer, name)?;
        let answer: proto::GenerateResponse = decode(&answer)?;
        let (plain, sealed) = (data_key(&answer.plaintext)?, answer.ciphertext.0);
        if sealed.len() <= 32 || sealed.len() > CIPHERTEXT_BYTES_MAX {
            return Err(strange("a ciphertext of impossible length"));
        }
        Ok((plain, sealed.to_vec()))
    }

    /// Opens a data key.
    pub async fn decrypt(
        &self,
        name: &str,
        ciphertext: &[u8],
        context: &[u8],
        deadline: Instant,
    ) -> Result<DataKey, Error> {
        let body = proto::DecryptRequest {
            ciphertext: Base64::new(ciphertext),
            context: Base64::new(context),
        };
        let request = key_request("PUT", "decrypt", name, Some(proto::encode(&body)))?;
        let answer = self.call(&request, deadline, ROUNDS).await?;
        success(&answer, name)?;
        data_key(&decode::<proto::DecryptResponse>(&answer)?.plaintext)
    }

    /// Makes a key.
    pub async fn create_key(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        let request = key_request("PUT", "create", name, None)?;
        success(&self.call(&request, deadline, 1).await?, name)
    }

    /// Destroys a key.
    pub async fn delete_key(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        let request = key_request("DELETE", "delete", name, None)?;
        success(&self.call(&request, deadline, 1).await?, name)
    }

    /// What may be told of a key.
    pub async fn describe_key(&self, name: &str, deadline: Instant) -> Result<KesKey, Error> {
        let request = key_request("GET", "describe", name, None)?;
        let answer = self.call(&request, deadline, ROUNDS).await?;
        success(&answer, name)?;
        let answer: proto::DescribeResponse = decode(&answer)?;
        Ok(KesKey {
            name: answer.name,
            algorithm: answer.algorithm,
            created_at: answer.created_at,
            created_by: answer.created_by,
        })
    }

    /// Names that begin with `prefix`, and whether there are more: KES tells the first 1,024 only.
    pub async fn list_keys(
        &self,
        prefix: &str,
        deadline: Instant,
    ) -> Result<(Vec<String>, bool), Error> {
        if !prefix.is_empty() {
            // What begins no name matches none, and would need escaping.
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if !prefix.bytes().all(fits) {
                return Ok((Vec::new(), false));
            }
        }
        let request = request("GET", format!("/v1/key/list/{prefix}"), None);
        let answer = self.call(&request, deadline, ROUNDS).await?;
        success(&answer, prefix)?;
        let answer: proto::ListResponse = decode(&answer)?;
        Ok((answer.names, !answer.continue_at.is_empty()))
    }

    /// Asks every endpoint how it is.
    pub async fn status(&self, deadline: Instant) -> Vec<KesStatus> {
        let request = request("GET", "/v1/status".to_owned(), None);
        let mut all = Vec::with_capacity(self.endpoints.len());
        for at in 0..self.endpoints.len() {
            let attempt = deadline.min(self.connection.now() + ATTEMPT_MAX);
            let answer = match self.send(at, &request, attempt).await {
                Ok(answer) => success(&answer, "")
                    .and_then(|()| decode::<proto::StatusResponse>(&answer))
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.0),
            };
            all.push(KesStatus {
                endpoint: self.endpoints[at].authority(),
                keystore_reachable: answer.as_ref().is_ok_and(|a| !a.keystore_unreachable),
                version: answer.map(|answer| answer.version),
            });
        }
        all
    }

    /// Sends a request to one endpoint after another until one gives an answer that is not a server error.
    async fn call(
        &self,
        request: &Request,
        deadline: Instant,
        rounds: usize,
    ) -> Result<Response, Error> {
        let mut last = String::from("no time left");
        for round in 0..rounds {
            if round > 0 {
                let jitter = u64::from_le_bytes(random::array()) % PAUSE_JITTER_MS;
                let pause = Duration::from_millis(PAUSE_MS + jitter);
                if self.connection.now() + pause >= deadline {
                    break;
                }
                self.connection.sleep(pause).await;
            }
            let order = self.order();
            for (tried, at) in order.iter().copied().enumerate() {
                let now = self.connection.now();
                if now >= deadline {
                    return Err(Error::unreachable(last));
                }
                let attempt = match (self.endpoints.len(), rounds) {
                    (1, _) => deadline,
                    (_, 1) => deadline.min(now + ATTEMPT_MAX),
                    // However many are silent, one that answers is asked in time.
                    _ => deadline.min(now + share(deadline - now, order.len() - tried)),
                };
                match self.send(at, request, attempt).await {
                    Ok(answer) if !is_server_fault(answer.status) => return Ok(answer),
                    Ok(answer) => {
                        last = format!(
                            "{} answers {}",
                            self.endpoints[at].authority(),
                            answer.status
                        );
                    }
                    Err(error) => last = format!("{}: {}", self.endpoints[at].authority(), error.0),
                }
                if rounds == 1 {
                    // Whether it took effect is not known: another endpoint would make it worse.
                    return Err(Error::unreachable(last));
                }
            }
        }
        Err(Error::unreachable(last))
    }

    async fn send(
        &self,
        at: usize,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, SendError> {
        self.calls.set(self.calls.get() + 1);
        let answer = self
            .connection
            .send(&self.endpoints[at], request, deadline)
            .await;
        let good = answer
            .as_ref()
            .is_ok_and(|answer| !is_server_fault(answer.status));
        self.out_until.borrow_mut()[at] = if good {
            self.first.set(at);
            None
        } else {
            Some(self.connection.now() + LEFT_OUT)
        };
        answer
    }

    /// The endpoints to try, in order: those not left out, or all if none is in.
    fn order(&self) -> Vec<usize> {
        let (count, first, now) = (
            self.endpoints.len(),
            self.first.get(),
            self.connection.now(),
        );
        let all = (0..count).map(|i| (first + i) % count);
        let out = self.out_until.borrow();
        let ready: Vec<usize> = all
            .clone()
            .filter(|at| out[*at].is_none_or(|until| until <= now))
            .collect();
        if ready.is_empty() {
            all.collect()
        } else {
            ready
        }
    }
}

/// What one attempt may take where so many endpoints are to be asked in the time that is left.
fn share(left: Duration, endpoints: usize) -> Duration {
    let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX);
    (left / endpoints.max(1)).clamp(ATTEMPT_MIN, ATTEMPT_MAX)
}

fn key_request(
    method: &'static str,
    verb: &str,
    name: &str,
    body: Option<Zeroizing<Vec<u8>>>,
) -> Result<Request, Error> {
    name::check(name)?;
    Ok(request(method, format!("/v1/key/{verb}/{name}"), body))
}

fn request(method: &'static str, path: String, body: Option<Zeroizing<Vec<u8>>>) -> Request {
    Request {
        method,
        path,
        body,
        answer_bytes_max: KES_ANSWER_BYTES_MAX,
    }
}

fn is_server_fault(status: u16) -> bool {
    status >= 500 && status != 501
}

/// Turns an answer that reports a failure into what it means for the key `name`.
fn success(answer: &Response, name: &str) -> Result<(), Error> {
    if answer.status == 200 {
        return Ok(());
    }
    let text = proto::error_text(&answer.content_type, &answer.body);
    Err(match (answer.status, text.as_ref()) {
        (404, proto::KEY_NOT_FOUND) => Error::key(name, KeyProblem::NotFound),
        (400, proto::KEY_EXISTS | proto::KEY_EXISTS_LEGACY) => {
            Caller::KeyExists(name.to_owned()).into()
        }
        (403, proto::NOT_ALLOWED | proto::NOT_ALLOWED_LEGACY) => {
            Error::key(name, KeyProblem::NotAuthorized)
        }
        (400, proto::NOT_AUTHENTIC) => Error::Corrupt(Place::DataKey(name.to_owned())),
        (status, text) => {
            let text: String = text
                .trim()
                .chars()
                .take(200)
                .flat_map(char::escape_debug)
                .collect();
            Error::unreachable(format!("unexpected answer {status}: {text}"))
        }
    })
}

fn decode<T: for<'a> serde::Deserialize<'a>>(answer: &Response) -> Result<T, Error> {
    proto::decode(&answer.body).ok_or_else(|| strange("a body that is not understood"))
}

/// A data key is 32 bytes, and not all zero: what a broken service would send must not become a key.
fn data_key(plain: &Base64) -> Result<DataKey, Error> {
    DataKey::from_slice(&plain.0)
        .filter(|key| !bool::from(key.expose().ct_eq(&[0; 32])))
        .ok_or_else(|| strange("a data key that is not one"))
}

fn strange(what: &str) -> Error {
    Error::unreachable(format!("the key service answered with {what}"))
}
