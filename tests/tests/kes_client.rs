//! A KES server as the source of keys: who trusts whom, what is asked how often, what odd answers do.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use strongroom_tests::client::{Client, Response};
use strongroom_tests::kes::{self, Certificate, KEY, Kes, Mode};
use strongroom_tests::{Config, Server, binary, scaled};

const BUCKET: &str = "under-kes";

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

fn eventually(what: &str, patience: u64, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(patience), "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn new_objects_are_under_kes_and_old_ones_stay_readable() {
    let kes = Kes::start();
    let home = tempfile::tempdir_in(binary::scratch()).expect("writable");
    let dir = home.path().join("data");
    let local = || Config::http().data_dir(&dir);
    let (mut server, mut client) = with_bucket(local());
    put(&mut client, "embedded", b"by the keystore").expect(200);
    assert!(server.terminate().0.success());

    let (mut server, mut client) = with_bucket(kes.configure(local()));
    put(&mut client, "kes", b"by KES").expect(200);
    assert_eq!((kes.calls("generate"), kes.calls("decrypt")), (1, 0));
    for _ in 0..2 {
        assert_eq!(
            get(&mut client, "embedded").expect(200).body,
            b"by the keystore"
        );
        assert_eq!(get(&mut client, "kes").expect(200).body, b"by KES");
        server.restart();
        client = server.client();
    }
    assert!(kes.calls("decrypt") >= 2);
    assert!(server.terminate().0.success());

    let (_server, mut client) = with_bucket(local());
    assert_eq!(
        get(&mut client, "embedded").expect(200).body,
        b"by the keystore"
    );
    let refused = get(&mut client, "kes").expect(503);
    assert_eq!(refused.code(), "ServiceUnavailable");
    assert!(refused.text().contains("KES"), "{}", refused.text());
    client.head(BUCKET, "kes").expect("an answer").expect(200);
}

/// The key that a certificate made from the API key holds, as `ApiKey` computes it.
const PUBLIC_KEY_OF_API_KEY: &str =
    "0426fa9a04bc2756b92fbe8a97e1a1e07b53ecf04ed33da22c33e5c9faeb8cbb";

