//! The chunk: where appends meet. The lock-free heart of the log.
//!
//! A chunk mirrors the active segment's frames: byte p of the chunk is byte p of the frames in the file. An append
//! reserves record numbers and space with one `fetch_add` on `tail`, fills what it reserved, and publishes it by
//! storing one slot per record. Nothing published is ever written again, so a reader needs one slot and one frame, and
//! never waits.
//!
//! # What always holds
//! - A region is reserved by exactly one append: `tail` only grows, by read-modify-writes.
//! - A slot is stored once, after its frame is complete. A batch's first slot is stored last, so a reader that sees a
//!   batch's first record sees all of its records.
//! - Exactly one append goes from "fits" to "does not fit": it stores the closing point, once. Appends that start later
//!   get nothing and go to the next chunk.
//!
//! # Orderings
//! - `tail`: the reservation by itself needs only Relaxed. It is `AcqRel` for the flusher, which goes to sleep by
//!   storing "asleep" and then adding nothing to `tail` ([`Chunk::probe_quiescent`]), while an append adds to `tail`
//!   and then looks for "asleep". Of two read-modify-writes of one atomic, the later one acquires from the earlier one:
//!   either the flusher sees the append, or the append sees the flusher asleep. On x86-64 the add costs the same either
//!   way.
//! - slots: Release when stored, Acquire when loaded: the frame's bytes come with the slot.
//! - `end`, `scanned`: Release and Acquire, for what was learned before they were set.
//!
//! The reservation with one packed add is the design of `FasterLog`'s tail (page and offset in one word), here with
//! record numbers, so that offsets are dense.

mod backing;
mod memory;
mod pool;

use crate::{
    frame::{self, Frame, Key, MIN_WORDS, MORE, Stamp, WORD},
    sync::{Arc, AtomicU32, AtomicU64, Ordering},
};
pub(crate) use backing::{
    BackingContent, BackingDir, FoundBacking, Label, LogBackings, Predecessor, SHM_FALLBACKS, backing_bytes,
    no_backing,
};
#[cfg(feature = "store")]
pub(crate) use backing::{owners as backing_owners, remove_all as remove_backings};
use crossbeam::utils::CachePadded;
pub(crate) use memory::{CHUNK_BYTES, ChunkMemory};
pub(crate) use pool::{Pool, PoolShare};

/// Bits of `tail` that count words; the 26 bits above them count records. A chunk holds at most 2^27 words (1 GiB), so
/// an overflow of the words would take 2,048 appends of the largest size, all of them past the end at the same moment.
/// The count of records can overflow: two batches are enough, of as many tiny records as a chunk can hold. That does no
/// harm: their words alone are past the end, so the chunk stays closed, and the number of records in a closed chunk is
/// taken from `end`.
const WORD_BITS: u32 = 38;
const _: () = assert!((MIN_WORDS as u64 * WORD as u64) << (u64::BITS - WORD_BITS) > MAX_CAPACITY);
/// The largest chunk in bytes: record numbers and word positions must fit their fields.
pub(crate) const MAX_CAPACITY: u64 = 1 << 30;

/// A position in a chunk: the number of records before it, and of the words that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ChunkPosition {
    pub(crate) records: u32,
    pub(crate) words: u32,
}

impl ChunkPosition {
    #[inline]
    const fn pack(self) -> u64 {
        (self.records as u64) << WORD_BITS | self.words as u64
    }

    #[inline]
    const fn unpack(packed: u64) -> Self {
        Self { records: (packed >> WORD_BITS) as u32, words: packed as u32 }
    }

    /// Bytes that the frames before this position take.
    pub(crate) const fn bytes(self) -> u64 {
        self.words as u64 * WORD as u64
    }
}

/// The bytes of a segment that a packed tail stands for: the frames, plus 4 bytes per record for the index that sealing
/// adds.
#[inline]
const fn cost(packed: u64) -> u64 {
    (packed & ((1 << WORD_BITS) - 1)) * WORD as u64 + (packed >> WORD_BITS) * 4
}

/// The bytes of a segment that a record with a value of `bytes` bytes takes, including its place in the index.
pub(crate) const fn record_needs(bytes: usize) -> u64 {
    frame::words(bytes) * WORD as u64 + 4
}

/// A value to append: bytes, or bytes that are marked as JSON.
pub(crate) trait AppendValue {
    fn bytes(&self) -> &[u8];
    /// The flags of the record.
    fn flags(&self) -> u16;
}

impl<T: AsRef<[u8]> + ?Sized> AppendValue for &T {
    #[inline]
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }

    #[inline]
    fn flags(&self) -> u16 {
        0
    }
}

