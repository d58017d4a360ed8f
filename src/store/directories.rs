//! Creating and removing a log's directory. Whatever fails half-way is undone, or found and finished by the next
//! attempt: under a log's name there is a whole log or nothing, and everything under a temporary name is removed sooner
//! or later.

use super::{DELETED, Entry, Error, Inner, LogError, LogSettings, OpenLog, SETTINGS};
use crate::{
    disk::{Disk, is_transient, tree},
    log::{Environment, is_ours, only_ours},
    sync::lock,
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::{Duration, Instant},
};

/// What a directory is whose name could be a log's.
enum Found {
    /// A log, or the rest of one. What is known by its names and its settings may make it unusable.
    Log { is_unusable: bool },
    /// Not a log: it is empty, so that a log of its name can be created, or has files of somebody else only.
    Nothing,
}

impl Found {
    /// Looks at the names in a directory and, if it may be a log, at its settings.
    fn of(disk: &dyn Disk, dir: &Path) -> Self {
        match disk.list(dir) {
            Ok(names) if !names.iter().any(|name| is_ours(name)) => {
                if let Some(found) = names.first() {
                    let dir = dir.display();
                    tracing::debug!(%dir, found, "a directory that is not a log's is left alone");
                }
                Self::Nothing
            }
            Ok(names) if !names.iter().all(|name| is_ours(name)) => Self::Log { is_unusable: true },
            // What the system does not say now, it may say when the log is opened.
            _ => Self::Log { is_unusable: settings_in(disk, dir).is_err_and(|error| error.is_unusable()) },
        }
    }
}

/// How long the directories of a store are looked at when it is opened.
const MAX_EXAMINE_TIME: Duration = Duration::from_secs(2);

/// Looks at the directories of these entries: removes the entries of directories that are not logs, and marks those of
/// logs that cannot be used. On another thread, so that a disk that hangs under one of them does not keep the store from
/// being opened: a directory that was not looked at within [`MAX_EXAMINE_TIME`] counts as a log. Whether it is one is found out
/// when it is used. In a simulation this thread looks, so that the order of operations does not depend on a clock.
pub(super) fn examine(env: &Environment, dir: &Path, entries: &mut BTreeMap<String, Arc<Entry>>) {
    let names: Vec<_> = entries.keys().cloned().collect();
    let (looked, found) = crossbeam::channel::bounded(names.len());
    let (disk, dir) = (Arc::clone(&env.disk), dir.to_owned());
    let examine_all = move || {
        for name in names {
            let at = Found::of(&*disk, &dir.join(&name));
            if looked.send((name, at)).is_err() {
                return; // it was not waited for
            }
        }
    };
    if env.machine.advance_simulated(Duration::ZERO) {
        examine_all();
    } else if let Err(error) = std::thread::Builder::new().name("millstream-dirs".into()).spawn(examine_all) {
        tracing::warn!(%error, "cannot look at the directories of logs before they are used");
    }
    let until = Instant::now() + MAX_EXAMINE_TIME;
    while let Ok((name, at)) = found.recv_deadline(until) {
        match at {
            Found::Nothing => drop(entries.remove(&name)),
            Found::Log { is_unusable } => {
                let entry = entries.get(&name);
                entry.inspect(|entry| entry.unusable.store(is_unusable, Ordering::Relaxed)); // for reports only
            }
        }
    }
}

/// The settings of the log in a directory.
pub(super) fn settings_in(disk: &dyn Disk, dir: &Path) -> Result<LogSettings, LogError> {
    let path = dir.join(SETTINGS);
    match tree::read(disk, &path).map_err(LogError::io("read", &path))? {
        Some(text) => crate::settings::decode(&text).map_err(|reason| LogError::Corrupt { path, reason }),
        None => Ok(LogSettings::default()), // created by a program that used the log without a store
    }
}

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
            .and_then(|()| disk.rename(&from, &dir).map_err(|error| self.name_error(name, error)))
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

    /// Why a log could not get its name.
    fn name_error(&self, name: &str, error: io::Error) -> LogError {
        let dir = self.dir.join(name);
        if error.kind() == io::ErrorKind::NotADirectory {
            return LogError::NotALog { dir: self.dir.clone(), found: name.to_owned() };
        }
        // Files of somebody else, only.
        if IS_TAKEN.contains(&error.kind())
            && matches!(self.look_for(name), Ok(false))
            && let Err(foreign @ LogError::NotALog { .. }) = only_ours(&*self.env.disk, &dir)
        {
            return foreign;
        }
        LogError::io("make the directory", &dir)(error)
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

    /// Whether there is a directory of this name that has something of a log; an error if that is not known.
    pub(super) fn look_for(&self, name: &str) -> io::Result<bool> {
        let (disk, dir) = (&self.env.disk, self.dir.join(name));
        if !disk.is_dir(&dir)? {
            return Ok(false);
        }
        match disk.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false), // it was removed meanwhile
            names => Ok(names?.iter().any(|name| is_ours(name))),
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

/// The errors of a directory that cannot be given its name because another directory has it.
const IS_TAKEN: [io::ErrorKind; 2] = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists];

/// Whether a directory could not be given its name because another directory has it.
pub(super) fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Log(LogError::Io { source, .. }) if IS_TAKEN.contains(&source.kind()))
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
