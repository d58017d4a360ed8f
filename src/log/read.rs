//! Reading: load the frontier once; everything below it is immutable, so the rest takes no lock and never waits.
//!
//! A recent record is read from its chunk, which the reader keeps alive meanwhile. Older records are read from the
//! sealed file, and verified: if one does not verify, that read returns an error.

use super::{Error, Shared, Visible, chain::Chain};
use crate::{
    chunk::Chunk,
    disk::{File, salvage},
    frame::{self, Frame, JSON, LOST, WORD},
    segment::{
        FRAMES, Segment, file,
        sealed::{self, Sealed, Whereabouts},
    },
    sync::Arc,
};
use std::{
    collections::VecDeque,
    io,
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

/// A record, kept in memory as long as this value exists: a recent record by its chunk, without a copy.
#[derive(Clone)]
pub struct Record {
    offset: u64,
    time: u64,
    json: bool,
    lost: bool,
    value: RecordSource,
}

#[derive(Clone)]
enum RecordSource {
    Hot(Arc<Chunk>, u32),
    Cold(Vec<u8>),
}

impl Record {
    /// The record's offset.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When the record was appended, in milliseconds since 1970, as known at most one commit earlier. Times of records
    /// that different threads append at the same moment may be slightly out of order; and times go back if the clock is
    /// set back by more than 5 s.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Whether the record was appended as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether the record was lost to damage, and [`repair`](crate::repair) has marked it so. Then its value is empty, and
    /// its time is that of the record before it in its segment.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The bytes that were appended.
    pub fn value(&self) -> &[u8] {
        match &self.value {
            RecordSource::Hot(chunk, record) => chunk.frame(*record).map_or(&[], |frame| frame.value),
            RecordSource::Cold(value) => value,
        }
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offset, time, .. } = self;
        f.debug_struct("Record")
            .field("offset", offset)
            .field("time", time)
            .field("value", &self.value())
            .finish()
    }
}

/// A record that a [`Reader`] lends until it reads the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The record's offset.
    pub offset: u64,
    /// See [`Record::time`].
    pub time: u64,
    /// Whether the record was appended as JSON.
    pub json: bool,
    /// See [`Record::is_lost`].
    pub lost: bool,
    /// The bytes that were appended.
    pub value: &'a [u8],
    /// The extension block that a producer has put before the value.
    pub(crate) extension: &'a [u8],
}

#[cfg(all(test, feature = "server"))]
impl<'a> RecordRef<'a> {
    pub(crate) fn new(offset: u64, time: u64, json: bool, value: &'a [u8]) -> Self {
        Self { offset, time, json, lost: false, value, extension: &[] }
    }
}

/// What is known of a record before it is read. None of it is verified.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "the server asks"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Whether the record is in memory.
    pub(crate) hot: bool,
    /// The bytes that are read from the disk for it: those of its frame, or of all frames of its segment if it must be
    /// searched for. 0 if it is in memory, or known to be damaged.
    pub(crate) cold_bytes: usize,
    /// What its header says; `None` if that is unclear, or the record is damaged.
    pub(crate) head: Option<Head>,
}

/// A record without its value.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "the server asks"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) time: u64,
    pub(crate) json: bool,
    /// See [`Record::is_lost`].
    pub(crate) lost: bool,
    /// The length of the value in bytes.
    pub(crate) length: usize,
}

#[cfg(feature = "server")]
impl Ahead {
    /// The most bytes that the value can have.
    pub(crate) fn length(&self) -> usize {
        self.head.map_or(self.cold_bytes, |head| head.length)
    }
}

#[cfg(feature = "server")]
impl RecordRef<'_> {
    pub(crate) fn head(&self) -> Head {
        Head { time: self.time, json: self.json, lost: self.lost, length: self.value.len() }
    }
}

#[cfg(feature = "server")]
impl Record {
    pub(crate) fn head(&self) -> Head {
        Head { time: self.time, json: self.json, lost: self.lost, length: self.value().len() }
    }
}

/// What a reader finds: the record, and its chunk if it is a recent one.
struct Step<'a> {
    record: RecordRef<'a>,
    hot: Option<(&'a Arc<Chunk>, u32)>,
}

/// How much of a sealed file is read at once when it is read in order.
const READ_BYTES: usize = 256 << 10;

