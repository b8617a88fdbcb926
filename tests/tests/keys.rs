//! Keys as an operator handles them: what is locked, what is erased, what comes back, and that each command has
//! taken effect everywhere when it returns.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use strongroom_tests::cli::{answer, command, fail, on, said, succeed, value};
use strongroom_tests::client::{Request, head_bytes};
use strongroom_tests::data::Pattern;
use strongroom_tests::scan::Needles;
use strongroom_tests::sigv4::Moment;
use strongroom_tests::sized::{self, content, fill, name};
use strongroom_tests::wire::Connection;
use strongroom_tests::{Config, Server, binary};

const BUCKET: &str = "keys";
const DEFAULT: &str = "strongroom-default";
/// In the index, and in segments.
const SIZES: [usize; 4] = [0, 100, 70_000, 3 << 20];
/// Enough that some go to each shard.
const CONNECTIONS: usize = 8;

fn filled(config: Config) -> Server {
    let server = config.start();
    fill(&server, BUCKET, &SIZES);
    server
}

/// All objects read right, over many connections.
fn assert_readable(server: &Server) {
    for _ in 0..CONNECTIONS {
        let mut client = server.client();
        sized::assert_readable(&mut client, BUCKET, &SIZES);
    }
}

/// Every read and write is refused like this, over many connections; what needs no key works.
fn assert_refused(server: &Server, status: u16, code: &str) {
    for _ in 0..CONNECTIONS {
        let mut client = server.client();
        for size in SIZES {
            let got = client.get(BUCKET, &name(size)).expect("an answer");
            assert_eq!(got.expect(status).code(), code, "{size}");
        }
        let put = client.put(BUCKET, "new", b"data").expect("an answer");
        assert_eq!(put.expect(status).code(), code);
        let listed = client.list(BUCKET).expect("a listing");
        assert_eq!(listed.len(), SIZES.len());
        let head = client.head(BUCKET, &name(100)).expect("an answer");
        assert_eq!(head.expect(200).head.header("content-length"), Some("100"));
    }
}

fn key(server: &Server, args: &[&str]) -> String {
    let args = [&["key"], args].concat();
    succeed(&mut on(server.data_dir(), &args))
}

fn kms(server: &Server, args: &[&str]) -> String {
    let args = [&["kms"], args].concat();
    succeed(&mut on(server.data_dir(), &args))
}

#[test]
fn a_disabled_key_stops_everything_under_it_until_it_is_enabled() {
    let mut server = filled(Config::http());
    let printed = key(&server, &["disable", DEFAULT]);
    assert_eq!(value(&printed, "state"), "disabled");
    assert_refused(&server, 400, "KMS.DisabledException");
    assert!(fail(&mut on(server.data_dir(), &["key", "rotate", DEFAULT])).contains("disabled"));
    server.restart();
    assert_refused(&server, 400, "KMS.DisabledException");
    let printed = key(&server, &["enable", DEFAULT]);
    assert_eq!(value(&printed, "state"), "enabled");
    assert_readable(&server);
    let unknown = fail(&mut on(server.data_dir(), &["key", "disable", "nobody"]));
    assert!(unknown.contains("does not exist"), "{unknown}");
}

#[test]
fn a_rotated_key_opens_what_was_written_before_and_after() {
    let server = filled(Config::http());
    let printed = key(&server, &["rotate", DEFAULT]);
    assert_eq!(value(&printed, "version"), "2");
    assert_readable(&server);
    let mut client = server.client();
    client
        .put(BUCKET, "later", b"data")
        .expect("an answer")
        .expect(200);
    let got = client.get(BUCKET, "later").expect("an answer").expect(200);
    assert_eq!(got.body, b"data");
    assert_eq!(value(&key(&server, &["status", DEFAULT]), "versions"), "2");
}

/// Elsewhere a second create replaced the key, and every object under it was lost.
#[test]
fn create_twice_is_an_error_and_the_first_keys_objects_still_open() {
    let mut server = filled(Config::http());
    let before = key(&server, &["status", DEFAULT]);
    let again = fail(&mut on(server.data_dir(), &["key", "create", DEFAULT]));
    assert!(again.contains("exists already"), "{again}");
    assert_eq!(key(&server, &["status", DEFAULT]), before);
    assert_readable(&server);
    server.restart();
    assert_readable(&server);
}

