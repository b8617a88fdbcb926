//! rclone, as Debian packages it: fetched by apt on first use and unpacked into the target directory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::server::{REGION, Scheme, Server};
use crate::{binary, python};

/// How the commands name the server.
pub const REMOTE: &str = "sut";

/// `rclone ARGS`, where `sut:` is the server.
pub fn rclone(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        let theirs = |n: &str| n.starts_with("RCLONE_") || n.starts_with("AWS_");
        if name.to_str().is_some_and(theirs) {
            command.env_remove(name);
        }
    }
    let (user, password) = server.credentials();
    command
        .args([
            "--config",
            "/dev/null",
            "--retries",
            "1",
            "--low-level-retries",
            "1",
        ])
        .args(args)
        .env("RCLONE_CONFIG_SUT_TYPE", "s3")
        .env("RCLONE_CONFIG_SUT_PROVIDER", "Other")
        .env("RCLONE_CONFIG_SUT_ACCESS_KEY_ID", user)
        .env("RCLONE_CONFIG_SUT_SECRET_ACCESS_KEY", password)
        .env("RCLONE_CONFIG_SUT_REGION", REGION)
        .env("RCLONE_CONFIG_SUT_ENDPOINT", server.endpoint_url())
        .env("NO_PROXY", "*")
        .stdin(Stdio::null());
    if server.scheme() == Scheme::Tls {
        command.arg("--ca-cert").arg(server.certificate());
    }
    command
}

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Ok(found) = Command::new("rclone").arg("version").output()
            && found.status.success()
        {
            return PathBuf::from("rclone");
        }
        let dir = binary::scratch().join("rclone");
        let lock =
            File::create(binary::scratch().join("rclone.lock")).expect("scratch is writable");
        lock.lock().expect("the lock of rclone");
        let program = dir.join("usr/bin/rclone");
        if !program.exists() {
            install(&dir);
        }
        program
    })
}

fn install(dir: &std::path::Path) {
    fs::create_dir_all(dir).expect("scratch is writable");
    let fetched = Command::new("apt-get")
        .args(["download", "rclone"])
        .current_dir(dir)
        .output();
    assert!(
        fetched.is_ok_and(|o| o.status.success()),
        "this test needs rclone in the path, or a Debian whose apt-get can download it"
    );
    let package = fs::read_dir(dir)
        .expect("just made")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .expect("a package");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(package).arg(dir);
    python::succeed(&mut unpack);
}
