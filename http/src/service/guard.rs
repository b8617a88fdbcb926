//! Looks at a request before the S3 layer does, and refuses what that layer would take for
//! something else.
//!
//! The S3 layer routes by the query keys it knows and ignores the others: `PUT /bucket/key?x` with
//! an `x` it does not know would replace the object by the request's XML. So everything that could
//! be a subresource is refused unless it is known to be routed, and what the S3 layer is lenient
//! about (old signatures, unsigned headers) is refused with S3's own errors.

use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;

use super::host::Domains;
use super::presign_v2;
use super::reply::Refusal;
use crate::body::sigv4::{ALGORITHM, Authorization, Scope};
use crate::limits;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The service.
    Root,
    /// A bucket.
    Bucket,
    /// An object.
    Object,
}

/// A request that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it is about.
    pub target: Target,
    /// Whether its body is an object's data.
    pub upload: bool,
    /// Whether its body is a form that makes an object.
    pub form: bool,
}

/// What S3 knows as subresources, here or elsewhere.
const SUBRESOURCES: [&str; 42] = [
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "annotation",
    "annotations",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "uploads",
    "versioning",
    "versions",
    "website",
    "append",
    "events",
];

/// Those that the S3 layer routes, and so answers with 501 itself where there is no handler.
fn routed(method: &Method, target: Target) -> &'static [&'static str] {
    match (method.as_str(), target) {
        ("GET", Target::Bucket) => &[
            "accelerate",
            "acl",
            "cors",
            "encryption",
            "lifecycle",
            "location",
            "logging",
            "notification",
            "object-lock",
            "ownershipControls",
            "policy",
            "policyStatus",
            "publicAccessBlock",
            "replication",
            "requestPayment",
            "tagging",
            "uploads",
            "versioning",
            "versions",
            "website",
        ],
        ("GET", Target::Object) => &["acl", "attributes", "legal-hold", "retention", "tagging"],
        // Of the others the S3 layer would read the XML first, and complain of that.
        ("PUT", Target::Bucket | Target::Object) => &["encryption"],
        ("POST", Target::Bucket) => &["delete"],
        ("POST", Target::Object) => &["uploads"],
        ("DELETE", Target::Bucket) => &[
            "cors",
            "encryption",
            "lifecycle",
            "ownershipControls",
            "policy",
            "publicAccessBlock",
            "replication",
            "tagging",
            "website",
        ],
        ("DELETE", Target::Object) => &["tagging"],
        _ => &[],
    }
}

/// Headers that need no signature: they say nothing that S3 acts on, or are proven otherwise.
const UNSIGNED_HEADERS: [&str; 4] = [
    "x-amz-cf-id",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-user-agent",
];

/// Checks a request by its head.
pub fn check(parts: &Parts, domains: &Domains) -> Result<Checked, Refusal> {
    if parts.method == Method::OPTIONS {
        return Err(preflight(&parts.headers));
    }
    let length = parts.uri.path_and_query().map_or(0, |pq| pq.as_str().len());
    if length > limits::URI_BYTES_MAX {
        return Err(Refusal::new(
            StatusCode::URI_TOO_LONG,
            "RequestURITooLong",
            "The request URI is too long.",
        ));
    }
    let query = query(&parts.uri);
    if query.len() > limits::QUERY_PARAMETERS_MAX {
        return Err(bad(
            "InvalidArgument",
            "There are too many query parameters.",
        ));
    }
    let target = target(parts, domains);
    let subresource = subresource(&parts.method, target, &query)?;
    parameters(&parts.method, target, subresource, &query)?;
    signature(parts, &query)?;
    metadata(&parts.headers)?;
    let form = parts.method == Method::POST && is_form(&parts.headers);
    if form && (target != Target::Bucket || subresource.is_some()) {
        return Err(Refusal::not_implemented(
            "A form makes an object in a bucket and does nothing else.",
        ));
    }
    let upload = parts.method == Method::PUT
        && target == Target::Object
        && subresource.is_none()
        && !parts.headers.contains_key("x-amz-copy-source");
    Ok(Checked {
        target,
        upload,
        form,
    })
}

