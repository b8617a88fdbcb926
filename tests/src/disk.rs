//! The data directory seen as files: how much space it takes, and waiting until it takes less.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Every regular file below `dir`, sorted. Files that vanish meanwhile are left out.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(t) if t.is_dir() => pending.push(entry.path()),
                Ok(t) if t.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Takes a drive away: an empty mount point stands where its directory was.
pub fn take_away(dir: &Path) {
    std::fs::rename(dir, dir.with_extension("away")).expect("renamed");
    std::fs::create_dir(dir).expect("made");
}

/// Brings back what [`take_away`] took.
pub fn bring_back(dir: &Path) {
    std::fs::remove_dir(dir).expect("nothing was written into it");
    std::fs::rename(dir.with_extension("away"), dir).expect("renamed");
}

/// Bytes that the files below `dir` take on disk, as `du` counts them: holes are free.
pub fn used_bytes(dir: &Path) -> u64 {
    files(dir).iter().map(|f| used_bytes_of(f)).sum()
}

/// Bytes that one file takes on disk; 0 when it is gone.
pub fn used_bytes_of(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |m| m.blocks() * 512)
}

/// Waits until `dir` takes at most `limit` bytes; panics with the largest files when it does not.
pub fn wait_used_at_most(dir: &Path, limit: u64, patience: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let used = used_bytes(dir);
        if used <= limit {
            return start.elapsed();
        }
        if start.elapsed() > patience {
            panic!(
                "{} takes {used} bytes after {patience:?}, more than {limit}:\n{}",
                dir.display(),
                largest(dir)
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn largest(dir: &Path) -> String {
    let mut sizes: Vec<(u64, PathBuf)> = files(dir)
        .into_iter()
        .map(|f| (used_bytes_of(&f), f))
        .collect();
    sizes.sort_by(|a, b| b.cmp(a));
    let lines = sizes.into_iter().take(8);
    lines
        .map(|(n, f)| format!("  {n:>12} {}\n", f.display()))
        .collect()
}
