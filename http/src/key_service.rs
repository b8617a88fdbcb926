//! Which key service stands behind this server: the embedded keystore, a static key, or KES servers.
//!
//! - [`KeyService::open`] reads the variables and refuses what is contradictory. It asks nobody: a server starts while its KES
//!   is down, and what needs a key says so.
//! - Each core has [`Keys`] of its own, and looks after them by [`KeyService::tend`]. Core 0 does so for what all share: it
//!   asks for keys in use again, and whether KES answers, which the health routes tell.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use strongroom_kms::{
    CacheLimits, Endpoint, Error, Kes, KesClient, KeyProblem, Keys, KeysOptions, Kms, Outage,
    Remote, StaticKey,
};

use crate::config::parse_duration;
use crate::kes::tls::Trusted;
use crate::kes::{Connections, KesTls};
use crate::limits;

/// What the operator says of the key service.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Key service")]
pub struct Options {
    /// What becomes of reads while KES cannot be reached: `fail`, when the time of cached data keys is over, or
    /// `reads-from-cache:MINUTES` (or 90s, 2h) of going on with what was read before; writes always fail
    #[arg(long, env = "STRONGROOM_KMS_OUTAGE", default_value = "fail", value_parser = parse_outage)]
    pub kms_outage: KmsOutage,

    /// How long a request waits for KES, before it fails with 503
    #[arg(long, env = "STRONGROOM_KMS_TIMEOUT", default_value = "5s", value_parser = parse_positive)]
    pub kms_timeout: Duration,

    /// How long a data key from KES is used before KES is asked again; what is deleted or forbidden there takes effect here
    /// within this time, on downloads and uploads under way too
    #[arg(long, env = "STRONGROOM_KMS_CACHE_USED", default_value = "5m", value_parser = parse_a_second)]
    pub kms_cache_used: Duration,

    /// How long a data key from KES is kept that nobody asks for
    #[arg(long, env = "STRONGROOM_KMS_CACHE_UNUSED", default_value = "30s", value_parser = parse_duration)]
    pub kms_cache_unused: Duration,

    /// Data keys from KES that each core keeps; 0 keeps none
    #[arg(long, env = "STRONGROOM_KMS_CACHE_ENTRIES", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub kms_cache_entries: u32,

    /// How long new objects of a bucket with a bucket key take their keys from one call of the key service
    #[arg(long, env = "STRONGROOM_KMS_BUCKET_KEY_INTERVAL", default_value = "5m", value_parser = parse_duration)]
    pub kms_bucket_key_interval: Duration,
}

/// What becomes of reads while KES cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KmsOutage {
    Fail,
    ReadsFromCache(Duration),
}

impl Default for Options {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            options: Options,
        }
        <Alone as clap::Parser>::parse_from(["strongroom"]).options
    }
}

impl Options {
    fn keys(&self) -> KeysOptions {
        KeysOptions {
            cache: CacheLimits {
                entries: self.kms_cache_entries as usize,
                used: self.kms_cache_used,
                unused: self.kms_cache_unused,
                offline: match self.kms_outage {
                    KmsOutage::Fail => Duration::ZERO,
                    KmsOutage::ReadsFromCache(time) => time,
                },
            },
            bucket_key_interval: self.kms_bucket_key_interval,
            timeout: self.kms_timeout,
        }
    }
}

fn parse_outage(text: &str) -> Result<KmsOutage, String> {
    let Some(time) = text.strip_prefix("reads-from-cache:") else {
        return match text {
            "fail" => Ok(KmsOutage::Fail),
            _ => Err("either fail, or reads-from-cache:MINUTES".to_owned()),
        };
    };
    let minutes = time.bytes().all(|b| b.is_ascii_digit());
    let time = match minutes {
        true => parse_positive(&format!("{time}m"))?,
        false => parse_positive(time)?,
    };
    Ok(KmsOutage::ReadsFromCache(time))
}

fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("has to be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

/// A key that is in use has to be confirmed within the time, which takes some.
fn parse_a_second(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time < Duration::from_secs(1) => Err(
            "has to be 1s or longer (--kms-cache-entries 0 keeps no data key at all)".to_owned(),
        ),
        time => Ok(time),
    }
}