#[test]
fn an_api_key_is_who_this_server_is() {
    use sha2::{Digest as _, Sha256};
    let kes = Kes::start();
    let (_server, mut client) = with_bucket(kes.configure(Config::http()));
    put(&mut client, "a", b"content").expect(200);
    let shown = kes.clients().pop().expect("a client");
    // An Ed25519 key in a certificate: this head and 32 bytes; its hash is the identity.
    let head = [
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    let at = shown.windows(head.len()).position(|w| w == head);
    let at = at.expect("an Ed25519 key");
    let identity = hex::encode(Sha256::digest(&shown[at..at + 44]));
    assert_eq!(identity, PUBLIC_KEY_OF_API_KEY);
}

#[test]
fn certificates_from_files_are_read_again() {
    let kes = Kes::start_with(Certificate::Issued);
    let (certificate, key) = (kes.home().join("c.crt"), kes.home().join("c.key"));
    let renew = || {
        let (pem, pem_key) = kes::client_certificate();
        fs::write(&certificate, &pem).expect("writable");
        fs::write(&key, pem_key).expect("writable");
        kes::der(&pem)
    };
    let first = renew();
    let config = kes
        .configure_trust(Config::http())
        .env(
            "STRONGROOM_KMS_KES_CERT_FILE",
            &certificate.display().to_string(),
        )
        .env("MINIO_KMS_KES_KEY_FILE", &key.display().to_string());
    let (_server, mut client) = with_bucket(config);
    put(&mut client, "a", b"content").expect(200);
    assert_eq!(kes.clients(), std::slice::from_ref(&first));
    let second = renew();
    eventually("the new certificate is not shown", 30, || {
        put(&mut client, "a", b"content").expect(200);
        kes.clients().contains(&second)
    });
    // One that does not load leaves the old one in service.
    fs::write(&key, "nonsense").expect("writable");
    thread::sleep(Duration::from_secs(5));
    put(&mut client, "a", b"content").expect(200);
    assert_eq!(kes.clients().last(), Some(&second));
}

/// A server that nobody vouches for gets no request.
#[test]
fn strangers_are_not_trusted() {
    let (kes, stranger) = (Kes::start(), Kes::start());
    let config = kes
        .configure(Config::http())
        .env("STRONGROOM_KMS_KES_ENDPOINT", &stranger.endpoint());
    let (_server, mut client) = with_bucket(config);
    let refused = put(&mut client, "a", b"content").expect(503);
    assert!(refused.text().contains("certificate"), "{}", refused.text());
    assert_eq!(stranger.data_key_calls(), 0);
    assert!(stranger.clients().is_empty());
}

/// By name, through the resolver; the certificate has the name too.
#[test]
fn endpoints_are_names_too() {
    let kes = Kes::start();
    let by_name = format!("https://localhost:{}", kes.address().port());
    let config = kes
        .configure(Config::http())
        .env("STRONGROOM_KMS_KES_ENDPOINT", &by_name);
    let (_server, mut client) = with_bucket(config);
    put(&mut client, "a", b"content").expect(200);
    let config = kes
        .configure(Config::http())
        .env("STRONGROOM_KMS_KES_ENDPOINT", "https://kes.invalid:7373");
    let (_server, mut client) = with_bucket(config);
    let refused = put(&mut client, "a", b"content").expect(503);
    assert!(
        refused.text().contains("kes.invalid:7373"),
        "{}",
        refused.text()
    );
}

#[test]
fn contradictory_settings_do_not_start() {
    let kes = Kes::start();
    let cases = [
        (
            "MINIO_KMS_SECRET_KEY",
            "k:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=",
            "choose one",
        ),
        ("MINIO_KMS_KES_CERT_FILE", "/nonexistent", "choose one"),
        (
            "STRONGROOM_KMS_KES_CAPATH",
            "/nonexistent/ca",
            "/nonexistent/ca",
        ),
        (
            "STRONGROOM_KMS_KES_API_KEY",
            "kes:v1:nonsense",
            "STRONGROOM_KMS_KES_API_KEY",
        ),
        (
            "STRONGROOM_KMS_SERVER",
            "https://x",
            "STRONGROOM_KMS_SERVER",
        ),
    ];
    for (name, value, says) in cases {
        let config = kes.configure(Config::http()).env(name, value);
        let refused = config.try_start().err().expect(name);
        assert!(refused.output.contains(says), "{name}: {}", refused.output);
        assert!(!refused.output.contains("ACQpoGqx") && !refused.output.contains("wMHC"));
    }
}

/// On a first start nothing can be sealed under a default key that is not there, so it is made, as MinIO does. Later a
/// missing one is an erased one.
#[test]
fn the_default_key_is_made_on_a_first_start_only() {
    let mut kes = Kes::start();
    kes.delete_key(KEY);
    kes.stop();
    let (mut server, mut client) = with_bucket(kes.configure(Config::http()));
    put(&mut client, "a", b"content").expect(503);
    kes.start_again();
    eventually("the key is not made", 20, || kes.has_key(KEY));
    put(&mut client, "a", b"content").expect(200);
    kes.delete_key(KEY);
    server.restart();
    eventually("no word of it", 20, || {
        server.log().contains("does not exist at KES")
    });
    assert!(!kes.has_key(KEY));
    let mut client = server.client();
    let refused = put(&mut client, "b", b"content").expect(400);
    assert_eq!(refused.code(), "KMS.NotFoundException");
}

/// What a real KES answered, to whatever it was asked, is here the answer to a request for a data key.
#[test]
fn no_fallback_key_when_the_kms_answers_oddly() {
    let kes = Kes::start();
    let config = kes
        .configure(Config::http())
        .args(["--kms-cache-entries", "0"]);
    let (_server, mut client) = with_bucket(config);
    put(&mut client, "kept", b"content").expect(200);

    let json = "application/json";
    let golden = include_str!("../golden/kes-exchanges.json");
    let golden: Vec<Value> = serde_json::from_str(golden).expect("JSON");
    let mut odd: Vec<(u16, String, Vec<u8>)> = golden
        .iter()
        .filter_map(|exchange| {
            let status = exchange["status"].as_u64()?;
            let kind = exchange["headers"]["content-type"].as_str();
            Some((
                u16::try_from(status).ok()?,
                kind.unwrap_or_default().to_owned(),
                exchange["response"].as_str()?.as_bytes().to_vec(),
            ))
        })
        .collect();
    assert!(odd.len() > 50, "{}", odd.len());
    let sealed = STANDARD.encode([9; 76]);
    let plain = |bytes: &[u8]| STANDARD.encode(bytes);
    for plaintext in [
        plain(&[0; 32]),
        plain(&[7; 31]),
        plain(&[7; 33]),
        plain(&[7; 16]),
        String::new(),
        "***".to_owned(),
    ] {
        let text = format!("{{\"plaintext\":\"{plaintext}\",\"ciphertext\":\"{sealed}\"}}");
        odd.push((200, json.to_owned(), text.into_bytes()));
    }
    let good = plain(&[7; 32]);
    for text in [
        String::new(),
        "{}".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "<html>".to_owned(),
        format!("{{\"plaintext\":\"{good}\"}}\u{0}"),
        format!("{{\"plaintext\":\"{good}\",\"ciphertext\":\"\"}}"),
        format!("{{\"plaintext\":null,\"ciphertext\":\"{sealed}\"}}"),
        format!("{{\"plaintext\":\"{good}\",\"ciphertext\":\"{sealed}\""),
        format!("{{\"plaintext\":17,\"ciphertext\":\"{sealed}\"}}"),
        "x".repeat(2 << 20),
    ] {
        odd.push((200, json.to_owned(), text.into_bytes()));
    }
    for status in [204, 301, 401, 429, 500, 501, 503, 599] {
        let good = format!("{{\"plaintext\":\"{good}\",\"ciphertext\":\"{sealed}\"}}");
        odd.push((status, json.to_owned(), good.into_bytes()));
    }
    for (status, content_type, body) in odd {
        let text = String::from_utf8_lossy(&body).into_owned();
        let shown: String = text.chars().take(200).collect();
        let usable = status == 200 && text.contains("plaintext") && {
            let answer: Value = serde_json::from_str(&text).unwrap_or_default();
            let key = STANDARD.decode(answer["plaintext"].as_str().unwrap_or_default());
            let key = key.unwrap_or_default();
            key.len() == 32
                && key != [0; 32]
                && answer["ciphertext"].as_str().is_some_and(|c| c.len() > 48)
        };
        kes.set(Mode::Say {
            status,
            content_type,
            body,
        });
        let (written, read) = (
            put(&mut client, "odd", b"content"),
            get(&mut client, "kept"),
        );
        let absent = client.head(BUCKET, "odd").expect("an answer").status() == 404;
        let codes = (written.status(), written.code(), read.status(), read.code());
        let codes = (codes.0, codes.1.as_str(), codes.2, codes.3.as_str());
        match (status, text.trim()) {
            (200, _) if usable => {
                assert_eq!((codes.0, codes.2), (200, 500), "{shown}");
                client.delete(BUCKET, "odd").expect("an answer").expect(204);
                continue;
            }
            (404, text) if text.contains("\"key does not exist\"") => {
                let missing = "KMS.NotFoundException";
                assert_eq!(codes, (400, missing, 400, missing), "{shown}");
            }
            (403, text) if text.contains("not authorized") => {
                assert_eq!(codes, (403, "AccessDenied", 403, "AccessDenied"), "{shown}");
            }
            (400, text) if text.contains("not authentic") => {
                assert_eq!((codes.0, codes.2), (500, 500), "{shown}");
            }
            (400, text) if text.contains("already exists") => {
                assert_eq!((codes.0, codes.2), (400, 400), "{shown}");
            }
            // A key that is one, and opens nothing here.
            (200, text) if text.contains("plaintext") && codes.2 == 500 => {
                assert_eq!(codes.0, 503, "{shown}");
            }
            _ => {
                let away = "ServiceUnavailable";
                assert_eq!(codes, (503, away, 503, away), "{status} {shown}");
            }
        }
        assert!(absent, "{status} {shown}");
    }
    for raw in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
    ] {
        kes.set(Mode::Raw(raw.as_bytes().to_vec()));
        put(&mut client, "odd", b"content").expect(503);
        get(&mut client, "kept").expect(503);
    }
    kes.set(Mode::Serve);
    assert_eq!(get(&mut client, "kept").expect(200).body, b"content");
    put(&mut client, "odd", b"content").expect(200);
}

