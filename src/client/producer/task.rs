//! The task of a producer: numbers batches, sends them, and finds out what became of those that got no answer.

use super::{
    super::{
        Error, Patience,
        error::{Refusal, TooLarge},
        path_of, tell, understood,
    },
    Batch, Epoch, Limits, MAX_IN_FLIGHT, Numbered, Shared, State,
};
use crate::{
    api::{Appended, BegunEpoch, EarlierEpoch},
    pauses::Pauses,
    wire::{self, Prefix},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header::CONTENT_TYPE};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Asks for the producer's next epoch, for as long as it is worth trying, and unless another producer of the id has
/// begun one since.
async fn begin_epoch(shared: &Shared) -> Result<BegunEpoch, Error> {
    let id = utf8_percent_encode(&shared.id, NON_ALPHANUMERIC);
    let path = format!("{}/producers/{id}", path_of(&shared.log)?);
    let mut after = {
        let state = shared.state();
        state.begun.filter(|_| !state.takes_over)
    };
    // Whether an attempt may have begun an epoch without saying so: many errors come after it has begun.
    let mut may_have_begun = false;
    let mut trying = Trying::new(shared);
    loop {
        let query = after.map_or_else(String::new, |after| format!("?after={after}"));
        let request = shared.client.request(Method::POST, &format!("{path}{query}"), &[], Bytes::new())?;
        let refusal = match trying.attempt(request).await {
            Ok(begun) => return Ok(begun),
            Err(refusal) => refusal,
        };
        match refusal.expected {
            // Nothing was sent in it: it is taken for that of an attempt.
            Some((known, 0)) if may_have_begun => (after, may_have_begun) = (Some(epoch_of(known)), false),
            Some((known, _)) => return Err(Error::TakenOver { epoch: epoch_of(known) }),
            None => {
                may_have_begun = true;
                trying.wait(refusal.error).await?;
            }
        }
    }
}

/// An epoch, as an answer has it.
fn epoch_of(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What is tried for as long as the producer's patience lasts, and what callers are told meanwhile.
struct Trying<'a> {
    shared: &'a Shared,
    patience: Patience,
    /// Why the last attempt has failed.
    last: Option<Error>,
}

impl<'a> Trying<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, patience: Patience::new(shared.patience), last: None }
    }

    /// Waits after a temporary error; returns others, and one that has lasted too long.
    async fn wait(&mut self, error: Error) -> Result<(), Error> {
        let has_begun = self.shared.state().begun.is_some();
        let error = if has_begun { self.shared.client.as_if_away(error) } else { error };
        if !error.is_temporary() {
            return Err(error);
        }
        tell(&self.shared.trouble, Some(error.clone()));
        self.last = Some(error.clone());
        if self.patience.pause().await { Ok(()) } else { Err(error) }
    }

    /// Sends a request once. If it succeeds, there is no trouble any more. If it is broken off because the patience is over,
    /// what has failed before it is the reason.
    async fn attempt<T: DeserializeOwned>(&mut self, request: Request<Full<Bytes>>) -> Result<T, Refusal> {
        let Shared { client, log, trouble, .. } = self.shared;
        let Some(answer) = self.patience.attempt(client.whole(request, log)).await else {
            let unreachable = || Error::Unreachable { url: client.url.clone(), reason: "no answer".into() };
            return Err(self.last.clone().unwrap_or_else(unreachable).into());
        };
        let answer = answer?;
        let understood = understood(&answer)?;
        tell(trouble, None);
        Ok(understood)
    }
}

