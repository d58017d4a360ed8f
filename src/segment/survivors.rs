//! Where the records of a segment are, some of which are lost.

/// The word of each record, or that it is lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Survivors(Vec<u32>); // word plus one, 0 if lost: half the size of an Option

impl Survivors {
    /// All of these records, at these words.
    pub(crate) fn all(words: &[u32]) -> Self {
        Self(words.iter().map(|word| word + 1).collect())
    }

    /// So many records, all of them lost.
    pub(crate) fn none(records: u32) -> Self {
        Self(vec![0; records as usize])
    }

    /// The number of records, also those that are lost.
    pub(crate) fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// Where a record is; `None` if it is lost, or beyond the end.
    pub(crate) fn get(&self, record: u32) -> Option<u32> {
        self.0.get(record as usize)?.checked_sub(1)
    }

    /// Whether the last record is lost.
    pub(crate) fn end_is_lost(&self) -> bool {
        self.0.last() == Some(&0)
    }

    /// A record is at this word. Nothing happens if there is no such record.
    pub(crate) fn set(&mut self, record: u32, word: u32) {
        if let Some(at) = self.0.get_mut(record as usize) {
            *at = word + 1;
        }
    }

    /// There are as many records as this; those that were not there are lost.
    pub(crate) fn extend_to(&mut self, records: u32) {
        self.0.resize(records as usize, 0);
    }

    /// Where each record is, in order; `None` for those that are lost.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Option<u32>> {
        self.0.iter().map(|at| at.checked_sub(1))
    }
}
