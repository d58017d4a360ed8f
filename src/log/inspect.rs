//! Looking at a log without changing it: what is there, what is damaged.

use super::{Error, recover, show};
use crate::disk;
use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// Something that was durable and does not verify any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The records that are lost; empty where only what describes them (a header, an index) is.
    pub offsets: Range<u64>,
    /// The file, or the directory where a file is missing.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.offsets.is_empty() {
            write!(f, "{}: ", show(&self.offsets))?;
        }
        write!(f, "{} ({})", self.reason, self.path.display())
    }
}

/// What [`verify`] has found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The first offset.
    pub first: u64,
    /// The offset behind the last record.
    pub next: u64,
    /// Segment files.
    pub segments: usize,
    /// Everything that is damaged; empty if all is well. A torn end that was never durable is no damage.
    pub damage: Vec<Damage>,
}

/// Verifies every frame, index and footer of the log in `dir`, and changes nothing. The log must not be open.
///
/// # Errors
/// [`Error::InUse`], [`Error::NotALog`], [`Error::Newer`], [`Error::Corrupt`], [`Error::Io`].
pub fn verify(dir: impl AsRef<Path>) -> Result<Report, Error> {
    verify_on(&*disk::native(), dir.as_ref(), &mut |_, _| ())
}

/// As [`verify`]; tells `progress` after each segment how many it has looked at, and how many there are.
///
/// # Errors
/// As there.
pub fn verify_with_progress(
    dir: impl AsRef<Path>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Report, Error> {
    verify_on(&*disk::native(), dir.as_ref(), &mut progress)
}

pub(crate) fn verify_on(
    disk: &dyn disk::Disk,
    dir: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, Error> {
    let _lock = recover::lock(disk, dir)?;
    let found = recover::deep_survey(disk, dir, progress)?;
    Ok(Report {
        first: found.segments.first().map_or(0, |first| first.header.base),
        next: found.segments.last().map_or(0, recover::Found::end),
        segments: found.segments.len(),
        damage: found.damage,
    })
}
