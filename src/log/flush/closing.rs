//! The last commits of a log that is being closed, and the mark of a clean close.

use super::{CommitPosition, Committed, PAUSES};
use crate::{
    chunk::ChunkPosition,
    log::{Error, Shared, roll::Active},
    pauses::Pauses,
    reports,
    sync::{Arc, Backoff, lock},
};
use std::time::Duration;

/// How long closing a log, or all logs of a store together, continues to try.
pub(crate) const MAX_CLOSE_TIME: Duration = Duration::from_secs(5);

impl CommitPosition {
    /// Waits until nobody copies a record into a chunk any more, also if the log has failed: another opening may look
    /// at the memory. Appends must have been stopped.
    fn await_copies(&self) {
        let (mut segment, mut chunk) = (Arc::clone(&self.segment), Arc::clone(&self.chunk));
        let (mut copied, backoff) = (self.done, Backoff::new());
        loop {
            while copied.records < chunk.reserved() {
                let to = chunk.contiguous(copied, u32::MAX);
                if to == copied {
                    backoff.snooze(); // nothing but a copy is between an append's place and its end
                }
                copied = to;
            }
            let Some(next) = segment.next.load_full().and_then(Active::of) else { return };
            (segment, chunk) = (Arc::clone(&next.segment), Arc::clone(&next.chunk));
            copied = ChunkPosition::default();
        }
    }
}

impl Shared {
    /// Called after the tasks have ended: commits the rest, and leaves the mark of a clean close. While the disk has no
    /// room for the rest, tries again until the time that is `left` is used up. With `waits_for_mark`, does the same
    /// for the mark. What was used up is taken from `left`.
    pub(in crate::log) fn commit_rest(&self, left: &mut Duration, waits_for_mark: bool) -> Result<(), Error> {
        let mut position = lock(&self.flush.position);
        let backoff = Backoff::new();
        let mut left_otherwise = MAX_CLOSE_TIME; // for other reasons, which pass sooner and concern this log only
        while self.durable.get() < self.next_offset() {
            match self.commit(&mut position) {
                Committed::Failed => break,
                Committed::Later(pause, error) => {
                    let left = if error.is_full() { &mut *left } else { &mut left_otherwise };
                    // The last attempt may be a while ago: another log has used up the time.
                    if !self.rest_within(left, pause)
                        && let Committed::Later(_, error) = self.commit_now(&mut position)
                    {
                        self.fail(&error); // what is not on the disk stays in shared memory
                    }
                }
                Committed::Bytes(0) => backoff.snooze(), // an append that had its place is still copying
                Committed::Bytes(_) => {}
            }
        }
        position.await_copies();
        let kept = self.seal_rest();
        if let Err(error) = &kept {
            self.fail(error);
        }
        let pauses = Pauses::new(PAUSES);
        let marked = loop {
            match self.write_close_mark(&position) {
                Err(error) if error.is_full() && waits_for_mark && self.rest_within(left, pauses.next()) => {
                    tracing::debug!(dir = %self.dir.display(), %error, "cannot mark a log as closed yet");
                }
                // Nothing is lost: it is as if the process had been killed now.
                Err(error) if error.is_full() => {
                    reports::failure(&self.dir, &error, "a log is not marked as closed");
                    break Ok(());
                }
                marked => break marked,
            }
        };
        self.durable.wake_all();
        self.check_not_ended()?;
        kept.and(marked)
    }

    /// Rests for `pause`, and takes it from what is left of the time to try; returns `false` at once if that is over.
    /// Counts the pauses and reads no clock, so that the simulation can be replayed.
    fn rest_within(&self, left: &mut Duration, pause: Duration) -> bool {
        if left.is_zero() {
            return false;
        }
        *left = left.saturating_sub(pause);
        self.rest(pause);
        true
    }

    fn rest(&self, pause: Duration) {
        if !self.env.machine.advance_simulated(pause) {
            std::thread::sleep(pause);
        }
    }

    /// Notes in the segment's header how many records are durable, so that damage to the last of them is not taken
    /// for the torn end of a write.
    fn write_close_mark(&self, position: &CommitPosition) -> Result<(), Error> {
        let Some(file) = position.segment.file() else { return Ok(()) };
        if self.has_ended() {
            return Ok(());
        }
        if !position.begun {
            file.discard(&*self.env.disk);
            return Ok(());
        }
        file.write_header(&position.segment.header, position.done.records)
            .map_err(Error::io("mark a segment as closed in", &self.dir))
    }
}
