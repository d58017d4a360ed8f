//! HTTP/2 clients that have room for a byte of each answer, and for no more.

use super::{
    get,
    http2::{self, Connection, DATA, END_STREAM, GO_AWAY, HEADERS, RESET},
    metric,
    support::{Client, Server},
    wait_for,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// A server with a log `a`, whose records have values of these sizes.
fn with_records(data: &std::path::Path, flags: &[&str], sizes: &[usize]) -> (Server, Client) {
    let flags = [&["--create-logs", "--durability", "memory"], flags].concat();
    let server = Server::start(data, &flags);
    let mut client = server.connect();
    for &size in sizes {
        let stored = client.request("POST", "/v1/logs/a/records", &b"v".repeat(size)).unwrap();
        assert_eq!(stored.status, 200);
    }
    (server, client)
}

/// h2 took what was left of an answer as soon as there was room for a byte, and the request counted as answered: it was
/// never reset, and its memory was held for as long as the client liked.
#[test]
fn streams_with_a_window_of_a_byte_are_reset() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client) = with_records(data.path(), &["--body-seconds", "2"], &[16_000, 100, 16_385]);
    let mut connection = Connection::open(&server.address, &http2::setting(4, 1));
    let targets = ["/v1/logs/a/records/0", "/v1/logs/a/records/2", "/v1/logs/a/records"];
    for n in 0..250 {
        connection.send(&http2::get(2 * n + 1, targets[n as usize % targets.len()])).unwrap();
    }
    // A live tail that has no more news than what its client does not take.
    let tail = http2::request(501, "GET", "/v1/logs/a/records?offset=0", &[("accept", "text/event-stream")]);
    connection.send(&tail).unwrap();
    let (mut resets, begun, mut next) = (BTreeSet::new(), Instant::now(), 503);
    wait_for("they hold memory", Duration::from_secs(2), || {
        metric(&server, "millstream_http_memory_bytes") > 1_000_000
    });
    while resets.len() < 251 && begun.elapsed() < Duration::from_secs(10) {
        match connection.next() {
            Ok(Some((RESET, _, stream, _))) => drop(resets.insert(stream)),
            Ok(Some((GO_AWAY, ..))) => panic!("the connection is given up"),
            // It asks for something from time to time, whose answer needs no room.
            Ok(None) => {
                connection.send(&http2::request(next, "HEAD", "/healthz", &[])).unwrap();
                next += 2;
            }
            Ok(Some(_)) => {}
            Err(error) => panic!("after {} resets: {error}", resets.len()),
        }
    }
    assert_eq!(resets, (0..251).map(|n| 2 * n + 1).collect(), "some are kept");
    wait_for("all is given back", Duration::from_secs(2), || {
        metric(&server, "millstream_http_memory_bytes") == 0
    });
    assert!(metric(&server, "millstream_readers_dropped_total") >= 251);
    assert_eq!(get(&mut client, "/v1/logs/a/records/0").unwrap().body.len(), 16_000);
}

/// A small answer ends with its only part, so its stream cannot be reset any more.
#[test]
fn connections_that_do_not_take_small_answers_are_closed() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client) = with_records(data.path(), &["--body-seconds", "1"], &[4_000]);
    for target in ["/v1/logs/a/records/0", "/v1/logs/a/records/99", "/healthz"] {
        let mut connection = Connection::open(&server.address, &http2::setting(4, 1));
        connection.send(&http2::get(1, target)).unwrap();
        let (time, _) = connection.until_it_ends(Duration::from_secs(8)).expect(target);
        assert!(time > Duration::from_millis(900) && time < Duration::from_secs(4), "{target}: {time:?}");
    }
    assert_eq!(get(&mut client, "/v1/logs/a/records/0").unwrap().status, 200);
}

/// Requests counted as answered when h2 had their answers: 1,000 connections had 255,000 of them, of 16,384 that are
/// allowed, and took 1.4 GB.
#[test]
fn answers_that_are_not_taken_count_as_requests_in_flight() {
    let data = tempfile::tempdir().unwrap();
    let (server, mut client) = with_records(data.path(), &["--max-connections", "16"], &[4_000]);
    let mut connections: Vec<_> =
        (0..10).map(|_| Connection::open(&server.address, &http2::setting(4, 1))).collect();
    let mut answers = BTreeMap::new();
    for connection in &mut connections {
        for n in 0..200 {
            connection.send(&http2::get(2 * n + 1, "/v1/logs/a/records/0")).unwrap();
        }
        let mut outcome = BTreeMap::new();
        let begun = Instant::now();
        while outcome.len() < 200 && begun.elapsed() < Duration::from_secs(5) {
            match connection.next().unwrap() {
                Some((HEADERS, _, stream, head)) if head[0] == 0x88 => drop(outcome.insert(stream, "200")),
                Some((HEADERS, _, stream, _)) => drop(outcome.insert(stream, "refused")),
                Some((RESET, _, stream, _)) => drop(outcome.insert(stream, "reset")),
                _ => {}
            }
        }
        assert_eq!(outcome.len(), 200);
        for outcome in outcome.into_values() {
            *answers.entry(outcome).or_insert(0) += 1;
        }
    }
    println!("{answers:?}");
    // Half of 256 for connections that have many, and two for each of the others; and as many that are refused.
    assert!(answers["200"] <= 128 + 2 * 10 && answers["refused"] <= 128 + 2 * 10, "{answers:?}");
    assert_eq!(get(&mut client, "/v1/logs/a/records/0").unwrap().status, 200);
    drop(connections);
    // None of them is counted any more.
    wait_for("they are forgotten", Duration::from_secs(5), || {
        let mut connection = Connection::open(&server.address, &[]);
        for n in 0..100 {
            connection.send(&http2::get(2 * n + 1, "/v1/logs/a/records?offset=latest&wait=5s")).unwrap();
        }
        let mut refused = false;
        while let Some((kind, ..)) = connection.next().unwrap() {
            refused |= matches!(kind, HEADERS | RESET);
        }
        !refused
    });
}

/// The end of an answer is a frame of its own, also if there is nothing before it.
#[test]
fn answers_over_http2_have_all_their_bytes_and_an_end() {
    let data = tempfile::tempdir().unwrap();
    let (server, _client) = with_records(data.path(), &[], &[40_000, 0]);
    let mut connection = Connection::open(&server.address, &[]);
    let requests = [
        ("GET", "/v1/logs/a/records/0", 40_000),
        ("HEAD", "/v1/logs/a/records/0", 0),
        ("GET", "/v1/logs/a/records/1", 0),
        ("GET", "/healthz", 16),
        ("DELETE", "/v1/logs/a", 0),
    ];
    for (n, (method, target, bytes)) in requests.into_iter().enumerate() {
        connection.send(&http2::request(2 * n as u32 + 1, method, target, &[])).unwrap();
        let (mut got, mut ended, begun) = (0, false, Instant::now());
        while !ended && begun.elapsed() < Duration::from_secs(5) {
            match connection.next().unwrap() {
                Some((kind @ (DATA | HEADERS), flags, _, data)) => {
                    got += if kind == DATA { data.len() } else { 0 };
                    ended = flags & END_STREAM != 0;
                }
                Some((RESET | GO_AWAY, ..)) => panic!("{method} {target} was broken off"),
                _ => {}
            }
        }
        assert!(ended && got == bytes, "{method} {target}: {got} bytes, ended: {ended}");
    }
}
