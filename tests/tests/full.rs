//! A disk that fills up: writes are refused in time, reading and deleting go on, and writes are taken again.
//!
//! The disk is a file with a file system of its own, mounted as a loop device, which needs root. Without the right to mount, these
//! tests fail and say so: nothing else shows what a file system does when it is really full.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use strongroom_tests::cli::{on, succeed, value};
use strongroom_tests::client::{Client, Outcome};
use strongroom_tests::data::Pattern;
use strongroom_tests::{Config, binary};
use tempfile::TempDir;

const BUCKET: &str = "full";
const MIB: u64 = 1 << 20;
/// Space that came back is found by then.
const SOON: Duration = Duration::from_secs(30);

/// A file system of its own.
struct SmallDisk {
    home: TempDir,
}

impl SmallDisk {
    fn new(bytes: u64) -> Self {
        let home = tempfile::Builder::new()
            .prefix("disk-")
            .tempdir_in(binary::scratch())
            .expect("scratch is writable");
        let image = home.path().join("image");
        let file = File::create(&image).expect("scratch is writable");
        file.set_len(bytes).expect("a sparse file");
        let disk = Self { home };
        std::fs::create_dir(disk.path()).expect("scratch is writable");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0"])
            .arg(&image));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(disk.path()));
        disk
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("mounted")
    }

    fn free(&self) -> u64 {
        let fs = rustix::fs::statvfs(self.path()).expect("mounted");
        fs.f_bavail * fs.f_frsize
    }

    /// A file of somebody else that leaves `free` bytes.
    fn fill(&self, free: u64) -> PathBuf {
        let path = self.path().join("somebody-else");
        let file = File::create(&path).expect("there is a little room");
        let bytes = self.free().saturating_sub(free);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).expect("there is room");
        file.sync_all().expect("there is room");
        // The server asks for the free space now and then.
        std::thread::sleep(Duration::from_millis(500));
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let done = command.output();
    let shown = format!("{command:?}");
    match done {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{shown}: {} (a test of a full disk needs the right to mount: run it as root)",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(e) => panic!("{shown}: {e}"),
    }
}

fn start(disk: &SmallDisk) -> (strongroom_tests::Server, Client) {
    let data = disk.path().join("data");
    let server = Config::http()
        .env("STRONGROOM_CACHE_SIZE", "16M")
        .data_dir(&data)
        .start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    (server, client)
}

/// Puts objects of a size until one is refused; how many were taken.
fn put_until_full(client: &mut Client, prefix: &str, size: u64) -> u64 {
    for n in 0..100_000 {
        let key = format!("{prefix}/{n}");
        let body = Pattern::named(&key).bytes(size as usize);
        let answer = client.put(BUCKET, &key, &body).expect("an answer");
        if answer.status() != 200 {
            assert_eq!(
                (answer.status(), answer.code().as_str()),
                (507, "InsufficientStorage")
            );
            return n;
        }
    }
    panic!("the disk does not fill");
}

fn all_right(client: &mut Client, prefix: &str, numbers: impl Iterator<Item = u64>, size: u64) {
    for n in numbers {
        let key = format!("{prefix}/{n}");
        let outcome = client.probe(BUCKET, &key, &Pattern::named(&key), size);
        assert_eq!(outcome, Outcome::Right, "{key}");
    }
}

/// Waits until a write is taken again.
fn taken_again(client: &mut Client, size: usize) -> Duration {
    let begun = Instant::now();
    loop {
        let body = Pattern::named("again").bytes(size);
        let answer = client.put(BUCKET, "again", &body).expect("an answer");
        match answer.status() {
            200 => return begun.elapsed(),
            507 if begun.elapsed() < SOON => std::thread::sleep(Duration::from_millis(200)),
            _ => panic!("{:?} after {:?}", answer, begun.elapsed()),
        }
    }
}

fn delete(client: &mut Client, prefix: &str, numbers: impl Iterator<Item = u64>) {
    for n in numbers {
        let gone = client.delete(BUCKET, &format!("{prefix}/{n}"));
        gone.expect("an answer").expect(204);
    }
}

