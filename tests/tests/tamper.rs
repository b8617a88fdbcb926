//! Stored bytes that were changed while the server was down: an error for what they belong to, and never a wrong byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_tests::client::{Client, Outcome, Request};
use strongroom_tests::data::{Chance, Pattern};
use strongroom_tests::{Config, Server, disk, scaled};
use tempfile::TempDir;

const BUCKET: &str = "tamper";
const OBJECTS: usize = 24;
/// Two whole packages and a piece; in segments.
const LARGE: u64 = 150_000;
/// In the index.
const SMALL: u64 = 900;
const SECTOR: usize = 4096;

/// A stopped store that each test damages in copies of its own.
struct Store {
    config: Config,
    _home: TempDir,
    dir: PathBuf,
}

#[derive(Default, Debug)]
struct Seen {
    right: usize,
    errors: Vec<String>,
}

fn name(n: usize) -> String {
    format!("object {n:02}")
}

fn length(n: usize) -> u64 {
    if n.is_multiple_of(6) { SMALL } else { LARGE }
}

impl Store {
    fn make() -> Self {
        let home = tempfile::tempdir_in(strongroom_tests::binary::scratch()).expect("scratch");
        let dir = home.path().join("data");
        let config = Config::http().shards(1);
        let mut server = config.clone().data_dir(&dir).start();
        let mut client = server.client();
        client.create_bucket(BUCKET).expect("an answer").expect(200);
        for n in 0..OBJECTS {
            let body = Pattern::named(&name(n)).bytes(length(n) as usize);
            client
                .put(BUCKET, &name(n), &body)
                .expect("an answer")
                .expect(200);
        }
        let (status, _) = server.terminate();
        assert!(status.success());
        Self {
            config,
            _home: home,
            dir,
        }
    }

    /// Copies the store, lets `damage` change the copy, and serves it.
    fn damaged(&self, damage: impl FnOnce(&Path)) -> Result<Damaged, String> {
        let home = tempfile::tempdir_in(strongroom_tests::binary::scratch()).expect("scratch");
        let dir = home.path().join("data");
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .args([&self.dir, &dir])
            .status();
        assert!(copied.expect("cp starts").success());
        damage(&dir);
        let server = self.config.clone().data_dir(&dir).try_start();
        let server = server.map_err(|refused| refused.output)?;
        Ok(Damaged {
            server,
            _home: home,
        })
    }
}

struct Damaged {
    server: Server,
    _home: TempDir,
}

impl Damaged {
    /// Reads everything, whole and in pieces; panics on a wrong byte.
    fn look(&self, chance: &mut Chance) -> Seen {
        let mut client = self.server.client();
        let mut seen = Seen::default();
        for n in 0..OBJECTS {
            let content = Pattern::named(&name(n));
            match client.probe(BUCKET, &name(n), &content, length(n)) {
                Outcome::Right => seen.right += 1,
                Outcome::Absent => panic!("{} is gone without an error", name(n)),
                Outcome::Error(e) => seen.errors.push(format!("{}: {e}", name(n))),
            }
            let from = chance.within(0, length(n));
            let to = chance.within(from, length(n));
            read_range(&mut client, n, &content, from, to);
        }
        // The store as a whole goes on: new objects, and listings without a look at the data.
        client
            .put(BUCKET, "new", b"after the damage")
            .expect("an answer")
            .expect(200);
        let new = client.get(BUCKET, "new").expect("an answer").expect(200);
        assert_eq!(new.body, b"after the damage");
        assert_eq!(client.list(BUCKET).expect("a listing").len(), OBJECTS + 1);
        seen
    }
}

