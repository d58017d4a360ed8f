mod clones;
mod deletion;
mod full;
mod housekeeping;
mod memory;
mod names;
mod scrubbing;
mod setup;
mod trouble;

use super::*;
use crate::log::{Log, Options};
use std::time::Instant;

fn options() -> StoreOptions {
    let log = Options {
        segment_bytes: 8 << 10,
        first_segment_bytes: 4 << 10,
        memory_bytes: 64 << 10,
        ..Options::default()
    };
    StoreOptions { log, open_logs: 4, idle: Duration::from_secs(60), scrub_bytes_per_second: 0 }
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", ".", "..", "a/b", "../a", "-a", ".deleted-1", "a\\b", "a b", "ä", "a\0", &long] {
        assert!(matches!(store.create(name, &LogSettings::default()), Err(Error::BadName { .. })), "{name}");
        assert!(matches!(store.get(name), Err(Error::BadName { .. })), "{name}");
    }
    assert!(store.create(&long[1..], &LogSettings::default()).unwrap());
}

#[test]
fn logs_are_there_after_opening_again_and_deleted_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let json = LogSettings { values: Values::Json, retention_bytes: Some(1 << 20), ..Default::default() };
    assert!(store.create("a", &json).unwrap());
    assert!(!store.create("a", &json).unwrap());
    let other = store.create("a", &LogSettings { record_bytes: Some(9), ..json.clone() });
    assert!(
        matches!(other, Err(Error::Exists { differences, .. }) if differences == "record_bytes: not set, asked for 9")
    );
    store.create("b", &LogSettings::default()).unwrap();
    store.get("a").unwrap().append(b"1").unwrap();
    let held = store.get("b").unwrap();
    held.append(b"x").unwrap();
    held.flush().unwrap();
    store.delete("b").unwrap();
    assert!(matches!(held.append(b"y"), Err(LogError::Failed { .. })));
    assert_eq!(held.read(0).unwrap().unwrap().value(), b"x");
    assert!(matches!(store.delete("b"), Err(Error::NotFound { .. })));
    assert!(store.create("b", &LogSettings::default()).unwrap());
    assert_eq!(store.get("b").unwrap().next_offset(), 0);
    store.delete("b").unwrap();
    drop(held);
    std::fs::create_dir(dir.path().join(".deleted-1-c")).unwrap();
    assert!(matches!(Store::open(dir.path(), options()), Err(Error::Log(LogError::InUse { .. }))));
    store.close().unwrap();

    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.names(None, 10), ["a"]);
    let a = store.get("a").unwrap();
    assert_eq!((a.settings(), a.read(0).unwrap().unwrap().value()), (&json, &b"1"[..]));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "a and the lock");
}

#[test]
fn logs_beyond_the_limit_are_closed_unless_somebody_holds_them_and_open_again_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let held = {
        store.create("held", &LogSettings::default()).unwrap();
        store.get("held").unwrap()
    };
    for n in 0..20u8 {
        let name = format!("log-{n:02}");
        store.create(&name, &LogSettings::default()).unwrap();
        store.get(&name).unwrap().append(&[n]).unwrap();
        let open = store.counts().open;
        assert!(open <= 5, "{open}, also before the store's thread has had a turn");
    }
    store.inner.turn();
    let Counts { logs: all, open, .. } = store.counts();
    assert!(all == 21 && (2..=5).contains(&open), "{all}, {open}");
    held.append(b"still").unwrap();
    for n in 0..20u8 {
        let log = store.get(&format!("log-{n:02}")).unwrap();
        assert_eq!(log.read(0).unwrap().unwrap().value(), [n]);
    }
    assert_eq!(store.names(Some("log-03"), 2), ["log-04", "log-05"]);
}

