//! A server's life as an operator sees it: start, what it prints, who is refused, how it stops, and that a restart
//! loses nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use strongroom_tests::client::{Client, Request, head_bytes};
use strongroom_tests::data::Pattern;
use strongroom_tests::server::ROOT_PASSWORD;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::wire::Connection;
use strongroom_tests::{Config, Server, binary, python};

const BUCKET: &str = "life";

fn with_bucket(config: Config) -> (Server, Client) {
    let server = config.start();
    let mut client = server.client();
    let made = client.create_bucket(BUCKET).expect("an answer");
    made.expect(200);
    (server, client)
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(binary::scratch()).expect("scratch is writable")
}

fn mode(path: &Path) -> u32 {
    let data = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    data.permissions().mode() & 0o777
}

#[test]
fn what_a_start_prints() {
    let server = Config::tls().start();
    let log = server.log();
    let certificate = server.certificate();
    for expected in [
        server.endpoint_url().as_str(),
        certificate.to_str().expect("UTF-8"),
        "aws ",
        "Credentials",
    ] {
        assert!(log.contains(expected), "no {expected:?} in:\n{log}");
    }
    assert!(
        !log.contains(ROOT_PASSWORD),
        "the password is printed:\n{log}"
    );
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.trim_start().starts_with("ready"),
        "the last line is {last:?}"
    );
}

/// The printed `aws` line, pasted into a shell, works.
#[test]
fn the_printed_command_works() {
    for config in [Config::http(), Config::tls()] {
        let server = config.without_credentials().start();
        let log = server.log();
        let line = log
            .lines()
            .map(str::trim)
            .find(|l| l.contains("aws ") && l.contains("s3"));
        let line = line.unwrap_or_else(|| panic!("no aws command in:\n{log}"));
        let aws = python::aws(&server);
        let bin = Path::new(aws.get_program()).parent().expect("bin/");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(server.data_dir());
        shell.env("PATH", format!("{}:{path}", bin.display()));
        for name in [
            "AWS_PROFILE",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_CA_BUNDLE",
        ] {
            shell.env_remove(name);
        }
        python::succeed(&mut shell);
    }
}

