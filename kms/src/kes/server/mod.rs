//! A server that speaks KES's REST API over the embedded keystore: requests in, answers out, no sockets.
//!
//! Steps of a request, in this order: route, method, who is it, may they, then the handler. The texts
//! of errors are KES's, since clients match on them; so are its odd answers, where clients may depend on
//! them. Not taken over: routes to keys that can be opened to everybody, and log streams that stay empty.
//!
//! A KES ciphertext names no version of its key, so opening tries all of them, newest first.

mod config;
mod handlers;
mod metrics;
mod policy;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

pub use config::{KesCacheExpiry, KesConfig, KesTls};

use crate::Kms;
use crate::error::{Caller, Error};
use crate::kes::api_key::identity;
use crate::kes::certificate;
use crate::kes::proto::{self, BODY_BYTES_MAX};
use crate::time::Timestamp;
use crate::time::now_ms;
use config::RouteConfig;
use handlers::Handler;
use metrics::Metrics;

/// The KES-compatible server.
pub struct KesServer {
    kms: Arc<Kms>,
    config: RwLock<Arc<Loaded>>,
    started: Instant,
    metrics: Metrics,
    readers: Mutex<Vec<(Log, Weak<Queue>)>>,
}

/// A request as it came over TLS.
pub struct ServerRequest<'a> {
    pub method: &'a str,
    /// The path as it stands in the request line, without the query.
    pub path: &'a str,
    pub peer: IpAddr,
    /// The certificates that the client presented, in DER; whether they are verified is up to TLS.
    pub certificates: &'a [&'a [u8]],
    pub body: RequestBody<'a>,
}

/// The body of a request, read as far as [`KesServer::limits`] says.
#[derive(Clone, Copy)]
pub enum RequestBody<'a> {
    Whole(&'a [u8]),
    /// Longer than the limit.
    TooLong,
}

/// How to treat a request before it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// How much of the body to read; 0: do not read it.
    pub body_bytes_max: usize,
    /// The whole request's time; none for streams.
    pub timeout: Option<Duration>,
    /// Whether handling it waits for the disk.
    pub may_block: bool,
}

/// The answer to a request.
pub struct ServerResponse {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: ServerBody,
}

pub enum ServerBody {
    Bytes(Zeroizing<Vec<u8>>),
    /// Lines as they come, until the client goes away.
    Stream(LogReader),
}

/// Lines of a log, for one client.
pub struct LogReader(Arc<Queue>);

#[derive(Default)]
struct Queue {
    lines: Mutex<VecDeque<Vec<u8>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    Error,
    Audit,
}

/// Lines that wait for a slow client; older ones are dropped.
const QUEUE_LINES_MAX: usize = 1024;

/// A configuration in force, and since when.
struct Loaded {
    config: KesConfig,
    since: Timestamp,
}

/// Who calls.
struct Client {
    identity: String,
    is_admin: bool,
}

struct Route {
    method: &'static str,
    path: &'static str,
    body_bytes_max: usize,
    timeout: Duration,
    needs_identity: Needs,
    may_block: bool,
    handler: Handler,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    AnyCertificate,
    Permission,
}

const SECONDS_10: Duration = Duration::from_secs(10);
const SECONDS_15: Duration = Duration::from_secs(15);

const fn route(method: &'static str, path: &'static str, handler: Handler) -> Route {
    Route {
        method,
        path,
        body_bytes_max: 0,
        timeout: SECONDS_15,
        needs_identity: Needs::Permission,
        may_block: false,
        handler,
    }
}

const fn with_body(path: &'static str, handler: Handler) -> Route {
    Route {
        body_bytes_max: BODY_BYTES_MAX,
        ..route("PUT", path, handler)
    }
}

