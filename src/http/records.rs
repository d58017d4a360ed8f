//! Records: appending a batch, reading a single record.

use super::{
    answer::{Answer, full, json, only_head},
    appending::{self, Ack, COPY_POLL},
    body,
    connection::RequestBody,
    context::{Asker, Context},
    effort::Work,
    fetch,
    formats::{self, DecodedBatch, Format},
    headers::TIME,
    memory::{Grant, Purpose},
    meter::Meter,
    params,
    permits::OFFLOAD_BYTES,
    problem::Problem,
    producers::ProducerHeaders,
    segment_room::SegmentRoom,
    session,
    share::ConnectionShare,
};
use crate::{
    Code, LogId, MAX_PRODUCER_MARK_BYTES,
    api::Appended,
    log::{Error, Produced, ProducerBatch, Record, WaitFor, check_first},
    store::{LogSettings, OpenLog},
};
use hyper::{
    Request, Response, StatusCode,
    body::Bytes,
    header::{
        CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPECT, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
        IF_NONE_MATCH,
    },
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a batch waits for the earlier batches of its producer.
const MAX_PREDECESSOR_WAIT: Duration = Duration::from_millis(200);

/// A batch that its producer has named, so that it is stored once.
struct NamedBatch {
    id: String,
    epoch: u32,
    sequence: u64,
    mark: Option<String>,
}

impl NamedBatch {
    fn of_producer(&self) -> ProducerBatch<'_> {
        let mut batch = ProducerBatch::new(&self.id, self.epoch, self.sequence);
        batch.mark = self.mark.as_deref();
        batch
    }
}

/// What a request wants to append.
struct ToAppend {
    batch: DecodedBatch,
    named: Option<NamedBatch>,
    /// The offset that the first record must get.
    expect: Option<u64>,
}

/// The name that the headers of a request give its batch, if they give one.
fn named_batch(headers: &HeaderMap) -> Result<Option<NamedBatch>, Problem> {
    let refuse = |detail: String| Err(Problem::new(Code::InvalidProducer, detail));
    let ProducerHeaders { id, epoch, sequence, mark } = ProducerHeaders::parse(headers)?;
    if mark.is_some_and(|mark| mark.len() > MAX_PRODUCER_MARK_BYTES) || mark.is_some() && id.is_none() {
        return refuse(format!(
            "Producer-Mark has up to {MAX_PRODUCER_MARK_BYTES} bytes, and comes with Producer-Id"
        ));
    }
    if mark.is_some_and(|mark| mark.starts_with(session::MARK)) {
        return refuse(format!(
            "a Producer-Mark does not begin with {:?}: append sessions use that",
            session::MARK
        ));
    }
    match (id, epoch, sequence) {
        (None, None, None) => Ok(None),
        (Some(id), Some(epoch), Some(sequence)) => {
            Ok(Some(NamedBatch { id: id.to_owned(), epoch, sequence, mark: mark.map(str::to_owned) }))
        }
        _ => refuse("send all of Producer-Id, Producer-Epoch and Producer-Seq, or none".into()),
    }
}

/// What the query of an append asks for.
#[derive(Default)]
struct AppendQuery {
    ack: Option<Ack>,
    /// The offset that the first record must get.
    expect: Option<u64>,
    /// The id that the log must have.
    log_id: Option<LogId>,
    /// Whether the body and the answer go on.
    session: bool,
}

