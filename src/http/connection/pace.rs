//! How fast a client takes a piece of an answer that it was given.

use crate::http::memory::UNCOUNTED_BYTES;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long, in milliseconds, a client is not judged by its pace.
const AT_FIRST_MILLIS: u64 = 5_000;

/// What a client was given and has not taken completely. Only the connection's thread uses it: Relaxed throughout.
#[derive(Default)]
pub(super) struct Pace {
    given: AtomicU64,
    taken: AtomicU64,
    /// Since when, in milliseconds.
    begun: AtomicU64,
}

impl Pace {
    /// The client is given this many bytes more.
    pub(super) fn given(&self, bytes: u64, now: u64) {
        if self.left() == 0 {
            self.given.store(bytes, Ordering::Relaxed);
            self.taken.store(0, Ordering::Relaxed);
            self.begun.store(now, Ordering::Relaxed);
        } else {
            self.given.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The client has taken this many.
    pub(super) fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    fn left(&self) -> u64 {
        self.given.load(Ordering::Relaxed).saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// The bytes that are held for the client, if it takes them so slowly that all of them would take longer than `max`
    /// milliseconds.
    pub(super) fn held_slowly(&self, now: u64, max: u64) -> Option<u64> {
        let (given, taken) = (self.given.load(Ordering::Relaxed), self.taken.load(Ordering::Relaxed));
        let time = now.saturating_sub(self.begun.load(Ordering::Relaxed));
        let is_slow =
            time >= AT_FIRST_MILLIS.min(max) && taken.saturating_mul(max) < given.saturating_mul(time);
        (given > UNCOUNTED_BYTES as u64 && taken < given && is_slow).then_some(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_held_slowly_if_at_this_pace_it_takes_longer_than_a_body_may() {
        let pace = Pace::default();
        assert_eq!(pace.held_slowly(1_000_000, 30_000), None, "there is none");
        pace.given(30_000_000, 1_000);
        pace.took(900_000);
        assert_eq!(pace.held_slowly(1_900, 30_000), None, "it has only begun");
        assert_eq!(pace.held_slowly(1_000 + AT_FIRST_MILLIS, 30_000), Some(30_000_000));
        pace.took(4_200_000);
        assert_eq!(pace.held_slowly(1_000 + AT_FIRST_MILLIS, 30_000), None, "more than 1 MB per second");
        pace.took(30_000_000); // with its head
        assert_eq!(pace.held_slowly(90_000, 30_000), None, "it has all");
        pace.given(UNCOUNTED_BYTES as u64, 90_000);
        assert_eq!(pace.held_slowly(190_000, 30_000), None, "that is not counted");
        pace.given(1, 190_000);
        assert_eq!(pace.held_slowly(190_000, 30_000), Some(UNCOUNTED_BYTES as u64 + 1));
    }
}
