//! SSE-KMS, SSE-C and forms with the real clients: boto3, the AWS CLI, curl, rclone, mc.

use std::fs;
use std::path::Path;

use strongroom_tests::data::Pattern;
use strongroom_tests::mc::{ALIAS, mc};
use strongroom_tests::python::{aws, run_script, succeed};
use strongroom_tests::rclone::{REMOTE, rclone};
use strongroom_tests::scan::base64;
use strongroom_tests::sse::{BUCKET_KEY, KEY_ID, METHOD, customer, send};
use strongroom_tests::{Config, Server, cli};

const BUCKET: &str = "sse-clients";

fn started(config: Config) -> Server {
    let server = config.start();
    for key in ["first", "second"] {
        cli::succeed(&mut cli::on(server.data_dir(), &["key", "create", key]));
    }
    server
}

/// Customers' keys over plain HTTP are for tests alone.
fn http() -> Server {
    started(Config::http().args(["--allow-sse-c-without-tls"]))
}

fn tls() -> Server {
    started(Config::tls())
}

#[test]
fn boto3_over_http() {
    run_script(&http(), "sse", &[]);
}

#[test]
fn boto3_over_tls() {
    run_script(&tls(), "sse", &[]);
}

#[test]
fn forms_over_http() {
    run_script(&http(), "forms", &[]);
}

#[test]
fn forms_over_tls() {
    run_script(&tls(), "forms", &[]);
}

