//! Repair: an explicit act that makes a damaged log writable again. Damaged files are kept aside, each record that
//! still verifies stays at its offset, and each lost one is marked as lost, so that readers find the mark and go on. What
//! opening fixes by itself, and whatever a backing of a killed process continues, stays as it is.

use super::{
    Damage, Error, Options,
    environment::now,
    recovery::{self, Candidates, Copies, Filling, HeaderSource, Mended, State, Survey, SurveyedSegment},
};
use crate::{
    LogId,
    chunk::BackingDir,
    disk::{self, Aligned, BLOCK, Disk, salvage, tree},
    frame::{self, LOST, MORE, Stamp, WORD},
    segment::{
        CAPACITIES, FRAMES_AT,
        file::{self, SegmentFile},
        header::{Header, Secret},
        region::Region,
        scan::{self, Scan},
        sealed,
    },
};
use std::{
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
};

/// What [`repair`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// What was damaged.
    pub damage: Vec<Damage>,
    /// The damaged files as they were, under new names.
    pub kept: Vec<PathBuf>,
}

/// Repairs the log in `dir`, so that it can be written to again. Lost records stay lost: readers find
/// [marks](crate::Record::is_lost) in their places, and all others keep their offsets. Records that are still in the
/// memory of a killed process are recovered from there ([`Options::shm_dir`], at its default place); any that follow
/// them are restored by the next opening. Whatever opening would fix by itself is fixed in the same way, and no
/// further. Does nothing if nothing is damaged, and may be repeated after it was interrupted. The log must not be open.
///
/// # Errors
/// [`Error::InUse`], [`Error::NotALog`], [`Error::Newer`], [`Error::Corrupt`] for damage that is beyond repair,
/// [`Error::BackingContinues`], [`Error::Io`]. After any error but [`Error::Io`], nothing was changed.
pub fn repair(dir: impl AsRef<Path>) -> Result<Repaired, Error> {
    repair_on(&*disk::native(), dir.as_ref(), Options::default().shm_dir.as_deref(), &mut |_, _| ())
}