#[test]
fn a_seal_is_at_once_and_survives_a_restart() {
    let mut server = filled(Config::http());
    let said = kms(&server, &["seal"]);
    assert!(said.contains("sealed"), "{said}");
    assert_refused(&server, 503, "ServiceUnavailable");
    assert_eq!(value(&kms(&server, &["status"]), "state"), "sealed");
    let list = fail(&mut on(server.data_dir(), &["key", "list"]));
    assert!(list.contains("sealed"), "{list}");
    server.restart();
    assert_refused(&server, 503, "ServiceUnavailable");

    // Another root key does not unseal.
    let other = server.data_dir().join("other.key");
    fs::write(&other, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").expect("written");
    let mut wrong = on(server.data_dir(), &["kms", "unseal"]);
    let wrong = fail(wrong.env("STRONGROOM_KMS_ROOT_KEY_FILE", &other));
    assert!(wrong.contains("root key"), "{wrong}");
    assert_refused(&server, 503, "ServiceUnavailable");

    kms(&server, &["unseal"]);
    let status = kms(&server, &["status"]);
    assert_eq!(value(&status, "state"), "unsealed");
    assert_eq!(value(&status, "keys"), "1");
    assert_readable(&server);
}

#[test]
fn without_a_server_sealing_needs_no_root_key_and_unsealing_does() {
    let mut server = filled(Config::http());
    let (status, _) = server.terminate();
    assert!(status.success(), "{status}");
    let here = server.data_dir().join("root.key");
    let away = server.data_dir().join("certs.key");
    fs::rename(&here, &away).expect("moved");
    kms(&server, &["seal"]);
    let missing = fail(&mut on(server.data_dir(), &["kms", "unseal"]));
    assert!(
        missing.contains("STRONGROOM_KMS_ROOT_KEY_FILE"),
        "{missing}"
    );
    let mut sealed = on(server.data_dir(), &["kms", "status"]);
    let sealed = succeed(sealed.env("STRONGROOM_KMS_ROOT_KEY_FILE", &away));
    assert_eq!(value(&sealed, "state"), "sealed");
    fs::rename(&away, &here).expect("moved");
    server.start_again();
    assert_refused(&server, 503, "ServiceUnavailable");
    let (status, _) = server.terminate();
    assert!(status.success(), "{status}");
    kms(&server, &["unseal"]);
    server.start_again();
    assert_readable(&server);
}

#[test]
fn a_key_is_deleted_only_by_its_name() {
    let server = filled(Config::http());
    let delete = |args: &[&str]| {
        fail(&mut on(
            server.data_dir(),
            &[&["key", "delete", DEFAULT], args].concat(),
        ))
    };
    let refused = delete(&[]);
    assert!(refused.contains("--confirm"), "{refused}");
    let refused = delete(&["--confirm", "another"]);
    assert!(refused.contains("another"), "{refused}");
    assert_readable(&server);
}

#[test]
fn a_waiting_period_can_be_taken_back_and_ends_in_destruction() {
    let mut server = filled(Config::http());
    let printed = key(&server, &["delete", DEFAULT, "--after", "7d"]);
    assert_eq!(value(&printed, "state"), "pending-deletion");
    assert!(value(&printed, "destroyed-at").starts_with("20"));
    assert_refused(&server, 400, "KMS.KMSInvalidStateException");
    key(&server, &["enable", DEFAULT]);
    assert_readable(&server);

    key(&server, &["delete", DEFAULT, "--after", "1s"]);
    eventually(|| value(&key(&server, &["status", DEFAULT]), "state") == "destroyed");
    assert_refused(&server, 400, "KMS.NotFoundException");

    // A period that ends while no server runs: the next start destroys.
    key(&server, &["create", "other"]);
    key(&server, &["delete", "other", "--after", "1s"]);
    let (status, _) = server.terminate();
    assert!(status.success(), "{status}");
    std::thread::sleep(Duration::from_millis(1100));
    server.start_again();
    assert_eq!(
        value(&key(&server, &["status", "other"]), "state"),
        "destroyed"
    );
}

#[test]
fn a_destroyed_key_leaves_no_copy_that_the_root_key_opens() {
    let mut server = filled(Config::http());
    let keystore = server.data_dir().join("keystore");
    let keys_before = fs::read(keystore.join("keys")).expect("the keystore");
    let slots_before = fs::read(keystore.join("file-key")).expect("the file key");
    let printed = key(&server, &["delete", DEFAULT, "--confirm", DEFAULT]);
    assert_eq!(value(&printed, "state"), "destroyed");
    assert_eq!(value(&printed, "versions"), "0");
    assert_refused(&server, 400, "KMS.NotFoundException");

    // The sealed file key of before is nowhere any more, so no copy of the old file can be opened.
    let slot = slots_before
        .chunks(4096)
        .find(|slot| slot.iter().any(|b| *b != 0))
        .expect("a slot in use");
    let mut needles = Needles::default();
    needles.add("the old sealed file key", &slot[48..120]);
    needles.add("the old sealed keys", &keys_before[40..]);
    needles.assert_absent(server.data_dir());

    // Put back, the old file does not open; the new one does.
    let (status, _) = server.terminate();
    assert!(status.success(), "{status}");
    let keys_after = fs::read(keystore.join("keys")).expect("the keystore");
    fs::write(keystore.join("keys"), &keys_before).expect("written");
    let status = kms(&server, &["status"]);
    assert_eq!(value(&status, "state"), "lost");
    fs::write(keystore.join("keys"), &keys_after).expect("written");
    server.start_again();
    assert_refused(&server, 400, "KMS.NotFoundException");

    // Under the name of a destroyed key there can be a new one; it opens nothing of the old one's.
    let made = key(&server, &["create", DEFAULT]);
    assert_eq!(value(&made, "version"), "2");
    let mut client = server.client();
    let got = client.get(BUCKET, &name(100)).expect("an answer");
    assert_eq!(got.expect(400).code(), "KMS.NotFoundException");
    client
        .put(BUCKET, "new", b"data")
        .expect("an answer")
        .expect(200);
    let got = client.get(BUCKET, "new").expect("an answer").expect(200);
    assert_eq!(got.body, b"data");
}

/// Puts an object under a named key, by itself or by a bucket key, or under no named key at all.
fn put_under(server: &Server, key_id: Option<&str>, bucket_key: &str, object: &str) {
    let named = [
        ("x-amz-server-side-encryption", "aws:kms"),
        (
            "x-amz-server-side-encryption-aws-kms-key-id",
            key_id.unwrap_or_default(),
        ),
        (
            "x-amz-server-side-encryption-bucket-key-enabled",
            bucket_key,
        ),
    ];
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: object,
        query: "",
        headers: if key_id.is_some() { &named } else { &[] },
    };
    let put = server.client().request(&request, object.as_bytes());
    put.expect("an answer").expect(200);
}

