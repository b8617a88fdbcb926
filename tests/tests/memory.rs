//! Memory is bounded whatever clients do, and many of them at once are admitted.

use std::io::Write as _;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use strongroom_tests::client::{Endpoint, Outcome, Request, head_bytes, xml_values};
use strongroom_tests::data::Pattern;
use strongroom_tests::scan::base64;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::wire::Connection;
use strongroom_tests::{Config, Server, procfs, scaled};

const BUCKET: &str = "memory";
const MIB: u64 = 1 << 20;

/// A cache of objects in memory, where there is one, is no part of what is measured here.
fn start(config: Config) -> Server {
    let server = config.env("STRONGROOM_CACHE_SIZE", "0").start();
    let made = server.client().create_bucket(BUCKET);
    made.expect("an answer").expect(200);
    server
}

fn put(key: &str) -> Request<'_> {
    Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        ..Request::default()
    }
}

fn twelve_at_once(config: Config) {
    let server = start(config);
    let size = 64 * MIB;
    thread::scope(|scope| {
        for n in 0..12 {
            let mut client = server.client();
            scope.spawn(move || {
                let key = format!("object {n}");
                let mut body = Pattern::named(&key).reader(size);
                let answer = client.stream(&put(&key), size, &mut body);
                answer.expect("an answer").expect(200);
            });
        }
    });
    let peak = procfs::resident_peak_bytes(server.pid());
    eprintln!(
        "twelve uploads of 64 MiB: {} MB resident at most",
        peak / 1_000_000
    );
    assert!(peak < 600_000_000, "{peak} bytes resident");
    thread::scope(|scope| {
        for n in 0..12 {
            let mut client = server.client();
            scope.spawn(move || {
                let key = format!("object {n}");
                let outcome = client.probe(BUCKET, &key, &Pattern::named(&key), size);
                assert_eq!(outcome, Outcome::Right, "{key}");
            });
        }
    });
    let peak = procfs::resident_peak_bytes(server.pid());
    eprintln!("and twelve downloads: {} MB", peak / 1_000_000);
    assert!(peak < 600_000_000, "{peak} bytes resident");
}

#[test]
fn twelve_uploads_http() {
    twelve_at_once(Config::http());
}

#[test]
fn twelve_uploads_tls() {
    twelve_at_once(Config::tls());
}

/// 64 uploads on two shards, all of them half done before any may end: none is turned away.
#[test]
fn sixty_four_uploads_at_once() {
    let server = start(Config::http().shards(2));
    let size = 8 * MIB as usize;
    let half_done = Barrier::new(64);
    thread::scope(|scope| {
        for n in 0..64 {
            let (endpoint, half_done) = (server.endpoint(), &half_done);
            scope.spawn(move || {
                let key = format!("object {n}");
                let body = Pattern::named(&key).bytes(size);
                let mut upload = begin(&endpoint, &key, size as u64);
                let sent = upload.send(&body[..size / 2], &[]);
                half_done.wait();
                sent.and_then(|()| upload.send(&body[size / 2..], &[]))
                    .unwrap_or_else(|e| panic!("{key}: {e}"));
                let head = upload.read_head().expect("an answer");
                assert_eq!(head.status, 200, "{key}");
            });
        }
    });
    let mut client = server.client();
    for n in 0..64 {
        let key = format!("object {n}");
        let outcome = client.probe(BUCKET, &key, &Pattern::named(&key), size as u64);
        assert_eq!(outcome, Outcome::Right, "{key}");
    }
}

fn begin(endpoint: &Endpoint, key: &str, length: u64) -> Connection {
    let head = head_bytes(endpoint, &Moment::now(), &put(key), length);
    let mut connection = Connection::open(endpoint.address, endpoint.tls).expect("a connection");
    connection.send(head.as_bytes(), &[]).expect("sent");
    connection
}

/// An aws-chunked body that is one chunk, as Go's SDK sends it: it must not be gathered before it is stored.
#[test]
fn one_chunk_over_tls() {
    one_chunk(Config::tls());
}

#[test]
fn one_chunk_over_http() {
    one_chunk(Config::http());
}

