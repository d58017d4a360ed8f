//! Requests of shapes that two servers may interpret differently, and header sections that are too large.

use super::{
    MIB, code,
    http2::{self, Connection, HEADERS},
    metric,
    support::{Client, Server, process::Process},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// Sends everything, and reads until the server has hung up or sends no more.
fn exchange(server: &Server, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = socket.write_all(bytes); // the server may hang up before it has everything
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got); // or the server sends nothing more
    String::from_utf8_lossy(&got).into_owned()
}

const HIDDEN: &str =
    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{\"record\":{\"value\":\"aGk=\"}}";

#[allow(clippy::too_many_lines, reason = "a table")]
#[test]
fn a_request_hidden_in_another_is_never_executed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let length = HIDDEN.len();
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    let shapes = [
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
    ];
    for (what, bytes) in shapes {
        let got = exchange(&server, bytes.as_bytes());
        println!("{what}: {}", got.lines().next().unwrap_or("nothing"));
        assert!(!got.contains("{\"offset\":"), "{what}: {got}");
        assert!(
            got.is_empty() || got.starts_with("HTTP/1.1 4") || got.starts_with("HTTP/1.0 4"),
            "{what}: {got}"
        );
    }
    assert_eq!(metric(&server, "millstream_appended_records_total"), 0);
    // Two requests, one after the other, are two.
    assert_eq!(exchange(&server, HIDDEN.repeat(2).as_bytes()).matches("{\"offset\":").count(), 2);
}

#[test]
fn header_sections_that_are_too_much_are_refused_and_cost_little() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let process = Process::of(&server.child);
    let mut client = server.connect();
    client.append(b"0").unwrap();
    process.reset_peak();
    let start = process.resident();
    let lines = |line: &str, most: usize| line.repeat(most / line.len());
    for (what, more) in [
        ("16 MiB in one", format!("X: {}\r\n", "y".repeat(16 * MIB))),
        ("16 MiB of a name", format!("{}: y\r\n", "x".repeat(16 * MIB))),
        ("a target of 1 MiB", String::new()),
        ("many", lines("X: y\r\n", MIB)),
        ("many that are empty", lines("X:\r\n", 60_000)),
    ] {
        let target = if more.is_empty() { "x".repeat(MIB) } else { "healthz".to_owned() };
        let got =
            exchange(&server, format!("GET /{target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").as_bytes());
        let status = got.split(' ').nth(1).unwrap_or("nothing");
        println!("{what}: {status}");
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
    let cost = process.peak().saturating_sub(start);
    println!("{} KiB at the most", cost / 1024);
    assert!(cost < 8 * MIB, "{cost} bytes");
    let mut other = Client::connect(&server.address).unwrap();
    let answer = other.request("GET", "/v1/logs/none", b"").unwrap();
    assert_eq!((answer.status, code(&answer.body)), (404, "log_not_found"));
    client.append(b"1").unwrap();
}
