//! Append sessions: a request and an answer that go on.

use crate::support::{Client, Server};
use std::{
    io::{BufRead, Read},
    time::{Duration, Instant},
};

const TEXT: &str = "text/plain";
const NDJSON: &str = "application/x-ndjson";
const FRAMES: &str = "application/vnd.millstream.frames";

/// A session with an HTTP/1.1 server.
struct Session(Client);

impl Session {
    fn begin(server: &Server, log: &str, query: &str, media_type: &str, headers: &str) -> Self {
        let mut client = server.connect();
        let head = format!(
            "POST /v1/logs/{log}/records?session=true{query} HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        );
        client.send(head.as_bytes()).unwrap();
        Self(client)
    }

    /// The status of the answer.
    fn status(&mut self) -> u16 {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.0.read_line(&mut head).unwrap(), 0, "{head}");
        }
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// A session that has begun: its first line is returned as well.
    fn begun(server: &Server, media_type: &str, headers: &str) -> (Self, serde_json::Value) {
        let mut session = Self::begin(server, "a", "", media_type, headers);
        assert_eq!(session.status(), 200);
        let first = session.line().unwrap();
        (session, first)
    }

    fn send(&mut self, data: &[u8]) {
        let chunk = [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
        self.0.send(&chunk).unwrap();
    }

    fn finish(&mut self) {
        self.0.send(b"0\r\n\r\n").unwrap();
    }

    /// The next line; `None` once the answer has ended, or was broken off.
    fn line(&mut self) -> Option<serde_json::Value> {
        let mut size = String::new();
        self.0.0.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim_end(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        self.0.0.read_exact(&mut chunk).ok()?;
        serde_json::from_slice(&chunk[..size]).ok()
    }

    /// The first line that `fits`, among those that come.
    fn until(&mut self, fits: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            let line = self.line().expect("the answer has ended");
            if fits(&line) {
                return line;
            }
        }
    }

    fn end(&mut self) -> serde_json::Value {
        self.until(|line| line.get("end").is_some())
    }
}

fn server(flags: &[&str]) -> (tempfile::TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), flags);
    server.connect().request("PUT", "/v1/logs/a", b"").unwrap();
    (data, server)
}

fn values(server: &Server) -> Vec<String> {
    let mut client = server.connect();
    let request = "GET /v1/logs/a/records?limit=1000000&max_bytes=1000000000 HTTP/1.1\r\nHost: localhost\r\n\
                   Accept: text/plain\r\n\r\n";
    client.send(request.as_bytes()).unwrap();
    client.answer().unwrap().body.lines().map(str::to_owned).collect()
}

#[test]
fn what_arrives_is_appended_and_answered_while_the_request_goes_on() {
    let (_data, server) = server(&[]);
    let (mut session, first) = Session::begun(&server, TEXT, "");
    assert_eq!(first, serde_json::json!({"records": 0}));
    for n in 1..=5u64 {
        session.send(format!("line {n}\r\n").as_bytes());
        let line = session.until(|line| line["records"] == n);
        assert_eq!(line, serde_json::json!({"records": n, "last_offset": n - 1}));
    }
    // A line in parts, several at once, and one without its end.
    session.send(b"in ");
    session.send(b"parts");
    session.send(b"\n\nlast");
    session.finish();
    assert_eq!(session.end(), serde_json::json!({"records": 8, "last_offset": 7, "end": "complete"}));
    assert!(session.line().is_none());
    let expected = ["line 1", "line 2", "line 3", "line 4", "line 5", "in parts", "", "last"];
    assert_eq!(values(&server), expected);
    // The connection can be used again.
    assert_eq!(session.0.request("GET", "/healthz", b"").unwrap().status, 200);
}

