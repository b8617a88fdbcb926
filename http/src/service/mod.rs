//! The S3 service of a shard: what happens to a request between its connection and its handler.
//!
//! 1. Health routes and scrapes of metrics are answered, without credentials. Everything else is refused while no store is open, and
//!    broken off when it is closed; the key calls of [`kms_api`] are answered once their signature holds.
//! 2. [`guard`] refuses what the S3 layer would misread.
//! 3. The data of an upload is taken out of the request; its handler finds it as an [`Upload`] in
//!    the extensions. Any other body is XML: once the request's signature holds, it is gathered,
//!    within a bound, and its framing taken off.
//! 4. The S3 layer checks the signature, routes, and calls the handler.
//! 5. What is left of the body is read and dropped, so that a client that is still sending sees
//!    the status; [`reply`] adds ids.
//!
//! No byte of a body is read before its request's signature was checked; a form (`form`) carries its own in its first fields.

pub mod access;
mod form;
pub mod guard;
pub mod host;
pub mod kms_api;
mod presign_v2;
pub mod proxy;
pub mod reply;
pub mod routes;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::Body as _;
use hyper::body::Incoming;
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::route::S3Route;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use sha2::{Digest, Sha256};
use tracing::{debug, error};

use crate::body::form::{Fields, File, Head};
use crate::body::sigv4::{Authorization, Canonical, SigningKey};
use crate::body::upload::Source;
use crate::body::{BodyError, Payload, Upload, content_encoding, gather};
use crate::checksum::{self, Announced, Hasher};
use crate::conn::rt::timeout;
use crate::conn::serve::Peer;
use crate::conn::socket::Linger;
use crate::health::Health;
use crate::limits;
use crate::metrics::{self, Metrics};
use crate::ops::{self, lenient::Lenient};
use crate::sse;

use access::Access;
pub use host::Domains;
pub use kms_api::KmsApi;
use proxy::Network;
use routes::Routes;

/// Finds the secret of an access key.
pub type Secrets = Arc<dyn Fn(&str) -> Option<SecretKey> + Send + Sync>;

/// What a handler may want to know of its request; in the request's extensions.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// The id that the response carries, for logs.
    pub id: Arc<str>,
    /// Whether it came encrypted, here or to a proxy that is trusted.
    pub secure: bool,
    /// The other end.
    pub peer: Option<SocketAddr>,
}

/// The S3 service of one shard. Clones are the same service.
#[derive(Clone)]
pub struct Service(Rc<Edge>);

struct Edge {
    /// The store, while there is one to be served.
    open: RefCell<Option<Open>>,
    /// Checks a request's signature and does nothing else.
    doorman: S3Service,
    secrets: Secrets,
    domains: Domains,
    region: String,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    proxies: Arc<[Network]>,
    ids: reply::Ids,
}

/// A store that is served, until this is dropped.
struct Open {
    handlers: Rc<Handlers>,
    _close: oneshot::Sender<()>,
}

struct Handlers {
    s3: S3Service,
    /// Comes when the store is closed.
    closed: Shared<oneshot::Receiver<()>>,
    /// For what does not come through the S3 layer.
    store: Box<dyn S3>,
    kms: Option<KmsApi>,
}

/// What a [`Service`] is made of besides its handlers.
#[derive(Clone)]
pub struct Settings {
    /// Credentials.
    pub secrets: Secrets,
    /// Domains of virtual-host style.
    pub domains: Domains,
    /// The region that buckets are in.
    pub region: String,
    /// What the health routes say.
    pub health: Arc<Health>,
    /// What a scrape says, and to whom.
    pub metrics: Arc<Metrics>,
    /// Those who say whether a request came over TLS to them.
    pub proxies: Arc<[Network]>,
}

impl Service {
    /// A service that refuses until a store is opened. To be made and used on the shard's thread.
    pub fn new(settings: Settings) -> Self {
        let config = s3_config();
        let mut doorman = S3ServiceBuilder::new(Nothing);
        doorman.set_config(config);
        doorman.set_auth(Keyring(settings.secrets.clone()));
        doorman.set_host(settings.domains.clone());
        doorman.set_route(Doorman);
        Self(Rc::new(Edge {
            open: RefCell::default(),
            doorman: doorman.build(),
            secrets: settings.secrets,
            domains: settings.domains,
            region: settings.region,
            health: settings.health,
            metrics: settings.metrics,
            proxies: settings.proxies,
            ids: reply::Ids::new(),
        }))
    }

