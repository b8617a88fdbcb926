//! The root key under a passphrase: a small file beside the keystore, for those who keep no root key on the machine.
//!
//! The passphrase becomes a key by Argon2id, whose cost makes guessing slow; whoever has the file can still guess, so the
//! passphrase has to be one that cannot be guessed. The file's layout is in `FORMAT.md`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use crate::error::{Environment, Error, Place};
use crate::limits::PASSPHRASE_BYTES_MIN;
use crate::random;
use crate::root::RootKey;
use crate::seal;
use crate::secret::Secret32;

const MAGIC: &[u8; 8] = b"SRPASS01";
const SALT: usize = 16;
/// Magic, memory, passes, lanes, salt.
const HEADER: usize = 8 + 3 * 4 + SALT;
const BYTES: usize = HEADER + seal::OVERHEAD + 32;

/// What deriving a key from a passphrase costs.
#[derive(Clone, Copy)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// RFC 9106's second recommendation.
const COST: Cost = Cost {
    memory_kib: 64 * 1024,
    passes: 3,
    lanes: 4,
};
/// The most that a file may ask for: it is read before it is known to be ours.
const COST_MAX: Cost = Cost {
    memory_kib: 1024 * 1024,
    passes: 16,
    lanes: 16,
};

impl RootKey {
    /// Keeps the root key under a passphrase in a file, in place of an earlier one. Durable when this returns.
    pub fn store_under_passphrase(&self, path: &Path, passphrase: &str) -> Result<(), Error> {
        if passphrase.len() < PASSPHRASE_BYTES_MIN {
            return Err(Environment::ShortPassphrase.into());
        }
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(MAGIC);
        for number in [COST.memory_kib, COST.passes, COST.lanes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let salt: [u8; SALT] = random::array();
        bytes.extend_from_slice(&salt);
        let key = derive(passphrase, &salt, COST)
            .ok_or_else(|| Error::configuration("the passphrase", "no key can be made from it"))?;
        let sealed = seal::seal(&key, &bytes, self.secret().expose());
        bytes.extend_from_slice(&sealed);
        replace(path, &bytes).map_err(|e| Error::io("cannot write", path, e))
    }

    /// Brings the root key back from such a file.
    pub fn load_by_passphrase(path: &Path, passphrase: &str) -> Result<RootKey, Error> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|e| Error::io("cannot read", path, e))?;
        let corrupt = || Error::Corrupt(Place::Passphrase(path.to_owned()));
        if bytes.len() != BYTES || !bytes.starts_with(MAGIC) {
            return Err(corrupt());
        }
        let (header, sealed) = bytes.split_at(HEADER);
        let number = |at: usize| {
            let bytes = header[8 + 4 * at..]
                .first_chunk()
                .expect("within the header");
            u32::from_le_bytes(*bytes)
        };
        let cost = Cost {
            memory_kib: number(0),
            passes: number(1),
            lanes: number(2),
        };
        if cost.memory_kib > COST_MAX.memory_kib
            || cost.passes > COST_MAX.passes
            || cost.lanes > COST_MAX.lanes
        {
            return Err(corrupt());
        }
        let key = derive(passphrase, &header[HEADER - SALT..], cost).ok_or_else(corrupt)?;
        let root = seal::open(&key, header, sealed).ok_or(Environment::WrongPassphrase)?;
        let secret = Secret32::from_slice(&root).ok_or_else(corrupt)?;
        Ok(RootKey::from_secret(secret))
    }
}

fn derive(passphrase: &str, salt: &[u8], cost: Cost) -> Option<Secret32> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut *key)
        .ok()?;
    Some(Secret32::new(&key))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSPHRASE: &str = "correct horse battery staple";

    #[test]
    fn a_passphrase_brings_the_key_back_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        let root = RootKey::generate();
        assert!(root.store_under_passphrase(&path, "short").is_err());
        RootKey::generate()
            .store_under_passphrase(&path, PASSPHRASE)
            .unwrap();
        root.store_under_passphrase(&path, PASSPHRASE).unwrap();
        let back = RootKey::load_by_passphrase(&path, PASSPHRASE).ok().unwrap();
        assert!(*back.to_base64() == *root.to_base64());
        assert!(matches!(
            RootKey::load_by_passphrase(&path, "correct horse battery stable"),
            Err(Error::Environment(Environment::WrongPassphrase))
        ));
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), BYTES);
        // Costs that would take hours or all memory are refused before they are paid.
        for at in 8..20 {
            let mut bad = whole.clone();
            bad[at] = 0xff;
            fs::write(&path, &bad).unwrap();
            assert!(
                RootKey::load_by_passphrase(&path, PASSPHRASE).is_err(),
                "{at}"
            );
        }
        for cut in [0, 7, HEADER, BYTES - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(
                RootKey::load_by_passphrase(&path, PASSPHRASE).is_err(),
                "{cut}"
            );
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// The cost is part of the format: a file of today has to open for ever.
    #[test]
    fn a_passphrase_becomes_this_key() {
        let cost = Cost {
            memory_kib: 32,
            passes: 3,
            lanes: 4,
        };
        let key = derive("password", &[2; 16], cost).unwrap();
        assert_eq!(hex(key.expose()), KNOWN);
    }

    /// By the reference implementation in C, with a salt of sixteen bytes 0x02.
    const KNOWN: &str = "4626bbbb6f6a794d2e2eeae6dd7ccdd25c76f273cffc5ba5732b187339e4c1b6";

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut out, byte| {
            write!(out, "{byte:02x}").unwrap();
            out
        })
    }
}
