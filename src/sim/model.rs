//! What the simulation knows about a log: what was appended, which of it must be there, and which may be.

use super::cursors::KnownCursors;
use crate::{LogId, Payload, store::LogSettings};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hasher},
};

/// A record, as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rec {
    pub(super) hash: u64,
    pub(super) length: usize,
    /// Whether it is the last of its batch.
    pub(super) last: bool,
}

impl Rec {
    pub(super) fn of(value: &[u8], json: bool, last: bool) -> Self {
        let mut hasher = DefaultHasher::new(); // its keys are always the same
        hasher.write(value);
        hasher.write_u8(json.into());
        Self { hash: hasher.finish(), length: value.len(), last }
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        (self.hash, self.length) == (other.hash, other.length)
    }
}

/// A stored batch of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) producer: usize,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) first: u64,
    pub(super) count: u64,
    /// Whether it has a mark, which is [`mark`](Self::mark).
    pub(super) marked: bool,
}

impl Sent {
    pub(super) fn mark(&self) -> String {
        format!("{}/{}", self.epoch, self.sequence)
    }
}

/// Another end of a log: its records from an offset on, and the producers' batches among them.
#[derive(Debug, Clone)]
pub(super) struct Ghost {
    at: u64,
    records: Vec<Rec>,
    sent: Vec<Sent>,
}

/// One log.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools)] // each by itself
pub(super) struct KnownLog {
    pub(super) settings: LogSettings,
    pub(super) id: Option<LogId>,
    /// Every record that was appended, from offset 0 on.
    pub(super) records: Vec<Rec>,
    /// Everything below this is on the disk: a reader has seen it, a caller was told so, or it was found there.
    pub(super) durable: u64,
    /// Everything below this survives the process, if the next one sees its backings.
    pub(super) memory: u64,
    /// What is missing below this is kept aside: it was in memory that was harmed.
    pub(super) told_of: u64,
    /// Whether such memory may still be there. What it has whole comes back when the log is repaired.
    pub(super) harmed_memory: bool,
    /// How many segments of the open log have begun without a backing that they should have.
    pub(super) lacked: u64,
    /// How many may.
    pub(super) may_lack: u64,
    /// Other ends of the log, each from an offset on, of processes whose backings a later one has not seen. They may
    /// come back as long as the disk has nothing else at their offsets.
    pub(super) ghosts: Vec<Ghost>,
    /// Whether the power has failed since, or the log is a copy, so that they are on the disk or nowhere.
    pub(super) wiped: bool,
    /// The least that the first offset can be, because a trim was acknowledged.
    pub(super) trimmed: u64,
    /// The most that it can be.
    pub(super) may_trim: u64,
    /// Offsets of records that were damaged on purpose, so that the log is not to blame.
    pub(super) lost: BTreeSet<u64>,
    /// A bit of a segment was flipped: an index that is wrong may not have been noticed.
    pub(super) flipped: bool,
    /// The producers file was damaged: what the log itself does not say about producers is unknown.
    pub(super) forget_producers: bool,
    /// Producers of which it is not known what the log says about them.
    pub(super) vague: BTreeSet<usize>,
    pub(super) cursors: KnownCursors,
    /// The newest epoch that a producer was given.
    pub(super) begun: BTreeMap<usize, u32>,
    /// The stored batches, in the order in which they came.
    pub(super) sent: Vec<Sent>,
    /// Whether it is certain that the log exists.
    pub(super) certain: bool,
    /// Not to be used any more in this generation, because an operation on it has failed.
    pub(super) failed: bool,
    /// Whether the present process, or else the last one, has had it open.
    pub(super) was_open: bool,
}

/// How many batches of a producer are remembered.
pub(super) const MAX_REMEMBERED: usize = 5;

impl KnownLog {
    pub(super) fn new(settings: LogSettings) -> Self {
        Self { settings, may_lack: u64::MAX, ..Self::default() }
    }

    pub(super) fn next(&self) -> u64 {
        self.records.len() as u64
    }

