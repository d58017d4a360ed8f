//! Logs whose machine's clock is wrong for a while.

use super::{
    super::{
        environment::{
            Machine,
            clocks::{Clocks, NOW},
        },
        *,
    },
    DIR, small,
};
use crate::disk::sim::Sim;

const HOUR: u64 = 3600 * 1000;
const YEARS: u64 = 10 * 365 * 24 * HOUR;

struct Fixture {
    clocks: std::sync::Arc<Clocks>,
    env: Environment,
}

impl Fixture {
    fn new() -> Self {
        let clocks = Clocks::new();
        let env = clocks.on(std::sync::Arc::new(Sim::new(1)));
        Self { clocks, env }
    }

    /// Somebody sets the clock.
    fn set(&self, now: u64) {
        self.clocks.set(now);
        std::thread::sleep(Duration::from_millis(10)); // until the flusher sleeps: the next append looks at the clock
    }

    /// As after the process has ended: nothing is known of the clock any more.
    fn open(&mut self) -> Log {
        self.env.trusted_time = Arc::default();
        Log::open_in(&self.env, Path::new(DIR), small()).unwrap()
    }

    /// Appends records, between which a little time passes.
    fn append(&self, log: &Log, records: usize) {
        for _ in 0..records {
            let offset = log.append(&[7; 100]).unwrap();
            log.wait_durable(offset).unwrap();
            self.clocks.pass(10);
        }
    }
}

fn times(log: &Log) -> Vec<u64> {
    log.iter(log.first_offset()).map(|record| record.unwrap().time()).collect()
}

/// A clock that was years ahead for a moment stamped all records for years, and they never expired.
#[test]
fn a_clock_that_was_ahead_is_forgotten_when_it_is_set_right() {
    let mut place = Fixture::new();
    for reopened in [false, true] {
        let mut log = place.open();
        place.append(&log, 100);
        place.set(NOW + YEARS);
        place.append(&log, 5);
        let ahead = log.next_offset();
        place.set(NOW + HOUR);
        if reopened {
            log.close().unwrap();
            log = place.open();
        }
        place.append(&log, 100);
        let times = times(&log);
        // The segment that has them continues until another one is ready.
        let right = times.iter().rposition(|&time| time > NOW + YEARS / 2).unwrap() + 1;
        assert!(right as u64 <= ahead + 50, "{right} of {}", times.len());
        let now = place.clocks.now();
        assert!(times[right..].iter().all(|time| (NOW + HOUR - 1..=now).contains(time)));
        let since = log.offset_since(NOW + HOUR).unwrap();
        assert!(
            since <= right as u64
                && times[..since as usize].iter().all(|&time| time < NOW + HOUR || time > now)
        );
        assert_eq!(log.offset_since(now + 1).unwrap(), log.next_offset());
        // All that was appended before a segment was full expires, also what was to be kept for years.
        place.clocks.pass(2 * HOUR);
        place.append(&log, 100);
        std::thread::sleep(Duration::from_millis(50)); // the maintenance task seals
        assert!(
            log.retain(Retention::default().with_age(Duration::from_secs(3600))).unwrap() >= right as u64
        );
        place.set(NOW);
        log.close().unwrap();
        place = Fixture::new();
    }
}

/// A wrong time does not last until its segment is full.
#[test]
fn a_clock_that_is_set_back_begins_another_segment() {
    let place = Fixture::new();
    let large = 1 << 20;
    let options =
        Options { segment_bytes: large, first_segment_bytes: large, memory_bytes: 8 * large, ..small() };
    let log = Log::open_in(&place.env, Path::new(DIR), options).unwrap();
    place.set(NOW + YEARS);
    place.append(&log, 5);
    place.set(NOW);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while times(&log).last().is_some_and(|&last| last > NOW + YEARS / 2) {
        place.append(&log, 1);
        std::thread::sleep(Duration::from_millis(2));
        assert!(std::time::Instant::now() < deadline && log.next_offset() < 5000);
    }
    let active = log.shared.active.load_full();
    assert!(active.segment.base() >= 5 && active.segment.header.created < NOW + HOUR);
    assert_eq!(times(&log).len() as u64, log.next_offset());
}

