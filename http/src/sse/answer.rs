//! What a response tells of an object's encryption.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use s3s::dto::ServerSideEncryption;
use strongroom_engine::record::{Encryption, Mode};

use super::{ObjectKey, customer, key_id};

/// The fields of a response; each operation takes those it has.
#[derive(Default)]
pub struct Answer {
    pub method: Option<ServerSideEncryption>,
    pub kms_key_id: Option<String>,
    /// Shown only where it is so.
    pub bucket_key: Option<bool>,
    /// The client's context in base64, for those who just gave it.
    pub context: Option<String>,
    pub customer_algorithm: Option<String>,
    pub customer_key_md5: Option<String>,
}

impl Answer {
    /// `key` is the object's, as far as it was opened: it knows the customer's key.
    pub fn of(encryption: Option<&Encryption>, key: Option<&ObjectKey>) -> Self {
        let kms = encryption
            .filter(|e| e.mode == Mode::SseKms)
            .and_then(|e| e.kms.as_ref());
        let customer = key.and_then(ObjectKey::customer_md5);
        Answer {
            method: method(encryption).map(ServerSideEncryption::from_static),
            kms_key_id: kms.map(|kms| match &kms.id_as_given {
                Some(given) => given.clone(),
                None => key_id::arn(&kms.name),
            }),
            bucket_key: kms.and_then(|kms| kms.bucket_key.then_some(true)),
            context: kms
                .filter(|kms| !kms.context.is_empty())
                .map(|kms| STANDARD.encode(strongroom_kms::canonical_context(&kms.context))),
            customer_algorithm: customer.map(|_| customer::ALGORITHM.to_owned()),
            customer_key_md5: customer.map(str::to_owned),
        }
    }
}

/// The value of the header that names the mode; objects under a customer's key have none.
pub fn method(encryption: Option<&Encryption>) -> Option<&'static str> {
    match encryption?.mode {
        Mode::SseS3 => Some(ServerSideEncryption::AES256),
        Mode::SseKms => Some(ServerSideEncryption::AWS_KMS),
        Mode::SseC => None,
    }
}
