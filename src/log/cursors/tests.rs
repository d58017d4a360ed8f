//! Cursors.

use super::*;
use crate::{
    disk::{
        gate::{Gate, Operation},
        sim::{Cut, Sim},
    },
    log::{Durability, Options},
};
use std::{
    path::Path,
    sync::{Arc, Barrier},
};

fn small(durability: Durability) -> Options {
    Options {
        segment_bytes: 8 << 10,
        first_segment_bytes: 4 << 10,
        memory_bytes: 64 << 10,
        shm_dir: None,
        durability,
    }
}

fn on(disk: Arc<dyn crate::disk::Disk>, durability: Durability) -> Log {
    Log::open_on(disk, Path::new("/log"), small(durability)).unwrap()
}

fn open(sim: &Sim) -> Log {
    on(Arc::new(sim.clone()), Durability::Disk)
}

fn file() -> std::path::PathBuf {
    Path::new("/log").join(CURSORS_FILE)
}

#[test]
fn cursors_are_set_compared_listed_and_removed_and_are_there_after_opening_again() {
    let sim = Sim::new(1);
    let log = open(&sim);
    for n in 0..10u8 {
        log.append_wait_durable(&[n]).unwrap();
    }
    let (a, b) = (log.cursor("a").unwrap(), log.cursor("b").unwrap());
    assert_eq!((a.offset().unwrap(), log.cursors().unwrap().len()), (None, 0));
    assert!(!sim.dump().contains_key(&file()), "a log without cursors has no file of them");
    a.set(3).unwrap();
    assert!(matches!(a.set_if(Some(2), 5), Err(Error::UnexpectedCursor { offset: Some(3) })));
    assert!(matches!(a.set_if(None, 5), Err(Error::UnexpectedCursor { offset: Some(3) })));
    assert!(matches!(b.set_if(Some(0), 5), Err(Error::UnexpectedCursor { offset: None })));
    a.set_if(Some(3), 5).unwrap();
    b.set_if(None, 10).unwrap();
    a.set(4).unwrap(); // backward
    assert!(matches!(b.set(11), Err(Error::BeyondEnd { offset: 11, end: 10 })));
    let all = BTreeMap::from([("a".to_owned(), 4), ("b".to_owned(), 10)]);
    assert_eq!(log.cursors().unwrap(), all);
    log.trim(10).unwrap();
    log.close().unwrap();
    let log = open(&sim);
    assert_eq!(log.cursors().unwrap(), all);
    let a = log.cursor("a").unwrap();
    assert!(a.remove().unwrap());
    assert!(!a.remove().unwrap());
    drop(log);
    let log = open(&sim);
    assert_eq!(log.cursors().unwrap(), BTreeMap::from([("b".to_owned(), 10)]));
    for bad in ["", ".a", "-a", "a/b", "ä", &"a".repeat(129)] {
        assert!(matches!(log.cursor(bad), Err(Error::BadCursor)), "{bad}");
    }
}

#[test]
fn a_log_has_so_many_cursors_and_no_more() {
    let log = open(&Sim::new(1));
    let all: Vec<Cursor> =
        (0..=MAX_CURSORS_PER_LOG).map(|n| log.cursor(&format!("{n}-{}", "x".repeat(120))).unwrap()).collect();
    for cursor in &all[1..] {
        cursor.set(0).unwrap();
    }
    assert!(matches!(all[0].set(0), Err(Error::TooManyCursors)));
    all[7].set(0).unwrap();
    all[7].remove().unwrap();
    all[0].set(0).unwrap();
}

/// After a loss of power at any step, a cursor is where the last answer has put it, or where the change was to put it
/// that was being made.
#[test]
fn what_is_answered_about_a_cursor_is_durable_at_every_step() {
    let (mut step, mut ended) = (0, false);
    while !ended {
        let sim = Sim::new(step);
        let log = open(&sim);
        for n in 0..9u8 {
            log.append_wait_durable(&[n]).unwrap();
        }
        sim.end_after(step, Cut::Power);
        let cursor = log.cursor("c").unwrap();
        let (mut answered, mut asked) = (None, None);
        for offset in 1..9 {
            asked = Some(offset);
            if cursor.set(offset).is_err() {
                break;
            }
            answered = asked;
        }
        ended = answered == Some(8);
        sim.turn_off();
        let found = open(&sim.reboot()).cursor("c").unwrap().offset().unwrap();
        assert!(found == answered || found == asked, "step {step}: {found:?}, {answered:?}, {asked:?}");
        drop(log);
        step += 1;
    }
    assert!(step > 20, "{step}");
}

