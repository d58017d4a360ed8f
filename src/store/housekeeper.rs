//! The store's thread: closes logs that are idle or too many, applies retention, which it opens closed logs for now and then, writes
//! down what open ones know of producers, and removes what is left of deleted ones.

use super::{Entry, Error, Inner, LogError, LogSettings, OpenLog};
use crate::sync::read_lock;
use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How often it looks.
const TURN: Duration = Duration::from_secs(1);
/// How many closed logs are opened for retention in a turn.
const RETAINED_A_TURN: usize = 16;
/// How often one is, at most; a log that keeps its records for long is looked at every eighth of that time.
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

    /// Waits for the turn to end that goes on.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join(); // a panic there was reported
    }
}

impl Entry {
    /// Lets a log go that was opened without room on the disk, and has room now, also where others hold it: who asks next
    /// opens it again, and can write it.
    fn give_way(&self) {
        if !self.open.load_full().is_some_and(|open| open.has_room_again()) {
            return;
        }
        // Whoever has the lock opens, closes or deletes it.
        let Ok(_held) = self.deleted.try_lock() else { return };
        let Some(open) = self.open.load_full().filter(|open| open.is_full()) else { return };
        self.open.store(None);
        open.give_way();
    }
}

impl Inner {
    /// Drops segments of closed logs that have become too old; of bytes a closed log does not get more.
    pub(super) fn retain_closed(&self) {
        let now = self.now();
        let due: Vec<_> = {
            let entries = read_lock(&self.entries);
            let due_since = |entry: &Entry| entry.retain_at.load(Ordering::Relaxed);
            // One that is locked is being opened.
            let is_due = |entry: &Entry| {
                entry.open.load().is_none() && due_since(entry) <= now && entry.deleted.try_lock().is_ok()
            };
            let mut due: Vec<_> = entries.iter().filter(|(_, entry)| is_due(entry)).collect();
            // Who has waited for longest: where there are more than turns for them, the first by name would have them all.
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
                Err(_) => (None, Some(RETAINED_EVERY)), // whoever uses the log gets the error
            };
            let again = every.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
            let again = again.map_or(u64::MAX, |again| now.saturating_add(again));
            entry.retain_at.store(again, Ordering::Relaxed); // by this thread alone
            if age.is_some()
                && let Ok(open) = self.opened(&name, &entry)
            {
                open.apply_retention();
                // If it has more to do, it goes on, and is closed at a later turn.
                let settled = open.settles_soon();
                drop(open);
                if settled {
                    entry.close();
                }
            }
        }
    }

    /// Applies retention, and closes what is idle or too much.
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
                Ok(()) | Err(LogError::WouldBlock) => {} // of a log whose disk hangs the others are not to see anything
                Err(error) => tracing::warn!(name = log.name, %error, "producers are not written down"),
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

impl OpenLog {
    fn apply_retention(&self) {
        let LogSettings { retention_bytes: bytes, retention_seconds: seconds, .. } = self.settings;
        if (bytes.is_some() || seconds.is_some())
            && self.writable().err().is_none_or(|error| error.is_full())
            && let Err(error) = self.retain_soon(bytes, seconds.map(Duration::from_secs))
            && !matches!(error, LogError::WouldBlock)
        {
            tracing::error!(name = self.name, %error, "dropping old segments failed");
        }
    }
}
