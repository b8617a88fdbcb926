//! The key service as its callers see it: over restarts, seals, and keys that come and go.

use super::*;
use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context as Task, Poll, Waker};

/// The embedded keystore never waits, so its futures are ready at the first poll.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Task::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the embedded keystore waited"),
    }
}

fn context(path: &str) -> Context {
    Context::for_object(&BTreeMap::new(), "bucket", path)
}

#[test]
fn kms_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Kms>();
}

#[test]
fn data_keys_open_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    assert!(!Kms::exists(dir.path()));
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    assert!(Kms::exists(dir.path()));
    let made = now(kms.generate_data_key(kms.default_key(), &context("bucket/a")))
        .ok()
        .unwrap();
    assert_eq!((made.key.as_str(), made.version), (DEFAULT_KEY, 1));
    assert_eq!(made.ciphertext.len(), 76);
    drop(kms);
    let kms = Kms::open(dir.path(), root).ok().unwrap();
    for version in [0, 1] {
        let open =
            now(kms.decrypt_data_key(&made.key, version, &made.ciphertext, &context("bucket/a")));
        assert!(open.ok().unwrap() == made.plaintext);
    }
    assert!(matches!(
        now(kms.decrypt_data_key(&made.key, 1, &made.ciphertext, &context("bucket/b"))),
        Err(Error::Corrupt(Place::DataKey(_)))
    ));
    assert!(matches!(
        now(kms.decrypt_data_key(&made.key, 2, &made.ciphertext, &context("bucket/a"))),
        Err(Error::KeyState {
            problem: KeyProblem::Destroyed,
            ..
        })
    ));
}

/// Elsewhere a second create replaced the key, and every object under it was lost.
#[test]
fn create_twice_is_an_error_and_the_first_key_still_opens() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    let first = kms.create_key("tenant").unwrap();
    let made = now(kms.generate_data_key("tenant", &context("bucket/a")))
        .ok()
        .unwrap();
    for name in ["tenant", DEFAULT_KEY] {
        assert!(matches!(
            kms.create_key(name),
            Err(Error::Caller(Caller::KeyExists(_)))
        ));
    }
    for kms in [kms, Kms::open(dir.path(), root).ok().unwrap()] {
        assert_eq!(kms.describe_key("tenant").unwrap(), first);
        let open = now(kms.decrypt_data_key("tenant", 1, &made.ciphertext, &context("bucket/a")));
        assert!(open.ok().unwrap() == made.plaintext);
    }
}

#[test]
fn a_created_key_is_on_disk_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    kms.create_key("one").unwrap();
    // The first `Kms` is still alive: nothing waits for its drop.
    let other = Kms::open(dir.path(), root).ok().unwrap();
    assert_eq!(
        other.describe_key("one").unwrap(),
        kms.describe_key("one").unwrap()
    );
}

#[test]
fn list_and_describe() {
    let dir = tempfile::tempdir().unwrap();
    let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
    for name in ["b", "a1", "a2"] {
        kms.create_key(name).unwrap();
    }
    let names = |prefix: &str| -> Vec<String> {
        kms.list_keys(prefix)
            .unwrap()
            .into_iter()
            .map(|key| key.name)
            .collect()
    };
    assert_eq!(names(""), ["a1", "a2", "b", DEFAULT_KEY]);
    assert_eq!(names("a"), ["a1", "a2"]);
    assert!(names("zz").is_empty());
    let info = kms.describe_key("a1").unwrap();
    assert_eq!(
        (info.version, info.versions, info.state),
        (1, 1, KeyState::Enabled)
    );
    assert_eq!(info.algorithm, Algorithm::Aes256);
    assert!(info.created_at > 1_600_000_000_000);
    assert!(matches!(
        kms.describe_key("none"),
        Err(Error::KeyState {
            problem: KeyProblem::NotFound,
            ..
        })
    ));
    for result in [kms.describe_key("a/b"), kms.create_key("a/b")] {
        assert!(matches!(
            result,
            Err(Error::Caller(Caller::InvalidKeyName(_)))
        ));
    }
}

#[test]
fn unknown_keys_give_no_data_key() {
    let dir = tempfile::tempdir().unwrap();
    let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
    assert!(matches!(
        now(kms.generate_data_key("none", &Context::default())),
        Err(Error::KeyState {
            problem: KeyProblem::NotFound,
            ..
        })
    ));
}

#[test]
fn local_wrap_is_bound_to_its_label() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    let wrapped = kms.wrap_local(b"store key", &[9; 32]);
    let again = Kms::open(dir.path(), root).ok().unwrap();
    assert_eq!(
        again
            .unwrap_local(b"store key", &wrapped)
            .ok()
            .unwrap()
            .expose(),
        &[9; 32]
    );
    assert!(again.unwrap_local(b"other", &wrapped).is_err());
    for at in 0..wrapped.len() {
        let mut bad = wrapped.clone();
        bad[at] ^= 1;
        assert!(again.unwrap_local(b"store key", &bad).is_err(), "{at}");
    }
}

