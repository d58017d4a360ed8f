//! Restoring from backings left by a process that ended without closing the log. Before anything else is done with
//! the segment files, records that only a backing has are written to them, and the survey is completed likewise. The
//! rest of recovery finds them there, and needs to know nothing about backings.
//!
//! A record counts if its frame verifies and follows without a gap, just as on disk. With `Durability::Memory`, and
//! with an append that waits for `published`, nothing is acknowledged while an earlier record is still being copied, so
//! nothing after a gap was ever acknowledged. The exception is rot in memory, which nobody can tell from a record that
//! was being copied: so frames after a gap are kept aside. Being killed in here does no harm: the backings are removed
//! last.
//!
//! Without room for the records of a backing, all backings stay for the next opening. With `Durability::Disk`, the log
//! can be opened for reading meanwhile: its readers have seen only what the disk has. With `Durability::Memory` they may
//! have seen all that the backing holds, so the log stays closed: otherwise it would lack records that they have seen.
//!
//! # What always holds
//! - A backing continues only its own history: in the segment that its process has begun, if the file's frames are
//!   exactly the bytes that the backing starts with; or after the frame that preceded it, identified by that frame's
//!   CRC.
//! - A backing is removed only if it holds no record, or the disk has all its records, byte for byte, or the log was
//!   trimmed beyond the last of their offsets. Of a segment that was sealed on disk, as both say, the bytes were the same
//!   then, and are not compared again. Any other backing stays, and is reported.

use super::{
    super::{Durability, Error},
    aside,
    full::{Full, no_room},
    judge::{HeaderSource, Rest, State},
    left::{
        BackingFate, LeftBacking, contradict, end_of, follows, left_backings, limit_format_1, predecessor_of,
        share_predecessors, warn_kept,
    },
    survey::{MAX_AHEAD_BYTES, Survey, SurveyedSegment},
};
use crate::{
    chunk::{BackingDir, Predecessor},
    disk::{Aligned, BLOCK, Disk, File, is_transient, salvage},
    frame,
    parallel::prefetch,
    segment::{
        FRAMES_AT,
        file::{self, SegmentFile},
        header::Header,
        region::Region,
        scan::{self, Scan},
        sealed::{Footer, Sealed, SealedFile},
        search,
    },
};
use std::{cmp::Reverse, io, path::Path};

/// Completes the segment files and the survey from the backings. Removes backings that are no longer needed. Returns
/// `Full` if there is no room for what one of them holds, or to keep that aside: the backing stays, the log must not be
/// written to, and the survey is out of date.
///
/// # Errors
/// [`Error::Full`] if there is no room for records that readers may have seen.
pub(super) fn restore(
    disk: &dyn Disk,
    dir: &Path,
    backings: &BackingDir,
    survey: &mut Survey,
    durability: Durability,
) -> Result<Option<Full>, Error> {
    let mut left = left_backings(disk, dir, backings, survey)?;
    if !left.is_empty() && !may_restore(survey) {
        warn_kept(backings, left.iter().map(|backing| &*backing.name), "the log is damaged");
        return Ok(None);
    }
    let first = survey.segments.first().map_or(0, |first| first.header.base);
    // By base, so that each continues where the one before it ended. Of those with the same base, the one whose segment has a
    // file, then those of its process, and then the youngest: others may be of another history.
    let has_file = |header: &Header| survey.segment(header).is_some();
    let begun = left.iter().filter(|backing| has_file(&backing.header));
    let begun: Vec<_> = begun.map(|backing| (backing.header.base, backing.opening)).collect();
    left.sort_by_key(|LeftBacking { header, opening, .. }| {
        let is_of_its_process = begun.contains(&(header.base, *opening));
        (header.base, !has_file(header), !is_of_its_process, Reverse(header.created))
    });
    share_predecessors(&mut left);
    limit_format_1(&mut left);
    // While one is restored, the next one is read and scanned.
    for backing in &mut left {
        backing.needs_frames =
            sealed_as(survey, backing).is_none_or(|segment| may_have_more(backings, backing, segment));
    }
    let to_read: Vec<_> = left.iter().filter(|backing| backing.needs_frames).map(ToRead::of).collect();
    let is_small = to_read.iter().all(|to_read| to_read.capacity <= MAX_AHEAD_BYTES);
    let mut restorer = Restorer { disk, dir, backings, survey, names_are_durable: false };
    let full = prefetch(
        disk.in_parallel() && is_small,
        &to_read,
        |to_read| to_read.read(backings),
        |next_read| restorer.restore_each(&mut left, first, durability, next_read),
    )?;
    if full.is_some() {
        return Ok(full);
    }
    dispose(disk, dir, backings, &left)
}

