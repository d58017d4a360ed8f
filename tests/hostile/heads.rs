//! Header sections: what is read in them, and that no request keeps its own while it waits.

use super::{
    MIB,
    http2::{self, Connection, END_HEADERS, END_STREAM, HEADERS, RESET},
    support::{Server, process::Process, processor::Processor},
    wait_for,
};
use std::time::{Duration, Instant};

/// A cache whose copy was marked as weak by something in between got the whole value each time.
#[test]
fn entity_tags_are_compared_weakly() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.append(b"x").unwrap();
    client.append(b"y").unwrap();
    let target = "/v1/logs/default/records/0";
    let answer = client.request("GET", target, b"").unwrap();
    let tag = answer.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let (other, upper) = (tag.replace("-0\"", "-1\""), tag.to_uppercase());
    for (tags, status) in [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"a\", W/\"b-0\",W/{tag}"), 304),
        ("*".to_owned(), 304),
        (format!("w/{tag}"), 200),
        (format!("W/{other}"), 200),
        (upper, 200),
        (tag.replace('"', ""), 200),
    ] {
        let answer = client.exchange("GET", target, &[("If-None-Match", &tags)], b"").unwrap();
        assert_eq!(answer.status, status, "{tags}");
    }
}

/// `If-Match` was ignored: a client that wanted a record of one log got that of the next one of its name.
#[test]
fn a_value_that_is_not_the_one_that_must_match_is_not_answered() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.append(b"x").unwrap();
    let target = "/v1/logs/default/records/0";
    let answer = client.request("GET", target, b"").unwrap();
    let tag = answer.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    for (tags, status) in [
        (tag.clone(), 200),
        ("*".to_owned(), 200),
        (format!("\"a\", W/\"b-0\",{tag}"), 200),
        (format!("W/{tag}"), 412), // RFC 9110, 13.1.1: compared strongly
        (tag.replace("-0\"", "-1\""), 412),
        ("\"a\"".to_owned(), 412),
        (String::new(), 412),
    ] {
        for method in ["GET", "HEAD"] {
            let mut client = server.connect(); // the answer to a HEAD has a length, and no body
            let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
            client.send(format!("{head}If-Match: {tags}\r\n\r\n").as_bytes()).unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut client.0, &mut text).unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {tags}: {text}");
            assert_eq!(text.contains("\"unexpected_record\""), status == 412 && method == "GET", "{text}");
        }
    }
    // It is evaluated before If-None-Match, and not at all if there is no record.
    let both = [("If-Match", "\"a\""), ("If-None-Match", tag.as_str())];
    assert_eq!(client.exchange("GET", target, &both, b"").unwrap().status, 412);
    let both = [("If-Match", tag.as_str()), ("If-None-Match", tag.as_str())];
    assert_eq!(client.exchange("GET", target, &both, b"").unwrap().status, 304);
    let none = "/v1/logs/default/records/7";
    assert_eq!(client.exchange("GET", none, &[("If-Match", "*")], b"").unwrap().status, 404);
}

/// A byte of HTTP/2 that refers to the header table took a hundred in memory: 4,000 requests with 1,900 of them, 562 MB.
#[test]
fn header_fields_that_refer_to_the_table_cost_little() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let process = Process::of(&server.child);
    server.connect().append(b"x").unwrap();
    // The first request puts a field into the table that all of them refer to.
    let request = |stream: u32, fields: usize| {
        let field = if stream == 1 { &b"\x40\x01a\x00"[..] } else { b"" };
        let head = http2::head("GET", "/healthz");
        let head = [&head[..], field, &vec![0xbe; fields]].concat();
        http2::frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
    };
    for (fields, fine) in [(200, true), (1_900, false)] {
        let before = process.memory();
        process.reset_peak();
        let mut connections: Vec<_> = (0..16).map(|_| Connection::open(&server.address, &[])).collect();
        let requests: Vec<_> = (0..100).flat_map(|n| request(2 * n + 1, fields)).collect();
        for connection in &mut connections {
            connection.send(&requests).unwrap();
        }
        for connection in &mut connections {
            let mut answers = 0;
            wait_for("all are answered", Duration::from_secs(20), || {
                while let Some((kind, _, _, head)) = connection.next().unwrap() {
                    assert!(kind != HEADERS || (head[0] == 0x88) == fine, "{fields} fields");
                    answers += usize::from(kind == HEADERS);
                }
                answers == 100
            });
        }
        let cost = process.peak().saturating_sub(before);
        println!("1,600 requests of {fields} fields: {} MiB at the most", cost / MIB);
        assert!(cost < 96 * MIB, "{fields} fields: {} MiB", cost / MIB);
    }
}

/// Requests about producers kept their header sections while they waited.
#[test]
fn requests_that_wait_do_not_keep_their_header_sections() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let process = Process::of(&server.child);
    server.connect().append(b"x").unwrap();
    // Those for an epoch wait for the disk, if it is slow; those for a record that does not exist wait in any case.
    let waits =
        [("POST", "/v1/logs/default/producers/p"), ("GET", "/v1/logs/default/records?offset=1&wait=30s")];
    for (method, target) in waits {
        let (before, fields) = (process.memory(), 250);
        process.reset_peak();
        // The first request puts a field into the table that all of them refer to.
        let request = |stream: u32, field: &[u8]| {
            let head = http2::head(method, target);
            let head = [&head[..], field, &vec![0xbe; fields]].concat();
            http2::frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
        };
        let mut connections: Vec<_> = (0..64).map(|_| Connection::open(&server.address, &[])).collect();
        // Not all at once: a request that no task has looked at yet has its header section.
        for n in 0..100 {
            for connection in &mut connections {
                let field = if n == 0 { &b"\x40\x01a\x00"[..] } else { b"" };
                connection.send(&request(2 * n + 1, field)).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        connections[0].send(&http2::frame(http2::PING, 0, 0, &[0; 8])).unwrap();
        let mut answers = 0;
        wait_for("the last ones have arrived", Duration::from_secs(20), || {
            let frame = connections[0].next().unwrap();
            answers += usize::from(matches!(frame, Some((HEADERS, ..))));
            matches!(frame, Some((http2::PING, http2::ACK, ..)))
        });
        assert!(answers == 0 || method == "POST", "{answers} of them do not wait");
        let cost = process.peak().saturating_sub(before);
        println!("6,400 requests ({method}) of {fields} fields: {} MiB at the most", cost / MIB);
        assert!(cost < 96 * MIB, "{method}: {} MiB", cost / MIB);
    }
}

/// What came after a body that nobody read any more was held for as long as the answer went on: for a live tail, hours.
#[test]
fn trailers_that_nobody_reads_reset_the_stream() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut connection = Connection::open(&server.address, &[]);
    // A live tail whose request has not ended.
    let head = http2::request(1, "GET", "/v1/logs/default/records", &[("accept", "text/event-stream")]);
    let unended = [&head[..4], &[head[4] & !END_STREAM], &head[5..]].concat();
    connection.send(&unended).unwrap();
    let (begun, mut reset) = (Instant::now(), false);
    while !reset && begun.elapsed() < Duration::from_secs(6) {
        reset = matches!(connection.next().unwrap(), Some((RESET, _, 1, _)));
    }
    assert!(reset, "it is kept");
}
