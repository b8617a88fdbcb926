//! Keys: embedded keystore, encryption context, data keys.
