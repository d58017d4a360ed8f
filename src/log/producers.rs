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

use super::{Error, Log, PRODUCERS_FILE, Payload, append, append::Extended};
use crate::{disk::tree, frame::EXTENSION_LENGTH};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The longest id, in bytes.
pub const PRODUCER_ID_BYTES: usize = 64;
/// Batches of one producer that a repeat is recognised as.
const REMEMBERED: usize = 5;
/// Producers of one log that are known; beyond it the least recently used is forgotten.
const PRODUCERS: usize = 10_000;
/// How long a producer is known that sends nothing, in milliseconds.
const AGE: u64 = 7 * 24 * 3600 * 1000;

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
struct Batch {
    sequence: u64,
    first_offset: u64,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: u32,
    /// The last batches, the newest last; never none.
    batches: VecDeque<Batch>,
    /// When the newest came, in milliseconds since 1970.
    used: u64,
}

/// What `producers.json` has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Snapshot {
    /// All batches below this offset are told of.
    up_to: u64,
    producers: BTreeMap<String, Producer>,
    /// CRC-32C of the two above as JSON.
    #[serde(default)]
    crc: u32,
}

/// A log's producers.
#[derive(Default)]
pub(super) struct Producers {
    table: Mutex<Option<Table>>,
}

#[derive(Default)]
struct Table {
    producers: BTreeMap<String, Producer>,
    /// What the file tells of.
    saved: u64,
    /// Whether anything came since.
    changed: bool,
}

impl Table {
    /// Where the batch is, if it is a repeat; an error if it cannot be the next one.
    fn find(&self, batch: &ProducerBatch<'_>) -> Result<Option<Batch>, Error> {
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

    fn note(&mut self, id: &str, epoch: u32, batch: Batch, time: u64) {
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
        self.changed = true;
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

fn checksum(up_to: u64, producers: &BTreeMap<String, Producer>) -> u32 {
    crc32c::crc32c(&serde_json::to_vec(&(up_to, producers)).unwrap_or_default()) // plain data: cannot fail
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
        if !(1..=PRODUCER_ID_BYTES).contains(&batch.id.len()) {
            return Err(Error::BadProducer);
        }
        let (first, rest) = payloads.split_first().ok_or(Error::EmptyBatch)?;
        self.writable()?;
        let mut table = self.producers()?;
        let Some(table) = table.as_mut() else { return Err(Error::Closed) };
        if let Some(Batch { first_offset, count, .. }) = table.find(batch)? {
            return Ok(Produced { first_offset, count, repeated: true });
        }
        let count = payloads.len() as u64;
        let mut extended = block(batch, count);
        extended.extend_from_slice(first.bytes);
        let first = Extended { payload: Payload { bytes: &extended, json: first.json }, extended: true };
        let rest = rest.iter().map(|&payload| Extended { payload, extended: false });
        let all: Vec<_> = std::iter::once(first).chain(rest).collect();
        let first_offset = append::append(&self.shared, &all, expected_next, append::Patience::None)?;
        table.note(
            batch.id,
            batch.epoch,
            Batch { sequence: batch.sequence, first_offset, count },
            self.shared.env.machine.now(),
        );
        Ok(Produced { first_offset, count, repeated: false })
    }

    /// Gets what [`try_append_once`](Self::try_append_once) needs into memory, which reads from the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn learn_producers(&self) -> Result<(), Error> {
        self.producers().map(drop)
    }

    /// Whether [`try_append_once`](Self::try_append_once) has what it needs in memory; otherwise it reads the part of
    /// the log that its file does not tell of.
    pub fn knows_producers(&self) -> bool {
        self.shared.producers.lock().is_some()
    }

    /// The table, made if it is not there yet.
    fn producers(&self) -> Result<MutexGuard<'_, Option<Table>>, Error> {
        let mut table = self.shared.producers.lock();
        if table.is_none() {
            *table = Some(self.load_producers()?);
        }
        Ok(table)
    }

    fn load_producers(&self) -> Result<Table, Error> {
        let path = self.shared.dir.join(PRODUCERS_FILE);
        let Some(text) = tree::read(&*self.shared.env.disk, &path).map_err(Error::io("read", &path))? else {
            // The first producer ever: from now on there is the file, and so a reason to look at the log.
            let table = Table { saved: self.next_offset(), ..Table::default() };
            self.save_producers(table.saved, &table.producers)?;
            return Ok(table);
        };
        let snapshot: Snapshot = serde_json::from_slice(&text)
            .ok()
            .filter(|found: &Snapshot| found.crc == checksum(found.up_to, &found.producers))
            .unwrap_or_default(); // damaged: what is left of the log tells
        let (up_to, producers) = (snapshot.up_to, snapshot.producers);
        let mut table = Table { producers, saved: up_to, changed: false };
        let mut reader = self.reader(up_to.max(self.first_offset()));
        loop {
            match reader.read_next() {
                Ok(Some(record)) => {
                    let Some((batch, count)) = parse_block(record.extension) else { continue };
                    let known = Batch { sequence: batch.sequence, first_offset: record.offset, count };
                    let (id, epoch) = (batch.id.to_owned(), batch.epoch);
                    table.note(&id, epoch, known, record.time);
                }
                Ok(None) => break,
                Err(Error::Damaged { .. }) => {}
                Err(Error::Trimmed { first, .. }) => reader.seek(first),
                Err(error) => return Err(error),
            }
        }
        Ok(table)
    }

