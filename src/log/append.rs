//! Appending: reserve, fill and publish in the active chunk; continue in the next one when it is full.
//!
//! Everything that can be refused is refused before anything is reserved. Between reserving and publishing, only the
//! engine's own copying runs, so no reserved offset stays empty.

use super::{
    Durability, Error, LINGER, Shared, line::Turn, roll::Active, room::WaitFor, wait::unless_reached,
};
use crate::{
    chunk::{AppendOutcome, AppendValue, AppendValues, Batch, Chunk, FrameMeta},
    frame::JSON,
    segment::Segment,
    sync::{Arc, Backoff, Ordering},
};

/// A value to append, and whether to mark it as JSON. The log does not check that it is JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The record's bytes.
    pub bytes: &'a [u8],
    /// Whether to tell readers that the value is JSON.
    pub json: bool,
}

impl AppendValue for Payload<'_> {
    #[inline]
    fn bytes(&self) -> &[u8] {
        self.bytes
    }

    #[inline]
    fn flags(&self) -> u16 {
        if self.json { JSON } else { 0 }
    }
}

/// A producer's batch: its first value is replaced by one with an extension block in front.
#[cfg(feature = "store")]
pub(super) struct Extended<'a, S: ?Sized> {
    pub(super) first: &'a [u8],
    pub(super) values: &'a S,
}

#[cfg(feature = "store")]
impl<S: AppendValues + ?Sized> AppendValues for Extended<'_, S> {
    fn each(&self, mut f: impl FnMut(&[u8], u16)) {
        let mut first = Some(self.first);
        self.values.each(|bytes, flags| match first.take() {
            Some(extended) => f(extended, flags | crate::frame::EXTENDED),
            None => f(bytes, flags),
        });
    }
}

/// A handle that appends to a log and caches its active segment; see [`Log::appender`](super::Log::appender).
pub struct Appender {
    shared: Arc<Shared>,
    active: Arc<Active>,
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let active = shared.active.load_full();
        Self { shared, active }
    }

    /// Like [`Log::append`](super::Log::append).
    ///
    /// # Errors
    /// As [`Log::append`](super::Log::append).
    #[inline]
    pub fn append(&mut self, value: &[u8]) -> Result<u64, Error> {
        self.append_with(&[value], None, WaitFor::Anything)
    }

    /// Like [`Log::append_batch`](super::Log::append_batch).
    ///
    /// # Errors
    /// As [`Log::append_batch`](super::Log::append_batch).
    #[inline]
    pub fn append_batch(&mut self, values: &[&[u8]]) -> Result<u64, Error> {
        self.append_with(values, None, WaitFor::Anything)
    }

    /// Like [`Log::try_append`](super::Log::try_append).
    ///
    /// # Errors
    /// As [`Log::try_append`](super::Log::try_append).
    #[inline]
    pub fn try_append(&mut self, value: &[u8]) -> Result<u64, Error> {
        self.append_with(&[value], None, WaitFor::NextSegment)
    }

    /// Like [`Log::try_append_batch`](super::Log::try_append_batch).
    ///
    /// # Errors
    /// As [`Log::try_append_batch`](super::Log::try_append_batch).
    #[inline]
    pub fn try_append_batch(&mut self, values: &[&[u8]]) -> Result<u64, Error> {
        self.append_with(values, None, WaitFor::NextSegment)
    }

    /// Like [`Log::append_batch_if`](super::Log::append_batch_if).
    ///
    /// # Errors
    /// As [`Log::append_batch_if`](super::Log::append_batch_if).
    pub fn append_batch_if(&mut self, expected_next: u64, values: &[&[u8]]) -> Result<u64, Error> {
        self.append_with(values, Some(expected_next), WaitFor::Anything)
    }

    #[inline]
    fn append_with(
        &mut self,
        values: &[&[u8]],
        expected: Option<u64>,
        wait_for: WaitFor,
    ) -> Result<u64, Error> {
        let Self { shared, active } = self;
        let batch = size_batch(shared, values)?;
        if let Some(offset) = try_append_here(shared, active, batch, expected, wait_for)? {
            return Ok(offset);
        }
        append_on(shared, active, batch, expected, wait_for)
    }
}

/// Appends without a handle: the active segment is looked up each time.
#[inline]
pub(super) fn append<S: AppendValues + ?Sized>(
    shared: &Shared,
    values: &S,
    expected: Option<u64>,
    wait_for: WaitFor,
) -> Result<u64, Error> {
    let batch = size_batch(shared, values)?;
    {
        let active = shared.active.load();
        if let Some(offset) = try_append_here(shared, &active, batch, expected, wait_for)? {
            return Ok(offset);
        }
    }
    append_on(shared, &mut shared.active.load_full(), batch, expected, wait_for)
}

/// Appends to `active` or a later segment, at which `active` is left.
fn append_on<S: AppendValues + ?Sized>(
    shared: &Shared,
    active: &mut Arc<Active>,
    batch: Batch<'_, S>,
    expected: Option<u64>,
    wait_for: WaitFor,
) -> Result<u64, Error> {
    let mut turn = Turn::new(shared.roll.line());
    loop {
        if let Some(offset) = try_append_here(shared, active, batch, expected, wait_for)? {
            return Ok(offset);
        }
        *active = shared.next_active(active, batch.needs(), wait_for, &mut turn)?;
    }
}

