//! The service driven over real connections, with handlers that keep objects in memory.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;

use s3s::dto;

use super::*;
use crate::body::sigv4::{ChunkSigner, Scope};
use crate::conn::serve::testing::Server;
use crate::health::State;
use crate::log;
use base64::prelude::{BASE64_STANDARD, Engine as _};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "not-a-secret";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Objects of bucket `box`; any other bucket is absent.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<HashMap<String, Vec<u8>>>>);

#[async_trait::async_trait]
impl S3 for Memory {
    async fn put_object(
        &self,
        request: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        if request.input.bucket != "box" {
            return Err(s3_error!(NoSuchBucket));
        }
        let upload = Upload::from_request(&request.extensions)
            .ok_or_else(|| s3_error!(InternalError, "no upload"))?;
        let mut data = Vec::new();
        while let Some(piece) = upload.next().await {
            data.extend_from_slice(&piece?);
            if data.len() > 10_000_000 {
                return Err(s3_error!(EntityTooLarge));
            }
        }
        assert_eq!(upload.decoded_length(), Some(data.len() as u64));
        let mut output = dto::PutObjectOutput::default();
        if let Some(sum) = upload.trailers().get("x-amz-checksum-crc32") {
            output.checksum_crc32 = Some(sum.to_str().unwrap().to_owned());
        }
        self.0.lock().unwrap().insert(request.input.key, data);
        Ok(S3Response::new(output))
    }

    async fn get_object(
        &self,
        request: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let objects = self.0.lock().unwrap();
        let data = objects
            .get(&request.input.key)
            .ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))?;
        let output = dto::GetObjectOutput {
            body: Some(dto::StreamingBlob::from(Body::from(data.clone()))),
            content_length: Some(data.len() as i64),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_bucket(
        &self,
        request: S3Request<dto::HeadBucketInput>,
    ) -> S3Result<S3Response<dto::HeadBucketOutput>> {
        match request.input.bucket.as_str() {
            "box" => Ok(S3Response::new(dto::HeadBucketOutput::default())),
            _ => Err(s3_error!(NoSuchBucket)),
        }
    }

    async fn delete_objects(
        &self,
        request: S3Request<dto::DeleteObjectsInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
        assert_eq!(request.credentials.unwrap().access_key, KEY);
        let mut objects = self.0.lock().unwrap();
        let deleted = request.input.delete.objects.into_iter().map(|object| {
            objects.remove(&object.key);
            dto::DeletedObject {
                key: Some(object.key),
                ..Default::default()
            }
        });
        let output = dto::DeleteObjectsOutput {
            deleted: Some(deleted.collect()),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }
}

struct Fixture {
    server: Server,
    memory: Memory,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|| ())
    }

    /// `first` runs on the shard's thread; what it returns lives as long as the shard.
    fn with<G: 'static>(first: impl FnOnce() -> G + Send + 'static) -> Self {
        let memory = Memory::default();
        let store = memory.clone();
        let server = Server::start(None, move || {
            let kept = first();
            let health = Arc::new(Health::default());
            health.set(State::Live);
            let service = Service::new(Settings {
                secrets: Arc::new(|key| (key == KEY).then(|| SecretKey::from(SECRET))),
                domains: Domains::new(["s3.test".to_owned()]),
                proxies: Arc::new([]),
                region: "us-east-1".to_owned(),
                health,
                metrics: Arc::new(Metrics::new(None, |_| ())),
            });
            service.open(store, Vec::new(), None);
            move |peer| {
                let _ = &kept;
                service.for_peer(peer)
            }
        });
        Self { server, memory }
    }

    fn client(&self) -> Client {
        Client::connect(self.server.address)
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.memory.0.lock().unwrap().get(key).cloned()
    }
}