#[test]
fn large_objects_fill_the_disk_and_leave_it() {
    let disk = SmallDisk::new(1200 * MIB);
    let (mut server, mut client) = start(&disk);
    let size = 16 * MIB;
    let taken = put_until_full(&mut client, "large", size);
    let left = disk.free();
    eprintln!("{taken} objects of 16 MiB, {} MiB left", left / MIB);
    assert!(taken >= 40, "{taken} objects, then {left} bytes left");
    assert!(left > 200 * MIB, "only {left} bytes are left for deleting");
    // What is small, what comes in parts, and buckets: none is taken before there is space.
    put_until_full(&mut client, "small", MIB);
    put_until_full(&mut client, "tiny", 4096);
    let refused = client.send("POST", BUCKET, "upload", "uploads=", &[]);
    refused.expect("an answer").expect(507);
    let refused = client.create_bucket("another");
    refused.expect("an answer").expect(507);
    // Reads go on, and what was taken is right.
    all_right(&mut client, "large", 0..taken, size);
    assert!(client.list(BUCKET).expect("a listing").len() as u64 >= taken);

    delete(&mut client, "large", 0..taken / 2);
    let took = taken_again(&mut client, 16 << 20);
    eprintln!("taken again after {took:?}");
    let again = put_until_full(&mut client, "later", size);
    assert!(again + 3 >= taken / 2, "{again} of {taken} again");
    all_right(&mut client, "large", taken / 2..taken, size);
    all_right(&mut client, "later", 0..again, size);

    // A crash of a full store, and another life.
    server.kill();
    server.start_again();
    let mut client = server.client();
    all_right(&mut client, "large", taken / 2..taken, size);
    all_right(&mut client, "later", 0..again, size);
    delete(&mut client, "later", 0..again);
    taken_again(&mut client, 16 << 20);
    let (status, _) = server.terminate();
    assert!(status.success(), "{}", server.log());
    let printed = succeed(&mut on(&disk.path().join("data"), &["status"]));
    assert_eq!(value(&printed, "buckets"), "1");
}

/// Objects that live in the index: their space comes back by rewriting it, which needs space itself.
#[test]
fn small_objects_fill_the_disk_and_leave_it() {
    let disk = SmallDisk::new(700 * MIB);
    let (server, mut client) = start(&disk);
    // All but 80 MiB of what writes may take belongs to somebody else.
    let reserve = 175 * MIB;
    disk.fill(reserve + 80 * MIB);
    let size = 15_000;
    let taken = put_until_full(&mut client, "small", size);
    eprintln!(
        "{taken} objects of 15,000 bytes, {} MiB left",
        disk.free() / MIB
    );
    assert!(taken > 500, "{taken}");
    delete(&mut client, "small", 0..taken * 9 / 10);
    let took = taken_again(&mut client, size as usize);
    eprintln!("taken again after {took:?}");
    all_right(&mut client, "small", taken * 9 / 10..taken, size);
    drop(server);
}

/// Somebody else takes all there is, the reserve too: the server stays, serves, and takes writes once there is space.
#[test]
fn somebody_else_fills_the_disk() {
    let disk = SmallDisk::new(800 * MIB);
    let (mut server, mut client) = start(&disk);
    let size = 4 * MIB;
    for n in 0..10 {
        let key = format!("mine/{n}");
        let body = Pattern::named(&key).bytes(size as usize);
        client
            .put(BUCKET, &key, &body)
            .expect("an answer")
            .expect(200);
    }
    let filler = disk.fill(4 * MIB);
    for size in [10, 10_000, 1_000_000] {
        let answer = client.put(BUCKET, "refused", &vec![1; size]);
        answer.expect("an answer").expect(507);
    }
    all_right(&mut client, "mine", 0..10, size);
    remove(&filler);
    taken_again(&mut client, 1_000_000);
    delete(&mut client, "mine", 0..5);
    all_right(&mut client, "mine", 5..10, size);
    server.restart();
    all_right(&mut server.client(), "mine", 5..10, size);
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("it is there");
}