    pub(super) fn append(&mut self, first: u64, values: &[Payload<'_>]) {
        assert_eq!(first, self.next(), "an offset that is not the next one");
        let last = values.len() - 1;
        self.records
            .extend(values.iter().enumerate().map(|(n, value)| Rec::of(value.bytes, value.json, n == last)));
    }

    /// Whether this offset is the end of a batch, or 0.
    pub(super) fn is_boundary(&self, offset: u64) -> bool {
        offset == 0 || self.records[offset as usize - 1].last
    }

    /// Where the log may end at the most: a log that was opened without room shows what is durable, and has the rest again
    /// when it is opened with room.
    pub(super) fn furthest(&self) -> u64 {
        let ends = self.ghosts.iter().map(|ghost| ghost.at + ghost.records.len() as u64);
        ends.fold(self.next(), u64::max)
    }

    /// Whether the log may have these values as its records from `first` on.
    fn may_be(&self, first: u64, values: &[Option<Rec>]) -> bool {
        let same = |expected: &Rec, found: &Option<Rec>| found.is_none_or(|found| found.same(expected));
        let next = first as usize + values.len();
        next <= self.records.len()
            && self.is_boundary(next as u64)
            && self.records[first as usize..next]
                .iter()
                .zip(values)
                .all(|(expected, found)| same(expected, found))
    }

    /// Adopts another end of the log, if that is what was found instead of the expected one. If it may be either,
    /// because their values are the same, it is not known what their producers have sent.
    pub(super) fn recognise(&mut self, first: u64, values: &[Option<Rec>]) {
        let expected = self.may_be(first, values);
        // An end that branches off another one, after the point where that left this one, does not belong to this one.
        let of_it = |ghost: &&Ghost| self.durable <= ghost.at && ghost.at <= self.records.len() as u64;
        for ghost in self.ghosts.iter().filter(of_it) {
            let records = [&self.records[..ghost.at as usize], &ghost.records].concat();
            let before = self.sent.iter().filter(|sent| sent.first < ghost.at);
            let sent = before.chain(&ghost.sent).copied().collect();
            let other = Self { records, sent, ..self.clone() };
            if !other.may_be(first, values) {
                continue;
            }
            if !expected {
                (self.records, self.sent) = (other.records, other.sent);
                return;
            }
            let either = self.sent.iter().filter(|sent| sent.first >= ghost.at).chain(&ghost.sent);
            self.vague.extend(either.map(|sent| sent.producer));
        }
    }

    /// Asserts that these values, from `first` on, are a log that ends between two batches.
    pub(super) fn compare(&self, place: &str, first: u64, values: &[Option<Rec>]) {
        let (next, appended) = (first + values.len() as u64, self.next());
        assert!(next <= appended, "{place}: ends at {next}, and {appended} were appended");
        assert!(self.is_boundary(next), "{place}: ends at {next}, in the middle of a batch");
        for (value, offset) in values.iter().zip(first..) {
            let expected = &self.records[offset as usize];
            let Some(value) = value else {
                assert!(self.lost.contains(&offset), "{place}: offset {offset} is damaged");
                continue;
            };
            assert!(
                value.same(expected),
                "{place}: offset {offset} has another value, of {} bytes instead of {}",
                value.length,
                expected.length
            );
        }
    }

    /// Adopts the end of the log that was found, and asserts that all values that could be read, from `first` on, are those
    /// that were appended. Returns the offsets of the others, except those that are known to be lost.
    pub(super) fn recognise_all(&mut self, place: &str, first: u64, values: &[Option<Rec>]) -> Vec<u64> {
        self.recognise(first, values);
        let (next, appended) = (first + values.len() as u64, self.next());
        assert!(next <= appended, "{place}: ends at {next}, and {appended} were appended");
        let mut lost = Vec::new();
        for (value, offset) in values.iter().zip(first..) {
            match value {
                Some(value) => {
                    let expected = &self.records[offset as usize];
                    assert!(value.same(expected), "{place}: offset {offset} has another value");
                }
                None if self.lost.contains(&offset) => {}
                None => lost.push(offset),
            }
        }
        lost
    }

    /// Asserts that the log ends at `floor` or later, and begins where it may have been trimmed to.
    pub(super) fn check_ends(&self, place: &str, first: u64, next: u64, floor: u64) {
        assert!(next >= floor, "{place}: ends at {next}, and {floor} were acknowledged");
        let trimmed = self.trimmed..=self.may_trim.max(self.trimmed);
        assert!(trimmed.contains(&first), "{place}: starts at {first}, and was trimmed to {trimmed:?}");
    }

    /// What is only in memory does not survive.
    pub(super) fn forget_memory(&mut self) {
        self.memory = self.durable;
    }

    /// It is no longer known what the log says about the producers of these batches.
    pub(super) fn doubt_producers(&mut self, of: impl Fn(&Sent) -> bool) {
        self.vague.extend(self.sent.iter().filter(|sent| of(sent)).map(|sent| sent.producer));
    }

    /// Notes which records were found after opening; all of them are durable now.
    pub(super) fn note_found(&mut self, first: u64, next: u64, backings: bool) {
        let rest = self.records.split_off(next as usize);
        // Without backings, a later process may find what an earlier one had in memory.
        let sent: Vec<Sent> = self.sent.iter().filter(|sent| sent.first >= next).copied().collect();
        let wiped = std::mem::take(&mut self.wiped);
        self.harmed_memory &= !wiped;
        let stays = !backings || self.harmed_memory;
        self.ghosts.retain(|ghost| ghost.at >= next && stays && !wiped);
        if stays && !rest.is_empty() {
            // With it, others that branch off it may come back as well.
            let further = |ghost: &&Ghost| ghost.at > next && ghost.at <= next + rest.len() as u64;
            let on_it = self.ghosts.iter().filter(further).map(|ghost| Ghost {
                at: next,
                records: [&rest[..(ghost.at - next) as usize], &ghost.records].concat(),
                sent: sent
                    .iter()
                    .filter(|sent: &&Sent| sent.first < ghost.at)
                    .chain(&ghost.sent)
                    .copied()
                    .collect(),
            });
            let on_it: Vec<_> = on_it.collect();
            self.ghosts.extend(on_it);
            self.ghosts.push(Ghost { at: next, records: rest, sent });
        }
        (self.durable, self.memory, self.told_of) = (next, next, 0);
        // A power failure may undo a trim that was not acknowledged.
        self.may_trim = first;
        self.lost.retain(|offset| *offset < next);
        self.sent.retain(|sent| sent.first < next);
        if std::mem::take(&mut self.forget_producers) {
            // A producer whose last batches are not all in the log may be known in part, or not at all.
            let trimmed = self.sent.iter().filter(|sent| sent.first < first).map(|sent| sent.producer);
            self.vague.extend(trimmed.collect::<Vec<_>>());
            // Nor is an epoch known in which nothing was sent.
            self.vague.extend(self.begun.keys());
        }
    }

    /// What is known about a producer: its epoch, and the batches that are remembered.
    pub(super) fn producer(&self, producer: usize) -> (Option<u32>, Vec<Sent>) {
        let all: Vec<_> = self.sent.iter().filter(|sent| sent.producer == producer).copied().collect();
        let epoch = all.last().map(|sent| sent.epoch).max(self.begun.get(&producer).copied());
        let mut last: Vec<_> = all.into_iter().filter(|sent| Some(sent.epoch) == epoch).collect();
        if last.len() > MAX_REMEMBERED {
            last.drain(..last.len() - MAX_REMEMBERED);
        }
        (epoch, last)
    }

    /// The epoch of a producer's last batches, and where they are.
    pub(super) fn earlier(&self, producer: usize) -> Option<(u32, Vec<u64>)> {
        let all = self.sent.iter().filter(|sent| sent.producer == producer);
        let epoch = all.clone().next_back()?.epoch;
        let last: Vec<_> = all.filter(|sent| sent.epoch == epoch).map(|sent| sent.first).collect();
        Some((epoch, last[last.len().saturating_sub(MAX_REMEMBERED)..].to_vec()))
    }

    /// The newest mark of a producer.
    pub(super) fn mark(&self, producer: usize) -> Option<String> {
        let marked = self.sent.iter().rev().find(|sent| sent.producer == producer && sent.marked);
        marked.map(Sent::mark)
    }
}
