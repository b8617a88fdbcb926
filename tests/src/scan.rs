//! The search for what must not lie on disk: plaintext, its hashes, passwords, in every spelling one would find.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use md5::Md5;
use memchr::memmem::Finder;
use sha2::{Digest, Sha256};

use crate::disk;

/// What to look for, each with the name that a finding is reported under.
#[derive(Default)]
pub struct Needles {
    list: Vec<(String, Finder<'static>)>,
    longest: usize,
}

/// One finding: what, in which file, at which offset.
#[derive(Debug)]
pub struct Hit {
    pub name: String,
    pub file: PathBuf,
    pub offset: u64,
}

impl Needles {
    /// The bytes as they are, in hex of either case, and in base64 at each of its three alignments.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        self.push(format!("{name}, raw"), bytes);
        self.push(format!("{name}, hex"), hex::encode(bytes).as_bytes());
        self.push(format!("{name}, HEX"), hex::encode_upper(bytes).as_bytes());
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            for shift in 0..3.min(bytes.len()) {
                // Groups that only this value decides, when `shift` of its bytes stand in the group before.
                let whole = (bytes.len() - shift) / 3 * 3;
                let text = engine.encode(&bytes[shift..shift + whole]);
                self.push(format!("{name}, base64 shifted {shift}"), text.as_bytes());
            }
        }
        self
    }

    /// What plaintext betrays itself by: its MD5 and its SHA-256.
    pub fn add_hashes(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.add(&format!("MD5 of {name}"), &Md5::digest(content));
        self.add(&format!("SHA-256 of {name}"), &Sha256::digest(content))
    }

    fn push(&mut self, name: String, bytes: &[u8]) {
        // Shorter ones would be found by chance.
        if bytes.len() >= 8 {
            self.longest = self.longest.max(bytes.len());
            self.list.push((name, Finder::new(bytes).into_owned()));
        }
    }

    /// Every needle's first place in every file below `dir`.
    pub fn search(&self, dir: &Path) -> Vec<Hit> {
        assert!(!self.list.is_empty(), "nothing to look for");
        let files = disk::files(dir);
        files.iter().flat_map(|f| self.search_file(f)).collect()
    }

    /// Panics with all findings if there are any.
    pub fn assert_absent(&self, dir: &Path) {
        let mut report = String::new();
        for hit in self.search(dir) {
            let file = hit.file.display();
            writeln!(report, "  {} in {file} at {}", hit.name, hit.offset).expect("in memory");
        }
        assert!(report.is_empty(), "found on disk:\n{report}");
    }

    fn search_file(&self, path: &Path) -> Vec<Hit> {
        const BLOCK: usize = 4 << 20;
        let mut hits: Vec<Hit> = Vec::new();
        let Ok(mut file) = File::open(path) else {
            return hits;
        };
        // Each block is searched with the tail of the one before it, so that no needle hides on a border.
        let mut buffer = vec![0; BLOCK + self.longest];
        let (mut kept, mut at) = (0, 0u64);
        loop {
            let Ok(n) = file.read(&mut buffer[kept..kept + BLOCK]) else {
                return hits;
            };
            if n == 0 {
                return hits;
            }
            let filled = kept + n;
            for (name, finder) in &self.list {
                let known = hits.iter().any(|h| h.name == *name);
                if let Some(found) = finder.find(&buffer[..filled]).filter(|_| !known) {
                    hits.push(Hit {
                        name: name.clone(),
                        file: path.to_owned(),
                        offset: at - kept as u64 + found as u64,
                    });
                }
            }
            at += n as u64;
            kept = filled.min(self.longest);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }
}

/// The MD5 of `content`, as an ETag shows it.
pub fn md5_hex(content: &[u8]) -> String {
    hex::encode(Md5::digest(content))
}

/// The SHA-256 of `content`.
pub fn sha256_hex(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Standard base64, as checksum headers carry it.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_found() {
        let secret = b"canary: the quick brown fox \xff\x00\x01";
        let mut needles = Needles::default();
        needles.add("canary", secret);
        let dir = tempfile::tempdir().unwrap();
        needles.assert_absent(dir.path());
        let spellings = [
            secret.to_vec(),
            hex::encode(secret).into_bytes(),
            hex::encode_upper(secret).into_bytes(),
            STANDARD.encode(secret).into_bytes(),
            STANDARD.encode([b"x", &secret[..]].concat()).into_bytes(),
            STANDARD
                .encode([b"xy", &secret[..], b"abc"].concat())
                .into_bytes(),
            URL_SAFE_NO_PAD.encode(secret).into_bytes(),
        ];
        for (i, spelling) in spellings.into_iter().enumerate() {
            let file = dir.path().join(format!("sub{i}"));
            // Across the border of two blocks, where a careless search is blind.
            let mut content = vec![0; (4 << 20) - 10];
            content.extend_from_slice(&spelling);
            content.extend_from_slice(b"tail");
            std::fs::write(&file, content).unwrap();
            let hits = needles.search(dir.path());
            assert!(!hits.is_empty(), "spelling {i}");
            assert!(hits.iter().all(|h| h.offset >= (4 << 20) - 10));
            std::fs::remove_file(&file).unwrap();
        }
    }
}
