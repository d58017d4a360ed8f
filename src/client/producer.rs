//! Producers: records are collected into batches, which a task of the producer sends, each stored once however often it
//! has to be sent.
//!
//! # What always holds
//! - A record that was accepted is stored, or still held, or was returned by [`Producer::discard`].
//! - Batches are stored in the order in which their records were accepted. Up to [`MAX_IN_FLIGHT`] are on the way at once;
//!   the server refuses one that comes before its predecessor, and it is sent again.
//! - A batch keeps its epoch and its sequence for as long as it is not known whether it was stored.

mod task;

use super::{Client, Error, Trouble, error::Refusal};
use crate::{
    BATCH_EXTRA_BYTES, MAX_SEGMENT_BYTES, RECORD_EXTRA_BYTES,
    api::Appended,
    wire::{AppendFrame, Prefix},
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
};

/// How many batches are on the way at once: fewer than a log remembers of a producer.
const MAX_IN_FLIGHT: usize = 4;
/// The most bytes that were accepted and are not stored yet; beyond that, callers wait.
const MAX_UNSENT_BYTES: usize = 16 << 20;

/// What a log said when the producer began its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Epoch {
    /// The epoch.
    pub epoch: u32,
    /// The mark of the last batch that had one, of an earlier run.
    pub mark: Option<String>,
    /// The id of the log: another one if a log of this name was deleted and created again.
    pub log_id: String,
    /// The bytes of the log's segments: a batch must fit. Earlier servers do not say it.
    pub segment_bytes: Option<u64>,
    /// The most bytes of a body that the server takes, and so of a batch. Earlier servers do not say it.
    pub max_body_bytes: Option<u64>,
}

impl Epoch {
    /// The most bytes that a record may have, as far as is known: it must fit in a segment, and in a body.
    pub fn max_record_bytes(&self) -> u64 {
        let segment = self.segment_bytes.unwrap_or(MAX_SEGMENT_BYTES);
        let body = self.max_body_bytes.map_or(u64::MAX, |max| max.saturating_sub(Prefix::BYTES as u64));
        segment.saturating_sub(*RECORD_EXTRA_BYTES.start()).min(body)
    }
}

/// Completes with the offset of a record once that is stored. Dropping it changes nothing.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<u64, Error>>);

impl Future for Ticket {
    type Output = Result<u64, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|done| done.unwrap_or(Err(Error::Closed)))
    }
}

/// The senders of tickets, with the numbers of their records in the batch.
type Tickets = Vec<(u64, oneshot::Sender<Result<u64, Error>>)>;

/// A batch that is being filled, or waits to be stored.
#[derive(Default)]
struct Batch {
    body: Vec<u8>,
    records: u64,
    mark: Option<String>,
    tickets: Tickets,
    /// When the first record was accepted.
    since: Option<Instant>,
}

/// How large a batch may be, as far as that is known.
#[derive(Clone, Copy, Default)]
struct Limits {
    /// The bytes of a segment of the log.
    segment: Option<u64>,
    /// The bytes of a body that the server accepts.
    body: Option<u64>,
    /// Less than what was refused as too large: a proxy may accept less than the server.
    learned: Option<u64>,
}

impl Limits {
    /// Whether a batch with this body fits.
    fn fit(self, body: u64, records: u64) -> bool {
        let beside = RECORD_EXTRA_BYTES.end() - Prefix::BYTES as u64;
        let in_segment = body + records * beside + BATCH_EXTRA_BYTES;
        let within = |limit: Option<u64>, bytes| limit.is_none_or(|limit| bytes <= limit);
        within(self.segment, in_segment) && within(self.body, body) && within(self.learned, body)
    }
}

impl Batch {
    /// Whether another value fits.
    fn has_room_for(&self, bytes: usize, limits: Limits) -> bool {
        limits.fit((self.body.len() + Prefix::BYTES + bytes) as u64, self.records + 1)
    }

    /// As much of its beginning as fits, and the rest: it was collected before it was known how much that is.
    fn fitting(self, limits: Limits) -> (Self, Option<Self>) {
        if limits.fit(self.body.len() as u64, self.records) {
            return (self, None);
        }
        self.divided(|first, bytes| first.has_room_for(bytes, limits))
    }

