//! Many logs in one process: the cost of creating them, of keeping them open, of appending to each in turn, and of
//! opening them again. `cargo bench --bench logs -- [LOGS]`

#[path = "../tests/support/shm.rs"]
mod shm;

use millstream::{
    Options,
    store::{LogSettings, Store, StoreOptions},
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// A number from `/proc/self/status`, in the unit used there.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn disk_kib(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let one = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_kib(&entry.path()),
        found => found.map_or(0, |found| found.blocks() / 2),
    };
    entries.flatten().map(one).sum()
}

fn report(label: &str, logs: usize, begun: Instant, before: u64) {
    let per_log = |kib: u64| kib as f64 / logs as f64;
    let (own, shared) = (status("RssAnon"), status("RssShmem"));
    println!(
        "{label:<22} {:>6.2} s, {:>5.1} KiB per log of its own, {:>5.1} KiB in backings, {} descriptors, {} threads, {} mappings",
        begun.elapsed().as_secs_f64(),
        per_log(own.saturating_sub(before)),
        per_log(shared),
        entries("/proc/self/fd"),
        status("Threads"),
        std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count()),
    );
}

fn main() {
    let logs: usize = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(10_000);
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = Options { shm_dir: Some(shm::dir().to_owned()), ..StoreOptions::default().log };
    let options = || StoreOptions {
        open_logs: logs + 1,
        idle: Duration::from_secs(3600),
        log: log.clone(),
        scrub_bytes_per_second: 0,
    };
    let names: Vec<String> = (0..logs).map(|n| format!("log-{n:05}")).collect();
    let before = status("RssAnon");
    println!("{logs} logs");

    let store = Store::open(place.path(), options()).unwrap();
    let begun = Instant::now();
    for name in &names {
        store.create(name, &LogSettings::default()).unwrap();
    }
    report("created and open", logs, begun, before);

    let begun = Instant::now();
    for name in &names {
        let log = store.get(name).unwrap();
        log.append(&[7; 100]).unwrap();
        log.commit_soon();
    }
    for name in &names {
        store.get(name).unwrap().flush().unwrap();
    }
    report("one record in each", logs, begun, before);
    println!("{:<22} {:.1} KiB a log", "on the disk", disk_kib(place.path()) as f64 / logs as f64);

    let begun = Instant::now();
    store.close().unwrap();
    report("closed", logs, begun, before);

    let begun = Instant::now();
    let store = Store::open(place.path(), options()).unwrap();
    println!("{:<22} {:>6.2} s", "the store opened", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    for name in &names {
        assert_eq!(store.get(name).unwrap().next_offset(), 1);
    }
    report("all logs opened", logs, begun, before);
    store.close().unwrap();
}
