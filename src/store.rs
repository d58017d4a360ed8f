//! Many named logs in one directory: created with settings, opened when they are used, closed when nobody uses them.
//!
//! Each log has a directory of its own, `DATA/NAME`, with its settings in `log.json`. A directory that is empty, or has
//! only files of somebody else, is not a log. The first caller that asks for a log opens it. The store's housekeeper
//! closes it again once it has been idle for a while, or once too many logs are open: memory and descriptors are
//! proportional to the logs in use, not to the logs that exist. The housekeeper also applies retention, for which it
//! opens closed logs now and then. The scrubber verifies their sealed segments.
//!
//! # What always holds
//! - A log is open at most once: an entry's lock is held while the log is opened, closed or deleted.
//! - A log is closed only when nobody but the store holds it, and nobody else can open the store while one of its logs
//!   is open.
//! - Once `create` or `delete` has returned, a crash does not undo it: a log to be deleted is first moved to a name
//!   that no log can have, which is durable before the answer, and its files are removed afterwards.

mod directories;
mod entry;
mod error;
mod findings;
mod housekeeper;
#[cfg(feature = "server")]
mod lags;
mod opening;
mod options;
mod reopening;
mod scrubber;

use crate::{
    LogId,
    disk::Disk,
    log::{COMMON_LOCK, Environment, Error as LogError, MAX_CLOSE_TIME, SETTINGS, budget::Budget},
    name::is_name,
    segment::file::base_of,
    sync::{read_lock, write_lock},
};
use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use crate::name::MAX_NAME_BYTES;
/// The name of [`MAX_NAME_BYTES`] in earlier versions.
#[deprecated(note = "use `MAX_NAME_BYTES`")]
pub const NAME_BYTES: usize = MAX_NAME_BYTES;
pub use crate::settings::{InvalidSettings, LogSettings, ValueError, Values};
pub use entry::OpenLog;
pub use error::Error;
pub use options::StoreOptions;

use directories::{is_taken, remove_deleted};
use entry::{Entry, Lifecycle};
use housekeeper::Housekeeper;
use scrubber::Scrubber;

/// The prefix of a deleted log's directory until it is removed. No log's name starts with a dot.
const DELETED: &str = ".deleted-";

/// What the clones of a store, its housekeeper and its scrubber share.
struct Inner {
    env: Environment,
    dir: PathBuf,
    options: StoreOptions,
    lock: Arc<dyn Send + Sync>,
    budget: Arc<Budget>,
    entries: RwLock<BTreeMap<String, Arc<Entry>>>,
    /// When the store was opened, by the machine's monotonic clock.
    begun: Duration,
    /// How many temporary names were given out.
    temporary_names: AtomicU64,
    /// Directories under temporary names that could not be removed yet.
    to_remove: Mutex<Vec<PathBuf>>,
    /// Whether a helper of the housekeeper is removing those.
    removing: Arc<AtomicBool>,
}

/// How many logs a store has, in total and in certain states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// All that exist.
    pub logs: u64,
    /// Those that are open.
    pub open: u64,
    /// Those that are [unusable](Store::unusable).
    pub unusable: u64,
    /// Open logs that refuse appends.
    pub refusing: u64,
}

/// Many named logs in one directory, opened when they are used. See the [module's documentation](self).
///
/// # Example
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use millstream::store::{LogSettings, Store, StoreOptions};
/// let store = Store::open(dir.path(), StoreOptions::default())?;
/// store.create("clicks", &LogSettings::default())?;
/// let clicks = store.get("clicks")?;
/// assert_eq!(clicks.append(b"one")?, 0);
/// drop(clicks);
/// store.close()?;
/// # Ok(())
/// # }
/// ```
pub struct Store {
    inner: Arc<Inner>,
    /// `None` in the simulation.
    housekeeper: Option<Housekeeper>,
    /// `None` in the simulation, and if nothing is scrubbed.
    scrubber: Option<Scrubber>,
}

impl Store {
    /// Opens the store in `dir`, which is created if it is missing. No log is opened yet.
    ///
    /// # Errors
    /// [`LogError::InUse`], [`LogError::BadOptions`], [`LogError::Io`].
    pub fn open(dir: impl AsRef<Path>, options: StoreOptions) -> Result<Self, Error> {
        let mut store = Self::open_in(Environment::system(), dir.as_ref(), options)?;
        store.housekeeper = Some(Housekeeper::start(&store.inner)?);
        store.scrubber = Scrubber::start(&store.inner)?;
        Ok(store)
    }

