//! How much of a segment the records of one request may take.

use super::problem::Problem;
use crate::{Code, chunk::record_needs};

/// How much of a segment records that are appended together may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentRoom {
    limit: u64,
    taken: u64,
}

impl SegmentRoom {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, taken: 0 }
    }

    pub(super) fn take(&mut self, needs: u64) -> Result<(), Problem> {
        self.taken = self.taken.saturating_add(needs);
        if self.taken <= self.limit {
            return Ok(());
        }
        let detail = format!(
            "the records of the body, with some {1} bytes for each, take more than the {0} bytes of a segment; send less at once",
            self.limit,
            record_needs(0)
        );
        Err(Problem::new(Code::RecordTooLarge, detail))
    }

    pub(super) fn record(&mut self, bytes: usize) -> Result<(), Problem> {
        self.take(record_needs(bytes))
    }
}
