//! The end of a sealed segment, its dense index and its footer; and reading records through them.
//!
//! The index is derived: it says where to look, but is never trusted. A record found through it must verify and carry
//! the right number; otherwise the frames themselves are searched.

use super::{
    FRAMES_AT,
    header::Header,
    region::Region,
    scan::{self, Summary},
    search,
    survivors::Survivors,
};
use crate::{
    disk::{Aligned, BLOCK, File, salvage},
    frame::{self, Key, WORD},
    sync::{Arc, AtomicBool, Busy, Mutex, lock},
};
use std::{
    io::{self, IoSlice},
    ops::Range,
};

const MAGIC: [u8; 8] = *b"MILLFOOT";
const COVERED: usize = 68;

/// What the footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) records: u32,
    /// Words that the frames take.
    pub(crate) words: u32,
    /// When the first record was appended, in milliseconds since the segment was begun.
    pub(crate) first_time: u64,
    /// Likewise the last record.
    pub(crate) last_time: u64,
    /// CRC-32C of the index.
    pub(crate) index_crc: u32,
    /// The CRC in the last frame. Missing in segments of format 1, and in the earliest ones of format 2.
    pub(crate) last_crc: Option<u32>,
}

/// What is known about a segment that is no longer written.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) records: u32,
    pub(crate) words: u32,
    /// For a damaged segment, which is never written to.
    survivors: Option<Survivors>,
    /// What a search through all frames has found, once the index or a frame did not verify. It is kept because the
    /// search takes long, and records that are missing may be asked for often. Locked for moments only: readers of
    /// records that are whole look here as well.
    searched: Mutex<Option<Arc<Searched>>>,
    /// Held by the reader that searches all frames for the first time; other readers that need the result wait for it.
    searching: Mutex<()>,
    /// Whether a reader is asking the disk again for what it could not read.
    asking: AtomicBool,
}

/// The result of searching the frames themselves.
#[derive(Debug)]
pub(super) struct Searched {
    survivors: Survivors,
    /// Bytes of the frames' region that cannot be read.
    unreadable: Vec<Range<usize>>,
}

impl From<Footer> for Sealed {
    fn from(footer: Footer) -> Self {
        Self::new(footer.records, footer.words, None)
    }
}

impl Sealed {
    fn new(records: u32, words: u32, survivors: Option<Survivors>) -> Self {
        Self {
            records,
            words,
            survivors,
            searched: Mutex::new(None),
            searching: Mutex::new(()),
            asking: AtomicBool::new(false),
        }
    }

    /// Whether records of it are known to be damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.survivors.is_some()
    }

    /// A damaged segment that has these records.
    pub(crate) fn damaged(records: u32, words: u32, survivors: Survivors) -> Self {
        Self::new(records, words, Some(survivors))
    }
}

impl Footer {
    fn encode(&self, header: &Header) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        block[..8].copy_from_slice(&MAGIC);
        block[8..24].copy_from_slice(header.log.as_bytes());
        block[24..32].copy_from_slice(&header.base.to_le_bytes());
        block[32..36].copy_from_slice(&self.records.to_le_bytes());
        block[36..40].copy_from_slice(&self.words.to_le_bytes());
        block[40..48].copy_from_slice(&self.first_time.to_le_bytes());
        block[48..56].copy_from_slice(&self.last_time.to_le_bytes());
        block[56..60].copy_from_slice(&self.index_crc.to_le_bytes());
        // Format 1 does not change.
        if let Some(crc) = self.last_crc.filter(|_| header.secret.0.is_some()) {
            block[60..64].copy_from_slice(&crc.to_le_bytes());
            block[64] = 1;
        }
        let crc = crc32c::crc32c_append(header.key().seed, &block[..COVERED]);
        block[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    fn decode(block: &[u8; BLOCK as usize], header: &Header) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        // The seed stands for the log and the base: the footer of another segment does not verify.
        let ours = block[..8] == MAGIC
            && u32_at(COVERED) == crc32c::crc32c_append(header.key().seed, &block[..COVERED]);
        ours.then(|| Self {
            records: u32_at(32),
            words: u32_at(36),
            first_time: u64_at(40),
            last_time: u64_at(48),
            index_crc: u32_at(56),
            last_crc: (block[64] == 1).then(|| u32_at(60)),
        })
    }

    /// Where the footer of a segment file of `length` bytes is, if the file is sealed and cut to size: in the last
    /// block.
    pub(crate) fn position(length: u64) -> Option<u64> {
        (length >= FRAMES_AT + BLOCK && length.is_multiple_of(BLOCK)).then(|| length - BLOCK)
    }

