//! Stores on a disk that has no room.

use super::{
    super::*,
    setup::{Clocks, NOW, filled, sealed, without_backings},
    trouble::options,
};
use crate::{
    disk::{
        gate::{Gate, Operation},
        sim::{Cut, Sim},
    },
    log::Log,
};
use std::{sync::atomic::AtomicBool, thread, time::Instant};

/// Several threads trim a log that was opened without room at once. The files must be removed in order.
#[test]
fn concurrent_trims_remove_the_oldest_segments_first() {
    let place = Path::new("/store");
    let ((sim, end), options) = (sealed(&Clocks::new(), &LogSettings::default(), 1500), without_backings);
    sim.leave_room(0);
    for round in 0..30u64 {
        let sim = sim.snapshot();
        sim.set_room(Some(0));
        let order = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&order);
        let (now, gap) = (sim.clone(), Arc::new(Mutex::new(None)));
        let found = Arc::clone(&gap);
        let ask = move |operation, path: &Path| {
            if operation == Operation::Remove {
                let base: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap_or(0);
                let mut noted = noted.lock().unwrap();
                if !noted.contains(&base) && noted.iter().any(|&other| other > base) {
                    // The state at this moment, if the process is killed now.
                    found.lock().unwrap().get_or_insert_with(|| now.snapshot());
                }
                noted.push(base);
                drop(noted);
                thread::yield_now();
            }
            Ok(())
        };
        let store =
            Store::open_in(Environment::on(Gate::new(Arc::new(sim.clone()), ask)), place, options()).unwrap();
        let log = store.get("a").unwrap();
        assert!(log.writable().unwrap_err().is_full());
        thread::scope(|scope| {
            for n in 0..24u64 {
                let log = &log;
                scope.spawn(move || {
                    for m in 0..20 {
                        let _ = log.trim(end * (n + 24 * m) / (20 * 24));
                    }
                });
            }
        });
        if let Some(killed) = gap.lock().unwrap().take() {
            killed.set_room(None);
            let log =
                Log::open_in(&Environment::on(Arc::new(killed)), &place.join("a"), options().log).unwrap();
            assert_eq!(
                log.damage(),
                [],
                "round {round}: killed there, the log has a gap: {:?}",
                log.writable()
            );
        }
        let order = order.lock().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for base in order.iter() {
            if seen.insert(*base) {
                let newest = seen.last().unwrap();
                assert!(
                    base == newest,
                    "round {round}: {base} is removed after {newest}: a crash in between leaves a gap"
                );
            }
        }
    }
}

/// A log that is opened without room has retention by age, and records older than that: dropping them makes room.
#[test]
fn retention_by_age_makes_room_for_a_log_that_was_opened_without() {
    for full in [false, true] {
        let (clocks, place) = (Clocks::new(), Path::new("/store"));
        let settings = LogSettings { retention_seconds: Some(3600), ..LogSettings::default() };
        let (sim, _) = sealed(&clocks, &settings, 100);
        if full {
            sim.leave_room(0);
        }
        clocks.set(NOW + 2 * 3600 * 1000); // two hours later
        let options = StoreOptions { idle: Duration::from_secs(1 << 20), ..without_backings() };
        let store = Store::open_in(clocks.on(Arc::new(sim.clone())), place, options).unwrap();
        let log = store.get("a").unwrap();
        assert_eq!(log.writable().is_err(), full);
        for _ in 0..60 {
            clocks.pass(10_000);
            store.turn();
        }
        assert!(log.first_offset() > 0, "full {full}: nothing is dropped in ten minutes");
    }
}

/// Without a kill: several threads trim, room becomes available, and the store opens the log again meanwhile.
#[test]
fn a_log_that_is_reopened_while_several_trim_it_has_no_gap() {
    let place = Path::new("/store");
    let ((sim, end), options) = (sealed(&Clocks::new(), &LogSettings::default(), 1500), without_backings);
    for round in 0..60u64 {
        let sim = sim.snapshot();
        sim.set_room(Some(0));
        let ask = move |operation, _: &Path| {
            if operation == Operation::Remove {
                thread::yield_now();
            }
            Ok(())
        };
        let store =
            Store::open_in(Environment::on(Gate::new(Arc::new(sim.clone()), ask)), place, options()).unwrap();
        let log = store.get("a").unwrap();
        assert!(log.writable().unwrap_err().is_full());
        thread::scope(|scope| {
            for n in 0..24u64 {
                let log = &log;
                scope.spawn(move || {
                    for m in 0..20 {
                        let _ = log.trim(end * (n + 24 * m) / (20 * 24));
                    }
                });
            }
            thread::sleep(Duration::from_micros(round * 37 % 3000));
            sim.set_room(None);
            store.turn();
        });
        drop(log);
        let log = store.get("a").unwrap();
        assert_eq!(log.damage(), [], "round {round}");
    }
}