#[test]
fn no_key_material_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
    kms.create_key("canary-name").unwrap();
    for entry in std::fs::read_dir(dir.path().join("keystore")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(b"canary-name"));
        kms.keystore
            .with_key("canary-name", |held| {
                assert!(!holds(held.current().material.expose()));
                Ok(())
            })
            .unwrap();
    }
}

fn problem<T>(result: Result<T, Error>) -> Option<KeyProblem> {
    match result {
        Ok(_) => None,
        Err(Error::KeyState { problem, .. }) => Some(problem),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn disable_and_enable() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    kms.create_key("k").unwrap();
    let made = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
    let open = |kms: &Kms| now(kms.open_data_key("k", 1, &made.ciphertext, &context("a")));
    let lease = open(&kms).ok().unwrap().lease;

    assert_eq!(kms.disable_key("k").unwrap().state, KeyState::Disabled);
    for got in [
        problem(open(&kms)),
        problem(now(kms.generate_data_key("k", &context("a")))),
        problem(lease.check()),
        problem(made.lease.hold()),
        problem(kms.rotate_key("k")),
    ] {
        assert_eq!(got, Some(KeyProblem::Disabled));
    }
    assert!(kms.create_key("k").is_err());
    assert!(now(kms.generate_data_key(DEFAULT_KEY, &context("a"))).is_ok());
    drop(kms);
    let kms = Kms::open(dir.path(), root).ok().unwrap();
    assert_eq!(problem(open(&kms)), Some(KeyProblem::Disabled));
    assert_eq!(kms.enable_key("k").unwrap().state, KeyState::Enabled);
    assert!(open(&kms).ok().unwrap().plaintext == made.plaintext);
}

#[test]
fn rotate_keeps_older_versions() {
    let dir = tempfile::tempdir().unwrap();
    let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
    kms.create_key("k").unwrap();
    let first = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
    let info = kms.rotate_key("k").unwrap();
    assert_eq!((info.version, info.versions), (2, 2));
    let second = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
    assert_eq!(second.version, 2);
    for made in [&first, &second] {
        for version in [0, made.version] {
            let open = now(kms.open_data_key("k", version, &made.ciphertext, &context("a")));
            let open = open.ok().unwrap();
            assert!(open.plaintext == made.plaintext);
            assert_eq!(open.version, made.version);
        }
        let other = 3 - made.version;
        assert!(now(kms.open_data_key("k", other, &made.ciphertext, &context("a"))).is_err());
    }

    assert_eq!(kms.retire_versions("k", 9).unwrap().versions, 1);
    assert_eq!(problem(first.lease.check()), Some(KeyProblem::Destroyed));
    assert_eq!(problem(second.lease.check()), None);
    assert_eq!(
        problem(now(kms.open_data_key(
            "k",
            1,
            &first.ciphertext,
            &context("a")
        ))),
        Some(KeyProblem::Destroyed)
    );
    assert!(now(kms.open_data_key("k", 2, &second.ciphertext, &context("a"))).is_ok());
}

#[test]
fn a_deleted_key_is_gone_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    kms.create_key("k").unwrap();
    kms.create_key("other").unwrap();
    let made = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
    let other = now(kms.generate_data_key("other", &context("a")))
        .ok()
        .unwrap();
    let keys = dir.path().join("keystore/keys");
    let before = std::fs::read(&keys).unwrap();

    assert_eq!(
        kms.delete_key("k", Deletion::Now).unwrap().state,
        KeyState::Destroyed
    );
    assert_eq!(problem(made.lease.check()), Some(KeyProblem::Destroyed));
    assert!(other.lease.check().is_ok());
    for again in [
        kms.delete_key("k", Deletion::Now),
        kms.enable_key("k"),
        kms.disable_key("k"),
        kms.rotate_key("k"),
    ] {
        assert_eq!(problem(again), Some(KeyProblem::Destroyed));
    }
    assert!(!kms.list_keys("").unwrap().iter().any(|key| key.name == "k"));
    assert_eq!(kms.describe_key("k").unwrap().state, KeyState::Destroyed);

    // The same name again is another key, and says so of what the first one sealed.
    assert_eq!(kms.create_key("k").unwrap().version, 2);
    assert_eq!(
        problem(now(kms.open_data_key(
            "k",
            1,
            &made.ciphertext,
            &context("a")
        ))),
        Some(KeyProblem::Destroyed)
    );
    assert!(now(kms.open_data_key("k", 0, &made.ciphertext, &context("a"))).is_err());
    assert_eq!(problem(made.lease.check()), Some(KeyProblem::Destroyed));
    drop(kms);

    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    assert!(now(kms.open_data_key("other", 1, &other.ciphertext, &context("a"))).is_ok());
    drop(kms);
    std::fs::write(&keys, before).unwrap();
    assert!(matches!(
        Kms::open(dir.path(), root),
        Err(Error::Corrupt(Place::Keystore(_)))
    ));
}

