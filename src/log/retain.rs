//! Which segments exist: the chain by which readers find them, and trimming it.

use super::{Error, Shared, clock};
use crate::{
    segment::{Segment, file},
    sync::{Arc, Mutex, lock, try_lock},
};
use crossbeam::channel::RecvTimeoutError;
use std::{collections::VecDeque, io, time::Duration};
#[cfg(feature = "store")]
use {
    super::{ATTEMPT, ATTEMPTS},
    crossbeam::channel::{Receiver, TryRecvError},
};

/// The segments in the order of their offsets, never none. The last one, or the last few with
/// [`Durability::Memory`](super::Durability::Memory), may not be in here yet, and are found by their links.
pub(crate) struct Chain {
    pub(super) segments: Vec<Arc<Segment>>,
}

/// Segments that have left the chain, and whose files are still to be removed.
#[derive(Default)]
struct Doomed {
    /// By their base offsets, in order.
    files: VecDeque<u64>,
    /// Set for good when it is not known which names are durably gone: removing more could leave a gap.
    failed: Option<Error>,
}

/// What is being trimmed.
pub(crate) struct Trimmer {
    /// Held while segments are hidden and their files removed.
    doomed: Mutex<Doomed>,
    /// The answer of a trim that no caller waits for any more.
    #[cfg(feature = "store")]
    unanswered: Mutex<Option<Receiver<Result<u64, Error>>>>,
}

impl Trimmer {
    pub(super) fn new() -> Self {
        Self {
            doomed: Mutex::new(Doomed::default()),
            #[cfg(feature = "store")]
            unanswered: Mutex::new(None),
        }
    }

    /// Whether no file is left of what was trimmed, and nobody is removing one.
    pub(super) fn is_done(&self) -> bool {
        try_lock(&self.doomed).is_some_and(|doomed| doomed.files.is_empty() && doomed.failed.is_none())
    }

    /// Waits until no file is being removed. Called when the log has ended, so that none is removed after that.
    #[cfg(feature = "store")]
    pub(super) fn settle(&self) {
        drop(lock(&self.doomed));
    }
}

/// Files that are removed at once: in between, the maintenance task does its other work.
const SLICE: usize = 8;

impl Chain {
    /// The first offset that is left.
    pub(super) fn first(&self) -> u64 {
        self.segments.first().map_or(0, |segment| segment.base())
    }

    /// Bytes of all segment files.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes()).sum()
    }

    /// The segment that has this offset, or would have it next; `None` if it was trimmed.
    pub(super) fn locate(&self, offset: u64) -> Option<Arc<Segment>> {
        let after = self.segments.partition_point(|segment| segment.base() <= offset);
        let mut segment = Arc::clone(self.segments.get(after.checked_sub(1)?)?);
        if after == self.segments.len() {
            while let Some(next) = segment.next.load_full().filter(|next| next.base() <= offset) {
                segment = next;
            }
        }
        Some(segment)
    }
}

/// When the newest record of the first of these segments was appended, as far as the clock can be believed.
fn newest(segments: &[Arc<Segment>], now: u64) -> u64 {
    clock::newest(segments[0].newest(), segments[1..].iter().map(|segment| segment.header.created), now)
}

impl Shared {
    /// Adds a segment that was begun, in place of one with the same base that ended empty.
    pub(super) fn chain_add(&self, segment: &Arc<Segment>) {
        self.chain_edit(|segments| {
            segments.retain(|old| old.base() != segment.base());
            segments.push(Arc::clone(segment));
        });
    }

    fn chain_edit(&self, edit: impl Fn(&mut Vec<Arc<Segment>>)) {
        loop {
            let old = self.chain.load_full();
            let mut segments = old.segments.clone();
            edit(&mut segments);
            if self.chain.replace(&old, Arc::new(Chain { segments })) {
                return;
            }
        }
    }

    /// The offset before which segments may be dropped, by the bytes or the age that must be kept.
    pub(super) fn past_keeping(&self, bytes: Option<u64>, age: Option<Duration>) -> u64 {
        let (chain, durable) = (self.chain.load_full(), self.durable.get());
        let mut total = chain.bytes();
        let now = self.believed_now();
        let oldest = age.and_then(|age| self.oldest(now, age));
        let mut before = chain.first();
        for (n, pair) in chain.segments.windows(2).enumerate() {
            let expired = oldest.is_some_and(|oldest| newest(&chain.segments[n..], now) < oldest);
            let kept = !expired && bytes.is_none_or(|bytes| total <= bytes);
            if kept || pair[1].base() >= durable {
                break; // the latter as in `hide`
            }
            total -= pair[0].file_bytes();
            before = pair[1].base();
        }
        before
    }

    /// The time before which records are older than `age` at the time `now`; `None` as long as the clock may be wrong
    /// about it.
    pub(super) fn oldest(&self, now: u64, age: Duration) -> Option<u64> {
        let doubted = self.env.belief.doubts(self.newest_found, now, self.env.machine.elapsed());
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (!doubted).then(|| now.saturating_sub(age))
    }

    /// The offsets of the first segment that may have a record that was appended at `time` or later; from the end on,
    /// if no segment has one.
    pub(super) fn segment_since(&self, time: u64) -> (u64, u64) {
        let mut segments = self.chain.load_full().segments.clone();
        while let Some(next) = segments.last().and_then(|last| last.next.load_full()) {
            segments.push(next); // with records in memory only
        }
        let now = self.env.machine.now();
        let last = segments.len().saturating_sub(1);
        let old = (0..last).take_while(|&n| newest(&segments[n..], now) < time).count();
        let from = segments.get(old).map_or(0, |segment| segment.base());
        (from, segments.get(old + 1).map_or(u64::MAX, |segment| segment.base()))
    }

