//! What was stored is nowhere on disk in clear: not the data, not what describes it, not what identifies it; and no
//! secret is in a log, at any level.

use std::path::Path;

use strongroom_tests::client::{Client, Request, xml_values};
use strongroom_tests::data::Pattern;
use strongroom_tests::scan::{Needles, base64};
use strongroom_tests::server::ROOT_PASSWORD;
use strongroom_tests::{Config, Server, sigv4, sse};

const BUCKET: &str = "secrecy";
const CANARY: &str = "canary-7f3Qz-the-plaintext-that-must-not-be-found";

/// Sizes in the index and in segments, of less than a package, of one, of many.
const SIZES: [usize; 8] = [0, 100, 4096, 16_384, 16_385, 65_536, 70_000, 3 << 20];

/// Incompressible content with the canary at its start, across package borders, and at its end.
fn content(size: usize) -> Vec<u8> {
    let mut body = Pattern::named(&format!("secrecy {size}")).bytes(size);
    let canary = CANARY.as_bytes();
    let borders = (65_536..size).step_by(65_536).map(|b| b - 20);
    let places = [0, size.saturating_sub(canary.len())]
        .into_iter()
        .chain(borders);
    for at in places {
        if at + canary.len() <= size {
            body[at..at + canary.len()].copy_from_slice(canary);
        }
    }
    body
}

fn described(prefix: &str) -> Vec<(&'static str, String)> {
    let word = |what: &str| format!("{prefix}-{what}-{CANARY}");
    vec![
        ("cache-control", word("cache")),
        ("content-disposition", word("disposition")),
        ("content-encoding", word("encoding")),
        ("content-language", word("language")),
        ("content-type", word("type")),
        ("x-amz-meta-first", word("meta")),
        ("x-amz-meta-key-canary-8812", "in the name".to_owned()),
    ]
}

fn request<'a>(
    method: &'a str,
    key: &'a str,
    query: &'a str,
    headers: &'a [(&'a str, &'a str)],
) -> Request<'a> {
    Request {
        method,
        bucket: BUCKET,
        key,
        query,
        headers,
    }
}

/// One object of each size, a copy, a replaced one, a deleted one, a finished and an unfinished multipart upload.
fn fill(client: &mut Client) {
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let headers = described("put");
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    for size in SIZES {
        let key = format!("size-{size}");
        let put = client.request(&request("PUT", &key, "", &headers), &content(size));
        put.expect("an answer").expect(200);
        let source = format!("/{BUCKET}/{key}");
        let copied = format!("copy-{size}");
        let from = [("x-amz-copy-source", source.as_str())];
        let copy = request("PUT", &copied, "", &from);
        client.request(&copy, &[]).expect("an answer").expect(200);
        for key in [format!("replaced-{size}"), format!("deleted-{size}")] {
            client
                .put(BUCKET, &key, &content(size))
                .expect("an answer")
                .expect(200);
        }
        client
            .put(BUCKET, &format!("replaced-{size}"), b"harmless")
            .expect("an answer")
            .expect(200);
        client
            .delete(BUCKET, &format!("deleted-{size}"))
            .expect("an answer")
            .expect(204);
    }
    for finish in [true, false] {
        let key = if finish { "finished" } else { "unfinished" };
        let begun = client.request(&request("POST", key, "uploads=", &headers), &[]);
        let id = xml_values(&begun.expect("an answer").expect(200).text(), "UploadId").remove(0);
        let id = sigv4::encode_query(&id);
        let query = format!("partNumber=1&uploadId={id}");
        let part = client.request(&request("PUT", key, &query, &[]), &content(70_000));
        let part = part.expect("an answer").expect(200);
        if finish {
            let etag = part.head.header("etag").expect("a part has an ETag");
            let list = format!(
                "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
            );
            let query = format!("uploadId={id}");
            let done = client.request(&request("POST", key, &query, &[]), list.as_bytes());
            done.expect("an answer").expect(200);
        }
    }
    let got = client
        .get(BUCKET, "size-70000")
        .expect("an answer")
        .expect(200);
    assert!(got.body == content(70_000));
    assert_eq!(
        got.head.header("x-amz-meta-first"),
        Some(format!("put-meta-{CANARY}").as_str())
    );
}

fn needles() -> Needles {
    let mut needles = Needles::default();
    needles.add("canary", CANARY.as_bytes());
    needles.add("name of metadata", b"key-canary-8812");
    needles.add("root password", ROOT_PASSWORD.as_bytes());
    for size in SIZES {
        let body = content(size);
        needles.add_hashes(&format!("{size} bytes"), &body);
        if size >= 4096 {
            // What no canary covers: the bytes themselves, in the middle of a package.
            needles.add(&format!("middle of {size}"), &body[1000..1064]);
        }
    }
    needles
}

