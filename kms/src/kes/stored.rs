//! A key as KES's own key stores hold it: one text value per key.
//!
//! Base64 of a protobuf message, or an older JSON object:
//!
//! ```text
//! KeyVersion { 1: SecretKey { 1: bytes key, 2: uint32 type (1 AES256, 2 ChaCha20) }
//!              2: HMACKey   { 1: bytes key, 2: uint32 hash (1 SHA-256) }
//!              3: Timestamp { 1: int64 seconds, 2: int32 nanos }
//!              4: string created_by }
//! {"bytes": base64, "algorithm"?, "created_at"?, "created_by"?}
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::ciphertext::Algorithm;
use crate::limits::CREATED_BY_BYTES_MAX;
use crate::secret::Secret32;

/// What one stored value says.
pub(crate) struct StoredKey {
    pub(crate) key: Secret32,
    pub(crate) algorithm: Algorithm,
    /// Absent in the old form only.
    pub(crate) hmac: Option<Secret32>,
    pub(crate) created_at: Timestamp,
    pub(crate) created_by: String,
}

/// Seconds since 1970 and nanoseconds within the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// Reads a stored value; the error says what is wrong with it.
pub(crate) fn parse(value: &[u8]) -> Result<StoredKey, &'static str> {
    let value = value.trim_ascii();
    if value.first() == Some(&b'{') {
        return parse_json(value);
    }
    let message = Zeroizing::new(
        STANDARD
            .decode(value)
            .map_err(|_| "neither base64 nor JSON")?,
    );
    parse_protobuf(&message)
}

fn parse_protobuf(message: &[u8]) -> Result<StoredKey, &'static str> {
    let (mut key, mut hmac, mut created_at, mut created_by) =
        (None, None, Timestamp::default(), String::new());
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(secret)) => key = Some(typed_key(secret)?),
            (2, Value::Bytes(secret)) => hmac = Some(typed_key(secret)?),
            (3, Value::Bytes(time)) => {
                for field in fields(time) {
                    match field? {
                        (1, Value::Number(n)) => created_at.seconds = n.cast_signed(),
                        (2, Value::Number(n)) if n < 1_000_000_000 => {
                            created_at.nanos = u32::try_from(n).expect("below 10^9");
                        }
                        _ => return Err("creation time is malformed"),
                    }
                }
            }
            (4, Value::Bytes(text)) if text.len() <= CREATED_BY_BYTES_MAX => {
                created_by = std::str::from_utf8(text)
                    .map_err(|_| "creator is not UTF-8")?
                    .to_owned();
            }
            (1..=4, _) => return Err("a field has the wrong type"),
            _ => {}
        }
    }
    let (key, kind) = key.ok_or("no key inside")?;
    let algorithm = match kind {
        1 => Algorithm::Aes256,
        2 => Algorithm::ChaCha20,
        _ => return Err("key of an unknown type"),
    };
    let (hmac, hash) = hmac.ok_or("no HMAC key inside")?;
    if hash != 1 {
        return Err("HMAC key of an unknown hash");
    }
    Ok(StoredKey {
        key,
        algorithm,
        hmac: Some(hmac),
        created_at,
        created_by,
    })
}

fn typed_key(message: &[u8]) -> Result<(Secret32, u64), &'static str> {
    let (mut key, mut kind) = (None, 0);
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => {
                key = Some(Secret32::from_slice(bytes).ok_or("key is not of 32 bytes")?)
            }
            (2, Value::Number(n)) => kind = n,
            (1 | 2, _) => return Err("a field has the wrong type"),
            _ => {}
        }
    }
    Ok((key.ok_or("no key inside")?, kind))
}

