//! Verification of a store that nobody serves: is every byte what was written, and is every byte sealed?
//!
//! First the index: every record opens. Then every file: each allocated byte lies in an extent that a record names, in one
//! listed as freed, or in what an upload left that was never acknowledged. Then the data, on all cores: heads, tails, packages,
//! and tags where the keys are at hand. Nothing in the directory is changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::Receiver;
use rustix::fs::{SeekFrom, seek};

use crate::datadir::DataDir;
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::index::commit::meta;
use crate::index::offline::{COPY, Offline, unpanicked};
use crate::index::{Index, Space, key, recover};
use crate::limits::SECTOR;
use crate::record::{Data, Encryption, Extent, Object, Part, Place, Upload, UploadId};
use crate::secret::Secret;
use crate::segment::block::{self, Head, Kind};
use crate::segment::scrub::{Look, Piece, Sink, Subject, block_at};
use crate::segment::{self, Checkpoint};

/// Opens the keys of objects, where they are at hand.
pub trait ObjectKeys {
    fn open(&self, bucket: &str, key: &str, encryption: &Encryption) -> KeyAnswer;
}

/// What came of opening an object's key.
pub enum KeyAnswer {
    Key(Secret),
    /// The key above is not here, or must not be used.
    NotAtHand,
    /// The key above is here, and what is stored does not open under it.
    Broken(String),
}

/// What a verification tells while it runs.
pub enum Event<'a> {
    /// An object that is not what was written.
    Rotten {
        bucket: &'a str,
        key: &'a str,
        why: String,
    },
    /// An object that is stored without a seal, as it was asked for.
    Unsealed { bucket: &'a str, key: &'a str },
    /// Something else that is not what was written.
    Damage(String),
    /// Worth knowing, and no damage.
    Note(String),
    /// So many of so many bytes are read.
    Progress { done: u64, total: u64 },
}

/// What a verification found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    pub objects: u64,
    pub uploads: u64,
    /// Stored bytes of objects and parts that were read and checked.
    pub bytes: u64,
    /// Objects whose tags were all verified, and those whose keys are not at hand.
    pub opened: u64,
    pub not_at_hand: u64,
    pub unsealed: u64,
    pub rotten: u64,
    /// Other findings of damage.
    pub damage: u64,
    /// Bytes in segments: named by records, freed and not yet given back, left by uploads that were never acknowledged.
    pub named_bytes: u64,
    pub freed_bytes: u64,
    pub unsettled_bytes: u64,
    /// Sealed bytes that no record names.
    pub orphan_bytes: u64,
    /// Bytes of the index, of the store's other files, and of files that are not the store's.
    pub index_bytes: u64,
    pub other_bytes: u64,
    pub foreign_bytes: u64,
}

impl Verified {
    pub fn is_sound(&self) -> bool {
        self.rotten == 0 && self.damage == 0
    }
}

/// Verifies the store in `dir`, which this process holds. `beside` knows the names of files that others keep there.
pub fn verify(
    dir: &DataDir,
    store_key: &Secret,
    keys: &dyn ObjectKeys,
    beside: &dyn Fn(&str) -> bool,
    say: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Verified> {
    let mut offline = Offline::open(dir, store_key)?;
    if let Some(damage) = offline.damage.take() {
        return Err(damage);
    }
    let blocks = block::Sealer::new(store_key);
    let mut run = Run {
        dir,
        index: offline.index(),
        blocks: &blocks,
        say,
        found: Verified::default(),
    };
    unpanicked(|| {
        let ledger = run.ledger()?;
        run.account(&ledger)?;
        run.other_files(beside)?;
        run.read_all(keys, &ledger)
    })?;
    Ok(run.found)
}

/// Hands the verified plaintext of one object to `sink`.
pub fn export(
    dir: &DataDir,
    store_key: &Secret,
    bucket: &str,
    key: &str,
    open: impl FnOnce(&Encryption) -> Result<Secret>,
    sink: Sink<'_>,
) -> Result<Object> {
    let offline = Offline::open(dir, store_key)?;
    let index = offline.index();
    if index
        .get::<crate::record::Bucket>(Space::Buckets, bucket.as_bytes())?
        .is_none()
    {
        return Err(Error::NoSuchBucket);
    }
    let (sequence, object) = index
        .get::<Object>(Space::Objects, &key::object(bucket, key))?
        .ok_or(Error::NoSuchKey)?;
    let secret = object.encryption.as_ref().map(open).transpose()?;
    let blocks = block::Sealer::new(store_key);
    let segments = dir.segments_dir();
    let subject = Subject {
        bucket,
        key,
        sequence,
        object: &object,
        secret: secret.as_ref(),
    };
    Look::new(&segments, &blocks, &|_| true).object(index, &subject, Some(sink))?;
    Ok(object)
}

struct Run<'a> {
    dir: &'a DataDir,
    index: &'a Index,
    blocks: &'a block::Sealer,
    say: &'a (dyn Fn(Event<'_>) + Sync),
    found: Verified,
}

