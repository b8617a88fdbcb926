//! What this CPU can do: asked once, in this file alone.
//!
//! A kernel takes a token; only detection makes tokens, so holding one proves that the instructions exist.
//! `STRONGROOM_CPU_DENY` names features that shall count as absent, such as `avx512f,vaes`: for tests, and for a machine
//! on which a kernel misbehaves.

use std::sync::OnceLock;

/// The variable that denies features.
pub const DENY: &str = "STRONGROOM_CPU_DENY";

/// Every feature a kernel here depends on.
#[cfg(target_arch = "x86_64")]
pub const FEATURES: [&str; 8] = [
    "aes",
    "pclmulqdq",
    "avx",
    "avx2",
    "vaes",
    "vpclmulqdq",
    "avx512f",
    "avx512bw",
];
#[cfg(target_arch = "aarch64")]
pub const FEATURES: [&str; 2] = ["aes", "pmull"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const FEATURES: [&str; 0] = [];

/// VAES and VPCLMULQDQ on 512 bits, with AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vaes512(());

/// VAES and VPCLMULQDQ on 256 bits, with AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vaes256(());

/// AES-NI and PCLMULQDQ in their AVX encoding.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AesNi(());

/// AVX2, for hashes.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

/// AVX-512F, for hashes.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512(());

/// The AES and PMULL instructions of ARMv8.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Armv8(());

/// A way to run AES-256-GCM that this CPU is known to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    #[cfg(target_arch = "x86_64")]
    Vaes512(Vaes512),
    #[cfg(target_arch = "x86_64")]
    Vaes256(Vaes256),
    #[cfg(target_arch = "x86_64")]
    AesNi(AesNi),
    #[cfg(target_arch = "aarch64")]
    Armv8(Armv8),
    Portable,
}

impl Path {
    /// As it stands in the start-up line, in metrics and in measurements.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512(_) => "vaes-avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256(_) => "vaes-avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AesNi(_) => "aes-ni",
            #[cfg(target_arch = "aarch64")]
            Self::Armv8(_) => "armv8-aes",
            Self::Portable => "portable",
        }
    }
}

/// Every path of this CPU that is not denied, the fastest first; the portable one is always the last.
pub fn paths() -> &'static [Path] {
    static PATHS: OnceLock<Vec<Path>> = OnceLock::new();
    PATHS.get_or_init(detect)
}

/// The fastest path.
pub fn best() -> Path {
    paths()[0]
}

/// What the variable names that is no feature of [`FEATURES`]: nothing is denied by it.
pub fn unknown_denials() -> Vec<&'static str> {
    denied()
        .iter()
        .map(String::as_str)
        .filter(|word| !FEATURES.contains(word))
        .collect()
}

fn denied() -> &'static [String] {
    static DENIED: OnceLock<Vec<String>> = OnceLock::new();
    DENIED.get_or_init(|| words(&std::env::var_os(DENY).unwrap_or_default().to_string_lossy()))
}

fn words(list: &str) -> Vec<String> {
    list.split(',')
        .map(|word| word.trim().to_ascii_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Whether the CPU has all of these features and none is denied.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! all {
    ($detected:ident: $($feature:tt)+) => {
        $(std::arch::$detected!($feature) && !denied().iter().any(|word| word == $feature))&&+
    };
}

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    pub fn detect() -> Option<Self> {
        all!(is_x86_feature_detected: "avx2").then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    pub fn detect() -> Option<Self> {
        all!(is_x86_feature_detected: "avx512f").then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Path> {
    let aes = all!(is_x86_feature_detected: "aes" "pclmulqdq" "avx");
    let vaes256 = aes && all!(is_x86_feature_detected: "avx2" "vaes" "vpclmulqdq");
    let vaes512 = vaes256 && all!(is_x86_feature_detected: "avx512f" "avx512bw");
    [
        vaes512.then_some(Path::Vaes512(Vaes512(()))),
        vaes256.then_some(Path::Vaes256(Vaes256(()))),
        aes.then_some(Path::AesNi(AesNi(()))),
        Some(Path::Portable),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<Path> {
    let aes = all!(is_aarch64_feature_detected: "aes" "pmull");
    [aes.then_some(Path::Armv8(Armv8(()))), Some(Path::Portable)]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<Path> {
    vec![Path::Portable]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_denials_is_forgiving() {
        assert_eq!(words(" AVX512F, vaes ,,"), ["avx512f", "vaes"]);
        assert!(words("").is_empty());
    }

    #[test]
    fn the_portable_path_is_always_there_and_last() {
        assert_eq!(paths().last(), Some(&Path::Portable));
        assert_eq!(best(), paths()[0]);
    }

    /// The environment of a test run may deny features; then no path may stand on them.
    #[test]
    fn what_is_denied_is_not_used() {
        let denied = std::env::var(DENY).unwrap_or_default();
        for (feature, dependent) in [
            (
                "aes",
                &["aes-ni", "vaes-avx2", "vaes-avx512", "armv8-aes"][..],
            ),
            ("pclmulqdq", &["aes-ni", "vaes-avx2", "vaes-avx512"]),
            ("avx", &["aes-ni", "vaes-avx2", "vaes-avx512"]),
            ("avx2", &["vaes-avx2", "vaes-avx512"]),
            ("vaes", &["vaes-avx2", "vaes-avx512"]),
            ("vpclmulqdq", &["vaes-avx2", "vaes-avx512"]),
            ("avx512f", &["vaes-avx512"]),
            ("avx512bw", &["vaes-avx512"]),
            ("pmull", &["armv8-aes"]),
        ] {
            if words(&denied).iter().any(|word| word == feature) {
                assert!(paths().iter().all(|path| !dependent.contains(&path.name())));
            }
        }
    }
}
