//! Connections that do nothing, or too little.

use super::{
    MIB, Producer, a_while, get,
    http2::{self, Connection, END_STREAM, GO_AWAY, HEADERS, PREFACE, SETTINGS},
    metric,
    rates::Kept,
    said,
    support::{Client, Server, Stops, process::Process, processor::Processor},
    wait_for,
};
use millstream::http::Settings;
use std::{
    io::{BufRead, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// The detection of the protocol waited for the first bytes without a limit, and pings kept an idle connection open.
#[test]
fn every_state_of_a_connection_ends() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--header-seconds", "1", "--body-seconds", "2"]);
    let keep_alive = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{\"record\"";
    let chunks = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"rec\r\n";
    let half = http2::frame(HEADERS, END_STREAM, 1, &http2::head("GET", "/healthz"));
    let half = [PREFACE, &http2::frame(SETTINGS, 0, 0, &[]), &half].concat();
    let states: [(&str, &[u8]); 10] = [
        ("nothing", b""),
        ("a byte that may be of either", b"P"),
        ("a request line that has begun", b"POST / HTT"),
        ("half a preface", &PREFACE[..20]),
        ("a preface, and nothing", PREFACE),
        ("half a header section", b"GET / HTTP/1.1\r\nHost: local"),
        ("nothing after a request", keep_alive),
        ("half a header section of HTTP/2", &half),
        ("half a body", body),
        ("some chunks", chunks),
    ];
    std::thread::scope(|scope| {
        for (what, sent) in states {
            let server = &server;
            scope.spawn(move || {
                let mut socket = TcpStream::connect(&server.address).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
                socket.write_all(sent).unwrap();
                let begun = Instant::now();
                let ended = socket.read_to_end(&mut Vec::new());
                println!("{what}: {:?}", begun.elapsed());
                let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
                assert!(!timed_out && begun.elapsed() < Duration::from_secs(6), "{what}: is kept");
                assert!(begun.elapsed() > Duration::from_millis(900), "{what}: ends at once");
            });
        }
        let states: [(&str, Vec<u8>); 2] =
            [("idle, and answering pings", Vec::new()), ("idle after a request", http2::get(1, "/healthz"))];
        for (what, sent) in states {
            let server = &server;
            scope.spawn(move || {
                let mut connection = Connection::open(&server.address, &[]);
                connection.send(&sent).unwrap();
                let ended = connection.until_it_ends(Duration::from_secs(8));
                let (time, frames) = ended.unwrap_or_else(|| panic!("{what}: is kept"));
                println!("{what}: {time:?}, {frames:?}");
                assert!(time > Duration::from_millis(900), "{what}: ends at once");
                assert!(frames.contains(&GO_AWAY), "{what}: it gets no notice");
            });
        }
    });
    wait_for("all are gone", Duration::from_secs(2), || metric(&server, "millstream_connections") == 1);
}

/// 50 silent sockets permanently locked everybody out of a server with `--max-connections 50`.
#[test]
fn when_connections_run_out_the_idlest_is_closed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "50"]);
    let mut good = server.connect();
    good.append(b"0").unwrap();
    let mut silent = Vec::new();
    for n in 1..=300u64 {
        silent.push(TcpStream::connect(&server.address).unwrap());
        if n % 10 == 0 {
            // A connection that is used is never the idlest, and a new one is accepted at once.
            assert_eq!(good.append(b"x").unwrap(), n / 5 - 1);
            let begun = Instant::now();
            assert_eq!(server.connect().append(b"y").unwrap(), n / 5);
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
    }
    assert!(metric(&server, "millstream_connections") <= 50);
    // Connections with a request in flight are closed too, once they have made no progress for a while.
    drop(silent);
    // By a connection that exists: a new one would take the place of another.
    let mut count = |name: &str| {
        let text = get(&mut good, "/metrics").unwrap().body;
        let count = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        count.parse::<u64>().unwrap()
    };
    wait_for("the silent ones are gone", Duration::from_secs(15), || count("millstream_connections ") <= 3);
    let tails: Vec<Client> = (0..50)
        .map(|_| {
            let mut tail = server.connect();
            let request = "GET /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
            tail.send(request.as_bytes()).unwrap();
            tail
        })
        .collect();
    wait_for("there are tails", Duration::from_secs(15), || count("millstream_tails ") >= 45);
    let begun = Instant::now();
    server.connect().append(b"z").unwrap();
    println!("beside {} tails that were still: {:?}", tails.len(), begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// A client that sent a part of its body every half second was closed as idle, while others had sent nothing for
/// seconds.
#[test]
fn an_upload_that_keeps_arriving_is_not_idle() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "4", "--body-seconds", "30"]);
    let head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut arriving = server.connect();
    arriving.send(head).unwrap();
    arriving.send(b"1b\r\n{\"record\":{\"value\":\"aGk=\"}}\r\n").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let still: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = server.connect();
            client.send(head).unwrap();
            client.send(b"1\r\n{\r\n").unwrap();
            client
        })
        .collect();
    let part = format!("400\r\n{}\r\n", " ".repeat(1024)); // 2 KiB per second
    for _ in 0..11 {
        std::thread::sleep(Duration::from_millis(500));
        arriving.send(part.as_bytes()).expect("it keeps its place");
    }
    // One connection beyond the limit: one of those without progress is closed for it.
    assert_eq!(get(&mut server.connect(), "/healthz").unwrap().status, 200);
    arriving.send(b"0\r\n\r\n").unwrap();
    assert_eq!(arriving.answer().expect("it was closed").status, 200);
    drop(still);
}

