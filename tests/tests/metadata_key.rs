//! `--metadata-key kms`: whatever locks or destroys the default key locks or destroys the whole store, listings and HEAD with it;
//! a server stays, says why, and serves again by itself. And what servers say that serve nothing yet.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use strongroom_tests::cli::{answer, command, fail, on, said, succeed, value};
use strongroom_tests::client::{Client, Request, Response, head_bytes};
use strongroom_tests::data::Pattern;
use strongroom_tests::kes::{KEY, Kes};
use strongroom_tests::scan::Needles;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::sized::{self, content, fill, name};
use strongroom_tests::wire::Connection;
use strongroom_tests::{Config, Server, binary, disk};

const BUCKET: &str = "metadata";
const DEFAULT: &str = "strongroom-default";
/// In the index, and in segments.
const SIZES: [usize; 3] = [100, 70_000, 3 << 20];
/// Enough that some go to each shard.
const CONNECTIONS: usize = 6;
const UNDER_KMS: [&str; 2] = ["--metadata-key", "kms"];
const UNDER_ROOT: [&str; 2] = ["--metadata-key", "local"];

fn filled(config: Config) -> Server {
    let server = config.start();
    fill(&server, BUCKET, &SIZES);
    server
}

fn assert_open(server: &Server) {
    for _ in 0..CONNECTIONS {
        let mut client = server.client();
        assert_eq!(client.list(BUCKET).expect("a listing").len(), SIZES.len());
        sized::assert_readable(&mut client, BUCKET, &SIZES);
    }
    assert_eq!(health(server, "live").0, 200);
}

/// Every request is refused with the reason, over many connections; health says it too.
fn assert_locked(server: &Server, why: &str) {
    let mut connections: Vec<Client> = (0..CONNECTIONS).map(|_| server.client()).collect();
    for client in &mut connections {
        let refused = |answer: std::io::Result<Response>| {
            let answer = answer.expect("an answer").expect(503);
            assert_eq!(answer.code(), "ServiceUnavailable");
            let text = answer.text();
            assert!(text.contains("locked") && text.contains(why), "{text}");
        };
        refused(client.get(BUCKET, &name(100)));
        refused(client.put(BUCKET, "new", b"data"));
        refused(client.send("GET", BUCKET, "", "list-type=2", &[]));
        refused(client.send("GET", "", "", "", &[]));
        let head = client.head(BUCKET, &name(100)).expect("an answer");
        assert_eq!(head.status(), 503);
    }
    for route in ["live", "ready"] {
        let (status, body) = health(server, route);
        assert_eq!(status, 503);
        assert!(body.contains("\"locked\"") && body.contains(why), "{body}");
    }
    // Whoever watches it still can.
    let metrics = server.client().send("GET", "metrics", "", "", &[]);
    drop(metrics.expect("an answer"));
}

fn health(server: &Server, route: &str) -> (u16, String) {
    let answer = server.client().send("GET", "health", route, "", &[]);
    let answer = answer.expect("an answer");
    (answer.status(), answer.text())
}

fn run(server: &Server, args: &[&str]) -> String {
    succeed(&mut on(server.data_dir(), args))
}

