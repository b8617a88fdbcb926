//! The key server between its connections and what answers: bodies are read within bounds, time is limited, and what waits
//! for the disk does so on another thread.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_lite::ready;
use glommio::timer::Timer;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls::pki_types::CertificateDer;
use strongroom_kms::{
    KesServer, LogReader, RequestBody, ServerBody, ServerRequest, ServerResponse,
};
use zeroize::Zeroizing;

use crate::conn::rt::timeout;
use crate::conn::serve::Peer;
use crate::limits;

/// The service of one connection.
pub struct Connection {
    server: Arc<KesServer>,
    peer: Peer,
}

/// A request that is not answered: the connection ends.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    #[error("the request took longer than its route allows")]
    Slow,
    #[error("its body ended early: {0}")]
    Body(#[from] hyper::Error),
}

impl Connection {
    pub fn new(server: Arc<KesServer>, peer: Peer) -> Self {
        Self { server, peer }
    }
}

impl hyper::service::Service<Request<Incoming>> for Connection {
    type Response = Response<Answer>;
    type Error = Gone;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Gone>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (server, peer) = (Arc::clone(&self.server), self.peer.clone());
        Box::pin(async move {
            let limits = server.limits(request.uri().path());
            let answer = respond(server, &peer, limits, request);
            match limits.timeout {
                Some(limit) => timeout(limit, answer).await.unwrap_or(Err(Gone::Slow)),
                None => answer.await,
            }
        })
    }
}

async fn respond(
    server: Arc<KesServer>,
    peer: &Peer,
    limits: strongroom_kms::ServerLimits,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Gone> {
    let (parts, incoming) = request.into_parts();
    let asked = Asked {
        server,
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        peer: peer
            .address
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip()),
        certificates: Arc::clone(&peer.certificates),
        body: read(incoming, limits.body_bytes_max).await?,
    };
    let too_long = asked.body.is_none();
    let answer = match limits.may_block {
        true => strongroom_engine::blocking(move || asked.handle()).await,
        false => asked.handle(),
    };
    let mut response = dress(answer);
    if too_long {
        // The client is still sending: it is to see the answer, not a reset.
        peer.linger.set();
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response)
}

/// Reads a body; none when it is longer than it may be. Where none may be, none is read.
async fn read(
    mut incoming: Incoming,
    bytes_max: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>, hyper::Error> {
    if bytes_max == 0 {
        return Ok(Some(Zeroizing::default()));
    }
    let announced = incoming.size_hint().lower();
    // One allocation of the final size: a growing buffer leaves keys behind.
    let room = match usize::try_from(announced) {
        Ok(0) => bytes_max,
        Ok(announced) if announced <= bytes_max => announced,
        _ => return Ok(None),
    };
    let mut body = Zeroizing::new(Vec::with_capacity(if incoming.is_end_stream() {
        0
    } else {
        room
    }));
    while let Some(frame) = incoming.frame().await {
        if let Some(data) = frame?.data_ref() {
            if body.len() + data.len() > bytes_max {
                return Ok(None);
            }
            body.extend_from_slice(data);
        }
    }
    Ok(Some(body))
}

/// A request with all it takes to answer it, on whichever thread.
struct Asked {
    server: Arc<KesServer>,
    method: String,
    path: String,
    peer: IpAddr,
    certificates: Arc<[CertificateDer<'static>]>,
    body: Option<Zeroizing<Vec<u8>>>,
}

impl Asked {
    fn handle(&self) -> ServerResponse {
        let certificates: Vec<&[u8]> = self.certificates.iter().map(AsRef::as_ref).collect();
        self.server.handle(&ServerRequest {
            method: &self.method,
            path: &self.path,
            peer: self.peer,
            certificates: &certificates,
            body: match &self.body {
                Some(body) => RequestBody::Whole(body),
                None => RequestBody::TooLong,
            },
        })
    }
}

fn dress(answer: ServerResponse) -> Response<Answer> {
    let mut response = Response::new(match answer.body {
        ServerBody::Bytes(bytes) => {
            Answer::Whole(Some(Bytes::from_owner(bytes)).filter(|b| !b.is_empty()))
        }
        ServerBody::Stream(reader) => Answer::Lines {
            reader,
            next: Timer::new(limits::LOG_POLL),
        },
    });
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The body of an answer.
pub enum Answer {
    Whole(Option<Bytes>),
    /// Lines of a log as they come, until the client goes away.
    Lines {
        reader: LogReader,
        next: Timer,
    },
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Lines { reader, next } => loop {
                let lines = reader.take();
                if !lines.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(lines.into()))));
                }
                ready!(Pin::new(&mut *next).poll(cx));
                *next = Timer::new(limits::LOG_POLL);
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Lines { .. } => http_body::SizeHint::default(),
        }
    }
}
