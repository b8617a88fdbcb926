//! A shard's accept loop and the life of one connection: handshake, requests, end.

use std::future::{Future, poll_fn};
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_rustls::rustls::ServerConfig;
use futures_rustls::rustls::pki_types::CertificateDer;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper::{Request, Response};
use tracing::{debug, warn};

use super::drain::{Drain, DrainGuard};
use super::rt::{LocalTasks, LocalTimer, timeout};
use super::socket::{Linger, Socket};
use super::tls;
use super::transport::Transport;
use crate::{limits, metrics};

/// What a service may know of the connection it serves.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The other end, if the kernel could still tell.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// The certificates it presented, where TLS asks for any.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Makes the connection close gently; see [`Linger`].
    pub linger: Linger,
}

/// What one shard needs to serve its listener.
pub struct Shard<M> {
    /// TLS, unless the server was told to do without.
    pub tls: Option<Arc<ServerConfig>>,
    /// Ends the loop and the connections.
    pub drain: Drain,
    /// Makes the service of each new connection.
    pub make: M,
}

/// Accepts and serves until the drain begins. Connections may outlive this call: await the drain.
pub async fn serve<M, S, B>(listener: TcpListener, shard: Shard<M>)
where
    M: Fn(Peer) -> S + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = super::listen::adopt(listener);
    // Records are sealed and opened here, with keys that rustls makes.
    let tls = shard.tls.map(|config| {
        let mut config = ServerConfig::clone(&config);
        config.enable_secret_extraction = true;
        Arc::new(config)
    });
    let make = Rc::new(shard.make);
    loop {
        let accepted = futures_lite::future::or(
            async {
                shard.drain.begun().await;
                None
            },
            async {
                shard.drain.below(limits::CONNECTIONS_PER_SHARD_MAX).await;
                Some(listener.accept().await)
            },
        );
        let stream = match accepted.await {
            None => return,
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                warn!(%error, "cannot accept a connection");
                glommio::timer::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small responses must not wait for the peer's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "the connection is gone already");
            continue;
        }
        let guard = shard.drain.guard();
        let address = stream.peer_addr().ok();
        let tls = tls.clone();
        let socket = Socket::new(stream);
        let make = Rc::clone(&make);
        glommio::spawn_local(async move {
            let _counted = metrics::Connection::open();
            let (secure, linger) = (tls.is_some(), socket.linger());
            if let Some(transport) = open(socket, tls, &guard).await {
                let service = make(Peer {
                    address,
                    secure,
                    certificates: transport.peer_certificates(),
                    linger,
                });
                let done = converse(transport, service, &guard).await;
                if let Err(error) = done {
                    debug!(?address, %error, "connection ended");
                }
            }
        })
        .detach();
    }
}

async fn open(
    socket: Socket,
    tls: Option<Arc<ServerConfig>>,
    guard: &DrainGuard,
) -> Option<Transport> {
    let Some(config) = tls else {
        return Some(Transport::Plain(socket));
    };
    let handshake = timeout(limits::HANDSHAKE_TIMEOUT, tls::accept(socket, config));
    let drained = async {
        guard.begun().await;
        None
    };
    match futures_lite::future::or(handshake, drained).await {
        Some(Ok(stream)) => Some(Transport::Tls(Box::new(stream))),
        Some(Err(error)) => {
            debug!(%error, "TLS handshake failed");
            None
        }
        None => None,
    }
}

