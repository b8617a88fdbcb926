//! `kill -9` under load, again and again: what was acknowledged is there and whole, what was not is there as a whole
//! or not at all, and the space of what never came to be is given back. Deletes stay, uploads go on with the parts they have, and
//! of several who create one object one has created it.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use strongroom_tests::client::{Client, Listed, Outcome, Request, xml_values};
use strongroom_tests::data::{Chance, Pattern};
use strongroom_tests::{Config, Server, disk, scaled, sigv4};

const BUCKET: &str = "crash";
const WRITERS: u64 = 8;
const KEYS_PER_WRITER: u64 = 12;
const PART: u64 = 5 << 20;

/// What a key holds: content and length, or nothing.
type State = Option<(u64, u64)>;

/// One writer's knowledge of its keys, kept over all rounds.
#[derive(Default)]
struct Model {
    held: BTreeMap<String, State>,
    /// The one request that had no answer yet when the server died, and what it would have led to.
    pending: Option<(String, State)>,
    /// The upload that was under way, where its end had not been asked for.
    upload: Option<Upload>,
    /// Races to create an object: what this writer would have it be, and the answer.
    races: BTreeMap<String, (u64, u64, Raced)>,
    bytes_sent: u64,
    acknowledged: u64,
}

struct Upload {
    id: String,
    /// ETags of the parts that were acknowledged.
    parts: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Raced {
    Won,
    Lost,
    Unknown,
}

#[test]
fn acknowledged_objects_survive_http() {
    survive(Config::http(), scaled(5, 300));
}

#[test]
fn acknowledged_objects_survive_tls() {
    survive(Config::tls(), scaled(2, 30));
}

fn survive(config: Config, rounds: u32) {
    let mut chance = Chance::from_env();
    let mut server = config.start();
    let mut client = server.client();
    let made = client.create_bucket(BUCKET).expect("an answer");
    made.expect(200);
    let empty = disk::used_bytes(server.data_dir());
    let mut models: Vec<Model> = (0..WRITERS).map(|_| Model::default()).collect();
    for round in 0..rounds {
        let wait = Duration::from_millis(chance.within(150, 1200));
        run_until_killed(&mut server, &mut models, &mut chance, wait, round);
        server.start_again();
        check(&server, &mut models, round);
    }
    let acknowledged: u64 = models.iter().map(|m| m.acknowledged).sum();
    let least = u64::from(rounds) * 10;
    assert!(
        acknowledged >= least,
        "only {acknowledged} writes in {rounds} rounds: no load"
    );

    empty_bucket(&mut server.client());
    let written: u64 = models.iter().map(|m| m.bytes_sent).sum();
    let limit = empty + written * 15 / 100 + (1 << 20);
    let took = disk::wait_used_at_most(server.data_dir(), limit, Duration::from_secs(20));
    eprintln!("{rounds} kills, {acknowledged} writes, {written} bytes; space back after {took:?}");
}

fn run_until_killed(
    server: &mut Server,
    models: &mut [Model],
    chance: &mut Chance,
    wait: Duration,
    round: u32,
) {
    thread::scope(|scope| {
        for (writer, model) in models.iter_mut().enumerate() {
            let (client, chance) = (server.client(), chance.branch());
            scope.spawn(move || write_until_it_fails(client, writer, model, chance, round));
        }
        thread::sleep(wait);
        server.kill();
    });
}

fn write_until_it_fails(
    mut client: Client,
    writer: usize,
    model: &mut Model,
    mut chance: Chance,
    round: u32,
) {
    for turn in 0u64.. {
        if turn % 4 == 3 {
            // All writers come to this one at about the same time.
            let key = format!("race/{round}-{}", turn / 4);
            if race(&mut client, key, model, &mut chance).is_err() {
                return;
            }
        }
        let key = format!("writer-{writer}/key {}", chance.within(0, KEYS_PER_WRITER));
        let seed = chance.number();
        let length = match chance.within(0, 20) {
            0 => 0,
            1..8 => chance.within(1, 4096),
            8..12 => chance.within(4096, 70_000),
            12..18 => chance.within(70_000, 400_000),
            _ => chance.within(1 << 20, 4 << 20),
        };
        let done = if chance.one_in(8) {
            model.pending = Some((key.clone(), None));
            client.delete(BUCKET, &key).map(|r| r.expect(204))
        } else if chance.one_in(25) {
            model.pending = Some((key.clone(), Some((seed, PART + length))));
            model.bytes_sent += PART + length;
            put_in_parts(&mut client, &key, seed, length, &mut model.upload)
        } else if chance.one_in(6) {
            if !create(&mut client, &key, (seed, length), model) {
                return;
            }
            continue;
        } else {
            model.pending = Some((key.clone(), Some((seed, length))));
            model.bytes_sent += length;
            let request = put(&key);
            let mut body = Pattern::new(seed).reader(length);
            client
                .stream(&request, length, &mut body)
                .map(|r| r.expect(200))
        };
        if done.is_err() {
            return;
        }
        let (key, state) = model.pending.take().expect("set above");
        model.held.insert(key, state);
        model.acknowledged += 1;
    }
}

/// Creates an object that may be there; false once the server is gone.
fn create(client: &mut Client, key: &str, content: (u64, u64), model: &mut Model) -> bool {
    let before = model.held.get(key).copied().flatten();
    let there = before.is_some();
    let after = before.or(Some(content));
    model.pending = Some((key.to_owned(), after));
    let Ok(created) = put_if_absent(client, key, content) else {
        return false;
    };
    assert_eq!(created, !there, "{key}");
    model.bytes_sent += content.1;
    model.pending = None;
    model.held.insert(key.to_owned(), after);
    model.acknowledged += 1;
    true
}

/// Creates an object that others create too.
fn race(
    client: &mut Client,
    key: String,
    model: &mut Model,
    chance: &mut Chance,
) -> std::io::Result<()> {
    let content = (chance.number(), chance.within(1, 40_000));
    let won = put_if_absent(client, &key, content);
    let raced = match &won {
        Ok(true) => Raced::Won,
        Ok(false) => Raced::Lost,
        Err(_) => Raced::Unknown,
    };
    model.bytes_sent += content.1;
    model.races.insert(key, (content.0, content.1, raced));
    won.map(drop)
}

fn put_if_absent(
    client: &mut Client,
    key: &str,
    (seed, length): (u64, u64),
) -> std::io::Result<bool> {
    let request = Request {
        headers: &[("if-none-match", "*")],
        ..put(key)
    };
    let content = Pattern::new(seed).bytes(length as usize);
    let answer = client.request(&request, &content)?;
    match answer.status() {
        200 => Ok(true),
        412 => Ok(false),
        _ => panic!("{key}: {}", answer.text()),
    }
}

fn put(key: &str) -> Request<'_> {
    Request {
        method: "PUT",
        bucket: BUCKET,
        key,
        ..Request::default()
    }
}

