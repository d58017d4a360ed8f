//! A connection's share of what all connections compete for.

use super::permits::PermitLines;
use crate::sync::lock;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// One connection's share of what all connections compete for: its places in line for permits, how many of its
/// requests wait for news, and whether it was slow to take an answer while others needed its memory.
pub(super) struct ConnectionShare {
    /// The number of its connection.
    number: u64,
    pub(super) lines: PermitLines,
    /// Has a permit for each of its requests that may wait for a busy log, which is one that another request is at work on.
    busy_logs: Semaphore,
    /// How many of its requests wait for news. It protects no memory: Relaxed.
    listening: AtomicUsize,
    /// How many of its bodies wait for memory: with HTTP/2, they may keep its other bodies from coming. Likewise.
    waiting_bodies: AtomicUsize,
    /// When one of its answers was last ended because the client took it too slowly, while others were refused for lack of
    /// memory.
    was_slow: Mutex<Option<Instant>>,
}

/// How many requests of a connection may wait for busy logs at once. It is few, so that a request of another
/// connection, which stands in the same line for a log, has few before it; and more than one, so that one busy log does
/// not hold up what the connection wants of other logs.
const MAX_BUSY_LOG_WAITS: usize = 8;

#[cfg(test)]
impl Default for ConnectionShare {
    fn default() -> Self {
        Self::new(0)
    }
}

impl ConnectionShare {
    /// The share of the connection of this number.
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            lines: PermitLines::default(),
            busy_logs: Semaphore::new(MAX_BUSY_LOG_WAITS),
            listening: AtomicUsize::new(0),
            waiting_bodies: AtomicUsize::new(0),
            was_slow: Mutex::default(),
        }
    }

    /// The number of its connection, which no other has.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// How many requests of the connection wait for news: long polls and live tails.
    pub(super) fn listening(&self) -> usize {
        self.listening.load(Ordering::Relaxed)
    }

    pub(super) fn begin_listening(&self) {
        self.listening.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_listening(&self) {
        self.listening.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many of its bodies wait for memory.
    pub(super) fn waiting_bodies(&self) -> &AtomicUsize {
        &self.waiting_bodies
    }

    /// One of its answers was ended because it took it too slowly.
    pub(super) fn note_slow(&self) {
        *lock(&self.was_slow) = Some(Instant::now());
    }

    /// Whether that was the case within this time.
    pub(super) fn was_slow_within(&self, time: Duration) -> bool {
        lock(&self.was_slow).is_some_and(|when| when.elapsed() < time)
    }

    /// The right to wait for a log that is busy, kept until the wait is over.
    pub(super) async fn for_a_busy_log(&self) -> Option<SemaphorePermit<'_>> {
        self.busy_logs.acquire().await.ok() // an error if it were closed, which it never is
    }
}