#[inline]
fn size_batch<'a, S: AppendValues + ?Sized>(shared: &Shared, values: &'a S) -> Result<Batch<'a, S>, Error> {
    let limit = shared.options.segment_bytes;
    let batch = Batch::new(values, limit).map_err(|bytes| Error::TooLarge { bytes, limit })?;
    if batch.records() == 0 { Err(Error::EmptyBatch) } else { Ok(batch) }
}

/// Appends to this segment; returns `None` if it has no room.
#[inline]
fn try_append_here<S: AppendValues + ?Sized>(
    shared: &Shared,
    active: &Arc<Active>,
    batch: Batch<'_, S>,
    expected: Option<u64>,
    wait_for: WaitFor,
) -> Result<Option<u64>, Error> {
    if let Some(full) = shared.flush.full() {
        shared.writable()?;
        return Err(full);
    }
    let segment = &active.segment;
    // An offset below this segment's base cannot become next again, and one too large for a record number cannot be next:
    // `u32::MAX` stands for both, which no record has.
    let expected_record = expected.map(|offset| {
        offset.checked_sub(segment.base()).and_then(|record| u32::try_from(record).ok()).unwrap_or(u32::MAX)
    });
    if !shared.flush.keeps_time() {
        shared.refresh_clock();
    }
    // The durable frontier is read before anything is reserved, so that what the frame states about it is true when the
    // frame is written.
    let meta = FrameMeta {
        key: segment.key,
        lead: segment.base().wrapping_sub(shared.durable.get()),
        time: segment.age.load(Ordering::Relaxed),
    };
    match active.chunk.append(batch, expected_record, meta) {
        AppendOutcome::At(record) => {
            let first = segment.base() + u64::from(record);
            shared.flush.wake_if_idle(LINGER);
            shared.run_ahead(active);
            if shared.options.durability == Durability::Memory {
                shared.publish(active, first + u64::from(batch.records()), wait_for)?;
            }
            Ok(Some(first))
        }
        AppendOutcome::Full => Ok(None),
        AppendOutcome::Unexpected(next) => {
            shared.writable()?;
            let next = segment.base() + u64::from(next);
            Err(Error::Unexpected { expected: expected.unwrap_or(next), next })
        }
    }
}

impl Shared {
    /// Raises `published` past `to`, whose records are in memory: over all records without a gap, by any appender.
    /// Waits for earlier appends that are still copying, so that what this append acknowledges can be read. If it may
    /// not wait, the next append does this, or else the flusher. If the log fails meanwhile, what becomes of the records is
    /// not known.
    fn publish(&self, active: &Arc<Active>, to: u64, wait_for: WaitFor) -> Result<(), Error> {
        self.help_publish(&active.segment, &active.chunk, to);
        if self.published.get() >= to || wait_for == WaitFor::Nothing {
            return Ok(());
        }
        // The gap may be in an earlier segment, and whoever fills it may not have to go further than its own records.
        // So this goes on from where `published` is, and not from this append's segment.
        let backoff = Backoff::new();
        while !self.publish_up_to(to - 1) {
            let ended = self.check_not_ended();
            if ended.is_err() {
                return unless_reached(ended, || self.publish_up_to(to - 1));
            }
            backoff.snooze();
        }
        Ok(())
    }

    /// Whether all records up to `offset`, which has been appended, are in memory; raises `published` as far as that
    /// can be: appenders of some logs do not do so themselves.
    pub(super) fn publish_up_to(&self, offset: u64) -> bool {
        self.published.advance(self.durable.get()); // and so past all chunks that were released
        let from = self.published.get();
        if from > offset {
            return true;
        }
        if let Some(segment) = self.chain.load().locate(from)
            && let Some(chunk) = segment.chunk.load_full()
        {
            self.help_publish(&segment, &chunk, offset + 1);
        }
        self.published.get() > offset
    }

    /// Starts from this segment, and continues over all records without a gap. An append that fills a gap in an earlier
    /// segment holds that segment, and continues from there to here.
    fn help_publish(&self, segment: &Arc<Segment>, chunk: &Arc<Chunk>, to: u64) {
        let (mut segment, mut chunk) = (Arc::clone(segment), Arc::clone(chunk));
        loop {
            let Some(start) = self.published.get().checked_sub(segment.base()) else { return };
            let Ok(start) = u32::try_from(start) else { return };
            let mut record = start;
            while chunk.is_published(record) {
                record += 1;
            }
            if record > start {
                self.published.advance(segment.base() + u64::from(record));
            }
            if self.published.get() >= to || chunk.end().is_none_or(|end| end.records != record) {
                return;
            }
            let Some(next) = segment.next.load_full() else { return };
            let Some(next_chunk) = next.chunk.load_full() else { return };
            (segment, chunk) = (next, next_chunk);
        }
    }
}
