//! The segment: a file of records that starts at a base offset. It is written from its chunk while it is active, then
//! sealed.
//!
//! ```text
//! | header, 4 KiB | frames, zeros to a multiple of 4 KiB | index: one u32 per record, zeros likewise | footer, 4 KiB |
//! ```
//!
//! The index and the footer exist once the segment is sealed. Until then the frames are followed by zeros, or by blocks
//! that were never written. `docs/format.md` draws every byte.

pub(crate) mod check;
pub(crate) mod file;
pub(crate) mod header;
pub(crate) mod region;
pub(crate) mod scan;
pub(crate) mod sealed;
pub(crate) mod search;
pub(crate) mod survivors;

use crate::{
    chunk::{Chunk, MAX_CAPACITY},
    disk::BLOCK,
    frame::Key,
    sync::{Arc, AtomicU64, Mutex, Ordering, SwapOption, into_inner, lock},
};
use std::sync::OnceLock;

/// Where the frames begin in the file.
pub(crate) const FRAMES_AT: u64 = BLOCK;

/// The smallest and the largest capacity a segment may have, in bytes of frames and index.
pub(crate) const CAPACITIES: std::ops::RangeInclusive<u64> = BLOCK..=MAX_CAPACITY;

/// One segment of an open log.
pub(crate) struct Segment {
    pub(crate) header: header::Header,
    /// The key that its frames are written and verified with.
    pub(crate) key: Key,
    /// Its file while it is being written; dropped once it is sealed.
    file: Mutex<Option<std::sync::Arc<file::SegmentFile>>>,
    /// Its records in memory: always present until it is sealed, then for as long as the budget allows.
    pub(crate) chunk: SwapOption<Chunk>,
    /// Its successor, which continues where this segment was closed. Set once; again when the segment has left the
    /// chain.
    pub(crate) next: SwapOption<Segment>,
    /// What is known about it once it is sealed.
    pub(crate) sealed: OnceLock<sealed::Sealed>,
    /// The age of its newest record: milliseconds from the segment's creation. Until the segment is sealed, it may be
    /// later: the time that the next record would get. Never decreases until then. [`AGE_UNKNOWN`] if it is not known.
    pub(crate) age: AtomicU64,
}

/// See [`Segment::age`].
const AGE_UNKNOWN: u64 = u64::MAX;

impl Segment {
    /// A segment that is not sealed.
    pub(crate) fn new(header: header::Header, file: Option<file::SegmentFile>, chunk: Arc<Chunk>) -> Self {
        Self {
            header,
            key: header.key(),
            file: Mutex::new(file.map(std::sync::Arc::new)),
            chunk: SwapOption::new(Some(chunk)),
            next: SwapOption::new(None),
            sealed: OnceLock::new(),
            age: AtomicU64::new(0),
        }
    }

    /// A segment that is read only from its file.
    pub(crate) fn cold(header: header::Header, sealed: sealed::Sealed) -> Self {
        Self {
            header,
            key: header.key(),
            file: Mutex::new(None),
            chunk: SwapOption::new(None),
            next: SwapOption::new(None),
            sealed: OnceLock::from(sealed),
            age: AtomicU64::new(AGE_UNKNOWN),
        }
    }

    /// This segment, with the given age of its newest record.
    pub(crate) fn aged(mut self, age: u64) -> Self {
        self.age = AtomicU64::new(age);
        self
    }

    /// A time that none of its records is younger than; far in the future if that is not known.
    pub(crate) fn newest(&self) -> u64 {
        self.header.created.saturating_add(self.age.load(Ordering::Relaxed))
    }

    /// When its newest record was appended, even if the clock has gone on since then; far in the future if that is not
    /// known.
    pub(crate) fn newest_record(&self) -> u64 {
        self.last_age().map_or_else(|| self.newest(), |age| self.header.created.saturating_add(age))
    }

    /// The age of its last record, if that is in memory.
    fn last_age(&self) -> Option<u64> {
        let chunk = self.chunk.load_full()?;
        Some(chunk.frame(chunk.reserved().checked_sub(1)?)?.time)
    }

    /// The offset of the first record.
    #[inline]
    pub(crate) fn base(&self) -> u64 {
        self.header.base
    }

    /// The length of its file.
    pub(crate) fn file_bytes(&self) -> u64 {
        match self.sealed.get() {
            Some(sealed) => sealed::footer_at(sealed.records, sealed.words) + BLOCK,
            None => file::length(self.header.capacity),
        }
    }

    /// The file, while the segment is being written.
    pub(crate) fn file(&self) -> Option<std::sync::Arc<file::SegmentFile>> {
        lock(&self.file).clone()
    }

    /// Gives back its file and its chunk: it has no record, and another segment has taken its place. Segments before it
    /// still lead to it, for as long as they exist.
    pub(crate) fn give_up(&self) {
        *lock(&self.file) = None;
        self.chunk.clear();
    }

    /// Notes that the segment is sealed: from now on it is read by its file name.
    pub(crate) fn set_sealed(&self, sealed: sealed::Sealed) {
        if let Some(age) = self.last_age() {
            self.age.store(age, Ordering::Relaxed); // as elsewhere, it orders nothing
        }
        let _ = self.sealed.set(sealed); // by one thread, once
        *lock(&self.file) = None;
    }
}

impl Drop for Segment {
    /// Whoever holds an old segment last drops all those after it: one by one, and not one within the other, for which
    /// the stack may be too small.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(segment) = next.and_then(into_inner) {
            next = segment.next.take();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