/// All routes. A path that ends in `/` takes whatever follows it as its argument.
static ROUTES: [Route; 22] = [
    Route {
        timeout: SECONDS_10,
        needs_identity: Needs::Nothing,
        ..route("GET", "/version", Handler::Version)
    },
    route("GET", "/v1/ready", Handler::Ready),
    route("GET", "/v1/status", Handler::Status),
    route("GET", "/v1/metrics", Handler::Metrics),
    Route {
        timeout: SECONDS_10,
        ..route("GET", "/v1/api", Handler::Api)
    },
    Route {
        may_block: true,
        ..route("PUT", "/v1/key/create/", Handler::Create)
    },
    Route {
        may_block: true,
        ..with_body("/v1/key/import/", Handler::Import)
    },
    route("GET", "/v1/key/describe/", Handler::Describe),
    route("GET", "/v1/key/list/", Handler::List),
    Route {
        may_block: true,
        ..route("DELETE", "/v1/key/delete/", Handler::Delete)
    },
    with_body("/v1/key/generate/", Handler::Generate),
    with_body("/v1/key/encrypt/", Handler::Encrypt),
    with_body("/v1/key/decrypt/", Handler::Decrypt),
    with_body("/v1/key/hmac/", Handler::Hmac),
    route("GET", "/v1/policy/describe/", Handler::DescribePolicy),
    route("GET", "/v1/policy/read/", Handler::ReadPolicy),
    route("GET", "/v1/policy/list/", Handler::ListPolicies),
    route("GET", "/v1/identity/describe/", Handler::DescribeIdentity),
    route("GET", "/v1/identity/list/", Handler::ListIdentities),
    Route {
        needs_identity: Needs::AnyCertificate,
        ..route("GET", "/v1/identity/self/describe", Handler::DescribeSelf)
    },
    Route {
        timeout: Duration::ZERO,
        ..route("GET", "/v1/log/error", Handler::ErrorLog)
    },
    Route {
        timeout: Duration::ZERO,
        ..route("GET", "/v1/log/audit", Handler::AuditLog)
    },
];

/// Whether the configuration may speak of `path`.
pub(crate) fn is_route(path: &str) -> bool {
    ROUTES.iter().any(|route| route.path == path)
}

impl KesServer {
    /// A server over `kms`. Makes the keys that the configuration asks for and that are not there.
    pub fn new(kms: Arc<Kms>, config: KesConfig) -> Result<KesServer, Error> {
        let server = KesServer {
            kms,
            config: RwLock::new(Arc::new(loaded(config))),
            started: Instant::now(),
            metrics: Metrics::default(),
            readers: Mutex::default(),
        };
        server.make_keys(&server.loaded().config)?;
        Ok(server)
    }

    /// Puts another configuration in force, for all requests from now on; after an error the one before stays.
    pub fn reload(&self, config: KesConfig) -> Result<(), Error> {
        self.make_keys(&config)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded(config));
        Ok(())
    }

    /// How to treat a request for `path` before it is handled.
    #[must_use]
    pub fn limits(&self, path: &str) -> ServerLimits {
        let found = percent_decode(path).and_then(|path| find(&path).map(|(route, _)| route));
        let Some(route) = found else {
            return ServerLimits {
                body_bytes_max: 0,
                timeout: Some(SECONDS_15),
                may_block: false,
            };
        };
        let timeout = self.route_config(route).timeout.unwrap_or(route.timeout);
        ServerLimits {
            body_bytes_max: route.body_bytes_max,
            timeout: (!timeout.is_zero()).then_some(timeout),
            may_block: route.may_block,
        }
    }

    /// Answers a request.
    #[must_use]
    pub fn handle(&self, request: &ServerRequest<'_>) -> ServerResponse {
        let Some(path) = percent_decode(request.path) else {
            return text(400, "400 Bad Request");
        };
        let Some((route, argument)) = find(&path) else {
            // A subtree without its slash is elsewhere, as Go's router sees it.
            let with_slash = format!("{path}/");
            if ROUTES.iter().any(|route| route.path == with_slash) {
                let mut answer = text(301, "Moved Permanently\n");
                answer.headers.push(("location", with_slash));
                return answer;
            }
            let mut answer = text(404, "404 page not found\n");
            answer
                .headers
                .push(("x-content-type-options", "nosniff".to_owned()));
            return answer;
        };
        if request.method != route.method && !(route.method == "PUT" && request.method == "POST") {
            let message = format!(
                "received method '{}' expected '{}'",
                request.method, route.method
            );
            let mut answer = failure(405, &message);
            answer.headers.push(("accept", route.method.to_owned()));
            return answer;
        }
        let begun = Instant::now();
        let loaded = self.loaded();
        let counted = self.metrics.begin(route.path);
        let (answer, who) = match self.admit(&loaded, route, &path, request.certificates) {
            Ok(client) => {
                let answer = handlers::handle(
                    self,
                    &loaded,
                    route.handler,
                    argument,
                    &client,
                    request.body,
                );
                (answer, client.identity)
            }
            Err(refused) => (refused, String::new()),
        };
        counted.end(answer.status, begun.elapsed());
        if matches!(
            route.handler,
            Handler::Create | Handler::Import | Handler::Delete
        ) {
            self.audit(&path, &who, request.peer, answer.status, begun.elapsed());
        }
        answer
    }

    /// Finds out who calls, and whether they may.
    fn admit(
        &self,
        loaded: &Loaded,
        route: &Route,
        path: &str,
        certificates: &[&[u8]],
    ) -> Result<Client, ServerResponse> {
        let open = route.needs_identity == Needs::Nothing || self.route_config(route).skip_auth;
        let identity = match client_identity(certificates) {
            Ok(identity) => identity,
            Err(_) if open => String::new(),
            Err(message) => return Err(failure(400, message)),
        };
        let client = Client {
            is_admin: loaded.config.admin.is(&identity),
            identity,
        };
        let mut policies = loaded.config.policies.values();
        let may = open
            || client.is_admin
            || route.needs_identity == Needs::AnyCertificate
            || policies
                .any(|policy| policy.identities.contains(&client.identity) && policy.allows(path));
        if may {
            Ok(client)
        } else {
            Err(failure(403, proto::NOT_ALLOWED))
        }
    }

    fn make_keys(&self, config: &KesConfig) -> Result<(), Error> {
        for name in &config.keys {
            match self
                .kms
                .keystore
                .create(name, now_ms(), config.admin.as_str())
            {
                Ok(_) | Err(Error::Caller(Caller::KeyExists(_))) => {}
                // A server without its keys starts, and says so to whoever asks.
                Err(Error::Outage(outage)) => {
                    tracing::warn!(key = name, "not looked for: {outage}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn route_config(&self, route: &Route) -> RouteConfig {
        self.loaded()
            .config
            .routes
            .get(route.path)
            .copied()
            .unwrap_or_default()
    }

    fn audit(&self, path: &str, identity: &str, peer: IpAddr, code: u16, took: Duration) {
        self.metrics.audit_events.add();
        if self.loaded().config.log_audit {
            tracing::info!(target: "strongroom_kms::audit", %path, %identity, %peer, code);
        }
        let event = serde_json::json!({
            "time": Timestamp::from_millis(now_ms()).to_string(),
            "request": { "ip": peer.to_string(), "path": path, "identity": identity },
            "response": { "code": code, "time": u64::try_from(took.as_millis()).unwrap_or(u64::MAX) },
        });
        self.publish(Log::Audit, &event);
    }

    /// Notes a failure that is the server's own.
    fn report(&self, error: &Error) {
        self.metrics.error_events.add();
        if self.loaded().config.log_error {
            tracing::error!(target: "strongroom_kms::server", "{error}");
        }
        self.publish(
            Log::Error,
            &serde_json::json!({ "message": error.to_string() }),
        );
    }

    fn publish(&self, log: Log, event: &serde_json::Value) {
        let line = format!("{event}\n").into_bytes();
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|(_, queue)| queue.strong_count() > 0);
        for queue in readers
            .iter()
            .filter(|(of, _)| *of == log)
            .filter_map(|(_, q)| q.upgrade())
        {
            let mut lines = queue.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == QUEUE_LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line.clone());
        }
    }

    fn subscribe(&self, log: Log) -> LogReader {
        let queue = Arc::new(Queue::default());
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push((log, Arc::downgrade(&queue)));
        LogReader(queue)
    }
}

impl LogReader {
    /// The lines that have come since the last call; asked for a few times a second.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.drain(..).flatten().collect()
    }
}