    /// Opens a store without a housekeeper, whose turns the caller runs, and without a scrubber.
    pub(crate) fn open_in(env: Environment, dir: &Path, options: StoreOptions) -> Result<Self, Error> {
        let dir = dir.to_owned();
        let disk = &*env.disk;
        options.log.check()?;
        disk.create_dir(&dir).map_err(LogError::io("make the directory", &dir))?;
        let has_segments = |names: Vec<String>| names.iter().any(|name| base_of(name).is_some());
        if has_segments(disk.list(&dir).map_err(LogError::io("list", &dir))?) {
            return Err(LogError::OneLog { dir }.into());
        }
        let lock = disk.lock(&dir.join(COMMON_LOCK)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::InUse { dir: dir.clone() },
            _ => LogError::io("lock", &dir)(error),
        })?;
        // Only now: until it released the lock, another process may have created logs.
        let names = disk.dirs(&dir).map_err(LogError::io("list", &dir))?;
        // A process that was killed may have renamed a log without getting to sync that.
        disk.sync_dir(&dir).map_err(LogError::io("sync", &dir))?;
        let (mut entries, mut to_remove) = (BTreeMap::new(), Vec::new());
        for name in names {
            if name.starts_with(DELETED) {
                let path = dir.join(&name);
                let backings = options.log.shm_dir.as_deref();
                if let Err(error) = remove_deleted(disk, &path, backings, true) {
                    tracing::warn!(dir = %path.display(), %error, "the rest of a deleted log will be removed later");
                    to_remove.push(path);
                }
            } else if check_name(&name).is_ok() {
                entries.insert(name, Entry::new(true));
            }
        }
        directories::examine(&env, &dir, &mut entries);
        if let Some(at) = &options.log.shm_dir {
            warn_of_backings(disk, at, &dir);
        }
        let budget = Budget::new(options.log.memory_bytes);
        let entries = RwLock::new(entries);
        let begun = env.machine.elapsed();
        let temporary_names = AtomicU64::new(0);
        let to_remove = Mutex::new(to_remove);
        let removing = Arc::default();
        let lock = lock.into();
        let inner =
            Inner { env, dir, options, lock, budget, entries, begun, temporary_names, to_remove, removing };
        Ok(Self { inner: Arc::new(inner), housekeeper: None, scrubber: None })
    }

    /// The largest batch that a log with these settings accepts, in bytes of a segment.
    #[cfg(feature = "server")]
    pub(crate) fn batch_bytes(&self, settings: &LogSettings) -> u64 {
        settings.segment_bytes.unwrap_or(self.inner.options.log.segment_bytes)
    }

    /// The log of this name, if it is open already. Never waits for a disk.
    pub fn get_open(&self, name: &str) -> Option<Arc<OpenLog>> {
        let entry = self.inner.entry(name)?;
        self.inner.touch(&entry);
        entry.open_log()
    }

    /// The entry of this name, whether or not the log is open. Never waits for a disk.
    fn known(&self, name: &str) -> Result<Arc<Entry>, Error> {
        self.inner.entry(name).ok_or_else(|| match check_name(name) {
            Ok(()) => Error::NotFound { name: name.to_owned() },
            Err(error) => error,
        })
    }

    /// Fails with [`Error::NotFound`] if there is no log of this name, or with [`Error::BadName`] if there cannot be
    /// one. Never waits for a disk.
    #[cfg(feature = "server")]
    pub(crate) fn check(&self, name: &str) -> Result<(), Error> {
        self.known(name).map(|_| ())
    }

    /// The log of this name; opens it if it is not open.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::BadName`], and those of [`Log::open`](crate::Log::open).
    pub fn get(&self, name: &str) -> Result<Arc<OpenLog>, Error> {
        let entry = self.known(name)?;
        self.inner.touch(&entry);
        if entry.open.load().is_none() {
            self.inner.close_idlest(1);
        }
        let opened = self.inner.get_or_open(name, &entry);
        if !matches!(&opened, Err(Error::Log(error)) if error.is_transient()) {
            return opened;
        }
        self.inner.close_idlest(self.inner.options.open_logs); // closing them frees descriptors and memory
        self.inner.get_or_open(name, &entry)
    }

    /// Creates a log, which is durable on return; returns `false` if it existed already with the same settings.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::BadSettings`], [`Error::Exists`], [`Error::NotFound`] if it existed and was deleted
    /// meanwhile, and those of [`Log::open`](crate::Log::open).
    pub fn create(&self, name: &str, settings: &LogSettings) -> Result<bool, Error> {
        check_name(name)?;
        self.inner.options_for(settings)?;
        if self.inner.entry(name).is_none() {
            self.inner.close_idlest(1);
        }
        // Locked before anybody can find it.
        let entry = Entry::new(false);
        let held = entry.lock();
        let there = {
            let mut entries = write_lock(&self.inner.entries);
            let there = entries.contains_key(name);
            if !there {
                entries.insert(name.to_owned(), Arc::clone(&entry));
            }
            there
        };
        if there {
            return self.existing_with(name, settings);
        }
        match self.inner.make_log(name, settings, &entry) {
            Ok(open) => {
                entry.named.store(true, Ordering::Relaxed); // read with the lock that is held here
                entry.open.store(Some(Arc::new(open)));
                Ok(true)
            }
            // It could not be undone, or another process has put a log there: a log like any other, to be opened or
            // deleted. If it is not known whether there is one, whoever opens it looks again.
            Err(error) if self.inner.look_for(name).unwrap_or(true) => {
                drop(held);
                if is_taken(&error) { self.existing_with(name, settings) } else { Err(error) }
            }
            Err(error) => {
                self.inner.remove(name, &entry, held);
                Err(error)
            }
        }
    }

    /// The answer of [`create`](Store::create) for a name that is taken: `false` if the log has the same settings,
    /// otherwise [`Error::Exists`].
    fn existing_with(&self, name: &str, settings: &LogSettings) -> Result<bool, Error> {
        let log = self.get(name)?;
        if *log.settings() == *settings {
            return Ok(false);
        }
        Err(Error::Exists { name: name.to_owned(), differences: log.settings().differences(settings) })
    }

    /// Deletes a log; durable on return. Callers that wait for it or append to it get an error; readers keep what they
    /// hold.
    ///
    /// # Errors
    /// [`Error::NotFound`]. [`LogError::NotALog`]: its directory has files that are not a log's, which stay, as everything
    /// else does. [`LogError::Io`]: either nothing has changed, or the log is gone (it is not found any more), but
    /// perhaps not durably: after a crash it may be back, as it was.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        self.delete_if(name, None)
    }

    /// Like [`delete`](Self::delete), but if `id` is given, only if the log has that id.
    ///
    /// # Errors
    /// As [`delete`](Self::delete). [`Error::AnotherLog`]: the log has another id, or none that can be found; nothing was
    /// deleted.
    pub fn delete_if(&self, name: &str, id: Option<LogId>) -> Result<(), Error> {
        let not_found = || Error::NotFound { name: name.to_owned() };
        let entry = self.inner.entry(name).ok_or_else(not_found)?;
        let held = entry.lock();
        if held.is_deleted {
            return Err(not_found());
        }
        if id.is_some() {
            let found = self.inner.id_of(name, &entry)?;
            if found != id {
                return Err(Error::AnotherLog { name: name.to_owned(), id: found });
            }
        }
        match crate::log::only_ours(&*self.inner.env.disk, &self.inner.dir.join(name)) {
            Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {} // somebody removed it
            ours => drop(ours?),
        }
        let to = self.inner.temporary_dir(name);
        // Set before the files are moved: a thread that then fails to find a file can tell why.
        let set_deleted = |deleted| {
            entry.open.load().iter().for_each(|open| open.deleted.store(deleted, Ordering::Release));
        };
        set_deleted(true);
        self.inner.rename_deleted(name, &to).inspect_err(|_| set_deleted(false))?;
        // From here on the log is gone. It is not put back if an error follows: it might be deleted all the same after a
        // crash, together with what it has acknowledged meanwhile.
        if let Some(open) = entry.open.swap(None) {
            open.abandon();
        }
        self.inner.remove(name, &entry, held);
        self.inner.remove_renamed(&to)
    }

    /// The names of up to `limit` logs in order, starting with the first one after `after`.
    pub fn names(&self, after: Option<&str>, limit: usize) -> Vec<String> {
        let entries = read_lock(&self.inner.entries);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        entries.range::<str, _>((from, Bound::Unbounded)).take(limit).map(|(name, _)| name.clone()).collect()
    }

    /// Those of `names` that are unusable: the last attempt to open the log failed because of the contents of its
    /// directory, or its name or settings were found to be invalid when the store was opened.
    pub fn unusable<'a>(&self, names: &'a [String]) -> Vec<&'a str> {
        let entries = read_lock(&self.inner.entries);
        let is_unusable =
            |name: &&String| entries.get(*name).is_some_and(|entry| entry.unusable.load(Ordering::Relaxed));
        names.iter().filter(is_unusable).map(String::as_str).collect()
    }

    /// How many logs there are. Takes time in proportion to that.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in read_lock(&self.inner.entries).values() {
            counts.logs += 1;
            counts.open += u64::from(entry.open.load().is_some());
            counts.unusable += u64::from(entry.unusable.load(Ordering::Relaxed));
            counts.refusing += u64::from(entry.open_log().is_some_and(|log| log.refuses_appends()));
        }
        counts
    }

    /// The options that the store was opened with.
    pub fn options(&self) -> &StoreOptions {
        &self.inner.options
    }

    /// Closes all logs, making everything that was appended durable. A log that a caller still holds is closed when it
    /// is dropped.
    ///
    /// # Errors
    /// The error of the first log that could not be closed.
    pub fn close(mut self) -> Result<(), Error> {
        self.close_in_place()
    }

    /// Runs a turn of the housekeeper, for a store that has none.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn turn(&self) {
        self.inner.turn();
    }

    fn close_in_place(&mut self) -> Result<(), Error> {
        self.scrubber.take().into_iter().for_each(Scrubber::stop);
        self.housekeeper.take().into_iter().for_each(Housekeeper::stop);
        let entries = std::mem::take(&mut *write_lock(&self.inner.entries));
        let mut result = Ok(());
        let mut left = MAX_CLOSE_TIME;
        for open in entries.into_values().filter_map(|entry| entry.open.swap(None)) {
            if let Ok(OpenLog { log, .. }) = Arc::try_unwrap(open)
                && !log.is_cloned()
            {
                result = result.and(log.close_within(&mut left).map_err(Error::Log));
            }
        }
        result
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.close_in_place() {
            tracing::error!(dir = %self.inner.dir.display(), %error, "closing the store failed");
        }
    }
}

