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
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod code;
mod disk;
mod frame;
#[cfg(feature = "server")]
pub mod http;
mod id;
mod log;
mod segment;
#[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
mod sim;
#[cfg(feature = "store")]
pub mod store;
mod sync;
#[cfg(any(feature = "client", feature = "server"))]
mod wire;

/// Ways in for `fuzz/`; not part of the library.
#[cfg(fuzzing)]
pub mod fuzzing {
    #[cfg(feature = "server")]
    pub use crate::http::fuzz_body as body;
    #[cfg(feature = "store")]
    pub use crate::log::checksum_of_producers;
    #[cfg(feature = "store")]
    pub use crate::sim::fuzz as simulation;

    /// Any bytes decode to nothing, or to what encodes to just them.
    pub fn frame(seed: u32, bytes: &[u8]) {
        use crate::frame::{Key, WORD, decode, encode, words};
        let key = Key::test(seed);
        if let Some(found) = decode(bytes, key) {
            let mut again = vec![0xAA; found.frame.words() as usize * WORD];
            encode(&mut again, key, found.stamp(), found.frame.body);
            assert_eq!(again, bytes[..again.len()]);
        }
        // Frames that this process wrote are read without checking: bytes that are none must not panic either.
        let _ = crate::frame::parse(bytes);
        // And each value comes back.
        let stamp = crate::frame::Stamp { record: seed, behind: 1, time: 2, flags: 0 };
        let mut frame = vec![0; words(bytes.len()) as usize * WORD];
        encode(&mut frame, key, stamp, bytes);
        assert!(
            decode(&frame, key).is_some_and(|found| found.frame.value == bytes && found.stamp() == stamp)
        );
    }
}

#[cfg(any(feature = "client", feature = "server"))]
pub use code::Code;
pub use id::LogId;
pub use log::{
    Appender, Buckets, Damage, Durability, Durable, Error, Iter, Log, Options, Payload, Reader, Record,
    RecordRef, Repaired, Report, Room, Stats, Visible, repair, repair_with_progress, stats, verify,
    verify_with_progress,
};
#[cfg(feature = "store")]
pub use log::{PRODUCER_ID_BYTES, Produced, ProducerBatch};
