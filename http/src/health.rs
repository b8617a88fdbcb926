//! Health, for whoever restarts or routes: answered without credentials, before anything else; and why nothing else is.
//!
//! *Live* means that S3 requests are served, which is after recovery. *Ready* adds nothing to that:
//! a key service that is down or sealed stops what needs a key, not the server, so it is told in
//! the body and does not take the server out of rotation. A server that starts, or whose store is locked as a whole, answers 503.

use std::sync::{OnceLock, PoisonError, RwLock};

use http::{Method, Response, StatusCode, header};
use s3s::Body;

/// What the health routes report. Shared by all shards.
#[derive(Default)]
pub struct Health {
    state: RwLock<State>,
    keys: OnceLock<Box<dyn Fn() -> &'static str + Send + Sync>>,
}

/// Whether S3 requests are served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Starting,
    /// Not until some key can be had; the words are for everybody.
    Locked(String),
    Live,
}

impl Health {
    /// `keys` tells the state of the key service in a word: it is asked at each request, and must not wait.
    pub fn set_keys(&self, keys: impl Fn() -> &'static str + Send + Sync + 'static) {
        // There is one key service in a process.
        let _ = self.keys.set(Box::new(keys));
    }

    pub fn set(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Why no S3 request is served.
    pub fn why_shut(&self) -> String {
        match self.state() {
            State::Starting => "The server is starting.".into(),
            State::Locked(why) => format!("The store is locked: {why}."),
            State::Live => "The store was locked meanwhile.".into(),
        }
    }

    fn state(&self) -> State {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.clone()
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
        let state = self.state();
        let (status, word) = match (&state, ready) {
            (State::Starting, _) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            (State::Locked(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "locked"),
            (State::Live, false) => (StatusCode::OK, "live"),
            (State::Live, true) => (StatusCode::OK, "ready"),
        };
        let mut body = format!("{{\"status\":\"{word}\"");
        if ready && let Some(keys) = self.keys.get() {
            body += &format!(",\"keys\":\"{}\"", keys());
        }
        if let State::Locked(why) = state {
            body += &format!(",\"reason\":{}", serde_json::Value::from(why));
        }
        let mut response = Response::new(Body::from(body + "}\n"));
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
        let health = Health::default();
        assert_eq!(ask(&health, "/health/live").0, 503);
        health.set_keys(|| "sealed");
        assert_eq!(ask(&health, "/minio/health/ready").0, 503);
        health.set(State::Live);
        assert_eq!(ask(&health, "/minio/health/live").0, 200);
        let (status, body) = ask(&health, "/health/ready");
        assert_eq!(status, 200);
        assert!(body.contains("\"keys\":\"sealed\""), "{body}");
    }

    #[test]
    fn a_locked_store_says_why() {
        let health = Health::default();
        health.set(State::Locked("it \"waits\"".into()));
        let (status, body) = ask(&health, "/health/live");
        assert_eq!(status, 503);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["status"], "locked");
        assert_eq!(body["reason"], "it \"waits\"");
    }

    #[test]
    fn other_requests_are_not_ours() {
        let health = Health::default();
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
