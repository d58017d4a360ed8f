//! What an append does when the active segment has no room for it: it moves on to the next one, or waits for it; and
//! how long callers are willing to wait.
//!
//! # Orderings
//! `stopping` is `SeqCst`, and read after `active`: see [`stop`](super::roll::stop).

#[cfg(doc)]
use super::Log;
use super::{
    Error, Shared,
    line::Turn,
    roll::{Active, active_if_running, install_successor},
    stats,
};
use crate::{
    chunk::Predecessor,
    segment::Segment,
    sync::{Arc, Backoff, Ordering},
};
use std::time::{Duration, Instant};

/// What a call may wait for. There are two things that an append may have to wait for: room for its records; and, in a log
/// that acknowledges in memory, copies that earlier appends have begun, because readers see its records only after those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// Waits for room and for copies, however long that takes.
    Anything,
    /// Waits for copies, and at most [`MAX_PREPARATION_WAIT`] for a segment that is being prepared. Without room on the disk or in
    /// memory, it returns [`Error::WouldBlock`].
    NextSegment,
    /// Waits for copies only: mostly microseconds, and milliseconds after a batch of many MiB. Without room, it returns
    /// [`Error::WouldBlock`].
    Copies,
    /// Does not wait. Without room, it returns [`Error::WouldBlock`]. Readers may not see the records yet on return:
    /// [`Log::is_published`] says whether they do.
    Nothing,
}

impl WaitFor {
    /// Whether it waits for room, and so for the disk, however long that takes.
    pub(super) fn waits_for_disk(self) -> bool {
        match self {
            Self::Anything => true,
            Self::NextSegment | Self::Copies | Self::Nothing => false,
        }
    }
}

/// How long an append that does not wait for the disk waits for a segment for which there is memory. Preparing one takes a
/// few milliseconds; where it takes longer, the disk is behind.
const MAX_PREPARATION_WAIT: Duration = Duration::from_millis(20);

/// A caller that waits for a segment with room for `needs` bytes.
struct Waiting {
    needs: u64,
    wait_for: WaitFor,
    /// It looks a few times before it waits to be woken.
    backoff: Backoff,
    /// When it began to do so.
    since: Option<Duration>,
}

impl Waiting {
    fn new(needs: u64, wait_for: WaitFor) -> Self {
        Self { needs, wait_for, backoff: Backoff::new(), since: None }
    }
}

impl Shared {
    /// Waits for an active segment other than `closed`, which has no room for an append of `needs` bytes. Dropping `turn`
    /// gives the turn to the next caller in the line, so the caller keeps it until its append is done.
    #[cold]
    pub(super) fn next_active(
        &self,
        closed: &Arc<Active>,
        needs: u64,
        wait_for: WaitFor,
        turn: &mut Turn<'_>,
    ) -> Result<Arc<Active>, Error> {
        let mut waiting = Waiting::new(needs, wait_for);
        loop {
            let seen = self.roll.line().events();
            let stopped = || self.writable().err().unwrap_or(Error::Closed);
            let active = active_if_running(&self.active, &self.stopping).ok_or_else(stopped)?;
            self.writable()?; // or it was opened for reading only
            if !Arc::ptr_eq(&active.segment, &closed.segment) {
                return Ok(active);
            }
            let unused = |segment: Arc<Segment>| self.roll.discard_unlinked(segment);
            let newest = || active.segment.newest(); // all its records have their place, and so their time
            let predecessor = || {
                active.chunk.end().map_or(Predecessor::Unknown, |end| active.chunk.predecessor(end.records))
            };
            let make = |base| self.segment_from_spare(base, needs, newest(), predecessor());
            if install_successor(&self.active, &active, make, unused, || self.flush.kick()) {
                stats::rolled();
                self.roll.line().bump();
                self.roll.ask(0); // when the disk is behind, waiting until a quarter of the new chunk is written is too late
                continue;
            }
            self.wait_for_segment(&mut waiting, seen, turn)?;
        }
    }

    /// Waits until there is a spare segment to follow `active`, another segment has become active, or the chunk of
    /// `active` has ended. Call this before closing a chunk: one that is closed without a successor refuses appends
    /// that it has room for.
    pub(super) fn wait_until_next_is_ready(
        &self,
        active: &Arc<Active>,
        turn: &mut Turn<'_>,
    ) -> Result<(), Error> {
        let mut waiting = Waiting::new(0, WaitFor::Anything);
        loop {
            let seen = self.roll.line().events();
            self.writable()?;
            let is_active = Arc::ptr_eq(&self.active.load_full().segment, &active.segment);
            if self.roll.is_ready() || !is_active || active.chunk.end().is_some() {
                return Ok(());
            }
            self.wait_for_segment(&mut waiting, seen, turn)?;
        }
    }

    /// Asks for a spare segment, which was not there after `seen`, and waits for a moment, or until something has happened.
    fn wait_for_segment(&self, waiting: &mut Waiting, seen: u64, turn: &mut Turn<'_>) -> Result<(), Error> {
        if let Some(full) = self.flush.full() {
            return Err(full);
        }
        self.roll.found_full(self.env.machine.elapsed());
        self.roll.ask(waiting.needs);
        if !waiting.backoff.is_completed() {
            waiting.backoff.snooze();
            return Ok(());
        }
        if let Some(refused) = self.roll.refused_lately(self.env.machine.elapsed()) {
            return Err(refused);
        }
        let until = self.waits_until(waiting.wait_for, turn, &mut waiting.since)?;
        turn.park(seen, || self.stopping.load(Ordering::SeqCst), until);
        Ok(())
    }

    /// Called when there is no room: returns the deadline of the wait, or `None` to wait indefinitely. `since` is when the
    /// append began to wait.
    fn waits_until(
        &self,
        wait_for: WaitFor,
        turn: &Turn<'_>,
        since: &mut Option<Duration>,
    ) -> Result<Option<Instant>, Error> {
        // In a simulation nobody makes room while this thread waits.
        if wait_for.waits_for_disk() && !self.env.machine.advance_simulated(MAX_PREPARATION_WAIT) {
            stats::found_no_room();
            return Ok(None);
        }
        let now = self.env.machine.elapsed();
        let left = MAX_PREPARATION_WAIT.saturating_sub(now.saturating_sub(*since.get_or_insert(now)));
        // Behind others it would wait for their turns, which may need this very thread.
        let waits =
            wait_for == WaitFor::NextSegment && !self.roll.is_short_of_memory() && !turn.would_be_behind();
        if !waits || left.is_zero() || self.env.machine.advance_simulated(left) {
            stats::found_no_room();
            return Err(Error::WouldBlock);
        }
        Ok(Some(Instant::now() + left))
    }

    /// Moves on to another segment, if a spare one is ready; otherwise asks for one.
    #[cold]
    pub(super) fn roll_if_ready(&self, active: &Arc<Active>) {
        if !self.roll.is_ready() {
            return self.roll.ask(0);
        }
        active.chunk.close();
        let mut turn = Turn::new(self.roll.line());
        let _ = self.next_active(active, 0, WaitFor::Nothing, &mut turn); // another thread may have done it, or the log has stopped
    }
}
