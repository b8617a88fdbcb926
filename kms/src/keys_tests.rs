//! One core's data keys against a stand-in for KES: how often it is asked, and what is lost when.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::ciphertext::{self, Algorithm};
use crate::kes::client::{Connection as _, Request};
use crate::kes::stub::{Answer, Stub, json, now};
use crate::secret::Secret32;
use crate::{
    CacheLimits, Context, Deletion, Error, Kes, KeyProblem, Keys, KeysOptions, Kms, NewKey,
    OpenKey, Outage, RootKey, Source, StaticKey, StoredDataKey,
};

/// A KES of one key, `k`, whose standing the test sets.
struct Service {
    stub: Rc<Stub>,
    mode: Rc<Cell<Mode>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Up,
    Down,
    NoSuchKey,
    ReadOnly,
    Replaced,
}

impl Service {
    fn new() -> Self {
        let mode = Rc::new(Cell::new(Mode::Up));
        let stub = Stub::new({
            let mode = Rc::clone(&mode);
            move |_, request| answer(mode.get(), request)
        });
        Self { stub, mode }
    }

    fn calls(&self) -> usize {
        self.stub.sent.borrow().len()
    }

    fn pass(&self, seconds: u64) {
        self.stub
            .passed
            .set(self.stub.passed.get() + Duration::from_secs(seconds));
    }
}

fn answer(mode: Mode, request: &Request) -> Answer {
    let key = Secret32::new(&[if mode == Mode::Replaced { 43 } else { 42 }; 32]);
    let body: serde_json::Value = serde_json::from_slice(request.body.as_ref().unwrap()).unwrap();
    let bytes = |field: &str| {
        STANDARD
            .decode(body[field].as_str().unwrap_or_default())
            .unwrap()
    };
    let generate = match request.path.as_str() {
        "/v1/key/generate/k" => true,
        "/v1/key/decrypt/k" => false,
        _ => return json(404, "{\"message\":\"key does not exist\"}"),
    };
    match mode {
        Mode::Up | Mode::Replaced => {}
        Mode::ReadOnly if !generate => {}
        Mode::ReadOnly => {
            return json(
                403,
                "{\"message\":\"not authorized: insufficient permissions\"}",
            );
        }
        Mode::Down => return Err("connection refused"),
        Mode::NoSuchKey => return json(404, "{\"message\":\"key does not exist\"}"),
    }
    if generate {
        let plain: [u8; 32] = crate::random::array();
        let sealed = ciphertext::seal(&key, Algorithm::Aes256, &plain, &bytes("context"));
        let (plain, sealed) = (STANDARD.encode(plain), STANDARD.encode(sealed));
        return json(
            200,
            &format!("{{\"plaintext\":\"{plain}\",\"ciphertext\":\"{sealed}\"}}"),
        );
    }
    match ciphertext::open(
        &key,
        Algorithm::Aes256,
        &bytes("ciphertext"),
        &bytes("context"),
    ) {
        Some(plain) => json(
            200,
            &format!("{{\"plaintext\":\"{}\"}}", STANDARD.encode(&*plain)),
        ),
        None => json(
            400,
            "{\"message\":\"decryption failed: ciphertext is not authentic\"}",
        ),
    }
}

const STATIC_KEY: &str = "my-key:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=";

struct House {
    _dir: TempDir,
    root: RootKey,
    kms: Arc<Kms>,
    service: Service,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::generate();
        let kms = Arc::new(Kms::open(dir.path(), root.clone()).ok().unwrap());
        Self {
            _dir: dir,
            root,
            kms,
            service: Service::new(),
        }
    }

    /// A core that writes under KES.
    fn core(&self, options: KeysOptions) -> Keys {
        let stub = Rc::clone(&self.service.stub);
        let kes = Kes {
            client: stub.client(1),
            default_key: "k".to_owned(),
        };
        Keys::with_clock(
            Arc::clone(&self.kms),
            Some(kes),
            options,
            Box::new(move || stub.now()),
        )
    }

    /// A core that writes under a static key.
    fn static_core(&self) -> Keys {
        let read = || StaticKey::parse(STATIC_KEY, "X");
        self.kms.set_static_key(read).unwrap();
        self.local_core()
    }

    fn local_core(&self) -> Keys {
        Keys::new(Arc::clone(&self.kms), None, KeysOptions::default())
    }
}

fn context(path: &str) -> Context {
    Context::for_object(&BTreeMap::new(), "bucket", &format!("bucket/{path}"))
}