/// How long a batch waits at first, and at the most, before it is sent again because its predecessors were not there. It
/// waits no longer once one of them is stored.
const AHEAD_PAUSES: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(2);
/// How long the task waits after it has given up, until it tries everything again that it holds.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Sends a batch until it is stored, or is not worth trying any more. `may_be_stored` is set from each attempt on,
/// unless the server says that it has not stored it.
async fn send(
    shared: Arc<Shared>,
    begun: Epoch,
    sequence: u64,
    body: Bytes,
    mark: Option<String>,
    may_be_stored: Arc<AtomicBool>,
) -> Result<Appended, Refusal> {
    let Epoch { epoch, log_id, .. } = begun;
    let only = if shared.same_log { format!("?log_id={log_id}") } else { String::new() };
    let path = format!("{}/records{only}", path_of(&shared.log)?);
    let (epoch_text, sequence_text) = (epoch.to_string(), sequence.to_string());
    let mut headers = vec![
        (CONTENT_TYPE.as_str(), wire::MEDIA_TYPE),
        ("producer-id", &*shared.id),
        ("producer-epoch", &*epoch_text),
        ("producer-seq", &*sequence_text),
    ];
    headers.extend(mark.as_deref().map(|mark| ("producer-mark", mark)));
    let (mut trying, ahead) = (Trying::new(&shared), Pauses::new(AHEAD_PAUSES));
    loop {
        let progress = shared.progress.notified();
        // Before the request: what the server says it expects is as old as its answer.
        let oldest = shared.oldest.load(Ordering::Relaxed);
        let request = shared.client.request(Method::POST, &path, &headers, body.clone())?;
        // Relaxed: the task looks at it when this has ended, or was aborted.
        let may_have_been = may_be_stored.swap(true, Ordering::Relaxed);
        let refusal = match trying.attempt(request).await {
            Ok(appended) => return Ok(appended),
            Err(refusal) => refusal,
        };
        if refusal.stored_nothing {
            may_be_stored.store(may_have_been, Ordering::Relaxed);
        }
        if refusal.too_large.is_some() {
            return Err(refusal);
        }
        match refusal.expected {
            // Its predecessors are on their way.
            Some((known, next)) if known == u64::from(epoch) && (oldest..sequence).contains(&next) => {
                let _ = tokio::time::timeout(ahead.next(), progress).await; // either will do
            }
            Some((known, _)) if known > u64::from(epoch) => {
                return Err(Error::TakenOver { epoch: epoch_of(known) }.into());
            }
            Some(_) => return Err(Refusal { error: Error::Forgotten, ..refusal }),
            None => trying.wait(refusal.error).await?,
        }
    }
}

/// What the task does next.
enum Step {
    Begin,
    Wait(Option<Instant>),
    End,
}

/// The producer's task, also before its first turn. If it ends in another way than by [`Step::End`], callers are told:
/// with a panic, or with its runtime, it would leave them waiting for ever.
pub(super) struct Running {
    shared: Arc<Shared>,
    has_ended: bool,
}

impl Running {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), has_ended: false }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended {
            stop(&self.shared, Error::TaskEnded);
        }
    }
}

/// Runs until the producer is closed and all is stored, or cannot be.
pub(super) async fn run(mut running: Running) {
    let shared = Arc::clone(&running.shared);
    loop {
        let changed = shared.changed.notified();
        let step = next_step(&shared);
        match step {
            Step::End => {
                running.has_ended = true;
                return;
            }
            Step::Begin => match begin_epoch(&shared).await {
                Ok(begun) => continue_in(&shared, begun),
                Err(error) => stop(&shared, error),
            },
            Step::Wait(due) => {
                let front = shared.state().numbered.front_mut().and_then(|front| front.sending.take());
                let due = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let Some(mut sending) = front else {
                    tokio::select! { () = changed => {} () = due => {} }
                    continue;
                };
                let done = tokio::select! {
                    done = &mut sending => done,
                    () = changed => { put_back(&shared, sending); continue }
                    () = due => { put_back(&shared, sending); continue }
                };
                let done = match done {
                    Ok(done) => done,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic), // callers are told that the task has ended
                        Err(_cancelled) => return,                     // the runtime ends
                    },
                };
                settle(&shared, done);
            }
        }
    }
}

/// The oldest batch is still being sent.
fn put_back(shared: &Shared, sending: JoinHandle<Result<Appended, Refusal>>) {
    match shared.state().numbered.front_mut() {
        Some(front) => front.sending = Some(sending),
        None => sending.abort(),
    }
}

/// When what is collected has to be sent. Not at all, if that is too far away to be represented.
fn due_at(shared: &Shared, state: &State) -> Option<Instant> {
    state.filling.since.and_then(|since| since.checked_add(shared.linger))
}

