//! How to open a log.

use super::Error;
use crate::{chunk::ChunkMemory, disk, segment::CAPACITIES};
use std::path::PathBuf;

/// What readers may see, and when an append counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(
    any(feature = "client", feature = "store"),
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum Durability {
    /// A record can be read once it is on disk: nobody ever reads a record that is lost afterwards.
    #[default]
    Disk,
    /// A record can be read once it is in memory, and an append returns when its record can be read. It is on disk
    /// within about a millisecond; until then it is lost with the machine, or with the process if it is in the
    /// process's own memory ([`Options::shm_dir`]).
    Memory,
}

/// How to open a log. Fields may be added: write `Options::default().with_memory_bytes(…)`, or end a literal with
/// `..Options::default()`.
///
/// # Example
/// ```
/// let options = millstream::Options::default().with_segment_bytes(8 << 20).with_memory_bytes(64 << 20);
/// assert_eq!(options.first_segment_bytes, 64 << 10);
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    /// See [`Durability`]. Default: `Disk`.
    pub durability: Durability,
    /// The largest segment in bytes, which also limits an append. Between 4 KiB and 1 GiB; rounded up to a multiple of
    /// 4 KiB. Default: 64 MiB.
    pub segment_bytes: u64,
    /// The size of the first segment in bytes. Each segment is up to four times as large as the one before, if it
    /// can be prepared while that is filled, up to `segment_bytes`. If appends come fast, the second one may have 1 MiB.
    /// Default: 64 KiB.
    pub first_segment_bytes: u64,
    /// Bytes of memory for chunks: those being written, the next one, and as many recent ones for readers as fit. Must
    /// be at least what three of the largest segments take (plus 1/7 for their slots). When records that are not yet on
    /// disk take all of it, appends wait. All logs of a store share it; a log with no records that wait for the disk
    /// may always have a chunk of `first_segment_bytes` more. Default: 256 MiB.
    pub memory_bytes: u64,
    /// The memory file system for chunk memory that outlives the process: records acknowledged in memory there are lost
    /// only with the machine, and opening the log again restores them. If it has no room, even without the
    /// chunks of sealed segments, or does not exist, chunks are in the process's own memory, and a warning is logged; each
    /// segment that begins so is counted, and room is looked for again. Default: `/dev/shm` on Linux.
    pub shm_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Disk,
            segment_bytes: 64 << 20,
            first_segment_bytes: 64 << 10,
            memory_bytes: 256 << 20,
            shm_dir: shm_dir(),
        }
    }
}

#[cfg(not(all(test, not(loom))))]
fn shm_dir() -> Option<PathBuf> {
    cfg!(target_os = "linux").then(|| PathBuf::from("/dev/shm"))
}

/// A place where a killed test leaves nothing behind.
#[cfg(all(test, not(loom)))]
#[allow(clippy::unnecessary_wraps)] // as elsewhere
fn shm_dir() -> Option<PathBuf> {
    Some(place::dir().to_owned())
}

#[cfg(all(test, not(loom)))]
#[path = "../../tests/support/shm.rs"]
mod place;

impl Options {
    /// Sets [`durability`](Self::durability).
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets [`segment_bytes`](Self::segment_bytes).
    #[must_use]
    pub fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Sets [`first_segment_bytes`](Self::first_segment_bytes).
    #[must_use]
    pub fn with_first_segment_bytes(mut self, bytes: u64) -> Self {
        self.first_segment_bytes = bytes;
        self
    }

    /// Sets [`memory_bytes`](Self::memory_bytes).
    #[must_use]
    pub fn with_memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Sets [`shm_dir`](Self::shm_dir).
    #[must_use]
    pub fn with_shm_dir(mut self, dir: impl Into<Option<PathBuf>>) -> Self {
        self.shm_dir = dir.into();
        self
    }

    /// The largest segments that there may be with this `memory_bytes`.
    #[cfg(feature = "server")]
    pub(crate) fn largest_segment_bytes(&self) -> u64 {
        let (least, max) = CAPACITIES.into_inner();
        let fits = |blocks: u64| 3 * ChunkMemory::footprint(blocks * disk::BLOCK) <= self.memory_bytes;
        let (mut fitting, mut end) = (least / disk::BLOCK, max / disk::BLOCK + 1);
        while end - fitting > 1 {
            let middle = fitting.midpoint(end);
            if fits(middle) { fitting = middle } else { end = middle }
        }
        fitting * disk::BLOCK
    }

    /// Returns an error unless a log can be opened with these options.
    #[cfg(feature = "store")]
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.clone().checked().map(drop)
    }

    /// These options, with what can be rounded rounded; an error if no log can be opened with them.
    pub(super) fn checked(mut self) -> Result<Self, Error> {
        let bad = |reason: String| Err(Error::BadOptions { reason });
        if !CAPACITIES.contains(&self.segment_bytes) {
            return bad(format!(
                "segment_bytes is {}, but must be between 4 KiB and 1 GiB",
                self.segment_bytes
            ));
        }
        self.segment_bytes = self.segment_bytes.next_multiple_of(disk::BLOCK);
        self.first_segment_bytes =
            self.first_segment_bytes.clamp(disk::BLOCK, self.segment_bytes).next_multiple_of(disk::BLOCK);
        let least = 3 * ChunkMemory::footprint(self.segment_bytes);
        if self.memory_bytes < least {
            return bad(format!(
                "memory_bytes is {}, but must be at least {least} for segments of {} bytes",
                self.memory_bytes, self.segment_bytes
            ));
        }
        Ok(self)
    }
}
