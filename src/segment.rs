//! The segment: a file of records, begun at a base offset, written from its chunk while it is active, then sealed.
//!
//! ```text
//! | header, 4 KiB | frames, zeros to a multiple of 4 KiB | index: u32 a record, zeros likewise | footer, 4 KiB |
//! ```
//!
//! Index and footer are there once the segment is sealed; until then zeros, or blocks never written, follow the
//! frames. `docs/format.md` draws every byte.

pub(crate) mod file;
pub(crate) mod header;
pub(crate) mod region;
pub(crate) mod scan;
pub(crate) mod sealed;
pub(crate) mod search;

use crate::{
    chunk::{Chunk, MAX_CAPACITY},
    disk::BLOCK,
    frame::Key,
    sync::{Arc, AtomicU64, Mutex, Ordering, SwapOption, lock},
};
use std::sync::OnceLock;

/// Where the frames begin in the file.
pub(crate) const FRAMES: u64 = BLOCK;

/// The smallest and the largest capacity a segment may have, in bytes of frames and index.
pub(crate) const CAPACITIES: std::ops::RangeInclusive<u64> = BLOCK..=MAX_CAPACITY;

/// One segment of an open log.
pub(crate) struct Segment {
    pub(crate) header: header::Header,
    /// What its frames are written and verified with.
    pub(crate) key: Key,
    /// Its file while it is written; let go once it is sealed.
    file: Mutex<Option<std::sync::Arc<file::SegmentFile>>>,
    /// Its records in memory: always there until it is sealed, then as long as the budget lasts.
    pub(crate) chunk: SwapOption<Chunk>,
    /// The segment that goes on where this one was closed. Set once.
    pub(crate) next: SwapOption<Segment>,
    /// What is known of it once it is sealed.
    pub(crate) sealed: OnceLock<sealed::Sealed>,
    /// How many milliseconds after it was begun its newest record was appended, or the next one would be; never goes back.
    /// [`AGE_UNKNOWN`] if it is not known.
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

    /// A segment that is read from its file only.
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

    /// The same, whose newest record has this age.
    pub(crate) fn aged(self, age: u64) -> Self {
        Self { age: AtomicU64::new(age), ..self }
    }

    /// When its newest record was appended, or later; far in the future if that is not known.
    pub(crate) fn newest(&self) -> u64 {
        self.header.created.saturating_add(self.age.load(Ordering::Relaxed))
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

    /// The file, as long as the segment is written.
    pub(crate) fn file(&self) -> Option<std::sync::Arc<file::SegmentFile>> {
        lock(&self.file).clone()
    }

    /// Notes that the segment is sealed: from now on it is read by its name.
    pub(crate) fn set_sealed(&self, sealed: sealed::Sealed) {
        let _ = self.sealed.set(sealed); // by one thread, once
        *lock(&self.file) = None;
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
