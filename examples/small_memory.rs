//! A log that takes little memory, and a bounded part of the disk: `cargo run --no-default-features --example
//! small_memory [DIR]`. For a machine with some MiB to spare.

use millstream::{Error, Log, Options, Retention};
use std::path::PathBuf;

fn main() -> Result<(), Error> {
    let dir: PathBuf =
        std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("millstream-small"), Into::into);
    // Three segments and 1/7 more are the least; an append may take as much as a segment.
    let options = Options::default().with_segment_bytes(64 << 10).with_memory_bytes(256 << 10);
    let log = Log::open(&dir, options)?;
    let before = resident();
    for n in 0..200_000u32 {
        log.append(format!("{n}: a measured value").as_bytes())?; // waits while the disk is behind
        if n % 10_000 == 0 {
            log.retain(Retention::default().with_bytes(1 << 20))?;
        }
    }
    log.flush()?;
    let first = log.retain(Retention::default().with_bytes(1 << 20))?;
    let stats = log.stats();
    println!(
        "{} records, of which those from {first} on are kept: {} KiB on the disk, {} KiB of memory more than before",
        stats.next_offset,
        stats.disk_bytes >> 10,
        resident().saturating_sub(before) >> 10,
    );
    assert!(stats.disk_bytes < 2 << 20 && first > 0);
    log.close()
}

/// The bytes of memory of this process that are its own; 0 where the system does not say.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Vec<u64> = statm.split(' ').filter_map(|pages| pages.trim().parse().ok()).collect();
    pages.get(1..3).map_or(0, |pages| pages[0].saturating_sub(pages[1]) * 4096)
}
