//! Which backings share the history of a log's files. `repair` has to know that before it takes records from one.
//!
//! A frame is identified by its CRC, as its neighbours in memory note it. So a backing has the log's history if the file of
//! its segment has the same frames; if it follows a frame of the log; or if one that has the log's history follows it.

use super::{
    super::Error,
    judge::{HeaderSource, State},
    left::{LeftBacking, left_backings, share_predecessors},
    restore::last_crc,
    survey::{Survey, SurveyedSegment},
};
use crate::{
    chunk::{BackingDir, Predecessor},
    disk::{Aligned, Disk, is_transient},
    frame::{self, Key},
    segment::{
        region::Region,
        scan::{self, Scan},
        search,
    },
};
use std::{cmp::Reverse, collections::BTreeMap, io, ops::Range, path::Path};

/// The backings of a log that hold a segment, and what reads them.
pub(in crate::log) struct Candidates<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) dir: &'a Path,
    pub(super) backings: &'a BackingDir,
    /// By base. Of those with the same base, the one that was begun last has the records: it comes first. Of those of one
    /// segment, the one that was sealed does: another one is of a process that a later one did not see.
    pub(super) left: Vec<LeftBacking>,
}

impl<'a> Candidates<'a> {
    pub(in crate::log) fn find(
        disk: &'a dyn Disk,
        dir: &'a Path,
        backings: &'a BackingDir,
        survey: &Survey,
    ) -> Result<Self, Error> {
        let mut left = left_backings(disk, dir, backings, survey)?;
        left.sort_by_key(|LeftBacking { header, sealed, .. }| {
            (header.base, Reverse(header.created), !sealed)
        });
        share_predecessors(&mut left);
        Ok(Self { disk, dir, backings, left })
    }

    /// The frames of a backing, or why it has none for good: it is gone, or cannot be read.
    ///
    /// # Errors
    /// [`Error::Io`] if the next attempt may read it.
    pub(super) fn frames(&self, backing: &LeftBacking) -> Result<io::Result<Aligned>, Error> {
        match self.backings.frames(&backing.name) {
            Err(error) if is_transient(&error) => {
                Err(Error::io("read", &self.backings.path(&backing.name))(error))
            }
            frames => Ok(frames),
        }
    }

    /// Whether a backing begins at `end`, and is known to follow this frame.
    pub(super) fn any_follows(&self, end: u64, crc: u32) -> bool {
        self.that_follow(end, crc).next().is_some()
    }

    fn that_follow(&self, end: u64, crc: u32) -> impl Iterator<Item = &LeftBacking> {
        let follows = move |backing: &&LeftBacking| {
            backing.header.base == end && is_known_to_follow(backing, Predecessor::Frame(crc))
        };
        self.left.iter().filter(follows)
    }

    /// Whether one that has the log's history follows the last of these frames, which begin at `base`. `after` are the
    /// segments after them.
    pub(super) fn is_followed(
        &self,
        base: u64,
        scan: &Scan,
        after: &[SurveyedSegment],
    ) -> Result<bool, Error> {
        let Some(crc) = scan.last_crc else { return Ok(false) };
        let end = base + u64::from(scan.records());
        for next in self.that_follow(end, crc) {
            let Ok(frames) = self.frames(next)? else { continue };
            let file = after.iter().find(|segment| segment.source.is_own() && is_of(next, segment));
            if let Some(segment) = file
                && begins_with(self.disk, segment, &frames).map_err(Error::io("read", &segment.path))?
            {
                return Ok(true);
            }
            // Each one begins later than the one before it, so this ends.
            if self.is_followed(end, &scan::scan(&frames, next.header.key()), after)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The error for a backing that may continue after a segment that has lost records.
    pub(super) fn continues(&self, backing: &LeftBacking, path: &Path) -> Error {
        Error::BackingContinues { backing: self.backings.path(&backing.name), path: path.to_owned() }
    }
}

/// What precedes the record at `base`, as far as these segments show.
pub(super) fn predecessor_at(
    disk: &dyn Disk,
    segments: &[SurveyedSegment],
    base: u64,
) -> Result<Predecessor, Error> {
    if base == 0 {
        return Ok(Predecessor::Nothing);
    }
    let before = segments.iter().find(|segment| segment.records() > 0 && segment.end() == base);
    let Some(before) = before else { return Ok(Predecessor::Unknown) };
    let crc = last_crc(disk, before).map_err(Error::io("read", &before.path))?.or(before.footer_crc());
    Ok(crc.map_or(Predecessor::Unknown, Predecessor::Frame))
}

/// Whether it is known that a backing continues after this.
pub(super) fn is_known_to_follow(backing: &LeftBacking, predecessor: Predecessor) -> bool {
    predecessor != Predecessor::Unknown && backing.predecessor == predecessor
}

/// Whether a backing is of this segment.
pub(super) fn is_of(backing: &LeftBacking, segment: &SurveyedSegment) -> bool {
    match segment.source {
        HeaderSource::Own { .. } => backing.header == segment.header,
        HeaderSource::Reconstructed { .. } => {
            backing.header.base == segment.header.base && backing.header.key() == segment.header.key()
        }
    }
}

/// Whether all frames that a segment's file has are in a backing as well, at the same places. Those that it was mended with
/// are not in its file yet.
pub(super) fn begins_with(disk: &dyn Disk, segment: &SurveyedSegment, frames: &[u8]) -> io::Result<bool> {
    let file = disk.open(&segment.path, false)?;
    let bytes = Region::read(&*file, file.len()?, true)?;
    let all: Vec<u32> = match &segment.state {
        State::Unfinished(scan) | State::Active(_, scan) => scan.positions.clone(),
        State::Damaged(wreck) => wreck.survivors.iter().flatten().collect(),
        State::Sealed(footer) => {
            let all = ..frame::in_bytes(footer.words);
            return Ok(frames.get(all) == bytes.get(all));
        }
    };
    let key = segment.header.key();
    Ok(all.into_iter().all(|word| {
        let in_file = bytes.get(frame::in_bytes(word)..).and_then(|bytes| frame::decode(bytes, key));
        in_file.is_none() || {
            let range = frame_range(&bytes, word);
            bytes.get(range.clone()) == frames.get(range)
        }
    }))
}

/// How many words the frame at a word takes, as it says; 0 if none begins there.
pub(super) fn words_at(bytes: &[u8], word: u32) -> u32 {
    bytes.get(frame::in_bytes(word)..).and_then(frame::parse).map_or(0, |frame| frame.words())
}

/// The bytes of the frame at a word.
pub(super) fn frame_range(bytes: &[u8], word: u32) -> Range<usize> {
    let at = frame::in_bytes(word);
    at..at + frame::in_bytes(words_at(bytes, word))
}

/// The word of each record whose frame verifies, wherever it is.
pub(super) fn all_frames(bytes: &[u8], key: Key) -> BTreeMap<u32, u32> {
    let scan = scan::scan(bytes, key);
    let later = search::frames_from(bytes, key, scan.words, scan.records());
    let first = scan.positions.iter().copied().zip(0..).map(|(word, record)| (record, word));
    first.chain(later.frames).collect()
}
