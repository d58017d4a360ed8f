//! The memory budget of all logs of a store.

use super::{Duration, Instant, Store, StoreOptions};
use crate::{chunk::ChunkMemory, log::Options, store::LogSettings};

/// Segments of 32 KiB to 2 MiB, and so much memory.
fn options(memory_bytes: u64) -> StoreOptions {
    let (segment_bytes, first_segment_bytes) = (2 << 20, 32 << 10);
    let log = StoreOptions::default().log;
    let log = Options { shm_dir: None, segment_bytes, first_segment_bytes, memory_bytes, ..log };
    StoreOptions { log, ..StoreOptions::default() }
}

/// Each opening saw the same free room, and took a whole segment of it: 40 logs with segments of 8 MiB took 175 MiB of
/// a budget of 27.
#[test]
fn logs_that_are_opened_at_once_keep_to_the_budget() {
    const LOGS: usize = 24;
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(StoreOptions::default().log.memory_bytes);
    let names: Vec<String> = (0..LOGS).map(|n| format!("l{n}")).collect();
    let store = Store::open(dir.path(), options.clone()).unwrap();
    for name in &names {
        store.create(name, &LogSettings::default()).unwrap();
        let log = store.get(name).unwrap();
        let value = vec![7; 30_000];
        while log.disk_bytes() < 4 << 20 {
            log.append(&value).unwrap();
        }
    }
    store.close().unwrap();
    let (large, small) = (ChunkMemory::footprint(2 << 20), ChunkMemory::footprint(32 << 10));
    options.log.memory_bytes = 3 * large;
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let open: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = names.iter().map(|name| scope.spawn(|| store.get(name).unwrap())).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let claimed = store.inner.budget.claimed();
    assert!(claimed <= options.log.memory_bytes + LOGS as u64 * small, "{claimed}");
    assert!(claimed > 2 * large, "no log of this test needs much memory: {claimed}");
    drop(open);
    store.close().unwrap();
}

/// A record that is larger than the smallest chunk gets one of its size even beyond the budget; and each log kept it
/// until it was closed: 24 logs with a record of 2 MiB each took 61 MB of 7.
#[test]
fn what_large_records_take_beyond_the_budget_is_given_back() {
    const LOGS: usize = 24;
    let dir = tempfile::tempdir().unwrap();
    let options = options(3 * ChunkMemory::footprint(2 << 20));
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let (value, mut open) = (vec![7; (2 << 20) - 100], Vec::new());
    for n in 0..LOGS {
        let name = format!("l{n}");
        store.create(&name, &LogSettings::default()).unwrap();
        let log = store.get(&name).unwrap();
        for _ in 0..2 {
            let at = log.append(&value).unwrap();
            log.wait_durable(at).unwrap();
        }
        open.push(log);
    }
    let bound = options.log.memory_bytes + 3 * LOGS as u64 * ChunkMemory::footprint(32 << 10);
    let deadline = Instant::now() + Duration::from_secs(5);
    while store.inner.budget.claimed() > bound {
        assert!(Instant::now() < deadline, "{} of {bound}", store.inner.budget.claimed());
        std::thread::sleep(Duration::from_millis(10));
    }
    for log in &open {
        assert_eq!(log.append(b"and on").unwrap(), 2);
        assert_eq!(log.read(0).unwrap().unwrap().value(), value);
    }
    drop(open);
    store.close().unwrap();
}
