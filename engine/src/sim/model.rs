//! What a store should hold, operations on both the store and this, and the comparison.
//!
//! One writer at a time works on a key, and any number of readers. So under a key there is what was acknowledged last, or what is
//! on its way; and once anybody has seen the latter, it has to stay. Contents are made of a number, which is also the ETag.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::World;
use super::disk::data_sectors;
use super::machine::Store;
use super::rt::sleep;
use crate::error::Error;
use crate::index::{Space, recover};
use crate::record::{Encryption, Extent, Mode, Object, Part, Upload, UploadId};
use crate::secret::Secret;
use crate::shard::within;
use crate::{
    Completion, Condition, EtagMatch, Finish, ListEntry, ListQuery, NewUpload, PartChoice, Shard,
    Target, UploadQuery, limits, segment,
};

pub const BUCKET: &str = "bucket";

/// Something a client does.
#[derive(Debug, Clone)]
pub enum Op {
    Put {
        key: usize,
        size: usize,
        sealed: bool,
        fate: Fate,
    },
    Delete(usize),
    Rewrap(usize),
    /// Parts by number and size; one given twice is uploaded twice.
    Multipart {
        key: usize,
        parts: Vec<(u16, usize)>,
        end: End,
    },
    /// Ends an upload that was left open.
    EndUpload(End),
    Get {
        key: usize,
        /// In thousandths of the object.
        range: (u64, u64),
        slow: bool,
    },
    List {
        after: Option<usize>,
        max: usize,
    },
    Copy,
    Erase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Commit,
    /// Only if nothing is there.
    IfAbsent,
    /// The client goes away while it sends.
    Abandon,
    /// The client goes away while it waits for the answer.
    GoAway,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Complete,
    Abort,
    Leave,
}

/// One content an object can have.
#[derive(Debug)]
struct Version {
    id: u64,
    sealed: bool,
    /// Contents in a row, by number and size.
    pieces: Vec<(u64, usize)>,
}

impl Version {
    fn size(&self) -> usize {
        self.pieces.iter().map(|(_, size)| size).sum()
    }

    fn bytes(&self) -> Vec<u8> {
        let pieces = self.pieces.iter();
        pieces.flat_map(|(id, size)| content(*id, *size)).collect()
    }

    fn secret(&self) -> Option<Secret> {
        self.sealed.then(|| secret(self.id))
    }
}

fn secret(id: u64) -> Secret {
    let mut bytes = [3; 32];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    Secret::new(bytes)
}

/// The bytes of content number `id`.
fn content(id: u64, size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    super::Rng(id << 32).fill(&mut out);
    out
}

/// The `wrap`th wrapping of the key of version `id`.
fn encryption(id: u64, wrap: u8) -> Encryption {
    let mut sealed_key = [wrap; 64];
    sealed_key[..8].copy_from_slice(&id.to_le_bytes());
    Encryption {
        mode: Mode::SseS3,
        iv: [wrap; 32],
        sealed_key,
        kms: None,
    }
}

/// Number of a version, and of its wrapping.
type State = Option<(u64, u8)>;

#[derive(Default)]
struct Slot {
    now: State,
    next: Option<State>,
    /// A writer works on it.
    busy: bool,
    /// Grows with every change.
    changes: u64,
}

impl Slot {
    /// Whether a writer is at work, or was since there had been so many changes.
    fn changed_since(&self, changes: u64) -> bool {
        self.busy || self.changes != changes
    }
}

struct OpenUpload {
    id: UploadId,
    key: usize,
    parts: BTreeMap<u16, PartSlot>,
    /// A client works on it, or is about to end it.
    busy: bool,
    ending: bool,
}

/// Content number, size, and commit sequence.
type Piece = (u64, usize, u64);

#[derive(Default)]
struct PartSlot {
    now: Option<Piece>,
    next: Option<Piece>,
}

