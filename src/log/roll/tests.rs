use super::{
    super::{append::append, line::Turn, room::WaitFor, tests::open},
    *,
};
use crate::{
    chunk::{Batch, FrameMeta, Predecessor},
    disk::sim::Sim,
    sync::{Mutex, lock},
};
use std::{
    io,
    time::{Duration, Instant},
};

/// The maintenance task takes the ready chunk out to look at it. An appender that looked in that moment asked for one,
/// and slept for ever if the maintenance task then put it back without a notification (seen once, on a busy machine).
#[test]
fn a_request_for_a_spare_segment_is_answered_even_if_one_was_ready() {
    let log = open(&Sim::new(1)).unwrap();
    let roll = &log.shared.roll;
    let deadline = Instant::now() + Duration::from_secs(5);
    roll.ask(0);
    while !roll.is_ready() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(5)); // until the maintenance task rests
    let seen = roll.line.events();
    roll.ask(0);
    Turn::new(&roll.line).park(seen, || false, Some(deadline));
    assert!(roll.line.events() > seen);
}

/// An appender takes the ready chunk, finds it too small, and puts it back, when the maintenance task has created
/// another.
#[test]
fn a_second_spare_segment_is_released_with_its_claim_and_its_file() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let roll = &log.shared.roll;
    let deadline = Instant::now() + Duration::from_secs(5);
    let wait_for = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    };
    let ready = || {
        roll.ask(0);
        wait_for(&|| roll.is_ready());
    };
    ready();
    let claimed = roll.budget.claimed();
    let small = roll.spares.take().unwrap();
    ready();
    assert!(roll.budget.claimed() > claimed);
    roll.put_back(small);
    wait_for(&|| roll.budget.claimed() == claimed);
    let temporary =
        || sim.dump().into_keys().filter(|path| path.extension().is_some_and(|e| e == "tmp")).count();
    wait_for(&|| temporary() == 1);
}

/// A thread that moves on to the next chunk was put to sleep when it had linked it; the log was closed meanwhile, and
/// took records all the same when it woke up.
#[test]
fn a_log_that_was_closed_while_a_chunk_was_being_moved_on_to_takes_nothing_more() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let shared = Arc::clone(&log.shared);
    let first = shared.active.load_full();
    while !log.shared.roll.is_ready() {
        log.append(&[1; 100]).unwrap();
        log.flush().unwrap();
    }
    while Arc::ptr_eq(&shared.active.load_full(), &first) && first.chunk.end().is_none() {
        // Straddles the end, and so closes the chunk, without moving on.
        let meta = FrameMeta { key: first.segment.key, lead: 0, time: 0 };
        let _ = first.chunk.append(Batch::new(&[&[1; 100]], 4096).unwrap(), None, meta);
    }
    let end = log.next_offset();
    let slow = |base| {
        let fresh = shared.segment_from_spare(base, 0, 0, Predecessor::Unknown);
        log.close().unwrap();
        fresh
    };
    install_successor(&shared.active, &first, slow, |_| (), || ());
    let late = append(&shared, &[&[2; 100]], None, WaitFor::Anything);
    assert!(matches!(late, Err(Error::Closed)), "{late:?}");
    drop(shared);
    assert_eq!(open(&sim).unwrap().next_offset(), end);
}

/// An appender gave a spare segment back when its log had been deleted. Dropping the log removed the file, by its name in
/// the log's directory, where another log may have been made meanwhile.
#[cfg(feature = "store")]
#[test]
fn a_deleted_log_removes_no_file_of_the_one_that_has_its_name_now() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let spare = || {
        log.shared.roll.ask(0);
        while !log.shared.roll.is_ready() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        log.shared.roll.spares.take().unwrap()
    };
    let (returned, lost) = (spare(), spare());
    let names = || sim.dump().into_keys().filter(|path| path.extension().is_some_and(|e| e == "tmp")).count();
    let lost = Arc::new(Segment::new(
        Header {
            log: log.id(),
            base: 0,
            capacity: lost.memory.capacity(),
            created: 0,
            secret: log.shared.secret,
        },
        Some(lost.file),
        Arc::new(Chunk::new(lost.memory, None)),
    ));
    log.abandon();
    let there = names();
    assert!(there >= 2);
    log.shared.roll.put_back(returned);
    log.shared.roll.send(Job::Discard(lost));
    let budget = Arc::clone(&log.shared.roll.budget);
    drop(log);
    assert_eq!((names(), budget.claimed()), (there, 0));
}

