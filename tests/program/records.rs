//! The records API over a socket: each format, header and parameter, and each kind of bad input. Reading and producers
//! have files of their own.

mod producers;
mod reading;

use crate::support::{Answer, Client, Server, code, program, start};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

const NDJSON: &str = "application/x-ndjson";
const FRAMES: &str = "application/vnd.millstream.frames";

/// Target, headers and body; the expected status and code; the number in the answer that says where the error is.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str, Option<(&'a str, &'a str)>);

fn member<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.body.split(&format!("\"{name}\":")).nth(1)?.split([',', '}']).next()
}

fn send(client: &mut Client, target: &str, headers: &[(&str, &str)], method: &str, body: &[u8]) -> Answer {
    client.exchange(method, target, headers, body).unwrap().into_text()
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
        ("eyJhIjoxfQ==", 200, "no code"),
        ("MTIzNDU2Nzg5", 413, "record_too_large"),
    ] {
        let body = format!(r#"{{"record":{{"value":"{base64}"}}}}"#);
        let answer = client.request("POST", "/", body.as_bytes()).unwrap();
        assert_eq!((answer.status, code(&answer)), (status, expected), "{}", answer.body);
    }
    let stored = read(&mut client, "/v1/logs/default/records", NDJSON);
    assert!(stored.body.contains(r#""json":{"a":1}"#) && stored.body.lines().count() == 1, "{}", stored.body);
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
    let list = program::millstream();
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
