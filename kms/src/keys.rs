//! The data keys of one core: one face for the embedded keystore, a static key and KES servers.
//!
//! - New data keys come from the one source that is configured for writing; stored ones are opened by
//!   the source their record names. There is no going from one source to another.
//! - KES answers are cached, one flight for all who ask at once. The other two sources open a data key in
//!   microseconds, so keeping it in clear would only be a risk.
//! - A bucket key is a data key of a whole bucket: one call per bucket and interval, and each object's key
//!   derived from it. See `FORMAT.md`.
//! - What a service elsewhere takes away takes effect within `used`: a data key is asked for again by then,
//!   and where streams go on for longer, [`Keys::renew`] asks for them, see [`crate::confirm`].

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::cache::{BucketId, BucketKey, Cache, CacheLimits, Found, Id};
use crate::confirm::Question;
use crate::error::{Error, KeyProblem, Outage, Place};
use crate::flight::Flights;
use crate::kes::client::{KesClient, KesKey};
use crate::lease::{KeyLease, Standing};
use crate::random;
use crate::seal;
use crate::secret::DataKey;
use crate::{Context, Kms};

/// Who holds the key that a data key is sealed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Source {
    Embedded = 1,
    Static = 2,
    Kes = 3,
}

impl Source {
    /// The word that records hold.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Static => "static",
            Self::Kes => "kes",
        }
    }

    /// Reads the word that records hold.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Embedded, Self::Static, Self::Kes]
            .into_iter()
            .find(|source| source.as_str() == word)
    }
}

/// How one core's data keys are kept and fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeysOptions {
    pub cache: CacheLimits,
    /// How long objects of a bucket take their keys from one bucket key.
    pub bucket_key_interval: Duration,
    /// How long a request waits for a key service.
    pub timeout: Duration,
}

impl Default for KeysOptions {
    fn default() -> Self {
        Self {
            cache: CacheLimits::default(),
            bucket_key_interval: Duration::from_secs(300),
            timeout: Duration::from_secs(5),
        }
    }
}

/// KES servers, and the key for whatever names none.
pub struct Kes {
    pub client: KesClient,
    pub default_key: String,
}

/// A new data key with all that its record has to hold.
pub struct NewKey {
    pub source: Source,
    pub key: String,
    /// 0 where the source has no versions, or does not tell.
    pub version: u32,
    pub ciphertext: Vec<u8>,
    /// Whether it is derived from a bucket key.
    pub bucket_key: bool,
    pub plaintext: DataKey,
    pub lease: KeyLease,
}

/// A stored data key, as its record holds it.
#[derive(Clone, Copy)]
pub struct StoredDataKey<'a> {
    pub source: Source,
    pub key: &'a str,
    pub version: u32,
    pub ciphertext: &'a [u8],
    pub bucket_key: bool,
}

/// A data key in clear, and what tells whether it may still be used.
pub struct OpenKey {
    pub plaintext: DataKey,
    pub lease: KeyLease,
}

/// The data keys of one core.
pub struct Keys {
    kms: Arc<Kms>,
    kes: Option<Kes>,
    writes: Source,
    default_key: String,
    options: KeysOptions,
    cache: Arc<Mutex<Cache>>,
    opening: Flights<Id>,
    making: Flights<BucketId>,
    clock: Box<dyn Fn() -> Instant>,
}

/// What a data key is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// What derives an object's data key from a bucket key.
const PURPOSE_BUCKET_KEY: &[u8] = b"strongroom bucket key v1";
const SALT: usize = 32;
/// A key is asked for again early enough for an answer: the timeout, and this for the time between two
/// looks.
const RENEW_MARGIN: Duration = Duration::from_secs(2);
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(1);

impl Keys {
    /// The keys of one core. New ones come from KES if that is given, else from the static key that `kms`
    /// was given, else from its keystore.
    #[must_use]
    pub fn new(kms: Arc<Kms>, kes: Option<Kes>, options: KeysOptions) -> Keys {
        Self::with_clock(kms, kes, options, Box::new(Instant::now))
    }

