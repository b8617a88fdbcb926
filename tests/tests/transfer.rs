//! Real amounts by real clients: a tree of thousands of files by `aws s3 sync`, and large files by boto3's transfer
//! manager, brought back and compared byte by byte, before a restart and after it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_tests::client::{Outcome, Request};
use strongroom_tests::data::Pattern;
use strongroom_tests::python::{aws, run_script, succeed};
use strongroom_tests::{Config, Server, binary, disk, long, scaled};

/// The sources of this workspace's dependencies: real files, and there wherever this was built.
fn real_tree(into: &Path, files_wanted: usize) -> usize {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.expect("cargo has a home").join("registry/src");
    let mut crates: Vec<PathBuf> = subdirectories(&registry)
        .iter()
        .flat_map(|d| subdirectories(d))
        .collect();
    crates.sort();
    let mut copied = 0;
    for dir in crates {
        if copied >= files_wanted {
            break;
        }
        // Some crates are one huge generated file after another; a tree of many sizes is wanted.
        let files = disk::files(&dir);
        if files.len() > files_wanted / 2 || disk::used_bytes(&dir) > 20_000_000 {
            continue;
        }
        for file in files {
            let target = into.join(file.strip_prefix(&registry).expect("below it"));
            fs::create_dir_all(target.parent().expect("below into")).expect("writable");
            fs::copy(&file, &target).expect("copied");
            copied += 1;
        }
    }
    assert!(
        copied * 2 > files_wanted,
        "only {copied} files in {}",
        registry.display()
    );
    copied
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk::files(dir).into_iter();
    files
        .map(|f| {
            let name = f.strip_prefix(dir).expect("below it").to_owned();
            (name, fs::read(f).expect("readable"))
        })
        .collect()
}

fn bring_back_and_compare(server: &Server, tree: &Path, into: &Path) {
    let mut sync = aws(server);
    sync.args(["s3", "sync", "--only-show-errors", "s3://tree/copy"])
        .arg(into);
    succeed(&mut sync);
    let (sent, got) = (contents(tree), contents(into));
    let differ = sent
        .iter()
        .find(|(name, bytes)| got.get(*name) != Some(bytes));
    assert!(
        differ.is_none(),
        "{} differs",
        differ.expect("some").0.display()
    );
    assert_eq!(sent.len(), got.len());
}

fn sync_a_tree(config: Config, files: usize) {
    let home = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let tree = home.path().join("tree");
    let count = real_tree(&tree, files);
    let mut server = config.start();
    succeed(aws(&server).args(["s3", "mb", "s3://tree"]));
    let mut sync = aws(&server);
    sync.args(["s3", "sync", "--only-show-errors"])
        .arg(&tree)
        .arg("s3://tree/copy");
    succeed(&mut sync);
    bring_back_and_compare(&server, &tree, &home.path().join("back"));
    // A second sync finds nothing to do: sizes and times are as it left them.
    let mut again = aws(&server);
    again
        .args(["s3", "sync", "--dryrun"])
        .arg(&tree)
        .arg("s3://tree/copy");
    assert_eq!(succeed(&mut again).trim(), "");
    server.restart();
    bring_back_and_compare(&server, &tree, &home.path().join("back after a restart"));
    let listed = server.client().list("tree").expect("a listing");
    assert_eq!(listed.len(), count);
    let mut remove = aws(&server);
    remove.args(["s3", "rb", "--force", "s3://tree"]);
    succeed(&mut remove);
}

#[test]
fn a_real_tree_http() {
    sync_a_tree(Config::http(), scaled(600, 6000));
}

#[test]
fn a_real_tree_tls() {
    sync_a_tree(Config::tls(), scaled(1200, 6000));
}

fn transfer(config: Config) {
    let mut server = config.start();
    run_script(&server, "transfer", &["up"]);
    run_script(&server, "transfer", &["down"]);
    server.restart();
    run_script(&server, "transfer", &["down"]);
    server.kill();
    server.start_again();
    run_script(&server, "transfer", &["down"]);
}

#[test]
fn large_files_http() {
    transfer(Config::http());
}

#[test]
fn large_files_tls() {
    transfer(Config::tls());
}

/// The largest object that one PUT may make: 5 GiB, in the long version.
#[test]
fn the_largest_single_put() {
    let server = Config::http().start();
    let mut client = server.client();
    client
        .create_bucket("large")
        .expect("an answer")
        .expect(200);
    let size: u64 = scaled(300 << 20, 5 << 30);
    let content = Pattern::named("large");
    let request = Request {
        method: "PUT",
        bucket: "large",
        key: "key",
        ..Request::default()
    };
    let answer = client.stream(&request, size, &mut content.reader(size));
    answer.expect("an answer").expect(200);
    assert_eq!(client.probe("large", "key", &content, size), Outcome::Right);
    for from in [0, size / 2, size - 100_000] {
        let range = format!("bytes={from}-{}", from + 99_999);
        let headers = [("range", range.as_str())];
        let part = Request {
            method: "GET",
            headers: &headers,
            ..request.clone()
        };
        let got = client.request(&part, &[]).expect("an answer").expect(206);
        assert!(content.matches(from, &got.body));
    }
    let over = Request {
        method: "PUT",
        bucket: "large",
        key: "over",
        ..Request::default()
    };
    // One byte more than S3 takes is refused by its length, before a byte of it is sent.
    let head = strongroom_tests::client::head_bytes(
        client.endpoint(),
        &strongroom_tests::sigv4::Moment::now(),
        &over,
        (5 << 30) + 1,
    );
    let mut connection =
        strongroom_tests::wire::Connection::open(server.address(), false).expect("open");
    connection.send(head.as_bytes(), &[]).expect("sent");
    assert_eq!(connection.read_head().expect("an answer").status, 400);

    client
        .delete("large", "key")
        .expect("an answer")
        .expect(204);
    if long() {
        disk::wait_used_at_most(server.data_dir(), 200 << 20, Duration::from_secs(30));
    }
}
