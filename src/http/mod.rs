//! The HTTP endpoint: thin adapters over a store of logs. They parse, call and render; the request's own task
//! appends.
//!
//! `server` listens and enforces limits, `router` finds what a request is for and has what all requests need;
//! `book` is the API of the book, `logs` and `records` are `/v1/logs`, `tail` is the live end of a log. `body`,
//! `params` and `formats` take requests apart, `metrics` counts, `commit` waits for durability once per runtime and commit, `problem`
//! is how errors look.

mod body;
mod book;
mod commit;
mod feed;
mod formats;
mod logs;
mod metrics;
mod params;
mod problem;
mod records;
mod router;
mod server;
mod tail;

pub use server::{Server, Settings};
