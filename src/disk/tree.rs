//! Operations on directories, and on files that are written or read as a whole.

#[cfg(feature = "store")]
use super::salvage;
use super::{BLOCK, Disk};
use std::{
    io::{self, IoSlice},
    path::Path,
};

/// The directory that `path` is in.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Puts a small file with these bytes at `path`, replacing any other: after a crash there is the old file or the new
/// one, whole. Durable on return. Uses the name plus `.tmp` as a temporary name.
#[cfg(feature = "store")]
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    disk.write_file(temporary, bytes)?;
    disk.rename(temporary, path)?;
    disk.sync_dir(parent(path))
}

/// Creates a file of `length` bytes, the first of these blocks, under a temporary name first, so that there is all of it
/// or nothing. Durable on return.
pub(crate) fn create_whole(
    disk: &dyn Disk,
    temporary: &Path,
    path: &Path,
    blocks: &[IoSlice<'_>],
    length: u64,
) -> io::Result<()> {
    let file = disk.create(temporary, length.next_multiple_of(BLOCK))?;
    file.write_at(blocks, 0)?;
    file.set_len(length)?;
    disk.rename(temporary, path)?;
    disk.sync_dir(parent(path))
}

/// Reads a whole small file; `None` if it does not exist.
#[cfg(feature = "store")]
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = vec![0; file.len()? as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Reads a whole small file; `None` if it does not exist, and no bytes if the disk cannot read it, not even on the second
/// attempt: like a file that does not verify.
#[cfg(feature = "store")]
pub(crate) fn read_or_nothing(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let read = || read(disk, path);
    match read().or_else(|error| if salvage::is_unreadable(&error) { read() } else { Err(error) }) {
        Err(error) if salvage::is_unreadable(&error) => Ok(Some(Vec::new())),
        read => read,
    }
}

/// Whether the file exists.
#[cfg(feature = "store")]
pub(crate) fn is_there(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    match disk.open(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        opened => opened.map(|_| true),
    }
}

/// Moves a directory to another name in the same parent. Durable on return.
#[cfg(feature = "store")]
pub(crate) fn rename_dir(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    disk.rename(from, to)?;
    disk.sync_dir(parent(from))
}