#[test]
fn a_key_that_goes_takes_its_own_objects_and_no_others() {
    let mut server = Config::http().start();
    server
        .client()
        .create_bucket(BUCKET)
        .expect("an answer")
        .expect(200);
    let names = ["red", "blue", "green"];
    for name in names {
        key(&server, &["create", name]);
    }
    let objects = || {
        names
            .iter()
            .flat_map(|name| ["true", "false"].map(|by| (*name, by, format!("{name}-{by}"))))
    };
    for (name, bucket_key, object) in objects() {
        put_under(&server, Some(name), bucket_key, &object);
    }
    put_under(&server, None, "", "of-nobody");

    key(&server, &["disable", "red"]);
    key(&server, &["delete", "blue", "--confirm", "blue"]);
    let check = |server: &Server| {
        for _ in 0..CONNECTIONS {
            let mut client = server.client();
            for (name, _, object) in objects() {
                let got = client.get(BUCKET, &object).expect("an answer");
                match name {
                    "red" => assert_eq!(got.expect(400).code(), "KMS.DisabledException"),
                    "blue" => assert_eq!(got.expect(400).code(), "KMS.NotFoundException"),
                    _ => assert_eq!(got.expect(200).body, object.as_bytes()),
                }
            }
            let got = client
                .get(BUCKET, "of-nobody")
                .expect("an answer")
                .expect(200);
            assert_eq!(got.body, b"of-nobody");
            assert_eq!(client.list(BUCKET).expect("a listing").len(), 7);
        }
    };
    check(&server);
    server.restart();
    check(&server);
    // What is unreadable can be deleted.
    let mut client = server.client();
    client
        .delete(BUCKET, "blue-true")
        .expect("an answer")
        .expect(204);
    assert_eq!(client.list(BUCKET).expect("a listing").len(), 6);
}

