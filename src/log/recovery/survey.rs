//! What a directory holds: every segment with its judgement, and what is missing between them. Changes no bytes; files
//! without a footer are synced, because what is read from them is going to be called durable. Has at most
//! [`OUTLINE_THREADS`] files open at a time.

use super::{
    super::{Damage, Error, environment::now},
    aside,
    dir::only_ours,
    judge::{Copies, HeaderSource, Known, State, judge},
};
use crate::{
    LogId,
    disk::{Aligned, BLOCK, Disk, File, salvage},
    parallel::{self, prefetch},
    segment::{
        CAPACITIES, check, file,
        header::{self, BadHeader, Header, Secret},
        region::Region,
        scan,
        sealed::Footer,
        search,
    },
};
use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

/// The longest segment that is read while another one is judged, so that both are in memory.
pub(super) const MAX_AHEAD_BYTES: u64 = 256 << 20;

/// How many threads read the headers and footers of segments: they wait for the disk.
const OUTLINE_THREADS: usize = 4;

/// The fewest segments for which threads are started: one segment takes about as long as starting one.
const MIN_SEGMENTS_FOR_THREADS: usize = 4 * OUTLINE_THREADS;

/// What a directory holds.
pub(in crate::log) struct Survey {
    pub(in crate::log) segments: Vec<SurveyedSegment>,
    pub(in crate::log) damage: Vec<Damage>,
    /// The torn ends that earlier openings have cut off and kept.
    pub(in crate::log) torn: Vec<PathBuf>,
    /// How many of the records whose frames were read are marks of lost ones.
    pub(in crate::log) lost: u64,
}

/// One segment file.
pub(in crate::log) struct SurveyedSegment {
    pub(in crate::log) header: Header,
    pub(in crate::log) source: HeaderSource,
    /// The footer at the end of the file, if it verifies.
    pub(in crate::log) footer: Option<Footer>,
    /// Whether there is a part of its frames that the disk cannot read. With zeros in place of that part all its frames
    /// verify: so the part held nothing but zeros.
    pub(in crate::log) has_unreadable_zeros: bool,
    pub(in crate::log) path: PathBuf,
    pub(in crate::log) state: State,
}

impl SurveyedSegment {
    pub(in crate::log) fn records(&self) -> u32 {
        match &self.state {
            State::Sealed(footer) => footer.records,
            State::Unfinished(scan) | State::Active(_, scan) => scan.records(),
            State::Damaged(wreck) => wreck.survivors.len(),
        }
    }