/// The identity of the one certificate that is not a CA's.
fn client_identity(certificates: &[&[u8]]) -> Result<String, &'static str> {
    let mut leaves = certificates
        .iter()
        .filter_map(|der| certificate::read(der))
        .filter(|certificate| !certificate.is_ca);
    let leaf = leaves.next().ok_or("tls: client certificate is required")?;
    if leaves.next().is_some() {
        return Err("tls: received more than one client certificate");
    }
    Ok(identity(leaf.spki))
}

fn loaded(config: KesConfig) -> Loaded {
    Loaded {
        config,
        since: Timestamp::from_millis(now_ms()),
    }
}

/// The route of a decoded path, the longest if there are several, and what follows it.
fn find(path: &str) -> Option<(&'static Route, &str)> {
    ROUTES
        .iter()
        .filter_map(|route| {
            let rest = path.strip_prefix(route.path)?;
            (rest.is_empty() || route.path.ends_with('/')).then_some((route, rest))
        })
        .max_by_key(|(route, _)| route.path.len())
}

fn percent_decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).expect("two digits")
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn text(status: u16, body: &str) -> ServerResponse {
    ServerResponse {
        status,
        headers: vec![("content-type", "text/plain; charset=utf-8".to_owned())],
        body: ServerBody::Bytes(Zeroizing::new(body.as_bytes().to_vec())),
    }
}

/// An error as KES writes it: the line ends before the brace does.
fn failure(status: u16, message: &str) -> ServerResponse {
    let message = serde_json::Value::from(message);
    let body = format!("{{\"message\":{message}\n}}").into_bytes();
    ServerResponse {
        status,
        headers: vec![("content-type", "application/json".to_owned())],
        body: ServerBody::Bytes(Zeroizing::new(body)),
    }
}

#[cfg(test)]
mod tests;
