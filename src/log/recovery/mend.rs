//! What `repair` mends from the backings of a killed process. Opening restores records that continue after those in the
//! files, but leaves a damaged log alone. So repair comes first: it recovers what is missing from segments, and the next
//! opening finds what it needs to restore the rest.
//!
//! # What always holds
//! - A backing is trusted to have the same history only if every record that both have is the same, at the same place; and
//!   if they have none in common, by what the backing follows.
//! - Nothing is removed, and nothing is given up that a backing may continue after: that is an error, unless the caller
//!   chooses to ignore the backings.

use super::{
    super::{Damage, Error},
    judge::{Copies, HeaderSource, Rest, State, Wreck, wreck},
    left::{LeftBacking, contradict, left_backings, share_predecessors},
    restore::last_crc,
    survey::{Survey, SurveyedSegment},
};
use crate::{
    chunk::{BackingDir, Predecessor},
    disk::{Aligned, BLOCK, Disk, is_transient},
    frame::{self, Key},
    segment::{
        FRAMES, file,
        header::Header,
        region::Region,
        scan::{self, Scan},
        search,
    },
};
use std::{collections::BTreeMap, io, ops::Range, path::Path};

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

/// Looks in the log's backings for what is missing from segments. Changes nothing on the disk. Returns what has become of
/// each segment.
///
/// # Errors
/// [`Error::BackingContinues`] if a backing may continue after what is lost for good.
pub(in crate::log) fn mend(
    disk: &dyn Disk,
    dir: &Path,
    backings: &BackingDir,
    survey: &mut Survey,
) -> Result<Vec<Mended>, Error> {
    let left = sorted(left_backings(disk, dir, backings, survey)?);
    let mut all = Vec::new();
    let bases: Vec<u64> = survey.segments.iter().map(|segment| segment.header.base).collect();
    // Memory may continue after the last record, even if the next segment's file was begun and has no record yet.
    let last = survey.segments.iter().rposition(|segment| segment.records() > 0).unwrap_or(0);
    for n in 0..survey.segments.len() {
        let mut mended = Mended::No;
        // Undamaged segments are left to opening, which restores what continues them.
        if matches!(survey.segments[n].state, State::Damaged(_)) {
            let predecessor = predecessor_at(disk, &survey.segments[..n], bases[n])?;
            let segment = &mut survey.segments[n];
            let next = bases.get(n + 1).map(|next| next - segment.header.base);
            mended = mend_segment(disk, backings, &left, segment, predecessor, next)?;
            if let State::Damaged(wreck) = &segment.state
                && n >= last
                && let Some(backing) =
                    left.iter().find(|backing| may_continue_after_loss(backing, segment, wreck))
            {
                return Err(backing_continues(backings, backing, segment));
            }
        }
        all.push(mended);
    }
    end_before_gone(&left, survey);
    Ok(all)
}

/// Ends segments before the records that a backing of another segment begins with. The file of that segment is gone, and the
/// one before it could have held these records, so the base of the next file made them seem to be missing from it.
fn end_before_gone(left: &[LeftBacking], survey: &mut Survey) {
    let but_last = survey.segments.len().saturating_sub(1);
    for segment in survey.segments.iter_mut().take(but_last).filter(|segment| segment.footer.is_none()) {
        if let State::Damaged(wreck) = &mut segment.state
            && let Some((records, crc)) = wreck.end_in_file()
        {
            let end = segment.header.base + u64::from(records);
            let begins = |backing: &LeftBacking| {
                backing.header.base == end && backing.predecessor == Predecessor::Frame(crc)
            };
            if left.iter().any(begins) {
                wreck.ends_at(records);
            }
        }
    }
}

/// Mends segments that have no header of their own where nothing but what fills the gap before one shows what a backing of
/// it must follow.
fn mend_after(
    disk: &dyn Disk,
    backings: &BackingDir,
    left: &[LeftBacking],
    survey: &mut Survey,
    fillings: &[Filling],
    all: &mut [Mended],
) -> Result<(), Error> {
    let bases: Vec<u64> = survey.segments.iter().map(|segment| segment.header.base).collect();
    for ((n, segment), mended) in survey.segments.iter_mut().enumerate().zip(all) {
        let is_open = matches!(segment.state, State::Damaged(_)) && !segment.source.is_own();
        let before = fillings.iter().find(|before| is_open && before.end() == segment.header.base);
        if let Some(before) = before
            && matches!(mended, Mended::No)
        {
            let next = bases.get(n + 1).map(|next| next - segment.header.base);
            *mended = mend_segment(disk, backings, left, segment, before.predecessor_after(), next)?;
        }
    }
    Ok(())
}

