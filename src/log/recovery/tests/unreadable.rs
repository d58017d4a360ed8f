//! Sectors that the disk cannot read: their content is not known, and nothing is given up for that.

use super::{DIR, FIRST, kill, open, options, repaired, small, values, verified};
use crate::{
    Error, Log, Options, Record,
    disk::{
        gate::{Gate, Operation},
        sim::{Cut, Sim},
    },
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

const SECOND: &str = "/log/00000000000000000050.seg";

fn large() -> Options {
    options(1 << 20, 1 << 20, 8 << 20, None)
}

fn value(n: u64) -> Vec<u8> {
    vec![n as u8; 1000]
}

/// A log with a sealed segment of fifty records and an open one of twenty, closed cleanly.
fn log_of_two_segments() -> Sim {
    let sim = Sim::new(1);
    let log = open(&sim, options(1 << 16, 1 << 16, 8 << 20, None)).unwrap();
    for n in 0..50 {
        log.append(&value(n)).unwrap();
    }
    log.close().unwrap();
    // The first segment is too large for these options: it is sealed.
    let log = open(&sim, options(1 << 15, 1 << 15, 8 << 20, None)).unwrap();
    log.close().unwrap();
    assert!(sim.dump().contains_key(Path::new(SECOND)));
    let log = open(&sim, large()).unwrap();
    for n in 50..70 {
        log.append(&value(n)).unwrap();
    }
    log.close().unwrap();
    sim
}

fn readable(log: &Log) -> Vec<u64> {
    (0..log.next_offset()).filter(|&offset| log.read(offset).is_ok_and(|record| record.is_some())).collect()
}

fn is_whole(sim: &Sim) {
    let log = open(sim, large()).unwrap();
    assert_eq!(log.damage(), []);
    assert_eq!(values(&log), (0..70).map(value).collect::<Vec<_>>());
    assert_eq!(log.append(b"on").unwrap(), 70);
    log.close().unwrap();
}

#[test]
fn an_unreadable_sector_of_the_open_segment_is_reported_and_the_rest_is_served() {
    // In the middle of the records, and in the last one.
    for lost in [55, 69] {
        let (at, told) = (4096 + (lost as usize - 50) * 1024 + 600, lost..lost + 1);
        let sim = log_of_two_segments();
        sim.spoil_at(Path::new(SECOND), at);
        for report in [verified(&sim, None).damage, open(&sim, large()).unwrap().damage().to_vec()] {
            assert!(report.iter().all(|damage| damage.unreadable), "{report:?}");
            assert!(report.iter().any(|damage| damage.offsets == told), "{report:?}");
        }
        let log = open(&sim, large()).unwrap();
        assert!(matches!(log.append(b"no"), Err(Error::ReadOnly { .. })));
        let expected: Vec<u64> = (0..70).filter(|&offset| offset != lost).collect();
        assert_eq!(readable(&log), expected, "byte {at}");
        drop(log);
        sim.heal();
        is_whole(&sim);
    }
}

#[test]
fn where_the_end_of_a_log_cannot_be_read_no_offset_is_given_to_other_records() {
    let sim = log_of_two_segments();
    // After a kill no mark says how many records there were.
    let log = open(&sim, large()).unwrap();
    std::mem::forget(log);
    let sim = sim.after(Cut::Kill);
    sim.damage(Path::new(SECOND), |bytes| bytes[512..1024].fill(0)); // the mark
    for at in [4096 + 18 * 1024, 4096 + 30 * 1024] {
        sim.spoil_at(Path::new(SECOND), at);
        let log = open(&sim, large()).unwrap();
        assert!(log.damage().iter().all(|damage| damage.unreadable), "{:?}", log.damage());
        assert!(matches!(log.append(b"no"), Err(Error::ReadOnly { .. })));
        drop(log);
        sim.heal();
    }
    is_whole(&sim);
}

#[test]
fn an_unreadable_header_is_reconstructed_from_the_others_and_later_read_again() {
    for path in [FIRST, SECOND] {
        let sim = log_of_two_segments();
        // One of the copies is enough.
        sim.spoil_at(Path::new(path), 0);
        let log = open(&sim.snapshot(), large()).unwrap();
        assert_eq!((log.damage(), readable(&log).len()), (&[][..], 70));
        sim.spoil_at(Path::new(path), 1100);
        assert!(verified(&sim, None).damage.iter().all(|damage| damage.unreadable));
        let log = open(&sim, large()).unwrap();
        assert!(log.damage().iter().any(|damage| damage.reason.contains("header")), "{:?}", log.damage());
        assert_eq!(readable(&log), (0..70).collect::<Vec<_>>(), "{path}");
        drop(log);
        sim.heal();
        is_whole(&sim);
    }
}

#[test]
fn without_its_only_header_a_log_does_not_open_and_says_why() {
    let sim = Sim::new(1);
    let log = open(&sim, large()).unwrap();
    for n in 0..70 {
        log.append(&value(n)).unwrap();
    }
    log.close().unwrap();
    sim.spoil_at(Path::new(FIRST), 100);
    sim.spoil_at(Path::new(FIRST), 1100);
    let error = open(&sim, large()).err().unwrap();
    assert!(
        matches!(error, Error::Corrupt { .. }) && error.to_string().contains("cannot be read"),
        "{error}"
    );
    sim.heal();
    is_whole(&sim);
}

#[test]
fn an_index_or_a_footer_that_cannot_be_read_costs_nothing() {
    let sim = log_of_two_segments();
    let length = sim.dump()[Path::new(FIRST)].len();
    for at in [length - 4096, length - 8192] {
        sim.spoil_at(Path::new(FIRST), at);
        let log = open(&sim, large()).unwrap();
        assert_eq!(log.damage(), []);
        assert_eq!(values(&log).len(), 70);
        drop(log);
    }
    sim.heal();
    is_whole(&sim);
}

#[test]
fn repair_gives_up_what_cannot_be_read_and_keeps_the_rest() {
    for path in [FIRST, SECOND] {
        let sim = log_of_two_segments();
        sim.spoil_at(Path::new(path), 4096 + 5 * 1024 + 600);
        let kept = repaired(&sim).kept;
        assert_eq!(kept.len(), 1);
        assert!(sim.dump()[&kept[0]].len() > 20 * 1024);
        let log = open(&sim, large()).unwrap();
        assert_eq!(log.damage(), []);
        let lost = if path == FIRST { 5 } else { 55 };
        let marked: Vec<u64> =
            log.iter(0).map(Result::unwrap).filter(Record::is_lost).map(|lost| lost.offset()).collect();
        assert_eq!(marked, [lost]);
        assert_eq!(log.append(b"on").unwrap(), 70);
    }
}

#[test]
fn a_disk_operation_that_fails_once_is_retried() {
    let sim = log_of_two_segments();
    let dir = Path::new(DIR);
    for nth in 0..20 {
        let (reads, gate) = (AtomicU32::new(0), Arc::new(sim.clone()));
        let gate = Gate::new(gate, move |operation, _| {
            let fails = operation == Operation::Read && reads.fetch_add(1, Ordering::Relaxed) == nth;
            if fails { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(()) }
        });
        let log = Log::open_on(gate, dir, large()).unwrap();
        assert_eq!(log.damage(), [], "read {nth}");
        assert_eq!(log.next_offset(), 70);
    }
}

/// Reading tiny records before an unreadable sector asked for that sector again with each of them. A disk may take
/// seconds each time.
#[test]
fn an_unreadable_sector_is_not_read_again_for_each_record_before_it() {
    let sim = Sim::new(1);
    let o = || options(1 << 18, 1 << 18, 1 << 21, None);
    let log = open(&sim, o()).unwrap();
    let batch: Vec<&[u8]> = (0..6000).map(|_| &b"12345678"[..]).collect();
    while log.shared.chain.load().segments.len() < 2 {
        log.append_batch(&batch).and_then(|at| log.wait_durable(at + 5999)).unwrap();
    }
    let records = log.shared.chain.load().segments[1].base();
    log.close().unwrap();
    let reads = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&reads);
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, _| {
        counts.fetch_add(u32::from(operation == Operation::Read), Ordering::Relaxed);
        Ok(())
    });
    let log = Log::open_on(gate, Path::new(DIR), o()).unwrap();
    let bad = records - 100;
    sim.spoil_at(Path::new(FIRST), 4096 + bad as usize * 32);
    let mut reader = log.reader(0);
    reads.store(0, Ordering::Relaxed);
    let mut lost = Vec::new();
    for offset in 0..records {
        if reader.read(offset).is_err() {
            lost.push(offset);
        }
    }
    assert!(lost.contains(&bad) && lost.len() <= 17, "one sector has {lost:?}");
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads < 2000, "{reads} reads for {records} records");
}

