//! The command line: one subcommand a file.

mod ask;
mod bench;
mod decrypt;
mod identity;
mod key;
mod kms;
pub mod offline;
mod recover;
mod replace_drive;
mod root_key;
mod status;
mod store;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::{config, log, serve};

/// An S3 object store that seals everything it stores.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the store in DATA_DIR over S3
    Serve(Box<config::Serve>),
    /// Make, list, rotate, disable and destroy the keys of a store
    #[command(subcommand)]
    Key(key::Key),
    /// Seal, unseal, back up and restore a keystore; serve it to other stores
    #[command(subcommand)]
    Kms(kms::Kms),
    /// Measure how fast this machine encrypts and hashes
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Check every stored byte of a store that nobody serves
    Verify(verify::Verify),
    /// Make the index of a store anew that lost it, or whose index is damaged
    Recover(recover::Recover),
    /// Put an empty directory in the place of a drive that is lost for good, and give up what lay on it
    ReplaceDrive(replace_drive::ReplaceDrive),
    /// Write one object of a store that nobody serves to a file or standard output
    Decrypt(decrypt::Decrypt),
    /// Show what a store holds, what it takes on disk, and what is free
    Status(store::Store),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init();
    for name in config::unknown_variables(&Cli::command()) {
        tracing::warn!(
            "the environment variable {name} means nothing to strongroom and is ignored"
        );
    }
    let done = match cli.command {
        Command::Serve(options) => serve::run(options.with_foreign_names()),
        Command::Key(command) => key::run(command),
        Command::Kms(command) => kms::run(command),
        Command::Bench(command) => bench::run(&command),
        Command::Verify(command) => verify::run(&command),
        Command::Recover(command) => recover::run(&command),
        Command::ReplaceDrive(command) => replace_drive::run(&command),
        Command::Decrypt(command) => decrypt::run(&command),
        Command::Status(store) => status::run(store),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("strongroom: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<(), String> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_has_the_documented_defaults() {
        let cli = Cli::parse_from(["strongroom", "serve", "data"]);
        let Command::Serve(serve) = cli.command else {
            panic!("serve")
        };
        assert_eq!(serve.address.to_string(), "127.0.0.1:9000");
        assert_eq!(serve.data_dirs, [std::path::Path::new("data")]);
        assert!(!serve.no_tls);
        assert_eq!(serve.drain_timeout.as_secs(), 10);
        let cli = Cli::parse_from([
            "strongroom",
            "serve",
            "data",
            "more",
            "--no-tls",
            "--shards",
            "2",
        ]);
        let Command::Serve(serve) = cli.command else {
            panic!("serve")
        };
        assert!(serve.no_tls);
        assert_eq!(serve.shards, Some(2));
        assert_eq!(serve.data_dirs.len(), 2);
    }
}
