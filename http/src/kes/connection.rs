//! One core's connections to KES servers: HTTP/1.1 over TLS, kept alive, bounded, each exchange with a deadline.
//!
//! - A connection carries one exchange at a time and is kept for the next one only when the answer was read to its end.
//! - It is used again only for a short while: shorter than servers keep idle ones, so a request rarely meets a connection
//!   that is just being closed; one that was not sent because of it goes out on a new one.
//! - Names are looked up on a thread of their own, for a resolver that hangs must not hold a core.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_rustls::TlsConnector;
use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use glommio::net::TcpStream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as _;
use hyper::client::conn::http1::{Builder, SendRequest};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use strongroom_engine::Permits;
use strongroom_kms::{Connection, Endpoint, LocalFuture, Request, Response, SendError};
use zeroize::Zeroizing;

use super::tls::KesTls;
use crate::conn::rt::timeout;
use crate::conn::socket::Socket;
use crate::conn::transport::Transport;
use crate::limits;

const AGENT: &str = concat!("strongroom/", env!("CARGO_PKG_VERSION"));

type Body = Full<Bytes>;
type Found = Result<Vec<SocketAddr>, String>;

/// The connections of one core.
pub struct Connections {
    tls: Arc<KesTls>,
    servers: Vec<(Endpoint, Server)>,
}

struct Server {
    permits: Rc<Permits>,
    idle: RefCell<Vec<Idle>>,
    /// A look-up under way, for all who wait for it.
    lookup: RefCell<Option<Shared<LocalBoxFuture<'static, Found>>>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
    /// What it was made with: connections of earlier certificates are not used again.
    config: Arc<ClientConfig>,
}

impl Connections {
    #[must_use]
    pub fn new(tls: Arc<KesTls>, endpoints: &[Endpoint]) -> Self {
        let server = |endpoint: &Endpoint| {
            let server = Server {
                permits: Permits::new(limits::KES_CONNECTIONS_MAX),
                idle: RefCell::default(),
                lookup: RefCell::default(),
            };
            (endpoint.clone(), server)
        };
        Self {
            tls,
            servers: endpoints.iter().map(server).collect(),
        }
    }

    fn server(&self, endpoint: &Endpoint) -> &Server {
        let found = self.servers.iter().find(|(held, _)| held == endpoint);
        &found
            .expect("the client asks the endpoints it was made with")
            .1
    }
}

impl Connection for Connections {
    fn send<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        request: &'a Request,
        deadline: Instant,
    ) -> LocalFuture<'a, Result<Response, SendError>> {
        Box::pin(async move {
            let stage = Cell::new("waiting for a connection to be free");
            let left = deadline.saturating_duration_since(Instant::now());
            let exchange = self.exchange(endpoint, request, &stage);
            match timeout(left, exchange).await {
                Some(done) => done.map_err(SendError),
                None => Err(SendError(format!("no time left while {}", stage.get()))),
            }
        })
    }

    fn sleep(&self, time: Duration) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            glommio::timer::sleep(time).await;
        })
    }
}

impl Connections {
    async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        stage: &Cell<&'static str>,
    ) -> Result<Response, String> {
        let server = self.server(endpoint);
        let _permit = server.permits.acquire().await;
        let config = self.tls.config();
        let mut message = message(endpoint, request)?;
        while let Some(mut sender) = server.kept(&config) {
            stage.set("waiting for the answer");
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(message).await {
                Ok(answer) => return server.finish(answer, request, sender, config).await,
                Err(mut error) => match error.take_message() {
                    // The server closed it before anything was sent.
                    Some(unsent) => message = unsent,
                    None => return Err(explain(&error.into_error())),
                },
            }
        }
        let mut sender = server.open(endpoint, &config, stage).await?;
        stage.set("waiting for the answer");
        let answer = sender
            .send_request(message)
            .await
            .map_err(|e| explain(&e))?;
        server.finish(answer, request, sender, config).await
    }
}

