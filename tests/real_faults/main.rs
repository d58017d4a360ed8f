//! Real faults on real file systems: SIGKILL under load, disks that fill up and grow, files that are damaged while they
//! are open, limits that are reached. What each log must contain afterwards is known on the clients' side.
//!
//! Each test takes a second or a few; `MILLSTREAM_FAULT_SECONDS=600 cargo test --release --test real_faults` runs each
//! for that long. A test that needs root or a missing tool is skipped, with a line that begins with `!! SKIPPED`.

#![allow(clippy::too_many_lines)] // each tells one story
#![cfg(target_os = "linux")]

mod files;
mod full;
mod kill;
mod limits;
mod load;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

/// How long each test may start over.
fn lasting() -> Duration {
    let seconds = std::env::var("MILLSTREAM_FAULT_SECONDS").map_or(1, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}
