//! `strongroom serve`: opens everything in order, serves on every core, and ends in order.
//!
//! The order of a start: the directory and its lock, the port, certificates, the cores, which from then on answer why nothing is
//! served yet; then keys, and the store. The order of an end: no new connections, requests under way up to the time-out, shards, the store.
//!
//! Where the store key stands under the key service alone, the store is opened when that key can be had, and closed as a whole when
//! it cannot any more: a locked store has no record, no key and no cache of records in memory. What was begun and not committed is
//! lost as in a crash; the process and its connections stay.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use strongroom_engine::secret::Secret;
use strongroom_engine::simd::{self, cpu, md5};
use strongroom_engine::{DataDirs, EngineOptions, Engines};
use strongroom_kms::{
    Caller, DEFAULT_KEY, Error, Generated, Keys, KeysOptions, Kms, Outage, RootKey,
};

use crate::admin::{self, Admin};
use crate::cli::offline::LocalKeys;
use crate::config::{self, CredentialsFrom, RootCredentials, Serve};
use crate::conn;
use crate::cores::{Cores, Plan};
use crate::health::{Health, State};
use crate::key_service::KeyService;
use crate::metrics::{self, Metrics};
use crate::rewrap::Objects;
use crate::service::{Domains, Settings};
use crate::store_key::{Settle, Shut, StoreKeeper};
use crate::tls::{Certificates, default_names};
use crate::{auth, limits, ops, root_key, work};

/// Serves until told to stop.
pub fn run(options: Serve) -> Result<(), String> {
    prepare_process();
    deny_features()?;
    let dirs = Arc::new(lock(&config::directories(&options.data_dirs)?)?);
    if let Some(missing) = dirs.missing().next() {
        left_out(&missing.why);
    }
    let homes = dirs.paths();
    let shards = shard_cores(options.shards);
    let listeners = bind(options.address, shards.len()).map_err(|e| {
        format!(
            "cannot listen on {}: {e} (--address names another one)",
            options.address
        )
    })?;
    let address = listeners[0].local_addr().map_err(|e| e.to_string())?;
    let root = RootCredentials::load_or_make(&homes)?;
    let admin = Arc::new(Admin::new(&homes));
    let socket = admin::serve(Arc::clone(&admin))
        .map_err(|e| format!("the admin socket in {}: {e}", listed(&homes)))?;
    let (events, told) = mpsc::channel();
    watch_signals(events.clone(), Arc::clone(&admin))?;
    let certificates = open_certificates(&options, &homes)?.map(Arc::new);
    let tls = certificates
        .as_ref()
        .map(|c| c.server_config())
        .transpose()
        .map_err(|e| e.to_string())?;
    let health = Arc::new(Health::default());
    let metrics = open_metrics(&options, Arc::clone(&admin))?;
    let plan = Arc::new(Plan {
        ops: ops::Config::of(&options),
        settings: settings(&options, &root, Arc::clone(&health), metrics),
        tls,
        stale_uploads: options.stale_uploads,
    });
    let cores = Cores::start(&plan, listeners, &shards)?;
    if let Some(certificates) = &certificates {
        watch(Arc::clone(certificates));
    }

    let is_new = dirs.superblock().map_err(|e| e.to_string())?.is_none();
    let waits = || health.set(State::Locked("it waits for its root key".into()));
    let Some(kms) = open_keystore(&homes, is_new, &admin, waits)?.map(Arc::new) else {
        return Ok(());
    };
    health.set(State::Starting);
    let keys = KeyService::open(
        &options.key_service,
        &options.certs_dir(&homes),
        Arc::clone(&kms),
        is_new,
    )?;
    let keys = Arc::new(keys);
    let key_state = Arc::clone(&keys);
    health.set_keys(move || key_state.word());
    keys.watch_certificates();
    watch_deletions(Arc::clone(&kms));
    let keeper = StoreKeeper::of_server(
        Arc::clone(&dirs),
        Arc::clone(&kms),
        cores.give_keys(&keys),
        move |settle| events.send(Event::Settle(settle)).is_ok(),
    );
    let mut house = House {
        shards: shards.len(),
        options,
        dirs,
        kms,
        admin,
        health,
        cores,
        keeper: Arc::new(keeper),
        store: None,
        told_why: None,
    };
    let announce = |house: &House| {
        announce(
            house,
            address,
            &root,
            keys.describe(),
            certificates.as_deref(),
        )
    };
    house.live(&told, announce)?;
    house.end();
    drop(socket);
    tracing::info!("closed");
    // Shards still hold connections that outlived the time-out; they end with the process.
    std::process::exit(0);
}

