//! HTTP/2 frames without end, and without meaning.

use super::{
    MIB, Producer, a_while,
    http2::{
        self, CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, SETTINGS,
        WINDOW_UPDATE,
    },
    support::{Server, process::Process, processor::Processor},
};
use std::time::{Duration, Instant};

/// What is sent again and again; the argument is the number of the round.
type Round = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Sends rounds until the time is over, or the server hangs up or takes no more; returns how many there were, and
/// whether it ended them.
fn flood(server: &Server, first: &[u8], round: &Round, time: Duration) -> (u32, bool) {
    let mut connection = Connection::open(&server.address, &[]);
    connection.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    // A server that waits for us to take its answers takes nothing itself: more time would not make it do more.
    connection.socket.set_write_timeout(Some(time)).unwrap();
    let (begun, mut n) = (Instant::now(), 0);
    if connection.send(first).is_err() {
        return (0, true);
    }
    while begun.elapsed() < time {
        if connection.send(&round(n)).is_err() {
            return (n, true);
        }
        n += 1;
        if n.is_multiple_of(64) && connection.next().is_err() {
            return (n, true);
        }
    }
    (n, false)
}

#[test]
fn http2_frame_floods_cost_little_memory_and_others_are_served() {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--header-seconds", "5"]);
    let process = Process::of(&server.child);
    let producer = Producer::start(&server);
    let half = || http2::frame(HEADERS, END_STREAM, 1, &http2::head("GET", "/healthz"));
    let stream = |n: u32| 2 * (n % (1 << 29)) + 1;
    let floods: Vec<(&str, Vec<u8>, Round)> = vec![
        (
            "rapid reset",
            Vec::new(),
            Box::new(move |n| {
                let reset = http2::frame(RESET, 0, stream(n), &8u32.to_be_bytes());
                [http2::get(stream(n), "/v1/logs/default/records?offset=latest&wait=5s"), reset].concat()
            }),
        ),
        ("CONTINUATION", half(), Box::new(|_| http2::frame(CONTINUATION, 0, 1, &[0; 4096]))),
        ("empty CONTINUATION", half(), Box::new(|_| http2::frame(CONTINUATION, 0, 1, &[]).repeat(64))),
        (
            "SETTINGS",
            Vec::new(),
            Box::new(|n| http2::frame(SETTINGS, 0, 0, &http2::setting(4, n % 60000 + 1)).repeat(64)),
        ),
        ("PING", Vec::new(), Box::new(|n| http2::frame(PING, 0, 0, &u64::from(n).to_be_bytes()).repeat(64))),
        (
            "empty DATA",
            http2::frame(HEADERS, END_HEADERS, 1, &http2::head("POST", "/")),
            Box::new(|_| http2::frame(DATA, 0, 1, &[]).repeat(64)),
        ),
        (
            "WINDOW_UPDATE",
            Vec::new(),
            Box::new(|_| http2::frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(64)),
        ),
        ("frames of no known type", Vec::new(), Box::new(|_| http2::frame(0xbe, 0, 0, &[0; 1024]))),
        (
            "requests that are no requests",
            Vec::new(),
            Box::new(move |n| http2::frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &[0x82])),
        ),
        (
            "a header list that grows when it is unpacked",
            // A header of 4,000 bytes is kept in the table, and then referred to with one byte.
            http2::frame(HEADERS, END_HEADERS | END_STREAM, 1, &{
                let mut head = http2::head("GET", "/healthz");
                head.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
                head.extend_from_slice(&vec![b'y'; 4000]);
                head
            }),
            Box::new(move |n| {
                let mut head = http2::head("GET", "/healthz");
                head.extend_from_slice(&vec![0xbe; 4000]);
                http2::frame(HEADERS, END_HEADERS | END_STREAM, stream(n + 1), &head)
            }),
        ),
    ];
    for (what, first, round) in &floods {
        let (before, alone) = (process.memory(), producer.rate(a_while(0.2)));
        process.reset_peak();
        let start = process.resident();
        let time = a_while(0.5);
        let (beside, ended) = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&server, first, round, time));
            let beside = producer.rate(a_while(0.4));
            (beside, flooding.join().unwrap())
        });
        let (cost, slowest) = (process.peak().saturating_sub(start), producer.slowest());
        println!(
            "{what}: {} rounds{}, {} KiB at the most; {alone:.0} appends/s before, {beside:.0} beside, the slowest {:?}",
            ended.0,
            if ended.1 { " until it takes no more" } else { "" },
            cost / 1024,
            slowest
        );
        assert!(cost < 32 * MIB, "{what}: {cost} bytes");
        assert!(slowest < Duration::from_secs(5), "{what}: an append took {slowest:?}");
        assert!(process.memory() < before + 16 * MIB, "{what}: it is kept");
    }
    producer.finish();
}
