//! The real clients: boto3 and the AWS CLI in a Python environment of their own, made on first use in the target
//! directory and named by what is in it, so that a change of `requirements.txt` makes a new one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::server::{REGION, Scheme, Server};
use crate::{binary, long, scan};

const REQUIREMENTS: &str = include_str!("../requirements.txt");

/// Runs `tests/python/SCRIPT.py` against a server and panics with its output when it fails.
pub fn run_script(server: &Server, script: &str, args: &[&str]) {
    let output = script_command(server, script)
        .args(args)
        .output()
        .expect("python starts");
    let text = printed(&output);
    assert!(output.status.success(), "{script}.py failed:\n{text}");
    eprintln!("{text}");
}

/// The command that runs a script against a server, for those who want to do more with it.
pub fn script_command(server: &Server, script: &str) -> Command {
    let file = binary::workspace()
        .join("tests/python")
        .join(format!("{script}.py"));
    let mut command = Command::new(environment().join("bin/python"));
    command.arg("-B").arg(file);
    prepare(&mut command, server);
    command.env("STRONGROOM_TEST_LONG", if long() { "1" } else { "" });
    command.env("STRONGROOM_TEST_SCRATCH", binary::scratch());
    command
}

/// `aws --endpoint-url … ARGS`.
pub fn aws(server: &Server) -> Command {
    let mut command = Command::new(environment().join("bin/aws"));
    command.args(["--endpoint-url", &server.endpoint_url()]);
    prepare(&mut command, server);
    command
}

/// Runs a command to its end and panics with what it printed when it fails.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    let text = printed(&output);
    assert!(output.status.success(), "{command:?}:\n{text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What clients read from their surroundings, and nothing of the caller's own configuration.
fn prepare(command: &mut Command, server: &Server) {
    let (user, password) = server.credentials();
    let nowhere = binary::scratch().join("no-such-file");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("AWS_")) {
            command.env_remove(name);
        }
    }
    command
        .stdin(Stdio::null())
        .env("AWS_ACCESS_KEY_ID", user)
        .env("AWS_SECRET_ACCESS_KEY", password)
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", &nowhere)
        .env("AWS_SHARED_CREDENTIALS_FILE", &nowhere)
        .env("AWS_PAGER", "")
        .env("PYTHONUNBUFFERED", "1")
        .env("NO_PROXY", "*")
        .env("no_proxy", "*")
        .env("STRONGROOM_TEST_ENDPOINT", server.endpoint_url())
        .env("STRONGROOM_TEST_DATA_DIR", server.data_dir());
    if server.scheme() == Scheme::Tls {
        command.env("AWS_CA_BUNDLE", server.certificate());
    }
}

/// The environment, made if it is not there yet. One process makes it, others wait.
fn environment() -> &'static Path {
    static ENVIRONMENT: OnceLock<PathBuf> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let version = Command::new("python3").arg("--version").output();
        let version = version.unwrap_or_else(|e| {
            panic!("the tests drive real clients that need python3 (3.9 or newer) in the path: {e}")
        });
        let name = scan::sha256_hex(&[REQUIREMENTS.as_bytes(), &version.stdout].concat());
        let dir = binary::scratch().join(format!("python-{}", &name[..12]));
        let lock =
            File::create(binary::scratch().join("python.lock")).expect("scratch is writable");
        lock.lock().expect("the lock of the Python environment");
        let done = dir.join("complete");
        if !done.exists() {
            drop(std::fs::remove_dir_all(&dir));
            install(&dir);
            std::fs::write(done, "").expect("scratch is writable");
        }
        dir
    })
}

fn install(dir: &Path) {
    let requirements = binary::workspace().join("tests/requirements.txt");
    let bare = Command::new("python3")
        .args(["-m", "venv"])
        .arg(dir)
        .output();
    if !bare.is_ok_and(|o| o.status.success()) {
        // Debian splits pip from Python's venv module: make the environment without it and fetch it.
        succeed(
            Command::new("python3")
                .args(["-m", "venv", "--clear", "--without-pip"])
                .arg(dir),
        );
        let fetch = binary::workspace().join("tests/python/fetch_pip.py");
        succeed(Command::new(dir.join("bin/python")).arg(fetch));
    }
    let mut pip = Command::new(dir.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--requirement"])
        .arg(requirements);
    succeed(&mut pip);
}

fn printed(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}
