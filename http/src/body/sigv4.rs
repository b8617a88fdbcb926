//! Signature Version 4, as far as bodies need it: the signing key of a request, the chain of chunk
//! signatures that starts with the request's own, and signing a request anew.
//!
//! A key derived here is as good as the secret for a day, a region and a service, so it is zeroed.

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The only algorithm there is for us.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Everything but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What was signed with, and for where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Whose secret.
    pub access_key: &'a str,
    /// Day, as `YYYYMMDD`.
    pub date: &'a str,
    /// Region.
    pub region: &'a str,
    /// Service: `s3`.
    pub service: &'a str,
}

impl<'a> Scope<'a> {
    /// Parses `KEY/DATE/REGION/SERVICE/aws4_request`.
    pub fn parse(credential: &'a str) -> Option<Self> {
        let mut parts = credential.split('/');
        let scope = Self {
            access_key: parts.next()?,
            date: parts.next()?,
            region: parts.next()?,
            service: parts.next()?,
        };
        (parts.next() == Some("aws4_request") && parts.next().is_none()).then_some(scope)
    }

    /// The part of the scope that is signed.
    pub fn signed(&self) -> String {
        format!(
            "{}/{}/{}/aws4_request",
            self.date, self.region, self.service
        )
    }
}

/// An `Authorization` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// Whose signature.
    pub scope: Scope<'a>,
    /// Names of the signed headers, `;` between them.
    pub signed_headers: &'a str,
    /// 64 hex digits.
    pub signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Parses the header; `None` for anything else than Signature Version 4.
    pub fn parse(header: &'a str) -> Option<Self> {
        let fields = header.strip_prefix(ALGORITHM)?.strip_prefix([' ', '\t'])?;
        let (mut scope, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            let (name, value) = field.trim().split_once('=')?;
            match name {
                "Credential" => scope = Some(Scope::parse(value)?),
                "SignedHeaders" => signed_headers = Some(value),
                "Signature" => signature = Some(value),
                _ => return None,
            }
        }
        Some(Self {
            scope: scope?,
            signed_headers: signed_headers?,
            signature: signature?,
        })
    }
}

/// Signs for one access key, day, region and service.
pub struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// Derives the key of a scope.
    pub fn derive(secret: &str, scope: &Scope<'_>) -> Self {
        let seed = Zeroizing::new(format!("AWS4{secret}"));
        let date = mac(seed.as_bytes(), scope.date.as_bytes());
        let region = mac(&*date, scope.region.as_bytes());
        let service = mac(&*region, scope.service.as_bytes());
        Self(mac(&*service, b"aws4_request"))
    }

    /// The signature of a string to sign, in hex.
    pub fn sign(&self, string_to_sign: &str) -> String {
        hex::encode(*mac(&*self.0, string_to_sign.as_bytes()))
    }
}

fn mac(key: &[u8], data: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// The chain of signatures through a chunked body.
pub struct ChunkSigner {
    key: SigningKey,
    /// Time and scope, as they stand in every string to sign.
    context: String,
    previous: String,
}

impl ChunkSigner {
    /// Continues from the signature of the request (`seed`), made at `time` (`YYYYMMDDTHHMMSSZ`).
    pub fn new(key: SigningKey, time: &str, scope: &Scope<'_>, seed: &str) -> Self {
        Self {
            key,
            context: format!("{time}\n{}", scope.signed()),
            previous: seed.to_owned(),
        }
    }

    /// Checks the next chunk by the hash of its data, and goes on from it.
    pub fn check_chunk(&mut self, hash: [u8; 32], signature: &[u8]) -> bool {
        let expected = self.chunk(hash);
        let holds = same(&expected, signature);
        self.previous = expected;
        holds
    }

    /// Checks the trailer, given in canonical form.
    pub fn check_trailer(&self, canonical: &[u8], signature: &[u8]) -> bool {
        same(&self.trailer(canonical), signature)
    }

    fn chunk(&self, hash: [u8; 32]) -> String {
        self.key.sign(&format!(
            "{ALGORITHM}-PAYLOAD\n{}\n{}\n{}\n{}",
            self.context,
            self.previous,
            hex::encode(Sha256::digest([])),
            hex::encode(hash)
        ))
    }

    fn trailer(&self, canonical: &[u8]) -> String {
        self.key.sign(&format!(
            "{ALGORITHM}-TRAILER\n{}\n{}\n{}",
            self.context,
            self.previous,
            hex::encode(Sha256::digest(canonical))
        ))
    }

    /// Signs the next chunk: for clients, and tests.
    pub fn sign_chunk(&mut self, data: &[u8]) -> String {
        self.previous = self.chunk(Sha256::digest(data).into());
        self.previous.clone()
    }

    /// Signs the trailer: for clients, and tests.
    pub fn sign_trailer(&self, canonical: &[u8]) -> String {
        self.trailer(canonical)
    }
}

fn same(expected: &str, given: &[u8]) -> bool {
    expected.as_bytes().ct_eq(given).into()
}

/// A request as far as it is signed.
#[derive(Debug)]
pub struct Canonical<'a> {
    /// Method.
    pub method: &'a str,
    /// Path as it stands on the wire.
    pub path: &'a str,
    /// Query as it stands on the wire.
    pub query: Option<&'a str>,
    /// Signed headers in lower case, in order of their names.
    pub headers: &'a [(&'a str, &'a str)],
    /// The value of `x-amz-content-sha256`.
    pub payload: &'a str,
    /// `YYYYMMDDTHHMMSSZ`.
    pub time: &'a str,
}

