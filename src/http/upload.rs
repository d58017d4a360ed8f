//! Receiving a body into memory of the budget: when there is room for it, and no slower than it may be while others wait.
//!
//! A body that there is no room for waits for a moment before it is read at all, in a line that is fair among
//! connections: otherwise clients that send again and again would get all that becomes free. A large one takes its memory
//! when its first part is there.
//!
//! While bodies of other connections wait, a body that arrives too slowly is refused: at its present rate, receiving as
//! many bytes again as it holds would take longer than a whole body may. Without that, a dozen clients that send almost
//! all of a large body, and then nothing, keep everybody else from sending. Bodies of the same connection do not count:
//! with HTTP/2 they share its window, and may be what keeps a body from coming.

use super::{
    context::Context,
    memory::{Buffer, Grant, Memory, Purpose, Size, UNCOUNTED_BYTES, UsedUp},
    permits::Kind,
    problem::Problem,
    share::ConnectionShare,
};
use crate::{Code, pauses::Pauses};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use std::{ops::RangeInclusive, time::Duration};
use tokio::time::Instant;

/// How often a body that waits asks for memory.
const ASK_PAUSES: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(20);
/// How long a body's pace is measured before it is judged.
const PACE_PERIOD: Duration = Duration::from_secs(1);

/// How much of a large body has to be there before it takes the memory for all of it. One that is only announced holds
/// nothing: otherwise a few bytes a second would keep everybody else's large bodies out.
const FIRST_BYTES: usize = 64 << 10;

/// Waits for room for a small body of this many bytes, and takes it if it had to wait; otherwise it takes its memory as it
/// arrives: it holds little until then, and others need not wait for it.
pub(super) async fn small_room(
    context: &Context,
    share: &ConnectionShare,
    bytes: usize,
) -> Result<Grant, Problem> {
    let memory = &context.memory;
    let mut grant = memory.grant(Purpose::Request);
    if memory.has_waiting_of(Size::Small) || !memory.has_room(Purpose::Request, bytes) {
        in_line(context, share, bytes, || grant.cover(bytes).is_ok()).await?;
    }
    Ok(grant)
}

/// Waits until there is room for a body of this many bytes, and takes nothing of it.
async fn await_room(context: &Context, share: &ConnectionShare, bytes: usize) -> Result<(), Problem> {
    in_line(context, share, bytes, || context.memory.has_room(Purpose::Request, bytes)).await
}

/// Waits until there is room for a body of this many bytes, and takes it. Many that begin at once would otherwise be read
/// in part, and wait for each other.
async fn take_room(
    context: &Context,
    share: &ConnectionShare,
    bytes: usize,
    buffer: &mut Buffer,
) -> Result<(), Problem> {
    in_line(context, share, bytes, || buffer.cover(bytes).is_ok()).await
}

/// Waits until a body of this many bytes `has_room`, for as long as an append may wait, behind those of its size that
/// wait already.
async fn in_line(
    context: &Context,
    share: &ConnectionShare,
    bytes: usize,
    mut has_room: impl FnMut() -> bool,
) -> Result<(), Problem> {
    let memory = &context.memory;
    let size = Size::of(bytes);
    if !memory.has_waiting_of(size) && has_room() {
        return Ok(());
    }
    let _waiting = memory.body_waits(bytes, share.waiting_bodies());
    let begun = Instant::now();
    let patience = context.settings.queue_time;
    let kind = match size {
        Size::Small => Kind::SmallBodyMemory,
        Size::Medium => Kind::MediumBodyMemory,
        Size::Large => Kind::LargeBodyMemory,
    };
    let permit = context.permits.acquire(kind, &share.lines, patience).await;
    let _permit = permit.map_err(|_| Problem::overloaded())?;
    let pauses = Pauses::new(ASK_PAUSES.clone());
    while !has_room() {
        if begun.elapsed() >= patience {
            return Err(Problem::overloaded());
        }
        tokio::time::sleep(pauses.next()).await;
    }
    Ok(())
}

/// How fast something arrives that holds memory of the budget.
pub(super) struct ArrivalPace {
    /// When it was last judged, and how many bytes have come since.
    judged: Instant,
    came: usize,
}

impl ArrivalPace {
    pub(super) fn begin() -> Self {
        Self { judged: Instant::now(), came: 0 }
    }

    /// When it is to be judged again.
    pub(super) fn due(&self) -> Instant {
        self.judged + PACE_PERIOD
    }

    pub(super) fn came(&mut self, bytes: usize) {
        self.came += bytes;
    }

    /// Judges whether what holds this many bytes comes too slowly, while bodies of other connections wait, and starts the
    /// measurement anew.
    pub(super) fn take_verdict(
        &mut self,
        held: usize,
        memory: &Memory,
        share: &ConnectionShare,
        body_time: Duration,
    ) -> bool {
        let Self { judged, came } = std::mem::replace(self, Self::begin());
        held > UNCOUNTED_BYTES
            && is_slow(held, came, judged.elapsed(), body_time)
            && memory.has_waiting_beside(share.waiting_bodies())
    }

    /// Adds to a buffer that holds what has come. If there is no memory for it, waits for some, as before a body is read:
    /// then it is measured anew, because the client had to wait.
    pub(super) async fn extend(
        &mut self,
        buffer: &mut Buffer,
        data: &[u8],
        memory: &Memory,
        share: &ConnectionShare,
        patience: Duration,
    ) -> Result<(), Problem> {
        let Err(UsedUp) = buffer.extend(data) else { return Ok(()) };
        let _waiting = memory.body_waits(buffer.len() + data.len(), share.waiting_bodies());
        let covered = buffer.cover_within(data.len(), patience, &ASK_PAUSES).await;
        *self = Self::begin();
        covered?;
        Ok(buffer.extend(data)?)
    }
}

