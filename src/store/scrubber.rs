//! The store's scrubber: a thread of low priority that verifies the sealed segments of all logs, one after the other, at a
//! bounded rate; and what it has found.
//!
//! What always holds: a log that others use is not kept open by it, so it can be closed, trimmed and deleted at any time. A
//! log that it has opened itself is closed after its last segment.

use super::{Entry, Error, Inner, LogError, OpenLog};
use crate::{
    log::{Damage, MAX_CLOSE_TIME, Scrubbed},
    reports,
    sync::{read_lock, yield_more},
};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::{
    ops::Bound,
    sync::{Arc, atomic::Ordering},
    thread::Builder,
    time::{Duration, Instant},
};

/// The shortest time from the beginning of one pass through all logs to that of the next.
const PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// Opening a log is charged as this many bytes, so that at the default rate as many logs are opened per second as the
/// housekeeper opens for retention.
const OPENING_BYTES: u64 = 512 << 10;
/// A failed attempt is charged as this many bytes.
const FAILURE_BYTES: u64 = 1 << 20;
/// After this many failed attempts, a log is left for the next pass.
const MAX_FAILURES: u32 = 10;
/// By how much the thread yields (`nice`).
const NICENESS: i32 = 10;
/// How many findings of a segment are written to the process's log.
const MAX_REPORTED: usize = 10;

/// The running scrubber, until [`stop`](Self::stop).
pub(super) struct Scrubber {
    stop: Sender<()>,
    /// Nothing is sent: the thread has ended when its sender is dropped.
    ended: Receiver<()>,
}

impl Scrubber {
    /// `None` if the store's options say that nothing is scrubbed.
    pub(super) fn start(store: &Arc<Inner>) -> Result<Option<Self>, Error> {
        let bytes_per_second = store.options.scrub_bytes_per_second;
        if bytes_per_second == 0 {
            return Ok(None);
        }
        let (stop, stopped) = bounded(1);
        let (running, ended) = bounded::<()>(1);
        let inner = Arc::clone(store);
        Builder::new()
            .name("millstream-scrub".into())
            .spawn(move || {
                // The last to be dropped: whoever waits for it may open the store's directory again.
                let _running = running;
                let inner = inner;
                yield_more(NICENESS);
                let mut pace = Pace { bytes_per_second, stopped, due: Instant::now() };
                loop {
                    let begun = Instant::now();
                    if !inner.scrub(&mut |bytes| pace.pass(bytes)) || !pace.wait_until(begun + PERIOD) {
                        return;
                    }
                }
            })
            .map_err(LogError::io("start a thread for", &store.dir))?;
        Ok(Some(Self { stop, ended }))
    }

    /// Stops the scrubber; waits for the read in progress, but no longer than for a log that is closed: if the disk
    /// hangs, the thread is left behind, with the log that it reads.
    pub(super) fn stop(self) {
        drop(self.stop);
        if self.ended.recv_timeout(MAX_CLOSE_TIME) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a scrub that the disk does not answer is left behind");
        }
    }
}

/// Keeps the rate.
pub(super) struct Pace {
    pub(super) bytes_per_second: u64,
    /// Nothing is sent: the store is being closed when the sender is dropped.
    pub(super) stopped: Receiver<()>,
    /// When the next bytes may be read.
    pub(super) due: Instant,
}

impl Pace {
    /// Waits for as long as reading this many bytes may take. `false` if the store is being closed. Time lost to a slow
    /// disk is not made up.
    pub(super) fn pass(&mut self, bytes: u64) -> bool {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.due = self.due.max(Instant::now()) + takes;
        self.wait_until(self.due)
    }

    fn wait_until(&self, due: Instant) -> bool {
        self.stopped.recv_deadline(due) == Err(RecvTimeoutError::Timeout)
    }
}

/// What becomes of a log after an attempt to scrub one of its segments.
enum Step {
    /// It continues at this offset.
    Continue(u64),
    /// It is tried again, after a while.
    TryAgain,
    /// It is done, or cannot be scrubbed.
    Done,
    /// The store is being closed.
    Stop,
}

/// A log that the scrubber has opened.
struct Opened {
    log: Arc<OpenLog>,
    /// When the log had been used last before.
    used: u64,
}

