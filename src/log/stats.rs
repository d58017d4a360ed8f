//! What a log has done since it was opened, and what all logs of this process have done so far. Counters change outside
//! the path of an append: per commit, per roll, per chunk.

use super::Log;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of buckets with a bound, each of which is twice the bound before it; one more bucket is for larger
/// values.
const BUCKETS: usize = 16;

/// A histogram: for each bound, how many values were at most that bound and above the previous one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Pairs of a bound and a count; the last bound is `u64::MAX`.
    pub counts: Vec<(u64, u64)>,
    /// The sum of all values.
    pub sum: u64,
}

/// See [`stats`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commits to disk, by how many microseconds each took.
    pub commit_micros: Histogram,
    /// Commits to disk, by how many records each made durable.
    pub commit_records: Histogram,
    /// Bytes of frames that were committed.
    pub committed_bytes: u64,
    /// How often appends continued in a next segment.
    pub rolls: u64,
    /// Appends that found no room because the disk was behind.
    pub backpressure: u64,
    /// Current bytes of chunk memory, frames and slots.
    pub chunk_bytes: u64,
    /// Segments that were begun, or continued when a log was opened, in memory that does not outlive the process, because
    /// shared memory was not available.
    pub shm_fallbacks: u64,
    /// Backings of killed processes, found when a log was opened, that may hold records which the disk does not have,
    /// and that were kept.
    pub backings_kept: u64,
    /// Torn ends of segments that were cut off when a log was opened, and kept in its directory.
    pub torn_ends_kept: u64,
    /// Bytes of sealed segments that were scrubbed: see [`Log::scrub`].
    pub scrubbed_bytes: u64,
    /// How often a scrub has found a segment damaged; each scrub of a segment counts.
    pub scrub_damaged_segments: u64,
    /// How often a scrub has found a record damaged; each scrub of its segment counts.
    pub scrub_damaged_records: u64,
}

/// See [`Log::stats`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogStats {
    /// Records appended since the log was opened.
    pub appended_records: u64,
    /// Bytes of frames that were written to the disk since the log was opened: values with their headers.
    pub committed_bytes: u64,
    /// See [`Log::first_offset`].
    pub first_offset: u64,
    /// See [`Log::durable_offset`].
    pub durable_offset: u64,
    /// See [`Log::visible_offset`].
    pub visible_offset: u64,
    /// See [`Log::next_offset`].
    pub next_offset: u64,
    /// Segments that have a file.
    pub segments: u64,
    /// Bytes of the segment files.
    pub disk_bytes: u64,
    /// Bytes of memory for chunks, as `memory_bytes` counts them: being written, ready to be written, and kept for readers.
    pub chunk_bytes: u64,
    /// When the newest record was appended, in milliseconds since 1970, as far as that is known; `None` if there is no
    /// record.
    pub newest_time: Option<u64>,
}

impl Log {
    /// The log's figures: what it has done since it was opened, and its present state. They are read one after the
    /// other, not at one moment.
    pub fn stats(&self) -> LogStats {
        let shared = &self.shared;
        let (first_offset, next_offset) = (self.first_offset(), self.next_offset());
        let (chain, active) = (shared.chain.load_full(), shared.active.load_full());
        let of_active = (active.chunk.reserved() > 0).then(|| active.segment.newest_record());
        let with_records = chain.segments.iter().rfind(|segment| segment.base() < active.segment.base());
        let of_chain = with_records.map(|segment| segment.newest_record());
        let newest = of_active.into_iter().chain(of_chain).fold(shared.newest_at_opening, u64::max);
        LogStats {
            appended_records: next_offset.saturating_sub(self.handles.next_at_opening),
            committed_bytes: shared.flush.committed(),
            first_offset,
            durable_offset: self.durable_offset(),
            visible_offset: self.visible_offset(),
            next_offset,
            segments: chain.segments.len() as u64,
            disk_bytes: chain.bytes(),
            chunk_bytes: shared.roll.chunk_bytes(),
            newest_time: (first_offset < next_offset).then_some(newest),
        }
    }
}

/// Returns what all logs of this process have done so far.
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
        scrubbed_bytes: get(&SCRUBBED_BYTES),
        scrub_damaged_segments: get(&SCRUB_DAMAGED_SEGMENTS),
        scrub_damaged_records: get(&SCRUB_DAMAGED_RECORDS),
    }
}

// Each counter is independent and orders nothing: Relaxed throughout.
static COMMIT_MICROS: AtomicHistogram = AtomicHistogram::new(16);
static COMMIT_RECORDS: AtomicHistogram = AtomicHistogram::new(1);
static COMMITTED_BYTES: AtomicU64 = AtomicU64::new(0);
static ROLLS: AtomicU64 = AtomicU64::new(0);
static BACKPRESSURE: AtomicU64 = AtomicU64::new(0);
static BACKINGS_KEPT: AtomicU64 = AtomicU64::new(0);
static TORN_KEPT: AtomicU64 = AtomicU64::new(0);
static SCRUBBED_BYTES: AtomicU64 = AtomicU64::new(0);
static SCRUB_DAMAGED_SEGMENTS: AtomicU64 = AtomicU64::new(0);
static SCRUB_DAMAGED_RECORDS: AtomicU64 = AtomicU64::new(0);

pub(super) fn kept_backing() {
    BACKINGS_KEPT.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn kept_torn() {
    TORN_KEPT.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn scrubbed(bytes: u64) {
    SCRUBBED_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

/// Counts a damaged segment, and its damaged records.
pub(super) fn scrub_found(records: u64) {
    SCRUB_DAMAGED_SEGMENTS.fetch_add(1, Ordering::Relaxed);
    SCRUB_DAMAGED_RECORDS.fetch_add(records, Ordering::Relaxed);
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

/// Buckets with bounds that double, starting from `first`.
struct AtomicHistogram {
    first: u64,
    counts: [AtomicU64; BUCKETS + 1],
    sum: AtomicU64,
}

impl AtomicHistogram {
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

    fn get(&self) -> Histogram {
        let count = |bucket: usize| (self.bound(bucket), self.counts[bucket].load(Ordering::Relaxed));
        Histogram { counts: (0..=BUCKETS).map(count).collect(), sum: self.sum.load(Ordering::Relaxed) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn histogram_values_go_to_the_lowest_bucket_that_holds_them() {
        let histogram = AtomicHistogram::new(16);
        for value in [0, 16, 17, 32, 33, u64::MAX >> 1] {
            histogram.add(value);
        }
        let counts: Vec<u64> = histogram.get().counts.into_iter().map(|(_, count)| count).collect();
        assert_eq!((&counts[..4], counts[BUCKETS]), (&[2, 2, 1, 0][..], 1));
    }
}
