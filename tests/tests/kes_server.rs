//! The key server against what a real KES answered, over TLS and the wire; and what an operator does with it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use strongroom_tests::cli::{self, fail, on, succeed, value};
use strongroom_tests::key_server::{Caller, KeyServer};
use strongroom_tests::scan::Needles;
use strongroom_tests::wire::Connection;
use strongroom_tests::{binary, go, python};

/// Who asked, in the recording.
const ADMIN: &str = "87a866f48485aae38a21574eb514ed9ea1df6453f0a86e3529bfe22096d2f10d";
const READER: &str = "6448b9b3437bb7d79a8404d56010fc2bc9aa1c4e356e542f99f9c41db4d5f164";

fn golden(name: &str) -> std::path::PathBuf {
    binary::workspace().join("tests/golden").join(name)
}

fn exchanges() -> Vec<Value> {
    let text = fs::read(golden("kes-exchanges.json")).expect("the recording");
    serde_json::from_slice(&text).expect("JSON")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Replays everything that was asked of a real KES, in that order.
#[test]
fn recorded_exchanges() {
    let server = KeyServer::start();
    // What ours sealed, by what theirs sealed then.
    let mut sealed: BTreeMap<String, String> = BTreeMap::new();
    let mut replayed = 0;
    for exchange in exchanges() {
        let (method, path) = (text(&exchange, "method"), text(&exchange, "path"));
        let shown = format!("{method} {path} ({})", text(&exchange, "note"));
        let caller = match text(&exchange, "identity") {
            "admin" => Some(&server.admin),
            "reader" => Some(&server.reader),
            _ => None,
        };
        let body = match text(&exchange, "body") {
            long if long.starts_with('<') => vec![b'x'; 1_200_017],
            body => body.as_bytes().to_vec(),
        };
        let answer = server.call(caller, method, path, &body);
        replayed += 1;
        if !text(&exchange, "failed").is_empty() {
            assert!(
                answer.is_err(),
                "{shown}: a handshake without a certificate"
            );
            continue;
        }
        let answer = answer.unwrap_or_else(|e| panic!("{shown}: {e}"));
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(
            u64::from(answer.status()),
            exchange["status"],
            "{shown}: {said}"
        );
        let content_type =
            |text: Option<&str>| text.and_then(|t| t.split(';').next().map(str::to_owned));
        let headers = &exchange["headers"];
        assert_eq!(
            content_type(answer.head.header("content-type")),
            content_type(headers["content-type"].as_str()),
            "{shown}"
        );
        for header in ["accept", "x-content-type-options", "connection"] {
            assert_eq!(
                answer.head.header(header),
                headers[header].as_str(),
                "{shown}: {header}"
            );
        }
        let theirs = text(&exchange, "response")
            .replace(ADMIN, &server.admin.identity)
            .replace(READER, &server.reader.identity);
        match path {
            "/v1/metrics" => {
                let names = |text: &str| -> Vec<String> {
                    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
                    types
                        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
                        .collect()
                };
                let ours = names(&said);
                for name in names(&theirs) {
                    // The count of objects is one of Go's memory, and has no like here.
                    assert!(
                        ours.contains(&name) || name == "kes_system_mem_heap_objects",
                        "{name}"
                    );
                }
            }
            _ if theirs.starts_with(['{', '[']) => {
                let want: Value = serde_json::from_str(&theirs).expect("JSON");
                same_shape(&answer.json(), &want, "")
                    .unwrap_or_else(|why| panic!("{shown}: {why}"));
                // Down to where the line ends.
                for end in ["}\n", "\n}"] {
                    assert_eq!(
                        said.ends_with(end),
                        theirs.ends_with(end),
                        "{shown}: {said:?}"
                    );
                }
                if let Some(ciphertext) = want["ciphertext"].as_str() {
                    sealed.insert(
                        ciphertext.to_owned(),
                        text(&answer.json(), "ciphertext").to_owned(),
                    );
                }
            }
            _ => assert_eq!(said, theirs, "{shown}"),
        }
        if path.starts_with("/v1/key/decrypt/") && answer.status() == 200 {
            // Theirs opened; so does ours, sealed for the same request.
            let mut request: Value = serde_json::from_slice(&body).expect("JSON");
            request["ciphertext"] = sealed[text(&request, "ciphertext")].clone().into();
            let again = server.ask("PUT", path, &request);
            assert_eq!(again.status(), 200, "{shown}");
        }
    }
    assert_eq!(replayed, 70);
}

/// The same fields of the same types, and the same values but for what is random, a time, or tells of the machine.
fn same_shape(ours: &Value, theirs: &Value, field: &str) -> Result<(), String> {
    let differ = || Err(format!("{field}: {ours} for {theirs}"));
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => a
            .iter()
            .try_for_each(|(key, value)| same_shape(value, &b[key], key)),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            // The order of routes and identities means nothing.
            let sorted = |list: &[Value]| {
                let mut list = list.to_vec();
                list.sort_by_key(Value::to_string);
                list
            };
            let (a, b) = (sorted(a), sorted(b));
            a.iter().zip(&b).try_for_each(|(a, b)| match a.is_object() {
                true if a == b => Ok(()),
                true => Err(format!("{a} for {b}")),
                false => same_shape(a, b, field),
            })
        }
        (Value::String(a), Value::String(b)) => match field {
            "ciphertext" | "hmac" if a.len() == b.len() => Ok(()),
            // A data key is random; what was sealed by the client is not.
            "plaintext" if b.len() == 44 && a.len() == 44 => Ok(()),
            "created_at" if a.len() >= 20 && a.ends_with('Z') && a.as_bytes()[10] == b'T' => Ok(()),
            "version" | "commit" | "os" | "arch" => Ok(()),
            _ if a == b => Ok(()),
            _ => differ(),
        },
        (Value::Number(_), Value::Number(_)) => Ok(()),
        _ if ours == theirs => Ok(()),
        _ => differ(),
    }
}

