//! The commands of the binary, run as an operator runs them: beside a server or without one.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::binary;

/// `strongroom ARGS`, with nothing of the caller's own configuration and no terminal to ask.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary::path());
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|n| {
            n.starts_with("STRONGROOM_") || n.starts_with("MINIO_") || n == "RUST_LOG"
        });
        if ours {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// `strongroom ARGS --data-dir DIR`.
pub fn on(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = command(args);
    command.arg("--data-dir").arg(data_dir);
    command
}

/// Runs a command that has to succeed; what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that has to fail; what it said of that.
pub fn fail(command: &mut Command) -> String {
    let output = run(command);
    assert!(!output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that reads these lines from its standard input.
pub fn answer(command: &mut Command, lines: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the strongroom binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may end before it has read everything.
    drop(stdin.write_all(lines.as_bytes()));
    drop(stdin);
    child.wait_with_output().expect("our own child")
}

/// The value of one of the `name: value` lines that status commands print.
pub fn value(printed: &str, name: &str) -> String {
    printed
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.to_owned())
        .unwrap_or_else(|| panic!("no {name:?} in:\n{printed}"))
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the strongroom binary starts")
}

/// All that a command said.
pub fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}
