//! Making what was replaced or deleted leave the disk.
//!
//! An old version of an entry can stand in memtables, in the journal, in tables, and in tables already replaced that an open
//! iterator still needs. `Index::compact` looks at each of these itself and returns once the old versions stand in none, because
//! the erasure of keys rests on it: a table is known by its file, a journal too, and an iterator by the number below which fjall
//! drops old versions.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fjall::PersistMode;

use super::{Index, Space, io, key};
use crate::datadir::sync_dir;
use crate::error::{Error, Result};
use crate::limits;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Index {
    /// Returns once the old version of every entry that was replaced or deleted before the call has left the disk, large values
    /// aside: their files are rewritten once a quarter of them is dead.
    ///
    /// fjall replaces a journal only past a size of its own choosing, so it is made to, with filler that is dropped right after;
    /// and it removes the old one only while every keyspace has a table as young as that journal, so each gets a mark.
    pub fn compact(&self) -> Result<()> {
        #[cfg(test)]
        if self.db.is_stand_in() {
            return Ok(());
        }
        let now = self.db.visible_seqno();
        let journals = self.journals()?;
        self.flush()?;
        let filler = vec![0u8; limits::INDEX_FILLER_BYTES];
        let pieces = limits::INDEX_JOURNAL_BYTES / limits::INDEX_FILLER_BYTES as u64 + 1;
        for _ in 0..pieces {
            // A count of journals would not tell: the old one can be gone before anybody looks.
            if self.journals()?.iter().any(|j| !journals.contains(j)) {
                break;
            }
            self.mark(&[Space::Meta], &filler)?;
        }
        self.mark(&Space::ALL, &[])?;

        let begun = Instant::now();
        while self.db.supervisor.snapshot_tracker.get_seqno_safe_to_gc() + 1 < now {
            wait(begun, "a listing holds an old state of the index")?;
            self.mark(&[Space::Meta], &[])?;
        }
        let tables = self.tables()?;
        for space in Space::ALL {
            self.space(space).major_compact().map_err(io)?;
        }
        // The first pass finds which values are dead, the second leaves them behind.
        self.space(Space::Inline).major_compact().map_err(io)?;

        let begun = Instant::now();
        loop {
            // Files of replaced tables and old journals go with a flush.
            self.mark(&Space::ALL, &[])?;
            if !journals.iter().chain(&tables).any(|file| file.exists()) {
                break;
            }
            wait(begun, "old files of the index do not go")?;
        }
        for file in journals.iter().chain(&tables) {
            sync_dir(file.parent().expect("a file lies in a directory"))?;
        }
        Ok(())
    }

    /// The journals: the one being written, and those whose entries are not all in tables.
    fn journals(&self) -> Result<Vec<PathBuf>> {
        let mut files = self.files(&self.dir)?;
        files.retain(|f| super::journal::is_journal(f));
        Ok(files)
    }

    /// The tables of the records that hold wrapped keys.
    fn tables(&self) -> Result<Vec<PathBuf>> {
        let mut files = self.files(&self.space(Space::Objects).path().join("tables"))?;
        files.extend(self.files(&self.space(Space::Uploads).path().join("tables"))?);
        Ok(files)
    }

    fn files(&self, dir: &std::path::Path) -> Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)
            .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
            .map_err(|e| Error::io("list", dir, e))
    }

    fn flush(&self) -> Result<()> {
        for space in Space::ALL {
            self.space(space).rotate_memtable_and_wait().map_err(io)?;
            // It does not wait for a flush that somebody else has asked for.
            while self.space(space).sealed_memtable_count() > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Writes something of no meaning and flushes it.
    fn mark(&self, spaces: &[Space], bytes: &[u8]) -> Result<()> {
        // Synced, so that a crash never tears more than one batch of a journal.
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for space in spaces {
            batch.insert(self.space(*space), key::MARK, bytes);
        }
        batch.commit().map_err(io)?;
        self.flush()
    }
}

/// Pauses; an error once that has gone on for too long.
fn wait(begun: Instant, what: &'static str) -> Result<()> {
    if begun.elapsed() > limits::COMPACT_WAIT_MAX {
        return Err(Error::Overloaded { what });
    }
    std::thread::sleep(LOOK_AGAIN);
    Ok(())
}
