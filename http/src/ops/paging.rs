//! What lists share: page sizes, opaque tokens, and names encoded as the client asked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::EncodingType;
use s3s::{S3Error, S3Result, s3_error};

use super::LIST_MAX;
use super::uri::percent_encode;
use crate::error::invalid_argument;

/// First byte of a token, so that its meaning can change.
const TOKEN: u8 = 1;

/// Entries of this page; at most [`LIST_MAX`].
pub fn page_size(asked: Option<i32>, name: &'static str) -> S3Result<usize> {
    match asked {
        None => Ok(LIST_MAX),
        Some(asked) => match usize::try_from(asked) {
            Ok(asked) => Ok(asked.min(LIST_MAX)),
            Err(_) => Err(invalid_argument(
                "Argument must be an integer between 0 and 2147483647",
                name,
                &asked.to_string(),
            )),
        },
    }
}

/// Continues behind `name`. The client shall take it as it is.
pub fn token(name: &str) -> String {
    let mut bytes = vec![TOKEN];
    bytes.extend_from_slice(name.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The name that a token of ours continues behind.
pub fn parse_token(token: &str) -> S3Result<String> {
    let invalid = || {
        invalid_argument(
            "The continuation token provided is incorrect",
            "continuation-token",
            token,
        )
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    match bytes.split_first() {
        Some((&TOKEN, name)) => String::from_utf8(name.to_vec()).map_err(|_| invalid()),
        _ => Err(invalid()),
    }
}

/// How names are written in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    pub fn asked(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None | Some("") => Ok(Encoding::Plain),
            Some(EncodingType::URL) => Ok(Encoding::Url),
            Some(other) => Err(invalid_argument(
                "Invalid Encoding Method specified in Request",
                "encoding-type",
                other,
            )),
        }
    }

    pub fn name(self, name: impl Into<String>) -> String {
        let name = name.into();
        match self {
            Encoding::Plain => name,
            Encoding::Url => percent_encode(&name),
        }
    }

    pub fn dto(self) -> Option<EncodingType> {
        (self == Encoding::Url).then(|| EncodingType::from_static(EncodingType::URL))
    }
}

/// An empty delimiter is none.
pub fn delimiter(asked: Option<String>) -> Option<String> {
    asked.filter(|d| !d.is_empty())
}

pub fn malformed_marker(name: &'static str, value: &str) -> S3Error {
    let fault = s3_error!(InvalidArgument, "Invalid {name} specified");
    crate::error::element(fault, "ArgumentValue", value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_have_their_bounds() {
        assert_eq!(page_size(None, "max-keys").expect("fine"), LIST_MAX);
        assert_eq!(page_size(Some(0), "max-keys").expect("fine"), 0);
        assert_eq!(page_size(Some(7), "max-keys").expect("fine"), 7);
        assert_eq!(
            page_size(Some(i32::MAX), "max-keys").expect("fine"),
            LIST_MAX
        );
        assert!(page_size(Some(-1), "max-keys").is_err());
    }

    #[test]
    fn tokens_of_others_are_refused() {
        for bad in ["", "!", "AA", "AgA", "Af8"] {
            let fault = parse_token(bad).expect_err("not ours");
            assert_eq!(fault.code().as_str(), "InvalidArgument", "{bad:?}");
        }
    }

    #[test]
    fn encodings_are_url_or_none() {
        let url = Encoding::asked(Some(&EncodingType::from_static("url"))).expect("known");
        assert_eq!(url.name("a b\u{1}/ü"), "a%20b%01/%C3%BC");
        assert_eq!(Encoding::asked(None).expect("none").name("a b"), "a b");
        assert!(Encoding::asked(Some(&EncodingType::from_static("hex"))).is_err());
    }

    proptest! {
        #[test]
        fn tokens_keep_any_name(name in any::<String>()) {
            prop_assert_eq!(parse_token(&token(&name)).expect("ours"), name);
        }
    }
}
