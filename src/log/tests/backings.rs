//! A memory file system without room: what is acknowledged in memory survives the process as soon as there is some, or
//! could be.

use super::{super::*, DIR};
use crate::{
    chunk::Predecessor,
    disk::sim::{Cut, Sim},
    store::{LogSettings, Store, StoreOptions},
};
use std::{io, path::Path, sync::Arc, time::Duration};

/// The head of a backing.
const HEAD: u64 = 4096;

fn options(at: &Path, segment_bytes: u64) -> Options {
    Options {
        durability: Durability::Memory,
        segment_bytes,
        first_segment_bytes: segment_bytes.min(16 << 10),
        memory_bytes: 1 << 20,
        shm_dir: Some(at.to_owned()),
    }
}

fn open(sim: &Sim, options: &Options) -> Log {
    Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options.clone()).unwrap()
}

/// Ends the process that has the log open, as SIGKILL does, while what it appends now is only in memory; returns how many
/// of these records the next process lacks.
fn lost_by_a_kill(sim: &Sim, log: Log, options: &Options) -> u64 {
    sim.hold(true);
    for _ in 0..3 {
        log.append(b"acknowledged in memory").unwrap();
    }
    let next = log.visible_offset();
    assert_eq!(next, log.next_offset());
    sim.turn_off();
    sim.set_memory_gate(|_| Err(io::Error::other("killed")));
    sim.hold(false);
    drop(log);
    let sim = sim.after(Cut::Kill);
    next - open(&sim, options).next_offset()
}

fn append_durably(log: &Log, records: usize) {
    for _ in 0..records {
        log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
    }
}

/// The chunk that began without room got memory of the process's own; when it was sealed and evicted, that memory went to
/// the pool, and the next chunk got it from there: no later chunk of the log had a backing, however much room there was.
#[test]
fn a_moment_without_shared_memory_is_over_for_the_chunks_that_begin_after_it() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), Options { memory_bytes: 64 << 10, ..options(at.path(), 8 << 10) });
    sim.set_memory_room(Some(0));
    let log = open(&sim, &options);
    append_durably(&log, 60);
    sim.set_memory_room(None);
    append_durably(&log, 60);
    assert_eq!(lost_by_a_kill(&sim, log, &options), 0);
}

/// It lasted as long as its chunk: a log that was opened without room, and appended to slowly, acknowledged for days what
/// a kill would take.
#[test]
fn a_chunk_that_began_without_shared_memory_is_replaced_once_there_is_some() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), Options { memory_bytes: 8 << 20, ..options(at.path(), 1 << 20) });
    sim.set_memory_room(Some(0));
    let log = open(&sim, &options);
    append_durably(&log, 1);
    sim.set_memory_room(None);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        append_durably(&log, 1);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(lost_by_a_kill(&sim, log, &options), 0);
}

/// The chunks of sealed segments, which are kept for readers, filled a memory file system that is smaller than the budget;
/// only the active chunk found no room in it.
#[test]
fn chunks_that_are_on_the_disk_make_room_for_those_that_are_not() {
    const SIZE: u64 = 16 << 10;
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), options(at.path(), SIZE));
    sim.set_memory_room(Some(4 * (SIZE + HEAD)));
    let log = open(&sim, &options);
    append_durably(&log, 300);
    assert_eq!(lost_by_a_kill(&sim, log, &options), 0);
}

/// So did the chunks of sealed segments of another log.
#[test]
fn chunks_of_other_logs_that_are_on_the_disk_make_room_for_those_that_are_not() {
    const SIZE: u64 = 16 << 10;
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), options(at.path(), SIZE));
    sim.set_memory_room(Some(6 * (SIZE + HEAD)));
    let env = Environment::on(Arc::new(sim.clone()));
    let in_store = StoreOptions { log: options.clone(), ..StoreOptions::default() };
    let store = Store::open_in(env, Path::new("/store"), in_store.clone()).unwrap();
    for name in ["full", "a"] {
        store.create(name, &LogSettings::default()).unwrap();
    }
    append_durably(&store.get("full").unwrap(), 300);
    let log = store.get("a").unwrap();
    append_durably(&log, 100);
    sim.hold(true);
    let next = 1 + (0..3).map(|_| log.append(b"acknowledged in memory").unwrap()).max().unwrap();
    sim.turn_off();
    sim.set_memory_gate(|_| Err(io::Error::other("killed")));
    sim.hold(false);
    drop((log, store));
    let env = Environment::on(Arc::new(sim.after(Cut::Kill)));
    let store = Store::open_in(env, Path::new("/store"), in_store).unwrap();
    assert_eq!(store.get("a").unwrap().next_offset(), next);
}

/// A segment of the size that the budget allows did not fit the memory file system, which had room for smaller ones: once a
/// log had grown, none of its chunks had a backing.
#[test]
fn where_shared_memory_has_no_room_for_a_large_chunk_a_smaller_one_begins() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), Options { memory_bytes: 8 << 20, ..options(at.path(), 1 << 20) });
    sim.set_memory_room(Some(200 << 10));
    let log = open(&sim, &options);
    append_durably(&log, 400);
    assert_eq!(lost_by_a_kill(&sim, log, &options), 0);
}

/// The chunk that had no backing was empty when it was replaced: what precedes it was noted nowhere, so the backing of
/// the next one did not continue the log after a kill.
#[test]
fn a_chunk_that_replaces_an_empty_one_without_shared_memory_continues_the_log() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), Options { memory_bytes: 8 << 20, ..options(at.path(), 1 << 20) });
    sim.set_memory_room(Some(0));
    let log = open(&sim, &options);
    std::thread::sleep(Duration::from_millis(400));
    sim.set_memory_room(None);
    log.trim(0).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(log.backed().0, "it has a backing now");
    assert_eq!(lost_by_a_kill(&sim, log, &options), 0);
}

/// What precedes a segment was noted when the flusher came there. Until then, if the chunk before it had no backing but was
/// on the disk, a kill took what was appended to the new segment, which had one.
#[test]
fn what_precedes_a_segment_is_noted_when_it_begins() {
    let at = tempfile::tempdir().unwrap();
    let (sim, options) = (Sim::new(1), options(at.path(), 16 << 10));
    let log = open(&sim, &options);
    append_durably(&log, 1);
    for _ in 0..500 {
        let active = log.shared.active.load_full();
        log.shared.roll_if_ready(&active); // as when the clock was set back
        let next = log.shared.active.load_full();
        if !Arc::ptr_eq(&active, &next) {
            return assert!(matches!(next.chunk.predecessor(0), Predecessor::Frame(_)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("there is no spare segment");
}
