//! Reading a range of a log: where it starts and ends, and its records in any format, whole or piece by piece.

use super::{
    answer::{Answer, Body, full, only_head, piece_by_piece},
    context::{Asker, Context},
    fetch::{self, Patience},
    formats::{self, Format},
    memory::{Grant, Memory, Purpose, UsedUp, with_scratch},
    params,
    permits::{Kind, LARGE, Queues},
    place::{self, Made, Next, Place, Wants},
    problem::Problem,
    tail,
};
use crate::{
    Code,
    log::{Error, Head, Reader},
    reports,
    store::OpenLog,
};
use http_body_util::{BodyExt, Either};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, SizeHint},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task,
    time::{Duration, Instant},
};

/// The offset to read from next.
const NEXT_OFFSET: HeaderName = HeaderName::from_static("millstream-next-offset");

/// Bytes of an answer that are rendered at once: from memory, from the disk (where as much is read at once), and from
/// memory when the budget for answers is short; then `PIECE` from the disk.
const PIECE: usize = 64 << 10;
const COLD_PIECE: usize = 256 << 10;
const SHORT_PIECE: usize = 16 << 10;
/// Answers of up to this many bytes are sent whole.
const WHOLE: usize = 1 << 20;
/// How long a turn of looking for the end of a large answer lasts before others have their turn, and how many records
/// pass between two looks at the clock.
const LOOK: Duration = Duration::from_millis(2);
const LOOK_STEPS: usize = 64;
/// How long it is looked for on the runtime's thread first, among records that are in memory.
const GLANCE: Duration = Duration::from_micros(500);
/// Reading this many bytes from the disk counts as one more record.
const LOOK_BYTES: usize = 4 << 10;

/// Where to begin, as specified by a client.
enum StartAt {
    Earliest,
    Offset(u64),
    Back(u64),
    Latest,
    Since(u64),
}

impl StartAt {
    fn parse(value: &str) -> Result<Self, Problem> {
        let expected = || {
            let detail = "offset must be a whole number, -K for the last K records, earliest, or latest";
            Problem::new(Code::InvalidOffset, detail)
        };
        match value {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match value.strip_prefix('-') {
                Some(back) => params::number("offset", back, 1..=u64::MAX).map(Self::Back),
                None => params::number("offset", value, 0..=u64::MAX).map(Self::Offset),
            }
            .map_err(|_| expected()),
        }
    }

    /// The offset that is meant.
    async fn resolve(&self, context: &Context, queues: &Queues, log: &Arc<OpenLog>) -> Result<u64, Problem> {
        Ok(match *self {
            Self::Earliest => log.first_offset(),
            Self::Offset(offset) => offset,
            Self::Latest => log.visible_offset(),
            Self::Back(back) => log.visible_offset().saturating_sub(back).max(log.first_offset()),
            Self::Since(time) => {
                let (log, patience) = (Arc::clone(log), context.limits.append_time);
                context.for_client(queues, Kind::Read, patience, move || log.offset_since(time)).await??
            }
        })
    }
}

/// How much more an answer may contain.
#[derive(Debug, Clone, Copy)]
struct PageLimits {
    records: u64,
    bytes: u64,
}

/// What is read, and how it is rendered.
struct Reading {
    reader: Reader,
    format: Format,
    page_limits: PageLimits,
    /// Where the log ended when the reading began, to estimate the size of the answer.
    end: u64,
    /// Whether nothing has been read yet: the first record is returned however large it is.
    fresh: bool,
    /// If requested, the bytes that the answer would have so far if it were rendered.
    length: Option<u64>,
}

/// How far a step of reading came.
enum Went {
    /// To the end of the range.
    All,
    Some,
    /// No further: the next record must be read in another place, or needs more memory.
    Nowhere(Place, usize),
}

impl Reading {
    fn new(reader: Reader, format: Format, page_limits: PageLimits, end: u64) -> Self {
        Self { reader, format, page_limits, end, fresh: true, length: None }
    }

    /// The most bytes of a value that there is room for.
    fn most(&self) -> u64 {
        if self.fresh { u64::MAX } else { self.page_limits.bytes }
    }

    /// Counts a record as read.
    fn took(&mut self, offset: u64, record: Head) {
        if let Some(length) = &mut self.length {
            let comma = !self.fresh && self.format == Format::Json;
            *length += u64::from(comma) + formats::length(self.format, offset, record);
        }
        self.fresh = false;
        self.page_limits.records -= 1;
        self.page_limits.bytes = self.page_limits.bytes.saturating_sub(record.length as u64);
    }

    /// Damage ends the range before the damaged record: a client that continues there gets the error.
    fn ends_before(&mut self, error: Error) -> Result<(), Problem> {
        match error {
            Error::Damaged { offset } if !self.fresh => {
                self.reader.seek(offset);
                Ok(())
            }
            error => Err(error.into()),
        }
    }

