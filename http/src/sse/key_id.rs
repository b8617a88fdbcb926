//! How a key of the key service is named in requests: `NAME`, `alias/NAME`, `arn:aws:kms:NAME` or `arn:aws:kms:REGION:ACCOUNT:key/NAME`.
//!
//! Region and account are not checked: there is one key service. Responses show the id as it was given.

use http::StatusCode;
use s3s::{S3Error, S3Result};

use crate::error::custom;

/// Bytes of a key id; an ARN of AWS has less than a quarter.
const KEY_ID_BYTES_MAX: usize = 512;

/// A key, and the id it was named by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId {
    given: String,
    name: String,
}

impl KeyId {
    pub fn parse(given: &str) -> S3Result<Self> {
        let name = match given.split_once(':') {
            None => Some(given.strip_prefix("alias/").unwrap_or(given)),
            Some(_) => name_in_arn(given),
        };
        match name.filter(|name| !name.is_empty() && given.len() <= KEY_ID_BYTES_MAX) {
            Some(name) => Ok(KeyId {
                name: name.to_owned(),
                given: given.to_owned(),
            }),
            None => Err(invalid(given)),
        }
    }

    /// The same, of an ARN alone.
    pub fn parse_arn(given: &str) -> Option<Self> {
        name_in_arn(given).and_then(|_| Self::parse(given).ok())
    }

    pub fn given(&self) -> &str {
        &self.given
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// How a key is shown that was named by nobody.
pub fn arn(name: &str) -> String {
    format!("arn:aws:kms:{name}")
}

fn name_in_arn(given: &str) -> Option<&str> {
    let (partition, rest) = given.strip_prefix("arn:aws")?.split_once(':')?;
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let rest = rest.strip_prefix("kms:").filter(|_| plain(partition))?;
    let fields: Vec<&str> = rest.split(':').collect();
    let name = match fields[..] {
        [name] => name,
        [region, account, resource] if plain(region) && plain(account) => resource
            .strip_prefix("key/")
            .or_else(|| resource.strip_prefix("alias/"))?,
        _ => return None,
    };
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

fn invalid(given: &str) -> S3Error {
    let shown: String = given.chars().take(KEY_ID_BYTES_MAX).collect();
    custom(
        "KMS.NotFoundException",
        StatusCode::BAD_REQUEST,
        format!("Invalid keyId {shown:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_names_the_same_key() {
        for given in [
            "my-key",
            "alias/my-key",
            "arn:aws:kms:my-key",
            "arn:aws:kms:eu-west-1:123456789012:key/my-key",
            "arn:aws:kms:us-east-1:000000000000:alias/my-key",
            "arn:aws-cn:kms:cn-north-1:1:key/my-key",
            "arn:aws:kms:::key/my-key",
        ] {
            let id = KeyId::parse(given).expect(given);
            assert_eq!((id.name(), id.given()), ("my-key", given));
            assert_eq!(KeyId::parse_arn(given).is_some(), given.starts_with("arn:"));
        }
    }

    #[test]
    fn what_names_no_key_is_not_found() {
        let long = "k".repeat(KEY_ID_BYTES_MAX + 1);
        for given in [
            "",
            "alias/",
            ":",
            "arn:aws:kms:",
            "arn:aws:s3:::bucket",
            "arn:aws:kms:r:a:key/",
            "arn:aws:kms:r:a:key/a/b",
            "arn:aws:kms:r:a:my-key",
            "arn:aws:kms:r:key/my-key",
            "arn:aws:kms:r:a:key/my-key:x",
            "arn:aws/x:kms:my-key",
            "key:my-key",
            &long,
        ] {
            let fault = KeyId::parse(given).expect_err(given);
            assert_eq!(fault.code().as_str(), "KMS.NotFoundException");
            assert_eq!(fault.status_code(), Some(StatusCode::BAD_REQUEST));
            assert!(KeyId::parse_arn(given).is_none());
        }
        assert_eq!(KeyId::parse(&arn("k")).expect("an ARN").name(), "k");
    }
}
