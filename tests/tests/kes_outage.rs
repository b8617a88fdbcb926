//! The key service away, slow, back, elsewhere; and keys that it takes away while data flows.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::cli::{on, succeed};
use strongroom_tests::client::{Client, Request, Response, xml_values};
use strongroom_tests::data::Pattern;
use strongroom_tests::kes::{KEY, Kes, Mode};
use strongroom_tests::{Config, Server, binary};

const BUCKET: &str = "outage";
const PART: usize = 5 << 20;

fn with_bucket(config: Config) -> (Server, Client) {
    let server = config.start();
    let mut client = server.client();
    let made = client.create_bucket(BUCKET).expect("an answer");
    assert!([200, 409].contains(&made.status()), "{}", made.text());
    (server, client)
}

fn put(client: &mut Client, key: &str, body: &[u8]) -> Response {
    client.put(BUCKET, key, body).expect("an answer")
}

fn get(client: &mut Client, key: &str) -> Response {
    client.get(BUCKET, key).expect("an answer")
}

fn away(answer: Response) {
    let answer = answer.expect(503);
    assert_eq!(answer.code(), "ServiceUnavailable");
    let text = answer.text();
    assert!(text.contains("key service cannot be reached"), "{text}");
}

fn health(client: &mut Client) -> (u16, String) {
    // Signed or not makes no difference to it.
    let answer = client.send("GET", "health", "ready", "", &[]);
    let answer = answer.expect("an answer");
    (answer.status(), answer.text())
}

fn eventually(what: &str, patience: u64, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(patience), "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

const SSE: &str = "x-amz-server-side-encryption";
const CUSTOMER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const CUSTOMER_KEY_MD5: &str = "hRasmdxgYDKV3nvbahU1MA==";

/// The modes whose keys come from the key service.
const OF_SERVICE: [(&str, &[(&str, &str)]); 3] = [
    ("sse-s3", &[]),
    (
        "sse-kms",
        &[
            (SSE, "aws:kms"),
            ("x-amz-server-side-encryption-context", "eyJhIjoiYiJ9"),
        ],
    ),
    (
        "bucket-key",
        &[
            (SSE, "aws:kms"),
            ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
        ],
    ),
];

const SSE_C: [(&str, &str); 3] = [
    ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
    ("x-amz-server-side-encryption-customer-key", CUSTOMER_KEY),
    (
        "x-amz-server-side-encryption-customer-key-md5",
        CUSTOMER_KEY_MD5,
    ),
];

/// An upload of one mode with one part, to be gone on with while the key service is away.
struct Begun {
    key: String,
    upload: String,
    etag: String,
}

impl Begun {
    fn new(client: &mut Client, mode: &str, headers: &[(&str, &str)]) -> Self {
        let key = format!("upload-{mode}");
        let created = create_upload(client, &key, headers).expect(200);
        let upload = xml_values(&created.text(), "UploadId").remove(0);
        let mut begun = Self {
            key,
            upload,
            etag: String::new(),
        };
        let part = begun.part(client, 1).expect(200);
        begun.etag = part.head.header("etag").expect("an ETag").to_owned();
        begun
    }

    fn part(&self, client: &mut Client, number: u32) -> Response {
        let query = format!("partNumber={number}&uploadId={}", self.upload);
        let body = Pattern::new(u64::from(number)).bytes(PART);
        client
            .send("PUT", BUCKET, &self.key, &query, &body)
            .expect("an answer")
    }

    fn copied_part(&self, client: &mut Client, source: &str) -> Response {
        let query = format!("partNumber=3&uploadId={}", self.upload);
        let request = Request {
            method: "PUT",
            bucket: BUCKET,
            key: &self.key,
            query: &query,
            headers: &[("x-amz-copy-source", source)],
        };
        client.request(&request, &[]).expect("an answer")
    }

    fn complete(&self, client: &mut Client) -> Response {
        let xml = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            self.etag.replace('"', "&quot;")
        );
        let query = format!("uploadId={}", self.upload);
        client
            .send("POST", BUCKET, &self.key, &query, xml.as_bytes())
            .expect("an answer")
    }
}

