//! A task: work of one log that is done in the background, a turn at a time, by a pool of threads; how it is woken,
//! and how it falls asleep, without missing a wake-up.
//!
//! All of its state is one word: the phase, and whether it was kicked. A kick adds to that word, and a turn takes the
//! kick from it before it looks for work, so work from before the kick is seen. A turn that finds nothing says that the
//! task is idle and then looks again; an appender adds work and then looks for "idle". Both touch the work by a
//! read-modify-write of the same atomic, the chunk's tail, and of these the later one acquires from the earlier:
//! either the turn finds the work, or the appender finds the task idle.

use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering, lock};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// What a pool of threads can run.
pub(crate) trait Run: Send + Sync {
    fn run(self: std::sync::Arc<Self>);
}

/// What runs tasks: a pool of threads, or the simulation.
pub(crate) trait Schedule: Send + Sync {
    /// Runs the task as soon as a thread is free.
    fn soon(&self, task: std::sync::Arc<dyn Run>);
    /// Runs it after `delay`. The key is for [`bring_forward`](Self::bring_forward). `within`: the caller is a thread
    /// of the pool, which looks for more work right afterwards.
    fn later(&self, task: std::sync::Arc<dyn Run>, delay: Duration, within: bool) -> u64;
    /// Runs it as soon as a thread is free, and not later as well, if it waits under this key.
    fn bring_forward(&self, key: u64, task: std::sync::Arc<dyn Run>);
    /// Whether others wait for a thread.
    fn others_wait(&self) -> bool;
    /// Ensures that a thread exists.
    fn start(&self) -> std::io::Result<()> {
        Ok(())
    }
    /// Called by threads that wait for a task: if the pool has no threads, the task runs here.
    fn help(&self) {}
}

/// The low bits of the state.
const PHASE: u32 = 3;
/// Nothing to do.
const IDLE: u32 = 0;
/// To be run after a while.
const LATER: u32 = 1;
/// To be run as soon as a thread is free.
const SOON: u32 = 2;
/// A turn is being run.
const RUNNING: u32 = 3;
/// A caller waits: a flag next to the phase.
const KICKED: u32 = 4;

/// Whether a turn that asked to end does end.
#[must_use = "a turn returns when it is over, and not before"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// The turn is over, and returns.
    Over,
    /// There is more to do, and the turn goes on.
    Continue,
}

/// The state of one task. It works on an `S`, from [`start`](Self::start) to [`stop`](Self::stop).
pub(super) struct Task<S> {
    state: AtomicU32,
    /// The key under which the pool keeps it, while it is due later.
    key: AtomicU64,
    pool: std::sync::Arc<dyn Schedule>,
    /// Runs one turn. Must return only after [`Task::sleep_unless`], [`Task::yield_turn`] or [`Task::resume_after`] has
    /// returned [`TurnEnd::Over`], or when the log stops.
    turn: fn(&S),
    /// Called when a turn has panicked.
    panicked: fn(&S),
    /// Held while a turn runs.
    work: Mutex<Option<Arc<S>>>,
}

