//! What the simulation has found, each as a test of its own.

use super::world::{World, clock};
use crate::{
    Durability, Log, Options,
    disk::sim::{Cut, Mode, Random, Sim},
    log::Environment,
    store::{LogSettings, Store, StoreOptions},
};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const DIR: &str = "/data/a";

fn options(shm_dir: Option<&Path>) -> Options {
    Options {
        durability: Durability::Memory,
        segment_bytes: 8 << 10,
        first_segment_bytes: 4 << 10,
        memory_bytes: 64 << 10,
        shm_dir: shm_dir.map(Path::to_owned),
    }
}

fn open(sim: &Sim, shm_dir: Option<&Path>) -> Result<Log, crate::Error> {
    Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options(shm_dir))
}

fn store(sim: &Sim) -> Result<Store, crate::store::Error> {
    let options = StoreOptions { log: options(None), ..StoreOptions::default() };
    Store::open_in(Environment::on(Arc::new(sim.clone())), Path::new("/data"), options)
}

/// A process was killed between creating or renaming a directory and syncing its name. The next one used the directory,
/// and everything that was acknowledged in it was lost in a power failure.
#[test]
fn a_directory_that_a_killed_process_has_left_is_durable_before_anything_in_it_is_acknowledged() {
    for steps in 1..40 {
        for seed in 0..4 {
            let sim = Sim::new(seed);
            sim.end_after(steps, Cut::Kill);
            let alone = seed % 2 == 0;
            if alone {
                drop(open(&sim, None));
            } else if let Ok(store) = store(&sim) {
                let _ = store.create("a", &LogSettings::default()); // or it is killed
            }
            let sim = sim.after(Cut::Kill);
            if alone {
                let log = open(&sim, None).unwrap();
                let offset = log.append(b"kept").unwrap();
                log.wait_durable(offset).unwrap();
            } else {
                let store = store(&sim).unwrap();
                store.create("a", &LogSettings::default()).unwrap();
                let log = store.get("a").unwrap();
                let offset = log.append(b"kept").unwrap();
                log.wait_durable(offset).unwrap();
            }
            let log = open(&sim.reboot(), None).unwrap();
            assert_eq!(log.next_offset(), 1, "killed at step {steps}, seed {seed}, alone: {alone}");
        }
    }
}

/// After a failed sync the page cache has what the device does not have, and considers it written. Opening found it
/// there, synced it in vain, and called it durable.
#[test]
fn what_a_failed_sync_has_left_in_the_page_cache_is_not_called_durable() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        sim.set_mode(Mode::Buffered);
        let log = open(&sim, None).unwrap();
        log.append(&[1; 3000]).unwrap();
        sim.fail_one_in(Some(2));
        let _ = log.flush(); // it fails, mostly
        sim.fail_one_in(None);
        drop(log);
        let log = open(&sim, None).unwrap();
        let durable = log.durable_offset();
        sim.turn_off(); // no close, which would write
        drop(log);
        let log = open(&sim.reboot(), None).unwrap();
        assert!(log.next_offset() >= durable, "seed {seed}: {durable} were durable");
        for offset in 0..durable {
            log.read(offset).unwrap().unwrap();
        }
    }
}

/// There were no descriptors for a moment: the log opened without the records in its backings, and gave their offsets
/// to others.
#[test]
fn a_log_whose_backings_cannot_be_looked_at_for_a_moment_does_not_open_without_them() {
    let at = tempfile::tempdir().unwrap();
    let sim = Sim::new(1);
    let log = open(&sim, Some(at.path())).unwrap();
    sim.hold(true);
    for _ in 0..10 {
        log.append(b"in memory").unwrap();
    }
    // The process is killed while none of these records is on the disk.
    sim.turn_off();
    sim.set_memory_gate(|_| Err(io::Error::other("killed")));
    sim.hold(false);
    drop(log);
    let sim = sim.after(Cut::Kill);
    for failing in ["open memory", "list backings", "open backing"] {
        for number in 1..4 {
            let before = AtomicU64::new(number);
            sim.set_memory_gate(move |step| {
                let fails = step == failing && before.fetch_sub(1, Ordering::Relaxed) == 1;
                if fails { Err(io::Error::from_raw_os_error(24)) } else { Ok(()) }
            });
            if let Ok(log) = open(&sim, Some(at.path())) {
                assert_eq!(log.next_offset(), 10, "{failing} has failed, at call {number}");
            }
        }
    }
    sim.remove_memory_gate();
    assert_eq!(open(&sim, Some(at.path())).unwrap().next_offset(), 10);
}

/// A chunk that was replaced while it was empty, because the first value did not fit, has a segment of the same base on
/// the disk. After its backing was restored, the empty segment was still among the segments, and was sealed: over the
/// first frames.
#[test]
fn a_segment_that_was_replaced_while_it_was_empty_is_not_sealed_over_its_successor() {
    let at = tempfile::tempdir().unwrap();
    let sim = Sim::new(1);
    let log = open(&sim, Some(at.path())).unwrap();
    assert_eq!(log.append(&[7; 6000]).unwrap(), 0); // the first segment has only 4 KiB
    sim.turn_off();
    sim.set_memory_gate(|_| Err(io::Error::other("killed")));
    drop(log);
    let sim = sim.after(Cut::Kill);
    for _ in 0..2 {
        let log = open(&sim, Some(at.path())).unwrap();
        assert_eq!(log.read(0).unwrap().unwrap().value(), [7; 6000]);
        log.close().unwrap();
    }
}

