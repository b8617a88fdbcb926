//! Percent-encoding as S3 lists use it, and its reverse.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything but unreserved characters and `/`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// Encodes as lists do: a space is `%20`, and slashes stay.
pub fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Decodes `%XX`. What is not a valid escape stands for itself; bytes that are not UTF-8 are replaced.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encodes_as_s3_lists_do() {
        assert_eq!(percent_encode("quux ab/thud"), "quux%20ab/thud");
        assert_eq!(percent_encode("asdf+b"), "asdf%2Bb");
        assert_eq!(percent_encode("ü%\u{1}~"), "%C3%BC%25%01~");
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            let encoded = percent_encode(&text);
            prop_assert_eq!(percent_decode(&encoded), text);
        }
    }
}
