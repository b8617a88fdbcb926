//! `strongroom kms serve`: a key server that speaks KES's REST API and reads KES's own configuration file.
//!
//! The directory that the file names under `keystore.fs.path` is the data directory: it holds the keystore, and the root
//! key unless that is elsewhere. The order of a start: the file, the directory and its lock, keys, certificates, the port.
//! SIGHUP reads the file again; the address and the directory stay until a restart.

mod door;
mod service;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use rustls::ServerConfig;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use strongroom_kms::{Generated, KesConfig, KesServer, Kms, Outage};

use crate::admin::{self, Admin};
use crate::conn::rt::timeout;
use crate::conn::{self, Drain};
use crate::{config, limits, root_key, serve};
use door::Door;

/// Serves until told to stop.
pub fn run(file: &Path) -> Result<(), String> {
    serve::prepare_process();
    let config = read_config(file)?;
    let dirs = serve::lock(std::slice::from_ref(&config.keystore))?;
    let dir = dirs.first();
    let admin = Arc::new(Admin::new(&dirs.paths()));
    let socket = admin::serve(Arc::clone(&admin))
        .map_err(|e| format!("the admin socket in {}: {e}", dir.path().display()))?;
    let kms = Arc::new(open(dir.path(), &admin)?);
    let door = Door::open(&config)?;
    let threads = serve::shard_cores(None).len();
    let address = config::parse_address(&config.address)
        .map_err(|e| format!("address {:?}: {e}", config.address))?;
    let listeners = serve::bind(address, threads)
        .map_err(|e| format!("cannot listen on {address}: {e} (`address` names another one)"))?;
    let address = listeners[0].local_addr().map_err(|e| e.to_string())?;
    let told = Told::of(&config, address);
    let server = KesServer::new(Arc::clone(&kms), config).map_err(|e| e.to_string())?;
    let server = Arc::new(server);
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| e.to_string())?;
    let tls = door.server_config().map_err(|e| e.to_string())?;
    let running = listeners
        .into_iter()
        .map(|listener| start(listener, Arc::clone(&tls), Arc::clone(&server)))
        .collect::<Result<Vec<_>, _>>()?;
    admin.open(Arc::clone(&kms), admin::Store::None);
    serve::watch_deletions(Arc::clone(&kms));
    watch(Arc::clone(&door));
    announce(&told, dir.path(), &kms)?;
    wait(signals, file, &told, &server, &door);
    for thread in &running {
        // One that is gone needs no telling.
        let _ = thread.stop.unbounded_send(());
    }
    for thread in &running {
        let _ = thread.stopped.recv_timeout(limits::KEY_SERVER_DRAIN);
    }
    drop(socket);
    tracing::info!("closed");
    // Requests that outlived their time end with the process.
    std::process::exit(0);
}

fn read_config(file: &Path) -> Result<KesConfig, String> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        format!(
            "{}: {e} (`strongroom kms serve --help` shows what belongs in it)",
            file.display()
        )
    })?;
    KesConfig::parse(&text, |name| std::env::var(name).ok())
        .map_err(|e| format!("{}: {e}", file.display()))
}

/// Opens the keystore, or makes one.
fn open(dir: &Path, admin: &Admin) -> Result<Kms, String> {
    let in_clear = Kms::kes_keys(dir).map_err(|e| e.to_string())?;
    let place = dir.display();
    if !Kms::was_made(dir) {
        if let Some(first) = in_clear.first() {
            return Err(format!(
                "{place} holds {} keys of a KES keystore ({first}, …) that this server cannot use as they are: \
                 `strongroom kms import-kes {place} --data-dir {place}` takes them over",
                in_clear.len()
            ));
        }
        let (root, generated) = root_key::find_or_make(&[dir.to_owned()])?;
        let kms = Kms::open_bare(dir, root).map_err(|e| e.to_string())?;
        if generated == Generated::Yes {
            serve::warn_of_new_root_key(&[dir.to_owned()]);
        }
        return Ok(kms);
    }
    if !in_clear.is_empty() {
        tracing::warn!(
            "{place} still holds {} files of a KES keystore, with keys in clear: remove them once a backup is elsewhere",
            in_clear.len()
        );
    }
    let root = serve::root_key_or_wait(&[dir.to_owned()], admin, || ())?.ok_or("told to end")?;
    let kms = Kms::open_existing(dir, root).map_err(|e| e.to_string())?;
    if let Some(outage @ Outage::Lost(_)) = kms.outage() {
        tracing::error!("{outage}. Until then no key can be used");
    }
    Ok(kms)
}

