//! The judgement of one segment: what state it is in, given the bytes of its file and what is known for certain. No
//! I/O.
//!
//! A frame that does not verify ends the log only if nothing at or after it was ever durable. Certain knowledge
//! decides, in this order, and is never contradicted by something that was merely not found:
//!
//! - A later segment was begun where this one ended, once everything before it was durable: that gives the number of
//!   records.
//! - The footer was written once all frames were durable: likewise.
//! - The file was cut to size, which happens after that: then whatever its frames lack is damaged.
//! - A frame that verifies, anywhere after the break, says how far the log was durable when it was written; the search
//!   for such frames is exact.
//! - The mark of a clean close says the same.
//!
//! If none of these speaks for a record, it was never durable, and what is left of it is the torn end of a write. The
//! exception is a file that the disk could not read completely: what was not read is not known, so nothing is cut off.

use crate::{
    chunk::ChunkPosition,
    disk::BLOCK,
    frame::{self, Key, LOST, MORE},
    segment::{
        FRAMES_AT, file,
        header::Header,
        region::Region,
        scan::{self, Scan},
        sealed::{self, Footer},
        search,
        survivors::Survivors,
    },
};

/// What state a segment is in.
pub(in crate::log) enum State {
    /// It has its index and footer; its frames were read only if the survey was deep.
    Sealed(Footer),
    /// All its frames are there, but index or footer is missing or wrong, or the file was not cut to size. All of that
    /// can be derived.
    Unfinished(Scan),
    /// The last segment, not sealed: its frames' region as the file has it, and the part of it that verifies.
    Active(Region, Scan),
    /// Records are damaged.
    Damaged(Wreck),
}

/// What is known about a segment besides its frames.
pub(super) struct Known {
    /// Where its header is from. If it is not its own, the file's full length is not known.
    pub(super) source: HeaderSource,
    /// The footer at the end of the file, if it verifies.
    pub(super) footer: Option<Footer>,
    /// How many records there are from this segment's base to that of the next one; `None` if this is the last segment.
    pub(super) records_before_next: Option<u64>,
}

/// Where a segment's header comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum HeaderSource {
    /// Its own file.
    Own {
        copies: Copies,
        /// How many records were durable at the last clean close; `None` if that cannot be read.
        mark: Option<u32>,
    },
    /// No copy in its file verifies: it was reconstructed from the other segments' headers and the file's name.
    Reconstructed {
        /// Whether that is because the disk cannot read it.
        unreadable: bool,
        /// Whether its frames can be verified: they may need a secret, which no other header has.
        has_key: bool,
    },
}

/// The state of a header's copies, if at least one of them verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum Copies {
    Whole,
    /// One does not verify: opening rewrites the header.
    Damaged,
    /// A sector of the header's block cannot be read. The block is not rewritten, because the mark may be in that
    /// sector.
    Unreadable,
}

impl HeaderSource {
    /// That of a segment which this opening has written.
    pub(super) const NEW: Self = Self::Own { copies: Copies::Whole, mark: Some(0) };

    /// How many records were durable at the last clean close, as far as the header says; `None` if that cannot be read.
    pub(in crate::log) fn mark(self) -> Option<u32> {
        match self {
            Self::Own { mark, .. } => mark,
            Self::Reconstructed { .. } => Some(0),
        }
    }

    pub(in crate::log) fn is_own(self) -> bool {
        matches!(self, Self::Own { .. })
    }
}

/// A damaged segment, and which of its records can still be read.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::log) struct Wreck {
    pub(in crate::log) survivors: Survivors,
    pub(in crate::log) words: u32,
    /// How far its frames continue from the start without a break.
    pub(super) whole: ChunkPosition,
    /// It has frames of records that belong to the next segment.
    pub(super) excess: bool,
    /// The disk could not read the header, or something after the break.
    pub(super) unreadable: bool,
    pub(super) rest: Rest,
    /// How many of the survivors are marks of lost records.
    pub(super) lost: u32,
    /// The last survivor, and the CRC of its frame.
    last_survivor: Option<(u32, u32)>,
}

impl Wreck {
    /// The CRC of the last record's frame; `None` if that record is missing.
    pub(super) fn last_crc(&self) -> Option<u32> {
        let (last, crc) = self.last_survivor?;
        (last + 1 == self.survivors.len()).then_some(crc)
    }

    /// If its last records are missing, and it may have none after those that are there: the number of these, and the CRC of
    /// the last one.
    pub(super) fn end_in_file(&self) -> Option<(u32, u32)> {
        let (last, crc) = self.last_survivor?;
        (self.rest == Rest::None && last + 1 < self.survivors.len()).then_some((last + 1, crc))
    }

