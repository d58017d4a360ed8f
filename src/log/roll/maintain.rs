//! The maintenance task of a log: prepares spare segments, writes zeros ahead of the flusher, seals, trims, and gives
//! memory back.

#[cfg(doc)]
use super::growth;
use super::{
    SpareSegment,
    queue::{Job, JobError, TrimRequest},
    smaller,
};
use crate::{
    chunk::{ChunkPosition, Predecessor},
    disk,
    log::{Error, Options, Shared, budget::Claim, line::NUDGE, task::TurnEnd},
    reports,
    segment::{Segment, file::SegmentFile, scan::Summary, sealed},
    sync::{Arc, Ordering},
};
use std::time::Duration;

/// How long to wait before trying again to seal or to trim.
const RETRY: Duration = Duration::from_millis(250);

impl Shared {
    /// A turn of the maintenance task.
    pub(super) fn maintenance_turn(&self) {
        let roll = &self.roll;
        loop {
            roll.queue.task.take_kick();
            if roll.line.is_waited_for() {
                roll.line.bump(); // see `line`: whoever has the turn may do nothing
            }
            // Trims are done until one has to be tried again later (`trimming`), other jobs likewise (`waiting`).
            let (mut trimming, mut waiting) = (true, false);
            loop {
                let stopping = self.stopping.load(Ordering::SeqCst);
                // Spare segments first: appends wait for them.
                if !stopping && roll.spares.is_wanted() {
                    self.prepare();
                    self.leave_early();
                }
                if !stopping && self.backing_is_due() {
                    self.get_backing();
                    self.leave_early();
                }
                // Trims alternate with other jobs: a trim makes the room that another job may wait for.
                let trim = if trimming && !stopping { roll.queue.next_trim() } else { None };
                let trimmed = trim.is_some();
                trimming = trim.is_none_or(|trim| self.trim_slice(trim));
                let job = if waiting { None } else { roll.queue.next_job() };
                if job.is_none() && !trimmed {
                    break;
                }
                if let Some((job, was_tried)) = job {
                    match self.work_at(job) {
                        Ok(()) => {}
                        Err(JobError::Retry(job, error)) => {
                            if !was_tried {
                                tracing::warn!(dir = %self.dir.display(), %error, "cannot seal a segment yet, will try again");
                            }
                            roll.queue.stall(*job);
                            waiting = true;
                        }
                        Err(JobError::Fatal(error)) => self.fail(&error),
                    }
                }
                // A long trim is done in slices, so that other logs have their turns in between.
                if trimmed && roll.queue.task.yield_turn() == TurnEnd::Over {
                    return;
                }
            }
            let stopping = self.stopping.load(Ordering::SeqCst);
            let end = match self.retry_delay().filter(|_| !stopping) {
                Some(pause) => roll.queue.task.resume_after(pause),
                None => roll.queue.task.sleep_unless(|| false),
            };
            if end == TurnEnd::Over {
                return;
            }
        }
    }

    /// How long until what could not be done is tried again, if there is anything.
    fn retry_delay(&self) -> Option<Duration> {
        let roll = &self.roll;
        if roll.queue.has_unfinished() {
            return Some(RETRY); // a caller, or an append, waits for it
        }
        roll.spares.retry_delay().or_else(|| roll.line.is_waited_for().then_some(NUDGE))
    }

    fn work_at(&self, job: Job) -> Result<(), JobError> {
        let gives_memory = job.gives_memory();
        match job {
            Job::Prepare => {} // done before each job
            Job::Seal(segment, end) => self.seal(&segment, end).map_err(|error| {
                if error.is_transient() || error.is_full() {
                    JobError::Retry(Box::new(Job::Seal(segment, end)), error)
                } else {
                    JobError::Fatal(error)
                }
            })?,
            Job::Discard(segment) => self.discard(&segment),
            Job::LetGo(spare) => self.let_go(spare),
            Job::ZeroAhead(segment) => self.zero_ahead(&segment).map_err(JobError::Fatal)?,
            Job::FaultIn(chunk) => chunk.fault_in(),
        }
        if gives_memory {
            self.roll.queue.memory_given();
        }
        Ok(())
    }

    /// Trims one slice, and answers, or leaves the rest for later. Returns `false` if it has to be tried again later.
    fn trim_slice(&self, trim: TrimRequest) -> bool {
        let trimmed = self.trim_now(trim.before);
        self.roll.budget.forget(&self.roll.share, self.first_offset());
        match trimmed {
            Ok(None) => self.roll.queue.put_back_trim(trim),
            Err(error) if error.is_transient() => {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot trim yet, will try again");
                self.roll.queue.put_back_trim(trim);
                return false;
            }
            Ok(Some(first)) => drop(trim.answer.send(Ok(first))), // the caller may no longer wait
            Err(error) => drop(trim.answer.send(Err(error))),
        }
        true
    }

