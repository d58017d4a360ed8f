//! The records API over a socket: each format, header and parameter, and each kind of bad input.

use crate::support::{Answer, Client, Server};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

const NDJSON: &str = "application/x-ndjson";
const FRAMES: &str = "application/vnd.millstream.frames";

/// Target, headers and body; the expected status and code; the number in the answer that says where the error is.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str, Option<(&'a str, &'a str)>);

fn code(answer: &Answer) -> &str {
    answer.body.split(r#""code":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("none")
}

fn member<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.body.split(&format!("\"{name}\":")).nth(1)?.split([',', '}']).next()
}

fn send(client: &mut Client, target: &str, headers: &[(&str, &str)], method: &str, body: &[u8]) -> Answer {
    let mut bytes =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len())
            .into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    client.send(&bytes).unwrap();
    client.answer().unwrap()
}

fn append(client: &mut Client, target: &str, media_type: &str, body: &[u8]) -> Answer {
    send(client, target, &[("Content-Type", media_type)], "POST", body)
}

fn read(client: &mut Client, target: &str, accept: &str) -> Answer {
    send(client, target, &[("Accept", accept)], "GET", b"")
}

/// The records of a range without their times, which no test can know.
fn timeless(text: &str) -> String {
    let mut parts = text.split(r#""time":"#);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += part.split_once(',').unwrap().1;
    }
    out
}

fn start(flags: &[&str]) -> (tempfile::TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), flags);
    (data, server)
}

#[test]
fn each_format_is_appended_and_read_in_each() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    let base = "/v1/logs/events/records";
    let appended = append(&mut client, base, NDJSON, b"{\"a\": 1}\r\n\n[2]\n\"last\"");
    assert_eq!(
        (appended.status, appended.body.as_str()),
        (200, "{\"first_offset\":0,\"last_offset\":2,\"count\":3}\n")
    );
    assert!(
        append(&mut client, base, "text/plain", b"one\r\n\nthree").body.starts_with("{\"first_offset\":3")
    );
    append(&mut client, base, "application/octet-stream", b"raw\n\x01");
    append(
        &mut client,
        base,
        "application/json",
        br#"{"records":[{"value":"aGk="},{"json":{"x":[1, 2]}},{"json":null}]}"#,
    );
    append(&mut client, base, FRAMES, b"\x02\0\0\0ab\x01\0\0\x807");
    let all = read(&mut client, base, NDJSON);
    let expected = [
        r#"{"offset":0,"json":{"a": 1}}"#,
        r#"{"offset":1,"json":[2]}"#,
        r#"{"offset":2,"json":"last"}"#,
        r#"{"offset":3,"value":"b25l"}"#,
        r#"{"offset":4,"value":""}"#,
        r#"{"offset":5,"value":"dGhyZWU="}"#,
        r#"{"offset":6,"value":"cmF3CgE="}"#,
        r#"{"offset":7,"value":"aGk="}"#,
        r#"{"offset":8,"json":{"x":[1, 2]}}"#,
        r#"{"offset":9,"json":null}"#,
        r#"{"offset":10,"value":"YWI="}"#,
        r#"{"offset":11,"json":7}"#,
    ];
    assert_eq!(timeless(&all.body).lines().collect::<Vec<_>>(), expected);
    assert!(all.head.contains("millstream-next-offset: 12\r\n"), "{}", all.head);
    let json = read(&mut client, base, "application/json");
    assert_eq!(
        timeless(&json.body),
        format!("{{\"records\":[{}],\"next_offset\":12}}\n", expected.join(","))
    );
    let text = read(&mut client, &format!("{base}?offset=3&limit=3"), "text/plain");
    assert_eq!(text.body, "one\n\nthree\n");
    assert_eq!(
        read(&mut client, &format!("{base}?offset=3&limit=1"), "application/octet-stream").body,
        "one"
    );
    let frames = read(&mut client, &format!("{base}?offset=11"), FRAMES);
    assert!(frames.status == 200 && frames.head.contains("content-length: 21\r\n"), "{}", frames.head);

    // A compressed body is decoded.
    let line = b"{\"packed\":true}\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(line).unwrap();
    let packed = [("gzip", gzip.finish().unwrap()), ("zstd", zstd::encode_all(&line[..], 1).unwrap())];
    for (encoding, body) in packed {
        let headers = [("Content-Type", NDJSON), ("Content-Encoding", encoding)];
        assert_eq!(send(&mut client, base, &headers, "POST", &body).status, 200);
        let last = read(&mut client, &format!("{base}?offset=-1"), NDJSON);
        assert!(last.body.ends_with("\"json\":{\"packed\":true}}\n"), "{}", last.body);
    }
}

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
fn one_value_is_raw_and_cacheable() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    append(&mut client, "/v1/logs/a/records", "application/octet-stream", b"raw \x00 bytes");
    append(&mut client, "/v1/logs/a/records", NDJSON, b"{}");
    let one = read(&mut client, "/v1/logs/a/records/0", "*/*");
    assert_eq!((one.status, one.body.as_str()), (200, "raw \0 bytes"));
    assert!(one.head.contains("immutable") && one.head.contains("application/octet-stream"));
    assert!(read(&mut client, "/v1/logs/a/records/1", "*/*").head.contains("application/json"));
    let tag = one.head.split("etag: ").nth(1).unwrap().split('\r').next().unwrap();
    let again = send(&mut client, "/v1/logs/a/records/0", &[("If-None-Match", tag)], "GET", b"");
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(read(&mut client, "/v1/logs/a/records", "").status, 200, "an empty Accept is any type");
    for (offset, status, expected) in
        [("2", 404, "offset_not_found"), ("-1", 400, "invalid_offset"), ("1.5", 400, "invalid_offset")]
    {
        let answer = read(&mut client, &format!("/v1/logs/a/records/{offset}"), "*/*");
        assert_eq!((answer.status, code(&answer)), (status, expected));
    }
}

