//! The store's housekeeper: a thread that closes logs that are idle or too many, applies retention (for which it opens
//! closed logs now and then), saves the producers of open logs, and removes what is left of deleted logs.
//!
//! Work that may take as long as a disk does is left to helpers: threads that each do one job for one log. So a disk that
//! hangs does not prevent other logs from being closed or trimmed.

use super::{Entry, Error, Inner, LogError, LogSettings, OpenLog};
use crate::{
    log::{Durability, Retention},
    reports,
    sync::{Busy, read_lock},
};
use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

/// How often the housekeeper runs a turn.
const TURN: Duration = Duration::from_secs(1);
/// How many closed logs are opened for retention per turn.
const MAX_RETENTIONS_PER_TURN: usize = 16;
/// The shortest time between two openings of the same log for retention.
const MIN_RETENTION_INTERVAL: Duration = Duration::from_secs(60);
/// How long the housekeeper waits for a helper before it continues.
const MAX_WAIT_FOR_HELPER: Duration = Duration::from_millis(100);
/// How many helpers may be held up before the housekeeper does without.
const MAX_HELPERS: usize = 8;

/// The running housekeeper, until [`stop`](Self::stop).
pub(super) struct Housekeeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Housekeeper {
    pub(super) fn start(store: &Arc<Inner>) -> Result<Self, Error> {
        let (stop, stopped) = bounded(1);
        let inner = Arc::clone(store);
        let thread = Builder::new()
            .name("millstream-store".into())
            .spawn(move || {
                let mut helpers = Helpers(Some(Vec::new()));
                while stopped.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {
                    inner.turn_with(&mut helpers);
                }
                helpers.finish();
            })
            .map_err(LogError::io("start a thread for", &store.dir))?;
        Ok(Self { stop, thread })
    }

    /// Stops the housekeeper; waits until the turn in progress has ended, and what its helpers do.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join(); // a panic of the thread was reported already
    }
}

/// The threads of the helpers that were not done when the housekeeper last looked; or `None`, where the housekeeper does
/// everything by itself, in an order that can be replayed.
pub(super) struct Helpers(Option<Vec<JoinHandle<()>>>);

impl Helpers {
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) const NONE: Self = Self(None);

    /// Has a chore done, and waits a moment for it. It is not done if `busy` says that an earlier chore for the same thing
    /// is still going on, or if too many helpers are held up.
    fn help(&mut self, busy: &Arc<AtomicBool>, chore: impl FnOnce() + Send + 'static) {
        let Some(threads) = &mut self.0 else { return chore() };
        threads.retain(|thread| !thread.is_finished());
        if threads.len() >= MAX_HELPERS {
            return;
        }
        let Some(busy) = Busy::begin(Arc::clone(busy)) else { return };
        let (done, is_done) = bounded::<()>(1);
        let spawned = Builder::new().name("millstream-help".into()).spawn(move || {
            chore();
            drop((busy, done));
        });
        match spawned {
            Ok(thread) => {
                let _ = is_done.recv_timeout(MAX_WAIT_FOR_HELPER); // nothing is sent: done, or too slow
                threads.push(thread);
            }
            Err(error) => tracing::warn!(%error, "cannot start a thread that helps the housekeeper"),
        }
    }

    /// Waits until all are done.
    fn finish(self) {
        for thread in self.0.into_iter().flatten() {
            let _ = thread.join(); // a panic of the thread was reported already
        }
    }
}

impl Entry {
    /// Sees to a log that was opened without room on the disk, and does by itself what other logs have threads for.
    /// Applies retention, which makes room. Drops the log once there is room, even if others hold it: the next caller
    /// that asks for it opens it again, and can write to it.
    fn tend_full(&self, now: u64) {
        let Some(open) = self.open.load_full() else { return };
        open.apply_retention();
        if !self.reopening.is_due(now) {
            return;
        }
        // If the lock is held, the log is being opened, closed or deleted. Room is looked for under it, because that
        // reserves some in the log's files, which after a deletion may be another log's.
        let Some(held) = self.try_lock() else { return };
        let Some(open) = self.open.load_full().filter(|open| open.was_opened_full()) else { return };
        if held.is_deleted || !open.has_room_again() {
            return;
        }
        self.reopening.tried(now);
        self.open.store(None);
        open.give_way();
    }
}

impl Inner {
    /// Applies retention to closed logs for which it is time: see [`retention_interval`].
    pub(super) fn retain_closed(self: &Arc<Self>, helpers: &mut Helpers) {
        let now = self.now();
        let due: Vec<_> = {
            let entries = read_lock(&self.entries);
            let due_since = |entry: &Entry| entry.retain_at.load(Ordering::Relaxed);
            // A locked entry is being opened.
            let is_due = |entry: &Entry| {
                entry.open.load().is_none()
                    && due_since(entry) <= now
                    && !entry.helped.load(Ordering::Relaxed)
                    && entry.try_lock().is_some()
            };
            let mut due: Vec<_> = entries.iter().filter(|(_, entry)| is_due(entry)).collect();
            // The longest waiting first: otherwise, if more logs are due than one turn handles, the first logs by name
            // would take all turns.
            due.sort_by_key(|(_, entry)| due_since(entry));
            due.into_iter()
                .take(MAX_RETENTIONS_PER_TURN)
                .map(|(name, entry)| (name.clone(), Arc::clone(entry)))
                .collect()
        };
        for (name, entry) in due {
            let (inner, busy) = (Arc::clone(self), Arc::clone(&entry.helped));
            helpers.help(&busy, move || inner.retain(&name, &entry, now));
        }
    }

