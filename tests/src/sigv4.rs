//! AWS Signature Version 4 for requests with a signed header set, written from the AWS description so that the
//! server is checked against something other than its own code.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// `x-amz-content-sha256` of a body that is not hashed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// A moment as `YYYYMMDDTHHMMSSZ`.
#[derive(Clone)]
pub struct Moment(String);

impl Moment {
    pub fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::from_unix(now.expect("the clock is past 1970").as_secs())
    }

    pub fn from_unix(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        Self(format!(
            "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn date(&self) -> &str {
        &self.0[..8]
    }
}

/// What of a request is signed. `path` and `query` are encoded already, `headers` holds lower-case names and
/// includes `host`; `x-amz-date` and `x-amz-content-sha256` are added by [`sign`].
pub struct Parts<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub payload_hash: &'a str,
}

/// The headers that make the request a signed one: date, payload hash and `authorization`.
pub fn sign(
    credentials: &Credentials,
    moment: &Moment,
    parts: &Parts<'_>,
) -> Vec<(&'static str, String)> {
    let mut headers: Vec<(&str, &str)> = parts.headers.to_vec();
    headers.push(("x-amz-date", moment.as_str()));
    headers.push(("x-amz-content-sha256", parts.payload_hash));
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|h| h.0).collect();
    let signed_names = names.join(";");
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        parts.method,
        parts.path,
        canonical_query(parts.query)
    );
    for (name, value) in &headers {
        canonical.push_str(&format!("{name}:{}\n", value.trim()));
    }
    canonical.push_str(&format!("\n{signed_names}\n{}", parts.payload_hash));

    let scope = format!("{}/{}/s3/aws4_request", moment.date(), credentials.region);
    let text = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
        moment.as_str(),
        hex::encode(Sha256::digest(&canonical))
    );
    let signature = hex::encode(hmac(&signing_key(credentials, moment), text.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed_names}, Signature={signature}",
        credentials.access_key
    );
    vec![
        ("x-amz-date", moment.as_str().to_owned()),
        ("x-amz-content-sha256", parts.payload_hash.to_owned()),
        ("authorization", authorization),
    ]
}

/// Percent-encodes a key for the path of a URL; slashes stay.
pub fn encode_path(key: &str) -> String {
    encode(key, b"-._~/")
}

/// Percent-encodes a query name or value.
pub fn encode_query(text: &str) -> String {
    encode(text, b"-._~")
}

fn encode(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            if p.contains('=') {
                p.to_owned()
            } else {
                format!("{p}=")
            }
        })
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn signing_key(credentials: &Credentials, moment: &Moment) -> Vec<u8> {
    let start = format!("AWS4{}", credentials.secret_key).into_bytes();
    let steps = [moment.date(), &credentials.region, "s3", "aws4_request"];
    steps
        .iter()
        .fold(start, |key, step| hmac(&key, step.as_bytes()))
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Days since 1970 to year, month, day (Gregorian).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(Moment::from_unix(0).as_str(), "19700101T000000Z");
        assert_eq!(
            Moment::from_unix(1_709_210_096).as_str(),
            "20240229T123456Z"
        );
        assert_eq!(
            Moment::from_unix(4_102_444_799).as_str(),
            "20991231T235959Z"
        );
    }

    /// The example "GET Object" of the AWS description of SigV4 for S3.
    #[test]
    fn example_of_the_description() {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
        };
        let empty = hex::encode(Sha256::digest(b""));
        let parts = Parts {
            method: "GET",
            path: "/test.txt",
            query: "",
            headers: &[
                ("host", "examplebucket.s3.amazonaws.com"),
                ("range", "bytes=0-9"),
            ],
            payload_hash: &empty,
        };
        let headers = sign(&credentials, &Moment("20130524T000000Z".into()), &parts);
        let authorization = &headers[2].1;
        assert!(
            authorization.ends_with(
                "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
            ),
            "{authorization}"
        );
    }

    #[test]
    fn encoding() {
        assert_eq!(encode_path("a b/ü%~"), "a%20b/%C3%BC%25~");
        assert_eq!(encode_query("a/b"), "a%2Fb");
        assert_eq!(canonical_query("uploads&prefix=a"), "prefix=a&uploads=");
    }
}