/// Among backings with one base, the one that was begun last has the records: it comes first.
fn sorted(mut left: Vec<LeftBacking>) -> Vec<LeftBacking> {
    left.sort_by_key(|backing| (backing.header.base, std::cmp::Reverse(backing.header.created)));
    share_predecessors(&mut left);
    left
}

/// What precedes the record at `base`, as far as these segments show.
fn predecessor_at(disk: &dyn Disk, segments: &[SurveyedSegment], base: u64) -> Result<Predecessor, Error> {
    if base == 0 {
        return Ok(Predecessor::Nothing);
    }
    let before = segments.iter().find(|segment| segment.records() > 0 && segment.end() == base);
    let Some(before) = before else { return Ok(Predecessor::Unknown) };
    let crc = last_crc(disk, before).map_err(Error::io("read", &before.path))?.or(before.footer_crc());
    Ok(crc.map_or(Predecessor::Unknown, Predecessor::Frame))
}

/// Whether it is known that a backing continues after this.
fn is_known_to_follow(backing: &LeftBacking, predecessor: Predecessor) -> bool {
    predecessor != Predecessor::Unknown && backing.predecessor == predecessor
}

/// What fills a gap between segments, or a part of it: all the frames of a backing.
pub(in crate::log) struct Filling {
    pub(in crate::log) header: Header,
    pub(in crate::log) frames: Aligned,
    pub(in crate::log) scan: Scan,
    /// Whether its segment was sealed, so that the log had all of its records for good.
    sealed: bool,
}

impl Filling {
    /// The offset after its last record.
    pub(in crate::log) fn end(&self) -> u64 {
        self.header.base + u64::from(self.scan.records())
    }

    /// What precedes the record at its end.
    fn predecessor_after(&self) -> Predecessor {
        self.scan.last_crc.map_or(Predecessor::Unknown, Predecessor::Frame)
    }
}

/// Looks in the log's backings for what fills its gaps, and then for what is missing after those. Changes nothing on the
/// disk. Also returns the ranges that are lost.
///
/// # Errors
/// As [`mend`].
pub(in crate::log) fn fill(
    disk: &dyn Disk,
    dir: &Path,
    backings: &BackingDir,
    survey: &mut Survey,
    mended: &mut [Mended],
) -> Result<(Vec<Filling>, Vec<Range<u64>>), Error> {
    let left = sorted(left_backings(disk, dir, backings, survey)?);
    let (mut fillings, mut lost) = (Vec::new(), Vec::new());
    for gap in survey.gaps() {
        fillings.extend(fill_gap(disk, backings, &left, survey, &gap, fillings.last())?);
        let filled = fillings.last().map_or(0, Filling::end).max(gap.start);
        lost.extend(Some(filled..gap.end).filter(|lost| !lost.is_empty()));
    }
    ensure_unbound(dir, backings, &left, survey, &lost)?;
    mend_after(disk, backings, &left, survey, &fillings, mended)?;
    Ok((fillings, lost))
}

/// Looks in the log's backings for segments that have the records of a gap, or the first of them: their files are gone, or
/// were cut. Changes nothing. Another process may have gone on in another way after the last of them, unless that reaches
/// the end of the gap, or was sealed. `before` is what fills the gap before this one, if that reaches up to it.
fn fill_gap(
    disk: &dyn Disk,
    backings: &BackingDir,
    left: &[LeftBacking],
    survey: &Survey,
    gap: &Range<u64>,
    before: Option<&Filling>,
) -> Result<Vec<Filling>, Error> {
    let mut fillings: Vec<Filling> = Vec::new();
    let mut from = gap.start;
    while from < gap.end {
        let before = fillings.last().or(before.filter(|before| before.end() == from));
        let next = next_filling(disk, backings, left, survey, before, from..gap.end)?;
        let Some(next) = next else { break };
        from = next.end();
        fillings.push(next);
    }
    while fillings.last().is_some_and(|last| !last.sealed && last.end() < gap.end) {
        fillings.pop();
    }
    Ok(fillings)
}