struct Client(BufReader<TcpStream>);

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
    }
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, head: &str, body: &[u8]) {
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn reply(&mut self, head_request: bool) -> Reply {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let line = self.line();
            assert!(!line.is_empty(), "closed after {head:?}");
            head.push_str(&line);
        }
        let mut reply = Reply {
            status: head[9..12].parse().unwrap(),
            head,
            body: String::new(),
        };
        let length: u64 = match reply.header("content-length") {
            Some(length) if !head_request => length.parse().unwrap(),
            _ => 0,
        };
        let body = &mut reply.body;
        self.0.by_ref().take(length).read_to_string(body).unwrap();
        reply
    }

    fn ask(&mut self, request: &Signed) -> Reply {
        self.send(&request.head, &request.body);
        self.reply(request.head.starts_with("HEAD"))
    }
}

struct Signed {
    head: String,
    body: Vec<u8>,
}

/// Now, as far as the server checks it.
fn time() -> String {
    let now = s3s::dto::Timestamp::from(std::time::SystemTime::now());
    let mut text = Vec::new();
    let format = s3s::dto::TimestampFormat::DateTime;
    now.format(format, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let digits: String = text.chars().filter(|c| *c != '-' && *c != ':').collect();
    format!("{}Z", &digits[..15])
}

/// A signed request for `target`. `payload` is the value of `x-amz-content-sha256`.
fn signed(
    method: &str,
    target: &str,
    payload: &str,
    more: &[(&str, &str)],
    body: impl FnOnce(ChunkSigner) -> Vec<u8>,
) -> Signed {
    let time = time();
    let scope = Scope {
        access_key: KEY,
        date: &time[..8],
        region: "us-east-1",
        service: "s3",
    };
    let mut headers = vec![("x-amz-content-sha256", payload), ("x-amz-date", &time)];
    headers.extend_from_slice(more);
    if more.iter().all(|(name, _)| *name != "host") {
        headers.push(("host", "localhost"));
    }
    headers.sort_unstable();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let canonical = Canonical {
        method,
        path,
        query,
        headers: &headers,
        payload,
        time: &time,
    };
    let authorization = canonical.authorize(&SigningKey::derive(SECRET, &scope), &scope);
    let seed = Authorization::parse(&authorization).unwrap().signature;
    let chain = ChunkSigner::new(SigningKey::derive(SECRET, &scope), &time, &scope, seed);
    let body = body(chain);
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("authorization: {authorization}\r\n"));
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    Signed { head, body }
}

fn put(key: &str, data: &[u8]) -> Signed {
    let hash = hex::encode(Sha256::digest(data));
    signed("PUT", &format!("/box/{key}"), &hash, &[], |_| data.to_vec())
}

fn get(target: &str) -> Signed {
    signed("GET", target, EMPTY, &[], |_| Vec::new())
}

fn chunked(data: &[u8], signer: Option<ChunkSigner>, trailer: &[(&str, &str)]) -> Vec<u8> {
    crate::body::chunked::testing::encode(data, 65536, signer, trailer)
}

fn sample(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i * 17) as u8).collect()
}

#[test]
fn uploads_arrive_in_every_payload_mode() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let data = sample(500_000);
    let length = data.len().to_string();
    let sizes = ("x-amz-decoded-content-length", length.as_str());
    let announced = ("x-amz-trailer", "x-amz-checksum-crc32");
    let trailer = [("x-amz-checksum-crc32", "AAAAAA==")];
    let requests = [
        put("hashed", &data),
        signed("PUT", "/box/unsigned", "UNSIGNED-PAYLOAD", &[], |_| {
            data.clone()
        }),
        signed(
            "PUT",
            "/box/signed",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            &[sizes, ("content-encoding", "aws-chunked")],
            |chain| chunked(&data, Some(chain), &[]),
        ),
        signed(
            "PUT",
            "/box/signed-trailer",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            &[sizes, announced],
            |chain| chunked(&data, Some(chain), &trailer),
        ),
        signed(
            "PUT",
            "/box/unsigned-trailer",
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            &[sizes, announced],
            |_| chunked(&data, None, &trailer),
        ),
    ];
    for request in &requests {
        let reply = client.ask(request);
        assert_eq!(reply.status, 200, "{}\n{}", request.head, reply.body);
        let has_trailer = request.head.contains("-trailer HTTP");
        let sum = reply.header("x-amz-checksum-crc32");
        assert_eq!(sum, has_trailer.then_some("AAAAAA=="));
    }
    for key in [
        "hashed",
        "unsigned",
        "signed",
        "signed-trailer",
        "unsigned-trailer",
    ] {
        assert!(fixture.object(key).unwrap() == data, "{key}");
    }
    assert_eq!(client.ask(&put("none", b"")).status, 200);
    assert_eq!(fixture.object("none").unwrap(), b"");
    assert_eq!(client.ask(&put("text", b"words")).status, 200);
    assert_eq!(client.ask(&get("/box/text")).body, "words");
}

