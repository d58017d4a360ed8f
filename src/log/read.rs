//! Reading: load the frontier once; everything below it is immutable, so the rest takes no lock and never waits.
//!
//! A recent record is read from its chunk, which the reader keeps alive meanwhile. Older records are read from the
//! sealed file, and verified: if one does not verify, that read returns an error.

mod cold;
mod iter;
mod record;

use super::{Error, Shared, Visible, chain::Chain};
use crate::{
    chunk::Chunk,
    disk::salvage,
    frame::{self, Frame, JSON, LOST},
    segment::{Segment, file, sealed::SealedFile},
    sync::Arc,
};
use cold::{Cold, READ_BYTES};
pub use iter::Iter;
pub(crate) use record::{Ahead, Head};
pub use record::{Record, RecordRef};
use record::{RecordSource, Step};
use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

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
    pub(super) fn reads_without_disk(&self, offset: u64) -> bool {
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
        let found = SealedFile { file: &*cold.file, sealed, key: cold.segment.key }
            .read_record(record, &mut buf)
            .map_err(|error| cannot_read(offset, "read", &path(), error))?;
        let Frame { time, flags, value, body, .. } = found.ok_or(Error::Damaged { offset })?;
        let (length, json, lost) = (value.len(), flags & JSON != 0, flags & LOST != 0);
        let before = frame::HEADER_BYTES + body.len() - length;
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
            let next = SealedFile { file: &*cold.file, sealed, key }
                .next_readable((offset - base) as u32)
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

    /// Moves to the next record, and returns whether reading it needs no disk access, also if there is none yet. The chunk
    /// or file found is kept until the reader moves elsewhere, or [releases](Self::release) it.
    #[cfg(feature = "server")]
    pub(crate) fn next_without_disk(&mut self) -> bool {
        let offset = self.next;
        if (self.from..self.until).contains(&offset) {
            return matches!(self.source, Some(ReadSource::Hot(..)));
        }
        if !self.shared.reads_without_disk(offset) {
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
        if !self.find_visible(offset)? {
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
        if !self.find_visible(offset)? {
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
        if !self.find_visible(offset)? {
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
    fn find_visible(&mut self, offset: u64) -> Result<bool, Error> {
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

    /// Continues with the first record from `offset` on that can be read; see
    /// [`Log::next_readable`](super::Log::next_readable).
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
