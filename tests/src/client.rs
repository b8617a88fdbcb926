//! A small S3 client of our own, for the tests that count bytes, cut connections or race a kill: what the real
//! clients hide behind retries. It never repeats a request by itself.

use std::io::{self, Read};
use std::net::SocketAddr;

use crate::data::Pattern;
use crate::sigv4::{self, Credentials, Moment, Parts, UNSIGNED_PAYLOAD};
use crate::wire::{Connection, Head};

#[derive(Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub tls: bool,
    pub credentials: Credentials,
}

pub struct Client {
    endpoint: Endpoint,
    connection: Option<Connection>,
}

#[derive(Debug)]
pub struct Response {
    pub head: Head,
    pub body: Vec<u8>,
}

/// A request before it is signed. `key` empty means the bucket, `bucket` empty the service.
#[derive(Default, Clone)]
pub struct Request<'a> {
    pub method: &'a str,
    pub bucket: &'a str,
    pub key: &'a str,
    /// Encoded, without the question mark.
    pub query: &'a str,
    /// Lower-case names, all signed.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What came of reading an object that may be damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Complete and right.
    Right,
    Absent,
    /// An error status, or an answer that broke off.
    Error(String),
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    pub etag: String,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `Code` of an error body.
    pub fn code(&self) -> String {
        xml_values(&self.text(), "Code").pop().unwrap_or_default()
    }

    /// Itself, when the status is as expected; a panic with the body otherwise.
    pub fn expect(self, status: u16) -> Self {
        let text = self.text();
        let shown: String = text.chars().take(600).collect();
        assert_eq!(self.head.status, status, "{shown}");
        self
    }
}

impl Client {
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            connection: None,
        }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn create_bucket(&mut self, bucket: &str) -> io::Result<Response> {
        self.send("PUT", bucket, "", "", &[])
    }

    pub fn put(&mut self, bucket: &str, key: &str, body: &[u8]) -> io::Result<Response> {
        self.send("PUT", bucket, key, "", body)
    }

    pub fn get(&mut self, bucket: &str, key: &str) -> io::Result<Response> {
        self.send("GET", bucket, key, "", &[])
    }

    pub fn head(&mut self, bucket: &str, key: &str) -> io::Result<Response> {
        self.send("HEAD", bucket, key, "", &[])
    }

    pub fn delete(&mut self, bucket: &str, key: &str) -> io::Result<Response> {
        self.send("DELETE", bucket, key, "", &[])
    }

    /// A request without headers of its own; `query` is encoded already.
    pub fn send(
        &mut self,
        method: &str,
        bucket: &str,
        key: &str,
        query: &str,
        body: &[u8],
    ) -> io::Result<Response> {
        let request = Request {
            method,
            bucket,
            key,
            query,
            headers: &[],
        };
        self.request(&request, body)
    }

    /// Sends a request whose body is at hand.
    pub fn request(&mut self, request: &Request<'_>, body: &[u8]) -> io::Result<Response> {
        self.stream(request, body.len() as u64, &mut &body[..])
    }

    /// Sends a request whose body comes from a reader, and gathers the response.
    pub fn stream(
        &mut self,
        request: &Request<'_>,
        length: u64,
        body: &mut dyn Read,
    ) -> io::Result<Response> {
        let mut answer = Vec::new();
        let head = self.exchange(request, length, body, |piece| {
            answer.extend_from_slice(piece);
        })?;
        Ok(Response { head, body: answer })
    }

    /// Sends a GET and hands the body over piece by piece. The length is checked by the transport.
    pub fn fetch(&mut self, request: &Request<'_>, sink: impl FnMut(&[u8])) -> io::Result<Head> {
        self.exchange(request, 0, &mut io::empty(), sink)
    }

    /// Reads an object of known content. Whatever else happens, a wrong byte in an answer of 200 is a panic, also in
    /// an answer that breaks off later.
    pub fn probe(&mut self, bucket: &str, key: &str, content: &Pattern, length: u64) -> Outcome {
        let request = Request {
            method: "GET",
            bucket,
            key,
            ..Request::default()
        };
        let (mut at, mut wrong) = (0, None);
        let head = self.fetch(&request, |piece| {
            if wrong.is_none() && !content.matches(at, piece) {
                wrong = Some(at);
            }
            at += piece.len() as u64;
        });
        match head {
            Ok(head) if head.status == 404 => Outcome::Absent,
            Ok(head) if head.status != 200 => Outcome::Error(format!("status {}", head.status)),
            Ok(_) if wrong.is_none() && at == length => Outcome::Right,
            Err(e) if wrong.is_none() => Outcome::Error(e.to_string()),
            answer => panic!(
                "{bucket}/{key}: wrong bytes from {wrong:?} on, {at} of {length} sent: {answer:?}"
            ),
        }
    }

    /// All objects of a bucket, by ListObjectsV2, page after page.
    pub fn list(&mut self, bucket: &str) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        let mut query = "list-type=2".to_owned();
        loop {
            let page = self.send("GET", bucket, "", &query, &[])?.expect(200);
            let text = page.text();
            for entry in xml_values(&text, "Contents") {
                let one = |tag| xml_values(&entry, tag).pop().unwrap_or_default();
                found.push(Listed {
                    key: one("Key"),
                    size: one("Size").parse().unwrap_or(u64::MAX),
                    etag: one("ETag").trim_matches('"').to_owned(),
                });
            }
            let Some(token) = xml_values(&text, "NextContinuationToken").pop() else {
                return Ok(found);
            };
            let token = sigv4::encode_query(&token);
            query = format!("list-type=2&continuation-token={token}");
        }
    }

    /// Sends the head and `sent` bytes of a body of `length`, then closes the connection: a client that vanished.
    pub fn vanish(
        &mut self,
        request: &Request<'_>,
        length: u64,
        sent: u64,
        body: &mut dyn Read,
    ) -> io::Result<()> {
        let head = self.sign(request, length);
        let mut connection = self.connect()?;
        connection.send(head.as_bytes(), &[])?;
        pump(&mut connection, &mut body.take(sent))
    }

    fn exchange(
        &mut self,
        request: &Request<'_>,
        length: u64,
        body: &mut dyn Read,
        sink: impl FnMut(&[u8]),
    ) -> io::Result<Head> {
        let head = self.sign(request, length);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        // A server may answer and close before it has read everything: its answer says more than the broken pipe.
        let sent = connection
            .send(head.as_bytes(), &[])
            .and_then(|()| pump(&mut connection, body));
        let head = match (connection.read_head(), sent) {
            (Ok(head), _) => head,
            (Err(_), Err(e)) | (Err(e), Ok(())) => return Err(e),
        };
        connection.read_body(request.method, &head, sink)?;
        if !head.closes() {
            self.connection = Some(connection);
        }
        Ok(head)
    }

    fn connect(&self) -> io::Result<Connection> {
        Connection::open(self.endpoint.address, self.endpoint.tls)
    }

    fn sign(&self, request: &Request<'_>, length: u64) -> String {
        head_bytes(&self.endpoint, &Moment::now(), request, length)
    }
}

