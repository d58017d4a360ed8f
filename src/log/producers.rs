//! Producers that may repeat themselves: an append that says who sends it, and as which of its batches, is stored
//! once however often it comes. As in Kafka, a producer has an epoch, so that an old incarnation is fenced off, and
//! numbers its batches from 0 in each epoch.
//!
//! The state is in the log: the first frame of such a batch has an extension block with the producer, its epoch and
//! the sequence. So the state and the records cannot disagree. A table of the producers is kept in memory, made when
//! the first one comes: from the file `producers.json`, which says what stood in the log up to some offset, and from
//! the frames behind that. The file is written only once all that it tells of is durable, and before anything is
//! trimmed that it does not tell of. Where there is no such file, no producer has ever been here: so who does not use
//! this pays nothing.

use super::{
    Error, Log, NOTES, Payload, append,
    append::{Extended, Patience},
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
/// Batches of one producer that a repeat is recognised as.
const REMEMBERED: usize = 5;
/// What is known of producers up to some offset.
const PRODUCERS_FILE: &str = NOTES[0];
/// Producers of one log that are known; beyond it the least recently used is forgotten.
const PRODUCERS: usize = 10_000;
/// How long a producer is known that sends nothing.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Who sends a batch, and as which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerBatch<'a> {
    /// The producer's id: 1 to 64 bytes.
    pub id: &'a str,
    /// Grows with each incarnation of the producer; an older one is refused.
    pub epoch: u32,
    /// The batch's number: 0 for the first of an epoch, then one more for each.
    pub sequence: u64,
}

/// Where a producer's batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// The offset of its first record.
    pub first_offset: u64,
    /// Its records.
    pub count: u64,
    /// Whether it was there already.
    pub repeated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct StoredBatch {
    sequence: u64,
    first_offset: u64,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: u32,
    /// The last batches, the newest last; never none.
    batches: VecDeque<StoredBatch>,
    /// When the newest came, in milliseconds since 1970.
    used: u64,
}

/// What `producers.json` has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Snapshot {
    /// All batches below this offset are told of.
    up_to: u64,
    producers: BTreeMap<String, Producer>,
    /// What the record before that offset is told by from any other, as in [`Standing`]. A log that has lost its
    /// end and has grown again has another there. Not written by the first versions, nor where that record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u32>,
    /// CRC-32C of those above as JSON.
    #[serde(default)]
    crc: u32,
}

/// What stands before some offset.
enum Standing {
    /// A record, told from any other that could stand there by CRC-32C of its time and of all that was appended.
    Record(u32),
    /// A record that readers do not see yet, or none.
    NotDurable,
    /// It is lost, trimmed, or cannot be read.
    Unknown,
}

/// A log's producers.
#[derive(Default)]
pub(super) struct Producers {
    /// Held for moments, also by threads that have others to answer: never while anything is read or written. Taken
    /// behind the next one, where both are.
    table: Mutex<Option<Table>>,
    /// Held by the thread that reads or writes the file, from before it takes what it writes from the table until that is durable:
    /// so an older state never takes the place of a newer one.
    file: Mutex<Saved>,
}

#[derive(Default)]
struct Table {
    producers: BTreeMap<String, Producer>,
    /// How often it was changed.
    changes: u64,
}

/// What the file tells of, as far as this process knows.
#[derive(Default)]
struct Saved {
    /// All batches below this offset.
    up_to: u64,
    /// How often the table had been changed.
    changes: u64,
}

impl Table {
    /// Where the batch is, if it is a repeat; an error if it cannot be the next one.
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
        let fresh = || Producer { epoch, batches: VecDeque::new(), used: time };
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

fn checksum(up_to: u64, producers: &BTreeMap<String, Producer>, before: Option<u32>) -> u32 {
    let json = match before {
        Some(before) => serde_json::to_vec(&(up_to, producers, before)),
        None => serde_json::to_vec(&(up_to, producers)),
    };
    crc32c::crc32c(&json.unwrap_or_default()) // plain data: cannot fail
}

/// Whether an error says that the disk cannot read a record. Others, where nothing is known of the disk, are no reason to do
/// without what the record tells.
fn cannot_be_read(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if salvage::is_unreadable(source))
}

/// What the checksum in a file of producers must be, for `fuzz/`: it gets past it so; `None` if it is no such file.
#[cfg(fuzzing)]
pub fn checksum_of(file: &[u8]) -> Option<u32> {
    let found: Snapshot = serde_json::from_slice(file).ok()?;
    Some(checksum(found.up_to, &found.producers, found.before))
}

