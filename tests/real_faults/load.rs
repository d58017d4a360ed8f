//! Load on a server from several connections, and the oracle on the clients' side: what each log must contain
//! afterwards.
//!
//! Each record identifies itself: the first 8 bytes of its value are its producer, the number of its batch and its
//! place in the batch, and everything else follows from them. So whatever a log returns can be compared with what was
//! sent.

use crate::support::{Client, Reply, Server};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub const FRAMES: &str = "application/vnd.millstream.frames";
/// The producer that appends after a log was found complete: the log must be writable.
const CHECKER: u16 = u16::MAX;

/// `SplitMix64`, by Steele, Lea and Flood.
pub fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// A random number, for the moments of kills.
pub fn chance(below: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % below.max(1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 8 bytes each, up to 60,000 records per batch.
    Tiny,
    /// Up to 3,000 random bytes each, up to 50 records per batch.
    Mixed,
    /// Up to 1 MiB of random bytes.
    Large,
    /// Up to 1 MiB of words that look like the headers of frames.
    Imitating,
}

/// Identifies a batch: the producer and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Batch {
    pub producer: u16,
    pub number: u32,
}

impl Batch {
    fn hash(self) -> u64 {
        mix(u64::from(self.producer) << 32 | u64::from(self.number))
    }

    fn count(self, kind: Kind) -> u16 {
        let random = self.hash();
        let max = match kind {
            _ if self.producer == CHECKER => 1,
            Kind::Tiny if random.is_multiple_of(8) => 3,
            Kind::Tiny => 60_000,
            Kind::Mixed => 50,
            Kind::Large | Kind::Imitating => 3,
        };
        1 + (random >> 8) as u16 % max
    }

    fn word(self, place: u16) -> u64 {
        u64::from(self.producer) | u64::from(self.number) << 16 | u64::from(place) << 48
    }

