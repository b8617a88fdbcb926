//! `strongroom serve`: opens everything in order, serves on every core, and ends in order.
//!
//! The order of a start: the directory and its lock, the port, keys, the store, certificates, shards. The order of an end:
//! no new connections, requests under way up to the time-out, shards, the store.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use rustix::process::{Resource, Rlimit};
use rustls::ServerConfig;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use strongroom_engine::secret::Secret;
use strongroom_engine::simd::{self, cpu, md5};
use strongroom_engine::{DataDir, Engine, EngineOptions, Observer, ShardSeed, Superblock};
use strongroom_kms::{
    Caller, DEFAULT_KEY, Error, Generated, Keys, KeysOptions, Kms, Outage, RootKey,
};

use crate::admin::Admin;
use crate::cli::offline::LocalKeys;
use crate::config::{self, CredentialsFrom, RootCredentials, Serve};
use crate::conn::{self, Drain};
use crate::health::Health;
use crate::key_service::KeyService;
use crate::metrics::{self, Metrics};
use crate::rewrap::Objects;
use crate::service::{Domains, KmsApi, Service, Settings};
use crate::tls::{Certificates, default_names};
use crate::work::{self, Inbox};
use crate::{admin, auth, limits, ops, root_key};

const STORE_KEY: &[u8] = b"store key";

/// Serves until told to stop.
pub fn run(options: Serve) -> Result<(), String> {
    prepare_process();
    deny_features()?;
    let dir = lock(&options.data_dir)?;
    let shards = shard_cores(options.shards);
    let listeners = bind(options.address, shards.len()).map_err(|e| {
        format!(
            "cannot listen on {}: {e} (--address names another one)",
            options.address
        )
    })?;
    let address = listeners[0].local_addr().map_err(|e| e.to_string())?;
    let root = RootCredentials::load_or_make(dir.path())?;
    let admin = Arc::new(Admin::new(dir.path()));
    admin::serve(Arc::clone(&admin))
        .map_err(|e| format!("the admin socket in {}: {e}", dir.path().display()))?;
    let OpenedStore {
        kms,
        store_key,
        is_new,
    } = open_store_key(&dir, &admin)?;
    let keys = KeyService::open(
        &options.key_service,
        &options.certs_dir(),
        Arc::clone(&kms),
        is_new,
    )?;
    let keys = Arc::new(keys);
    let mut engine = open_engine(&dir, &store_key, shards.len(), options.cache_bytes())?;
    if let Some(rate) = NonZeroU64::new(options.scrub_rate) {
        let kms = Arc::clone(&kms);
        let keys = || LocalKeys(Keys::new(kms, None, KeysOptions::default()));
        engine.start_scrub(rate, keys).map_err(|e| e.to_string())?;
    }
    admin.show(engine.observer());
    let certificates = open_certificates(&options, dir.path())?;
    let (shards_at_work, inboxes) = work::channels(shards.len());
    let objects = Arc::new(Objects::Served(shards_at_work));
    admin.open(Arc::clone(&kms), Some(objects));
    watch_deletions(Arc::clone(&kms));

    let tls = certificates
        .as_ref()
        .map(|c| c.server_config())
        .transpose()
        .map_err(|e| e.to_string())?;
    let signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| e.to_string())?;
    let key_state = Arc::clone(&keys);
    let health = Arc::new(Health::new(move || key_state.word()));
    let metrics = open_metrics(&options, engine.observer(), Arc::clone(&kms))?;
    let plan = Arc::new(Plan {
        ops: ops::Config::of(&options),
        settings: settings(&options, &root, Arc::clone(&health), metrics),
        options,
        kms,
        keys,
        tls,
    });
    let running = start_shards(&plan, &engine, listeners, inboxes, &shards)?;
    health.set_live(true);
    let certificates = certificates.map(Arc::new);
    if let Some(certificates) = &certificates {
        watch(Arc::clone(certificates));
    }
    plan.keys.watch_certificates();
    announce(&plan, address, dir.path(), &root, certificates.as_deref())?;
    wait_for_signal(signals);
    drain(running, plan.options.drain_timeout);
    engine.close();
    admin::remove(dir.path());
    tracing::info!("closed");
    // Shards still hold connections that outlived the time-out; they end with the process.
    drop(dir);
    std::process::exit(0);
}

