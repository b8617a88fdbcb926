//! A store on three drives: any order, one of them away, and back again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use strongroom_tests::cli::{command, fail, on, succeed};
use strongroom_tests::client::{Client, Request};
use strongroom_tests::data::Pattern;
use strongroom_tests::scan::Needles;
use strongroom_tests::{Config, binary, disk};

const BUCKET: &str = "drives";
const LATER: &str = "made-while-one-was-away";
const CANARY: &[u8] = b"a canary that lies in clear on no drive";

struct Home {
    home: tempfile::TempDir,
    dirs: Vec<PathBuf>,
}

impl Home {
    fn new() -> Home {
        let home = tempfile::tempdir_in(binary::scratch()).expect("scratch");
        let dirs = (1..=3).map(|n| home.path().join(format!("drive{n}")));
        Home {
            dirs: dirs.collect(),
            home,
        }
    }

    fn config(&self) -> Config {
        Config::http().data_dirs(&self.dirs)
    }
}

/// Keys with the sizes of their objects: in the index and in segments.
fn objects() -> Vec<(String, usize)> {
    let size = |i: usize| {
        if i.is_multiple_of(5) { i * 300 } else { i * 11 }
    };
    (0..300)
        .map(|i| (format!("dir{}/object {i}", i % 7), size(i)))
        .collect()
}

fn body(key: &str, size: usize) -> Vec<u8> {
    let mut body = Pattern::named(key).bytes(size);
    body.extend_from_slice(CANARY);
    body
}

fn put(client: &mut Client, key: &str, size: usize) -> u16 {
    let stored = client.put(BUCKET, key, &body(key, size));
    stored.expect("an answer").status()
}

/// The keys of objects that answer 503; all others have to be right.
fn lost(client: &mut Client, names: &str) -> BTreeSet<String> {
    let mut lost = BTreeSet::new();
    for (key, size) in objects() {
        let got = client.get(BUCKET, &key).expect("an answer");
        if got.status() == 503 {
            assert!(got.text().contains(names), "{}", got.text());
            let head = client.head(BUCKET, &key).expect("an answer");
            assert_eq!(head.status(), 503);
            lost.insert(key);
            continue;
        }
        assert!(got.expect(200).body == body(&key, size), "{key}");
    }
    lost
}

fn all_listed(client: &mut Client, expected: usize) {
    let listed = client.list(BUCKET).expect("a listing");
    let keys: Vec<_> = listed.iter().map(|o| o.key.clone()).collect();
    assert!(keys.is_sorted(), "in byte order");
    assert_eq!(keys.len(), expected);
}

fn verified(dirs: &[&Path]) {
    let mut verify = command(&["verify"]);
    verify.args(dirs);
    assert_eq!(succeed(&mut verify), "", "nothing is rotten");
}

