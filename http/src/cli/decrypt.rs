//! `strongroom decrypt`: one object out of a store that nobody serves. Only verified bytes are written.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use strongroom_engine::secret::Secret;
use strongroom_engine::{Error, export};
use zeroize::Zeroizing;

use super::offline::{Offline, Shut, name};

/// `strongroom decrypt`
#[derive(Debug, Args)]
#[command(after_help = "\
Every byte is verified before it is written. A damaged object ends in an error; a file is then not left behind, and
what went to standard output ends in front of the damage.

Keys at KES servers, or a static key, are found by the variables that `strongroom serve --help` names
(STRONGROOM_KMS_KES_ENDPOINT and so on, or MINIO_KMS_…).")]
pub struct Decrypt {
    /// Directory of the store, which no server may be serving; of a store on several drives the one with the object, or all as
    /// /mnt/disk{1...4}
    #[arg(value_name = "DATA_DIR", env = "STRONGROOM_DATA_DIR")]
    data_dir: PathBuf,

    /// Which object
    #[arg(value_name = "BUCKET/KEY")]
    object: String,

    /// Where to write it [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The customer's key of an SSE-C object: 32 bytes, or their base64
    #[arg(long, value_name = "FILE")]
    customer_key_file: Option<PathBuf>,
}

pub fn run(command: &Decrypt) -> Result<(), String> {
    let (bucket, key) = command
        .object
        .split_once('/')
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        .ok_or("name the object as BUCKET/KEY")?;
    let customer = command
        .customer_key_file
        .as_deref()
        .map(customer_key)
        .transpose()?;
    let store = Offline::open(std::slice::from_ref(&command.data_dir))?;
    let mut shut = None;
    let mut write = |out: &mut dyn Write| {
        let open = |encryption: &_| {
            let opened = store.keys.open(bucket, key, encryption, customer.as_ref());
            opened.map_err(|e| {
                let (Shut::NotAtHand(why) | Shut::Broken(why)) = e;
                shut = Some(why);
                Error::NoSuchKey
            })
        };
        let mut sink = |bytes: &[u8]| {
            out.write_all(bytes).map_err(|e| Error::Io {
                op: "write",
                path: "the output".into(),
                reason: e.to_string(),
            })
        };
        let dir = store.dirs.of(bucket, key)?;
        export(dir, &store.store_key, bucket, key, open, &mut sink)
    };
    let done = match &command.output {
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            let done = write(&mut out);
            out.flush().map_err(|e| format!("standard output: {e}"))?;
            done
        }
        Some(path) => {
            let mut draft = Draft::new(path)?;
            let done = write(&mut draft.file);
            if done.is_ok() {
                draft.keep(path)?;
            }
            done
        }
    };
    let what = name(bucket, key);
    match (done, shut) {
        (Ok(object), _) => {
            if object.encryption.is_none() {
                eprintln!("{what} is not sealed: its bytes could not be verified");
            }
            Ok(())
        }
        (Err(_), Some(why)) => Err(format!("the key of {what} does not open: {why}")),
        (Err(e), None) => Err(format!("{what}: {e}")),
    }
}

fn customer_key(path: &Path) -> Result<Secret, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut bytes = Zeroizing::new(Vec::with_capacity(128));
    let file = File::open(path).map_err(|e| failed(&e))?;
    file.take(100)
        .read_to_end(&mut bytes)
        .map_err(|e| failed(&e))?;
    if let Some(secret) = Secret::from_slice(&bytes) {
        return Ok(secret);
    }
    let decoded = Zeroizing::new(STANDARD.decode(bytes.trim_ascii()).unwrap_or_default());
    Secret::from_slice(&decoded).ok_or_else(|| failed(&"expected 32 bytes, or their base64"))
}

/// A file that appears under its name only when it is complete.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(target: &Path) -> Result<Draft, String> {
        let mut path = target.as_os_str().to_owned();
        path.push(".new");
        let path = PathBuf::from(path);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Draft { path, file })
    }

    fn keep(&mut self, target: &Path) -> Result<(), String> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, target))
            .map_err(|e| format!("{}: {e}", target.display()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customer_keys_are_read_raw_and_in_base64() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = [7u8; 32];
        for text in [
            key.to_vec(),
            STANDARD.encode(key).into_bytes(),
            format!("{}\n", STANDARD.encode(key)).into_bytes(),
        ] {
            fs::write(&path, text).unwrap();
            assert!(customer_key(&path).unwrap() == Secret::new(key));
        }
        for bad in [&b""[..], b"short", &[7; 31], &[7; 33], &[b'A'; 99]] {
            fs::write(&path, bad).unwrap();
            assert!(customer_key(&path).is_err());
        }
    }
}
