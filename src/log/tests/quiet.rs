//! Retention of a quiet log: its last segment ends, and is dropped.

use super::*;
use crate::{
    disk::{
        gate::{Gate, Operation},
        sim::Cut,
    },
    log::environment::{
        Environment,
        clocks::{Clocks, NOW},
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

const AGE: Duration = Duration::from_millis(60);

fn options(at: &Path, durability: Durability) -> Options {
    Options {
        durability,
        segment_bytes: 64 << 10,
        first_segment_bytes: 16 << 10,
        memory_bytes: 1 << 20,
        shm_dir: Some(at.to_owned()),
    }
}

fn open_with(sim: &Sim, options: &Options) -> Log {
    Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options.clone()).unwrap()
}

/// The offset at which it begins and ends after all of its records have become too old.
fn emptied(log: &Log) -> (u64, u64) {
    std::thread::sleep(2 * AGE);
    // On a busy machine, what `retain` has begun may be done in the background.
    for _ in 0..10 {
        assert_eq!(log.retain(Retention::default().with_age(AGE)).unwrap(), log.first_offset());
        if log.first_offset() == log.next_offset() {
            break;
        }
    }
    (log.first_offset(), log.next_offset())
}

/// The segment being written stayed, whatever its age: a quiet log kept its last records for ever.
#[test]
fn the_last_records_of_a_quiet_log_are_dropped_when_they_are_too_old_and_the_next_offset_stays() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), options(at.path(), Durability::Disk));
    let mut log = open_with(&sim, &options);
    for round in 1..=3 {
        log.append(b"old").unwrap();
        log.append_wait_durable(b"old").unwrap();
        log.retain(Retention::default().with_age(Duration::from_secs(60))).unwrap();
        log.retain(Retention::default().with_bytes(1)).unwrap();
        assert_eq!((log.first_offset(), log.next_offset()), (2 * round - 2, 2 * round), "not too old");
        assert_eq!(emptied(&log), (2 * round, 2 * round));
        assert!(matches!(log.read(0), Err(Error::Trimmed { first, .. }) if first == 2 * round));
        assert_eq!(log.stats().segments, 1);
        assert_eq!(emptied(&log), (2 * round, 2 * round), "there is nothing left to do");
        if round == 1 {
            log.close().unwrap();
        } else {
            drop(std::mem::replace(&mut log, open_with(&Sim::new(9), &options)));
        }
        let report = inspect::verify_on(&sim, Path::new(DIR), None, &mut |_, _| ()).unwrap();
        assert_eq!((report.damage, report.next), (vec![], 2 * round));
        log = open_with(&sim, &options);
        assert_eq!((log.first_offset(), log.next_offset()), (2 * round, 2 * round));
    }
}

/// Trimming to the end kept the last segment.
#[test]
fn a_log_that_is_trimmed_to_its_end_has_no_records_and_its_next_offset_stays() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), options(at.path(), Durability::Memory));
    let mut log = open_with(&sim, &options);
    assert_eq!(log.trim_to(0).unwrap(), 0);
    for round in 1..=3 {
        log.append_batch_from(["a", "b", "c"]).unwrap();
        let end = 3 * round;
        let beyond = log.trim_to(end + 1);
        assert!(
            matches!(beyond, Err(Error::BeyondEnd { offset, end: at }) if offset == end + 1 && at == end)
        );
        assert_eq!(log.trim_to(end - 1).unwrap(), end - 3, "within a segment");
        for _ in 0..2 {
            assert_eq!(log.trim_to(end).unwrap(), end);
        }
        assert_eq!((log.first_offset(), log.next_offset(), log.stats().segments), (end, end, 1));
        if round == 2 {
            log.close().unwrap();
            log = open_with(&sim, &options);
            assert_eq!((log.first_offset(), log.next_offset()), (end, end));
        }
    }
}