/// A record of zeros verified, because unreadable bytes are replaced by zeros: `verify` and `repair` saw nothing, and
/// reading the record was an error for good.
#[test]
fn unreadable_zeros_are_reported_and_rewritten() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    for _ in 0..20 {
        log.append(&[0; 3000]).unwrap();
    }
    log.close().unwrap();
    sim.spoil_at(Path::new(FIRST), 4096 + 1600);
    let log = open(&sim, small(None)).unwrap();
    assert!(log.read(0).is_err());
    drop(log);
    let damage = verified(&sim, None).damage;
    assert!(damage.len() == 1 && damage[0].unreadable, "{damage:?}");
    assert_eq!(repaired(&sim).damage, damage);
    assert_eq!(verified(&sim, None).damage, []);
    assert!(values(&open(&sim, small(None)).unwrap()).iter().all(|value| *value == [0; 3000]));
}

/// A deleted log whose header could not be read was never removed, because nobody knew whose its backings were.
#[cfg(feature = "store")]
#[test]
fn the_id_of_a_log_is_read_from_any_readable_header() {
    let sim = log_of_two_segments();
    let id_of = || super::super::id_of(&sim, Path::new(DIR)).unwrap();
    let id = id_of();
    assert!(id.is_some());
    for (path, at) in [(FIRST, 0), (FIRST, 1100), (SECOND, 1100)] {
        sim.spoil_at(Path::new(path), at);
        assert_eq!(id_of(), id, "{path} {at}");
    }
    sim.spoil_at(Path::new(SECOND), 0);
    assert_eq!(id_of(), None);
}

