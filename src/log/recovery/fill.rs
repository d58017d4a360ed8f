//! What `repair` fills the gaps between segments with: segments whose files are gone, or were cut, as the backings of a
//! killed process have them.

use super::{
    super::Error,
    history::{Candidates, all_frames, begins_with, is_known_to_follow, is_of, predecessor_at},
    judge::State,
    left::LeftBacking,
    mend::{Mended, mend_segment},
    survey::{Survey, SurveyedSegment},
};
use crate::{
    chunk::Predecessor,
    disk::Aligned,
    segment::{
        file,
        header::Header,
        scan::{self, Scan},
    },
};
use std::ops::Range;

/// What fills a gap between segments, or a part of it: all the frames of a backing.
pub(in crate::log) struct Filling {
    pub(in crate::log) header: Header,
    pub(in crate::log) frames: Aligned,
    pub(in crate::log) scan: Scan,
    /// Whether its segment was sealed, so that the log had all of its records for good.
    sealed: bool,
}

impl Filling {
    /// Reads a backing; `None` if it is gone, or cannot be read.
    fn read(candidates: &Candidates<'_>, backing: &LeftBacking) -> Result<Option<Self>, Error> {
        let &LeftBacking { header, sealed, .. } = backing;
        let frames = candidates.frames(backing)?;
        Ok(frames.ok().map(|frames| {
            let scan = scan::scan(&frames, header.key());
            Self { header, frames, scan, sealed }
        }))
    }

    /// The offset after its last record.
    pub(in crate::log) fn end(&self) -> u64 {
        self.header.base + u64::from(self.scan.records())
    }

    /// What precedes the record at its end.
    fn predecessor_after(&self) -> Predecessor {
        self.scan.last_crc.map_or(Predecessor::Unknown, Predecessor::Frame)
    }
}

/// Looks for what fills the gaps of a log, and then for what is missing from segments after those. Changes nothing on the
/// disk. Also returns the ranges that are lost.
///
/// # Errors
/// [`Error::BackingContinues`] if a backing may continue after what is lost for good.
pub(in crate::log) fn fill(
    candidates: &Candidates<'_>,
    survey: &mut Survey,
    mended: &mut [Mended],
) -> Result<(Vec<Filling>, Vec<Range<u64>>), Error> {
    end_before_missing_files(candidates, survey)?;
    let (mut fillings, mut lost) = (Vec::new(), Vec::new());
    for gap in survey.gaps() {
        let (found, unused) = find_for_beginning(candidates, survey, &gap, fillings.last())?;
        fillings.extend(found);
        let from = fillings.last().map_or(0, Filling::end).max(gap.start);
        let rest = find_for_end(candidates, survey, from..gap.end)?;
        let end = rest.first().map_or(gap.end, |filling| filling.header.base);
        if let Some(unused) = unused.filter(|unused| unused.header.base < end) {
            return Err(candidates.continues(unused, &candidates.dir.join(file::name(gap.start))));
        }
        fillings.extend(rest);
        lost.extend(Some(from..end).filter(|lost| !lost.is_empty()));
    }
    ensure_none_continues_after(candidates, survey, &fillings, &lost)?;
    mend_after(candidates, survey, &fillings, mended)?;
    Ok((fillings, lost))
}

/// Ends damaged segments where a segment whose file is gone began. The survey knows only where the next file begins, so
/// it counts the records of a missing file as missing from the segment before it, if that had room for them. A backing
/// shows where the missing segment began.
fn end_before_missing_files(candidates: &Candidates<'_>, survey: &mut Survey) -> Result<(), Error> {
    for n in 1..survey.segments.len() {
        let SurveyedSegment { header, footer, state, .. } = &survey.segments[n - 1];
        let (State::Damaged(wreck), None) = (state, footer) else { continue };
        if !wreck.survivors.end_is_missing() {
            continue; // it ends there, as far as is known: what is missing after that is a gap
        }
        let records = match wreck.end_in_file() {
            Some((records, crc)) if candidates.any_follows(header.base + u64::from(records), crc) => records,
            _ => {
                let from = header.base + u64::from(wreck.in_file()).max(1);
                let gone = find_for_end(candidates, survey, from..survey.segments[n].header.base)?;
                let Some(first) = gone.first() else { continue };
                u32::try_from(first.header.base - header.base).unwrap_or(u32::MAX)
            }
        };
        if let State::Damaged(wreck) = &mut survey.segments[n - 1].state {
            wreck.ends_at(records);
        }
    }
    Ok(())
}

/// Finds backings for the first records of a gap: each must follow the frame before it. `before` is what fills the
/// previous gap, if it reaches up to this one. The last backing found is used only if it reaches the end of the gap or
/// was sealed: otherwise another process may have continued differently after a part of it. Also returns the first one
/// that is not used for that reason.
fn find_for_beginning<'a>(
    candidates: &'a Candidates<'_>,
    survey: &Survey,
    gap: &Range<u64>,
    before: Option<&Filling>,
) -> Result<(Vec<Filling>, Option<&'a LeftBacking>), Error> {
    let mut found: Vec<(&LeftBacking, Filling)> = Vec::new();
    let mut from = gap.start;
    while from < gap.end {
        let last = found.last().map(|(_, filling)| filling);
        let before = last.or(before.filter(|before| before.end() == from));
        let Some(next) = find_next(candidates, survey, before, from..gap.end)? else { break };
        from = next.1.end();
        found.push(next);
    }
    let is_used = |(_, last): &(_, Filling)| last.sealed || last.end() == gap.end;
    let unused = found.split_off(found.iter().rposition(is_used).map_or(0, |last| last + 1));
    let fillings = found.into_iter().map(|(_, filling)| filling).collect();
    Ok((fillings, unused.first().map(|&(backing, _)| backing)))
}

