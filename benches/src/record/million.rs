//! Very many small objects: writing them, starting again after `kill -9`, listing them in pages and by a delimiter, deleting them.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::client::{Client, Request, Response, xml_values};
use strongroom_tests::{Config, Server, disk, procfs, sigv4, sse};

use super::{expect, progress};
use crate::measured::milliseconds_at;

const BUCKET: &str = "many";
const OBJECT_BYTES: usize = 1 << 10;
/// Objects under one prefix, names in one page, and names in one DeleteObjects: what S3 allows at most.
const PAGE: u64 = 1000;
const WRITERS: usize = 32;
const DELETERS: usize = 4;
/// How long a server may take to be alive again.
const START_PATIENCE: Duration = Duration::from_secs(600);

/// Goes through all of it with `count` objects, and gives the table.
pub fn million(count: u64, shards: usize) -> Result<String, String> {
    let mut server = Config::http().shards(shards).start();
    let made = server.client().create_bucket(BUCKET);
    expect(made, 200).map_err(|e| e.to_string())?;
    let mut table = format!(
        "{count} objects of {OBJECT_BYTES} bytes under {} prefixes. The generator signs each request as it goes.\n\n\
         | step | requests | s | names/s | p50 ms | p99 ms | slowest ms | server CPU s | peak resident MB | disk MB after |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        count.div_ceil(PAGE)
    );
    let line = step(&server, count, "PUT, 32 connections", |server| {
        write_all(server, count)
    });
    table += &line?;

    progress("many objects: kill -9 and start");
    server.kill();
    let took = start_until_alive(&mut server)?;
    table += &format!(
        "| `kill -9` after the last PUT, then from the start of the process to `/health/live` | – | {:.2} | – | – | – | – | {:.2} | {:.0} | {:.0} |\n",
        took.as_secs_f64(),
        procfs::cpu_seconds(server.pid()),
        procfs::resident_peak_bytes(server.pid()) as f64 / 1e6,
        disk::used_bytes(server.data_dir()) as f64 / 1e6,
    );
    for name in [
        "ListObjectsV2 in pages of 1,000, first time after the start",
        "ListObjectsV2 in pages of 1,000, again",
    ] {
        table += &step(&server, count, name, |server| {
            let (found, _, took) = list(server, "list-type=2")?;
            agree(found, count, took)
        })?;
    }
    table += &step(
        &server,
        count.div_ceil(PAGE),
        "ListObjectsV2 by delimiter `/`",
        |server| {
            let (_, prefixes, took) = list(server, "list-type=2&delimiter=%2F")?;
            agree(prefixes, count.div_ceil(PAGE), took)
        },
    )?;
    let line = step(
        &server,
        count,
        "DeleteObjects of 1,000, 4 connections",
        |server| delete_all(server, count),
    );
    table += &line?;
    table += &step(&server, 0, "ListObjectsV2 of nothing", |server| {
        let (found, _, took) = list(server, "list-type=2")?;
        agree(found, 0, took)
    })?;
    Ok(table)
}

/// One line of the table: what the requests of a step over `count` names took, each and together.
fn step(
    server: &Server,
    count: u64,
    name: &str,
    work: impl FnOnce(&Server) -> io::Result<Vec<Duration>>,
) -> Result<String, String> {
    progress(&format!("many objects: {name}"));
    let pid = server.pid();
    let peak = procfs::reset_peak(pid).is_ok();
    let (begun, cpu) = (Instant::now(), procfs::cpu_seconds(pid));
    let mut latencies = work(server).map_err(|e| format!("{name}: {e}"))?;
    let (seconds, cpu) = (
        begun.elapsed().as_secs_f64(),
        procfs::cpu_seconds(pid) - cpu,
    );
    latencies.sort_unstable();
    let at = |share| milliseconds_at(&latencies, share).unwrap_or(0.0);
    let resident = if peak {
        format!("{:.0}", procfs::resident_peak_bytes(pid) as f64 / 1e6)
    } else {
        "–".to_owned()
    };
    let mut line = String::new();
    writeln!(
        line,
        "| {name} | {} | {seconds:.2} | {:.0} | {:.2} | {:.2} | {:.2} | {cpu:.2} | {resident} | {:.0} |",
        latencies.len(),
        count as f64 / seconds,
        at(0.5),
        at(0.99),
        at(1.0),
        disk::used_bytes(server.data_dir()) as f64 / 1e6,
    )
    .expect("in memory");
    Ok(line)
}

