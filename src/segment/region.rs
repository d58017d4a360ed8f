//! The frames' region of a segment in memory: all behind the header, as the segment's file or an image has it.

use super::FRAMES;
use crate::disk::{self, Aligned, BLOCK, File};
use std::{
    io,
    ops::{Deref, DerefMut, Range},
};

/// How much is read at once. Where something of it cannot be read, the blocks in it are read one by one.
const PIECE: usize = 1 << 20;

/// See the module's documentation. It derefs to the bytes.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Aligned,
    length: usize,
    unreadable: Vec<Range<usize>>,
}

impl Region {
    /// Reads all behind the header of a segment file of `file_length` bytes: past the page cache if it is not `cached`.
    /// Blocks that the disk cannot read are zeros, and noted.
    ///
    /// # Errors
    /// Those that say nothing of what is on the disk, and [`io::ErrorKind::UnexpectedEof`].
    pub(crate) fn read(file: &dyn File, file_length: u64, cached: bool) -> io::Result<Self> {
        let length = file_length.saturating_sub(FRAMES) as usize;
        let mut region = Self { memory: Aligned::new(length)?, length, unreadable: Vec::new() };
        for start in (0..length).step_by(PIECE) {
            let piece = start..(start + PIECE).min(length);
            if region.read_piece(file, piece.clone(), cached)? {
                continue;
            }
            for start in piece.clone().step_by(BLOCK as usize) {
                let block = start..(start + BLOCK as usize).min(piece.end);
                // A disk that fails once may read it the next time.
                if region.read_piece(file, block.clone(), cached)?
                    || region.read_piece(file, block.clone(), cached)?
                {
                    continue;
                }
                region.memory[block.clone()].fill(0);
                match region.unreadable.last_mut() {
                    Some(last) if last.end == block.start => last.end = block.end,
                    _ => region.unreadable.push(block),
                }
            }
        }
        Ok(region)
    }

    /// Says whether the disk can read it.
    fn read_piece(&mut self, file: &dyn File, piece: Range<usize>, cached: bool) -> io::Result<bool> {
        let (at, bytes) = (FRAMES + piece.start as u64, &mut self.memory[piece]);
        disk::readable(if cached { file.read_at(bytes, at) } else { file.read_once(bytes, at) })
    }

    /// The same in whole blocks, with zeros behind.
    pub(crate) fn blocks(&self) -> &[u8] {
        &self.memory[..self.length.next_multiple_of(BLOCK as usize)]
    }

    /// What the disk could not read; zeros stand there.
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