/// Values that are appended as one batch. They are visited more than once, and must be the same each time.
pub(crate) trait AppendValues {
    /// Calls `f` with the bytes and the flags of each value, in order.
    fn each(&self, f: impl FnMut(&[u8], u16));
}

impl<V: AppendValue> AppendValues for [V] {
    #[inline]
    fn each(&self, mut f: impl FnMut(&[u8], u16)) {
        for value in self {
            f(value.bytes(), value.flags());
        }
    }
}

impl<V: AppendValue, const N: usize> AppendValues for [V; N] {
    #[inline]
    fn each(&self, f: impl FnMut(&[u8], u16)) {
        self[..].each(f);
    }
}

/// Values that are appended as one, and the space they take. Created before anything is reserved, so that whatever can
/// be refused is refused first.
#[derive(Debug)]
pub(crate) struct Batch<'a, S: ?Sized> {
    values: &'a S,
    size: ChunkPosition,
}

impl<S: ?Sized> Clone for Batch<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ?Sized> Copy for Batch<'_, S> {}

impl<'a, S: AppendValues + ?Sized> Batch<'a, S> {
    /// `Err` with the bytes they need, if the values do not fit into an empty chunk of `largest` bytes.
    #[inline]
    pub(crate) fn new(values: &'a S, largest: u64) -> Result<Self, u64> {
        let (mut records, mut words) = (0u64, 0);
        values.each(|bytes, _| {
            records += 1;
            words += frame::words(bytes.len());
        });
        let needs = words * WORD as u64 + records * 4;
        let size = ChunkPosition { records: records as u32, words: words as u32 };
        if needs <= largest { Ok(Self { values, size }) } else { Err(needs) }
    }

    pub(crate) fn records(&self) -> u32 {
        self.size.records
    }

    /// The bytes of a chunk that holds nothing but this batch.
    pub(crate) fn needs(&self) -> u64 {
        cost(self.size.pack())
    }
}

/// What an append writes to its frames besides numbers and values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameMeta {
    pub(crate) key: Key,
    /// The segment's base offset minus the durable frontier, wrapping. Added to a record's number, it gives how far
    /// `durable` is behind that record.
    pub(crate) lead: u64,
    /// Milliseconds since the segment was begun.
    pub(crate) time: u64,
}

/// The result of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppendOutcome {
    /// Written and published; holds the first record's number.
    At(u32),
    /// The chunk is closed, or this append has closed it: nothing was written; go to the next one.
    Full,
    /// The next number is not the expected one; holds the number that would be next.
    Unexpected(u32),
}

/// A segment's frames in memory, shared by all threads that append to it, read it and commit it.
#[derive(Debug)]
pub(crate) struct Chunk {
    tail: CachePadded<AtomicU64>,
    /// 1 + the packed position at which the chunk was closed; 0 while it is open.
    end: AtomicU64,
    /// Words from the start that are known to be published without a gap.
    scanned: AtomicU64,
    capacity: u64,
    /// `None` only while dropping.
    memory: Option<ChunkMemory>,
    /// Where the memory goes when the last holder drops the chunk, but never before.
    share: Option<Arc<PoolShare>>,
}

impl Chunk {
    /// An empty chunk in clean memory.
    pub(crate) fn new(memory: ChunkMemory, share: Option<Arc<PoolShare>>) -> Self {
        Self::recovered(memory, share, &[], 0)
    }

