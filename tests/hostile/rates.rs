//! How much of its rate a well-behaved producer keeps beside hostile clients.
//!
//! Both run on the server's processors: so the hostile clients are limited in what they send per second, to what costs
//! themselves little, and yield to the others (`nice`). Calm and hostile times alternate within a run, because disks
//! and machines change from one minute to the next; each calm time is between two kinds of hostile clients, and counts
//! for both. Only rounds before and after which the producer was equally fast count, and of three of them the median,
//! in the best of a few tries: others may use the machine during any of them.

use super::{
    MIB, Producer, a_while,
    bodies::{gzip, zstd},
    factor,
    floods::floods,
    http2::{self, Connection, SETTINGS},
    shapes,
    support::{Client, Server, processor::Processor, skipped::skipped},
};
use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The least part of its rate that the producer must keep.
const KEPT: f64 = 0.8;

/// The parts of its rate that a producer has kept beside hostile clients, in rounds that count: for each try up to three.
#[derive(Debug, Default)]
pub struct Kept {
    tries: Vec<Vec<f64>>,
    /// Those that did not count as well.
    rounds: usize,
    /// The rates before, beside and after in the last round that did not count.
    uneven: Option<[f64; 3]>,
}

impl Kept {
    const MOST_TRIES: usize = 4;
    const MOST_ROUNDS: usize = 40;

    /// A round: the producer's rates before, beside and after the hostile clients. It does not count if the first and the
    /// last differ, because others have used the machine. A producer that was faster beside them has kept its rate: where
    /// processors that come to rest are slow to wake up, any other work speeds it up.
    pub fn round(&mut self, before: f64, beside: f64, after: f64) {
        const EVEN: f64 = 0.8;
        self.rounds += 1;
        let (least, max) = (before.min(after), before.max(after));
        if least < EVEN * max {
            self.uneven = Some([before, beside, after]);
            return;
        }
        // One that stood still all the time has kept nothing.
        let kept = beside / before.midpoint(after).max(1.0);
        match self.tries.last_mut() {
            Some(rounds) if Self::is_enough(rounds).is_none() => rounds.push(kept),
            _ => self.tries.push(vec![kept]),
        }
    }

    /// Whether the median of three rounds, of which some may be missing, is enough: if that is known, as it is of two that
    /// agree.
    fn is_enough(rounds: &[f64]) -> Option<bool> {
        let enough = rounds.iter().filter(|&&kept| kept >= KEPT).count();
        if enough >= 2 { Some(true) } else { (rounds.len() - enough >= 2).then_some(false) }
    }

    pub fn is_over(&self) -> bool {
        self.is_too_little().is_some() || self.rounds == Self::MOST_ROUNDS
    }

    /// Whether no try was enough: `None` as long as there were not enough rounds.
    fn is_too_little(&self) -> Option<bool> {
        let tries: Vec<_> = self.tries.iter().filter_map(|rounds| Self::is_enough(rounds)).collect();
        (tries.contains(&true) || tries.len() == Self::MOST_TRIES).then(|| !tries.contains(&true))
    }

    /// Rounds without hostile clients, which show whether the machine is even.
    pub fn calm(rate: impl Fn() -> f64) -> Self {
        let (mut kept, mut before) = (Self::default(), rate());
        while !kept.is_over() {
            let (beside, after) = (rate(), rate());
            kept.round(before, beside, after);
            before = after;
        }
        kept
    }

    /// Fails if the producer kept too little beside any of these. If hardly a round of one of them counts, that is its
    /// doing, unless the machine was as uneven without.
    pub fn assert<'a>(calm: &Self, all: impl IntoIterator<Item = (&'a str, &'a Self)>) {
        println!("nothing: {:.2?} of {} rounds", calm.tries, calm.rounds);
        let mut too_little = Vec::new();
        for (what, kept) in all {
            println!(
                "{what}: {:.2?} of {} rounds; the last that did not count: {:.0?}",
                kept.tries, kept.rounds, kept.uneven
            );
            match kept.is_too_little() {
                Some(false) => {}
                None if calm.is_too_little().is_none() => {
                    skipped(format_args!("the rate beside {what}: the machine is never even"));
                }
                _ => too_little.push((what, kept)),
            }
        }
        assert!(too_little.is_empty(), "{too_little:.2?}");
    }
}