/// Like [`repair`], with backings at this place. Without a place, what only backings hold is given up, unless a later
/// opening can restore it by itself. After each segment, reports to `progress` how many segments are done, and how many
/// there are.
///
/// # Errors
/// As [`repair`].
pub fn repair_with_progress(
    dir: impl AsRef<Path>,
    shm_dir: Option<&Path>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Repaired, Error> {
    repair_on(&*disk::native(), dir.as_ref(), shm_dir, &mut progress)
}

pub(crate) fn repair_on(
    disk: &dyn Disk,
    dir: &Path,
    shm_dir: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Repaired, Error> {
    let _lock = recovery::lock(disk, dir)?;
    // What is concluded from the names of files must stay true.
    disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
    let survey = recovery::deep_survey(disk, dir, progress)?;
    let Some(log) = survey.log() else {
        return Ok(Repaired { damage: survey.damage, kept: Vec::new() });
    };
    let plan = Plan::make(disk, dir, shm_dir, survey)?;
    ensure_repairable(dir, &plan)?;
    plan.carry_out(disk, dir, log)
}

/// What a repair is going to do. Nothing is changed before all of it is known.
struct Plan {
    survey: Survey,
    /// For each segment, if there are backings, what was found for it there.
    mended: Vec<Mended>,
    /// The gaps that are left between segments after mending.
    gaps: Vec<Range<u64>>,
    /// What fills gaps, or parts of them.
    fillings: Vec<Filling>,
    /// The parts of gaps that nothing fills.
    lost: Vec<Range<u64>>,
}

impl Plan {
    /// Looks in the backings at `shm_dir`, if there is damage, for what the log lacks.
    fn make(disk: &dyn Disk, dir: &Path, shm_dir: Option<&Path>, mut survey: Survey) -> Result<Self, Error> {
        let backings = match shm_dir {
            Some(at) if !survey.damage.is_empty() => backings_at(disk, dir, at, &survey)?,
            _ => None,
        };
        let Some(backings) = backings else {
            let gaps = survey.gaps();
            return Ok(Self { survey, mended: Vec::new(), lost: gaps.clone(), gaps, fillings: Vec::new() });
        };
        let candidates = Candidates::find(disk, dir, &backings, &survey)?;
        let mut mended = recovery::mend(&candidates, &mut survey)?;
        let gaps = survey.gaps(); // what was mended may have closed some
        let (fillings, lost) = recovery::fill(&candidates, &mut survey, &mut mended)?;
        Ok(Self { survey, mended, gaps, fillings, lost })
    }

    fn carry_out(self, disk: &dyn Disk, dir: &Path, log: LogId) -> Result<Repaired, Error> {
        let secret = Secret(self.survey.secret());
        let Self { survey: Survey { segments, damage, .. }, mended, gaps, fillings, lost } = self;
        let mut repaired = Repaired { damage, kept: Vec::new() };
        for (n, segment) in segments.iter().enumerate() {
            // What fills a gap takes its name: it has not even one whole record, or the filling has all of its records.
            let base = segment.header.base;
            let is_filled = fillings.iter().any(|filling| filling.header.base == base);
            if is_filled || gaps.iter().any(|gap| gap.start == base) {
                repaired.kept.push(keep_aside(disk, dir, segment)?);
                continue;
            }
            let is_damaged = matches!(segment.state, State::Damaged(_));
            if !is_damaged && !repaired.damage.iter().any(|damage| segment.has(damage)) {
                continue;
            }
            let mended = mended.get(n).unwrap_or(&Mended::No);
            repaired.kept.extend(repair_segment(disk, dir, segment, mended)?);
        }
        for Filling { header, frames, scan, .. } in fillings {
            let path = dir.join(file::name(header.base));
            write_sealed(disk, dir, &header, &frames[..frame::in_bytes(scan.words)], &scan)
                .map_err(Error::io("write from memory", &path))?;
        }
        for lost in lost {
            mark_lost(disk, dir, &segments, (log, secret), lost)?;
        }
        Ok(repaired)
    }
}

/// Fills a gap between these segments of a log with marks of lost records.
fn mark_lost(
    disk: &dyn Disk,
    dir: &Path,
    segments: &[SurveyedSegment],
    (log, secret): (LogId, Secret),
    gap: Range<u64>,
) -> Result<(), Error> {
    let path = dir.join(file::name(gap.start));
    let count = u32::try_from(gap.end - gap.start).unwrap_or(u32::MAX);
    // As old as the segment after it, so that retention drops it along with that one, and no earlier.
    let next = segments.iter().find(|segment| segment.header.base >= gap.end);
    let created = next.map_or_else(now, |next| next.header.created);
    let header = Header { log, base: gap.start, capacity: BLOCK, created, secret }; // see `write_frames`
    let frames = (0..count).map(|record| (lost_stamp(record, 0), &[][..]));
    write_frames(disk, dir, &header, frames, None).map_err(Error::io("fill the gap with", &path))
}

/// An error if the damage is beyond repair.
fn ensure_repairable(dir: &Path, plan: &Plan) -> Result<(), Error> {
    for range in &plan.lost {
        let count = range.end - range.start;
        if capacity_for(count.saturating_mul(frame::HEADER_BYTES as u64), count).is_none() {
            let reason = "more records are missing there than one segment can hold".into();
            return Err(Error::Corrupt { path: dir.join(file::name(range.start)), reason });
        }
    }
    match plan
        .survey
        .segments
        .iter()
        .find(|segment| matches!(segment.source, HeaderSource::Reconstructed { has_key: false, .. }))
    {
        None => Ok(()),
        Some(segment) => Err(Error::Corrupt {
            path: segment.path.clone(),
            reason:
                "its header cannot be read or does not verify, and no other has the key that its records need"
                    .into(),
        }),
    }
}

/// The log's backings at `at`, if there is such a place.
fn backings_at(disk: &dyn Disk, dir: &Path, at: &Path, survey: &Survey) -> Result<Option<BackingDir>, Error> {
    let Some(log) = survey.log() else { return Ok(None) };
    let node = disk.node(dir).map_err(Error::io("look at", dir))?;
    match BackingDir::open(disk, at, log, dir, node) {
        Ok(backings) => Ok(Some(backings)),
        Err(error) if disk::is_transient(&error) => Err(Error::io("look for backings in", at)(error)),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), at = %at.display(), %error, "cannot look for backings");
            Ok(None)
        }
    }
}

