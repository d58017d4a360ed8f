//! What a log does while the system refuses something, or is slow at it, and when the power goes while it trims.

use super::{super::*, DIR, open, small, values};
use crate::disk::{
    gate::{Gate, Operation},
    sim::{Cut, Mode, Sim},
};

/// Several files were removed, and then their names synced once: a loss of power brought back those in the middle, but
/// not the first, and the log had a gap.
#[test]
fn trimming_that_the_power_interrupts_leaves_no_gap() {
    for seed in 0..120 {
        let sim = Sim::new(seed);
        let log = open(&sim).unwrap();
        for _ in 0..300 {
            log.append(&[7; 100]).unwrap();
        }
        log.close().unwrap();
        let log = open(&sim).unwrap();
        sim.cut_power_after(1 + seed % 12);
        let _ = log.trim(u64::MAX);
        drop(log);
        let log = open(&sim.reboot()).unwrap();
        assert!(log.damage().is_empty(), "seed {seed}: {:?}", log.damage());
        assert_eq!(log.next_offset(), 300, "seed {seed}");
    }
}

/// A file that could not be removed was forgotten, and the ones behind it went at the next trim.
#[test]
fn a_file_that_cannot_be_removed_keeps_those_behind_it() {
    let sim = Sim::new(1);
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let fails = std::sync::Arc::clone(&broken);
    let gate = Gate::new(std::sync::Arc::new(sim.clone()), move |operation, path| {
        let first = path.ends_with("00000000000000000000.seg");
        let fail = operation == Operation::Remove && first && fails.load(Ordering::SeqCst);
        if fail { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(()) }
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    let fill = || {
        for _ in 0..200 {
            log.append(&[7; 100]).unwrap();
        }
        log.flush().unwrap();
    };
    for _ in 0..2 {
        fill();
        std::thread::sleep(Duration::from_millis(20)); // the maintenance task seals
        assert!(matches!(log.trim(u64::MAX), Err(Error::Io { .. })));
    }
    let copy = sim.snapshot();
    let killed = open(&copy).unwrap();
    assert_eq!((killed.damage(), killed.first_offset()), (&[][..], 0));
    broken.store(false, Ordering::SeqCst);
    let first = log.trim(u64::MAX).unwrap();
    assert!(first > 300);
    let segments = sim.dump().into_keys().filter(|path| path.extension().is_some_and(|e| e == "seg")).count();
    assert_eq!(segments, 1, "the others are gone");
}

/// Retention that had failed was reported as done by the next call, though the files were still there: after a crash the
/// records were back.
#[test]
fn retention_is_reported_as_done_only_when_the_files_are_gone() {
    let sim = Sim::new(1);
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let fails = std::sync::Arc::clone(&broken);
    let gate = Gate::new(std::sync::Arc::new(sim.clone()), move |operation, _| {
        let fail = operation == Operation::Remove && fails.load(Ordering::SeqCst);
        if fail { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    for _ in 0..300 {
        log.append(&[7; 100]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    for _ in 0..3 {
        assert!(log.retain(Retention::default().with_bytes(0)).is_err());
    }
    broken.store(false, Ordering::SeqCst);
    let first = log.retain(Retention::default().with_bytes(0)).unwrap();
    assert!(first > 0 && first == log.first_offset());
    drop(log);
    let log = open(&sim.after(Cut::Power)).unwrap();
    assert!(log.first_offset() >= first);
}

/// Appends waited for the next chunk while thousands of segments were trimmed.
#[test]
fn a_long_trim_does_not_keep_appends_from_going_on() {
    let slow = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let slows = std::sync::Arc::clone(&slow);
    let gate = Gate::new(std::sync::Arc::new(Sim::new(1)), move |operation, _| {
        if operation == Operation::Remove && slows.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    for _ in 0..400 {
        log.append(&[7; 7000]).unwrap(); // a segment each
    }
    log.flush().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    slow.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let trimming = scope.spawn(|| log.trim(399).unwrap());
        while log.first_offset() == 0 {
            std::thread::yield_now();
        }
        for _ in 0..10 {
            log.append(&[7; 7000]).unwrap();
        }
        assert!(!trimming.is_finished(), "ten appends have waited for a trim of 2 s");
        assert!(trimming.join().unwrap() > 380);
    });
}

/// For lack of a descriptor a log failed for good when it was to begin a segment.
#[test]
fn a_moment_without_descriptors_memory_or_room_fails_no_log() {
    // EMFILE, ENFILE, ENOMEM, EINTR, ENOSPC.
    for lacking in [24, 23, 12, 4, 28] {
        let sim = Sim::new(1);
        let lacks = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let refuse = std::sync::Arc::clone(&lacks);
        let gate = Gate::new(std::sync::Arc::new(sim.clone()), move |operation, _| {
            use Operation::{Create, Open, Rename, SetLength, SyncDir};
            let concerned = [Create, Open, Rename, SetLength, SyncDir].contains(&operation);
            if concerned && refuse.load(Ordering::SeqCst) {
                return Err(std::io::Error::from_raw_os_error(lacking));
            }
            Ok(())
        });
        let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let mut appended = 0u64;
        while !log.shared.roll.is_ready() {
            log.append(&[7; 100]).unwrap();
            log.flush().unwrap();
            appended += 1;
            assert!(std::time::Instant::now() < deadline);
        }
        lacks.store(true, Ordering::SeqCst);
        let refused = loop {
            match log.try_append(&[7; 100]) {
                Ok(_) => appended += 1,
                Err(Error::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => break error,
            }
            assert!(std::time::Instant::now() < deadline);
        };
        if lacking == 28 {
            assert!(matches!(refused, Error::Full { .. }), "{refused}");
        } else {
            assert!(matches!(refused, Error::CannotGrow { .. }), "{refused}");
        }
        #[cfg(feature = "store")]
        assert!(log.refuses_appends(), "the metrics say so");
        assert!(log.durable_offset() < appended, "there was something to wait for");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| log.flush());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            lacks.store(false, Ordering::SeqCst);
            waiting.join().unwrap().unwrap();
        });
        for _ in 0..200 {
            // For a moment the error may still say that there is no segment.
            while let Err(error) = log.append(&[7; 100]) {
                assert!(std::time::Instant::now() < deadline, "{error}");
                std::thread::sleep(Duration::from_millis(5));
            }
            appended += 1;
        }
        log.close().unwrap();
        let log = open(&sim).unwrap();
        assert_eq!((log.next_offset(), values(&log).len() as u64), (appended, appended));
    }
}

/// What fails for the same reason while something is being written is not tried again: nothing is known of what was.
#[test]
fn a_write_or_a_sync_that_fails_is_fatal_whatever_the_reason() {
    let sim = Sim::new(1);
    let fails = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fail = std::sync::Arc::clone(&fails);
    let gate = Gate::new(std::sync::Arc::new(sim.clone()), move |operation, _| {
        if operation == Operation::Write && fail.load(Ordering::SeqCst) {
            return Err(crate::disk::unknown(std::io::Error::from_raw_os_error(12)));
        }
        Ok(())
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    fails.store(true, Ordering::SeqCst);
    let offset = log.append(b"x").unwrap();
    assert!(matches!(log.wait_durable(offset), Err(Error::Failed { .. })));
    fails.store(false, Ordering::SeqCst);
    assert!(matches!(log.append(b"y"), Err(Error::Failed { .. })));
}

/// Cutting a file wants room on file systems that copy on write. As long as there was none, nothing was trimmed, which
/// would have made some: the job that was to be tried again came before all others.
#[test]
fn trimming_continues_while_sealing_waits_for_room() {
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_full = std::sync::Arc::clone(&full);
    let gate = Gate::new(std::sync::Arc::new(Sim::new(1)), move |operation, _| {
        if operation == Operation::Remove {
            is_full.store(false, Ordering::SeqCst); // that has made room
        }
        let refused = operation == Operation::SetLength && is_full.load(Ordering::SeqCst);
        if refused { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    for n in 0..300u64 {
        log.append(&[n as u8; 100]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100)); // all but the last segment are sealed
    full.store(true, Ordering::SeqCst);
    for n in 0..100u64 {
        if log.try_append(&[n as u8; 100]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::scope(|scope| {
        let (said, done) = std::sync::mpsc::channel();
        let log = &log;
        scope.spawn(move || said.send(log.trim(100)).unwrap());
        let trimmed = done.recv_timeout(Duration::from_secs(5));
        full.store(false, Ordering::SeqCst);
        assert!(trimmed.is_ok_and(|trimmed| trimmed.is_ok_and(|first| first > 0)), "nothing in 5 s");
    });
}

/// Whether the log has found no room for what is appended; waits for it to do so.
fn finds_no_room(log: &Log) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while log.shared.flush.full().is_none() {
        assert!(std::time::Instant::now() < deadline && log.writable().is_ok());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where no room can be reserved, or where it is shared with a copy of the file, a write can find the disk full. It was
/// taken for one of which nothing is known, and the log failed until it was opened again, though room had come back.
#[test]
fn a_write_that_finds_no_room_is_written_again_when_there_is_some() {
    for (seed, mode) in [(1, Mode::Direct), (2, Mode::Buffered)] {
        let sim = Sim::new(seed);
        sim.set_mode(mode);
        let log = open(&sim).unwrap();
        let mut expected = Vec::new();
        for n in 0..20u8 {
            expected.push(vec![n; 100]);
            log.append(&[n; 100]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        sim.run_dry(u64::MAX);
        let at = log.append(b"waits").unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| log.wait_durable(at));
            finds_no_room(&log);
            for _ in 0..3 {
                assert!(matches!(log.append(b"no"), Err(Error::Full { .. })));
                assert!(matches!(log.try_append(b"no"), Err(Error::Full { .. })));
            }
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            assert_eq!((log.next_offset(), log.durable_offset()), (at + 1, at));
            // What was durable is so whatever ends this process, though its last block is being written again.
            for cut in [Cut::Power, Cut::Kill] {
                let left = open(&sim.snapshot().after(cut)).unwrap();
                assert_eq!(left.damage(), []);
                assert!(left.next_offset() >= at && values(&left)[..20] == expected);
            }
            sim.run_dry(0);
            waiting.join().unwrap().unwrap();
        });
        expected.extend([b"waits".to_vec(), b"goes on".to_vec()]);
        log.append(b"goes on").and_then(|at| log.wait_durable(at)).unwrap();
        log.close().unwrap();
        assert!(values(&open(&sim).unwrap()) == expected);
    }
}

/// Whatever is being written: frames, zeros ahead of them, headers, an index, the mark of a clean close.
#[test]
fn whichever_write_finds_no_room_the_log_continues() {
    // At once, because each mostly waits until the disk is tried again.
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || goes_on_whichever_write_finds_no_room(seed));
        }
    });
}

fn goes_on_whichever_write_finds_no_room(seed: u64) {
    let sim = Sim::new(seed);
    sim.set_mode(if seed.is_multiple_of(2) { Mode::Direct } else { Mode::Buffered });
    let log = open(&sim).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    for n in 0..60u64 {
        sim.run_dry((seed + n) % 5);
        let at = loop {
            match log.append(&[n as u8; 900]) {
                Ok(at) => break at,
                Err(error) => assert!(error.is_full(), "{error}"), // for a moment
            }
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        };
        log.wait_durable(at).unwrap();
    }
    log.append(b"last").unwrap();
    sim.run_dry(3);
    log.close().unwrap();
    sim.run_dry(0);
    let log = open(&sim).unwrap();
    assert_eq!((log.damage(), log.next_offset()), (&[][..], 61));
    assert!(values(&log)[..60].iter().zip(0..).all(|(value, n)| **value == [n; 900]));
}

/// Trimming waited until all that the producers have sent was on the disk, for which it was to make room.
#[cfg(feature = "store")]
#[test]
fn trimming_does_not_wait_for_the_room_that_it_makes() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let send = |sequence| {
        let batch = crate::ProducerBatch::new("p", 0, sequence);
        let payload = crate::Payload { bytes: &[7; 1000], json: false };
        loop {
            match log.try_append_once(&batch, &[payload], None) {
                Err(Error::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
                done => break done.unwrap(),
            }
        }
    };
    for sequence in 0..60 {
        send(sequence);
    }
    log.flush().unwrap();
    log.save_producers().unwrap();
    std::thread::sleep(Duration::from_millis(50)); // all but the last segment are sealed
    sim.run_dry(u64::MAX);
    send(60);
    finds_no_room(&log);
    std::thread::scope(|scope| {
        let (said, done) = std::sync::mpsc::channel();
        let log = &log;
        scope.spawn(move || said.send(log.trim(60)).unwrap());
        let trimmed = done.recv_timeout(Duration::from_secs(5));
        sim.run_dry(0);
        assert!(trimmed.is_ok_and(|trimmed| trimmed.is_ok_and(|first| first > 0)), "nothing in 5 s");
    });
    log.flush().unwrap();
    assert_eq!(log.durable_offset(), 61);
}

/// All records were durable, and closing the log was an error for the mark alone that says so.
#[test]
fn a_log_that_cannot_be_marked_for_lack_of_room_is_closed_all_the_same() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    log.append(b"kept").and_then(|at| log.wait_durable(at)).unwrap();
    std::thread::sleep(Duration::from_millis(20)); // zeros are written ahead
    sim.run_dry(u64::MAX);
    log.close().unwrap();
    sim.run_dry(0);
    let log = open(&sim).unwrap();
    assert_eq!((log.damage(), values(&log)), (&[][..], vec![b"kept".to_vec()]));
}

/// What was acknowledged in memory is in the memory that outlives the process, for the next opening.
#[test]
fn a_log_that_is_closed_while_there_is_no_room_keeps_what_is_in_memory() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let options =
        || Options { durability: Durability::Memory, shm_dir: Some(at.path().to_owned()), ..small() };
    let sim = Sim::new(1);
    let open = || Log::open_on(std::sync::Arc::new(sim.clone()), Path::new(DIR), options()).unwrap();
    let log = open();
    log.append(b"durable").and_then(|at| log.wait_durable(at)).unwrap();
    sim.run_dry(u64::MAX);
    log.append(b"in memory").unwrap();
    finds_no_room(&log);
    assert!(log.append(b"no").is_err_and(|error| error.is_full()));
    assert_eq!(log.read(1).unwrap().unwrap().value(), b"in memory");
    assert!(matches!(log.close(), Err(Error::Failed { .. })));
    sim.run_dry(0);
    assert_eq!(values(&open()), [b"durable".to_vec(), b"in memory".to_vec()]);
}

/// All that waited for room tried to write at once, with everything that had been appended, and each kick did so too: 16
/// of them made 271 attempts in 4 s.
#[test]
fn a_full_disk_is_retried_at_intervals_however_many_appends_wait() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    };
    let (full, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (is_full, counts) = (Arc::clone(&full), Arc::clone(&tries));
    let gate = Gate::new(Arc::new(Sim::new(1)), move |operation, _: &Path| {
        if operation == Operation::Write && is_full.load(Ordering::SeqCst) {
            counts.fetch_add(1, Ordering::SeqCst);
            return Err(std::io::Error::from_raw_os_error(28));
        }
        Ok(())
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    full.store(true, Ordering::SeqCst);
    let at = log.append(b"waits").unwrap();
    let (said, done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            let (log, said) = (&log, said.clone());
            scope.spawn(move || said.send(log.wait_durable(at)).unwrap());
        }
        std::thread::sleep(Duration::from_millis(1500));
        let before = tries.load(Ordering::SeqCst);
        for _ in 0..200 {
            log.commit_soon();
            std::thread::sleep(Duration::from_millis(10));
        }
        let tries = tries.load(Ordering::SeqCst) - before;
        full.store(false, Ordering::SeqCst);
        let deadline = std::time::Instant::now() + Duration::from_secs(4);
        for _ in 0..16 {
            let rest = deadline.saturating_duration_since(std::time::Instant::now());
            assert!(done.recv_timeout(rest).is_ok_and(|done| done.is_ok()), "room is noticed late");
        }
        assert!(before > 4 && (1..=4).contains(&tries), "{before}, then {tries} in 2 s");
    });
}

/// A record waited for room when the process was killed. Its log could then be neither read nor trimmed while the disk
/// was full: restoring from memory was an error of opening.
#[test]
fn a_log_whose_memory_has_no_room_on_the_disk_is_opened_for_reading() {
    let (mut refused, mut without) = (0, 0);
    for seed in 0..16 {
        let at = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = |durability| Options { durability, shm_dir: Some(at.path().to_owned()), ..small() };
        let open = |sim: &Sim, durability| {
            Log::open_on(std::sync::Arc::new(sim.clone()), Path::new(DIR), options(durability))
        };
        let sim = Sim::new(seed);
        let log = open(&sim, Durability::Disk).unwrap();
        let mut expected = Vec::new();
        for n in 0..50 + seed as u8 {
            expected.push(vec![n; 1000]);
            log.append(&[n; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        let durable = log.next_offset();
        std::thread::sleep(Duration::from_millis(50)); // the next segment's file is made
        sim.run_dry(u64::MAX);
        log.append(&[8; 2500]).unwrap();
        finds_no_room(&log);
        let mut left = sim.snapshot().after(Cut::Kill);
        for _ in 0..2 {
            left.run_dry(u64::MAX);
            // Readers may have seen what is in memory: for them the log would be shorter than it was.
            match open(&left, Durability::Memory) {
                Err(error) => {
                    assert!(matches!(error, Error::Full { .. }), "seed {seed}: {error}");
                    refused += 1;
                }
                // Writes that find no room may have written all of it by now.
                Ok(log) => {
                    assert_eq!(log.next_offset(), durable + 1, "seed {seed}");
                    left.run_dry(0);
                    break;
                }
            }
            let log = open(&left, Durability::Disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            if log.next_offset() > durable {
                left.run_dry(0);
                break;
            }
            assert!(log.append(b"no").is_err_and(|error| matches!(error, Error::Full { .. })));
            #[cfg(feature = "store")]
            assert_eq!(log.producer("x").unwrap(), None); // a question needs no room
            let first = log.first_offset();
            assert_eq!(log.damage(), [], "seed {seed}");
            without += 1;
            assert_eq!(log.next_offset(), durable, "seed {seed}");
            let values = values(&log);
            assert!(values[..(durable - first) as usize] == expected[first as usize..], "seed {seed}");
            assert!(log.trim(first + 20).unwrap() > first, "seed {seed}");
            #[cfg(feature = "store")]
            {
                assert!(!log.has_room_again());
                left.run_dry(0);
                assert!(log.has_room_again());
            }
            drop(log);
            left = left.after(Cut::Kill);
        }
        let durability = if seed % 2 == 0 { Durability::Disk } else { Durability::Memory };
        let log = open(&left, durability).unwrap();
        assert_eq!((log.damage(), log.next_offset()), (&[][..], durable + 1), "seed {seed}");
        assert_eq!(log.read(durable).unwrap().unwrap().value(), [8; 2500]);
        log.close().unwrap();
        sim.run_dry(0);
    }
    assert!(refused > 0 && without > 0, "{refused} {without}");
}

/// The segment was closed before it was known that there is room for another one: a checkpoint could not be appended,
/// after which trimming makes room, though nearly all of the segment was reserved.
#[test]
fn a_roll_that_is_refused_on_a_full_disk_leaves_the_room_that_is_reserved() {
    let sim = Sim::new(1);
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_full = std::sync::Arc::clone(&full);
    let gate = Gate::new(std::sync::Arc::new(sim.clone()), move |operation, _| {
        let fails = operation == Operation::Create && is_full.load(Ordering::SeqCst);
        if fails { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(()) }
    });
    let options = Options { segment_bytes: 1 << 20, first_segment_bytes: 1 << 20, ..small() };
    let log = Log::open_on(gate, Path::new(DIR), Options { memory_bytes: 8 << 20, ..options }).unwrap();
    log.append(b"a record").unwrap();
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(log.roll().unwrap_err().is_full());
        log.append(b"a checkpoint").and_then(|at| log.wait_durable(at)).unwrap();
    }
    full.store(false, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(300)); // a refusal is given to others for a moment
    assert_eq!(log.roll().unwrap(), 4);
    assert_eq!(log.append_wait_durable(b"on").unwrap(), 4);
    assert_eq!(log.trim(4).unwrap(), 4);
}