/// A log whose mark of a clean close found no room held up the housekeeper, and callers of other logs, for 5 s; and
/// closing the store took as long for each.
#[test]
fn logs_that_find_no_room_for_their_marks_are_closed_without_waiting_for_it() {
    let full = Arc::new(AtomicBool::new(false));
    let is_full = Arc::clone(&full);
    let ask = move |operation, _: &Path| match operation {
        Operation::Write if is_full.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(28)),
        _ => Ok(()),
    };
    let env = Environment::on(Gate::new(Arc::new(Sim::new(3)), ask));
    let store = Store::open_in(env, Path::new("/store"), without_backings()).unwrap();
    let names = ["a", "b", "c"];
    let fill_up = || {
        for name in names {
            store.create(name, &LogSettings::default()).unwrap();
            let log = store.get(name).unwrap();
            log.append(b"x").and_then(|at| log.wait_durable(at)).unwrap();
        }
        thread::sleep(Duration::from_millis(200)); // zeros are written ahead
        full.store(true, Ordering::SeqCst);
    };
    fill_up();
    let begun = Instant::now();
    store.turn();
    assert_eq!((store.counts().logs, store.counts().open), (3, 0));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    full.store(false, Ordering::SeqCst);
    fill_up();
    for name in names {
        let log = store.get(name).unwrap();
        assert_eq!((log.damage(), log.next_offset()), (&[][..], 2));
    }
    let begun = Instant::now();
    store.close().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

/// A log that does not open for lack of room, because its readers may have seen what is in memory, was never trimmed,
/// which would have made room.
#[test]
fn retention_makes_room_for_a_log_whose_memory_cannot_be_restored() {
    let (sim, place, at) = (Sim::new(3), Path::new("/store"), tempfile::tempdir_in("/dev/shm").unwrap());
    let options = || {
        let mut options = options();
        options.log.shm_dir = Some(at.path().to_owned());
        options.log.durability = crate::Durability::Memory;
        options
    };
    let (clocks, settings) =
        (Clocks::new(), LogSettings { retention_seconds: Some(3600), ..LogSettings::default() });
    let (_store, log) = filled(clocks.on(Arc::new(sim.clone())), options(), &settings, 100);
    thread::sleep(Duration::from_millis(200)); // the next segment's file is made
    sim.run_dry(u64::MAX);
    log.append(&[8; 2500]).unwrap();
    let left = sim.snapshot().after(Cut::Kill);
    left.run_dry(u64::MAX);
    clocks.set(NOW + 2 * 3600 * 1000); // two hours later
    let killed = Store::open_in(clocks.on(Arc::new(left.clone())), place, options()).unwrap();
    let refused = killed.get("a").err();
    assert!(refused.is_some_and(|error| matches!(error, Error::Log(LogError::Full { .. }))));
    let segments = || {
        let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "seg");
        left.dump().into_keys().filter(is_segment).count()
    };
    let before = segments();
    for _ in 0..60 {
        clocks.pass(10_000);
        killed.turn();
    }
    assert!(segments() < before, "nothing is dropped in ten minutes");
    left.run_dry(0);
    let whole = killed.get("a").unwrap();
    assert!(whole.first_offset() > 0);
    assert_eq!((whole.next_offset(), whole.damage()), (101, &[][..]));
    assert_eq!(whole.read(100).unwrap().unwrap().value(), [8; 2500]);
    drop(whole);
    sim.run_dry(0);
}

/// Where no room can be reserved, a log was opened again every second, though each time it found none: its waiters and
/// tails were sent away each time.
#[test]
fn a_log_that_only_seems_to_have_room_is_opened_again_less_and_less_often() {
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let ask = move |operation, path: &Path| {
        let is_ours = operation == Operation::Write && path.ends_with("next-0.tmp");
        if is_ours && is_full.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    };
    let clocks = Clocks::new();
    let (sim, _) = sealed(&clocks, &LogSettings::default(), 1500);
    let env = clocks.on(Gate::new(Arc::new(sim), ask));
    let options = StoreOptions { idle: Duration::from_secs(1 << 20), ..without_backings() };
    let store = Store::open_in(env, Path::new("/store"), options).unwrap();
    let mut log = store.get("a").unwrap();
    let turn = || {
        clocks.pass_unnoticed(1000);
        store.turn();
    };
    let mut again = 0;
    for _ in 0..200 {
        assert!(log.was_opened_full());
        turn();
        let now = store.get("a").unwrap();
        again += usize::from(!Arc::ptr_eq(&log, &now));
        log = now;
    }
    assert!((4..=8).contains(&again), "{again} times in 200 s");
    full.store(false, Ordering::SeqCst);
    let turns = (0..).take_while(|_| {
        turn();
        store.get("a").unwrap().was_opened_full()
    });
    assert!(turns.count() < 64);
    store.turn();
    // After that it is as if there had always been room.
    assert!(store.get("a").unwrap().append(b"x").is_ok());
}