/// Reports the backings that stay, and removes the others, after what is torn in them was kept aside. Returns `Full` if
/// there is no room for that: then those stay, too.
fn dispose(
    disk: &dyn Disk,
    dir: &Path,
    backings: &BackingDir,
    left: &[LeftBacking],
) -> Result<Option<Full>, Error> {
    let mut full = None;
    let mut removed = Vec::new();
    for backing in left {
        match backing.fate {
            BackingFate::Kept => {
                warn_kept(backings, [&*backing.name], "its records do not continue where the log ends");
                continue;
            }
            BackingFate::Trimmed => {
                let path = backings.path(&backing.name);
                tracing::info!(backing = %path.display(), "its records are older than all of the log, which was trimmed");
            }
            BackingFate::Redundant => {}
        }
        if let Some((end, _)) = backing.end {
            match aside::set_aside(disk, dir, end, &backing.torn) {
                Err(error) if error.keeps_from_writing() => {
                    full = Some(Full::new(error, backing.torn.len() as u64));
                    continue;
                }
                done => done?,
            }
        }
        removed.push(&*backing.name);
    }
    backings.remove_each(&removed);
    Ok(full)
}

/// The room that these backings need for segments that have no file yet. What the others need, opening reserves.
fn room_for(survey: &Survey, backings: &[LeftBacking]) -> u64 {
    let new =
        backings.iter().map(|backing| &backing.header).filter(|header| survey.segment(header).is_none());
    new.map(|header| file::length(header.capacity)).sum()
}

/// Whether there is no damage except what a backing may mend: in the last segment, which is not sealed.
fn may_restore(survey: &Survey) -> bool {
    let mends = |last: &SurveyedSegment| matches!(&last.state, State::Damaged(wreck) if wreck.rest == Rest::None && !wreck.unreadable);
    match survey.segments.last() {
        Some(last) if mends(last) => survey.damage.iter().all(|damage| damage.path == last.path),
        _ => survey.damage.is_empty(),
    }
}

/// What a log's backings are restored to: its directory, and the survey of it, which is completed on the way.
struct Restorer<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    backings: &'a BackingDir,
    survey: &'a mut Survey,
    /// Whether a loss of power keeps the names of all segments.
    names_are_durable: bool,
}

/// A backing whose frames are needed.
struct ToRead {
    name: String,
    key: frame::Key,
    capacity: u64,
}

/// What a backing holds.
struct Frames {
    bytes: Aligned,
    scan: Scan,
}

impl ToRead {
    fn of(backing: &LeftBacking) -> Self {
        let (header, name) = (&backing.header, backing.name.clone());
        Self { name, key: header.key(), capacity: header.capacity }
    }

    fn read(&self, backings: &BackingDir) -> io::Result<Frames> {
        let bytes = backings.frames(&self.name)?;
        let scan = scan::scan(&bytes, self.key);
        Ok(Frames { bytes, scan })
    }
}

/// The segment of a backing, if both its file and the backing say that it is sealed.
fn sealed_as<'a>(survey: &'a Survey, backing: &LeftBacking) -> Option<&'a SurveyedSegment> {
    let segment = survey.segment(&backing.header)?;
    (backing.sealed && matches!(segment.state, State::Sealed(_))).then_some(segment)
}

