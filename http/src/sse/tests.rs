//! Tests of the decisions and of object keys, with the embedded keystore below.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_lite::future::block_on;
use http::{HeaderMap, HeaderName, HeaderValue};
use md5::{Digest as _, Md5};
use s3s::{S3Error, S3Result};
use strongroom_engine::record::{BucketEncryption, Encryption, Mode};
use strongroom_kms::{Keys, KeysOptions, Kms, RootKey};

use super::access::Unlocked;
use super::decide::decide;
use super::*;
use crate::config::DefaultEncryption as D;
use crate::error::At;
use crate::service::reply::ELEMENT;

const AT: At<'_> = At {
    bucket: "b",
    key: "k",
    upload: "",
};

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(n, v)| {
            let value = HeaderValue::from_str(v).expect("a value");
            (HeaderName::from_static(n), value)
        })
        .collect()
}

/// The three headers of the customer key of 32 times `byte`.
fn customer(names: CustomerHeaders, byte: u8) -> HeaderMap {
    let [algorithm, key, md5] = names;
    headers(&[
        (algorithm, "AES256"),
        (key, &STANDARD.encode([byte; 32])),
        (md5, &STANDARD.encode(Md5::digest([byte; 32]))),
    ])
}

fn with(mut map: HeaderMap, name: &'static str, value: &str) -> HeaderMap {
    map.insert(name, HeaderValue::from_str(value).expect("a value"));
    map
}

fn without(mut map: HeaderMap, name: &str) -> HeaderMap {
    map.remove(name);
    map
}

fn over_tls(headers: &HeaderMap) -> Asked<'_> {
    Asked {
        headers,
        secure: true,
    }
}

fn code<T>(result: S3Result<T>) -> String {
    result
        .err()
        .map_or("none".into(), |e| e.code().as_str().to_owned())
}

fn bucket(mode: Option<Mode>) -> BucketEncryption {
    BucketEncryption {
        mode,
        ..Default::default()
    }
}

fn rules(bucket: Option<&BucketEncryption>, default: D) -> Rules<'_> {
    Rules {
        bucket,
        default,
        block_sse_c: false,
    }
}

fn decided(headers: &HeaderMap, bucket: Option<&BucketEncryption>, default: D) -> String {
    match decide(&over_tls(headers), &rules(bucket, default)) {
        Ok(choice) => shown(&choice),
        Err(fault) => fault.code().as_str().to_owned(),
    }
}

fn shown(choice: &Choice) -> String {
    match choice {
        Choice::Plain => "plain".into(),
        Choice::SseS3 => "s3".into(),
        Choice::SseC(_) => "c".into(),
        Choice::SseKms(kms) => {
            let key = kms.key.as_ref().map_or("default", KeyId::name);
            let pairs: Vec<String> = kms
                .context
                .iter()
                .map(|(k, v)| format!(" {k}={v}"))
                .collect();
            let bucket_key = if kms.bucket_key { " bucket-key" } else { "" };
            format!("kms {key}{bucket_key}{}", pairs.concat())
        }
    }
}

fn keys(dir: &Path) -> (Arc<Kms>, Keys) {
    let kms = Arc::new(Kms::open(dir, RootKey::generate()).expect("a keystore"));
    let keys = Keys::new(Arc::clone(&kms), None, KeysOptions::default());
    (kms, keys)
}

fn choose(headers: &HeaderMap) -> Choice {
    decide(&over_tls(headers), &rules(None, D::SseS3)).expect("a choice")
}

fn new(keys: &Keys, headers: &HeaderMap, at: At<'_>) -> NewKey {
    block_on(new_key(keys, &choose(headers), at)).expect("a key")
}

fn open(keys: &Keys, encryption: &Encryption, at: At<'_>) -> S3Result<ObjectKey> {
    block_on(open_key(keys, Some(encryption), None, at))
}