    /// The number of records up to the last one that is there.
    pub(super) fn in_file(&self) -> u32 {
        self.last_survivor.map_or(0, |(last, _)| last + 1)
    }

    /// The records after the first ones are not this segment's.
    pub(super) fn ends_at(&mut self, records: u32) {
        self.survivors.extend_to(records);
        self.rest = Rest::None;
    }
}

/// What is known about records after the last known one of a damaged segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// There were none.
    None,
    /// There may have been some; how many is not known.
    Unknown,
    /// Some are missing with the end of the file; how many is not known.
    CutOff,
}

impl Rest {
    /// Why it is not known whether there were more; `None` if there were none.
    pub(super) fn reason(self, unreadable: bool, has_mark: bool) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Unknown if unreadable => {
                Some("the disk cannot read all of the file; how many records it holds is not known")
            }
            Self::Unknown if !has_mark => {
                Some("the disk cannot read how many records were durable at the last clean close")
            }
            Self::Unknown => Some("without its header it is not known whether it holds more records"),
            Self::CutOff => {
                Some("the file is shorter than its frames; how many records are missing is not known")
            }
        }
    }
}

/// Judges a segment. `bytes` is its file from the first frame on. Also returns how many of its records are marks of lost
/// ones.
pub(super) fn judge(header: &Header, known: &Known, bytes: Region) -> (State, u32) {
    let frames_end =
        known.footer.map_or(bytes.len(), |footer| frame::in_bytes(footer.words).min(bytes.len()));
    let certain = records_for_certain(known, frames_end);
    let scan = scan::scan_with(&bytes[..frames_end], header.key(), certain.unwrap_or(0));
    // The bytes after the last record may be torn, or durable and damaged: only the mark could tell.
    let unmarked = known.source.mark().is_none()
        && known.records_before_next.is_none()
        && bytes[frame::in_bytes(scan.words)..].iter().any(|&byte| byte != 0);
    let unreadable = matches!(known.source, HeaderSource::Reconstructed { unreadable: true, .. })
        || unmarked
        || bytes.unreadable().iter().any(|bad| bad.end > frame::in_bytes(scan.words));
    let lost = scan.lost;
    let evidence = Evidence { header, known, bytes, frames_end, scan, unreadable };
    let state = match certain {
        Some(all) => evidence.judge_known(all),
        None => evidence.judge_by_frames(),
    };
    let lost = if let State::Damaged(wreck) = &state { wreck.lost } else { lost };
    (state, lost)
}

/// What a segment is judged by.
struct Evidence<'a> {
    header: &'a Header,
    known: &'a Known,
    bytes: Region,
    /// Where its frames end at the latest.
    frames_end: usize,
    /// Its whole frames from the first one on.
    scan: Scan,
    unreadable: bool,
}

impl Evidence<'_> {
    /// Judges a segment that has exactly `all` records.
    fn judge_known(mut self, all: u32) -> State {
        if self.scan.records() > all {
            let scan = std::mem::take(&mut self.scan).first(&self.bytes, self.header.key(), all);
            let mut wreck = wreck(self.frames(), &scan, &search::Later::default(), all);
            wreck.excess = true;
            return State::Damaged(wreck);
        }
        if self.scan.records() < all {
            let mut later = self.later();
            later.frames.retain(|(record, _)| *record < all);
            let wreck = wreck(self.frames(), &self.scan, &later, all);
            return State::Damaged(Wreck { unreadable: self.unreadable, ..wreck });
        }
        match self.known.footer.filter(|footer| footer.records == all && footer.words == self.scan.words) {
            Some(footer) if index_verifies(&self.bytes, &footer) => State::Sealed(footer),
            _ => State::Unfinished(self.scan),
        }
    }

    /// Judges a segment when only its own bytes say how many records it has.
    fn judge_by_frames(self) -> State {
        let Self { header, known, ref bytes, ref scan, unreadable, .. } = self;
        let is_reconstructed = !known.source.is_own();
        let is_short = !is_reconstructed && FRAMES_AT + (bytes.len() as u64) < file::length(header.capacity);
        let is_last = known.records_before_next.is_none();
        if Footer::ends(bytes, header, scan)
            || is_short && is_last && cut_to(bytes, scan, header.key(), known.source.mark())
        {
            return State::Unfinished(self.scan);
        }
        let later = self.later();
        let mut durable = known.source.mark().unwrap_or(0).max(later.durable);
        if is_short || !is_last {
            // All frames found were durable; nothing is known about what is missing at the end.
            durable = durable.max(later.frames.last().map_or(0, |(record, _)| record + 1));
        }
        let rest = match is_short && is_last {
            true => Rest::CutOff,
            false if unreadable || is_reconstructed && is_last => Rest::Unknown,
            false => Rest::None,
        };
        // Where the file was cut within a batch, its records up to there were durable all the same.
        let scan = scan::scan_with(self.frames(), header.key(), durable);
        if durable > scan.records() || rest != Rest::None {
            let wreck = wreck(self.frames(), &scan, &later, durable);
            return State::Damaged(Wreck { unreadable, rest, ..wreck });
        }
        if is_last { State::Active(self.bytes, scan) } else { State::Unfinished(scan) }
    }

    /// The bytes that may be frames.
    fn frames(&self) -> &[u8] {
        &self.bytes[..self.frames_end]
    }

    /// The frames that are found after the whole ones.
    fn later(&self) -> search::Later {
        search::frames_from(self.frames(), self.header.key(), self.scan.words, self.scan.records())
    }
}

