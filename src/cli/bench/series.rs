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

/// The requests of one kind in the whole run.
#[derive(Debug)]
pub(super) struct Series {
    begun: Instant,
    warm_up: Duration,
    /// The longest time that it measures after the warm-up.
    max: Duration,
    /// Whether a request belongs to the second in which it was due, because they have a rate; otherwise it belongs to the
    /// one in which it was answered.
    by_due: bool,
    pub(super) seconds: Vec<Second>,
    pub(super) latency: Histogram<u64>,
    pub(super) requests: u64,
    /// How many records were appended or read.
    pub(super) records: u64,
    /// The bytes of their values.
    pub(super) bytes: u64,
    pub(super) failed: u64,
    /// How many requests that were due in the measured time were sent.
    sent: u64,
    /// How many of those were answered or failed.
    done: u64,
    /// The first failure, in words.
    pub(super) failure: Option<String>,
}

impl Series {
    /// Measures for `max`, after `warm_up`, which has `begun` at that time.
    pub(super) fn new(begun: Instant, warm_up: Duration, max: Duration, by_due: bool) -> Self {
        Self {
            begun,
            warm_up,
            max,
            by_due,
            seconds: Vec::new(),
            latency: histogram(),
            requests: 0,
            records: 0,
            bytes: 0,
            failed: 0,
            sent: 0,
            done: 0,
            failure: None,
        }
    }

    /// For how long it measures, or has measured.
    pub(super) fn time(&self) -> Duration {
        self.max
    }

    /// The second that this time is in; `None` before and after what is measured.
    fn second(&mut self, at: Instant) -> Option<&mut Second> {
        let since = at.duration_since(self.begun).checked_sub(self.warm_up)?;
        if since >= self.max {
            return None;
        }
        let second = since.as_secs() as usize;
        while self.seconds.len() <= second {
            self.seconds.push(Second { requests: 0, failed: 0, latency: histogram() });
        }
        self.seconds.get_mut(second)
    }

    /// A request that was due at this time was answered now.
    pub(super) fn answered(&mut self, due: Instant, now: Instant, records: u64, bytes: u64) {
        let micros = now.duration_since(due).as_micros() as u64;
        self.done += u64::from(self.second(due).is_some());
        let at = if self.by_due { due } else { now };
        let Some(second) = self.second(at) else { return };
        second.requests += 1;
        second.latency.saturating_record(micros);
        self.requests += 1;
        self.records += records;
        self.bytes += bytes;
        self.latency.saturating_record(micros);
    }

    /// Counts a record that a tail received: as an answer to its append, if it is known when that was due.
    pub(super) fn delivered(&mut self, due: Option<Instant>, now: Instant, bytes: u64) {
        match due {
            Some(due) => self.answered(due, now, 1, bytes),
            None if self.second(now).is_some() => {
                self.records += 1;
                self.bytes += bytes;
            }
            None => {}
        }
    }

    /// A request that was due at this time was sent.
    pub(super) fn sent(&mut self, due: Instant) {
        self.sent += u64::from(self.second(due).is_some());
    }

    /// A request that was due at this time has failed.
    pub(super) fn failed(&mut self, due: Instant, why: impl FnOnce() -> String) {
        self.done += u64::from(self.second(due).is_some());
        self.failed_many(1, why);
    }

    /// Counts failed requests, including those that failed outside the measured time.
    pub(super) fn failed_many(&mut self, requests: u64, why: impl FnOnce() -> String) {
        if let Some(second) = self.second(Instant::now()) {
            second.failed += requests;
        }
        self.failed += requests;
        self.failure.get_or_insert_with(why);
    }
}

/// What a run has measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) appends: Series,
    pub(super) reads: Series,
    /// What tails have got; their latency counts from when an append was due.
    pub(super) tails: Series,
    /// Whether it was ended before its time.
    pub(super) is_interrupted: bool,
}

impl Measured {
    pub(super) fn new(begun: Instant, warm_up: Duration, max: Duration, by_due: bool) -> Self {
        let series = || Series::new(begun, warm_up, max, by_due);
        Self { appends: series(), reads: series(), tails: series(), is_interrupted: false }
    }

    /// Ends what is measured; returns whether that had begun.
    pub(super) fn interrupt(&mut self, now: Instant) -> bool {
        self.is_interrupted = true;
        for series in [&mut self.appends, &mut self.reads, &mut self.tails] {
            let measured = now.duration_since(series.begun).saturating_sub(series.warm_up);
            series.max = measured.min(series.max);
        }
        !self.appends.max.is_zero()
    }

    pub(super) fn all(&self) -> [&Series; 3] {
        [&self.appends, &self.reads, &self.tails]
    }

    pub(super) fn failed(&self) -> u64 {
        self.all().map(|series| series.failed).iter().sum()
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.all().into_iter().find_map(|series| series.failure.as_deref())
    }

    /// How many requests of the time that is measured have no answer; with a rate, also those that were never sent.
    pub(super) fn unanswered(&self, rate: Option<u32>) -> u64 {
        let wanted = rate.map_or(0, |rate| u64::from(rate) * self.appends.max.as_secs());
        // Less one in a thousand: the last ones may be due at the very end.
        let wanted = wanted - wanted.div_ceil(1000);
        let [sent, done] = [self.appends.sent + self.reads.sent, self.appends.done + self.reads.done];
        sent.max(wanted).saturating_sub(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_and_after_is_not_measured_and_each_second_by_itself() {
        let mut series = Series::new(Instant::now(), Duration::from_secs(1), Duration::from_secs(3), false);
        let at = |millis: u64| series.begun + Duration::from_millis(millis);
        let times = [500, 999, 1000, 1999, 3500, 4000].map(at);
        let due = series.begun;
        for time in times {
            series.answered(due, time, 2, 200);
        }
        assert_eq!((series.requests, series.records, series.bytes), (3, 6, 600));
        assert_eq!(series.seconds.iter().map(|second| second.requests).collect::<Vec<_>>(), [2, 0, 1]);
        assert!(series.latency.max() >= 3_500_000 && series.latency.min() <= 1_000_000);
    }
}
