//! What `repair` mends from the backings of a killed process. Opening restores records that continue after those in the
//! files, but leaves a damaged log alone. So repair comes first: it recovers what is missing from segments, and the next
//! opening finds what it needs to restore the rest.
//!
//! # What always holds
//! - A backing is trusted to have the same history only if it has a record in common with the file, and each record
//!   that both have is the same, at the same place. If the file has no record, what the backing follows, or what
//!   follows it, must show that.
//! - Nothing is removed, and nothing is given up that a backing may continue after: that is an error, unless the caller
//!   chooses to ignore the backings.

use super::{
    super::Error,
    history::{Candidates, all_frames, frame_range, is_known_to_follow, is_of, predecessor_at, words_at},
    judge::{Copies, HeaderSource, Rest, State, Wreck, wreck},
    left::{LeftBacking, contradict},
    survey::{Survey, SurveyedSegment},
};
use crate::{
    chunk::Predecessor,
    disk::{Aligned, BLOCK, Disk},
    frame,
    segment::{FRAMES_AT, file, region::Region, scan, search},
};
use std::{cmp::Reverse, collections::BTreeMap, io, ops::Range, path::Path};

/// What has become of a segment.
pub(in crate::log) enum Mended {
    /// It is as it was found.
    No,
    /// The bytes of file and backing together; some records are missing all the same. The wreck in the survey describes
    /// these bytes.
    InPart(Aligned),
    /// Everything that was missing is here, to be written with [`write`](Whole::write).
    Whole(Whole),
}

/// A segment that lacks nothing.
pub(in crate::log) struct Whole {
    frames: Aligned,
    /// Bytes that the frames take.
    end: usize,
    /// The ranges that the disk cannot read.
    unreadable: Vec<Range<usize>>,
    /// The minimum length of its file.
    length: u64,
    /// How many bytes of frames its file has.
    in_file: usize,
}

/// Looks for what is missing from segments. Changes nothing on the disk. Returns what has become of each segment.
///
/// # Errors
/// [`Error::BackingContinues`] if a backing may continue after what is lost for good.
pub(in crate::log) fn mend(candidates: &Candidates<'_>, survey: &mut Survey) -> Result<Vec<Mended>, Error> {
    let mut all = Vec::new();
    // Memory may continue after the last record, even if the next segment's file was begun and has no record yet.
    let last = survey.segments.iter().rposition(|segment| segment.records() > 0).unwrap_or(0);
    for n in 0..survey.segments.len() {
        let mut mended = Mended::No;
        let (before, rest) = survey.segments.split_at_mut(n);
        let (segment, after) = rest.split_first_mut().expect("n is below their number");
        // Undamaged segments are left to opening, which restores what continues them.
        if matches!(segment.state, State::Damaged(_)) {
            let predecessor = predecessor_at(candidates.disk, before, segment.header.base)?;
            mended = mend_segment(candidates, segment, predecessor, after)?;
            if let State::Damaged(wreck) = &segment.state
                && n >= last
                && let Some(backing) =
                    candidates.left.iter().find(|backing| may_continue_after_loss(backing, segment, wreck))
            {
                return Err(candidates.continues(backing, &segment.path));
            }
        }
        all.push(mended);
    }
    Ok(all)
}

/// Looks for what is missing from a segment. `after` are the segments after it.
pub(super) fn mend_segment(
    candidates: &Candidates<'_>,
    segment: &mut SurveyedSegment,
    predecessor: Predecessor,
    after: &[SurveyedSegment],
) -> Result<Mended, Error> {
    let next = after.first().map(|next| next.header.base - segment.header.base);
    let is_last = next.is_none();
    for backing in best_first(candidates, segment)? {
        let frames = match candidates.frames(backing)? {
            Ok(frames) => frames,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // it was removed meanwhile
            // No other backing continues after a segment that has a successor.
            Err(_) if !is_last => continue,
            Err(_) => return Err(candidates.continues(backing, &segment.path)),
        };
        // If the file has no record to compare, nothing else shows that both have the same history.
        let fits = match segment.source {
            HeaderSource::Own { .. } => !contradict(backing.predecessor, predecessor),
            HeaderSource::Reconstructed { .. } => {
                is_known_to_follow(backing, predecessor) || {
                    let scan = scan::scan(&frames, backing.header.key());
                    candidates.is_followed(backing.header.base, &scan, after)?
                }
            }
        };
        let mended = merge_with_backing(candidates.disk, segment, backing, &frames, fits, next)
            .map_err(Error::io("read", &segment.path))?;
        if let Some(mended) = mended {
            return Ok(mended);
        }
    }
    Ok(Mended::No)
}

