//! What clients can make the server hold, and for how long.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use strongroom_tests::client::{Outcome, Request, head_bytes};
use strongroom_tests::data::Pattern;
use strongroom_tests::scan::base64;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::{Config, Server, disk, procfs};

const BUCKET: &str = "bounds";
const MIB: u64 = 1 << 20;
/// A client that does nothing for a minute is let go; somewhat later it must be gone.
const GONE_BY: Duration = Duration::from_secs(85);

fn start(config: Config) -> Server {
    let server = config.env("STRONGROOM_CACHE_SIZE", "0").start();
    let made = server.client().create_bucket(BUCKET);
    made.expect("an answer").expect(200);
    server
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("a connection");
    stream.set_read_timeout(Some(GONE_BY)).expect("a socket");
    stream
}

/// Reads until the server closes; what it said, or a panic if it never does.
fn until_closed(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => said.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => break,
            Err(e) => panic!("not closed: {e}"),
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn signed(server: &Server, method: &str, key: &str, length: u64) -> String {
    let request = Request {
        method,
        bucket: BUCKET,
        key,
        ..Request::default()
    };
    head_bytes(&server.endpoint(), &Moment::now(), &request, length)
}

/// Four ways to be slow, at once because each takes a minute, while others are served.
#[test]
fn slow_clients_are_let_go() {
    let server = start(Config::http());
    let large = Pattern::named("large").bytes(64 << 20);
    let mut client = server.client();
    client
        .put(BUCKET, "large", &large)
        .expect("an answer")
        .expect(200);
    let empty = disk::used_bytes(server.data_dir());
    let begun = Instant::now();
    thread::scope(|scope| {
        // A header, a byte at a time.
        scope.spawn(|| {
            let mut stream = connect(&server);
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ")
                .expect("sent");
            let mut trickle = stream.try_clone().expect("a socket");
            scope.spawn(move || {
                while trickle.write_all(b"a").is_ok() {
                    assert!(begun.elapsed() < GONE_BY, "a header may take for ever");
                    thread::sleep(Duration::from_millis(500));
                }
            });
            until_closed(&mut stream);
        });
        // Nothing at all; and nothing after a request.
        scope.spawn(|| until_closed(&mut connect(&server)));
        scope.spawn(|| {
            let mut stream = connect(&server);
            stream
                .write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
                .expect("sent");
            let said = until_closed(&mut stream);
            assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        });
        // Half a body.
        scope.spawn(|| {
            let mut stream = connect(&server);
            let head = signed(&server, "PUT", "half", 8 * MIB);
            stream.write_all(head.as_bytes()).expect("sent");
            stream.write_all(&vec![1; 3 << 20]).expect("sent");
            let said = until_closed(&mut stream);
            assert!(!said.starts_with("HTTP/1.1 200"), "{said}");
        });
        // A download that nobody reads.
        scope.spawn(|| {
            let mut stream = connect(&server);
            let head = signed(&server, "GET", "large", 0);
            stream.write_all(head.as_bytes()).expect("sent");
            thread::sleep(Duration::from_secs(75));
            let mut got = 0;
            let mut piece = vec![0; 1 << 20];
            loop {
                match stream.read(&mut piece) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => got += n as u64,
                }
            }
            assert!(got < 64 * MIB, "the server waited");
        });
        // Those who are not slow notice nothing.
        scope.spawn(|| {
            let mut client = server.client();
            while begun.elapsed() < Duration::from_secs(60) {
                let outcome = client.probe(BUCKET, "large", &Pattern::named("large"), 64 * MIB);
                assert_eq!(outcome, Outcome::Right);
                thread::sleep(Duration::from_secs(5));
            }
        });
    });
    disk::wait_used_at_most(server.data_dir(), empty + 9 * MIB, Duration::from_secs(10));
    // The first connection was idle for too long.
    let mut client = server.client();
    client.get(BUCKET, "half").expect("an answer").expect(404);
}

/// A request of raw text; the status that comes back, 0 when the connection is just closed.
fn status_of(server: &Server, head: &str, body: &[u8]) -> u16 {
    let mut stream = connect(server);
    // The server may answer and close before it has taken everything.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    let mut said = [0; 12];
    match stream.read_exact(&mut said) {
        Ok(()) => String::from_utf8_lossy(&said[9..])
            .parse()
            .expect("a status"),
        Err(_) => 0,
    }
}

#[test]
fn heads_and_documents_are_bounded() {
    let server = start(Config::http());
    let before = server.resident_bytes();
    let get = |extra: &str| {
        status_of(
            &server,
            &format!("GET / HTTP/1.1\r\nhost: x\r\n{extra}\r\n"),
            &[],
        )
    };
    assert_eq!(get(""), 403, "an ordinary request without a signature");
    assert_eq!(get(&format!("x-a: {}\r\n", "a".repeat(70_000))), 431);
    assert_eq!(get(&"x-a: b\r\n".repeat(200)), 431);
    let uri = |length: usize| format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(length));
    assert_eq!(status_of(&server, &uri(17_000), &[]), 414);
    let longer = status_of(&server, &uri(100_000), &[]);
    assert!(matches!(longer, 414 | 431), "{longer}");
    // A head that never ends is not gathered.
    let endless = status_of(&server, "GET / HTTP/1.1\r\n", &vec![b'a'; 8 << 20]);
    assert!(matches!(endless, 0 | 400 | 431), "{endless}");
    // Documents: two ways to be too long.
    let mut client = server.client();
    let long = vec![b' '; 3 << 20];
    let refused = client
        .send("POST", BUCKET, "", "delete=", &long)
        .expect("an answer");
    assert!((400..500).contains(&refused.status()), "{refused:?}");
    let many: String = (0..1001)
        .map(|n| format!("<Object><Key>{n}</Key></Object>"))
        .collect();
    let many = format!("<Delete>{many}</Delete>");
    let sum = base64(&Md5::digest(many.as_bytes()));
    let request = Request {
        method: "POST",
        bucket: BUCKET,
        query: "delete=",
        headers: &[("content-md5", &sum)],
        ..Request::default()
    };
    let refused = client.request(&request, many.as_bytes());
    let refused = refused.expect("an answer");
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (400, "MalformedXML")
    );
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 40_000_000, "{grown} bytes more resident");
}

/// Ten thousand connections that had a request each and now do nothing.
#[test]
fn idle_connections_cost_little() {
    let count = 10_000;
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    setrlimit(Resource::Nofile, most).expect("up to its maximum");
    assert!(
        files.maximum.is_none_or(|n| n > count + 500),
        "raise `ulimit -Hn` above {count}"
    );
    let server = start(Config::http());
    let before = server.resident_bytes();
    let ask = |stream: &mut TcpStream| {
        stream
            .write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            .expect("sent");
        let mut said = [0; 12];
        stream.read_exact(&mut said).expect("an answer");
        assert_eq!(&said[9..], b"200");
    };
    let idle: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = connect(&server);
            ask(&mut stream);
            stream
        })
        .collect();
    let each = server.resident_bytes().saturating_sub(before) / count;
    eprintln!("{each} bytes resident for each of {count} idle connections");
    assert!(each < 32_768, "{each} bytes each");
    assert!(procfs::open_files(server.pid()) as u64 >= count);
    ask(&mut connect(&server));
    let mut client = server.client();
    client
        .put(BUCKET, "key", b"content")
        .expect("an answer")
        .expect(200);
    drop(idle);
    let begun = Instant::now();
    while procfs::open_files(server.pid()) as u64 > 500 {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "connections that are gone stay open"
        );
        thread::sleep(Duration::from_millis(100));
    }
}