fn stop(server: &mut Server) {
    let (status, _) = server.terminate();
    assert!(status.success(), "{status}:\n{}", server.log());
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_live(server: &Server) -> bool {
    health(server, "live").0 == 200
}

/// The wrapped store key, from the superblock.
fn wrapped(dir: &Path) -> Vec<u8> {
    let block = fs::read(dir.join("superblock")).expect("the superblock");
    let length = u32::from_le_bytes(block[28..32].try_into().expect("4 bytes")) as usize;
    block[32..32 + length].to_vec()
}

#[test]
fn a_seal_locks_listings_at_once_and_over_a_restart() {
    let mut server = filled(Config::http().args(UNDER_KMS));
    assert_open(&server);
    run(&server, &["kms", "seal"]);
    assert_locked(&server, "sealed");
    assert_eq!(value(&run(&server, &["kms", "status"]), "state"), "sealed");
    let told = fail(&mut on(server.data_dir(), &["status"]));
    assert!(told.contains("locked") && told.contains("sealed"), "{told}");

    // Without a restart, as often as one likes.
    for _ in 0..3 {
        run(&server, &["kms", "unseal"]);
        assert_open(&server);
        run(&server, &["kms", "seal"]);
        assert_locked(&server, "sealed");
    }

    stop(&mut server);
    let offline = fail(&mut command(&[
        "verify",
        &server.data_dir().display().to_string(),
    ]));
    assert!(
        offline.contains("--metadata-key") && offline.contains("sealed"),
        "{offline}"
    );
    server.start_locked();
    assert_locked(&server, "sealed");
    run(&server, &["kms", "unseal"]);
    assert_open(&server);
    assert!(server.log().lines().filter(|line| *line == "ready").count() == 2);

    // A kill leaves nothing that a locked start would trip over.
    run(&server, &["kms", "seal"]);
    server.kill();
    server.start_locked();
    run(&server, &["kms", "unseal"]);
    assert_open(&server);
}

#[test]
fn a_store_that_is_locked_ends_in_order() {
    let mut server = filled(Config::http().args(UNDER_KMS));
    run(&server, &["kms", "seal"]);
    stop(&mut server);
    assert!(!server.data_dir().join("admin.sock").exists());
    succeed(&mut on(server.data_dir(), &["kms", "unseal"]));
    let dir = server.data_dir().display().to_string();
    succeed(&mut command(&["verify", &dir]));
    server.start_again();
    assert_open(&server);
}

#[test]
fn the_default_keys_states_are_the_stores() {
    let server = filled(Config::http().args(UNDER_KMS));
    run(&server, &["key", "create", "other"]);
    let printed = run(&server, &["key", "status", DEFAULT]);
    assert!(value(&printed, "holds-store-key").starts_with("yes"));
    assert!(!run(&server, &["key", "status", "other"]).contains("holds-store-key"));
    run(&server, &["key", "disable", DEFAULT]);
    assert_locked(&server, "is disabled");
    let printed = run(&server, &["key", "status", DEFAULT]);
    assert_eq!(value(&printed, "state"), "disabled");
    assert!(value(&printed, "holds-store-key").starts_with("yes"));
    let rewrap = fail(&mut on(server.data_dir(), &["key", "rewrap", "other"]));
    assert!(rewrap.contains("locked"), "{rewrap}");
    run(&server, &["key", "enable", DEFAULT]);
    assert_open(&server);
    run(&server, &["key", "delete", DEFAULT, "--after", "1h"]);
    assert_locked(&server, "pending deletion");
    run(&server, &["key", "enable", DEFAULT]);
    assert_open(&server);
    run(&server, &["key", "delete", DEFAULT, "--confirm", DEFAULT]);
    assert_locked(&server, "destroyed");
}

/// Older versions of the default key can be destroyed: the store key moves first.
#[test]
fn the_store_key_is_rewrapped_with_the_objects() {
    let mut server = filled(Config::http().args(UNDER_KMS));
    let before = wrapped(server.data_dir());
    run(&server, &["key", "rotate", DEFAULT]);
    assert_eq!(wrapped(server.data_dir()), before);
    run(&server, &["key", "rewrap", DEFAULT, "--retire"]);
    assert_ne!(wrapped(server.data_dir()), before);
    assert_open(&server);
    server.restart();
    assert_open(&server);

    // The same without a server.
    stop(&mut server);
    let before = wrapped(server.data_dir());
    run(&server, &["key", "rotate", DEFAULT]);
    run(&server, &["key", "rewrap", DEFAULT, "--retire"]);
    assert_ne!(wrapped(server.data_dir()), before);
    server.start_again();
    assert_open(&server);
}

#[test]
fn the_store_key_moves_there_and_back() {
    let mut server = filled(Config::http());
    let local = wrapped(server.data_dir());
    run(&server, &["kms", "seal"]);
    assert_eq!(
        server.client().list(BUCKET).expect("a listing").len(),
        SIZES.len()
    );
    stop(&mut server);

    // It cannot move while the key service is sealed, and nothing is served meanwhile.
    server.configure(|config| config.args(UNDER_KMS));
    server.start_locked();
    assert_locked(&server, "sealed");
    assert_eq!(wrapped(server.data_dir()), local);
    run(&server, &["kms", "unseal"]);
    assert_open(&server);
    let mut needles = Needles::default();
    needles.add("the store key under the root key", &local);
    needles.assert_absent(server.data_dir());

    // It stays where it is unless one says otherwise.
    server.configure(|_| Config::http());
    server.restart();
    run(&server, &["kms", "seal"]);
    assert_locked(&server, "sealed");
    stop(&mut server);

    server.configure(|config| config.args(UNDER_ROOT));
    server.start_locked();
    assert_locked(&server, "sealed");
    run(&server, &["kms", "unseal"]);
    assert_open(&server);
    run(&server, &["kms", "seal"]);
    assert_eq!(
        server.client().list(BUCKET).expect("a listing").len(),
        SIZES.len()
    );
    run(&server, &["kms", "unseal"]);
    server.restart();
    assert_open(&server);
}

/// A drive that was away while the store key moved comes back with the old wrapping, which must open nothing any more.
#[test]
fn the_store_key_moves_on_every_drive() {
    let home = tempfile::tempdir_in(binary::scratch()).expect("scratch");
    let dirs = [1, 2].map(|n| home.path().join(format!("drive{n}")));
    let mut server = filled(Config::http().data_dirs(&dirs));
    let local = wrapped(&dirs[1]);
    stop(&mut server);

    disk::take_away(&dirs[1]);
    server.configure(|config| config.args(UNDER_KMS));
    server.start_again();
    stop(&mut server);
    disk::bring_back(&dirs[1]);
    assert_ne!(wrapped(&dirs[0]), local);
    assert_eq!(wrapped(&dirs[1]), local);

    server.start_again();
    assert_open(&server);
    let moved = wrapped(&dirs[0]);
    assert_eq!(wrapped(&dirs[1]), moved);
    let mut needles = Needles::default();
    needles.add("the store key under the root key", &local);
    needles.assert_absent(home.path());
    run(&server, &["kms", "seal"]);
    assert_locked(&server, "sealed");
    stop(&mut server);
    server.start_locked();
    assert_locked(&server, "sealed");
    run(&server, &["kms", "unseal"]);
    assert_open(&server);

    run(&server, &["key", "rotate", DEFAULT]);
    run(&server, &["key", "rewrap", DEFAULT, "--retire"]);
    assert_ne!(wrapped(&dirs[0]), moved);
    assert_eq!(wrapped(&dirs[1]), wrapped(&dirs[0]));
    server.restart();
    assert_open(&server);
}

/// What is under way when the store is locked ends, whichever key it is under; what was acknowledged stays.
#[test]
fn requests_under_way_end_when_the_store_is_locked() {
    const BIG: usize = 64 << 20;
    let server = filled(Config::http().args(UNDER_KMS));
    run(&server, &["key", "create", "other"]);
    let under_other = [
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "other"),
    ];
    let put = |key: &'static str| Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        headers: &under_other,
        ..Request::default()
    };
    let body = Pattern::named("big").bytes(BIG);
    let mut client = server.client();
    client
        .request(&put("big"), &body)
        .expect("an answer")
        .expect(200);

    let late = content(3 << 20);
    let head = head_bytes(
        &server.endpoint(),
        &Moment::now(),
        &put("late"),
        late.len() as u64,
    );
    let mut upload = Connection::open(server.address(), false).expect("a connection");
    upload
        .send(head.as_bytes(), &late[..1 << 20])
        .expect("sent");
    let get = Request {
        method: "GET",
        bucket: BUCKET,
        key: "big",
        ..Request::default()
    };
    let (mut read, mut taken) = (0, false);
    let outcome = client.fetch(&get, |piece| {
        assert!(body[read..][..piece.len()] == *piece);
        read += piece.len();
        if !taken {
            taken = true;
            run(&server, &["key", "disable", DEFAULT]);
        }
    });
    assert!(outcome.is_err() && read < BIG, "{read} bytes: {outcome:?}");
    assert_eq!(upload.read_head().expect("an answer").status, 503);
    assert_locked(&server, "is disabled");

    run(&server, &["key", "enable", DEFAULT]);
    let mut client = server.client();
    client.get(BUCKET, "late").expect("an answer").expect(404);
    assert!(
        client
            .get(BUCKET, "big")
            .expect("an answer")
            .expect(200)
            .body
            == body
    );
    client.delete(BUCKET, "big").expect("an answer").expect(204);
    assert_open(&server);
}

