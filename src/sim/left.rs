//! What killed processes, and recoveries, have left of a log besides its files.

use crate::{LogId, disk::sim::Sim};
use std::path::{Path, PathBuf};

/// The backings below `dir`.
pub(super) fn left_files(dir: &Path) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() { left.extend(left_files(&entry.path())) } else { left.push(entry.path()) }
    }
    left
}

/// Their contents.
pub(super) fn frozen(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |path: PathBuf| std::fs::read(&path).ok().map(|bytes| (path, bytes));
    left_files(dir).into_iter().filter_map(read).collect()
}

/// Whether something of the log in `dir` was kept aside: a torn end, or memory.
pub(super) fn has_kept(sim: &Sim, dir: &Path, at: &Path, id: LogId) -> bool {
    let of_it = |path: &PathBuf| path.parent().is_some_and(|dir| dir.ends_with(id.to_string()));
    sim.dump().into_keys().any(|path| path.starts_with(dir) && is_torn(&path))
        || left_files(at).iter().any(of_it)
}

/// Whether this is a torn end that recovery has kept aside.
pub(super) fn is_torn(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "torn")
}
