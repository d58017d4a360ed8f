//! The flusher: group commit.
//!
//! A commit takes all that is published without a gap, writes it with one call, raises `durable`, and wakes the
//! waiters. One thread commits at a time, the one that holds the lock of the flusher's position: a thread of the
//! flusher's pool, for async callers and for records that nobody waits for; or a thread that waits for its own record,
//! which saves two context switches (see `docs/decisions/0001-waiters-commit.md`). Threads that arrive meanwhile wait
//! for the lock, and then find their record durable, or commit everything that has arrived.
//!
//! The flusher is a task, run by a pool of threads for all logs. It is idle while there is nothing to write; the first
//! append wakes it, and it lingers a millisecond for more, unless a caller waits.

mod closing;
mod waiting;

use super::{
    Durability, Error, LINGER, Shared,
    roll::{Active, Job},
    stats,
    task::{Schedule, Task, TurnEnd},
};
use crate::{
    chunk::{Chunk, ChunkPosition},
    pauses::Pauses,
    reports,
    segment::{Segment, file::SegmentFile},
    sync::{Arc, AtomicBool, AtomicU64, Backoff, Mutex, Ordering, lock, try_lock},
};
pub(crate) use closing::MAX_CLOSE_TIME;
use std::{ops::RangeInclusive, time::Duration};

/// The most words that one commit writes, to the next end of a batch: 8 MiB, where the disk is at full speed.
const MAX_WORDS: u32 = 1 << 20;
/// After a commit of this size the next one does not linger: records are coming fast.
const BUSY_BYTES: u64 = 256 << 10;
/// Writes smaller than this gain from zeros ahead of them.
const SMALL_BYTES: u64 = 64 << 10;

/// How far the log is durable, in terms of segments.
pub(super) struct CommitPosition {
    pub(super) segment: Arc<Segment>,
    pub(super) chunk: Arc<Chunk>,
    pub(super) done: ChunkPosition,
    /// Whether the segment's file has its header and name.
    pub(super) begun: bool,
    /// What holds commits up, if the last attempt came to nothing.
    held_up: Option<HeldUp>,
}

/// Why the last attempt to write came to nothing, and when the next one is due, whoever makes it: many may wait, and each
/// attempt may write many MiB until it finds that there is still no room.
struct HeldUp {
    error: Error,
    /// When the next attempt is due, by the machine's clock.
    due: Duration,
    /// How long after each attempt that is.
    pauses: Pauses,
}

/// The outcome of a commit.
enum Committed {
    /// This many bytes are durable; 0 if there was nothing to write.
    Bytes(u64),
    /// The system could not begin the write, for lack of descriptors or memory, or could not finish it, for lack of room.
    /// None of it counts. The same range is written again after this time, and not earlier.
    Later(Duration, Error),
    /// The writer has failed, now or before.
    Failed,
}

/// The first and the longest pause before a commit that could not be made is tried again. Each pause is twice the one
/// before.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(4)..=Duration::from_secs(1);

impl CommitPosition {
    pub(super) fn new(active: &Active, done: ChunkPosition, begun: bool) -> Self {
        let (segment, chunk) = (Arc::clone(&active.segment), Arc::clone(&active.chunk));
        Self { segment, chunk, done, begun, held_up: None }
    }

    fn file(&self) -> std::sync::Arc<SegmentFile> {
        self.segment.file().expect("a segment keeps its file until it is sealed, which comes later")
    }
}

/// What the flusher shares with callers that append and wait.
pub(crate) struct Flusher {
    position: Mutex<CommitPosition>,
    task: std::sync::Arc<Task<Shared>>,
    /// Whether a turn keeps the time of the active segment up to date. Otherwise, each append does so before it uses it.
    keeps_time: AtomicBool,
    /// Whether the maintenance task has been asked for zeros ahead.
    zeroing: AtomicBool,
    /// Whether the active segment is to be begun although it has no record: then all before it can be dropped.
    begins_empty: AtomicBool,
    /// Why the last commit found no room on the disk. Written only by the thread that commits.
    full: Mutex<Option<Error>>,
    /// Whether `full` is set. Each append checks this, and takes the lock only if it is true.
    is_full: AtomicBool,
    /// The bytes of frames that were committed since the log was opened.
    committed: AtomicU64,
}

