//! Appends to a new log on the disk, as fast as one thread can: how often `try_append` is refused while memory is free,
//! and for how long a plain append is held up.
//! `cargo bench --bench growth`; `MILLSTREAM_BENCH_DIR` chooses the disk.

use millstream::{Error, Log, Options};
use std::time::{Duration, Instant};

const BYTES: u64 = 64 << 20;
const VALUE: [u8; 100] = [7; 100];

fn new_log() -> (tempfile::TempDir, Log) {
    let dir = std::env::var_os("MILLSTREAM_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).unwrap();
    let log = Log::open(dir.path(), Options::default()).unwrap();
    (dir, log)
}

fn main() {
    println!(
        "| round | refused | first after (KiB) | longest try (ms) | longest append (ms) | appends over 5 ms | MiB/s |"
    );
    for round in 0..5 {
        let (_dir, log) = new_log();
        let (mut refused, mut first, mut longest_try, mut bytes) = (0u64, None, Duration::ZERO, 0);
        while bytes < BYTES {
            let begun = Instant::now();
            let done = log.try_append(&VALUE);
            longest_try = longest_try.max(begun.elapsed());
            match done {
                Ok(_) => bytes += VALUE.len() as u64,
                Err(Error::WouldBlock) => {
                    refused += 1;
                    first = first.or(Some(bytes >> 10));
                }
                Err(error) => panic!("{error}"),
            }
        }
        log.close().unwrap();

        let (_dir, log) = new_log();
        let (mut longest, mut over, mut bytes, all) = (Duration::ZERO, 0, 0, Instant::now());
        while bytes < BYTES {
            let begun = Instant::now();
            log.append(&VALUE).unwrap();
            let took = begun.elapsed();
            longest = longest.max(took);
            over += u32::from(took > Duration::from_millis(5));
            bytes += VALUE.len() as u64;
        }
        let rate = 64.0 / all.elapsed().as_secs_f64();
        log.close().unwrap();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let first = first.map_or_else(|| "never".to_owned(), |kib| kib.to_string());
        println!(
            "| {round} | {refused} | {first} | {:.1} | {:.1} | {over} | {rate:.0} |",
            ms(longest_try),
            ms(longest)
        );
    }
}