#[test]
fn a_log_is_open_in_the_store_or_by_itself_never_both() {
    let dir = tempfile::tempdir().unwrap();
    let alone = || Log::open(dir.path().join("a"), options().log);
    let in_use = |error: &LogError| matches!(error, LogError::InUse { .. });
    let log = alone().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    assert!(matches!(store.get("a"), Err(Error::Log(error)) if in_use(&error)));
    log.close().unwrap();
    store.get("a").unwrap().append(b"1").unwrap();
    assert!(alone().is_err_and(|error| in_use(&error)));
    assert!(crate::log::verify(dir.path().join("a")).is_err_and(|error| in_use(&error)));
    store.close().unwrap();
    let log = alone().unwrap();
    assert!(matches!(Store::open(dir.path(), options()), Err(Error::Log(error)) if in_use(&error)));
    assert_eq!(log.read(0).unwrap().unwrap().value(), b"1");
}

#[test]
fn logs_share_the_memory_and_each_continues_when_others_have_taken_it_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions { open_logs: 100, ..options() }).unwrap();
    let (limit, least) = (store.options().log.memory_bytes, crate::chunk::ChunkMemory::footprint(4096));
    let logs: Vec<_> = (0..30)
        .map(|n| {
            store.create(&format!("log-{n}"), &LogSettings::default()).unwrap();
            store.get(&format!("log-{n}")).unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        for log in &logs {
            scope.spawn(|| {
                for n in 0..300u32 {
                    log.append(&[&n.to_le_bytes()[..], &[0; 100]].concat()).unwrap();
                }
                log.flush().unwrap();
            });
        }
    });
    for log in &logs {
        let numbers = log.iter(0).map(|record| record.unwrap().value()[..4].try_into().unwrap());
        assert!(numbers.map(u32::from_le_bytes).eq(0..300));
    }
    // Each log may have chunks of the smallest size beyond the limit: the active one, the next, and one to seal.
    let claimed = store.inner.budget.claimed();
    assert!(claimed <= limit + 30 * 3 * least, "{claimed} of {limit} are claimed");
    drop(logs);
    let budget = Arc::clone(&store.inner.budget);
    store.close().unwrap();
    assert_eq!(budget.claimed(), 0);
}

/// A store that could not see a log's directory (not mounted, moved, another namespace) removed the log's backings, and
/// with them records that were acknowledged in memory. Only backings of logs that were deleted, but not yet removed,
/// may be removed.
#[test]
fn backings_of_missing_logs_are_kept_and_those_of_deleted_logs_removed() {
    use crate::chunk::{BackingDir, ChunkMemory, LogBackings};
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with = || {
        let mut options = options();
        options.log.shm_dir = Some(at.path().to_owned());
        options
    };
    let ids = {
        let store = Store::open(dir.path(), with()).unwrap();
        let ids = ["a", "away", "deleted"].map(|name| {
            store.create(name, &LogSettings::default()).unwrap();
            (store.get(name).unwrap().id(), dir.path().join(name))
        });
        store.close().unwrap();
        ids
    };
    let left = ids.map(|(id, dir)| {
        let disk = crate::disk::native();
        let node = disk.node(&dir).unwrap();
        let backings = Arc::new(LogBackings::new(
            BackingDir::open(&*disk, at.path(), id, &dir, node).unwrap(),
            [1; 16],
            1,
        ));
        backings.keep();
        drop(ChunkMemory::backed(4096, &backings).unwrap());
        move || backings.dir.find().unwrap().len()
    });
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(dir.path().join("away"), elsewhere.path().join("away")).unwrap();
    // The process ended in the middle of deleting this log.
    std::fs::rename(dir.path().join("deleted"), dir.path().join(".deleted-1-deleted")).unwrap();
    drop(Store::open(dir.path(), with()).unwrap());
    assert_eq!(left.map(|count| count()), [1, 1, 0]);
    assert!(!dir.path().join(".deleted-1-deleted").exists());
}

