//! Checks the file of one sealed segment: its header, its frames in order, its index and its footer. Reads what the device
//! has, past the page cache, in runs of 1 MiB.
//!
//! What always holds: only one run, and a record that does not fit into it, are in memory, as long as all is well. Only
//! if a frame does not verify, or cannot be read, all frames are read again and searched, to find out which records are
//! damaged.

use super::{
    FRAMES_AT,
    header::Header,
    region::Region,
    sealed::{Footer, Searched, footer_at, index_at},
};
use crate::{
    disk::{Aligned, BLOCK, File, salvage},
    frame::{self, Key},
};
use std::{io, ops::Range};

/// How many bytes are read at once.
const READ_BYTES: usize = 1 << 20;

pub(crate) const HEADER_COPY_DAMAGED: &str =
    "one of the header's two copies does not verify; opening rewrites it";
pub(crate) const HEADER_PART_UNREADABLE: &str =
    "the disk cannot read all of the segment's header; the readable part is sufficient";
const UNREADABLE_PART: &str = "the disk cannot read some of its bytes; no record is damaged";

/// Why records are missing.
pub(crate) fn missing_because(unreadable: bool) -> &'static str {
    if unreadable { "the disk cannot read it" } else { "no frame there verifies" }
}

/// What the file of a sealed segment must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) header: Header,
    pub(crate) records: u32,
    /// Words that the frames take.
    pub(crate) words: u32,
    /// Whether the log knows already that records are damaged: then there may be no index and no footer.
    pub(crate) is_damaged: bool,
}

/// What is wrong with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The records that are damaged; none if only what describes them is wrong.
    pub(crate) records: Range<u32>,
    pub(crate) reason: &'static str,
    /// Whether the disk cannot read it.
    pub(crate) unreadable: bool,
}

impl Finding {
    /// How many records are damaged.
    pub(crate) fn count(&self) -> u32 {
        self.records.end - self.records.start
    }
}

/// The result of a check.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// `None` if the check was stopped.
    pub(crate) findings: Option<Vec<Finding>>,
}

impl Checked {
    /// There is no file.
    pub(crate) fn missing(expected: &Expected) -> Self {
        let records = 0..expected.records;
        let reason = "the segment's file is missing";
        Self { bytes: 0, findings: Some(vec![Finding { records, reason, unreadable: false }]) }
    }
}