/// What is expected of a store, and what may go wrong.
pub struct Model {
    world: Rc<World>,
    slots: RefCell<Vec<Slot>>,
    versions: RefCell<BTreeMap<u64, Rc<Version>>>,
    /// Open uploads by the version they are to become.
    uploads: RefCell<BTreeMap<u64, OpenUpload>>,
    creating: RefCell<BTreeMap<u64, usize>>,
    next: Cell<u64>,
    /// Requests can fail; data can be damaged.
    pub faulty: Cell<bool>,
    pub rotten: Cell<bool>,
}

pub fn name(key: usize) -> String {
    format!("{}/{key}", ["a", "b"][key % 2])
}

impl Model {
    pub fn new(world: &Rc<World>, keys: usize) -> Rc<Model> {
        Rc::new(Model {
            world: Rc::clone(world),
            slots: RefCell::new((0..keys).map(|_| Slot::default()).collect()),
            versions: RefCell::default(),
            uploads: RefCell::default(),
            creating: RefCell::default(),
            next: Cell::new(1),
            faulty: Cell::new(false),
            rotten: Cell::new(false),
        })
    }

    /// An operation by chance.
    pub fn choose(&self) -> Op {
        let w = &self.world;
        let key = w.below(self.slots.borrow().len() as u64) as usize;
        let end = |n| match n {
            0 => End::Abort,
            1 => End::Leave,
            _ => End::Complete,
        };
        match w.below(32) {
            0..12 => Op::Put {
                key,
                size: self.size(),
                sealed: !w.one_in(6),
                fate: match w.below(12) {
                    0 => Fate::IfAbsent,
                    1 | 2 => Fate::Abandon,
                    3 => Fate::GoAway,
                    _ => Fate::Commit,
                },
            },
            12..15 => Op::Delete(key),
            15..17 => Op::Rewrap(key),
            17..20 => Op::Multipart {
                key,
                parts: (0..=w.below(4))
                    .map(|_| (1 + w.below(4) as u16, self.size()))
                    .collect(),
                end: end(w.below(6)),
            },
            20 => Op::EndUpload(end(w.below(4))),
            21..28 => {
                let from = w.below(1001) * w.below(2);
                let to = from + w.below(1001 - from);
                let to = if w.one_in(2) { 1000 } else { to };
                Op::Get {
                    key,
                    range: (from, to),
                    slow: w.one_in(3),
                }
            }
            28..30 => Op::List {
                after: w.one_in(2).then_some(key),
                max: if w.one_in(2) { 1000 } else { 3 },
            },
            30 => Op::Copy,
            _ => Op::Erase,
        }
    }

    fn size(&self) -> usize {
        let w = &self.world;
        (match w.below(24) {
            0 => 0,
            1 => limits::INLINE_BYTES_MAX,
            2 => limits::INLINE_BYTES_MAX + 1,
            3 => 65_536 * (1 + w.below(3)) + w.below(3) - 1,
            4..12 => 1 + w.below(16_384),
            12..22 => 16_385 + w.below(150_000),
            22 => 200_000 + w.below(1_500_000),
            _ => match w.below(6) {
                // More than one extent.
                0 => limits::EXTENT_PACKAGES * 65_536 + w.below(100_000),
                _ => 1 + w.below(200),
            },
        }) as usize
    }

    fn version(&self, pieces: Vec<(u64, usize)>, id: u64, sealed: bool) -> Rc<Version> {
        let version = Rc::new(Version { id, sealed, pieces });
        let mut versions = self.versions.borrow_mut();
        versions.insert(id, Rc::clone(&version));
        version
    }

    fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Becomes the writer of a key, if there is none.
    fn begin(&self, key: usize) -> bool {
        !std::mem::replace(&mut self.slots.borrow_mut()[key].busy, true)
    }

    fn end(&self, key: usize) {
        let mut slots = self.slots.borrow_mut();
        slots[key].busy = false;
        slots[key].next = None;
        slots[key].changes += 1;
    }

    /// From now on this may be what stands under the key.
    fn intend(&self, key: usize, state: State) {
        let mut slots = self.slots.borrow_mut();
        slots[key].next = Some(state);
        slots[key].changes += 1;
    }