/// Numbers and sends what can be sent.
fn next_step(shared: &Arc<Shared>) -> Step {
    let mut state = shared.state();
    let state = &mut *state;
    if let Some(error) = &state.stuck {
        // When nobody is left to hear of it, what is held is lost.
        if state.closed {
            return Step::End;
        }
        if !error.is_temporary() || state.again_at.is_none_or(|at| Instant::now() < at) {
            return Step::Wait(state.again_at.filter(|_| error.is_temporary()));
        }
        state.stuck = None;
    }
    let due = due_at(shared, state);
    let is_flushed = state.flush_to > state.accepted - state.filling.records;
    if is_flushed || due.is_some_and(|due| due <= Instant::now()) {
        let batch = std::mem::take(&mut state.filling);
        state.full.push_back(batch);
    }
    if state.full.is_empty() && state.numbered.is_empty() {
        if state.wants_epoch && state.epoch.is_none() {
            return Step::Begin;
        }
        return if state.closed && state.settled == state.accepted { Step::End } else { Step::Wait(due) };
    }
    let Some(begun) = &state.epoch else { return Step::Begin };
    let begun = begun.clone();
    state.sent_in = Some(begun.clone());
    while state.numbered.len() < MAX_IN_FLIGHT
        && let Some(batch) = state.full.pop_front()
    {
        let (batch, rest) = batch.fitting(state.limits);
        if let Some(rest) = rest {
            state.full.push_front(rest);
        }
        let Batch { body, records, mark, tickets, .. } = batch;
        let (sequence, body) = (state.next, Bytes::from(body));
        state.next += 1;
        state.numbered.push_back(Numbered {
            body,
            records,
            mark,
            tickets,
            sequence,
            may_be_stored: Arc::default(),
            sending: None,
        });
    }
    for batch in state.numbered.iter_mut().filter(|batch| batch.sending.is_none()) {
        let (body, mark) = (batch.body.clone(), batch.mark.clone());
        let may_be_stored = Arc::clone(&batch.may_be_stored);
        let sending = send(Arc::clone(shared), begun.clone(), batch.sequence, body, mark, may_be_stored);
        batch.sending = Some(tokio::spawn(sending));
    }
    Step::Wait(due_at(shared, state))
}

/// Takes the result of the oldest batch.
fn settle(shared: &Shared, done: Result<Appended, Refusal>) {
    match done {
        Ok(Appended { first_offset, count, repeated, .. }) => {
            let mut state = shared.state();
            let Some(batch) = state.numbered.front() else { return };
            if count != batch.records {
                drop(state);
                return stop(shared, Error::Answer { reason: "it stored another number of records".into() });
            }
            note_stored(shared, &mut state, first_offset, repeated);
        }
        Err(Refusal { error: Error::Forgotten, .. }) => {
            let mut state = shared.state();
            // What is on the way may have been stored before the log forgot the producer, unless it is another log.
            state.stop_sending();
            state.epoch = None;
        }
        Err(Refusal { error, too_large, .. }) => {
            if !too_large.is_some_and(|why| divide_front(&mut shared.state(), why)) {
                stop(shared, error);
            }
        }
    }
}

/// Makes two batches of the oldest one, which was refused as too large, and numbers all of them again, in a new epoch:
/// what is still on its way under the old numbers is refused from then on. Returns `false` if it cannot be divided.
fn divide_front(state: &mut State, why: TooLarge) -> bool {
    let Some(front) = state.numbered.front() else { return false };
    if front.records < 2 || front.mark.is_some() {
        return false;
    }
    let (half, may_be_stored) = (front.body.len() / 2, front.may_be_stored.load(Ordering::Relaxed));
    state.stop_sending();
    state.epoch = None;
    if may_be_stored {
        return true; // by an earlier attempt: the next epoch tells
    }
    state.take_back_numbers();
    if let Some(batch) = state.full.pop_front() {
        let record = why.record.map(u64::from).filter(|&record| record <= batch.records);
        let (first, rest) = batch.divided(|first, bytes| match record {
            Some(record) => first.records + 1 < record, // it is alone in the end
            None => first.body.len() + Prefix::BYTES + bytes <= half,
        });
        if !why.for_log {
            state.limits.learned = Some(first.body.len().max(half) as u64);
        }
        rest.into_iter().chain([first]).for_each(|batch| state.full.push_front(batch));
    }
    true
}

impl State {
    fn stop_sending(&mut self) {
        for batch in &mut self.numbered {
            batch.sending.take().iter().for_each(JoinHandle::abort);
        }
    }

    /// Batches that have numbers and are not stored get new ones.
    fn take_back_numbers(&mut self) {
        while let Some(Numbered { body, records, mark, tickets, .. }) = self.numbered.pop_back() {
            self.full.push_front(Batch { body: body.into(), records, mark, tickets, since: None });
        }
    }
}

