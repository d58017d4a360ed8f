//! Appends behind one whose records are still being copied.

use super::{DIR, small};
use crate::{
    chunk::AppendValues,
    disk::{
        gate::{Gate, Operation},
        sim::Sim,
    },
    log::{Durability, Error, Log, Options, WaitFor},
};
use std::{
    cell::Cell,
    path::Path,
    sync::{Arc, Barrier, Condvar, Mutex, mpsc},
    thread::Scope,
    time::{Duration, Instant},
};

fn open(dir: &Path) -> Log {
    let options = Options { durability: Durability::Memory, shm_dir: None, ..Options::default() };
    Log::open(dir, options).unwrap()
}

/// Three values, of which the last one is copied only when the door is opened.
struct Slow<'a> {
    passes: Cell<u32>,
    begun: &'a Barrier,
    door: &'a Mutex<mpsc::Receiver<()>>,
}

impl AppendValues for Slow<'_> {
    fn each(&self, mut f: impl FnMut(&[u8], u16)) {
        self.passes.set(self.passes.get() + 1);
        for n in 0..3 {
            // They are gone through once to be counted, and once to be copied.
            if n == 2 && self.passes.get() == 2 {
                self.begun.wait();
                self.door.lock().unwrap().recv().unwrap();
            }
            f(&[n; 100], 0);
        }
    }
}

/// Runs something while the first batch of a log is being copied, until `run` calls the last of what it is given.
fn beside_a_copy(
    log: &Log,
    wait_for: WaitFor,
    run: impl for<'scope> FnOnce(&'scope Scope<'scope, '_>, &'scope Log, &dyn Fn()),
) {
    let (open_door, door) = mpsc::channel();
    let (begun, door) = (Barrier::new(2), Mutex::new(door));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let values = Slow { passes: Cell::new(0), begun: &begun, door: &door };
            log.try_append_values(&values, None, wait_for).unwrap()
        });
        begun.wait();
        run(scope, log, &|| open_door.send(()).unwrap());
        assert_eq!(slow.join().unwrap(), 0);
    });
}

/// Appends behind a large batch turned in a loop until that was copied, on the thread that answers all requests.
#[test]
fn a_non_blocking_append_becomes_visible_when_the_copy_before_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    beside_a_copy(&log, WaitFor::Copies, |scope, log, open_door| {
        let begun = Instant::now();
        let offset = log.try_append_values(&[&b"x"[..]][..], None, WaitFor::Nothing).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5) && offset == 3);
        assert!(!log.is_published(offset) && log.read(offset).unwrap().is_none());
        let waiting = scope.spawn(move || log.wait_published(offset));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        open_door();
        waiting.join().unwrap();
        assert!(log.is_published(offset) && log.is_published(u64::MAX));
        assert_eq!(log.read(offset).unwrap().unwrap().value(), b"x");
    });
}

/// It began at its own segment each time, and nobody looked at the one between that and the batch: it turned in a loop
/// until the disk had written that, on a full disk without end.
#[test]
fn a_non_blocking_append_behind_others_returns_without_waiting_for_the_disk() {
    let hangs = Arc::new((Mutex::new(false), Condvar::new()));
    let disk = Arc::clone(&hangs);
    let gate = Gate::new(Arc::new(Sim::new(1)), move |operation, path: &Path| {
        if operation == Operation::Write && path.ends_with("next-0.tmp") {
            drop(disk.1.wait_while(disk.0.lock().unwrap(), |hangs| *hangs).unwrap());
        }
        Ok(())
    });
    let options = Options { durability: Durability::Memory, ..small() };
    let log = Log::open_on(gate, Path::new(DIR), options).unwrap();
    *hangs.0.lock().unwrap() = true;
    let base = |log: &Log| log.shared.active.load().segment.base();
    beside_a_copy(&log, WaitFor::Copies, |scope, log, open_door| {
        for _ in 0..2 {
            let from = base(log);
            while base(log) == from {
                if let Err(error) = log.try_append_values(&[&[7; 900][..]][..], None, WaitFor::Nothing) {
                    assert!(matches!(error, Error::WouldBlock), "{error}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        let to = log.next_offset();
        let (said, done) = mpsc::channel();
        scope.spawn(move || {
            said.send(log.try_append_values(&[&b"x"[..]][..], None, WaitFor::Copies)).unwrap();
        });
        while log.next_offset() == to {
            std::thread::yield_now();
        }
        open_door();
        let done = done.recv_timeout(Duration::from_secs(5));
        let seen = log.visible_offset();
        *hangs.0.lock().unwrap() = false;
        hangs.1.notify_all();
        assert!(done.is_ok_and(|done| done.is_ok_and(|at| at == to)) && seen == to + 1, "nothing in 5 s");
    });
}

/// It turned in a loop as long as the copy before it took, whatever had become of the log.
#[test]
fn an_append_that_waits_for_copies_ends_when_the_log_fails() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    beside_a_copy(&log, WaitFor::Nothing, |scope, log, open_door| {
        let to = log.next_offset();
        let (said, done) = mpsc::channel();
        scope.spawn(move || said.send(log.append(b"x")).unwrap());
        while log.next_offset() == to {
            std::thread::yield_now();
        }
        log.shared.panicked();
        let done = done.recv_timeout(Duration::from_secs(5));
        open_door();
        assert!(done.is_ok_and(|done| matches!(done, Err(Error::Failed { .. }))), "nothing in 5 s");
    });
}

/// Whoever opens the log next maps its memory, and verifies it there.
#[test]
fn a_failed_log_is_closed_when_nobody_copies_into_its_memory_any_more() {
    for durability in [Durability::Disk, Durability::Memory] {
        let log =
            Log::open_on(Arc::new(Sim::new(1)), Path::new(DIR), Options { durability, ..small() }).unwrap();
        let (begun, open_door) = (Barrier::new(2), mpsc::channel());
        let door = Mutex::new(open_door.1);
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| {
                let values = Slow { passes: Cell::new(0), begun: &begun, door: &door };
                log.try_append_values(&values, None, WaitFor::Nothing)
            });
            begun.wait();
            log.shared.fail(&"for this test");
            let closing = scope.spawn(|| log.shutdown());
            std::thread::sleep(Duration::from_millis(30));
            assert!(!closing.is_finished() && !slow.is_finished());
            open_door.0.send(()).unwrap();
            assert!(matches!(closing.join().unwrap(), Err(Error::Failed { .. })));
            drop(slow.join().unwrap());
        });
    }
}
