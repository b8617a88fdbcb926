//! How many objects and bytes each key protects.
//!
//! The committer counts, and writes what changed in the batch that changes it, so that no crash can part the two. Next to the
//! counts stands the commit they are right at: where it is not the index's last one, something wrote without counting, and
//! opening counts anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fjall::PersistMode;
use minicbor::{Decode, Encode};

use super::commit::meta;
use super::record::{self, Encryption, Object, Part, Upload, UploadId};
use super::{Index, Space, io, key};
use crate::error::{Error, Result};

/// What an object key is wrapped under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Under {
    /// The object is not sealed.
    #[n(0)]
    Nothing,
    /// A key that the customer sends with each request.
    #[n(1)]
    Customer,
    #[n(2)]
    Key {
        #[n(0)]
        source: String,
        #[n(1)]
        name: String,
        #[n(2)]
        version: u32,
    },
}

impl Under {
    pub fn of(encryption: Option<&Encryption>) -> Under {
        match encryption.map(|e| &e.kms) {
            None => Under::Nothing,
            Some(None) => Under::Customer,
            Some(Some(kms)) => Under::Key {
                source: kms.source.clone(),
                name: kms.name.clone(),
                version: kms.version,
            },
        }
    }
}

/// What stands under one key. Bytes are plaintext bytes; the parts of an open upload count under its key, apart from objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Tally {
    #[n(0)]
    pub objects: u64,
    #[n(1)]
    pub bytes: u64,
    #[n(2)]
    pub uploads: u64,
    #[n(3)]
    pub upload_bytes: u64,
}

impl Tally {
    fn object(size: u64) -> Tally {
        Tally {
            objects: 1,
            bytes: size,
            ..Tally::default()
        }
    }

    fn upload(bytes: u64) -> Tally {
        Tally {
            uploads: 1,
            upload_bytes: bytes,
            ..Tally::default()
        }
    }

    fn part(size: u64) -> Tally {
        Tally {
            upload_bytes: size,
            ..Tally::default()
        }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.uploads += other.uploads;
        self.upload_bytes += other.upload_bytes;
    }
}

/// The sums of what several drives have under each key.
pub fn sum(each: impl IntoIterator<Item = (Under, Tally)>) -> BTreeMap<Under, Tally> {
    let mut sum: BTreeMap<Under, Tally> = BTreeMap::new();
    for (under, tally) in each {
        *sum.entry(under).or_default() += tally;
    }
    sum
}

impl std::ops::SubAssign for Tally {
    /// Stops at zero: a count is no reason to stop a store.
    fn sub_assign(&mut self, other: Tally) {
        self.objects = self.objects.saturating_sub(other.objects);
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.uploads = self.uploads.saturating_sub(other.uploads);
        self.upload_bytes = self.upload_bytes.saturating_sub(other.upload_bytes);
    }
}

/// One entry of the keyspace `tallies`, under its number.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    #[n(0)]
    pub under: Under,
    #[n(1)]
    pub tally: Tally,
}

/// The committer's counts, and which of them the present batch has changed.
#[derive(Default)]
pub struct Tallies {
    all: HashMap<Under, (u32, Tally)>,
    next: u32,
    changed: BTreeSet<Under>,
}

impl Tallies {
    fn entry(&mut self, under: Under) -> &mut Tally {
        self.changed.insert(under.clone());
        let (_, tally) = self.all.entry(under).or_insert_with(|| {
            self.next += 1;
            (self.next, Tally::default())
        });
        tally
    }

    fn change(&mut self, encryption: Option<&Encryption>, less: Tally, more: Tally) {
        let tally = self.entry(Under::of(encryption));
        *tally += more;
        *tally -= less;
    }

    pub fn add_object(&mut self, object: &Object) {
        let more = Tally::object(object.size);
        self.change(object.encryption.as_ref(), Tally::default(), more);
    }

    pub fn remove_object(&mut self, object: &Object) {
        let less = Tally::object(object.size);
        self.change(object.encryption.as_ref(), less, Tally::default());
    }

    /// An open upload with parts of so many bytes.
    pub fn add_upload(&mut self, upload: &Upload, bytes: u64) {
        let more = Tally::upload(bytes);
        self.change(upload.encryption.as_ref(), Tally::default(), more);
    }

    pub fn remove_upload(&mut self, upload: &Upload, bytes: u64) {
        let less = Tally::upload(bytes);
        self.change(upload.encryption.as_ref(), less, Tally::default());
    }

    /// A part of so many bytes takes the place of one of `old` bytes.
    pub fn replace_part(&mut self, upload: &Upload, old: u64, new: u64) {
        self.change(
            upload.encryption.as_ref(),
            Tally::part(old),
            Tally::part(new),
        );
    }

    /// What changed since the last call: the number of each entry, and nothing where it goes.
    pub fn take_changed(&mut self) -> Vec<(Under, u32, Option<Tally>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .filter_map(|under| {
                let (number, tally) = *self.all.get(&under)?;
                let empty = tally == Tally::default();
                if empty {
                    self.all.remove(&under);
                }
                Some((under, number, (!empty).then_some(tally)))
            })
            .collect()
    }
}

