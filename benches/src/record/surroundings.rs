//! What stands beside the server's numbers, from the same machine in the same run: the disk by `fio`, bare loopback sockets, and
//! the cipher alone.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_http::bench::cipher::{Cipher, Ours, Ring};
use strongroom_http::bench::{Course, HOT_BYTES, Place, Verb, cold_bytes};

use super::progress;
use crate::machine::{Access, Disk, disk};
use crate::measured::show_size;

/// What `fio` got, with the block size.
pub type DiskRow = (Access, u64, Disk);

/// Each kind of access at each block size, with one job for each connection of the load beside it.
pub fn disks(dir: &Path, sizes: &[u64], jobs: usize, seconds: u64) -> Result<Vec<DiskRow>, String> {
    let mut rows = Vec::new();
    for access in [Access::WriteSynced, Access::Write, Access::Read] {
        for &size in sizes {
            progress(&format!("fio: {access:?} of {}", show_size(size)));
            rows.push((access, size, disk(dir, access, size, jobs, seconds)?));
        }
    }
    Ok(rows)
}

pub fn disk_table(rows: &[DiskRow]) -> String {
    let mut table =
        "| access | block | operations/s | MB/s |\n| --- | ---: | ---: | ---: |\n".to_owned();
    for (access, size, disk) in rows {
        let name = match access {
            Access::WriteSynced => "write, sync after each",
            Access::Write => "write",
            Access::Read => "random read",
        };
        writeln!(
            table,
            "| {name} | {} | {:.0} | {:.1} |",
            show_size(*size),
            disk.operations_per_second,
            disk.megabytes_per_second
        )
        .expect("in memory");
    }
    table
}

/// Bytes asked for by a request of nothing but itself: about the head of a signed GET.
const REQUEST_BYTES: usize = 512;
/// What one write hands to the kernel at most.
const WRITE_BYTES: usize = 256 << 10;
/// What the senders send from, all of it in turn: more than the second level of cache, as the buffers of a server are.
const SOURCE_BYTES: usize = 8 << 20;

/// What bare sockets took for answers of one size. CPU is of the sending side alone.
#[derive(Clone, Copy)]
pub struct Sockets {
    pub size: u64,
    pub answers: u64,
    pub seconds: f64,
    pub sender_cpu: f64,
}

impl Sockets {
    pub fn sender_cpu_per_gigabyte(&self) -> f64 {
        self.sender_cpu / (self.answers as f64 * self.size as f64 / 1e9)
    }
}

/// Answers of `size` over so many connections: a thread that reads a request and writes the answer, and one that does the reverse.
/// Each sender reads its own CPU time when it begins and when it ends.
pub fn sockets(size: u64, connections: usize, duration: Duration) -> io::Result<Sockets> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let source = vec![0x5a; SOURCE_BYTES];
    let stop = AtomicBool::new(false);
    let ready = Barrier::new(2 * connections + 1);
    let sum = Mutex::new((0u64, 0.0));
    let begun = thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..connections {
            let receiver = TcpStream::connect(address)?;
            let sender = listener.accept()?.0;
            receiver.set_nodelay(true)?;
            sender.set_nodelay(true)?;
            let (source, stop, ready, sum) = (&source, &stop, &ready, &sum);
            threads.push(scope.spawn(move || {
                ready.wait();
                receive(receiver, size, stop)
            }));
            threads.push(scope.spawn(move || {
                ready.wait();
                let before = thread_cpu_seconds()?;
                let answers = send(sender, size, source)?;
                let cpu = thread_cpu_seconds()? - before;
                let mut sum = sum.lock().expect("no sender panics");
                *sum = (sum.0 + answers, sum.1 + cpu);
                Ok(())
            }));
        }
        ready.wait();
        let begun = Instant::now();
        thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
        let ended = threads
            .into_iter()
            .try_for_each(|t| t.join().expect("no thread panics"));
        ended.map(|()| begun)
    })?;
    let (answers, sender_cpu) = sum.into_inner().expect("no sender panics");
    Ok(Sockets {
        size,
        answers,
        seconds: begun.elapsed().as_secs_f64(),
        sender_cpu,
    })
}

