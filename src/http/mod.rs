//! The HTTP endpoint: a thin adapter over one log. It parses, calls and renders; the request's own task appends.
//!
//! `server` listens and enforces limits, `router` finds what a request is for, `book` answers it, `commit` waits
//! for durability once per runtime and commit, `problem` is how errors look.

mod body;
mod book;
mod commit;
mod problem;
mod router;
mod server;

pub use server::{Server, Settings};
