//! What was measured: latencies and counts, in total and for each second.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// The longest latency that is told apart from longer ones, in microseconds: an hour.
const MAX_MICROS: u64 = 3_600_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(MAX_MICROS, 3).unwrap_or_else(|_| unreachable!("the bounds are valid"))
}

/// A quantile of latencies, in milliseconds.
pub(super) fn millis(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1000.0
}

/// The requests of one second.
#[derive(Debug)]
pub(super) struct Second {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) latency: Histogram<u64>,
}

/// The requests of the whole run.
#[derive(Debug)]
pub(super) struct Series {
    begun: Instant,
    warm_up: Duration,
    most: Duration,
    pub(super) seconds: Vec<Second>,
    pub(super) latency: Histogram<u64>,
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// How many per second are wanted, if that is given: then a request belongs to the second in which it was due, and
    /// otherwise to the one in which it was answered.
    pub(super) wanted: Option<u32>,
    /// How many were sent that were due in the time that is measured; and how many of them were answered, or have failed.
    sent: u64,
    done: u64,
    /// The first failure, in words.
    pub(super) failure: Option<String>,
}

impl Series {
    /// Measures for `most`, after `warm_up`.
    pub(super) fn new(warm_up: Duration, most: Duration, wanted: Option<u32>) -> Self {
        Self {
            begun: Instant::now(),
            warm_up,
            most,
            seconds: Vec::new(),
            latency: histogram(),
            requests: 0,
            failed: 0,
            wanted,
            sent: 0,
            done: 0,
            failure: None,
        }
    }

    /// When it is over.
    pub(super) fn end(&self) -> Instant {
        self.begun + self.warm_up + self.most
    }

    /// The second that this time is in; `None` before and after what is measured.
    fn second(&mut self, at: Instant) -> Option<&mut Second> {
        let since = at.duration_since(self.begun).checked_sub(self.warm_up)?;
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
        self.done += u64::from(self.second(due).is_some());
        let at = if self.wanted.is_some() { due } else { now };
        let Some(second) = self.second(at) else { return };
        second.requests += 1;
        second.latency.saturating_record(micros);
        self.requests += 1;
        self.latency.saturating_record(micros);
    }

    /// A request that was due at this time was sent.
    pub(super) fn sent(&mut self, due: Instant) {
        self.sent += u64::from(self.second(due).is_some());
    }

    /// How many requests of the time that is measured have no answer; with a rate, also those that were never sent.
    pub(super) fn unanswered(&self) -> u64 {
        let wanted = self.wanted.map_or(0, |rate| u64::from(rate) * self.most.as_secs());
        // Less one in a thousand: the connections do not begin at exactly the same time.
        let wanted = wanted - wanted.div_ceil(1000);
        self.sent.max(wanted).saturating_sub(self.done)
    }

    /// A request that was due at this time has failed.
    pub(super) fn failed(&mut self, due: Instant, why: impl FnOnce() -> String) {
        self.done += u64::from(self.second(due).is_some());
        self.failed_many(1, why);
    }

    /// This many have failed, in the time that is measured, or before or after: what fails then is no less a failure.
    pub(super) fn failed_many(&mut self, requests: u64, why: impl FnOnce() -> String) {
        if let Some(second) = self.second(Instant::now()) {
            second.failed += requests;
        }
        self.failed += requests;
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
        let mut series = Series::new(Duration::from_secs(1), Duration::from_secs(3), None);
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
