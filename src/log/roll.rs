//! Rolling: from a full chunk to the next one, and the keeper, a background thread that makes the next one ready.
//!
//! Who finds the active chunk closed links a ready successor to its segment, which succeeds for one, and then moves
//! `active` on, which anybody may do: nobody who is put to sleep in between stops the others. Files are not
//! touched here: the flusher begins the new segment's file when it has something to write to it.
//!
//! The ready chunk is handed over through a queue of one. It is made only while the chunks that are not yet on disk
//! leave room in the memory budget for it: that is the backpressure.

use super::{Error, Frontier, Shared, append::Patience, stats};
use crate::{
    chunk::{Chunk, Extent, Images, Memory, Pool},
    disk,
    segment::{Segment, file::SegmentFile, header::Header, sealed},
    sync::{Arc, AtomicBool, AtomicU64, Backoff, Mutex, Ordering, Swap, lock},
};
use crossbeam::{
    channel::{Receiver, Sender, unbounded},
    queue::ArrayQueue,
};
use std::{collections::VecDeque, time::Duration};

/// The segment that takes appends, and its chunk.
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) chunk: Arc<Chunk>,
}

impl Active {
    /// A segment that is not sealed, if it still is not.
    pub(super) fn of(segment: Arc<Segment>) -> Option<Arc<Self>> {
        let chunk = segment.chunk.load_full()?;
        Some(Arc::new(Self { segment, chunk }))
    }
}

/// Moves `active` on from `closed`, which has ended: to the successor it has, or else to the one that `make` makes
/// for the given base offset; if another was quicker to link one, ours goes to `unused`. Says whether `closed` is not
/// active any more; `false` if there is no successor yet.
pub(super) fn advance(
    active: &Swap<Active>,
    closed: &Arc<Active>,
    make: impl FnOnce(u64) -> Option<Arc<Segment>>,
    unused: impl FnOnce(Arc<Segment>),
) -> bool {
    let Some(end) = closed.chunk.end() else { return false };
    if closed.segment.next.load_full().is_none() {
        let Some(fresh) = make(closed.segment.base() + u64::from(end.records)) else { return false };
        if !closed.segment.next.set_first(Arc::clone(&fresh)) {
            unused(fresh);
        }
    }
    // If the successor has no chunk any more, it was written and sealed while we slept, and `active` is far ahead.
    let successor = closed.segment.next.load_full().and_then(Active::of);
    successor.is_none_or(|successor| {
        active.replace(closed, successor);
        true
    })
}

/// What a chunk and its segment are made of, ready before they are needed.
pub(super) struct Fresh {
    pub(super) memory: Memory,
    pub(super) file: SegmentFile,
}

/// What the keeper is to do.
pub(super) enum Job {
    /// See to it that a fresh chunk is ready.
    Prepare,
    /// Seal a segment whose frames, up to this extent, are durable.
    Seal(Arc<Segment>, Extent),
    /// A segment ended without a record and was replaced: its file is of no use.
    Discard(Arc<Segment>),
    /// Write zeros ahead of the frames.
    ZeroAhead(Arc<Segment>),
    /// Drop whole segments below an offset, and answer.
    Trim(u64, Sender<Result<u64, Error>>),
    Stop,
}

/// What appenders and the keeper share about rolling.
pub(crate) struct Roller {
    pub(super) ready: ArrayQueue<Fresh>,
    /// Counts what those who wait for room are to look at: a fresh chunk, a roll, an error.
    pub(super) changed: Frontier,
    pub(super) pool: Arc<Pool>,
    /// Where chunk memory is kept that outlives the process.
    pub(super) images: Option<std::sync::Arc<Images>>,
    /// Footprint of the chunks that are not all on disk.
    pub(super) unwritten: AtomicU64,
    /// The largest that an append needs which waits for the next chunk.
    needs: AtomicU64,
    asked: AtomicBool,
    /// Why no fresh chunk could be made, the last time.
    refused: Mutex<Option<std::sync::Arc<str>>>,
    jobs: Sender<Job>,
    queue: Receiver<Job>,
}

impl Roller {
    pub(super) fn new(images: Option<std::sync::Arc<Images>>) -> Self {
        let (jobs, queue) = unbounded(); // bounded by its senders: one job of a kind for a segment at a time
        Self {
            ready: ArrayQueue::new(1),
            changed: Frontier::new(0),
            pool: Arc::new(Pool::new(2)),
            images,
            unwritten: AtomicU64::new(0),
            needs: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            refused: Mutex::new(None),
            jobs,
            queue,
        }
    }

    pub(super) fn send(&self, job: Job) {
        let _ = self.jobs.send(job); // the receiver is in `self`, so there is one
    }

