//! The housekeeper, and logs that were opened without room, while other things happen.

use super::{
    super::*,
    setup::{Clocks, Door, Open, closes_all_but_one, sealed, without_backings},
    trouble::options,
};
use crate::disk::{
    gate::{Gate, Operation},
    sim::Sim,
};
use std::{
    sync::{atomic::AtomicBool, mpsc},
    thread,
    time::Instant,
};

/// A log whose disk hangs was deleted in the middle of a turn of the housekeeper. The turn waited for that log, though
/// the log was not opened without room, and no other log was closed.
#[test]
fn deleting_a_log_that_is_held_up_keeps_no_other_from_retention_and_closing() {
    let (dir, door, turn) =
        (tempfile::tempdir().unwrap(), Arc::new(Door::default()), Arc::new(Door::default()));
    let (at, passes) = (dir.path().join("stuck"), Arc::clone(&door));
    let (other, waits) = (dir.path().join("other"), Arc::clone(&turn));
    let ask = move |operation, path: &Path| {
        if operation == Operation::Write && path.starts_with(&at) {
            passes.pass();
        }
        if operation == Operation::WriteFile && path.starts_with(&other) {
            waits.pass();
        }
        Ok(())
    };
    let env = Environment::on(Gate::new(crate::disk::native(), ask));
    let store = Store::open_in(env, dir.path(), options()).unwrap();
    let _open = (Open(&door), Open(&turn));
    for name in ["stuck", "other"] {
        store.create(name, &LogSettings::default()).unwrap();
    }
    let stuck = store.get("stuck").unwrap();
    stuck.append(b"a").unwrap();
    stuck.flush().unwrap();
    let other = store.get("other").unwrap();
    other.learn_producers().unwrap();
    let batch = crate::log::ProducerBatch::new("a", 0, 0);
    other.try_append_once(&batch, &[crate::log::Payload { bytes: b"x", json: false }], None).unwrap();
    other.flush().unwrap();
    // Its next segment is prepared: a log that is busy is not closed in this turn.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !other.settles_soon() {
        assert!(Instant::now() < deadline, "it does not settle");
    }
    drop(other);
    door.shut(true);
    turn.shut(true);
    stuck.append(b"b").unwrap();
    stuck.commit_soon();
    door.wait_for_somebody();
    thread::scope(|scope| {
        let (said, is_over) = mpsc::channel();
        let inner = Arc::clone(&store.inner);
        scope.spawn(move || {
            inner.turn();
            let _ = said.send(());
        });
        turn.wait_for_somebody(); // it saves the producers of the other log
        let deletes = scope.spawn(|| store.delete("stuck"));
        thread::sleep(Duration::from_millis(300)); // the deletion waits for the write
        turn.shut(false);
        let over = is_over.recv_timeout(Duration::from_secs(20)).is_ok();
        let is_closed = || store.inner.entry("other").unwrap().open.load().is_none();
        // On a busy machine it may not have settled by then.
        let closed = over
            && (0..50).any(|_| {
                is_closed() || {
                    thread::sleep(Duration::from_millis(20));
                    store.inner.turn();
                    is_closed()
                }
            });
        door.shut(false);
        deletes.join().unwrap().unwrap();
        assert!(
            over && closed,
            "the housekeeper waits for the log that is deleted: over {over}, other closed {closed}"
        );
    });
}