/// Keys of a real KES, taken over: its ciphertexts open, and its HMAC is the same.
#[test]
fn the_keys_of_a_kes_are_taken_over() {
    let mut server = KeyServer::prepare();
    // The directory that KES kept its keys in is the one that its configuration names.
    fs::create_dir(server.data_dir()).expect("made");
    for name in ["golden-1", "golden-2"] {
        let from = golden("kes-fs").join(name);
        fs::copy(from, server.data_dir().join(name)).expect("copied");
    }
    let refused = server
        .try_run()
        .expect_err("its keys are not taken over yet");
    assert!(
        refused.contains("import-kes") && refused.contains("golden-1"),
        "{refused}"
    );

    let place = server.data_dir();
    let import = || {
        let mut command = on(&place, &["kms", "import-kes"]);
        succeed(command.arg(&place))
    };
    let said = import();
    assert!(
        said.contains("golden-1") && said.contains("golden-2"),
        "{said}"
    );
    server.run();
    assert!(server.log().contains("keys in clear"), "{}", server.log());
    // Through the running server, and for the second time.
    let said = import();
    assert!(said.contains("there already"), "{said}");

    let list = server.ask("GET", "/v1/key/list/", &Value::Null);
    assert_eq!(list.json()["names"], json!(["golden-1", "golden-2"]));
    let mut opened = 0;
    for exchange in exchanges() {
        let (method, path) = (text(&exchange, "method"), text(&exchange, "path"));
        let same_answer = path.starts_with("/v1/key/decrypt/") || path.starts_with("/v1/key/hmac/");
        if same_answer && exchange["status"] == 200 && text(&exchange, "identity") == "admin" {
            let body: Value = serde_json::from_str(text(&exchange, "body")).expect("JSON");
            let answer = server.ask(method, path, &body);
            assert_eq!(
                String::from_utf8_lossy(&answer.body),
                text(&exchange, "response")
            );
            opened += 1;
        }
    }
    assert!(opened > 8, "{opened}");
    let described = server
        .ask("GET", "/v1/key/describe/golden-2", &Value::Null)
        .json();
    assert_eq!(described["algorithm"], "ChaCha20");
    assert!(
        text(&described, "created_at").starts_with("2026-"),
        "{described}"
    );
}

/// MinIO's own KES client, as stores use it: HTTP/2, and a certificate made from an API key.
#[test]
fn the_client_of_stores_is_served() {
    let mut server = KeyServer::prepare();
    let made = succeed(&mut cli::command(&["kms", "identity", "new"]));
    let (key, identity) = (value(&made, "api-key"), value(&made, "identity"));
    server.configure(|config| config.replace(&server.admin.identity, &identity));
    server.run();
    let mut client = Command::new(go::build("kes"));
    client
        .arg(format!("https://{}", server.address))
        .arg(server.file("server.crt"))
        .arg(key);
    let said = python::succeed(&mut client);
    assert!(said.contains("all well"), "{said}");
}

#[test]
fn an_api_key_is_an_identity() {
    let made = succeed(&mut cli::command(&["kms", "identity", "new"]));
    let (key, identity) = (value(&made, "api-key"), value(&made, "identity"));
    let of = |what: &str| {
        succeed(&mut cli::command(&["kms", "identity", "of", what]))
            .trim()
            .to_owned()
    };
    assert_eq!(of(&key), identity);
    // As KES computes it.
    assert_eq!(
        of("kes:v1:ACQpoGqx3rHHjT938Hfu5hVVQJHZWSqVI2Xp1KlYxFVw"),
        "0426fa9a04bc2756b92fbe8a97e1a1e07b53ecf04ed33da22c33e5c9faeb8cbb"
    );
    let refused = fail(&mut cli::command(&[
        "kms",
        "identity",
        "of",
        "kes:v1:nonsense",
    ]));
    assert!(!refused.contains("nonsense"), "{refused}");
}