fn sealed(config: Config) {
    let mut server = config.start();
    fill(&mut server.client());
    let needles = needles();
    needles.assert_absent(server.data_dir());
    server.kill();
    needles.assert_absent(server.data_dir());
    server.start_again();
    server.restart();
    needles.assert_absent(server.data_dir());
    let got = server
        .client()
        .get(BUCKET, "copy-70000")
        .expect("an answer")
        .expect(200);
    assert!(got.body == content(70_000));
}

#[test]
fn nothing_in_clear_http() {
    sealed(Config::http());
}

#[test]
fn nothing_in_clear_tls() {
    sealed(Config::tls());
}

#[test]
fn nothing_in_clear_with_opaque_etags() {
    sealed(Config::http().args(["--etag", "opaque"]));
}

#[test]
fn nothing_in_clear_under_a_named_key() {
    sealed(Config::http().args(["--default-encryption", "sse-kms"]));
}

/// A customer's key and what a context says are on no disk, in no log and in no answer, whether a request is served or refused.
#[test]
fn customers_keys_and_contexts_are_nowhere() {
    let keys = ["ours", "theirs"].map(|name| Pattern::named(name).bytes(32));
    let context = r#"{"patient":"context-canary-Wq7x2-of-mister-x"}"#;
    let mut server = Config::tls()
        .env("STRONGROOM_LOG", "trace")
        .env("RUST_LOG", "trace")
        .start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let kms = |context: &str| {
        let context = sse::context(context);
        sse::headers(&[(sse::METHOD, "aws:kms"), (sse::CONTEXT, &context)])
    };
    let ours = || sse::customer(sse::CUSTOMER, &keys[0]);
    let mut refusals = Needles::default();
    let mut disk = needles();
    for needles in [&mut refusals, &mut disk] {
        needles.add("our key", &keys[0]);
        needles.add("their key", &keys[1]);
        needles.add("context", b"context-canary-Wq7x2-of-mister-x");
    }
    let answers = tempfile::tempdir().expect("a directory");
    let mut count = 0;
    let mut ask =
        |client: &mut Client, method: &str, key: &str, headers: &sse::Headers, body: &[u8]| {
            let answer = sse::send(client, method, (BUCKET, key, ""), headers, body);
            // What was just given is shown to those who gave it, and nothing else.
            let shown = |name: &str| name != sse::CONTEXT;
            let mut told = format!("{} {}", answer.status(), answer.text());
            for (name, value) in answer.head.headers.iter().filter(|(name, _)| shown(name)) {
                told.push_str(&format!("\n{name}: {value}"));
            }
            count += 1;
            let told = if method == "GET" && answer.status() == 200 {
                String::new()
            } else {
                told
            };
            std::fs::write(answers.path().join(format!("{count}")), told).expect("written");
            answer.status()
        };
    for size in SIZES {
        let (customer, named) = (format!("c-{size}"), format!("k-{size}"));
        assert_eq!(
            ask(&mut client, "PUT", &customer, &ours(), &content(size)),
            200
        );
        assert_eq!(
            ask(&mut client, "PUT", &named, &kms(context), &content(size)),
            200
        );
        assert_eq!(ask(&mut client, "GET", &customer, &ours(), b""), 200);
        assert_eq!(ask(&mut client, "HEAD", &customer, &ours(), b""), 200);
        assert_eq!(ask(&mut client, "GET", &named, &Vec::new(), b""), 200);
        let theirs = sse::customer(sse::CUSTOMER, &keys[1]);
        assert_eq!(ask(&mut client, "GET", &customer, &theirs, b""), 403);
        assert_eq!(ask(&mut client, "GET", &named, &theirs, b""), 400);
        let mut copy = sse::customer(sse::COPY_SOURCE_CUSTOMER, &keys[0]);
        copy.push(("x-amz-copy-source".into(), format!("/{BUCKET}/{customer}")));
        copy.extend(theirs);
        assert_eq!(
            ask(&mut client, "PUT", &format!("copy-{size}"), &copy, b""),
            200
        );
        // Once more onto itself, which changes the key.
        assert_eq!(ask(&mut client, "PUT", &customer, &copy, b""), 200);
    }
    let mixed = [ours(), kms(context)].concat();
    assert_eq!(ask(&mut client, "PUT", "refused", &mixed, b"x"), 400);
    let mut without = kms(context);
    without.remove(0);
    assert_eq!(ask(&mut client, "PUT", "refused", &without, b"x"), 400);
    let broken = context.replace('}', "");
    assert_eq!(ask(&mut client, "PUT", "refused", &kms(&broken), b"x"), 400);
    for i in 0..3 {
        // The key in the place of another value, and one value left out.
        let mut swapped = ours();
        swapped[i].1 = base64(&keys[1]);
        assert_eq!(ask(&mut client, "PUT", "refused", &swapped, b"x"), 400);
        let mut fewer = ours();
        fewer.remove(i);
        assert_eq!(ask(&mut client, "PUT", "refused", &fewer, b"x"), 400);
    }
    refusals.assert_absent(answers.path());
    disk.assert_absent(server.data_dir());
    server.kill();
    disk.assert_absent(server.data_dir());
    std::fs::write(answers.path().join("log"), server.log()).expect("written");
    disk.assert_absent(answers.path());
    assert!(server.log().contains(BUCKET), "the log is on");
}

