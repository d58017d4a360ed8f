//! Logs whose disk has no room to continue when they are opened: they can be read, and trimmed to make room.

use super::{DIR, files_in, open, random, small, values};
use crate::{
    Error, Log,
    disk::{
        Disk,
        gate::{Gate, Operation},
        sim::{Cut, Sim},
    },
    log::Environment,
    store::{LogSettings, Store, StoreOptions},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const SEGMENTS: u64 = 5;

fn value(n: u64) -> Vec<u8> {
    random(2000, n)
}

/// A log of some sealed segments; and none that is open, or one with a torn end.
fn stopped(torn: bool) -> (Sim, u64) {
    let sim = Sim::new(3);
    let log = open(&sim, small(None)).unwrap();
    let mut next = 0;
    while log.shared.chain.load().segments.len() as u64 <= SEGMENTS {
        log.append(&value(next)).unwrap();
        log.wait_durable(next).unwrap();
        next += 1;
    }
    drop(log);
    let sim = sim.after(Cut::Kill);
    let last = sim.dump().into_keys().filter(|path| path.extension().is_some_and(|end| end == "seg")).max();
    let last = last.unwrap();
    if torn {
        sim.damage(&last, |bytes| bytes[512..1024].fill(0)); // the mark of a clean close
        sim.damage(&last, |bytes| {
            let end = bytes.iter().rposition(|&byte| byte != 0).unwrap().next_multiple_of(512);
            bytes[end..end + 512].fill(7);
        });
    } else {
        let base = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        crate::disk::Disk::remove(&sim, &last).unwrap();
        next = base;
    }
    (sim, next)
}

fn is_full(log: &Log) -> bool {
    matches!(log.append(b"no"), Err(Error::Full { .. })) && matches!(log.writable(), Err(Error::Full { .. }))
}

#[test]
fn without_room_a_log_is_opened_for_reading_and_written_again_once_there_is_some() {
    for torn in [false, true] {
        let (sim, next) = stopped(torn);
        sim.set_room(Some(0));
        for _ in 0..2 {
            let log = open(&sim, small(None)).unwrap();
            assert_eq!(log.damage(), []);
            assert!(is_full(&log), "torn: {torn}");
            assert_eq!(values(&log), (0..next).map(value).collect::<Vec<_>>());
            log.close().unwrap();
        }
        sim.set_room(None);
        let log = open(&sim, small(None)).unwrap();
        assert_eq!(log.append(&value(next)).unwrap(), next);
        log.wait_durable(next).unwrap();
        assert_eq!(values(&log).len() as u64, next + 1);
        let kept = sim.dump().into_keys().filter(|path| path.extension().is_some_and(|end| end == "torn"));
        assert_eq!(kept.count(), usize::from(torn));
    }
}

/// An opening that keeps a torn end and then fails may do so again and again: that must not displace what was kept
/// before.
#[test]
fn a_torn_end_is_kept_once_however_often_opening_fails() {
    let (sim, next) = stopped(true);
    let kept = |sim: &Sim| {
        sim.dump()
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|end| end == "torn"))
            .collect::<Vec<_>>()
    };
    for steps in 1..40 {
        let mut sim = sim.snapshot();
        for attempt in 0..10 {
            sim.fail_after(steps);
            let opened = open(&sim, small(None)).map(|log| log.next_offset());
            assert!(opened.is_err() || opened.is_ok_and(|end| end == next));
            sim = sim.after(Cut::Kill);
            let kept = kept(&sim);
            assert!(kept.len() <= 1, "step {steps}, attempt {attempt}: {} are kept", kept.len());
            assert!(kept.iter().all(|(_, bytes)| bytes.ends_with(&[7; 512])));
        }
        open(&sim, small(None)).unwrap().writable().unwrap();
        assert_eq!(kept(&sim).len(), 1);
    }
}

#[test]
fn without_room_a_log_can_be_trimmed_and_continues_when_it_is_opened_again() {
    for torn in [false, true] {
        let (sim, next) = stopped(torn);
        sim.leave_room(0);
        let log = open(&sim, small(None)).unwrap();
        assert!(is_full(&log));
        let first = log.trim(next).unwrap();
        assert!(first > 0 && first == log.first_offset());
        assert_eq!(log.trim(next).unwrap(), first);
        assert_eq!(values(&log), (first..next).map(value).collect::<Vec<_>>());
        assert!(log.has_room_again());
        log.close().unwrap();
        let log = open(&sim, small(None)).unwrap();
        assert_eq!((log.first_offset(), log.append(&value(next)).unwrap()), (first, next));
    }
}

