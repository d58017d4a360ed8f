//! Reading a range of a log: where it starts and ends, and an answer that has it whole or sends it piece by piece.

use super::{
    accept::{self, AnswerKind},
    answer::{Answer, Body, Endless, full, keep_from_proxies, log_id, only_head, piece_by_piece},
    context::{Asker, Context},
    cursors,
    fetch::Patience,
    follow,
    formats::Format,
    headers::{LOG_ID, LOST_RECORDS, NEXT_OFFSET},
    memory::Purpose,
    params,
    permits::Kind,
    problem::Problem,
    reading::{OnDamage, PageLimits, RangeEnd, Reading},
    share::ConnectionShare,
    tail,
};
use crate::{Code, LogId, log::Error, reports, start::StartAt, store::OpenLog};
use http_body_util::{BodyExt, Either};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, SizeHint},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use std::{collections::VecDeque, io, pin::Pin, sync::Arc, task, time::Duration};

/// Answers of up to this many bytes are sent whole.
const MAX_WHOLE_BYTES: usize = 1 << 20;

/// Where to begin, as a client says it.
fn start_at(value: &str) -> Result<StartAt, Problem> {
    value.parse().map_err(|_| {
        let detail = "offset must be a whole number, -K for the last K records, earliest, or latest";
        Problem::new(Code::InvalidOffset, detail)
    })
}

/// The offset at which to begin.
async fn resolve(
    start: StartAt,
    context: &Context,
    share: &ConnectionShare,
    log: &Arc<OpenLog>,
) -> Result<u64, Problem> {
    Ok(match start {
        StartAt::Earliest => log.first_offset(),
        StartAt::Offset(offset) => offset,
        StartAt::Latest => log.visible_offset(),
        StartAt::Last(records) => log.visible_offset().saturating_sub(records).max(log.first_offset()),
        StartAt::Since(time) => {
            let log = Arc::clone(log);
            let patience = context.settings.queue_time;
            let find = move || log.offset_since(StartAt::millis(time));
            context.for_client(share, Kind::Read, patience, find).await??
        }
    })
}

/// What the query of a range asks for.
#[derive(Default)]
struct RangeQuery {
    from: Option<StartAt>,
    /// The cursor to begin at.
    cursor: Option<String>,
    /// The id that the log must have.
    log_id: Option<LogId>,
    damaged: OnDamage,
    follow: bool,
    wait: Option<Duration>,
    records: Option<u64>,
    bytes: Option<u64>,
}

impl RangeQuery {
    fn parse(request: &Request<()>, longest_wait: Duration) -> Result<Self, Problem> {
        let mut query = Self::default();
        for parameter in params::of(request) {
            let (name, value) = parameter?;
            match &*name {
                "offset" | "since" | "cursor" if query.from.is_some() || query.cursor.is_some() => {
                    return Err(params::one_of("offset, since and cursor"));
                }
                "offset" => query.from = Some(start_at(&value)?),
                "since" => query.from = Some(StartAt::since_millis(params::time(&name, &value)?)),
                "cursor" => query.cursor = Some(value.into_owned()),
                "limit" => query.records = Some(params::number(&name, &value, 1..=10_000_000)?),
                "max_bytes" => query.bytes = Some(params::number(&name, &value, 1..=1 << 30)?),
                "wait" => query.wait = Some(params::duration(&name, &value, longest_wait)?),
                "follow" => query.follow = params::yes_or_no(&name, &value)?,
                "log_id" => query.log_id = Some(params::log_id(&value)?),
                "damaged" => {
                    query.damaged = match &*value {
                        "skip" => OnDamage::Skip,
                        "error" => OnDamage::Fail,
                        _ => return Err(params::invalid("damaged", "skip or error")),
                    }
                }
                _ => {
                    let known = "offset, since, cursor, limit, max_bytes, wait, follow, log_id, damaged";
                    return Err(params::unknown(&name, known));
                }
            }
        }
        Ok(query)
    }

    /// How long a range in this format goes on.
    fn until(&self, format: Format) -> Result<Until, Problem> {
        match (self.follow, self.wait, self.bytes) {
            (true, None, None) if format.is_single_document() => {
                let detail = format!(
                    "{} is one document, which would never end: to follow a log, accept another type",
                    format.content_type()
                );
                Err(Problem::new(Code::InvalidQuery, detail))
            }
            (true, None, None) => Ok(Until::Stopped),
            (true, ..) => {
                let detail = "what follows a log is not limited by wait or max_bytes: leave them out";
                Err(Problem::new(Code::InvalidQuery, detail))
            }
            (false, ..) => Ok(Until::End(self.wait.unwrap_or_default())),
        }
    }