/// A body that is being received.
pub(super) struct Upload<'a, B> {
    body: B,
    /// The most bytes that it may have.
    max: usize,
    memory: &'a Memory,
    share: &'a ConnectionShare,
    /// How long a body may take, and how long it may wait for memory.
    body_time: Duration,
    patience: Duration,
    pace: ArrivalPace,
}

impl<'a, B> Upload<'a, B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    pub(super) fn new(body: B, max: usize, context: &'a Context, share: &'a ConnectionShare) -> Self {
        let (memory, settings) = (&context.memory, &context.settings);
        let (body_time, patience) = (settings.body_time, settings.queue_time);
        Self { body, max, memory, share, body_time, patience, pace: ArrivalPace::begin() }
    }

    /// Receives all of a small body.
    pub(super) async fn receive(mut self, mut grant: Grant) -> Result<Bytes, Problem> {
        let first = match grant.bytes() {
            0 => self.next().await?, // it holds nothing
            held => self.next_in_time(held).await?,
        };
        let Some(first) = first else { return Ok(Bytes::new()) };
        if self.body.is_end_stream() {
            // As it arrived, in the connection's own buffer.
            if first.len() > UNCOUNTED_BYTES {
                grant.cover(first.len())?;
            }
            return Ok(grant.hold(first));
        }
        let mut buffer = Buffer::new(self.max, grant);
        self.extend(&mut buffer, &first).await?;
        drop(first);
        self.finish(buffer).await
    }

    /// Receives all of a body that has `least` bytes or more: first a part of it, then, with memory for all of it, the rest.
    pub(super) async fn receive_large(mut self, least: usize, context: &Context) -> Result<Bytes, Problem> {
        await_room(context, self.share, least).await?;
        let begun = Instant::now();
        let mut buffer = Buffer::new(self.max, context.memory.grant(Purpose::Request));
        self.pace = ArrivalPace::begin();
        in_time(self.body_time, self.body_time, self.begin(&mut buffer)).await?;
        let left = self.body_time.saturating_sub(begun.elapsed());
        take_room(context, self.share, least, &mut buffer).await?;
        in_time(left, self.body_time, self.finish(buffer)).await
    }

    /// Receives the first part.
    async fn begin(&mut self, buffer: &mut Buffer) -> Result<(), Problem> {
        while buffer.len() < FIRST_BYTES
            && let Some(data) = self.next_in_time(buffer.held()).await?
        {
            self.extend(buffer, &data).await?;
        }
        Ok(())
    }

    /// Receives the rest.
    async fn finish(mut self, mut buffer: Buffer) -> Result<Bytes, Problem> {
        self.pace = ArrivalPace::begin();
        while let Some(data) = self.next_in_time(buffer.held()).await? {
            self.extend(&mut buffer, &data).await?;
        }
        Ok(buffer.freeze())
    }

    /// The next part of it; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > self.max => return Err(too_large(self.max, "")),
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => {} // trailers
                },
                Some(Err(error)) => {
                    let detail = format!("the body ended early: {error}");
                    return Err(Problem::new(Code::BodyIncomplete, detail));
                }
                None => return Ok(None),
            }
        }
    }

    /// The next part of a body that holds `held` bytes already; an error if it is too slow while others wait.
    async fn next_in_time(&mut self, held: usize) -> Result<Option<Bytes>, Problem> {
        loop {
            let until = self.pace.due();
            if Instant::now() >= until {
                self.check_pace(held)?;
                continue;
            }
            // An error only says that it is time to judge: no part of the body is lost.
            if let Ok(next) = tokio::time::timeout_at(until, self.next()).await {
                let next = next?;
                self.pace.came(next.as_ref().map_or(0, Bytes::len));
                return Ok(next);
            }
        }
    }

    fn check_pace(&mut self, held: usize) -> Result<(), Problem> {
        if self.pace.take_verdict(held, self.memory, self.share, self.body_time) {
            let detail = "the body came slowly, while others waited for the memory that it held";
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        Ok(())
    }

    async fn extend(&mut self, buffer: &mut Buffer, data: &[u8]) -> Result<(), Problem> {
        if data.len() > buffer.left() {
            return Err(too_large(self.max, ""));
        }
        self.pace.extend(buffer, data, self.memory, self.share, self.patience).await
    }
}

/// What is received within `left` of the `max` time that a body may take.
pub(super) async fn in_time<T>(
    left: Duration,
    max: Duration,
    receiving: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    tokio::time::timeout(left, receiving).await.unwrap_or_else(|_| {
        let detail = format!("the body did not arrive within {} seconds", max.as_secs());
        Err(Problem::new(Code::BodyTooSlow, detail))
    })
}

/// Whether a body, at the pace of `came` bytes in the time that it `took`, would take longer than `max` for as many bytes
/// as it holds.
fn is_slow(held: usize, came: usize, took: Duration, max: Duration) -> bool {
    came as u128 * max.as_millis() < held as u128 * took.as_millis()
}

pub(super) fn too_large(limit: usize, when: &str) -> Problem {
    let detail = format!("the body is over the limit of {limit} bytes{when}; send less at once");
    Problem::new(Code::BodyTooLarge, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_slow_if_at_this_pace_it_takes_longer_than_a_body_may() {
        let [second, max] = [1, 30].map(Duration::from_secs);
        assert!(is_slow(16 << 20, 0, second, max));
        assert!(is_slow(16 << 20, (16 << 20) / 31, second, max));
        assert!(!is_slow(16 << 20, (16 << 20) / 29, second, max));
        assert!(!is_slow(0, 0, second, max));
    }
}