    pub(in crate::log) fn end(&self) -> u64 {
        self.header.base + u64::from(self.records())
    }

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

/// Looks at everything in `dir`, and changes nothing. Reads the frames only of segments that are not sealed.
pub(super) fn survey(disk: &dyn Disk, dir: &Path) -> Result<Survey, Error> {
    survey_with(disk, dir, false, &mut |_, _| ())
}

/// Looks at everything in `dir`, verifies every frame, and changes nothing. Reports to `progress` how many segments are
/// done, and of how many.
pub(in crate::log) fn deep_survey(
    disk: &dyn Disk,
    dir: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Survey, Error> {
    survey_with(disk, dir, true, progress)
}

fn survey_with(
    disk: &dyn Disk,
    dir: &Path,
    deep: bool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Survey, Error> {
    let names = only_ours(disk, dir)?;
    let mut bases: Vec<u64> = names.iter().filter_map(|name| file::base_of(name)).collect();
    bases.sort_unstable();

    let torn = aside::torn_files(dir, &names);
    let mut survey = Survey { segments: Vec::new(), damage: Vec::new(), torn, lost: 0 };
    let mut outlines = read_outlines(disk, dir, &bases, &mut survey.damage)?;
    for n in 0..outlines.len() {
        outlines[n].next = outlines.get(n + 1).map(|next| next.header.base);
    }
    // While one is judged, the next one is read.
    let sealed: Vec<_> = outlines.iter().map(|outline| outline.sealed().filter(|_| !deep)).collect();
    let to_read = outlines.iter().zip(&sealed).filter(|(_, sealed)| sealed.is_none());
    let to_read: Vec<_> = to_read.map(|(outline, _)| outline).collect();
    let is_small = to_read.iter().all(|outline| outline.length <= MAX_AHEAD_BYTES);
    prefetch(
        disk.in_parallel() && is_small,
        &to_read,
        |outline| read_frames(disk, outline, deep),
        |next_read| {
            for (n, (outline, sealed)) in outlines.iter().zip(&sealed).enumerate() {
                note_gap(&mut survey, dir, outline.header.base);
                let (state, has_unreadable_zeros) = if let Some(footer) = sealed {
                    (State::Sealed(*footer), false)
                } else {
                    let read = next_read().unwrap_or_else(|| unreachable!("it is to be read"));
                    let examined = examine(outline, read.map_err(Error::io("read", &outline.path))?);
                    survey.lost += u64::from(examined.lost);
                    (examined.state, examined.has_unreadable_zeros)
                };
                let segment = outline.surveyed(state, has_unreadable_zeros);
                note_damage(&segment, outline.was_sealed(), deep, &mut survey.damage);
                survey.segments.push(segment);
                progress(n + 1, outlines.len());
            }
            Ok(survey)
        },
    )
}

/// Notes that no file holds the records from the last segment's end up to `base`, if there are any.
fn note_gap(survey: &mut Survey, dir: &Path, base: u64) {
    if let Some(before) = survey.segments.last().map(SurveyedSegment::end).filter(|&before| before < base) {
        survey.damage.push(Damage::new(before..base, dir, "no segment file holds them"));
    }
}

impl Survey {
    /// The id of the log, if it has a segment.
    pub(in crate::log) fn log(&self) -> Option<LogId> {
        self.segments.first().map(|first| first.header.log)
    }

    /// The log's secret, if a segment has it; see [`Secret`].
    pub(in crate::log) fn secret(&self) -> Option<[u8; 16]> {
        self.segments.iter().find_map(|segment| segment.header.secret.0)
    }

    /// The segment that has this header, if its file exists.
    pub(super) fn segment(&self, header: &Header) -> Option<&SurveyedSegment> {
        self.segments.iter().find(|segment| segment.header == *header)
    }

    /// The ranges of offsets between its segments, as they are now.
    pub(in crate::log) fn gaps(&self) -> Vec<Range<u64>> {
        let pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        pairs.map(|(one, next)| one.end()..next.header.base).filter(|gap| !gap.is_empty()).collect()
    }
}

/// What a segment file says about itself at its start and at its end.
struct Outline {
    path: PathBuf,
    header: Header,
    source: HeaderSource,
    length: u64,
    footer: Option<Footer>,
    /// The base of the segment after it, once that is known.
    next: Option<u64>,
}

impl Outline {
    /// Its footer, if that verifies, and claims no records of the next segment.
    fn sealed(&self) -> Option<Footer> {
        let room = self.next.map(|next| next - self.header.base);
        self.footer.filter(|footer| room.is_none_or(|room| u64::from(footer.records) <= room))
    }

    /// Whether its file was cut to size, which is the last step of sealing it.
    fn was_sealed(&self) -> bool {
        self.length != file::length(self.header.capacity)
    }

    fn surveyed(&self, state: State, has_unreadable_zeros: bool) -> SurveyedSegment {
        let &Self { header, source, footer, .. } = self;
        SurveyedSegment { header, source, footer, has_unreadable_zeros, path: self.path.clone(), state }
    }
}

/// What the outline of a segment is read as.
enum OutlineRead {
    Whole(Outline),
    /// No copy of its header verifies.
    NoHeader {
        path: PathBuf,
        /// Whether that is because the disk cannot read it.
        unreadable: bool,
    },
}

/// The headers and footers of all segments.
fn read_outlines(
    disk: &dyn Disk,
    dir: &Path,
    bases: &[u64],
    damage: &mut Vec<Damage>,
) -> Result<Vec<Outline>, Error> {
    let threads =
        if disk.in_parallel() && bases.len() >= MIN_SEGMENTS_FOR_THREADS { OUTLINE_THREADS } else { 1 };
    let outlines =
        parallel::map(threads, bases, |&base| read_outline(disk, dir.join(file::name(base)), base));
    let outlines = outlines.into_iter().collect::<Result<Vec<_>, Error>>()?;
    let headers: Vec<Header> = outlines
        .iter()
        .filter_map(|outline| match outline {
            OutlineRead::Whole(outline) => Some(outline.header),
            OutlineRead::NoHeader { .. } => None,
        })
        .collect();
    let secret = headers.iter().find_map(|header| header.secret.0);
    let mut all: Vec<Outline> = Vec::new();
    for (outline, &base) in outlines.into_iter().zip(bases) {
        let outline = match (outline, headers.first()) {
            (OutlineRead::Whole(outline), _) => outline,
            (OutlineRead::NoHeader { path, unreadable }, Some(known)) => {
                let what = if unreadable { "cannot be read" } else { "does not verify" };
                let reason = format!("the segment's header {what}");
                damage.push(Damage { unreadable, ..Damage::new(base..base, &path, &reason) });
                let before = all.last().map_or(1, last_time);
                let after = headers.iter().find(|header| header.base > base).map(|header| header.created);
                let others = Others { log: known.log, secret, before, after };
                reconstruct(disk, &path, unreadable, base, &others).map_err(Error::io("read", &path))?
            }
            (OutlineRead::NoHeader { path, .. }, None) => {
                let reason =
                    "its header cannot be read or does not verify, and no other segment shows what it was";
                return Err(Error::Corrupt { path, reason: reason.into() });
            }
        };
        let header = outline.header;
        let other_secret = header.secret.0.is_some_and(|own| Some(own) != secret);
        if headers.first().is_some_and(|known| header.log != known.log) || other_secret {
            return Err(Error::Corrupt { path: outline.path, reason: "it belongs to another log".into() });
        }
        all.push(outline);
    }
    Ok(all)
}

/// Reads the header and footer of a segment.
fn read_outline(disk: &dyn Disk, path: PathBuf, base: u64) -> Result<OutlineRead, Error> {
    let file = disk.open(&path, false).map_err(Error::io("open", &path))?;
    let (block, bad) = match read_block(&*file, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(OutlineRead::NoHeader { path, unreadable: false });
        }
        block => block.map_err(Error::io("read", &path))?,
    };
    let decoded = match Header::decode(&block) {
        Ok(decoded) => decoded,
        Err(BadHeader::Newer(version)) => return Err(Error::Newer { path, version }),
        Err(_) => return Ok(OutlineRead::NoHeader { path, unreadable: !bad.is_empty() }),
    };
    if decoded.header.base != base {
        let begins = decoded.header.base;
        let reason = format!("its name and its header disagree: it begins at offset {begins}");
        return Err(Error::Corrupt { path, reason });
    }
    let length = file.len().map_err(Error::io("read", &path))?;
    let footer = read_footer(&*file, length, &decoded.header).map_err(Error::io("read", &path))?;
    let copies = match decoded.whole {
        _ if !bad.is_empty() => Copies::Unreadable,
        true => Copies::Whole,
        false => Copies::Damaged,
    };
    let mark_is_bad =
        bad.iter().any(|bad| header::MARK_SECTOR.start < bad.end && bad.start < header::MARK_SECTOR.end);
    let mark = (!mark_is_bad).then_some(decoded.mark);
    let (header, source) = (decoded.header, HeaderSource::Own { copies, mark });
    Ok(OutlineRead::Whole(Outline { path, header, source, length, footer, next: None }))
}

/// When the last record of a segment was appended, as far as its header and footer say.
fn last_time(outline: &Outline) -> u64 {
    outline.header.created + outline.footer.map_or(0, |footer| footer.last_time)
}

/// What the other segments of a log reveal about one.
struct Others {
    log: LogId,
    secret: Option<[u8; 16]>,
    /// The segment was begun no earlier than this.
    before: u64,
    /// When the next segment was begun.
    after: Option<u64>,
}

/// Reconstructs the header of a segment whose own cannot be used, in the format in which more of its frames verify. Its
/// last record is assumed to be as young as possible, so that no record expires early.
fn reconstruct(
    disk: &dyn Disk,
    path: &Path,
    unreadable: bool,
    base: u64,
    others: &Others,
) -> io::Result<Outline> {
    let file = disk.open(path, false)?;
    let length = file.len()?;
    let bytes = Region::read(&*file, length, false)?;
    let of = |secret| {
        let capacity = *CAPACITIES.end();
        let header = Header { log: others.log, base, capacity, created: 0, secret: Secret(secret) };
        let footer = read_footer(&*file, length, &header)?;
        io::Result::Ok((footer, scan::scan(&bytes, header.key()), header))
    };
    let mut best = of(None)?;
    if others.secret.is_some() {
        let other = of(others.secret)?;
        if (other.0.is_some(), other.1.records()) >= (best.0.is_some(), best.1.records()) {
            best = other;
        }
    }
    let (footer, scan, mut header) = best;
    let last_time = footer.map_or(scan.times.1, |footer| footer.last_time);
    header.created = others.after.unwrap_or_else(now).saturating_sub(last_time).max(others.before);
    let verifies = || footer.is_some() || !search::frames_from(&bytes, header.key(), 0, 0).frames.is_empty();
    let is_empty = || bytes.unreadable().is_empty() && bytes.iter().all(|&byte| byte == 0);
    let has_key = others.secret.is_some() || verifies() || is_empty();
    let source = HeaderSource::Reconstructed { unreadable, has_key };
    Ok(Outline { path: path.to_owned(), header, source, length, footer, next: None })
}

/// Reads a block; also returns which parts of it cannot be read.
fn read_block(file: &dyn File, position: u64) -> io::Result<([u8; BLOCK as usize], Vec<Range<usize>>)> {
    let mut memory = Aligned::new(BLOCK as usize)?;
    let bad = salvage::read(file, &mut memory, position, true)?;
    let mut block = [0; BLOCK as usize];
    block.copy_from_slice(&memory);
    Ok((block, bad))
}

/// The footer of a sealed segment, if it can be read; if not, it can be derived.
fn read_footer(file: &dyn File, length: u64, header: &Header) -> io::Result<Option<Footer>> {
    let Some(at) = Footer::position(length) else { return Ok(None) };
    Ok(Footer::at_end(&read_block(file, at)?.0, length, header))
}

/// Reads what a segment's file has after its header.
fn read_frames(disk: &dyn Disk, outline: &Outline, deep: bool) -> io::Result<Region> {
    let file = disk.open(&outline.path, false)?;
    if outline.footer.is_none() {
        // What is read must be what the device has, because it is going to be called durable.
        file.sync()?;
    }
    Region::read(&*file, outline.length, deep)
}

/// What is known of a segment that was read.
struct Examined {
    state: State,
    /// See [`SurveyedSegment::has_unreadable_zeros`].
    has_unreadable_zeros: bool,
    /// How many of its records are marks of lost ones.
    lost: u32,
}

/// Judges a segment that was read.
fn examine(outline: &Outline, bytes: Region) -> Examined {
    let Outline { header, source, footer, next, .. } = outline;
    let records_before_next = next.map(|next| next - header.base);
    let unreadable = !bytes.unreadable().is_empty();
    let known = Known { source: *source, footer: *footer, records_before_next };
    let (state, lost) = judge(header, &known, bytes);
    let has_unreadable_zeros = unreadable && !matches!(state, State::Damaged(_));
    Examined { state, has_unreadable_zeros, lost }
}

fn note_damage(segment: &SurveyedSegment, was_sealed: bool, deep: bool, damage: &mut Vec<Damage>) {
    let (base, known) = (segment.header.base, damage.len());
    let mut push = |offsets: Range<u64>, unreadable: bool, reason: &str| {
        damage.push(Damage { unreadable, ..Damage::new(offsets, &segment.path, reason) });
    };
    // These do no harm by themselves: only a deep survey reports them.
    match segment.source {
        HeaderSource::Own { copies: Copies::Damaged, .. } if deep => {
            push(base..base, false, check::HEADER_COPY_DAMAGED);
        }
        HeaderSource::Own { copies: Copies::Unreadable, .. } if deep => {
            push(base..base, true, check::HEADER_PART_UNREADABLE);
        }
        _ => {}
    }
    if deep && segment.has_unreadable_zeros {
        push(base..base, true, "the disk cannot read some of its bytes; it verifies if these are zeros");
    }
    match &segment.state {
        State::Damaged(wreck) => {
            let reason = check::missing_because(wreck.unreadable);
            for missing in wreck.survivors.missing() {
                push(
                    base + u64::from(missing.start)..base + u64::from(missing.end),
                    wreck.unreadable,
                    reason,
                );
            }
            if wreck.excess {
                let end = segment.end();
                push(end..end, false, "it has more records than the segment after it leaves room for");
            }
            if let Some(reason) = wreck.rest.reason(wreck.unreadable, segment.source.mark().is_some()) {
                push(segment.end()..segment.end(), wreck.unreadable, reason);
            }
            if damage.len() == known {
                // So that a log with a damaged segment is opened for reading, whatever it is.
                damage.push(Damage::new(base..base, &segment.path, "its frames do not verify as a whole"));
            }
        }
        // A process that is killed may leave a segment with all of its records that it has not sealed yet.
        State::Unfinished(_) if deep && was_sealed => {
            push(
                base..base,
                false,
                "its index or footer is wrong or cannot be read; opening or repair rewrites it",
            );
        }
        _ => {}
    }
}
