//! `strongroom recover`: an index is made anew from segments, and from what is left of the old one.
//!
//! What is lost goes to standard output, one object a line; everything else goes to standard error.

use std::io::{Write, stdout};

use clap::Args;
use strongroom_engine::secret::Secret;
use strongroom_engine::{DataDir, Finding, rebuild};

use super::offline::{Offline, Place, name};

/// `strongroom recover`
#[derive(Debug, Args)]
#[command(after_help = "\
Keeps every intact record of the present index and adds what the segments hold; an index that is whole is left as it is.
The new index is made beside the old one, which is kept under the name index.before-recover-TIME. Nothing is asked, and no
object's data is changed. Standard output has one line for each object that is lost: BUCKET/KEY: why.

Small objects, buckets and deletions reach the segments once a minute, and when a server ends in order: where the index
itself is gone, those of the last minute may be missing, and objects deleted in it may come back.")]
pub struct Recover {
    #[command(flatten)]
    place: Place,
}

pub fn run(command: &Recover) -> Result<(), String> {
    let store = Offline::open(&command.place.data_dirs)?;
    let several = store.dirs.present().count() > 1;
    for dir in store.dirs.present() {
        if several {
            eprintln!("{}", dir.path().display());
        }
        recover(dir, &store.store_key)?;
    }
    Ok(())
}

fn recover(dir: &DataDir, store_key: &Secret) -> Result<(), String> {
    let say = |finding: Finding<'_>| match finding {
        Finding::Lost { bucket, key, why } => {
            // A reader that went away is no reason to stop half-way.
            let _ = writeln!(stdout(), "{}: {why}", name(bucket, key));
        }
        Finding::Note(what) => eprintln!("note: {what}"),
    };
    let found = rebuild(dir, store_key, &say).map_err(|e| e.to_string())?;
    let holds = format!(
        "{} buckets, {} objects, {} open uploads",
        found.buckets, found.objects, found.uploads
    );
    if found.was_whole {
        eprintln!("the index is whole and was left as it is: {holds}");
        return Ok(());
    }
    eprintln!(
        "the new index has {holds}; {} objects and parts are known by the segments alone",
        found.from_segments
    );
    if found.lost > 0 {
        eprintln!("{} findings of loss", found.lost);
    }
    if let Some(seconds) = found.removals_unknown {
        eprintln!(
            "the old index was not there, or older than the segments: small objects of up to {seconds} s before the end may be missing, \
             and objects deleted in that time may have come back"
        );
    }
    match found.kept {
        Some(path) => eprintln!("the old index is kept in {}", path.display()),
        None => eprintln!("there was no old index"),
    }
    Ok(())
}
