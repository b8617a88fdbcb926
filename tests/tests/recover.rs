//! `verify`, `decrypt` and `recover` on stores that nobody serves, and the scrub of a running server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use strongroom_tests::client::{Client, Request};
use strongroom_tests::data::Pattern;
use strongroom_tests::kes::Kes;
use strongroom_tests::metrics;
use strongroom_tests::scan::base64;
use strongroom_tests::{Config, Server, binary, disk, long};

const BUCKET: &str = "recover";
const SECTOR: usize = 4096;
const STATIC_KEY: &str = "my-key:wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t8=";
/// In the index, and in segments of one and of several extents.
const OBJECTS: [(&str, u64); 7] = [
    ("a/empty", 0),
    ("a/small", 700),
    ("b inline", 16_000),
    ("c", 150_000),
    ("d/ä ü", 150_000),
    ("e", 150_000),
    ("f", 20_000_000),
];

/// A stopped store, with the configuration to serve it again.
struct Store {
    config: Config,
    _home: tempfile::TempDir,
    dir: PathBuf,
}

fn home() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir_in(binary::scratch()).expect("scratch");
    let dir = home.path().join("data");
    (home, dir)
}

fn fill(client: &mut Client) {
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    for (key, size) in OBJECTS {
        let body = Pattern::named(key).bytes(size as usize);
        let answer = client.put(BUCKET, key, &body).expect("an answer");
        answer.expect(200);
    }
    for key in ["gone", "gone/large"] {
        let body = Pattern::named(key).bytes(key.len() * 30_000 - 100_000);
        client
            .put(BUCKET, key, &body)
            .expect("an answer")
            .expect(200);
        client.delete(BUCKET, key).expect("an answer").expect(204);
    }
}

fn check(client: &mut Client) {
    for (key, size) in OBJECTS {
        let got = client.get(BUCKET, key).expect("an answer").expect(200);
        assert_eq!(got.body.len() as u64, size, "{key}");
        assert!(Pattern::named(key).matches(0, &got.body), "{key}");
    }
    let mut names: Vec<_> = OBJECTS.iter().map(|(key, _)| (*key).to_owned()).collect();
    names.sort();
    let listed = client.list(BUCKET).expect("a listing");
    let listed: Vec<_> = listed.into_iter().map(|o| o.key).collect();
    assert_eq!(listed, names);
}

impl Store {
    fn make() -> Self {
        let (home, dir) = home();
        let config = Config::http().shards(1);
        let mut server = config.clone().data_dir(&dir).start();
        fill(&mut server.client());
        let (status, _) = server.terminate();
        assert!(status.success());
        Store {
            config,
            _home: home,
            dir,
        }
    }

    fn serve(&self) -> Server {
        self.config.clone().data_dir(&self.dir).start()
    }

    /// Flips a bit in the data of the n-th stream of several sectors, in the order of their heads.
    fn flip(&self, n: usize) {
        flip(&self.dir, n);
    }
}

fn flip(dir: &Path, n: usize) {
    let mut files = disk::files(&dir.join("segments"));
    files.sort_by_key(|f| disk::used_bytes_of(f));
    let file = files.pop().expect("a segment");
    let mut bytes = fs::read(&file).expect("readable");
    let heads: Vec<usize> = bytes
        .chunks(SECTOR)
        .enumerate()
        .filter(|(_, s)| s.starts_with(b"STRGROOM") && s[9] == 1)
        .map(|(n, _)| n)
        .collect();
    bytes[(heads[n] + 5) * SECTOR + 77] ^= 4;
    fs::write(file, bytes).expect("writable");
}

fn command(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(binary::path());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("STRONGROOM_")) {
            command.env_remove(name);
        }
    }
    command.arg(args[0]).arg(dir).args(&args[1..]);
    command.stdin(Stdio::null());
    command
}

fn run(args: &[&str], dir: &Path) -> Output {
    command(args, dir).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(args: &[&str], dir: &Path) -> Output {
    let output = run(args, dir);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    output
}

#[test]
fn a_clean_store_is_sound_and_a_served_one_is_left_alone() {
    let store = Store::make();
    let found = succeed(&["verify"], &store.dir);
    assert!(!text(&found.stderr).contains("is not the store's"));
    assert_eq!(text(&found.stdout), "");
    let said = text(&found.stderr);
    assert!(
        said.contains("7 objects") && said.contains("7 objects opened"),
        "{said}"
    );
    assert!(said.contains("100 % read"), "{said}");
    let mut server = store.serve();
    for args in [&["verify"][..], &["recover"], &["decrypt", "recover/c"]] {
        let refused = run(args, &store.dir);
        assert!(!refused.status.success());
        assert!(
            text(&refused.stderr).contains("in use"),
            "{}",
            text(&refused.stderr)
        );
    }
    check(&mut server.client());
    // Killed with an upload under way.
    let mut client = server.client();
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "half",
        ..Request::default()
    };
    let mut body = Pattern::named("half").reader(50 << 20);
    let sent = client.vanish(&request, 50 << 20, 20 << 20, &mut body);
    sent.expect("the server takes what is sent");
    server.kill();
    succeed(&["verify"], &store.dir);
    let nowhere = store.dir.join("nowhere");
    assert!(!run(&["verify"], &nowhere).status.success());
    assert!(!nowhere.exists());
}

