//! What the store does with directories and small files: always the system's, and durable on return.

use super::{Disk, native};
use std::{fs, io, path::Path};

/// Puts a small file of these bytes at `path`, in place of any other: after a crash there is the old one or the
/// new one, whole. Uses the name with `.tmp` behind it on the way.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut passing = path.as_os_str().to_owned();
    passing.push(".tmp");
    let mut file = fs::File::create(&passing)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&passing, path)?;
    native::sync_dir(path.parent().unwrap_or(Path::new("")))
}

/// All of a small file; `None` where there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Moves a directory to another name beside it.
pub(crate) fn rename_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    native::sync_dir(from.parent().unwrap_or(Path::new("")))
}

/// Removes a directory and all that is in it; not durable, since what is left is found and removed again.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    fs::remove_dir_all(dir)
}

/// The names of the directories in `dir`, which is made if it is missing.
pub(crate) fn dirs(dir: &Path) -> io::Result<Vec<String>> {
    Disk::create_dir(&*native::native(), dir)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}
