//! Producers over a socket: batches that are stored once, epochs, marks and ids.

use super::{NDJSON, member, read, send};
use crate::support::{Server, code, start};
use std::time::Duration;

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
