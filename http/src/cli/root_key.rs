//! `strongroom kms root-key`: other ways to keep the root key than in a file in clear.
//!
//! Neither changes the root key or the keystore, so each can be set up, changed and left at any time; with one of them set
//! up, the root key's file can be taken off the machine.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use strongroom_kms::{Kms, RootKey, Share};

use super::ask;
use super::store::Store;
use crate::root_key;

/// `strongroom kms root-key …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let a passphrase open the keystore too
    ///
    /// Asks for it twice, or reads it from standard input. A second time changes the passphrase.
    Passphrase(Store),
    /// Let any K of N shares open the keystore too, and print the shares
    Split(Split),
}

#[derive(Debug, Args)]
pub struct Split {
    /// How many shares to make
    #[arg(long, value_name = "N")]
    shares: u8,
    /// How many of them open the keystore
    #[arg(long, value_name = "K")]
    threshold: u8,
    #[command(flatten)]
    store: Store,
}

/// Carries the command out and prints what came of it.
pub fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Passphrase(store) => {
            let dirs = &store.directories()?;
            let root = present(dirs)?;
            let passphrase = ask::line("New passphrase: ")?;
            if std::io::IsTerminal::is_terminal(&std::io::stdin())
                && ask::line("The same once more: ")? != passphrase
            {
                return Err("nothing is changed: the two are not the same".into());
            }
            for dir in dirs {
                let path = dir.join(root_key::PASSPHRASE);
                root.store_under_passphrase(&path, &passphrase)
                    .map_err(|e| e.to_string())?;
                super::print(&format!(
                    "{} holds the root key under the passphrase.\n",
                    path.display()
                ))?;
            }
            super::print(&format!("{}\n", advice(dirs)))
        }
        Command::Split(split) => {
            let dirs = &split.store.directories()?;
            let root = present(dirs)?;
            let shares =
                Share::split(&root, split.shares, split.threshold).map_err(|e| e.to_string())?;
            dirs.iter().try_for_each(|dir| note(dir, &split))?;
            for share in &shares {
                super::print(&share.to_text())?;
                super::print("\n")?;
            }
            eprintln!(
                "Any {} of these {} open the keystore. They are shown this once: give each to another holder. {}",
                split.threshold,
                split.shares,
                advice(dirs)
            );
            Ok(())
        }
    }
}

/// The root key, which has to be that of the keystore.
fn present(dirs: &[PathBuf]) -> Result<RootKey, String> {
    let root = match ask::root_key(dirs)? {
        Some(root) => root,
        None => root_key::require(dirs)?,
    };
    Kms::check_root(dirs, &root).map_err(|e| e.to_string())?;
    Ok(root)
}

/// Leaves word that there are shares.
fn note(dir: &Path, split: &Split) -> Result<(), String> {
    let path = dir.join(root_key::SHARES);
    let text = format!("shares: {}\nthreshold: {}\n", split.shares, split.threshold);
    let written = fs::File::create(&path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::File::open(dir)?.sync_all()
    });
    written.map_err(|e| format!("{}: {e}", path.display()))
}

fn advice(dirs: &[PathBuf]) -> String {
    let path = root_key::path(dirs);
    match path.exists() {
        true => format!(
            "{} opens it as well: once it is taken off this machine, a start waits for `strongroom kms unseal`.",
            path.display()
        ),
        false => "A start waits for `strongroom kms unseal`.".to_owned(),
    }
}
