//! The scrubber and the logs of a store: what it keeps of its findings, and what it does not get in the way of.

use super::*;
use crate::store::scrubber::{Pace, Scrubber};
use std::{
    fs,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

/// A store of some logs with sealed segments.
fn filled(dir: &Path, names: &[&str]) -> Store {
    let store = Store::open(dir, options()).unwrap();
    for name in names {
        store.create(name, &LogSettings::default()).unwrap();
        let log = store.get(name).unwrap();
        for n in 0..200u32 {
            log.append(&[n as u8; 100]).unwrap();
        }
        log.roll().unwrap();
    }
    store
}

/// Changes a bit in the value of a record of the first segment of a log.
fn flip(dir: &Path, log: &str, record: u64) {
    let path = dir.join(log).join("00000000000000000000.seg");
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let (mut byte, at) = ([0], 4096 + record * 128 + 50);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// The offsets that are known to be damaged.
fn damaged(store: &Store, log: &str) -> Vec<u64> {
    store.get(log).unwrap().known_damage().into_iter().flat_map(|damage| damage.offsets).collect()
}

#[test]
fn findings_stay_while_the_log_is_closed_and_are_gone_when_a_later_scrub_finds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), &["a", "b", "c"]);
    flip(dir.path(), "b", 3);
    assert!(store.inner.scrub(&mut |_| true));
    for (log, expected) in [("a", vec![]), ("b", vec![3]), ("c", vec![])] {
        assert_eq!(damaged(&store, log), expected, "{log}");
    }
    let entry = store.inner.entry("b").unwrap();
    entry.close();
    assert!(entry.open.load().is_none());
    assert_eq!(damaged(&store, "b"), [3], "after closing");
    entry.close();
    flip(dir.path(), "b", 9);
    assert!(store.inner.scrub(&mut |_| true));
    assert!(entry.open.load().is_none(), "closed again after it was scrubbed");
    assert_eq!(damaged(&store, "b"), [3, 9]);
    flip(dir.path(), "b", 3);
    assert!(store.inner.scrub(&mut |_| true));
    assert_eq!(damaged(&store, "b"), [9]);
    let b = store.get("b").unwrap();
    assert!(b.writable().is_ok(), "it goes on");
    assert!(b.trim(100).unwrap() > 9);
    assert_eq!(damaged(&store, "b"), [] as [u64; 0], "trimmed");
}

/// What the opening has found is listed once.
#[test]
fn what_opening_and_scrub_have_found_is_listed_once() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), &["a", "b", "c"]).close().unwrap();
    flip(dir.path(), "a", 3);
    let path = dir.path().join("a/00000000000000000000.seg");
    let mut bytes = fs::read(&path).unwrap();
    let footer = bytes.len() - 4096;
    bytes[footer] ^= 1; // so that the opening reads the frames
    fs::write(&path, bytes).unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!(damaged(&store, "a"), [3]);
    flip(dir.path(), "a", 7);
    assert!(store.inner.scrub(&mut |_| true));
    assert_eq!(damaged(&store, "a"), [3, 7]);
}

/// Each of these happens after every read of a damaged segment, of a log that is in use and of one that the scrubber opens.
#[test]
fn logs_are_closed_trimmed_and_deleted_while_they_are_scrubbed() {
    for (what, is_open, after) in ["close", "trim", "delete"]
        .into_iter()
        .flat_map(|what| [true, false].map(|is_open| (what, is_open)))
        .flat_map(|(what, is_open)| (0..5).map(move |after| (what, is_open, after)))
    {
        let place = format!("{what} after {after}, is open: {is_open}");
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path(), &["a"]);
        flip(dir.path(), "a", 3);
        let entry = store.inner.entry("a").unwrap();
        if !is_open {
            entry.close();
        }
        let calls = AtomicUsize::new(0);
        let goes_on = store.inner.scrub(&mut |_| {
            if calls.fetch_add(1, SeqCst) != after {
                return true;
            }
            match what {
                "close" if is_open => {
                    entry.close();
                    assert!(entry.open.load().is_none(), "{place}: a log that others use is kept open");
                }
                "close" => {}
                "trim" => assert!(store.get("a").unwrap().trim(100).unwrap() > 3),
                _ => {
                    store.delete("a").unwrap();
                    store.create("a", &LogSettings::default()).unwrap(); // its files have the same names
                }
            }
            true
        });
        assert!(goes_on, "{place}");
        let expected = if what == "close" { vec![3] } else { vec![] };
        assert_eq!(damaged(&store, "a"), expected, "{place}");
        let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let of_this =
            |file: &fs::DirEntry| fs::read_link(file.path()).is_ok_and(|to| to.starts_with(dir.path()));
        let open = files.filter(|file| of_this(file)).count();
        assert!(open <= 4, "{place}: {open} descriptors");
        store.close().unwrap();
    }
}

