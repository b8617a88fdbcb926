//! How commands reach a store: through its running server where there is one, else by opening its keystore themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use strongroom_engine::{DataDirs, Error};
use strongroom_kms::Kms;

use super::{ask, offline};
use crate::admin::{self, Admin, Answer, Request, StoreStatus};
use crate::config;
use crate::rewrap::Objects;
use crate::root_key;
use crate::store_key::StoreKeeper;

/// Which store.
#[derive(Debug, Args)]
pub struct Store {
    /// Directory of the store, or of the key server's keystore. Of a store on several drives any of them while a server
    /// runs, and else all: --data-dir A --data-dir B, or /mnt/disk{1...4}
    #[arg(long = "data-dir", env = "STRONGROOM_DATA_DIR", required = true)]
    data_dirs: Vec<PathBuf>,
}

/// A server that is starting holds the lock before it has its socket.
const START_PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// The directories that were named.
    pub fn directories(&self) -> Result<Vec<PathBuf>, String> {
        config::directories(&self.data_dirs)
    }

    /// Carries a request out, wherever it has to be.
    pub fn perform(&self, request: Request) -> Result<Answer, String> {
        let dirs = self.directories()?;
        let any = dirs.iter().any(|dir| dir.join("superblock").exists());
        if !Kms::was_made(&dirs) && !any {
            return Err(format!(
                "there is no store in {} (--data-dir names another directory)",
                dirs[0].display()
            ));
        }
        self.perform_or(request, at_rest)
    }

    /// As [`Store::perform`], where there may be no store yet; `offline` does it when no server runs.
    pub fn perform_or(
        &self,
        request: Request,
        offline: impl FnOnce(Arc<DataDirs>, Request) -> Result<Answer, String>,
    ) -> Result<Answer, String> {
        let dirs = self.directories()?;
        let mut asked = None;
        for dir in dirs.iter().filter(|dir| dir.exists()) {
            asked = admin::ask(dir, &request, &mut tell)
                .map_err(|e| format!("the server on {}: {e}", dir.display()))?;
            if asked.is_some() {
                break;
            }
        }
        let answer = match asked {
            Some(answer) => answer,
            None => match DataDirs::lock_some(&dirs) {
                Ok(held) => offline(Arc::new(held), request)?,
                Err(Error::InUse { path }) => {
                    let dir = Path::new(&path);
                    admin::ask_patiently(dir, &request, START_PATIENCE, &mut tell)
                        .ok()
                        .flatten()
                        .ok_or_else(|| Error::InUse { path }.to_string())?
                }
                Err(refused) => return Err(refused.to_string()),
            },
        };
        match answer {
            Answer::Error(reason) => Err(reason),
            answer => Ok(answer),
        }
    }
}

fn at_rest(held: Arc<DataDirs>, request: Request) -> Result<Answer, String> {
    let dirs = &held.paths();
    if request == Request::KmsSeal {
        // Needs no key, so that nobody has to have one at hand to seal.
        return Ok(match Kms::seal_at_rest(dirs) {
            Ok(()) => Answer::Done(admin::sealed()),
            Err(e) => Answer::Error(e.to_string()),
        });
    }
    if request.changes() {
        // A key that is destroyed has to leave all drives.
        held.need_all().map_err(|e| {
            format!("{e}: without a server this needs every directory of the store (--data-dir names them)")
        })?;
    }
    let root = match request.root() {
        Some(sent) => sent.key()?,
        None => match ask::root_key(dirs)? {
            Some(brought) => brought,
            None => root_key::require(dirs)?,
        },
    };
    let kms = Arc::new(Kms::open_existing(dirs, root).map_err(|e| e.to_string())?);
    if held.superblock().map_err(|e| e.to_string())?.is_none() {
        return Ok(perform_on(dirs, kms, admin::Store::None, request));
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
            Ok(perform_on(dirs, kms, store, request))
        }
        Request::KeyRewrap { .. } => {
            let keeper = offline::keeper(&held, &kms)?;
            let key = keeper.open()?;
            crate::at_rest::with_objects(&held, &key, |objects| {
                perform_on(dirs, Arc::clone(&kms), open(keeper, objects), request)
            })
        }
        Request::StoreStatus => {
            let key = offline::keeper(&held, &kms)?.open()?;
            let drives = crate::at_rest::usage(&held, &key)?;
            let status = StoreStatus::new("stopped", &drives, &kms);
            Ok(Answer::Store(Box::new(status.ok_or("no drive is there")?)))
        }
        request => Ok(perform_on(dirs, kms, admin::Store::None, request)),
    }
}

fn open(keeper: Arc<StoreKeeper>, objects: Arc<Objects>) -> admin::Store {
    admin::Store::Open {
        keeper,
        objects,
        observers: None,
    }
}

/// Carries a request out on what this process has open.
fn perform_on(dirs: &[PathBuf], kms: Arc<Kms>, store: admin::Store, request: Request) -> Answer {
    let admin = Admin::new(dirs);
    admin.open(kms, store);
    admin.perform(request, &mut tell)
}

/// As [`Store::perform_or`]'s `offline`, where the keystore may be lost, and everything else with it.
pub fn offline_restoring(held: Arc<DataDirs>, request: Request) -> Result<Answer, String> {
    let dirs = &held.paths();
    let made = held.superblock().map_err(|e| e.to_string())?.is_some();
    if Kms::was_made(dirs) || made || request.root().is_some() {
        return at_rest(held, request);
    }
    // Nothing here is sealed under an earlier root key.
    let (root, _) = root_key::find_or_make(dirs)?;
    let kms = Kms::open_existing(dirs, root).map_err(|e| e.to_string())?;
    Ok(perform_on(dirs, Arc::new(kms), admin::Store::None, request))
}

/// As [`Store::perform_or`]'s `offline`, on a keystore that is made if there is none, without any key.
pub fn offline_making(held: Arc<DataDirs>, request: Request) -> Result<Answer, String> {
    let dirs = &held.paths();
    held.need_all().map_err(|e| e.to_string())?;
    let (root, _) = root_key::find_or_make(dirs)?;
    let kms = Kms::open_bare(dirs, root).map_err(|e| e.to_string())?;
    Ok(perform_on(dirs, Arc::new(kms), admin::Store::None, request))
}

/// Says how far something is that takes long.
fn tell(said: String) {
    eprintln!("{said}");
}

/// A path as the server has to be told it, which runs in another directory.
pub fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))
}
