//! The directories that a keystore is kept in, the same in each: those of the store that are there.

use std::path::{Path, PathBuf};

/// One directory or several.
#[derive(Debug, Clone)]
pub struct Homes(Vec<PathBuf>);

impl Homes {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }

    /// The one that is named where any would do.
    pub(crate) fn first(&self) -> &Path {
        self.0.first().expect("a keystore has a directory")
    }
}

impl From<&Path> for Homes {
    fn from(dir: &Path) -> Self {
        Homes(vec![dir.to_owned()])
    }
}

impl From<&PathBuf> for Homes {
    fn from(dir: &PathBuf) -> Self {
        dir.as_path().into()
    }
}

impl From<&[PathBuf]> for Homes {
    fn from(dirs: &[PathBuf]) -> Self {
        assert!(!dirs.is_empty(), "a keystore has a directory");
        Homes(dirs.to_vec())
    }
}

impl From<&Vec<PathBuf>> for Homes {
    fn from(dirs: &Vec<PathBuf>) -> Self {
        dirs.as_slice().into()
    }
}

impl From<&Homes> for Homes {
    fn from(homes: &Homes) -> Self {
        homes.clone()
    }
}
