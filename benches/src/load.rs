//! The load: connections that each keep one request in flight, every request signed and laid out before the clock
//! starts, so that what is measured is the server and the wire.
//!
//! One thread per connection with blocking sockets. A signature holds for 15 minutes, which bounds a run.
//!
//! What is counted lies in a window of time. A request that crosses a border of the window counts with the share of its time
//! that lies inside, so that a few large objects under way at the borders falsify no rate.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::client::{Client, Endpoint, Request, head_bytes};
use strongroom_tests::data::Pattern;
use strongroom_tests::procfs;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::sse::borrowed;
use strongroom_tests::wire::Connection;

use crate::measured::Measured;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Put,
    Get,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Verb::Put => "PUT",
            Verb::Get => "GET",
        }
    }
}

#[derive(Clone)]
pub struct Plan {
    pub endpoint: Endpoint,
    pub bucket: String,
    pub verb: Verb,
    pub size: u64,
    pub connections: usize,
    /// So many connections read objects of their own; those after them read the same objects again, which bounds what must
    /// be written first. Every connection writes objects of its own.
    pub owners: usize,
    /// At least; longer, up to [`STRETCH_MAX`] times, where not every connection has ended a request.
    pub duration: Duration,
    /// Before anything is counted.
    pub warm_up: Duration,
    /// Objects per connection, used in turn.
    pub keys: usize,
    /// The server's process, for its CPU and memory.
    pub pid: Option<u32>,
    /// Compare every byte read with what was written; costs the generator some CPU.
    pub verify: bool,
    /// Further headers of every PUT, in lower case.
    pub put_headers: Vec<(String, String)>,
    /// Further headers of every GET, in lower case.
    pub get_headers: Vec<(String, String)>,
    /// Tells how often the key service was called so far.
    pub key_calls: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
}

/// How many times its length a window may last for the sake of slow requests.
pub const STRETCH_MAX: u32 = 4;

/// What was overwritten has left the server's memory by then.
const SETTLE: Duration = Duration::from_secs(2);

/// What one connection saw, from the start of the warm-up to the end of its last request.
#[derive(Default)]
struct Tally {
    /// Begin and end of each request that went well.
    done: Vec<(Instant, Instant)>,
    failed: Vec<Instant>,
    first_error: Option<String>,
}

/// Makes the bucket and, for reads, the objects, and reads each once, so that what a cache is to hold is there.
pub fn prepare(plan: &Plan) -> io::Result<()> {
    let mut client = Client::new(plan.endpoint.clone());
    let made = client.create_bucket(&plan.bucket)?;
    if made.status() != 200 && made.code() != "BucketAlreadyOwnedByYou" {
        return Err(io::Error::other(format!("no bucket: {}", made.text())));
    }
    if plan.verb == Verb::Put {
        return Ok(());
    }
    let body = body(plan);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..plan.owners.clamp(1, plan.connections))
            .map(|connection| {
                let (mut client, body) = (Client::new(plan.endpoint.clone()), &body);
                scope.spawn(move || {
                    for n in 0..plan.keys {
                        let key = key(plan, connection, n);
                        let headers = borrowed(&plan.put_headers);
                        let request = Request {
                            method: "PUT",
                            bucket: &plan.bucket,
                            key: &key,
                            headers: &headers,
                            ..Request::default()
                        };
                        let answer = client.request(&request, body)?;
                        if answer.status() != 200 {
                            return Err(io::Error::other(answer.text()));
                        }
                    }
                    for n in 0..plan.keys {
                        let request = Request {
                            method: "GET",
                            bucket: &plan.bucket,
                            key: &key(plan, connection, n),
                            headers: &borrowed(&plan.get_headers),
                            ..Request::default()
                        };
                        client.fetch(&request, |_| {})?;
                    }
                    Ok(())
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|w| w.join().expect("a writer does not panic"))
    })?;
    thread::sleep(SETTLE);
    Ok(())
}

/// Runs the plan.
pub fn run(plan: &Plan) -> Measured {
    let body = body(plan);
    let stop = AtomicBool::new(false);
    let ended = AtomicUsize::new(0);
    let ready = Barrier::new(plan.connections + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.connections)
            .map(|connection| {
                let (body, stop, ended, ready) = (&body, &stop, &ended, &ready);
                scope.spawn(move || {
                    let requests = requests(plan, connection);
                    ready.wait();
                    work(plan, &requests, body, stop, ended)
                })
            })
            .collect();
        ready.wait();
        thread::sleep(plan.warm_up);
        let watched = plan.pid.filter(|&pid| procfs::reset_peak(pid).is_ok());
        let before = Reading::now(plan);
        let ended_before = ended.load(Ordering::Relaxed);
        thread::sleep(plan.duration);
        while ended.load(Ordering::Relaxed) - ended_before < plan.connections
            && before.at.elapsed() < plan.duration * STRETCH_MAX
        {
            thread::sleep(Duration::from_millis(10));
        }
        let after = Reading::now(plan);
        let difference = |after: Option<f64>, before: Option<f64>| Some(after? - before?);
        let mut measured = Measured {
            seconds: (after.at - before.at).as_secs_f64(),
            client_cpu: after.client_cpu - before.client_cpu,
            server_cpu: difference(after.server_cpu, before.server_cpu),
            server_resident_peak: watched.map(procfs::resident_peak_bytes),
            key_calls: after.key_calls.zip(before.key_calls).map(|(a, b)| a - b),
            ..Measured::default()
        };
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            let tally = worker.join().expect("a worker does not panic");
            for &(begin, end) in &tally.done {
                measured.requests += share(before.at, after.at, begin, end);
                if before.at <= end && end <= after.at {
                    measured.latencies.push(end - begin);
                }
            }
            let inside = |at: &&Instant| before.at <= **at && **at <= after.at;
            measured.errors += tally.failed.iter().filter(inside).count() as u64;
            measured.first_error = measured.first_error.or(tally.first_error);
        }
        measured.bytes = measured.requests * plan.size as f64;
        measured.latencies.sort_unstable();
        measured
    })
}

