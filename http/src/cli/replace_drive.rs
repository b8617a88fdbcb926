//! `strongroom replace-drive`: an empty directory takes the place of a drive that is lost for good.

use std::path::PathBuf;

use clap::Args;
use strongroom_engine::DataDirs;
use strongroom_kms::RootKey;

use super::ask;
use super::store::Store;
use crate::root_key;

/// `strongroom replace-drive`
#[derive(Debug, Args)]
#[command(after_help = "\
What lay on the lost drive is lost: its objects are gone from listings, and the lost directory is refused if it comes back. All
others have to be named by --data-dir, and no server may be serving them.")]
pub struct ReplaceDrive {
    /// The new directory, empty or not there yet
    #[arg(value_name = "DIR")]
    new: PathBuf,
    #[command(flatten)]
    store: Store,
    /// Says that the objects of the lost drive are given up
    #[arg(long)]
    give_up_lost: bool,
}

pub fn run(command: &ReplaceDrive) -> Result<(), String> {
    if !command.give_up_lost {
        return Err(
            "what lay on the lost drive cannot come back afterwards: --give-up-lost says that this is meant".into(),
        );
    }
    let dirs = DataDirs::lock_some(&command.store.directories()?).map_err(|e| e.to_string())?;
    dirs.replace_missing(&command.new)
        .map_err(|e| e.to_string())?;
    // Keystore, credentials and buckets are put into it by the next start.
    let paths = dirs.paths();
    if root_key::in_any(&paths, RootKey::FILE_NAME).exists() && ask::root_key(&paths)?.is_none() {
        let file = command.new.join(RootKey::FILE_NAME);
        root_key::require(&paths)?
            .store_new(&file)
            .map_err(|e| e.to_string())?;
    }
    super::print(&format!(
        "{} is a drive of the store now\n",
        command.new.display()
    ))
}