#[test]
fn a_body_that_is_not_what_was_signed_is_refused_and_not_kept() {
    let fixture = Fixture::new();
    let data = sample(200_000);
    let length = data.len().to_string();
    let sizes = ("x-amz-decoded-content-length", length.as_str());
    let mut wrong_hash = put("k", &data);
    wrong_hash.body[100_000] ^= 1;
    let mut wrong_chunk = signed(
        "PUT",
        "/box/k",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        &[sizes],
        |chain| chunked(&data, Some(chain), &[]),
    );
    wrong_chunk.body[100_000] ^= 1;
    let no_trailer = signed(
        "PUT",
        "/box/k",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        &[sizes, ("x-amz-trailer", "x-amz-checksum-crc32")],
        |_| chunked(&data, None, &[]),
    );
    let no_end = signed(
        "PUT",
        "/box/k",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        &[sizes],
        |chain| {
            let mut wire = chunked(&data, Some(chain), &[]);
            let end = wire.len() - 4 - 64 - ";chunk-signature=".len() - 1;
            wire.truncate(end);
            wire
        },
    );
    let mut wrong_signature = put("k", &data);
    wrong_signature.head = wrong_signature.head.replace("/box/k", "/box/l");
    for (request, status, code) in [
        (&wrong_hash, 400, "XAmzContentSHA256Mismatch"),
        (&wrong_chunk, 403, "SignatureDoesNotMatch"),
        (&no_trailer, 400, "MalformedTrailerError"),
        (&no_end, 400, "IncompleteBody"),
        (&wrong_signature, 403, "SignatureDoesNotMatch"),
    ] {
        let reply = fixture.client().ask(request);
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(
            reply.body.contains(&format!("<Code>{code}</Code>")),
            "{}",
            reply.body
        );
        assert!(fixture.object("k").is_none());
        assert!(fixture.object("l").is_none());
    }
    // Without any length.
    let mut client = fixture.client();
    let head = put("k", b"x").head;
    let head = head.replace("content-length: 1", "transfer-encoding: chunked");
    client.send(&head, b"1\r\nx\r\n0\r\n\r\n");
    assert_eq!(client.reply(false).status, 411);
}

#[test]
fn a_refused_upload_sees_its_status_and_keeps_its_connection() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    // The whole body is written before the reply is read.
    let data = sample(20_000_000);
    let mut stranger = put("k", &data);
    stranger.head = stranger.head.replace(KEY, "AKIDSTRANGER");
    let reply = client.ask(&stranger);
    assert_eq!(reply.status, 403, "{}", reply.body);
    assert!(reply.body.contains("InvalidAccessKeyId"));
    // The handler gives up in the middle.
    let reply = client.ask(&put("k", &data));
    assert!(reply.body.contains("EntityTooLarge"), "{}", reply.body);
    assert_eq!(client.ask(&put("k", b"small")).status, 200);
}

