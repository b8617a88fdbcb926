//! Space on disk: taken for what is stored, given back within seconds when it is not stored any more.

use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::client::{Client, Request, xml_values};
use strongroom_tests::data::Pattern;
use strongroom_tests::{Config, Server, disk, procfs, sigv4};

const BUCKET: &str = "space";
const SOON: Duration = Duration::from_secs(20);
/// What a vanished upload may leave.
const LEFT_MAX: u64 = 10 << 20;

/// A server with a bucket, and what its directory takes while it is empty.
fn empty(config: Config) -> (Server, Client, u64) {
    let server = config.start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let used = disk::used_bytes(server.data_dir());
    (server, client, used)
}

fn put(client: &mut Client, key: &str, size: u64) {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        ..Request::default()
    };
    let mut body = Pattern::named(key).reader(size);
    let answer = client.stream(&request, size, &mut body);
    answer.expect("an answer").expect(200);
}

/// Does something for each name, over a few connections.
fn for_each(server: &Server, names: &[String], what: impl Fn(&mut Client, &str) + Sync) {
    thread::scope(|scope| {
        for some in names.chunks(names.len().div_ceil(8).max(1)) {
            scope.spawn(|| {
                let mut client = server.client();
                some.iter().for_each(|name| what(&mut client, name));
            });
        }
    });
}

fn clear(server: &Server) {
    let entries = server.client().list(BUCKET).expect("a listing");
    let names: Vec<_> = entries.into_iter().map(|entry| entry.key).collect();
    for_each(server, &names, |client, name| {
        let gone = client.delete(BUCKET, name).expect("an answer");
        gone.expect(204);
    });
}

/// Fills, deletes everything, and holds the bound; more than once, since the second time reuses what the first left.
fn come_and_go(objects: u64, size: u64) {
    let (server, _, empty) = empty(Config::http());
    let written = objects * size;
    for round in 0..2 {
        let names: Vec<_> = (0..objects).map(|n| format!("round {round}/{n}")).collect();
        for_each(&server, &names, |client, name| put(client, name, size));
        let full = disk::used_bytes(server.data_dir());
        assert!(
            full >= empty + written,
            "{written} bytes written, {} taken",
            full - empty
        );
        clear(&server);
        let limit = empty + written * 15 / 100;
        let took = disk::wait_used_at_most(server.data_dir(), limit, SOON);
        eprintln!("{objects} of {size} bytes, round {round}: {full} at most, back after {took:?}");
    }
}

#[test]
fn large_objects() {
    come_and_go(20, 10 << 20);
}

#[test]
fn middling_objects() {
    come_and_go(1000, 150_000);
}

/// Objects that live in the index, which has to be compacted to shrink.
#[test]
fn small_objects() {
    come_and_go(12_000, 12_000);
}

#[test]
fn overwriting_takes_no_more() {
    let (server, mut client, empty) = empty(Config::http());
    for _ in 0..12 {
        put(&mut client, "key", 20 << 20);
    }
    let limit = empty + (20 << 20) + (16 << 20);
    disk::wait_used_at_most(server.data_dir(), limit, SOON);
}

/// A segment that goes as a whole was read on several cores before: its space comes back all the same, and its files are closed.
#[test]
fn whole_segments_that_were_read() {
    const SEGMENT: u64 = 1 << 30;
    const OBJECT: u64 = 128 << 20;
    let (server, mut client, empty) = empty(Config::http().shards(2).args(["--cache-size", "0"]));
    let objects = 2 * SEGMENT / OBJECT + 4;
    for n in 0..objects {
        put(&mut client, &format!("{n}"), OBJECT);
    }
    // The first bytes are enough to have the segment open.
    let read = |key: &str| {
        for mut client in (0..6).map(|_| server.client()) {
            let request = Request {
                method: "GET",
                bucket: BUCKET,
                key,
                headers: &[("range", "bytes=0-99")],
                ..Request::default()
            };
            let got = client.fetch(&request, |_| {});
            assert_eq!(got.expect("an answer").status, 206);
        }
    };
    (0..objects).for_each(|n| read(&format!("{n}")));
    clear(&server);
    disk::wait_used_at_most(server.data_dir(), empty + (32 << 20), SOON);
    let (_, bytes) = procfs::removed_files(server.pid());
    assert!(bytes <= 8 << 20, "{bytes} bytes in files without a name");
    put(&mut client, "last", OBJECT);
    // A core looks when it reads next, and no client can choose its core.
    let start = Instant::now();
    while procfs::removed_files(server.pid()).0 > 0 {
        assert!(start.elapsed() < SOON, "removed files are open still");
        read("last");
    }
}