#[test]
fn a_download_does_not_outlive_its_key() {
    const SIZE: u64 = 64 << 20;
    for (take, give) in [
        (
            &["key", "disable", DEFAULT][..],
            &["key", "enable", DEFAULT][..],
        ),
        (&["kms", "seal"], &["kms", "unseal"]),
    ] {
        let server = Config::http().start();
        let mut client = server.client();
        client.create_bucket(BUCKET).expect("an answer").expect(200);
        let body = Pattern::named("big").bytes(SIZE as usize);
        client
            .put(BUCKET, "big", &body)
            .expect("an answer")
            .expect(200);
        let request = Request {
            method: "GET",
            bucket: BUCKET,
            key: "big",
            ..Request::default()
        };
        let (mut read, mut taken) = (0, false);
        let outcome = client.fetch(&request, |piece| {
            assert!(body[read as usize..][..piece.len()] == *piece);
            read += piece.len() as u64;
            if !taken {
                taken = true;
                succeed(&mut on(server.data_dir(), take));
            }
        });
        assert!(outcome.is_err(), "the whole object came: {outcome:?}");
        assert!(read < SIZE, "{read}");
        succeed(&mut on(server.data_dir(), give));
        let got = server.client().get(BUCKET, "big").expect("an answer");
        assert!(got.expect(200).body == body);
    }
}

#[test]
fn an_upload_that_began_before_its_key_went_away_is_refused() {
    let server = filled(Config::http());
    let body = content(3 << 20);
    let request = Request {
        method: "PUT",
        bucket: BUCKET,
        key: "late",
        ..Request::default()
    };
    let head = head_bytes(
        &server.endpoint(),
        &Moment::now(),
        &request,
        body.len() as u64,
    );
    let mut connection = Connection::open(server.address(), false).expect("a connection");
    let (first, rest) = body.split_at(body.len() / 2);
    connection.send(head.as_bytes(), first).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    key(&server, &["disable", DEFAULT]);
    // It may answer before it has read everything, and close.
    let _ = connection.send(rest, &[]);
    let head = connection.read_head().expect("an answer");
    assert_eq!(head.status, 400);
    key(&server, &["enable", DEFAULT]);
    let got = server.client().get(BUCKET, "late").expect("an answer");
    got.expect(404);
}

/// A client that stops sending does not keep its upload's key in memory.
#[test]
fn an_upload_that_waits_for_its_client_ends_with_its_key() {
    let server = filled(Config::http());
    for (take, give, status) in [
        (
            &["key", "disable", DEFAULT][..],
            &["key", "enable", DEFAULT][..],
            400,
        ),
        (&["kms", "seal"], &["kms", "unseal"], 503),
    ] {
        let body = content(3 << 20);
        let request = Request {
            method: "PUT",
            bucket: BUCKET,
            key: "waiting",
            ..Request::default()
        };
        let head = head_bytes(
            &server.endpoint(),
            &Moment::now(),
            &request,
            body.len() as u64,
        );
        let mut connection = Connection::open(server.address(), false).expect("a connection");
        connection
            .send(head.as_bytes(), &body[..1 << 20])
            .expect("sent");
        std::thread::sleep(Duration::from_millis(300));
        succeed(&mut on(server.data_dir(), take));
        let head = connection.read_head().expect("an answer");
        assert_eq!(head.status, status);
        succeed(&mut on(server.data_dir(), give));
        server
            .client()
            .get(BUCKET, "waiting")
            .expect("an answer")
            .expect(404);
    }
}

#[test]
fn a_lost_keystore_is_told_and_a_backup_brings_it_back() {
    let mut server = filled(Config::http());
    let scratch = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let backup = scratch.path().join("backup");
    let backup = backup.to_str().expect("UTF-8");
    let said = kms(&server, &["backup", backup]);
    assert!(said.contains("1 keys"), "{said}");
    let twice = fail(&mut on(server.data_dir(), &["kms", "backup", backup]));
    assert!(twice.contains(backup), "{twice}");

    let (status, _) = server.terminate();
    assert!(status.success(), "{status}");
    let keystore = server.data_dir().join("keystore");
    fs::remove_dir_all(&keystore).expect("removed");
    server.start_again();
    let log = server.log();
    let place = keystore.to_str().expect("UTF-8");
    assert!(log.contains(place) && log.contains("kms restore"), "{log}");
    assert_refused(&server, 503, "ServiceUnavailable");
    let refused = server.client().get(BUCKET, &name(100)).expect("an answer");
    assert!(refused.text().contains("lost"), "{}", refused.text());
    let status = kms(&server, &["status"]);
    assert_eq!(value(&status, "state"), "lost");
    assert!(value(&status, "reason").contains("kms restore"), "{status}");

    let said = kms(&server, &["restore", backup]);
    assert!(said.contains(DEFAULT), "{said}");
    assert_readable(&server);
    server.restart();
    assert_readable(&server);
}