    fn save_producers(&self, up_to: u64, producers: &BTreeMap<String, Producer>) -> Result<(), Error> {
        self.writable()?; // if it was deleted, another log may be at its path
        let crc = checksum(up_to, producers);
        let text =
            serde_json::to_vec(&Snapshot { up_to, producers: producers.clone(), crc }).unwrap_or_default();
        let path = self.shared.dir.join(PRODUCERS_FILE);
        tree::replace(&*self.shared.env.disk, &path, &text).map_err(Error::io("write", &path))
    }

    /// Writes down what is known of producers, if anything came since, and forgets those that are too old. Waits
    /// until what is told of is durable: or else a repeat of what a crash takes back would be answered as stored.
    pub(crate) fn keep_producers(&self) -> Result<(), Error> {
        let (up_to, producers) = {
            let mut table = self.shared.producers.lock();
            let Some(table) = table.as_mut().filter(|table| table.changed) else { return Ok(()) };
            let oldest = self.shared.env.machine.now().saturating_sub(AGE);
            table.producers.retain(|_, producer| producer.used >= oldest);
            table.changed = false;
            (self.next_offset(), table.producers.clone())
        };
        self.flush()?;
        self.save_producers(up_to, &producers)?;
        if let Some(table) = self.shared.producers.lock().as_mut() {
            table.saved = table.saved.max(up_to);
        }
        Ok(())
    }

    /// To be called before anything below `before` is trimmed: what is told of only there is written down.
    pub(super) fn keep_producers_before(&self, before: u64) -> Result<(), Error> {
        let path = self.shared.dir.join(PRODUCERS_FILE);
        if !tree::is_there(&*self.shared.env.disk, &path).map_err(Error::io("open", &path))? {
            return Ok(());
        }
        let saved = {
            let mut table = self.producers()?;
            let Some(table) = table.as_mut() else { return Ok(()) };
            table.changed |= table.saved < before;
            table.saved
        };
        if saved < before { self.keep_producers() } else { Ok(()) }
    }
}

impl Producers {
    fn lock(&self) -> MutexGuard<'_, Option<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::log::Options;
    use std::path::Path;

    fn open(dir: &Path) -> Log {
        let options = Options {
            segment_bytes: 8 << 10,
            first_segment_bytes: 4 << 10,
            memory_bytes: 64 << 10,
            images: None,
            ..Options::default()
        };
        Log::open(dir, options).unwrap()
    }

    fn send(log: &Log, id: &str, epoch: u32, sequence: u64) -> Result<Produced, Error> {
        let values: Vec<_> = (0..=sequence % 3).map(|n| vec![sequence as u8; 20 + n as usize]).collect();
        let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json: false }).collect();
        let batch = ProducerBatch { id, epoch, sequence };
        loop {
            match log.try_append_once(&batch, &payloads, None) {
                Err(Error::WouldBlock) => std::thread::yield_now(),
                done => return done,
            }
        }
    }

    fn expected(result: Result<Produced, Error>) -> (u32, u64) {
        match result {
            Err(Error::ProducerOutOfOrder { expected_epoch, expected_sequence }) => {
                (expected_epoch, expected_sequence)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn repeats_are_answered_gaps_and_old_epochs_refused_also_after_opening_again_and_trimming() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        log.append(b"before any producer").unwrap();
        let mut sent = Vec::new();
        for sequence in 0..120 {
            let done = send(&log, "a", 3, sequence).unwrap();
            assert!(!done.repeated);
            sent.push(done);
            match sequence {
                30 => {
                    drop(log);
                    log = open(dir.path());
                }
                60 => {
                    log.flush().unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(20)); // the keeper seals
                    assert!(log.trim(log.next_offset()).unwrap() > 10);
                }
                90 => {
                    // As after SIGKILL: what was written down is older than the log.
                    log.keep_producers().unwrap();
                    let old = std::fs::read(dir.path().join(PRODUCERS_FILE)).unwrap();
                    send(&log, "b", 1, 0).unwrap();
                    drop(log);
                    std::fs::write(dir.path().join(PRODUCERS_FILE), old).unwrap();
                    log = open(dir.path());
                    assert!(send(&log, "b", 1, 0).unwrap().repeated);
                }
                _ => {}
            }
            for back in 0..REMEMBERED as u64 {
                let Some(earlier) = sequence.checked_sub(back) else { break };
                let again = send(&log, "a", 3, earlier).unwrap();
                let first = sent[earlier as usize];
                assert_eq!(again, Produced { repeated: true, ..first }, "{earlier} after {sequence}");
            }
            let next = log.next_offset();
            assert_eq!(expected(send(&log, "a", 3, sequence + 2)), (3, sequence + 1));
            assert_eq!(expected(send(&log, "a", 2, 0)), (3, sequence + 1));
            assert_eq!(expected(send(&log, "a", 4, 1)), (4, 0));
            assert_eq!(expected(send(&log, "new", 0, 1)), (0, 0));
            assert_eq!(log.next_offset(), next, "something was stored");
        }
        assert!(!send(&log, "a", 4, 0).unwrap().repeated);
        assert_eq!(expected(send(&log, "a", 3, 120)), (4, 1));
        log.flush().unwrap();
        // The block is no part of the value.
        let last = log.read(log.next_offset() - 1).unwrap().unwrap();
        assert_eq!(last.value(), [0; 20]);
        log.close().unwrap();
        assert_eq!(crate::verify(dir.path()).unwrap().damage, []);
    }

    #[test]
    fn the_least_recently_used_is_forgotten_beyond_the_limit() {
        let mut table = Table::default();
        let batch = Batch { sequence: 0, first_offset: 0, count: 1 };
        for n in 0..PRODUCERS as u64 + 2 {
            table.note(&format!("p{n}"), 0, batch, n);
        }
        assert_eq!(table.producers.len(), PRODUCERS);
        assert!(!table.producers.contains_key("p1") && table.producers.contains_key("p2"));
    }
}