#[test]
fn rot_is_named_exactly() {
    let store = Store::make();
    store.flip(1);
    for _ in 0..2 {
        let found = run(&["verify"], &store.dir);
        assert_eq!(found.status.code(), Some(1));
        assert_eq!(text(&found.stdout), "recover/d/ä ü\n");
    }
    let refused = run(&["decrypt", "recover/d/ä ü"], &store.dir);
    assert!(!refused.status.success());
    let whole = Pattern::named("d/ä ü").bytes(150_000);
    assert!(whole.starts_with(&refused.stdout) && refused.stdout.len() < whole.len());
    let target = store.dir.with_file_name("out");
    let out = target.to_str().expect("a path in UTF-8");
    let refused = run(&["decrypt", "recover/d/ä ü", "--output", out], &store.dir);
    assert!(!refused.status.success());
    let beside = fs::read_dir(target.parent().expect("a directory")).expect("readable");
    assert_eq!(beside.count(), 1, "no file is left behind");
}

#[test]
fn objects_are_taken_out_without_a_server() {
    let store = Store::make();
    for (key, size) in OBJECTS {
        let got = succeed(&["decrypt", &format!("{BUCKET}/{key}")], &store.dir);
        assert_eq!(got.stdout.len() as u64, size, "{key}");
        assert!(Pattern::named(key).matches(0, &got.stdout), "{key}");
    }
    let target = store.dir.with_file_name("out");
    let out = target.to_str().expect("a path in UTF-8");
    succeed(&["decrypt", "recover/c", "--output", out], &store.dir);
    let got = fs::read(&target).expect("written");
    assert!(Pattern::named("c").matches(0, &got) && got.len() == 150_000);
    for absent in ["recover/gone", "nobucket/c", "recover", "recover/"] {
        assert!(
            !run(&["decrypt", absent], &store.dir).status.success(),
            "{absent}"
        );
    }
    // Without the root key nothing opens, and that is said.
    fs::rename(
        store.dir.join("root.key"),
        store.dir.with_file_name("root.key"),
    )
    .expect("moved");
    let refused = run(&["decrypt", "recover/c"], &store.dir);
    assert!(!refused.status.success() && refused.stdout.is_empty());
}

#[test]
fn customers_keys_are_needed_and_enough() {
    let (_home, dir) = home();
    let config = Config::http().shards(1).args(["--allow-sse-c-without-tls"]);
    let mut server = config.data_dir(&dir).start();
    let mut client = server.client();
    client.create_bucket(BUCKET).expect("an answer").expect(200);
    let key = [9u8; 32];
    let md5 = hex::decode(strongroom_tests::scan::md5_hex(&key)).expect("hex");
    let (key64, md5) = (base64(&key), base64(&md5));
    let headers = [
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-server-side-encryption-customer-key", &key64),
        ("x-amz-server-side-encryption-customer-key-md5", &md5),
    ];
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "mine",
        headers: &headers,
        ..Request::default()
    };
    let body = Pattern::named("mine").bytes(100_000);
    client
        .request(&request, &body)
        .expect("an answer")
        .expect(200);
    assert!(server.terminate().0.success());
    let said = text(&succeed(&["verify"], &dir).stderr);
    assert!(said.contains("1 checked but for their tags"), "{said}");
    assert!(!run(&["decrypt", "recover/mine"], &dir).status.success());
    let file = dir.with_file_name("customer.key");
    let path = file.to_str().expect("a path in UTF-8");
    for (text, opens) in [
        (key.to_vec(), true),
        (key64.into_bytes(), true),
        (vec![8; 32], false),
    ] {
        fs::write(&file, text).expect("writable");
        let got = run(
            &["decrypt", "recover/mine", "--customer-key-file", path],
            &dir,
        );
        assert_eq!(got.status.success(), opens);
        assert_eq!(got.stdout == body, opens);
    }
}

#[test]
fn a_lost_index_is_made_anew() {
    let store = Store::make();
    fs::remove_dir_all(store.dir.join("index")).expect("removable");
    let refused = store.config.clone().data_dir(&store.dir).try_start();
    let refused = refused.err().expect("it does not start without its index");
    assert!(
        refused.output.contains("strongroom recover"),
        "{}",
        refused.output
    );
    let done = succeed(&["recover"], &store.dir);
    assert_eq!(text(&done.stdout), "", "nothing is lost");
    succeed(&["verify"], &store.dir);
    check(&mut store.serve().client());
}

