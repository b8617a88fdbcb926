//! The data directories of one store, its *drives*: which belong together, which are missing, and what stands in all of them.
//!
//! Every directory's superblock has the id of the store, the wrapped store key, and the directory's number among all of them. So they
//! may be given in any order, and one of another store, one given twice, or a wrong number of them is refused.
//!
//! - A new store is made in two rounds: superblocks that say *unfinished* in all directories, and then those that do not. What a
//!   crash leaves half made has only unfinished ones, holds nothing, and is made again by the next start.
//! - A directory without a superblock, where others of the store have one, is missing: it is an empty mount point, or another
//!   disk. Nothing is ever written into it.
//! - Where wrappings of the store key differ, the one that was made last holds, and replaces the others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::datadir::{DataDir, Seat, Superblock};
use crate::drives;
use crate::error::{Error, Result};
use crate::limits::DRIVES_MAX;

/// The directories of one store, by number, those held that are there.
#[derive(Debug)]
pub struct DataDirs {
    drives: Vec<Result<DataDir, Missing>>,
}

/// A directory of a store that cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Which one it is; where several are missing, all that it may be.
    pub name: Arc<str>,
    pub why: String,
}

impl Missing {
    pub fn error(&self) -> Error {
        Error::DriveMissing(Arc::clone(&self.name))
    }
}

impl DataDirs {
    /// Takes all directories of a store, or makes those of a new one. Those that are missing are left out, as long as one is there.
    pub fn lock(paths: &[PathBuf]) -> Result<DataDirs> {
        Self::take(paths, true)
    }

    /// As [`DataDirs::lock`], where fewer than all may be given, for commands.
    pub fn lock_some(paths: &[PathBuf]) -> Result<DataDirs> {
        Self::take(paths, false)
    }

    fn take(paths: &[PathBuf], all: bool) -> Result<DataDirs> {
        check_paths(paths)?;
        let looks: Vec<Result<Option<Superblock>>> =
            paths.iter().map(|path| DataDir::look(path)).collect();
        let mut seats: Vec<(&PathBuf, &Superblock)> = Vec::new();
        for (path, look) in paths.iter().zip(&looks) {
            if let Ok(Some(superblock)) = look {
                seats.push((path, superblock));
            }
        }
        let Some((first, of_store)) = seats.first().copied() else {
            return Self::take_new(paths, looks);
        };
        check_seats(&seats)?;
        let of = usize::from(of_store.seat.of);
        if paths.len() > of || (all && paths.len() < of) {
            return Err(Error::Unusable(match of {
                1 => format!(
                    "{} is a store of one directory, and {} are given. Give it alone; a store of several has to be made new.",
                    first.display(),
                    paths.len()
                ),
                of => format!(
                    "{} is one of the {of} directories of its store, and {} are given: give all {of}, in any order.",
                    first.display(),
                    paths.len()
                ),
            }));
        }
        if seats
            .iter()
            .all(|(_, superblock)| superblock.seat.unfinished)
        {
            return Self::take_half_made(paths, &looks);
        }
        Self::take_present(paths, &looks, of)
    }

    /// Directories where no store was ever made.
    fn take_new(paths: &[PathBuf], looks: Vec<Result<Option<Superblock>>>) -> Result<DataDirs> {
        looks.into_iter().collect::<Result<Vec<_>>>()?;
        Self::take_each(paths)
    }

    /// Directories of a store whose making a crash broke off.
    fn take_half_made(paths: &[PathBuf], looks: &[Result<Option<Superblock>>]) -> Result<DataDirs> {
        for (path, look) in paths.iter().zip(looks) {
            // The first thing that a start makes in each.
            if !matches!(look, Ok(Some(_))) && !path.join("lock").exists() {
                return Err(Error::Unusable(format!(
                    "The store was being made when its first start ended, and {} is not one of its directories, or is not mounted. \
                     Mount it; or empty the others, and make the store anew.",
                    path.display()
                )));
            }
        }
        Self::take_each(paths)
    }

