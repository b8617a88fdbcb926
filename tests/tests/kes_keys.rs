//! Keys from elsewhere as an operator handles them: a static key, the seal over keys from KES, bucket keys and what they
//! save, and a store under this project's own key server.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use serde_json::Value;
use strongroom_tests::cli::{on, succeed};
use strongroom_tests::client::{Client, Request, Response};
use strongroom_tests::kes::{KEY, Kes};
use strongroom_tests::key_server::KeyServer;
use strongroom_tests::{Config, Server, binary, scaled};

const BUCKET: &str = "keys-from-elsewhere";
const STATIC_KEY: &str = "my-key:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=";
const OTHER_KEY: &str = "my-key:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn with_bucket(config: Config) -> (Server, Client) {
    let server = config.start();
    let mut client = server.client();
    let made = client.create_bucket(BUCKET).expect("an answer");
    assert!([200, 409].contains(&made.status()), "{}", made.text());
    (server, client)
}

fn put_with(client: &mut Client, key: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        headers,
        ..Request::default()
    };
    client.request(&request, b"content").expect("an answer")
}

fn put(client: &mut Client, key: &str) -> Response {
    put_with(client, key, &[])
}

fn get(client: &mut Client, key: &str) -> Response {
    client.get(BUCKET, key).expect("an answer")
}

fn stop(mut server: Server) {
    assert!(server.terminate().0.success());
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(binary::scratch()).expect("writable")
}

#[test]
fn a_static_key_serves_new_writes_and_no_other_key_opens_them() {
    let home = scratch();
    let dir = home.path().join("data");
    let config = || Config::http().data_dir(&dir);
    let file = home.path().join("static-key");
    fs::write(&file, format!("{STATIC_KEY}\n")).expect("writable");
    let from_file = file.display().to_string();

    let (server, mut client) = with_bucket(config());
    put(&mut client, "embedded").expect(200);
    stop(server);
    let ways = [
        ("MINIO_KMS_SECRET_KEY", STATIC_KEY),
        ("STRONGROOM_KMS_SECRET_KEY", STATIC_KEY),
        ("MINIO_KMS_SECRET_KEY_FILE", &from_file),
        ("STRONGROOM_KMS_SECRET_KEY_FILE", &from_file),
    ];
    for (name, value) in ways {
        let (server, mut client) = with_bucket(config().env(name, value));
        put(&mut client, name).expect(200);
        let named = [
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-server-side-encryption-aws-kms-key-id", "my-key"),
        ];
        put_with(&mut client, "named", &named).expect(200);
        let other = [named[0], (named[1].0, "other")];
        let refused = put_with(&mut client, "other", &other).expect(400);
        assert_eq!(refused.code(), "KMS.NotFoundException");
        for (key, _) in ways.iter().take_while(|(n, _)| *n != name) {
            assert_eq!(get(&mut client, key).expect(200).body, b"content");
        }
        for key in ["embedded", "named", name] {
            assert_eq!(get(&mut client, key).expect(200).body, b"content");
        }
        let log = server.log();
        assert!(log.contains("static key my-key") && !log.contains("wMHCw8TF"));
        stop(server);
    }
    // Another key of the same name opens nothing, and without one there is none.
    let (server, mut client) = with_bucket(config().env("MINIO_KMS_SECRET_KEY", OTHER_KEY));
    get(&mut client, "named").expect(500);
    get(&mut client, "embedded").expect(200);
    stop(server);
    let (_server, mut client) = with_bucket(config());
    let refused = get(&mut client, "named").expect(503);
    assert!(refused.text().contains("static"), "{}", refused.text());
    get(&mut client, "embedded").expect(200);

    // A mistyped file name must not start a server without the key.
    let missing = Config::http().env("MINIO_KMS_SECRET_KEY_FILE", "/nonexistent/key");
    let refused = missing.try_start().err().expect("refused");
    assert!(
        refused.output.contains("/nonexistent/key"),
        "{}",
        refused.output
    );
}

fn sealed(answer: Response) {
    let answer = answer.expect(503);
    assert!(answer.text().contains("sealed"), "{}", answer.text());
}