    /// What is on its way was acknowledged.
    fn acknowledged(&self, key: usize) {
        assert!(!self.world.is_down(), "acknowledged after the end");
        let mut slots = self.slots.borrow_mut();
        if let Some(next) = slots[key].next.take() {
            slots[key].now = next;
        }
    }

    fn now(&self, key: usize) -> State {
        self.slots.borrow()[key].now
    }

    /// What was seen must be what is allowed, and stays.
    fn saw(&self, key: usize, seen: State) {
        let slot = &mut self.slots.borrow_mut()[key];
        if slot.now != seen {
            assert_eq!(
                slot.next,
                Some(seen),
                "{}: seen is what is neither acknowledged ({:?}) nor on its way",
                name(key),
                slot.now
            );
            slot.now = seen;
        }
    }

    /// Errors that the world has a reason for.
    fn expect(&self, what: &str, e: &Error) {
        let reason = match e {
            Error::Io { .. } | Error::DiskFull | Error::Overloaded { .. } => self.faulty.get(),
            Error::Corrupt { .. } => self.rotten.get(),
            _ => false,
        };
        assert!(reason || self.world.is_down(), "{what}: {e}");
    }

    pub async fn perform(self: Rc<Self>, shard: Rc<Shard>, op: Op) {
        match op {
            Op::Put {
                key,
                size,
                sealed,
                fate,
            } => self.put(&shard, key, size, sealed, fate).await,
            Op::Delete(key) => self.delete(&shard, key).await,
            Op::Rewrap(key) => self.rewrap(&shard, key).await,
            Op::Multipart { key, parts, end } => self.multipart(&shard, key, parts, end).await,
            Op::EndUpload(end) => {
                let idle = |(id, u): (&u64, &OpenUpload)| (!u.busy).then_some((*id, u.key));
                let left = self.uploads.borrow().iter().find_map(idle);
                if let Some((id, key)) = left
                    && self.begin(key)
                {
                    self.end_upload(&shard, key, id, end).await;
                    self.end(key);
                }
            }
            Op::Get { key, range, slow } => {
                if let Err(e) = self.get(&shard, key, range, slow).await {
                    self.expect("get", &e);
                }
            }
            Op::List { after, max } => self.list(&shard, after, max).await,
            Op::Copy => {
                if let Err(e) = shard.copy_index(false).await {
                    self.expect("copy", &e);
                }
            }
            Op::Erase => {
                if let Err(e) = shard.settle_erasure().await {
                    self.expect("erase", &e);
                }
            }
        }
    }

    async fn pause(&self) {
        let millis = match self.world.below(40) {
            0 => self.world.below(10_000),
            _ => self.world.below(20),
        };
        sleep(Duration::from_millis(millis)).await;
    }

    async fn put(&self, shard: &Rc<Shard>, key: usize, size: usize, sealed: bool, fate: Fate) {
        if !self.begin(key) {
            return;
        }
        let id = self.number();
        let version = self.version(vec![(id, size)], id, sealed);
        match self.send(shard, key, &version, fate).await {
            Ok(true) => self.acknowledged(key),
            Ok(false) => {}
            Err(Error::PreconditionFailed { .. }) => {
                assert!(fate == Fate::IfAbsent && self.now(key).is_some());
            }
            Err(e) => self.expect("put", &e),
        }
        self.end(key);
    }

