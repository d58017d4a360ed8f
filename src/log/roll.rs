//! Rolling: from a full chunk to the next one; and the maintenance task, which prepares spare segments, seals, and
//! trims.
//!
//! An appender that finds the active chunk closed links a spare segment to it as its successor, which succeeds for only
//! one appender, and then moves `active` on, which any may do: an appender that is descheduled in between does not stop
//! the others. Appenders do not touch files: the flusher begins the new segment's file when it has something to write.
//!
//! The spare segment is made ahead of time. It is created when the previous one was taken; in a log that has not rolled
//! since it was opened, as soon as appends come fast ([`growth`]), and otherwise when a quarter of the active chunk is on
//! disk: so a log with few records costs no more than its first chunk. It is created only while unwritten chunks leave
//! room for it in the memory budget: that is the backpressure.
//!
//! What the parts of a [`Roller`] are for: [`spares`] hands spare segments over, [`queue`] has the jobs of the maintenance
//! task, [`maintain`] does them, and [`backings`] decides when a backing is looked for again. What an append does while
//! there is no spare segment is in [`room`](super::room).
//!
//! # Orderings
//! `stopping`, `active` and `unwritten` are `SeqCst`: they are changed once per segment or less often, where the cost does
//! not count. What is in the parts is described there.
//! - `stopping` and `active`: see [`stop`] and [`active_if_running`].
//! - `unwritten` only decides whether to wait for the disk: a value that is a moment old delays a spare segment until the
//!   next job that gives memory back.

mod backings;
mod growth;
mod maintain;
mod queue;
mod spares;

use super::{
    Error, Shared,
    budget::{Budget, Claim},
    clock,
    line::Line,
    task::Schedule,
};
use crate::{
    chunk::{Chunk, ChunkPosition, LogBackings, PoolShare, Predecessor},
    disk,
    segment::{Segment, header::Header},
    sync::{Arc, AtomicBool, AtomicU64, Ordering, Swap},
};
use backings::BackingRetry;
use crossbeam::channel::Sender;
pub(super) use queue::Job;
use queue::{MaintenanceQueue, TrimRequest};
use spares::{SpareSegment, SpareSegments};
use std::{ops::RangeInclusive, time::Duration};

/// The segment that takes appends, and its chunk.
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) chunk: Arc<Chunk>,
}

impl Active {
    /// For a segment that is not sealed; `None` if its chunk has gone meanwhile.
    pub(super) fn of(segment: Arc<Segment>) -> Option<Arc<Self>> {
        let chunk = segment.chunk.load_full()?;
        Some(Arc::new(Self { segment, chunk }))
    }
}

/// Makes the successor of `closed`, whose chunk has ended, the active segment. If it has none yet, this thread creates one
/// with `make`, which is given its base offset, and links it; if another thread has linked one meanwhile, that one is the
/// successor, and this thread's goes to `unused`. Returns `false` if there is still no successor, and `true` if `closed`
/// is no longer active.
///
/// `linked` is called after a successor was linked, by this thread or another one, and before it becomes active. It is to
/// kick the flusher, which sleeps when it has come to the end of a segment without a successor. An append does not wake a
/// flusher that it finds awake, though that one may be about to fall asleep. A kick keeps it awake, or wakes it; and it
/// comes before the successor is active, and so before every append to it.
pub(super) fn install_successor(
    active: &Swap<Active>,
    closed: &Arc<Active>,
    make: impl FnOnce(u64) -> Option<Arc<Segment>>,
    unused: impl FnOnce(Arc<Segment>),
    linked: impl FnOnce(),
) -> bool {
    let Some(end) = closed.chunk.end() else { return false };
    if closed.segment.next.load_full().is_none() {
        let Some(spare) = make(closed.segment.base() + u64::from(end.records)) else { return false };
        if !closed.segment.next.set_first(Arc::clone(&spare)) {
            unused(spare);
        }
    }
    linked();
    // If the successor has no chunk any more, it was written and sealed while we slept, and `active` is far ahead.
    let successor = closed.segment.next.load_full().and_then(Active::of);
    successor.is_none_or(|successor| {
        active.replace(closed, successor);
        true
    })
}

/// Stops appends: closes the active chunk, and ensures that no other becomes active.
///
/// After `stopping` is set, `active` is replaced by a copy of itself. So a thread that was about to move it on either
/// still has the original, and its compare-and-swap fails; or it has the copy, and therefore sees `stopping`
/// ([`active_if_running`]).
pub(super) fn stop(active: &Swap<Active>, stopping: &AtomicBool) {
    stopping.store(true, Ordering::SeqCst);
    loop {
        let last = active.load_full();
        last.chunk.close();
        let copy = Active { segment: Arc::clone(&last.segment), chunk: Arc::clone(&last.chunk) };
        if active.replace(&last, Arc::new(copy)) {
            return;
        }
    }
}