    /// Serves the handlers in `store` from now on. `routes` take what the S3 layer does not know, `kms` the key calls.
    pub fn open(&self, store: impl S3 + Clone, routes: Vec<Arc<dyn S3Route>>, kms: Option<KmsApi>) {
        let edge = &self.0;
        let config = s3_config();
        let handlers = Box::new(store.clone());
        let mut unguarded = S3ServiceBuilder::new(store.clone());
        unguarded.set_config(config.clone());
        unguarded.set_host(edge.domains.clone());
        let mut s3 = S3ServiceBuilder::new(store);
        s3.set_config(config);
        s3.set_auth(Keyring(edge.secrets.clone()));
        s3.set_host(edge.domains.clone());
        let access = Access::new(edge.region.clone());
        s3.set_access(access.clone());
        let lenient: Arc<dyn S3Route> = Arc::new(Lenient::new(unguarded.build()));
        let routes = routes.into_iter().chain([lenient]).collect();
        s3.set_route(Routes::new(routes, access));
        let (close, closed) = oneshot::channel();
        let handlers = Handlers {
            s3: s3.build(),
            closed: closed.shared(),
            store: handlers,
            kms,
        };
        *edge.open.borrow_mut() = Some(Open {
            handlers: Rc::new(handlers),
            _close: close,
        });
    }

    /// Serves nothing any more: requests under way are broken off where they wait, and later ones refused.
    pub fn close(&self) {
        let open = self.0.open.borrow_mut().take();
        drop(open);
    }

    /// The service of one connection.
    pub fn for_peer(&self, peer: Peer) -> Connection {
        Connection {
            edge: self.0.clone(),
            peer,
        }
    }
}

fn s3_config() -> Arc<StaticConfigProvider> {
    let mut config = S3Config::default();
    config.xml_max_body_size = limits::XML_BYTES_MAX;
    Arc::new(StaticConfigProvider::new(Arc::new(config)))
}

