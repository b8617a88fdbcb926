//! Percent-encoding as S3 lists use it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_s3_lists_do() {
        assert_eq!(percent_encode("quux ab/thud"), "quux%20ab/thud");
        assert_eq!(percent_encode("asdf+b"), "asdf%2Bb");
        assert_eq!(percent_encode("ü%\u{1}~"), "%C3%BC%25%01~");
    }
}
