//! The time of a log, according to a clock that may be wrong.
//!
//! Times never go back within a segment. If the clock is set back by no more than [`MAX_SETBACK_MILLIS`], the segment's
//! time stands still until the clock has caught up with it. If it is set back by more, it was wrong before, or it is
//! wrong now: in both cases another segment begins, with the time of the clock. So a wrong time lasts no longer than
//! the segment that has it, and times go back only in visible places: at the start of a segment.
//!
//! Retention uses times that are plausible. A record's time in the future is not: the record is older than the segment
//! after it ([`newest`]). If the clock leaps ahead, compared with the time that the process has measured itself, it is
//! trusted only after it has stayed there for [`LEAP_TRUSTED_AFTER`] ([`TrustedTime`]): until then, nothing is dropped
//! that only this clock makes too old.

use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use std::time::Duration;

/// How far a clock may be set back for a log's time to stand still until the clock has caught up, in milliseconds.
pub(super) const MAX_SETBACK_MILLIS: u64 = 5_000;
/// How far the clock may leap ahead and still be trusted at once, in milliseconds.
const MAX_LEAP_MILLIS: u64 = 60_000;
/// How much older than the clock says a log's newest record may be when the log is opened, without raising doubts about
/// the clock, in milliseconds.
const MAX_IDLE_MILLIS: u64 = 24 * 3600 * 1000;
/// How long a clock that leapt ahead must stay there before it is trusted.
const LEAP_TRUSTED_AFTER: Duration = Duration::from_secs(3600);

/// Advances the time of a segment to `now`; `age` is in milliseconds since it was `created`. Returns whether the clock
/// is so far behind the segment's time that another segment must begin.
pub(super) fn advance(created: u64, age: &AtomicU64, now: u64) -> bool {
    // Relaxed: a time is not what makes a record visible.
    let before = age.fetch_max(now.saturating_sub(created), Ordering::Relaxed);
    created.saturating_add(before) > now.saturating_add(MAX_SETBACK_MILLIS)
}

/// The time at which a segment begins, after a segment whose records go up to `newest`.
pub(super) fn start_of_segment(now: u64, newest: u64) -> u64 {
    if newest <= now.saturating_add(MAX_SETBACK_MILLIS) { now.max(newest) } else { now }
}

/// The latest time at which a record of a segment can have been appended, if it is `now`: the segment's `own` newest
/// time, unless that is in the future; otherwise the start of the first segment after it whose start is plausible.
pub(super) fn newest(own: u64, later: impl IntoIterator<Item = u64>, now: u64) -> u64 {
    let is_plausible = |time: &u64| *time <= now.saturating_add(MAX_SETBACK_MILLIS);
    std::iter::once(own).chain(later).find(is_plausible).unwrap_or(now)
}

/// The current time, as far as it can be trusted, for dropping records by age. Shared by all logs of a store.
#[derive(Debug, Default)]
pub(crate) struct TrustedTime(Mutex<Option<State>>);

#[derive(Debug, Clone, Copy)]
struct State {
    /// When this was first asked, on the clock that never goes back.
    begun: Duration,
    /// When the clock was last trusted, and what it showed.
    at: Duration,
    time: u64,
    /// Since when the clock has been ahead of the expected time.
    ahead: Option<Duration>,
}

impl TrustedTime {
    /// Returns the time that can be trusted, if the clock shows `now`, and `elapsed` has passed since some fixed
    /// moment.
    pub(super) fn now(&self, now: u64, elapsed: Duration) -> u64 {
        let mut held = lock(&self.0);
        let state = held.get_or_insert(State { begun: elapsed, at: elapsed, time: now, ahead: None });
        let expected = state.time.saturating_add(elapsed.saturating_sub(state.at).as_millis() as u64);
        if now > expected.saturating_add(MAX_LEAP_MILLIS) {
            let since = *state.ahead.get_or_insert(elapsed);
            if elapsed.saturating_sub(since) < LEAP_TRUSTED_AFTER {
                return expected;
            }
            tracing::warn!(expected, now, "the clock has leapt ahead, and is trusted from now on");
        }
        // A clock that was set back is trusted at once: that does not drop anything too early.
        (state.at, state.time, state.ahead) = (elapsed, now, None);
        now
    }

