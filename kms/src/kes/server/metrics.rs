//! What the server counts, in the words of KES's own metrics.
//!
//! Only requests for keys, policies and identities count, as there; so that looking at the metrics does not
//! change them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper ends of the classes of response times, in seconds, as they are written.
const BUCKETS: [(&str, f64); 10] = [
    ("0.01", 0.01),
    ("0.05", 0.05),
    ("0.1", 0.1),
    ("0.25", 0.25),
    ("0.5", 0.5),
    ("1", 1.0),
    ("1.5", 1.5),
    ("3", 3.0),
    ("5", 5.0),
    ("10", 10.0),
];

#[derive(Default)]
pub(super) struct Metrics {
    pub(super) audit_events: Counter,
    pub(super) error_events: Counter,
    active: AtomicI64,
    by_code: Mutex<BTreeMap<u16, u64>>,
    /// How many answers fell into each class, and in the last one whatever took longer.
    classes: [Counter; BUCKETS.len() + 1],
    total_micros: Counter,
}

#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.add_many(1);
    }

    fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request under way.
pub(super) struct Counted<'a>(Option<&'a Metrics>);

impl Counted<'_> {
    pub(super) fn end(self, status: u16, took: Duration) {
        let Some(metrics) = self.0 else { return };
        let mut by_code = metrics
            .by_code
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *by_code.entry(status).or_default() += 1;
        let seconds = took.as_secs_f64();
        let class = BUCKETS.iter().position(|(_, end)| seconds <= *end);
        metrics.classes[class.unwrap_or(BUCKETS.len())].add();
        metrics
            .total_micros
            .add_many(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            metrics.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Metrics {
    pub(super) fn begin(&self, path: &str) -> Counted<'_> {
        let counts = ["/v1/key/", "/v1/policy/", "/v1/identity/"]
            .iter()
            .any(|start| path.starts_with(start));
        if !counts {
            return Counted(None);
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        Counted(Some(self))
    }

    pub(super) fn render(&self, uptime: Duration) -> String {
        let mut out = String::new();
        let one = |out: &mut String,
                   name: &str,
                   kind: &str,
                   help: &str,
                   value: &dyn std::fmt::Display| {
            write!(
                out,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            )
            .expect("a String takes everything");
        };
        one(
            &mut out,
            "kes_http_request_active",
            "gauge",
            "Requests that are not answered yet.",
            &self.active.load(Ordering::Relaxed),
        );
        self.render_codes(&mut out);
        self.render_times(&mut out);
        one(
            &mut out,
            "kes_log_audit_events",
            "counter",
            "Events written to the audit log.",
            &self.audit_events.get(),
        );
        one(
            &mut out,
            "kes_log_error_events",
            "counter",
            "Events written to the error log.",
            &self.error_events.get(),
        );
        let (memory, cpus) = (
            memory(),
            std::thread::available_parallelism().map_or(1, usize::from),
        );
        for (name, help, value) in [
            (
                "kes_system_mem_heap_used",
                "Bytes of memory in use, stacks excluded.",
                memory.heap,
            ),
            (
                "kes_system_mem_stack_used",
                "Bytes of the main thread's stack.",
                memory.stack,
            ),
            ("kes_system_num_cpu", "CPUs of the machine.", cpus as u64),
            (
                "kes_system_num_cpu_used",
                "CPUs that the server may use.",
                cpus as u64,
            ),
            (
                "kes_system_num_threads",
                "Threads of the server.",
                memory.threads,
            ),
        ] {
            one(&mut out, name, "gauge", help, &value);
        }
        one(
            &mut out,
            "kes_system_up_time",
            "gauge",
            "Seconds since the server was started.",
            &uptime.as_secs_f64(),
        );
        out
    }

    fn render_codes(&self, out: &mut String) {
        let by_code = self.by_code.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, codes, help) in [
            (
                "kes_http_request_error",
                400..500,
                "Requests refused for what they were.",
            ),
            (
                "kes_http_request_failure",
                500..600,
                "Requests that failed in the server.",
            ),
            (
                "kes_http_request_success",
                200..300,
                "Requests that were done.",
            ),
        ] {
            let mut head = Some(format!("# HELP {name} {help}\n# TYPE {name} counter\n"));
            for (code, count) in by_code.iter().filter(|(code, _)| codes.contains(*code)) {
                out.push_str(&head.take().unwrap_or_default());
                writeln!(out, "{name}{{code=\"{code}\"}} {count}")
                    .expect("a String takes everything");
            }
        }
    }

    fn render_times(&self, out: &mut String) {
        let name = "kes_http_response_time";
        write!(
            out,
            "# HELP {name} How long answers took, in seconds.\n# TYPE {name} histogram\n"
        )
        .expect("a String takes everything");
        let mut total = 0;
        for (end, class) in BUCKETS
            .iter()
            .map(|(end, _)| *end)
            .chain(["+Inf"])
            .zip(&self.classes)
        {
            total += class.get();
            writeln!(out, "{name}_bucket{{le=\"{end}\"}} {total}")
                .expect("a String takes everything");
        }
        let seconds = Duration::from_micros(self.total_micros.get()).as_secs_f64();
        write!(out, "{name}_sum {seconds}\n{name}_count {total}\n")
            .expect("a String takes everything");
    }
}

/// What the process uses.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) heap: u64,
    pub(super) stack: u64,
    pub(super) threads: u64,
}

/// Asks the kernel; zeros where it does not tell.
pub(super) fn memory() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    Memory {
        heap: field("RssAnon:") * 1024,
        stack: field("VmStk:") * 1024,
        threads: field("Threads:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_and_written() {
        let metrics = Metrics::default();
        metrics
            .begin("/v1/key/create/")
            .end(200, Duration::from_millis(20));
        metrics
            .begin("/v1/key/create/")
            .end(400, Duration::from_secs(20));
        metrics.begin("/v1/status").end(200, Duration::ZERO);
        let busy = metrics.begin("/v1/policy/read/");
        let text = metrics.render(Duration::from_secs(2));
        for line in [
            "kes_http_request_active 1",
            "kes_http_request_success{code=\"200\"} 1",
            "kes_http_request_error{code=\"400\"} 1",
            "kes_http_response_time_bucket{le=\"0.01\"} 0",
            "kes_http_response_time_bucket{le=\"0.05\"} 1",
            "kes_http_response_time_bucket{le=\"+Inf\"} 2",
            "kes_http_response_time_sum 20.02",
            "kes_http_response_time_count 2",
            "kes_system_up_time 2",
        ] {
            assert!(
                text.lines().any(|held| held == line),
                "{line} not in\n{text}"
            );
        }
        assert!(!text.contains("request_failure"));
        drop(busy);
        assert!(
            metrics
                .render(Duration::ZERO)
                .contains("kes_http_request_active 0")
        );
    }
}
