//! The client against a scripted service: recorded answers of a real one, odd answers, outages.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::client::Connection as _;
use super::stub::{Stub, json, now};
use crate::error::{Caller, Error, KeyProblem, Outage, Place};

fn generated(fill: u8) -> String {
    let (plain, sealed) = (STANDARD.encode([fill; 32]), STANDARD.encode([9; 76]));
    format!("{{\"plaintext\":\"{plain}\",\"ciphertext\":\"{sealed}\"}}\n")
}

/// Serves what a real KES answered, in order of the requests recorded.
#[test]
fn recorded_answers_of_a_real_server() {
    let exchanges: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../../tests/golden/kes-exchanges.json")).unwrap();
    let mut tried = 0;
    for exchange in exchanges {
        let text = |field: &str| exchange[field].as_str().unwrap_or_default().to_owned();
        let path = text("path");
        let name = path.rsplit('/').next().unwrap().to_owned();
        let Some(status) = exchange["status"]
            .as_u64()
            .and_then(|s| u16::try_from(s).ok())
        else {
            continue;
        };
        let (response, content_type) = (
            text("response"),
            exchange["headers"]["content-type"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
        let content_type: &'static str = if content_type.starts_with("application/json") {
            "application/json"
        } else {
            "text/plain"
        };
        let stub = Stub::new({
            let response = response.clone();
            move |_, _| Ok((status, content_type, response.clone().into_bytes()))
        });
        let client = stub.client(1);
        let deadline = stub.deadline();
        let body: serde_json::Value = serde_json::from_str(&text("body")).unwrap_or_default();
        let bytes = |field: &str| {
            STANDARD
                .decode(body[field].as_str().unwrap_or_default())
                .unwrap_or_default()
        };
        let outcome = if path.starts_with("/v1/key/generate/") {
            now(client.generate(&name, &bytes("context"), deadline)).map(drop)
        } else if path.starts_with("/v1/key/decrypt/") {
            let outcome =
                now(client.decrypt(&name, &bytes("ciphertext"), &bytes("context"), deadline));
            let answer: serde_json::Value = serde_json::from_str(&response).unwrap_or_default();
            let plain = STANDARD
                .decode(answer["plaintext"].as_str().unwrap_or_default())
                .unwrap();
            if status == 200 && plain.len() != 32 {
                // What was encrypted then is a sentence, and no data key.
                assert!(matches!(outcome, Err(Error::Outage(_))));
                continue;
            }
            outcome.map(|key| assert_eq!(key.expose()[..], plain))
        } else if path.starts_with("/v1/key/create/") && text("method") == "PUT" {
            now(client.create_key(&name, deadline))
        } else if path.starts_with("/v1/key/describe/") {
            now(client.describe_key(&name, deadline)).map(|key| {
                assert_eq!(
                    (key.name.as_str(), key.algorithm.as_str()),
                    ("golden-1", "AES256")
                );
                assert_eq!(key.created_at, "2026-11-23T16:24:24.389923697Z");
            })
        } else if path == "/v1/key/list/" {
            now(client.list_keys("", deadline)).map(|(names, more)| {
                assert_eq!(names, ["golden-1", "golden-2", "k1", "k2"]);
                assert!(!more);
            })
        } else if path.starts_with("/v1/key/delete/") {
            now(client.delete_key(&name, deadline))
        } else {
            continue;
        };
        tried += 1;
        let message = serde_json::from_str::<serde_json::Value>(&response)
            .ok()
            .and_then(|body| body["message"].as_str().map(str::to_owned))
            .unwrap_or_default();
        let context = format!("{path}: {message}: {:?}", outcome.as_ref().err());
        match (status, message.as_str()) {
            (200, _) => assert!(outcome.is_ok(), "{context}"),
            (404, "key does not exist") => {
                assert!(
                    matches!(
                        outcome,
                        Err(Error::KeyState {
                            problem: KeyProblem::NotFound,
                            ..
                        })
                    ),
                    "{context}"
                );
            }
            (400, "key already exists") => {
                assert!(
                    matches!(outcome, Err(Error::Caller(Caller::KeyExists(_)))),
                    "{context}"
                );
            }
            (403, "not authorized: insufficient permissions") => {
                assert!(
                    matches!(
                        outcome,
                        Err(Error::KeyState {
                            problem: KeyProblem::NotAuthorized,
                            ..
                        })
                    ),
                    "{context}"
                );
            }
            (400, "decryption failed: ciphertext is not authentic") => {
                assert!(
                    matches!(outcome, Err(Error::Corrupt(Place::DataKey(_)))),
                    "{context}"
                );
            }
            (400, text) if text.starts_with("key name '") => {
                assert!(
                    matches!(outcome, Err(Error::Caller(Caller::InvalidKeyName(_)))),
                    "{context}"
                );
                assert!(stub.sent.borrow().is_empty());
            }
            _ => assert!(matches!(outcome, Err(Error::Outage(_))), "{context}"),
        }
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn what_goes_over_the_wire() {
    let stub = Stub::new(|_, request| match request.path.as_str() {
        "/v1/key/decrypt/k" => json(
            200,
            &format!("{{\"plaintext\":\"{}\"}}", STANDARD.encode([7; 32])),
        ),
        _ => json(200, &generated(5)),
    });
    let client = stub.client(1);
    let (plain, sealed) = now(client.generate("k", b"{}", stub.deadline()))
        .ok()
        .unwrap();
    assert_eq!((plain.expose(), sealed.len()), (&[5; 32], 76));
    let plain = now(client.decrypt("k", &[1, 2, 3], b"{}", stub.deadline()))
        .ok()
        .unwrap();
    assert_eq!(plain.expose(), &[7; 32]);
    now(client.create_key("k", stub.deadline())).ok().unwrap();
    assert!(now(client.generate("../k", b"{}", stub.deadline())).is_err());
    let want = [
        ("kes0", "PUT /v1/key/generate/k", r#"{"context":"e30="}"#),
        (
            "kes0",
            "PUT /v1/key/decrypt/k",
            r#"{"ciphertext":"AQID","context":"e30="}"#,
        ),
        ("kes0", "PUT /v1/key/create/k", ""),
    ];
    for ((host, line, body), want) in stub.sent.borrow().iter().zip(want) {
        assert_eq!(
            (
                host.as_str(),
                line.as_str(),
                std::str::from_utf8(body).unwrap()
            ),
            want
        );
    }
    assert_eq!((stub.sent.borrow().len(), client.requests_sent()), (3, 3));
}

/// Whatever a broken service says, no key comes of it.
#[test]
fn odd_answers_never_become_keys() {
    let zero = generated(0);
    let short = format!(
        "{{\"plaintext\":\"{}\",\"ciphertext\":\"{}\"}}",
        STANDARD.encode([1; 31]),
        STANDARD.encode([9; 76])
    );
    let no_ciphertext = format!(
        "{{\"plaintext\":\"{}\",\"ciphertext\":\"\"}}",
        STANDARD.encode([1; 32])
    );
    let without = format!("{{\"plaintext\":\"{}\"}}", STANDARD.encode([1; 32]));
    for (status, body) in [
        (200, ""),
        (200, "{}"),
        (200, "null"),
        (200, "[]"),
        (200, "<html>"),
        (200, "{\"plaintext\":null,\"ciphertext\":null}"),
        (200, zero.as_str()),
        (200, short.as_str()),
        (200, no_ciphertext.as_str()),
        (200, without.as_str()),
        (204, generated(1).as_str()),
        (301, ""),
        (400, "{}"),
        (404, "{\"message\":\"not found\"}"),
        (404, "404 page not found"),
        (403, "{\"message\":\"key does not exist\"}"),
        (501, "{\"message\":\"key does not exist\"}"),
    ] {
        let text = body.to_owned();
        let stub = Stub::new(move |_, _| json(status, &text));
        let outcome = now(stub.client(1).generate("k", b"{}", stub.deadline()));
        assert!(
            matches!(outcome, Err(Error::Outage(Outage::Unreachable(_)))),
            "{status} {body}"
        );
    }
}

#[test]
fn legacy_error_texts_and_plain_bodies() {
    let problem = |status, content_type, body: &'static str| {
        let stub = Stub::new(move |_, _| Ok((status, content_type, body.as_bytes().to_vec())));
        now(stub.client(1).create_key("k", stub.deadline())).unwrap_err()
    };
    for (content_type, body) in [
        (
            "application/json",
            "{\"message\":\"key does already exist\"}",
        ),
        (
            "application/json; charset=utf-8",
            "{\"error\":\"key already exists\",\"message\":\"x\"}",
        ),
        ("text/plain", "key already exists"),
    ] {
        assert!(
            matches!(
                problem(400, content_type, body),
                Error::Caller(Caller::KeyExists(_))
            ),
            "{body}"
        );
    }
    assert!(matches!(
        problem(403, "", "prohibited by policy"),
        Error::KeyState {
            problem: KeyProblem::NotAuthorized,
            ..
        }
    ));
    // Text alone is not enough, and what is shown of it is short and printable.
    let shown = problem(418, "text/plain", "key already exists\u{1b}[31m").to_string();
    assert!(
        shown.contains("418") && !shown.contains('\u{1b}'),
        "{shown}"
    );
}

#[test]
fn a_failing_endpoint_is_passed_over_and_tried_again() {
    let down = Rc::new(Cell::new(true));
    let stub = Stub::new({
        let down = Rc::clone(&down);
        move |host, _| match (host, down.get()) {
            ("kes1", true) => Err("connection refused"),
            ("kes2", true) => json(502, "{\"message\":\"failed to read key\"}"),
            _ => json(200, &generated(1)),
        }
    });
    let client = stub.client(3);
    for _ in 0..20 {
        assert!(now(client.generate("k", b"{}", stub.deadline())).is_ok());
    }
    // At most one try each at those that are down, no pause, then all at the one that answers.
    assert!(stub.hosts().len() <= 22, "{:?}", stub.hosts());
    assert!(stub.pauses.borrow().is_empty());
    assert_eq!(stub.hosts().last().unwrap(), "kes0");
    down.set(false);
    stub.sent.borrow_mut().clear();
    assert!(now(client.generate("k", b"{}", stub.deadline())).is_ok());
    assert_eq!(stub.hosts(), ["kes0"]);
}

#[test]
fn an_outage_ends_within_the_deadline_and_heals_at_once() {
    let up = Rc::new(Cell::new(false));
    let stub = Stub::new({
        let up = Rc::clone(&up);
        move |_, _| {
            if up.get() {
                json(200, &generated(1))
            } else {
                Err("connection refused")
            }
        }
    });
    let client = stub.client(2);
    let begun = stub.now();
    let outcome = now(client.generate("k", b"{}", stub.deadline()));
    assert!(
        matches!(outcome, Err(Error::Outage(Outage::Unreachable(why))) if why.contains("refused"))
    );
    assert!(stub.now() - begun <= Duration::from_secs(5));
    assert_eq!(stub.hosts().len(), 6);
    assert_eq!(stub.pauses.borrow().len(), 2);
    for pause in stub.pauses.borrow().iter() {
        assert!((200..1000).contains(&pause.as_millis()), "{pause:?}");
    }
    up.set(true);
    assert!(now(client.generate("k", b"{}", stub.deadline())).is_ok());
}

#[test]
fn a_silent_endpoint_leaves_time_for_another() {
    let stub = Stub::new(|_, _| json(200, &generated(1)));
    stub.takes.set(Duration::from_secs(60));
    let client = stub.client(2);
    let begun = stub.now();
    assert!(now(client.generate("k", b"{}", stub.deadline())).is_err());
    assert!(stub.now() - begun <= Duration::from_secs(5));
    let mut hosts = stub.hosts();
    hosts.truncate(2);
    hosts.sort();
    assert_eq!(hosts, ["kes0", "kes1"]);
}

#[test]
fn however_many_are_silent_one_that_answers_is_asked_in_time() {
    for count in [3, 5, 9] {
        let stub = Stub::new(|_, _| json(200, &generated(1)));
        stub.takes.set(Duration::from_secs(60));
        let client = stub.client(count);
        let begun = stub.now();
        assert!(now(client.generate("k", b"{}", stub.deadline())).is_err());
        assert!(stub.now() - begun <= Duration::from_secs(5));
        let mut hosts = stub.hosts();
        hosts.truncate(usize::from(count));
        hosts.sort();
        hosts.dedup();
        assert_eq!(hosts.len(), usize::from(count), "each is asked once");
    }
}

/// Whether an unanswered create took effect is not known, so it is not sent twice.
#[test]
fn what_changes_something_is_sent_once() {
    let stub = Stub::new(|_, _| Err("connection reset"));
    let client = stub.client(3);
    assert!(now(client.create_key("k", stub.deadline())).is_err());
    assert!(now(client.delete_key("k", stub.deadline())).is_err());
    assert_eq!(stub.hosts().len(), 2);
}

#[test]
fn status_asks_everyone() {
    let mut answers = VecDeque::from([
        json(
            200,
            "{\"version\":\"v\",\"os\":\"linux\",\"keystore_latency\":1}",
        ),
        json(200, "{\"version\":\"v\",\"keystore_unreachable\":true}"),
        Err("connection refused"),
    ]);
    let stub = Stub::new(move |_, _| answers.pop_front().unwrap());
    let all = now(stub.client(3).status(stub.deadline()));
    let reachable: Vec<bool> = all.iter().map(|one| one.keystore_reachable).collect();
    assert_eq!(reachable, [true, false, false]);
    assert_eq!(all[0].version, Ok("v".to_owned()));
    assert_eq!(all[2].version, Err("connection refused".to_owned()));
    assert_eq!(all[1].endpoint, "kes1:7373");
}
