//! What the edge counts: requests, their time, bytes on the wire, connections.
//!
//! A thread that counts gets cells of its own at its first count. They stay when it ends, so no count ever falls.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};

use super::text::Text;

const VERBS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "DELETE", "other"];
/// Statuses by themselves; the last place is for all others.
const CODES: [u16; 22] = [
    200, 204, 206, 301, 304, 307, 400, 401, 403, 404, 405, 409, 411, 412, 413, 414, 416, 500, 501,
    503, 507, 0,
];
/// Upper ends of the latency classes, in microseconds.
const CLASSES: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000, 30_000_000,
];

/// The counts of one thread.
#[derive(Default)]
#[repr(align(128))]
struct Cells {
    verbs: [Verb; VERBS.len()],
    received: AtomicU64,
    sent: AtomicU64,
    accepted: AtomicU64,
    open: AtomicI64,
}

#[derive(Default)]
struct Verb {
    codes: [AtomicU64; CODES.len()],
    /// How many took no longer than their class says and longer than the one before; the last had longer still.
    classes: [AtomicU64; CLASSES.len() + 1],
    micros: AtomicU64,
}

static ALL: Mutex<Vec<Arc<Cells>>> = Mutex::new(Vec::new());

thread_local! {
    static MINE: Arc<Cells> = {
        let cells = Arc::new(Cells::default());
        all().push(Arc::clone(&cells));
        cells
    };
}

fn all() -> std::sync::MutexGuard<'static, Vec<Arc<Cells>>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a request that was answered after `took`.
pub fn request(method: &Method, status: StatusCode, took: Duration) {
    let verb = VERBS.iter().position(|v| *v == method.as_str());
    let verb = verb.unwrap_or(VERBS.len() - 1);
    let code = CODES.iter().position(|c| *c == status.as_u16());
    let code = code.unwrap_or(CODES.len() - 1);
    let micros = took.as_micros() as u64;
    let class = CLASSES.partition_point(|most| *most < micros);
    MINE.with(|cells| {
        let verb = &cells.verbs[verb];
        add(&verb.codes[code], 1);
        add(&verb.classes[class], 1);
        add(&verb.micros, micros);
    });
}

/// Counts bytes that came from clients.
pub fn received(bytes: usize) {
    MINE.with(|cells| add(&cells.received, bytes as u64));
}

/// Counts bytes that went to clients.
pub fn sent(bytes: usize) {
    MINE.with(|cells| add(&cells.sent, bytes as u64));
}

/// An open connection, as long as it lives.
pub struct Connection(Arc<Cells>);

impl Connection {
    pub fn open() -> Self {
        let cells = MINE.with(Arc::clone);
        add(&cells.accepted, 1);
        cells.open.fetch_add(1, Ordering::Relaxed);
        Connection(cells)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add(cell: &AtomicU64, n: u64) {
    cell.fetch_add(n, Ordering::Relaxed);
}

pub fn families(text: &mut Text) {
    let cells = all().clone();
    let sum = |of: &dyn Fn(&Cells) -> &AtomicU64| -> u64 {
        cells.iter().map(|c| of(c).load(Ordering::Relaxed)).sum()
    };

    let mut requests = text.counter(
        "strongroom_requests_total",
        "Requests answered, by verb and status.",
    );
    for (v, verb) in VERBS.iter().enumerate() {
        for (c, code) in CODES.iter().enumerate() {
            match (sum(&|cells| &cells.verbs[v].codes[c]), code) {
                (0, _) => {}
                (n, 0) => requests.with(&[("verb", verb), ("code", &"other")], n),
                (n, code) => requests.with(&[("verb", verb), ("code", code)], n),
            }
        }
    }

    let mut seconds = text.histogram(
        "strongroom_request_duration_seconds",
        "From a request's head to the head of its answer: all of a PUT, and a GET up to its first verified bytes.",
    );
    for (v, verb) in VERBS.iter().enumerate() {
        let mut count = 0;
        let counts: Vec<u64> = (0..=CLASSES.len())
            .map(|c| {
                count += sum(&|cells| &cells.verbs[v].classes[c]);
                count
            })
            .collect();
        if count == 0 {
            continue;
        }
        for (most, n) in CLASSES.iter().zip(&counts) {
            let most = *most as f64 / 1e6;
            seconds.part("_bucket", &[("verb", verb), ("le", &most)], n);
        }
        seconds.part("_bucket", &[("verb", verb), ("le", &"+Inf")], count);
        let micros = sum(&|cells| &cells.verbs[v].micros);
        seconds.part("_sum", &[("verb", verb)], micros as f64 / 1e6);
        seconds.part("_count", &[("verb", verb)], count);
    }

    let received = "Bytes from clients, as they came over the wire.";
    text.counter("strongroom_received_bytes_total", received)
        .is(sum(&|cells| &cells.received));
    let sent = "Bytes to clients, as they went over the wire.";
    text.counter("strongroom_sent_bytes_total", sent)
        .is(sum(&|cells| &cells.sent));
    text.counter("strongroom_connections_total", "Connections accepted.")
        .is(sum(&|cells| &cells.accepted));
    let open: i64 = cells.iter().map(|c| c.open.load(Ordering::Relaxed)).sum();
    text.gauge("strongroom_open_connections", "Connections open now.")
        .is(open);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, sample: &str) -> f64 {
        let line = text.lines().find_map(|l| l.strip_prefix(sample));
        line.and_then(|l| l.trim().parse().ok()).unwrap_or(0.0)
    }

    fn scrape() -> String {
        let mut text = Text::default();
        families(&mut text);
        text.end()
    }

    /// Tests of one process share the cells, so what is compared is what was added.
    #[test]
    fn counts_of_all_threads_are_summed_and_stay() {
        let verb = Method::from_bytes(b"PROPFIND").unwrap();
        let code = "strongroom_requests_total{verb=\"other\",code=\"other\"}";
        let least = "strongroom_request_duration_seconds_bucket{verb=\"other\",le=\"0.0001\"}";
        let fine = "strongroom_request_duration_seconds_bucket{verb=\"other\",le=\"0.00025\"}";
        let all = "strongroom_request_duration_seconds_bucket{verb=\"other\",le=\"+Inf\"}";
        let before = scrape();
        for _ in 0..3 {
            let verb = verb.clone();
            std::thread::spawn(move || {
                request(&verb, StatusCode::IM_A_TEAPOT, Duration::from_micros(100));
                request(&verb, StatusCode::IM_A_TEAPOT, Duration::from_micros(101));
                request(&verb, StatusCode::IM_A_TEAPOT, Duration::from_secs(100));
            })
            .join()
            .unwrap();
        }
        let after = scrape();
        let more = |sample| value(&after, sample) - value(&before, sample);
        assert_eq!(more(code), 9.0);
        assert_eq!((more(least), more(fine), more(all)), (3.0, 6.0, 9.0));
        let sum = more("strongroom_request_duration_seconds_sum{verb=\"other\"}");
        assert!((sum - 300.000_603).abs() < 1e-6, "{sum}");
    }
}