/// Old segments of an unused log could not be removed for lack of descriptors. The housekeeper waited for that and
/// closed no log, which would have released some.
#[test]
fn a_closed_log_that_cannot_be_trimmed_keeps_no_other_from_closing() {
    let sim = Sim::new(3);
    let clocks = Clocks::new();
    let failing = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&failing);
    let ask = move |operation, path: &Path| {
        if operation == Operation::SyncDir
            && path.ends_with("old")
            && asked.load(Ordering::SeqCst)
            && thread::current().name().is_some_and(|name| name.starts_with("millstream-mnt"))
        {
            return Err(io::Error::from_raw_os_error(24));
        }
        Ok(())
    };
    let env = Environment { machine: clocks.clone(), ..Environment::on(Gate::new(Arc::new(sim), ask)) };
    let mut options = options();
    options.log.shm_dir = None;
    let store = Store::open_in(env, Path::new("/store"), options).unwrap();
    let settings = LogSettings { retention_seconds: Some(3600), ..LogSettings::default() };
    store.create("old", &settings).unwrap();
    let log = store.get("old").unwrap();
    for _ in 0..100 {
        log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    thread::sleep(Duration::from_millis(100));
    drop(log);
    let pass = |millis: u64| {
        clocks.pass(millis);
    };
    let is_open = |name: &str| store.inner.entry(name).unwrap().open.load().is_some();
    while is_open("old") {
        pass(1000);
        store.turn();
    }
    store.create("other", &LogSettings::default()).unwrap();
    store.get("other").unwrap();
    pass(2 * 3600 * 1000);
    failing.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let (said, is_over) = mpsc::channel();
        let inner = Arc::clone(&store.inner);
        scope.spawn(move || {
            inner.turn();
            let _ = said.send(());
        });
        let over = is_over.recv_timeout(Duration::from_secs(5)).is_ok();
        let closed = !is_open("other");
        failing.store(false, Ordering::SeqCst);
        assert!(over && closed, "over {over}, closed {closed}");
    });
}

/// As milliseconds, these seconds do not fit in a `u64`.
#[test]
fn a_very_long_retention_drops_nothing() {
    for seconds in [18_446_744_073_709_552u64, 1 << 61, u64::MAX] {
        let sim = Sim::new(3);
        let mut options = options();
        options.log.shm_dir = None;
        let clocks = Clocks::new();
        let env = Environment { machine: clocks.clone(), ..Environment::on(Arc::new(sim)) };
        let store = Store::open_in(env, Path::new("/store"), options).unwrap();
        let settings = LogSettings { retention_seconds: Some(seconds), ..LogSettings::default() };
        store.create("a", &settings).unwrap();
        let log = store.get("a").unwrap();
        for _ in 0..100 {
            log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
        let pass = |millis: u64| {
            clocks.pass(millis);
        };
        for _ in 0..3 {
            pass(1000);
            store.turn();
        }
        assert_eq!(log.first_offset(), 0, "{seconds} s");
        drop(log);
        for _ in 0..3 {
            pass(1000);
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.turn()));
            assert!(turn.is_ok(), "{seconds} s: the housekeeper panics");
        }
    }
}

/// A caller trims a log that was opened without room; meanwhile the log is deleted and created again.
#[test]
fn a_trim_by_a_caller_removes_nothing_of_a_new_log_of_that_name() {
    let (door, place) = (Arc::new(Door::default()), Path::new("/store"));
    let passes = Arc::clone(&door);
    let ask = move |operation, path: &Path| {
        if operation == Operation::Remove && path.ends_with("00000000000000000000.seg") {
            passes.pass();
        }
        Ok(())
    };
    let options = without_backings;
    let (sim, _) = sealed(&Clocks::new(), &LogSettings::default(), 100);
    sim.leave_room(0);
    let env = Environment::on(Gate::new(Arc::new(sim.clone()), ask));
    let store = Store::open_in(env, place, options()).unwrap();
    let _open = Open(&door);
    let log = store.get("a").unwrap();
    assert!(log.writable().unwrap_err().is_full());
    door.shut(true);
    thread::scope(|scope| {
        let trims = scope.spawn(|| log.trim(u64::MAX));
        door.wait_for_somebody();
        let (said, done) = mpsc::channel();
        let made = scope.spawn({
            let store = &store;
            move || {
                store.delete("a").unwrap();
                store.create("a", &LogSettings::default()).unwrap();
                let new = store.get("a").unwrap();
                new.append(b"acknowledged").and_then(|at| new.wait_durable(at)).unwrap();
                said.send(()).unwrap();
            }
        });
        let _ = done.recv_timeout(Duration::from_secs(3)); // or it waits for the trim, as it should
        door.shut(false);
        println!("{:?}", trims.join().unwrap());
        made.join().unwrap();
    });
    drop(log);
    store.close().unwrap();
    let names: Vec<_> = sim.dump().into_keys().collect();
    let store = Store::open_in(Environment::on(Arc::new(sim.clone())), place, options()).unwrap();
    let new = store.get("a").unwrap();
    assert_eq!(new.next_offset(), 1, "the new log's segment is gone: {names:?}");
}