    /// Whether it was acknowledged, and not given up.
    async fn send(
        &self,
        shard: &Rc<Shard>,
        key: usize,
        version: &Version,
        fate: Fate,
    ) -> Result<bool, Error> {
        let target = Target {
            bucket: BUCKET.into(),
            key: name(key),
            size: version.size() as u64,
            metadata: Default::default(),
            encryption: version.sealed.then(|| encryption(version.id, 0)),
            part: None,
        };
        let secret = version.secret();
        let bytes = version.bytes();
        let open_ended = bytes.len() as u64 > 2 * limits::OPEN_END_BYTES && self.world.one_in(3);
        let (mut stream, told_from) = if open_ended {
            let slack = self.world.below(limits::END_SLACK_BYTES + 1);
            let target = Target {
                size: target.size + slack,
                ..target
            };
            let told_from = target.size - limits::OPEN_END_BYTES - 1;
            let told_from = told_from - self.world.below(told_from) * self.world.below(2);
            let stream = shard.put_open_ended(target, secret.as_ref()).await?;
            (stream, Some(told_from as usize))
        } else {
            (shard.put(target, secret.as_ref()).await?, None)
        };
        let piece = 1 + self.world.below(200_000) as usize;
        let sent = match fate {
            Fate::Abandon => self.world.below(bytes.len() as u64 + 1) as usize,
            _ => bytes.len(),
        };
        let told = told_from.filter(|at| *at <= sent);
        let (before, after) = bytes[..sent].split_at(told.unwrap_or(0));
        for piece in before.chunks(piece) {
            stream.write(piece).await?;
        }
        if told.is_some() {
            stream.ends_at(bytes.len() as u64);
        }
        for piece in after.chunks(piece) {
            stream.write(piece).await?;
            if self.world.one_in(3) {
                self.pause().await;
            }
        }
        if fate == Fate::Abandon {
            return Ok(false);
        }
        self.intend(key, Some((version.id, 0)));
        let mut finish = Finish {
            etag: version.id.to_string(),
            ..Default::default()
        };
        if fate == Fate::IfAbsent {
            finish.condition = Condition {
                if_none_match: Some(EtagMatch::Any),
                if_match: None,
            };
        }
        let commit = stream.commit(finish);
        if fate != Fate::GoAway {
            return commit.await.map(|_| true);
        }
        let patience = Duration::from_micros(self.world.below(3000));
        match within(patience, commit).await {
            Some(done) => return done.map(|_| true),
            // Whatever comes of it has come by then.
            None => sleep(Duration::from_secs(100)).await,
        }
        if let Err(e) = self.get(shard, key, (0, 1000), false).await {
            self.expect("get", &e);
        }
        Ok(false)
    }

    async fn delete(&self, shard: &Rc<Shard>, key: usize) {
        if !self.begin(key) {
            return;
        }
        let was = self.now(key).is_some();
        self.intend(key, None);
        match shard
            .delete(BUCKET, &name(key), &Condition::default())
            .await
        {
            Ok(existed) => {
                assert_eq!(existed, was, "delete of {}", name(key));
                self.acknowledged(key);
            }
            Err(e) => self.expect("delete", &e),
        }
        self.end(key);
    }

    async fn rewrap(&self, shard: &Rc<Shard>, key: usize) {
        if !self.begin(key) {
            return;
        }
        if let Some((id, wrap)) = self.now(key)
            && self.versions.borrow()[&id].sealed
        {
            let wrap = wrap.wrapping_add(1);
            self.intend(key, Some((id, wrap)));
            let done = match shard.lookup(BUCKET, &name(key)).await {
                Ok(found) => {
                    let to = encryption(id, wrap);
                    shard
                        .set_encryption(BUCKET, &name(key), found.sequence, to)
                        .await
                }
                Err(e) => Err(e),
            };
            match done {
                Ok(_) => self.acknowledged(key),
                Err(e) => self.expect("rewrap", &e),
            }
        }
        self.end(key);
    }

    async fn multipart(&self, shard: &Rc<Shard>, key: usize, parts: Vec<(u16, usize)>, end: End) {
        if !self.begin(key) {
            return;
        }
        let version = self.number();
        self.creating.borrow_mut().insert(version, key);
        let new = NewUpload {
            encryption: Some(encryption(version, 0)),
            ..Default::default()
        };
        match shard.create_upload(BUCKET, &name(key), new).await {
            Ok(id) => {
                let upload = OpenUpload {
                    id,
                    key,
                    parts: BTreeMap::new(),
                    busy: true,
                    ending: false,
                };
                self.creating.borrow_mut().remove(&version);
                self.uploads.borrow_mut().insert(version, upload);
                for (number, size) in parts {
                    if let Err(e) = self.part(shard, version, id, key, number, size).await {
                        self.expect("part", &e);
                    }
                }
                self.end_upload(shard, key, version, end).await;
            }
            Err(e) => {
                self.creating.borrow_mut().remove(&version);
                self.expect("create upload", &e);
            }
        }
        self.end(key);
    }

