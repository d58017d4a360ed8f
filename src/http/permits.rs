//! Permits for what only a few requests may do at once: reading from the disk, looking for the end of a range, parsing
//! bodies, appending large batches, opening logs. They are shared fairly among connections: for each kind, one request
//! of a connection waits among those of other connections, and its other requests wait behind that one. Otherwise a
//! client with many requests in flight would get nearly all permits. If a permit is free, it is taken without any of this.

use super::{effort::Work, problem::Problem};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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

/// A connection's places in line for permits: for each kind, of its requests, the one that waits beside those of other
/// connections.
pub(super) struct PermitLines([Semaphore; Kind::ALL.len()]);

impl Default for PermitLines {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Semaphore::new(1)))
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
    pub(super) async fn wait(&self, kind: Kind, lines: &PermitLines) -> Option<Permit> {
        let _first = lines.0[kind as usize].acquire().await;
        Arc::clone(&self.0[kind as usize]).acquire_owned().await.ok() // an error if it were closed, which it never is
    }

    /// Waits for a permit, in the queue of a connection.
    pub(super) async fn acquire(
        &self,
        kind: Kind,
        lines: &PermitLines,
        patience: Duration,
    ) -> Result<Permit, Problem> {
        if let Some(permit) = self.free(kind) {
            return Ok(permit);
        }
        let permit = tokio::time::timeout(patience, self.wait(kind, lines)).await;
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
        let (many, one) = (PermitLines::default(), PermitLines::default());
        let ask =
            |lines| -> Waiting<'_> { Box::pin(all.acquire(Kind::Read, lines, Duration::from_secs(60))) };
        let held = poll(&mut ask(&many)).expect("nobody has it");
        let mut waiting: Vec<_> = (0..50).map(|_| ask(&many)).collect();
        // Requests that have had their permit stop waiting.
        let mut get_on = |max: usize| {
            let mut permits = Vec::new();
            waiting.retain_mut(|one| poll(one).map(|permit| permits.push(permit)).is_none());
            waiting.truncate(max); // the others have given up
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