/// Refuses a metadata value with an encoded word whose beginning is its end: the S3 layer panics where it decodes one.
fn metadata(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_broken = |value: &str| {
        let value = value.trim();
        let encoded = value.starts_with("=?") && value.ends_with("?=");
        encoded && value.split_whitespace().any(|word| word == "=?=")
    };
    for (name, value) in headers {
        if name.as_str().starts_with("x-amz-meta-")
            && std::str::from_utf8(value.as_bytes()).is_ok_and(is_broken)
        {
            return Err(bad(
                "InvalidArgument",
                "A metadata value is a malformed encoded word.",
            ));
        }
    }
    Ok(())
}

/// The query's names and values, decoded.
pub fn query(uri: &Uri) -> Vec<(String, String)> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect()
}

/// The names in a request's target, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Never empty.
    pub bucket: String,
    /// Empty where the target is the bucket.
    pub key: String,
}

/// What a request is about, by name; none where that is the service, or no text.
pub fn place(parts: &Parts, domains: &Domains) -> Option<Place> {
    let path = percent_decode_str(parts.uri.path()).decode_utf8().ok()?;
    let path = path.strip_prefix('/').unwrap_or(&path);
    let (bucket, key) = match host(parts).and_then(|host| domains.bucket(host)) {
        Some(bucket) => (bucket, path.to_owned()),
        None => {
            let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
            (bucket.to_owned(), key.to_owned())
        }
    };
    (!bucket.is_empty()).then_some(Place { bucket, key })
}

/// The host a request was sent to.
pub fn host(parts: &Parts) -> Option<&str> {
    let header = parts.headers.get(header::HOST);
    match header {
        Some(host) => host.to_str().ok(),
        None => parts.uri.authority().map(|a| a.as_str()),
    }
}

fn target(parts: &Parts, domains: &Domains) -> Target {
    let path: Vec<u8> = percent_decode_str(parts.uri.path()).collect();
    let path = path.strip_prefix(b"/").unwrap_or(&path);
    if host(parts).is_some_and(|host| domains.bucket(host).is_some()) {
        return match path {
            b"" => Target::Bucket,
            _ => Target::Object,
        };
    }
    match path.iter().position(|&b| b == b'/') {
        _ if path.is_empty() => Target::Root,
        None => Target::Bucket,
        Some(at) if at + 1 == path.len() => Target::Bucket,
        Some(_) => Target::Object,
    }
}

fn subresource<'a>(
    method: &Method,
    target: Target,
    query: &'a [(String, String)],
) -> Result<Option<&'a str>, Refusal> {
    let mut found: Option<&str> = None;
    let writes = [Method::PUT, Method::POST, Method::DELETE].contains(method);
    for (name, value) in query {
        if SUBRESOURCES.contains(&name.as_str()) {
            if !routed(method, target).contains(&name.as_str()) {
                return Err(unknown(name));
            }
            if found.is_some_and(|other| other != name) {
                return Err(
                    bad("InvalidArgument", "Conflicting query string parameters.")
                        .with("ArgumentName", "ResourceType")
                        .with("ArgumentValue", name),
                );
            }
            found = Some(name);
        } else if writes && value.is_empty() && !is_parameter(name) {
            return Err(unknown(name));
        }
    }
    Ok(found)
}

fn unknown(name: &str) -> Refusal {
    Refusal::not_implemented("The requested subresource is not implemented.")
        .with("ArgumentName", name)
}

fn is_parameter(name: &str) -> bool {
    let starts = |prefix: &str| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    starts("x-") || starts("response-") || ["versionId", "partNumber", "uploadId"].contains(&name)
}

/// Combinations that the S3 layer would take for a plain write or delete.
fn parameters(
    method: &Method,
    target: Target,
    subresource: Option<&str>,
    query: &[(String, String)],
) -> Result<(), Refusal> {
    let has = |name: &str| query.iter().any(|(n, _)| n == name);
    if target != Target::Object || subresource.is_some() {
        return Ok(());
    }
    match method.as_str() {
        "PUT" if has("partNumber") != has("uploadId") => Err(bad(
            "InvalidArgument",
            "A part needs both a partNumber and an uploadId.",
        )),
        "PUT" if has("versionId") => Err(bad(
            "InvalidArgument",
            "This operation does not accept a version-id.",
        )
        .with("ArgumentName", "versionId")),
        "DELETE" if has("partNumber") => Err(Refusal::not_implemented(
            "A part cannot be deleted on its own.",
        )),
        _ => Ok(()),
    }
}

