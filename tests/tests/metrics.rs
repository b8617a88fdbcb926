//! Metrics and status: what the server says of itself is what was done with it.

use strongroom_tests::cli::{fail, on, succeed, value};
use strongroom_tests::data::Pattern;
use strongroom_tests::python::run_script;
use strongroom_tests::{Config, binary};

const TOKEN: &str = "a-token-for-the-tests";

fn with_cache(config: Config) -> Config {
    config.args(["--cache-size", "256M"])
}

#[test]
fn a_real_parser_reads_them() {
    let server = with_cache(Config::http())
        .env("STRONGROOM_METRICS_TOKEN", TOKEN)
        .start();
    run_script(&server, "metrics", &[]);
    assert!(!server.log().contains(TOKEN), "the token is in the log");
}

#[test]
fn over_tls_and_with_the_token_in_a_file() {
    let dir = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("scratch is writable");
    let server = with_cache(Config::tls())
        .args(["--metrics-token-file", file.to_str().expect("UTF-8")])
        .start();
    run_script(&server, "metrics", &[]);
}

/// The number in front of ` bytes`.
fn bytes(printed: &str, name: &str) -> u64 {
    let value = value(printed, name);
    let number = value.split(' ').next().and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("{name}: {value}"))
}

#[test]
fn status_with_a_server_and_without() {
    let mut server = Config::http().start();
    let mut client = server.client();
    for bucket in ["one", "two-2"] {
        client.create_bucket(bucket).expect("an answer").expect(200);
    }
    for (key, size) in [("a", 10 << 20), ("b", 5 << 20), ("c", 100)] {
        let body = Pattern::named(key).bytes(size);
        client
            .put("one", key, &body)
            .expect("an answer")
            .expect(200);
    }
    let begun = client.send("POST", "one", "upload", "uploads=", &[]);
    begun.expect("an answer").expect(200);
    let dir = server.data_dir().to_owned();
    let running = succeed(&mut on(&dir, &["status"]));
    assert_eq!(value(&running, "server"), "running");
    let (status, _) = server.terminate();
    assert!(status.success());
    let stopped = succeed(&mut on(&dir, &["status"]));
    assert_eq!(value(&stopped, "server"), "stopped");
    for printed in [&running, &stopped] {
        assert_eq!(value(printed, "buckets"), "2");
        assert_eq!(value(printed, "objects"), "3");
        assert_eq!(value(printed, "uploads"), "1");
        assert_eq!(value(printed, "keys"), "1");
        assert_eq!(bytes(printed, "stored"), (15 << 20) + 100);
        let live = bytes(printed, "live");
        assert!(live > 15 << 20, "{printed}");
        assert!(live < 90 << 20, "{printed}");
        assert!(bytes(printed, "free") > 0, "{printed}");
    }
    // Looking changed nothing: the store opens as one that was closed.
    server.start_again();
    let mut client = server.client();
    client.get("one", "a").expect("an answer").expect(200);
    assert!(!server.log().contains("recovered"), "{}", server.log());
    client.delete("one", "a").expect("an answer").expect(204);
    let less = succeed(&mut on(&dir, &["status"]));
    assert_eq!(value(&less, "objects"), "2");
    assert!(
        bytes(&less, "live") + (9 << 20) < bytes(&stopped, "live"),
        "{less}{stopped}"
    );

    let nowhere = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let said = fail(&mut on(nowhere.path(), &["status"]));
    assert!(said.contains("no store"), "{said}");
    let empty = std::fs::read_dir(nowhere.path()).expect("readable").next();
    assert!(empty.is_none(), "looking for a store makes none");
}
