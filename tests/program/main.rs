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

use std::{
    io::Write,
    process::{Output, Stdio},
};
use support::{Server, program};

/// Runs the program with this on its standard input.
fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = program::millstream();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|threads| {
        threads.spawn(move || drop(stdin.write_all(input))); // it may not read all
        child.wait_with_output().unwrap()
    })
}

/// Runs a test with a server, and with a directory: it gets the flags that say which.
fn in_both(test: impl Fn(&[&str])) {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    for at in [["--url", &server.address], ["--data", directory.path().to_str().unwrap()]] {
        test(&at);
    }
}