/// Three files, in one piece and in several, to the server and back by a client's own commands.
fn round_trip(server: &Server, name: &str, transfer: impl Fn(&str, &str, &str)) {
    let home = tempfile::tempdir().expect("a directory");
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    for (i, size) in [0, 1000, 20 << 20].into_iter().enumerate() {
        let body = Pattern::named(&format!("{name} {i}")).bytes(size);
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        fs::write(&from, &body).expect("written");
        drop(fs::remove_file(&to));
        let key = format!("{name}-{i}");
        transfer(text(&from), &key, text(&to));
        assert!(fs::read(&to).expect("fetched") == body, "{key}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

#[test]
fn the_aws_cli() {
    let server = tls();
    let home = tempfile::tempdir().expect("a directory");
    let key = home.path().join("key");
    fs::write(&key, [7; 32]).expect("written");
    let key_blob = format!("fileb://{}", key.display());
    let uri = |key: &str| format!("s3://{BUCKET}/{key}");
    let to_kms = ["--sse", "aws:kms", "--sse-kms-key-id", "first"];
    let by_customer = ["--sse-c", "AES256", "--sse-c-key", &key_blob];
    round_trip(&server, "cli", |from, name, to| {
        let cp = |from: &str, to: &str, more: &[&str]| {
            succeed(
                aws(&server)
                    .args(["s3", "cp", "--quiet", from, to])
                    .args(more),
            );
        };
        let kms = format!("{name}-kms");
        cp(from, &uri(&kms), &to_kms);
        cp(&uri(&kms), to, &[]);
        let head = server
            .client()
            .head(BUCKET, &kms)
            .expect("an answer")
            .expect(200);
        assert_eq!(head.head.header(METHOD), Some("aws:kms"));
        assert_eq!(head.head.header(KEY_ID), Some("first"));
        cp(from, &uri(name), &by_customer);
        cp(&uri(name), to, &by_customer);
        let bare = server.client().head(BUCKET, name).expect("an answer");
        assert_eq!(bare.status(), 400);
        // From one customer's key into the other mode, and on to where the next fetch finds it.
        let copied = format!("{name}-copied");
        let source = [
            "--sse-c-copy-source",
            "AES256",
            "--sse-c-copy-source-key",
            &key_blob,
        ];
        cp(
            &uri(name),
            &uri(&copied),
            &[&source[..], &to_kms[..]].concat(),
        );
        cp(&uri(&copied), to, &[]);
    });
    let rule = r#"{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"aws:kms","KMSMasterKeyID":"second"},"BucketKeyEnabled":true,"BlockedEncryptionTypes":{"EncryptionType":["SSE-C"]}}]}"#;
    let bucket = ["--bucket", BUCKET];
    succeed(
        aws(&server)
            .args(["s3api", "put-bucket-encryption"])
            .args(bucket)
            .args(["--server-side-encryption-configuration", rule]),
    );
    let shown = succeed(
        aws(&server)
            .args(["s3api", "get-bucket-encryption"])
            .args(bucket),
    );
    for part in ["\"second\"", "\"SSE-C\"", "\"BucketKeyEnabled\": true"] {
        assert!(shown.contains(part), "{shown}");
    }
    let file = home.path().join("file");
    fs::write(&file, "data").expect("written");
    succeed(aws(&server).args(["s3", "cp", "--quiet", text(&file), &uri("by-default")]));
    let head = server
        .client()
        .head(BUCKET, "by-default")
        .expect("an answer")
        .expect(200);
    assert_eq!(head.head.header(KEY_ID), Some("second"));
    assert_eq!(head.head.header(BUCKET_KEY), Some("true"));
}

#[test]
fn rclone_with_sse_c_and_sse_kms() {
    let server = tls();
    let key = [9; 32];
    // rclone wants the key as it is, and a file's text cannot hold any byte.
    let text_key = "an rclone key of thirty-two byte";
    assert_eq!(text_key.len(), key.len());
    let run = |args: &[&str], more: &[(&str, &str)]| {
        let mut command = rclone(&server, args);
        command.envs(more.iter().copied());
        succeed(&mut command);
    };
    let by_customer = [
        ("RCLONE_S3_SSE_CUSTOMER_ALGORITHM", "AES256"),
        ("RCLONE_S3_SSE_CUSTOMER_KEY", text_key),
    ];
    let by_kms = [
        ("RCLONE_S3_SERVER_SIDE_ENCRYPTION", "aws:kms"),
        ("RCLONE_S3_SSE_KMS_KEY_ID", "first"),
    ];
    round_trip(&server, "rclone", |from, name, to| {
        let remote = format!("{REMOTE}:{BUCKET}/{name}");
        run(&["copyto", from, &remote], &by_customer);
        let right = customer(strongroom_tests::sse::CUSTOMER, text_key.as_bytes());
        send(
            &mut server.client(),
            "HEAD",
            (BUCKET, name, ""),
            &right,
            b"",
        )
        .expect(200);
        run(&["copyto", &remote, to], &by_customer);
        fs::remove_file(to).expect("fetched");
        let remote = format!("{remote}-kms");
        run(&["copyto", from, &remote], &by_kms);
        run(&["copyto", &remote, to], &by_kms);
    });
}

#[test]
fn mc_with_sse_c_and_sse_kms() {
    let server = tls();
    let key = base64(&[5; 32]);
    round_trip(&server, "mc", |from, name, to| {
        let there = format!("{ALIAS}/{BUCKET}/{name}");
        let enc = format!("{ALIAS}/{BUCKET}/={}", key.trim_end_matches('='));
        succeed(&mut mc(&server, &["cp", "--enc-c", &enc, from, &there]));
        let bare = server.client().head(BUCKET, name).expect("an answer");
        assert_eq!(bare.status(), 400);
        succeed(&mut mc(&server, &["cp", "--enc-c", &enc, &there, to]));
        fs::remove_file(to).expect("fetched");
        let there = format!("{there}-kms");
        let enc = format!("{ALIAS}/{BUCKET}/=second");
        succeed(&mut mc(&server, &["cp", "--enc-kms", &enc, from, &there]));
        let head = server.client().head(BUCKET, &format!("{name}-kms"));
        let head = head.expect("an answer").expect(200);
        assert!(
            head.head
                .header(KEY_ID)
                .is_some_and(|id| id.ends_with("second"))
        );
        succeed(&mut mc(&server, &["cp", &there, to]));
    });
}

#[test]
fn the_servers_default_is_a_named_key_by_flag_or_variable() {
    for config in [
        Config::http().args(["--default-encryption", "sse-kms"]),
        Config::http().env("MINIO_KMS_AUTO_ENCRYPTION", "on"),
    ] {
        let server = config.start();
        let mut client = server.client();
        client.create_bucket(BUCKET).expect("an answer").expect(200);
        client
            .put(BUCKET, "key", b"data")
            .expect("an answer")
            .expect(200);
        let got = client.get(BUCKET, "key").expect("an answer").expect(200);
        assert_eq!(got.body, b"data");
        assert_eq!(got.head.header(METHOD), Some("aws:kms"));
        let shown = got.head.header(KEY_ID);
        assert_eq!(shown, Some("arn:aws:kms:strongroom-default"));
    }
}

#[test]
fn a_server_may_block_customers_keys_as_aws_does() {
    let server = Config::tls().args(["--block-sse-c"]).start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let headers = customer(strongroom_tests::sse::CUSTOMER, &[1; 32]);
    let refused = send(&mut client, "PUT", (BUCKET, "key", ""), &headers, b"data");
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (403, "AccessDenied")
    );
    let shown = client
        .send("GET", BUCKET, "", "encryption", b"")
        .expect("an answer");
    assert!(
        shown
            .expect(200)
            .text()
            .contains("<EncryptionType>SSE-C</EncryptionType>")
    );
}
