//! What a recorded number depends on besides the code: machine, kernel, compiler, revision, and the disk's own speed.

use std::path::Path;
use std::process::Command;

/// Lines for the head of a record.
pub fn description() -> Vec<(&'static str, String)> {
    let first = |file: &str, field: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(field)).unwrap_or("");
        let value = line.split_once(':').map_or("", |(_, v)| v).trim();
        value.to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("processor", first("/proc/cpuinfo", "model name")),
        ("cores", cores.to_string()),
        ("memory", first("/proc/meminfo", "MemTotal")),
        ("kernel", output("uname", &["-sr"])),
        ("compiler", output("rustc", &["--version"])),
        ("revision", revision()),
        ("date", output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
    ]
}

/// The commit, marked when the tree is not as committed.
fn revision() -> String {
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    if changed.is_empty() {
        commit
    } else {
        format!("{commit} with local changes")
    }
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.unwrap_or_default().trim().to_owned()
}

/// What `fio` gets from the disk with direct I/O.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    pub operations_per_second: f64,
    pub megabytes_per_second: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Each job syncs after each write, as a store that acknowledges one object at a time must.
    WriteSynced,
    Write,
    Read,
}

/// Bytes of all files of a run of `fio`: enough that reads find little in a cache of the device, and laid out in seconds.
const FIO_BYTES: u64 = 4 << 30;

/// Runs `fio` in `dir` with the block size and as many jobs as the load has connections. Writers have a file each; readers share
/// one, which stays in `dir` for the next run.
pub fn disk(
    dir: &Path,
    access: Access,
    block: u64,
    jobs: usize,
    seconds: u64,
) -> Result<Disk, String> {
    let read = access == Access::Read;
    let mut command = Command::new("fio");
    command
        .args(["--name=disk", "--direct=1", "--ioengine=psync"])
        .args(["--output-format=json", "--time_based", "--group_reporting"])
        .arg(format!("--bs={block}"))
        .arg(format!("--numjobs={jobs}"))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--directory={}", dir.display()));
    if read {
        command
            .args(["--rw=randread", "--filename=read"])
            .arg(format!("--size={FIO_BYTES}"));
    } else {
        let size = (FIO_BYTES / jobs as u64).max(block);
        command
            .args(["--rw=write", "--unlink=1"])
            .arg(format!("--size={size}"));
    }
    if access == Access::WriteSynced {
        command.arg("--fdatasync=1");
    }
    let output = command
        .output()
        .map_err(|e| format!("fio does not start ({e}); install it to measure the disk"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |at| &text[at..]);
    let value: serde_json::Value = serde_json::from_str(json)
        .map_err(|e| format!("fio: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let side = &value["jobs"][0][if read { "read" } else { "write" }];
    let number = |name: &str| {
        let missing = || format!("fio reports no {name}");
        side[name].as_f64().ok_or_else(missing)
    };
    Ok(Disk {
        operations_per_second: number("iops")?,
        megabytes_per_second: number("bw_bytes")? / 1e6,
    })
}