impl AppendQuery {
    fn parse<B>(request: &Request<B>) -> Result<Self, Problem> {
        let mut query = Self::default();
        for parameter in params::of(request) {
            let (name, value) = parameter?;
            match (&*name, &*value) {
                ("ack", "durable") => query.ack = Some(Ack::Durable),
                ("ack", "memory") => query.ack = Some(Ack::Memory),
                ("ack", _) => return Err(params::invalid("ack", "durable or memory")),
                ("expect", value) => query.expect = Some(params::number("expect", value, 0..=u64::MAX)?),
                ("log_id", value) => query.log_id = Some(params::log_id(value)?),
                ("session", value) => query.session = params::yes_or_no("session", value)?,
                _ => return Err(params::unknown(&name, "ack, expect, log_id, session")),
            }
        }
        if query.session && query.expect.is_some() {
            let detail = "a session has no condition: leave out expect";
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
        Ok(query)
    }
}

/// The format of a body to append.
fn format_of(headers: &HeaderMap) -> Result<Format, Problem> {
    let media_type = params::header(headers, "content-type")?.unwrap_or(Format::Bytes.content_type());
    Format::of(media_type).ok_or_else(|| {
        let media_type = params::beginning(media_type, 100);
        let detail = format!(
            "a body of type {media_type:?} is not accepted; set Content-Type to one of: {}",
            formats::accepted()
        );
        Problem::new(Code::UnsupportedType, detail)
    })
}

/// `POST …/records`: appends a batch, or begins a session.
pub(super) async fn append(
    context: &Arc<Context>,
    asker: Asker<'_>,
    name: &str,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    let query = AppendQuery::parse(&request)?;
    let format = format_of(request.headers())?;
    let encoding = body::Encoding::of(params::header(request.headers(), "content-encoding")?)?;
    if query.session {
        return begin_session(context, asker, name, request, query, format, encoding).await;
    }
    let AppendQuery { ack, expect, log_id, .. } = query;
    let named = named_batch(request.headers())?;
    let body = request.into_body(); // so that the header section is not held while waiting
    let settings = context.settings_of(asker.share, name).await?;
    let room = SegmentRoom::new(context.store.batch_bytes(&settings));
    let bytes = body::read(body, context, asker.share).await?;
    let mut batch = decode_and_parse(context, asker.share, format, encoding, bytes, &settings, room).await?;
    // Only now, so that a refused append creates no log.
    let check = || {
        let batch = named.as_ref().map(NamedBatch::of_producer);
        Ok(check_first(batch.as_ref(), expect)?)
    };
    let log = log_of(context, asker.share, name, log_id, check).await?;
    let (bytes, mut cost) =
        (batch.bytes(), appending::cost(batch.bytes() as usize, batch.records() as usize));
    if *log.settings() != settings {
        // Another log has taken the name meanwhile.
        let settings = log.settings().clone();
        let checked = move || batch.check(&settings).map(|()| batch);
        batch = Box::pin(body::with_permit(context, asker.share, Work::of(cost), checked)).await??;
    }
    if let Some(named) = &named
        && wait_for_predecessors(context, asker.share, &log, &named.of_producer()).await?
    {
        cost = usize::MAX;
    }
    // The batch is dropped by then, so that its memory is not held while waiting.
    let to_append = ToAppend { batch, named, expect };
    let appended = context.append(asker.share, &log, cost, to_append, append_once).await?;
    let Produced { first_offset, count, repeated } = appended;
    if !repeated {
        context.metrics.appended(count, bytes);
    }
    let last_offset = first_offset + count - 1;
    // Also for a repeat: the batch that it repeats may not be on the disk yet.
    context.acknowledged(&log, last_offset, ack).await?;
    Ok(json(&Appended { first_offset, last_offset, count, repeated }))
}

/// Begins a session, whose body and answer go on.
async fn begin_session(
    context: &Arc<Context>,
    asker: Asker<'_>,
    name: &str,
    request: Request<RequestBody>,
    AppendQuery { ack, log_id, .. }: AppendQuery,
    format: Format,
    encoding: body::Encoding,
) -> Result<Answer, Problem> {
    if encoding != body::Encoding::Identity {
        let detail = "the body of a session is not compressed";
        return Err(Problem::new(Code::UnsupportedEncoding, detail));
    }
    let framing = session::Framing::of(format)?;
    let producer = session::WantedProducer::parse(request.headers())?;
    let expects_continue = request.headers().contains_key(EXPECT);
    let body = request.into_body(); // so that the header section is not held while waiting
    let check = || producer.as_ref().map_or(Ok(()), session::WantedProducer::check_first);
    let log = log_of(context, asker.share, name, log_id, check).await?;
    let wanted = session::SessionRequest { format, framing, ack, producer };
    session::begin(context, asker.share, log, wanted, body, expects_continue).await
}

/// Loads what the log knows about producers, and waits for a while until the earlier batches of this one's producer are
/// appended: they may be on other connections. A batch that is still too early then is refused when it is appended.
/// Returns whether another batch is being copied, which this one has to wait for.
async fn wait_for_predecessors(
    context: &Context,
    share: &ConnectionShare,
    log: &Arc<OpenLog>,
    batch: &ProducerBatch<'_>,
) -> Result<bool, Problem> {
    if !log.producers_are_busy() && !log.knows_producers() {
        context.on_log(share, log, |log| log.learn_producers()).await?; // from the disk
    }
    let until = Instant::now() + MAX_PREDECESSOR_WAIT;
    while log.is_early(batch) && Instant::now() < until {
        tokio::time::sleep(COPY_POLL).await;
    }
    Ok(log.producers_are_busy())
}

/// The log to append to. One that must have an id is not created.
async fn log_of(
    context: &Context,
    share: &ConnectionShare,
    name: &str,
    wanted: Option<LogId>,
    check_first: impl FnOnce() -> Result<(), Problem>,
) -> Result<Arc<OpenLog>, Problem> {
    if wanted.is_none() {
        return context.log_to_append(share, name, check_first).await;
    }
    let log = context.log(share, name).await?;
    Problem::check_id(&log, wanted)?;
    Ok(log)
}

/// Appends a batch, as its producer if there is one.
fn append_once(
    log: &OpenLog,
    ToAppend { batch, named, expect }: &ToAppend,
    wait_for: WaitFor,
) -> Result<Produced, Error> {
    match named {
        None => {
            let first_offset = log.try_append_values(batch, *expect, wait_for)?;
            Ok(Produced { first_offset, count: batch.records(), repeated: false })
        }
        Some(named) => log.try_append_values_once(&named.of_producer(), batch, *expect, wait_for),
    }
}

/// Decodes a body, and parses it for a log with these settings. The work of a compressed body is only known when it is
/// decoded: each attempt is made as more work than the one before.
async fn decode_and_parse(
    context: &Context,
    share: &ConnectionShare,
    format: Format,
    encoding: body::Encoding,
    bytes: Bytes,
    settings: &LogSettings,
    room: SegmentRoom,
) -> Result<DecodedBatch, Problem> {
    let small = encoding == body::Encoding::Identity
        && bytes.len() < OFFLOAD_BYTES
        && appending::cost(bytes.len(), formats::likely_records(format, &bytes)) < OFFLOAD_BYTES;
    let mut work = Work::of(bytes.len());
    let limit = context.settings.decoded_bytes;
    let settings = settings.clone();
    let memory = Arc::clone(&context.memory);
    // Shared by all attempts, of which there are up to three.
    let run = Arc::new(move |work| {
        let grant = || memory.grant(Purpose::Request);
        let meter = Meter::new(format, room);
        let Some(decoded) = encoding.decode(bytes.clone(), limit, work, grant(), meter)? else {
            return Ok::<_, Problem>(None);
        };
        let mut batch = formats::parse(format, decoded, room, grant())?;
        batch.check(&settings)?;
        Ok(Some(batch))
    });
    loop {
        let done = if small {
            run(work)?
        } else {
            let run = Arc::clone(&run);
            Box::pin(body::with_permit(context, share, work, move || run(work))).await??
        };
        match done {
            Some(batch) => return Ok(batch),
            None => work = work.next(),
        }
    }
}

/// The entity tag of a record.
fn entity_tag(log: LogId, offset: u64) -> String {
    format!("\"{log}-{offset}\"")
}

/// The logs whose record at some offset a client names by entity tags; `None` for any.
struct NamedRecords(BTreeSet<Option<LogId>>);

impl NamedRecords {
    /// What a header names, if it is there. Tags are compared strongly in `If-Match`, and weakly in `If-None-Match`, as
    /// RFC 9110, 13.1.1 and 13.1.2 demand.
    fn of(headers: &HeaderMap, name: HeaderName, offset: u64) -> Option<Self> {
        let weak = if name == IF_NONE_MATCH { "W/" } else { "" };
        let log = |one: &str| {
            if one == "*" {
                return Some(None);
            }
            let (id, of) = one.strip_prefix(weak).unwrap_or(one).strip_prefix('"')?.split_once('-')?;
            let is_it = of.strip_suffix('"')? == offset.to_string();
            LogId::parse(id).filter(|_| is_it).map(Some)
        };
        headers.contains_key(&name).then(|| Self(params::list(headers, name).filter_map(log).collect()))
    }