fn signature(parts: &Parts, query: &[(String, String)]) -> Result<(), Refusal> {
    let get = |name: &str| {
        let found = query.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    };
    let header = parts.headers.get(header::AUTHORIZATION);
    let presigned = query.iter().any(|(name, _)| {
        matches!(
            name.as_str(),
            "X-Amz-Signature" | "X-Amz-Algorithm" | "X-Amz-Credential"
        )
    });
    if header.is_some_and(|value| value.as_bytes().starts_with(b"AWS ")) {
        return Err(bad(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. Please use \
             AWS4-HMAC-SHA256.",
        ));
    }
    let old = presign_v2::is_signed(query);
    if (presigned || old) && header.is_some() || presigned && old {
        return Err(bad(
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, or the \
             Authorization header should be specified.",
        ));
    }
    if old {
        return presign_v2::check(&parts.method, query);
    }
    let signed = if presigned {
        check_presigned(get)?
    } else if let Some(value) = header {
        let authorization = value.to_str().ok().and_then(Authorization::parse);
        let malformed = || {
            bad(
                "AuthorizationHeaderMalformed",
                "The authorization header is malformed.",
            )
        };
        authorization.ok_or_else(malformed)?.signed_headers
    } else {
        return Ok(());
    };
    for name in parts.headers.keys().map(|name| name.as_str()) {
        if name.starts_with("x-amz-")
            && !UNSIGNED_HEADERS.contains(&name)
            && !signed.split(';').any(|signed| signed == name)
        {
            let message = "There were headers present in the request which were not signed";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "AccessDenied", message)
                .with("HeadersNotSigned", name));
        }
    }
    Ok(())
}

fn check_presigned<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<&'a str, Refusal> {
    let malformed = |message: &str| bad("AuthorizationQueryParametersError", message);
    let need = |name: &str| {
        get(name).ok_or_else(|| {
            malformed(
                "Query-string authentication version 4 requires the X-Amz-Algorithm, \
                 X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and \
                 X-Amz-Expires parameters.",
            )
        })
    };
    if need("X-Amz-Algorithm")? != ALGORITHM {
        return Err(malformed(
            "X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"",
        ));
    }
    if !is_amz_date(need("X-Amz-Date")?) {
        return Err(malformed(
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"",
        ));
    }
    need("X-Amz-Signature")?;
    Scope::parse(need("X-Amz-Credential")?)
        .ok_or_else(|| malformed("Error parsing the X-Amz-Credential parameter."))?;
    let expires: i64 = need("X-Amz-Expires")?
        .parse()
        .map_err(|_| malformed("X-Amz-Expires should be a number"))?;
    match expires {
        ..0 => Err(malformed("X-Amz-Expires must be non-negative")),
        0..=604_800 => need("X-Amz-SignedHeaders"),
        _ => Err(malformed(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given \
             X-Amz-Expires must be less than 604800 seconds",
        )),
    }
}

/// `20261124T060708Z` and the like.
fn is_amz_date(text: &str) -> bool {
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    text.len() == 16
        && text.is_ascii()
        && digits(&text[..8])
        && &text[8..9] == "T"
        && digits(&text[9..15])
        && &text[15..] == "Z"
}

fn preflight(headers: &HeaderMap) -> Refusal {
    let asked = headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if asked {
        Refusal::new(
            StatusCode::FORBIDDEN,
            "AccessForbidden",
            "CORSResponse: CORS is not enabled for this bucket.",
        )
    } else {
        bad(
            "BadRequest",
            "Insufficient information. Origin request header needed.",
        )
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| {
        let kind = kind.as_bytes().to_ascii_lowercase();
        kind.trim_ascii_start().starts_with(b"multipart/form-data")
    })
}