#[test]
fn a_backup_under_a_key_of_its_own_opens_with_that_key_only() {
    let server = filled(Config::http());
    let scratch = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let path = |name: &str| {
        scratch
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_owned()
    };
    let (backup, key_file) = (path("backup"), path("backup.key"));
    kms(&server, &["backup", &backup, "--key-file", &key_file]);
    key(&server, &["delete", DEFAULT, "--confirm", DEFAULT]);
    assert_refused(&server, 400, "KMS.NotFoundException");
    let wrong = fail(&mut on(server.data_dir(), &["kms", "restore", &backup]));
    assert!(wrong.contains("root key"), "{wrong}");
    kms(&server, &["restore", &backup, "--key-file", &key_file]);
    assert_readable(&server);
}

/// On a new machine, with nothing but the backup and its key.
#[test]
fn a_backup_makes_a_keystore_where_there_is_none() {
    let server = filled(Config::http());
    let scratch = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let path = |name: &str| {
        scratch
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_owned()
    };
    let (backup, key_file) = (path("backup"), path("backup.key"));
    key(&server, &["create", "payroll"]);
    kms(&server, &["backup", &backup, "--key-file", &key_file]);
    let elsewhere = scratch.path().join("elsewhere");
    let restore = ["kms", "restore", &backup, "--key-file", &key_file];
    let said = succeed(&mut on(&elsewhere, &restore));
    assert!(said.contains("payroll"), "{said}");
    let listed = succeed(&mut on(&elsewhere, &["key", "list"]));
    assert!(
        listed.contains("payroll") && listed.contains(DEFAULT),
        "{listed}"
    );
}

/// With the root key off the machine, people open the keystore: while the server runs, and when it starts.
#[test]
fn a_passphrase_or_shares_open_the_keystore() {
    const PASSPHRASE: &str = "a passphrase nobody guesses";
    let mut server = filled(Config::http());
    let dir = server.data_dir().to_owned();
    let give = |args: &[&str], lines: &str| answer(&mut on(&dir, args), lines);
    let short = give(&["kms", "root-key", "passphrase"], "short\n");
    assert!(
        !short.status.success() && said(&short).contains("12"),
        "{}",
        said(&short)
    );
    let set = give(
        &["kms", "root-key", "passphrase"],
        &format!("{PASSPHRASE}\n"),
    );
    assert!(set.status.success(), "{}", said(&set));
    let split = [
        "kms",
        "root-key",
        "split",
        "--shares",
        "5",
        "--threshold",
        "3",
    ];
    let shares = succeed(&mut on(&dir, &split));
    let shares: Vec<&str> = shares.lines().collect();
    assert_eq!(shares.len(), 5);
    let root = fs::read(dir.join("root.key")).expect("the root key");
    fs::remove_file(dir.join("root.key")).expect("removed");

    let unseal = ["kms", "unseal"];
    let by_shares = ["kms", "unseal", "--shares"];
    kms(&server, &["seal"]);
    for (args, lines) in [
        (&unseal[..], String::new()),
        (&unseal, format!("not {PASSPHRASE}\n")),
        (&by_shares, format!("{}\n{}\n", shares[0], shares[1])),
        (&by_shares, format!("{}\n{}\n", shares[0], shares[0])),
        (&by_shares, format!("{}\n", &shares[0][..60])),
    ] {
        let refused = give(args, &lines);
        assert!(!refused.status.success(), "{args:?} {}", said(&refused));
        assert_eq!(value(&kms(&server, &["status"]), "state"), "sealed");
    }
    let done = give(&unseal, &format!("{PASSPHRASE}\n"));
    assert!(done.status.success(), "{}", said(&done));
    assert_readable(&server);
    kms(&server, &["seal"]);
    let done = give(
        &by_shares,
        &format!("{}\n{}\n{}\n", shares[4], shares[0], shares[2]),
    );
    assert!(done.status.success(), "{}", said(&done));
    assert_readable(&server);

    // Without a server.
    let (status, _) = server.terminate();
    assert!(status.success(), "{status}");
    let listed = give(&["key", "list"], &format!("{PASSPHRASE}\n"));
    assert!(said(&listed).contains(DEFAULT), "{}", said(&listed));
    let mut verify = command(&["verify", &dir.display().to_string()]);
    verify.env(
        "STRONGROOM_KMS_ROOT_KEY",
        String::from_utf8_lossy(&root).trim(),
    );
    let sound = answer(&mut verify, "");
    let printed = said(&sound);
    assert!(sound.status.success(), "{printed}");
    assert!(!printed.contains("is not the store's"), "{printed}");

    // A start waits to be opened.
    let opener = std::thread::spawn({
        let dir = dir.clone();
        move || {
            eventually(|| {
                let mut status = on(&dir, &["kms", "status"]);
                said(&answer(&mut status, "")).contains("state: locked")
            });
            let other = fail(&mut on(&dir, &["key", "create", "a"]));
            assert!(other.contains("kms unseal"), "{other}");
            let wrong = answer(&mut on(&dir, &["kms", "unseal"]), "not the passphrase\n");
            assert!(!wrong.status.success());
            let done = answer(
                &mut on(&dir, &["kms", "unseal"]),
                &format!("{PASSPHRASE}\n"),
            );
            assert!(done.status.success(), "{}", said(&done));
        }
    });
    server.start_again();
    opener.join().expect("it was opened");
    assert_readable(&server);

    let mut needles = Needles::default();
    needles.add("the passphrase", PASSPHRASE.as_bytes());
    needles.add("the root key's text", root.trim_ascii());
    needles.add("a share", shares[0].as_bytes());
    needles.assert_absent(&dir);
    let log = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    fs::write(log.path().join("log"), server.log()).expect("written");
    needles.assert_absent(log.path());
}