/// The oldest batch is stored.
fn note_stored(shared: &Shared, state: &mut State, first_offset: u64, repeated: bool) {
    let Some(batch) = state.numbered.pop_front() else { return };
    shared.oldest.store(batch.sequence + 1, Ordering::Relaxed);
    state.unsent -= batch.body.len();
    state.stored.records += batch.records;
    state.stored.repeated += if repeated { batch.records } else { 0 };
    state.stored.first_offset.get_or_insert(first_offset);
    state.stored.last_offset = Some(first_offset + batch.records - 1);
    state.settled += batch.records;
    for (number, ticket) in batch.tickets {
        let _ = ticket.send(Ok(first_offset + number)); // fails if nobody waits for it
    }
    shared.progress.notify_waiters();
}

/// Stops sending, until a caller tries again or discards; after a temporary error, for [`TRIED_AGAIN_AFTER`] at the
/// most, since callers may only be waiting for a ticket.
fn stop(shared: &Shared, error: Error) {
    let mut state = shared.state();
    state.stop_sending();
    let batches_to_fail = match &error {
        Error::TaskEnded => usize::MAX,
        error => usize::from(!error.is_temporary()), // only the oldest one has failed
    };
    for (_, ticket) in state.tickets().take(batches_to_fail).flat_map(|tickets| tickets.drain(..)) {
        let _ = ticket.send(Err(error.clone())); // fails if nobody waits for it
    }
    state.again_at = Instant::now().checked_add(TRIED_AGAIN_AFTER);
    state.stops += 1;
    state.last_error = Some(error.clone());
    if !error.is_temporary() {
        shared.trouble.send_replace(Some(error.clone()));
    }
    state.stuck = Some(error);
    shared.progress.notify_waiters();
}

/// What became of a batch that was sent in an earlier epoch.
enum Fate {
    Stored { first_offset: u64 },
    NotStored,
    Unknown,
}

fn fate(sequence: u64, sent_in: &Epoch, begun: &BegunEpoch) -> Fate {
    if begun.log_id != sent_in.log_id {
        return Fate::NotStored; // the log was deleted, and made again
    }
    match &begun.earlier {
        Some(EarlierEpoch { epoch, .. }) if *epoch < sent_in.epoch => Fate::NotStored,
        Some(EarlierEpoch { epoch, batches }) if *epoch == sent_in.epoch => {
            // The log remembers the last ones only.
            if batches.first().is_some_and(|first| sequence < first.seq) {
                return Fate::Unknown;
            }
            let same = batches.iter().find(|batch| batch.seq == sequence);
            same.map_or(Fate::NotStored, |same| Fate::Stored { first_offset: same.first_offset })
        }
        // Another producer has sent something since, or the log has forgotten this one.
        _ => Fate::Unknown,
    }
}

/// Continues in an epoch that has begun. The batches of the last one that are known to be stored are done, the others get
/// new numbers.
fn continue_in(shared: &Shared, begun: BegunEpoch) {
    let mut state = shared.state();
    let first = state.log_id.get_or_insert_with(|| begun.log_id.clone());
    if shared.same_log && *first != begun.log_id {
        let detail = format!("it had the id {first}, and has {} now", begun.log_id);
        drop(state);
        return stop(shared, Error::AnotherLog { detail });
    }
    state.wants_epoch = false;
    (state.begun, state.takes_over) = (Some(begun.epoch), false);
    // What was not sent, or was refused each time, is not stored, nor is what comes after it.
    while let Some(front) = state.numbered.front().filter(|front| front.may_be_stored.load(Ordering::Relaxed))
        && let Some(sent_in) = &state.sent_in
    {
        match fate(front.sequence, sent_in, &begun) {
            Fate::Stored { first_offset } => note_stored(shared, &mut state, first_offset, true),
            Fate::NotStored => break, // nor are those behind it
            Fate::Unknown => {
                drop(state);
                return stop(shared, Error::Forgotten);
            }
        }
    }
    state.take_back_numbers(); // and it is made to fit what is now known of the log
    state.next = 0;
    shared.oldest.store(0, Ordering::Relaxed);
    let BegunEpoch { epoch, mark, log_id, segment_bytes, max_body_bytes, .. } = begun;
    state.limits = Limits { segment: segment_bytes, body: max_body_bytes, ..state.limits };
    state.epoch = Some(Epoch { epoch, mark, log_id, segment_bytes, max_body_bytes });
    shared.progress.notify_waiters();
}
