//! How often failures are written to the log of the process: clients can cause thousands of the same kind per second,
//! for example by reading a damaged record again and again, or by creating logs on a full disk.

use crate::sync::lock_std;
#[cfg(feature = "server")]
use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How many failures of the same kind are reported in one [`PERIOD`].
const MAX_REPORTS: u64 = 10;
/// For how long failures of the same kind are counted together.
const PERIOD: Duration = Duration::from_secs(10);

/// For each kind of failure, when it was last written to the log, and how many were not written since.
#[derive(Debug, Default)]
pub(crate) struct Reports(Mutex<BTreeMap<&'static str, Seen>>);

#[derive(Debug)]
struct Seen {
    /// When the period began.
    since: Instant,
    /// How many there were in it.
    count: u64,
}

impl Reports {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Counts a failure; returns whether it is to be reported, and if so, how many before it were not.
    pub(crate) fn count(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut all = lock_std(&self.0);
        let seen = all.entry(kind).or_insert(Seen { since: now, count: 0 });
        let mut left_out = 0;
        if now.saturating_duration_since(seen.since) >= PERIOD {
            left_out = seen.count.saturating_sub(MAX_REPORTS);
            *seen = Seen { since: now, count: 0 };
        }
        seen.count += 1;
        (seen.count <= MAX_REPORTS).then_some(left_out)
    }
}

/// Writes a line about a failure of some kind to the log of the process, at some level; or, when enough of the kind have
/// been written for now, at the level of debugging. `others` is how many were left out before.
macro_rules! report {
    ($reports:expr, $kind:expr, $level:ident, { $($fields:tt)* }, $($text:tt)*) => {
        match $reports.count($kind, std::time::Instant::now()) {
            Some(0) => tracing::$level!($($fields)*, $($text)*),
            Some(others) => tracing::$level!($($fields)*, others, $($text)*),
            None => tracing::debug!($($fields)*, $($text)*),
        }
    };
}
pub(crate) use report;

/// Something that is reported at most once in [`PERIOD`]. It protects no memory: Relaxed throughout.
#[cfg(feature = "server")]
#[derive(Debug, Default)]
pub(crate) struct Rarely {
    /// When it was reported, in milliseconds of this process, plus one.
    last: AtomicU64,
}

#[cfg(feature = "server")]
impl Rarely {
    /// Whether it is to be reported now: then nobody else is told so for a while.
    pub(crate) fn claim(&self) -> bool {
        static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let (now, last) = (BEGUN.elapsed().as_millis() as u64 + 1, self.last.load(Ordering::Relaxed));
        let is_due = last == 0 || now >= last + PERIOD.as_millis() as u64;
        is_due && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Reports a failure of the log in `dir`: of each kind of failure a few in a while, however many logs have it.
pub(crate) fn failure(dir: &Path, error: &dyn Display, what: &'static str) {
    static FAILURES: Reports = Reports::new();
    let dir = dir.display();
    report!(FAILURES, what, warn, { %dir, %error }, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_errors_of_a_code_are_logged_in_ten_seconds_and_the_others_counted() {
        let (reports, begun) = (Reports::default(), Instant::now());
        let count = |code, second| reports.count(code, begun + Duration::from_secs(second));
        let reported = (0..1000).filter(|_| count("corrupt", 1).is_some()).count();
        assert_eq!(reported, 10);
        assert_eq!(count("io_error", 1), Some(0));
        assert_eq!(count("corrupt", 10), None);
        assert_eq!(count("corrupt", 11), Some(991));
        assert_eq!(count("corrupt", 11), Some(0));
    }
}
