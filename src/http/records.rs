//! Records: appending a batch, reading a range, reading one.

use super::{
    answer::{Answer, Body, full, json},
    body,
    connection::Arriving,
    context::{Ack, Context},
    formats::{self, DecodedBatch, Format},
    memory::{FREE, Grant, Purpose, Work, with_scratch},
    params,
    problem::Problem,
    room::{Meter, Room},
    tail,
};
use crate::{
    Code,
    log::{Error, Produced, ProducerBatch, Reader},
    store::{LogSettings, OpenLog, Store, Values},
};
use http_body_util::{BodyExt, Either, channel::Channel};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, SizeHint},
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH},
};
use serde::Serialize;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task,
    time::{Duration, Instant},
};

/// The offset to read from next.
pub(super) const NEXT_OFFSET: HeaderName = HeaderName::from_static("millstream-next-offset");
const TIME: HeaderName = HeaderName::from_static("millstream-time");

/// Bytes of an answer that are rendered at once: from memory, from the disk, and where memory for answers is short.
const PIECE: usize = 64 << 10;
const COLD_PIECE: usize = 256 << 10;
const SHORT_PIECE: usize = 16 << 10;
/// Bytes of an answer that is sent whole.
const WHOLE: usize = 1 << 20;
/// How long one looks for the end of a large answer before others have their turn, and how many records between two looks at the
/// clock.
const LOOK: Duration = Duration::from_millis(2);
const LOOK_STEP: u64 = 64;
/// How often one that is being sent asks for memory, where there was none.
const ASK: Duration = Duration::from_millis(20);

#[derive(Serialize)]
struct Appended {
    first_offset: u64,
    last_offset: u64,
    count: u64,
    /// The batch was there already.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
}

/// The producer that a request names by its headers, if it does: id, epoch and sequence.
fn producer(headers: &HeaderMap) -> Result<Option<(String, u32, u64)>, Problem> {
    let all = [
        params::header(headers, "producer-id")?,
        params::header(headers, "producer-epoch")?,
        params::header(headers, "producer-seq")?,
    ];
    let bad = |_| {
        let detail = "send all of Producer-Id (1 to 64 bytes), Producer-Epoch and Producer-Seq (whole numbers), or none";
        Problem::new(Code::InvalidProducer, detail)
    };
    match all {
        [None, None, None] => Ok(None),
        [Some(id), Some(epoch), Some(sequence)] => {
            let epoch = params::number("", epoch, 0..=u64::from(u32::MAX)).map_err(bad)? as u32;
            // One less than the largest, so that there always is a next one.
            let sequence = params::number("", sequence, 0..=u64::MAX - 1).map_err(bad)?;
            Ok(Some((id.to_owned(), epoch, sequence)))
        }
        _ => Err(bad(params::invalid("", ""))),
    }
}