fn generate(core: &Keys, path: &str, bucket_key: bool) -> Result<NewKey, Error> {
    let name = core.default_key().to_owned();
    now(core.generate(&name, &context(path), bucket_key.then_some("bucket")))
}

fn stored(made: &NewKey) -> StoredDataKey<'_> {
    StoredDataKey {
        source: made.source,
        key: &made.key,
        version: made.version,
        ciphertext: &made.ciphertext,
        bucket_key: made.bucket_key,
    }
}

fn open(core: &Keys, made: &NewKey, path: &str) -> Result<OpenKey, Error> {
    now(core.open(&stored(made), &context(path), "bucket"))
}

fn problem<T>(outcome: &Result<T, Error>) -> Option<KeyProblem> {
    match outcome {
        Err(Error::KeyState { problem, .. }) => Some(*problem),
        _ => None,
    }
}

fn is_sealed<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Outage(Outage::Sealed)))
}

fn is_unreachable<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Outage(Outage::Unreachable(_))))
}

#[test]
fn ten_thousand_reads_of_one_object_are_one_call() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let made = generate(&core, "a", false).ok().unwrap();
    assert_eq!(house.service.calls(), 1);
    for _ in 0..10_000 {
        assert!(open(&core, &made, "a").ok().unwrap().plaintext == made.plaintext);
    }
    assert_eq!(house.service.calls(), 2);
    let stats = house.kms.stats();
    assert_eq!((stats.calls, stats.hits), (2, 9_999));
    // For half an hour of reads, a call each five minutes.
    for _ in 0..1800 {
        house.service.pass(1);
        assert!(open(&core, &made, "a").is_ok());
    }
    assert_eq!(house.service.calls(), 2 + 6);
}

#[test]
fn ten_thousand_writes_with_a_bucket_key_are_one_call() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let mut seen = std::collections::HashSet::new();
    let mut last = None;
    for n in 0..10_000 {
        let made = generate(&core, &n.to_string(), true).ok().unwrap();
        assert!(made.bucket_key && seen.insert(*made.plaintext.expose()));
        last = Some(made);
    }
    assert_eq!(house.service.calls(), 1);
    // The next interval takes another bucket key.
    house.service.pass(300);
    let next = generate(&core, "a", true).ok().unwrap();
    assert_eq!(house.service.calls(), 2);
    assert_ne!(
        next.ciphertext[32..],
        last.as_ref().unwrap().ciphertext[32..]
    );

    // Another core, after a restart say, opens any number of them with one call.
    let other = house.core(KeysOptions::default());
    for (made, path) in [(&next, "a"), (last.as_ref().unwrap(), "9999")] {
        for _ in 0..100 {
            assert!(open(&other, made, path).ok().unwrap().plaintext == made.plaintext);
        }
    }
    assert_eq!(house.service.calls(), 4);
}

#[test]
fn an_object_under_a_bucket_key_is_bound_to_its_context_and_bucket() {
    for core in [
        House::new().local_core(),
        House::new().core(KeysOptions::default()),
    ] {
        let made = generate(&core, "a", true).ok().unwrap();
        assert!(open(&core, &made, "a").ok().unwrap().plaintext == made.plaintext);
        // Another path gives another key, which opens nothing; another bucket gives none at all.
        assert!(open(&core, &made, "b").ok().unwrap().plaintext != made.plaintext);
        assert!(now(core.open(&stored(&made), &context("a"), "other")).is_err());
        let whole = StoredDataKey {
            bucket_key: false,
            ..stored(&made)
        };
        assert!(now(core.open(&whole, &context("a"), "bucket")).is_err());
        let short = StoredDataKey {
            ciphertext: &made.ciphertext[..31],
            ..stored(&made)
        };
        assert!(now(core.open(&short, &context("a"), "bucket")).is_err());
    }
}

