//! Reading records in order and rendering them, a piece at a time, or only looking for where a range of them ends.

use super::{
    context::Context,
    fetch::{self, Patience},
    formats::{self, Format},
    memory::{Grant, Memory, Purpose, UsedUp, with_scratch},
    permits::{Kind, OFFLOAD_BYTES},
    place::{self, Made, Next, Place, Wants},
    problem::Problem,
    share::ConnectionShare,
};
use crate::{
    log::{Error, Head, Reader},
    store::OpenLog,
};
use hyper::body::Bytes;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of an answer that are rendered at once from memory, and from the disk when the budget for answers is tight.
const RENDER_BYTES: usize = 64 << 10;
/// Bytes of an answer that are rendered at once from the disk, where as much is read at once.
const COLD_RENDER_BYTES: usize = 256 << 10;
/// Bytes of an answer that are rendered at once from memory when the budget for answers is tight.
const TIGHT_RENDER_BYTES: usize = 16 << 10;
/// Reading a record takes as long as rendering this many bytes.
const RECORD_COST_BYTES: usize = 20;
/// How long a turn of looking for the end of a large answer lasts before others have their turn.
const LOOK_SLICE: Duration = Duration::from_millis(2);
/// How many records pass between two looks at the clock.
const LOOK_STEPS: usize = 64;
/// How long the end is first looked for on the runtime's thread, among records that are in memory.
const INLINE_LOOK: Duration = Duration::from_micros(500);
/// Reading this many bytes from the disk counts as one more record.
const LOOK_STEP_BYTES: usize = 4 << 10;

/// How much more an answer may contain.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageLimits {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// What is read, and how it is rendered.
pub(super) struct Reading {
    reader: Reader,
    course: Course,
    /// The offset after the last record that was read.
    taken_to: u64,
    /// The offset at which it ends in any case.
    until: u64,
    /// Where a client is to continue, if the head already announced it: after skipped damage, for example, this lies
    /// behind the last record.
    next: Option<u64>,
    /// If requested, the bytes that the answer would have so far if it were rendered.
    length: Option<u64>,
}

/// What a reading goes by, and what it has come to: with its offset, all that another reading needs to go on.
#[derive(Clone, Copy)]
struct Course {
    format: Format,
    page_limits: PageLimits,
    /// Where the log ended when the reading began, to estimate the size of the answer.
    end: u64,
    /// Whether no record has been read yet: the first one is returned however large it is.
    fresh: bool,
    /// Whether what precedes the records is still to be written.
    is_unopened: bool,
    damaged: OnDamage,
    /// How many records it has that are marked as lost.
    lost: u64,
}

/// What becomes of damaged records, and of those that the disk cannot read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDamage {
    /// A range ends before them; one that begins there is an error.
    #[default]
    Fail,
    /// They are left out.
    Skip,
}

/// Where a range ends.
pub(super) struct RangeEnd {
    /// The offset after it.
    pub(super) next: u64,
    /// How many of its records are marked as lost.
    pub(super) lost: u64,
}

/// What is left of a reading after its first piece.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    offset: u64,
    course: Course,
}

impl Rest {
    /// Reads it: for when the reading was lost in an attempt that has failed.
    pub(super) fn read(self, log: &OpenLog) -> Reading {
        Reading::on(log.reader(self.offset), self.course)
    }
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
    pub(super) fn new(reader: Reader, format: Format, page_limits: PageLimits, end: u64) -> Self {
        let damaged = OnDamage::default();
        Self::on(
            reader,
            Course { format, page_limits, end, fresh: true, is_unopened: true, damaged, lost: 0 },
        )
    }

    fn on(reader: Reader, course: Course) -> Self {
        Self { taken_to: reader.offset(), reader, course, until: u64::MAX, next: None, length: None }
    }

    pub(super) fn with_damaged(mut self, damaged: OnDamage) -> Self {
        self.course.damaged = damaged;
        self
    }

    /// Begins at this offset, in a log that ends at `end` by now.
    pub(super) fn begin_at(&mut self, offset: u64, end: u64) {
        self.reader.seek(offset);
        self.course.end = end;
    }

