//! Who may do what: the root user's credentials, and the owner that requests expect.
//!
//! Root is the only user and owns every bucket. What is not signed by root is refused; s3s checks the signature itself.

use http::HeaderMap;
use s3s::auth::SecretKey;
use s3s::{S3Result, s3_error};
use subtle::ConstantTimeEq;

/// The canonical user id of root, as lists and grants show it.
pub const OWNER_ID: &str = "5c9f1d3be4f0412c9a2be84a7c06d7f3a1f5b8e2d94c63701fbe2a9d80c4e716";
/// The account number of root, for clients that name the owner they expect.
pub const ACCOUNT_ID: &str = "000000000000";

/// The root user's credentials.
#[derive(Clone)]
pub struct Root {
    access_key: String,
    secret: SecretKey,
}

impl Root {
    pub fn new(access_key: String, secret: SecretKey) -> Self {
        Root { access_key, secret }
    }

    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret of `access_key`, if there is such a user. Takes the same time wherever the names differ.
    pub fn lookup(&self, access_key: &str) -> Option<SecretKey> {
        let known = self.access_key.as_bytes().ct_eq(access_key.as_bytes());
        bool::from(known).then(|| self.secret.clone())
    }
}

/// The owners that a request expects of its bucket and of the bucket it copies from.
pub fn check_owner(headers: &HeaderMap) -> S3Result<()> {
    for name in [
        "x-amz-expected-bucket-owner",
        "x-amz-source-expected-bucket-owner",
    ] {
        let Some(expected) = headers.get(name) else {
            continue;
        };
        let expected = expected.to_str().unwrap_or_default();
        if expected == ACCOUNT_ID || expected == OWNER_ID {
            continue;
        }
        let account = expected.len() == 12 && expected.bytes().all(|b| b.is_ascii_digit());
        // An id that begins as the owner's is somebody else's, not a malformed one.
        if account || expected.starts_with(OWNER_ID) {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        return Err(s3_error!(
            InvalidBucketOwnerAWSAccountID,
            "The value of the expected bucket owner parameter must be an AWS account ID"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn code(result: S3Result<()>) -> Option<String> {
        result.err().map(|e| e.code().as_str().to_owned())
    }

    #[test]
    fn expected_owners() {
        let check = |value: &str| {
            let value = HeaderValue::from_str(value).expect("ASCII");
            let name = HeaderName::from_static("x-amz-expected-bucket-owner");
            code(check_owner(&HeaderMap::from_iter([(name, value)])))
        };
        assert_eq!(check(ACCOUNT_ID), None);
        assert_eq!(check(OWNER_ID), None);
        assert_eq!(check("123456789012").as_deref(), Some("AccessDenied"));
        let other = format!("{OWNER_ID}foo");
        assert_eq!(check(&other).as_deref(), Some("AccessDenied"));
        assert_eq!(
            check("me").as_deref(),
            Some("InvalidBucketOwnerAWSAccountID")
        );
        assert_eq!(code(check_owner(&HeaderMap::new())), None);
    }

    #[test]
    fn secrets_are_found_by_exact_name_only() {
        let root = Root::new("root".into(), SecretKey::from("password"));
        assert_eq!(root.lookup("root").expect("root").expose(), "password");
        for other in ["", "roo", "root ", "Root"] {
            assert!(root.lookup(other).is_none());
        }
    }
}