    /// Continues with the next records, rendering them to `out`, until it has `most` bytes, or the next record must be
    /// read in another place or needs more memory than there is.
    fn go(
        &mut self,
        out: &mut Vec<u8>,
        grant: &mut Grant,
        place: Place,
        most: usize,
    ) -> Result<Went, Problem> {
        let begun = out.len();
        while self.page_limits.records > 0 {
            if out.len() >= most {
                return Ok(Went::Some);
            }
            let next_most = self.most();
            let record = match place::next(&mut self.reader, place, grant, out.len(), next_most) {
                Ok(Next::Record(record)) => record,
                Ok(Next::End) => break,
                Ok(Next::Wants(place, bytes)) if out.len() == begun => {
                    return Ok(Went::Nowhere(place, bytes));
                }
                Ok(Next::Wants(..)) => return Ok(Went::Some),
                Err(error) => {
                    self.ends_before(error)?;
                    break;
                }
            };
            let (offset, head) = (record.offset, record.head());
            if !self.fresh && self.format == Format::Json {
                out.push(b',');
            }
            formats::render(self.format, out, &record);
            if self.fresh {
                // Assumes that the other records are like the first.
                let others = self.page_limits.records.min(self.end.saturating_sub(offset));
                let likely = others.saturating_mul(out.len() as u64).min(most as u64 + 1024);
                out.reserve(likely as usize);
            }
            self.took(offset, head);
        }
        Ok(Went::All)
    }

    /// Continues without rendering anything, for about as long as a [`LOOK`], or a [`GLANCE`] on the runtime's thread.
    /// Returns whether the end of the range was reached. Large records are read only to verify them, which a HEAD does
    /// not need. If there is no memory for that, the range ends before such a record, if anything is before it.
    fn look(&mut self, memory: &Arc<Memory>, only_head: bool, place: Place) -> Result<bool, Problem> {
        let (begun, mut steps, mut grant) = (Instant::now(), 0, memory.grant(Purpose::Answer));
        let most = if place == Place::Here { GLANCE } else { LOOK };
        while self.page_limits.records > 0 {
            if steps >= LOOK_STEPS {
                if begun.elapsed() >= most {
                    return Ok(false);
                }
                steps = 0;
            }
            if place == Place::Here && !self.reader.is_in_memory() {
                return Ok(false);
            }
            match self.look_at_next(&mut grant, only_head) {
                Ok(Some(cold_bytes)) => steps += 1 + cold_bytes / LOOK_BYTES,
                Ok(None) => break,
                Err(LookError::Error(error)) => {
                    self.ends_before(error)?;
                    break;
                }
                Err(LookError::UsedUp(_)) if !self.fresh => break,
                Err(LookError::UsedUp(used_up)) => return Err(used_up.into()),
            }
        }
        Ok(true)
    }

    /// Counts the next record; returns how many bytes were read from the disk for it. `None` at the end.
    fn look_at_next(&mut self, grant: &mut Grant, only_head: bool) -> Result<Option<usize>, LookError> {
        let (offset, most, mut cold_bytes) = (self.reader.offset(), self.most(), 0);
        if !self.reader.is_in_memory() {
            let Some(ahead) = self.reader.peek()?.filter(|ahead| ahead.length() as u64 <= most) else {
                return Ok(None);
            };
            cold_bytes = ahead.cold_bytes;
            if let Some(head) = ahead.head.filter(|_| cold_bytes >= LARGE && only_head) {
                self.reader.seek(offset + 1);
                self.took(offset, head);
                return Ok(Some(LOOK_BYTES));
            }
            if cold_bytes >= LARGE {
                grant.cover(cold_bytes)?;
            }
        }
        let head = self.reader.read_next()?.map(|record| record.head());
        let Some(head) = head.filter(|head| head.length as u64 <= most) else {
            self.reader.seek(offset);
            return Ok(None);
        };
        self.took(offset, head);
        Ok(Some(cold_bytes))
    }

    /// Repeats [`look`](Self::look) to the end of the range, giving others their turns in between.
    async fn looked(mut self, context: &Context, queues: &Queues, only_head: bool) -> Result<Self, Problem> {
        let patience = context.limits.append_time; // for each turn
        let mut done = self.look(&context.memory, only_head, Place::Here)?;
        self.reader.release();
        while !done {
            let memory = Arc::clone(&context.memory);
            let look = move || {
                let done = self.look(&memory, only_head, Place::Permit);
                self.reader.release();
                (self, done)
            };
            let looked;
            (self, looked) = Box::pin(context.for_client(queues, Kind::Look, patience, look)).await?;
            done = looked?;
        }
        Ok(self)
    }