    /// A chunk whose memory already holds the published frames at these `positions` (in words), up to `words`.
    pub(crate) fn recovered(
        memory: ChunkMemory,
        share: Option<Arc<PoolShare>>,
        positions: &[u32],
        words: u32,
    ) -> Self {
        assert!(memory.capacity() <= MAX_CAPACITY);
        for (record, &position) in positions.iter().enumerate() {
            let slot =
                memory.slot(record as u32).expect("the positions come from frames within the capacity");
            slot.store(position + 1, Ordering::Relaxed);
        }
        let tail = ChunkPosition { records: positions.len() as u32, words }.pack();
        Self {
            tail: CachePadded::new(AtomicU64::new(tail)),
            end: AtomicU64::new(0),
            scanned: AtomicU64::new(u64::from(words)),
            capacity: memory.capacity(),
            memory: Some(memory),
            share,
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    #[inline]
    fn memory(&self) -> &ChunkMemory {
        self.memory.as_ref().expect("present until dropped")
    }

    /// Appends `batch`; if `expected` is given, only if that is the next record's number.
    #[inline]
    pub(crate) fn append<S: AppendValues + ?Sized>(
        &self,
        batch: Batch<'_, S>,
        expected: Option<u32>,
        meta: FrameMeta,
    ) -> AppendOutcome {
        let old = match expected {
            None => {
                // Check first, so that late appenders do not keep growing an overrun tail.
                if cost(self.tail.load(Ordering::Relaxed)) > self.capacity {
                    return AppendOutcome::Full;
                }
                self.tail.fetch_add(batch.size.pack(), Ordering::AcqRel)
            }
            Some(expected) => match self.reserve_at(batch.size, expected) {
                Ok(old) => old,
                Err(refused) => return refused,
            },
        };
        if cost(old) > self.capacity {
            return AppendOutcome::Full; // late: another append closed the chunk between our check and our add
        }
        if cost(old) + batch.needs() > self.capacity {
            self.close_at(old); // this append is the one that straddles the end
            return AppendOutcome::Full;
        }
        let first = ChunkPosition::unpack(old);
        self.fill(first, batch, meta);
        AppendOutcome::At(first.records)
    }

    /// Reserves by compare-and-swap, for callers that must know the number beforehand.
    fn reserve_at(&self, size: ChunkPosition, expected: u32) -> Result<u64, AppendOutcome> {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if cost(tail) > self.capacity {
                return Err(AppendOutcome::Full);
            }
            let next = ChunkPosition::unpack(tail).records;
            if next != expected {
                return Err(AppendOutcome::Unexpected(next));
            }
            let new = tail.wrapping_add(size.pack()); // as `fetch_add` adds: see `WORD_BITS`
            match self.tail.compare_exchange_weak(tail, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(old) => return Ok(old),
                Err(now) => tail = now,
            }
        }
    }

    #[inline]
    fn fill<S: AppendValues + ?Sized>(&self, first: ChunkPosition, batch: Batch<'_, S>, meta: FrameMeta) {
        let ChunkPosition { records, words: reserved } = batch.size;
        let (mut n, mut word) = (0, 0);
        batch.values.each(|value, flags| {
            let record = first.records + n;
            let behind = u64::from(record).wrapping_add(meta.lead);
            let stamp = Stamp {
                record,
                behind: u32::try_from(behind).unwrap_or(u32::MAX),
                time: meta.time,
                flags: if n + 1 < records { MORE } else { 0 } | flags,
            };
            let words = frame::words(value.len()) as u32;
            assert!(n < records && words <= reserved - word, "values are the same each time");
            let start = first.words + word;
            // SAFETY: the words lie within what this append alone has reserved by its add to `tail` (the assertion
            // above ensures that none lies beyond), and within the capacity, as checked by `append`; no slot points
            // there yet, so nobody reads them.
            unsafe {
                self.memory().write(start, words, |dst| frame::encode(dst, meta.key, stamp, value));
            };
            if n > 0 {
                self.slot(record).store(start + 1, Ordering::Release);
            }
            (n, word) = (n + 1, word + words);
        });
        // Stored last, so that the batch appears as a whole: whatever is seen is contiguous.
        self.slot(first.records).store(first.words + 1, Ordering::Release);
    }

    #[inline]
    fn slot(&self, record: u32) -> &AtomicU32 {
        self.memory().slot(record).expect("as many slots as records fit")
    }

    /// Closes the chunk, so that no append finds room any more. Does nothing if it is closed already.
    pub(crate) fn close(&self) {
        let all = ChunkPosition { records: 0, words: (self.capacity / WORD as u64) as u32 + 1 };
        if cost(self.tail.load(Ordering::Relaxed)) <= self.capacity {
            let old = self.tail.fetch_add(all.pack(), Ordering::AcqRel);
            if cost(old) <= self.capacity {
                self.close_at(old);
            }
        }
    }

    fn close_at(&self, old: u64) {
        self.end.store(1 + old, Ordering::Release);
    }

    /// Where the chunk was closed, once it is. Between the add that closes the chunk and the moment this is known, the
    /// appender that closes it executes two instructions.
    pub(crate) fn end(&self) -> Option<ChunkPosition> {
        self.end.load(Ordering::Acquire).checked_sub(1).map(ChunkPosition::unpack)
    }

    /// The number of records reserved so far, published or not.
    pub(crate) fn reserved(&self) -> u32 {
        let tail = self.tail.load(Ordering::Acquire);
        if cost(tail) <= self.capacity {
            return ChunkPosition::unpack(tail).records;
        }
        let backoff = crate::sync::Backoff::new();
        loop {
            match self.end() {
                Some(end) => return end.records,
                None => backoff.snooze(), // the closer is between its two instructions
            }
        }
    }

    /// The bytes reserved so far, published or not; more than the capacity once the chunk is closed. May be out of date.
    #[inline]
    pub(crate) fn reserved_bytes(&self) -> u64 {
        cost(self.tail.load(Ordering::Relaxed)) // orders nothing: it only decides when to prepare the next chunk
    }

    /// Whether the chunk is open and nothing is reserved past `position`. For a caller that then goes to sleep; see the
    /// module's documentation.
    pub(crate) fn probe_quiescent(&self, position: ChunkPosition) -> bool {
        self.tail.fetch_add(0, Ordering::AcqRel) == position.pack()
    }

    /// Whether a record is published.
    #[inline]
    pub(crate) fn is_published(&self, record: u32) -> bool {
        self.memory().slot(record).is_some_and(|slot| slot.load(Ordering::Acquire) != 0)
    }

    /// The frame of a published record.
    #[inline]
    pub(crate) fn frame(&self, record: u32) -> Option<Frame<'_>> {
        frame::parse(self.whole_frame(record)?.1)
    }

