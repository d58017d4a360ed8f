//! Anything that may take long for a log (opening, creating, deleting, trimming it, learning its producers) is done for
//! one request per log at a time, and for few logs at once. All other requests wait without a thread: there are not
//! many threads, and reads from the disk and compressed bodies of other logs need them too.

use crate::sync::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// The number of logs in the whole server for which something may take long at once: fewer than one runtime has
/// threads.
const LOGS: usize = 8;

/// The turns of a server's logs, by their names.
pub(super) struct Turns {
    by_name: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    logs: Arc<Semaphore>,
}

/// A turn; the next one begins when this is dropped.
pub(super) struct Turn {
    // In the order in which they are dropped.
    _log: OwnedMutexGuard<()>,
    _one_of_few: OwnedSemaphorePermit,
    _asked: Asked,
}

/// A name that some request waits for, or has a turn for.
struct Asked {
    turns: Arc<Turns>,
    name: String,
    log: Option<Arc<AsyncMutex<()>>>,
}

impl Turns {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { by_name: Mutex::default(), logs: Arc::new(Semaphore::new(LOGS)) })
    }

    /// Waits for a turn, in the order of arrival.
    pub(super) async fn turn(self: &Arc<Self>, name: &str) -> Turn {
        let log = Arc::clone(lock(&self.by_name).entry(name.to_owned()).or_default());
        let asked = Asked { turns: Arc::clone(self), name: name.to_owned(), log: Some(Arc::clone(&log)) };
        let log = log.lock_owned().await;
        let one_of_few = Arc::clone(&self.logs).acquire_owned().await.expect("it is never closed");
        Turn { _log: log, _one_of_few: one_of_few, _asked: asked }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut by_name = lock(&self.turns.by_name);
        // Under the lock, as clones are made: otherwise two that go at once would each see the other.
        self.log = None;
        if by_name.get(&self.name).is_some_and(|log| Arc::strong_count(log) == 1) {
            by_name.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, LOGS, Turn, Turns};
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    /// A turn, if there is one at once; otherwise it is not waited for.
    fn now(turns: &Arc<Turns>, name: &str) -> Option<Turn> {
        match pin!(turns.turn(name)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_log_has_one_turn_at_a_time_and_few_logs_have_one() {
        let turns = Turns::new();
        let first = now(&turns, "a").unwrap();
        assert!(now(&turns, "a").is_none(), "two at once");
        let others: Vec<_> = (1..LOGS).map(|n| now(&turns, &n.to_string()).unwrap()).collect();
        assert!(now(&turns, "b").is_none(), "more logs than may be");
        drop(first);
        assert!(now(&turns, "b").is_some());
        drop(others);
        assert!(now(&turns, "a").is_some());
        assert!(turns.by_name.lock().unwrap().is_empty(), "names stay for ever");
    }
}
