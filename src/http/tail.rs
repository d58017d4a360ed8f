//! The live end of a log, by Server-Sent Events: each record an event whose `id` is its offset, so that a client
//! that comes again with `Last-Event-ID` goes on where it was.
//!
//! The log itself is the buffer: the next piece is made when the connection has taken the last one, and those at the
//! log's end share it (`feed`). A reader that takes nothing for a while is dropped, told so by an event if it reads on
//! before its connection is given up, and may resume.

use super::{
    answer::Answer,
    context::Context,
    feed::{self, Feed, Wake},
    memory::Purpose,
    problem::Problem,
};
use crate::{log::Error, store::OpenLog};
use http_body_util::{BodyExt, Either};
use hyper::{
    Response,
    body::{Body, Bytes, Frame},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

/// How often a tail asks for memory, where there was none.
const ASK: Duration = Duration::from_millis(20);

/// Answers with the records from `offset` on, for as long as the client and the log are there.
pub(super) fn stream(context: &Arc<Context>, log: &Arc<OpenLog>, offset: u64) -> Result<Answer, Problem> {
    let first = log.first_offset();
    if offset < first {
        return Err(Error::Trimmed { offset, first }.into());
    }
    context.metrics.tails.inc();
    let feed = context.feeds.of(log, context.limits.heartbeat, &context.stopped);
    let tail = Tail {
        beats: feed.beats(),
        feed,
        context: Arc::clone(context),
        log: Arc::clone(log),
        offset,
        // At once, so that the client sees that it is connected.
        stage: Stage::Opening,
        patience: context.limits.body_time / 2,
        given: Instant::now(),
        asked: false,
    };
    let mut answer = Response::new(Either::Right(Events { next: Box::pin(tail.next()) }.boxed_unsync()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// The next piece, and the tail to get the one behind it from.
type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Tail)>> + Send>>;

/// The body: hyper asks for the next piece when the connection has room for it.
struct Events {
    next: Next,
}

impl Body for Events {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some((bytes, tail)) = ready!(self.next.as_mut().poll(context)) else {
            self.next = Box::pin(async { None }); // whoever asks again gets the same answer
            return Poll::Ready(None);
        };
        self.next = Box::pin(tail.next());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Following,
    /// The last event is out.
    Ended,
}

struct Tail {
    context: Arc<Context>,
    log: Arc<OpenLog>,
    feed: Arc<Feed>,
    /// Of the next event.
    offset: u64,
    /// Those of the feed that were told.
    beats: u64,
    stage: Stage,
    /// How long the connection may leave a piece lying.
    patience: Duration,
    /// When it was given the last one, and whether it has asked for the next.
    given: Instant,
    asked: bool,
}

/// Why a tail ends with an event.
enum End {
    Dropped,
    Failed(Error),
}

impl Tail {
    /// The next piece of the answer; `None` once it has ended. Polled when the connection has room for it.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        if self.left_lying() {
            return Some((self.last_event(&End::Dropped), self));
        }
        self.asked = true;
        let bytes = match self.stage {
            Stage::Ended => return None,
            Stage::Opening => {
                self.stage = Stage::Following;
                Bytes::from_static(b": millstream\n\n")
            }
            Stage::Following => match self.events().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) | Err(Error::Closed) => return None, // nothing to say
                Err(error) => self.last_event(&End::Failed(error)),
            },
        };
        (self.given, self.asked) = (Instant::now(), false);
        Some((bytes, self))
    }

    /// Whether the connection has had no room for longer than it may.
    fn left_lying(&self) -> bool {
        self.stage == Stage::Following && !self.asked && self.given.elapsed() > self.patience
    }

    /// The next events, or a comment where there are none for a while; `None` when the server stops.
    async fn events(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.feed.wait(self.offset, self.beats).await? {
                Wake::Stopped => return Ok(None),
                Wake::Beat(beats) => {
                    self.beats = beats;
                    return Ok(Some(Bytes::from_static(b":\n\n")));
                }
                Wake::Grown => {}
            }
            let (bytes, next) = match self.feed.latest(self.offset, &self.context.memory) {
                Some(latest) => latest?,
                None => self.behind().await?,
            };
            (self.offset, self.beats) = (next, self.feed.beats());
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            tokio::time::sleep(ASK).await; // there is more, and no memory for it
        }
    }

    /// The next events of one who is not at the end; off the runtime's thread where the disk has to be asked.
    async fn behind(&self) -> Result<(Bytes, u64), Error> {
        let mut reader = self.log.reader(self.offset);
        let grant = self.context.memory.grant(Purpose::Answer);
        let run = move || feed::render(&mut reader, grant).map(|events| (events, reader.offset()));
        if self.log.is_in_memory(self.offset) {
            return run();
        }
        let Ok(turn) = self.context.memory.turn_to_read(self.context.limits.append_time).await else {
            return Ok((Bytes::new(), self.offset)); // asks again
        };
        let run = move || {
            let _turn = turn;
            run()
        };
        let failed = || Error::Failed { reason: "reading failed unexpectedly".into() };
        tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(failed()))
    }

    fn last_event(&mut self, end: &End) -> Bytes {
        self.stage = Stage::Ended;
        let (event, why) = match end {
            End::Dropped => {
                self.context.metrics.readers_dropped.inc();
                ("dropped", "you read too slowly; connect again to resume".to_owned())
            }
            End::Failed(error) => ("error", error.to_string()),
        };
        let why = serde_json::Value::from(why); // on one line, whatever is in it
        let next = self.offset;
        format!("event: {event}\ndata: {{\"detail\":{why},\"next_offset\":{next}}}\n\n").into()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.context.metrics.tails.dec();
    }
}