#[test]
fn a_session_takes_lines_of_json_and_frames_and_says_what_is_wrong_with_them() {
    let (_data, server) = server(&[]);
    let (mut session, _) = Session::begun(&server, NDJSON, "");
    session.send(b"{\"a\":1}\n\n  \n");
    session.until(|line| line["records"] == 1);
    session.send(b"{\"a\":2}\n{no\n");
    let end = session.end();
    assert_eq!((&end["end"], &end["records"], &end["line"]), (&"invalid_json".into(), &1.into(), &5.into()));
    assert!(session.line().is_none());

    let (mut session, _) = Session::begun(&server, FRAMES, "");
    for byte in [b"\x03\0\0\0a\nb".as_slice(), b"\x01\0\0\x80", b"1\0\0", b"\0", b"\0"].concat() {
        session.send(&[byte]); // one at a time
    }
    session.finish();
    assert_eq!(session.end()["records"], 3);
    let (mut session, _) = Session::begun(&server, FRAMES, "");
    session.send(b"\x01\0\0\0x\x05\0\0\0abc");
    session.finish();
    let end = session.end();
    assert_eq!((&end["end"], &end["records"]), (&"invalid_frame".into(), &1.into()));
    // However the body arrives, `detail` and `record` name the same frame.
    let (mut session, _) = Session::begun(&server, FRAMES, "");
    for byte in [b"\x01\0\0\x80".as_slice(), b"1", b"\x01\0\0\x80", b"{"].concat() {
        session.send(&[byte]);
    }
    let end = session.end();
    assert_eq!((&end["end"], &end["record"]), (&"invalid_json".into(), &2.into()));
    assert!(end["detail"].as_str().unwrap().starts_with("frame 2 "), "{end}");
    // A frame that says that it is larger than any is refused when it says so.
    let (mut session, _) = Session::begun(&server, FRAMES, "");
    session.send(b"\xff\xff\xff\x7f0123456789");
    assert_eq!(session.end()["end"], "record_too_large");
    assert_eq!(values(&server), ["{\"a\":1}", "a", "b", "1", "", "x", "1"]);
}

