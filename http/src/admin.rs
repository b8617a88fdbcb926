//! The admin socket: how commands on this machine speak to the running server.
//!
//! A Unix socket in the data directory, mode 0600, so whoever may read the store may administer it. One line of JSON asks,
//! one line answers, as often as the client likes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_kms::{KeyInfo, KeyState, Kms};

use crate::limits;

const SOCKET: &str = "admin.sock";

/// What a command asks of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    KeyCreate { name: String },
    KeyList { prefix: String },
    KeyStatus { name: String },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Keys(Vec<Key>),
    Error(String),
}

/// What is told of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub state: String,
    pub version: u32,
    pub versions: u32,
    pub algorithm: String,
    /// Unix time in milliseconds.
    pub created_at: u64,
}

impl From<KeyInfo> for Key {
    fn from(info: KeyInfo) -> Self {
        Key {
            name: info.name,
            state: match info.state {
                KeyState::Enabled => "enabled".into(),
                KeyState::Disabled => "disabled".into(),
                KeyState::PendingDeletion { .. } => "pending-deletion".into(),
                KeyState::Destroyed => "destroyed".into(),
            },
            version: info.version,
            versions: info.versions,
            algorithm: info.algorithm.as_str().into(),
            created_at: info.created_at,
        }
    }
}

/// Does what was asked, in whichever process holds the keystore.
pub fn perform(kms: &Kms, request: Request) -> Answer {
    let done = match request {
        Request::KeyCreate { name } => kms.create_key(&name).map(|key| vec![key]),
        Request::KeyList { prefix } => kms.list_keys(&prefix),
        Request::KeyStatus { name } => kms.describe_key(&name).map(|key| vec![key]),
    };
    match done {
        Ok(keys) => Answer::Keys(keys.into_iter().map(Key::from).collect()),
        Err(e) => Answer::Error(e.to_string()),
    }
}

/// Serves the socket in `data_dir` on a thread of its own, for as long as the process lives.
pub fn serve(data_dir: &Path, kms: Arc<Kms>) -> io::Result<()> {
    let listener = bind(data_dir)?;
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // One command at a time: they change keys.
                if let Err(e) = converse(stream, &kms) {
                    tracing::debug!("an admin connection ended: {e}");
                }
            }
        })?;
    Ok(())
}

/// Removes the socket, at the end of the process that holds the directory's lock.
pub fn remove(data_dir: &Path) {
    // Absent, or it stays and the next start replaces it.
    let _ = fs::remove_file(data_dir.join(SOCKET));
}

/// Asks the server that runs on `data_dir`; none where none does.
pub fn ask(data_dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let stream = match with_short_path(data_dir, |path| UnixStream::connect(path)) {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(Some(serde_json::from_str(&answer)?))
}

fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    // The lock is ours, so a socket that is there is one that a killed server left.
    match fs::remove_file(data_dir.join(SOCKET)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = with_short_path(data_dir, |path| UnixListener::bind(path));
    rustix::process::umask(before);
    let listener = bound?;
    fs::set_permissions(data_dir.join(SOCKET), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A socket's address has room for 107 bytes; a path through an open directory always fits.
fn with_short_path<T>(data_dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET);
    act(&path)
}

fn converse(stream: UnixStream, kms: &Kms) -> io::Result<()> {
    stream.set_read_timeout(Some(limits::ADMIN_TIMEOUT))?;
    stream.set_write_timeout(Some(limits::ADMIN_TIMEOUT))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        let mut limited = (&mut lines).take(limits::ADMIN_LINE_BYTES_MAX);
        if limited.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Ok(request) => perform(kms, request),
            Err(e) => Answer::Error(format!("not understood: {e}")),
        };
        let mut out = serde_json::to_vec(&answer)?;
        out.push(b'\n');
        (&stream).write_all(&out)?;
    }
}

/// Waits until a server that holds the directory has made its socket, so that a command right after a start finds it.
pub fn ask_patiently(
    data_dir: &Path,
    request: &Request,
    patience: Duration,
) -> io::Result<Option<Answer>> {
    let begun = std::time::Instant::now();
    loop {
        match ask(data_dir, request)? {
            None if begun.elapsed() < patience => std::thread::sleep(Duration::from_millis(50)),
            answer => return Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_kms::RootKey;

    #[test]
    fn a_command_reaches_the_server_also_under_a_long_path() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        fs::create_dir(&long).unwrap();
        let list = Request::KeyList {
            prefix: String::new(),
        };
        assert_eq!(ask(&long, &list).unwrap(), None);
        let kms = Arc::new(Kms::open(&long, RootKey::generate()).unwrap());
        serve(&long, Arc::clone(&kms)).unwrap();
        let create = Request::KeyCreate {
            name: "payroll".into(),
        };
        assert!(
            matches!(ask(&long, &create).unwrap(), Some(Answer::Keys(keys)) if keys[0].name == "payroll")
        );
        assert!(matches!(
            ask(&long, &create).unwrap(),
            Some(Answer::Error(_))
        ));
        match ask(&long, &list).unwrap() {
            Some(Answer::Keys(keys)) => assert_eq!(keys.len(), 2),
            other => panic!("{other:?}"),
        }
        let mode = fs::metadata(long.join(SOCKET))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