impl Server {
    /// A connection that was kept and can still be used.
    fn kept(&self, config: &Arc<ClientConfig>) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|one| {
            one.since.elapsed() < limits::KES_IDLE_TIME
                && Arc::ptr_eq(&one.config, config)
                && !one.sender.is_closed()
        });
        idle.pop().map(|one| one.sender)
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        config: &Arc<ClientConfig>,
        stage: &Cell<&'static str>,
    ) -> Result<SendRequest<Body>, String> {
        stage.set("looking its name up");
        let addresses = self.addresses(endpoint).await?;
        stage.set("connecting");
        let stream = connect(&addresses).await?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        stage.set("shaking hands");
        let name = ServerName::try_from(endpoint.host.clone())
            .map_err(|_| "its name is none that a certificate can hold".to_owned())?;
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name, Socket::new(stream))
            .await
            .map_err(|e| format!("TLS: {e}"))?;
        let (sender, connection) = Builder::new()
            .max_buf_size(limits::KES_BUFFER_BYTES)
            .handshake::<_, Body>(Transport::Client(Box::new(stream)))
            .await
            .map_err(|e| explain(&e))?;
        // It ends when its sender is dropped, or with the server's end.
        glommio::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection to KES ended: {error}");
            }
        })
        .detach();
        Ok(sender)
    }

    async fn addresses(&self, endpoint: &Endpoint) -> Found {
        if let Ok(address) = endpoint.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, endpoint.port)]);
        }
        let under_way = self.lookup.borrow().clone();
        let lookup = match under_way {
            Some(lookup) => lookup,
            None => {
                let lookup = look_up(endpoint.clone())?.boxed_local().shared();
                *self.lookup.borrow_mut() = Some(lookup.clone());
                lookup
            }
        };
        let found = lookup.clone().await;
        // Whoever is first to see the end clears it, unless the next one is under way already.
        let mut held = self.lookup.borrow_mut();
        if held.as_ref().is_some_and(|held| held.ptr_eq(&lookup)) {
            *held = None;
        }
        found
    }

    /// Reads the answer, and keeps the connection if all of it came.
    async fn finish(
        &self,
        answer: hyper::Response<hyper::body::Incoming>,
        request: &Request,
        sender: SendRequest<Body>,
        config: Arc<ClientConfig>,
    ) -> Result<Response, String> {
        let (head, mut body) = answer.into_parts();
        let most = request.answer_bytes_max;
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        // In one piece: a buffer that grows leaves copies of keys behind.
        let room = announced.max(limits::KES_ANSWER_BYTES_USUAL).min(most);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| explain(&e))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > most {
                return Err(format!("an answer of more than {most} bytes"));
            }
            extend(&mut bytes, &data);
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < limits::KES_CONNECTIONS_MAX {
            let since = Instant::now();
            idle.push(Idle {
                sender,
                since,
                config,
            });
        }
        let content_type = head.headers.get(CONTENT_TYPE);
        Ok(Response {
            status: head.status.as_u16(),
            content_type: content_type
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            body: bytes,
        })
    }
}

fn message(endpoint: &Endpoint, request: &Request) -> Result<hyper::Request<Body>, String> {
    let mut message = hyper::Request::builder()
        .method(request.method)
        .uri(&request.path)
        .header(HOST, endpoint.authority())
        .header(USER_AGENT, AGENT);
    let body = match &request.body {
        Some(body) => {
            message = message.header(CONTENT_TYPE, "application/json");
            Bytes::from_owner(body.clone())
        }
        None => Bytes::new(),
    };
    if request.method != "GET" {
        message = message.header(CONTENT_LENGTH, body.len());
    }
    message
        .body(Full::new(body))
        .map_err(|e| format!("no request can be made for it: {e}"))
}

/// Appends, wiping what is left behind when the buffer has to grow.
fn extend(bytes: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if bytes.capacity() - bytes.len() < data.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity(2 * (bytes.len() + data.len())));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(data);
}

/// The first address that answers. Only the last one gets all the time there is.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut refused = "its name has no address".to_owned();
    for (n, address) in addresses.iter().enumerate() {
        let attempt = TcpStream::connect(*address);
        let outcome = match n + 1 == addresses.len() {
            true => Some(attempt.await),
            false => timeout(limits::KES_ADDRESS_PATIENCE, attempt).await,
        };
        match outcome {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => refused = io_reason(error),
            None => {}
        }
    }
    Err(refused)
}

