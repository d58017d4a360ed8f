//! Tests that cannot do here what they are for.

use std::{fmt::Display, io::Write};

/// Says that a test, or a part of it, is skipped, and why: on the process's own standard error, because what goes through
/// `println!` and `eprintln!` is only shown of tests that fail.
pub fn skipped(why: impl Display) {
    let _ = writeln!(std::io::stderr(), "\n!! SKIPPED: {why}");
}
