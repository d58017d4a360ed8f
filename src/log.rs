//! The log: records in order, numbered 0, 1, 2, …, in one directory.
//!
//! This module is the public face, and what its submodules share. Appends meet in the active chunk
//! ([`append`](mod@append)). The flusher commits what is published to the segment file and raises `durable` (`flush`).
//! The maintenance task prepares the spare segment, seals the last one, and drops old chunks (`roll`, `trim`,
//! `retention`, `budget`). Both are tasks, which threads of the process run for all logs (`task`, `workers`). Readers
//! find a record by its segment (`read`). Opening recovers (`recovery`).
//!
//! # What always holds
//! - `first <= durable <= next`, and each only grows; with [`Durability::Memory`], where `published` is kept, also
//!   `durable <= published <= next`.
//! - What readers see ends at `durable`, or at `published` with [`Durability::Memory`]; everything below is immutable.
//! - Segments follow each other without a gap: each starts where the one before was closed.

mod append;
pub(crate) mod budget;
mod chain;
mod checkpoint;
mod clock;
#[cfg(feature = "store")]
mod cursors;
mod damage;
mod end;
pub(crate) mod environment;
mod error;
mod flush;
#[cfg(feature = "store")]
mod for_store;
mod futures;
mod handles;
mod inspect;
mod limits;
mod line;
mod options;
#[cfg(feature = "store")]
mod producers;
mod read;
mod recovery;
mod repair;
#[cfg(feature = "store")]
mod requests;
mod retention;
mod roll;
mod room;
mod scrub;
mod since;
mod stats;
mod task;
mod trim;
mod wait;
mod workers;

pub use append::{Appender, Payload};
#[cfg(feature = "server")]
pub(crate) use cursors::Condition as CursorCondition;
#[cfg(feature = "store")]
pub use cursors::Cursor;
pub use damage::Damage;
pub(crate) use environment::Environment;
pub use error::Error;
#[cfg(feature = "server")]
pub(crate) use error::unwritable;
#[cfg(feature = "store")]
pub(crate) use flush::MAX_CLOSE_TIME;
pub use futures::{AppendAsync, AppendDurable, Durable, Room, Visible};
pub use inspect::{Report, verify, verify_with_progress};
#[cfg(any(feature = "client", feature = "store"))]
pub use limits::{BATCH_EXTRA_BYTES, MAX_PRODUCER_MARK_BYTES};
#[cfg(feature = "store")]
pub use limits::{MAX_CURSORS_PER_LOG, MAX_PRODUCER_EPOCH, MAX_PRODUCER_ID_BYTES};
pub use limits::{MAX_SEGMENT_BYTES, RECORD_EXTRA_BYTES};
pub use options::{Durability, Options};
#[cfg(all(fuzzing, feature = "store"))]
pub use producers::fuzzing::checksum_of as checksum_of_producers;
#[cfg(feature = "store")]
pub use producers::{BegunEpoch, Produced, ProducerBatch, ProducerState, StoredBatch, is_producer_id};
#[cfg(feature = "server")]
pub(crate) use producers::{Content, check_first, check_id as check_producer_id};
#[cfg(feature = "server")]
pub(crate) use read::{Ahead, Head};
pub use read::{Iter, Reader, Record, RecordRef};
#[cfg(feature = "store")]
pub(crate) use recovery::{COMMON_LOCK, SETTINGS, id_of, is_ours, only_ours};
pub use repair::{Repaired, repair, repair_with_progress};
#[cfg(feature = "server")]
pub(crate) use requests::LastWrite;
pub use retention::Retention;
pub use scrub::Scrubbed;
pub use stats::{Histogram, LogStats, Stats, stats};
#[cfg(feature = "server")]
pub(crate) use wait::unless_reached;
#[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
pub(crate) use {
    environment::Machine,
    inspect::verify_on,
    repair::repair_on,
    task::{Run, Schedule},
};

