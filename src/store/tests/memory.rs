//! The budget of all logs together.

use super::{Store, StoreOptions};
use crate::{chunk::Memory, log::Options, store::LogSettings};

/// Each opening saw the same free room, and took a whole segment of it: 40 of 8 MiB took 175 MiB of a budget of 27.
#[test]
fn logs_that_are_opened_at_once_keep_to_the_budget() {
    const LOGS: usize = 24;
    let dir = tempfile::tempdir().unwrap();
    let log = Options {
        shm_dir: None,
        segment_bytes: 2 << 20,
        first_segment_bytes: 32 << 10,
        ..StoreOptions::default().log
    };
    let mut options = StoreOptions { log, ..StoreOptions::default() };
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
    let (large, small) = (Memory::footprint(2 << 20), Memory::footprint(32 << 10));
    options.log.memory_bytes = 3 * large;
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let open: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = names.iter().map(|name| scope.spawn(|| store.get(name).unwrap())).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let claimed = store.inner.budget.claimed();
    assert!(claimed <= options.log.memory_bytes + LOGS as u64 * small, "{claimed}");
    assert!(claimed > 2 * large, "the test has none that want much: {claimed}");
    drop(open);
    store.close().unwrap();
}