    /// The keys of the embedded keystore alone, whichever service new objects are sealed under.
    #[must_use]
    pub fn of_keystore(kms: Arc<Kms>, options: KeysOptions) -> Keys {
        let default_key = kms.default_key().to_owned();
        Keys {
            writes: Source::Embedded,
            default_key,
            ..Self::new(kms, None, options)
        }
    }

    pub(crate) fn with_clock(
        kms: Arc<Kms>,
        kes: Option<Kes>,
        options: KeysOptions,
        clock: Box<dyn Fn() -> Instant>,
    ) -> Keys {
        let (writes, default_key) = match (&kes, kms.static_key_name()) {
            (Some(kes), _) => (Source::Kes, kes.default_key.clone()),
            (None, Some(name)) => (Source::Static, name),
            (None, None) => (Source::Embedded, kms.default_key().to_owned()),
        };
        let cache = Arc::new(Mutex::new(Cache::new(match kes {
            Some(_) => options.cache,
            // Nothing else is ever cached.
            None => CacheLimits {
                entries: 0,
                ..options.cache
            },
        })));
        kms.register(&cache);
        Keys {
            kms,
            kes,
            writes,
            default_key,
            options,
            cache,
            opening: Flights::default(),
            making: Flights::default(),
            clock,
        }
    }

    /// Where new data keys come from.
    #[must_use]
    pub fn source(&self) -> Source {
        self.writes
    }

    /// The key for whatever names none.
    #[must_use]
    pub fn default_key(&self) -> &str {
        &self.default_key
    }