/// What needs no key goes on, what needs one says why it does not, and all is well within 10 s of its return.
#[test]
fn an_unreachable_kms_stops_what_needs_a_key_and_nothing_else() {
    let mut kes = Kes::start();
    let config =
        kes.configure(Config::http())
            .args(["--kms-cache-used", "3s", "--allow-sse-c-without-tls"]);
    let (_server, mut client) = with_bucket(config);
    let mut begun = Vec::new();
    for (mode, headers) in OF_SERVICE {
        for key in ["warm", "cold"] {
            with(&mut client, "PUT", &format!("{key}-{mode}"), headers).expect(200);
        }
        begun.push(Begun::new(&mut client, mode, headers));
        get(&mut client, &format!("warm-{mode}")).expect(200);
    }
    with(&mut client, "PUT", "sse-c", &SSE_C).expect(200);
    with(&mut client, "PUT", "gone", &[]).expect(200);
    eventually("it is not seen to be up", 20, || {
        health(&mut client).1.contains("\"keys\":\"ok\"")
    });

    kes.stop();
    // Cached, so for its normal time, and no longer.
    for (mode, _) in OF_SERVICE {
        eventually("the cache goes on serving", 20, || {
            get(&mut client, &format!("warm-{mode}")).status() == 503
        });
    }
    for ((mode, headers), begun) in OF_SERVICE.into_iter().zip(&begun) {
        for key in ["warm", "cold"] {
            let key = format!("{key}-{mode}");
            away(get(&mut client, &key));
            away(with(&mut client, "GET", &key, &[("range", "bytes=1-3")]));
            with(&mut client, "HEAD", &key, &[]).expect(200);
            // Everything but the checksum, which only the key opens.
            let head = with(
                &mut client,
                "HEAD",
                &key,
                &[("x-amz-checksum-mode", "ENABLED")],
            );
            let head = head.expect(200).head;
            let sums = head
                .headers
                .iter()
                .filter(|(n, _)| n.starts_with("x-amz-checksum"));
            assert_eq!(sums.count(), 0);
            let source = format!("/{BUCKET}/{key}");
            let from = [("x-amz-copy-source", source.as_str())];
            away(with(&mut client, "PUT", "copied", &from));
            away(with(
                &mut client,
                "PUT",
                "copied",
                &[&from[..], &SSE_C[..]].concat(),
            ));
            away(begun.copied_part(&mut client, &source));
            away(move_to_another_key(&mut client, &key));
            let size = [("x-amz-object-attributes", "ObjectSize")];
            attributes(&mut client, &key, &size).expect(200);
            let sums = [("x-amz-object-attributes", "Checksum")];
            away(attributes(&mut client, &key, &sums));
        }
        away(with(&mut client, "PUT", "new", headers));
        away(create_upload(&mut client, "other", headers));
        away(begun.part(&mut client, 2));
        away(begun.complete(&mut client));
        let from = [("x-amz-copy-source", "/outage/sse-c")];
        let customers = SSE_C.map(|(n, v)| (n.replace("x-amz-", "x-amz-copy-source-"), v));
        let customers = customers.iter().map(|(n, v)| (n.as_str(), *v));
        let from: Vec<(&str, &str)> = from.into_iter().chain(customers).collect();
        away(with(
            &mut client,
            "PUT",
            "copied",
            &[&from[..], headers].concat(),
        ));
    }
    for absent in ["new", "copied"] {
        assert_eq!(get(&mut client, absent).status(), 404);
    }
    // A customer's key needs no service.
    with(&mut client, "GET", "sse-c", &SSE_C).expect(200);
    with(&mut client, "PUT", "sse-c-too", &SSE_C).expect(200);
    let listed = client.list(BUCKET).expect("a list");
    assert_eq!(listed.len(), 2 * OF_SERVICE.len() + 3);
    client
        .delete(BUCKET, "gone")
        .expect("an answer")
        .expect(204);
    let uploads = client.send("GET", BUCKET, "", "uploads", &[]);
    let uploads = uploads.expect("an answer").expect(200);
    assert_eq!(xml_values(&uploads.text(), "Upload").len(), begun.len());
    let (status, body) = health(&mut client);
    assert_eq!(status, 200);
    assert!(body.contains("\"keys\":\"unreachable\""), "{body}");

    kes.start_again();
    eventually("it is back, and not used", 10, || {
        put(&mut client, "new", b"content").status() == 200
    });
    for ((mode, _), begun) in OF_SERVICE.into_iter().zip(&begun) {
        for key in ["warm", "cold"] {
            let got = get(&mut client, &format!("{key}-{mode}"));
            assert_eq!(got.expect(200).body, b"content");
        }
        begun.part(&mut client, 2).expect(200);
        begun.complete(&mut client).expect(200);
    }
    eventually("it is not seen to be back", 10, || {
        health(&mut client).1.contains("\"keys\":\"ok\"")
    });
}