/// Checks what the client says of a gathered body: its MD5, and any checksum.
fn check_integrity(headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> S3Result<()> {
    if let Some(announced) = headers.get("content-md5") {
        let announced = announced
            .to_str()
            .ok()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .filter(|digest| digest.len() == 16)
            .ok_or_else(|| {
                s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid.")
            })?;
        if md5::Md5::digest(body)[..] != announced[..] {
            return Err(s3_error!(
                BadDigest,
                "The Content-MD5 you specified did not match what we received."
            ));
        }
    }
    let announced = Announced::read(headers)?;
    let sums = announced.algorithm().map(|algorithm| {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(body);
        hasher.finish()
    });
    checksum::verify(&announced, trailers, sums.as_slice())
}

impl Edge {
    async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let start = Instant::now();
        let id = self.ids.next();
        let (mut parts, incoming) = request.into_parts();
        let (method, uri) = (parts.method.clone(), parts.uri.clone());
        let mut body = Pending::new(&parts, incoming, peer.linger.clone());
        for name in sse::PRIVATE {
            if let http::header::Entry::Occupied(mut entry) = parts.headers.entry(name) {
                entry.iter_mut().for_each(|value| value.set_sensitive(true));
            }
        }
        let address = peer.address.map(|address| address.ip());
        parts.extensions.insert(RequestInfo {
            id: id.as_str().into(),
            secure: peer.secure || proxy::vouches(&self.proxies, address, &parts.headers),
            peer: peer.address,
        });
        let mut response = match self.health.answer(&method, uri.path()) {
            Some(response) => response,
            None if Metrics::is_for(&method, &uri, &parts.headers) => {
                self.measure(peer, &parts.headers).await
            }
            None => self.serve(parts, &mut body).await,
        };
        body.leave(&mut response);
        reply::dress(&mut response, &method, uri.path(), &id, &self.ids);
        let took = start.elapsed();
        metrics::request(&method, response.status(), took);
        // Never the query: it may hold a signature that is still good.
        debug!(
            id,
            %method,
            path = uri.path(),
            status = response.status().as_u16(),
            micros = took.as_micros() as u64,
        );
        response
    }

    /// Answers what needs the store, for as long as it is open.
    async fn serve(&self, parts: Parts, body: &mut Pending) -> Response<Body> {
        let Some(handlers) = self.handlers() else {
            return self.shut();
        };
        let served = async {
            match kms_api::is_for(parts.uri.path()) {
                true => self.administer(&handlers, &parts).await,
                false => self
                    .route(&handlers, parts, body)
                    .await
                    .unwrap_or_else(|response| response),
            }
        };
        let closed = async {
            // Nothing is ever sent: the other end is dropped.
            let _ = handlers.closed.clone().await;
            self.shut()
        };
        futures_lite::future::or(served, closed).await
    }

    fn handlers(&self) -> Option<Rc<Handlers>> {
        let open = self.open.borrow();
        open.as_ref().map(|open| Rc::clone(&open.handlers))
    }

    /// The answer while no store is open.
    fn shut(&self) -> Response<Body> {
        let why = self.health.why_shut();
        failed(S3Error::with_message(S3ErrorCode::ServiceUnavailable, why))
    }

    /// Answers a scrape.
    async fn measure(&self, peer: &Peer, headers: &HeaderMap) -> Response<Body> {
        if !self.metrics.admits(peer, headers) {
            return metrics::refusal();
        }
        let metrics = Arc::clone(&self.metrics);
        let text = strongroom_engine::blocking(move || metrics.render()).await;
        metrics::response(text)
    }

    /// Either way a response; `Err` lets steps end early.
    async fn route(
        &self,
        handlers: &Handlers,
        mut parts: Parts,
        body: &mut Pending,
    ) -> Result<Response<Body>, Response<Body>> {
        let checked = guard::check(&parts, &self.domains)?;
        let host_bucket = guard::host(&parts).and_then(|host| self.domains.bucket(host));
        presign_v2::verify(&parts, host_bucket.as_deref(), &self.secrets)?;
        if let Some(place) = guard::place(&parts, &self.domains) {
            parts.extensions.insert(place);
        }
        if checked.form
            && let Some(place) = parts.extensions.get::<guard::Place>().cloned()
        {
            return form::answer(self, handlers, parts, place, body)
                .await
                .map_err(failed);
        }
        let is_head_of_bucket =
            parts.method == Method::HEAD && checked.target == guard::Target::Bucket;
        let mut content = Body::empty();
        if checked.upload {
            if !body.is_there() && is_plain(&parts.headers) {
                // HTTP/2 says by a flag alone that nothing follows.
                let none = HeaderValue::from_static("0");
                parts.headers.insert(header::CONTENT_LENGTH, none);
            }
            let upload = body.open(&parts.headers, &self.secrets);
            if upload.decoded_length().is_none() && is_plain(&parts.headers) {
                return Err(failed(BodyError::MissingLength.into()));
            }
            parts.extensions.insert(upload);
        } else if body.is_there() && matches!(parts.method, Method::PUT | Method::POST) {
            self.admit(&parts).await?;
            let upload = body.open(&parts.headers, &self.secrets);
            let bytes = gather(&upload, limits::XML_BYTES_MAX)
                .await
                .map_err(|error| failed(error.into()))?;
            // A completion's checksum is that of the object to come.
            let completes = parts.method == Method::POST && checked.target == guard::Target::Object;
            if !completes {
                check_integrity(&parts.headers, &upload.trailers(), &bytes).map_err(failed)?;
            }
            self.unframe(&mut parts, &bytes, &upload.trailers())
                .map_err(failed)?;
            content = Body::from(bytes);
        }
        let method = parts.method.clone();
        let mut response = call(&handlers.s3, Request::from_parts(parts, content)).await;
        ops::finish(&method, &mut response);
        if is_head_of_bucket && let Ok(region) = HeaderValue::try_from(&self.region) {
            let headers = response.headers_mut();
            headers.entry("x-amz-bucket-region").or_insert(region);
        }
        Ok(response)
    }

    /// Answers a key call. It has no body.
    async fn administer(&self, handlers: &Handlers, parts: &Parts) -> Response<Body> {
        let path = parts.uri.path();
        // Older signatures do not cover the query, which is all that a call says.
        let signed = parts.headers.get(header::AUTHORIZATION);
        if !signed.is_some_and(|value| value.as_bytes().starts_with(b"AWS4-HMAC-SHA256 ")) {
            let message = "A key call has to be signed by Signature Version 4.";
            return kms_api::refusal(StatusCode::FORBIDDEN, "AccessDenied", message, path);
        }
        if let Err(response) = self.admit(parts).await {
            return kms_api::translate(response, path);
        }
        match &handlers.kms {
            Some(kms) => kms.answer(&parts.method, path, parts.uri.query()).await,
            None => kms_api::refusal(
                StatusCode::NOT_IMPLEMENTED,
                "NotImplemented",
                "There are no keys here.",
                path,
            ),
        }
    }

    /// Checks the signature of a request before its body is read.
    async fn admit(&self, parts: &Parts) -> Result<(), Response<Body>> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.version_mut() = parts.version;
        *request.headers_mut() = parts.headers.clone();
        let response = call(&self.doorman, request).await;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(response),
        }
    }

    /// Makes the head fit a body that was gathered. The S3 layer would undo the framing once more,
    /// by headers that are signed; so a request that had any is signed anew, in the same name.
    fn unframe(&self, parts: &mut Parts, body: &Bytes, trailers: &HeaderMap) -> S3Result<()> {
        let framed = matches!(Payload::of(&parts.headers), Some(Payload::Chunked { .. }));
        let headers = &mut parts.headers;
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        if !framed {
            return Ok(());
        }
        for name in ["x-amz-decoded-content-length", "x-amz-trailer"] {
            headers.remove(name);
        }
        if let Some(encoding) = headers.remove(header::CONTENT_ENCODING)
            && let Some(rest) = encoding.to_str().ok().and_then(content_encoding)
            && let Ok(rest) = HeaderValue::try_from(rest)
        {
            headers.insert(header::CONTENT_ENCODING, rest);
        }
        for (name, value) in trailers {
            headers.insert(name, value.clone());
        }
        let hash = hex::encode(Sha256::digest(body));
        let authorization = self
            .sign(parts, &hash)
            .and_then(|value| HeaderValue::try_from(value).ok())
            .ok_or_else(|| s3_error!(AccessDenied))?;
        let headers = &mut parts.headers;
        headers.insert(header::AUTHORIZATION, authorization);
        if let Ok(hash) = HeaderValue::try_from(hash) {
            headers.insert("x-amz-content-sha256", hash);
        }
        Ok(())
    }

    fn sign(&self, parts: &Parts, hash: &str) -> Option<String> {
        let text = |name: &str| parts.headers.get(name)?.to_str().ok();
        let authorization = Authorization::parse(text("authorization")?)?;
        let scope = &authorization.scope;
        let secret = (self.secrets)(scope.access_key)?;
        let time = text("x-amz-date")?;
        let headers = [
            ("host", guard::host(parts)?),
            ("x-amz-content-sha256", hash),
            ("x-amz-date", time),
        ];
        let canonical = Canonical {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &headers,
            payload: hash,
            time,
        };
        Some(canonical.authorize(&SigningKey::derive(secret.expose(), scope), scope))
    }
}

