//! A request on a connection, from its head to the end of its answer: its body being received, its answer being sent,
//! and what remains of a body that nobody wants.

use super::{
    Connection, Http2, MAX_SMALL_BODY_BYTES, MAX_SMALL_BODY_TIME, MAX_UNWANTED_BODIES,
    MAX_UNWANTED_BODY_TIME, SEND_BYTES,
    stream::{Count, Stream},
};
use crate::{
    http::{answer, context::Context, memory::UNCOUNTED_BYTES},
    sync::lock,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering},
    task::{Poll, ready},
};

/// A request, from its head to the end of its answer.
pub(in crate::http) struct Exchange {
    pub(in crate::http) connection: Arc<Connection>,
    /// HTTP/2 only. What is counted ends with it, otherwise with the exchange.
    stream: Option<Arc<Stream>>,
}

impl Exchange {
    pub(in crate::http) fn begin(connection: &Arc<Connection>) -> Self {
        connection.touch();
        connection.used.store(true, Ordering::Relaxed);
        if let Some(http1) = connection.http1() {
            http1.begin_request();
        }
        let others = connection.requests.fetch_add(1, Ordering::Relaxed);
        let stream = connection.http2().map(|http2| {
            let stream = Stream::begin(connection, connection.all.count(others));
            lock(&http2.streams).push(Arc::downgrade(&stream));
            *lock(&http2.begun) = Some(Arc::clone(&stream));
            stream
        });
        Self { connection: Arc::clone(connection), stream }
    }

    /// Whether there are more requests in flight than the server accepts, or than this connection may have.
    pub(in crate::http) fn is_too_many(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.count != Count::Accepted)
    }

    fn is_aborted(&self) -> bool {
        self.connection.is_aborted()
            || self.stream.as_ref().is_some_and(|one| one.aborted.load(Ordering::Relaxed))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.stream.is_none() {
            self.connection.answered();
        }
    }
}

/// A request's body being received: while it keeps arriving, its connection makes progress.
pub(in crate::http) struct RequestBody {
    /// `None` once it has ended.
    body: Option<Incoming>,
    connection: Arc<Connection>,
    /// HTTP/2 only.
    stream: Option<Weak<Stream>>,
    /// Whether a handler is waiting for the next part of the body.
    awaited: bool,
    /// Whether the client asks before it sends the body: a body that is not wanted is not asked for.
    expects_continue: bool,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        self.set_awaited(polled.is_pending());
        let Poll::Ready(frame) = polled else {
            self.connection.note_incomplete_body();
            return Poll::Pending;
        };
        match &frame {
            None => self.body = None, // a chunked body does not itself report that it has ended
            Some(Ok(frame)) => {
                self.connection.arrived(frame.data_ref().map_or(0, |data| data.len() as u64));
            }
            Some(Err(_)) => {
                self.body = None;
                if let Some(http1) = self.connection.http1() {
                    http1.broken.store(true, Ordering::Relaxed);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::new, Body::size_hint)
    }
}

impl RequestBody {
    pub(in crate::http) fn new(body: Incoming, exchange: &Exchange, expects_continue: bool) -> Self {
        let (connection, stream) = (Arc::clone(&exchange.connection), exchange.stream.as_ref());
        Self {
            body: Some(body),
            connection,
            stream: stream.map(Arc::downgrade),
            awaited: false,
            expects_continue,
        }
    }