/// What fills the first part of a gap, or all of it. `before` is what fills the part before that.
fn next_filling(
    disk: &dyn Disk,
    backings: &BackingDir,
    left: &[LeftBacking],
    survey: &Survey,
    before: Option<&Filling>,
    gap: Range<u64>,
) -> Result<Option<Filling>, Error> {
    let cut = survey.segments.iter().rfind(|segment| segment.end() == gap.start && before.is_none());
    for backing in left {
        let Header { base, .. } = backing.header;
        if base > gap.start {
            break;
        }
        let beside = cut.filter(|segment| segment.header.base == base);
        if beside.is_none() && base < gap.start || beside.is_some_and(|segment| !is_of(backing, segment)) {
            continue;
        }
        let frames = match backings.frames(&backing.name) {
            Ok(frames) => frames,
            Err(error) if is_transient(&error) => {
                return Err(Error::io("read", &backings.path(&backing.name))(error));
            }
            Err(_) => continue,
        };
        let scan = scan::scan(&frames, backing.header.key());
        let continues = match (beside.filter(|segment| segment.records() > 0), before) {
            (Some(segment), _) => {
                begins_with(disk, segment, &frames).map_err(Error::io("read", &segment.path))?
            }
            (None, Some(before)) => is_known_to_follow(backing, before.predecessor_after()),
            (None, None) => is_known_to_follow(backing, predecessor_at(disk, &survey.segments, base)?),
        };
        let filling = Filling { header: backing.header, frames, scan, sealed: backing.sealed };
        if continues && gap.start < filling.end() && filling.end() <= gap.end {
            return Ok(Some(filling));
        }
    }
    Ok(None)
}

/// An error if these records are marked as lost and a backing continues after them: it is recognised only by the last of
/// them, where no file has a record after that.
fn ensure_unbound(
    dir: &Path,
    backings: &BackingDir,
    left: &[LeftBacking],
    survey: &Survey,
    lost: &[Range<u64>],
) -> Result<(), Error> {
    let Some(end) = lost.last().map(|lost| lost.end) else { return Ok(()) };
    if survey.segments.iter().any(|segment| segment.header.base >= end && segment.records() > 0) {
        return Ok(());
    }
    let is_bound = |backing: &&LeftBacking| {
        let has_records = || {
            let frames = backings.frames(&backing.name);
            frames.map_or(true, |frames| !all_frames(&frames, backing.header.key()).is_empty())
        };
        backing.header.base == end && matches!(backing.predecessor, Predecessor::Frame(_)) && has_records()
    };
    left.iter().find(is_bound).map_or(Ok(()), |backing| {
        let backing = backings.path(&backing.name);
        Err(Error::BackingContinues { backing, path: dir.join(file::name(end)) })
    })
}

/// Whether all frames that are left of a segment are in a backing as well, at the same places.
fn begins_with(disk: &dyn Disk, segment: &SurveyedSegment, frames: &[u8]) -> io::Result<bool> {
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
    Ok(all.into_iter().all(|word| {
        let range = frame_range(&bytes, word);
        bytes.get(range.clone()).is_some() && bytes.get(range.clone()) == frames.get(range)
    }))
}

fn mend_segment(
    disk: &dyn Disk,
    backings: &BackingDir,
    left: &[LeftBacking],
    segment: &mut SurveyedSegment,
    predecessor: Predecessor,
    next: Option<u64>,
) -> Result<Mended, Error> {
    let is_last = next.is_none();
    let of_it: Vec<&LeftBacking> = left.iter().filter(|backing| is_of(backing, segment)).collect();
    for backing in of_it {
        // By this alone it is known to have the same history, if it has no record in common with the file.
        let fits = match segment.source {
            HeaderSource::Own { .. } => !contradict(backing.predecessor, predecessor),
            HeaderSource::Reconstructed { .. } => is_known_to_follow(backing, predecessor),
        };
        let frames = match backings.frames(&backing.name) {
            Ok(frames) => frames,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // it was removed meanwhile
            Err(error) if is_transient(&error) => {
                return Err(Error::io("read", &backings.path(&backing.name))(error));
            }
            // No other backing continues after a segment that has a successor.
            Err(_) if !is_last => continue,
            Err(_) => return Err(backing_continues(backings, backing, segment)),
        };
        let mended = together(disk, segment, backing, &frames, fits, next)
            .map_err(Error::io("read", &segment.path))?;
        if let Some(mended) = mended {
            return Ok(mended);
        }
    }
    Ok(Mended::No)
}

