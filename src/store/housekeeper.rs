//! The store's housekeeper: a thread that closes logs that are idle or too many, applies retention (for which it opens
//! closed logs now and then), saves the producers of open logs, and removes what is left of deleted logs.

use super::{Entry, Error, Inner, LogError, LogSettings, OpenLog};
use crate::sync::read_lock;
use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How often the housekeeper runs a turn.
const TURN: Duration = Duration::from_secs(1);
/// How many closed logs are opened for retention per turn.
const RETAINED_A_TURN: usize = 16;
/// The shortest time between two openings of the same log for retention; a log with a long retention time is opened
/// once every eighth of that time.
const RETAINED_EVERY: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub(super) struct Housekeeper {
    stop: Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Housekeeper {
    pub(super) fn start(store: &Arc<Inner>) -> Result<Self, Error> {
        let (stop, stopped) = bounded(1);
        let inner = Arc::clone(store);
        let thread = std::thread::Builder::new()
            .name("millstream-store".into())
            .spawn(move || {
                while stopped.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {
                    inner.turn();
                }
            })
            .map_err(LogError::io("start a thread for", &store.dir))?;
        Ok(Self { stop, thread })
    }

    /// Stops the housekeeper; waits until the turn in progress has ended.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join(); // a panic of the thread was reported already
    }
}

impl Entry {
    /// Drops a log that was opened without room on the disk, once there is room, even if others hold it: the next
    /// caller that asks for it opens it again, and can write to it.
    fn give_way(&self) {
        if !self.open.load_full().is_some_and(|open| open.has_room_again()) {
            return;
        }
        // If the lock is held, the log is being opened, closed or deleted.
        let Ok(_held) = self.deleted.try_lock() else { return };
        let Some(open) = self.open.load_full().filter(|open| open.is_full()) else { return };
        self.open.store(None);
        open.give_way();
    }
}

impl Inner {
    /// Drops segments of closed logs that have become too old. Retention by size needs no check, because a closed log
    /// does not grow.
    pub(super) fn retain_closed(&self) {
        let now = self.now();
        let due: Vec<_> = {
            let entries = read_lock(&self.entries);
            let due_since = |entry: &Entry| entry.retain_at.load(Ordering::Relaxed);
            // A locked entry is being opened.
            let is_due = |entry: &Entry| {
                entry.open.load().is_none() && due_since(entry) <= now && entry.deleted.try_lock().is_ok()
            };
            let mut due: Vec<_> = entries.iter().filter(|(_, entry)| is_due(entry)).collect();
            // The longest waiting first: otherwise, if more logs are due than one turn handles, the first logs by name
            // would take all turns.
            due.sort_by_key(|(_, entry)| due_since(entry));
            due.into_iter()
                .take(RETAINED_A_TURN)
                .map(|(name, entry)| (name.clone(), Arc::clone(entry)))
                .collect()
        };
        for (name, entry) in due {
            let (age, every) = match self.settings(&name) {
                Ok(LogSettings { retention_seconds: None, .. }) => (None, None),
                Ok(LogSettings { retention_seconds: Some(age), .. }) => {
                    let age = Duration::from_secs(age);
                    (Some(age), Some((age / 8).max(RETAINED_EVERY)))
                }
                Err(_) => (None, Some(RETAINED_EVERY)), // the error is reported to users of the log
            };
            let again = every.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
            let again = again.map_or(u64::MAX, |again| now.saturating_add(again));
            entry.retain_at.store(again, Ordering::Relaxed); // only this thread writes it
            if age.is_some()
                && let Ok(open) = self.opened(&name, &entry)
            {
                if open.apply_retention() == Retained::InPart {
                    entry.retain_at.store(now, Ordering::Relaxed);
                }
                // If it has more to do, that continues in the background, and a later turn closes the log.
                let settled = open.settles_soon();
                drop(open);
                if settled {
                    entry.close();
                }
            }
        }
    }

    /// Applies retention, and closes logs that are idle or too many.
    pub(super) fn turn(&self) {
        let left = std::mem::take(&mut *self.left());
        for dir in left {
            self.remove_dir(&dir);
        }
        let mut open: Vec<_> = {
            let entries = read_lock(&self.entries);
            entries.values().filter(|entry| entry.open.load().is_some()).cloned().collect()
        };
        for log in open.iter().filter_map(|entry| entry.open.load_full()) {
            match log.keep_producers_soon() {
                Ok(()) | Err(LogError::WouldBlock) => {} // a log whose disk hangs must not hold up the others
                Err(error) => tracing::warn!(name = log.name, %error, "producers could not be saved"),
            }
            log.apply_retention();
        }
        for entry in &open {
            entry.give_way();
        }
        self.retain_closed();
        open.sort_by_key(|entry| entry.used.load(Ordering::Relaxed));
        let (now, idle) = (self.now(), self.options.idle.as_millis() as u64);
        let too_many = open.len().saturating_sub(self.options.open_logs);
        for (n, entry) in open.iter().enumerate() {
            let is_due = n < too_many || now.saturating_sub(entry.used.load(Ordering::Relaxed)) > idle;
            if is_due && entry.open.load_full().is_some_and(|log| log.settles_soon()) {
                entry.close();
            }
        }
    }
}

/// The result of applying retention.
#[derive(PartialEq, Eq)]
enum Retained {
    All,
    /// There is more to drop, which takes another turn.
    InPart,
}

impl OpenLog {
    fn apply_retention(&self) -> Retained {
        let LogSettings { retention_bytes: bytes, retention_seconds: seconds, .. } = self.settings;
        if bytes.is_none() && seconds.is_none() || !self.can_trim() {
            return Retained::All;
        }
        match self.retain_soon(bytes, seconds.map(Duration::from_secs)) {
            Ok(_) => Retained::All,
            Err(LogError::WouldBlock) => Retained::InPart,
            Err(error) => {
                tracing::error!(name = self.name, %error, "cannot drop old segments");
                Retained::All
            }
        }
    }
}
