//! When each request of a connection is due.

use super::Bench;
use std::time::{Duration, Instant};

/// When the next request is due.
pub(super) struct Schedule {
    next: Instant,
    interval: Option<Duration>,
}

impl Schedule {
    /// Of the `n`th sender of `senders`, in a run that has `begun` at this time. Their first requests are due one after the
    /// other, so that all are spread over time.
    pub(super) fn new(bench: &Bench, begun: Instant, n: u32, senders: u32) -> Self {
        let interval = bench.rate.map(|rate| Duration::from_secs(1) * senders / rate);
        let offset = interval.map_or(Duration::ZERO, |interval| interval * n / senders);
        Self { next: begun + offset, interval }
    }

    /// Waits until the next request is due, and returns when that was; without a rate, it is now.
    pub(super) async fn due(&mut self) -> Instant {
        let Some(interval) = self.interval else { return Instant::now() };
        let due = self.next;
        self.next += interval;
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        due
    }
}