    /// The footer in that block, if it verifies and is where its counts say it must be.
    pub(crate) fn at_end(block: &[u8; BLOCK as usize], length: u64, header: &Header) -> Option<Self> {
        let footer = Self::decode(block, header);
        footer.filter(|footer| footer_at(footer.records, footer.words) + BLOCK == length)
    }

    /// Whether `bytes`, a file from its frames on, has a footer where these frames would have it. If so, these are all
    /// of the segment's frames, whether or not the file was cut to size.
    pub(crate) fn ends(bytes: &[u8], header: &Header, found: &scan::Scan) -> bool {
        let records = found.positions.len() as u32;
        let at = (footer_at(records, found.words) - FRAMES_AT) as usize;
        let footer =
            bytes.get(at..).and_then(<[u8]>::first_chunk).and_then(|block| Self::decode(block, header));
        records > 0 && footer.is_some_and(|footer| footer.records == records && footer.words == found.words)
    }
}

/// Where the index starts after this many words of frames.
pub(crate) const fn index_at(words: u32) -> u64 {
    FRAMES_AT + (words as u64 * WORD as u64).next_multiple_of(BLOCK)
}

/// Where the footer is, after this many records in this many words.
pub(crate) fn footer_at(records: u32, words: u32) -> u64 {
    index_at(words) + (u64::from(records) * 4).next_multiple_of(BLOCK)
}

/// Writes index and footer after the frames, which are durable already, and cuts the file to size. Everything is
/// durable on return. `positions` yields the word of each record.
pub(crate) fn seal(
    file: &dyn File,
    header: &Header,
    summary: Summary,
    positions: impl ExactSizeIterator<Item = u32>,
) -> io::Result<Footer> {
    let Summary { words, times, last_crc } = summary;
    let records = positions.len() as u32;
    let index_length = (records as usize * 4).next_multiple_of(BLOCK as usize);
    let mut tail = Aligned::new(index_length + BLOCK as usize)?;
    for (entry, position) in tail.chunks_exact_mut(4).zip(positions) {
        entry.copy_from_slice(&position.to_le_bytes());
    }
    let index_crc = crc32c::crc32c(&tail[..records as usize * 4]);
    let footer = Footer { records, words, first_time: times.0, last_time: times.1, index_crc, last_crc };
    tail[index_length..].copy_from_slice(&footer.encode(header));
    file.write_at(&[IoSlice::new(&tail)], index_at(words))?;
    file.set_len(footer_at(records, words) + BLOCK)?;
    Ok(footer)
}

/// A sealed segment that can be read: its file, what is known of it, and the key of its frames.
#[derive(Clone, Copy)]
pub(crate) struct SealedFile<'a> {
    pub(crate) file: &'a dyn File,
    pub(crate) sealed: &'a Sealed,
    pub(crate) key: Key,
}