impl Flusher {
    pub(super) fn new(position: CommitPosition, threads: std::sync::Arc<dyn Schedule>) -> Self {
        let task = Task::new(threads, Shared::flusher_turn, Shared::panicked);
        let new = || AtomicBool::new(false);
        Self {
            position: Mutex::new(position),
            task,
            keeps_time: new(),
            zeroing: new(),
            begins_empty: new(),
            full: Mutex::new(None),
            is_full: new(),
            committed: AtomicU64::new(0),
        }
    }

    /// Waits for a caller that is committing. Called after the log has failed: then no other begins.
    #[cfg(feature = "store")]
    pub(super) fn settle(&self) {
        drop(lock(&self.position));
    }

    /// The bytes of frames that were committed since the log was opened.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed) // it orders nothing
    }

    /// Why nothing is to be appended for the moment: the last commit found no room on the disk.
    #[inline]
    pub(super) fn full(&self) -> Option<Error> {
        // Relaxed: an append may just as well have come a moment earlier.
        if self.is_full.load(Ordering::Relaxed) { self.why_full() } else { None }
    }

    #[cold]
    fn why_full(&self) -> Option<Error> {
        lock(&self.full).clone()
    }

    /// Whether commits have to wait for the system.
    #[cfg(feature = "store")]
    pub(super) fn is_held_up(&self) -> bool {
        lock(&self.position).held_up.is_some()
    }

    pub(super) fn start(&self, shared: &Arc<Shared>) {
        self.task.start(Arc::clone(shared));
    }

    pub(super) fn stop(&self) {
        self.task.stop();
    }

    /// Asks for a commit without lingering, because a caller waits.
    pub(super) fn kick(&self) {
        self.task.kick();
    }

    /// Whether all records that are not on the disk are in memory that outlives the process, and can be restored from
    /// there.
    #[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
    pub(super) fn is_backed(&self) -> bool {
        let mut segment = Some(Arc::clone(&lock(&self.position).segment));
        while let Some(this) = segment {
            if !this.chunk.load_full().is_some_and(|chunk| chunk.has_backing()) {
                return false;
            }
            segment = this.next.load_full();
        }
        true
    }

    /// Whether the flusher was idle a moment ago. May be out of date.
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_idle(&self) -> bool {
        self.task.is_idle()
    }

    /// Whether a turn of the flusher keeps the active segment's time up to date. It does so before each write, so the
    /// time may be as old as the write in progress. The answer may be slightly out of date.
    #[inline]
    pub(super) fn keeps_time(&self) -> bool {
        self.keeps_time.load(Ordering::Acquire) // see `KeepsTime`
    }

    /// Something was appended: if the flusher is idle, it gets a turn after this time.
    pub(super) fn wake_if_idle(&self, linger: Duration) {
        self.task.wake_if_idle(linger);
    }

    /// Makes the flusher begin the active segment's file even if the segment has no record.
    pub(super) fn begin_empty(&self) {
        self.begins_empty.store(true, Ordering::SeqCst);
        self.kick();
    }

    pub(super) fn zeros_done(&self) {
        self.zeroing.store(false, Ordering::SeqCst);
    }
}

/// A turn that keeps the time, until it ends: an append that comes after that may come hours later.
struct KeepsTime<'a>(&'a AtomicBool);

