//! Looking at a log without changing it: what it holds, what is damaged.

use super::{Damage, Error, Options, recovery};
use crate::{
    chunk::{BackingContent, BackingDir, FoundBacking},
    disk,
};
use std::path::{Path, PathBuf};

/// What [`verify`] has found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The first offset.
    pub first: u64,
    /// The offset after the last record.
    pub next: u64,
    /// The number of segment files.
    pub segments: usize,
    /// Everything that is damaged; empty if all is well. A torn end that was never durable is not damage.
    pub damage: Vec<Damage>,
    /// How many records were lost to damage before, and are [marked](crate::Record::is_lost) so by
    /// [`repair`](crate::repair). They are no damage.
    pub lost: u64,
    /// Files with torn ends of segments, which were cut off when the log was opened after a crash. Nobody was told that
    /// these records were stored, unless the disk has lost what it had reported as written.
    pub torn: Vec<PathBuf>,
    /// Backings of killed processes ([`Options::shm_dir`], at its default place unless another was named), which may
    /// hold records that are not in the segments yet. Opening the log restores those that continue its files, and keeps
    /// the others. Removing one of these files gives up whatever only it holds.
    pub backings: Vec<PathBuf>,
}

/// Verifies every frame, index and footer of the log in `dir`, and changes nothing. The log must not be open.
///
/// # Errors
/// [`Error::InUse`], [`Error::NotALog`], [`Error::Newer`], [`Error::Corrupt`], [`Error::Io`].
pub fn verify(dir: impl AsRef<Path>) -> Result<Report, Error> {
    verify_on(&*disk::native(), dir.as_ref(), Options::default().shm_dir.as_deref(), &mut |_, _| ())
}

/// Like [`verify`], with backings at this place, if any. After each segment, reports to `progress` how many segments
/// are done, and how many there are.
///
/// # Errors
/// As [`verify`].
pub fn verify_with_progress(
    dir: impl AsRef<Path>,
    shm_dir: Option<&Path>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Report, Error> {
    verify_on(&*disk::native(), dir.as_ref(), shm_dir, &mut progress)
}

pub(crate) fn verify_on(
    disk: &dyn disk::Disk,
    dir: &Path,
    shm_dir: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, Error> {
    let _lock = recovery::lock(disk, dir)?;
    let survey = recovery::deep_survey(disk, dir, progress)?;
    let log = survey.log();
    let backings = log
        .zip(shm_dir)
        .and_then(|(log, at)| BackingDir::open(disk, at, log, dir, disk.node(dir).unwrap_or_default()).ok());
    let held = backings.as_ref().map(|backings| (backings, backings.find().unwrap_or_default()));
    let backings = held.into_iter().flat_map(|(backings, held)| {
        let holds = |backing: &&FoundBacking| match &backing.content {
            BackingContent::Segment { .. } | BackingContent::Invalid => true,
            BackingContent::Elsewhere(owner) => log.is_some_and(|log| recovery::is_gone(disk, owner, log)),
            BackingContent::Spare => false,
        };
        held.iter().filter(holds).map(|backing| backings.path(&backing.name)).collect::<Vec<_>>()
    });
    Ok(Report {
        first: survey.segments.first().map_or(0, |first| first.header.base),
        next: survey.segments.last().map_or(0, recovery::SurveyedSegment::end),
        segments: survey.segments.len(),
        damage: survey.damage,
        lost: survey.lost,
        torn: survey.torn,
        backings: backings.collect(),
    })
}