#[test]
fn request_beats_bucket_beats_server() {
    let none = HeaderMap::new();
    let aes = headers(&[(HEADER, "AES256")]);
    let kms = headers(&[(HEADER, "aws:kms")]);
    let named = with(kms.clone(), KMS_KEY_ID, "alias/mine");
    let by_s3 = bucket(Some(Mode::SseS3));
    let by_kms = BucketEncryption {
        mode: Some(Mode::SseKms),
        kms_key_id: Some("arn:aws:kms:theirs".into()),
        bucket_key: true,
        block_sse_c: None,
    };
    let blocks_only = bucket(None);
    for (headers, bucket, default, expected) in [
        (&none, None, D::SseS3, "s3"),
        (&none, None, D::SseKms, "kms default"),
        (&none, None, D::None, "plain"),
        (&none, Some(&by_s3), D::None, "s3"),
        (&none, Some(&by_s3), D::SseKms, "s3"),
        (&none, Some(&by_kms), D::None, "kms theirs bucket-key"),
        (&none, Some(&blocks_only), D::None, "plain"),
        (&none, Some(&blocks_only), D::SseKms, "kms default"),
        (&aes, Some(&by_kms), D::SseKms, "s3"),
        // The bucket's key is not that of a request which names a mode of its own; its setting of bucket keys is.
        (&kms, Some(&by_kms), D::None, "kms default bucket-key"),
        (&named, None, D::None, "kms mine"),
        (&customer(CUSTOMER, 1), Some(&by_kms), D::SseKms, "c"),
    ] {
        assert_eq!(decided(headers, bucket, default), expected, "{headers:?}");
    }
    let off = headers(&[(BUCKET_KEY, "false")]);
    assert_eq!(decided(&off, Some(&by_kms), D::None), "kms theirs");
    let on = headers(&[(BUCKET_KEY, "TRUE")]);
    assert_eq!(decided(&on, Some(&by_s3), D::None), "s3");
    let context = with(named, CONTEXT, &STANDARD.encode(r#"{"a":"b"}"#));
    assert_eq!(decided(&context, None, D::None), "kms mine a=b");
}

#[test]
fn what_contradicts_itself_is_refused() {
    let key = || customer(CUSTOMER, 1);
    let kms = || headers(&[(HEADER, "aws:kms")]);
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(9000));
    let cases = [
        (with(key(), HEADER, "AES256"), "InvalidArgument"),
        (with(key(), HEADER, "aws:kms"), "InvalidArgument"),
        (with(key(), KMS_KEY_ID, "k"), "InvalidArgument"),
        (with(key(), CONTEXT, "e30="), "InvalidArgument"),
        (headers(&[(KMS_KEY_ID, "k")]), "InvalidArgument"),
        (headers(&[(CONTEXT, "e30=")]), "InvalidArgument"),
        (
            headers(&[(HEADER, "AES256"), (KMS_KEY_ID, "k")]),
            "InvalidArgument",
        ),
        (
            headers(&[(HEADER, "AES256"), (CONTEXT, "e30=")]),
            "InvalidArgument",
        ),
        (headers(&[(HEADER, "aws:kms:dsse")]), "NotImplemented"),
        (headers(&[(HEADER, "AES192")]), "InvalidArgument"),
        (headers(&[(HEADER, "aes256")]), "InvalidArgument"),
        (with(kms(), KMS_KEY_ID, "a:b"), "KMS.NotFoundException"),
        (with(kms(), CONTEXT, "***"), "InvalidArgument"),
        (
            with(kms(), CONTEXT, &STANDARD.encode("[]")),
            "InvalidArgument",
        ),
        (
            with(kms(), CONTEXT, &STANDARD.encode(r#"{"a":1}"#)),
            "InvalidArgument",
        ),
        (
            with(kms(), CONTEXT, &STANDARD.encode(long)),
            "InvalidArgument",
        ),
        (with(kms(), BUCKET_KEY, "perhaps"), "InvalidArgument"),
    ];
    for (given, expected) in cases {
        for default in [D::SseS3, D::SseKms, D::None] {
            assert_eq!(decided(&given, None, default), expected, "{given:?}");
        }
    }
    let nonsense = bucket(Some(Mode::SseC));
    assert_eq!(
        decided(&HeaderMap::new(), Some(&nonsense), D::SseS3),
        "InvalidRequest"
    );
}

#[test]
fn customer_keys_are_whole_or_refused() {
    for names in [CUSTOMER, COPY_SOURCE_CUSTOMER] {
        let [algorithm, key, md5] = names;
        let good = || customer(names, 7);
        let read = |given: &HeaderMap| code(CustomerKey::read(&over_tls(given), &names));
        let cases = [
            (good(), "none"),
            (HeaderMap::new(), "none"),
            (
                with(good(), algorithm, "AES128"),
                "InvalidEncryptionAlgorithmError",
            ),
            (
                with(good(), algorithm, "aes256"),
                "InvalidEncryptionAlgorithmError",
            ),
            (without(good(), algorithm), "InvalidArgument"),
            (without(good(), key), "InvalidArgument"),
            (without(good(), md5), "InvalidArgument"),
            (with(good(), key, "!"), "InvalidArgument"),
            (
                with(good(), key, &STANDARD.encode([7; 31])),
                "InvalidArgument",
            ),
            (
                with(good(), key, &STANDARD.encode([8; 32])),
                "InvalidArgument",
            ),
            (with(good(), md5, "x"), "InvalidArgument"),
        ];
        for (given, expected) in cases {
            assert_eq!(read(&given), expected, "{given:?}");
        }
        let open = Asked {
            headers: &good(),
            secure: false,
        };
        assert_eq!(code(CustomerKey::read(&open, &names)), "InvalidRequest");
    }
}

#[test]
fn buckets_block_customer_keys() {
    let key = customer(CUSTOMER, 1);
    for (set, by_default, expected) in [
        (None, false, "c"),
        (None, true, "AccessDenied"),
        (Some(true), false, "AccessDenied"),
        (Some(false), true, "c"),
    ] {
        let bucket = BucketEncryption {
            block_sse_c: set,
            ..Default::default()
        };
        let rules = Rules {
            bucket: Some(&bucket),
            default: D::SseS3,
            block_sse_c: by_default,
        };
        let seen = match decide(&over_tls(&key), &rules) {
            Ok(choice) => shown(&choice),
            Err(fault) => fault.code().as_str().to_owned(),
        };
        assert_eq!(seen, expected);
        assert!(decide(&over_tls(&HeaderMap::new()), &rules).is_ok());
    }
}

#[test]
fn nothing_private_is_sent_back() {
    let canary = STANDARD.encode([b'S'; 32]);
    let told = |fault: &S3Error| {
        let elements = fault.headers().map(|h| {
            let values = h.get_all(ELEMENT).iter();
            values
                .map(|v| v.to_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        });
        format!("{fault:?} {elements:?}")
    };
    let mut given = vec![
        headers(&[(HEADER, "AES256"), (CONTEXT, &canary)]),
        headers(&[(HEADER, "aws:kms"), (CONTEXT, &canary)]),
        headers(&[(CONTEXT, &canary)]),
        with(customer(CUSTOMER, 1), CONTEXT, &canary),
    ];
    for name in CUSTOMER {
        given.push(headers(&[(name, &canary)]));
        given.push(with(customer(CUSTOMER, 1), name, &canary));
        given.push(headers(&[(name, &canary), (HEADER, "AES256")]));
    }
    for headers in given {
        let fault = decide(&over_tls(&headers), &rules(None, D::SseS3)).err();
        let fault = fault.expect("refused");
        assert!(!told(&fault).contains(&canary[..20]), "{}", told(&fault));
    }
}

#[test]
fn every_mode_opens_only_for_its_own_object() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kms, keys) = keys(dir.path());
    kms.create_key("named").expect("a key");
    let at = At::object("b", "a//b");
    let context = STANDARD.encode(r#"{"project":"alpha"}"#);
    let named = headers(&[(HEADER, "aws:kms"), (KMS_KEY_ID, "alias/named")]);
    for given in [
        headers(&[(HEADER, "AES256")]),
        headers(&[(HEADER, "aws:kms")]),
        named.clone(),
        with(named.clone(), CONTEXT, &context),
        with(named, BUCKET_KEY, "true"),
    ] {
        let made = new(&keys, &given, at);
        let sealed = made.encryption.expect("sealed");
        let opened = open(&keys, &sealed, at).expect("opens");
        assert!(opened.secret() == made.key.secret());
        for (bucket, key) in [("b", "a/b"), ("c", "a//b"), ("b", "a//b/"), ("b", "")] {
            let other = open(&keys, &sealed, At::object(bucket, key));
            assert_eq!(code(other), "InternalError");
        }
        let again = new(&keys, &given, at);
        assert!(
            again.key.secret() != made.key.secret(),
            "each has its own key"
        );
        let mut elsewhere = sealed.clone();
        elsewhere.kms.as_mut().expect("wrapped").source = "kes".into();
        assert_eq!(code(open(&keys, &elsewhere, at)), "ServiceUnavailable");
        let mut mode = sealed.clone();
        mode.mode = match mode.mode {
            Mode::SseS3 => Mode::SseKms,
            _ => Mode::SseS3,
        };
        assert!(
            open(&keys, &mode, at).is_err(),
            "a mode is bound to the key"
        );
    }
    let plain = block_on(new_key(&keys, &Choice::Plain, at)).expect("no key");
    assert!(plain.key.secret().is_none() && plain.encryption.is_none());
}

/// Elsewhere the customer's key was itself the cipher's.
#[test]
fn a_customers_key_never_seals_data_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, keys) = keys(dir.path());
    let given = customer(CUSTOMER, 9);
    let (one, two) = (new(&keys, &given, AT), new(&keys, &given, AT));
    let secret = |made: &NewKey| *made.key.secret().expect("sealed").expose();
    assert!(secret(&one) != [9; 32] && secret(&two) != [9; 32]);
    assert!(secret(&one) != secret(&two), "each object has its own");
    let sealed = one.encryption.as_ref().expect("sealed");
    assert!(sealed.kms.is_none() && !sealed.sealed_key.windows(32).any(|w| w == [9; 32]));
    let key = CustomerKey::read(&over_tls(&given), &CUSTOMER).expect("fine");
    let opened = ObjectKey::of_customer(&key.expect("a key"), sealed, AT).expect("opens");
    assert!(opened.secret() == one.key.secret());
}

#[test]
fn resealing_keeps_the_object_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kms, keys) = keys(dir.path());
    kms.create_key("next").expect("a key");
    let made = new(&keys, &headers(&[(HEADER, "AES256")]), AT);
    let secret = made.key.secret().expect("sealed");
    let to = choose(&headers(&[(HEADER, "aws:kms"), (KMS_KEY_ID, "next")]));
    let moved = block_on(reseal(&keys, secret, &to, AT)).expect("moved");
    assert!(moved.key.secret() == Some(secret));
    let sealed = moved.encryption.expect("sealed");
    assert_eq!(sealed.mode, Mode::SseKms);
    assert!(open(&keys, &sealed, AT).expect("opens").secret() == Some(secret));
    kms.disable_key("next").expect("disabled");
    assert_eq!(code(open(&keys, &sealed, AT)), "KMS.DisabledException");
}

