//! Files in memory that outlive the process. They are in a directory of the user's own in `/dev/shm` or the like, with
//! a subdirectory for each owner of files, so that finding one's own files does not take longer when there are many
//! others.

use super::MemoryDir;
use crate::sync::lock_std;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// A directory of files in memory that outlive the process.
#[derive(Debug)]
pub(super) struct ShmDir(PathBuf);

/// How many times a directory is created again after another process has removed it while it was still empty.
#[cfg(all(target_os = "linux", not(loom)))]
const MAX_ATTEMPTS: usize = 100;

/// Whether an error may come from a directory that is being removed at this moment: its name is gone, or nothing can be
/// put into it any more.
#[cfg(all(target_os = "linux", not(loom)))]
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

/// Held while an owner's directory is created and a file in it gets its name, and while it is removed.
static NAMES: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Creates a directory that only this user can access, unless something of that name exists.
fn make(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

impl ShmDir {
    /// See [`Disk::memory`](super::Disk::memory).
    pub(super) fn open(at: &Path) -> io::Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let dir = at.join(format!("millstream-{user}"));
        make(&dir)?;
        let found = fs::symlink_metadata(&dir)?;
        if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
            let reason = format!("{} is not a directory that only this user can access", dir.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(Self(dir))
    }
}

impl MemoryDir for ShmDir {
    fn of(&self, owner: &str) -> Box<dyn MemoryDir> {
        Box::new(Self(self.0.join(owner)))
    }

    fn remove_if_empty(&self) {
        let _names = lock_std(&NAMES);
        let _ = fs::remove_dir(&self.0); // what stays is found at the next start
    }

    #[cfg(all(target_os = "linux", not(loom)))]
    fn create(&self, name: &str, length: u64, head: &[u8]) -> io::Result<fs::File> {
        use rustix::{
            fs::{AtFlags, CWD, Mode, OFlags},
            io::retry_on_intr,
        };
        use std::os::{fd::AsRawFd, unix::fs::FileExt};
        // Create the file in the user's directory, which stays. The owner's may be removed at any moment while it is
        // empty, because the process that drops this owner's last file removes it. So the only steps left for the loop
        // below are to create the owner's directory and to give the file its name.
        let above = self.0.parent().unwrap_or(&self.0);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file: fs::File =
            retry_on_intr(|| rustix::fs::open(above, flags, Mode::RUSR | Mode::WUSR))?.into();
        super::calls::reserve(&file, length)?;
        file.write_all_at(head, 0)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let path = self.0.join(name);
        let mut attempts = 0;
        let _names = lock_std(&NAMES);
        loop {
            make(&self.0)?;
            let named =
                retry_on_intr(|| rustix::fs::linkat(CWD, &unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW));
            match named.map_err(io::Error::from) {
                Err(error) if is_gone(&error) && attempts < MAX_ATTEMPTS => {
                    attempts += 1; // another process removed it
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(file),
            }
        }
    }

    /// Only Linux has files without a name.
    #[cfg(not(any(target_os = "linux", loom)))]
    fn create(&self, _: &str, _: u64, _: &[u8]) -> io::Result<fs::File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        match super::calls::repeated(|| fs::read_dir(&self.0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        }
    }

    fn open(&self, name: &str) -> io::Result<fs::File> {
        fs::File::open(self.0.join(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.0.join(name)); // what stays is found at the next start
    }
}
