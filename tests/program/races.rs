//! Requests that race with each other: each gets an answer that its row in `docs/api.md` (*Races*) names, and what is
//! stored afterwards is what the answers said. Each race is run for a moment only; `tests/linearizable` looks at
//! histories as a whole.

use crate::support::{Client, Reply, Server, processor::Processor, start};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::{self, Read},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long each race is run.
const LONG: Duration = Duration::from_millis(1500);

/// The answers that were seen: a status, and the code of a problem.
#[derive(Default)]
struct Seen(Mutex<BTreeMap<String, u64>>);

impl Seen {
    fn note(&self, answer: &str) {
        *self.0.lock().unwrap().entry(answer.to_owned()).or_default() += 1;
    }

    /// Notes an answer, and returns its status.
    fn reply(&self, reply: &Reply) -> u16 {
        let code = if reply.status < 400 { Value::Null } else { json(&reply.body)["code"].clone() };
        self.note(format!("{} {}", reply.status, code.as_str().unwrap_or_default()).trim_end());
        reply.status
    }

    fn count(&self, answer: &str) -> u64 {
        self.0.lock().unwrap().get(answer).copied().unwrap_or(0)
    }

    /// Checks that the row of this race and request names all of them.
    fn are_named_in(&self, race: &str, request: &str) {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
        let row = format!("| {race} | {request} | ");
        let row =
            page.lines().find_map(|line| line.strip_prefix(&*row)).unwrap_or_else(|| panic!("no row {row}"));
        let named: BTreeSet<String> =
            row.split(" | ").next().unwrap().split(", ").map(|answer| answer.replace('`', "")).collect();
        let seen = self.0.lock().unwrap();
        println!("{race}: {request}: {seen:?}");
        for answer in seen.keys() {
            assert!(named.contains(answer), "{race}: {request}: {answer} is not among {named:?}");
        }
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or(Value::Null)
}

/// One turn of a client, which is given its connection and the number of the turn.
type Turn<'a> = &'a (dyn Fn(&mut Client, u64) + Sync);

/// Runs each of these again and again until the time is over.
fn race(turns: &[Turn<'_>], server: &Server) {
    let begun = Instant::now();
    thread::scope(|scope| {
        for turn in turns {
            scope.spawn(move || {
                let mut client = server.connect();
                for n in 0.. {
                    turn(&mut client, n);
                    if begun.elapsed() > LONG {
                        break;
                    }
                }
            });
        }
    });
}

fn ask(client: &mut Client, method: &str, target: &str, body: &str) -> Reply {
    client.exchange(method, target, &[], body.as_bytes()).unwrap()
}

/// The values of all records of a log, each a line.
fn values(client: &mut Client, log: &str) -> Vec<String> {
    let target = format!("/v1/logs/{log}/records?limit=10000000&max_bytes=1073741824");
    let all = client.exchange("GET", &target, &[("Accept", "text/plain")], b"").unwrap();
    assert_eq!(all.status, 200, "{}", String::from_utf8_lossy(&all.body));
    String::from_utf8(all.body).unwrap().lines().map(str::to_owned).collect()
}

/// Sends a request and reads all that comes until it ends, however it does; returns the answer, and whether its body was
/// whole.
fn all_of(client: &mut Client, target: &str, accept: &str) -> io::Result<(Reply, bool)> {
    client
        .send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let head = text.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = head {
            let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.split('\r').next()?.parse::<usize>().ok());
            let whole = length.map_or(text.ends_with(b"\r\n0\r\n\r\n"), |length| text.len() >= end + length);
            if whole {
                return Ok((reply(&text, end), true));
            }
        }
        match client.0.read(&mut piece)? {
            0 => {
                return head.map(|end| (reply(&text, end), false)).ok_or(io::ErrorKind::UnexpectedEof.into());
            }
            bytes => text.extend_from_slice(&piece[..bytes]),
        }
    }
}

