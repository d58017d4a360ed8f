//! Since when something has been so.

use std::sync::atomic::{AtomicU64, Ordering};

/// A point in time by the coarse clock, in milliseconds, or none. It protects no other memory: Relaxed throughout.
#[derive(Default)]
pub(super) struct Since {
    /// Plus one; 0 for none.
    at: AtomicU64,
}

impl Since {
    pub(super) fn get(&self) -> Option<u64> {
        self.at.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(super) fn is_set(&self) -> bool {
        self.get().is_some()
    }

    pub(super) fn set(&self, now: u64) {
        self.at.store(now + 1, Ordering::Relaxed);
    }

    /// Sets it, unless it is set.
    pub(super) fn set_first(&self, now: u64) {
        let _ = self.at.compare_exchange(0, now + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn clear(&self) {
        self.at.store(0, Ordering::Relaxed);
    }
}
