//! Server-side encryption: which mode applies to a request, and how an object's key is sealed and opened under the key service.
//!
//! - [`decide`] is the one place that chooses a mode: customer key, then header, then the bucket's default, then the server's.
//! - A new object, upload or copy always gets an object key of its own.
//! - The sealed key is opened on every read, of empty objects too: an object whose key is gone is gone.

use http::HeaderMap;
use s3s::dto::ServerSideEncryption;
use s3s::{S3Result, s3_error};
use std::collections::BTreeMap;
use strongroom_engine::hierarchy::{self, Domain, SealedKey};
use strongroom_engine::record::{BucketEncryption, Encryption, KmsKey, Mode};
use strongroom_engine::secret::Secret;
use strongroom_kms::{Context, DataKey, KeyHold, KeyLease, Keys, Source, StoredDataKey};

use crate::config::DefaultEncryption;
use crate::error::{At, OrS3, corrupt, invalid_argument, not_implemented};

pub const HEADER: &str = "x-amz-server-side-encryption";
const KMS_KEY_ID: &str = "x-amz-server-side-encryption-aws-kms-key-id";
const CONTEXT: &str = "x-amz-server-side-encryption-context";
const CUSTOMER: [&str; 3] = [
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-md5",
];
const COPY_SOURCE_CUSTOMER: [&str; 3] = [
    "x-amz-copy-source-server-side-encryption-customer-algorithm",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key-md5",
];

/// How a new object is to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Plain,
    SseS3,
}

/// The mode of a new object, upload or copy.
pub fn decide(
    headers: &HeaderMap,
    bucket: Option<&BucketEncryption>,
    default: DefaultEncryption,
) -> S3Result<Choice> {
    let asked = text(headers, HEADER);
    if let Some(header) = CUSTOMER.iter().find(|h| headers.contains_key(**h)) {
        if let Some(asked) = asked {
            return Err(invalid_argument(
                "Server Side Encryption with Customer provided key is incompatible with the encryption method specified",
                HEADER,
                asked,
            ));
        }
        return Err(not_implemented(header));
    }
    let needs_kms = || {
        [KMS_KEY_ID, CONTEXT]
            .into_iter()
            .find(|h| headers.contains_key(*h))
            .map(|h| {
                let message = "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms";
                // The context can be private: it is not sent back.
                let value = if h == KMS_KEY_ID { text(headers, h) } else { None };
                invalid_argument(message, h, value.unwrap_or_default())
            })
    };
    match asked {
        Some(ServerSideEncryption::AWS_KMS | ServerSideEncryption::AWS_KMS_DSSE) => {
            Err(not_implemented(HEADER))
        }
        Some(ServerSideEncryption::AES256) => match needs_kms() {
            Some(fault) => Err(fault),
            None => Ok(Choice::SseS3),
        },
        Some(other) => Err(invalid_argument(
            "The encryption method specified is not supported",
            HEADER,
            other,
        )),
        None => match (needs_kms(), bucket.and_then(|b| b.mode), default) {
            (Some(fault), _, _) => Err(fault),
            (None, Some(Mode::SseS3), _) | (None, None, DefaultEncryption::SseS3) => {
                Ok(Choice::SseS3)
            }
            (None, None, DefaultEncryption::None) => Ok(Choice::Plain),
            // No bucket can be configured like this yet; never seal less than it asks.
            (None, Some(Mode::SseKms | Mode::SseC), _) => Err(not_implemented(HEADER)),
        },
    }
}

/// Refuses encryption headers on the reads of an object that do not fit how it is sealed.
pub fn check_read(headers: &HeaderMap, encryption: Option<&Encryption>) -> S3Result<()> {
    if encryption.is_some()
        && let Some(value) = headers.get(HEADER)
    {
        return Err(invalid_argument(
            "x-amz-server-side-encryption header is not supported for this operation.",
            HEADER,
            value.to_str().unwrap_or_default(),
        ));
    }
    refuse_customer_key(headers, &CUSTOMER)
}

