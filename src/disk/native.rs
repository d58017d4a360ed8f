//! The system's directories, and the choice of which kind of file to use in them.

use super::{Disk, File, MemoryDir, Node, buffered::BufferedFile, calls, is_read_only, shm::ShmDir, unknown};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The system's files.
pub(crate) fn native() -> Arc<dyn Disk> {
    Arc::new(Native)
}

#[derive(Debug)]
struct Native;

/// A file that is written directly if the file system supports it, and through `file` if not.
fn writable(file: fs::File, path: &Path) -> io::Result<Box<dyn File>> {
    #[cfg(target_os = "linux")]
    match super::direct::DirectFile::open(path) {
        Ok(direct) => return Ok(Box::new(direct)),
        Err(error) if super::is_transient(&error) => return Err(error),
        Err(_) => {} // the file system does not support it
    }
    let _ = path;
    Ok(Box::new(BufferedFile(file)))
}

impl Disk for Native {
    fn in_parallel(&self) -> bool {
        true
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if dir.is_dir() {
            // A process that was killed may have created it without getting to sync its name.
            return match self.sync_dir(parent) {
                // A process that may not list the parent has not created a directory in it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                synced => synced,
            };
        }
        self.create_dir(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !dir.is_dir() => Err(error),
            _ => self.sync_dir(parent),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        calls::repeated(|| fs::read_dir(dir))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn File>> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let reserved = calls::reserve(&file, length).and_then(|()| writable(file, path));
        reserved.inspect_err(|_| {
            let _ = fs::remove_file(path); // do not keep the space that could be reserved
        })
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        let file = fs::File::options().read(true).write(write).open(path)?;
        if write { writable(file, path) } else { Ok(Box::new(BufferedFile(file))) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    #[cfg(feature = "store")]
    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => Ok(found?.is_dir()),
        }
    }

    #[cfg(feature = "store")]
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in calls::repeated(|| fs::read_dir(dir))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            } else if kind.is_symlink() && entry.path().is_dir() {
                let link = entry.path();
                tracing::warn!(link = %link.display(), "a symbolic link is not a log: mount the directory there instead");
            }
        }
        Ok(names)
    }

    #[cfg(feature = "store")]
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    #[cfg(feature = "store")]
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = fs::File::create(path)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    }

    fn memory(&self, at: &Path) -> io::Result<Box<dyn MemoryDir>> {
        Ok(Box::new(ShmDir::open(at)?))
    }

    fn node(&self, dir: &Path) -> io::Result<Node> {
        let found = fs::metadata(dir)?;
        Ok((found.dev(), found.ino()))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = match fs::File::options().create(true).truncate(false).write(true).open(path) {
            // Nobody can create it there, nor write what it guards; but locks of others count as anywhere else.
            Err(error) if is_read_only(&error) => match fs::File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Box::new(())),
                file => file?,
            },
            file => file?,
        };
        calls::repeated(|| file.try_lock().map_err(io::Error::from))?;
        Ok(Box::new(Lock(file)))
    }

    fn join_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        calls::repeated(|| file.try_lock_shared().map_err(io::Error::from))?;
        Ok(Some(Box::new(Lock(file))))
    }
}

/// A lock on a file. Closing the file would release it only once nobody else has the file open in the same way: a
/// process that another thread is starting has, from its fork until it runs its program.
struct Lock(fs::File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = calls::repeated(|| self.0.unlock()); // otherwise closing it does that, perhaps a moment later
    }
}

/// Makes the names in `dir` durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_owned() };
    fs::File::open(dir)?.sync_all().map_err(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Aligned, BLOCK};
    use std::io::IoSlice;

    /// Both kinds of file keep what was written to them, in a directory on the disk and in one in memory.
    #[test]
    fn files_keep_what_was_written_wherever_they_are() {
        let places = [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()];
        for place in &places {
            let path = place.path().join("a");
            let disk = native();
            let file = disk.create(&path, 4 * BLOCK).unwrap();
            assert_eq!(file.len().unwrap(), 4 * BLOCK);
            let (mut one, mut two) = (Aligned::new(1).unwrap(), Aligned::new(4097).unwrap());
            one.fill(1);
            two.fill(2);
            file.write_at(&[IoSlice::new(&one), IoSlice::new(&two)], BLOCK).unwrap();
            let mut read = vec![9; 4 * BLOCK as usize];
            disk.open(&path, false).unwrap().read_at(&mut read, 0).unwrap();
            let expected: Vec<u8> = [0, 1, 2, 2].iter().flat_map(|&byte| [byte; BLOCK as usize]).collect();
            assert!(read == expected);
            file.set_len(BLOCK).unwrap();
            assert_eq!(file.read_at(&mut read, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    /// A log could not be opened again (`InUse`) at the moment in which another thread started a process, which had
    /// inherited the lock.
    #[test]
    fn a_lock_that_a_process_has_inherited_is_released_by_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("lock")).unwrap();
        file.try_lock().unwrap();
        let (held, _inherited) = (Lock(file.try_clone().unwrap()), file);
        assert!(native().lock(&dir.path().join("lock")).is_err());
        drop(held);
        native().lock(&dir.path().join("lock")).unwrap();
    }

    #[test]
    fn a_lock_keeps_a_second_holder_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = native().lock(&path).unwrap();
        assert_eq!(native().lock(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        native().lock(&path).unwrap();
    }

    #[test]
    fn a_shared_lock_has_any_number_of_holders_and_excludes_an_exclusive_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(native().join_lock(&path).unwrap().is_none());
        let alone = native().lock(&path).unwrap();
        assert_eq!(native().join_lock(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(alone);
        let joined = [(); 2].map(|()| native().join_lock(&path).unwrap().unwrap());
        assert_eq!(native().lock(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(joined);
        native().lock(&path).unwrap();
    }
}