#[test]
fn expect_is_a_compare_and_swap_on_the_tail() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    let base = "/v1/logs/a/records";
    assert_eq!(append(&mut client, &format!("{base}?expect=0"), "text/plain", b"a\nb").status, 200);
    let late = append(&mut client, &format!("{base}?expect=0"), "text/plain", b"c");
    assert_eq!(
        (late.status, code(&late), member(&late, "next_offset")),
        (412, "unexpected_offset", Some("2"))
    );
    assert_eq!(append(&mut client, &format!("{base}?expect=2&ack=memory"), "text/plain", b"c").status, 200);
}

/// Its condition, or its producer's number, cannot hold in a log that does not exist; the log was created all the same.
#[test]
fn an_append_that_a_new_log_refuses_creates_none() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    let target = "/v1/logs/new/records";
    let producer = |epoch, seq| [("Producer-Id", "p"), ("Producer-Epoch", epoch), ("Producer-Seq", seq)];
    let unexpected = append(&mut client, &format!("{target}?expect=5"), "text/plain", b"x");
    let later = send(&mut client, target, &producer("3", "5"), "POST", b"x");
    let too_high = send(&mut client, target, &producer("4294967295", "0"), "POST", b"x");
    let both = send(&mut client, &format!("{target}?expect=5"), &producer("3", "0"), "POST", b"x");
    assert_eq!((unexpected.status, code(&unexpected)), (412, "unexpected_offset"));
    assert_eq!(member(&unexpected, "next_offset"), Some("0"));
    assert_eq!((later.status, code(&later)), (409, "producer_out_of_order"));
    assert_eq!((member(&later, "expected_epoch"), member(&later, "expected_seq")), (Some("3"), Some("0")));
    assert_eq!((too_high.status, code(&too_high)), (400, "invalid_producer"));
    assert_eq!((both.status, code(&both)), (412, "unexpected_offset"));
    assert_eq!(read(&mut client, "/v1/logs/new", "*/*").status, 404, "one of them made the log");
    let first = send(&mut client, &format!("{target}?expect=0"), &producer("3", "0"), "POST", b"x");
    assert_eq!((first.status, member(&first, "first_offset")), (200, Some("0")));
}

