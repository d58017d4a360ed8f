//! Trimming: whole segments leave the chain, and then their files are removed.

use super::{Error, Log, Shared};
use crate::{
    segment::{Segment, file},
    sync::{Arc, Mutex, lock, try_lock},
};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::{collections::VecDeque, io, time::Duration};
#[cfg(feature = "store")]
use {
    super::{CHECK_PAUSE, CHECKS, room::WaitFor},
    crossbeam::channel::TryRecvError,
};

/// Files that are removed at once: in between, the maintenance task does its other work.
const FILES_PER_SLICE: usize = 8;

/// How long [`Log::trim_to`] waits for the last records to be durable.
const MAX_WAIT_FOR_LAST: Duration = Duration::from_secs(5);

/// Segments that have left the chain, and whose files are still to be removed.
#[derive(Default)]
struct Removals {
    /// By their base offsets, in order.
    files: VecDeque<u64>,
    /// Set for good when it is not known which names are durably gone: removing more could leave a gap.
    failed: Option<Error>,
}

/// What is being trimmed.
pub(crate) struct Trimmer {
    /// Held while segments are hidden and their files removed.
    removals: Mutex<Removals>,
    /// The answer of a trim that no caller waits for any more.
    #[cfg(feature = "store")]
    unanswered: Mutex<Option<Receiver<Result<u64, Error>>>>,
}

impl Trimmer {
    pub(super) fn new() -> Self {
        Self {
            removals: Mutex::new(Removals::default()),
            #[cfg(feature = "store")]
            unanswered: Mutex::new(None),
        }
    }

    /// Whether no file is left of what was trimmed, and nobody is removing one.
    pub(super) fn is_done(&self) -> bool {
        try_lock(&self.removals)
            .is_some_and(|removals| removals.files.is_empty() && removals.failed.is_none())
    }

    /// Waits until no file is being removed. Called when the log has ended, so that none is removed after that.
    pub(super) fn settle(&self) {
        drop(lock(&self.removals));
    }
}