#[test]
fn a_configuration_that_asks_for_more_is_refused_by_name() {
    let mut server = KeyServer::prepare();
    for (from, to, named) in [
        ("  fs:\n", "  vault:\n", "keystore.vault"),
        ("  fs:\n", "  aws:\n", "keystore.aws"),
        ("server.crt", "missing.crt", "missing.crt"),
        ("version: v1", "version: v2", "version"),
        (
            "    - /v1/key/describe/*",
            "    - ${UNSET_VARIABLE}",
            "UNSET_VARIABLE",
        ),
    ] {
        server.configure(|config| {
            assert!(config.contains(from), "{from}");
            config.replace(from, to)
        });
        let refused = server.try_run().expect_err(to);
        assert!(refused.contains(named), "{to}: {refused}");
    }
    fs::remove_file(server.config_file()).expect("removed");
    let refused = server.try_run().expect_err("no configuration");
    assert!(
        refused.contains("kes.yml") && refused.contains("--help"),
        "{refused}"
    );
}

#[test]
fn a_changed_configuration_is_taken_on_sighup_and_a_bad_one_is_not() {
    let server = KeyServer::start();
    let create = |caller: &Caller, name: &str| {
        let answer = server.call(Some(caller), "PUT", &format!("/v1/key/create/{name}"), b"");
        answer.expect("an answer").status()
    };
    assert_eq!(create(&server.reader, "a"), 403);
    server.configure(|config| config.replace("    - /v1/key/describe/*", "    - /v1/key/create/*"));
    server.signal(Signal::HUP);
    eventually(|| create(&server.reader, "a") != 403);
    assert_eq!(create(&server.reader, "b"), 200);

    server.configure(|config| config.replace("version: v1", "version: v9"));
    server.signal(Signal::HUP);
    eventually(|| server.log().contains("stays as it was"));
    assert_eq!(create(&server.reader, "c"), 200);

    // Open to everybody from now on: the handshake does not ask for a certificate any more.
    assert!(server.call(None, "GET", "/v1/ready", b"").is_err());
    server.configure(|config| format!("{config}api:\n  /v1/ready:\n    skip_auth: true\n"));
    server.signal(Signal::HUP);
    eventually(|| {
        server
            .call(None, "GET", "/v1/ready", b"")
            .is_ok_and(|a| a.status() == 200)
    });
    let refused = server
        .call(None, "GET", "/v1/status", b"")
        .expect("an answer");
    assert_eq!(refused.status(), 400);
    assert_eq!(
        refused.json()["message"],
        "tls: client certificate is required"
    );
}

#[test]
fn with_tls_auth_a_client_needs_a_certificate_of_a_ca() {
    let mut server = KeyServer::prepare();
    let trusted = server.file("admin.crt");
    server.configure(|config| {
        config.replace(
            "tls:\n",
            &format!("tls:\n  auth: on\n  ca: {}\n", trusted.display()),
        )
    });
    server.run();
    let by = |caller: &Caller| server.call(Some(caller), "GET", "/v1/ready", b"");
    assert!(by(&server.reader).is_err(), "nobody vouches for the reader");
    assert_eq!(by(&server.admin).expect("trusted").status(), 200);
}

/// Sealing and keys work on the key server as on a store.
#[test]
fn commands_reach_the_key_server() {
    let mut server = KeyServer::start();
    let place = server.data_dir();
    assert_eq!(
        server
            .ask("PUT", "/v1/key/create/one", &Value::Null)
            .status(),
        200
    );
    let listed = succeed(&mut on(&place, &["key", "list"]));
    assert!(
        listed.starts_with("one ") && listed.lines().count() == 1,
        "{listed}"
    );
    let made = server.ask("PUT", "/v1/key/generate/one", &json!({})).json();
    let request = json!({ "ciphertext": made["ciphertext"] });
    let open = |server: &KeyServer| server.ask("PUT", "/v1/key/decrypt/one", &request);

    succeed(&mut on(&place, &["key", "rotate", "one"]));
    assert_eq!(open(&server).json()["plaintext"], made["plaintext"]);
    succeed(&mut on(&place, &["kms", "seal"]));
    assert_eq!(open(&server).status(), 502);
    assert_eq!(server.ask("GET", "/v1/ready", &Value::Null).status(), 504);
    assert!(server.stop().success());
    server.run();
    assert_eq!(open(&server).status(), 502);
    succeed(&mut on(&place, &["kms", "unseal"]));
    assert_eq!(open(&server).json()["plaintext"], made["plaintext"]);
    succeed(&mut on(
        &place,
        &["key", "delete", "one", "--confirm", "one"],
    ));
    assert_eq!(open(&server).status(), 404);
    assert_eq!(
        server.ask("GET", "/v1/key/list/", &Value::Null).json()["names"],
        json!([])
    );
}

