//! `GET /metrics`: what this server does, for Prometheus.
//!
//! - Each core counts in cells of its own, which nobody else writes; a scrape adds them up.
//! - Whoever asks from this machine is answered; others need the token. A request that a proxy passed on is not from this machine.
//! - No bucket, object or user is named. Keys are counted, not named.

mod counters;
mod store;
mod text;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use s3s::Body;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::conn::serve::Peer;

pub use counters::{Connection, received, request, sent};
pub use store::families as store_families;
pub use text::Text;

/// What a scrape says, and whom it is told. Shared by all shards.
pub struct Metrics {
    token: Option<Zeroizing<String>>,
    /// Writes what is counted elsewhere. May block.
    others: Box<dyn Fn(&mut Text) + Send + Sync>,
}

impl Metrics {
    /// Those who are not on this machine have to show `token`; without one they are refused.
    pub fn new(
        token: Option<Zeroizing<String>>,
        others: impl Fn(&mut Text) + Send + Sync + 'static,
    ) -> Self {
        Metrics {
            token,
            others: Box::new(others),
        }
    }

    /// Whether a request is a scrape. A bucket may be called `metrics` too: what is signed, or has a query, is for it.
    pub fn is_for(method: &Method, uri: &http::Uri, headers: &HeaderMap) -> bool {
        let signed = headers
            .get(header::AUTHORIZATION)
            .is_some_and(|value| bearer(value).is_none());
        (method == Method::GET || method == Method::HEAD)
            && uri.path() == "/metrics"
            && uri.query().is_none()
            && !signed
    }

    /// Whether this peer may know.
    pub fn admits(&self, peer: &Peer, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(bearer);
        if let (Some(token), Some(shown)) = (&self.token, shown) {
            return token.as_bytes().ct_eq(shown).into();
        }
        let passed_on = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
        let here = peer.address.is_some_and(|a| a.ip().is_loopback());
        here && shown.is_none() && !passed_on.iter().any(|name| headers.contains_key(*name))
    }

    /// All families. May block.
    pub fn render(&self) -> String {
        let mut text = Text::default();
        counters::families(&mut text);
        (self.others)(&mut text);
        text.end()
    }
}

/// The answer to a scrape.
pub fn response(text: String) -> Response<Body> {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    plain(StatusCode::OK, kind, text)
}

/// The answer to somebody who may not know.
pub fn refusal() -> Response<Body> {
    let why = "Metrics are for this machine, or for who shows the token of --metrics-token-file.\n";
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    plain(StatusCode::FORBIDDEN, kind, why.to_owned())
}

fn plain(status: StatusCode, kind: HeaderValue, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer {
            address: Some(address.parse().unwrap()),
            ..Peer::default()
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            })
            .collect()
    }

    #[test]
    fn this_machine_is_told_and_others_need_the_token() {
        let with = Metrics::new(Some("let me in".to_owned().into()), |_| ());
        let without = Metrics::new(None, |_| ());
        let (here, there) = (peer("127.0.0.1:5"), peer("10.1.2.3:5"));
        let none = headers(&[]);
        let right = headers(&[("authorization", "Bearer let me in")]);
        let wrong = headers(&[("authorization", "bearer let me")]);
        for metrics in [&with, &without] {
            assert!(metrics.admits(&here, &none));
            assert!(metrics.admits(&peer("[::1]:5"), &none));
            assert!(!metrics.admits(&there, &none));
            assert!(!metrics.admits(&there, &wrong));
            assert!(!metrics.admits(&here, &wrong));
            assert!(!metrics.admits(&here, &headers(&[("x-forwarded-for", "10.1.2.3")])));
            assert!(!metrics.admits(&Peer::default(), &none));
        }
        assert!(with.admits(&there, &right));
        assert!(!without.admits(&there, &right));
    }

    #[test]
    fn a_bucket_of_that_name_can_still_be_used() {
        let is = |method: &str, uri: &str, pairs| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            Metrics::is_for(&method, &uri.parse().unwrap(), &headers(pairs))
        };
        assert!(is("GET", "/metrics", &[]));
        assert!(is("HEAD", "/metrics", &[("authorization", "Bearer x")]));
        assert!(!is("GET", "/metrics?list-type=2", &[]));
        assert!(!is("GET", "/metrics/", &[]));
        assert!(!is("PUT", "/metrics", &[]));
        assert!(!is(
            "GET",
            "/metrics",
            &[("authorization", "AWS4-HMAC-SHA256 x")]
        ));
    }
}