/// What the records name, by segment and first sector.
type Runs = BTreeMap<u32, u32>;

#[derive(Default)]
struct Ledger {
    named: HashMap<u64, Runs>,
    freed: HashMap<u64, Runs>,
    checkpoint: Checkpoint,
    /// The copy of the index.
    copies: Vec<Extent>,
    /// Objects that were rotten in the index itself.
    rotten: HashSet<Vec<u8>>,
    /// Stored bytes to be read.
    total: u64,
}

impl Ledger {
    fn name(&mut self, extents: &[Extent], damage: &mut Vec<String>) {
        for e in extents {
            let runs = self.named.entry(e.segment).or_default();
            let before = runs.range(..e.start + e.sectors).next_back();
            if before.is_some_and(|(start, sectors)| start + sectors > e.start) {
                damage.push(format!(
                    "two records name sector {} of segment {:016x}",
                    e.start, e.segment
                ));
            }
            runs.insert(e.start, e.sectors);
        }
    }
}

impl Run<'_> {
    fn damage(&mut self, what: String) {
        self.found.damage += 1;
        (self.say)(Event::Damage(what));
    }

    fn rotten(&mut self, bucket: &str, key: &str, why: String) {
        self.found.rotten += 1;
        (self.say)(Event::Rotten { bucket, key, why });
    }

    /// Opens every record and notes what it names.
    fn ledger(&mut self) -> Result<Ledger> {
        let index = self.index;
        let mut ledger = Ledger::default();
        let mut damage = Vec::new();
        let mut rotten = Vec::new();
        // Uploads and the multipart objects made of them own parts; records of small streams own their bytes.
        let mut owners: HashSet<UploadId> = HashSet::new();
        let mut inline: HashSet<u64> = HashSet::new();
        let mut buckets: HashSet<String> = HashSet::new();
        let broken = |space: Space, read: Result<(), Vec<u8>>| {
            read.err().map(|after| {
                format!(
                    "the index cannot be read: {} behind {:?}",
                    space.name(),
                    String::from_utf8_lossy(&after)
                )
            })
        };
        let read = index.each_raw(Space::Buckets, None, |entry, value| {
            match index
                .sealer
                .open::<crate::record::Bucket>("buckets", entry, value)
            {
                Ok((_, bucket)) => drop(buckets.insert(bucket.name)),
                Err(e) => damage.push(e.to_string()),
            }
            Ok(())
        })?;
        damage.extend(broken(Space::Buckets, read));
        let read = index.each_raw(Space::Objects, None, |entry, value| {
            let Some((bucket, name, _)) = key::parse(entry) else {
                damage.push("an object's name that is none".into());
                return Ok(());
            };
            match index.sealer.open::<Object>("objects", entry, value) {
                Ok((sequence, object)) => {
                    let extents: Vec<Extent> = object.extents().collect();
                    ledger.name(&extents, &mut damage);
                    match &object.data {
                        Data::Parts(id, _) => drop(owners.insert(*id)),
                        Data::Single(s) if s.place == Place::Inline => {
                            inline.insert(object.origin(sequence));
                        }
                        Data::Single(_) => {}
                    }
                    ledger.total += object.size;
                    if !buckets.contains(&bucket) {
                        damage.push(format!("{bucket}/{name} is in a bucket that is not there"));
                    }
                }
                Err(e) => {
                    ledger.rotten.insert(entry.to_vec());
                    rotten.push((bucket, name, e.to_string()));
                }
            }
            Ok(())
        })?;
        damage.extend(broken(Space::Objects, read));
        let read = index.each_raw(Space::Uploads, None, |entry, value| {
            match (
                key::upload_id(entry),
                index.sealer.open::<Upload>("uploads", entry, value),
            ) {
                (Some(id), Ok((_, upload))) => {
                    owners.insert(id);
                    let key: Vec<Extent> = upload.key_extent.into_iter().collect();
                    ledger.name(&key, &mut damage);
                }
                (_, Err(e)) => damage.push(e.to_string()),
                (None, _) => damage.push("an upload's name that is none".into()),
            }
            Ok(())
        })?;
        damage.extend(broken(Space::Uploads, read));
        let read = index.each_raw(Space::Parts, None, |entry, value| {
            match index.sealer.open::<Part>("parts", entry, value) {
                Ok((sequence, part)) => {
                    ledger.name(part.stream.extents(), &mut damage);
                    if part.stream.place == Place::Inline {
                        inline.insert(sequence);
                    }
                    if key::part_upload(entry).is_none_or(|id| !owners.contains(&id)) {
                        damage.push("a part that belongs to no object and no upload".into());
                    }
                }
                // Its object or upload is found to lack it.
                Err(e) => damage.push(e.to_string()),
            }
            Ok(())
        })?;
        damage.extend(broken(Space::Parts, read));
        let read = index.each_raw(Space::Freed, None, |entry, value| {
            match index.sealer.open::<Vec<Extent>>("freed", entry, value) {
                Ok((_, extents)) => {
                    for e in extents {
                        let runs = ledger.freed.entry(e.segment).or_default();
                        runs.insert(e.start, e.sectors);
                    }
                }
                Err(e) => damage.push(e.to_string()),
            }
            Ok(())
        })?;
        damage.extend(broken(Space::Freed, read));
        let read = index.each_raw(Space::Inline, None, |entry, _| {
            let sequence = <[u8; 8]>::try_from(entry).map(u64::from_be_bytes);
            if sequence.is_ok_and(|s| !inline.contains(&s)) {
                damage.push("bytes of a small object that no record names".into());
            }
            Ok(())
        })?;
        damage.extend(broken(Space::Inline, read));
        match recover::copies(index) {
            Ok(groups) => {
                ledger.copies = groups.extents().collect();
                ledger.name(&ledger.copies.clone(), &mut damage);
            }
            Err(e) => damage.push(e.to_string()),
        }
        match index.get::<Checkpoint>(Space::Meta, meta::CHECKPOINT.as_bytes()) {
            Ok(found) => ledger.checkpoint = found.map(|(_, c)| c).unwrap_or_default(),
            Err(e) => damage.push(e.to_string()),
        }
        for (bucket, name, why) in rotten {
            self.rotten(&bucket, &name, why);
        }
        for what in damage {
            self.damage(what);
        }
        Ok(ledger)
    }

    /// Accounts for every allocated byte of every file.
    fn account(&mut self, ledger: &Ledger) -> Result<()> {
        let segments = self.dir.segments_dir();
        let none = Runs::new();
        for (id, len) in recover::segment_files(&segments)? {
            let path = segment::path(&segments, id);
            let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            let mut runs = ledger.named.get(&id).unwrap_or(&none).clone();
            self.found.named_bytes +=
                runs.values().map(|n| u64::from(*n)).sum::<u64>() * SECTOR as u64;
            for (start, sectors) in ledger.freed.get(&id).unwrap_or(&none) {
                runs.entry(*start).or_insert_with(|| {
                    self.found.freed_bytes += u64::from(*sectors) * SECTOR as u64;
                    *sectors
                });
            }
            // A clean close leaves nothing unsettled.
            let unsettled = match ledger.checkpoint.live {
                Some(_) => None,
                None => ledger.checkpoint.unsettled_from(id),
            };
            for (from, to) in gaps(&runs, len.div_ceil(SECTOR as u64) as u32) {
                self.gap(&file, id, from, to, unsettled)
                    .map_err(|e| Error::io("read", &path, e))?;
            }
        }
        for entry in std::fs::read_dir(&segments).map_err(|e| Error::io("list", &segments, e))? {
            let entry = entry.map_err(|e| Error::io("list", &segments, e))?;
            if entry
                .file_name()
                .to_str()
                .and_then(segment::parse_name)
                .is_none()
            {
                self.foreign(&entry.path());
            }
        }
        Ok(())
    }

    /// Looks at sectors that no record names: empty, left by an upload, or sealed and forgotten; anything else is damage.
    fn gap(
        &mut self,
        file: &File,
        id: u64,
        from: u32,
        to: u32,
        unsettled: Option<u32>,
    ) -> std::io::Result<()> {
        let end = u64::from(to) * SECTOR as u64;
        let mut at = u64::from(from) * SECTOR as u64;
        let mut stray: Vec<u32> = Vec::new();
        let mut buffer = vec![0; 256 * SECTOR];
        while at < end {
            // Holes are free. A file system without them reads as data, which is looked at.
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data / SECTOR as u64 * SECTOR as u64,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => at,
            };
            at = at.max(data);
            if at >= end {
                break;
            }
            let len = (end - at).min(buffer.len() as u64) as usize;
            let got = read_up_to(file, &mut buffer[..len], at)?;
            for (i, sector) in buffer[..got].chunks(SECTOR).enumerate() {
                if sector.iter().any(|b| *b != 0) {
                    stray.push((at / SECTOR as u64) as u32 + i as u32);
                }
            }
            if got < len {
                break;
            }
            at += len as u64;
        }
        let mut covered = 0;
        let mut unknown = 0u64;
        for sector in stray {
            let bytes = SECTOR as u64;
            if unsettled.is_some_and(|from| sector >= from) {
                self.found.unsettled_bytes += bytes;
            } else if sector < covered {
                self.found.orphan_bytes += bytes;
            } else if let Some((block, payload)) = block_at(self.blocks, file, id, sector) {
                self.found.orphan_bytes += bytes;
                let sealed = match block.kind {
                    Kind::Head => {
                        minicbor::decode::<Head>(&payload).is_ok_and(|h| h.nonce.is_some())
                    }
                    _ => true,
                };
                if sealed {
                    covered = block.position.saturating_add(block.sectors).min(to);
                }
            } else {
                unknown += 1;
            }
        }
        if unknown > 0 {
            self.damage(format!(
                "segment {id:016x}: {unknown} sectors between {from} and {to} belong to nothing and are not known to be sealed"
            ));
        }
        Ok(())
    }

    fn other_files(&mut self, beside: &dyn Fn(&str) -> bool) -> Result<()> {
        let root = self.dir.path();
        for entry in std::fs::read_dir(root).map_err(|e| Error::io("list", root, e))? {
            let path = entry.map_err(|e| Error::io("list", root, e))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            match name.as_str() {
                "segments" | COPY => {}
                "index" => self.found.index_bytes += used(&path),
                _ if name.starts_with("index.") => {
                    let bytes = used(&path);
                    self.found.index_bytes += bytes;
                    (self.say)(Event::Note(format!(
                        "{} holds an index that was set aside: {bytes} bytes",
                        path.display()
                    )));
                }
                "superblock" | "superblock.new" | "superblock.old" | "lock" => {
                    self.found.other_bytes += used(&path)
                }
                name if beside(name) => self.found.other_bytes += used(&path),
                _ => self.foreign(&path),
            }
        }
        Ok(())
    }

    fn foreign(&mut self, path: &Path) {
        let bytes = used(path);
        self.found.foreign_bytes += bytes;
        (self.say)(Event::Note(format!(
            "{} is not the store's: {bytes} bytes",
            path.display()
        )));
    }

    /// Reads and checks all data.
    fn read_all(&mut self, keys: &dyn ObjectKeys, ledger: &Ledger) -> Result<()> {
        let segments = self.dir.segments_dir();
        let (index, blocks, say) = (self.index, self.blocks, self.say);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(threads * 4);
        let done = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let total = ledger.total;
        let workers: Vec<Result<Verified>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads)
                .map(|_| {
                    let queue = queue.clone();
                    let (segments, done, stop) = (&segments, &done, &stop);
                    scope.spawn(move || {
                        work(index, segments, blocks, &queue, say, done, total, stop)
                    })
                })
                .collect();
            drop(queue);
            let fed = self.feed(keys, ledger, &jobs);
            drop(jobs);
            let mut all: Vec<_> = running
                .into_iter()
                .map(|w| {
                    w.join()
                        .map_err(|_| Error::corrupt("a file that cannot be read", "the index"))
                })
                .collect();
            all.push(fed);
            all
        });
        for worker in workers {
            let part = worker?;
            self.found.objects += part.objects;
            self.found.uploads += part.uploads;
            self.found.bytes += part.bytes;
            self.found.opened += part.opened;
            self.found.not_at_hand += part.not_at_hand;
            self.found.unsealed += part.unsealed;
            self.found.rotten += part.rotten;
            self.found.damage += part.damage;
        }
        Ok(())
    }

    /// Hands every object and every open upload out.
    fn feed(
        &self,
        keys: &dyn ObjectKeys,
        ledger: &Ledger,
        jobs: &crossbeam_channel::Sender<Job>,
    ) -> Result<Verified> {
        let index = self.index;
        let mut found = Verified::default();
        let segments = self.dir.segments_dir();
        let mut look = Look::new(&segments, self.blocks, &|_| true);
        for extent in &ledger.copies {
            if let Err(e) = look.copy(extent) {
                found.damage += 1;
                (self.say)(Event::Damage(format!("the copy of the index: {e}")));
            }
        }
        let send = |job| jobs.send(job).map_err(|_| Error::Closed);
        // A place where the tree cannot be read was reported when the records were read.
        let _ = index.each_raw(Space::Objects, None, |entry, value| {
            let Some((bucket, name, _)) =
                key::parse(entry).filter(|_| !ledger.rotten.contains(entry))
            else {
                return Ok(());
            };
            let (sequence, object) = index.sealer.open::<Object>("objects", entry, value)?;
            found.objects += 1;
            let mut secret = None;
            match object
                .encryption
                .as_ref()
                .map(|e| keys.open(&bucket, &name, e))
            {
                None => {
                    found.unsealed += 1;
                    (self.say)(Event::Unsealed {
                        bucket: &bucket,
                        key: &name,
                    });
                }
                Some(KeyAnswer::Key(key)) => {
                    found.opened += 1;
                    secret = Some(key);
                }
                Some(KeyAnswer::NotAtHand) => found.not_at_hand += 1,
                Some(KeyAnswer::Broken(why)) => {
                    found.rotten += 1;
                    (self.say)(Event::Rotten {
                        bucket: &bucket,
                        key: &name,
                        why,
                    });
                    return Ok(());
                }
            }
            send(Job {
                bucket,
                key: name,
                sequence,
                what: What::Object(Box::new(object)),
                secret,
            })
        })?;
        let _ = index.each_raw(Space::Uploads, None, |entry, value| {
            let (Some((bucket, name, _)), Some(id)) = (key::parse(entry), key::upload_id(entry))
            else {
                return Ok(());
            };
            let Ok((sequence, upload)) = index.sealer.open::<Upload>("uploads", entry, value)
            else {
                return Ok(());
            };
            found.uploads += 1;
            let secret = match upload
                .encryption
                .as_ref()
                .map(|e| keys.open(&bucket, &name, e))
            {
                Some(KeyAnswer::Key(key)) => Some(key),
                _ => None,
            };
            send(Job {
                bucket,
                key: name,
                sequence,
                what: What::Upload(id, Box::new(upload)),
                secret,
            })
        })?;
        Ok(found)
    }
}

