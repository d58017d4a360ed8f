//! Waiting for durability: one line of waiters per runtime, so that a commit wakes each runtime once, and the
//! flusher is kicked once, after all that the runtime's turn has appended.
//!
//! Per-request wake-ups and kicks cost about a fifth of the rate in the prototype that the design came from.

use crate::log::{Error, Log};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};
use tokio::sync::Notify;

/// The requests of one runtime that wait for a commit, in the order of their offsets.
#[derive(Default)]
pub(super) struct Line {
    waiting: Mutex<VecDeque<(u64, Waker)>>,
    somebody: Notify,
}

impl Line {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<(u64, Waker)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner) // no holder can panic half-way
    }

    /// Waits until the record at `offset` is durable.
    pub(super) async fn durable(&self, log: &Log, offset: u64) -> Result<(), Error> {
        poll_fn(|context| {
            if log.durable_offset() > offset {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = log.writable() {
                return Poll::Ready(Err(error));
            }
            let mut waiting = self.waiting();
            let was_empty = waiting.is_empty();
            waiting.push_back((offset, context.waker().clone()));
            drop(waiting);
            if was_empty {
                self.somebody.notify_one();
            }
            Poll::Pending
        })
        .await
    }

    /// Kicks the flusher for those who wait, and wakes them. Runs as long as the runtime does.
    pub(super) async fn run(self: Arc<Self>, log: Arc<Log>) {
        loop {
            self.somebody.notified().await;
            loop {
                tokio::task::yield_now().await; // let the turn end: what it appends goes into the same commit
                let Some(nearest) = self.waiting().front().map(|(offset, _)| *offset) else { break };
                let stopped = log.durable(nearest).await.is_err();
                let durable = if stopped { u64::MAX } else { log.durable_offset() };
                let mut waiting = self.waiting();
                let reached = waiting.iter().take_while(|(offset, _)| *offset < durable).count();
                let reached: Vec<_> = waiting.drain(..reached).collect();
                drop(waiting);
                for (_, waker) in reached {
                    waker.wake();
                }
            }
        }
    }
}