/// What the main thread waits for.
enum Event {
    Stop,
    Settle(Settle),
}

/// A server with its keys, whose store opens and closes.
struct House {
    options: Serve,
    shards: usize,
    dirs: Arc<DataDirs>,
    kms: Arc<Kms>,
    admin: Arc<Admin>,
    health: Arc<Health>,
    cores: Cores,
    keeper: Arc<StoreKeeper>,
    store: Option<Engines>,
    /// Why the store is locked, as it was logged last.
    told_why: Option<String>,
}

impl House {
    /// Keeps the store open while its key can be had, until told to stop. Calls `announce` once it was opened for the first time.
    fn live(
        &mut self,
        told: &mpsc::Receiver<Event>,
        announce: impl FnOnce(&House) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut announce = Some(announce);
        loop {
            self.settle()?;
            if self.store.is_some()
                && let Some(announce) = announce.take()
            {
                announce(self)?;
            }
            match told.recv_timeout(self.pause()) {
                Ok(Event::Settle(Settle(done))) => {
                    self.settle()?;
                    // Whoever asked may be gone.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// How long until the next look at the store key.
    fn pause(&self) -> Duration {
        match (&self.store, self.keeper.check()) {
            (None, _) => limits::LOCKED_LOOK,
            (Some(_), Some(_)) => limits::KEY_CHECK,
            (Some(_), None) => limits::OPEN_LOOK,
        }
    }

    /// Opens or locks the store, as its key says.
    fn settle(&mut self) -> Result<(), String> {
        match &self.store {
            Some(_) => {
                if let Some(Err(why)) = self.keeper.check() {
                    self.lock(&why);
                }
            }
            None => match self.keeper.open_or_make(self.options.metadata_key) {
                Ok(key) => self.open(&key)?,
                Err(Shut::Key(why)) => self.stay_locked(&why),
                // A start is refused; a server that runs waits for better.
                Err(Shut::Broken(why)) if self.told_why.is_none() => return Err(why),
                Err(Shut::Broken(why)) => self.tell(format!("the store stays locked: {why}")),
            },
        }
        Ok(())
    }

    fn open(&mut self, key: &Secret) -> Result<(), String> {
        let cache = self.options.cache_bytes();
        let mut engines = open_engines(&self.dirs, key, self.shards, cache)?;
        if let Some(rate) = NonZeroU64::new(self.options.scrub_rate) {
            let kms = Arc::clone(&self.kms);
            // Keys at KES are left alone: nearly every object has a data key of its own, so a pass would be a call for each, that
            // no client asked for and that stands in the audit log of KES. `strongroom verify` makes these calls.
            let keys =
                move || LocalKeys::here(Keys::new(Arc::clone(&kms), None, KeysOptions::default()));
            engines.start_scrub(rate, keys).map_err(|e| e.to_string())?;
        }
        let (shards, inboxes) = work::channels(self.shards);
        self.cores.open(&engines, inboxes)?;
        let store = admin::Store::Open {
            keeper: Arc::clone(&self.keeper),
            objects: Arc::new(Objects::Served(shards)),
            observers: Some(engines.observers()),
        };
        self.admin.open(Arc::clone(&self.kms), store);
        self.health.set(State::Live);
        if self.told_why.take().is_some() {
            tracing::info!("the store is open");
        }
        self.store = Some(engines);
        Ok(())
    }

    /// Closes the store. When this returns nothing of it is served, and nothing that opens it is in memory.
    fn lock(&mut self, why: &Error) {
        self.stay_locked(why);
        self.cores.close();
        if let Some(store) = self.store.take()
            && !store.close_and_forget(limits::CLOSE_PATIENCE)
        {
            tracing::error!(
                "something still holds the store that has to be locked, so the server ends: its memory goes with it"
            );
            std::process::exit(75);
        }
    }

    fn stay_locked(&mut self, why: &Error) {
        let words = words(why);
        self.tell(format!(
            "the store is locked, since its key stands under the key service alone (--metadata-key kms): {why}"
        ));
        self.health.set(State::Locked(words.clone()));
        let store = admin::Store::Locked {
            keeper: Arc::clone(&self.keeper),
            why: words,
        };
        self.admin.open(Arc::clone(&self.kms), store);
    }

    /// Logs why the store is locked, once.
    fn tell(&mut self, why: String) {
        if self.told_why.as_ref() != Some(&why) {
            tracing::warn!("{why}");
            self.told_why = Some(why);
        }
    }

    fn end(self) {
        self.cores.stop(self.options.drain_timeout);
        if let Some(store) = self.store {
            store.close();
        }
    }
}

/// Why a store is locked, in words that name nothing: they are for everybody.
fn words(why: &Error) -> String {
    match why {
        Error::Outage(Outage::Sealed) => "the key service is sealed".into(),
        Error::Outage(Outage::Lost(_)) => "the keystore is lost".into(),
        Error::Outage(Outage::Unreachable(_)) => "the key service cannot be reached".into(),
        Error::KeyState { problem, .. } => format!("its key {problem}"),
        Error::Caller(_) | Error::Corrupt(_) | Error::Environment(_) => {
            "its key does not open".into()
        }
    }
}

/// Takes the directories of a store. A command that works without a server holds their locks a moment, so one in use is asked
/// for again, for a while.
pub(crate) fn lock(dirs: &[PathBuf]) -> Result<DataDirs, String> {
    let in_use = |e: &_| matches!(e, strongroom_engine::Error::InUse { .. });
    patiently(limits::LOCK_PATIENCE, in_use, || DataDirs::lock(dirs)).map_err(|e| e.to_string())
}

/// Says that a drive is missing.
fn left_out(why: &str) {
    tracing::error!(
        "a drive is left out: {why}. Until it is back, at the next start, its objects answer 503, and so do listings and the deletion of buckets"
    );
}

/// Directories in a sentence.
fn listed(dirs: &[PathBuf]) -> String {
    let names: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    names.join(", ")
}

/// Whoever denies a feature counts on it.
fn deny_features() -> Result<(), String> {
    let unknown = cpu::unknown_denials();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} denies {}, which no kernel here depends on; there are {}",
        cpu::DENY,
        unknown.join(","),
        cpu::FEATURES.join(",")
    ))
}

/// Binds the port. The rings of a server that just ended can hold its sockets a moment longer than the process lived, so a
/// port in use is asked for again, for a while.
pub(crate) fn bind(address: SocketAddr, shards: usize) -> std::io::Result<Vec<TcpListener>> {
    let in_use = |e: &std::io::Error| e.kind() == std::io::ErrorKind::AddrInUse;
    patiently(limits::PORT_PATIENCE, in_use, || {
        conn::bind(address, shards)
    })
}

/// Tries again while it fails in a way that passes, for so long.
fn patiently<T, E>(
    patience: Duration,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + patience;
    loop {
        match attempt() {
            Err(e) if passes(&e) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn open_metrics(options: &Serve, admin: Arc<Admin>) -> Result<Arc<Metrics>, String> {
    let token = config::metrics_token(options.metrics_token_file.as_deref())?;
    let others = move |text: &mut metrics::Text| {
        let (store, kms) = admin.seen();
        metrics::store_families(text, store.as_ref(), kms.as_deref());
    };
    Ok(Arc::new(Metrics::new(token, others)))
}

fn settings(
    options: &Serve,
    root: &RootCredentials,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
) -> Settings {
    let root = auth::Root::new(root.user.clone(), root.password.as_str().into());
    Settings {
        secrets: Arc::new(move |access_key| root.lookup(access_key)),
        domains: Domains::new(options.domain.clone()),
        region: options.region.clone(),
        health,
        metrics,
        proxies: options.trusted_proxies.clone().into(),
    }
}

pub(crate) fn prepare_process() {
    end_on_panic();
    // Keys live in this process: nothing of it may be written out by a crash.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Core, none) {
        tracing::warn!("core dumps could not be turned off: {e}");
    }
    let files = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, most) {
        tracing::warn!("the limit of open files could not be raised: {e}");
    }
}

/// A thread that panicked leaves others waiting for it, and nobody knows what its last step left half done: the process ends, and
/// its next start finds all that was acknowledged.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        tracing::error!(
            "this is a bug of Strongroom's, please report it: the server ends. Start it again."
        );
        std::process::exit(70);
    }));
}