/// Checks a file. Calls `pace` with the bytes of each run, and with 0 after each attempt to read a block of a run that
/// failed. Stops if it returns `false`.
///
/// # Errors
/// Errors that say nothing about what is on the disk.
pub(crate) fn check(
    file: &dyn File,
    expected: &Expected,
    pace: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Checked> {
    let mut checker = Checker { file, expected, pace, bytes: 0, findings: Vec::new() };
    let findings = match checker.check() {
        Ok(()) => Some(checker.findings),
        Err(Ended::Stopped) => None,
        Err(Ended::Failed(error)) => return Err(error),
    };
    Ok(Checked { bytes: checker.bytes, findings })
}

/// Why a check ends early.
enum Ended {
    /// `pace` said so.
    Stopped,
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

struct Checker<'a> {
    file: &'a dyn File,
    expected: &'a Expected,
    pace: &'a mut dyn FnMut(u64) -> bool,
    bytes: u64,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn check(&mut self) -> Result<(), Ended> {
        let length = self.file.len()?;
        self.check_header(length)?;
        if self.expected.is_damaged {
            return self.search();
        }
        let index_crc = if length >= index_at(self.expected.words) { self.check_frames()? } else { None };
        if index_crc.is_none() {
            self.search()?;
        }
        self.check_index_and_footer(length, index_crc)
    }

    /// Notes a finding that damages no record.
    fn note(&mut self, reason: &'static str, unreadable: bool) {
        self.findings.push(Finding { records: 0..0, reason, unreadable });
    }

    /// Reads a run; returns which parts of it cannot be read.
    fn read(&mut self, run: &mut [u8], position: u64) -> Result<Vec<Range<usize>>, Ended> {
        let mut bad = Vec::new();
        if !salvage::readable(self.file.read_once(run, position))? {
            // Block by block, since a drive may take seconds for each attempt at a bad sector.
            for (block, at) in run.chunks_mut(BLOCK as usize).zip((0..).step_by(BLOCK as usize)) {
                let in_block = salvage::read(self.file, block, position + at as u64, false)?;
                bad.extend(in_block.into_iter().map(|bad| at + bad.start..at + bad.end));
                self.pass(0)?;
            }
        }
        self.bytes += run.len() as u64;
        self.pass(run.len() as u64)?;
        Ok(bad)
    }

    fn pass(&mut self, bytes: u64) -> Result<(), Ended> {
        if (self.pace)(bytes) { Ok(()) } else { Err(Ended::Stopped) }
    }

    /// Reads a block, if the file has it.
    fn read_block(&mut self, length: u64, position: u64) -> Result<Option<Block>, Ended> {
        if length < position + BLOCK {
            return Ok(None);
        }
        let mut memory = Aligned::new(BLOCK as usize)?;
        let bad = self.read(&mut memory, position)?;
        let mut bytes = [0; BLOCK as usize];
        bytes.copy_from_slice(&memory);
        Ok(Some(Block { bytes, is_whole: bad.is_empty() }))
    }

    fn check_header(&mut self, length: u64) -> Result<(), Ended> {
        let block = self.read_block(length, 0)?;
        let unreadable = block.as_ref().is_some_and(|block| !block.is_whole);
        let decoded = block.and_then(|block| Header::decode(&block.bytes).ok());
        match decoded.filter(|decoded| decoded.header == self.expected.header) {
            Some(_) if unreadable => self.note(HEADER_PART_UNREADABLE, true),
            Some(decoded) if !decoded.whole => {
                self.note(HEADER_COPY_DAMAGED, false);
            }
            Some(_) => {}
            None if unreadable => self.note("the segment's header cannot be read", true),
            None => self.note("the segment's header does not verify", false),
        }
        Ok(())
    }

    /// Verifies all frames in order. Returns the CRC of the index that leads to them, or `None` if one does not verify, or
    /// cannot be read.
    fn check_frames(&mut self) -> Result<Option<u32>, Ended> {
        let end = (index_at(self.expected.words) - FRAMES_AT) as usize;
        let mut walk = Walk::new(self.expected);
        // A part of the frames, from byte `at` of them on, which begins with a block.
        let (mut held, mut length, mut at) = (Aligned::new(READ_BYTES.min(end))?, 0, 0);
        while walk.record < walk.records {
            let next = at + length;
            let run = READ_BYTES.min(end - next);
            if run == 0 {
                return Ok(None);
            }
            if held.len() < length + run {
                // At once for all of a large record, so that it is not copied for each run of it.
                let begun = frame::in_bytes(walk.word) - at;
                let words = frame::peek_words(&held[begun..length]).unwrap_or(0);
                let record = (begun + frame::in_bytes(words)).next_multiple_of(BLOCK as usize).min(end - at);
                held = copy(&held[..length], record.max(length + run))?;
            }
            if !self.read(&mut held[length..length + run], FRAMES_AT + next as u64)?.is_empty() {
                return Ok(None);
            }
            length += run;
            if !walk.go_on(&held[..length], at) {
                return Ok(None);
            }
            // What is left of this part is the beginning of a frame, and what precedes that in its block.
            let passed = ((frame::in_bytes(walk.word) - at) / BLOCK as usize * BLOCK as usize).min(length);
            if held.len() > 2 * READ_BYTES && length - passed <= READ_BYTES {
                held = copy(&held[passed..length], 2 * READ_BYTES)?; // the memory of a large record is not kept
            } else {
                held.copy_within(passed..length, 0);
            }
            (length, at) = (length - passed, at + passed);
        }
        Ok((walk.word == walk.words).then_some(walk.index_crc))
    }

    /// Searches all frames for those that verify, and notes which records have none.
    fn search(&mut self) -> Result<(), Ended> {
        let &Expected { header, records, words, is_damaged } = self.expected;
        // With the zeros after them. What lies beyond the end of a file that was cut short is missing. Where the frames of a
        // damaged segment end is not known.
        let end = if is_damaged { u64::MAX } else { index_at(words) };
        let end = self.file.len()?.min(end);
        let frames = Region::read_with(end, READ_BYTES, |run, position| self.read(run, position))?;
        let looked = Searched::among(&frames, records, header.key());
        let unreadable = !frames.unreadable().is_empty();
        let missing = looked.missing();
        if unreadable && missing.is_empty() {
            self.note(UNREADABLE_PART, true);
        }
        let reason = missing_because(unreadable);
        let findings = missing.into_iter().map(|records| Finding { records, reason, unreadable });
        self.findings.extend(findings);
        Ok(())
    }

    /// Checks the index against the frames, if those are whole, or else against the footer.
    fn check_index_and_footer(&mut self, length: u64, of_frames: Option<u32>) -> Result<(), Ended> {
        let &Expected { header, records, words, .. } = self.expected;
        let block = self.read_block(length, footer_at(records, words))?;
        let unreadable = block.as_ref().is_some_and(|block| !block.is_whole);
        let footer = block.and_then(|block| Footer::at_end(&block.bytes, length, &header));
        let counted = footer.filter(|footer| footer.records == records && footer.words == words);
        let footer = counted.filter(|footer| of_frames.is_none_or(|crc| crc == footer.index_crc));
        match footer {
            Some(_) if unreadable => self.note(UNREADABLE_PART, true),
            Some(_) => {}
            None => {
                let reason = "the footer is missing, wrong or cannot be read; opening or repair rewrites it";
                self.note(reason, unreadable);
            }
        }
        let Some(crc) = of_frames.or(footer.map(|footer| footer.index_crc)) else { return Ok(()) };
        let (is_right, unreadable) = self.check_index(length, crc)?;
        if !is_right {
            self.note("the index is wrong or cannot be read; repair rewrites it", unreadable);
        }
        Ok(())
    }

    /// Whether the index has this CRC; and whether a part of it cannot be read.
    fn check_index(&mut self, length: u64, crc: u32) -> Result<(bool, bool), Ended> {
        let &Expected { records, words, .. } = self.expected;
        let (begin, end) = (index_at(words), footer_at(records, words));
        if length < end {
            return Ok((false, false));
        }
        let mut left = records as usize * 4; // without the zeros after it
        let mut run = Aligned::new(READ_BYTES.min((end - begin) as usize))?;
        let mut read_crc = 0;
        for position in (begin..end).step_by(READ_BYTES) {
            let run = &mut run[..READ_BYTES.min((end - position) as usize)];
            if !self.read(run, position)?.is_empty() {
                return Ok((false, true));
            }
            let entries = &run[..left.min(run.len())];
            read_crc = crc32c::crc32c_append(read_crc, entries);
            left -= entries.len();
        }
        Ok((read_crc == crc, false))
    }
}

/// One block of a file.
struct Block {
    bytes: [u8; BLOCK as usize],
    /// Whether all of it could be read.
    is_whole: bool,
}

/// Memory of at least `length` bytes that begins with these.
fn copy(bytes: &[u8], length: usize) -> io::Result<Aligned> {
    let mut memory = Aligned::new(length)?;
    memory[..bytes.len()].copy_from_slice(bytes);
    Ok(memory)
}

/// A way through the frames, from one to the next.
struct Walk {
    key: Key,
    records: u32,
    words: u32,
    /// The next record.
    record: u32,
    /// The word where its frame must begin.
    word: u32,
    /// The CRC of the index of all records before it.
    index_crc: u32,
}

impl Walk {
    fn new(expected: &Expected) -> Self {
        let &Expected { header, records, words, .. } = expected;
        Self { key: header.key(), records, words, record: 0, word: 0, index_crc: 0 }
    }

    /// Verifies the frames that are whole in `bytes`, which begin with byte `at` of all frames. `false` if one of them
    /// is not what it must be.
    fn go_on(&mut self, bytes: &[u8], at: usize) -> bool {
        while self.record < self.records {
            let rest = &bytes[frame::in_bytes(self.word) - at..];
            let Some(words) = frame::peek_words(rest) else { return true };
            let is_other = rest.len() >= frame::PEEK_BYTES
                && frame::head(rest, self.key).is_none_or(|head| head.record != self.record);
            if is_other || words > u64::from(self.words - self.word) {
                return false;
            }
            if rest.len() < frame::in_bytes(words) {
                return true;
            }
            let verified = frame::decode(rest, self.key).is_some_and(|found| found.record == self.record);
            if !verified {
                return false;
            }
            self.index_crc = crc32c::crc32c_append(self.index_crc, &self.word.to_le_bytes());
            (self.record, self.word) = (self.record + 1, self.word + words as u32);
        }
        true
    }
}