#[test]
fn sources_open_what_they_sealed() {
    let house = House::new();
    let embedded = house.local_core();
    let from_embedded = generate(&embedded, "a", false).ok().unwrap();
    assert_eq!(
        (embedded.source(), from_embedded.version),
        (Source::Embedded, 1)
    );

    let with_static = house.static_core();
    assert_eq!(
        (with_static.source(), with_static.default_key()),
        (Source::Static, "my-key")
    );
    let from_static = generate(&with_static, "a", false).ok().unwrap();
    let under_bucket = generate(&with_static, "a", true).ok().unwrap();

    let with_kes = house.core(KeysOptions::default());
    let from_kes = generate(&with_kes, "a", false).ok().unwrap();
    for made in [&from_embedded, &from_static, &under_bucket, &from_kes] {
        assert!(open(&with_kes, made, "a").ok().unwrap().plaintext == made.plaintext);
        assert_eq!(Source::parse(made.source.as_str()), Some(made.source));
    }
    // No source stands in for another.
    assert!(is_unreachable(&open(&with_static, &from_kes, "a")));
    assert!(is_unreachable(&open(
        &House::new().local_core(),
        &from_static,
        "a"
    )));
    for (source, made) in [
        (Source::Static, &from_embedded),
        (Source::Embedded, &from_static),
    ] {
        let moved = StoredDataKey {
            source,
            ..stored(made)
        };
        let outcome = now(with_kes.open(&moved, &context("a"), "bucket"));
        assert_eq!(problem(&outcome), Some(KeyProblem::NotFound));
    }
    assert_eq!(
        problem(&now(with_static.generate("other", &context("a"), None))),
        Some(KeyProblem::NotFound)
    );
    assert_eq!(with_static.cached() + embedded.cached(), 0);
}

#[test]
fn an_outage_fails_closed() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let made = generate(&core, "a", false).ok().unwrap();
    let cold = generate(&core, "b", false).ok().unwrap();
    assert!(open(&core, &made, "a").is_ok());
    house.service.mode.set(Mode::Down);
    // What is cached lives out its time, and no longer.
    for _ in 0..14 {
        house.service.pass(20);
        assert!(open(&core, &made, "a").is_ok());
    }
    assert!(is_unreachable(&open(&core, &cold, "b")));
    assert!(is_unreachable(&generate(&core, "c", false)));
    house.service.pass(20);
    assert!(is_unreachable(&open(&core, &made, "a")));
    assert!(house.kms.stats().outages >= 3);
    house.service.mode.set(Mode::Up);
    assert!(open(&core, &made, "a").is_ok());
    assert!(generate(&core, "c", false).is_ok());
}

#[test]
fn an_outage_serves_reads_where_that_was_asked_for() {
    let house = House::new();
    let core = house.core(KeysOptions {
        cache: CacheLimits {
            offline: Duration::from_secs(3600),
            ..CacheLimits::default()
        },
        ..KeysOptions::default()
    });
    let made = generate(&core, "a", false).ok().unwrap();
    assert!(open(&core, &made, "a").is_ok());
    house.service.pass(1000);
    core.sweep();
    house.service.mode.set(Mode::Down);
    assert!(open(&core, &made, "a").ok().unwrap().plaintext == made.plaintext);
    assert_eq!(house.kms.stats().stale_hits, 1);
    assert!(is_unreachable(&generate(&core, "b", false)));
    // An answer is an answer: a key that is gone serves nothing.
    house.service.mode.set(Mode::NoSuchKey);
    assert_eq!(
        problem(&open(&core, &made, "a")),
        Some(KeyProblem::NotFound)
    );
    house.service.mode.set(Mode::Down);
    assert!(is_unreachable(&open(&core, &made, "a")));

    house.service.mode.set(Mode::Up);
    assert!(open(&core, &made, "a").is_ok());
    house.service.mode.set(Mode::Down);
    house.service.pass(3600);
    assert!(is_unreachable(&open(&core, &made, "a")));
}

#[test]
fn a_key_lost_at_the_service_is_lost_on_every_core() {
    let house = House::new();
    let (one, two) = (
        house.core(KeysOptions::default()),
        house.core(KeysOptions::default()),
    );
    let made = generate(&one, "a", false).ok().unwrap();
    let other = generate(&one, "b", false).ok().unwrap();
    let held = open(&two, &made, "a").ok().unwrap();
    house.service.mode.set(Mode::NoSuchKey);
    // The second core does not know yet.
    assert!(open(&two, &made, "a").is_ok());
    assert_eq!(
        problem(&open(&one, &other, "b")),
        Some(KeyProblem::NotFound)
    );
    assert_eq!(two.cached(), 0);
    assert_eq!(problem(&held.lease.check()), Some(KeyProblem::NotFound));
    assert_eq!(
        problem(&made.lease.hold().map(drop)),
        Some(KeyProblem::NotFound)
    );
    assert_eq!(problem(&open(&two, &made, "a")), Some(KeyProblem::NotFound));
    house.service.mode.set(Mode::Up);
    assert!(open(&two, &made, "a").is_ok());
    assert!(held.lease.check().is_ok());
}

