//! What every response carries: ids, and errors as XML with the same ids in them.

use std::cell::Cell;
use std::fmt::Write;

use bytes::Bytes;
use http::header::Entry;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use s3s::Body;

/// Carries one further element of an error's XML (`Name=value`, the value percent-encoded) from a
/// handler to here. It never leaves the server.
pub const ELEMENT: HeaderName = HeaderName::from_static("x-strongroom-error-element");

pub(super) const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";

/// A refusal that never reached the S3 layer.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// S3 error code.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Elements beside the usual ones.
    pub extra: Vec<(&'static str, String)>,
}

impl Refusal {
    /// A refusal without extra elements.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            extra: Vec::new(),
        }
    }

    /// 501.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message)
    }

    /// Adds an element.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.extra.push((name, value.into()));
        self
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        let mut xml = format!("{DECLARATION}<Error>");
        element(&mut xml, "Code", refusal.code);
        element(&mut xml, "Message", &refusal.message);
        for (name, value) in &refusal.extra {
            element(&mut xml, name, value);
        }
        xml.push_str("</Error>");
        let mut response = Response::new(Body::from(xml));
        *response.status_mut() = refusal.status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/xml"),
        );
        response
    }
}

/// Makes request ids: no two alike, and none to be guessed from another server's.
pub struct Ids {
    next: Cell<u64>,
    host: HeaderValue,
}

impl Ids {
    /// Starts at random.
    pub fn new() -> Self {
        let mut seed = [0; 24];
        if getrandom::fill(&mut seed).is_err() {
            // Ids are for matching logs; a server without entropy has other troubles.
            seed[..8].copy_from_slice(&std::process::id().to_ne_bytes().repeat(2));
        }
        let mut start = [0; 8];
        start.copy_from_slice(&seed[..8]);
        let host = hex::encode(&seed[8..]);
        Self {
            next: Cell::new(u64::from_le_bytes(start)),
            host: HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static("strongroom")),
        }
    }

    /// The next id.
    pub fn next(&self) -> String {
        // A step of the golden ratio, then a bijective mix: distinct for 2^64 requests.
        let state = self.next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        format!("{:016X}", z ^ (z >> 31))
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self::new()
    }
}

/// Completes a response: ids in headers and in an error's body, nothing in the body of a HEAD.
pub fn dress(response: &mut Response<Body>, method: &Method, path: &str, id: &str, ids: &Ids) {
    let further = take_elements(response);
    if response.status().is_client_error() || response.status().is_server_error() {
        if method == Method::HEAD {
            *response.body_mut() = Body::empty();
            response.headers_mut().remove(header::CONTENT_TYPE);
            response.headers_mut().remove(header::CONTENT_LENGTH);
        } else if let Some(xml) = is_xml(response).then(|| response.body().bytes()).flatten()
            && let Some(xml) = complete(&xml, &further, path, id, ids)
        {
            *response.body_mut() = Body::from(xml);
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert("x-amz-request-id", id);
    }
    headers.insert("x-amz-id-2", ids.host.clone());
    headers.insert(header::SERVER, HeaderValue::from_static("Strongroom"));
}

fn take_elements(response: &mut Response<Body>) -> Vec<(String, String)> {
    let Entry::Occupied(entry) = response.headers_mut().entry(ELEMENT) else {
        return Vec::new();
    };
    let (_, values) = entry.remove_entry_mult();
    let split = |value: HeaderValue| {
        let (name, value) = value.to_str().ok()?.split_once('=')?;
        let value = percent_decode_str(value).decode_utf8_lossy();
        Some((name.to_owned(), value.into_owned()))
    };
    values.filter_map(split).collect()
}

fn is_xml(response: &Response<Body>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/xml"))
}

/// Adds what an `<Error>` document lacks. `None` if it is something else.
fn complete(
    xml: &Bytes,
    further: &[(String, String)],
    path: &str,
    id: &str,
    ids: &Ids,
) -> Option<String> {
    let text = std::str::from_utf8(xml).ok()?;
    let body = text.trim_end().strip_suffix("</Error>")?;
    if !body
        .strip_prefix(DECLARATION)
        .unwrap_or(body)
        .trim_start()
        .starts_with("<Error")
    {
        return None;
    }
    let mut out = String::with_capacity(text.len() + 256);
    out.push_str(&without(body, "RequestId"));
    if !out.contains("<Message>") {
        let code = between(&out, "<Code>", "</Code>").unwrap_or_default();
        let message = message(code);
        element(&mut out, "Message", message);
    }
    for (name, value) in further {
        element(&mut out, name, value);
    }
    if !out.contains("<Resource>") {
        element(&mut out, "Resource", path);
    }
    element(&mut out, "RequestId", id);
    element(&mut out, "HostId", ids.host.to_str().unwrap_or_default());
    out.push_str("</Error>");
    Some(out)
}

/// Words for errors that the S3 layer makes without any.
fn message(code: &str) -> &'static str {
    match code {
        "AccessDenied" => "Access Denied",
        "InvalidAccessKeyId" => {
            "The AWS access key ID that you provided does not exist in our records."
        }
        "InvalidBucketName" => "The specified bucket is not valid.",
        "InvalidURI" => "The specified URI couldn't be parsed.",
        "KeyTooLongError" => "Your key is too long.",
        "MethodNotAllowed" => "The specified method is not allowed against this resource.",
        "NotImplemented" => {
            "A header or query you provided requests a function that is not implemented."
        }
        "SignatureDoesNotMatch" => {
            "The request signature that the server calculated does not match the signature that you \
             provided. Check your AWS secret access key and signing method."
        }
        "MalformedXML" => "The XML that you provided was not well-formed.",
        "InternalError" => "An internal error occurred. Try again.",
        _ => "The request was refused.",
    }
}