fn health(client: &mut Client) -> String {
    let answer = client.send("GET", "health", "ready", "", &[]);
    answer.expect("an answer").expect(200).text()
}

/// A seal stands above keys from elsewhere too: nobody is asked, nothing is cached, and it outlives a restart. The static
/// key comes back with the unsealing; a server that starts sealed writes under the right key afterwards.
#[test]
fn a_seal_covers_keys_from_elsewhere() {
    let kes = Kes::start();
    let home = scratch();
    let file = home.path().join("static-key");
    fs::write(&file, STATIC_KEY).expect("writable");
    let under_static = Config::http().env("MINIO_KMS_SECRET_KEY_FILE", &file.display().to_string());
    for config in [kes.configure(Config::http()), under_static] {
        let (mut server, mut client) = with_bucket(config);
        put(&mut client, "a").expect(200);
        for _ in 0..8 {
            // Over some connections, so that each core has it.
            get(&mut server.client(), "a").expect(200);
        }
        let seal = |dir: &Path, verb: &str| succeed(&mut on(dir, &["kms", verb]));
        seal(server.data_dir(), "seal");
        let asked = kes.data_key_calls();
        for restarted in [false, true] {
            if restarted {
                server.restart();
            }
            let mut client = server.client();
            for _ in 0..8 {
                let mut client = server.client();
                sealed(get(&mut client, "a"));
                sealed(put(&mut client, "b"));
            }
            client.head(BUCKET, "a").expect("an answer").expect(200);
            assert_eq!(client.list(BUCKET).expect("a list").len(), 1);
            assert!(health(&mut client).contains("\"keys\":\"sealed\""));
        }
        assert_eq!(kes.data_key_calls(), asked);
        seal(server.data_dir(), "unseal");
        let mut client = server.client();
        for key in ["b", "c"] {
            put(&mut client, key).expect(200);
            assert_eq!(get(&mut client, key).expect(200).body, b"content");
        }
        assert_eq!(get(&mut client, "a").expect(200).body, b"content");
        // What was written after the unsealing is not under the embedded keystore.
        let status = succeed(&mut on(
            server.data_dir(),
            &["key", "status", "strongroom-default"],
        ));
        if let Some(objects) = status.lines().find(|l| l.starts_with("objects:")) {
            assert_eq!(objects, "objects: 0");
        }
    }
    assert!(kes.data_key_calls() > 0);
}

const BUCKET_KEY: [(&str, &str); 2] = [
    ("x-amz-server-side-encryption", "aws:kms"),
    ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
];

#[test]
fn writes_with_a_bucket_key_are_a_call_for_each_core_and_interval() {
    const SHARDS: usize = 2;
    const CLIENTS: usize = 8;
    let kes = Kes::start();
    let (server, mut client) = with_bucket(kes.configure(Config::http().shards(SHARDS)));
    let puts = scaled(1000, 10_000);
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            let mut client = server.client();
            scope.spawn(move || {
                for i in 0..puts / CLIENTS {
                    put_with(&mut client, &format!("{n}-{i}"), &BUCKET_KEY).expect(200);
                }
            });
        }
    });
    let made = kes.calls("generate");
    assert!(
        (1..=SHARDS).contains(&made),
        "{made} calls for {puts} writes"
    );
    let before = kes.calls("decrypt");
    for n in 0..CLIENTS {
        for i in 0..10 {
            let got = get(&mut server.client(), &format!("{n}-{i}")).expect(200);
            assert_eq!(got.body, b"content");
        }
    }
    let opened = kes.calls("decrypt") - before;
    assert!(opened <= SHARDS * made, "{opened} calls to read");
    // Without one, each object is a call.
    let before = kes.calls("generate");
    for i in 0..20 {
        put_with(&mut client, &format!("own-{i}"), &BUCKET_KEY[..1]).expect(200);
    }
    assert_eq!(kes.calls("generate") - before, 20);
    drop(server);

    let config = kes.configure(Config::http().shards(1));
    let config = config.args(["--kms-bucket-key-interval", "1s"]);
    let (_server, mut client) = with_bucket(config);
    let before = kes.calls("generate");
    for i in 0..4 {
        put_with(&mut client, &format!("interval-{i}"), &BUCKET_KEY).expect(200);
        thread::sleep(Duration::from_millis(1100));
    }
    assert_eq!(kes.calls("generate") - before, 4);
    for i in 0..4 {
        get(&mut client, &format!("interval-{i}")).expect(200);
    }
}

