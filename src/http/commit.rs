//! Waiting for durability: one line of waiters per runtime and log, so that a commit wakes each runtime once, and
//! the flusher is kicked once, after all that the runtime's turn has appended.
//!
//! Per-request wake-ups and kicks cost about a fifth of the rate in the prototype that the design came from.

use crate::sync::lock;
use crate::{log::Error, store::OpenLog};
use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
};

/// Those who wait for one log's commits, in the order of their offsets.
type Line = VecDeque<(u64, Waker)>;

/// The requests of one runtime that wait for a commit, by open log. A log is in here while a task serves it.
#[derive(Default)]
pub(super) struct DurabilityWaiters {
    lines: Mutex<HashMap<Instance, Line>>,
}

/// One opening of one log: where it is in memory. Not its id: a copy of a log's directory has the same one, and who waited
/// for the one log was left to the task of the other, which waited for commits that had all been made. The task of a line holds
/// the log, so no other comes to lie there meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Instance(usize);

impl Instance {
    pub(super) fn of(log: &Arc<OpenLog>) -> Self {
        Self(Arc::as_ptr(log).addr())
    }
}

impl DurabilityWaiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<Instance, Line>> {
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
                Line::new()
            });
            line.push_back((offset, context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Kicks the flusher for those who wait, and wakes them, until there is nobody.
    async fn serve(self: Arc<Self>, log: Arc<OpenLog>) {
        let instance = Instance::of(&log);
        let mut idle = false;
        loop {
            tokio::task::yield_now().await; // let the turn end: what it appends goes into the same commit
            let nearest = {
                let mut lines = self.lock();
                let nearest = lines.get(&instance).and_then(|line| line.front()).map(|(offset, _)| *offset);
                if nearest.is_none() && idle {
                    lines.remove(&instance);
                    return;
                }
                nearest
            };
            // Those just woken are likely to append again in the turn that follows.
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