    /// Renders a new piece by [`go`](Self::go), where and when that is allowed. Returns whether it is the last piece,
    /// which includes what follows the records.
    async fn piece(
        self,
        context: &Context,
        queues: &Queues,
        log: &OpenLog,
        patience: Patience,
    ) -> Result<(Self, Bytes, bool), Problem> {
        let tight = context.memory.is_tight(Purpose::Answer);
        let attempt = move |reading: &mut Self, place: Place, mut grant: Grant| {
            let most = match (tight, place) {
                (true, Place::Here) => SHORT_PIECE,
                (false, Place::Here) | (true, _) => PIECE,
                (false, _) => COLD_PIECE,
            };
            with_scratch(|out| {
                if reading.fresh && reading.format == Format::Json {
                    out.extend_from_slice(OPENING);
                }
                let went = reading.go(out, &mut grant, place, most)?;
                // Nothing is held while waiting: neither what was read ahead, nor a chunk.
                reading.reader.release();
                Ok(match went {
                    Went::Nowhere(place, bytes) => Made::Wants(Wants { grant, place, bytes }),
                    Went::Some => Made::Done((grant.hold_copy(out), false)),
                    Went::All => {
                        close(reading.format, out, reading.reader.offset());
                        Made::Done((grant.hold_copy(out), true))
                    }
                })
            })
        };
        let place = Place::first(log, self.reader.offset());
        let (reading, (piece, done)) = fetch::make(context, queues, place, patience, self, attempt).await?;
        Ok((reading, piece, done))
    }
}

/// Why the look for the end has stopped.
enum LookError {
    Error(Error),
    UsedUp(UsedUp),
}

impl From<Error> for LookError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<UsedUp> for LookError {
    fn from(used_up: UsedUp) -> Self {
        Self::UsedUp(used_up)
    }
}

pub(super) async fn range(
    context: &Arc<Context>,
    asker: Asker<'_>,
    name: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let limits = &context.limits;
    let (mut from, mut wait) = (None, Duration::ZERO);
    let mut page_limits = PageLimits { records: 1000, bytes: 1 << 20 };
    for parameter in params::of(&request) {
        let (name, value) = parameter?;
        match &*name {
            "offset" | "since" if from.is_some() => return Err(params::one_of("offset and since")),
            "offset" => from = Some(StartAt::parse(&value)?),
            "since" => from = Some(StartAt::Since(params::time(&name, &value)?)),
            "limit" => page_limits.records = params::number(&name, &value, 1..=10_000_000)?,
            "max_bytes" => page_limits.bytes = params::number(&name, &value, 1..=1 << 30)?,
            "wait" => wait = params::duration(&name, &value, limits.wait_time)?,
            _ => return Err(params::unknown(&name, "offset, since, limit, max_bytes, wait")),
        }
    }
    let headers = request.headers();
    let (tailing, format) = formats::wanted(headers)?;
    let last = if tailing { params::header(headers, "last-event-id")? } else { None };
    let resumed = last.map(|id| params::number("Last-Event-ID", id, 0..=u64::MAX - 1)).transpose()?;
    drop(request); // so that its header section is not held while waiting
    let log = context.log(asker.queues, name).await?;
    if tailing {
        let from = resumed.map(|last| StartAt::Offset(last + 1)).or(from).unwrap_or(StartAt::Latest);
        let offset = from.resolve(context, asker.queues, &log).await?;
        return tail::stream(context, asker.queues, &log, offset);
    }
    let from = from.unwrap_or(StartAt::Earliest);
    let ranged = records_from(context, asker, &log, from, wait, format, page_limits).await;
    ranged.map_err(|problem| problem.of(&log))
}

