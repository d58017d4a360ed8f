//! Producers that may repeat themselves: an append that says which producer it comes from, and which of the producer's
//! batches it is, is stored once however often it is sent. As in Kafka, a producer has an epoch, so that an old
//! incarnation is fenced off, and numbers its batches from 0 in each epoch.
//!
//! A producer that starts gets its next epoch from [`Log::open_producer`], and so fences off what is left of its earlier
//! incarnations. With each batch it may send a *mark*, some text of its own that is stored with the batch and returned
//! when it opens again: where it is in what it reads, for example.
//!
//! The state is in the log: the first frame of such a batch has an extension block with the producer, its epoch, the
//! sequence and the mark. So the state and the records cannot disagree. A table of the producers is kept in memory. It is
//! built when the first producer appends: from the file `producers.json`, which describes the log up to some offset, and
//! from the frames after that. The file is written only once everything that it describes is durable, and before
//! anything that it does not describe is trimmed. If the file does not exist, no producer has ever used the log: so logs
//! without producers pay nothing.
//!
//! An epoch that begins without a batch is only in the file: so it is in force, and answered, once the file is written.
//! Callers that wait for epochs meanwhile get them by one write.

mod block;
mod epochs;
#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod table;

use super::{
    Error, Log, Payload, append,
    append::{Extended, MayBlock},
    recovery::PRODUCERS as PRODUCERS_FILE,
};
use crate::{
    chunk::AppendValues,
    disk::{salvage, tree},
    frame::HEADER,
};
use block::{block, parse_block, set_count};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};
use table::{Content, KnownProducer, StoredBatch, Table, Unread};

/// The longest id, in bytes.
pub const PRODUCER_ID_BYTES: usize = 64;
/// The longest mark, in bytes.
pub const PRODUCER_MARK_BYTES: usize = 128;
/// The highest epoch that a batch may begin by itself. Those above are only for [`Log::open_producer`], so that no batch
/// takes the last one: whatever epoch a client names, 2,147,483,648 are left. By the clock, which gives the first epoch of
/// a producer, it is reached in 2088.
pub const PRODUCER_EPOCH_MAX: u32 = u32::MAX >> 1;
/// How long a producer that sends nothing is remembered.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many bytes of the file are written per second on average, if nothing but time asks for it.
const SAVED_PER_SECOND: u64 = 256 << 10;
/// The file is written sooner than that if so many bytes of records were committed since: they are read again when the
/// log is opened and a producer comes.
const SAVED_AFTER: u64 = 64 << 20;

/// Which producer sends a batch, and which of its batches it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerBatch<'a> {
    /// The producer's id: 1 to 64 characters of printable ASCII, without a space at either end.
    pub id: &'a str,
    /// Grows with each incarnation of the producer; batches of an older one are refused. One above
    /// [`PRODUCER_EPOCH_MAX`] is begun by [`Log::open_producer`] only.
    pub epoch: u32,
    /// The batch's number: 0 for the first of an epoch, then one more for each.
    pub sequence: u64,
    /// Text of the producer's own that replaces the one before it: up to 128 bytes; none leaves that in place.
    pub mark: Option<&'a str>,
}

impl<'a> ProducerBatch<'a> {
    /// Names a batch without a mark.
    pub fn new(id: &'a str, epoch: u32, sequence: u64) -> Self {
        Self { id, epoch, sequence, mark: None }
    }

    /// Gives the batch a mark.
    #[must_use]
    pub fn with_mark(mut self, mark: &'a str) -> Self {
        self.mark = Some(mark);
        self
    }
}

/// A producer at the beginning of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenedProducer {
    /// The epoch that has begun.
    pub epoch: u32,
    /// The newest mark, of whichever epoch.
    pub mark: Option<String>,
    /// The last epoch that has batches, and the last 5 of these, oldest first: what became of a batch that was sent and
    /// not answered. If there never were any, the first epoch that the log knows, with none; `None` if it did not know
    /// the producer.
    pub earlier: Option<(u32, Vec<EarlierBatch>)>,
}

