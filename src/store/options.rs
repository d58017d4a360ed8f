//! How to open a store.

use crate::log::Options;
use std::time::Duration;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The options that logs are opened with, unless their settings say otherwise. `memory_bytes` is for all of them
    /// together, and defaults to 1 GiB here.
    pub log: Options,
    /// How many logs are kept open. If more are open, unused ones are closed; logs in use stay open, even beyond this
    /// number. Each takes a file descriptor and a memory mapping. Default: 10,000.
    pub open_logs: usize,
    /// How long a log that nobody uses stays open. Default: 60 s.
    pub idle: Duration,
    /// How many bytes of sealed segments are verified in a second, in the background; 0 for none. All segments of all logs
    /// are read, once a day or as often as this allows. Default: 8 MiB.
    pub scrub_bytes_per_second: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        let log = Options { memory_bytes: 1 << 30, ..Options::default() };
        Self { log, open_logs: 10_000, idle: Duration::from_secs(60), scrub_bytes_per_second: 8 << 20 }
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

    /// Sets [`scrub_bytes_per_second`](Self::scrub_bytes_per_second).
    #[must_use]
    pub fn with_scrub_bytes_per_second(mut self, bytes: u64) -> Self {
        self.scrub_bytes_per_second = bytes;
        self
    }
}