/// No key and no context value is in a log at any level, in an answer, or in what commands print.
#[test]
fn no_key_is_in_a_log_or_an_answer() {
    let server = filled(Config::http().env("STRONGROOM_LOG", "trace"));
    let scratch = tempfile::tempdir_in(binary::scratch()).expect("scratch is writable");
    let backup = scratch.path().join("backup");
    let backup = backup.to_str().expect("UTF-8");
    let root = fs::read_to_string(server.data_dir().join("root.key")).expect("the root key");
    let root = root.trim();
    let mut printed = String::new();
    let mut said = |args: &[&str]| {
        let mut command = on(server.data_dir(), args);
        command
            .env("STRONGROOM_LOG", "trace")
            .env("STRONGROOM_KMS_ROOT_KEY", root);
        let output = command.output().expect("the command starts");
        printed += &String::from_utf8_lossy(&output.stdout);
        printed += &String::from_utf8_lossy(&output.stderr);
    };
    said(&["key", "create", "a"]);
    said(&["key", "create", "a"]);
    said(&["key", "rotate", "a"]);
    said(&["key", "disable", "a"]);
    said(&["key", "list"]);
    said(&["kms", "backup", backup]);
    said(&["kms", "seal"]);
    said(&["kms", "unseal"]);
    said(&["kms", "restore", backup]);
    said(&["key", "delete", "a", "--confirm", "a"]);
    said(&["kms", "status"]);
    key(&server, &["disable", DEFAULT]);
    let refused = server.client().get(BUCKET, &name(100)).expect("an answer");
    printed += &refused.expect(400).text();

    let seen = scratch.path().join("seen");
    fs::create_dir(&seen).expect("made");
    fs::write(seen.join("printed"), printed).expect("written");
    fs::write(seen.join("log"), server.log()).expect("written");
    let mut needles = Needles::default();
    needles.add("the root key's text", root.as_bytes());
    needles.add("the root key", &decoded(root));
    needles.assert_absent(&seen);
    assert_found_only(&needles, server.data_dir(), "root.key");
}

/// The root key is in one file alone.
fn assert_found_only(needles: &Needles, dir: &Path, file: &str) {
    let hits = needles.search(dir);
    assert!(!hits.is_empty(), "the search finds nothing at all");
    for hit in hits {
        assert!(hit.file.ends_with(file), "{hit:?}");
    }
}

fn decoded(base64: &str) -> Vec<u8> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64);
    bytes.expect("base64")
}

fn eventually(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came");
        std::thread::sleep(Duration::from_millis(50));
    }
}
