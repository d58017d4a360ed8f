//! Threads that do the background work of all logs of this process: some commit ("flushers"), others make segments
//! ready and seal them ("maintenance"), so that many logs need few threads, and commits of different logs go side by
//! side. Threads are started when there is work and none of them is free, up to a limit, and stay.
//!
//! Tasks that are due later wait in a list ordered by time. At most one free thread, the one on watch, sleeps until the
//! first of them is due; when it takes work and more is waiting, it hands the watch on. Of the other free threads the
//! last one to fall asleep is woken first, so that a load that one thread can carry is carried by one.

use super::task::{Run, Schedule};
use crate::sync::lock_std;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Writes to different files at once: beyond 16, more gain nothing (9.8, 26, 51, 49 thousand per second with 1, 4, 16
/// and 32 at once).
const MAX_FLUSHERS: usize = 16 * THREADS_FACTOR;
/// Maintenance threads write as well, but nobody waits for them.
const MAX_MAINTAINERS: usize = 4 * THREADS_FACTOR;
/// Tests leave logs behind whose disk hangs for good, each of which keeps a thread.
const THREADS_FACTOR: usize = if cfg!(test) { 16 } else { 1 };

/// The threads that commit.
pub(super) fn flushers() -> Arc<Workers> {
    static ALL: LazyLock<Arc<Workers>> = LazyLock::new(|| Workers::new("millstream-flush", MAX_FLUSHERS));
    Arc::clone(&ALL)
}

/// The threads that make spare segments, seal and trim.
pub(super) fn maintenance() -> Arc<Workers> {
    static ALL: LazyLock<Arc<Workers>> = LazyLock::new(|| Workers::new("millstream-mnt", MAX_MAINTAINERS));
    Arc::clone(&ALL)
}

/// A pool of such threads, for one kind of work.
pub(super) struct Workers {
    name: &'static str,
    max: usize,
    begun: Instant,
    queue: Mutex<Queue>,
    /// Where the thread sleeps that keeps the watch.
    watch: Condvar,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<dyn Run>>,
    /// By nanoseconds since `begun`, made unique.
    later: BTreeMap<u64, Arc<dyn Run>>,
    threads: usize,
    /// Free threads, the last one to fall asleep last. Whichever thread removes one from here must wake it.
    free: Vec<Thread>,
    watched: bool,
}

impl Workers {
    fn new(name: &'static str, max: usize) -> Arc<Self> {
        Arc::new(Self { name, max, begun: Instant::now(), queue: Mutex::default(), watch: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock_std(&self.queue)
    }

    fn spawn(self: &Arc<Self>, queue: &mut Queue) -> io::Result<()> {
        let workers = Arc::clone(self);
        thread::Builder::new().name(self.name.into()).spawn(move || workers.work())?;
        queue.threads += 1;
        Ok(())
    }

    /// Wakes a free thread to look at the queue, or starts one; if neither is possible, the busy ones will look.
    fn rouse(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if queue.watched && queue.later.is_empty() {
            drop(queue);
            self.watch.notify_one(); // there is nothing to watch any more
        } else if let Some(thread) = queue.free.pop() {
            drop(queue);
            thread.unpark();
        } else if queue.watched {
            drop(queue);
            self.watch.notify_one();
        } else if queue.threads < self.max
            && let Err(error) = self.spawn(&mut queue)
        {
            tracing::warn!(%error, name = self.name, "cannot start another thread");
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// What each thread does: it runs tasks, and sleeps while there are none.
    fn work(self: Arc<Self>) {
        let mut queue = self.lock();
        loop {
            let now = self.now();
            if queue.later.first_key_value().is_some_and(|(&due, _)| due <= now) {
                let later = queue.later.split_off(&(now + 1));
                let due = std::mem::replace(&mut queue.later, later);
                queue.ready.extend(due.into_values());
            }
            if let Some(task) = queue.ready.pop_front() {
                // More to do, or nobody on the watch.
                if !queue.ready.is_empty() || !(queue.watched || queue.later.is_empty()) {
                    self.rouse(queue);
                } else {
                    drop(queue);
                }
                task.run();
                queue = self.lock();
                continue;
            }
            queue = match queue.later.first_key_value() {
                Some((&due, _)) if !queue.watched => {
                    queue.watched = true;
                    let wait = Duration::from_nanos(due.saturating_sub(self.now()));
                    let (mut queue, _) =
                        self.watch.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner);
                    queue.watched = false;
                    queue
                }
                _ => {
                    let this = thread::current();
                    queue.free.push(this.clone());
                    while queue.free.iter().any(|free| free.id() == this.id()) {
                        drop(queue);
                        thread::park(); // may return for no reason
                        queue = self.lock();
                    }
                    queue
                }
            };
        }
    }
}

impl Schedule for Arc<Workers> {
    fn soon(&self, task: Arc<dyn Run>) {
        let mut queue = self.lock();
        queue.ready.push_back(task);
        self.rouse(queue);
    }

    fn later(&self, task: Arc<dyn Run>, delay: Duration, within: bool) -> u64 {
        let mut queue = self.lock();
        let mut key = self.now() + delay.as_nanos() as u64;
        while queue.later.contains_key(&key) {
            key += 1;
        }
        queue.later.insert(key, task);
        if !queue.watched {
            // One thread has to watch the time; this thread does so itself, if it belongs to the pool.
            if !within {
                self.rouse(queue);
            }
        } else if queue.later.first_key_value().is_some_and(|(&first, _)| first == key) {
            drop(queue);
            self.watch.notify_one();
        }
        key
    }

    fn bring_forward(&self, key: u64, task: Arc<dyn Run>) {
        let mut queue = self.lock();
        if queue.later.get(&key).is_some_and(|there| Arc::ptr_eq(there, &task)) {
            queue.later.remove(&key);
        }
        queue.ready.push_back(task);
        self.rouse(queue);
    }

    fn others_wait(&self) -> bool {
        !self.lock().ready.is_empty()
    }

    fn start(&self) -> io::Result<()> {
        let mut queue = self.lock();
        if queue.threads == 0 { self.spawn(&mut queue) } else { Ok(()) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Tell(Sender<(u32, Instant)>, u32, Duration);

    impl Run for Tell {
        fn run(self: Arc<Self>) {
            self.0.send((self.1, Instant::now())).unwrap();
            thread::sleep(self.2);
        }
    }

    #[test]
    fn tasks_run_side_by_side_each_when_it_is_due_and_a_long_one_keeps_none_from_its_time() {
        let workers = Workers::new("test", 3);
        let (tell, told) = channel();
        let task = |n, millis| Arc::new(Tell(tell.clone(), n, Duration::from_millis(millis)));
        let begun = Instant::now();
        workers.later(task(4, 0), Duration::from_millis(90), false);
        workers.later(task(3, 0), Duration::from_millis(60), false);
        let brought_forward = task(2, 0);
        let key = workers.later(brought_forward.clone(), Duration::from_secs(60), false);
        workers.soon(task(1, 300));
        thread::sleep(Duration::from_millis(30));
        workers.bring_forward(key, brought_forward);
        let told: Vec<_> = (0..4).map(|_| told.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        assert_eq!(told.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let after = |n: usize| (told[n].1 - begun).as_millis();
        assert!(after(2) >= 60 && after(3) >= 90, "not before their time");
        assert!(after(3) < 290, "while the first one still runs");
        assert!(workers.lock().later.is_empty());
    }

    #[test]
    fn no_more_threads_are_started_than_may_be_and_all_work_is_done() {
        let workers = Workers::new("test", 2);
        let (tell, told) = channel();
        for n in 0..50 {
            workers.soon(Arc::new(Tell(tell.clone(), n, Duration::from_millis(1))));
        }
        for _ in 0..50 {
            told.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert_eq!(workers.lock().threads, 2);
    }
}
