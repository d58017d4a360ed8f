//! Where the records of a segment are, some of which are missing: no frame of theirs verifies.

use std::ops::Range;

/// The word of each record, or that it is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Survivors(Vec<u32>); // word plus one, 0 if missing: half the size of an Option

impl Survivors {
    /// All of these records, at these words.
    pub(crate) fn all(words: &[u32]) -> Self {
        Self(words.iter().map(|word| word + 1).collect())
    }

    /// `records` records, all of them missing.
    pub(crate) fn none(records: u32) -> Self {
        Self(vec![0; records as usize])
    }

    /// The number of records, also those that are missing.
    pub(crate) fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// Where a record is; `None` if it is missing, or beyond the end.
    pub(crate) fn get(&self, record: u32) -> Option<u32> {
        self.0.get(record as usize)?.checked_sub(1)
    }

    /// The first record from `record` on that is not missing.
    pub(crate) fn next(&self, record: u32) -> Option<u32> {
        let rest = self.0.get(record as usize..)?;
        rest.iter().position(|at| *at != 0).map(|skipped| record + skipped as u32)
    }

    /// The runs of records that are missing.
    pub(crate) fn missing(&self) -> Vec<Range<u32>> {
        let mut missing: Vec<Range<u32>> = Vec::new();
        for (record, _) in (0..).zip(&self.0).filter(|(_, at)| **at == 0) {
            match missing.last_mut().filter(|run| run.end == record) {
                Some(run) => run.end += 1,
                None => missing.push(record..record + 1),
            }
        }
        missing
    }

    /// Whether the last record is missing.
    pub(crate) fn end_is_missing(&self) -> bool {
        self.0.last() == Some(&0)
    }

    /// A record is at this word. Nothing happens if there is no such record.
    pub(crate) fn set(&mut self, record: u32, word: u32) {
        if let Some(at) = self.0.get_mut(record as usize) {
            *at = word + 1;
        }
    }

    /// There are as many records as this; those that were not there are missing.
    pub(crate) fn extend_to(&mut self, records: u32) {
        self.0.resize(records as usize, 0);
    }

    /// Where each record is, in order; `None` for those that are missing.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Option<u32>> {
        self.0.iter().map(|at| at.checked_sub(1))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn records_are_where_they_were_put_or_missing() {
        let mut survivors = Survivors::all(&[0, 7]);
        survivors.extend_to(5);
        survivors.set(3, 30);
        survivors.set(5, 50); // there is no such record
        assert_eq!(survivors.iter().collect::<Vec<_>>(), [Some(0), Some(7), None, Some(30), None]);
        assert_eq!(survivors.missing(), [2..3, 4..5]);
        assert_eq!(
            (survivors.len(), survivors.get(3), survivors.get(4), survivors.get(9)),
            (5, Some(30), None, None)
        );
        let next: Vec<_> = (0..7).map(|record| survivors.next(record)).collect();
        assert_eq!(next, [Some(0), Some(1), Some(3), Some(3), None, None, None]);
        assert!(survivors.end_is_missing() && !Survivors::all(&[0]).end_is_missing());
        assert_eq!(Survivors::none(3).missing(), std::slice::from_ref(&(0..3)));
    }
}
