//! What opening cuts off and keeps aside: bytes after the last record that are not zeros. They are what a crash left of
//! a write that was never acknowledged; or, if a disk has lost what it reported as written, all that is left of records
//! that were acknowledged. Nobody can tell the two apart, so they are kept for a while.

use super::{
    super::{Error, stats},
    dir::TORN,
};
use crate::disk::{Aligned, BLOCK, Disk, salvage, tree};
use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
};

/// The most files that are kept for a log.
const MAX_FILES: usize = 8;
/// The most bytes of each: a commit writes no more than 8 MiB at once, or one batch.
const MAX_BYTES: usize = 16 << 20;

/// The torn files among `names`, oldest first.
pub(super) fn torn_files(dir: &Path, names: &[String]) -> Vec<PathBuf> {
    let mut torn: Vec<_> =
        names.iter().filter(|name| name.ends_with(TORN)).map(|name| dir.join(name)).collect();
    torn.sort_unstable_by_key(|path| number(path));
    torn
}

/// The parts of a name: `OFFSET-NUMBER.torn`.
fn parts(path: &Path) -> Option<(&str, &str)> {
    path.file_name()?.to_str()?.strip_suffix(TORN)?.rsplit_once('-')
}

/// How many files had been kept before this one.
fn number(path: &Path) -> u64 {
    parts(path).and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

fn offset(path: &Path) -> Option<u64> {
    parts(path)?.0.parse().ok()
}

/// The part of `tail` that is to be kept: up to its last byte that is not zero, within bounds.
pub(super) fn to_be_kept(tail: &[u8]) -> &[u8] {
    // Whole blocks first: it is 64 MiB of zeros as a rule.
    let is_zero = |bytes: &&[u8]| bytes.iter().all(|&byte| byte == 0);
    let zeros = tail.rchunks(BLOCK as usize).take_while(is_zero).map(<[u8]>::len).sum::<usize>();
    let tail = &tail[..tail.len() - zeros];
    let end = tail.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    &tail[..end.min(MAX_BYTES)]
}

/// Keeps `tail`, which follows the record before offset `next`, unless it is all zeros. Durable on return. If too many
/// files are kept, the oldest are removed.
pub(super) fn set_aside(disk: &dyn Disk, dir: &Path, next: u64, tail: &[u8]) -> Result<(), Error> {
    let kept = to_be_kept(tail);
    if kept.is_empty() {
        return Ok(());
    }
    let names = disk.list(dir).map_err(Error::io("list", dir))?;
    let torn = torn_files(dir, &names);
    // An earlier opening may have kept it and then failed: once is enough, however often that happens.
    if let Some(newest) = torn.last().filter(|newest| offset(newest) == Some(next))
        && holds(disk, newest, kept).map_err(Error::io("read", newest))?
    {
        return disk.sync_dir(dir).map_err(Error::io("sync", dir));
    }
    let number = torn.last().map_or(0, |newest| number(newest) + 1);
    let path = dir.join(format!("{next:020}-{number}{TORN}"));
    create(disk, dir, &path, kept).map_err(|error| match error {
        full if crate::disk::is_full(&full) => Error::full(full),
        error => Error::io("keep the torn end of a segment as", &path)(error),
    })?;
    for old in torn.iter().take((torn.len() + 1).saturating_sub(MAX_FILES)) {
        disk.remove(old).map_err(Error::io("remove", old))?;
    }
    stats::kept_torn();
    tracing::warn!(
        path = %path.display(), next_offset = next, bytes = kept.len(),
        "cut off and kept aside what follows the last whole record: the torn end of a write, or what is left of records that \
         the disk has lost"
    );
    Ok(())
}

/// Creates a file with these bytes. Durable on return.
fn create(disk: &dyn Disk, dir: &Path, path: &Path, kept: &[u8]) -> io::Result<()> {
    let mut bytes = Aligned::new(kept.len())?;
    bytes[..kept.len()].copy_from_slice(kept);
    tree::create_whole(disk, &dir.join("next-torn.tmp"), path, &[IoSlice::new(&bytes)], kept.len() as u64)
}

/// Whether a file has exactly these bytes.
fn holds(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let file = disk.open(path, false)?;
    if file.len()? != bytes.len() as u64 {
        return Ok(false);
    }
    let mut there = Aligned::new(bytes.len())?;
    let bad = salvage::read(&*file, &mut there[..bytes.len()], 0, true)?;
    Ok(bad.is_empty() && there[..bytes.len()] == *bytes)
}