#[test]
fn bad_batches_are_refused_whole_with_the_place_named() {
    let (_data, server) = start(&["--max-decoded-bytes", "100000"]);
    let mut client = server.connect();
    let json = br#"{"values":"json","record_bytes":20}"#;
    assert_eq!(send(&mut client, "/v1/logs/j", &[], "PUT", json).status, 201);
    assert_eq!(send(&mut client, "/v1/logs/a", &[], "PUT", b"").status, 201);
    let bomb = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![b' '; 10 << 20]).unwrap();
        gzip.finish().unwrap()
    };
    let a = "/v1/logs/a/records";
    let j = "/v1/logs/j/records";
    let long = format!("\"{}\"", "x".repeat(30));
    let cases: &[Case<'_>] = &[
        (a, &[("Content-Type", NDJSON)], b"{}\n{\n{}", 400, "invalid_json", Some(("line", "2"))),
        (a, &[("Content-Type", NDJSON)], b"{}\r\n\r\n\"\xff\"\r\n", 400, "invalid_json", Some(("line", "3"))),
        (a, &[("Content-Type", NDJSON)], b"{} {}", 400, "invalid_json", Some(("line", "1"))),
        (a, &[("Content-Type", NDJSON)], b"\n \n", 400, "empty_batch", None),
        (a, &[("Content-Type", "text/plain")], b"", 400, "empty_batch", None),
        (a, &[("Content-Type", "application/json")], b"{\"records\":[]}", 400, "empty_batch", None),
        (
            a,
            &[("Content-Type", "application/json")],
            b"{\"records\":[{}]}",
            400,
            "invalid_request",
            Some(("record", "1")),
        ),
        (
            a,
            &[("Content-Type", "application/json")],
            b"{\"records\":[{\"value\":\"a\"}]}",
            400,
            "invalid_base64",
            None,
        ),
        (
            a,
            &[("Content-Type", "application/json")],
            b"{\"records\":[{\"value\":\"\",\"json\":1}]}",
            400,
            "invalid_request",
            None,
        ),
        (a, &[("Content-Type", "application/json")], b"[", 400, "invalid_json", None),
        (
            a,
            &[("Content-Type", FRAMES)],
            b"\x01\0\0\0a\x05\0\0\0ab",
            400,
            "invalid_frame",
            Some(("record", "2")),
        ),
        (a, &[("Content-Type", FRAMES)], b"\xff\xff\xff\x7fa", 400, "invalid_frame", None),
        (a, &[("Content-Type", FRAMES)], b"\x01\0", 400, "invalid_frame", None),
        (a, &[("Content-Type", FRAMES)], b"\x01\0\0\x80{", 400, "invalid_json", None),
        (a, &[("Content-Type", "backing/png")], b"x", 415, "unsupported_type", None),
        (a, &[("Content-Encoding", "br")], b"x", 415, "unsupported_encoding", None),
        (a, &[("Content-Encoding", "gzip")], b"no gzip", 400, "invalid_encoding", None),
        (a, &[("Content-Encoding", "zstd")], b"no zstd", 400, "invalid_encoding", None),
        (a, &[("Content-Encoding", "gzip")], &bomb, 413, "body_too_large", None),
        (j, &[("Content-Type", "text/plain")], b"1\nno", 400, "not_json", Some(("record", "2"))),
        (j, &[("Content-Type", NDJSON)], long.as_bytes(), 413, "record_too_large", Some(("record", "1"))),
        ("/v1/logs/none/records", &[], b"x", 404, "log_not_found", None),
        ("/v1/logs/..%2Fa/records", &[], b"x", 400, "invalid_log_name", None),
        ("/v1/logs/a/records?ack=never", &[], b"x", 400, "invalid_query", None),
        ("/v1/logs/a/records?x=1", &[], b"x", 400, "invalid_query", None),
        ("/v1/logs/a/records?expect=-1", &[], b"x", 400, "invalid_query", None),
    ];
    for (target, headers, body, status, expected, place) in cases {
        let answer = send(&mut client, target, headers, "POST", body);
        assert_eq!(
            (answer.status, code(&answer)),
            (*status, *expected),
            "{target} {headers:?}: {}",
            answer.body
        );
        if let Some((name, number)) = place {
            assert_eq!(member(&answer, name), Some(*number), "{}", answer.body);
        }
    }
    // A refused append does not create a log either.
    let (_data, creating) = start(&["--create-logs"]);
    assert_eq!(append(&mut creating.connect(), "/v1/logs/new/records", NDJSON, b"{").status, 400);
    assert_eq!(read(&mut creating.connect(), "/v1/logs/new", "*/*").status, 404);
    for log in ["a", "j"] {
        let described = read(&mut client, &format!("/v1/logs/{log}"), "*/*");
        assert_eq!(member(&described, "next_offset"), Some("0"), "something was stored: {}", described.body);
    }
    // A log of JSON accepts bytes that are JSON, and marks them.
    assert_eq!(append(&mut client, j, "text/plain", b"1\n[2]").status, 200);
    assert!(read(&mut client, j, NDJSON).body.contains("\"json\":[2]"));
    for (query, expected) in [
        ("offset=x", "invalid_offset"),
        ("offset=-0", "invalid_offset"),
        ("limit=0", "invalid_query"),
        ("wait=2h", "invalid_query"),
        ("since=yesterday", "invalid_query"),
        ("max_bytes=1e3", "invalid_query"),
    ] {
        let answer = read(&mut client, &format!("{a}?{query}"), "*/*");
        assert_eq!((answer.status, code(&answer)), (400, expected), "{query}");
    }
    assert_eq!(code(&read(&mut client, a, "backing/png")), "not_acceptable");
}

