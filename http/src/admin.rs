//! The admin socket: how commands on this machine speak to the running server.
//!
//! A Unix socket in each data directory, mode 0600, so whoever may read the store may administer it. One line of JSON asks,
//! one line answers, as often as the client likes; what takes long tells of its progress in lines before that. What takes a
//! key away answers once no core serves under it any more.
//! A root key may be in a question and is in no answer; lines are wiped.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use strongroom_engine::{Observers, Usage};
use strongroom_kms::{
    Deletion, Error, Imported, KeyInfo, KeyState, Kms, Outage, Restored, RootKey,
};
use zeroize::Zeroizing;

use crate::rewrap::{Objects, Protected};
use crate::store_key::StoreKeeper;
use crate::{limits, root_key};

pub const SOCKET: &str = "admin.sock";

/// What a process says that has no root key yet.
pub const LOCKED: &str =
    "the root key is not on this machine: the server waits for `strongroom kms unseal` to bring it";

/// What a command asks of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    KeyCreate {
        name: String,
    },
    KeyList {
        prefix: String,
    },
    KeyStatus {
        name: String,
    },
    KeyRotate {
        name: String,
    },
    /// Moves everything under older versions to the current one; `retire` then destroys the older ones.
    KeyRewrap {
        name: String,
        retire: bool,
    },
    KeyDisable {
        name: String,
    },
    KeyEnable {
        name: String,
    },
    /// At once, or after a time in which it can be taken back.
    KeyDelete {
        name: String,
        after_ms: Option<u64>,
    },
    KmsStatus,
    StoreStatus,
    KmsSeal,
    KmsUnseal {
        root: Option<SentKey>,
    },
    /// `key`: what the file is sealed under, if not the root key.
    KmsBackup {
        file: PathBuf,
        key: Option<SentKey>,
        root: Option<SentKey>,
    },
    KmsRestore {
        file: PathBuf,
        key: Option<SentKey>,
        root: Option<SentKey>,
    },
    KmsImportKes {
        directory: PathBuf,
    },
}

impl Request {
    /// Whether anything is another after it.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::KeyList { .. } | Self::KeyStatus { .. } | Self::KmsStatus | Self::StoreStatus
        )
    }

    /// The root key that came with it.
    pub fn root(&self) -> Option<&SentKey> {
        match self {
            Self::KmsUnseal { root }
            | Self::KmsBackup { root, .. }
            | Self::KmsRestore { root, .. } => root.as_ref(),
            _ => None,
        }
    }
}

/// A root key on its way, in base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SentKey(Zeroizing<String>);

impl SentKey {
    pub fn key(&self) -> Result<RootKey, String> {
        RootKey::from_base64(&self.0).map_err(|e| e.to_string())
    }
}

impl From<&RootKey> for SentKey {
    fn from(key: &RootKey) -> Self {
        Self(key.to_base64())
    }
}

impl fmt::Debug for SentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a root key")
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Keys(Vec<Key>),
    Status(Status),
    Store(Box<StoreStatus>),
    /// How far a request is that takes long: another answer follows.
    Progress(String),
    /// A sentence for whoever asked.
    Done(String),
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
    /// When it will be destroyed, if it is pending deletion.
    pub deletion_at: Option<u64>,
    /// What stands under it, where a store is there that knows.
    pub protects: Option<Protects>,
    /// Whether the store key stands under it, and with it all that listings and HEAD tell.
    #[serde(default)]
    pub holds_store_key: bool,
}

/// What stands under a key, whichever version. Bytes are those that clients sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protects {
    pub objects: u64,
    pub bytes: u64,
    /// Multipart uploads that are open, and the bytes of their parts.
    pub uploads: u64,
    pub upload_bytes: u64,
    /// Objects and uploads under versions older than the current one.
    pub older: u64,
}

/// What is told of the key service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `unsealed`, `sealed`, `lost`, or `locked` while the root key is missing.
    pub state: String,
    /// What is wrong, if something is.
    pub reason: Option<String>,
    /// How many keys there are, where that can be known.
    pub keys: Option<usize>,
    pub default_key: String,
    pub calls: u64,
    pub outages: u64,
    pub cache_hits: u64,
}