#[cfg(feature = "server")]
use crate::chunk::AppendValues;
use crate::{
    LogId,
    reports::{Reports, report},
    segment::header::Secret,
    sync::{Arc, AtomicBool, Backoff, Mutex, Ordering, Swap, lock},
};
pub(crate) use room::WaitFor;
use std::{
    fmt,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    time::Duration,
};
use {budget::Budget, end::End, handles::Handles, wait::Frontier};

/// A commit log in one directory. Any number of threads may share it, by reference or as clones, which share all of it. It
/// is closed when the last clone is dropped, or by [`close`](Self::close) or [`shutdown`](Self::shutdown) on any of them,
/// which return whether that went well.
///
/// # Example
/// ```
/// # fn main() -> Result<(), millstream::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
/// let offset = log.append(b"hello")?;
/// log.wait_durable(offset)?;
/// assert_eq!(log.read(offset)?.unwrap().value(), b"hello");
/// log.close()?;
/// # Ok(())
/// # }
/// ```
pub struct Log {
    shared: Arc<Shared>,
    handles: Arc<Handles>,
}

/// What all threads that work on a log share.
pub(crate) struct Shared {
    options: Options,
    dir: PathBuf,
    env: Environment,
    id: LogId,
    /// What the keys of its segments are derived from.
    secret: Secret,
    /// Where appends go.
    active: Swap<roll::Active>,
    /// All segments that readers may need, in order. The flusher adds to it, trimming removes: each by compare-and-swap.
    chain: Swap<chain::Chain>,
    durable: Frontier,
    /// Raised only with [`Durability::Memory`].
    published: Frontier,
    flush: flush::Flusher,
    roll: roll::Roller,
    trimmer: trim::Trimmer,
    stopping: AtomicBool,
    ending: end::Ending,
    damage: Vec<Damage>,
    /// Why the log refuses appends until it is opened again: there was no room to continue when it was opened. Nothing is
    /// damaged. Unlike [`Flusher::full`](flush::Flusher::full), this does not pass.
    opened_full: Option<recovery::Full>,
    /// When the newest record that existed at opening was appended.
    newest_at_opening: u64,
    #[cfg(feature = "store")]
    producers: producers::Producers,
    #[cfg(feature = "store")]
    cursors: cursors::Cursors,
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl Shared {
    /// A log that was opened, and that holds `lock` for as long.
    fn new(
        env: &Environment,
        dir: &Path,
        options: Options,
        lock: Box<dyn Send + Sync>,
        opened: recovery::Opened,
    ) -> Self {
        let recovery::Opened { id, secret, content, roller, damage } = opened;
        let recovery::Content { segments, active, done, newest, full } = content;
        let durable = active.segment.base() + u64::from(done.records);
        let position = flush::CommitPosition::new(&active, done, true);
        Self {
            options,
            dir: dir.to_owned(),
            env: env.clone(),
            id,
            secret,
            active: Swap::new(active),
            chain: Swap::new(Arc::new(chain::Chain { segments })),
            durable: Frontier::new(durable),
            published: Frontier::new(durable),
            flush: flush::Flusher::new(position, std::sync::Arc::clone(&env.flushers)),
            roll: roller,
            trimmer: trim::Trimmer::new(),
            stopping: AtomicBool::new(false),
            ending: end::Ending::new(),
            damage,
            opened_full: full,
            newest_at_opening: newest,
            #[cfg(feature = "store")]
            producers: producers::Producers::default(),
            #[cfg(feature = "store")]
            cursors: cursors::Cursors::default(),
            lock: Mutex::new(Some(lock)),
        }
    }

    /// Returns an error unless the log can be written to.
    fn writable(&self) -> Result<(), Error> {
        self.check_not_ended()?;
        if self.has_stopped() {
            return Err(Error::Closed);
        }
        if let Some(first) = self.damage.first() {
            let more = self.damage.len() - 1;
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            return Err(Error::ReadOnly {
                reason: format!("{first}{more}; repair the log (`repair()`, or `millstream repair`)").into(),
            });
        }
        if let Some(full) = &self.opened_full {
            return Err(full.error.clone());
        }
        Ok(())
    }

    /// To be asked after a file of the log was opened by its path: once the log was closed or deleted, it may be the file
    /// of another one.
    fn check_not_displaced(&self) -> Result<(), Error> {
        if self.ending.is_displaced() { self.check_not_ended() } else { Ok(()) }
    }

    /// Returns an error if the log was closed, has failed, was deleted, or was opened again.
    fn check_not_ended(&self) -> Result<(), Error> {
        self.ending.get().map_or(Ok(()), |end| Err(end.error()))
    }

    /// Whether [`check_not_ended`](Self::check_not_ended) returns an error.
    fn has_ended(&self) -> bool {
        self.ending.get().is_some()
    }

    /// Whether it was stopped: to be closed, or because it has ended.
    fn has_stopped(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A write has failed: nothing more is appended, all waiters get an error, and nothing is tried again, because a
    /// failed sync says nothing about what is on the disk.
    fn fail(&self, cause: &dyn fmt::Display) {
        let reason = format!("the log's writer has failed: {cause}; open the log again to recover");
        if self.ending.set(End::Failed(reason.into())) {
            tracing::error!(dir = %self.dir.display(), error = %cause, "the log's writer has failed");
            // Records that are in memory and not on disk are left for the next opening.
            self.roll.keep_shared_memory();
        }
        self.stop();
    }

    fn panicked(&self) {
        self.fail(&"a thread that worked for it panicked");
    }

    /// Fails every append that has not reserved its place yet, and wakes all waiters.
    fn stop(&self) {
        roll::stop(&self.active, &self.stopping);
        self.durable.wake_all();
        self.published.wake_all();
        self.roll.line().wake_all();
    }

    /// Readers see records up to here.
    #[inline]
    fn visible(&self) -> &Frontier {
        match self.options.durability {
            Durability::Disk => &self.durable,
            Durability::Memory => &self.published,
        }
    }

    fn first_offset(&self) -> u64 {
        self.chain.load().first()
    }

    fn next_offset(&self) -> u64 {
        let active = self.active.load();
        active.segment.base() + u64::from(active.chunk.reserved())
    }

    /// Stops appends and tasks: on return, nothing is done in the background any more.
    fn stop_tasks(&self) {
        self.stop();
        self.flush.stop();
        self.roll.stop();
    }

    /// Waits until no caller changes the log's files. Called when the log has stopped or ended, so that none does after
    /// that.
    fn settle(&self) {
        self.trimmer.settle(); // for callers that trim a log without a maintenance task
        #[cfg(feature = "store")]
        {
            self.producers.settle();
            self.cursors.settle();
        }
    }

    /// Lets others open the directory.
    fn unlock(&self) {
        *lock(&self.lock) = None;
    }

    /// Advances the active segment's time. If the clock is far behind it, begins another segment as soon as one is
    /// ready.
    fn refresh_clock(&self) {
        let active = self.active.load();
        if active.chunk.end().is_some() {
            return; // it takes no more records: it would only seem younger than they are
        }
        let created = active.segment.header.created;
        if clock::advance(created, &active.segment.age, self.env.machine.now()) {
            self.roll_if_ready(&active);
        }
    }

    /// The time that can be trusted, for dropping records by age.
    fn trusted_now(&self) -> u64 {
        self.env.trusted_time.now(self.env.machine.now(), self.env.machine.elapsed())
    }
}

/// Reports that a log is read-only, and why; not for each of thousands of logs or openings.
fn report_read_only(shared: &Shared) {
    static REPORTS: Reports = Reports::new();
    let dir = shared.dir.display();
    for why in shared.damage.iter().map(Damage::to_string) {
        report!(REPORTS, "damage", error, { %dir, why }, "damage found: the log is read-only");
    }
    if let Some(full) = &shared.opened_full {
        let why = full.error.to_string();
        report!(REPORTS, "full", error, { %dir, why }, "the log is read-only until it is opened again");
    }
}

/// Collects the values, then calls `append` with their bytes: no code of the caller runs during the append.
fn with_bytes<I, T>(values: I, append: impl FnOnce(&[&[u8]]) -> T) -> T
where
    I: IntoIterator,
    I::Item: AsRef<[u8]>,
{
    let values: Vec<I::Item> = values.into_iter().collect();
    let bytes: Vec<&[u8]> = values.iter().map(AsRef::as_ref).collect();
    append(&bytes)
}

impl Log {
    /// Opens the log in `dir`, which is created if it is missing, and recovers it: a torn end is cut off; damage makes
    /// the log read-only ([`damage`](Self::damage)). If the disk has no room to continue, appends are refused with
    /// [`Error::Full`] until the log is opened again; it can be read, and trimmed to make room.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotALog`], [`Error::Newer`], [`Error::Corrupt`], [`Error::BadOptions`],
    /// [`Error::Full`], or [`Error::Io`]. Nothing was changed then, except that the directory and its lock file may
    /// exist.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        Self::open_in(&Environment::system(), dir.as_ref(), options)
    }

    /// Opens on another disk.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn open_on(
        disk: std::sync::Arc<dyn crate::disk::Disk>,
        dir: &Path,
        options: Options,
    ) -> Result<Self, Error> {
        Self::open_in(&Environment::on(disk), dir, options)
    }