    pub(super) fn format(&self) -> Format {
        self.course.format
    }

    /// Where it is, as the end of a range.
    pub(super) fn at(&self) -> RangeEnd {
        RangeEnd { next: self.offset(), lost: self.course.lost }
    }

    /// The offset that is read next.
    pub(super) fn offset(&self) -> u64 {
        self.reader.offset()
    }

    /// Whether it has all records that it may have.
    pub(super) fn is_complete(&self) -> bool {
        self.course.page_limits.records == 0
    }

    /// Whether it has not come to the end that it was found to have.
    pub(super) fn ends_early(&self) -> bool {
        self.course.page_limits.records > 0 || self.offset() < self.until
    }

    /// Whether there may be more of it.
    fn may_continue(&self) -> bool {
        self.course.page_limits.records > 0 && self.reader.offset() < self.until
    }

    /// Continues after what has been read, in a log that ends at `end` by now. What cannot be read is an error again.
    pub(super) fn continue_to(&mut self, end: u64) {
        (self.course.fresh, self.course.is_unopened, self.course.end) = (true, true, end);
    }

    /// The most bytes of a value that there is room for.
    fn max(&self) -> u64 {
        if self.course.fresh { u64::MAX } else { self.course.page_limits.bytes }
    }

    /// Counts a record as read.
    fn took(&mut self, offset: u64, record: Head) {
        if let Some(length) = &mut self.length {
            let separator =
                if self.course.fresh { 0 } else { self.course.format.envelope().separator.len() as u64 };
            *length += separator + formats::length(self.course.format, offset, record);
        }
        self.course.fresh = false;
        self.taken_to = offset + 1;
        self.course.lost += u64::from(record.lost);
        self.course.page_limits.records -= 1;
        self.course.page_limits.bytes = self.course.page_limits.bytes.saturating_sub(record.length as u64);
    }

    /// Skips damage, or ends the range before the damaged record: a client that continues there gets the error. Returns
    /// whether the range goes on.
    fn pass_or_end(&mut self, error: Error) -> Result<bool, Problem> {
        match error.bad_record() {
            Some(offset) if self.course.damaged == OnDamage::Skip => {
                self.reader.seek_readable(offset + 1)?;
                Ok(true)
            }
            Some(offset) if !self.course.fresh => {
                self.reader.seek(offset);
                Ok(false)
            }
            _ => Err(Problem::of_reading(error, &mut self.reader)),
        }
    }

    /// Continues with the next records, rendering them to `out`, until it has `max` bytes, or as many records as take as
    /// long, or the next record must be read in another place or needs more memory than there is.
    fn render_some(
        &mut self,
        out: &mut Vec<u8>,
        grant: &mut Grant,
        place: Place,
        max: usize,
    ) -> Result<Went, Problem> {
        let begun = self.taken_to;
        let mut steps = 0;
        let envelope = self.course.format.envelope();
        while self.may_continue() {
            // A record without a value may add nothing to the piece.
            if out.len().max(steps * RECORD_COST_BYTES) >= max {
                return Ok(Went::Some);
            }
            steps += 1;
            let next_most = self.max();
            let record = match place::next(&mut self.reader, place, grant, out.len(), next_most) {
                Ok(Next::Record(record)) => record,
                Ok(Next::End) => break,
                // Also after skipped damage: a piece without a record says nothing.
                Ok(Next::Wants(place, bytes)) if self.taken_to == begun => {
                    return Ok(Went::Nowhere(place, bytes));
                }
                Ok(Next::Wants(..)) => return Ok(Went::Some),
                Err(error) => {
                    if self.pass_or_end(error)? {
                        continue;
                    }
                    break;
                }
            };
            let (offset, head) = (record.offset, record.head());
            if !self.course.fresh {
                out.extend_from_slice(envelope.separator);
            }
            formats::render(self.course.format, out, &record);
            if self.course.fresh {
                // Assumes that the other records are like the first.
                let others = self.course.page_limits.records.min(self.course.end.saturating_sub(offset));
                let likely = others.saturating_mul(out.len() as u64).min(max as u64 + 1024);
                out.reserve(likely as usize);
            }
            self.took(offset, head);
        }
        Ok(Went::All)
    }

