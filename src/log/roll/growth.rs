//! How chunks grow ahead of the appends.
//!
//! The first chunk of a log is small, because most of thousands of logs have few records. Making a larger one takes
//! time, above all to clear its memory: about a millisecond per MiB. So the first spare segment is made when appends
//! have come fast from the beginning. A chunk grows only as far as it can be made while the one before is filled. Up to
//! [`QUICK_BYTES`], growing is worth the wait.
//!
//! # Orderings
//! All `Relaxed`: each value stands for itself, and one that is a moment old makes a chunk smaller or larger than the next
//! one will be.

use crate::sync::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Appends are fast if they fill a chunk to its threshold within this time after it became active.
const FAST: Duration = Duration::from_secs(1);

/// Growing to a chunk of up to this size is worth it even if making that takes longer than filling the one before: it
/// is a matter of milliseconds.
pub(super) const QUICK_BYTES: u64 = 8 << 20;

/// The largest first spare segment of a log whose appends are fast. They wait for it, so it must not take long.
const MAX_FIRST_SPARE_BYTES: u64 = 1 << 20;

/// How many bytes are appended to a chunk of `capacity` before the appends are judged fast or slow.
const fn threshold(capacity: u64) -> u64 {
    capacity / 16
}

/// What is known of how fast chunks are filled, and made. Times are in nanoseconds, by the machine's monotonic clock.
pub(super) struct Growth {
    /// Whether the first chunk since the log was opened is still below its threshold.
    awaits_threshold: AtomicBool,
    /// That threshold in bytes; what the chunk held when the log was opened does not count towards it.
    threshold: AtomicU64,
    /// Whether a spare segment was asked for then.
    is_ahead: AtomicBool,
    /// When the active chunk became active.
    active_since: AtomicU64,
    /// When it was found to be full; 0 if it was not.
    full_since: AtomicU64,
    /// How long the chunk before took to be filled, for each MiB.
    filling: AtomicU64,
    /// Whether the chunk before was filled, at least by half: if it ended early, the next one need not be larger.
    was_filled: AtomicBool,
    /// How long the last chunk took to be made, for each MiB.
    making: AtomicU64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn per_mib(nanos: u64, bytes: u64) -> u64 {
    (u128::from(nanos) * (1 << 20) / u128::from(bytes.max(1))) as u64
}

impl Growth {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            awaits_threshold: AtomicBool::new(true),
            threshold: zero(),
            is_ahead: AtomicBool::new(false),
            active_since: zero(),
            full_since: zero(),
            filling: zero(),
            was_filled: AtomicBool::new(true),
            making: zero(),
        }
    }

    /// The log is opened, with a chunk of `capacity` that holds `bytes` already.
    pub(super) fn note_opening(&self, bytes: u64, capacity: u64, now: Duration) {
        self.threshold.store(bytes + threshold(capacity), Relaxed);
        self.active_since.store(nanos(now), Relaxed);
    }

    /// Whether a chunk that holds `bytes` has reached the threshold.
    #[inline]
    pub(super) fn is_at_threshold(&self, bytes: u64) -> bool {
        bytes >= self.threshold.load(Relaxed)
    }

    #[inline]
    pub(super) fn awaits_threshold(&self) -> bool {
        self.awaits_threshold.load(Relaxed)
    }

    /// The first chunk has come to its threshold; returns, once, whether a spare segment is to be made ahead of time.
    pub(super) fn pass_threshold(&self, now: Duration) -> bool {
        let ahead = self.awaits_threshold.swap(false, Relaxed) && self.is_fast(now);
        if ahead {
            self.is_ahead.store(true, Relaxed);
        }
        ahead
    }

    /// Whether each spare segment is asked for before the active chunk is on the disk.
    pub(super) fn is_ahead(&self) -> bool {
        self.is_ahead.load(Relaxed)
    }

    fn is_fast(&self, now: Duration) -> bool {
        nanos(now).saturating_sub(self.active_since.load(Relaxed)) <= nanos(FAST)
    }

    /// An append finds the active chunk full, and has to wait for the next.
    pub(super) fn found_full(&self, now: Duration) {
        if self.full_since.load(Relaxed) == 0 {
            self.full_since.store(nanos(now), Relaxed);
        }
    }

    /// Another chunk becomes active, after one of `capacity` that has `filled` bytes.
    pub(super) fn note_roll(&self, filled: u64, capacity: u64, now: Duration) {
        self.was_filled.store(filled >= capacity / 2, Relaxed);
        self.awaits_threshold.store(false, Relaxed);
        let now = nanos(now);
        let full = match self.full_since.swap(0, Relaxed) {
            0 => now,
            full => full,
        };
        let begun = self.active_since.swap(now, Relaxed);
        self.filling.store(per_mib(full.saturating_sub(begun), filled), Relaxed);
    }

    /// A chunk of `capacity` was made.
    pub(super) fn made(&self, capacity: u64, took: Duration) {
        self.making.store(per_mib(nanos(took), capacity), Relaxed);
    }

    /// By which factors the next chunk may be larger than the active one, which has `active` bytes; the best one first.
    pub(super) fn factors(&self, active: u64, is_first: bool, now: Duration) -> Vec<u64> {
        let in_time = |&factor: &u64| {
            let capacity = active.saturating_mul(factor);
            let takes = self.making.load(Relaxed).saturating_mul(factor);
            capacity <= QUICK_BYTES || takes <= self.filling.load(Relaxed)
        };
        let first = if is_first && self.is_fast(now) { MAX_FIRST_SPARE_BYTES / active.max(1) } else { 0 };
        if !is_first && !self.was_filled.load(Relaxed) {
            return Vec::new();
        }
        [first, 4, 2].into_iter().filter(|&factor| factor > 1).filter(in_time).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    #[test]
    fn a_chunk_grows_only_as_far_as_the_one_before_takes_to_be_filled() {
        let growth = Growth::new();
        growth.note_opening(0, 64 << 10, MILLI);
        assert_eq!(growth.factors(64 << 10, true, MILLI * 2), [16, 4, 2], "appends come fast");
        growth.made(MIB, MILLI);
        growth.found_full(MILLI * 2);
        growth.note_roll(MIB, MIB, MILLI * 5); // filled in 1 ms; the appender waited for 3
        assert_eq!(growth.factors(MIB, false, MILLI * 5), [4, 2], "soon made");
        assert_eq!(growth.factors(4 * MIB, false, MILLI * 5), [2]);
        assert!(growth.factors(8 * MIB, false, MILLI * 5).is_empty());
        growth.note_roll(8 * MIB, 8 * MIB, MILLI * 25); // filled in 20 ms
        assert_eq!(growth.factors(8 * MIB, false, MILLI * 25), [2], "16 MiB are made in 16 ms");
        growth.note_roll(8 * MIB, 8 * MIB, MILLI * 125);
        assert_eq!(growth.factors(8 * MIB, false, MILLI * 125), [4, 2]);
        growth.note_roll(1 << 10, 8 * MIB, MILLI * 1125);
        assert!(
            growth.factors(8 * MIB, false, MILLI * 1125).is_empty(),
            "it was ended early, by a checkpoint"
        );
    }

    #[test]
    fn only_appends_that_come_fast_have_a_spare_segment_made_ahead() {
        for (millis, ahead) in [(10, true), (1100, false)] {
            let growth = Growth::new();
            growth.note_opening(5 << 10, 64 << 10, MILLI);
            assert!(
                !growth.is_at_threshold(5 << 10) && growth.is_at_threshold(9 << 10),
                "what was there is not new"
            );
            assert_eq!(growth.pass_threshold(MILLI * millis), ahead);
            assert!(!growth.awaits_threshold() && !growth.pass_threshold(MILLI * millis), "once");
            let factors = growth.factors(64 << 10, true, MILLI * millis);
            assert_eq!(factors[0], if ahead { 16 } else { 4 });
        }
    }
}