/// What a hostile client does again and again, and how often per second.
struct Hostile {
    what: &'static str,
    a_second: u32,
    /// For how many milliseconds the server may be busy with it afterwards.
    rest: u64,
    /// Creates an action, with the connections that it begins with, which is called with the number of the repetition.
    one: Box<dyn Fn() -> Act + Sync>,
    kept: Kept,
}

type Act = Box<dyn FnMut(u32) + Send>;

impl Hostile {
    fn run(&self, ready: &Barrier, end: &AtomicBool) {
        // If that is not allowed, the priority stays as it is.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
        let mut act = (self.one)();
        ready.wait();
        let begun = Instant::now();
        for n in 0.. {
            let due = begun + Duration::from_secs(1) * n / self.a_second;
            while !end.load(Ordering::Relaxed) && Instant::now() < due {
                std::thread::sleep(
                    due.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)),
                );
            }
            if end.load(Ordering::Relaxed) {
                break; // together with all its connections
            }
            act(n);
        }
    }

    /// The producer's rate beside it.
    fn beside(&self, producer: &Producer) -> f64 {
        let (ready, end) = (Barrier::new(2), AtomicBool::new(false));
        let beside = std::thread::scope(|scope| {
            scope.spawn(|| self.run(&ready, &end));
            ready.wait();
            // Long enough for a repetition of rare actions.
            let beside = producer.rate(a_while((1.0 / f64::from(self.a_second)).max(CALM)));
            end.store(true, Ordering::Relaxed);
            beside
        });
        std::thread::sleep(Duration::from_millis(self.rest));
        beside
    }
}

/// How long one measurement lasts, in seconds.
const CALM: f64 = 0.08;

/// Connections that send one of these and nothing more; the oldest is closed for each new one.
fn held(address: String, max: usize, requests: Vec<Vec<u8>>) -> impl Fn() -> Act {
    move || {
        let (address, requests, mut sockets) = (address.clone(), requests.clone(), VecDeque::new());
        Box::new(move |n| {
            if let Ok(mut socket) = TcpStream::connect(&address) {
                socket.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                let _ = socket.write_all(&requests[n as usize % requests.len()]); // the server may hang up at once
                sockets.push_back(socket);
            }
            if sockets.len() > max {
                sockets.pop_front();
            }
        })
    }
}

