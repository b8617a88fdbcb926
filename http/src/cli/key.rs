//! `strongroom key`: through the running server where there is one, else on the keystore itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use strongroom_engine::DataDir;
use strongroom_kms::Kms;

use crate::admin::{self, Answer, Request};
use crate::serve;

/// `strongroom key …`
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key; an error if the name is in use
    Create(Named),
    /// List the keys
    List {
        /// Only names that begin with this
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        store: Store,
    },
    /// Show what is known of a key
    Status(Named),
}

#[derive(Debug, Args)]
pub struct Named {
    /// 1 to 80 of A-Z a-z 0-9 - _
    name: String,
    #[command(flatten)]
    store: Store,
}

#[derive(Debug, Args)]
pub struct Store {
    /// Directory of the store
    #[arg(long, env = "STRONGROOM_DATA_DIR")]
    data_dir: PathBuf,
}

/// Carries the command out and prints what came of it.
pub fn run(command: Key) -> Result<(), String> {
    let (store, request) = match command {
        Key::Create(n) => (n.store, Request::KeyCreate { name: n.name }),
        Key::List { prefix, store } => (store, Request::KeyList { prefix }),
        Key::Status(n) => (n.store, Request::KeyStatus { name: n.name }),
    };
    let one = !matches!(request, Request::KeyList { .. });
    let keys = match ask_or_do(&store.data_dir, request)? {
        Answer::Keys(keys) => keys,
        Answer::Error(reason) => return Err(reason),
    };
    let mut out = String::new();
    for key in keys {
        if one {
            out += &format!(
                "name: {}\nstate: {}\nversion: {}\nversions: {}\nalgorithm: {}\ncreated: {}\n",
                key.name,
                key.state,
                key.version,
                key.versions,
                key.algorithm,
                utc(key.created_at)
            );
        } else {
            out += &format!(
                "{:<40} {:<17} {}\n",
                key.name,
                key.state,
                utc(key.created_at)
            );
        }
    }
    super::print(&out)
}

fn ask_or_do(data_dir: &Path, request: Request) -> Result<Answer, String> {
    if !Kms::exists(data_dir) {
        return Err(format!(
            "there is no store in {} (--data-dir names another directory)",
            data_dir.display()
        ));
    }
    let asked = admin::ask(data_dir, &request);
    if let Some(answer) = asked.map_err(|e| format!("the server on {}: {e}", data_dir.display()))? {
        return Ok(answer);
    }
    match DataDir::lock(data_dir) {
        Ok(_lock) => {
            let kms = serve::open_keystore(data_dir, false)
                .map_err(|e| e.to_string())?
                .0;
            Ok(admin::perform(&kms, request))
        }
        // A server that is just starting holds the lock before it has its socket.
        Err(in_use) => admin::ask_patiently(data_dir, &request, Duration::from_secs(5))
            .ok()
            .flatten()
            .ok_or_else(|| in_use.to_string()),
    }
}

fn utc(unix_ms: u64) -> String {
    let time = s3s::dto::Timestamp::from(std::time::UNIX_EPOCH + Duration::from_millis(unix_ms));
    let mut out = Vec::new();
    match time.format(s3s::dto::TimestampFormat::DateTime, &mut out) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => "unknown".to_owned(),
    }
}