/// All counters at one moment.
struct Reading {
    at: Instant,
    client_cpu: f64,
    server_cpu: Option<f64>,
    key_calls: Option<u64>,
}

impl Reading {
    fn now(plan: &Plan) -> Self {
        Reading {
            at: Instant::now(),
            client_cpu: procfs::cpu_seconds(std::process::id()),
            server_cpu: plan.pid.map(procfs::cpu_seconds),
            key_calls: plan.key_calls.as_ref().map(|calls| calls()),
        }
    }
}

/// The share of the time from `begin` to `end` that lies between `from` and `to`.
fn share(from: Instant, to: Instant, begin: Instant, end: Instant) -> f64 {
    let inside = end.min(to).saturating_duration_since(begin.max(from));
    let whole = (end - begin).as_secs_f64();
    if whole > 0.0 {
        inside.as_secs_f64() / whole
    } else {
        0.0
    }
}

/// The heads of all requests of one connection.
fn requests(plan: &Plan, connection: usize) -> Vec<Vec<u8>> {
    let (method, length, further) = match plan.verb {
        Verb::Put => ("PUT", plan.size, &plan.put_headers),
        Verb::Get => ("GET", 0, &plan.get_headers),
    };
    let headers = borrowed(further);
    let moment = Moment::now();
    let owner = match plan.verb {
        Verb::Put => connection,
        Verb::Get => connection % plan.owners.clamp(1, plan.connections),
    };
    (0..plan.keys)
        .map(|n| {
            let key = key(plan, owner, n);
            let request = Request {
                method,
                bucket: &plan.bucket,
                key: &key,
                headers: &headers,
                ..Request::default()
            };
            head_bytes(&plan.endpoint, &moment, &request, length).into_bytes()
        })
        .collect()
}

fn work(
    plan: &Plan,
    requests: &[Vec<u8>],
    body: &[u8],
    stop: &AtomicBool,
    ended: &AtomicUsize,
) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    for head in requests.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        match exchange(plan, &mut connection, head, body) {
            Ok(()) => tally.done.push((begin, Instant::now())),
            Err(e) => {
                tally.failed.push(Instant::now());
                tally.first_error.get_or_insert_with(|| e.to_string());
            }
        }
        ended.fetch_add(1, Ordering::Relaxed);
    }
    tally
}

/// One request. After an error the connection is not used again.
fn exchange(
    plan: &Plan,
    kept: &mut Option<Connection>,
    head: &[u8],
    body: &[u8],
) -> io::Result<()> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(plan.endpoint.address, plan.endpoint.tls)?,
    };
    let (method, sent) = match plan.verb {
        Verb::Put => ("PUT", body),
        Verb::Get => ("GET", &[][..]),
    };
    connection.send(head, sent)?;
    let answer = connection.read_head()?;
    let (mut at, mut same) = (0, true);
    let length = connection.read_body(method, &answer, |piece| {
        if plan.verify && plan.verb == Verb::Get {
            let end = at + piece.len();
            same = same && body.get(at..end).is_some_and(|b| b == piece);
            at = end;
        }
    })?;
    if !answer.closes() {
        *kept = Some(connection);
    }
    if answer.status != 200 {
        return Err(io::Error::other(format!("status {}", answer.status)));
    }
    if plan.verb == Verb::Get && (length != plan.size || !same) {
        return Err(io::Error::other("the object is not what was written"));
    }
    Ok(())
}

fn key(plan: &Plan, connection: usize, n: usize) -> String {
    format!("{}/{connection:03}/{n:05}", plan.size)
}

/// One content for all objects of a size; incompressible.
fn body(plan: &Plan) -> Vec<u8> {
    Pattern::new(plan.size).bytes(plan.size as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_with_the_share_inside() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let share = |begin, end| share(at(10), at(20), at(begin), at(end));
        assert_eq!(share(12, 13), 1.0);
        assert_eq!(share(5, 15), 0.5);
        assert_eq!(share(18, 26), 0.25);
        assert_eq!(share(0, 40), 0.25);
        assert_eq!(share(3, 9), 0.0);
        assert_eq!(share(21, 22), 0.0);
        assert_eq!(share(12, 12), 0.0);
    }
}
