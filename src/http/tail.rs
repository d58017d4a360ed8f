//! The live end of a log, as Server-Sent Events: each record is an event whose `id` is its offset, so that a client
//! that reconnects with `Last-Event-ID` continues where it was.
//!
//! The log itself is the buffer: the next piece is made when the connection has taken the last one, and the tails at
//! the log's end share it (`feed`). A reader that takes nothing for a while is dropped, is told so by an event if it
//! reads on before its connection is given up, and may resume.

use super::{
    answer::{Answer, Endless, keep_from_proxies, log_id, piece_by_piece},
    context::Context,
    feed::{self, Feed, Latest, Wake},
    fetch::{self, Patience},
    headers::LOG_ID,
    memory::Grant,
    place::{Made, Place},
    problem::Problem,
    reading::OnDamage,
    share::ConnectionShare,
    waited::LogWait,
};
use crate::{
    log::{Error, Reader},
    store::OpenLog,
};
use hyper::{
    Response,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
};
use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Answers with the records from `offset` on, for as long as the client and the log exist.
pub(super) fn stream(
    context: &Arc<Context>,
    share: &Arc<ConnectionShare>,
    log: &Arc<OpenLog>,
    offset: u64,
    damaged: OnDamage,
) -> Result<Answer, Problem> {
    let first = log.first_offset();
    if offset < first {
        return Err(Error::Trimmed { offset, first }.into());
    }
    context.metrics.tails.inc();
    let feed = context.feeds.of(log, context.settings.heartbeat, &context.stopped);
    let tail = Tail {
        beats: feed.beats(),
        feed,
        context: Arc::clone(context),
        log_wait: context.waited.begin(log, share),
        share: Arc::clone(share),
        log: Arc::clone(log),
        offset,
        damaged,
        // At once, so that the client sees that it is connected.
        stage: Stage::Opening,
        patience: context.settings.body_time / 2,
        given: Instant::now(),
        asked: false,
    };
    let mut answer = Response::new(piece_by_piece(tail, Tail::next));
    answer.extensions_mut().insert(Endless);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(LOG_ID, log_id(log.id()));
    keep_from_proxies(headers);
    Ok(answer)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Following,
    /// The last event has been sent.
    Ended,
}

struct Tail {
    context: Arc<Context>,
    share: Arc<ConnectionShare>,
    log: Arc<OpenLog>,
    feed: Arc<Feed>,
    log_wait: LogWait,
    /// The offset of the next event.
    offset: u64,
    damaged: OnDamage,
    /// The number of heartbeats of the feed that the client has seen.
    beats: u64,
    stage: Stage,
    /// How long the connection may go without taking a piece, and how long to wait for a piece.
    patience: Duration,
    /// When the connection was given the last piece.
    given: Instant,
    /// Whether it has asked for the next one.
    asked: bool,
}

