//! The memory budget, at its limit.

use super::{
    MIB, Producer, a_while, code, crowd, get,
    http2::{self, Connection, GO_AWAY, RESET},
    metric,
    support::{Client, Server, Stops, process::Process, processor::Processor},
    wait_for,
};
use std::{
    io::{BufRead, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub const BUDGET: usize = 256 * MIB;
/// What the system, the heap and the connections' own buffers take in addition to the budget.
pub const BESIDE: usize = 96 * MIB;

/// Records the most resident memory, until it is dropped.
pub struct Watch {
    max: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    pub fn start(process: Process) -> Self {
        let (max, stop): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let (seen, end) = (Arc::clone(&max), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                seen.fetch_max(process.memory(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { max, stop }
    }

    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A server with 20 MiB of small records in the log `a`.
fn filled(data: &std::path::Path) -> Server {
    let server = Server::start(data, &["--create-logs", "--body-seconds", "3", "--header-seconds", "5"]);
    let mut client = server.connect();
    let body = [b"x".repeat(100), b"\n".to_vec()].concat().repeat(20_000);
    for _ in 0..10 {
        let head = format!(
            "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.send(head.as_bytes()).unwrap();
        client.send(&body).unwrap();
        assert_eq!(client.answer().unwrap().status, 200);
    }
    server
}

const ALL: &str = "/v1/logs/a/records?limit=1000000&max_bytes=100000000";

/// This took 5 to 8 GB for 1,500 connections, and other requests waited for seconds.
#[test]
fn clients_that_do_not_read_hold_no_more_than_the_budget() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = filled(data.path());
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let alone = producer.rate(a_while(0.5));
    // Once the producer, which continues during and after this, has the memory that it needs.
    let before = process.memory();
    producer.slowest();
    let watch = Watch::start(process);
    let begun = Instant::now();
    let mut deaf: Vec<Client> = Vec::new();
    let crowd = crowd(1500);
    for _ in 0..crowd {
        let mut client = server.connect();
        client.send(format!("GET {ALL} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        deaf.push(client);
    }
    let beside = producer.rate(a_while(1.5));
    let (taken, slowest) = (begun.elapsed(), producer.slowest());
    println!(
        "{crowd} clients that do not read: {} MiB at the most; {alone:.0} appends/s before, {beside:.0} beside, the slowest {:?} ({taken:?})",
        watch.max() / MIB,
        slowest
    );
    assert!(watch.max() < before + BUDGET + BESIDE, "{} MiB", watch.max() / MIB);
    // How much of its rate the producer keeps is only printed: the assertion holds even if others use the processors.
    assert!(slowest < Duration::from_secs(5), "an append took {slowest:?}");
    // Clients that take nothing are given up, all memory is given back, and a client that reads gets everything.
    wait_for("they are given up", Duration::from_secs(15), || metric(&server, "millstream_connections") < 10);
    // The C library keeps a part of what is free: 46 MiB on a quiet machine, 70 on a busy one.
    wait_for("it is given back", Duration::from_secs(5), || process.memory() < before + 80 * MIB);
    println!("{} MiB before, {} MiB after", before / MIB, process.memory() / MIB);
    // A few connections may not have closed yet, and the last answer may not have been sent.
    let held = || metric(&server, "millstream_http_memory_bytes");
    wait_for("none of the budget is held", Duration::from_secs(5), || held() == 0);
    assert!(metric(&server, "millstream_readers_dropped_total") > 0);
    let all = get(&mut server.connect(), ALL).unwrap();
    assert_eq!((all.status, all.body.lines().count()), (200, 200_000));
    producer.finish();
}

/// This took 1.3 GB, for ever.
#[test]
fn streams_without_a_window_hold_little_and_are_reset() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = filled(data.path());
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let (before, alone) = (process.memory(), producer.rate(a_while(0.5)));
    let watch = Watch::start(process);
    let no_window = http2::setting(4, 0);
    let mut connection = Connection::open(&server.address, &no_window);
    for n in 0..250 {
        connection.send(&http2::get(2 * n + 1, ALL)).unwrap();
    }
    let beside = producer.rate(a_while(1.0));
    println!(
        "250 streams without a window: {} MiB at the most; {alone:.0} appends/s before, {beside:.0} beside",
        watch.max() / MIB
    );
    assert!(watch.max() < before + BUDGET + BESIDE, "{} MiB", watch.max() / MIB);
    // Each stream is reset separately: the connection stays open.
    let (mut resets, begun) = (std::collections::BTreeSet::new(), Instant::now());
    while resets.len() < 250 && begun.elapsed() < Duration::from_secs(15) {
        match connection.next() {
            Ok(Some((RESET, _, stream, _))) => drop(resets.insert(stream)),
            Ok(Some((GO_AWAY, ..))) => panic!("the connection is given up"),
            Ok(_) => {}
            Err(error) => panic!("after {} resets: {error}", resets.len()),
        }
        // Some requests were refused for lack of memory; the end of their answers has no window either.
    }
    assert_eq!(resets.len(), 250, "some are kept");
    connection.send(&http2::get(1001, "/healthz")).unwrap();
    let answered = (0..100).any(|_| matches!(connection.next(), Ok(Some((http2::HEADERS, _, 1001, _)))));
    assert!(answered, "the connection is of no use any more");
    std::thread::sleep(Duration::from_millis(500));
    println!("{} MiB before, {} MiB after", before / MIB, process.memory() / MIB);
    wait_for("it is given back", Duration::from_secs(5), || process.memory() < before + 48 * MIB);
    wait_for("all is given back", Duration::from_secs(5), || {
        metric(&server, "millstream_http_memory_bytes") == 0
    });
    assert!(metric(&server, "millstream_readers_dropped_total") > 0);
    producer.finish();
}

/// This took 1.6 GB for 100 of them.
#[test]
fn slow_uploads_hold_no_more_than_the_budget_and_what_does_not_fit_is_refused_before_it_is_read() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--body-seconds", "5"]);
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let (before, alone) = (process.memory(), producer.rate(a_while(0.5)));
    let watch = Watch::start(process);
    let part = vec![b'x'; 14 * MIB];
    let head = format!(
        "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        15 * MIB
    );
    let says_when = |head: &str| head.to_ascii_lowercase().contains("retry-after: 1\r\n");
    let refused = std::thread::scope(|scope| {
        let slow: Vec<_> = (0..100)
            .map(|_| {
                let (head, part, server) = (&head, &part, &server);
                scope.spawn(move || {
                    let mut client = server.connect();
                    client.send(head.as_bytes()).unwrap();
                    let _ = client.send(part); // the server may hang up before it has everything
                    client.answer().map(|answer| (answer.status, says_when(&answer.head)))
                })
            })
            .collect();
        // Meanwhile another large one of which only the head has arrived is refused, or, if its turn has come, ended because
        // it sends nothing; a small one is not.
        let in_use = || metric(&server, "millstream_http_memory_bytes") as usize;
        wait_for("the budget is used up", Duration::from_secs(6), || in_use() >= 12 * 15 * MIB);
        let mut one_more = server.connect();
        one_more.send(head.as_bytes()).unwrap();
        let answer = one_more.answer().unwrap();
        match (answer.status, code(&answer.body)) {
            (503, "overloaded") => assert!(says_when(&answer.head), "{}", answer.head),
            ended => assert_eq!(ended, (408, "body_too_slow")),
        }
        let small = server.connect().request("POST", "/v1/logs/a/records", &vec![b'x'; 20_000]).unwrap();
        assert_eq!(small.status, 200);
        let beside = producer.rate(a_while(1.5));
        println!(
            "100 uploads that stop: {} MiB at the most; {alone:.0} appends/s before, {beside:.0} beside",
            watch.max() / MIB
        );
        slow.into_iter().map(|slow| slow.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(watch.max() < before + BUDGET + BESIDE, "{} MiB", watch.max() / MIB);
    let count = |status| refused.iter().flatten().filter(|answer| answer.0 == status).count();
    println!("{} were refused for want of memory, {} for being slow", count(503), count(408));
    assert!(refused.iter().flatten().all(|answer| matches!(answer.0, 408 | 503)));
    assert!(count(408) >= 8, "hardly any was let in");
    assert!(count(503) > 0, "none was refused, and 1,500 MB do not fit");
    assert!(refused.iter().flatten().all(|(status, says_when)| *status != 503 || *says_when));
    wait_for("it is given back", Duration::from_secs(5), || process.memory() < before + 24 * MIB);
    println!("{} MiB before, {} MiB after", before / MIB, process.memory() / MIB);
    wait_for("all is given back", Duration::from_secs(5), || {
        metric(&server, "millstream_http_memory_bytes") == 0
    });
    producer.finish();
}

/// Bodies that were announced held the memory for all of them: 30 clients that sent nothing else took it from everybody
/// whose bodies were large, for a kilobyte a second.
#[test]
fn bodies_that_are_only_announced_keep_no_other_out() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let head = format!(
        "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        16 * MIB
    );
    let mut waiting = Vec::new();
    for said in 0..60 {
        let mut client = server.connect();
        client.send(head.as_bytes()).unwrap();
        client.send(&vec![b'x'; said * 500]).unwrap(); // some send a little
        waiting.push(client);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        metric(&server, "millstream_http_memory_bytes") < 8 * MIB as u64,
        "what has not come holds memory"
    );
    let (mut client, body) = (server.connect(), vec![b'x'; 2 * MIB]);
    for _ in 0..10 {
        assert_eq!(client.request("POST", "/v1/logs/a/records", &body).unwrap().status, 200);
        // All of the memory was held, for a second at a time.
        assert!(
            metric(&server, "millstream_http_memory_bytes") < 8 * MIB as u64,
            "what has not come holds memory"
        );
    }
    drop(waiting);
}

/// The metric stayed 0 after 2,000 of them: the answer had already taken its next piece when the connection ended.
#[test]
fn dropped_readers_are_counted() {
    let data = tempfile::tempdir().unwrap();
    let server = filled(data.path());
    let tail =
        "GET /v1/logs/a/records?offset=0 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    let mut deaf: Vec<Client> = Vec::new();
    for _ in 0..60 {
        let mut client = server.connect();
        client.send(tail.as_bytes()).unwrap();
        deaf.push(client);
    }
    let mut range = server.connect();
    range.send(format!("GET {ALL} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut streams = Connection::open(&server.address, &http2::setting(4, 1000));
    for n in 0..40 {
        streams.send(&http2::get(2 * n + 1, ALL)).unwrap();
    }
    // A client that reads what it asked for, and one that leaves of its own accord, do not count as dropped.
    assert_eq!(get(&mut server.connect(), "/v1/logs/a/records").unwrap().status, 200);
    let mut leaves = server.connect();
    leaves.send(tail.replace("offset=0", "offset=latest").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(leaves);
    let begun = Instant::now();
    while metric(&server, "millstream_readers_dropped_total") < 101
        && begun.elapsed() < Duration::from_secs(15)
    {
        let _ = streams.next();
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(metric(&server, "millstream_readers_dropped_total"), 101);
    let _ = std::io::stdout().flush();
}

/// Each log's feed kept the piece that was given to its tails last, with its part of the budget, until the next one:
/// after a burst over enough logs, every larger answer was refused permanently.
#[test]
fn idle_tails_hold_no_memory() {
    const LOGS: usize = 40;
    let data = tempfile::tempdir().unwrap();
    let small =
        ["--max-body-bytes", "262144", "--max-decoded-bytes", "262144", "--max-http-memory-bytes", "2200000"];
    let server = Server::start(data.path(), &[&["--create-logs", "--threads", "1"][..], &small].concat());
    let mut client = server.connect();
    let targets: Vec<_> = (0..LOGS).map(|n| format!("/v1/logs/quiet-{n}/records")).collect();
    let mut tails: Vec<Client> = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        assert_eq!(client.request("POST", target, b"first").unwrap().status, 200);
        let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        // Two tails share a piece; a single tail has its own.
        for _ in 0..=number % 2 {
            let mut tail = server.connect();
            tail.send(head.as_bytes()).unwrap();
            tails.push(tail);
        }
    }
    wait_for("all are there", Duration::from_secs(5), || {
        metric(&server, "millstream_tails") == tails.len() as u64
    });
    let record = vec![b'x'; 40_000];
    for target in &targets {
        assert_eq!(client.request("POST", target, &record).unwrap().status, 200);
    }
    wait_for("all is given back", Duration::from_secs(5), || {
        metric(&server, "millstream_http_memory_bytes") == 0
    });
    assert_eq!(metric(&server, "millstream_tails"), tails.len() as u64);
    let large = vec![b'y'; 200_000];
    assert_eq!(client.request("POST", "/v1/logs/large/records", &large).unwrap().status, 200);
    assert_eq!(get(&mut client, "/v1/logs/large/records").unwrap().status, 200);
    assert_eq!(metric(&server, "millstream_readers_dropped_total"), 0);
}

/// The one permit to look for the end of a large answer was kept until that was found, even if the client had left:
/// behind such clients, a range of 60,000 records was refused.
#[test]
fn large_ranges_that_are_asked_for_and_left_do_not_keep_others_from_theirs() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let flags = ["--create-logs", "--segment-bytes", "67108864"];
    let server = Server::start(data.path(), &flags);
    let mut client = server.connect();
    let body = b"x\n".repeat(1_000_000);
    for _ in 0..10 {
        let sent = client.exchange("POST", "/v1/logs/a/records", &[("Content-Type", "text/plain")], &body);
        assert_eq!(sent.unwrap().status, 200);
    }
    let whole =
        "GET /v1/logs/a/records?limit=10000000&max_bytes=1000000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let share = "/v1/logs/a/records?offset=-60000&limit=100000";
    let planned = Instant::now();
    let mut leaves = server.connect();
    leaves.send(whole.as_bytes()).unwrap();
    leaves.0.fill_buf().unwrap();
    let planned = planned.elapsed();
    drop(leaves);
    let alone = Instant::now();
    assert_eq!(get(&mut client, share).unwrap().status, 200);
    let alone = alone.elapsed();
    let stop = Stops::default();
    let asked = AtomicUsize::new(0);
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        for _ in 0..120 {
            scope.spawn(|| {
                while !stop.is_set() {
                    let mut client = server.connect();
                    client.send(whole.as_bytes()).unwrap();
                    // Some leave while the server may be working for them, some long after it has refused them.
                    let all = asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(if all.is_multiple_of(4) { 300 } else { 1500 }));
                }
            });
        }
        let stops = stop.at_end();
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        while begun.elapsed() < a_while(1.5) {
            let begun = Instant::now();
            let answer = get(&mut client, share).unwrap();
            assert_eq!((answer.status, answer.body.lines().count()), (200, 60_000), "{:?}", begun.elapsed());
            slowest = begun.elapsed().max(slowest);
        }
        drop(stops);
    });
    println!(
        "{planned:?} for the first byte of all; {alone:?} alone, {slowest:?} at the most beside {asked:?} clients that leave"
    );
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
}

/// What the book's endpoint makes from a body, its value without base64, was not in any budget.
#[test]
fn what_the_books_endpoint_decodes_counts_against_the_budget() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--body-seconds", "20"]);
    let in_use = || metric(&server, "millstream_http_memory_bytes") as usize;
    let part = vec![b'x'; 15 * MIB];
    let head =
        "POST /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15800000\r\n\r\n";
    let slow: Vec<Client> = (0..12)
        .map(|_| {
            let mut client = server.connect();
            client.send(head.as_bytes()).unwrap();
            client.send(&part).unwrap();
            client
        })
        .collect();
    wait_for("the budget is nearly used up", Duration::from_secs(10), || in_use() > 179 * MIB);
    let mut client = server.connect();
    client.append(&vec![b'x'; 20_000]).expect("a small record");
    // There is room for its body of 8 MiB, but not for the value in it.
    let error = client.append(&vec![b'x'; 6 * MIB]).unwrap_err().to_string();
    assert_eq!(code(&error), "overloaded", "{error}");
    drop(slow);
    wait_for("it is given back", Duration::from_secs(5), || in_use() == 0);
    client.append(&vec![b'x'; 6 * MIB]).unwrap();
    assert_eq!(in_use(), 0);
}

/// 3.6 GB, and appends that stood still: what was read ahead from the disk was not in any budget, and there were as
/// many reading threads as requests.
#[test]
fn ranges_that_come_from_the_disk_hold_little_however_many_ask() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let mut server = filled(data.path());
    assert_eq!(server.terminate(), Some(0));
    // After this restart, none of it is in memory.
    let server = Server::start(data.path(), &[]);
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let (before, alone) = (process.memory(), producer.rate(a_while(0.5)));
    let watch = Watch::start(process);
    let no_window = http2::setting(4, 0);
    let mut connections: Vec<_> = (0..32).map(|_| Connection::open(&server.address, &no_window)).collect();
    for n in 0..250 {
        for connection in &mut connections {
            let _ = connection.send(&http2::get(2 * n + 1, ALL)); // it may be told to go away
        }
    }
    let beside = producer.rate(a_while(1.0));
    println!(
        "8,000 streams of what is on the disk: {} MiB at the most; {alone:.0} appends/s before, {beside:.0} beside",
        watch.max() / MIB
    );
    assert!(watch.max() < before + BUDGET + 2 * BESIDE, "{} MiB", watch.max() / MIB);
    drop(connections);
    producer.finish();
}

/// Sends almost all of a body and then nothing, again and again, until it is over.
fn stall(address: &str, size: usize, over: &Stops) {
    let head =
        format!("POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    let body = vec![b'x'; size - 1];
    while !over.is_set() {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut parts = head.as_bytes().chunks(1 << 20).chain(body.chunks(64 << 10));
        let mut sends = |stream: &mut TcpStream| parts.all(|part| stream.write_all(part).is_ok());
        if !sends(&mut stream) {
            continue; // it waits for memory: give up, and come again
        }
        let mut answer = [0; 1 << 10];
        while !over.is_set() {
            match stream.read(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
    }
}

/// Six clients that sent all but the last byte of a large body kept everybody else from sending one, and as many with small
/// bodies also from sending small ones.
#[test]
fn uploads_that_stop_make_room_when_others_wait() {
    let data = tempfile::tempdir().unwrap();
    let flags =
        ["--max-body-bytes", "4MiB", "--max-decoded-bytes", "4MiB", "--max-http-memory-bytes", "16MiB"];
    let server = Server::start(data.path(), &flags);
    server.connect().request("PUT", "/v1/logs/a", b"").unwrap();
    let over = Stops::default();
    std::thread::scope(|scope| {
        let _over = over.at_end();
        for n in 0..66 {
            let (address, over) = (&server.address, &over);
            scope.spawn(move || stall(address, if n < 6 { 4 << 20 } else { 64 << 10 }, over));
        }
        let held = || metric(&server, "millstream_http_memory_bytes");
        wait_for("they hold what there is for bodies", Duration::from_secs(10), || held() >= 11 << 20);
        let mut client = server.connect();
        let mut stored = [0; 3];
        // Those who wait for a large one may wait in vain, but not all.
        for n in (0..12).chain((12..60).step_by(3)) {
            if n >= 12 && stored[0] > 0 {
                break;
            }
            let size = [2 << 20, 256 << 10, 8 << 10][n % 3];
            let begun = Instant::now();
            // A refusal may close the connection before all of the body was sent.
            match client.request("POST", "/v1/logs/a/records", &vec![b'y'; size]) {
                Ok(answer) if answer.status == 200 => stored[n % 3] += 1,
                refused => {
                    println!(
                        "{size} bytes refused after {:?}: {:?}",
                        begun.elapsed(),
                        refused.map(|answer| answer.body)
                    );
                    client = server.connect();
                }
            }
        }
        println!("stored of 4 or more large, 4 medium and 4 small ones: {stored:?}");
        assert!(stored[0] >= 1 && stored[1] >= 3 && stored[2] >= 3, "{stored:?}");
    });
}

/// One client that followed a log of very large records waited for memory for them, and kept everybody else from asking for
/// what was free.
#[test]
fn an_answer_that_waits_for_much_memory_does_not_keep_others_from_less() {
    let data = tempfile::tempdir().unwrap();
    let flags =
        ["--max-body-bytes", "24MiB", "--max-decoded-bytes", "24MiB", "--max-http-memory-bytes", "80MiB"];
    let server = Server::start(data.path(), &flags);
    let mut client = server.connect();
    for (log, size) in [("most", 23 << 20), ("more", 9 << 20)] {
        client.request("PUT", &format!("/v1/logs/{log}"), b"").unwrap();
        for _ in 0..2 {
            let answer =
                client.request("POST", &format!("/v1/logs/{log}/records"), &vec![b'x'; size]).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
    }
    let over = Stops::default();
    std::thread::scope(|scope| {
        let _over = over.at_end();
        // Two take an answer at a pace that is allowed; one follows the other log.
        let requests = ["more/records/0", "more/records/0", "most/records?follow=true"];
        for (n, request) in requests.into_iter().enumerate() {
            let (address, over) = (&server.address, &over);
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(64 << 10);
                let accept = if n == 2 { "Accept: application/octet-stream\r\n" } else { "" };
                let head = format!("GET /v1/logs/{request} HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let mut some = vec![0; 60 << 10];
                while !over.is_set() {
                    if n < 2 {
                        let _ = stream.read(&mut some);
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        let read =
            (0..6).filter(|_| get(&mut server.connect(), "/v1/logs/more/records/1").unwrap().status == 200);
        let read = read.count();
        println!("{read} of 6 large records were read");
        assert!(read >= 5, "{read}");
    });
}
