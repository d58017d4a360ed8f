//! The spare segment: how it is asked for, handed over, and how a failure to make one is told to those who need it.
//!
//! It is handed over through a queue of one. The maintenance task makes it, and takes it out now and then to look at it; so
//! does an appender that finds it too small. An appender that looks meanwhile finds none, and has to be woken when it
//! is back.
//!
//! # What always holds
//! - There is at most one. Whoever has made another when one is put back releases it.
//! - Each request is followed by an attempt to make a spare segment, or is kept until there is memory for it.
//!
//! # Orderings
//! All atomics are `SeqCst`: they are used once per segment, where their cost does not count, and pairs of them are
//! reasoned about as if one order existed. The exception is `files`, which is `Relaxed` where it only numbers names. These
//! pairs matter:
//! - `asked` is set before the task is kicked, and taken by a turn before it makes a spare segment: a request that
//!   arrives after that gets another turn.
//! - `short` is set before the line is bumped, and read by callers that were woken. A stale value makes an append wait for at
//!   most [`MAX_PREPARATION_WAIT`](crate::log::room), or refuses it slightly too late.

use super::{PAUSES, growth::Growth};
use crate::{
    chunk::ChunkMemory,
    log::Error,
    pauses::Pauses,
    segment::file::SegmentFile,
    sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock},
};
use crossbeam::queue::ArrayQueue;
use std::time::Duration;

/// How long a refusal is given to others who need a segment: later, they wait for an attempt of their own.
const MAX_REFUSAL_AGE: Duration = Duration::from_millis(250);

/// What the next segment consists of, ready before it is needed.
pub(in crate::log) struct SpareSegment {
    pub(in crate::log) memory: ChunkMemory,
    pub(in crate::log) file: SegmentFile,
}

/// Where the maintenance task and appenders exchange the spare segment.
pub(super) struct SpareSegments {
    ready: ArrayQueue<SpareSegment>,
    asked: AtomicBool,
    /// The most bytes that any append waiting for the next chunk needs.
    needs: AtomicU64,
    /// Whether the memory for records not yet written is used up, as the last attempt to make a spare segment found.
    short: AtomicBool,
    /// Why the last attempt to make a spare segment failed, if it did.
    refusal: Mutex<Option<Error>>,
    /// When that was, by the machine's clock, in milliseconds.
    refused_at: AtomicU64,
    /// How long until the next attempt if nobody asks.
    pause: Pauses,
    /// Files prepared so far, for their temporary names.
    files: AtomicU64,
    /// How many there were when [`give_up_untaken`](Self::give_up_untaken) was last called.
    #[cfg(feature = "store")]
    files_before: AtomicU64,
    pub(super) growth: Growth,
}

impl SpareSegments {
    pub(super) fn new() -> Self {
        Self {
            ready: ArrayQueue::new(1),
            asked: AtomicBool::new(false),
            needs: AtomicU64::new(0),
            short: AtomicBool::new(false),
            refusal: Mutex::new(None),
            refused_at: AtomicU64::new(0),
            pause: Pauses::new(PAUSES),
            files: AtomicU64::new(0),
            #[cfg(feature = "store")]
            files_before: AtomicU64::new(0),
            growth: Growth::new(),
        }
    }

    /// Asks for one of at least `needs` bytes; returns whether the maintenance task has to be told.
    pub(super) fn ask(&self, needs: u64) -> bool {
        self.needs.fetch_max(needs, Ordering::SeqCst);
        self.pause.reset();
        !self.asked.swap(true, Ordering::SeqCst)
    }

    /// Whether one is to be made: it was asked for, or the last attempt has failed.
    pub(super) fn is_wanted(&self) -> bool {
        self.asked.load(Ordering::SeqCst) || self.has_failed()
    }

    /// Takes the request, for an attempt that serves all requests up to now; returns how many bytes are needed.
    pub(super) fn take_request(&self) -> u64 {
        self.asked.store(false, Ordering::SeqCst);
        self.needs()
    }

    /// How many bytes the next segment has to have room for.
    pub(super) fn needs(&self) -> u64 {
        self.needs.load(Ordering::SeqCst)
    }

    /// The next segment is linked, and whoever needs a larger one asks again.
    pub(super) fn forget_needs(&self) {
        self.needs.store(0, Ordering::SeqCst);
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the spare segment, whatever its size.
    pub(super) fn take(&self) -> Option<SpareSegment> {
        self.ready.pop()
    }

    /// Puts one where appenders find it. Returns it if there is another already.
    #[must_use = "what has no place has to be released"]
    pub(super) fn put(&self, spare: SpareSegment) -> Option<SpareSegment> {
        self.ready.push(spare).err()
    }

    /// There is no memory for one: the request is kept for a later turn, which sealing starts. Returns whether the attempt
    /// before this one has found memory.
    pub(super) fn found_no_memory(&self) -> bool {
        self.asked.store(true, Ordering::SeqCst);
        !self.short.swap(true, Ordering::SeqCst)
    }

    /// There is memory for one.
    pub(super) fn found_memory(&self) {
        self.short.store(false, Ordering::SeqCst);
    }

    /// Whether the last attempt has found no memory.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.short.load(Ordering::SeqCst)
    }

    /// An attempt has succeeded.
    pub(super) fn note_success(&self) {
        *lock(&self.refusal) = None;
        self.pause.reset();
    }

    /// Notes that an attempt has failed. Returns whether that is news: the one before had not failed, or for another
    /// reason.
    pub(super) fn note_failure(&self, error: Error, now: Duration) -> bool {
        let mut refusal = lock(&self.refusal);
        let is_new = refusal.as_ref().map(ToString::to_string) != Some(error.to_string());
        *refusal = Some(error);
        self.refused_at.store(now.as_millis() as u64, Ordering::SeqCst);
        is_new
    }

    /// Whether the last attempt to make one has failed.
    pub(super) fn has_failed(&self) -> bool {
        lock(&self.refusal).is_some()
    }

    /// If the last attempt has failed: how long until the next one.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        self.has_failed().then(|| self.pause.next())
    }

    /// Why the last attempt has failed, unless that was so long ago that it may be different `now`.
    pub(super) fn refused_lately(&self, now: Duration) -> Option<Error> {
        let refusal = lock(&self.refusal).clone()?;
        let at = Duration::from_millis(self.refused_at.load(Ordering::SeqCst));
        (now.saturating_sub(at) <= MAX_REFUSAL_AGE).then_some(refusal)
    }

    /// A number for a file's temporary name.
    pub(super) fn next_number(&self) -> u64 {
        self.files.fetch_add(1, Ordering::Relaxed) + 1 // only has to be unique
    }

    /// Called now and then. If a segment of more than `enough` bytes has been ready since the last call, whoever asked
    /// for it has gone away: from now on a smaller one is enough, and a new one is to be asked for. Returns whether
    /// that is so.
    #[cfg(feature = "store")]
    pub(super) fn give_up_untaken(&self, enough: u64) -> bool {
        let made = self.files.load(Ordering::SeqCst);
        let is_the_same = self.files_before.swap(made, Ordering::SeqCst) == made;
        let gives_up = is_the_same && self.needs() > enough && self.is_ready();
        if gives_up {
            // An appender that asks in this moment finds the small one too small, and asks again.
            self.forget_needs();
        }
        gives_up
    }
}