#[test]
fn keys_at_kes_lock_and_open_the_store() {
    let mut kes = Kes::start();
    let config = kes.configure(Config::http().args(UNDER_KMS));
    let mut server = filled(config.args(["--kms-cache-used", "2s"]));
    assert_open(&server);

    kes.delete_key(KEY);
    eventually("locked in time", || !is_live(&server));
    assert_locked(&server, "does not exist");
    kes.undelete_key(KEY);
    eventually("open again", || is_live(&server));
    assert_open(&server);

    // A seal here counts too.
    run(&server, &["kms", "seal"]);
    assert_locked(&server, "sealed");
    run(&server, &["kms", "unseal"]);
    assert_open(&server);

    // A start without KES waits for it.
    stop(&mut server);
    kes.stop();
    server.start_locked();
    assert_locked(&server, "cannot be reached");
    kes.start_again();
    eventually("open when KES is back", || is_live(&server));
    assert_open(&server);
    stop(&mut server);

    // Commands find it by the same variables.
    let dir = server.data_dir().display().to_string();
    let object = format!("{BUCKET}/{}", name(70_000));
    for args in [vec!["verify", &dir], vec!["decrypt", &dir, &object]] {
        let mut alone = command(&args);
        let refused = fail(&mut alone);
        assert!(refused.contains("no KES server is configured"), "{refused}");
        let mut with = command(&args);
        kes.configure_command(&mut with);
        let output = with.output().expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        match args[0] {
            "decrypt" => assert!(output.stdout == content(70_000)),
            _ => assert!(
                said(&output).contains("3 objects opened"),
                "{}",
                said(&output)
            ),
        }
    }
    let mut status = on(server.data_dir(), &["status"]);
    kes.configure_command(&mut status);
    assert_eq!(value(&succeed(&mut status), "objects"), "3");
}