async fn converse<S, B>(transport: Transport, service: S, guard: &DrainGuard) -> hyper::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // The two connection types share no trait, so the loop is a macro.
    macro_rules! until_drained {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            let mut drained = pin!(guard.begun());
            let mut told = false;
            poll_fn(|cx| {
                if !told && drained.as_mut().poll(cx).is_ready() {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                connection.as_mut().poll(cx)
            })
            .await
        }};
    }
    if transport.is_h2() {
        let mut h2 = http2::Builder::new(LocalTasks);
        h2.timer(LocalTimer)
            .initial_stream_window_size(limits::H2_STREAM_WINDOW)
            .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
            .max_concurrent_streams(limits::H2_STREAMS_MAX)
            .max_header_list_size(limits::HEADER_BYTES_MAX as u32)
            .max_send_buf_size(limits::H2_SEND_BUFFER)
            .keep_alive_interval(limits::H2_PING_INTERVAL)
            .keep_alive_timeout(limits::H2_PING_TIMEOUT);
        until_drained!(h2.serve_connection(transport, service))
    } else {
        let mut h1 = http1::Builder::new();
        h1.timer(LocalTimer)
            .header_read_timeout(limits::HEADER_TIMEOUT)
            .max_headers(limits::HEADERS_MAX)
            .max_header_size(limits::HEADER_BYTES_MAX)
            .max_buf_size(limits::READ_BUFFER_BYTES)
            .writev(true);
        until_drained!(h1.serve_connection(transport, service))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::thread::JoinHandle;

    /// A shard of its own thread, serving what `make` makes until it is stopped.
    pub struct Server {
        pub address: SocketAddr,
        stop: std::sync::mpsc::Sender<()>,
        thread: Option<JoinHandle<()>>,
    }

    impl Server {
        pub fn start<M, S, B>(
            tls: Option<Arc<ServerConfig>>,
            setup: impl FnOnce() -> M + Send + 'static,
        ) -> Self
        where
            M: Fn(Peer) -> S + 'static,
            S: Service<Request<Incoming>, Response = Response<B>> + 'static,
            S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
            B: hyper::body::Body + 'static,
            B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        {
            let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
            let listener = super::super::bind(any_port, 1).unwrap().remove(0);
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                shard().run(async move {
                    let drain = Drain::new();
                    let watch = Rc::new(drain.clone());
                    glommio::spawn_local(async move {
                        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                            glommio::timer::sleep(std::time::Duration::from_millis(5)).await;
                        }
                        watch.begin();
                    })
                    .detach();
                    let make = setup();
                    let shard = Shard {
                        tls,
                        drain: drain.clone(),
                        make,
                    };
                    serve(listener, shard).await;
                    drain.below(1).await;
                });
            });
            Self {
                address,
                stop,
                thread: Some(thread),
            }
        }

        /// Begins the drain without waiting for its end.
        pub fn begin_drain(&self) {
            self.stop.send(()).unwrap();
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.stop.send(());
            let ended = self.thread.take().unwrap().join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }

    /// A small executor for tests.
    pub fn shard() -> glommio::LocalExecutor {
        glommio::LocalExecutorBuilder::default()
            .io_memory(256 * 1024)
            .ring_depth(64)
            .make()
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Server;
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::Frame;
    use std::convert::Infallible;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    type Reply = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

    /// `/big`: many frames. `/slow`: a while, then a word. `/refuse`: 403 at once, body unread.
    /// Anything else: the body back.
    async fn answer(peer: Peer, request: Request<Incoming>) -> Result<Reply, hyper::Error> {
        match request.uri().path() {
            "/big" => {
                let frames = (0..200u32).map(|i| {
                    let frame = Bytes::from(vec![i as u8; 1000 * (i as usize % 70 + 1)]);
                    Ok::<_, Infallible>(Frame::data(frame))
                });
                let body = StreamBody::new(futures_lite::stream::iter(frames));
                Ok(Response::new(body.boxed_unsync()))
            }
            "/slow" => {
                glommio::timer::sleep(Duration::from_millis(200)).await;
                Ok(Response::new(Full::from("slowly").boxed_unsync()))
            }
            "/refuse" => {
                peer.linger.set();
                let mut reply = Response::new(Full::from("no").boxed_unsync());
                *reply.status_mut() = hyper::StatusCode::FORBIDDEN;
                Ok(reply)
            }
            _ => {
                let body = request.into_body().collect().await?.to_bytes();
                Ok(Response::new(Full::from(body).boxed_unsync()))
            }
        }
    }

    fn server() -> Server {
        Server::start(None, || {
            |peer: Peer| hyper::service::service_fn(move |request| answer(peer.clone(), request))
        })
    }

    fn read_reply(stream: &mut impl BufRead) -> (String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(
                stream.read_line(&mut head).unwrap(),
                0,
                "closed after {head:?}"
            );
        }
        let mut body = Vec::new();
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .map(|l| l.parse::<u64>().unwrap());
        match length {
            Some(length) => drop(stream.take(length).read_to_end(&mut body).unwrap()),
            None => loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let size = u64::from_str_radix(line.trim(), 16).unwrap();
                stream.take(size).read_to_end(&mut body).unwrap();
                stream.read_line(&mut line).unwrap();
                if size == 0 {
                    break;
                }
            },
        }
        (head, body)
    }

    #[test]
    fn bodies_pass_both_ways_and_the_connection_stays() {
        let server = server();
        let mut stream = BufReader::new(TcpStream::connect(server.address).unwrap());
        let data: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        for _ in 0..2 {
            let head = format!(
                "PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
                data.len()
            );
            stream.get_mut().write_all(head.as_bytes()).unwrap();
            stream.get_mut().write_all(&data).unwrap();
            let (head, body) = read_reply(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert!(body == data);
        }
        // Slowly read, so that the server meets a full socket.
        stream
            .get_mut()
            .write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let (_, body) = read_reply(&mut stream);
        let expected: Vec<u8> = (0..200u32)
            .flat_map(|i| vec![i as u8; 1000 * (i as usize % 70 + 1)])
            .collect();
        assert!(body == expected);
    }

    #[test]
    fn drain_closes_idle_connections_at_once_and_busy_ones_after_their_response() {
        let server = server();
        let mut idle = BufReader::new(TcpStream::connect(server.address).unwrap());
        idle.get_mut()
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        read_reply(&mut idle);
        let mut silent = TcpStream::connect(server.address).unwrap();
        let mut busy = BufReader::new(TcpStream::connect(server.address).unwrap());
        busy.get_mut()
            .write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(60));
        let start = Instant::now();
        server.begin_drain();
        assert_eq!(idle.read(&mut [0]).unwrap(), 0);
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        assert!(
            start.elapsed() < Duration::from_millis(120),
            "{:?}",
            start.elapsed()
        );
        let (head, body) = read_reply(&mut busy);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(body, b"slowly");
        assert_eq!(busy.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_refused_upload_sees_its_status_and_not_a_reset() {
        let server = server();
        for _ in 0..5 {
            let mut stream = TcpStream::connect(server.address).unwrap();
            let head = "PUT /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            // All of it is written before anything is read, as many clients do.
            stream.write_all(&vec![0; 8_000_000]).unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
        }
    }
}