/// Whether a backing that was sealed may have more records than its segment has by now: that was cut, and sealed again.
fn may_have_more(backings: &BackingDir, backing: &LeftBacking, segment: &SurveyedSegment) -> bool {
    let words = words_of(segment).unwrap_or(0);
    let mut next = [0; frame::PEEK_BYTES];
    // After an error all of it is read, and what cannot be read is reported then.
    let Ok(read) = backings.read_at(&backing.name, frame::in_bytes(words) as u64, &mut next) else {
        return true;
    };
    frame::head(&next[..read], backing.header.key()).is_some_and(|next| next.record == segment.records())
}

impl Restorer<'_> {
    /// Restores from each backing. Returns `Full` if there is no room for what one of them may hold.
    fn restore_each(
        &mut self,
        left: &mut [LeftBacking],
        first: u64,
        durability: Durability,
        next_read: &mut dyn FnMut() -> Option<io::Result<Frames>>,
    ) -> Result<Option<Full>, Error> {
        for n in 0..left.len() {
            let (earlier, rest) = left.split_at_mut(n);
            let Some(backing) = rest.first_mut() else { break };
            let is_damaged = !self.survey.damage.is_empty(); // readers may have seen what only the backing has whole
            let frames = if backing.needs_frames { next_read() } else { None };
            let fate = self.restore_backing(earlier, backing, frames);
            match fate.map_err(Error::io("restore from memory what is missing in", self.dir)) {
                Ok(fate) => backing.fate = fate,
                Err(error) if error.keeps_from_writing() && durability == Durability::Disk && !is_damaged => {
                    let waiting = &left[n..];
                    let names = waiting.iter().map(|backing| &*backing.name);
                    warn_kept(self.backings, names, "there is no room on the disk for what it may hold");
                    // Not even those that the disk has are removed: the next one may be known to follow only by them.
                    return Ok(Some(Full::new(error, room_for(self.survey, waiting))));
                }
                Err(error) => return Err(no_room(error)),
            }
            if backing.fate == BackingFate::Kept && backing.end.is_some_and(|(end, _)| end <= first) {
                backing.fate = BackingFate::Trimmed;
            }
        }
        Ok(None)
    }

    /// Writes the records that the backing has and the log lacks, if they continue the log. `earlier` are the backings
    /// handled before.
    fn restore_backing(
        &mut self,
        earlier: &[LeftBacking],
        backing: &mut LeftBacking,
        frames: Option<io::Result<Frames>>,
    ) -> io::Result<BackingFate> {
        if !backing.needs_frames
            && let Some(segment) = sealed_as(self.survey, backing)
        {
            backing.end = Some((segment.end(), last_crc(self.disk, segment)?));
            return Ok(BackingFate::Redundant);
        }
        let same = self.survey.segments.iter().position(|segment| segment.header == backing.header);
        let mut frames = match frames.unwrap_or_else(|| ToRead::of(backing).read(self.backings)) {
            Ok(frames) => frames,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BackingFate::Redundant), // it was removed meanwhile
            // The next attempt may read it; until then nothing else may get the offsets of its records.
            Err(error) if is_transient(&error) => return Err(error),
            Err(error) => {
                tracing::error!(backing = %self.backings.path(&backing.name).display(), %error, "a backing cannot be read");
                return Ok(BackingFate::Kept);
            }
        };
        let key = backing.header.key();
        if let Some(n) = same
            && let Some(fate) = self.beside_its_file(earlier, backing, &mut frames, n)?
        {
            return Ok(fate);
        }
        let Frames { bytes: frames, scan } = frames;
        let scan = backing.limited(scan, 0, &frames);
        backing.end = Some(end_of(backing, &scan));
        if scan.records() == 0 {
            let Some(&(last, _)) = search::frames_from(&frames, key, 0, 0).frames.last() else {
                return Ok(BackingFate::Redundant);
            };
            backing.end = Some((backing.header.base + u64::from(last) + 1, None));
            return Ok(BackingFate::Kept);
        }
        let end = self.survey.segments.last().map_or(0, SurveyedSegment::end);
        let whole = self.survey.damage.is_empty();
        let continues = self.is_empty_log() || follows(backing, earlier, self.predecessor_at_end()?);
        if whole && backing.header.base == end && continues {
            backing.torn = after_gap(&frames, key, &scan).to_vec();
            self.append_segment(backing, scan, frames)?;
            return Ok(BackingFate::Redundant);
        }
        let is_covered = self.is_covered(backing, &scan, &frames)?;
        Ok(if is_covered { BackingFate::Redundant } else { BackingFate::Kept })
    }

    /// What becomes of a backing whose segment has a file, the `n`th; `None` if that does not decide it.
    fn beside_its_file(
        &mut self,
        earlier: &[LeftBacking],
        backing: &mut LeftBacking,
        frames: &mut Frames,
        n: usize,
    ) -> io::Result<Option<BackingFate>> {
        let is_last = n + 1 == self.survey.segments.len();
        let segment = &self.survey.segments[n];
        if is_last && !matches!(segment.state, State::Sealed(_) | State::Unfinished(_)) {
            // A file without records has no bytes to compare. Its header is equal if another process, which did not see the
            // backing, began it in the same millisecond.
            let is_other = segment.records() == 0
                && contradict(predecessor_of(backing, earlier), self.predecessor_at_end()?);
            let continues = !is_other && self.continue_in_place(backing, frames)?;
            return Ok(continues.then_some(BackingFate::Redundant));
        }
        let frames = &frames.bytes;
        if !same_bytes(self.disk, segment, frames)? {
            return Ok(None);
        }
        let words = words_of(segment).unwrap_or(0);
        // A process that could not see the backing may have sealed the segment without all of its records.
        let key = backing.header.key();
        if let Some(&(last, _)) = search::frames_from(frames, key, words, segment.records()).frames.last() {
            backing.end = Some((backing.header.base + u64::from(last) + 1, None));
            return Ok(Some(BackingFate::Kept));
        }
        backing.end = Some((segment.end(), last_crc(self.disk, segment)?));
        Ok(Some(BackingFate::Redundant))
    }

    /// Whether the disk has all that a backing holds: in a segment that was begun again, or that `repair` wrote.
    fn is_covered(&self, backing: &LeftBacking, scan: &Scan, frames: &[u8]) -> io::Result<bool> {
        let key = backing.header.key();
        let there = self.survey.segments.iter().find(|segment| segment.header.base == backing.header.base);
        let Some(there) =
            there.filter(|segment| segment.header.key() == key && segment.records() >= scan.records())
        else {
            return Ok(false);
        };
        let whole = &frames[..frame::in_bytes(scan.words)];
        Ok(after_gap(frames, key, scan).is_empty() && file_begins_with(self.disk, &there.path, whole)?)
    }

    /// Continues in the last segment, which is not sealed, if the backing starts with exactly the frames that its file has;
    /// returns whether it does.
    fn continue_in_place(&mut self, backing: &mut LeftBacking, frames: &mut Frames) -> io::Result<bool> {
        let (header, key) = (backing.header, backing.header.key());
        let Frames { bytes: frames, scan: of_backing } = frames;
        let Some(last) = self.survey.segments.last_mut() else { return Ok(false) };
        if let State::Damaged(wreck) = &last.state {
            // The backing may be whole from the first break on.
            let file = self.disk.open(&last.path, false)?;
            let bytes = Region::read(&*file, file.len()?, false)?;
            let scan = scan::scan(&bytes, key);
            let durable = last.records();
            let begins = frame::in_bytes(scan.words);
            // The frames in the file after the break show whether the backing has the same history: another process may
            // have continued there without this backing.
            let same = |word: u32| {
                let at = frame::in_bytes(word);
                let length =
                    bytes.get(at..).and_then(frame::parse).map(|frame| frame::in_bytes(frame.words()));
                length.is_some_and(|length| bytes.get(at..at + length) == frames.get(at..at + length))
            };
            let mends = frames.get(..begins) == bytes.get(..begins)
                && wreck.survivors.iter().skip(scan.records() as usize).all(|word| word.is_none_or(same))
                && of_backing.records() >= durable;
            if !mends {
                return Ok(false);
            }
            last.state = State::Active(bytes, scan);
            self.survey.damage.clear(); // what is written below mends it
        }
        let State::Active(there, scan) = &mut last.state else { return Ok(false) };
        let from = scan.words;
        let begins = frame::in_bytes(from);
        if frames.get(..begins) != there.get(..begins) {
            return Ok(false);
        }
        // It begins with the frames of the file, so that a scan of the file would go on likewise.
        *scan = backing.limited(std::mem::take(of_backing), scan.records(), frames);
        backing.end = Some(end_of(backing, scan));
        backing.torn = after_gap(frames, key, scan).to_vec();
        if scan.words > from {
            report_restoring(self.dir, &header, scan);
            let range = begins..frame::in_bytes(scan.words);
            there[range.clone()].copy_from_slice(&frames[range]);
            let file = self.disk.open(&last.path, true)?;
            file.reserve(file::length(header.capacity), file::written(from))?;
            write(&*file, frames, from, scan.words)?;
        }
        Ok(true)
    }

    /// Begins the next segment with the records of the backing.
    fn append_segment(&mut self, backing: &LeftBacking, scan: Scan, mut frames: Aligned) -> io::Result<()> {
        let header = backing.header;
        report_restoring(self.dir, &header, &scan);
        // Or the segment before this one could be missing after a loss of power.
        if !self.names_are_durable {
            self.disk.sync_dir(self.dir)?;
            self.names_are_durable = true;
        }
        let segment = SegmentFile::prepare(self.disk, self.dir, 0, header.capacity)?;
        segment.begin(self.disk, self.dir, &header).inspect_err(|_| segment.discard(self.disk))?;
        write(segment.file(), &frames, 0, scan.words)?;
        clear(&mut frames[frame::in_bytes(scan.words)..]); // as in the file
        // A segment of the same base was replaced while it was empty, and its file was just now: sealing it would write
        // over this one.
        self.survey.segments.retain(|segment| segment.header.base != header.base);
        if let Some(last) = self.survey.segments.last_mut()
            && let State::Active(_, scan) = &mut last.state
        {
            last.state = State::Unfinished(std::mem::take(scan));
        }
        let path = self.dir.join(file::name(header.base));
        let state = State::Active(frames.into(), scan);
        self.survey.segments.push(SurveyedSegment {
            header,
            source: HeaderSource::NEW,
            footer: None,
            has_unreadable_zeros: false,
            path,
            state,
        });
        Ok(())
    }

    /// Whether the log was trimmed to its end, where nothing is left that could precede a backing. One that begins there
    /// continues the log whatever its process was, and whatever the clock was: if others had continued it, it would end
    /// later.
    fn is_empty_log(&self) -> bool {
        let segments = &self.survey.segments;
        segments.last().is_some_and(|last| last.end() > 0)
            && segments.iter().all(|segment| segment.records() == 0)
    }

    /// What precedes the end of the log.
    fn predecessor_at_end(&self) -> io::Result<Predecessor> {
        let Some(last) = self.survey.segments.iter().rfind(|segment| segment.records() > 0) else {
            let empty = self.survey.segments.last().is_none_or(|last| last.end() == 0);
            return Ok(if empty { Predecessor::Nothing } else { Predecessor::Unknown });
        };
        Ok(last_crc(self.disk, last)?.map_or(Predecessor::Unknown, Predecessor::Frame))
    }
}