/// With the store key under the root key too: objects at KES open for commands that are told where it is.
#[test]
fn commands_open_objects_whose_keys_are_at_kes() {
    let mut kes = Kes::start();
    let mut server = filled(kes.configure(Config::http()));
    stop(&mut server);
    let dir = server.data_dir().display().to_string();
    let object = format!("{BUCKET}/{}", name(3 << 20));
    let decrypt = ["decrypt", &dir, &object];
    let verify = |with: bool| {
        let mut verify = command(&["verify", &dir]);
        if with {
            kes.configure_command(&mut verify);
        }
        let output = verify.output().expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    assert!(verify(false).contains("3 checked but for their tags"));
    assert!(verify(true).contains("3 objects opened"));
    let refused = fail(&mut command(&decrypt));
    assert!(refused.contains("no KES server is configured"), "{refused}");
    let mut with = command(&decrypt);
    kes.configure_command(&mut with);
    assert!(with.output().expect("it runs").stdout == content(3 << 20));
    kes.stop();
    let mut with = command(&["verify", &dir]);
    kes.configure_command(&mut with);
    let output = with.output().expect("it runs");
    assert!(
        said(&output).contains("3 checked but for their tags"),
        "{}",
        said(&output)
    );
}

/// A server that waits for people to bring its root key says so to whoever asks.
#[test]
fn a_server_that_waits_for_its_root_key_says_so() {
    const PASSPHRASE: &str = "a passphrase nobody guesses\n";
    for config in [Config::http(), Config::tls().args(UNDER_KMS)] {
        let mut server = filled(config);
        let dir = server.data_dir().to_owned();
        let set = answer(
            &mut on(&dir, &["kms", "root-key", "passphrase"]),
            PASSPHRASE,
        );
        assert!(set.status.success(), "{}", said(&set));
        stop(&mut server);
        fs::remove_file(dir.join("root.key")).expect("removed");
        server.start_locked();
        eventually("it listens", || {
            health(&server, "live").1.contains("locked")
        });
        assert_locked(&server, "root key");
        // It ends while it waits, too.
        stop(&mut server);
        assert!(!dir.join("admin.sock").exists());
        server.start_locked();
        let done = answer(&mut on(&dir, &["kms", "unseal"]), PASSPHRASE);
        assert!(done.status.success(), "{}", said(&done));
        eventually("it is open", || is_live(&server));
        assert_open(&server);
    }
}

#[test]
fn a_refused_start_leaves_no_socket() {
    let home = tempfile::tempdir_in(strongroom_tests::binary::scratch()).expect("writable");
    let dir = home.path().join("data");
    for args in [
        ["--metrics-token-file", "/nonexistent/token"],
        ["--certs-dir", "/dev/null/certs"],
    ] {
        let refused = Config::tls().data_dir(&dir).args(args).try_start();
        let refused = refused.err().expect("refused");
        assert!(!dir.join("admin.sock").exists(), "{}", refused.output);
    }
    let refused = Config::http()
        .data_dir(&dir)
        .env("MINIO_KMS_SECRET_KEY", "nonsense")
        .try_start();
    assert!(refused.is_err());
    assert!(!dir.join("admin.sock").exists());
}