#[test]
fn unknown_keys_are_told_and_replaced_by_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, keys) = keys(dir.path());
    for id in ["nobody", "not a name", "arn:aws:kms:nobody"] {
        let to = choose(&headers(&[(HEADER, "aws:kms"), (KMS_KEY_ID, id)]));
        let made = block_on(new_key(&keys, &to, AT));
        assert_eq!(code(made), "KMS.NotFoundException", "{id}");
    }
}

#[test]
fn a_key_that_goes_away_stops_what_is_under_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kms, keys) = keys(dir.path());
    let made = new(&keys, &headers(&[(HEADER, "AES256")]), AT);
    let sealed = made.encryption.as_ref().expect("sealed");
    let opened = open(&keys, sealed, AT).expect("a key");
    assert_eq!(code(made.key.hold(AT)), "none");
    assert_eq!(code(opened.check(AT)), "none");
    kms.disable_key(kms.default_key()).expect("disabled");
    assert_eq!(code(made.key.hold(AT)), "KMS.DisabledException");
    assert_eq!(code(opened.check(AT)), "KMS.DisabledException");
    assert_eq!(code(open(&keys, sealed, AT)), "KMS.DisabledException");
    kms.enable_key(kms.default_key()).expect("enabled");
    kms.seal().expect("sealed");
    assert_eq!(code(opened.check(AT)), "ServiceUnavailable");
    assert_eq!(code(open(&keys, sealed, AT)), "ServiceUnavailable");
}

