//! An open file of a simulated disk.

use super::{
    super::{BLOCK, File},
    Sim, State,
    content::SECTOR,
    faults::{Cut, EIO, Mode, StepKind},
    gone,
};
use std::{
    io::{self, IoSlice},
    ops::Range,
};

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) disk: Sim,
    pub(super) file: usize,
}

impl SimFile {
    /// Writes to the page cache or past it.
    pub(super) fn put(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let file = self.file;
        let at = position as usize;
        let crc = crc32c::crc32c(&bytes);
        let step = state.step(StepKind::Write, format_args!("write {file} {at} {} {crc:08x}", bytes.len()));
        let State { names, random, mode, off, .. } = &mut *state;
        let content = names.file_mut(file)?;
        match step {
            // If the power fails, each sector may or may not have been written, in any order.
            Ok(None | Some(Cut::Power)) => content.write(at, &bytes, random),
            Ok(Some(Cut::Kill)) => {
                let written = random.below(bytes.len() / SECTOR + 1) * SECTOR;
                content.write(at, &bytes[..written.min(bytes.len())], random);
            }
            // In this case nothing is known about the range, also where there was no room for it.
            Err(error) if !*off => {
                for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                    if random.one_in(2) {
                        content.write(at + n * SECTOR, sector, random);
                    }
                }
                if *mode == Mode::Direct {
                    content.sync();
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        state.alive()
    }

    /// Reads, which fails if something in a range of the file cannot be read.
    fn get(&self, buf: &mut [u8], position: u64, needs: Range<usize>) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step(StepKind::Read, format_args!("read {} {position} {}", self.file, buf.len()))?;
        let content = state.names.file(self.file)?;
        if !content.is_readable(needs) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let from = content.bytes().get(position as usize..).unwrap_or_default();
        buf.copy_from_slice(from.get(..buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// One step, which is all of [`File::sync`], and a part of other operations.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let step = state.step(StepKind::Sync, format_args!("sync {}", self.file));
        let State { names, random, off, .. } = &mut *state;
        let content = names.file_mut(self.file)?;
        match step {
            Ok(None) => content.sync(),
            Ok(Some(_)) => return Err(gone()), // each sector that was not synced is kept or lost
            Err(error) => {
                if !*off {
                    content.fail_to_sync(random);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.alive()?;
        Ok(state.names.file(self.file)?.bytes().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        // The page cache reads whole pages.
        let (page, from) = (BLOCK as usize, position as usize);
        self.get(buf, position, from / page * page..(from + buf.len()).next_multiple_of(page))
    }

    fn read_once(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        assert!(buf.as_ptr().addr().is_multiple_of(SECTOR) && position.is_multiple_of(SECTOR as u64));
        self.get(buf, position, position as usize..position as usize + buf.len())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        while self.disk.state().plan.held {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        assert!(position.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK));
        self.put(parts, position)?;
        let mode = self.disk.state().mode;
        match mode {
            Mode::Buffered => self.flush(),
            Mode::Direct => {
                let mut state = self.disk.state();
                state.alive()?;
                state.names.file_mut(self.file)?.sync();
                Ok(())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.flush()?;
        self.disk.state().names.file_mut(self.file)?.reread();
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.meanwhile();
        let file = self.file;
        self.disk.state().whole_step(
            StepKind::Write,
            format_args!("set length {file} {length}"),
            |names| {
                names.file_mut(file)?.set_len(length as usize);
                Ok(())
            },
        )?;
        self.flush()
    }

    fn reserve(&self, length: u64, _: Range<u64>) -> io::Result<()> {
        let mut state = self.disk.state();
        state.alive()?;
        let missing = length.saturating_sub(state.names.file(self.file)?.bytes().len() as u64);
        if missing > 0 && state.plan.room.is_some_and(|room| state.used() + missing > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.step(StepKind::Create, format_args!("reserve {} {length}", self.file))?;
        state.alive()?;
        if missing > 0 {
            state.names.file_mut(self.file)?.set_len(length as usize);
        }
        Ok(())
    }
}