    async fn part(
        &self,
        shard: &Rc<Shard>,
        version: u64,
        id: UploadId,
        key: usize,
        number: u16,
        size: usize,
    ) -> Result<(), Error> {
        let content_id = self.number();
        let target = Target {
            bucket: BUCKET.into(),
            key: name(key),
            size: size as u64,
            metadata: Default::default(),
            encryption: None,
            part: Some((id, number)),
        };
        let mut stream = shard.put(target, Some(&secret(version))).await?;
        stream.write(&content(content_id, size)).await?;
        if self.world.one_in(12) {
            return Ok(());
        }
        let slot = |set: &dyn Fn(&mut PartSlot)| {
            let mut uploads = self.uploads.borrow_mut();
            let upload = uploads.get_mut(&version).expect("it is open");
            set(upload.parts.entry(number).or_default());
        };
        slot(&|slot| slot.next = Some((content_id, size, 0)));
        let done = stream.commit_part(content_id.to_string(), None).await;
        slot(&|slot| {
            slot.next = None;
            if let Ok(committed) = &done {
                slot.now = Some((content_id, size, committed.sequence));
            }
        });
        done.map(|_| ())
    }

    /// Ends an upload, or leaves it for later; the key is the caller's.
    async fn end_upload(&self, shard: &Rc<Shard>, key: usize, version: u64, end: End) {
        let (id, parts) = {
            let mut uploads = self.uploads.borrow_mut();
            let upload = uploads.get_mut(&version).expect("it is open");
            upload.busy = true;
            upload.ending = end != End::Leave;
            let parts = upload.parts.iter();
            let parts = parts.filter_map(|(n, slot)| Some((*n, slot.now?)));
            (upload.id, parts.collect::<Vec<(u16, Piece)>>())
        };
        let parts: Vec<_> = match self.world.one_in(4) {
            // Some are left out.
            true => parts.into_iter().skip(1).collect(),
            false => parts,
        };
        let done = match end {
            End::Leave => Ok(false),
            End::Abort => {
                let done = shard.abort_upload(BUCKET, &name(key), &id).await;
                done.map(|()| true)
            }
            End::Complete => {
                let pieces = parts.iter().map(|(_, (id, size, _))| (*id, *size));
                self.version(pieces.collect(), version, true);
                self.intend(key, Some((version, 0)));
                let choice = |(number, (_, _, sequence)): &(u16, Piece)| PartChoice {
                    number: *number,
                    sequence: *sequence,
                };
                let completion = Completion {
                    parts: parts.iter().map(choice).collect(),
                    etag: version.to_string(),
                    ..Default::default()
                };
                let done = shard
                    .complete_upload(BUCKET, &name(key), &id, completion)
                    .await;
                if done.is_ok() {
                    self.acknowledged(key);
                }
                done.map(|_| true)
            }
        };
        let mut uploads = self.uploads.borrow_mut();
        match done {
            Ok(true) => drop(uploads.remove(&version)),
            kept => {
                let upload = uploads.get_mut(&version).expect("it is open");
                (upload.busy, upload.ending) = (false, false);
                if let Err(e) = kept {
                    self.expect("end of an upload", &e);
                }
            }
        }
    }