/// Refuses the customer's key for the source of a copy: no source is sealed under one.
pub fn check_copy_source(headers: &HeaderMap) -> S3Result<()> {
    refuse_customer_key(headers, &COPY_SOURCE_CUSTOMER)
}

/// A part brings no mode of its own; a customer's key has to be that of the upload, and no upload has one.
///
/// Other encryption headers on a part are tolerated: old clients send them, and the upload's mode stands.
pub fn check_part(headers: &HeaderMap) -> S3Result<()> {
    if CUSTOMER.iter().any(|h| headers.contains_key(*h)) {
        return Err(s3_error!(
            InvalidRequest,
            "The multipart upload initiate did not request encryption with a customer-provided key, so its parts cannot be sent with one."
        ));
    }
    Ok(())
}

fn refuse_customer_key(headers: &HeaderMap, names: &[&str]) -> S3Result<()> {
    if names.iter().any(|h| headers.contains_key(*h)) {
        return Err(s3_error!(
            InvalidRequest,
            "The encryption parameters are not applicable to this object."
        ));
    }
    Ok(())
}

/// The key of an object or an open upload; nothing where it is not sealed.
#[derive(Default)]
pub struct ObjectKey(Option<(Secret, KeyLease)>);

impl ObjectKey {
    pub fn secret(&self) -> Option<&Secret> {
        self.0.as_ref().map(|(secret, _)| secret)
    }

    /// Whether the key above may still be used. Asked while data flows.
    pub fn check(&self, at: At<'_>) -> S3Result<()> {
        match &self.0 {
            Some((_, lease)) => lease.check().at(at),
            None => Ok(()),
        }
    }

    /// Keeps the key above from being taken away until the outcome of a commit is known.
    pub fn hold(&self, at: At<'_>) -> S3Result<Option<KeyHold>> {
        match &self.0 {
            Some((_, lease)) => lease.hold().map(Some).at(at),
            None => Ok(None),
        }
    }
}

/// A fresh object key, and the form of it that is stored.
#[derive(Default)]
pub struct NewKey {
    pub key: ObjectKey,
    pub encryption: Option<Encryption>,
}

/// A fresh object key for the object, sealed as chosen.
pub async fn new_key(keys: &Keys, choice: Choice, at: At<'_>) -> S3Result<NewKey> {
    if choice == Choice::Plain {
        return Ok(NewKey::default());
    }
    let path = path(at);
    let context = Context::for_object(&BTreeMap::new(), at.bucket, &path);
    let data_key = keys
        .generate(keys.default_key(), &context, None)
        .await
        .at(at)?;
    let external = external(&data_key.plaintext);
    let object_key = hierarchy::object_key(&external, &random::<32>());
    let sealed = hierarchy::seal_key(
        &object_key,
        &external,
        Domain::SseS3,
        path.as_bytes(),
        random(),
        random(),
    );
    Ok(NewKey {
        key: ObjectKey(Some((object_key, data_key.lease))),
        encryption: Some(Encryption {
            mode: Mode::SseS3,
            iv: sealed.iv,
            sealed_key: sealed.sealed,
            kms: Some(KmsKey {
                source: data_key.source.as_str().into(),
                name: data_key.key,
                version: data_key.version,
                ciphertext: data_key.ciphertext,
                context: BTreeMap::new(),
                id_as_given: None,
                bucket_key: data_key.bucket_key,
            }),
        }),
    })
}