fn io_reason(error: glommio::GlommioError<()>) -> String {
    match error {
        glommio::GlommioError::IoError(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Asks the system's resolver, which may take its time, on a thread that may wait for it.
fn look_up(endpoint: Endpoint) -> Result<impl Future<Output = Found>, String> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("kes-lookup".into())
        .spawn(move || {
            let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
            let found = found.map(Iterator::collect).map_err(|e| e.to_string());
            // Whoever waited may have gone.
            let _ = sender.send(found);
        })
        .map_err(|e| format!("no thread to look its name up: {e}"))?;
    Ok(async {
        match receiver.await {
            Ok(found) => found,
            Err(_) => Err("its name could not be looked up".to_owned()),
        }
    })
}

/// hyper's error with what is behind it.
fn explain(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kes::tls::Trusted;
    use glommio::LocalExecutor;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use socket2::{Domain, Socket as Listener, Type};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use strongroom_kms::{ApiKey, KesCredentials};

    const API_KEY: &str = "kes:v1:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw";

    /// Trusts `pem` alone.
    fn connections(dir: &std::path::Path, pem: &str, endpoint: &Endpoint) -> Connections {
        let file = dir.join("trusted.crt");
        std::fs::write(&file, pem).unwrap();
        let key = ApiKey::parse(API_KEY, "X").ok().unwrap();
        let tls = KesTls::open(KesCredentials::ApiKey(key), Trusted::Path(file)).unwrap();
        Connections::new(Arc::new(tls), std::slice::from_ref(endpoint))
    }

    fn certificate() -> (String, ServerConfig) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let made = params.self_signed(&key).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        (made.pem(), config)
    }

    fn at(address: SocketAddr) -> Endpoint {
        Endpoint {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }

    fn request() -> Request {
        Request {
            method: "GET",
            path: "/v1/status".to_owned(),
            body: None,
            answer_bytes_max: 1000,
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(500)
    }

    #[test]
    fn a_host_that_takes_no_connection_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        // The queue is full once these are in it: what comes after gets no answer.
        let waiting = Duration::from_millis(100);
        let _full: Vec<_> = (0..4)
            .map(|_| std::net::TcpStream::connect_timeout(&address, waiting))
            .collect();
        let endpoint = at(address);
        let connections = connections(dir.path(), &certificate().0, &endpoint);
        LocalExecutor::default().run(async {
            for _ in 0..3 {
                let request = request();
                let refused = connections.send(&endpoint, &request, soon()).await;
                let reason = refused.err().unwrap().0;
                assert!(reason.contains("while connecting"), "{reason}");
            }
        });
    }

    /// One exchange after another goes over one connection, and over another one when the server closed it.
    #[test]
    fn connections_are_kept_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (pem, config) = certificate();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = at(listener.local_addr().unwrap());
        let opened = Arc::new(AtomicUsize::new(0));
        std::thread::spawn({
            let (opened, config) = (Arc::clone(&opened), Arc::new(config));
            move || {
                for socket in listener.incoming().flatten() {
                    opened.fetch_add(1, Ordering::SeqCst);
                    let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                    let mut stream = rustls::StreamOwned::new(session, socket);
                    // Two exchanges, and it closes.
                    for _ in 0..2 {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let mut byte = [0];
                            if stream.read(&mut byte).unwrap_or(0) == 0 {
                                break;
                            }
                            head.push(byte[0]);
                        }
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        let _ = stream.write_all(answer);
                        let _ = stream.flush();
                    }
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        let connections = connections(dir.path(), &pem, &endpoint);
        LocalExecutor::default().run(async {
            for n in 0..6 {
                let request = request();
                let deadline = Instant::now() + Duration::from_secs(10);
                let answer = connections.send(&endpoint, &request, deadline).await;
                let answer = answer.unwrap_or_else(|e| panic!("{n}: {}", e.0));
                assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
                glommio::timer::sleep(Duration::from_millis(20)).await;
            }
        });
        assert_eq!(opened.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn names_that_do_not_resolve_and_ports_that_refuse_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let refusing = at(closed.local_addr().unwrap());
        drop(closed);
        let unknown = Endpoint {
            host: "kes.invalid".to_owned(),
            port: 7373,
        };
        for (endpoint, says) in [(refusing, "refused"), (unknown, "")] {
            let connections = connections(dir.path(), &certificate().0, &endpoint);
            LocalExecutor::default().run(async {
                let request = request();
                let refused = connections.send(&endpoint, &request, soon()).await;
                let reason = refused.err().unwrap().0;
                assert!(reason.contains(says), "{reason}");
            });
        }
    }
}