impl SealedFile<'_> {
    /// Reads one record of a sealed segment into `buf` through the index, and verifies it. `None` if it is damaged.
    pub(crate) fn read_record(self, record: u32, buf: &mut Vec<u8>) -> io::Result<Option<frame::Frame<'_>>> {
        let Self { file, sealed, key } = self;
        let Some(position) = self.indexed(record) else { return Ok(None) };
        let read = |buf: &mut [u8], at| file.read_at(buf, at);
        if !read_frame(read, FIRST_READ_BYTES, sealed.words, position, buf).unwrap_or(false)
            || !is_record(buf, key, record)
        {
            // The index or the frame is wrong, or one of them cannot be read: look for the record itself.
            let Some(position) = self.find(record)? else { return Ok(None) };
            // The page cache cannot read a page of which a sector is bad, though this record is in the others: only those
            // are read.
            let read = |buf: &mut [u8], at| match salvage::read(file, buf, at, true)?[..] {
                [] => Ok(()),
                _ => Err(rustix::io::Errno::IO.into()),
            };
            if !read_frame(read, frame::HEADER_BYTES, sealed.words, position, buf)? {
                return Ok(None);
            }
        }
        Ok(frame::decode(buf, key).filter(|found| found.record == record).map(|found| found.frame))
    }

    /// The CRC in the frame of a record of a sealed segment; the frame is verified. `None` if it is damaged.
    pub(crate) fn crc_of(self, record: u32) -> io::Result<Option<u32>> {
        let Self { key, .. } = self;
        let mut buf = Vec::new();
        let whole = self.read_record(record, &mut buf)?.is_some();
        Ok(whole.then(|| frame::claimed_crc(&buf, key).0))
    }

    /// The word where a record of a sealed segment starts; its frame is verified. `None` if it is damaged.
    pub(crate) fn position_of(self, record: u32) -> io::Result<Option<u32>> {
        let Self { file, sealed, key } = self;
        let Some(position) = self.indexed(record) else { return Ok(None) };
        let mut buf = Vec::new();
        let read = |buf: &mut [u8], at| file.read_at(buf, at);
        if read_frame(read, FIRST_READ_BYTES, sealed.words, position, &mut buf).unwrap_or(false)
            && is_record(&buf, key, record)
        {
            return Ok(Some(position));
        }
        self.find(record)
    }

    /// The first record at or after `record` that verifies. Each candidate costs at most one attempt to read.
    pub(crate) fn next_readable(self, record: u32) -> io::Result<Option<u32>> {
        let Self { sealed, .. } = self;
        let mut next = Some(record);
        while let Some(record) = next.filter(|&record| record < sealed.records) {
            match self.position_of(record) {
                Ok(Some(_)) => return Ok(Some(record)),
                Err(error) if !salvage::is_unreadable(&error) => return Err(error),
                _ => {} // by now all frames have been searched
            }
            let searched = lock(&sealed.searched).clone();
            let survivors =
                sealed.survivors.as_ref().or(searched.as_ref().map(|searched| &searched.survivors));
            next = match survivors {
                Some(survivors) => survivors.next(record + 1),
                None => Some(record + 1),
            };
        }
        Ok(None)
    }

    /// Where a record of a sealed segment probably is; nothing is verified. If an earlier search has not found it, asks the
    /// disk again for what could not be read then, as reading the record does.
    pub(crate) fn whereabouts(self, record: u32) -> io::Result<Whereabouts> {
        let Self { sealed, .. } = self;
        let searched = lock(&sealed.searched).clone();
        let at = match searched.filter(|_| sealed.survivors.is_none()) {
            Some(found) => self.search_again(record, found)?.survivors.get(record),
            None => self.indexed(record),
        };
        Ok(at.map_or(Whereabouts::Nowhere, Whereabouts::Indexed))
    }

    /// Where the index says that a record is; nothing is verified. After all frames if the index cannot be read: that is
    /// treated like an index that is wrong. `None` if the record is missing.
    fn indexed(self, record: u32) -> Option<u32> {
        let Self { file, sealed, .. } = self;
        if let Some(survivors) = &sealed.survivors {
            return survivors.get(record);
        }
        let mut entry = [0; 4];
        let read = file.read_at(&mut entry, index_at(sealed.words) + u64::from(record) * 4);
        Some(if read.is_ok() { u32::from_le_bytes(entry) } else { u32::MAX })
    }

    /// Finds a record by searching the frames themselves, whether or not those before it are damaged; for when the index is
    /// damaged. The result of the search is kept. It is repeated only if the record is missing and some part that could not
    /// be read now can be: one reader at a time asks the disk for that, which may take seconds, and the others get what is
    /// known. If some part cannot be read and the record is not in the rest, returns a read error.
    fn find(self, record: u32) -> io::Result<Option<u32>> {
        let Self { sealed, .. } = self;
        let known = || lock(&sealed.searched).clone();
        let found = if let Some(found) = known() {
            found
        } else {
            let _searching = lock(&sealed.searching);
            let meanwhile = known();
            if let Some(found) = meanwhile { found } else { self.search()? }
        };
        let found = self.search_again(record, found)?;
        match &found.unreadable[..] {
            [bad, ..] if !found.has(record) => Err(io::Error::other(salvage::Unreadable(bad.clone()))),
            _ => Ok(found.survivors.get(record)),
        }
    }

    /// Repeats a search that has not found a record, if that may find it now.
    fn search_again(self, record: u32, found: Arc<Searched>) -> io::Result<Arc<Searched>> {
        let Self { file, sealed, .. } = self;
        if found.has(record) || found.unreadable.is_empty() {
            return Ok(found);
        }
        // One reader of a segment at a time asks the disk again; what it finds is exchanged under a lock.
        let Some(_asking) = Busy::begin(&sealed.asking) else { return Ok(found) };
        if !found.can_be_read(file) {
            return Ok(found);
        }
        self.search()
    }

    /// Searches all frames, and keeps what is found.
    fn search(self) -> io::Result<Arc<Searched>> {
        let Self { file, sealed, key } = self;
        let found = Arc::new(Searched::at(file, sealed, key)?);
        *lock(&sealed.searched) = Some(Arc::clone(&found));
        Ok(found)
    }
}