fn key(n: u64) -> String {
    format!("prefix-{:05}/object-{n:09}", n / PAGE)
}

fn write_all(server: &Server, count: u64) -> io::Result<Vec<Duration>> {
    let body = vec![0x6b; OBJECT_BYTES];
    in_turn(server, WRITERS, count, |client, n| {
        expect(client.put(BUCKET, &key(n), &body), 200)
    })
}

fn delete_all(server: &Server, count: u64) -> io::Result<Vec<Duration>> {
    in_turn(server, DELETERS, count.div_ceil(PAGE), |client, page| {
        let mut body = "<Delete><Quiet>true</Quiet>".to_owned();
        for n in page * PAGE..((page + 1) * PAGE).min(count) {
            write!(body, "<Object><Key>{}</Key></Object>", key(n)).expect("in memory");
        }
        body += "</Delete>";
        let headers = sse::checked(&body);
        let headers = sse::borrowed(&headers);
        let request = Request {
            method: "POST",
            bucket: BUCKET,
            query: "delete",
            headers: &headers,
            ..Request::default()
        };
        let answer = expect(client.request(&request, body.as_bytes()), 200)?;
        match answer.text().contains("<Error>") {
            true => Err(io::Error::other(answer.text())),
            false => Ok(answer),
        }
    })
}

/// Numbers 0 to `count`, each taken by one of so many connections. Returns what each took.
fn in_turn(
    server: &Server,
    connections: usize,
    count: u64,
    request: impl Fn(&mut Client, u64) -> io::Result<Response> + Sync,
) -> io::Result<Vec<Duration>> {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..connections)
            .map(|_| {
                let (mut client, next, request) = (server.client(), &next, &request);
                scope.spawn(move || {
                    let mut latencies = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return Ok(latencies);
                        }
                        if n > 0 && n.is_multiple_of((count / 10).max(1)) {
                            progress(&format!("  {n} of {count}"));
                        }
                        let begun = Instant::now();
                        request(&mut client, n)?;
                        latencies.push(begun.elapsed());
                    }
                })
            })
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            let latencies: io::Result<Vec<Duration>> = worker.join().expect("no panic");
            all.extend(latencies?);
        }
        Ok(all)
    })
}

/// All pages. Returns how many names and how many common prefixes there were, and what each page took.
fn list(server: &Server, query: &str) -> io::Result<(u64, u64, Vec<Duration>)> {
    let mut client = server.client();
    let (mut names, mut prefixes, mut latencies) = (0, 0, Vec::new());
    let mut page = query.to_owned();
    loop {
        let begun = Instant::now();
        let answer = expect(client.send("GET", BUCKET, "", &page, &[]), 200)?;
        latencies.push(begun.elapsed());
        let text = answer.text();
        names += text.matches("<Key>").count() as u64;
        prefixes += text.matches("<CommonPrefixes>").count() as u64;
        let Some(token) = xml_values(&text, "NextContinuationToken").pop() else {
            return Ok((names, prefixes, latencies));
        };
        page = format!("{query}&continuation-token={}", sigv4::encode_query(&token));
    }
}

fn agree(found: u64, expected: u64, took: Vec<Duration>) -> io::Result<Vec<Duration>> {
    match found == expected {
        true => Ok(took),
        false => Err(io::Error::other(format!(
            "{found} listed instead of {expected}"
        ))),
    }
}

/// Starts it again and asks until it says that it is alive.
fn start_until_alive(server: &mut Server) -> Result<Duration, String> {
    let address = server.address();
    thread::scope(|scope| {
        let begun = Instant::now();
        let asking = scope.spawn(move || {
            while begun.elapsed() < START_PATIENCE {
                if alive(address).unwrap_or(false) {
                    return Ok(begun.elapsed());
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err(format!("not alive {START_PATIENCE:?} after its start"))
        });
        server.start_again();
        asking.join().expect("asking does not panic")
    })
}

fn alive(address: SocketAddr) -> io::Result<bool> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    socket.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}