/// When the settings of a closed log could not be read for a moment, its old segments were never looked at again.
#[test]
fn a_moment_without_descriptors_does_not_end_retention() {
    for fails in [false, true] {
        let sim = Sim::new(3);
        let clocks = Clocks::new();
        let failing = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&failing);
        let ask = move |operation, path: &Path| {
            if operation == Operation::Open && path.ends_with("log.json") && asked.load(Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(24));
            }
            Ok(())
        };
        let env = Environment { machine: clocks.clone(), ..Environment::on(Gate::new(Arc::new(sim), ask)) };
        let mut options = options();
        options.log.shm_dir = None;
        let store = Store::open_in(env, Path::new("/store"), options).unwrap();
        let settings = LogSettings { retention_seconds: Some(3600), ..LogSettings::default() };
        store.create("a", &settings).unwrap();
        let log = store.get("a").unwrap();
        for _ in 0..100 {
            log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
        drop(log);
        let pass = |millis: u64| {
            clocks.pass(millis);
        };
        let is_open = || store.inner.entry("a").unwrap().open.load().is_some();
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_open() {
            pass(1000);
            failing.store(fails, Ordering::SeqCst);
            store.turn();
            assert!(Instant::now() < deadline);
        }
        store.turn();
        failing.store(false, Ordering::SeqCst);
        for _ in 0..200 {
            pass(600_000); // more than a day in all
            store.turn();
        }
        let first = store.get("a").unwrap().first_offset();
        assert!(
            first > 0,
            "fails {fails}: nothing was dropped in a day, though records are to be kept for an hour"
        );
    }
}

/// If more logs were closed than there were turns for before the first of them were due again, those were looked at
/// again and again, and the last ones by name never.
#[test]
fn retention_reaches_each_of_many_closed_logs() {
    const LOGS: usize = 200;
    let clocks = Clocks::new();
    let env = Environment { machine: clocks.clone(), ..Environment::on(Arc::new(Sim::new(3))) };
    let mut options = options();
    options.log.shm_dir = None;
    let store = Store::open_in(env, Path::new("/store"), options).unwrap();
    let settings = LogSettings { retention_seconds: Some(1), ..LogSettings::default() };
    for n in 0..LOGS {
        store.create(&format!("log-{n}"), &settings).unwrap();
    }
    let turn = |millis: u64| {
        clocks.pass(millis);
        store.turn();
    };
    turn(600_000); // closes them
    assert_eq!((store.counts().logs, store.counts().open), (LOGS as u64, 0));
    // There are six turns per minute, for 16 logs each: before a log is due again, 96 logs have theirs.
    (0..2 * LOGS / 16).for_each(|_| turn(10_000));
    let looked_at = |name: &String| store.inner.entry(name).unwrap().retain_at.load(Ordering::SeqCst) > 0;
    let names = store.names(None, LOGS);
    let never: Vec<_> = names.iter().filter(|name| !looked_at(name)).collect();
    assert!(never.is_empty(), "{} of {LOGS} were never looked at: {never:?}", never.len());
}

/// The disks of some closed logs hung when they were opened for retention, by the housekeeper itself: no other log was
/// trimmed, closed or saved any more.
#[test]
fn closed_logs_whose_disks_hang_keep_no_other_from_retention_and_closing() {
    let (dir, door) = (tempfile::tempdir().unwrap(), Arc::new(Door::default()));
    let (at, passes) = (dir.path().to_owned(), Arc::clone(&door));
    let ask = move |operation, path: &Path| {
        let name = path.strip_prefix(&at).ok().and_then(|path| path.iter().next()?.to_str());
        if operation == Operation::Read && name.is_some_and(|name| name.starts_with("stuck")) {
            passes.pass();
        }
        Ok(())
    };
    let env = Environment::on(Gate::new(crate::disk::native(), ask));
    let mut store = Store::open_in(env, dir.path(), options()).unwrap();
    let _open = Open(&door);
    let settings = LogSettings { retention_seconds: Some(1), ..LogSettings::default() };
    for name in ["closed", "open", "stuck-1", "stuck-2"] {
        store.create(name, &settings).unwrap();
    }
    store.turn();
    thread::sleep(Duration::from_millis(2)); // more than idle
    store.turn();
    assert_eq!((store.counts().logs, store.counts().open), (4, 0));
    let due = |name| store.inner.entry(name).unwrap().retain_at.load(Ordering::SeqCst);
    for (n, name) in ["stuck-1", "stuck-2", "closed"].into_iter().enumerate() {
        store.inner.entry(name).unwrap().retain_at.store(n as u64, Ordering::SeqCst); // in this order
    }
    store.get("open").unwrap();
    door.shut(true);
    let housekeeper = Housekeeper::start(&store.inner).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_done = || due("closed") > 2 && store.inner.entry("open").unwrap().open.load().is_none();
    while !is_done() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let done = is_done();
    door.shut(false);
    assert!(done, "the housekeeper waits for a closed log");
    store.housekeeper = Some(housekeeper);
    store.close().unwrap();
}

