//! Anything that may take long for a log (opening, creating, deleting, trimming it, writing its cursors or epochs, learning
//! its producers) is done for one request per log at a time, and for few logs at once. All other requests wait without a thread: there are not
//! many threads, and reads from the disk and compressed bodies of other logs need them too.

use super::{
    permits::{Kind, Permit, Permits},
    problem::Problem,
    share::ConnectionShare,
};
use crate::sync::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Which logs have a permit, or are waited for, by their names.
pub(super) struct LogPermits {
    by_name: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

/// A permit, released when it is dropped.
pub(super) struct LogPermit {
    // In the order in which they are dropped.
    _log: OwnedMutexGuard<()>,
    _one_of_few: Permit,
    _asked: Asked,
}

/// A name that some request waits for, or has a permit for.
struct Asked {
    permits: Arc<LogPermits>,
    name: String,
    log: Option<Arc<AsyncMutex<()>>>,
}

impl LogPermits {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { by_name: Mutex::default() })
    }

    /// Waits for a permit, in the queue of a connection.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        name: &str,
        all: &Permits,
        share: &ConnectionShare,
        patience: Duration,
    ) -> Result<LogPermit, Problem> {
        let found = Arc::clone(lock(&self.by_name).entry(name.to_owned()).or_default());
        let asked = Asked { permits: Arc::clone(self), name: name.to_owned(), log: Some(Arc::clone(&found)) };
        let log = found; // declared last, and so dropped before `asked`, which checks who else has it
        // No request waits for one of the two while it holds the other. While it waited for a busy log, it would hold up
        // its connection's requests for other logs; while it waited in its connection's queue, it would hold up other
        // connections' requests for its log.
        let wait = async {
            loop {
                let one_at_a_time = if let Ok(free) = Arc::clone(&log).try_lock_owned() {
                    free
                } else {
                    let _among_few = share.for_a_busy_log().await?;
                    Arc::clone(&log).lock_owned().await
                };
                if let Some(one_of_few) = all.free(Kind::Log) {
                    return Some((one_at_a_time, one_of_few));
                }
                drop(one_at_a_time);
                let one_of_few = all.wait(Kind::Log, &share.lines).await?;
                if let Ok(one_at_a_time) = Arc::clone(&log).try_lock_owned() {
                    return Some((one_at_a_time, one_of_few));
                }
            }
        };
        let got = tokio::time::timeout(patience, wait).await.ok().flatten();
        let (log, one_of_few) = got.ok_or_else(Problem::log_is_busy)?;
        Ok(LogPermit { _log: log, _one_of_few: one_of_few, _asked: asked })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut by_name = lock(&self.permits.by_name);
        // Under the lock, as clones are made: otherwise two that go at once would each see the other.
        self.log = None;
        if by_name.get(&self.name).is_some_and(|log| Arc::strong_count(log) == 1) {
            by_name.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::permits::MAX_LOGS_AT_WORK;
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<LogPermit, Problem>> + 'a>>;

    /// A permit, if there is one by now.
    fn poll(waiting: &mut Waiting<'_>) -> Option<LogPermit> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit.unwrap_or_else(|problem| panic!("{problem}"))),
            Poll::Pending => None,
        }
    }

    struct Server {
        permits: Arc<LogPermits>,
        all: Permits,
    }

    impl Server {
        fn ask<'a>(&'a self, name: &'a str, share: &'a ConnectionShare) -> Waiting<'a> {
            Box::pin(self.permits.acquire(name, &self.all, share, Duration::from_secs(60)))
        }
    }

    fn with_server(run: impl FnOnce(&Server)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _within = runtime.enter(); // for its timers
        let server = Server { permits: LogPermits::new(), all: Permits::new(|_| MAX_LOGS_AT_WORK) };
        run(&server);
        assert!(server.permits.by_name.lock().unwrap().is_empty(), "names stay for ever");
    }

    #[test]
    fn a_log_has_one_permit_at_a_time_and_few_logs_have_one() {
        with_server(|server| {
            let lines: [ConnectionShare; 2 * MAX_LOGS_AT_WORK] = Default::default();
            let first = poll(&mut server.ask("a", &lines[0])).unwrap();
            assert!(poll(&mut server.ask("a", &lines[1])).is_none(), "two at once");
            let names: Vec<_> = (1..MAX_LOGS_AT_WORK).map(|n| n.to_string()).collect();
            let others: Vec<_> = names
                .iter()
                .zip(&lines)
                .map(|(name, share)| poll(&mut server.ask(name, share)).unwrap())
                .collect();
            assert!(poll(&mut server.ask("b", &lines[1])).is_none(), "more logs than may be");
            drop(first);
            assert!(poll(&mut server.ask("b", &lines[1])).is_some());
            drop(others);
            assert!(poll(&mut server.ask("a", &lines[0])).is_some());
        });
    }

    /// All requests waited in one queue, in the order in which they asked.
    #[test]
    fn a_connection_that_asks_for_many_logs_keeps_no_other_waiting_for_all_of_them() {
        // One that nobody else wants, and one that the others wait for too.
        for name in ["x", "99"] {
            with_server(|server| {
                let (many, one) = (ConnectionShare::default(), ConnectionShare::default());
                let names: Vec<_> = (0..100).map(|n| n.to_string()).collect();
                let mut waiting: Vec<_> = names.iter().map(|name| server.ask(name, &many)).collect();
                let mut have: Vec<_> = waiting.iter_mut().filter_map(poll).collect();
                assert_eq!(have.len(), MAX_LOGS_AT_WORK);
                let mut waiting = waiting.split_off(MAX_LOGS_AT_WORK);
                let mut other = server.ask(name, &one);
                assert!(poll(&mut other).is_none());
                have.pop();
                let got: Vec<_> = waiting.iter_mut().filter_map(poll).collect();
                assert_eq!((got.len(), poll(&mut other).is_some()), (1, false));
                drop(got);
                assert!(poll(&mut other).is_some(), "{name}: it waits for more than one of the many");
            });
        }
    }

    /// All requests for one log waited in one queue.
    #[test]
    fn a_connection_that_asks_for_one_log_often_keeps_no_other_waiting_for_all_of_that() {
        with_server(|server| {
            let (many, one) = (ConnectionShare::default(), ConnectionShare::default());
            let mut has = Some(poll(&mut server.ask("a", &many)).unwrap());
            let mut waiting: Vec<_> = (0..1000).map(|_| server.ask("a", &many)).collect();
            assert_eq!(waiting.iter_mut().filter_map(poll).count(), 0);
            let mut other = server.ask("a", &one);
            assert!(poll(&mut other).is_none());
            let mut before = 0;
            loop {
                drop(has.take());
                if poll(&mut other).is_some() {
                    break;
                }
                waiting.retain_mut(|one| poll(one).map(|permit| has = Some(permit)).is_none());
                before += 1;
                assert!(before <= 20, "it waits for all of the many");
            }
        });
    }

    /// A request that waited for a busy log was first in the queue of its connection.
    #[test]
    fn waiting_for_a_busy_log_delays_no_request_for_others() {
        with_server(|server| {
            let share = ConnectionShare::default();
            let busy = poll(&mut server.ask("busy", &share)).unwrap();
            let mut waiting: Vec<_> = (0..100).map(|_| server.ask("busy", &share)).collect();
            assert_eq!(waiting.iter_mut().filter_map(poll).count(), 0);
            let names: Vec<_> = (1..MAX_LOGS_AT_WORK).map(|n| n.to_string()).collect();
            let have: Vec<_> =
                names.iter().map(|name| poll(&mut server.ask(name, &share)).unwrap()).collect();
            drop((busy, have));
            // Each of the waiting requests gets its permit, one after the other.
            let mut max = 1000;
            while !waiting.is_empty() {
                let mut permits = Vec::new();
                waiting.retain_mut(|one| poll(one).map(|permit| permits.push(permit)).is_none());
                assert!(permits.len() <= 1, "two at once");
                max -= 1;
                assert!(max > 0, "{} never get on", waiting.len());
            }
        });
    }
}
