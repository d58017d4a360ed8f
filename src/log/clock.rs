//! The time of a log, by a clock that may be wrong.
//!
//! Times never go back within a segment. If the clock is set back by no more than [`HELD`], the segment's time holds still
//! until the clock has come up with it. If it is set back by more, its time before was wrong, or it is now: either way
//! another segment is begun, and told to have begun when the clock says. So a time that was wrong lasts no longer than the
//! segment that has it, and where times go back can be seen: at the beginning of a segment.
//!
//! Retention goes by times that can be believed. A record's time that lies in the future cannot be: the record is older
//! than the segment behind it ([`newest`]). A clock that leaps ahead, as against the time that the process has measured
//! itself, is believed only when it has stayed there for [`PATIENCE`] ([`Belief`]): until then what would be too old by it
//! alone stays.

use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use std::time::Duration;

/// How far a log's time may run ahead of a clock that was set back, in milliseconds.
pub(super) const HELD: u64 = 5_000;
/// How far the clock may leap ahead and be believed at once, in milliseconds.
const LEAP: u64 = 60_000;
/// How much older than the clock says a log's newest record may be when it is opened without a doubt of the clock, in milliseconds.
const IDLE: u64 = 24 * 3600 * 1000;
/// How long a clock that leapt ahead has to stay there until it is believed.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Lets the time of a segment go on to `now`; `age` has the milliseconds since it was `created`. Says whether the clock
/// is so far behind the segment's time that another segment is to be begun.
pub(super) fn advance(created: u64, age: &AtomicU64, now: u64) -> bool {
    // By itself: a time is not what makes a record visible.
    let before = age.fetch_max(now.saturating_sub(created), Ordering::Relaxed);
    created.saturating_add(before) > now.saturating_add(HELD)
}

/// When a segment begins, behind one whose records go up to `newest`.
pub(super) fn begin(now: u64, newest: u64) -> u64 {
    if newest <= now.saturating_add(HELD) { now.max(newest) } else { now }
}

/// The latest time at which a record of a segment can have been appended, if it is `now`: its `own` newest time, unless that
/// lies in the future; else when the first segment behind it was begun of which that can be believed.
pub(super) fn newest(own: u64, behind: impl IntoIterator<Item = u64>, now: u64) -> u64 {
    let believable = |time: &u64| *time <= now.saturating_add(HELD);
    std::iter::once(own).chain(behind).find(believable).unwrap_or(now)
}

/// What time it is, as far as it can be believed, for what is dropped by its age. Shared by all logs of a store.
#[derive(Debug, Default)]
pub(crate) struct Belief(Mutex<Option<State>>);

#[derive(Debug, Clone, Copy)]
struct State {
    /// When this was first asked, in the time that never goes back.
    begun: Duration,
    /// When the clock was believed for the last time, and what it said.
    at: Duration,
    time: u64,
    /// Since when it has been ahead of what it should be.
    ahead: Option<Duration>,
}

impl Belief {
    /// The time that can be believed, if the clock says `now`, and `elapsed` has passed since some moment before.
    pub(super) fn now(&self, now: u64, elapsed: Duration) -> u64 {
        let mut held = lock(&self.0);
        let state = held.get_or_insert(State { begun: elapsed, at: elapsed, time: now, ahead: None });
        let expected = state.time.saturating_add(elapsed.saturating_sub(state.at).as_millis() as u64);
        if now > expected.saturating_add(LEAP) {
            let since = *state.ahead.get_or_insert(elapsed);
            if elapsed.saturating_sub(since) < PATIENCE {
                return expected;
            }
            tracing::warn!(expected, now, "the clock has leapt ahead, and is believed from now on");
        }
        // A clock that was set back is believed at once: nothing is dropped by it too early.
        (state.at, state.time, state.ahead) = (elapsed, now, None);
        now
    }

    /// Whether the clock may be wrong about a log whose records went up to `newest` when it was opened: it says that this was
    /// long ago, and has not been watched for long enough to know better.
    pub(super) fn doubts(&self, newest: u64, now: u64, elapsed: Duration) -> bool {
        let watched = lock(&self.0).map_or(Duration::ZERO, |state| elapsed.saturating_sub(state.begun));
        now > newest.saturating_add(IDLE) && watched < PATIENCE
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
        assert!(!advance(NOW, &age, NOW + 100 - HELD));
        assert!(!advance(NOW, &age, NOW - 1));
        assert!(advance(NOW, &age, NOW + 99 - HELD));
        assert_eq!(age.load(Ordering::Relaxed), 100);
        assert!(!advance(NOW, &age, NOW + YEARS));
        assert!(advance(NOW, &age, NOW + 200));
        assert_eq!(age.load(Ordering::Relaxed), YEARS);
    }

    #[test]
    fn a_segment_begins_where_the_one_before_has_ended_or_when_the_clock_says() {
        assert_eq!(begin(NOW, NOW - 5), NOW);
        assert_eq!(begin(NOW, NOW + HELD), NOW + HELD);
        assert_eq!(begin(NOW, NOW + YEARS), NOW);
        assert_eq!(begin(0, YEARS), 0);
    }

    #[test]
    fn a_time_in_the_future_is_not_believed_and_one_from_long_ago_makes_nothing_before_it_old() {
        assert_eq!(newest(NOW - 9, [NOW - 5], NOW), NOW - 9);
        assert_eq!(newest(NOW + YEARS, [NOW + YEARS, NOW - 5, NOW], NOW), NOW - 5);
        assert_eq!(newest(NOW + YEARS, [], NOW), NOW);
        // Behind it the clock was at 1970 for a while.
        assert_eq!(newest(NOW - 9, [0, NOW], NOW), NOW - 9);
    }

    #[test]
    fn a_leap_ahead_is_believed_when_it_has_lasted_and_a_step_back_at_once() {
        let (belief, second) = (Belief::default(), |n: u64| Duration::from_secs(n));
        assert_eq!(belief.now(NOW, second(10)), NOW);
        assert_eq!(belief.now(NOW + 30_000, second(20)), NOW + 30_000, "half a minute is no leap");
        assert_eq!(belief.now(NOW + YEARS, second(30)), NOW + 40_000);
        assert_eq!(belief.now(NOW + YEARS + 1, second(3629)), NOW + 30_000 + 3_609_000);
        assert_eq!(belief.now(NOW + YEARS + 2, second(3630)), NOW + YEARS + 2);
        assert_eq!(belief.now(NOW, second(3631)), NOW);
        // One that is set right within the hour was never believed.
        assert_eq!(belief.now(NOW + YEARS, second(3632)), NOW + 1000);
        assert_eq!(belief.now(NOW + 2000, second(3633)), NOW + 2000);
        assert_eq!(belief.now(NOW + YEARS, second(7232)), NOW + 3_601_000);
    }

    #[test]
    fn a_clock_that_says_that_a_log_is_old_is_doubted_until_it_was_watched_for_a_while() {
        let (belief, second) = (Belief::default(), |n: u64| Duration::from_secs(n));
        assert!(belief.doubts(NOW - YEARS, NOW, second(5000)), "not watched at all");
        belief.now(NOW, second(10));
        assert!(belief.doubts(NOW - YEARS, NOW, second(3609)));
        assert!(!belief.doubts(NOW - YEARS, NOW, second(3610)));
        assert!(!belief.doubts(NOW - IDLE, NOW, second(11)));
    }
}