    /// Splits the batch in two. The first part has the first record, and those after it for as long as
    /// `takes(part, value_bytes)` is true. A batch with a mark stays whole: the mark says how far its producer had come
    /// with all of it.
    fn divided(mut self, takes: impl Fn(&Self, usize) -> bool) -> (Self, Option<Self>) {
        if self.mark.is_some() {
            return (self, None);
        }
        let mut first = Self::default();
        while let Some((frame, rest)) = AppendFrame::split(&self.body[first.body.len()..])
            && (first.records == 0 || takes(&first, frame.value.len()))
        {
            let end = self.body.len() - rest.len();
            first.body.extend_from_slice(&self.body[first.body.len()..end]);
            first.records += 1;
        }
        if first.records == self.records {
            return (self, None);
        }
        self.body.drain(..first.body.len());
        self.records -= first.records;
        (first.tickets, self.tickets) =
            self.tickets.into_iter().partition(|(number, _)| *number < first.records);
        for (number, _) in &mut self.tickets {
            *number -= first.records;
        }
        (first, Some(self))
    }
}

/// A batch that is sent under a number.
struct Numbered {
    body: Bytes,
    records: u64,
    mark: Option<String>,
    tickets: Tickets,
    sequence: u64,
    /// Whether the batch may be stored: it was sent, and the server did not say that it stored nothing.
    may_be_stored: Arc<AtomicBool>,
    sending: Option<JoinHandle<Result<Appended, Refusal>>>,
}

/// What a producer has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stored {
    /// The number of records.
    pub records: u64,
    /// The offset of the first one; records of others may lie between that and the last one.
    pub first_offset: Option<u64>,
    /// The offset of the last one.
    pub last_offset: Option<u64>,
    /// How many of these records were stored by an attempt whose answer was lost, so that they were sent again or asked
    /// about.
    pub repeated: u64,
}

#[derive(Default)]
struct State {
    limits: Limits,
    filling: Batch,
    /// Batches that are full, oldest first.
    full: VecDeque<Batch>,
    /// Batches that have a number in the epoch, oldest first.
    numbered: VecDeque<Numbered>,
    /// The bytes of all of these.
    unsent: usize,
    /// The epoch in which batches are sent, once it has begun.
    epoch: Option<Epoch>,
    /// The id of the log in which the first epoch has begun.
    log_id: Option<String>,
    /// Whether somebody waits for the epoch to begin.
    wants_epoch: bool,
    /// The last epoch that has begun, also if nothing was sent in it.
    begun: Option<u32>,
    /// Whether the next epoch may begin even if another producer has begun a later one: the caller has discarded the batch
    /// that was refused because of it.
    takes_over: bool,
    /// The last epoch in which something was sent, with the log's id.
    sent_in: Option<Epoch>,
    /// The next sequence of the epoch.
    next: u64,
    /// Why nothing is sent any more, until somebody tries again or discards.
    stuck: Option<Error>,
    /// When what a temporary error has stopped is tried again.
    again_at: Option<Instant>,
    /// How often sending has stopped because of an error. Not reset when sending resumes, so that a caller that was asleep
    /// meanwhile still learns of it.
    stops: u64,
    /// The error that stopped it last; kept for the same reason.
    last_error: Option<Error>,
    /// How many records were accepted.
    accepted: u64,
    /// How many of these are stored or discarded.
    settled: u64,
    /// How many of them are to be sent at once, in batches that need not be full, because callers wait for them.
    flush_to: u64,
    closed: bool,
    stored: Stored,
}

impl State {
    /// Fails if sending was stopped again after it had been stopped `before` times, with the error that stopped it.
    fn check_goes_on(&self, before: u64) -> Result<(), Error> {
        self.last_error.clone().filter(|_| self.stops > before).map_or(Ok(()), Err)
    }

    /// The tickets of the batches that are not stored, in the order in which these are to be.
    fn tickets(&mut self) -> impl Iterator<Item = &mut Tickets> {
        let numbered = self.numbered.iter_mut().map(|batch| &mut batch.tickets);
        let full = self.full.iter_mut().map(|batch| &mut batch.tickets);
        numbered.chain(full).chain([&mut self.filling.tickets])
    }
}

