//! An HTTP/2 request in flight, from its head until its stream is closed, and what h2 has of its answer.
//!
//! h2 takes a part of an answer as soon as the client has room for a byte of it, and keeps the rest until the client has
//! room for that too. The body of an answer would then have ended, for hyper, with much of it in memory, and with nobody
//! left who could reset the stream. So each part that h2 is given tells when h2 drops it, because it was sent or the stream
//! was reset; and the end of an answer is a part of its own, without bytes, which is given only when all others have been
//! dropped. It holds the stream until it is sent as well. Small answers end with their only part: that saves a frame and a
//! write for each, and if a client does not take one, its whole connection is closed.

use super::{Connection, Connections, pace::Pace, since::Since};
use crate::sync::lock;
use bytes::Bytes;
use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};
use tokio::task::AbortHandle;

/// How a request is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Count {
    /// Among the requests in flight.
    Accepted,
    /// Among those that are refused, as more are in flight than the server accepts.
    Refused,
    /// Not at all: too many are refused, too. Its stream is reset at once.
    Nothing,
}

/// What is known of one such request. All of it happens on the connection's thread; Relaxed throughout.
pub(in crate::http) struct Stream {
    connection: Arc<Connection>,
    pub(in crate::http) count: Count,
    /// How many parts of the answer h2 has.
    parts: AtomicUsize,
    /// When it was last given one, or last dropped one while it had others; none if it has none.
    given: Since,
    /// How fast the client takes it.
    pub(super) pace: Pace,
    /// The task that waits until it has none.
    waiting: Mutex<Option<Waker>>,
    pub(super) aborted: AtomicBool,
    pub(in crate::http) task: OnceLock<AbortHandle>,
}

impl Stream {
    pub(super) fn begin(connection: &Arc<Connection>, count: Count) -> Arc<Self> {
        Arc::new(Self {
            connection: Arc::clone(connection),
            count,
            parts: AtomicUsize::new(0),
            given: Since::default(),
            pace: Pace::default(),
            waiting: Mutex::default(),
            aborted: AtomicBool::new(false),
            task: OnceLock::new(),
        })
    }

    /// Returns what to give to h2 for a part of the answer.
    pub(super) fn give(self: &Arc<Self>, data: Bytes) -> Bytes {
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.given.set(self.connection.all.now());
        Bytes::from_owner(Part { data, stream: Arc::clone(self) })
    }

    /// Returns what to give to h2 for the end of the answer, once it has dropped everything before it.
    pub(super) fn poll_end(self: &Arc<Self>, context: &Context<'_>) -> Poll<Bytes> {
        if self.parts.load(Ordering::Relaxed) > 0 {
            *lock(&self.waiting) = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Bytes::from_owner(End(Arc::clone(self))))
    }

    /// Whether h2 has a single part of the answer.
    pub(super) fn has_one_part(&self) -> bool {
        self.parts.load(Ordering::Relaxed) == 1
    }

    /// Whether the client has yet to take something of the answer.
    pub(super) fn is_stuck(&self) -> bool {
        self.given.is_set()
    }

    /// Resets the stream if the client takes nothing of the answer, or closes the connection if the answer has ended.
    /// Returns whether it did.
    pub(super) fn check_limits(&self, now: u64, body_time: u64) -> bool {
        let over = self.given.get().is_some_and(|given| now.saturating_sub(given) > body_time);
        if over {
            self.end("it does not take a small answer");
        }
        over
    }

    /// Ends the answer because the client takes it too slowly, while others are refused.
    pub(super) fn end_slow(&self) {
        self.connection.share.note_slow();
        self.end("it takes an answer slowly, and others are refused");
    }

    /// Resets the stream; or, if that is too late, closes its connection.
    fn end(&self, why: &str) {
        self.aborted.store(true, Ordering::Relaxed);
        if !self.reset() {
            self.connection.abort(why);
        }
    }

    /// Resets the stream. Returns `false` if that is too late, because hyper has given all of the answer to h2.
    pub(super) fn reset(&self) -> bool {
        let task = self.task.get().filter(|task| !task.is_finished());
        task.inspect(|task| task.abort()).is_some()
    }

    fn dropped_one(&self) {
        if self.parts.fetch_sub(1, Ordering::Relaxed) > 1 {
            self.given.set(self.connection.all.now());
        } else {
            self.given.clear();
        }
        self.connection.touch();
        if let Some(waiting) = lock(&self.waiting).take() {
            waiting.wake();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.answered();
        self.connection.all.count_no_more(self.count);
    }
}

/// A part of an answer, while h2 has it.
struct Part {
    data: Bytes,
    stream: Arc<Stream>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stream.pace.took(self.data.len() as u64);
        self.stream.dropped_one();
    }
}

/// The end of an answer, while h2 has it.
struct End(#[allow(dead_code, reason = "held until it is dropped")] Arc<Stream>);

impl AsRef<[u8]> for End {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}

impl Connections {
    /// Counts an HTTP/2 request in addition to `others` of its connection.
    pub(super) fn count(&self, others: usize) -> Count {
        let counts = [(&self.streams, Count::Accepted), (&self.refused, Count::Refused)];
        let free = counts.into_iter().find(|(streams, _)| self.try_count(streams, others));
        free.map_or(Count::Nothing, |(_, count)| count)
    }

    /// Counts something as a request in flight, if requests leave room for it.
    pub(super) fn count_other(&self) -> bool {
        self.try_count(&self.streams, usize::MAX)
    }

    pub(super) fn count_no_more(&self, count: Count) {
        match count {
            Count::Accepted => self.streams.fetch_sub(1, Ordering::Relaxed),
            Count::Refused => self.refused.fetch_sub(1, Ordering::Relaxed),
            Count::Nothing => 0,
        };
    }

    /// Counts one more, if that is allowed. Connections that have many get what is left of the first half of all; the
    /// other half is reserved for connections that have few.
    fn try_count(&self, streams: &AtomicUsize, others: usize) -> bool {
        let max = if others < super::RESERVED_STREAMS_PER_CONNECTION {
            self.max_streams
        } else {
            self.max_streams / 2
        };
        let more = |streams| (streams < max).then_some(streams + 1);
        streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}