pub(super) async fn append(
    context: &Context,
    name: &str,
    request: Request<Arriving>,
) -> Result<Answer, Problem> {
    let (mut ack, mut expect) = (None, None);
    for parameter in params::of(&request) {
        let (name, value) = parameter?;
        match (&*name, &*value) {
            ("ack", "durable") => ack = Some(Ack::Durable),
            ("ack", "memory") => ack = Some(Ack::Memory),
            ("ack", _) => return Err(params::invalid("ack", "durable or memory")),
            ("expect", value) => expect = Some(params::number("expect", value, 0..=u64::MAX)?),
            _ => return Err(params::unknown(&name, "ack, expect")),
        }
    }
    let media_type = params::header(request.headers(), "content-type")?.unwrap_or(Format::Bytes.name());
    let format = Format::of(media_type).ok_or_else(|| {
        let media_type: String = media_type.chars().take(100).collect();
        let detail = format!(
            "a body of type {media_type:?} is not taken; set Content-Type to one of: {}",
            formats::ACCEPTED
        );
        Problem::new(Code::UnsupportedType, detail)
    })?;
    let producer = producer(request.headers())?;
    let encoding = body::Encoding::of(params::header(request.headers(), "content-encoding")?)?;
    let settings = context.settings(name).await?;
    let room = Room::new(context.store.batch_bytes(&settings));
    let bytes = body::read(request.into_body(), context).await?;
    let mut batch = take_apart(context, format, encoding, bytes, &settings, room).await?;
    // Only now, so that what is refused creates no log.
    let log = context.log_to_append(name).await?;
    if *log.settings() != settings {
        check(&mut batch, log.settings())?; // another log has taken the name meanwhile
    }
    let Produced { first_offset, count, repeated } = match &producer {
        None => {
            let first_offset = context.append(&log, || log.try_append_values(&batch, expect)).await?;
            Produced { first_offset, count: batch.records(), repeated: false }
        }
        Some((id, epoch, sequence)) => {
            if !log.knows_producers() {
                let log = Arc::clone(&log);
                let learn = move |_: &Store, _: &str| {
                    log.learn_producers().map_err(|error| Problem::from(error).of(&log))
                };
                context.in_turn(name, learn).await??;
            }
            let producer = ProducerBatch { id, epoch: *epoch, sequence: *sequence };
            context.append(&log, || log.try_append_values_once(&producer, &batch, expect)).await?
        }
    };
    if !repeated {
        context.metrics.appended(count, batch.bytes());
    }
    drop(batch); // its memory is not for waiting with
    let last_offset = first_offset + count - 1;
    // A repeat too: what it repeats may not be on disk yet.
    context.acknowledged(&log, last_offset, ack).await?;
    Ok(json(&Appended { first_offset, last_offset, count, repeated }))
}

async fn take_apart(
    context: &Context,
    format: Format,
    encoding: body::Encoding,
    bytes: Bytes,
    settings: &LogSettings,
    room: Room,
) -> Result<DecodedBatch, Problem> {
    let small = bytes.len() < body::LARGE && encoding == body::Encoding::Identity;
    let mut work = Work::of(bytes.len());
    let (limit, settings, memory) =
        (context.limits.decoded_bytes, settings.clone(), Arc::clone(&context.memory));
    // Shared by all attempts, of which there are up to three.
    let run = Arc::new(move |work| {
        let grant = || memory.grant(Purpose::Request);
        let meter = Meter::new(format, room);
        let Some(decoded) = encoding.decode(bytes.clone(), limit, work, grant(), meter)? else {
            return Ok::<_, Problem>(None);
        };
        let mut batch = formats::parse(format, decoded, room, grant())?;
        check(&mut batch, &settings)?;
        Ok(Some(batch))
    });
    loop {
        let done = if small {
            run(work)?
        } else {
            let run = Arc::clone(&run);
            body::in_turn(context, work, move || run(work)).await??
        };
        match done {
            Some(batch) => return Ok(batch),
            None => work = work.next(),
        }
    }
}

fn check(batch: &mut DecodedBatch, settings: &LogSettings) -> Result<(), Problem> {
    batch.check(settings.values == Values::Json, settings.record_bytes)
}

/// Where to begin, as a client says it.
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
    async fn resolve(&self, context: &Context, log: &Arc<OpenLog>) -> Result<u64, Problem> {
        Ok(match *self {
            Self::Earliest => log.first_offset(),
            Self::Offset(offset) => offset,
            Self::Latest => log.visible_offset(),
            Self::Back(back) => log.visible_offset().saturating_sub(back).max(log.first_offset()),
            Self::Since(time) => {
                let log = Arc::clone(log);
                context.blocking(move |_| log.offset_since(time)).await??
            }
        })
    }
}

/// How much an answer may still have.
#[derive(Debug, Clone, Copy)]
struct PageLimits {
    records: u64,
    bytes: u64,
}

