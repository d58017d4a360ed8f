//! A log's directory: the names that may be in it, its locks, its id.

use super::super::Error;
use crate::{
    LogId,
    disk::{Aligned, BLOCK, Disk, is_transient, salvage},
    segment::{file, header::Header},
};
use std::{io, path::Path};

/// The lock file's name.
pub(super) const LOCK: &str = "lock";
/// The lock file for all logs in a directory, next to their directories: a process that holds it exclusively needs no
/// lock per log.
pub(crate) const COMMON_LOCK: &str = ".lock";
/// The suffix of damaged files that `repair` keeps.
pub(in crate::log) const DAMAGED: &str = ".damaged";
/// The suffix of torn ends that opening cuts off and keeps.
pub(super) const TORN: &str = ".torn";

/// The file beside the segments with what is known about producers up to some offset. It is always replaced as a whole,
/// like the two below.
pub(in crate::log) const PRODUCERS: &str = "producers.json";
/// The file beside the segments with the positions of consumers.
pub(in crate::log) const CURSORS: &str = "cursors.json";
/// The file with the log's settings, if the log is one of a store's.
pub(crate) const SETTINGS: &str = "log.json";

/// Whether a log's directory may have a file of this name.
pub(crate) fn is_ours(name: &str) -> bool {
    name == LOCK
        || name == COMMON_LOCK // left by versions that took a log's directory for one of many logs
        || [PRODUCERS, CURSORS, SETTINGS].contains(&name.strip_suffix(".tmp").unwrap_or(name))
        || file::base_of(name).is_some()
        || file::is_temporary(name)
        || name.ends_with(DAMAGED)
        || name.ends_with(TORN)
}

/// The id of the log in `dir`, if there is one and one of its headers can be read.
///
/// # Errors
/// Transient errors.
pub(crate) fn id_of(disk: &dyn Disk, dir: &Path) -> io::Result<Option<LogId>> {
    for name in disk.list(dir)?.iter().filter(|name| file::base_of(name).is_some()) {
        let mut block = Aligned::new(BLOCK as usize)?;
        let read =
            disk.open(&dir.join(name), false).and_then(|file| salvage::read(&*file, &mut block, 0, true));
        match read {
            Err(error) if is_transient(&error) => return Err(error),
            // Unreadable parts are zeros: the copy in another sector is as good.
            Ok(_) => {
                let header = block.first_chunk().and_then(|block| Header::decode(block).ok());
                if let Some(found) = header {
                    return Ok(Some(found.header.log));
                }
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Takes the directory's lock, unless the directory holds foreign files.
pub(in crate::log) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>, Error> {
    let own = lock_own(disk, dir)?;
    // In this order: a process that holds the common lock exclusively has tried the lock above before, or will find it
    // held.
    let path = dir.join("..").join(COMMON_LOCK);
    let common = disk.join_lock(&path).map_err(|error| not_locked(dir, &path, error))?;
    Ok(Box::new((own, common)))
}

/// Returns an error if another process has opened this log on its own. The caller holds the common lock exclusively, so
/// nobody can do so afterwards, and the log's own lock file need not stay open.
#[cfg(feature = "store")]
pub(in crate::log) fn ensure_free(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    lock_own(disk, dir).map(drop)
}

/// Returns the names in a log's directory; an error if there is something that is not a log's.
pub(crate) fn only_ours(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, Error> {
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    match names.iter().find(|name| !is_ours(name)) {
        Some(foreign) => Err(Error::NotALog { dir: dir.to_owned(), found: foreign.clone() }),
        None => Ok(names),
    }
}

fn lock_own(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>, Error> {
    only_ours(disk, dir)?;
    let path = dir.join(LOCK);
    disk.lock(&path).map_err(|error| not_locked(dir, &path, error))
}

fn not_locked(dir: &Path, path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => Error::InUse { dir: dir.to_owned() },
        _ => Error::io("lock", path)(error),
    }
}
