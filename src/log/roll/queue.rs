//! What the maintenance task of a log has to do: jobs, trims, and the job that has to wait.
//!
//! # What always holds
//! - There is at most one job of a kind per segment: so the queue is bounded.
//! - A job that could not be done is done before any other, and a turn comes back for it.
//!
//! # Orderings
//! `owed` is `SeqCst`, as all that is used once per segment. It only decides whether to wait for the disk: a value that is a
//! moment old delays a spare segment until the next job that gives memory back. Jobs and trims are put into their queues
//! before the task is kicked, and so are seen by the turn that follows the kick.

use super::SpareSegment;
use crate::{
    chunk::{Chunk, ChunkPosition},
    log::{
        Error, Shared,
        task::{Schedule, Task},
    },
    segment::Segment,
    sync::{Arc, AtomicU64, Mutex, Ordering, lock},
};
use crossbeam::{channel::Sender, queue::SegQueue};

/// What the maintenance task is to do.
pub(in crate::log) enum Job {
    /// Make a spare segment, unless one is ready.
    Prepare,
    /// Seal a segment whose frames, up to this end, are durable.
    Seal(Arc<Segment>, ChunkPosition),
    /// Remove the file of a segment that ended without a record and was replaced.
    Discard(Arc<Segment>),
    /// Release a spare segment that is not needed.
    LetGo(SpareSegment),
    /// Write zeros ahead of the frames.
    ZeroAhead(Arc<Segment>),
    /// Fault in the memory of the chunk that the log was opened with.
    FaultIn(Arc<Chunk>),
}

impl Job {
    pub(super) fn gives_memory(&self) -> bool {
        matches!(self, Self::Seal(..) | Self::Discard(_) | Self::LetGo(_))
    }
}

/// Why a job was not done.
pub(super) enum JobError {
    /// Nothing was changed: try again later.
    Retry(Box<Job>, Error),
    /// It failed, and the log with it.
    Fatal(Error),
}

/// A request to drop whole segments below an offset.
pub(super) struct TrimRequest {
    pub(super) before: u64,
    pub(super) answer: Sender<Result<u64, Error>>,
}

/// The work that a log's maintenance task has to do.
pub(super) struct MaintenanceQueue {
    jobs: SegQueue<Job>,
    trims: SegQueue<TrimRequest>,
    /// The job to be tried again before any other.
    stalled: Mutex<Option<Job>>,
    /// Jobs that were sent, and that will give memory back.
    owed: AtomicU64,
    pub(super) task: std::sync::Arc<Task<Shared>>,
}

impl MaintenanceQueue {
    pub(super) fn new(threads: std::sync::Arc<dyn Schedule>) -> Self {
        Self {
            jobs: SegQueue::new(),
            trims: SegQueue::new(),
            stalled: Mutex::new(None),
            owed: AtomicU64::new(0),
            task: Task::new(threads, Shared::maintenance_turn, Shared::panicked),
        }
    }

    /// Starts the task, with a first job.
    pub(super) fn start(&self, shared: &Arc<Shared>, first: Job) {
        self.jobs.push(first);
        self.task.start(Arc::clone(shared));
    }

    pub(super) fn send(&self, job: Job) {
        if job.gives_memory() {
            self.owed.fetch_add(1, Ordering::SeqCst);
        }
        self.jobs.push(job);
        self.task.kick();
    }

    /// Asks for a trim.
    pub(super) fn trim(&self, request: TrimRequest) {
        self.trims.push(request);
        self.task.kick();
    }

    /// The job that is to be done next, and whether it was tried before.
    pub(super) fn next_job(&self) -> Option<(Job, bool)> {
        let stalled = lock(&self.stalled).take();
        stalled.map(|job| (job, true)).or_else(|| self.jobs.pop().map(|job| (job, false)))
    }

    /// Keeps a job that could not be done, to be tried again before any other.
    pub(super) fn stall(&self, job: Job) {
        *lock(&self.stalled) = Some(job);
    }

    /// A job that was to give memory back has done so.
    pub(super) fn memory_given(&self) {
        self.owed.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether memory will be given back.
    pub(super) fn owes_memory(&self) -> bool {
        self.owed.load(Ordering::SeqCst) > 0
    }

    pub(super) fn next_trim(&self) -> Option<TrimRequest> {
        self.trims.pop()
    }

    /// Puts back a trim that is not finished. The task is being run, and comes back for it.
    pub(super) fn put_back_trim(&self, request: TrimRequest) {
        self.trims.push(request);
    }

    /// Whether something is to be tried again.
    pub(super) fn has_unfinished(&self) -> bool {
        lock(&self.stalled).is_some() || !self.trims.is_empty()
    }
}
