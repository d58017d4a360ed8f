//! The flusher: group commit.
//!
//! A commit takes all that is published without a hole, writes it with one call, raises `durable`, and wakes who
//! waits for that. One commits at a time, whoever holds the position's lock: the flusher's thread, for async
//! callers and for records nobody waits for, or a thread that waits for its record and so saves two switches
//! between threads (see `docs/decisions/0001-waiters-commit.md`). Those that come meanwhile wait for the
//! lock, and find their record durable, or commit all that has come.
//!
//! The thread sleeps while there is nothing to write; the first append then wakes it, and it lingers a millisecond
//! for more, unless somebody waits.

use super::{
    Error, LINGER, Shared,
    append::poll_frontier,
    bell::Bell,
    roll::{Active, Job},
    stats,
    wait::Ticket,
};
use crate::{
    chunk::{Chunk, Extent, Memory},
    disk::{Aligned, BLOCK},
    segment::Segment,
    sync::{Arc, AtomicBool, Backoff, Mutex, Ordering, lock, try_lock},
};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

/// The most words that one commit writes, to the next end of a batch: 8 MiB, where the disk is at full speed.
const MOST_WORDS: u32 = 1 << 20;
/// A commit that wrote so much shows that records come fast: then the next one does not linger.
const BUSY_BYTES: u64 = 256 << 10;
/// Writes smaller than this gain from zeros ahead of them.
const SMALL_BYTES: u64 = 64 << 10;

/// How far the log is durable, in terms of segments.
pub(super) struct Position {
    pub(super) segment: Arc<Segment>,
    pub(super) chunk: Arc<Chunk>,
    pub(super) done: Extent,
    /// Whether the segment's file has its header and name.
    pub(super) begun: bool,
    pub(super) bounce: Aligned,
}

impl Position {
    pub(super) fn new(active: &Active, done: Extent, begun: bool) -> std::io::Result<Self> {
        let (segment, chunk) = (Arc::clone(&active.segment), Arc::clone(&active.chunk));
        Ok(Self { segment, chunk, done, begun, bounce: Aligned::new(BLOCK as usize)? })
    }
}

/// What the flusher shares with those who append and wait.
pub(crate) struct Flusher {
    position: Mutex<Position>,
    pub(super) bell: Bell,
    /// Whether the keeper has been asked for zeros ahead.
    zeroing: AtomicBool,
}

impl Flusher {
    pub(super) fn new(position: Position) -> Self {
        Self { position: Mutex::new(position), bell: Bell::default(), zeroing: AtomicBool::new(false) }
    }