    /// Continues without rendering anything, for about as long as a [`LOOK_SLICE`], or an [`INLINE_LOOK`] on the
    /// runtime's thread. Returns whether the end of the range was reached. Large records are read only to verify them,
    /// which a HEAD does not need. If there is no memory for that, the range ends before such a record, if anything is
    /// before it.
    fn look_on(&mut self, memory: &Arc<Memory>, only_head: bool, place: Place) -> Result<bool, Problem> {
        let begun = Instant::now();
        let mut steps = 0;
        let mut grant = memory.grant(Purpose::Answer);
        let max = if place == Place::Here { INLINE_LOOK } else { LOOK_SLICE };
        while self.may_continue() {
            if steps >= LOOK_STEPS {
                if begun.elapsed() >= max {
                    return Ok(false);
                }
                steps = 0;
            }
            if place == Place::Here && !self.reader.next_without_disk() {
                return Ok(false);
            }
            match self.look_at_next(&mut grant, only_head) {
                Ok(Some(cold_bytes)) => steps += 1 + cold_bytes / LOOK_STEP_BYTES,
                Ok(None) => break,
                Err(LookError::Error(error)) => {
                    if !self.pass_or_end(error)? {
                        break;
                    }
                    steps += 1;
                }
                Err(LookError::UsedUp(_)) if !self.course.fresh => break,
                Err(LookError::UsedUp(used_up)) => return Err(used_up.into()),
            }
        }
        Ok(true)
    }

    /// Counts the next record; returns how many bytes were read from the disk for it. `None` at the end.
    fn look_at_next(&mut self, grant: &mut Grant, only_head: bool) -> Result<Option<usize>, LookError> {
        let offset = self.reader.offset();
        let max = self.max();
        let mut cold_bytes = 0;
        if !self.reader.next_without_disk() {
            let Some(ahead) = self.reader.peek()?.filter(|ahead| ahead.length() as u64 <= max) else {
                return Ok(None);
            };
            cold_bytes = ahead.cold_bytes;
            if let Some(head) = ahead.head.filter(|_| cold_bytes >= OFFLOAD_BYTES && only_head) {
                self.reader.seek(offset + 1);
                self.took(offset, head);
                return Ok(Some(LOOK_STEP_BYTES));
            }
            if cold_bytes >= OFFLOAD_BYTES {
                grant.cover(cold_bytes)?;
            }
        }
        let head = self.reader.read_next()?.map(|record| record.head());
        let Some(head) = head.filter(|head| head.length as u64 <= max) else {
            self.reader.seek(offset);
            return Ok(None);
        };
        self.took(offset, head);
        Ok(Some(cold_bytes))
    }

    /// Repeats [`look_on`](Self::look_on) to the end of the range, giving others their turns in between.
    async fn looked_to_end(
        mut self,
        context: &Context,
        share: &ConnectionShare,
        only_head: bool,
    ) -> Result<Self, Problem> {
        let patience = context.settings.queue_time; // for each turn
        let mut done = self.look_on(&context.memory, only_head, Place::Here)?;
        self.reader.release();
        while !done {
            let memory = Arc::clone(&context.memory);
            let look = move || {
                let done = self.look_on(&memory, only_head, Place::Permit);
                self.reader.release();
                (self, done)
            };
            let looked;
            (self, looked) = Box::pin(context.for_client(share, Kind::Look, patience, look)).await?;
            done = looked?;
        }
        Ok(self)
    }

    /// Finds out how many bytes an answer with all of it would have, as far as that can be found out without rendering it.
    /// Returns that with the end of the range; `None` if the answer is longer than is looked for.
    pub(super) async fn measured(
        mut self,
        context: &Context,
        share: &ConnectionShare,
    ) -> Result<(RangeEnd, Option<u64>), Problem> {
        let envelope = self.course.format.envelope();
        self.length = Some(envelope.opening.len() as u64);
        let reading = self.looked_to_end(context, share, true).await?;
        let end = reading.at();
        let length = reading.length.map(|length| length + envelope.closing(end.next).len() as u64);
        Ok((end, length))
    }

