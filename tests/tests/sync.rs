//! A sync of the index that fails ends the server: nothing is acknowledged by another try, and nothing acknowledged is lost.
//!
//! The disk does not fail on demand, so a small library between the server and libc fails one sync once it is told to. Syncs of
//! segments go through io_uring, past libc: those the engine's simulation fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use strongroom_tests::client::Client;
use strongroom_tests::data::Pattern;
use strongroom_tests::{Config, binary};

const BUCKET: &str = "sync";
const WRITERS: u64 = 6;

/// Fails the next sync of a journal of the index while the file `FAIL_SYNC` is there, and removes it: one failure, no more.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fails(int fd) {
    char link[64], path[4096];
    const char *trigger = getenv("FAIL_SYNC");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 4 || !trigger) return 0;
    path[n] = 0;
    return strstr(path, "/index/") && !strcmp(path + n - 4, ".jnl") && unlink(trigger) == 0;
}

int fdatasync(int fd) {
    if (fails(fd)) { errno = EIO; return -1; }
    return syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    if (fails(fd)) { errno = EIO; return -1; }
    return syscall(SYS_fsync, fd);
}
"#;

fn build_shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    std::fs::write(&source, SHIM).expect("the scratch directory is writable");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
    let done = cc.arg(&source).status();
    assert!(done.expect("the linker of every build").success());
    library
}

fn content(writer: u64, n: u64) -> Vec<u8> {
    let size = [100, 3000, 40_000, 300_000][(n % 4) as usize];
    Pattern::new(writer << 32 | n).bytes(size)
}

/// Writes until the server is gone; how many objects were acknowledged. `told` says that a sync is to fail: the trigger goes as
/// it does.
fn write(mut client: Client, writer: u64, told: &AtomicBool, trigger: &Path) -> u64 {
    for n in 0.. {
        let failed = told.load(Ordering::SeqCst) && !trigger.exists();
        let body = content(writer, n);
        match client.put(BUCKET, &format!("{writer}/{n}"), &body) {
            Ok(answer) if answer.status() == 200 => {
                assert!(!failed, "acknowledged after a failed sync");
            }
            _ => return n,
        }
    }
    unreachable!("the server ends")
}

#[test]
fn a_failed_sync_of_the_index_ends_the_server() {
    let dir = tempfile::tempdir_in(binary::scratch()).expect("a scratch directory");
    let shim = build_shim(dir.path());
    let trigger = dir.path().join("fail");
    let config = Config::http()
        .env("LD_PRELOAD", shim.to_str().expect("text"))
        .env("FAIL_SYNC", trigger.to_str().expect("text"));
    let mut server = config.start();
    let made = server.client().create_bucket(BUCKET).expect("an answer");
    made.expect(200);
    let told = AtomicBool::new(false);
    let acknowledged: Vec<u64> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, told, trigger) = (server.client(), &told, trigger.as_path());
                scope.spawn(move || write(client, writer, told, trigger))
            })
            .collect();
        thread::sleep(Duration::from_millis(500));
        std::fs::write(&trigger, b"").expect("writable");
        told.store(true, Ordering::SeqCst);
        let ended = writers.into_iter().map(|w| w.join().expect("a writer"));
        ended.collect()
    });
    assert!(!trigger.exists(), "no sync failed");
    let status = server.wait();
    assert_eq!(status.code(), Some(74), "{}", server.log());
    let log = server.log();
    let last = log
        .lines()
        .rfind(|line| line.contains("nothing more can be promised"));
    let last = last.unwrap_or_else(|| panic!("it does not say why it ends:\n{log}"));
    assert!(last.contains("index"), "{last}");
    assert!(acknowledged.iter().sum::<u64>() > 20, "{acknowledged:?}");

    server.configure(|config| config.env("LD_PRELOAD", ""));
    server.start_again();
    let mut client = server.client();
    for (writer, count) in (0..).zip(acknowledged) {
        for n in 0..count {
            let got = client.get(BUCKET, &format!("{writer}/{n}"));
            let body = got.expect("an answer").expect(200).body;
            assert!(body == content(writer, n), "{writer}/{n}");
        }
    }
}