fn move_to_another_key(client: &mut Client, key: &str) -> Response {
    use base64::Engine as _;
    use md5::{Digest as _, Md5};
    let body = "<ObjectEncryption><SSE-KMS><KMSKeyArn>arn:aws:kms:us-east-1:000000000000:key/other</KMSKeyArn></SSE-KMS></ObjectEncryption>";
    let md5 = base64::engine::general_purpose::STANDARD.encode(Md5::digest(body));
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        query: "encryption",
        headers: &[("content-md5", md5.as_str())],
    };
    client
        .request(&request, body.as_bytes())
        .expect("an answer")
}

fn attributes(client: &mut Client, key: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request {
        method: "GET",
        bucket: BUCKET,
        key,
        query: "attributes",
        headers,
    };
    client.request(&request, &[]).expect("an answer")
}

fn create_upload(client: &mut Client, key: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request {
        method: "POST",
        bucket: BUCKET,
        key,
        query: "uploads",
        headers,
    };
    client.request(&request, &[]).expect("an answer")
}

/// A request with headers; a PUT brings the content that all small objects have, unless it copies.
fn with(client: &mut Client, method: &str, key: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request {
        method,
        bucket: BUCKET,
        key,
        headers,
        ..Request::default()
    };
    let copies = headers.iter().any(|(n, _)| *n == "x-amz-copy-source");
    let body: &[u8] = if method == "PUT" && !copies {
        b"content"
    } else {
        b""
    };
    client.request(&request, body).expect("an answer")
}

#[test]
fn a_kms_that_does_not_answer_is_waited_for_and_no_longer() {
    let kes = Kes::start();
    let (_server, mut client) = with_bucket(kes.configure(Config::http()));
    put(&mut client, "a", b"content").expect(200);
    for mode in [Mode::Silent, Mode::Late(Duration::from_secs(30))] {
        kes.set(mode);
        let start = Instant::now();
        away(put(&mut client, "b", b"content"));
        // The time it may take is 5 s; more than twice of it is another bound.
        let took = start.elapsed();
        assert!((5.0..12.0).contains(&took.as_secs_f64()), "{took:?}");
    }
    kes.set(Mode::Late(Duration::from_secs(2)));
    put(&mut client, "b", b"content").expect(200);
    kes.set(Mode::Serve);
    put(&mut client, "b", b"content").expect(200);

    let config = kes.configure(Config::http()).args(["--kms-timeout", "1s"]);
    let (_server, mut client) = with_bucket(config);
    kes.set(Mode::Late(Duration::from_secs(3)));
    let start = Instant::now();
    away(put(&mut client, "b", b"content"));
    assert!(start.elapsed() < Duration::from_secs(3));
}

