//! Programs in Go, built from source through the Go module proxy on first use, into the target directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{binary, python, scan};

/// A program that the module proxy has, at one version.
pub fn install(module: &str, version: &str) -> PathBuf {
    let name = module.rsplit('/').next().unwrap_or(module);
    let dir = binary::scratch().join(format!("{name}-{version}"));
    let program = dir.join(name);
    once(&program, || {
        let mut go = go();
        go.arg("install")
            .arg(format!("{module}@{version}"))
            .env("GOBIN", &dir);
        go
    });
    program
}

/// A program of our own in `tests/go/NAME`, named by what is in it.
pub fn build(name: &str) -> PathBuf {
    let source = binary::workspace().join("tests/go").join(name);
    let read = |file: &str| std::fs::read(source.join(file)).expect("the program's source");
    let content = [read("main.go"), read("go.mod"), read("go.sum")].concat();
    let hash = &scan::sha256_hex(&content)[..12];
    let program = binary::scratch().join(format!("go-{name}-{hash}"));
    once(&program, || {
        let mut go = go();
        go.arg("build").arg("-o").arg(&program).current_dir(&source);
        go
    });
    program
}

fn once(program: &Path, make: impl FnOnce() -> Command) {
    let lock = File::create(binary::scratch().join("go.lock")).expect("scratch is writable");
    lock.lock().expect("the lock of Go programs");
    if !program.exists() {
        python::succeed(&mut make());
    }
}

fn go() -> Command {
    let found = Command::new("go").arg("version").output();
    assert!(
        found.is_ok_and(|o| o.status.success()),
        "this test builds a client from source: it needs Go 1.24 or later in the path, and access to a Go module proxy"
    );
    let mut go = Command::new("go");
    go.env("CGO_ENABLED", "0");
    go
}
