//! What one run of the load generator saw, and how it is shown.

use std::fmt::Write as _;
use std::time::Duration;

/// The outcome of one run. CPU is counted over the same window as requests and bytes.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Those that cross a border of the window count with the share of their time inside.
    pub requests: f64,
    pub errors: u64,
    /// Object bytes, without heads and framing.
    pub bytes: f64,
    pub seconds: f64,
    /// One entry per request that ended in the window, sorted.
    pub latencies: Vec<Duration>,
    pub client_cpu: f64,
    /// CPU seconds of the server process; none when its pid was not given.
    pub server_cpu: Option<f64>,
    /// Most resident bytes of the server in the window.
    pub server_resident_peak: Option<u64>,
    /// Bytes of them that are its cache of objects; none where nobody asked it.
    pub server_cache: Option<u64>,
    /// Calls of the key service; none when nobody counts them.
    pub key_calls: Option<u64>,
    /// The first error, as an example.
    pub first_error: Option<String>,
}

/// The latency that `share` of these, sorted, did not exceed, in milliseconds; none where there are none.
pub fn milliseconds_at(latencies: &[Duration], share: f64) -> Option<f64> {
    let last = latencies.len().checked_sub(1)?;
    let index = (last as f64 * share).round() as usize;
    Some(latencies[index.min(last)].as_secs_f64() * 1e3)
}

impl Measured {
    pub fn requests_per_second(&self) -> f64 {
        self.requests / self.seconds
    }

    /// Decimal megabytes per second.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes / 1e6 / self.seconds
    }

    /// The latency that `share` of the requests did not exceed, in milliseconds; none where no request ended.
    pub fn milliseconds_at(&self, share: f64) -> Option<f64> {
        milliseconds_at(&self.latencies, share)
    }

    /// CPU seconds of the server for a decimal gigabyte of objects.
    pub fn server_cpu_per_gigabyte(&self) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.server_cpu.map(|c| c / (self.bytes / 1e9)))?
    }

    /// Milliseconds of server CPU for a request, which is also seconds for a thousand.
    pub fn server_cpu_per_thousand(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| self.server_cpu.map(|c| c / (self.requests / 1e3)))?
    }

    /// Calls of the key service for a thousand requests.
    pub fn key_calls_per_thousand(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| {
            self.key_calls
                .map(|calls| calls as f64 / (self.requests / 1e3))
        })?
    }

    pub fn client_cpu_per_gigabyte(&self) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.client_cpu / (self.bytes / 1e9))
    }

    /// A few lines for a terminal.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        let write = |out: &mut String, name: &str, value: String| {
            writeln!(out, "{name:<28}{value}").expect("in memory");
        };
        write(
            &mut out,
            "requests/s",
            format!("{:.0}", self.requests_per_second()),
        );
        write(
            &mut out,
            "MB/s",
            format!("{:.1}", self.megabytes_per_second()),
        );
        let at = |share| self.milliseconds_at(share).unwrap_or(f64::NAN);
        let latency = format!("{:.2} / {:.2} / {:.2}", at(0.5), at(0.99), at(0.999));
        write(&mut out, "p50 / p99 / p99.9 ms", latency);
        let errors = match &self.first_error {
            Some(first) => format!("{} (first: {first})", self.errors),
            None => self.errors.to_string(),
        };
        write(&mut out, "errors", errors);
        let own = format!("{:.2} s in {:.1} s", self.client_cpu, self.seconds);
        write(&mut out, "CPU of the generator", own);
        if let Some(cpu) = self.server_cpu {
            write(&mut out, "CPU of the server", format!("{cpu:.2} s"));
        }
        if let Some(value) = self.server_cpu_per_gigabyte() {
            write(&mut out, "  seconds per GB", format!("{value:.2}"));
        }
        if let Some(value) = self.server_cpu_per_thousand() {
            write(
                &mut out,
                "  seconds per 1,000 requests",
                format!("{value:.3}"),
            );
        }
        if let Some(value) = self.key_calls_per_thousand() {
            write(
                &mut out,
                "KMS calls per 1,000 requests",
                format!("{value:.1}"),
            );
        }
        if let Some(value) = self.server_resident_peak {
            write(
                &mut out,
                "peak MB of the server",
                (value / 1_000_000).to_string(),
            );
        }
        out
    }

    pub const TABLE_HEAD: &str = "| verb | size | connections | requests/s | MB/s | p50 ms | p99 ms | p99.9 ms | server CPU s/GB | server CPU s/1,000 | generator CPU s/GB | peak resident MB | cache MB | KMS calls/1,000 | errors |\n\
        | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";

    /// A line of a Markdown table.
    pub fn table_line(&self, verb: &str, size: &str, connections: usize) -> String {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"))
        };
        let few = |rate: f64| number(Some(rate), if rate < 100.0 { 1 } else { 0 });
        format!(
            "| {verb} | {size} | {connections} | {} | {:.1} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            few(self.requests_per_second()),
            self.megabytes_per_second(),
            number(self.milliseconds_at(0.5), 2),
            number(self.milliseconds_at(0.99), 2),
            number(self.milliseconds_at(0.999), 2),
            number(self.server_cpu_per_gigabyte(), 2),
            number(self.server_cpu_per_thousand(), 3),
            number(self.client_cpu_per_gigabyte(), 2),
            number(self.server_resident_peak.map(|b| b as f64 / 1e6), 0),
            number(self.server_cache.map(|b| b as f64 / 1e6), 0),
            number(self.key_calls_per_thousand(), 1),
            self.errors,
        )
    }
}

/// Bytes as `4KiB`, `16 MiB`, `1GiB` or a bare number.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a size"))?;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        other => return Err(format!("{other:?} is not a unit: KiB, MiB, GiB")),
    };
    number
        .checked_mul(unit)
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// A time as `90s`, `30m` or `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: 90s, 30m, 2h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// The other way round of [`parse_size`].
pub fn show_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4KiB", 4096),
            ("16 MiB", 16 << 20),
            ("7", 7),
            ("1g", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert_eq!(show_size(64 << 10), "64 KiB");
        assert_eq!(show_size(1000), "1000 B");
        for wrong in ["", "KiB", "4 parsecs", "99999999999 GiB"] {
            assert!(parse_size(wrong).is_err());
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("2h", 7200)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["", "m", "30", "-1s", "30 µ", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        let measured = Measured {
            requests: 1000.0,
            bytes: 2e9,
            seconds: 2.0,
            latencies: (1..=1000).map(Duration::from_millis).collect(),
            server_cpu: Some(1.0),
            client_cpu: 0.5,
            key_calls: Some(5),
            ..Measured::default()
        };
        assert_eq!(measured.requests_per_second(), 500.0);
        assert_eq!(measured.megabytes_per_second(), 1000.0);
        assert_eq!(measured.milliseconds_at(0.5), Some(501.0));
        assert_eq!(measured.milliseconds_at(0.999), Some(999.0));
        assert_eq!(measured.server_cpu_per_gigabyte(), Some(0.5));
        assert_eq!(measured.server_cpu_per_thousand(), Some(1.0));
        assert_eq!(measured.client_cpu_per_gigabyte(), Some(0.25));
        assert_eq!(measured.key_calls_per_thousand(), Some(5.0));
        let columns = |line: &str| line.trim().matches('|').count();
        let line = columns(&measured.table_line("PUT", "4 KiB", 16));
        assert!(
            Measured::TABLE_HEAD
                .lines()
                .all(|head| columns(head) == line)
        );
        assert_eq!(Measured::default().milliseconds_at(0.99), None);
    }
}
