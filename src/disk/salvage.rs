//! Reading as much as a disk can still read.

use super::{Aligned, BLOCK, File};
use std::{io, ops::Range};

/// The unit that a device reads as a whole or not at all: no less than this is lost with a bad one.
pub(crate) const SECTOR: usize = 512;

/// Fills `buf` from `position` on, and returns the ranges of it that the disk cannot read, even on a second attempt;
/// they hold zeros. Everything that can be read is read, whatever is next to it and wherever `position` is. Reads past
/// the page cache unless `cached`; then `buf` must start at a page boundary.
///
/// # Errors
/// Errors that say nothing about what is on the disk, and [`io::ErrorKind::UnexpectedEof`].
pub(crate) fn read(
    file: &dyn File,
    buf: &mut [u8],
    position: u64,
    cached: bool,
) -> io::Result<Vec<Range<usize>>> {
    if readable(if cached { file.read_at(buf, position) } else { file.read_once(buf, position) })? {
        return Ok(Vec::new());
    }
    let end = position + buf.len() as u64;
    // Whole sectors, in memory that begins as they do: reads past the page cache require that, and one through it fails
    // for a whole page.
    let first = position - position % SECTOR as u64;
    let last = end.next_multiple_of(SECTOR as u64).min(file.len()?).max(end);
    let (mut memory, mut bad) = (Aligned::new(PARTS[0] as usize)?, Vec::new());
    for part in parts(first..last, PARTS[0]) {
        let bytes = &mut memory[..(part.end - part.start) as usize];
        read_parts(file, bytes, part.start, &PARTS, &mut bad)?;
        let wanted = part.start.max(position)..part.end.min(end);
        buf[within(&wanted, position)].copy_from_slice(&bytes[within(&wanted, part.start)]);
    }
    Ok(bad.iter().map(|bad| within(&(bad.start.max(position)..bad.end.min(end)), position)).collect())
}

/// A range that cannot be read as a whole is read in parts of the first size, a part that cannot be read in parts of
/// the second, and so on. So one bad sector costs some hundred reads, wherever it is.
const PARTS: [u64; 3] = [64 * BLOCK, BLOCK, SECTOR as u64];

/// Cuts a range of a file at multiples of `size` in the file, wherever the range begins. If parts were counted from the
/// beginning of the range, a bad sector could spoil two of them.
fn parts(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let (mut at, end) = (range.start, range.end);
    std::iter::from_fn(move || {
        let start = at;
        at = (start - start % size + size).min(end);
        (start < at).then_some(start..at)
    })
}

/// Where a range of a file is in a buffer that begins at `position` of it.
fn within(range: &Range<u64>, position: u64) -> Range<usize> {
    (range.start - position) as usize..(range.end - position) as usize
}

/// Fills `buf` from `position` on in parts of the first of these sizes. Adds to `bad` which ranges of the file cannot be
/// read; there it has zeros.
fn read_parts(
    file: &dyn File,
    buf: &mut [u8],
    position: u64,
    sizes: &[u64],
    bad: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    let Some((&size, smaller)) = sizes.split_first() else { return Ok(()) };
    for part in parts(position..position + buf.len() as u64, size) {
        let bytes = &mut buf[within(&part, position)];
        if readable(file.read_once(bytes, part.start))? {
            continue;
        }
        if !smaller.is_empty() {
            read_parts(file, bytes, part.start, smaller, bad)?;
        } else if !readable(file.read_once(bytes, part.start))? {
            bytes.fill(0);
            match bad.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => bad.push(part),
            }
        }
    }
    Ok(())
}

/// Some bytes of a segment's frames cannot be read: reported after looking for a record among all its frames.
#[derive(Debug, thiserror::Error)]
#[error("bytes {0:?} of the segment's frames cannot be read")]
pub(crate) struct Unreadable(pub(crate) Range<usize>);

/// Whether an error says that the disk cannot read what is stored there: a sector has gone bad, or a checksum of the
/// file system does not match. The next attempt may succeed, or none ever.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // What Linux's block layer and file systems report besides EIO: ENODATA for a medium error, EILSEQ for a protection
    // error, EREMOTEIO for a device that has failed; EBADMSG and EUCLEAN for checksums.
    #[cfg(target_os = "linux")]
    let bad = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::BADMSG, Errno::UCLEAN];
    #[cfg(not(target_os = "linux"))]
    let bad = [Errno::IO, Errno::ILSEQ, Errno::BADMSG];
    error.raw_os_error().is_some_and(|number| bad.contains(&Errno::from_raw_os_error(number)))
        || matches!(error.get_ref(), Some(inner) if inner.is::<Unreadable>())
}

/// Whether something was read; `false` if the disk says that it cannot read what is stored there.
pub(crate) fn readable(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Err(error) if !is_unreadable(&error) => Err(error),
        read => Ok(read.is_ok()),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::io::IoSlice;

    /// A file with bad sectors. Through the page cache, a whole page fails with one.
    #[derive(Debug)]
    struct Spoilt {
        bytes: Vec<u8>,
        bad: Vec<usize>,
    }

    impl Spoilt {
        fn read(&self, buf: &mut [u8], range: Range<usize>, position: usize) -> io::Result<()> {
            if self.bad.iter().any(|&at| range.start < at + SECTOR && at < range.end) {
                return Err(rustix::io::Errno::IO.into());
            }
            let bytes = self.bytes.get(position..position + buf.len());
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    impl File for Spoilt {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }

        fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
            let (page, position) = (BLOCK as usize, position as usize);
            let pages = position / page * page..(position + buf.len()).next_multiple_of(page);
            self.read(buf, pages, position)
        }

        fn read_once(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
            assert!(buf.as_ptr().addr().is_multiple_of(SECTOR) && position.is_multiple_of(SECTOR as u64));
            self.read(buf, position as usize..position as usize + buf.len(), position as usize)
        }

        fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
            unreachable!()
        }

        fn sync(&self) -> io::Result<()> {
            unreachable!()
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!()
        }

        fn reserve(&self, _: u64, _: Range<u64>) -> io::Result<()> {
            unreachable!()
        }
    }

    /// Sectors beside a bad one were taken for bad where what was read began in the middle of one.
    #[test]
    fn nothing_but_bad_sectors_is_lost_wherever_a_range_begins_and_ends() {
        let length = (270 << 10) + 40; // not whole sectors
        let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8 | 1).collect();
        let file = Spoilt { bytes, bad: vec![8192, 8704, 11_776, (256 << 10) - 512] };
        for (from, short) in [(0, 0), (8, 8), (4088, 40), (8200, 0), (8192, 16), (8696, 1000), (9208, 14_000)]
        {
            let end = length - short;
            let mut buf = vec![7; end - from];
            let bad = read(&file, &mut buf, from as u64, true).unwrap();
            let all = [8192..9216, 11_776..12_288, 261_632..262_144];
            let all = all.into_iter().filter(|bad| bad.end > from);
            let expected: Vec<_> = all.map(|bad| bad.start.max(from) - from..bad.end - from).collect();
            assert_eq!(bad, expected, "from {from} to {end}");
            for (n, &byte) in buf.iter().enumerate() {
                let is_bad = expected.iter().any(|bad| bad.contains(&n));
                assert_eq!(byte, if is_bad { 0 } else { file.bytes[from + n] }, "{n} from {from} to {end}");
            }
        }
        let beyond = read(&file, &mut vec![0; length], 8, true);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