impl Inner {
    /// Scrubs all logs once, beginning with one at random. Calls `pace` for what was read; returns `false` as soon as that
    /// does.
    pub(super) fn scrub(&self, pace: &mut dyn FnMut(u64) -> bool) -> bool {
        let Some(first) = self.random_name() else { return true };
        let parts =
            [(Bound::Included(&*first), Bound::Unbounded), (Bound::Unbounded, Bound::Excluded(&*first))];
        for (mut from, to) in parts {
            let mut scrubbed: String;
            while let Some((name, entry)) = self.first_in(from, to) {
                if !self.scrub_log(&name, &entry, pace) {
                    return false;
                }
                scrubbed = name;
                from = Bound::Excluded(&scrubbed);
            }
        }
        true
    }

    fn random_name(&self) -> Option<String> {
        let mut bytes = [0; 8];
        let _ = self.env.machine.random(&mut bytes); // without it, with the first one
        let entries = read_lock(&self.entries);
        let at = u64::from_le_bytes(bytes).checked_rem(entries.len() as u64)?;
        entries.keys().nth(at as usize).cloned()
    }

    fn first_in(&self, from: Bound<&str>, to: Bound<&str>) -> Option<(String, Arc<Entry>)> {
        let entries = read_lock(&self.entries);
        let (name, entry) = entries.range::<str, _>((from, to)).next()?;
        Some((name.clone(), Arc::clone(entry)))
    }

    /// Scrubs a log; `false` if the store is being closed.
    fn scrub_log(&self, name: &str, entry: &Arc<Entry>, pace: &mut dyn FnMut(u64) -> bool) -> bool {
        let mut from = 0;
        let mut failures = 0;
        let mut ours = None;
        let goes_on = loop {
            match self.scrub_segment(name, entry, from, &mut ours, pace) {
                Step::Continue(next) => from = next,
                Step::TryAgain if failures < MAX_FAILURES => {
                    failures += 1;
                    if !pace(FAILURE_BYTES) {
                        break false;
                    }
                }
                Step::TryAgain | Step::Done => break true,
                Step::Stop => break false,
            }
        };
        if let Some(Opened { log, used }) = ours {
            let unused = entry.used.load(Ordering::Relaxed) == used && log.settles_soon();
            drop(log);
            if unused {
                entry.close(); // or else the housekeeper does so later
            }
        }
        goes_on
    }

    /// Scrubs the first segment of a log from an offset on. Opens the log if nobody has it open, and keeps it open
    /// until it is used by others.
    fn scrub_segment(
        &self,
        name: &str,
        entry: &Arc<Entry>,
        from: u64,
        ours: &mut Option<Opened>,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Step {
        let used = entry.used.load(Ordering::Relaxed);
        let mut open = entry.open_log();
        if open.is_none() {
            self.close_idlest(1);
            match self.get_or_open(name, entry) {
                Ok(log) => *ours = Some(Opened { log: Arc::clone(open.insert(log)), used }),
                Err(Error::Log(error)) if error.is_transient() => return Step::TryAgain,
                Err(_) => return Step::Done, // it is reported to users of the log
            }
            if !pace(OPENING_BYTES) {
                return Step::Stop;
            }
        } else if ours.as_ref().is_some_and(|ours| ours.used != used) {
            *ours = None;
        }
        let Some(handle) = open.map(|open| open.scrubber()) else { return Step::TryAgain };
        let (mut goes_on, mut exists) = (true, true);
        let scrubbed = handle.scrub(from, &mut |bytes| {
            goes_on = pace(bytes);
            // The file of a deleted log takes room as long as it is open.
            exists = self.entry(name).is_some_and(|now| Arc::ptr_eq(&now, entry));
            goes_on && exists
        });
        match scrubbed {
            _ if !goes_on => Step::Stop,
            _ if !exists => Step::Done,
            Ok(Some(Scrubbed { next, damage, .. })) => {
                report(name, &damage);
                entry.findings.replace(from..next, damage);
                Step::Continue(next)
            }
            Err(error) if error.is_transient() || matches!(error, LogError::Closed) => Step::TryAgain,
            Err(error @ LogError::Io { .. }) => {
                reports::failure(&self.dir.join(name), &error, "cannot scrub the log");
                Step::Done
            }
            Err(_) if entry.open_log().is_none() => Step::TryAgain, // it was closed, and may be opened again
            Ok(None) | Err(_) => Step::Done, // the last segment, or a log that is being deleted
        }
    }
}

/// Reports what was found in a segment.
fn report(log: &str, damage: &[Damage]) {
    if damage.is_empty() {
        return;
    }
    let listed: Vec<_> = damage.iter().take(MAX_REPORTED).map(ToString::to_string).collect();
    let (damage, others) = (listed.join("; "), damage.len() - listed.len());
    tracing::error!(log, damage, others, "the scrubber has found damage");
}
