//! Logs that are waited for: by long polls and live tails, which keep their log open. The number of such logs is limited;
//! otherwise a few connections that wait for thousands of logs would take all descriptors.
//!
//! When one log too many is waited for, one of them is given up, which ends all waits for it. For each log, take the
//! waiting connection that waits for the fewest logs. The log for which that number is highest is given up; among
//! equals, the one whose oldest wait began last. So connections that wait for few logs keep them, and those that wait
//! for many lose waits. If every connection waits for one log only, the wait that has just begun ends at once, and
//! disturbs nobody.
//!
//! A long poll that ends so is refused, with the time after which to try again; a tail ends as when the server stops, so
//! that its client reconnects and continues where it was.

use super::share::ConnectionShare;
use crate::{store::OpenLog, sync::lock};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// The logs that are kept open because requests wait for them, up to a limit.
#[derive(Debug)]
pub(super) struct WaitedLogs {
    /// How many logs may be kept open.
    limit: usize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// The waits for each log, by the number of its opening, oldest first; none that have ended.
    waits: HashMap<u64, Vec<Waiter>>,
    /// How many logs each connection waits for, by its number.
    logs: HashMap<u64, usize>,
    /// The number of the next wait.
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    /// The number of the connection.
    connection: u64,
    end: Arc<Notify>,
}

/// A request's wait for a log, until this is dropped.
pub(super) struct LogWait {
    logs: Arc<WaitedLogs>,
    log: u64,
    number: u64,
    end: Arc<Notify>,
    share: Arc<ConnectionShare>,
}

impl WaitedLogs {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), all: Mutex::default() })
    }

    /// Records that a request of a connection waits for a log. The request must keep the log open for as long.
    pub(super) fn begin(self: &Arc<Self>, log: &OpenLog, share: &Arc<ConnectionShare>) -> LogWait {
        self.begin_for(log.number(), share)
    }

    fn begin_for(self: &Arc<Self>, log: u64, share: &Arc<ConnectionShare>) -> LogWait {
        share.begin_listening();
        let end = Arc::new(Notify::new());
        let connection = share.number();
        let mut all = lock(&self.all);
        let number = all.next;
        all.next += 1;
        all.add(log, Waiter { number, connection, end: Arc::clone(&end) });
        if all.waits.len() > self.limit {
            all.end_one();
        }
        LogWait { logs: Arc::clone(self), log, number, end, share: Arc::clone(share) }
    }
}

impl All {
    fn add(&mut self, log: u64, wait: Waiter) {
        let waits = self.waits.entry(log).or_default();
        if waits.iter().all(|other| other.connection != wait.connection) {
            *self.logs.entry(wait.connection).or_default() += 1;
        }
        waits.push(wait);
    }

    /// Forgets a wait, if it has not ended.
    fn remove(&mut self, log: u64, number: u64) {
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

    fn waits_for_one_less(&mut self, connection: u64) {
        if let Some(logs) = self.logs.get_mut(&connection) {
            *logs -= 1;
            if *logs == 0 {
                self.logs.remove(&connection);
            }
        }
    }

    /// Ends all waits for one log.
    fn end_one(&mut self) {
        let fewest = |waits: &[Waiter]| {
            waits.iter().map(|wait| self.logs.get(&wait.connection).copied().unwrap_or(0)).min().unwrap_or(0)
        };
        let begun = |waits: &[Waiter]| waits.first().map_or(0, |wait| wait.number);
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

impl LogWait {
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

impl Drop for LogWait {
    fn drop(&mut self) {
        self.share.end_listening();
        lock(&self.logs.all).remove(self.log, self.number);
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

    fn is_ended(wait: &LogWait) -> bool {
        pin!(wait.ended()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    struct Clients(Arc<WaitedLogs>, Vec<Arc<ConnectionShare>>);

    impl Clients {
        fn new(limit: usize) -> Self {
            Self(
                WaitedLogs::new(limit),
                (0..100).map(|number| Arc::new(ConnectionShare::new(number))).collect(),
            )
        }

        fn wait(&self, log: u64, connection: usize) -> LogWait {
            self.0.begin_for(log, &self.1[connection])
        }

        fn is_empty(&self) -> bool {
            let all = lock(&self.0.all);
            all.waits.is_empty() && all.logs.is_empty() && self.1.iter().all(|share| share.listening() == 0)
        }
    }

    fn ended(waits: &[LogWait]) -> usize {
        waits.iter().filter(|wait| is_ended(wait)).count()
    }

    /// Five connections with long polls for 200 logs each took all descriptors, and nobody else was served.
    #[test]
    fn waits_end_early_of_the_connection_that_keeps_most_logs_open() {
        let clients = Clients::new(10);
        let greedy: Vec<_> = (0..50).map(|n| clients.wait(n, 8)).collect();
        assert_eq!(ended(&greedy), 40);
        let good: Vec<_> = (0..6).map(|n| clients.wait(1000 + n as u64, n)).collect();
        assert_eq!((ended(&greedy), ended(&good)), (6, 0), "each takes a place of the one that has many");
        drop((greedy, good));
        assert!(clients.is_empty());
    }

    /// Two connections that waited for the same logs were counted for none of them: each wait of another client ended at
    /// once, again and again.
    #[test]
    fn connections_that_wait_for_the_same_many_logs_make_place_for_others() {
        let clients = Clients::new(10);
        let both: Vec<_> = (0..10).flat_map(|n| [clients.wait(n, 1), clients.wait(n, 2)]).collect();
        assert_eq!(ended(&both), 0);
        // Also if it waits for one of their logs.
        let good = [clients.wait(3, 7), clients.wait(1000, 7), clients.wait(1001, 8)];
        assert_eq!((ended(&both), ended(&good)), (4, 0));
        drop((both, good));
        assert!(clients.is_empty());
    }

    /// With one client too many, each wait that ended made its client ask again, and so ended another one.
    #[test]
    fn a_wait_that_finds_no_place_among_equals_disturbs_nobody() {
        let clients = Clients::new(10);
        let few: Vec<_> = (0..10).map(|n| clients.wait(n as u64, n)).collect();
        for n in 10..20 {
            let other = clients.wait(n as u64, n);
            assert!(is_ended(&other) && ended(&few) == 0);
        }
        assert!(!is_ended(&clients.wait(5, 50)), "a log that is waited for already takes no place");
        drop(few);
        assert!(clients.is_empty());
    }
}