/// Counts the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicU64>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.0.fetch_add(u64::from(*event.metadata().level() <= tracing::Level::WARN), Ordering::SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// A warning was logged each second for each directory that could not be removed.
#[test]
fn a_directory_that_cannot_be_removed_is_reported_once() {
    let sim = Sim::new(3);
    let failing = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&failing);
    let ask = move |operation, _: &Path| match operation {
        Operation::RemoveDir if asked.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(13)),
        _ => Ok(()),
    };
    let env = Environment::on(Gate::new(Arc::new(sim.clone()), ask));
    let store = Store::open_in(env, Path::new("/store"), without_backings()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    store.delete("a").unwrap();
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || (0..5).for_each(|_| store.turn()));
    assert_eq!((warnings.0.load(Ordering::SeqCst), store.inner.to_remove().len()), (0, 1));
    failing.store(false, Ordering::SeqCst);
    store.turn();
    assert!(store.inner.to_remove().is_empty());
}

/// The disk of a log that was idle hung when the log was closed, and no other log was closed.
#[test]
fn a_disk_that_hangs_while_an_idle_log_is_closed_keeps_no_other_from_being_closed() {
    let door = Arc::new(Door::default());
    let passes = Arc::clone(&door);
    let ask = move |operation, path: &Path| {
        if operation == Operation::Write && path.starts_with("/store/a") {
            passes.pass();
        }
        Ok(())
    };
    let env = Environment::on(Gate::new(Arc::new(Sim::new(3)), ask));
    let store = Store::open_in(env, Path::new("/store"), without_backings()).unwrap();
    let _open = Open(&door);
    for name in ["a", "b", "c"] {
        store.create(name, &LogSettings::default()).unwrap();
        let log = store.get(name).unwrap();
        log.append(b"x").and_then(|at| log.wait_durable(at)).unwrap();
    }
    closes_all_but_one(store, &door, "closing");
}

/// The disk of a log hung while its producers were saved, or its oldest segment was removed, and no other log was closed.
#[test]
fn a_disk_that_hangs_while_the_housekeeper_uses_it_keeps_no_other_log_from_being_closed() {
    for hanging in [Operation::WriteFile, Operation::Remove] {
        let door = Arc::new(Door::default());
        let passes = Arc::clone(&door);
        let ask = move |operation, path: &Path| {
            if operation == hanging && path.starts_with("/store/a") {
                passes.pass();
            }
            Ok(())
        };
        let env = Environment::on(Gate::new(Arc::new(Sim::new(3)), ask));
        let store = Store::open_in(env, Path::new("/store"), without_backings()).unwrap();
        let _open = Open(&door);
        let settings = LogSettings { retention_bytes: Some(20_000), ..LogSettings::default() };
        for name in ["a", "b", "c"] {
            store.create(name, &settings).unwrap();
            let log = store.get(name).unwrap();
            let batch = crate::ProducerBatch::new("p", 1, 0);
            let value = crate::Payload { bytes: b"x", json: false };
            log.try_append_once(&batch, &[value], None).unwrap();
            for _ in 0..if hanging == Operation::Remove { 100 } else { 1 } {
                log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
            }
        }
        closes_all_but_one(store, &door, &format!("{hanging:?}"));
    }
}

/// While the disk was full, it was said each second of each log with producers that they could not be saved, and of
/// each that trims that it trims less; after another error, that it does not trim.
#[test]
fn a_failure_to_save_producers_is_logged_once_until_it_succeeds() {
    told_of_once(28, 1);
    told_of_once(5, 2);
}