/// The caches that settings name are the caches there are: calls are counted.
#[test]
fn cache_settings_are_obeyed() {
    let kes = Kes::start();
    let reads = |args: &[&str], gets: usize, pause: u64| {
        let config = kes.configure(Config::http().shards(1));
        let (_server, mut client) = with_bucket(config.args(args.iter().copied()));
        for key in ["a", "b", "c"] {
            put(&mut client, key, b"content").expect(200);
        }
        let before = kes.calls("decrypt");
        for _ in 0..gets {
            for key in ["a", "b", "c"] {
                assert_eq!(get(&mut client, key).expect(200).body, b"content");
            }
            thread::sleep(Duration::from_millis(pause));
        }
        kes.calls("decrypt") - before
    };
    assert_eq!(reads(&[], 20, 0), 3);
    assert_eq!(reads(&["--kms-cache-entries", "0"], 5, 0), 15);
    // Room for two of three that are read in turn.
    assert_eq!(reads(&["--kms-cache-entries", "2"], 5, 0), 15);
    assert_eq!(reads(&["--kms-cache-unused", "1s"], 3, 2500), 9);
    assert_eq!(reads(&["--kms-cache-unused", "1h"], 3, 2500), 3);
    // Asked for all the time, and nevertheless asked for again; the longest run takes two more.
    let asked = reads(&["--kms-cache-used", "2s"], 50, 100);
    assert!((6..=30).contains(&asked), "{asked}");
}

