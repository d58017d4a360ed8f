//! Producers that may repeat themselves: an append that says which producer it comes from, and which of the producer's
//! batches it is, is stored once however often it is sent. As in Kafka, a producer has an epoch, so that an old
//! incarnation is fenced off, and numbers its batches from 0 in each epoch.
//!
//! A producer that starts gets its next epoch from [`Log::begin_epoch`], and so fences off what is left of its earlier
//! incarnations. With each batch it may send a *mark*, some text of its own that is stored with the batch and returned
//! when it begins its next epoch: where it is in what it reads, for example.
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
mod file;
#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod table;

use super::{
    Error, Log, Payload, append,
    append::Extended,
    limits::{MAX_PRODUCER_ID_BYTES, MAX_PRODUCER_MARK_BYTES},
    room::WaitFor,
};
use crate::{
    chunk::AppendValues,
    frame::JSON,
    sync::{Arc, Mutex, MutexGuard, lock, try_lock},
};
use block::{block, set_count};
use file::Saved;
use serde::{Deserialize, Serialize};
pub(crate) use table::Content;
#[cfg(feature = "server")]
use table::MAX_REMEMBERED;
use table::{KnownProducer, Table};

/// The error with which a log that has no records yet refuses an append of this producer, or with this condition, if it
/// does.
#[cfg(feature = "server")]
pub(crate) fn check_first(
    batch: Option<&ProducerBatch<'_>>,
    expected_next: Option<u64>,
) -> Result<(), Error> {
    batch.map_or(Ok(()), table::check_begins)?;
    match expected_next {
        Some(expected @ 1..) => Err(Error::Unexpected { expected, next: 0 }),
        _ => Ok(()),
    }
}

/// Which producer sends a batch, and which of its batches it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerBatch<'a> {
    /// The producer's id: 1 to 64 characters of printable ASCII, without a space at either end.
    pub id: &'a str,
    /// Grows with each incarnation of the producer; batches of an older one are refused. One above
    /// [`MAX_PRODUCER_EPOCH`](crate::MAX_PRODUCER_EPOCH) is begun by [`Log::begin_epoch`] only.
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
pub struct BegunEpoch {
    /// The epoch that has begun.
    pub epoch: u32,
    /// The newest mark, of whichever epoch.
    pub mark: Option<String>,
    /// The offset after the batch that it came with.
    pub(crate) mark_end: Option<u64>,
    /// The last epoch that has batches, and its last 5 batches, oldest first: they show what became of a batch that was
    /// sent and not answered. If there never were any batches, the first epoch that the log knows, and an empty list.
    /// `None` if the log did not know the producer.
    pub earlier: Option<(u32, Vec<StoredBatch>)>,
}

/// A batch that a producer has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoredBatch {
    /// Its number in its epoch.
    pub sequence: u64,
    /// The offset of its first record.
    pub first_offset: u64,
    /// The number of its records.
    pub count: u64,
    /// [`Content::values`]; `None` if the batch was stored by an early version, or a record of it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<u32>,
    /// [`Content::kinds`]; `None` also if the batch was stored by a version that noted the values only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kinds: Option<u32>,
}

impl StoredBatch {
    /// A batch of unknown content.
    fn new(sequence: u64, first_offset: u64, count: u64) -> Self {
        Self { sequence, first_offset, count, content: None, kinds: None }
    }

