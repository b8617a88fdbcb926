//! The server against what a real KES answered, line by line, and what goes beyond the recording.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::config::tests::{ADMIN, READER, golden};
use super::{KesConfig, KesServer, RequestBody, ServerBody, ServerRequest};
use crate::{ApiKey, Deletion, Kms, RootKey};

struct Bench {
    _dir: TempDir,
    kms: Arc<Kms>,
    server: KesServer,
    admin: Vec<u8>,
    reader: Vec<u8>,
    admin_id: String,
}

struct Answer {
    status: u16,
    headers: BTreeMap<&'static str, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn message(&self) -> String {
        self.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

fn certificate(fill: u8) -> (Vec<u8>, String) {
    let mut key = vec![0];
    key.extend([fill; 32]);
    let key = ApiKey::parse(&STANDARD.encode(key), "X").ok().unwrap();
    let made = key.certificate(1_790_000_000_000).ok().unwrap();
    (made.certificate, key.identity().to_owned())
}

impl Bench {
    fn new() -> Self {
        Self::with(&golden())
    }

    fn with(yaml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kms = Arc::new(Kms::open(dir.path(), RootKey::generate()).ok().unwrap());
        let ((admin, admin_id), (reader, reader_id)) = (certificate(1), certificate(2));
        let yaml = yaml.replace(ADMIN, &admin_id).replace(READER, &reader_id);
        let config = KesConfig::parse(&yaml, |_| None).unwrap();
        let server = KesServer::new(Arc::clone(&kms), config).ok().unwrap();
        Self {
            _dir: dir,
            kms,
            server,
            admin,
            reader,
            admin_id,
        }
    }

    fn call_by(&self, certificates: &[&[u8]], method: &str, path: &str, body: &[u8]) -> Answer {
        let limit = self.server.limits(path).body_bytes_max;
        let answer = self.server.handle(&ServerRequest {
            method,
            path,
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            certificates,
            body: match body.len() {
                _ if limit == 0 => RequestBody::Whole(&[]),
                len if len > limit => RequestBody::TooLong,
                _ => RequestBody::Whole(body),
            },
        });
        Answer {
            status: answer.status,
            headers: answer.headers.into_iter().collect(),
            body: match answer.body {
                ServerBody::Bytes(bytes) => bytes.to_vec(),
                ServerBody::Stream(_) => b"stream".to_vec(),
            },
        }
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.call_by(&[&self.admin], method, path, &body)
    }
}

/// Whether two answers agree in shape: the same fields of the same types, and the same values but for what
/// is random, a time, or names the machine.
fn same_shape(
    ours: &Value,
    theirs: &Value,
    field: &str,
    identities: &[(&str, &str)],
) -> Result<(), String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            if a.keys().ne(b.keys()) {
                return Err(format!("{:?} for {:?}", a.keys(), b.keys()));
            }
            a.iter()
                .try_for_each(|(key, value)| same_shape(value, &b[key], key, identities))
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                return Err(format!("{field}: {} elements for {}", a.len(), b.len()));
            }
            a.iter()
                .zip(b)
                .try_for_each(|(a, b)| same_shape(a, b, field, identities))
        }
        (Value::String(a), Value::String(b)) => {
            let free = [
                "plaintext",
                "ciphertext",
                "created_at",
                "version",
                "commit",
                "os",
                "arch",
            ];
            if free.contains(&field) && !(field == "plaintext" && b.len() != 44) {
                return if field.ends_with("text") && a.len() != b.len() {
                    Err(format!("{field}: {} characters for {}", a.len(), b.len()))
                } else {
                    Ok(())
                };
            }
            let theirs = identities
                .iter()
                .fold(b.clone(), |text, (from, to)| text.replace(from, to));
            if *a == theirs {
                Ok(())
            } else {
                Err(format!("{field}: {a:?} for {theirs:?}"))
            }
        }
        (Value::Number(_), Value::Number(_)) => Ok(()),
        (a, b) if a == b => Ok(()),
        (a, b) => Err(format!("{field}: {a} for {b}")),
    }
}