/// What is told of a store; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `running` or `stopped`.
    pub server: String,
    pub buckets: u64,
    pub objects: u64,
    pub uploads: u64,
    /// How many keys there are, where that can be known.
    pub keys: Option<usize>,
    /// What the objects hold.
    pub stored: u64,
    /// What they take on disk, their index included.
    pub live: u64,
    /// What else the store takes, and is to give back.
    pub dead: u64,
    /// What writes may still take.
    pub free: u64,
    /// What they leave for deleting.
    pub reserve: u64,
    /// Each drive, where there are several.
    #[serde(default)]
    pub drives: Vec<DriveStatus>,
}

/// What is told of one drive; sizes in bytes, as of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveStatus {
    pub directory: String,
    pub missing: bool,
    pub objects: u64,
    pub stored: u64,
    pub live: u64,
    pub free: u64,
}

impl DriveStatus {
    fn new(directory: &Path, usage: Option<&Usage>) -> Self {
        let of = |what: fn(&Usage) -> u64| usage.map_or(0, what);
        DriveStatus {
            directory: directory.display().to_string(),
            missing: usage.is_none(),
            objects: of(|usage| usage.objects),
            stored: of(|usage| usage.object_bytes),
            live: of(live),
            free: of(|usage| usage.room.for_writes()),
        }
    }
}

fn live(usage: &Usage) -> u64 {
    usage.live + usage.index - usage.index_dead
}

impl StoreStatus {
    /// None where no drive is there.
    pub fn new(server: &str, drives: &[(PathBuf, Option<Usage>)], kms: &Kms) -> Option<Self> {
        let usage = &Usage::of_all(drives.iter().filter_map(|(_, usage)| *usage))?;
        let each: &[_] = match drives {
            [_] => &[],
            several => several,
        };
        let each = each
            .iter()
            .map(|(directory, usage)| DriveStatus::new(directory, usage.as_ref()));
        Some(StoreStatus {
            server: server.into(),
            buckets: usage.buckets,
            objects: usage.objects,
            uploads: usage.uploads,
            keys: kms.list_keys("").ok().map(|keys| keys.len()),
            stored: usage.object_bytes,
            live: live(usage),
            dead: usage.dead + usage.index_dead,
            free: usage.room.for_writes(),
            reserve: usage.room.reserve,
            drives: each.collect(),
        })
    }
}

impl From<KeyInfo> for Key {
    fn from(info: KeyInfo) -> Self {
        let (state, deletion_at) = match info.state {
            KeyState::Enabled => ("enabled", None),
            KeyState::Disabled => ("disabled", None),
            KeyState::PendingDeletion { at } => ("pending-deletion", Some(at)),
            KeyState::Destroyed => ("destroyed", None),
        };
        Key {
            name: info.name,
            state: state.into(),
            version: info.version,
            versions: info.versions,
            algorithm: info.algorithm.as_str().into(),
            created_at: info.created_at,
            deletion_at,
            protects: None,
            holds_store_key: false,
        }
    }
}

/// What commands act on, in whichever process holds the data directories.
pub struct Admin {
    data_dirs: Vec<PathBuf>,
    state: Mutex<State>,
    changed: Condvar,
}

/// How far the process is.
enum State {
    Starting,
    /// The root key is nowhere to be found: somebody has to bring it.
    Locked,
    Brought(RootKey),
    Open(Open),
    /// It was told to end.
    Stopping,
}

/// What commands are carried out on.
#[derive(Clone)]
struct Open {
    kms: Arc<Kms>,
    store: Store,
}

/// The store beside the keys.
#[derive(Clone)]
pub enum Store {
    /// There are keys alone.
    None,
    /// It does not open now.
    Locked {
        keeper: Arc<StoreKeeper>,
        why: String,
    },
    Open {
        keeper: Arc<StoreKeeper>,
        objects: Arc<Objects>,
        /// Its counts, where it is served.
        observers: Option<Observers>,
    },
}

impl Store {
    fn keeper(&self) -> Option<&StoreKeeper> {
        match self {
            Store::None => None,
            Store::Locked { keeper, .. } | Store::Open { keeper, .. } => Some(keeper),
        }
    }
}

