//! A connection: which protocol it speaks, how long each of its states may last, and what happens to what remains of
//! it.
//!
//! Each state has a limit, and ends without losing a request that could still be answered:
//!
//! | state | limit |
//! | --- | --- |
//! | nothing sent, or not enough to detect the protocol | `header_time` since it was accepted |
//! | HTTP/1: a header section has begun, or idle between requests | `header_time`, enforced by hyper |
//! | HTTP/2: no request in flight, even if pings are answered | `header_time` since the last one |
//! | a request whose body does not arrive | `body_time` for the whole body, see `body` |
//! | HTTP/1: the client has closed its sending side, and its answer has not begun | [`MAX_HALF_CLOSED_MILLIS`]; the client may be gone, or waiting; a live tail ends at once |
//! | HTTP/1: a small body that nobody reads, before its answer | [`MAX_SMALL_BODY_TIME`], then the answer says that the connection closes, as with a large body |
//! | HTTP/2: a body that nobody reads, after its answer | [`MAX_UNWANTED_BODY_TIME`], then the stream is reset |
//! | an answer that the client does not read, or reads with less than 1 KiB per second | `body_time`; with HTTP/2 only that stream is reset, unless the answer is small, see `stream` |
//! | an answer that the client reads too slowly to finish within `body_time`, while others are refused for lack of memory | 5 s, see `pace` |
//! | the peer has gone without closing the connection | 4 times `body_time`, enforced by the system (`TCP_USER_TIMEOUT`) |
//! | the server is stopping | closed at once if no request is in flight, otherwise after `grace` |
//!
//! When the limit of connections is reached, one is closed for each new one: see [`eviction`].
//!
//! A [`Connection`] is what is known of one connection, [`Connections`] are all of them. A worker checks its own
//! connections now and then (`Connections::check_limits`), on the thread that also drives them: a connection that it finds
//! idle is between two requests, not within a step of one. Times come from one coarse clock, so that a request costs
//! two loads and stores for them.
//!
//! Regardless of what it does, a connection has buffers of its own, which are not in the budget of `memory`: with
//! HTTP/1 up to a header section ([`Settings::header_bytes`]); with HTTP/2 a window of 256 KiB for bodies, and a header
//! section for each request that it has in flight, of which the whole server has at most four times as many as
//! connections, and at most as many that are being refused. The streams of any others are reset at once.

mod eviction;
mod exchange;
mod pace;
mod sending;
mod since;
mod stream;

use super::{
    settings::Settings,
    share::ConnectionShare,
    unsent::{SocketAddresses, Unsent},
};
use crate::{reports::Rarely, sync::lock};
use eviction::{Doing, eviction_rank, is_progress};
pub(super) use exchange::{Exchange, RequestBody, ResponseBody};
use sending::Sending;
use since::Since;
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};
pub(super) use stream::{Count, Stream};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinHandle},
};

/// The most bytes of an answer that hyper is given at once with HTTP/2.
const SEND_BYTES: usize = 16 << 10;
/// The most requests in flight on one HTTP/2 connection.
pub(super) const MAX_STREAMS: u32 = 256;
/// The most requests in flight on all connections, for each connection that is allowed.
const MAX_STREAMS_PER_CONNECTION: usize = 4;
/// Once half of all streams are in use, each connection can still have this many, whatever others do.
const RESERVED_STREAMS_PER_CONNECTION: usize = MAX_STREAMS_PER_CONNECTION / 2;
/// The number of bodies per connection that may always be read although nobody wants them: what arrives of them fits in
/// its window.
const MAX_UNWANTED_BODIES: usize = 8;
/// How long, in milliseconds, it may take for the answer to begin if the client has closed its sending side. If the
/// client has gone altogether, this looks the same until something is sent.
const MAX_HALF_CLOSED_MILLIS: u64 = 3_000;
/// How long a body that nobody wants is read: a client that is told to stop while it is sending may not see its answer.
const MAX_UNWANTED_BODY_TIME: Duration = Duration::from_secs(2);
/// The most bytes of an unwanted HTTP/1 body that are read so that another request can follow it.
const MAX_SMALL_BODY_BYTES: u64 = 64 << 10;
/// How long that may take.
const MAX_SMALL_BODY_TIME: Duration = Duration::from_secs(1);
/// When the server is stopping: how long, in milliseconds, an HTTP/2 connection without a request may still be sending
/// an answer.
const MAX_STOPPING_MILLIS: u64 = 1_000;

