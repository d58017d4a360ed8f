//! Waiting until a record is durable. A thread that waits commits by itself when it can, unless its time is limited.

use super::Committed;
#[cfg(feature = "store")]
use crate::log::{CHECK_PAUSE, CHECKS};
use crate::{
    log::{Error, Shared, wait::unless_reached},
    sync::{Backoff, lock},
};
use std::time::{Duration, Instant};

impl Shared {
    pub(in crate::log) fn wait_durable(&self, offset: u64) -> Result<(), Error> {
        self.wait_durable_while(offset, |_| true)
    }

    /// Waits for at most `timeout`, and leaves the write to the flusher: a thread that writes cannot say how long that
    /// takes. Returns whether the record is durable.
    pub(in crate::log) fn wait_durable_for(&self, offset: u64, timeout: Duration) -> Result<bool, Error> {
        self.check_appended(offset)?;
        let ended = || self.check_can_become_durable().is_err();
        self.flush.kick();
        // Without an end if that would be too far away to be represented.
        self.durable.park(offset.saturating_add(1), ended, Instant::now().checked_add(timeout));
        let is_durable = || self.durable.get() > offset;
        unless_reached(self.check_can_become_durable(), is_durable)?;
        Ok(is_durable())
    }

    /// Returns an error if no append has been given this offset.
    pub(in crate::log) fn check_appended(&self, offset: u64) -> Result<(), Error> {
        let next = self.next_offset();
        if offset < next {
            return Ok(());
        }
        self.writable()?;
        Err(Error::NotAppended { offset, next })
    }

    /// Waits like [`wait_durable`](Self::wait_durable), but returns the error if there is no room on the disk.
    #[cfg(feature = "store")]
    pub(in crate::log) fn wait_durable_unless_full(&self, offset: u64) -> Result<(), Error> {
        self.wait_durable_while(offset, |error| !error.is_full())
    }

    /// Waits like [`wait_durable`](Self::wait_durable) as long as `is_waited_for` is true of what keeps the system from
    /// writing; otherwise returns that error.
    fn wait_durable_while(&self, offset: u64, is_waited_for: impl Fn(&Error) -> bool) -> Result<(), Error> {
        let backoff = Backoff::new();
        while self.durable.get() <= offset {
            if offset >= self.next_offset() {
                self.check_can_become_durable()?;
                self.durable.park(
                    offset.saturating_add(1),
                    || self.check_can_become_durable().is_err(),
                    None,
                );
                continue;
            }
            // Lead a commit, or wait until another's is over.
            let mut position = lock(&self.flush.position);
            if self.durable.get() > offset {
                break;
            }
            match self.commit(&mut position) {
                Committed::Failed => return self.check_can_become_durable(),
                Committed::Later(_, error) if !is_waited_for(&error) => return Err(error),
                Committed::Later(pause, _) => {
                    drop(position);
                    if !self.env.machine.advance_simulated(pause) {
                        let again = Instant::now() + pause;
                        self.durable.park(offset + 1, || self.has_ended(), Some(again));
                    }
                }
                Committed::Bytes(0) => {
                    drop(position);
                    self.check_not_lost(offset)?;
                    backoff.snooze(); // an earlier append is still copying
                }
                Committed::Bytes(_) => {}
            }
        }
        Ok(())
    }

    /// Whether the record at `offset` is durable, or becomes so within a moment: for callers that have other logs to
    /// serve. Never touches the disk itself.
    #[cfg(feature = "store")]
    pub(in crate::log) fn durable_soon(&self, offset: u64) -> bool {
        for _ in 0..CHECKS {
            if self.durable.get() > offset || self.has_ended() {
                break;
            }
            self.flush.task.kick();
            self.env.flushers.help();
            self.durable.park(
                offset.saturating_add(1),
                || self.has_ended(),
                Some(Instant::now() + CHECK_PAUSE),
            );
        }
        self.durable.get() > offset
    }

    /// Returns an error if records that are not durable yet cannot become so any more.
    pub(in crate::log) fn check_can_become_durable(&self) -> Result<(), Error> {
        self.check_not_ended()?;
        if self.next_offset() == self.durable.get() { self.writable() } else { Ok(()) }
    }

    /// Returns an error if the log ended before `offset`.
    fn check_not_lost(&self, offset: u64) -> Result<(), Error> {
        if offset >= self.next_offset() { self.check_can_become_durable() } else { Ok(()) }
    }
}