#[test]
fn a_store_opens_a_log_again_when_there_is_room_also_where_somebody_reads_it() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    for torn in [false, true] {
        let (sim, next) = stopped(torn);
        let (store, name) = (Path::new("/store"), "a");
        crate::disk::Disk::create_dir(&sim, store).unwrap();
        sim.graft(Path::new(DIR), &store.join(name), false);
        sim.set_room(Some(0));
        let options = StoreOptions { log: small(Some(at.path())), ..StoreOptions::default() };
        let store = Store::open_in(Environment::on(Arc::new(sim.clone())), store, options).unwrap();
        let held = store.get(name).unwrap();
        assert!(is_full(&held));
        store.turn();
        assert!(Arc::ptr_eq(&held, &store.get(name).unwrap()), "there is no room yet");
        sim.set_room(None);
        store.turn();
        let again = store.get(name).unwrap();
        assert_eq!(again.append(&value(next)).unwrap(), next);
        assert!(held.append(b"no").is_err() && held.trim(next).is_err());
        assert_eq!(values(&held).len() as u64, next);
        assert!(store.create(name, &LogSettings::default()).is_ok());
        store.delete(name).unwrap();
        drop((held, again));
        store.close().unwrap();
        assert_eq!(files_in(at.path()), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn retention_makes_room_for_a_log_that_was_opened_without() {
    for torn in [false, true] {
        let (sim, next) = stopped(torn);
        let place = Path::new("/store");
        crate::disk::Disk::create_dir(&sim, place).unwrap();
        sim.graft(Path::new(DIR), &place.join("a"), false);
        let settings = LogSettings { retention_bytes: Some(10 << 10), ..LogSettings::default() };
        let options = || StoreOptions { log: small(None), ..StoreOptions::default() };
        {
            let store = Store::open_in(Environment::on(Arc::new(sim.clone())), place, options()).unwrap();
            store.create("model", &settings).unwrap();
            store.close().unwrap();
        }
        let written = sim.dump()[&place.join("model/log.json")].clone();
        let path = place.join("a/log.json");
        crate::disk::Disk::write_file(&sim, &path, &written).unwrap();
        sim.leave_room(0);
        let store = Store::open_in(Environment::on(Arc::new(sim.clone())), place, options()).unwrap();
        assert!(is_full(&store.get("a").unwrap()));
        for _ in 0..3 {
            store.turn();
        }
        let log = store.get("a").unwrap();
        assert!(log.first_offset() > 0);
        assert_eq!(log.append(&value(next)).unwrap(), next);
    }
}

/// The process was killed while the last record was being copied, and there was no room to keep that torn end aside:
/// the log did not open, not even for reading.
#[test]
fn without_room_for_the_torn_end_of_a_backing_a_log_is_opened_for_reading() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = super::repairing::log_with_memory(at.path());
    for backing in files_in(at.path()) {
        let mut bytes = std::fs::read(&backing).unwrap();
        let last = 4096 + 14 * 32;
        if bytes[last..last + 24].iter().any(|&byte| byte != 0) {
            bytes[last] ^= 1; // its CRC is stored last
            super::overwrite(&backing, &bytes);
        }
    }
    disk.set_room(Some(0));
    let options = || super::repairing::in_memory(at.path());
    for _ in 0..2 {
        let log = open(&disk, options()).unwrap();
        assert!(log.append(b"no").is_err_and(|error| error.is_full()));
        assert_eq!(values(&log), (0..14u64).map(|n| n.to_le_bytes().to_vec()).collect::<Vec<_>>());
    }
    assert!(!files_in(at.path()).is_empty());
    disk.set_room(None);
    let log = open(&disk, options()).unwrap();
    assert_eq!(log.append(b"on").unwrap(), 14);
    log.close().unwrap();
    assert!(files_in(at.path()).is_empty());
    assert!(disk.dump().into_keys().any(|path| path.extension().is_some_and(|end| end == "torn")));
}

/// Which operation needs room depends on the file system. Whichever it was, the log did not open.
#[test]
fn whichever_operation_of_opening_finds_the_disk_full_the_log_is_opened_for_reading() {
    for (wants, torn) in [
        (Operation::Rename, false),
        (Operation::Remove, false),
        (Operation::SetLength, true),
        (Operation::Reserve, true),
    ] {
        let (sim, next) = stopped(torn);
        crate::disk::Disk::create(&sim, Path::new("/log/next-7.tmp"), 0).unwrap(); // a file that was prepared
        let full = Arc::new(AtomicBool::new(true));
        let is_full = Arc::clone(&full);
        let gate = Gate::new(Arc::new(sim.clone()), move |operation, _| {
            let hit = operation == wants && is_full.load(Ordering::SeqCst);
            if hit { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
        });
        // The segment is larger than allowed now: it is sealed.
        let options = || super::options(4 << 10, 4 << 10, 64 << 10, None);
        let open = || Log::open_on(gate.clone(), Path::new(DIR), options());
        let log = open().unwrap_or_else(|error| panic!("{wants:?}: {error}"));
        assert!(matches!(log.append(b"no"), Err(Error::Full { .. })), "{wants:?}");
        assert_eq!(values(&log).len() as u64, next, "{wants:?}");
        drop(log);
        full.store(false, Ordering::SeqCst);
        assert_eq!(open().unwrap().append(b"on").unwrap(), next, "{wants:?}");
    }
}

/// A log that was copied or restored from a backup: `cp`, `tar` and `rsync` leave holes in its open segment. On a full
/// disk its writer failed for good, while other logs wait for room.
#[test]
fn the_room_of_a_segment_is_reserved_again_when_it_is_resumed() {
    use std::os::unix::fs::MetadataExt;
    let place = tempfile::tempdir().unwrap();
    let (dir, size) = (place.path().join("log"), 1 << 20);
    let open = || Log::open(&dir, super::options(size, size, 8 << 20, None)).unwrap();
    let log = open();
    log.append(b"first").and_then(|at| log.wait_durable(at)).unwrap();
    log.close().unwrap();
    let file = dir.join("00000000000000000000.seg");
    let blocks = || std::fs::metadata(&file).unwrap().blocks() * 512;
    if blocks() < size {
        return; // the file system does not reserve blocks
    }
    // With holes, as in a copy.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let copy = std::fs::File::create(&file).unwrap();
    copy.set_len(bytes.len() as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&copy, &bytes[..8192], 0).unwrap();
    copy.sync_all().unwrap();
    drop(copy);
    assert!(blocks() < size);
    let log = open();
    assert_eq!(log.next_offset(), 1);
    assert!(blocks() >= size);
}

/// A closed log on a full disk dropped eight old segments, was closed again, and had its next turn much later.
#[test]
fn retention_of_a_closed_log_continues_where_the_disk_is_full() {
    let sim = Sim::new(3);
    let log = open(&sim, small(None)).unwrap();
    let mut next = 0;
    while log.shared.chain.load().segments.len() <= 60 {
        log.append(&value(next)).unwrap();
        log.wait_durable(next).unwrap();
        next += 1;
    }
    log.close().unwrap();
    let segments = |sim: &Sim| {
        let names = sim.dump().into_keys();
        names.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect::<Vec<_>>()
    };
    // Without its open segment it needs room for another.
    Disk::remove(&sim, segments(&sim).last().unwrap()).unwrap();
    let (place, settings) = (Path::new("/store"), r#"{"retention_seconds":1}"#);
    Disk::create_dir(&sim, place).unwrap();
    sim.graft(Path::new(DIR), &place.join("a"), false);
    Disk::write_file(&sim, &place.join("a/log.json"), settings.as_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    sim.leave_room(0);
    let options = StoreOptions { log: small(None), ..StoreOptions::default() };
    let store = Store::open_in(Environment::on(Arc::new(sim.clone())), place, options).unwrap();
    let before = segments(&sim).len();
    for _ in 0..10 {
        store.turn();
    }
    let left = segments(&sim).len();
    assert!(before > 50 && left < 5, "{left} of {before}");
}

/// The holes of an open segment were more than the disk had free, and a segment of the smallest size was not: each second
/// there seemed to be room, all callers that waited for the log got an error, and it was opened and was full again.
#[test]
fn room_for_the_smallest_segment_is_not_room_for_the_holes_of_the_open_one() {
    for capacity in [None, Some(4 << 10)] {
        let (sim, next) = stopped(true);
        let full = Arc::new(AtomicBool::new(true));
        let is_full_now = Arc::clone(&full);
        let gate = Gate::new(Arc::new(sim), move |operation, _| {
            let hit = operation == Operation::Reserve && is_full_now.load(Ordering::SeqCst);
            if hit { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
        });
        // With a limit below its size it is sealed, which wants room in its file, too.
        let options = || capacity.map_or_else(|| small(None), |max| super::options(max, max, 64 << 10, None));
        let open = || Log::open_on(gate.clone(), Path::new(DIR), options()).unwrap();
        let log = open();
        assert!(is_full(&log));
        assert!(!log.has_room_again());
        full.store(false, Ordering::SeqCst);
        assert!(log.has_room_again());
        drop(log);
        assert_eq!(open().append(&value(next)).unwrap(), next);
    }
}