#[test]
fn a_drive_goes_and_comes_back() {
    let home = Home::new();
    let [first, second, third] = &home.dirs[..] else {
        panic!("three")
    };
    let mut server = home.config().start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    for (key, size) in objects() {
        assert_eq!(put(&mut client, &key, size), 200);
    }
    all_listed(&mut client, 300);
    // Copies go from drive to drive.
    for (key, size) in objects().into_iter().take(20) {
        let source = format!("/{BUCKET}/{}", key.replace(' ', "%20"));
        let request = Request {
            method: "PUT",
            bucket: BUCKET,
            key: &format!("copy of {key}"),
            headers: &[("x-amz-copy-source", &source)],
            ..Default::default()
        };
        client
            .request(&request, &[])
            .expect("an answer")
            .expect(200);
        let got = client.get(BUCKET, request.key).expect("an answer");
        assert!(got.expect(200).body == body(&key, size), "{key}");
    }
    all_listed(&mut client, 320);
    succeed(&mut on(second, &["key", "create", "doomed"]));
    let status = succeed(&mut on(third, &["status"]));
    assert_eq!(status.matches("drive: ").count(), 3, "{status}");
    for dir in &home.dirs {
        for name in ["superblock", "keystore/keys", "root.key"] {
            assert!(dir.join(name).exists(), "{name} in {}", dir.display());
        }
    }

    // In another order, after a crash.
    server.kill();
    server.configure(|config| config.data_dirs(&[third.clone(), first.clone(), second.clone()]));
    server.start_again();
    let mut client = server.client();
    assert!(lost(&mut client, "").is_empty());
    all_listed(&mut client, 320);
    server.terminate();

    // Each in turn is away, among them the one that tells of buckets.
    let mut seen = BTreeSet::new();
    for at in [1, 2, 0] {
        disk::take_away(&home.dirs[at]);
        server.start_again();
        let mut client = server.client();
        let name = home.dirs[at].display().to_string();
        assert!(server.log().contains("a drive is left out"), "said loudly");
        let gone = lost(&mut client, &name);
        assert!((50..150).contains(&gone.len()), "{} of 300", gone.len());
        let is_gone = |key: &str| gone.contains(key);
        let listing = client.send("GET", BUCKET, "", "list-type=2", &[]);
        let listing = listing.expect("an answer").expect(503);
        assert!(listing.text().contains(&name), "{}", listing.text());
        let delete = client.send("DELETE", BUCKET, "", "", &[]);
        delete.expect("an answer").expect(503);
        for (key, size) in objects() {
            let expected = if is_gone(&key) { 503 } else { 200 };
            assert_eq!(put(&mut client, &key, size), expected, "{key}");
        }
        let here = &home.dirs[(at + 1) % 3];
        let status = succeed(&mut on(here, &["status"]));
        assert!(
            status.contains(&format!("drive: {name}: missing")),
            "{status}"
        );
        if at == 1 {
            client.create_bucket(LATER).expect("an answer").expect(200);
            succeed(&mut on(
                here,
                &["key", "delete", "doomed", "--confirm", "doomed"],
            ));
        }
        server.terminate();
        disk::bring_back(&home.dirs[at]);
        seen.extend(gone);
    }
    assert_eq!(seen.len(), 300, "each object is on one drive");

    server.start_again();
    let mut client = server.client();
    assert!(lost(&mut client, "").is_empty());
    all_listed(&mut client, 320);
    client.put(LATER, "x", b"x").expect("an answer").expect(200);
    let keys = succeed(&mut on(second, &["key", "list"]));
    assert!(!keys.contains("doomed"), "{keys}");
    server.terminate();

    verified(&[first]);
    verified(&[third, first, second]);
    let mut needles = Needles::default();
    needles.add("canary", CANARY);
    needles.assert_absent(home.home.path());
    let (key, size) = &objects()[5];
    let pattern = home.home.path().join("drive{1...3}");
    let mut decrypt = command(&["decrypt"]);
    decrypt.arg(&pattern).arg(format!("{BUCKET}/{key}"));
    let output = decrypt.output().expect("the binary starts");
    assert!(output.stdout == body(key, *size), "{output:?}");

    // A key is not destroyed on some drives alone.
    let refused = fail(&mut on(second, &["key", "rotate", "strongroom-default"]));
    assert!(refused.contains("--data-dir"), "{refused}");
    succeed(&mut on(&pattern, &["key", "rotate", "strongroom-default"]));
    let status = succeed(&mut on(&pattern, &["status"]));
    assert!(status.contains("objects: 321"), "{status}");
}

#[test]
fn a_lost_drive_is_replaced_by_an_empty_one() {
    let home = Home::new();
    let mut server = home.config().start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    for (key, size) in objects() {
        assert_eq!(put(&mut client, &key, size), 200);
    }
    server.terminate();
    disk::take_away(&home.dirs[0]);
    server.start_again();
    let gone = lost(&mut server.client(), "");
    server.terminate();

    let [first, second, third] = &home.dirs[..] else {
        panic!("three")
    };
    let new = home.home.path().join("new");
    let replace = |args: &[&str]| {
        let mut replace = command(&["replace-drive"]);
        replace.arg(&new).args(args);
        for dir in [second, third] {
            replace.arg("--data-dir").arg(dir);
        }
        replace
    };
    fail(&mut replace(&[]));
    succeed(&mut replace(&["--give-up-lost"]));
    server.configure(|config| config.data_dirs(&[second.clone(), third.clone(), new.clone()]));
    server.start_again();
    let mut client = server.client();
    all_listed(&mut client, 300 - gone.len());
    for (key, size) in objects() {
        let got = client.get(BUCKET, &key).expect("an answer");
        let expected = if gone.contains(&key) { 404 } else { 200 };
        assert_eq!(got.status(), expected);
        assert_eq!(put(&mut client, &key, size), 200);
    }
    all_listed(&mut client, 300);
    server.terminate();
    verified(&[&new]);
    disk::bring_back(&home.dirs[0]);
    let dirs = [first.clone(), second.clone(), new];
    let refused = Config::http().data_dirs(&dirs).try_start();
    let refused = refused.err().expect("refused").output;
    assert!(
        refused.contains("the same directory of their store"),
        "{refused}"
    );
}

#[test]
fn directories_that_do_not_belong_together_are_refused() {
    let home = Home::new();
    let mut server = home.config().start();
    server.terminate();
    let other = Home::new();
    let mut server = other.config().start();
    server.terminate();

    let [a, b, c] = home.dirs.clone().try_into().expect("three");
    let stranger = other.dirs[2].clone();
    for (dirs, expected) in [
        (vec![a.clone(), b.clone()], "give all 3"),
        (vec![a.clone()], "give all 3"),
        (vec![a.clone(), b.clone(), a.clone()], "given twice"),
        (vec![a.clone(), b.clone(), stranger], "different stores"),
        (vec![a, b, c.clone(), c.join("new")], "give all 3"),
    ] {
        let refused = Config::http().data_dirs(&dirs).try_start();
        let refused = refused.err().expect("refused");
        assert!(refused.output.contains(expected), "{}", refused.output);
    }
}
