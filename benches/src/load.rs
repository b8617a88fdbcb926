//! The load: connections that each keep one request in flight, every request signed and laid out before the clock
//! starts, so that what is measured is the server and the wire.
//!
//! One thread per connection with blocking sockets. A signature holds for 15 minutes, which bounds a run.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::client::{Client, Endpoint, Request, head_bytes};
use strongroom_tests::data::Pattern;
use strongroom_tests::procfs;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::wire::Connection;

use crate::measured::Measured;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Put,
    Get,
}

#[derive(Clone)]
pub struct Plan {
    pub endpoint: Endpoint,
    pub bucket: String,
    pub verb: Verb,
    pub size: u64,
    pub connections: usize,
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

const WARM_UP: u8 = 0;
const COUNT: u8 = 1;
const STOP: u8 = 2;

/// What one connection counted.
#[derive(Default)]
struct Tally {
    requests: u64,
    errors: u64,
    bytes: u64,
    latencies: Vec<Duration>,
    first_error: Option<String>,
}

/// Makes the bucket and, for reads, the objects.
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
        let writers: Vec<_> = (0..plan.connections)
            .map(|connection| {
                let (mut client, body) = (Client::new(plan.endpoint.clone()), &body);
                scope.spawn(move || {
                    for n in 0..plan.keys {
                        let key = key(plan, connection, n);
                        let headers = headers(&plan.put_headers);
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
                    Ok(())
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|w| w.join().expect("a writer does not panic"))
    })
}

/// Runs the plan. Requests that begin in the warm-up or end after the window are not counted.
pub fn run(plan: &Plan) -> Measured {
    let body = body(plan);
    let phase = AtomicU8::new(WARM_UP);
    let ready = Barrier::new(plan.connections + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.connections)
            .map(|connection| {
                let (body, phase, ready) = (&body, &phase, &ready);
                scope.spawn(move || {
                    let requests = requests(plan, connection);
                    ready.wait();
                    work(plan, &requests, body, phase)
                })
            })
            .collect();
        ready.wait();
        thread::sleep(plan.warm_up);
        let server_cpu = || plan.pid.map(procfs::cpu_seconds);
        let key_calls = || plan.key_calls.as_ref().map(|calls| calls());
        let own = std::process::id();
        let before = (
            Instant::now(),
            procfs::cpu_seconds(own),
            server_cpu(),
            key_calls(),
        );
        phase.store(COUNT, Ordering::SeqCst);
        thread::sleep(plan.duration);
        phase.store(STOP, Ordering::SeqCst);
        let mut measured = Measured {
            seconds: before.0.elapsed().as_secs_f64(),
            client_cpu: procfs::cpu_seconds(own) - before.1,
            server_cpu: server_cpu()
                .zip(before.2)
                .map(|(after, before)| after - before),
            server_resident: plan.pid.map(procfs::resident_bytes),
            key_calls: key_calls()
                .zip(before.3)
                .map(|(after, before)| after - before),
            ..Measured::default()
        };
        for worker in workers {
            let tally = worker.join().expect("a worker does not panic");
            measured.requests += tally.requests;
            measured.errors += tally.errors;
            measured.bytes += tally.bytes;
            measured.latencies.extend(tally.latencies);
            measured.first_error = measured.first_error.or(tally.first_error);
        }
        measured.latencies.sort_unstable();
        measured
    })
}

/// The heads of all requests of one connection.
fn requests(plan: &Plan, connection: usize) -> Vec<Vec<u8>> {
    let (method, length, further) = match plan.verb {
        Verb::Put => ("PUT", plan.size, &plan.put_headers),
        Verb::Get => ("GET", 0, &plan.get_headers),
    };
    let headers = headers(further);
    let moment = Moment::now();
    (0..plan.keys)
        .map(|n| {
            let key = key(plan, connection, n);
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

fn work(plan: &Plan, requests: &[Vec<u8>], body: &[u8], phase: &AtomicU8) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    for head in requests.iter().cycle() {
        let began_in = phase.load(Ordering::Relaxed);
        if began_in == STOP {
            break;
        }
        let start = Instant::now();
        let done = exchange(plan, &mut connection, head, body);
        let took = start.elapsed();
        if began_in != COUNT || phase.load(Ordering::Relaxed) != COUNT {
            continue;
        }
        match done {
            Ok(()) => {
                tally.requests += 1;
                tally.bytes += plan.size;
                tally.latencies.push(took);
            }
            Err(e) => {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| e.to_string());
            }
        }
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

fn headers(of: &[(String, String)]) -> Vec<(&str, &str)> {
    of.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
}

fn key(plan: &Plan, connection: usize, n: usize) -> String {
    format!("{}/{connection:03}/{n:05}", plan.size)
}

/// One content for all objects of a size; incompressible.
fn body(plan: &Plan) -> Vec<u8> {
    Pattern::new(plan.size).bytes(plan.size as usize)
}
