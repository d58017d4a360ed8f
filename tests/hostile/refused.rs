//! What is refused, and how: so that the client notices, can continue, and takes nothing away from others.

use super::{
    code, get,
    http2::{self, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, RESET},
    support::{Client, Server},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// The next request was sent on a connection that was already closed.
#[test]
fn a_refusal_before_the_body_was_read_says_that_the_connection_closes() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let post = |more: &str, body: &[u8]| {
        let mut client = server.connect();
        let head = format!("POST /v1/logs/missing/records HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        client.send(head.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50)); // the answer may be made before the body has arrived
        client.send(body).unwrap();
        let begun = Instant::now();
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, code(&answer.body)), (404, "log_not_found"), "{more}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{more}: after {:?}", begun.elapsed());
        (client, answer.head.to_ascii_lowercase().contains("connection: close"))
    };
    let all = vec![b'x'; 200_000];
    for (more, body) in [
        ("Content-Length: 200000\r\n", &all[..]),
        ("Content-Length: 200000\r\n", &all[..10]),
        ("Content-Length: 10\r\n", &all[..5]),
        ("Content-Length: 10\r\nExpect: 100-continue\r\n", &all[..0]),
        ("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n"),
    ] {
        let (mut client, closes) = post(more, body);
        assert!(closes, "{more} and {} bytes: nothing is said", body.len());
        assert!(get(&mut client, "/healthz").is_err(), "{more}: it continues, and says that it ends");
    }
    for (more, body) in [
        ("Content-Length: 0\r\n", &all[..0]),
        ("Content-Length: 10\r\n", &all[..10]),
        ("Content-Length: 20000\r\n", &all[..20_000]),
        ("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\n\r\n"),
    ] {
        let (mut client, closes) = post(more, body);
        assert!(!closes, "{more}: the connection ends for {} bytes", body.len());
        for _ in 0..3 {
            assert_eq!(get(&mut client, "/healthz").unwrap().status, 200, "{more}");
        }
    }
}

/// The frames of a stream, up to the end of the answer, for at most 3 s.
fn answered(connection: &mut Connection, stream: u32) -> Vec<(u8, u8, Vec<u8>)> {
    let (mut frames, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < Duration::from_secs(3) {
        if let Some((kind, flags, of, payload)) = connection.next().unwrap()
            && of == stream
        {
            frames.push((kind, flags, payload));
            if kind == RESET || flags & END_STREAM != 0 {
                break;
            }
        }
    }
    frames
}

fn text(frames: &[(u8, u8, Vec<u8>)]) -> String {
    let bytes: Vec<u8> =
        frames.iter().filter(|frame| frame.0 == DATA).flat_map(|frame| frame.2.clone()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Requests that waited for records took all streams of the server, and nobody else had any.
#[test]
fn connections_with_many_streams_leave_some_to_others() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "64"]); // 256 streams
    let waiting = "/v1/logs/default/records?offset=latest&wait=60s";
    let mut greedy: Vec<Connection> = (0..3)
        .map(|_| {
            let mut one = Connection::open(&server.address, &[]);
            for n in 0..256 {
                one.send(&http2::get(2 * n + 1, waiting)).unwrap();
            }
            while one.next().unwrap().is_some() {}
            one
        })
        .collect();
    for _ in 0..30 {
        let mut other = Connection::open(&server.address, &[]);
        for (stream, path) in [(1, "/v1/logs/default"), (3, "/v1/logs"), (5, "/readyz")] {
            other.send(&http2::get(stream, path)).unwrap();
            let answer = answered(&mut other, stream);
            assert_eq!(answer.first().map(|frame| frame.2[0]), Some(0x88), "{path}: {}", text(&answer));
        }
    }
    // A connection that has many is refused in a way that the client can see, and can still be used for probes.
    let one = &mut greedy[0];
    one.send(&http2::frame(HEADERS, END_HEADERS, 1001, &http2::head("POST", "/v1/logs/default/records")))
        .unwrap();
    one.send(&http2::frame(DATA, 0, 1001, b"x")).unwrap();
    let answer = answered(one, 1001);
    assert!(answer.iter().all(|frame| frame.0 != RESET), "it is reset: {answer:?}");
    assert_eq!(code(&text(&answer)), "overloaded");
    one.send(&http2::frame(DATA, END_STREAM, 1001, b"y")).unwrap();
    one.send(&http2::get(1003, "/healthz")).unwrap();
    let answer = answered(one, 1003);
    assert_eq!(answer.first().map(|frame| frame.2[0]), Some(0x88), "{}", text(&answer));
}

