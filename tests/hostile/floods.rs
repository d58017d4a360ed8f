//! HTTP/2 frames without end, and without meaning.

use super::{
    MIB, Producer, a_while,
    http2::{
        self, CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, SETTINGS,
        WINDOW_UPDATE,
    },
    support::{
        Server,
        process::{Process, TICKS},
        processor::Processor,
    },
};
use std::time::{Duration, Instant};

/// Frames that a client sends again and again.
pub struct Flood {
    pub what: &'static str,
    /// How many rounds per second cost a client little.
    pub a_second: u32,
    /// What is sent before.
    pub first: Vec<u8>,
    /// The frames of a round, of which this is the number.
    pub round: fn(u32) -> Vec<u8>,
}

fn stream(n: u32) -> u32 {
    2 * (n % (1 << 29)) + 1
}

pub fn floods() -> Vec<Flood> {
    let flood = |what, a_second, first, round| Flood { what, a_second, first, round };
    let half = || http2::frame(HEADERS, END_STREAM, 1, &http2::head("GET", "/healthz"));
    vec![
        flood("rapid reset", 1000, Vec::new(), |n| {
            let reset = http2::frame(RESET, 0, stream(n), &8u32.to_be_bytes());
            [http2::get(stream(n), "/v1/logs/default/records?offset=latest&wait=5s"), reset].concat()
        }),
        flood("CONTINUATION", 500, half(), |_| http2::frame(CONTINUATION, 0, 1, &[0; 4096])),
        flood("empty CONTINUATION", 100, half(), |_| http2::frame(CONTINUATION, 0, 1, &[]).repeat(64)),
        flood("SETTINGS", 100, Vec::new(), |n| {
            http2::frame(SETTINGS, 0, 0, &http2::setting(4, n % 60000 + 1)).repeat(64)
        }),
        flood("PING", 100, Vec::new(), |n| http2::frame(PING, 0, 0, &u64::from(n).to_be_bytes()).repeat(64)),
        flood("empty DATA", 100, http2::frame(HEADERS, END_HEADERS, 1, &http2::head("POST", "/")), |_| {
            http2::frame(DATA, 0, 1, &[]).repeat(64)
        }),
        flood("WINDOW_UPDATE", 100, Vec::new(), |_| {
            http2::frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(64)
        }),
        flood("frames of no known type", 500, Vec::new(), |_| http2::frame(0xbe, 0, 0, &[0; 1024])),
        flood("requests that are no requests", 1000, Vec::new(), |n| {
            http2::frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &[0x82])
        }),
        flood(
            "a header list that grows when it is unpacked",
            100,
            // A header of 4,000 bytes is kept in the table, and then referred to with one byte.
            http2::frame(HEADERS, END_HEADERS | END_STREAM, 1, &{
                let mut head = http2::head("GET", "/healthz");
                head.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
                head.extend_from_slice(&vec![b'y'; 4000]);
                head
            }),
            |n| {
                let mut head = http2::head("GET", "/healthz");
                head.extend_from_slice(&vec![0xbe; 4000]);
                http2::frame(HEADERS, END_HEADERS | END_STREAM, stream(n + 1), &head)
            },
        ),
    ]
}

/// Sends rounds until the time is over, or the server hangs up or takes no more; returns how many there were, and
/// whether it ended them.
fn send(server: &Server, flood: &Flood, time: Duration) -> (u32, bool) {
    let mut connection = Connection::open(&server.address, &[]);
    connection.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    // A server that waits for us to take its answers takes nothing itself: more time would not make it do more.
    connection.socket.set_write_timeout(Some(time)).unwrap();
    let (begun, mut n) = (Instant::now(), 0);
    if connection.send(&flood.first).is_err() {
        return (0, true);
    }
    while begun.elapsed() < time {
        if connection.send(&(flood.round)(n)).is_err() {
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
    producer.rate(Duration::from_millis(200));
    let (spent, appended) = (process.time(), producer.appended());
    producer.rate(Duration::from_millis(500));
    let each = process.time().saturating_sub(spent) / (producer.appended() - appended) as u32;
    println!("{each:?} of processor time for an append");
    for flood in &floods() {
        let what = flood.what;
        let (before, alone) = (process.memory(), producer.rate(a_while(0.1)));
        let (spent, appended) = (process.time(), producer.appended());
        process.reset_peak();
        let start = process.resident();
        let time = a_while(0.3);
        let (beside, (rounds, ended)) = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| send(&server, flood, time));
            let beside = producer.rate(a_while(0.25));
            (beside, flooding.join().unwrap())
        });
        let (cost, slowest) = (process.peak().saturating_sub(start), producer.slowest());
        let spent = process.time().saturating_sub(spent);
        let appended = (producer.appended() - appended) as u32;
        println!(
            "{what}: {rounds} rounds{}, {} KiB at the most, {spent:?} for these and {appended} appends; {alone:.0} appends/s before, {beside:.0} beside, the slowest {:?}",
            if ended { " until it takes no more" } else { "" },
            cost / 1024,
            slowest
        );
        assert!(cost < 32 * MIB, "{what}: {cost} bytes");
        assert!(slowest < Duration::from_secs(5), "{what}: an append took {slowest:?}");
        assert!(process.memory() < before + 16 * MIB, "{what}: it is kept");
        // A round costs no more than an append does.
        let allowed = each * (2 * appended + rounds) + TICKS;
        assert!(spent < allowed, "{what}: {spent:?}, and may cost {allowed:?}");
    }
    producer.finish();
}