/// With records that are kept in memory, a loss of power leaves a log that is shorter than its consumers have seen. A
/// cursor beyond the end would skip what is appended afterwards.
#[test]
fn a_cursor_beyond_the_end_of_a_log_that_was_shortened_skips_nothing_that_comes_later() {
    let sim = Sim::new(1);
    let log = on(Arc::new(sim.clone()), Durability::Memory);
    log.append_wait_durable(b"durable").unwrap();
    sim.hold(true);
    for _ in 0..4 {
        log.append(b"in memory").unwrap();
    }
    sim.hold(false);
    log.wait_published(4);
    // The file is durable, and the records are not: as if the flusher had not come to them yet.
    let text = serde_json::to_vec(&Content::new(BTreeMap::from([
        ("before".to_owned(), 1),
        ("beyond".to_owned(), 500),
    ])));
    log.flush().unwrap();
    drop(log);
    tree::replace(&sim, &file(), &text.unwrap()).unwrap();
    let log = open(&sim);
    assert_eq!(log.next_offset(), 5);
    for _ in 0..600 {
        log.append(b"later").unwrap();
    }
    log.flush().unwrap();
    let killed = sim.reboot(); // before anybody has used a cursor
    drop(log);
    let log = open(&killed);
    let expected = BTreeMap::from([("before".to_owned(), 1), ("beyond".to_owned(), 5)]);
    assert_eq!(log.cursors().unwrap(), expected);
}

#[test]
fn cursors_that_do_not_verify_are_refused_until_they_are_removed_and_the_log_is_used_meanwhile() {
    let sim = Sim::new(1);
    let log = open(&sim);
    log.append_wait_durable(b"x").unwrap();
    log.cursor("a").unwrap().set(1).unwrap();
    drop(log);
    for at in 0..sim.dump()[&file()].len() {
        let sim = sim.snapshot();
        sim.damage(&file(), |bytes| bytes[at] ^= 4);
        let log = open(&sim);
        log.append_wait_durable(b"y").unwrap();
        let cursor = log.cursor("a").unwrap();
        assert!(matches!(cursor.offset(), Err(Error::CursorsDamaged { .. })), "byte {at}");
        assert!(matches!(cursor.set(0), Err(Error::CursorsDamaged { .. })));
        assert!(matches!(cursor.remove(), Err(Error::CursorsDamaged { .. })));
        assert!(matches!(log.cursors(), Err(Error::CursorsDamaged { .. })));
        log.remove_cursors().unwrap();
        assert_eq!(cursor.offset().unwrap(), None);
        cursor.set(2).unwrap();
        drop(log);
        assert_eq!(open(&sim).cursor("a").unwrap().offset().unwrap(), Some(2));
    }
}

#[test]
fn a_cursor_that_could_not_be_written_is_not_reported_as_set() {
    let sim = Sim::new(1);
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gate = Gate::new(Arc::new(sim.clone()), {
        let fails = Arc::clone(&fails);
        move |operation, path| {
            let is_it = operation == Operation::WriteFile && path.to_string_lossy().contains(CURSORS_FILE);
            if is_it && fails.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
            }
            Ok(())
        }
    });
    let log = on(gate, Durability::Disk);
    log.append_wait_durable(b"x").unwrap();
    let cursor = log.cursor("a").unwrap();
    cursor.set(0).unwrap();
    fails.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(matches!(cursor.set(1), Err(Error::Full { .. })));
    assert_eq!(cursor.offset().unwrap(), Some(0));
    fails.store(false, std::sync::atomic::Ordering::SeqCst);
    cursor.set(1).unwrap();
    assert_eq!(cursor.offset().unwrap(), Some(1));
}

