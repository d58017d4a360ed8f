//! Append sessions: a request whose body and answer are both streams. What has arrived together is appended as one
//! batch, and each commit is answered by a line of JSON: how many records of this request are stored, and up to which
//! offset.
//!
//! A session takes no more of the body while there is no room for what it has, and makes no more lines than its client
//! takes. So it holds a part of the body, the beginning of a record, and one position for each batch that is on its way
//! to the disk.
//!
//! A producer's session begins an epoch of the producer, which fences off its earlier sessions. Each of its batches
//! carries a mark: how many records the producer has stored in sessions. So a session that says which of them its first
//! record is (`Producer-Seq`) leaves out what is stored already, and compares it with what the log remembers of it.
//!
//! # What always holds
//! - Records are appended in their order, each once; a record that is not whole is not appended, except for a last line
//!   without its end.
//! - What a line says is stored is stored: on the disk, or in memory if the session asked for that.
//! - The last line says why the session ended. An answer without it was broken off.

mod framing;
mod producer;
mod progress;
mod source;

use super::{
    answer::{Answer, json_text, keep_from_proxies, log_id, piece_by_piece},
    appending::{self, Ack, COPY_POLL},
    connection::RequestBody,
    context::Context,
    formats::{DecodedBatch, Format},
    headers::LOG_ID,
    permits::{Kind, OFFLOAD_BYTES},
    problem::Problem,
    share::ConnectionShare,
    waited::LogWait,
};
use crate::{
    Code,
    api::SessionLine,
    log::{Error, Room, Visible, WaitFor},
    store::OpenLog,
};
use bytes::Bytes;
pub(super) use framing::Framing;
use http_body_util::BodyExt;
use hyper::{
    Response,
    body::Frame,
    header::{CONTENT_TYPE, HeaderValue},
};
use producer::Producer;
pub(super) use producer::{MARK, WantedProducer};
use progress::{Progress, Stored};
use source::Source;
use std::{future, io, pin::Pin, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a session that ends for a problem waits for its last commits, and for its client to see why.
const MAX_ENDING_TIME: Duration = Duration::from_secs(2);
/// How long the first part of the body is waited for after `Expect: 100-continue`, so that `100 Continue` is sent
/// before the answer begins.
const MAX_FIRST_PART_WAIT: Duration = Duration::from_millis(20);

/// What a request for a session asks for.
pub(super) struct SessionRequest {
    pub(super) format: Format,
    pub(super) framing: Framing,
    pub(super) ack: Option<Ack>,
    pub(super) producer: Option<WantedProducer>,
}

/// Begins a session. `expects_continue`: the client sent `Expect: 100-continue`.
pub(super) async fn begin(
    context: &Arc<Context>,
    share: &Arc<ConnectionShare>,
    log: Arc<OpenLog>,
    wanted: SessionRequest,
    mut body: RequestBody,
    expects_continue: bool,
) -> Result<Answer, Problem> {
    let SessionRequest { format, framing, ack, producer } = wanted;
    let source = Source::new(format, framing, context, &log);
    log.writable().map_err(Problem::of_log(&log))?;
    let producer = match producer {
        Some(wanted) => Some(Producer::begin(wanted, context, share, &log).await?),
        None => None,
    };
    let first = if expects_continue {
        tokio::time::timeout(MAX_FIRST_PART_WAIT, body.frame()).await.ok()
    } else {
        None
    };
    let id = log_id(log.id());
    let session = Session {
        context: Arc::clone(context),
        share: Arc::clone(share),
        log_end: Box::pin(log.ended()),
        log_wait: context.waited.begin(&log, share),
        intake: Intake { first, body, has_ended: false, source },
        producer,
        blocked: None,
        room: None,
        taken: 0,
        progress: Progress::new(ack.unwrap_or_else(|| Ack::by(&log))),
        last_line_at: Instant::now(),
        stage: Stage::Opening,
        log,
    };
    let mut answer = Response::new(piece_by_piece(session, Session::next));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(Format::Ndjson.content_type()));
    headers.insert(LOG_ID, id);
    keep_from_proxies(headers);
    Ok(answer)
}

enum Stage {
    /// Nothing has been sent.
    Opening,
    /// The body goes on.
    Open,
    /// The body has ended, or is no longer read. The session waits until what it appended is stored. If a problem ended the
    /// session, this holds it.
    Ending(Option<Failure>),
    /// The last line has been sent.
    Ended,
}

/// A problem that has ended a session.
struct Failure {
    problem: Problem,
    /// When what was appended before is no longer waited for.
    gives_up_at: Instant,
}

/// A part of the body; `None` is its end.
type Part = Option<hyper::Result<Frame<Bytes>>>;

/// What comes from the client.
struct Intake {
    /// The first part of the body, if that came before the answer began.
    first: Option<Part>,
    body: RequestBody,
    has_ended: bool,
    source: Source,
}