#[test]
fn retention_by_bytes_and_by_age_drops_whole_segments_from_the_front() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let by_bytes = LogSettings { retention_bytes: Some(64 << 10), ..Default::default() };
    let by_age = LogSettings { retention_seconds: Some(0), ..Default::default() };
    for (name, settings) in [("bytes", by_bytes), ("age", by_age)] {
        store.create(name, &settings).unwrap();
        let log = store.get(name).unwrap();
        for _ in 0..2000 {
            log.append(&[1; 100]).unwrap();
        }
        log.flush().unwrap();
    }
    std::thread::sleep(Duration::from_millis(50)); // the maintenance task seals, and time passes
    store.inner.turn();
    let log = store.get("bytes").unwrap();
    assert!(log.first_offset() > 1000 && log.disk_bytes() <= 64 << 10, "{}", log.disk_bytes());
    assert_eq!(log.iter(log.first_offset()).flatten().count() as u64, 2000 - log.first_offset());
    assert!(store.get("age").unwrap().first_offset() > 1900);
}

#[test]
fn expired_segments_are_dropped_even_while_the_log_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    // Without a housekeeper: on a slow machine it would drop some already.
    let open = || {
        let options = StoreOptions { idle: Duration::ZERO, ..options() };
        Store::open_in(Environment::system(), dir.path(), options).unwrap()
    };
    let store = open();
    for n in 0..20 {
        let settings = LogSettings { retention_seconds: Some(1), ..Default::default() };
        store.create(&format!("old-{n:02}"), &settings).unwrap();
        let log = store.get(&format!("old-{n:02}")).unwrap();
        for _ in 0..200 {
            log.append(&[1; 100]).unwrap();
        }
    }
    store.create("kept", &LogSettings::default()).unwrap();
    store.close().unwrap();
    // Without the empty one that a log has begun at its end.
    let segments = |log: &Path| {
        let files = std::fs::read_dir(log).into_iter().flatten().flatten().map(|file| file.path());
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
        files.filter(|path| is_segment(path) && !path.ends_with("00000000000000000200.seg")).count()
    };
    let logs = || std::fs::read_dir(dir.path()).unwrap().flatten().map(|log| log.path());
    let files = || logs().map(|log| segments(&log)).sum::<usize>();
    assert!(files() >= 21 + 20);
    std::thread::sleep(Duration::from_millis(1100));
    let store = open();
    store.inner.retain_closed(&mut { housekeeper::Helpers::NONE });
    // What one turn leaves, another does: 20 of them are more than one handles, and what has not settled stays open. A
    // segment that is sealed only meanwhile is dropped a minute later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while (files(), store.counts().logs, store.counts().open) != (1, 21, 0) {
        assert!(Instant::now() < deadline, "{} files, {:?}", files(), store.counts());
        for log in logs().filter(|log| segments(log) > 0) {
            let name = log.file_name().unwrap().to_string_lossy().into_owned();
            if name == "kept" {
                continue;
            }
            store.inner.entry(&name).unwrap().retain_at.store(0, Ordering::Relaxed);
        }
        store.inner.turn();
        std::thread::sleep(Duration::from_millis(20));
    }
    let looked_at = |name| store.inner.entry(name).unwrap().retain_at.load(Ordering::Relaxed);
    assert!(looked_at("old-00") >= 60_000 && looked_at("kept") == u64::MAX, "it would be opened each second");
}

#[test]
fn concurrent_creation_use_and_deletion_never_open_a_log_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..60 {
                    let name = ["a", "b"][(n + thread) % 2];
                    match n % 3 {
                        0 => {
                            let _ =
                                store.create(name, &LogSettings::default()).map_err(|error| allowed(&error));
                        }
                        1 => {
                            drop(
                                store.get(name).map(|log| log.append(b"x")).map_err(|error| allowed(&error)),
                            );
                        }
                        _ if thread == 0 => drop(store.delete(name).map_err(|error| allowed(&error))),
                        _ => store.inner.turn(),
                    }
                }
            });
        }
    });
}

fn allowed(error: &Error) {
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[test]
fn a_log_that_outlives_its_store_keeps_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let held = store.get("a").unwrap();
    store.close().unwrap();
    held.append(b"still open").unwrap();
    assert!(matches!(Store::open(dir.path(), options()), Err(Error::Log(LogError::InUse { .. }))));
    assert!(matches!(Log::open(dir.path().join("a"), options().log), Err(LogError::InUse { .. })));
    drop(held);
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.get("a").unwrap().read(0).unwrap().unwrap().value(), b"still open");
}