/// A batch that a producer has stored in an earlier epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EarlierBatch {
    /// Its number in its epoch.
    pub sequence: u64,
    /// The offset of its first record.
    pub first_offset: u64,
    /// The number of its records.
    pub count: u64,
}

/// What a log knows about a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerState {
    /// Its newest epoch.
    pub epoch: u32,
    /// The sequence of the newest batch of that epoch; `None` if there is none.
    pub last_sequence: Option<u64>,
    /// The offset of that batch's last record.
    pub last_offset: Option<u64>,
    /// The newest mark, of whichever epoch.
    pub mark: Option<String>,
}

/// Where a producer's batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// The offset of its first record.
    pub first_offset: u64,
    /// The number of its records.
    pub count: u64,
    /// Whether it had been stored before.
    pub repeated: bool,
}

/// The content of `producers.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Snapshot {
    /// All batches below this offset are covered.
    up_to: u64,
    producers: BTreeMap<String, KnownProducer>,
    /// What identifies the record before that offset, as in [`Standing`]: a log that has lost its end and has grown
    /// again has another record there. Not written by the first versions, nor if that record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u32>,
    /// CRC-32C of the fields above as JSON.
    #[serde(default)]
    crc: u32,
}

/// What precedes some offset.
enum Standing {
    /// A record, identified among all that could be there by the CRC-32C of its time and of everything that was
    /// appended.
    Record(u32),
    /// A record that readers do not see yet, or none.
    NotDurable,
    /// The record is lost, trimmed, or cannot be read.
    Unknown,
}

/// A log's producers.
#[derive(Default)]
pub(super) struct Producers {
    /// Locked only for moments, also by threads that have other callers to serve: never while the disk is read or
    /// written. Locked after `file`, if both are.
    table: Mutex<Option<Table>>,
    /// Locked by the thread that reads or writes the file, from before it copies the table until the copy is durable:
    /// so an older state never replaces a newer one.
    file: Mutex<Saved>,
    /// The epochs that are to begin. Locked only for moments, and alone or after `file`.
    asked: Mutex<epochs::Asked>,
}

/// What the file covers, as far as this process knows.
#[derive(Default)]
struct Saved {
    /// All batches below this offset.
    up_to: u64,
    /// How many times the table had been changed.
    changes: u64,
    /// Writing it has failed, so it may have what the table does not have, such as an epoch that has not begun.
    uncertain: bool,
    /// That was said.
    told: bool,
    /// Its size in bytes.
    bytes: u64,
    /// When it was read or last written, successfully or not.
    tried: Duration,
    /// The bytes of records that had been committed then by this process, and those that were read behind what it
    /// covers.
    committed: u64,
    read: u64,
}

impl Saved {
    /// Whether it is time to write it: `now`, after so many bytes were committed.
    fn is_due(&self, now: Duration, committed: u64) -> bool {
        let pause = Duration::from_millis(self.bytes.saturating_mul(1000) / SAVED_PER_SECOND);
        now.saturating_sub(self.tried) >= pause || self.is_far_behind(committed)
    }

    fn is_far_behind(&self, committed: u64) -> bool {
        committed.saturating_sub(self.committed).saturating_add(self.read) >= SAVED_AFTER
    }
}

/// The rule for ids, wherever one comes from: what a header and a path can carry.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let fits = (1..=PRODUCER_ID_BYTES).contains(&id.len())
        && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && id.trim_ascii().len() == id.len();
    if fits { Ok(()) } else { Err(Error::BadProducer) }
}

fn checksum(up_to: u64, producers: &BTreeMap<String, KnownProducer>, before: Option<u32>) -> u32 {
    let json = match before {
        Some(before) => serde_json::to_vec(&(up_to, producers, before)),
        None => serde_json::to_vec(&(up_to, producers)),
    };
    crc32c::crc32c(&json.unwrap_or_default()) // plain data: cannot fail
}

/// Whether an error says that the disk cannot read a record. Other errors say nothing about the record, so they are no
/// reason to continue without its information.
fn cannot_be_read(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if salvage::is_unreadable(source))
}

