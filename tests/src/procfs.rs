//! What `/proc` says of a process: memory, CPU time, open files, how many threads.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Resident memory now, in bytes; 0 when the process is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:") * 1024
}

/// The highest resident memory so far, in bytes.
pub fn resident_peak_bytes(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:") * 1024
}

/// Lets the peak start again from the present value.
pub fn reset_peak(pid: u32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// CPU seconds used so far, in user and kernel mode, all threads, those of the kernel's I/O workers included.
pub fn cpu_seconds(pid: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return 0.0;
    };
    // The name in brackets may hold spaces; the fields after it are 3, 4, ...
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return 0.0;
    };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |n: usize| -> f64 {
        fields
            .get(n - 3)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    // Fields 14 and 15 in USER_HZ, which is 100 on every Linux architecture this runs on.
    (ticks(14) + ticks(15)) / 100.0
}

/// How many files the process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Of the files it has open, those that have no name any more: how many, and their bytes on disk.
pub fn removed_files(pid: u32) -> (usize, u64) {
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let removed = fds.filter_map(|fd| {
        let path = fd.ok()?.path();
        let target = fs::read_link(&path).ok()?;
        let removed = target.to_string_lossy().ends_with(" (deleted)");
        // Through the link, to the file itself.
        removed.then(|| fs::metadata(&path).map_or(0, |file| file.blocks() * 512))
    });
    removed.fold((0, 0), |(files, all), bytes| (files + 1, all + bytes))
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    #[test]
    fn this_process_is_seen() {
        let pid = std::process::id();
        assert!(super::resident_bytes(pid) > 100_000);
        assert!(super::resident_peak_bytes(pid) >= super::resident_bytes(pid) / 2);
        assert!(super::open_files(pid) >= 3);
        let mut unnamed = tempfile::tempfile().unwrap();
        unnamed.write_all(&[1; 50_000]).unwrap();
        unnamed.sync_all().unwrap();
        let (files, bytes) = super::removed_files(pid);
        assert!(files >= 1 && bytes >= 50_000);
        let before = super::cpu_seconds(pid);
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 100 {
            std::hint::black_box(start.elapsed());
        }
        assert!(super::cpu_seconds(pid) > before);
    }
}
