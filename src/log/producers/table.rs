//! What is known about the producers of a log: their epochs, their last batches, their marks. No I/O.

use super::{
    super::{Error, RecordRef, limits::MAX_PRODUCER_EPOCH},
    BegunEpoch, ProducerBatch, ProducerState, StoredBatch,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// How many batches of one producer are remembered to recognise repeats.
pub(super) const MAX_REMEMBERED: usize = 5;
/// How many producers of one log are remembered; beyond that, the least recently used one is forgotten.
pub(super) const MAX_PRODUCERS: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownProducer {
    pub(super) epoch: u32,
    /// The last batches, newest last, all of one epoch.
    pub(super) batches: VecDeque<StoredBatch>,
    /// The epoch of these batches, if it is not the newest one.
    #[serde(rename = "of", default, skip_serializing_if = "Option::is_none")]
    pub(super) batches_epoch: Option<u32>,
    /// When the newest batch came, or the epoch began, in milliseconds since 1970.
    pub(super) used: u64,
    /// [`Table::changes`] when it was last used since the log was opened, or 0. A clock that was wrong does not make it newer
    /// than others.
    #[serde(skip)]
    pub(super) last_change: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<Mark>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The offset after the batch that it came with.
    pub(super) next_offset: u64,
    pub(super) text: String,
}

/// Checksums of a batch's records, by which a batch that claims to be a repeat is told from another one with the same
/// number: CRC-32C of the values and their lengths, and of the kinds. There are two because early versions stored the first
/// one only.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Content {
    pub(super) values: u32,
    pub(super) kinds: u32,
}

impl Content {
    pub(crate) fn add(&mut self, value: &[u8], json: bool) {
        let length = crc32c::crc32c_append(self.values, &(value.len() as u64).to_le_bytes());
        self.values = crc32c::crc32c_append(length, value);
        self.kinds = crc32c::crc32c_append(self.kinds, &[u8::from(json)]);
    }

    /// Whether a batch has this content, as far as that is known.
    pub(crate) fn is_of(self, batch: &StoredBatch) -> bool {
        batch.content.is_none_or(|values| values == self.values)
            && batch.kinds.is_none_or(|kinds| kinds == self.kinds)
    }
}

/// The first epoch of a producer that the log does not know, at a time in milliseconds since 1970: the seconds since
/// 2020. So it is higher than any that the producer had before it was forgotten, or before the log was deleted and made
/// again, and an old incarnation stays fenced off: if the clock is right, if no more than one epoch per second was begun
/// since the first one, and if no batch has named a higher one by itself.
pub(super) fn first_epoch(now: u64) -> u32 {
    let seconds = (now / 1000).saturating_sub(1_577_836_800);
    // Whatever the clock says, there are epochs left.
    u32::try_from(seconds).map_or(MAX_PRODUCER_EPOCH, |seconds| seconds.min(MAX_PRODUCER_EPOCH))
}

/// An error if a batch cannot be the first one of an epoch that `begin_epoch` has not begun.
pub(super) fn check_begins(batch: &ProducerBatch<'_>) -> Result<(), Error> {
    if batch.epoch > MAX_PRODUCER_EPOCH {
        Err(Error::EpochTooHigh)
    } else if batch.sequence == 0 {
        Ok(())
    } else {
        Err(Error::ProducerOutOfOrder { expected_epoch: batch.epoch, expected_sequence: 0 })
    }
}

#[derive(Clone, Default)]
pub(super) struct Table {
    pub(super) producers: BTreeMap<String, KnownProducer>,
    /// How many times it was changed.
    pub(super) changes: u64,
}

impl Table {
    /// Where the batch of `count` records with this content is stored, if it is a repeat; an error if it cannot be the
    /// next one.
    pub(super) fn find(
        &self,
        batch: &ProducerBatch<'_>,
        count: u64,
        content: Content,
    ) -> Result<Option<StoredBatch>, Error> {
        let refuse = |epoch, sequence| {
            Err(Error::ProducerOutOfOrder { expected_epoch: epoch, expected_sequence: sequence })
        };
        let Some(known) = self.producers.get(batch.id) else { return check_begins(batch).map(|()| None) };
        let next = known.next_sequence();
        if batch.epoch < known.epoch {
            return refuse(known.epoch, next);
        }
        if batch.epoch > known.epoch {
            return check_begins(batch).map(|()| None);
        }
        if batch.sequence == next {
            return Ok(None);
        }
        match known.current().find(|known| known.sequence == batch.sequence) {
            None => refuse(known.epoch, next),
            Some(same) if same.count == count && content.is_of(same) => Ok(Some(*same)),
            Some(other) => Err(Error::NotARepeat { first_offset: other.first_offset, count: other.count }),
        }
    }

