//! Reading what a disk can still read.

use super::{BLOCK, File};
use std::{io, ops::Range};

/// What a device reads as a whole, or not at all: no smaller part is lost with a bad one.
pub(crate) const SECTOR: usize = 512;

/// Fills `buf` from `position` on, and says which of its bytes the disk cannot read, not even when it is asked again:
/// zeros stand there. What can be read is, whatever is next to it. Past the page cache, if it is not `cached`; then `buf`
/// begins at a page.
///
/// # Errors
/// Those that say nothing of what is on the disk, and [`io::ErrorKind::UnexpectedEof`].
pub(crate) fn read(
    file: &dyn File,
    buf: &mut [u8],
    position: u64,
    cached: bool,
) -> io::Result<Vec<Range<usize>>> {
    let mut bad: Vec<Range<usize>> = Vec::new();
    if readable(if cached { file.read_at(buf, position) } else { file.read_once(buf, position) })? {
        return Ok(bad);
    }
    for (n, block) in buf.chunks_mut(BLOCK as usize).enumerate() {
        let at = n * BLOCK as usize;
        if readable(file.read_once(block, position + at as u64))? {
            continue;
        }
        for (n, sector) in block.chunks_mut(SECTOR).enumerate() {
            let at = at + n * SECTOR;
            let (from, end) = (position + at as u64, at + sector.len());
            if readable(file.read_once(sector, from))? || readable(file.read_once(sector, from))? {
                continue;
            }
            sector.fill(0);
            match bad.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => bad.push(at..end),
            }
        }
    }
    Ok(bad)
}

/// Frames of a segment cannot be read, at these bytes: said after looking for a record among all of them.
#[derive(Debug, thiserror::Error)]
#[error("bytes {0:?} of the segment's frames cannot be read")]
pub(crate) struct Unreadable(pub(crate) Range<usize>);

/// Whether an error says that the disk cannot read what is there: a sector that has gone bad, a checksum of the file system
/// that does not match. It may be read the next time, or never again.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // What the block layer and file systems say, beside EIO: ENODATA of a medium error, EILSEQ of a protection error,
    // EREMOTEIO of a device that has failed; EBADMSG and EUCLEAN of checksums.
    let bad = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::BADMSG, Errno::UCLEAN];
    error.raw_os_error().is_some_and(|number| bad.contains(&Errno::from_raw_os_error(number)))
        || matches!(error.get_ref(), Some(inner) if inner.is::<Unreadable>())
}

/// Whether something was read, or the disk says that it cannot read what is there.
fn readable(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Err(error) if !is_unreadable(&error) => Err(error),
        read => Ok(read.is_ok()),
    }
}