/// The backings of a damaged segment. Of several, the one that is the same as the file up to the latest record comes first:
/// another one is of a process that a later one did not see. One that cannot be read comes before all.
fn best_first<'a>(
    candidates: &'a Candidates<'_>,
    segment: &SurveyedSegment,
) -> Result<Vec<&'a LeftBacking>, Error> {
    let of_it: Vec<&LeftBacking> = candidates.left.iter().filter(|backing| is_of(backing, segment)).collect();
    let State::Damaged(damaged) = &segment.state else { return Ok(of_it) };
    if of_it.len() < 2 {
        return Ok(of_it);
    }
    let file = candidates.disk.open(&segment.path, false).map_err(Error::io("open", &segment.path))?;
    let read = file.len().and_then(|length| Region::read(&*file, length, true));
    let bytes = read.map_err(Error::io("read", &segment.path))?;
    let mut ranked = Vec::new();
    for backing in of_it {
        let common = candidates.frames(backing)?.map_or(u64::MAX, |frames| {
            let in_file = (1..).zip(damaged.survivors.iter());
            let is_same = |&(_, word): &(u64, Option<u32>)| {
                let range = word.map(|word| frame_range(&bytes, word));
                range.is_some_and(|range| bytes.get(range.clone()) == frames.get(range))
            };
            in_file.filter(is_same).last().map_or(0, |(record, _)| record)
        });
        ranked.push((Reverse(common), backing));
    }
    ranked.sort_by_key(|(common, _)| *common);
    Ok(ranked.into_iter().map(|(_, backing)| backing).collect())
}

/// Whether a backing may continue after a segment that has lost records, and could not be restored once these are
/// marked as lost.
fn may_continue_after_loss(backing: &LeftBacking, segment: &SurveyedSegment, wreck: &Wreck) -> bool {
    let (end, base) = (segment.end(), backing.header.base);
    let crc_is_missing = wreck.survivors.end_is_missing() && segment.footer_crc().is_none();
    base > segment.header.base
        && (base > end && wreck.rest != Rest::None
            || base == end && crc_is_missing && matches!(backing.predecessor, Predecessor::Frame(_)))
}

/// What a damaged segment and its backing have together; `None` if the backing has another history, or nothing that the
/// file lacks.
fn merge_with_backing(
    disk: &dyn Disk,
    segment: &mut SurveyedSegment,
    backing: &LeftBacking,
    frames: &[u8],
    fits: bool,
    next: Option<u64>,
) -> io::Result<Option<Mended>> {
    let is_last = next.is_none();
    let key = backing.header.key();
    let durable = segment.records();
    let State::Damaged(damaged) = &segment.state else { return Ok(None) };
    let file = disk.open(&segment.path, false)?;
    let bytes = Region::read(&*file, file.len()?, true)?;
    let both = FileAndBacking::of(damaged, &bytes, backing, frames, next, segment.footer_crc());
    let length = file::length(backing.header.capacity);
    let is_whole = segment.source.is_own() || next.is_none_or(|next| both.in_backing.len() as u64 == next);
    let Some(merged) = both.merged((length - FRAMES_AT) as usize, fits && is_whole)? else { return Ok(None) };
    let scan = scan::scan(&merged, key);
    let later = search::frames_from(&merged, key, scan.words, scan.records());
    if let HeaderSource::Reconstructed { has_key: true, .. } = segment.source {
        segment.header = backing.header;
        segment.source = HeaderSource::Own { copies: Copies::Damaged, mark: Some(0) };
    }
    if scan.records() < durable || later.frames.iter().any(|&(record, _)| record >= scan.records()) {
        let left = wreck(&merged, &scan, &later, durable.max(scan.records()));
        segment.state = State::Damaged(left);
        return Ok(Some(Mended::InPart(merged)));
    }
    // A segment that was sealed is sealed again; the last one stays open for appends.
    let seal = !is_last || segment.footer.is_some();
    let whole = Whole {
        end: frame::in_bytes(scan.words),
        frames: merged,
        unreadable: if seal { Vec::new() } else { bytes.unreadable().to_vec() },
        length: if seal { 0 } else { length },
        in_file: bytes.len(),
    };
    segment.state = if seal { State::Unfinished(scan) } else { State::Active(bytes, scan) };
    Ok(Some(Mended::Whole(whole)))
}

/// The frames that a file has, and those of its backing: the word of each record.
struct FileAndBacking<'a> {
    bytes: &'a [u8],
    in_file: BTreeMap<u32, u32>,
    frames: &'a [u8],
    in_backing: BTreeMap<u32, u32>,
}