/// There was a backing that was not restored, beside a log that had continued without it. A damaged record in the part
/// that both have was mended from the backing, and everything after it was overwritten with the content of the backing.
#[test]
fn damage_is_not_repaired_from_a_backing_of_another_history() {
    let at = tempfile::tempdir().unwrap();
    let sim = Sim::new(1);
    let log = open(&sim, Some(at.path())).unwrap();
    for _ in 0..10 {
        log.append(&[1; 40]).unwrap();
    }
    log.flush().unwrap();
    let disk = sim.snapshot();
    sim.hold(true);
    for _ in 0..10 {
        log.append(&[2; 40]).unwrap();
    }
    sim.turn_off();
    sim.set_memory_gate(|_| Err(io::Error::other("killed")));
    sim.hold(false);
    drop(log);
    // Another user continues the log.
    let log = open(&disk, None).unwrap();
    for _ in 0..5 {
        log.append(&[3; 40]).unwrap();
    }
    log.close().unwrap();
    let first = Path::new(DIR).join("00000000000000000000.seg");
    disk.damage(&first, |bytes| bytes[4096 + 3 * 64 + 50] ^= 1);
    let log = open(&disk, Some(at.path())).unwrap();
    assert_eq!((log.damage()[0].offsets.clone(), log.next_offset()), (3..4, 15));
    for offset in 10..15 {
        assert_eq!(log.read(offset).unwrap().unwrap().value(), [3; 40]);
    }
}

/// All segments with records were trimmed while the active one was empty on the disk, and replaced in memory by a
/// larger one. The backing of the larger one was bound to a frame that no longer existed, and was not restored after a
/// kill.
#[test]
fn trimming_leaves_the_frame_that_a_backing_is_bound_to() {
    let at = tempfile::tempdir().unwrap();
    let mut random = Random::new(1);
    let (world, clock) = (World::new(Sim::new(1), &mut random), clock(&mut random));
    world.sim.set_meanwhile(None);
    let open = |segment_bytes| {
        let options = Options { segment_bytes, ..options(Some(at.path())) };
        Log::open_in(&world.environment(&clock), Path::new(DIR), options).unwrap()
    };
    let log = open(8 << 10);
    while log.try_append(&[1; 5000]).is_err() {
        assert!(world.maintenance.turn(&mut random));
    }
    log.close().unwrap();
    // The log does not continue in a segment larger than these options allow, and begins one of 4 KiB.
    open(4 << 10).close().unwrap();
    let log = open(8 << 10);
    while log.try_append(&[2; 6000]).is_err() {
        assert!(world.maintenance.turn(&mut random));
    }
    log.trim(u64::MAX).unwrap();
    assert_eq!((log.next_offset(), log.durable_offset()), (2, 1));
    let sim = world.sim.after(Cut::Kill);
    drop(log);
    drop(world);
    let log = self::open(&sim, Some(at.path())).unwrap();
    assert_eq!(log.next_offset(), 2);
    assert_eq!(log.read(1).unwrap().unwrap().value(), [2; 6000]);
}

/// A log was deleted by a process that was killed, and the next process could not remove its remains at once. A log of
/// the same name was created when the clock showed the same time again: in the same directory, with the old log's
/// records.
#[test]
fn leftovers_of_a_deleted_log_never_become_part_of_a_new_one() {
    for steps in 1..200 {
        let mut random = Random::new(steps);
        let clock = clock(&mut random);
        let store = |world: &World| {
            let options = StoreOptions { log: options(None), ..StoreOptions::default() };
            Store::open_in(world.environment(&clock), Path::new("/data"), options)
        };
        let world = World::new(Sim::new(steps), &mut random);
        let open = store(&world).unwrap();
        open.create("a", &LogSettings::default()).unwrap();
        open.close().unwrap();
        let open = store(&world).unwrap(); // which has not given out a temporary name yet
        let log = open.get("a").unwrap();
        log.try_append(b"old").unwrap();
        log.wait_durable(0).unwrap();
        drop(log);
        world.sim.end_after(1 + steps % 12, Cut::Kill);
        let _ = open.delete("a"); // or it is killed before
        let sim = world.sim.after(Cut::Kill);
        drop(open);
        drop(world);
        let world = World::new(sim, &mut random);
        world.sim.fail_one_in(Some(4));
        let open = (0..100).find_map(|_| store(&world).ok()).unwrap();
        world.sim.fail_one_in(None);
        if open.create("a", &LogSettings::default()).unwrap() {
            let next = open.get("a").unwrap().next_offset();
            assert_eq!(next, 0, "killed in the middle of deleting, {steps}");
        }
        open.close().unwrap();
    }
}