#[test]
fn after_a_restart() {
    let (mut server, mut client, empty) = empty(Config::http());
    for n in 0..10 {
        put(&mut client, &format!("{n}"), 10 << 20);
    }
    clear(&server);
    server.kill();
    server.start_again();
    disk::wait_used_at_most(server.data_dir(), empty + (15 << 20), SOON);
    assert!(server.client().list(BUCKET).expect("a listing").is_empty());
}

fn vanish(config: Config) {
    let (server, mut client, empty) = empty(config);
    let size = 200 << 20;
    for n in 0..3 {
        let key = format!("vanished {n}");
        let request = Request {
            method: "PUT",
            bucket: BUCKET,
            key: &key,
            ..Request::default()
        };
        let mut body = Pattern::named("vanished").reader(size);
        let sent = client.vanish(&request, size, 60 << 20, &mut body);
        sent.expect("the server takes what is sent");
        disk::wait_used_at_most(server.data_dir(), empty + LEFT_MAX, SOON);
        client.get(BUCKET, &key).expect("an answer").expect(404);
    }
    assert!(client.list(BUCKET).expect("a listing").is_empty());
}

#[test]
fn vanished_uploads_http() {
    vanish(Config::http());
}

#[test]
fn vanished_uploads_tls() {
    vanish(Config::tls());
}

/// A kill in the middle of an upload: the next start gives the space back.
#[test]
fn uploads_cut_by_a_kill() {
    let (mut server, mut client, empty) = empty(Config::http());
    let size = 400 << 20;
    let writer = thread::spawn(move || {
        let request = Request {
            method: "PUT",
            bucket: BUCKET,
            key: "cut",
            ..Request::default()
        };
        let mut body = Pattern::named("cut").reader(size);
        client.stream(&request, size, &mut body)
    });
    let start = Instant::now();
    while disk::used_bytes(server.data_dir()) < empty + (60 << 20) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nothing is written"
        );
        thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    let answer = writer.join().expect("no panic");
    assert!(answer.is_err(), "400 MiB went through before the kill");
    server.start_again();
    disk::wait_used_at_most(server.data_dir(), empty + LEFT_MAX, SOON);
    server
        .client()
        .get(BUCKET, "cut")
        .expect("an answer")
        .expect(404);
}

/// Parts of an upload that is aborted, and a part that another replaces.
#[test]
fn aborted_multipart_uploads() {
    let (server, mut client, empty) = empty(Config::http());
    let begun = client
        .send("POST", BUCKET, "key", "uploads=", &[])
        .expect("an answer");
    let id = xml_values(&begun.expect(200).text(), "UploadId").remove(0);
    let id = sigv4::encode_query(&id);
    let part = Pattern::named("part").bytes(20 << 20);
    for number in [1, 2, 3, 1, 2, 3, 1, 1] {
        let query = format!("partNumber={number}&uploadId={id}");
        let sent = client.send("PUT", BUCKET, "key", &query, &part);
        sent.expect("an answer").expect(200);
    }
    disk::wait_used_at_most(server.data_dir(), empty + (76 << 20), SOON);
    let query = format!("uploadId={id}");
    let gone = client.send("DELETE", BUCKET, "key", &query, &[]);
    gone.expect("an answer").expect(204);
    disk::wait_used_at_most(server.data_dir(), empty + LEFT_MAX, SOON);
}
