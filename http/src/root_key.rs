//! Where the root key is found: a variable, or a file.
//!
//! `STRONGROOM_KMS_ROOT_KEY` holds it, or `STRONGROOM_KMS_ROOT_KEY_FILE` names a file; without either it is
//! `root.key` in each data directory. Where a passphrase or shares were set up it need not be anywhere: then the server waits for
//! somebody to bring it.

use std::io;
use std::path::{Path, PathBuf};

use strongroom_kms::{Environment, Error, Generated, RootKey};
use zeroize::Zeroizing;

use crate::config;

pub const VARIABLE: &str = "STRONGROOM_KMS_ROOT_KEY";
pub const FILE_VARIABLE: &str = "STRONGROOM_KMS_ROOT_KEY_FILE";

/// The file that holds the root key under a passphrase, where one was set up.
pub const PASSPHRASE: &str = "root.key.passphrase";
/// The file that tells that the root key was split into shares. It holds none.
pub const SHARES: &str = "root.key.shares";

/// Whether a file of this name holds a root key, or tells of one.
pub fn is_file(name: &str) -> bool {
    [RootKey::FILE_NAME, PASSPHRASE, SHARES].contains(&name)
}

/// The file that holds the root key of the store in `dirs`, unless a variable does.
pub fn path(dirs: &[PathBuf]) -> PathBuf {
    match config::non_empty(FILE_VARIABLE) {
        Some(path) => path.into(),
        None => in_any(dirs, RootKey::FILE_NAME),
    }
}

/// The file of this name in the first directory that has it, or else in the first.
pub fn in_any(dirs: &[PathBuf], name: &str) -> PathBuf {
    let there = dirs.iter().find(|dir| dir.join(name).exists());
    there
        .or(dirs.first())
        .map_or_else(|| name.into(), |dir| dir.join(name))
}

/// Whether people can bring the root key, so that waiting for it is no mistake.
pub fn can_be_brought(dirs: &[PathBuf]) -> bool {
    [PASSPHRASE, SHARES]
        .iter()
        .any(|name| in_any(dirs, name).exists())
}

/// The root key; none where there is nothing to read it from.
pub fn find(dirs: &[PathBuf]) -> Result<Option<RootKey>, String> {
    if let Some(key) = from_variable()? {
        return Ok(Some(key));
    }
    match RootKey::load(&path(dirs)) {
        Ok(key) => Ok(Some(key)),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// The root key, which has to be there.
pub fn require(dirs: &[PathBuf]) -> Result<RootKey, String> {
    find(dirs)?.ok_or_else(|| missing(dirs))
}

/// What to say where there is no root key.
pub fn missing(dirs: &[PathBuf]) -> String {
    format!(
        "there is no root key in {} (it opens the keystore; {VARIABLE} or {FILE_VARIABLE} name another one)",
        path(dirs).display()
    )
}

/// The root key, made if there is none; then it stands in every directory.
pub fn find_or_make(dirs: &[PathBuf]) -> Result<(RootKey, Generated), String> {
    if let Some(key) = from_variable()? {
        return Ok((key, Generated::No));
    }
    let (key, generated) = RootKey::load_or_generate(&path(dirs)).map_err(|e| e.to_string())?;
    if config::non_empty(FILE_VARIABLE).is_none() {
        for dir in dirs {
            key.store_new(&dir.join(RootKey::FILE_NAME))
                .map_err(|e| e.to_string())?;
        }
    }
    Ok((key, generated))
}

/// The root key that the surroundings of this process name, wherever the store is.
pub fn of_surroundings() -> Result<Option<RootKey>, String> {
    if let Some(key) = from_variable()? {
        return Ok(Some(key));
    }
    let file = config::non_empty(FILE_VARIABLE);
    file.map(|path| RootKey::load(Path::new(&path)).map_err(|e| e.to_string()))
        .transpose()
}

fn from_variable() -> Result<Option<RootKey>, String> {
    let text = config::non_empty(VARIABLE).map(Zeroizing::new);
    text.map(|text| RootKey::from_base64(&text).map_err(|e| format!("{VARIABLE}: {e}")))
        .transpose()
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Environment(Environment::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}