/// What fills the first part of a gap, or all of it. `before` is what fills the part before that.
fn find_next<'a>(
    candidates: &'a Candidates<'_>,
    survey: &Survey,
    before: Option<&Filling>,
    gap: Range<u64>,
) -> Result<Option<(&'a LeftBacking, Filling)>, Error> {
    let disk = candidates.disk;
    let cut = survey.segments.iter().rfind(|segment| segment.end() == gap.start && before.is_none());
    for backing in &candidates.left {
        let Header { base, .. } = backing.header;
        if base > gap.start {
            break;
        }
        let beside = cut.filter(|segment| segment.header.base == base);
        if beside.is_none() && base < gap.start || beside.is_some_and(|segment| !is_of(backing, segment)) {
            continue;
        }
        let Some(filling) = Filling::read(candidates, backing)? else { continue };
        let continues = match (beside.filter(|segment| segment.records() > 0), before) {
            (Some(segment), _) => {
                begins_with(disk, segment, &filling.frames).map_err(Error::io("read", &segment.path))?
            }
            (None, Some(before)) => is_known_to_follow(backing, before.predecessor_after()),
            (None, None) => is_known_to_follow(backing, predecessor_at(disk, &survey.segments, base)?),
        };
        if continues && gap.start < filling.end() && filling.end() <= gap.end {
            return Ok(Some((backing, filling)));
        }
    }
    Ok(None)
}

/// Finds backings for the last records of a gap: each must be followed by the one after it, because the frames that
/// they follow are lost.
fn find_for_end(
    candidates: &Candidates<'_>,
    survey: &Survey,
    mut gap: Range<u64>,
) -> Result<Vec<Filling>, Error> {
    let after = survey.segments.partition_point(|segment| segment.header.base < gap.end);
    let after = &survey.segments[after..];
    let mut fillings = Vec::new();
    // The backing found before this one, which comes after it.
    let mut next: Option<&LeftBacking> = None;
    // The last one first.
    for backing in candidates.left.iter().rev() {
        let Header { base, .. } = backing.header;
        if !gap.contains(&base) {
            continue;
        }
        let Some(filling) = Filling::read(candidates, backing)? else { continue };
        let has_history = filling.end() == gap.end
            && match next {
                Some(next) => is_known_to_follow(next, filling.predecessor_after()),
                None => candidates.is_followed(base, &filling.scan, after)?,
            };
        if has_history {
            (gap.end, next) = (base, Some(backing));
            fillings.push(filling);
        }
    }
    fillings.reverse();
    Ok(fillings)
}

/// Returns an error if a backing continues after `lost` records that end the log. Only the last of these records could
/// show that the backing continues the log, and a mark takes its place.
fn ensure_none_continues_after(
    candidates: &Candidates<'_>,
    survey: &Survey,
    fillings: &[Filling],
    lost: &[Range<u64>],
) -> Result<(), Error> {
    let Some(end) = lost.last().map(|lost| lost.end) else { return Ok(()) };
    let mut segments = survey.segments.iter();
    if fillings.iter().any(|filling| filling.header.base >= end)
        || segments.any(|segment| segment.header.base >= end && segment.records() > 0)
    {
        return Ok(());
    }
    let backings = candidates.backings;
    let is_bound = |backing: &&LeftBacking| {
        let has_records = || {
            let frames = backings.frames(&backing.name);
            frames.map_or(true, |frames| !all_frames(&frames, backing.header.key()).is_empty())
        };
        backing.header.base == end && matches!(backing.predecessor, Predecessor::Frame(_)) && has_records()
    };
    let bound = candidates.left.iter().find(is_bound);
    bound.map_or(Ok(()), |backing| Err(candidates.continues(backing, &candidates.dir.join(file::name(end)))))
}

/// Mends segments whose header was reconstructed, and whose backing [`mend`](super::mend()) could not recognise: the
/// records that fill the gap before such a segment show which frame its backing must follow.
fn mend_after(
    candidates: &Candidates<'_>,
    survey: &mut Survey,
    fillings: &[Filling],
    all: &mut [Mended],
) -> Result<(), Error> {
    for (n, mended) in all.iter_mut().enumerate() {
        let (segment, after) = survey.segments[n..].split_first_mut().expect("there is one for each segment");
        let is_open = matches!(segment.state, State::Damaged(_)) && !segment.source.is_own();
        let before = fillings.iter().find(|before| is_open && before.end() == segment.header.base);
        if let Some(before) = before
            && matches!(mended, Mended::No)
        {
            *mended = mend_segment(candidates, segment, before.predecessor_after(), after)?;
        }
    }
    Ok(())
}
