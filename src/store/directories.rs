//! Creating and removing a log's directory. Whatever fails half-way is undone, or found and finished by the next
//! attempt: under a log's name there is a whole log or nothing, and everything under a temporary name is removed sooner
//! or later.

use super::{DELETED, Entry, Error, Inner, LogError, LogSettings, OpenLog, SETTINGS};
use crate::{
    disk::{Disk, is_transient, tree},
    sync::lock,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{MutexGuard, atomic::Ordering},
};

impl Inner {
    /// A path that no log has and that no other deleted log had.
    pub(super) fn temporary_dir(&self, name: &str) -> PathBuf {
        let number = self.temporary_names.fetch_add(1, Ordering::Relaxed);
        // The clock may have been set back, and a directory that an earlier process gave such a name may still exist.
        let mut chance = [0; 8];
        let _ = self.env.machine.random(&mut chance); // without it, the name is as unique as the clock makes it
        let now = self.env.machine.now();
        let chance = u64::from_le_bytes(chance);
        self.dir.join(format!("{DELETED}{now}-{number}-{chance:016x}-{name}"))
    }

    /// Creates the directory under a temporary name first, so that there is never a log without its settings.
    pub(super) fn make_log(
        &self,
        name: &str,
        settings: &LogSettings,
        entry: &Entry,
    ) -> Result<OpenLog, Error> {
        let (from, dir) = (self.temporary_dir(name), self.dir.join(name));
        let disk = &*self.env.disk;
        let text = crate::settings::encode(settings);
        let path = from.join(SETTINGS);
        disk.create_dir(&from)
            .map_err(LogError::io("make the directory", &from))
            .and_then(|()| tree::replace(disk, &path, &text).map_err(LogError::io("write", &path)))
            .and_then(|()| disk.rename(&from, &dir).map_err(|error| name_error(&self.dir, name, error)))
            .inspect_err(|_| self.remove_dir(&from))?;
        let opened = disk.sync_dir(&self.dir).map_err(LogError::io("make the directory", &dir));
        let opened = opened.map_err(Error::from).and_then(|()| self.open_log(name, entry));
        if opened.is_err() {
            match tree::rename_dir(disk, &dir, &from) {
                Ok(()) => self.remove_dir(&from),
                Err(error) => {
                    tracing::warn!(name, %error, "a log that could not be opened cannot be removed again");
                    self.to_remove().push(from); // the rename may have happened without being durable
                }
            }
        }
        opened
    }

    /// Moves the directory of a log that is deleted to a temporary name. After an error the log is where it was.
    pub(super) fn rename_deleted(&self, name: &str, to: &Path) -> Result<(), Error> {
        let from = self.dir.join(name);
        match self.env.disk.rename(&from, to) {
            // Somebody has removed it, or the error came after it was moved.
            Err(_) if matches!(self.look_for(name), Ok(false)) => Ok(()),
            renamed => Ok(renamed.map_err(LogError::io("delete", &from))?),
        }
    }

    /// Makes it durable that a log has got a temporary name, and removes its directory; a later turn does both if that
    /// fails.
    pub(super) fn remove_renamed(&self, dir: &Path) -> Result<(), Error> {
        match self.env.disk.sync_dir(&self.dir) {
            Ok(()) => {
                self.remove_dir(dir);
                Ok(())
            }
            Err(error) => {
                self.to_remove().push(dir.to_owned());
                Err(LogError::io("make the deletion durable in", &self.dir)(error).into())
            }
        }
    }

    /// Whether there is a directory of this name that is not empty; an error if that is not known.
    pub(super) fn look_for(&self, name: &str) -> io::Result<bool> {
        let (disk, dir) = (&self.env.disk, self.dir.join(name));
        if !disk.is_dir(&dir)? {
            return Ok(false);
        }
        match disk.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false), // it was removed meanwhile
            names => Ok(!names?.is_empty()),
        }
    }

    /// Removes a directory that has a durable temporary name; if that fails, a later turn or the next start removes it.
    pub(super) fn remove_dir(&self, dir: &Path) {
        if let Err(error) = self.try_remove_dir(dir, true) {
            tracing::warn!(dir = %dir.display(), %error, "the rest of a log will be removed later");
            self.to_remove().push(dir.to_owned());
        }
    }

    /// Removes what could not be removed before. What still cannot be removed was reported already.
    pub(super) fn retry_removals(&self) {
        let left = std::mem::take(&mut *self.to_remove());
        // Their names may not be durable yet: if the power failed, an emptied directory would be back as a log. Synced
        // after they were taken: what is added meanwhile has to wait for the next time.
        let is_durable = self.env.disk.sync_dir(&self.dir).is_ok();
        let still = left.into_iter().filter(|dir| !is_durable || self.try_remove_dir(dir, false).is_err());
        let still: Vec<_> = still.collect();
        self.to_remove().extend(still);
    }

    fn try_remove_dir(&self, dir: &Path, warns: bool) -> io::Result<()> {
        match remove_deleted(&*self.env.disk, dir, self.options.log.shm_dir.as_deref(), warns) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Directories that are still to be removed.
    pub(super) fn to_remove(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        lock(&self.to_remove)
    }
}

/// Why the log `name` in `dir` could not get its name.
fn name_error(dir: &Path, name: &str, error: io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::NotADirectory => LogError::NotALog { dir: dir.to_owned(), found: name.to_owned() },
        _ => LogError::io("make the directory", &dir.join(name))(error),
    }
}

/// Whether a directory could not be given its name because another directory has it.
pub(super) fn is_taken(error: &Error) -> bool {
    let kinds = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists];
    matches!(error, Error::Log(LogError::Io { source, .. }) if kinds.contains(&source.kind()))
}

/// Removes the directory of a deleted log. Removes the log's backings first, because nobody could find them afterwards;
/// `warns`: whether it logs that it cannot look for them.
pub(super) fn remove_deleted(
    disk: &dyn Disk,
    dir: &Path,
    shm_dir: Option<&Path>,
    warns: bool,
) -> io::Result<()> {
    if let Some(at) = shm_dir
        && let Some(log) = crate::log::id_of(disk, dir)?
    {
        match crate::chunk::remove_backings(disk, at, log, disk.node(dir)?) {
            Err(error) if is_transient(&error) => return Err(error),
            // There is no such place, or it is not this user's: logs work without it as well.
            Err(error) if warns => {
                tracing::warn!(at = %at.display(), %error, "cannot look for backings of a deleted log");
            }
            _ => {}
        }
    }
    disk.remove_dir(dir)
}