/// So many connections that begin with `head`, and do a little in turn; each is opened again once that fails.
fn slow<const MANY: usize>(
    address: String,
    head: &'static [u8],
    little: fn(&mut TcpStream) -> bool,
) -> impl Fn() -> Act {
    move || {
        let address = address.clone();
        let open = move || {
            let mut socket = TcpStream::connect(&address).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let _ = socket.write_all(head); // the server may hang up at once
            socket
        };
        let mut sockets: [TcpStream; MANY] = std::array::from_fn(|_| open());
        std::thread::sleep(Duration::from_millis(100)); // until the server waits for them
        Box::new(move |n| {
            let socket = &mut sockets[n as usize % MANY];
            if !little(socket) {
                *socket = open();
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

/// Bodies that cost the server more than the client, and are refused.
fn bombs(
    address: String,
    media_type: &'static str,
    encoding: &'static str,
    body: Vec<u8>,
) -> impl Fn() -> Act {
    move || {
        let (address, body) = (address.clone(), body.clone());
        let mut client = Client::connect(&address).unwrap();
        Box::new(move |_| {
            let headers = [("Content-Type", media_type), ("Content-Encoding", encoding)];
            match client.exchange("POST", "/v1/logs/a/records", &headers, &body) {
                // Refused as it is, or because no permit came.
                Ok(answer) => assert!(answer.status >= 400, "{} for a bomb", answer.status),
                Err(_) => client = Client::connect(&address).unwrap(),
            }
        })
    }
}

fn kinds(address: &str) -> Vec<Hostile> {
    let address = || address.to_owned();
    let header = b"POST / HTTP/1.1\r\nHost: localhost\r\n";
    let body = b"POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let range =
        b"GET /v1/logs/a/records?limit=1000000&max_bytes=100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let line_ends = vec![b'\n'; 64 * MIB];
    // It is parsed twice, to say what is wrong with it.
    let blanks = zstd(&[&vec![b' '; 64 * MIB - 100], &b"x"[..]].concat());
    let whole = |length: usize, body: &[u8]| {
        let head = format!(
            "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
        );
        vec![[head.as_bytes(), body].concat()]
    };
    let deep = zstd(&vec![b'['; 1_000_000]);
    let bytes = |shapes: Vec<(&str, String)>| shapes.into_iter().map(|shape| shape.1.into_bytes()).collect();
    let (text, lines, json) = ("text/plain", "application/x-ndjson", "application/json");
    let window = |bytes| http2::frame(SETTINGS, 0, 0, &http2::setting(4, bytes));
    let large = |n| http2::get(2 * n + 1, "/v1/logs/a/records?limit=1000000&max_bytes=100000000");
    let small = |n| http2::get(2 * n + 1, "/v1/logs/a/records/0");
    let kind = |what, a_second, rest, one: Box<dyn Fn() -> Act + Sync>| Hostile {
        what,
        a_second,
        rest,
        one,
        kept: Kept::default(),
    };
    let mut kinds = vec![
        kind("silent connections", 200, 20, Box::new(held(address(), 500, vec![Vec::new()]))),
        kind(
            "slow headers",
            500,
            20,
            Box::new(slow::<100>(address(), header, |to| to.write_all(b"X-A: b\r\n").is_ok())),
        ),
        kind(
            "slow bodies",
            500,
            20,
            Box::new(slow::<100>(address(), body, |to| to.write_all(&[b'x'; 1000]).is_ok())),
        ),
        kind(
            "slow readers",
            500,
            50,
            Box::new(slow::<10>(address(), range, |from| {
                from.read(&mut [0; 1000]).is_ok_and(|read| read > 0)
            })),
        ),
        kind("readers that do not read", 20, 20, Box::new(held(address(), 100, vec![range.to_vec()]))),
        kind("readers that leave", 20, 20, Box::new(held(address(), 0, vec![range.to_vec()]))),
        kind("windows of 0", 20, 20, Box::new(frames(address(), window(0), large))),
        kind("windows of a byte", 200, 20, Box::new(frames(address(), window(1), small))),
        kind("smuggling shapes", 100, 20, Box::new(held(address(), 0, bytes(shapes::hidden())))),
        kind("huge heads", 20, 20, Box::new(held(address(), 0, bytes(shapes::too_much())))),
        kind("64 MiB of blanks (zstd)", 4, 250, Box::new(bombs(address(), json, "zstd", blanks))),
        kind(
            "64 MiB of line ends (zstd)",
            10,
            20,
            Box::new(bombs(address(), text, "zstd", zstd(&line_ends))),
        ),
        kind(
            "64 MiB of line ends (gzip)",
            10,
            20,
            Box::new(bombs(address(), text, "gzip", gzip(&line_ends))),
        ),
        kind(
            "16 MiB of line ends",
            2,
            50,
            Box::new(held(address(), 0, whole(16 * MIB, &line_ends[..16 * MIB]))),
        ),
        kind("64 MiB of line ends", 10, 20, Box::new(held(address(), 0, whole(64 * MIB, &line_ends)))),
        kind("JSON a million deep", 10, 50, Box::new(bombs(address(), lines, "zstd", deep))),
    ];
    kinds.extend(floods().into_iter().map(|flood| {
        kind(flood.what, flood.a_second, 20, Box::new(frames(address(), flood.first, flood.round)))
    }));
    kinds
}

#[test]
fn a_producer_keeps_its_rate_beside_hostile_clients() {
    let _processor = Processor::take_all();
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
    let every = if factor().is_some() { 1 } else { 3 };
    let mut kinds: Vec<_> = kinds(&server.address).into_iter().step_by(every).collect();
    let producer = Producer::start(&server);
    producer.rate(Duration::from_millis(200));
    let without = Kept::calm(|| producer.rate(a_while(CALM)));
    let mut calm = producer.rate(a_while(CALM));
    while kinds.iter().any(|kind| !kind.kept.is_over()) {
        for kind in kinds.iter_mut().filter(|kind| !kind.kept.is_over()) {
            let beside = kind.beside(&producer);
            let after = producer.rate(a_while(CALM));
            kind.kept.round(calm, beside, after);
            calm = after;
        }
    }
    producer.finish();
    Kept::assert(&without, kinds.iter().map(|kind| (kind.what, &kind.kept)));
}
