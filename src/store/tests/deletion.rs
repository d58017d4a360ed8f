//! Creating and deleting logs: a log that is gone stays gone, whoever holds it and whatever fails meanwhile, and its name is
//! free again.

use super::{super::*, options};
use std::time::Instant;

#[test]
fn a_deleted_log_that_is_still_held_does_not_affect_a_new_log_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    // A log with a spare segment, under a file name that any other log's spare segment has as well.
    let with_next = || {
        store.create("a", &LogSettings::default()).unwrap();
        let log = store.get("a").unwrap();
        log.append(&[1; 2000]).unwrap();
        log.flush().unwrap();
        let next = dir.path().join("a/next-1.tmp");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !next.exists() {
            assert!(Instant::now() < deadline, "no spare segment is made");
            std::thread::sleep(Duration::from_millis(1));
        }
        (log, next)
    };
    let (held, _) = with_next();
    store.delete("a").unwrap();
    let (log, next) = with_next();
    assert!(held.trim(u64::MAX).is_err());
    drop(held);
    assert!(next.exists(), "its file was removed by the deleted log");
    for _ in 0..50 {
        log.append(&[2; 1000]).unwrap();
    }
    log.flush().unwrap();
}

/// A thread was suspended just before it saved a log's producers, and then wrote them into a log that had been created
/// under the same name in the meantime.
#[test]
fn producers_are_never_saved_into_a_new_log_of_that_name() {
    use crate::{
        disk::gate::{Gate, Operation},
        log::{Payload, ProducerBatch},
    };
    let dir = tempfile::tempdir().unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let state = Mutex::new((0, wait));
    let gate = Gate::new(crate::disk::native(), move |operation, path| {
        if operation == Operation::WriteFile && path.ends_with("producers.json.tmp") {
            let mut state = state.lock().unwrap();
            state.0 += 1;
            if state.0 == 2 {
                tell.send(()).unwrap();
                let _ = state.1.recv();
            }
        }
        Ok(())
    });
    let store = Store::open_in(Environment::on(gate), dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let log = store.get("a").unwrap();
    let payload = [Payload { bytes: b"x", json: false }];
    log.try_append_once(&ProducerBatch::new("p", 0, 0), &payload, None).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| log.save_producers());
        told.recv().unwrap();
        let replacing = scope.spawn(|| {
            store.delete("a").unwrap();
            store.create("a", &LogSettings::default()).unwrap();
        });
        let deadline = Instant::now() + Duration::from_millis(500);
        while !replacing.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        go.send(()).unwrap();
        replacing.join().unwrap();
    });
    assert!(!dir.path().join("a/producers.json").exists());
    assert!(!dir.path().join("a/producers.json.tmp").exists());
}

/// They were read by their path. The log took over producers that only the new one had, and said that its file describes
/// records that the log does not have.
#[test]
fn a_deleted_log_that_is_held_reads_neither_producers_nor_segments_of_the_new_log_of_its_name() {
    use crate::log::{Payload, ProducerBatch};
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let create = || {
        store.create("a", &LogSettings::default()).unwrap();
        let log = store.get("a").unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while log.next_offset() == 0 || log.reads_without_disk(0) {
            assert!(Instant::now() < deadline, "the first segment stays in memory");
            log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        log
    };
    let held = create();
    assert!(held.read(0).unwrap().is_some());
    store.delete("a").unwrap();
    let new = create();
    let payload = [Payload { bytes: b"x", json: false }];
    new.try_append_once(&ProducerBatch::new("p", 0, 0), &payload, None).unwrap();
    new.save_producers().unwrap();
    let known = held.producer("p");
    assert!(matches!(known, Err(LogError::Failed { .. })), "{known:?}");
    assert_eq!(known.unwrap_err().to_string(), "the log was deleted");
    let read = held.read(0).map(|record| record.map(|record| record.offset()));
    assert!(matches!(read, Err(LogError::Failed { .. })), "{read:?}");
    assert!(new.producer("p").unwrap().is_some() && new.read(0).unwrap().is_some());
}

/// The system's disk, on which the `nth` operation that changes anything or opens a file fails.
fn failing(nth: usize, code: i32) -> Environment {
    use crate::disk::gate::{Gate, Operation};
    let count = AtomicU64::new(0);
    let gate = Gate::new(crate::disk::native(), move |operation, _| {
        let counts = !matches!(operation, Operation::List | Operation::Read);
        let fails = counts && count.fetch_add(1, Ordering::SeqCst) + 1 == nth as u64;
        if fails { Err(io::Error::from_raw_os_error(code)) } else { Ok(()) }
    });
    Environment::on(gate)
}

/// The names in a store's directory, except its lock.
fn stands(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != COMMON_LOCK).collect()
}