#[test]
fn logs_are_created_listed_described_and_deleted() {
    let (data, server) = start(&[]);
    let mut client = server.connect();
    for name in ["c", "a", "b"] {
        assert_eq!(send(&mut client, &format!("/v1/logs/{name}"), &[], "PUT", b"").status, 201);
    }
    assert_eq!(send(&mut client, "/v1/logs/a", &[], "PUT", b"{}").status, 200);
    let other = send(&mut client, "/v1/logs/a", &[], "PUT", br#"{"values":"json"}"#);
    assert_eq!((other.status, code(&other)), (409, "log_exists"));
    for bad in [&br#"{"values":"xml"}"#[..], br#"{"colour":1}"#, br#"{"segment_bytes":1}"#] {
        assert_eq!(send(&mut client, "/v1/logs/x", &[], "PUT", bad).status, 400);
    }
    assert_eq!(
        read(&mut client, "/v1/logs?limit=2", "*/*").body,
        "{\"logs\":[\"a\",\"b\"],\"next\":\"b\"}\n"
    );
    assert_eq!(read(&mut client, "/v1/logs?after=b", "*/*").body, "{\"logs\":[\"c\",\"default\"]}\n");
    append(&mut client, "/v1/logs/a/records", "text/plain", b"x");
    assert_eq!(send(&mut client, "/v1/logs/a", &[], "DELETE", b"").status, 204);
    assert!(!data.path().join("a").exists());
    let gone = read(&mut client, "/v1/logs/a", "*/*");
    assert_eq!((gone.status, code(&gone)), (404, "log_not_found"));
    assert_eq!(send(&mut client, "/v1/logs/a", &[], "DELETE", b"").status, 404);
    assert_eq!(send(&mut client, "/v1/logs/a", &[], "PATCH", b"").status, 405);
    server.kill();
    let server = Server::start(data.path(), &[]);
    assert_eq!(read(&mut server.connect(), "/v1/logs", "*/*").body, "{\"logs\":[\"b\",\"c\",\"default\"]}\n");
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

#[test]
fn a_body_that_stops_half_way_stores_nothing() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    append(&mut client, "/v1/logs/a/records", NDJSON, b"0");
    for cut in [0, 1, 2, 3, 4] {
        let mut half = TcpStream::connect(&server.address).unwrap();
        let head = "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: 5\r\n\r\n";
        half.write_all(head.as_bytes()).unwrap();
        half.write_all(&b"1\n2\n3"[..cut]).unwrap();
        half.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = half.read_to_end(&mut rest);
    }
    assert_eq!(member(&read(&mut client, "/v1/logs/a", "*/*"), "next_offset"), Some("1"));
}

#[test]
fn a_repeated_batch_is_stored_once_also_when_the_server_was_killed_in_between() {
    let (data, mut server) = start(&["--create-logs"]);
    let base = "/v1/logs/a/records";
    let produce = |server: &Server, epoch: &str, seq: &str| {
        let headers = [("Producer-Id", "p"), ("Producer-Epoch", epoch), ("Producer-Seq", seq)];
        let headers = [&headers[..], &[("Content-Type", "text/plain")]].concat();
        send(&mut server.connect(), base, &headers, "POST", format!("{epoch}/{seq}\nmore").as_bytes())
    };
    for seq in 0..10 {
        let seq = seq.to_string();
        let first = produce(&server, "1", &seq);
        assert_eq!(first.status, 200, "{}", first.body);
        if seq == "4" || seq == "7" {
            server.kill();
            server = Server::start(data.path(), &["--create-logs"]);
        }
        let again = produce(&server, "1", &seq);
        assert_eq!(member(&again, "first_offset"), member(&first, "first_offset"), "{}", again.body);
        assert_eq!(member(&again, "repeated"), Some("true"));
    }
    let gap = produce(&server, "1", "12");
    assert_eq!((gap.status, code(&gap)), (409, "producer_out_of_order"));
    assert_eq!((member(&gap, "expected_epoch"), member(&gap, "expected_seq")), (Some("1"), Some("10")));
    assert_eq!(produce(&server, "0", "0").status, 409);
    assert_eq!(produce(&server, "2", "0").status, 200);
    let some = send(&mut server.connect(), base, &[("Producer-Id", "p")], "POST", b"x");
    assert_eq!((some.status, code(&some)), (400, "invalid_producer"));
    let all = read(&mut server.connect(), base, "text/plain");
    assert_eq!(all.body.lines().count(), 22, "{}", all.body);
}

#[test]
fn metrics_count_what_was_done_and_requests_have_ids() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    for _ in 0..3 {
        append(&mut client, "/v1/logs/some-name/records", NDJSON, b"1\n2\n3");
    }
    append(&mut client, "/v1/logs/some-name/records", NDJSON, b"{");
    let named = send(&mut client, "/healthz", &[("X-Request-Id", "mine")], "GET", b"");
    assert!(named.head.contains("x-request-id: mine\r\n"), "{}", named.head);
    let metrics = read(&mut client, "/metrics", "*/*");
    assert!(!metrics.body.contains("some-name"));
    let refused = read(&mut client, "/v1/logs/none", "*/*");
    assert!(refused.head.contains("x-request-id: "), "{}", refused.head);
    let nameless = send(&mut client, "/v1/logs/none", &[("X-Request-Id", "")], "GET", b"");
    assert!(!nameless.head.contains("x-request-id: \r\n"), "{}", nameless.head);
    assert!(nameless.head.contains("x-request-id: "), "{}", nameless.head);
    for line in [
        r#"millstream_requests_total{route="/v1/logs/{log}/records",status="200"} 3"#,
        r#"millstream_requests_total{route="/v1/logs/{log}/records",status="400"} 1"#,
        "millstream_appended_records_total 9",
        "millstream_appended_bytes_total 9",
        "millstream_batch_records_count 3",
        "millstream_waiters 0",
        "millstream_connections 1",
        "millstream_logs 2",
        "millstream_open_logs 2",
        "millstream_backpressure_total 0",
        "millstream_scrub_damaged_segments_total 0",
        "millstream_scrub_damaged_records_total 0",
        "# EOF",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line} is not in\n{}", metrics.body);
    }
    let value = |name: &str| {
        let line = metrics.body.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("millstream_commit_seconds_count") >= 1.0 && value("millstream_commit_seconds_sum") > 0.0);
    assert!((value("millstream_commit_records_sum") - 9.0).abs() < 0.1);
    assert!(value("millstream_scrubbed_bytes_total") >= 0.0);
    assert!(
        value("millstream_chunk_memory_bytes") > 1e5
            && value("millstream_committed_bytes_total") > 9.0 * 24.0
    );
    // Buckets are cumulative, as Prometheus requires.
    let last = value(r#"millstream_commit_records_bucket{le="+Inf"}"#);
    assert!((last - value("millstream_commit_records_count")).abs() < 0.1);
}