    /// The word where a published record's frame starts.
    pub(crate) fn position(&self, record: u32) -> Option<u32> {
        self.memory().slot(record)?.load(Ordering::Acquire).checked_sub(1)
    }

    /// The position of a published record, and its whole frame.
    #[inline]
    fn whole_frame(&self, record: u32) -> Option<(u32, &[u8])> {
        let word = self.position(record)?;
        // SAFETY: the slot was stored with Release after the frame was written, and was loaded with Acquire; no
        // published byte is written again as long as this chunk owns the memory, which `&self` ensures.
        let words = unsafe { frame::peek_words(self.memory().read(word, 1)) }?;
        // SAFETY: as above; the frame has as many words as its header says, which was written by `fill` or verified by
        // recovery.
        Some((word, unsafe { self.memory().read(word, words as u32) }))
    }

    /// The end of what is published without a gap from `from` on, as a whole number of batches. Stops at the first end
    /// of a batch that is at least `max` words away.
    pub(crate) fn contiguous(&self, from: ChunkPosition, max: u32) -> ChunkPosition {
        let mut records = from.records;
        let mut last = None;
        while let Some(position) = self.position(records) {
            if position - from.words >= max && !last.is_some_and(|last| self.batch_continues(last)) {
                break;
            }
            last = Some(records);
            records += 1;
        }
        let Some((word, frame)) = last.and_then(|last| self.whole_frame(last)) else {
            return from;
        };
        let words = word + (frame.len() / WORD) as u32;
        // Release, so that a reader that relies on `scanned` alone sees these bytes: each was acquired through its slot
        // above.
        self.scanned.fetch_max(u64::from(words), Ordering::AcqRel);
        ChunkPosition { records, words }
    }

    fn batch_continues(&self, record: u32) -> bool {
        self.frame(record).is_some_and(|frame| frame.flags & MORE != 0)
    }

    /// Notes in the backing, if there is one, what precedes this chunk's first record.
    pub(crate) fn set_predecessor(&self, predecessor: Predecessor) {
        self.memory().set_predecessor(predecessor);
    }

    /// Notes in the backing, if there is one, that the segment was sealed.
    pub(crate) fn set_sealed(&self) {
        self.memory().set_sealed();
    }

    /// Whether its memory outlives the process.
    pub(crate) fn has_backing(&self) -> bool {
        self.memory().has_backing()
    }

    /// See [`ChunkMemory::fault_in`].
    pub(crate) fn fault_in(&self) {
        self.memory().fault_in();
    }

    /// Returns its memory to the system, and not to the pool.
    pub(crate) fn discard(mut self) {
        drop(self.memory.take());
    }

    /// What precedes the record with this number, if the record before it is published.
    pub(crate) fn predecessor(&self, record: u32) -> Predecessor {
        let Some(last) = record.checked_sub(1) else { return self.memory().predecessor() };
        let frame = self.whole_frame(last).and_then(|(_, frame)| frame.first_chunk());
        frame.map_or(Predecessor::Unknown, |crc| Predecessor::Frame(u32::from_le_bytes(*crc)))
    }

    /// The bytes of words that [`contiguous`](Self::contiguous) has passed.
    pub(crate) fn bytes(&self, words: std::ops::Range<u32>) -> &[u8] {
        assert!(u64::from(words.end) <= self.scanned.load(Ordering::Acquire));
        // SAFETY: all words below `scanned` are published and acquired, as asserted, and so are never written again.
        unsafe { self.memory().read(words.start, words.end - words.start) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let (Some(memory), Some(share)) = (self.memory.take(), &self.share) {
            // Once the chunk is closed, the tail counts records that are not here, or has lost count.
            let end = self.end.load(Ordering::Relaxed).checked_sub(1);
            let dirty =
                ChunkPosition::unpack(end.unwrap_or_else(|| self.tail.load(Ordering::Relaxed))).records;
            share.put(memory, dirty);
        }
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
mod tests;
