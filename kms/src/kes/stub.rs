//! A scripted key service for tests, with a clock of its own.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::client::{Connection, KesClient, LocalFuture, Request, Response, SendError};
use crate::settings::Endpoint;

pub(crate) type Answer = Result<(u16, &'static str, Vec<u8>), &'static str>;

pub(crate) type Script = Box<dyn FnMut(&str, &Request) -> Answer>;

/// A service whose clock moves only when the client waits, or when an answer takes its time.
pub(crate) struct Stub {
    pub(crate) start: Instant,
    pub(crate) passed: Cell<Duration>,
    pub(crate) sent: RefCell<Vec<(String, String, Vec<u8>)>>,
    pub(crate) pauses: RefCell<Vec<Duration>>,
    pub(crate) answer: RefCell<Script>,
    pub(crate) takes: Cell<Duration>,
}

impl Stub {
    pub(crate) fn new(answer: impl FnMut(&str, &Request) -> Answer + 'static) -> Rc<Stub> {
        Rc::new(Stub {
            start: Instant::now(),
            passed: Cell::default(),
            sent: RefCell::default(),
            pauses: RefCell::default(),
            answer: RefCell::new(Box::new(answer)),
            takes: Cell::default(),
        })
    }

    pub(crate) fn client(self: &Rc<Self>, endpoints: u16) -> KesClient {
        let endpoint = |i| Endpoint {
            host: format!("kes{i}"),
            port: 7373,
        };
        KesClient::new(
            Rc::clone(self) as Rc<dyn Connection>,
            (0..endpoints).map(endpoint).collect(),
        )
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.sent
            .borrow()
            .iter()
            .map(|(host, ..)| host.clone())
            .collect()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.now() + Duration::from_secs(5)
    }
}

impl Connection for Stub {
    fn send<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        request: &'a Request,
        deadline: Instant,
    ) -> LocalFuture<'a, Result<Response, SendError>> {
        let line = format!("{} {}", request.method, request.path);
        let body = request
            .body
            .as_ref()
            .map(|body| body.to_vec())
            .unwrap_or_default();
        self.sent
            .borrow_mut()
            .push((endpoint.host.clone(), line, body));
        let left = deadline.saturating_duration_since(self.now());
        self.passed
            .set(self.passed.get() + self.takes.get().min(left));
        let answer = if self.takes.get() > left {
            Err("time over")
        } else {
            (self.answer.borrow_mut())(&endpoint.host, request)
        };
        Box::pin(async move {
            match answer {
                Ok((status, content_type, body)) => Ok(Response {
                    status,
                    content_type: content_type.to_owned(),
                    body: Zeroizing::new(body),
                }),
                Err(why) => Err(SendError(why.to_owned())),
            }
        })
    }

    fn sleep(&self, time: Duration) -> LocalFuture<'_, ()> {
        self.pauses.borrow_mut().push(time);
        self.passed.set(self.passed.get() + time);
        Box::pin(async {})
    }

    fn now(&self) -> Instant {
        self.start + self.passed.get()
    }
}

pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the stub never waits"),
    }
}

pub(crate) fn json(status: u16, body: &str) -> Answer {
    Ok((status, "application/json", body.as_bytes().to_vec()))
}
