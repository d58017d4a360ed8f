//! Limits of what a log keeps beside its records. They are here, and not where they are kept, because the texts of errors
//! name them, which exist without the feature `store` too.

/// The most cursors of a log.
pub const CURSORS_PER_LOG: usize = 1000;
/// The longest id of a producer, in bytes.
pub const PRODUCER_ID_BYTES: usize = 64;
/// The longest mark of a producer, in bytes.
pub const PRODUCER_MARK_BYTES: usize = 128;
/// The highest epoch that a batch may begin by naming it. Higher ones begin only with `Log::begin_epoch`: so, whatever
/// epoch a client names, 2,147,483,648 are left for that. A producer's first epoch is the number of seconds since 2020,
/// which reaches this one in 2088.
pub const MAX_PRODUCER_EPOCH: u32 = u32::MAX >> 1;