    /// How much a range has at most.
    fn page_limits(&self) -> PageLimits {
        if self.follow {
            return PageLimits { records: self.records.unwrap_or(u64::MAX), bytes: u64::MAX };
        }
        PageLimits { records: self.records.unwrap_or(1000), bytes: self.bytes.unwrap_or(1 << 20) }
    }
}

/// `GET …/records`: a range of a log, or its live tail.
pub(super) async fn range(
    context: &Arc<Context>,
    asker: Asker<'_>,
    name: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let query = RangeQuery::parse(&request, context.settings.wait_time)?;
    let headers = request.headers();
    let wanted = accept::wanted(headers)?;
    let last = params::header(headers, "last-event-id")?; // only a tail resumes there
    let resumed = last.map(|id| params::number("Last-Event-ID", id, 0..=u64::MAX - 1)).transpose()?;
    drop(request); // so that its header section is not held while waiting
    let records = match wanted {
        AnswerKind::Tail => None, // it follows the log in any case, and is not limited
        AnswerKind::Records(format) => Some((format, query.until(format)?)),
    };
    let log = context.log(asker.share, name).await?;
    Problem::check_id(&log, query.log_id)?;
    let at_cursor = |name: &String| {
        let cursor = log.cursor(name)?;
        Ok::<_, Problem>(StartAt::Offset(cursors::offset_of(&log, &cursor)?))
    };
    let from = query.cursor.as_ref().map(at_cursor).transpose()?.or(query.from);
    let Some((format, until)) = records else {
        let from = resumed.map(|last| StartAt::Offset(last + 1)).or(from).unwrap_or(StartAt::Latest);
        let offset = resolve(from, context, asker.share, &log).await?;
        return tail::stream(context, asker.share, &log, offset, query.damaged);
    };
    let from = from.unwrap_or(StartAt::Earliest);
    let reading = Reading::new(log.reader(0), format, query.page_limits(), log.visible_offset());
    let reading = reading.with_damaged(query.damaged);
    let ranged = records_from(context, asker, &log, from, until, reading).await;
    ranged.map_err(|problem| problem.of(&log))
}

/// How long a range goes on.
#[derive(Clone, Copy)]
enum Until {
    /// To the end of the log; if there is nothing, it waits for something, up to this long.
    End(Duration),
    /// For as long as the client, the log and the server exist.
    Stopped,
}

/// Answers with a range of a log, whole or piece by piece.
async fn records_from(
    context: &Arc<Context>,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    from: StartAt,
    until: Until,
    mut reading: Reading,
) -> Result<Answer, Problem> {
    let offset = resolve(from, context, asker.share, log).await?;
    if let Until::End(wait) = until {
        wait_for_record(context, asker, log, offset, wait).await?;
    }
    reading.begin_at(offset, log.visible_offset());
    let format = reading.format();
    let mut answer = match until {
        Until::Stopped => followed(context, asker, log, reading)?,
        Until::End(_) => page(context, asker, log, reading).await?,
    };
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(LOG_ID, log_id(log.id()));
    Ok(answer)
}

/// If there is no record at `offset` yet, waits for one, up to this long. Without waiting, only the end of the log may be
/// asked for.
async fn wait_for_record(
    context: &Context,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    offset: u64,
    wait: Duration,
) -> Result<(), Problem> {
    // A record that was appended may not be visible yet, and asking for what follows it is no mistake. But what is
    // said of the end is what readers see of it: a crash may take back the rest.
    let visible = log.visible_offset();
    if wait.is_zero() {
        return if offset > log.next_offset() {
            Err(Problem::beyond_the_end(offset, visible))
        } else {
            Ok(())
        };
    }
    if log.visible_offset() <= offset {
        let log_wait = context.waited.begin(log, asker.share);
        tokio::select! {
            waited = tokio::time::timeout(wait, log.visible(offset)) => waited.unwrap_or(Ok(()))?,
            () = log_wait.ended() => return Err(Problem::too_many_waits()),
            () = context.stopping() => {}
        }
    }
    Ok(())
}