    /// Finds out where the range ends. Returns that, and a reading of exactly what is before it.
    pub(super) async fn with_known_end(
        self,
        context: &Context,
        share: &ConnectionShare,
    ) -> Result<(RangeEnd, Self), Problem> {
        let (planned, back, fresh) = (self.course.page_limits.records, self.offset(), self.course.fresh);
        let mut reading = self.looked_to_end(context, share, false).await?;
        reading.course.fresh = fresh;
        let end = reading.at();
        reading.course.page_limits =
            PageLimits { records: planned - reading.course.page_limits.records, bytes: u64::MAX };
        (reading.until, reading.next) = (reading.taken_to, Some(end.next));
        reading.reader.seek(back);
        Ok((end, reading))
    }

    /// From where, and within which limits, it would continue after a piece.
    pub(super) fn rest(&self) -> Rest {
        Rest { offset: self.offset(), course: self.course }
    }

    /// Renders a new piece by [`render_some`](Self::render_some), where and when that is allowed. Returns whether it is the
    /// last piece, which includes what follows the records.
    pub(super) async fn piece(
        self,
        context: &Context,
        share: &ConnectionShare,
        log: &OpenLog,
        patience: Patience,
    ) -> Result<(Self, Bytes, bool), Problem> {
        let tight = context.memory.is_tight(Purpose::Answer);
        let attempt = move |reading: &mut Self, place: Place, mut grant: Grant| {
            let max = match (tight, place) {
                (true, Place::Here) => TIGHT_RENDER_BYTES,
                (false, Place::Here) | (true, _) => RENDER_BYTES,
                (false, _) => COLD_RENDER_BYTES,
            };
            with_scratch(|out| {
                let envelope = reading.course.format.envelope();
                if reading.course.is_unopened {
                    out.extend_from_slice(envelope.opening);
                }
                let went = reading.render_some(out, &mut grant, place, max)?;
                reading.course.is_unopened &= matches!(went, Went::Nowhere(..));
                // Nothing is held while waiting: neither what was read ahead, nor a chunk.
                reading.reader.release();
                Ok(match went {
                    Went::Nowhere(place, bytes) => Made::Wants(Wants { grant, place, bytes }),
                    Went::Some => Made::Done((grant.hold_copy(out), false)),
                    Went::All => {
                        out.extend_from_slice(
                            envelope.closing(reading.next.unwrap_or(reading.offset())).as_bytes(),
                        );
                        Made::Done((grant.hold_copy(out), true))
                    }
                })
            })
        };
        let place = Place::first(log, self.reader.offset());
        let (reading, (piece, done)) = fetch::make(context, share, place, patience, self, attempt).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Records without values add nothing to a piece as bytes: ten million of them were passed in one turn, and two clients
    /// that asked for them all the time left the other clients of the server 11 requests per second of 7,369.
    #[test]
    fn a_piece_is_bounded_by_its_records_as_well_as_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let log = crate::Log::open(dir.path(), crate::Options::default()).unwrap();
        for _ in 0..4 {
            log.append_batch(&[&b""[..]; 1000]).unwrap();
        }
        log.flush().unwrap();
        let memory = Memory::new(16 << 20);
        let limits = PageLimits { records: u64::MAX, bytes: u64::MAX };
        let mut reading = Reading::new(log.reader(0), Format::Bytes, limits, 4000);
        let mut out = Vec::new();
        let went = reading
            .render_some(&mut out, &mut memory.grant(Purpose::Answer), Place::Here, RENDER_BYTES)
            .ok()
            .unwrap();
        assert!(matches!(went, Went::Some) && out.is_empty());
        assert_eq!(reading.offset(), RENDER_BYTES.div_ceil(RECORD_COST_BYTES) as u64);
        let went = reading
            .render_some(&mut out, &mut memory.grant(Purpose::Answer), Place::Here, RENDER_BYTES)
            .ok()
            .unwrap();
        assert!(matches!(went, Went::All) && reading.offset() == 4000);
    }
}
