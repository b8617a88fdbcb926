//! Randomness of the operating system.

/// Fills `bytes` from the operating system's generator.
///
/// # Panics
/// When the system has no randomness to give: there is nothing to seal with then, and no fallback.
pub(crate) fn fill(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        panic!("the operating system gives no randomness: {error}");
    }
}

/// `N` random bytes, for what is not secret: nonces, identifiers.
pub(crate) fn array<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}
