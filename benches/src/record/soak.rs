//! A long mixed load, with what the server holds looked at again and again: memory and open files must stay flat.
//!
//! Each worker has objects of its own and knows what they must be, so every answer is compared. The number of busy workers
//! changes within each step in the same way, so steps are alike.

use std::fmt::Write as _;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_tests::client::{Client, Request, xml_values};
use strongroom_tests::data::{Chance, Pattern};
use strongroom_tests::{Config, Server, disk, procfs, sigv4};

use super::{expect, progress};

const BUCKET: &str = "soak";
/// Busy workers in the parts of a step.
const LOADS: [usize; 5] = [1, 8, 32, 16, 4];
const WORKERS: usize = 32;
/// Names of each worker.
const KEYS: u64 = 24;
/// Lengths of single uploads, and how often each comes.
const LENGTHS: [(u64, u64); 6] = [
    (100, 10),
    (4 << 10, 30),
    (64 << 10, 25),
    (300_001, 15),
    (1 << 20, 15),
    (8 << 20, 5),
];
/// The smallest part that may be followed by another.
const PART_BYTES: u64 = 5 << 20;
/// Small, so that it is full long before the first third ends.
const CACHE: &str = "128M";
const STEP: Duration = Duration::from_secs(60);
/// Memory goes up and down with what is under way.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Even a short soak has so many samples.
const STEPS_MIN: u32 = 9;

/// What the verdict allows between the medians of the first and the last third.
const MEMORY_SHARE_MAX: f64 = 1.10;
const FILES_MORE_MAX: f64 = 4.0;

/// A text for the record, and whether all was right and flat.
pub struct Outcome {
    pub text: String,
    pub flat: bool,
}

#[derive(Default)]
struct Shared {
    busy: AtomicUsize,
    stop: AtomicBool,
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
}

struct Sample {
    resident: f64,
    files: f64,
}

pub fn soak(length: Duration, shards: usize) -> Result<Outcome, String> {
    let config = Config::http().shards(shards);
    let server = config.args(["--cache-size", CACHE]).start();
    let made = server.client().create_bucket(BUCKET);
    expect(made, 200).map_err(|e| e.to_string())?;
    let shared = Shared::default();
    let mut chance = Chance::from_env();
    thread::scope(|scope| {
        for number in 0..WORKERS {
            let worker = Worker {
                number,
                client: server.client(),
                chance: chance.branch(),
                objects: (0..KEYS).map(|_| None).collect(),
            };
            let shared = &shared;
            scope.spawn(move || worker.run(shared));
        }
        let outcome = watch(length, &server, &shared);
        shared.stop.store(true, Ordering::Relaxed);
        Ok(outcome)
    })
}

/// Changes the load and takes the samples.
fn watch(length: Duration, server: &Server, shared: &Shared) -> Outcome {
    let mut text = format!(
        "PUT, multipart upload, GET, ranges, HEAD, listing and DELETE, of 100 bytes to 8 MiB; {} connections in turn within each \
         step, the cache {CACHE}. Every answer is compared with what it must be. Resident memory is the median of a step, files are those at its end.\n\n\
         | minute | requests | MB | errors | server CPU s | resident MB | peak resident MB | open files | disk MB |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        LOADS.map(|n| n.to_string()).join(", ")
    );
    let (pid, begun) = (server.pid(), Instant::now());
    let step = STEP.min(length / STEPS_MIN);
    let mut samples = Vec::new();
    while begun.elapsed() + step / 2 < length {
        // Where the kernel does not reset the peak, the column says the highest so far.
        drop(procfs::reset_peak(pid));
        let cpu = procfs::cpu_seconds(pid);
        let mut resident = Vec::new();
        for busy in LOADS {
            shared.busy.store(busy, Ordering::Relaxed);
            let until = Instant::now() + step / LOADS.len() as u32;
            while Instant::now() < until {
                thread::sleep(LOOK_EVERY.min(step / 20));
                resident.push(procfs::resident_bytes(pid) as f64 / 1e6);
            }
        }
        let sample = Sample {
            resident: median(resident),
            files: procfs::open_files(pid) as f64,
        };
        let line = format!(
            "| {:.1} | {} | {:.0} | {} | {:.2} | {:.0} | {:.0} | {} | {:.0} |\n",
            begun.elapsed().as_secs_f64() / 60.0,
            shared.requests.swap(0, Ordering::Relaxed),
            shared.bytes.swap(0, Ordering::Relaxed) as f64 / 1e6,
            shared.errors.load(Ordering::Relaxed),
            procfs::cpu_seconds(pid) - cpu,
            sample.resident,
            procfs::resident_peak_bytes(pid) as f64 / 1e6,
            sample.files,
            disk::used_bytes(server.data_dir()) as f64 / 1e6,
        );
        progress(&line);
        text += &line;
        samples.push(sample);
    }
    let errors = shared.errors.load(Ordering::Relaxed);
    if let Some(first) = &*shared.first_error.lock().expect("no worker panics") {
        writeln!(text, "\nFirst error: {first}").expect("in memory");
    }
    let (verdict, flat) = verdict(&samples);
    writeln!(text, "\n{verdict}; {errors} errors.").expect("in memory");
    Outcome {
        text,
        flat: flat && errors == 0,
    }
}

