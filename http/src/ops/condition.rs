//! Conditional requests: the headers, and what they say of an object.
//!
//! Reads are decided here. Writes are decided by the committer of the engine; here is only the early look, which spares a body
//! that could not be stored anyway.

use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{ETAG, HeaderValue, LAST_MODIFIED};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3Result, s3_error};
use strongroom_engine::record::Object;
use strongroom_engine::{Condition, Error, EtagMatch};

use super::Inner;
use crate::error::{At, OrS3, header, no_such_key, precondition_failed};

/// The conditions of a write.
pub fn of_write(headers: &HeaderMap) -> Condition {
    Condition {
        if_match: tags(headers, "if-match", Comparison::Strong),
        if_none_match: tags(headers, "if-none-match", Comparison::Weak),
    }
}

/// Refuses a write whose condition fails already, before its body is read.
pub async fn check_early(
    inner: &Inner,
    bucket: &str,
    key: &str,
    condition: &Condition,
) -> S3Result<()> {
    if *condition == Condition::default() {
        return Ok(());
    }
    let at = At::object(bucket, key);
    let current = match inner.shard(at)?.lookup(bucket, key).await {
        Ok(found) => Some(found.object.etag.clone()),
        Err(Error::NoSuchKey) => None,
        Err(fault) => return Err(fault).at(At::object(bucket, key)),
    };
    match (&condition.if_match, &current) {
        (Some(_), None) => return Err(no_such_key(key)),
        (Some(wanted), Some(etag)) if !wanted.matches(etag) => {
            return Err(precondition_failed("If-Match"));
        }
        _ => {}
    }
    match (&condition.if_none_match, &current) {
        (Some(unwanted), Some(etag)) if unwanted.matches(etag) => {
            Err(precondition_failed("If-None-Match"))
        }
        _ => Ok(()),
    }
}

/// Which headers hold the conditions of a read: its own, or those for the source of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Read,
    CopySource,
}

struct Names {
    if_match: &'static str,
    if_none_match: &'static str,
    if_modified_since: &'static str,
    if_unmodified_since: &'static str,
}

const READ: Names = Names {
    if_match: "If-Match",
    if_none_match: "If-None-Match",
    if_modified_since: "If-Modified-Since",
    if_unmodified_since: "If-Unmodified-Since",
};

const COPY_SOURCE: Names = Names {
    if_match: "x-amz-copy-source-If-Match",
    if_none_match: "x-amz-copy-source-If-None-Match",
    if_modified_since: "x-amz-copy-source-If-Modified-Since",
    if_unmodified_since: "x-amz-copy-source-If-Unmodified-Since",
};

/// Decides a read: 412, 304, or go on. ETags beat dates; a date that cannot be read is ignored.
pub fn check_read(headers: &HeaderMap, of: Of, object: &Object) -> S3Result<()> {
    let names = match of {
        Of::Read => &READ,
        Of::CopySource => &COPY_SOURCE,
    };
    let modified = seconds(object.modified);
    if let Some(wanted) = tags(headers, names.if_match, Comparison::Strong) {
        if !wanted.matches(&object.etag) {
            return Err(precondition_failed(names.if_match));
        }
    } else if date(headers, names.if_unmodified_since).is_some_and(|d| modified > d) {
        return Err(precondition_failed(names.if_unmodified_since));
    }
    let unchanged = |name| match of {
        Of::Read => not_modified(object),
        Of::CopySource => precondition_failed(name),
    };
    if let Some(unwanted) = tags(headers, names.if_none_match, Comparison::Weak) {
        if unwanted.matches(&object.etag) {
            return Err(unchanged(names.if_none_match));
        }
    } else if date(headers, names.if_modified_since).is_some_and(|d| modified <= d) {
        return Err(unchanged(names.if_modified_since));
    }
    Ok(())
}

/// Whether `If-Range` allows a range of this object; true where there is none.
pub fn range_allowed(headers: &HeaderMap, object: &Object) -> bool {
    let Some(value) = headers.get("if-range") else {
        return true;
    };
    match date(headers, "if-range") {
        Some(date) => date == seconds(object.modified),
        None => split_tags(value.to_str().unwrap_or_default(), Comparison::Strong)
            .contains(&object.etag),
    }
}