/// The bytes from where the frames of a backing break off to the end of the last frame found after that; or, if there
/// is none, to the end of a next frame that lacks only a matching CRC. Empty if there is neither.
fn after_gap<'a>(frames: &'a [u8], key: frame::Key, scan: &Scan) -> &'a [u8] {
    let later = search::frames_from(frames, key, scan.words, scan.records());
    let gap = frame::in_bytes(scan.words);
    let next = frames.get(gap..).and_then(|rest| frame::plausible(rest, key));
    let next = next.filter(|frame| frame.record == scan.records()).map(|_| scan.words);
    let end = later.frames.last().map(|&(_, word)| word).or(next).and_then(|word| {
        let at = frame::in_bytes(word);
        Some(at + frame::in_bytes(frame::parse(frames.get(at..)?)?.words()))
    });
    end.and_then(|end| frames.get(gap..end)).unwrap_or_default()
}

/// Fills with zeros what is not zero, and touches nothing else: what is mapped would be copied.
fn clear(bytes: &mut [u8]) {
    for block in bytes.chunks_mut(BLOCK as usize) {
        if block.iter().any(|&byte| byte != 0) {
            block.fill(0);
        }
    }
}

fn report_restoring(dir: &Path, header: &Header, scan: &Scan) {
    tracing::info!(
        dir = %dir.display(), base = header.base, up_to = header.base + u64::from(scan.records()),
        "restoring records from memory"
    );
}