    pub(crate) fn open_in(env: &Environment, dir: &Path, options: Options) -> Result<Self, Error> {
        let options = options.checked()?;
        env.disk.create_dir(dir).map_err(Error::io("make the directory", dir))?;
        let lock = recovery::lock(&*env.disk, dir)?;
        let budget = Budget::new(options.memory_bytes);
        let opened = recovery::open(env, dir, &options, &budget)?;
        Self::start(Shared::new(env, dir, options, lock, opened))
    }

    #[cfg_attr(not(feature = "store"), allow(unused_mut))]
    fn start(mut shared: Shared) -> Result<Self, Error> {
        #[cfg(feature = "store")]
        if let Some(error) = shared.load_cursors()? {
            // A file that describes a longer log does no harm as long as nothing is appended.
            shared.opened_full = Some(recovery::Full::new(error, cursors::MAX_FILE_BYTES));
            shared.active.load_full().chunk.close(); // appends find no room, and then get the reason
        }
        let shared = Arc::new(shared);
        let is_running = shared.damage.is_empty() && shared.opened_full.is_none();
        if is_running {
            let threads = [&shared.env.flushers, &shared.env.maintenance];
            threads
                .into_iter()
                .try_for_each(|threads| threads.start())
                .map_err(Error::io("start a thread for", &shared.dir))?;
            shared.roll.start(&shared);
            shared.flush.start(&shared);
        }
        report_read_only(&shared);
        let handles = Arc::new(Handles::new(&shared, is_running));
        Ok(Self { shared, handles })
    }