/// If something was specified twice, the first or the last value was used, depending on the code.
#[test]
fn repeated_or_non_text_headers_and_parameters_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    let start = "POST /v1/logs/default/records";
    let chunks = "1\r\nx\r\n0\r\n\r\n";
    let producer = "Producer-Id: a\r\nProducer-Epoch: 0\r\nProducer-Seq: 0\r\n";
    let cases: Vec<(&str, String, &str)> = vec![
        (start, "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n".into(), "invalid_request"),
        (start, "Content-Encoding: gzip\u{e9}\r\n".into(), "invalid_request"),
        (start, "Content-Encoding: gzip, zstd\r\n".into(), "unsupported_encoding"),
        (start, "Content-Type: text/plain\r\nContent-Type: application/json\r\n".into(), "invalid_request"),
        (start, "Content-Type: \u{e9}\r\n".into(), "invalid_request"),
        (start, format!("{producer}Producer-Id: b\r\n"), "invalid_request"),
        (start, format!("{producer}Producer-Epoch: 1\r\n"), "invalid_request"),
        (start, format!("{producer}Producer-Seq: 1\r\n"), "invalid_request"),
        (start, "Transfer-Encoding: gzip, chunked\r\n".into(), "invalid_request"),
        (start, "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n".into(), "invalid_request"),
        ("POST /", "Transfer-Encoding: gzip, chunked\r\n".into(), "invalid_request"),
        ("POST /v1/logs/default/records?expect=999&expect=0", String::new(), "invalid_query"),
        ("POST /v1/logs/default/records?ack=memory&%61ck=durable", String::new(), "invalid_query"),
        ("GET /v1/logs/default/records?offset=0&offset=0", String::new(), "invalid_query"),
        ("GET /v1/logs?limit=1&limit=2", String::new(), "invalid_query"),
        ("GET /?offset=0&offset=0", String::new(), "invalid_query"),
    ];
    for (line, more, expected) in cases {
        let body = if more.contains("chunked") { chunks } else { "x" };
        let length = if more.contains("chunked") { "" } else { "Content-Length: 1\r\n" };
        client
            .send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{more}{length}\r\n{body}").as_bytes())
            .unwrap();
        let answer = client.answer().unwrap();
        assert_eq!(code(&answer.body), expected, "{line} with {more:?}: {}", answer.body);
    }
    // What may be in several headers still may be, and so may a coding that is only framing.
    for more in ["Accept: text/html\r\nAccept: application/json\r\n", "Accept: \u{e9}\r\nAccept: */*\r\n"] {
        let request = format!("GET /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        client.send(request.as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, 200, "{more}");
    }
    let request =
        format!("{start} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n{chunks}");
    client.send(request.as_bytes()).unwrap();
    assert_eq!(client.answer().unwrap().status, 200);
}