/// Clients that send a byte now and then, and reconnect when they are closed.
fn trickle(address: &str, many: usize, end: &Stops) {
    let head = b"POST /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n";
    let begin = || {
        let mut socket = TcpStream::connect(address).ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.write_all(head).ok().map(|()| socket)
    };
    let mut sockets: Vec<Option<TcpStream>> = (0..many).map(|_| begin()).collect();
    while !end.is_set() {
        std::thread::sleep(Duration::from_millis(500));
        for socket in &mut sockets {
            let open = socket.as_mut().is_some_and(|socket| socket.write_all(b"a").is_ok());
            if !open {
                *socket = begin();
            }
        }
    }
}

/// Any byte counted as progress of a body: 4,300 clients that sent one every 3 s kept all others out, and those that
/// got in were closed after their first answer.
#[test]
fn trickling_clients_are_evicted_and_well_behaved_ones_are_not() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "48"]);
    server.connect().append(b"0").unwrap();
    let part = format!("400\r\n{}\r\n", " ".repeat(1024));
    let end = Stops::default();
    std::thread::scope(|scope| {
        let _ends = end.at_end();
        scope.spawn(|| trickle(&server.address, 48, &end));
        std::thread::sleep(Duration::from_millis(1500)); // until they are known to be slow
        let [mut good, mut tail, mut upload] = [(); 3].map(|()| server.connect());
        good.append(b"x").unwrap();
        tail.send(
            b"GET /v1/logs/default/records HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
        )
        .unwrap();
        upload.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        upload.send(b"1b\r\n{\"record\":{\"value\":\"aGk=\"}}\r\n").unwrap();
        let (mut new, mut slowest) = (Vec::new(), Duration::ZERO);
        for n in 0..8 {
            std::thread::sleep(Duration::from_millis(400));
            upload.send(part.as_bytes()).expect("an upload keeps its place");
            if n == 4 {
                good.append(b"y").expect("one between two requests keeps its place"); // after 2 s
            }
            let (begun, mut client) = (Instant::now(), server.connect());
            assert_eq!(get(&mut client, "/healthz").unwrap().status, 200);
            slowest = slowest.max(begun.elapsed());
            new.push(client);
        }
        println!("new clients were answered within {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        for client in &mut new {
            assert_eq!(get(client, "/healthz").expect("it keeps its place").status, 200);
        }
        upload.send(b"0\r\n\r\n").unwrap();
        assert_eq!(upload.answer().expect("an upload keeps its place").status, 200);
        let mut events = String::new();
        while events.matches("id: ").count() < 2 {
            assert!(tail.0.read_line(&mut events).expect("a tail keeps its place") > 0, "{events}");
        }
    });
}

/// Nothing was logged about it.
#[test]
fn closing_connections_at_the_limit_is_logged_at_intervals() {
    let data = tempfile::tempdir().unwrap();
    let (mut server, said) = said(data.path(), &["--max-connections", "4"], "info");
    let _silent: Vec<_> = (0..60)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let mut client = server.connect();
            get(&mut client, "/healthz").map(|_| client)
        })
        .collect();
    server.terminate();
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(said.matches("the limit of connections is reached").count(), 1, "{said}");
    assert!(said.contains("max=4"), "{said}");
}

/// Ten thousand connections, or as many as there may be, half of them after a request.
fn open_idle(server: &Server) -> Vec<TcpStream> {
    let limit =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024) as usize;
    let many = 10_000.min(limit.saturating_sub(1000));
    let mut idle = Vec::new();
    for n in 0..many {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        if n % 2 == 0 {
            socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        }
        idle.push(socket);
    }
    wait_for("all are there", Duration::from_secs(20), || {
        metric(server, "millstream_connections") as usize > many
    });
    idle
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_others_are_served() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "12000"]);
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let (before, alone) = (process.memory(), producer.rate(Duration::from_millis(700)));
    let begun = Instant::now();
    let idle = open_idle(&server);
    let many = idle.len();
    let (taken, each) = (begun.elapsed(), process.memory().saturating_sub(before) / many.max(1));
    let beside = producer.rate(Duration::from_millis(700));
    println!(
        "{many} idle connections: in {taken:?}, {each} bytes each; {alone:.0} appends/s before, {beside:.0} beside"
    );
    assert!(each < 24 << 10, "{each} bytes for one that is idle");
    let slowest = producer.slowest();
    assert!(slowest < Duration::from_secs(5), "an append took {slowest:?}");
    drop(idle);
    wait_for("all are gone", Duration::from_secs(20), || metric(&server, "millstream_connections") < 10);
    let after = process.memory();
    println!("{} KiB before, {} KiB after", before / 1024, after / 1024);
    // The C library keeps a part of what is free.
    assert!(after < before + many * (12 << 10) + 32 * MIB, "{} MiB after {}", after / MIB, before / MIB);
    producer.finish();
    assert_eq!(get(&mut server.connect(), "/readyz").unwrap().status, 200);
}