/// Answers with a range of a log, whole or piece by piece.
async fn records_from(
    context: &Arc<Context>,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    from: StartAt,
    wait: Duration,
    format: Format,
    page_limits: PageLimits,
) -> Result<Answer, Problem> {
    let offset = from.resolve(context, asker.queues, log).await?;
    if log.visible_offset() <= offset && !wait.is_zero() {
        let (mut stopped, hold) = (context.stopped.clone(), context.held.hold(log, asker.queues));
        tokio::select! {
            waited = tokio::time::timeout(wait, log.visible(offset)) => waited.unwrap_or(Ok(()))?,
            () = hold.ended() => return Err(Problem::too_many_waits()),
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
    let (reader, end) = (log.reader(offset), log.visible_offset());
    let mut reading = Reading::new(reader, format, page_limits, end);
    let (next, body) = if asker.only_head {
        reading.length = Some(if format == Format::Json { OPENING.len() as u64 } else { 0 });
        let reading = reading.looked(context, asker.queues, true).await?;
        let next = reading.reader.offset();
        // A longer answer is sent piece by piece, without a length.
        let length = reading.length.map(|length| length + closing_bytes(format, next));
        let length = length.filter(|length| *length < WHOLE as u64);
        (next, only_head(length))
    } else {
        begun(context, asker.queues, log, reading).await?
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.name()));
    headers.insert(NEXT_OFFSET, HeaderValue::from(next));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Where a range ends, and a body that is all of it or sends it piece by piece.
async fn begun(
    context: &Arc<Context>,
    queues: &Arc<Queues>,
    log: &Arc<OpenLog>,
    mut reading: Reading,
) -> Result<(u64, Body), Problem> {
    let patience = Patience::to_begin(context);
    let mut pieces = VecDeque::new();
    let mut bytes = 0;
    let done = loop {
        // Boxed, as in `send`: little memory is to be held by requests that wait to look for the end.
        let (page_limits, at) = (reading.page_limits, reading.reader.offset());
        let (format, end) = (reading.format, reading.end);
        let (next, piece, done) = match Box::pin(reading.piece(context, queues, log, patience)).await {
            Err(problem) if problem.is_overload() && !pieces.is_empty() => {
                // These pieces may be what has used up the memory: they are sent first.
                reading = Reading { fresh: false, ..Reading::new(log.reader(at), format, page_limits, end) };
                break false;
            }
            made => made?,
        };
        reading = next;
        bytes += piece.len();
        pieces.push_back(piece);
        if done || bytes >= WHOLE || context.memory.is_tight(Purpose::Answer) {
            break done;
        }
        tokio::task::yield_now().await; // others have their turn
    };
    if done {
        return Ok((reading.reader.offset(), whole(pieces)));
    }
    // A large range: find out where it ends, which the head has to say, then send it as the client takes it.
    let (planned, back) = (reading.page_limits, reading.reader.offset());
    let mut reading = reading.looked(context, queues, false).await?;
    let next = reading.reader.offset();
    reading.page_limits =
        PageLimits { records: planned.records - reading.page_limits.records, bytes: u64::MAX };
    reading.reader.seek(back);
    let (context, queues, log) = (Arc::clone(context), Arc::clone(queues), Arc::clone(log));
    let sending = Sending { context, queues, log, reading, pieces, done: false };
    Ok((next, piece_by_piece(sending, Sending::next)))
}

/// What is before and after the records in a JSON document.
const OPENING: &[u8] = b"{\"records\":[";

fn close(format: Format, out: &mut Vec<u8>, next: u64) {
    if format == Format::Json {
        out.extend_from_slice(format!("],\"next_offset\":{next}}}\n").as_bytes());
    }
}

/// The number of bytes that follow the records.
fn closing_bytes(format: Format, next: u64) -> u64 {
    let mut closing = Vec::new();
    close(format, &mut closing, next);
    closing.len() as u64
}

/// An answer of which all pieces exist.
fn whole(mut pieces: VecDeque<Bytes>) -> Body {
    match pieces.len() {
        0 | 1 => full(pieces.pop_front().unwrap_or_default()),
        _ => Either::Right(Pieces(pieces).boxed_unsync()),
    }
}

struct Pieces(VecDeque<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<io::Result<Frame<Bytes>>>> {
        task::Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// A range that is sent piece by piece, no faster than the client takes it. If there is no memory for the next piece,
/// waits for some.
struct Sending {
    context: Arc<Context>,
    queues: Arc<Queues>,
    log: Arc<OpenLog>,
    reading: Reading,
    /// Pieces that exist already.
    pieces: VecDeque<Bytes>,
    /// Whether they are the last ones.
    done: bool,
}

impl Sending {
    /// The next piece. The head has been sent: after an error, all that can be done is to break off.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Ok(Some((piece, self)));
        }
        if self.done {
            return Ok(None);
        }
        let Self { context, queues, log, reading, pieces, .. } = self;
        let broken_off = || io::Error::other("the range was broken off");
        let patience = Patience::of(context.limits.body_time);
        // Boxed, so that little memory is held by answers whose clients take nothing.
        let made = Box::pin(reading.piece(&context, &queues, &log, patience)).await;
        let (reading, piece, done) = made.map_err(|problem| {
            reports::failure(log.dir(), &problem, "broke off the answer to a range");
            broken_off()
        })?;
        if done && reading.page_limits.records > 0 {
            // Something has become unreadable since the head said where the answer ends.
            reports::failure(
                log.dir(),
                &"a record cannot be read any more",
                "broke off the answer to a range",
            );
            return Err(broken_off());
        }
        Ok(Some((piece, Self { context, queues, log, reading, pieces, done })))
    }
}
