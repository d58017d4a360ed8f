//! Permits for what only a few requests may do at once: reading from the disk, looking for the end of a range, parsing
//! bodies, appending large batches, opening logs. They are shared fairly among connections: for each kind, one request
//! of a connection waits among those of other connections, and its other requests wait behind that one. Otherwise a
//! client with many requests in flight would get nearly all permits. If a permit is free, it is taken without any of this.

use super::{effort::Work, problem::Problem};
use crate::sync::lock;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What permits are for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All kinds, in the order in which they are declared.
            const ALL: [Self; [$(stringify!($name),)*].len()] = [$(Self::$name,)*];
        }
    };
}

kinds! {
    /// To parse a body, by how much [`Work`] that is.
    LightBody,
    MediumBody,
    HeavyBody,
    /// To look through the log for the end of a range.
    Look,
    /// To read from the disk, or to render a large record.
    Read,
    /// To read a very large record, from the disk or from memory.
    ReadLarge,
    /// To append a large batch: its copy and its checksums take milliseconds.
    Append,
    /// To do something that may take long for a log: see `log_permits`.
    Log,
    /// To ask for the memory of a large answer.
    Memory,
    /// To ask for the memory of a body that is to be received, by its size, if others wait for theirs.
    SmallBodyMemory,
    MediumBodyMemory,
    LargeBodyMemory,
}

impl From<Work> for Kind {
    fn from(work: Work) -> Self {
        match work {
            Work::Light => Self::LightBody,
            Work::Medium => Self::MediumBody,
            Work::Heavy => Self::HeavyBody,
        }
    }
}

/// The number of logs in the whole server for which something may take long at once: fewer than one runtime has
/// threads.
pub(super) const MAX_LOGS_AT_WORK: usize = 8;

/// Work on this many bytes or more is done off the runtime's thread, which has other requests to answer: checking a
/// mebibyte of JSON takes a millisecond.
pub(super) const OFFLOAD_BYTES: usize = 256 << 10;

/// A permit, released when it is dropped.
pub(super) type Permit = OwnedSemaphorePermit;

/// One connection's share of what all connections compete for: its places in line for permits, how many of its
/// requests wait for news, and whether it was slow to take an answer that others needed the memory of.
pub(super) struct ConnectionShare {
    /// Which connection it is of.
    number: u64,
    /// For each kind of permit: of its requests, the one that waits beside those of other connections.
    first: [Semaphore; Kind::ALL.len()],
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
            first: std::array::from_fn(|_| Semaphore::new(1)),
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

