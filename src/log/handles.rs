//! The clones of a [`Log`]: they are counted, and the last one to be dropped closes the log, unless one of them has closed
//! it before.
//!
//! # What always holds
//! - A log is closed once, whoever asks for it, and how that went is the answer to all who ask.
//! - When closing has returned, nothing works for the log in the background, and its directory is free.
//!
//! # Orderings
//! `count`: a clone is made from one that is counted, so adding is `Relaxed`. The last one to be dropped closes the log after
//! all that the others did, so subtracting is `AcqRel`. `is_closing` is stored with the lock of `closed`, `Release`, and loaded
//! without it, `Acquire`, where a log that is being closed is not to be used any more.

use super::{Error, Log, Shared, end::End, flush::MAX_CLOSE_TIME};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, lock};
use std::time::Duration;

/// What the clones of a [`Log`] have in common, besides what readers, futures and tasks share with them.
pub(super) struct Handles {
    /// How many there are.
    count: AtomicU64,
    /// Whether the log's tasks were started.
    is_running: bool,
    /// The next offset when it was opened.
    pub(super) next_at_opening: u64,
    /// The result of closing, once the log is closed. Locked while it is being closed.
    pub(super) closed: Mutex<Option<Result<(), Error>>>,
    /// Whether closing has begun.
    is_closing: AtomicBool,
}

impl Handles {
    /// For a log that was just opened, and has one handle.
    pub(super) fn new(shared: &Shared, is_running: bool) -> Self {
        Self {
            count: AtomicU64::new(1),
            is_running,
            next_at_opening: shared.next_offset(),
            closed: Mutex::new(None),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Whether there is more than one.
    #[cfg(feature = "store")]
    pub(super) fn are_many(&self) -> bool {
        self.count.load(Ordering::Acquire) > 1
    }

    /// Whether one of them has closed the log, or is closing it.
    #[cfg(feature = "store")]
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }
}

impl Clone for Log {
    fn clone(&self) -> Self {
        self.handles.count.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared), handles: Arc::clone(&self.handles) }
    }
}

impl Log {
    /// Closes the log for all its clones, as [`shutdown`](Self::shutdown) does.
    ///
    /// # Errors
    /// As [`shutdown`](Self::shutdown).
    pub fn close(self) -> Result<(), Error> {
        self.shutdown()
    }

    /// Stops appends, makes everything that was appended durable, and closes the log for all its clones; on return the
    /// directory can be opened again. Then everything that changes the log returns [`Error::Closed`]. Records that were
    /// read stay as they are; reading more returns [`Error::Closed`] if it needs a file that is not open. The memory of the
    /// last segment is given back when the last clone, reader, cursor and record is dropped.
    ///
    /// If another thread closes the log at the same time, waits for that. Returns the same each time. Wakers of futures are
    /// called meanwhile: they must not close the log, or ask its store for it, by themselves.
    ///
    /// # Errors
    /// [`Error::Failed`]: not everything is known to be durable.
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// let writer = log.clone();
    /// let writing = std::thread::spawn(move || while writer.append(b"tick").is_ok() {});
    /// log.shutdown()?; // the thread's next append returns `Error::Closed`
    /// writing.join().unwrap();
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown(&self) -> Result<(), Error> {
        self.close_in_place(&mut { MAX_CLOSE_TIME }, true)
    }

    /// Closes the log, unless that was done before. If the disk has no room, waits for some for at most `left`, which is
    /// reduced by the time that this took; for the mark of a clean close only if `waits_for_mark`.
    pub(super) fn close_in_place(&self, left: &mut Duration, waits_for_mark: bool) -> Result<(), Error> {
        let mut closed = lock(&self.handles.closed);
        if let Some(result) = &*closed {
            return result.clone();
        }
        self.handles.is_closing.store(true, Ordering::Release);
        let result =
            if self.handles.is_running { self.finish(left, waits_for_mark) } else { self.shared.seal_rest() };
        self.shared.stop();
        self.shared.settle();
        self.shared.ending.set(End::Closed); // or it has ended already
        self.shared.stop(); // wakes those that have not seen that
        self.shared.unlock();
        *closed = Some(result.clone());
        result
    }

    /// Makes all records durable, and stops the log's tasks.
    fn finish(&self, left: &mut Duration, waits_for_mark: bool) -> Result<(), Error> {
        #[cfg(feature = "store")]
        if !self.shared.has_ended()
            && !self.shared.flush.is_held_up() // otherwise saving would wait as long as the commits
            && let Err(error) = self.save_producers()
        {
            // Nothing is lost: the producers are in the log, which only has to be read again.
            tracing::warn!(dir = %self.shared.dir.display(), %error, "producers could not be saved");
        }
        self.shared.stop_tasks();
        self.shared.commit_rest(left, waits_for_mark)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.handles.count.fetch_sub(1, Ordering::AcqRel) > 1 || lock(&self.handles.closed).is_some() {
            return;
        }
        if let Err(error) = self.close_in_place(&mut { MAX_CLOSE_TIME }, true)
            && !self.shared.ending.get().is_some_and(End::is_deletion)
        {
            tracing::error!(dir = %self.shared.dir.display(), %error, "closing the log failed");
        }
    }
}