/// The key service of this process.
pub struct KeyService {
    kms: Arc<Kms>,
    kes: Option<KesServers>,
    options: KeysOptions,
    words: String,
    state: AtomicU8,
    /// Whether the default key is made if KES does not have it: while the store is new and KES never had it, nothing can
    /// be sealed under it.
    may_make_key: AtomicBool,
}

struct KesServers {
    endpoints: Vec<Endpoint>,
    default_key: String,
    tls: Arc<KesTls>,
}

/// What is known of KES.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Unknown,
    Good,
    NoDefaultKey,
    Unreachable,
}

impl KeyService {
    /// Reads which key service is configured. `certs_dir` is the server's own.
    pub fn open(
        options: &Options,
        certs_dir: &Path,
        kms: Arc<Kms>,
        new_store: bool,
    ) -> Result<Self, String> {
        let (kes, words) = match Remote::from_variables(variable).map_err(|e| e.to_string())? {
            None => (None, "embedded keystore".to_owned()),
            Some(Remote::Static(key)) => {
                // Not kept but read again: a seal must leave no copy behind.
                kms.set_static_key(read_static_key)
                    .map_err(|e| e.to_string())?;
                (None, format!("static key {}", key.name()))
            }
            Some(Remote::Kes(settings)) => {
                let trusted = match settings.ca_path {
                    Some(path) => Trusted::Path(path),
                    None => Trusted::System {
                        own: certs_dir.join("CAs"),
                    },
                };
                let tls = KesTls::open(settings.credentials, trusted)
                    .map_err(|e| format!("cannot connect to KES servers: {e}"))?;
                let endpoints: Vec<String> =
                    settings.endpoints.iter().map(Endpoint::authority).collect();
                let words = format!(
                    "key {} of KES at {}",
                    settings.default_key,
                    endpoints.join(", ")
                );
                let servers = KesServers {
                    endpoints: settings.endpoints,
                    default_key: settings.default_key,
                    tls: Arc::new(tls),
                };
                (Some(servers), words)
            }
        };
        Ok(Self {
            kms,
            kes,
            options: options.keys(),
            words,
            state: AtomicU8::new(State::Unknown as u8),
            may_make_key: AtomicBool::new(new_store),
        })
    }

    /// The data keys of one core; to be called on it.
    pub fn keys(&self) -> Keys {
        let kes = self.kes.as_ref().map(|servers| {
            let connections = Connections::new(Arc::clone(&servers.tls), &servers.endpoints);
            Kes {
                client: KesClient::new(Rc::new(connections), servers.endpoints.clone()),
                default_key: servers.default_key.clone(),
            }
        });
        Keys::new(Arc::clone(&self.kms), kes, self.options)
    }

    /// The keystore.
    pub fn kms(&self) -> &Arc<Kms> {
        &self.kms
    }

    /// Whether new data keys come from KES.
    pub fn is_at_kes(&self) -> bool {
        self.kes.is_some()
    }