#[test]
fn recovering_a_healthy_store_changes_nothing() {
    let store = Store::make();
    for _ in 0..2 {
        let done = succeed(&["recover"], &store.dir);
        assert!(
            text(&done.stderr).contains("left as it is"),
            "{}",
            text(&done.stderr)
        );
        check(&mut store.serve().client());
    }
    let mut server = store.serve();
    server.kill();
    succeed(&["recover"], &store.dir);
    check(&mut store.serve().client());
}

#[test]
fn an_older_index_is_brought_up() {
    let store = Store::make();
    let old = store.dir.with_file_name("old");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&store.dir.join("index"), &old])
        .status();
    assert!(copied.expect("cp starts").success());
    let mut server = store.serve();
    let mut client = server.client();
    for (key, size) in [("late", 100_000), ("late small", 100)] {
        let body = Pattern::named(key).bytes(size);
        client
            .put(BUCKET, key, &body)
            .expect("an answer")
            .expect(200);
    }
    client.delete(BUCKET, "e").expect("an answer").expect(204);
    assert!(server.terminate().0.success());
    fs::remove_dir_all(store.dir.join("index")).expect("removable");
    fs::rename(&old, store.dir.join("index")).expect("moved");
    let refused = store.config.clone().data_dir(&store.dir).try_start();
    assert!(
        refused
            .err()
            .expect("refused")
            .output
            .contains("strongroom recover")
    );
    let done = succeed(&["recover"], &store.dir);
    assert!(text(&done.stderr).contains("index.before-recover-"));
    let server = store.serve();
    let mut client = server.client();
    for (key, size) in [("late", 100_000), ("late small", 100), ("c", 150_000)] {
        let got = client.get(BUCKET, key).expect("an answer").expect(200);
        assert!(
            got.body.len() == size && Pattern::named(key).matches(0, &got.body),
            "{key}"
        );
    }
    client.get(BUCKET, "e").expect("an answer").expect(404);
}

/// What a killed server had stored for longer than the interval is there without its index.
#[test]
fn copies_are_made_while_the_server_runs() {
    let (_home, dir) = home();
    let config = Config::http().data_dir(&dir);
    let mut server = config.clone().start();
    let mut client = server.client();
    fill(&mut client);
    // The long version waits for everything; the short one for what large objects need, which is nothing.
    if long() {
        std::thread::sleep(Duration::from_secs(65));
    }
    server.kill();
    fs::remove_dir_all(dir.join("index")).expect("removable");
    succeed(&["recover"], &dir);
    let server = config.start();
    let mut client = server.client();
    if long() {
        check(&mut client);
    }
    for (key, size) in OBJECTS.iter().filter(|(_, size)| *size > 16_384) {
        let got = client.get(BUCKET, key).expect("an answer").expect(200);
        assert!(got.body.len() as u64 == *size && Pattern::named(key).matches(0, &got.body));
    }
}

#[test]
fn the_scrub_names_rot_in_the_log() {
    let store = Store::make();
    store.flip(0);
    let config = store.config.clone().args(["--scrub-rate", "1000000000"]);
    let server = config.data_dir(&store.dir).start();
    let begun = Instant::now();
    while !server.log().contains("rotten: recover/c:") {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{}",
            server.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!server.log().contains("rotten: recover/e:"));
}

fn counter(server: &Server, name: &str) -> u64 {
    let value = metrics::value(server, name).expect("an answer");
    value.unwrap_or_else(|| panic!("no {name}"))
}

/// A static key is at hand, and rot under it is found. Keys at KES are not asked for: nobody waits, and KES is not called.
#[test]
fn the_scrub_opens_what_is_under_a_static_key_and_does_not_call_kes() {
    let kes = Kes::start();
    for at_kes in [false, true] {
        let (_home, dir) = home();
        let config = match at_kes {
            true => kes.configure(Config::http()),
            false => Config::http().env("MINIO_KMS_SECRET_KEY", STATIC_KEY),
        };
        let config = config.shards(1).data_dir(&dir);
        let mut server = config.clone().start();
        fill(&mut server.client());
        assert!(server.terminate().0.success());
        flip(&dir, 0);
        let server = config.args(["--scrub-rate", "1000000000"]).start();
        let calls = kes.data_key_calls();
        let begun = Instant::now();
        while counter(&server, "strongroom_scrub_passes_total") == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(100));
        }
        let all = OBJECTS.len() as u64;
        assert_eq!(counter(&server, "strongroom_scrub_objects_total"), all);
        let unopened = counter(&server, "strongroom_scrub_unopened_total");
        assert_eq!(unopened, if at_kes { all } else { 0 });
        let found = server.log().contains("rotten: recover/c:");
        assert_eq!(found, !at_kes, "{}", server.log());
        assert_eq!(kes.data_key_calls(), calls);
    }
}
