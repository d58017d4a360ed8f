//! What a scrub finds in sealed segments, and what it costs.

use super::{DIR, Sim};
use crate::{
    disk::{
        Disk,
        gate::{Gate, Operation},
    },
    log::{Damage, Error, Log, Options, Scrubbed},
    segment::sealed,
};
use rustix::io::Errno;
use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

const SEGMENT: &str = "/log/00000000000000000000.seg";

/// A log of records of 128 bytes, with their headers, in segments of 8 KiB.
fn filled(sim: &Sim) -> Log {
    let log = super::open(sim).unwrap();
    for n in 0..200u32 {
        log.append_wait_durable(&[n as u8; 100]).unwrap();
    }
    log.roll().unwrap();
    log
}

/// What a scrub of the first segment finds.
fn first(log: &Log) -> Scrubbed {
    log.scrub(0, |_| true).unwrap().unwrap()
}

/// What a scrub of all segments finds, each by the first offset of its segment; and how many segments there are.
fn all(log: &Log) -> (Vec<(u64, Vec<Damage>)>, usize) {
    let (mut found, mut segments, mut from) = (Vec::new(), 0, log.first_offset());
    while let Some(scrubbed) = log.scrub(from, |_| true).unwrap() {
        if !scrubbed.damage.is_empty() {
            found.push((from, scrubbed.damage));
        }
        (from, segments) = (scrubbed.next, segments + 1);
    }
    (found, segments)
}

/// Bytes of a file in which a changed bit is noticed, and what a scrub says of it: the records that are damaged, and a
/// word of the reason.
fn parts(file: &[u8]) -> Vec<(Range<usize>, Range<u64>, &'static str)> {
    let footer: [u8; 40] = *file[file.len() - 4096..].first_chunk().unwrap();
    let [records, words] = [32, 36].map(|at| u32::from_le_bytes(*footer[at..].first_chunk().unwrap()));
    let index = sealed::index_at(words) as usize;
    let frame = |n: usize| (4096 + n * 128..4096 + (n + 1) * 128, n as u64..n as u64 + 1, "frame");
    (0..records as usize)
        .map(frame)
        .chain([
            (0..84, 0..0, "copies"),
            (1024..1108, 0..0, "copies"),
            (index..index + records as usize * 4, 0..0, "index"),
            (file.len() - 4096..file.len() - 4096 + 72, 0..0, "footer"),
        ])
        .collect()
}

#[test]
fn a_scrub_finds_a_flipped_bit_wherever_it_matters_and_says_what_is_lost() {
    let sim = Sim::new(1);
    let log = filled(&sim);
    let (found, segments) = all(&log);
    assert!(found.is_empty() && segments > 3, "{segments}: {found:?}");
    let file = sim.dump()[Path::new(SEGMENT)].clone();
    let parts = parts(&file);
    for at in (0..file.len()).step_by(3) {
        let part = parts.iter().find(|(bytes, ..)| bytes.contains(&at));
        sim.damage(Path::new(SEGMENT), |bytes| bytes[at] ^= 4);
        let damage = first(&log).damage;
        sim.damage(Path::new(SEGMENT), |bytes| bytes[at] ^= 4);
        match (&damage[..], part) {
            ([], None) => {}
            ([found], Some((_, damaged, reason))) => {
                assert_eq!((&found.offsets, found.unreadable), (damaged, false), "{at}: {found}");
                assert!(found.reason.contains(reason) && found.path == Path::new(SEGMENT), "{at}: {found}");
            }
            _ => panic!("a bit at {at}, in {part:?}: {damage:?}"),
        }
    }
    assert_eq!(first(&log).damage, [], "whole again");
}

#[test]
fn a_scrub_says_which_records_of_a_broken_file_are_lost() {
    let sim = Sim::new(1);
    let log = filled(&sim);
    let file = sim.dump()[Path::new(SEGMENT)].clone();
    let end = first(&log).next;
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        sim.damage(Path::new(SEGMENT), change);
        let damage = first(&log).damage;
        sim.damage(Path::new(SEGMENT), |bytes| bytes.clone_from(&file));
        let damaged = damage.into_iter().map(|damage| damage.offsets).filter(|damaged| !damaged.is_empty());
        damaged.map(|damaged| (damaged.start, damaged.end)).collect::<Vec<_>>()
    };
    assert_eq!(damaged(&|bytes| bytes.truncate(4096 + 7 * 128 + 50)), [(7, end)]);
    assert_eq!(damaged(&|bytes| bytes.truncate(100)), [(0, end)]);
    assert_eq!(damaged(&|bytes| bytes[4096 + 256..4096 + 640].fill(0)), [(2, 5)]);
    assert_eq!(damaged(&|bytes| bytes[4096 + 128 + 5] ^= 0x40), [(1, 2)], "a length that cannot be");
    assert_eq!(damaged(&|bytes| bytes[4096..].fill(0)), [(0, end)]);
    assert_eq!(damaged(&|bytes| (0..9).for_each(|n| bytes[4096 + n * 256] ^= 1)).len(), 9);
    assert_eq!(damaged(&|_| ()), []);
    let other = sim.dump()[Path::new(&format!("/log/{end:020}.seg"))].clone();
    assert_eq!(damaged(&|bytes| bytes.clone_from(&other)), [(0, end)], "the file of another segment");
}