/// Fixes a segment in place, as opening does, if nothing of it is lost; otherwise keeps it aside and rewrites it.
/// Returns the name it was kept under.
fn repair_segment(
    disk: &dyn Disk,
    dir: &Path,
    segment: &SurveyedSegment,
    mended: &Mended,
) -> Result<Option<PathBuf>, Error> {
    let SurveyedSegment { header, path, .. } = segment;
    let kept = if let Mended::Whole(whole) = mended {
        let kept = keep_aside(disk, dir, segment)?;
        whole.write(disk, path).map_err(Error::io("write", path))?;
        Some(kept)
    } else if !segment.source.is_own() || matches!(segment.state, State::Damaged(_)) {
        let kept = keep_aside(disk, dir, segment)?;
        rewrite(disk, dir, segment, mended).map_err(Error::io("rewrite", path))?;
        return Ok(Some(kept));
    } else {
        None
    };
    if let HeaderSource::Own { copies: Copies::Damaged | Copies::Unreadable, mark } = segment.source {
        // Its records were found to be durable: if the mark cannot be read, it says so from now on.
        let mark = mark.unwrap_or_else(|| segment.records());
        recovery::rewrite_header(disk, path, header, mark).map_err(Error::io("write", path))?;
    }
    if segment.has_unreadable_zeros && kept.is_none() {
        write_zeros(disk, path).map_err(Error::io("write", path))?;
    }
    if let State::Unfinished(scan) = &segment.state {
        let mut summary = scan.summary();
        summary.last_crc = segment.footer_crc().or(summary.last_crc);
        let seal = || sealed::seal(&*disk.open(path, true)?, header, summary, scan.positions.iter().copied());
        seal().map_err(Error::io("seal", path))?;
    }
    Ok(kept)
}

/// The capacity of a segment with this many bytes of frames and this many records; `None` if it would be too large.
fn capacity_for(frames: u64, records: u64) -> Option<u64> {
    let needs = frames.checked_add(records.checked_mul(4)?)?;
    let capacity = needs.checked_next_multiple_of(BLOCK)?.max(BLOCK);
    CAPACITIES.contains(&capacity).then_some(capacity)
}

/// The mark of a lost record. `time` is that of the record before it, so that times are in order.
fn lost_stamp(record: u32, time: u64) -> Stamp {
    Stamp { record, behind: 0, time, flags: LOST }
}

/// Writes zeros where the disk cannot read bytes that are known to be zeros.
fn write_zeros(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let file = disk.open(path, true)?;
    let region = Region::read(&*file, file.len()?, true)?;
    let block = BLOCK as usize;
    for part in region.unreadable() {
        let range = part.start / block * block..part.end.next_multiple_of(block);
        let mut blocks = Aligned::new(range.len())?;
        blocks[..range.len()].copy_from_slice(&region.blocks()[range.clone()]);
        file.write_at(&[IoSlice::new(&blocks)], FRAMES_AT + range.start as u64)?;
    }
    Ok(())
}

/// The bytes of a segment's file, with zeros where the disk cannot read them.
struct FileCopy {
    head: Aligned,
    region: Region,
    length: u64,
}

impl FileCopy {
    fn of(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let source = disk.open(path, false)?;
        let length = source.len()?;
        let mut head = Aligned::new(FRAMES_AT as usize)?;
        salvage::read(&*source, &mut head[..length.min(FRAMES_AT) as usize], 0, true)?;
        Ok(Self { head, region: Region::read(&*source, length, true)?, length })
    }