    /// Asks for a fresh chunk of at least `needs` bytes, once.
    pub(super) fn ask(&self, needs: u64) {
        self.needs.fetch_max(needs, Ordering::SeqCst);
        if !self.asked.swap(true, Ordering::SeqCst) {
            self.send(Job::Prepare);
        }
    }

    pub(super) fn stop(&self) {
        self.send(Job::Stop);
    }

    /// Takes the ready chunk, if it is large enough.
    fn take(&self, needs: u64) -> Option<Fresh> {
        let fresh = self.ready.pop()?;
        if fresh.memory.capacity() >= needs {
            return Some(fresh);
        }
        let _ = self.ready.push(fresh); // the keeper replaces it
        None
    }
}

impl Shared {
    /// The active segment, once it is another than `closed`, which has no room for an append of `needs` bytes.
    #[cold]
    pub(super) fn next_active(
        &self,
        closed: &Arc<Active>,
        needs: u64,
        patience: Patience,
    ) -> Result<Arc<Active>, Error> {
        let backoff = Backoff::new();
        loop {
            let seen = self.roll.changed.get();
            self.writable()?;
            let active = self.active.load_full();
            if !Arc::ptr_eq(&active.segment, &closed.segment) {
                return Ok(active);
            }
            let unused = |segment: Arc<Segment>| {
                let footprint = Memory::footprint(segment.header.capacity);
                self.roll.unwritten.fetch_sub(footprint, Ordering::SeqCst);
                self.roll.send(Job::Discard(segment));
            };
            if advance(&self.active, &active, |base| self.successor(base, needs), unused) {
                if self.stopping.load(Ordering::SeqCst) {
                    self.active.load().chunk.close(); // `shut` may have missed it
                }
                stats::rolled();
                self.roll.changed.bump();
                continue;
            }
            self.roll.ask(needs);
            if !backoff.is_completed() {
                backoff.snooze();
                continue;
            }
            if let Some(reason) = lock(&self.roll.refused).clone() {
                return Err(Error::Full { reason });
            }
            stats::found_no_room();
            if patience == Patience::None {
                return Err(Error::WouldBlock);
            }
            self.roll.changed.park(seen + 1, || self.stopping.load(Ordering::SeqCst), None);
        }
    }

    /// A segment out of what is ready.
    fn successor(&self, base: u64, needs: u64) -> Option<Arc<Segment>> {
        let Fresh { mut memory, file } = self.roll.take(needs)?;
        let capacity = memory.capacity();
        self.roll.unwritten.fetch_add(Memory::footprint(capacity), Ordering::SeqCst);
        self.roll.needs.store(0, Ordering::SeqCst);
        self.roll.ask(0);
        let header = Header { log: self.id, base, capacity, created: self.tick() };
        memory.label(&header.label());
        let chunk = Arc::new(Chunk::new(memory, Some(Arc::clone(&self.roll.pool))));
        Some(Arc::new(Segment::new(header, Some(file), chunk)))
    }

    pub(super) fn run_keeper(&self) {
        let mut keeper = Keeper { shared: self, recent: VecDeque::new(), recent_bytes: 0, files: 0 };
        let retry = Duration::from_millis(250);
        loop {
            let job = if lock(&self.roll.refused).is_some() {
                self.roll.queue.recv_timeout(retry).unwrap_or(Job::Prepare)
            } else {
                self.roll.queue.recv().expect("a sender is in `self`")
            };
            let done = match job {
                Job::Prepare => Ok(()),
                Job::Seal(segment, extent) => keeper.seal(&segment, extent),
                Job::Discard(segment) => {
                    segment.file().into_iter().for_each(|file| file.discard(&*self.disk));
                    Ok(())
                }
                Job::ZeroAhead(segment) => keeper.zero_ahead(&segment),
                Job::Trim(before, answer) => {
                    let trimmed = self.trim_now(before);
                    keeper.forget(self.chain.load().first());
                    let _ = answer.send(trimmed); // who asked may have gone
                    Ok(())
                }
                Job::Stop => break,
            };
            if let Err(error) = done {
                self.fail(&error);
            }
            if !self.stopping.load(Ordering::SeqCst) {
                keeper.prepare();
            }
        }
    }

    /// The rest of the keeper's work when the flusher has stopped: seals what is durable, drops what was made
    /// ready. The last segment stays open for the next opening.
    pub(super) fn finish_keeping(&self) -> Result<(), Error> {
        let mut keeper = Keeper { shared: self, recent: VecDeque::new(), recent_bytes: 0, files: 0 };
        for job in self.roll.queue.try_iter() {
            match job {
                Job::Seal(segment, extent) if self.failed.get().is_none() => keeper.seal(&segment, extent)?,
                Job::Discard(segment) => {
                    segment.file().into_iter().for_each(|file| file.discard(&*self.disk));
                }
                Job::Trim(_, answer) => drop(answer.send(Err(Error::Closed))),
                _ => {}
            }
        }
        if let Some(fresh) = self.roll.ready.pop() {
            fresh.file.discard(&*self.disk);
        }
        Ok(())
    }
}