/// A service's producer sent epoch 0, sequence 0 each time it started: what was new was dropped, and answered as stored.
#[test]
fn a_producer_that_starts_again_gets_its_next_epoch_and_loses_nothing() {
    let (data, mut server) = start(&["--create-logs"]);
    let producer = "/v1/logs/a/producers/im%20port%2F1";
    let run = |server: &Server, lines: &str, mark: &str| {
        let mut client = server.connect();
        let opened = client.request("POST", producer, b"").unwrap();
        assert_eq!(opened.status, 200, "{}", opened.body);
        let epoch = member(&opened, "epoch").unwrap().to_owned();
        let send = |seq: &str, body: &str| {
            let headers = [
                ("Producer-Id", "im port/1"),
                ("Producer-Epoch", &epoch),
                ("Producer-Seq", seq),
                ("Producer-Mark", mark),
                ("Content-Type", "text/plain"),
            ];
            send(&mut server.connect(), "/v1/logs/a/records", &headers, "POST", body.as_bytes())
        };
        let stored = send("0", lines);
        assert_eq!((stored.status, member(&stored, "repeated")), (200, None), "{}", stored.body);
        assert_eq!(member(&send("0", lines), "repeated"), Some("true"));
        let other = send("0", &format!("{lines}\nnew"));
        assert_eq!((other.status, code(&other)), (409, "not_a_repeat"), "{}", other.body);
        (epoch, opened)
    };
    let unknown = server.connect().request("GET", producer, b"").unwrap();
    assert_eq!((unknown.status, code(&unknown)), (404, "log_not_found"));
    let mut epochs = Vec::new();
    for n in 0..4 {
        let mark = n.to_string();
        let (epoch, opened) = run(&server, &format!("{n}\nmore"), &mark);
        epochs.push(epoch.parse::<u64>().unwrap());
        let before = if n == 0 { "null".to_owned() } else { format!("\"{}\"", n - 1) };
        assert_eq!(member(&opened, "mark"), Some(&*before));
        let known = server.connect().request("GET", producer, b"").unwrap();
        assert_eq!((member(&known, "epoch"), member(&known, "next_seq")), (Some(&*epoch), Some("1")));
        assert_eq!(member(&known, "last_offset"), Some(&*(2 * n + 1).to_string()));
        if n == 1 {
            server.kill();
            server = Server::start(data.path(), &["--create-logs"]);
        }
    }
    assert!(epochs.is_sorted_by(|one, next| one < next), "{epochs:?}");
    let all = read(&mut server.connect(), "/v1/logs/a/records", "text/plain");
    assert_eq!(all.body, "0\nmore\n1\nmore\n2\nmore\n3\nmore\n");
    let late =
        [("Producer-Id", "im port/1"), ("Producer-Epoch", &*epochs[0].to_string()), ("Producer-Seq", "1")];
    assert_eq!(send(&mut server.connect(), "/v1/logs/a/records", &late, "POST", b"late").status, 409);
    // The log is made anew: the producer goes on, in a higher epoch.
    assert_eq!(server.connect().request("DELETE", "/v1/logs/a", b"").unwrap().status, 204);
    std::thread::sleep(Duration::from_secs(1));
    let (epoch, opened) = run(&server, "again", "x");
    assert!(epoch.parse::<u64>().unwrap() > epochs[0], "{epoch} after {epochs:?}");
    assert_eq!(member(&opened, "mark"), Some("null"));
    let unknown = server.connect().request("GET", "/v1/logs/a/producers/nobody", b"").unwrap();
    assert_eq!((unknown.status, code(&unknown)), (404, "producer_not_found"));
    for (method, target) in [
        ("POST", format!("/v1/logs/a/producers/{}", "x".repeat(65))),
        ("GET", "/v1/logs/a/producers/%FF".to_owned()),
        ("GET", "/v1/logs/a/producers/".to_owned()),
        ("POST", "/v1/logs/a/producers/%0A".to_owned()),
    ] {
        let refused = server.connect().request(method, &target, b"").unwrap();
        assert_eq!((refused.status, code(&refused)), (400, "invalid_producer"), "{target}");
    }
    let long = "m".repeat(129);
    for headers in [
        &[("Producer-Mark", "m")][..],
        &[("Producer-Id", "p"), ("Producer-Epoch", "9"), ("Producer-Seq", "0"), ("Producer-Mark", &long)],
    ] {
        let refused = send(&mut server.connect(), "/v1/logs/a/records", headers, "POST", b"x");
        assert_eq!((refused.status, code(&refused)), (400, "invalid_producer"));
    }
}

