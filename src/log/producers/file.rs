//! The file `producers.json`: what it has, when it is due, when it is believed, and how the table is built from it and
//! from the log.
//!
//! It is written once everything that it covers is durable, and before anything that it does not cover is trimmed. It is
//! believed unless the log is known to lack the last record that it covers.

use super::{
    super::{Error, Log, recovery::PRODUCERS as PRODUCERS_FILE, room::WaitFor},
    StoredBatch,
    block::parse_block,
    table::{Content, KnownProducer, Table, Unread},
};
use crate::{
    disk::{salvage, tree},
    frame::HEADER_BYTES,
    reports,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// How long a producer that sends nothing is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// The average rate, in bytes per second, at which the file is rewritten while nothing else requires it.
pub(super) const SAVED_PER_SECOND: u64 = 256 << 10;
/// The file is written earlier if this many bytes of records were committed since: when the log is opened again, its
/// first producer has to wait until they are read.
pub(super) const SAVED_AFTER: u64 = 64 << 20;

/// The content of `producers.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// All batches below this offset are covered.
    pub(super) up_to: u64,
    pub(super) producers: BTreeMap<String, KnownProducer>,
    /// What identifies the record before that offset, as in [`Preceding`], or [`NONE`]: a log that has lost its end and
    /// has grown again has another record there. Not written by the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<u32>,
    /// CRC-32C of the fields above as JSON.
    #[serde(default)]
    pub(super) crc: u32,
}

/// Stands for a record that was lost, trimmed, or could not be read when the file was written. One that can be read in its
/// place later is taken for another one: at worst the log is read instead of the file.
const NONE: u32 = 0;

/// What precedes some offset.
enum Preceding {
    /// A record, identified among all that could be there by the CRC-32C of its time and of everything that was
    /// appended.
    Record(u32),
    /// A record that readers do not see yet, or none.
    NotDurable,
    /// The record is lost, trimmed, or cannot be read.
    Unknown,
}

/// What the file covers, as far as this process knows.
#[derive(Default)]
pub(super) struct Saved {
    /// All batches below this offset.
    pub(super) up_to: u64,
    /// How many times the table had been changed.
    pub(super) changes: u64,
    /// Writing it has failed, so it may have what the table does not have, such as an epoch that has not begun.
    pub(super) uncertain: bool,
    /// Whether that failure was reported.
    pub(super) warned: bool,
    /// Its size in bytes.
    pub(super) bytes: u64,
    /// When it was read or last written, successfully or not.
    pub(super) tried: Duration,
    /// The bytes of records that this process had committed by then.
    pub(super) committed: u64,
    /// The bytes of records after `up_to` that were read, since it does not cover them.
    pub(super) read: u64,
}

impl Saved {
    /// Whether it is time to write it, at `now`, when `committed` bytes were committed.
    pub(super) fn is_due(&self, now: Duration, committed: u64) -> bool {
        let takes = Duration::from_millis(self.bytes.saturating_mul(1000) / SAVED_PER_SECOND);
        now.saturating_sub(self.tried) >= takes || self.is_far_behind(committed)
    }

    fn is_far_behind(&self, committed: u64) -> bool {
        committed.saturating_sub(self.committed).saturating_add(self.read) >= SAVED_AFTER
    }
}

pub(super) fn checksum(up_to: u64, producers: &BTreeMap<String, KnownProducer>, before: Option<u32>) -> u32 {
    let json = match before {
        Some(before) => serde_json::to_vec(&(up_to, producers, before)),
        None => serde_json::to_vec(&(up_to, producers)),
    };
    crc32c::crc32c(&json.unwrap_or_default()) // plain data: cannot fail
}

/// Whether an error says that the disk cannot read a record. Other errors say nothing about the record, so they are no
/// reason to continue without its information.
fn cannot_be_read(error: &Error) -> bool {
    matches!(error, Error::Unreadable { .. })
        || matches!(error, Error::Io { source, .. } if salvage::is_unreadable(source))
}

impl Log {
    /// Builds the table, if there is none yet. Until it exists, no batch of a producer is appended, so nothing is
    /// missed that comes while this reads.
    pub(super) fn learn(&self, file: &mut Saved) -> Result<(), Error> {
        if !self.knows_producers() {
            let table = self.load_producers(file)?;
            *self.shared.producers.table() = Some(table);
        }
        Ok(())
    }

    /// The bytes of the file. `None` if the file does not exist; empty if it cannot be read, so that it is written again.
    fn read_producers_file(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        tree::read_or_nothing(&*self.shared.env.disk, path).map_err(Error::io("read", path))
    }

