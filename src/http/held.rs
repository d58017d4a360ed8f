//! Logs that requests keep open while they wait for news: long polls and live tails. Such a log cannot be closed, so
//! there may only be so many, or a few connections that wait for thousands of logs would take all descriptors. When
//! there are more, waits end early: those of the connection that keeps the most logs open by itself, the oldest first.
//! Ending a wait early is within what is promised: a long poll is answered as if its time were up, and a tail ends as
//! when the server stops, so its client continues where it was.

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
    /// The waits for each log, oldest first.
    waits: HashMap<Instance, Vec<Wait>>,
    /// The number of the next wait.
    next: u64,
}

#[derive(Debug)]
struct Wait {
    number: u64,
    /// The address of the connection's queues, which live as long as it has requests.
    connection: usize,
    end: Arc<Notify>,
    is_ended: bool,
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
        let connection = Arc::as_ptr(queues).addr();
        queues.listens();
        let end = Arc::new(Notify::new());
        let mut all = lock(&self.all);
        let number = all.next;
        all.next += 1;
        let wait = Wait { number, connection, end: Arc::clone(&end), is_ended: false };
        all.waits.entry(log).or_default().push(wait);
        if all.waits.len() > self.limit {
            all.end_some(self.limit);
        }
        Hold { held: Arc::clone(self), log, number, end, connection: Arc::clone(queues) }
    }
}

impl All {
    /// Ends waits until only so many logs are kept open, apart from those whose waits are ending; or until each is
    /// waited for by several connections.
    fn end_some(&mut self, limit: usize) {
        let mut open = 0;
        // Of each connection, the logs that only it keeps open, with their oldest waits.
        let mut alone: HashMap<usize, Vec<(u64, Instance)>> = HashMap::new();
        for (&log, waits) in &self.waits {
            let mut waits = waits.iter().filter(|wait| !wait.is_ended);
            let Some(first) = waits.next() else { continue };
            open += 1;
            if waits.all(|wait| wait.connection == first.connection) {
                alone.entry(first.connection).or_default().push((first.number, log));
            }
        }
        // Sorted once: at most a few logs more than the limit are open, so few have to go.
        for logs in alone.values_mut() {
            logs.sort_unstable_by_key(|&(number, _)| std::cmp::Reverse(number));
        }
        for _ in limit..open {
            let Some(logs) = alone.values_mut().max_by_key(|logs| logs.len()) else { return };
            let Some((_, log)) = logs.pop() else { return };
            for wait in self.waits.get_mut(&log).into_iter().flatten() {
                wait.is_ended = true;
                wait.end.notify_one();
            }
        }
    }
}

impl Hold {
    /// Completes when the wait is to end early.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.connection.listens_no_more();
        let mut all = lock(&self.held.all);
        if let Some(waits) = all.waits.get_mut(&self.log) {
            waits.retain(|wait| wait.number != self.number);
            if waits.is_empty() {
                all.waits.remove(&self.log);
            }
        }
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

    /// Five connections with long polls for 200 logs each took all descriptors, and nobody else was served.
    #[test]
    fn waits_end_early_of_the_connection_that_keeps_most_logs_open() {
        let held = HeldLogs::new(10);
        let queues: Vec<_> = (0..101).map(|_| Arc::<Queues>::default()).collect();
        let log = |n| Instance::test(n);
        let good = held.hold_instance(log(1000), &queues[7]);
        let both = [held.hold_instance(log(1001), &queues[7]), held.hold_instance(log(1001), &queues[9])];
        let greedy: Vec<_> = (0..50).map(|n| held.hold_instance(log(n), &queues[8])).collect();
        let ended: Vec<_> = greedy.iter().map(is_ended).collect();
        let expected: Vec<_> = (0..50).map(|n| n < 42).collect();
        assert_eq!(ended, expected, "8 of them fit beside the other two");
        assert!(!is_ended(&good) && !both.iter().any(is_ended));
        // A second wait of the same connection for a log ends with the first.
        let twice = [held.hold_instance(log(49), &queues[8]), held.hold_instance(log(2000), &queues[8])];
        assert!(is_ended(&greedy[42]) && !is_ended(&twice[0]) && !is_ended(&twice[1]));
        drop((good, both, greedy, twice));
        assert!(lock(&held.all).waits.is_empty());
        // Many connections with a log each: one that has two goes first; otherwise the limit is exceeded by none.
        let few: Vec<_> = (0..10).map(|n| held.hold_instance(log(n), &queues[n])).collect();
        let second = held.hold_instance(log(99), &queues[3]);
        assert!(is_ended(&few[3]) && !is_ended(&second));
        let eleventh = held.hold_instance(log(100), &queues[100]);
        assert_eq!(few.iter().chain([&second, &eleventh]).filter(|hold| is_ended(hold)).count(), 1);
    }
}