    pub(super) fn zeros_done(&self) {
        self.zeroing.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    /// The flusher's thread.
    pub(super) fn run_flusher(&self) {
        self.flush.bell.attach();
        let mut busy = false;
        let backoff = Backoff::new();
        while !self.stopping.load(Ordering::SeqCst) {
            self.tick();
            if self.next_offset() == self.durable.get() {
                self.sleep();
                continue;
            }
            if !self.flush.bell.is_kicked() && !busy {
                std::thread::park_timeout(LINGER);
                self.tick();
            }
            let kicked = self.flush.bell.take_kick(); // before looking: later kicks are heard later
            let position =
                if kicked { Some(lock(&self.flush.position)) } else { try_lock(&self.flush.position) };
            let Some(mut position) = position else {
                std::thread::park_timeout(LINGER); // one who waits is at it, and takes all there is
                continue;
            };
            let committed = self.commit(&mut position);
            drop(position);
            match committed {
                Some(0) => {
                    // Reserved, and not yet published: an appender is copying.
                    self.flush.bell.kick_self();
                    backoff.snooze();
                }
                Some(bytes) => {
                    busy = bytes >= BUSY_BYTES;
                    backoff.reset();
                }
                None => return,
            }
        }
    }

    /// Sleeps until an append or a kick, unless there was one.
    fn sleep(&self) {
        let Some(mut position) = try_lock(&self.flush.position) else { return }; // somebody commits: look again
        if self.commit(&mut position) != Some(0) {
            return;
        }
        let (chunk, done) = (Arc::clone(&position.chunk), position.done);
        drop(position);
        if chunk.end().is_some() {
            std::thread::park_timeout(LINGER); // full, and `commit` has found no successor yet
            return;
        }
        // An append to a later chunk comes after the add that closes this one, which is seen like any other.
        self.flush.bell.sleep_unless(|| !chunk.is_at(done) || self.stopping.load(Ordering::SeqCst));
        if self.next_offset() == self.durable.get() {
            self.flush.bell.take_kick(); // kicked for what is durable already
        }
        self.tick();
    }

    /// Commits what is published. The bytes written; `None` if the writer has failed, now or before.
    fn commit(&self, position: &mut Position) -> Option<u64> {
        if self.failed.get().is_some() {
            return None; // after a failed write nothing is known of the blocks, and nothing is written over them
        }
        match self.try_commit(position) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn try_commit(&self, position: &mut Position) -> Result<u64, Error> {
        loop {
            let to = position.chunk.contiguous(position.done, MOST_WORDS);
            if to != position.done {
                return self.write(position, to);
            }
            // All of this segment is durable: if it was closed here, go on in the next one.
            if position.chunk.end() != Some(position.done) {
                return Ok(0);
            }
            let Some(next) = position.segment.next.load_full().and_then(Active::of) else { return Ok(0) };
            self.leave_segment(position);
            (position.segment, position.chunk) = (Arc::clone(&next.segment), Arc::clone(&next.chunk));
            (position.done, position.begun) = (Extent::default(), false);
        }
    }

    fn write(&self, position: &mut Position, to: Extent) -> Result<u64, Error> {
        let file =
            position.segment.file().expect("a segment keeps its file until it is sealed, which comes later");
        if !position.begun {
            file.begin(&*self.disk, &self.dir, &position.segment.header)
                .map_err(Error::io("begin a segment in", &self.dir))?;
            position.begun = true;
            self.chain_add(&position.segment);
        }
        let begun = std::time::Instant::now();
        file.write(&position.chunk, position.done, to, &mut position.bounce)
            .map_err(Error::io("write to a segment in", &self.dir))?;
        let bytes = to.bytes() - position.done.bytes();
        let records = u64::from(to.records - position.done.records);
        stats::committed(begun.elapsed().as_micros() as u64, records, bytes);
        position.done = to;
        self.durable.advance(position.segment.base() + u64::from(to.records));
        if bytes < SMALL_BYTES && file.wants_zeros() && !self.flush.zeroing.swap(true, Ordering::SeqCst) {
            self.roll.send(Job::ZeroAhead(Arc::clone(&position.segment)));
        }
        Ok(bytes)
    }

    /// The segment is closed, and all of it durable.
    fn leave_segment(&self, position: &Position) {
        let segment = Arc::clone(&position.segment);
        let footprint = Memory::footprint(segment.header.capacity);
        self.roll.unwritten.fetch_sub(footprint, Ordering::SeqCst);
        if position.done.records > 0 {
            self.roll.send(Job::Seal(segment, position.done));
        } else if position.begun {
            self.roll.send(Job::Prepare); // its successor has the same base, and takes its file's name
        } else {
            self.roll.send(Job::Discard(segment));
        }
    }

    pub(super) fn wait_durable(&self, offset: u64) -> Result<(), Error> {
        let backoff = Backoff::new();
        while self.durable.get() <= offset {
            if offset >= self.next_offset() {
                self.unless_stopped()?;
                self.durable.park(offset + 1, || self.unless_stopped().is_err(), None);
                continue;
            }
            // Lead a commit, or wait until another's is over.
            let mut position = lock(&self.flush.position);
            if self.durable.get() > offset {
                break;
            }
            match self.commit(&mut position) {
                None => return self.unless_stopped(),
                Some(0) => {
                    drop(position);
                    self.unless_gone(offset)?;
                    backoff.snooze(); // an earlier append is still copying
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether records that are not durable yet may still become so.
    fn unless_stopped(&self) -> Result<(), Error> {
        if let Some(reason) = self.failed.get() {
            return Err(Error::Failed { reason: reason.clone() });
        }
        if self.next_offset() == self.durable.get() { self.writable() } else { Ok(()) }
    }

    /// Errors if the log ended before `offset`.
    fn unless_gone(&self, offset: u64) -> Result<(), Error> {
        if offset >= self.next_offset() { self.unless_stopped() } else { Ok(()) }
    }

    /// After the threads have ended: commits the rest, and leaves the mark of a clean close.
    pub(super) fn finish(&self) -> Result<(), Error> {
        let failed = || Error::Failed { reason: self.failed.get().cloned().unwrap_or_default() };
        let mut position = lock(&self.flush.position);
        let backoff = Backoff::new();
        while self.durable.get() < self.next_offset() {
            match self.commit(&mut position) {
                None => break,
                Some(0) => backoff.snooze(), // an append that had its place is still copying
                Some(_) => {}
            }
        }
        let kept = self.finish_keeping();
        if let Err(error) = &kept {
            self.fail(error);
        }
        let marked = self.mark(&position);
        self.durable.wake_all();
        self.unlock();
        if self.failed.get().is_some() {
            return Err(failed());
        }
        kept.and(marked)
    }

    /// Notes in the segment's header how many records are durable, so that damage to the last of them is not taken
    /// for the torn end of a write.
    fn mark(&self, position: &Position) -> Result<(), Error> {
        let Some(file) = position.segment.file() else { return Ok(()) };
        if self.failed.get().is_some() {
            return Ok(());
        }
        if !position.begun {
            file.discard(&*self.disk);
            return Ok(());
        }
        file.write_header(&position.segment.header, position.done.records)
            .map_err(Error::io("mark a segment as closed in", &self.dir))
    }
}

/// Completes when a record is durable, or never will be; see [`Log::durable`](super::Log::durable).
#[must_use = "a future does nothing unless it is awaited"]
pub struct Durable {
    shared: Arc<Shared>,
    offset: u64,
    ticket: Option<Ticket>,
}

impl Durable {
    pub(super) fn new(shared: Arc<Shared>, offset: u64) -> Self {
        Self { shared, offset, ticket: None }
    }
}

impl Future for Durable {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (shared, point) = (&this.shared, this.offset.saturating_add(1));
        let stopped = || shared.unless_stopped().is_err();
        let polled = poll_frontier(&shared.durable, point, &mut this.ticket, context, stopped);
        if polled.is_pending() {
            shared.flush.bell.kick();
            return Poll::Pending;
        }
        Poll::Ready(if shared.durable.get() >= point { Ok(()) } else { shared.unless_stopped() })
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.ticket.take().into_iter().for_each(|ticket| self.shared.durable.leave(ticket));
    }
}