/// All connections of the server. The clock and the counters protect no other memory: Relaxed throughout.
pub(super) struct Connections {
    seats: Arc<Semaphore>,
    max: usize,
    /// How many were closed to make room since the last report of it.
    evicted: AtomicU64,
    reports: Rarely,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    numbers: AtomicU64,
    started_at: Instant,
    /// Milliseconds since then.
    clock: AtomicU64,
    /// HTTP/2 requests in flight.
    streams: AtomicUsize,
    /// HTTP/2 requests that are being refused.
    refused: AtomicUsize,
    /// The most of each of these.
    max_streams: usize,
    unsent: Unsent,
}

impl Connections {
    pub(super) fn new(max: usize) -> Arc<Self> {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self {
            seats: Arc::new(Semaphore::new(max)),
            max,
            evicted: AtomicU64::new(0),
            reports: Rarely::default(),
            open: Mutex::default(),
            numbers: AtomicU64::new(0),
            started_at: Instant::now(),
            clock: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            max_streams: max.saturating_mul(MAX_STREAMS_PER_CONNECTION).max(MAX_STREAMS as usize),
            unsent: Unsent::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        lock(&self.open)
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn tick(&self) -> u64 {
        let now = self.started_at.elapsed().as_millis() as u64;
        self.clock.fetch_max(now, Ordering::Relaxed).max(now)
    }

    /// Waits for a place for one more connection. If there is none, the first one to evict gets closed.
    pub(super) async fn seat(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() {
                return seat;
            }
            self.evict_one();
            self.report();
            // It ends with the current turn of its worker.
            let seat = Arc::clone(&self.seats).acquire_owned();
            if let Ok(Ok(seat)) = tokio::time::timeout(Duration::from_millis(20), seat).await {
                return seat;
            }
        }
    }

    /// Closes the first one to evict, if there is one that may be closed.
    pub(super) fn evict_one(&self) {
        let now = self.tick();
        let open = self.lock();
        let ranked = open.values().filter(|connection| !connection.is_aborted()).filter_map(|connection| {
            let rank = connection.eviction_rank(now)?;
            Some((rank, connection.touched.load(Ordering::Relaxed), connection.number, connection))
        });
        if let Some((.., connection)) =
            ranked.min_by_key(|&(rank, touched, number, _)| (rank, touched, number))
        {
            connection.abort("to make room for a new one");
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Warns now and then that connections are closed to make room.
    fn report(&self) {
        if self.reports.claim() {
            let (max, closed) = (self.max, self.evicted.swap(0, Ordering::Relaxed));
            tracing::warn!(max, closed, "the limit of connections is reached: closing slow and idle ones");
        }
    }

    /// Closes the connections of a worker that have exceeded a limit; if the server is `stopping`, also those that have
    /// no request in flight; if answers have been refused for lack of memory, also some of those that hold theirs for long,
    /// until `short` bytes are free. Returns how many connections the worker had.
    pub(super) fn check_limits(
        &self,
        worker: usize,
        settings: &Settings,
        stopping: bool,
        short: u64,
    ) -> usize {
        let now = self.tick();
        let mine: Vec<_> = self.lock().values().filter(|one| one.worker == worker).cloned().collect();
        for connection in &mine {
            connection.check_limits(now, settings);
            if stopping {
                connection.stop(now);
            }
        }
        if short > 0 {
            Self::end_slow(&mine, now, settings.body_time.as_millis() as u64, short);
        }
        mine.len()
    }

    /// How often [`check_limits`](Self::check_limits) should be called.
    pub(super) fn interval(settings: &Settings) -> Duration {
        let least = settings.header_time.min(settings.body_time);
        (least / 16).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }
}

/// What is known of a connection. The parts are consistent with each other because they are set on its worker's thread;
/// other threads only read them to choose a connection to close: Relaxed throughout.
pub(super) struct Connection {
    all: Arc<Connections>,
    number: u64,
    worker: usize,
    accepted: u64,
    /// Not set until the first bytes have arrived.
    protocol: OnceLock<Protocol>,
    /// When a request or an answer last made progress.
    touched: AtomicU64,
    /// The bytes of bodies that have arrived since then, too slowly to count as progress.
    arrived: AtomicU64,
    /// Whether there has been a request.
    used: AtomicBool,
    /// The number of bodies that handlers wait for.
    awaited: AtomicUsize,
    /// Requests in flight.
    requests: AtomicUsize,
    sending: Sending,
    /// Whether we, or the system, have given up the connection.
    aborted: AtomicBool,
    /// Asks the connection to finish what is in flight and to close.
    stop: Notify,
    /// Whether it was asked.
    stopped: AtomicBool,
    task: OnceLock<AbortHandle>,
    /// What the connection's requests use of the resources that all connections share.
    pub(super) share: Arc<ConnectionShare>,
}

/// What is known only of connections with HTTP/1, where one request is served at a time.
#[derive(Default)]
pub(super) struct Http1 {
    /// Since when the client has had its sending side closed.
    ended: Since,
    /// The task that waits for more from the client.
    reader: Mutex<Option<Waker>>,
    /// Whether the request in flight lacks a part of its body.
    body_incomplete: AtomicBool,
    /// Whether the answer to the request in flight has begun.
    response_started: AtomicBool,
    /// Whether the answer ends only with its client, as a live tail does: that its client is gone would only be noticed
    /// when there is something to send.
    is_endless: AtomicBool,
    /// Whether a body did not match its framing, so that no other request can follow it.
    broken: AtomicBool,
    /// A body that nobody wants, while it is being read; the result says whether it was read to its end.
    unwanted: Mutex<Option<JoinHandle<bool>>>,
}

/// What is known only of connections with HTTP/2, where requests are streams.
#[derive(Default)]
pub(super) struct Http2 {
    /// The streams in flight.
    streams: Mutex<Vec<Weak<Stream>>>,
    /// The stream that began last, if it has no task yet.
    begun: Mutex<Option<Arc<Stream>>>,
    /// The number of bodies that nobody wants.
    bodies: AtomicUsize,
}

/// Which protocol a connection speaks, and what is known only of connections with that.
pub(super) enum Protocol {
    Http1(Http1),
    Http2(Http2),
}

impl Http1 {
    /// A request begins.
    fn begin_request(&self) {
        self.body_incomplete.store(false, Ordering::Relaxed);
        self.response_started.store(false, Ordering::Relaxed);
        self.is_endless.store(false, Ordering::Relaxed);
    }

    /// Whether the client has closed its sending side, and its answer has not begun for so long that it counts as gone;
    /// `touched`: when a request or an answer last made progress.
    fn client_has_left(&self, now: u64, touched: u64) -> bool {
        // The request may be one of several that were sent at once.
        let is_over = |ended: u64| now.saturating_sub(ended.max(touched)) > MAX_HALF_CLOSED_MILLIS;
        self.ended.get().is_some_and(is_over) && !self.response_started.load(Ordering::Relaxed)
    }

    fn wake_reader(&self) {
        if self.ended.is_set()
            && let Some(reader) = lock(&self.reader).take()
        {
            reader.wake();
        }
    }
}

impl Connection {
    /// A connection that was just accepted, by this worker; `addresses`: those of its socket.
    pub(super) fn begin(
        all: &Arc<Connections>,
        worker: usize,
        addresses: Option<SocketAddresses>,
    ) -> Arc<Self> {
        let now = all.tick();
        let number = all.numbers.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Self {
            all: Arc::clone(all),
            number,
            worker,
            accepted: now,
            protocol: OnceLock::new(),
            touched: AtomicU64::new(now),
            arrived: AtomicU64::new(0),
            used: AtomicBool::new(false),
            awaited: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            sending: Sending::new(addresses),
            aborted: AtomicBool::new(false),
            stop: Notify::new(),
            stopped: AtomicBool::new(false),
            task: OnceLock::new(),
            share: Arc::new(ConnectionShare::new(number)),
        });
        all.lock().insert(connection.number, Arc::clone(&connection));
        connection
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        self.all.lock().remove(&self.number);
    }

    /// Sets the task that drives it, once.
    pub(super) fn set_task(&self, task: AbortHandle) {
        let _ = self.task.set(task);
    }

    /// Sets the protocol that it speaks, once.
    pub(super) fn set_protocol(&self, protocol: Protocol) {
        let _ = self.protocol.set(protocol);
        self.touch();
    }

    /// Waits until it is to finish what is in flight, and to close.
    pub(super) async fn stop_asked(&self) {
        self.stop.notified().await;
    }

    /// What is known of it if it speaks HTTP/1.
    pub(super) fn http1(&self) -> Option<&Http1> {
        match self.protocol.get() {
            Some(Protocol::Http1(http1)) => Some(http1),
            _ => None,
        }
    }

    /// What is known of it if it speaks HTTP/2.
    fn http2(&self) -> Option<&Http2> {
        match self.protocol.get() {
            Some(Protocol::Http2(http2)) => Some(http2),
            _ => None,
        }
    }

    /// Its answer ends only with its client, which matters with HTTP/1.
    pub(super) fn set_endless(&self) {
        if let Some(http1) = self.http1() {
            http1.is_endless.store(true, Ordering::Relaxed);
            http1.wake_reader();
        }
    }

    /// The stream that began last, and has no task yet.
    pub(super) fn stream_begun(&self) -> Option<Arc<Stream>> {
        lock(&self.http2()?.begun).take()
    }

    /// Whether the connection was given up, rather than closed by the client.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Whether hyper may begin an answer of its own: there is no request that ours is for. With HTTP/2, hyper makes none.
    pub(super) fn has_no_http1_request(&self) -> bool {
        self.http1().is_some() && self.requests.load(Ordering::Relaxed) == 0
    }

    /// Records how much the system has taken of what it was given; `None` if it takes nothing.
    pub(super) fn taken(&self, bytes: Option<u64>) {
        self.sending.taken(bytes, self.all.now());
    }

    /// Sending has failed.
    pub(super) fn failed(&self, error: &io::Error) {
        if self.sending.was_given_up(error, self.all.now()) {
            self.aborted.store(true, Ordering::Relaxed);
        }
    }

    /// The client has closed its sending side. Returns whether this must not be passed on yet, because the client waits
    /// for an answer; `reader` is woken when it may be passed on, and now and then before that.
    pub(super) fn waits_for_an_answer(&self, reader: &Waker) -> bool {
        let Some(http1) = self.http1() else { return false };
        let waits = self.is_busy()
            && !http1.body_incomplete.load(Ordering::Relaxed)
            && !http1.is_endless.load(Ordering::Relaxed);
        if waits {
            http1.ended.set_first(self.all.now());
            *lock(&http1.reader) = Some(reader.clone());
        }
        waits
    }

    /// Whether the connection has a request in flight, or an answer that has not been taken completely.
    fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0 || self.sending.is_stuck()
    }

    /// A body does not continue: if the client has closed its sending side, the body is incomplete.
    fn note_incomplete_body(&self) {
        if let Some(http1) = self.http1().filter(|http1| http1.ended.is_set()) {
            http1.body_incomplete.store(true, Ordering::Relaxed);
            http1.wake_reader();
        }
    }

    /// Whether another HTTP/1 request may follow this one: its whole body has been read, which is done if it is not
    /// much.
    pub(super) async fn can_reuse(&self) -> bool {
        let Some(http1) = self.http1() else { return true };
        if http1.broken.load(Ordering::Relaxed) {
            return false;
        }
        let unwanted = lock(&http1.unwanted).take();
        match unwanted {
            Some(unwanted) => unwanted.await.unwrap_or(false),
            None => true,
        }
    }

    fn touch(&self) {
        self.touched.store(self.all.now(), Ordering::Relaxed);
    }

    /// Records that `bytes` more of a body have arrived.
    fn arrived(&self, bytes: u64) {
        let bytes = bytes + self.arrived.fetch_add(bytes, Ordering::Relaxed);
        if is_progress(bytes, self.all.now().saturating_sub(self.touched.load(Ordering::Relaxed))) {
            self.arrived.store(0, Ordering::Relaxed);
            self.touch();
        }
    }

    fn eviction_rank(&self, now: u64) -> Option<u8> {
        let still = now.saturating_sub(self.touched.load(Ordering::Relaxed));
        let doing = if !self.used.load(Ordering::Relaxed) {
            Doing::Nothing
        } else if self.awaited.load(Ordering::Relaxed) > 0 {
            Doing::Sends
        } else if self.sending.is_stuck() || self.has_stuck_stream() {
            Doing::Takes
        } else if self.is_busy() && self.share.listening() < self.requests.load(Ordering::Relaxed) {
            Doing::Waits
        } else if self.is_busy() {
            Doing::Listens
        } else {
            Doing::Idles
        };
        eviction_rank(doing, still)
    }

    /// The HTTP/2 requests in flight.
    fn streams(&self) -> Vec<Arc<Stream>> {
        let Some(http2) = self.http2() else { return Vec::new() };
        lock(&http2.streams).iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether an HTTP/2 answer waits for the client, although the client's system takes what it is sent.
    fn has_stuck_stream(&self) -> bool {
        self.streams().iter().any(|stream| stream.is_stuck())
    }

    /// A request is not in flight any more.
    fn answered(&self) {
        self.touch();
        self.requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(http1) = self.http1() {
            http1.wake_reader();
        }
    }

    /// Closes the connection, whatever is in flight.
    fn abort(&self, why: &str) {
        self.aborted.store(true, Ordering::Relaxed);
        tracing::debug!(why, connection = self.number, "a connection is closed");
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    fn check_limits(&self, now: u64, settings: &Settings) {
        let (header_time, body_time) =
            (settings.header_time.as_millis() as u64, settings.body_time.as_millis() as u64);
        let idle = now.saturating_sub(self.touched.load(Ordering::Relaxed));
        if self.sending.takes_nothing(now, body_time, &self.all.unsent) {
            return self.abort("it takes nothing");
        }
        match self.protocol.get() {
            None if now.saturating_sub(self.accepted) > header_time => self.abort("it sends no request"),
            None => {}
            Some(Protocol::Http1(http1)) => {
                if http1.client_has_left(now, self.touched.load(Ordering::Relaxed)) {
                    self.task.get().inspect(|task| task.abort()); // it has left of its own accord
                } else {
                    http1.wake_reader(); // to check whether it is gone altogether
                }
            }
            Some(Protocol::Http2(http2)) => {
                if self.requests.load(Ordering::Relaxed) == 0 && idle > header_time {
                    if !self.stopped.swap(true, Ordering::Relaxed) {
                        self.stop.notify_one(); // it is notified before it is closed
                    } else if idle > header_time + MAX_STOPPING_MILLIS {
                        self.abort("it is idle");
                    }
                }
                let mut streams = lock(&http2.streams);
                streams.retain(|stream| {
                    stream.upgrade().is_some_and(|stream| !stream.check_limits(now, body_time))
                });
            }
        }
    }

    /// The server is stopping: the connection is closed if it has no request in flight.
    fn stop(&self, now: u64) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            self.stop.notify_one();
            return; // it gets one turn to tell the client
        }
        let idle = now.saturating_sub(self.touched.load(Ordering::Relaxed));
        let finished = !self.is_busy();
        if finished && (self.http2().is_none() || idle > MAX_STOPPING_MILLIS) {
            self.abort("the server stops");
        }
    }
}
