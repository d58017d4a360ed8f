//! Clones of a store's logs, which callers keep, close and drop when they like.

use super::{super::*, options};
use crate::{
    disk::gate::{Gate, Operation},
    log::{Log, Options},
};

#[test]
fn a_clone_keeps_a_log_of_a_store_open_and_may_outlive_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open_in(Environment::system(), dir.path(), StoreOptions { idle: Duration::ZERO, ..options() });
    let store = store.unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let log = Log::clone(&store.get("a").unwrap());
    std::thread::sleep(Duration::from_millis(5));
    store.inner.turn();
    store.inner.close_idlest(100);
    assert_eq!(store.counts().open, 1);
    log.append(b"one").unwrap();
    assert!(store.close().is_ok());
    assert_eq!(log.append_wait_durable(b"two").unwrap(), 1);
    let in_use = |error: &LogError| matches!(error, LogError::InUse { .. });
    assert!(matches!(Store::open(dir.path(), options()), Err(Error::Log(error)) if in_use(&error)));
    drop(log);
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(store.get("a").unwrap().next_offset(), 2);
}

#[test]
fn a_log_of_a_store_that_a_clone_has_closed_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let held = store.get("a").unwrap();
    held.append(b"one").unwrap();
    held.shutdown().unwrap();
    assert!(matches!(held.append(b"two"), Err(LogError::Closed)));
    assert!(store.get_open("a").is_none());
    assert_eq!(store.get("a").unwrap().append_wait_durable(b"two").unwrap(), 1);
    assert_eq!(held.next_offset(), 1);
    store.inner.turn();
    drop(held);
    assert_eq!(store.get_open("a").unwrap().append(b"three").unwrap(), 2);
}

/// The log was opened again while a change of a cursor was still being written through the earlier opening: the last one to
/// write the file won.
#[test]
fn a_log_that_a_clone_closes_is_opened_again_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (writes, written) = crossbeam::channel::bounded::<()>(1);
    let (release, released) = crossbeam::channel::bounded::<()>(1);
    let gate = Gate::new(crate::disk::native(), move |operation, path: &Path| {
        let is_cursors = path.to_string_lossy().contains("cursors");
        if operation == Operation::WriteFile && is_cursors && writes.try_send(()).is_ok() {
            let _ = released.recv();
        }
        Ok(())
    });
    let store = Store::open_in(Environment::on(gate), dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let old = store.get("a").unwrap();
    for _ in 0..10 {
        old.append_wait_durable(b"x").unwrap();
    }
    let cursor = old.cursor("c").unwrap();
    std::thread::scope(|threads| {
        let slow = threads.spawn(|| cursor.set(1));
        while written.is_empty() {
            std::thread::yield_now();
        }
        let closing = threads.spawn(|| old.shutdown());
        while !old.is_closing() {
            std::thread::yield_now();
        }
        assert!(store.get_open("a").is_none());
        let again = threads.spawn(|| store.get("a").unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!closing.is_finished() && !again.is_finished());
        release.send(()).unwrap();
        closing.join().unwrap().unwrap();
        let _ = slow.join().unwrap(); // stored, or not
        let again = again.join().unwrap();
        again.cursor("c").unwrap().set(7).unwrap();
        again.cursor("d").unwrap().set(5).unwrap();
    });
    assert!(matches!(cursor.set(2), Err(LogError::Closed)));
    drop((cursor, old));
    store.close().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let cursors: Vec<_> = store.get("a").unwrap().cursors().unwrap().into_iter().collect();
    assert_eq!(cursors, [("c".to_owned(), 7), ("d".to_owned(), 5)]);
}

/// It stayed as it was for as long as somebody held it.
#[test]
fn a_failed_log_that_a_clone_has_closed_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let gate = Gate::new(crate::disk::native(), move |operation, _: &Path| {
        let fails = operation == Operation::Write && failing.load(Ordering::Relaxed);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    });
    let store = Store::open_in(Environment::on(gate), dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let old = store.get("a").unwrap();
    old.append_wait_durable(b"x").unwrap();
    fails.store(true, Ordering::Relaxed);
    assert!(old.append_wait_durable(b"y").is_err());
    fails.store(false, Ordering::Relaxed);
    assert!(matches!(old.shutdown(), Err(LogError::Failed { .. })));
    let again = store.get("a").unwrap();
    let offset = again.append_wait_durable(b"z").unwrap();
    assert_eq!(again.read(offset).unwrap().unwrap().value(), b"z");
    assert!(matches!(old.append(b"z"), Err(LogError::Failed { .. })));
}

/// Retention stood still in a log that a clone had closed, for as long as somebody held it.
#[test]
fn a_log_that_a_clone_has_closed_is_closed_for_the_housekeeper_and_the_scrubber() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let held = store.get("a").unwrap();
    for _ in 0..200 {
        held.append(&[7; 100]).unwrap();
    }
    held.roll().unwrap();
    held.shutdown().unwrap();
    let mut read = 0;
    store.inner.scrub(&mut |bytes| {
        read += bytes;
        true
    });
    assert!(read > 20_000, "{read}");
    let again = store.get("a").unwrap();
    again.shutdown().unwrap();
    store.inner.turn();
    assert_eq!(store.counts().open, 0);
}

/// What the first opening still had to write went over what the second one had appended.
#[test]
fn a_close_that_panics_is_finished_before_the_log_is_opened_again() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker of this test");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let log = Options { shm_dir: None, ..options().log };
    let store = Store::open(dir.path(), StoreOptions { log, ..options() }).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let old = store.get("a").unwrap();
    old.append_wait_durable(b"first").unwrap();
    let (waker, mut waits) = (Arc::new(Panics).into(), Box::pin(old.visible(500)));
    let mut context = std::task::Context::from_waker(&waker);
    assert!(Future::poll(waits.as_mut(), &mut context).is_pending());
    let offset = old.append(b"old").unwrap();
    let clone = Log::clone(&old);
    assert!(std::thread::spawn(move || clone.shutdown()).join().is_err());
    let again = store.get("a").unwrap();
    assert_eq!(again.append_wait_durable(b"new").unwrap(), offset + 1);
    drop((waits, old, again));
    store.close().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let values =
        store.get("a").unwrap().iter(0).map(|record| record.unwrap().value().to_vec()).collect::<Vec<_>>();
    assert_eq!(values, [&b"first"[..], b"old", b"new"]);
}
