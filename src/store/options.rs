//! How to open a store.

use crate::log::Options;
use std::time::Duration;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The options that logs are opened with, unless their settings say otherwise. `memory_bytes` is for all of them
    /// together, and defaults to 1 GiB here.
    pub log: Options,
    /// The most logs that stay open at once, not counting logs in use at the moment. Each takes a file descriptor and a
    /// memory mapping. Default: 10,000.
    pub open_logs: usize,
    /// How long a log that nobody uses stays open. Default: 60 s.
    pub idle: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        let log = Options { memory_bytes: 1 << 30, ..Options::default() };
        Self { log, open_logs: 10_000, idle: Duration::from_secs(60) }
    }
}

impl StoreOptions {
    /// Sets [`log`](Self::log).
    #[must_use]
    pub fn with_log(mut self, log: Options) -> Self {
        self.log = log;
        self
    }

    /// Sets [`open_logs`](Self::open_logs).
    #[must_use]
    pub fn with_open_logs(mut self, open_logs: usize) -> Self {
        self.open_logs = open_logs;
        self
    }

    /// Sets [`idle`](Self::idle).
    #[must_use]
    pub fn with_idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }
}
