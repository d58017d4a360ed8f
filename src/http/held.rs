//! Logs that requests keep open while they wait for news: long polls and live tails. Such a log cannot be closed, so
//! there may only be so many, or a few connections that wait for thousands of logs would take all descriptors. When there
//! is one more, all waits for one of them end: of the logs whose waiting connections all wait for the most logs, the
//! one whose oldest wait began last. A log is kept as long as one of its connections waits for few logs. So the
//! connections that wait for the most logs lose a wait; if each waits for one log only, the new wait ends at once.
//!
//! A long poll that ends so is refused, with the time after which to try again; a tail ends as when the server stops, so
//! that its client reconnects and continues where it was.

use super::{commit::Instance, permits::Queues};
use crate::{store::OpenLog, sync::lock};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct HeldLogs {
    /// How many logs may be kept open.
    limit: usize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// The waits for each log, oldest first; none that have ended.
    waits: HashMap<Instance, Vec<Wait>>,
    /// How many logs each connection waits for.
    logs: HashMap<usize, usize>,
    /// The number of the next wait.
    next: u64,
}

#[derive(Debug)]
struct Wait {
    number: u64,
    /// The address of the connection's queues, which live as long as it has requests.
    connection: usize,
    end: Arc<Notify>,
}

/// A wait that keeps a log open, until this is dropped.
pub(super) struct Hold {
    held: Arc<HeldLogs>,
    log: Instance,
    number: u64,
    end: Arc<Notify>,
    connection: Arc<Queues>,
}

impl HeldLogs {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), all: Mutex::default() })
    }

    /// Records that a request of a connection waits for a log. The request must hold the log for as long.
    pub(super) fn hold(self: &Arc<Self>, log: &Arc<OpenLog>, connection: &Arc<Queues>) -> Hold {
        self.hold_instance(Instance::of(log), connection)
    }

    fn hold_instance(self: &Arc<Self>, log: Instance, queues: &Arc<Queues>) -> Hold {
        queues.listens();
        let (end, connection) = (Arc::new(Notify::new()), Arc::as_ptr(queues).addr());
        let mut all = lock(&self.all);
        let number = all.next;
        all.next += 1;
        all.add(log, Wait { number, connection, end: Arc::clone(&end) });
        if all.waits.len() > self.limit {
            all.end_one();
        }
        Hold { held: Arc::clone(self), log, number, end, connection: Arc::clone(queues) }
    }
}

impl All {
    fn add(&mut self, log: Instance, wait: Wait) {
        let waits = self.waits.entry(log).or_default();
        if waits.iter().all(|other| other.connection != wait.connection) {
            *self.logs.entry(wait.connection).or_default() += 1;
        }
        waits.push(wait);
    }

    /// Forgets a wait, if it has not ended.
    fn remove(&mut self, log: Instance, number: u64) {
        let Some(waits) = self.waits.get_mut(&log) else { return };
        let Some(at) = waits.iter().position(|wait| wait.number == number) else { return };
        let gone = waits.remove(at);
        let others = waits.iter().any(|other| other.connection == gone.connection);
        if waits.is_empty() {
            self.waits.remove(&log);
        }
        if !others {
            self.waits_for_one_less(gone.connection);
        }
    }

    fn waits_for_one_less(&mut self, connection: usize) {
        if let Some(logs) = self.logs.get_mut(&connection) {
            *logs -= 1;
            if *logs == 0 {
                self.logs.remove(&connection);
            }
        }
    }

    /// Ends all waits for one log.
    fn end_one(&mut self) {
        let fewest = |waits: &[Wait]| {
            waits.iter().map(|wait| self.logs.get(&wait.connection).copied().unwrap_or(0)).min().unwrap_or(0)
        };
        let begun = |waits: &[Wait]| waits.first().map_or(0, |wait| wait.number);
        let log = self.waits.iter().max_by_key(|(_, waits)| (fewest(waits), begun(waits)));
        let Some(waits) = log.map(|(&log, _)| log).and_then(|log| self.waits.remove(&log)) else { return };
        let mut connections: Vec<_> = waits.iter().map(|wait| wait.connection).collect();
        connections.sort_unstable();
        connections.dedup();
        for connection in connections {
            self.waits_for_one_less(connection);
        }
        for wait in waits {
            wait.end.notify_one();
        }
    }
}

impl Hold {
    /// Completes when the wait is to end early.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }

    /// Whether it is to end, for a request that has something to do and does not wait.
    pub(super) fn has_ended(&self) -> bool {
        let mut ended = std::pin::pin!(self.end.notified());
        let has = ended.as_mut().enable();
        if has {
            self.end.notify_one(); // for whoever waits for it later
        }
        has
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.connection.listens_no_more();
        lock(&self.held.all).remove(self.log, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    fn is_ended(hold: &Hold) -> bool {
        pin!(hold.ended()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    struct Clients(Arc<HeldLogs>, Vec<Arc<Queues>>);

    impl Clients {
        fn new(limit: usize) -> Self {
            Self(HeldLogs::new(limit), (0..100).map(|_| Arc::default()).collect())
        }

        fn hold(&self, log: usize, connection: usize) -> Hold {
            self.0.hold_instance(Instance::test(log), &self.1[connection])
        }

        fn is_empty(&self) -> bool {
            let all = lock(&self.0.all);
            all.waits.is_empty() && all.logs.is_empty() && self.1.iter().all(|queues| queues.listening() == 0)
        }
    }

    fn ended(holds: &[Hold]) -> usize {
        holds.iter().filter(|hold| is_ended(hold)).count()
    }

    /// Five connections with long polls for 200 logs each took all descriptors, and nobody else was served.
    #[test]
    fn waits_end_early_of_the_connection_that_keeps_most_logs_open() {
        let clients = Clients::new(10);
        let greedy: Vec<_> = (0..50).map(|n| clients.hold(n, 8)).collect();
        assert_eq!(ended(&greedy), 40);
        let good: Vec<_> = (0..6).map(|n| clients.hold(1000 + n, n)).collect();
        assert_eq!((ended(&greedy), ended(&good)), (6, 0), "each takes a place of the one that has many");
        drop((greedy, good));
        assert!(clients.is_empty());
    }

    /// Two connections that waited for the same logs were counted for none of them: each wait of another client ended at
    /// once, again and again.
    #[test]
    fn connections_that_wait_for_the_same_many_logs_make_place_for_others() {
        let clients = Clients::new(10);
        let both: Vec<_> = (0..10).flat_map(|n| [clients.hold(n, 1), clients.hold(n, 2)]).collect();
        assert_eq!(ended(&both), 0);
        // Also if it waits for one of their logs.
        let good = [clients.hold(3, 7), clients.hold(1000, 7), clients.hold(1001, 8)];
        assert_eq!((ended(&both), ended(&good)), (4, 0));
        drop((both, good));
        assert!(clients.is_empty());
    }

    /// With one client too many, each wait that ended made its client ask again, and so ended another one.
    #[test]
    fn a_wait_that_finds_no_place_among_equals_disturbs_nobody() {
        let clients = Clients::new(10);
        let few: Vec<_> = (0..10).map(|n| clients.hold(n, n)).collect();
        for n in 10..20 {
            let other = clients.hold(n, n);
            assert!(is_ended(&other) && ended(&few) == 0);
        }
        assert!(!is_ended(&clients.hold(5, 50)), "a log that is waited for already takes no place");
        drop(few);
        assert!(clients.is_empty());
    }
}
