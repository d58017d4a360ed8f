//! When a log that was opened on a full disk is opened again.

use crate::pauses::Pauses;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// When a log is opened again because there seems to be room: where none can be reserved, only writing shows whether
/// there is. The log's users get an error each time, so if it was in vain, the next time comes later.
pub(super) struct Reopening {
    /// In milliseconds since the store was opened.
    not_before: AtomicU64,
    pauses: Pauses,
}

impl Default for Reopening {
    fn default() -> Self {
        let pauses = Pauses::new(Duration::from_secs(2)..=Duration::from_secs(64));
        Self { not_before: AtomicU64::new(0), pauses }
    }
}

// Relaxed: by one helper at a time, or at most a pause too short or too long.
impl Reopening {
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.not_before.load(Ordering::Relaxed) <= now
    }

    pub(super) fn tried(&self, now: u64) {
        let pause = self.pauses.next().as_millis() as u64;
        self.not_before.store(now.saturating_add(pause), Ordering::Relaxed);
    }

    /// The log is open for writing.
    pub(super) fn succeeded(&self) {
        self.not_before.store(0, Ordering::Relaxed);
        self.pauses.reset();
    }
}
