//! `strongroom verify`: is every stored byte what was written, and sealed?
//!
//! Names of rotten objects go to standard output, one a line; everything else goes to standard error.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use strongroom_engine::{Event, Verified, verify};
use strongroom_kms::is_keystore_file;

use super::offline::{Offline, Place, name, size};
use crate::{admin, config, root_key, tls};

/// `strongroom verify`
#[derive(Debug, Args)]
#[command(after_help = "\
Reads every record and every stored byte, and changes nothing. Objects whose keys are not at hand (a customer's, a key
server's) are checked but for their tags. Standard output has one line for each rotten object: BUCKET/KEY.
The exit status is 0 only if nothing is wrong.

Keys at KES servers, or a static key, are found by the variables that `strongroom serve --help` names
(STRONGROOM_KMS_KES_ENDPOINT and so on, or MINIO_KMS_…).")]
pub struct Verify {
    #[command(flatten)]
    place: Place,
}

pub fn run(command: &Verify) -> Result<(), String> {
    let store = Offline::open(&command.place.data_dirs)?;
    let several = store.dirs.present().count() > 1;
    let (mut rotten, mut damage) = (0, 0);
    for dir in store.dirs.present() {
        if several {
            eprintln!("{}", dir.path().display());
        }
        let screen = Screen::shared();
        let say = |event: Event<'_>| screen.lock().tell(&event);
        let found = verify(dir, &store.store_key, &store.keys, &is_beside, &say);
        screen.lock().wipe();
        let found = found.map_err(|e| e.to_string())?;
        eprint!("{}", summary(&found));
        if !found.is_sound() {
            rotten += found.rotten;
            damage += found.damage;
        }
    }
    match (rotten, damage) {
        (0, 0) => Ok(()),
        _ => Err(format!("{rotten} rotten objects, {damage} other findings")),
    }
}

/// Whether a file of this name in a data directory is the store's, though not the engine's. Each may be a draft.
fn is_beside(name: &str) -> bool {
    let name = name.trim_end_matches(".new");
    let others = [config::CREDENTIALS, tls::DIRECTORY, admin::SOCKET];
    is_keystore_file(name) || root_key::is_file(name) || others.contains(&name)
}

fn summary(found: &Verified) -> String {
    let mut out = format!(
        "{} objects and {} open uploads, {} read\n  {} objects opened with their keys, {} checked but for their tags: their keys are not at hand\n",
        found.objects,
        found.uploads,
        size(found.bytes),
        found.opened,
        found.not_at_hand,
    );
    if found.unsealed > 0 {
        out += &format!(
            "  {} objects are not sealed, as was asked for\n",
            found.unsealed
        );
    }
    out += &format!(
        "segments: {} in use, {} freed, {} of uploads that were never acknowledged, {} sealed and not in use\n\
         index: {}, other files of the store: {}, files that are not the store's: {}\n",
        size(found.named_bytes),
        size(found.freed_bytes),
        size(found.unsettled_bytes),
        size(found.orphan_bytes),
        size(found.index_bytes),
        size(found.other_bytes),
        size(found.foreign_bytes),
    );
    out
}

/// Where events are shown: with a bar on a terminal, as lines elsewhere.
struct Screen {
    terminal: bool,
    shown: Option<Instant>,
    tenths: u64,
}

const REFRESH: Duration = Duration::from_millis(100);
const BAR: usize = 40;

impl Screen {
    fn shared() -> Lockable {
        Lockable(Mutex::new(Screen {
            terminal: stderr().is_terminal(),
            shown: None,
            tenths: 0,
        }))
    }

    fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Rotten { bucket, key, why } => {
                self.wipe();
                let name = name(bucket, key);
                // A reader that went away is no reason to stop: the exit status counts.
                let _ = writeln!(stdout(), "{name}");
                eprintln!("rotten: {name}: {why}");
            }
            Event::Unsealed { bucket, key } => {
                self.wipe();
                eprintln!("not sealed: {}", name(bucket, key));
            }
            Event::Damage(what) => {
                self.wipe();
                eprintln!("damaged: {what}");
            }
            Event::Note(what) => {
                self.wipe();
                eprintln!("note: {what}");
            }
            Event::Progress { done, total } => self.progress(*done, *total),
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        let share = (done as f64 / total.max(1) as f64).min(1.0);
        if self.terminal {
            if self.shown.is_some_and(|at| at.elapsed() < REFRESH) {
                return;
            }
            self.shown = Some(Instant::now());
            let full = (share * BAR as f64) as usize;
            eprint!(
                "\r[{}{}] {:3.0} %  {} of {} ",
                "#".repeat(full),
                "-".repeat(BAR - full),
                share * 100.0,
                size(done.min(total)),
                size(total)
            );
        } else if (share * 10.0) as u64 > self.tenths {
            self.tenths = (share * 10.0) as u64;
            eprintln!("{} % read", self.tenths * 10);
        }
    }

    fn wipe(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r{}\r", " ".repeat(BAR + 40));
        }
    }
}

struct Lockable(Mutex<Screen>);

impl Lockable {
    fn lock(&self) -> std::sync::MutexGuard<'_, Screen> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
