//! Files written through the page cache: `pwrite`, then `fdatasync` on the same descriptor, so that a write-back error
//! is reported here and not to somebody else. For file systems that refuse `O_DIRECT`, and for macOS (where std's
//! `sync_data` is `F_FULLFSYNC`).

use super::{File, calls, of_write, unknown};
use std::{
    fs,
    io::{self, IoSlice},
    ops::Range,
    os::unix::fs::FileExt,
};

#[derive(Debug)]
pub(super) struct BufferedFile(pub(super) fs::File);

impl File for BufferedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, position)
    }

    #[cfg(target_os = "linux")]
    fn read_once(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        calls::read(&self.0, buf, position)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let mut at = position;
        for part in parts {
            self.0.write_all_at(part, at).map_err(of_write)?;
            at += part.len() as u64;
        }
        self.0.sync_data().map_err(unknown)
    }

    fn sync(&self) -> io::Result<()> {
        calls::sync(&self.0)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)?;
        self.0.sync_all().map_err(unknown)
    }

    fn reserve(&self, length: u64, written: Range<u64>) -> io::Result<()> {
        calls::reserve_again(&self.0, length, written)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::disk::{Aligned, is_full};

    /// It was reported as one of which nothing is known, which is final.
    #[test]
    fn a_write_that_finds_no_room_says_so() {
        let full = fs::File::options().read(true).write(true).open("/dev/full").unwrap();
        let block = Aligned::new(1).unwrap();
        let error = BufferedFile(full).write_at(&[IoSlice::new(&block)], 0).unwrap_err();
        assert!(is_full(&error), "{error:?}");
    }
}