/// There was no way to begin an epoch without taking the id from whoever had it.
#[test]
fn a_producer_that_was_fenced_off_may_ask_for_an_epoch_after_its_own_and_gets_none() {
    let (_data, server) = start(&["--create-logs"]);
    let begin = |query: &str| {
        server.connect().request("POST", &format!("/v1/logs/a/producers/p{query}"), b"").unwrap()
    };
    let first = begin("?after=5"); // the log does not know it
    assert_eq!(first.status, 200, "{}", first.body);
    let epoch = member(&first, "epoch").unwrap();
    let second = begin(&format!("?after={epoch}"));
    let later = member(&second, "epoch").unwrap();
    assert!(
        second.status == 200 && later.parse::<u64>().unwrap() > epoch.parse().unwrap(),
        "{}",
        second.body
    );
    let headers = [("Producer-Id", "p"), ("Producer-Epoch", later), ("Producer-Seq", "0")];
    assert_eq!(send(&mut server.connect(), "/v1/logs/a/records", &headers, "POST", b"x").status, 200);
    let refused = begin(&format!("?after={epoch}"));
    assert_eq!((refused.status, code(&refused)), (409, "producer_out_of_order"), "{}", refused.body);
    let expected = (member(&refused, "expected_epoch"), member(&refused, "expected_seq"));
    assert_eq!(expected, (Some(later), Some("1")));
    let known = server.connect().request("GET", "/v1/logs/a/producers/p", b"").unwrap();
    assert_eq!(member(&known, "epoch"), Some(later), "nothing has begun");
    for query in ["?after=", "?after=-1", "?after=4294967296", "?after=1&after=1", "?before=1"] {
        let refused = begin(query);
        assert_eq!((refused.status, code(&refused)), (400, "invalid_query"), "{query}");
    }
}

/// An id with a tab could append, but its producer was no resource; and one that is a space could begin an epoch, but no
/// header carries it.
#[test]
fn ids_of_producers_have_one_rule_in_headers_and_paths() {
    let (_data, server) = start(&["--create-logs"]);
    for (id, path) in [("a\tb", "a%09b"), ("", "%20"), ("", "%20a"), ("ü", "%C3%BC"), ("\u{80}", "%FF")] {
        for method in ["GET", "POST"] {
            let target = format!("/v1/logs/a/producers/{path}");
            let refused = server.connect().request(method, &target, b"").unwrap();
            assert_eq!((refused.status, code(&refused)), (400, "invalid_producer"), "{method} {path}");
        }
        let headers = [("Producer-Id", id), ("Producer-Epoch", "0"), ("Producer-Seq", "0")];
        let refused = send(&mut server.connect(), "/v1/logs/a/records", &headers, "POST", b"x");
        assert_eq!((refused.status, code(&refused)), (400, "invalid_producer"), "{id:?}");
    }
    // They were the names of producers, with their percent signs.
    for path in ["%zz", "a%", "a%2", "%2", "%%20"] {
        let refused = server.connect().request("POST", &format!("/v1/logs/a/producers/{path}"), b"").unwrap();
        assert_eq!((refused.status, code(&refused)), (400, "invalid_producer"), "{path}");
    }
    assert_eq!(read(&mut server.connect(), "/v1/logs/a", "*/*").status, 404, "none of them made the log");
}