/// The head of a signed request with an unsigned payload, ready for the wire.
pub fn head_bytes(
    endpoint: &Endpoint,
    moment: &Moment,
    request: &Request<'_>,
    length: u64,
) -> String {
    head_bytes_with(endpoint, moment, request, length, UNSIGNED_PAYLOAD)
}

/// The same with another `x-amz-content-sha256`, of which the caller makes the body.
pub fn head_bytes_with(
    endpoint: &Endpoint,
    moment: &Moment,
    request: &Request<'_>,
    length: u64,
    payload_hash: &str,
) -> String {
    let host = endpoint.address.to_string();
    let path = match (request.bucket, request.key) {
        ("", _) => "/".to_owned(),
        (bucket, "") => format!("/{bucket}"),
        (bucket, key) => format!("/{bucket}/{}", sigv4::encode_path(key)),
    };
    let mut headers = vec![("host", host.as_str())];
    headers.extend_from_slice(request.headers);
    let parts = Parts {
        method: request.method,
        path: &path,
        query: request.query,
        headers: &headers,
        payload_hash,
    };
    let signed = sigv4::sign(&endpoint.credentials, moment, &parts);
    let question = if request.query.is_empty() { "" } else { "?" };
    let mut head = format!(
        "{} {path}{question}{} HTTP/1.1\r\n",
        request.method, request.query
    );
    let signed = signed.iter().map(|(n, v)| (*n, v.as_str()));
    for (name, value) in headers.iter().copied().chain(signed) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if length > 0 || matches!(request.method, "PUT" | "POST") {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head.push_str("\r\n");
    head
}

/// The texts of all elements `tag`, in order, with their entities resolved; nested markup stays as it is.
pub fn xml_values(text: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    text.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once(&close))
        .map(|(value, _)| {
            if value.contains('<') {
                return value.to_owned();
            }
            let pairs = [
                ("&lt;", "<"),
                ("&gt;", ">"),
                ("&quot;", "\""),
                ("&#34;", "\""),
                ("&apos;", "'"),
                ("&amp;", "&"),
            ];
            let start = value.to_owned();
            pairs
                .iter()
                .fold(start, |v, (from, to)| v.replace(from, to))
        })
        .collect()
}

fn pump(connection: &mut Connection, body: &mut dyn Read) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = body.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        connection.send(&buffer[..n], &[])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml() {
        let text = "<R><C><Key>a&amp;b</Key></C><C><Key>c</Key></C></R>";
        assert_eq!(xml_values(text, "Key"), ["a&b", "c"]);
        assert_eq!(xml_values(text, "C").len(), 2);
        assert!(xml_values(text, "Code").is_empty());
    }
}
