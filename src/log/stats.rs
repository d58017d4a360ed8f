//! What all logs of this process have done so far, counted where it is not on the path of an append: per commit, per
//! roll, per chunk.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets of [`Stats::commit_micros`]: 16 µs, doubling.
const BUCKETS: usize = 16;

/// A histogram: how many values were at most each bound, not counting those under a lower one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buckets {
    /// Bound and count; the last bound is `u64::MAX`.
    pub counts: Vec<(u64, u64)>,
    /// The sum of all values.
    pub sum: u64,
}

/// See [`stats`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commits to disk, by the microseconds each took.
    pub commit_micros: Buckets,
    /// Commits, by the records each made durable.
    pub commit_records: Buckets,
    /// Bytes of frames that were committed.
    pub committed_bytes: u64,
    /// Times that appends went on to a next segment.
    pub rolls: u64,
    /// Appends that found no room because the disk was behind.
    pub backpressure: u64,
    /// Bytes of chunk memory at this moment, frames and slots.
    pub chunk_bytes: u64,
    /// Chunks that were to outlive the process and could not, for want of memory.
    pub shm_fallbacks: u64,
    /// Backings of processes that were killed, found when a log was opened, that may hold records which the disk does not
    /// have, and were kept.
    pub backings_kept: u64,
    /// Torn ends of segments that were cut off when a log was opened, and kept in its directory.
    pub torn_ends_kept: u64,
}

/// What all logs of this process have done so far.
pub fn stats() -> Stats {
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Stats {
        commit_micros: COMMIT_MICROS.get(),
        commit_records: COMMIT_RECORDS.get(),
        committed_bytes: get(&COMMITTED_BYTES),
        rolls: get(&ROLLS),
        backpressure: get(&BACKPRESSURE),
        chunk_bytes: get(&crate::chunk::CHUNK_BYTES),
        shm_fallbacks: get(&crate::chunk::SHM_FALLBACKS),
        backings_kept: get(&BACKINGS_KEPT),
        torn_ends_kept: get(&TORN_KEPT),
    }
}

// Each counts by itself, and orders nothing: Relaxed throughout.
static COMMIT_MICROS: Histogram = Histogram::new(16);
static COMMIT_RECORDS: Histogram = Histogram::new(1);
static COMMITTED_BYTES: AtomicU64 = AtomicU64::new(0);
static ROLLS: AtomicU64 = AtomicU64::new(0);
static BACKPRESSURE: AtomicU64 = AtomicU64::new(0);
static BACKINGS_KEPT: AtomicU64 = AtomicU64::new(0);
static TORN_KEPT: AtomicU64 = AtomicU64::new(0);

pub(super) fn kept_backing() {
    BACKINGS_KEPT.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn kept_torn() {
    TORN_KEPT.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn committed(micros: u64, records: u64, bytes: u64) {
    COMMIT_MICROS.add(micros);
    COMMIT_RECORDS.add(records);
    COMMITTED_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

pub(super) fn rolled() {
    ROLLS.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn found_no_room() {
    BACKPRESSURE.fetch_add(1, Ordering::Relaxed);
}

/// Buckets whose bounds double, from the first one on.
struct Histogram {
    first: u64,
    counts: [AtomicU64; BUCKETS + 1],
    sum: AtomicU64,
}

impl Histogram {
    const fn new(first: u64) -> Self {
        Self { first, counts: [const { AtomicU64::new(0) }; BUCKETS + 1], sum: AtomicU64::new(0) }
    }

    fn bound(&self, bucket: usize) -> u64 {
        if bucket == BUCKETS { u64::MAX } else { self.first << bucket }
    }

    fn add(&self, value: u64) {
        let bucket = (0..=BUCKETS).find(|&bucket| value <= self.bound(bucket)).unwrap_or(BUCKETS);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn get(&self) -> Buckets {
        let count = |bucket: usize| (self.bound(bucket), self.counts[bucket].load(Ordering::Relaxed));
        Buckets { counts: (0..=BUCKETS).map(count).collect(), sum: self.sum.load(Ordering::Relaxed) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_go_to_the_lowest_bucket_that_holds_them() {
        let histogram = Histogram::new(16);
        for value in [0, 16, 17, 32, 33, u64::MAX >> 1] {
            histogram.add(value);
        }
        let counts: Vec<u64> = histogram.get().counts.into_iter().map(|(_, count)| count).collect();
        assert_eq!((&counts[..4], counts[BUCKETS]), (&[2, 2, 1, 0][..], 1));
    }
}