/// Objects of a store that gets a KES move to it one by one, without their data, and then stand and fall with its key.
#[test]
fn objects_move_from_the_keystore_to_kes() {
    let kes = Kes::start();
    let home = scratch();
    let dir = home.path().join("data");
    let local = || Config::http().data_dir(&dir);
    let (server, mut client) = with_bucket(local());
    for key in ["moved", "left"] {
        put(&mut client, key).expect(200);
    }
    stop(server);
    let config = kes.configure(local()).args(["--kms-cache-entries", "0"]);
    let (_server, mut client) = with_bucket(config);
    let body = format!(
        "<ObjectEncryption><SSE-KMS><KMSKeyArn>arn:aws:kms:us-east-1:000000000000:key/{KEY}</KMSKeyArn></SSE-KMS></ObjectEncryption>"
    );
    let md5 = STANDARD.encode(Md5::digest(&body));
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "moved",
        query: "encryption",
        headers: &[("content-md5", md5.as_str())],
    };
    let before = kes.calls("generate");
    let moved = client.request(&request, body.as_bytes());
    moved.expect("an answer").expect(200);
    assert_eq!(kes.calls("generate"), before + 1);
    for key in ["moved", "left"] {
        assert_eq!(get(&mut client, key).expect(200).body, b"content");
    }
    kes.delete_key(KEY);
    let refused = get(&mut client, "moved").expect(400);
    assert_eq!(refused.code(), "KMS.NotFoundException");
    assert_eq!(get(&mut client, "left").expect(200).body, b"content");
}

/// The project's own key server as the KES of a store.
#[test]
fn a_store_under_the_projects_own_key_server() {
    let mut keys = KeyServer::start();
    keys.ask("PUT", "/v1/key/create/store", &Value::Null);
    let path = |name: &str| keys.file(name).display().to_string();
    let config = Config::http()
        .env(
            "MINIO_KMS_KES_ENDPOINT",
            &format!("https://{}", keys.address),
        )
        .env("MINIO_KMS_KES_KEY_NAME", "store")
        .env("MINIO_KMS_KES_CERT_FILE", &path("admin.crt"))
        .env("MINIO_KMS_KES_KEY_FILE", &path("admin.key"))
        .env("MINIO_KMS_KES_CAPATH", &path("server.crt"))
        .args(["--kms-cache-used", "2s"]);
    let (mut server, mut client) = with_bucket(config);
    let mut keep = HashSet::new();
    for (n, headers) in [&[][..], &BUCKET_KEY[..1], &BUCKET_KEY]
        .into_iter()
        .enumerate()
    {
        put_with(&mut client, &format!("o{n}"), headers).expect(200);
        keep.insert(format!("o{n}"));
    }
    server.restart();
    let mut client = server.client();
    for key in &keep {
        assert_eq!(get(&mut client, key).expect(200).body, b"content");
    }
    assert!(keys.stop().success());
    let start = Instant::now();
    while get(&mut client, "o0").status() != 503 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it is still read"
        );
        thread::sleep(Duration::from_millis(200));
    }
    keys.run();
    let start = Instant::now();
    while get(&mut client, "o0").status() != 200 {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it is not read again"
        );
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(
        keys.ask("DELETE", "/v1/key/delete/store", &Value::Null)
            .status(),
        200
    );
    thread::sleep(Duration::from_secs(3));
    for key in &keep {
        assert_eq!(
            get(&mut client, key).expect(400).code(),
            "KMS.NotFoundException"
        );
        client.head(BUCKET, key).expect("an answer").expect(200);
    }
}