    /// Whether the clock may be wrong about a log whose records went up to `newest` when it was opened: it says that
    /// this was long ago, and it has not been watched for long enough to be sure.
    pub(super) fn may_be_wrong(&self, newest: u64, now: u64, elapsed: Duration) -> bool {
        let watched = lock(&self.0).map_or(Duration::ZERO, |state| elapsed.saturating_sub(state.begun));
        now > newest.saturating_add(MAX_IDLE_MILLIS) && watched < LEAP_TRUSTED_AFTER
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const YEARS: u64 = 10 * 365 * 24 * 3600 * 1000;

    #[test]
    fn the_time_of_a_segment_never_goes_back_and_a_clock_far_behind_it_is_noticed() {
        let age = AtomicU64::new(0);
        assert!(!advance(NOW, &age, NOW + 100));
        assert!(!advance(NOW, &age, NOW + 100 - MAX_SETBACK_MILLIS));
        assert!(!advance(NOW, &age, NOW - 1));
        assert!(advance(NOW, &age, NOW + 99 - MAX_SETBACK_MILLIS));
        assert_eq!(age.load(Ordering::Relaxed), 100);
        assert!(!advance(NOW, &age, NOW + YEARS));
        assert!(advance(NOW, &age, NOW + 200));
        assert_eq!(age.load(Ordering::Relaxed), YEARS);
    }

    #[test]
    fn a_segment_begins_where_the_one_before_has_ended_or_when_the_clock_says() {
        assert_eq!(start_of_segment(NOW, NOW - 5), NOW);
        assert_eq!(start_of_segment(NOW, NOW + MAX_SETBACK_MILLIS), NOW + MAX_SETBACK_MILLIS);
        assert_eq!(start_of_segment(NOW, NOW + YEARS), NOW);
        assert_eq!(start_of_segment(0, YEARS), 0);
    }

    #[test]
    fn a_time_in_the_future_is_not_believed_and_one_from_long_ago_makes_nothing_before_it_old() {
        assert_eq!(newest(NOW - 9, [NOW - 5], NOW), NOW - 9);
        assert_eq!(newest(NOW + YEARS, [NOW + YEARS, NOW - 5, NOW], NOW), NOW - 5);
        assert_eq!(newest(NOW + YEARS, [], NOW), NOW);
        // After that segment, the clock showed 1970 for a while.
        assert_eq!(newest(NOW - 9, [0, NOW], NOW), NOW - 9);
    }

    #[test]
    fn a_leap_ahead_is_believed_when_it_has_lasted_and_a_step_back_at_once() {
        let (trusted, second) = (TrustedTime::default(), |n: u64| Duration::from_secs(n));
        assert_eq!(trusted.now(NOW, second(10)), NOW);
        assert_eq!(trusted.now(NOW + 30_000, second(20)), NOW + 30_000, "half a minute is no leap");
        assert_eq!(trusted.now(NOW + YEARS, second(30)), NOW + 40_000);
        assert_eq!(trusted.now(NOW + YEARS + 1, second(3629)), NOW + 30_000 + 3_609_000);
        assert_eq!(trusted.now(NOW + YEARS + 2, second(3630)), NOW + YEARS + 2);
        assert_eq!(trusted.now(NOW, second(3631)), NOW);
        // A clock that is corrected within the hour was never trusted.
        assert_eq!(trusted.now(NOW + YEARS, second(3632)), NOW + 1000);
        assert_eq!(trusted.now(NOW + 2000, second(3633)), NOW + 2000);
        assert_eq!(trusted.now(NOW + YEARS, second(7232)), NOW + 3_601_000);
    }

    #[test]
    fn a_clock_that_makes_a_log_old_is_doubted_for_a_while() {
        let (trusted, second) = (TrustedTime::default(), |n: u64| Duration::from_secs(n));
        assert!(trusted.may_be_wrong(NOW - YEARS, NOW, second(5000)), "not watched at all");
        trusted.now(NOW, second(10));
        assert!(trusted.may_be_wrong(NOW - YEARS, NOW, second(3609)));
        assert!(!trusted.may_be_wrong(NOW - YEARS, NOW, second(3610)));
        assert!(!trusted.may_be_wrong(NOW - MAX_IDLE_MILLIS, NOW, second(11)));
    }
}
