//! The backings left by a process that ended without closing the log: which of them hold a segment, and which frame each
//! follows.

use super::{
    super::{Error, stats},
    dir::id_of,
    survey::Survey,
};
use crate::{
    LogId,
    chunk::{BackingContent, BackingDir, Label, Predecessor},
    disk::Disk,
    segment::{
        header::{Header, Secret},
        scan::Scan,
    },
};
use std::path::Path;

/// A backing that holds a segment.
pub(super) struct LeftBacking {
    pub(super) name: String,
    pub(super) header: Header,
    pub(super) opening: u64,
    pub(super) predecessor: Predecessor,
    pub(super) sealed: bool,
    /// The end of its records, and the CRC of the last one, once known: for the backing that continues after it.
    pub(super) end: Option<(u64, Option<u32>)>,
    /// The bytes after a gap, if there are frames.
    pub(super) torn: Vec<u8>,
    pub(super) fate: BackingFate,
    /// Whether its frames have to be read.
    pub(super) needs_frames: bool,
    /// The most records that its segment can have, if the backing itself does not tell.
    pub(super) max_records: Option<u32>,
}

impl LeftBacking {
    /// Whether it says nothing about its process and what precedes it.
    fn is_format_1(&self) -> bool {
        self.opening == 0
    }

    /// A scan of the backing's frames without the records that its segment cannot have. The segment's file has `on_disk`
    /// of them.
    pub(super) fn limited(&self, all: Scan, on_disk: u32, frames: &[u8]) -> Scan {
        match self.max_records {
            Some(max) => all.first(frames, self.header.key(), max.max(on_disk)),
            None => all,
        }
    }
}

/// What becomes of a backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackingFate {
    /// It holds nothing, or nothing that the disk does not have by now: it is removed.
    Redundant,
    /// All of its records are older than the log, which was trimmed: it is removed.
    Trimmed,
    /// It stays.
    Kept,
}

/// The backings of this log that hold a segment. Removes those that hold none, and reports those that it does not
/// understand.
pub(super) fn left_backings(
    disk: &dyn Disk,
    dir: &Path,
    backings: &BackingDir,
    survey: &Survey,
) -> Result<Vec<LeftBacking>, Error> {
    let log = survey.log().unwrap_or_else(|| backings.log());
    let mut left = Vec::new();
    for backing in backings.find().map_err(Error::io("look for backings of", dir))? {
        match backing.content {
            BackingContent::Spare => backings.remove(&backing.name),
            BackingContent::Invalid => warn_kept(backings, [&*backing.name], "it cannot be understood"),
            BackingContent::Elsewhere(owner) if is_gone(disk, &owner, log) => {
                let why = format!("it belongs to the log in {}, which is no longer there", owner.display());
                warn_kept(backings, [&*backing.name], &why);
            }
            BackingContent::Elsewhere(owner) => {
                tracing::debug!(dir = %dir.display(), owner = %owner.display(), "a backing of a copy of this log is left alone");
            }
            BackingContent::Segment { label, opening, predecessor, sealed, secret } => {
                let Label { base, capacity, created, version } = label;
                let secret = Secret(secret.filter(|_| version > 1));
                let header = Header { log, base, capacity, created, secret };
                left.push(LeftBacking {
                    name: backing.name,
                    header,
                    opening,
                    predecessor,
                    sealed,
                    end: None,
                    torn: Vec::new(),
                    fate: BackingFate::Kept,
                    needs_frames: true,
                    max_records: None,
                });
            }
        }
    }
    Ok(left)
}

/// Whether the log of these backings is no longer at `owner`, as far as that can be known: it may have been copied and the
/// original removed. The log that is there now may be another one.
pub(in crate::log) fn is_gone(disk: &dyn Disk, owner: &Path, log: LogId) -> bool {
    id_of(disk, owner).ok().flatten() != Some(log)
}

/// Reports that backings stay, and why.
pub(super) fn warn_kept<'a>(backings: &BackingDir, names: impl IntoIterator<Item = &'a str>, why: &str) {
    for name in names {
        stats::kept_backing();
        tracing::warn!(
            backing = %backings.path(name).display(), why,
            "memory of a process that was killed is kept: it may hold records that the disk does not have"
        );
    }
}

/// Where a backing with these frames ends.
pub(super) fn end_of(backing: &LeftBacking, scan: &Scan) -> (u64, Option<u32>) {
    (backing.header.base + u64::from(scan.records()), scan.last_crc)
}

/// A backing of format 1 may hold frames after the segment's last one: of a torn end that recovery had cut off in the
/// file only. They end where the process's next backing begins. One that was created before is not the next one: it is of
/// an older process, whose records say nothing about how far the newer one came.
pub(super) fn limit_format_1(left: &mut [LeftBacking]) {
    let headers: Vec<_> =
        left.iter().filter(|backing| backing.is_format_1()).map(|backing| backing.header).collect();
    for backing in left.iter_mut().filter(|backing| backing.is_format_1()) {
        let Header { base, created, .. } = backing.header;
        let later = headers.iter().filter(|other| other.created >= created);
        let next = later.filter_map(|other| other.base.checked_sub(base)).filter(|&records| records > 0);
        backing.max_records = next.min().and_then(|records| records.try_into().ok());
    }
}

/// What precedes one backing of a process precedes all of its backings with the same base: they are of chunks that were
/// replaced while they were empty.
pub(super) fn share_predecessors(left: &mut [LeftBacking]) {
    for n in 0..left.len() {
        let (one, own) = (&left[n], left[n].predecessor);
        let known = left.iter().find(|other| {
            other.header.base == one.header.base
                && other.opening == one.opening
                && other.predecessor != Predecessor::Unknown
        });
        left[n].predecessor =
            known.filter(|_| own == Predecessor::Unknown).map_or(own, |known| known.predecessor);
    }
}

/// What precedes a backing's first record. It is noted in the backing once it is durable; until then the chunk before
/// it is in memory as well.
pub(super) fn predecessor_of(backing: &LeftBacking, earlier: &[LeftBacking]) -> Predecessor {
    if backing.predecessor != Predecessor::Unknown {
        return backing.predecessor;
    }
    let of_it = earlier.iter().filter(|other| other.opening == backing.opening);
    let known = of_it.filter_map(|other| {
        let (end, crc) = other.end.filter(|(end, _)| *end == backing.header.base)?;
        // What precedes a chunk that ended empty also precedes the chunk that replaced it.
        let empty = end == other.header.base;
        crc.map(Predecessor::Frame).or_else(|| empty.then_some(other.predecessor))
    });
    known.into_iter().find(|known| *known != Predecessor::Unknown).unwrap_or(Predecessor::Unknown)
}

/// Whether the frame before the backing's first record is the last frame of the log.
pub(super) fn follows(backing: &LeftBacking, earlier: &[LeftBacking], at_end: Predecessor) -> bool {
    let predecessor = predecessor_of(backing, earlier);
    predecessor == at_end && predecessor != Predecessor::Unknown
        || predecessor == Predecessor::Unknown && backing.is_format_1()
}

/// Whether both are known, and differ.
pub(super) fn contradict(one: Predecessor, other: Predecessor) -> bool {
    one != other && one != Predecessor::Unknown && other != Predecessor::Unknown
}
