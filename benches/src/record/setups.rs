//! Ways to run the server and to ask it, by the names they have in records.

use std::sync::Arc;

use strongroom_tests::Config;
use strongroom_tests::kes::Kes;

pub const SEALED: &str = "sealed, plain HTTP";
pub const SEALED_TLS: &str = "sealed, TLS";
pub const OPAQUE: &str = "sealed, plain HTTP, opaque ETags";
pub const OPAQUE_TLS: &str = "sealed, TLS, opaque ETags";
/// Every read comes from the disk.
pub const COLD: &str = "sealed, plain HTTP, opaque ETags, no cache";
/// As [`COLD`], without the seal.
pub const UNSEALED: &str = "unsealed, plain HTTP, opaque ETags, no cache";
/// As [`SEALED`], without the seal.
pub const UNSEALED_MD5: &str = "unsealed, plain HTTP";
pub const ONE_SHARD: &str = "sealed, plain HTTP, opaque ETags, 1 shard";

pub type Pairs = &'static [(&'static str, &'static str)];

/// A way to run the server and to ask it.
pub struct Setup {
    pub name: &'static str,
    pub config: Config,
    pub put_headers: Pairs,
    pub get_headers: Pairs,
    /// Where its keys come from, if not from itself.
    pub kes: Option<Arc<Kes>>,
}

const SSE_KMS: [(&str, &str); 2] = [
    ("x-amz-server-side-encryption", "aws:kms"),
    ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
];
const SSE_C: [(&str, &str); 3] = [
    ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
    (
        "x-amz-server-side-encryption-customer-key",
        "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    ),
    (
        "x-amz-server-side-encryption-customer-key-md5",
        "hRasmdxgYDKV3nvbahU1MA==",
    ),
];

const OPAQUE_ETAGS: [&str; 2] = ["--etag", "opaque"];
const NO_CACHE: [&str; 2] = ["--cache-size", "0"];
const NO_SEAL: [&str; 2] = ["--default-encryption", "none"];

/// As most run it: over each size and number of connections.
pub fn common(shards: usize) -> Vec<Setup> {
    vec![
        setup(SEALED, Config::http().shards(shards)),
        setup(SEALED_TLS, Config::tls().shards(shards)),
    ]
}

/// What sealing, ETags and the cache each cost.
pub fn compared(shards: usize) -> Vec<Setup> {
    let local = || Config::http().shards(shards);
    let cold = || local().args(OPAQUE_ETAGS).args(NO_CACHE);
    vec![
        setup(OPAQUE, local().args(OPAQUE_ETAGS)),
        setup(OPAQUE_TLS, Config::tls().shards(shards).args(OPAQUE_ETAGS)),
        setup(COLD, cold()),
        setup(UNSEALED, cold().args(NO_SEAL)),
        setup(UNSEALED_MD5, local().args(NO_SEAL)),
    ]
}

/// What [`OPAQUE`] is compared with, for the cores.
pub fn one_shard() -> Setup {
    setup(ONE_SHARD, Config::http().shards(1).args(OPAQUE_ETAGS))
}

/// The modes of encryption, under the embedded keystore and under KES.
pub fn keys(shards: usize) -> Vec<Setup> {
    let kes = Arc::new(Kes::start());
    let local = || Config::http().shards(shards);
    let with = |name, config, put_headers| Setup {
        put_headers,
        ..setup(name, config)
    };
    let under_kes = |name, put_headers| Setup {
        kes: Some(Arc::clone(&kes)),
        ..with(name, kes.configure(local()), put_headers)
    };
    vec![
        with("SSE-S3, embedded keystore", local(), &[]),
        with("SSE-KMS, embedded keystore", local(), &SSE_KMS[..1]),
        under_kes("SSE-S3, KES", &[]),
        under_kes("SSE-KMS, KES", &SSE_KMS[..1]),
        under_kes("SSE-KMS with bucket key, KES", &SSE_KMS),
        Setup {
            get_headers: &SSE_C,
            ..with("SSE-C", local().args(["--allow-sse-c-without-tls"]), &SSE_C)
        },
    ]
}

fn setup(name: &'static str, config: Config) -> Setup {
    Setup {
        name,
        config,
        put_headers: &[],
        get_headers: &[],
        kes: None,
    }
}
