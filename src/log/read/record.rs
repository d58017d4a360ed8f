//! What is read: a record, what a reader lends of it, and what is known of it before.

use crate::{chunk::Chunk, sync::Arc};

/// A record, kept in memory as long as this value exists: a recent record by its chunk, without a copy.
#[derive(Clone)]
pub struct Record {
    pub(super) offset: u64,
    pub(super) time: u64,
    pub(super) json: bool,
    pub(super) lost: bool,
    pub(super) value: RecordSource,
}

/// Where a record's value is.
#[derive(Clone)]
pub(super) enum RecordSource {
    Hot(Arc<Chunk>, u32),
    Cold(Vec<u8>),
}

impl Record {
    /// The record's offset.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When the record was appended, in milliseconds since 1970. The clock is read once for
    /// each commit, so it may be as old as the commit before. Times of records
    /// that different threads append at the same moment may be slightly out of order; and times go back if the clock is
    /// set back by more than 5 s.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Whether the record was appended as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether the record was lost to damage, and [`repair`](crate::repair) has marked it so. Then its value is empty, and
    /// its time is that of the record before it in its segment.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The bytes that were appended.
    pub fn value(&self) -> &[u8] {
        match &self.value {
            RecordSource::Hot(chunk, record) => chunk.frame(*record).map_or(&[], |frame| frame.value),
            RecordSource::Cold(value) => value,
        }
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offset, time, .. } = self;
        f.debug_struct("Record")
            .field("offset", offset)
            .field("time", time)
            .field("value", &self.value())
            .finish()
    }
}

/// A record that a [`Reader`](super::Reader) lends until it reads the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The record's offset.
    pub offset: u64,
    /// See [`Record::time`].
    pub time: u64,
    /// Whether the record was appended as JSON.
    pub json: bool,
    /// See [`Record::is_lost`].
    pub lost: bool,
    /// The bytes that were appended.
    pub value: &'a [u8],
    /// The extension block that a producer has put before the value.
    pub(crate) extension: &'a [u8],
}

#[cfg(all(test, feature = "server"))]
impl<'a> RecordRef<'a> {
    pub(crate) fn new(offset: u64, time: u64, json: bool, value: &'a [u8]) -> Self {
        Self { offset, time, json, lost: false, value, extension: &[] }
    }
}

/// What is known of a record before it is read. None of it is verified.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "the server asks"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Whether the record is in memory.
    pub(crate) hot: bool,
    /// The bytes that are read from the disk for it: those of its frame, or of all frames of its segment if it must be
    /// searched for. 0 if it is in memory, or known to be damaged.
    pub(crate) cold_bytes: usize,
    /// What its header says; `None` if that is unclear, or the record is damaged.
    pub(crate) head: Option<Head>,
}

/// A record without its value.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "the server asks"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) time: u64,
    pub(crate) json: bool,
    /// See [`Record::is_lost`].
    pub(crate) lost: bool,
    /// The length of the value in bytes.
    pub(crate) length: usize,
}

#[cfg(feature = "server")]
impl Ahead {
    /// The most bytes that the value can have.
    pub(crate) fn length(&self) -> usize {
        self.head.map_or(self.cold_bytes, |head| head.length)
    }
}

#[cfg(feature = "server")]
impl RecordRef<'_> {
    pub(crate) fn head(&self) -> Head {
        Head { time: self.time, json: self.json, lost: self.lost, length: self.value.len() }
    }
}

#[cfg(feature = "server")]
impl Record {
    pub(crate) fn head(&self) -> Head {
        Head { time: self.time, json: self.json, lost: self.lost, length: self.value().len() }
    }
}

/// What a reader finds: the record, and its chunk if it is a recent one.
pub(super) struct Step<'a> {
    pub(super) record: RecordRef<'a>,
    pub(super) hot: Option<(&'a Arc<Chunk>, u32)>,
}

impl Step<'_> {
    /// The record as a value of its own; a recent one is not copied.
    pub(super) fn into_record(self) -> Record {
        let Step { record: RecordRef { offset, time, json, lost, value, .. }, hot } = self;
        let value = hot.map_or_else(
            || RecordSource::Cold(value.to_vec()),
            |(chunk, record)| RecordSource::Hot(Arc::clone(chunk), record),
        );
        Record { offset, time, json, lost, value }
    }
}