/// What needs the key service twice, for what it reads and for what it writes, has the time of one request for both.
#[test]
fn all_calls_of_a_request_share_its_time() {
    let kes = Kes::start();
    kes.create_key("other");
    let config = kes.configure(Config::http()).args(["--kms-timeout", "2s"]);
    let (mut server, mut client) = with_bucket(config);
    put(&mut client, "source", b"content").expect(200);
    let source = format!("/{BUCKET}/source");
    let copy = [("x-amz-copy-source", source.as_str())];
    let upload = Begun::new(&mut client, "sse-s3", &[]);
    // Each call alone would be in time.
    for mode in [Mode::Late(Duration::from_millis(1300)), Mode::Silent] {
        for what in ["a copy", "a copied part", "another key"] {
            // Nothing in memory helps.
            kes.set(Mode::Serve);
            server.restart();
            let mut client = server.client();
            kes.set(mode.clone());
            let start = Instant::now();
            away(match what {
                "a copy" => with(&mut client, "PUT", "copy", &copy),
                "a copied part" => upload.copied_part(&mut client, &source),
                _ => move_to_another_key(&mut client, "source"),
            });
            let took = start.elapsed().as_secs_f64();
            assert!((1.5..3.5).contains(&took), "{what}: {took} s");
        }
    }
    kes.set(Mode::Late(Duration::from_millis(300)));
    with(&mut server.client(), "PUT", "copy", &copy).expect(200);
    assert_eq!(
        get(&mut server.client(), "copy").expect(200).body,
        b"content"
    );
}

/// A multipart object is replaced while a download of it waits for its key: the download is of the new one.
#[test]
fn a_download_of_what_is_replaced_meanwhile_is_of_the_new_object() {
    let kes = Kes::start();
    let (mut server, mut client) = with_bucket(kes.configure(Config::http()));
    let upload = Begun::new(&mut client, "sse-s3", &[]);
    upload.complete(&mut client).expect(200);
    server.restart();
    let mut client = server.client();
    kes.set(Mode::Late(Duration::from_millis(1500)));
    let asked = kes.data_key_calls();
    let got = thread::scope(|scope| {
        let mut other = server.client();
        let key = upload.key.as_str();
        let download = scope.spawn(move || get(&mut other, key));
        eventually("the download asks for its key", 10, || {
            kes.data_key_calls() > asked
        });
        // What was asked stays late.
        thread::sleep(Duration::from_millis(200));
        kes.set(Mode::Serve);
        put(&mut client, key, b"content").expect(200);
        assert!(!download.is_finished(), "the object was replaced too late");
        download.join().expect("a download")
    });
    assert_eq!(got.expect(200).body, b"content");
}

/// Many at once wait no longer than one, and none of them leaves the server short of anything.
#[test]
fn many_requests_outlive_a_silent_kms() {
    let kes = Kes::start();
    let config = kes.configure(Config::http()).args(["--kms-timeout", "2s"]);
    let (server, mut client) = with_bucket(config);
    kes.set(Mode::Silent);
    let start = Instant::now();
    thread::scope(|scope| {
        for n in 0..100 {
            let mut client = server.client();
            scope.spawn(move || away(put(&mut client, &format!("k{n}"), b"content")));
        }
    });
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    kes.set(Mode::Serve);
    put(&mut client, "a", b"content").expect(200);
}

