//! MinIO's client `mc`, built from its source through the Go module proxy on first use, into the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::go;
use crate::server::{Scheme, Server};

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

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| go::install("github.com/minio/mc", VERSION))
}