/// Records that are larger than what is read at once, and many that are small.
#[test]
fn records_of_any_size_are_verified_in_runs_of_a_mebibyte() {
    let sim = Sim::new(1);
    let options = Options {
        segment_bytes: 16 << 20,
        first_segment_bytes: 16 << 20,
        memory_bytes: 64 << 20,
        shm_dir: None,
        ..Options::default()
    };
    let log = Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options).unwrap();
    let sizes =
        [100, 3 << 20, 0, (1 << 20) - 24, (1 << 20) - 4096, 5, 700 << 10, (2 << 20) + 1, 9, 900 << 10];
    let (mut at, mut ends) = (4096, Vec::new());
    for size in sizes.iter().chain(std::iter::repeat_n(&33, 20_000)) {
        log.append(&vec![7; *size]).unwrap();
        at += (24 + size).next_multiple_of(8);
        ends.push(at - 1 - (24 + size).next_multiple_of(8) + 24 + size); // the last byte of the value, or of the header
    }
    log.roll().unwrap();
    let (mut runs, mut bytes) = (0, 0);
    let scrubbed = log.scrub(0, |run| {
        assert!(run <= 1 << 20);
        (runs, bytes) = (runs + 1, bytes + run);
        true
    });
    let scrubbed = scrubbed.unwrap().unwrap();
    let length = sim.dump()[Path::new(SEGMENT)].len() as u64;
    assert_eq!((scrubbed.damage, scrubbed.next), (vec![], sizes.len() as u64 + 20_000));
    assert!(bytes == length && scrubbed.bytes == length && runs < 16, "{runs} runs, {bytes} of {length}");
    for record in [0, 1, 3, 4, 6, 7, 9, 10, 777, 20_009] {
        sim.damage(Path::new(SEGMENT), |bytes| bytes[ends[record]] ^= 1);
        let damage = first(&log).damage;
        sim.damage(Path::new(SEGMENT), |bytes| bytes[ends[record]] ^= 1);
        let record = record as u64;
        assert!(matches!(&damage[..], [one] if one.offsets == (record..record + 1)), "{record}: {damage:?}");
    }
}

/// Sealed segments that are known to be damaged since the log was opened are scrubbed too.
#[test]
fn a_scrub_finds_what_the_opening_has_found() {
    let sim = Sim::new(1);
    filled(&sim).close().unwrap();
    sim.damage(Path::new(SEGMENT), |bytes| {
        bytes[4096 + 3 * 128 + 50] ^= 1;
        let end = bytes.len() - 4096;
        bytes[end] ^= 1; // without its footer, the opening reads the frames
    });
    let log = super::open(&sim).unwrap();
    assert!(matches!(log.damage(), [one] if one.offsets == (3..4)), "{:?}", log.damage());
    assert_eq!(first(&log).damage, log.damage());
}

#[test]
fn what_is_trimmed_while_it_is_scrubbed_is_not_damaged() {
    let sim = Sim::new(1);
    let log = filled(&sim);
    let end = first(&log).next;
    sim.damage(Path::new(SEGMENT), |bytes| bytes[4096 + 60] ^= 1);
    assert_eq!(first(&log).damage.len(), 1);
    let scrubbed = log.scrub(0, |_| log.trim(end).is_ok()).unwrap().unwrap();
    assert_eq!((scrubbed.next, scrubbed.damage), (end, vec![]));
    assert!(log.scrub(0, |_| true).unwrap().unwrap().next > end, "the first segment that is left");
    // Removed, and not trimmed.
    sim.remove(Path::new(&format!("/log/{end:020}.seg"))).unwrap();
    let damage = first(&log).damage;
    assert!(matches!(&damage[..], [one] if one.offsets.start == end && one.reason.contains("missing")));
}

#[test]
fn a_scrub_that_is_stopped_or_lacks_descriptors_reports_nothing_and_begins_again() {
    let sim = Sim::new(1);
    drop(filled(&sim));
    let fails = Arc::new(AtomicI32::new(0));
    let error = Arc::clone(&fails);
    let ask = move |operation, path: &Path| match error.load(Ordering::Relaxed) {
        number if number != 0 && path == Path::new(SEGMENT) && operation != Operation::Write => {
            Err(std::io::Error::from_raw_os_error(number))
        }
        _ => Ok(()),
    };
    let log = Log::open_on(Gate::new(Arc::new(sim.clone()), ask), Path::new(DIR), super::small()).unwrap();
    sim.damage(Path::new(SEGMENT), |bytes| bytes[4096 + 60] ^= 1);
    let stopped = log.scrub(0, |_| false).unwrap().unwrap();
    assert_eq!((stopped.next, stopped.damage), (0, vec![]));
    for errno in [Errno::MFILE, Errno::NOMEM] {
        fails.store(errno.raw_os_error(), Ordering::Relaxed);
        let error = log.scrub(0, |_| true).unwrap_err();
        assert!(error.is_transient() && matches!(error, Error::Io { .. }), "{error}");
    }
    fails.store(0, Ordering::Relaxed);
    assert_eq!(first(&log).damage[0].offsets, 0..1);
}

#[test]
fn what_the_disk_cannot_read_is_reported_as_such() {
    let sim = Sim::new(1);
    let log = filled(&sim);
    let file = sim.dump()[Path::new(SEGMENT)].clone();
    for at in (0..file.len()).step_by(512) {
        sim.spoil_at(Path::new(SEGMENT), at);
        let damage = first(&log).damage;
        sim.heal();
        let damaged =
            parts(&file).iter().filter(|(bytes, ..)| bytes.start < at + 512 && at < bytes.end).count();
        assert!(!damage.is_empty() && damage.iter().all(|one| one.unreadable), "{at}: {damage:?}");
        let offsets: u64 = damage.iter().map(|one| one.offsets.end - one.offsets.start).sum();
        let expected = if (4096..4096 + 31 * 128).contains(&at) { damaged as u64 } else { 0 };
        assert_eq!(offsets, expected, "{at}: {damage:?}");
    }
    assert_eq!(first(&log).damage, []);
}