impl Canonical<'_> {
    /// Signs it: the value of an `Authorization` header.
    pub fn authorize(&self, key: &SigningKey, scope: &Scope<'_>) -> String {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut request = format!("{}\n{}\n{}\n", self.method, self.uri(), self.query());
        for (name, value) in self.headers {
            request.push_str(&format!("{name}:{}\n", value.trim()));
        }
        request.push_str(&format!("\n{names}\n{}", self.payload));
        let signature = key.sign(&format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.time,
            scope.signed(),
            hex::encode(Sha256::digest(request))
        ));
        format!(
            "{ALGORITHM} Credential={}/{}, SignedHeaders={names}, Signature={signature}",
            scope.access_key,
            scope.signed()
        )
    }

    fn uri(&self) -> String {
        let segments: Vec<String> = self
            .path
            .split('/')
            .map(|segment| {
                let raw: Vec<u8> = percent_decode_str(segment).collect();
                percent_encoding::percent_encode(&raw, ESCAPED).to_string()
            })
            .collect();
        segments.join("/")
    }

    fn query(&self) -> String {
        let mut pairs: Vec<(String, String)> =
            form_urlencoded::parse(self.query.unwrap_or_default().as_bytes())
                .map(|(name, value)| (escape(&name), escape(&value)))
                .collect();
        pairs.sort();
        let pairs: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
        pairs.join("&")
    }
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const SCOPE: Scope<'_> = Scope {
        access_key: "AKIAIOSFODNN7EXAMPLE",
        date: "20130524",
        region: "us-east-1",
        service: "s3",
    };
    const TIME: &str = "20130524T000000Z";

    /// The worked example of a ranged GET in the S3 documentation of Signature Version 4.
    #[test]
    fn signs_the_documented_get() {
        let empty = hex::encode(Sha256::digest([]));
        let canonical = Canonical {
            method: "GET",
            path: "/test.txt",
            query: None,
            headers: &[
                ("host", "examplebucket.s3.amazonaws.com"),
                ("range", "bytes=0-9"),
                ("x-amz-content-sha256", &empty),
                ("x-amz-date", TIME),
            ],
            payload: &empty,
            time: TIME,
        };
        let header = canonical.authorize(&SigningKey::derive(SECRET, &SCOPE), &SCOPE);
        let parsed = Authorization::parse(&header).unwrap();
        assert_eq!(parsed.scope, SCOPE);
        assert_eq!(
            parsed.signature,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// The worked example of a chunked upload: 65,536 and 1,024 bytes of `a`, and the end.
    #[test]
    fn follows_the_documented_chunks() {
        let seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
        let key = SigningKey::derive(SECRET, &SCOPE);
        let mut chain = ChunkSigner::new(key, TIME, &SCOPE, seed);
        for (length, signature) in [
            (
                65536,
                "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            ),
            (
                1024,
                "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            ),
            (
                0,
                "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
            ),
        ] {
            let hash = Sha256::digest(vec![b'a'; length]).into();
            assert!(chain.check_chunk(hash, signature.as_bytes()), "{length}");
        }
        assert!(!chain.check_chunk([0; 32], b"0"));
    }

    #[test]
    fn headers_that_are_not_ours_are_none() {
        for header in [
            "",
            "AWS AKID:signature",
            "AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=a/b/c/s3/aws4_request, SignedHeaders=host",
            "AWS4-HMAC-SHA256 Credential=a/b/c/s3, SignedHeaders=host, Signature=0",
            "AWS4-ECDSA-P256-SHA256 Credential=a/b/s3/aws4_request, SignedHeaders=h, Signature=0",
        ] {
            assert_eq!(Authorization::parse(header), None, "{header}");
        }
    }
}