impl Inner {
    fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        read_lock(&self.entries).get(name).cloned()
    }

    fn now(&self) -> u64 {
        self.env.machine.elapsed().saturating_sub(self.begun).as_millis() as u64
    }

    fn touch(&self, entry: &Entry) {
        entry.used.store(self.now(), Ordering::Relaxed); // stands alone; a stale value closes a log too early at worst
    }

    /// Makes room for this many more open logs: closes those that were unused for longest, if they can be closed at
    /// once. The housekeeper does so too, but many may be opened in a second.
    fn close_idlest(&self, more: usize) {
        let limit = self.options.open_logs.max(1);
        let is_open = |entry: &&Arc<Entry>| entry.open.load().is_some();
        let (too_many, mut open): (usize, Vec<_>) = {
            let entries = read_lock(&self.entries);
            if entries.len() + more <= limit {
                return;
            }
            let too_many = (entries.values().filter(is_open).count() + more).saturating_sub(limit);
            if too_many == 0 {
                return;
            }
            (too_many, entries.values().filter(is_open).cloned().collect())
        };
        open.sort_by_cached_key(|entry| entry.used.load(Ordering::Relaxed));
        // A few more, so that not all of many logs are examined for each that is opened.
        open.iter()
            .filter(|entry| entry.can_be_closed())
            .take(too_many + limit / 64)
            .for_each(|entry| entry.close());
    }

    /// The id of a log whose entry is locked, if it can be read.
    fn id_of(&self, name: &str, entry: &Entry) -> Result<Option<LogId>, Error> {
        if let Some(open) = &*entry.open.load() {
            return Ok(Some(open.id()));
        }
        let dir = self.dir.join(name);
        Ok(crate::log::id_of(&*self.env.disk, &dir).map_err(LogError::io("list", &dir))?)
    }

    /// Removes the entry of a log that no longer exists.
    fn remove(&self, name: &str, entry: &Arc<Entry>, mut held: MutexGuard<'_, Lifecycle>) {
        held.is_deleted = true;
        drop(held); // a thread that holds the map's lock may wait for this one
        let mut entries = write_lock(&self.entries);
        if entries.get(name).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            entries.remove(name);
        }
    }
}

/// Warns about logs of this store that are missing, though a process that was killed has left backings for them. These
/// backings may hold records that exist nowhere else, so they stay.
fn warn_of_backings(disk: &dyn Disk, at: &Path, dir: &Path) {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    match crate::chunk::backing_owners(disk, at) {
        Ok(owners) => {
            for (log, _) in owners.iter().filter(|(log, id)| {
                log.parent() == Some(&dir) && crate::log::id_of(disk, log).ok().flatten() != Some(*id)
            }) {
                tracing::warn!(
                    log = %log.display(), backings = %at.display(),
                    "backings of a log that cannot be found are kept: put its directory back, or remove the backings"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look for backings of logs that are missing"),
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if is_name(name) { Ok(()) } else { Err(Error::BadName { name: name.chars().take(200).collect() }) }
}

#[cfg(all(test, not(loom)))]
mod tests;