/// Writes the frames from one word to another, and zeros up to the end of the block. Durable on return.
fn write(file: &dyn File, frames: &Aligned, from: u32, to: u32) -> io::Result<()> {
    let block = BLOCK as usize;
    let (start, end) = (frame::in_bytes(from) / block * block, frame::in_bytes(to));
    let whole = end / block * block;
    file::write_blocks(file, frames.get(start..whole).unwrap_or_default(), start)?; // none if all is in one block
    if whole < end {
        let mut last = Aligned::new(block)?;
        last[..end - whole].copy_from_slice(&frames[whole..end]);
        file::write_blocks(file, &last, whole)?;
    }
    Ok(())
}

/// The CRC in the last frame of a segment; `None` if it is not known, because the frame is damaged or cannot be read:
/// that is an error only for the record's readers.
pub(super) fn last_crc(disk: &dyn Disk, segment: &SurveyedSegment) -> io::Result<Option<u32>> {
    match &segment.state {
        State::Unfinished(scan) | State::Active(_, scan) => Ok(scan.last_crc),
        State::Sealed(footer) => last_crc_of_sealed(disk, &segment.path, &segment.header, footer),
        State::Damaged(wreck) => Ok(wreck.last_crc()),
    }
}

/// [`last_crc`] of a sealed segment: from its footer, or from the frame if its footer is of a version without it.
pub(super) fn last_crc_of_sealed(
    disk: &dyn Disk,
    path: &Path,
    header: &Header,
    footer: &Footer,
) -> io::Result<Option<u32>> {
    if footer.last_crc.is_some() {
        return Ok(footer.last_crc);
    }
    let file = disk.open(path, false)?;
    let last = footer.records.saturating_sub(1);
    let sealed = SealedFile { file: &*file, sealed: &Sealed::from(*footer), key: header.key() };
    match sealed.crc_of(last) {
        Err(error) if salvage::is_unreadable(&error) => Ok(None),
        crc => crc,
    }
}