fn reply(text: &[u8], end: usize) -> Reply {
    let head = String::from_utf8_lossy(&text[..end]).into_owned();
    Reply { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body: text[end..].to_vec() }
}

#[test]
fn an_append_that_a_deletion_has_refused_is_in_no_log_of_that_name() {
    let _processor = Processor::take();
    let (_data, server) = start(&["--segment-bytes", "65536"]);
    let (appends, deletions, stored) = (Seen::default(), Seen::default(), Mutex::new(HashSet::new()));
    let next = AtomicU64::new(0);
    let append = |client: &mut Client, _| {
        let value = next.fetch_add(1, Ordering::Relaxed).to_string();
        if appends.reply(&ask(client, "POST", "/v1/logs/a/records", &value)) == 200 {
            stored.lock().unwrap().insert(value);
        }
    };
    let delete = |client: &mut Client, n| {
        assert!(ask(client, "PUT", "/v1/logs/a", "").status < 300);
        thread::sleep(Duration::from_millis(n % 8));
        deletions.reply(&ask(client, "DELETE", "/v1/logs/a", ""));
        assert!(ask(client, "PUT", "/v1/logs/a", "").status < 300);
    };
    race(&[&append, &append, &append, &delete], &server);
    let stored = stored.into_inner().unwrap();
    for value in values(&mut server.connect(), "a") {
        assert!(stored.contains(&value), "{value} was refused, and is there");
    }
    appends.are_named_in("append, DELETE of the log", "append");
    deletions.are_named_in("append, DELETE of the log", "DELETE");
    assert!(appends.count("200") > 0);
}

#[test]
fn put_racing_delete_creates_the_log() {
    let _processor = Processor::take();
    let (_data, server) = start(&["--segment-bytes", "65536"]);
    let (puts, deletions) = (Seen::default(), Seen::default());
    let put = |client: &mut Client, _| {
        puts.reply(&ask(client, "PUT", "/v1/logs/a", ""));
    };
    let delete = |client: &mut Client, _| {
        deletions.reply(&ask(client, "DELETE", "/v1/logs/a", ""));
    };
    race(&[&put, &put, &delete, &delete], &server);
    puts.are_named_in("PUT, DELETE of a log", "PUT");
    deletions.are_named_in("PUT, DELETE of a log", "DELETE");
    // Each deletion that was done had a log that one PUT had created.
    let left = u64::from(ask(&mut server.connect(), "GET", "/v1/logs/a", "").status == 200);
    assert_eq!(puts.count("201"), deletions.count("204") + left);
}

