//! Object keys: made, sealed under an external key, and opened again.
//!
//! The external key is the customer's, or a data key of the key service. Both bind the object's path: bucket, `/` and the key as they
//! are, never cleaned. There is no fallback to another key, ever.

use std::collections::BTreeMap;
use std::time::Instant;

use s3s::{S3Error, S3Result};
use strongroom_engine as engine;
use strongroom_engine::hierarchy::{self, Domain, SealedKey};
use strongroom_engine::record::{Encryption, KmsKey, Mode};
use strongroom_engine::secret::Secret;
use strongroom_kms::{
    Context, DataKey, Error, KeyHold, KeyLease, Keys, Outage, Source, StoredDataKey,
};

use super::{Choice, CustomerKey, KmsChoice, customer};
use crate::conn::rt::timeout;
use crate::error::{At, OrS3, corrupt, kms_fault};
use crate::limits;

/// The key of an object or an open upload; nothing where it is not sealed.
#[derive(Default)]
pub struct ObjectKey(Option<Held>);

struct Held {
    secret: Secret,
    from: From,
}

/// Where the external key came from.
enum From {
    /// Tells whether the key above may still be used.
    Service(KeyLease),
    /// The MD5 of the customer's key, as responses show it.
    Customer(String),
}

/// A fresh object key, and the form of it that is stored.
#[derive(Default)]
pub struct NewKey {
    pub key: ObjectKey,
    pub encryption: Option<Encryption>,
}

/// A fresh object key for the object, sealed as chosen.
pub async fn new_key(keys: &Keys, choice: &Choice, at: At<'_>) -> S3Result<NewKey> {
    let Some(external) = External::new(keys, choice, at).await? else {
        return Ok(NewKey::default());
    };
    let secret = hierarchy::object_key(&external.secret, &random::<32>());
    Ok(external.seal(secret, at))
}

/// The object key that there is, sealed anew: nothing else of the object changes.
pub async fn reseal(keys: &Keys, secret: &Secret, choice: &Choice, at: At<'_>) -> S3Result<NewKey> {
    let Some(external) = External::new(keys, choice, at).await? else {
        return Ok(NewKey::default());
    };
    Ok(external.seal(secret.clone(), at))
}

/// The object key that `encryption` holds, sealed anew under the current version of the key that it is under. Mode, context and
/// whatever else clients see stay.
pub async fn renew(keys: &Keys, encryption: &Encryption, at: At<'_>) -> S3Result<NewKey> {
    let old = open_key(keys, Some(encryption), None, at).await?;
    let (Some(secret), Some(kms)) = (old.secret(), &encryption.kms) else {
        return Err(corrupt("a sealed key without its data key", at));
    };
    let external = External::of_key(
        keys,
        &kms.name,
        &kms.context,
        kms.bucket_key,
        kms.id_as_given.clone(),
        encryption.mode,
        at,
    );
    Ok(external.await?.seal(secret.clone(), at))
}

/// Carries a later call of a request out within the time that a request, whose first one began then, waits for the key service in all.
pub async fn in_time<T>(
    keys: &Keys,
    begun: Instant,
    at: At<'_>,
    call: impl Future<Output = S3Result<T>>,
) -> S3Result<T> {
    let left = keys.timeout().saturating_sub(begun.elapsed());
    let over = || {
        let why = "it takes too long to answer".to_owned();
        kms_fault(Error::Outage(Outage::Unreachable(why)), at)
    };
    timeout(left, call).await.unwrap_or_else(|| Err(over()))
}

/// Carries a commit out while its keys are held: to the end, also when whoever asked for it goes away, because then the commit goes
/// on without them.
pub async fn held<H: 'static, T: 'static>(
    holds: H,
    commit: impl Future<Output = engine::Result<T>> + 'static,
) -> engine::Result<T> {
    let held = async move {
        let outcome = commit.await;
        drop(holds);
        outcome
    };
    glommio::spawn_local(held)
        .detach()
        .await
        .ok_or(engine::Error::Closed)?
}

/// The key of a stored object or open upload. `opened` is what the request's own headers opened.
pub async fn open_key(
    keys: &Keys,
    encryption: Option<&Encryption>,
    opened: Option<ObjectKey>,
    at: At<'_>,
) -> S3Result<ObjectKey> {
    if let Some(opened) = opened {
        return Ok(opened);
    }
    let Some(encryption) = encryption else {
        return Ok(ObjectKey(None));
    };
    let domain = match encryption.mode {
        Mode::SseC => return Err(customer::missing()),
        mode => domain(mode),
    };
    let wrapped = encryption
        .kms
        .as_ref()
        .ok_or_else(|| corrupt("a sealed key without its data key", at))?;
    let source = Source::parse(&wrapped.source)
        .ok_or_else(|| corrupt("a data key of an unknown key service", at))?;
    let path = path(at);
    let context = Context::for_object(&wrapped.context, at.bucket, &path);
    let data_key = keys
        .open(&stored(source, wrapped), &context, at.bucket)
        .await
        .at(at)?;
    let external = external(&data_key.plaintext);
    let secret = hierarchy::unseal_key(&sealed(encryption), &external, domain, path.as_bytes())
        .map_err(|_| corrupt("a sealed object key", at))?;
    Ok(ObjectKey(Some(Held {
        secret,
        from: From::Service(data_key.lease),
    })))
}