/// Whether a segment that is no longer written has exactly the frames that a backing starts with.
fn same_bytes(disk: &dyn Disk, segment: &SurveyedSegment, frames: &[u8]) -> io::Result<bool> {
    let Some(words) = words_of(segment) else { return Ok(false) };
    match frames.get(..frame::in_bytes(words)) {
        Some(frames) => file_begins_with(disk, &segment.path, frames),
        None => Ok(false),
    }
}

/// How many words the frames take in a segment that is no longer written.
fn words_of(segment: &SurveyedSegment) -> Option<u32> {
    match &segment.state {
        State::Sealed(footer) => Some(footer.words),
        State::Unfinished(scan) => Some(scan.words),
        State::Active(..) | State::Damaged(_) => None,
    }
}

/// Whether the first frames in a segment's file are exactly these bytes; `false` if the disk cannot read them all.
fn file_begins_with(disk: &dyn Disk, path: &Path, frames: &[u8]) -> io::Result<bool> {
    const READ_BYTES: usize = 1 << 20;
    let file = disk.open(path, false)?;
    let mut bytes = Aligned::new(READ_BYTES.min(frames.len()))?;
    for (n, part) in frames.chunks(READ_BYTES).enumerate() {
        let bytes = &mut bytes[..part.len()];
        match salvage::read(&*file, bytes, FRAMES_AT + (n * READ_BYTES) as u64, true) {
            Ok(bad) if bad.is_empty() && bytes == part => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