/// A sealed segment's file, and the part of it that was read last.
pub(super) struct Cold {
    file: Box<dyn File>,
    segment: Arc<Segment>,
    records: u32,
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
    fn new(file: Box<dyn File>, segment: Arc<Segment>, sealed: &Sealed) -> Self {
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

    /// Returns what is known of a record before it is read.
    fn peek(&mut self, record: u32) -> Ahead {
        let (words, key) = (self.words, self.segment.key);
        let head_at = |at: u32| {
            let in_run = at.checked_sub(self.run_at).and_then(|words| {
                let from = words as usize * WORD;
                sealed::head_in(self.run.get(from..from + frame::HEAD)?, words, key, record, at)
            });
            in_run.or_else(|| sealed::head_at(&*self.file, words, key, record, at)).map(|head| (head, at))
        };
        let expected = (self.next.0 == record).then_some(self.next.1).and_then(head_at);
        let whereabouts = || sealed::whereabouts(&*self.file, self.segment.sealed.get()?, key, record).ok();
        let found = match expected {
            Some(found) => Ok(found),
            None => match whereabouts() {
                Some(Whereabouts::Indexed(at)) => head_at(at).ok_or(words as usize * WORD),
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
        let cold_bytes = head.words as usize * WORD;
        let known = Head { time, json, lost, length: head.length };
        Ahead { hot: false, cold_bytes, head: Some(known) }
    }

    /// Reads a record of this segment; returns `None` if it is damaged.
    fn read(&mut self, record: u32) -> io::Result<Option<Frame<'_>>> {
        if self.next.0 != record || !self.fill()? {
            let Some(sealed) = self.segment.sealed.get() else { return Ok(None) };
            let key = self.segment.key;
            let position = sealed::position_of(&*self.file, sealed, key, record)?;
            let Some(position) = position else { return Ok(None) };
            self.next = (record, position);
            if !self.fill()? {
                return Ok(None);
            }
        }
        let at = (self.next.1 - self.run_at) as usize * WORD;
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
        let left = self.words.saturating_sub(self.next.1) as usize * WORD;
        self.read_run(READ_BYTES.min(left))?;
        let needs = frame::peek_words(&self.run).map_or(0, |words| words as usize * WORD);
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
        let at = FRAMES + u64::from(self.run_at) * WORD as u64;
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
        let at = word.checked_sub(self.run_at).map(|words| words as usize * WORD);
        let Some((at, rest)) = at.and_then(|at| Some((at, self.run.get(at..)?))) else { return Ok(false) };
        if let Some(found) = frame::decode(rest, self.segment.key) {
            return Ok(found.record == record);
        }
        let needs = frame::peek_words(rest).map_or(0, |words| words as usize * WORD).max(frame::HEADER);
        let overlaps = |bad: &Range<usize>| bad.start < at + needs && at < bad.end;
        if self.unreadable.iter().any(overlaps) {
            return Err(rustix::io::Errno::IO.into());
        }
        Ok(false)
    }
}

/// Where a reader is.
pub(super) enum ReadSource {
    Hot(Arc<Segment>, Arc<Chunk>),
    Cold(Box<Cold>),
}

impl Shared {
    /// Returns the source of a visible offset.
    fn read_source(&self, offset: u64) -> Result<ReadSource, Error> {
        loop {
            if let Some(source) = self.source_in(&self.chain.load_full(), offset)? {
                return Ok(source);
            }
        }
    }

    /// Where the record at `offset` is read from, by these segments; `None` if they must be looked up again.
    pub(super) fn source_in(&self, chain: &Arc<Chain>, offset: u64) -> Result<Option<ReadSource>, Error> {
        let trimmed = |first| Error::Trimmed { offset, first };
        let Some(segment) = chain.locate(offset) else { return Err(trimmed(chain.first())) };
        // A trimmed segment's `next` is the last segment, so it seems to hold the offsets of all those in between.
        let is_old = || !Arc::ptr_eq(chain, &self.chain.load_full());
        let is_past = |records: u32| u64::from(records) <= offset - segment.base();
        if let Some(chunk) = segment.chunk.load_full() {
            if chunk.end().is_some_and(|end| is_past(end.records)) && is_old() {
                return Ok(None);
            }
            return Ok(Some(ReadSource::Hot(segment, chunk)));
        }
        // Chunks are released only after sealing.
        let Some(sealed) = segment.sealed.get() else { return Ok(None) };
        if is_past(sealed.records) {
            // Or else there is a gap between segments.
            return if is_old() { Ok(None) } else { Err(Error::Damaged { offset }) };
        }
        let path = self.dir.join(file::name(segment.base()));
        let opened = self.env.disk.open(&path, false);
        self.check_not_displaced()?;
        match opened {
            Ok(file) => Ok(Some(ReadSource::Cold(Box::new(Cold::new(file, Arc::clone(&segment), sealed))))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let first = self.chain.load().first();
                Err(if offset < first { trimmed(first) } else { Error::Damaged { offset } })
            }
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    pub(super) fn read(&self, offset: u64) -> Result<Option<Record>, Error> {
        if offset >= self.visible().get() {
            return Ok(None);
        }
        self.record(&self.read_source(offset)?, offset).map(Some)
    }

    /// Whether reading `offset` needs no disk access, because the record is in memory or not visible yet.
    pub(super) fn is_in_memory(&self, offset: u64) -> bool {
        let in_chunk = |segment: Arc<Segment>| segment.chunk.load_full().is_some();
        offset >= self.visible().get() || self.chain.load().locate(offset).is_none_or(in_chunk)
    }

    /// Reads a single record from its source.
    fn record(&self, source: &ReadSource, offset: u64) -> Result<Record, Error> {
        let cold = match source {
            ReadSource::Hot(segment, chunk) => {
                let record = (offset - segment.base()) as u32;
                let frame = chunk.frame(record).ok_or(Error::Damaged { offset })?;
                let time = segment.header.created + frame.time;
                let (json, lost) = (frame.flags & JSON != 0, frame.flags & LOST != 0);
                let value = RecordSource::Hot(Arc::clone(chunk), record);
                return Ok(Record { offset, time, json, lost, value });
            }
            ReadSource::Cold(cold) => cold,
        };
        let path = || self.dir.join(file::name(cold.segment.base()));
        let Some(sealed) = cold.segment.sealed.get() else { return Err(Error::Damaged { offset }) };
        let record = (offset - cold.segment.base()) as u32;
        let mut buf = Vec::new();
        let found = sealed::read_record(&*cold.file, sealed, cold.segment.key, record, &mut buf)
            .map_err(|error| cannot_read(offset, "read", &path(), error))?;
        let Frame { time, flags, value, body, .. } = found.ok_or(Error::Damaged { offset })?;
        let (length, json, lost) = (value.len(), flags & JSON != 0, flags & LOST != 0);
        let before = frame::HEADER + body.len() - length;
        buf.drain(..before); // the frame is reduced to its value, in place
        buf.truncate(length);
        let time = cold.segment.header.created + time;
        Ok(Record { offset, time, json, lost, value: RecordSource::Cold(buf) })
    }

    /// See [`Log::next_readable`](super::Log::next_readable).
    pub(super) fn next_readable(&self, mut offset: u64) -> Result<u64, Error> {
        loop {
            if offset >= self.visible().get() {
                return Ok(offset);
            }
            let cold = match self.read_source(offset) {
                Ok(ReadSource::Hot(..)) => return Ok(offset),
                Ok(ReadSource::Cold(cold)) => cold,
                Err(Error::Trimmed { first, .. }) => {
                    offset = first.max(offset);
                    continue;
                }
                // No segment has it, or the segment has no file.
                Err(Error::Damaged { .. }) => {
                    offset = self.chain.load_full().begins_after(offset).unwrap_or(self.visible().get());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (base, key) = (cold.segment.base(), cold.segment.key);
            let Some(sealed) = cold.segment.sealed.get() else { return Ok(offset) };
            let next = sealed::next_readable(&*cold.file, sealed, key, (offset - base) as u32)
                .map_err(Error::io("read a segment in", &self.dir))?;
            if let Some(record) = next {
                return Ok(base + u64::from(record));
            }
            offset = base + u64::from(cold.records);
        }
    }
}

/// The error for a record that cannot be read.
fn cannot_read(offset: u64, doing: &'static str, path: &Path, error: io::Error) -> Error {
    if salvage::is_unreadable(&error) {
        Error::Unreadable { offset, path: path.to_owned(), source: std::sync::Arc::new(error) }
    } else {
        Error::io(doing, path)(error)
    }
}

/// Reads a log in order; see [`Log::reader`](super::Log::reader). Keeps the chunk that it reads in memory, or the file
/// open.
///
/// # Example
/// ```
/// # fn main() -> Result<(), millstream::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
/// log.append_batch(&[b"a", b"b"])?;
/// log.flush()?;
/// let mut reader = log.reader(0);
/// while let Some(record) = reader.read_next()? {
///     println!("{}: {} bytes", record.offset, record.value.len());
/// }
/// assert_eq!(reader.offset(), 2); // reading continues here when there is more
/// # Ok(())
/// # }
/// ```
pub struct Reader {
    shared: Arc<Shared>,
    next: u64,
    source: Option<ReadSource>,
    /// The range of offsets that `source` provides.
    from: u64,
    until: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, offset: u64) -> Self {
        Self { shared, next: offset, source: None, from: 0, until: 0 }
    }

    /// The offset that is read next.
    pub fn offset(&self) -> u64 {
        self.next
    }

    /// Sets the offset that is read next.
    pub fn seek(&mut self, offset: u64) {
        self.next = offset;
    }

    /// Releases what the reader holds of the log until the next record is read: a chunk's memory, or an open file and
    /// what was read ahead from it (256 KiB, or the largest record). For callers that are about to wait for something
    /// else.
    pub fn release(&mut self) {
        (self.source, self.from, self.until) = (None, 0, 0);
    }

    /// Reads the record at `offset`, like [`Log::read`](super::Log::read); the reader continues after it.
    ///
    /// # Errors
    /// As [`read_next`](Self::read_next).
    #[inline]
    pub fn read(&mut self, offset: u64) -> Result<Option<RecordRef<'_>>, Error> {
        self.next = offset;
        self.read_next()
    }

    /// Whether reading the next record needs no disk access, also if there is none yet. The chunk or file found is kept
    /// until the reader moves elsewhere, or [releases](Self::release) it.
    #[cfg(feature = "server")]
    pub(crate) fn is_in_memory(&mut self) -> bool {
        let offset = self.next;
        if (self.from..self.until).contains(&offset) {
            return matches!(self.source, Some(ReadSource::Hot(..)));
        }
        if !self.shared.is_in_memory(offset) {
            return false;
        }
        let found = self.find(offset);
        self.next = offset; // an error is returned by the read itself
        !matches!(found, Ok(true)) || matches!(self.source, Some(ReadSource::Hot(..)))
    }

    /// Returns what is known of the next record before it is read: if it is not in memory, its header is read. `None`
    /// if there is no visible record yet.
    ///
    /// # Errors
    /// As [`read_next`](Self::read_next).
    pub(crate) fn peek(&mut self) -> Result<Option<Ahead>, Error> {
        let offset = self.next;
        if !self.has_source_of(offset)? {
            return Ok(None);
        }
        let number = (offset - self.from) as u32;
        match &mut self.source {
            Some(ReadSource::Cold(cold)) => Ok(Some(cold.peek(number))),
            Some(ReadSource::Hot(segment, chunk)) => {
                let head = chunk.frame(number).map(|Frame { time, flags, value, .. }| Head {
                    time: segment.header.created + time,
                    json: flags & JSON != 0,
                    lost: flags & LOST != 0,
                    length: value.len(),
                });
                Ok(Some(Ahead { hot: true, cold_bytes: 0, head }))
            }
            None => Err(Error::Damaged { offset }),
        }
    }

    /// When the record at `offset` was appended. If the record is large, its header is trusted.
    pub(super) fn time_of(&mut self, offset: u64) -> Result<Option<u64>, Error> {
        self.next = offset;
        match self.peek()? {
            None => Ok(None),
            Some(Ahead { cold_bytes: READ_BYTES.., head: Some(head), .. }) => Ok(Some(head.time)),
            Some(_) => Ok(self.read_one()?.map(|record| record.time)),
        }
    }

    /// Reads the next record alone, without reading ahead; the reader continues after it.
    ///
    /// # Errors
    /// As [`read_next`](Self::read_next).
    pub(crate) fn read_one(&mut self) -> Result<Option<Record>, Error> {
        let offset = self.next;
        if !self.has_source_of(offset)? {
            return Ok(None);
        }
        let Some(source) = &self.source else { return Err(Error::Damaged { offset }) };
        let record = self.shared.record(source, offset)?;
        self.next = offset + 1;
        Ok(Some(record))
    }

    /// Reads the next record; `None` if there is no visible record yet.
    ///
    /// # Errors
    /// [`Error::Trimmed`], [`Error::Unreadable`], [`Error::Io`]: the position stays the same. [`Error::Damaged`]: the reader
    /// has moved past that record, and may continue. A record that is [marked as lost](Record::is_lost) is no error.
    #[inline]
    pub fn read_next(&mut self) -> Result<Option<RecordRef<'_>>, Error> {
        Ok(self.step()?.map(|step| step.record))
    }

    #[inline]
    fn step(&mut self) -> Result<Option<Step<'_>>, Error> {
        let offset = self.next;
        if !self.has_source_of(offset)? {
            return Ok(None);
        }
        self.next = offset + 1;
        let number = (offset - self.from) as u32;
        let (frame, created, hot) = match &mut self.source {
            Some(ReadSource::Hot(segment, chunk)) => {
                (chunk.frame(number), segment.header.created, Some((&*chunk, number)))
            }
            Some(ReadSource::Cold(cold)) => {
                let created = cold.segment.header.created;
                let frame = cold.read(number).map_err(|error| {
                    self.next = offset;
                    cannot_read(offset, "read a segment in", &self.shared.dir, error)
                })?;
                (frame, created, None)
            }
            None => (None, 0, None),
        };
        match frame {
            Some(Frame { time, flags, value, extension, .. }) => {
                let (json, lost) = (flags & JSON != 0, flags & LOST != 0);
                let record = RecordRef { offset, time: created + time, json, lost, value, extension };
                Ok(Some(Step { record, hot }))
            }
            None => Err(Error::Damaged { offset }),
        }
    }

    /// Whether the record at `offset` is visible; then the reader is where it is.
    #[inline]
    fn has_source_of(&mut self, offset: u64) -> Result<bool, Error> {
        Ok((self.from..self.until).contains(&offset) || self.find(offset)?)
    }

    /// Moves to the source of `offset`; returns `false` if it is not visible yet.
    #[cold]
    fn find(&mut self, offset: u64) -> Result<bool, Error> {
        // The frontier is read before the end of the chunk: if records after this chunk are visible, its end is known.
        let visible = self.shared.visible().get();
        if offset >= visible {
            return Ok(false);
        }
        if let Some(ReadSource::Hot(segment, chunk)) = &self.source {
            self.until = hot_end(segment, chunk, visible);
            if offset >= self.from && offset < self.until {
                return Ok(true);
            }
        }
        (self.from, self.until) = (0, 0); // if this fails, nothing of the old source is used
        let source = match self.shared.read_source(offset) {
            Err(Error::Damaged { offset }) => {
                self.next = offset + 1;
                return Err(Error::Damaged { offset });
            }
            found => found?,
        };
        (self.from, self.until) = match &source {
            ReadSource::Hot(segment, chunk) => (segment.base(), hot_end(segment, chunk, visible)),
            ReadSource::Cold(cold) => (cold.segment.base(), cold.segment.base() + u64::from(cold.records)),
        };
        self.source = Some(source);
        Ok(true)
    }

    /// Continues with the first record from `offset` on that can be read; see [`Log::next_readable`](super::Log::next_readable).
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be known now.
    pub fn seek_readable(&mut self, offset: u64) -> Result<(), Error> {
        self.next = self.shared.next_readable(offset)?;
        Ok(())
    }

    /// Waits until there is a record to read, for at most `timeout`; returns whether there is one.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Failed`], [`Error::ReadOnly`] if there never will be one.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        let shared = &self.shared;
        // Without an end if that would be too far away to be represented.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        shared.visible().park(self.next.saturating_add(1), || shared.writable().is_err(), deadline);
        if shared.visible().get() > self.next {
            return Ok(true);
        }
        shared.writable().map(|()| false)
    }

    /// Like [`wait`](Self::wait), for async code.
    pub fn visible(&self) -> Visible {
        Visible::new(Arc::clone(&self.shared), self.next)
    }
}

/// The end of the visible records in a chunk.
fn hot_end(segment: &Segment, chunk: &Chunk, visible: u64) -> u64 {
    chunk.end().map_or(visible, |end| visible.min(segment.base() + u64::from(end.records)))
}

/// The records of a range, from both ends; see [`Log::iter_range`](super::Log::iter_range).
pub struct Iter {
    reader: Reader,
    end: u64,
    back: Option<Box<Back>>,
}

impl Iter {
    pub(super) fn new(reader: Reader, end: u64) -> Self {
        Self { reader, end, back: None }
    }
}

/// The most records, and bytes of values, of a stretch that is read ahead of a backward iteration.
const STRETCH: (u64, usize) = (256, READ_BYTES);

/// What a backward iteration has read ahead, in order.
struct Back {
    reader: Reader,
    stretch: VecDeque<(u64, Result<Record, Error>)>,
    /// How many records are read at once: the larger they are, the fewer.
    records: u64,
}

impl Back {
    /// Reads the records before `end`, but none before `from`: at least one, or what keeps it from being read.
    fn read(&mut self, from: u64, end: u64) {
        let mut bytes = self.begin(from, end);
        while self.reader.next < end {
            let offset = self.reader.next;
            let read = self.reader.step().map(|step| step.map(Step::into_record)).transpose();
            let Some(read) = read else { break };
            match read {
                // Trimmed meanwhile: what is left is read. What was read before would have a gap after it.
                Err(Error::Trimmed { first, .. }) if first > offset && first < end => {
                    self.stretch.clear();
                    bytes = 0;
                    self.reader.seek(first);
                }
                // It ends the iteration, but those after it come first.
                Err(ref error) if !matches!(error, Error::Damaged { .. }) => {
                    self.stretch.clear();
                    bytes = 0;
                    self.stretch.push_back((offset, read));
                    self.reader.seek(offset + 1);
                }
                read => {
                    bytes += read.as_ref().map_or(0, |record| record.value().len());
                    self.stretch.push_back((offset, read));
                }
            }
            if bytes > STRETCH.1 && self.records > 1 && self.reader.next < end {
                // Larger than those after them: begin again, with fewer.
                self.records = self.records.div_ceil(4);
                bytes = self.begin(from, end);
            }
        }
        let read = self.stretch.len() as u64;
        self.records = if bytes > STRETCH.1 / 2 { read.div_ceil(2) } else { (2 * read).clamp(1, STRETCH.0) };
    }

