//! Keys rotated, and everything that is under the older versions moved to the new one: beside a server and without one, cut off
//! and taken up again, with nothing lost and nothing of the old left.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use strongroom_tests::cli::{fail, on, succeed, value};
use strongroom_tests::client::{Client, Request, head_bytes, xml_values};
use strongroom_tests::data::Pattern;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::wire::Connection;
use strongroom_tests::{Config, Server};

const BUCKET: &str = "rewrap";
const DEFAULT: &str = "strongroom-default";
const KMS: (&str, &str) = ("x-amz-server-side-encryption", "aws:kms");
/// In the index, and in segments.
const SIZES: [usize; 4] = [0, 100, 70_000, 3 << 20];
const PART: usize = 5 << 20;

fn key(dir: &Path, args: &[&str]) -> String {
    succeed(&mut on(dir, &[&["key"], args].concat()))
}

fn number(printed: &str, name: &str) -> u64 {
    value(printed, name).parse().expect("a number")
}

fn content(name: &str, size: usize) -> Vec<u8> {
    Pattern::named(name).bytes(size)
}

type Headers = Vec<(&'static str, &'static str)>;

/// What every object is called and how it is to be sealed.
fn objects() -> Vec<(String, usize, Headers)> {
    let modes: [(&str, &[(&str, &str)]); 4] = [
        ("s3", &[]),
        ("kms", &[KMS]),
        (
            "context",
            &[
                KMS,
                // {"department":"payroll"}
                (
                    "x-amz-server-side-encryption-context",
                    "eyJkZXBhcnRtZW50IjoicGF5cm9sbCJ9",
                ),
            ],
        ),
        (
            "bucket-key",
            &[
                KMS,
                ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
            ],
        ),
    ];
    let mut all = Vec::new();
    for (mode, headers) in modes {
        for size in SIZES {
            all.push((format!("{mode}/{size}"), size, headers.to_vec()));
        }
    }
    all
}

fn put(client: &mut Client, name: &str, size: usize, headers: &[(&str, &str)]) {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: name,
        headers,
        ..Request::default()
    };
    let done = client.request(&request, &content(name, size));
    done.expect("an answer").expect(200);
}

fn begin_upload(client: &mut Client, name: &str) -> String {
    let begun = client.send("POST", BUCKET, name, "uploads=", &[]);
    let begun = begun.expect("an answer").expect(200);
    xml_values(&begun.text(), "UploadId").pop().expect("an id")
}

fn put_part(client: &mut Client, name: &str, id: &str, number: usize) -> String {
    let query = format!("partNumber={number}&uploadId={id}");
    let body = content(&format!("{name}-{number}"), PART);
    let put = client.send("PUT", BUCKET, name, &query, &body);
    let put = put.expect("an answer").expect(200);
    put.head.header("etag").expect("an ETag").to_owned()
}

fn complete(client: &mut Client, name: &str, id: &str, etags: &[String]) {
    let parts: String = etags
        .iter()
        .zip(1..)
        .map(|(etag, n)| format!("<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>"))
        .collect();
    let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    let query = format!("uploadId={id}");
    let done = client.send("POST", BUCKET, name, &query, body.as_bytes());
    done.expect("an answer").expect(200);
}

/// The headers of an object that a re-wrap has to leave alone.
fn shown(client: &mut Client, name: &str) -> Vec<Option<String>> {
    let head = client.head(BUCKET, name).expect("an answer").expect(200);
    [
        "etag",
        "last-modified",
        "content-length",
        "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-bucket-key-enabled",
    ]
    .map(|h| head.head.header(h).map(str::to_owned))
    .to_vec()
}

struct Filled {
    shown: Vec<Vec<Option<String>>>,
    upload: String,
    part: String,
}

fn fill(server: &Server) -> Filled {
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    for (name, size, headers) in objects() {
        put(&mut client, &name, size, &headers);
    }
    let upload = begin_upload(&mut client, "parts");
    let part = put_part(&mut client, "parts", &upload, 1);
    let shown = objects()
        .iter()
        .map(|(name, ..)| shown(&mut client, name))
        .collect();
    Filled {
        shown,
        upload,
        part,
    }
}

