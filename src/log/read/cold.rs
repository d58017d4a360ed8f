//! Reading a sealed segment's file in order: a stretch of it is read at once, and each record is verified.

use super::record::{Ahead, Head};
use crate::{
    disk::{File, salvage},
    frame::{self, Frame, JSON, LOST},
    segment::{
        FRAMES_AT, Segment,
        sealed::{self, Sealed, SealedFile, Whereabouts},
    },
    sync::Arc,
};
use std::{io, ops::Range};

/// How much of a sealed file is read at once when it is read in order.
pub(super) const READ_BYTES: usize = 256 << 10;

/// A sealed segment's file, and the part of it that was read last.
pub(in crate::log) struct Cold {
    pub(super) file: Box<dyn File>,
    pub(super) segment: Arc<Segment>,
    pub(super) records: u32,
    words: u32,
    /// Bytes of the file from the word `run_at` on.
    run: Vec<u8>,
    run_at: u32,
    /// The parts of the run that the disk cannot read; they are filled with zeros.
    unreadable: Vec<Range<usize>>,
    /// The record that will probably be read next, and the word at which it begins.
    next: (u32, u32),
}

impl Cold {
    pub(super) fn new(file: Box<dyn File>, segment: Arc<Segment>, sealed: &Sealed) -> Self {
        let (records, words) = (sealed.records, sealed.words);
        Self {
            file,
            segment,
            records,
            words,
            run: Vec::new(),
            run_at: 0,
            unreadable: Vec::new(),
            next: (0, 0),
        }
    }

    /// The segment as it is read, once it is sealed.
    fn sealed(&self) -> Option<SealedFile<'_>> {
        let sealed = self.segment.sealed.get()?;
        Some(SealedFile { file: &*self.file, sealed, key: self.segment.key })
    }

    /// Returns what is known of a record before it is read.
    pub(super) fn peek(&mut self, record: u32) -> Ahead {
        let (words, key) = (self.words, self.segment.key);
        let head_at = |at: u32| {
            let in_run = at.checked_sub(self.run_at).and_then(|words| {
                let from = frame::in_bytes(words);
                sealed::head_in(self.run.get(from..from + frame::PEEK_BYTES)?, words, key, record, at)
            });
            in_run.or_else(|| sealed::head_at(&*self.file, words, key, record, at)).map(|head| (head, at))
        };
        let expected = (self.next.0 == record).then_some(self.next.1).and_then(head_at);
        let whereabouts = || self.sealed()?.whereabouts(record).ok();
        let found = match expected {
            Some(found) => Ok(found),
            None => match whereabouts() {
                Some(Whereabouts::Indexed(at)) => head_at(at).ok_or(frame::in_bytes(words)),
                Some(Whereabouts::Nowhere) | None => Err(0),
            },
        };
        let (head, at) = match found {
            Ok(found) => found,
            Err(cold_bytes) => return Ahead { hot: false, cold_bytes, head: None },
        };
        self.next = (record, at); // if this is wrong, reading detects it
        let time = self.segment.header.created + head.time;
        let json = head.flags & JSON != 0;
        let lost = head.flags & LOST != 0;
        let cold_bytes = frame::in_bytes(head.words);
        let known = Head { time, json, lost, length: head.length };
        Ahead { hot: false, cold_bytes, head: Some(known) }
    }

    /// Reads a record of this segment; returns `None` if it is damaged.
    pub(super) fn read(&mut self, record: u32) -> io::Result<Option<Frame<'_>>> {
        if self.next.0 != record || !self.fill()? {
            let Some(sealed) = self.sealed() else { return Ok(None) };
            let position = sealed.position_of(record)?;
            let Some(position) = position else { return Ok(None) };
            self.next = (record, position);
            if !self.fill()? {
                return Ok(None);
            }
        }
        let at = frame::in_bytes(self.next.1 - self.run_at);
        let frame = frame::decode(&self.run[at..], self.segment.key).map(|found| found.frame);
        if let Some(frame) = &frame {
            self.next = (record + 1, self.next.1 + frame.words());
        }
        Ok(frame)
    }

    /// Makes sure that the frame at `next` is in the run, and verifies; returns `false` if there is no such frame.
    fn fill(&mut self) -> io::Result<bool> {
        if self.is_in_run()? {
            return Ok(true);
        }
        let left = frame::in_bytes(self.words.saturating_sub(self.next.1));
        self.read_run(READ_BYTES.min(left))?;
        let needs = frame::peek_words(&self.run).map_or(0, frame::in_bytes);
        if needs > self.run.len() && needs <= left {
            self.read_run(needs)?;
        }
        self.run.shrink_to(READ_BYTES.max(needs)); // the memory of one large record is not kept
        self.is_in_run()
    }

    /// Reads `length` bytes from the frame at `next` on. An unreadable sector is an error for the records in it, and
    /// for no others.
    fn read_run(&mut self, length: usize) -> io::Result<()> {
        self.run.resize(length, 0);
        self.run_at = self.next.1;
        let at = FRAMES_AT + frame::in_bytes(self.run_at) as u64;
        let mut read = salvage::read(&*self.file, &mut self.run, at, true);
        if matches!(&read, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof) {
            // The file was cut short: what is left of it is read.
            read = self.file.len().and_then(|length| {
                let left = length.saturating_sub(at);
                self.run.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                salvage::read(&*self.file, &mut self.run, at, true)
            });
        }
        match read {
            Ok(unreadable) => self.unreadable = unreadable,
            Err(error) => {
                // Its old content belongs to another place.
                self.run.clear();
                self.unreadable.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether the frame at `next` is in the run and verifies.
    fn is_in_run(&self) -> io::Result<bool> {
        let (record, word) = self.next;
        let at = word.checked_sub(self.run_at).map(frame::in_bytes);
        let Some((at, rest)) = at.and_then(|at| Some((at, self.run.get(at..)?))) else { return Ok(false) };
        if let Some(found) = frame::decode(rest, self.segment.key) {
            return Ok(found.record == record);
        }
        let needs = frame::peek_words(rest).map_or(0, frame::in_bytes).max(frame::HEADER_BYTES);
        let overlaps = |bad: &Range<usize>| bad.start < at + needs && at < bad.end;
        if self.unreadable.iter().any(overlaps) {
            return Err(rustix::io::Errno::IO.into());
        }
        Ok(false)
    }
}