/// A list was accepted, with its values assigned to members by position: a log got a retention, and was trimmed.
#[test]
fn a_json_list_is_not_an_object() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.append(b"0").unwrap();
    let records = "/v1/logs/default/records";
    for (method, target, body) in [
        ("PUT", "/v1/logs/x", r#"["memory","json",1,1,1000000,5]"#),
        ("PUT", "/v1/logs/x", "[]"),
        ("POST", "/v1/logs/default/trim", "[1]"),
        ("POST", "/", r#"{"record":["aGk=",0]}"#),
        ("POST", "/", r#"[{"value":"aGk="}]"#),
        ("POST", "/", r#"[["aGk=",0]]"#),
        ("GET", "/", "[0]"),
        ("POST", records, r#"{"records":[["aGk=",null]]}"#),
        ("POST", records, r#"{"records":[[null,1]]}"#),
    ] {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.send(head.as_bytes()).unwrap();
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, code(&answer.body)), (400, "invalid_request"), "{method} {target} {body}");
    }
    assert_eq!(get(&mut client, "/v1/logs/x").unwrap().status, 404);
    assert_eq!(client.append(b"1").unwrap(), 1);
}

/// The connection was closed without a notice: an error in the chunks was an error of the body, after which there
/// seemed to be no more of it. Other refusals that end a connection must say so too.
#[test]
fn every_refusal_that_closes_the_connection_says_so() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--body-seconds", "1"]);
    let chunked = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let large = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n";
    for (what, request, status) in [
        ("no size of a chunk", format!("{chunked}zz\r\n"), 400),
        ("a long extension", format!("{chunked}1;{}\r\n", "x".repeat(20_000)), 400),
        ("a chunk without its end", format!("{chunked}1\r\nxx\r\n"), 400),
        ("a body that does not come", format!("{chunked}1\r\nx\r\n"), 408),
        ("a body that is too large", large.to_owned(), 413),
        (
            "a long head",
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(99_000)),
            431,
        ),
        ("no head", "GET\r\n\r\n".to_owned(), 400),
    ] {
        let mut client = server.connect();
        client.send(request.as_bytes()).unwrap();
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        assert!(answer.head.to_ascii_lowercase().contains("connection: close"), "{what}: {}", answer.head);
        assert!(get(&mut client, "/healthz").is_err(), "{what}: it continues");
    }
}

/// Of `offset=1&since=…` the last one counted; settings and offsets of up to 16 MiB were parsed on the server's thread.
#[test]
fn contradictory_or_oversized_input_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    client.append(b"x").unwrap();
    let (records, since) = ("/v1/logs/default/records", "since=2026-01-02T03:04:05Z");
    let long = format!(r#"{{"{}":1}}"#, "x".repeat(70_000));
    for (method, target, body, expected) in [
        ("GET", format!("{records}?offset=1&{since}"), "", (400, "invalid_query")),
        ("GET", format!("{records}?{since}&offset=1"), "", (400, "invalid_query")),
        ("PUT", "/v1/logs/a".to_owned(), &*long, (413, "body_too_large")),
        ("POST", "/v1/logs/default/trim".to_owned(), &*long, (413, "body_too_large")),
        ("GET", "/".to_owned(), &*long, (413, "body_too_large")),
        ("GET", "/?offset=0".to_owned(), r#"{"offset":0}"#, (400, "invalid_request")),
        ("PUT", "/v1/logs/a".to_owned(), r#"{"values":null}"#, (400, "invalid_request")),
    ] {
        let mut client = server.connect();
        let answer = client.request(method, &target, body.as_bytes()).unwrap();
        assert_eq!((answer.status, code(&answer.body)), expected, "{method} {target}: {}", answer.body);
    }
}

/// An unknown member added a line to the server's log, with terminal control sequences.
#[test]
fn text_from_clients_cannot_add_lines_to_the_log_output() {
    let data = tempfile::tempdir().unwrap();
    let (mut server, said) = super::said(data.path(), &[], "debug");
    let fake = "x\\n2026-01-01T00:00:00Z ERROR fake\\u001b[31m\\u0085\\u009b";
    for (method, target, more) in [
        ("POST", "/v1/logs/default/trim", ""),
        ("PUT", "/v1/logs/a", ""),
        ("POST", "/", ""),
        ("POST", "/v1/logs/default/records", "Content-Type: application/json\r\n"),
        ("GET", "/v1/logs?a%0A2026-01-01T00:00:00Z%20ERROR%20fake%1b=1", ""),
        ("GET", "/v1/logs/a%0A/records?offset=%0AERROR%20fake", "X-Request-Id: a\u{1b}\r\n"),
    ] {
        let body = format!(r#"{{"{fake}":1}}"#);
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {length}\r\n\r\n"
        );
        let mut client = server.connect();
        client.send(format!("{head}{body}").as_bytes()).unwrap();
        let answer = client.answer().unwrap();
        assert!(answer.status >= 400, "{method} {target}: {}", answer.status);
        assert!(!answer.body.contains(['\u{1b}', '\u{9b}']), "{}", answer.body);
    }
    server.terminate();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains("fake"), "{said}");
    let is_ours =
        |line: &str| line.starts_with("20") && line.contains("Z ") && !line.contains("Z ERROR fake\u{1b}");
    for line in said.lines() {
        assert!(is_ours(line) && !line.starts_with("2026-01-01T"), "{line:?}");
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}

/// The head of an answer without what differs between answers, and the body.
fn parts(server: &Server, method: &str, target: &str, more: &str) -> (Vec<String>, String) {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n");
    socket.write_all(head.as_bytes()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got); // a live tail does not end
    let got = String::from_utf8_lossy(&got).into_owned();
    let (head, body) = got.split_once("\r\n\r\n").unwrap_or((&got, ""));
    let differs = ["date: ", "x-request-id: ", "transfer-encoding: "];
    let lines = head.lines().map(str::to_ascii_lowercase);
    let mut lines: Vec<_> =
        lines.filter(|line| !differs.iter().any(|start| line.starts_with(start))).collect();
    lines.sort_unstable();
    (lines, body.to_owned())
}

/// RFC 9110: a resource that supports GET supports HEAD, which probes send.
#[test]
fn head_is_answered_as_get_is_without_the_body() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    server.connect().append(b"a record").unwrap();
    for (target, more) in [
        ("/healthz", ""),
        ("/readyz", ""),
        ("/openapi.json", ""),
        ("/?offset=0", ""),
        ("/?offset=9", ""),
        ("/v1/logs", ""),
        ("/v1/logs/default", ""),
        ("/v1/logs/none", ""),
        ("/v1/logs/default/records", ""),
        ("/v1/logs/default/records", "Accept: text/event-stream\r\n"),
        ("/v1/logs/default/records/0", ""),
        ("/v1/logs/default/records/9", ""),
    ] {
        let ((get_head, get_body), (head, body)) =
            (parts(&server, "GET", target, more), parts(&server, "HEAD", target, more));
        assert_eq!(head, get_head, "{target} {more}");
        assert_eq!(body, "", "{target}");
        assert!(!get_body.is_empty() || more.contains("event-stream"), "{target}");
    }
    let (head, _) = parts(&server, "HEAD", "/v1/logs/default/trim", "");
    assert!(head.iter().any(|line| line.starts_with("http/1.1 405")), "{head:?}");
    // The connection stays usable, with both protocols.
    let mut client = Client::connect(&server.address).unwrap();
    client.send(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut socket = Connection::open(&server.address, &[]);
    let mut head = http2::head("GET", "/v1/logs/default/records/0");
    head.splice(..1, [0x02, 4, b'H', b'E', b'A', b'D']);
    socket.send(&http2::frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).unwrap();
    let answer = answered(&mut socket, 1);
    assert_eq!(answer.first().map(|frame| frame.2[0]), Some(0x88));
    assert_eq!(text(&answer), "");
    assert!(answer.iter().any(|frame| frame.1 & END_STREAM != 0), "it does not end");
}