/// Replays everything that was asked of a real KES, in that order.
#[test]
fn recorded_exchanges() {
    let bench = Bench::new();
    // Ours has a key of its own; theirs had none.
    bench
        .kms
        .delete_key(crate::DEFAULT_KEY, Deletion::Now)
        .unwrap();
    let (_, reader_id) = certificate(2);
    let identities = [
        (ADMIN, bench.admin_id.as_str()),
        (READER, reader_id.as_str()),
    ];
    let exchanges: Vec<Value> =
        serde_json::from_str(include_str!("../../../../tests/golden/kes-exchanges.json")).unwrap();
    // What ours sealed, by what theirs sealed then.
    let mut sealed: BTreeMap<String, String> = BTreeMap::new();
    let (mut replayed, mut hmac_seen) = (0, false);
    for exchange in &exchanges {
        let text = |field: &str| exchange[field].as_str().unwrap_or_default();
        let (method, path) = (text("method"), text("path"));
        let shown = format!("{method} {path} ({})", text("note"));
        let certificates: &[&[u8]] = match text("identity") {
            "admin" => &[&bench.admin],
            "reader" => &[&bench.reader],
            _ => &[],
        };
        let body = match text("body") {
            long if long.starts_with('<') => vec![b'x'; 1_200_017],
            body => body.as_bytes().to_vec(),
        };
        if !text("failed").is_empty() {
            // They refused the handshake; what gets through one is refused here.
            let answer = bench.call_by(certificates, method, path, &body);
            assert_eq!(
                answer.status,
                if path == "/version" { 200 } else { 400 },
                "{shown}"
            );
            continue;
        }
        // Ciphertexts of theirs open here too, but those of unknown keys are replaced by ours.
        let answer = bench.call_by(certificates, method, path, &body);
        let want = exchange["status"].as_u64().unwrap();
        assert_eq!(
            u64::from(answer.status),
            want,
            "{shown}: {}",
            String::from_utf8_lossy(&answer.body)
        );
        replayed += 1;
        let theirs: Value = serde_json::from_str(text("response")).unwrap_or_default();
        let content_type = exchange["headers"]["content-type"]
            .as_str()
            .unwrap_or_default();
        let ours_type = answer
            .headers
            .get("content-type")
            .map_or("", String::as_str);
        assert_eq!(
            ours_type.split(';').next(),
            content_type.split(';').next(),
            "{shown}"
        );
        for header in ["accept", "x-content-type-options"] {
            let want = exchange["headers"][header].as_str();
            assert_eq!(
                answer.headers.get(header).map(String::as_str),
                want,
                "{shown}"
            );
        }
        match path {
            "/v1/metrics" => {
                let names = |text: &str| -> Vec<String> {
                    let names = text.lines().filter(|line| line.starts_with("# TYPE"));
                    names
                        .map(|line| line.split(' ').nth(2).unwrap().to_owned())
                        .collect()
                };
                let ours = names(&String::from_utf8_lossy(&answer.body));
                for name in names(text("response")) {
                    // The count of objects is one of Go's memory, and has no like here.
                    assert!(
                        ours.contains(&name) || name == "kes_system_mem_heap_objects",
                        "{name}"
                    );
                }
            }
            "/v1/api" => {
                let sorted = |value: Value| {
                    let mut all: Vec<String> = value
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(Value::to_string)
                        .collect();
                    all.sort();
                    all
                };
                assert_eq!(sorted(answer.json()), sorted(theirs.clone()));
            }
            // The HMAC key of an imported key is random; after an import from their files it is theirs.
            "/v1/key/hmac/golden-1" => {
                assert_eq!(
                    STANDARD
                        .decode(answer.json()["hmac"].as_str().unwrap())
                        .unwrap()
                        .len(),
                    32
                );
                hmac_seen = true;
            }
            _ => {
                same_shape(&answer.json(), &theirs, "", &identities)
                    .unwrap_or_else(|why| panic!("{shown}: {why}"));
                if content_type == "application/json" {
                    // Down to where the line ends.
                    assert_eq!(
                        answer.body.ends_with(b"}\n"),
                        text("response").ends_with("}\n"),
                        "{shown}"
                    );
                    assert_eq!(
                        answer.body.ends_with(b"\n}"),
                        text("response").ends_with("\n}"),
                        "{shown}"
                    );
                }
            }
        }
        if let Some(ciphertext) = answer.json()["ciphertext"].as_str() {
            sealed.insert(
                theirs["ciphertext"].as_str().unwrap().to_owned(),
                ciphertext.to_owned(),
            );
        }
        if path.starts_with("/v1/key/decrypt/") && answer.status == 200 {
            // Theirs opened; so does ours, sealed for the same request.
            let request: Value = serde_json::from_slice(&body).unwrap();
            let mut request_of_ours = request.clone();
            request_of_ours["ciphertext"] = sealed[request["ciphertext"].as_str().unwrap()]
                .clone()
                .into();
            let again = bench.call("PUT", path, &request_of_ours);
            assert_eq!(again.status, 200, "{shown}");
        }
    }
    assert!(replayed > 60 && hmac_seen, "{replayed}");
}