    fn with(self, content: Content) -> Self {
        Self { content: Some(content.values), kinds: Some(content.kinds), ..self }
    }
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

/// A log's producers.
#[derive(Default)]
pub(super) struct Producers {
    /// Locked only for moments, also by threads that have other callers to serve: never while the disk is read or
    /// written. Locked after `file`, if both are.
    table: Mutex<Option<Table>>,
    /// Locked by the thread that reads or writes the file, from before it copies the table until the copy is durable:
    /// so an older state never replaces a newer one.
    file: Mutex<Saved>,
    /// The epochs that are to begin.
    asked: Arc<epochs::Asked>,
}

/// Whether this may be the id of a producer, which a header and a path have to carry: 1 to [`MAX_PRODUCER_ID_BYTES`] printable
/// characters of ASCII, with no space at either end.
pub fn is_producer_id(id: &str) -> bool {
    (1..=MAX_PRODUCER_ID_BYTES).contains(&id.len())
        && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && id.trim_ascii().len() == id.len()
}

pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    if is_producer_id(id) { Ok(()) } else { Err(Error::BadProducer) }
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
    /// [`MAX_PRODUCER_EPOCH`](crate::MAX_PRODUCER_EPOCH).
    pub fn try_append_once(
        &self,
        batch: &ProducerBatch<'_>,
        payloads: &[Payload<'_>],
        expected_next: Option<u64>,
    ) -> Result<Produced, Error> {
        self.try_append_values_once(batch, payloads, expected_next, WaitFor::Copies)
    }

    /// Like [`try_append_once`](Self::try_append_once), with values that need not be in one list, and a caller that decides
    /// what to wait for.
    pub(crate) fn try_append_values_once<S: AppendValues + ?Sized>(
        &self,
        batch: &ProducerBatch<'_>,
        values: &S,
        expected_next: Option<u64>,
        wait_for: WaitFor,
    ) -> Result<Produced, Error> {
        check_id(batch.id)?;
        if batch.mark.is_some_and(|mark| mark.len() > MAX_PRODUCER_MARK_BYTES) {
            return Err(Error::BadProducer);
        }
        let mut extended = block(batch);
        let mut count = 0;
        let mut content = Content::default();
        values.each(|bytes, flags| {
            if count == 0 {
                extended.extend_from_slice(bytes);
            }
            count += 1;
            content.add(bytes, flags & JSON != 0);
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
        if let Some(StoredBatch { first_offset, count, .. }) = table.find(batch, count, content)? {
            return Ok(Produced { first_offset, count, repeated: true });
        }
        let all = Extended { first: &extended, values };
        let first_offset = append::append(&self.shared, &all, expected_next, wait_for)?;
        let stored = StoredBatch::new(batch.sequence, first_offset, count).with(content);
        table.note(batch, stored, self.shared.env.machine.now());
        Ok(Produced { first_offset, count, repeated: false })
    }

    /// Begins the next epoch of a producer: batches of older ones are refused from now on. The epoch, and all batches
    /// that were stored before, are durable on return. Reads from and writes to the disk; callers that do this at once
    /// share a write.
    ///
    /// # Errors
    /// [`Error::BadProducer`], [`Error::EpochsUsedUp`], [`Error::Io`], [`Error::Full`], [`Error::Failed`],
    /// [`Error::ReadOnly`], [`Error::Closed`]. As a rule the epoch has not begun then, and batches of the one before are still
    /// accepted. In two cases it may have begun all the same: if the process is killed, or the log fails or is closed,
    /// after the epoch was written and before that could be undone; and if a batch of the epoch before came at the last
    /// moment, and could not be made durable.
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// use millstream::{Payload, ProducerBatch};
    /// let begun = log.begin_epoch("importer-1")?;
    /// let batch = ProducerBatch::new("importer-1", begun.epoch, 0).with_mark("line 2");
    /// let lines = [Payload { bytes: b"one", json: false }, Payload { bytes: b"two", json: false }];
    /// log.try_append_once(&batch, &lines, None)?;
    /// // After a restart it continues where it was.
    /// assert_eq!(log.begin_epoch("importer-1")?.mark.as_deref(), Some("line 2"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_epoch(&self, id: &str) -> Result<BegunEpoch, Error> {
        self.begin_asked_epoch(&self.ask_for_epoch(id, None)?)
    }

    /// Like [`begin_epoch`](Self::begin_epoch), but only if the producer has not begun a later epoch than `epoch`: so one
    /// that was fenced off meanwhile does not take its id back. A log that does not know the producer begins one.
    ///
    /// # Errors
    /// As [`begin_epoch`](Self::begin_epoch), and [`Error::ProducerOutOfOrder`] with the later epoch.
    pub fn begin_epoch_after(&self, id: &str, epoch: u32) -> Result<BegunEpoch, Error> {
        self.begin_asked_epoch(&self.ask_for_epoch(id, Some(epoch))?)
    }

    /// The name of [`begin_epoch`](Self::begin_epoch) in earlier versions.
    ///
    /// # Errors
    /// As [`begin_epoch`](Self::begin_epoch).
    #[deprecated(note = "is called begin_epoch")]
    pub fn open_producer(&self, id: &str) -> Result<BegunEpoch, Error> {
        self.begin_epoch(id)
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
        try_lock(&self.shared.producers.table).is_none()
    }

    /// Whether a batch comes before others of its epoch: not so many that some of them would be forgotten once they are
    /// stored.
    #[cfg(feature = "server")]
    pub(crate) fn is_early(&self, batch: &ProducerBatch<'_>) -> bool {
        // Of one that is being appended at this moment, it is not known yet.
        let Some(table) = try_lock(&self.shared.producers.table) else { return true };
        let known = table.as_ref().and_then(|table| table.producers.get(batch.id));
        let known = known.filter(|known| known.epoch == batch.epoch);
        let before = known.and_then(|known| batch.sequence.checked_sub(known.next_sequence()));
        before.is_some_and(|before| (1..MAX_REMEMBERED as u64).contains(&before))
    }

    /// Whether [`try_append_once`](Self::try_append_once) has what it needs in memory; otherwise it reads the part of
    /// the log that its file does not cover. Never waits for a disk.
    pub fn knows_producers(&self) -> bool {
        self.shared.producers.table().is_some()
    }
}

impl Producers {
    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        lock(&self.table)
    }

    fn file(&self) -> MutexGuard<'_, Saved> {
        lock(&self.file)
    }

    /// [`file`](Self::file); where it may not block, [`Error::WouldBlock`] if it is locked.
    fn file_for(&self, wait_for: WaitFor) -> Result<MutexGuard<'_, Saved>, Error> {
        match try_lock(&self.file) {
            Some(held) => Ok(held),
            None if wait_for.waits_for_disk() => Ok(self.file()),
            None => Err(Error::WouldBlock),
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
