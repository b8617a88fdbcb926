//! The root key: 32 bytes that open the keystore, kept by whoever runs the server.
//!
//! It reaches the server by an environment variable or a file. Everything sealed under it is sealed
//! under a key derived for that one purpose, never under the root key itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use zeroize::Zeroizing;

use crate::error::{Environment, Error};
use crate::limits::ROOT_KEY_FILE_BYTES_MAX;
use crate::seal;
use crate::secret::Secret32;

/// The key above all others of one store.
#[derive(Clone)]
pub struct RootKey(Secret32);

/// Whether a root key was there or had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    /// The file was made just now: without a copy of it elsewhere, losing it loses everything.
    Yes,
    No,
}

impl RootKey {
    /// The name of its file, where nothing else is said.
    pub const FILE_NAME: &str = "root.key";

    /// A new random root key.
    #[must_use]
    pub fn generate() -> RootKey {
        RootKey(Secret32::random())
    }

    /// Reads a root key from base64 of 32 bytes; blanks around it are allowed.
    pub fn from_base64(text: &str) -> Result<RootKey, Error> {
        let bytes = Zeroizing::new(
            STANDARD
                .decode(text.trim())
                .map_err(|_| Environment::RootKeyFormat)?,
        );
        let secret = Secret32::from_slice(&bytes).ok_or(Environment::RootKeyFormat)?;
        Ok(RootKey(secret))
    }

    /// The root key in base64, wiped when dropped.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.expose()))
    }

    /// Reads the root key from a file.
    pub fn load(path: &Path) -> Result<RootKey, Error> {
        let io = |source| Error::io("cannot read the root key", path, source);
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the root key's file can be read by other users");
        }
        // One allocation of the final size: a growing buffer would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(
            usize::try_from(ROOT_KEY_FILE_BYTES_MAX).expect("small") + 1,
        ));
        file.take(ROOT_KEY_FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(io)?;
        Self::from_base64(&text)
    }

    /// Reads the root key from a file, or makes both when there is no such file.
    ///
    /// The file appears whole or not at all, with mode 0600, never over another one, and it and its
    /// directory are synced before this returns.
    pub fn load_or_generate(path: &Path) -> Result<(RootKey, Generated), Error> {
        match Self::load(path) {
            Err(Error::Environment(Environment::Io { source, .. }))
                if source.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(|key| (key, Generated::No)),
        }
        let key = Self::generate();
        match key.store(path) {
            Ok(()) => Ok((key, Generated::Yes)),
            // Somebody else made it meanwhile: theirs stands.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::load(path).map(|key| (key, Generated::No))
            }
            Err(error) => Err(Error::io("cannot write the root key", path, error)),
        }
    }

    /// Writes the key to a file of its own, as [`RootKey::load_or_generate`] does, where there is none.
    pub fn store_new(&self, path: &Path) -> Result<(), Error> {
        match self.store(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("cannot write the root key", path, error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn from_secret(secret: Secret32) -> RootKey {
        RootKey(secret)
    }

    pub(crate) fn secret(&self) -> &Secret32 {
        &self.0
    }

    /// The key for one purpose.
    pub(crate) fn derive(&self, purpose: &str) -> Secret32 {
        seal::derive(&self.0, purpose)
    }

    fn store(&self, path: &Path) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(
            ".{:016x}.new",
            u64::from_le_bytes(crate::random::array())
        ));
        let new = PathBuf::from(name);
        let stored = self.store_by(&new, path);
        if stored.is_err() {
            // Best effort: the file holds a key that nothing was sealed with.
            let _ = fs::remove_file(&new);
        }
        stored
    }

    fn store_by(&self, new: &Path, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new)?;
        let text = self.to_base64();
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE)?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_once_then_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        let (made, generated) = RootKey::load_or_generate(&path).ok().unwrap();
        assert_eq!(generated, Generated::Yes);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let (read, generated) = RootKey::load_or_generate(&path).ok().unwrap();
        assert_eq!(generated, Generated::No);
        assert!(made.0 == read.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn never_over_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        fs::write(&path, "precious").unwrap();
        let error = RootKey::generate().store(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(
            RootKey::load_or_generate(&path),
            Err(Error::Environment(Environment::RootKeyFormat))
        ));
    }

    #[test]
    fn text_form() {
        let key = RootKey::generate();
        let text = key.to_base64();
        assert!(
            RootKey::from_base64(&format!(" {}\n", *text))
                .ok()
                .unwrap()
                .0
                == key.0
        );
        for bad in ["", "AAAA", "*", &text[1..], &format!("{}A", *text)] {
            assert!(RootKey::from_base64(bad).is_err(), "{bad}");
        }
    }
}
