//! What is damaged in a log.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// Something that was durable and no longer verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The records that are damaged; empty if only what describes them (a header, an index) is damaged.
    pub offsets: Range<u64>,
    /// The file, or the directory where a file is missing.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
    /// The disk reported that it cannot read the bytes: they may be whole and readable another time, or be lost.
    pub unreadable: bool,
}

impl Damage {
    pub(super) fn new(offsets: Range<u64>, path: &Path, reason: &str) -> Self {
        Self { offsets, path: path.to_owned(), reason: reason.to_owned(), unreadable: false }
    }
}

/// Formats a range of offsets for people.
fn show(range: &Range<u64>) -> String {
    if range.end == range.start + 1 {
        format!("offset {}", range.start)
    } else {
        format!("offsets {} to {}", range.start, range.end.saturating_sub(1))
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.offsets.is_empty() {
            write!(f, "{}: ", show(&self.offsets))?;
        }
        write!(f, "{} ({})", self.reason, self.path.display())
    }
}
