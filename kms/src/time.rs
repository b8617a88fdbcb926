//! Moments: as Unix time to the nanosecond, and in RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 and nanoseconds within the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
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

/// A moment given as Unix time in milliseconds, in RFC 3339; none where that has no digits for its year.
#[must_use]
pub fn utc(unix_ms: u64) -> Option<String> {
    /// The last second of the year 9999.
    const LAST: i64 = 253_402_300_799;
    let moment = Timestamp::from_millis(unix_ms);
    (moment.seconds <= LAST).then(|| moment.to_string())
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

/// The present moment, in Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn a_moment_too_late_to_write_is_none() {
        let last = 253_402_300_799_999;
        assert_eq!(utc(last).as_deref(), Some("9999-12-31T23:59:59.999Z"));
        assert_eq!(utc(last + 1), None);
        assert_eq!(utc(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn times_round_trip(seconds in -60_000_000_000i64..250_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = Timestamp { seconds, nanos };
            prop_assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
        }
    }
}
