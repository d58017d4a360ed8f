//! A log of a store: its entry, which exists as long as the log, and the log while it is open.

use super::{LogSettings, findings::Findings, reopening::Reopening};
use crate::{
    log::{Damage, Log},
    sync::{lock, try_lock},
};
use arc_swap::ArcSwapOption;
use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// An open log; it stays open as long as this, or a clone of its [`Log`], is held, unless one of them closes it: then
/// [`Store::get`](super::Store::get) opens it again.
pub struct OpenLog {
    pub(super) log: Log,
    /// Identifies this opening within the process. A pointer can be reused, and a copied log has the same id.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "only the server tells openings apart"))]
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) settings: LogSettings,
    /// Whether it was deleted, or is being deleted.
    pub(super) deleted: AtomicBool,
    /// What the scrubber has found in it: the entry's.
    pub(super) findings: Arc<Findings>,
    /// Whether a failure of retention was reported. Reset when retention works again, so that each failure is reported
    /// once.
    pub(super) untrimmed: AtomicBool,
}

impl OpenLog {
    /// A number that no other opening of a log has, of this log or another.
    #[cfg(feature = "server")]
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings it was created with.
    pub fn settings(&self) -> &LogSettings {
        &self.settings
    }

    /// Whether it was deleted, or is being deleted: any error that it returns then has that reason.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// What is known to be damaged: what was found when the log was opened, and, of what is not trimmed, by the last scrub.
    /// At most 100 items.
    pub fn known_damage(&self) -> Vec<Damage> {
        self.findings.with(self.damage(), self.first_offset())
    }
}

impl Deref for OpenLog {
    type Target = Log;

    fn deref(&self) -> &Log {
        &self.log
    }
}

/// Where the log of an entry is in its life.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    pub(super) is_deleted: bool,
}

/// One log, open or not.
pub(super) struct Entry {
    pub(super) open: ArcSwapOption<OpenLog>,
    /// When it was last asked for, in milliseconds since the store was opened.
    pub(super) used: AtomicU64,
    /// When the housekeeper next applies retention to it while it is closed, in milliseconds since the store was opened.
    pub(super) retain_at: AtomicU64,
    /// Locked while the log is created, opened, closed or deleted.
    lifecycle: Mutex<Lifecycle>,
    /// Whether a helper of the housekeeper has something to do for it.
    pub(super) helped: Arc<AtomicBool>,
    /// When it is opened again after it was opened without room on the disk.
    pub(super) reopening: Reopening,
    /// What the scrubber has found in the log.
    pub(super) findings: Arc<Findings>,
    /// Whether the contents of its directory keep it from being opened, as of the last attempt or of the opening of the
    /// store.
    pub(super) unusable: AtomicBool,
    /// Whether the name of its directory is known to be durable. It must be before the log is opened: what is
    /// acknowledged in it would be lost together with the name.
    pub(super) named: AtomicBool,
}

impl Entry {
    pub(super) fn new(named: bool) -> Arc<Self> {
        Arc::new(Self {
            open: ArcSwapOption::new(None),
            used: AtomicU64::new(0),
            retain_at: AtomicU64::new(0),
            lifecycle: Mutex::default(),
            helped: Arc::default(),
            reopening: Reopening::default(),
            findings: Arc::default(),
            unusable: AtomicBool::new(false),
            named: named.into(),
        })
    }

    /// Waits until nobody else creates, opens, closes or deletes the log.
    pub(super) fn lock(&self) -> MutexGuard<'_, Lifecycle> {
        lock(&self.lifecycle)
    }

    /// Locks it, unless somebody else has.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Lifecycle>> {
        try_lock(&self.lifecycle)
    }

    /// The log, if it is open, and no clone of it has closed it or is closing it.
    pub(super) fn open_log(&self) -> Option<Arc<OpenLog>> {
        self.open.load_full().filter(|open| !open.is_closing())
    }

    /// Whether nobody uses the log, and closing it takes no more than a moment.
    pub(super) fn can_be_closed(&self) -> bool {
        // Two: the entry's, and this one.
        let is_unused = |log: &Arc<OpenLog>| Arc::strong_count(log) <= 2 && !log.is_cloned();
        self.open.load_full().is_some_and(|log| is_unused(&log) && log.settles_soon())
    }

    /// Closes an idle log, if it is open and nobody else holds it, or its lock.
    pub(super) fn close(&self) {
        let Some(_held) = self.try_lock() else { return };
        if let Some(closing) = self.open.load_full().filter(|open| open.is_closing()) {
            closing.finish_close();
            return self.open.store(None);
        }
        let Some(open) = self.open.swap(None) else { return };
        match Arc::try_unwrap(open) {
            Ok(open) if open.is_cloned() => self.open.store(Some(Arc::new(open))),
            Ok(OpenLog { log, name, .. }) => {
                if let Err(error) = log.close_idle() {
                    tracing::error!(name, %error, "closing a log failed");
                }
            }
            Err(shared) => self.open.store(Some(shared)),
        }
    }
}