fn bad(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, code, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn checked(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Checked, Refusal> {
        let domains = Domains::new(["s3.test".to_owned()]);
        check(&parts(method, uri, headers), &domains)
    }

    fn code(method: &str, uri: &str, headers: &[(&str, &str)]) -> &'static str {
        checked(method, uri, headers).err().map_or("", |r| r.code)
    }

    #[test]
    fn only_plain_writes_of_objects_are_uploads() {
        let upload = |method, uri| checked(method, uri, &[]).unwrap().upload;
        assert!(upload("PUT", "/b/k"));
        assert!(upload("PUT", "/b//"));
        assert!(upload("PUT", "/b%2Fk"));
        assert!(upload(
            "PUT",
            "/b/k?partNumber=1&uploadId=u&x-id=UploadPart"
        ));
        assert!(!upload("PUT", "/b"));
        assert!(!upload("PUT", "/b/"));
        assert!(!upload("POST", "/b/k?uploadId=u"));
        assert!(!upload("GET", "/b/k"));
        let copy = [("x-amz-copy-source", "/b/k")];
        assert!(!checked("PUT", "/b/k", &copy).unwrap().upload);
        let host = [("host", "b.s3.test:9000")];
        assert!(checked("PUT", "/k", &host).unwrap().upload);
        assert_eq!(checked("PUT", "/", &host).unwrap().target, Target::Bucket);
        assert_eq!(checked("GET", "/", &[]).unwrap().target, Target::Root);
    }

    #[test]
    fn nothing_unknown_falls_through_to_a_write() {
        for uri in [
            "/b/k?annotation=name",
            "/b/k?renameObject",
            "/b/k?website",
            "/b/k?nonsense",
            "/b/k?nonsense=",
            "/b?nonsense",
            "/b?abac",
            "/b?delete",
        ] {
            assert_eq!(code("PUT", uri, &[]), "NotImplemented", "{uri}");
        }
        assert_eq!(code("DELETE", "/b/k?restore", &[]), "NotImplemented");
        assert_eq!(code("DELETE", "/b?versioning", &[]), "NotImplemented");
        assert_eq!(
            code("POST", "/b/k?select&select-type=2", &[]),
            "NotImplemented"
        );
        assert_eq!(code("GET", "/b/k?torrent", &[]), "NotImplemented");
        assert_eq!(code("GET", "/b?session", &[]), "NotImplemented");
        for uri in [
            "/b?acl",
            "/b?versioning",
            "/b?policy",
            "/b/k?tagging",
            "/b/k?retention",
        ] {
            assert_eq!(code("PUT", uri, &[]), "NotImplemented", "{uri}");
        }
        assert_eq!(code("POST", "/b/k?restore", &[]), "NotImplemented");
        assert_eq!(code("GET", "/b?acl&policy", &[]), "InvalidArgument");
    }

    #[test]
    fn every_subresource_is_routed_or_refused() {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            for (uri, target) in [
                ("/", Target::Root),
                ("/b", Target::Bucket),
                ("/b/k", Target::Object),
            ] {
                for name in SUBRESOURCES {
                    let method_ = Method::from_bytes(method.as_bytes()).unwrap();
                    let passes = routed(&method_, target).contains(&name);
                    let code = code(method, &format!("{uri}?{name}"), &[]);
                    let expected = if passes { "" } else { "NotImplemented" };
                    assert_eq!(code, expected, "{method} {uri}?{name}");
                }
            }
        }
    }

    #[test]
    fn places_are_named_decoded() {
        let domains = Domains::new(["s3.test".to_owned()]);
        let place = |uri: &str, host: &str| {
            let parts = parts("PUT", uri, &[("host", host)]);
            super::place(&parts, &domains).map(|p| (p.bucket, p.key))
        };
        let named = |bucket: &str, key: &str| Some((bucket.to_owned(), key.to_owned()));
        assert_eq!(place("/b/k%2F%20/?encryption", "x"), named("b", "k/ /"));
        assert_eq!(place("/b//", "x"), named("b", "/"));
        assert_eq!(place("/b", "x"), named("b", ""));
        assert_eq!(place("/b/", "x"), named("b", ""));
        assert_eq!(place("/", "x"), None);
        assert_eq!(place("/%ff/k", "x"), None);
        assert_eq!(place("/a/b", "b.s3.test:9"), named("b", "a/b"));
    }

    #[test]
    fn an_object_s_encryption_is_no_upload_of_it() {
        for uri in [
            "/b/k?encryption",
            "/b/k?encryption=",
            "/b/k?encryption=x",
            "/b/k?%65ncryption",
        ] {
            assert!(!checked("PUT", uri, &[]).unwrap().upload, "{uri}");
        }
        for method in ["GET", "DELETE", "POST"] {
            assert_eq!(code(method, "/b/k?encryption", &[]), "NotImplemented");
        }
    }

    #[test]
    fn parameters_pass_empty_or_not() {
        for uri in [
            "/b/k?x-id=PutObject",
            "/b/k?X-Amz-Custom=",
            "/b/k?response-content-type=",
            "/b/k?foo=bar",
        ] {
            assert_eq!(code("PUT", uri, &[]), "", "{uri}");
        }
        assert_eq!(code("DELETE", "/b/k?versionId=", &[]), "");
        assert_eq!(code("GET", "/b?prefix=&delimiter=&list-type=2", &[]), "");
        assert_eq!(code("GET", "/b?anything", &[]), "");
        for uri in ["/b/k?uploadId=u", "/b/k?partNumber=1", "/b/k?versionId=v"] {
            assert_eq!(code("PUT", uri, &[]), "InvalidArgument", "{uri}");
        }
    }

    #[test]
    fn signatures_cover_what_s3_acts_on() {
        let with = |signed: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, \
                 SignedHeaders={signed}, Signature=0"
            )
        };
        let good = with("host;x-amz-acl;x-amz-date");
        let acl = ("x-amz-acl", "private");
        assert_eq!(code("PUT", "/b/k", &[("authorization", &good), acl]), "");
        let bare = with("host;x-amz-date");
        let refused = checked("PUT", "/b/k", &[("authorization", &bare), acl]).unwrap_err();
        assert_eq!(refused.code, "AccessDenied");
        assert_eq!(
            refused.extra,
            [("HeadersNotSigned", "x-amz-acl".to_owned())]
        );
        let hash = ("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
        assert_eq!(code("PUT", "/b/k", &[("authorization", &bare), hash]), "");

        assert_eq!(
            code("GET", "/", &[("authorization", "AWS a:b")]),
            "InvalidRequest"
        );
        let nonsense = [("authorization", "Bearer x")];
        assert_eq!(code("GET", "/", &nonsense), "AuthorizationHeaderMalformed");
        let old = "/b/k?AWSAccessKeyId=a&Signature=b&Expires=1";
        assert_eq!(code("GET", old, &[]), "");
        assert_eq!(
            code("DELETE", &format!("{old}&x-a=b"), &[]),
            "InvalidRequest"
        );
        assert_eq!(
            code("GET", old, &[("authorization", &bare)]),
            "InvalidArgument"
        );
    }

    #[test]
    fn presigned_queries_are_whole() {
        let whole = "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k%2F20260101%2F\
                     us-east-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&\
                     X-Amz-SignedHeaders=host&X-Amz-Signature=0";
        assert_eq!(code("GET", whole, &[]), "");
        for (from, to) in [
            ("Expires=60", "Expires=604801"),
            ("Expires=60", "Expires=-1"),
            ("Expires=60", "Expires=soon"),
            ("X-Amz-Expires=60&", ""),
            ("X-Amz-Signature=0", "X-Amz-Nothing=0"),
            ("%2Faws4_request", ""),
            ("HMAC-SHA256", "ECDSA-P256-SHA256"),
        ] {
            let uri = whole.replace(from, to);
            assert_eq!(
                code("GET", &uri, &[]),
                "AuthorizationQueryParametersError",
                "{uri}"
            );
        }
        let extra = [("x-amz-meta-a", "b")];
        assert_eq!(code("PUT", whole, &extra), "AccessDenied");
        let both = [("authorization", "AWS4-HMAC-SHA256 x")];
        assert_eq!(code("GET", whole, &both), "InvalidArgument");
    }

    #[test]
    fn preflights_are_refused_and_forms_known() {
        let asks = [("origin", "x"), ("access-control-request-method", "GET")];
        assert_eq!(code("OPTIONS", "/b/k", &asks), "AccessForbidden");
        assert_eq!(code("OPTIONS", "/b/k", &[]), "BadRequest");
        let form = [("content-type", "Multipart/Form-Data; boundary=x")];
        assert!(checked("POST", "/b", &form).unwrap().form);
        for elsewhere in ["/", "/b/k", "/b?delete"] {
            assert_eq!(code("POST", elsewhere, &form), "NotImplemented");
        }
        assert!(!checked("PUT", "/b/k", &form).unwrap().form);
        let long = format!("/b/k?x-a={}", "a".repeat(limits::URI_BYTES_MAX));
        assert_eq!(code("GET", &long, &[]), "RequestURITooLong");
        let many = format!("/b/k?{}", "a=b&".repeat(limits::QUERY_PARAMETERS_MAX + 1));
        assert_eq!(code("GET", &many, &[]), "InvalidArgument");
    }
}