/// Two parts, the second of `rest` bytes and possibly empty.
fn put_in_parts(
    client: &mut Client,
    key: &str,
    seed: u64,
    rest: u64,
    upload: &mut Option<Upload>,
) -> std::io::Result<strongroom_tests::client::Response> {
    let begun = client
        .send("POST", BUCKET, key, "uploads=", &[])?
        .expect(200);
    let id = xml_values(&begun.text(), "UploadId").remove(0);
    let id = sigv4::encode_query(&id);
    let under_way = upload.insert(Upload {
        id: id.clone(),
        parts: Vec::new(),
    });
    let content = Pattern::new(seed).bytes((PART + rest) as usize);
    let (first, second) = content.split_at(PART as usize);
    for (number, part) in [(1, first), (2, second)] {
        let query = format!("partNumber={number}&uploadId={id}");
        let answer = client.send("PUT", BUCKET, key, &query, part)?.expect(200);
        let etag = answer
            .head
            .header("etag")
            .expect("a part has an ETag")
            .to_owned();
        under_way.parts.push(etag);
    }
    let whole = upload.take().expect("set above");
    complete(client, key, &whole)
}

fn complete(
    client: &mut Client,
    key: &str,
    upload: &Upload,
) -> std::io::Result<strongroom_tests::client::Response> {
    let mut list = String::new();
    for (number, etag) in (1..).zip(&upload.parts) {
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let query = format!("uploadId={}", upload.id);
    let answer = client.send("POST", BUCKET, key, &query, list.as_bytes())?;
    assert!(!answer.text().contains("<Error>"), "{}", answer.text());
    Ok(answer.expect(200))
}

/// Goes on with the upload that was under way: its parts are there, and it ends with the acknowledged ones.
fn go_on(client: &mut Client, model: &mut Model, key: &str, seed: u64, round: u32) {
    let Some(upload) = model.upload.take().filter(|u| !u.parts.is_empty()) else {
        return;
    };
    let query = format!("uploadId={}", upload.id);
    let parts = client.send("GET", BUCKET, key, &query, &[]);
    let parts = parts.expect("an answer").expect(200).text();
    let etags = xml_values(&parts, "ETag");
    let bare = |etag: &String| etag.replace("&quot;", "").replace('"', "");
    let etags: Vec<String> = etags.iter().map(bare).collect();
    let known: Vec<String> = upload.parts.iter().map(bare).collect();
    assert!(etags.starts_with(&known), "round {round}: {key}: {parts}");
    let size: u64 = xml_values(&parts, "Size")[..known.len()]
        .iter()
        .map(|size| size.parse::<u64>().expect("a number"))
        .sum();
    complete(client, key, &upload).expect("an answer");
    model.held.insert(key.to_owned(), Some((seed, size)));
}

/// Of each race one at most has won, its object is there, and none where nobody knows of one. Ended races make room.
fn check_races(client: &mut Client, models: &mut [Model], round: u32) {
    let mut all: BTreeMap<String, Vec<(u64, u64, Raced)>> = BTreeMap::new();
    for model in models.iter_mut() {
        for (key, raced) in std::mem::take(&mut model.races) {
            all.entry(key).or_default().push(raced);
        }
    }
    for (key, racers) in all {
        let content = |r: &(u64, u64, Raced)| Some((r.0, r.1));
        let of = |raced| racers.iter().filter(move |r| r.2 == raced);
        let winners = of(Raced::Won).count();
        assert!(winners <= 1, "round {round}: {winners} created {key}");
        let mut possible: Vec<State> = of(Raced::Won).map(content).collect();
        if winners == 0 {
            possible.extend(of(Raced::Unknown).map(content));
            // Who lost has seen one.
            if of(Raced::Lost).count() == 0 {
                possible.push(None);
            }
        }
        let holds = possible.iter().any(|state| holds(client, &key, *state));
        assert!(holds, "round {round}: {key} is not what was created");
        client.delete(BUCKET, &key).expect("an answer").expect(204);
    }
}

/// Compares the store with what every writer knows, and settles what was pending.
fn check(server: &Server, models: &mut [Model], round: u32) {
    check_races(&mut server.client(), models, round);
    for model in models.iter_mut() {
        if let Some((key, Some((seed, _)))) = model.pending.clone() {
            go_on(&mut server.client(), model, &key, seed, round);
        }
        model.upload = None;
    }
    let listed = server.client().list(BUCKET).expect("a listing");
    let listed: BTreeMap<String, Listed> = listed.into_iter().map(|l| (l.key.clone(), l)).collect();
    let mut known = 0;
    thread::scope(|scope| {
        for model in models.iter_mut() {
            let (mut client, listed) = (server.client(), &listed);
            scope.spawn(move || {
                if let Some((key, outcome)) = model.pending.take() {
                    let before = model.held.get(&key).copied().flatten();
                    let now = [before, outcome].into_iter().find(|s| holds(&mut client, &key, *s));
                    let now = now.unwrap_or_else(|| {
                        panic!("round {round}: {key} is neither as before ({before:?}) nor after ({outcome:?})")
                    });
                    model.held.insert(key, now);
                }
                for (key, state) in &model.held {
                    assert!(
                        holds(&mut client, key, *state),
                        "round {round}: {key} does not hold {state:?}"
                    );
                    let size = listed.get(key).map(|l| l.size);
                    assert_eq!(size, state.map(|s| s.1), "round {round}: {key} in the listing");
                }
            });
        }
    });
    for model in models.iter() {
        known += model.held.values().flatten().count();
    }
    assert_eq!(
        listed.len(),
        known,
        "round {round}: objects that nobody wrote"
    );
}

fn holds(client: &mut Client, key: &str, state: State) -> bool {
    match state {
        None => client.get(BUCKET, key).expect("an answer").status() == 404,
        Some((seed, length)) => {
            // A probe panics on wrong bytes, which another state may well have: ask for the length first.
            let head = client.head(BUCKET, key).expect("an answer").head;
            let same = head.header("content-length") == Some(&length.to_string());
            if head.status != 200 || !same {
                return false;
            }
            let start = Pattern::new(seed).bytes(length.min(16) as usize);
            let got = client.get(BUCKET, key).expect("a whole answer");
            if !got.body.starts_with(&start) {
                return false;
            }
            client.probe(BUCKET, key, &Pattern::new(seed), length) == Outcome::Right
        }
    }
}

/// Removes all objects and gives up all uploads that the kills left behind.
fn empty_bucket(client: &mut Client) {
    for entry in client.list(BUCKET).expect("a listing") {
        client
            .delete(BUCKET, &entry.key)
            .expect("an answer")
            .expect(204);
    }
    loop {
        let page = client
            .send("GET", BUCKET, "", "uploads=", &[])
            .expect("an answer");
        let uploads = xml_values(&page.text(), "Upload");
        if uploads.is_empty() {
            return;
        }
        for upload in uploads {
            let value = |tag| xml_values(&upload, tag).remove(0);
            let query = format!("uploadId={}", sigv4::encode_query(&value("UploadId")));
            let done = client.send("DELETE", BUCKET, &value("Key"), &query, &[]);
            done.expect("an answer").expect(204);
        }
    }
}