/// Why a tail ends with an event.
enum End {
    Dropped,
    /// No memory or no permit came.
    Overloaded,
    Failed(Error),
    /// A record is damaged, or cannot be read: where to continue.
    Damaged(Error, u64),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Tail {
    /// The next piece of the answer; `None` once it has ended. Polled when the connection has room for it.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.is_too_slow() {
            return Ok(Some((self.last_event(&End::Dropped), self)));
        }
        self.asked = true;
        let bytes = match self.stage {
            Stage::Ended => return Ok(None),
            Stage::Opening => {
                self.stage = Stage::Following;
                Bytes::from_static(b": millstream\n\n")
            }
            // Also when there is more: the client continues where it was.
            Stage::Following if *self.context.stopped.borrow() || self.log_wait.has_ended() => {
                return Ok(None);
            }
            Stage::Following => match self.events().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(None), // nothing to report
                Err(End::Failed(Error::Closed)) if !self.log.is_deleted() => return Ok(None),
                Err(end) => self.last_event(&end),
            },
        };
        (self.given, self.asked) = (Instant::now(), false);
        Ok(Some((bytes, self)))
    }

    /// Whether the connection has had no room for longer than allowed.
    fn is_too_slow(&self) -> bool {
        self.stage == Stage::Following && !self.asked && self.given.elapsed() > self.patience
    }

    /// The next events, or a comment if there are none for a while; `None` when the server is stopping.
    async fn events(&mut self) -> Result<Option<Bytes>, End> {
        loop {
            let news = tokio::select! {
                news = self.feed.wait(self.offset, self.beats) => news?,
                () = self.log_wait.ended() => return Ok(None),
            };
            match news {
                Wake::Stopped => return Ok(None),
                Wake::Beat(beats) => {
                    self.beats = beats;
                    return Ok(Some(Bytes::from_static(b":\n\n")));
                }
                Wake::Grown => {}
            }
            let (bytes, next) = match self.feed.latest(self.offset, &self.context.memory)? {
                Latest::Events(bytes, next) => (bytes, next),
                // Boxed: most tails wait for news.
                Latest::Behind => Box::pin(self.in_time(self.behind())).await?,
                Latest::Large => Box::pin(self.in_time(self.large())).await?,
            };
            (self.offset, self.beats) = (next, self.feed.beats());
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    /// Limits how long to wait for the next events.
    async fn in_time<T>(&self, made: impl Future<Output = Result<T, End>>) -> Result<T, End> {
        tokio::time::timeout(self.patience, made).await.unwrap_or(Err(End::Overloaded))
    }

    /// The next events of a tail that is not at the end.
    async fn behind(&self) -> Result<(Bytes, u64), End> {
        let attempt = |reader: &mut Reader, place: Place, grant: Grant| {
            let made = match feed::render(reader, place, grant) {
                Ok(Made::Wants(wants)) => Made::Wants(wants),
                Ok(Made::Done(events)) => Made::Done(Ok(events)),
                Err(error) => Made::Done(Err(match error.bad_record() {
                    None => End::from(error),
                    Some(offset) => match reader.seek_readable(offset + 1) {
                        Ok(()) => End::Damaged(error, reader.offset()),
                        Err(error) => End::from(error),
                    },
                })),
            };
            reader.release();
            Ok(made)
        };
        let (reader, place) = (self.log.reader(self.offset), Place::first(&self.log, self.offset));
        let made =
            fetch::make(&self.context, &self.share, place, Patience::of(self.patience), reader, attempt)
                .await;
        match made {
            Ok((_, Err(End::Damaged(_, next)))) if self.damaged == OnDamage::Skip => Ok((Bytes::new(), next)),
            Ok((reader, events)) => Ok((events?, reader.offset())),
            Err(problem) if problem.is_overload() => Err(End::Overloaded),
            Err(problem) => Err(Error::Failed { reason: problem.to_string().into() }.into()),
        }
    }

    /// The next events of a tail that is at the end, if they take long: rendered once for all tails that wait for them.
    async fn large(&self) -> Result<(Bytes, u64), End> {
        let _first = self.feed.one_at_a_time().await;
        if let Latest::Events(bytes, next) = self.feed.latest(self.offset, &self.context.memory)? {
            return Ok((bytes, next)); // another tail has had it rendered meanwhile
        }
        let (bytes, next) = self.behind().await?;
        self.feed.share(self.offset, &bytes, next);
        Ok((bytes, next))
    }

    fn last_event(&mut self, end: &End) -> Bytes {
        self.stage = Stage::Ended;
        let (event, why) = match end {
            End::Dropped => {
                self.context.metrics.readers_dropped.inc();
                ("dropped", "you read too slowly; connect again to resume".to_owned())
            }
            End::Overloaded => {
                self.context.metrics.readers_dropped.inc();
                ("dropped", "there is no memory for the next records; reconnect later to resume".to_owned())
            }
            End::Failed(_) | End::Damaged(..) if self.log.is_deleted() => {
                ("log_deleted", "the log was deleted".to_owned())
            }
            // Not `error`, which `EventSource` uses for what happens to the connection.
            End::Failed(error) => ("failed", error.to_string()),
            End::Damaged(error, _) => ("failed", Problem::from(error.clone()).to_string()),
        };
        let why = serde_json::Value::from(why); // on one line, whatever it contains
        let next = self.offset;
        let readable = match end {
            End::Damaged(_, next) => format!(",\"next_readable\":{next}"),
            _ => String::new(),
        };
        format!("event: {event}\ndata: {{\"detail\":{why},\"next_offset\":{next}{readable}}}\n\n").into()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.context.metrics.tails.dec();
    }
}