/// The service of one connection of a shard.
pub struct Connection {
    edge: Rc<Edge>,
    peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Connection {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (edge, peer) = (self.edge.clone(), self.peer.clone());
        Box::pin(async move { Ok(edge.answer(&peer, request).await) })
    }
}

/// Has the connection closed once the response is out.
fn close_after(response: &mut Response<Body>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// A request's body until somebody wants it.
struct Pending {
    /// The request announced that nothing follows.
    empty: bool,
    source: Option<Source>,
    upload: Option<Upload>,
    /// The client waits for `100 Continue`, which reading sends.
    waits: bool,
    linger: Linger,
}

impl Pending {
    fn new(parts: &Parts, incoming: Incoming, linger: Linger) -> Self {
        let expects = parts.headers.get(header::EXPECT);
        let empty = incoming.is_end_stream();
        Self {
            empty,
            source: (!empty).then(|| Box::pin(incoming) as Source),
            upload: None,
            waits: parts.version == http::Version::HTTP_11
                && expects
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")),
            linger,
        }
    }

    fn is_there(&self) -> bool {
        self.source.is_some()
    }

    fn open(&mut self, headers: &HeaderMap, secrets: &Secrets) -> Upload {
        let source = self.source.take();
        let source = source.unwrap_or_else(|| Box::pin(Nothing));
        let upload = Upload::new(headers, source, |key| secrets(key));
        self.upload = Some(upload.clone());
        upload
    }

    /// Reads a form up to its file.
    async fn form_head(&mut self, boundary: &[u8]) -> Result<(Fields, File), BodyError> {
        self.waits = false;
        let mut head = Head::new(boundary);
        let read = async {
            loop {
                let source = self.source.as_mut().ok_or(BodyError::Form("it is empty"))?;
                match poll_fn(|cx| source.as_mut().poll_frame(cx)).await {
                    None => return Err(BodyError::Form("it ends before its file")),
                    Some(Err(_)) => return Err(BodyError::Connection),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data()
                            && let Some(found) = head.feed(&data)?
                        {
                            return Ok(found);
                        }
                    }
                }
            }
        };
        let read = timeout(limits::BODY_STALL_TIMEOUT, read).await;
        read.unwrap_or(Err(BodyError::Stalled))
    }

    /// The file of the form whose beginning was read.
    fn form_file(&mut self, file: File, most: Option<u64>, allowed: RangeInclusive<u64>) -> Upload {
        let source = self.source.take().unwrap_or_else(|| Box::pin(Nothing));
        let upload = Upload::of_form(source, file, most, allowed);
        self.upload = Some(upload.clone());
        upload
    }

    /// Sees to what is left once there is a response.
    fn leave(&mut self, response: &mut Response<Body>) {
        if self.waits && self.empty {
            // hyper sends no 100 where nothing is to come, and botocore then misreads the next answer on the connection.
            close_after(response);
            return;
        }
        let untouched = self.upload.as_ref().is_none_or(|upload| !upload.touched());
        let taken = self.upload.as_ref().and_then(Upload::take_rest);
        let Some(rest) = self.source.take().or(taken) else {
            return;
        };
        if untouched && self.waits {
            // It has not been told to send, so it mostly will not; then what it sends next is no
            // body, and what it sends anyway is no request. Only a new connection is sure.
            self.linger.set();
            close_after(response);
            return;
        }
        glommio::spawn_local(discard(rest, self.linger.clone())).detach();
    }
}