impl Admin {
    /// What commands act on, once it is open.
    pub fn new(data_dirs: &[PathBuf]) -> Admin {
        Admin {
            data_dirs: data_dirs.to_vec(),
            state: Mutex::new(State::Starting),
            changed: Condvar::new(),
        }
    }

    /// From now on commands are carried out on this keystore and this store.
    pub fn open(&self, kms: Arc<Kms>, store: Store) {
        let before = std::mem::replace(&mut *self.state(), State::Open(Open { kms, store }));
        self.changed.notify_all();
        drop(before);
    }

    /// What may be seen of the store, while it is open, and of the keys.
    pub fn seen(&self) -> (Option<Observers>, Option<Arc<Kms>>) {
        match &*self.state() {
            State::Open(Open { kms, store }) => {
                let observers = match store {
                    Store::Open { observers, .. } => observers.clone(),
                    Store::None | Store::Locked { .. } => None,
                };
                (observers, Some(Arc::clone(kms)))
            }
            _ => (None, None),
        }
    }

    /// Waits until somebody brings the root key; none where the process is told to end.
    pub fn wait_for_root_key(&self) -> Option<RootKey> {
        let mut state = self.state();
        if !matches!(*state, State::Stopping) {
            *state = State::Locked;
            self.changed.notify_all();
        }
        loop {
            state = match std::mem::replace(&mut *state, State::Starting) {
                State::Brought(root) => return Some(root),
                State::Stopping => {
                    *state = State::Stopping;
                    return None;
                }
                other => {
                    *state = other;
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Nobody waits for a root key any more.
    pub fn stop_waiting(&self) {
        let mut state = self.state();
        if !matches!(*state, State::Open(_)) {
            *state = State::Stopping;
        }
        self.changed.notify_all();
    }

    /// Does what was asked. What takes long calls `tell` with how far it is.
    pub fn perform(&self, request: Request, tell: &mut dyn FnMut(String)) -> Answer {
        match self.opened(&request, tell) {
            Ok(open) => self.perform_on(&open, request, tell),
            Err(answer) => answer,
        }
    }

    /// What to carry it out on, once it is open; or what to answer instead. Takes a root key that a locked process waits for.
    fn opened(&self, request: &Request, tell: &mut dyn FnMut(String)) -> Result<Open, Answer> {
        let end = Instant::now() + limits::ADMIN_START_PATIENCE;
        if matches!(*self.state(), State::Starting) {
            tell("the server is starting: this waits for it".into());
        }
        let mut state = self.state();
        loop {
            match &*state {
                State::Open(open) => return Ok(open.clone()),
                State::Locked => {
                    let root = self.brought(request)?;
                    *state = State::Brought(root);
                    self.changed.notify_all();
                }
                State::Stopping => return Err(Answer::Error("the server is stopping".into())),
                State::Starting | State::Brought(_) => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Answer::Error(
                    "the server is still starting: try again".into(),
                ));
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The root key that a command brings to a locked process.
    fn brought(&self, request: &Request) -> Result<RootKey, Answer> {
        let root = match request {
            Request::KmsUnseal { root: Some(sent) } => sent.key(),
            Request::KmsUnseal { root: None } => root_key::require(&self.data_dirs),
            Request::KmsStatus => {
                return Err(Answer::Status(Status {
                    state: "locked".into(),
                    reason: Some(LOCKED.into()),
                    ..Status::default()
                }));
            }
            _ => Err(LOCKED.into()),
        };
        let root = root.map_err(Answer::Error)?;
        match Kms::check_root(&self.data_dirs, &root) {
            // Whether it is the right one shows at the store's own key, where the keystore is lost.
            Ok(()) | Err(Error::Corrupt(_)) => Ok(root),
            Err(e) => Err(Answer::Error(e.to_string())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform_on(&self, open: &Open, request: Request, tell: &mut dyn FnMut(String)) -> Answer {
        let opens_or_locks = matches!(
            request,
            Request::KeyDisable { .. }
                | Request::KeyEnable { .. }
                | Request::KeyDelete { .. }
                | Request::KmsSeal
                | Request::KmsUnseal { .. }
                | Request::KmsRestore { .. }
        );
        let answer = self.carry_out(open, request, tell);
        if opens_or_locks && let Some(keeper) = open.store.keeper() {
            keeper.settle();
        }
        answer
    }

    fn carry_out(&self, open: &Open, request: Request, tell: &mut dyn FnMut(String)) -> Answer {
        let kms = &open.kms;
        match request {
            Request::KeyCreate { name } => open.one(kms.create_key(&name)),
            Request::KeyList { prefix } => keys(kms.list_keys(&prefix)),
            Request::KeyStatus { name } => open.one(kms.describe_key(&name)),
            Request::KeyRotate { name } => open.one(kms.rotate_key(&name)),
            Request::KeyRewrap { name, retire } => open.rewrap(&name, retire, tell),
            Request::KeyDisable { name } => open.one(kms.disable_key(&name)),
            Request::KeyEnable { name } => open.one(kms.enable_key(&name)),
            Request::KeyDelete { name, after_ms } => {
                let when = after_ms.map_or(Deletion::Now, |ms| {
                    Deletion::After(Duration::from_millis(ms))
                });
                open.one(kms.delete_key(&name, when))
            }
            Request::KmsStatus => Answer::Status(status(kms)),
            Request::StoreStatus => open.store_status(),
            Request::KmsSeal => done(kms.seal().map(|()| sealed())),
            Request::KmsUnseal { root } => self.with_root(root.as_ref(), |root| {
                done(kms.unseal(root).map(|()| "unsealed".into()))
            }),
            Request::KmsBackup { file, key, root } => {
                self.with_keys(key.as_ref(), root.as_ref(), |key, _| {
                    done(kms.backup(&file, key).map(|n| {
                        format!("{n} keys are in {}: keep it as carefully as the root key it is sealed under", file.display())
                    }))
                })
            }
            Request::KmsRestore { file, key, root } => {
                self.with_keys(key.as_ref(), root.as_ref(), |key, root| {
                    done(kms.restore(&file, key, root).map(restored))
                })
            }
            Request::KmsImportKes { directory } => done(kms.import_kes(&directory).map(imported)),
        }
    }

    /// Calls `with` on the root key: the one that was sent, or this process's own.
    fn with_root(&self, sent: Option<&SentKey>, with: impl FnOnce(&RootKey) -> Answer) -> Answer {
        let root = match sent {
            Some(sent) => sent.key(),
            None => root_key::require(&self.data_dirs),
        };
        match root {
            Ok(root) => with(&root),
            Err(reason) => Answer::Error(reason),
        }
    }

    /// Calls `with` on the key of a backup, which is the root key unless another one was sent, and on the root key.
    fn with_keys(
        &self,
        key: Option<&SentKey>,
        root: Option<&SentKey>,
        with: impl FnOnce(&RootKey, &RootKey) -> Answer,
    ) -> Answer {
        self.with_root(root, |root| match key.map(SentKey::key).transpose() {
            Ok(key) => with(key.as_ref().unwrap_or(root), root),
            Err(reason) => Answer::Error(reason),
        })
    }
}

fn status(kms: &Kms) -> Status {
    let (state, reason) = match kms.outage() {
        None => ("unsealed", None),
        Some(Outage::Sealed) => ("sealed", None),
        Some(outage) => ("lost", Some(outage.to_string())),
    };
    let stats = kms.stats();
    Status {
        state: state.into(),
        reason,
        keys: kms.list_keys("").ok().map(|keys| keys.len()),
        default_key: kms.default_key().into(),
        calls: stats.calls,
        outages: stats.outages,
        cache_hits: stats.hits,
    }
}

/// What sealing says when it is done.
pub fn sealed() -> String {
    "sealed: no key is in memory, and none will be until `strongroom kms unseal`".into()
}

fn restored(done: Restored) -> String {
    let mut said = match &done.added[..] {
        [] => format!("all {} keys of the backup were there already", done.keys),
        added => format!(
            "{} of {} keys added: {}",
            added.len(),
            done.keys,
            added.join(", ")
        ),
    };
    if let Some(place) = done.moved_aside {
        said += &format!(
            "; the keystore that did not open is now {}",
            place.display()
        );
    }
    said
}

fn imported(done: Imported) -> String {
    let mut said = match &done.imported[..] {
        [] => "no key was imported".to_owned(),
        names => format!("{} keys imported: {}", names.len(), names.join(", ")),
    };
    if !done.present.is_empty() {
        said += &format!("; there already: {}", done.present.join(", "));
    }
    said
}

impl Open {
    /// One key, and what stands under it.
    fn one(&self, done: Result<KeyInfo, Error>) -> Answer {
        let key = match done {
            Ok(key) => key,
            Err(e) => return Answer::Error(e.to_string()),
        };
        let protects = match &self.store {
            // A store that is locked meanwhile cannot tell, and what is changed is changed.
            Store::Open { objects, .. } => objects.under(&key.name, key.version).ok(),
            Store::None | Store::Locked { .. } => None,
        };
        let keeper = self.store.keeper();
        match keeper.map_or(Ok(false), |keeper| keeper.stands_under(&key.name)) {
            Ok(holds_store_key) => Answer::Keys(vec![Key {
                protects: protects.map(Protects::from),
                holds_store_key,
                ..Key::from(key)
            }]),
            Err(reason) => Answer::Error(reason),
        }
    }

    fn rewrap(&self, name: &str, retire: bool, tell: &mut dyn FnMut(String)) -> Answer {
        let (keeper, objects) = match &self.store {
            Store::None => {
                return Answer::Error(
                    "there are no objects here: what is sealed under these keys lies elsewhere"
                        .into(),
                );
            }
            Store::Locked { why, .. } => return Answer::Error(locked(why)),
            Store::Open {
                keeper, objects, ..
            } => (keeper, objects),
        };
        // Before anything is destroyed: all of the store hangs on it.
        let done = keeper.renew(name).and_then(|renewed| {
            if renewed {
                tell(format!(
                    "the store key is under the current version of {name}"
                ));
            }
            objects.rewrap(&self.kms, name, retire, tell)
        });
        match done {
            Ok(said) => Answer::Done(said),
            Err(reason) => Answer::Error(reason),
        }
    }

    fn store_status(&self) -> Answer {
        match &self.store {
            Store::Locked { why, .. } => Answer::Error(locked(why)),
            Store::Open {
                observers: Some(observers),
                ..
            } => match observers.each() {
                Ok(drives) => match StoreStatus::new("running", &drives, &self.kms) {
                    Some(status) => Answer::Store(Box::new(status)),
                    None => Answer::Error("no drive is there".into()),
                },
                Err(e) => Answer::Error(e.to_string()),
            },
            Store::None
            | Store::Open {
                observers: None, ..
            } => Answer::Error("there is no store here, only keys".into()),
        }
    }
}

fn locked(why: &str) -> String {
    format!("the store is locked: {why}")
}

impl From<Protected> for Protects {
    fn from(protected: Protected) -> Self {
        let Protected { all, older } = protected;
        Protects {
            objects: all.objects,
            bytes: all.bytes,
            uploads: all.uploads,
            upload_bytes: all.upload_bytes,
            older: older.objects + older.uploads,
        }
    }
}

fn keys(done: Result<Vec<KeyInfo>, Error>) -> Answer {
    match done {
        Ok(keys) => Answer::Keys(keys.into_iter().map(Key::from).collect()),
        Err(e) => Answer::Error(e.to_string()),
    }
}

fn done(done: Result<String, Error>) -> Answer {
    match done {
        Ok(said) => Answer::Done(said),
        Err(e) => Answer::Error(e.to_string()),
    }
}

/// The socket's name in the data directory, which goes with this.
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Absent, or it stays and the next start replaces it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Serves a socket in each directory on threads of its own, for as long as the process lives. They are to be dropped before the
/// directories' locks.
pub fn serve(admin: Arc<Admin>) -> io::Result<Vec<Socket>> {
    let open = Arc::new(AtomicUsize::new(0));
    let each = admin.data_dirs.iter();
    each.map(|dir| serve_in(dir, &admin, &open)).collect()
}

/// `open`: how many conversations there are, on all sockets.
fn serve_in(dir: &Path, admin: &Arc<Admin>, open: &Arc<AtomicUsize>) -> io::Result<Socket> {
    let listener = bind(dir)?;
    let socket = Socket(dir.join(SOCKET));
    let (admin, open) = (Arc::clone(admin), Arc::clone(open));
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                if open.fetch_add(1, Ordering::SeqCst) >= limits::ADMIN_CONNECTIONS_MAX {
                    open.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                let (admin, count) = (Arc::clone(&admin), Arc::clone(&open));
                let spawned = std::thread::Builder::new()
                    .name("admin-command".into())
                    .spawn(move || {
                        if let Err(e) = converse(&stream, &admin) {
                            tracing::debug!("an admin connection ended: {e}");
                        }
                        count.fetch_sub(1, Ordering::SeqCst);
                    });
                if let Err(e) = spawned {
                    tracing::warn!("an admin command cannot be served: {e}");
                    open.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })?;
    Ok(socket)
}

/// Asks the server that runs on `data_dir`; none where none does. Calls `tell` with what it says before it answers.
pub fn ask(
    data_dir: &Path,
    request: &Request,
    tell: &mut dyn FnMut(String),
) -> io::Result<Option<Answer>> {
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
    write_line(&stream, request)?;
    loop {
        let line = read_line(&stream, limits::ADMIN_ANSWER_BYTES_MAX)?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server ended the conversation: try again",
            )
        })?;
        match serde_json::from_slice(&line)? {
            Answer::Progress(said) => tell(said),
            answer => return Ok(Some(answer)),
        }
    }
}

/// Waits until a server that holds the directory has made its socket, so that a command right after a start finds it.
pub fn ask_patiently(
    data_dir: &Path,
    request: &Request,
    patience: Duration,
    tell: &mut dyn FnMut(String),
) -> io::Result<Option<Answer>> {
    let begun = Instant::now();
    loop {
        match ask(data_dir, request, tell)? {
            None if begun.elapsed() < patience => std::thread::sleep(Duration::from_millis(50)),
            answer => return Ok(answer),
        }
    }
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

fn converse(stream: &UnixStream, admin: &Admin) -> io::Result<()> {
    stream.set_read_timeout(Some(limits::ADMIN_TIMEOUT))?;
    stream.set_write_timeout(Some(limits::ADMIN_TIMEOUT))?;
    while let Some(line) = read_line(stream, limits::ADMIN_LINE_BYTES_MAX)? {
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => {
                if request.changes() {
                    tracing::info!("commanded: {request:?}");
                }
                admin.perform(request, &mut |said| {
                    // Whoever asked may have gone; what it asked for is done all the same.
                    let _ = write_line(stream, &Answer::Progress(said));
                })
            }
            Err(e) => Answer::Error(format!("not understood: {e}")),
        };
        write_line(stream, &answer)?;
    }
    Ok(())
}

fn write_line(mut stream: &UnixStream, line: &impl Serialize) -> io::Result<()> {
    // Serialized twice, so that nothing grows: a growing buffer leaves keys behind in memory.
    let mut count = Counter(0);
    serde_json::to_writer(&mut count, line)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(count.0 + 1));
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)
}

/// Counts what is written.
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line without its end; none at the end of the stream. Nobody sends a line before the last one was answered.
fn read_line(mut stream: &UnixStream, bytes_max: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = Zeroizing::new(vec![0; bytes_max.min(limits::ADMIN_LINE_BYTES_MAX)]);
    let mut filled = 0;
    loop {
        if filled == line.len() {
            // Only an answer is longer, and there is nothing secret in one.
            if filled == bytes_max {
                return Err(invalid("a line is too long"));
            }
            line.resize(bytes_max.min(2 * filled), 0);
        }
        let read = stream.read(&mut line[filled..])?;
        filled += read;
        if read == 0 {
            return match filled {
                0 => Ok(None),
                _ => Err(invalid("a line has no end")),
            };
        }
        if line[filled - 1] == b'\n' {
            line.truncate(filled - 1);
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
        super::ask(dir, request, &mut |_| ())
    }

    fn created(name: &str) -> Request {
        Request::KeyCreate { name: name.into() }
    }

    #[test]
    fn a_command_reaches_the_server_also_under_a_long_path() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        fs::create_dir(&long).unwrap();
        let list = Request::KeyList {
            prefix: String::new(),
        };
        assert_eq!(ask(&long, &list).unwrap(), None);
        let root = RootKey::generate();
        let kms = Arc::new(Kms::open(&long, root.clone()).unwrap());
        let admin = Arc::new(Admin::new(std::slice::from_ref(&long)));
        let _socket = serve(Arc::clone(&admin)).unwrap();
        admin.open(Arc::clone(&kms), Store::None);
        assert!(
            matches!(ask(&long, &created("payroll")).unwrap(), Some(Answer::Keys(keys)) if keys[0].name == "payroll")
        );
        assert!(matches!(
            ask(&long, &created("payroll")).unwrap(),
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

        assert!(matches!(
            ask(&long, &Request::KmsSeal).unwrap(),
            Some(Answer::Done(_))
        ));
        assert!(kms.is_sealed());
        // There is no root.key here, and another root key does not open.
        for root in [None, Some(SentKey::from(&RootKey::generate()))] {
            let refused = ask(&long, &Request::KmsUnseal { root }).unwrap();
            assert!(matches!(refused, Some(Answer::Error(_))), "{refused:?}");
        }
        let root = Some(SentKey::from(&root));
        let unsealed = ask(&long, &Request::KmsUnseal { root }).unwrap();
        assert!(matches!(unsealed, Some(Answer::Done(_))), "{unsealed:?}");
        assert!(!kms.is_sealed());
    }

    #[test]
    fn one_who_says_nothing_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let kms = Arc::new(Kms::open(dir.path(), RootKey::generate()).unwrap());
        let admin = Arc::new(Admin::new(&[dir.path().to_owned()]));
        admin.open(kms, Store::None);
        let _socket = serve(admin).unwrap();
        let _silent = with_short_path(dir.path(), |path| UnixStream::connect(path)).unwrap();
        let begun = std::time::Instant::now();
        assert!(ask(dir.path(), &created("a")).unwrap().is_some());
        assert!(begun.elapsed() < limits::ADMIN_TIMEOUT);
    }

    #[test]
    fn a_locked_process_waits_for_its_root_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        drop(Kms::open(dir.path(), root.clone()).unwrap());
        let admin = Arc::new(Admin::new(&[dir.path().to_owned()]));
        let _socket = serve(Arc::clone(&admin)).unwrap();
        let starting = std::thread::spawn({
            let (admin, dir) = (Arc::clone(&admin), dir.path().to_owned());
            move || {
                let root = admin.wait_for_root_key().unwrap();
                let kms = Kms::open_existing(&dir, root).unwrap();
                admin.open(Arc::new(kms), Store::None);
            }
        });
        while !matches!(*admin.state(), State::Locked) {
            std::thread::yield_now();
        }
        match ask(dir.path(), &Request::KmsStatus).unwrap() {
            Some(Answer::Status(status)) => assert_eq!(status.state, "locked"),
            other => panic!("{other:?}"),
        }
        let wrong = Some(SentKey::from(&RootKey::generate()));
        for request in [
            created("a"),
            Request::KmsSeal,
            Request::KmsUnseal { root: None },
            Request::KmsUnseal { root: wrong },
        ] {
            let answer = ask(dir.path(), &request).unwrap();
            assert!(
                matches!(answer, Some(Answer::Error(_))),
                "{request:?} {answer:?}"
            );
        }
        let root = Some(SentKey::from(&root));
        let answer = ask(dir.path(), &Request::KmsUnseal { root }).unwrap();
        assert!(matches!(answer, Some(Answer::Done(_))), "{answer:?}");
        starting.join().unwrap();
        assert!(matches!(
            ask(dir.path(), &created("a")).unwrap(),
            Some(Answer::Keys(_))
        ));
    }

    #[test]
    fn a_root_key_cannot_be_printed() {
        let root = RootKey::generate();
        let request = Request::KmsUnseal {
            root: Some(SentKey::from(&root)),
        };
        assert!(!format!("{request:?}").contains(root.to_base64().as_str()));
    }
}
