//! The encryption context: string pairs bound to a data key, as one canonical JSON object.
//!
//! The canonical bytes are the associated data of the data key's ciphertext, so they are frozen: keys
//! in byte order, no blanks, strings escaped as Go's `encoding/json` does with HTML escaping on, and
//! `{}` for no pairs at all. Values can be private: there is no `Debug`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::Caller;
use crate::limits::CONTEXT_BYTES_MAX;

/// The pairs that a data key is bound to.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Context(BTreeMap<String, String>);

impl Context {
    /// The context of an object: the client's pairs, and `bucket` → `object_path`, unless the client
    /// gave a pair of that name itself, which then stands untouched.
    ///
    /// `object_path` is `bucket/key`: raw for objects written here, cleaned for those MinIO wrote.
    #[must_use]
    pub fn for_object(
        client: &BTreeMap<String, String>,
        bucket: &str,
        object_path: &str,
    ) -> Context {
        let mut pairs = client.clone();
        pairs
            .entry(bucket.to_owned())
            .or_insert_with(|| object_path.to_owned());
        Context(pairs)
    }

    /// A context of exactly these pairs.
    #[must_use]
    pub fn from_pairs(pairs: BTreeMap<String, String>) -> Context {
        Context(pairs)
    }

    /// The pairs in a request header: base64 of a JSON object whose values are all strings.
    ///
    /// A name that occurs twice is refused: readers would disagree on which value counts.
    pub fn parse_header(header: &str) -> Result<BTreeMap<String, String>, Caller> {
        if header.len() > CONTEXT_BYTES_MAX {
            return Err(Caller::InvalidContext("too long"));
        }
        let json = STANDARD
            .decode(header)
            .map_err(|_| Caller::InvalidContext("not base64"))?;
        parse_json(&json)
    }

    /// The bytes that are handed to the key service as associated data.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        canonical(&self.0)
    }
}

/// Canonical JSON of `pairs`; also what is stored and echoed of a client's pairs, in base64.
#[must_use]
pub fn canonical(pairs: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = String::with_capacity(
        2 + pairs
            .iter()
            .map(|(k, v)| k.len() + v.len() + 6)
            .sum::<usize>(),
    );
    out.push('{');
    for (i, (name, value)) in pairs.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        push_string(&mut out, name);
        out.push(':');
        push_string(&mut out, value);
    }
    out.push('}');
    out.into_bytes()
}

/// A JSON object of strings to strings, and nothing after it.
pub(crate) fn parse_json(json: &[u8]) -> Result<BTreeMap<String, String>, Caller> {
    struct Pairs;
    impl<'de> Visitor<'de> for Pairs {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if pairs.insert(name, value).is_some() {
                    return Err(serde::de::Error::custom("a name occurs twice"));
                }
            }
            Ok(pairs)
        }
    }

    let bad = |_| Caller::InvalidContext("not a JSON object of distinct names to strings");
    let mut reader = serde_json::Deserializer::from_slice(json);
    let pairs = reader.deserialize_map(Pairs).map_err(bad)?;
    reader.end().map_err(bad)?;
    Ok(pairs)
}

fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes everything");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn empty_is_two_bytes() {
        assert_eq!(Context::default().canonical(), b"{}");
    }

    #[test]
    fn escapes_as_go_does() {
        let context = Context(pairs(&[(
            "k",
            "\"\\\n\r\t\u{8}\u{c}\u{1f}<>&\u{2028}\u{2029}\u{7f}é",
        )]));
        assert_eq!(
            String::from_utf8(context.canonical()).unwrap(),
            "{\"k\":\"\\\"\\\\\\n\\r\\t\\u0008\\u000c\\u001f\\u003c\\u003e\\u0026\\u2028\\u2029\u{7f}é\"}"
        );
    }

    #[test]
    fn sorted_by_bytes() {
        let context = Context(pairs(&[("é", "1"), ("z", "2"), ("Z", "3"), ("", "4")]));
        assert_eq!(
            String::from_utf8(context.canonical()).unwrap(),
            r#"{"":"4","Z":"3","z":"2","é":"1"}"#
        );
    }

    #[test]
    fn object_path_joins_the_clients_pairs() {
        let client = pairs(&[("project", "alpha")]);
        let context = Context::for_object(&client, "my-bucket", "my-bucket/dir/my-object.txt");
        assert_eq!(
            context.canonical(),
            br#"{"my-bucket":"my-bucket/dir/my-object.txt","project":"alpha"}"#
        );
        let client = pairs(&[("my-bucket", "mine")]);
        let context = Context::for_object(&client, "my-bucket", "my-bucket/x");
        assert_eq!(context.canonical(), br#"{"my-bucket":"mine"}"#);
    }

    #[test]
    fn headers() {
        let parse = |json: &str| Context::parse_header(&STANDARD.encode(json));
        assert_eq!(parse(r#"{"a":"b"}"#), Ok(pairs(&[("a", "b")])));
        assert_eq!(parse(" { } "), Ok(BTreeMap::new()));
        for bad in [
            "",
            "[]",
            "null",
            r#""a""#,
            r#"{"a":1}"#,
            r#"{"a":null}"#,
            r#"{"a":{}}"#,
            r#"{"a":"b"}x"#,
            r#"{"a":"b","a":"c"}"#,
            r#"{"a":"b""#,
            "{\"a\":\"\\ud800\"}",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(Context::parse_header("***").is_err());
        assert!(Context::parse_header(&STANDARD.encode([b'{', b'"', 0xff, b'"'])).is_err());
        assert!(parse(&format!(r#"{{"a":"{}"}}"#, "x".repeat(CONTEXT_BYTES_MAX))).is_err());
    }

    proptest! {
        /// Any JSON reader gets the same pairs back, and different pairs never share their bytes.
        #[test]
        fn canonical_is_json_and_injective(
            one in proptest::collection::btree_map(".{0,12}", "(?s).{0,24}", 0..5),
            two in proptest::collection::btree_map("[a-c\"\\\\:,]{0,3}", "[a-c\"\\\\:,]{0,3}", 0..3),
            three in proptest::collection::btree_map("[a-c\"\\\\:,]{0,3}", "[a-c\"\\\\:,]{0,3}", 0..3),
        ) {
            let bytes = canonical(&one);
            let back: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&back, &one);
            prop_assert_eq!(parse_json(&bytes).unwrap(), one);
            prop_assert!(bytes.iter().all(|b| *b >= 0x20 && !b"<>&".contains(b)));
            prop_assert_eq!(canonical(&two) == canonical(&three), two == three);
        }

        #[test]
        fn any_header_is_an_answer(header in ".{0,64}") {
            let _ = Context::parse_header(&header);
        }
    }
}