    fn has(&self, log: LogId) -> bool {
        self.0.contains(&None) || self.0.contains(&Some(log))
    }
}

/// `GET …/records/{offset}`: the unmodified value. It never changes, and any cache may keep it.
pub(super) async fn one(
    context: &Context,
    asker: Asker<'_>,
    name: &str,
    offset: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    params::none(&request)?;
    let offset = params::number("offset", offset, 0..=u64::MAX)
        .map_err(|_| Problem::new(Code::InvalidOffset, "an offset is a whole number"))?;
    let [must_be, known] =
        [IF_MATCH, IF_NONE_MATCH].map(|name| NamedRecords::of(request.headers(), name, offset));
    drop(request); // so that its header section is not held while waiting
    let log = context.log(asker.share, name).await?;
    let is_other = must_be.is_some_and(|records| !records.has(log.id()));
    let known = known.is_some_and(|records| records.has(log.id()));
    let tag = entity_tag(log.id(), offset);
    let asker = Asker { only_head: asker.only_head || known || is_other, ..asker };
    let value = |record: &Record, grant: Grant| grant.hold_copy(record.value());
    let (head, value) = fetch::record(context, asker, &log, offset, |length| length, value).await?;
    if is_other {
        let detail =
            format!("the record at {offset} is none of those that If-Match names: its ETag is {tag}");
        return Err(Problem::new(Code::UnexpectedRecord, detail));
    }
    let body = match value {
        Some(value) => full(value),
        None if known => full(""),
        None => only_head(Some(head.length as u64)),
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(
        ETAG,
        HeaderValue::try_from(tag).map_err(|_| Problem::new(Code::Internal, "an ETag is not a header"))?,
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    headers.insert(TIME, HeaderValue::from(head.time));
    let media_type = if head.json { "application/json" } else { Format::Bytes.content_type() };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    Ok(answer)
}