/// Compares the medians of the first and the last third.
fn verdict(samples: &[Sample]) -> (String, bool) {
    let third = samples.len().div_ceil(3);
    let median_of =
        |samples: &[Sample], of: fn(&Sample) -> f64| median(samples.iter().map(of).collect());
    let ends = |of| {
        let last = &samples[samples.len() - third..];
        (median_of(&samples[..third], of), median_of(last, of))
    };
    let memory = ends(|s: &Sample| s.resident);
    let files = ends(|s: &Sample| s.files);
    let memory_flat = memory.1 <= memory.0 * MEMORY_SHARE_MAX;
    let files_flat = files.1 <= files.0 + FILES_MORE_MAX;
    let word = |flat| if flat { "flat" } else { "**not flat**" };
    let text = format!(
        "Medians of the first and the last third: resident memory {:.0} and {:.0} MB, {}; open files {} and {}, {}",
        memory.0,
        memory.1,
        word(memory_flat),
        files.0,
        files.1,
        word(files_flat)
    );
    (text, memory_flat && files_flat)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// What an object must be.
#[derive(Clone)]
struct Object {
    content: Pattern,
    length: u64,
}

struct Worker {
    number: usize,
    client: Client,
    chance: Chance,
    objects: Vec<Option<Object>>,
}

impl Worker {
    fn run(mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Relaxed) {
            if self.number >= shared.busy.load(Ordering::Relaxed) {
                // Closes the connection, so that the number of connections changes too.
                self.client = Client::new(self.client.endpoint().clone());
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            match self.step() {
                Ok(bytes) => {
                    shared.bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Err(e) => {
                    shared.errors.fetch_add(1, Ordering::Relaxed);
                    let mut first = shared.first_error.lock().expect("no worker panics");
                    first.get_or_insert_with(|| e.to_string());
                }
            }
            shared.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One operation. Returns the bytes of objects that it moved.
    fn step(&mut self) -> io::Result<u64> {
        let n = self.chance.within(0, KEYS) as usize;
        let key = format!("{:02}/{n:03}", self.number);
        match self.chance.within(0, 100) {
            0..30 => self.put(n, &key),
            30..34 => self.upload(n, &key),
            34..64 => self.get(n, &key, false),
            64..78 => self.get(n, &key, true),
            78..87 => self.head(n, &key),
            87..92 => self.list(),
            _ => {
                expect(self.client.delete(BUCKET, &key), 204)?;
                self.objects[n] = None;
                Ok(0)
            }
        }
    }

    fn put(&mut self, n: usize, key: &str) -> io::Result<u64> {
        let object = self.object();
        let body = object.content.bytes(object.length as usize);
        expect(self.client.put(BUCKET, key, &body), 200)?;
        let length = object.length;
        self.objects[n] = Some(object);
        Ok(length)
    }

    /// An upload of two parts.
    fn upload(&mut self, n: usize, key: &str) -> io::Result<u64> {
        let length = PART_BYTES + self.chance.within(1, 1 << 20);
        let content = Pattern::new(self.chance.number());
        let body = content.bytes(length as usize);
        let begun = expect(self.client.send("POST", BUCKET, key, "uploads", &[]), 200)?;
        let id = xml_values(&begun.text(), "UploadId").pop();
        let id = sigv4::encode_query(&id.ok_or_else(|| wrong(key, "no UploadId"))?);
        let mut list = "<CompleteMultipartUpload>".to_owned();
        let (first, second) = body.split_at(PART_BYTES as usize);
        for (number, part) in [(1, first), (2, second)] {
            let query = format!("partNumber={number}&uploadId={id}");
            let stored = expect(self.client.send("PUT", BUCKET, key, &query, part), 200)?;
            let etag = stored.head.header("etag").unwrap_or_default();
            write!(
                list,
                "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            )
            .expect("in memory");
        }
        list += "</CompleteMultipartUpload>";
        let query = format!("uploadId={id}");
        let done = self
            .client
            .send("POST", BUCKET, key, &query, list.as_bytes());
        let done = expect(done, 200)?;
        if !done.text().contains("<ETag>") {
            return Err(wrong(key, &done.text()));
        }
        self.objects[n] = Some(Object { content, length });
        Ok(length)
    }

    fn get(&mut self, n: usize, key: &str, part: bool) -> io::Result<u64> {
        let object = self.objects[n].clone();
        let length = object.as_ref().map_or(1, |o| o.length);
        let (from, to, status) = if part {
            let from = self.chance.within(0, length);
            (from, self.chance.within(from, length) + 1, 206)
        } else {
            (0, length, 200)
        };
        let range = format!("bytes={from}-{}", to - 1);
        let headers = [("range", range.as_str())];
        let request = Request {
            method: "GET",
            bucket: BUCKET,
            key,
            headers: if part { &headers } else { &[] },
            ..Request::default()
        };
        let (mut at, mut same) = (from, true);
        let head = self.client.fetch(&request, |piece| {
            same = same && object.as_ref().is_none_or(|o| o.content.matches(at, piece));
            at += piece.len() as u64;
        })?;
        let expected = if object.is_some() { status } else { 404 };
        if head.status != expected {
            let text = format!("status {} instead of {expected}", head.status);
            return Err(wrong(key, &text));
        }
        if object.is_none() {
            return Ok(0);
        }
        if !same || at != to {
            return Err(wrong(key, "not what was written"));
        }
        Ok(to - from)
    }

    fn head(&mut self, n: usize, key: &str) -> io::Result<u64> {
        let answer = self.client.head(BUCKET, key)?;
        let length = answer.head.header("content-length").map(str::to_owned);
        match (&self.objects[n], answer.status()) {
            (None, 404) => Ok(0),
            (Some(o), 200) if length == Some(o.length.to_string()) => Ok(0),
            (_, status) => Err(wrong(key, &format!("HEAD: {status}, length {length:?}"))),
        }
    }

    fn list(&mut self) -> io::Result<u64> {
        let query = format!("list-type=2&prefix={:02}%2F", self.number);
        let page = expect(self.client.send("GET", BUCKET, "", &query, &[]), 200)?;
        let found = page.text().matches("<Key>").count();
        let expected = self.objects.iter().flatten().count();
        match found == expected {
            true => Ok(0),
            false => Err(wrong(
                &query,
                &format!("{found} listed instead of {expected}"),
            )),
        }
    }

    /// New content of a length by chance.
    fn object(&mut self) -> Object {
        let content = Pattern::new(self.chance.number());
        let mut at = self.chance.within(0, LENGTHS.iter().map(|l| l.1).sum());
        let mut length = LENGTHS[0].0;
        for (bytes, weight) in LENGTHS {
            length = bytes;
            if at < weight {
                break;
            }
            at -= weight;
        }
        Object { content, length }
    }
}

fn wrong(what: &str, text: &str) -> io::Error {
    io::Error::other(format!("{what}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen() {
        let samples = |resident: fn(f64) -> f64, files: fn(f64) -> f64| -> Vec<Sample> {
            let sample = |n| Sample {
                resident: resident(f64::from(n)),
                files: files(f64::from(n)),
            };
            (0..30).map(sample).collect()
        };
        assert!(verdict(&samples(|_| 300.0, |_| 80.0)).1);
        assert!(verdict(&samples(|n| 300.0 + n % 3.0, |n| 80.0 + n % 4.0)).1);
        assert!(!verdict(&samples(|n| 300.0 + 3.0 * n, |_| 80.0)).1);
        assert!(!verdict(&samples(|_| 300.0, |n| 80.0 + n)).1);
    }
}
