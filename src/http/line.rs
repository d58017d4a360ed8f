//! Turns at what only few may do at once: reading from the disk, looking for the end of a range, taking bodies apart. They are dealt
//! out round the connections: of each kind, one request of a connection waits among those of others, and the rest of it behind that one.
//! Otherwise a client with many requests in flight has nearly all turns. Where one is free, it is taken without any of this.

use super::problem::Problem;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What turns are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To take a body apart, by how much work that is: see `memory::Work`.
    LittleBody,
    MoreBody,
    MuchBody,
    /// To look through the log for the end of a range.
    Look,
    /// To read what is on the disk, or to make something of a record that is large.
    Read,
    /// The same of a record that is very large.
    ReadLarge,
}

pub(super) const KINDS: usize = 6;

/// A turn, given back when it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

/// The requests of one connection, by what they wait for.
pub(super) struct Line([Semaphore; KINDS]);

impl Default for Line {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Semaphore::new(1)))
    }
}

/// The turns that there are.
#[derive(Debug)]
pub(super) struct AllTurns([Arc<Semaphore>; KINDS]);

impl AllTurns {
    /// So many of each kind, in their order; one at the least.
    pub(super) fn new(turns: [usize; KINDS]) -> Self {
        Self(turns.map(|turns| Arc::new(Semaphore::new(turns.max(1)))))
    }

    /// Waits for a turn, in the line of a connection.
    pub(super) async fn turn(&self, kind: Kind, line: &Line, patience: Duration) -> Result<Turn, Problem> {
        let turns = &self.0[kind as usize];
        // There is none as long as somebody waits: that one is given what comes back.
        if let Ok(turn) = Arc::clone(turns).try_acquire_owned() {
            return Ok(turn);
        }
        let wait = async {
            let _first = line.0[kind as usize].acquire().await;
            Arc::clone(turns).acquire_owned().await
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Problem::no_turn()),
        }
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

    /// All requests stood in one line, in the order of asking.
    #[test]
    fn a_connection_with_one_request_does_not_wait_for_all_of_one_with_many() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _within = runtime.enter(); // for its timers
        let all = AllTurns::new([1; KINDS]);
        let (many, one) = (Line::default(), Line::default());
        let ask = |line| -> Waiting<'_> { Box::pin(all.turn(Kind::Read, line, Duration::from_secs(60))) };
        let held = poll(&mut ask(&many)).expect("nobody has it");
        let mut waiting: Vec<_> = (0..50).map(|_| ask(&many)).collect();
        // Those that have got theirs wait no more.
        let mut get_on = |most: usize| {
            let mut turns = Vec::new();
            waiting.retain_mut(|one| poll(one).map(|turn| turns.push(turn)).is_none());
            waiting.truncate(most); // the others are gone
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
