//! Retention: which segments may be dropped, by the bytes that the log may take and by the age of its records.

use super::{
    CHECK_PAUSE, Error, Log, Shared,
    chain::{Chain, newest},
};
#[cfg(feature = "store")]
use super::{CHECKS, room::WaitFor};
use crate::sync::Arc;
use std::time::Duration;

/// How often [`Log::retain`] looks whether the last segment has ended, for a second in all.
const ROLL_ATTEMPTS: u32 = 100;

/// What a log keeps. Whole segments that exceed one of the limits are dropped, oldest first. The size limit never drops the
/// segment being written, nor the last one with records. The age limit may drop every record: only the next offset is then
/// left. Without limits nothing is dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// How many bytes the segment files may take.
    pub bytes: Option<u64>,
    /// How old the newest record of a segment may be.
    pub age: Option<Duration>,
}

impl Retention {
    /// Limits the bytes that the segment files take.
    #[must_use]
    pub fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Limits the age of the newest record of a segment.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }
}

impl Log {
    /// Drops whole segments, oldest first, so that the segment files take at most [`bytes`](Retention::bytes), and
    /// those whose records are all older than [`age`](Retention::age); see [`Retention`] for what is kept in any case.
    /// Returns the first offset that is left. If the disk has no room for the next segment, the last one stays until
    /// there is room.
    ///
    /// # Errors
    /// As [`trim`](Self::trim).
    pub fn retain(&self, retention: Retention) -> Result<u64, Error> {
        self.shared.roll_expired(retention, ROLL_ATTEMPTS);
        let before = self.shared.retained_from(retention);
        if self.is_trimmed_to(before) { Ok(before) } else { self.trim(before) }
    }

    /// Like [`retain`](Self::retain), for callers that have other logs to serve: what takes longer than a moment
    /// continues in the background.
    ///
    /// # Errors
    /// As [`retain`](Self::retain); [`Error::WouldBlock`] if it continues, or has to wait for the disk.
    #[cfg(feature = "store")]
    pub(crate) fn retain_soon(&self, retention: Retention) -> Result<u64, Error> {
        let has_ended = self.shared.roll_expired(retention, CHECKS);
        let before = self.shared.retained_from(retention);
        if !self.is_trimmed_to(before) {
            self.shared.trim_soon(self.save_producers_before(before, WaitFor::Nothing)?)?;
        }
        if has_ended { Ok(self.first_offset()) } else { Err(Error::WouldBlock) }
    }

    /// Whether [`retain_soon`](Self::retain_soon) has something to do. Does not touch the disk.
    #[cfg(feature = "store")]
    pub(crate) fn exceeds(&self, retention: Retention) -> bool {
        self.shared.is_last_expired(retention) || !self.is_trimmed_to(self.shared.retained_from(retention))
    }
}

impl Shared {
    /// The offset before which segments may be dropped.
    fn retained_from(&self, Retention { bytes, age }: Retention) -> u64 {
        let (chain, durable) = (self.chain.load_full(), self.durable.get());
        let mut total = chain.bytes();
        let now = self.trusted_now();
        let oldest = age.and_then(|age| self.oldest(now, age));
        let mut before = chain.first();
        for (n, pair) in chain.segments.windows(2).enumerate() {
            let expired = oldest.is_some_and(|oldest| newest(&chain.segments[n..], now) < oldest);
            let has_successor = pair[1].base() < durable; // with records
            let is_too_much = has_successor && bytes.is_some_and(|bytes| total > bytes);
            if !expired && !is_too_much {
                break;
            }
            total -= pair[0].file_bytes();
            before = pair[1].base();
        }
        before
    }

    /// Whether all records of the log are too old, and the last segment that has some is still to be
    /// [ended](Self::last_to_roll).
    fn is_last_expired(&self, Retention { age, .. }: Retention) -> bool {
        let now = self.trusted_now();
        let Some(oldest) = age.and_then(|age| self.oldest(now, age)) else { return false };
        let is_old = |(chain, last): (Arc<Chain>, usize)| newest(&chain.segments[last..], now) < oldest;
        self.last_to_roll(self.next_offset()).is_some_and(is_old)
    }

    /// The last segment that has records, as its chain and its place in it, if it cannot be dropped yet: it is not
    /// sealed, or the segment after it has no file. `None` if it can be dropped, if the log does not end at `end` with
    /// everything durable, or if it cannot be written to.
    fn last_to_roll(&self, end: u64) -> Option<(Arc<Chain>, usize)> {
        let chain = self.chain.load_full();
        let last = chain.segments.iter().rposition(|segment| segment.base() < end)?;
        let is_begun = last + 1 < chain.segments.len(); // the one after it
        let has_ended = is_begun && chain.segments[last].sealed.get().is_some();
        let is_the_end = self.durable.get() == end && self.next_offset() == end;
        (!has_ended && is_the_end && self.writable().is_ok()).then_some((chain, last))
    }

    /// Ends the last segment that has records, and begins the next one, if [all are too old](Self::is_last_expired).
    /// Returns whether there is nothing left to do of this; the rest is done in the background.
    fn roll_expired(&self, retention: Retention, attempts: u32) -> bool {
        self.roll_last(attempts, || self.is_last_expired(retention))
    }

    /// Ends the last segment if the log ends at `end`; returns as [`roll_expired`](Self::roll_expired) does.
    pub(super) fn roll_at(&self, end: u64) -> bool {
        self.roll_last(ROLL_ATTEMPTS, || self.last_to_roll(end).is_some())
    }

    /// Ends the last segment that has records and begins the next one, in up to `attempts` tries while `is_to_be_done`
    /// returns true.
    fn roll_last(&self, attempts: u32, is_to_be_done: impl Fn() -> bool) -> bool {
        for _ in 0..attempts {
            if !is_to_be_done() {
                return true;
            }
            let active = self.active.load_full();
            if active.chunk.reserved() > 0 || active.chunk.end().is_some() {
                if self.roll.cannot_prepare() && !self.roll.is_ready() {
                    return true; // no room for the next segment: nothing can be done now
                }
                self.roll_if_ready(&active);
            } else if self
                .chain
                .load_full()
                .segments
                .last()
                .is_none_or(|last| last.base() < active.segment.base())
            {
                // Its file is there already: this takes no room.
                self.flush.begin_empty();
            }
            self.env.maintenance.help();
            self.env.flushers.help();
            std::thread::sleep(CHECK_PAUSE);
        }
        !is_to_be_done()
    }

    /// The time before which records are older than `age` at the time `now`; `None` as long as the clock may be wrong
    /// about it.
    pub(super) fn oldest(&self, now: u64, age: Duration) -> Option<u64> {
        let doubted =
            self.env.trusted_time.may_be_wrong(self.newest_at_opening, now, self.env.machine.elapsed());
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (!doubted).then(|| now.saturating_sub(age))
    }
}
