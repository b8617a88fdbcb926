//! POST form uploads: a browser's form, signed by the policy in it, makes an object of its file.
//!
//! 1. The fields in front of the file are read, within a bound. The form's own signature is among them, so this is the one
//!    body of which something is read before a signature was checked.
//! 2. The policy's signature, expiry and conditions are checked; every field has to be covered by a condition, those of encryption too.
//! 3. The fields become the headers of a PutObject, and the file its body, as it streams.
//!
//! The engine wants to know an object's length ahead, and a form does not tell it. What a file may have at most is reckoned from the
//! length of the body; fields behind the file, which S3 ignores, take a bounded part of that, and the engine hears of the end
//! before the last package begins. A small file is gathered instead.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use s3s::dto::{Metadata, PutObjectInput, PutObjectOutput, Timestamp};
use s3s::post_policy::{PostPolicy, PostPolicyCondition};
use s3s::{Body, S3Error, S3ErrorCode, S3Request, S3Result, s3_error};
use std::ops::RangeInclusive;
use std::time::SystemTime;
use subtle::ConstantTimeEq as _;

use super::guard::{self, Place};
use super::reply::{DECLARATION, element as xml_element};
use super::{Edge, Handlers, Pending, RequestInfo};
use crate::body::form::{self, Fields, File};
use crate::body::sigv4::{ALGORITHM, Scope, SigningKey};
use crate::body::{BodyError, Upload, check_length, gather};
use crate::error::element;
use crate::limits;
use crate::ops::uri::percent_encode;
use crate::sse;

/// Fields that need no condition: the file, what proves the policy, and what nobody reads.
const UNCOVERED: [&str; 5] = ["x-amz-signature", "file", "policy", "submit", "bucket"];
/// Fields that say something of the form and not of the object.
const OF_THE_FORM: [&str; 5] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-signature",
    "x-amz-security-token",
];
/// Fields that become a header of the same name, beside those that begin with `x-amz-`.
const HEADERS: [&str; 7] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
    "expires",
];
const USER_METADATA: &str = "x-amz-meta-";
const FILENAME: &str = "${filename}";

/// Makes an object of a form.
pub async fn answer(
    edge: &Edge,
    handlers: &Handlers,
    parts: Parts,
    place: Place,
    body: &mut Pending,
) -> S3Result<Response<Body>> {
    let boundary =
        form::boundary(&parts.headers).unwrap_or(Err(BodyError::Form("it has no boundary")))?;
    let (mut fields, file) = body.form_head(&boundary).await?;
    let filename = std::mem::take(&mut fields.filename);
    for (_, value) in &mut fields.fields {
        if value.contains(FILENAME) {
            *value = value.replace(FILENAME, &filename);
        }
    }
    let policy = policy(edge, &fields)?;
    check_conditions(&policy, &fields, &place.bucket)?;
    let key = match fields.get("key") {
        Some(key) if !key.is_empty() => key.to_owned(),
        _ => {
            return Err(s3_error!(
                InvalidArgument,
                "Bucket POST must contain a field named 'key'. If it is specified, please check the order of the fields."
            ));
        }
    };
    let upload = open(&parts.headers, file, allowed(&policy), body).await?;
    let place = Place { key, ..place };
    let (headers, metadata) = headers(&fields)?;
    let info = parts.extensions.get::<RequestInfo>().cloned();
    let secure = info.as_ref().is_some_and(|info| info.secure);
    let mut extensions = parts.extensions.clone();
    extensions.insert(upload);
    let request = S3Request {
        input: PutObjectInput {
            bucket: place.bucket.clone(),
            key: place.key.clone(),
            metadata: Some(metadata),
            ..Default::default()
        },
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers,
        extensions,
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    };
    let output = handlers.store.put_object(request).await?.output;
    let scheme = if secure { "https" } else { "http" };
    let host = guard::host(&parts).unwrap_or_default();
    let location = format!(
        "{scheme}://{host}/{}/{}",
        place.bucket,
        percent_encode(&place.key)
    );
    Ok(success(&fields, &place, &location, output))
}