#[test]
fn a_lost_keystore_is_told_and_not_made_anew() {
    let mut server = KeyServer::start();
    let (place, backup) = (server.data_dir(), server.file("backup"));
    server.ask("PUT", "/v1/key/create/one", &Value::Null);
    let made = server.ask("PUT", "/v1/key/generate/one", &json!({})).json();
    let request = json!({ "ciphertext": made["ciphertext"] });
    succeed(on(&place, &["kms", "backup"]).arg(&backup));
    assert!(server.stop().success());
    fs::remove_dir_all(place.join("keystore")).expect("removed");
    server.run();
    assert!(server.log().contains("kms restore"), "{}", server.log());
    let status = |path: &str| server.ask("GET", path, &Value::Null).status();
    assert_eq!((status("/v1/ready"), status("/v1/status")), (504, 200));
    let open = || server.ask("PUT", "/v1/key/decrypt/one", &request);
    assert_eq!(open().status(), 502);
    assert_eq!(
        server
            .ask("PUT", "/v1/key/create/two", &Value::Null)
            .status(),
        502
    );
    succeed(on(&place, &["kms", "restore"]).arg(&backup));
    assert_eq!(open().json()["plaintext"], made["plaintext"]);
    assert_eq!(status("/v1/ready"), 200);
}

/// The audit log says who did what, and no log says a key.
#[test]
fn logs_are_streamed_and_hold_no_key() {
    let server = KeyServer::start();
    let mut follower =
        Connection::open_as(server.address, Some(&server.admin.certificate)).expect("a connection");
    follower
        .send(b"GET /v1/log/audit HTTP/1.1\r\nhost: keys\r\n\r\n", b"")
        .expect("sent");
    let head = follower.read_head().expect("an answer");
    assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
    let key = STANDARD.encode([0xa7; 32]);
    let body = json!({ "key": key, "cipher": "AES256" });
    assert_eq!(
        server.ask("PUT", "/v1/key/import/watched", &body).status(),
        200
    );
    let mut seen = Vec::new();
    follower
        .read_chunk(|piece| seen.extend_from_slice(piece))
        .expect("a line");
    let event: Value = serde_json::from_slice(&seen).expect("one line");
    assert_eq!(event["request"]["path"], "/v1/key/import/watched");
    assert_eq!(event["request"]["identity"], server.admin.identity);
    assert_eq!(event["response"]["code"], 200);

    let sealed = server.ask("PUT", "/v1/key/encrypt/watched", &json!({ "plaintext": STANDARD.encode("a plaintext to be found"), "context": STANDARD.encode("a context to be found") }));
    let request = json!({ "ciphertext": sealed.json()["ciphertext"], "context": STANDARD.encode("another context") });
    assert_eq!(
        server
            .ask("PUT", "/v1/key/decrypt/watched", &request)
            .status(),
        400
    );
    let place = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    fs::write(place.path().join("log"), server.log()).expect("written");
    fs::write(place.path().join("audit"), &seen).expect("written");
    let mut needles = Needles::default();
    needles.add("the imported key", &[0xa7; 32]);
    needles.add("the plaintext", b"a plaintext to be found");
    needles.add("the context", b"a context to be found");
    let root = fs::read(server.data_dir().join("root.key")).expect("the root key");
    needles.add("the root key's text", root.trim_ascii());
    needles.assert_absent(place.path());
    // And none but the root key in the directory.
    for hit in needles.search(&server.data_dir()) {
        assert!(hit.file.ends_with("root.key"), "{hit:?}");
    }
}

#[test]
fn clients_are_bounded_and_not_waited_for() {
    let mut server = KeyServer::start();
    // One says nothing, one stops in the middle of its body.
    let _silent = std::net::TcpStream::connect(server.address).expect("a connection");
    let mut slow =
        Connection::open_as(server.address, Some(&server.admin.certificate)).expect("a connection");
    let head = b"PUT /v1/key/encrypt/none HTTP/1.1\r\nhost: keys\r\ncontent-length: 1000\r\n\r\n";
    slow.send(head, b"{").expect("sent");
    assert_eq!(server.ask("GET", "/v1/ready", &Value::Null).status(), 200);
    let begun = Instant::now();
    assert!(server.stop().success());
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

fn eventually(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came");
        std::thread::sleep(Duration::from_millis(50));
    }
}
