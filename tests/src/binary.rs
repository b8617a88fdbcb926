//! The binary under test: built once per test process, by the same cargo and profile as the test itself.
//!
//! The result is linked into a directory of this process, so that a build that runs meanwhile cannot change what
//! a restart in the middle of a test starts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The built `strongroom` binary; `STRONGROOM_TEST_BINARY` names one to be used as it is.
pub fn path() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("STRONGROOM_TEST_BINARY") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

/// Where tests keep what they make: inside the target directory, which lies on a real disk (the server needs
/// O_DIRECT and hole punching, which a memory file system lacks).
pub fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let dir = target().join("strongroom-tests");
        std::fs::create_dir_all(&dir).expect("the target directory is writable");
        dir
    })
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = profile();
    // The whole workspace and one of its tests, so that features unify as in `cargo test --workspace` and nothing is built twice.
    let mut command = Command::new(cargo);
    // What cargo tells a test of its package: there are build scripts that run again when it changes, and then all that needs them.
    for (name, _) in std::env::vars_os() {
        let told = name.to_str();
        if told.is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    let status = command
        .args(["build", "--quiet", "--workspace"])
        .args(["--bin", "strongroom", "--test", "metrics"])
        .args([
            "--profile",
            if profile == "debug" { "dev" } else { &profile },
        ])
        .arg("--target-dir")
        .arg(target())
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the strongroom binary does not build");
    let built = target().join(&profile).join("strongroom");
    let own = scratch().join(format!("strongroom-{}", std::process::id()));
    drop(std::fs::remove_file(&own));
    std::fs::hard_link(&built, &own)
        .unwrap_or_else(|e| panic!("linking {} to {}: {e}", built.display(), own.display()));
    sweep_links();
    own
}

/// Removes the links of test processes that are gone.
fn sweep_links() {
    let Ok(entries) = std::fs::read_dir(scratch()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix("strongroom-"));
        if pid.is_some_and(|p| {
            p.bytes().all(|b| b.is_ascii_digit()) && !Path::new("/proc").join(p).exists()
        }) {
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

/// This executable is `TARGET/PROFILE/NAME` or `TARGET/PROFILE/deps/NAME`.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this executable is known");
    let dir = exe.parent().expect("an executable lies in a directory");
    if dir.ends_with("deps") {
        dir.parent().expect("deps/ has a parent").to_owned()
    } else {
        dir.to_owned()
    }
}

fn profile() -> String {
    let dir = profile_dir();
    let name = dir.file_name().and_then(|n| n.to_str());
    name.expect("a profile directory has a name").to_owned()
}

fn target() -> PathBuf {
    let dir = profile_dir();
    dir.parent()
        .expect("a profile directory has a parent")
        .to_owned()
}
