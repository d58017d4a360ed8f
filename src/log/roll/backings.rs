//! The backings of a log's chunks: each chunk should have one, and does as soon as there is room for it in shared memory.
//!
//! # Orderings
//! `lacks` and `due` are `SeqCst`, as all that is used once per segment. They only decide when a backing is looked for: a
//! value that is a moment old delays that until the next commit.

use super::{PAUSES, Roller, SpareSegment, smaller};
use crate::{
    chunk::{ChunkMemory, LogBackings},
    disk,
    log::{Shared, budget::Claim},
    pauses::Pauses,
    sync::{AtomicBool, AtomicU64, Ordering},
};
use std::{io, sync::Arc, time::Duration};

/// Where backings come from, and when to try again after one could not be created.
pub(super) struct BackingRetry {
    /// Where chunk memory is kept that outlives the process; `None` if the log's chunks need no backing.
    pub(super) source: Option<Arc<LogBackings>>,
    /// Whether there was no room for a backing of the active chunk, or of the next one.
    lacks: AtomicBool,
    /// When the next attempt is due, in milliseconds by the machine's clock.
    due: AtomicU64,
    pause: Pauses,
}

impl BackingRetry {
    pub(super) fn new(source: Option<Arc<LogBackings>>) -> Self {
        let lacks = AtomicBool::new(false);
        let due = AtomicU64::new(0);
        Self { source, lacks, due, pause: Pauses::new(PAUSES) }
    }

    /// There was no room for a backing: the next attempt comes later.
    fn defer(&self, now: Duration) {
        let due = now.saturating_add(self.pause.next());
        self.due.store(due.as_millis() as u64, Ordering::SeqCst);
        self.lacks.store(true, Ordering::SeqCst);
    }

    /// The active chunk has a backing, or the next one has, or there is no reason any more to look for one.
    fn found(&self) {
        self.lacks.store(false, Ordering::SeqCst);
        self.pause.reset();
    }

    /// Whether a backing is to be looked for now.
    fn is_due(&self, now: Duration) -> bool {
        self.lacks.load(Ordering::SeqCst) && self.due.load(Ordering::SeqCst) <= now.as_millis() as u64
    }
}

impl Roller {
    /// Memory for a chunk of `capacity`, which may have to be faulted in. If the log's chunks should have backings, it
    /// is a backing, which may be smaller, down to `least`. If there is no room even for that, it is memory that is
    /// lost when the process is killed.
    ///
    /// # Errors
    /// As [`ChunkMemory::new`], and transient errors of creating a backing: a moment without descriptors must not leave a
    /// chunk without it.
    pub(in crate::log) fn memory(&self, capacity: u64, least: u64, now: Duration) -> io::Result<ChunkMemory> {
        let Some(backings) = &self.backing.source else {
            return self.share.take(capacity).map_or_else(|| ChunkMemory::new(capacity), Ok);
        };
        match self.backed(backings, capacity, least) {
            Err(error) if !disk::is_transient(&error) => {
                backings.warn(&error);
                self.backing.defer(now);
                ChunkMemory::new(capacity)
            }
            done => done,
        }
    }

    /// A backing for a chunk of at most `capacity` and at least `least`. Where there is no room, some is made: by giving up
    /// those of chunks that are on the disk.
    fn backed(&self, backings: &Arc<LogBackings>, capacity: u64, least: u64) -> io::Result<ChunkMemory> {
        let mut capacity = capacity;
        loop {
            if let Some(memory) = self.share.take(capacity) {
                return Ok(memory);
            }
            let error = match ChunkMemory::backed(capacity, backings) {
                Err(error) if disk::is_full(&error) => error,
                done => return done,
            };
            let is_least = capacity <= least;
            if self.budget.give_up_backings(&self.share, capacity, is_least) {
                continue; // another log may be quicker
            }
            if is_least {
                return Err(error);
            }
            capacity = smaller(capacity, least);
        }
    }

    /// Notes that a segment begins in this memory.
    pub(in crate::log) fn note_begun(&self, memory: &ChunkMemory) {
        if let Some(backings) = &self.backing.source
            && !memory.has_backing()
        {
            backings.begun_without();
        }
    }

    /// How many segments have begun without the backing that they should have.
    #[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
    pub(in crate::log) fn fallbacks(&self) -> u64 {
        self.backing.source.as_ref().map_or(0, |backings| backings.fallbacks())
    }

    #[cfg(all(test, not(loom)))]
    pub(in crate::log) fn backings(&self) -> Option<Arc<LogBackings>> {
        self.backing.source.clone()
    }

    /// From now on shared memory stays when the log is dropped: its content is for the next opening.
    pub(in crate::log) fn keep_shared_memory(&self) {
        self.backing.source.iter().for_each(|backings| backings.keep());
    }
}

impl Shared {
    /// Called when something is written: lets the maintenance task look for a backing, if the active chunk or the next one
    /// lacks it.
    pub(in crate::log) fn look_for_backing(&self) {
        if self.backing_is_due() {
            self.roll.queue.task.kick();
        }
    }

    pub(super) fn backing_is_due(&self) -> bool {
        self.roll.backing.is_due(self.env.machine.elapsed())
    }

    /// Looks for room for a backing again, if the active chunk or the spare segment lacks one. If there is some, the next
    /// segment has it.
    pub(super) fn get_backing(&self) {
        let roll = &self.roll;
        let Some(backings) = &roll.backing.source else { return };
        let spare = roll.spares.take();
        let has_one = match &spare {
            Some(spare) => spare.memory.has_backing(),
            None => self.active.load_full().chunk.has_backing(),
        };
        let next = if has_one { spare } else { self.backed_instead_of(spare, backings) };
        match next {
            Some(next) => {
                if next.memory.has_backing() {
                    roll.backing.found();
                }
                self.offer(next);
            }
            None if has_one => roll.backing.found(),
            None => {}
        }
        roll.budget.shrink();
        roll.line.bump(); // an appender that looked while it was taken found none, and waits
    }

    /// A spare segment with a backing, which replaces this one without; or else this one.
    fn backed_instead_of(
        &self,
        spare: Option<SpareSegment>,
        backings: &Arc<LogBackings>,
    ) -> Option<SpareSegment> {
        let roll = &self.roll;
        let least = self.least_for(roll.spares.needs());
        let claim = if spare.is_none() { self.claim_next(0) } else { None };
        let capacity = spare.as_ref().map(|spare| spare.memory.capacity());
        let made = capacity.or(claim.as_ref().map(Claim::capacity)).and_then(|capacity| {
            let memory = roll.backed(backings, capacity, least.min(capacity)).ok()?;
            memory.fault_in();
            let file = self.create_segment_file(memory.capacity()).ok()?;
            Some(SpareSegment { memory, file })
        });
        let Some(made) = made else {
            roll.backing.defer(self.env.machine.elapsed());
            return spare;
        };
        let capacity = made.memory.capacity();
        if let Some(spare) = spare {
            roll.share.reduce(spare.memory.capacity(), capacity);
            self.remove_unused(&spare.file);
        }
        if let Some(mut claim) = claim {
            claim.reduce(capacity);
            claim.hand_over();
        }
        Some(made)
    }
}