/// There is no room for the segment after the last one.
#[test]
fn trimming_to_the_end_does_not_wait_for_a_full_disk() {
    let (gate, is_full) = disk_that_may_be_full();
    let at = tempfile::tempdir().unwrap();
    let log = Log::open_on(gate, Path::new(DIR), options(at.path(), Durability::Disk)).unwrap();
    log.append_wait_durable(b"a").unwrap();
    is_full.store(true, SeqCst);
    let begun = Instant::now();
    while log.trim_to(log.next_offset()).unwrap() == log.next_offset() {
        log.append_wait_durable(b"b").unwrap(); // there was a spare segment
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(log.first_offset() + 1, log.next_offset());
    is_full.store(false, SeqCst);
    while log.trim_to(log.next_offset()).unwrap() < log.next_offset() {
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

/// Wherever the power goes, the log is as it was, or empty, and never gives an offset twice.
#[test]
fn a_log_that_is_emptied_keeps_its_next_offset_wherever_the_power_goes() {
    let at = tempfile::tempdir().unwrap();
    let options = options(at.path(), Durability::Disk);
    let (mut step, mut empties) = (0, 0);
    loop {
        let sim = Sim::new(step);
        let log = open_with(&sim, &options);
        log.append_batch_from(["a", "b", "c"]).unwrap();
        log.flush().unwrap();
        std::thread::sleep(2 * AGE);
        sim.end_after(step, Cut::Power);
        let retained = log.retain(Retention::default().with_age(AGE));
        let is_done = retained.is_ok_and(|first| first == 3) && !sim.is_off();
        sim.turn_off();
        drop(log);
        let log = open_with(&sim.reboot(), &options);
        assert_eq!(log.next_offset(), 3, "step {step}");
        assert!(matches!(log.first_offset(), 0 | 3), "step {step}: {}", log.first_offset());
        empties += u32::from(log.first_offset() == 3);
        assert_eq!(log.append_wait_durable(b"d").unwrap(), 3, "step {step}");
        if is_done {
            break;
        }
        step += 1;
    }
    assert!(step > 3 && empties > 0, "{step} steps, {empties} of them left it empty");
}

/// What is appended to an empty log in memory only has no frame before it on the disk.
#[test]
fn what_is_appended_in_memory_after_a_log_was_emptied_survives_a_kill() {
    for replaced in [false, true] {
        let at = tempfile::tempdir().unwrap();
        let (sim, options) = (Sim::new(1), options(at.path(), Durability::Memory));
        let log = open_with(&sim, &options);
        log.append_wait_durable(b"old").unwrap();
        assert_eq!(emptied(&log), (1, 1));
        if replaced {
            // A segment of the same base takes the place of the one that was begun.
            let active = log.shared.active.load_full();
            let begun = Instant::now();
            while crate::sync::Arc::ptr_eq(&active, &log.shared.active.load_full()) {
                assert!(begun.elapsed() < Duration::from_secs(5));
                log.shared.roll_if_ready(&active);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        sim.hold(true);
        for _ in 0..3 {
            log.append(b"in memory").unwrap();
        }
        assert_eq!(log.visible_offset(), 4);
        sim.turn_off();
        sim.set_memory_gate(|_| Err(std::io::Error::other("killed")));
        sim.hold(false);
        drop(log);
        let log = open_with(&sim.after(Cut::Kill), &options);
        assert_eq!((log.first_offset(), log.next_offset()), (1, 4), "replaced: {replaced}");
        assert_eq!(values(&log), [b"in memory"; 3]);
    }
}

/// Its file had its name already when the directory could not be synced: it was removed under that name, which was the
/// next segment's by then, with what had been acknowledged.
#[test]
fn a_segment_that_could_not_be_begun_empty_does_not_take_the_file_of_the_next_one_with_it() {
    let sim = Sim::new(1);
    let (fails, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let gate = Gate::new(Arc::new(sim.clone()), {
        let (fails, go) = (Arc::clone(&fails), Arc::clone(&go));
        move |operation, path| {
            if operation == Operation::SyncDir && fails.load(SeqCst) {
                return Err(std::io::Error::from_raw_os_error(24)); // EMFILE
            }
            if operation == Operation::Remove && path.ends_with("00000000000000000001.seg") {
                let begun = Instant::now();
                while !go.load(SeqCst) && begun.elapsed() < Duration::from_secs(10) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        }
    });
    let options = Options {
        durability: Durability::Disk,
        segment_bytes: 8 << 20,
        first_segment_bytes: 16 << 10,
        memory_bytes: 64 << 20,
        shm_dir: None,
    };
    let log = Log::open_on(gate, Path::new(DIR), options.clone()).unwrap();
    log.append_wait_durable(b"old").unwrap();
    std::thread::sleep(2 * AGE);
    fails.store(true, SeqCst);
    drop(log.retain(Retention::default().with_age(AGE)));
    std::thread::sleep(Duration::from_millis(2500));
    fails.store(false, SeqCst);
    assert_eq!(log.append_wait_durable(&vec![7; 3 << 20]).unwrap(), 1);
    go.store(true, SeqCst);
    std::thread::sleep(Duration::from_millis(300));
    let killed = sim.after(Cut::Kill);
    drop(log);
    let log = Log::open_on(Arc::new(killed), Path::new(DIR), options).unwrap();
    assert_eq!(log.next_offset(), 2, "an acknowledged record is lost");
}

/// A disk on which no file can be created while the flag says that it is full.
fn disk_that_may_be_full() -> (Arc<Gate>, Arc<AtomicBool>) {
    let is_full = Arc::new(AtomicBool::new(false));
    let asks = Arc::clone(&is_full);
    let gate = Gate::new(Arc::new(Sim::new(1)), move |operation, _| {
        let refused = operation == Operation::Create && asks.load(SeqCst);
        if refused { Err(std::io::Error::from_raw_os_error(28)) } else { Ok(()) }
    });
    (gate, is_full)
}

/// Waits until the next segment is ready.
fn wait_for_spare(log: &Log) {
    let begun = Instant::now();
    while !log.shared.roll.is_ready() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A full disk refuses the segment after the next one; the next one has its file already, and that is all it takes.
#[test]
fn a_quiet_log_on_a_full_disk_drops_what_is_too_old_if_the_next_segment_is_ready() {
    let (gate, is_full) = disk_that_may_be_full();
    let at = tempfile::tempdir().unwrap();
    let log = Log::open_on(gate, Path::new(DIR), options(at.path(), Durability::Disk)).unwrap();
    log.append_wait_durable(b"old").unwrap();
    log.shared.roll.ask(0);
    wait_for_spare(&log);
    is_full.store(true, SeqCst);
    assert_eq!(emptied(&log), (1, 1));
}

const HOUR: u64 = 3600 * 1000;

/// A log that was emptied by age, and its clock; `at` is where its backings are.
fn emptied_with_clock(at: &Path, sim: &Sim) -> (Arc<Clocks>, Environment, Options, Log) {
    let options = options(at, Durability::Memory);
    let clocks = Clocks::new();
    let env = clocks.on(Arc::new(sim.clone()));
    let log = Log::open_in(&env, Path::new(DIR), options.clone()).unwrap();
    log.append_wait_durable(b"old").unwrap();
    clocks.pass(1000);
    log.retain(Retention::default().with_age(Duration::from_millis(500))).unwrap();
    assert_eq!((log.first_offset(), log.next_offset()), (1, 1));
    (clocks, env, options, log)
}

/// Ends the process, and opens the log again.
fn killed(sim: &Sim, clocks: &Arc<Clocks>, env: Environment, log: Log, options: Options) -> Log {
    sim.set_memory_gate(|_| Err(std::io::Error::other("killed")));
    sim.turn_off();
    sim.hold(false);
    drop((log, env));
    let env = clocks.on(Arc::new(sim.after(Cut::Kill)));
    Log::open_in(&env, Path::new(DIR), options).unwrap()
}

/// The segment that was begun empty had given its memory back, when the clock was set back and another took its place: the
/// records of that one were taken for those of another history.
#[test]
fn what_is_appended_to_an_emptied_log_with_a_clock_set_back_survives_a_kill_at_every_step() {
    for step in 0..40 {
        let at = tempfile::tempdir().unwrap();
        let sim = Sim::new(step);
        let (clocks, env, options, log) = emptied_with_clock(at.path(), &sim);
        wait_for_spare(&log);
        clocks.set(NOW + 1000 - HOUR);
        sim.end_after(step, Cut::Kill);
        let acknowledged = (0..3).filter(|_| log.append(b"in memory").is_ok()).count() as u64;
        let begun = Instant::now();
        while !sim.is_off() && begun.elapsed() < Duration::from_millis(150) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let was_off = sim.is_off();
        let log = killed(&sim, &clocks, env, log, options);
        assert_eq!(log.next_offset(), 1 + acknowledged, "step {step}");
        if !was_off {
            assert!(step > 2);
            return;
        }
    }
}

/// Likewise, with a segment begun empty that never had a backing.
#[test]
fn what_is_appended_to_an_emptied_log_survives_a_kill_though_its_first_chunk_had_no_backing() {
    let at = tempfile::tempdir().unwrap();
    let sim = Sim::new(1);
    let (clocks, env, options, log) = emptied_with_clock(at.path(), &sim);
    log.close().unwrap();
    sim.set_memory_room(Some(0));
    let log = Log::open_in(&env, Path::new(DIR), options.clone()).unwrap();
    assert!(!log.shared.active.load_full().chunk.has_backing());
    sim.set_memory_room(None);
    clocks.set(NOW + 1000 - HOUR);
    let (first, begun) = (log.shared.active.load_full(), Instant::now());
    while Arc::ptr_eq(&first, &log.shared.active.load_full()) {
        assert!(begun.elapsed() < Duration::from_secs(5));
        clocks.pass_unnoticed(300);
        log.shared.roll.ask(0);
        std::thread::sleep(Duration::from_millis(5));
    }
    sim.hold(true);
    for _ in 0..3 {
        log.append(b"in memory").unwrap();
    }
    assert_eq!(killed(&sim, &clocks, env, log, options).next_offset(), 4);
}

/// Opening it made its last record as young as the clock: a quiet log that is closed while nobody uses it, as all are by
/// default, was never emptied.
#[test]
fn a_quiet_log_that_was_closed_is_emptied_too() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), options(at.path(), Durability::Disk));
    let clocks = Clocks::new();
    let env = clocks.on(Arc::new(sim.clone()));
    let log = Log::open_in(&env, Path::new(DIR), options.clone()).unwrap();
    log.append_wait_durable(b"old").unwrap();
    log.close().unwrap();
    clocks.pass(2 * HOUR);
    let log = Log::open_in(&env, Path::new(DIR), options.clone()).unwrap();
    log.commit_soon();
    std::thread::sleep(Duration::from_millis(50)); // as long as it takes the flusher
    assert_eq!(log.stats().newest_time, Some(NOW));
    log.retain(Retention::default().with_age(Duration::from_millis(3 * HOUR))).unwrap();
    assert_eq!(log.first_offset(), 0);
    log.retain(Retention::default().with_age(Duration::from_millis(HOUR))).unwrap();
    assert_eq!((log.first_offset(), log.next_offset()), (1, 1));
}

/// An append that was refused had closed the segment that was begun empty, and nothing linked the next one.
#[test]
fn retention_goes_on_after_a_disk_was_full_for_a_moment() {
    let (gate, is_full) = disk_that_may_be_full();
    let at = tempfile::tempdir().unwrap();
    let mut options = options(at.path(), Durability::Disk);
    (options.segment_bytes, options.memory_bytes) = (2 << 20, 64 << 20);
    let log = Log::open_on(gate, Path::new(DIR), options).unwrap();
    log.append_wait_durable(b"old").unwrap();
    log.shared.roll.ask(0);
    wait_for_spare(&log);
    is_full.store(true, SeqCst);
    log.roll().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(log.try_append(&vec![1; 1500 << 10]).is_err());
    assert!(log.shared.active.load_full().chunk.end().is_some());
    is_full.store(false, SeqCst);
    log.shared.roll.ask(0);
    wait_for_spare(&log);
    assert_eq!(emptied(&log), (1, 1));
}

/// The flusher had left its rest and had not looked at the clock yet: an append that came in between, mostly the first one
/// after a quiet log was opened, got the time of the last record before it, and retention dropped it within a second.
#[test]
fn the_first_record_after_a_quiet_time_has_the_time_of_its_append() {
    for kicked in [false, true] {
        for _ in 0..50 {
            let at = tempfile::tempdir().unwrap();
            let (sim, clocks) = (Sim::new(1), Clocks::new());
            let env = clocks.on(Arc::new(sim.clone()));
            let options = options(at.path(), Durability::Disk);
            let mut log = Log::open_in(&env, Path::new(DIR), options.clone()).unwrap();
            log.append_wait_durable(b"old").unwrap();
            if kicked {
                std::thread::sleep(Duration::from_millis(5)); // until the flusher rests
                clocks.pass(10 * HOUR);
                log.commit_soon();
            } else {
                log.close().unwrap();
                clocks.pass(10 * HOUR);
                log = Log::open_in(&env, Path::new(DIR), options).unwrap();
            }
            let new = log.append_wait_durable(b"new").unwrap();
            assert!(log.read(new).unwrap().unwrap().time() >= NOW + 10 * HOUR, "kicked: {kicked}");
            clocks.pass(1000);
            log.retain(Retention::default().with_age(Duration::from_millis(HOUR))).unwrap();
            assert!(log.first_offset() <= new, "kicked: {kicked}");
        }
    }
}