#[test]
fn who_may_not_make_data_keys_may_still_open_them() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let made = generate(&core, "a", false).ok().unwrap();
    let held = open(&core, &made, "a").ok().unwrap();
    house.service.mode.set(Mode::ReadOnly);
    assert_eq!(
        problem(&generate(&core, "b", false)),
        Some(KeyProblem::NotAuthorized)
    );
    assert!(held.lease.check().is_ok());
    assert!(open(&core, &made, "a").is_ok());
}

/// A lease outlives its data key's time in the cache; the key is asked for again for it, once for all.
#[test]
fn keys_in_use_are_confirmed_in_time() {
    let house = House::new();
    let (core, other) = (
        house.core(KeysOptions::default()),
        house.core(KeysOptions::default()),
    );
    let made = generate(&core, "a", false).ok().unwrap();
    let streams: Vec<_> = (0..100)
        .map(|_| open(&other, &made, "a").ok().unwrap().lease)
        .collect();
    let calls = house.service.calls();
    let second = || {
        house.service.pass(1);
        core.sweep();
        other.sweep();
        now(core.renew());
    };
    for _ in 0..1000 {
        second();
        assert!(streams.iter().all(|lease| lease.check().is_ok()));
    }
    let asked = house.service.calls() - calls;
    assert!((3..=4).contains(&asked), "{asked}");
    // Lost elsewhere: known within the time that a data key is good for.
    house.service.mode.set(Mode::NoSuchKey);
    for _ in 0..300 {
        second();
    }
    for lease in &streams {
        assert_eq!(problem(&lease.check()), Some(KeyProblem::NotFound));
    }
    assert_eq!(
        problem(&made.lease.hold().map(drop)),
        Some(KeyProblem::NotFound)
    );
    drop((streams, made));
    second();
    let calls = house.service.calls();
    for _ in 0..1000 {
        second();
    }
    assert_eq!(house.service.calls(), calls, "nobody uses the key any more");
}

#[test]
fn what_cannot_be_confirmed_is_cut() {
    for offline in [0, 600] {
        let house = House::new();
        let core = house.core(KeysOptions {
            cache: CacheLimits {
                offline: Duration::from_secs(offline),
                ..CacheLimits::default()
            },
            bucket_key_interval: Duration::from_secs(3600),
            ..KeysOptions::default()
        });
        let made = generate(&core, "a", true).ok().unwrap();
        let read = open(&core, &made, "a").ok().unwrap().lease;
        house.service.mode.set(Mode::Down);
        // The clock goes on while the client waits, so it is read and not counted.
        let begun = house.service.stub.now();
        let until = |seconds: u64| {
            while house.service.stub.now() < begun + Duration::from_secs(seconds) {
                house.service.pass(1);
                core.sweep();
                now(core.renew());
            }
            core.sweep();
        };
        until(290);
        assert!(read.check().is_ok() && made.lease.hold().is_ok());
        until(310);
        assert_eq!(read.check().is_ok(), offline > 0);
        // Never a write, not even by a bucket key that is still in the cache.
        assert!(is_unreachable(&made.lease.hold().map(drop)));
        assert!(is_unreachable(&generate(&core, "b", true)));
        assert_eq!(open(&core, &made, "a").is_ok(), offline > 0);
        until(610);
        assert!(is_unreachable(&read.check()));
        assert!(is_unreachable(&open(&core, &made, "a")));
        house.service.mode.set(Mode::Up);
        assert!(open(&core, &made, "a").is_ok());
        assert!(read.check().is_ok() && made.lease.hold().is_ok());
    }
}

/// A key that was deleted and made again under its name elsewhere is another key.
#[test]
fn a_key_replaced_elsewhere_is_lost() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let made = generate(&core, "a", false).ok().unwrap();
    let read = open(&core, &made, "a").ok().unwrap().lease;
    house.service.mode.set(Mode::Replaced);
    house.service.pass(299);
    now(core.renew());
    assert_eq!(problem(&read.check()), Some(KeyProblem::Destroyed));
    assert_eq!(core.cached(), 0);
    let next = generate(&core, "b", false).ok().unwrap();
    assert!(next.lease.hold().is_ok() && open(&core, &next, "b").is_ok());
    assert!(read.check().is_err());
}