fn read_range(client: &mut Client, n: usize, content: &Pattern, from: u64, to: u64) {
    let range = format!("bytes={from}-{to}");
    let key = name(n);
    let request = Request {
        method: "GET",
        bucket: BUCKET,
        key: &key,
        headers: &[("range", &range)],
        ..Request::default()
    };
    // An answer that breaks off, or no answer at all, is an error like any other.
    if let Ok(answer) = client.request(&request, &[])
        && answer.status() == 206
    {
        assert!(
            content.matches(from, &answer.body),
            "{key}: wrong bytes in {range}"
        );
        assert_eq!(answer.body.len() as u64, to - from + 1);
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let found = disk::files(&dir.join("segments"));
    assert!(!found.is_empty(), "no segments in {}", dir.display());
    found
}

/// Changes the one segment that holds data, as a whole in memory.
fn change_segment(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut files = segments(dir);
    files.sort_by_key(|f| disk::used_bytes_of(f));
    let file = files.pop().expect("not empty");
    let mut bytes = fs::read(&file).expect("readable");
    change(&mut bytes);
    fs::write(&file, bytes).expect("writable");
}

/// Sectors that are not empty: where there is something to damage.
fn full_sectors(bytes: &[u8]) -> Vec<usize> {
    let sectors = bytes.chunks(SECTOR).enumerate();
    let full = sectors.filter(|(_, s)| s.iter().any(|b| *b != 0));
    full.map(|(n, _)| n).collect()
}

/// Where extents begin: the heads that `engine/FORMAT.md` describes.
fn heads(bytes: &[u8]) -> Vec<usize> {
    let head = |s: &[u8]| s.starts_with(b"STRGROOM") && s[9] == 1;
    let sectors = bytes.chunks(SECTOR).enumerate();
    sectors.filter(|(_, s)| head(s)).map(|(n, _)| n).collect()
}

#[test]
fn undamaged_copies_are_right() {
    let store = Store::make();
    let copy = store.damaged(|_| {}).expect("it starts");
    let seen = copy.look(&mut Chance::from_env());
    assert_eq!(seen.right, OBJECTS, "{:?}", seen.errors);
}

/// A bit in every tenth sector of the segment, all at once: nearly every object in it is hit, none is read wrong.
#[test]
fn flipped_bits() {
    let store = Store::make();
    let mut chance = Chance::from_env();
    for round in 0..scaled(3, 30) {
        let copy = store.damaged(|dir| {
            change_segment(dir, |bytes| {
                let sectors = full_sectors(bytes);
                for sector in sectors.into_iter().skip(round % 10).step_by(10) {
                    let at = sector * SECTOR + chance.within(0, SECTOR as u64) as usize;
                    bytes[at] ^= 1 << chance.within(0, 8);
                }
            });
        });
        let seen = copy.expect("it starts").look(&mut chance);
        assert!(seen.errors.len() >= OBJECTS / 2, "{seen:?}");
        assert!(
            seen.right >= OBJECTS / 6,
            "small objects lie elsewhere: {seen:?}"
        );
    }
}

#[test]
fn cut_segments() {
    let store = Store::make();
    let mut chance = Chance::from_env();
    for keep in [2, 3] {
        let copy = store.damaged(|dir| {
            change_segment(dir, |bytes| {
                let last = full_sectors(bytes).pop().expect("data");
                bytes.truncate(last * SECTOR * (keep - 1) / keep);
            });
        });
        let seen = copy.expect("it starts").look(&mut chance);
        assert!(
            !seen.errors.is_empty() && seen.right > OBJECTS / 6,
            "{seen:?}"
        );
    }
}

#[test]
fn missing_segments() {
    let store = Store::make();
    let copy = store.damaged(|dir| {
        for file in segments(dir) {
            fs::remove_file(file).expect("removable");
        }
    });
    // To start without them or to refuse is the engine's choice; to serve wrong bytes is not.
    if let Ok(copy) = copy {
        let seen = copy.look(&mut Chance::from_env());
        assert!(seen.errors.len() >= OBJECTS / 2, "{seen:?}");
    }
}

/// What to do with two extents that begin at sectors `a` and `b` and are `n` sectors long.
type Exchange = fn(bytes: &mut Vec<u8>, a: usize, b: usize, n: usize);

/// Whole extents, all of one length, exchanged in pairs; then one put over all others. Each is sound in itself.
#[test]
fn exchanged_and_repeated_extents() {
    let store = Store::make();
    let mut chance = Chance::from_env();
    let exchanges: [Exchange; 3] = [
        |bytes, a, b, n| swap(bytes, a * SECTOR, b * SECTOR, n * SECTOR),
        |bytes, a, b, n| swap(bytes, (a + 1) * SECTOR, (b + 1) * SECTOR, (n - 2) * SECTOR),
        |bytes, a, b, n| bytes.copy_within(a * SECTOR..(a + n) * SECTOR, b * SECTOR),
    ];
    for exchange in exchanges {
        let copy = store.damaged(|dir| {
            change_segment(dir, |bytes| {
                let heads = heads(bytes);
                assert!(heads.len() >= OBJECTS / 2, "{} extents found", heads.len());
                for pair in heads.chunks_exact(2) {
                    let sectors = pair[1] - pair[0];
                    if (pair[1] + sectors) * SECTOR <= bytes.len() {
                        exchange(bytes, pair[0], pair[1], sectors);
                    }
                }
            });
        });
        let seen = copy.expect("it starts").look(&mut chance);
        assert!(seen.errors.len() >= OBJECTS / 4, "{seen:?}");
    }
}

/// Sectors of one object exchanged, and packages repeated inside it.
#[test]
fn exchanged_and_repeated_sectors() {
    let store = Store::make();
    let mut chance = Chance::from_env();
    for repeat in [false, true] {
        let copy = store.damaged(|dir| {
            change_segment(dir, |bytes| {
                for head in heads(bytes) {
                    let (a, b) = ((head + 3) * SECTOR, (head + 20) * SECTOR);
                    if b + SECTOR > bytes.len() {
                        continue;
                    }
                    if repeat {
                        bytes.copy_within(a..a + SECTOR, b);
                    } else {
                        swap(bytes, a, b, SECTOR);
                    }
                }
            });
        });
        let seen = copy.expect("it starts").look(&mut chance);
        assert!(seen.errors.len() >= OBJECTS / 2, "{seen:?}");
    }
}

/// The segment of an older copy of the directory under a newer index.
#[test]
fn old_segments_put_back() {
    let store = Store::make();
    let mut chance = Chance::from_env();
    let copy = store.damaged(|_| {}).expect("it starts");
    let dir = copy.server.data_dir().to_owned();
    let Damaged { mut server, _home } = copy;
    let mut client = server.client();
    for n in 0..OBJECTS {
        // New content of the same length under every name.
        let body = Pattern::named(&format!("new {n}")).bytes(length(n) as usize);
        client
            .put(BUCKET, &name(n), &body)
            .expect("an answer")
            .expect(200);
    }
    let (status, _) = server.terminate();
    assert!(status.success());
    for file in segments(&store.dir) {
        let target = dir.join("segments").join(file.file_name().expect("a file"));
        fs::copy(&file, target).expect("writable");
    }
    let restored = store.config.clone().data_dir(&dir).try_start();
    let Ok(server) = restored else { return };
    let mut client = server.client();
    for n in 0..OBJECTS {
        let content = Pattern::named(&format!("new {n}"));
        let outcome = client.probe(BUCKET, &name(n), &content, length(n));
        assert_ne!(outcome, Outcome::Absent, "{}", name(n));
        read_range(&mut client, n, &content, 0, chance.within(0, length(n)));
    }
}

/// Anything at all in the files of the index: the server may refuse to start, or answer with errors.
#[test]
fn damaged_index() {
    let store = Store::make();
    let mut chance = Chance::from_env();
    for round in 0..scaled(6, 100) {
        let copy = store.damaged(|dir| {
            let files = disk::files(&dir.join("index"));
            let files: Vec<PathBuf> = files
                .into_iter()
                .filter(|f| fs::metadata(f).is_ok_and(|m| m.len() > 0))
                .collect();
            let file = &files[chance.within(0, files.len() as u64) as usize];
            let mut bytes = fs::read(file).expect("readable");
            let used = full_sectors(&bytes);
            if let Some(sector) = used.get(chance.within(0, used.len().max(1) as u64) as usize) {
                let end = bytes.len().min((sector + 1) * SECTOR);
                let at = chance.within((sector * SECTOR) as u64, end as u64) as usize;
                bytes[at] ^= 1 << chance.within(0, 8);
            }
            fs::write(file, bytes).expect("writable");
            eprintln!("round {round}: {}", file.display());
        });
        let Ok(copy) = copy else { continue };
        let mut client = copy.server.client();
        for n in 0..OBJECTS {
            // A probe panics on wrong bytes; absence without a word is a loss in silence.
            let content = Pattern::named(&name(n));
            let outcome = client.probe(BUCKET, &name(n), &content, length(n));
            assert_ne!(
                outcome,
                Outcome::Absent,
                "round {round}: {} vanished in silence",
                name(n)
            );
        }
    }
}

fn swap(bytes: &mut [u8], a: usize, b: usize, length: usize) {
    let (low, high) = (a.min(b), a.max(b));
    assert!(low + length <= high, "the pieces overlap");
    let (left, right) = bytes.split_at_mut(high);
    left[low..low + length].swap_with_slice(&mut right[..length]);
}