    /// The producer, which is new in this epoch if it was known only in another; makes room if it was not known.
    pub(super) fn producer(&mut self, id: &str, epoch: u32, time: u64) -> &mut KnownProducer {
        self.changes += 1;
        if !self.producers.contains_key(id) && self.producers.len() >= MAX_PRODUCERS {
            let oldest =
                self.producers.iter().min_by_key(|(_, producer)| (producer.last_change, producer.used));
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.producers.remove(&oldest);
            }
        }
        let fresh = KnownProducer {
            epoch,
            batches: VecDeque::new(),
            batches_epoch: None,
            used: time,
            last_change: 0,
            mark: None,
        };
        let known = self.producers.entry(id.to_owned()).or_insert(fresh);
        known.used = known.used.max(time);
        known.last_change = self.changes;
        if epoch > known.epoch {
            known.batches_epoch.get_or_insert(known.epoch);
            known.epoch = epoch;
        }
        known
    }

    /// Begins the producer's next epoch, and returns which one it is; an error if it is in a later one than `after`.
    pub(super) fn next_epoch(&mut self, id: &str, after: Option<u32>, now: u64) -> Result<u32, Error> {
        let known = self.producers.get(id);
        if let Some(later) = known.filter(|known| after.is_some_and(|after| known.epoch > after)) {
            return Err(Error::ProducerOutOfOrder {
                expected_epoch: later.epoch,
                expected_sequence: later.next_sequence(),
            });
        }
        let known = known.map(|known| known.epoch.checked_add(1).ok_or(Error::EpochsUsedUp));
        let epoch = known.transpose()?.unwrap_or(0).max(first_epoch(now));
        self.producer(id, epoch, now);
        Ok(epoch)
    }

    /// Begins an epoch that was written to the file from a copy of the table. `state` is the producer's in that copy:
    /// it is used if the table has forgotten the producer meanwhile. If a batch has begun a higher epoch meanwhile,
    /// that one stays in force.
    pub(super) fn begin(
        &mut self,
        id: &str,
        epoch: u32,
        now: u64,
        state: Option<KnownProducer>,
    ) -> BegunEpoch {
        let forgotten = !self.producers.contains_key(id);
        let known = self.producer(id, epoch, now);
        if let Some(state) = state.filter(|_| forgotten) {
            *known = state;
        }
        BegunEpoch { epoch, ..known.begun() }
    }

    pub(super) fn note(&mut self, batch: &ProducerBatch<'_>, stored: StoredBatch, time: u64) {
        let known = self.producer(batch.id, batch.epoch, time);
        if known.batches_epoch.unwrap_or(known.epoch) != batch.epoch {
            known.batches.clear();
        }
        known.batches_epoch = Some(batch.epoch).filter(|&epoch| epoch != known.epoch);
        known.batches.push_back(stored);
        if known.batches.len() > MAX_REMEMBERED {
            known.batches.pop_front();
        }
        if let Some(text) = batch.mark {
            let next_offset = stored.first_offset + stored.count;
            known.mark = Some(Mark { next_offset, text: text.to_owned() });
        }
    }
}

impl KnownProducer {
    /// The last batches of the newest epoch.
    pub(super) fn current(&self) -> impl DoubleEndedIterator<Item = &StoredBatch> {
        self.batches.iter().filter(|_| self.batches_epoch.is_none())
    }

    /// The sequence of the next batch in the newest epoch.
    pub(super) fn next_sequence(&self) -> u64 {
        self.current().next_back().map_or(0, |last| last.sequence + 1)
    }

    pub(super) fn begun(&self) -> BegunEpoch {
        let earlier = self.batches_epoch.map(|epoch| (epoch, self.batches.iter().copied().collect()));
        let (mark, mark_end) = self.mark.as_ref().map(|mark| (mark.text.clone(), mark.next_offset)).unzip();
        BegunEpoch { epoch: self.epoch, mark, mark_end, earlier }
    }

    pub(super) fn state(&self) -> ProducerState {
        let last = self.current().next_back();
        ProducerState {
            epoch: self.epoch,
            last_sequence: last.map(|last| last.sequence),
            last_offset: last.map(|last| last.first_offset + last.count - 1),
            mark: self.mark.as_ref().map(|mark| mark.text.clone()),
        }
    }
}

/// A batch whose records are being read, to know its content.
pub(super) struct Unread {
    pub(super) id: String,
    pub(super) sequence: u64,
    pub(super) next: u64,
    pub(super) left: u64,
    pub(super) content: Content,
}

impl Unread {
    /// Adds the record at `offset` if it is the batch's next one. Returns whether there are more to come.
    pub(super) fn add(&mut self, record: &RecordRef<'_>, table: &mut Table) -> bool {
        if record.offset != self.next {
            return false; // some record could not be read
        }
        self.content.add(record.value, record.json);
        (self.next, self.left) = (self.next + 1, self.left.saturating_sub(1));
        if self.left == 0
            && let Some(known) = table.producers.get_mut(&self.id)
            && let Some(batch) = known.batches.back_mut()
            && batch.sequence == self.sequence
        {
            *batch = batch.with(self.content);
        }
        self.left > 0
    }
}