impl ObjectKey {
    /// Opened by the customer's key; none where that is another one.
    pub fn of_customer(key: &CustomerKey, encryption: &Encryption, at: At<'_>) -> Option<Self> {
        let path = path(at);
        let opened = hierarchy::unseal_key(
            &sealed(encryption),
            key.secret(),
            Domain::SseC,
            path.as_bytes(),
        );
        Some(ObjectKey(Some(Held {
            secret: opened.ok()?,
            from: From::Customer(key.md5().to_owned()),
        })))
    }

    pub fn secret(&self) -> Option<&Secret> {
        self.0.as_ref().map(|held| &held.secret)
    }

    /// The MD5 of the customer's key that opened it.
    pub fn customer_md5(&self) -> Option<&str> {
        match &self.0.as_ref()?.from {
            From::Customer(md5) => Some(md5),
            From::Service(_) => None,
        }
    }

    /// Whether the key above may still be used. Asked while data flows.
    pub fn check(&self, at: At<'_>) -> S3Result<()> {
        match self.lease() {
            Some(lease) => lease.check().at(at),
            None => Ok(()),
        }
    }

    /// Keeps the key above from being taken away until the outcome of a commit is known.
    pub fn hold(&self, at: At<'_>) -> S3Result<Option<KeyHold>> {
        match self.lease() {
            Some(lease) => lease.hold().map(Some).at(at),
            None => Ok(None),
        }
    }

    /// Waits until the key above may not be used any more; says why.
    pub async fn lost(&self, at: At<'_>) -> S3Error {
        loop {
            glommio::timer::sleep(limits::KEY_CHECK).await;
            if let Err(fault) = self.check(at) {
                return fault;
            }
        }
    }

    /// What tells whether the key above may still be used, if there is one.
    pub fn lease(&self) -> Option<&KeyLease> {
        match &self.0.as_ref()?.from {
            From::Service(lease) => Some(lease),
            From::Customer(_) => None,
        }
    }
}

/// What an object key is sealed under.
struct External {
    secret: Secret,
    mode: Mode,
    kms: Option<KmsKey>,
    from: From,
}

impl External {
    async fn new(keys: &Keys, choice: &Choice, at: At<'_>) -> S3Result<Option<Self>> {
        Ok(match choice {
            Choice::Plain => None,
            Choice::SseC(key) => Some(External {
                secret: key.secret().clone(),
                mode: Mode::SseC,
                kms: None,
                from: From::Customer(key.md5().to_owned()),
            }),
            Choice::SseS3 => {
                let choice = KmsChoice::default();
                Some(Self::of_service(keys, &choice, Mode::SseS3, at).await?)
            }
            Choice::SseKms(choice) => Some(Self::of_service(keys, choice, Mode::SseKms, at).await?),
        })
    }

    async fn of_service(keys: &Keys, choice: &KmsChoice, mode: Mode, at: At<'_>) -> S3Result<Self> {
        let name = match &choice.key {
            Some(id) => id.name(),
            None => keys.default_key(),
        };
        let id_as_given = choice.key.as_ref().map(|id| id.given().to_owned());
        Self::of_key(
            keys,
            name,
            &choice.context,
            choice.bucket_key,
            id_as_given,
            mode,
            at,
        )
        .await
    }

    /// Under a data key of the key `name`, bound to the client's context and the object's path.
    async fn of_key(
        keys: &Keys,
        name: &str,
        client_context: &BTreeMap<String, String>,
        bucket_key: bool,
        id_as_given: Option<String>,
        mode: Mode,
        at: At<'_>,
    ) -> S3Result<Self> {
        let context = Context::for_object(client_context, at.bucket, &path(at));
        let bucket = bucket_key.then_some(at.bucket);
        let made = keys.generate(name, &context, bucket).await.at(at)?;
        let wrapped = KmsKey {
            source: made.source.as_str().to_owned(),
            name: made.key,
            version: made.version,
            ciphertext: made.ciphertext,
            context: client_context.clone(),
            id_as_given,
            bucket_key: made.bucket_key,
        };
        Ok(External {
            secret: external(&made.plaintext),
            mode,
            kms: Some(wrapped),
            from: From::Service(made.lease),
        })
    }

    fn seal(self, object_key: Secret, at: At<'_>) -> NewKey {
        let sealed = hierarchy::seal_key(
            &object_key,
            &self.secret,
            domain(self.mode),
            path(at).as_bytes(),
            random(),
            random(),
        );
        NewKey {
            key: ObjectKey(Some(Held {
                secret: object_key,
                from: self.from,
            })),
            encryption: Some(Encryption {
                mode: self.mode,
                iv: sealed.iv,
                sealed_key: sealed.sealed,
                kms: self.kms,
            }),
        }
    }
}

fn domain(mode: Mode) -> Domain {
    match mode {
        Mode::SseS3 => Domain::SseS3,
        Mode::SseKms => Domain::SseKms,
        Mode::SseC => Domain::SseC,
    }
}

/// What keys are bound to.
fn path(at: At<'_>) -> String {
    format!("{}/{}", at.bucket, at.key)
}

/// A record's data key, as the key service takes it.
pub fn stored(source: Source, wrapped: &KmsKey) -> StoredDataKey<'_> {
    StoredDataKey {
        source,
        key: &wrapped.name,
        version: wrapped.version,
        ciphertext: &wrapped.ciphertext,
        bucket_key: wrapped.bucket_key,
    }
}

fn sealed(encryption: &Encryption) -> SealedKey {
    SealedKey {
        iv: encryption.iv,
        sealed: encryption.sealed_key,
    }
}

fn external(key: &DataKey) -> Secret {
    Secret::new(*key.expose())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source must answer");
    bytes
}