impl Log {
    /// Drops whole segments whose records are all below `before`, and returns the first offset that is left. Durable on
    /// return. Readers that hold records keep them.
    ///
    /// Never drops the segment being written. Drops the last segment with records only if its successor's file exists,
    /// as it does after opening or [`retain`](Self::retain).
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Failed`], [`Error::Closed`], [`Error::Io`].
    pub fn trim(&self, before: u64) -> Result<u64, Error> {
        #[cfg(feature = "store")]
        let before = self.save_producers_before(before, WaitFor::Anything)?;
        self.shared.trim(before)
    }

    /// Like [`trim`](Self::trim), but can also drop the segment being written: if `before` is the next offset, that
    /// segment is ended and dropped, and only the next offset is left. While the disk has no room for the next segment,
    /// or takes longer than some seconds, it stays, and the offset returned is lower than `before`.
    ///
    /// # Errors
    /// As [`trim`](Self::trim). [`Error::BeyondEnd`]: the log ends before `before`; nothing was dropped.
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// log.append_batch_from(["a", "b", "c"])?;
    /// assert_eq!(log.trim_to(3)?, 3);
    /// assert_eq!(log.append(b"d")?, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn trim_to(&self, before: u64) -> Result<u64, Error> {
        let end = self.next_offset();
        if before > end {
            return Err(Error::BeyondEnd { offset: before, end });
        }
        if let Some(last) = before.checked_sub(1)
            && before == end
            && self.first_offset() < end
            && self.writable().is_ok()
            && self.shared.wait_durable_for(last, MAX_WAIT_FOR_LAST)?
        {
            self.shared.roll_at(end);
        }
        self.trim(before)
    }

    /// The name of [`trim_to`](Self::trim_to) in earlier versions.
    ///
    /// # Errors
    /// As `trim_to`.
    #[deprecated(note = "use `trim_to`")]
    pub fn trim_all(&self, before: u64) -> Result<u64, Error> {
        self.trim_to(before)
    }

    /// Whether old segments can be dropped, even if there is no room for writing.
    #[cfg(feature = "store")]
    pub(crate) fn can_trim(&self) -> bool {
        let full = self.shared.opened_full.as_ref().is_some_and(|full| !full.is_read_only);
        self.writable().err().is_none_or(|error| error.is_full() && full)
    }

    /// Whether the log begins there, also on the disk.
    pub(super) fn is_trimmed_to(&self, offset: u64) -> bool {
        offset == self.first_offset() && self.shared.trimmer.is_done()
    }
}

impl Shared {
    /// Whether callers trim by themselves: a log that was opened without room has no maintenance task, and no appends.
    /// Trimming frees the room.
    fn trims_itself(&self) -> bool {
        self.opened_full.is_some() && !self.has_stopped()
    }

    pub(super) fn trim(&self, before: u64) -> Result<u64, Error> {
        while self.trims_itself() {
            if let Some(first) = self.trim_now(before)? {
                return Ok(first);
            }
        }
        self.writable()?;
        let (answer, answered) = crossbeam::channel::bounded(1);
        self.roll.trim(before, answer);
        let trimmed = self.await_trim(&answered, std::iter::repeat(Duration::from_millis(100)))?;
        trimmed.ok_or(Error::Closed) // not reached: the pauses never end
    }

    /// Waits for the maintenance task's answer for at most the sum of `pauses`; `None` if there is none by then.
    fn await_trim(
        &self,
        answered: &Receiver<Result<u64, Error>>,
        pauses: impl Iterator<Item = Duration>,
    ) -> Result<Option<u64>, Error> {
        for pause in pauses {
            self.env.maintenance.help();
            match answered.recv_timeout(pause) {
                Ok(trimmed) => return trimmed.map(Some),
                // Perhaps nothing is left that answers.
                Err(RecvTimeoutError::Timeout) => self.writable()?,
                Err(RecvTimeoutError::Disconnected) => return self.writable().and(Err(Error::Closed)),
            }
        }
        Ok(None)
    }

    /// Like [`trim`](Self::trim), for callers that have other logs to serve: a longer trim continues by itself.
    #[cfg(feature = "store")]
    pub(super) fn trim_soon(&self, before: u64) -> Result<u64, Error> {
        if self.trims_itself() {
            return self.trim_now(before)?.ok_or(Error::WouldBlock);
        }
        self.writable()?;
        let mut unanswered = lock(&self.trimmer.unanswered);
        if let Some(answered) = &*unanswered
            && matches!(answered.try_recv(), Err(TryRecvError::Empty))
        {
            return Err(Error::WouldBlock); // otherwise a hanging maintenance task would collect more requests each time
        }
        let (answer, answered) = crossbeam::channel::bounded(1);
        self.roll.trim(before, answer);
        if let Some(first) = self.await_trim(&answered, std::iter::repeat_n(CHECK_PAUSE, CHECKS as usize))? {
            return Ok(first);
        }
        *unanswered = Some(answered);
        Err(Error::WouldBlock)
    }

    /// Trims, on the maintenance thread, for a while: `None` if there is more to be done. First readers stop finding
    /// the segments, then the files are removed, the oldest first, and each durably before the next one, even if that
    /// takes several attempts: so a log that opens after a crash begins a little earlier, and has no gap.
    pub(super) fn trim_now(&self, before: u64) -> Result<Option<u64>, Error> {
        if let Some(full) = self.opened_full.as_ref().filter(|full| full.is_read_only) {
            return Err(full.error.clone()); // before anything is hidden that stays
        }
        // Held over both steps: when several threads trim at once, files go in the order in which they were hidden.
        let mut removals = lock(&self.trimmer.removals);
        self.unlink_segments(before, &mut removals);
        Ok(self.remove_files(&mut removals)?.then(|| self.first_offset()))
    }

    /// Takes out of the chain the segments whose records are all below `before`. The last one with records on the disk
    /// stays unless its successor has a file: a file must say which offset is next, and without one, memory that
    /// continues the log is recognised only by the frame before it.
    fn unlink_segments(&self, before: u64, removals: &mut Removals) {
        let (chain, durable) = (self.chain.load_full(), self.durable.get());
        let last = chain.segments.last().map_or(0, |last| last.base()); // it has its file
        let ended = |segment: &Segment| {
            let end = segment.sealed.get().map(|sealed| segment.base() + u64::from(sealed.records));
            end.is_some_and(|end| end <= before && (end < durable || end == last))
        };
        let max = chain.segments.len() - 1; // the last one may be written to
        // One by one: one that is not sealed yet may precede others that are.
        let ended = chain.segments[..max].iter().take_while(|segment| ended(segment)).count();
        let dropped = &chain.segments[..ended];
        if dropped.is_empty() {
            return;
        }
        let first = chain.segments[dropped.len()].base();
        self.chain_edit(|segments| segments.retain(|segment| segment.base() >= first));
        let last = self.chain.load_full().segments.last().map(Arc::clone);
        for segment in dropped {
            // So that a thread that holds it does not hold all that follow. Not set to none: an appender that was
            // descheduled since this one was full would link another successor to it.
            if let Some(last) = &last {
                segment.next.set(Arc::clone(last));
            }
        }
        // A file is that of the last segment of its base, whichever others there were.
        let is_gone = |segment: &&Arc<Segment>| {
            self.chain.load().segments.iter().all(|kept| kept.base() != segment.base())
        };
        removals.files.extend(dropped.iter().filter(is_gone).map(|segment| segment.base()));
    }

    /// Removes some files of trimmed segments; returns whether none is left.
    fn remove_files(&self, removals: &mut Removals) -> Result<bool, Error> {
        if let Some(error) = &removals.failed {
            return Err(error.clone());
        }
        for _ in 0..FILES_PER_SLICE {
            let Some(&base) = removals.files.front() else { break };
            if self.opened_full.is_some() && self.has_stopped() {
                self.writable()?; // it was closed, deleted, or replaced by another opening: the files are another log's
            }
            let path = self.dir.join(file::name(base));
            match self.env.disk.remove(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // removed, if not yet durably
                removed => removed.map_err(Error::io("remove", &path))?,
            }
            if let Err(error) = self.env.disk.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir)) {
                if !error.is_transient() {
                    removals.failed = Some(error.clone());
                }
                return Err(error);
            }
            removals.files.pop_front();
        }
        Ok(removals.files.is_empty())
    }
}