    /// All of them, in the order given.
    fn take_each(paths: &[PathBuf]) -> Result<DataDirs> {
        let drives = paths.iter().map(|path| DataDir::lock(path).map(Ok));
        Ok(DataDirs {
            drives: drives.collect::<Result<_>>()?,
        })
    }

    fn take_present(
        paths: &[PathBuf],
        looks: &[Result<Option<Superblock>>],
        of: usize,
    ) -> Result<DataDirs> {
        let mut drives: Vec<Option<DataDir>> = (0..of).map(|_| None).collect();
        let mut away: Vec<(String, String)> = Vec::new();
        for (path, look) in paths.iter().zip(looks) {
            let name = path.display().to_string();
            let superblock = match look {
                Ok(Some(superblock)) => superblock,
                Ok(None) => {
                    let why = "there is no superblock in it; is it mounted?".to_owned();
                    away.push((name, why));
                    continue;
                }
                Err(e) => {
                    away.push((name, e.to_string()));
                    continue;
                }
            };
            match DataDir::lock(path) {
                Ok(held) => drives[usize::from(superblock.seat.number)] = Some(held),
                Err(e @ Error::InUse { .. }) => return Err(e),
                Err(e) => away.push((name, e.to_string())),
            }
        }
        let names: Vec<&str> = away.iter().map(|(name, _)| name.as_str()).collect();
        let whys: Vec<String> = away
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        let missing = Missing {
            name: match names.is_empty() {
                true => "a directory of the store that was not named".into(),
                false => names.join(" or ").into(),
            },
            why: whys.join("; "),
        };
        if drives.iter().all(Option::is_none) {
            return Err(Error::Unusable(missing.why));
        }
        let drives = drives
            .into_iter()
            .map(|held| held.ok_or_else(|| missing.clone()));
        let dirs = DataDirs {
            drives: drives.collect(),
        };
        dirs.finish()?;
        Ok(dirs)
    }

    /// Marks those as finished that a crash left otherwise.
    fn finish(&self) -> Result<()> {
        for dir in self.present() {
            if let Some(mut superblock) = dir.superblock()?
                && superblock.seat.unfinished
            {
                superblock.seat.unfinished = false;
                dir.write_superblock(&superblock)?;
            }
        }
        Ok(())
    }

    /// All drives by number.
    pub fn all(&self) -> &[Result<DataDir, Missing>] {
        &self.drives
    }

    pub fn present(&self) -> impl Iterator<Item = &DataDir> {
        self.drives.iter().flatten()
    }

