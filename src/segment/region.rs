//! The frames' region of a segment in memory: everything after the header, as in the segment's file or in a backing.

use super::FRAMES_AT;
use crate::disk::{Aligned, BLOCK, File, salvage};
use std::{
    io,
    ops::{Deref, DerefMut, Range},
};

/// How many bytes are read at once: enough for the disk to work on several requests.
const READ_BYTES: usize = 8 << 20;

/// The bytes of a frames' region, to which it dereferences.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Aligned,
    length: usize,
    unreadable: Vec<Range<usize>>,
}

impl Region {
    /// Reads everything after the header of a segment file of `file_length` bytes, past the page cache unless `cached`.
    /// Bytes that the disk cannot read are zeros here, and are listed in [`unreadable`](Self::unreadable).
    ///
    /// # Errors
    /// Errors that say nothing about what is on the disk, and [`io::ErrorKind::UnexpectedEof`].
    pub(crate) fn read(file: &dyn File, file_length: u64, cached: bool) -> io::Result<Self> {
        Self::read_with(file_length, READ_BYTES, |part, at| salvage::read(file, part, at, cached))
    }

    /// Like [`read`](Self::read), by calls of the function `read` for `part` bytes each, with where they are in the file.
    /// It returns which of them cannot be read.
    pub(super) fn read_with<E: From<io::Error>>(
        file_length: u64,
        part: usize,
        mut read: impl FnMut(&mut [u8], u64) -> Result<Vec<Range<usize>>, E>,
    ) -> Result<Self, E> {
        let length = file_length.saturating_sub(FRAMES_AT) as usize;
        let mut region = Self { memory: Aligned::new(length)?, length, unreadable: Vec::new() };
        for (bytes, start) in region.memory[..length].chunks_mut(part).zip((0..).step_by(part)) {
            let bad = read(bytes, FRAMES_AT + start as u64)?;
            region.unreadable.extend(bad.into_iter().map(|bad| start + bad.start..start + bad.end));
        }
        Ok(region)
    }

    /// The bytes as whole blocks, padded with zeros.
    pub(crate) fn blocks(&self) -> &[u8] {
        &self.memory[..self.length.next_multiple_of(BLOCK as usize)]
    }

    /// The ranges that the disk could not read; they hold zeros.
    pub(crate) fn unreadable(&self) -> &[Range<usize>] {
        &self.unreadable
    }
}

impl From<Aligned> for Region {
    fn from(memory: Aligned) -> Self {
        Self { length: memory.len(), memory, unreadable: Vec::new() }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}
