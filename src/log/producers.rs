//! Producers that may repeat themselves: an append that says which producer it comes from, and which of the producer's
//! batches it is, is stored once however often it is sent. As in Kafka, a producer has an epoch, so that an old
//! incarnation is fenced off, and numbers its batches from 0 in each epoch.
//!
//! The state is in the log: the first frame of such a batch has an extension block with the producer, its epoch and the
//! sequence. So the state and the records cannot disagree. A table of the producers is kept in memory. It is built when
//! the first producer appends: from the file `producers.json`, which describes the log up to some offset, and from the
//! frames after that. The file is written only once everything that it describes is durable, and before anything that
//! it does not describe is trimmed. If the file does not exist, no producer has ever used the log: so logs without
//! producers pay nothing.

#[cfg(fuzzing)]
pub(super) mod fuzzing;

use super::{
    Error, Log, NOTES, Payload, append,
    append::{Extended, MayBlock},
};
use crate::{
    chunk::AppendValues,
    disk::{salvage, tree},
    frame::EXTENSION_LENGTH,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

/// The longest id, in bytes.
pub const PRODUCER_ID_BYTES: usize = 64;
/// How many batches of one producer are remembered to recognise repeats.
const REMEMBERED: usize = 5;
/// The file with what is known about producers up to some offset.
const PRODUCERS_FILE: &str = NOTES[0];
/// How many producers of one log are remembered; beyond that, the least recently used one is forgotten.
const PRODUCERS: usize = 10_000;
/// How long a producer that sends nothing is remembered.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which producer sends a batch, and which of its batches it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerBatch<'a> {
    /// The producer's id: 1 to 64 bytes.
    pub id: &'a str,
    /// Grows with each incarnation of the producer; batches of an older one are refused.
    pub epoch: u32,
    /// The batch's number: 0 for the first of an epoch, then one more for each.
    pub sequence: u64,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct StoredBatch {
    sequence: u64,
    first_offset: u64,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ProducerState {
    epoch: u32,
    /// The last batches, newest last; never empty.
    batches: VecDeque<StoredBatch>,
    /// When the newest batch came, in milliseconds since 1970.
    used: u64,
}

/// The content of `producers.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Snapshot {
    /// All batches below this offset are covered.
    up_to: u64,
    producers: BTreeMap<String, ProducerState>,
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
}

#[derive(Default)]
struct Table {
    producers: BTreeMap<String, ProducerState>,
    /// How many times it was changed.
    changes: u64,
}

/// What the file covers, as far as this process knows.
#[derive(Default)]
struct Saved {
    /// All batches below this offset.
    up_to: u64,
    /// How many times the table had been changed.
    changes: u64,
}

impl Table {
    /// Where the batch is stored, if it is a repeat; an error if it cannot be the next one.
    fn find(&self, batch: &ProducerBatch<'_>) -> Result<Option<StoredBatch>, Error> {
        let refuse = |epoch, sequence| {
            Err(Error::ProducerOutOfOrder { expected_epoch: epoch, expected_sequence: sequence })
        };
        let Some(known) = self.producers.get(batch.id) else {
            return if batch.sequence == 0 { Ok(None) } else { refuse(batch.epoch, 0) };
        };
        let next = known.batches.back().map_or(0, |last| last.sequence + 1);
        if batch.epoch < known.epoch {
            return refuse(known.epoch, next);
        }
        if batch.epoch > known.epoch {
            return if batch.sequence == 0 { Ok(None) } else { refuse(batch.epoch, 0) };
        }
        if batch.sequence == next {
            return Ok(None);
        }
        let same = known.batches.iter().find(|known| known.sequence == batch.sequence);
        same.map_or_else(|| refuse(known.epoch, next), |same| Ok(Some(*same)))
    }

    fn note(&mut self, id: &str, epoch: u32, batch: StoredBatch, time: u64) {
        if !self.producers.contains_key(id) && self.producers.len() >= PRODUCERS {
            let oldest = self.producers.iter().min_by_key(|(_, producer)| producer.used);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.producers.remove(&oldest);
            }
        }
        let fresh = || ProducerState { epoch, batches: VecDeque::new(), used: time };
        let known = self.producers.entry(id.to_owned()).or_insert_with(fresh);
        if known.epoch != epoch {
            *known = fresh();
        }
        known.used = known.used.max(time);
        known.batches.push_back(batch);
        if known.batches.len() > REMEMBERED {
            known.batches.pop_front();
        }
        self.changes += 1;
    }
}

/// The extension block of a batch's first frame: its length, epoch, sequence, count, and id.
fn block(batch: &ProducerBatch<'_>, count: u64) -> Vec<u8> {
    let length = 4 + 8 + 4 + batch.id.len();
    let mut block = Vec::with_capacity(EXTENSION_LENGTH + length);
    block.extend_from_slice(&(length as u16).to_le_bytes());
    block.extend_from_slice(&batch.epoch.to_le_bytes());
    block.extend_from_slice(&batch.sequence.to_le_bytes());
    block.extend_from_slice(&(count as u32).to_le_bytes());
    block.extend_from_slice(batch.id.as_bytes());
    block
}

