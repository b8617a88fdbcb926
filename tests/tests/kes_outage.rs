//! The key service away, slow, back, elsewhere; and keys that it takes away while data flows.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

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

/// What needs no key goes on, what needs one says why it does not, and all is well within 10 s of its return.
#[test]
fn an_unreachable_kms_stops_what_needs_a_key_and_nothing_else() {
    let mut kes = Kes::start();
    let config = kes
        .configure(Config::http())
        .args(["--kms-cache-used", "3s"]);
    let (_server, mut client) = with_bucket(config);
    for key in ["warm", "cold", "gone"] {
        put(&mut client, key, b"content").expect(200);
    }
    let upload = create_upload(&mut client, "parts").expect(200);
    let upload = xml_values(&upload.text(), "UploadId").remove(0);
    let part = |client: &mut Client, number: u32| {
        let query = format!("partNumber={number}&uploadId={upload}");
        let body = Pattern::new(u64::from(number)).bytes(PART);
        client
            .send("PUT", BUCKET, "parts", &query, &body)
            .expect("an answer")
    };
    let etag = part(&mut client, 1).expect(200);
    let etag = etag.head.header("etag").expect("an ETag").to_owned();
    let complete = |client: &mut Client| {
        let xml = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        let query = format!("uploadId={upload}");
        client
            .send("POST", BUCKET, "parts", &query, xml.as_bytes())
            .expect("an answer")
    };
    get(&mut client, "warm").expect(200);
    eventually("it is not seen to be up", 20, || {
        health(&mut client).1.contains("\"keys\":\"ok\"")
    });

    kes.stop();
    // Cached, so for its normal time, and no longer.
    get(&mut client, "warm").expect(200);
    eventually("the cache goes on serving", 20, || {
        get(&mut client, "warm").status() == 503
    });
    for key in ["warm", "cold"] {
        away(get(&mut client, key));
        away(range(&mut client, key));
        client.head(BUCKET, key).expect("an answer").expect(200);
        let source = format!("/{BUCKET}/{key}");
        away(copy(&mut client, &source, "copied"));
    }
    away(put(&mut client, "new", b"content"));
    away(create_upload(&mut client, "other"));
    away(part(&mut client, 2));
    away(complete(&mut client));
    assert_eq!(get(&mut client, "new").status(), 404);
    let listed = client.list(BUCKET).expect("a list");
    let keys: Vec<&str> = listed.iter().map(|l| l.key.as_str()).collect();
    assert_eq!(keys, ["cold", "gone", "warm"]);
    client
        .delete(BUCKET, "gone")
        .expect("an answer")
        .expect(204);
    let (status, body) = health(&mut client);
    assert_eq!(status, 200);
    assert!(body.contains("\"keys\":\"unreachable\""), "{body}");

    kes.start_again();
    eventually("it is back, and not used", 10, || {
        put(&mut client, "new", b"content").status() == 200
    });
    for key in ["warm", "cold", "new"] {
        assert_eq!(get(&mut client, key).expect(200).body, b"content");
    }
    part(&mut client, 2).expect(200);
    complete(&mut client).expect(200);
    eventually("it is not seen to be back", 10, || {
        health(&mut client).1.contains("\"keys\":\"ok\"")
    });
}

fn create_upload(client: &mut Client, key: &str) -> Response {
    client
        .send("POST", BUCKET, key, "uploads", &[])
        .expect("an answer")
}

fn range(client: &mut Client, key: &str) -> Response {
    let request = Request {
        method: "GET",
        bucket: BUCKET,
        key,
        headers: &[("range", "bytes=1-3")],
        ..Request::default()
    };
    client.request(&request, &[]).expect("an answer")
}

fn copy(client: &mut Client, source: &str, key: &str) -> Response {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        headers: &[("x-amz-copy-source", source)],
        ..Request::default()
    };
    client.request(&request, &[]).expect("an answer")
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