impl<S: Send + Sync + 'static> Task<S> {
    pub(super) fn new(
        pool: std::sync::Arc<dyn Schedule>,
        turn: fn(&S),
        panicked: fn(&S),
    ) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            state: AtomicU32::new(IDLE),
            key: AtomicU64::new(0),
            pool,
            turn,
            panicked,
            work: Mutex::new(None),
        })
    }

    /// Gives the task what it works on. A kick that came before counts.
    pub(super) fn start(self: &std::sync::Arc<Self>, work: Arc<S>) {
        *lock(&self.work) = Some(work);
        self.schedule();
    }

    /// Waits until the turn that is being run is over, if there is one; there will be no other.
    pub(super) fn stop(&self) {
        drop(lock(&self.work).take());
    }

    /// A caller waits: a turn begins as soon as a thread is free, if none is being run.
    pub(super) fn kick(self: &std::sync::Arc<Self>) {
        let before = self.state.fetch_or(KICKED, Ordering::AcqRel);
        if before & KICKED == 0 && before & PHASE <= LATER {
            self.schedule();
        }
    }

    /// From idle or later to soon.
    #[cold]
    fn schedule(self: &std::sync::Arc<Self>) {
        let before = self.transition(|phase| (phase <= LATER).then_some(SOON));
        match before {
            Ok(LATER) => self.pool.bring_forward(self.key.load(Ordering::Relaxed), self.clone()),
            Ok(_) => self.pool.soon(self.clone()),
            Err(_) => {} // scheduled, or running with a kick to be found
        }
    }

    /// Moves on to the phase that `to` has for the present one. Returns the phase before, as an error if there is no such
    /// phase and nothing was changed.
    fn transition(&self, to: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        let moved = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            to(state & PHASE).map(|phase| state & !PHASE | phase)
        });
        moved.map(|before| before & PHASE).map_err(|before| before & PHASE)
    }

    /// Whether the task was idle a moment ago: for what may as well be missed.
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PHASE == IDLE
    }

    /// Whether a turn is being run, or was a moment ago.
    #[cfg(feature = "store")]
    pub(super) fn is_running(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PHASE == RUNNING
    }

    /// To be called after each append, whose add to the chunk's tail was `AcqRel`: a turn begins `linger` later.
    #[inline]
    pub(super) fn wake_if_idle(self: &std::sync::Arc<Self>, linger: Duration) {
        if self.state.load(Ordering::Acquire) & PHASE == IDLE {
            self.wake(linger);
        }
    }

    #[cold]
    fn wake(self: &std::sync::Arc<Self>, linger: Duration) {
        if self.transition(|phase| (phase == IDLE).then_some(LATER)).is_ok() {
            self.enqueue_after(linger, false);
        }
    }

    /// In the phase "later": has the pool run the task after `delay`.
    fn enqueue_after(self: &std::sync::Arc<Self>, delay: Duration, within: bool) {
        // A kick between these two does not find the key: then an entry stays in the list, and does no harm.
        self.key.store(self.pool.later(self.clone(), delay, within), Ordering::Relaxed);
    }

    // What follows is for the turn.

    /// Whether there was a kick since the last call. What came before the kick is seen after this.
    pub(super) fn take_kick(&self) -> bool {
        self.state.fetch_and(!KICKED, Ordering::AcqRel) & KICKED != 0
    }

    /// Ends the turn: the task is idle until an append or a kick. The turn goes on if there was a kick, or `something` to
    /// do, which must look by a read-modify-write.
    pub(super) fn sleep_unless(&self, something: impl Fn() -> bool) -> TurnEnd {
        if !self.leave_unless_kicked(IDLE) {
            return TurnEnd::Continue;
        }
        // Another turn may begin here; it waits for this one to end.
        if something() && self.transition(|phase| (phase == IDLE).then_some(RUNNING)).is_ok() {
            return TurnEnd::Continue;
        }
        TurnEnd::Over
    }

    /// Ends the turn: another one begins after `delay`. The turn goes on if there was a kick.
    pub(super) fn resume_after(self: &std::sync::Arc<Self>, delay: Duration) -> TurnEnd {
        if !self.leave_unless_kicked(LATER) {
            return TurnEnd::Continue;
        }
        self.enqueue_after(delay, true);
        TurnEnd::Over
    }

    /// Ends the turn if others wait for a thread: another one begins when they had theirs. Otherwise the turn goes on.
    pub(super) fn yield_turn(self: &std::sync::Arc<Self>) -> TurnEnd {
        let yields =
            self.pool.others_wait() && self.transition(|phase| (phase == RUNNING).then_some(SOON)).is_ok();
        if !yields {
            return TurnEnd::Continue;
        }
        self.pool.soon(self.clone());
        TurnEnd::Over
    }

    /// From running to `phase`, unless there was a kick; returns whether it has moved on.
    fn leave_unless_kicked(&self, phase: u32) -> bool {
        self.state.compare_exchange(RUNNING, phase, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<S: Send + Sync + 'static> Run for Task<S> {
    fn run(self: std::sync::Arc<Self>) {
        // An entry that was left behind in the pool finds the task idle or running.
        if self.transition(|phase| (phase == LATER || phase == SOON).then_some(RUNNING)).is_err() {
            return;
        }
        let work = lock(&self.work);
        let Some(work) = work.as_ref() else {
            self.state.fetch_and(!PHASE, Ordering::AcqRel); // not begun yet, or stopped
            return;
        };
        if catch_unwind(AssertUnwindSafe(|| (self.turn)(work))).is_err() {
            (self.panicked)(work);
        }
    }
}

#[cfg(all(test, loom))]
pub(super) mod models {
    use super::*;
    use crate::{
        chunk::{Batch, Chunk, ChunkMemory, ChunkPosition, FrameMeta},
        frame::Key,
        sync::thread,
    };
    use loom::sync::Notify;
    use std::collections::VecDeque;

    /// The model's main thread is the pool's only one; what is due later runs at once.
    #[derive(Clone)]
    pub(in crate::log) struct Pool(Arc<(Mutex<VecDeque<std::sync::Arc<dyn Run>>>, Notify)>);

    impl Pool {
        pub(in crate::log) fn new() -> Self {
            Self(Arc::new((Mutex::new(VecDeque::new()), Notify::new())))
        }

        pub(in crate::log) fn run_next(&self) {
            loop {
                let task = lock(&self.0.0).pop_front();
                match task {
                    Some(task) => return task.run(),
                    None => self.0.1.wait(), // loom: a deadlock is a lost wake-up
                }
            }
        }

        /// Runs all that is due, or would be later.
        pub(in crate::log) fn run_all(&self) {
            loop {
                let Some(task) = lock(&self.0.0).pop_front() else { return };
                task.run();
            }
        }

        /// Drops what was left behind, which holds the pool.
        pub(in crate::log) fn clear(&self) {
            let left = std::mem::take(&mut *lock(&self.0.0));
            drop(left);
        }
    }

    impl Schedule for Pool {
        fn soon(&self, task: std::sync::Arc<dyn Run>) {
            lock(&self.0.0).push_back(task);
            self.0.1.notify();
        }

        fn later(&self, task: std::sync::Arc<dyn Run>, _: Duration, _: bool) -> u64 {
            self.soon(task);
            0
        }

        fn bring_forward(&self, _: u64, task: std::sync::Arc<dyn Run>) {
            self.soon(task);
        }

        fn others_wait(&self) -> bool {
            false
        }
    }

    /// Work that is done when all that was appended has been seen.
    struct Flush {
        chunk: Chunk,
        seen: AtomicU64,
        task: std::sync::OnceLock<std::sync::Weak<Task<Flush>>>,
    }

    fn turn(flush: &Flush) {
        let task = flush.task.get().and_then(std::sync::Weak::upgrade).unwrap();
        loop {
            task.take_kick();
            let seen = u64::from(flush.chunk.reserved());
            flush.seen.store(seen, Ordering::Relaxed);
            let at = ChunkPosition { records: seen as u32, words: seen as u32 * 3 };
            if task.sleep_unless(|| !flush.chunk.probe_quiescent(at)) == TurnEnd::Over {
                return;
            }
        }
    }

    fn begin(pool: &Pool) -> (std::sync::Arc<Task<Flush>>, Arc<Flush>) {
        let chunk = Chunk::new(ChunkMemory::new(256).unwrap(), None);
        let flush = Arc::new(Flush { chunk, seen: AtomicU64::new(0), task: std::sync::OnceLock::new() });
        let task = Task::new(std::sync::Arc::new(pool.clone()), turn, |_| ());
        flush.task.set(std::sync::Arc::downgrade(&task)).unwrap();
        *lock(&task.work) = Some(Arc::clone(&flush));
        (task, flush)
    }

    fn append(flush: &Flush) {
        let meta = FrameMeta { key: Key::test(1), lead: 0, time: 0 };
        flush.chunk.append(Batch::new(&[b""], 256).unwrap(), None, meta);
    }

    #[test]
    fn loom_appends_while_the_task_falls_asleep_begin_another_turn() {
        loom::model(|| {
            let pool = Pool::new();
            let (task, flush) = begin(&pool);
            let appender = {
                let (task, flush) = (std::sync::Arc::clone(&task), Arc::clone(&flush));
                thread::spawn(move || {
                    for _ in 0..2 {
                        append(&flush);
                        task.wake_if_idle(Duration::ZERO);
                    }
                })
            };
            while flush.seen.load(Ordering::Relaxed) < 2 {
                pool.run_next();
            }
            appender.join().unwrap();
            task.stop();
            pool.clear();
        });
    }

    #[test]
    fn loom_a_kick_is_followed_by_a_turn_that_sees_what_came_before_it() {
        /// What there is to do, which nobody looks at again before falling asleep, and what was seen of it.
        struct Jobs(AtomicU64, AtomicU64, std::sync::OnceLock<std::sync::Weak<Task<Jobs>>>);
        crate::sync::model(|| {
            let pool = Pool::new();
            let turn = |jobs: &Jobs| {
                let task = jobs.2.get().and_then(std::sync::Weak::upgrade).unwrap();
                loop {
                    task.take_kick();
                    jobs.1.store(jobs.0.load(Ordering::Relaxed), Ordering::Relaxed);
                    if task.sleep_unless(|| false) == TurnEnd::Over {
                        return;
                    }
                }
            };
            let jobs = Arc::new(Jobs(AtomicU64::new(0), AtomicU64::new(0), std::sync::OnceLock::new()));
            let task = Task::new(std::sync::Arc::new(pool.clone()), turn, |_| panic!("a turn panicked"));
            jobs.2.set(std::sync::Arc::downgrade(&task)).unwrap();
            task.start(Arc::clone(&jobs));
            let sender = {
                let (task, jobs) = (std::sync::Arc::clone(&task), Arc::clone(&jobs));
                thread::spawn(move || {
                    for n in 1..=2 {
                        jobs.0.store(n, Ordering::Relaxed);
                        task.kick();
                    }
                })
            };
            while jobs.1.load(Ordering::Relaxed) < 2 {
                pool.run_next();
            }
            sender.join().unwrap();
            task.stop();
            pool.clear();
        });
    }

    #[test]
    fn loom_two_threads_of_the_pool_never_run_one_task_at_once_and_retiring_waits() {
        use crate::sync::AtomicBool;
        struct Alone(AtomicBool, std::sync::OnceLock<std::sync::Weak<Task<Alone>>>);
        impl Alone {
            fn enter_and_leave(&self) {
                assert!(!self.0.swap(true, Ordering::Relaxed), "two at once");
                self.0.store(false, Ordering::Relaxed);
            }
        }
        loom::model(|| {
            let pool = Pool::new();
            let turn = |alone: &Alone| {
                let task = alone.1.get().and_then(std::sync::Weak::upgrade).unwrap();
                loop {
                    task.take_kick();
                    alone.enter_and_leave();
                    if task.sleep_unless(|| false) == TurnEnd::Over {
                        return;
                    }
                }
            };
            let alone = Arc::new(Alone(AtomicBool::new(false), std::sync::OnceLock::new()));
            let task = Task::new(std::sync::Arc::new(pool.clone()), turn, |_| panic!("a turn panicked"));
            alone.1.set(std::sync::Arc::downgrade(&task)).unwrap();
            task.start(Arc::clone(&alone));
            let other = {
                let (pool, task) = (pool.clone(), std::sync::Arc::clone(&task));
                thread::spawn(move || {
                    task.kick();
                    let next = lock(&pool.0.0).pop_front();
                    next.into_iter().for_each(Run::run);
                })
            };
            let next = lock(&pool.0.0).pop_front();
            next.into_iter().for_each(Run::run);
            task.stop();
            alone.enter_and_leave();
            other.join().unwrap();
            pool.clear();
        });
    }
}