    /// Opens a closed log, if its retention asks for that, and applies it.
    fn retain(&self, name: &str, entry: &Arc<Entry>, now: u64) {
        let settings = self.settings(name);
        let every = match &settings {
            Ok(settings) => retention_interval(settings.retention()),
            Err(_) => Some(MIN_RETENTION_INTERVAL), // the error is reported to users of the log
        };
        let again = every.map_or(u64::MAX, |every| now.saturating_add(millis(every)));
        entry.retain_at.store(again, Ordering::Relaxed); // by one helper at a time
        if settings.is_err() || every.is_none() {
            return;
        }
        match self.get_or_open(name, entry) {
            Ok(open) => {
                if open.apply_retention() == Applied::Partly {
                    entry.retain_at.store(now, Ordering::Relaxed);
                }
                // If it has more to do, that continues in the background, and a later turn closes the log.
                let settled = open.settles_soon();
                drop(open);
                if settled {
                    entry.close();
                }
            }
            Err(Error::Log(error)) if error.is_full() => {
                if self.retain_unseen(name, entry) == Applied::Partly {
                    entry.retain_at.store(now, Ordering::Relaxed);
                }
            }
            Err(_) => {} // the error is reported to users of the log
        }
    }

    /// Applies retention, which makes room, to a log that does not open for lack of room: readers have seen records that
    /// its last process left in memory, and that cannot be written to the disk. Opens the log without them, so that only
    /// this function sees it; the memory stays as it is.
    fn retain_unseen(&self, name: &str, entry: &Entry) -> Applied {
        let Some(held) = entry.try_lock() else { return Applied::Partly };
        if held.is_deleted || entry.open.load().is_some() {
            return Applied::Fully;
        }
        let settings = self.settings(name);
        let open = settings.and_then(|settings| {
            self.open_log_with(name, LogSettings { durability: Some(Durability::Disk), ..settings }, entry)
        });
        open.map_or(Applied::Fully, |open| open.apply_retention())
    }

    /// Applies retention, and closes logs that are idle or too many; all of it on this thread.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn turn(self: &Arc<Self>) {
        self.turn_with(&mut { Helpers::NONE });
    }

    fn turn_with(self: &Arc<Self>, helpers: &mut Helpers) {
        let now = self.now();
        if !self.to_remove().is_empty() {
            let inner = Arc::clone(self);
            helpers.help(&self.removing, move || inner.retry_removals());
        }
        let mut open: Vec<_> = {
            let entries = read_lock(&self.entries);
            entries.values().filter(|entry| entry.open.load().is_some()).cloned().collect()
        };
        for entry in &open {
            let Some(log) = entry.open.load_full() else { continue };
            if log.is_closing() {
                drop(log);
                let entry = Arc::clone(entry);
                helpers.help(&Arc::clone(&entry.helped), move || entry.close());
                continue;
            }
            log.give_up_untaken();
            if log.was_opened_full() {
                let entry = Arc::clone(entry);
                helpers.help(&Arc::clone(&entry.helped), move || entry.tend_full(now));
                continue;
            }
            entry.reopening.succeeded();
            // In most turns there is nothing to do for most logs, which takes no thread.
            if log.producers_are_due() || log.exceeds_retention() {
                helpers.help(&entry.helped, move || {
                    log.save_producers_soon();
                    log.apply_retention();
                });
            }
        }
        self.retain_closed(helpers);
        open.sort_by_key(|entry| entry.used.load(Ordering::Relaxed));
        let idle = millis(self.options.idle);
        let mut too_many = open.len().saturating_sub(self.options.open_logs);
        for entry in &open {
            let is_due = too_many > 0 || now.saturating_sub(entry.used.load(Ordering::Relaxed)) > idle;
            if is_due && entry.can_be_closed() {
                too_many = too_many.saturating_sub(1); // of those that are in use, none can make room
                let entry = Arc::clone(entry);
                helpers.help(&Arc::clone(&entry.helped), move || entry.close());
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How often a closed log must be opened for its retention; `None` if never.
fn retention_interval(retention: Retention) -> Option<Duration> {
    // A closed log does not grow, but it gets older.
    let Retention { bytes: _, age } = retention;
    age.map(|age| (age / 8).max(MIN_RETENTION_INTERVAL))
}

/// The result of applying retention.
#[derive(PartialEq, Eq)]
enum Applied {
    Fully,
    /// There is more to drop, which takes another turn.
    Partly,
}

impl OpenLog {
    /// What the settings say is kept. `None` if they say nothing, or nothing can be dropped.
    fn retention(&self) -> Option<Retention> {
        let retention = self.settings.retention();
        (retention != Retention::default() && self.can_trim()).then_some(retention)
    }

    /// Whether there is something to drop. Does not touch the disk.
    fn exceeds_retention(&self) -> bool {
        self.retention().is_some_and(|retention| self.exceeds(retention))
    }

    fn apply_retention(&self) -> Applied {
        let Some(retention) = self.retention() else { return Applied::Fully };
        match self.retain_soon(retention) {
            Ok(_) => {
                self.untrimmed.store(false, Ordering::Relaxed); // it protects no memory
                Applied::Fully
            }
            Err(LogError::WouldBlock) => Applied::Partly,
            Err(error) => {
                if !self.untrimmed.swap(true, Ordering::Relaxed) {
                    reports::failure(self.dir(), &error, "cannot drop old segments");
                }
                Applied::Fully
            }
        }
    }
}
