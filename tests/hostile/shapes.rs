//! Requests of shapes that two servers may interpret differently, and header sections that are too large.

use super::{
    MIB, code,
    http2::{self, Connection, HEADERS},
    metric,
    support::{
        Client, Server,
        process::{Process, TICKS},
    },
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

/// A server whose connections end within `LIMIT`, whatever they send or do not send.
fn server(data: &Path) -> Server {
    Server::start(data, &["--header-seconds", "1", "--body-seconds", "1"])
}

const LIMIT: Duration = Duration::from_secs(3); // twice a second, and as much again for other work on the machine

/// Sends everything, and reads until the server hangs up, which it must.
fn exchange(server: &Server, what: &str, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.set_write_timeout(Some(LIMIT)).unwrap();
    let (begun, mut got) = (Instant::now(), Vec::new());
    let _ = socket.write_all(bytes); // the server may hang up before it has everything
    let _ = socket.read_to_end(&mut got); // or resets the connection
    let (time, got) = (begun.elapsed(), String::from_utf8_lossy(&got).into_owned());
    println!("{what}: {} ({time:?})", got.lines().next().unwrap_or("nothing"));
    assert!(time < LIMIT, "{what}: after {time:?}, {got:.200}");
    got
}

const HIDDEN: &str =
    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{\"record\":{\"value\":\"aGk=\"}}";

/// Requests that one server may take for one, and another for two.
#[allow(clippy::too_many_lines, reason = "a table")]
pub fn hidden() -> Vec<(&'static str, String)> {
    let length = HIDDEN.len();
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    vec![
        (
            "both lengths",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}",
                chunked.len()
            ),
        ),
        (
            "both, the other way",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n{chunked}",
                chunked.len()
            ),
        ),
        (
            "two lengths",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
            ),
        ),
        (
            "two lengths in one",
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0, {length}\r\n\r\n{HIDDEN}"),
        ),
        (
            "a length with a sign",
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +0\r\n\r\n{HIDDEN}"),
        ),
        (
            "a length below 0",
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{HIDDEN}"),
        ),
        (
            "a length past all",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551616\r\n\r\n{HIDDEN}"
            ),
        ),
        (
            "an unknown coding",
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n{chunked}"),
        ),
        (
            "a coding not at the end",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n{chunked}"
            ),
        ),
        (
            "a space before the colon",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n{chunked}"
            ),
        ),
        (
            "a folded line",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{chunked}"
            ),
        ),
        (
            "a carriage return alone",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nX: a\rContent-Length: {length}\r\nContent-Length: 5\r\n\r\n{chunked}"
            ),
        ),
        (
            "a size of a chunk past all",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{HIDDEN}"
            ),
        ),
        (
            "a size with a sign",
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n+0\r\n\r\n{HIDDEN}"
            ),
        ),
        (
            "chunks in HTTP/1.0",
            format!("POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        ),
        (
            "a nul",
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n{HIDDEN}"),
        ),
    ]
}

#[test]
fn a_request_hidden_in_another_is_never_executed() {
    let data = tempfile::tempdir().unwrap();
    let server = server(data.path());
    let process = Process::of(&server.child);
    let (start, spent) = (process.resident(), process.time());
    process.reset_peak();
    for (what, bytes) in hidden() {
        let got = exchange(&server, what, bytes.as_bytes());
        assert!(!got.contains("{\"offset\":"), "{what}: {got}");
        assert!(
            got.is_empty() || got.starts_with("HTTP/1.1 4") || got.starts_with("HTTP/1.0 4"),
            "{what}: {got}"
        );
    }
    let (cost, spent) = (process.peak().saturating_sub(start), process.time().saturating_sub(spent));
    println!("{} KiB at the most, {spent:?}", cost / 1024);
    assert!(cost < 4 * MIB, "{cost} bytes");
    assert!(spent < TICKS, "{spent:?}");
    assert_eq!(metric(&server, "millstream_appended_records_total"), 0);
    // Two requests, one after the other, are two.
    assert_eq!(
        exchange(&server, "two requests", HIDDEN.repeat(2).as_bytes()).matches("{\"offset\":").count(),
        2
    );
}

/// Header sections that are too large.
pub fn too_much() -> Vec<(&'static str, String)> {
    let lines = |line: &str, max: usize| line.repeat(max / line.len());
    let head = |target: &str, more: &str| format!("GET /{target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    vec![
        ("16 MiB in one", head("healthz", &format!("X: {}\r\n", "y".repeat(16 * MIB)))),
        ("16 MiB of a name", head("healthz", &format!("{}: y\r\n", "x".repeat(16 * MIB)))),
        ("a target of 1 MiB", head(&"x".repeat(MIB), "")),
        ("many", head("healthz", &lines("X: y\r\n", MIB))),
        ("many that are empty", head("healthz", &lines("X:\r\n", 60_000))),
    ]
}

#[test]
fn header_sections_that_are_too_much_are_refused_and_cost_little() {
    let data = tempfile::tempdir().unwrap();
    let server = server(data.path());
    let process = Process::of(&server.child);
    let mut client = server.connect();
    client.append(b"0").unwrap();
    process.reset_peak();
    let (start, spent) = (process.resident(), process.time());
    for (what, bytes) in too_much() {
        let got = exchange(&server, what, bytes.as_bytes());
        let status = got.split(' ').nth(1).unwrap_or("nothing");
        assert!(["nothing", "400", "414", "431"].contains(&status), "{what}: {got:.200}");
    }
    let mut connection = Connection::open(&server.address, &[]);
    let mut head = http2::head("GET", "/healthz");
    for n in 0..10_000u32 {
        head.extend_from_slice(&[0, 4]);
        head.extend_from_slice(format!("{n:04}").as_bytes());
        head.extend_from_slice(&[4, b'y', b'y', b'y', b'y']);
    }
    let mut bytes = http2::frame(HEADERS, http2::END_STREAM, 1, &head[..16384]);
    for part in head[16384..].chunks(16384) {
        bytes.extend_from_slice(&http2::frame(http2::CONTINUATION, 0, 1, part));
    }
    let _ = connection.send(&bytes); // the server may hang up before it has everything
    let _ = connection.until_it_ends(Duration::from_millis(300));
    let (cost, spent) = (process.peak().saturating_sub(start), process.time().saturating_sub(spent));
    println!("{} KiB at the most, {spent:?}", cost / 1024);
    assert!(cost < 8 * MIB, "{cost} bytes");
    assert!(spent < TICKS, "{spent:?}");
    let mut other = Client::connect(&server.address).unwrap();
    let answer = other.request("GET", "/v1/logs/none", b"").unwrap();
    assert_eq!((answer.status, code(&answer.body)), (404, "log_not_found"));
    client.append(b"1").unwrap();
}