/// The cores this process may use; one shard each, going round when there are more shards.
pub(crate) fn shard_cores(wanted: Option<u16>) -> Vec<usize> {
    let allowed: Vec<usize> = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect(),
        Err(_) => Vec::new(),
    };
    let allowed = if allowed.is_empty() { vec![0] } else { allowed };
    let count = wanted.map_or(allowed.len(), usize::from);
    (0..count).map(|i| allowed[i % allowed.len()]).collect()
}

/// Opens the keystore of a store this process holds; none where it was told to end meanwhile. On a first start it, the
/// root key and the default key may be made. `waits` is called before somebody is waited for.
fn open_keystore(
    dirs: &[PathBuf],
    first_start: bool,
    admin: &Admin,
    waits: impl FnOnce(),
) -> Result<Option<Kms>, String> {
    if first_start {
        let (root, generated) = root_key::find_or_make(dirs)?;
        let kms = Kms::open(dirs, root).map_err(|e| e.to_string())?;
        if generated == Generated::Yes {
            warn_of_new_root_key(dirs);
        }
        // The keystore can be there before the store: a restored one, or that of a key server.
        return match kms.create_key(DEFAULT_KEY) {
            Ok(_) | Err(Error::Caller(Caller::KeyExists(_))) => Ok(Some(kms)),
            Err(e) => Err(e.to_string()),
        };
    }
    let Some(root) = root_key_or_wait(dirs, admin, waits)? else {
        return Ok(None);
    };
    // A keystore that is gone must not be replaced by an empty one.
    let kms = Kms::open_existing(dirs, root).map_err(|e| e.to_string())?;
    if let Some(outage @ Outage::Lost(_)) = kms.outage() {
        tracing::error!("{outage}. Until then what needs a key answers 503");
    }
    Ok(Some(kms))
}

