//! Reading what is large, or no longer in memory: what it may cost, and who goes first.

use super::{
    MIB, Producer, a_while,
    bodies::zstd,
    budget::{BESIDE, BUDGET, Watch},
    code, get,
    http2::{self, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, RESET, WINDOW_UPDATE},
    metric,
    support::{Client, Server, process::Process, processor::Processor},
    wait_for,
};
use std::{
    io::{BufRead, Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const LARGE: usize = 60 * MIB;

fn append(client: &mut Client, log: &str, media_type: &str, body: &[u8]) {
    let headers = [("Content-Encoding", "zstd"), ("Content-Type", media_type)];
    let sent = client.exchange("POST", &format!("/v1/logs/{log}/records"), &headers, &zstd(body)).unwrap();
    assert_eq!(sent.status, 200, "{}", String::from_utf8_lossy(&sent.body));
}

/// Starts a server with two records of 60 MiB in the log `large`, one record of 900 kB in `page`, and small ones in
/// `small`.
fn filled(data: &Path) -> Server {
    let server = Server::start(data, &["--create-logs"]);
    let mut client = server.connect();
    for _ in 0..2 {
        append(&mut client, "large", "application/octet-stream", &vec![b'a'; LARGE]);
    }
    append(&mut client, "page", "text/plain", &[vec![b'b'; 899_999], b"\n".to_vec()].concat());
    append(&mut client, "small", "text/plain", &[b"x".repeat(100), b"\n".to_vec()].concat().repeat(40_000));
    server
}

/// Like [`filled`], restarted, so that none of it is in memory.
fn cold(data: &Path, flags: &[&str]) -> Server {
    assert_eq!(filled(data).terminate(), Some(0));
    Server::start(data, flags)
}

fn head(stream: u32, path: &str) -> Vec<u8> {
    let mut head = http2::head("GET", path);
    head.splice(..1, [0x02, 4, b'H', b'E', b'A', b'D']);
    http2::frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
}

/// An HTTP/2 connection that always has `streams` requests in flight, until this is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    fn start(server: &Server, streams: u32, request: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Self {
        // It takes everything that comes.
        let mut connection = Connection::open(&server.address, &http2::setting(4, 0x7fff_ffff));
        connection.send(&http2::frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes())).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let (end, answers) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::spawn(move || {
            let mut next = 1;
            for _ in 0..streams {
                connection.send(&request(next)).unwrap();
                next += 2;
            }
            while !end.load(Ordering::Relaxed) {
                let ended = match connection.next().expect("it is given up") {
                    Some((HEADERS | DATA, flags, ..)) => flags & END_STREAM != 0,
                    Some((RESET, ..)) => true,
                    _ => false,
                };
                if ended {
                    connection.send(&request(next)).unwrap();
                    next += 2;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, answered, thread: Some(thread) }
    }

    /// How many answers there were.
    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Returns how many answers there were.
    fn finish(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.answered()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How many answers per second `ask` gets, and the longest time that one takes.
fn paced(time: Duration, mut ask: impl FnMut()) -> (f64, Duration) {
    let (begun, mut times, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while begun.elapsed() < time {
        let one = Instant::now();
        ask();
        slowest = slowest.max(one.elapsed());
        times += 1;
    }
    (f64::from(times) / begun.elapsed().as_secs_f64(), slowest)
}

/// Each of them was read before there was memory for it, with as many at once as there were threads: 4.7 GB for 120
/// connections.
#[test]
fn cold_records_read_one_by_one_count_against_the_budget() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let mut server = cold(data.path(), &["--create-logs"]);
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let (before, alone) = (process.memory(), producer.rate(a_while(0.3)));
    let watch = Watch::start(process);
    let mut deaf = Vec::new();
    for n in 0..60 {
        let mut client = server.connect();
        let request = format!("GET /v1/logs/large/records/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", n % 2);
        client.send(request.as_bytes()).unwrap();
        deaf.push(client);
    }
    let beside = producer.rate(a_while(1.0));
    // A client for which there is no room gets an error; a client that reads gets everything.
    let mut refused = deaf.split_off(10);
    refused.retain_mut(|client| client.answer().is_ok_and(|answer| code(&answer.body) == "overloaded"));
    println!(
        "60 cold records of 60 MiB: {} MiB at the most, {} of 50 refused; {alone:.0} appends/s before, {beside:.0} beside",
        watch.max() / MIB,
        refused.len()
    );
    assert!(watch.max() < before + BUDGET + BESIDE, "{} MiB", watch.max() / MIB);
    assert!(refused.len() > 40, "{} of 50 were refused", refused.len());
    drop((deaf, refused));
    wait_for("all is given back", Duration::from_secs(3), || {
        metric(&server, "millstream_http_memory_bytes") == 0
    });
    let value = server.connect().exchange("GET", "/v1/logs/large/records/1", &[], b"").unwrap();
    assert!(value.status == 200 && value.body.len() == LARGE && value.body.iter().all(|&byte| byte == b'a'));
    drop((producer, watch));
    let begun = Instant::now();
    assert_eq!(server.terminate(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?} to stop", begun.elapsed());
}

/// HEAD, and a GET of what the client has already, read the value nevertheless: 6.5 GB, and 6 answers in 8 s.
#[test]
fn only_what_a_cold_record_head_needs_is_read_for_it() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = cold(data.path(), &[]);
    let process = Process::of(&server.child);
    let mut client = server.connect();
    let value = client.exchange("GET", "/v1/logs/page/records/0", &[], b"").unwrap();
    let tag = value.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    client.send(b"HEAD /v1/logs/page/records/0 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut got = vec![0; value.head.len()];
    client.0.read_exact(&mut got).unwrap();
    let lines = |head: &str| {
        let mut lines: Vec<_> =
            head.lines().filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(lines(&String::from_utf8_lossy(&got)), lines(&value.head));
    // An answer that is sent piece by piece has no length.
    client.send(b"HEAD /v1/logs/page/records HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut got = String::new();
    while !got.ends_with("\r\n\r\n") {
        client.0.read_line(&mut got).unwrap();
    }
    assert!(got.starts_with("HTTP/1.1 200") && !got.contains("content-length"), "{got}");
    let known = client.exchange("GET", "/v1/logs/page/records/0", &[("If-None-Match", &tag)], b"").unwrap();
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(get(&mut client, "/v1/logs/large").unwrap().status, 200); // the log is open from here on
    let (before, watch) = (process.memory(), Watch::start(process));
    for path in ["/v1/logs/large/records/1", "/v1/logs/large/records?limit=2&max_bytes=100000000"] {
        let mut connection = Connection::open(&server.address, &[]);
        let begun = Instant::now();
        for n in 0..200 {
            connection.send(&head(2 * n + 1, path)).unwrap();
        }
        let mut answered = 0;
        while answered < 200 && begun.elapsed() < Duration::from_secs(4) {
            if let Some((HEADERS, _, _, payload)) = connection.next().unwrap() {
                assert_eq!(payload[0], 0x88, "not 200");
                answered += 1;
            }
        }
        println!("{answered} HEADs of {path} took {:?}", begun.elapsed());
        assert_eq!(answered, 200, "in {:?}", begun.elapsed());
    }
    assert!(watch.max() < before + 32 * MIB, "{} MiB", (watch.max() - before) / MIB);
}

/// A record of 60 MiB in memory was rendered on the thread that answers: each took 0.1 s, one after the other, and
/// meanwhile nobody was answered.
#[test]
fn large_records_in_memory_delay_no_other_answers() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = filled(data.path());
    let path = "/v1/logs/large/records?limit=1";
    let busy = [
        Busy::start(&server, 100, move |stream| head(stream, path)),
        // Beside them, requests for a record that does not exist.
        Busy::start(&server, 20, move |stream| http2::get(stream, "/?offset=7")),
        Busy::start(&server, 20, move |stream| http2::get(stream, path)),
    ];
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect(); // so that both threads have some
    let (rate, slowest) = paced(a_while(1.0), || {
        for client in &mut clients {
            assert_eq!(get(client, "/healthz").unwrap().status, 200);
        }
    });
    let answered: Vec<_> = busy.into_iter().map(Busy::finish).collect();
    println!("{rate:.0} rounds of 4 /healthz a second, the slowest {slowest:?}; {answered:?} answers beside");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

/// With one rendering for each of them, the last of 20 waited for the memory of all the others.
#[test]
fn tails_share_the_rendering_of_a_large_record() {
    const VALUE: usize = 12 * MIB;
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--threads", "1"]);
    let (process, mut client) = (Process::of(&server.child), server.connect());
    append(&mut client, "large", "text/plain", b"first");
    let tail = "GET /v1/logs/large/records HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    let mut tails: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for client in &mut tails {
        client.send(tail.as_bytes()).unwrap();
    }
    wait_for("all are there", Duration::from_secs(5), || metric(&server, "millstream_tails") == 20);
    let (before, begun) = (process.memory(), Instant::now());
    let watch = Watch::start(process);
    append(&mut client, "large", "application/octet-stream", &vec![b'a'; VALUE]);
    std::thread::scope(|scope| {
        for client in &mut tails {
            scope.spawn(|| {
                let mut got = vec![0; VALUE / 3 * 4];
                client.0.read_exact(&mut got).unwrap();
                assert!(got.windows(12).take(500).any(|part| part == b"id: 1\ndata: "));
            });
        }
    });
    let max = watch.max().saturating_sub(before) / MIB;
    println!("20 tails have a record of 12 MiB after {:?}, with {max} MiB at the most", begun.elapsed());
    assert!(max < 5 * VALUE / MIB, "{max} MiB");
    assert_eq!(metric(&server, "millstream_readers_dropped_total"), 0);
}

/// Each tail read 60 MiB, found no memory for the rendering, and did so again 20 ms later: with 60 of them nobody
/// could read from the disk.
#[test]
fn tails_that_find_no_memory_do_not_read() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = cold(data.path(), &["--body-seconds", "6"]);
    let process = Process::of(&server.child);
    let tail = "GET /v1/logs/large/records?offset=0 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    let mut deaf: Vec<_> = (0..60)
        .map(|_| {
            let mut client = server.connect();
            client.send(tail.as_bytes()).unwrap();
            client
        })
        .collect();
    wait_for("one has what there is", Duration::from_secs(5), || {
        metric(&server, "millstream_http_memory_bytes") as usize > LARGE
    });
    std::thread::sleep(Duration::from_millis(200));
    // The minimum of several windows: the last read may still be running on a busy machine.
    let windows = (0..4).map(|_| {
        let time = process.time();
        std::thread::sleep(Duration::from_millis(500));
        process.time().saturating_sub(time)
    });
    let busy = windows.min().unwrap();
    let mut client = server.connect();
    let page = "/v1/logs/page/records?max_bytes=1000000";
    let (rate, slowest) = paced(a_while(1.0), || assert_eq!(get(&mut client, page).unwrap().status, 200));
    println!("60 tails take {busy:?} of 0.5 s; beside them {rate:.0} pages/s, the slowest {slowest:?}");
    assert!(busy < Duration::from_millis(250), "{busy:?} of 0.5 s");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    // A tail that has waited for long gets an event, and may reconnect.
    let (mut got, mut last) = (String::new(), deaf.pop().unwrap());
    while !got.contains("next_offset") {
        assert!(last.0.read_line(&mut got).unwrap() > 0, "it ends without a word: {got}");
    }
    assert!(got.contains("event: dropped\n") && got.contains("\"next_offset\":0}"), "{got}");
}

/// All requests waited in one queue: one client with many of them in flight left hardly any turns to one with a single
/// request. And a HEAD read and rendered the first mebibyte.
#[test]
fn permits_to_read_are_shared_among_connections() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = cold(data.path(), &[]);
    let mut client = server.connect();
    let mut ask = |page| assert_eq!(get(&mut client, page).unwrap().status, 200, "{page}");
    let (small, large) =
        ("/v1/logs/small/records?limit=100", "/v1/logs/small/records?limit=15000&max_bytes=10000000");
    let (alone, large_alone) = (paced(a_while(0.3), || ask(small)).0, paced(a_while(0.3), || ask(large)).0);
    let all = "/v1/logs/small/records?limit=1000000&max_bytes=100000000";
    let busy: Vec<_> = (0..2).map(|_| Busy::start(&server, 200, move |stream| head(stream, all))).collect();
    std::thread::sleep(Duration::from_millis(200));
    let (beside, slowest) = paced(a_while(1.0), || ask(small));
    let (large_beside, large_slowest) = paced(a_while(1.0), || ask(large));
    let answered: Vec<_> = busy.into_iter().map(Busy::finish).collect();
    println!(
        "{alone:.0} pages/s alone, {beside:.0} beside 2 connections with 200 requests each ({answered:?} answers), the slowest {slowest:?}; {large_alone:.0} large ones alone, {large_beside:.0} beside, the slowest {large_slowest:?}"
    );
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
    assert!(large_slowest < Duration::from_secs(1), "{large_slowest:?}");
}

/// All compressed bodies waited in one queue, too.
#[test]
fn permits_to_decode_are_shared_among_connections() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let mut client = server.connect();
    let headers = [("Content-Encoding", "zstd"), ("Content-Type", "application/x-ndjson")];
    let body = zstd(b"{\"a\":1}\n");
    let stored = AtomicUsize::new(0);
    let mut ask = || {
        let answer = client.exchange("POST", "/v1/logs/good/records?ack=memory", &headers, &body).unwrap();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        stored.fetch_add(1, Ordering::Relaxed);
    };
    let (alone, _) = paced(a_while(0.5), &mut ask);
    // Just under a mebibyte, and invalid at its end.
    let line = [b"{\"a\":\"".to_vec(), b"x".repeat(1000), b"\"}\n".to_vec()].concat();
    let bomb = zstd(&[line.repeat(1030), b"oops".to_vec()].concat());
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let bomb = bomb.clone();
            Busy::start(&server, 100, move |stream| {
                let mut head = http2::head("POST", "/v1/logs/bad/records");
                for (name, value) in [(26, "zstd"), (31, "application/x-ndjson")] {
                    head.extend_from_slice(&[0x0f, name - 15, value.len() as u8]);
                    head.extend_from_slice(value.as_bytes());
                }
                let head = http2::frame(HEADERS, END_HEADERS, stream, &head);
                [head, http2::frame(DATA, END_STREAM, stream, &bomb)].concat()
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let answered = || busy.iter().map(Busy::answered).sum::<usize>();
    let before = (stored.load(Ordering::Relaxed), answered());
    let (beside, slowest) = paced(a_while(1.0), &mut ask);
    let (good, bad) = (stored.load(Ordering::Relaxed) - before.0, answered() - before.1);
    for busy in busy {
        busy.finish();
    }
    println!(
        "{alone:.0} compressed appends/s alone, {beside:.0} beside 2 connections with 100 requests each: {good} answers to {bad}, the slowest {slowest:?}"
    );
    // Dealt out by requests, each of its own would come after 200 of theirs.
    assert!(bad > 20 && good > bad / 8, "{good} to {bad}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

/// A client that took an answer at little more than 1 KiB per second was never given up: eight that had asked for a large
/// record kept everybody else from reading anything large, for hours.
#[test]
fn slow_readers_of_large_records_are_ended_when_others_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let flags = [
        "--create-logs",
        "--max-body-bytes",
        "4MiB",
        "--max-decoded-bytes",
        "4MiB",
        "--max-http-memory-bytes",
        "16MiB",
    ];
    let server = Server::start(data.path(), &flags);
    let large = vec![b'x'; 3 << 20];
    let mut client = server.connect();
    for (log, value) in [("large", &large[..]), ("middle", &large[..200_000])] {
        let target = format!("/v1/logs/{log}/records?ack=durable");
        let answer = client.request("POST", &target, value).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let over = Arc::new(AtomicBool::new(false));
    let slow: Vec<_> = (0..6)
        .map(|_| {
            let (mut stream, over) = (TcpStream::connect(&server.address).unwrap(), Arc::clone(&over));
            let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(4096);
            stream.write_all(b"GET /v1/logs/large/records/0 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            std::thread::spawn(move || {
                let mut some = [0; 1300];
                while !over.load(Ordering::Relaxed) && matches!(stream.read(&mut some), Ok(1..)) {
                    std::thread::sleep(Duration::from_millis(250));
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        metric(&server, "millstream_http_memory_bytes") >= 6 << 20,
        "they hold what there is for large answers"
    );
    // Others are refused for a while at the most; those that want less than a mebibyte are not.
    let get = |log: &str| get(&mut server.connect(), &format!("/v1/logs/{log}/records/0")).unwrap();
    assert_eq!(get("middle").status, 200);
    wait_for("a large record can be read", Duration::from_secs(15), || get("large").status == 200);
    assert_eq!(get("large").body.len(), large.len());
    over.store(true, Ordering::Relaxed);
    server.kill();
    for reader in slow {
        reader.join().unwrap();
    }
}