#[test]
fn the_rate_is_kept_and_the_store_is_closed_without_waiting_for_it() {
    let (stop, stopped) = crossbeam::channel::bounded(1);
    let begun = Instant::now();
    let mut pace = Pace { bytes_per_second: 1 << 20, stopped, due: begun };
    for _ in 0..8 {
        assert!(pace.pass(64 << 10));
    }
    assert!(begun.elapsed() >= Duration::from_millis(499), "{:?} for half a mebibyte", begun.elapsed());
    drop(stop);
    assert!(!pace.pass(1 << 40));

    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), &["a", "b", "c"]).close().unwrap();
    let options = StoreOptions { scrub_bytes_per_second: 1, ..options() };
    let store = Store::open(dir.path(), options).unwrap();
    while store.counts().open == 0 {
        std::thread::sleep(Duration::from_millis(5)); // it has opened the first log
    }
    let begun = Instant::now();
    store.close().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let none = StoreOptions { scrub_bytes_per_second: 0, ..super::options() };
    let store = Store::open(dir.path(), none).unwrap();
    assert!(Scrubber::start(&store.inner).unwrap().is_none());
}

/// The scrubber was waited for without a limit, before any log was closed.
#[test]
fn a_disk_that_hangs_under_a_log_that_is_scrubbed_does_not_keep_the_others_open() {
    use crate::disk::gate::{Gate, Operation};
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), &["a", "b"]).close().unwrap();
    let (hangs, hung) = crossbeam::channel::bounded::<()>(1);
    let (released, release) = crossbeam::channel::bounded::<()>(1);
    let gate = Gate::new(crate::disk::native(), move |operation, path: &Path| {
        if operation == Operation::Read && path.parent().is_some_and(|dir| dir.ends_with("a")) {
            let _ = hangs.try_send(());
            let _ = release.recv(); // nothing is sent
        }
        Ok(())
    });
    let options = StoreOptions { scrub_bytes_per_second: 1 << 30, ..options() };
    let mut store = Store::open_in(Environment::on(gate), dir.path(), options).unwrap();
    store.get("b").unwrap().append_wait_durable(b"x").unwrap();
    store.scrubber = Scrubber::start(&store.inner).unwrap();
    hung.recv_timeout(Duration::from_secs(20)).unwrap();
    let begun = Instant::now();
    store.close().unwrap();
    assert!(begun.elapsed() < MAX_CLOSE_TIME * 2, "{:?}", begun.elapsed());
    drop(released);
}

/// The room of a deleted file is free when it is closed.
#[test]
fn the_file_of_a_deleted_log_is_not_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = Options { segment_bytes: 8 << 20, memory_bytes: 64 << 20, ..options().log };
    let store = Store::open(dir.path(), StoreOptions { log, ..options() }).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let log = store.get("a").unwrap();
    for _ in 0..6 {
        log.append(&vec![7; 4 << 20]).unwrap();
    }
    log.roll().unwrap();
    drop(log);
    let calls = AtomicUsize::new(0);
    assert!(store.inner.scrub(&mut |_| {
        if calls.fetch_add(1, SeqCst) == 2 {
            store.delete("a").unwrap();
        }
        true
    }));
    assert_eq!(calls.load(SeqCst), 3);
}

/// The thread's hold of the store, and of its lock, outlived what was waited for (found by fuzzing).
#[test]
fn a_store_that_was_closed_can_be_opened_again_at_once() {
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                let dir = tempfile::tempdir().unwrap();
                for _ in 0..200 {
                    let options = StoreOptions { scrub_bytes_per_second: 1 << 20, ..options() };
                    Store::open(dir.path(), options).unwrap().close().unwrap();
                }
            });
        }
    });
}
