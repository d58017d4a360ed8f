//! The file of a segment that is being written. It is created ahead of time under a temporary name, begun when its base
//! offset is known, and written block by block from its chunk. Zeros are written ahead of the frames while there is
//! time.

use super::{FRAMES_AT, header::Header};
use crate::{
    chunk::{Chunk, ChunkPosition},
    disk::{self, Aligned, BLOCK, Disk, File},
    frame,
    sync::{self, Condvar, Mutex, lock},
};
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
};

/// How much is zeroed at a time, and kept zeroed ahead of the frames. Writing to blocks that were written before takes
/// two thirds of the time of a first write to reserved blocks, because the file system must record the latter in its
/// journal as well (82 instead of 127 µs for 4 KiB).
const ZEROED_AHEAD_BYTES: u64 = 1 << 20;
/// The most that one system call writes.
const MAX_WRITE_BYTES: usize = 8 << 20;
/// The most zeros that one system call writes, when the end of a file is cut off.
const MAX_ZEROS_BYTES: usize = 4 << 20;

thread_local! {
    /// Where the last block of a write is assembled.
    static BOUNCE: RefCell<Option<Aligned>> = const { RefCell::new(None) };
}

/// The file name of the segment with this base offset.
pub(crate) fn name(base: u64) -> String {
    format!("{base:020}.seg")
}

/// The base offset in a segment's file name.
pub(crate) fn base_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The length that a file is created with: frames and index take at most `capacity`, plus one block each for rounding
/// up, plus the footer.
pub(crate) const fn length(capacity: u64) -> u64 {
    FRAMES_AT + capacity + 3 * BLOCK
}

/// The bytes that are not written again in a file whose frames take `words` words: the whole blocks of those.
pub(crate) fn written(words: u32) -> Range<u64> {
    FRAMES_AT..FRAMES_AT + frame::in_bytes(words) as u64 / BLOCK * BLOCK
}

/// Whether this is a name that a file has before it is begun. Such a file is of no use after a crash.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.strip_prefix("next-").is_some_and(|rest| rest.strip_suffix(".tmp").is_some())
}

#[derive(Debug)]
struct Progress {
    /// Bytes of the frames' region up to which blocks have been written, with frames or zeros.
    touched: u64,
    /// Bytes up to which frames have been written: no zeros are written below this.
    written: u64,
    /// Where zeros are being written at the moment.
    zeroing: Range<u64>,
    /// Whether there was no room for zeros: then none are written any more.
    no_room: bool,
}

/// A segment's file, open for writing.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    file: Box<dyn File>,
    capacity: u64,
    path: Mutex<PathBuf>,
    progress: Mutex<Progress>,
    zeroed: Condvar,
}

/// Writes the header block of a file, with the mark saying that `durable` records are durable.
pub(crate) fn write_header(file: &dyn File, header: &Header, durable: u32) -> io::Result<()> {
    let mut block = Aligned::new(BLOCK as usize)?;
    block.copy_from_slice(&header.encode(durable));
    file.write_at(&[IoSlice::new(&block)], 0)
}

/// Writes whole blocks of the region of frames, beginning with byte `at` of it. Durable on return.
pub(crate) fn write_blocks(file: &dyn File, blocks: &[u8], at: usize) -> io::Result<()> {
    for (part, at) in blocks.chunks(MAX_WRITE_BYTES).zip((at..).step_by(MAX_WRITE_BYTES)) {
        file.write_at(&[IoSlice::new(part)], FRAMES_AT + at as u64)?;
    }
    Ok(())
}

impl SegmentFile {
    /// Creates a file for some later segment of `capacity`, with all its space reserved, under the temporary name
    /// `number`.
    pub(crate) fn prepare(disk: &dyn Disk, dir: &Path, number: u64, capacity: u64) -> io::Result<Self> {
        let path = dir.join(format!("next-{number}.tmp"));
        let file = disk.create(&path, length(capacity))?;
        let this = Self::resume(file, path, capacity, 0);
        match this.zero_ahead() {
            Ok(()) => Ok(this),
            Err(error) => {
                this.discard(disk);
                Err(error)
            }
        }
    }

    /// The file of a segment that was begun earlier, whose frames take `words` words.
    pub(crate) fn resume(file: Box<dyn File>, path: PathBuf, capacity: u64, words: u32) -> Self {
        let written = frame::in_bytes(words) as u64;
        let progress = Progress { touched: written, written, zeroing: 0..0, no_room: false };
        let (path, progress) = (Mutex::new(path), Mutex::new(progress));
        Self { file, capacity, path, progress, zeroed: Condvar::new() }
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    /// Begins the segment: writes the header and gives the file its name. Both are durable on return. May be called
    /// again after a transient error.
    pub(crate) fn begin(&self, disk: &dyn Disk, dir: &Path, header: &Header) -> io::Result<()> {
        self.write_header(header, 0)?;
        let to = dir.join(name(header.base));
        let mut path = lock(&self.path);
        if *path != to {
            disk.rename(&path, &to)?;
            *path = to;
        }
        disk.sync_dir(dir)
    }

    /// Removes a file that was prepared but is not needed. One that has its segment's name already stays, as an empty
    /// segment: it may have replaced another file there, or been replaced by one.
    pub(crate) fn discard(&self, disk: &dyn Disk) {
        let path = lock(&self.path);
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_temporary) {
            let _ = disk.remove(&path); // if it stays, the next opening removes it
        }
    }

    /// Writes the header block, with the mark saying that `durable` records are durable.
    pub(crate) fn write_header(&self, header: &Header, durable: u32) -> io::Result<()> {
        write_header(&*self.file, header, durable)
    }