#[test]
fn a_kms_outage_at_start_does_not_stop_the_server() {
    let mut kes = Kes::start();
    let home = tempfile::tempdir_in(binary::scratch()).expect("writable");
    let dir = home.path().join("data");
    let config = || kes.configure(Config::http().data_dir(&dir));
    let (config_down, config_up) = (config(), config());
    let (mut server, mut client) = with_bucket(config_up);
    put(&mut client, "a", b"content").expect(200);
    assert!(server.terminate().0.success());

    kes.stop();
    let (server, mut client) = with_bucket(config_down);
    eventually("health does not say so", 20, || {
        health(&mut client)
            == (
                200,
                "{\"status\":\"ready\",\"keys\":\"unreachable\"}\n".into(),
            )
    });
    client.head(BUCKET, "a").expect("an answer").expect(200);
    assert_eq!(client.list(BUCKET).expect("a list").len(), 1);
    client
        .create_bucket("another")
        .expect("an answer")
        .expect(200);
    away(get(&mut client, "a"));
    away(put(&mut client, "b", b"content"));
    assert!(server.log().contains("KES cannot be reached"));
    kes.start_again();
    eventually("it is back, and not used", 10, || {
        get(&mut client, "a").status() == 200
    });
    put(&mut client, "b", b"content").expect(200);
}

/// Neither the service nor a key is needed to list, and one key that is gone spoils no page.
#[test]
fn listings_need_no_kms() {
    let mut kes = Kes::start();
    kes.create_key("other");
    let (server, mut client) = with_bucket(kes.configure(Config::http()));
    let other = [
        (SSE, "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "other"),
    ];
    let mut written = Vec::new();
    for n in 0..40 {
        let headers = if n % 3 == 0 { &other[..] } else { &[] };
        let key = format!("{n:02}");
        let answer = with(&mut client, "PUT", &key, headers).expect(200);
        let etag = answer.head.header("etag").expect("an ETag");
        written.push((key, etag.trim_matches('"').to_owned()));
    }
    let listed = |client: &mut Client| -> Vec<(String, String)> {
        let listed = client.list(BUCKET).expect("a list").into_iter();
        listed.map(|l| (l.key, l.etag)).collect()
    };
    let asked = kes.data_key_calls();
    assert_eq!(listed(&mut client), written);
    kes.delete_key("other");
    assert_eq!(
        get(&mut client, "00").expect(400).code(),
        "KMS.NotFoundException"
    );
    assert_eq!(listed(&mut client), written);
    kes.stop();
    assert_eq!(listed(&mut client), written);
    succeed(&mut on(server.data_dir(), &["kms", "seal"]));
    assert_eq!(listed(&mut client), written);
    assert_eq!(kes.data_key_calls(), asked + 1);
}

#[test]
fn another_endpoint_takes_over() {
    let (mut kes, other) = (Kes::start(), Kes::start());
    // One file with the certificates of both.
    let both = [kes.trusted(), other.trusted()].map(|f| std::fs::read_to_string(f).expect("PEM"));
    let trusted = kes.home().join("both.crt");
    std::fs::write(&trusted, both.concat()).expect("writable");
    let config = kes
        .configure(Config::http().shards(1))
        .env(
            "STRONGROOM_KMS_KES_ENDPOINT",
            &format!("{},{}", kes.endpoint(), other.endpoint()),
        )
        .env("STRONGROOM_KMS_KES_CAPATH", &trusted.display().to_string());
    let (_server, mut client) = with_bucket(config);
    kes.stop();
    for n in 0..5 {
        put(&mut client, &format!("a{n}"), b"content").expect(200);
    }
    assert_eq!(other.calls("generate"), 5);
    kes.start_again();
    // One that takes the connection and says nothing costs part of the time only.
    other.set(Mode::Silent);
    put(&mut client, "b", b"content").expect(200);
    assert_eq!(kes.calls("generate"), 1);
}

#[test]
fn reads_go_on_from_the_cache_where_that_was_asked_for() {
    let mut kes = Kes::start();
    let config = kes.configure(Config::http().shards(1)).args([
        "--kms-outage",
        "reads-from-cache:15s",
        "--kms-cache-used",
        "2s",
        "--kms-cache-unused",
        "1s",
    ]);
    let (_server, mut client) = with_bucket(config);
    for key in ["read", "unread"] {
        put(&mut client, key, b"content").expect(200);
    }
    get(&mut client, "read").expect(200);
    kes.stop();
    let stopped = Instant::now();
    thread::sleep(Duration::from_secs(4));
    assert_eq!(get(&mut client, "read").expect(200).body, b"content");
    away(get(&mut client, "unread"));
    away(put(&mut client, "new", b"content"));
    eventually("reads go on for ever", 40, || {
        get(&mut client, "read").status() == 503
    });
    assert!(
        stopped.elapsed() > Duration::from_secs(9),
        "{:?}",
        stopped.elapsed()
    );
    kes.start_again();
    get(&mut client, "unread").expect(200);

    // What the service takes away while it can be reached is gone.
    get(&mut client, "read").expect(200);
    kes.delete_key(KEY);
    eventually("the key is gone, and its objects are read", 10, || {
        get(&mut client, "read").status() == 400
    });
    kes.stop();
    away(get(&mut client, "read"));
}

/// A body that does something in its middle.
struct Interrupted<'a, F: FnMut()> {
    rest: &'a [u8],
    at: usize,
    then: Option<F>,
}