    /// The directories that are there.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.present().map(|dir| dir.path().to_owned()).collect()
    }

    /// The first directory that is there.
    pub fn first(&self) -> &DataDir {
        self.present().next().expect("one is there")
    }

    pub fn missing(&self) -> impl Iterator<Item = &Missing> {
        self.drives.iter().filter_map(|drive| drive.as_ref().err())
    }

    /// The drive that an object lies on.
    pub fn of(&self, bucket: &str, key: &str) -> Result<&DataDir> {
        let number = match (self.drives.len(), self.superblock()?) {
            (1, _) | (_, None) => 0,
            (several, Some(s)) => drives::place(&s.store_id, several, bucket, key),
        };
        self.drives[number].as_ref().map_err(Missing::error)
    }

    /// Puts an empty directory in the place of the only drive that is missing. What lay on that one is lost, and it is refused
    /// when it comes back.
    pub fn replace_missing(&self, path: &Path) -> Result<()> {
        let refuse = |why: String| Err(Error::Unusable(why));
        let numbered = self.drives.iter().zip(0u16..);
        let mut missing = numbered.filter(|(drive, _)| drive.is_err());
        let (Some((_, number)), None) = (missing.next(), missing.next()) else {
            return refuse(format!(
                "give all {} directories of the store but the one that is lost",
                self.drives.len()
            ));
        };
        let Some(mut superblock) = self.superblock()? else {
            return refuse(format!("no store in {}", self.first().path().display()));
        };
        let holds = |path| std::fs::read_dir(path).is_ok_and(|mut names| names.next().is_some());
        if holds(path) {
            return refuse(format!("{} is not empty", path.display()));
        }
        superblock.seat.number = number;
        DataDir::lock(path)?.create_as(&superblock)
    }

    /// Refuses what needs every drive.
    pub fn need_all(&self) -> Result<()> {
        self.missing().next().map_or(Ok(()), |m| Err(m.error()))
    }

    /// What the store says of itself; none where it is not made yet.
    pub fn superblock(&self) -> Result<Option<Superblock>> {
        let mut last: Option<Superblock> = None;
        for dir in self.present() {
            if let Some(superblock) = dir.superblock()?
                && !superblock.seat.unfinished
                && last
                    .as_ref()
                    .is_none_or(|l| l.wrapping < superblock.wrapping)
            {
                last = Some(superblock);
            }
        }
        Ok(last)
    }

    /// Makes a store. It exists once one of the superblocks says that all are there.
    pub fn create(&self, store_id: [u8; 16], wrapped_store_key: &[u8]) -> Result<()> {
        self.need_all()?;
        if let [Ok(dir)] = &self.drives[..] {
            return dir.create(store_id, wrapped_store_key);
        }
        let of = u16::try_from(self.drives.len()).expect("bounded");
        for unfinished in [true, false] {
            for (dir, number) in self.present().zip(0..) {
                let seat = Seat {
                    number,
                    of,
                    unfinished,
                };
                dir.create_as(&Superblock {
                    store_id,
                    wrapped_store_key: wrapped_store_key.to_vec(),
                    wrapping: 0,
                    seat,
                })?;
            }
        }
        Ok(())
    }

    /// Puts another wrapping of the store key in the place of the present one, in all directories; see
    /// [`DataDir::replace_store_key`]. After a crash between two of them the newer one holds.
    pub fn replace_store_key(&self, wrapped_store_key: &[u8]) -> Result<()> {
        let wrapping = self.superblock()?.map_or(0, |s| s.wrapping) + 1;
        self.present()
            .try_for_each(|dir| dir.replace_store_key(wrapped_store_key, wrapping))
    }

    /// Overwrites and removes wrappings of the store key that were replaced, also those in directories that were away then.
    pub fn forget_old_wrapping(&self) -> Result<()> {
        self.present().try_for_each(DataDir::forget_old_wrapping)?;
        let Some(last) = self.superblock()? else {
            return Ok(());
        };
        for dir in self.present() {
            if dir
                .superblock()?
                .is_some_and(|own| own.wrapping < last.wrapping)
            {
                dir.replace_store_key(&last.wrapped_store_key, last.wrapping)?;
            }
        }
        Ok(())
    }
}

fn check_paths(paths: &[PathBuf]) -> Result<()> {
    if paths.is_empty() || paths.len() > DRIVES_MAX {
        return Err(Error::Unusable(format!(
            "a store has 1 to {DRIVES_MAX} directories, and {} are given",
            paths.len()
        )));
    }
    // Those that are not there yet are told apart by their names.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut seen: Vec<PathBuf> = Vec::new();
    for path in paths {
        let real = real(path);
        if seen.contains(&real) {
            return Err(Error::Unusable(format!(
                "{} is given twice",
                path.display()
            )));
        }
        seen.push(real);
    }
    Ok(())
}