    /// Writes the frames between two positions of the chunk; they are durable on return. Whole blocks are written
    /// straight from the chunk's memory. The last block, if it is not full, goes through a block of this thread's own
    /// with zeros after the frames, so that no byte is written that is not part of a published record. If there is no room,
    /// it may be called again, for the same range or a longer one: what an earlier call has made durable in the first block
    /// is written again with the same bytes, and so is there whatever becomes of the write.
    pub(crate) fn write(&self, chunk: &Chunk, from: ChunkPosition, to: ChunkPosition) -> io::Result<()> {
        let mut bounce = BOUNCE.take().map_or_else(|| Aligned::new(BLOCK as usize), Ok)?;
        let written = self.write_through(chunk, from, to, &mut bounce);
        BOUNCE.set(Some(bounce));
        written
    }

    fn write_through(
        &self,
        chunk: &Chunk,
        from: ChunkPosition,
        to: ChunkPosition,
        bounce: &mut Aligned,
    ) -> io::Result<()> {
        let start = from.bytes() / BLOCK * BLOCK;
        self.claim(start..to.bytes().next_multiple_of(BLOCK));
        let whole_end = to.bytes() / BLOCK * BLOCK;
        let words = |bytes: Range<u64>| {
            (bytes.start / frame::WORD as u64) as u32..(bytes.end / frame::WORD as u64) as u32
        };
        let rest = chunk.bytes(words(whole_end..to.bytes()));
        let (frames, padding) = bounce.split_at_mut(rest.len());
        frames.copy_from_slice(rest);
        padding.fill(0);

        let whole = chunk.bytes(words(start..whole_end.max(start)));
        // The last part is written together with what follows it.
        let before = whole.len().saturating_sub(1) / MAX_WRITE_BYTES * MAX_WRITE_BYTES;
        let (before, whole) = whole.split_at(before);
        write_blocks(&*self.file, before, start as usize)?;
        let at = FRAMES_AT + start + before.len() as u64;
        match (whole.is_empty(), rest.is_empty()) {
            (true, true) => Ok(()),
            (false, true) => self.file.write_at(&[IoSlice::new(whole)], at),
            (true, false) => self.file.write_at(&[IoSlice::new(bounce)], at),
            (false, false) => self.file.write_at(&[IoSlice::new(whole), IoSlice::new(bounce)], at),
        }
    }

    /// Claims a range for frames: waits until no zeros are being written there, and keeps later zeros out.
    fn claim(&self, range: Range<u64>) {
        let mut progress = lock(&self.progress);
        while progress.zeroing.start < range.end && range.start < progress.zeroing.end {
            progress = sync::wait(&self.zeroed, progress);
        }
        progress.written = progress.written.max(range.end);
        progress.touched = progress.touched.max(range.end);
    }

    /// Whether writing zeros ahead would help the next small writes.
    pub(crate) fn wants_zeros(&self) -> bool {
        let progress = lock(&self.progress);
        let wanted =
            progress.touched < self.capacity && progress.touched < progress.written + ZEROED_AHEAD_BYTES / 2;
        wanted && !progress.no_room
    }

    /// Writes the next zeros ahead of the frames.
    pub(crate) fn zero_ahead(&self) -> io::Result<()> {
        let range = {
            let mut progress = lock(&self.progress);
            let start = progress.touched.max(progress.written).next_multiple_of(BLOCK);
            let end = (start + ZEROED_AHEAD_BYTES).min(self.capacity);
            if start >= end {
                return Ok(());
            }
            progress.zeroing = start..end;
            start..end
        };
        let result = Aligned::new((range.end - range.start) as usize)
            .and_then(|zeros| self.file.write_at(&[IoSlice::new(&zeros)], FRAMES_AT + range.start));
        let mut progress = lock(&self.progress);
        progress.zeroing = 0..0;
        match &result {
            Ok(()) => progress.touched = progress.touched.max(range.end),
            Err(error) => progress.no_room |= disk::is_full(error),
        }
        self.zeroed.notify_all();
        result
    }

    /// Zeros everything from `words` on that is not zero already: what a crash left of records that were never durable,
    /// or of files that had these blocks before. Durable on return. `frames` is what the file holds.
    pub(crate) fn zero_after(&self, frames: &[u8], words: u32) -> io::Result<()> {
        const SIZE: usize = BLOCK as usize;
        let end = frame::in_bytes(words);
        let keep = end / SIZE * SIZE;
        let mut zeros = Aligned::new(MAX_ZEROS_BYTES)?;
        // The block in which the frames end.
        let mut first = &frames[keep..frames.len().min(keep + SIZE)];
        if first.iter().skip(end - keep).any(|&byte| byte != 0) {
            first = &first[..end - keep];
            zeros[..first.len()].copy_from_slice(first);
            self.file.write_at(&[IoSlice::new(&zeros[..SIZE])], FRAMES_AT + keep as u64)?;
            zeros[..first.len()].fill(0);
        }
        // In the blocks after it, runs of blocks that are not zero.
        let mut rest = frames.get(keep + SIZE..).unwrap_or_default().chunks(SIZE).enumerate().peekable();
        let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        while let Some((n, block)) = rest.next() {
            if is_zero(block) {
                continue;
            }
            let mut blocks = 1;
            while blocks * SIZE < MAX_ZEROS_BYTES && rest.next_if(|(_, block)| !is_zero(block)).is_some() {
                blocks += 1;
            }
            let at = FRAMES_AT + (keep + (n + 1) * SIZE) as u64;
            self.file.write_at(&[IoSlice::new(&zeros[..blocks * SIZE])], at)?;
        }
        Ok(())
    }
}
