//! Reading as much as a disk can still read.

use super::{BLOCK, File};
use std::{io, ops::Range};

/// The unit that a device reads as a whole or not at all: no less than this is lost with a bad one.
pub(crate) const SECTOR: usize = 512;

/// Fills `buf` from `position` on, and returns the ranges of it that the disk cannot read, even on a second attempt;
/// they hold zeros. Everything that can be read is read, whatever is next to it. Reads past the page cache unless
/// `cached`; then `buf` must start at a page boundary.
///
/// # Errors
/// Errors that say nothing about what is on the disk, and [`io::ErrorKind::UnexpectedEof`].
pub(crate) fn read(
    file: &dyn File,
    buf: &mut [u8],
    position: u64,
    cached: bool,
) -> io::Result<Vec<Range<usize>>> {
    let mut bad = Vec::new();
    if !readable(if cached { file.read_at(buf, position) } else { file.read_once(buf, position) })? {
        read_parts(file, buf, 0, position, &PARTS, &mut bad)?;
    }
    Ok(bad)
}

/// In what parts a range that cannot be read as a whole is read, and each part of those: one bad sector costs some
/// hundred reads, wherever it is.
const PARTS: [usize; 3] = [64 * BLOCK as usize, BLOCK as usize, SECTOR];

/// Fills `buf`, which is at `start` of the whole buffer, in parts of the first of these sizes. Adds to `bad` what cannot be
/// read.
fn read_parts(
    file: &dyn File,
    buf: &mut [u8],
    start: usize,
    position: u64,
    sizes: &[usize],
    bad: &mut Vec<Range<usize>>,
) -> io::Result<()> {
    let Some((&size, smaller)) = sizes.split_first() else { return Ok(()) };
    for (n, part) in buf.chunks_mut(size).enumerate() {
        let at = n * size;
        let (start, position) = (start + at, position + at as u64);
        if readable(file.read_once(part, position))? {
            continue;
        }
        if !smaller.is_empty() {
            read_parts(file, part, start, position, smaller, bad)?;
        } else if !readable(file.read_once(part, position))? {
            part.fill(0);
            let end = start + part.len();
            match bad.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => bad.push(start..end),
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