/// The time of an object as headers and lists show it.
pub fn timestamp(millis: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_millis(millis))
}

/// `date` as headers write it.
pub fn http_date(millis: u64) -> HeaderValue {
    let mut text = Vec::new();
    // Writing to memory does not fail, and a date is always a header value.
    let _ = timestamp(millis).format(TimestampFormat::HttpDate, &mut text);
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
}

fn not_modified(object: &Object) -> S3Error {
    let fault = s3_error!(NotModified, "Not Modified");
    let fault = header(fault, LAST_MODIFIED, http_date(object.modified));
    match HeaderValue::try_from(format!("\"{}\"", object.etag)) {
        Ok(etag) => header(fault, ETAG, etag),
        Err(_) => fault,
    }
}

/// Headers have no fractions of a second.
fn seconds(millis: u64) -> Timestamp {
    timestamp(millis / 1000 * 1000)
}

fn date(headers: &HeaderMap, name: &str) -> Option<Timestamp> {
    let text = headers.get(name)?.to_str().ok()?;
    Timestamp::parse(TimestampFormat::HttpDate, text).ok()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// A weak tag matches nothing.
    Strong,
    /// A weak tag matches as if it were strong.
    Weak,
}

fn tags(headers: &HeaderMap, name: &str, comparison: Comparison) -> Option<EtagMatch> {
    let mut found = None::<Vec<String>>;
    for value in headers.get_all(name) {
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Some(EtagMatch::Any);
        }
        if !text.is_empty() {
            found
                .get_or_insert_default()
                .extend(split_tags(text, comparison));
        }
    }
    found.map(EtagMatch::Tags)
}

/// The tags of a list, without quotes; a tag without quotes stands for itself.
fn split_tags(text: &str, comparison: Comparison) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (weak, tail) = match rest.strip_prefix("W/\"") {
            Some(_) => (true, &rest[2..]),
            None => (false, rest),
        };
        let (tag, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => {
                let end = tail.find(',').unwrap_or(tail.len());
                (tail[..end].trim(), &tail[end..])
            }
        };
        let matches_something = !weak || comparison == Comparison::Weak;
        if !tag.is_empty() && matches_something {
            tags.push(tag.to_owned());
        }
        rest = tail.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }
    tags
}

/// Whether s3s would refuse these headers though they can be read here: lists of tags, and dates that are to be ignored.
pub fn needs_leniency(headers: &HeaderMap) -> bool {
    let several = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => false,
            (Some(value), None) => {
                !value.is_empty()
                    && s3s::dto::ETagCondition::parse_http_header(value.as_bytes()).is_err()
            }
            (Some(_), Some(_)) => true,
        }
    };
    let undated = |name: &str| headers.contains_key(name) && date(headers, name).is_none();
    [&READ, &COPY_SOURCE].into_iter().any(|names| {
        several(names.if_match)
            || several(names.if_none_match)
            || undated(names.if_modified_since)
            || undated(names.if_unmodified_since)
    })
}