#[test]
fn a_producer_keeps_its_rate_beside_ten_thousand_idle_connections() {
    let _processor = Processor::take_all();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "12000", "--durability", "memory"]);
    let producer = Producer::start(&server);
    producer.rate(Duration::from_millis(200));
    // They are as idle during all of it; others may use the machine during a part.
    let rate = || (0..6).map(|_| producer.rate(a_while(0.05))).fold(0.0, f64::max);
    let (calm, mut kept) = (Kept::calm(rate), Kept::default());
    while !kept.is_over() {
        let before = rate();
        let idle = open_idle(&server);
        std::thread::sleep(Duration::from_millis(200)); // until those that asked for something are idle, too
        let beside = rate();
        drop(idle);
        wait_for("all are gone", Duration::from_secs(20), || metric(&server, "millstream_connections") < 10);
        kept.round(before, beside, rate());
    }
    producer.finish();
    Kept::assert(&calm, [("idle connections", &kept)]);
}

/// What half a header section and half a body hold is what was sent of them, until their time is over.
#[test]
fn connections_that_stop_in_the_middle_hold_little_and_end() {
    const EACH: usize = 500;
    const HEADER: usize = 16 << 10;
    const SECONDS: u64 = 2;
    let data = tempfile::tempdir().unwrap();
    let (header, seconds) = (HEADER.to_string(), SECONDS.to_string());
    let limits = ["--max-header-bytes", &header, "--header-seconds", &seconds, "--body-seconds", &seconds];
    let server = Server::start(data.path(), &limits);
    let process = Process::of(&server.child);
    server.connect().append(b"what is made once").unwrap();
    let head = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(HEADER - 1000));
    let body =
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n{}", " ".repeat(10_000));
    let (before, begun) = (process.memory(), Instant::now());
    let mut sockets = Vec::new();
    for n in 0..2 * EACH {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        socket.write_all([&head, &body][n % 2].as_bytes()).unwrap();
        sockets.push(socket);
    }
    let (opened, mut max) = (begun.elapsed(), 0);
    wait_for("all have ended", opened + Duration::from_secs(2 * SECONDS + 2), || {
        max = max.max(process.memory());
        metric(&server, "millstream_connections") == 1
    });
    let each = max.saturating_sub(before) / (2 * EACH);
    println!("{} that stop: {each} bytes each, over after {:?}", 2 * EACH, begun.elapsed());
    assert!(each < HEADER + (24 << 10), "{each} bytes for one that has stopped");
}

/// Of 400 connections started at once, while nobody accepted them, each beyond the 129th waited for a second or more.
#[test]
fn a_burst_of_connections_does_not_wait() {
    let server = millstream::http::Server::bind("127.0.0.1:0".parse().unwrap(), Settings::default()).unwrap();
    let address = server.address().unwrap();
    let max = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(900)).unwrap();
    let connected: Vec<TcpStream> = (0..400.min(max)).map(connect).collect();
    drop(connected);
}

/// Connections with pipelined long polls were never between two requests and never waited for 5 s: with as many of them
/// as there may be, a client that was being served, and whoever came anew, were the only ones that could be closed.
#[test]
fn connections_that_only_wait_for_news_are_closed_before_those_that_are_served() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-connections", "8", "--threads", "2"]);
    let mut good = server.connect();
    good.append(b"x").unwrap();
    let stop = Stops::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                let target = "/v1/logs/default/records?offset=4294967296&wait=2s";
                let poll = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").repeat(4);
                while !stop.is_set() {
                    let Ok(mut socket) = TcpStream::connect(&server.address) else { continue };
                    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                    let mut sent = socket.write_all(poll.as_bytes());
                    while sent.is_ok() && !stop.is_set() {
                        match socket.read(&mut [0; 4096]) {
                            Ok(0) => break,
                            Ok(_) => sent = socket.write_all(poll.as_bytes()),
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                            Err(_) => break,
                        }
                    }
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        }
        let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
        let _at_end = stop.at_end();
        while begun.elapsed() < a_while(3.0) {
            good.append(b"y").expect("the client that is served was closed");
            let one = Instant::now();
            assert_eq!(get(&mut server.connect(), "/healthz").unwrap().status, 200);
            slowest = slowest.max(one.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    });
}