    /// The body of an append, as frames.
    fn body(self, kind: Kind) -> Vec<u8> {
        let mut body = Vec::new();
        for place in 0..self.count(kind) {
            let at = body.len();
            body.extend([0; 4]);
            value(self.word(place), kind, &mut body);
            let length = (body.len() - at - 4) as u32;
            body[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
        body
    }
}

/// Identifies the record with this first word.
fn parts(word: u64) -> (Batch, u16) {
    (Batch { producer: word as u16, number: (word >> 16) as u32 }, (word >> 48) as u16)
}

/// Writes the value of a record after what is in `out`.
fn value(word: u64, kind: Kind, out: &mut Vec<u8>) {
    out.extend(word.to_le_bytes());
    let mut random = mix(word);
    let mut next = || {
        random = mix(random);
        random
    };
    let words = match kind {
        Kind::Tiny => 0,
        Kind::Mixed => next() % 370,
        Kind::Large | Kind::Imitating => 128 << (next() % 11),
    };
    for n in 0..words {
        let random = next();
        let word = match (kind, n % 3) {
            // CRC and a length; record number and lead; time and flags.
            (Kind::Imitating, 0) => random << 32 >> 32 | random >> 40 << 32,
            (Kind::Imitating, 1) => (random % 4096) | (((random >> 32) % 3) << 32),
            (Kind::Imitating, _) => (random % 100_000) | (0x8000 << 48),
            _ => random,
        };
        out.extend(word.to_le_bytes());
    }
}

/// What is known of a log.
#[derive(Debug)]
pub struct Expected {
    pub name: String,
    pub kind: Kind,
    /// The first words of all records that were acknowledged or seen, indexed by offset; 0 for a record that has not
    /// been identified yet. Trimmed records stay in here.
    words: Vec<u64>,
    /// Batches that got no answer: each may be stored, as a whole, or not.
    unknown: BTreeSet<Batch>,
    stored: BTreeSet<Batch>,
    next_check: u32,
    /// The largest offset to which trimming was requested, and the first offset that the server said was left.
    pub trim_asked: u64,
    pub trim_said: u64,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Outcome {
    Stored(u64),
    /// Refused before anything was stored.
    Refused(String),
    /// Not known; with the answer or the error.
    Unknown(String),
}

impl Expected {
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        let (words, unknown, stored) = <(Vec<_>, BTreeSet<_>, BTreeSet<_>)>::default();
        Self { name: name.into(), kind, words, unknown, stored, next_check: 0, trim_asked: 0, trim_said: 0 }
    }

    pub fn records(&self) -> usize {
        self.words.len()
    }

    pub fn absorb(&mut self, batch: Batch, outcome: &Outcome) {
        match outcome {
            Outcome::Stored(first) => self.place(*first, batch),
            Outcome::Unknown(_) => assert!(self.unknown.insert(batch)),
            Outcome::Refused(_) => {}
        }
    }

    fn place(&mut self, first: u64, batch: Batch) {
        let (name, first) = (&self.name, first as usize);
        assert!(self.stored.insert(batch), "{name}: {batch:?} is stored twice");
        let count = batch.count(self.kind);
        if self.words.len() < first + usize::from(count) {
            self.words.resize(first + usize::from(count), 0);
        }
        for place in 0..count {
            let at = &mut self.words[first + usize::from(place)];
            assert!(*at == 0, "{name}: offset {} was given to {:?} and {batch:?}", first, parts(*at));
            *at = batch.word(place);
        }
    }

    /// Reads the whole log, and compares it; then appends to it. A refused append is tried again, for ten seconds: what
    /// was wrong must go away by itself.
    ///
    /// # Panics
    /// If anything acknowledged is missing or has changed, a batch is torn, a refused batch is stored, or the log
    /// cannot be written.
    pub fn check(&mut self, client: &mut Client) {
        let first = self.check_reading(client);
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let batch = Batch { producer: CHECKER, number: self.next_check };
            self.next_check += 1;
            let outcome = send(client, &self.name, self.kind, batch, "").unwrap();
            match outcome {
                Outcome::Stored(offset) => {
                    assert_eq!(
                        offset,
                        self.words.len() as u64,
                        "{}: the offset of the next record",
                        self.name
                    );
                    self.place(offset, batch);
                    break;
                }
                Outcome::Refused(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
                Outcome::Refused(said) | Outcome::Unknown(said) => {
                    panic!("{}: it cannot be written: {said}", self.name)
                }
            }
        }
        self.trim_said = self.trim_said.max(first);
    }

    /// Like [`Self::check`], without appending. Returns the first offset.
    pub fn check_reading(&mut self, client: &mut Client) -> u64 {
        let name = self.name.clone();
        let mut offset = None;
        let mut expected = Vec::new();
        let mut first = 0;
        loop {
            let from = offset.map_or("earliest".to_owned(), |offset: u64| offset.to_string());
            let target = format!("/v1/logs/{name}/records?offset={from}&limit=1000000&max_bytes=8000000");
            let reply = client.exchange("GET", &target, &[("Accept", FRAMES)], b"").unwrap();
            if reply.status == 404 && self.words.is_empty() {
                return 0; // it was never created
            }
            assert_eq!(reply.status, 200, "{name}: {}", String::from_utf8_lossy(&reply.body));
            if reply.body.is_empty() {
                let end = header(&reply, "millstream-next-offset");
                first = if offset.is_none() { end } else { first };
                offset = Some(end);
                break;
            }
            let mut rest = &reply.body[..];
            while let Some((head, after)) = rest.split_first_chunk::<20>() {
                let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
                let found = u64::from_le_bytes(head[4..12].try_into().unwrap());
                if offset.is_none() {
                    first = found;
                }
                assert_eq!(found, *offset.get_or_insert(found), "{name}: offsets have a gap");
                let (bytes, after) = after.split_at(length);
                let word = u64::from_le_bytes(*bytes.first_chunk().expect("a value of 8 bytes and more"));
                self.seen(found, word);
                expected.clear();
                value(word, self.kind, &mut expected);
                assert!(expected == bytes, "{name}: offset {found}, {:?}, has changed", parts(word));
                offset = Some(found + 1);
                rest = after;
            }
        }
        let next = offset.unwrap_or(0);
        assert!(
            next >= self.words.len() as u64,
            "{name}: {} records were acknowledged or seen, and {next} are there",
            self.words.len()
        );
        assert!(
            first >= self.trim_said && first <= self.trim_asked.max(self.trim_said),
            "{name}: begins at {first}; trimmed to {}, asked for {}",
            self.trim_said,
            self.trim_asked
        );
        assert!(self.words[first as usize..].iter().all(|word| *word != 0), "{name}: a batch is torn");
        self.unknown.clear(); // what is not stored now must never appear
        first
    }

    /// Notes that the record at `offset` is the one with this first word.
    fn seen(&mut self, offset: u64, word: u64) {
        let known = self.words.get(offset as usize).copied().unwrap_or(0);
        if known != word {
            let (batch, place) = parts(word);
            let name = &self.name;
            assert!(known == 0, "{name}: offset {offset} was {:?} and is {batch:?}, {place}", parts(known));
            assert!(place == 0, "{name}: offset {offset}: {batch:?} without its beginning");
            assert!(self.unknown.remove(&batch), "{name}: offset {offset}: {batch:?} was not appended");
            self.place(offset, batch); // with this record, all of the batch must follow
        }
    }
}

pub fn header(reply: &Reply, name: &str) -> u64 {
    let head = reply.head.to_ascii_lowercase();
    let value = head.split_once(&format!("{name}: ")).unwrap_or_else(|| panic!("no {name} in {head}")).1;
    value.split('\r').next().unwrap().parse().unwrap()
}

/// Sends a batch. `Err` if the connection is gone.
pub fn send(client: &mut Client, log: &str, kind: Kind, batch: Batch, query: &str) -> io::Result<Outcome> {
    let target = format!("/v1/logs/{log}/records{query}");
    let reply = client.exchange("POST", &target, &[("Content-Type", FRAMES)], &batch.body(kind))?;
    let text = String::from_utf8_lossy(&reply.body);
    Ok(match reply.status {
        200 => {
            let first = text.strip_prefix("{\"first_offset\":").and_then(|rest| rest.split(',').next());
            Outcome::Stored(first.and_then(|first| first.parse().ok()).expect("the first offset"))
        }
        // If the log's writer has failed, the outcome is unknown, whatever the status.
        429 | 503 | 507 if !text.contains("\"writer_failed\"") => Outcome::Refused(text.into_owned()),
        _ => Outcome::Unknown(text.into_owned()),
    })
}

/// The numbers of batches that producers have used.
pub type Numbers = BTreeMap<u16, u32>;

/// Appends from `threads` connections until `stop` returns, and notes every batch's outcome. If there are more logs
/// than connections, a connection goes from one log to the next. Every request must be answered until `stop` returns;
/// `stop` gets the number of appends that were not stored so far. Only a server that `may_end` by itself may leave some
/// requests without an answer.
///
/// Returns the number of batches that were stored, and what `stop` returned.
pub fn produce<T>(
    server: &Server,
    logs: &mut [Expected],
    threads: usize,
    query: &str,
    numbers: &mut Numbers,
    may_end: bool,
    stop: impl FnOnce(&AtomicU64) -> T,
) -> (u64, T) {
    let (stopped, failed) = (AtomicBool::new(false), AtomicU64::new(0));
    let names: Vec<(String, Kind)> = logs.iter().map(|log| (log.name.clone(), log.kind)).collect();
    let one = |thread: usize, mut client: Client, mut number: u32| {
        let mut outcomes = Vec::new();
        for turn in 0.. {
            if stopped.load(Ordering::Acquire) {
                break;
            }
            let log = (thread + turn * threads) % names.len();
            let (name, kind) = &names[log];
            let batch = Batch { producer: thread as u16, number };
            number += 1;
            let begun = Instant::now();
            match send(&mut client, name, *kind, batch, query) {
                Ok(outcome) => {
                    if !matches!(outcome, Outcome::Stored(_)) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    outcomes.push((log, batch, outcome));
                }
                Err(error) => {
                    let took = begun.elapsed();
                    std::thread::sleep(Duration::from_millis(100)); // `stop`, which has killed it, is about to return
                    assert!(
                        may_end || stopped.load(Ordering::Acquire),
                        "{name}: {error} after {took:?}, and nobody has killed the server"
                    );
                    outcomes.push((log, batch, Outcome::Unknown(error.to_string())));
                    break;
                }
            }
        }
        (thread as u16, number, outcomes)
    };
    let (outcomes, value) = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..threads)
            .map(|thread| {
                let number = *numbers.get(&(thread as u16)).unwrap_or(&1); // the word 0 is never used
                let (one, client) = (&one, server.connect());
                scope.spawn(move || one(thread, client, number))
            })
            .collect();
        let value = stop(&failed);
        stopped.store(true, Ordering::Release);
        (producers.into_iter().map(|producer| producer.join().unwrap()).collect::<Vec<_>>(), value)
    });
    let mut stored = 0;
    for (producer, number, outcomes) in outcomes {
        numbers.insert(producer, number);
        for (log, batch, outcome) in outcomes {
            stored += u64::from(matches!(outcome, Outcome::Stored(_)));
            logs[log].absorb(batch, &outcome);
        }
    }
    (stored, value)
}
