//! The program as its users see it: over HTTP, by its commands, and by the client. All in one, because each test mostly
//! waits, and those of different subjects can wait at the same time.

#![allow(clippy::too_many_lines)] // each tells one story

#[path = "../support/mod.rs"]
mod support;

mod appending;
mod bench;
mod client;
mod command_line;
mod cursors;
mod damaged;
mod endpoint;
mod failures;
mod killed;
mod openapi;
mod races;
mod readme;
mod records;
mod scrub;
mod sessions;
mod shippers;
mod verbs;