    /// Begins to read a stretch; returns how many bytes it has.
    fn begin(&mut self, from: u64, end: u64) -> usize {
        self.stretch.clear();
        self.reader.seek(end.saturating_sub(self.records).max(from));
        0
    }
}

impl Step<'_> {
    /// The record as a value of its own; a recent one is not copied.
    fn into_record(self) -> Record {
        let Step { record: RecordRef { offset, time, json, lost, value, .. }, hot } = self;
        let value = hot.map_or_else(
            || RecordSource::Cold(value.to_vec()),
            |(chunk, record)| RecordSource::Hot(Arc::clone(chunk), record),
        );
        Record { offset, time, json, lost, value }
    }
}

impl DoubleEndedIterator for Iter {
    /// Returns the last record that was not returned yet. After [`Error::Damaged`] comes the record before the damaged one;
    /// after any other error, nothing. So it is with [`Error::Trimmed`], which says where the log begins.
    fn next_back(&mut self) -> Option<Self::Item> {
        let from = self.reader.next;
        if from >= self.end {
            return None;
        }
        let back = self.back.get_or_insert_with(|| {
            let reader = Reader::new(Arc::clone(&self.reader.shared), from);
            Box::new(Back { reader, stretch: VecDeque::new(), records: 1 })
        });
        if back.stretch.is_empty() {
            back.read(from, self.end);
        }
        let (offset, read) = back.stretch.pop_back()?;
        self.end = offset;
        if read.as_ref().is_err_and(|error| !matches!(error, Error::Damaged { .. })) {
            self.end = 0;
        }
        Some(read)
    }
}

impl Iterator for Iter {
    type Item = Result<Record, Error>;

    /// Returns the next record. After [`Error::Damaged`] comes the record after the damaged one; after any other error,
    /// nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.next >= self.end {
            return None;
        }
        let step = self.reader.step();
        if step.as_ref().is_err_and(|error| !matches!(error, Error::Damaged { .. })) {
            self.end = 0;
        }
        step.transpose().map(|step| step.map(Step::into_record))
    }
}