fn receive(mut socket: TcpStream, size: u64, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; WRITE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(&[0; REQUEST_BYTES])?;
        let mut left = size;
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = socket.read(&mut buffer[..most])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= n as u64;
        }
    }
    Ok(())
}

/// Answers until the other side goes. Returns how many.
fn send(mut socket: TcpStream, size: u64, source: &[u8]) -> io::Result<u64> {
    let mut request = [0; REQUEST_BYTES];
    let mut pieces = source.chunks_exact(WRITE_BYTES).cycle();
    let mut answers = 0;
    loop {
        match socket.read_exact(&mut request) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(answers),
            Err(e) => return Err(e),
        }
        let mut left = size;
        while left > 0 {
            let piece = pieces.next().expect("a cycle does not end");
            let n = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            socket.write_all(&piece[..n])?;
            left -= n as u64;
        }
        answers += 1;
    }
}

/// CPU time of this thread, by the scheduler's own count in nanoseconds.
fn thread_cpu_seconds() -> io::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok());
    let nanoseconds: u64 = nanoseconds.ok_or(io::ErrorKind::InvalidData)?;
    Ok(nanoseconds as f64 / 1e9)
}

pub fn sockets_table(rows: &[Sockets]) -> String {
    let mut table = "| answer | answers/s | MB/s | sender CPU s/GB | sender CPU s/1,000 |\n\
        | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for row in rows {
        let rate = row.answers as f64 / row.seconds;
        writeln!(
            table,
            "| {} | {rate:.0} | {:.1} | {:.3} | {:.4} |",
            show_size(row.size),
            rate * row.size as f64 / 1e6,
            row.sender_cpu_per_gigabyte(),
            row.sender_cpu / row.answers as f64 * 1e3,
        )
        .expect("in memory");
    }
    table
}

/// GB/s (decimal) of one core.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// Packages of 64 KiB from one buffer into another, in cache.
    pub seal: f64,
    pub open: f64,
    /// The same over more memory than any cache holds.
    pub seal_cold: f64,
    pub open_cold: f64,
    /// Records of TLS, 16 KiB in place, by `ring`.
    pub record: f64,
}

/// How long each cipher is measured.
const CIPHER_TIME: Duration = Duration::from_millis(400);

pub fn kernel() -> Kernel {
    progress("the cipher alone");
    let package = |verb, set| speed(Course::new(verb, Place::OutOf, 64 << 10, set), &Ours::new());
    let cold = cold_bytes();
    Kernel {
        seal: package(Verb::Seal, HOT_BYTES),
        open: package(Verb::Open, HOT_BYTES),
        seal_cold: package(Verb::Seal, cold),
        open_cold: package(Verb::Open, cold),
        record: speed(
            Course::new(Verb::Seal, Place::In, 16 << 10, HOT_BYTES),
            &Ring::new(),
        ),
    }
}

/// The median of laps, the first of which warms up.
fn speed(mut course: Course, cipher: &dyn Cipher) -> f64 {
    course.lap(cipher);
    let begun = Instant::now();
    let mut laps = Vec::new();
    while laps.is_empty() || begun.elapsed() < CIPHER_TIME {
        laps.push(course.lap(cipher));
    }
    laps.sort_unstable();
    course.bytes() as f64 / 1e9 / laps[laps.len() / 2].as_secs_f64()
}

impl Kernel {
    pub fn table(&self) -> String {
        format!(
            "| what | GB/s of a core |\n| --- | ---: |\n\
             | seal 64 KiB, in cache | {:.2} |\n| open 64 KiB, in cache | {:.2} |\n\
             | seal 64 KiB, out of cache | {:.2} |\n| open 64 KiB, out of cache | {:.2} |\n\
             | TLS record of 16 KiB (ring) | {:.2} |\n",
            self.seal, self.open, self.seal_cold, self.open_cold, self.record
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_carry_whole_answers() {
        let size = 3 << 18 | 17;
        let found = sockets(size, 2, Duration::from_millis(50)).expect("loopback works");
        assert!(found.answers >= 2, "each connection has one");
        assert!(found.sender_cpu > 0.0);
        assert!(sockets_table(&[found]).lines().count() == 3);
    }
}