fn without(text: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    match (text.find(&open), text.find(&close)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", &text[..from], &text[to + close.len()..])
        }
        _ => text.to_owned(),
    }
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let rest = &text[text.find(open)? + open.len()..];
    Some(&rest[..rest.find(close)?])
}

pub(super) fn element(out: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = write!(out, "<{name}>");
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML 1.0, escaped or not.
            '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    let _ = write!(out, "</{name}>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: &Response<Body>) -> String {
        String::from_utf8(response.body().bytes().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn errors_are_completed_with_the_id_of_the_header() {
        let ids = Ids::new();
        let id = ids.next();
        let mut error = s3s::S3Error::with_message(s3s::S3ErrorCode::NoSuchKey, "gone");
        error.set_request_id("another");
        for mut response in [
            error.to_http_response().unwrap(),
            Refusal::not_implemented("no").into(),
            s3s::s3_error!(AccessDenied).to_http_response().unwrap(),
        ] {
            dress(&mut response, &Method::GET, "/b/a&<\u{1}", &id, &ids);
            let xml = text(&response);
            assert_eq!(response.headers()["x-amz-request-id"], id);
            assert_eq!(xml.matches("<RequestId>").count(), 1, "{xml}");
            assert!(
                xml.contains(&format!("<RequestId>{id}</RequestId>")),
                "{xml}"
            );
            assert!(
                xml.contains("<Resource>/b/a&amp;&lt;\u{fffd}</Resource>"),
                "{xml}"
            );
            assert_eq!(xml.matches("<Message>").count(), 1, "{xml}");
            assert!(xml.ends_with("</HostId></Error>"), "{xml}");
        }
    }

    #[test]
    fn a_failed_head_has_no_body_and_other_bodies_stay() {
        let ids = Ids::new();
        let mut head: Response<Body> = Refusal::not_implemented("no").into();
        dress(&mut head, &Method::HEAD, "/", "1", &ids);
        assert!(text(&head).is_empty());
        assert!(head.headers().get(header::CONTENT_TYPE).is_none());
        assert_eq!(head.status(), 501);
        let mut plain = Response::new(Body::from(b"as it is".to_vec()));
        *plain.status_mut() = StatusCode::BAD_GATEWAY;
        dress(&mut plain, &Method::GET, "/", "1", &ids);
        assert_eq!(text(&plain), "as it is");
    }

    #[test]
    fn further_elements_move_from_headers_to_the_body() {
        let ids = Ids::new();
        let make = || {
            let mut response: Response<Body> = Refusal::not_implemented("no").into();
            for further in ["Key=a%3Cb%C3%BC%25", "PartNumber=7"] {
                let further = HeaderValue::from_static(further);
                response.headers_mut().append(ELEMENT, further);
            }
            response
        };
        let mut get = make();
        dress(&mut get, &Method::GET, "/", "1", &ids);
        let xml = text(&get);
        assert!(
            xml.contains("<Key>a&lt;b\u{fc}%</Key><PartNumber>7</PartNumber>"),
            "{xml}"
        );
        let mut head = make();
        dress(&mut head, &Method::HEAD, "/", "1", &ids);
        for response in [get, head] {
            assert!(!response.headers().contains_key(ELEMENT));
        }
    }

    #[test]
    fn ids_differ() {
        let ids = Ids::new();
        let many: std::collections::HashSet<String> = (0..1000).map(|_| ids.next()).collect();
        assert_eq!(many.len(), 1000);
        assert!(many.iter().all(|id| id.len() == 16));
    }
}