/// Takes a data directory. A command that works without a server holds its lock a moment, so one in use is asked for again,
/// for a while.
pub(crate) fn lock(dir: &Path) -> Result<DataDir, String> {
    let end = Instant::now() + limits::LOCK_PATIENCE;
    loop {
        match DataDir::lock(dir) {
            Err(strongroom_engine::Error::Unusable(_)) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20))
            }
            locked => return locked.map_err(|e| e.to_string()),
        }
    }
}

/// Whoever denies a feature counts on it.
pub(crate) fn deny_features() -> Result<(), String> {
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
    let end = Instant::now() + limits::PORT_PATIENCE;
    loop {
        match conn::bind(address, shards) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => return bound,
        }
    }
}

/// What every shard is made from.
struct Plan {
    options: Serve,
    ops: ops::Config,
    settings: Settings,
    kms: Arc<Kms>,
    keys: Arc<KeyService>,
    tls: Option<Arc<ServerConfig>>,
}

fn open_metrics(options: &Serve, store: Observer, kms: Arc<Kms>) -> Result<Arc<Metrics>, String> {
    let token = config::metrics_token(options.metrics_token_file.as_deref())?;
    let others = move |text: &mut metrics::Text| metrics::store_families(text, &store, &kms);
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

/// Opens the keystore of a data directory this process holds. On a first start it and the root key may be made.
fn open_keystore(dir: &Path, first_start: bool, admin: &Admin) -> Result<(Kms, Generated), String> {
    if first_start {
        let (root, generated) = root_key::find_or_make(dir)?;
        let kms = Kms::open(dir, root).map_err(|e| e.to_string())?;
        return Ok((kms, generated));
    }
    let root = root_key_or_wait(dir, admin)?;
    // A keystore that is gone must not be replaced by an empty one.
    let kms = Kms::open_existing(dir, root).map_err(|e| e.to_string())?;
    if let Some(outage @ Outage::Lost(_)) = kms.outage() {
        tracing::error!(
            "{outage}. Until then what needs a key answers 503; listings and HEAD work"
        );
    }
    Ok((kms, Generated::No))
}

/// What whoever made a root key by starting the server has to know.
pub(crate) fn warn_of_new_root_key(dir: &Path) {
    tracing::warn!(
        "made {}: it opens every key of this store. It protects disks and backups that leave without it; it does not protect \
         against someone who can read this directory. Keep a copy elsewhere: without it all data is lost. \
         STRONGROOM_KMS_ROOT_KEY or STRONGROOM_KMS_ROOT_KEY_FILE keep it off this disk.",
        root_key::path(dir).display()
    );
}

/// The root key of a keystore that is there; where it is kept by people, they are waited for.
pub(crate) fn root_key_or_wait(dir: &Path, admin: &Admin) -> Result<RootKey, String> {
    match root_key::find(dir)? {
        Some(root) => Ok(root),
        None if root_key::can_be_brought(dir) => {
            tracing::warn!("{}", admin::LOCKED);
            Ok(admin.wait_for_root_key())
        }
        None => Err(root_key::missing(dir)),
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

struct OpenedStore {
    kms: Arc<Kms>,
    store_key: Secret,
    /// Whether this is the first start.
    is_new: bool,
}

/// The keystore and the key of the store; both are made on a first start.
fn open_store_key(dir: &DataDir, admin: &Admin) -> Result<OpenedStore, String> {
    let superblock = dir.superblock().map_err(|e| e.to_string())?;
    let first_start = superblock.is_none();
    let (kms, generated) = open_keystore(dir.path(), first_start, admin)?;
    if generated == Generated::Yes {
        warn_of_new_root_key(dir.path());
    }
    let store_key = match superblock {
        Some(superblock) => unwrap_store_key(dir, &kms, &superblock)?,
        None => {
            // The keystore can be there before the store: a restored one, or that of a key server.
            match kms.create_key(DEFAULT_KEY) {
                Ok(_) | Err(Error::Caller(Caller::KeyExists(_))) => {}
                Err(e) => return Err(e.to_string()),
            }
            let key = Secret::random();
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|e| e.to_string())?;
            dir.create(id, &kms.wrap_local(STORE_KEY, key.expose()))
                .map_err(|e| e.to_string())?;
            key
        }
    };
    Ok(OpenedStore {
        kms: Arc::new(kms),
        store_key,
        is_new: first_start,
    })
}

/// The key of a store that is there.
pub(crate) fn store_key(dir: &DataDir, kms: &Kms) -> Result<Secret, String> {
    let superblock = dir
        .superblock()
        .map_err(|e| e.to_string())?
        .ok_or_else(|| format!("there is no store in {}", dir.path().display()))?;
    unwrap_store_key(dir, kms, &superblock)
}

pub(crate) fn unwrap_store_key(
    dir: &DataDir,
    kms: &Kms,
    superblock: &Superblock,
) -> Result<Secret, String> {
    let opened = kms
        .unwrap_local(STORE_KEY, &superblock.wrapped_store_key)
        .map_err(|e| {
            format!(
                "the store key in {} does not open: {e}",
                dir.superblock_path().display()
            )
        })?;
    Ok(Secret::new(*opened.expose()))
}

pub(crate) fn open_engine(
    dir: &DataDir,
    store_key: &Secret,
    shards: usize,
    cache_bytes: u64,
) -> Result<Engine, String> {
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
    let engine = Engine::open(dir, store_key, &options).map_err(|e| e.to_string())?;
    let opening = engine.opening();
    if !opening.clean {
        tracing::info!(
            "recovered in {:.1?}: {} bytes of uploads that were never acknowledged are given back",
            begun.elapsed(),
            opening.reclaimed_bytes
        );
    }
    Ok(engine)
}

fn open_certificates(options: &Serve, data_dir: &Path) -> Result<Option<Certificates>, String> {
    if options.no_tls {
        return Ok(None);
    }
    let dir = match &options.certs_dir {
        Some(dir) => dir.clone(),
        None => data_dir.join("certs"),
    };
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

/// One shard, seen from the main thread.
struct Running {
    stop: futures_channel::oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

fn start_shards(
    plan: &Arc<Plan>,
    engine: &Engine,
    listeners: Vec<TcpListener>,
    inboxes: Vec<Inbox>,
    cores: &[usize],
) -> Result<Vec<Running>, String> {
    let mut running = Vec::new();
    let doors = listeners.into_iter().zip(inboxes);
    for (id, (door, core)) in doors.zip(cores).enumerate() {
        let (stop, stopping) = futures_channel::oneshot::channel();
        let (started, starting) = mpsc::channel();
        let (stopped_sender, stopped) = mpsc::channel();
        let plan = Arc::clone(plan);
        let seed = engine.shard(id);
        LocalExecutorBuilder::new(Placement::Fixed(*core))
            .name(&format!("shard-{id}"))
            .io_memory(limits::RING_MEMORY_BYTES)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(limits::HELPER_THREADS))
            .spin_before_park(Duration::ZERO)
            .spawn(move || async move { shard(id, &plan, seed, door, started, stopping, stopped_sender).await })
            .map_err(|e| {
                format!("shard {id} cannot start: {e} (if memory cannot be locked, raise `ulimit -l`; if rings are forbidden, allow io_uring)")
            })?;
        match starting.recv() {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err(format!("shard {id} cannot start: {reason}")),
            Err(_) => return Err(format!("shard {id} ended while starting")),
        }
        running.push(Running { stop, stopped });
    }
    Ok(running)
}

async fn shard(
    id: usize,
    plan: &Plan,
    seed: ShardSeed,
    (listener, inbox): (TcpListener, Inbox),
    started: mpsc::Sender<Result<(), String>>,
    stopping: futures_channel::oneshot::Receiver<()>,
    stopped: mpsc::Sender<()>,
) {
    let store = match seed.open().await {
        Ok(store) => store,
        Err(e) => {
            // The main thread waits for just this.
            let _ = started.send(Err(e.to_string()));
            return;
        }
    };
    let keys = Rc::new(plan.keys.keys());
    glommio::spawn_local({
        let (service, keys) = (Arc::clone(&plan.keys), Rc::clone(&keys));
        async move { service.tend(&keys, id).await }
    })
    .detach();
    let operations = ops::Store::new(store.clone(), Rc::clone(&keys), plan.ops.clone());
    let service = Service::new(
        operations.clone(),
        operations.routes(),
        plan.settings.clone(),
        Some(KmsApi::new(Arc::clone(&plan.kms), keys)),
    );
    let downloads = operations.clone();
    glommio::spawn_local(async move { downloads.watch_downloads().await }).detach();
    let drain = Drain::new();
    if id == 0 {
        let store = store.clone();
        let age = plan.options.stale_uploads;
        glommio::spawn_local(async move {
            loop {
                match store.abort_stale_uploads(age).await {
                    Ok(0) => {}
                    Ok(n) => tracing::info!("aborted {n} multipart uploads that nobody completed"),
                    Err(e) => tracing::warn!("looking for stale multipart uploads: {e}"),
                }
                glommio::timer::sleep(limits::STALE_UPLOADS_POLL).await;
            }
        })
        .detach();
    }
    let _ = started.send(Ok(()));
    let serving = conn::serve(
        listener,
        conn::Shard {
            tls: plan.tls.clone(),
            drain: drain.clone(),
            make: move |peer| service.for_peer(peer),
        },
    );
    let (stop_work, work_stops) = futures_channel::oneshot::channel::<()>();
    let told = async {
        // A main thread that is gone means the same.
        let _ = stopping.await;
        drain.begin();
        drop(stop_work);
    };
    let working = inbox.work(store.clone(), async {
        let _ = work_stops.await;
    });
    futures_util::future::join3(serving, told, working).await;
    drain.below(1).await;
    store.close().await;
    let _ = stopped.send(());
}

fn wait_for_signal(mut signals: Signals) {
    if let Some(signal) = signals.forever().next() {
        tracing::info!("signal {signal}: finishing what is under way");
    }
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            tracing::warn!("told twice: ending at once");
            std::process::exit(1);
        }
    });
}

fn drain(running: Vec<Running>, limit: Duration) {
    let end = Instant::now() + limit;
    let stopped: Vec<_> = running
        .into_iter()
        .map(|shard| {
            // A shard that ended by itself needs no telling.
            let _ = shard.stop.send(());
            shard.stopped
        })
        .collect();
    for stopped in stopped {
        let left = end.saturating_duration_since(Instant::now());
        if let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(left) {
            tracing::warn!("requests still under way after {limit:?} are cut off");
        }
    }
}

/// Tells whoever started the server what to do next.
fn announce(
    plan: &Plan,
    address: SocketAddr,
    data_dir: &Path,
    root: &RootCredentials,
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
    let region = &plan.options.region;
    let keys = plan.keys.describe();
    let text = format!(
        "Strongroom {}\n\n  Store        {}\n  Endpoint     {endpoint}\n  Credentials  {credentials}\n  Certificate  {certificate}\n  Region       {region}\n  Keys         {keys}\n  Kernels      {} (AES-256-GCM), {} (MD5)\n\n\
         Try:\n  {aws}aws --endpoint-url {endpoint} --region {region} s3 mb s3://first-bucket\n\nready\n",
        env!("CARGO_PKG_VERSION"),
        data_dir.display(),
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
