//! How a log ends: it is closed, it fails, it is deleted, or it is opened again while this opening still exists.
//!
//! # What always holds
//! - The first reason for which a log ends is kept: whatever happens to it later, its callers get the same reason.
//! - From the moment when files at its path may be another log's, or another opening's, that is known, even if the log
//!   had failed before.
//!
//! # Orderings
//! `displaced` is `SeqCst`: it is set once in the life of a log, and looked at only where files are opened or removed. It
//! is set before the end is, so that whoever finds [`End::Deleted`] or [`End::Closed`] finds it set.

use super::Error;
use crate::sync::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What a log has ended by.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "store"),
    allow(dead_code, reason = "only a store deletes logs, or opens them again")
)]
pub(super) enum End {
    /// All of it is durable, and its directory is free for another opening.
    Closed,
    /// A write or a sync has failed, or a thread that worked for the log has panicked.
    Failed(Arc<str>),
    /// Its directory was moved away by the store.
    Deleted,
    /// It was read-only for lack of room, and another opening, which can be written to, has taken its place.
    Reopened,
}

impl End {
    /// What callers are told.
    pub(super) fn error(&self) -> Error {
        let reason = match self {
            Self::Closed => return Error::Closed,
            Self::Failed(reason) => Arc::clone(reason),
            Self::Deleted => "the log was deleted".into(),
            Self::Reopened => "the log was opened again, because there is room now: get it again".into(),
        };
        Error::Failed { reason }
    }

    /// Whether it has failed: then its files are still its own.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// Whether the log was deleted before it could fail: then nobody misses what is not written any more.
    pub(super) fn is_deletion(&self) -> bool {
        matches!(self, Self::Deleted)
    }
}

/// Whether a log has ended, and by what.
pub(super) struct Ending {
    end: OnceLock<End>,
    displaced: AtomicBool,
}

impl Ending {
    pub(super) fn new() -> Self {
        Self { end: OnceLock::new(), displaced: AtomicBool::new(false) }
    }

    /// Ends the log; returns whether it had not ended before.
    pub(super) fn set(&self, end: End) -> bool {
        if matches!(end, End::Closed | End::Deleted) {
            self.displaced.store(true, Ordering::SeqCst);
        }
        self.end.set(end).is_ok()
    }

    /// What the log has ended by, if it has.
    pub(super) fn get(&self) -> Option<&End> {
        self.end.get()
    }

    /// Whether files at the log's path may be another log's or another opening's by now: it was closed or deleted, whether
    /// or not it had ended otherwise before.
    pub(super) fn is_displaced(&self) -> bool {
        self.displaced.load(Ordering::SeqCst)
    }
}
