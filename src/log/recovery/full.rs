//! A log that cannot be written to though nothing is damaged: there is no room on its disk, or the file system is
//! read-only. It is opened for reading; [`has_room`] says whether opening it again is worth it.

#[cfg(feature = "store")]
use super::super::Shared;
use super::{super::Error, judge::State, survey::SurveyedSegment};
#[cfg(feature = "store")]
use crate::segment::file::SegmentFile;
use crate::{
    disk::BLOCK,
    segment::{file, scan::Scan, sealed},
};
use std::{ops::Range, path::PathBuf};

/// Why a log cannot be written to though nothing is damaged.
pub(in crate::log) struct Full {
    pub(in crate::log) error: Error,
    /// The size in bytes of files that could not be created.
    pub(super) needs: u64,
    /// The files that opening continues or seals.
    pub(super) reserves: Vec<Reserve>,
    /// Whether the file system is read-only, so that nothing can be removed either.
    pub(in crate::log) is_read_only: bool,
}

impl Full {
    pub(in crate::log) fn new(error: Error, needs: u64) -> Self {
        let is_read_only = !error.is_full();
        Self { error: no_room(error), needs, reserves: Vec::new(), is_read_only }
    }
}

/// What opening reserves in a file; see [`File::reserve`](crate::disk::File::reserve).
#[cfg_attr(not(feature = "store"), expect(dead_code, reason = "only a store looks for room again"))]
pub(super) struct Reserve {
    path: PathBuf,
    length: u64,
    written: Range<u64>,
}

/// What opening reserves in the files of a log.
pub(super) fn reserves(segments: &[SurveyedSegment]) -> Vec<Reserve> {
    let of = |segment: &SurveyedSegment| {
        let (length, scan) = match &segment.state {
            State::Unfinished(scan) => (sealed_length(scan), scan),
            State::Active(_, scan) => (file::length(segment.header.capacity), scan),
            State::Sealed(_) | State::Damaged(_) => return None,
        };
        Some(Reserve { path: segment.path.clone(), length, written: file::written(scan.words) })
    };
    segments.iter().filter_map(of).collect()
}

/// The length of a segment's file once it is sealed.
pub(super) fn sealed_length(scan: &Scan) -> u64 {
    sealed::footer_at(scan.records(), scan.words) + BLOCK
}

/// Turns an error into [`Error::Full`] if it says that there is no room, or that the file system is read-only.
pub(super) fn no_room(error: Error) -> Error {
    match error {
        Error::Io { .. } if error.keeps_from_writing() => error.into_full(),
        error => error,
    }
}

/// Whether there is room to continue in a log that had none when it was opened: does what opening will do, because room
/// for a new file says nothing about the holes in an old one, which may be larger.
#[cfg(feature = "store")]
pub(in crate::log) fn has_room(log: &Shared) -> bool {
    let Some(Full { needs, reserves, .. }) = &log.opened_full else { return false };
    let reserved = |Reserve { path, length, written }: &Reserve| match log.env.disk.open(path, true) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound, // it was trimmed
        Ok(file) => file.reserve(*length, written.clone()).is_ok(),
    };
    if !reserves.iter().all(reserved) {
        return false;
    }
    match SegmentFile::prepare(&*log.env.disk, &log.dir, u64::MAX, *needs) {
        Ok(file) => {
            file.discard(&*log.env.disk);
            true
        }
        Err(_) => false,
    }
}
