//! Clients that try to make the server crash, fill up, hang or log too much. For each: what it may cost the server, in
//! memory and in time, and that a well-behaved client is served at the same time. The figures that the tests print are
//! those in docs/performance.md.
//!
//! `MILLSTREAM_HOSTILE=10` makes everything that lasts for a time take ten times as long. If it is given, all kinds of
//! hostile clients are measured in `rates`, and not only every third, and crowds are three times as large.

#![allow(clippy::too_many_lines)] // each tells one story

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod budget;
mod connections;
mod deletion;
mod descriptors;
mod floods;
mod guard;
mod halves;
mod heads;
mod http2;
mod rates;
mod reads;
mod refused;
mod shapes;
mod slow_logs;
mod stopping;
mod windows;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use support::{Answer, Client, Server, code};

const MIB: usize = 1 << 20;

/// `MILLSTREAM_HOSTILE`, if it is given.
fn factor() -> Option<f64> {
    std::env::var("MILLSTREAM_HOSTILE").ok().and_then(|factor| factor.parse().ok())
}

/// A duration for something that lasts, multiplied by `MILLSTREAM_HOSTILE`.
fn a_while(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * factor().unwrap_or(1.0))
}

/// How many clients: a third of `count` unless `MILLSTREAM_HOSTILE` is given.
fn crowd(count: usize) -> usize {
    if factor().is_some() { count } else { count / 3 }
}

fn get(client: &mut Client, target: &str) -> std::io::Result<Answer> {
    client.request("GET", target, b"")
}

/// A value of `/metrics`.
fn metric(server: &Server, name: &str) -> u64 {
    let text = get(&mut server.connect(), "/metrics").unwrap().body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Starts a server; returns it and the file with its log.
fn said(data: &Path, flags: &[&str], log: &str) -> (Server, PathBuf) {
    let said = data.join("said");
    let mut command = Server::command(&data.join("data"), flags);
    let child =
        command.env("MILLSTREAM_LOG_FILTER", log).stderr(File::create(&said).unwrap()).spawn().unwrap();
    let mut address = String::new();
    wait_for("it listens", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&said).unwrap();
        let found = text.split_once("address=").and_then(|(_, rest)| rest.split_once(' '));
        found.map_or("", |(address, _)| address).clone_into(&mut address);
        !address.is_empty()
    });
    (Server { child, address }, said)
}

/// Waits for something to become true.
fn wait_for(what: &str, max: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < max, "not within {max:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A well-behaved client: it appends a small record, again and again, and must always get an offset.
struct Producer {
    appended: Arc<AtomicU64>,
    slowest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Producer {
    fn start(server: &Server) -> Self {
        let (appended, slowest, stop) = (Arc::default(), Arc::default(), Arc::default());
        let mut client = server.connect();
        let (count, worst, end): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>) =
            (Arc::clone(&appended), Arc::clone(&slowest), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let begun = Instant::now();
                client.append(b"of a client that behaves").expect("an append beside hostile clients");
                worst.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { appended, slowest, stop, thread: Some(thread) }
    }

    /// Appends per second, measured over `time`.
    fn rate(&self, time: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.appended());
        std::thread::sleep(time);
        (self.appended() - before) as f64 / begun.elapsed().as_secs_f64()
    }

    /// How many records it has appended.
    fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// The slowest append so far; resets the measurement.
    fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest.swap(0, Ordering::Relaxed))
    }

    /// Ends it, and fails if an append has failed.
    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
        self.appended()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
