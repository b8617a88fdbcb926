//! The XML of encryption configurations: a bucket's, and the one an object is moved to.
//!
//! The S3 layer's own types lack `BlockedEncryptionTypes` and know nothing of `ObjectEncryption`. Sizes are bounded by whoever gathers
//! the body; an element that is unknown, twice there or misplaced is refused.

use s3s::dto::ServerSideEncryption;
use s3s::xml::{DeError, DeResult, Deserializer, SerResult, Serializer};
use s3s::{S3Error, S3Result, s3_error};
use strongroom_engine::record::{BucketEncryption, Mode};

use super::KeyId;
use super::decide::no_dsse;
use crate::error::invalid_argument;

const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
const SSE_C: &str = "SSE-C";
const NONE: &str = "NONE";

/// Reads the body of PutBucketEncryption. What it does not say of blocked modes is none.
pub fn read_bucket(xml: &[u8]) -> S3Result<BucketEncryption> {
    let rule = parse(xml, "ServerSideEncryptionConfiguration", |d| {
        let mut found = None;
        d.for_each_element(|d, name| match name {
            b"Rule" => once(&mut found, read_rule(d)?),
            _ => Err(DeError::UnexpectedTagName),
        })?;
        found.ok_or(DeError::MissingField)
    })?;
    let (mode, key) = match rule.default {
        None => (None, None),
        Some((algorithm, key)) => match (algorithm.as_str(), key.filter(|key| !key.is_empty())) {
            (ServerSideEncryption::AES256, None) => (Some(Mode::SseS3), None),
            (ServerSideEncryption::AES256, Some(key)) => {
                return Err(invalid_argument(
                    "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
                    "KMSMasterKeyID",
                    &key,
                ));
            }
            (ServerSideEncryption::AWS_KMS, key) => (Some(Mode::SseKms), key),
            (ServerSideEncryption::AWS_KMS_DSSE, _) => return Err(no_dsse()),
            _ => return Err(malformed()),
        },
    };
    let blocked = rule.blocked.unwrap_or_default();
    let block_sse_c = match blocked.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        [SSE_C] => Some(true),
        [NONE] => Some(false),
        _ => return Err(malformed()),
    };
    Ok(BucketEncryption {
        mode,
        kms_key_id: key,
        bucket_key: rule.bucket_key.unwrap_or_default(),
        block_sse_c,
    })
}

/// Writes the answer to GetBucketEncryption.
pub fn write_bucket(rule: &BucketEncryption) -> S3Result<Vec<u8>> {
    let algorithm = match rule.mode {
        Some(Mode::SseS3) => Some(ServerSideEncryption::AES256),
        Some(Mode::SseKms) => Some(ServerSideEncryption::AWS_KMS),
        Some(Mode::SseC) | None => None,
    };
    let blocked = match rule.block_sse_c {
        Some(true) => SSE_C,
        Some(false) | None => NONE,
    };
    let mut out = Vec::new();
    let mut s = Serializer::new(&mut out);
    let mut write = || -> SerResult {
        s.decl()?;
        s.element_with_ns("ServerSideEncryptionConfiguration", NAMESPACE, |s| {
            s.element("Rule", |s| {
                if let Some(algorithm) = algorithm {
                    s.element("ApplyServerSideEncryptionByDefault", |s| {
                        s.content("SSEAlgorithm", algorithm)?;
                        match &rule.kms_key_id {
                            Some(key) => s.content("KMSMasterKeyID", key.as_str()),
                            None => Ok(()),
                        }
                    })?;
                }
                s.content("BucketKeyEnabled", &rule.bucket_key)?;
                s.element("BlockedEncryptionTypes", |s| {
                    s.content("EncryptionType", blocked)
                })
            })
        })
    };
    write().map_err(|_| s3_error!(InternalError))?;
    Ok(out)
}

/// The key an object is to be moved to.
#[derive(Debug, PartialEq, Eq)]
pub struct NewKms {
    pub key: KeyId,
    pub bucket_key: bool,
}

