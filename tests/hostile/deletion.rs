//! Logs that are deleted while they are used.

use super::{
    a_while, code, get,
    support::{Server, Stops, processor::Processor},
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Clients were told that the writer had failed, or that there was a bug, and looked for one.
#[test]
fn requests_that_race_with_the_deletion_of_their_log_are_told_that_it_is_not_there() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--segment-bytes", "65536"]);
    let (stop, done) = (Stops::default(), AtomicU64::new(0));
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|n| {
                let (server, stop, done) = (&server, &stop, &done);
                scope.spawn(move || {
                    let mut client = server.connect();
                    let mut answers = std::collections::BTreeMap::new();
                    let (body, producer) = (vec![b'x'; [10, 9000, 30_000][n % 3]], format!("p{n}"));
                    while !stop.is_set() {
                        let sequence = done.load(Ordering::Relaxed).to_string();
                        let headers = [
                            ("Producer-Id", &*producer),
                            ("Producer-Epoch", "1"),
                            ("Producer-Seq", &*sequence),
                        ];
                        let (method, target, headers) = match n {
                            0 | 1 => ("POST", "/v1/logs/a/records", &headers[..0]),
                            2 => ("POST", "/v1/logs/a/records?ack=memory", &headers[..0]),
                            3 => ("POST", "/v1/logs/a/records", &headers[..]),
                            4 => ("GET", "/v1/logs/a/records?limit=100", &headers[..0]),
                            _ => ("POST", "/v1/logs/a/trim", &headers[..0]),
                        };
                        let body = match n {
                            4 => &b""[..],
                            5 => br#"{"before":1000000}"#,
                            _ => &body,
                        };
                        let answer = client.exchange(method, target, headers, body).unwrap();
                        let body = String::from_utf8_lossy(&answer.body);
                        let code = if answer.status < 400 { "" } else { code(&body) };
                        *answers.entry((answer.status, code.to_owned())).or_insert(0) += 1;
                    }
                    answers
                })
            })
            .collect();
        let (at_end, mut client) = (stop.at_end(), server.connect());
        while begun.elapsed() < a_while(2.0) {
            client.request("PUT", "/v1/logs/a", b"").unwrap();
            std::thread::sleep(Duration::from_millis(done.fetch_add(1, Ordering::Relaxed) % 12));
            assert_eq!(client.request("DELETE", "/v1/logs/a", b"").unwrap().status, 204);
        }
        drop(at_end);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{} logs: {answers:?}", done.load(Ordering::Relaxed));
    for (status, code) in answers.iter().flat_map(|answers| answers.keys()) {
        let fine = matches!(
            (status, &**code),
            (200, _)
                | (404, "log_not_found" | "log_deleted")
                | (409, "producer_out_of_order")
                | (410, "offset_trimmed")
                | (416, "offset_beyond_end") // of a log that has fewer records than are to be dropped
        );
        assert!(fine, "{status} {code}");
    }
}

/// The client was told that the log did not exist, although its request was to create it.
#[test]
fn creating_a_log_while_others_delete_it_creates_it_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let (stop, made) = (Stops::default(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (server, stop, made) = (&server, &stop, &made);
            scope.spawn(move || {
                let mut client = server.connect();
                while !stop.is_set() {
                    let method = if n % 2 == 0 { "PUT" } else { "DELETE" };
                    let answer = client.request(method, "/v1/logs/a", b"").unwrap();
                    let fine = match method {
                        "PUT" => matches!(answer.status, 200 | 201),
                        _ => matches!(answer.status, 204 | 404),
                    };
                    assert!(fine, "{method}: {} {}", answer.status, answer.body);
                    made.fetch_add(u64::from(answer.status == 201), Ordering::Relaxed);
                }
            });
        }
        let _at_end = stop.at_end();
        std::thread::sleep(a_while(1.0));
    });
    println!("made {} times", made.load(Ordering::Relaxed));
}

/// `/readyz` answered 404, and so did `POST /`, until somebody created the log again.
#[test]
fn the_books_log_is_made_again_by_what_is_appended_to_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    for target in ["/", "/v1/logs/default/records", "/"] {
        assert_eq!(client.append(b"x").unwrap(), 0);
        assert_eq!(client.request("DELETE", "/v1/logs/default", b"").unwrap().status, 204);
        assert_eq!(get(&mut client, "/readyz").unwrap().status, 200);
        assert_eq!(get(&mut client, "/v1/logs/default").unwrap().status, 404, "it is gone");
        let answer = get(&mut client, "/?offset=0").unwrap();
        assert_eq!((answer.status, code(&answer.body)), (404, "offset_not_found"), "{}", answer.body);
        let body = if target == "/" { &br#"{"record":{"value":"aGk="}}"#[..] } else { b"hi" };
        assert_eq!(client.request("POST", target, body).unwrap().status, 200, "{target}");
        assert_eq!(client.read(0).unwrap().unwrap(), b"hi");
        assert_eq!(client.request("DELETE", "/v1/logs/default", b"").unwrap().status, 204);
    }
    // It can also be created with other settings.
    let settings = br#"{"values":"json"}"#;
    assert_eq!(client.request("PUT", "/v1/logs/default", settings).unwrap().status, 201);
    let answer = client.request("POST", "/", br#"{"record":{"value":"aGk="}}"#).unwrap();
    println!("{} {}", answer.status, answer.body);
}