fn parse_json(text: &[u8]) -> Result<StoredKey, &'static str> {
    #[derive(serde::Deserialize)]
    struct Form {
        bytes: Zeroizing<String>,
        #[serde(default)]
        algorithm: String,
        #[serde(default)]
        created_at: String,
        #[serde(default)]
        created_by: String,
    }
    let form: Form = serde_json::from_slice(text).map_err(|_| "neither base64 nor JSON")?;
    let bytes = Zeroizing::new(
        STANDARD
            .decode(&*form.bytes)
            .map_err(|_| "key is not base64")?,
    );
    if form.created_by.len() > CREATED_BY_BYTES_MAX {
        return Err("creator is too long");
    }
    Ok(StoredKey {
        key: Secret32::from_slice(&bytes).ok_or("key is not of 32 bytes")?,
        algorithm: match form.algorithm.as_str() {
            "" => Algorithm::Aes256,
            name => Algorithm::parse(name).ok_or("key of an unknown type")?,
        },
        hmac: None,
        created_at: match form.created_at.as_str() {
            "" => Timestamp::default(),
            text => Timestamp::parse(text).ok_or("creation time is malformed")?,
        },
        created_by: form.created_by,
    })
}

impl Timestamp {
    /// Reads RFC 3339, as in `2026-11-23T16:24:24.389923697Z`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let digits = text.get(range)?;
            digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse().ok())?
        };
        let byte = |at: usize| text.as_bytes().get(at).copied();
        let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if separators.iter().any(|(at, want)| byte(*at) != Some(*want)) {
            return None;
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        if !(1..=12).contains(&month)
            || !(1..=31).contains(&day)
            || hour > 23
            || minute > 59
            || second > 60
        {
            return None;
        }
        let mut at = 19;
        let mut nanos = 0;
        if byte(at) == Some(b'.') {
            let digits = text[at + 1..]
                .bytes()
                .take_while(u8::is_ascii_digit)
                .count();
            if !(1..=9).contains(&digits) {
                return None;
            }
            nanos = text[at + 1..at + 1 + digits].parse::<u32>().ok()?
                * 10u32.pow(9 - u32::try_from(digits).expect("at most 9"));
            at += 1 + digits;
        }
        let offset = match byte(at)? {
            b'Z' if text.len() == at + 1 => 0,
            sign @ (b'+' | b'-') if text.len() == at + 6 && byte(at + 3) == Some(b':') => {
                let seconds = number(at + 1..at + 3)? * 3600 + number(at + 4..at + 6)? * 60;
                if sign == b'+' { seconds } else { -seconds }
            }
            _ => return None,
        };
        Some(Self {
            seconds: days_from_civil(year, month, day) * 86_400
                + hour * 3600
                + minute * 60
                + second
                - offset,
            nanos,
        })
    }

    /// Year, month and day in UTC.
    pub(crate) fn date(self) -> (i32, u8, u8) {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(86_400));
        let small = |n: i64| u8::try_from(n).expect("months and days are small");
        (
            i32::try_from(year).unwrap_or(9999).min(9999),
            small(month),
            small(day),
        )
    }

    /// The moment a Unix time in milliseconds names.
    pub(crate) fn from_millis(millis: u64) -> Self {
        Self {
            seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
            nanos: u32::try_from(millis % 1000).expect("below 1000") * 1_000_000,
        }
    }

    /// Unix time in milliseconds; moments before 1970 are 0.
    pub(crate) fn millis(self) -> u64 {
        u64::try_from(self.seconds)
            .unwrap_or(0)
            .saturating_mul(1000)
            .saturating_add(u64::from(self.nanos / 1_000_000))
    }
}

/// RFC 3339 in UTC, with as many digits of the second as Go prints: no trailing zeros.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(86_400));
        let second = self.seconds.rem_euclid(86_400);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
            second / 3600,
            second / 60 % 60,
            second % 60
        )?;
        if self.nanos > 0 {
            let digits = format!("{:09}", self.nanos);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

/// Days since 1970-01-01 of a date in the Gregorian calendar, counted in years that begin in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A fixed-width number: skipped.
    Fixed,
}

