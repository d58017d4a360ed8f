//! Reading records over a socket: ranges, long polls, live tails, and what follows a log.

use super::{NDJSON, append, member, read, send, timeless};
use crate::support::{Client, Server, code, start};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

#[test]
fn ranges_are_bounded_and_say_how_to_continue() {
    let (_data, server) = start(&["--create-logs", "--segment-bytes", "65536", "--memory-bytes", "1048576"]);
    let mut client = server.connect();
    let base = "/v1/logs/events/records";
    let value = |n: usize| format!("{n:06}{}", "x".repeat(n % 500));
    for batch in 0..300 {
        let body: String = (0..100).map(|n| value(batch * 100 + n) + "\n").collect();
        assert_eq!(append(&mut client, base, "text/plain", body.as_bytes()).status, 200);
    }
    // The default limits: a number of records, or a number of bytes.
    let mut next = 0;
    let mut answers = 0;
    while next < 30_000 {
        let answer = read(&mut client, &format!("{base}?offset={next}&max_bytes=100000"), "text/plain");
        let lines: Vec<&str> = answer.body.lines().collect();
        assert!(lines.len() <= 1000 && answer.body.len() <= 101_000 && !lines.is_empty());
        for line in lines {
            assert_eq!(line, value(next));
            next += 1;
        }
        assert!(answer.head.contains(&format!("millstream-next-offset: {next}\r\n")));
        answers += 1;
    }
    assert!(answers > 60);
    // All records at once: streamed in pieces.
    let all = read(&mut client, &format!("{base}?limit=100000&max_bytes=1000000000"), "text/plain");
    assert!(all.head.contains("transfer-encoding: chunked") && all.head.contains("next-offset: 30000\r\n"));
    assert!(all.body.lines().eq((0..30_000).map(value)));
    // A record that is larger than requested is returned nevertheless, or nobody could get past it.
    assert_eq!(
        read(&mut client, &format!("{base}?offset=499&max_bytes=1"), "text/plain").body,
        value(499) + "\n"
    );
    // From the end, by time, after the end.
    assert_eq!(read(&mut client, &format!("{base}?offset=-2"), "text/plain").body.lines().count(), 2);
    assert_eq!(read(&mut client, &format!("{base}?offset=latest"), "text/plain").body, "");
    let since = |time: &str| read(&mut server.connect(), &format!("{base}?since={time}&limit=1"), NDJSON);
    assert!(since("2001-01-01T00:00:00Z").body.starts_with("{\"offset\":0,"));
    assert_eq!(since("2201-01-01T00:00:00Z").body, "");
    // Trimmed.
    let trimmed = send(&mut client, "/v1/logs/events/trim", &[], "POST", br#"{"before":20000}"#);
    let first: u64 = member(&trimmed, "first_offset").unwrap().parse().unwrap();
    assert!(first > 19_000 && first <= 20_000, "{}", trimmed.body);
    let gone = read(&mut client, &format!("{base}?offset=0"), NDJSON);
    assert_eq!((gone.status, code(&gone)), (410, "offset_trimmed"));
    assert_eq!(member(&gone, "first_offset"), Some(first.to_string().as_str()));
    let earliest = read(&mut client, &format!("{base}?offset=earliest&limit=1"), "text/plain");
    assert_eq!(earliest.body, value(first as usize) + "\n");
}

#[test]
fn long_polls_end_when_a_record_arrives_or_the_time_is_up() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    let base = "/v1/logs/a/records";
    append(&mut client, base, "text/plain", b"0");
    let begun = Instant::now();
    let waiting = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| read(&mut server.connect(), &format!("{base}?offset=1&wait=20s"), "text/plain"));
        std::thread::sleep(Duration::from_millis(150));
        append(&mut client, base, "text/plain", b"1");
        waiting.join().unwrap()
    });
    assert_eq!(waiting.body, "1\n");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let begun = Instant::now();
    let empty = read(&mut client, &format!("{base}?offset=2&wait=200ms"), "text/plain");
    assert!(empty.body.is_empty() && empty.head.contains("next-offset: 2\r\n"));
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

/// Opens a live tail; returns its lines, without the sizes of chunks.
fn tail(server: &Server, target: &str, headers: &str) -> impl Iterator<Item = String> + use<> {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    BufReader::new(stream)
        .lines()
        .map_while(Result::ok)
        .filter(|line| ["id: ", "data: ", "event: ", ":"].iter().any(|start| line.starts_with(start)))
}