fn backing_continues(backings: &BackingDir, backing: &LeftBacking, segment: &SurveyedSegment) -> Error {
    Error::BackingContinues { backing: backings.path(&backing.name), path: segment.path.clone() }
}

/// Whether a backing belongs to this segment.
fn is_of(backing: &LeftBacking, segment: &SurveyedSegment) -> bool {
    match segment.source {
        HeaderSource::Own { .. } => backing.header == segment.header,
        HeaderSource::Reconstructed { .. } => {
            backing.header.base == segment.header.base && backing.header.key() == segment.header.key()
        }
    }
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
fn together(
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
    let both = Both::of(damaged, &bytes, frames, key, next);
    let length = file::length(backing.header.capacity);
    let is_whole = segment.source.is_own() || next.is_none_or(|next| both.in_backing.len() as u64 == next);
    let Some(merged) = both.merged((length - FRAMES) as usize, fits && is_whole)? else { return Ok(None) };
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
struct Both<'a> {
    bytes: &'a [u8],
    in_file: BTreeMap<u32, u32>,
    frames: &'a [u8],
    in_backing: BTreeMap<u32, u32>,
}

impl<'a> Both<'a> {
    fn of(damaged: &Wreck, bytes: &'a [u8], frames: &'a [u8], key: Key, next: Option<u64>) -> Self {
        let in_file = (0..).zip(damaged.survivors.iter());
        let mut in_file: BTreeMap<u32, u32> =
            in_file.filter_map(|(record, word)| Some((record, word?))).collect();
        let mut in_backing = all_frames(frames, key);
        // What is found in the file instead of a frame that cannot be read may be a copy of it, in the value of a later
        // record.
        let by_word: BTreeMap<u32, u32> =
            in_backing.values().map(|&word| (word, word + words_at(frames, word))).collect();
        in_file.retain(|record, word| {
            let around = by_word.range(..*word).next_back();
            in_backing.get(record).is_none_or(|other| other == word)
                || around.is_none_or(|(_, end)| end <= word)
        });
        // Records of the next segment are not this one's, though a backing that a later process has not seen may have
        // them.
        in_backing.retain(|record, _| next.is_none_or(|next| u64::from(*record) < next));
        Self { bytes, in_file, frames, in_backing }
    }

    /// All frames of both, in a region of this many bytes; `None` if they contradict each other, or the file has all of
    /// them, or has none and the backing does not fit.
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

/// How many words the frame at a word takes, as it says; 0 if none begins there.
fn words_at(bytes: &[u8], word: u32) -> u32 {
    bytes.get(frame::in_bytes(word)..).and_then(frame::parse).map_or(0, |frame| frame.words())
}

/// The bytes of the frame at a word.
fn frame_range(bytes: &[u8], word: u32) -> Range<usize> {
    let at = frame::in_bytes(word);
    at..at + frame::in_bytes(words_at(bytes, word))
}

/// The word of each record whose frame verifies, wherever it is.
fn all_frames(bytes: &[u8], key: Key) -> BTreeMap<u32, u32> {
    let scan = scan::scan(bytes, key);
    let later = search::frames_from(bytes, key, scan.words, scan.records());
    let first = scan.positions.iter().copied().zip(0..).map(|(word, record)| (record, word));
    first.chain(later.frames).collect()
}

impl Whole {
    /// Writes what was missing to the segment's file, and zeros where the disk cannot read what follows. Durable on
    /// return.
    pub(in crate::log) fn write(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let file = disk.open(path, true)?;
        if FRAMES + (self.in_file as u64) < self.length {
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

impl SurveyedSegment {
    /// The CRC of the last frame, even if that frame is damaged, according to the footer.
    pub(in crate::log) fn footer_crc(&self) -> Option<u32> {
        let records = self.records();
        self.footer.filter(|footer| footer.records == records).and_then(|footer| footer.last_crc)
    }

    /// Whether the damage is in this segment.
    pub(in crate::log) fn has(&self, damage: &Damage) -> bool {
        damage.path == self.path
    }
}
