//! What can go wrong with a log.

use super::limits::{
    MAX_CURSORS_PER_LOG, MAX_PRODUCER_EPOCH, MAX_PRODUCER_ID_BYTES, MAX_PRODUCER_MARK_BYTES,
};
use crate::disk;
use std::{io, path::PathBuf, sync::Arc};

/// An error of a [`Log`](super::Log). Nothing was half done: an append that fails has appended nothing, except where
/// [`Failed`](Self::Failed) says that it is not known whether the last records are durable.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The record or batch is larger than the largest segment holds.
    #[error(
        "{bytes} bytes are more than one append may take here ({limit}); split it, or raise the segment size"
    )]
    TooLarge {
        /// The bytes that the append would take, including headers and index.
        bytes: u64,
        /// The most that one append may take.
        limit: u64,
    },
    /// A batch without records.
    #[error("the batch has no record; append at least one")]
    EmptyBatch,
    /// The disk is behind, and the memory for records not yet written is used up. Returned only by `try_append` and the
    /// like. Try again when the disk has caught up.
    #[error("the disk is behind and memory is used up; try again a little later")]
    WouldBlock,
    /// A conditional append found a different next offset.
    #[error("the next offset is {next}, not {expected}")]
    Unexpected {
        /// The offset that the append expected.
        expected: u64,
        /// The offset the next record would get.
        next: u64,
    },
    /// No append has been given this offset, so there is nothing to wait for.
    #[error("no record has offset {offset}; the next offset is {next}")]
    NotAppended {
        /// The offset that was to be waited for.
        offset: u64,
        /// The offset the next record would get.
        next: u64,
    },
    /// The offset is beyond the end of the log: a cursor cannot be set there, and the log cannot be trimmed to it.
    #[error("the log ends at {end}, before offset {offset}")]
    BeyondEnd {
        /// Where it was to be.
        offset: u64,
        /// The offset of the next record that readers will see.
        end: u64,
    },
    /// The name of the cursor is invalid.
    #[error(
        "a cursor's name has 1 to 128 letters, digits, '.', '_' or '-', and begins with neither '.' nor '-'"
    )]
    BadCursor,
    /// The log has as many cursors as it may have.
    #[error("the log has {} cursors, and cannot have more; remove some", MAX_CURSORS_PER_LOG)]
    TooManyCursors,
    /// A conditional change of a cursor found it elsewhere.
    #[error("{}", match .offset {
        Some(offset) => format!("the cursor is at {offset}"),
        None => "there is no cursor of this name".to_owned(),
    })]
    UnexpectedCursor {
        /// Where it is; `None` if it does not exist.
        offset: Option<u64>,
    },
    /// The file of the log's cursors does not verify, or cannot be read. Where consumers are is not known.
    #[error(
        "{} is damaged, and where the log's consumers are is not known; remove all of its cursors \
         (`remove_cursors()`, or DELETE of the cursors) to begin anew", .path.display()
    )]
    CursorsDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The producer's id or mark is invalid.
    #[error(
        "a producer's id has 1 to {} characters of printable ASCII, without a space at either end, and its \
         mark up to {} bytes",
        MAX_PRODUCER_ID_BYTES,
        MAX_PRODUCER_MARK_BYTES
    )]
    BadProducer,
    /// A batch names an epoch above 2,147,483,647 that its producer has not begun.
    #[error(
        "the epoch is above {}, which a batch cannot begin; call `begin_epoch()` (or POST to the producer)",
        MAX_PRODUCER_EPOCH
    )]
    EpochTooHigh,
    /// The producer is in the last epoch that there is: it has begun that many, or a batch named the epoch in an early
    /// version, which allowed that.
    #[error(
        "this producer is in epoch {}, and there is none after it; use another id, or this one again when the log has \
         forgotten it, 7 days after its last batch",
        u32::MAX
    )]
    EpochsUsedUp,
    /// A producer's batch is not the next one: an earlier batch is missing, or a later incarnation of the producer has
    /// appended since. Or a later epoch has begun than the one after which an epoch was to begin.
    #[error("out of order: expected epoch {expected_epoch}, sequence {expected_sequence} from this producer")]
    ProducerOutOfOrder {
        /// The epoch it must have.
        expected_epoch: u32,
        /// The sequence it must have in that epoch.
        expected_sequence: u64,
    },
    /// A producer's batch has the number of one that is stored, and other records: they would be lost if it were taken
    /// for a repeat.
    #[error(
        "a batch of this producer and this number is stored, with other records: {count} from offset {first_offset} on"
    )]
    NotARepeat {
        /// The offset of the first record of the batch that is stored.
        first_offset: u64,
        /// The number of its records.
        count: u64,
    },
    /// The record was trimmed.
    #[error("offset {offset} was trimmed; the first offset is {first}")]
    Trimmed {
        /// The offset asked for.
        offset: u64,
        /// The first offset that is left.
        first: u64,
    },
    /// The record exists, but what the disk has of it does not verify. [`Log::next_readable`](crate::Log::next_readable)
    /// says where to continue.
    #[error("the record at offset {offset} is damaged; verify the log (`verify()`, or `millstream verify`)")]
    Damaged {
        /// Its offset.
        offset: u64,
    },
    /// The disk cannot read the record now: it may be whole and readable another time, or never again.
    #[error("the disk cannot read the record at offset {offset}, in {}: {source}", path.display())]
    Unreadable {
        /// Its offset.
        offset: u64,
        /// The segment, or the log's directory.
        path: std::path::PathBuf,
        /// What the system reported.
        source: Arc<io::Error>,
    },
    /// Damage was found when the log was opened: it can be read, but not written to.
    #[error("the log is read-only: {reason}")]
    ReadOnly {
        /// What was found.
        reason: Arc<str>,
    },
    /// Nothing more can be appended to the log as it was opened: a write has failed, and opening the log again recovers it;
    /// or it was deleted, or opened again in its place.
    #[error("{reason}")]
    Failed {
        /// What has happened, and what to do.
        reason: Arc<str>,
    },
    /// There is no room on the disk for the next segment, or for records that were appended before; these wait for it.
    /// Or the file system is read-only. Appends work again when it can be written to.
    #[error("{}", unwritable(reason, source))]
    Full {
        /// What was attempted, and what the system said.
        reason: Arc<str>,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The next segment cannot be created for another reason, such as a lack of descriptors or memory. Appends work
    /// again when it can.
    #[error("the next segment cannot be created: {reason}; try again a little later")]
    CannotGrow {
        /// What the system said.
        reason: Arc<str>,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// Another process, or another `Log` in this one, has the directory open.
    #[error("{} is in use by another process; stop it, or name another directory", .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds something other than a log.
    #[error("{} is not a Millstream log: it holds {found:?}, which is no file of a log; move that away, or name another directory", .dir.display())]
    NotALog {
        /// The directory.
        dir: PathBuf,
        /// A file in it that does not belong to a log.
        found: String,
    },
    /// The directory is that of one log, where one that holds logs is expected.
    #[error("{} is the directory of a log; name the directory that it is in", .dir.display())]
    OneLog {
        /// The directory.
        dir: PathBuf,
    },
    /// Written by a newer version.
    #[error("{} has format {version}, and this program reads up to {}; use a newer millstream", .path.display(), crate::segment::header::VERSION)]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// Damage that even opening read-only cannot deal with.
    #[error("{} is corrupt: {reason}", .path.display())]
    Corrupt {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A backing of a killed process may continue after records that are lost: repairing the log would give the offsets
    /// of its records to others.
    #[error(
        "{} was left by a killed process, and may hold records that follow those lost in {}; repairing now would make them \
         impossible to restore. To give them up, repair without backings (`repair_with_progress()` with `None` as `shm_dir`, \
         or `millstream repair --shm-dir none`)",
        .backing.display(), .path.display()
    )]
    BackingContinues {
        /// The memory.
        backing: PathBuf,
        /// The segment that has lost records.
        path: PathBuf,
    },
    /// Options that contradict each other.
    #[error("bad options: {reason}")]
    BadOptions {
        /// What is wrong, and what would be valid.
        reason: String,
    },
    /// The system refused an operation.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was attempted, as in "cannot …".
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

/// What keeps the log from being written, and what to do.
pub(crate) fn unwritable(reason: &str, source: &io::Error) -> String {
    if crate::disk::is_read_only(source) {
        format!("the file system is read-only: {reason}; make it writable")
    } else {
        format!("the disk is full: {reason}; make room, or trim the log")
    }
}

impl Error {
    /// The offset of the record that is [damaged](Self::Damaged), or that the disk [cannot read](Self::Unreadable), if
    /// that is what is wrong.
    pub fn bad_record(&self) -> Option<u64> {
        match *self {
            Self::Damaged { offset } | Self::Unreadable { offset, .. } => Some(offset),
            _ => None,
        }
    }

    /// Whether the system refused something for lack of descriptors or memory before anything was changed: the
    /// operation may be tried again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { source, .. } if disk::is_transient(source))
    }

    /// Whether a log cannot be opened because of what is in its directory.
    #[cfg(feature = "store")]
    pub(crate) fn is_unusable(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. }
                | Self::NotALog { .. }
                | Self::Newer { .. }
                | Self::Corrupt { .. }
                | Self::BackingContinues { .. }
        )
    }

    /// Whether there was no room on the disk.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => disk::is_full(source),
            _ => false,
        }
    }

    /// Whether nothing can be written now, though everything can be read.
    pub(super) fn keeps_from_writing(&self) -> bool {
        self.is_full() || matches!(self, Self::Io { source, .. } if disk::is_read_only(source))
    }

    /// There is no room on the disk, as the system said.
    pub(super) fn full(source: io::Error) -> Self {
        Self::Full { reason: source.to_string().into(), source: Arc::new(source) }
    }

    /// Turns an error of the system, which says that there is no room on the disk, into [`Full`](Self::Full).
    pub(super) fn into_full(self) -> Self {
        let reason = self.to_string().into();
        match self {
            Self::Io { source, .. } => Self::Full { reason, source },
            other => other,
        }
    }

    /// What the system said, if it refused something; not on which file.
    #[cfg(feature = "server")]
    pub(crate) fn system_reason(&self) -> Option<&io::Error> {
        match self {
            Self::Full { source, .. } | Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Turns this into the error that says why the next segment cannot be created.
    pub(super) fn cannot_grow(self) -> Self {
        if self.is_full() { self.into_full() } else { Self::CannotGrow { reason: self.to_string().into() } }
    }

    /// For `map_err`: what was attempted, and on which path.
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source: Arc::new(source) }
    }
}