    fn load_producers(&self, file: &mut Saved) -> Result<Table, Error> {
        let path = self.shared.dir.join(PRODUCERS_FILE);
        let text = self.read_producers_file(&path)?;
        self.shared.check_not_displaced()?;
        let Some(text) = text else {
            // The first producer ever: from now on the file exists, and with it a reason to read the log. A log that
            // cannot be written to gets no producer, and needs no file.
            if self.writable().is_ok() {
                self.write_producers(file, self.durable_offset(), BTreeMap::new(), WaitFor::Anything)?;
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
                // At once: later, when the log has grown beyond `up_to`, the old file would be believed, and batches
                // that are appended now would not be read.
                self.write_producers(file, up_to, producers.clone(), WaitFor::Anything)?;
            }
        }
        (file.up_to, file.bytes, file.read) = (up_to, text.len() as u64, 0);
        (file.tried, file.committed) = (self.shared.env.machine.elapsed(), self.shared.flush.committed());
        let mut table = Table { producers, changes: file.changes };
        self.read_batches(up_to.max(first), file, &mut table)?;
        Ok(table)
    }

    /// Notes in the table the batches that the log has from an offset on.
    fn read_batches(&self, from: u64, file: &mut Saved, table: &mut Table) -> Result<(), Error> {
        let mut reader = self.reader(from);
        let mut unread: Option<Unread> = None;
        loop {
            let at = reader.offset();
            match reader.read_next() {
                // What it was is unknown, and so what the batch had.
                Ok(Some(record)) if record.lost => unread = None,
                Ok(Some(record)) => {
                    file.read += (HEADER_BYTES + record.extension.len() + record.value.len()) as u64;
                    if let Some((batch, count)) = parse_block(record.extension) {
                        let (sequence, first_offset) = (batch.sequence, record.offset);
                        let stored = StoredBatch::new(sequence, first_offset, count);
                        table.note(&batch, stored, record.time);
                        let id = batch.id.to_owned();
                        let content = Content::default();
                        unread = Some(Unread { id, sequence, next: first_offset, left: count, content });
                    }
                    if unread.as_mut().is_some_and(|batch| !batch.add(&record, table)) {
                        unread = None;
                    }
                }
                Ok(None) => return Ok(()),
                Err(Error::Damaged { .. }) => {}
                // What it says about its producer is unknown, as with a damaged record; that is no reason to refuse all
                // others.
                Err(error) if cannot_be_read(&error) => reader.seek(at + 1),
                Err(Error::Trimmed { first, .. }) => reader.seek(first),
                Err(error) => return Err(error),
            }
        }
    }