    pub(super) fn listens(&self) {
        self.listening.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn listens_no_more(&self) {
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

/// All permits of the server.
#[derive(Debug)]
pub(super) struct Permits([Arc<Semaphore>; Kind::ALL.len()]);

impl Permits {
    /// Creates as many permits of each kind as `count` says; at least one.
    pub(super) fn new(count: impl Fn(Kind) -> usize) -> Self {
        Self(Kind::ALL.map(|kind| Arc::new(Semaphore::new(count(kind).max(1)))))
    }

    /// The permits of a server that answers with `threads` threads, whose clients may make it hold `memory` bytes, with
    /// bodies of up to `largest` bytes, received or decoded.
    pub(super) fn for_server(memory: usize, largest: usize, threads: usize) -> Self {
        // A body takes what it decodes to, and what is parsed from that. The largest bodies have half of the memory, each
        // of the other two kinds half of what that leaves for bodies.
        let fit = |part: usize, bytes: usize| part / bytes.saturating_mul(2).max(1);
        let half = threads / 2;
        Self::new(|kind| match kind {
            Kind::LightBody => fit(memory / 8, Work::Light.bytes()).min(threads),
            Kind::MediumBody => fit(memory / 8, Work::Medium.bytes()).min(threads),
            Kind::HeavyBody => fit(memory / 2, largest).min(half),
            Kind::Read => threads,
            // These leave half of the processors to others.
            Kind::Look | Kind::ReadLarge | Kind::Append => half,
            Kind::Log => MAX_LOGS_AT_WORK,
            // One asks at a time.
            Kind::Memory | Kind::SmallBodyMemory | Kind::MediumBodyMemory | Kind::LargeBodyMemory => 1,
        })
    }

    /// Returns a permit if one is free. None is free as long as a request waits: a permit that is given back goes to a
    /// waiting request.
    pub(super) fn free(&self, kind: Kind) -> Option<Permit> {
        Arc::clone(&self.0[kind as usize]).try_acquire_owned().ok()
    }

    /// Waits for a permit, in the queue of a connection, for as long as it takes. For when none is [free](Self::free).
    pub(super) async fn wait(&self, kind: Kind, share: &ConnectionShare) -> Option<Permit> {
        let _first = share.first[kind as usize].acquire().await;
        Arc::clone(&self.0[kind as usize]).acquire_owned().await.ok() // an error if it were closed, which it never is
    }

    /// Waits for a permit, in the queue of a connection.
    pub(super) async fn acquire(
        &self,
        kind: Kind,
        share: &ConnectionShare,
        patience: Duration,
    ) -> Result<Permit, Problem> {
        if let Some(permit) = self.free(kind) {
            return Ok(permit);
        }
        let permit = tokio::time::timeout(patience, self.wait(kind, share)).await;
        permit.ok().flatten().ok_or_else(Problem::no_permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Permit, Problem>> + 'a>>;

    fn poll(waiting: &mut Waiting<'_>) -> Option<Permit> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => permit.ok(),
            Poll::Pending => None,
        }
    }

    #[test]
    fn each_kind_has_the_permits_that_are_meant_for_it() {
        assert!(Kind::ALL.iter().enumerate().all(|(n, &kind)| kind as usize == n));
        let available = |permits: &Permits| {
            let count = |kind: Kind| permits.0[kind as usize].available_permits();
            Kind::ALL.map(count)
        };
        // By kind: bodies of three sizes, looking, reading, reading large, appending, logs, memory of answers and of bodies.
        assert_eq!(
            available(&Permits::for_server(1 << 30, 64 << 20, 8)),
            [8, 8, 4, 4, 8, 4, 4, MAX_LOGS_AT_WORK, 1, 1, 1, 1]
        );
        assert_eq!(
            available(&Permits::for_server(64 << 20, 16 << 20, 8)),
            [4, 1, 1, 4, 8, 4, 4, MAX_LOGS_AT_WORK, 1, 1, 1, 1]
        );
        assert_eq!(
            available(&Permits::for_server(0, 0, 0)),
            [1, 1, 1, 1, 1, 1, 1, MAX_LOGS_AT_WORK, 1, 1, 1, 1]
        );
    }

    /// All requests waited in one queue, in the order in which they asked.
    #[test]
    fn a_connection_with_one_request_does_not_wait_for_all_of_one_with_many() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _within = runtime.enter(); // for its timers
        let all = Permits::new(|_| 1);
        let (many, one) = (ConnectionShare::default(), ConnectionShare::default());
        let ask =
            |share| -> Waiting<'_> { Box::pin(all.acquire(Kind::Read, share, Duration::from_secs(60))) };
        let held = poll(&mut ask(&many)).expect("nobody has it");
        let mut waiting: Vec<_> = (0..50).map(|_| ask(&many)).collect();
        // Requests that have had their permit stop waiting.
        let mut get_on = |most: usize| {
            let mut permits = Vec::new();
            waiting.retain_mut(|one| poll(one).map(|permit| permits.push(permit)).is_none());
            waiting.truncate(most); // the others have given up
            permits
        };
        assert!(get_on(50).is_empty());
        let mut other = ask(&one);
        assert!(poll(&mut other).is_none(), "two at once");
        let mut look: Waiting<'_> = Box::pin(all.acquire(Kind::Look, &many, Duration::ZERO));
        assert!(poll(&mut look).is_some(), "of another kind");
        drop(held);
        let next = get_on(10);
        assert_eq!((next.len(), poll(&mut other).is_some()), (1, false));
        drop(next);
        assert!(poll(&mut other).is_some(), "it waits for more than one of the many");
        for _ in 0..10 {
            assert_eq!(get_on(10).len(), 1, "nobody else gets on");
        }
        assert!(get_on(10).is_empty());
    }
}
