//! A frontier: a number that only grows, and that threads and tasks can wait for to pass a point.
//!
//! Reading and advancing it take no lock unless a caller waits for what is reached. No wake-up is lost: a waiter
//! notes its point and then reads the value by adding zero to it; an advancing thread raises the value and then looks
//! for the nearest point. Of these two read-modify-writes of the value the later one acquires from the earlier, so
//! one of them sees the other. (Two plain accesses each would need `SeqCst`, and loom could not check them.)

use crate::sync::{AtomicU64, Mutex, Ordering, lock, thread};
use crossbeam::utils::CachePadded;
use std::{
    collections::BTreeMap,
    task::{Wake, Waker},
};

const NOBODY: u64 = u64::MAX;

/// A number that only grows, and what waits for it to pass a point.
pub(crate) struct Frontier {
    value: CachePadded<AtomicU64>,
    /// The lowest point that a caller waits for.
    nearest: AtomicU64,
    waiting: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    /// By point, then by ticket: each wake-up takes from the front.
    wakers: BTreeMap<(u64, u64), Waker>,
    tickets: u64,
}

impl Waiters {
    fn nearest(&self) -> u64 {
        self.wakers.first_key_value().map_or(NOBODY, |((point, _), _)| *point)
    }
}

/// A waiter's place in the queue. To be given back with [`Frontier::leave`].
pub(crate) type Ticket = (u64, u64);

impl Frontier {
    pub(crate) fn new(value: u64) -> Self {
        Self {
            value: CachePadded::new(AtomicU64::new(value)),
            nearest: AtomicU64::new(NOBODY),
            waiting: Mutex::new(Waiters::default()),
        }
    }

    /// The value. What it announces happens before this returns.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Raises the value to `to`, if it is lower, and wakes those that waited for it.
    pub(crate) fn advance(&self, to: u64) {
        self.value.fetch_max(to, Ordering::AcqRel);
        if self.nearest.load(Ordering::Acquire) <= to {
            self.wake(to);
        }
    }

    /// Wakes all waiters, whatever they wait for: the log has stopped, and they must look why.
    pub(crate) fn wake_all(&self) {
        self.wake(NOBODY);
    }

    fn wake(&self, to: u64) {
        let reached = {
            let mut waiting = lock(&self.waiting);
            let later = if to == NOBODY { BTreeMap::new() } else { waiting.wakers.split_off(&(to + 1, 0)) };
            let reached = std::mem::replace(&mut waiting.wakers, later);
            self.nearest.store(waiting.nearest(), Ordering::Release);
            reached
        };
        reached.into_values().for_each(Waker::wake); // outside the lock: a waker may run anything
    }

    /// Joins the queue of waiters for the value to reach `point`; `None` if it has already. Give the
    /// ticket back, woken or not.
    pub(crate) fn join(&self, point: u64, waker: &Waker) -> Option<Ticket> {
        if self.get() >= point {
            return None;
        }
        let ticket = {
            let mut waiting = lock(&self.waiting);
            waiting.tickets += 1;
            let ticket = (point, waiting.tickets);
            waiting.wakers.insert(ticket, waker.clone());
            self.nearest.store(waiting.nearest(), Ordering::Release);
            ticket
        };
        if self.value.fetch_add(0, Ordering::AcqRel) >= point {
            self.leave(ticket);
            return None;
        }
        Some(ticket)
    }

    /// Leaves the queue, if still in it.
    pub(crate) fn leave(&self, ticket: Ticket) {
        let mut waiting = lock(&self.waiting);
        let waker = waiting.wakers.remove(&ticket);
        if waker.is_some() {
            self.nearest.store(waiting.nearest(), Ordering::Release);
        }
        drop(waiting);
        drop(waker); // may run anything, and leave this queue again
    }

    /// Parks this thread until the value reaches `point`, or until `give_up` returns true after a wake-up, or until
    /// `deadline`.
    pub(crate) fn park(&self, point: u64, give_up: impl Fn() -> bool, deadline: Option<std::time::Instant>) {
        let waker = unpark_this_thread();
        while let Some(ticket) = self.join(point, &waker) {
            if !give_up() {
                park_until(deadline);
            }
            self.leave(ticket);
            if give_up() || deadline.is_some_and(|deadline| std::time::Instant::now() >= deadline) {
                return;
            }
        }
    }
}

pub(super) fn park_until(deadline: Option<std::time::Instant>) {
    #[cfg(not(any(loom, shuttle)))]
    if let Some(deadline) = deadline {
        return thread::park_timeout(deadline.saturating_duration_since(std::time::Instant::now()));
    }
    let _ = deadline;
    thread::park();
}

pub(super) fn unpark_this_thread() -> Waker {
    Waker::from(std::sync::Arc::new(Unpark(thread::current())))
}

/// Wakes a parked thread.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// Returns `ended`, or success if what was waited for is `reached` after all. A log raises its frontiers before it
/// records that it has ended, so one more look is enough.
pub(crate) fn unless_reached(
    ended: Result<(), super::Error>,
    reached: impl FnOnce() -> bool,
) -> Result<(), super::Error> {
    ended.or_else(|ended| if reached() { Ok(()) } else { Err(ended) })
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::Arc;

    #[test]
    fn loom_no_wake_up_is_lost_between_a_waiter_and_an_advance() {
        loom::model(|| {
            let frontier = Arc::new(Frontier::new(0));
            let waiter = Arc::clone(&frontier);
            let waiter = thread::spawn(move || waiter.park(2, || false, None));
            frontier.advance(1);
            frontier.advance(2);
            waiter.join().unwrap(); // loom: a deadlock here is a lost wake-up
        });
    }

    #[test]
    fn loom_two_waiters_for_different_offsets_are_both_woken() {
        crate::sync::model(|| {
            let frontier = Arc::new(Frontier::new(0));
            let waiters = [1, 2].map(|point| {
                let frontier = Arc::clone(&frontier);
                thread::spawn(move || frontier.park(point, || false, None))
            });
            frontier.advance(2);
            for waiter in waiters {
                waiter.join().unwrap();
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_that_leaves_is_forgotten_and_the_next_target_is_used() {
        let frontier = Frontier::new(0);
        let near = frontier.join(5, Waker::noop()).unwrap();
        frontier.join(9, Waker::noop()).unwrap();
        assert_eq!(frontier.nearest.load(Ordering::SeqCst), 5);
        frontier.leave(near);
        assert_eq!(frontier.nearest.load(Ordering::SeqCst), 9);
        frontier.advance(9);
        assert!(lock(&frontier.waiting).wakers.is_empty());
        assert_eq!(frontier.join(9, Waker::noop()), None);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let frontier = Frontier::new(0);
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(5);
        frontier.park(1, || false, Some(deadline));
        assert!(std::time::Instant::now() >= deadline);
    }
}