    /// Whether callers trim by themselves: a log that was opened without room has no maintenance task, and no appends.
    /// Trimming frees the room.
    fn trims_itself(&self) -> bool {
        self.full.is_some() && self.failed.get().is_none()
    }

    pub(super) fn trim(&self, before: u64) -> Result<u64, Error> {
        while self.trims_itself() {
            if let Some(first) = self.trim_now(before)? {
                return Ok(first);
            }
        }
        self.writable()?;
        let (answer, answered) = crossbeam::channel::bounded(1);
        self.roll.trim(before, answer);
        loop {
            self.env.maintenance.help();
            match answered.recv_timeout(Duration::from_millis(100)) {
                Ok(trimmed) => return trimmed,
                // Perhaps nothing is left that answers.
                Err(RecvTimeoutError::Timeout) => self.writable()?,
                Err(RecvTimeoutError::Disconnected) => return self.writable().and(Err(Error::Closed)),
            }
        }
    }

    /// The same, for callers that have other logs to serve: a longer trim continues by itself.
    #[cfg(feature = "store")]
    pub(super) fn trim_soon(&self, before: u64) -> Result<u64, Error> {
        if self.trims_itself() {
            return self.trim_now(before)?.ok_or(Error::WouldBlock);
        }
        self.writable()?;
        let mut unanswered = lock(&self.trimmer.unanswered);
        if let Some(answered) = &*unanswered
            && matches!(answered.try_recv(), Err(TryRecvError::Empty))
        {
            return Err(Error::WouldBlock); // otherwise a hanging maintenance task would collect more requests each time
        }
        let (answer, answered) = crossbeam::channel::bounded(1);
        self.roll.trim(before, answer);
        for _ in 0..ATTEMPTS {
            self.env.maintenance.help();
            match answered.recv_timeout(ATTEMPT) {
                Ok(trimmed) => return trimmed,
                Err(RecvTimeoutError::Timeout) => self.writable()?,
                Err(RecvTimeoutError::Disconnected) => return self.writable().and(Err(Error::Closed)),
            }
        }
        *unanswered = Some(answered);
        Err(Error::WouldBlock)
    }

    /// Trims, on the maintenance thread, for a while: `None` if there is more to be done. First readers stop finding
    /// the segments, then the files are removed, the oldest first, and each durably before the next one, even if that
    /// takes several attempts: so a log that opens after a crash begins a little earlier, and has no gap.
    pub(super) fn trim_now(&self, before: u64) -> Result<Option<u64>, Error> {
        if let Some(full) = self.full.as_ref().filter(|full| full.is_read_only) {
            return Err(full.error.clone()); // before anything is hidden that stays
        }
        // Held over both steps: when several threads trim at once, files go in the order in which they were hidden.
        let mut doomed = lock(&self.trimmer.doomed);
        self.hide(before, &mut doomed);
        Ok(self.remove(&mut doomed)?.then(|| self.first_offset()))
    }

    /// Takes segments of which all records are below `before` out of the chain. The last one that has records on the
    /// disk stays: what follows it in memory is bound to its last frame, and would not be restored after a kill.
    fn hide(&self, before: u64, doomed: &mut Doomed) {
        let (chain, durable) = (self.chain.load_full(), self.durable.get());
        let ended = |segment: &Segment| {
            let end = segment.sealed.get().map(|sealed| segment.base() + u64::from(sealed.records));
            end.is_some_and(|end| end <= before && end < durable)
        };
        let most = chain.segments.len() - 1; // the last one may be written to
        // One by one: one that is not sealed yet may precede others that are.
        let ended = chain.segments[..most].iter().take_while(|segment| ended(segment)).count();
        let dropped = &chain.segments[..ended];
        if dropped.is_empty() {
            return;
        }
        let first = chain.segments[dropped.len()].base();
        self.chain_edit(|segments| segments.retain(|segment| segment.base() >= first));
        let last = self.chain.load_full().segments.last().map(Arc::clone);
        for segment in dropped {
            // So that a thread that holds it does not hold all that follow. Not set to none: an appender that was
            // descheduled since this one was full would link another successor to it.
            if let Some(last) = &last {
                segment.next.set(Arc::clone(last));
            }
        }
        doomed.files.extend(dropped.iter().map(|segment| segment.base()));
    }

    /// Removes some files of trimmed segments; returns whether none is left.
    fn remove(&self, doomed: &mut Doomed) -> Result<bool, Error> {
        if let Some(error) = &doomed.failed {
            return Err(error.clone());
        }
        for _ in 0..SLICE {
            let Some(&base) = doomed.files.front() else { break };
            if self.full.is_some() && self.failed.get().is_some() {
                self.writable()?; // it was deleted, or replaced by another opening: the files are another log's
            }
            let path = self.dir.join(file::name(base));
            match self.env.disk.remove(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // removed, if not yet durably
                removed => removed.map_err(Error::io("remove", &path))?,
            }
            if let Err(error) = self.env.disk.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir)) {
                if !error.is_transient() {
                    doomed.failed = Some(error.clone());
                }
                return Err(error);
            }
            doomed.files.pop_front();
        }
        Ok(doomed.files.is_empty())
    }
}
