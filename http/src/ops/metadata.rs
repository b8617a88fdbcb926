//! What a client gives with an object and gets back with it; and what it asks for that is refused.

use http::HeaderMap;
use s3s::dto;
use s3s::{S3Result, s3_error};
use strongroom_engine::record::Metadata;

use crate::error::{element, not_implemented};
use crate::ops::KEY_BYTES_MAX;

/// User metadata of one object, names and values together.
pub const USER_METADATA_BYTES_MAX: usize = 2048;
/// Standard headers of one object, names and values together.
const HEADERS_BYTES_MAX: usize = 8192;

pub const CONTENT_TYPE: &str = "content-type";
pub const CONTENT_ENCODING: &str = "content-encoding";
pub const STORAGE_CLASS: &str = "x-amz-storage-class";
pub const REDIRECT: &str = "x-amz-website-redirect-location";

/// Headers that are kept with an object as they are.
const KEPT: [&str; 6] = [
    CONTENT_TYPE,
    "cache-control",
    "content-disposition",
    "content-language",
    "expires",
    REDIRECT,
];

const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";
const STANDARD: &str = "STANDARD";
/// Classes that clients name. All objects lie on the same disks; the name is kept and shown.
const STORAGE_CLASSES: [&str; 11] = [
    STANDARD,
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "GLACIER_IR",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "SNOW",
    "EXPRESS_ONEZONE",
];

/// Headers that ask for something this server does not do. To drop one in silence would lose what it protects or labels.
const REFUSED: [&str; 3] = [
    "x-amz-tagging",
    "x-amz-write-offset-bytes",
    "x-amz-bucket-namespace",
];
const REFUSED_PREFIXES: [&str; 2] = ["x-amz-object-lock-", "x-amz-object-annotation"];

/// Refuses what a write asks for and would not get.
pub fn check_supported(headers: &HeaderMap) -> S3Result<()> {
    for (name, value) in headers {
        let name = name.as_str();
        let refused =
            REFUSED.contains(&name) || REFUSED_PREFIXES.iter().any(|p| name.starts_with(p));
        if refused && !value.is_empty() {
            return Err(not_implemented(name));
        }
    }
    check_acl(headers)
}

/// Access lists are off, as on every new bucket of S3: only those that change nothing are accepted.
fn check_acl(headers: &HeaderMap) -> S3Result<()> {
    let canned = headers.get("x-amz-acl").map(|v| v.as_bytes());
    let harmless = matches!(
        canned,
        None | Some(b"" | b"private" | b"bucket-owner-full-control")
    );
    let granted = headers
        .keys()
        .any(|name| name.as_str().starts_with("x-amz-grant-"));
    if harmless && !granted {
        return Ok(());
    }
    Err(s3_error!(
        AccessControlListNotSupported,
        "The bucket does not allow ACLs"
    ))
}

/// Refuses keys that S3 has no room for.
pub fn check_key(key: &str) -> S3Result<()> {
    if key.len() > KEY_BYTES_MAX {
        let fault = s3_error!(KeyTooLongError, "Your key is too long");
        let fault = element(fault, "Size", &key.len().to_string());
        return Err(element(fault, "MaxSizeAllowed", &KEY_BYTES_MAX.to_string()));
    }
    Ok(())
}

/// The metadata of a write: standard headers, and the user's as s3s has decoded them.
pub fn of_write(headers: &HeaderMap, user: Option<dto::Metadata>) -> S3Result<Metadata> {
    let mut metadata = Metadata::default();
    for name in KEPT {
        if let Some(value) = text(headers, name)? {
            metadata.headers.insert(name.into(), value.into());
        }
    }
    if let Some(encoding) = text(headers, CONTENT_ENCODING)? {
        let kept = without_framing(encoding);
        if !kept.is_empty() {
            metadata.headers.insert(CONTENT_ENCODING.into(), kept);
        }
    }
    if let Some(class) = storage_class(headers)? {
        metadata.headers.insert(STORAGE_CLASS.into(), class.into());
    }
    for (name, value) in user.unwrap_or_default() {
        metadata.user.insert(name.to_ascii_lowercase(), value);
    }
    let bytes = |m: &std::collections::BTreeMap<String, String>| {
        m.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()
    };
    let user = bytes(&metadata.user);
    if user > USER_METADATA_BYTES_MAX || bytes(&metadata.headers) > HEADERS_BYTES_MAX {
        let fault = s3_error!(
            MetadataTooLarge,
            "Your metadata headers exceed the maximum allowed metadata size"
        );
        let fault = element(fault, "Size", &user.to_string());
        let max = USER_METADATA_BYTES_MAX.to_string();
        return Err(element(fault, "MaxSizeAllowed", &max));
    }
    Ok(metadata)
}