/// The file as the body of an upload: open-ended, or gathered where it is small.
async fn open(
    headers: &HeaderMap,
    file: File,
    allowed: RangeInclusive<u64>,
    body: &mut Pending,
) -> S3Result<Upload> {
    let total = match headers.get(header::CONTENT_LENGTH) {
        None => None,
        Some(length) => length.to_str().ok().and_then(|text| text.parse().ok()),
    };
    let small = limits::FORM_GATHERED_BYTES_MAX;
    if let Some(total) = total
        && file.rest_of(total) > small as u64
    {
        let most = file.length_within(total);
        let most = most.ok_or(BodyError::Form("it ends before its file"))?;
        let least = most.saturating_sub(limits::FORM_AFTER_BYTES_MAX);
        // Told before the file is read.
        check_length(least..=most, &allowed)?;
        return Ok(body.form_file(file, Some(most), allowed));
    }
    let streamed = body.form_file(file, None, allowed);
    match gather(&streamed, small).await {
        Ok(bytes) => Ok(Upload::of_bytes(bytes)),
        // More than that, of a body that does not tell its length.
        Err(BodyError::TooLarge) => Err(BodyError::MissingLength.into()),
        Err(error) => Err(error.into()),
    }
}

/// The policy in the form, if it is signed and still holds.
fn policy(edge: &Edge, fields: &Fields) -> S3Result<PostPolicy> {
    if fields.get("awsaccesskeyid").is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
        ));
    }
    let need = |name: &'static str| {
        let value = fields.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| {
            let message = format!("Bucket POST must contain a field named '{name}'. If it is specified, please check the order of the fields.");
            S3Error::with_message(S3ErrorCode::InvalidArgument, message)
        })
    };
    let Some(encoded) = fields.get("policy") else {
        return Err(s3_error!(AccessDenied, "Access Denied"));
    };
    if need("x-amz-algorithm")? != ALGORITHM {
        return Err(s3_error!(
            InvalidRequest,
            "X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\""
        ));
    }
    let scope = Scope::parse(need("x-amz-credential")?)
        .ok_or_else(|| s3_error!(InvalidArgument, "Error parsing the X-Amz-Credential field."))?;
    if scope.region != edge.region {
        let message = format!(
            "The X-Amz-Credential field is malformed; the region '{}' is wrong; expecting '{}'",
            scope.region, edge.region
        );
        let fault = S3Error::with_message(S3ErrorCode::AuthorizationHeaderMalformed, message);
        return Err(element(fault, "Region", &edge.region));
    }
    if scope.service != "s3" || !need("x-amz-date")?.starts_with(scope.date) {
        return Err(s3_error!(
            InvalidArgument,
            "The X-Amz-Credential field does not fit the X-Amz-Date field or the service."
        ));
    }
    let secret = (edge.secrets)(scope.access_key).ok_or_else(|| {
        s3_error!(
            InvalidAccessKeyId,
            "The AWS Access Key Id you provided does not exist in our records."
        )
    })?;
    let expected = SigningKey::derive(secret.expose(), &scope).sign(encoded);
    let given = need("x-amz-signature")?;
    if !bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
        return Err(s3_error!(
            SignatureDoesNotMatch,
            "The request signature we calculated does not match the signature you provided. Check your key and signing method."
        ));
    }
    let policy = PostPolicy::from_base64(encoded).map_err(|e| {
        let message = format!("Invalid Policy: {e}");
        S3Error::with_message(S3ErrorCode::InvalidPolicyDocument, message)
    })?;
    if Timestamp::from(SystemTime::now()) >= policy.expiration {
        return Err(denied("Policy expired."));
    }
    Ok(policy)
}

