//! A machine whose clocks a test sets.

use super::{Environment, Machine};
use crate::disk::Disk;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

/// What the clock says at first, in milliseconds since 1970.
pub(crate) const NOW: u64 = 1_800_000_000_000;

/// The clock that may be wrong, and the monotonic one, in milliseconds.
pub(crate) struct Clocks {
    now: AtomicU64,
    elapsed: AtomicU64,
}

impl Clocks {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { now: NOW.into(), elapsed: 0.into() })
    }

    /// The environment of a process on this disk, by these clocks.
    pub(crate) fn on(self: &Arc<Self>, disk: Arc<dyn Disk>) -> Environment {
        Environment { machine: Arc::clone(self) as _, ..Environment::on(disk) }
    }

    /// So much time passes.
    pub(crate) fn pass(&self, millis: u64) {
        self.now.fetch_add(millis, SeqCst);
        self.pass_unnoticed(millis);
    }

    /// So much time passes, and the clock that may be wrong does not show it.
    pub(crate) fn pass_unnoticed(&self, millis: u64) {
        self.elapsed.fetch_add(millis, SeqCst);
    }

    /// Somebody sets the clock.
    pub(crate) fn set(&self, now: u64) {
        self.now.store(now, SeqCst);
    }
}

impl Machine for Clocks {
    fn now(&self) -> u64 {
        self.now.load(SeqCst)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed.load(SeqCst))
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}
