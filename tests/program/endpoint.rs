//! The endpoint over a real socket: the book's API, and everything that a client may do wrong.

use crate::support::{Client, Server, code, skipped::skipped};
use std::{
    io::Write,
    time::{Duration, Instant},
};

#[test]
fn a_client_of_the_book_gets_what_it_expects() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    // As Go's encoder writes a ProduceRequest, including the offset.
    let answer =
        client.request("POST", "/", br#"{"record":{"value":"TGV0J3MgR28gIzEK","offset":0}}"#).unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, "{\"offset\":0}\n"));
    let answer = client.request("POST", "/", br#"{"record":{"value":null,"offset":0}}"#).unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, "{\"offset\":1}\n"));
    for (target, body) in [("/", &b"{\"offset\":0}"[..]), ("/?offset=0", b"")] {
        let answer = client.request("GET", target, body).unwrap();
        assert_eq!(answer.body, "{\"record\":{\"value\":\"TGV0J3MgR28gIzEK\",\"offset\":0}}\n");
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    }
    assert_eq!(client.read(1).unwrap().unwrap(), b"");
    let answer = client.request("GET", "/", b"{\"offset\":2}").unwrap();
    assert_eq!((answer.status, code(&answer.body)), (404, "offset_not_found"));
    assert_eq!(client.request("GET", "/healthz", b"").unwrap().body, "{\"status\":\"ok\"}\n");
}

#[test]
fn bad_requests_get_a_clear_answer_and_store_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-body-bytes", "100000", "--segment-bytes", "65536"]);
    let mut client = server.connect();
    let large = format!(r#"{{"record":{{"value":"{}"}}}}"#, "A".repeat(120_000));
    let no_segment_holds = format!(r#"{{"record":{{"value":"{}"}}}}"#, "A".repeat(99_000));
    let deep = format!(r#"{{"record":{{"value":"","offset":{}"#, "[".repeat(50_000));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("POST", "/", "", 400, "invalid_json"),
        ("POST", "/", "not json", 400, "invalid_json"),
        ("POST", "/", r#"{"record":{"value":"aGk="}"#, 400, "invalid_json"),
        ("POST", "/", &deep, 400, "invalid_json"),
        ("POST", "/", "[]", 400, "invalid_request"),
        ("POST", "/", "{}", 400, "invalid_request"),
        ("POST", "/", r#"{"record":7}"#, 400, "invalid_request"),
        ("POST", "/", r#"{"record":{}}"#, 400, "invalid_request"),
        ("POST", "/", r#"{"record":{"value":7}}"#, 400, "invalid_request"),
        ("POST", "/", r#"{"record":{"value":"","extra":1}}"#, 400, "invalid_request"),
        ("POST", "/", r#"{"record":{"value":"no base64"}}"#, 400, "invalid_base64"),
        ("POST", "/", r#"{"record":{"value":"aGk"}}"#, 400, "invalid_base64"),
        ("POST", "/", &no_segment_holds, 413, "record_too_large"),
        ("GET", "/", "", 400, "offset_missing"),
        ("GET", "/", r#"{"offset":-1}"#, 400, "invalid_offset"),
        ("GET", "/", r#"{"offset":1.5}"#, 400, "invalid_offset"),
        ("GET", "/", r#"{"offset":99999999999999999999}"#, 400, "invalid_offset"),
        ("GET", "/", r#"{"offset":"0"}"#, 400, "invalid_request"),
        ("GET", "/", r#"{"offset":18446744073709551615}"#, 404, "offset_not_found"),
        ("GET", "/?offset=-1", "", 400, "invalid_offset"),
        ("GET", "/?offset=x", "", 400, "invalid_offset"),
        ("GET", "/?limit=1", "", 400, "invalid_query"),
        // They were ignored: a log was deleted whatever id was asked for.
        ("POST", "/?x=1", r#"{"record":{"value":"aGk="}}"#, 400, "invalid_query"),
        ("GET", "/v1/logs/default?x=1", "", 400, "invalid_query"),
        ("DELETE", "/v1/logs/default?log_id=0", "", 400, "invalid_query"),
        ("PUT", "/v1/logs/default?values=json", "", 400, "invalid_query"),
        ("POST", "/v1/logs/default/trim?log_id=0", r#"{"before":0}"#, 400, "invalid_query"),
        ("PUT", "/", "{}", 405, "method_not_allowed"),
        ("POST", "/healthz", "", 405, "method_not_allowed"),
        ("GET", "/nothing", "", 404, "not_found"),
    ];
    for (method, target, body, status, expected) in cases {
        let answer = client.request(method, target, body.as_bytes()).unwrap();
        assert_eq!((answer.status, code(&answer.body)), (*status, *expected), "{method} {target} {body:.60}");
        assert!(answer.head.contains("application/problem+json"));
    }
    // A body that is announced as too large is refused before it is sent; the connection closes after that.
    let mut other = server.connect();
    other
        .send(
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", large.len())
                .as_bytes(),
        )
        .unwrap();
    let answer = other.answer().unwrap();
    assert_eq!((answer.status, code(&answer.body)), (413, "body_too_large"));
    // With a chunked body, this is noticed while it arrives.
    let mut other = server.connect();
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}",
        large.len()
    );
    other.send(chunked.as_bytes()).unwrap();
    assert_eq!(other.answer().unwrap().status, 413);
    assert_eq!(client.append(b"first").unwrap(), 0, "nothing of all that was stored");
}

#[test]
fn a_body_that_stops_half_way_or_comes_too_slowly_stores_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--body-seconds", "1", "--header-seconds", "1"]);
    let mut half = server.connect();
    half.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{\"record\":{\"val").unwrap();
    drop(half);
    let mut slow = server.connect();
    slow.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{\"record\":{\"val").unwrap();
    let answer = slow.answer().unwrap();
    assert_eq!((answer.status, code(&answer.body)), (408, "body_too_slow"));
    // A header section that never ends.
    let mut slower = server.connect();
    let begun = Instant::now();
    let cut = loop {
        if slower.send(b"A").is_err() || begun.elapsed() > Duration::from_secs(10) {
            break begun.elapsed();
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(cut < Duration::from_secs(5), "a client that sends a byte now and then is kept for {cut:?}");
    assert_eq!(server.connect().append(b"first").unwrap(), 0);
}

#[test]
fn a_header_section_over_the_limit_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-header-bytes", "8192"]);
    let mut client = server.connect();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    let _ = client.send(request.as_bytes()); // it may hang up before everything is sent
    assert_eq!(client.answer().unwrap().status, 431);
}

#[test]
fn a_connection_over_the_limit_waits_for_a_request_and_takes_the_place_of_an_idle_one() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "1", "--threads", "1"]);
    let mut first = server.connect();
    let body = br#"{"record":{"value":"aGk="}}"#;
    first
        .send(
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len())
                .as_bytes(),
        )
        .unwrap();
    std::thread::sleep(Duration::from_millis(50)); // so that its request is in flight
    let address = server.address.clone();
    let second = std::thread::spawn(move || Client::connect(&address).unwrap().append(b"b").unwrap());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!second.is_finished(), "a second connection was served in addition to the only one allowed");
    first.send(body).unwrap();
    assert_eq!(first.answer().unwrap().body, "{\"offset\":0}\n");
    assert_eq!(
        second.join().unwrap(),
        1,
        "an idle connection makes place, without being closed by its client"
    );
    assert!(first.append(b"c").is_err());
}

#[test]
fn stopping_finishes_what_is_in_flight_and_releases_the_lock() {
    for flags in [&["--durability", "disk"], &["--durability", "memory"]] {
        let data = tempfile::tempdir().unwrap();
        let mut server = Server::start(data.path(), flags);
        let mut idle = server.connect();
        idle.append(b"before").unwrap();
        let mut half = server.connect();
        let body = br#"{"record":{"value":"aGk="}}"#;
        half.send(
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len())
                .as_bytes(),
        )
        .unwrap();
        half.send(&body[..10]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let finishing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            half.send(&body[10..]).unwrap();
            half.answer().unwrap()
        });
        assert_eq!(server.terminate(), Some(0));
        let answer = finishing.join().unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, "{\"offset\":1}\n"));
        let options = millstream::Options { shm_dir: None, ..millstream::Options::default() };
        let log = millstream::Log::open(data.path().join("default"), options).unwrap();
        assert_eq!(log.read(1).unwrap().unwrap().value(), b"hi");
    }
}

#[test]
fn cold_records_come_from_the_disk() {
    let data = tempfile::tempdir().unwrap();
    let small = ["--segment-bytes", "65536", "--memory-bytes", "262144"];
    let server = Server::start(data.path(), &small);
    let mut client = server.connect();
    for n in 0..200u32 {
        assert_eq!(client.append(&vec![n as u8; 5000]).unwrap(), u64::from(n));
    }
    for n in 0..200u32 {
        assert!(client.read(u64::from(n)).unwrap().unwrap() == vec![n as u8; 5000]);
    }
}

/// A file system of its own, of `kib` KiB; `None`, with a message, if that takes more rights than we have.
fn small_disk(at: &std::path::Path, kib: u32) -> Option<impl Drop> {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let options = format!("size={kib}k");
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).status();
    if mounted.is_ok_and(|status| status.success()) {
        return Some(Mounted(at.to_owned()));
    }
    skipped("mounting a small disk takes root");
    None
}

#[test]
fn a_full_disk_is_507_and_what_was_acknowledged_is_still_served() {
    let data = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(data.path(), 600) else { return };
    let server = Server::start(data.path(), &[]);
    let mut client = server.connect();
    let mut appended = 0u64;
    let refused = loop {
        let body = format!(r#"{{"record":{{"value":"{}"}}}}"#, "QUJD".repeat(1000 + appended as usize % 7));
        let answer = client.request("POST", "/", body.as_bytes()).unwrap();
        if answer.status != 200 {
            break answer;
        }
        appended += 1;
        assert!(appended < 1000, "the disk never fills");
    };
    assert_eq!((refused.status, code(&refused.body)), (507, "disk_full"));
    assert!(appended > 50);
    for offset in 0..appended {
        assert_eq!(client.read(offset).unwrap().unwrap(), b"ABC".repeat(1000 + offset as usize % 7));
    }
    server.kill();
    let server = Server::start(data.path(), &[]);
    assert_eq!(
        server.connect().read(appended - 1).unwrap().unwrap().len(),
        3 * (1000 + (appended as usize - 1) % 7)
    );
    assert!(server.connect().read(appended).unwrap().is_none());
    server.kill();
    drop(disk);
}

/// Starts a server that writes what it logs to the file `said`.
fn started(data: &std::path::Path, flags: &[&str], said: &std::path::Path) -> Server {
    let child = Server::command(data, flags).stderr(std::fs::File::create(said).unwrap()).spawn().unwrap();
    let mut server = Server { child, address: String::new() };
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.address.is_empty() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(10));
        let text = std::fs::read_to_string(said).unwrap();
        let address = text.split_once("address=").and_then(|(_, rest)| rest.split_once(char::is_whitespace));
        address.map_or("", |(address, _)| address).clone_into(&mut server.address);
    }
    server
}

/// There is little room for backings, or none at all.
#[test]
fn a_full_memory_file_system_is_reported_and_appends_continue_without_backings() {
    for taken in [0, 1024] {
        let (data, backings) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let Some(disk) = small_disk(backings.path(), 1024) else { return };
        let mut ballast = std::fs::File::create(backings.path().join("ballast")).unwrap();
        let _ = ballast.write_all(&vec![1; taken << 10]); // until it is full
        let said = data.path().join("said");
        let flags =
            ["--create-logs", "--segment-bytes", "1048576", "--shm-dir", backings.path().to_str().unwrap()];
        let server = started(&data.path().join("data"), &flags, &said);
        let mut client = server.connect();
        let value = |n: usize| vec![n as u8; 30_000 + n];
        for n in 0..200 {
            let ack = ["memory", "durable"][n % 2];
            let answer = client.request("POST", &format!("/v1/logs/a/records?ack={ack}"), &value(n)).unwrap();
            assert_eq!(answer.status, 200, "{n}: {}", answer.body);
        }
        let metrics = client.request("GET", "/metrics", b"").unwrap().body;
        let without = metrics.lines().find_map(|line| line.strip_prefix("millstream_shm_fallbacks_total "));
        // Smaller segments than these fit, unless there is no room at all.
        assert_eq!(without.is_some_and(|count| count != "0"), taken > 0, "{metrics}");
        let text = std::fs::read_to_string(&said).unwrap();
        let told = text.lines().filter(|line| line.contains("no memory that outlives the process")).count();
        assert_eq!(told, if taken > 0 { 2 } else { 0 }, "once per log: {text}");
        assert!(!text.contains("ERROR"), "{text}");
        drop(client);
        server.kill();

        let server = Server::start(&data.path().join("data"), &flags);
        for n in 0..200 {
            let record =
                server.connect().exchange("GET", &format!("/v1/logs/a/records/{n}"), &[], b"").unwrap();
            assert!((record.status, &record.body) == (200, &value(n)), "{n}: {}", record.status);
        }
        server.kill();
        drop(disk);
    }
}

/// 300 logs that were created while there was no room for backings wrote 296 lines to the server's log.
#[test]
fn logs_without_backings_are_reported_ten_at_a_time() {
    let (data, backings) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(_disk) = small_disk(backings.path(), 1024) else { return };
    let mut ballast = std::fs::File::create(backings.path().join("ballast")).unwrap();
    let _ = ballast.write_all(&vec![1; 1024 << 10]); // until it is full
    let said = data.path().join("said");
    let flags = ["--shm-dir", backings.path().to_str().unwrap()];
    let server = started(&data.path().join("data"), &flags, &said);
    let (mut client, begun) = (server.connect(), Instant::now());
    for n in 0..50 {
        assert_eq!(client.request("PUT", &format!("/v1/logs/a{n}"), b"").unwrap().status, 201);
    }
    let text = std::fs::read_to_string(&said).unwrap();
    let told =
        text.lines().filter(|line| line.contains("no memory that outlives the process")).count() as u64;
    let periods = begun.elapsed().as_secs() / 10 + 2;
    assert!((1..=10 * periods).contains(&told) && told < 50, "{told}: {text}");
}

#[test]
fn a_client_that_reads_nothing_is_dropped_and_others_are_served() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--body-seconds", "1", "--threads", "1"]);
    let value = vec![1; 8 << 20];
    server.connect().append(&value).unwrap();
    let mut deaf: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in &mut deaf {
        client.send(b"GET /?offset=0 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    let begun = Instant::now();
    assert_eq!(server.connect().append(b"x").unwrap(), 1);
    assert!(begun.elapsed() < Duration::from_secs(2));
    std::thread::sleep(Duration::from_secs(5));
    // A client that has not read meanwhile finds the connection closed before the end of the answer.
    let dropped = deaf.into_iter().filter_map(|mut client| client.answer().err()).count();
    assert_eq!(dropped, 4, "a client that reads nothing keeps its answer in our memory for ever");
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_recovers_says_so_and_is_not_ready() {
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("default")).unwrap();
    // Opening the log waits until somebody reads its lock file. The settings file would not work: a pipe has no length,
    // and empty settings are not JSON, which is an error; and the server opens the log once more after any error.
    let lock = data.path().join("default/lock");
    mknodat(CWD, &lock, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // The server only logs its address when it is ready, so the address is given to it. The port is below those that
    // the system assigns automatically: another test's server could get the same one.
    let ports = (0..10_000).map(|n| 20_000 + (std::process::id() + n) % 10_000);
    let mut free = ports.map(|port| format!("127.0.0.1:{port}"));
    let free = free.find(|address| std::net::TcpListener::bind(address).is_ok()).unwrap();
    let said = tempfile::NamedTempFile::new().unwrap();
    let stderr = said.reopen().unwrap();
    let child = Server::command(data.path(), &["--listen", &free]).stderr(stderr).spawn().unwrap();
    let server = Server { child, address: free.clone() }; // ends with this test, however the test ends
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut client = loop {
        match Client::connect(&free) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let ask = |client: &mut Client, path: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        client.answer().unwrap()
    };
    let waiting = ask(&mut client, "/readyz");
    assert!(waiting.head.contains("retry-after: 1\r\n"), "{}", waiting.head);
    assert!(waiting.status == 503 && waiting.body.contains("\"code\":\"recovering\""), "{}", waiting.body);
    assert_eq!(ask(&mut client, "/healthz").status, 200);
    // This open does not wait: a server that has ended would never open the other end.
    let _reader = rustix::fs::open(&lock, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    while ask(&mut client, "/readyz").status != 200 {
        assert!(Instant::now() < deadline, "it does not become ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(client.append(b"hi").unwrap(), 0);
    assert_eq!(client.read(0).unwrap().unwrap(), b"hi");
    server.kill();
    // Requests to `/readyz` come every few seconds, and are not errors: each was logged as one.
    let said = std::fs::read_to_string(said.path()).unwrap();
    assert!(!said.contains("ERROR") && !said.contains("WARN"), "{said}");
}

/// Requests that waited for commits were grouped by the log's id, so those of a copy were left to the task of the other
/// log: two clients that appended to both hung.
#[test]
fn a_log_and_its_copy_are_two_logs_for_those_who_wait_for_them() {
    let data = tempfile::tempdir().unwrap();
    let (log, copy) = (data.path().join("log"), data.path().join("copy"));
    let mut server = Server::start(data.path(), &[]);
    assert_eq!(server.connect().request("PUT", "/v1/logs/log", b"").unwrap().status, 201);
    assert_eq!(server.connect().request("POST", "/v1/logs/log/records", b"first").unwrap().status, 200);
    assert_eq!(server.terminate(), Some(0));
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(&log).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let server = Server::start(data.path(), &["--threads", "1"]);
    // So that the log never reaches the offset at which the copy begins.
    let mut copying = server.connect();
    for _ in 0..1000 {
        assert_eq!(copying.request("POST", "/v1/logs/copy/records", b"more").unwrap().status, 200);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let clients = ["log", "log", "copy", "log", "copy", "log", "copy", "log", "log"].map(|name| {
        let mut client = server.connect();
        std::thread::sleep(Duration::from_millis(2)); // a client of the log is the first to wait
        std::thread::spawn(move || {
            let target = format!("/v1/logs/{name}/records");
            (0..200).all(|_| client.request("POST", &target, b"x").unwrap().status == 200)
        })
    });
    while clients.iter().any(|client| !client.is_finished()) {
        assert!(Instant::now() < deadline, "a client waits for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(clients.into_iter().all(|client| client.join().unwrap()));
    for (name, next) in [("log", 1201), ("copy", 1601)] {
        let answer = server.connect().request("GET", &format!("/v1/logs/{name}"), b"").unwrap();
        assert!(answer.body.contains(&format!(r#""durable_offset":{next},"#)), "{name}: {}", answer.body);
    }
}

/// The parser's own answers had no body.
#[test]
fn what_is_not_http_gets_a_problem_document() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-header-bytes", "200000"]);
    let host = "Host: localhost\r\n";
    let many = "a: b\r\n".repeat(101);
    let requests = [
        ("this is no request\r\n\r\n".to_owned(), 400, "invalid_http"),
        (format!("GET / HTTP/3.0\r\n{host}\r\n"), 400, "invalid_http"),
        (format!("G\u{0}T / HTTP/1.1\r\n{host}\r\n"), 400, "invalid_http"),
        (format!("GET / HTTP/1.1\r\n{host}no colon\r\n\r\n"), 400, "invalid_http"),
        (format!("GET / HTTP/1.1\r\n{host}Content-Length: x\r\n\r\n"), 400, "invalid_http"),
        (format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(70_000)), 414, "address_too_long"),
        (format!("GET / HTTP/1.1\r\n{host}{many}\r\n"), 431, "header_too_large"),
        (format!("GET / HTTP/1.1\r\n{host}a: {}", "b".repeat(200_000)), 431, "header_too_large"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "invalid_host"),
    ];
    for (request, status, expected) in requests {
        for before in [false, true] {
            let mut client = server.connect();
            if before {
                assert!(client.read(0).unwrap().is_none()); // also after another request
            }
            client.send(request.as_bytes()).unwrap();
            let answer = client.answer().unwrap();
            assert_eq!((answer.status, code(&answer.body)), (status, expected), "{request:.50}");
            assert!(answer.head.contains("content-type: application/problem+json\r\n"), "{}", answer.head);
            if expected != "invalid_host" {
                assert!(answer.head.contains("connection: close\r\n"), "{}", answer.head);
                assert!(client.answer().is_err(), "the connection is closed");
            }
        }
    }
}

/// The last segment stayed, and an offset beyond the end was taken for all records.
#[test]
fn a_trim_to_the_end_drops_all_records_and_says_where_the_log_begins() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    let mut ask = |method: &str, target: &str, body: &str| {
        let answer = client.request(method, target, body.as_bytes()).unwrap();
        (answer.status, answer.body.trim_end().to_owned())
    };
    for round in 0..3 {
        for _ in 0..3 {
            assert_eq!(ask("POST", "/v1/logs/a/records", "x").0, 200);
        }
        let (begin, end) = (3 * round, 3 * round + 3);
        let trim = |before: u64| format!(r#"{{"before":{before}}}"#);
        let (status, refused) = ask("POST", "/v1/logs/a/trim", &trim(end + 1));
        assert_eq!((status, code(&refused)), (416, "offset_beyond_end"));
        assert!(refused.ends_with(&format!(r#""next_offset":{end}}}"#)), "{refused}");
        for (before, first) in [(end - 1, begin), (end, end), (end, end)] {
            let first = format!(r#"{{"first_offset":{first}}}"#);
            assert_eq!(ask("POST", "/v1/logs/a/trim", &trim(before)), (200, first));
        }
        let (_, log) = ask("GET", "/v1/logs/a", "");
        assert!(log.contains(&format!(r#""first_offset":{end},"next_offset":{end},"#)), "{log}");
        assert_eq!(ask("GET", "/v1/logs/a/records/0", "").0, 410);
        assert_eq!(ask("GET", "/v1/logs/a/records", ""), (200, String::new()));
    }
}

/// A log was deleted, whatever id was asked for; and later a request that named one was refused.
#[test]
fn what_changes_a_log_can_be_refused_if_it_is_another_log() {
    let data = tempfile::tempdir().unwrap();
    // A log that nobody uses is closed, which makes a difference to how its id is found.
    for flags in [&["--create-logs"][..], &["--create-logs", "--idle-seconds", "0"]] {
        let server = Server::start(data.path(), flags);
        let mut client = server.connect();
        let mut ask = |method: &str, target: &str, body: &str| {
            let answer = client.request(method, target, body.as_bytes()).unwrap();
            (answer.status, answer.body)
        };
        let (status, log) = ask("PUT", "/v1/logs/a", "");
        assert_eq!(status, 201);
        let id = log.split(r#""id":""#).nth(1).unwrap().split('"').next().unwrap().to_owned();
        let other = "0123456789abcdef0123456789abcdef";
        let changes = [
            ("POST", "/v1/logs/a/records", "x", 200),
            ("PUT", "/v1/logs/a/cursors/c", r#"{"offset":0}"#, 201),
            ("DELETE", "/v1/logs/a/cursors/c", "", 204),
            ("DELETE", "/v1/logs/a/cursors", "", 204),
            ("POST", "/v1/logs/a/trim", r#"{"before":0}"#, 200),
            ("DELETE", "/v1/logs/a", "", 204),
        ];
        for (method, target, body, done) in changes {
            std::thread::sleep(Duration::from_millis(if flags.len() > 1 { 100 } else { 0 }));
            let (status, refused) = ask(method, &format!("{target}?log_id={other}"), body);
            assert_eq!((status, code(&refused)), (409, "another_log"), "{method} {target}");
            let (status, said) = ask(method, &format!("{target}?log_id={id}"), body);
            assert_eq!(status, done, "{method} {target}: {said}");
        }
        let (status, missing) = ask("POST", &format!("/v1/logs/a/records?log_id={id}"), "x");
        assert_eq!((status, code(&missing)), (404, "log_not_found"), "none is created");
    }
}

fn json_request(client: &mut Client, method: &str, target: &str, body: &str) -> (u16, String) {
    let headers = [("Content-Type", "application/json")];
    let answer = client.exchange(method, target, &headers, body.as_bytes()).unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}

/// A byte order mark and base64 with line breaks were taken in some bodies, and refused in others.
#[test]
fn bodies_of_json_are_read_by_the_same_rules_wherever_they_are() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    let mut ask = |method: &str, target: &str, body: &str| json_request(&mut client, method, target, body);
    let records = "/v1/logs/a/records";
    for mark in ["", "\u{feff}"] {
        for (method, target, body) in [
            ("PUT", "/v1/logs/a", r#"{"values":"any"}"#),
            ("POST", "/", r#"{"record":{"value":"aGVs\nbG8=\r\n"}}"#),
            ("POST", records, r#"{"records":[{"value":"aGVs\nbG8=\r\n"}]}"#),
            ("POST", records, r#"[{"value":"aGVs\nbG8="}]"#),
            ("GET", "/", r#"{"offset":0}"#),
            ("PUT", "/v1/logs/a/cursors/c", r#"{"offset":0}"#),
            ("POST", "/v1/logs/a/trim", r#"{"before":0}"#),
        ] {
            let (status, said) = ask(method, target, &format!("{mark}{body}"));
            assert!(status < 300, "{method} {target} {body}: {said}");
        }
    }
    for target in ["/v1/logs/a/records/0", "/v1/logs/default/records/0"] {
        assert_eq!(ask("GET", target, ""), (200, "hello".to_owned()));
    }
}

/// It was said in the words of the parser (`DecodeError`), and in others in the book's API.
#[test]
fn what_is_not_base64_is_refused_in_the_same_words_wherever_it_is() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    let mut ask = |method: &str, target: &str, body: &str| json_request(&mut client, method, target, body);
    let records = "/v1/logs/a/records";
    for (value, why) in [
        ("aGk*", "'*' is where it may not be"),
        ("aG k", "it has another character"),
        ("aGk=aGk=", "'=' is where it may not be"),
        ("aGk", "it has not four characters for each three bytes"),
        ("aGl=", "its last character stands for more bits than there are"),
    ] {
        let why = format!("is not base64: {why}; use A-Z a-z 0-9 + / with = at the end\"");
        for (target, body) in [
            ("/", format!(r#"{{"record":{{"value":"{value}"}}}}"#)),
            (records, format!(r#"{{"records":[{{"value":"{value}"}}]}}"#)),
        ] {
            let (status, refused) = ask("POST", target, &body);
            assert_eq!((status, code(&refused)), (400, "invalid_base64"));
            assert!(refused.contains(&why), "{target} {value}: {refused}");
        }
    }
}

/// What was wrong was said without the member's name, and "expected string or map".
#[test]
fn what_is_wrong_in_a_body_of_json_is_said_with_the_name_of_the_member() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    assert_eq!(client.request("PUT", "/v1/logs/a", b"").unwrap().status, 201);
    let records = "/v1/logs/a/records";
    for (method, target, body, why) in [
        (
            "PUT",
            "/v1/logs/b",
            r#"{"values":5}"#,
            "`values`: invalid type: integer `5`, expected `any` or `json` at",
        ),
        ("PUT", "/v1/logs/b", r#"{"values":"x"}"#, "`values`: unknown variant `x`, expected `any` or `json`"),
        (
            "PUT",
            "/v1/logs/b",
            r#"{"durability":null}"#,
            "`durability`: invalid type: null, expected `disk` or `memory`",
        ),
        (
            "PUT",
            "/v1/logs/b",
            r#"{"segment_bytes":"x"}"#,
            "`segment_bytes`: invalid type: string \\\"x\\\", expected a whole number",
        ),
        (
            "PUT",
            "/v1/logs/a/cursors/c",
            r#"{"offset":[]}"#,
            "`offset`: invalid type: sequence, expected a whole number",
        ),
        (
            "POST",
            "/v1/logs/a/trim",
            r#"{"before":-1}"#,
            "`before`: invalid value: integer `-1`, expected a whole number",
        ),
        (
            "POST",
            "/",
            r#"{"record":{"value":7}}"#,
            "`record`: `value`: invalid type: integer `7`, expected a string",
        ),
        (
            "POST",
            records,
            r#"{"records":5}"#,
            "`records`: invalid type: integer `5`, expected a list of records",
        ),
    ] {
        let (status, refused) = json_request(&mut client, method, target, body);
        assert_eq!((status, code(&refused)), (400, "invalid_request"), "{method} {target} {body}");
        assert!(refused.contains(why), "{method} {target} {body}: {refused}");
    }
}

/// It named a file of the repository, which clients do not have.
#[test]
fn a_route_that_does_not_exist_is_answered_with_where_all_are() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for path in ["/v1/nothing", "/v2/logs", "/docs"] {
        let answer = server.connect().request("GET", path, b"").unwrap();
        assert!(answer.status == 404 && answer.body.contains("\"code\":\"not_found\""), "{}", answer.body);
        assert!(
            answer.body.contains("GET /openapi.json") && !answer.body.contains("docs/"),
            "{}",
            answer.body
        );
    }
    assert_eq!(server.connect().request("GET", "/openapi.json", b"").unwrap().status, 200);
}