    /// Appends a record and returns its offset. The record is durable when [`durable_offset`](Self::durable_offset) has
    /// passed it, which [`wait_durable`](Self::wait_durable) waits for. Waits if the disk is behind and memory is used
    /// up. Records of one thread keep their order.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Full`], [`Error::CannotGrow`], [`Error::ReadOnly`], [`Error::Failed`],
    /// [`Error::Closed`].
    pub fn append(&self, value: &[u8]) -> Result<u64, Error> {
        append::append(&self.shared, &[value], None, WaitFor::Anything)
    }

    /// Appends records one after the other, with no other records in between, and returns the offset of the first. They
    /// appear, become durable and survive a crash all together or not at all.
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`Error::EmptyBatch`].
    pub fn append_batch(&self, values: &[&[u8]]) -> Result<u64, Error> {
        append::append(&self.shared, values, None, WaitFor::Anything)
    }

    /// Like [`append_batch`](Self::append_batch), with values from any iterator. Collects all values before reserving
    /// offsets, so that no code of the caller runs in between. This allocates a list of the values and a list of slices.
    ///
    /// # Errors
    /// As [`append_batch`](Self::append_batch).
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// log.append_batch_from((0..3).map(|n| format!("line {n}")))?;
    /// assert_eq!(log.next_offset(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn append_batch_from<I>(&self, values: I) -> Result<u64, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        with_bytes(values, |bytes| self.append_batch(bytes))
    }

    /// Like [`append_batch_from`](Self::append_batch_from), but does not wait for the disk; see
    /// [`try_append`](Self::try_append).
    ///
    /// # Errors
    /// As [`try_append_batch`](Self::try_append_batch).
    pub fn try_append_batch_from<I>(&self, values: I) -> Result<u64, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        with_bytes(values, |bytes| self.try_append_batch(bytes))
    }

    /// Like [`append`](Self::append), but does not wait for the disk. While the next segment is being prepared, for which
    /// there is memory, this waits for it, for at most 20 ms; [`append_async`](Self::append_async) holds no thread.
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`Error::WouldBlock`].
    pub fn try_append(&self, value: &[u8]) -> Result<u64, Error> {
        append::append(&self.shared, &[value], None, WaitFor::NextSegment)
    }

    /// Like [`append_batch`](Self::append_batch), but does not wait for the disk; see [`try_append`](Self::try_append).
    ///
    /// # Errors
    /// As [`append_batch`](Self::append_batch), and [`Error::WouldBlock`].
    pub fn try_append_batch(&self, values: &[&[u8]]) -> Result<u64, Error> {
        append::append(&self.shared, values, None, WaitFor::NextSegment)
    }

    /// Appends a record only if its offset will be `expected_next`: a compare-and-swap on the end of the log.
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`Error::Unexpected`] with the next offset.
    pub fn append_if(&self, expected_next: u64, value: &[u8]) -> Result<u64, Error> {
        self.append_batch_if(expected_next, &[value])
    }

    /// Like [`append_if`](Self::append_if), for a batch whose first record must get the offset.
    ///
    /// # Errors
    /// As [`append_if`](Self::append_if), and [`Error::EmptyBatch`].
    pub fn append_batch_if(&self, expected_next: u64, values: &[&[u8]]) -> Result<u64, Error> {
        append::append(&self.shared, values, Some(expected_next), WaitFor::Anything)
    }

    /// Like [`try_append_batch`](Self::try_append_batch), with each record marked as JSON or not; and, if
    /// `expected_next` is given, only if the first record gets that offset.
    ///
    /// # Errors
    /// As [`try_append_batch`](Self::try_append_batch), and [`Error::Unexpected`] with the next offset.
    pub fn try_append_payloads(
        &self,
        payloads: &[Payload<'_>],
        expected_next: Option<u64>,
    ) -> Result<u64, Error> {
        append::append(&self.shared, payloads, expected_next, WaitFor::NextSegment)
    }

    /// Like [`try_append_payloads`](Self::try_append_payloads), with values that need not be in one list, and a caller that
    /// decides what to wait for.
    #[cfg(feature = "server")]
    pub(crate) fn try_append_values<S: AppendValues + ?Sized>(
        &self,
        values: &S,
        expected_next: Option<u64>,
        wait_for: WaitFor,
    ) -> Result<u64, Error> {
        append::append(&self.shared, values, expected_next, wait_for)
    }

    /// The log's id.
    pub fn id(&self) -> LogId {
        self.shared.id
    }

    /// The size of the log's segment files, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.chain.load().bytes()
    }

    /// A handle for one thread that appends a lot: it keeps the active segment at hand. An idle handle keeps that
    /// segment's chunk in memory.
    pub fn appender(&self) -> Appender {
        Appender::new(Arc::clone(&self.shared))
    }

    /// Appends a record when there is room for it, and returns its offset: [`append`](Self::append) for async code,
    /// with any runtime. Callers that find no room wait in a line, in the order in which they came, without holding a
    /// thread; one is woken at a time. Dropping the future before it has completed appends nothing. A future that waits
    /// in the line must be polled when it is woken, or dropped: others wait behind it.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_async<V: AsRef<[u8]>>(&self, value: V) -> AppendAsync<V> {
        AppendAsync::new(Arc::clone(&self.shared), value)
    }

    /// Appends a record when there is room for it, and returns its offset when it is durable:
    /// [`append_wait_durable`](Self::append_wait_durable) for async code. If the future is dropped, the record may or may not be appended.
    ///
    /// # Errors
    /// As [`append`](Self::append), and as [`wait_durable`](Self::wait_durable).
    pub fn append_durable<V: AsRef<[u8]>>(&self, value: V) -> AppendDurable<V> {
        AppendDurable::new(Arc::clone(&self.shared), value)
    }

    /// Appends a record, waits until it is durable, and returns its offset.
    ///
    /// # Errors
    /// As [`append`](Self::append), and as [`wait_durable`](Self::wait_durable).
    pub fn append_wait_durable(&self, value: &[u8]) -> Result<u64, Error> {
        let offset = self.append(value)?;
        self.shared.wait_durable(offset)?;
        Ok(offset)
    }

    /// The name of [`append_wait_durable`](Self::append_wait_durable) in earlier versions.
    ///
    /// # Errors
    /// As `append_wait_durable`.
    #[deprecated(note = "use `append_wait_durable`")]
    pub fn append_wait(&self, value: &[u8]) -> Result<u64, Error> {
        self.append_wait_durable(value)
    }

    /// Completes when an append that got [`Error::WouldBlock`] is worth another try, and it is this caller's turn. To be
    /// created before that append, and kept until one succeeds: it may be awaited again.
    pub fn room(&self) -> Room {
        Room::new(Arc::clone(&self.shared))
    }

    /// Waits until the record at `offset` is durable; if there is no room on the disk, until there is. The calling thread
    /// may do the write itself, for all records appended so far.
    ///
    /// # Errors
    /// [`Error::Failed`]: it is not known whether the record is durable; opening the log again will show it.
    /// [`Error::Closed`], [`Error::ReadOnly`] if it never will be. [`Error::NotAppended`], at once, if no append has been
    /// given that offset.
    pub fn wait_durable(&self, offset: u64) -> Result<(), Error> {
        self.shared.check_appended(offset)?;
        self.shared.wait_durable(offset)
    }

    /// [`wait_durable`](Self::wait_durable) for at most `timeout`; returns whether the record is durable. A flusher thread
    /// does the write, so that the time is kept also if the disk takes longer.
    ///
    /// # Errors
    /// As [`wait_durable`](Self::wait_durable).
    pub fn wait_durable_for(&self, offset: u64, timeout: Duration) -> Result<bool, Error> {
        self.shared.wait_durable_for(offset, timeout)
    }

    /// [`wait_durable`](Self::wait_durable) for async code: a flusher thread does the write. If no append has been given
    /// that offset yet, completes when one has, and its record is durable.
    pub fn durable(&self, offset: u64) -> Durable {
        Durable::new(Arc::clone(&self.shared), offset)
    }

    /// Makes the flusher commit what was appended without lingering for more; does not wait for it.
    pub fn commit_soon(&self) {
        self.shared.flush.kick();
    }

    /// Waits until all records up to `offset`, which an append has returned, are in memory: until other threads have
    /// finished the copies that they began earlier, which takes microseconds, and for a batch of many MiB milliseconds.
    pub fn wait_published(&self, offset: u64) {
        let backoff = Backoff::new();
        while !self.is_published(offset) {
            backoff.snooze();
        }
    }

    /// Whether all records up to `offset` are in memory: [`wait_published`](Self::wait_published) without waiting. Also
    /// true if no append has returned that offset.
    pub fn is_published(&self, offset: u64) -> bool {
        offset >= self.next_offset() || self.shared.publish_up_to(offset)
    }

    /// Waits until everything that was appended before this call is durable.
    ///
    /// # Errors
    /// As [`wait_durable`](Self::wait_durable).
    pub fn flush(&self) -> Result<(), Error> {
        match self.next_offset().checked_sub(1) {
            Some(last) => self.wait_durable(last),
            None => Ok(()),
        }
    }

    /// The record at `offset`; `None` if there is none yet that readers may see. A recent record is not copied: the
    /// returned value keeps its chunk in memory.
    ///
    /// # Errors
    /// [`Error::Trimmed`], [`Error::Damaged`], [`Error::Unreadable`], [`Error::Io`].
    pub fn read(&self, offset: u64) -> Result<Option<Record>, Error> {
        self.shared.read(offset)
    }

    /// The first offset from `offset` on whose record can be read, or is [marked as lost](Record::is_lost): where to
    /// continue after [`Error::Damaged`] or [`Error::Unreadable`]. The end of what readers see if there is none before
    /// that. If an index is damaged, this reads its segment.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be known now.
    pub fn next_readable(&self, offset: u64) -> Result<u64, Error> {
        self.shared.next_readable(offset)
    }

    /// Whether [`read`](Self::read) can answer for this offset without going to the disk.
    pub fn reads_without_disk(&self, offset: u64) -> bool {
        self.shared.reads_without_disk(offset)
    }

    /// A reader that starts at `offset`, for going through the log and for reading a lot: it keeps its current segment
    /// at hand. It can wait for records that do not exist yet.
    pub fn reader(&self, offset: u64) -> Reader {
        Reader::new(Arc::clone(&self.shared), offset)
    }

    /// The records from `offset` to the last one that is visible when this is called; from the last one backward with
    /// [`rev`](Iterator::rev).
    pub fn iter(&self, offset: u64) -> Iter {
        self.iter_range(offset..)
    }

    /// The records of a range of offsets, as far as they are visible when this is called. They can be read from both ends:
    /// backward, a stretch of a segment at a time, so that each record is read once.
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// log.append_batch(&[b"a", b"b", b"c"])?;
    /// log.flush()?;
    /// let last_two: Result<Vec<_>, _> = log.iter_range(1..).rev().collect();
    /// assert_eq!(last_two?.iter().map(|record| record.offset()).collect::<Vec<_>>(), [2, 1]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter_range(&self, range: impl RangeBounds<u64>) -> Iter {
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => self.first_offset(),
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        Iter::new(self.reader(from), end.min(self.visible_offset()))
    }

    /// The offset of the first record that has not been trimmed; the next offset if there is none.
    pub fn first_offset(&self) -> u64 {
        self.shared.first_offset()
    }

    /// The offset that the next record gets.
    pub fn next_offset(&self) -> u64 {
        self.shared.next_offset()
    }

    /// All records below this offset are on disk.
    pub fn durable_offset(&self) -> u64 {
        self.shared.durable.get()
    }

    /// Whether all records that are not on the disk survive the process; and how many segments began, since the log was
    /// opened, in memory that does not.
    #[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
    pub(crate) fn backed(&self) -> (bool, u64) {
        (self.shared.flush.is_backed(), self.shared.roll.fallbacks())
    }

    /// All records below this offset can be read. This is [`durable_offset`](Self::durable_offset), or, with
    /// [`Durability::Memory`], the end of the records that are in memory without a gap.
    pub fn visible_offset(&self) -> u64 {
        self.shared.visible().get()
    }

    /// Completes when the record at `offset` can be read, or never will be.
    pub fn visible(&self, offset: u64) -> Visible {
        Visible::new(Arc::clone(&self.shared), offset)
    }

    /// Completes when nothing more can be appended to the log, with the error that says why: at once if it is read-only.
    #[cfg(feature = "server")]
    pub(crate) fn ended(&self) -> Visible {
        self.visible(futures::LAST_OFFSET)
    }

    /// The durability that the log was opened with.
    pub fn durability(&self) -> Durability {
        self.shared.options.durability
    }

    /// The damage found when the log was opened; if there is any, the log is read-only.
    pub fn damage(&self) -> &[Damage] {
        &self.shared.damage
    }

    /// Whether the log can be written to; the error says why not.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Failed`], [`Error::Closed`].
    pub fn writable(&self) -> Result<(), Error> {
        self.shared.writable()
    }
}

/// How often callers that have other logs to serve check one log before they go on. Counted, not timed, so that the
/// simulation can be replayed: there, each check runs the background work.
#[cfg(feature = "store")]
const CHECKS: u32 = 10;
/// How long they pause between two checks.
const CHECK_PAUSE: Duration = Duration::from_millis(10);

/// How long a record may be only in memory while nobody waits for it.
const LINGER: Duration = Duration::from_millis(1);

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, shuttle))]
mod races;
