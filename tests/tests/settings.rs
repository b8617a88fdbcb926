//! Settings by flag and by environment, the commands beside `serve`, and certificates that change.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::client::Client;
use strongroom_tests::server::free_port;
use strongroom_tests::{Config, Server, binary, python};

const BUCKET: &str = "settings";

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
fn settings_by_environment() {
    let address = format!("127.0.0.1:{}", free_port());
    let home = scratch();
    let mut command = Command::new(binary::path());
    command
        .arg("serve")
        .arg(home.path().join("data"))
        .env("STRONGROOM_ADDRESS", &address)
        .env("STRONGROOM_SHARDS", "1")
        .env("STRONGROOM_NO_TLS", "true")
        .env("MINIO_ROOT_USER", "by-minio-name")
        .env("MINIO_ROOT_PASSWORD", "by-minio-password")
        .env("STRONGROOM_NO_SUCH_SETTING", "x")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::inherit());
    let mut child = command.spawn().expect("it starts");
    let mut output = child.stdout.take().expect("piped");
    let reader = thread::spawn(move || {
        let mut text = String::new();
        drop(output.read_to_string(&mut text));
        text
    });
    let mut client = Client::new(strongroom_tests::client::Endpoint {
        address: address.parse().expect("an address"),
        tls: false,
        credentials: strongroom_tests::sigv4::Credentials {
            access_key: "by-minio-name".into(),
            secret_key: "by-minio-password".into(),
            region: "us-east-1".into(),
        },
    });
    let start = Instant::now();
    // It listens before it serves.
    let mut live = || {
        let health = client.send("GET", "health", "live", "", &[]);
        health.is_ok_and(|answer| answer.status() == 200)
    };
    while !live() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "nothing is served on {address}"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let made = client.create_bucket(BUCKET);
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    made.expect("an answer").expect(200);
    let text = reader.join().expect("no panic");
    assert!(text.contains(&format!("http://{address}")), "{text}");
    assert!(!home.path().join("data/root-credentials").exists());
}

/// A setting that does not exist is a warning, never an error: the next release may know it.
#[test]
fn unknown_settings_are_warned_of() {
    let server = Config::http()
        .env("STRONGROOM_NO_SUCH_SETTING", "x")
        .start();
    let log = server.log();
    assert!(log.contains("STRONGROOM_NO_SUCH_SETTING"), "{log}");
}

#[test]
fn a_region_of_its_own() {
    let server = Config::http().args(["--region", "eu-test-1"]).start();
    let mut client = server.client();
    let refused = client.create_bucket(BUCKET).expect("an answer").expect(400);
    assert_eq!(refused.code(), "AuthorizationHeaderMalformed");
    let mut aws = python::aws(&server);
    aws.args(["--region", "eu-test-1", "s3", "mb", "s3://settings"]);
    python::succeed(&mut aws);
    let mut aws = python::aws(&server);
    aws.args([
        "--region",
        "eu-test-1",
        "s3api",
        "get-bucket-location",
        "--bucket",
        BUCKET,
    ]);
    assert!(python::succeed(&mut aws).contains("eu-test-1"));
}

/// Unix sockets have short names; data directories need not.
#[test]
fn long_data_paths() {
    let home = scratch();
    let dir = home.path().join("d".repeat(120)).join("e".repeat(120));
    let (server, _) = with_bucket(Config::http().data_dir(&dir));
    keys(server.data_dir(), &["create", "over-a-long-path"]).expect("created");
}

fn keys(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(binary::path())
        .arg("key")
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        Err(all)
    }
}

/// The same commands with a server on the directory, which they ask, and without one.
#[test]
fn keys_with_a_server_and_without() {
    let (mut server, mut client) = with_bucket(Config::http());
    let dir = server.data_dir().to_owned();
    client
        .put(BUCKET, "key", b"content")
        .expect("an answer")
        .expect(200);
    assert_eq!(mode(&dir.join("admin.sock")), 0o600);
    for running in [true, false] {
        let name = if running {
            "made-online"
        } else {
            "made-offline"
        };
        if !running {
            assert!(server.terminate().0.success());
        }
        keys(&dir, &["create", name]).expect("created");
        let again = keys(&dir, &["create", name]).expect_err("a name in use");
        assert!(again.contains("exist"), "{again}");
        let list = keys(&dir, &["list"]).expect("listed");
        assert!(
            list.contains(name) && list.contains("strongroom-default"),
            "{list}"
        );
        let status = keys(&dir, &["status", name]).expect("described");
        assert!(status.contains(name), "{status}");
        keys(&dir, &["status", "no-such-key"]).expect_err("no such key");
    }
    server.start_again();
    let list = keys(&dir, &["list"]).expect("listed");
    assert!(
        list.contains("made-online") && list.contains("made-offline"),
        "{list}"
    );
    let got = server
        .client()
        .get(BUCKET, "key")
        .expect("an answer")
        .expect(200);
    assert_eq!(got.body, b"content");
}

/// Certificates that change on disk are served to new connections; a broken one leaves the old in service.
#[test]
fn certificates_are_reloaded() {
    let server = Config::tls().start();
    let other = Config::tls().start();
    let certs = server.data_dir().join("certs");
    let served = || {
        let mut command = Command::new("python3");
        let port = server.address().port();
        let script =
            format!("import ssl; print(ssl.get_server_certificate(('127.0.0.1', {port})))");
        python::succeed(command.args(["-c", &script]))
            .trim()
            .to_owned()
    };
    let wanted = fs::read_to_string(other.certificate()).expect("readable");
    let own = served();
    assert!(!wanted.contains(&own));
    for file in ["public.crt", "private.key"] {
        fs::copy(other.data_dir().join("certs").join(file), certs.join(file)).expect("copied");
    }
    let start = Instant::now();
    while served() == own {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "the old certificate is still served"
        );
        thread::sleep(Duration::from_millis(200));
    }
    assert!(wanted.contains(&served()));
    fs::write(certs.join("public.crt"), "no certificate").expect("written");
    thread::sleep(Duration::from_secs(6));
    assert!(wanted.contains(&served()));
}

#[test]
fn help_names_every_flag() {
    let output = Command::new(binary::path())
        .args(["serve", "--help"])
        .output();
    let text = String::from_utf8(output.expect("it starts").stdout).expect("UTF-8");
    for flag in [
        "--address",
        "--domain",
        "--shards",
        "--certs-dir",
        "--no-tls",
        "--region",
        "--etag",
        "--default-encryption",
        "--drain-timeout",
        "STRONGROOM_ADDRESS",
        "STRONGROOM_ROOT_USER",
    ] {
        assert!(text.contains(flag), "no {flag} in:\n{text}");
    }
}