/// What callers and the task share.
struct Shared {
    client: Client,
    log: String,
    id: String,
    same_log: bool,
    batch_bytes: usize,
    linger: Duration,
    patience: Duration,
    state: Mutex<State>,
    /// Wakes the task.
    changed: Notify,
    /// Wakes callers that wait for room, or until all is stored.
    progress: Notify,
    /// The sequence of the oldest batch that is not known to be stored.
    oldest: AtomicU64,
    trouble: Trouble,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        crate::sync::lock(&self.state)
    }
}

/// Fails with [`Error::BadMark`] unless the mark can be sent in a header unchanged.
fn check_mark(mark: &str) -> Result<(), Error> {
    let is_whole = mark.bytes().all(|byte| matches!(byte, b' '..=b'~')) && mark.trim() == mark;
    if is_whole && mark.len() <= crate::MAX_PRODUCER_MARK_BYTES {
        Ok(())
    } else {
        Err(Error::BadMark { mark: mark.to_owned() })
    }
}

/// Collects records into batches and sends them to a log in the background: when a batch is large enough, or a while
/// after its first record. Records are stored in the order in which they were accepted.
///
/// A producer begins an epoch of its id when it first sends something, or when [asked](Self::begin_epoch) to: what is
/// still on its way from an earlier producer of the same id is refused from then on, and that producer gets
/// [`Error::TakenOver`].
///
/// If it is dropped, it goes on until all that it has accepted is stored, for as long as the runtime exists and it does
/// not give up; [`close`](Self::close) waits for that, and says whether it was.
pub struct Producer {
    shared: Arc<Shared>,
}

/// How a producer collects and sends; see [`Client::producer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// A batch is sent when it has this many bytes, or as many as the server and a segment of the log have room for.
    /// Default: 1 MiB.
    pub batch_bytes: usize,
    /// A batch is sent when its first record has waited this long. Default: 100 ms.
    pub linger: Duration,
    /// How long a batch is retried while the server cannot be reached, or says to try again. The time counts from the
    /// beginning of its first attempt, and includes the pauses. If the first attempt alone takes longer, which
    /// [`Client::with_max_silence`] may allow, there is one more. Default: 60 s.
    pub patience: Duration,
    /// Whether to stop with [`Error::AnotherLog`] if the log was deleted, and another one created under its name.
    /// Otherwise the producer goes on there. Default: false.
    pub same_log: bool,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        let (linger, patience) = (Duration::from_millis(100), Duration::from_secs(60));
        Self { batch_bytes: 1 << 20, linger, patience, same_log: false }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { log, id, .. } = &*self.shared;
        f.debug_struct("Producer").field("log", log).field("id", id).finish_non_exhaustive()
    }
}

impl Producer {
    /// Must be called within a runtime.
    pub(super) fn new(client: Client, log: String, id: String, options: ProducerOptions) -> Self {
        let ProducerOptions { batch_bytes, linger, patience, same_log } = options;
        let shared = Arc::new(Shared {
            client,
            log,
            id,
            batch_bytes: batch_bytes.clamp(1, MAX_UNSENT_BYTES / 2),
            linger,
            patience,
            same_log,
            state: Mutex::default(),
            changed: Notify::new(),
            progress: Notify::new(),
            oldest: AtomicU64::new(0),
            trouble: Trouble::new(None),
        });
        tokio::spawn(task::run(task::Running::new(&shared)));
        Self { shared }
    }

    /// Begins the producer's epoch now, if it has not begun, and returns what the log said then.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`], [`Error::Unreachable`], [`Error::Refused`].
    pub async fn begin_epoch(&self) -> Result<Epoch, Error> {
        let before = self.resume(&mut self.shared.state())?;
        loop {
            let progress = self.shared.progress.notified();
            {
                let mut state = self.shared.state();
                if let Some(epoch) = &state.epoch {
                    return Ok(epoch.clone());
                }
                state.check_goes_on(before)?;
                state.wants_epoch = true;
                self.shared.changed.notify_one();
            }
            progress.await;
        }
    }

    /// The earlier name of [`begin_epoch`](Self::begin_epoch).
    ///
    /// # Errors
    /// As [`begin_epoch`](Self::begin_epoch).
    #[deprecated = "use `begin_epoch`"]
    pub async fn open(&self) -> Result<Epoch, Error> {
        self.begin_epoch().await
    }