/// One object read often, on every core, and from cold by many at once.
#[test]
fn reads_of_one_object_are_a_call_for_each_core() {
    const SHARDS: usize = 2;
    let kes = Kes::start();
    let (server, mut client) = with_bucket(kes.configure(Config::http().shards(SHARDS)));
    put(&mut client, "a", b"content").expect(200);
    let gets = scaled(2000, 10_000);
    let clients = 16;
    kes.set(Mode::Late(Duration::from_millis(300)));
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = server.client();
                for _ in 0..gets / clients {
                    assert_eq!(get(&mut client, "a").expect(200).body, b"content");
                }
            });
        }
    });
    assert_eq!(kes.calls("generate"), 1);
    let asked = kes.calls("decrypt");
    assert!(
        (1..=SHARDS).contains(&asked),
        "{asked} calls for {gets} reads"
    );
}

/// No key leaves by a log, whatever is logged.
#[test]
fn keys_from_kes_are_in_no_log() {
    let kes = Kes::start();
    let config = kes.configure(Config::http()).env("STRONGROOM_LOG", "trace");
    let (server, mut client) = with_bucket(config);
    for key in ["a", "b"] {
        put(&mut client, key, b"content").expect(200);
        get(&mut client, key).expect(200);
    }
    kes.delete_key(KEY);
    put(&mut client, "c", b"content").expect(400);
    let log = server.log();
    assert!(log.len() > 1000, "nothing was logged");
    let seed = kes::API_KEY.trim_start_matches("kes:v1:");
    let seed = STANDARD.decode(seed).expect("base64")[1..].to_vec();
    let mut secrets = vec![seed];
    secrets.extend(kes.plaintexts().iter().map(|p| p.to_vec()));
    assert_eq!(secrets.len(), 3);
    for secret in secrets {
        let listed = format!("{:?}", &secret[..8]);
        let forms = [
            hex::encode(&secret),
            STANDARD.encode(&secret)[..40].to_owned(),
            listed.trim_matches(['[', ']']).to_owned(),
        ];
        for form in forms {
            assert!(!log.contains(&form), "a key is in the log");
        }
    }
    assert!(!log.contains(&kes::API_KEY[8..40]));
}