/// The fields of a protobuf message in order; ends after the first error.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), &'static str>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next_field(&mut rest).ok_or("message is malformed");
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Fixed)?,
        2 => {
            let len = varint(rest)?;
            Value::Bytes(take(rest, len)?)
        }
        5 => take(rest, 4).map(|_| Value::Fixed)?,
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = tail;
    Some(head)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADMIN: &str = "87a866f48485aae38a21574eb514ed9ea1df6453f0a86e3529bfe22096d2f10d";

    #[test]
    fn golden_values() {
        let one = parse(include_bytes!("../../../tests/golden/kes-fs/golden-1"))
            .ok()
            .unwrap();
        assert_eq!(
            *one.key.expose(),
            std::array::from_fn(|i| u8::try_from(i).unwrap())
        );
        assert_eq!(one.algorithm, Algorithm::Aes256);
        assert_eq!(one.created_by, ADMIN);
        let hmac = crate::seal::hmac_sha256(one.hmac.unwrap().expose(), &[b"hello"]);
        // What the real server answered for this key and message.
        assert_eq!(
            STANDARD.encode(hmac.expose()),
            "pPb6UQtRPSCGWkP5YTwqHB4CjnGUQpHoLL0RPjRkhss="
        );
        assert_eq!(one.created_at.to_string(), "2026-11-23T16:24:24.389923697Z");

        let two = parse(include_bytes!("../../../tests/golden/kes-fs/golden-2"))
            .ok()
            .unwrap();
        assert_eq!(
            *two.key.expose(),
            std::array::from_fn(|i| 31 - u8::try_from(i).unwrap())
        );
        assert_eq!(two.algorithm, Algorithm::ChaCha20);
    }

    #[test]
    fn vector_of_the_protobuf_form() {
        let stored = parse(
            b"CiQKIMiHG7XrN94FuwblJJor4f7f6rbqAl7DwsLaiIoyz0D2EAESJAognLXl4yqa4cjZTcSbsU6sNnN8kP9ARWkXwa20YQZa9HgQARoMCNit\
              hK0GEID67qYDIkAzZWNmY2RmMzhmY2JlMTQxYWUyNmExMDMwZjgxZTk2Yjc1MzM2NWE0Njc2MGFlNmI1Nzg2OThhOTdjNTlmZDIy",
        )
        .ok()
        .unwrap();
        assert_eq!(
            STANDARD.encode(stored.key.expose()),
            "yIcbtes33gW7BuUkmivh/t/qtuoCXsPCwtqIijLPQPY="
        );
        assert_eq!(
            stored.created_by,
            "3ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22"
        );
    }

    #[test]
    fn older_json_form() {
        let stored = parse(br#"{"bytes":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#)
            .ok()
            .unwrap();
        assert_eq!(
            (stored.algorithm, stored.hmac.is_none()),
            (Algorithm::Aes256, true)
        );
        let stored = parse(
            br#"{"bytes":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","algorithm":"XCHACHA20-POLY1305",
                "created_at":"2022-03-01T10:00:00+01:00","created_by":"me"}"#,
        )
        .ok()
        .unwrap();
        assert_eq!(stored.algorithm, Algorithm::ChaCha20);
        assert_eq!(stored.created_at.to_string(), "2022-03-01T09:00:00Z");
        assert_eq!(stored.created_by, "me");
    }

    #[test]
    fn malformed_values() {
        let golden = include_bytes!("../../../tests/golden/kes-fs/golden-1");
        let message = STANDARD.decode(golden).unwrap();
        // Without field 2, and cut anywhere but behind an optional field.
        assert!(parse(STANDARD.encode(&message[..38]).as_bytes()).is_err());
        for cut in 0..76 {
            assert!(
                parse(STANDARD.encode(&message[..cut]).as_bytes()).is_err(),
                "{cut}"
            );
        }
        for bad in [&b""[..], b"{}", b"***", br#"{"bytes":"AAEC"}"#] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn times() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T23:59:59.5Z", 951_868_799, 500_000_000),
            ("1969-12-31T23:59:59Z", -1, 0),
            ("2100-03-01T00:00:00.000000001Z", 4_107_542_400, 1),
        ] {
            let time = Timestamp { seconds, nanos };
            assert_eq!(Timestamp::parse(text), Some(time), "{text}");
            assert_eq!(time.to_string(), text);
        }
        for bad in [
            "",
            "2000-01-01",
            "2000-13-01T00:00:00Z",
            "2000-01-01T00:00:00",
            "2000-01-01T00:00:00.Z",
            "2000-01-01T00:00:00Zx",
            "é000-01-01T00:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn times_round_trip(seconds in -60_000_000_000i64..250_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = Timestamp { seconds, nanos };
            prop_assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
        }

        #[test]
        fn any_value_is_an_answer(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse_protobuf(&bytes);
        }
    }
}