/// The active segment, to move on from; `None` once the log has stopped. The order of the two loads matters: see
/// [`stop`].
pub(super) fn active_if_running(active: &Swap<Active>, stopping: &AtomicBool) -> Option<Arc<Active>> {
    let now = active.load_full();
    (!stopping.load(Ordering::SeqCst)).then_some(now)
}

/// How long to wait before trying again what found no room. It doubles up to about a minute, so that attempts that nobody
/// waits for cost next to nothing, however many logs there are.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(64);

/// The state of rolling, shared by appenders and the maintenance task.
pub(crate) struct Roller {
    spares: SpareSegments,
    queue: MaintenanceQueue,
    backing: BackingRetry,
    /// Appenders that wait for room; bumped on a ready segment, a roll or an error.
    line: Line,
    budget: Arc<Budget>,
    share: Arc<PoolShare>,
    /// Chunks that are not all on disk: the active one, and those before it.
    unwritten: AtomicU64,
}

/// The next smaller capacity to try, but at least `least`.
fn smaller(capacity: u64, least: u64) -> u64 {
    (capacity / 4).next_multiple_of(disk::BLOCK).max(least)
}

impl Roller {
    pub(super) fn new(
        budget: Arc<Budget>,
        backings: Option<std::sync::Arc<LogBackings>>,
        threads: std::sync::Arc<dyn Schedule>,
    ) -> Self {
        Self {
            spares: SpareSegments::new(),
            queue: MaintenanceQueue::new(threads),
            line: Line::new(),
            share: budget.share(backings.is_some()),
            budget,
            backing: BackingRetry::new(backings),
            unwritten: AtomicU64::new(1),
        }
    }

    /// The log's share of the pool, which its chunks go back to.
    pub(super) fn share(&self) -> Arc<PoolShare> {
        Arc::clone(&self.share)
    }

    /// The memory of all chunks of the log, as the budget counts it.
    pub(super) fn chunk_bytes(&self) -> u64 {
        self.share.claimed()
    }

    /// Claims room for a chunk of this many bytes, if there is any in the budget.
    pub(super) fn try_claim(&self, capacity: u64) -> Option<Claim> {
        self.budget.try_claim(&self.share, capacity)
    }

    /// Claims room for a chunk of the smallest size.
    pub(super) fn claim_least(&self, capacity: u64) -> Claim {
        Budget::claim_least(&self.share, capacity)
    }

    /// Whether a log must replace its active chunk, which has this capacity, by one of the smallest size: a record that
    /// is larger than that gets its chunk even if there is no room in the budget.
    pub(super) fn is_too_large(&self, capacity: u64, smallest: u64) -> bool {
        capacity > smallest && self.budget.is_over()
    }

    /// A commit has come from one position in a chunk of this capacity to another. Asks for the next chunk: if the
    /// active one is to be replaced by one of the smallest size; or when a quarter of it is on the disk, unless that
    /// was done when appends came fast.
    pub(super) fn committed(&self, from: ChunkPosition, to: ChunkPosition, capacity: u64, smallest: u64) {
        let is_quarter = |at: ChunkPosition| at.bytes() >= capacity / 4;
        let is_due = !is_quarter(from) && is_quarter(to) && !self.spares.growth.is_ahead();
        if self.is_too_large(capacity, smallest) || is_due {
            self.ask(0);
        }
    }

    /// Whether there is a spare segment.
    pub(super) fn is_ready(&self) -> bool {
        self.spares.is_ready()
    }

    /// Whether the last attempt to make a spare segment has failed.
    pub(super) fn cannot_prepare(&self) -> bool {
        self.spares.has_failed()
    }