    /// Does the rest of the maintenance task's work after both tasks have stopped: seals what is durable, and releases
    /// the spare segment. The last segment stays unsealed, so that the log can continue in it when it is opened next.
    pub(in crate::log) fn seal_rest(&self) -> Result<(), Error> {
        let mut done = Ok(());
        while let Some((job, _)) = self.roll.queue.next_job() {
            match job {
                Job::Prepare | Job::ZeroAhead(_) | Job::FaultIn(_) => {}
                Job::Seal(..) if self.has_ended() => {}
                job => match self.work_at(job) {
                    Ok(()) => {}
                    // Its frames are durable, and the segment is sealed when the log is opened next.
                    Err(JobError::Retry(_, error)) => {
                        tracing::warn!(dir = %self.dir.display(), %error, "a segment is left unsealed");
                    }
                    Err(JobError::Fatal(error)) => done = done.and(Err(error)),
                },
            }
        }
        while let Some(TrimRequest { answer, .. }) = self.roll.queue.next_trim() {
            drop(answer.send(Err(Error::Closed))); // the caller may no longer wait
        }
        self.roll.spares.take().into_iter().for_each(|spare| self.let_go(spare));
        self.roll.budget.end(&self.roll.share);
        done
    }

    /// Prepares a spare segment, unless one is ready, or there is no memory for it yet.
    fn prepare(&self) {
        let roll = &self.roll;
        let needs = roll.spares.take_request();
        let least = self.least_for(needs);
        let is_fine = |capacity| capacity >= needs && !roll.is_too_large(capacity, least);
        match roll.spares.take() {
            Some(spare) if is_fine(spare.memory.capacity()) => {
                self.offer(spare);
                // An appender that looked while the spare segment was taken found none, and waits.
                roll.line.bump();
                return;
            }
            Some(other) => self.let_go(other),
            None => {}
        }
        let Some(mut claim) = self.claim_next(needs) else {
            if roll.spares.found_no_memory() {
                roll.line.bump(); // for appends that wait only while there is memory
            }
            // An appender may have closed a chunk before its first record, and then nobody else kicks the flusher.
            self.flush.kick();
            return;
        };
        roll.spares.found_memory();
        let started_at = self.env.machine.elapsed();
        let made = self.make_spare(claim.capacity(), least);
        roll.spares.growth.made(claim.capacity(), self.env.machine.elapsed().saturating_sub(started_at));
        roll.budget.shrink();
        match made {
            Ok(spare) => {
                claim.reduce(spare.memory.capacity());
                claim.hand_over();
                roll.spares.note_success(); // before it is offered: whoever finds none now waits for the bump
                self.offer(spare);
            }
            Err(error) => {
                drop(claim);
                let refusal = error.cannot_grow();
                // It is tried again for each append that finds no room, and now and then, but logged only once.
                if roll.spares.note_failure(refusal.clone(), self.env.machine.elapsed()) {
                    reports::failure(&self.dir, &refusal, "cannot prepare the next segment");
                }
            }
        }
        roll.line.bump();
    }

    /// Puts a spare segment where appenders find it. If there is one already, because an appender that found the
    /// previous one too small has put it back meanwhile, this one is released.
    pub(super) fn offer(&self, spare: SpareSegment) {
        self.roll.spares.put(spare).into_iter().for_each(|spare| self.let_go(spare));
    }

    /// Leaves the active chunk before it is full: if it has no backing, but the spare segment has; or if the budget is
    /// exceeded, and the spare segment is of the smallest size, so that a large chunk is sealed, and its memory given back.
    fn leave_early(&self) {
        let active = self.active.load_full();
        let roll = &self.roll;
        let smallest = self.options.first_segment_bytes;
        let has_records = self.durable.get() > active.segment.base();
        let is_too_large = has_records && roll.is_too_large(active.chunk.capacity(), smallest);
        let lacks_backing = roll.backing.source.is_some() && !active.chunk.has_backing();
        if !is_too_large && !lacks_backing {
            return;
        }
        let Some(spare) = roll.spares.take() else { return };
        let is_better = is_too_large && spare.memory.capacity() <= smallest
            || lacks_backing && spare.memory.has_backing();
        self.offer(spare);
        roll.line.bump(); // an appender that looked while it was taken found none, and waits
        if is_better {
            self.roll_if_ready(&active);
        }
    }

    /// The smallest capacity of a chunk that has room for an append of `needs` bytes: what [`claim_next`](Self::claim_next)
    /// is always granted, and is therefore never too large.
    pub(super) fn least_for(&self, needs: u64) -> u64 {
        let Options { first_segment_bytes, segment_bytes, .. } = self.options;
        first_segment_bytes.max(needs.next_multiple_of(disk::BLOCK)).min(segment_bytes)
    }