#[test]
fn after_an_import_from_files_the_hmac_is_theirs() {
    let bench = Bench::new();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kes-fs");
    bench.kms.import_kes(&files).unwrap();
    let answer = bench.call(
        "PUT",
        "/v1/key/hmac/golden-1",
        &json!({ "message": "aGVsbG8=" }),
    );
    assert_eq!(
        answer.json()["hmac"],
        "pPb6UQtRPSCGWkP5YTwqHB4CjnGUQpHoLL0RPjRkhss="
    );
    let answer = bench.call("GET", "/v1/key/describe/golden-1", &Value::Null);
    assert_eq!(
        answer.json()["created_at"],
        "2026-11-23T16:24:24.389923697Z"
    );
    assert_eq!(answer.json()["created_by"], ADMIN);
    // Rotating keeps what was derived from the HMAC key, and opens what was sealed before.
    let sealed = bench.call(
        "PUT",
        "/v1/key/encrypt/golden-1",
        &json!({ "plaintext": "AAAA" }),
    );
    bench.kms.rotate_key("golden-1").unwrap();
    let answer = bench.call(
        "PUT",
        "/v1/key/hmac/golden-1",
        &json!({ "message": "aGVsbG8=" }),
    );
    assert_eq!(
        answer.json()["hmac"],
        "pPb6UQtRPSCGWkP5YTwqHB4CjnGUQpHoLL0RPjRkhss="
    );
    let opened = bench.call(
        "PUT",
        "/v1/key/decrypt/golden-1",
        &json!({ "ciphertext": sealed.json()["ciphertext"] }),
    );
    assert_eq!(opened.json()["plaintext"], "AAAA");
}

#[test]
fn who_calls() {
    let bench = Bench::new();
    let status = |certificates: &[&[u8]]| {
        let answer = bench.call_by(certificates, "GET", "/v1/status", b"");
        (answer.status, answer.message())
    };
    assert_eq!(status(&[&bench.admin]).0, 200);
    let required = (400, "tls: client certificate is required".to_owned());
    assert_eq!(status(&[]), required);
    assert_eq!(status(&[b"nonsense"]), required);
    let two = (
        400,
        "tls: received more than one client certificate".to_owned(),
    );
    assert_eq!(status(&[&bench.admin, &bench.reader]), two);
    let refused = (403, "not authorized: insufficient permissions".to_owned());
    assert_eq!(status(&[&certificate(9).0]), refused);
    assert_eq!(status(&[&bench.reader]), refused);
    // A CA beside it in the chain is passed over.
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&pair).unwrap();
    assert_eq!(status(&[&bench.admin, ca.der()]).0, 200);
    assert_eq!(status(&[ca.der()]), required);
}

#[test]
fn open_routes_and_a_turned_off_admin() {
    let yaml = golden()
        .replace(&format!("identity: {ADMIN}"), "identity: disabled")
        .replace("address:", "api: {/v1/ready: {skip_auth: true}}\naddress:");
    let bench = Bench::with(&yaml);
    assert_eq!(bench.call_by(&[], "GET", "/v1/ready", b"").status, 200);
    assert_eq!(bench.call_by(&[], "GET", "/v1/status", b"").status, 400);
    assert_eq!(
        bench
            .call_by(&[&bench.admin], "GET", "/v1/status", b"")
            .status,
        403
    );
    let ours = bench.call_by(
        &[&bench.reader],
        "GET",
        "/v1/key/describe/strongroom-default",
        b"",
    );
    assert_eq!(ours.status, 200);
}

#[test]
fn what_was_made_here() {
    let bench = Bench::with(&(golden() + "\nkeys: [{name: at-start}]\n"));
    assert_eq!(bench.kms.describe_key("at-start").unwrap().version, 1);
    assert_eq!(
        bench
            .call("PUT", "/v1/key/create/mine", &Value::Null)
            .status,
        200
    );
    let described = bench
        .call("GET", "/v1/key/describe/mine", &Value::Null)
        .json();
    assert_eq!(
        described["created_by"].as_str(),
        Some(bench.admin_id.as_str())
    );
    let ours = bench.call(
        "GET",
        &format!("/v1/identity/describe/{}", bench.admin_id),
        &Value::Null,
    );
    assert_eq!(ours.json()["admin"], true);
    let (_, reader) = certificate(2);
    let ours = bench
        .call(
            "GET",
            &format!("/v1/identity/describe/{reader}"),
            &Value::Null,
        )
        .json();
    assert_eq!(ours["policy"], "reader");
    for (path, want) in [
        ("/v1/identity/describe/nobody", 404),
        ("/v1/identity/describe/no%20body", 400),
        ("/v1/policy/describe/a:b", 400),
        ("/v1/key/list/a%2Fb", 400),
        ("/v1/key/list", 301),
        ("/v1/key/describe/%zz", 400),
        ("/", 404),
        ("/v1/key/describe/../list/", 400),
    ] {
        assert_eq!(bench.call("GET", path, &Value::Null).status, want, "{path}");
    }
    let named = bench
        .call("GET", "/v1/policy/list/read*", &Value::Null)
        .json();
    assert_eq!(named["names"], json!(["reader"]));
    let names = bench.call("GET", "/v1/key/list/*", &Value::Null).json();
    assert_eq!(
        names["names"],
        json!(["at-start", "mine", "strongroom-default"])
    );
}