/// The head of the frame of `record` at a word, by a read of that alone; nothing is verified. `None` if it cannot be
/// there, or cannot be read.
pub(crate) fn head_at(file: &dyn File, words: u32, key: Key, record: u32, at: u32) -> Option<frame::Head> {
    let left = frame::in_bytes(words.saturating_sub(at));
    let mut bytes = [0; frame::PEEK_BYTES];
    let bytes = &mut bytes[..frame::PEEK_BYTES.min(left)];
    file.read_at(bytes, FRAMES_AT + frame::in_bytes(at) as u64).ok()?;
    head_in(bytes, words, key, record, at)
}

/// The head of the frame of `record` that is read from word `at`, if it can be: its frame ends within the `words` of all
/// frames. Nothing else is verified.
pub(crate) fn head_in(bytes: &[u8], words: u32, key: Key, record: u32, at: u32) -> Option<frame::Head> {
    let left = u64::from(words.saturating_sub(at));
    frame::head(bytes, key).filter(|head| head.record == record && head.words <= left)
}

/// Where a record probably is, as far as that is known without searching.
pub(crate) enum Whereabouts {
    /// At this word, if the index is right.
    Indexed(u32),
    /// Nowhere: reading it finds nothing, and searches nothing.
    Nowhere,
}

fn is_record(bytes: &[u8], key: Key, record: u32) -> bool {
    frame::decode(bytes, key).is_some_and(|found| found.record == record)
}

/// Most records are small: one read of this size gets the header and, likely, the whole frame.
const FIRST_READ_BYTES: usize = 1024;

/// Reads the frame at `position` by calls of `read`, the first one for up to `guess` bytes; `false` if none fits before the
/// end of the frames.
fn read_frame(
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    guess: usize,
    words: u32,
    position: u32,
    buf: &mut Vec<u8>,
) -> io::Result<bool> {
    let left = frame::in_bytes(words.saturating_sub(position));
    buf.resize(guess.min(left), 0);
    let at = FRAMES_AT + frame::in_bytes(position) as u64;
    if read(buf, at).is_err() {
        // The unreadable part may lie after this frame.
        buf.truncate(frame::HEADER_BYTES);
        read(buf, at)?;
    }
    let Some(frame_words) = frame::peek_words(buf) else { return Ok(false) };
    let length = frame::in_bytes(frame_words);
    if length > left {
        return Ok(false);
    }
    if length > buf.len() {
        buf.resize(length, 0);
        read(buf, at)?;
    }
    buf.truncate(length);
    Ok(true)
}

/// How many of the unreadable ranges are tried again for each record that is missing.
const MAX_RETRIED_RANGES: usize = 8;

impl Searched {
    fn at(file: &dyn File, sealed: &Sealed, key: Key) -> io::Result<Self> {
        // What lies beyond the end of a file that was cut short is missing.
        let end = file.len()?.min(FRAMES_AT + frame::in_bytes(sealed.words) as u64);
        Ok(Self::among(&Region::read(file, end, true)?, sealed.records, key))
    }

    /// Searches all frames of a segment that has `records` records.
    pub(super) fn among(frames: &Region, records: u32, key: Key) -> Self {
        let scanned = scan::scan(frames, key);
        let later = search::frames_from(frames, key, scanned.words, scanned.records());
        let mut survivors = Survivors::none(records);
        let first = (0..).zip(scanned.positions.iter().copied());
        for (record, word) in first.chain(later.frames) {
            survivors.set(record, word);
        }
        Self { survivors, unreadable: frames.unreadable().to_vec() }
    }

    /// The runs of records that were not found.
    pub(super) fn missing(&self) -> Vec<Range<u32>> {
        self.survivors.missing()
    }

    fn has(&self, record: u32) -> bool {
        self.survivors.get(record).is_some()
    }

    /// Whether some part that could not be read can be read now.
    fn can_be_read(&self, file: &dyn File) -> bool {
        let readable = |bad: &Range<usize>| {
            let at = (bad.start / salvage::SECTOR * salvage::SECTOR) as u64;
            let sector = Aligned::new(salvage::SECTOR);
            sector
                .and_then(|mut sector| file.read_once(&mut sector[..salvage::SECTOR], FRAMES_AT + at))
                .is_ok()
        };
        self.unreadable.iter().take(MAX_RETRIED_RANGES).any(readable)
    }
}