/// Everything reads as before, and the upload goes on.
fn check(server: &Server, filled: &Filled) {
    let mut client = server.client();
    for ((name, size, _), before) in objects().into_iter().zip(&filled.shown) {
        let got = client.get(BUCKET, &name).expect("an answer").expect(200);
        assert!(got.body == content(&name, size), "{name}");
        assert_eq!(&shown(&mut client, &name), before, "{name}");
    }
    let second = put_part(&mut client, "parts", &filled.upload, 2);
    let etags = [filled.part.clone(), second];
    complete(&mut client, "parts", &filled.upload, &etags);
    let got = client.get(BUCKET, "parts").expect("an answer").expect(200);
    assert!(got.body == [content("parts-1", PART), content("parts-2", PART)].concat());
}

#[test]
fn everything_moves_beside_a_running_server_and_older_versions_can_go() {
    let mut server = Config::http().start();
    let filled = fill(&server);
    let dir = server.data_dir().to_owned();
    let status = key(&dir, &["status", DEFAULT]);
    assert_eq!(number(&status, "objects"), 16);
    let bytes: usize = SIZES.iter().sum();
    assert_eq!(number(&status, "bytes"), 4 * bytes as u64);
    assert_eq!(number(&status, "uploads"), 1);
    assert_eq!(number(&status, "upload-bytes"), PART as u64);
    assert_eq!(number(&status, "under-older-versions"), 0);

    let rotated = key(&dir, &["rotate", DEFAULT]);
    assert_eq!(number(&rotated, "under-older-versions"), 17);
    let said = key(&dir, &["rewrap", DEFAULT, "--retire"]);
    assert!(said.contains("17 objects and uploads"), "{said}");
    let status = key(&dir, &["status", DEFAULT]);
    assert_eq!(number(&status, "under-older-versions"), 0);
    assert_eq!(number(&status, "objects"), 16);
    assert_eq!(number(&status, "versions"), 1);
    assert_eq!(number(&status, "version"), 2);

    // What the first version was needed for is gone with it; all opens under the second, also after a restart.
    server.restart();
    check(&server, &filled);
    let status = key(&dir, &["status", DEFAULT]);
    assert_eq!(number(&status, "objects"), 17);
    assert_eq!(number(&status, "uploads"), 0);
    let again = key(&dir, &["rewrap", DEFAULT]);
    assert!(again.starts_with("0 objects"), "{again}");
}

#[test]
fn everything_moves_without_a_server() {
    let mut server = Config::http().start();
    let filled = fill(&server);
    let dir = server.data_dir().to_owned();
    assert!(server.terminate().0.success());
    key(&dir, &["rotate", DEFAULT]);
    let status = key(&dir, &["status", DEFAULT]);
    assert_eq!(number(&status, "under-older-versions"), 17);
    let said = key(&dir, &["rewrap", DEFAULT, "--retire"]);
    assert!(said.contains("17 objects and uploads"), "{said}");
    assert_eq!(number(&key(&dir, &["status", DEFAULT]), "versions"), 1);
    server.start_again();
    check(&server, &filled);
}

#[test]
fn a_key_that_cannot_be_used_moves_nothing() {
    let server = Config::http().start();
    let dir = server.data_dir().to_owned();
    let unknown = fail(&mut on(&dir, &["key", "rewrap", "nobody"]));
    assert!(unknown.contains("does not exist"), "{unknown}");
    key(&dir, &["disable", DEFAULT]);
    let disabled = fail(&mut on(&dir, &["key", "rewrap", DEFAULT]));
    assert!(disabled.contains("disabled"), "{disabled}");
}

