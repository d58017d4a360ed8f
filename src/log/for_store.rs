//! What a store does with a log that others need not: opening it within a budget, ending it to make place for another,
//! and closing it while other logs wait.

use super::{
    CHECK_PAUSE, CHECKS, Environment, Error, Log, MAX_CLOSE_TIME, Options, Shared, budget::Budget, end::End,
    recovery,
};
use crate::sync::{Arc, lock};
use std::{path::Path, time::Duration};

impl Log {
    /// Opens a log that is one of many in `budget`, in a directory that nobody else opens, because of `lock`. Holds that
    /// until it is closed: a caller that holds a log may outlive the store.
    pub(crate) fn open_within(
        env: &Environment,
        budget: &Arc<Budget>,
        dir: &Path,
        options: Options,
        lock: std::sync::Arc<dyn Send + Sync>,
    ) -> Result<Self, Error> {
        let options = options.checked()?;
        recovery::ensure_free(&*env.disk, dir)?;
        let opened = recovery::open(env, dir, &options, budget)?;
        Self::start(Shared::new(env, dir, options, Box::new(lock), opened))
    }

    /// Whether there are other clones of it. If it says no, there will be none unless the caller makes one.
    pub(crate) fn is_cloned(&self) -> bool {
        self.handles.are_many()
    }

    /// Whether one of its clones has closed it, or is closing it.
    pub(crate) fn is_closing(&self) -> bool {
        self.handles.is_closing()
    }

    /// Waits until the thread that is closing the log has finished, and finishes the work itself if that thread
    /// panicked. Then another opening may take its place.
    pub(crate) fn finish_close(&self) {
        let _ = self.close_in_place(&mut { MAX_CLOSE_TIME }, false); // whoever began it is told
    }

    /// The directory of the log.
    pub(crate) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// To be called now and then, while other logs need memory: lets go of a segment that was made for a large record which
    /// nobody appends any more.
    pub(crate) fn give_up_untaken(&self) {
        self.shared.give_up_untaken();
    }

    /// Whether the log is read-only because there was no room when it was opened, and there is some now: opening it
    /// again makes it writable.
    pub(crate) fn has_room_again(&self) -> bool {
        self.shared.opened_full.is_some() && recovery::has_room(&self.shared)
    }

    /// Whether the log is read-only because there was no room when it was opened.
    pub(crate) fn was_opened_full(&self) -> bool {
        self.shared.opened_full.is_some()
    }

    /// Whether it refuses appends, or will as soon as its segment is full, for now or for good: it is damaged, has
    /// failed, or finds no room on the disk for what was appended or for the next segment.
    pub(crate) fn refuses_appends(&self) -> bool {
        self.writable().is_err() || self.shared.flush.full().is_some() || self.shared.roll.cannot_prepare()
    }

    /// Ends a log that could only be read, so that another opening can take its place: waiters get an error.
    pub(crate) fn give_way(&self) {
        self.shared.ending.set(End::Reopened); // or it has ended already
        self.shared.stop();
        self.shared.trimmer.settle();
        let _ = self.shared.seal_rest(); // there is nothing to seal: gives up what it has claimed
    }

    /// Whether closing the log would not wait: everything is durable, becomes so within a moment, or never will; and
    /// the maintenance task is idle, or becomes so within a moment.
    pub(crate) fn settles_soon(&self) -> bool {
        let last = self.next_offset().checked_sub(1);
        if self.writable().is_ok() && last.is_some_and(|last| !self.shared.durable_soon(last)) {
            return false;
        }
        (0..CHECKS).any(|attempt| {
            if attempt > 0 {
                std::thread::sleep(CHECK_PAUSE);
            }
            self.writable().is_err() || !self.shared.roll.is_busy() && !self.shared.cursors.is_writing_file()
        })
    }

    /// Stops a log that is being deleted: appends and waiters get an error, and nothing more is written.
    pub(crate) fn abandon(&self) {
        self.shared.ending.set(End::Deleted); // or it has ended already
        self.shared.stop(); // waiters are told at once
        let _closing = lock(&self.handles.closed); // one of its clones may be closing it
        // Wait here and now: later there may be another log at this path, whose files have the same names.
        self.shared.stop_tasks();
        self.shared.flush.settle();
        self.shared.settle();
        let _ = self.shared.seal_rest(); // it has failed: nothing is sealed
    }

    /// Like [`close`](Self::close), for one of several logs: if the disk has no room, waits for some for at most `left`,
    /// which is reduced by the time that this took.
    pub(crate) fn close_within(self, left: &mut Duration) -> Result<(), Error> {
        self.close_in_place(left, true)
    }

    /// Like [`close`](Self::close), for a log that [`settles_soon`](Self::settles_soon), and for callers that have
    /// other logs to serve. If there is no room for the mark of a clean close, none is left and nothing is waited for:
    /// the next opening reads more.
    pub(crate) fn close_idle(self) -> Result<(), Error> {
        self.close_in_place(&mut { MAX_CLOSE_TIME }, false)
    }
}