impl Intake {
    /// Takes the next part of the body, or its end.
    async fn take(&mut self, frame: Part, share: &ConnectionShare) -> Result<(), Problem> {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.source.push(data, share).await,
                Err(_trailers) => Ok(()),
            },
            Some(Err(error)) => {
                self.has_ended = true;
                Err(Problem::new(Code::BodyIncomplete, format!("the body ended early: {error}")))
            }
            None => {
                self.has_ended = true;
                self.source.end()
            }
        }
    }

    /// Reads what still comes of the body.
    async fn drain(&mut self) {
        if !self.has_ended {
            while let Some(Ok(_)) = self.body.frame().await {}
        }
    }
}

struct Session {
    context: Arc<Context>,
    share: Arc<ConnectionShare>,
    log: Arc<OpenLog>,
    /// Completes when the log ends.
    log_end: Pin<Box<Visible>>,
    log_wait: LogWait,
    intake: Intake,
    producer: Option<Producer>,
    /// A batch for which there was no room, and what tells when there is.
    blocked: Option<Arc<DecodedBatch>>,
    room: Option<Pin<Box<Room>>>,
    /// How many records of the body have been appended, or were stored before.
    taken: u64,
    progress: Progress,
    /// When it was last sent a line.
    last_line_at: Instant,
    stage: Stage,
}