/// The class a write names, unless it is the usual one.
pub fn storage_class(headers: &HeaderMap) -> S3Result<Option<&str>> {
    match text(headers, STORAGE_CLASS)? {
        None | Some(STANDARD) => Ok(None),
        Some(class) if STORAGE_CLASSES.contains(&class) => Ok(Some(class)),
        Some(class) => Err(element(
            s3_error!(
                InvalidStorageClass,
                "The storage class you specified is not valid"
            ),
            "StorageClassRequested",
            class,
        )),
    }
}

/// `Content-Type` as it is answered.
pub fn content_type(metadata: &Metadata) -> String {
    let kept = metadata.headers.get(CONTENT_TYPE);
    kept.map_or(DEFAULT_CONTENT_TYPE, String::as_str).to_owned()
}

/// The name of an object's class in lists.
pub fn listed_class(metadata: &Metadata) -> String {
    let kept = metadata.headers.get(STORAGE_CLASS);
    kept.map_or(STANDARD, String::as_str).to_owned()
}

/// `aws-chunked` frames the request; it says nothing of the object.
fn without_framing(encoding: &str) -> String {
    let kept: Vec<&str> = encoding
        .split(',')
        .map(str::trim)
        .filter(|t| !t.is_empty() && !t.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    kept.join(",")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> S3Result<Option<&'a str>> {
    let Some(value) = headers.get(name).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(s3_error!(
            InvalidArgument,
            "The header {name} holds characters that are not ASCII"
        )),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                let value = HeaderValue::from_str(v).expect("a value");
                (HeaderName::from_static(n), value)
            })
            .collect()
    }

    fn code<T>(result: S3Result<T>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    #[test]
    fn framing_is_not_kept() {
        let kept = |encoding| {
            let given = headers(&[(CONTENT_ENCODING, encoding)]);
            let metadata = of_write(&given, None).expect("fine");
            metadata.headers.get(CONTENT_ENCODING).cloned()
        };
        assert_eq!(kept("aws-chunked"), None);
        assert_eq!(kept("gzip, aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(kept("AWS-Chunked,br").as_deref(), Some("br"));
        assert_eq!(kept("gzip").as_deref(), Some("gzip"));
    }

    #[test]
    fn requests_are_never_weakened_in_silence() {
        for refused in [
            "x-amz-tagging",
            "x-amz-object-lock-mode",
            "x-amz-object-lock-legal-hold",
            "x-amz-object-lock-event-hold",
            "x-amz-object-annotation-directive",
            "x-amz-write-offset-bytes",
        ] {
            assert_eq!(
                code(check_supported(&headers(&[(refused, "x")]))),
                "NotImplemented"
            );
        }
        let acl = |value| code(check_supported(&headers(&[("x-amz-acl", value)])));
        assert_eq!(acl("private"), "none");
        assert_eq!(acl("bucket-owner-full-control"), "none");
        assert_eq!(acl("public-read"), "AccessControlListNotSupported");
        let grant = headers(&[("x-amz-grant-read", "id=x")]);
        assert_eq!(
            code(check_supported(&grant)),
            "AccessControlListNotSupported"
        );
    }

    #[test]
    fn user_metadata_has_its_limit() {
        let of = |len: usize| {
            let user = dto::Metadata::from([("abcd".to_owned(), "v".repeat(len))]);
            code(of_write(&HeaderMap::new(), Some(user)))
        };
        assert_eq!(of(USER_METADATA_BYTES_MAX - 4), "none");
        assert_eq!(of(USER_METADATA_BYTES_MAX - 3), "MetadataTooLarge");
        let long = "x".repeat(HEADERS_BYTES_MAX);
        let given = headers(&[("cache-control", &long)]);
        assert_eq!(code(of_write(&given, None)), "MetadataTooLarge");
    }

    #[test]
    fn classes_are_checked_and_kept() {
        let class = |name| of_write(&headers(&[(STORAGE_CLASS, name)]), None);
        assert!(class("STANDARD").expect("fine").headers.is_empty());
        let kept = class("STANDARD_IA").expect("fine");
        assert_eq!(listed_class(&kept), "STANDARD_IA");
        assert_eq!(code(class("COLD")), "InvalidStorageClass");
    }

    #[test]
    fn keys_have_their_limit() {
        assert_eq!(code(check_key(&"k".repeat(KEY_BYTES_MAX))), "none");
        assert_eq!(
            code(check_key(&"k".repeat(KEY_BYTES_MAX + 1))),
            "KeyTooLongError"
        );
    }
}