/// The server is killed in the middle, again and again; the last run finds the rest.
#[test]
fn a_rewrap_that_was_cut_off_goes_on_where_it_was() {
    const OBJECTS: usize = 1500;
    let mut server = Config::http().start();
    let dir = server.data_dir().to_owned();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let name = |i: usize| format!("object-{i}");
    let size = |i: usize| if i.is_multiple_of(10) { 20_000 } else { 50 };
    for i in 0..OBJECTS {
        put(&mut client, &name(i), size(i), &[]);
    }
    key(&dir, &["rotate", DEFAULT]);
    let mut left = OBJECTS as u64;
    let mut cut_off = 0;
    for pause in [40, 80, 120] {
        let mut command = on(&dir, &["key", "rewrap", DEFAULT]);
        let mut job = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        std::thread::sleep(Duration::from_millis(pause));
        server.kill();
        job.wait().expect("the command ends");
        server.start_again();
        let status = key(&dir, &["status", DEFAULT]);
        let now = number(&status, "under-older-versions");
        assert!(now <= left, "{now} after {left}");
        assert_eq!(number(&status, "objects"), OBJECTS as u64);
        cut_off += usize::from(now > 0 && now < left);
        left = now;
    }
    assert!(cut_off > 0, "never cut off in the middle");
    let said = key(&dir, &["rewrap", DEFAULT, "--retire"]);
    assert!(said.contains(&format!("{left} objects")), "{said}");
    let mut client = server.client();
    for i in 0..OBJECTS {
        let got = client.get(BUCKET, &name(i)).expect("an answer").expect(200);
        assert!(got.body == content(&name(i), size(i)), "{}", name(i));
    }
}

/// Writers go on while keys are rotated and older versions destroyed: what was acknowledged opens.
#[test]
fn nothing_acknowledged_is_lost_while_versions_are_retired() {
    let server = Config::http().start();
    let dir = server.data_dir().to_owned();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let end = Instant::now() + Duration::from_secs(6);
    let acknowledged: Vec<(String, usize)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.client();
                    let mut done = Vec::new();
                    for i in 0.. {
                        if Instant::now() > end {
                            break;
                        }
                        let name = format!("{writer}/{}", i % 50);
                        let size = [30, 30_000][i % 2];
                        let put = client.put(BUCKET, &name, &content(&name, size));
                        // A request that met a destroyed version is told so.
                        match put.map(|answer| answer.status()) {
                            Ok(200) => done.push((name, size)),
                            Ok(400 | 503) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                    done
                })
            })
            .collect();
        let mut rounds = 0;
        while Instant::now() < end {
            key(&dir, &["rotate", DEFAULT]);
            key(&dir, &["rewrap", DEFAULT, "--retire"]);
            rounds += 1;
        }
        assert!(rounds > 0);
        writers
            .into_iter()
            .flat_map(|w| w.join().expect("a writer"))
            .collect()
    });
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    assert_eq!(number(&key(&dir, &["status", DEFAULT]), "versions"), 1);
    let mut client = server.client();
    for (name, size) in acknowledged {
        let got = client.get(BUCKET, &name).expect("an answer").expect(200);
        // It may have been written again in the other size.
        let whole = content(&name, 30_000);
        assert!(
            got.body == whole || got.body == whole[..30],
            "{name} of {size}"
        );
    }
}

/// An upload that began under an old version is refused once that is destroyed, and succeeds when it is repeated.
#[test]
fn an_upload_under_a_version_that_is_destroyed_has_to_be_repeated() {
    let server = Config::http().start();
    let dir = server.data_dir().to_owned();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let body = content("late", 3 << 20);
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "late",
        ..Request::default()
    };
    let length = body.len() as u64;
    let head = head_bytes(&server.endpoint(), &Moment::now(), &request, length);
    let mut connection = Connection::open(server.address(), false).expect("a connection");
    let (first, rest) = body.split_at(body.len() / 2);
    connection.send(head.as_bytes(), first).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    key(&dir, &["rotate", DEFAULT]);
    key(&dir, &["rewrap", DEFAULT, "--retire"]);
    // It may answer before it has read everything, and close.
    let _ = connection.send(rest, &[]);
    let head = connection.read_head().expect("an answer");
    assert!(matches!(head.status, 400 | 503), "{}", head.status);
    client.get(BUCKET, "late").expect("an answer").expect(404);
    client
        .put(BUCKET, "late", &body)
        .expect("an answer")
        .expect(200);
}
