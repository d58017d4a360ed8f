//! Millstream is a commit log: an append-only sequence of records, numbered 0, 1, 2, … without gaps.
//!
//! Any number of threads append at once without a lock, and readers never wait for them.
//! Records go to disk in groups, one write for all that has come; what was acknowledged as durable survives
//! `kill -9` and loss of power. [`Log`] is the place to begin.
//!
//! ```text
//! append ──▶ chunk (memory) ──▶ flusher ──▶ segment file ──▶ sealed, with index and footer
//!              │ published         │ durable                       │
//!              └───────────── read(offset), Reader ────────────────┘
//! ```
//!
//! With the default feature `server` there is also the HTTP endpoint of the `millstream` binary.

// Beyond what Cargo.toml says: tests may unwrap, and tell a long story in one function (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(test, allow(clippy::too_many_lines))]

#[cfg(any(feature = "client", feature = "server"))]
mod api;
mod chunk;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod code;
mod disk;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(feature = "server")]
pub mod http;
mod id;
#[cfg(any(feature = "client", feature = "store"))]
pub mod import;
#[cfg(any(feature = "client", feature = "store"))]
mod json;
mod log;
#[cfg(any(feature = "client", feature = "store"))]
mod name;
mod parallel;
mod pauses;
mod reports;
mod segment;
#[cfg(any(feature = "client", feature = "store"))]
mod settings;
#[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
mod sim;
#[cfg(any(feature = "client", feature = "server"))]
mod start;
#[cfg(feature = "store")]
pub mod store;
mod sync;
#[cfg(any(feature = "client", feature = "store"))]
#[cfg_attr(
    not(any(feature = "client", feature = "server")),
    allow(dead_code, clippy::elidable_lifetime_names, reason = "imports only read frames")
)]
mod wire;

#[cfg(any(feature = "client", feature = "server"))]
pub use code::Code;
pub use id::LogId;
pub use log::{
    AppendAsync, AppendDurable, Appender, Damage, Durability, Durable, Error, Histogram, Iter, Log, LogStats,
    MAX_SEGMENT_BYTES, Options, Payload, RECORD_EXTRA_BYTES, Reader, Record, RecordRef, Repaired, Report,
    Retention, Room, Scrubbed, Stats, Visible, repair, repair_with_progress, stats, verify,
    verify_with_progress,
};
#[cfg(any(feature = "client", feature = "store"))]
pub use log::{BATCH_EXTRA_BYTES, MAX_PRODUCER_MARK_BYTES};
#[cfg(feature = "store")]
pub use log::{
    BegunEpoch, Cursor, MAX_CURSORS_PER_LOG, MAX_PRODUCER_EPOCH, MAX_PRODUCER_ID_BYTES, Produced,
    ProducerBatch, ProducerState, StoredBatch, is_producer_id,
};
/// The name of [`BegunEpoch`] in earlier versions.
#[cfg(feature = "store")]
#[deprecated(note = "use `BegunEpoch`")]
pub type OpenedProducer = BegunEpoch;
/// The name of [`MAX_PRODUCER_EPOCH`] in earlier versions.
#[cfg(feature = "store")]
#[deprecated(note = "use `MAX_PRODUCER_EPOCH`")]
pub const PRODUCER_EPOCH_MAX: u32 = MAX_PRODUCER_EPOCH;
/// The name of [`MAX_CURSORS_PER_LOG`] in earlier versions.
#[cfg(feature = "store")]
#[deprecated(note = "use `MAX_CURSORS_PER_LOG`")]
pub const CURSORS_PER_LOG: usize = MAX_CURSORS_PER_LOG;
/// The name of [`MAX_PRODUCER_ID_BYTES`] in earlier versions.
#[cfg(feature = "store")]
#[deprecated(note = "use `MAX_PRODUCER_ID_BYTES`")]
pub const PRODUCER_ID_BYTES: usize = MAX_PRODUCER_ID_BYTES;
/// The name of [`MAX_PRODUCER_MARK_BYTES`] in earlier versions.
#[cfg(any(feature = "client", feature = "store"))]
#[deprecated(note = "use `MAX_PRODUCER_MARK_BYTES`")]
pub const PRODUCER_MARK_BYTES: usize = MAX_PRODUCER_MARK_BYTES;
