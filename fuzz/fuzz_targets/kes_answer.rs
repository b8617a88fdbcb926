//! Any answer of a KES server to each call of the client: an error, or a data key that is one.
#![no_main]

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use strongroom_kms::{Connection, Endpoint, KesClient, LocalFuture, Request, Response, SendError};
use zeroize::Zeroizing;

struct Says {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Connection for Says {
    fn send<'a>(
        &'a self,
        _: &'a Endpoint,
        _: &'a Request,
        _: Instant,
    ) -> LocalFuture<'a, Result<Response, SendError>> {
        Box::pin(async {
            Ok(Response {
                status: self.status,
                content_type: self.content_type.to_owned(),
                body: Zeroizing::new(self.body.clone()),
            })
        })
    }

    fn sleep(&self, _: Duration) -> LocalFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing waits"),
    }
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (status, json, body) = input;
    let endpoint = Endpoint {
        host: "kes".to_owned(),
        port: 7373,
    };
    let says = Says {
        status: [200, 400, 403, 404, 500, 501][usize::from(status % 6)],
        content_type: if json {
            "application/json"
        } else {
            "text/plain"
        },
        body: body.to_vec(),
    };
    let status = says.status;
    let client = KesClient::new(Rc::new(says), vec![endpoint]);
    let deadline = Instant::now() + Duration::from_secs(60);
    if let Ok((plain, sealed)) = now(client.generate("k", b"{}", deadline)) {
        assert!(status == 200 && plain.expose() != &[0; 32] && sealed.len() > 32);
    }
    if let Ok(plain) = now(client.decrypt("k", b"sealed", b"{}", deadline)) {
        assert!(status == 200 && plain.expose() != &[0; 32]);
    }
    let _ = now(client.describe_key("k", deadline));
    let _ = now(client.list_keys("", deadline));
    let _ = now(client.create_key("k", deadline));
    let _ = now(client.delete_key("k", deadline));
    let _ = now(client.status(deadline));
});
