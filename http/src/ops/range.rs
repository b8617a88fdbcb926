//! Byte ranges: of a read, and of the source of a copied part.

use std::ops::Range;

use http::header::CONTENT_RANGE;
use http::{HeaderMap, HeaderValue};
use s3s::{S3Error, S3Result, s3_error};

use crate::error::{element, header, invalid_argument};

/// A single range as a header gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    From(u64),
    /// Both ends included.
    Between(u64, u64),
    /// The last bytes.
    Suffix(u64),
}

impl ByteRange {
    /// The range a read asks for. None where there is none, and for several or malformed ones, which are to be ignored.
    pub fn of_read(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("range").iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return None;
        };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        match (first, last) {
            ("", last) => Some(ByteRange::Suffix(number(last)?)),
            (first, "") => Some(ByteRange::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(ByteRange::Between(first, last))
            }
        }
    }

    /// The bytes it means of an object of `size` bytes; none where it means none of them.
    pub fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            ByteRange::From(first) => first..size,
            ByteRange::Between(first, last) => first..last.saturating_add(1).min(size),
            ByteRange::Suffix(len) => size.saturating_sub(len)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// The range of a part's source: exactly `bytes=a-b`, and within the source.
pub fn of_copy(text: &str, size: u64) -> S3Result<Range<u64>> {
    match ByteRange::parse(text) {
        Some(range @ ByteRange::Between(_, last)) => match range.within(size) {
            Some(range) if last < size => Ok(range),
            _ => Err(s3_error!(
                InvalidRange,
                "The specified copy range is outside of the source object of {size} bytes"
            )),
        },
        _ => Err(invalid_argument(
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
            "x-amz-copy-source-range",
            text,
        )),
    }
}

/// The value of `Content-Range`.
pub fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

pub fn not_satisfiable(headers: &HeaderMap, size: u64) -> S3Error {
    let asked = headers.get("range").and_then(|v| v.to_str().ok());
    let fault = s3_error!(InvalidRange, "The requested range is not satisfiable");
    let fault = element(fault, "RangeRequested", asked.unwrap_or_default());
    let fault = element(fault, "ActualObjectSize", &size.to_string());
    match HeaderValue::try_from(format!("bytes */{size}")) {
        Ok(value) => header(fault, CONTENT_RANGE, value),
        Err(_) => fault,
    }
}

/// Digits alone: no sign, no blank.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More than any object has is as good as the greatest number.
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_ranges_are_read_and_others_ignored() {
        let parse = |text| ByteRange::parse(text);
        assert_eq!(parse("bytes=0-0"), Some(ByteRange::Between(0, 0)));
        assert_eq!(parse("bytes=5-"), Some(ByteRange::From(5)));
        assert_eq!(parse("bytes=-7"), Some(ByteRange::Suffix(7)));
        let endless = "bytes=0-99999999999999999999999";
        assert_eq!(parse(endless), Some(ByteRange::Between(0, u64::MAX)));
        for ignored in [
            "",
            "bytes=",
            "bytes=-",
            "bytes=2-1",
            "bytes=0-1,3-4",
            "bytes=a-b",
            "bytes=+1-2",
            "0-1",
            "bits=0-1",
            "bytes 0-1",
            "bytes= 0-1",
            "bytes=--1",
        ] {
            assert_eq!(parse(ignored), None, "{ignored:?}");
        }
    }

    #[test]
    fn two_range_headers_are_ignored() {
        let mut headers = HeaderMap::new();
        headers.append("range", HeaderValue::from_static("bytes=0-1"));
        assert!(ByteRange::of_read(&headers).is_some());
        headers.append("range", HeaderValue::from_static("bytes=0-1"));
        assert!(ByteRange::of_read(&headers).is_none());
    }

    #[test]
    fn a_copied_range_has_both_ends_inside_the_source() {
        assert_eq!(of_copy("bytes=2-4", 5).expect("inside"), 2..5);
        let code = |text, size| {
            let fault = of_copy(text, size).expect_err("refused");
            fault.code().as_str().to_owned()
        };
        for malformed in [
            "bytes=-3",
            "bytes=1-",
            "0-4",
            "bytes=4-2",
            "bytes=0-1,2-3",
            "",
        ] {
            assert_eq!(code(malformed, 5), "InvalidArgument", "{malformed:?}");
        }
        for outside in ["bytes=0-5", "bytes=5-5", "bytes=0-18446744073709551615"] {
            assert_eq!(code(outside, 5), "InvalidRange", "{outside:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_within_is_within(size in 0u64..50, a in 0u64..60, b in 0u64..60) {
            let all: Vec<u64> = (0..size).collect();
            let cases = [
                (ByteRange::From(a), all.iter().copied().filter(|n| *n >= a).collect::<Vec<_>>()),
                (ByteRange::Between(a.min(b), a.max(b)), all.iter().copied().filter(|n| (a.min(b)..=a.max(b)).contains(n)).collect()),
                (ByteRange::Suffix(a), all.iter().copied().filter(|n| n + a >= size).collect()),
            ];
            for (range, expected) in cases {
                let seen: Vec<u64> = range.within(size).map(|r| r.collect()).unwrap_or_default();
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