    async fn get(
        &self,
        shard: &Rc<Shard>,
        key: usize,
        range: (u64, u64),
        slow: bool,
    ) -> Result<(), Error> {
        let changes = self.slots.borrow()[key].changes;
        let found = match shard.lookup(BUCKET, &name(key)).await {
            Err(Error::NoSuchKey) => {
                self.saw(key, None);
                return Ok(());
            }
            found => found?,
        };
        let id: u64 = found.object.etag.parse().expect("a number");
        let wrapping = found.object.encryption.as_ref();
        self.saw(key, Some((id, wrapping.map_or(0, |e| e.iv[0]))));
        let version = Rc::clone(&self.versions.borrow()[&id]);
        if let Some(wrapping) = wrapping {
            assert_eq!(*wrapping, encryption(id, wrapping.iv[0]));
        }
        assert_eq!(found.object.size, version.size() as u64);
        assert_eq!(wrapping.is_some(), version.sealed);
        if slow {
            self.pause().await;
        }
        let at = |thousandths| found.object.size * thousandths / 1000;
        let wanted = at(range.0)..at(range.1);
        let stream = shard
            .read(&found, wanted.clone(), version.secret().as_ref())
            .await;
        let mut stream = match stream {
            // Its parts went with it: to be looked up again.
            Err(Error::Replaced) if self.slots.borrow()[key].changed_since(changes) => {
                return Ok(());
            }
            stream => stream?,
        };
        let expected = version.bytes();
        let mut place = wanted.start as usize;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            assert!(
                !version.sealed && self.rotten.get() || expected[place..].starts_with(&bytes),
                "{} is wrong from byte {place} on",
                name(key)
            );
            place += bytes.len();
            if slow {
                self.pause().await;
            }
        }
        assert_eq!(place as u64, wanted.end, "{} ends early", name(key));
        Ok(())
    }

    async fn list(&self, shard: &Rc<Shard>, after: Option<usize>, max: usize) {
        let before: Vec<_> = {
            let slots = self.slots.borrow();
            slots.iter().map(|s| (s.changes, s.busy)).collect()
        };
        let query = ListQuery {
            after: after.map(name),
            max,
            ..Default::default()
        };
        let page = match shard.list(BUCKET, query).await {
            Ok(page) => page,
            Err(e) => return self.expect("list", &e),
        };
        let mut found = BTreeMap::new();
        for entry in page.entries {
            let ListEntry::Object(name, object) = entry else {
                panic!("a prefix that nobody asked for");
            };
            found.insert(name, object.etag);
        }
        let last = found.keys().next_back().cloned();
        for (key, slot) in self.slots.borrow().iter().enumerate() {
            let name = name(key);
            let listed = after.is_none_or(|after| name > self::name(after))
                && (!page.more || last.as_ref().is_some_and(|last| name <= *last));
            if listed && before[key] == (slot.changes, false) {
                let expected = slot.now.map(|(id, _)| id.to_string());
                assert_eq!(found.get(&name), expected.as_ref(), "{name} in a listing");
            }
        }
    }

    /// After a start: compares everything, and takes what may have come of operations cut off.
    pub async fn compare(self: Rc<Self>, shard: Rc<Shard>) {
        let keys = self.slots.borrow().len();
        for key in 0..keys {
            if let Err(e) = self.get(&shard, key, (0, 1000), false).await {
                self.expect("get", &e);
            }
            self.end(key);
        }
        if let Err(e) = self.compare_uploads(&shard).await {
            self.expect("list uploads", &e);
        }
        self.list(&shard, None, 1000).await;
        if !self.rotten.get() {
            self.compare_counts(&shard);
        }
    }

    async fn compare_uploads(&self, shard: &Rc<Shard>) -> Result<(), Error> {
        let query = UploadQuery {
            max: 1000,
            ..Default::default()
        };
        let listed = shard.list_uploads(BUCKET, query).await?;
        let mut seen = BTreeSet::new();
        for entry in listed.uploads {
            let sealed_key = entry.upload.encryption.expect("all are sealed").sealed_key;
            let version = u64::from_le_bytes(sealed_key[..8].try_into().expect("8 bytes"));
            seen.insert(version);
            {
                let creating = self.creating.borrow().get(&version).copied();
                let mut uploads = self.uploads.borrow_mut();
                let upload = uploads.entry(version).or_insert_with(|| OpenUpload {
                    id: entry.id,
                    key: creating.expect("an upload that nobody began"),
                    parts: BTreeMap::new(),
                    busy: false,
                    ending: false,
                });
                (upload.busy, upload.ending) = (false, false);
                assert_eq!(
                    (upload.id, name(upload.key)),
                    (entry.id, entry.key.clone()),
                    "an upload"
                );
                let completed = self.now(upload.key).is_some_and(|(id, _)| id == version);
                assert!(!completed, "an upload that is open and completed");
            }
            let (parts, _) = shard.parts(BUCKET, &entry.key, &entry.id, 0, 1000).await?;
            let mut uploads = self.uploads.borrow_mut();
            let upload = uploads.get_mut(&version).expect("it is there");
            let mut slots = std::mem::take(&mut upload.parts);
            for part in parts {
                let id: u64 = part.part.etag.parse().expect("a number");
                let slot = slots.remove(&part.number).unwrap_or_default();
                let expected = [slot.now, slot.next].into_iter().flatten();
                let found = expected
                    .into_iter()
                    .find(|(content, size, _)| {
                        *content == id && *size as u64 == part.part.stream.size
                    })
                    .expect("a part that was sent");
                let now = Some((found.0, found.1, part.sequence));
                upload
                    .parts
                    .insert(part.number, PartSlot { now, next: None });
            }
            assert!(slots.values().all(|s| s.now.is_none()), "a part is lost");
        }
        self.uploads.borrow_mut().retain(|version, upload| {
            assert!(seen.contains(version) || upload.ending, "an upload is lost");
            seen.contains(version)
        });
        self.creating.borrow_mut().clear();
        Ok(())
    }

    /// The counts the store keeps are those of what is there.
    fn compare_counts(&self, shard: &Rc<Shard>) {
        let mut sum = crate::Tally::default();
        shard.tally().into_values().for_each(|t| sum += t);
        let slots = self.slots.borrow();
        let sizes = slots.iter().filter_map(|s| s.now);
        let sizes = sizes.map(|(id, _)| self.versions.borrow()[&id].size() as u64);
        let uploads = self.uploads.borrow();
        let parts = uploads.values().flat_map(|u| u.parts.values());
        let expected = crate::Tally {
            objects: sizes.clone().count() as u64,
            bytes: sizes.sum(),
            uploads: uploads.len() as u64,
            upload_bytes: parts.filter_map(|p| p.now).map(|(_, n, _)| n as u64).sum(),
        };
        assert_eq!(sum, expected, "counts");
    }

    /// Once nothing is under way: all space that no record names was given back.
    pub fn compare_space(&self, store: &Store) {
        let index = &store.core.index;
        let mut named: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
        let mut note = |e: Extent| named.entry(e.segment).or_default().push(e);
        let read = (|| {
            index.each::<Object>(Space::Objects, |_, o| o.extents().for_each(&mut note))?;
            index.each::<Part>(Space::Parts, |_, p| {
                p.stream.extents().iter().copied().for_each(&mut note)
            })?;
            index.each::<Upload>(Space::Uploads, |_, u| {
                u.key_extent.into_iter().for_each(&mut note)
            })?;
            recover::copies(index)?.extents().for_each(&mut note);
            Ok::<_, Error>(())
        })();
        read.expect("an index without damage");
        let sectors = named.values().flatten().map(|e| u64::from(e.sectors));
        assert_eq!(store.core.segments.live_sectors(), sectors.sum::<u64>());
        assert_eq!(index.space(Space::Freed).iter().count(), 0, "freed extents");
        let files = recover::segment_files(store.core.segments.dir()).expect("a list");
        for id in files.keys() {
            let path = segment::path(store.core.segments.dir(), *id);
            let extents = named.remove(id).unwrap_or_default();
            for (n, data) in data_sectors(&path).into_iter().enumerate() {
                let n = n as u32;
                let held = extents
                    .iter()
                    .any(|e| n >= e.start && n - e.start < e.sectors);
                assert!(!data || held, "sector {n} of segment {id:x} is nobody's");
            }
        }
        assert!(named.is_empty(), "segments {:x?} are gone", named.keys());
    }
}