/// Producers that cannot be saved because of this error make so many lines.
fn told_of_once(error: i32, lines: u64) {
    let failing = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&failing);
    let ask = move |operation, path: &Path| {
        let hit = operation == Operation::WriteFile && path.ends_with("producers.json.tmp");
        if hit && asked.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(error)) } else { Ok(()) }
    };
    let clocks = Clocks::new();
    let env = clocks.on(Gate::new(Arc::new(Sim::new(3)), ask));
    let store = Store::open_in(env, Path::new("/store"), without_backings()).unwrap();
    let settings = LogSettings { retention_bytes: Some(1), ..LogSettings::default() };
    store.create("a", &settings).unwrap();
    let log = store.get("a").unwrap();
    log.learn_producers().unwrap();
    let mut sequence = 0;
    let mut turns = |count: usize| {
        let warnings = Warnings::default();
        tracing::subscriber::with_default(warnings.clone(), || {
            for _ in 0..count {
                let batch = crate::log::ProducerBatch::new("p", 0, sequence);
                let payload = crate::log::Payload { bytes: &[7; 3000], json: false };
                while let Err(error) = log.try_append_once(&batch, &[payload], None) {
                    assert!(matches!(error, LogError::WouldBlock), "{error}");
                }
                log.flush().unwrap();
                sequence += 1;
                thread::sleep(Duration::from_millis(5)); // full segments are sealed
                clocks.pass_unnoticed(1000);
                store.turn();
            }
        });
        warnings.0.load(Ordering::SeqCst)
    };
    assert_eq!(turns(10), 0);
    for _ in 0..2 {
        failing.store(true, Ordering::SeqCst);
        assert_eq!(turns(10), lines, "{error}");
        assert_eq!(turns(10), 0);
        failing.store(false, Ordering::SeqCst);
        assert_eq!(turns(3), 0);
    }
    assert!(log.first_offset() > 0);
}

/// The whole file of producers was written each second in which one of them had sent a byte: 4.7 MB, in a log with
/// 10,000.
#[test]
fn a_large_file_of_producers_is_not_written_each_second() {
    let (writes, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, sim) = (Arc::clone(&writes), Sim::new(3));
    let ask = move |operation, path: &Path| {
        if operation == Operation::WriteFile && path.ends_with("producers.json.tmp") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    };
    let clocks = Clocks::new();
    let env = clocks.on(Gate::new(Arc::new(sim.clone()), ask));
    let store = Store::open_in(env, Path::new("/store"), without_backings()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let log = store.get("a").unwrap();
    log.learn_producers().unwrap();
    let send = |id: &str, sequence, value: &[u8]| {
        let mark = "m".repeat(100);
        let batch = crate::log::ProducerBatch::new(id, 0, sequence).with_mark(&mark);
        let payload = crate::log::Payload { bytes: value, json: false };
        while let Err(error) = log.try_append_once(&batch, &[payload], None) {
            assert!(matches!(error, LogError::WouldBlock), "{error}");
        }
    };
    let size = || {
        let text = crate::disk::tree::read(&sim, Path::new("/store/a/producers.json")).unwrap();
        bytes.store(text.unwrap().len() as u64, Ordering::SeqCst);
        bytes.load(Ordering::SeqCst)
    };
    let seconds = |count: u64, from: u64| {
        let before = writes.load(Ordering::SeqCst);
        for n in 0..count {
            send("p", from + n, b"x");
            log.flush().unwrap();
            clocks.pass_unnoticed(1000);
            store.turn();
        }
        writes.load(Ordering::SeqCst) - before
    };
    assert_eq!(seconds(20, 0), 20, "a small one is written as soon as ever");
    for n in 0..4000 {
        send(&format!("{n:064}"), 0, b"x");
    }
    log.flush().unwrap();
    log.save_producers().unwrap();
    let large = size();
    assert!(large > 1 << 20, "{large}");
    let written = seconds(60, 20);
    assert!(written >= 2 && written * large / 60 <= 300 << 10, "{written} times {large} bytes in a minute");
    // Closing the log saves what is left.
    drop(log);
    store.close().unwrap();
}
