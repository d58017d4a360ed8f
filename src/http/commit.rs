//! Waiting for durability: one queue of waiters per runtime and log, so that a commit wakes each runtime once, and the
//! flusher is kicked once, after everything that was appended in one turn of the runtime.
//!
//! Wake-ups and kicks per request cost about a fifth of the rate in the prototype that this design is based on.

use crate::sync::lock;
use crate::{log::Error, store::OpenLog};
use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
};

/// The requests that wait for one log's commits, in the order of their offsets.
type WakerQueue = VecDeque<(u64, Waker)>;

/// The requests of one runtime that wait for a commit, by open log. A log has an entry while a task serves it.
#[derive(Default)]
pub(super) struct DurabilityWaiters {
    lines: Mutex<HashMap<Instance, WakerQueue>>,
}

/// One opening of one log: its address in memory. Not the id of the log: a copy of a log's directory has the same id,
/// and requests that waited for one of the logs were left to the task of the other, which waited for commits that had
/// all been made. The task of a queue holds the log, so no other is allocated at its address meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Instance(usize);

impl Instance {
    pub(super) fn of(log: &Arc<OpenLog>) -> Self {
        Self(Arc::as_ptr(log).addr())
    }
}

impl DurabilityWaiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<Instance, WakerQueue>> {
        lock(&self.lines)
    }

    /// Waits until the record at `offset` is durable.
    pub(super) async fn durable(self: &Arc<Self>, log: &Arc<OpenLog>, offset: u64) -> Result<(), Error> {
        poll_fn(|context| {
            if log.durable_offset() > offset {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = log.writable() {
                return Poll::Ready(Err(error));
            }
            let mut lines = self.lock();
            let line = lines.entry(Instance::of(log)).or_insert_with(|| {
                tokio::spawn(Arc::clone(self).serve(Arc::clone(log)));
                WakerQueue::new()
            });
            line.push_back((offset, context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Kicks the flusher for the waiting requests, and wakes them, until there are none.
    async fn serve(self: Arc<Self>, log: Arc<OpenLog>) {
        let instance = Instance::of(&log);
        let mut idle = false;
        loop {
            tokio::task::yield_now().await; // let the turn end: what is appended in it goes into the same commit
            let nearest = {
                let mut lines = self.lock();
                let nearest = lines.get(&instance).and_then(|line| line.front()).map(|(offset, _)| *offset);
                if nearest.is_none() && idle {
                    lines.remove(&instance);
                    return;
                }
                nearest
            };
            // The requests just woken are likely to append again in the turn that follows.
            idle = nearest.is_none();
            let Some(nearest) = nearest else { continue };
            let stopped = log.durable(nearest).await.is_err();
            let durable = if stopped { u64::MAX } else { log.durable_offset() };
            let reached: Vec<_> = {
                let mut lines = self.lock();
                let Some(line) = lines.get_mut(&instance) else { return };
                let reached = line.iter().take_while(|(offset, _)| *offset < durable).count();
                line.drain(..reached).collect()
            };
            for (_, waker) in reached {
                waker.wake();
            }
        }
    }
}
