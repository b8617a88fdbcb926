//! MinIO's own client: `mc admin kms` and `mc encrypt`.

use strongroom_tests::client::Request;
use strongroom_tests::key_server::KeyServer;
use strongroom_tests::mc::{ALIAS, mc};
use strongroom_tests::python::succeed;
use strongroom_tests::{Config, Server, cli};

fn run(server: &Server, args: &[&str]) -> serde_json::Value {
    let printed = succeed(&mut mc(server, args));
    serde_json::from_str(printed.trim()).unwrap_or_else(|e| panic!("{args:?}: {e}: {printed}"))
}

/// Runs a command that has to fail; what it said.
fn refused(server: &Server, args: &[&str]) -> String {
    let output = mc(server, args).output().expect("mc starts");
    assert!(!output.status.success(), "{args:?}");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn keys_are_made_listed_and_tested() {
    for config in [Config::tls(), Config::http()] {
        let server = config.start();
        let status = run(&server, &["admin", "kms", "key", "status", ALIAS]);
        assert_eq!(status["keyId"], "strongroom-default", "{status}");
        assert!(
            status["encryptionError"].is_null() && status["decryptionError"].is_null(),
            "{status}"
        );
        succeed(&mut mc(
            &server,
            &["admin", "kms", "key", "create", ALIAS, "payroll"],
        ));
        let status = run(
            &server,
            &["admin", "kms", "key", "status", ALIAS, "payroll"],
        );
        assert_eq!(status["keyId"], "payroll", "{status}");
        let again = refused(
            &server,
            &["admin", "kms", "key", "create", ALIAS, "payroll"],
        );
        assert!(again.contains("exists already"), "{again}");
        let listed = succeed(&mut mc(&server, &["admin", "kms", "key", "list", ALIAS]));
        for name in ["payroll", "strongroom-default"] {
            assert!(listed.contains(name), "{listed}");
        }
        cli::succeed(&mut cli::on(
            server.data_dir(),
            &["key", "disable", "payroll"],
        ));
        let status = run(
            &server,
            &["admin", "kms", "key", "status", ALIAS, "payroll"],
        );
        assert!(status.to_string().contains("is disabled"), "{status}");
        let unknown = run(&server, &["admin", "kms", "key", "status", ALIAS, "nobody"]);
        assert!(unknown.to_string().contains("does not exist"), "{unknown}");
    }
}

#[test]
fn bucket_encryption_is_set_shown_and_cleared() {
    let server = Config::tls().start();
    let bucket = format!("{ALIAS}/sealed");
    run(&server, &["mb", &bucket]);
    run(&server, &["encrypt", "set", "sse-s3", &bucket]);
    let shown = run(&server, &["encrypt", "info", &bucket]);
    assert!(shown.to_string().contains("AES256"), "{shown}");
    run(&server, &["encrypt", "clear", &bucket]);

    succeed(&mut mc(
        &server,
        &["admin", "kms", "key", "create", ALIAS, "payroll"],
    ));
    run(&server, &["encrypt", "set", "sse-kms", "payroll", &bucket]);
    let shown = run(&server, &["encrypt", "info", &bucket]);
    assert!(
        shown.to_string().contains("aws:kms") && shown.to_string().contains("payroll"),
        "{shown}"
    );
    let file = server.data_dir().with_file_name("file");
    std::fs::write(&file, "sealed under payroll").expect("written");
    let object = format!("{bucket}/object");
    succeed(&mut mc(
        &server,
        &["cp", file.to_str().expect("UTF-8"), &object],
    ));
    assert_eq!(
        succeed(&mut mc(&server, &["cat", &object])),
        "sealed under payroll"
    );
    cli::succeed(&mut cli::on(
        server.data_dir(),
        &["key", "disable", "payroll"],
    ));
    let locked = refused(&server, &["cat", &object]);
    assert!(locked.contains("400"), "{locked}");
    cli::succeed(&mut cli::on(
        server.data_dir(),
        &["key", "enable", "payroll"],
    ));
    run(&server, &["encrypt", "clear", &bucket]);
    // Cleared, a bucket has the server's default, or none to show.
    let shown = mc(&server, &["encrypt", "info", &bucket]).output();
    let shown = shown.expect("mc starts").stdout;
    assert!(!String::from_utf8_lossy(&shown).contains("payroll"));
}

/// Where new writes take their keys from KES, so do these calls.
#[test]
fn with_kes_the_calls_go_there() {
    let mut keys = KeyServer::start();
    let path = |name: &str| keys.file(name).display().to_string();
    let endpoint = format!("https://{}", keys.address);
    let server = Config::http()
        .env("MINIO_KMS_KES_ENDPOINT", &endpoint)
        .env("MINIO_KMS_KES_KEY_NAME", "store")
        .env("MINIO_KMS_KES_CERT_FILE", &path("admin.crt"))
        .env("MINIO_KMS_KES_KEY_FILE", &path("admin.key"))
        .env("MINIO_KMS_KES_CAPATH", &path("server.crt"))
        .start();
    let key = |args: &[&str]| mc(&server, &[&["admin", "kms", "key"], args].concat());
    succeed(&mut key(&["create", ALIAS, "payroll"]));
    let names = keys
        .ask("GET", "/v1/key/list/", &serde_json::Value::Null)
        .json();
    assert_eq!(names["names"], serde_json::json!(["payroll", "store"]));
    let again = refused(
        &server,
        &["admin", "kms", "key", "create", ALIAS, "payroll"],
    );
    assert!(again.contains("XMinioKMSKeyExists"), "{again}");
    let listed = succeed(&mut key(&["list", ALIAS]));
    assert!(
        listed.contains("payroll") && listed.contains("store"),
        "{listed}"
    );
    let status = run(&server, &["admin", "kms", "key", "status", ALIAS]);
    assert_eq!(status["keyId"], "store", "{status}");
    let mut client = server.client();
    let request = Request {
        method: "GET",
        bucket: "minio",
        key: "kms/v1/status",
        ..Request::default()
    };
    let mut shown = || {
        client
            .request(&request, b"")
            .expect("an answer")
            .expect(200)
            .text()
    };
    let online = shown();
    assert!(
        online.contains(&format!("\"{endpoint}\":\"online\"")),
        "{online}"
    );
    assert!(keys.stop().success());
    let offline = shown();
    assert!(
        offline.contains(&format!("\"{endpoint}\":\"offline\"")),
        "{offline}"
    );
    let status = run(&server, &["admin", "kms", "key", "status", ALIAS]);
    assert!(status.to_string().contains("cannot be reached"), "{status}");
}

/// The calls as clients other than `mc` make them, old ones included; and who may not.
#[test]
fn the_calls_are_for_root_alone() {
    let server = Config::http().start();
    let mut client = server.client();
    let mut call = |method: &str, path: &str, query: &str| {
        // A path of two parts is what the client calls a bucket and a key.
        let request = Request {
            method,
            bucket: "minio",
            key: path,
            query,
            headers: &[],
        };
        client.request(&request, b"").expect("an answer")
    };
    let status = call("GET", "kms/v1/status", "").expect(200).text();
    for part in ["\"default-key-id\":\"strongroom-default\"", "\"online\""] {
        assert!(status.contains(part), "{status}");
    }
    assert_eq!(
        call("POST", "admin/v3/kms/status", "").expect(200).text(),
        status
    );
    assert!(
        call("GET", "kms/v1/version", "")
            .expect(200)
            .text()
            .contains("version")
    );
    assert!(
        call("GET", "kms/v1/metrics", "")
            .expect(200)
            .text()
            .contains("kms_req_success")
    );
    assert!(
        call("GET", "kms/v1/apis", "")
            .expect(200)
            .text()
            .contains("/minio/kms/v1/key/list")
    );
    assert!(
        call("POST", "kms/v1/key/create", "key-id=one")
            .expect(200)
            .body
            .is_empty()
    );
    assert!(
        call("POST", "admin/v3/kms/key/create", "key-id=two")
            .expect(200)
            .body
            .is_empty()
    );
    let again = call("POST", "kms/v1/key/create", "key-id=one")
        .expect(409)
        .text();
    assert!(again.contains("XMinioKMSKeyExists"), "{again}");
    let bad = call("POST", "kms/v1/key/create", "key-id=bad%20name")
        .expect(400)
        .text();
    assert!(bad.contains("XMinioAdminInvalidArgument"), "{bad}");
    call("POST", "kms/v1/key/create", "").expect(400);
    let listed = call("GET", "kms/v1/key/list", "pattern=%2A")
        .expect(200)
        .text();
    assert!(listed.contains("one") && listed.contains("two"), "{listed}");
    let listed = call("GET", "kms/v1/key/list", "pattern=o%2A")
        .expect(200)
        .text();
    assert!(
        listed.contains("one") && !listed.contains("two"),
        "{listed}"
    );
    let tested = call("GET", "admin/v3/kms/key/status", "key-id=two")
        .expect(200)
        .text();
    assert_eq!(tested, "{\"key-id\":\"two\"}");
    // What old servers would have taken is not taken for an object either.
    call("POST", "kms/v1/key/delete", "key-id=one").expect(404);
    call("PUT", "kms/v1/key/create", "key-id=three").expect(404);

    let mut endpoint = server.endpoint();
    endpoint.credentials.secret_key = "not-the-password".into();
    let mut stranger = strongroom_tests::Client::new(endpoint);
    let request = Request {
        method: "POST",
        bucket: "minio",
        key: "kms/v1/key/create",
        query: "key-id=four",
        headers: &[],
    };
    let refused = stranger
        .request(&request, b"")
        .expect("an answer")
        .expect(403)
        .text();
    assert!(
        refused.contains("\"Code\":\"SignatureDoesNotMatch\""),
        "{refused}"
    );
    let mut connection =
        strongroom_tests::wire::Connection::open(server.address(), false).expect("a connection");
    let head = "POST /minio/kms/v1/key/create?key-id=four HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    connection.send(head.as_bytes(), b"").expect("sent");
    assert_eq!(connection.read_head().expect("an answer").status, 403);
    let keys = cli::succeed(&mut cli::on(server.data_dir(), &["key", "list"]));
    assert!(!keys.contains("four"), "{keys}");
}