/// What whoever made a root key by starting the server has to know.
pub(crate) fn warn_of_new_root_key(dirs: &[PathBuf]) {
    tracing::warn!(
        "made {}: it opens every key of this store. It protects disks and backups that leave without it; it does not protect \
         against someone who can read this directory. Keep a copy elsewhere: without it all data is lost. \
         STRONGROOM_KMS_ROOT_KEY or STRONGROOM_KMS_ROOT_KEY_FILE keep it off this disk.",
        root_key::path(dirs).display()
    );
}

/// The root key of a keystore that is there; where it is kept by people, they are waited for. None where the process is told to
/// end before they come.
pub(crate) fn root_key_or_wait(
    dirs: &[PathBuf],
    admin: &Admin,
    waits: impl FnOnce(),
) -> Result<Option<RootKey>, String> {
    match root_key::find(dirs)? {
        Some(root) => Ok(Some(root)),
        None if root_key::can_be_brought(dirs) => {
            tracing::warn!("{}", admin::LOCKED);
            waits();
            Ok(admin.wait_for_root_key())
        }
        None => Err(root_key::missing(dirs)),
    }
}

/// Destroys keys whose waiting period is over: now, and for as long as the process lives.
pub(crate) fn watch_deletions(kms: Arc<Kms>) {
    let destroy = move || match kms.destroy_due_keys() {
        Ok(names) => {
            for key in names {
                tracing::info!(key, "destroyed: its waiting period is over");
            }
            limits::DUE_KEYS_POLL
        }
        Err(Error::Outage(_)) => limits::DUE_KEYS_POLL,
        Err(e) => {
            tracing::error!("keys whose waiting period is over cannot be destroyed: {e}");
            limits::DUE_KEYS_PAUSE
        }
    };
    let mut pause = destroy();
    let spawned = std::thread::Builder::new()
        .name("deletions".into())
        .spawn(move || {
            loop {
                std::thread::sleep(pause);
                pause = destroy();
            }
        });
    if let Err(e) = spawned {
        tracing::error!("keys will be destroyed at the next start only: {e}");
    }
}