#[test]
fn who_may_only_write_is_confirmed_by_writing() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let made = generate(&core, "a", false).ok().unwrap();
    house.service.pass(299);
    now(core.renew());
    assert_eq!(house.service.calls(), 2);
    assert!(made.lease.hold().is_ok());
    house.service.mode.set(Mode::ReadOnly);
    house.service.pass(299);
    now(core.renew());
    assert_eq!(
        problem(&made.lease.hold().map(drop)),
        Some(KeyProblem::NotAuthorized)
    );
}

#[test]
fn names_that_clients_make_up_are_not_kept() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    for n in 0..100 {
        let outcome = now(core.generate(&format!("no-{n}"), &context("a"), None));
        assert_eq!(problem(&outcome), Some(KeyProblem::NotFound));
    }
    now(core.renew());
    assert_eq!(house.kms.remote_leases.len(), 0);
    // Beside a static key nobody renews.
    let core = house.static_core();
    for n in 0..100 {
        let outcome = now(core.generate(&format!("no-{n}"), &context("a"), None));
        assert_eq!(problem(&outcome), Some(KeyProblem::NotFound));
    }
    assert_eq!(house.kms.remote_leases.len(), 0);
}

#[test]
fn a_static_key_leaves_with_the_seal_and_comes_back() {
    let house = House::new();
    let present = Arc::new(AtomicBool::new(true));
    house
        .kms
        .set_static_key({
            let present = Arc::clone(&present);
            move || match present.load(Ordering::SeqCst) {
                true => StaticKey::parse(STATIC_KEY, "X"),
                false => Err(Error::unreachable("the file is not there")),
            }
        })
        .unwrap();
    let core = house.local_core();
    let made = generate(&core, "a", false).ok().unwrap();
    house.kms.seal().unwrap();
    assert!(is_sealed(&open(&core, &made, "a")));
    // A core of a server that starts sealed writes under the static key nevertheless.
    let early = house.local_core();
    assert_eq!(
        (early.source(), early.default_key()),
        (Source::Static, "my-key")
    );
    house.kms.unseal(&house.root).unwrap();
    assert!(open(&core, &made, "a").is_ok() && open(&early, &made, "a").is_ok());

    house.kms.seal().unwrap();
    present.store(false, Ordering::SeqCst);
    assert!(is_unreachable(&house.kms.unseal(&house.root)));
    assert!(is_unreachable(&open(&core, &made, "a")));
    present.store(true, Ordering::SeqCst);
    house.kms.unseal(&house.root).unwrap();
    assert!(open(&core, &made, "a").is_ok());
}

/// The answer of a call that was under way when the service was sealed is thrown away.
#[test]
fn a_seal_catches_calls_under_way() {
    let house = House::new();
    let core = house.core(KeysOptions::default());
    let made = generate(&core, "a", false).ok().unwrap();
    let kms = Arc::clone(&house.kms);
    *house.service.stub.answer.borrow_mut() = Box::new(move |_, request| {
        let reply = answer(Mode::Up, request);
        kms.seal().unwrap();
        reply
    });
    assert!(is_sealed(&open(&core, &made, "a")));
    assert_eq!(core.cached(), 0);
    house.kms.unseal(&house.root).unwrap();
    assert!(is_sealed(&generate(&core, "b", true)));
    assert_eq!(core.cached(), 0);
    house.kms.unseal(&house.root).unwrap();
    assert!(is_sealed(&generate(&core, "b", false)));
}

#[test]
fn bucket_keys_follow_their_key() {
    let house = House::new();
    let core = house.local_core();
    house.kms.create_key("t").unwrap();
    let make = || now(core.generate("t", &context("a"), Some("bucket")));
    let first = make().ok().unwrap();
    assert_eq!(
        first.ciphertext[32..],
        make().ok().unwrap().ciphertext[32..]
    );
    house.kms.rotate_key("t").unwrap();
    let second = make().ok().unwrap();
    assert_eq!((first.version, second.version), (1, 2));
    assert!(open(&core, &first, "a").ok().unwrap().plaintext == first.plaintext);
    house.kms.disable_key("t").unwrap();
    assert_eq!(problem(&make()), Some(KeyProblem::Disabled));
    house.kms.enable_key("t").unwrap();
    assert!(make().is_ok());
    house.kms.delete_key("t", Deletion::Now).unwrap();
    assert_eq!(problem(&make()), Some(KeyProblem::Destroyed));
    house.kms.create_key("t").unwrap();
    assert_eq!(make().ok().unwrap().version, 3);
    assert_eq!(
        problem(&open(&core, &first, "a")),
        Some(KeyProblem::Destroyed)
    );
}