/// A batch whose records differ from the stored ones in their kind only was answered as stored.
#[test]
fn a_batch_of_the_same_bytes_and_another_kind_is_not_a_repeat() {
    let (data, mut server) = start(&["--create-logs"]);
    let send = |server: &Server, seq: &str, media_type: &str| {
        let headers = [
            ("Producer-Id", "p"),
            ("Producer-Epoch", "3"),
            ("Producer-Seq", seq),
            ("Content-Type", media_type),
        ];
        let answer = send(&mut server.connect(), "/v1/logs/a/records", &headers, "POST", b"1\n2");
        (
            answer.status,
            if answer.status == 200 { member(&answer, "repeated").unwrap_or("new") } else { code(&answer) }
                .to_owned(),
        )
    };
    for (seq, media_type) in [("0", "text/plain"), ("1", NDJSON)] {
        assert_eq!(send(&server, seq, media_type), (200, "new".to_owned()));
    }
    // As noted; as read from the log; and as read from the file.
    for round in ["noted", "from the log", "from the file"] {
        for (seq, same, other) in [("0", "text/plain", NDJSON), ("1", NDJSON, "text/plain")] {
            assert_eq!(send(&server, seq, same), (200, "true".to_owned()), "{round}, {same}");
            assert_eq!(send(&server, seq, other), (409, "not_a_repeat".to_owned()), "{round}, {other}");
        }
        if round == "noted" {
            server.kill();
        } else {
            server.terminate();
        }
        server = Server::start(data.path(), &[]);
    }
}

/// Any client could send the last epoch, and its producer never got another.
#[test]
fn an_epoch_that_a_client_names_leaves_others_to_be_given() {
    let (_data, server) = start(&["--create-logs"]);
    let append = |epoch: &str| {
        let headers = [("Producer-Id", "p"), ("Producer-Epoch", epoch), ("Producer-Seq", "0")];
        send(&mut server.connect(), "/v1/logs/a/records", &headers, "POST", b"x")
    };
    for epoch in ["4294967296", "4294967295", "2147483648"] {
        let refused = append(epoch);
        assert_eq!((refused.status, code(&refused)), (400, "invalid_producer"), "{epoch}: {}", refused.body);
    }
    assert_eq!(append("2147483647").status, 200);
    let opened = server.connect().request("POST", "/v1/logs/a/producers/p", b"").unwrap();
    assert_eq!(member(&opened, "epoch"), Some("2147483648"), "{}", opened.body);
    assert_eq!(append("2147483648").status, 200);
}

/// collectd, Vector, Fluent Bit and Logstash send lists; others give NDJSON another name, compress by `deflate`, or begin
/// with a mark of byte order.
#[test]
fn bodies_of_real_shippers_are_accepted() {
    let (_data, server) = start(&["--create-logs"]);
    let mut client = server.connect();
    let base = "/v1/logs/a/records";
    let list = br#" [{"n": 1}, 2, "three", null, [5], {"records": []}]"#;
    let appended = append(&mut client, base, "application/json", list);
    assert_eq!((appended.status, member(&appended, "count")), (200, Some("6")), "{}", appended.body);
    for (media_type, body) in [
        ("application/jsonl", &b"7\n"[..]),
        ("application/x-jsonlines", b"8"),
        ("application/json-lines; charset=utf-8", b"9\n\n"),
        (NDJSON, b"\xEF\xBB\xBF10\n"),
        ("application/json", b"\xEF\xBB\xBF[11]"),
        ("text/plain", b"\xEF\xBB\xBF12\n"),
    ] {
        let appended = append(&mut client, base, media_type, body);
        assert_eq!(
            (appended.status, member(&appended, "count")),
            (200, Some("1")),
            "{media_type}: {}",
            appended.body
        );
    }
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(b"13\n14\n").unwrap();
    let headers = [("Content-Type", NDJSON), ("Content-Encoding", "Deflate")];
    let appended = send(&mut client, base, &headers, "POST", &zlib.finish().unwrap());
    assert_eq!((appended.status, member(&appended, "count")), (200, Some("2")), "{}", appended.body);
    let all = read(&mut client, base, "text/plain").body;
    let expected = "{\"n\": 1}\n2\n\"three\"\nnull\n[5]\n{\"records\": []}\n7\n8\n9\n10\n11\n12\n13\n14\n";
    assert_eq!(all, expected);
    for (body, expected) in [
        (&b"[]"[..], "empty_batch"),
        (b"[1", "invalid_json"),
        (b"[1,]", "invalid_json"),
        (b"[1] 2", "invalid_json"),
        (b"[1}", "invalid_json"),
        (b"7", "invalid_request"),
    ] {
        let refused = append(&mut client, base, "application/json", body);
        assert_eq!((refused.status, code(&refused)), (400, expected), "{}", String::from_utf8_lossy(body));
        assert!(refused.head.contains("cache-control: no-store"), "{}", refused.head);
    }
    // Elements of two bytes become frames of five.
    let many = format!("[{}1]", "1,".repeat(99_999));
    let appended = append(&mut client, base, "application/json", many.as_bytes());
    assert_eq!(member(&appended, "count"), Some("100000"), "{}", appended.body);
    // As `base64` prints what is long, in the book's API.
    let broken = r#"{"record":{"value":"aGVs\nbG8=\r\n"}}"#;
    let produced = client.request("POST", "/", broken.as_bytes()).unwrap();
    assert_eq!((produced.status, produced.body.as_str()), (200, "{\"offset\":0}\n"));
    let value = client.request("GET", "/v1/logs/default/records/0", b"").unwrap();
    assert_eq!(value.body, "hello");
}

