//! Clones of a log, and closing it by one of them.

use super::*;

#[test]
fn a_log_is_closed_when_its_last_clone_is_dropped() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let other = log.clone();
    log.append(b"one").unwrap();
    drop(log);
    assert!(matches!(open(&sim), Err(Error::InUse { .. })));
    assert_eq!(other.append(b"two").unwrap(), 1);
    drop(other);
    let log = open(&sim).unwrap();
    assert_eq!(values(&log), [b"one", b"two"]);
}

#[test]
fn a_log_that_a_clone_has_closed_can_be_opened_again_and_the_others_change_nothing() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    for n in 0..2_000u32 {
        log.append(&n.to_le_bytes()).unwrap();
    }
    let mut reader = log.reader(0);
    let other = log.clone();
    other.shutdown().unwrap();

    let again = open(&sim).unwrap();
    assert_eq!(again.append(b"next").unwrap(), 2_000);
    again.flush().unwrap();
    assert!(matches!(log.append(b"x"), Err(Error::Closed)));
    assert!(matches!(log.try_append(b"x"), Err(Error::Closed)));
    assert!(matches!(log.writable(), Err(Error::Closed)));
    assert!(matches!(log.roll(), Err(Error::Closed)));
    assert!(matches!(log.trim(1_000), Err(Error::Closed)));
    assert!(matches!(log.wait_durable_for(5_000, Duration::ZERO), Err(Error::Closed)));
    log.wait_durable(1_999).unwrap();
    assert!(log.shutdown().is_ok() && log.clone().close().is_ok());
    // What is in memory is read; no file is opened that may be another log's.
    assert_eq!(log.read(1_999).unwrap().unwrap().value(), 1_999u32.to_le_bytes());
    assert!(matches!(reader.read(0), Err(Error::Closed)));
    drop((log, other));
    assert_eq!((again.first_offset(), again.next_offset()), (0, 2_001));
    again.append(b"more").unwrap();
    again.close().unwrap();
    let report = inspect::verify_on(&sim, Path::new(DIR), None, &mut |_, _| ()).unwrap();
    assert_eq!((report.damage, report.next), (vec![], 2_002));
}

#[test]
fn threads_that_close_a_log_at_once_all_wait_until_it_is_closed() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let log = open(&sim).unwrap();
        let last = log.append(&[7; 500]).unwrap();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                let log = log.clone();
                threads.spawn(|| {
                    let closed = log.shutdown();
                    assert!(closed.is_ok() && log.durable_offset() > last, "{closed:?}");
                    drop(log);
                });
            }
        });
        drop(log);
        assert_eq!(open(&sim).unwrap().next_offset(), last + 1);
    }
}

#[test]
fn every_clone_is_told_that_closing_failed() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    log.append(b"one").unwrap();
    log.flush().unwrap();
    sim.fail_after(0);
    log.append(b"two").unwrap();
    let other = log.clone();
    for log in [log, other] {
        assert!(matches!(log.shutdown(), Err(Error::Failed { .. })));
        assert!(matches!(log.append(b"three"), Err(Error::Failed { .. })));
    }
}

#[test]
fn of_a_closed_log_that_is_held_the_memory_of_the_last_segment_is_left() {
    let (dir, shm) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let options = Options { shm_dir: Some(shm.path().to_owned()), ..small() };
    let log = Log::open(dir.path(), options.clone()).unwrap();
    for _ in 0..1000 {
        log.append(&[7; 100]).unwrap();
    }
    log.flush().unwrap();
    let held = log.clone();
    log.close().unwrap();
    let backings = |at: &Path| {
        let dirs = std::fs::read_dir(at).unwrap().map(|dir| dir.unwrap().path());
        let logs = dirs.flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|log| log.unwrap().path()));
        logs.flat_map(|log| std::fs::read_dir(log).unwrap()).count()
    };
    assert!(backings(shm.path()) <= 1, "{}", backings(shm.path()));
    assert_eq!(held.stats().chunk_bytes, 0);
    let again = Log::open(dir.path(), options).unwrap();
    drop(held);
    assert_eq!(again.append_wait_durable(b"next").unwrap(), 1000);
}