    /// Creates a file with these bytes. Durable on return.
    fn create(&self, disk: &dyn Disk, dir: &Path, path: &Path) -> io::Result<()> {
        let blocks = [IoSlice::new(&self.head), IoSlice::new(self.region.blocks())];
        tree::create_whole(disk, &dir.join("next-kept.tmp"), path, &blocks, self.length)
    }
}

impl PartialEq for FileCopy {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length && self.head[..] == other.head[..] && self.region[..] == other.region[..]
    }
}

/// Copies the file as it is to an unused name, durably; or finds a copy that an earlier attempt has kept.
fn keep_aside(disk: &dyn Disk, dir: &Path, segment: &SurveyedSegment) -> Result<PathBuf, Error> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    let of_it = format!("{}.", file::name(segment.header.base));
    let own = FileCopy::of(disk, &segment.path).map_err(Error::io("read", &segment.path))?;
    for name in names.iter().filter(|name| name.starts_with(&of_it) && name.ends_with(recovery::DAMAGED)) {
        let path = dir.join(name);
        if FileCopy::of(disk, &path).map_err(Error::io("read", &path))? == own {
            disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
            return Ok(path);
        }
    }
    let free = (1..=names.len() + 1)
        .map(|n| format!("{of_it}{n}{}", recovery::DAMAGED))
        .find(|name| !names.contains(name));
    let path = dir.join(free.expect("more names than files were tried, so one is free"));
    own.create(disk, dir, &path).map_err(Error::io("keep the damaged file as", &path))?;
    Ok(path)
}

/// Rewrites the segment with what is left of it.
fn rewrite(disk: &dyn Disk, dir: &Path, segment: &SurveyedSegment, mended: &Mended) -> io::Result<()> {
    let source = disk.open(&segment.path, false)?;
    let region = Region::read(&*source, source.len()?, true)?;
    let bytes = if let Mended::InPart(bytes) = mended { &bytes[..] } else { &region[..] };
    let positions: Vec<Option<u32>> = match &segment.state {
        State::Damaged(wreck) => wreck.survivors.iter().collect(),
        State::Unfinished(scan) | State::Active(_, scan) => {
            scan.positions.iter().copied().map(Some).collect()
        }
        State::Sealed(footer) => {
            let frames = &bytes[..frame::in_bytes(footer.words)];
            // All of them, also if the last batch was cut.
            let scan = scan::scan_with(frames, segment.header.key(), footer.records);
            scan.positions.into_iter().map(Some).collect()
        }
    };
    let mut time = 0;
    let frames = positions.iter().enumerate().map(|(record, position)| {
        let kept =
            position.and_then(|word| frame::decode(&bytes[frame::in_bytes(word)..], segment.header.key()));
        let Some(kept) = kept else { return (lost_stamp(record as u32, time), &[][..]) };
        time = kept.frame.time;
        let mut stamp = kept.stamp();
        if record + 1 == positions.len() {
            stamp.flags &= !MORE; // the rest of its batch is gone
        }
        (stamp, kept.frame.body)
    });
    // The frame of a lost record is never larger than what was there: its value is empty, so it has the smallest size.
    write_frames(disk, dir, &segment.header, frames, segment.footer_crc())
}

/// Writes a sealed segment with these frames, as [`write_sealed`] does. `last_crc` is the CRC of the original last frame, if
/// it is known: a backing that continues after it is bound to that, not to a frame that marks the record as lost.
fn write_frames<'a>(
    disk: &dyn Disk,
    dir: &Path,
    header: &Header,
    frames: impl Iterator<Item = (Stamp, &'a [u8])>,
    last_crc: Option<u32>,
) -> io::Result<()> {
    let (mut bytes, mut scan) = (Vec::new(), Scan::default());
    for (stamp, value) in frames {
        let start = bytes.len();
        if scan.positions.is_empty() {
            scan.times.0 = stamp.time;
        }
        scan.times.1 = scan.times.1.max(stamp.time);
        scan.positions.push((start / WORD) as u32);
        bytes.resize(start + frame::in_bytes(frame::words(value.len())), 0);
        frame::encode(&mut bytes[start..], header.key(), stamp, value);
        scan.last_crc = Some(frame::claimed_crc(&bytes[start..], header.key()).0);
    }
    scan.words = (bytes.len() / WORD) as u32;
    scan.last_crc = last_crc.or(scan.last_crc);
    // A header with a capacity out of bounds could not be read.
    let capacity = capacity_for(bytes.len() as u64, scan.positions.len() as u64).ok_or_else(|| {
        io::Error::other("what is left of it, with marks for lost records, is larger than a segment may be")
    })?;
    let capacity = other_capacity(header.capacity, capacity);
    write_sealed(disk, dir, &Header { capacity, ..*header }, &bytes, &scan)
}

