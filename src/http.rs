//! The HTTP endpoint: thin adapters over a store of logs. They parse, call and render; the request's own task appends.
//!
//! A request's way is `server`, `serve`, `connection`, `router`, and the file of its resource. What each file is for has a
//! line in `docs/architecture.md`.

mod accept;
mod answer;
mod appending;
mod body;
mod book;
mod commit;
mod connection;
mod context;
mod cursors;
mod effort;
mod feed;
mod fetch;
mod follow;
mod formats;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod guard;
mod headers;
mod log_permits;
mod logs;
mod memory;
mod meter;
mod metrics;
mod object;
mod offload;
#[cfg(test)]
mod panics;
mod params;
mod permits;
mod place;
mod problem;
mod producers;
mod range;
mod reading;
mod records;
mod router;
mod segment_room;
mod serve;
mod server;
mod session;
mod settings;
mod share;
mod socket;
mod tail;
mod unparsed;
mod unsent;
mod upload;
mod waited;

// For the commands of the binary, which write and read the same: not for other programs.
#[doc(hidden)]
pub use formats::{lost_json, record_json};
#[doc(hidden)]
pub use params::{TIMES, parse_time};
pub use server::Server;
pub use settings::Settings;
