//! Pauses between attempts at something that does not succeed: each is twice as long as the one before, within bounds.

use crate::sync::{AtomicU64, Ordering};
use std::{ops::RangeInclusive, time::Duration};

/// How long the next pause is. Several threads may take turns to pause: an attempt more or less makes no
/// difference, so everything is Relaxed.
pub(crate) struct Pauses {
    bounds: RangeInclusive<Duration>,
    /// The next one, in milliseconds; 0 for the first.
    next: AtomicU64,
}

impl Pauses {
    pub(crate) fn new(bounds: RangeInclusive<Duration>) -> Self {
        Self { bounds, next: AtomicU64::new(0) }
    }

    /// The next pause.
    pub(crate) fn next(&self) -> Duration {
        let next = Duration::from_millis(self.next.load(Ordering::Relaxed));
        let pause = next.clamp(*self.bounds.start(), *self.bounds.end());
        self.next.store((pause * 2).min(*self.bounds.end()).as_millis() as u64, Ordering::Relaxed);
        pause
    }

    /// It has succeeded, or somebody waits for it: the next pause is the first again.
    pub(crate) fn reset(&self) {
        self.next.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again() {
        let pauses = Pauses::new(Duration::from_millis(250)..=Duration::from_secs(1));
        let next = || pauses.next().as_millis();
        assert_eq!([next(), next(), next(), next()], [250, 500, 1000, 1000]);
        pauses.reset();
        assert_eq!(next(), 250);
    }
}