/// If a log could not be created for lack of room, its name was taken until the server was restarted.
#[test]
fn wherever_creating_a_log_fails_the_next_attempt_creates_it() {
    // EIO, EMFILE, ENOSPC.
    for code in [5, 24, 28] {
        let mut failed = 0;
        for nth in 1..25 {
            let dir = tempfile::tempdir().unwrap();
            let mut options = options();
            options.log.shm_dir = None;
            let store = Store::open_in(failing(nth, code), dir.path(), options).unwrap_or_else(|_| {
                Store::open_in(failing(usize::MAX, code), dir.path(), self::options()).unwrap()
            });
            let settings = LogSettings { retention_bytes: Some(1 << 20), ..Default::default() };
            if let Err(error) = store.create("a", &settings) {
                failed += 1;
                if code == 28 {
                    assert!(matches!(&error, Error::Log(error) if error.is_full()), "{nth}: {error}");
                }
                assert_eq!(stands(dir.path()), Vec::<String>::new(), "{nth}: {error}");
                assert!(matches!(store.get("a"), Err(Error::NotFound { .. })), "{nth}");
                assert!(store.create("a", &settings).unwrap(), "{nth}");
            }
            assert_eq!(store.get("a").unwrap().append(b"x").unwrap(), 0);
            store.inner.turn();
            assert_eq!(stands(dir.path()), ["a"], "{nth}");
        }
        assert!(failed > 5, "{failed}");
    }
}

/// The log had been renamed already, and nobody noted its new name: it stayed until a restart.
#[test]
fn a_half_created_log_that_cannot_be_removed_at_once_is_removed_later() {
    use crate::disk::gate::{Gate, Operation};
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let undone = AtomicBool::new(false);
    let gate = Gate::new(crate::disk::native(), move |operation, path| match operation {
        Operation::Create => Err(io::Error::from_raw_os_error(28)),
        Operation::Rename if path.ends_with("a") => {
            undone.store(true, Ordering::SeqCst);
            Ok(())
        }
        Operation::SyncDir if undone.swap(false, Ordering::SeqCst) => Err(io::Error::from_raw_os_error(5)),
        _ => Ok(()),
    });
    let mut options = options();
    options.log.shm_dir = None;
    let store = Store::open_in(Environment::on(gate), dir.path(), options).unwrap();
    store.create("a", &LogSettings::default()).unwrap_err();
    assert_eq!(stands(dir.path()).len(), 1);
    store.inner.turn();
    assert_eq!(stands(dir.path()), Vec::<String>::new());
}

#[test]
fn a_log_whose_creation_failed_and_could_not_be_undone_is_usable() {
    use crate::disk::gate::{Gate, Operation};
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let breaks = Arc::clone(&broken);
    let gate = Gate::new(crate::disk::native(), move |operation, path| {
        let fails = match operation {
            Operation::Create => true,
            Operation::Rename => path.ends_with("a"),
            _ => false,
        };
        if fails && breaks.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    });
    let store = Store::open_in(Environment::on(gate), dir.path(), options()).unwrap();
    let settings = LogSettings { retention_bytes: Some(1 << 20), ..Default::default() };
    assert!(store.create("a", &settings).is_err());
    assert!(store.create("a", &settings).is_err());
    broken.store(false, Ordering::SeqCst);
    assert!(matches!(store.create("a", &LogSettings::default()), Err(Error::Exists { .. })));
    assert!(!store.create("a", &settings).unwrap());
    assert_eq!(store.get("a").unwrap().append(b"x").unwrap(), 0);
    store.delete("a").unwrap();
    assert!(store.create("a", &LogSettings::default()).unwrap());
    // A log that somebody has put there is a log too, and is not removed when one is to be created.
    std::fs::create_dir(dir.path().join("b")).unwrap();
    for file in std::fs::read_dir(dir.path().join("a")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join("b").join(file.file_name())).unwrap();
    }
    assert!(!store.create("b", &LogSettings::default()).unwrap());
    assert_eq!(store.get("b").unwrap().id(), store.get("a").unwrap().id());
}

