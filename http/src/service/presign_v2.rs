//! URLs presigned by Signature Version 2, which the AWS CLI and boto3 still make for endpoints that are not AWS's own.
//!
//! Only the query form, and only for plain reads, writes and deletes: the old signature covers a fixed list of query keys, so
//! any key beyond those that are signed, or that mean nothing, is refused. Everything else is signed by Version 4 or not at all.
//! The S3 layer checks the signature too; it is checked here first because that check takes time that depends on the values.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, KeyInit, Mac};
use http::request::Parts;
use http::{Method, StatusCode};
use sha1::Sha1;
use subtle::ConstantTimeEq;

use super::reply::Refusal;
use super::{Secrets, guard};

/// What makes a query one of these.
const FIELDS: [&str; 3] = ["AWSAccessKeyId", "Expires", "Signature"];
/// The other keys it may have, in the order in which they are signed.
const SIGNED: [&str; 9] = [
    "partNumber",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "uploadId",
    "versionId",
];

type Query = [(String, String)];

/// Whether a query is signed by Version 2.
pub fn is_signed(query: &Query) -> bool {
    ["AWSAccessKeyId", "Signature"]
        .iter()
        .all(|name| value(query, name).is_some())
}

/// Refuses what the old signature cannot protect.
pub fn check(method: &Method, query: &Query) -> Result<(), Refusal> {
    let plain = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE].contains(method);
    let unsigned = query
        .iter()
        .map(|(name, _)| name.as_str())
        .find(|name| !FIELDS.contains(name) && !SIGNED.contains(name));
    if !plain || unsigned.is_some() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "InvalidRequest",
            "A URL presigned by Signature Version 2 cannot ask for this. Please use AWS4-HMAC-SHA256.",
        ));
    }
    if query.iter().any(|(name, _)| {
        query
            .iter()
            .filter(|(other, _)| other == name)
            .nth(1)
            .is_some()
    }) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "InvalidRequest",
            "A query parameter occurs twice.",
        ));
    }
    Ok(())
}

/// Checks the signature. `bucket` is the one that the host names.
pub fn verify(parts: &Parts, bucket: Option<&str>, secrets: &Secrets) -> Result<(), Refusal> {
    let query = guard::query(&parts.uri);
    if !is_signed(&query) {
        return Ok(());
    }
    let field = |name: &str| value(&query, name).unwrap_or_default();
    let refused = |code, message| Err(Refusal::new(StatusCode::FORBIDDEN, code, message));
    let Some(secret) = secrets(field("AWSAccessKeyId")) else {
        return refused(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        );
    };
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(string_to_sign(parts, bucket, &query).as_bytes());
    let expected = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    if bool::from(expected.as_bytes().ct_eq(field("Signature").as_bytes())) {
        return Ok(());
    }
    refused(
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
    )
}

fn string_to_sign(parts: &Parts, bucket: Option<&str>, query: &Query) -> String {
    let header = |name| {
        parts
            .headers
            .get(name)
            .and_then(|v: &http::HeaderValue| v.to_str().ok())
            .unwrap_or_default()
    };
    let mut out = format!(
        "{}\n{}\n{}\n{}\n",
        parts.method,
        header("content-md5"),
        header("content-type"),
        value(query, "Expires").unwrap_or_default()
    );
    let mut names: Vec<&str> = parts
        .headers
        .keys()
        .map(|name| name.as_str())
        .filter(|name| name.starts_with("x-amz-"))
        .collect();
    names.sort_unstable();
    for name in names {
        let values: Vec<&str> = parts
            .headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap_or_default().trim())
            .collect();
        out += &format!("{name}:{}\n", values.join(","));
    }
    if let Some(bucket) = bucket {
        out += "/";
        out += bucket;
    }
    out += parts.uri.path();
    let mut separator = '?';
    for name in SIGNED {
        if let Some(value) = value(query, name) {
            out.push(separator);
            out += name;
            if !value.is_empty() {
                out.push('=');
                out += value;
            }
            separator = '&';
        }
    }
    out
}

fn value<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    let found = query.iter().find(|(n, _)| n == name);
    found.map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;
    use s3s::auth::SecretKey;

    use super::*;

    fn verdict(method: &str, uri: &str, headers: &[(&str, &str)]) -> String {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let secrets: Secrets = Arc::new(|key| (key == "a").then(|| SecretKey::from("b")));
        check(&parts.method, &guard::query(&parts.uri))
            .and_then(|()| verify(&parts, None, &secrets))
            .err()
            .map_or(String::new(), |refusal| refusal.code.to_owned())
    }

    #[test]
    fn a_url_of_the_aws_cli_is_good_for_what_it_signs_and_nothing_else() {
        // Made by the CLI with the key `a` and the secret `b`.
        let url =
            "/b/k?AWSAccessKeyId=a&Signature=RfkT7ga5ZMQC8DMVOtfmjj0sjOg%3D&Expires=1795520109";
        assert_eq!(verdict("GET", url, &[]), "");
        assert_eq!(verdict("PUT", url, &[]), "SignatureDoesNotMatch");
        let other = url.replace("/b/k", "/b/l");
        assert_eq!(verdict("GET", &other, &[]), "SignatureDoesNotMatch");
        let later = url.replace("1795520109", "1795520110");
        assert_eq!(verdict("GET", &later, &[]), "SignatureDoesNotMatch");
        let stranger = url.replace("KeyId=a", "KeyId=c");
        assert_eq!(verdict("GET", &stranger, &[]), "InvalidAccessKeyId");
        let header = [("x-amz-acl", "public-read")];
        assert_eq!(verdict("GET", url, &header), "SignatureDoesNotMatch");
        for unsigned in [
            "encryption",
            "tagging",
            "x-id=GetObject",
            "unknown=1",
            "Expires=2",
        ] {
            let more = format!("{url}&{unsigned}");
            assert_eq!(verdict("GET", &more, &[]), "InvalidRequest", "{unsigned}");
        }
        let version = format!("{url}&versionId=null");
        assert_eq!(verdict("GET", &version, &[]), "SignatureDoesNotMatch");
        assert_eq!(verdict("POST", url, &[]), "InvalidRequest");
    }
}