    /// Claims room for the next chunk: larger than the active one while half of the budget is unclaimed ([`growth`]),
    /// otherwise of the same size. `None` if the disk has to catch up first. If other logs have taken the memory, smaller
    /// chunks are used; a chunk of the smallest size that is enough is always granted.
    pub(super) fn claim_next(&self, needs: u64) -> Option<Claim> {
        let max = self.options.segment_bytes;
        let least = self.least_for(needs);
        let roll = &self.roll;
        let fitting = |bytes: u64| bytes.max(least).min(max);
        let active = self.active.load_full().chunk.capacity();
        let is_first = active <= self.options.first_segment_bytes;
        let factors = roll.spares.growth.factors(active, is_first, self.env.machine.elapsed());
        let grown = factors.into_iter().map(|factor| fitting(active.saturating_mul(factor)));
        let fits = |&capacity: &u64| roll.budget.has_half(capacity);
        let mut capacity = grown.into_iter().find(fits).unwrap_or_else(|| fitting(active));
        if let Some(claim) = roll.try_claim(capacity) {
            return Some(claim);
        }
        if roll.unwritten.load(Ordering::SeqCst) > 1 || roll.queue.owes_memory() {
            return None;
        }
        while capacity > least {
            capacity = smaller(capacity, least);
            if let Some(claim) = roll.try_claim(capacity) {
                return Some(claim);
            }
        }
        Some(roll.claim_least(capacity))
    }

    /// A file for a segment of `capacity`.
    pub(super) fn create_segment_file(&self, capacity: u64) -> Result<SegmentFile, Error> {
        let number = self.roll.spares.next_number();
        SegmentFile::prepare(&*self.env.disk, &self.dir, number, capacity)
            .map_err(Error::io("make a segment file in", &self.dir))
    }

    /// A spare segment of `capacity`; or, if the disk or the memory file system has room only for less, of less, but at
    /// least `least`.
    fn make_spare(&self, mut capacity: u64, least: u64) -> Result<SpareSegment, Error> {
        // First, because it costs less than memory, if there is no room for it.
        let file = loop {
            match self.create_segment_file(capacity) {
                Err(Error::Io { source, .. }) if disk::is_out_of_space(&source) && capacity > least => {
                    capacity = smaller(capacity, least);
                }
                file => break file?,
            }
        };
        let memory = self
            .roll
            .memory(capacity, least, self.env.machine.elapsed())
            .inspect_err(|_| file.discard(&*self.env.disk))
            .map_err(Error::io("get memory for a segment of", &self.dir))?;
        memory.fault_in();
        if memory.capacity() == capacity {
            return Ok(SpareSegment { memory, file });
        }
        file.discard(&*self.env.disk);
        Ok(SpareSegment { file: self.create_segment_file(memory.capacity())?, memory })
    }

    /// Seals a segment whose frames are durable. Its chunk stays for readers as long as the budget allows.
    fn seal(&self, segment: &Arc<Segment>, end: ChunkPosition) -> Result<(), Error> {
        let (Some(file), Some(chunk)) = (segment.file(), segment.chunk.load_full()) else { return Ok(()) };
        let time = |record| chunk.frame(record).map_or(0, |frame| frame.time);
        let times = (time(0), time(end.records - 1));
        let positions = (0..end.records as usize)
            .map(|record| chunk.position(record as u32).expect("all records of a durable end are published"));
        let last_crc = match chunk.predecessor(end.records) {
            Predecessor::Frame(crc) => Some(crc),
            _ => None,
        };
        let summary = Summary { words: end.words, times, last_crc };
        let footer = sealed::seal(file.file(), &segment.header, summary, positions)
            .map_err(Error::io("seal a segment in", &self.dir))?;
        chunk.set_sealed();
        segment.set_sealed(footer.into());
        self.roll.budget.keep(&self.roll.share, segment);
        Ok(())
    }

    /// Removes the file of a segment that has no records, and releases its chunk and its claim.
    fn discard(&self, segment: &Segment) {
        segment.file().into_iter().for_each(|file| self.remove_unused(&file));
        segment.give_up();
        self.roll.share.release(segment.header.capacity);
    }

    /// Removes the file of a segment that is not used. Once the log was closed or deleted, there may be a file of another
    /// opening, or of another log, under its name.
    pub(super) fn remove_unused(&self, file: &SegmentFile) {
        if !self.ending.is_displaced() {
            file.discard(&*self.env.disk);
        }
    }

    /// Releases a spare segment.
    fn let_go(&self, spare: SpareSegment) {
        let SpareSegment { memory, file } = spare;
        self.remove_unused(&file);
        self.roll.share.release(memory.capacity());
        drop(memory); // which also drops its backing
    }

    fn zero_ahead(&self, segment: &Arc<Segment>) -> Result<(), Error> {
        let Some(file) = segment.file() else { return Ok(()) };
        let done = file.zero_ahead();
        self.flush.zeros_done();
        match done {
            // Without the zeros, writes are a little slower.
            Err(error) if disk::is_transient(&error) || disk::is_full(&error) => Ok(()),
            done => done.map_err(Error::io("write zeros ahead in", &self.dir)),
        }
    }
}
