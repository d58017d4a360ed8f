//! Histories of several processes on one log: backings that some of them did not see, and a failing disk.

use super::{
    super::super::{Durability, Error, Log, Options},
    DIR,
    backings::{closed, leave, left_by},
    files_in, kill, killed_with_memory, open, options, small,
};
use crate::{
    chunk::Predecessor,
    disk::{
        gate::{Gate, Operation},
        sim::Sim,
    },
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A backing has more records than the disk, and its segment was sealed by a process that did not see it.
#[test]
fn backing_with_more_than_a_sealed_segment_is_kept() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let o = |backings| Options { durability: Durability::Memory, ..small(backings) };
    let disk = killed_with_memory(o(Some(at.path())));
    let log = open(&disk, o(None)).unwrap();
    log.append(&[9; 3900]).unwrap(); // does not fit: the segment ends with 10 records
    log.close().unwrap();
    assert!(!files_in(at.path()).is_empty());
    open(&disk, o(Some(at.path()))).unwrap().close().unwrap();
    assert!(!files_in(at.path()).is_empty(), "5 acknowledged records went with the backing");
}

/// An empty chunk was replaced (for a batch larger than it), and the process killed before the flusher had moved on.
#[test]
fn the_successor_of_an_empty_chunk_becomes_active() {
    for log_records in [10u64, 0] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, last) = closed(at.path(), log_records);
        let backings = left_by(at.path(), id, secret, DIR, 7);
        let predecessor = last.map_or(Predecessor::Nothing, Predecessor::Frame);
        leave(&backings, secret, log_records, 0, false, predecessor);
        leave(&backings, secret, log_records, 5, false, Predecessor::Unknown);
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!(log.next_offset(), log_records + 5, "{log_records}");
    }
}

/// The first batch is larger than the empty chunk, and the process is killed before the flusher has had its turn.
#[test]
fn first_large_batch_then_kill() {
    let mut lost = 0;
    for _ in 0..20 {
        let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
        let o = || Options { durability: Durability::Memory, ..small(Some(at.path())) };
        let log = open(&sim, o()).unwrap();
        log.append(&[7; 6000]).unwrap();
        // The state at this moment.
        let disk = sim.snapshot();
        let backings: Vec<_> =
            files_in(at.path()).into_iter().filter_map(|p| Some((std::fs::read(&p).ok()?, p))).collect();
        log.close().unwrap();
        for (bytes, path) in backings {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let log = open(&disk, o()).unwrap();
        lost += u64::from(log.next_offset() == 0);
        log.close().unwrap();
    }
    assert_eq!(lost, 0, "of 20");
}

/// On a full disk the advice to users is to trim: that must work.
#[cfg(feature = "store")]
#[test]
fn trim_on_a_full_disk_with_producers() {
    let sim = Sim::new(1);
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_full = Arc::clone(&full);
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, _| {
        let hit = matches!(operation, Operation::Create | Operation::WriteFile)
            && is_full.load(std::sync::atomic::Ordering::SeqCst);
        if hit { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
    });
    let log = Log::open_on(gate, Path::new(DIR), small(None)).unwrap();
    let send = |sequence| {
        let batch = crate::ProducerBatch::new("p", 0, sequence);
        let value = [7; 1000];
        let payload = crate::Payload { bytes: &value, json: false };
        loop {
            match log.try_append_once(&batch, &[payload], None) {
                Err(Error::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(1)),
                done => break done.unwrap(),
            }
        }
    };
    for sequence in 0..60 {
        send(sequence);
    }
    log.flush().unwrap();
    log.save_producers().unwrap(); // the housekeeper does this each second: up_to is 60
    send(60);
    send(61);
    log.flush().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let trimmed = log.trim(u64::MAX);
    assert!(trimmed.unwrap() > 0);
}

/// The records in memory had their file, already reserved: if killed on a disk with no more room than that, the log
/// opens again.
#[test]
fn kill_on_a_nearly_full_disk_opens() {
    let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
    let o = || Options { durability: Durability::Memory, ..small(Some(at.path())) };
    let log = open(&sim, o()).unwrap();
    for n in 0..20u8 {
        log.append(&[n; 100]).unwrap();
    }
    log.flush().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100)); // the spare segment is made
    let before = sim.snapshot();
    sim.hold(true);
    for n in 20..40u8 {
        log.append(&[n; 100]).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    kill(log);
    let used: u64 = before.dump().values().map(|bytes| bytes.len() as u64).sum();
    before.set_room(Some(used));
    let log = open(&before, o()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(log.next_offset(), 40);
}

/// A read fails once; a caller that tries again gets the record.
#[test]
fn a_read_that_fails_once_is_not_damage() {
    let sim = Sim::new(1);
    let o = || options(1 << 20, 1 << 20, 8 << 20, None);
    let log = open(&sim, o()).unwrap();
    for n in 0..1500u64 {
        let mut value = [7; 1000];
        value[..8].copy_from_slice(&n.to_le_bytes());
        log.append(&value).unwrap();
    }
    log.close().unwrap();
    let fail = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fails = Arc::clone(&fail);
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, _| {
        let hit = operation == Operation::Read && fails.swap(false, std::sync::atomic::Ordering::SeqCst);
        if hit { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(()) }
    });
    let log = Log::open_on(gate, Path::new(DIR), o()).unwrap();
    let mut reader = log.reader(0);
    for _ in 0..10 {
        reader.read_next().unwrap().unwrap();
    }
    fail.store(true, std::sync::atomic::Ordering::SeqCst);
    let (mut failed, mut damaged) = (0, 0);
    loop {
        match reader.read_next() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(Error::Damaged { .. }) => damaged += 1,
            Err(_) => failed += 1,
        }
        if reader.offset() > 900 {
            break;
        }
    }
    assert!(failed <= 1 && damaged == 0, "{failed} {damaged}");
}