#[test]
fn nothing_is_read_before_the_request_is_found_good() {
    let fixture = Fixture::new();
    let waits = |mut request: Signed| {
        request.head = request
            .head
            .replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
        request
    };
    let good = waits(put("k", b"data"));
    let mut client = fixture.client();
    client.send(&good.head, b"");
    assert_eq!(client.line(), "HTTP/1.1 100 Continue\r\n");
    assert_eq!(client.line(), "\r\n");
    client.send("", &good.body);
    assert_eq!(client.reply(false).status, 200);
    assert_eq!(fixture.object("k").unwrap(), b"data");

    let mut forged = waits(put("k", b"data"));
    forged.head = forged.head.replace("Signature=", "Signature=0");
    let nowhere = waits(signed(
        "PUT",
        "/elsewhere/k",
        "UNSIGNED-PAYLOAD",
        &[],
        |_| b"data".to_vec(),
    ));
    let mut anonymous = waits(put("k", b"data"));
    anonymous.head = anonymous.head.replace("authorization: ", "x-other: ");
    let delete = waits(signed(
        "POST",
        "/box?delete",
        EMPTY,
        &[("x-amz-acl", "x")],
        |_| b"x".to_vec(),
    ));
    let mut unsigned_delete = delete;
    unsigned_delete.head = unsigned_delete.head.replace("x-amz-acl: x", "x-amz-acl: y");
    // Where nothing is to come there is no 100 either, and botocore needs a new connection after that.
    let empty = waits(put("nothing", b""));
    for (request, status) in [
        (empty, 200),
        (forged, 403),
        (nowhere, 404),
        (anonymous, 403),
        (unsigned_delete, 403),
    ] {
        let mut client = fixture.client();
        client.send(&request.head, b"");
        let reply = client.reply(false);
        assert_eq!(reply.status, status, "{}", reply.head);
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn xml_bodies_are_decoded_and_bounded() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let xml = b"<Delete><Object><Key>one</Key></Object><Object><Key>two</Key></Object></Delete>";
    let hash = hex::encode(Sha256::digest(xml));
    let length = xml.len().to_string();
    let sizes = ("x-amz-decoded-content-length", length.as_str());
    let plain = signed("POST", "/box?delete=", &hash, &[], |_| xml.to_vec());
    let signed_chunks = signed(
        "POST",
        "/box?delete",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        &[sizes, ("content-encoding", "aws-chunked")],
        |chain| chunked(xml, Some(chain), &[]),
    );
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, xml) as u32;
    let crc = BASE64_STANDARD.encode(crc.to_be_bytes());
    let trailer = signed(
        "POST",
        "/box?delete",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        &[sizes, ("x-amz-trailer", "x-amz-checksum-crc32")],
        |_| chunked(xml, None, &[("x-amz-checksum-crc32", &crc)]),
    );
    for request in [&plain, &signed_chunks, &trailer] {
        for key in ["one", "two"] {
            assert_eq!(client.ask(&put(key, b"1")).status, 200);
        }
        let reply = client.ask(request);
        assert_eq!(reply.status, 200, "{}\n{}", request.head, reply.body);
        assert!(fixture.object("one").is_none() && fixture.object("two").is_none());
    }
    let mut other = signed("POST", "/box?delete", &hash, &[], |_| xml.to_vec());
    other.body[20] ^= 1;
    let reply = client.ask(&other);
    assert!(
        reply.body.contains("XAmzContentSHA256Mismatch"),
        "{}",
        reply.body
    );
    let huge = vec![b' '; limits::XML_BYTES_MAX + 1];
    let hash = hex::encode(Sha256::digest(&huge));
    let reply = client.ask(&signed("POST", "/box?delete", &hash, &[], |_| huge.clone()));
    assert_eq!(reply.status, 400);
    assert!(
        reply.body.contains("MaxMessageLengthExceeded"),
        "{}",
        reply.body
    );
}