impl<'a> FileAndBacking<'a> {
    fn of(
        damaged: &Wreck,
        bytes: &'a [u8],
        backing: &LeftBacking,
        frames: &'a [u8],
        next: Option<u64>,
        footer_crc: Option<u32>,
    ) -> Self {
        let in_file = (0..).zip(damaged.survivors.iter());
        let mut in_file: BTreeMap<u32, u32> =
            in_file.filter_map(|(record, word)| Some((record, word?))).collect();
        let mut in_backing = all_frames(frames, backing.header.key());
        // Where the disk cannot read a frame, the search may have found a copy of it inside the value of a later
        // record.
        let by_word: BTreeMap<u32, u32> =
            in_backing.values().map(|&word| (word, word + words_at(frames, word))).collect();
        in_file.retain(|record, word| {
            let around = by_word.range(..*word).next_back();
            in_backing.get(record).is_none_or(|other| other == word)
                || around.is_none_or(|(_, end)| end <= word)
        });
        // A later process did not see the backing, and may have continued differently, if the segment has more records than
        // the backing, or others; if the next segment begins at an earlier offset; or if the footer tells of another last
        // record. Up to the last record that is the same in both, they have one history; of what follows that is not known.
        // A backing that was sealed has all of its segment: what is missing after that is a segment whose file is gone.
        let is_same = |&(record, word): &(&u32, &u32)| {
            let range = frame_range(bytes, *word);
            in_backing.get(record) == Some(word) && bytes.get(range.clone()) == frames.get(range)
        };
        let common = in_file.iter().rev().find(is_same).map(|(record, _)| *record);
        let (last_in_file, last) = (in_file.keys().next_back(), in_backing.keys().next_back());
        let last_crc = || {
            let word = *in_backing.get(&damaged.survivors.len().checked_sub(1)?)?;
            Some(u32::from_le_bytes(*frames.get(frame::in_bytes(word)..)?.first_chunk()?))
        };
        let differs = last_in_file.is_some_and(|last| Some(*last) != common)
            || !backing.sealed && last.is_none_or(|last| last + 1 < damaged.survivors.len())
            || next.is_some_and(|next| last.is_some_and(|last| u64::from(*last) >= next))
            || footer_crc.is_some_and(|crc| last_crc().is_some_and(|other| other != crc));
        if differs {
            in_backing.retain(|record, _| common.is_some_and(|common| *record <= common));
        }
        Self { bytes, in_file, frames, in_backing }
    }

    /// The frames of both in one region of `length` bytes. Returns `None` if they contradict each other, if the backing
    /// adds nothing, or if they have no record in common. With a file that has no record at all, `fits` decides.
    fn merged(&self, length: usize, fits: bool) -> io::Result<Option<Aligned>> {
        let Self { bytes, in_file, frames, in_backing } = self;
        let mut merged = Aligned::new(length)?;
        for (from, there) in [(frames, in_backing), (bytes, in_file)] {
            for &word in there.values() {
                let range = frame_range(from, word);
                let (Some(from), Some(to)) = (from.get(range.clone()), merged.get_mut(range)) else {
                    return Ok(None);
                };
                to.copy_from_slice(from);
            }
        }
        // Where the two disagree, one was copied over the other.
        let mut of_file = in_file.iter();
        let agrees = of_file.all(|(record, word)| in_backing.get(record).is_none_or(|other| other == word))
            && in_backing.values().all(|&word| {
                let range = frame_range(frames, word);
                frames.get(range.clone()) == merged.get(range)
            });
        let is_same = if in_file.is_empty() {
            fits
        } else {
            in_file.keys().any(|record| in_backing.contains_key(record))
        };
        let adds = in_backing.keys().any(|record| !in_file.contains_key(record));
        Ok((agrees && is_same && adds).then_some(merged))
    }
}

impl Whole {
    /// Writes what was missing to the segment's file, and zeros where the disk cannot read what follows. Durable on
    /// return.
    pub(in crate::log) fn write(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let file = disk.open(path, true)?;
        if FRAMES_AT + (self.in_file as u64) < self.length {
            file.set_len(self.length)?;
        }
        let end = self.end.next_multiple_of(BLOCK as usize);
        file::write_blocks(&*file, &self.frames[..end], 0)?;
        let block = BLOCK as usize;
        for bad in &self.unreadable {
            for at in (bad.start / block * block..bad.end).step_by(block).filter(|&at| at >= end) {
                file::write_blocks(&*file, &self.frames[at..at + block], at)?; // zeros
            }
        }
        Ok(())
    }
}
