//! The memory budget of all logs of a store.

use super::{Duration, Instant, Store, StoreOptions};
use crate::{
    chunk::ChunkMemory,
    disk::gate::{Gate, Operation},
    log::{Environment, Error as LogError, Options},
    store::{LogSettings, OpenLog},
};
use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
    thread::{self, Thread},
};

/// Segments of 32 KiB to 2 MiB, and so much memory.
fn options(memory_bytes: u64) -> StoreOptions {
    let (segment_bytes, first_segment_bytes) = (2 << 20, 32 << 10);
    let log = StoreOptions::default().log;
    let log = Options { shm_dir: None, segment_bytes, first_segment_bytes, memory_bytes, ..log };
    StoreOptions { log, ..StoreOptions::default() }
}

/// Logs that exceed the budget by large records, which `append` appends to each; and the most that all may have once that
/// is given back.
fn logs_beyond_the_budget(dir: &Path, append: impl Fn(&OpenLog)) -> (Store, Vec<Arc<OpenLog>>, u64) {
    const LOGS: u64 = 24;
    let options = options(3 * ChunkMemory::footprint(2 << 20));
    let bound = options.log.memory_bytes + 3 * LOGS * ChunkMemory::footprint(32 << 10);
    let store = Store::open(dir, options).unwrap();
    let open = (0..LOGS).map(|n| {
        let name = format!("l{n}");
        store.create(&name, &LogSettings::default()).unwrap();
        let log = store.get(&name).unwrap();
        append(&log);
        log
    });
    let open = open.collect();
    (store, open, bound)
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
fn memory_beyond_the_budget_for_large_records_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let value = vec![7; (2 << 20) - 100];
    let (store, open, bound) = logs_beyond_the_budget(dir.path(), |log| {
        for _ in 0..2 {
            let at = log.append(&value).unwrap();
            log.wait_durable(at).unwrap();
        }
    });
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

/// While the budget was exceeded, the spare segment for a record larger than the smallest chunk was taken for too
/// large, as it is made of whole blocks, and was replaced before the appender that had been woken came for it: 709
/// attempts, 9 s.
#[test]
fn a_record_larger_than_the_smallest_chunk_gets_its_segment_also_where_the_budget_is_exceeded() {
    let dir = tempfile::tempdir().unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&made);
    let ask = move |operation, path: &Path| {
        if operation == Operation::Create && path.starts_with(dir_of(path, "big")) {
            counts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut options = options(0);
    options.log.segment_bytes = 128 << 10;
    options.log.memory_bytes = 3 * ChunkMemory::footprint(128 << 10);
    let env = Environment::on(Gate::new(crate::disk::native(), ask));
    let store = Store::open_in(env, dir.path(), options.clone()).unwrap();
    let names: Vec<String> = (0..30).map(|n| format!("l{n}")).chain(["big".to_owned()]).collect();
    let open = |name: &String| store.create(name, &LogSettings::default()).and_then(|_| store.get(name));
    let open: Vec<_> = names.iter().map(|name| open(name).unwrap()).collect();
    assert!(store.inner.budget.claimed() > options.log.memory_bytes);
    let (big, value) = (open.last().unwrap(), vec![7; 70_000]);
    for offset in 0..5 {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut attempts = 1;
        let mut room = big.room(); // before the attempt, so that nothing is missed
        while let Err(error) = big.try_append(&value) {
            assert!(
                matches!(error, LogError::WouldBlock) && Instant::now() < deadline,
                "{attempts}: {error}"
            );
            wait_for(room);
            (room, attempts) = (big.room(), attempts + 1);
        }
        big.wait_durable(offset).unwrap();
        assert!(attempts < 20, "{attempts} attempts for record {offset}");
    }
    let files = made.load(Ordering::Relaxed);
    assert!((5..30).contains(&files), "{files} files for 5 records");
    drop(open);
    store.close().unwrap();
}

/// The directory of a log of this name, if that is what `path` is in.
fn dir_of(path: &Path, name: &str) -> PathBuf {
    path.ancestors().find(|at| at.ends_with(name)).unwrap_or(Path::new("/nowhere")).to_owned()
}

/// Waits until a future completes.
fn wait_for(future: impl Future<Output = ()>) {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        thread::park_timeout(Duration::from_millis(100));
    }
}

/// A client tried a large record, was told to wait, and went away. The segment that was made for it stayed, with its
/// memory: 24 logs had 58 MB of 7.
#[test]
fn spare_segments_for_large_records_that_nobody_appends_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let value = vec![7; (2 << 20) - 100];
    let (store, open, bound) = logs_beyond_the_budget(dir.path(), |log| {
        log.append(b"small").and_then(|at| log.wait_durable(at)).unwrap();
        let tried = log.try_append(&value);
        assert!(matches!(tried, Err(LogError::WouldBlock) | Ok(_)), "{tried:?}");
    });
    let (begun, claimed) = (Instant::now(), || store.inner.budget.claimed());
    while claimed() <= bound && begun.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(1)); // until all are made
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while claimed() > bound {
        assert!(Instant::now() < deadline, "{} of {bound}", claimed());
        thread::sleep(Duration::from_millis(10));
    }
    // Whoever comes again gets one again.
    for log in &open {
        let at = log.append(&value).unwrap();
        log.wait_durable(at).unwrap();
        assert_eq!(log.read(at).unwrap().unwrap().value(), value);
    }
    drop(open);
    store.close().unwrap();
}