#[test]
fn cursors_that_are_set_at_once_share_writes_and_conditions_hold_among_them() {
    let sim = Sim::new(1);
    let writes = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let gate = Gate::new(Arc::new(sim.clone()), {
        let writes = Arc::clone(&writes);
        move |operation, path| {
            if operation == Operation::WriteFile && path.to_string_lossy().contains(CURSORS_FILE) {
                writes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Ok(())
        }
    });
    let log = on(gate, Durability::Disk);
    for n in 0..200u8 {
        log.append(&[n]).unwrap();
    }
    log.flush().unwrap();
    let (threads, rounds) = (16, 10);
    let begin = Barrier::new(threads);
    let counted: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let (own, common) = (log.cursor(&format!("t{thread}")).unwrap(), log.cursor("all").unwrap());
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    let mut counted = 0;
                    for round in 1..=rounds {
                        own.set(round).unwrap();
                        assert_eq!(own.offset().unwrap(), Some(round));
                        // A counter, by compare-and-swap.
                        let mut is = common.offset().unwrap();
                        while let Err(Error::UnexpectedCursor { offset }) =
                            common.set_if(is, is.unwrap_or(0) + 1)
                        {
                            is = offset;
                        }
                        counted += 1;
                    }
                    counted
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(log.cursor("all").unwrap().offset().unwrap(), Some(counted));
    let writes = writes.load(std::sync::atomic::Ordering::SeqCst);
    println!("{} changes in {writes} writes", 2 * counted);
    assert!(writes < 2 * counted, "{writes}");
}

/// An older file took the place of a newer one, after the log had been closed and opened again.
#[test]
fn closing_waits_for_a_cursor_that_is_being_written() {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    let sim = Sim::new(1);
    let state = Arc::new(AtomicU64::new(0)); // 1: armed, 2: one is held, 3: go on
    let gate = Gate::new(Arc::new(sim.clone()), {
        let state = Arc::clone(&state);
        move |operation, path| {
            let is_it = operation == Operation::WriteFile && path.to_string_lossy().contains(CURSORS_FILE);
            if is_it && state.compare_exchange(1, 2, SeqCst, SeqCst).is_ok() {
                while state.load(SeqCst) != 3 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            Ok(())
        }
    });
    let log = on(Arc::clone(&gate) as Arc<dyn crate::disk::Disk>, Durability::Disk);
    for n in 0..9u8 {
        log.append_wait_durable(&[n]).unwrap();
    }
    state.store(1, SeqCst);
    let cursor = log.cursor("a").unwrap();
    let held = std::thread::spawn(move || cursor.set(1));
    while state.load(SeqCst) != 2 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let closing = std::thread::spawn(move || log.close());
    std::thread::sleep(std::time::Duration::from_millis(500));
    let closed = closing.is_finished();
    if !closed {
        state.store(3, SeqCst); // it waits, as it should
    }
    closing.join().unwrap().unwrap();
    let log = on(Arc::clone(&gate) as Arc<dyn crate::disk::Disk>, Durability::Disk);
    log.cursor("a").unwrap().set(2).unwrap();
    state.store(3, SeqCst);
    let _ = held.join().unwrap(); // it may have been too late
    drop(log);
    assert_eq!(open(&sim).cursor("a").unwrap().offset().unwrap(), Some(2), "an answered change is lost");
}

/// It could not be opened at all, and so not be trimmed to make room.
#[test]
fn on_a_full_disk_a_log_with_a_cursor_beyond_its_end_is_opened_for_reading() {
    let sim = Sim::new(1);
    let log = open(&sim);
    log.append_wait_durable(b"x").unwrap();
    drop(log);
    let text = serde_json::to_vec(&Content::new(BTreeMap::from([("beyond".to_owned(), 500)]))).unwrap();
    tree::replace(&sim, &file(), &text).unwrap();
    let gate = Gate::new(Arc::new(sim.clone()), |operation, path| {
        let is_it = operation == Operation::WriteFile && path.to_string_lossy().contains(CURSORS_FILE);
        if is_it { Err(std::io::Error::from(std::io::ErrorKind::StorageFull)) } else { Ok(()) }
    });
    let log = Log::open_on(gate, Path::new("/log"), small(Durability::Memory));
    let log = log.unwrap_or_else(|error| panic!("it cannot even be read: {error}"));
    assert_eq!(log.read(0).unwrap().unwrap().value(), b"x");
    assert_eq!(log.cursors().unwrap(), BTreeMap::from([("beyond".to_owned(), 1)]));
    assert!(matches!(log.append(b"y"), Err(Error::Full { .. })));
    assert!(matches!(log.cursor("beyond").unwrap().set(0), Err(Error::Full { .. })));
}
