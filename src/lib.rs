//! Millstream is a commit log: an append-only sequence of records, numbered 0, 1, 2, … without gaps.
//!
//! Any number of threads append at once, and none ever holds a lock that another waits for; readers never block.
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

mod chunk;
mod disk;
mod frame;
#[cfg(feature = "server")]
pub mod http;
mod log;
mod segment;
mod sync;

pub use log::{
    Appender, Damage, Durability, Durable, Error, Iter, Log, Options, Reader, Record, RecordRef, Repaired,
    Report, Room, Visible, repair, verify,
};
