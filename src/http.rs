//! The HTTP endpoint: thin adapters over a store of logs. They parse, call and render; the request's own task appends.
//!
//! `server` listens, `serve` drives each connection, `connection` keeps it within its limits, `guard` refuses what browsers send on behalf
//! of other pages, `router` dispatches requests and does what is common to all of them; `book` is the API of the book,
//! `logs`, `records` and `producers` are `/v1/logs`, `tail` is the live end of a log, and `feed` is what its readers share. `fetch`
//! is how everything is read that comes from the disk or is large, and `permits` hands out the permits for that. `body`,
//! `params` and `formats` parse requests, within the budget of `memory`; `metrics` counts, `commit` waits for
//! durability once per runtime and commit, `problem` defines what errors look like.

mod answer;
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
mod log_permits;
mod logs;
mod memory;
mod meter;
mod metrics;
mod object;
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
mod settings;
mod socket;
mod tail;
mod unsent;
mod waited;

pub use formats::record_json;
pub use params::{TIMES, parse_time};
pub use server::Server;
pub use settings::Settings;