    /// The state of keys in a word, for the health routes.
    pub fn word(&self) -> &'static str {
        match self.kms.outage() {
            Some(Outage::Sealed) => return "sealed",
            Some(Outage::Lost(_)) => return "lost",
            Some(Outage::Unreachable(_)) | None => {}
        }
        match (&self.kes, self.state()) {
            (None, _) | (_, State::Good) => "ok",
            (_, State::Unknown) => "unknown",
            (_, State::NoDefaultKey) => "no-default-key",
            (_, State::Unreachable) => "unreachable",
        }
    }

    /// The key service in some words, for who starts the server.
    pub fn describe(&self) -> &str {
        &self.words
    }

    /// Takes up changed certificates for as long as the process lives.
    pub fn watch_certificates(&self) {
        let Some(servers) = &self.kes else {
            return;
        };
        let tls = Arc::clone(&servers.tls);
        let spawned = std::thread::Builder::new()
            .name("kes-certificates".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(limits::CERTIFICATE_POLL);
                    tls.refresh();
                }
            });
        if let Err(e) = spawned {
            tracing::warn!("certificates for KES will not be reloaded: {e}");
        }
    }

    /// Looks after the keys of a core for as long as it runs.
    pub async fn tend(&self, keys: &Keys, core: usize) {
        let pause = keys.poll_interval();
        let sweep = async {
            loop {
                glommio::timer::sleep(pause).await;
                keys.sweep();
            }
        };
        if core != 0 || self.kes.is_none() {
            return sweep.await;
        }
        let renew = async {
            loop {
                glommio::timer::sleep(pause).await;
                keys.renew().await;
            }
        };
        let probe = async {
            loop {
                self.probe(keys).await;
                glommio::timer::sleep(limits::KES_PROBE_INTERVAL).await;
            }
        };
        futures_util::future::join3(sweep, renew, probe).await;
    }

    async fn probe(&self, keys: &Keys) {
        if self.kms.is_sealed() {
            return;
        }
        let mut answer = keys.probe().await;
        if is_missing(&answer)
            && self.may_make_key.swap(false, Ordering::Relaxed)
            && let Some(kes) = keys.kes()
        {
            let (name, deadline) = (keys.default_key(), Instant::now() + self.options.timeout);
            match kes.create_key(name, deadline).await {
                Ok(()) => tracing::info!(key = name, "made the default key at KES"),
                Err(e) => tracing::warn!(key = name, "cannot make the default key at KES: {e}"),
            }
            answer = keys.probe().await;
        }
        let before = self.state();
        let (now, reason) = match answer {
            Err(Error::Outage(Outage::Unreachable(why))) => (State::Unreachable, why),
            Err(Error::Outage(Outage::Sealed | Outage::Lost(_))) => return,
            answer if is_missing(&answer) => (State::NoDefaultKey, String::new()),
            // It answers, if only that this server may not describe keys.
            Ok(_) | Err(_) => (State::Good, String::new()),
        };
        if now == State::Good {
            self.may_make_key.store(false, Ordering::Relaxed);
        }
        self.state.store(now as u8, Ordering::Relaxed);
        let key = keys.default_key();
        match now {
            now if now == before => {}
            State::Unreachable => {
                tracing::warn!("KES cannot be reached: {reason}. What needs a key fails with 503.");
            }
            State::NoDefaultKey => tracing::warn!(
                key,
                "the default key does not exist at KES: make it there, or name another one by STRONGROOM_KMS_KES_KEY_NAME"
            ),
            State::Good | State::Unknown => tracing::info!("KES answers"),
        }
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            1 => State::Good,
            2 => State::NoDefaultKey,
            3 => State::Unreachable,
            _ => State::Unknown,
        }
    }
}

fn is_missing<T>(answer: &Result<T, Error>) -> bool {
    matches!(
        answer,
        Err(Error::KeyState {
            problem: KeyProblem::NotFound,
            ..
        })
    )
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn read_static_key() -> Result<StaticKey, Error> {
    match Remote::from_variables(variable)? {
        Some(Remote::Static(key)) => Ok(key),
        Some(Remote::Kes(_)) | None => Err(Error::Outage(Outage::Unreachable(
            "the static key is not configured any more".to_owned(),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_are_spelt_so() {
        let cached = |seconds| Ok(KmsOutage::ReadsFromCache(Duration::from_secs(seconds)));
        assert_eq!(parse_outage("fail"), Ok(KmsOutage::Fail));
        assert_eq!(parse_outage("reads-from-cache:30"), cached(1800));
        assert_eq!(parse_outage("reads-from-cache:30m"), cached(1800));
        assert_eq!(parse_outage("reads-from-cache:90s"), cached(90));
        for bad in [
            "",
            "Fail",
            "reads-from-cache",
            "reads-from-cache:",
            "reads-from-cache:0",
            "reads-from-cache:-1",
            "writes-from-cache:1",
        ] {
            assert!(parse_outage(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_library() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let cli: Cli = clap::Parser::parse_from(["x"]);
        assert_eq!(cli.options.keys(), KeysOptions::default());
    }
}