/// How many records the segment has, if that is known for certain and its bytes can hold that many.
fn records_for_certain(known: &Known, bytes: usize) -> Option<u32> {
    let by_footer = known.footer.map(|footer| u64::from(footer.records));
    // If a whole segment is missing in between, the next one starts farther away than this one can reach.
    let reach = (bytes / frame::HEADER_BYTES) as u64;
    let by_next = known.records_before_next.filter(|&records| records <= reach);
    let least = [by_footer, by_next].into_iter().flatten().min()?;
    u32::try_from(least).ok()
}

/// Whether the file looks as sealing exactly these frames would have left it: it has that length, and after them come zeros
/// up to the index, and no further record. A file that was cut within a batch, or within a record, may have that length.
fn cut_to(bytes: &[u8], scan: &Scan, key: Key, mark: Option<u32>) -> bool {
    let (records, end) = (scan.records(), frame::in_bytes(scan.words));
    let index = (sealed::index_at(scan.words) - FRAMES_AT) as usize;
    let next = || bytes.get(end..).and_then(|next| frame::head(next, key));
    records > 0
        && FRAMES_AT + bytes.len() as u64 == sealed::footer_at(records, scan.words) + BLOCK
        && mark.is_none_or(|mark| mark <= records)
        && bytes.get(end..index).is_some_and(|padding| padding.iter().all(|&byte| byte == 0))
        && next().is_none_or(|next| next.record != records)
}

fn index_verifies(bytes: &[u8], footer: &Footer) -> bool {
    let index = bytes.get((sealed::index_at(footer.words) - FRAMES_AT) as usize..).unwrap_or_default();
    index.get(..footer.records as usize * 4).is_some_and(|index| crc32c::crc32c(index) == footer.index_crc)
}

/// What is left of a segment that had `durable` durable records, given its bytes and the frames found after the break.
pub(super) fn wreck(frames: &[u8], scan: &Scan, later: &search::Later, durable: u32) -> Wreck {
    let mut survivors = Survivors::all(&scan.positions);
    let (mut words, mut lost) = (scan.words, scan.lost);
    let frame_at = |word: u32| frames.get(frame::in_bytes(word)..).and_then(frame::parse);
    let end = later_end(later, durable.max(scan.records()), |word| {
        frame_at(word).is_some_and(|frame| frame.flags & MORE == 0)
    });
    for &(record, word) in later.frames.iter().take_while(|(record, _)| *record < end) {
        if record < scan.records() {
            continue; // the scan has come farther than the search began
        }
        survivors.extend_to(record + 1);
        survivors.set(record, word);
        words = word + frame_at(word).map_or(0, |frame| frame.words());
        lost += u32::from(frame_at(word).is_some_and(|frame| frame.flags & LOST != 0));
    }
    survivors.extend_to(end);
    let whole = ChunkPosition { records: scan.records(), words: scan.words };
    let survivor = survivors.iter().zip(0..).filter_map(|(word, record)| Some((record, word?))).last();
    let last_survivor = survivor.and_then(|(record, word)| {
        let frame = frames.get(frame::in_bytes(word)..)?;
        Some((record, u32::from_le_bytes(*frame.first_chunk()?)))
    });
    Wreck { survivors, words, whole, excess: false, unreadable: false, rest: Rest::None, lost, last_survivor }
}

/// The end of a log that was durable up to `durable`: after the last whole batch that follows without a gap, as on an
/// undamaged disk. Nothing after a gap was ever acknowledged.
fn later_end(later: &search::Later, durable: u32, ends_batch: impl Fn(u32) -> bool) -> u32 {
    let (mut end, mut next) = (durable, durable);
    for &(record, word) in later.frames.iter().filter(|(record, _)| *record >= durable) {
        if record != next {
            break;
        }
        next += 1;
        if ends_batch(word) {
            end = next;
        }
    }
    end
}
