//! Retention: which segments may be dropped, by the bytes that the log may take and by the age of its records.

#[cfg(feature = "store")]
use super::room::MayBlock;
use super::{Error, Log, Shared, chain::newest};
use std::time::Duration;

/// What a log keeps. Whole segments that exceed one of the limits are dropped, oldest first; the segment being written
/// stays, whatever its size and age. Without limits nothing is dropped.
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
    /// Drops whole segments, oldest first, so that the segment files take at most [`bytes`](Retention::bytes), and those
    /// whose records are all older than [`age`](Retention::age). The segment being written stays, whatever its size and age. Returns the first
    /// offset that is left.
    ///
    /// # Errors
    /// As [`trim`](Self::trim).
    pub fn retain(&self, retention: Retention) -> Result<u64, Error> {
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
        let before = self.shared.retained_from(retention);
        if self.is_trimmed_to(before) {
            return Ok(before);
        }
        self.shared.trim_soon(self.keep_producers_before(before, MayBlock::Never)?)
    }

    /// Whether [`retain_soon`](Self::retain_soon) has something to do. Does not touch the disk.
    #[cfg(feature = "store")]
    pub(crate) fn exceeds(&self, retention: Retention) -> bool {
        !self.is_trimmed_to(self.shared.retained_from(retention))
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
            let kept = !expired && bytes.is_none_or(|bytes| total <= bytes);
            if kept || pair[1].base() >= durable {
                break; // the latter as in `hide`
            }
            total -= pair[0].file_bytes();
            before = pair[1].base();
        }
        before
    }

    /// The time before which records are older than `age` at the time `now`; `None` as long as the clock may be wrong
    /// about it.
    pub(super) fn oldest(&self, now: u64, age: Duration) -> Option<u64> {
        let doubted = self.env.trusted_time.may_be_wrong(self.newest_found, now, self.env.machine.elapsed());
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (!doubted).then(|| now.saturating_sub(age))
    }
}