impl KeepsTime<'_> {
    // Release: an append that sees this sees the time that was brought up to date before.
    fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Drop for KeepsTime<'_> {
    // Relaxed: an append that sees this a moment late uses the time of a moment earlier.
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Shared {
    /// A turn of the flusher: commits until there is nothing to write, or nothing can be written for the moment.
    fn flusher_turn(&self) {
        let task = &self.flush.task;
        let backoff = Backoff::new();
        let keeps_time = KeepsTime(&self.flush.keeps_time);
        while !self.stopping.load(Ordering::SeqCst) {
            self.refresh_clock();
            keeps_time.begin();
            let kicked = task.take_kick(); // before looking: later kicks are heard later
            let position =
                if kicked { Some(lock(&self.flush.position)) } else { try_lock(&self.flush.position) };
            let Some(mut position) = position else {
                match task.resume_after(LINGER) {
                    TurnEnd::Over => return, // a waiting thread is committing, and takes everything
                    TurnEnd::Continue => continue,
                }
            };
            let committed = self.commit(&mut position);
            let (chunk, done) = (Arc::clone(&position.chunk), position.done);
            drop(position);
            let end = match committed {
                Committed::Later(pause, _) => task.resume_after(pause),
                // A commit that wrote this much shows that records arrive fast.
                Committed::Bytes(bytes) if bytes >= BUSY_BYTES => TurnEnd::Continue,
                // The chunk is closed and has no successor, and perhaps no append comes to link one. Linking one is a kick.
                Committed::Bytes(0) if chunk.end() == Some(done) => task.sleep_unless(|| false),
                Committed::Bytes(0) if !chunk.probe_quiescent(done) => {
                    backoff.snooze(); // reserved, and not yet published: an appender is copying
                    continue;
                }
                // No append to a later chunk is missed: it comes after the add that closes this one, which the probe sees.
                _ if chunk.probe_quiescent(done) => task.sleep_unless(|| !chunk.probe_quiescent(done)),
                _ => task.resume_after(LINGER),
            };
            backoff.reset();
            if end == TurnEnd::Over || task.yield_turn() == TurnEnd::Over {
                return;
            }
        }
    }

    /// Commits what is published, unless the next attempt is not due yet.
    fn commit(&self, position: &mut CommitPosition) -> Committed {
        if let Some(HeldUp { error, due, .. }) = &position.held_up
            && !self.has_ended()
        {
            let rest = due.saturating_sub(self.env.machine.elapsed());
            if !rest.is_zero() {
                return Committed::Later(rest, error.clone());
            }
        }
        self.commit_now(position)
    }

    fn commit_now(&self, position: &mut CommitPosition) -> Committed {
        if self.has_ended() {
            // After a failed write nothing is known of the blocks, and nothing is written over them.
            return Committed::Failed;
        }
        match self.try_commit(position) {
            Ok(bytes) => {
                self.clear_held_up(position);
                Committed::Bytes(bytes)
            }
            Err(error) if error.is_transient() || error.is_full() => {
                if position.held_up.is_none() {
                    reports::failure(&self.dir, &error, "cannot write yet");
                }
                self.note_full(error.is_full().then(|| error.clone().cannot_grow()));
                let held_up = position.held_up.take();
                let pauses = held_up.map_or_else(|| Pauses::new(PAUSES), |held_up| held_up.pauses);
                let pause = pauses.next();
                let due = self.env.machine.elapsed() + pause;
                position.held_up = Some(HeldUp { error: error.clone(), due, pauses });
                Committed::Later(pause, error)
            }
            Err(error) => {
                self.fail(&error);
                Committed::Failed
            }
        }
    }

    /// Notes whether the disk is full. Records that are appended already wait for room, however long that takes; further
    /// appends are refused before anything of them is stored.
    fn note_full(&self, full: Option<Error>) {
        let is_full = full.is_some();
        *lock(&self.flush.full) = full;
        if self.flush.is_full.swap(is_full, Ordering::Relaxed) != is_full {
            self.roll.line().bump(); // for appends that wait for the next segment
        }
    }

    fn try_commit(&self, position: &mut CommitPosition) -> Result<u64, Error> {
        loop {
            let to = position.chunk.contiguous(position.done, MAX_WORDS);
            if to != position.done {
                self.write_frames(position, to)?;
                let from = self.advance_durable(position, to);
                self.prepare_next(position, from);
                return Ok(to.bytes() - from.bytes());
            }
            // All of this segment is durable: if it was closed here, continue in the next one.
            if position.chunk.end() != Some(position.done) {
                if position.done.records == 0 && self.flush.begins_empty.swap(false, Ordering::SeqCst) {
                    self.begin_segment(position)?;
                }
                return Ok(0);
            }
            let Some(next) = position.segment.next.load_full().and_then(Active::of) else { return Ok(0) };
            // Before anything releases the chunk that has the frame: see `recovery::restore`.
            next.chunk.set_predecessor(position.chunk.predecessor(position.done.records));
            self.leave_segment(position);
            (position.segment, position.chunk) = (Arc::clone(&next.segment), Arc::clone(&next.chunk));
            (position.done, position.begun) = (ChunkPosition::default(), false);
        }
    }

    /// Writes the frames from the position to `to`; the first ones of a segment after its header and its name. They are
    /// on the disk when this returns, and nothing has been told of it.
    fn write_frames(&self, position: &mut CommitPosition, to: ChunkPosition) -> Result<(), Error> {
        self.begin_segment(position)?;
        let file = position.file();
        let started_at = self.env.machine.elapsed();
        file.write(&position.chunk, position.done, to)
            .map_err(Error::io("write to a segment in", &self.dir))?;
        let took = self.env.machine.elapsed().saturating_sub(started_at);
        let records = u64::from(to.records - position.done.records);
        stats::committed(took.as_micros() as u64, records, to.bytes() - position.done.bytes());
        Ok(())
    }

    /// Writes the header of the position's segment, and gives its file its name, unless that was done.
    fn begin_segment(&self, position: &mut CommitPosition) -> Result<(), Error> {
        if !position.begun {
            let begun = position.file().begin(&*self.env.disk, &self.dir, &position.segment.header);
            begun.map_err(Error::io("begin a segment in", &self.dir))?;
            position.begun = true;
            self.flush.begins_empty.store(false, Ordering::SeqCst); // it has begun
            self.chain_add(&position.segment);
        }
        Ok(())
    }

    /// Nothing holds commits up any more.
    fn clear_held_up(&self, position: &mut CommitPosition) {
        if position.held_up.take().is_some() {
            self.note_full(None);
        }
    }

    /// The frames up to `to` are on the disk: moves the position there, and raises `durable`. Returns where it was.
    fn advance_durable(&self, position: &mut CommitPosition, to: ChunkPosition) -> ChunkPosition {
        self.clear_held_up(position); // before callers hear of it, who may append at once
        let from = std::mem::replace(&mut position.done, to);
        self.flush.committed.fetch_add(to.bytes() - from.bytes(), Ordering::Relaxed);
        self.durable.advance(position.segment.base() + u64::from(to.records));
        if self.options.durability == Durability::Memory {
            // Readers wait for this frontier, and an append that was not allowed to wait may not have raised it.
            self.published.advance(self.durable.get());
        }
        from
    }

    /// A commit has come from `from` to the position: asks maintenance for what is needed next.
    fn prepare_next(&self, position: &CommitPosition, from: ChunkPosition) {
        let to = position.done;
        self.roll.committed(from, to, position.chunk.capacity(), self.options.first_segment_bytes);
        self.look_for_backing();
        let wants_zeros = to.bytes() - from.bytes() < SMALL_BYTES && position.file().wants_zeros();
        if wants_zeros && !self.flush.zeroing.swap(true, Ordering::SeqCst) {
            self.roll.send(Job::ZeroAhead(Arc::clone(&position.segment)));
        }
    }

    /// The segment is closed, and all of it durable.
    fn leave_segment(&self, position: &CommitPosition) {
        let segment = Arc::clone(&position.segment);
        self.roll.written();
        if position.done.records > 0 {
            self.roll.send(Job::Seal(segment, position.done));
        } else if position.begun {
            segment.give_up();
            self.roll.share().release(segment.header.capacity);
            self.roll.send(Job::Prepare); // its successor has the same base, and takes its file's name
        } else {
            self.roll.send(Job::Discard(segment));
        }
    }
}
