//! How much of its rate a well-behaved producer keeps beside hostile clients.
//!
//! Both run on the server's processors: so the hostile clients are limited in what they send per second, to what costs
//! themselves little, and yield to the others (`nice`). Calm and hostile times alternate within a run, because disks
//! and machines change from one minute to the next; only rounds before and after which the producer was equally fast
//! count, and of them the median, in the best of a few tries: others may use the machine during any of them.

use super::{
    MIB, Producer, a_while,
    bodies::zstd,
    http2::{self, CONTINUATION, Connection, HEADERS, RESET, SETTINGS},
    support::{Client, Server, processor::Processor, skipped::skipped},
};
use std::{
    collections::VecDeque,
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// The least part of its rate that the producer must keep.
const KEPT: f64 = 0.8;
/// How many rounds must count, out of how many at the most; and how similar the calm times around one must be.
const ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 30;
const EVEN: f64 = 0.8;
/// The most tries.
const TRIES: usize = 4;

/// What a hostile client does again and again, and how often per second.
struct Hostile {
    what: &'static str,
    a_second: u32,
    /// For how many milliseconds the server may be busy with it afterwards.
    rest: u64,
    /// Creates an action, which is called with the number of the repetition.
    one: Box<dyn Fn() -> Act + Sync>,
}

impl Hostile {
    fn run(&self, on: &AtomicBool, end: &AtomicBool) {
        // If that is not allowed, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
        while !end.load(Ordering::Relaxed) {
            if !on.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            let (mut act, begun) = ((self.one)(), Instant::now());
            for n in 0.. {
                let due = begun + Duration::from_secs(1) * n / self.a_second;
                std::thread::sleep(
                    due.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)),
                );
                if !on.load(Ordering::Relaxed) {
                    break; // together with all its connections
                }
                act(n);
            }
        }
    }
}

type Act = Box<dyn FnMut(u32) + Send>;

/// Connections that send this and nothing more; the oldest is closed for each new one.
fn held(address: String, most: usize, request: &'static [u8]) -> impl Fn() -> Act {
    move || {
        let (address, mut sockets) = (address.clone(), VecDeque::new());
        Box::new(move |_| {
            if let Ok(mut socket) = TcpStream::connect(&address) {
                let _ = socket.write_all(request); // the server may hang up at once
                sockets.push_back(socket);
            }
            if sockets.len() > most {
                sockets.pop_front();
            }
        })
    }
}

/// A hundred connections that begin with `head`, and send one `part` each in turn.
fn slow(address: String, head: &'static [u8], part: &'static [u8]) -> impl Fn() -> Act {
    move || {
        let (address, mut sockets) = (address.clone(), Vec::<TcpStream>::new());
        Box::new(move |n| {
            let n = n as usize % 100;
            if n < sockets.len() && sockets[n].write_all(part).is_ok() {
                return;
            }
            let Ok(mut socket) = TcpStream::connect(&address) else { return };
            let _ = socket.write_all(head);
            if n < sockets.len() {
                sockets[n] = socket;
            } else {
                sockets.push(socket);
            }
        })
    }
}

/// Frames, on a connection that is opened again if the server hangs up.
fn frames(address: String, first: Vec<u8>, round: fn(u32) -> Vec<u8>) -> impl Fn() -> Act {
    move || {
        let (address, first, mut connection) = (address.clone(), first.clone(), None);
        Box::new(move |n| {
            let open = connection.get_or_insert_with(|| {
                let mut open = Connection::open(&address, &[]);
                open.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                let _ = open.send(&first); // what comes next shows whether it worked
                open
            });
            if open.send(&round(n)).is_err() || (n % 32 == 0 && open.next().is_err()) {
                connection = None;
            }
        })
    }
}

/// Bodies that decode to as much as allowed, and are parsed twice, to say what is wrong with them.
fn bombs(address: String) -> impl Fn() -> Act {
    let bomb = zstd(&[&vec![b' '; 64 * MIB - 100], &b"x"[..]].concat());
    move || {
        let (bomb, mut client) = (bomb.clone(), Client::connect(&address).unwrap());
        Box::new(move |_| {
            let headers = [("Content-Type", "application/json"), ("Content-Encoding", "zstd")];
            // Refused as invalid, or because no permit came.
            let _ = client.exchange("POST", "/v1/logs/a/records", &headers, &bomb);
        })
    }
}

