//! One log of a store is in trouble; the others continue to work.

use super::super::*;
use crate::{
    disk::{
        self,
        gate::{Gate, Operation},
    },
    log::{Durability, Log, Options, Payload, ProducerBatch},
};
use std::{
    future::Future,
    sync::{Condvar, mpsc},
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn options() -> StoreOptions {
    let log = Options {
        segment_bytes: 8 << 10,
        first_segment_bytes: 4 << 10,
        memory_bytes: 256 << 10,
        ..Options::default()
    };
    StoreOptions { log, open_logs: 10, idle: Duration::ZERO, scrub_bytes_per_second: 0 }
}

fn open(
    dir: &Path,
    ask: impl Fn(Operation, &Path) -> io::Result<()> + Send + Sync + 'static,
    options: StoreOptions,
) -> Store {
    Store::open_in(Environment::on(Gate::new(disk::native(), ask)), dir, options).unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What happens to an operation: it is let through, refused for lack of memory, or hangs.
#[derive(Default)]
struct Trouble {
    refuses: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Trouble {
    fn set(&self, refuses: Option<bool>) {
        *self.refuses.lock().unwrap() = refuses;
        self.changed.notify_all();
    }

    fn pass(&self) -> io::Result<()> {
        let hangs = |refuses: &mut Option<bool>| *refuses == Some(false);
        let held = self.changed.wait_while(self.refuses.lock().unwrap(), hangs).unwrap();
        held.map_or(Ok(()), |_| Err(io::Error::from_raw_os_error(12)))
    }
}

/// Ends the trouble when dropped, so that a failing test terminates.
struct Over<'a>(&'a Trouble);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// The housekeeper waited for such a log, and no other log was trimmed or closed any more.
#[test]
fn a_log_that_is_held_up_keeps_no_other_from_retention_and_closing() {
    for (troubled, refuses) in [
        (Operation::Write, false),
        (Operation::Write, true),
        (Operation::WriteFile, false),
        (Operation::Remove, false),
    ] {
        let (dir, trouble) = (tempfile::tempdir().unwrap(), Arc::new(Trouble::default()));
        let (at, passes) = (dir.path().join("stuck"), Arc::clone(&trouble));
        let ask = move |operation, path: &Path| {
            if operation == troubled && path.starts_with(&at) { passes.pass() } else { Ok(()) }
        };
        let store = open(dir.path(), ask, options());
        let _over = Over(&trouble);
        let settings = LogSettings { retention_bytes: Some(10_000), ..LogSettings::default() };
        let [stuck, trimmed] = ["stuck", "trimmed"].map(|name| {
            store.create(name, &settings).unwrap();
            store.get(name).unwrap()
        });
        store.create("unused", &LogSettings::default()).unwrap();
        let is_open = |name: &str| store.inner.entry(name).unwrap().open.load().is_some();
        let fill = |log: &OpenLog| {
            for _ in 0..300 {
                log.append(&[7; 100]).unwrap();
            }
            log.flush().unwrap();
            wait_for("the maintenance task seals", || log.disk_bytes() > 30_000);
        };
        stuck.learn_producers().unwrap();
        fill(&stuck);
        fill(&trimmed);
        thread::sleep(Duration::from_millis(20)); // the maintenance tasks seal the rest

        trouble.set(Some(refuses));
        let send = |stuck: &OpenLog| {
            let batch = ProducerBatch::new("a", 0, 0);
            stuck.try_append_once(&batch, &[Payload { bytes: b"x", json: false }], None).unwrap()
        };
        let first = send(&stuck);
        let (said, is_over) = mpsc::channel();
        // One thread saves the producers, and hangs: it is not the housekeeper.
        let other = Arc::clone(&stuck);
        let other = (troubled == Operation::WriteFile).then(|| thread::spawn(move || other.save_producers()));
        thread::sleep(Duration::from_millis(20));
        drop(stuck);
        let inner = Arc::clone(&store.inner);
        let turns = thread::spawn(move || {
            for _ in 0..3 {
                inner.turn();
                let _ = said.send(()); // the test may have failed
            }
        });
        for _ in 0..3 {
            let over = is_over.recv_timeout(DEADLINE);
            assert!(over.is_ok(), "{troubled:?}: the housekeeper waits for the log that is held up");
        }
        turns.join().unwrap();
        assert!(trimmed.first_offset() > 0, "{troubled:?}");
        assert!(!is_open("unused"), "{troubled:?}");

        trouble.set(None);
        other.map_or(Ok(()), |other| other.join().unwrap()).unwrap();
        let stuck = store.get("stuck").unwrap();
        stuck.wait_durable(first.first_offset).unwrap();
        wait_for("it is trimmed", || {
            store.turn();
            stuck.first_offset() > 0
        });
        drop((stuck, trimmed));
        wait_for("they are closed", || {
            store.turn();
            !is_open("stuck") && !is_open("trimmed")
        });
        let stuck = store.get("stuck").unwrap();
        stuck.learn_producers().unwrap();
        let repeat = send(&stuck);
        assert_eq!((repeat.repeated, repeat.first_offset), (true, first.first_offset));
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = Box::pin(future);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn value(offset: u64) -> Vec<u8> {
    vec![offset as u8; 40]
}

/// An offset that no log in this test reaches.
const NEVER: u64 = 1_000_000;

/// A panic in a thread that works for a log fails that log until it is opened again, and nothing else.
#[test]
fn a_panic_in_a_thread_that_works_for_a_log_fails_that_log_only_and_loses_nothing() {
    for (pool, operation) in [("millstream-flush", Operation::Write), ("millstream-mnt", Operation::Create)] {
        let dir = tempfile::tempdir().unwrap();
        let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (at, panics) = (dir.path().join("bad"), Arc::clone(&armed));
        let ask = move |asked, path: &Path| {
            let thread = thread::current();
            let here = thread.name().is_some_and(|name| name.starts_with(pool));
            assert!(
                !(asked == operation && here && path.starts_with(&at) && panics.load(Ordering::SeqCst)),
                "as the test wants it"
            );
            Ok(())
        };
        let store = open(dir.path(), ask, options());
        let settings = LogSettings { durability: Some(Durability::Memory), ..LogSettings::default() };
        let [bad, good] = ["bad", "good"].map(|name| {
            store.create(name, &settings).unwrap();
            store.get(name).unwrap()
        });
        for log in [&bad, &good] {
            for offset in 0..10 {
                assert_eq!(log.append(&value(offset)).unwrap(), offset);
            }
            log.flush().unwrap();
        }

        let (told, waited) = mpsc::channel();
        let wait = |name: &'static str, waits: fn(&Log) -> Result<(), LogError>| {
            let (log, told) = (Arc::clone(&bad), told.clone());
            thread::spawn(move || told.send((name, waits(&log))).unwrap())
        };
        let waiting = [
            wait("to be durable", |log| block_on(log.durable(NEVER))),
            wait("to be seen", |log| log.reader(NEVER).wait(None).map(drop)),
            wait("to be seen, by a future", |log| block_on(log.visible(NEVER)).map(drop)),
        ];
        thread::sleep(Duration::from_millis(20));
        armed.store(true, Ordering::SeqCst);
        let (appends, (said, stopped)) = (Arc::clone(&bad), mpsc::channel());
        thread::spawn(move || {
            let refused = (10..).find_map(|offset| {
                let done = appends.append(&value(offset));
                done.map(|given| assert_eq!(given, offset)).err().map(|error| (offset, error))
            });
            drop(appends);
            said.send(refused.unwrap()).unwrap();
        });
        let (next, refused) =
            stopped.recv_timeout(DEADLINE).expect("an append waits for a thread that is gone");
        let said = "the log's writer has failed: a thread that worked for it panicked; open the log again to recover";
        assert_eq!(refused.to_string(), said);
        assert!(matches!(refused, LogError::Failed { .. }));
        for _ in &waiting {
            let (name, result) = waited.recv_timeout(DEADLINE).expect("somebody still waits");
            assert!(matches!(result, Err(LogError::Failed { .. })), "{name}: {result:?}");
        }
        assert!(matches!(bad.trim(5), Err(LogError::Failed { .. })));
        assert_eq!(bad.read(3).unwrap().unwrap().value(), value(3));
        for offset in 10..500 {
            assert_eq!(good.append(&value(offset)).unwrap(), offset);
        }
        good.flush().unwrap();
        for thread in waiting {
            thread.join().unwrap();
        }
        drop((bad, good));
        assert!(store.close().is_err(), "not all of it is known to be durable");

        let store = open(dir.path(), |_, _| Ok(()), options());
        for (name, least) in [("bad", next), ("good", 500)] {
            let log = store.get(name).unwrap();
            assert!(
                log.damage().is_empty() && log.next_offset() >= least,
                "{name}: {} of {least}",
                log.next_offset()
            );
            for offset in 0..least {
                assert_eq!(log.read(offset).unwrap().unwrap().value(), value(offset), "{name} {offset}");
            }
            let last = log.append(b"on").unwrap();
            log.wait_durable(last).unwrap();
        }
        store.close().unwrap();
    }
}