/// One sector of a sealed segment cannot be read.
#[test]
fn an_unreadable_sector_costs_only_its_own_records() {
    let sim = Sim::new(1);
    let o = || options(1 << 20, 1 << 20, 8 << 20, None);
    let dir = Path::new(DIR);
    let log = Log::open_on(Arc::new(sim.clone()), dir, o()).unwrap();
    for _ in 0..1500u64 {
        log.append(&[7; 1000]).unwrap();
    }
    log.close().unwrap();
    let gate = Gate::new(Arc::new(sim.clone()), |_, _| Ok(()));
    let log = Log::open_on(Arc::clone(&gate) as _, dir, o()).unwrap();
    // A sector within record 500, and no other.
    gate.set_bad(Some(4096 + 500 * 1024 + 512..4096 + 501 * 1024));
    let single: Vec<u64> = (480..520).filter(|&offset| log.read(offset).is_err()).collect();
    let mut reader = log.reader(0);
    let mut failed = Vec::new();
    for offset in 0..900 {
        if reader.read(offset).is_err() {
            failed.push(offset);
        }
    }
    gate.set_bad(None);
    assert_eq!((single, failed), (vec![500], vec![500]));
}

/// No descriptors for a moment, but room in the memory file system: records acknowledged in memory survive a kill.
#[test]
fn a_moment_without_descriptors_leaves_no_chunk_without_its_backing() {
    let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
    let o = || Options { durability: Durability::Memory, ..small(Some(at.path())) };
    open(&sim, o()).unwrap().close().unwrap();
    let once = AtomicBool::new(true);
    sim.set_memory_gate(move |step| {
        let fails = step == "make backing" && once.swap(false, Ordering::SeqCst);
        if fails { Err(std::io::Error::from_raw_os_error(24)) } else { Ok(()) }
    });
    let log = loop {
        match open(&sim, o()) {
            Ok(log) => break log,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    };
    assert_eq!(files_in(at.path()).len(), 1, "there was room");
    drop(log);
}