    /// How long a request waits for a key service.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.options.timeout
    }

    /// The KES client of this core, if there is one.
    #[must_use]
    pub fn kes(&self) -> Option<&KesClient> {
        self.kes.as_ref().map(|kes| &kes.client)
    }

    /// A fresh data key for an object, under `name` and bound to `context`.
    ///
    /// With `bucket` given it is derived from that bucket's key, and only the first one in an interval
    /// costs a call.
    pub async fn generate(
        &self,
        name: &str,
        context: &Context,
        bucket: Option<&str>,
    ) -> Result<NewKey, Error> {
        let canonical = context.canonical();
        let Some(bucket) = bucket else {
            return self.generate_at_source(name, &canonical).await;
        };
        let (id, bucket_context) = (
            (self.writes, name.to_owned(), bucket.to_owned()),
            bucket_context(bucket),
        );
        let now = (self.clock)();
        let (bucket_key, open) = self
            .making
            .get(
                &id,
                || {
                    let held = self.cache().bucket_key(&id)?.clone();
                    let age = now.saturating_duration_since(held.made);
                    (age < self.options.bucket_key_interval).then_some((held, None))
                },
                || async {
                    let made = self.generate_at_source(name, &bucket_context).await?;
                    let held = BucketKey {
                        version: made.version,
                        ciphertext: made.ciphertext,
                        made: now,
                    };
                    let mut cache = self.cache();
                    if made.lease.check().is_ok() {
                        cache.put_bucket_key(id.clone(), held.clone());
                    }
                    if self.writes == Source::Kes {
                        let id = Id::new(
                            self.writes,
                            name,
                            held.version,
                            &held.ciphertext,
                            &bucket_context,
                        );
                        cache.put(id, name, &made.plaintext, &made.lease, now);
                    }
                    let open = OpenKey {
                        plaintext: made.plaintext,
                        lease: made.lease,
                    };
                    Ok((held, Some(open)))
                },
            )
            .await?;
        let open = match open {
            Some(open) => open,
            None => {
                let sealed = StoredDataKey {
                    source: self.writes,
                    key: name,
                    version: bucket_key.version,
                    ciphertext: &bucket_key.ciphertext,
                    bucket_key: false,
                };
                self.open_at_source(&sealed, &bucket_context, Use::Write)
                    .await?
            }
        };
        let salt: [u8; SALT] = random::array();
        let mut ciphertext = salt.to_vec();
        ciphertext.extend_from_slice(&bucket_key.ciphertext);
        Ok(NewKey {
            source: self.writes,
            key: name.to_owned(),
            version: bucket_key.version,
            ciphertext,
            bucket_key: true,
            plaintext: derive_from_bucket_key(&open.plaintext, &salt, &canonical),
            lease: open.lease,
        })
    }

    /// Opens an object's data key. `bucket` is the object's.
    pub async fn open(
        &self,
        stored: &StoredDataKey<'_>,
        context: &Context,
        bucket: &str,
    ) -> Result<OpenKey, Error> {
        let canonical = context.canonical();
        if !stored.bucket_key {
            return self.open_at_source(stored, &canonical, Use::Read).await;
        }
        let (salt, ciphertext) = stored
            .ciphertext
            .split_first_chunk::<SALT>()
            .ok_or_else(|| Error::Corrupt(Place::DataKey(stored.key.to_owned())))?;
        let sealed = StoredDataKey {
            ciphertext,
            ..*stored
        };
        let open = self
            .open_at_source(&sealed, &bucket_context(bucket), Use::Read)
            .await?;
        Ok(OpenKey {
            plaintext: derive_from_bucket_key(&open.plaintext, salt, &canonical),
            lease: open.lease,
        })
    }

    /// How often [`Keys::sweep`] and [`Keys::renew`] are to be called.
    #[must_use]
    pub fn poll_interval(&self) -> Duration {
        (self.options.cache.used / 8).clamp(POLL_MIN, POLL_MAX)
    }

    /// Forgets the data keys whose time is over, and what was not confirmed in time; called now and then on
    /// every core.
    pub fn sweep(&self) {
        let now = (self.clock)();
        self.cache().sweep(now);
        let standing = match self.may_read_stale() {
            true => Standing::Stale,
            false => Standing::Unconfirmed,
        };
        let (kms, used) = (&self.kms, self.options.cache.used);
        kms.confirmations.older_than(used, now, |name, _| {
            kms.remote_leases.note(name, Source::Kes as u32, standing);
        });
    }

    /// Asks KES again for the keys in use that it has not confirmed for long; called now and then on one
    /// core.
    pub async fn renew(&self) {
        let (kms, used) = (&self.kms, self.options.cache.used);
        kms.remote_leases.prune();
        kms.confirmations
            .retain(|name| kms.remote_leases.is_in_use(name, Source::Kes as u32));
        let early = (used / 2).min(self.options.timeout + RENEW_MARGIN);
        let mut due = Vec::new();
        kms.confirmations
            .older_than(used - early, (self.clock)(), |name, by| {
                due.push((name.to_owned(), by.clone()));
            });
        for (name, question) in due {
            if kms.is_sealed() {
                return;
            }
            match self.ask_again(&name, question).await {
                // The service is away, for the other keys too.
                Err(Error::Outage(_)) => return,
                // What it opened once it must open again: this is another key of the same name.
                Err(Error::Corrupt(_)) => {
                    kms.remote_leases.retire(&name, Source::Kes as u32);
                    kms.confirmations.forget(&name);
                    kms.flush(Some(&name));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Asks KES about the key for whatever names none: whether it answers, and whether it has that key.
    pub async fn probe(&self) -> Result<KesKey, Error> {
        let deadline = self.deadline();
        let answer = self
            .kes_client()?
            .describe_key(&self.default_key, deadline)
            .await;
        self.note_answer(&answer);
        answer
    }

    /// Data keys in memory.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cache().len()
    }

    pub(crate) async fn generate_at_source(
        &self,
        name: &str,
        context: &[u8],
    ) -> Result<NewKey, Error> {
        match self.writes {
            Source::Embedded => {
                let made = self.kms.generate_embedded(name, context)?;
                Ok(NewKey {
                    source: Source::Embedded,
                    key: made.key,
                    version: made.version,
                    ciphertext: made.ciphertext,
                    bucket_key: false,
                    plaintext: made.plaintext,
                    lease: made.lease,
                })
            }
            Source::Static => {
                let (plaintext, ciphertext, lease) = self
                    .kms
                    .with_static_key(name, |key| Ok(key.generate(context)))
                    .map(|((plain, sealed), lease)| (plain, sealed, lease))?;
                Ok(self.new_remote(name, plaintext, ciphertext, lease))
            }
            Source::Kes => {
                let lease = self.kms.remote_lease(Source::Kes, name)?;
                let (plaintext, ciphertext) = self.generate_at_kes(name, context).await?;
                lease.check()?;
                Ok(self.new_remote(name, plaintext, ciphertext, lease))
            }
        }
    }

    fn new_remote(
        &self,
        name: &str,
        plaintext: DataKey,
        ciphertext: Vec<u8>,
        lease: KeyLease,
    ) -> NewKey {
        NewKey {
            source: self.writes,
            key: name.to_owned(),
            version: 0,
            ciphertext,
            bucket_key: false,
            plaintext,
            lease,
        }
    }

    pub(crate) async fn open_at_source(
        &self,
        stored: &StoredDataKey<'_>,
        context: &[u8],
        to: Use,
    ) -> Result<OpenKey, Error> {
        let (name, ciphertext) = (stored.key, stored.ciphertext);
        match stored.source {
            Source::Embedded => {
                let opened = self
                    .kms
                    .open_embedded(name, stored.version, ciphertext, context)?;
                Ok(OpenKey {
                    plaintext: opened.plaintext,
                    lease: opened.lease,
                })
            }
            Source::Static => {
                let (plaintext, lease) = self
                    .kms
                    .with_static_key(name, |key| key.open(ciphertext, context))?;
                Ok(OpenKey { plaintext, lease })
            }
            Source::Kes => {
                self.open_at_kes(name, stored.version, ciphertext, context, to)
                    .await
            }
        }
    }

    async fn open_at_kes(
        &self,
        name: &str,
        version: u32,
        ciphertext: &[u8],
        context: &[u8],
        to: Use,
    ) -> Result<OpenKey, Error> {
        let lease = self.kms.remote_lease(Source::Kes, name)?;
        let id = Id::new(Source::Kes, name, version, ciphertext, context);
        let mut stale = None;
        let stats = &self.kms.stats;
        let fetched = self
            .opening
            .get(
                &id,
                || match self.cache().get(&id, (self.clock)()) {
                    Found::Fresh(plaintext, lease) => {
                        stats.hits.fetch_add(1, Ordering::Relaxed);
                        Some(OpenKey { plaintext, lease })
                    }
                    Found::Stale(plaintext, lease) => {
                        stale = Some(OpenKey { plaintext, lease });
                        None
                    }
                    Found::Nothing => None,
                },
                || async {
                    let plaintext = self.decrypt_at_kes(name, ciphertext, context).await?;
                    lease.check()?;
                    let now = (self.clock)();
                    self.cache().put(id, name, &plaintext, &lease, now);
                    Ok(OpenKey { plaintext, lease })
                },
            )
            .await;
        match (fetched, stale) {
            // Only where the operator asked for it, and only for what was read before.
            (Err(Error::Outage(Outage::Unreachable(_))), Some(stale))
                if to == Use::Read && self.may_read_stale() && stale.lease.check().is_ok() =>
            {
                stats.stale_hits.fetch_add(1, Ordering::Relaxed);
                Ok(stale)
            }
            (fetched, _) => fetched,
        }
    }

    async fn generate_at_kes(
        &self,
        name: &str,
        context: &[u8],
    ) -> Result<(DataKey, Vec<u8>), Error> {
        let asked = (self.clock)();
        let client = self.kes_client()?;
        let answer = self
            .asked(client.generate(name, context, self.deadline()))
            .await;
        if answer.is_ok() {
            let context = context.to_vec();
            let question = Question::Generate { context };
            self.kms.confirmations.confirm(name, question, asked);
        }
        // A policy may forbid making data keys and allow opening them.
        if !matches!(
            answer,
            Err(Error::KeyState {
                problem: KeyProblem::NotAuthorized,
                ..
            })
        ) {
            self.note(name, &answer);
        }
        answer
    }

    async fn decrypt_at_kes(
        &self,
        name: &str,
        ciphertext: &[u8],
        context: &[u8],
    ) -> Result<DataKey, Error> {
        let asked = (self.clock)();
        let client = self.kes_client()?;
        let answer = self
            .asked(client.decrypt(name, ciphertext, context, self.deadline()))
            .await;
        if answer.is_ok() {
            let question = Question::Decrypt {
                ciphertext: ciphertext.to_vec(),
                context: context.to_vec(),
            };
            self.kms.confirmations.confirm(name, question, asked);
        }
        self.note(name, &answer);
        answer
    }

    async fn ask_again(&self, name: &str, question: Question) -> Result<(), Error> {
        match question {
            Question::Decrypt {
                ciphertext,
                context,
            } => {
                self.decrypt_at_kes(name, &ciphertext, &context).await?;
            }
            Question::Generate { context } => {
                let answer = self.generate_at_kes(name, &context).await;
                if let Err(Error::KeyState {
                    problem: KeyProblem::NotAuthorized,
                    ..
                }) = answer
                {
                    // Nothing was ever opened under it, so nothing else can say that it may be used.
                    self.note(name, &answer);
                }
                answer?;
            }
        }
        Ok(())
    }

    /// Whether reads may go on without KES now: only if that was asked for, and for so long.
    fn may_read_stale(&self) -> bool {
        let now = (self.clock)();
        self.kms
            .confirmations
            .last_answer()
            .is_some_and(|at| now.saturating_duration_since(at) < self.options.cache.offline)
    }

    fn note_answer<T>(&self, answer: &Result<T, Error>) {
        if !matches!(answer, Err(Error::Outage(_))) {
            self.kms.confirmations.note_answer((self.clock)());
        }
    }

    /// Counts a call of the key service.
    async fn asked<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let stats = &self.kms.stats;
        stats.calls.fetch_add(1, Ordering::Relaxed);
        let answer = call.await;
        self.note_answer(&answer);
        if matches!(answer, Err(Error::Outage(_))) {
            stats.outages.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// Lets an answer about a key count for every core: what KES took away is lost to all at once.
    fn note<T>(&self, name: &str, answer: &Result<T, Error>) {
        let standing = match answer {
            Ok(_) => Standing::Good,
            Err(Error::KeyState {
                problem: KeyProblem::NotFound,
                ..
            }) => Standing::NotFound,
            Err(Error::KeyState {
                problem: KeyProblem::NotAuthorized,
                ..
            }) => Standing::NotAuthorized,
            Err(_) => return,
        };
        if standing != Standing::Good {
            self.kms.confirmations.forget(name);
        }
        self.kms.note_remote(Source::Kes, name, standing);
    }

    fn kes_client(&self) -> Result<&KesClient, Error> {
        self.kes().ok_or_else(|| {
            Error::unreachable("the key is one of KES, and no KES server is configured")
        })
    }

    fn deadline(&self) -> Instant {
        (self.clock)() + self.options.timeout
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The context of a bucket's key: no object has it, for an object's path goes on behind the bucket.
fn bucket_context(bucket: &str) -> Vec<u8> {
    crate::context::canonical(&BTreeMap::from([(bucket.to_owned(), bucket.to_owned())]))
}

fn derive_from_bucket_key(bucket_key: &DataKey, salt: &[u8; SALT], context: &[u8]) -> DataKey {
    let context: [u8; 32] = Sha256::digest(context).into();
    let key = seal::hmac_sha256(bucket_key.expose(), &[PURPOSE_BUCKET_KEY, salt, &context]);
    let bytes = Zeroizing::new(*key.expose());
    DataKey::from_slice(&*bytes).expect("32 bytes")
}
