//! The body of a session, taken apart into batches of whole records as it arrives.

use super::super::{
    body,
    context::Context,
    effort::Work,
    formats::{self, DecodedBatch, Format},
    memory::{Buffer, Memory, Purpose, UNCOUNTED_BYTES},
    permits::OFFLOAD_BYTES,
    problem::Problem,
    segment_room::SegmentRoom,
    settings::Settings,
    share::ConnectionShare,
    upload::ArrivalPace,
};
use super::framing::Framing;
use crate::{BATCH_EXTRA_BYTES, Code, chunk::record_needs, store::OpenLog};
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::Instant;

/// The most bytes of a body that are appended at once, unless one record has more: as much as is done without a permit.
const MAX_PART_BYTES: usize = 64 << 10;
/// The most records of a body that are appended at once, likewise.
const MAX_PART_RECORDS: usize = 2000;

/// Takes the body of a session apart into batches.
pub(super) struct Source {
    format: Format,
    framing: Framing,
    log: Arc<OpenLog>,
    memory: Arc<Memory>,
    settings: Arc<Settings>,
    /// The most bytes that a record may have.
    max: usize,
    /// The most bytes that a part may have, unless it is one record.
    max_part: usize,
    /// The bytes of a segment.
    segment: usize,
    /// A record that has arrived in parts.
    joined: Option<Bytes>,
    /// What has arrived after that.
    left: Bytes,
    /// How many bytes of it are taken next; 0 if it has no whole record.
    next: usize,
    /// The beginning of a record. While there is one, `left` is empty.
    begun: Option<Begun>,
    /// Whether nothing has been taken yet.
    is_first: bool,
    /// How many lines or frames have been taken, to say which one is wrong.
    taken: u64,
}

/// The beginning of a record.
struct Begun {
    /// As long as it is small it takes nothing of the budget: a client may send a part of a line, and the rest much later.
    small: Vec<u8>,
    large: Option<Buffer>,
    /// Since when it is large.
    since: Instant,
    pace: ArrivalPace,
}

impl Begun {
    fn bytes(&self) -> &[u8] {
        self.large.as_ref().map_or(&self.small, Buffer::bytes)
    }

    fn freeze(self) -> Bytes {
        self.large.map_or_else(|| self.small.into(), Buffer::freeze)
    }
}

impl Source {
    pub(super) fn new(format: Format, framing: Framing, context: &Context, log: &Arc<OpenLog>) -> Self {
        let segment = context.store.batch_bytes(log.settings()) as usize;
        let max = segment.min(context.settings.body_bytes);
        Self {
            format,
            framing,
            log: Arc::clone(log),
            memory: Arc::clone(&context.memory),
            settings: Arc::clone(&context.settings),
            max,
            segment,
            // However small its records are, a part fits into a segment.
            max_part: MAX_PART_BYTES
                .min(segment.saturating_sub(BATCH_EXTRA_BYTES as usize) / record_needs(0) as usize)
                .max(1),
            joined: None,
            left: Bytes::new(),
            next: 0,
            begun: None,
            is_first: true,
            taken: 0,
        }
    }

    /// Whether there are records to be taken.
    pub(super) fn has_whole_records(&self) -> bool {
        self.joined.is_some() || self.next > 0
    }

    /// Adds what has arrived. To be called when there are no records to be taken.
    pub(super) async fn push(&mut self, data: Bytes, share: &ConnectionShare) -> Result<(), Problem> {
        self.left = data;
        if let Some(begun) = &self.begun {
            let rest = self.framing.completes(begun.bytes(), &self.left);
            let part = self.left.split_to(rest.unwrap_or(self.left.len()));
            self.extend(&part, share).await?;
            if rest.is_some() {
                self.joined = self.begun.take().map(Begun::freeze);
            }
        }
        self.look_for_next(share).await
    }

