//! Receiving a body into memory of the budget: when there is room for it, and no slower than it may be while others wait.
//!
//! A body that there is no room for waits for a moment before it is read at all, in a line that is fair among
//! connections: otherwise clients that send again and again would get all that becomes free. While bodies of other
//! connections wait, a body that arrives too slowly is refused: at its present rate, receiving as many bytes again as
//! it holds would take longer than a whole body may. Without that, a dozen clients that send almost all of a large
//! body, and then nothing, keep everybody else from sending. Bodies of the same connection do not count: with HTTP/2
//! they share its window, and may be what keeps a body from coming.

use super::{
    context::Context,
    memory::{Buffer, Grant, Memory, Purpose, Size, UNCOUNTED_BYTES, UsedUp},
    permits::Kind,
    problem::Problem,
    share::ConnectionShare,
};
use crate::Code;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use std::{ops::RangeInclusive, time::Duration};
use tokio::time::Instant;

/// How often a body that waits asks for memory.
const ASK: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(20);
/// How long a body's pace is measured before it is judged.
const PACE_PERIOD: Duration = Duration::from_secs(1);

/// Takes the memory for a body of this many bytes. If there is no room for it, waits until there is, for as long as an
/// append may wait. Only a small body that need not wait takes its memory later, as it arrives.
pub(super) async fn room(context: &Context, share: &ConnectionShare, bytes: usize) -> Result<Grant, Problem> {
    let memory = &context.memory;
    let size = Size::of(bytes);
    let mut grant = memory.grant(Purpose::Request);
    let mut has_room = || match size {
        // It holds little until it comes, and others need not wait for it before that.
        Size::Small => memory.has_room(Purpose::Request, bytes),
        // Many that begin at once would otherwise be read in part, and wait for each other.
        Size::Medium | Size::Large => grant.cover(bytes).is_ok(),
    };
    if bytes <= UNCOUNTED_BYTES || !memory.has_waiting_of(size) && has_room() {
        return Ok(grant);
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
    grant.cover_within(bytes, patience.saturating_sub(begun.elapsed()), &ASK).await?;
    Ok(grant)
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
        let covered = buffer.cover_within(data.len(), patience, &ASK).await;
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

    /// Receives all of it.
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
        self.pace = ArrivalPace::begin();
        while let Some(data) = self.next_in_time(buffer.held()).await? {
            if data.len() > buffer.left() {
                return Err(too_large(self.max, ""));
            }
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
        self.pace.extend(buffer, data, self.memory, self.share, self.patience).await
    }
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