#[test]
fn states_that_kes_does_not_have() {
    let bench = Bench::new();
    bench.kms.create_key("k").unwrap();
    bench.kms.disable_key("k").unwrap();
    let generate = || bench.call("PUT", "/v1/key/generate/k", &json!({}));
    assert_eq!(
        (generate().status, generate().message()),
        (403, "key is disabled".to_owned())
    );
    bench.kms.delete_key("k", Deletion::Now).unwrap();
    assert_eq!(
        (generate().status, generate().message()),
        (404, "key does not exist".to_owned())
    );
    assert_eq!(
        bench.call("GET", "/v1/key/describe/k", &Value::Null).status,
        404
    );

    bench.kms.seal().unwrap();
    for (method, path, status) in [
        ("PUT", "/v1/key/generate/k", 502),
        ("PUT", "/v1/key/create/new", 502),
        ("GET", "/v1/key/list/", 502),
        ("GET", "/v1/ready", 504),
        ("GET", "/v1/status", 200),
        ("GET", "/version", 200),
    ] {
        assert_eq!(
            bench.call(method, path, &Value::Null).status,
            status,
            "{path}"
        );
    }
    let answer = bench.call("GET", "/v1/status", &Value::Null).json();
    assert_eq!(answer["keystore_unreachable"], true);
    assert!(answer.get("keystore_latency").is_none());
}

#[test]
fn logs_reach_their_readers() {
    let bench = Bench::new();
    let subscribe = |path: &str| {
        let answer = bench.server.handle(&ServerRequest {
            method: "GET",
            path,
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            certificates: &[&bench.admin],
            body: RequestBody::Whole(&[]),
        });
        match answer.body {
            ServerBody::Stream(reader) => reader,
            ServerBody::Bytes(_) => panic!("no stream"),
        }
    };
    assert_eq!(bench.server.limits("/v1/log/audit").timeout, None);
    let (audit, errors) = (subscribe("/v1/log/audit"), subscribe("/v1/log/error"));
    bench.call("PUT", "/v1/key/create/k", &Value::Null);
    bench.call("GET", "/v1/key/describe/k", &Value::Null);
    let event: Value = serde_json::from_slice(&audit.take()).unwrap();
    assert_eq!(event["request"]["path"], "/v1/key/create/k");
    assert_eq!(
        event["request"]["identity"].as_str(),
        Some(bench.admin_id.as_str())
    );
    assert_eq!(event["response"]["code"], 200);
    assert!(audit.take().is_empty() && errors.take().is_empty());
    bench.kms.seal().unwrap();
    bench.call("PUT", "/v1/key/generate/k", &Value::Null);
    let event: Value = serde_json::from_slice(&errors.take()).unwrap();
    assert_eq!(event["message"], "the key service is sealed");
}

#[test]
fn another_configuration() {
    let bench = Bench::new();
    let path = "/v1/key/describe/strongroom-default";
    assert_eq!(
        bench.call_by(&[&bench.reader], "GET", path, b"").status,
        200
    );
    let yaml = golden()
        .replace(ADMIN, &bench.admin_id)
        .replace("/v1/key/describe/*", "/v1/key/describe/x");
    bench
        .server
        .reload(KesConfig::parse(&yaml, |_| None).unwrap())
        .unwrap();
    assert_eq!(
        bench.call_by(&[&bench.reader], "GET", path, b"").status,
        403
    );
}

#[test]
fn a_sealed_server_starts() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    Kms::open(dir.path(), root.clone())
        .ok()
        .unwrap()
        .seal()
        .unwrap();
    let kms = Arc::new(Kms::open(dir.path(), root.clone()).ok().unwrap());
    let yaml = golden() + "\nkeys: [{name: at-start}]\n";
    let config = || KesConfig::parse(&yaml, |_| None).unwrap();
    let server = KesServer::new(Arc::clone(&kms), config()).ok().unwrap();
    kms.unseal(&root).unwrap();
    server.reload(config()).unwrap();
    assert!(kms.describe_key("at-start").is_ok());
}