/// An append that may not wait closed the chunk and went away; the spare segment that was made for it waits for another
/// append. The flusher looked every millisecond whether it was linked: 900 wake-ups per second.
#[test]
fn a_closed_chunk_without_a_successor_keeps_nobody_awake() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let (flush, deadline) = (&log.shared.flush, Instant::now() + Duration::from_secs(5));
    log.append(b"x").and_then(|at| log.wait_durable(at)).unwrap();
    let large = [7; 6000];
    sim.set_room(Some(0)); // so that no spare segment is ready in time
    log.try_append(&large).unwrap_err();
    sim.set_room(None);
    let mut idle = 0;
    while idle < 50 || !log.shared.roll.is_ready() {
        assert!(Instant::now() < deadline, "the flusher is busy with nothing");
        std::thread::sleep(Duration::from_millis(1));
        idle = if flush.is_idle() { idle + 1 } else { 0 };
    }
    // It is woken by what comes, also if nobody waits for that.
    while log.try_append(&large).is_err() {
        assert!(Instant::now() < deadline, "it is never taken");
    }
    while log.durable_offset() < 2 {
        assert!(Instant::now() < deadline, "it is never durable");
        std::thread::yield_now();
    }
}

/// A log with the default sizes, on a machine whose monotonic clock stands still: so an append that waits while a segment
/// is prepared waits as long as that takes.
fn large(clocks: &std::sync::Arc<crate::log::environment::clocks::Clocks>) -> crate::log::Log {
    let options = crate::log::Options { shm_dir: None, ..Default::default() };
    let env = clocks.on(std::sync::Arc::new(Sim::new(1)));
    crate::log::Log::open_in(&env, std::path::Path::new(crate::log::tests::DIR), options).unwrap()
}

/// `try_append` was refused after 62 KiB, and thousands of times within 64 MiB, with 256 MiB of memory free: each segment
/// was begun too late, and refusals did not wait for it.
#[test]
fn appends_that_may_not_wait_are_not_refused_while_memory_is_free() {
    let log = large(&crate::log::environment::clocks::Clocks::new());
    for n in 0..(16 << 20) / 100 {
        assert_eq!(log.try_append(&[7; 100]).unwrap(), n);
    }
}

/// The first spare segment was made only when a quarter of the first chunk was on the disk.
#[test]
fn growth_runs_ahead_of_fast_appends_and_costs_a_log_with_few_records_nothing() {
    let deadline = Instant::now() + Duration::from_secs(5);
    // One record; as much as is appended fast, but slowly; and fast.
    for (records, slow, grows) in [(1, false, false), (50, true, false), (50, false, true)] {
        let clocks = crate::log::environment::clocks::Clocks::new();
        let log = large(&clocks);
        let claimed = log.shared.roll.budget.claimed();
        if slow {
            clocks.pass(1100);
        }
        for _ in 0..records {
            log.append(&[7; 100]).unwrap();
        }
        if grows {
            while !log.shared.roll.is_ready() {
                assert!(Instant::now() < deadline, "nothing is made ahead");
                std::thread::yield_now();
            }
            let spare = log.shared.roll.spares.take().unwrap();
            assert_eq!(spare.memory.capacity(), 1 << 20);
            log.shared.roll.put_back(spare);
        } else {
            log.flush().unwrap();
            std::thread::sleep(Duration::from_millis(30));
            assert!(!log.shared.roll.is_ready());
            assert_eq!(log.shared.roll.budget.claimed(), claimed);
        }
    }
}