impl Log {
    /// Like [`try_append_payloads`](Self::try_append_payloads), but stores each of a producer's batches only once: a
    /// repeat of one of its last 5 batches appends nothing, and returns where the batch is. A batch becomes durable
    /// like any other append; wait for it.
    ///
    /// # Errors
    /// As [`try_append_payloads`](Self::try_append_payloads); [`Error::BadProducer`];
    /// [`Error::ProducerOutOfOrder`], which says what was expected; [`Error::NotARepeat`] if a batch of that number is
    /// stored that has other records; and [`Error::EpochTooHigh`] if it would begin an epoch above
    /// [`PRODUCER_EPOCH_MAX`].
    pub fn try_append_once(
        &self,
        batch: &ProducerBatch<'_>,
        payloads: &[Payload<'_>],
        expected_next: Option<u64>,
    ) -> Result<Produced, Error> {
        self.try_append_values_once(batch, payloads, expected_next, MayBlock::ForCopies)
    }

    /// The same, with values that need not be in one list, and a caller that decides what to wait for.
    pub(crate) fn try_append_values_once<S: AppendValues + ?Sized>(
        &self,
        batch: &ProducerBatch<'_>,
        values: &S,
        expected_next: Option<u64>,
        may_block: MayBlock,
    ) -> Result<Produced, Error> {
        check_id(batch.id)?;
        if batch.mark.is_some_and(|mark| mark.len() > PRODUCER_MARK_BYTES) {
            return Err(Error::BadProducer);
        }
        let (mut extended, mut count, mut content) = (block(batch), 0, Content::default());
        values.each(|bytes, _| {
            if count == 0 {
                extended.extend_from_slice(bytes);
            }
            count += 1;
            content.add(bytes);
        });
        set_count(&mut extended, count);
        if count == 0 {
            return Err(Error::EmptyBatch);
        }
        self.writable()?;
        if !self.knows_producers() {
            self.learn_producers()?;
        }
        let mut table = self.shared.producers.table();
        let Some(table) = table.as_mut() else { return Err(Error::Closed) }; // once built, it stays
        if let Some(StoredBatch { first_offset, count, .. }) = table.find(batch, count, content.0)? {
            return Ok(Produced { first_offset, count, repeated: true });
        }
        let all = Extended { first: &extended, values };
        let first_offset = append::append(&self.shared, &all, expected_next, may_block)?;
        let stored = StoredBatch { sequence: batch.sequence, first_offset, count, content: Some(content.0) };
        table.note(batch, stored, self.shared.env.machine.now());
        Ok(Produced { first_offset, count, repeated: false })
    }

    /// Begins the next epoch of a producer: batches of older ones are refused from now on. The epoch, and all batches
    /// that were stored before, are durable on return. Reads from and writes to the disk; callers that do this at once
    /// share a write.
    ///
    /// # Errors
    /// [`Error::BadProducer`], [`Error::EpochsUsedUp`], [`Error::Io`], [`Error::Full`], [`Error::Failed`],
    /// [`Error::ReadOnly`], [`Error::Closed`]. The epoch has not begun then, and what was sent in the one before goes on:
    /// unless the process is killed, or the log fails or is closed, before it could take back what it had written; or a
    /// batch that came at the last moment could not become durable.
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// use millstream::{Payload, ProducerBatch};
    /// let opened = log.open_producer("importer-1")?;
    /// let batch = ProducerBatch::new("importer-1", opened.epoch, 0).with_mark("line 2");
    /// let lines = [Payload { bytes: b"one", json: false }, Payload { bytes: b"two", json: false }];
    /// log.try_append_once(&batch, &lines, None)?;
    /// // After a restart it continues where it was.
    /// assert_eq!(log.open_producer("importer-1")?.mark.as_deref(), Some("line 2"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_producer(&self, id: &str) -> Result<OpenedProducer, Error> {
        self.begin_epoch(&self.ask_for_epoch(id)?)
    }