impl Log {
    /// As [`try_append_payloads`](Self::try_append_payloads), once for each of a producer's batches: a repeat of one
    /// of its last 5 appends nothing, and answers where it is. It is as durable as any other append; wait for it.
    ///
    /// # Errors
    /// As there, [`Error::BadProducer`], and [`Error::ProducerOutOfOrder`], which says what was expected.
    pub fn try_append_once(
        &self,
        batch: &ProducerBatch<'_>,
        payloads: &[Payload<'_>],
        expected_next: Option<u64>,
    ) -> Result<Produced, Error> {
        self.try_append_values_once(batch, payloads, expected_next)
    }

    /// The same with values that need not be in one list.
    pub(crate) fn try_append_values_once<S: AppendValues + ?Sized>(
        &self,
        batch: &ProducerBatch<'_>,
        values: &S,
        expected_next: Option<u64>,
    ) -> Result<Produced, Error> {
        if !(1..=PRODUCER_ID_BYTES).contains(&batch.id.len()) {
            return Err(Error::BadProducer);
        }
        let (mut count, mut first) = (0, Vec::new());
        values.each(|bytes, _| {
            if count == 0 {
                first.extend_from_slice(bytes);
            }
            count += 1;
        });
        if count == 0 {
            return Err(Error::EmptyBatch);
        }
        self.writable()?;
        if !self.knows_producers() {
            self.learn_producers()?;
        }
        let mut table = self.shared.producers.table();
        let Some(table) = table.as_mut() else { return Err(Error::Closed) }; // once it is there, it stays
        if let Some(StoredBatch { first_offset, count, .. }) = table.find(batch)? {
            return Ok(Produced { first_offset, count, repeated: true });
        }
        let mut extended = block(batch, count);
        extended.extend_from_slice(&first);
        let all = Extended { first: &extended, values };
        let first_offset = append::append(&self.shared, &all, expected_next, append::Patience::None)?;
        table.note(
            batch.id,
            batch.epoch,
            StoredBatch { sequence: batch.sequence, first_offset, count },
            self.shared.env.machine.now(),
        );
        Ok(Produced { first_offset, count, repeated: false })
    }

    /// Gets what [`try_append_once`](Self::try_append_once) needs into memory, which reads from the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn learn_producers(&self) -> Result<(), Error> {
        self.learn(&mut self.shared.producers.file())
    }

    /// Whether [`try_append_once`](Self::try_append_once) has what it needs in memory; otherwise it reads the part of
    /// the log that its file does not tell of. Never waits for a disk.
    pub fn knows_producers(&self) -> bool {
        self.shared.producers.table().is_some()
    }