#[test]
fn reads_bring_the_right_key_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, keys) = keys(dir.path());
    let by_s3 = new(&keys, &headers(&[(HEADER, "AES256")]), AT).encryption;
    let by_customer = new(&keys, &customer(CUSTOMER, 1), AT).encryption;
    let read = |given: &HeaderMap, encryption: Option<&Encryption>, at| {
        code(access::of_read(&over_tls(given), encryption, at))
    };
    let (none, right, wrong) = (
        HeaderMap::new(),
        customer(CUSTOMER, 1),
        customer(CUSTOMER, 2),
    );
    let other = At::object("b", "other");
    for (given, encryption, at, expected) in [
        (&none, None, AT, "none"),
        (&right, None, AT, "InvalidRequest"),
        (&none, by_s3.as_ref(), AT, "none"),
        (&right, by_s3.as_ref(), AT, "InvalidRequest"),
        (&none, by_customer.as_ref(), AT, "InvalidRequest"),
        (&right, by_customer.as_ref(), AT, "none"),
        (&wrong, by_customer.as_ref(), AT, "AccessDenied"),
        (&right, by_customer.as_ref(), other, "AccessDenied"),
    ] {
        assert_eq!(read(given, encryption, at), expected);
    }
    let named = headers(&[(HEADER, "AES256")]);
    assert_eq!(read(&named, by_s3.as_ref(), AT), "InvalidArgument");
    assert_eq!(read(&named, None, AT), "none");
    // The headers of a copy's source are others.
    let source = |given: &HeaderMap| {
        let asked = over_tls(given);
        code(access::of_copy_source(&asked, by_customer.as_ref(), AT))
    };
    assert_eq!(source(&right), "InvalidRequest");
    assert_eq!(source(&customer(COPY_SOURCE_CUSTOMER, 1)), "none");
    assert_eq!(source(&customer(COPY_SOURCE_CUSTOMER, 2)), "AccessDenied");
}