pub fn entry_key(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

impl Index {
    /// The counts as of the last commit, counted anew where they are not those of the last commit. For opening.
    pub fn load_tallies(&self, last: u64) -> Result<Tallies> {
        let counted: Option<u64> = self.plain_meta(meta::COUNTED)?;
        let tallies = if counted == Some(last) {
            self.stored_tallies()?
        } else {
            self.count(last)?
        };
        let mut shown = self.tallies();
        for (under, (_, tally)) in &tallies.all {
            shown.insert(under.clone(), *tally);
        }
        drop(shown);
        Ok(tallies)
    }

    fn stored_tallies(&self) -> Result<Tallies> {
        let mut tallies = Tallies::default();
        for entry in self.space(Space::Tallies).iter() {
            let (entry, value) = entry.into_inner().map_err(io)?;
            if entry == key::MARK {
                continue;
            }
            let (_, read): (u64, Entry) =
                self.sealer.open(Space::Tallies.name(), &entry, &value)?;
            let number = <[u8; 4]>::try_from(&entry[..])
                .map(u32::from_be_bytes)
                .map_err(|_| Error::corrupt("a key", "index tallies"))?;
            tallies.next = tallies.next.max(number);
            tallies.all.insert(read.under, (number, read.tally));
        }
        Ok(tallies)
    }

    /// Counts every record and writes the counts.
    fn count(&self, last: u64) -> Result<Tallies> {
        let mut tallies = Tallies::default();
        self.each::<Object>(Space::Objects, |_, object| tallies.add_object(&object))?;
        let mut open: HashMap<UploadId, Upload> = HashMap::new();
        self.each::<Upload>(Space::Uploads, |entry, upload| {
            tallies.add_upload(&upload, 0);
            open.extend(key::upload_id(entry).map(|id| (id, upload)));
        })?;
        self.each::<Part>(Space::Parts, |entry, part| {
            // The parts of an upload that was completed are its object's.
            if let Some(upload) = key::part_upload(entry).and_then(|id| open.get(&id)) {
                tallies.replace_part(upload, 0, part.stream.size);
            }
        })?;

        let space = self.space(Space::Tallies);
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for entry in space.iter() {
            let entry = entry.key().map_err(io)?;
            if entry != key::MARK {
                batch.remove(space, entry);
            }
        }
        for (under, number, tally) in tallies.take_changed() {
            if let Some(tally) = tally {
                let at = entry_key(number);
                let entry = Entry { under, tally };
                let value = self.sealer.seal(Space::Tallies.name(), &at, last, &entry);
                batch.insert(space, at, value);
            }
        }
        let counted = record::encode(&last);
        batch.insert(self.space(Space::Meta), meta::COUNTED, counted);
        batch.commit().map_err(io)?;
        Ok(tallies)
    }

    /// Shows readers what a commit has changed.
    pub fn show_tallies(&self, changed: Vec<(Under, u32, Option<Tally>)>) {
        let mut shown = self.tallies();
        for (under, _, tally) in changed {
            match tally {
                Some(tally) => shown.insert(under, tally),
                None => shown.remove(&under),
            };
        }
    }

    /// What stands under each key, as of the last durable commit.
    pub fn tally(&self) -> BTreeMap<Under, Tally> {
        self.tallies().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Data, Mode, Place, Stream};
    use crate::secret::Secret;

    fn object(size: u64, encryption: Option<Encryption>) -> Object {
        Object {
            size,
            modified: 1,
            etag: String::new(),
            metadata: Default::default(),
            encryption,
            checksum: None,
            data: Data::Single(Stream {
                size,
                nonce: None,
                place: Place::Empty,
            }),
            key_extent: None,
            origin: None,
        }
    }

    fn put(index: &Index, key: &str, sequence: u64, object: &Object) {
        let at = key::object("b", key);
        let value = index
            .sealer
            .seal(Space::Objects.name(), &at, sequence, object);
        index.space(Space::Objects).insert(at, value).unwrap();
    }

    fn one(under: Under, objects: u64, bytes: u64) -> (Under, Tally) {
        let tally = Tally {
            objects,
            bytes,
            ..Tally::default()
        };
        (under, tally)
    }

    #[test]
    fn a_store_that_was_not_counted_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path(), &Secret::new([1; 32])).unwrap();
        let customer = Encryption {
            mode: Mode::SseC,
            iv: [0; 32],
            sealed_key: [0; 64],
            kms: None,
        };
        put(&index, "a", 1, &object(10, None));
        put(&index, "b", 2, &object(20, Some(customer)));
        index.load_tallies(2).unwrap();
        let both = BTreeMap::from([one(Under::Nothing, 1, 10), one(Under::Customer, 1, 20)]);
        assert_eq!(index.tally(), both);
        // The counts of commit 2 are there: nothing is counted again, which a wrong record shows.
        put(&index, "c", 3, &object(30, None));
        index.load_tallies(2).unwrap();
        assert_eq!(index.tally(), both);
        index.load_tallies(3).unwrap();
        let all = BTreeMap::from([one(Under::Nothing, 2, 40), one(Under::Customer, 1, 20)]);
        assert_eq!(index.tally(), all);
        assert_eq!(index.stored_tallies().unwrap().all.len(), 2);
    }
}