fn check_conditions(policy: &PostPolicy, fields: &Fields, bucket: &str) -> S3Result<()> {
    let value = |name: &str| match name {
        "bucket" => Some(bucket),
        name => fields.get(name),
    };
    if fields.get("bucket").is_some_and(|named| named != bucket) {
        return Err(denied("The form's bucket is not that of the request."));
    }
    let mut names: Vec<&str> = fields
        .fields
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        // The policy would speak of one, and the object be made by the other.
        return Err(s3_error!(InvalidArgument, "A form field is there twice."));
    }
    for condition in &policy.conditions {
        let (holds, operator, field) = match condition {
            PostPolicyCondition::Eq {
                field,
                value: wanted,
            } => (value(field) == Some(wanted), "eq", field),
            PostPolicyCondition::StartsWith { field, prefix } => {
                let starts = value(field).is_some_and(|v| v.starts_with(prefix.as_str()));
                (starts, "starts-with", field)
            }
            PostPolicyCondition::ContentLengthRange { .. } => continue,
        };
        if !holds {
            return Err(denied(&format!(
                "Policy Condition failed: [\"{operator}\", \"${field}\"]"
            )));
        }
    }
    let covered = |name: &str| {
        policy.conditions.iter().any(|condition| match condition {
            PostPolicyCondition::Eq { field, .. }
            | PostPolicyCondition::StartsWith { field, .. } => field == name,
            PostPolicyCondition::ContentLengthRange { .. } => false,
        })
    };
    let extra: Vec<&str> = names
        .into_iter()
        .filter(|name| !UNCOVERED.contains(name) && !name.starts_with("x-ignore-"))
        .filter(|name| !covered(name))
        .collect();
    match extra.is_empty() {
        true => Ok(()),
        false => Err(denied(&format!("Extra input fields: {}", extra.join(", ")))),
    }
}

/// The lengths that all conditions allow.
fn allowed(policy: &PostPolicy) -> RangeInclusive<u64> {
    let mut allowed = (0, u64::MAX);
    for condition in &policy.conditions {
        if let PostPolicyCondition::ContentLengthRange { min, max } = condition {
            allowed = (allowed.0.max(*min), allowed.1.min(*max));
        }
    }
    allowed.0..=allowed.1
}

fn denied(why: &str) -> S3Error {
    let message = format!("Invalid according to Policy: {why}");
    S3Error::with_message(S3ErrorCode::AccessDenied, message)
}

/// The fields as a PutObject would have them.
fn headers(fields: &Fields) -> S3Result<(HeaderMap, Metadata)> {
    let (mut headers, mut metadata) = (HeaderMap::new(), Metadata::new());
    for (name, value) in &fields.fields {
        if let Some(name) = name.strip_prefix(USER_METADATA) {
            metadata.insert(name.to_owned(), value.clone());
            continue;
        }
        let header = match name.as_str() {
            "acl" => "x-amz-acl",
            "tagging" => "x-amz-tagging",
            name if OF_THE_FORM.contains(&name) => continue,
            name if name.starts_with("x-amz-") || HEADERS.contains(&name) => name,
            _ => continue,
        };
        let invalid = || {
            let fault = s3_error!(InvalidArgument, "A form field cannot be read.");
            element(fault, "ArgumentName", name)
        };
        let header = HeaderName::from_bytes(header.as_bytes()).map_err(|_| invalid())?;
        let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?;
        value.set_sensitive(sse::PRIVATE.contains(&header.as_str()));
        headers.insert(header, value);
    }
    Ok((headers, metadata))
}