/// One thing to be read.
struct Job {
    bucket: String,
    key: String,
    sequence: u64,
    what: What,
    secret: Option<Secret>,
}

enum What {
    Object(Box<Object>),
    Upload(UploadId, Box<Upload>),
}

#[expect(clippy::too_many_arguments, reason = "what one worker is given")]
fn work(
    index: &Index,
    segments: &Path,
    blocks: &block::Sealer,
    queue: &Receiver<Job>,
    say: &(dyn Fn(Event<'_>) + Sync),
    done: &AtomicU64,
    total: u64,
    stop: &AtomicBool,
) -> Verified {
    let mut found = Verified::default();
    let mine = AtomicU64::new(0);
    let pace = |bytes| {
        mine.fetch_add(bytes, Ordering::Relaxed);
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        say(Event::Progress { done, total });
        !stop.load(Ordering::Relaxed)
    };
    let mut look = Look::new(segments, blocks, &pace);
    for job in queue {
        let (bucket, key) = (job.bucket.as_str(), job.key.as_str());
        match &job.what {
            What::Object(object) => {
                let subject = Subject {
                    bucket,
                    key,
                    sequence: job.sequence,
                    object,
                    secret: job.secret.as_ref(),
                };
                if let Err(e) = look.object(index, &subject, None) {
                    found.rotten += 1;
                    say(Event::Rotten {
                        bucket,
                        key,
                        why: e.to_string(),
                    });
                }
            }
            What::Upload(id, upload) => {
                if let Err(e) = open_upload(&mut look, index, &job, id, upload) {
                    found.damage += 1;
                    say(Event::Damage(format!(
                        "the open upload {id} of {bucket}/{key}: {e}"
                    )));
                }
            }
        }
    }
    found.bytes = mine.into_inner();
    found
}

fn open_upload(
    look: &mut Look<'_>,
    index: &Index,
    job: &Job,
    id: &UploadId,
    upload: &Upload,
) -> Result<()> {
    if let (Some(extent), Some(encryption)) = (&upload.key_extent, &upload.encryption)
        && look.wrapped_key(extent)?.encryption != *encryption
    {
        return Err(Error::corrupt(
            "the wrapped key of another record",
            "its key extent",
        ));
    }
    let (parts, _) = index.parts(id, 0, usize::MAX)?;
    for entry in parts {
        let secret = job
            .secret
            .as_ref()
            .map(|s| hierarchy::part_key(s, u32::from(entry.number)));
        let inline = match entry.part.stream.place {
            Place::Inline => index.inline(entry.sequence)?,
            _ => None,
        };
        look.piece(
            &Piece {
                bucket: &job.bucket,
                key: &job.key,
                part: Some((*id, entry.number)),
                stream: &entry.part.stream,
                secret: secret.as_ref(),
                inline: inline.as_deref(),
            },
            None,
        )
        .map_err(|e| Error::corrupt(e.to_string(), format!("part {}", entry.number)))?;
    }
    Ok(())
}

/// The runs of sectors up to `end` that are not in `runs`.
fn gaps(runs: &Runs, end: u32) -> Vec<(u32, u32)> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for (start, sectors) in runs {
        if *start > at {
            gaps.push((at, (*start).min(end)));
        }
        at = at.max(start.saturating_add(*sectors));
    }
    if at < end {
        gaps.push((at, end));
    }
    gaps.retain(|(from, to)| from < to);
    gaps
}

/// Bytes that a file or directory takes on disk.
fn used(path: &Path) -> u64 {
    let Ok(meta) = path.symlink_metadata() else {
        return 0;
    };
    let below = match meta.is_dir() {
        true => std::fs::read_dir(path)
            .map(|entries| entries.flatten().map(|e| used(&e.path())).sum())
            .unwrap_or(0),
        false => 0,
    };
    below + meta.blocks() * 512
}

fn read_up_to(file: &File, out: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_no_run_covers() {
        let runs = |all: &[(u32, u32)]| all.iter().copied().collect::<Runs>();
        assert_eq!(gaps(&runs(&[]), 0), []);
        assert_eq!(gaps(&runs(&[]), 5), [(0, 5)]);
        assert_eq!(gaps(&runs(&[(0, 5)]), 5), []);
        assert_eq!(gaps(&runs(&[(1, 2), (4, 1)]), 9), [(0, 1), (3, 4), (5, 9)]);
        assert_eq!(gaps(&runs(&[(7, 2)]), 5), [(0, 5)]);
    }
}
