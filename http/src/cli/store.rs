//! How commands reach a store: through its running server where there is one, else by opening its keystore themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use strongroom_engine::DataDir;
use strongroom_kms::Kms;

use super::{ask, offline};
use crate::admin::{self, Admin, Answer, Request, StoreStatus};
use crate::rewrap::Objects;
use crate::root_key;
use crate::store_key::StoreKeeper;

/// Which store.
#[derive(Debug, Args)]
pub struct Store {
    /// Directory of the store, or of the key server's keystore
    #[arg(long, env = "STRONGROOM_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// A server that is starting holds the lock before it has its socket.
const START_PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// Carries a request out, wherever it has to be.
    pub fn perform(&self, request: Request) -> Result<Answer, String> {
        let dir = &self.data_dir;
        if !Kms::was_made(dir) && !dir.join("superblock").exists() {
            return Err(format!(
                "there is no store in {} (--data-dir names another directory)",
                dir.display()
            ));
        }
        self.perform_or(request, at_rest)
    }

    /// As [`Store::perform`], where there may be no store yet; `offline` does it when no server runs.
    pub fn perform_or(
        &self,
        request: Request,
        offline: impl FnOnce(Arc<DataDir>, Request) -> Result<Answer, String>,
    ) -> Result<Answer, String> {
        let dir = &self.data_dir;
        let unreachable = |e| format!("the server on {}: {e}", dir.display());
        let asked = match dir.exists() {
            true => admin::ask(dir, &request, &mut tell).map_err(unreachable)?,
            false => None,
        };
        let answer = match asked {
            Some(answer) => answer,
            None => match DataDir::lock(dir) {
                Ok(held) => offline(Arc::new(held), request)?,
                Err(in_use) => admin::ask_patiently(dir, &request, START_PATIENCE, &mut tell)
                    .ok()
                    .flatten()
                    .ok_or_else(|| in_use.to_string())?,
            },
        };
        match answer {
            Answer::Error(reason) => Err(reason),
            answer => Ok(answer),
        }
    }
}

fn at_rest(held: Arc<DataDir>, request: Request) -> Result<Answer, String> {
    let dir = held.path();
    if request == Request::KmsSeal {
        // Needs no key, so that nobody has to have one at hand to seal.
        return Ok(match Kms::seal_at_rest(dir) {
            Ok(()) => Answer::Done(admin::sealed()),
            Err(e) => Answer::Error(e.to_string()),
        });
    }
    let root = match request.root() {
        Some(sent) => sent.key()?,
        None => match ask::root_key(dir)? {
            Some(brought) => brought,
            None => root_key::require(dir)?,
        },
    };
    let kms = Arc::new(Kms::open_existing(dir, root).map_err(|e| e.to_string())?);
    if !dir.join("superblock").exists() {
        return Ok(perform_on(dir, kms, admin::Store::None, request));
    }
    match request {
        Request::KeyStatus { .. } => {
            let keeper = offline::keeper(&held, &kms)?;
            let tallied = keeper.open().map_err(String::from);
            let tallied = tallied.and_then(|key| crate::at_rest::tally(&held, &key));
            let store = match tallied {
                Ok(objects) => open(keeper, Arc::new(objects)),
                Err(why) => {
                    tell(format!("what stands under the key is not known: {why}"));
                    admin::Store::Locked { keeper, why }
                }
            };
            Ok(perform_on(dir, kms, store, request))
        }
        Request::KeyRewrap { .. } => {
            let keeper = offline::keeper(&held, &kms)?;
            let key = keeper.open()?;
            crate::at_rest::with_objects(&held, &key, |objects| {
                perform_on(dir, Arc::clone(&kms), open(keeper, objects), request)
            })
        }
        Request::StoreStatus => {
            let key = offline::keeper(&held, &kms)?.open()?;
            let usage = crate::at_rest::usage(&held, &key)?;
            Ok(Answer::Store(StoreStatus::new("stopped", &usage, &kms)))
        }
        request => Ok(perform_on(dir, kms, admin::Store::None, request)),
    }
}

fn open(keeper: Arc<StoreKeeper>, objects: Arc<Objects>) -> admin::Store {
    admin::Store::Open {
        keeper,
        objects,
        observer: None,
    }
}

/// Carries a request out on what this process has open.
fn perform_on(dir: &Path, kms: Arc<Kms>, store: admin::Store, request: Request) -> Answer {
    let admin = Admin::new(dir);
    admin.open(kms, store);
    admin.perform(request, &mut tell)
}

/// As [`Store::perform_or`]'s `offline`, where the keystore may be lost, and everything else with it.
pub fn offline_restoring(held: Arc<DataDir>, request: Request) -> Result<Answer, String> {
    let dir = held.path();
    if Kms::was_made(dir) || dir.join("superblock").exists() || request.root().is_some() {
        return at_rest(held, request);
    }
    // Nothing here is sealed under an earlier root key.
    let (root, _) = root_key::find_or_make(dir)?;
    let kms = Kms::open_existing(dir, root).map_err(|e| e.to_string())?;
    Ok(perform_on(dir, Arc::new(kms), admin::Store::None, request))
}

/// As [`Store::perform_or`]'s `offline`, on a keystore that is made if there is none, without any key.
pub fn offline_making(held: Arc<DataDir>, request: Request) -> Result<Answer, String> {
    let dir = held.path();
    let (root, _) = root_key::find_or_make(dir)?;
    let kms = Kms::open_bare(dir, root).map_err(|e| e.to_string())?;
    Ok(perform_on(dir, Arc::new(kms), admin::Store::None, request))
}

/// Says how far something is that takes long.
fn tell(said: String) {
    eprintln!("{said}");
}

/// A path as the server has to be told it, which runs in another directory.
pub fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))
}
