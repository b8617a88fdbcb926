//! Health, for whoever restarts or routes: answered without credentials, before anything else.
//!
//! *Live* means that S3 requests are served, which is after recovery. *Ready* adds nothing to that:
//! a key service that is down or sealed stops what needs a key, not the server, so it is told in
//! the body and does not take the server out of rotation.

use std::sync::atomic::{AtomicBool, Ordering};

use http::{Method, Response, StatusCode, header};
use s3s::Body;

/// What the health routes report. Shared by all shards.
pub struct Health {
    live: AtomicBool,
    keys: Box<dyn Fn() -> &'static str + Send + Sync>,
}

impl Health {
    /// Not live yet. `keys` tells the state of the key service in a word: it is asked at each request, and must not wait.
    pub fn new(keys: impl Fn() -> &'static str + Send + Sync + 'static) -> Self {
        Self {
            live: AtomicBool::new(false),
            keys: Box::new(keys),
        }
    }

    /// S3 requests are served from now on, or not any more.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    /// The answer, if the request is one of the health routes.
    pub(crate) fn answer(&self, method: &Method, path: &str) -> Option<Response<Body>> {
        let path = path.strip_prefix("/minio").unwrap_or(path);
        let ready = match path {
            "/health/live" => false,
            "/health/ready" => true,
            _ => return None,
        };
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        let live = self.live.load(Ordering::Acquire);
        let status = match live {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let word = match (live, ready) {
            (false, _) => "starting",
            (true, false) => "live",
            (true, true) => "ready",
        };
        let body = match ready {
            true => format!("{{\"status\":\"{word}\",\"keys\":\"{}\"}}\n", (self.keys)()),
            false => format!("{{\"status\":\"{word}\"}}\n"),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(health: &Health, path: &str) -> (u16, String) {
        let response = health.answer(&Method::GET, path).unwrap();
        let body = response.body().bytes().unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        (response.status().as_u16(), body)
    }

    #[test]
    fn a_sealed_key_service_is_told_and_does_not_matter() {
        let health = Health::new(|| "sealed");
        assert_eq!(ask(&health, "/health/live").0, 503);
        assert_eq!(ask(&health, "/minio/health/ready").0, 503);
        health.set_live(true);
        assert_eq!(ask(&health, "/minio/health/live").0, 200);
        let (status, body) = ask(&health, "/health/ready");
        assert_eq!(status, 200);
        assert!(body.contains("\"keys\":\"sealed\""), "{body}");
    }

    #[test]
    fn other_requests_are_not_ours() {
        let health = Health::new(|| "ready");
        for (method, path) in [
            (Method::PUT, "/health/live"),
            (Method::GET, "/health"),
            (Method::GET, "/minio/x"),
            (Method::GET, "/bucket/health/live"),
        ] {
            assert!(health.answer(&method, path).is_none(), "{method} {path}");
        }
    }
}