/// An answer that goes on as records come.
fn followed(
    context: &Arc<Context>,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    reading: Reading,
) -> Result<Answer, Problem> {
    let (offset, first) = (reading.offset(), log.first_offset());
    if offset < first {
        return Err(Error::Trimmed { offset, first }.into()); // while there is a head to say it in
    }
    let body =
        if asker.only_head { only_head(None) } else { follow::body(context, asker.share, log, reading) };
    let mut answer = Response::new(body);
    keep_from_proxies(answer.headers_mut());
    answer.extensions_mut().insert(Endless);
    Ok(answer)
}

/// An answer that ends, and says where to continue.
async fn page(
    context: &Arc<Context>,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    reading: Reading,
) -> Result<Answer, Problem> {
    let (end, body) = if asker.only_head {
        let (end, length) = reading.measured(context, asker.share).await?;
        // A longer answer is sent piece by piece, without a length.
        (end, only_head(length.filter(|length| *length < MAX_WHOLE_BYTES as u64)))
    } else {
        end_and_body(context, asker.share, log, reading).await?
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(NEXT_OFFSET, HeaderValue::from(end.next));
    if end.lost > 0 {
        headers.insert(LOST_RECORDS, HeaderValue::from(end.lost));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Where a range ends, and a body that is all of it or sends it piece by piece.
async fn end_and_body(
    context: &Arc<Context>,
    share: &Arc<ConnectionShare>,
    log: &Arc<OpenLog>,
    mut reading: Reading,
) -> Result<(RangeEnd, Body), Problem> {
    let patience = Patience::to_begin(context);
    let mut pieces = VecDeque::new();
    let mut bytes = 0;
    let done = loop {
        // Boxed, as in `RangeInPieces::make_next`: little memory is to be held by requests that wait to look for the end.
        let rest = reading.rest();
        let (next, piece, done) = match Box::pin(reading.piece(context, share, log, patience)).await {
            Err(problem) if problem.is_overload() && !pieces.is_empty() => {
                // These pieces may be what has used up the memory: they are sent first.
                reading = rest.read(log);
                break false;
            }
            made => made?,
        };
        reading = next;
        bytes += piece.len();
        if !piece.is_empty() {
            pieces.push_back(piece);
        }
        if done || bytes >= MAX_WHOLE_BYTES || context.memory.is_tight(Purpose::Answer) {
            break done;
        }
        tokio::task::yield_now().await; // others have their turn
    };
    if done {
        return Ok((reading.at(), whole(pieces)));
    }
    // A large range: find out where it ends, which the head has to say, then send it as the client takes it.
    let (end, reading) = reading.with_known_end(context, share).await?;
    let (context, share, log) = (Arc::clone(context), Arc::clone(share), Arc::clone(log));
    let rest = RangeInPieces { context, share, log, reading, pieces, done: false };
    Ok((end, piece_by_piece(rest, RangeInPieces::next)))
}

/// An answer whose pieces all exist.
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
struct RangeInPieces {
    context: Arc<Context>,
    share: Arc<ConnectionShare>,
    log: Arc<OpenLog>,
    reading: Reading,
    /// Pieces that exist already.
    pieces: VecDeque<Bytes>,
    /// Whether they are the last ones.
    done: bool,
}

impl RangeInPieces {
    /// The next piece. The head has been sent: after an error, all that can be done is to break off.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some((piece, self)));
            }
            if self.done {
                return Ok(None);
            }
            self = self.make_next().await?;
            if self.pieces.is_empty() && !self.done {
                tokio::task::yield_now().await; // its records had no values: others have their turn
            }
        }
    }

    async fn make_next(self) -> io::Result<Self> {
        let Self { context, share, log, reading, mut pieces, .. } = self;
        let broken_off = || io::Error::other("the range was broken off");
        let patience = Patience::of(context.settings.body_time);
        // Boxed, so that little memory is held by answers whose clients take nothing.
        let made = Box::pin(reading.piece(&context, &share, &log, patience)).await;
        let (reading, piece, done) = made.map_err(|problem| {
            reports::failure(log.dir(), &problem, "broke off the answer to a range");
            broken_off()
        })?;
        if done && reading.ends_early() {
            // Since the head announced where the answer ends, a record has become unreadable; or readable, if damage is
            // skipped.
            reports::failure(
                log.dir(),
                &"a record cannot be read any more",
                "broke off the answer to a range",
            );
            return Err(broken_off());
        }
        if !piece.is_empty() {
            pieces.push_back(piece);
        }
        Ok(Self { context, share, log, reading, pieces, done })
    }
}