impl<F: FnMut()> Read for Interrupted<'_, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.len() <= self.at
            && let Some(mut then) = self.then.take()
        {
            then();
        }
        let n = out.len().min(64 << 10).min(self.rest.len());
        out[..n].copy_from_slice(&self.rest[..n]);
        self.rest = &self.rest[n..];
        Ok(n)
    }
}

/// Deleted or forbidden at KES: within the time that is set nothing under the key is read or written, downloads that
/// are under way break off, and uploads are refused at their commit.
#[test]
fn what_kes_takes_away_is_gone_in_time_for_streams_too() {
    const USED: Duration = Duration::from_secs(4);
    let kes = Kes::start();
    let config = kes
        .configure(Config::http())
        .args(["--kms-cache-used", "4s"]);
    let (_server, mut client) = with_bucket(config);
    let content = Pattern::new(7).bytes(64 << 20);
    put(&mut client, "large", &content).expect(200);
    put(&mut client, "small", b"content").expect(200);
    let (delete, forbid) = (|| kes.delete_key(KEY), || kes.forbid("decrypt", KEY));
    let ways: [(&dyn Fn(), u16, &str); 2] = [
        (&forbid, 403, "AccessDenied"),
        (&delete, 400, "KMS.NotFoundException"),
    ];
    for (take_away, status, code) in ways {
        let good_again = |client: &mut Client| {
            kes.allow_all();
            kes.undelete_key(KEY);
            eventually("allowed, and still refused", 10, || {
                get(client, "small").status() == 200
            });
        };
        // Opened first, so that it is confirmed by opening.
        get(&mut client, "small").expect(200);
        let large = Request {
            method: "GET",
            bucket: BUCKET,
            key: "large",
            ..Request::default()
        };
        let (mut read, mut taken) = (0, false);
        let outcome = client.fetch(&large, |piece| {
            if !taken {
                take_away();
                taken = true;
                thread::sleep(USED + Duration::from_secs(2));
            }
            read += piece.len();
        });
        assert!(outcome.is_err(), "the download went on to its end");
        assert!(read < content.len());
        let refused = get(&mut client, "small").expect(status);
        assert_eq!(refused.code(), code);
        good_again(&mut client);

        let upload = Request {
            method: "PUT",
            key: "upload",
            ..large
        };
        let mut body = Interrupted {
            rest: &content[..8 << 20],
            at: 4 << 20,
            then: Some(|| {
                take_away();
                thread::sleep(USED + Duration::from_secs(2));
            }),
        };
        let answer = client.stream(&upload, 8 << 20, &mut body);
        let refused = answer.expect("an answer").expect(status);
        assert_eq!(refused.code(), code);
        assert_eq!(get(&mut client, "upload").status(), 404);
        good_again(&mut client);
    }
}