#[test]
fn of_two_puts_with_different_settings_one_creates_the_log() {
    let _processor = Processor::take();
    let (_data, server) = start(&["--segment-bytes", "65536"]);
    let puts = Seen::default();
    let bodies = [r#"{"record_bytes":1}"#, r#"{"record_bytes":2}"#];
    for round in 0..40 {
        let target = format!("/v1/logs/a{round}");
        let statuses = thread::scope(|scope| {
            let put = |n: usize| {
                let (server, puts, target, body) = (&server, &puts, &target, bodies[n % 2]);
                scope.spawn(move || (n % 2, puts.reply(&ask(&mut server.connect(), "PUT", target, body))))
            };
            let puts: Vec<_> = (0..4).map(put).collect();
            puts.into_iter().map(|put| put.join().unwrap()).collect::<Vec<_>>()
        });
        let described = json(&ask(&mut server.connect(), "GET", &target, "").body);
        let winner = usize::from(described["settings"]["record_bytes"] == 2);
        assert_eq!(statuses.iter().filter(|(_, status)| *status == 201).count(), 1, "{statuses:?}");
        for (n, status) in statuses {
            assert_eq!(status == 409, n != winner, "{status}");
        }
    }
    puts.are_named_in("PUT, PUT with other settings", "PUT");
}

#[test]
fn readers_of_a_log_that_is_deleted_are_told_or_broken_off() {
    let _processor = Processor::take();
    let (_data, server) = start(&["--segment-bytes", "65536"]);
    let seen: [Seen; 5] = Default::default();
    let change = |client: &mut Client, n| {
        assert!(ask(client, "PUT", "/v1/logs/a", "").status < 300);
        for _ in 0..5 {
            assert_eq!(ask(client, "POST", "/v1/logs/a/records", &"x".repeat(20_000)).status, 200);
        }
        thread::sleep(Duration::from_millis(n % 20));
        assert_eq!(ask(client, "DELETE", "/v1/logs/a", "").status, 204);
    };
    let range = |client: &mut Client, _| {
        seen[0].reply(&ask(client, "GET", "/v1/logs/a/records", ""));
    };
    let one = |client: &mut Client, _| {
        seen[1].reply(&ask(client, "GET", "/v1/logs/a/records/2", ""));
    };
    let wait = |client: &mut Client, _| {
        seen[2].reply(&ask(client, "GET", "/v1/logs/a/records?offset=5&wait=1s", ""));
    };
    let endless = |seen: &Seen, accept: &str, target: &str| {
        let (reply, whole) = all_of(&mut server.connect(), target, accept).unwrap();
        if reply.status != 200 {
            seen.note(&format!("{} {}", reply.status, json(&reply.body)["code"].as_str().unwrap()));
            return;
        }
        let text = String::from_utf8_lossy(&reply.body);
        seen.note(match (accept, whole) {
            ("text/event-stream", true) if text.contains("\nevent: log_deleted\n") => "200 with log_deleted",
            ("text/event-stream", true) if text.contains("\nevent: failed\n") => "200 with failed",
            (_, true) => "200",
            (_, false) => "200 broken off",
        });
    };
    let follow = |_: &mut Client, _| endless(&seen[3], "text/plain", "/v1/logs/a/records?follow=true");
    let tail = |_: &mut Client, _| endless(&seen[4], "text/event-stream", "/v1/logs/a/records?offset=0");
    // A reader that is left when the last log is deleted ends, too.
    race(&[&change, &range, &one, &wait, &follow, &tail], &server);
    for (seen, request) in seen.iter().zip(["range", "one record", "`wait`", "`follow`", "live tail"]) {
        seen.are_named_in("read, DELETE of the log", request);
    }
}

#[test]
fn reading_while_the_log_is_trimmed_returns_records_or_says_where_it_begins() {
    let _processor = Processor::take();
    let (_data, server) = start(&["--segment-bytes", "65536"]);
    assert_eq!(ask(&mut server.connect(), "PUT", "/v1/logs/a", "").status, 201);
    let (ranges, ones, trims) = (Seen::default(), Seen::default(), Seen::default());
    let append = |client: &mut Client, _| {
        assert_eq!(ask(client, "POST", "/v1/logs/a/records", &"x".repeat(20_000)).status, 200);
    };
    let trim = |client: &mut Client, _| {
        let next = json(&ask(client, "GET", "/v1/logs/a", "").body)["next_offset"].as_u64().unwrap();
        trims.reply(&ask(client, "POST", "/v1/logs/a/trim", &format!(r#"{{"before":{next}}}"#)));
    };
    let first = |client: &mut Client| {
        json(&ask(client, "GET", "/v1/logs/a", "").body)["first_offset"].as_u64().unwrap()
    };
    let range = |client: &mut Client, _| {
        let first = first(client);
        let target = format!("/v1/logs/a/records?offset={first}&limit=1");
        let reply = ask(client, "GET", &target, "");
        match ranges.reply(&reply) {
            200 => assert!(reply.body.is_empty() || json(&reply.body)["offset"] == first),
            _ => assert!(json(&reply.body)["first_offset"].as_u64().unwrap() > first),
        }
    };
    let earliest = |client: &mut Client, _| {
        ranges.reply(&ask(client, "GET", "/v1/logs/a/records?limit=1", ""));
    };
    let one = |client: &mut Client, _| {
        let target = format!("/v1/logs/a/records/{}", first(client));
        ones.reply(&ask(client, "GET", &target, ""));
    };
    race(&[&append, &trim, &range, &earliest, &one], &server);
    ranges.are_named_in("read, trim", "range");
    ones.are_named_in("read, trim", "one record");
    trims.are_named_in("read, trim", "trim");
}

#[test]
fn of_appends_that_expect_the_same_offset_one_is_stored() {
    let _processor = Processor::take();
    let (_data, server) = start(&[]);
    assert_eq!(ask(&mut server.connect(), "PUT", "/v1/logs/a", "").status, 201);
    let (conditional, plain) = (Seen::default(), Seen::default());
    let stored = Mutex::new(BTreeMap::new());
    let expect = |client: &mut Client, n: u64| {
        let next = json(&ask(client, "GET", "/v1/logs/a", "").body)["next_offset"].as_u64().unwrap();
        let value = format!("{:?}-{n}", thread::current().id());
        let reply = ask(client, "POST", &format!("/v1/logs/a/records?expect={next}"), &value);
        if conditional.reply(&reply) == 200 {
            assert_eq!(json(&reply.body)["first_offset"], next);
            assert_eq!(stored.lock().unwrap().insert(next, value), None, "two were stored at {next}");
        } else {
            assert!(json(&reply.body)["next_offset"].as_u64().unwrap() > next);
        }
    };
    let append = |client: &mut Client, n| {
        let value = format!("plain-{n}");
        let reply = ask(client, "POST", "/v1/logs/a/records", &value);
        assert_eq!(plain.reply(&reply), 200);
        stored.lock().unwrap().insert(json(&reply.body)["first_offset"].as_u64().unwrap(), value);
    };
    race(&[&expect, &expect, &expect, &append], &server);
    let stored: Vec<String> = stored.into_inner().unwrap().into_values().collect();
    assert_eq!(
        values(&mut server.connect(), "a"),
        stored,
        "what was refused is there, or what was stored is not"
    );
    conditional.are_named_in("append with `expect`, append", "append with `expect`");
    plain.are_named_in("append with `expect`, append", "append");
    assert!(conditional.count("412 unexpected_offset") > 0);
}

#[test]
fn no_batch_of_an_older_epoch_is_stored_after_the_next_has_begun() {
    let _processor = Processor::take();
    let (_data, server) = start(&[]);
    let (batches, epochs) = (Seen::default(), Seen::default());
    let mut client = server.connect();
    assert_eq!(ask(&mut client, "PUT", "/v1/logs/a", "").status, 201);
    let epoch_of = |begun: &Value| begun["epoch"].as_u64().unwrap();
    let mut epoch = epoch_of(&json(&ask(&mut client, "POST", "/v1/logs/a/producers/p", "").body));
    for round in 0..30 {
        let (answered, has_begun) = (AtomicU64::new(0), AtomicBool::new(false));
        let begun = thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = server.connect();
                for n in 0.. {
                    let was_late = has_begun.load(Ordering::Acquire);
                    let (epoch_text, seq) = (epoch.to_string(), u64::to_string(&n));
                    let headers =
                        [("Producer-Id", "p"), ("Producer-Epoch", &*epoch_text), ("Producer-Seq", &*seq)];
                    let reply = client.exchange("POST", "/v1/logs/a/records", &headers, b"x").unwrap();
                    if batches.reply(&reply) != 200 {
                        assert!(json(&reply.body)["expected_epoch"].as_u64() > Some(epoch));
                        break;
                    }
                    assert!(!was_late, "stored after the next epoch had begun");
                    answered.store(n + 1, Ordering::Release);
                }
            });
            thread::sleep(Duration::from_millis(round % 10));
            let reply = ask(&mut client, "POST", "/v1/logs/a/producers/p", "");
            has_begun.store(true, Ordering::Release);
            assert_eq!(epochs.reply(&reply), 200);
            json(&reply.body)
        });
        // It says what became of the older batches: it has those that were answered, and no others.
        let earlier = &begun["earlier"];
        let last = earlier["batches"].as_array().and_then(|batches| batches.last()?["seq"].as_u64());
        let is_of_this = earlier["epoch"] == epoch;
        assert_eq!(last.filter(|_| is_of_this).map_or(0, |last| last + 1), answered.into_inner(), "{begun}");
        epoch = epoch_of(&begun);
    }
    batches.are_named_in("next epoch of a producer, its older batches", "batch");
    epochs.are_named_in("next epoch of a producer, its older batches", "next epoch");
}