/// Whether the directories are those of one store, each once.
fn check_seats(seats: &[(&PathBuf, &Superblock)]) -> Result<()> {
    let Some(((first, of_first), others)) = seats.split_first() else {
        return Ok(());
    };
    for (path, superblock) in others {
        if superblock.store_id != of_first.store_id || superblock.seat.of != of_first.seat.of {
            return Err(Error::Unusable(format!(
                "{} and {} belong to different stores: give the directories of one.",
                first.display(),
                path.display()
            )));
        }
    }
    for (at, (path, superblock)) in seats.iter().enumerate() {
        let same =
            |(_, other): &&(&PathBuf, &Superblock)| other.seat.number == superblock.seat.number;
        if let Some((other, _)) = seats[..at].iter().find(same) {
            return Err(Error::Unusable(format!(
                "{} and {} are the same directory of their store, so one is a copy of the other: take it away.",
                other.display(),
                path.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home {
        _home: tempfile::TempDir,
        paths: Vec<PathBuf>,
    }

    impl Home {
        fn new() -> Home {
            let home = tempfile::tempdir().unwrap();
            let paths = ["a", "b", "c"].map(|name| home.path().join(name)).to_vec();
            Home { _home: home, paths }
        }

        fn made() -> Home {
            let home = Home::new();
            let dirs = DataDirs::lock(&home.paths).unwrap();
            assert_eq!(dirs.superblock().unwrap(), None);
            dirs.create([7; 16], b"wrapped").unwrap();
            home
        }
    }

    fn refused(paths: &[PathBuf]) -> String {
        let e = DataDirs::lock(paths).unwrap_err();
        assert!(matches!(e, Error::Unusable(_)), "{e:?}");
        e.to_string()
    }

    fn names(dirs: &DataDirs) -> String {
        let name = |dir: &Result<DataDir, Missing>| match dir {
            Ok(dir) => dir.path().file_name().unwrap().to_str().unwrap().to_owned(),
            Err(_) => "-".to_owned(),
        };
        dirs.all().iter().map(name).collect()
    }

    #[test]
    fn directories_are_known_in_any_order_and_others_refused() {
        let home = Home::made();
        let [a, b, c] = &home.paths[..] else { panic!() };
        let turned = [c.clone(), a.clone(), b.clone()];
        let dirs = DataDirs::lock(&turned).unwrap();
        assert_eq!(names(&dirs), "abc");
        assert!(matches!(
            DataDirs::lock(&turned),
            Err(Error::InUse { path }) if path.ends_with("/c")
        ));
        drop(dirs);

        let two = refused(&[a.clone(), b.clone()]);
        assert!(
            two.contains("one of the 3") && two.contains("2 are given"),
            "{two}"
        );
        let twice = refused(&[a.clone(), b.clone(), a.clone()]);
        assert!(twice.contains("/a is given twice"), "{twice}");
        let other = Home::new();
        let dirs = DataDirs::lock(&other.paths).unwrap();
        dirs.create([8; 16], b"wrapped").unwrap();
        drop(dirs);
        let stranger = refused(&[a.clone(), b.clone(), other.paths[2].clone()]);
        assert!(stranger.contains("different stores"), "{stranger}");
        let alone = a.with_file_name("alone");
        let dir = DataDir::lock(&alone).unwrap();
        dir.create([9; 16], b"wrapped").unwrap();
        drop(dir);
        let more = refused(&[alone, b.join("new")]);
        assert!(more.contains("a store of one directory"), "{more}");

        let copy = c.with_file_name("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(a.join("superblock"), copy.join("superblock")).unwrap();
        let doubled = refused(&[a.clone(), b.clone(), copy]);
        assert!(doubled.contains("copy of the other"), "{doubled}");
    }

    #[test]
    fn nothing_is_written_into_a_mount_point_without_its_disk() {
        let home = Home::made();
        let b = &home.paths[1];
        let elsewhere = b.with_file_name("elsewhere");
        std::fs::rename(b, &elsewhere).unwrap();
        for there in [false, true] {
            if there {
                std::fs::create_dir(b).unwrap();
            }
            let dirs = DataDirs::lock(&home.paths).unwrap();
            assert_eq!(names(&dirs), "a-c");
            let missing = dirs.missing().next().unwrap();
            assert!(missing.name.ends_with("/b"), "{missing:?}");
            assert!(matches!(dirs.need_all(), Err(Error::DriveMissing(_))));
            drop(dirs);
            assert_eq!(b.exists(), there);
        }
        assert_eq!(std::fs::read_dir(b).unwrap().count(), 0);
        std::fs::remove_dir(b).unwrap();
        std::fs::rename(&elsewhere, b).unwrap();
        assert_eq!(names(&DataDirs::lock(&home.paths).unwrap()), "abc");
        let some = DataDirs::lock_some(&home.paths[2..]).unwrap();
        assert_eq!(names(&some), "--c");
    }

    #[test]
    fn an_empty_directory_takes_the_place_of_a_lost_one() {
        let home = Home::made();
        let [a, b, c] = &home.paths[..] else { panic!() };
        let new = b.with_file_name("new");
        let all = DataDirs::lock_some(&home.paths).unwrap();
        assert!(all.replace_missing(&new).is_err(), "none is missing");
        drop(all);
        let one = DataDirs::lock_some(std::slice::from_ref(a)).unwrap();
        assert!(one.replace_missing(&new).is_err(), "two are missing");
        drop(one);
        let two = DataDirs::lock_some(&[c.clone(), a.clone()]).unwrap();
        assert!(two.replace_missing(b).is_err(), "it is not empty");
        two.replace_missing(&new).unwrap();
        drop(two);
        let dirs = DataDirs::lock(&[c.clone(), new.clone(), a.clone()]).unwrap();
        assert_eq!(names(&dirs), "anewc");
        drop(dirs);
        let back = refused(&[a.clone(), b.clone(), new]);
        assert!(back.contains("the same directory"), "{back}");
    }

    #[test]
    fn a_store_that_was_being_made_is_made_again() {
        let mark = |dir: &DataDir, unfinished: bool| {
            let mut superblock = dir.superblock().unwrap().unwrap();
            superblock.seat.unfinished = unfinished;
            dir.write_superblock(&superblock).unwrap();
        };
        let home = Home::made();
        let dirs = DataDirs::lock(&home.paths).unwrap();
        // In the first round.
        dirs.present().for_each(|dir| mark(dir, true));
        std::fs::remove_file(home.paths[2].join("superblock")).unwrap();
        drop(dirs);
        let dirs = DataDirs::lock(&home.paths).unwrap();
        assert_eq!(
            (names(&dirs).as_str(), dirs.superblock().unwrap()),
            ("abc", None)
        );
        dirs.create([8; 16], b"again").unwrap();
        // In the second.
        let rest = dirs.present().skip(1);
        rest.for_each(|dir| mark(dir, true));
        drop(dirs);
        let dirs = DataDirs::lock(&home.paths).unwrap();
        assert_eq!(dirs.superblock().unwrap().unwrap().store_id, [8; 16]);
        for dir in dirs.present() {
            assert!(!dir.superblock().unwrap().unwrap().seat.unfinished);
        }
        // In the first, and then a disk went.
        dirs.present().for_each(|dir| mark(dir, true));
        drop(dirs);
        std::fs::remove_dir_all(&home.paths[1]).unwrap();
        std::fs::create_dir(&home.paths[1]).unwrap();
        assert!(refused(&home.paths).contains("/b is not one of its directories"));
    }

    #[test]
    fn the_newest_wrapping_holds_everywhere() {
        let home = Home::made();
        let b = home.paths[1].clone();
        let elsewhere = b.with_file_name("elsewhere");
        std::fs::rename(&b, &elsewhere).unwrap();
        let dirs = DataDirs::lock(&home.paths).unwrap();
        dirs.replace_store_key(b"newer").unwrap();
        drop(dirs);
        std::fs::rename(&elsewhere, &b).unwrap();
        let dirs = DataDirs::lock(&home.paths).unwrap();
        dirs.forget_old_wrapping().unwrap();
        for dir in dirs.present() {
            let superblock = dir.superblock().unwrap().unwrap();
            assert_eq!(superblock.wrapped_store_key, b"newer");
        }
    }
}
