//! Real clients, each with its own connection, append to one log, with and without conditions, and read it. What they
//! see must be what a log that processes one request at a time would answer; also across SIGKILL and a restart, where
//! requests got no answer.
//!
//! `MILLSTREAM_HISTORIES=1000 cargo test --release --test linearizable` for more than a few histories.

mod history;
#[path = "../support/mod.rs"]
mod support;

use history::{Call, Event, check};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use support::{Client, Server};

const CLIENTS: u64 = 6;
const GENERATIONS: u64 = 3;
const RECORDS: &str = "/v1/logs/shared/records";

fn lines(body: &str) -> Vec<u64> {
    body.lines().map(|line| line.parse().unwrap()).collect()
}

fn member(body: &str, name: &str) -> u64 {
    let rest = body.split(&format!("\"{name}\":")).nth(1).unwrap_or_else(|| panic!("no {name} in {body}"));
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// The requests of one client, until the server is gone; the last one may have had no answer.
struct Session<'a> {
    client: Client,
    /// The first value it may append.
    value: u64,
    random: u64,
    /// The largest length that any client has learnt, used to ask for records near the end.
    length: &'a AtomicU64,
    begun: Instant,
}

impl Session<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % limit
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    fn values(&mut self, count: u64) -> Vec<u64> {
        self.value += count;
        (self.value - count..self.value).collect()
    }

    /// Sends a request and returns its answer; `None` once the server is gone.
    fn ask(&mut self, what: &str, target: &str, body: &str) -> Option<(u16, String)> {
        let headers = [("Content-Type", "text/plain"), ("Accept", "text/plain")];
        let reply = self.client.exchange(what, target, &headers, body.as_bytes()).ok()?;
        Some((reply.status, String::from_utf8(reply.body).unwrap()))
    }

    fn append(&mut self, count: u64, expect: Option<u64>) -> Event {
        let values = self.values(count);
        let body = values.iter().map(u64::to_string).collect::<Vec<_>>().join("\n");
        let query = expect.map_or(String::new(), |expect| format!("?expect={expect}"));
        let Some((status, said)) = self.ask("POST", &format!("{RECORDS}{query}"), &body) else {
            return Event::Unknown { values, expect };
        };
        match status {
            200 => {
                let first = member(&said, "first_offset");
                self.length.fetch_max(first + count, Ordering::Relaxed);
                Event::Appended { values, expect, first }
            }
            412 => Event::Unexpected { expect: expect.unwrap(), next: member(&said, "next_offset") },
            _ => panic!("{status} {said}"),
        }
    }

    fn turn(&mut self) -> Option<Event> {
        let length = self.length.load(Ordering::Relaxed);
        let near = (length + 2).saturating_sub(self.below(5));
        match self.below(10) {
            0..=2 => Some(self.append(1, None)),
            3 => {
                let count = 2 + self.below(3);
                Some(self.append(count, None))
            }
            4..=5 => Some(self.append(1, Some(near))),
            6..=8 => {
                let (status, said) = self.ask("GET", &format!("{RECORDS}/{near}"), "")?;
                assert!(matches!(status, 200 | 404), "{status} {said}");
                Some(Event::Read { offset: near, value: (status == 200).then(|| said.parse().unwrap()) })
            }
            _ => {
                let (status, said) = self.ask("GET", &format!("{RECORDS}?offset={near}&limit=100000"), "")?;
                Some(match status {
                    200 => Event::ReadFrom { offset: near, values: lines(&said) },
                    416 => Event::Beyond { offset: near, next: member(&said, "next_offset") },
                    _ => panic!("{status} {said}"),
                })
            }
        }
    }

    fn run(mut self) -> Vec<Call> {
        let mut calls = Vec::new();
        loop {
            let sent = self.now();
            let Some(event) = self.turn() else { return calls };
            let last = matches!(event, Event::Unknown { .. });
            calls.push(Call { sent, answered: self.now(), event });
            if last {
                return calls;
            }
        }
    }
}

fn read_all(client: &mut Client) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let target = format!("{RECORDS}?offset={}&limit=100000", all.len());
        let reply = client.exchange("GET", &target, &[("Accept", "text/plain")], b"").unwrap();
        let found = lines(std::str::from_utf8(&reply.body).unwrap());
        if found.is_empty() {
            return all;
        }
        all.extend(found);
    }
}

/// Records a history of a few generations, each ended by SIGKILL, and the log at its end.
fn record(durability: &str, seed: u64) -> (Vec<Call>, Vec<u64>) {
    let data = tempfile::tempdir().unwrap();
    let backings = tempfile::tempdir_in(support::shm::dir()).unwrap();
    // Small segments, so that the log rolls all the time.
    let flags = [
        "--segment-bytes",
        "8192",
        "--memory-bytes",
        "1048576",
        "--shm-dir",
        backings.path().to_str().unwrap(),
    ];
    let begun = Instant::now();
    let length = AtomicU64::new(0);
    let mut calls = Vec::new();
    let mut server = Server::start(data.path(), &flags);
    let settings = format!("{{\"durability\":\"{durability}\"}}");
    assert_eq!(server.connect().request("PUT", "/v1/logs/shared", settings.as_bytes()).unwrap().status, 201);
    for generation in 0..GENERATIONS {
        let mut answers: Vec<Call> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let number = generation * CLIENTS + client;
                    let session = Session {
                        client: server.connect(),
                        value: 1 + number * 1_000_000_000,
                        random: seed << 32 | number,
                        length: &length,
                        begun,
                    };
                    scope.spawn(move || session.run())
                })
                .collect();
            std::thread::sleep(Duration::from_millis(200 + seed * 37 % 100));
            rustix::process::kill_process(server.pid(), rustix::process::Signal::KILL).unwrap();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        server.kill();
        // A request without an answer took place before the server was gone, or never.
        let gone = begun.elapsed().as_nanos() as u64;
        for call in answers.iter_mut().filter(|call| matches!(call.event, Event::Unknown { .. })) {
            call.answered = gone;
        }
        calls.extend(answers);
        server = Server::start(data.path(), &flags);
    }
    let log = read_all(&mut server.connect());
    server.kill();
    (calls, log)
}

fn histories(durability: &str) {
    let count = std::env::var("MILLSTREAM_HISTORIES").map_or(1, |count| count.parse().unwrap());
    let mut kinds = [0; 6];
    for seed in 0..count {
        let (calls, log) = record(durability, seed);
        if let Err(error) = check(&calls, &log) {
            panic!("{durability}: of {} requests: {error}", calls.len());
        }
        for call in &calls {
            kinds[match call.event {
                Event::Appended { .. } => 0,
                Event::Unknown { .. } => 1,
                Event::Unexpected { .. } => 2,
                Event::Read { .. } => 3,
                Event::ReadFrom { .. } => 4,
                Event::Beyond { .. } => 5,
            }] += 1;
        }
    }
    println!(
        "{durability}: {count} histories; appended, without an answer, refused, read, ranges, beyond: {kinds:?}"
    );
    assert!(kinds.iter().all(|count| *count > 0), "something was never done: {kinds:?}");
}

#[test]
fn what_clients_see_of_a_log_on_disk_is_linearizable() {
    histories("disk");
}

#[test]
fn what_clients_see_of_a_log_in_memory_is_linearizable() {
    histories("memory");
}
