//! The records of a range as an iterator. From the end backward, a stretch of records is read ahead in order, so that each
//! record is read once.

use super::{
    Reader,
    cold::READ_BYTES,
    record::{Record, Step},
};
use crate::{log::Error, sync::Arc};
use std::collections::VecDeque;

/// The records of a range, from both ends; see [`Log::iter_range`](crate::Log::iter_range).
pub struct Iter {
    reader: Reader,
    end: u64,
    back: Option<Box<Back>>,
}

impl Iter {
    pub(in crate::log) fn new(reader: Reader, end: u64) -> Self {
        Self { reader, end, back: None }
    }
}

/// The most records, and bytes of values, of a stretch that is read ahead of a backward iteration.
const STRETCH: (u64, usize) = (256, READ_BYTES);

/// What a backward iteration has read ahead, in order.
struct Back {
    reader: Reader,
    stretch: VecDeque<(u64, Result<Record, Error>)>,
    /// How many records are read at once: the larger they are, the fewer.
    records: u64,
}

impl Back {
    /// Reads the records before `end`, but none before `from`: at least one, or what keeps it from being read.
    fn read(&mut self, from: u64, end: u64) {
        let mut bytes = self.begin(from, end);
        while self.reader.next < end {
            let offset = self.reader.next;
            let read = self.reader.step().map(|step| step.map(Step::into_record)).transpose();
            let Some(read) = read else { break };
            match read {
                // Trimmed meanwhile: what is left is read. What was read before would have a gap after it.
                Err(Error::Trimmed { first, .. }) if first > offset && first < end => {
                    self.stretch.clear();
                    bytes = 0;
                    self.reader.seek(first);
                }
                // It ends the iteration, but those after it come first.
                Err(ref error) if !matches!(error, Error::Damaged { .. }) => {
                    self.stretch.clear();
                    bytes = 0;
                    self.stretch.push_back((offset, read));
                    self.reader.seek(offset + 1);
                }
                read => {
                    bytes += read.as_ref().map_or(0, |record| record.value().len());
                    self.stretch.push_back((offset, read));
                }
            }
            if bytes > STRETCH.1 && self.records > 1 && self.reader.next < end {
                // Larger than those after them: begin again, with fewer.
                self.records = self.records.div_ceil(4);
                bytes = self.begin(from, end);
            }
        }
        let read = self.stretch.len() as u64;
        self.records = if bytes > STRETCH.1 / 2 { read.div_ceil(2) } else { (2 * read).clamp(1, STRETCH.0) };
    }

    /// Begins to read a stretch; returns how many bytes it has.
    fn begin(&mut self, from: u64, end: u64) -> usize {
        self.stretch.clear();
        self.reader.seek(end.saturating_sub(self.records).max(from));
        0
    }
}

impl DoubleEndedIterator for Iter {
    /// Returns the last record that was not returned yet. After [`Error::Damaged`] comes the record before the damaged one;
    /// after any other error, nothing. So it is with [`Error::Trimmed`], which says where the log begins.
    fn next_back(&mut self) -> Option<Self::Item> {
        let from = self.reader.next;
        if from >= self.end {
            return None;
        }
        let back = self.back.get_or_insert_with(|| {
            let reader = Reader::new(Arc::clone(&self.reader.shared), from);
            Box::new(Back { reader, stretch: VecDeque::new(), records: 1 })
        });
        if back.stretch.is_empty() {
            back.read(from, self.end);
        }
        let (offset, read) = back.stretch.pop_back()?;
        self.end = offset;
        if read.as_ref().is_err_and(|error| !matches!(error, Error::Damaged { .. })) {
            self.end = 0;
        }
        Some(read)
    }
}

impl Iterator for Iter {
    type Item = Result<Record, Error>;

    /// Returns the next record. After [`Error::Damaged`] comes the record after the damaged one; after any other error,
    /// nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.next >= self.end {
            return None;
        }
        let step = self.reader.step();
        if step.as_ref().is_err_and(|error| !matches!(error, Error::Damaged { .. })) {
            self.end = 0;
        }
        step.transpose().map(|step| step.map(Step::into_record))
    }
}
