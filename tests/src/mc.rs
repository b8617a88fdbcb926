//! MinIO's client `mc`, built from its source through the Go module proxy on first use, into the target directory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::server::{Scheme, Server};
use crate::{binary, python};

const VERSION: &str = "v0.0.0-20250313080218-cf909e1063a9";
/// How the commands name the server.
pub const ALIAS: &str = "sut";

/// `mc ARGS`, where `sut` is the server.
pub fn mc(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("MC_")) {
            command.env_remove(name);
        }
    }
    let home = server.data_dir().with_file_name("mc");
    let authorities = home.join("certs/CAs");
    fs::create_dir_all(&authorities).expect("scratch is writable");
    if server.scheme() == Scheme::Tls {
        let trusted = authorities.join("public.crt");
        fs::copy(server.certificate(), trusted).expect("the server has a certificate");
    }
    let (user, password) = server.credentials();
    let url = server.endpoint_url();
    let (scheme, address) = url.split_once("://").expect("a URL");
    command
        .arg("--config-dir")
        .arg(home)
        .args(["--no-color", "--json"])
        .args(args)
        .env(
            format!("MC_HOST_{ALIAS}"),
            format!("{scheme}://{user}:{password}@{address}"),
        )
        .stdin(Stdio::null());
    command
}

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = binary::scratch().join(format!("mc-{VERSION}"));
        let lock = File::create(binary::scratch().join("mc.lock")).expect("scratch is writable");
        lock.lock().expect("the lock of mc");
        let program = dir.join("mc");
        if !program.exists() {
            install(&dir);
        }
        program
    })
}

fn install(dir: &std::path::Path) {
    let found = Command::new("go").arg("version").output();
    assert!(
        found.is_ok_and(|o| o.status.success()),
        "mc is built from source: this test needs Go 1.24 or later in the path, and access to a Go module proxy"
    );
    let mut go = Command::new("go");
    go.arg("install")
        .arg(format!("github.com/minio/mc@{VERSION}"))
        .env("GOBIN", dir)
        .env("CGO_ENABLED", "0");
    python::succeed(&mut go);
}