#[test]
fn what_a_session_cannot_be_is_refused_and_what_ends_one_is_said() {
    let (_data, mut server) = server(&["--segment-bytes", "1048576"]);
    for (query, media_type, headers, status) in [
        ("&expect=0", TEXT, "", 400),
        ("&ack=never", TEXT, "", 400),
        ("", "application/json", "", 415),
        ("", "application/octet-stream", "", 415),
        ("", TEXT, "Content-Encoding: gzip\r\n", 415),
        ("", TEXT, "Producer-Seq: 1\r\n", 400),
        ("", TEXT, "Producer-Id: p\r\nProducer-Epoch: 1\r\n", 400),
        ("", TEXT, "Producer-Id: p\r\nProducer-Seq: 1\r\n", 409),
    ] {
        let mut session = Session::begin(&server, "a", query, media_type, headers);
        assert_eq!(session.status(), status, "{query} {media_type} {headers}");
    }
    assert_eq!(Session::begin(&server, "none", "", TEXT, "").status(), 404);
    // A record that no segment has room for.
    let (mut session, _) = Session::begun(&server, TEXT, "");
    session.send(b"small\n");
    for _ in 0..17 {
        session.send(&vec![b'x'; 64 << 10]);
    }
    let end = session.end();
    assert_eq!((&end["end"], &end["records"]), (&"record_too_large".into(), &1.into()));
    // The log is deleted.
    let (mut session, _) = Session::begun(&server, TEXT, "");
    session.send(b"one\n");
    session.until(|line| line["records"] == 1);
    server.connect().request("DELETE", "/v1/logs/a", b"").unwrap();
    let deleted = Instant::now();
    assert_eq!(session.end()["end"], "log_deleted");
    assert!(deleted.elapsed() < Duration::from_secs(5), "not only with the next line, or with a heartbeat");
    // The server stops.
    server.connect().request("PUT", "/v1/logs/a", b"").unwrap();
    let (mut session, _) = Session::begun(&server, TEXT, "");
    session.send(b"one\n");
    session.until(|line| line["records"] == 1);
    let (begun, stops) = (Instant::now(), std::thread::spawn(move || server.terminate()));
    let end = session.end();
    assert_eq!((&end["end"], &end["records"]), (&"shutting_down".into(), &1.into()));
    drop(session);
    assert_eq!(stops.join().unwrap(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// The headers were parsed in two places: an id that is no text was the producer's fault in an append, and the request's in a
/// session.
#[test]
fn a_producers_headers_are_refused_alike_in_sessions_and_without_them() {
    let (_data, server) = server(&[]);
    let answer = |query: &str, headers: &[u8]| {
        let head = format!(
            "POST /v1/logs/a/records{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TEXT}\r\n\
             Content-Length: 1\r\n"
        );
        let mut client = server.connect();
        client.send(&[head.as_bytes(), headers, b"\r\nx"].concat()).unwrap();
        let answer = client.answer().unwrap();
        let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        (answer.status, problem["code"].as_str().unwrap().to_owned())
    };
    for (headers, code) in [
        (b"Producer-Id: \xff\r\nProducer-Seq: 0\r\n".as_slice(), "invalid_producer"),
        (b"Producer-Id: a\tb\r\nProducer-Seq: 0\r\n", "invalid_producer"),
        (b"Producer-Id: p\r\nProducer-Seq: -1\r\n", "invalid_producer"),
        (b"Producer-Id: p\r\nProducer-Seq: 18446744073709551615\r\n", "invalid_producer"),
        (b"Producer-Seq: 0\r\n", "invalid_producer"),
        (b"Producer-Id: p\r\nProducer-Id: p\r\nProducer-Seq: 0\r\n", "invalid_request"),
    ] {
        let batch = [headers, b"Producer-Epoch: 0\r\n"].concat();
        let expected = (400, code.to_owned());
        assert_eq!(answer("?session=true", headers), expected, "{}", headers.escape_ascii());
        assert_eq!(answer("", &batch), expected, "{}", batch.escape_ascii());
    }
}

/// The server is killed again and again in the middle of it; the producer continues after the last line that it has seen, or
/// from the start.
#[test]
fn a_producer_that_continues_its_session_after_kills_stores_each_record_once() {
    const RECORDS: u64 = 30_000;
    let data = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..8 {
        let server =
            Server::start(data.path(), &["--durability", if round % 2 == 0 { "disk" } else { "memory" }]);
        server.connect().request("PUT", "/v1/logs/a", b"").unwrap();
        let from = if round % 3 == 2 { 0 } else { acknowledged };
        let headers = format!("Producer-Id: importer\r\nProducer-Seq: {from}\r\n");
        let (mut session, first) = Session::begun(&server, TEXT, &headers);
        assert!(
            first["stored"].as_u64().unwrap() >= acknowledged,
            "{first}: {acknowledged} were acknowledged"
        );
        let is_last = round == 7;
        let enough = if is_last { RECORDS } else { (round + 1) * RECORDS / 8 };
        let mut sender = session.0.0.get_ref().try_clone().unwrap();
        let sends = std::thread::spawn(move || {
            for start in (from..RECORDS).step_by(100) {
                let lines: Vec<String> =
                    (start..RECORDS.min(start + 100)).map(|n| format!("record {n}\n")).collect();
                let lines = lines.concat();
                let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
                if std::io::Write::write_all(&mut sender, chunk.as_bytes()).is_err() {
                    return;
                }
            }
            drop(std::io::Write::write_all(&mut sender, b"0\r\n\r\n"));
        });
        while let Some(line) = session.line() {
            acknowledged = acknowledged.max(from + line["records"].as_u64().unwrap());
            if line.get("end").is_some() || !is_last && acknowledged >= enough {
                break;
            }
        }
        server.kill();
        sends.join().unwrap();
    }
    assert_eq!(acknowledged, RECORDS);
    let server = Server::start(data.path(), &[]);
    let expected: Vec<String> = (0..RECORDS).map(|n| format!("record {n}")).collect();
    assert!(values(&server) == expected);
}

/// Clients that ask before they send waited for good, and large records were worked on where others are answered.
#[test]
fn a_client_that_asks_is_told_to_send_and_large_records_are_stored() {
    let (_data, server) = server(&["--segment-bytes", "8388608", "--max-body-bytes", "4194304"]);
    let mut session = Session::begin(&server, "a", "", NDJSON, "Expect: 100-continue\r\n");
    assert_eq!(session.status(), 100);
    let large = format!("\"{}\"\n", "x".repeat(3 << 20));
    for part in large.as_bytes().chunks(100_000) {
        session.send(part);
    }
    assert_eq!(session.status(), 200);
    session.until(|line| line["records"] == 1);
    session.send(&b"1\n".repeat(30_000));
    session.until(|line| line["records"] == 30_001);
    // More than a body may have.
    for part in "x".repeat(5 << 20).as_bytes().chunks(100_000) {
        session.send(part);
    }
    assert_eq!(session.end()["end"], "record_too_large");
    let stored = values(&server);
    assert!(stored.len() == 30_001 && stored[0].len() == (3 << 20) + 2);
}

/// What came of the body before the answer began was dropped unless it was data, so a broken body was `complete`.
#[test]
fn a_body_that_ends_or_breaks_before_the_answer_begins_ends_the_session_as_it_does_later() {
    let (_data, server) = server(&[]);
    for (body, end) in
        [("zz\r\n", "body_incomplete"), ("0\r\n\r\n", "complete"), ("2\r\n1\n\r\nzz\r\n", "body_incomplete")]
    {
        let headers = format!("Expect: 100-continue\r\n\r\n{body}");
        let mut session = Session::begin(&server, "a", "", TEXT, &headers);
        let status = match session.status() {
            100 => session.status(), // it is not asked for what is there
            status => status,
        };
        assert_eq!(status, 200, "{body:?}");
        assert_eq!(session.line().unwrap()["records"], 0, "{body:?}");
        assert_eq!(session.end()["end"], end, "{body:?}");
    }
    assert_eq!(values(&server), ["1"]);
}

/// A session that cannot continue another one ends it not, and creates no log; nor does a batch take a session's mark.
#[test]
fn a_session_that_is_refused_changes_nothing() {
    let (_data, server) = server(&["--create-logs"]);
    let (mut good, _) = Session::begun(&server, TEXT, "Producer-Id: p\r\n");
    good.send(b"1\n");
    good.until(|line| line["records"] == 1);
    let headers = "Producer-Id: p\r\nProducer-Seq: 5\r\n";
    assert_eq!(Session::begin(&server, "a", "", TEXT, headers).status(), 409);
    assert_eq!(Session::begin(&server, "new", "", "application/json", "").status(), 415);
    assert_eq!(Session::begin(&server, "new", "", TEXT, headers).status(), 409);
    let mut client = server.connect();
    let marked = "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nProducer-Id: q\r\n\
                  Producer-Epoch: 0\r\nProducer-Seq: 0\r\nProducer-Mark: session 7\r\n\r\nx";
    client.send(marked.as_bytes()).unwrap();
    assert_eq!(client.answer().unwrap().status, 400);
    good.send(b"2\n");
    good.finish();
    assert_eq!(good.end()["end"], "complete");
    assert_eq!(server.connect().request("GET", "/v1/logs/new", b"").unwrap().status, 404);
}

/// Another session of the producer takes over, and the first one says so.
#[test]
fn of_two_sessions_of_a_producer_the_later_one_continues() {
    let (_data, server) = server(&[]);
    let (mut one, _) = Session::begun(&server, TEXT, "Producer-Id: p\r\n");
    one.send(b"1\n");
    one.until(|line| line["records"] == 1);
    let (mut two, first) = Session::begun(&server, TEXT, "Producer-Id: p\r\n");
    assert_eq!(first["stored"], 1);
    one.send(b"x\n");
    assert_eq!(one.end()["end"], "producer_out_of_order");
    two.send(b"2\n");
    two.finish();
    assert_eq!(two.end()["records"], 1);
    assert_eq!(values(&server), ["1", "2"]);
}

/// They were passed over, whatever they were.
#[test]
fn a_session_that_repeats_other_records_than_are_stored_ends_with_not_a_repeat() {
    let (data, mut running) = server(&[]);
    let (mut first, _) = Session::begun(&running, TEXT, "Producer-Id: p\r\n");
    for (n, batch) in ["0\n1\n2\n", "3\n4\n"].into_iter().enumerate() {
        first.send(batch.as_bytes());
        first.until(|line| line["records"] == [3, 5][n]);
    }
    first.finish();
    assert_eq!(first.end()["end"], "complete");
    for round in 0..2 {
        for (from, body, is_same) in [
            (0, "0\n1\n2\n3\n4\n", true),
            (0, "0\nx\n2\n3\n4\nnew\n", false),
            (0, "0\n1\n2\n3\nx\nnew\n", false),
            (3, "3\nx\nnew\n", false),
            (0, "01\n\n2\n3\n4\nnew\n", false),
            // Of a batch that is not all there, nothing is known.
            (1, "x\n2\n3\n4\n", true),
            (0, "0\n1\n2\n3\n", true),
        ] {
            let headers = format!("Producer-Id: p\r\nProducer-Seq: {from}\r\n");
            // Wherever the body is cut.
            for cut in [body.len(), 4] {
                let (mut again, begun) = Session::begun(&running, TEXT, &headers);
                assert_eq!(begun["stored"], 5);
                for part in body.as_bytes().chunks(cut) {
                    again.send(part);
                }
                again.finish();
                let expected = if is_same { "complete" } else { "not_a_repeat" };
                assert_eq!(again.end()["end"], expected, "round {round}, from {from}: {body:?}");
            }
        }
        assert_eq!(values(&running), ["0", "1", "2", "3", "4"]);
        if round == 0 {
            running.kill();
            running = Server::start(data.path(), &[]);
        }
    }
    let (mut last, _) = Session::begun(&running, TEXT, "Producer-Id: p\r\nProducer-Seq: 3\r\n");
    last.send(b"3\n4\n5\n");
    last.finish();
    assert_eq!(last.end()["records"], 3);
    assert_eq!(values(&running), ["0", "1", "2", "3", "4", "5"]);
}

/// Records of the same bytes that were of another kind were left out as stored.
#[test]
fn a_session_that_repeats_records_as_another_kind_ends_with_not_a_repeat() {
    let (_data, server) = server(&[]);
    for (id, stored, repeated) in [("p", TEXT, NDJSON), ("q", NDJSON, TEXT)] {
        let headers = format!("Producer-Id: {id}\r\nProducer-Seq: 0\r\n");
        for (media_type, end) in [(stored, "complete"), (repeated, "not_a_repeat"), (stored, "complete")] {
            let (mut session, _) = Session::begun(&server, media_type, &headers);
            session.send(b"1\n2\n");
            session.finish();
            assert_eq!(session.end()["end"], end, "{media_type} after {stored}");
        }
    }
    assert_eq!(values(&server), ["1", "2", "1", "2"]);
}

/// Their records were compared with those of the last session, which they are not.
#[test]
fn batches_that_a_producer_appends_without_a_session_are_not_compared_with_what_it_repeats_in_one() {
    let (_data, server) = server(&[]);
    let session = |from: u64, body: &str| {
        let headers = format!("Producer-Id: p\r\nProducer-Seq: {from}\r\n");
        let (mut session, begun) = Session::begun(&server, TEXT, &headers);
        session.send(body.as_bytes());
        session.finish();
        (begun["epoch"].as_u64().unwrap(), session.end()["end"].as_str().unwrap().to_owned())
    };
    let plain = |epoch: u64, sequence: u64, value: &str| {
        let mut client = server.connect();
        let (length, request) = (value.len(), "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost");
        let head = format!(
            "{request}\r\nContent-Type: {TEXT}\r\nContent-Length: {length}\r\nProducer-Id: p\r\n\
             Producer-Epoch: {epoch}\r\nProducer-Seq: {sequence}\r\n\r\n{value}"
        );
        client.send(head.as_bytes()).unwrap();
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    assert_eq!(session(0, "0\n1\n").1, "complete");
    let (mut epoch, end) = session(2, "2\n3\n");
    assert_eq!(end, "complete");
    // One in the epoch of the session, behind what that has stored; then one in another.
    for (sequence, others) in [(1, "not_a_repeat"), (0, "complete")] {
        plain(epoch, sequence, "plain");
        assert_eq!(session(0, "0\n1\n2\n3\n").1, "complete", "after a batch of epoch {epoch}");
        // What the session had stored is compared as long as the log remembers it.
        let end;
        (epoch, end) = session(2, "2\nx\n");
        assert_eq!(end, others, "after batch {sequence} of its epoch");
    }
    assert_eq!(values(&server), ["0", "1", "2", "3", "plain", "plain"]);
}

/// Idle sessions stay, and show that they do; others whose client does not read are given up, and hold little.
#[test]
fn idle_sessions_stay_and_one_that_does_not_read_its_answer_holds_little() {
    let (_data, server) =
        server(&["--header-seconds", "1", "--body-seconds", "2", "--heartbeat-seconds", "1"]);
    let (mut idle, _) = Session::begun(&server, TEXT, "");
    idle.send(b"one\n");
    idle.until(|line| line["records"] == 1);
    let begun = Instant::now();
    for _ in 0..2 {
        assert_eq!(idle.line().unwrap()["records"], 1, "after {:?}", begun.elapsed());
    }
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
    // The rest of a large record never comes.
    let (mut stalled, _) = Session::begun(&server, TEXT, "");
    stalled.send(&vec![b'x'; 100_000]);
    assert_eq!(stalled.end()["end"], "body_too_slow");
    let process = crate::support::process::Process::of(&server.child);
    let before = process.memory();
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let session = Session::begin(&server, "a", "&ack=memory", TEXT, "");
        let mut sender = session.0.0.get_ref().try_clone().unwrap();
        deaf.push(session);
        std::thread::spawn(move || {
            let chunk = [b"40\r\n".as_slice(), &[b'\n'; 64], b"\r\n"].concat().repeat(100);
            while std::io::Write::write_all(&mut sender, &chunk).is_ok() {}
        });
    }
    std::thread::sleep(Duration::from_secs(2));
    let grown = process.memory().saturating_sub(before);
    println!("{} KiB for 8 sessions that do not read", grown >> 10);
    assert!(grown < 128 << 20, "{grown}");
    idle.send(b"two\n");
    idle.finish();
    assert_eq!(idle.end()["records"], 2);
}

/// A client knows each record's offset from the lines, also while others append.
#[test]
fn the_records_that_a_line_adds_follow_each_other_in_the_log() {
    let (_data, server) = server(&[]);
    let sessions: Vec<_> = std::thread::scope(|threads| {
        let one = |name: char| {
            let (mut session, _) = Session::begun(&server, TEXT, "");
            let (mut sender, mut sent) = (session.0.0.get_ref().try_clone().unwrap(), 0);
            let sending = std::thread::spawn(move || {
                for n in 0..400 {
                    let more = 1 + n % 5 * 37;
                    let lines =
                        (sent..sent + more).fold(String::new(), |lines, n| format!("{lines}{name}{n}\n"));
                    sent += more;
                    let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
                    std::io::Write::write_all(&mut sender, chunk.as_bytes()).unwrap();
                }
                std::io::Write::write_all(&mut sender, b"0\r\n\r\n").unwrap();
                sent
            });
            let (mut offsets, mut ended) = (Vec::new(), false);
            while !ended {
                let line = session.line().unwrap();
                ended = line.get("end").is_some();
                let new = line["records"].as_u64().unwrap() - offsets.len() as u64;
                let end = line["last_offset"].as_u64().map_or(0, |last| last + 1);
                offsets.extend(end - new..end);
            }
            assert_eq!(offsets.len(), sending.join().unwrap());
            (name, offsets)
        };
        let threads: Vec<_> = ['a', 'b', 'c'].map(|name| threads.spawn(move || one(name))).into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let values = values(&server);
    let runs = values.chunk_by(|one, other| one[..1] == other[..1]).count();
    assert!(runs > 10, "{runs}: they were to append at the same time");
    for (name, offsets) in sessions {
        for (n, offset) in offsets.into_iter().enumerate() {
            assert_eq!(values[offset as usize], format!("{name}{n}"));
        }
    }
}