#[test]
fn responses_carry_ids_and_errors_are_clean() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for (request, status) in [
        (get("/box/absent"), 404),
        (
            signed("PUT", "/box/k?encryption", EMPTY, &[], |_| Vec::new()),
            501,
        ),
        (get("/box?policy"), 501),
        (signed("PATCH", "/box/k", EMPTY, &[], |_| Vec::new()), 501),
        (get("/B*D/k"), 400),
    ] {
        let reply = client.ask(&request);
        assert_eq!(reply.status, status, "{}", reply.body);
        let id = reply.header("x-amz-request-id").unwrap();
        assert!(
            reply.body.contains(&format!("<RequestId>{id}</RequestId>")),
            "{}",
            reply.body
        );
        assert!(reply.header("x-amz-id-2").is_some());
        assert_eq!(reply.header("content-type"), Some("application/xml"));
        assert!(reply.body.contains("<Message>"), "{}", reply.body);
    }
    let head = |target| signed("HEAD", target, EMPTY, &[], |_| Vec::new());
    let reply = client.ask(&head("/nowhere"));
    assert_eq!(reply.status, 404);
    assert_eq!(reply.header("x-amz-bucket-region"), Some("us-east-1"));
    assert_eq!(reply.header("content-type"), None);
    assert_eq!(client.ask(&head("/box")).status, 200);

    client.send("GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n", b"");
    let reply = client.reply(false);
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("ready"));
    assert!(reply.header("x-amz-request-id").is_some());
}

#[test]
fn keys_are_opaque_and_buckets_come_from_the_host_too() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for (wire, key) in [
        ("a//b", "a//b"),
        ("../x", "../x"),
        ("%2e%2e/./y", ".././y"),
        ("sp%20ace+plus", "sp ace+plus"),
        ("%25%41", "%A"),
        ("%C3%A4%01", "\u{e4}\u{1}"),
        ("q%3Fx", "q?x"),
    ] {
        let reply = client.ask(&put(wire, wire.as_bytes()));
        assert_eq!(reply.status, 200, "{wire}: {}", reply.body);
        assert_eq!(
            fixture.object(key).as_deref(),
            Some(wire.as_bytes()),
            "{wire}"
        );
        assert_eq!(client.ask(&get(&format!("/box/{wire}"))).body, wire);
    }
    let host = [("host", "box.s3.test:9000")];
    let request = signed("PUT", "/v/host", "UNSIGNED-PAYLOAD", &host, |_| {
        b"v".to_vec()
    });
    let reply = client.ask(&request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(fixture.object("v/host").unwrap(), b"v");
}

/// The libraries do log requests; this is the proof that ours are silenced, and that they would not show such a key either.
#[test]
fn a_customer_key_is_in_no_log() {
    use tracing_subscriber::layer::SubscriberExt;
    let customer_key = "Y3VzdG9tZXIga2V5IHRoYXQgbXVzdCBub3Qgc2hvdyE=";
    let run = |guarded: bool| {
        let seen = log::testing::Log::default();
        let writer = seen.clone();
        let fixture = Fixture::with(move || {
            let sink = move || writer.clone();
            match guarded {
                true => tracing::subscriber::set_default(log::subscriber("trace", sink, false)),
                false => tracing::subscriber::set_default(
                    tracing_subscriber::registry()
                        .with(tracing_subscriber::fmt::layer().with_writer(sink)),
                ),
            }
        });
        let more = [
            ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            ("x-amz-server-side-encryption-customer-key", customer_key),
            ("x-amz-meta-a", "no secret at all"),
        ];
        let mut client = fixture.client();
        for target in ["/box/k", "/nowhere/k", "/box/k?encryption", "/box/k?acl"] {
            for method in ["PUT", "GET", "POST"] {
                let mut request =
                    signed(method, target, "UNSIGNED-PAYLOAD", &more, |_| b"x".to_vec());
                client.ask(&request);
                request.head = request.head.replace("Signature=", "Signature=0");
                client.ask(&request);
            }
        }
        drop(fixture);
        seen.text()
    };
    let quiet = run(true);
    assert!(
        quiet.contains("status=200"),
        "our own debug log is on: {quiet}"
    );
    assert!(!quiet.contains(customer_key), "{quiet}");
    let loud = run(false);
    assert!(
        loud.contains("no secret at all"),
        "the test would notice: {loud}"
    );
    assert!(!loud.contains(customer_key), "{loud}");
}
