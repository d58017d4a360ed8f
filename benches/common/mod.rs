//! What the benches share: the sizes, the floor, and logs to measure on.

#![allow(dead_code, reason = "each bench uses its part")]

#[path = "../../tests/support/shm.rs"]
pub mod shm;

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use millstream::{Log, Options};
use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

pub const SIZES: [usize; 2] = [100, 1024];

/// The bytes that a record of `size` takes with its header, in whole words.
pub fn frame_bytes(size: usize) -> usize {
    24 + size.next_multiple_of(8)
}

/// The directory to measure in: `MILLSTREAM_BENCH_DIR`, or the one for build output, which is on a real disk, while
/// `/tmp` may be memory.
pub fn dir() -> tempfile::TempDir {
    let place = std::env::var("MILLSTREAM_BENCH_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").into());
    tempfile::tempdir_in(place).unwrap()
}

pub fn open(dir: &Path) -> Log {
    let options = Options {
        first_segment_bytes: 64 << 20,
        memory_bytes: 1 << 30,
        shm_dir: Some(shm::dir().to_owned()),
        ..Options::default()
    };
    Log::open(dir, options).unwrap()
}

pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

/// The floor of an append: copy the value into warm memory and checksum it, `times` times, without any log.
pub fn copy_and_checksum(value: &[u8], times: u64) -> Duration {
    let frame = frame_bytes(value.len());
    let mut memory = vec![1u8; 64 << 20];
    let mut at = 0;
    let begun = Instant::now();
    for _ in 0..times {
        if at + frame > memory.len() {
            at = 0;
        }
        let place = &mut memory[at..at + frame];
        place[24..24 + value.len()].copy_from_slice(value);
        let crc = crc32c::crc32c(&place[8..]);
        place[..4].copy_from_slice(&crc.to_le_bytes());
        at += frame;
    }
    black_box(&memory);
    begun.elapsed()
}
