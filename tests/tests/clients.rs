//! The scripts of `tests/python`: boto3, curl and requests signed by hand, each script over HTTP and over TLS,
//! because SDKs put different payload modes on the wire, and each against a server of its own.

use strongroom_tests::python::{run_script, script_command, succeed};
use strongroom_tests::server::{Config, ROOT_PASSWORD};

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        mod http {
            $(#[test] fn $name() { super::run(super::Config::http(), stringify!($name)); })*
        }
        mod tls {
            $(#[test] fn $name() { super::run(super::Config::tls(), stringify!($name)); })*
        }
    };
}

scripts!(
    auth, buckets, checksums, conditions, copying, encryption, keys, listing, multipart, objects,
    payloads, presigned, ranges, refusals,
);

fn run(config: Config, script: &str) {
    let server = config.start();
    run_script(&server, script, &[]);
    assert!(
        !server.log().contains(ROOT_PASSWORD),
        "the root password is in the log"
    );
}

#[test]
fn virtual_host_over_http() {
    run(
        Config::http().args(["--domain", "s3.strongroom.test"]),
        "virtual_host",
    );
}

#[test]
fn virtual_host_by_minio_variable() {
    run(
        Config::http().env("MINIO_DOMAIN", "s3.strongroom.test"),
        "virtual_host",
    );
}

/// The server that seals only where it is told to.
#[test]
fn encryption_where_the_default_is_none() {
    let server = Config::http()
        .args(["--default-encryption", "none"])
        .start();
    let mut script = script_command(&server, "encryption");
    succeed(script.env("STRONGROOM_TEST_DEFAULT", "none"));
}

/// One shard: everything works where no second core hides a wait for oneself.
#[test]
fn on_one_shard() {
    for script in ["objects", "copying", "multipart"] {
        run(Config::http().shards(1), script);
    }
}

/// ETags that are no MD5 must not look like one, or clients would compare them.
#[test]
fn opaque_etags() {
    let server = Config::tls().args(["--etag", "opaque"]).start();
    run_script(&server, "opaque", &[]);
    run_script(&server, "ranges", &[]);
}