pub(crate) fn open_engines(
    dirs: &DataDirs,
    store_key: &Secret,
    shards: usize,
    cache_bytes: u64,
) -> Result<Engines, String> {
    let begun = Instant::now();
    let options = EngineOptions {
        shards,
        cache_bytes,
        fatal: |e| {
            tracing::error!(
                "{e}: nothing more can be promised, so the server ends. Check the disk, then start it again."
            );
            std::process::exit(74);
        },
    };
    let engines = Engines::open(dirs, store_key, &options).map_err(|e| e.to_string())?;
    let known = |why: &str| dirs.missing().any(|missing| missing.why == why);
    for (directory, opening) in engines.openings() {
        match opening {
            Ok(opening) if !opening.clean => tracing::info!(
                "{} recovered in {:.1?}: {} bytes of uploads that were never acknowledged are given back",
                directory.display(),
                begun.elapsed(),
                opening.reclaimed_bytes
            ),
            Err(missing) if !known(missing.why.as_str()) => {
                left_out(&format!("{}: {}", directory.display(), missing.why));
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(engines)
}

fn open_certificates(options: &Serve, dirs: &[PathBuf]) -> Result<Option<Certificates>, String> {
    if options.no_tls {
        return Ok(None);
    }
    let dir = options.certs_dir(dirs);
    let wildcard = options.domain.iter().map(|domain| format!("*.{domain}"));
    let names = options
        .domain
        .clone()
        .into_iter()
        .chain(wildcard)
        .chain([options.address.ip().to_string()]);
    Certificates::open(&dir, &default_names(names))
        .map(Some)
        .map_err(|e| e.to_string())
}

/// Takes changed certificates for as long as the process lives.
fn watch(certificates: Arc<Certificates>) {
    let spawned = std::thread::Builder::new()
        .name("certificates".into())
        .spawn(move || {
            loop {
                std::thread::sleep(limits::CERTIFICATE_POLL);
                certificates.reload();
            }
        });
    if let Err(e) = spawned {
        tracing::warn!("certificates will not be reloaded: {e}");
    }
}

/// Tells the main thread to stop on the first signal, and ends the process on the second.
fn watch_signals(events: mpsc::Sender<Event>, admin: Arc<Admin>) -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| e.to_string())?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut signals = signals.forever();
            if let Some(signal) = signals.next() {
                tracing::info!("signal {signal}: finishing what is under way");
                admin.stop_waiting();
                // A main thread that is gone is at its end already.
                let _ = events.send(Event::Stop);
            }
            if signals.next().is_some() {
                tracing::warn!("told twice: ending at once");
                std::process::exit(1);
            }
        })
        .map(drop)
        .map_err(|e| format!("a thread for signals cannot start: {e}"))
}

/// Tells whoever started the server what to do next.
fn announce(
    house: &House,
    address: SocketAddr,
    root: &RootCredentials,
    keys: &str,
    certificates: Option<&Certificates>,
) -> Result<(), String> {
    let scheme = if certificates.is_some() {
        "https"
    } else {
        "http"
    };
    let host = match address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let endpoint = format!("{scheme}://{host}:{}", address.port());
    let mut aws = String::new();
    let credentials = match &root.from {
        CredentialsFrom::File(file) => {
            aws += &format!("AWS_SHARED_CREDENTIALS_FILE={} ", quoted(file));
            file.display().to_string()
        }
        CredentialsFrom::Environment { user, password } => {
            aws += &format!("AWS_ACCESS_KEY_ID=\"${user}\" AWS_SECRET_ACCESS_KEY=\"${password}\" ");
            format!("{user} and {password} of the environment")
        }
    };
    let certificate = match certificates {
        Some(c) => {
            aws += &format!("AWS_CA_BUNDLE={} ", quoted(&c.public_path()));
            c.public_path().display().to_string()
        }
        None => "none: --no-tls".to_owned(),
    };
    let region = &house.options.region;
    let text = format!(
        "Strongroom {}\n\n  Store        {}\n  Endpoint     {endpoint}\n  Credentials  {credentials}\n  Certificate  {certificate}\n  Region       {region}\n  Keys         {keys}\n  Kernels      {} (AES-256-GCM), {} (MD5)\n\n\
         Try:\n  {aws}aws --endpoint-url {endpoint} --region {region} s3 mb s3://first-bucket\n\nready\n",
        env!("CARGO_PKG_VERSION"),
        listed(&house.dirs.paths()),
        simd::kernel_name(),
        md5::kernel_name(),
    );
    say(&text)
}

/// Writes to standard output.
pub(crate) fn say(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| format!("cannot write to standard output: {e}"))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b))
    {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_panic_of_any_thread_ends_the_process() {
        const AGAIN: &str = "STRONGROOM_TEST_PANIC";
        if std::env::var_os(AGAIN).is_some() {
            end_on_panic();
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
            std::process::exit(0);
        }
        // This test once more, in a process that may end.
        let name = "serve::tests::a_panic_of_any_thread_ends_the_process";
        let child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(AGAIN, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("on purpose"), "{said}");
        assert_eq!(child.status.code(), Some(70));
    }
}