    /// What precedes an offset.
    fn preceding(&self, offset: u64) -> Result<Preceding, Error> {
        let Some(last) = offset.checked_sub(1) else { return Ok(Preceding::Unknown) };
        match self.reader(last).read(last) {
            Ok(Some(record)) if record.lost => Ok(Preceding::Unknown),
            Ok(Some(record)) => {
                let crc = crc32c::crc32c(&record.time.to_le_bytes());
                let crc = crc32c::crc32c_append(crc, record.extension);
                Ok(Preceding::Record(crc32c::crc32c_append(crc, record.value)))
            }
            Ok(None) => Ok(Preceding::NotDurable),
            Err(Error::Damaged { .. } | Error::Trimmed { .. }) => Ok(Preceding::Unknown),
            Err(error) if cannot_be_read(&error) => Ok(Preceding::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Whether the log has this record before an offset, as far as that can be known.
    fn has_before(&self, offset: u64, noted: Option<u32>) -> Result<bool, Error> {
        let Some(noted) = noted else { return Ok(true) };
        Ok(match self.preceding(offset)? {
            Preceding::Record(crc) => crc == noted && noted != NONE,
            // What was saved had been durable.
            Preceding::NotDurable => false,
            Preceding::Unknown => true,
        })
    }

    /// Writes the file, once everything that it covers is durable: otherwise a repeat of a batch that a crash undoes
    /// would be answered as stored, and what is appended in its place would not be read again.
    pub(super) fn write_producers(
        &self,
        file: &mut Saved,
        up_to: u64,
        producers: BTreeMap<String, KnownProducer>,
        wait_for: WaitFor,
    ) -> Result<(), Error> {
        let committed = self.shared.flush.committed(); // or more by the time that all below `up_to` is durable
        if let Some(last) = up_to.checked_sub(1) {
            if wait_for.waits_for_disk() {
                self.shared.wait_durable_unless_full(last)?; // a trim must not wait for the room that it is to make
            } else if !self.shared.durable_soon(last) {
                return Err(Error::WouldBlock);
            }
        }
        self.writable()?; // if the log was deleted, another one may be at its path
        let before = match self.preceding(up_to)? {
            Preceding::Record(crc) => crc,
            Preceding::NotDurable | Preceding::Unknown => NONE,
        };
        let before = Some(before);
        let crc = checksum(up_to, &producers, before);
        let snapshot = Snapshot { up_to, producers, before, crc };
        let text = serde_json::to_vec(&snapshot).unwrap_or_default(); // plain data
        let path = self.shared.dir.join(PRODUCERS_FILE);
        (file.tried, file.committed, file.read) = (self.shared.env.machine.elapsed(), committed, 0);
        file.uncertain = true;
        tree::replace(&*self.shared.env.disk, &path, &text).map_err(Error::io("write", &path))?;
        (file.up_to, file.bytes) = (up_to, text.len() as u64);
        (file.uncertain, file.warned) = (false, false);
        Ok(())
    }

    /// Saves what is known about producers, if anything has changed, and forgets those that are too old.
    pub(crate) fn save_producers(&self) -> Result<(), Error> {
        let mut file = self.shared.producers.file();
        if self.has_changed(&file) { self.save(&mut file, WaitFor::Anything) } else { Ok(()) }
    }

    /// Like [`save_producers`](Self::save_producers), if it is time for that, for callers that have other logs to
    /// serve: not while another thread does this, or while the disk makes no progress. The larger the file, the longer
    /// the time; the more was appended, the shorter.
    pub(crate) fn save_producers_soon(&self) {
        let Ok(mut file) = self.shared.producers.file_for(WaitFor::Nothing) else { return };
        if self.are_due(&file) {
            match self.save(&mut file, WaitFor::Nothing) {
                Ok(()) | Err(Error::WouldBlock) => {}
                Err(error) => self.warn_once(&mut file, &error, "producers could not be saved"),
            }
        }
    }

    /// Says that the file could not be written: once, until it can.
    fn warn_once(&self, file: &mut Saved, error: &Error, what: &'static str) {
        if !std::mem::replace(&mut file.warned, true) {
            reports::failure(&self.shared.dir, error, what);
        }
    }

    /// Whether [`save_producers_soon`](Self::save_producers_soon) would write. Does not touch the disk.
    pub(crate) fn producers_are_due(&self) -> bool {
        self.shared.producers.file_for(WaitFor::Nothing).is_ok_and(|file| self.are_due(&file))
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

    fn save(&self, file: &mut Saved, wait_for: WaitFor) -> Result<(), Error> {
        let Some((up_to, Table { producers, changes })) = self.copy_of_table() else { return Ok(()) };
        self.write_producers(file, up_to, producers, wait_for)?;
        file.changes = changes;
        Ok(())
    }

    /// A copy of the table without those that are too old, and the offset up to which it has all batches.
    pub(super) fn copy_of_table(&self) -> Option<(u64, Table)> {
        let mut table = self.shared.producers.table();
        let table = table.as_mut()?;
        if let Some(oldest) = self.shared.oldest(self.shared.trusted_now(), REMEMBERED_FOR) {
            table.producers.retain(|_, producer| producer.used >= oldest);
        }
        // Appending as a producer locks the table: so all of their batches below this offset are in it.
        Some((self.next_offset(), table.clone()))
    }

    /// Must be called before anything below `before` is trimmed: saves what is known only from there. Returns the
    /// offset up to which that was done.
    pub(in crate::log) fn save_producers_before(&self, before: u64, wait_for: WaitFor) -> Result<u64, Error> {
        let before = before.min(self.next_offset()); // the first producer's batches come after this
        let mut file = self.shared.producers.file_for(wait_for)?;
        let path = self.shared.dir.join(PRODUCERS_FILE);
        if !tree::is_there(&*self.shared.env.disk, &path).map_err(Error::io("open", &path))? {
            return Ok(before);
        }
        self.learn(&mut file)?;
        if file.up_to < before {
            match self.save(&mut file, wait_for) {
                Err(Error::WouldBlock) => {}
                // So that trimming can make room where there is none: trim only as far as the file covers already.
                Err(error) if error.is_full() || error.is_transient() => {
                    self.warn_once(&mut file, &error, "trimming less: the producers could not be saved");
                }
                saved => saved?,
            }
        }
        Ok(before.min(file.up_to))
    }
}