/// A thread that serves.
struct Running {
    stop: futures_channel::mpsc::UnboundedSender<()>,
    stopped: mpsc::Receiver<()>,
}

fn start(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    server: Arc<KesServer>,
) -> Result<Running, String> {
    let (stop, mut stopping) = futures_channel::mpsc::unbounded();
    let (stopped_sender, stopped) = mpsc::channel();
    LocalExecutorBuilder::new(Placement::Unbound)
        .name("keys")
        .io_memory(limits::RING_MEMORY_BYTES)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(limits::HELPER_THREADS))
        .spawn(move || async move {
            let drain = Drain::new();
            let shard = conn::Shard {
                tls: Some(tls),
                drain: drain.clone(),
                make: move |peer| service::Connection::new(Arc::clone(&server), peer),
            };
            let told = drain.clone();
            glommio::spawn_local(async move {
                // A main thread that is gone means the same.
                let _ = futures_util::StreamExt::next(&mut stopping).await;
                told.begin();
            })
            .detach();
            conn::serve(listener, shard).await;
            timeout(limits::KEY_SERVER_DRAIN, drain.below(1)).await;
            strongroom_engine::end_blocking().await;
            let _ = stopped_sender.send(());
        })
        .map_err(|e| {
            format!("a thread cannot start: {e} (if memory cannot be locked, raise `ulimit -l`; if rings are forbidden, allow io_uring)")
        })?;
    Ok(Running { stop, stopped })
}

/// What a restart is needed for, and what the start tells.
struct Told {
    configured: String,
    keystore: PathBuf,
    address: SocketAddr,
    admin: String,
    certificate: PathBuf,
}

impl Told {
    fn of(config: &KesConfig, address: SocketAddr) -> Self {
        Self {
            configured: config.address.clone(),
            keystore: config.keystore.clone(),
            address,
            admin: config.admin().to_owned(),
            certificate: config.tls.certificate.clone(),
        }
    }
}

/// Waits for the end; on the way, reads the configuration again whenever told to.
fn wait(mut signals: Signals, file: &Path, told: &Told, server: &KesServer, door: &Door) {
    for signal in signals.forever() {
        if signal != SIGHUP {
            tracing::info!("signal {signal}: finishing what is under way");
            return;
        }
        match reload(file, told, server, door) {
            Ok(()) => tracing::info!("took the configuration in {}", file.display()),
            Err(reason) => tracing::error!("the configuration stays as it was: {reason}"),
        }
    }
}

fn reload(file: &Path, told: &Told, server: &KesServer, door: &Door) -> Result<(), String> {
    let config = read_config(file)?;
    if config.address != told.configured || config.keystore != told.keystore {
        tracing::warn!("another address or keystore takes a restart");
    }
    let change_door = door.change(&config)?;
    server.reload(config).map_err(|e| e.to_string())?;
    change_door();
    Ok(())
}

/// Takes renewed certificates for as long as the process lives.
fn watch(door: Arc<Door>) {
    let spawned = std::thread::Builder::new()
        .name("certificates".into())
        .spawn(move || {
            loop {
                std::thread::sleep(limits::KEY_SERVER_CERTIFICATE_POLL);
                if let Err(reason) = door.refresh() {
                    tracing::warn!("the certificates stay as they were: {reason}");
                }
            }
        });
    if let Err(e) = spawned {
        tracing::warn!("certificates will be reloaded on SIGHUP only: {e}");
    }
}

/// Tells whoever started the server what to do next.
fn announce(told: &Told, dir: &Path, kms: &Kms) -> Result<(), String> {
    let host = match told.address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let endpoint = format!("https://{host}:{}", told.address.port());
    let keys = match (kms.outage(), kms.list_keys("")) {
        (Some(outage), _) => format!("none: {outage}"),
        (None, Ok(keys)) => keys.len().to_string(),
        (None, Err(e)) => e.to_string(),
    };
    let text = format!(
        "Strongroom key server {}\n\n  Keystore     {}\n  Keys         {keys}\n  Endpoint     {endpoint}\n  Certificate  {}\n  Admin        {}\n\n\
         Point a store at it:\n  STRONGROOM_KMS_KES_ENDPOINT={endpoint} STRONGROOM_KMS_KES_KEY_NAME=my-key \\\n  \
         STRONGROOM_KMS_KES_CAPATH={} STRONGROOM_KMS_KES_API_KEY=kes:v1:… strongroom serve DATA_DIR\n\nready\n",
        env!("CARGO_PKG_VERSION"),
        dir.display(),
        told.certificate.display(),
        told.admin,
        told.certificate.display(),
    );
    serve::say(&text)
}
