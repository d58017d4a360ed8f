//! How long opening takes after a process was killed: at full rate, with what it left in shared memory; and with the
//! worst content that can follow the last record of a segment. `cargo bench --bench reopen`

mod common;

use common::{dir, shm};
use millstream::{Log, Options};
use std::{
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const SEGMENT: u64 = 64 << 20;

fn options() -> Options {
    let shm_dir = std::env::var_os("REOPEN_SHM_DIR").map_or_else(|| shm::dir().to_owned(), Into::into);
    Options { first_segment_bytes: SEGMENT, shm_dir: Some(shm_dir), ..Options::default() }
}

/// The process that is killed: appends records of `size` bytes at full rate.
fn child(dir: &str, size: usize) -> ! {
    let log = Log::open(dir, options()).unwrap();
    let value = vec![7; size];
    let batch: Vec<&[u8]> = (0..(1 << 20) / (size + 24)).map(|_| &value[..]).collect();
    let mut appender = log.appender();
    loop {
        appender.append_batch(&batch).unwrap();
    }
}

/// Opens the log, closes it, and reports.
fn reopen(label: &str, dir: &Path, bytes: u64) {
    let begun = Instant::now();
    let log = Log::open(dir, options()).unwrap();
    let took = begun.elapsed();
    assert_eq!(log.damage(), []);
    let per_gib = took.as_secs_f64() * (1u64 << 30) as f64 / bytes as f64;
    let (mib, records) = (bytes >> 20, log.next_offset());
    println!("{label:<44} {mib:>5} MiB, {records:>9} records: {took:>10.1?}, {per_gib:.2} s a GiB");
}

/// The bytes of segments that are not sealed, which have the full length.
fn unsealed(dir: &Path) -> u64 {
    let lengths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    lengths.filter(|&length| length == 4096 + SEGMENT + 12288).map(|_| SEGMENT).sum()
}

fn killed(size: usize) {
    let place = dir();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env("REOPEN_DIR", place.path())
        .env("REOPEN_SIZE", size.to_string())
        .env("REOPEN_SHM_DIR", shm::dir())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(3));
    child.kill().unwrap();
    child.wait().unwrap();
    reopen(
        &format!("killed at full rate, {size} B a record"),
        place.path(),
        unsealed(place.path()).max(SEGMENT),
    );
}

/// A segment with ten complete records, and these bytes after them.
fn tail(label: &str, fill: impl Fn(&[u8; 4096], &mut [u8])) {
    let place = dir();
    let log = Log::open(place.path(), options()).unwrap();
    for n in 0..10u64 {
        log.append(&n.to_le_bytes()).unwrap();
    }
    log.close().unwrap();
    let path = place.path().join("00000000000000000000.seg");
    let segment = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut header = [0; 4096];
    segment.read_exact_at(&mut header, 0).unwrap();
    let mut bytes = vec![0; SEGMENT as usize - 10 * 32];
    fill(&header, &mut bytes);
    segment.write_all_at(&bytes, 4096 + 10 * 32).unwrap();
    segment.sync_all().unwrap(); // what a killed log has written is on the disk
    drop(segment);
    reopen(label, place.path(), SEGMENT);
}

/// Fills with headers of three words that look like those of frames of almost all the rest. The second word is
/// combined with `mask` by exclusive or.
fn headers(bytes: &mut [u8], mask: u64) {
    let size = bytes.len();
    for (n, header) in bytes.chunks_exact_mut(24).enumerate() {
        let left = (((size - n * 24) / 4 * 3) & !7).max(8) as u64;
        let record = (10 + n / 2) as u64;
        for (at, word) in [(0, left << 32), (8, record ^ mask), (16, 0x8000 << 48)] {
            header[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn main() {
    if let (Ok(dir), Ok(size)) = (std::env::var("REOPEN_DIR"), std::env::var("REOPEN_SIZE")) {
        child(&dir, size.parse().unwrap());
    }
    for size in [8, 100, 100_000] {
        killed(size);
    }
    tail("torn tail: zeros", |_, _| ());
    tail("torn tail: random bytes", |_, bytes| {
        let mut x = 0x9E37_79B9_7F4A_7C15u64;
        for word in bytes.chunks_exact_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            word.copy_from_slice(&x.to_le_bytes());
        }
    });
    tail("torn tail: headers, as a client can make them", |_, bytes| headers(bytes, 0));
    tail("torn tail: headers, by the log's own secret", |header, bytes| {
        headers(bytes, u64::from_le_bytes(*header[64..].first_chunk().unwrap()));
    });
}