#[test]
fn parts_agree_with_their_upload() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kms, keys) = keys(dir.path());
    kms.create_key("named").expect("a key");
    let context = STANDARD.encode(r#"{"b":"1","a":"2"}"#);
    let same_context = STANDARD.encode(r#"{ "a": "2", "b": "1" }"#);
    let by_kms_headers = headers(&[
        (HEADER, "aws:kms"),
        (KMS_KEY_ID, "alias/named"),
        (CONTEXT, &context),
        (BUCKET_KEY, "true"),
    ]);
    let by_s3 = new(&keys, &headers(&[(HEADER, "AES256")]), AT).encryption;
    let by_kms = new(&keys, &by_kms_headers, AT).encryption;
    let by_customer = new(&keys, &customer(CUSTOMER, 1), AT).encryption;
    let part = |given: &HeaderMap, encryption: &Option<Encryption>| {
        code(access::of_part(&over_tls(given), encryption.as_ref(), AT))
    };
    let none = HeaderMap::new();
    assert_eq!(part(&none, &None), "none");
    assert_eq!(part(&none, &by_s3), "none");
    assert_eq!(part(&none, &by_kms), "none");
    assert_eq!(part(&none, &by_customer), "InvalidRequest");
    assert_eq!(part(&customer(CUSTOMER, 1), &by_customer), "none");
    assert_eq!(part(&customer(CUSTOMER, 2), &by_customer), "InvalidRequest");
    for upload in [&None, &by_s3, &by_kms] {
        assert_eq!(part(&customer(CUSTOMER, 1), upload), "InvalidRequest");
    }
    assert_eq!(part(&headers(&[(HEADER, "AES256")]), &by_s3), "none");
    assert_eq!(part(&by_kms_headers, &by_kms), "none");
    let by_name = with(by_kms_headers.clone(), KMS_KEY_ID, "arn:aws:kms:named");
    assert_eq!(
        part(&with(by_name, CONTEXT, &same_context), &by_kms),
        "none"
    );
    for (name, value) in [
        (HEADER, "AES256"),
        (KMS_KEY_ID, "other"),
        (CONTEXT, "e30="),
        (BUCKET_KEY, "false"),
    ] {
        let given = with(by_kms_headers.clone(), name, value);
        assert_eq!(part(&given, &by_kms), "InvalidArgument", "{name}");
        assert_eq!(part(&given, &by_s3), "InvalidArgument", "{name}");
    }
    // A completion may do without the customer's key, but not with another one.
    let unlocked = |given: &HeaderMap| {
        access::of_upload(&over_tls(given), by_customer.as_ref(), AT).map(|u| match u {
            Unlocked::Key(_) => "key",
            Unlocked::ByService => "service",
            Unlocked::Locked => "locked",
        })
    };
    assert_eq!(unlocked(&none).ok(), Some("locked"));
    assert_eq!(unlocked(&customer(CUSTOMER, 1)).ok(), Some("key"));
    assert_eq!(code(unlocked(&customer(CUSTOMER, 2))), "InvalidRequest");
}

#[test]
fn answers_show_the_id_as_it_was_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kms, keys) = keys(dir.path());
    kms.create_key("named").expect("a key");
    let answer = |given: &HeaderMap| {
        let made = new(&keys, given, AT);
        Answer::of(made.encryption.as_ref(), Some(&made.key))
    };
    let kms_headers = headers(&[(HEADER, "aws:kms")]);
    let default = answer(&kms_headers);
    assert_eq!(
        default.kms_key_id.as_deref(),
        Some("arn:aws:kms:strongroom-default")
    );
    assert!(default.bucket_key.is_none() && default.context.is_none());
    for id in [
        "named",
        "alias/named",
        "arn:aws:kms:named",
        "arn:aws:kms:r:a:key/named",
    ] {
        let shown = answer(&with(kms_headers.clone(), KMS_KEY_ID, id));
        assert_eq!(shown.kms_key_id.as_deref(), Some(id));
        assert_eq!(shown.method.expect("a mode").as_str(), "aws:kms");
    }
    let context = STANDARD.encode(r#"{ "a": "b" }"#);
    let bound = with(with(kms_headers, BUCKET_KEY, "true"), CONTEXT, &context);
    let bound = answer(&bound);
    assert_eq!(bound.bucket_key, Some(true));
    assert_eq!(bound.context, Some(STANDARD.encode(r#"{"a":"b"}"#)));
    let by_customer = answer(&customer(CUSTOMER, 1));
    assert!(by_customer.method.is_none() && by_customer.kms_key_id.is_none());
    assert_eq!(by_customer.customer_algorithm.as_deref(), Some("AES256"));
    assert_eq!(
        by_customer.customer_key_md5,
        Some(STANDARD.encode(Md5::digest([1; 32])))
    );
    let by_s3 = answer(&headers(&[(HEADER, "AES256")]));
    assert_eq!(by_s3.method.expect("a mode").as_str(), "AES256");
    assert!(by_s3.kms_key_id.is_none() && by_s3.customer_key_md5.is_none());
}