/// What is read, and how it is rendered.
struct Reading {
    reader: Reader,
    format: Format,
    budget: PageLimits,
    /// Where the log ended when this began, to foresee the size of the answer by.
    end: u64,
    /// Whether nothing was read yet: the first record is answered however large it is.
    fresh: bool,
}

impl Reading {
    /// Goes on to the next records, rendering them to `out` if there is one, until it has `most` bytes or no more memory.
    /// Says whether that was all.
    fn go(&mut self, mut out: Option<(&mut Vec<u8>, &mut Grant)>, most: usize) -> Result<bool, Problem> {
        let begun = out.as_ref().map_or(0, |(out, _)| out.len());
        while self.budget.records > 0 {
            if out.as_ref().is_some_and(|(out, _)| out.len() >= most) {
                return Ok(false);
            }
            let record = match self.reader.read_next() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(Error::Damaged { offset }) if !self.fresh => {
                    self.reader.seek(offset); // who goes on there is told
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let bytes = record.value.len() as u64;
            if bytes > self.budget.bytes && !self.fresh {
                let offset = record.offset;
                self.reader.seek(offset);
                break;
            }
            if let Some((out, grant)) = &mut out {
                if let Err(used_up) = grant.cover(out.len() + formats::rendered_bytes(&record)) {
                    let offset = record.offset;
                    let empty = out.len() == begun;
                    self.reader.seek(offset);
                    return if empty { Err(used_up.into()) } else { Ok(false) };
                }
                if !self.fresh && self.format == Format::Json {
                    out.push(b',');
                }
                formats::render(self.format, out, &record);
                if self.fresh {
                    // As if the others were like the first.
                    let others = self.budget.records.min(self.end.saturating_sub(record.offset));
                    let likely = others.saturating_mul(out.len() as u64).min(most as u64 + 1024);
                    out.reserve(likely as usize);
                }
            }
            self.fresh = false;
            self.budget.records -= 1;
            self.budget.bytes = self.budget.bytes.saturating_sub(bytes);
        }
        Ok(true)
    }

    /// [`go`](Self::go) without rendering anything, for about so long. Says whether that was all.
    fn look(&mut self, time: Duration) -> Result<bool, Problem> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let (all, step) = (self.budget.records, self.budget.records.min(LOOK_STEP));
            self.budget.records = step;
            self.go(None, usize::MAX)?;
            let (seen, left) = (step - self.budget.records, self.budget.records);
            self.budget.records = all - seen;
            if left > 0 || self.budget.records == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// [`go`](Self::go) to a new piece, off the runtime's thread where the disk has to be asked. The last one is closed.
    async fn piece(mut self, context: &Context, log: &OpenLog) -> Result<(Self, Bytes, bool), Problem> {
        let hot = log.is_in_memory(self.reader.offset());
        let most = match (context.memory.is_tight(Purpose::Answer), hot) {
            (true, _) => SHORT_PIECE,
            (false, true) => PIECE,
            (false, false) => COLD_PIECE,
        };
        // Whoever waits holds nothing meanwhile: not what was read ahead, nor a chunk.
        self.reader.release();
        let turn =
            if hot { None } else { Some(context.memory.turn_to_read(context.limits.append_time).await?) };
        let mut grant = context.memory.grant(Purpose::Answer);
        let run = move || {
            let _turn = turn;
            with_scratch(|out| {
                if self.fresh && self.format == Format::Json {
                    out.extend_from_slice(b"{\"records\":[");
                }
                let done = self.go(Some((out, &mut grant)), most)?;
                if done {
                    close(self.format, out, self.reader.offset());
                }
                self.reader.release();
                Ok::<_, Problem>((self, grant.hold_copy(out), done))
            })
        };
        if hot { run() } else { context.blocking(move |_| run()).await? }
    }
}

pub(super) async fn range(
    context: &Arc<Context>,
    name: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let limits = &context.limits;
    let (mut from, mut wait) = (None, Duration::ZERO);
    let mut budget = PageLimits { records: 1000, bytes: 1 << 20 };
    for parameter in params::of(&request) {
        let (name, value) = parameter?;
        match &*name {
            "offset" | "since" if from.is_some() => return Err(params::one_of("offset and since")),
            "offset" => from = Some(StartAt::parse(&value)?),
            "since" => from = Some(StartAt::Since(params::time(&name, &value)?)),
            "limit" => budget.records = params::number(&name, &value, 1..=10_000_000)?,
            "max_bytes" => budget.bytes = params::number(&name, &value, 1..=1 << 30)?,
            "wait" => wait = params::duration(&name, &value, limits.wait_time)?,
            _ => return Err(params::unknown(&name, "offset, since, limit, max_bytes, wait")),
        }
    }
    let headers = request.headers();
    let (tailing, format) = formats::wanted(headers)?;
    let last = if tailing { params::header(headers, "last-event-id")? } else { None };
    let resumed = last.map(|id| params::number("Last-Event-ID", id, 0..=u64::MAX - 1)).transpose()?;
    drop(request); // a header section is not for waiting with
    let log = context.log(name).await?;
    if tailing {
        let from = resumed.map(|last| StartAt::Offset(last + 1)).or(from).unwrap_or(StartAt::Latest);
        let offset = from.resolve(context, &log).await?;
        return tail::stream(context, &log, offset);
    }
    let ranged = records_from(context, &log, from.unwrap_or(StartAt::Earliest), wait, format, budget).await;
    ranged.map_err(|problem| problem.of(&log))
}

/// A range of a log, whole or to be sent.
async fn records_from(
    context: &Arc<Context>,
    log: &Arc<OpenLog>,
    from: StartAt,
    wait: Duration,
    format: Format,
    budget: PageLimits,
) -> Result<Answer, Problem> {
    let limits = &context.limits;
    let offset = from.resolve(context, log).await?;
    if log.visible_offset() <= offset && !wait.is_zero() {
        let mut stopped = context.stopped.clone();
        tokio::select! {
            waited = tokio::time::timeout(wait, log.visible(offset)) => waited.unwrap_or(Ok(()))?,
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
    let (reader, end) = (log.reader(offset), log.visible_offset());
    let mut reading = Reading { reader, format, budget, end, fresh: true };
    let (mut pieces, mut bytes) = (VecDeque::new(), 0);
    let done = loop {
        let (next, piece, done) = reading.piece(context, log).await?;
        reading = next;
        bytes += piece.len();
        pieces.push_back(piece);
        if done || bytes >= WHOLE || context.memory.is_tight(Purpose::Answer) {
            break done;
        }
        tokio::task::yield_now().await; // others have their turn
    };
    let (next, body) = if done {
        (reading.reader.offset(), whole(pieces))
    } else {
        // Large: find out where it ends, which the head has to say, then send it as the client takes it.
        let (planned, back) = (reading.budget, reading.reader.offset());
        let (mut patience, mut done) = (limits.append_time, false);
        while !done {
            let begun = Instant::now();
            let turn = context.memory.turn_to_look(patience).await?;
            patience = patience.saturating_sub(begun.elapsed());
            let look = move || {
                let _turn = turn; // held to the end, also where nobody waits for it any more
                let done = reading.look(LOOK)?;
                reading.reader.release();
                Ok::<_, Problem>((reading, done))
            };
            (reading, done) = context.blocking(move |_| look()).await??;
        }
        let next = reading.reader.offset();
        reading.budget = PageLimits { records: planned.records - reading.budget.records, bytes: u64::MAX };
        reading.reader.seek(back);
        (next, send(context, log, reading, pieces))
    };
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.name()));
    answer.headers_mut().insert(NEXT_OFFSET, HeaderValue::from(next));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

fn close(format: Format, out: &mut Vec<u8>, next: u64) {
    if format == Format::Json {
        out.extend_from_slice(format!("],\"next_offset\":{next}}}\n").as_bytes());
    }
}

/// An answer of which all pieces are there.
fn whole(mut pieces: VecDeque<Bytes>) -> Body {
    match pieces.len() {
        0 | 1 => full(pieces.pop_front().unwrap_or_default()),
        _ => Either::Right(Pieces(pieces).boxed_unsync()),
    }
}

struct Pieces(VecDeque<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<std::io::Result<Frame<Bytes>>>> {
        task::Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// Sends a range piece by piece, no faster than the client takes it.
fn send(context: &Arc<Context>, log: &Arc<OpenLog>, reading: Reading, mut pieces: VecDeque<Bytes>) -> Body {
    let (mut sender, body) = Channel::new(1);
    let (context, log) = (Arc::clone(context), Arc::clone(log));
    tokio::spawn(async move {
        let (mut reading, mut done) = (reading, false);
        loop {
            while let Some(piece) = pieces.pop_front() {
                if sender.send_data(piece).await.is_err() {
                    return; // the client is gone
                }
            }
            if done {
                return;
            }
            let piece;
            (reading, piece, done) = match next_piece(&context, &log, reading).await {
                Ok(next) => next,
                Err(problem) => {
                    // The head is out already: all that is left is to break off, so that nobody takes it for whole.
                    tracing::warn!(%problem, "a range was broken off");
                    return sender.abort(std::io::Error::other("the range was broken off"));
                }
            };
            if done && reading.budget.records > 0 {
                // Something cannot be read any more since the head said where the answer ends.
                tracing::warn!("a range was broken off: a record cannot be read any more");
                return sender.abort(std::io::Error::other("the range was broken off"));
            }
            pieces.push_back(piece);
        }
    });
    Either::Right(body.boxed_unsync())
}

/// The next piece of a range that is being sent. Where there is no memory it waits for some.
async fn next_piece(
    context: &Context,
    log: &OpenLog,
    mut reading: Reading,
) -> Result<(Reading, Bytes, bool), Problem> {
    let begun = Instant::now();
    loop {
        let Reading { format, budget, end, fresh, .. } = reading;
        let at = reading.reader.offset();
        match reading.piece(context, log).await {
            Err(problem) if problem.is_overload() && begun.elapsed() < context.limits.body_time => {
                tokio::time::sleep(ASK).await;
                reading = Reading { reader: log.reader(at), format, budget, end, fresh };
            }
            done => return done,
        }
    }
}

/// `GET …/records/{offset}`: the value as it is. It never changes, and may be kept by any cache.
pub(super) async fn one(
    context: &Context,
    name: &str,
    offset: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    if let Some(parameter) = params::of(&request).next() {
        let (name, _) = parameter?;
        return Err(params::unknown(&name, "none"));
    }
    let offset = params::number("offset", offset, 0..=u64::MAX)
        .map_err(|_| Problem::new(Code::InvalidOffset, "an offset is a whole number"))?;
    let log = context.log(name).await?;
    let tag = format!("\"{}-{offset}\"", log.id());
    let record = context.read(&log, offset).await?;
    let known = params::list(request.headers(), IF_NONE_MATCH).any(|one| one == tag || one == "*");
    let mut grant = context.memory.grant(Purpose::Answer);
    let value = if known { &[] } else { record.value() };
    if value.len() > FREE {
        grant.cover(value.len())?;
    }
    let mut answer = Response::new(full(grant.hold_copy(value)));
    let headers = answer.headers_mut();
    headers.insert(
        ETAG,
        HeaderValue::try_from(tag).map_err(|_| Problem::new(Code::Internal, "an ETag is not a header"))?,
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    headers.insert(TIME, HeaderValue::from(record.time()));
    let media_type = if record.is_json() { "application/json" } else { Format::Bytes.name() };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    Ok(answer)
}