/// A step back that is small makes no new segment, and times stand still.
#[test]
fn times_stand_still_while_the_clock_is_a_little_behind() {
    let mut place = Fixture::new();
    let log = place.open();
    place.append(&log, 20);
    place.set(NOW - 1000);
    place.append(&log, 20);
    let times = times(&log);
    assert!(times.is_sorted(), "{times:?}");
    assert!(*times.last().unwrap() <= NOW + 200);
    assert_eq!(
        log.shared.chain.load().segments.len(),
        1 + usize::from(log.shared.active.load().segment.base() > 0)
    );
}

/// Under a clock that was years ahead, retention dropped all but the last segment.
#[test]
fn retention_under_a_wrong_clock_drops_nothing_that_is_young() {
    let mut place = Fixture::new();
    let log = place.open();
    let day = Retention::default().with_age(Duration::from_secs(24 * 3600));
    place.append(&log, 300);
    std::thread::sleep(Duration::from_millis(50)); // the maintenance task seals
    assert_eq!(log.retain(day).unwrap(), 0);
    place.clocks.pass(2 * HOUR);
    assert_eq!(log.retain(day).unwrap(), 0);
    place.set(NOW + YEARS);
    for _ in 0..59 {
        place.clocks.pass(60_000);
        assert_eq!(log.retain(day).unwrap(), 0, "ahead for less than an hour");
    }
    // Also one that was wrong when the machine was started.
    log.close().unwrap();
    let log = place.open();
    assert_eq!(log.retain(day).unwrap(), 0);
    // A clock that stays so is right: the log was idle.
    place.clocks.pass(HOUR + 1);
    log.retain(day).unwrap();
    place.append(&log, 1);
    assert!(log.retain(day).unwrap() > 200);
}

/// A clock that was at 1970 for a while makes nothing old that came before.
#[test]
fn records_before_a_clock_that_was_behind_do_not_expire_early() {
    let mut place = Fixture::new();
    let log = place.open();
    place.append(&log, 20);
    place.set(1000);
    place.append(&log, 100);
    place.set(NOW + HOUR);
    place.append(&log, 100);
    std::thread::sleep(Duration::from_millis(50)); // the maintenance task seals
    let times = times(&log);
    let before = times.iter().position(|&time| time < NOW / 2).unwrap() as u64;
    assert!(before <= 31, "the first segment was given up before it was full");
    assert_eq!(log.retain(Retention::default().with_age(Duration::from_secs(24 * 3600))).unwrap(), 0);
    assert!(log.offset_since(NOW + HOUR).unwrap() > before);
}

/// A clock that was years ahead when the process was started made the log forget all producers that had not sent since:
/// what they then repeated was stored again.
#[cfg(feature = "store")]
#[test]
fn producers_are_not_forgotten_by_a_wrong_clock() {
    let send = |log: &Log, id: &str| {
        let batch = ProducerBatch::new(id, 0, 0);
        log.learn_producers().unwrap();
        log.try_append_once(&batch, &[Payload { bytes: b"x", json: false }], None).unwrap().repeated
    };
    let mut place = Fixture::new();
    let log = place.open();
    assert!(!send(&log, "first"));
    place.set(NOW + YEARS);
    assert!(!send(&log, "second"));
    log.save_producers().unwrap();
    assert!(send(&log, "first"), "ahead for a moment");
    log.close().unwrap();

    let mut place = Fixture::new();
    let log = place.open();
    assert!(!send(&log, "first"));
    log.close().unwrap();
    place.set(NOW + YEARS);
    let log = place.open();
    assert!(!send(&log, "third"));
    log.save_producers().unwrap();
    assert!(send(&log, "first"), "ahead when the process was started");
    // A clock that stays so is right: nobody has sent anything for years.
    place.clocks.pass(HOUR + 1);
    assert!(!send(&log, "fourth"));
    log.save_producers().unwrap();
    assert!(!send(&log, "first"));
}