/// The names of all headers that are read here and may be hidden from s3s.
pub fn header_names() -> impl Iterator<Item = &'static str> {
    [READ, COPY_SOURCE].into_iter().flat_map(|names| {
        [
            names.if_match,
            names.if_none_match,
            names.if_modified_since,
            names.if_unmodified_since,
        ]
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use strongroom_engine::record::{Data, Metadata, Place, Stream};

    use super::*;

    const AT: u64 = 1_700_000_000_999;
    const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";
    const EXACTLY: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const AFTER: &str = "Tue, 14 Nov 2023 22:13:21 GMT";

    fn object() -> Object {
        Object {
            size: 0,
            modified: AT,
            etag: "abc".into(),
            metadata: Metadata::default(),
            encryption: None,
            checksum: None,
            data: Data::Single(Stream {
                size: 0,
                nonce: None,
                place: Place::Empty,
            }),
            key_extent: None,
            origin: None,
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                let name = HeaderName::from_bytes(n.as_bytes()).expect("a name");
                (name, HeaderValue::from_str(v).expect("a value"))
            })
            .collect()
    }

    fn outcome(of: Of, pairs: &[(&str, &str)]) -> u16 {
        match check_read(&headers(pairs), of, &object()) {
            Ok(()) => 200,
            Err(e) => e.status_code().expect("a status").as_u16(),
        }
    }

    #[test]
    fn reads_follow_the_order_of_precedence() {
        let cases: &[(&[(&str, &str)], u16)] = &[
            (&[], 200),
            (&[("if-match", "\"abc\"")], 200),
            (&[("if-match", "abc")], 200),
            (&[("if-match", "*")], 200),
            (&[("if-match", "\"x\", \"abc\"")], 200),
            (&[("if-match", "\"x\"")], 412),
            (&[("if-match", "W/\"abc\"")], 412),
            (
                &[("if-match", "\"abc\""), ("if-unmodified-since", BEFORE)],
                200,
            ),
            (&[("if-unmodified-since", BEFORE)], 412),
            (&[("if-unmodified-since", EXACTLY)], 200),
            (&[("if-unmodified-since", "soon")], 200),
            (&[("if-none-match", "\"abc\"")], 304),
            (&[("if-none-match", "W/\"abc\"")], 304),
            (&[("if-none-match", "*")], 304),
            (&[("if-none-match", "\"x\",\"y\"")], 200),
            (
                &[("if-none-match", "\"x\""), ("if-modified-since", AFTER)],
                200,
            ),
            (&[("if-modified-since", BEFORE)], 200),
            (&[("if-modified-since", EXACTLY)], 304),
            (&[("if-modified-since", AFTER)], 304),
            (&[("if-modified-since", "0")], 200),
            (&[("if-match", "\"x\""), ("if-none-match", "\"abc\"")], 412),
        ];
        for (given, expected) in cases {
            assert_eq!(outcome(Of::Read, given), *expected, "{given:?}");
        }
    }

    #[test]
    fn sources_of_copies_fail_with_412_and_the_name_of_the_header() {
        let given = [("x-amz-copy-source-if-none-match", "abc")];
        assert_eq!(outcome(Of::CopySource, &given), 412);
        assert_eq!(outcome(Of::Read, &given), 200);
        let fault = check_read(&headers(&given), Of::CopySource, &object()).expect_err("fails");
        let element = &fault.headers().expect("headers")[crate::service::reply::ELEMENT];
        assert_eq!(element, "Condition=x-amz-copy-source-If-None-Match");
        let both = [
            ("x-amz-copy-source-if-match", "abc"),
            ("x-amz-copy-source-if-unmodified-since", BEFORE),
        ];
        assert_eq!(outcome(Of::CopySource, &both), 200);
    }

    #[test]
    fn not_modified_carries_its_validators() {
        let fault = check_read(&headers(&[("if-none-match", "*")]), Of::Read, &object());
        let fault = fault.expect_err("not modified");
        let seen = fault.headers().expect("headers");
        assert_eq!(seen[ETAG], "\"abc\"");
        assert_eq!(seen[LAST_MODIFIED], EXACTLY);
    }

    #[test]
    fn writes_keep_their_tags() {
        let condition = of_write(&headers(&[("if-match", " \"a\" , b,\"c,d\"")]));
        let expected = ["a", "b", "c,d"].map(str::to_owned).to_vec();
        assert_eq!(condition.if_match, Some(EtagMatch::Tags(expected)));
        let any = of_write(&headers(&[("if-none-match", "*")]));
        assert_eq!(any.if_none_match, Some(EtagMatch::Any));
        assert_eq!(of_write(&HeaderMap::new()), Condition::default());
        // A tag that nothing can match is a condition all the same.
        let weak = of_write(&headers(&[("if-match", "W/\"a\"")]));
        assert_eq!(weak.if_match, Some(EtagMatch::Tags(Vec::new())));
    }

    #[test]
    fn a_range_needs_the_object_it_was_made_for() {
        let allowed = |value| range_allowed(&headers(&[("if-range", value)]), &object());
        assert!(range_allowed(&HeaderMap::new(), &object()));
        assert!(allowed("\"abc\"") && allowed(EXACTLY));
        assert!(!allowed("\"x\"") && !allowed("W/\"abc\"") && !allowed(AFTER));
    }
}