/// What could be read of a damaged log depended on the name of the segment after the damage, which a power failure
/// took: then the damaged segment was the last one, and the damage in it a torn end.
#[test]
fn a_damaged_log_makes_names_durable_before_it_serves_what_they_tell_of() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    while sim.dump().keys().filter(|path| path.extension().is_some_and(|end| end == "seg")).count() < 2 {
        log.append(&[7; 500]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    kill(log);
    let sim = sim.after(Cut::Kill);
    sim.damage(Path::new(FIRST), |bytes| {
        let footer = bytes.len() - 4096;
        bytes[footer..].fill(0);
        bytes[4096 + 700] ^= 1;
    });
    let names = |what: &str, run: &dyn Fn()| {
        sim.begin_trace();
        run();
        let trace = sim.take_trace();
        let (synced, looked) = (trace.find("sync dir /log"), trace.rfind("read"));
        assert!(synced.is_some_and(|synced| looked.is_none_or(|looked| synced < looked)), "{what}: {trace}");
    };
    names("opening", &|| assert!(!open(&sim, small(None)).unwrap().damage().is_empty()));
    names("repair", &|| drop(repaired(&sim)));
}

/// A log of sixty records of 128 bytes, of which those that a bad sector has a part of cannot be read.
fn log_with_a_bad_sector(bad: u64) -> (Log, Vec<u64>) {
    let sim = Sim::new(1);
    let o = || options(1 << 14, 1 << 14, 1 << 20, None);
    let log = open(&sim, o()).unwrap();
    for n in 0..60u8 {
        log.append(&[n; 100]).unwrap();
    }
    log.roll().unwrap();
    log.close().unwrap();
    let log = open(&sim, o()).unwrap();
    sim.spoil_at(Path::new(FIRST), 4096 + bad as usize * 128);
    let lost = (0..60).filter(|&offset| log.read(offset).is_err()).collect();
    (log, lost)
}

/// What was read at once began at any record, and the parts of 512 bytes in which it was read again were counted from
/// there: two of them had a bit of the bad sector, and every record with a bit of those was taken for unreadable.
#[test]
fn only_the_records_in_a_bad_sector_are_unreadable_wherever_a_reader_begins() {
    let (log, lost) = log_with_a_bad_sector(40);
    assert_eq!(lost, [40, 41, 42, 43]);
    for begin in 0..8 {
        let (mut reader, mut unreadable) = (log.reader(begin), Vec::new());
        while reader.offset() < 60 {
            let at = reader.offset();
            if reader.read_next().is_err() {
                reader.seek_readable(at + 1).unwrap();
                unreadable.extend(at..reader.offset());
            }
        }
        assert_eq!(unreadable, lost, "from {begin}");
    }
}

#[test]
fn a_reverse_iteration_reaches_every_record_that_can_be_read_after_a_bad_sector() {
    let (log, lost) = log_with_a_bad_sector(40);
    for end in 50..60 {
        let reached = log.iter_range(0..end).rev().map_while(Result::ok).last();
        let expected = lost.last().map(|lost| lost + 1);
        assert_eq!(reached.map(|record| record.offset()), expected, "from {end} on");
    }
}
