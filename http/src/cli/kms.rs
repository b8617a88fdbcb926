//! `strongroom kms`: the keystore as a whole.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use strongroom_kms::RootKey;

use super::identity::{self, Identity};
use super::store::{self, Store};
use super::{ask, root_key};
use crate::admin::{Answer, Request, SentKey, Status};
use crate::kms_serve;

const CONFIG_HELP: &str = "\
The configuration is a KES server's own. The least of it:
  address: 0.0.0.0:7373
  admin:
    identity: ${ADMIN_IDENTITY}     # see `strongroom kms identity`
  tls:
    key: ./server.key
    cert: ./server.crt
  policy:
    my-store:
      allow: [/v1/key/create/*, /v1/key/generate/*, /v1/key/decrypt/*, /v1/key/describe/*, /v1/key/list/*, /v1/status, /v1/api]
      identities: [IDENTITY]
  keystore:
    fs:
      path: ./keys                  # holds the keystore, and root.key unless STRONGROOM_KMS_ROOT_KEY[_FILE] says
                                    # where that is; the --data-dir of all other commands
SIGHUP reads it again.";

/// `strongroom kms …`
#[derive(Debug, Subcommand)]
pub enum Kms {
    /// Drop every key from memory, and load none until `kms unseal`, not even after a restart
    ///
    /// When this returns, whatever needs a key is refused. Needs no root key, and nothing set up before.
    Seal(Store),
    /// Load the keys again; bring a server its root key that waits for it
    ///
    /// By whatever opens the keystore: the root key where STRONGROOM_KMS_ROOT_KEY, STRONGROOM_KMS_ROOT_KEY_FILE or
    /// DATA_DIR/root.key have it, else the passphrase or shares that were set up (`kms root-key`), which are asked for,
    /// or read from standard input line by line.
    Unseal(Unseal),
    /// Let a passphrase or shares open the keystore too
    #[command(subcommand)]
    RootKey(root_key::Command),
    /// Show whether the keystore is sealed, and what is in it
    Status(Store),
    /// Write all keys to a new file, sealed under the root key
    Backup(File),
    /// Add the keys of a backup; make the keystore anew from it where it is lost
    Restore(File),
    /// Serve keys to other stores, as a KES server does
    #[command(after_help = CONFIG_HELP)]
    Serve {
        /// KES's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Tell who a client of a key server is
    #[command(subcommand)]
    Identity(Identity),
    /// Take over the keys of a KES file-system keystore
    ImportKes {
        /// The directory that KES's configuration names under keystore.fs.path
        directory: PathBuf,
        #[command(flatten)]
        store: Store,
    },
}

#[derive(Debug, Args)]
pub struct Unseal {
    /// Ask for the passphrase, also where a root key is at hand
    #[arg(long, conflicts_with = "shares")]
    passphrase: bool,
    /// Ask for shares, also where a root key is at hand
    #[arg(long)]
    shares: bool,
    #[command(flatten)]
    store: Store,
}

#[derive(Debug, Args)]
pub struct File {
    /// The backup
    file: PathBuf,
    /// A file with another key that the backup is sealed under; `kms backup` makes it if it is missing
    #[arg(long)]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    store: Store,
}

/// Carries the command out and prints what came of it.
pub fn run(command: Kms) -> Result<(), String> {
    let answer = match command {
        Kms::Serve { config } => return kms_serve::run(&config),
        Kms::Identity(command) => return identity::run(command),
        Kms::Seal(store) => store.perform(Request::KmsSeal)?,
        Kms::RootKey(command) => return root_key::run(command),
        Kms::Unseal(unseal) => {
            let dirs = &unseal.store.directories()?;
            let root = match (unseal.passphrase, unseal.shares) {
                (true, _) => Some(SentKey::from(&ask::by_passphrase(dirs)?)),
                (_, true) => Some(SentKey::from(&ask::by_shares()?)),
                _ => root(dirs)?,
            };
            unseal.store.perform(Request::KmsUnseal { root })?
        }
        Kms::Status(store) => store.perform(Request::KmsStatus)?,
        Kms::Backup(file) => {
            let key = file.key_file.as_deref().map(|path| {
                RootKey::load_or_generate(path)
                    .map(|(key, _)| SentKey::from(&key))
                    .map_err(|e| e.to_string())
            });
            let request = Request::KmsBackup {
                key: key.transpose()?,
                file: store::absolute(&file.file)?,
                root: root(&file.store.directories()?)?,
            };
            file.store.perform(request)?
        }
        Kms::Restore(file) => {
            let key = file.key_file.as_deref().map(load).transpose()?;
            let request = Request::KmsRestore {
                key,
                file: store::absolute(&file.file)?,
                root: root(&file.store.directories()?)?,
            };
            file.store.perform_or(request, store::offline_restoring)?
        }
        Kms::ImportKes { directory, store } => {
            let directory = store::absolute(&directory)?;
            let request = Request::KmsImportKes { directory };
            store.perform_or(request, store::offline_making)?
        }
    };
    match answer {
        Answer::Done(said) => super::print(&format!("{said}\n")),
        Answer::Status(status) => super::print(&block(&status)),
        Answer::Keys(_) | Answer::Store(_) | Answer::Progress(_) | Answer::Error(_) => {
            Err("the server's answer is not understood".into())
        }
    }
}

fn load(path: &Path) -> Result<SentKey, String> {
    let key = RootKey::load(path).map_err(|e| e.to_string())?;
    Ok(SentKey::from(&key))
}

/// The root key to send along, if it is not where the server finds it by itself.
fn root(dirs: &[PathBuf]) -> Result<Option<SentKey>, String> {
    Ok(ask::root_key(dirs)?.as_ref().map(SentKey::from))
}

/// One `name: value` a line.
fn block(status: &Status) -> String {
    let mut out = format!("state: {}\n", status.state);
    if let Some(reason) = &status.reason {
        out += &format!("reason: {reason}\n");
    }
    if let Some(keys) = status.keys {
        out += &format!("keys: {keys}\n");
    }
    out += &format!(
        "default-key: {}\ncalls: {}\noutages: {}\ncache-hits: {}\n",
        status.default_key, status.calls, status.outages, status.cache_hits
    );
    out
}
