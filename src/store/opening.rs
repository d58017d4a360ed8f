//! Opening a log of a store, with its settings, when a caller asks for it.

use super::{Entry, Error, Inner, LogError, LogSettings, OpenLog, directories::settings_in};
use crate::log::{Log, Options};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

impl Inner {
    pub(super) fn options_for(&self, settings: &LogSettings) -> Result<Options, Error> {
        let mut options = self.options.log.clone();
        if let Some(durability) = settings.durability {
            options.durability = durability;
        }
        if let Some(bytes) = settings.segment_bytes {
            options.segment_bytes = bytes;
        }
        options.check().map_err(|error| Error::BadSettings { reason: error.to_string() })?;
        Ok(options)
    }

    pub(super) fn open_log(&self, name: &str, entry: &Entry) -> Result<OpenLog, Error> {
        self.open_log_with(name, self.settings(name)?, entry)
    }

    pub(super) fn open_log_with(
        &self,
        name: &str,
        settings: LogSettings,
        entry: &Entry,
    ) -> Result<OpenLog, Error> {
        static OPENINGS: AtomicU64 = AtomicU64::new(0);
        let dir = self.dir.join(name);
        let options = self.options_for(&settings)?;
        let log = Log::open_within(&self.env, &self.budget, &dir, options, Arc::clone(&self.lock))?;
        let name = name.to_owned();
        let deleted = AtomicBool::new(false);
        let untrimmed = AtomicBool::new(false);
        let number = OPENINGS.fetch_add(1, Ordering::Relaxed); // only to be unlike any other
        let findings = Arc::clone(&entry.findings);
        Ok(OpenLog { log, number, name, settings, deleted, findings, untrimmed })
    }

    pub(super) fn settings(&self, name: &str) -> Result<LogSettings, Error> {
        Ok(settings_in(&*self.env.disk, &self.dir.join(name))?)
    }

    /// The log of an entry; opens it if it is not open.
    pub(super) fn get_or_open(&self, name: &str, entry: &Arc<Entry>) -> Result<Arc<OpenLog>, Error> {
        if let Some(open) = entry.open_log() {
            return Ok(open);
        }
        let held = entry.lock();
        if let Some(open) = entry.open_log() {
            return Ok(open);
        }
        if held.is_deleted {
            return Err(Error::NotFound { name: name.to_owned() });
        }
        if !entry.named.load(Ordering::Relaxed) {
            if !self.look_for(name).map_err(LogError::io("look for", &self.dir.join(name)))? {
                self.remove(name, entry, held);
                return Err(Error::NotFound { name: name.to_owned() });
            }
            self.env.disk.sync_dir(&self.dir).map_err(LogError::io("sync", &self.dir))?;
            entry.named.store(true, Ordering::Relaxed); // only used with the entry's lock
        }
        if let Some(closing) = entry.open.load_full() {
            closing.finish_close(); // only then: should that panic, it is not opened beside what is left of it
            entry.open.store(None);
        }
        let opened = self.open_log(name, entry);
        let unusable = matches!(&opened, Err(Error::Log(error)) if error.is_unusable());
        entry.unusable.store(unusable, Ordering::Relaxed); // for reports only
        let open = Arc::new(opened?);
        entry.open.store(Some(Arc::clone(&open)));
        Ok(open)
    }
}
