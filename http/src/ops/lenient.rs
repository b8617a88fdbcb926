//! What s3s refuses though S3 does not: ranges and dates that are to be ignored, and lists of ETags.
//!
//! s3s reads those headers before any operation is called, but after it has checked the signature. So such a request is taken at
//! that point, rid of them and of its signature, and given to a second service, which asks for none. The operations read the
//! headers themselves, from [`Original`].

use http::{Extensions, HeaderMap, Method, Request, Uri, header};
use s3s::route::S3Route;
use s3s::service::S3Service;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::condition;

/// The headers as the client sent them, in the extensions of a request that lost some.
#[derive(Clone)]
pub struct Original(pub HeaderMap);

/// Takes the requests that s3s would refuse.
pub struct Lenient {
    unguarded: S3Service,
}

impl Lenient {
    /// `unguarded` serves the same store without checking signatures: nothing else may reach it.
    pub fn new(unguarded: S3Service) -> Self {
        Lenient { unguarded }
    }
}

#[async_trait::async_trait]
impl S3Route for Lenient {
    fn is_match(&self, _: &Method, _: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        unread_range(headers) || condition::needs_leniency(headers)
    }

    // The route's own check stands: without credentials there is no access.

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let mut extensions = request.extensions;
        let mut headers = request.headers;
        extensions.insert(Original(headers.clone()));
        headers.remove(header::RANGE);
        headers.remove(header::AUTHORIZATION);
        headers.remove("x-amz-content-sha256");
        for name in condition::header_names() {
            headers.remove(name);
        }
        let mut inner = Request::new(request.input);
        *inner.method_mut() = request.method;
        *inner.uri_mut() = unsigned(&request.uri)
            .ok_or_else(|| s3_error!(InvalidURI, "Couldn't parse the specified URI."))?;
        *inner.headers_mut() = headers;
        *inner.extensions_mut() = extensions;
        let response = self
            .unguarded
            .call(inner)
            .await
            .map_err(|_| s3_error!(InternalError))?;
        let (parts, body) = response.into_parts();
        Ok(S3Response {
            output: body,
            status: Some(parts.status),
            headers: parts.headers,
            extensions: parts.extensions,
        })
    }
}

fn unread_range(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::RANGE).iter();
    match (values.next(), values.next()) {
        (None, _) => false,
        (Some(value), None) => {
            let text = value.to_str().unwrap_or_default();
            !value.is_empty() && s3s::dto::Range::parse(text).is_err()
        }
        (Some(_), Some(_)) => true,
    }
}

/// The URI without the parameters of a signature.
fn unsigned(uri: &Uri) -> Option<Uri> {
    let Some(query) = uri.query() else {
        return Some(uri.clone());
    };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.starts_with("X-Amz-"))
        .collect();
    let path = uri.path();
    let text = match kept.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(text.parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn only_what_s3s_cannot_read_is_taken() {
        let taken = |name: &'static str, value: &'static str| {
            let name = HeaderName::from_static(name);
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            unread_range(&headers) || condition::needs_leniency(&headers)
        };
        assert!(taken("range", "bytes=0-1,3-4"));
        assert!(taken("range", "bytes=4-2"));
        assert!(taken("range", "lines=1-2"));
        assert!(taken("if-modified-since", "0"));
        assert!(taken("x-amz-copy-source-if-unmodified-since", "yesterday"));
        assert!(taken("if-match", "\"a"));
        assert!(!taken("range", "bytes=0-1"));
        assert!(!taken("range", "bytes=-1"));
        assert!(!taken("if-modified-since", "Tue, 14 Nov 2023 22:13:20 GMT"));
        assert!(!taken("if-none-match", "*"));
        assert!(!taken("if-match", "\"a\""));
        assert!(!taken("content-type", "a/b"));
    }

    #[test]
    fn parameters_of_a_signature_go_and_others_stay() {
        let uri = |text: &'static str| {
            unsigned(&Uri::from_static(text))
                .expect("a URI")
                .to_string()
        };
        assert_eq!(
            uri("/b/k?partNumber=2&X-Amz-Signature=0&x-id=Get"),
            "/b/k?partNumber=2&x-id=Get"
        );
        assert_eq!(uri("/b/k?X-Amz-Date=1&X-Amz-Signature=0"), "/b/k");
        assert_eq!(uri("/b/k%2F"), "/b/k%2F");
        assert_eq!(
            uri("http://host:1/b?prefix=a%26b"),
            "http://host:1/b?prefix=a%26b"
        );
    }
}
