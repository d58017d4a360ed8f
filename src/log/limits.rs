//! Limits of segments, and of what a log keeps beside its records. They are here, and not where they are kept, because the
//! texts of errors name them, which exist without the feature `store` too, and the client needs some.

use crate::{chunk, frame::WORD};
use std::ops::RangeInclusive;

/// The largest segment, in bytes.
pub const MAX_SEGMENT_BYTES: u64 = chunk::MAX_CAPACITY;
/// What a record takes in a segment beside the bytes of its value: at least, and at most.
pub const RECORD_EXTRA_BYTES: RangeInclusive<u64> =
    chunk::record_needs(0)..=chunk::record_needs(0) + WORD as u64 - 1;
/// What a producer's batch takes in a segment beside its records, at most.
#[cfg(any(feature = "client", feature = "store"))]
pub const BATCH_EXTRA_BYTES: u64 = 256;

/// The most cursors of a log.
pub const MAX_CURSORS_PER_LOG: usize = 1000;
/// The longest id of a producer, in bytes.
pub const MAX_PRODUCER_ID_BYTES: usize = 64;
/// The longest mark of a producer, in bytes.
pub const MAX_PRODUCER_MARK_BYTES: usize = 128;
/// The highest epoch that a batch may begin by naming it. Higher ones begin only with `Log::begin_epoch`: so, whatever
/// epoch a client names, 2,147,483,648 are left for that. A producer's first epoch is the number of seconds since 2020,
/// which reaches this one in 2088.
pub const MAX_PRODUCER_EPOCH: u32 = u32::MAX >> 1;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_no_more_and_no_less_beside_its_value() {
        let extra = |bytes: usize| chunk::record_needs(bytes) - bytes as u64;
        let all: Vec<_> = (0..1000).map(extra).collect();
        let (least, max) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
        assert_eq!(least..=max, RECORD_EXTRA_BYTES);
    }
}