/// Without sealing the same search finds the data: it is not blind. What describes objects is sealed even then.
#[test]
fn the_search_is_not_blind() {
    let mut server = Config::http()
        .args(["--default-encryption", "none"])
        .start();
    fill(&mut server.client());
    assert!(server.terminate().0.success());
    let hits = needles().search(server.data_dir());
    for name in [
        "canary, raw",
        "middle of 70000, raw",
        "middle of 3145728, raw",
    ] {
        assert!(
            hits.iter().any(|h| h.name == name),
            "{name} not among {hits:?}"
        );
    }
    let mut rest = Needles::default();
    rest.add("metadata", format!("put-meta-{CANARY}").as_bytes());
    rest.add("name of metadata", b"key-canary-8812");
    for size in SIZES {
        rest.add_hashes(&format!("{size} bytes"), &content(size));
    }
    rest.assert_absent(server.data_dir());
}

/// A key in the environment is used and not written down.
#[test]
fn a_given_root_key_is_not_on_disk() {
    let key = Pattern::named("root key").bytes(32);
    let text = base64(&key);
    let mut server = Config::http().env("STRONGROOM_KMS_ROOT_KEY", &text).start();
    fill(&mut server.client());
    let mut needles = Needles::default();
    needles.add("root key", &key);
    needles.add("root key as text", text.as_bytes());
    needles.assert_absent(server.data_dir());
    assert!(!server.data_dir().join("root.key").exists());
    server.restart();
    assert!(!server.log().contains(&text));
    // Another key opens nothing, and says so.
    assert!(server.terminate().0.success());
    let wrong = base64(&Pattern::named("another").bytes(32));
    let other = Config::http().env("STRONGROOM_KMS_ROOT_KEY", &wrong);
    let refused = other.data_dir(server.data_dir()).try_start();
    let Err(refused) = refused else {
        panic!("the store opens under a wrong root key")
    };
    assert!(
        refused.output.to_lowercase().contains("key"),
        "{}",
        refused.output
    );
}

/// Requests full of secrets, at the most talkative level there is.
#[test]
fn logs_hold_no_secrets() {
    for config in [Config::http(), Config::tls()] {
        let server = config
            .env("RUST_LOG", "trace")
            .env("STRONGROOM_LOG", "trace")
            .start();
        let mut client = server.client();
        fill(&mut client);
        let customer_key = Pattern::named("customer key").bytes(32);
        let text = base64(&customer_key);
        let digest = base64(&Pattern::named("digest").bytes(16));
        for prefix in [
            "x-amz-server-side-encryption",
            "x-amz-copy-source-server-side-encryption",
        ] {
            let names = ["algorithm", "key", "key-md5"].map(|n| format!("{prefix}-customer-{n}"));
            let headers = [
                (names[0].as_str(), "AES256"),
                (names[1].as_str(), text.as_str()),
                (names[2].as_str(), digest.as_str()),
            ];
            for method in ["PUT", "GET", "HEAD", "POST"] {
                // Refused or not: the log is what counts here.
                drop(client.request(&request(method, "size-100", "", &headers), b""));
                client = server.client();
            }
        }
        assert_log_is_clean(&server, &customer_key);
    }
}

fn assert_log_is_clean(server: &Server, customer_key: &[u8]) {
    let mut needles = Needles::default();
    needles.add("canary", CANARY.as_bytes());
    needles.add("root password", ROOT_PASSWORD.as_bytes());
    needles.add("customer key", customer_key);
    for file in ["root.key", "certs/private.key"] {
        if let Ok(text) = std::fs::read_to_string(server.data_dir().join(file)) {
            let lines = text
                .lines()
                .filter(|l| l.len() > 30 && !l.contains("-----"));
            for line in lines {
                needles.add(file, line.trim().as_bytes());
            }
        }
    }
    let log = tempfile::tempdir().expect("a directory");
    std::fs::write(log.path().join("log"), server.log()).expect("written");
    needles.assert_absent(Path::new(log.path()));
}
