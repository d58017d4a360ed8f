//! The one way to read anything that comes from the disk, or is large. Its header gives its size. Then the request gets its
//! part of the memory budget, and a permit. Only then is it read, off the runtime's thread. A request that waits for memory
//! reads nothing meanwhile. What is small and in memory is read at once, where it is asked for.

use super::{
    context::{Asker, Context},
    memory::{Grant, Purpose, UNQUEUED_BYTES, UsedUp},
    permits::Kind,
    place::{Made, Place, Wants, elsewhere},
    problem::Problem,
    share::ConnectionShare,
};
use crate::{
    Code,
    log::{Head, Reader, Record},
    store::OpenLog,
};
use bytes::Bytes;
use std::{
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often a request that waits for memory asks for it: at first, and after a while, because thousands may wait.
const ASK_PAUSES: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(320);

/// How long a large answer asks for memory before others in line have their turn, which may need less.
const ASKING_TURN: Duration = Duration::from_millis(250);

/// How long a request waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) permit: Duration,
    pub(super) memory: Duration,
}

impl Patience {
    /// For a request whose answer has not begun: it is refused at once if there is no memory.
    pub(super) fn to_begin(context: &Context) -> Self {
        Self { permit: context.settings.queue_time, memory: Duration::ZERO }
    }

    pub(super) fn of(time: Duration) -> Self {
        Self { permit: time, memory: time }
    }
}

/// Makes something by `attempt`, which reads `from`: in the place and with the memory that it asks for.
pub(super) async fn make<S: Send + 'static, T: Send + 'static>(
    context: &Context,
    share: &ConnectionShare,
    mut place: Place,
    patience: Patience,
    mut from: S,
    attempt: impl Fn(&mut S, Place, Grant) -> Result<Made<T>, Problem> + Copy + Send + 'static,
) -> Result<(S, T), Problem> {
    let mut grant = context.memory.grant(Purpose::Answer);
    loop {
        let made = match place.kind() {
            None => attempt(&mut from, place, grant),
            Some(kind) => {
                let run = move || {
                    let made = attempt(&mut from, place, grant);
                    (from, made)
                };
                // Boxed: reading what is in memory needs none of this, and its future should be small.
                let (back, made) = Box::pin(context.for_client(share, kind, patience.permit, run)).await?;
                from = back;
                made
            }
        };
        match made? {
            Made::Done(done) => return Ok((from, done)),
            Made::Wants(wants) => {
                grant = covered(context, share, wants.grant, wants.bytes, patience.memory).await?;
                place = wants.place;
            }
        }
    }
}

/// Gets memory of `bytes` for an answer. A small answer asks for it at once. Large ones wait in line, where one request
/// at a time asks for memory, for at least as long as an append may wait: otherwise requests that come again and again
/// would get all of it. The line is fair among connections. A request that gets none in its turn goes to the end of the
/// line: it may need more than will be free for long, and those behind it less.
///
/// A large answer of up to four times [`UNQUEUED_BYTES`] first tries once without waiting in line, so that it does not wait
/// behind much larger ones. A connection that was too slow to take an answer while others were refused is
/// refused a large one while memory is tight, for as long as a body may take.
async fn covered(
    context: &Context,
    share: &ConnectionShare,
    mut grant: Grant,
    bytes: usize,
    patience: Duration,
) -> Result<Grant, Problem> {
    if bytes <= UNQUEUED_BYTES {
        grant.cover_within(bytes, patience, &ASK_PAUSES).await?;
        return Ok(grant);
    }
    if bytes <= 4 * UNQUEUED_BYTES && grant.cover(bytes).is_ok() {
        return Ok(grant);
    }
    if share.was_slow_within(context.settings.body_time) && context.memory.is_tight(Purpose::Answer) {
        return Err(Problem::overloaded());
    }
    let begun = Instant::now();
    let patience = patience.max(context.settings.queue_time);
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let _permit = context.permits.acquire(Kind::Memory, &share.lines, left).await?;
        match grant.cover_within(bytes, ASKING_TURN.min(left), &ASK_PAUSES).await {
            Err(UsedUp) if begun.elapsed() < patience => {} // to the end of the line
            covered => {
                covered?;
                return Ok(grant);
            }
        }
    }
}

/// Returns the record at `offset`, and what `render` makes of it; `bytes` computes the size of that from the size of
/// the value. If only the head of the answer is wanted, nothing is rendered, and the record's header is enough.
pub(super) async fn record(
    context: &Context,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    offset: u64,
    bytes: fn(usize) -> usize,
    render: fn(&Record, Grant) -> Bytes,
) -> Result<(Head, Option<Bytes>), Problem> {
    let only_head = asker.only_head;
    let attempt = move |reader: &mut Reader, place: Place, mut grant: Grant| {
        if place == Place::Here && !reader.next_without_disk() {
            return Ok(Made::Wants(Wants { grant, place: Place::Permit, bytes: 0 }));
        }
        let ahead = match reader.peek() {
            Ok(Some(ahead)) => ahead,
            Ok(None) => return Ok(Made::Done(None)),
            Err(error) => return Err(Problem::of_reading(error, reader)),
        };
        if let Some(head) = ahead.head.filter(|_| only_head) {
            return Ok(Made::Done(Some((head, None))));
        }
        let bytes = bytes(ahead.length());
        if let Some(place) = elsewhere(place, &ahead, bytes, &mut grant) {
            return Ok(Made::Wants(Wants { grant, place, bytes }));
        }
        let found = reader.read_one().map_err(|error| Problem::of_reading(error, reader))?;
        Ok(Made::Done(found.map(|record| {
            let made = if only_head { None } else { Some(render(&record, grant)) };
            (record.head(), made)
        })))
    };
    let place = Place::first(log, offset);
    let patience = Patience::to_begin(context);
    let made = make(context, asker.share, place, patience, log.reader(offset), attempt).await;
    let (_, found) = made.map_err(|problem| problem.of(log))?;
    let (head, made) = found.ok_or_else(|| Problem::no_record(offset, log.visible_offset()))?;
    if head.lost {
        let detail = format!("the record at offset {offset} was lost to damage, and marked so by `repair`");
        return Err(Problem::new(Code::RecordLost, detail));
    }
    Ok((head, made))
}
