//! The index of a store that nobody serves, opened without changing a byte of it.
//!
//! Opening an LSM tree changes it: journals are cut behind the last batch that can be read, and what looks unfinished is
//! removed. So a copy is opened: files that are only ever written whole are linked, the others copied. It goes when this is
//! dropped, and what an earlier one left goes first.

use std::cell::Cell;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use super::{Index, Space, journal};
use crate::datadir::DataDir;
use crate::error::{Error, Result};
use crate::secret::Secret;

/// Beside the index, and gone again once it was read.
pub const COPY: &str = "index.read";

pub struct Offline {
    index: Option<Index>,
    copy: PathBuf,
    /// Why records are missing, where journals are damaged.
    pub damage: Option<Error>,
}

impl Offline {
    /// Opens the index of a store as it is.
    pub fn open(dir: &DataDir, store_key: &Secret) -> Result<Offline> {
        let from = dir.index_dir();
        if !from.join("keyspaces").is_dir() {
            return Err(Error::Unusable(format!(
                "there is no index in {}: rebuild it with `strongroom recover`",
                from.display()
            )));
        }
        let copy = dir.path().join(COPY);
        remove(&copy)?;
        link_or_copy(&from, &copy)?;
        let damage = journal::mend(&copy).err();
        let mut offline = Offline {
            index: None,
            copy,
            damage,
        };
        let opened = unpanicked(|| Index::open_bare(&offline.copy, store_key));
        offline.index = Some(opened.map_err(|e| {
            Error::Unusable(format!(
                "the index does not open: {e}. Rebuild it with `strongroom recover`"
            ))
        })?);
        Ok(offline)
    }

    pub fn index(&self) -> &Index {
        self.index.as_ref().expect("open until it is dropped")
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // Its threads end before its files go.
        self.index = None;
        if let Err(e) = remove(&self.copy) {
            tracing::warn!("{e}");
        }
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What a damaged file makes panic in the tree counts as the error it is.
pub fn unpanicked<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Nor is it announced as one.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                hook(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    done.unwrap_or_else(|_| Err(Error::corrupt("a file that cannot be read", "the index")))
}

/// Removes a directory, if it is there.
pub fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
        _ => Ok(()),
    }
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |e| Error::io("copy", from, e);
    // Tables and files of large values are never written to again.
    let immutable = from.ends_with("tables") || from.ends_with("blobs");
    std::fs::create_dir(to).map_err(|e| Error::io("create", to, e))?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(failed)?.is_dir() {
            link_or_copy(&source, &target)?;
        } else if journal::is_journal(&source) {
            journal::copy(&source, &target)?;
        } else if !immutable || std::fs::hard_link(&source, &target).is_err() {
            std::fs::copy(&source, &target).map_err(|e| Error::io("copy", &source, e))?;
        }
    }
    Ok(())
}

impl Index {
    /// Every entry of a keyspace behind `after`, as it lies there. Ends where the tree cannot be read, and then gives the last
    /// key before that place.
    pub fn each_raw(
        &self,
        space: Space,
        after: Option<&[u8]>,
        mut f: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<Result<(), Vec<u8>>> {
        let mut last = after.unwrap_or_default().to_vec();
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_vec()));
        for entry in self
            .space(space)
            .range::<Vec<u8>, _>((from, Bound::Unbounded))
        {
            let Ok((key, value)) = entry.into_inner() else {
                return Ok(Err(last));
            };
            last.clear();
            last.extend_from_slice(&key);
            if key != super::key::MARK {
                f(&key, &value)?;
            }
        }
        Ok(Ok(()))
    }
}