/// When the memory for records not yet written is used up, an append that may not wait is refused at once.
#[test]
fn appends_that_may_not_wait_are_refused_at_once_when_memory_is_used_up() {
    use crate::disk::gate::{Gate, Operation};
    let hangs = std::sync::Arc::new((std::sync::Mutex::new(true), std::sync::Condvar::new()));
    let disk = std::sync::Arc::clone(&hangs);
    let gate = Gate::new(std::sync::Arc::new(Sim::new(1)), move |operation, path: &std::path::Path| {
        if operation == Operation::Write && path.ends_with("next-0.tmp") {
            drop(disk.1.wait_while(disk.0.lock().unwrap(), |hangs| *hangs).unwrap());
        }
        Ok(())
    });
    let clocks = crate::log::environment::clocks::Clocks::new();
    let place = std::path::Path::new(crate::log::tests::DIR);
    let begun = std::thread::spawn(move || {
        // The clock stands still: an append that waited for its time to be over would not return.
        crate::log::Log::open_in(&clocks.on(gate), place, crate::log::tests::small()).unwrap()
    });
    *hangs.0.lock().unwrap() = false;
    hangs.1.notify_all();
    let log = begun.join().unwrap();
    *hangs.0.lock().unwrap() = true;
    let mut appended = 0;
    let refused = loop {
        match log.try_append(&[7; 900]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    *hangs.0.lock().unwrap() = false;
    hangs.1.notify_all();
    assert!(matches!(refused, Error::WouldBlock), "{refused}");
    assert!(appended > 20, "of 64 KiB, {appended} records were taken");
}

/// The pauses that tasks have asked for.
struct Pauses(std::sync::Arc<dyn Schedule>, Mutex<Vec<Duration>>);

impl Schedule for Pauses {
    fn soon(&self, task: std::sync::Arc<dyn crate::log::task::Run>) {
        self.0.soon(task);
    }
    fn later(&self, task: std::sync::Arc<dyn crate::log::task::Run>, delay: Duration, within: bool) -> u64 {
        lock(&self.1).push(delay);
        self.0.later(task, delay.min(Duration::from_millis(10)), within)
    }
    fn bring_forward(&self, key: u64, task: std::sync::Arc<dyn crate::log::task::Run>) {
        self.0.bring_forward(key, task);
    }
    fn others_wait(&self) -> bool {
        self.0.others_wait()
    }
    fn start(&self) -> io::Result<()> {
        self.0.start()
    }
}

/// A spare segment that found no room on the disk was tried again every 250 ms, though nobody had waited for it: 200 idle
/// logs on a full disk created 800 files per second in vain.
#[test]
fn a_spare_segment_that_nobody_waits_for_is_tried_again_less_and_less_often() {
    let sim = Sim::new(1);
    let env = crate::log::Environment::on(std::sync::Arc::new(sim.clone()));
    let pauses = std::sync::Arc::new(Pauses(std::sync::Arc::clone(&env.maintenance), Mutex::default()));
    let env = crate::log::Environment { maintenance: pauses.clone(), ..env };
    let dir = std::path::Path::new(crate::log::tests::DIR);
    let log = crate::log::Log::open_in(&env, dir, crate::log::tests::small()).unwrap();
    sim.set_room(Some(0));
    log.append(&[7; 2000]).and_then(|at| log.wait_durable(at)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let seen = || lock(&pauses.1).clone();
    while seen().len() < 8 {
        assert!(Instant::now() < deadline, "{:?}", seen());
        std::thread::sleep(Duration::from_millis(1));
    }
    let grows = seen().windows(2).all(|pair| pair[1] >= pair[0].min(Duration::from_secs(30)) * 2);
    assert!(grows, "{:?}", seen());
    // Whoever comes finds room as soon as there is some.
    sim.set_room(None);
    while log.try_append(&[7; 3000]).is_err() {
        assert!(Instant::now() < deadline, "it is never taken");
    }
}

/// The refusal of a segment that nobody had waited for was given, up to a minute later, to the first append that needed
/// one, although there was room again.
#[test]
fn an_append_long_after_there_is_room_again_is_not_refused() {
    use crate::disk::gate::{Gate, Operation};
    let sim = Sim::new(1);
    let gate = Gate::new(std::sync::Arc::new(sim.clone()), |operation, _| {
        if operation == Operation::Create {
            std::thread::sleep(Duration::from_millis(20)); // as long as a disk may take
        }
        Ok(())
    });
    let place = std::path::Path::new(crate::log::tests::DIR);
    let log = crate::log::Log::open_on(gate, place, crate::log::tests::small()).unwrap();
    sim.set_room(Some(0));
    log.append(&[7; 2000]).and_then(|at| log.wait_durable(at)).unwrap();
    std::thread::sleep(Duration::from_millis(2200)); // attempts after 0, 250, 750 and 1750 ms
    sim.set_room(None);
    std::thread::sleep(Duration::from_millis(800));
    log.append(&[7; 3000]).unwrap();
}