#[test]
fn of_those_who_move_a_cursor_from_where_it_was_one_does() {
    let _processor = Processor::take();
    let (_data, server) = start(&[]);
    let mut client = server.connect();
    assert_eq!(ask(&mut client, "PUT", "/v1/logs/a", "").status, 201);
    let lines = "x\n".repeat(100_000);
    let reply =
        client.exchange("POST", "/v1/logs/a/records", &[("Content-Type", "text/plain")], lines.as_bytes());
    assert_eq!(reply.unwrap().status, 200);
    let moves = Seen::default();
    let step = |client: &mut Client, _| {
        let at = json(&ask(client, "GET", "/v1/logs/a/cursors/c", "").body)["offset"].as_u64();
        let expect = at.map_or("none".to_owned(), |at| at.to_string());
        let body = format!(r#"{{"offset":{}}}"#, at.map_or(0, |at| at + 1));
        moves.reply(&ask(client, "PUT", &format!("/v1/logs/a/cursors/c?expect={expect}"), &body));
    };
    race(&[&step, &step, &step, &step], &server);
    let at = json(&ask(&mut client, "GET", "/v1/logs/a/cursors/c", "").body)["offset"].as_u64().unwrap();
    assert_eq!(
        (moves.count("201"), moves.count("200")),
        (1, at),
        "each answer is one step, and each step has one"
    );
    moves.are_named_in("PUT of a cursor with `expect`, the same", "PUT of a cursor");
    assert!(moves.count("412 unexpected_cursor") > 0);
}

#[test]
fn what_was_answered_while_the_server_stops_is_stored_and_what_was_refused_is_not() {
    let _processor = Processor::take();
    let appends = Seen::default();
    for round in 0..6 {
        let (data, mut server) = start(&[]);
        assert_eq!(ask(&mut server.connect(), "PUT", "/v1/logs/a", "").status, 201);
        let (stored, unknown) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
        let next = AtomicU64::new(0);
        let address = server.address.clone();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // A new connection after each that was closed, until there is none.
                    while let Ok(mut client) = Client::connect(&address) {
                        loop {
                            let value = next.fetch_add(1, Ordering::Relaxed).to_string();
                            let Ok(reply) =
                                client.exchange("POST", "/v1/logs/a/records", &[], value.as_bytes())
                            else {
                                appends.note("no answer");
                                unknown.lock().unwrap().insert(value);
                                break;
                            };
                            if appends.reply(&reply) == 200 {
                                stored.lock().unwrap().insert(value);
                            }
                            if reply.head.to_ascii_lowercase().contains("connection: close") {
                                break;
                            }
                        }
                    }
                    appends.note("no connection");
                });
            }
            thread::sleep(Duration::from_millis(20 + round * 7));
            assert_eq!(server.terminate(), Some(0));
        });
        let server = Server::start(data.path(), &[]);
        let there: HashSet<String> = values(&mut server.connect(), "a").into_iter().collect();
        let (stored, unknown) = (stored.into_inner().unwrap(), unknown.into_inner().unwrap());
        assert!(stored.is_subset(&there), "what was answered is not there");
        let more: HashSet<String> = there.difference(&stored).cloned().collect();
        assert!(more.is_subset(&unknown), "what was refused, or never sent, is there");
        println!("{} of {} without an answer were stored", more.len(), unknown.len());
    }
    appends.are_named_in("append, the server stops", "append");
}