    /// The body has ended: a last line may have no end.
    pub(super) fn end(&mut self) -> Result<(), Problem> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        self.framing.check_unended()?;
        self.joined = Some(begun.freeze());
        Ok(())
    }

    /// Takes the next records, which come after `taken` others; `None` if there are only blank lines.
    pub(super) async fn batch(
        &mut self,
        context: &Context,
        share: &ConnectionShare,
        taken: u64,
    ) -> Result<Option<DecodedBatch>, Problem> {
        let bytes = if let Some(joined) = self.joined.take() {
            joined
        } else {
            let bytes = self.left.split_to(self.next);
            self.look_for_next(share).await?;
            bytes
        };
        let count = self.framing.count(&bytes);
        let part = Part {
            format: self.format,
            log: Arc::clone(&self.log),
            room: SegmentRoom::new(self.segment as u64),
            is_first: self.is_first,
            before: self.taken,
        };
        self.is_first = false;
        self.taken += count;
        let batch = if bytes.len() < OFFLOAD_BYTES {
            part.parse(bytes)
        } else {
            let work = Work::of(bytes.len());
            Box::pin(body::with_permit(context, share, work, move || part.parse(bytes))).await?
        };
        batch.map_err(|problem| problem.after_records(taken))
    }

    /// The session goes on after it could not read: the client had to wait.
    pub(super) fn resumed(&mut self) {
        if let Some(begun) = &mut self.begun {
            (begun.since, begun.pace) = (Instant::now(), ArrivalPace::begin());
        }
    }

    /// Looks for whole records in what is left. If it is only the beginning of one, keeps that, so that it does not
    /// hold the memory in which it arrived.
    async fn look_for_next(&mut self, share: &ConnectionShare) -> Result<(), Problem> {
        self.next = self.framing.whole(&self.left, self.max_part, MAX_PART_RECORDS);
        if self.next > 0 || self.left.is_empty() {
            return Ok(());
        }
        let beginning = std::mem::take(&mut self.left);
        self.extend(&beginning, share).await
    }

    /// Adds to the beginning of a record; if there is no memory for it, waits for some.
    async fn extend(&mut self, part: &[u8], share: &ConnectionShare) -> Result<(), Problem> {
        let begun = self.begun.get_or_insert_with(|| Begun {
            small: Vec::new(),
            large: None,
            since: Instant::now(),
            pace: ArrivalPace::begin(),
        });
        let length = begun.bytes().len() + part.len();
        let begins_with = if begun.bytes().is_empty() { part } else { begun.bytes() };
        if length.max(self.framing.announced(begins_with).unwrap_or(0)) > self.max {
            let detail = format!("a record has more than {} bytes", self.max);
            return Err(Problem::new(Code::RecordTooLarge, detail));
        }
        begun.pace.came(part.len());
        if begun.large.is_none() && length <= UNCOUNTED_BYTES {
            begun.small.extend_from_slice(part);
            return Ok(());
        }
        if begun.large.is_none() {
            (begun.since, begun.pace) = (Instant::now(), ArrivalPace::begin());
            begun.pace.came(part.len());
        }
        let fresh = || Buffer::new(self.max, self.memory.grant(Purpose::Request));
        let mut buffer = begun.large.take().unwrap_or_else(fresh);
        let small = std::mem::take(&mut begun.small);
        for part in [&small, part] {
            begun.pace.extend(&mut buffer, part, &self.memory, share, self.settings.queue_time).await?;
        }
        begun.large = Some(buffer);
        Ok(())
    }

    /// When [`check_pace`](Self::check_pace) is to be called.
    pub(super) fn pace_due(&self) -> Option<Instant> {
        let begun = self.begun.as_ref().filter(|begun| begun.large.is_some())?;
        Some(begun.pace.due())
    }

    /// An error if a large record takes too long to arrive; or comes slowly, while others wait for memory.
    pub(super) fn check_pace(&mut self, share: &ConnectionShare) -> Result<(), Problem> {
        let Some(begun) = &mut self.begun else { return Ok(()) };
        let Some(held) = begun.large.as_ref().map(Buffer::held) else { return Ok(()) };
        let max = self.settings.body_time;
        if begun.since.elapsed() > max {
            let detail = format!("a record did not arrive within {} seconds", max.as_secs());
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        if begun.pace.take_verdict(held, &self.memory, share, max) {
            let detail = "a record came slowly, while others waited for the memory that it held";
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        Ok(())
    }
}

/// A part of a body that is to be parsed.
struct Part {
    format: Format,
    log: Arc<OpenLog>,
    room: SegmentRoom,
    is_first: bool,
    /// How many lines or frames came before it.
    before: u64,
}

impl Part {
    /// The batch in it; `None` if there are only blank lines.
    fn parse(self, bytes: Bytes) -> Result<Option<DecodedBatch>, Problem> {
        let bytes = if self.is_first { formats::without_byte_order_mark(self.format, bytes) } else { bytes };
        let mut batch = formats::parse_part(self.format, bytes, self.room, self.before)?;
        if batch.records() == 0 {
            return Ok(None);
        }
        batch.check(self.log.settings())?;
        Ok(Some(batch))
    }
}