    fn set_awaited(&mut self, yes: bool) {
        match (std::mem::replace(&mut self.awaited, yes), yes) {
            (false, true) => self.connection.awaited.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.connection.awaited.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.set_awaited(false);
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if let Some(http1) = self.connection.http1() {
            let small = !self.expects_continue && body.size_hint().lower() <= MAX_SMALL_BODY_BYTES;
            let read = async move { small && read_small(body).await };
            *lock(&http1.unwanted) = Some(runtime.spawn(read));
            return;
        }
        let Some(http2) = self.connection.http2() else { return };
        // If it were dropped, the stream would be reset at once: curl and others then see no answer.
        let stream = self.stream.take().unwrap_or_default();
        match Unwanted::begin(&self.connection, http2, stream) {
            Ok(unwanted) => drop(runtime.spawn(unwanted.read(body))),
            Err(stream) => reset(&stream),
        }
    }
}

/// Reads an HTTP/1 body that nobody wants, if it is small and arrives soon. Returns whether all of it was read.
async fn read_small(mut body: Incoming) -> bool {
    let read = async {
        let mut left = MAX_SMALL_BODY_BYTES;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
        true
    };
    tokio::time::timeout(MAX_SMALL_BODY_TIME, read).await.unwrap_or(false)
}

/// Resets the stream of a body that nobody wants, if its request is still in flight: nobody would read what comes, such as
/// trailers, which h2 holds for as long as the stream is open.
fn reset(stream: &Weak<Stream>) {
    if let Some(stream) = stream.upgrade() {
        stream.reset();
    }
}

/// An HTTP/2 body that nobody wants. A connection may have a few of them, and more only if requests in flight leave
/// room.
struct Unwanted {
    connection: Arc<Connection>,
    stream: Weak<Stream>,
    counted: bool,
}

impl Unwanted {
    fn begin(
        connection: &Arc<Connection>,
        http2: &Http2,
        stream: Weak<Stream>,
    ) -> Result<Self, Weak<Stream>> {
        let others = http2.bodies.fetch_add(1, Ordering::Relaxed);
        let few = others < MAX_UNWANTED_BODIES;
        let counted = !few && connection.all.count_other();
        let unwanted = Self { connection: Arc::clone(connection), stream, counted };
        if few || counted { Ok(unwanted) } else { Err(unwanted.stream.clone()) }
    }

    /// Reads the body for a while: some clients look for an answer only when they have sent everything.
    async fn read(self, mut body: Incoming) {
        let read = async { while let Some(Ok(_)) = body.frame().await {} };
        if tokio::time::timeout(MAX_UNWANTED_BODY_TIME, read).await.is_err() {
            reset(&self.stream);
        }
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        if let Some(http2) = self.connection.http2() {
            http2.bodies.fetch_sub(1, Ordering::Relaxed);
        }
        if self.counted {
            self.connection.all.count_no_more(Count::Accepted);
        }
    }
}

/// An answer's body being sent.
pub(in crate::http) struct ResponseBody {
    body: answer::Body,
    /// With HTTP/2, what is left of a piece.
    left: Bytes,
    /// Whether the body has ended.
    ended: bool,
    /// Whether that was passed on.
    finished: bool,
    exchange: Exchange,
    context: Arc<Context>,
}

impl ResponseBody {
    pub(in crate::http) fn new(body: answer::Body, exchange: Exchange, context: Arc<Context>) -> Self {
        let ended = body.is_end_stream();
        Self { body, left: Bytes::new(), ended, finished: false, exchange, context }
    }

    /// The next frame of the body; `None` at its end.
    fn poll_body(&mut self, context: &mut std::task::Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.left.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.left)))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.ended = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.finished {
            return Poll::Ready(None);
        }
        let is_new = this.left.is_empty();
        let frame = ready!(this.poll_body(context)).transpose()?;
        let exchange = &this.exchange;
        let Some(frame) = frame else {
            // With HTTP/2 it waits until all of the answer has been taken, and then ends with a frame of its own.
            let end = match &exchange.stream {
                Some(stream) => Some(Ok(Frame::data(ready!(stream.poll_end(context))))),
                None => None,
            };
            this.finished = true;
            return Poll::Ready(end);
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let connection = &exchange.connection;
        let pace = exchange.stream.as_ref().map_or(&connection.sending.pace, |stream| &stream.pace);
        if is_new {
            pace.given(data.len() as u64, connection.all.now());
        }
        exchange.connection.touch();
        if let Some(http1) = connection.http1() {
            http1.response_started.store(true, Ordering::Relaxed);
        }
        match &exchange.stream {
            Some(stream) => {
                // One part at a time, so that it can be observed whether the client takes any.
                this.left = data.split_off(data.len().min(SEND_BYTES));
                data = stream.give(data);
                // A small answer ends together with what it has, which saves a frame.
                this.finished = this.ended
                    && this.left.is_empty()
                    && data.len() <= UNCOUNTED_BYTES
                    && stream.has_one_part();
            }
            None => this.finished = this.ended,
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.finished || self.ended && self.exchange.stream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.exchange.stream.is_some() && self.ended && self.left.is_empty() {
            return SizeHint::new(); // hyper would say the length of a body that there must not be
        }
        let mut hint = self.body.size_hint(); // asked for before anything is taken
        let left = self.left.len() as u64;
        if left > 0 {
            hint = match hint.upper() {
                Some(upper) if upper == hint.lower() => SizeHint::with_exact(upper + left),
                _ => SizeHint::new(),
            };
        }
        hint
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if !self.finished && self.exchange.is_aborted() {
            self.context.metrics.readers_dropped.inc();
        }
    }
}
