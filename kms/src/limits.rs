//! Every bound of the key service, in one place.

/// Bytes of a key name, as KES has it.
pub(crate) const KEY_NAME_BYTES_MAX: usize = 80;
/// Bytes of a static key's name: MinIO has no rule of its own.
pub(crate) const STATIC_KEY_NAME_BYTES_MAX: usize = 256;
/// Bytes of a file that holds a static key or an API key.
pub(crate) const KEY_FILE_BYTES_MAX: u64 = 4 << 10;
/// KES servers of one configuration.
pub(crate) const KES_ENDPOINTS_MAX: usize = 64;
/// Bytes of one key in a KES file-system keystore; a real one has some 200.
pub(crate) const KES_KEY_FILE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a KES answer.
pub(crate) const KES_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Names the keystore may hold, destroyed ones included.
pub(crate) const KEYS_MAX: usize = 65_536;
/// Versions of one key.
pub(crate) const KEY_VERSIONS_MAX: usize = 4_096;
/// Bytes of the sealed keystore file: read whole, replaced whole.
pub(crate) const KEYSTORE_BYTES_MAX: usize = 64 << 20;
/// Who made a key: an identity (64 hex digits) or a short word.
pub(crate) const CREATED_BY_BYTES_MAX: usize = 128;
/// Bytes of an encryption context header before and after base64.
pub(crate) const CONTEXT_BYTES_MAX: usize = 8 << 10;
/// Bytes of a data key's ciphertext in any form; the present form has 76.
pub(crate) const CIPHERTEXT_BYTES_MAX: usize = 1 << 20;
/// Shares of one root key.
pub(crate) const SHARES_MAX: u8 = 32;
/// Bytes of a passphrase: fewer are guessed.
pub(crate) const PASSPHRASE_BYTES_MIN: usize = 12;
/// Bytes of a file that holds a root key in base64.
pub(crate) const ROOT_KEY_FILE_BYTES_MAX: u64 = 4 << 10;

/// Bytes that one key with one version may take in the keystore's plaintext.
pub(crate) const KEY_ENCODED_BYTES_MAX: usize = KEY_NAME_BYTES_MAX + 64 + VERSION_ENCODED_BYTES_MAX;
/// Bytes that one version may take in the keystore's plaintext.
pub(crate) const VERSION_ENCODED_BYTES_MAX: usize = 2 * 32 + CREATED_BY_BYTES_MAX + 64;

const _: () = assert!(KEYS_MAX * KEY_ENCODED_BYTES_MAX < KEYSTORE_BYTES_MAX);
const _: () = assert!(KEY_VERSIONS_MAX * VERSION_ENCODED_BYTES_MAX < KEYSTORE_BYTES_MAX / 8);