    /// What the log knows about a producer, including what is not durable yet; `None` if it does not know it. Reads
    /// from the disk if no producer was used since the log was opened. Takes any id: one that an early version has
    /// accepted may be known, though it cannot be used any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn producer(&self, id: &str) -> Result<Option<ProducerState>, Error> {
        if !self.knows_producers() {
            self.learn_producers()?;
        }
        let table = self.shared.producers.table();
        Ok(table.as_ref().and_then(|table| table.producers.get(id)).map(KnownProducer::state))
    }

    /// Loads what [`try_append_once`](Self::try_append_once) needs into memory, which reads from the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn learn_producers(&self) -> Result<(), Error> {
        self.learn(&mut self.shared.producers.file())
    }

    /// Whether a producer's batch is being appended at this moment: others wait until it is copied.
    #[cfg(feature = "server")]
    pub(crate) fn producers_are_busy(&self) -> bool {
        matches!(self.shared.producers.table.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Whether [`try_append_once`](Self::try_append_once) has what it needs in memory; otherwise it reads the part of
    /// the log that its file does not cover. Never waits for a disk.
    pub fn knows_producers(&self) -> bool {
        self.shared.producers.table().is_some()
    }

    /// Builds the table, if there is none yet. Until it exists, no batch of a producer is appended, so nothing is
    /// missed that comes while this reads.
    fn learn(&self, file: &mut Saved) -> Result<(), Error> {
        if !self.knows_producers() {
            let table = self.load_producers(file)?;
            *self.shared.producers.table() = Some(table);
        }
        Ok(())
    }

    fn load_producers(&self, file: &mut Saved) -> Result<Table, Error> {
        let path = self.shared.dir.join(PRODUCERS_FILE);
        let read = || tree::read(&*self.shared.env.disk, &path);
        let text =
            match read().or_else(|error| if salvage::is_unreadable(&error) { read() } else { Err(error) }) {
                // Not even on the second attempt: treat it like one that does not verify, which is rewritten as well.
                Err(error) if salvage::is_unreadable(&error) => Some(Vec::new()),
                read => read.map_err(Error::io("read", &path))?,
            };
        let Some(text) = text else {
            // The first producer ever: from now on the file exists, and with it a reason to read the log. Where nothing
            // can be written, none will come.
            if self.writable().is_ok() {
                self.save_producers(file, self.durable_offset(), BTreeMap::new(), MayBlock::Yes)?;
            }
            return Ok(Table::default());
        };
        let snapshot = serde_json::from_slice(&text)
            .ok()
            .filter(|found: &Snapshot| found.crc == checksum(found.up_to, &found.producers, found.before));
        if snapshot.is_none() {
            tracing::warn!(path = %path.display(), "damaged: producers are read from what is left of the log");
        }
        let first = self.first_offset();
        let Snapshot { mut up_to, mut producers, before, .. } = snapshot.unwrap_or_default();
        if up_to > self.next_offset() || !self.has_before(up_to, before)? {
            // The log has lost its end to damage and `repair`, or is older than the file; or a program wrote the file
            // without waiting until its records were durable. The file does not cover what was appended in their place,
            // so the log itself is read, as far as it goes.
            tracing::warn!(path = %path.display(), up_to, next = self.next_offset(), "the file of producers describes records that the log does not have");
            for producer in producers.values_mut() {
                producer.batches.retain(|batch| batch.first_offset.saturating_add(batch.count) <= first);
                producer.mark = producer.mark.take().filter(|mark| mark.next_offset <= first);
            }
            up_to = first;
            if self.writable().is_ok() {
                // At once: when the log is longer, the file would be believed, and batches that come now not be read
                // again.
                self.save_producers(file, up_to, producers.clone(), MayBlock::Yes)?;
            }
        }
        (file.up_to, file.bytes, file.read) = (up_to, text.len() as u64, 0);
        (file.tried, file.committed) = (self.shared.env.machine.elapsed(), self.shared.flush.committed());
        let mut table = Table { producers, changes: file.changes };
        let mut reader = self.reader(up_to.max(first));
        let mut unread: Option<Unread> = None;
        loop {
            let at = reader.offset();
            match reader.read_next() {
                Ok(Some(record)) => {
                    file.read += (HEADER + record.extension.len() + record.value.len()) as u64;
                    if let Some((batch, count)) = parse_block(record.extension) {
                        let (sequence, first_offset) = (batch.sequence, record.offset);
                        let stored = StoredBatch { sequence, first_offset, count, content: None };
                        table.note(&batch, stored, record.time);
                        let (id, content) = (batch.id.to_owned(), Content::default());
                        unread = Some(Unread { id, sequence, next: first_offset, left: count, content });
                    }
                    if unread
                        .as_mut()
                        .is_some_and(|batch| !batch.add(record.offset, record.value, &mut table))
                    {
                        unread = None;
                    }
                }
                Ok(None) => break,
                Err(Error::Damaged { .. }) => {}
                // What it says about its producer is unknown, as with a damaged record; that is no reason to refuse all
                // others.
                Err(error) if cannot_be_read(&error) => reader.seek(at + 1),
                Err(Error::Trimmed { first, .. }) => reader.seek(first),
                Err(error) => return Err(error),
            }
        }
        Ok(table)
    }

    /// What precedes an offset.
    fn before(&self, offset: u64) -> Result<Standing, Error> {
        let Some(last) = offset.checked_sub(1) else { return Ok(Standing::Unknown) };
        match self.reader(last).read(last) {
            Ok(Some(record)) => {
                let crc = crc32c::crc32c(&record.time.to_le_bytes());
                let crc = crc32c::crc32c_append(crc, record.extension);
                Ok(Standing::Record(crc32c::crc32c_append(crc, record.value)))
            }
            Ok(None) => Ok(Standing::NotDurable),
            Err(Error::Damaged { .. } | Error::Trimmed { .. }) => Ok(Standing::Unknown),
            Err(error) if cannot_be_read(&error) => Ok(Standing::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Whether the log has this record before an offset, as far as that can be known.
    fn has_before(&self, offset: u64, noted: Option<u32>) -> Result<bool, Error> {
        let Some(noted) = noted else { return Ok(true) };
        Ok(match self.before(offset)? {
            Standing::Record(crc) => crc == noted,
            // What was saved had been durable.
            Standing::NotDurable => false,
            Standing::Unknown => true,
        })
    }

    /// Writes the file, once everything that it covers is durable: otherwise a repeat of a batch that a crash undoes
    /// would be answered as stored, and what is appended in its place would not be read again.
    fn save_producers(
        &self,
        file: &mut Saved,
        up_to: u64,
        producers: BTreeMap<String, KnownProducer>,
        may_block: MayBlock,
    ) -> Result<(), Error> {
        let committed = self.shared.flush.committed(); // or more by the time that all below `up_to` is durable
        if let Some(last) = up_to.checked_sub(1) {
            match may_block {
                // A trim must not wait for the room that it is to make.
                MayBlock::Yes => self.shared.wait_durable_unless_full(last)?,
                MayBlock::ForCopies | MayBlock::No if self.shared.durable_soon(last) => {}
                MayBlock::ForCopies | MayBlock::No => return Err(Error::WouldBlock),
            }
        }
        self.writable()?; // if the log was deleted, another one may be at its path
        let before = match self.before(up_to)? {
            Standing::Record(crc) => Some(crc),
            _ => None,
        };
        let crc = checksum(up_to, &producers, before);
        let snapshot = Snapshot { up_to, producers, before, crc };
        let text = serde_json::to_vec(&snapshot).unwrap_or_default(); // plain data
        let path = self.shared.dir.join(PRODUCERS_FILE);
        (file.tried, file.committed, file.read) = (self.shared.env.machine.elapsed(), committed, 0);
        file.uncertain = true;
        tree::replace(&*self.shared.env.disk, &path, &text).map_err(Error::io("write", &path))?;
        (file.up_to, file.bytes) = (up_to, text.len() as u64);
        (file.uncertain, file.told) = (false, false);
        Ok(())
    }

    /// Saves what is known about producers, if anything has changed, and forgets those that are too old.
    pub(crate) fn keep_producers(&self) -> Result<(), Error> {
        let mut file = self.shared.producers.file();
        if self.has_changed(&file) { self.keep(&mut file, MayBlock::Yes) } else { Ok(()) }
    }

    /// The same if it is time for that, for callers that have other logs to serve: not while another thread does this, or
    /// while the disk makes no progress. The larger the file, the longer the time; the more was appended, the shorter.
    pub(crate) fn keep_producers_soon(&self) {
        let Ok(mut file) = self.shared.producers.file_for(MayBlock::No) else { return };
        if self.are_due(&file) {
            match self.keep(&mut file, MayBlock::No) {
                Ok(()) | Err(Error::WouldBlock) => {}
                Err(error) => self.tell(&mut file, &error, "producers could not be saved"),
            }
        }
    }

    /// Says that the file could not be written: once, until it can.
    fn tell(&self, file: &mut Saved, error: &Error, what: &str) {
        if !std::mem::replace(&mut file.told, true) {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "{what}");
        }
    }

    /// Whether [`keep_producers_soon`](Self::keep_producers_soon) would write. Does not touch the disk.
    pub(crate) fn producers_are_due(&self) -> bool {
        self.shared.producers.file_for(MayBlock::No).is_ok_and(|file| self.are_due(&file))
    }

    fn are_due(&self, file: &Saved) -> bool {
        let committed = self.shared.flush.committed();
        file.is_due(self.shared.env.machine.elapsed(), committed)
            && (self.has_changed(file) || file.is_far_behind(committed))
    }

    /// Whether the file may have something else than the table.
    fn has_changed(&self, file: &Saved) -> bool {
        let table = self.shared.producers.table();
        table.as_ref().is_some_and(|table| file.uncertain || table.changes != file.changes)
    }

    fn keep(&self, file: &mut Saved, may_block: MayBlock) -> Result<(), Error> {
        let Some((up_to, Table { producers, changes })) = self.copy_of_table() else { return Ok(()) };
        self.save_producers(file, up_to, producers, may_block)?;
        file.changes = changes;
        Ok(())
    }

    /// A copy of the table without those that are too old, and the offset up to which it has all batches.
    fn copy_of_table(&self) -> Option<(u64, Table)> {
        let mut table = self.shared.producers.table();
        let table = table.as_mut()?;
        if let Some(oldest) = self.shared.oldest(self.shared.believed_now(), AGE) {
            table.producers.retain(|_, producer| producer.used >= oldest);
        }
        // Appending as a producer locks the table: so all of their batches below this offset are in it.
        Some((self.next_offset(), table.clone()))
    }

    /// Must be called before anything below `before` is trimmed: saves what is known only from there. Returns the
    /// offset up to which that was done.
    pub(super) fn keep_producers_before(&self, before: u64, may_block: MayBlock) -> Result<u64, Error> {
        let before = before.min(self.next_offset()); // the first producer's batches come after this
        let mut file = self.shared.producers.file_for(may_block)?;
        let path = self.shared.dir.join(PRODUCERS_FILE);
        if !tree::is_there(&*self.shared.env.disk, &path).map_err(Error::io("open", &path))? {
            return Ok(before);
        }
        self.learn(&mut file)?;
        if file.up_to < before {
            match self.keep(&mut file, may_block) {
                Err(Error::WouldBlock) => {}
                // So that trimming can make room where there is none: trim only as far as the file covers already.
                Err(error) if error.is_full() || error.is_transient() => {
                    self.tell(&mut file, &error, "trimming less: the producers could not be saved");
                }
                kept => kept?,
            }
        }
        Ok(before.min(file.up_to))
    }
}

impl Producers {
    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, epochs::Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, Saved> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`file`](Self::file); where it may not block, [`Error::WouldBlock`] if it is locked.
    fn file_for(&self, may_block: MayBlock) -> Result<MutexGuard<'_, Saved>, Error> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) if may_block != MayBlock::Yes => Err(Error::WouldBlock),
            Err(TryLockError::Poisoned(held)) => Ok(held.into_inner()),
            Err(TryLockError::WouldBlock) => Ok(self.file()),
            Ok(held) => Ok(held),
        }
    }

    /// Waits until the file is not being written. Must be called when the log is no longer writable, so that it is not
    /// written again.
    pub(super) fn settle(&self) {
        drop(self.file());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