/// The key of a stored object or open upload.
pub async fn open_key(
    keys: &Keys,
    encryption: Option<&Encryption>,
    at: At<'_>,
) -> S3Result<ObjectKey> {
    let Some(encryption) = encryption else {
        return Ok(ObjectKey(None));
    };
    let domain = match encryption.mode {
        Mode::SseS3 => Domain::SseS3,
        Mode::SseKms => Domain::SseKms,
        Mode::SseC => return Err(not_implemented(CUSTOMER[0])),
    };
    let wrapped = encryption
        .kms
        .as_ref()
        .ok_or_else(|| corrupt("a sealed key without its data key", at))?;
    let source = Source::parse(&wrapped.source)
        .ok_or_else(|| corrupt("a data key of an unknown key service", at))?;
    let path = path(at);
    let context = Context::for_object(&wrapped.context, at.bucket, &path);
    let stored = StoredDataKey {
        source,
        key: &wrapped.name,
        version: wrapped.version,
        ciphertext: &wrapped.ciphertext,
        bucket_key: wrapped.bucket_key,
    };
    let data_key = keys.open(&stored, &context, at.bucket).await.at(at)?;
    let sealed = SealedKey {
        iv: encryption.iv,
        sealed: encryption.sealed_key,
    };
    let external = external(&data_key.plaintext);
    let secret = hierarchy::unseal_key(&sealed, &external, domain, path.as_bytes())
        .map_err(|_| corrupt("a sealed object key", at))?;
    Ok(ObjectKey(Some((secret, data_key.lease))))
}

/// What keys are bound to: bucket and key as they are, never cleaned.
fn path(at: At<'_>) -> String {
    format!("{}/{}", at.bucket, at.key)
}

/// The response header that names the mode.
pub fn answer(encryption: Option<&Encryption>) -> Option<ServerSideEncryption> {
    encryption.and_then(|e| match e.mode {
        Mode::SseS3 => Some(ServerSideEncryption::from_static(
            ServerSideEncryption::AES256,
        )),
        Mode::SseKms => Some(ServerSideEncryption::from_static(
            ServerSideEncryption::AWS_KMS,
        )),
        Mode::SseC => None,
    })
}