    /// Makes the table, if it is not there yet. Until it is, no batch of a producer is appended: so nothing is missed that
    /// comes while this reads.
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
                // Not even when it was asked again: as damaged as one that does not verify, and written anew likewise.
                Err(error) if salvage::is_unreadable(&error) => Some(Vec::new()),
                read => read.map_err(Error::io("read", &path))?,
            };
        let Some(text) = text else {
            // The first producer ever: from now on there is the file, and so a reason to look at the log.
            self.save_producers(file, self.durable_offset(), BTreeMap::new(), Patience::Blocking)?;
            return Ok(Table::default());
        };
        let snapshot = serde_json::from_slice(&text)
            .ok()
            .filter(|found: &Snapshot| found.crc == checksum(found.up_to, &found.producers, found.before));
        if snapshot.is_none() {
            tracing::warn!(path = %path.display(), "damaged: what is left of the log tells of its producers");
        }
        let first = self.first_offset();
        let Snapshot { mut up_to, mut producers, before, .. } = snapshot.unwrap_or_default();
        if up_to > self.next_offset() || !self.has_before(up_to, before)? {
            // The log has lost its end, to damage and `repair`, or is older than the file; or a program has written it that
            // did not wait for what it told of. What came in place of that is not told of: the log tells, as far as it goes.
            tracing::warn!(path = %path.display(), up_to, next = self.next_offset(), "tells of what the log does not have");
            producers.retain(|_, producer| {
                producer.batches.retain(|batch| batch.first_offset.saturating_add(batch.count) <= first);
                !producer.batches.is_empty()
            });
            up_to = first;
            if self.writable().is_ok() {
                // At once: once the log is longer, the file would be believed, and what comes now not be read again.
                self.save_producers(file, up_to, producers.clone(), Patience::Blocking)?;
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
                // What it told of its producer is not known, as where it is damaged; and no reason to refuse all others.
                Err(error) if cannot_be_read(&error) => reader.seek(at + 1),
                Err(Error::Trimmed { first, .. }) => reader.seek(first),
                Err(error) => return Err(error),
            }
        }
        Ok(table)
    }

    /// What stands before an offset.
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

    /// Whether the log has this record before an offset, as far as can be told.
    fn has_before(&self, offset: u64, noted: Option<u32>) -> Result<bool, Error> {
        let Some(noted) = noted else { return Ok(true) };
        Ok(match self.before(offset)? {
            Standing::Record(crc) => crc == noted,
            // What was written down was durable.
            Standing::NotDurable => false,
            Standing::Unknown => true,
        })
    }

    /// Writes the file, once all that it tells of is durable: or else a repeat of what a crash takes back would be answered
    /// as stored, and what comes in its place would not be read again.
    fn save_producers(
        &self,
        file: &mut Saved,
        up_to: u64,
        producers: BTreeMap<String, Producer>,
        patience: Patience,
    ) -> Result<(), Error> {
        if let Some(last) = up_to.checked_sub(1) {
            match patience {
                Patience::Blocking => self.wait_durable(last)?,
                Patience::None if self.shared.durable_soon(last) => {}
                Patience::None => return Err(Error::WouldBlock),
            }
        }
        self.writable()?; // if it was deleted, another log may be at its path
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

    /// Writes down what is known of producers, if anything came since, and forgets those that are too old.
    pub(crate) fn keep_producers(&self) -> Result<(), Error> {
        self.keep_changed(Patience::Blocking)
    }

    /// The same, for callers that have other logs to see to.
    ///
    /// # Errors
    /// As there; [`Error::WouldBlock`] while somebody else is at it, or the disk does not get on.
    pub(crate) fn keep_producers_soon(&self) -> Result<(), Error> {
        self.keep_changed(Patience::None)
    }

    fn keep_changed(&self, patience: Patience) -> Result<(), Error> {
        let mut file = self.shared.producers.file_for(patience)?;
        let changes = self.shared.producers.table().as_ref().map(|table| table.changes);
        if changes.is_some_and(|changes| changes != file.changes) {
            self.keep(&mut file, patience)
        } else {
            Ok(())
        }
    }

    fn keep(&self, file: &mut Saved, patience: Patience) -> Result<(), Error> {
        let (up_to, changes, producers) = {
            let mut table = self.shared.producers.table();
            let Some(table) = table.as_mut() else { return Ok(()) };
            if let Some(oldest) = self.shared.oldest(self.shared.believed_now(), AGE) {
                table.producers.retain(|_, producer| producer.used >= oldest);
            }
            // Whoever appends as a producer holds the table: all their batches below this offset are in it.
            (self.next_offset(), table.changes, table.producers.clone())
        };
        self.save_producers(file, up_to, producers, patience)?;
        file.changes = changes;
        Ok(())
    }

    /// To be called before anything below `before` is trimmed: what is told of only there is written down. Returns up to
    /// where that is so.
    pub(super) fn keep_producers_before(&self, before: u64, patience: Patience) -> Result<u64, Error> {
        let before = before.min(self.next_offset()); // the first producer's batches come behind this
        let mut file = self.shared.producers.file_for(patience)?;
        let path = self.shared.dir.join(PRODUCERS_FILE);
        if !tree::is_there(&*self.shared.env.disk, &path).map_err(Error::io("open", &path))? {
            return Ok(before);
        }
        self.learn(&mut file)?;
        if file.up_to < before {
            match self.keep(&mut file, patience) {
                Err(Error::WouldBlock) => {}
                // So that trimming makes room where there is none: as far as the file tells, which it does already.
                Err(error) if error.is_full() || error.is_transient() => {
                    tracing::warn!(dir = %self.shared.dir.display(), %error, "trimming less: producers are not written down");
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

    /// [`file`](Self::file); [`Error::WouldBlock`] without patience, if it is held.
    fn file_for(&self, patience: Patience) -> Result<MutexGuard<'_, Saved>, Error> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) if patience == Patience::None => Err(Error::WouldBlock),
            Err(TryLockError::Poisoned(held)) => Ok(held.into_inner()),
            Err(TryLockError::WouldBlock) => Ok(self.file()),
            Ok(held) => Ok(held),
        }
    }

    /// Waits until the file is not being written. To be called when the log is not writable any more, so that it is not
    /// written again.
    pub(super) fn settle(&self) {
        drop(self.file());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