/// Reads and drops a body, within bounds.
async fn discard(mut rest: Source, linger: Linger) {
    let mut left = limits::DISCARD_BYTES_MAX;
    let whole = timeout(limits::DISCARD_TIMEOUT, async {
        while let Some(Ok(frame)) = poll_fn(|cx| rest.as_mut().poll_frame(cx)).await {
            let length = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return false,
            }
        }
        true
    });
    if whole.await != Some(true) {
        linger.set();
    }
}

async fn call(service: &S3Service, request: Request<Body>) -> Response<Body> {
    match service.call(request).await {
        Ok(response) => response,
        Err(error) => {
            error!(?error, "the S3 layer could not answer");
            failed(s3_error!(InternalError))
        }
    }
}

fn failed(error: S3Error) -> Response<Body> {
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

fn is_plain(headers: &HeaderMap) -> bool {
    !matches!(Payload::of(headers), Some(Payload::Chunked { .. }))
        && !headers.contains_key(header::CONTENT_LENGTH)
}

/// [`Secrets`] as the S3 layer asks for them.
struct Keyring(Secrets);

#[async_trait::async_trait]
impl S3Auth for Keyring {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        (self.0)(access_key).ok_or_else(|| s3_error!(InvalidAccessKeyId))
    }
}

/// No handlers; and no body.
struct Nothing;

impl S3 for Nothing {}

impl http_body::Body for Nothing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        std::task::Poll::Ready(None)
    }
}

/// Takes every request whose signature holds, and lets it pass.
struct Doorman;

#[async_trait::async_trait]
impl S3Route for Doorman {
    fn is_match(&self, _: &Method, _: &Uri, _: &HeaderMap, _: &mut http::Extensions) -> bool {
        true
    }

    async fn call(&self, _: S3Request<Body>) -> S3Result<S3Response<Body>> {
        Ok(S3Response::with_status(
            Body::empty(),
            StatusCode::NO_CONTENT,
        ))
    }
}