#[test]
fn wherever_deleting_a_log_fails_it_is_gone_or_deleted_by_the_next_attempt() {
    for nth in 1..12 {
        for also in [usize::MAX, nth + 1] {
            use crate::disk::gate::{Gate, Operation};
            let dir = tempfile::tempdir().unwrap();
            let deleting = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let (counts, count) = (Arc::clone(&deleting), AtomicU64::new(0));
            let gate = Gate::new(crate::disk::native(), move |operation, _| {
                let counts = counts.load(Ordering::SeqCst) && operation != Operation::List;
                let count = if counts { count.fetch_add(1, Ordering::SeqCst) as usize + 1 } else { 0 };
                if [nth, also].contains(&count) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
            });
            let store = Store::open_in(Environment::on(gate), dir.path(), options()).unwrap();
            store.create("a", &LogSettings::default()).unwrap();
            store.get("a").unwrap().append(b"x").unwrap();
            store.get("a").unwrap().flush().unwrap();
            deleting.store(true, Ordering::SeqCst);
            loop {
                match store.delete("a") {
                    Ok(()) | Err(Error::NotFound { .. }) => break,
                    Err(error) => {
                        assert!(matches!(error, Error::Log(LogError::Io { .. })), "{nth}, {also}: {error}");
                    }
                }
            }
            deleting.store(false, Ordering::SeqCst);
            store.inner.turn();
            assert!(store.create("a", &LogSettings::default()).unwrap());
            assert_eq!(store.get("a").unwrap().next_offset(), 0);
            drop(store);
            Store::open(dir.path(), options()).unwrap().close().unwrap();
            assert_eq!(stands(dir.path()), ["a"], "{nth}, {also}");
        }
    }
}

#[test]
fn delete_of_a_log_that_is_not_open_takes_its_backings() {
    use crate::chunk::{BackingDir, ChunkMemory, LogBackings};
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with = || {
        let mut options = options();
        options.log.shm_dir = Some(at.path().to_owned());
        options
    };
    let store = Store::open(dir.path(), with()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let id = store.get("a").unwrap().id();
    store.close().unwrap();
    let path = dir.path().join("a");
    let disk = crate::disk::native();
    let node = disk.node(&path).unwrap();
    let backings =
        Arc::new(LogBackings::new(BackingDir::open(&*disk, at.path(), id, &path, node).unwrap(), [1; 16], 1));
    backings.keep();
    drop(ChunkMemory::backed(4096, &backings).unwrap()); // as a killed process leaves it
    let store = Store::open(dir.path(), with()).unwrap();
    store.delete("a").unwrap();
    store.inner.turn();
    store.close().unwrap();
    drop(Store::open(dir.path(), with()).unwrap());
    assert_eq!(backings.dir.find().unwrap().len(), 0, "they stay for ever");
}

#[test]
fn leftovers_of_a_deleted_log_do_not_prevent_a_store_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    store.create("b", &LogSettings::default()).unwrap();
    store.close().unwrap();
    std::fs::rename(dir.path().join("b"), dir.path().join(".deleted-1-b")).unwrap();
    let mut options = options();
    options.log.shm_dir = Some(dir.path().join("no/such/place"));
    let store = Store::open(dir.path(), options).unwrap_or_else(|error| panic!("{error}"));
    store.get("a").unwrap();
}
