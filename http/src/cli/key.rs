//! `strongroom key`: the life of keys.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::store::Store;
use crate::admin::{self, Answer, Request};
use crate::config;

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
    /// Make a new version of a key, for everything written from now on
    ///
    /// What is stored stays under the version it was written with, until `key rewrap`.
    Rotate(Named),
    /// Move everything that is under older versions of a key to its current version
    ///
    /// Objects stay as they are, and readable meanwhile; only the wrapping of their own keys is changed. When this returns, no old
    /// wrapping lies on the disk any more. Cut off, it goes on from there when it is run again.
    Rewrap(Rewrap),
    /// Make a key unusable until it is enabled again
    ///
    /// When this returns, nothing under the key is served any more.
    Disable(Named),
    /// Make a disabled key usable again, or take a deletion back that is still to come
    Enable(Named),
    /// Destroy a key, and with it everything that is sealed under it
    ///
    /// Asks for the key's name first. There is no way back once the key is destroyed, but by a backup of the keystore.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Named {
    /// 1 to 80 of A-Z a-z 0-9 - _
    name: String,
    #[command(flatten)]
    store: Store,
}

#[derive(Debug, Args)]
pub struct Rewrap {
    #[command(flatten)]
    named: Named,
    /// Then destroy the older versions: whatever else was sealed under them, by clients of a key server, does not open any more.
    /// Requests under way that began before the key was rotated fail and have to be repeated
    #[arg(long)]
    retire: bool,
}

#[derive(Debug, Args)]
pub struct Delete {
    #[command(flatten)]
    named: Named,
    /// The key's name once more, for scripts: do not ask
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Make it unusable now and destroy it after this time (30d, 12h); `key enable` takes that back until then
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    after: Option<Duration>,
}

/// Carries the command out and prints what came of it.
pub fn run(command: Key) -> Result<(), String> {
    let (store, request) = match command {
        Key::Create(n) => (n.store, Request::KeyCreate { name: n.name }),
        Key::List { prefix, store } => (store, Request::KeyList { prefix }),
        Key::Status(n) => (n.store, Request::KeyStatus { name: n.name }),
        Key::Rotate(n) => (n.store, Request::KeyRotate { name: n.name }),
        Key::Rewrap(Rewrap { named, retire }) => {
            let name = named.name;
            (named.store, Request::KeyRewrap { name, retire })
        }
        Key::Disable(n) => (n.store, Request::KeyDisable { name: n.name }),
        Key::Enable(n) => (n.store, Request::KeyEnable { name: n.name }),
        Key::Delete(delete) => {
            confirm(&delete)?;
            let wait = delete.after.map(|wait| wait.as_millis());
            let request = Request::KeyDelete {
                name: delete.named.name,
                after_ms: wait.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            };
            (delete.named.store, request)
        }
    };
    let listed = matches!(request, Request::KeyList { .. });
    let keys = match store.perform(request)? {
        Answer::Keys(keys) => keys,
        Answer::Done(said) => return super::print(&format!("{said}\n")),
        Answer::Status(_) | Answer::Store(_) | Answer::Progress(_) | Answer::Error(_) => {
            return Err("the server runs another version: its answer is not understood".into());
        }
    };
    let mut out = String::new();
    for key in &keys {
        match listed {
            true => writeln!(
                out,
                "{:<40} {:<17} {}",
                key.name,
                key.state,
                utc(key.created_at)
            ),
            false => write!(out, "{}", block(key)),
        }
        .expect("a String takes everything");
    }
    super::print(&out)
}

/// One `name: value` a line.
fn block(key: &admin::Key) -> String {
    let mut out = format!(
        "name: {}\nstate: {}\nversion: {}\nversions: {}\nalgorithm: {}\ncreated: {}\n",
        key.name,
        key.state,
        key.version,
        key.versions,
        key.algorithm,
        utc(key.created_at)
    );
    if let Some(at) = key.deletion_at {
        out += &format!("destroyed-at: {}\n", utc(at));
    }
    if let Some(under) = &key.protects {
        out += &format!(
            "objects: {}\nbytes: {}\nuploads: {}\nupload-bytes: {}\nunder-older-versions: {}\n",
            under.objects, under.bytes, under.uploads, under.upload_bytes, under.older
        );
    }
    if key.holds_store_key {
        out +=
            "holds-store-key: yes (listings and all other objects lock and are erased with it)\n";
    }
    out
}

/// Makes sure that whoever deletes a key means this one.
fn confirm(delete: &Delete) -> Result<(), String> {
    let name = &delete.named.name;
    let typed = match &delete.confirm {
        Some(typed) => typed.clone(),
        // It can be taken back.
        None if delete.after.is_some() => return Ok(()),
        None if !std::io::stdin().is_terminal() => {
            return Err(format!(
                "nothing is deleted: without a terminal to ask, --confirm {name} has to say it once more"
            ));
        }
        None => {
            let status = Request::KeyStatus { name: name.clone() };
            if let Answer::Keys(keys) = delete.named.store.perform(status)? {
                super::print(&keys.iter().map(block).collect::<String>())?;
            }
            super::print(
                "Everything sealed under this key will be unreadable for ever.\nType the key's name to destroy it: ",
            )?;
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            read.map_err(|e| format!("nothing is deleted: {e}"))?;
            line.trim().to_owned()
        }
    };
    match typed == *name {
        true => Ok(()),
        false => Err(format!("nothing is deleted: {typed:?} is not {name:?}")),
    }
}

/// A waiting period may be longer than time is.
fn utc(unix_ms: u64) -> String {
    strongroom_kms::utc(unix_ms).unwrap_or_else(|| "never".to_owned())
}