/// Reads the body of UpdateObjectEncryption.
pub fn read_object(xml: &[u8]) -> S3Result<NewKms> {
    let (method, key, bucket_key) = parse(xml, "ObjectEncryption", |d| {
        let (mut method, mut key, mut bucket_key) = (None, None, None);
        d.for_each_element(|d, name| {
            once(&mut method, String::from_utf8_lossy(name).into_owned())?;
            d.for_each_element(|d, name| match name {
                b"KMSKeyArn" => once(&mut key, d.content::<String>()?),
                b"BucketKeyEnabled" => once(&mut bucket_key, d.content::<String>()?),
                _ => Err(DeError::UnexpectedTagName),
            })
        })?;
        Ok((method.ok_or(DeError::MissingField)?, key, bucket_key))
    })?;
    let refused =
        |message: &'static str| S3Error::with_message(s3s::S3ErrorCode::InvalidRequest, message);
    if method != "SSE-KMS" {
        return Err(refused(
            "Objects can be moved to server-side encryption with KMS keys (SSE-KMS) only.",
        ));
    }
    let key = key
        .and_then(|arn| KeyId::parse_arn(&arn))
        .ok_or_else(|| refused("KMSKeyArn must be the full ARN of a KMS key."))?;
    let bucket_key = match bucket_key.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(refused("BucketKeyEnabled must be true or false.")),
    };
    Ok(NewKms { key, bucket_key })
}

#[derive(Default)]
struct Rule {
    default: Option<(String, Option<String>)>,
    bucket_key: Option<bool>,
    blocked: Option<Vec<String>>,
}

fn read_rule(d: &mut Deserializer<'_>) -> DeResult<Rule> {
    let mut rule = Rule::default();
    d.for_each_element(|d, name| match name {
        b"ApplyServerSideEncryptionByDefault" => {
            let (mut algorithm, mut key) = (None, None);
            d.for_each_element(|d, name| match name {
                b"SSEAlgorithm" => once(&mut algorithm, d.content::<String>()?),
                b"KMSMasterKeyID" => once(&mut key, d.content::<String>()?),
                _ => Err(DeError::UnexpectedTagName),
            })?;
            once(
                &mut rule.default,
                (algorithm.ok_or(DeError::MissingField)?, key),
            )
        }
        b"BucketKeyEnabled" => once(&mut rule.bucket_key, d.content::<bool>()?),
        b"BlockedEncryptionTypes" => {
            let mut blocked = Vec::new();
            d.for_each_element(|d, name| match name {
                b"EncryptionType" => {
                    blocked.push(d.content::<String>()?);
                    Ok(())
                }
                _ => Err(DeError::UnexpectedTagName),
            })?;
            once(&mut rule.blocked, blocked)
        }
        _ => Err(DeError::UnexpectedTagName),
    })?;
    Ok(rule)
}

fn once<T>(place: &mut Option<T>, value: T) -> DeResult {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(DeError::DuplicateField),
    }
}

fn parse<'xml, T>(
    xml: &'xml [u8],
    root: &str,
    read: impl FnOnce(&mut Deserializer<'xml>) -> DeResult<T>,
) -> S3Result<T> {
    let mut d = Deserializer::new(xml);
    let value = d.named_element(root, read).map_err(|_| malformed())?;
    d.expect_eof().map_err(|_| malformed())?;
    Ok(value)
}