#[test]
fn a_first_start_makes_what_was_not_given() {
    let home = scratch();
    let dir = home.path().join("made/by the server");
    let config = Config::tls().without_credentials().data_dir(&dir);
    let (mut server, mut client) = with_bucket(config);
    for file in ["root-credentials", "root.key", "certs/private.key"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    client
        .put(BUCKET, "key", b"content")
        .expect("an answer")
        .expect(200);
    let kept = [
        "root-credentials",
        "root.key",
        "certs/private.key",
        "certs/public.crt",
    ];
    let read = || kept.map(|f| fs::read(dir.join(f)).expect("readable"));
    let before = read();
    server.restart();
    assert!(
        read() == before,
        "a restart keeps what the first start made"
    );
    let got = server.client().get(BUCKET, "key").expect("an answer");
    assert_eq!(got.expect(200).body, b"content");
}

#[test]
fn an_existing_empty_directory_is_a_first_start() {
    let home = scratch();
    let (_server, _client) = with_bucket(Config::http().data_dir(home.path()));
}

#[test]
fn objects_survive_every_stop() {
    for config in [Config::http(), Config::tls()] {
        let (mut server, mut client) = with_bucket(config);
        let sizes = [0, 10, 16_384, 16_385, 200_000, 9 << 20];
        for size in sizes {
            let key = format!("key {size}");
            let body = Pattern::named(&key).bytes(size);
            client
                .put(BUCKET, &key, &body)
                .expect("an answer")
                .expect(200);
        }
        for stop in [Signal::TERM, Signal::KILL, Signal::INT, Signal::KILL] {
            server.signal(stop);
            let status = server.wait();
            assert_eq!(status.success(), stop != Signal::KILL, "{status}");
            server.start_again();
            let mut client = server.client();
            for size in sizes {
                let key = format!("key {size}");
                let got = client.get(BUCKET, &key).expect("an answer").expect(200);
                assert!(
                    got.body == Pattern::named(&key).bytes(size),
                    "{key} after {stop:?}"
                );
            }
            assert_eq!(client.list(BUCKET).expect("a listing").len(), sizes.len());
        }
    }
}

#[test]
fn a_second_server_on_the_directory_is_refused() {
    let (server, mut client) = with_bucket(Config::http());
    let rival = Config::http().data_dir(server.data_dir()).try_start();
    let Err(refused) = rival else {
        panic!("two servers on one directory")
    };
    assert!(!refused.status.success());
    assert!(refused.output.contains("in use"), "{}", refused.output);
    client
        .put(BUCKET, "key", b"content")
        .expect("an answer")
        .expect(200);
}

#[test]
fn a_second_server_on_the_port_is_refused() {
    let (server, mut client) = with_bucket(Config::http());
    let rival = Config::http().port(server.address().port()).try_start();
    let Err(refused) = rival else {
        panic!("two servers on one port")
    };
    assert!(!refused.status.success());
    let port = server.address().port().to_string();
    assert!(refused.output.contains(&port), "{}", refused.output);
    // Every new connection still reaches the first.
    for _ in 0..20 {
        client = server.client();
        client
            .put(BUCKET, "key", b"content")
            .expect("an answer")
            .expect(200);
    }
    drop(client);
}

/// At once, on the same port, with connections of the old process in TIME_WAIT.
#[test]
fn restarts_at_once() {
    let (mut server, mut client) = with_bucket(Config::http());
    for n in 0..5 {
        let key = format!("key {n}");
        client
            .put(BUCKET, &key, b"content")
            .expect("an answer")
            .expect(200);
        if n % 2 == 0 {
            server.kill();
            server.start_again();
        } else {
            server.restart();
        }
        client = server.client();
        assert_eq!(client.list(BUCKET).expect("a listing").len(), n + 1);
    }
}

#[test]
fn idle_connections_do_not_delay_a_stop() {
    for config in [Config::http(), Config::tls()] {
        let (mut server, mut used) = with_bucket(config);
        let idle: Vec<Client> = (0..20)
            .map(|_| {
                let mut client = server.client();
                client
                    .get(BUCKET, "missing")
                    .expect("an answer")
                    .expect(404);
                client
            })
            .collect();
        used.put(BUCKET, "key", b"content")
            .expect("an answer")
            .expect(200);
        let silent: Vec<_> = (0..5)
            .map(|_| std::net::TcpStream::connect(server.address()).expect("a connection"))
            .collect();
        let (status, took) = server.terminate();
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        drop((idle, silent));
    }
}

/// An upload that a SIGTERM finds in the middle is finished, answered and kept.
#[test]
fn a_stop_lets_uploads_finish() {
    let (mut server, _) = with_bucket(Config::http());
    let body = Pattern::named("slow").bytes(6 << 20);
    let mut upload = begin_upload(&server, "slow", body.len());
    upload.send(&body[..3 << 20], &[]).expect("sent");
    thread::sleep(Duration::from_millis(300));
    server.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(700));
    let late = std::net::TcpStream::connect(server.address());
    assert!(late.is_err(), "a new connection is accepted after SIGTERM");
    upload.send(&body[3 << 20..], &[]).expect("sent");
    assert_eq!(upload.read_head().expect("an answer").status, 200);
    assert!(server.wait().success());
    server.start_again();
    let got = server
        .client()
        .get(BUCKET, "slow")
        .expect("an answer")
        .expect(200);
    assert!(got.body == body);
}

/// One that never ends is given up after the drain time-out, and leaves nothing.
#[test]
fn a_stop_does_not_wait_for_ever() {
    let (mut server, _) = with_bucket(Config::http().args(["--drain-timeout", "1s"]));
    let mut upload = begin_upload(&server, "stalled", 6 << 20);
    upload
        .send(&Pattern::new(1).bytes(1 << 20), &[])
        .expect("sent");
    thread::sleep(Duration::from_millis(200));
    let (status, took) = server.terminate();
    assert!(status.success(), "{status}");
    assert!(
        took > Duration::from_millis(800) && took < Duration::from_secs(8),
        "{took:?}"
    );
    server.start_again();
    server
        .client()
        .get(BUCKET, "stalled")
        .expect("an answer")
        .expect(404);
}

fn begin_upload(server: &Server, key: &str, length: usize) -> Connection {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        ..Request::default()
    };
    let head = head_bytes(&server.endpoint(), &Moment::now(), &request, length as u64);
    let endpoint = server.endpoint();
    let mut connection = Connection::open(endpoint.address, endpoint.tls).expect("a connection");
    connection.send(head.as_bytes(), &[]).expect("sent");
    connection
}

#[test]
fn health_without_credentials() {
    for config in [Config::http(), Config::tls()] {
        let server = config.start();
        for path in [
            "/health/live",
            "/health/ready",
            "/minio/health/live",
            "/minio/health/ready",
        ] {
            for method in ["GET", "HEAD"] {
                let endpoint = server.endpoint();
                let mut connection =
                    Connection::open(endpoint.address, endpoint.tls).expect("open");
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nhost: {}\r\n\r\n",
                    endpoint.address
                );
                connection.send(head.as_bytes(), &[]).expect("sent");
                let answer = connection.read_head().expect("an answer");
                assert_eq!(answer.status, 200, "{method} {path}");
            }
        }
    }
}