fn kinds(address: &str) -> [Hostile; 8] {
    let address = || address.to_owned();
    let header = b"POST / HTTP/1.1\r\nHost: localhost\r\n";
    let body = b"POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let range =
        b"GET /v1/logs/a/records?limit=1000000&max_bytes=100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let half = http2::frame(HEADERS, http2::END_STREAM, 1, &http2::head("GET", "/healthz"));
    let reset = |n: u32| {
        let stream = 2 * (n % (1 << 29)) + 1;
        let reset = http2::frame(RESET, 0, stream, &8u32.to_be_bytes());
        [http2::get(stream, "/v1/logs/default/records?offset=latest&wait=5s"), reset].concat()
    };
    let settings = |n: u32| http2::frame(SETTINGS, 0, 0, &http2::setting(4, n % 60000 + 1)).repeat(64);
    let continuation = |_| http2::frame(CONTINUATION, 0, 1, &[0; 4096]);
    let kind = |what, a_second, rest, one: Box<dyn Fn() -> Act + Sync>| Hostile { what, a_second, rest, one };
    [
        kind("silent connections", 200, 20, Box::new(held(address(), 500, b""))),
        kind("slow headers", 500, 20, Box::new(slow(address(), header, b"X-A: b\r\n"))),
        kind("slow bodies", 500, 20, Box::new(slow(address(), body, &[b'x'; 1000]))),
        kind("readers that do not read", 20, 20, Box::new(held(address(), 100, range))),
        kind("bodies that decode to 64 MiB", 2, 400, Box::new(bombs(address()))),
        kind("rapid reset", 1000, 20, Box::new(frames(address(), Vec::new(), reset))),
        kind("CONTINUATION", 500, 20, Box::new(frames(address(), half, continuation))),
        kind("SETTINGS, 64 at once", 100, 20, Box::new(frames(address(), Vec::new(), settings))),
    ]
}

/// The parts of its rate that the producer keeps, in the rounds that count, in ascending order.
fn kept(kind: &Hostile, producer: &Producer) -> Vec<f64> {
    let (on, end) = (AtomicBool::new(false), AtomicBool::new(false));
    // Long enough for several repetitions of rare actions.
    let (mut ratios, time) = (Vec::new(), a_while((2.0 / f64::from(kind.a_second)).max(0.15)));
    std::thread::scope(|scope| {
        scope.spawn(|| kind.run(&on, &end));
        let mut calm = producer.rate(time);
        for _ in 0..MOST_ROUNDS {
            on.store(true, Ordering::Relaxed);
            let beside = producer.rate(time);
            on.store(false, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(kind.rest));
            let after = producer.rate(time);
            if calm.min(after) > EVEN * calm.max(after) {
                ratios.push(beside / calm.midpoint(after));
            }
            calm = after;
            if ratios.len() == ROUNDS {
                break;
            }
        }
        end.store(true, Ordering::Relaxed);
    });
    ratios.sort_by(f64::total_cmp);
    ratios
}

#[test]
fn a_producer_keeps_its_rate_beside_hostile_clients() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    // Acknowledged in memory, so that this is the server's rate and not that of the disk, which others use as well.
    let server = Server::start(data.path(), &["--create-logs", "--durability", "memory"]);
    let mut client = server.connect();
    let lines = [b"x".repeat(100), b"\n".to_vec()].concat().repeat(20_000);
    for _ in 0..10 {
        let stored =
            client.exchange("POST", "/v1/logs/a/records", &[("Content-Type", "text/plain")], &lines).unwrap();
        assert_eq!(stored.status, 200);
    }
    let producer = Producer::start(&server);
    producer.rate(Duration::from_millis(200));
    let mut too_little = Vec::new();
    for kind in &kinds(&server.address) {
        let (mut tries, mut best) = (Vec::new(), None);
        while tries.len() < TRIES && best.is_none_or(|best| best < KEPT) {
            let ratios = kept(kind, &producer);
            let median = ratios.get(ratios.len() / 2).copied();
            best = best.into_iter().chain(median).reduce(f64::max);
            println!(
                "{}, {} a second: {:.2}, of {ratios:.2?}",
                kind.what,
                kind.a_second,
                median.unwrap_or(f64::NAN)
            );
            tries.push(ratios);
        }
        match best {
            None => skipped(format_args!("{}: the machine is never even for half a second", kind.what)),
            Some(best) if best < KEPT => too_little.push((kind.what, tries)),
            Some(_) => {}
        }
    }
    producer.finish();
    assert!(too_little.is_empty(), "{too_little:.2?}");
}