    /// Accepts a record: any bytes. Waits while 16 MiB of accepted records are not stored yet.
    ///
    /// # Errors
    /// As [`flush`](Self::flush). The record was not accepted.
    pub async fn push(&self, value: &[u8]) -> Result<(), Error> {
        self.accept(value, false, None).await.map(drop)
    }

    /// Accepts a record that is JSON, which the server checks.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn push_json(&self, value: &[u8]) -> Result<(), Error> {
        self.accept(value, true, None).await.map(drop)
    }

    /// Accepts a record with a mark of up to 128 characters of ASCII, which is stored with it: the newest one is in what
    /// [`begin_epoch`](Self::begin_epoch) returns when a producer of this id starts again.
    ///
    /// # Errors
    /// As [`push`](Self::push). [`Error::BadMark`]: it could not be sent as it is; the record was not accepted.
    pub async fn push_marked(&self, value: &[u8], json: bool, mark: &str) -> Result<(), Error> {
        check_mark(mark)?;
        self.accept(value, json, Some(mark)).await.map(drop)
    }

    /// Accepts a record, and returns a future of its offset.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn submit(&self, value: &[u8], json: bool) -> Result<Ticket, Error> {
        let (sender, ticket) = oneshot::channel();
        let state = self.room(value.len()).await?;
        self.add(state, value, json, None, Some(sender));
        Ok(Ticket(ticket))
    }

    async fn accept(&self, value: &[u8], json: bool, mark: Option<&str>) -> Result<(), Error> {
        let state = self.room(value.len()).await?;
        self.add(state, value, json, mark, None);
        Ok(())
    }

    /// Waits until a record may be accepted.
    async fn room(&self, bytes: usize) -> Result<MutexGuard<'_, State>, Error> {
        let before = self.resume(&mut self.shared.state())?;
        loop {
            let progress = self.shared.progress.notified();
            {
                let state = self.shared.state();
                if state.closed {
                    return Err(Error::Closed);
                }
                state.check_goes_on(before)?;
                if state.unsent == 0 || state.unsent + bytes <= MAX_UNSENT_BYTES {
                    return Ok(state);
                }
            }
            progress.await;
        }
    }

    /// Resumes sending after a temporary error. Returns how often sending has been stopped so far; fails if it was
    /// stopped for good.
    fn resume(&self, state: &mut State) -> Result<u64, Error> {
        match &state.stuck {
            Some(error) if !error.is_temporary() => return Err(error.clone()),
            Some(_) => {
                state.stuck = None;
                self.shared.changed.notify_one();
            }
            None => {}
        }
        Ok(state.stops)
    }

    fn add(
        &self,
        mut state: MutexGuard<'_, State>,
        value: &[u8],
        json: bool,
        mark: Option<&str>,
        ticket: Option<oneshot::Sender<Result<u64, Error>>>,
    ) {
        let fits = state.filling.body.len() + Prefix::BYTES + value.len() <= self.shared.batch_bytes
            && state.filling.has_room_for(value.len(), state.limits);
        if state.filling.records > 0 && !fits {
            let batch = std::mem::take(&mut state.filling);
            state.full.push_back(batch);
            self.shared.changed.notify_one();
        }
        let filling = &mut state.filling;
        let begins = filling.records == 0;
        filling.body.extend_from_slice(&Prefix::new(value.len(), json).to_bytes());
        filling.body.extend_from_slice(value);
        filling.tickets.extend(ticket.map(|ticket| (filling.records, ticket)));
        filling.records += 1;
        filling.since.get_or_insert_with(Instant::now);
        if let Some(mark) = mark {
            filling.mark = Some(mark.to_owned());
        }
        let full = filling.body.len() >= self.shared.batch_bytes;
        if full {
            let batch = std::mem::take(filling);
            state.full.push_back(batch);
        }
        state.unsent += value.len() + Prefix::BYTES;
        state.accepted += 1;
        if begins || full {
            self.shared.changed.notify_one();
        }
    }

    /// Waits until all that was accepted before is stored. If the server cannot be reached or says to try again, each
    /// batch is tried for as long as [`ProducerOptions::patience`] says.
    ///
    /// # Errors
    /// Why a batch cannot be stored. It is held, with all behind it. After a [temporary](Error::is_temporary) error the
    /// next call tries again, and so does the producer by itself 2 s later; otherwise the batch has to be
    /// [discarded](Self::discard) first.
    pub async fn flush(&self) -> Result<(), Error> {
        let (to, before) = {
            let mut state = self.shared.state();
            let before = self.resume(&mut state)?;
            state.flush_to = state.accepted;
            self.shared.changed.notify_one();
            (state.accepted, before)
        };
        loop {
            let progress = self.shared.progress.notified();
            {
                let state = self.shared.state();
                if state.settled >= to {
                    return Ok(());
                }
                state.check_goes_on(before)?;
            }
            progress.await;
        }
    }

    /// Waits until all is stored, and ends the producer. Returns what it has stored.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); what is not stored is then held no longer.
    pub async fn close(self) -> Result<Stored, Error> {
        self.flush().await?;
        Ok(self.stored())
    }

    /// Gives up the batch that could not be stored, and returns its records. The producer continues with the next batch.
    ///
    /// Call it after [`flush`](Self::flush) has returned an error; otherwise it returns nothing. After
    /// [`Error::TakenOver`], it makes the producer take over in turn when it goes on. After a temporary error, call it
    /// within 2 s: then the producer sends the batch again. After [`Error::TaskEnded`], each call returns the records
    /// of another batch, until none is left.
    ///
    /// If an attempt to send the batch got no answer, the records that are returned may be stored all the same.
    pub fn discard(&self) -> Vec<Bytes> {
        let mut state = self.shared.state();
        let Some(error) = state.stuck.take() else { return Vec::new() };
        state.stuck = Some(error.clone()).filter(|error| *error == Error::TaskEnded); // nothing goes on after that
        state.epoch = None; // the numbers of those behind it change: in a new epoch
        state.takes_over |= matches!(error, Error::TakenOver { .. });
        self.shared.changed.notify_one();
        let (body, tickets) = if let Some(batch) = state.numbered.pop_front() {
            (batch.body, batch.tickets)
        } else {
            let batch = state.full.pop_front().unwrap_or_else(|| std::mem::take(&mut state.filling));
            (batch.body.into(), batch.tickets)
        };
        for (_, ticket) in tickets {
            let _ = ticket.send(Err(error.clone())); // fails if nobody waits for it
        }
        state.unsent -= body.len();
        self.shared.progress.notify_waiters(); // they look when the state is unlocked
        let mut records = Vec::new();
        let mut rest = &body[..];
        while let Some((frame, behind)) = AppendFrame::split(rest) {
            records.push(body.slice_ref(frame.value));
            rest = behind;
        }
        state.settled += records.len() as u64;
        records
    }

    /// Whether records that are not among those known to be [`stored`](Self::stored) may be stored all the same: the
    /// oldest of them were sent, and no answer has said that they were not. Those that [`discard`](Self::discard) has
    /// returned do not count.
    pub fn may_be_stored(&self) -> bool {
        // If the oldest batch is not stored, nor are those behind it. Relaxed: as where it is set.
        self.shared.state().numbered.front().is_some_and(|batch| batch.may_be_stored.load(Ordering::Relaxed))
    }

    /// What is known to be stored.
    pub fn stored(&self) -> Stored {
        self.shared.state().stored
    }

    /// Completes when the producer has given up, as [`flush`](Self::flush) would tell: for a while, or for good. For those who
    /// have nothing to push or to flush meanwhile.
    pub fn gives_up(&self) -> impl Future<Output = Error> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        let before = shared.state().stops;
        async move {
            loop {
                let progress = shared.progress.notified();
                if let Err(error) = shared.state().check_goes_on(before) {
                    return error;
                }
                progress.await;
            }
        }
    }

    /// What keeps the producer from storing at the moment, while it tries again: at the first failed attempt, and `None`
    /// when it has succeeded. An error that is not [temporary](Error::is_temporary) has stopped it for good.
    pub fn trouble(&self) -> watch::Receiver<Option<Error>> {
        self.shared.trouble.subscribe()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        (state.closed, state.flush_to) = (true, state.accepted);
        self.shared.changed.notify_one();
    }
}