/// A capacity of at least `least` for a segment that had this one, and may be rewritten again: larger each time, so that no
/// backing is of a segment with this header. One that has what is lost here is not taken for one that the disk has.
fn other_capacity(capacity: u64, least: u64) -> u64 {
    let max = *CAPACITIES.end();
    match capacity + BLOCK {
        larger if larger <= max => larger.max(least),
        _ => least.max(max - BLOCK),
    }
}

/// Writes a sealed segment with these frames, and gives it its name, replacing any other file. Durable on return.
fn write_sealed(disk: &dyn Disk, dir: &Path, header: &Header, frames: &[u8], scan: &Scan) -> io::Result<()> {
    // No more room than it takes, whatever its capacity says.
    let capacity = capacity_for(frames.len() as u64, u64::from(scan.records())).unwrap_or(header.capacity);
    let file = SegmentFile::prepare(disk, dir, u64::MAX, capacity)?;
    let mut blocks = Aligned::new(frames.len())?;
    blocks[..frames.len()].copy_from_slice(frames);
    file.file().write_at(&[IoSlice::new(&blocks)], FRAMES_AT)?;
    recovery::seal(file.file(), header, scan)?;
    file.begin(disk, dir, header)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{
        disk::sim::Sim,
        log::tests::{DIR, open},
    };

    /// A header with such a capacity could not be read.
    #[test]
    fn no_segment_is_made_that_is_larger_than_one_may_be() {
        let max = *CAPACITIES.end();
        assert_eq!(capacity_for(0, 0), Some(BLOCK));
        assert_eq!(capacity_for(BLOCK - 3, 1), Some(2 * BLOCK));
        assert_eq!(capacity_for(max - 4, 1), Some(max));
        assert_eq!(capacity_for(max - 3, 1), None);
        let records = max / (frame::HEADER_BYTES as u64 + 4);
        assert!(capacity_for(records * frame::HEADER_BYTES as u64, records).is_some());
        assert_eq!(capacity_for((records + 1) * frame::HEADER_BYTES as u64, records + 1), None);
        assert_eq!(capacity_for(u64::MAX, u64::MAX), None);
    }

    /// Other segments were rewritten before it was noticed.
    #[test]
    fn a_log_beyond_repair_is_left_unchanged() {
        let sim = Sim::new(1);
        let log = open(&sim).unwrap();
        for n in 0..20u8 {
            log.append(&[n; 100]).unwrap();
        }
        log.close().unwrap();
        let first = Path::new(DIR).join(file::name(0));
        sim.damage(&first, |bytes| bytes[FRAMES_AT as usize + 3 * 128 + 50] ^= 1);
        let bytes = sim.dump()[&first].clone();
        let header = Header::decode(bytes[..].first_chunk().unwrap()).unwrap().header;
        let last = SegmentFile::prepare(&sim, Path::new(DIR), 1, 8192).unwrap();
        last.begin(&sim, Path::new(DIR), &Header { base: 100_000_000, ..header }).unwrap();
        let before = sim.dump();
        let repaired = repair_on(&sim, Path::new(DIR), None, &mut |_, _| ());
        assert!(matches!(repaired, Err(Error::Corrupt { .. })), "{repaired:?}");
        assert!(sim.dump() == before);
    }
}