/// What the keeper alone knows.
struct Keeper<'a> {
    shared: &'a Shared,
    /// Sealed segments whose chunks are still in memory, the oldest first, and their footprint.
    recent: VecDeque<Arc<Segment>>,
    recent_bytes: u64,
    /// Files prepared so far, for their passing names.
    files: u64,
}

impl Keeper<'_> {
    /// Makes a fresh chunk ready, unless one is, or there is no memory for it yet.
    fn prepare(&mut self) {
        let (shared, roll) = (self.shared, &self.shared.roll);
        roll.asked.swap(false, Ordering::SeqCst); // who asks from now on is heard after this, who asked before, now
        let active = shared.active.load_full();
        let needs = roll.needs.load(Ordering::SeqCst);
        let grown = active.chunk.capacity().saturating_mul(4);
        let capacity = grown.max(needs.next_multiple_of(disk::BLOCK)).min(shared.options.segment_bytes);
        match roll.ready.pop() {
            Some(fresh) if fresh.memory.capacity() >= needs => {
                let _ = roll.ready.push(fresh);
                // An appender that looked while it was in our hands has found none, and waits.
                roll.changed.bump();
                return;
            }
            Some(small) => small.file.discard(&*shared.disk),
            None => {}
        }
        let footprint = Memory::footprint(capacity);
        let budget = shared.options.memory_bytes;
        let unwritten = roll.unwritten.load(Ordering::SeqCst);
        while unwritten + footprint + self.recent_bytes > budget {
            let Some(oldest) = self.recent.pop_front() else { return }; // sealing comes here again
            self.recent_bytes -= Memory::footprint(oldest.header.capacity);
            oldest.chunk.clear();
        }
        let made = self.make(capacity);
        *lock(&roll.refused) = match made {
            Ok(fresh) => {
                let _ = roll.ready.push(fresh); // only the keeper adds, and there was none
                None
            }
            Err(error) => {
                tracing::warn!(dir = %shared.dir.display(), %error, "cannot make the next segment ready");
                Some(error.to_string().into())
            }
        };
        roll.changed.bump();
    }

    fn make(&mut self, capacity: u64) -> Result<Fresh, Error> {
        let shared = self.shared;
        self.files += 1;
        let file = SegmentFile::prepare(&*shared.disk, &shared.dir, self.files, capacity)
            .map_err(Error::io("make a segment file in", &shared.dir))?;
        let memory = shared
            .roll
            .pool
            .take(capacity)
            .map_or_else(|| Memory::shared(capacity, shared.roll.images.as_ref()), Ok);
        let memory = memory.inspect_err(|_| file.discard(&*shared.disk));
        Ok(Fresh { memory: memory.map_err(Error::io("get memory for a segment of", &shared.dir))?, file })
    }

    /// Seals a segment whose frames are durable. Its chunk stays for readers as long as the budget lasts.
    fn seal(&mut self, segment: &Arc<Segment>, extent: Extent) -> Result<(), Error> {
        let (Some(file), Some(chunk)) = (segment.file(), segment.chunk.load_full()) else { return Ok(()) };
        let time = |record| chunk.frame(record).map_or(0, |frame| frame.stamp.time);
        let times = (time(0), time(extent.records - 1));
        let positions = (0..extent.records as usize).map(|record| {
            chunk.position(record as u32).expect("all records of a durable extent are published")
        });
        let footer = sealed::seal(file.file(), &segment.header, extent.words, times, positions)
            .map_err(Error::io("seal a segment in", &self.shared.dir))?;
        segment.set_sealed(footer.into());
        self.recent_bytes += Memory::footprint(segment.header.capacity);
        self.recent.push_back(Arc::clone(segment));
        let budget = self.shared.options.memory_bytes;
        while self.shared.roll.unwritten.load(Ordering::SeqCst) + self.recent_bytes > budget {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= Memory::footprint(oldest.header.capacity);
            oldest.chunk.clear();
        }
        Ok(())
    }

    /// Lets go of the chunks of segments below `first`, which were trimmed.
    fn forget(&mut self, first: u64) {
        let trimmed = self.recent.partition_point(|segment| segment.base() < first);
        for segment in self.recent.drain(..trimmed) {
            self.recent_bytes -= Memory::footprint(segment.header.capacity);
        }
    }

    fn zero_ahead(&mut self, segment: &Arc<Segment>) -> Result<(), Error> {
        let Some(file) = segment.file() else { return Ok(()) };
        let done = file.zero_ahead().map_err(Error::io("write zeros ahead in", &self.shared.dir));
        self.shared.flush.zeros_done();
        done
    }
}

#[cfg(all(test, loom))]
#[path = "roll_models.rs"]
mod models;