#[test]
fn a_live_tail_follows_resumes_and_beats() {
    let (_data, server) = start(&["--create-logs", "--heartbeat-seconds", "1"]);
    let mut client = server.connect();
    let base = "/v1/logs/a/records";
    append(&mut client, base, NDJSON, b"0\n1\n2");
    let mut lines = tail(&server, &format!("{base}?offset=1"), "").filter(|line| !line.starts_with(':'));
    let mut next = || (lines.next().unwrap(), timeless(&lines.next().unwrap()));
    assert_eq!(next(), ("id: 1".into(), r#"data: {"offset":1,"json":1}"#.into()));
    assert_eq!(next().0, "id: 2");
    append(&mut client, base, NDJSON, b"3");
    assert_eq!(next().0, "id: 3");
    let mut resumed = tail(&server, base, "Last-Event-ID: 0\r\n").filter(|line| !line.starts_with(':'));
    assert_eq!(resumed.next().unwrap(), "id: 1");
    // By default, a tail starts at the end; and without news, it gets a comment.
    let mut latest = tail(&server, base, "");
    assert_eq!(latest.next().unwrap(), ": millstream");
    assert_eq!(latest.next().unwrap(), ":");
    append(&mut client, base, NDJSON, b"4");
    assert_eq!(latest.find(|line| !line.starts_with(':')).unwrap(), "id: 4");
}

#[test]
fn a_slow_reader_is_dropped_and_told_and_may_resume() {
    let (_data, server) = start(&["--create-logs", "--body-seconds", "4"]);
    let mut client = server.connect();
    let base = "/v1/logs/a/records";
    let body = "x".repeat(1 << 20);
    for _ in 0..24 {
        append(&mut client, base, "application/octet-stream", body.as_bytes());
    }
    let connect = |offset: u64| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let request = format!(
            "GET {base}?offset={offset} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: text/event-stream\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let (mut slow, mut deaf) = (connect(0), connect(0));
    std::thread::sleep(Duration::from_millis(2500)); // they read nothing meanwhile
    let mut got = String::new();
    slow.read_to_string(&mut got).unwrap();
    let last = got.rfind("event: dropped\n").expect("it was not told");
    assert!(got.len() < 24 << 20, "all was kept for one who does not read");
    let next = got[last..].split("\"next_offset\":").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
    let seen = got.matches("\nid: ").count() as u64;
    assert_eq!(next.parse(), Ok(seen), "it does not say where to continue");
    let mut rest =
        tail(&server, &format!("{base}?offset={next}"), "").filter(|line| line.starts_with("id: "));
    assert!((seen..24).all(|offset| rest.next() == Some(format!("id: {offset}"))));
    drop(rest);
    // A client that never reads loses its connection.
    std::thread::sleep(Duration::from_secs(3));
    got.clear();
    let _ = deaf.read_to_string(&mut got); // ends when the connection closes, or with an error
    assert!(got.len() < 24 << 20);
    let metrics = read(&mut client, "/metrics", "*/*").body;
    assert!(metrics.contains("\nmillstream_readers_dropped_total 2\n"), "{metrics}");
}

#[test]
fn many_tails_get_every_event_in_order_wherever_they_began_and_leave_without_a_trace() {
    const RECORDS: u64 = 400;
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    let base = "/v1/logs/a/records";
    append(&mut client, base, "text/plain", b"0");
    let tails = std::thread::scope(|scope| {
        let tails: Vec<_> = (0..40u64)
            .map(|n| {
                let server = &server;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(n * 5));
                    let from = n * 7 % 40;
                    let mut lines = tail(server, &format!("{base}?offset={from}"), "");
                    for offset in from..RECORDS {
                        let mut line = || lines.find(|line| !line.starts_with(':')).unwrap();
                        assert_eq!(line(), format!("id: {offset}"));
                        assert!(
                            timeless(&line()).starts_with(&format!(r#"data: {{"offset":{offset},"value":"#))
                        );
                    }
                    lines
                })
            })
            .collect();
        for n in 1..RECORDS {
            append(&mut client, base, "text/plain", n.to_string().as_bytes());
        }
        tails.into_iter().map(|tail| tail.join().unwrap()).collect::<Vec<_>>()
    });
    let mut open = || {
        let metrics = read(&mut client, "/metrics", "*/*").body;
        metrics.lines().find_map(|line| line.strip_prefix("millstream_tails ")).unwrap().to_owned()
    };
    assert_eq!(open(), "40");
    drop(tails);
    // This is noticed at once, although nothing is appended and no comment is due.
    let deadline = Instant::now() + Duration::from_secs(5);
    while open() != "0" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn stopping_ends_tails_and_long_polls() {
    let (_data, mut server) = start(&["--create-logs"]);
    let mut client = server.connect();
    append(&mut client, "/v1/logs/a/records", "text/plain", b"0");
    let mut lines = tail(&server, "/v1/logs/a/records", "");
    lines.next().unwrap();
    client.send(b"GET /v1/logs/a/records?offset=1&wait=50s HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    assert_eq!(server.terminate(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(client.answer().unwrap().status, 200);
    assert_eq!(lines.next(), None);
}

/// Whoever waited for a log that was deleted was told 503 `writer_failed`, and to open the log again.
#[test]
fn waiters_of_a_deleted_log_get_an_error() {
    let (_data, server) = start(&["--create-logs"]);
    append(&mut server.connect(), "/v1/logs/a/records", NDJSON, b"0");
    let (mut waiting, mut tailing) = (server.connect(), server.connect());
    waiting.send(b"GET /v1/logs/a/records?offset=1&wait=50s HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let tail = "GET /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    tailing.send(tail.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.connect().request("DELETE", "/v1/logs/a", b"").unwrap().status, 204);
    let answer = waiting.answer().unwrap();
    assert_eq!((answer.status, code(&answer)), (404, "log_deleted"), "{}", answer.body);
    let answer = tailing.answer().unwrap();
    assert!(answer.head.contains("x-accel-buffering: no"), "{}", answer.head);
    assert!(answer.head.contains("cache-control: no-store, no-transform"), "{}", answer.head);
    assert!(answer.body.contains("event: log_deleted\n"), "{}", answer.body);
}

/// Reading beyond the end was answered with 200 and nothing: after a log had been deleted and created again, a reader
/// waited in silence for offsets that its records had had.
#[test]
fn an_offset_beyond_the_end_and_another_log_of_the_name_are_answers_of_their_own() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    append(&mut client, "/v1/logs/a/records", "text/plain", b"0\n1\n2");
    let id_of = |client: &mut Client| member(&read(client, "/v1/logs/a", "*/*"), "id").unwrap().to_owned();
    let id = id_of(&mut client).trim_matches('"').to_owned();
    let at_end = read(&mut client, "/v1/logs/a/records?offset=3", "*/*");
    assert_eq!((at_end.status, &*at_end.body), (200, ""), "that is where the next one comes");
    assert!(at_end.head.contains(&format!("millstream-log-id: {id}")), "{}", at_end.head);
    let beyond = read(&mut client, "/v1/logs/a/records?offset=4", "*/*");
    assert_eq!((beyond.status, code(&beyond)), (416, "offset_beyond_end"));
    assert_eq!(member(&beyond, "next_offset"), Some("3"));
    let waited = read(&mut client, "/v1/logs/a/records?offset=4&wait=10ms", "*/*");
    assert_eq!(waited.status, 200, "who waits means it");
    let same = read(&mut client, &format!("/v1/logs/a/records?offset=1&limit=1&log_id={id}"), "text/plain");
    assert_eq!((same.status, &*same.body), (200, "1\n"));
    assert_eq!(send(&mut client, "/v1/logs/a", &[], "DELETE", b"").status, 204);
    append(&mut client, "/v1/logs/a/records", "text/plain", b"0\n1\n2");
    for accept in ["text/plain", "text/event-stream"] {
        let other = read(&mut client, &format!("/v1/logs/a/records?offset=1&log_id={id}"), accept);
        assert_eq!((other.status, code(&other)), (409, "another_log"), "{accept}");
    }
    let bad = read(&mut client, "/v1/logs/a/records?log_id=1", "*/*");
    assert_eq!((bad.status, code(&bad)), (400, "invalid_query"));
}

/// Consumers had to ask again for each batch of records, or to take events.
#[test]
fn a_range_that_follows_goes_on_as_records_come() {
    let (_data, server) = start(&["--create-logs"]);
    append(&mut server.connect(), "/v1/logs/a/records", "text/plain", b"0\n1");
    for (accept, lines) in
        [("text/plain", ["1", "2", "3"]), ("application/x-ndjson", ["\"MQ==\"", "\"Mg==\"", "\"Mw==\""])]
    {
        let mut stream = BufReader::new(TcpStream::connect(&server.address).unwrap());
        let request = format!(
            "GET /v1/logs/a/records?offset=1&follow=true&limit=3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        // Each record arrives before the next one is appended.
        for (n, line) in lines.iter().enumerate() {
            let found = (&mut stream)
                .lines()
                .map(Result::unwrap)
                .find(|found| found.contains(line) && !found.contains(':') | found.contains("offset"));
            assert!(found.is_some(), "{accept}: {line}");
            if n < 2 && accept == "text/plain" {
                let value = (n + 2).to_string();
                append(&mut server.connect(), "/v1/logs/a/records", "text/plain", value.as_bytes());
            }
        }
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("0\r\n\r\n"), "it ends after three records: {rest:?}");
    }
    let mut client = server.connect();
    for refused in ["follow=true&wait=1s", "follow=true&max_bytes=1", "follow=yes"] {
        let answer = read(&mut client, &format!("/v1/logs/a/records?{refused}"), "*/*");
        assert_eq!((answer.status, code(&answer)), (400, "invalid_query"), "{refused}");
    }
    let whole = read(&mut client, "/v1/logs/a/records?follow=true", "application/json");
    assert_eq!((whole.status, code(&whole)), (400, "invalid_query"));
}

/// A client of HTTP/1.0 got the record as a problem document: a write that begins with it looked like an answer that hyper
/// makes by itself.
#[test]
fn a_record_that_looks_like_an_answer_is_followed_as_it_is() {
    let (_data, server) = start(&["--create-logs"]);
    append(&mut server.connect(), "/v1/logs/a/records", "text/plain", b"first");
    let mut stream = BufReader::new(TcpStream::connect(&server.address).unwrap());
    let head = "GET /v1/logs/a/records?follow=true&limit=2 HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n";
    stream.get_mut().write_all(head.as_bytes()).unwrap();
    assert!((&mut stream).lines().map(Result::unwrap).any(|line| line == "first"));
    let value = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r";
    append(&mut server.connect(), "/v1/logs/a/records", "application/octet-stream", value.as_bytes());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, format!("{value}\n"));
}

/// Whoever follows a log that is deleted, or whose server stops, sees its answer end: broken off, and whole.
#[test]
fn what_follows_a_log_ends_with_it() {
    let (_data, mut server) = start(&["--create-logs"]);
    append(&mut server.connect(), "/v1/logs/a/records", "text/plain", b"0");
    append(&mut server.connect(), "/v1/logs/b/records", "text/plain", b"0");
    let follow = |log: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(format!("GET /v1/logs/{log}/records?follow=true HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n").as_bytes()).unwrap();
        std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            String::from_utf8(all).unwrap()
        })
    };
    let (deleted, stopped) = (follow("a"), follow("b"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.connect().request("DELETE", "/v1/logs/a", b"").unwrap().status, 204);
    let all = deleted.join().unwrap();
    assert!(all.contains("\r\n0\n\r\n") && !all.ends_with("0\r\n\r\n"), "{all}");
    assert_eq!(server.terminate(), Some(0));
    assert!(stopped.join().unwrap().ends_with("0\r\n\r\n"));
}

/// A reader that was behind and slow kept the server from stopping for the whole grace period, though it could go on
/// anywhere.
#[test]
fn what_follows_a_log_from_far_behind_does_not_keep_the_server_from_stopping() {
    let (_data, mut server) = start(&["--create-logs"]);
    let value = vec![b'x'; 1 << 20];
    for _ in 0..24 {
        append(&mut server.connect(), "/v1/logs/a/records", "application/octet-stream", &value);
    }
    for accept in ["application/octet-stream", "text/event-stream"] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let request = format!(
            "GET /v1/logs/a/records?follow=true&offset=0 HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        std::thread::spawn(move || {
            let mut some = vec![0; 64 << 10];
            while matches!(stream.read(&mut some), Ok(1..)) {
                std::thread::sleep(Duration::from_millis(25));
            }
        });
    }
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    assert_eq!(server.terminate(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
