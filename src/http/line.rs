//! Turns for what only a few requests may do at once: reading from the disk, looking for the end of a range, parsing
//! bodies, appending large batches, opening logs. Turns are shared fairly among connections: for each kind, one request
//! of a connection waits among those of other connections, and its other requests wait behind that one. Otherwise a
//! client with many requests in flight would get nearly all turns. If a turn is free, it is taken without any of this.

use super::problem::Problem;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// What turns are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To parse a body, by how much work that is: see `memory::Work`.
    LittleBody,
    MoreBody,
    MuchBody,
    /// To look through the log for the end of a range.
    Look,
    /// To read from the disk, or to render a large record.
    Read,
    /// To read a very large record, from the disk or from memory.
    ReadLarge,
    /// To append a large batch: its copy and its checksums take milliseconds.
    Append,
    /// To do something that may take long for a log: see `log_turns`.
    Log,
}

pub(super) const KINDS: usize = 8;

/// A turn, given back when it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

/// The queues of one connection, one for each kind of turn.
pub(super) struct Line {
    first: [Semaphore; KINDS],
    /// For its requests that wait for a log that is busy with another request.
    busy_logs: Semaphore,
}

/// How many requests of a connection wait for busy logs at once: few, so that none waits for all of another connection;
/// and more than one, so that a busy log does not keep all requests of a connection for other logs waiting.
const BUSY_LOGS: usize = 8;

impl Default for Line {
    fn default() -> Self {
        let first = std::array::from_fn(|_| Semaphore::new(1));
        Self { first, busy_logs: Semaphore::new(BUSY_LOGS) }
    }
}

impl Line {
    /// The right to wait for a log that is busy, kept until the wait is over.
    pub(super) async fn for_a_busy_log(&self) -> Option<SemaphorePermit<'_>> {
        self.busy_logs.acquire().await.ok() // an error if it were closed, which it never is
    }
}

/// All turns of the server.
#[derive(Debug)]
pub(super) struct AllTurns([Arc<Semaphore>; KINDS]);

impl AllTurns {
    /// Creates this many turns of each kind, in the order of the kinds; at least one of each.
    pub(super) fn new(turns: [usize; KINDS]) -> Self {
        Self(turns.map(|turns| Arc::new(Semaphore::new(turns.max(1)))))
    }

    /// Returns a turn if one is free. None is free as long as a request waits: a turn that is given back goes to a
    /// waiting request.
    pub(super) fn free(&self, kind: Kind) -> Option<Turn> {
        Arc::clone(&self.0[kind as usize]).try_acquire_owned().ok()
    }

    /// Waits for a turn, in the queue of a connection, for as long as it takes. For when none is [free](Self::free).
    pub(super) async fn wait(&self, kind: Kind, line: &Line) -> Option<Turn> {
        let _first = line.first[kind as usize].acquire().await;
        Arc::clone(&self.0[kind as usize]).acquire_owned().await.ok() // an error if it were closed, which it never is
    }

    /// Waits for a turn, in the queue of a connection.
    pub(super) async fn turn(&self, kind: Kind, line: &Line, patience: Duration) -> Result<Turn, Problem> {
        if let Some(turn) = self.free(kind) {
            return Ok(turn);
        }
        let turn = tokio::time::timeout(patience, self.wait(kind, line)).await;
        turn.ok().flatten().ok_or_else(Problem::no_turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Turn, Problem>> + 'a>>;

    fn poll(waiting: &mut Waiting<'_>) -> Option<Turn> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn.ok(),
            Poll::Pending => None,
        }
    }

    /// All requests waited in one queue, in the order in which they asked.
    #[test]
    fn a_connection_with_one_request_does_not_wait_for_all_of_one_with_many() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _within = runtime.enter(); // for its timers
        let all = AllTurns::new([1; KINDS]);
        let (many, one) = (Line::default(), Line::default());
        let ask = |line| -> Waiting<'_> { Box::pin(all.turn(Kind::Read, line, Duration::from_secs(60))) };
        let held = poll(&mut ask(&many)).expect("nobody has it");
        let mut waiting: Vec<_> = (0..50).map(|_| ask(&many)).collect();
        // Requests that have had their turn stop waiting.
        let mut get_on = |most: usize| {
            let mut turns = Vec::new();
            waiting.retain_mut(|one| poll(one).map(|turn| turns.push(turn)).is_none());
            waiting.truncate(most); // the others have given up
            turns
        };
        assert!(get_on(50).is_empty());
        let mut other = ask(&one);
        assert!(poll(&mut other).is_none(), "two at once");
        let mut look: Waiting<'_> = Box::pin(all.turn(Kind::Look, &many, Duration::ZERO));
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
