//! `strongroom status`: what a store holds and takes, from its running server or from the store itself.

use std::fmt::Write as _;

use super::offline::scaled;
use super::store::Store;
use crate::admin::{Answer, Request, StoreStatus};

pub fn run(store: Store) -> Result<(), String> {
    match store.perform(Request::StoreStatus)? {
        Answer::Store(status) => super::print(&block(&status)),
        _ => Err("the server's answer is not understood".into()),
    }
}

fn block(status: &StoreStatus) -> String {
    let mut out = String::new();
    let keys = match status.keys {
        Some(keys) => keys.to_string(),
        None => "unknown, the keystore is sealed".to_owned(),
    };
    let words = [
        ("server", status.server.clone()),
        ("buckets", status.buckets.to_string()),
        ("objects", status.objects.to_string()),
        ("uploads", status.uploads.to_string()),
        ("keys", keys),
    ];
    let sizes = [
        ("stored", status.stored, "what the objects hold"),
        (
            "live",
            status.live,
            "what they take on disk, their index included",
        ),
        ("dead", status.dead, "on its way back to the file system"),
        ("free", status.free, "room for writes"),
        (
            "reserve",
            status.reserve,
            "kept free, so that deleting works on a full disk",
        ),
    ];
    for (name, value) in words {
        writeln!(out, "{name}: {value}").expect("in memory");
    }
    for (name, bytes, what) in sizes {
        writeln!(out, "{name}: {bytes} bytes ({}; {what})", scaled(bytes)).expect("in memory");
    }
    for drive in &status.drives {
        let name = &drive.directory;
        match drive.missing {
            true => writeln!(out, "drive: {name}: missing"),
            false => writeln!(
                out,
                "drive: {name}: {} objects of {}, live {}, free {}",
                drive.objects,
                scaled(drive.stored),
                scaled(drive.live),
                scaled(drive.free)
            ),
        }
        .expect("in memory");
    }
    out
}
