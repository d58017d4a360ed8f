//! What was measured: latencies and counts, in total and for each second.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// The longest latency that is told apart from longer ones, in microseconds: an hour.
const MOST_MICROS: u64 = 3_600_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(MOST_MICROS, 3).unwrap_or_else(|_| unreachable!("the bounds are valid"))
}

/// What came in one second.
#[derive(Debug)]
pub(super) struct Second {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) latency: Histogram<u64>,
}

/// What came in all.
#[derive(Debug)]
pub(super) struct Series {
    begun: Instant,
    warm_up: Duration,
    most: Duration,
    pub(super) seconds: Vec<Second>,
    pub(super) latency: Histogram<u64>,
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// The first failure, in words.
    pub(super) failure: Option<String>,
}

impl Series {
    /// Measures for `most`, after `warm_up`.
    pub(super) fn new(warm_up: Duration, most: Duration) -> Self {
        Self {
            begun: Instant::now(),
            warm_up,
            most,
            seconds: Vec::new(),
            latency: histogram(),
            requests: 0,
            failed: 0,
            failure: None,
        }
    }

    /// When it is over.
    pub(super) fn end(&self) -> Instant {
        self.begun + self.warm_up + self.most
    }

    /// The second that it is now; `None` before and after what is measured.
    fn second(&mut self, now: Instant) -> Option<&mut Second> {
        let since = now.duration_since(self.begun).checked_sub(self.warm_up)?;
        if since >= self.most {
            return None;
        }
        let second = since.as_secs() as usize;
        while self.seconds.len() <= second {
            self.seconds.push(Second { requests: 0, failed: 0, latency: histogram() });
        }
        self.seconds.get_mut(second)
    }

    /// A request that was due at this time was answered now.
    pub(super) fn answered(&mut self, due: Instant, now: Instant) {
        let micros = now.duration_since(due).as_micros() as u64;
        let Some(second) = self.second(now) else { return };
        second.requests += 1;
        second.latency.saturating_record(micros);
        self.requests += 1;
        self.latency.saturating_record(micros);
    }

    /// A request has failed.
    pub(super) fn failed(&mut self, why: impl FnOnce() -> String) {
        if let Some(second) = self.second(Instant::now()) {
            second.failed += 1;
        }
        self.failed += 1; // also before and after: what fails then is no less a failure
        self.failure.get_or_insert_with(why);
    }

    /// For how long it was measured.
    pub(super) fn measured(&self) -> Duration {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_and_after_is_not_measured_and_each_second_by_itself() {
        let mut series = Series::new(Duration::from_secs(1), Duration::from_secs(3));
        let at = |millis: u64| series.begun + Duration::from_millis(millis);
        let times = [500, 999, 1000, 1999, 3500, 4000].map(at);
        let due = series.begun;
        for time in times {
            series.answered(due, time);
        }
        assert_eq!(series.requests, 3);
        assert_eq!(series.seconds.iter().map(|second| second.requests).collect::<Vec<_>>(), [2, 0, 1]);
        assert!(series.latency.max() >= 3_500_000 && series.latency.min() <= 1_000_000);
    }
}