/// `POST /` passed by the settings of its log.
#[test]
fn the_books_api_keeps_to_the_settings_of_its_log() {
    let (_data, server) = start(&[]);
    let mut client = server.connect();
    assert_eq!(client.request("DELETE", "/v1/logs/default", b"").unwrap().status, 204);
    let settings = br#"{"values":"json","record_bytes":8}"#;
    assert_eq!(client.request("PUT", "/v1/logs/default", settings).unwrap().status, 201);
    for (base64, status, expected) in [
        ("eyJhIjox", 400, "not_json"),
        ("eyJhIjoxfQ==", 200, "none"),
        ("MTIzNDU2Nzg5", 413, "record_too_large"),
    ] {
        let body = format!(r#"{{"record":{{"value":"{base64}"}}}}"#);
        let answer = client.request("POST", "/", body.as_bytes()).unwrap();
        assert_eq!((answer.status, code(&answer)), (status, expected), "{}", answer.body);
    }
    let stored = read(&mut client, "/v1/logs/default/records", NDJSON);
    assert!(stored.body.contains(r#""json":{"a":1}"#) && stored.body.lines().count() == 1, "{}", stored.body);
}

/// Whoever waited for a log that was deleted was told 503 `writer_failed`, "open the log again to recover".
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

/// A log whose settings were broken was answered with 500 `internal`, and was listed like any other; `logs list` showed
/// nothing at all.
#[test]
fn a_log_whose_directory_cannot_be_used_says_so_and_the_others_go_on() {
    let (data, mut server) = start(&["--create-logs"]);
    for log in ["broken", "other", "whole"] {
        append(&mut server.connect(), &format!("/v1/logs/{log}/records"), "text/plain", b"0");
    }
    assert_eq!(server.terminate(), Some(0));
    std::fs::write(data.path().join("broken/log.json"), "{\"values\":").unwrap();
    std::fs::create_dir(data.path().join("foreign")).unwrap();
    std::fs::write(data.path().join("foreign/notes.txt"), "of somebody else").unwrap();
    std::fs::create_dir(data.path().join("empty")).unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    // Also before anybody has asked for it.
    let listed = read(&mut client, "/v1/logs", "*/*").body;
    assert_eq!(listed.trim_end(), r#"{"logs":["broken","default","other","whole"],"unusable":["broken"]}"#);
    assert!(read(&mut client, "/metrics", "*/*").body.contains("millstream_unusable_logs 1\n"));
    for (method, target) in [("GET", ""), ("GET", "/records"), ("POST", "/records")] {
        let answer = client.request(method, &format!("/v1/logs/broken{target}"), b"x").unwrap();
        assert_eq!((answer.status, code(&answer)), (500, "log_unusable"), "{method} {target}");
    }
    // What is not a log at all does not become one.
    for (method, target, status, expected) in [
        ("GET", "", 404, "log_not_found"),
        ("GET", "/records", 404, "log_not_found"),
        ("DELETE", "", 404, "log_not_found"),
        ("POST", "/records", 500, "log_unusable"),
        ("PUT", "", 500, "log_unusable"),
        ("GET", "", 404, "log_not_found"),
    ] {
        let answer = client.request(method, &format!("/v1/logs/foreign{target}"), b"").unwrap();
        assert_eq!((answer.status, code(&answer)), (status, expected), "{method} {target}");
        assert!(status == 404 || answer.body.contains("notes.txt"), "{}", answer.body);
    }
    assert_eq!(append(&mut client, "/v1/logs/empty/records", "text/plain", b"0").status, 200);
    assert_eq!(append(&mut client, "/v1/logs/other/records", "text/plain", b"1").status, 200);
    let list = std::process::Command::new(env!("CARGO_BIN_EXE_millstream"));
    let list = { list }.args(["logs", "list", "--url", &server.address]).output().unwrap();
    let (out, error) = (String::from_utf8(list.stdout).unwrap(), String::from_utf8(list.stderr).unwrap());
    assert_eq!(list.status.code(), Some(1));
    assert!(out.contains("whole") && out.contains("other"), "{out}");
    assert!(error.contains("broken: ") && !error.contains("foreign"), "{error}");
    assert!(data.path().join("foreign/notes.txt").exists());
    // It is usable as soon as its settings are.
    std::fs::write(data.path().join("broken/log.json"), "{}").unwrap();
    assert_eq!(read(&mut client, "/v1/logs/broken/records", "text/plain").body, "0\n");
    assert!(read(&mut client, "/metrics", "*/*").body.contains("millstream_unusable_logs 0\n"));
    assert_eq!(client.request("DELETE", "/v1/logs/broken", b"").unwrap().status, 204);
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
