//! What a log, or a store of logs, takes from outside: a disk, threads, the time, and randomness. All of it comes
//! through one value, so that the simulation can provide its own, decide every outcome by a seed, and replay it.

#[cfg(all(test, not(loom)))]
pub(crate) mod clocks;

use super::{clock::TrustedTime, task::Schedule, workers};
use crate::disk::{self, Disk};
use std::{
    io,
    sync::{Arc, LazyLock},
    time::{Duration, Instant, SystemTime},
};

/// The disk, threads, time and randomness that a log or store uses.
#[derive(Clone)]
pub(crate) struct Environment {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) machine: Arc<dyn Machine>,
    /// The threads that commit.
    pub(crate) flushers: Arc<dyn Schedule>,
    /// The threads that prepare segments, seal and trim.
    pub(crate) maintenance: Arc<dyn Schedule>,
    /// How far the machine's clock is trusted.
    pub(crate) trusted_time: Arc<TrustedTime>,
}

impl Environment {
    /// The environment that the system provides.
    pub(crate) fn system() -> Self {
        Self::on(disk::native())
    }

    /// An environment with another disk, and everything else from the system.
    pub(crate) fn on(disk: Arc<dyn Disk>) -> Self {
        let (flushers, maintenance) = (Arc::new(workers::flushers()), Arc::new(workers::maintenance()));
        Self { disk, machine: Arc::new(System), flushers, maintenance, trusted_time: Arc::default() }
    }
}

/// The clocks of a machine, and its random numbers.
pub(crate) trait Machine: Send + Sync {
    /// Milliseconds since 1970. May be wrong, and may go back.
    fn now(&self) -> u64;
    /// The time since some fixed moment. Never goes back.
    fn elapsed(&self) -> Duration;
    /// Called by threads that are about to wait this long. Where no time passes by itself, it passes now, and they do not
    /// wait: then this returns `true`.
    fn advance_simulated(&self, _time: Duration) -> bool {
        false
    }
    /// Fills `bytes` with unpredictable data.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()>;
}

struct System;

/// Milliseconds since 1970, according to the system's clock.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Machine for System {
    fn now(&self) -> u64 {
        now()
    }

    fn elapsed(&self) -> Duration {
        static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGUN.elapsed()
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}