#[test]
fn a_waiting_period() {
    let dir = tempfile::tempdir().unwrap();
    let kms = Kms::open(dir.path(), RootKey::generate()).ok().unwrap();
    kms.create_key("k").unwrap();
    let made = now(kms.generate_data_key("k", &context("a"))).ok().unwrap();
    let open = || now(kms.open_data_key("k", 1, &made.ciphertext, &context("a")));
    let hour = Deletion::After(Duration::from_secs(3600));
    let info = kms.delete_key("k", hour).unwrap();
    let KeyState::PendingDeletion { at } = info.state else {
        panic!()
    };
    assert_eq!(problem(open()), Some(KeyProblem::PendingDeletion));
    assert_eq!(
        problem(made.lease.check()),
        Some(KeyProblem::PendingDeletion)
    );
    assert!(kms.destroy_due_keys().unwrap().is_empty());
    assert!(kms.keystore.destroy_due(at - 1).unwrap().is_empty());
    kms.enable_key("k").unwrap();
    assert!(kms.keystore.destroy_due(at).unwrap().is_empty());
    assert!(open().is_ok());
    assert!(made.lease.check().is_ok());
    kms.delete_key("k", hour).unwrap();
    assert_eq!(kms.keystore.destroy_due(u64::MAX).unwrap(), ["k"]);
    assert_eq!(problem(open()), Some(KeyProblem::Destroyed));
}

#[test]
fn a_seal_outlives_a_restart_and_needs_the_root_key() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    let made = now(kms.generate_data_key(DEFAULT_KEY, &context("a")))
        .ok()
        .unwrap();
    let wrapped = kms.wrap_local(b"store", &[3; 32]);
    kms.seal().unwrap();
    kms.seal().unwrap();
    let sealed = |kms: &Kms| {
        assert!(kms.is_sealed());
        for outcome in [
            now(kms.generate_data_key(DEFAULT_KEY, &context("a"))).map(drop),
            now(kms.open_data_key(DEFAULT_KEY, 1, &made.ciphertext, &context("a"))).map(drop),
            made.lease.check(),
            kms.create_key("new").map(drop),
            kms.list_keys("").map(drop),
            kms.delete_key(DEFAULT_KEY, Deletion::Now).map(drop),
        ] {
            assert!(matches!(outcome, Err(Error::Outage(Outage::Sealed))));
        }
        // What lists objects is not under the seal.
        assert!(kms.unwrap_local(b"store", &wrapped).is_ok());
    };
    sealed(&kms);
    drop(kms);
    assert!(matches!(
        Kms::open(dir.path(), RootKey::generate()),
        Err(Error::Environment(Environment::WrongRootKey))
    ));
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    sealed(&kms);
    assert!(matches!(
        kms.unseal(&RootKey::generate()),
        Err(Error::Environment(Environment::WrongRootKey))
    ));
    sealed(&kms);
    kms.unseal(&root).unwrap();
    kms.unseal(&root).unwrap();
    assert!(kms.unseal(&RootKey::generate()).is_err());
    for kms in [&kms, &Kms::open(dir.path(), root).ok().unwrap()] {
        let open = now(kms.open_data_key(DEFAULT_KEY, 1, &made.ciphertext, &context("a")));
        assert!(open.ok().unwrap().plaintext == made.plaintext);
    }
}

#[test]
fn leases_come_back_with_the_unsealing() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootKey::generate();
    let kms = Kms::open(dir.path(), root.clone()).ok().unwrap();
    let made = now(kms.generate_data_key(DEFAULT_KEY, &context("a")))
        .ok()
        .unwrap();
    kms.seal().unwrap();
    assert!(made.lease.hold().is_err());
    kms.unseal(&root).unwrap();
    assert!(made.lease.hold().is_ok());
}

/// Does not compile for a type that can be printed: which implementation is meant would be open then.
macro_rules! cannot_be_printed {
    ($($type:ty),+) => {$(
        const _: fn() = || {
            trait Printed<Marker> {
                fn here() {}
            }
            impl<T: ?Sized> Printed<()> for T {}
            struct Debugged;
            impl<T: ?Sized + std::fmt::Debug> Printed<Debugged> for T {}
            let _ = <$type as Printed<_>>::here;
        };
    )+};
}

cannot_be_printed!(
    RootKey,
    DataKey,
    Context,
    StaticKey,
    ApiKey,
    ClientCertificate,
    KesSettings,
    KesCredentials,
    Remote,
    NewDataKey,
    OpenedDataKey,
    NewKey,
    OpenKey,
    Request,
    Response,
    Kms
);