fn one_chunk(config: Config) {
    let server = start(config);
    let size = scaled(256, 1024) * MIB;
    // Warm: the pools exist once something has gone through them.
    let warm = Pattern::new(1).bytes(20 << 20);
    let mut client = server.client();
    client
        .put(BUCKET, "warm", &warm)
        .expect("an answer")
        .expect(200);
    let before = server.resident_bytes();
    procfs::reset_peak(server.pid()).expect("our own child");

    let content = Pattern::named("one chunk");
    let mut digest = Sha256::new();
    let mut piece = vec![0; MIB as usize];
    let decoded = size.to_string();
    let headers = [
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", decoded.as_str()),
        ("x-amz-trailer", "x-amz-checksum-sha256"),
    ];
    let request = Request {
        headers: &headers,
        ..put("key")
    };
    let frame = format!("{size:x}\r\n");
    let trailer_length = "\r\n0\r\nx-amz-checksum-sha256:".len() + 44 + 4;
    let length = frame.len() as u64 + size + trailer_length as u64;
    let head = strongroom_tests::client::head_bytes_with(
        &server.endpoint(),
        &Moment::now(),
        &request,
        length,
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    );
    let endpoint = server.endpoint();
    let mut connection = Connection::open(endpoint.address, endpoint.tls).expect("a connection");
    connection
        .send(head.as_bytes(), frame.as_bytes())
        .expect("sent");
    for at in (0..size).step_by(piece.len()) {
        content.fill(at, &mut piece);
        digest.update(&piece);
        connection.send(&piece, &[]).expect("sent");
    }
    let mut end = Vec::new();
    let sum = base64(&digest.finalize());
    write!(end, "\r\n0\r\nx-amz-checksum-sha256:{sum}\r\n\r\n").expect("in memory");
    assert_eq!(end.len(), trailer_length);
    connection.send(&end, &[]).expect("sent");
    let answer = connection.read_head().expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");

    let grown = procfs::resident_peak_bytes(server.pid()).saturating_sub(before);
    eprintln!(
        "{} MiB in one chunk: {} MB more resident",
        size / MIB,
        grown / 1_000_000
    );
    assert!(grown < 40_000_000, "{grown} bytes more resident");
    let outcome = client.probe(BUCKET, "key", &content, size);
    assert_eq!(outcome, Outcome::Right);
}

/// Many requests leave nothing behind: neither memory nor open files.
#[test]
fn nothing_piles_up() {
    let server = start(Config::http());
    let round = |from: u64| {
        thread::scope(|scope| {
            for worker in 0..8 {
                let mut client = server.client();
                scope.spawn(move || {
                    for n in from..from + scaled(150, 3000) {
                        let key = format!("object {worker}/{}", n % 50);
                        let body = Pattern::named(&key).bytes((n % 7 * 20_000) as usize);
                        client
                            .put(BUCKET, &key, &body)
                            .expect("an answer")
                            .expect(200);
                        client.get(BUCKET, &key).expect("an answer").expect(200);
                        client
                            .get(BUCKET, "missing")
                            .expect("an answer")
                            .expect(404);
                    }
                });
            }
        });
        thread::sleep(Duration::from_secs(1));
        (server.resident_bytes(), procfs::open_files(server.pid()))
    };
    let (_, _) = round(0);
    let (memory, files) = round(1000);
    let (memory_later, files_later) = round(2000);
    eprintln!("{memory} then {memory_later} bytes, {files} then {files_later} files");
    assert!(
        memory_later < memory + 40_000_000,
        "{memory} then {memory_later} bytes"
    );
    assert!(
        files_later <= files + 10,
        "{files} then {files_later} files"
    );
}

/// Reading many keys while uploads are begun and never continued: stalled clients hold no more than their share.
#[test]
fn stalled_uploads_do_not_stop_others() {
    let server = start(Config::http().shards(2));
    let stalled: Vec<Connection> = (0..40)
        .map(|n| {
            let mut upload = begin(&server.endpoint(), &format!("stalled {n}"), 64 * MIB);
            upload.send(&vec![7; 300_000], &[]).expect("sent");
            upload
        })
        .collect();
    let mut client = server.client();
    for n in 0..20 {
        let key = format!("object {n}");
        let body = Pattern::named(&key).bytes(500_000);
        client
            .put(BUCKET, &key, &body)
            .expect("an answer")
            .expect(200);
        let outcome = client.probe(BUCKET, &key, &Pattern::named(&key), 500_000);
        assert_eq!(outcome, Outcome::Right);
    }
    drop(stalled);
    let listed = client
        .send("GET", BUCKET, "", "list-type=2", &[])
        .expect("an answer");
    assert_eq!(xml_values(&listed.text(), "Key").len(), 20);
}
