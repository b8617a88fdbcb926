//! Key names: the rule of KES, so that every name here is one there.

use crate::error::Caller;
use crate::limits::KEY_NAME_BYTES_MAX;

/// Checks a key name: 1 to 80 of `0-9 A-Z a-z - _`, not `_` alone, no `-` at either end.
pub(crate) fn check(name: &str) -> Result<(), Caller> {
    let good = (1..=KEY_NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && name != "_"
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    // The name goes into messages and logs: it is cut, and `{:?}` escapes what is left.
    Err(Caller::InvalidKeyName(
        name.chars().take(KEY_NAME_BYTES_MAX + 1).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn names() {
        let long = "x".repeat(80);
        for good in ["a", "my-key", "A_1", "__", "_a", "0", long.as_str()] {
            assert!(check(good).is_ok(), "{good}");
        }
        let longer = "x".repeat(81);
        for bad in [
            "", "_", "-a", "a-", "-", "a b", "a/b", "a.b", "é", "a:b", "a\n", &longer,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
