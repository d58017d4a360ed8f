//! Waiting for durability: one queue of waiters per runtime and log, so that a commit wakes each runtime once, and the
//! flusher is kicked once, after everything that was appended in one turn of the runtime.
//!
//! Wake-ups and kicks per request cost about a fifth of the rate in the prototype that this design is based on.

use crate::sync::lock;
use crate::{
    log::{Error, unless_reached},
    store::OpenLog,
};
use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
};

/// The requests that wait for one log's commits, by their offsets, and by a number that no other request has.
type WakerQueue = BTreeMap<(u64, u64), Waker>;

/// The requests of one runtime that wait for a commit, by the number of the open log. A log has an entry while a task
/// serves it. Not by the id of the log: a copy of a log's directory has the same id, and requests that wait for one of
/// the two would be left to the task of the other, whose commits may all have been made.
#[derive(Default)]
pub(super) struct DurabilityWaiters {
    queues: Mutex<HashMap<u64, WakerQueue>>,
    /// How many requests have waited so far.
    tickets: AtomicU64,
}

/// A request's place in the queue of an opening of a log, if it has one. Dropping it leaves the queue.
struct QueuePlace<'a> {
    waiters: &'a DurabilityWaiters,
    log: u64,
    key: (u64, u64),
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.waiters.lock().get_mut(&self.log) {
            queue.remove(&self.key);
        }
    }
}

impl DurabilityWaiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, WakerQueue>> {
        lock(&self.queues)
    }

    /// Waits until the record at `offset` is durable.
    pub(super) async fn durable(self: &Arc<Self>, log: &Arc<OpenLog>, offset: u64) -> Result<(), Error> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed); // only to be unlike any other
        let place = QueuePlace { waiters: self, log: log.number(), key: (offset, ticket) };
        poll_fn(|context| {
            let is_durable = || log.durable_offset() > offset;
            if is_durable() {
                return Poll::Ready(Ok(()));
            }
            let writable = log.writable();
            if writable.is_err() {
                return Poll::Ready(unless_reached(writable, is_durable));
            }
            let mut queues = self.lock();
            let queue = queues.entry(place.log).or_insert_with(|| {
                tokio::spawn(Arc::clone(self).serve(Arc::clone(log)));
                WakerQueue::new()
            });
            queue.insert(place.key, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Kicks the flusher for the waiting requests, and wakes them, until there are none.
    async fn serve(self: Arc<Self>, log: Arc<OpenLog>) {
        let number = log.number();
        let mut idle = false;
        loop {
            tokio::task::yield_now().await; // let the turn end: what is appended in it goes into the same commit
            let nearest = {
                let mut queues = self.lock();
                let nearest = queues
                    .get(&number)
                    .and_then(|queue| queue.first_key_value())
                    .map(|((offset, _), _)| *offset);
                if nearest.is_none() && idle {
                    queues.remove(&number);
                    return;
                }
                nearest
            };
            // The requests just woken are likely to append again in the turn that follows.
            idle = nearest.is_none();
            let Some(nearest) = nearest else { continue };
            let stopped = log.durable(nearest).await.is_err();
            let durable = if stopped { u64::MAX } else { log.durable_offset() };
            let reached = {
                let mut queues = self.lock();
                let Some(queue) = queues.get_mut(&number) else { return };
                let later = queue.split_off(&(durable, 0));
                std::mem::replace(queue, later)
            };
            reached.into_values().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disk::{
            gate::{Gate, Operation},
            sim::Sim,
        },
        log::Environment,
        store::{LogSettings, Store, StoreOptions},
    };
    use std::{path::Path, pin::pin, sync::atomic::AtomicBool, task::Context};

    /// Each time a request was looked at it took another place in the queue, and kept them all until a commit, which on a
    /// full disk may be never, also when its client had left.
    #[test]
    fn a_waiting_request_has_one_place_in_the_queue_and_leaves_it_when_its_client_disconnects() {
        let full = Arc::new(AtomicBool::new(false));
        let is_full = Arc::clone(&full);
        let gate = Gate::new(Arc::new(Sim::new(1)), move |operation, _: &Path| {
            let refused = operation == Operation::Write && is_full.load(Ordering::SeqCst);
            if refused { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
        });
        let options = StoreOptions::default();
        let store = Store::open_in(Environment::on(gate), Path::new("/store"), options).unwrap();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            store.create("a", &LogSettings::default()).unwrap();
            let log = store.get("a").unwrap();
            full.store(true, Ordering::SeqCst);
            let at = log.append(b"x").unwrap();
            let waiters = Arc::<DurabilityWaiters>::default();
            let places = || waiters.lock().values().map(WakerQueue::len).sum::<usize>();
            {
                let (mut one, mut other) =
                    (pin!(waiters.durable(&log, at)), Box::pin(waiters.durable(&log, at)));
                for _ in 0..5 {
                    for future in [one.as_mut(), other.as_mut()] {
                        assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
                        tokio::task::yield_now().await;
                    }
                }
                assert_eq!(places(), 2);
                drop(other);
                assert_eq!(places(), 1);
            }
            assert_eq!(places(), 0);
            full.store(false, Ordering::SeqCst);
        });
    }
}