fn external(key: &DataKey) -> Secret {
    Secret::new(*key.expose())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source must answer");
    bytes
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .map(|v| v.to_str().unwrap_or_default())
        .filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;
    use http::{HeaderName, HeaderValue};
    use std::path::Path;
    use std::sync::Arc;

    use strongroom_kms::{KeysOptions, Kms, RootKey};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    fn code<T>(result: S3Result<T>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    fn keys(dir: &Path) -> (Arc<Kms>, Keys) {
        let kms = Arc::new(Kms::open(dir, RootKey::generate()).expect("a keystore"));
        let keys = Keys::new(Arc::clone(&kms), None, KeysOptions::default());
        (kms, keys)
    }

    fn bucket(mode: Option<Mode>) -> BucketEncryption {
        BucketEncryption {
            mode,
            ..Default::default()
        }
    }

    #[test]
    fn header_beats_bucket_beats_server() {
        use DefaultEncryption as D;
        let aes = headers(&[(HEADER, "AES256")]);
        let none = HeaderMap::new();
        let set = bucket(Some(Mode::SseS3));
        let blocks_only = bucket(None);
        let decide = |h, b, d| decide(h, b, d).expect("a choice");
        assert_eq!(decide(&none, None, D::SseS3), Choice::SseS3);
        assert_eq!(decide(&none, None, D::None), Choice::Plain);
        assert_eq!(decide(&none, Some(&set), D::None), Choice::SseS3);
        assert_eq!(decide(&none, Some(&blocks_only), D::None), Choice::Plain);
        assert_eq!(decide(&none, Some(&blocks_only), D::SseS3), Choice::SseS3);
        assert_eq!(decide(&aes, None, D::None), Choice::SseS3);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let cases = [
            (&[(HEADER, "aws:kms")][..], "NotImplemented"),
            (&[(HEADER, "aws:kms:dsse")], "NotImplemented"),
            (&[(HEADER, "AES192")], "InvalidArgument"),
            (&[(CUSTOMER[0], "AES256")], "NotImplemented"),
            (&[(CUSTOMER[1], "eA==")], "NotImplemented"),
            (
                &[(CUSTOMER[2], "eA=="), (HEADER, "AES256")],
                "InvalidArgument",
            ),
            (&[(KMS_KEY_ID, "k")], "InvalidArgument"),
            (&[(CONTEXT, "e30=")], "InvalidArgument"),
            (&[(KMS_KEY_ID, "k"), (HEADER, "AES256")], "InvalidArgument"),
        ];
        for (given, expected) in cases {
            for default in [DefaultEncryption::SseS3, DefaultEncryption::None] {
                let result = decide(&headers(given), None, default);
                assert_eq!(code(result), expected, "{given:?}");
            }
        }
        for mode in [Mode::SseKms, Mode::SseC] {
            let set = bucket(Some(mode));
            let result = decide(&HeaderMap::new(), Some(&set), DefaultEncryption::SseS3);
            assert_eq!(code(result), "NotImplemented");
        }
    }

    #[test]
    fn a_customers_key_is_not_repeated_to_anyone() {
        let given = headers(&[(CUSTOMER[1], "c2VjcmV0"), (HEADER, "AES256")]);
        for given in [given, headers(&[(CUSTOMER[1], "c2VjcmV0")])] {
            let fault = decide(&given, None, DefaultEncryption::SseS3).expect_err("refused");
            assert!(!format!("{fault:?}").contains("c2VjcmV0"));
        }
    }

    #[test]
    fn keys_open_only_for_their_own_object() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_, keys) = keys(dir.path());
        let new = |at| block_on(new_key(&keys, Choice::SseS3, at)).expect("a key");
        let at = At::object("b", "a//b");
        let made = new(at);
        let sealed = made.encryption.expect("sealed");
        let open = |at| block_on(open_key(&keys, Some(&sealed), at));
        assert!(open(at).expect("opens").secret() == made.key.secret());
        for (bucket, key) in [("b", "a/b"), ("c", "a//b"), ("b", "a//b/"), ("b", "")] {
            assert_eq!(code(open(At::object(bucket, key))), "InternalError");
        }
        let mut elsewhere = sealed.clone();
        elsewhere.kms.as_mut().expect("wrapped").source = "kes".into();
        let result = block_on(open_key(&keys, Some(&elsewhere), at));
        assert_eq!(code(result), "ServiceUnavailable");
        assert!(
            new(at).key.secret() != made.key.secret(),
            "each object has its own"
        );
        let plain = block_on(new_key(&keys, Choice::Plain, at)).expect("no key");
        assert!(plain.key.secret().is_none() && plain.encryption.is_none());
    }

    #[test]
    fn a_key_that_goes_away_stops_what_is_under_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let (kms, keys) = keys(dir.path());
        let at = At::object("b", "k");
        let new = block_on(new_key(&keys, Choice::SseS3, at)).expect("a key");
        let opened = block_on(open_key(&keys, new.encryption.as_ref(), at)).expect("a key");
        assert_eq!(code(new.key.hold(at)), "none");
        assert_eq!(code(opened.check(at)), "none");
        kms.disable_key(kms.default_key()).expect("disabled");
        assert_eq!(code(new.key.hold(at)), "KMS.DisabledException");
        assert_eq!(code(opened.check(at)), "KMS.DisabledException");
        let again = block_on(open_key(&keys, new.encryption.as_ref(), at));
        assert_eq!(code(again), "KMS.DisabledException");
    }

    #[test]
    fn reads_refuse_headers_that_do_not_fit() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_, keys) = keys(dir.path());
        let new = block_on(new_key(&keys, Choice::SseS3, At::object("b", "k"))).expect("a key");
        let sealed = new.encryption.as_ref();
        let aes = headers(&[(HEADER, "AES256")]);
        assert_eq!(code(check_read(&aes, sealed)), "InvalidArgument");
        assert_eq!(code(check_read(&aes, None)), "none");
        assert_eq!(code(check_read(&HeaderMap::new(), sealed)), "none");
        let customer = headers(&[(CUSTOMER[0], "AES256")]);
        assert_eq!(code(check_read(&customer, sealed)), "InvalidRequest");
        assert_eq!(code(check_part(&customer)), "InvalidRequest");
        assert_eq!(code(check_part(&aes)), "none");
    }
}