/// The answer the form asks for.
fn success(
    fields: &Fields,
    place: &Place,
    location: &str,
    output: PutObjectOutput,
) -> Response<Body> {
    let etag = output.e_tag.as_ref().map(|e| e.value()).unwrap_or_default();
    let etag = format!("\"{etag}\"");
    let mut response = Response::new(Body::empty());
    let redirect = ["success_action_redirect", "redirect"]
        .iter()
        .find_map(|name| redirect(fields.get(name)?, place, &etag));
    let status = fields.get("success_action_status");
    let (status, location) = match (redirect, status) {
        (Some(to), _) => (StatusCode::SEE_OTHER, to),
        (None, Some("200")) => (StatusCode::OK, location.to_owned()),
        (None, Some("201")) => {
            *response.body_mut() = Body::from(created(place, location, &etag));
            let kind = HeaderValue::from_static("application/xml");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            (StatusCode::CREATED, location.to_owned())
        }
        (None, _) => (StatusCode::NO_CONTENT, location.to_owned()),
    };
    *response.status_mut() = status;
    let text = |value: &dyn ToString| Some(value.to_string());
    let told = [
        ("location", Some(location)),
        ("etag", Some(etag)),
        (
            sse::HEADER,
            output.server_side_encryption.map(|m| m.as_str().to_owned()),
        ),
        (sse::KMS_KEY_ID, output.ssekms_key_id),
        (sse::CONTEXT, output.ssekms_encryption_context),
        (
            sse::BUCKET_KEY,
            output.bucket_key_enabled.and_then(|on| text(&on)),
        ),
        (sse::CUSTOMER[0], output.sse_customer_algorithm),
        (sse::CUSTOMER[2], output.sse_customer_key_md5),
        ("x-amz-checksum-crc32", output.checksum_crc32),
        ("x-amz-checksum-crc32c", output.checksum_crc32c),
        ("x-amz-checksum-crc64nvme", output.checksum_crc64nvme),
        ("x-amz-checksum-sha1", output.checksum_sha1),
        ("x-amz-checksum-sha256", output.checksum_sha256),
        (
            "x-amz-checksum-type",
            output.checksum_type.map(|t| t.as_str().to_owned()),
        ),
    ];
    for (name, value) in told {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Where the form wants its client to go, with what was made.
fn redirect(to: &str, place: &Place, etag: &str) -> Option<String> {
    let uri: Uri = to.parse().ok()?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return None;
    }
    let (to, fragment) = match to.split_once('#') {
        Some((to, fragment)) => (to, format!("#{fragment}")),
        None => (to, String::new()),
    };
    let join = if to.contains('?') { '&' } else { '?' };
    Some(format!(
        "{to}{join}bucket={}&key={}&etag={}{fragment}",
        percent_encode(&place.bucket),
        percent_encode(&place.key),
        percent_encode(etag)
    ))
}

fn created(place: &Place, location: &str, etag: &str) -> Bytes {
    let mut xml = format!("{DECLARATION}<PostResponse>");
    for (name, value) in [
        ("Location", location),
        ("Bucket", &place.bucket),
        ("Key", &place.key),
        ("ETag", etag),
    ] {
        xml_element(&mut xml, name, value);
    }
    xml.push_str("</PostResponse>");
    xml.into()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let own = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        Fields {
            fields: pairs.iter().map(own).collect(),
            filename: String::new(),
        }
    }

    fn policy(conditions: &str) -> PostPolicy {
        let json =
            format!(r#"{{"expiration":"2999-01-01T00:00:00.000Z","conditions":[{conditions}]}}"#);
        PostPolicy::from_base64(&STANDARD.encode(json)).expect("a policy")
    }

    #[test]
    fn every_field_is_covered_and_every_condition_holds() {
        let check = |conditions: &str, pairs: &[(&str, &str)]| {
            let checked = check_conditions(&policy(conditions), &fields(pairs), "b");
            checked
                .err()
                .map_or("none".into(), |e| e.code().as_str().to_owned())
        };
        let eq = r#"["eq","$key","k"]"#;
        assert_eq!(check(eq, &[("key", "k")]), "none");
        assert_eq!(check(eq, &[("key", "K")]), "AccessDenied");
        assert_eq!(check(eq, &[]), "AccessDenied");
        let starts = r#"["starts-with","$key","user/"],{"bucket":"b"}"#;
        assert_eq!(check(starts, &[("key", "user/x")]), "none");
        assert_eq!(check(starts, &[("key", "use")]), "AccessDenied");
        assert_eq!(check(r#"{"bucket":"c"}"#, &[]), "AccessDenied");
        assert_eq!(
            check(starts, &[("key", "user/x"), ("bucket", "c")]),
            "AccessDenied"
        );
        let any = r#"["starts-with","$key",""]"#;
        let with = |name| check(any, &[("key", "k"), (name, "v")]);
        assert_eq!(with("x-ignore-me"), "none");
        assert_eq!(with("submit"), "none");
        for name in [
            sse::HEADER,
            sse::CUSTOMER[1],
            "content-type",
            "x-amz-meta-a",
        ] {
            assert_eq!(with(name), "AccessDenied", "{name}");
        }
        assert_eq!(with("key"), "InvalidArgument");
        let covered = format!(r#"{any},{{"{}":"AES256"}}"#, sse::HEADER);
        assert_eq!(
            check(&covered, &[("key", "k"), (sse::HEADER, "AES256")]),
            "none"
        );
        assert_eq!(check(&covered, &[("key", "k")]), "AccessDenied");
    }

    #[test]
    fn lengths_have_their_range() {
        let of = |conditions| allowed(&policy(conditions));
        assert_eq!(of(r#"["content-length-range",2,4]"#), 2..=4);
        let twice = r#"["content-length-range",2,9],["content-length-range",1,4]"#;
        assert_eq!(of(twice), 2..=4);
        assert_eq!(of(r#"["eq","$key","k"]"#), 0..=u64::MAX);
    }

    #[test]
    fn fields_become_headers_and_metadata() {
        let fields = fields(&[
            ("content-type", "a/b"),
            ("acl", "private"),
            ("x-amz-meta-a", "ü"),
            (sse::CUSTOMER[1], "secret"),
            ("x-amz-date", "x"),
            ("anything", "x"),
        ]);
        let (headers, metadata) = headers(&fields).expect("fine");
        assert_eq!(headers.len(), 3);
        assert_eq!(headers["x-amz-acl"], "private");
        assert!(headers[sse::CUSTOMER[1]].is_sensitive());
        assert_eq!(metadata["a"], "ü");
        let broken = [("content-type", "a\nb")];
        assert!(super::headers(&super::tests::fields(&broken)).is_err());
    }

    #[test]
    fn answers_are_those_the_form_asks_for() {
        let place = Place {
            bucket: "b".into(),
            key: "a b/<c>".into(),
        };
        let answer = |pairs: &[(&str, &str)]| {
            let response = success(
                &fields(pairs),
                &place,
                "http://h/b/k",
                PutObjectOutput::default(),
            );
            let location = response.headers()["location"]
                .to_str()
                .expect("text")
                .to_owned();
            (
                response.status().as_u16(),
                location,
                response.into_body().bytes(),
            )
        };
        let here = "http://h/b/k";
        for (asked, status) in [("200", 200), ("204", 204), ("404", 204), ("", 204)] {
            let seen = answer(&[("success_action_status", asked)]);
            assert_eq!((seen.0, seen.1.as_str()), (status, here));
        }
        let (status, _, body) = answer(&[("success_action_status", "201")]);
        let body = String::from_utf8(body.expect("a body").to_vec()).expect("text");
        assert_eq!(status, 201);
        assert!(body.contains("<Key>a b/&lt;c&gt;</Key>"), "{body}");
        let to = |url| answer(&[("success_action_redirect", url)]);
        let tail = "bucket=b&key=a%20b/%3Cc%3E&etag=%22%22";
        assert_eq!(to("https://x/y").0, 303);
        assert_eq!(to("https://x/y").1, format!("https://x/y?{tail}"));
        assert_eq!(to("https://x/y?z=1").1, format!("https://x/y?z=1&{tail}"));
        for bad in ["javascript:alert(1)", "/relative", "not a url"] {
            assert_eq!(to(bad).0, 204, "{bad}");
        }
    }
}