    /// What appenders that find no room wait for.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    /// The chunk of a segment is all on disk.
    pub(super) fn written(&self) {
        self.unwritten.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn start(&self, shared: &Arc<Shared>) {
        let chunk = &shared.active.load_full().chunk;
        self.spares.growth.note_opening(
            chunk.reserved_bytes(),
            chunk.capacity(),
            shared.env.machine.elapsed(),
        );
        self.queue.start(shared, Job::FaultIn(Arc::clone(chunk)));
    }

    pub(super) fn stop(&self) {
        self.queue.task.stop();
    }

    #[cfg(feature = "store")]
    pub(super) fn is_busy(&self) -> bool {
        self.queue.task.is_running()
    }

    /// Asks for a trim, which is answered when it is done.
    pub(super) fn trim(&self, before: u64, answer: Sender<Result<u64, Error>>) {
        self.queue.trim(TrimRequest { before, answer });
    }

    pub(super) fn send(&self, job: Job) {
        self.queue.send(job);
    }

    /// Asks for a spare segment of at least `needs` bytes, once.
    pub(super) fn ask(&self, needs: u64) {
        if self.spares.ask(needs) {
            self.queue.send(Job::Prepare);
        }
    }

    /// Gives back a successor that was not linked, because another thread's was.
    pub(super) fn discard_unlinked(&self, segment: Arc<Segment>) {
        self.unwritten.fetch_sub(1, Ordering::SeqCst);
        self.send(Job::Discard(segment));
    }

    /// An append finds the active chunk full, and has to wait for the next.
    pub(super) fn found_full(&self, now: Duration) {
        self.spares.growth.found_full(now);
    }

    /// Whether the memory for records not yet written is used up, as the last attempt to make a spare segment found.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.spares.is_short_of_memory()
    }

    /// Why no segment could be prepared, unless that was so long ago that it may be different `now`.
    pub(super) fn refused_lately(&self, now: Duration) -> Option<Error> {
        self.spares.refused_lately(now)
    }

    /// Takes the spare segment, if it is large enough.
    fn take(&self, needs: u64) -> Option<SpareSegment> {
        let spare = self.spares.take()?;
        if spare.memory.capacity() >= needs {
            return Some(spare);
        }
        self.put_back(spare);
        None
    }

    /// Puts a spare segment back, for the maintenance task to replace; if that has created another, this one is
    /// released.
    fn put_back(&self, small: SpareSegment) {
        if let Some(small) = self.spares.put(small) {
            self.send(Job::LetGo(small));
        }
    }
}

impl Shared {
    /// Called now and then. If a segment for a large record has been ready since the last call, whoever asked for it has
    /// gone away: from now on a small one is enough, and replaces it if the budget is exceeded.
    #[cfg(feature = "store")]
    pub(super) fn give_up_untaken(&self) {
        if self.roll.spares.give_up_untaken(self.options.first_segment_bytes) {
            self.roll.ask(0);
        }
    }

    /// Called after each append: has the first spare segment of a log made ahead of time, if appends come fast.
    #[inline]
    pub(super) fn run_ahead(&self, active: &Active) {
        if self.roll.spares.growth.awaits_threshold()
            && self.roll.spares.growth.is_at_threshold(active.chunk.reserved_bytes())
        {
            self.at_threshold();
        }
    }

    #[cold]
    fn at_threshold(&self) {
        if self.roll.spares.growth.pass_threshold(self.env.machine.elapsed()) {
            self.roll.ask(0);
        }
    }

    /// Takes the spare segment and makes a segment of it, for [`install_successor`] to link behind the active one,
    /// whose newest record has the time `newest`. `predecessor` says which record comes before the first one of the
    /// successor. Its backing notes that now if that record is published; if not, `predecessor` is unknown, and the
    /// flusher notes it when it comes to the successor.
    pub(super) fn segment_from_spare(
        &self,
        base: u64,
        needs: u64,
        newest: u64,
        predecessor: Predecessor,
    ) -> Option<Arc<Segment>> {
        let SpareSegment { mut memory, file } = self.roll.take(needs)?;
        let capacity = memory.capacity();
        self.roll.unwritten.fetch_add(1, Ordering::SeqCst);
        self.roll.spares.forget_needs();
        let closed = self.active.load_full().chunk.clone();
        let filled = closed.end().map_or(0, ChunkPosition::bytes);
        self.roll.spares.growth.note_roll(filled, closed.capacity(), self.env.machine.elapsed());
        let created = clock::start_of_segment(self.env.machine.now(), newest);
        if created < newest {
            tracing::warn!(
                dir = %self.dir.display(), offset = base, from = newest, to = created,
                "the clock was set back: times go back at this offset"
            );
        }
        let header = Header { log: self.id, base, capacity, created, secret: self.secret };
        memory.label(&header.label(), predecessor);
        self.roll.note_begun(&memory);
        let chunk = Arc::new(Chunk::new(memory, Some(Arc::clone(&self.roll.share))));
        Some(Arc::new(Segment::new(header, Some(file), chunk)))
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