fn parse_block(block: &[u8]) -> Option<(ProducerBatch<'_>, u64)> {
    let (epoch, rest) = block.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (count, id) = rest.split_first_chunk::<4>()?;
    let batch = ProducerBatch {
        id: std::str::from_utf8(id).ok()?,
        epoch: u32::from_le_bytes(*epoch),
        sequence: u64::from_le_bytes(*sequence),
    };
    Some((batch, u64::from(u32::from_le_bytes(*count))))
}

fn checksum(up_to: u64, producers: &BTreeMap<String, ProducerState>, before: Option<u32>) -> u32 {
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
    /// As [`try_append_payloads`](Self::try_append_payloads); [`Error::BadProducer`]; and
    /// [`Error::ProducerOutOfOrder`], which says what was expected.
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
        if !(1..=PRODUCER_ID_BYTES).contains(&batch.id.len()) {
            return Err(Error::BadProducer);
        }
        let mut count = 0;
        values.each(|_, _| count += 1);
        if count == 0 {
            return Err(Error::EmptyBatch);
        }
        self.writable()?;
        if !self.knows_producers() {
            self.learn_producers()?;
        }
        let mut table = self.shared.producers.table();
        let Some(table) = table.as_mut() else { return Err(Error::Closed) }; // once built, it stays
        if let Some(StoredBatch { first_offset, count, .. }) = table.find(batch)? {
            return Ok(Produced { first_offset, count, repeated: true });
        }
        let (mut extended, mut is_first) = (block(batch, count), true);
        values.each(|bytes, _| {
            if std::mem::take(&mut is_first) {
                extended.extend_from_slice(bytes);
            }
        });
        let all = Extended { first: &extended, values };
        let first_offset = append::append(&self.shared, &all, expected_next, may_block)?;
        table.note(
            batch.id,
            batch.epoch,
            StoredBatch { sequence: batch.sequence, first_offset, count },
            self.shared.env.machine.now(),
        );
        Ok(Produced { first_offset, count, repeated: false })
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
            // The first producer ever: from now on the file exists, and with it a reason to read the log.
            self.save_producers(file, self.durable_offset(), BTreeMap::new(), MayBlock::Yes)?;
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
            producers.retain(|_, producer| {
                producer.batches.retain(|batch| batch.first_offset.saturating_add(batch.count) <= first);
                !producer.batches.is_empty()
            });
            up_to = first;
            if self.writable().is_ok() {
                // At once: when the log is longer, the file would be believed, and batches that come now not be read
                // again.
                self.save_producers(file, up_to, producers.clone(), MayBlock::Yes)?;
            }
        }
        file.up_to = up_to;
        let mut table = Table { producers, changes: file.changes };
        let mut reader = self.reader(up_to.max(first));
        loop {
            let at = reader.offset();
            match reader.read_next() {
                Ok(Some(record)) => {
                    let Some((batch, count)) = parse_block(record.extension) else { continue };
                    let known = StoredBatch { sequence: batch.sequence, first_offset: record.offset, count };
                    let (id, epoch) = (batch.id.to_owned(), batch.epoch);
                    table.note(&id, epoch, known, record.time);
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
        producers: BTreeMap<String, ProducerState>,
        may_block: MayBlock,
    ) -> Result<(), Error> {
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
        tree::replace(&*self.shared.env.disk, &path, &text).map_err(Error::io("write", &path))?;
        file.up_to = up_to;
        Ok(())
    }

    /// Saves what is known about producers, if anything has changed, and forgets those that are too old.
    pub(crate) fn keep_producers(&self) -> Result<(), Error> {
        self.keep_changed(MayBlock::Yes)
    }

    /// The same, for callers that have other logs to serve.
    ///
    /// # Errors
    /// The same; [`Error::WouldBlock`] while another thread does this, or while the disk makes no progress.
    pub(crate) fn keep_producers_soon(&self) -> Result<(), Error> {
        self.keep_changed(MayBlock::No)
    }

    fn keep_changed(&self, may_block: MayBlock) -> Result<(), Error> {
        let mut file = self.shared.producers.file_for(may_block)?;
        let changes = self.shared.producers.table().as_ref().map(|table| table.changes);
        if changes.is_some_and(|changes| changes != file.changes) {
            self.keep(&mut file, may_block)
        } else {
            Ok(())
        }
    }

    fn keep(&self, file: &mut Saved, may_block: MayBlock) -> Result<(), Error> {
        let (up_to, changes, producers) = {
            let mut table = self.shared.producers.table();
            let Some(table) = table.as_mut() else { return Ok(()) };
            if let Some(oldest) = self.shared.oldest(self.shared.believed_now(), AGE) {
                table.producers.retain(|_, producer| producer.used >= oldest);
            }
            // Appending as a producer locks the table: so all of their batches below this offset are in it.
            (self.next_offset(), table.changes, table.producers.clone())
        };
        self.save_producers(file, up_to, producers, may_block)?;
        file.changes = changes;
        Ok(())
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
                    tracing::warn!(dir = %self.shared.dir.display(), %error, "trimming less: the producers could not be saved");
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