fn malformed() -> S3Error {
    s3_error!(
        MalformedXML,
        "The XML you provided was not well-formed or did not validate against our published schema"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code<T>(result: S3Result<T>) -> String {
        result
            .err()
            .map_or("none".into(), |e| e.code().as_str().to_owned())
    }

    fn configuration(rules: &str) -> String {
        format!(
            "<ServerSideEncryptionConfiguration xmlns=\"{NAMESPACE}\">{rules}</ServerSideEncryptionConfiguration>"
        )
    }

    fn by_default(inner: &str) -> String {
        format!("<ApplyServerSideEncryptionByDefault>{inner}</ApplyServerSideEncryptionByDefault>")
    }

    #[test]
    fn exactly_one_rule_that_can_be_kept() {
        let aes = by_default("<SSEAlgorithm>AES256</SSEAlgorithm>");
        let with = |inner: &str| format!("<Rule>{inner}</Rule>");
        let key = "<KMSMasterKeyID>k</KMSMasterKeyID>";
        let kms = "<SSEAlgorithm>aws:kms</SSEAlgorithm>";
        for (rules, expected) in [
            (with(&aes), "none"),
            (with(""), "none"),
            (with(&by_default(kms)), "none"),
            (with(&by_default(&format!("{key}{kms}"))), "none"),
            (String::new(), "MalformedXML"),
            (with(&aes).repeat(2), "MalformedXML"),
            (with(&aes.repeat(2)), "MalformedXML"),
            (
                with(&by_default(&format!(
                    "<SSEAlgorithm>AES256</SSEAlgorithm>{key}"
                ))),
                "InvalidArgument",
            ),
            (
                with(&by_default("<SSEAlgorithm>aws:kms:dsse</SSEAlgorithm>")),
                "NotImplemented",
            ),
            (
                with(&by_default("<SSEAlgorithm>AES128</SSEAlgorithm>")),
                "MalformedXML",
            ),
            (with(&by_default(key)), "MalformedXML"),
            (
                with("<BucketKeyEnabled>perhaps</BucketKeyEnabled>"),
                "MalformedXML",
            ),
            (with("<Surprise/>"), "MalformedXML"),
            ("<Rule>".into(), "MalformedXML"),
        ] {
            assert_eq!(
                code(read_bucket(configuration(&rules).as_bytes())),
                expected,
                "{rules}"
            );
        }
        for xml in ["", "<a/>", "<ServerSideEncryptionConfiguration>", "\u{1}"] {
            assert_eq!(code(read_bucket(xml.as_bytes())), "MalformedXML");
        }
        let twice = configuration(&with(&aes)).repeat(2);
        assert_eq!(code(read_bucket(twice.as_bytes())), "MalformedXML");
    }

    #[test]
    fn blocked_types_are_one_or_unsaid() {
        let read = |types: &str| {
            let xml = configuration(&format!("<Rule>{types}</Rule>"));
            read_bucket(xml.as_bytes()).map(|b| b.block_sse_c)
        };
        let blocked = |types: &[&str]| {
            let list: String = types
                .iter()
                .map(|t| format!("<EncryptionType>{t}</EncryptionType>"))
                .collect();
            read(&format!(
                "<BlockedEncryptionTypes>{list}</BlockedEncryptionTypes>"
            ))
        };
        assert_eq!(read("").expect("fine"), None);
        assert_eq!(blocked(&[]).expect("fine"), None);
        assert_eq!(blocked(&["SSE-C"]).expect("fine"), Some(true));
        assert_eq!(blocked(&["NONE"]).expect("fine"), Some(false));
        for bad in [
            &["SSE-C", "NONE"][..],
            &["SSE-S3"],
            &["NONE", "NONE"],
            &[""],
        ] {
            assert_eq!(code(blocked(bad)), "MalformedXML", "{bad:?}");
        }
    }

    #[test]
    fn an_object_moves_to_a_key_by_its_arn() {
        let read = |inner: &str| {
            let xml = format!("<ObjectEncryption xmlns=\"{NAMESPACE}\">{inner}</ObjectEncryption>");
            read_object(xml.as_bytes())
        };
        let kms = |inner: &str| read(&format!("<SSE-KMS>{inner}</SSE-KMS>"));
        let arn = "<KMSKeyArn>arn:aws:kms:us-east-1:000000000000:key/k</KMSKeyArn>";
        let moved = kms(arn).expect("fine");
        assert_eq!((moved.key.name(), moved.bucket_key), ("k", false));
        let moved = kms(&format!("{arn}<BucketKeyEnabled>true</BucketKeyEnabled>"));
        assert!(moved.expect("fine").bucket_key);
        for (seen, expected) in [
            (kms(""), "InvalidRequest"),
            (kms("<KMSKeyArn>k</KMSKeyArn>"), "InvalidRequest"),
            (kms("<KMSKeyArn>alias/k</KMSKeyArn>"), "InvalidRequest"),
            (
                kms(&format!("{arn}<BucketKeyEnabled>yes</BucketKeyEnabled>")),
                "InvalidRequest",
            ),
            (read("<SSE-S3></SSE-S3>"), "InvalidRequest"),
            (read("<SSE-C/>"), "InvalidRequest"),
            (read(""), "MalformedXML"),
            (kms("<Key>k</Key>"), "MalformedXML"),
            (
                read(&format!("<SSE-KMS>{arn}</SSE-KMS>").repeat(2)),
                "MalformedXML",
            ),
        ] {
            assert_eq!(code(seen), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            kms: bool, key in proptest::option::of("[ -~]{1,40}"), bucket_key: bool, blocks: bool,
        ) {
            let set = BucketEncryption {
                mode: Some(if kms { Mode::SseKms } else { Mode::SseS3 }),
                kms_key_id: key.filter(|k| kms && k.trim() == k),
                bucket_key,
                block_sse_c: Some(blocks),
            };
            let xml = write_bucket(&set).unwrap();
            prop_assert_eq!(read_bucket(&xml).unwrap(), set);
        }

        #[test]
        fn noise_is_an_error_and_not_a_panic(noise: Vec<u8>) {
            prop_assert!(read_bucket(&noise).is_err());
            prop_assert!(read_object(&noise).is_err());
        }
    }
}