impl Session {
    /// The next line of the answer; `None` once it has ended.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if matches!(self.stage, Stage::Ended) {
                self.read_rest().await;
                return Ok(None);
            }
            if let Some(line) = self.line() {
                self.last_line_at = Instant::now();
                return Ok(Some((json_text(&line).into(), self)));
            }
            if let Err(problem) = self.advance().await {
                // Nothing more is appended: others get the room.
                (self.blocked, self.room) = (None, None);
                let why = Failure { problem, gives_up_at: Instant::now() + MAX_ENDING_TIME };
                self.stage = match self.stage {
                    Stage::Opening | Stage::Open => Stage::Ending(Some(why)),
                    // What was appended cannot be waited for any more. The first problem is the one to be told.
                    Stage::Ending(first) => {
                        self.progress.give_up();
                        Stage::Ending(first.or(Some(why)))
                    }
                    Stage::Ended => Stage::Ended,
                };
            }
        }
    }

    /// Reads what still comes of the body, for a while: a client that is sending may not see the last line if the
    /// connection breaks.
    async fn read_rest(&mut self) {
        tokio::select! {
            () = self.intake.drain() => {}
            () = self.context.stopping() => {}
            () = tokio::time::sleep(MAX_ENDING_TIME) => {}
        }
    }

    /// The next line to send, if there is one.
    fn line(&mut self) -> Option<SessionLine> {
        let Stored { records, last_offset } = self.progress.stored();
        let progress = SessionLine { records, last_offset, ..SessionLine::default() };
        match &mut self.stage {
            Stage::Opening => {
                self.stage = Stage::Open;
                let epoch = self.producer.as_ref().map(|producer| producer.epoch);
                let stored = self.producer.as_ref().map(|producer| producer.stored);
                Some(SessionLine { epoch, stored, ..progress })
            }
            Stage::Ending(why) if self.progress.is_all_stored() => {
                let why = why.take().map(|why| why.problem.of(&self.log));
                self.stage = Stage::Ended;
                Some(match why {
                    None => SessionLine { end: Some("complete".to_owned()), ..progress },
                    Some(problem) => problem.into_end(records, last_offset),
                })
            }
            Stage::Open | Stage::Ending(_) if self.progress.take_news() => Some(progress),
            _ => None,
        }
    }

    /// Appends what has arrived, or waits for something to do.
    async fn advance(&mut self) -> Result<(), Problem> {
        if let Some(first) = self.intake.first.take() {
            return self.intake.take(first, &self.share).await;
        }
        let is_open = matches!(self.stage, Stage::Open);
        if is_open && self.has_records() {
            if self.progress.is_full() || !self.append().await? {
                return self.wait().await;
            }
            tokio::task::yield_now().await; // others have their turn
            return Ok(());
        }
        if is_open && self.intake.has_ended {
            self.stage = Stage::Ending(None);
            return Ok(());
        }
        self.wait().await
    }

    /// Whether there are records that can be appended.
    fn has_records(&self) -> bool {
        self.blocked.is_some() || self.intake.source.has_whole_records()
    }

    /// Appends the next batch; returns whether there was room for it.
    async fn append(&mut self) -> Result<bool, Problem> {
        let batch = if let Some(batch) = self.blocked.take() {
            batch
        } else {
            let batch = self.intake.source.batch(&self.context, &self.share, self.taken).await?;
            let batch = batch.map(|batch| self.without_skipped(batch)).transpose()?.flatten();
            let Some(batch) = batch else {
                return Ok(true); // blank lines, or what is stored already
            };
            Arc::new(batch)
        };
        if self.producer.is_some() {
            while self.log.producers_are_busy() {
                tokio::time::sleep(COPY_POLL).await;
            }
        }
        match self.attempt(&batch).await? {
            Ok(first) => {
                self.note(first, &batch);
                Ok(true)
            }
            Err(Error::WouldBlock) => {
                let is_new = self.room.is_none();
                self.room.get_or_insert_with(|| Box::pin(self.log.room()));
                self.blocked = Some(batch);
                // Room that was made before it was waited for is not missed.
                if is_new { Box::pin(self.append()).await } else { Ok(false) }
            }
            Err(error) => Err(Problem::of_log(&self.log)(error)),
        }
    }

    /// Removes from a batch the records that were stored by an earlier session. Returns `None` if no record is left, and an
    /// error if the removed records differ from the stored ones.
    fn without_skipped(&mut self, batch: DecodedBatch) -> Result<Option<DecodedBatch>, Problem> {
        let Some(producer) = self.producer.as_mut().filter(|producer| producer.skips > 0) else {
            return Ok(Some(batch));
        };
        let skipped = producer.skip(&batch).map_err(Problem::of_log(&self.log))?;
        self.taken += skipped;
        self.progress.were_stored(self.taken); // they were durable when the epoch began
        Ok((skipped < batch.records()).then(|| batch.without_first(skipped)))
    }

    /// Attempts to append a batch: one that takes more than a moment, off the runtime's thread.
    async fn attempt(&mut self, batch: &Arc<DecodedBatch>) -> Result<Result<u64, Error>, Problem> {
        fn append(
            log: &OpenLog,
            producer: Option<&Producer>,
            batch: &DecodedBatch,
            wait_for: WaitFor,
        ) -> Result<u64, Error> {
            match producer {
                None => log.try_append_values(batch, None, wait_for),
                Some(producer) => producer.append(log, batch, wait_for),
            }
        }
        if appending::cost(batch.bytes() as usize, batch.records() as usize) < OFFLOAD_BYTES {
            return Ok(append(&self.log, self.producer.as_ref(), batch, WaitFor::Nothing));
        }
        let (log, producer, batch) = (Arc::clone(&self.log), self.producer.clone(), Arc::clone(batch));
        let run = move || append(&log, producer.as_ref(), &batch, WaitFor::Copies);
        let patience = self.context.settings.queue_time;
        Box::pin(self.context.for_client(&self.share, Kind::Append, patience, run)).await
    }

    /// A batch was appended.
    fn note(&mut self, first: u64, batch: &DecodedBatch) {
        if self.room.take().is_some() {
            self.intake.source.resumed(); // and the next caller is woken
        }
        let records = batch.records();
        if let Some(producer) = &mut self.producer {
            producer.stored += records;
            producer.sequence += 1;
        }
        self.taken += records;
        self.context.metrics.appended(records, batch.bytes());
        self.progress.appended(first..first + records, self.taken);
    }

    /// Waits for more of the body, for a commit, for room, or for what ends the session; or until the client is to see that
    /// it goes on.
    async fn wait(&mut self) -> Result<(), Problem> {
        self.progress.begin_commit(&self.context, &self.log);
        let is_open = matches!(self.stage, Stage::Open);
        let reads = is_open && !self.has_records() && !self.intake.has_ended;
        let due = self.next_due(reads);
        tokio::select! {
            biased;
            done = self.progress.committed(&self.log) => done?,
            () = or_never(self.room.as_mut()), if self.blocked.is_some() => {}
            () = self.context.stopping(), if is_open => {
                return Err(Problem::new(Code::ShuttingDown, "the server is stopping; begin another session"));
            }
            () = self.log_wait.ended(), if is_open => return Err(Problem::too_many_waits()),
            // With something on its way to the disk, the commit says so.
            ended = self.log_end.as_mut(), if is_open && self.progress.is_all_stored() => {
                return ended.map_err(Problem::of_log(&self.log));
            }
            frame = self.intake.body.frame(), if reads => return self.intake.take(frame, &self.share).await,
            () = tokio::time::sleep_until(due) => return self.do_due(reads),
        }
        Ok(())
    }

    /// When the client is to see again that the session goes on.
    fn heartbeat(&self) -> Instant {
        self.last_line_at + self.context.settings.heartbeat
    }

    /// When the session waits no longer for what it has appended, if a problem has ended it.
    fn gives_up_at(&self) -> Option<Instant> {
        let Stage::Ending(Some(failure)) = &self.stage else { return None };
        Some(failure.gives_up_at)
    }

    /// When [`do_due`](Self::do_due) is next to be called.
    fn next_due(&self, reads: bool) -> Instant {
        let pace = self.intake.source.pace_due().filter(|_| reads);
        pace.into_iter().chain(self.gives_up_at()).fold(self.heartbeat(), Instant::min)
    }

    /// Does what is due by now.
    fn do_due(&mut self, reads: bool) -> Result<(), Problem> {
        if reads {
            self.intake.source.check_pace(&self.share)?;
        }
        if self.gives_up_at().is_some_and(|at| at <= Instant::now()) {
            self.progress.give_up();
        }
        if self.heartbeat() <= Instant::now() {
            self.log.writable().map_err(Problem::of_log(&self.log))?;
            self.progress.repeat();
        }
        Ok(())
    }
}

/// The result of a future, if there is one.
async fn or_never<F: Future + ?Sized>(future: Option<&mut Pin<Box<F>>>) -> F::Output {
    match future {
        Some(future) => future.as_mut().await,
        None => future::pending().await,
    }
}
